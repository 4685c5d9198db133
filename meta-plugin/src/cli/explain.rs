//! `musubi explain`: the plan of a pod, by the very code that ADD plans with.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use musubi_delegates::cni::{CniError, ConfList, InterfaceName, NetConf, Version, code};
use musubi_delegates::external;
use musubi_delegates::registry::Runs;
use serde_json::{Map, Value, json};

use super::{Format, print, print_json, table};
use crate::cancel::Cancel;
use crate::check::request::UNLIMITED_BURST;
use crate::config::{Config, OUR_TYPE};
use crate::devices::Devices;
use crate::engine::read_store;
use crate::networks;
use crate::plan::{Plan, Planned, plan};
use crate::store::PodQuery;

/// How long an API server that does not answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Options of `musubi explain`.
#[derive(Args)]
pub struct Options {
    /// The pod's name
    #[arg(value_name = "POD")]
    pod: String,
    /// The pod's namespace
    #[arg(short, long, value_name = "NS", default_value = "default")]
    namespace: String,
    /// Musubi's CNI configuration, or a configuration list that holds one
    #[arg(long, value_name = "CONF")]
    config: PathBuf,
    /// Folder of pod and definition manifests [default: the configuration's manifestDir]
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// The cluster to read pod and definitions from [default: the configuration's kubeconfig]
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let bytes = std::fs::read(&options.config).with_context(|| format!("--config {}", options.config.display()))?;
    match explain(options, &bytes) {
        Ok(plan) => {
            let pod = format!("{}/{}", options.namespace, options.pod);
            match options.output {
                Format::Json => print_json(&to_json(&pod, &plan))?,
                Format::Table => print(&to_text(&pod, &plan))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            print_json(&error.to_json(Version::LATEST))?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn explain(options: &Options, bytes: &[u8]) -> Result<Plan, CniError> {
    let mut config = Config::parse(&own_configuration(bytes)?)?;
    if let Some(folder) = &options.manifests {
        config.manifest_dir = Some(folder.clone());
    }
    if let Some(file) = &options.kubeconfig {
        (config.manifest_dir, config.kubeconfig) = (None, Some(file.clone()));
    }
    let store = read_store(&config, Instant::now() + PATIENCE, &Cancel::default())?;
    if !store.knows_pods() {
        return Err(CniError::new(code::CONFIG, "no place to read the pod from").with_details(
            "give --manifests DIR or --kubeconfig FILE, or set \"manifestDir\" or \"kubeconfig\" in the configuration",
        ));
    }
    let store = store.as_ref();
    let pod = store.pod(&PodQuery::named(&options.namespace, &options.pod))?.ok_or_else(|| {
        let place = match (&config.manifest_dir, &config.kubeconfig) {
            (Some(folder), _) => format!("in no manifest of {}", folder.display()),
            _ => "not in the cluster".to_owned(),
        };
        CniError::new(code::TRY_AGAIN, format!("pod {}/{} is {place}", options.namespace, options.pod))
    })?;
    let wanted = networks::look_up(&config, Some(&pod), store)?;
    let mut plan = plan(&config, wanted, &InterfaceName::parse("eth0")?, Devices::unasked())?;
    plan.warnings.extend(store.warnings());
    plan.warnings.extend(missing_plugins(&config, &plan));
    if pod.host_network {
        plan.warnings.push("the pod uses the host's network: it is attached to none of these".to_owned());
    }
    Ok(plan)
}

/// Plugins that ADD will look for and that are not in `binDir`; where else the runtime has it look is not known here.
fn missing_plugins(config: &Config, plan: &Plan) -> Vec<String> {
    let cni_path = std::env::var_os("CNI_PATH").unwrap_or_default();
    let path = config.plugin_path(&std::env::split_paths(&cni_path).collect::<Vec<_>>());
    let mut missing = BTreeSet::new();
    for planned in &plan.attachments {
        let external = planned.delegates.iter().filter(|delegate| matches!(delegate.runs, Runs::External { .. }));
        for error in external.filter_map(|delegate| external::find(&delegate.plugin_type, &path).err()) {
            missing.insert(format!("network {}: {}; ADD fails without it", planned.network, error.msg));
        }
    }
    missing.into_iter().collect()
}

/// Our configuration in a file: alone, or the one of our type in a list, with the list's name and version.
pub(super) fn own_configuration(bytes: &[u8]) -> Result<NetConf, CniError> {
    let whole = NetConf::parse(bytes)?;
    if whole.get("plugins").is_none() {
        return Ok(whole);
    }
    let list = ConfList::from_map(whole.0)?;
    let ours = list.plugins.iter().position(|plugin| plugin.plugin_type().is_ok_and(|t| t == OUR_TYPE));
    let position = ours
        .ok_or_else(|| CniError::new(code::CONFIG, "the configuration list holds no plugin of \"type\": \"musubi\""))?;
    list.request(position, None, &Map::new())
}

fn to_json(pod: &str, plan: &Plan) -> Value {
    let attachments: Vec<Value> = plan.attachments.iter().map(attachment).collect();
    json!({"pod": pod, "attachments": attachments, "warnings": plan.warnings})
}

fn attachment(planned: &Planned) -> Value {
    let delegates: Vec<Value> = planned
        .delegates
        .iter()
        .map(|delegate| {
            let (runs, why) = runs(&delegate.runs);
            json!({"type": delegate.plugin_type, "runs": runs, "why": why, "config": delegate.conf.0})
        })
        .collect();
    let args: Map<String, Value> = planned.args.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
    let routes: Vec<String> = planned.default_route.iter().flatten().map(ToString::to_string).collect();
    json!({
        "network": planned.network,
        "interface": planned.interface.as_str(),
        "default": planned.default,
        "delegates": delegates,
        "cniArgs": args,
        "defaultRoute": routes,
    })
}

fn runs(runs: &Runs) -> (&'static str, &str) {
    match runs {
        Runs::Native(_) => ("native", "bundled"),
        Runs::External { why, .. } => ("external", why),
    }
}

fn to_text(pod: &str, plan: &Plan) -> String {
    let rows = plan.attachments.iter().flat_map(|planned| {
        planned.delegates.iter().enumerate().map(|(index, delegate)| {
            let (runs, why) = runs(&delegate.runs);
            let first = |text: String| if index == 0 { text } else { String::new() };
            vec![
                first(planned.interface.to_string()),
                first(format!("{}{}", planned.network, if planned.default { " (default)" } else { "" })),
                delegate.plugin_type.clone(),
                format!("{runs}: {why}"),
                first(requested(planned).join(", ")),
            ]
        })
    });
    let mut text = format!("pod {pod}\n\n{}", table(&["INTERFACE", "NETWORK", "PLUGIN", "RUNS", "REQUESTED"], rows));
    for warning in &plan.warnings {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    if !plan.warnings.is_empty() {
        text.push('\n');
    }
    text
}

/// What the pod asks of a network, each in a few words: by capability, in `CNI_ARGS`, and the default route.
fn requested(planned: &Planned) -> Vec<String> {
    let by_capability = planned.by_capability.iter().map(|(key, value)| format!("{key} {}", in_short(value)));
    let args = planned.args.iter().map(|(key, value)| format!("{key}={value}"));
    let route = planned.default_route.iter().map(|gateways| match gateways.as_slice() {
        [] => "default route".to_owned(),
        some => format!("default route by {}", some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    });
    by_capability.chain(args).chain(route).collect()
}

/// A request's value on one line: port mappings as `host:container/protocol`, other objects key by key. The burst that we
/// fill in beside a rate was not asked for.
fn in_short(value: &Value) -> String {
    let words = |words: &mut dyn Iterator<Item = String>| words.collect::<Vec<_>>().join(" ");
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => words(&mut values.iter().map(in_short)),
        Value::Object(map) if map.contains_key("hostPort") => {
            let part = |key| map.get(key).map(in_short).unwrap_or_default();
            let address = map.get("hostIP").map(|ip| format!("[{}]:", in_short(ip))).unwrap_or_default();
            format!("{address}{}:{}/{}", part("hostPort"), part("containerPort"), part("protocol"))
        }
        Value::Object(map) => {
            let asked = map.iter().filter(|(_, value)| value.as_u64() != Some(UNLIMITED_BURST));
            words(&mut asked.map(|(key, value)| format!("{key} {}", in_short(value))))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_shown_in_short() {
        let rows = [
            (json!("02:00:00:00:00:05"), "02:00:00:00:00:05"),
            (json!(["10.0.0.5/24", "fd00::5/64"]), "10.0.0.5/24 fd00::5/64"),
            (json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]), "8080:80/tcp"),
            (
                json!([{"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "fd00::1"}]),
                "[fd00::1]:53:5353/udp",
            ),
            (
                json!({"ingressRate": 1000, "ingressBurst": UNLIMITED_BURST, "egressRate": 20, "egressBurst": 30}),
                "ingressRate 1000 egressRate 20 egressBurst 30",
            ),
        ];
        for (value, expected) in rows {
            assert_eq!(in_short(&value), expected);
        }
    }
}

//! The plan: which networks, in which order, under which interface names, with which configuration. Pure: what is planned
//! here is what ADD does and `explain` shows.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use musubi_crds::NetworkSelection;
use musubi_delegates::cni::{CniError, ConfList, ConfigError, InterfaceName, NetConf, code};
use musubi_delegates::registry::{self, Runs};
use serde_json::{Map, Value, json};

use crate::check::{definition, pod as check_pod};
use crate::config::Config;
use crate::networks::Wanted;

/// What ADD is to do for one pod.
#[derive(Debug)]
pub struct Plan {
    /// The attachments in the order they are made; the cluster default is the first.
    pub attachments: Vec<Planned>,
    /// What is ignored or uncertain, one line each.
    pub warnings: Vec<String>,
}

/// One attachment.
#[derive(Debug)]
pub struct Planned {
    /// `namespace/name` for a definition, the configuration's own name otherwise.
    pub network: String,
    /// Its interface in the pod.
    pub interface: InterfaceName,
    /// Whether it is the cluster default.
    pub default: bool,
    /// The network's configuration list.
    pub list: ConfList,
    /// Its plugins with what each is sent.
    pub delegates: Vec<PlannedDelegate>,
    /// Pairs added to `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// The gateways of the pod's default route, where this network is to have it; an empty list means those that its own
    /// IPAM returns.
    pub default_route: Option<Vec<IpAddr>>,
}

/// One plugin of an attachment.
pub struct PlannedDelegate {
    /// Its `type`.
    pub plugin_type: String,
    /// Whether we do it ourselves.
    pub runs: Runs,
    /// What it is sent, `prevResult` aside.
    pub conf: NetConf,
}

impl fmt::Debug for PlannedDelegate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlannedDelegate").field("plugin_type", &self.plugin_type).finish_non_exhaustive()
    }
}

/// Plans the attachments of a pod. `interface` is the one the runtime asked for.
///
/// # Errors
/// Code 7 (or 2 for a value that nobody here serves): names the network, the key and what is accepted.
pub fn plan(config: &Config, wanted: Vec<Wanted>, interface: &InterfaceName) -> Result<Plan, CniError> {
    let mut attachments = Vec::with_capacity(wanted.len());
    let mut warnings = config.warnings.clone();
    for (position, wanted) in wanted.into_iter().enumerate() {
        let name = wanted.network.name.clone();
        let planned = attachment(config, wanted, position, interface, &mut warnings);
        attachments.push(planned.map_err(|e| definition::in_network(&name, e))?);
    }
    unique_interfaces(&attachments)?;
    let requests = attachments.iter().filter_map(|a| Some((a.network.as_str(), a.default_route.as_deref()?)));
    check_pod::one_default_route(requests)?;
    Ok(Plan { attachments, warnings })
}

fn attachment(
    config: &Config,
    wanted: Wanted,
    position: usize,
    interface: &InterfaceName,
    warnings: &mut Vec<String>,
) -> Result<Planned, CniError> {
    let Wanted { network, selection } = wanted;
    let list = network.list;
    let default = position == 0;
    let requested = selection.as_ref().and_then(|s| s.interface.as_ref());
    let interface = match requested {
        Some(name) => InterfaceName::parse(name.as_str())?,
        None if default => interface.clone(),
        None => InterfaceName::parse(&format!("net{position}"))?,
    };
    let mut runtime_config = if default { config.runtime_config.clone() } else { Map::new() };
    let mut args = Vec::new();
    if let Some(selection) = &selection {
        let requests = check_pod::requests(config, selection, &list)?;
        let named = |text: &String| format!("network {}: {text}", network.name);
        warnings.extend(requests.warnings.iter().map(named));
        warnings.extend(
            selection
                .unknown_keys
                .iter()
                .map(|key| named(&format!("annotation key \"{key}\" is not known and is ignored"))),
        );
        runtime_config.extend(requests.runtime_config);
        args = requests.args;
    }
    let mut delegates = Vec::with_capacity(list.plugins.len());
    for index in 0..list.plugins.len() {
        let planned = delegate(config, &list, index, &runtime_config, selection.as_ref())?;
        if let Runs::Native(native) = &planned.runs {
            warnings.extend(native.warnings().iter().map(|w| format!("network {}: {w}", network.name)));
        }
        delegates.push(planned);
    }
    Ok(Planned {
        network: network.name,
        interface,
        default,
        list,
        delegates,
        args,
        default_route: selection.and_then(|s| s.default_route),
    })
}

fn delegate(
    config: &Config,
    list: &ConfList,
    index: usize,
    runtime_config: &Map<String, Value>,
    selection: Option<&NetworkSelection>,
) -> Result<PlannedDelegate, CniError> {
    let mut conf = list.request(index, None, runtime_config)?;
    if let Some(arguments) = selection.and_then(|s| s.cni_args.as_ref()) {
        merge_arguments(&mut conf, arguments)?;
    }
    let plugin_type = conf.plugin_type()?.to_owned();
    let mut parsed = conf.clone();
    if index > 0 {
        // Some plugins may leave out keys when they are not the first; what comes before is known only at ADD.
        parsed.insert("prevResult", json!({"cniVersion": list.version.as_str()}));
    }
    let at = |e: ConfigError| if list.plugins.len() > 1 { e.under(&format!("plugins[{index}]")) } else { e };
    let runs = registry::decide(&plugin_type, &parsed, |t| config.allows_native(t)).map_err(at)?;
    Ok(PlannedDelegate { plugin_type, runs, conf })
}

/// The annotation's `cni-args` go into `args.cni` and win over what the definition has there (multi-net 4.1.2.1).
fn merge_arguments(conf: &mut NetConf, arguments: &Map<String, Value>) -> Result<(), CniError> {
    let object = |value: Option<&Value>, key: &str| match value {
        None => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map.clone()),
        Some(_) => {
            Err(CniError::from(ConfigError::new(key, "must be an object for \"cni-args\" to be merged into it")))
        }
    };
    let mut args = object(conf.get("args"), "args")?;
    let mut cni = object(args.get("cni"), "args.cni")?;
    cni.extend(arguments.clone());
    args.insert("cni".to_owned(), Value::Object(cni));
    conf.insert("args", Value::Object(args));
    Ok(())
}

fn unique_interfaces(attachments: &[Planned]) -> Result<(), CniError> {
    let mut taken: HashMap<&str, &Planned> = HashMap::new();
    for planned in attachments {
        if let Some(other) = taken.insert(planned.interface.as_str(), planned) {
            return Err(CniError::new(
                code::CONFIG,
                format!(
                    "network {}: key \"interface\": \"{}\" is already the interface of network {}",
                    planned.network, planned.interface, other.network
                ),
            )
            .with_details(
                "give each network an interface name of its own; names that are not given are net<position>",
            ));
        }
    }
    Ok(())
}

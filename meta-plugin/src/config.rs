//! Our own CNI configuration: every Multus field under its Multus name and meaning, and ours beside them (DESIGN §5).
//! Parsing is pure; where networks are looked up is the plan's business.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use musubi_delegates::cni::{CniError, ConfList, ConfigError, NetConf, NetworkName, Version, View};
use musubi_delegates::registry;
use serde_json::{Map, Value};

use crate::devices::info;

/// Our plugin type, which no network of ours may hold.
pub const OUR_TYPE: &str = "musubi";

/// Where the agent listens unless a configuration says otherwise.
pub const AGENT_SOCKET: &str = "/run/musubi/musubi.sock";

/// The state folder unless a configuration says otherwise.
pub const STATE_DIR: &str = "/var/lib/musubi";

/// Seconds that one whole operation may take unless a configuration says otherwise.
pub const TIMEOUT_SECONDS: u64 = 90;

/// Every key of our configuration.
pub(crate) const KEYS: &[&str] = &[
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "capabilities",
    "runtimeConfig",
    "prevResult",
    "args",
    "dns",
    "ipam",
    "clusterNetwork",
    "defaultNetworks",
    "delegates",
    "kubeconfig",
    "confDir",
    "cniDir",
    "binDir",
    "readinessindicatorfile",
    "namespaceIsolation",
    "globalNamespaces",
    "systemNamespaces",
    "multusNamespace",
    "retryDeleteOnError",
    "logFile",
    "logLevel",
    "logToStderr",
    "logOptions",
    "manifestDir",
    "agentSocket",
    "nativeDelegates",
    "legacyCniArgs",
    "networkStatus",
    "timeoutSeconds",
    "podResourcesSocket",
    "deviceInfoDir",
    "cni.dev/valid-attachments",
    "cni.dev/attachments",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
    "daemonSocketDir",
    "auxiliaryCNIChainName",
];

/// The cluster default network, as it is configured.
#[derive(Debug, Clone)]
pub enum DefaultNetwork {
    /// `delegates`: configurations in line; the first is the default network.
    Inline(Vec<ConfList>),
    /// `clusterNetwork`: a definition's name, a file's or a folder's path.
    Named(String),
}

/// Which pods get a network-status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusFor {
    /// Every pod.
    All,
    /// Pods that select networks.
    Selected,
}

/// A parsed configuration of ours.
#[derive(Debug, Clone)]
pub struct Config {
    /// The configuration's own network name.
    pub name: String,
    /// The configuration's version.
    pub version: Version,
    /// The default network of every pod.
    pub default_network: DefaultNetwork,
    /// `defaultNetworks`: further networks of every pod outside the system namespaces.
    pub default_networks: Vec<String>,
    /// `auxiliaryCNIChainName`: the folder beside the file of `clusterNetwork` whose plugins run after all networks.
    pub auxiliary_chain: Option<NetworkName>,
    /// Folder of configurations that definitions without a `config` and `clusterNetwork` name.
    pub conf_dir: PathBuf,
    /// Our state folder.
    pub cni_dir: PathBuf,
    /// Folder of plugin binaries, searched before `CNI_PATH`.
    pub bin_dir: PathBuf,
    /// Folder of manifests: the directory store.
    pub manifest_dir: Option<PathBuf>,
    /// The API server's address and our credentials: the Kubernetes store, where no `manifest_dir` is given.
    pub kubeconfig: Option<PathBuf>,
    /// The agent's socket; `None` when no agent is to be asked.
    pub agent_socket: Option<PathBuf>,
    /// File that must exist before the default network can be used.
    pub readiness_file: Option<PathBuf>,
    /// Pods may name definitions of their own and of the global namespaces only.
    pub namespace_isolation: bool,
    /// Namespaces whose definitions everybody may name.
    pub global_namespaces: BTreeSet<String>,
    /// Namespaces whose pods get no `defaultNetworks`.
    pub system_namespaces: BTreeSet<String>,
    /// Namespace of definitions named by the configuration and by the default-network annotation.
    pub multus_namespace: String,
    /// Which native delegates may run; `None` is all of them.
    pub native_delegates: Option<BTreeSet<String>>,
    /// Whether a requested address may travel in `CNI_ARGS`.
    pub legacy_cni_args: bool,
    /// Which pods get a network-status.
    pub status_for: StatusFor,
    /// Budget of one whole operation.
    pub timeout: Duration,
    /// The kubelet's PodResources API, which says what devices a pod was allocated; `None` where no kubelet is.
    pub pod_resources_socket: Option<PathBuf>,
    /// Folder of the files that describe devices.
    pub device_info: info::Folder,
    /// What the runtime sent for the default network's capabilities.
    pub runtime_config: Map<String, Value>,
    /// File that the log is appended to.
    pub log_file: Option<PathBuf>,
    /// The level below which nothing is logged.
    pub log_level: LogLevel,
    /// Whether the log goes to stderr too.
    pub log_to_stderr: bool,
    /// Keys nobody knows and values that do nothing here, one line each.
    pub warnings: Vec<String>,
}

/// Multus' log levels, and the one without a name that holds where none is set; `panic` logs nothing here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Nothing.
    Panic,
    /// Failures.
    Error,
    /// Failures and warnings: the default.
    Warning,
    /// Failures, warnings and one line an operation.
    Verbose,
    /// Every step.
    Debug,
}

impl Config {
    /// Reads a configuration of ours.
    ///
    /// # Errors
    /// Names the key and what it accepts.
    pub fn parse(conf: &NetConf) -> Result<Self, CniError> {
        let view = conf.view();
        let path = |key: &str, default: &str| -> Result<PathBuf, ConfigError> {
            Ok(PathBuf::from(text(&view, key)?.unwrap_or(default)))
        };
        let mut warnings: Vec<String> = view
            .unknown(KEYS)
            .into_iter()
            .map(|key| format!("configuration key \"{}\" is not known and is ignored", key.escape_debug()))
            .collect();
        warnings.extend(without_effect(&view)?);
        let native_delegates = native_delegates(&view)?;
        warnings.extend(native_delegates.iter().flatten().filter(|t| !registry::BUNDLED.contains(&t.as_str())).map(
            |t| {
                let known = registry::BUNDLED.join(", ");
                format!(
                    "configuration key \"nativeDelegates\": \"{}\" is not bundled; bundled are {known}",
                    t.escape_debug()
                )
            },
        ));
        Ok(Self {
            name: conf.name()?.as_str().to_owned(),
            version: conf.version()?,
            default_network: default_network(&view)?,
            default_networks: names(&view, "defaultNetworks")?,
            auxiliary_chain: auxiliary_chain(&view)?,
            conf_dir: path("confDir", "/etc/cni/multus/net.d")?,
            cni_dir: absolute("cniDir", path("cniDir", STATE_DIR)?)?,
            bin_dir: path("binDir", "/opt/cni/bin")?,
            manifest_dir: text(&view, "manifestDir")?.map(PathBuf::from),
            kubeconfig: text(&view, "kubeconfig")?.map(PathBuf::from),
            agent_socket: agent_socket(&view)?,
            readiness_file: text(&view, "readinessindicatorfile")?.map(PathBuf::from),
            namespace_isolation: view.bool("namespaceIsolation")?,
            global_namespaces: global_namespaces(&view)?,
            system_namespaces: match names(&view, "systemNamespaces")? {
                listed if listed.is_empty() => BTreeSet::from(["kube-system".to_owned()]),
                listed => listed.into_iter().collect(),
            },
            multus_namespace: text(&view, "multusNamespace")?.unwrap_or("kube-system").to_owned(),
            native_delegates,
            legacy_cni_args: view.opt_bool("legacyCniArgs")?.unwrap_or(true),
            status_for: status_for(&view)?,
            timeout: Duration::from_secs(view.uint("timeoutSeconds", 1..=3600)?.unwrap_or(TIMEOUT_SECONDS)),
            pod_resources_socket: pod_resources_socket(&view)?,
            device_info: info::Folder::new(absolute(
                "deviceInfoDir",
                path("deviceInfoDir", "/var/run/k8s.cni.cncf.io/devinfo")?,
            )?),
            runtime_config: runtime_config(conf, &view)?,
            log_file: text(&view, "logFile")?.map(PathBuf::from),
            log_level: log_level(&view, &mut warnings)?,
            log_to_stderr: view.opt_bool("logToStderr")?.unwrap_or(true),
            warnings,
        })
    }

    /// The configuration of a cluster whose own is not known: everything at its default.
    ///
    /// # Errors
    /// None that could come up: it is parsed as any other.
    pub fn assumed() -> Result<Self, CniError> {
        Self::parse(&NetConf::parse(
            br#"{"cniVersion":"1.0.0","name":"musubi-network","type":"musubi","delegates":[{"type":"loopback"}]}"#,
        )?)
    }

    /// Reads what DEL needs, which is where the records are: the record says the rest, and a configuration that was fit for
    /// ADD may have been spoiled since. What else is wrong is a warning.
    ///
    /// # Errors
    /// The version, the network's name or `cniDir` is wrong: without them no record is found.
    pub fn parse_for_del(conf: &NetConf) -> Result<Self, CniError> {
        const NEEDED: [&str; 3] = ["cniVersion", "name", "cniDir"];
        const USEFUL: [&str; 5] = ["type", "manifestDir", "kubeconfig", "binDir", "agentSocket"];
        let problem = match Self::parse(conf) {
            Ok(config) => return Ok(config),
            Err(problem) => problem,
        };
        let view = conf.view();
        let mut kept = NetConf::parse(br#"{"delegates":[{"type":"none"}]}"#)?;
        let useful = USEFUL.into_iter().filter(|key| text(&view, key).is_ok());
        for key in NEEDED.into_iter().chain(useful) {
            if let Some(value) = view.raw(key) {
                kept.insert(key, value.clone());
            }
        }
        let known = Self::parse(&kept)?;
        let warnings = vec![format!("the configuration is wrong, DEL does without it: {}", problem.msg)];
        Ok(Self { default_network: DefaultNetwork::Inline(Vec::new()), warnings, ..known })
    }

    /// Whether the native delegate of a type may run.
    #[must_use]
    pub fn allows_native(&self, plugin_type: &str) -> bool {
        self.native_delegates.as_ref().is_none_or(|types| types.contains(plugin_type))
    }

    /// Folders with plugin binaries: `binDir`, then `CNI_PATH`.
    #[must_use]
    pub fn plugin_path(&self, cni_path: &[PathBuf]) -> Vec<PathBuf> {
        let mut path = vec![self.bin_dir.clone()];
        path.extend(cni_path.iter().filter(|folder| **folder != self.bin_dir).cloned());
        path
    }
}

fn text<'a>(view: &View<'a>, key: &str) -> Result<Option<&'a str>, ConfigError> {
    Ok(view.string(key)?.filter(|text| !text.is_empty()))
}

/// An empty value means that no agent is asked.
fn agent_socket(view: &View<'_>) -> Result<Option<PathBuf>, ConfigError> {
    let socket = view.string("agentSocket")?.unwrap_or(AGENT_SOCKET);
    Ok((!socket.is_empty()).then(|| PathBuf::from(socket)))
}

/// ADD and DEL need not be called in one working directory.
fn absolute(key: &str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(ConfigError::new(key, format!("\"{}\" is not an absolute path", path.display())))
}

fn names(view: &View<'_>, key: &str) -> Result<Vec<String>, ConfigError> {
    Ok(view.strings(key)?.unwrap_or_default().into_iter().map(str::to_owned).collect())
}

/// An empty text says that there is no kubelet to ask.
fn pod_resources_socket(view: &View<'_>) -> Result<Option<PathBuf>, ConfigError> {
    let given = view.string("podResourcesSocket")?.unwrap_or("/var/lib/kubelet/pod-resources/kubelet.sock");
    Ok((!given.is_empty()).then(|| PathBuf::from(given)))
}

fn default_network(view: &View<'_>) -> Result<DefaultNetwork, CniError> {
    if let Some(name) = text(view, "clusterNetwork")? {
        return Ok(DefaultNetwork::Named(name.to_owned()));
    }
    let mut lists = Vec::new();
    for (position, element) in view.list("delegates")?.into_iter().flatten().enumerate() {
        let key = format!("delegates[{position}]");
        let Value::Object(map) = element else {
            return Err(ConfigError::new(key, "must be an object: a CNI configuration or configuration list").into());
        };
        let list = ConfList::from_map(map.clone()).map_err(|e| e.context(&key))?;
        refuse_ourselves(&list).map_err(|e| e.context(&key))?;
        lists.push(list);
    }
    if lists.is_empty() {
        return Err(ConfigError::new(
            "clusterNetwork",
            "is missing, and so is \"delegates\"; one of them must name the default network",
        )
        .into());
    }
    Ok(DefaultNetwork::Inline(lists))
}

/// Keys that do nothing: what Multus passes over where `clusterNetwork` is set, or is not, and what waits for another
/// place to read pods from.
fn without_effect(view: &View<'_>) -> Result<Vec<String>, ConfigError> {
    let given = |key| Ok(!view.list(key)?.is_none_or(Vec::is_empty));
    let ignored = |key, why| format!("configuration key \"{key}\" is ignored: {why}");
    let cluster_network = text(view, "clusterNetwork")?.is_some();
    let mut lines = Vec::new();
    if cluster_network && given("delegates")? {
        lines.push(ignored("delegates", "\"clusterNetwork\" is set"));
    }
    if !cluster_network && given("defaultNetworks")? {
        lines.push(ignored("defaultNetworks", "\"clusterNetwork\" is not set"));
    }
    if text(view, "manifestDir")?.is_some() && text(view, "kubeconfig")?.is_some() {
        lines.push(ignored("kubeconfig", "pods and definitions are read from \"manifestDir\" alone"));
    }
    Ok(lines)
}

/// As in Multus, the chain is found beside the file of the default network.
fn auxiliary_chain(view: &View<'_>) -> Result<Option<NetworkName>, CniError> {
    const KEY: &str = "auxiliaryCNIChainName";
    let Some(name) = text(view, KEY)? else { return Ok(None) };
    if !text(view, "clusterNetwork")?.is_some_and(|value| value.contains('/')) {
        return Err(view
            .error(KEY, "needs \"clusterNetwork\" to be the path of a file: its folder is beside it")
            .into());
    }
    NetworkName::parse(name).map(Some).map_err(|e| e.context(KEY))
}

/// What the runtime sent goes on as it came: its keys inside are not ours to read.
fn runtime_config(conf: &NetConf, view: &View<'_>) -> Result<Map<String, Value>, ConfigError> {
    view.object("runtimeConfig")?;
    Ok(conf.get("runtimeConfig").and_then(Value::as_object).cloned().unwrap_or_default())
}

/// Refuses a network that holds our own plugin: it would call itself for ever.
///
/// # Errors
/// Code 7.
pub fn refuse_ourselves(list: &ConfList) -> Result<(), CniError> {
    let ours = list.plugins.iter().any(|plugin| plugin.plugin_type().is_ok_and(|t| t == OUR_TYPE));
    if ours {
        return Err(ConfigError::new(
            "type",
            "\"musubi\" inside a musubi network would call itself for ever; name the plugin that makes the interface",
        )
        .into());
    }
    Ok(())
}

/// `globalNamespaces` replaces the implicit `default` when set: a comma-separated text, as in Multus.
fn global_namespaces(view: &View<'_>) -> Result<BTreeSet<String>, ConfigError> {
    let listed = text(view, "globalNamespaces")?.unwrap_or("default");
    Ok(listed.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// `false`: none; a list: these; absent or `true`: all.
fn native_delegates(view: &View<'_>) -> Result<Option<BTreeSet<String>>, ConfigError> {
    match view.raw("nativeDelegates") {
        None | Some(Value::Bool(true)) => Ok(None),
        Some(Value::Bool(false)) => Ok(Some(BTreeSet::new())),
        Some(Value::Array(_)) => Ok(Some(names(view, "nativeDelegates")?.into_iter().collect())),
        Some(_) => Err(view.error("nativeDelegates", "must be true, false or a list of plugin types")),
    }
}

fn status_for(view: &View<'_>) -> Result<StatusFor, ConfigError> {
    match text(view, "networkStatus")? {
        None | Some("all") => Ok(StatusFor::All),
        Some("selected") => Ok(StatusFor::Selected),
        Some(other) => {
            Err(view
                .error("networkStatus", format!("\"{other}\" is not accepted; accepted are \"all\" and \"selected\"")))
        }
    }
}

/// Multus ignores a level it does not know; so do we, and say so.
fn log_level(view: &View<'_>, warnings: &mut Vec<String>) -> Result<LogLevel, ConfigError> {
    let Some(level) = text(view, "logLevel")? else { return Ok(LogLevel::Warning) };
    Ok(match level.to_ascii_lowercase().as_str() {
        "debug" => LogLevel::Debug,
        "verbose" => LogLevel::Verbose,
        "error" => LogLevel::Error,
        "panic" => LogLevel::Panic,
        _ => {
            warnings.push(format!(
                "configuration key \"logLevel\": \"{}\" is ignored; accepted are panic, error, verbose and debug",
                level.escape_debug()
            ));
            LogLevel::Warning
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(keys: Value) -> Result<Config, CniError> {
        let mut conf =
            json!({"name": "musubi-network", "type": "musubi", "delegates": [{"name": "d", "type": "bridge"}]});
        conf.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        Config::parse(&NetConf::parse(conf.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn what_is_left_out_is_as_in_multus_and_in_our_design() {
        let config = parse(json!({})).unwrap();
        assert_eq!(config.conf_dir, PathBuf::from("/etc/cni/multus/net.d"));
        assert_eq!(config.cni_dir, PathBuf::from("/var/lib/musubi"));
        assert_eq!(config.bin_dir, PathBuf::from("/opt/cni/bin"));
        assert_eq!(config.multus_namespace, "kube-system");
        assert_eq!(config.system_namespaces, BTreeSet::from(["kube-system".to_owned()]));
        assert_eq!(config.global_namespaces, BTreeSet::from(["default".to_owned()]));
        assert_eq!(config.timeout, Duration::from_secs(90));
        assert_eq!((config.status_for, config.log_level), (StatusFor::All, LogLevel::Warning));
        let socket = PathBuf::from("/var/lib/kubelet/pod-resources/kubelet.sock");
        assert_eq!(config.pod_resources_socket, Some(socket));
        assert_eq!(config.device_info, info::Folder::new("/var/run/k8s.cni.cncf.io/devinfo".into()));
        assert!(config.log_to_stderr && config.legacy_cni_args && !config.namespace_isolation);
        assert!(config.manifest_dir.is_none() && config.readiness_file.is_none() && config.native_delegates.is_none());
        assert_eq!(config.warnings, Vec::<String>::new());
    }

    #[test]
    fn empty_texts_are_left_out() {
        let keys =
            ["clusterNetwork", "confDir", "cniDir", "binDir", "manifestDir", "multusNamespace", "globalNamespaces"];
        let empty: Map<String, Value> = keys.iter().map(|key| ((*key).to_owned(), "".into())).collect();
        let config = parse(Value::Object(empty)).unwrap();
        assert!(matches!(config.default_network, DefaultNetwork::Inline(_)));
        assert_eq!(config.cni_dir, PathBuf::from("/var/lib/musubi"));
        assert_eq!((config.manifest_dir, config.multus_namespace.as_str()), (None, "kube-system"));
        assert_eq!(parse(json!({"podResourcesSocket": ""})).unwrap().pod_resources_socket, None, "no kubelet to ask");
    }

    /// multus.md §1a: a Multus configuration works once `type` is changed.
    #[test]
    fn every_key_of_multus_is_known() {
        let config = parse(json!({
            "cniVersion": "1.0.0", "capabilities": {"portMappings": true}, "confDir": "/c", "cniDir": "/s", "binDir": "/b",
            "readinessindicatorfile": "/r", "namespaceIsolation": true, "globalNamespaces": "a, b,,", "systemNamespaces": ["s"],
            "multusNamespace": "m", "retryDeleteOnError": true, "runtimeConfig": {"portMappings": []}, "prevResult": {},
            "logFile": "/l", "logLevel": "Debug", "logToStderr": false, "logOptions": {"maxAge": 5}, "args": {}, "dns": {}, "ipam": {},
        }))
        .unwrap();
        assert_eq!(config.warnings, Vec::<String>::new());
        assert_eq!(config.global_namespaces, BTreeSet::from(["a".to_owned(), "b".to_owned()]));
        assert_eq!(config.system_namespaces, BTreeSet::from(["s".to_owned()]));
        assert_eq!((config.log_level, config.log_to_stderr), (LogLevel::Debug, false));
        assert_eq!(config.readiness_file, Some(PathBuf::from("/r")));
        assert!(config.namespace_isolation);
    }

    #[test]
    fn keys_match_whatever_their_case() {
        let config =
            parse(json!({"CNIDIR": "/s", "Readinessindicatorfile": "/r", "ReadinessIndicatorFile": null})).unwrap();
        assert_eq!((config.cni_dir, config.readiness_file), (PathBuf::from("/s"), Some(PathBuf::from("/r"))));
        assert_eq!(config.warnings, Vec::<String>::new());
    }

    #[test]
    fn keys_without_effect_are_warned_about() {
        let rows = [
            (json!({"isGateway": true}), "configuration key \"isGateway\" is not known and is ignored"),
            (json!({"kubeconfig": "/k", "manifestDir": "/m"}), "configuration key \"kubeconfig\" is ignored"),
            (json!({"defaultNetworks": ["a"]}), "configuration key \"defaultNetworks\" is ignored"),
            (json!({"clusterNetwork": "a"}), "configuration key \"delegates\" is ignored"),
            (
                json!({"nativeDelegates": ["bridge", "brige"]}),
                "configuration key \"nativeDelegates\": \"brige\" is not bundled; bundled are bridge",
            ),
            (json!({"logLevel": "loud"}), "configuration key \"logLevel\": \"loud\" is ignored; accepted are panic"),
        ];
        for (keys, expected) in rows {
            let warnings = parse(keys).unwrap().warnings;
            assert!(warnings.len() == 1 && warnings[0].starts_with(expected), "{expected}: {warnings:?}");
        }
    }

    #[test]
    fn native_delegates_are_all_none_or_some() {
        let rows = [
            (json!(null), true, true),
            (json!(true), true, true),
            (json!(false), false, false),
            (json!(["ptp"]), false, true),
        ];
        for (value, bridge, ptp) in rows {
            let config = parse(json!({"nativeDelegates": value})).unwrap();
            assert_eq!((config.allows_native("bridge"), config.allows_native("ptp")), (bridge, ptp), "{value}");
        }
    }

    #[test]
    fn our_folder_of_plugins_comes_first_and_once() {
        let config = parse(json!({"binDir": "/b"})).unwrap();
        let path = config.plugin_path(&[PathBuf::from("/a"), PathBuf::from("/b"), PathBuf::from("/c")]);
        assert_eq!(path, ["/b", "/a", "/c"].map(PathBuf::from));
    }

    #[test]
    fn an_auxiliary_chain_needs_a_folder_beside_the_default_network() {
        let rows = [
            (json!({}), true),
            (json!({"clusterNetwork": "name"}), true),
            (json!({"clusterNetwork": "/etc/x.conf"}), false),
        ];
        for (keys, refused) in rows {
            let mut keys = keys;
            keys["auxiliaryCNIChainName"] = json!("vendor");
            let error = parse(keys.clone()).err();
            assert_eq!(error.is_some(), refused, "{keys}");
            assert!(error.is_none_or(|e| e.code == 7 && e.msg.contains("auxiliaryCNIChainName")), "{keys}");
        }
    }
}

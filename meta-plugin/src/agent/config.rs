//! The agent's own configuration: Multus' daemon keys under their names where they exist, ours beside them, and keys of
//! the CNI configuration that go on to what is written for the runtime. Parsing is pure; files and folders that it names
//! are other rooms' business.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use musubi_delegates::cni::{CniError, ConfigError, NetConf, View, code};
use serde_json::{Map, Value};

use crate::config::{self, Config, LogLevel};

/// Keys of the agent alone; [`config::KEYS`] are the plugin's.
const KEYS: &[&str] = &[
    "socketDir",
    "cniConfigDir",
    "multusAutoconfigDir",
    "multusMasterCNI",
    "multusConfigFile",
    "overrideNetworkName",
    "connectionLimit",
    "metricsPort",
    "metricsAddress",
    "perNodeCertificate",
    "enablePprof",
    "chrootDir",
    "forceCNIVersion",
    "criSocket",
    "reconcileSeconds",
    "unlistedSeconds",
    "workers",
    "queue",
    "memoryLimit",
    "logFormat",
    "eventsPerSecond",
    "cacheSeconds",
    "hostMountNamespace",
    "nodeName",
];

/// Keys that do nothing here, and why.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("perNodeCertificate", "the agent uses its service account, whose token kubelet renews"),
    ("enablePprof", "there is no profiler of Go's in here"),
    ("chrootDir", "plugins run in the host's mount namespace, without a chroot; see \"hostMountNamespace\""),
    ("forceCNIVersion", "the primary network's file stays as it is, results are converted"),
    ("cniVersion", "every version from 0.4.0 on is offered to the runtime"),
    ("cniVersions", "every version from 0.4.0 on is offered to the runtime"),
    ("type", "the configuration for the runtime is of type \"musubi\""),
    ("agentSocket", "the plugin asks the socket in \"socketDir\""),
    ("daemonSocketDir", "the plugin asks the socket in \"socketDir\""),
    ("runtimeConfig", "it is the runtime's to send"),
    ("prevResult", "it is the runtime's to send"),
    ("cni.dev/valid-attachments", "it is the runtime's to send"),
    ("cni.dev/attachments", "it is the runtime's to send"),
];

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For reading.
    Text,
    /// One JSON object a line.
    Json,
}

/// The configuration of one node's agent.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Folder of the sockets.
    pub socket_dir: PathBuf,
    /// Folder where the runtime looks for its configuration.
    pub cni_config_dir: PathBuf,
    /// Folder where the primary network's configuration is looked for.
    pub autoconfig_dir: PathBuf,
    /// The primary network's file: a name in [`Self::autoconfig_dir`], or a path. `None`: the first that is valid.
    pub master: Option<PathBuf>,
    /// A ready configuration that is used in place of a generated one.
    pub ready_configuration: Option<PathBuf>,
    /// Whether our network takes the name of the primary's.
    pub override_network_name: bool,
    /// Connections that are served at once; `None`: as many as come.
    pub connection_limit: Option<usize>,
    /// Where metrics are served; `None`: nowhere.
    pub metrics_address: Option<SocketAddr>,
    /// File that the log is appended to.
    pub log_file: Option<PathBuf>,
    /// The level below which nothing is logged.
    pub log_level: LogLevel,
    /// Whether the log goes to stderr too.
    pub log_to_stderr: bool,
    /// How log lines look.
    pub log_format: LogFormat,
    /// The runtime's socket; `None`: the runtime is not asked.
    pub cri_socket: Option<PathBuf>,
    /// Between two looks at what is left over.
    pub reconcile: Duration,
    /// How long the runtime must not have listed a sandbox before what it holds is released.
    pub unlisted: Duration,
    /// Operations that run at once.
    pub workers: usize,
    /// Operations that wait.
    pub queue: usize,
    /// Memory that external plugins may use together, apart from the agent's own, in bytes; `None`: no limit.
    pub memory_limit: Option<u64>,
    /// Events that are sent each second at most.
    pub events_per_second: u32,
    /// How long what is remembered of the API counts after the server's last word of it.
    pub cache: Duration,
    /// The mount namespace of the host; `None`: the agent stays in its own.
    pub host_mount_namespace: Option<PathBuf>,
    /// The node's name in Kubernetes, where the configuration says it; see [`Self::node_name`].
    pub configured_node_name: Option<String>,
    /// Keys that go on to the configuration for the runtime, as they were written.
    pub plugin_keys: Map<String, Value>,
    /// Keys nobody knows and keys that do nothing here, one line each.
    pub warnings: Vec<String>,
}

impl AgentConfig {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// The file cannot be read (code 5), or as [`Self::parse`].
    pub fn read(file: &Path) -> Result<Self, CniError> {
        let bytes = std::fs::read(file).map_err(|e| CniError::new(code::IO, format!("{}: {e}", file.display())))?;
        Self::parse(&bytes).map_err(|e| e.context(file.display()))
    }

    /// Reads a configuration, one JSON object.
    ///
    /// # Errors
    /// Names the key and what it accepts (code 7), or says that it is no JSON object (6).
    pub fn parse(bytes: &[u8]) -> Result<Self, CniError> {
        let conf = NetConf::parse(bytes)
            .map_err(|e| CniError { msg: e.msg.replace("network configuration", "agent's configuration"), ..e })?;
        let view = conf.view();
        let plugin_keys = plugin_keys(&conf.0);
        let plugin = as_plugin_configuration(&plugin_keys)?;
        let mut warnings = warnings(&view);
        warnings.extend(plugin.warnings);
        let cni_config_dir = folder(&view, "cniConfigDir", "/etc/cni/net.d")?;
        let (workers, queue) = (view.uint("workers", 1..=1024)?, view.uint("queue", 0..=65_536)?);
        Ok(Self {
            socket_dir: folder(&view, "socketDir", "/run/musubi")?,
            autoconfig_dir: absolute(&view, "multusAutoconfigDir")?.unwrap_or_else(|| cni_config_dir.clone()),
            cni_config_dir,
            master: master(&view)?,
            ready_configuration: ready_configuration(&view)?,
            override_network_name: view.bool("overrideNetworkName")?,
            connection_limit: view.uint("connectionLimit", 1..=65_536)?.map(number),
            metrics_address: metrics_address(&view)?,
            log_file: plugin.log_file,
            log_level: plugin.log_level,
            log_to_stderr: plugin.log_to_stderr,
            log_format: log_format(&view)?,
            cri_socket: socket(&view, "criSocket")?,
            reconcile: seconds(&view, "reconcileSeconds")?,
            unlisted: seconds(&view, "unlistedSeconds")?,
            workers: workers.map_or(16, number),
            queue: queue.map_or(256, number),
            memory_limit: memory_limit(&view)?,
            events_per_second: view
                .uint("eventsPerSecond", 0..=10_000)?
                .map_or(50, |n| u32::try_from(n).unwrap_or(u32::MAX)),
            cache: Duration::from_secs(view.uint("cacheSeconds", 1..=3600)?.unwrap_or(60)),
            host_mount_namespace: host_mount_namespace(&view)?,
            configured_node_name: view.text("nodeName")?.map(str::to_owned),
            plugin_keys,
            warnings,
        })
    }

    /// The socket that the plugin asks.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.socket_dir.join("musubi.sock")
    }

    /// The same socket under the name that clients of Multus know.
    #[must_use]
    pub fn multus_socket(&self) -> PathBuf {
        self.socket_dir.join("multus.sock")
    }

    /// Folder beside the runtime's configuration that holds the plugin's credentials.
    #[must_use]
    pub fn credentials_dir(&self) -> PathBuf {
        self.cni_config_dir.join("musubi.d")
    }

    /// The kubeconfig that the agent keeps for the plugin; where the configuration names one, that is used instead.
    #[must_use]
    pub fn own_kubeconfig(&self) -> PathBuf {
        self.credentials_dir().join("musubi.kubeconfig")
    }

    /// Whether the plugin reads the API server by credentials that the agent keeps: neither does the configuration name a
    /// kubeconfig, nor are objects read from a folder.
    #[must_use]
    pub fn wants_credentials(&self) -> bool {
        self.plugin_text("kubeconfig").is_none() && self.plugin_text("manifestDir").is_none()
    }

    /// A key that goes on to the plugin, whatever its case.
    #[must_use]
    pub fn plugin_key(&self, key: &str) -> Option<&Value> {
        View::of(&self.plugin_keys, "").raw(key)
    }

    /// As [`Self::plugin_key`], for a text that is not empty.
    #[must_use]
    pub fn plugin_text(&self, key: &str) -> Option<&str> {
        self.plugin_key(key).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// The plugin's configuration as pods meet it, except that a default network that is found on each node stands as `/`.
    ///
    /// # Errors
    /// None for a configuration that was parsed.
    pub fn plugin(&self) -> Result<Config, CniError> {
        as_plugin_configuration(&self.plugin_keys)
    }

    /// This node's name: as configured, else from the environment, as Multus' manifests set it, else the host's.
    #[must_use]
    pub fn node_name(&self) -> String {
        let from_environment = || {
            let names = ["MUSUBI_NODE_NAME", "MULTUS_NODE_NAME", "NODE_NAME"];
            names.into_iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        };
        let hostname = || {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            name.trim().to_ascii_lowercase()
        };
        self.configured_node_name.clone().or_else(from_environment).unwrap_or_else(hostname)
    }
}

fn warnings(view: &View<'_>) -> Vec<String> {
    let all = [KEYS, config::KEYS].concat();
    let unknown = view
        .unknown(&all)
        .into_iter()
        .map(|key| format!("configuration key \"{}\" is not known and is ignored", key.escape_debug()));
    let without_effect = WITHOUT_EFFECT
        .iter()
        .filter(|(key, _)| view.raw(key).is_some())
        .map(|(key, why)| format!("configuration key \"{key}\" is ignored: {why}"));
    unknown.chain(without_effect).collect()
}

/// What goes on to the plugin: every key it knows that is not for somebody else to say.
fn plugin_keys(map: &Map<String, Value>) -> Map<String, Value> {
    let is = |key: &str, known: &&str| known.eq_ignore_ascii_case(key);
    let goes_on = |key: &str| {
        config::KEYS.iter().any(|known| is(key, known)) && !WITHOUT_EFFECT.iter().any(|(known, _)| is(key, known))
    };
    map.iter().filter(|(key, _)| goes_on(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The plugin's keys as the plugin will read them, so that a wrong one is refused here and not by every pod.
fn as_plugin_configuration(keys: &Map<String, Value>) -> Result<Config, CniError> {
    let mut conf = NetConf(keys.clone());
    conf.remove("kubeconfig");
    conf.insert("type", config::OUR_TYPE);
    let view = View::of(keys, "");
    if let Some(capabilities) = view.object("capabilities")? {
        capabilities.keys().try_for_each(|capability| capabilities.bool(capability).map(drop))?;
    }
    if view.text("name")?.is_none() {
        conf.insert("name", "musubi");
    }
    // A default network is found later where none is named.
    if view.text("clusterNetwork")?.is_none() && view.list("delegates")?.is_none_or(Vec::is_empty) {
        conf.insert("clusterNetwork", "/");
    }
    Config::parse(&conf)
}

/// Ranges end far below the type's.
fn number(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Up to a day; five minutes where nothing is said.
fn seconds(view: &View<'_>, key: &str) -> Result<Duration, ConfigError> {
    Ok(Duration::from_secs(view.uint(key, 1..=86_400)?.unwrap_or(300)))
}

fn absolute(view: &View<'_>, key: &str) -> Result<Option<PathBuf>, ConfigError> {
    let Some(path) = view.text(key)?.map(PathBuf::from) else { return Ok(None) };
    if !path.is_absolute() {
        return Err(view.error(key, format!("\"{}\" is not an absolute path", path.display())));
    }
    Ok(Some(path))
}

fn folder(view: &View<'_>, key: &str, default: &str) -> Result<PathBuf, ConfigError> {
    Ok(absolute(view, key)?.unwrap_or_else(|| PathBuf::from(default)))
}

/// A path, or the `unix://` address that runtimes and kubelet write.
fn socket(view: &View<'_>, key: &str) -> Result<Option<PathBuf>, ConfigError> {
    let Some(text) = view.text(key)? else { return Ok(None) };
    let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
    if !path.starts_with('/') {
        return Err(view.error(key, format!("\"{text}\" is not the absolute path of a Unix socket")));
    }
    Ok(Some(PathBuf::from(path)))
}

fn master(view: &View<'_>) -> Result<Option<PathBuf>, ConfigError> {
    const KEY: &str = "multusMasterCNI";
    let Some(path) = view.text(KEY)?.map(PathBuf::from) else { return Ok(None) };
    if path.components().count() > 1 && !path.is_absolute() {
        return Err(view.error(KEY, "must be a file name in \"multusAutoconfigDir\", or an absolute path"));
    }
    Ok(Some(path))
}

fn ready_configuration(view: &View<'_>) -> Result<Option<PathBuf>, ConfigError> {
    const KEY: &str = "multusConfigFile";
    match view.text(KEY)? {
        None | Some("auto") => Ok(None),
        Some(path) if path.starts_with('/') => Ok(Some(PathBuf::from(path))),
        Some(other) => Err(view.error(
            KEY,
            format!("\"{other}\" is not accepted; accepted are \"auto\" and the absolute path of a configuration"),
        )),
    }
}

/// `metricsAddress`, else `metricsPort` on every address of the node.
fn metrics_address(view: &View<'_>) -> Result<Option<SocketAddr>, ConfigError> {
    const KEY: &str = "metricsAddress";
    let everywhere = |port: u16| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
    let wrong = |text| view.error(KEY, format!("\"{text}\" is not accepted; accepted are ADDRESS:PORT and :PORT"));
    let port = view.uint("metricsPort", 1..=65_535)?.and_then(|port| u16::try_from(port).ok());
    let Some(text) = view.text(KEY)? else { return Ok(port.map(everywhere)) };
    match text.strip_prefix(':') {
        Some(port) => port.parse().map(everywhere),
        None => return text.parse().map(Some).map_err(|_| wrong(text)),
    }
    .map(Some)
    .map_err(|_| wrong(text))
}

fn log_format(view: &View<'_>) -> Result<LogFormat, ConfigError> {
    const KEY: &str = "logFormat";
    match view.text(KEY)? {
        None | Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => Err(view.error(KEY, format!("\"{other}\" is not accepted; accepted are \"text\" and \"json\""))),
    }
}

/// Bytes, as a number or as Kubernetes writes quantities.
fn memory_limit(view: &View<'_>) -> Result<Option<u64>, ConfigError> {
    const KEY: &str = "memoryLimit";
    const UNITS: &[(&str, u64)] = &[
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("k", 1000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("", 1),
    ];
    let bytes = match view.raw(KEY) {
        None => return Ok(None),
        Some(Value::String(text)) if text.is_empty() => return Ok(None),
        Some(Value::String(text)) => UNITS.iter().find_map(|(unit, factor)| {
            let digits = text.strip_suffix(unit).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
            digits.parse::<u64>().ok()?.checked_mul(*factor)
        }),
        Some(other) => other.as_u64(),
    };
    // Less than this no plugin starts with, and the kernel would end every one of them.
    const LEAST: u64 = 16 << 20;
    let enough = bytes.filter(|bytes| *bytes >= LEAST);
    enough
        .map(Some)
        .ok_or_else(|| view.error(KEY, "must be at least 16Mi: bytes as a number, or a text such as \"256Mi\""))
}

fn host_mount_namespace(view: &View<'_>) -> Result<Option<PathBuf>, ConfigError> {
    const KEY: &str = "hostMountNamespace";
    match view.string(KEY)? {
        None => Ok(Some(PathBuf::from("/proc/1/ns/mnt"))),
        Some("") => Ok(None),
        Some(_) => absolute(view, KEY),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(keys: Value) -> Result<AgentConfig, CniError> {
        AgentConfig::parse(keys.to_string().as_bytes())
    }

    #[test]
    fn what_is_left_out_has_the_values_of_the_documentation() {
        let config = parse(json!({})).unwrap();
        assert_eq!(config.socket(), PathBuf::from("/run/musubi/musubi.sock"));
        assert_eq!(config.multus_socket(), PathBuf::from("/run/musubi/multus.sock"));
        assert_eq!(config.cni_config_dir, PathBuf::from("/etc/cni/net.d"));
        assert_eq!(config.autoconfig_dir, config.cni_config_dir);
        assert_eq!(config.own_kubeconfig(), PathBuf::from("/etc/cni/net.d/musubi.d/musubi.kubeconfig"));
        assert_eq!((config.workers, config.queue, config.events_per_second), (16, 256, 50));
        assert_eq!((config.reconcile, config.unlisted), (Duration::from_secs(300), Duration::from_secs(300)));
        assert_eq!(config.cache, Duration::from_secs(60));
        assert_eq!(config.host_mount_namespace, Some(PathBuf::from("/proc/1/ns/mnt")));
        assert_eq!((config.log_level, config.log_format), (LogLevel::Warning, LogFormat::Text));
        assert!(config.metrics_address.is_none() && config.cri_socket.is_none() && config.memory_limit.is_none());
        assert!(config.master.is_none() && config.ready_configuration.is_none() && !config.override_network_name);
        assert!(config.plugin_keys.is_empty() && config.wants_credentials() && config.connection_limit.is_none());
        assert_eq!(config.warnings, [""; 0]);
    }

    /// The daemon's configuration as Multus' manifests ship it, and every other key of its daemon.
    #[test]
    fn a_configuration_of_multus_daemon_works() {
        let shipped = parse(json!({
            "chrootDir": "/hostroot", "cniVersion": "0.3.1", "logLevel": "verbose", "logToStderr": true,
            "cniConfigDir": "/host/etc/cni/net.d", "multusAutoconfigDir": "/host/etc/cni/net.d",
            "multusConfigFile": "auto", "socketDir": "/host/run/multus/",
        }))
        .unwrap();
        assert_eq!(shipped.socket(), PathBuf::from("/host/run/multus/musubi.sock"));
        assert_eq!((shipped.log_level, shipped.ready_configuration), (LogLevel::Verbose, None));
        let [chroot, version] = &shipped.warnings[..] else { panic!("{:?}", shipped.warnings) };
        assert!(chroot.contains("\"chrootDir\" is ignored: plugins run in the host's mount namespace"), "{chroot}");
        assert!(version.contains("\"cniVersion\" is ignored: every version"), "{version}");

        let others = parse(json!({
            "connectionLimit": 20, "metricsPort": 9091, "enablePprof": true, "forceCNIVersion": true,
            "perNodeCertificate": {"enabled": true}, "multusMasterCNI": "10-calico.conflist", "overrideNetworkName": true,
            "daemonSocketDir": "/run/multus", "multusConfigFile": "/etc/ready.conf",
        }))
        .unwrap();
        assert_eq!((others.connection_limit, others.metrics_address), (Some(20), "[::]:9091".parse().ok()));
        assert_eq!(others.master, Some(PathBuf::from("10-calico.conflist")));
        assert_eq!(others.ready_configuration, Some(PathBuf::from("/etc/ready.conf")));
        assert!(others.override_network_name);
        assert_eq!(others.warnings.len(), 4, "{:?}", others.warnings);
    }

    #[test]
    fn keys_of_the_plugin_go_on_as_they_were_written() {
        let keys = json!({
            "namespaceIsolation": true, "globalNamespaces": "a,b", "binDir": "/opt/bin", "readinessindicatorfile": "/r",
            "defaultNetworks": ["x"], "logLevel": "debug", "logFile": "/l", "logToStderr": false, "networkStatus": "selected",
        });
        let mut all = keys.clone();
        let own =
            json!({"workers": 4, "type": "multus-shim", "agentSocket": "/x", "prevResult": {}, "socketDir": "/s"});
        all.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        let config = parse(all).unwrap();
        assert_eq!(Value::Object(config.plugin_keys), keys);
        assert_eq!((config.log_file, config.log_to_stderr), (Some(PathBuf::from("/l")), false));
        assert_eq!((config.workers, config.warnings.len()), (4, 3));
    }

    #[test]
    fn unknown_keys_are_warned_about_by_name() {
        let warnings = parse(json!({"socketDirr": "/run", "Workers": 3})).unwrap().warnings;
        assert_eq!(warnings, ["configuration key \"socketDirr\" is not known and is ignored"]);
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_key_and_what_is_accepted() {
        let rows = [
            (json!({"workers": 0}), "workers", "from 1 to"),
            (json!({"queue": "many"}), "queue", "a whole number"),
            (json!({"connectionLimit": 0}), "connectionLimit", "from 1 to"),
            (json!({"socketDir": "run"}), "socketDir", "absolute path"),
            (json!({"multusMasterCNI": "a/b.conf"}), "multusMasterCNI", "a file name"),
            (json!({"multusConfigFile": "manual"}), "multusConfigFile", "\"auto\""),
            (json!({"metricsAddress": "localhost"}), "metricsAddress", "ADDRESS:PORT"),
            (json!({"metricsAddress": ":http"}), "metricsAddress", ":PORT"),
            (json!({"metricsPort": 70_000}), "metricsPort", "65535"),
            (json!({"logFormat": "xml"}), "logFormat", "\"json\""),
            (json!({"memoryLimit": "lots"}), "memoryLimit", "256Mi"),
            (json!({"memoryLimit": "8Mi"}), "memoryLimit", "at least 16Mi"),
            (json!({"memoryLimit": "Mi"}), "memoryLimit", "256Mi"),
            (json!({"criSocket": "containerd.sock"}), "criSocket", "Unix socket"),
            (json!({"hostMountNamespace": "mnt"}), "hostMountNamespace", "absolute path"),
            // Keys of the plugin, which would refuse them with every pod.
            (json!({"namespaceIsolation": "yes"}), "namespaceIsolation", "true or false"),
            (json!({"networkStatus": "none"}), "networkStatus", "\"selected\""),
            (json!({"name": "no spaces"}), "name", "no spaces"),
            (json!({"capabilities": {"ips": "yes"}}), "capabilities.ips", "true or false"),
            (json!({"delegates": [{"type": "musubi"}]}), "delegates[0]", "itself"),
        ];
        for (keys, key, accepted) in rows {
            let error = parse(keys.clone()).unwrap_err();
            assert_eq!(error.code, code::CONFIG, "{keys}: {error}");
            assert!(error.msg.contains(key) && error.msg.contains(accepted), "{keys}: {error}");
            assert!(!error.msg.contains('\n'), "{error}");
        }
        for text in ["", "[]", "{", "null"] {
            let error = AgentConfig::parse(text.as_bytes()).unwrap_err();
            assert!(error.code == code::DECODE && error.msg.contains("agent's configuration"), "{text:?}: {error}");
        }
    }

    #[test]
    fn memory_and_addresses_are_taken_in_their_usual_forms() {
        for (value, bytes) in [
            (json!("64Mi"), 64 << 20),
            (json!("1Gi"), 1 << 30),
            (json!("64M"), 64_000_000),
            (json!("67108864"), 64 << 20),
            (json!(67_108_864), 64 << 20),
        ] {
            assert_eq!(parse(json!({"memoryLimit": value})).unwrap().memory_limit, Some(bytes), "{value}");
        }
        for (value, address) in [("127.0.0.1:9464", "127.0.0.1:9464"), (":9464", "[::]:9464"), ("[::1]:1", "[::1]:1")] {
            let config = parse(json!({"metricsAddress": value, "metricsPort": 5})).unwrap();
            assert_eq!(config.metrics_address, address.parse().ok(), "{value}");
        }
        for value in ["unix:///run/containerd/containerd.sock", "/run/containerd/containerd.sock"] {
            let config = parse(json!({"criSocket": value})).unwrap();
            assert_eq!(config.cri_socket, Some(PathBuf::from("/run/containerd/containerd.sock")));
        }
    }

    #[test]
    fn an_empty_mount_namespace_means_our_own() {
        assert_eq!(parse(json!({"hostMountNamespace": ""})).unwrap().host_mount_namespace, None);
    }

    #[test]
    fn the_configured_node_name_comes_before_all_others() {
        assert_eq!(parse(json!({"nodeName": "node-7"})).unwrap().node_name(), "node-7");
        assert!(!parse(json!({})).unwrap().node_name().is_empty());
    }
}

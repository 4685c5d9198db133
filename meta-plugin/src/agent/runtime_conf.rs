//! The configuration that the container runtime reads: made from the primary network's own file, kept valid, and never
//! taken away. Here is what it says and when it is written; `primary.rs` says which file is the primary network's.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use musubi_delegates::cni::{CniError, ConfList, ConfigError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::config::AgentConfig;
use super::primary::{self, Choice, Primary};
use crate::config::{Config, OUR_TYPE};

/// The file's name in `cniConfigDir`: among those that runtimes look at, it comes first.
pub const FILE: &str = "00-musubi.conflist";
/// Name of our network where the configuration gives it none.
const NETWORK: &str = "musubi-network";
/// What is offered to the runtime. An old one reads `cniVersion` alone, and knows no version that it would have to refuse;
/// a new one takes the highest of `cniVersions`, and with it CHECK, STATUS and GC.
const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];
/// A runtime that is asked to hands over the pod's annotations, which spares a request to the API server.
const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// Keys that libcni reads from the list itself.
const LIST_KEYS: [&str; 3] = ["disableCheck", "disableGC", "loadOnlyInlinedPlugins"];

/// How long the folder rests after a change before it is read: a file is seldom written in one piece.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// Between two looks when nothing seems to change: a watch may miss what happens below a mount.
const POLL: Duration = Duration::from_secs(5);
/// Between two restorations of our file, lest two programs that each want to be alone keep the disk busy.
const RESTORE_INTERVAL: Duration = Duration::from_secs(10);

/// How the runtime's configuration stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There is none yet.
    Waiting {
        /// What is missing.
        reason: String,
    },
    /// It is as it should be.
    Written {
        /// The file of the default network, or the text that names it.
        primary: String,
    },
    /// An earlier one is there, and what it should be now cannot be said or written.
    Stale {
        /// Why.
        reason: String,
    },
}

impl State {
    /// Why the agent is not ready; `None` when it is.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        match self {
            Self::Waiting { reason } | Self::Stale { reason } => Some(reason),
            Self::Written { .. } => None,
        }
    }
}

/// What the runtime is to read. `primary` is the default network's file; `None` where the configuration itself names the
/// default network by `clusterNetwork` or `delegates`.
///
/// # Errors
/// The plugin would refuse it.
pub fn generate(agent: &AgentConfig, primary: Option<&Primary>) -> Result<Value, CniError> {
    let own_name = agent.plugin_text("name").unwrap_or(NETWORK);
    let name = match primary.and_then(|primary| primary.list.name.as_ref()) {
        Some(primary) if agent.override_network_name => primary.as_str(),
        _ => own_name,
    };
    let mut plugin = Map::new();
    plugin.insert("type".into(), OUR_TYPE.into());
    plugin.insert("capabilities".into(), capabilities(agent, primary).into());
    if let Some(primary) = primary {
        plugin.insert("clusterNetwork".into(), primary.path.to_string_lossy().into());
    }
    if agent.wants_credentials() {
        plugin.insert("kubeconfig".into(), agent.own_kubeconfig().to_string_lossy().into());
    }
    plugin.insert("agentSocket".into(), agent.socket().to_string_lossy().into());
    let mut list = json!({"cniVersion": VERSIONS[0], "cniVersions": VERSIONS, "name": name});
    for (key, value) in &agent.plugin_keys {
        let is = |known: &str| known.eq_ignore_ascii_case(key);
        if LIST_KEYS.into_iter().any(is) {
            list[key] = value.clone();
        } else if !["name", "capabilities"].into_iter().any(is) && !plugin.keys().any(|known| is(known)) {
            plugin.insert(key.clone(), value.clone());
        }
    }
    list["plugins"] = json!([plugin]);
    validated(list)
}

/// Of every plugin of the default network, so that the runtime sends us whatever it would send them.
fn capabilities(agent: &AgentConfig, primary: Option<&Primary>) -> Map<String, Value> {
    let inline = agent.plugin_key("delegates").and_then(Value::as_array).filter(|_| primary.is_none());
    let inline: Vec<ConfList> =
        inline.into_iter().flatten().filter_map(|list| ConfList::from_map(list.as_object()?.clone()).ok()).collect();
    let lists = primary.map(|primary| &primary.list).into_iter().chain(&inline);
    let mut union: Map<String, Value> = lists
        .flat_map(|list| &list.plugins)
        .flat_map(|plugin| plugin.capabilities())
        .map(|capability| (capability.to_owned(), true.into()))
        .collect();
    union.insert(POD_ANNOTATIONS.into(), true.into());
    union.extend(agent.plugin_key("capabilities").and_then(Value::as_object).cloned().unwrap_or_default());
    union
}

/// A configuration that somebody else made, as a list.
fn ready_configuration(bytes: &[u8]) -> Result<Value, CniError> {
    let list = ConfList::parse(bytes)?;
    if list.is_list {
        return validated(Value::Object(list.raw));
    }
    let (of_list, of_plugin): (Map<_, _>, Map<_, _>) =
        list.raw.into_iter().partition(|(key, _)| ["name", "cniversion"].contains(&&*key.to_ascii_lowercase()));
    let mut wrapped = of_list;
    wrapped.insert("plugins".into(), json!([of_plugin]));
    validated(Value::Object(wrapped))
}

/// Whether runtime and plugin will understand it: read as libcni reads it, and as we read what libcni makes of it.
fn validated(list: Value) -> Result<Value, CniError> {
    let parsed = ConfList::parse(list.to_string().as_bytes())?;
    let ours = parsed.request(0, None, &Map::new())?;
    if ours.plugin_type()? != OUR_TYPE {
        return Err(ConfigError::new("plugins[0].type", format!("must be \"{OUR_TYPE}\"")).into());
    }
    Config::parse(&ours).map(|_| list)
}

/// Keeps the file as it should be, a look at a time.
#[derive(Debug)]
pub struct Keeper {
    agent: Arc<AgentConfig>,
    /// The default network of the file as it is.
    primary: Option<PathBuf>,
    /// What was written last, or found at the start.
    good: Option<Vec<u8>>,
    restored: Option<Instant>,
    /// What was said at the last look, so that it is said once.
    said: Vec<String>,
    state: State,
}

impl Keeper {
    /// Starts with what an earlier agent left.
    #[must_use]
    pub fn new(agent: Arc<AgentConfig>) -> Self {
        remove_abandoned(&agent.cni_config_dir);
        let good = fs::read(agent.cni_config_dir.join(FILE)).ok();
        let good = good.filter(|bytes| serde_json::from_slice(bytes).is_ok_and(|list| validated(list).is_ok()));
        let state = State::Waiting { reason: "the agent has only just started".into() };
        Self { primary: good.as_deref().and_then(cluster_network), good, agent, restored: None, said: vec![], state }
    }

    /// How it stands since the last look.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What somebody should know although it works, as of the last look.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.said
    }

    /// Reads the folders, and writes the file if it is to be another.
    pub fn look(&mut self, now: Instant) -> &State {
        let Choice { outcome, mut warnings } = primary::choose(&self.agent, self.primary.as_deref());
        warnings.extend(shadowing(&self.agent.cni_config_dir));
        let wanted = outcome.and_then(|primary| self.contents(primary.as_ref()).map(|bytes| (primary, bytes)));
        let state = match wanted {
            Ok((primary, bytes)) => match self.put(&bytes, now, &mut warnings) {
                Ok(()) => {
                    self.good = Some(bytes);
                    self.primary = primary.map(|primary| primary.path);
                    State::Written { primary: self.default_network() }
                }
                Err(reason) => self.not_as_it_should_be(reason),
            },
            Err(reason) => {
                let good = self.good.clone();
                let kept = good.map_or(Ok(()), |bytes| self.put(&bytes, now, &mut warnings));
                self.not_as_it_should_be(kept.err().map_or(reason.clone(), |problem| format!("{reason}; {problem}")))
            }
        };
        self.tell(state, warnings);
        &self.state
    }

    fn contents(&self, primary: Option<&Primary>) -> Result<Vec<u8>, String> {
        let list = match &self.agent.ready_configuration {
            Some(file) => {
                let bytes = fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
                ready_configuration(&bytes).map_err(|e| format!("{}: {}", file.display(), e.msg))?
            }
            None => generate(&self.agent, primary).map_err(|e| e.msg)?,
        };
        Ok(format!("{list:#}\n").into_bytes())
    }

    /// Makes the file hold `bytes`. What somebody has taken away or changed is put back, but not at once every time.
    fn put(&mut self, bytes: &[u8], now: Instant, warnings: &mut Vec<String>) -> Result<(), String> {
        let file = self.agent.cni_config_dir.join(FILE);
        let found = fs::read(&file).ok();
        if found.as_deref() == Some(bytes) {
            return Ok(());
        }
        if self.good.as_deref() == Some(bytes) {
            let harm = self.what_happened(found.is_some());
            if self.restored.is_some_and(|last| now.duration_since(last) < RESTORE_INTERVAL) {
                return Err(format!("{harm} again; it is written again in a few seconds"));
            }
            self.restored = Some(now);
            warnings.push(format!("{harm}, and is written again"));
        }
        replace(&file, bytes).map_err(|e| format!("write {}: {e}", file.display()))
    }

    fn what_happened(&self, is_there: bool) -> String {
        if is_there {
            return format!("{FILE} was changed by another program");
        }
        match primary::renamed(&self.agent.cni_config_dir, FILE) {
            Some(name) if name.ends_with(".cilium_bak") => {
                format!("{FILE} was renamed to {name} (Cilium does so unless its \"cni.exclusive\" is false)")
            }
            Some(name) => format!("{FILE} was renamed to {name}"),
            None => format!("{FILE} was removed by another program"),
        }
    }

    fn not_as_it_should_be(&self, reason: String) -> State {
        if self.good.is_some() { State::Stale { reason } } else { State::Waiting { reason } }
    }

    fn default_network(&self) -> String {
        let named = || self.agent.plugin_text("clusterNetwork").map(str::to_owned);
        let path = self.agent.ready_configuration.as_ref().or(self.primary.as_ref());
        path.map(|path| path.display().to_string()).or_else(named).unwrap_or_else(|| "delegates".into())
    }

    /// Logs what is new.
    fn tell(&mut self, state: State, warnings: Vec<String>) {
        for warning in warnings.iter().filter(|warning| !self.said.contains(warning)) {
            tracing::warn!("{warning}");
        }
        if state != self.state {
            match &state {
                State::Written { primary } => tracing::info!(primary, "{FILE} is written"),
                State::Waiting { reason } => tracing::warn!("{FILE} is not written: {reason}"),
                State::Stale { reason } => tracing::warn!("{FILE} stays as it was: {reason}"),
            }
        }
        (self.said, self.state) = (warnings, state);
    }
}

/// Keeps the file, and says how it stands for as long as somebody listens. Blocks: it is for a thread of its own.
pub fn keep(agent: Arc<AgentConfig>, states: &watch::Sender<State>) {
    let folders = watched(&agent);
    let mut keeper = Keeper::new(agent);
    let watch = FolderWatch::new();
    if let Err(problem) = &watch {
        tracing::warn!("no watch on the configuration folder, it is read every {POLL:?}: {problem}");
    }
    while !states.is_closed() {
        // Before the look: what changes during it is not missed.
        if let Ok(watch) = &watch {
            folders.iter().for_each(|folder| watch.add(folder));
        }
        let state = keeper.look(Instant::now());
        states.send_if_modified(|known| {
            let is_new = known != state;
            known.clone_from(state);
            is_new
        });
        match &watch {
            Ok(watch) => watch.wait(),
            Err(_) => thread::sleep(POLL),
        }
    }
}

fn watched(agent: &AgentConfig) -> Vec<PathBuf> {
    let beside = |file: &PathBuf| file.parent().map(Path::to_owned);
    let files = agent.ready_configuration.iter().chain(&agent.master);
    let mut folders = vec![agent.cni_config_dir.clone(), agent.autoconfig_dir.clone()];
    folders.extend(files.filter(|file| file.is_absolute()).filter_map(beside));
    folders
}

/// Tells when something changes in folders.
struct FolderWatch(Inotify);

impl FolderWatch {
    fn new() -> nix::Result<Self> {
        Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map(Self)
    }

    /// A folder that is watched already stays so; one that was removed and made again is watched again.
    fn add(&self, folder: &Path) {
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        // One that is not there is looked at by the clock.
        let _ = self.0.add_watch(folder, changes | AddWatchFlags::IN_ONLYDIR);
    }

    /// Waits for a change and until it is over, or for as long as a look may be put off.
    fn wait(&self) {
        let timeout = PollTimeout::try_from(POLL).unwrap_or(PollTimeout::NONE);
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => {}
            Ok(_) => {
                thread::sleep(DEBOUNCE);
                while self.0.read_events().is_ok() {}
            }
            Err(_) => thread::sleep(DEBOUNCE),
        }
    }
}

/// Files that the runtime would take before ours.
fn shadowing(folder: &Path) -> Vec<String> {
    let before =
        primary::configuration_names(folder).unwrap_or_default().into_iter().filter(|name| name.as_str() < FILE);
    before
        .map(|name| {
            format!(
                "{name} comes before {FILE}: the runtime uses it alone, without other networks; rename or remove it"
            )
        })
        .collect()
}

/// The default network's file that a configuration of ours names.
fn cluster_network(bytes: &[u8]) -> Option<PathBuf> {
    let list = ConfList::parse(bytes).ok()?;
    let path = list.plugins.first()?.view().text("clusterNetwork").ok()??;
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// Replaces a file as a whole, readable by its owner alone; a power cut a moment later leaves the one or the other.
///
/// # Errors
/// The folder cannot be written to; the file is as it was.
pub(super) fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    // Runtimes look at names by their ends: this one ends in random letters.
    let mut temporary = tempfile::Builder::new().prefix(&format!(".{name}.")).tempfile_in(folder)?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    temporary.persist(file).map(drop).map_err(|e| e.error)
}

/// Removes what an agent that was killed in the middle of [`replace`] left.
fn remove_abandoned(folder: &Path) {
    let prefix = format!(".{FILE}.");
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use musubi_delegates::cni::Version;
    use tempfile::TempDir;

    use super::*;
    use crate::config::DefaultNetwork;

    /// A folder of configurations, and an agent that looks at it.
    struct Node {
        folder: TempDir,
        now: Instant,
    }

    impl Node {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap(), now: Instant::now() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn put(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).unwrap();
        }

        fn network(&self, file: &str, name: &str) {
            self.put(file, &network(name).to_string());
        }

        fn agent(&self, keys: Value) -> Arc<AgentConfig> {
            let mut all = json!({"cniConfigDir": self.folder.path()});
            all.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
            Arc::new(AgentConfig::parse(all.to_string().as_bytes()).unwrap())
        }

        fn keeper(&self) -> Keeper {
            Keeper::new(self.agent(json!({})))
        }

        fn written(&self, file: &str) -> State {
            State::Written { primary: self.path(file).display().to_string() }
        }

        fn ours(&self) -> Value {
            serde_json::from_slice(&fs::read(self.path(FILE)).unwrap()).unwrap()
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(self.folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    fn network(name: &str) -> Value {
        json!({"cniVersion": "0.3.1", "name": name, "plugins": [
            {"type": "calico", "capabilities": {"bandwidth": true}},
            {"type": "portmap", "capabilities": {"portMappings": true, "aliases": false}},
        ]})
    }

    /// What a runtime makes of it for the plugin: as libcni does, with what it knows of the pod.
    fn sent_by_a_runtime(list: &Value, is_old: bool) -> Config {
        let mut list = list.clone();
        if is_old {
            list.as_object_mut().unwrap().remove("cniVersions");
        }
        let list = ConfList::parse(list.to_string().as_bytes()).unwrap();
        let known = json!({"portMappings": [], "bandwidth": {}, POD_ANNOTATIONS: {"a": "b"}, "aliases": []});
        Config::parse(&list.request(0, None, known.as_object().unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn the_runtime_is_told_of_the_primary_network_and_of_all_it_can_do() {
        let node = Node::new();
        let agent = node.agent(json!({"socketDir": "/run/s", "namespaceIsolation": true, "disableCheck": true}));
        let primary = Primary {
            path: "/etc/cni/net.d/10-calico.conflist".into(),
            list: ConfList::parse(network("k8s-pod-network").to_string().as_bytes()).unwrap(),
        };
        let list = generate(&agent, Some(&primary)).unwrap();
        let kubeconfig = node.path("musubi.d/musubi.kubeconfig");
        assert_eq!(
            list,
            json!({
                "cniVersion": "0.4.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"], "name": "musubi-network", "disableCheck": true,
                "plugins": [{
                    "type": "musubi",
                    "capabilities": {"bandwidth": true, "portMappings": true, "io.kubernetes.cri.pod-annotations": true},
                    "clusterNetwork": "/etc/cni/net.d/10-calico.conflist",
                    "kubeconfig": kubeconfig, "agentSocket": "/run/s/musubi.sock", "namespaceIsolation": true,
                }],
            })
        );

        for (is_old, version) in [(true, Version::V0_4_0), (false, Version::V1_1_0)] {
            let config = sent_by_a_runtime(&list, is_old);
            assert_eq!((config.version, config.name.as_str()), (version, "musubi-network"));
            assert!(
                matches!(config.default_network, DefaultNetwork::Named(path) if path.ends_with("10-calico.conflist"))
            );
            assert!(config.namespace_isolation);
            let sent: Vec<&str> = config.runtime_config.keys().map(String::as_str).collect();
            assert_eq!(sent, ["portMappings", "bandwidth", POD_ANNOTATIONS]);
        }
    }

    #[test]
    fn names_and_keys_of_the_configuration_are_followed() {
        let node = Node::new();
        node.network("10-a.conflist", "a");
        let rows = [
            (json!({}), "musubi-network", "kubeconfig", Some(node.path("musubi.d/musubi.kubeconfig"))),
            (json!({"overrideNetworkName": true, "name": "mine"}), "a", "kubeconfig", None),
            (json!({"name": "mine", "KubeConfig": "/k"}), "mine", "KubeConfig", Some("/k".into())),
            (json!({"manifestDir": "/m"}), "musubi-network", "manifestDir", Some("/m".into())),
        ];
        for (keys, name, key, value) in rows {
            let mut keeper = Keeper::new(node.agent(keys.clone()));
            assert_eq!(keeper.look(node.now), &node.written("10-a.conflist"), "{keys}");
            let list = node.ours();
            assert_eq!(list["name"], name, "{keys}");
            if let Some(value) = value {
                assert_eq!(list["plugins"][0][key], json!(value), "{keys}");
            }
            let all = list["plugins"][0].as_object().unwrap();
            let kubeconfigs = all.keys().filter(|key| key.eq_ignore_ascii_case("kubeconfig")).count();
            assert_eq!(kubeconfigs, usize::from(keys.get("manifestDir").is_none()), "{keys}");
        }
    }

    #[test]
    fn a_default_network_that_the_configuration_names_needs_no_file() {
        let node = Node::new();
        let inline = json!({"name": "d", "type": "ptp", "capabilities": {"ips": true}});
        let rows = [
            (json!({"clusterNetwork": "flat", "capabilities": {"mac": true}}), "flat", "mac"),
            (json!({"delegates": [inline]}), "delegates", "ips"),
        ];
        for (keys, primary, capability) in rows {
            let mut keeper = Keeper::new(node.agent(keys.clone()));
            assert_eq!(keeper.look(node.now), &State::Written { primary: primary.into() });
            let plugin = &node.ours()["plugins"][0];
            assert_eq!(plugin["capabilities"], json!({POD_ANNOTATIONS: true, capability: true}), "{keys}");
            sent_by_a_runtime(&node.ours(), false);
        }
        let mut keeper = Keeper::new(node.agent(json!({"clusterNetwork": node.path("sub/10-a.conflist")})));
        assert!(
            keeper.look(node.now).problem().unwrap().contains("No such file"),
            "a path is a file that is waited for"
        );
    }

    #[test]
    fn a_ready_configuration_is_used_when_it_is_valid() {
        let node = Node::new();
        let single = json!({"cniVersion": "0.3.1", "name": "n", "type": "musubi", "delegates": [{"type": "ptp"}]});
        node.put("ready", &single.to_string());
        let agent = node.agent(json!({"multusConfigFile": node.path("ready")}));
        let mut keeper = Keeper::new(agent);
        assert_eq!(keeper.look(node.now), &node.written("ready"));
        let mut plugin = single.clone();
        plugin.as_object_mut().unwrap().retain(|key, _| key != "name" && key != "cniVersion");
        assert_eq!(node.ours(), json!({"cniVersion": "0.3.1", "name": "n", "plugins": [plugin]}));

        for (bad, why) in [("{", "not JSON"), (r#"{"name":"n","type":"bridge"}"#, "must be \"musubi\"")] {
            node.put("ready", bad);
            let State::Stale { reason } = keeper.look(node.now) else { panic!("{:?}", keeper.state()) };
            assert!(reason.contains(why), "{reason}");
            assert_eq!(node.ours()["name"], "n");
        }
    }

    #[test]
    fn the_first_valid_network_is_the_primary_one() {
        let node = Node::new();
        let mut keeper = node.keeper();
        let State::Waiting { reason } = keeper.look(node.now) else { panic!("{:?}", keeper.state()) };
        assert!(reason.starts_with("no configuration of a primary network in /"), "{reason}");
        node.put("00-multus.conf", r#"{"name":"m","type":"multus-shim"}"#);
        node.put("05-empty.conflist", "");
        node.put("06-half.conflist", r#"{"name":"half","plug"#);
        node.put("07-nameless.conf", r#"{"type":"bridge"}"#);
        node.put("08-multus.conf", r#"{"name":"m","type":"multus"}"#);
        node.put("99-loopback.conf", r#"{"name":"lo","type":"loopback"}"#);
        node.put("01-note.txt", "a note");
        let State::Waiting { reason } = keeper.look(node.now) else { panic!("{:?}", keeper.state()) };
        for word in ["05-empty.conflist", "06-half.conflist", "07-nameless.conf"] {
            assert!(reason.contains(word), "no {word} in {reason}");
        }
        assert!(!node.path(FILE).exists());

        node.network("20-late.conflist", "late");
        assert_eq!(keeper.look(node.now), &node.written("20-late.conflist"));
        let warnings = keeper.warnings().join("\n");
        assert!(warnings.contains("00-multus.conf is passed over: it is Multus'"), "{warnings}");
        assert!(warnings.contains("08-multus.conf is passed over: its plugin is Multus"), "{warnings}");
        assert!(warnings.contains("00-multus.conf comes before 00-musubi.conflist"), "{warnings}");
        node.network("10-better.conflist", "better");
        assert_eq!(keeper.look(node.now), &node.written("10-better.conflist"), "a better one is taken when it comes");
        fs::remove_file(node.path("10-better.conflist")).unwrap();
        assert_eq!(keeper.look(node.now), &node.written("20-late.conflist"));
    }

    #[test]
    fn the_named_file_alone_is_the_primary_one() {
        let node = Node::new();
        node.network("10-a.conflist", "a");
        let mut keeper = Keeper::new(node.agent(json!({"multusMasterCNI": "20-b.conflist"})));
        let State::Waiting { reason } = keeper.look(node.now) else { panic!("{:?}", keeper.state()) };
        assert!(reason.contains("20-b.conflist"), "{reason}");
        node.network("20-b.conflist", "b");
        assert_eq!(keeper.look(node.now), &node.written("20-b.conflist"));
    }

    #[test]
    fn the_last_good_configuration_stays_whatever_becomes_of_the_primary_one() {
        let node = Node::new();
        node.network("10-a.conflist", "a");
        node.network("20-other.conflist", "other");
        let mut keeper = node.keeper();
        assert_eq!(keeper.look(node.now), &node.written("10-a.conflist"));
        let (good, mut now) = (node.ours(), node.now);
        let half = &network("a").to_string()[..40];
        for (harm, why) in
            [("", "EOF"), (half, "not JSON"), ("{}", "plugins"), (r#"{"name":"a","plugins":[]}"#, "plugin")]
        {
            node.put("10-a.conflist", harm);
            // Somebody may take ours away at the same time.
            fs::remove_file(node.path(FILE)).unwrap();
            now += RESTORE_INTERVAL;
            let State::Stale { reason } = keeper.look(now) else { panic!("{harm:?}: {:?}", keeper.state()) };
            assert!(reason.contains("10-a.conflist") && reason.contains(why), "{harm:?}: {reason}");
            assert_eq!(node.ours(), good, "{harm:?}");
        }
        // An agent that starts anew knows it too, and does not take another network's file in its place.
        let mut anew = node.keeper();
        assert!(matches!(anew.look(node.now), State::Stale { .. }));
        assert_eq!(node.ours(), good);
        for name in ["10-a.conflist", "20-other.conflist"] {
            fs::rename(node.path(name), node.path(&format!("{name}.cilium_bak"))).unwrap();
        }
        let State::Stale { reason } = anew.look(node.now) else { panic!("{:?}", anew.state()) };
        assert!(reason.ends_with("10-a.conflist was renamed to 10-a.conflist.cilium_bak"), "{reason}");
        assert_eq!(node.ours(), good);
        node.network("10-a.conflist", "a");
        assert_eq!(anew.look(node.now), &node.written("10-a.conflist"));
    }

    #[test]
    fn what_others_do_to_the_file_is_undone_and_told_but_not_at_any_price() {
        let node = Node::new();
        node.network("05-cilium.conflist", "cilium");
        let mut keeper = node.keeper();
        keeper.look(node.now);
        let good = node.ours();
        let renamed = node.path(&format!("{FILE}.cilium_bak"));
        type Harm = fn(&Node);
        let harms: &[(Harm, &str)] = &[
            (
                |node| fs::rename(node.path(FILE), node.path(&format!("{FILE}.cilium_bak"))).unwrap(),
                "renamed to 00-musubi.conflist.cilium_bak (Cilium",
            ),
            (|node| fs::remove_file(node.path(FILE)).unwrap(), "was removed by another program"),
            (|node| node.put(FILE, "{}"), "was changed by another program"),
        ];
        let mut now = node.now;
        for (harm, told) in harms {
            harm(&node);
            now += RESTORE_INTERVAL;
            assert_eq!(keeper.look(now), &node.written("05-cilium.conflist"));
            assert_eq!(node.ours(), good);
            assert!(keeper.warnings().iter().any(|warning| warning.contains(told)), "{:?}", keeper.warnings());
            harm(&node);
            let State::Stale { reason } = keeper.look(now + RESTORE_INTERVAL / 2) else {
                panic!("{:?}", keeper.state())
            };
            assert!(reason.contains(told) && reason.contains("again"), "{reason}");
            now += RESTORE_INTERVAL;
            assert_eq!(keeper.look(now), &node.written("05-cilium.conflist"));
            assert_eq!(node.ours(), good);
            let _ = fs::remove_file(&renamed);
        }
    }

    #[test]
    fn the_file_is_written_when_it_changes_and_by_rename() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let node = Node::new();
        node.network("10-a.conflist", "a");
        node.put(".00-musubi.conflist.gR4xQz", "{\"half");
        let mut keeper = node.keeper();
        keeper.look(node.now);
        let before = fs::metadata(node.path(FILE)).unwrap();
        assert_eq!(before.permissions().mode() & 0o777, 0o600);
        keeper.look(node.now);
        node.keeper().look(node.now);
        assert_eq!(fs::metadata(node.path(FILE)).unwrap().ino(), before.ino(), "nothing new, nothing written");
        let open = fs::File::open(node.path(FILE)).unwrap();
        node.put("10-a.conflist", &network("a").to_string().replace("bandwidth", "ips"));
        keeper.look(node.now);
        assert_eq!(node.ours()["plugins"][0]["capabilities"]["ips"], true);
        let as_it_was: Value = serde_json::from_reader(open).unwrap();
        assert_eq!(as_it_was["plugins"][0]["capabilities"]["bandwidth"], true, "who reads it reads one whole file");
        assert_eq!(node.names(), [FILE, "10-a.conflist"], "nothing else is left, of an earlier agent neither");
    }

    #[test]
    fn plugins_from_the_networks_own_folder_count() {
        let node = Node::new();
        node.network("10-a.conflist", "a");
        fs::create_dir(node.path("a")).unwrap();
        node.put("a/10-tuning.conf", r#"{"type":"tuning","capabilities":{"mac":true}}"#);
        node.keeper().look(node.now);
        assert_eq!(node.ours()["plugins"][0]["capabilities"]["mac"], true);
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_is_a_reason() {
        let node = Node::new();
        node.network("10-a.conflist", "a");
        fs::write(node.path("file"), "").unwrap();
        let agent = json!({"cniConfigDir": node.path("file/net.d"), "multusAutoconfigDir": node.folder.path()});
        let mut keeper = Keeper::new(node.agent(agent));
        let State::Waiting { reason } = keeper.look(node.now) else { panic!("{:?}", keeper.state()) };
        assert!(reason.starts_with("write /") && reason.contains(FILE), "{reason}");
    }
}

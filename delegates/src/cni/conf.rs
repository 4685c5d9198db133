//! Network configurations: one plugin's, and lists of them. They stay raw JSON, so that what this
//! code does not know reaches the plugin as it was written; what a delegate wants to know it reads
//! through a [`View`].

use std::path::Path;

use serde_json::{Map, Value};

use super::error::{CniError, ConfigError, code};
use super::names::{ContainerId, InterfaceName, NetworkName, shown};
use super::result::CniResult;
use super::version::Version;
use super::view::{View, find, kind};

/// One plugin's configuration, whole, in the order it was written. Known keys match whatever their
/// case, the last duplicate wins and `null` is absent, as for Go's plugins.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NetConf(pub Map<String, Value>);

impl NetConf {
    /// Reads one JSON object. Code 6 otherwise, with line and column but without the text.
    pub fn parse(bytes: &[u8]) -> Result<Self, CniError> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(other) => Err(CniError::new(
                code::DECODE,
                format!("the network configuration must be a JSON object, not {}", shape(&other)),
            )),
            Err(error) => Err(CniError::new(code::DECODE, format!("the network configuration is not JSON: {error}"))),
        }
    }

    /// The value of `key` in whatever case.
    pub fn get(&self, key: &str) -> Option<&Value> {
        find(&self.0, key)
    }

    /// Sets `key`, in the place of the first that matches whatever its case; others that match go.
    /// A new key is appended.
    pub fn insert(&mut self, key: &str, value: impl Into<Value>) {
        let mut value = Some(value.into());
        let old = std::mem::take(&mut self.0);
        for (k, v) in old {
            if !k.eq_ignore_ascii_case(key) {
                self.0.insert(k, v);
            } else if let Some(value) = value.take() {
                self.0.insert(key.to_owned(), value);
            }
        }
        if let Some(value) = value {
            self.0.insert(key.to_owned(), value);
        }
    }

    /// Removes `key` in whatever case.
    pub fn remove(&mut self, key: &str) {
        self.0.retain(|k, _| !k.eq_ignore_ascii_case(key));
    }

    /// The network's name. Code 7 when it is missing or breaks the rules.
    pub fn name(&self) -> Result<NetworkName, CniError> {
        NetworkName::parse(self.view().string("name")?.unwrap_or_default())
    }

    /// The plugin's `type`. Code 7 when it is missing, or could name a file outside the plugin
    /// folders.
    pub fn plugin_type(&self) -> Result<&str, CniError> {
        let name =
            self.view().text("type")?.ok_or_else(|| ConfigError::new("type", "is missing; must name a plugin"))?;
        if !is_plugin_name(name) {
            return Err(
                ConfigError::new("type", format!("must name a plugin, without `/`, not {}", shown(name))).into()
            );
        }
        Ok(name)
    }

    /// The configuration's version; absent or empty means 0.1.0. Code 1 when it is not served.
    pub fn version(&self) -> Result<Version, CniError> {
        Version::parse(self.view().string("cniVersion")?.unwrap_or_default())
    }

    /// The result in `prevResult`, read as the configuration's version unless it names its own.
    pub fn prev_result(&self) -> Result<Option<CniResult>, CniError> {
        let Some(value) = self.get("prevResult") else {
            return Ok(None);
        };
        CniResult::parse(value, self.version()?).map(Some).map_err(|error| error.context("prevResult"))
    }

    /// Typed reading of the whole configuration.
    pub fn view(&self) -> View<'_> {
        View::of(&self.0, "")
    }

    /// The capabilities the plugin declares as true (CNI 1.1 §Deriving runtimeConfig). Their names
    /// keep their case.
    pub fn capabilities(&self) -> impl Iterator<Item = &str> {
        let declared = self.get("capabilities").and_then(Value::as_object);
        declared.into_iter().flatten().filter(|(_, on)| **on == Value::Bool(true)).map(|(name, _)| name.as_str())
    }

    /// Whether the plugin declares `capability` as true.
    pub fn has_capability(&self, capability: &str) -> bool {
        self.capabilities().any(|declared| declared == capability)
    }

    /// The attachments that GC is told are still valid. `None` when nothing is said (then nothing
    /// may be freed), which an empty list is not: that says that none is valid.
    pub fn valid_attachments(&self) -> Result<Option<Vec<ValidAttachment>>, CniError> {
        let view = self.view();
        let Some(key) = VALID_ATTACHMENTS.into_iter().find(|key| view.raw(key).is_some()) else {
            return Ok(None);
        };
        Ok(Some(view.objects(key)?.iter().map(ValidAttachment::parse).collect::<Result<_, _>>()?))
    }

    /// Says which attachments are valid, under today's key and the one older plugins read.
    pub fn set_valid_attachments(&mut self, valid: &[ValidAttachment]) {
        let list: Vec<_> = valid.iter().map(ValidAttachment::to_json).collect();
        for key in VALID_ATTACHMENTS {
            self.insert(key, list.clone());
        }
    }

    /// The bytes a plugin is sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Writing a map with string keys to memory cannot fail.
        serde_json::to_vec(&self.0).unwrap_or_default()
    }
}

/// The key of CNI 1.1 §GC, and the one libcni wrote before the specification was final.
const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// One attachment that GC must keep.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValidAttachment {
    /// The container's id.
    pub container_id: String,
    /// The interface in the container.
    pub interface: String,
}

impl ValidAttachment {
    fn parse(view: &View) -> Result<Self, ConfigError> {
        let required = |key| view.text(key)?.ok_or_else(|| view.error(key, "is missing; must be a string"));
        Ok(Self { container_id: required("containerID")?.to_owned(), interface: required("ifname")?.to_owned() })
    }

    fn to_json(&self) -> Value {
        serde_json::json!({"containerID": self.container_id, "ifname": self.interface})
    }

    /// Whether this is the attachment of `container` that `interface` names.
    pub fn is(&self, container: &ContainerId, interface: &InterfaceName) -> bool {
        self.container_id == container.as_str() && self.interface == interface.as_str()
    }
}

/// A network configuration list, raw plugins inside (CNI 1.1 §Network configuration format).
#[derive(Debug, Clone, PartialEq)]
pub struct ConfList {
    /// The network's name; none when the configuration leaves it to whoever uses it.
    pub name: Option<NetworkName>,
    /// The version chosen from `cniVersion` and `cniVersions`.
    pub version: Version,
    /// CHECK succeeds without calling any plugin.
    pub disable_check: bool,
    /// GC succeeds without calling any plugin.
    pub disable_gc: bool,
    /// Plugins are taken from the list alone, not from the folder of the network's name.
    pub load_only_inlined: bool,
    /// The plugins in their order; at least one.
    pub plugins: Vec<NetConf>,
    /// Whether it was written as a list; else it is one plugin's configuration, as before 1.0.0.
    pub is_list: bool,
    /// The configuration as it was written.
    pub raw: Map<String, Value>,
}

impl ConfList {
    /// Reads a list, or the configuration of one plugin as a list of one. Code 6 for what is not
    /// JSON, 7 for what is wrong in it, 1 for a version that is not served. A list without plugins
    /// is an error.
    pub fn parse(bytes: &[u8]) -> Result<Self, CniError> {
        Self::from_map(NetConf::parse(bytes)?.0)
    }

    /// As [`ConfList::parse`], for what is parsed already.
    pub fn from_map(map: Map<String, Value>) -> Result<Self, CniError> {
        Self::read(map)?.with_plugins()
    }

    /// As [`ConfList::parse`], for a file of `confdir`: plugins from its folder of the network's
    /// name are appended.
    pub fn parse_in_folder(bytes: &[u8], confdir: &Path) -> Result<Self, CniError> {
        let mut list = Self::read(NetConf::parse(bytes)?.0)?;
        list.append_folder(confdir)?;
        list.with_plugins()
    }

    /// Appends the plugins of `<confdir>/<name>/*.conf` in the order of their names, unless
    /// `loadOnlyInlinedPlugins` is set, the network has no name, or it is no list. A missing folder
    /// holds none.
    pub fn append_folder(&mut self, confdir: &Path) -> Result<(), CniError> {
        let Some(name) = self.name.as_ref().filter(|_| self.is_list && !self.load_only_inlined) else {
            return Ok(());
        };
        for file in conf_files(&confdir.join(name.as_str()))? {
            let context = |error: CniError| error.context(file.display());
            let bytes = std::fs::read(&file).map_err(|error| io_error(&file, &error))?;
            let plugin = NetConf::parse(&bytes).map_err(context)?;
            check_plugin(&plugin, "").map_err(|error| context(error.into()))?;
            self.plugins.push(plugin);
        }
        Ok(())
    }

    /// The configuration that plugin number `plugin` is sent: name, version, the result of the
    /// plugin before it, and of `runtime_config` what it declares a capability for (CNI 1.1
    /// §Derivation). Its own keys keep their places. With nothing to inject, a `prevResult` or
    /// `runtimeConfig` that the definition wrote itself stays.
    pub fn request(
        &self,
        plugin: usize,
        prev: Option<&CniResult>,
        runtime_config: &Map<String, Value>,
    ) -> Result<NetConf, CniError> {
        let mut conf = self.plugins.get(plugin).cloned().ok_or_else(|| {
            CniError::new(
                code::CONFIG,
                format!("plugins: there is no plugin {plugin}, the list holds {}", self.plugins.len()),
            )
        })?;
        let name = self
            .name
            .as_ref()
            .ok_or_else(|| CniError::from(ConfigError::new("name", "is missing; the network needs one")))?;
        conf.insert("name", name.as_str());
        conf.insert("cniVersion", self.version.as_str());
        if let Some(prev) = prev {
            conf.insert("prevResult", prev.to_json(self.version)?);
        }
        let wanted: Map<_, _> = runtime_config
            .iter()
            .filter(|(key, _)| conf.has_capability(key))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        if !wanted.is_empty() {
            conf.insert("runtimeConfig", wanted);
        }
        Ok(conf)
    }

    /// Everything but the demand for at least one plugin, for a folder may still add some.
    fn read(map: Map<String, Value>) -> Result<Self, CniError> {
        let view = View::of(&map, "");
        let is_list = view.raw("plugins").is_some() || view.raw("type").is_none();
        let plugins = if is_list { read_plugins(&view)? } else { vec![NetConf(map.clone())] };
        for (i, plugin) in plugins.iter().enumerate() {
            check_plugin(plugin, &if is_list { format!("plugins[{i}]") } else { String::new() })?;
        }
        Ok(Self {
            name: view.text("name")?.map(NetworkName::parse).transpose()?,
            version: choose_version(&view)?,
            disable_check: view.lenient_bool("disableCheck")?,
            disable_gc: view.lenient_bool("disableGC")?,
            load_only_inlined: view.lenient_bool("loadOnlyInlinedPlugins")?,
            plugins,
            is_list,
            raw: map,
        })
    }

    fn with_plugins(self) -> Result<Self, CniError> {
        if self.plugins.is_empty() {
            return Err(ConfigError::new(
                "plugins",
                "is missing; must be a list of at least one plugin (or `type` name a single one)",
            )
            .into());
        }
        Ok(self)
    }
}

fn read_plugins(view: &View) -> Result<Vec<NetConf>, ConfigError> {
    let Some(list) = view.list("plugins")? else {
        return Ok(Vec::new());
    };
    if list.is_empty() {
        return Err(view.error("plugins", "must hold at least one plugin"));
    }
    let element = |(i, value): (usize, &Value)| match value {
        Value::Object(map) => Ok(NetConf(map.clone())),
        other => Err(ConfigError::new(
            format!("{}[{i}]", view.path("plugins")),
            format!("must be an object, not {}", kind(other)),
        )),
    };
    list.iter().enumerate().map(element).collect()
}

/// What libcni needs to understand of a plugin's configuration.
fn check_plugin(plugin: &NetConf, path: &str) -> Result<(), ConfigError> {
    let view = View::of(&plugin.0, path);
    let name = view.text("type")?.ok_or_else(|| view.error("type", "is missing; must name a plugin"))?;
    if !is_plugin_name(name) {
        return Err(view.error("type", format!("must name a plugin, without `/`, not {}", shown(name))));
    }
    if let Some(capabilities) = view.object("capabilities")? {
        for capability in capabilities.keys() {
            capabilities.bool(capability)?;
        }
    }
    Ok(())
}

/// Whether `name` can only be a file directly inside a plugin folder.
pub(crate) fn is_plugin_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

/// The highest of `cniVersions` and `cniVersion` that is not newer than ours; without
/// `cniVersions`, `cniVersion` as it is.
fn choose_version(view: &View) -> Result<Version, CniError> {
    let single = view.string("cniVersion")?.unwrap_or_default();
    let Some(offered) = view.strings("cniVersions")? else {
        return Version::parse(single);
    };
    let mut best = None;
    let candidates = offered.iter().copied().enumerate().map(|(i, text)| (format!("cniVersions[{i}]"), text));
    let alone = (!single.is_empty()).then(|| ("cniVersion".to_owned(), single));
    for (key, text) in candidates.chain(alone) {
        let Some(numbers) = version_numbers(text) else {
            return Err(ConfigError::new(key, format!("must be a version such as 1.0.0, not {}", shown(text))).into());
        };
        if numbers > version_numbers(Version::LATEST.as_str()).unwrap_or_default() {
            continue;
        }
        let [major, minor, patch] = numbers;
        best = best.max(Some(Version::parse(&format!("{major}.{minor}.{patch}")).map_err(|error| error.context(key))?));
    }
    best.map_or_else(|| Version::parse(single), Ok)
}

/// Up to three numbers between dots; those left out are zero, and nothing at all is 0.1.0 (libcni).
fn version_numbers(text: &str) -> Option<[u32; 3]> {
    if text.is_empty() {
        return Some([0, 1, 0]);
    }
    let mut numbers = [0; 3];
    let mut parts = text.split('.');
    for number in &mut numbers {
        let Some(part) = parts.next() else { break };
        *number = Some(part).filter(|part| part.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

fn conf_files(folder: &Path) -> Result<Vec<std::path::PathBuf>, CniError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error(folder, &error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| io_error(folder, &error))?.path();
        if path.extension().is_some_and(|extension| extension == "conf") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn io_error(path: &Path, error: &std::io::Error) -> CniError {
    CniError::new(code::IO, format!("cannot read {}: {error}", path.display()))
}

/// What a document is, without its contents: they may be anything, and secret.
fn shape(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn conf(value: Value) -> NetConf {
        NetConf::parse(value.to_string().as_bytes()).unwrap()
    }

    fn list(value: Value) -> Result<ConfList, CniError> {
        ConfList::parse(value.to_string().as_bytes())
    }

    /// The first of the recorded calls.
    fn recorded(text: &str) -> NetConf {
        let first = serde_json::Deserializer::from_str(text).into_iter::<Value>().next();
        conf(first.unwrap().unwrap()["stdin"].clone())
    }

    #[test]
    fn known_keys_match_in_any_case_and_the_last_duplicate_wins() {
        let conf =
            NetConf::parse(br#"{"name":"a","TYPE":"bridge","CniVersion":"0.4.0","name":"b","NAME":null}"#).unwrap();
        assert_eq!(conf.name().unwrap().as_str(), "b");
        assert_eq!(conf.plugin_type().unwrap(), "bridge");
        assert_eq!(conf.version().unwrap(), Version::V0_4_0);
        assert_eq!(NetConf::default().version().unwrap(), Version::V0_1_0);
    }

    #[test]
    fn what_is_not_an_object_is_code_6_with_a_position_and_without_the_text() {
        for (bytes, expected) in [
            (&b"{\"password\": \"hunter2\",}"[..], "line 1 column 24"),
            (b"", "line 1 column 0"),
            (b"{\"a\": 1} {}", "line 1 column 10"),
            (b"\"hunter2\"", "not a string"),
            (b"[\"hunter2\"]", "not a list"),
            (b"null", "not null"),
            (b"{\"a\": \"\xff\"}", "line 1"),
            (b"{\"n\": 1e999}", "line 1"),
        ] {
            let error = NetConf::parse(bytes).unwrap_err();
            assert_eq!(error.code, code::DECODE);
            assert!(error.msg.contains(expected) && !error.msg.contains("hunter2"), "{error}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(NetConf::parse(format!("{{\"a\":{deep}").as_bytes()).unwrap_err().code, code::DECODE);
    }

    #[test]
    fn names_and_types_that_break_the_rules_are_code_7() {
        for value in [json!({}), json!({"name": ""}), json!({"name": "a/b"}), json!({"name": null}), json!({"name": 1})]
        {
            assert_eq!(conf(value).name().unwrap_err().code, code::CONFIG);
        }
        for bad in [
            json!({}),
            json!({"type": ""}),
            json!({"type": "../sh"}),
            json!({"type": "/bin/sh"}),
            json!({"type": ".."}),
            json!({"type": "a\u{0}"}),
            json!({"type": 1}),
        ] {
            assert_eq!(conf(bad.clone()).plugin_type().unwrap_err().code, code::CONFIG, "{bad}");
        }
    }

    #[test]
    fn inserting_keeps_the_place_and_leaves_one_spelling() {
        let mut conf = conf(json!({"a": 1, "RuntimeConfig": {"x": 1}, "b": 2, "runtimeconfig": 3}));
        conf.insert("runtimeConfig", json!({"y": 2}));
        conf.insert("new", 4);
        conf.remove("A");
        assert_eq!(String::from_utf8(conf.to_bytes()).unwrap(), r#"{"runtimeConfig":{"y":2},"b":2,"new":4}"#);
    }

    #[test]
    fn what_containerd_sends_is_understood() {
        let add = recorded(include_str!("../../testdata/runtime/containerd-1.6-ADD.json"));
        assert_eq!(add.name().unwrap().as_str(), "musubi-network");
        assert_eq!(add.version().unwrap(), Version::V1_0_0);
        assert!(
            add.has_capability("portMappings")
                && add.has_capability("io.kubernetes.cri.pod-annotations")
                && !add.has_capability("ipRanges")
        );
        assert_eq!(add.prev_result().unwrap(), None);
        let runtime = add.view().object("runtimeConfig").unwrap().unwrap();
        let port = &runtime.objects("portMappings").unwrap()[0];
        assert_eq!(
            (port.uint("hostPort", 1..=65535).unwrap(), port.text("protocol").unwrap(), port.ip("hostIP").unwrap()),
            (Some(8088), Some("tcp"), None)
        );
        assert_eq!(
            runtime.object("bandwidth").unwrap().unwrap().uint("ingressBurst", 0..=u64::MAX).unwrap(),
            Some(4_294_967_295)
        );
        assert_eq!(runtime.object("dns").unwrap().unwrap().strings("searches").unwrap(), None);

        let del = recorded(include_str!("../../testdata/runtime/containerd-1.6-DEL.json"));
        let prev = del.prev_result().unwrap().unwrap();
        assert_eq!((prev.ips[0].interface, prev.ips[0].address.to_string().as_str()), (Some(1), "10.88.0.9/16"));
    }

    #[test]
    fn prev_result_is_read_as_the_configurations_version_and_errors_say_where() {
        let old = conf(json!({"cniVersion": "0.2.0", "prevResult": {"ip4": {"ip": "10.0.0.2/24"}}}));
        assert_eq!(old.prev_result().unwrap().unwrap().ips.len(), 1);
        let bad = conf(json!({"cniVersion": "1.0.0", "prevResult": {"ips": [{"address": "x"}]}}));
        assert!(bad.prev_result().unwrap_err().msg.starts_with("prevResult: result: ips[0].address: "));
        assert_eq!(conf(json!({"prevResult": null})).prev_result().unwrap(), None);
    }

    #[test]
    fn valid_attachments_absent_is_not_empty() {
        let one = ValidAttachment { container_id: "c1".into(), interface: "eth0".into() };
        let wire = json!([{"containerID": "c1", "ifname": "eth0"}]);
        for (value, expected) in [
            (json!({}), None),
            (json!({"cni.dev/valid-attachments": null}), None),
            (json!({"cni.dev/valid-attachments": []}), Some(vec![])),
            (json!({"cni.dev/valid-attachments": wire}), Some(vec![one.clone()])),
            (json!({"cni.dev/attachments": wire}), Some(vec![one.clone()])),
            (json!({"cni.dev/attachments": wire, "cni.dev/valid-attachments": []}), Some(vec![])),
        ] {
            assert_eq!(conf(value.clone()).valid_attachments().unwrap(), expected, "{value}");
        }
        for bad in [json!({}), json!([null]), json!([{"ifname": "eth0"}]), json!([{"containerID": "c", "ifname": ""}])]
        {
            let error = conf(json!({"cni.dev/valid-attachments": bad})).valid_attachments().unwrap_err();
            assert!(error.code == code::CONFIG && error.msg.starts_with("cni.dev/valid-attachments"), "{error}");
        }
        let mut both = NetConf::default();
        both.set_valid_attachments(std::slice::from_ref(&one));
        assert_eq!(both.0.keys().collect::<Vec<_>>(), ["cni.dev/valid-attachments", "cni.dev/attachments"]);
        assert_eq!(both.valid_attachments().unwrap(), Some(vec![one.clone()]));
        assert!(one.is(&ContainerId::parse("c1").unwrap(), &InterfaceName::parse("eth0").unwrap()));
        assert!(!one.is(&ContainerId::parse("c1").unwrap(), &InterfaceName::parse("eth1").unwrap()));
    }

    #[test]
    fn a_single_configuration_becomes_a_list_of_one() {
        let single = list(json!({"name": "n", "cniVersion": "0.3.1", "type": "bridge", "x": 1})).unwrap();
        assert!(!single.is_list);
        assert_eq!((single.plugins.len(), single.version), (1, Version::V0_3_1));
        let request = single.request(0, None, &Map::new()).unwrap();
        assert_eq!(Value::Object(request.0).to_string(), r#"{"name":"n","cniVersion":"0.3.1","type":"bridge","x":1}"#);
        let nameless = list(json!({"type": "bridge"})).unwrap();
        assert_eq!(nameless.name, None);
        assert_eq!(nameless.request(0, None, &Map::new()).unwrap_err().code, code::CONFIG);
        assert_eq!(nameless.request(1, None, &Map::new()).unwrap_err().code, code::CONFIG);
    }

    #[test]
    fn faulty_lists_are_refused_with_the_key() {
        let cases = [
            (json!({}), 7, "plugins: is missing"),
            (json!({"name": "n", "plugins": null}), 7, "plugins: is missing"),
            (json!({"plugins": []}), 7, "plugins: must hold at least one"),
            (json!({"plugins": {}}), 7, "plugins: must be a list, not an object"),
            (json!({"plugins": "x"}), 7, "plugins: must be a list"),
            (json!({"plugins": [null]}), 7, "plugins[0]: must be an object, not null"),
            (json!({"plugins": [{"type": "a"}, 1]}), 7, "plugins[1]: must be an object, not 1"),
            (json!({"plugins": [{}]}), 7, "plugins[0].type: is missing"),
            (
                json!({"plugins": [{"type": "a"}, {"type": "a/b"}]}),
                7,
                "plugins[1].type: must name a plugin, without `/`",
            ),
            (json!({"type": "../x"}), 7, "type: must name"),
            (json!({"type": 1}), 7, "type: must be a string"),
            (json!({"name": "a b", "type": "x"}), 7, "name: "),
            (json!({"name": 3, "type": "x"}), 7, "name: must be a string"),
            (json!({"type": "x", "capabilities": []}), 7, "capabilities: must be an object"),
            (
                json!({"plugins": [{"type": "x", "capabilities": {"ips": "yes"}}]}),
                7,
                "plugins[0].capabilities.ips: must be true or false",
            ),
            (json!({"type": "x", "disableCheck": "maybe"}), 7, "disableCheck: must be true or false"),
            (json!({"type": "x", "disableGC": 1}), 7, "disableGC: "),
            (json!({"type": "x", "loadOnlyInlinedPlugins": []}), 7, "loadOnlyInlinedPlugins: "),
            (json!({"type": "x", "cniVersion": "1.2.0"}), 1, "cniVersion \"1.2.0\" is not served"),
            (json!({"type": "x", "cniVersion": 1}), 7, "cniVersion: must be a string"),
        ];
        for (input, code, expected) in cases {
            let error = list(input.clone()).unwrap_err();
            assert!(error.code == code && error.msg.starts_with(expected), "{input}: {} {error}", error.code);
        }
    }

    #[test]
    fn switches_are_booleans_or_their_words() {
        for (value, expected) in [
            (json!(true), true),
            (json!("true"), true),
            (json!("True"), true),
            (json!(false), false),
            (json!("FALSE"), false),
            (json!(null), false),
        ] {
            let read = list(json!({"plugins": [{"type": "x"}], "disableCheck": value, "DisableGC": value, "loadOnlyInlinedPlugins": value})).unwrap();
            assert_eq!((read.disable_check, read.disable_gc, read.load_only_inlined), (expected, expected, expected));
        }
    }

    #[test]
    fn the_highest_version_both_sides_know_is_chosen() {
        let chosen = |versions: Value, single: Value| {
            list(json!({"type": "x", "cniVersions": versions, "cniVersion": single})).map(|list| list.version)
        };
        for (versions, single, expected) in [
            (json!(["0.4.0", "1.1.0", "1.0.0"]), json!(null), Version::V1_1_0),
            (json!(["0.3.1", "0.4.0"]), json!("1.0.0"), Version::V1_0_0),
            (json!(["1.0.0"]), json!("0.4.0"), Version::V1_0_0),
            (json!(["1.0.0", "1.2.0", "9.9.9"]), json!(null), Version::V1_0_0),
            (json!(["0.4.0"]), json!("7.0.0"), Version::V0_4_0),
            (json!([]), json!("0.4.0"), Version::V0_4_0),
            (json!([]), json!(null), Version::V0_1_0),
            (json!(["2.0.0"]), json!("1.0.0"), Version::V1_0_0),
            (json!(["1.1"]), json!(null), Version::V1_1_0),
            (json!(null), json!("0.4.0"), Version::V0_4_0),
        ] {
            assert_eq!(chosen(versions.clone(), single).unwrap(), expected, "{versions}");
        }
        for (versions, single, code, expected) in [
            (json!(["x"]), json!(null), 7, "cniVersions[0]: must be a version"),
            (json!(["1.0.0", "1.-1"]), json!(null), 7, "cniVersions[1]"),
            (json!(["1.0.0.0"]), json!(null), 7, "cniVersions[0]"),
            (json!(["1.0.0"]), json!("new"), 7, "cniVersion: must be a version"),
            (json!([1]), json!(null), 7, "cniVersions[0]: must be a string"),
            (json!("1.0.0"), json!(null), 7, "cniVersions: must be a list"),
            (json!(["0.3.9"]), json!(null), 1, "cniVersions[0]: cniVersion \"0.3.9\" is not served"),
            (json!(["2.0.0"]), json!("2.0.0"), 1, "cniVersion \"2.0.0\""),
        ] {
            let error = chosen(versions.clone(), single).unwrap_err();
            assert!(error.code == code && error.msg.starts_with(expected), "{versions}: {error}");
        }
    }

    #[test]
    fn plugins_of_the_networks_folder_follow_unless_only_inlined_ones_are_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("net");
        fs::create_dir_all(own.join("sub.conf")).unwrap();
        fs::write(own.join("20-b.conf"), r#"{"type":"b"}"#).unwrap();
        fs::write(own.join("10-a.conf"), r#"{"type":"a"}"#).unwrap();
        fs::write(own.join("30-c.json"), "not read").unwrap();
        let types = |value: Value| {
            let list = ConfList::parse_in_folder(value.to_string().as_bytes(), folder.path())?;
            Ok::<_, CniError>(
                list.plugins.iter().map(|plugin| plugin.plugin_type().unwrap().to_owned()).collect::<Vec<_>>(),
            )
        };
        let inline = json!([{"type": "x"}]);
        assert_eq!(types(json!({"name": "net", "plugins": inline})).unwrap(), ["x", "a", "b"]);
        assert_eq!(types(json!({"name": "net"})).unwrap(), ["a", "b"]);
        assert_eq!(types(json!({"name": "net", "plugins": inline, "loadOnlyInlinedPlugins": true})).unwrap(), ["x"]);
        assert_eq!(types(json!({"name": "net", "loadOnlyInlinedPlugins": true})).unwrap_err().code, code::CONFIG);
        assert_eq!(types(json!({"name": "net", "plugins": []})).unwrap_err().code, code::CONFIG);
        assert_eq!(types(json!({"name": "other", "plugins": inline})).unwrap(), ["x"]);
        assert_eq!(types(json!({"name": "other"})).unwrap_err().code, code::CONFIG);
        assert_eq!(types(json!({"name": "net", "type": "single"})).unwrap(), ["single"]);

        fs::write(own.join("40-d.conf"), "{}").unwrap();
        let error = types(json!({"name": "net"})).unwrap_err();
        assert!(error.msg.ends_with("net/40-d.conf: type: is missing; must name a plugin"), "{error}");
    }

    #[test]
    fn a_request_keeps_order_and_unknown_keys_and_gets_what_it_declared() {
        let text = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"zeta":[1,2.5,18446744073709551615,-1],"CNIVersion":"0.1.0","type":"bridge","capabilities":{"ips":true,"mac":false},"alpha":{"b":null,"a":"ä"},"name":"old"}]}"#;
        let list = ConfList::parse(text.as_bytes()).unwrap();
        let Value::Object(runtime) = json!({"ips": ["10.0.0.5/24"], "mac": "02:00:00:00:00:05", "portMappings": []})
        else {
            unreachable!()
        };
        let prev = CniResult::default();
        let sent = String::from_utf8(list.request(0, Some(&prev), &runtime).unwrap().to_bytes()).unwrap();
        assert_eq!(
            sent,
            r#"{"zeta":[1,2.5,18446744073709551615,-1],"cniVersion":"1.0.0","type":"bridge","capabilities":{"ips":true,"mac":false},"alpha":{"b":null,"a":"ä"},"name":"net","prevResult":{"cniVersion":"1.0.0"},"runtimeConfig":{"ips":["10.0.0.5/24"]}}"#
        );
    }

    #[test]
    fn runtime_config_is_absent_when_nothing_is_wanted_and_what_the_definition_wrote_stays() {
        let Value::Object(runtime) = json!({"mac": "02:00:00:00:00:05"}) else { unreachable!() };
        let request = |plugin: Value| {
            list(json!({"name": "n", "plugins": [plugin]})).unwrap().request(0, None, &runtime).unwrap()
        };
        assert_eq!(request(json!({"type": "x"})).get("runtimeConfig"), None);
        assert_eq!(request(json!({"type": "x", "capabilities": {"ips": true}})).get("runtimeConfig"), None);
        let written = json!({"ips": ["10.0.0.1/8"]});
        assert_eq!(request(json!({"type": "x", "runtimeConfig": written})).get("runtimeConfig"), Some(&written));
        let replaced = request(json!({"type": "x", "RuntimeConfig": written, "capabilities": {"mac": true}}));
        assert_eq!(replaced.get("runtimeConfig"), Some(&json!({"mac": "02:00:00:00:00:05"})));
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((".{0,4}", inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn unknown_keys_and_their_order_reach_the_plugin(keys in prop::collection::vec(("x-[a-zA-Z]{1,6}", json_value()), 0..8), at in 0..8usize) {
            let unknown: Map<_, _> = keys.into_iter().collect();
            let mut pairs: Vec<_> = unknown.clone().into_iter().collect();
            pairs.insert(at.min(pairs.len()), ("type".into(), "x".into()));
            let plugin: Map<String, Value> = pairs.into_iter().collect();
            let list = list(json!({"name": "n", "cniVersion": "1.1.0", "plugins": [plugin]})).unwrap();
            let sent = NetConf::parse(&list.request(0, None, &Map::new()).unwrap().to_bytes()).unwrap();
            let kept: Vec<_> = sent.0.into_iter().filter(|(key, _)| key.starts_with("x-")).collect();
            prop_assert_eq!(kept, unknown.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn nothing_panics_on_any_json(value in json_value(), key in prop::sample::select(vec!["plugins", "type", "name", "cniVersion", "cniVersions", "capabilities", "prevResult", "cni.dev/attachments"])) {
            let Value::Object(mut map) = json!({"name": "n", "type": "x"}) else { unreachable!() };
            map.insert(key.to_owned(), value);
            let conf = NetConf(map.clone());
            let _ = (conf.name(), conf.plugin_type(), conf.version(), conf.prev_result(), conf.valid_attachments(), conf.capabilities().count());
            let _ = ConfList::from_map(map).map(|list| list.request(0, None, &Map::new()));
        }
    }
}

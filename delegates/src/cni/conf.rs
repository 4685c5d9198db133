//! Network configurations: one plugin's, and lists of them. They stay raw JSON, so that what this code does not know
//! reaches the plugin as it was written; what a delegate wants to know it reads through a [`View`].

use std::path::Path;

use serde_json::{Map, Value};

use super::error::{CniError, ConfigError, code};
use super::names::{ContainerId, InterfaceName, NetworkName, shown};
use super::result::CniResult;
use super::version::Version;
use super::view::{View, find, kind};

/// One plugin's configuration, whole, in the order it was written. Known keys match whatever their case, the last
/// duplicate wins and `null` is absent, as for Go's plugins.
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

    /// Sets `key`, in the place of the first that matches whatever its case; others that match go. A new key is appended.
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

    /// The plugin's `type`. Code 7 when it is missing, or could name a file outside the plugin folders.
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

    /// The capabilities the plugin declares as true (CNI 1.1 §Deriving runtimeConfig). Their names keep their case.
    pub fn capabilities(&self) -> impl Iterator<Item = &str> {
        let declared = self.get("capabilities").and_then(Value::as_object);
        declared.into_iter().flatten().filter(|(_, on)| **on == Value::Bool(true)).map(|(name, _)| name.as_str())
    }

    /// Whether the plugin declares `capability` as true.
    pub fn has_capability(&self, capability: &str) -> bool {
        self.capabilities().any(|declared| declared == capability)
    }

    /// The attachments that GC is told are still valid. `None` when nothing is said (then nothing may be freed), which an empty
    /// list is not: that says that none is valid.
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
        Value::Object(self.0.clone()).to_string().into_bytes()
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
    /// Reads a list, or the configuration of one plugin as a list of one. Code 6 for what is not JSON, 7 for what is
    /// wrong in it, 1 for a version that is not served. A list without plugins is an error.
    pub fn parse(bytes: &[u8]) -> Result<Self, CniError> {
        Self::from_map(NetConf::parse(bytes)?.0)
    }

    /// As [`ConfList::parse`], for what is parsed already.
    pub fn from_map(map: Map<String, Value>) -> Result<Self, CniError> {
        Self::read(map)?.with_plugins()
    }

    /// As [`ConfList::parse`], for a file of `confdir`: plugins from its folder of the network's name are appended.
    pub fn parse_in_folder(bytes: &[u8], confdir: &Path) -> Result<Self, CniError> {
        let mut list = Self::read(NetConf::parse(bytes)?.0)?;
        list.append_folder(confdir)?;
        list.with_plugins()
    }

    /// Appends the plugins of `<confdir>/<name>/*.conf` in the order of their names, unless `loadOnlyInlinedPlugins` is set, the
    /// network has no name, or it is no list. A missing folder holds none.
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

    /// The configuration that plugin number `plugin` is sent: name, version, the result of the plugin before it, and of `runtime_config`
    /// what it declares a capability for (CNI 1.1 §Derivation). Its own keys keep their places. With nothing to
    /// inject, a `prevResult` or `runtimeConfig` that the definition wrote itself stays.
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

/// The highest of `cniVersions` and `cniVersion` that is not newer than ours; without `cniVersions`, `cniVersion` as it is.
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

//! Which configuration is the primary network's: the one that is named, or the first of its folder that is valid and
//! neither ours nor a leftover of Multus. What is made of it is `runtime_conf.rs`'s business.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use musubi_delegates::cni::{CniError, ConfList, ConfigError, code};
use serde_json::Value;

use super::config::AgentConfig;
use crate::config::OUR_TYPE;

/// The primary network's configuration.
#[derive(Debug, Clone)]
pub struct Primary {
    /// Its file.
    pub path: PathBuf,
    /// What is in it.
    pub list: ConfList,
}

/// The outcome of a search.
#[derive(Debug)]
pub(super) struct Choice {
    /// The primary; `None` where none is needed; or why there is none.
    pub(super) outcome: Result<Option<Primary>, String>,
    /// What was passed over although somebody may have meant it.
    pub(super) warnings: Vec<String>,
}

/// Looks for the primary network's file. `current` is the one in use: it stays so while it is there, even if it cannot be
/// read at this moment, until one that comes before it turns up.
pub(super) fn choose(agent: &AgentConfig, current: Option<&Path>) -> Choice {
    let mut warnings = Vec::new();
    let outcome = match pinned(agent) {
        Pinned::Nothing => first_valid(&agent.autoconfig_dir, current, &mut warnings).map(Some),
        Pinned::File(path) => match read(&path) {
            Ok(list) => Ok(Some(Primary { path, list })),
            Err(error) => Err(format!("the primary network's {}: {}{}", path.display(), error.msg, moved(&path))),
        },
        Pinned::Otherwise => Ok(None),
    };
    Choice { outcome, warnings }
}

/// What the configuration says about the default network.
enum Pinned {
    Nothing,
    File(PathBuf),
    /// By a name, a folder, in line, or in a configuration that is ready.
    Otherwise,
}

fn pinned(agent: &AgentConfig) -> Pinned {
    if agent.ready_configuration.is_some() {
        return Pinned::Otherwise;
    }
    match agent.plugin_text("clusterNetwork") {
        Some(path) if path.contains('/') && !Path::new(path).is_dir() => return Pinned::File(PathBuf::from(path)),
        Some(_) => return Pinned::Otherwise,
        None => {}
    }
    match &agent.master {
        Some(name) => Pinned::File(agent.autoconfig_dir.join(name)),
        None if agent.plugin_key("delegates").and_then(Value::as_array).is_some_and(|list| !list.is_empty()) => {
            Pinned::Otherwise
        }
        None => Pinned::Nothing,
    }
}

fn first_valid(folder: &Path, current: Option<&Path>, warnings: &mut Vec<String>) -> Result<Primary, String> {
    let names = configuration_names(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut problems = Vec::new();
    for name in names {
        let path = folder.join(&name);
        if name.starts_with("00-multus") {
            warnings.push(format!("{name} is passed over: it is Multus'; remove it when Multus is gone"));
            continue;
        }
        match read(&path) {
            Ok(list) if is_of(&list, &[OUR_TYPE]) || is_loopback(&list) => {}
            Ok(list) if is_of(&list, &["multus", "multus-shim"]) => {
                warnings.push(format!("{name} is passed over: its plugin is Multus"));
            }
            Ok(list) => {
                warnings.append(&mut problems);
                return Ok(Primary { path, list });
            }
            // It is being written, or broken: another network than the one the pods have would be worse.
            Err(error) if current == Some(&path) => {
                return Err(format!("the primary network's {}: {}", path.display(), error.msg));
            }
            Err(error) => problems.push(format!("{name} is passed over: {}", error.msg)),
        }
    }
    let mut reason = format!("no configuration of a primary network in {}", folder.display());
    for problem in &problems {
        reason.push_str(&format!("; {problem}"));
    }
    reason.push_str(&current.map(moved).unwrap_or_default());
    warnings.append(&mut problems);
    Err(reason)
}

/// A configuration as libcni would take it: with a name, and the plugins from the folder of that name.
fn read(path: &Path) -> Result<ConfList, CniError> {
    let bytes = fs::read(path).map_err(|e| CniError::new(code::IO, e.to_string()))?;
    let list = ConfList::parse_in_folder(&bytes, path.parent().unwrap_or(Path::new("/")))?;
    if list.name.is_none() {
        return Err(ConfigError::new("name", "is missing; the network needs one").into());
    }
    Ok(list)
}

fn is_of(list: &ConfList, types: &[&str]) -> bool {
    list.plugins.iter().any(|plugin| plugin.plugin_type().is_ok_and(|t| types.contains(&t)))
}

/// Runtimes' packages bring one along; it is no pod network.
fn is_loopback(list: &ConfList) -> bool {
    list.plugins.iter().all(|plugin| plugin.plugin_type().is_ok_and(|t| t == "loopback"))
}

/// Names of the files that a runtime would look at, in its order.
pub(super) fn configuration_names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(folder)?
        .flatten()
        .filter(|entry| entry.path().is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            let extension = Path::new(name).extension().and_then(|e| e.to_str());
            extension.is_some_and(|e| ["conf", "conflist", "json"].contains(&e))
        })
        .collect();
    names.sort();
    Ok(names)
}

/// What a file of this name is called since somebody appended to its name.
pub(super) fn renamed(folder: &Path, name: &str) -> Option<String> {
    let prefix = format!("{name}.");
    let names = fs::read_dir(folder).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|other| other.starts_with(&prefix)).min()
}

/// Where a file went, for the end of a sentence.
fn moved(path: &Path) -> String {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return String::new();
    };
    match renamed(folder, name).filter(|_| !path.exists()) {
        Some(other) => format!("; {name} was renamed to {other}"),
        None => String::new(),
    }
}

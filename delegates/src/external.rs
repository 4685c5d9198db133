//! External delegates: any CNI plugin, found in the plugin folders and run as a process of its own. Everything about
//! processes is here (time limit, group, pipes, errors); which plugin runs with which configuration is decided elsewhere.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use crate::cni::{CniArgs, CniError, Command, ContainerId, InterfaceName, code};

/// One call of an external plugin.
pub struct ExecRequest<'a> {
    /// The program, as [`find`] returned it.
    pub plugin: &'a Path,
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`.
    pub container_id: Option<&'a ContainerId>,
    /// `CNI_NETNS`; none is sent as an empty one, which tells DEL that the namespace is gone.
    pub netns: Option<&'a Path>,
    /// `CNI_IFNAME`.
    pub interface: Option<&'a InterfaceName>,
    /// `CNI_ARGS`.
    pub args: &'a CniArgs,
    /// `CNI_PATH`.
    pub path: &'a [PathBuf],
    /// The configuration.
    pub stdin: &'a [u8],
    /// When the plugin and all it started are killed.
    pub deadline: Instant,
    /// Further variables, set last.
    pub extra_env: &'a [(String, String)],
    /// A descriptor the plugin inherits: a lock that must outlive this process while the plugin runs.
    pub inherit: Option<BorrowedFd<'a>>,
    /// Called with the process id once the plugin runs.
    pub on_spawn: Option<&'a mut dyn FnMut(u32)>,
}

/// The plugin's program: the first executable file named `plugin_type` in the folders of `path`. Code 7 when there is none.
pub fn find(plugin_type: &str, path: &[PathBuf]) -> Result<PathBuf, CniError> {
    let _ = path;
    Err(CniError::new(code::CONFIG, format!("plugin {plugin_type:?} is not there")))
}

/// Runs the plugin and returns what it printed.
pub fn exec(request: ExecRequest<'_>) -> Result<Option<Value>, CniError> {
    let _ = request;
    Err(CniError::new(code::DELEGATE, "not run"))
}

//! The runtime's part: this very program called as a CNI plugin, on a node, for a pod, over environment and stdin.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use super::lab::{Node, Pod, inside};

/// The interface of the default network.
const DEFAULT_INTERFACE: &str = "eth0";

/// Calls the plugin for a pod.
///
/// # Errors
/// The plugin's own error, or it could not be run.
pub(super) fn call(command: &str, node: &Node, pod: &Pod) -> anyhow::Result<()> {
    let what = || format!("{command} of {} on {}", pod.name, node.name);
    let output = inside(&node.namespace, || {
        // A child starts in the namespace of the thread that starts it.
        let mut child = Command::new("/proc/self/exe")
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pod.container_id)
            .env("CNI_NETNS", &pod.namespace)
            .env("CNI_IFNAME", DEFAULT_INTERFACE)
            .env("CNI_PATH", &node.folder)
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", pod.name))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(node.configuration.to_string().as_bytes())?;
        }
        Ok(child.wait_with_output()?)
    });
    let output = output.with_context(what)?;
    if output.status.success() {
        return Ok(());
    }
    let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let details = error["details"].as_str().map(|details| format!(" ({details})")).unwrap_or_default();
    match error["msg"].as_str() {
        Some(message) => bail!("{}: {message}{details}", what()),
        None => bail!("{}: {}; {}", what(), output.status, String::from_utf8_lossy(&output.stderr).trim()),
    }
}

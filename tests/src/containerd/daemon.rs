//! containerd's process and what it is told. Where root is root of a user namespace alone, its pods go without control
//! groups, which are not ours to make there; everything else is as on a node.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{image, machine::Machine};
use crate::process::Process;

const RUNC: &str = "runc/usr/sbin/runc";

/// `runc` where the user namespace has one group: a terminal cannot belong to the group 5 then, as containerd has it.
const RUNC_WITH_ONE_GROUP: &str = r#"#!/bin/sh
for argument; do
    [ "${previous:-}" != --bundle ] || sed -i 's/,"gid=5"//' "$argument/config.json"
    previous=$argument
done
exec RUNC "$@"
"#;

/// Starts it on a machine, with these variables for the plugins it calls.
///
/// # Panics
/// When `tests/setup.sh` has not fetched it.
#[must_use]
pub fn start(folder: &Path, env: &[(String, String)], machine: &Machine) -> Process {
    let log = || File::options().create(true).append(true).open(log_file(folder)).expect("a log");
    let containerd = program("containerd/usr/bin/containerd");
    let tools = containerd.parent().expect("its folder").display();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut daemon = Command::new(&containerd);
    daemon.arg("--config").arg(folder.join("containerd.toml"));
    // It looks for the program that stays with each pod, its shim, where programs are.
    daemon.env("PATH", format!("{tools}:{path}")).envs(env.iter().cloned());
    daemon.stdin(Stdio::null()).stdout(log()).stderr(log());
    Process::of(machine.spawn(daemon), log_file(folder))
}

/// A program of those that `tests/setup.sh` unpacks.
///
/// # Panics
/// When it has not.
#[must_use]
pub fn program(path: &str) -> PathBuf {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debian")).join(path);
    file.canonicalize().unwrap_or_else(|e| panic!("{}: {e}; run tests/setup.sh", file.display()))
}

/// Where it listens.
#[must_use]
pub fn socket(folder: &Path) -> PathBuf {
    folder.join("containerd.sock")
}

/// Where it logs.
#[must_use]
pub fn log_file(folder: &Path) -> PathBuf {
    folder.join("containerd.log")
}

/// Writes its configuration. The native snapshotter works on every file system; neither AppArmor nor a lower
/// `oom_score_adj` is everywhere ours to set.
///
/// # Panics
/// When it cannot.
pub fn configure(folder: &Path) {
    if !is_root() {
        wrap_runc(folder);
    }
    let text = format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.tracing"]

[grpc]
address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
restrict_oom_score_adj = true
disable_apparmor = true
disable_cgroup = {disable_cgroup}

[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{folder}/net.d"
bin_dir = "{folder}/bin"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
"#,
        socket = socket(folder).display(),
        image = image::NAME,
        disable_cgroup = !is_root(),
        folder = folder.display(),
        runc = runc(folder).display(),
    );
    fs::write(folder.join("containerd.toml"), text).expect("a configuration");
}

/// The program that starts containers: the real one, or a wrapper.
#[must_use]
pub fn runc(folder: &Path) -> PathBuf {
    if is_root() { program(RUNC) } else { folder.join("runc") }
}

fn wrap_runc(folder: &Path) {
    let wrapper = runc(folder);
    fs::write(&wrapper, RUNC_WITH_ONE_GROUP.replace("RUNC", &program(RUNC).display().to_string())).expect("a script");
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("a script that can be run");
}

/// Whether root is root of the machine: a user namespace maps fewer users.
fn is_root() -> bool {
    let mapped = fs::read_to_string("/proc/self/uid_map").expect("procfs");
    mapped.split_whitespace().eq(["0", "0", "4294967295"])
}

//! A real runtime that calls our plugin: Debian's containerd and runc, unpacked by `tests/setup.sh`, in namespaces and
//! folders of the test's own. Pods are run as the kubelet runs them, by CRI. Who writes the runtime's CNI configuration,
//! and where pods and definitions come from, is the test's business.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use musubi_delegates::netns::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::netns::Netns;
use crate::node::{Node, musubi};
use cgroup::Cgroup;
use cri::Cri;
use machine::Machine;

mod cgroup;
pub mod cluster;
pub mod cri;
mod image;
mod machine;

const DEBIAN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debian");
/// How long a start may take.
const ENOUGH: Duration = Duration::from_secs(20);

/// A runtime on a node. With it go its pods, its namespaces and its control groups.
#[derive(Debug)]
pub struct Containerd {
    /// The kubelet's connection.
    pub cri: Cri,
    daemon: Daemon,
    machine: Machine,
    cgroup: Cgroup,
    folder: PathBuf,
    env: Vec<(String, String)>,
}

/// The process, killed with its value.
#[derive(Debug)]
struct Daemon(Child);

impl Daemon {
    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

impl Containerd {
    /// Starts one on a node: plugins run in the node's namespace, and all that is kept is below its folder. The folder of
    /// CNI configurations is empty; plugins are ours (`musubi`, `loopback`) and what the test adds to `bin`.
    ///
    /// # Panics
    /// When it cannot run here: it takes root's rights and what `tests/setup.sh` fetches.
    #[must_use]
    pub fn start(node: &Node) -> Self {
        assert!(
            is_root(),
            "containerd takes root's rights, not those in a user namespace: leave its tests out by `--skip containerd`"
        );
        for folder in ["bin", "net.d"] {
            fs::create_dir_all(node.folder().join(folder)).expect("a folder");
        }
        for plugin in ["musubi", "loopback"] {
            std::os::unix::fs::symlink(musubi(), node.folder().join("bin").join(plugin)).expect("a plugin");
        }
        fs::write(node.folder().join("containerd.toml"), configuration(node.folder())).expect("a configuration");
        let started = Self::boot(node);
        started.import_image();
        started
    }

    fn boot(node: &Node) -> Self {
        let (folder, env) = (node.folder().to_owned(), node.env.clone());
        let cgroup = Cgroup::named_after(&folder);
        let machine = Machine::boot(&node.host, &folder);
        let daemon = start_daemon(&folder, &env, &machine);
        let cri = Cri::new(&socket(&folder), &cgroup.path());
        let booted = Self { cri, daemon, machine, cgroup, folder, env };
        booted.wait_until_it_answers();
        booted
    }

    /// Kills the runtime alone. Its pods go on; so does a plugin that it was running, whose answer nobody reads.
    ///
    /// # Panics
    /// When it has ended already.
    pub fn kill(&self) {
        let pid = i32::try_from(self.daemon.0.id()).expect("a process id");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the runtime is killed");
    }

    /// Starts the runtime again after it was killed.
    pub fn restart(&mut self) {
        self.daemon.end();
        self.daemon = start_daemon(&self.folder, &self.env, &self.machine);
        self.wait_until_it_answers();
    }

    /// The machine loses its power and boots: every process, network namespace, link and mount is gone, and `/run` with
    /// them. What is on disk is kept: our state folder, reservations, the runtime's own database.
    #[must_use]
    pub fn reboot(self, node: &mut Node) -> Self {
        drop(self);
        node.host = Netns::new();
        Self::boot(node)
    }

    /// Where the runtime looks for CNI configurations; it notices what is put there.
    #[must_use]
    pub fn conf_dir(&self) -> PathBuf {
        self.folder.join("net.d")
    }

    /// Waits until the runtime has taken up a CNI configuration.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_until_the_network_is_ready(&self) {
        self.until("the network is ready", || self.cri.network_problem().is_ok_and(|problem| problem.is_none()));
    }

    /// The network namespace of a sandbox.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn netns(&self, id: &str) -> Namespace {
        let told = self.cri.status(id).expect("a sandbox");
        let info: Value = serde_json::from_str(&told.info["info"]).expect("JSON");
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().expect("namespaces");
        let network = namespaces.iter().find(|namespace| namespace["type"] == "network").expect("its network");
        let path = self.machine.path(network["path"].as_str().expect("a path"));
        Namespace::open(&path).expect("it can be entered").expect("it is there")
    }

    /// What pods have left on the node that only a runtime makes: network namespaces, its notes of results, control
    /// groups.
    #[must_use]
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let folders = ["/run/netns", "/var/lib/cni/results", "/var/lib/cni/cache/results"];
        let files = |folder: &str| {
            let entries = fs::read_dir(self.machine.path(folder)).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect::<Vec<_>>()
        };
        folders.iter().flat_map(|folder| files(folder)).chain(self.cgroup.pods()).collect()
    }

    /// The runtime's log: each step it takes, each reason why it fails.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(log_file(&self.folder)).unwrap_or_default()
    }

    fn wait_until_it_answers(&self) {
        self.until("containerd answers", || self.cri.version().is_ok());
    }

    fn import_image(&self) {
        let archive = self.folder.join("image.tar");
        fs::write(&archive, image::archive()).expect("an archive");
        let mut import = Command::new(format!("{DEBIAN}/containerd/usr/bin/ctr"));
        import.arg("--address").arg(socket(&self.folder));
        import.args(["--namespace", "k8s.io", "images", "import", "--no-unpack"]).arg(archive);
        import.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let output = self.machine.spawn(import).wait_with_output().expect("its end");
        assert!(output.status.success(), "import the image: {}", String::from_utf8_lossy(&output.stderr));
        self.until("the image is there", || self.cri.has_image(image::NAME).is_ok_and(|has| has));
    }

    fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + ENOUGH;
        while !is_so() {
            assert!(Instant::now() < deadline, "still not so: {what}; containerd says:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether root is root of the machine: a user namespace maps fewer users.
fn is_root() -> bool {
    let mapped = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    mapped.split_whitespace().eq(["0", "0", "4294967295"]) && nix::unistd::geteuid().is_root()
}

fn start_daemon(folder: &Path, env: &[(String, String)], machine: &Machine) -> Daemon {
    let log = || File::options().create(true).append(true).open(log_file(folder)).expect("a log");
    let tools = [&format!("{DEBIAN}/containerd/usr/bin"), &format!("{DEBIAN}/runc/usr/sbin")];
    let tools =
        tools.map(|folder| fs::canonicalize(folder).unwrap_or_else(|e| panic!("{folder}: {e}; run tests/setup.sh")));
    let path = std::env::var("PATH").unwrap_or_default();
    let mut daemon = Command::new(tools[0].join("containerd"));
    daemon.arg("--config").arg(folder.join("containerd.toml"));
    daemon.env("PATH", format!("{}:{}:{path}", tools[0].display(), tools[1].display())).envs(env.iter().cloned());
    daemon.stdin(Stdio::null()).stdout(log()).stderr(log());
    Daemon(machine.spawn(daemon))
}

fn log_file(folder: &Path) -> PathBuf {
    folder.join("containerd.log")
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("containerd.sock")
}

/// What containerd is told: the native snapshotter works on every file system, and neither AppArmor nor a lower
/// `oom_score_adj` is everywhere ours to set.
fn configuration(folder: &Path) -> String {
    let (folder, socket) = (folder.display(), socket(folder).display().to_string());
    format!(
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

[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{folder}/net.d"
bin_dir = "{folder}/bin"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"#,
        image = image::NAME
    )
}

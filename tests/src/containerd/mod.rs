//! A real runtime that calls our plugin: Debian's containerd and runc, unpacked by `tests/setup.sh`, in namespaces and
//! folders of the test's own. Pods are run as the kubelet runs them, by CRI. Who writes the runtime's CNI configuration,
//! and where pods and definitions come from, is the test's business.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use musubi_delegates::netns::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::netns::Netns;
use crate::node::{Node, musubi};
use crate::process::Process;
use cgroup::Cgroup;
use cri::Cri;
use machine::Machine;

mod cgroup;
pub mod cluster;
pub mod cri;
mod daemon;
mod image;
mod machine;

/// Where libcni keeps its notes.
const NOTES: &str = "/var/lib/cni/results";

/// A runtime on a node. With it go its pods, its namespaces and its control groups.
#[derive(Debug)]
pub struct Containerd {
    /// The kubelet's connection.
    pub cri: Cri,
    daemon: Process,
    machine: Machine,
    cgroup: Cgroup,
    folder: PathBuf,
    env: Vec<(String, String)>,
}

impl Containerd {
    /// Starts one on a node: plugins run in the node's namespace, and all that is kept is below its folder. The folder of
    /// CNI configurations is empty; plugins are ours (`musubi`, `loopback`) and what the test adds to `bin`.
    ///
    /// # Panics
    /// When it cannot run here: it takes what `tests/setup.sh` fetches and the rights that `tests/in-namespaces` gets.
    #[must_use]
    pub fn start(node: &Node) -> Self {
        for folder in ["bin", "net.d"] {
            fs::create_dir_all(node.folder().join(folder)).expect("a folder");
        }
        for plugin in ["musubi", "loopback"] {
            std::os::unix::fs::symlink(musubi(), node.folder().join("bin").join(plugin)).expect("a plugin");
        }
        daemon::configure(node.folder());
        let started = Self::boot(node);
        started.import_image();
        started
    }

    fn boot(node: &Node) -> Self {
        let (folder, env) = (node.folder().to_owned(), node.env.clone());
        let cgroup = Cgroup::named_after(&folder);
        let machine = Machine::boot(&node.host, &folder);
        let daemon = daemon::start(&folder, &env, &machine);
        let cri = Cri::new(&daemon::socket(&folder), &cgroup.path());
        let booted = Self { cri, daemon, machine, cgroup, folder, env };
        booted.wait_until_it_answers();
        booted
    }

    /// Kills the runtime alone. Its pods go on; so does a plugin that it was running, whose answer nobody reads.
    ///
    /// # Panics
    /// When it has ended already.
    pub fn kill(&self) {
        let pid = i32::try_from(self.daemon.pid()).expect("a process id");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the runtime is killed");
    }

    /// Starts the runtime again after it was killed.
    pub fn restart(&mut self) {
        self.daemon.end();
        self.drop_torn_notes();
        self.daemon = daemon::start(&self.folder, &self.env, &self.machine);
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

    /// The runtime's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        daemon::socket(&self.folder)
    }

    /// Starts a program of the node's beside the runtime: it sees the paths and processes that plugins see.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(&self, command: Command) -> Child {
        self.machine.spawn(command)
    }

    /// Calls the runtime's own command line, in the containerd namespace of CRI.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn ctr(&self, arguments: &[&str]) -> Output {
        let mut ctr = Command::new(daemon::program("containerd/usr/bin/ctr"));
        ctr.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io"]).args(arguments);
        ctr.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.machine.spawn(ctr).wait_with_output().expect("its end")
    }

    /// The program that starts containers.
    #[must_use]
    pub fn runc(&self) -> PathBuf {
        daemon::runc(&self.folder)
    }

    /// Where the runtime looks for CNI configurations; it notices what is put there.
    #[must_use]
    pub fn conf_dir(&self) -> PathBuf {
        self.folder.join("net.d")
    }

    /// Our file among them.
    #[must_use]
    pub fn conf_file(&self) -> PathBuf {
        self.conf_dir().join("00-musubi.conflist")
    }

    /// Waits until the runtime works with our configuration as it stands there.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_until_our_configuration_is_used(&self) {
        self.until("the runtime uses our configuration", || {
            let wanted = fs::read_to_string(self.conf_file()).unwrap_or_default();
            let used = self.cri.configurations().unwrap_or_default();
            used.contains(&wanted) && self.cri.network_problem().is_ok_and(|problem| problem.is_none())
        });
    }

    /// The network namespace of a sandbox.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn netns(&self, id: &str) -> Namespace {
        let path = self.machine.path(&self.netns_path(id));
        Namespace::open(&path).expect("it can be entered").expect("it is there")
    }

    /// Where the runtime keeps the network namespace of a sandbox: what plugins get as `CNI_NETNS`.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn netns_path(&self, id: &str) -> String {
        let told = self.cri.status(id).expect("a sandbox");
        let info: Value = serde_json::from_str(&told.info["info"]).expect("JSON");
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().expect("namespaces");
        let network = namespaces.iter().find(|namespace| namespace["type"] == "network").expect("its network");
        network["path"].as_str().expect("a path").to_owned()
    }

    /// The runtime's own note of what it sent for a sandbox and what it got back: `result`, `config`, `capabilityArgs`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn note(&self, network: &str, id: &str) -> Value {
        let file = self.machine.path(&format!("{NOTES}/{network}-{id}-eth0"));
        serde_json::from_slice(&fs::read(file).expect("the runtime's note")).expect("JSON")
    }

    /// The runtime writes its notes in place. One that is cut off by its death is a fault of its own: it never again lets
    /// the sandbox be stopped (libcni, "failed to get network cached result") until somebody removes the file.
    fn drop_torn_notes(&self) {
        let notes = fs::read_dir(self.machine.path(NOTES)).into_iter().flatten().flatten();
        for note in notes.map(|entry| entry.path()) {
            let is_torn = fs::read(&note).is_ok_and(|text| serde_json::from_slice::<Value>(&text).is_err());
            if is_torn {
                fs::remove_file(&note).expect("a note to remove");
            }
        }
    }

    /// What pods have left on the node that only a runtime makes: network namespaces, its notes of results, control
    /// groups.
    #[must_use]
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let folders = ["/run/netns", NOTES];
        let files = |folder: &str| {
            let entries = fs::read_dir(self.machine.path(folder)).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).collect::<Vec<_>>()
        };
        folders.iter().flat_map(|folder| files(folder)).chain(self.cgroup.pods()).collect()
    }

    /// The runtime's log: each step it takes, each reason why it fails.
    #[must_use]
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    fn wait_until_it_answers(&self) {
        self.until("containerd answers", || self.cri.version().is_ok());
    }

    /// Has the runtime lose a sandbox: its process and its entry are taken away behind its back, and its namespace stays.
    ///
    /// # Panics
    /// When it has no such sandbox.
    pub fn forget(&mut self, id: &str) {
        let killed = self.ctr(&["tasks", "kill", "--signal", "SIGKILL", id]);
        assert!(killed.status.success(), "{killed:?}");
        self.until("its process has ended", || self.ctr(&["containers", "delete", id]).status.success());
        self.kill();
        self.restart();
    }

    fn import_image(&self) {
        let archive = self.folder.join("image.tar");
        fs::write(&archive, image::archive()).expect("an archive");
        let imported = self.ctr(&["images", "import", "--no-unpack", &archive.display().to_string()]);
        assert!(imported.status.success(), "{imported:?}");
        self.until("the image is there", || self.cri.has_image(image::NAME).is_ok_and(|has| has));
    }

    fn until(&self, what: &str, is_so: impl FnMut() -> bool) {
        self.daemon.until(what, is_so);
    }
}

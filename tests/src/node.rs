//! A node for tests: a host namespace, folders of its own, and our plugin called as a runtime calls it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use musubi_delegates::netlink::{Link, LinkChange, NewLink};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::netns::Netns;

/// One node.
#[derive(Debug)]
pub struct Node {
    /// The host's namespace.
    pub host: Netns,
    folder: TempDir,
    /// Folders of plugin binaries (`CNI_PATH`).
    pub cni_path: Vec<PathBuf>,
    /// Variables added to every call.
    pub env: Vec<(String, String)>,
}

/// What a call printed.
#[derive(Debug, Clone)]
pub struct Output {
    /// Whether it succeeded.
    pub ok: bool,
    /// stdout as it came.
    pub stdout: String,
    /// stderr as it came.
    pub stderr: String,
}

impl Output {
    /// stdout as its one JSON document.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("{e} in {:?}; stderr: {}", self.stdout, self.stderr))
    }

    /// The result of a call that has to succeed.
    ///
    /// # Panics
    /// When it did not.
    #[must_use]
    pub fn result(&self) -> Value {
        assert!(self.ok, "failed: {} {}", self.stdout, self.stderr);
        self.json()
    }

    /// That a call without a result succeeded.
    ///
    /// # Panics
    /// When it did not.
    pub fn succeeded(&self) {
        assert!(self.ok, "failed: {} {}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "", "nothing is printed on success");
    }

    /// Code and message of a call that has to fail.
    ///
    /// # Panics
    /// When it did not.
    #[must_use]
    pub fn error(&self) -> (u64, String) {
        assert!(!self.ok, "succeeded: {}", self.stdout);
        let error = self.json();
        assert!(error["cniVersion"].is_string(), "an error object carries its version: {error}");
        (error["code"].as_u64().expect("a code"), error["msg"].as_str().expect("a message").to_owned())
    }
}

/// One sandbox that a runtime works on.
#[derive(Debug)]
pub struct Sandbox {
    /// Its namespace.
    pub netns: Netns,
    /// `CNI_CONTAINERID`.
    pub id: String,
    /// `namespace/name` of the pod; empty for none.
    pub pod: String,
}

impl Sandbox {
    /// A sandbox of a pod `namespace/name`.
    #[must_use]
    pub fn new(id: &str, pod: &str) -> Self {
        Self { netns: Netns::new(), id: id.to_owned(), pod: pod.to_owned() }
    }

    /// `CNI_ARGS` as containerd sends them.
    #[must_use]
    pub fn args(&self) -> String {
        match self.pod.split_once('/') {
            Some((namespace, name)) => {
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={}",
                    self.id
                )
            }
            None => String::new(),
        }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    /// A node without any interface but `lo`.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("manifests")).expect("a folder");
        Self { host: Netns::new(), folder, cni_path: vec![reference_plugins()], env: Vec::new() }
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its state folder (`cniDir`).
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.folder().join("state")
    }

    /// For the next minute its operations do not try again, after their own answer and by a process of its own, what
    /// earlier ones have left: a test that looks at it, or releases it, would meet that process there.
    ///
    /// # Panics
    /// When it cannot write to its state folder.
    pub fn leave_unfinished(&self) {
        std::fs::create_dir_all(self.state()).expect("a folder");
        for kind in ["orphans-tried", "pending-tried"] {
            std::fs::write(self.state().join(kind), "").expect("a mark");
        }
    }

    /// Its manifests (`manifestDir`).
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.folder().join("manifests")
    }

    /// Where its host-local networks keep their reservations, for `dataDir`.
    #[must_use]
    pub fn reservations(&self) -> PathBuf {
        self.folder().join("reservations")
    }

    /// Writes a manifest.
    ///
    /// # Panics
    /// When it cannot.
    pub fn manifest(&self, name: &str, text: &str) {
        std::fs::write(self.manifests().join(name), text).expect("a manifest");
    }

    /// Writes a NetworkAttachmentDefinition.
    pub fn definition(&self, namespace: &str, name: &str, config: &Value) {
        let object = json!({
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": name, "namespace": namespace}, "spec": {"config": config.to_string()},
        });
        self.manifest(&format!("nad-{namespace}-{name}.json"), &object.to_string());
    }

    /// Writes a pod that selects networks.
    pub fn pod(&self, namespace: &str, name: &str, networks: &str) {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "annotations": {"k8s.v1.cni.cncf.io/networks": networks}},
        });
        self.manifest(&format!("pod-{namespace}-{name}.json"), &object.to_string());
    }

    /// Our configuration with a default network in line.
    #[must_use]
    pub fn config(&self, default: &Value) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "musubi-network", "type": "musubi",
            "cniDir": self.state(), "manifestDir": self.manifests(), "binDir": self.folder().join("bin"), "agentSocket": "",
            "delegates": [default],
        })
    }

    /// A bridge with host-local for a default network.
    #[must_use]
    pub fn default_bridge(&self) -> Value {
        self.bridge("cni0", "default-network", "10.1.0.0/24")
    }

    /// A bridge with host-local, gateway and default route.
    #[must_use]
    pub fn bridge(&self, bridge: &str, name: &str, subnet: &str) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": bridge, "isDefaultGateway": true,
            "ipam": {"type": "host-local", "dataDir": self.reservations(), "subnet": subnet},
        })
    }

    /// Calls our plugin as a runtime does.
    #[must_use]
    pub fn call(&self, command: &str, sandbox: &Sandbox, config: &Value) -> Output {
        self.call_interface(command, sandbox, "eth0", config)
    }

    /// As [`Self::call`], for another interface.
    #[must_use]
    pub fn call_interface(&self, command: &str, sandbox: &Sandbox, interface: &str, config: &Value) -> Output {
        self.run_plugin(&musubi(), &[], command, sandbox, interface, config)
    }

    /// Calls one of our delegates alone.
    #[must_use]
    pub fn delegate(
        &self,
        plugin_type: &str,
        command: &str,
        sandbox: &Sandbox,
        interface: &str,
        config: &Value,
    ) -> Output {
        self.run_plugin(&musubi(), &["delegate", plugin_type], command, sandbox, interface, config)
    }

    /// Calls any CNI plugin for a sandbox.
    #[must_use]
    pub fn run_plugin(
        &self,
        plugin: &Path,
        arguments: &[&str],
        command: &str,
        sandbox: &Sandbox,
        interface: &str,
        config: &Value,
    ) -> Output {
        let mut call = Command::new(plugin);
        call.args(arguments).env("CNI_COMMAND", command).env("CNI_CONTAINERID", &sandbox.id);
        call.env("CNI_NETNS", sandbox.netns.path()).env("CNI_IFNAME", interface).env("CNI_ARGS", sandbox.args());
        self.run(call, &config.to_string())
    }

    /// Calls a command that is about no attachment (STATUS, GC, VERSION).
    #[must_use]
    pub fn call_network(&self, command: &str, config: &Value) -> Output {
        let mut call = Command::new(musubi());
        call.env("CNI_COMMAND", command);
        self.run(call, &config.to_string())
    }

    /// Runs our command line.
    #[must_use]
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let mut call = Command::new(musubi());
        call.args(arguments);
        self.run(call, "")
    }

    /// Runs a program on this node: in its namespace, with its `CNI_PATH`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn run(&self, mut command: Command, stdin: &str) -> Output {
        let path: Vec<String> = self.cni_path.iter().map(|p| p.display().to_string()).collect();
        command.env("CNI_PATH", path.join(":")).envs(self.env.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.host.enter(|| {
            let mut child = command.spawn().unwrap_or_else(|e| panic!("start {command:?}: {e}"));
            // A program may end without reading what it is sent.
            let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
            child.wait_with_output().expect("its output")
        });
        Output {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Adds a veth pair to the host, both ends up: something to stand on for macvlan and the like.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn add_uplink(&self, name: &str, other_end: &str) {
        let host = self.host.open();
        host.netlink.request(NewLink::named(name).veth(NewLink::named(other_end))).expect("an uplink");
        for end in [name, other_end] {
            let link = host.netlink.link_by_name(end).expect("links").expect("the uplink");
            host.netlink.request(LinkChange::of(link.index, "bring up").up().request()).expect("up");
        }
    }

    /// Names of the host's links, sorted.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn links(&self) -> Vec<String> {
        link_names(&self.host)
    }

    /// Everything below the node's folders that an attachment could leave: reservations, records, locks, statuses.
    #[must_use]
    pub fn leftover_files(&self) -> Vec<String> {
        let mut files = Vec::new();
        for folder in [
            self.state().join("records"),
            self.state().join("locks"),
            self.state().join("orphans"),
            self.state().join("host-local"),
            self.manifests().join("status"),
            self.reservations(),
        ] {
            files.extend(files_below(&folder));
        }
        files
            .retain(|file| !file.ends_with("/lock") && !file.contains("last_reserved_ip") && !file.ends_with("/.seal"));
        files
    }
}

/// Names of the links of a namespace, sorted.
///
/// # Panics
/// When the kernel refuses.
#[must_use]
pub fn link_names(netns: &Netns) -> Vec<String> {
    let mut names: Vec<String> = netns.open().netlink.links().expect("links").into_iter().map(|l| l.name).collect();
    names.sort();
    names
}

/// A link of a namespace.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn link(netns: &Netns, name: &str) -> Link {
    netns.open().netlink.link_by_name(name).expect("links").unwrap_or_else(|| panic!("no link {name}"))
}

fn files_below(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            files.extend(files_below(&path));
        } else {
            files.push(path.display().to_string());
        }
    }
    files.sort();
    files
}

/// Our program: `MUSUBI` in the environment, or the one beside the test's own build.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn musubi() -> PathBuf {
    if let Some(path) = std::env::var_os("MUSUBI") {
        return path.into();
    }
    let own = std::env::current_exe().expect("our own path");
    let built = own.ancestors().map(|folder| folder.join("musubi")).find(|file| file.is_file());
    built.unwrap_or_else(|| panic!("musubi is not built: run `cargo build -p musubi` first, or `make test`"))
}

/// Debian's reference plugins, unpacked by `tests/setup.sh`.
#[must_use]
pub fn reference_plugins() -> PathBuf {
    match std::env::var_os("REFERENCE_PLUGINS") {
        Some(path) => path.into(),
        None => PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../target/debian/containernetworking-plugins/usr/lib/cni"
        )),
    }
}

//! What tests on the running kernel share: namespaces of their own for the host and for pods, and calls of one bundled type
//! as a runtime makes them. Nothing of the machine's own network is touched.
#![allow(dead_code)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use musubi_delegates::cni::{CniArgs, CniError, Command, ContainerId, InterfaceName, NetConf, Request, Version};
use musubi_delegates::netlink::link::NewLink;
use musubi_delegates::netlink::route::{MAIN_TABLE, Route};
use musubi_delegates::netlink::{Link, LinkChange};
use musubi_delegates::netns::Namespace;
use musubi_delegates::standalone;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

/// Set in a test that runs in a user namespace already.
const INSIDE: &str = "MUSUBI_TEST_USER_NAMESPACE";

/// Runs a test in a host namespace of its own. Who is not root gets a user namespace first, by running the test named
/// `name` again inside one; where that is forbidden the test fails and says so.
pub fn on_host(name: &str, test: impl FnOnce(&Host) + Send) {
    if !is_root() && std::env::var_os(INSIDE).is_none() {
        let status = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "--mount"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(INSIDE, "1")
            .status()
            .expect("NOT RUN: the program unshare (util-linux) is needed where tests do not run as root");
        assert!(
            status.success(),
            "{name} failed in a user namespace, or the kernel forbids those: run the tests as root"
        );
        return;
    }
    let in_namespace = || {
        unshare(CloneFlags::CLONE_NEWNET)
            .expect("NOT RUN: this test needs a network namespace of its own: run it as root");
        test(&Host::new());
    };
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(in_namespace).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A node: a namespace and its folders.
pub struct Host {
    pub namespace: Namespace,
    pub folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let namespace = Namespace::current().unwrap();
        set_up(&namespace, "lo");
        Self { namespace, folder: tempfile::tempdir().unwrap() }
    }

    /// A pair of links that are up: `name`, and `name`-peer.
    pub fn add_link(&self, name: &str) -> Link {
        add_link(&self.namespace, name)
    }

    /// An IPAM configuration of host-local's.
    pub fn host_local(&self, subnet: &str) -> Value {
        json!({"type": "host-local", "dataDir": self.folder.path().join("addresses"), "ranges": [[{"subnet": subnet}]]})
    }

    /// The addresses that host-local holds for a network.
    pub fn reservations(&self, network: &str) -> Vec<String> {
        let Ok(files) = std::fs::read_dir(self.folder.path().join("addresses").join(network)) else {
            return Vec::new();
        };
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut addresses: Vec<String> = names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect();
        addresses.sort();
        addresses
    }
}

pub fn add_link(namespace: &Namespace, name: &str) -> Link {
    let peer = format!("{name}-peer");
    namespace.netlink.request(NewLink::named(name).up().veth(NewLink::named(&peer))).unwrap();
    set_up(namespace, &peer);
    link(namespace, name).unwrap()
}

pub fn link(namespace: &Namespace, name: &str) -> Option<Link> {
    namespace.netlink.link_by_name(name).unwrap()
}

pub fn set_up(namespace: &Namespace, name: &str) {
    change(namespace, name, true);
}

pub fn set_down(namespace: &Namespace, name: &str) {
    change(namespace, name, false);
}

fn change(namespace: &Namespace, name: &str, up: bool) {
    let index = link(namespace, name).unwrap().index;
    namespace.netlink.request(LinkChange::of(index, "test").flag(libc::IFF_UP, up).request()).unwrap();
}

/// The addresses of an interface as text, link-local ones left out.
pub fn addresses(namespace: &Namespace, name: &str) -> Vec<String> {
    let index = link(namespace, name).unwrap().index;
    let mut all = namespace.netlink.addresses(index).unwrap();
    // Nothing in a pod is tentative after ADD; on the host the link-local address is nobody's concern.
    if name == "net1" {
        assert!(!all.iter().any(|a| a.is_tentative()), "an address of {name} is tentative");
    }
    all.retain(|a| !a.net.to_string().starts_with("fe80"));
    assert!(!all.iter().any(|a| a.is_tentative()), "an address of {name} is tentative");
    let mut shown: Vec<String> = all.iter().map(|a| a.net.to_string()).collect();
    shown.sort();
    shown
}

/// The main table's routes by an interface as text, those of the kernel for link-local and multicast left out.
pub fn routes(namespace: &Namespace, name: &str) -> Vec<String> {
    let index = link(namespace, name).unwrap().index;
    let is_of_the_kernel = |net: &str| net.starts_with("fe80") || net.starts_with("ff");
    let of_interface = |route: &Route| {
        route.interface == index && route.table == MAIN_TABLE && !is_of_the_kernel(&route.destination.to_string())
    };
    let mut shown: Vec<String> = Vec::new();
    for route in namespace.netlink.routes().unwrap().iter().filter(|route| of_interface(route)) {
        let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
        let source = route.source.map(|source| format!(" from {source}")).unwrap_or_default();
        shown.push(format!("{}{via}{source}", route.destination));
    }
    shown.sort();
    shown
}

/// A pod: an empty network namespace, kept by a descriptor.
pub struct Pod {
    file: File,
    pub namespace: Namespace,
}

impl Pod {
    pub fn new() -> Self {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let file = file.join().unwrap();
        let namespace = Namespace::open(&path_of(&file)).unwrap().unwrap();
        Self { file, namespace }
    }

    pub fn path(&self) -> PathBuf {
        path_of(&self.file)
    }

    /// Runs code on a thread inside the pod.
    pub fn run<T: Send>(&self, code: impl FnOnce() -> T + Send) -> T {
        let file = &self.file;
        let inside = move || {
            nix::sched::setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            code()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }
}

fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Calls of one bundled type for one attachment, as a runtime makes them.
pub struct Plugin<'a> {
    pub plugin_type: &'a str,
    pub host: &'a Host,
    pub netns: Option<PathBuf>,
    pub container_id: &'a str,
    pub interface: &'a str,
    pub args: &'a str,
    pub conf: Value,
}

impl<'a> Plugin<'a> {
    /// A type with its own keys of the configuration; the common ones are added.
    pub fn new(host: &'a Host, plugin_type: &'a str, pod: &Pod, keys: Value) -> Self {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "net", "type": plugin_type});
        conf.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        Self { plugin_type, host, netns: Some(pod.path()), container_id: "c1", interface: "net1", args: "", conf }
    }

    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.conf[key] = value.into();
    }

    /// ADD; its result becomes `prevResult` of what follows.
    pub fn add(&mut self) -> Result<Value, CniError> {
        let result = self.call(Command::Add)?.expect("ADD has a result");
        self.set("prevResult", result.clone());
        Ok(result)
    }

    pub fn check(&self) -> Result<(), CniError> {
        self.call(Command::Check).map(|answer| assert_eq!(answer, None))
    }

    pub fn del(&self) -> Result<(), CniError> {
        self.call(Command::Del).map(|answer| assert_eq!(answer, None))
    }

    pub fn call(&self, command: Command) -> Result<Option<Value>, CniError> {
        let conf = NetConf(self.conf.as_object().unwrap().clone());
        let version = conf.version().unwrap_or(Version::LATEST);
        let request = Request {
            command,
            container_id: Some(ContainerId::parse(self.container_id).unwrap()),
            netns: self.netns.clone(),
            interface: Some(InterfaceName::parse(self.interface).unwrap()),
            args: CniArgs::parse(self.args).unwrap(),
            path: Vec::new(),
            stdin: conf.to_bytes(),
            conf,
            version,
            netns_override: false,
        };
        standalone::run(self.plugin_type, &request, Path::new(&self.host.folder.path().join("state")))
    }
}

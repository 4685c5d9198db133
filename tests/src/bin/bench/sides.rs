//! The sides that are measured against each other, each doing the same job: attach a pod to some bridges and detach it.
//! Ours is one call of the program; the reference is its plugins called one after the other, as a meta-plugin calls them;
//! the floor is the netlink messages that such a job needs at least, sent from this process.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use musubi_delegates::netlink::link::{OPERATIONAL, delete_group};
use musubi_delegates::netlink::route::Route;
use musubi_delegates::netlink::{LinkChange, MacAddress, NewLink, address};
use musubi_delegates::netns::{Family, Namespace};
use musubi_tests::netns::Netns;
use musubi_tests::node::{Node, musubi, reference_plugins};
use serde_json::{Value, json};

/// The program's answer to a call comes by pipes, as a runtime's does. Fails the benchmark when the call fails.
pub fn exec(program: &Path, env: &[(&str, &str)], stdin: &str) -> String {
    let mut child = Command::new(program)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    // A program may end without reading what it is sent.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
    let mut answer = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut answer).expect("text");
    assert!(child.wait().expect("its end").success(), "{} {env:?}: {answer}", program.display());
    answer
}

/// A pod with a namespace that is used again and again: making one is no part of the job.
pub struct Pod {
    /// Its number.
    pub number: u32,
    id: String,
    netns: Netns,
    namespace: Namespace,
}

impl Pod {
    /// Pod `number` of the node.
    pub fn new(number: u32) -> Self {
        let netns = Netns::new();
        let namespace = netns.open();
        Self { number, id: format!("{number:064x}"), netns, namespace }
    }

    /// Its name in the store.
    pub fn name(&self) -> String {
        format!("pod-{}", self.number)
    }
}

/// The networks of every pod: a default one and others beside it, each a bridge with host-local and a gateway.
#[derive(Debug, Clone, Copy)]
pub struct Networks(pub u32);

impl Networks {
    fn bridge(number: u32) -> String {
        format!("br{number}")
    }

    fn interface(number: u32) -> String {
        if number == 0 { "eth0".to_owned() } else { format!("net{number}") }
    }

    fn address(number: u32, host: u32) -> IpNet {
        let [_, _, high, low] = host.to_be_bytes();
        let address = Ipv4Addr::new(10, 1 + number as u8, high, low);
        Ipv4Net::new(address, 16).expect("a prefix").into()
    }

    /// The configuration of one of them.
    pub fn config(number: u32, data_dir: &Path) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": format!("network-{number}"), "type": "bridge", "bridge": Self::bridge(number),
            "isGateway": true, "isDefaultGateway": number == 0,
            "ipam": {"type": "host-local", "dataDir": data_dir, "subnet": Self::address(number, 0).to_string()},
        })
    }
}

/// What attaches and detaches pods.
pub trait Side {
    /// Attaches a pod to all networks.
    fn add(&self, pod: &Pod);
    /// Detaches it.
    fn del(&self, pod: &Pod);
}

/// `musubi`, called once.
pub struct Ours {
    program: PathBuf,
    config: String,
}

impl Ours {
    /// With the manifests of `pods` pods that select the networks.
    pub fn new(node: &Node, networks: Networks, pods: u32) -> Self {
        let data_dir = node.folder().join("ours");
        for number in 1..networks.0 {
            node.definition("default", &format!("network-{number}"), &Networks::config(number, &data_dir));
        }
        let selection: Vec<String> = (1..networks.0).map(|number| format!("network-{number}")).collect();
        for number in 0..pods {
            node.pod("default", &format!("pod-{number}"), &selection.join(","));
        }
        Self { program: musubi(), config: node.config(&Networks::config(0, &data_dir)).to_string() }
    }

    fn call(&self, command: &str, pod: &Pod) {
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", pod.name());
        exec(&self.program, &cni_env(command, pod, "eth0", &args), &self.config);
    }
}

impl Side for Ours {
    fn add(&self, pod: &Pod) {
        self.call("ADD", pod);
    }

    fn del(&self, pod: &Pod) {
        self.call("DEL", pod);
    }
}

/// Debian's reference plugins, called in order.
pub struct Reference {
    networks: Networks,
    program: PathBuf,
    configs: Vec<Value>,
}

impl Reference {
    /// On the node's bridges, with reservations of their own.
    pub fn new(node: &Node, networks: Networks) -> Self {
        let data_dir = node.folder().join("theirs");
        let configs = (0..networks.0).map(|number| Networks::config(number, &data_dir)).collect();
        Self { networks, program: reference_plugins().join("bridge"), configs }
    }

    fn call(&self, command: &str, pod: &Pod, number: u32) {
        let interface = Networks::interface(number);
        let env = cni_env(command, pod, &interface, "IgnoreUnknown=1");
        exec(&self.program, &env, &self.configs[number as usize].to_string());
    }
}

impl Side for Reference {
    fn add(&self, pod: &Pod) {
        (0..self.networks.0).for_each(|number| self.call("ADD", pod, number));
    }

    fn del(&self, pod: &Pod) {
        (0..self.networks.0).rev().for_each(|number| self.call("DEL", pod, number));
    }
}

/// The netlink messages alone.
pub struct Floor {
    host: Namespace,
    bridges: Vec<u32>,
    /// Whether ADD waits until the bridges forward what the pod sends.
    pub until_forwarding: bool,
}

/// `IFLA_GROUP` of the floor's links.
const GROUP: std::num::NonZeroU32 = std::num::NonZeroU32::new(77).expect("not zero");

impl Floor {
    /// On the bridges that are there.
    pub fn new(networks: Networks, until_forwarding: bool) -> Self {
        let host = Namespace::current().expect("our own namespace");
        let index =
            |number| host.netlink.link_by_name(&Networks::bridge(number)).expect("links").expect("a bridge").index;
        let bridges = (0..networks.0).map(index).collect();
        Self { host, bridges, until_forwarding }
    }

    fn add_one(&self, pod: &Pod, number: u32, bridge: u32) -> u32 {
        let name = Networks::interface(number);
        let host_name = format!("veth{:x}-{number}", pod.number);
        let inside = &pod.namespace;
        let peer = NewLink::named(&name).mac(Some(MacAddress::random())).in_namespace(inside).group(GROUP.get());
        let port = NewLink::named(&host_name).mac(Some(MacAddress::random())).master(Some(bridge)).up();
        self.host.netlink.request(port.veth(peer)).expect("a veth pair");
        self.host.set_sysctl(Family::V6, &host_name, "accept_ra", "0").expect("a sysctl");
        let link = inside.netlink.link_by_name(&name).expect("links").expect("the pod's end");
        inside.set_sysctl(Family::V4, &name, "arp_notify", "1").expect("a sysctl");
        inside.set_sysctl(Family::V6, &name, "accept_dad", "0").expect("a sysctl");
        let address = Networks::address(number, pod.number + 2);
        let mut requests =
            vec![address::add(link.index, address, false), LinkChange::of(link.index, "bring up").up().request()];
        if number == 0 {
            let any = IpNet::V4(Ipv4Net::default());
            let gateway = Networks::address(number, 1).addr();
            requests.push(Route::new(any, Some(gateway), link.index).add());
        }
        inside.netlink.request_all(requests).expect("addresses and routes");
        link.parent.expect("the host's end")
    }

    fn wait_for_port(&self, index: u32) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let port = self.host.netlink.link_by_index(index).expect("links").expect("the port");
            if port.operational_state == OPERATIONAL {
                return;
            }
            assert!(Instant::now() < deadline, "the port does not come up");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

impl Side for Floor {
    fn add(&self, pod: &Pod) {
        let ports: Vec<u32> =
            (0..).zip(&self.bridges).map(|(number, bridge)| self.add_one(pod, number, *bridge)).collect();
        if self.until_forwarding {
            ports.into_iter().for_each(|port| self.wait_for_port(port));
        }
    }

    fn del(&self, pod: &Pod) {
        pod.namespace.netlink.request(delete_group(GROUP)).expect("a group to delete");
    }
}

/// A call's environment.
pub fn cni_env<'a>(command: &'a str, pod: &'a Pod, interface: &'a str, args: &'a str) -> [(&'a str, &'a str); 6] {
    let plugins = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/debian/containernetworking-plugins/usr/lib/cni");
    [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", &pod.id),
        ("CNI_NETNS", pod.netns.path().to_str().expect("text")),
        ("CNI_IFNAME", interface),
        ("CNI_ARGS", args),
        ("CNI_PATH", plugins),
    ]
}

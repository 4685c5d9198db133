//! `examples/`: every manifest is planned as it stands, and every pod gets its networks on a node that has what the
//! manifests name – only the folders of state are the test's own. A kernel that lacks a kind must say so; the virtual
//! machine lacks none.
#![allow(clippy::unwrap_used, reason = "what is outside of test functions is part of a test, too")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use musubi_delegates::netlink::address;
use musubi_tests::node::{Node, Sandbox, link_names, musubi};
use musubi_tests::vm::{Machine, guest};
use serde_json::{Value, json};

/// An interface of a pod beside the cluster's own: name, network, plugin types, addresses.
type Interface = (&'static str, &'static str, &'static [&'static str], &'static [&'static str]);

const EXAMPLES: [(&str, &[Interface]); 12] = [
    ("web", &[BLUE, lan(&["10.20.0.11"]), overlay(&["10.30.0.11", "fd00:30::11"]), shared(&["10.25.0.11"])]),
    ("db", &[BLUE, lan(&["10.20.0.12"]), overlay(&["10.30.0.12", "fd00:30::12"]), shared(&["10.25.0.12"])]),
    ("api", &[BLUE, lan(&["10.20.0.13"]), overlay(&["10.30.0.13", "fd00:30::13"]), shared(&["10.25.0.13"])]),
    ("cache", &[BLUE, lan(&["10.20.0.14"]), overlay(&["10.30.0.14", "fd00:30::14"]), shared(&["10.25.0.14"])]),
    ("static-address", &[("fixed0", "fixed", &["bridge"], &["10.40.0.10"])]),
    ("dual-stack", &[("net1", "dual", &["bridge"], &["10.50.0.100", "fd00:50::2"])]),
    ("requested-address", &[("asked0", "requested", &["bridge"], &["10.60.0.99"])]),
    ("default-route", &[("net1", "uplink", &["bridge"], &["10.70.0.2"])]),
    ("vlan", &[("net1", "tenant", &["bridge"], &["10.80.0.2"])]),
    ("unicast-overlay", &[("net1", "overlay-unicast", &["vxlan"], &["10.31.0.2"])]),
    ("point-to-point", &[("net1", "direct", &["ptp"], &["10.90.0.2"])]),
    ("tuned", &[("net1", "tuned", &["bridge", "tuning"], &["10.100.0.2"])]),
];

const BLUE: Interface = ("net1", "blue", &["bridge"], &["10.10.0.2"]);

const fn lan(ips: &'static [&'static str]) -> Interface {
    ("net2", "lan", &["macvlan"], ips)
}

const fn overlay(ips: &'static [&'static str]) -> Interface {
    ("net3", "overlay", &["vxlan"], ips)
}

const fn shared(ips: &'static [&'static str]) -> Interface {
    ("net4", "shared", &["ipvlan"], ips)
}

fn examples() -> PathBuf {
    if guest::inside() { "/examples".into() } else { concat!(env!("CARGO_MANIFEST_DIR"), "/../examples").into() }
}

/// File name and text of every manifest of a folder.
fn files(folder: &str) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(examples().join(folder)).unwrap().map(Result::unwrap);
    let read = |entry: std::fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), std::fs::read_to_string(entry.path()).unwrap())
    };
    entries.map(read).collect()
}

/// A node as the manifests suppose it: eth0 and eth1 lead to other nodes, eth0 has an address.
fn node() -> Node {
    let node = Node::new();
    for (name, other_end) in [("eth0", "other0"), ("eth1", "other1")] {
        node.add_uplink(name, other_end);
    }
    let host = node.host.open();
    let index = host.netlink.link_by_name("eth0").unwrap().unwrap().index;
    host.netlink.request(address::add(index, "192.168.50.1/24".parse().unwrap(), false)).unwrap();
    for (name, text) in files("definitions") {
        // Reservations stay in the test's folder; nothing else is changed.
        let own = format!("\"type\": \"host-local\", \"dataDir\": \"{}\"", node.reservations().display());
        let text = text.replace("\"type\": \"host-local\"", &own);
        node.manifest(&name, &text);
    }
    for (name, text) in files("pods") {
        node.manifest(&format!("pod-{name}"), &text);
    }
    node
}

fn configuration(node: &Node) -> Value {
    let text = std::fs::read_to_string(examples().join("00-musubi.conf")).unwrap();
    let mut configuration: Value = serde_json::from_str(&text).unwrap();
    configuration["cniDir"] = json!(node.state());
    configuration["manifestDir"] = json!(node.manifests());
    configuration["agentSocket"] = json!("");
    configuration["delegates"][0]["ipam"]["dataDir"] = json!(node.reservations());
    configuration
}

#[test]
fn each_is_planned_as_it_stands() {
    let node = Node::new();
    let folder = examples();
    let configuration = folder.join("00-musubi.conf").display().to_string();
    for (pod, interfaces) in EXAMPLES {
        let manifests = folder.display().to_string();
        let plan =
            node.cli(&["explain", pod, "--config", &configuration, "--manifests", &manifests, "-o", "json"]).result();
        assert_eq!(plan["warnings"], json!([]), "{pod}: nobody should copy a warning");
        let planned: Vec<Value> = plan["attachments"].as_array().unwrap().iter().map(in_short).collect();
        let mut expected = vec![json!(["eth0", "cluster", [["bridge", "native"]]])];
        expected.extend(interfaces.iter().map(|(name, network, types, _)| {
            let runs = |kind: &&str| json!([kind, if *kind == "tuning" { "external" } else { "native" }]);
            json!([name, format!("default/{network}"), types.iter().map(runs).collect::<Vec<_>>()])
        }));
        assert_eq!(planned, expected, "{pod}");
    }
}

fn in_short(attachment: &Value) -> Value {
    let delegates = attachment["delegates"].as_array().unwrap();
    let delegates: Vec<Value> = delegates.iter().map(|d| json!([d["type"], d["runs"]])).collect();
    json!([attachment["interface"], attachment["network"], delegates])
}

#[test]
fn none_is_without_a_test() {
    let pods: BTreeSet<String> = files("pods").into_iter().map(|(name, _)| name).collect();
    assert_eq!(pods, EXAMPLES.iter().map(|(pod, _)| format!("{pod}.yaml")).collect());
    let used: BTreeSet<&str> = EXAMPLES.iter().flat_map(|(_, interfaces)| interfaces.iter().map(|i| i.1)).collect();
    for (file, text) in files("definitions") {
        let name = text.lines().find_map(|line| line.strip_prefix("  name: ")).unwrap();
        assert!(used.contains(name), "{file}: no example pod selects {name}");
        assert!(text.starts_with("# "), "{file} says what it is for");
    }
}

/// ADD, CHECK, DEL of one pod; returns the error of an ADD that failed.
fn run(pod: &str, interfaces: &[Interface]) -> Option<String> {
    let node = node();
    let (before, configuration) = (node.links(), configuration(&node));
    let sandbox = Sandbox::new(&format!("example-{pod}"), &format!("default/{pod}"));
    let added = node.call("ADD", &sandbox, &configuration);
    if added.ok {
        assert_attached(pod, interfaces, &sandbox);
        node.call("CHECK", &sandbox, &configuration).succeeded();
    }
    // As runtimes do after an ADD that failed, too.
    node.call("DEL", &sandbox, &configuration).succeeded();
    assert_eq!(link_names(&sandbox.netns), ["lo"], "{pod}");
    assert_eq!(node.leftover_files(), Vec::<String>::new(), "{pod}");
    // A bridge is the node's and stays, as with the reference plugin.
    let bridges = |name: &String| before.contains(name) || !name.starts_with("veth") && !name.starts_with("m");
    assert!(node.links().iter().all(bridges), "{pod}: {:?}", node.links());
    (!added.ok).then(|| added.error().1)
}

fn assert_attached(pod: &str, interfaces: &[Interface], sandbox: &Sandbox) {
    let inside = sandbox.netns.open();
    let cluster: Interface = ("eth0", "cluster", &["bridge"], &["10.244.1.2"]);
    for (name, _, _, ips) in [&cluster].into_iter().chain(interfaces) {
        let link = inside.netlink.link_by_name(name).unwrap().unwrap_or_else(|| panic!("{pod} has no {name}"));
        let addresses = inside.netlink.addresses(link.index).unwrap();
        let found = addresses.iter().map(|a| a.net.addr().to_string()).filter(|ip| !ip.starts_with("fe80"));
        assert_eq!(found.collect::<Vec<_>>(), *ips, "{pod}: {name}");
    }
    let mac = |name: &str| inside.netlink.link_by_name(name).unwrap().unwrap().mac.unwrap().to_string();
    let defaults = || inside.netlink.routes().unwrap().into_iter().filter(|r| r.is_default() && r.gateway.is_some());
    let gateways: Vec<String> = defaults().filter_map(|route| route.gateway).map(|ip| ip.to_string()).collect();
    // What the example is about, beside addresses.
    match pod {
        "db" => assert_eq!(mac("net3"), "02:00:0a:1e:00:0c"),
        "requested-address" => assert_eq!(mac("asked0"), "02:00:00:00:00:99"),
        "tuned" => {
            let read = || std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
            assert_eq!(sandbox.netns.enter(read).trim(), "500");
        }
        "default-route" => assert_eq!(gateways, ["10.70.0.1"]),
        _ => assert_eq!(gateways, ["10.244.1.1"], "{pod}"),
    }
}

/// What the error says of an example that needs more than a small kernel has.
fn missing(pod: &str) -> Option<[&'static str; 2]> {
    match pod {
        "web" | "db" | "api" | "cache" => Some(["ipvlan", "kernel"]),
        "vlan" => Some(["vlan: create bridge interface \"trunk0\"", "not supported"]),
        _ => None,
    }
}

#[test]
fn each_pod_gets_its_networks_or_hears_what_the_kernel_lacks() {
    for (pod, interfaces) in EXAMPLES {
        if let Some(error) = run(pod, interfaces) {
            let parts = missing(pod).unwrap_or_else(|| panic!("{pod}: {error}"));
            assert!(parts.iter().all(|part| error.contains(part)), "{pod}: {error}");
        }
    }
}

#[test]
fn vm_gives_every_pod_its_networks() {
    let mut machine = Machine::new().unwrap();
    machine.file(&musubi(), "/musubi").env("MUSUBI", "/musubi");
    machine.file(&examples(), "/examples").env("REFERENCE_PLUGINS", musubi_tests::vm::CNI_BIN);
    machine.run_tests("e2e", "examples::in_the_machine", Duration::from_secs(300)).unwrap();
}

mod in_the_machine {
    #[test]
    #[ignore = "runs in the virtual machine"]
    fn each_pod_gets_its_networks() {
        for (pod, interfaces) in super::EXAMPLES {
            assert_eq!(super::run(pod, interfaces), None, "{pod}");
        }
    }
}

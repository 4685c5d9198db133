//! The node that the annotation's rows are tried on, and how each is tried: by the library and by `musubi explain`.

use musubi::config::Config;
use musubi::devices::Devices;
use musubi::plan::Plan;
use musubi::store::{DirectoryStore, PodQuery, Store};
use musubi::{networks, plan};
use musubi_delegates::cni::{CniError, InterfaceName, NetConf};
use musubi_tests::node::Node;
use serde_json::{Map, Value, json};

/// A node with the definitions that `tests/vectors/README.md` describes, and more of their kind.
pub fn node() -> Node {
    let node = Node::new();
    let bridge = |name: &str, subnet: u8| node.bridge(&format!("br-{name}"), name, &format!("10.{subnet}.0.0/24"));
    let chain = |name: &str, capability: &str, second: Option<&str>| {
        let mut first = bridge(name, 20);
        let mut plugins = Vec::new();
        match second {
            None => first["capabilities"] = json!({capability: true}),
            Some(plugin) => plugins.push(json!({"type": plugin, "capabilities": {capability: true}})),
        }
        plugins.insert(0, first);
        json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins})
    };
    let single = |keys: Value| {
        let mut conf = json!({"cniVersion": "1.0.0", "name": "n"});
        conf.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        conf
    };
    let host_local = json!({"type": "host-local", "dataDir": node.reservations(), "subnet": "10.9.0.0/24"});
    let definitions = [
        ("default", "a", bridge("a", 9)),
        ("default", "b", bridge("b", 10)),
        ("other", "a", bridge("oa", 11)),
        ("default", "l2", single(json!({"type": "bridge", "bridge": "br-l2"}))),
        ("default", "ptp", single(json!({"type": "ptp", "ipam": host_local}))),
        ("default", "ips", chain("ips", "ips", None)),
        ("default", "mac", chain("mac", "mac", Some("tuning"))),
        ("default", "ports", chain("ports", "portMappings", Some("portmap"))),
        ("default", "bw", chain("bw", "bandwidth", Some("bandwidth"))),
        ("default", "dotted.name", bridge("dotted", 12)),
        ("default", "macvlan", single(json!({"type": "macvlan", "master": "up0", "ipam": {"type": "static"}}))),
        ("default", "ipvlan", single(json!({"type": "ipvlan", "master": "up0", "ipam": {"type": "static"}}))),
        ("default", "vlan", single(json!({"type": "vlan", "master": "up0", "vlanId": 5, "ipam": {"type": "dhcp"}}))),
        ("default", "dhcp", single(json!({"type": "bridge", "ipam": {"type": "dhcp"}}))),
        ("default", "whereabouts", single(json!({"type": "ovs", "bridge": "ovsbr0", "ipam": {"type": "whereabouts"}}))),
        ("default", "ovs", single(json!({"type": "ovs", "bridge": "ovsbr0"}))),
        ("default", "acme", single(json!({"type": "acme-cni"}))),
        ("default", "acmeipam", single(json!({"type": "ipvlan", "master": "up0", "ipam": {"type": "acme-ipam"}}))),
        (
            "default",
            "sriov",
            single(json!({"type": "ib-sriov", "capabilities": {"deviceID": true, "infinibandGUID": true}})),
        ),
        ("default", "textargs", single(json!({"type": "bridge", "args": "text"}))),
        ("default", "textcni", single(json!({"type": "bridge", "args": {"cni": ["text"]}}))),
        (
            "default",
            "merged",
            json!({"cniVersion": "1.0.0", "name": "merged", "plugins": [
                {"type": "bridge", "args": {"other": true, "cni": {"a": 1, "b": 1}}},
                {"type": "tuning", "args": null},
                {"type": "portmap"},
            ]}),
        ),
    ];
    for (namespace, name, config) in &definitions {
        node.definition(namespace, name, config);
    }
    write_config(&node, &config(&node));
    node
}

pub fn config(node: &Node) -> Value {
    node.config(&node.default_bridge())
}

pub fn config_file(node: &Node) -> String {
    node.folder().join("00-musubi.conf").display().to_string()
}

pub fn write_config(node: &Node, config: &Value) {
    std::fs::write(config_file(node), config.to_string()).unwrap();
}

/// The pod `default/p`, with the annotation or without any.
pub fn pod(node: &Node, networks: Option<&str>) {
    let annotations = networks.map(|text| ("k8s.v1.cni.cncf.io/networks".to_owned(), text.into()));
    annotated_pod(node, &annotations.into_iter().collect());
}

pub fn annotated_pod(node: &Node, annotations: &Map<String, Value>) {
    let object = json!({"apiVersion": "v1", "kind": "Pod",
                        "metadata": {"name": "p", "namespace": "default", "annotations": annotations}});
    node.manifest("pod.json", &object.to_string());
}

/// What the library plans for the pod.
pub fn plan_of(node: &Node) -> Result<Plan, CniError> {
    let conf = NetConf::parse(&std::fs::read(config_file(node)).unwrap())?;
    let config = Config::parse(&conf)?;
    let store = DirectoryStore::read(&node.manifests())?;
    let pod = store.pod(&PodQuery::named("default", "p"))?.expect("the pod");
    let wanted = networks::look_up(&config, Some(&pod), &store)?;
    plan::plan(&config, wanted, &InterfaceName::parse("eth0")?, Devices::unasked())
}

pub fn explain(node: &Node) -> Value {
    node.cli(&["explain", "p", "--config", &config_file(node), "-o", "json"]).result()
}

pub fn names(explained: &Value) -> Vec<String> {
    let attachments = explained["attachments"].as_array().unwrap().iter();
    attachments.map(|a| format!("{}@{}", a["network"].as_str().unwrap(), a["interface"].as_str().unwrap())).collect()
}

/// The library and the command line plan the same: the default network, then these.
pub fn planned(node: &Node, case: &str, wanted: &[impl AsRef<str>]) {
    let whole: Vec<&str> = ["default-network@eth0"].into_iter().chain(wanted.iter().map(AsRef::as_ref)).collect();
    let plan = plan_of(node).unwrap_or_else(|error| panic!("{case}: {error}"));
    let of_library: Vec<String> = plan.attachments.iter().map(|a| format!("{}@{}", a.network, a.interface)).collect();
    assert_eq!(of_library, whole, "{case}: the library");
    let explained = explain(node);
    assert_eq!(names(&explained), whole, "{case}: explain");
    assert_eq!(explained["pod"], "default/p");
    let defaults: Vec<&Value> = explained["attachments"].as_array().unwrap().iter().map(|a| &a["default"]).collect();
    assert_eq!(defaults.iter().filter(|d| **d == &json!(true)).count(), 1, "{case}: one default");
    assert_eq!(defaults[0], &json!(true), "{case}: the first is the default");
}

/// The library and the command line refuse with this code in one line that holds these words; nothing is touched.
pub fn refused(node: &Node, case: &str, code: u64, words: &[&str]) {
    let error = plan_of(node).err().unwrap_or_else(|| panic!("{case}: the library planned it"));
    assert_eq!(u64::from(error.code), code, "{case}: {error}");
    let output = node.cli(&["explain", "p", "--config", &config_file(node), "-o", "json"]);
    let (shown, message) = output.error();
    assert_eq!((shown, message.as_str()), (code, error.msg.as_str()), "{case}: explain says the same");
    assert!(message.len() < 500 && !message.contains('\n'), "{case}: not one short line: {message}");
    for word in words {
        assert!(message.contains(word), "{case}: {message:?} does not name {word:?}");
    }
    assert_eq!(node.links(), ["lo"], "{case}");
    assert!(!node.state().exists() && !node.reservations().exists(), "{case}: something was written");
}

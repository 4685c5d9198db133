//! Native or external, through the whole of our plugin: who runs is seen by what is left in the kernel.

use std::os::unix::fs::PermissionsExt;

use musubi_tests::node::{Node, Sandbox, link, reference_plugins};
use serde_json::{Value, json};

/// A plugin that answers ADD with an address and writes down each command it gets, for `bridge`.
const RECORDER: &str = r#"#!/bin/sh
echo "$CNI_COMMAND $CNI_IFNAME" >> "${0%/*}/calls"
cat > "${0%/*}/config"
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.9/24"}]}'
"#;

fn with_iptables(node: &Node) -> Value {
    let mut bridge = node.default_bridge();
    bridge["ipMasq"] = true.into();
    bridge["ipMasqBackend"] = "iptables".into();
    bridge
}

#[test]
fn a_value_that_only_the_reference_serves_is_left_to_it() {
    let mut node = Node::new();
    let bin = node.folder().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::write(bin.join("bridge"), RECORDER).unwrap();
    std::fs::set_permissions(bin.join("bridge"), std::fs::Permissions::from_mode(0o755)).unwrap();
    node.cni_path = vec![bin.clone()];
    let config = node.config(&with_iptables(&node));
    let sandbox = Sandbox::new("c1", "");
    let result = node.call("ADD", &sandbox, &config).result();
    assert_eq!(result["ips"][0]["address"], "10.1.0.9/24", "the plugin's own answer");
    let sent: Value = serde_json::from_slice(&std::fs::read(bin.join("config")).unwrap()).unwrap();
    assert_eq!(sent["ipMasqBackend"], "iptables");
    node.call("DEL", &sandbox, &config).succeeded();
    assert_eq!(std::fs::read_to_string(bin.join("calls")).unwrap(), "ADD eth0\nDEL eth0\n");
    assert_eq!(node.links(), ["lo"], "ours did nothing");
    assert_eq!(node.leftover_files(), Vec::<String>::new());
}

#[test]
fn a_value_that_nobody_here_serves_is_an_error_with_its_name() {
    let mut node = Node::new();
    node.cni_path = vec![node.folder().join("bin")];
    let config = node.config(&with_iptables(&node));
    let sandbox = Sandbox::new("c1", "");
    let (code, message) = node.call("ADD", &sandbox, &config).error();
    assert_eq!(code, 2, "{message}");
    assert!(message.contains("ipMasqBackend") && message.contains("iptables"), "{message}");
    assert_eq!(node.links(), ["lo"]);
    assert_eq!(node.leftover_files(), Vec::<String>::new());
    node.call("DEL", &sandbox, &config).succeeded();
}

#[test]
fn native_delegates_are_narrowed_by_type_or_altogether() {
    let cases = [
        (json!(true), [true, true]),
        (json!(false), [false, false]),
        (json!(["macvlan"]), [false, true]),
        (json!(["bridge"]), [true, false]),
    ];
    for (native, expected) in cases {
        let node = Node::new();
        node.add_uplink("up0", "far0");
        let mut config = node.config(&node.default_bridge());
        config["nativeDelegates"] = native.clone();
        let ipam = json!({"type": "host-local", "dataDir": node.reservations(), "subnet": "10.2.0.0/24"});
        let macvlan = json!({"cniVersion": "1.0.0", "name": "mac", "type": "macvlan", "master": "up0", "ipam": ipam});
        node.definition("default", "mac", &macvlan);
        node.pod("default", "web", "mac");
        let sandbox = Sandbox::new("c1", "default/web");
        let result = node.call("ADD", &sandbox, &config).result();
        assert_eq!(result["ips"][0]["address"], "10.1.0.2/24", "{native}");
        // Our delegates give each link of a pod a group, the reference plugins none.
        let grouped = ["eth0", "net1"].map(|name| link(&sandbox.netns, name).group != 0);
        assert_eq!(grouped, expected, "{native}");
        node.call("CHECK", &sandbox, &config).succeeded();
        node.call("DEL", &sandbox, &config).succeeded();
        assert_eq!(musubi_tests::node::link_names(&sandbox.netns), ["lo"], "{native}");
        assert_eq!(node.leftover_files(), Vec::<String>::new(), "{native}");
        assert_eq!(node.links(), ["cni0", "far0", "lo", "up0"], "{native}");
    }
    assert!(reference_plugins().join("bridge").exists());
}

//! Scenarios of Multus' own unit tests (`reference/multus.md` §5) that are not rows of another table: what is called in
//! which order when all goes well and when something does not, in each version of the protocol that those tests run in.

use std::path::Path;

use musubi_tests::node::{Node, Sandbox, link_names};
use musubi_tests::recorded::{self, Call};
use serde_json::{Value, json};

const VERSIONS: [&str; 5] = ["0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn two_networks_are_added_in_order_and_deleted_in_reverse() {
    for version in VERSIONS {
        let node = node();
        let config = config(&node, version, [first(version), json!({"name": "other1", "type": "rec-second"})]);
        let sandbox = Sandbox::new("123456789", "");
        let result = node.call("ADD", &sandbox, &config).result();
        assert_eq!(result["cniVersion"], version);
        let address = if version == "0.2.0" { &result["ip4"]["ip"] } else { &result["ips"][0]["address"] };
        assert_eq!(address, "1.1.1.2/24", "{version}: the first network's result");
        assert_eq!(calls(&node), ["ADD rec-main eth0", "ADD rec-second net1"], "{version}");
        let records = node.state().join("records");
        assert_eq!(std::fs::read_dir(&records).unwrap().count(), 1, "what was done is on disk");
        if ["0.4.0", "1.0.0", "1.1.0"].contains(&version) {
            node.call("CHECK", &sandbox, &config).succeeded();
            assert_eq!(calls(&node), ["CHECK rec-main eth0", "CHECK rec-second net1"], "{version}");
        }
        node.call("DEL", &sandbox, &config).succeeded();
        assert_eq!(calls(&node), ["DEL rec-second net1", "DEL rec-main eth0"], "{version}");
        assert_eq!(std::fs::read_dir(&records).unwrap().count(), 0, "and no more");
        assert_eq!(node.leftover_files(), Vec::<String>::new());
    }
}

#[test]
fn a_second_network_that_fails_takes_the_first_back() {
    for version in VERSIONS {
        for name in ["other1", ""] {
            let node = node();
            let mut second = json!({"name": name, "type": "rec-second"});
            second["recorder"] =
                json!({"error": {"ADD": {"cniVersion": version, "code": 99, "msg": "expected plugin failure"}}});
            let config = config(&node, version, [first(version), second]);
            let sandbox = Sandbox::new("123456789", "");
            let (code, message) = node.call("ADD", &sandbox, &config).error();
            assert_eq!(code, 100, "{message}");
            let network = if name.is_empty() { "musubi-network" } else { name };
            for word in [network, "net1", "rec-second", "expected plugin failure", "99"] {
                assert!(message.contains(word), "{version}: {message:?} does not name {word:?}");
            }
            let order = ["ADD rec-main eth0", "ADD rec-second net1", "DEL rec-second net1", "DEL rec-main eth0"];
            assert_eq!(calls(&node), order, "{version}");
            node.call("DEL", &sandbox, &config).succeeded();
            assert_eq!(node.leftover_files(), Vec::<String>::new());
        }
    }
}

#[test]
fn a_plugin_without_addresses_is_no_fault() {
    let node = node();
    node.pod("default", "web", "");
    let config = config(
        &node,
        "1.0.0",
        [json!({"name": "bare", "type": "rec-main"}), json!({"name": "other1", "type": "rec-second"})],
    );
    let sandbox = Sandbox::new("c1", "default/web");
    let result = node.call("ADD", &sandbox, &config).result();
    assert_eq!((result.get("ips"), result.get("interfaces")), (None, None), "{result}");
    let file = node.manifests().join("status/default/web.json");
    let object: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let status: Value =
        serde_json::from_str(object["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"].as_str().unwrap())
            .unwrap();
    assert_eq!(
        status,
        json!([{"name": "bare", "interface": "eth0", "default": true, "dns": {}}, {"name": "other1", "interface": "net1", "dns": {}}])
    );
    node.call("DEL", &sandbox, &config).succeeded();
    assert!(!file.exists());
}

/// Multus asks the API for the pod again; here the request alone is believed (DESIGN §3), so the default network's
/// plugins are run, which is what holds the pod's address.
#[test]
fn del_without_a_record_runs_the_default_network() {
    let node = node();
    let config = config(&node, "1.0.0", [first("1.0.0"), json!({"name": "other1", "type": "rec-second"})]);
    let sandbox = Sandbox::new("c1", "");
    let _ = node.call("ADD", &sandbox, &config).result();
    std::fs::remove_dir_all(node.state().join("records")).unwrap();
    let _ = calls(&node);
    node.call("DEL", &sandbox, &config).succeeded();
    assert_eq!(calls(&node), ["DEL rec-second net1", "DEL rec-main eth0"]);
    // A namespace that never was, and a container that nobody knows.
    let other = Sandbox::new("c2", "");
    other.netns.end();
    node.call("DEL", &other, &config).succeeded();
    assert_eq!(node.leftover_files(), Vec::<String>::new());
}

#[test]
fn a_del_that_fails_runs_the_others_all_the_same() {
    let node = node();
    let mut second = json!({"name": "other1", "type": "rec-second"});
    second["recorder"] = json!({"error": {"DEL": {"cniVersion": "1.0.0", "code": 99, "msg": "cannot let go"}}});
    let config = config(&node, "1.0.0", [first("1.0.0"), second]);
    let sandbox = Sandbox::new("c1", "");
    let _ = node.call("ADD", &sandbox, &config).result();
    let _ = calls(&node);
    let (code, message) = node.call("DEL", &sandbox, &config).error();
    assert_eq!(code, 100);
    assert!(["other1", "net1", "cannot let go"].iter().all(|word| message.contains(word)), "{message}");
    assert_eq!(calls(&node), ["DEL rec-second net1", "DEL rec-main eth0"]);
    let shown = node.cli(&["status", "--state-dir", node.state().to_str().unwrap(), "-o", "json"]).result();
    assert_eq!(shown["attachments"][0]["state"], "deleting", "nothing is lost: {shown}");
}

#[test]
fn a_configuration_that_is_no_json_is_refused_by_every_command() {
    let node = node();
    let sandbox = Sandbox::new("c1", "");
    for command in ["ADD", "CHECK", "DEL", "STATUS", "GC"] {
        let mut call = std::process::Command::new(musubi_tests::node::musubi());
        call.env("CNI_COMMAND", command).env("CNI_CONTAINERID", "c1").env("CNI_IFNAME", "eth0");
        call.env("CNI_NETNS", sandbox.netns.path());
        let (code, message) = node.run(call, r#"{"name": "node-cni-network""#).error();
        assert_eq!(code, 6, "{command}: {message}");
    }
    assert_eq!(link_names(&sandbox.netns), ["lo"]);
}

#[test]
fn the_uid_is_compared_where_both_sides_know_it() {
    let node = node();
    let config = config(&node, "1.0.0", [first("1.0.0"), json!({"name": "other1", "type": "rec-second"})]);
    let annotated = |key: &str, value: &str| json!({key: value});
    let rows = [
        ("the same", "u1", json!({}), "u1", true),
        ("the runtime does not say", "u1", json!({}), "", true),
        ("the store does not know", "", json!({}), "u1", true),
        ("another pod of that name", "u2", json!({}), "u1", false),
        ("a static pod's mirror", "u2", annotated("kubernetes.io/config.mirror", "u1"), "u1", true),
        ("a pod of the API", "u2", annotated("kubernetes.io/config.source", "api"), "u1", false),
    ];
    for (case, stored, annotations, asked, ok) in rows {
        let pod = json!({"kind": "Pod", "metadata": {"name": "web", "uid": stored, "annotations": annotations}});
        node.manifest("pod.json", &pod.to_string());
        let sandbox = Sandbox::new("c1", "default/web");
        let mut call = std::process::Command::new(musubi_tests::node::musubi());
        call.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "c1").env("CNI_IFNAME", "eth0");
        let args = format!("{};K8S_POD_UID={asked}", sandbox.args());
        call.env("CNI_NETNS", sandbox.netns.path()).env("CNI_ARGS", &args);
        let output = node.run(call, &config.to_string());
        assert_eq!(output.ok, ok, "{case}: {}", output.stdout);
        let calls = recorded::take(&node);
        assert_eq!(calls.is_empty(), !ok, "{case}");
        assert!(calls.iter().all(|call| call.var("CNI_ARGS") == args), "{case}: the uid goes on to plugins");
        node.call("DEL", &sandbox, &config).succeeded();
        let _ = recorded::take(&node);
    }
}

#[test]
fn the_default_network_has_to_be_ready() {
    let node = node();
    let mut config = config(&node, "1.1.0", [first("1.1.0"), json!({"name": "other1", "type": "rec-second"})]);
    let file = node.folder().join("ready");
    config["readinessindicatorfile"] = json!(file);
    config["timeoutSeconds"] = json!(1);
    let sandbox = Sandbox::new("c1", "");
    let (code, message) = node.call("ADD", &sandbox, &config).error();
    assert_eq!(code, 11);
    assert!(message.contains("ready") && message.contains(file.to_str().unwrap()), "{message}");
    assert_eq!(node.call_network("STATUS", &config).error().0, 50);
    assert_eq!(calls(&node), Vec::<String>::new());
    node.call("DEL", &sandbox, &config).succeeded();
    let _ = calls(&node);
    std::fs::write(&file, "").unwrap();
    node.call_network("STATUS", &config).succeeded();
    let _ = node.call("ADD", &sandbox, &config).result();
}

fn node() -> Node {
    let mut node = Node::new();
    recorded::install(&mut node, Path::new(env!("CARGO_BIN_EXE_recorder")), &["rec-main", "rec-second"]);
    node
}

/// Our configuration of a version with two networks in line of the same.
fn config(node: &Node, version: &str, mut networks: [Value; 2]) -> Value {
    networks.iter_mut().for_each(|network| network["cniVersion"] = json!(version));
    let mut config = node.config(&networks[0]);
    config["cniVersion"] = json!(version);
    config["delegates"] = json!(networks);
    config
}

fn first(version: &str) -> Value {
    let result = match version {
        "0.2.0" => json!({"ip4": {"ip": "1.1.1.2/24"}}),
        "0.3.1" | "0.4.0" => json!({"ips": [{"version": "4", "address": "1.1.1.2/24"}]}),
        _ => json!({"ips": [{"address": "1.1.1.2/24"}]}),
    };
    json!({"name": "weave1", "type": "rec-main", "recorder": {"result": result}})
}

/// The calls so far as `COMMAND plugin interface`.
fn calls(node: &Node) -> Vec<String> {
    let line =
        |call: &Call| format!("{} {} {}", call.command, call.plugin, call.var("CNI_IFNAME")).trim_end().to_owned();
    recorded::take(node).iter().filter(|call| call.command != "STATUS").map(line).collect()
}

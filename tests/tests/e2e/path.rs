//! The whole path of a pod: ADD, CHECK, status, DEL, and nothing left.

use musubi_tests::node::{Node, Sandbox, link_names};
use serde_json::{Value, json};

#[test]
fn a_pod_gets_its_networks_in_order_and_leaves_nothing() {
    let node = Node::new();
    let config = node.config(&node.default_bridge());
    node.definition("default", "blue", &node.bridge("br-blue", "blue", "10.2.0.0/24"));
    node.definition("default", "green", &node.bridge("br-green", "green", "10.3.0.0/24"));
    node.pod("default", "web", "blue,green@green0");
    let sandbox = Sandbox::new("c1", "default/web");

    let result = node.call("ADD", &sandbox, &config).result();
    assert_eq!(result["ips"][0]["address"], "10.1.0.2/24", "the runtime gets the default network's result alone");
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
    assert_eq!(link_names(&sandbox.netns), ["eth0", "green0", "lo", "net1"]);
    node.call("CHECK", &sandbox, &config).succeeded();

    let status = std::fs::read(node.manifests().join("status/default/web.json")).unwrap();
    let status: Value = serde_json::from_slice(&status).unwrap();
    let annotation = status["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"].as_str().unwrap();
    let entries: Value = serde_json::from_str(annotation).unwrap();
    let names: Vec<&Value> = entries.as_array().unwrap().iter().map(|e| &e["name"]).collect();
    assert_eq!(json!(names), json!(["default-network", "default/blue", "default/green"]));
    assert_eq!(entries[0]["default"], true);
    assert_eq!(entries[2]["interface"], "green0");

    node.call("DEL", &sandbox, &config).succeeded();
    node.call("DEL", &sandbox, &config).succeeded();
    assert_eq!(link_names(&sandbox.netns), ["lo"]);
    assert_eq!(node.leftover_files(), Vec::<String>::new());
    assert_eq!(node.links(), ["br-blue", "br-green", "cni0", "lo"]);
}

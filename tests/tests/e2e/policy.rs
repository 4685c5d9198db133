//! AttachmentPolicies on the node: whatever admission has let pass, ADD and hot-plug refuse what is not granted, before
//! anything is touched; from manifests, from the API, and from an agent's memory.
#![allow(clippy::unwrap_used, reason = "what is outside of test functions is part of a test, too")]

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use musubi_tests::agent::{self, Agent};
use musubi_tests::api_server::ApiServer;
use musubi_tests::cluster::{Cluster, NAMESPACE};
use musubi_tests::node::{Node, Output, Sandbox, link_names};
use serde_json::{Value, json};

/// What the tenant of a namespace may use in these tests.
fn policy(whom: &Value) -> Value {
    let mut spec = json!({
        "definitions": {"fromNamespaces": ["shared"]},
        "delegates": [{"type": "bridge", "bridges": ["blue-*"]}],
        "addresses": ["10.2.0.0/16"],
        "paths": "allow",
    });
    spec.as_object_mut().unwrap().extend(whom.as_object().unwrap().clone());
    json!({"apiVersion": "musubi.dev/v1alpha1", "kind": "AttachmentPolicy", "metadata": {"name": "tenant-blue"}, "spec": spec})
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"tenant": "blue"}}})
}

/// Definitions of the tenant, of `shared`, and of nobody it knows.
fn node() -> Node {
    let node = Node::new();
    node.definition("blue", "own", &node.bridge("blue-1", "own", "10.2.0.0/24"));
    node.definition("blue", "escape", &node.bridge("br-default", "escape", "10.2.1.0/24"));
    node.definition("blue", "wide", &node.bridge("blue-2", "wide", "10.3.0.0/24"));
    node.definition("shared", "net", &node.bridge("br-shared", "net", "10.4.0.0/24"));
    node.definition("red", "net", &node.bridge("br-red", "red", "10.5.0.0/24"));
    node.manifest(
        "policy.json",
        &policy(&json!({"namespaceSelector": {"matchLabels": {"tenant": "blue"}}})).to_string(),
    );
    node.manifest("namespace.json", &namespace("blue").to_string());
    node
}

/// ADD, and what it leaves behind when it fails; then DEL.
fn add(node: &Node, config: &Value, pod: &str) -> Output {
    let sandbox = Sandbox::new("c1", pod);
    let before = node.links();
    let added = node.call("ADD", &sandbox, config);
    if !added.ok {
        assert_eq!((link_names(&sandbox.netns), node.leftover_files()), (vec!["lo".to_owned()], vec![]), "{added:?}");
        assert_eq!(node.links(), before, "nothing is touched");
    }
    node.call("DEL", &sandbox, config).succeeded();
    added
}

#[test]
fn add_refuses_what_the_namespace_is_not_granted() {
    let rows = [
        ("own", ""),
        ("shared/net", ""),
        (
            "escape",
            "network blue/escape: bridge: br-default is not among what policy tenant-blue grants to namespace blue: blue-*",
        ),
        (
            "wide",
            "network blue/wide: ipam: 10.3.0.0/24 is not among the addresses that policy tenant-blue grants to namespace blue",
        ),
        ("own,red/net", "network red/net: policy tenant-blue grants no definition of namespace red to namespace blue"),
        (
            r#"[{"name":"net","namespace":"shared","cni-args":{"ips":["10.4.0.9"]}}]"#,
            "network shared/net: cni-args.ips[0]: 10.4.0.9 is not among",
        ),
    ];
    let node = node();
    let config = node.config(&node.default_bridge());
    for (networks, refusal) in rows {
        node.pod("blue", "web", networks);
        let added = add(&node, &config, "blue/web");
        assert_eq!(added.ok, refusal.is_empty(), "{networks}: {added:?}");
        if !added.ok {
            let (code, message) = added.error();
            assert!(code == 7 && message.contains(refusal), "{networks}: {code} {message}");
        }
    }
    // A namespace that no policy selects is as before.
    node.pod("red", "web", "net,blue/escape");
    let (code, message) = add(&node, &config, "red/web").error();
    assert!(
        code == 7 && message.contains("network blue/escape: bridge: br-default"),
        "what blue defines stays blue's: {message}"
    );
    node.pod("red", "web", "net,shared/net");
    assert!(add(&node, &config, "red/web").ok);
}

#[test]
fn the_default_network_is_no_way_around() {
    let node = node();
    let config = node.config(&node.default_bridge());
    let pod = |network: &str| {
        let annotations = json!({"v1.multus-cni.io/default-network": network});
        json!({"kind": "Pod", "metadata": {"name": "web", "namespace": "blue", "annotations": annotations}}).to_string()
    };
    for (network, is_granted) in [("blue/own", true), ("shared/net", true), ("blue/escape", false), ("red/net", false)]
    {
        node.manifest("pod.json", &pod(network));
        let added = add(&node, &config, "blue/web");
        assert_eq!(added.ok, is_granted, "{network}: {added:?}");
        assert!(added.ok || added.error().1.contains("policy tenant-blue"), "{network}: {added:?}");
    }
}

#[test]
fn a_policy_that_cannot_be_read_lets_nobody_pass() {
    let node = node();
    let config = node.config(&node.default_bridge());
    node.pod("red", "web", "net");
    node.pod("red", "plain", "");
    for broken in [
        r#"{"kind": "AttachmentPolicy", "metadata": {"name": "x"}, "spec": {"delegates": []}}"#,
        r#"{"kind": "AttachmentPolicy", "#,
    ] {
        node.manifest("broken.json", broken);
        let (code, message) = add(&node, &config, "red/web").error();
        assert!(
            code == 7 && message.contains("a policy cannot be read: ") && message.contains("broken.json"),
            "{message}"
        );
        assert!(add(&node, &config, "red/plain").ok, "a pod without networks of its own needs no policies");
    }
}

/// The tenant of the test's own namespace, in a cluster: by label.
fn cluster(node: &Node) -> (Cluster, Value) {
    let cluster = node.host.enter(|| Cluster::of(ApiServer::start()));
    let server = cluster.fake().unwrap();
    server.create(&policy(&json!({"namespaceSelector": {"matchLabels": {"tenant": "blue"}}})));
    let mut labelled = namespace(NAMESPACE);
    labelled["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(NAMESPACE);
    server.replace(&labelled);
    cluster.create_definition("own", &node.bridge("blue-1", "own", "10.2.0.0/24"));
    cluster.create_definition("escape", &node.bridge("br-default", "escape", "10.2.1.0/24"));
    let mut config = node.config(&node.default_bridge());
    config.as_object_mut().unwrap().remove("manifestDir");
    config["kubeconfig"] = json!(cluster.kubeconfig(node.folder()));
    (cluster, config)
}

#[test]
fn policies_come_from_the_api_and_from_an_agents_memory() {
    let node = Node::new();
    let (cluster, mut config) = cluster(&node);
    let agent_config = agent::config(&node, &config);
    for with_agent in [false, true] {
        let agent = with_agent.then(|| {
            config["agentSocket"] = json!(agent::socket(&node));
            let agent = Agent::start(&node, &agent_config);
            agent.until("ready", |agent| agent.get("/readyz").status == 200);
            agent
        });
        for (network, is_granted) in [("own", true), ("escape", false)] {
            let name = format!("{network}-{with_agent}");
            cluster.create_pod("node-1", &name, &[("k8s.v1.cni.cncf.io/networks", network)]);
            let added = add(&node, &config, &format!("{NAMESPACE}/{name}"));
            assert_eq!(added.ok, is_granted, "{name}: {added:?}");
            assert!(added.ok || added.error().1.contains("policy tenant-blue grants"), "{name}: {added:?}");
        }
        if let Some(agent) = agent {
            let metrics = agent.get("/metrics").body;
            assert!(metrics.contains("musubi_cached_objects{cache=\"policies\"} 1"), "{metrics}");
            assert!(agent.stop());
        }
    }
}

#[test]
fn hot_plug_is_within_the_fence() {
    let node = node();
    node.pod("blue", "web", "own");
    let mut config = node.config(&node.default_bridge());
    let agent_config = agent::config(&node, &config);
    config["agentSocket"] = json!(agent::socket(&node));
    let agent = Agent::start(&node, &agent_config);
    agent.until("ready", |agent| agent.get("/readyz").status == 200);
    let sandbox = Sandbox::new("c1", "blue/web");
    assert!(node.call("ADD", &sandbox, &config).ok);
    let plug = |network: &Value, attributes: Value| {
        let env = json!({
            "CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": sandbox.netns.path(), "CNI_IFNAME": "hot1",
            "CNI_ARGS": sandbox.args(), "CNI_PATH": "/nowhere",
        });
        let body = json!({"env": env, "config": BASE64_STANDARD.encode(network.to_string()), "interfaceAttributes": attributes});
        agent.post("/delegate", &body.to_string())
    };
    let mut granted = node.bridge("blue-3", "granted", "10.2.3.0/24");
    granted["capabilities"] = json!({"ips": true});
    let rows = [
        (
            node.bridge("br-default", "other", "10.2.4.0/24"),
            json!(null),
            "bridge: br-default is not among what policy tenant-blue grants",
        ),
        (
            granted.clone(),
            json!({"ips": ["10.9.0.1"]}),
            "ips: 10.9.0.1 is not among the addresses that policy tenant-blue grants",
        ),
        (granted, json!({"ips": ["10.2.3.7/24"]}), ""),
    ];
    for (network, attributes, refusal) in rows {
        let answer = plug(&network, attributes);
        assert_eq!(answer.status == 200, refusal.is_empty(), "{answer:?}");
        assert!(answer.body.contains(refusal), "{answer:?}");
    }
    node.call("DEL", &sandbox, &config).succeeded();
}

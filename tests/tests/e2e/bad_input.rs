//! What is wrong is found before anything is touched: each row is an input, the CNI code, and the words that the error has
//! to hold (the network, the key, what is accepted). After each, no link, record, reservation or status is there.

use std::path::Path;
use std::process::Command;

use musubi_tests::node::{self, Node, Output, Sandbox, link_names};
use serde_json::{Value, json};

/// Variables that are other than usual.
type Variables<'a> = Vec<(&'a str, &'a str)>;
/// A file's name and content.
type Manifest = (String, String);

#[test]
fn a_wrong_configuration_of_ours() {
    let mut node = Node::new();
    // No plugins but ours: the reference ones would take over what ours do not serve.
    node.cni_path = vec![node.folder().to_owned()];
    let base = node.config(&node.default_bridge());
    let with = |keys: Value| {
        let mut config = base.clone();
        for (key, value) in keys.as_object().unwrap() {
            match value {
                Value::String(text) if text == "-" => drop(config.as_object_mut().unwrap().shift_remove(key)),
                value => config[key] = value.clone(),
            }
        }
        config.to_string()
    };
    let delegate = |delegate: Value| with(json!({"delegates": [delegate]}));
    let rows: Vec<(String, u64, &[&str])> = vec![
        (String::new(), 6, &["JSON"]),
        ("[]".into(), 6, &["object", "list"]),
        ("null".into(), 6, &["object", "null"]),
        ("\"x\"".into(), 6, &["object"]),
        (base.to_string()[..60].into(), 6, &["JSON", "line 1"]),
        (format!("{base}}}"), 6, &["JSON"]),
        ("{\"a\":".repeat(100_000), 6, &["JSON"]),
        (",".repeat(1 << 20), 6, &["JSON"]),
        (with(json!({"name": "-"})), 7, &["name"]),
        (with(json!({"name": "a/b"})), 7, &["name", "a/b", "letter"]),
        (with(json!({"name": 5})), 7, &["name", "string"]),
        (with(json!({"cniVersion": "9.0.0"})), 1, &["9.0.0", "1.1.0"]),
        (with(json!({"cniVersion": 1})), 7, &["cniVersion", "string"]),
        (with(json!({"delegates": "-"})), 7, &["clusterNetwork", "delegates"]),
        (with(json!({"delegates": "-", "delegate": [{"type": "bridge"}]})), 7, &["clusterNetwork", "delegates"]),
        (with(json!({"delegates": []})), 7, &["clusterNetwork", "delegates"]),
        (with(json!({"delegates": {"type": "bridge"}})), 7, &["delegates", "list"]),
        (with(json!({"delegates": [null]})), 7, &["delegates[0]", "object"]),
        (with(json!({"delegates": [base["delegates"][0], []]})), 7, &["delegates[1]", "object"]),
        (with(json!({"delegates": "-", "clusterNetwork": 7})), 7, &["clusterNetwork", "string"]),
        (with(json!({"defaultNetworks": "a"})), 7, &["defaultNetworks", "list"]),
        (with(json!({"defaultNetworks": [1]})), 7, &["defaultNetworks[0]", "string"]),
        (with(json!({"systemNamespaces": [1]})), 7, &["systemNamespaces[0]", "string"]),
        (with(json!({"globalNamespaces": ["a"]})), 7, &["globalNamespaces", "string"]),
        (with(json!({"namespaceIsolation": "yes"})), 7, &["namespaceIsolation", "true or false"]),
        (with(json!({"legacyCniArgs": 1})), 7, &["legacyCniArgs", "true or false"]),
        (with(json!({"nativeDelegates": "bridge"})), 7, &["nativeDelegates", "list"]),
        (with(json!({"nativeDelegates": [1]})), 7, &["nativeDelegates[0]", "string"]),
        (with(json!({"networkStatus": "some"})), 7, &["networkStatus", "some", "all", "selected"]),
        (with(json!({"timeoutSeconds": 0})), 7, &["timeoutSeconds", "1", "3600"]),
        (with(json!({"timeoutSeconds": "90"})), 7, &["timeoutSeconds", "1", "3600"]),
        (with(json!({"runtimeConfig": []})), 7, &["runtimeConfig", "object"]),
        (with(json!({"binDir": 1})), 7, &["binDir", "string"]),
        (with(json!({"manifestDir": "/nonexistent"})), 7, &["manifestDir", "/nonexistent"]),
        // The networks in line.
        (delegate(json!({"name": "n"})), 7, &["delegates[0]", "type", "plugins"]),
        (delegate(json!({"name": "n", "plugins": []})), 7, &["delegates[0]", "plugins", "at least one"]),
        (delegate(json!({"name": "n", "plugins": {}})), 7, &["delegates[0]", "plugins", "list"]),
        (delegate(json!({"name": "n", "plugins": [null]})), 7, &["delegates[0]", "plugins[0]", "object"]),
        (delegate(json!({"name": "n", "plugins": [{"name": "x"}]})), 7, &["delegates[0]", "plugins[0].type"]),
        (delegate(json!({"name": "n", "type": "../bridge"})), 7, &["delegates[0]", "type", "../bridge"]),
        (delegate(json!({"name": "n", "type": ".."})), 7, &["delegates[0]", "type"]),
        (delegate(json!({"name": "n", "type": "/bin/sh"})), 7, &["delegates[0]", "type", "/bin/sh"]),
        (delegate(json!({"name": "n", "type": 7})), 7, &["delegates[0]", "type", "string"]),
        (delegate(json!({"name": "a b", "type": "bridge"})), 7, &["delegates[0]", "name", "a b"]),
        (delegate(json!({"name": "n", "type": "bridge", "cniVersion": "7.1"})), 1, &["delegates[0]", "7.1"]),
        (
            delegate(json!({"name": "n", "type": "bridge", "capabilities": ["ips"]})),
            7,
            &["delegates[0]", "capabilities"],
        ),
        (delegate(json!({"name": "n", "type": "bridge", "capabilities": {"ips": 1}})), 7, &["capabilities.ips"]),
        (delegate(json!({"name": "n", "type": "musubi"})), 7, &["delegates[0]", "type", "musubi"]),
        (
            delegate(json!({"name": "n", "plugins": [{"type": "bridge"}, {"type": "musubi"}]})),
            7,
            &["delegates[0]", "type", "musubi"],
        ),
        (delegate(json!({"name": "n", "type": "nobody-has-it"})), 7, &["network n", "nobody-has-it", "bin"]),
        (delegate(json!({"name": "n", "type": "bridge", "mtu": "big"})), 7, &["network n", "mtu", "number"]),
        (delegate(json!({"name": "n", "type": "bridge", "vlan": 5000})), 7, &["network n", "vlan", "4094"]),
        (
            delegate(json!({"name": "n", "type": "macvlan", "mode": "fast"})),
            7,
            &["network n", "mode", "fast", "private"],
        ),
        (
            delegate(json!({"name": "n", "type": "vlan", "master": "x", "vlanId": -1, "ipam": {"type": "static"}})),
            7,
            &["network n", "vlanId"],
        ),
        (
            delegate(json!({"name": "n", "type": "bridge", "ipam": {"type": "host-local", "subnet": "10.0.0.300/24"}})),
            7,
            &["network n", "ipam", "subnet", "10.0.0.300/24"],
        ),
        (
            delegate(json!({"name": "n", "plugins": [{"type": "bridge"}, {"type": "bridge", "vlan": "x"}]})),
            7,
            &["network n", "plugins[1].vlan"],
        ),
        // A value that the reference plugin serves and ours does not, where that plugin is missing.
        (
            delegate(json!({"name": "n", "type": "bridge", "ipMasq": true, "ipMasqBackend": "iptables"})),
            2,
            &["network n", "ipMasqBackend", "iptables"],
        ),
    ];
    for (config, code, words) in rows {
        let case: String = config.chars().take(400).collect();
        let sandbox = Sandbox::new("c1", "");
        let output = run(&node, "ADD", &sandbox, &[], &config);
        assert_error(&case, &output, code, words);
        assert_untouched(&case, &node, &sandbox);
    }
}

#[test]
fn a_wrong_request() {
    let node = Node::new();
    let config = node.config(&node.default_bridge()).to_string();
    let host = node.host.path().display().to_string();
    let long = "x".repeat(16);
    let rows: Vec<(&str, Variables, u64, &[&str])> = vec![
        ("ADD", vec![("CNI_CONTAINERID", "")], 4, &["CNI_CONTAINERID"]),
        ("ADD", vec![("CNI_CONTAINERID", "../c1")], 4, &["container id", "../c1", "letter"]),
        ("ADD", vec![("CNI_CONTAINERID", "c 1")], 4, &["container id"]),
        ("ADD", vec![("CNI_IFNAME", "")], 4, &["CNI_IFNAME"]),
        ("ADD", vec![("CNI_IFNAME", &long)], 4, &["interface", "15 bytes"]),
        ("ADD", vec![("CNI_IFNAME", "a/b")], 4, &["interface", "a/b"]),
        ("ADD", vec![("CNI_IFNAME", "..")], 4, &["interface", ".."]),
        (
            "ADD",
            vec![("CNI_IFNAME", ""), ("CNI_NETNS", ""), ("CNI_CONTAINERID", "")],
            4,
            &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
        ),
        ("ADD", vec![("CNI_ARGS", "a")], 4, &["CNI_ARGS", "KEY=VALUE"]),
        ("ADD", vec![("CNI_ARGS", "a=b;")], 4, &["CNI_ARGS", "KEY=VALUE"]),
        ("ADD", vec![("CNI_NETNS", "/nonexistent/netns")], 8, &["/nonexistent/netns"]),
        ("ADD", vec![("CNI_NETNS", "/etc/hostname")], 8, &["/etc/hostname"]),
        ("ADD", vec![("CNI_NETNS", &host)], 8, &["own network namespace"]),
        ("add", vec![], 4, &["CNI_COMMAND", "ADD", "DEL"]),
    ];
    for (command, changes, code, words) in rows {
        let sandbox = Sandbox::new("c1", "");
        let output = run(&node, command, &sandbox, &changes, &config);
        let case = format!("{command} {changes:?}");
        assert_error(&case, &output, code, words);
        assert_untouched(&case, &node, &sandbox);
    }
}

#[test]
fn a_container_that_was_never_attached() {
    let node = Node::new();
    let config = node.config(&node.default_bridge());
    let sandbox = Sandbox::new("c1", "");
    let (code, message) = node.call("CHECK", &sandbox, &config).error();
    assert_eq!(code, 3);
    assert!(message.contains("c1") && message.contains("musubi-network"), "{message}");
    assert_untouched("CHECK", &node, &sandbox);
    node.call("DEL", &sandbox, &config).succeeded();
    assert_untouched("DEL", &node, &sandbox);
}

#[test]
fn a_wrong_definition() {
    let text = |config: &str| ("nad.json".to_owned(), definition("default", "blue", &json!(config)));
    let object = |config: Value| ("nad.json".to_owned(), definition("default", "blue", &json!(config.to_string())));
    let rows: Vec<(&str, Manifest, u64, &[&str])> = vec![
        (
            "none",
            ("other.json".into(), definition("default", "green", &json!("{}"))),
            7,
            &["default/blue", "element 2"],
        ),
        ("another namespace", ("nad.json".into(), definition("blue", "blue", &json!("{}"))), 7, &["default/blue"]),
        ("no JSON", text("{\"type\": \"bridge\""), 6, &["default/blue", "JSON", "line 1"]),
        ("a list", text("[]"), 6, &["default/blue", "object"]),
        ("null", text("null"), 6, &["default/blue", "null"]),
        ("a text", text("\"bridge\""), 6, &["default/blue"]),
        ("commas", text(&",".repeat(1 << 20)), 6, &["default/blue", "JSON"]),
        ("deep", text(&"[".repeat(100_000)), 6, &["default/blue", "JSON"]),
        ("empty object", object(json!({})), 7, &["default/blue", "plugins", "type"]),
        ("no type", object(json!({"name": "x"})), 7, &["default/blue", "type"]),
        ("empty type", object(json!({"type": ""})), 7, &["default/blue", "type"]),
        ("path", object(json!({"type": "../../bin/sh"})), 7, &["default/blue", "type", "../../bin/sh"]),
        ("backslash", object(json!({"type": "a\\b"})), 7, &["default/blue", "type"]),
        ("nobody's type", object(json!({"type": "nobody-has-it"})), 7, &["default/blue", "nobody-has-it"]),
        ("no plugins", object(json!({"plugins": []})), 7, &["default/blue", "plugins"]),
        ("plugins null", object(json!({"plugins": [null]})), 7, &["default/blue", "plugins[0]"]),
        ("bad name", object(json!({"name": "../x", "type": "bridge"})), 7, &["default/blue", "name", "../x"]),
        ("bad version", object(json!({"cniVersion": "0.9.9", "type": "bridge"})), 1, &["default/blue", "0.9.9"]),
        ("itself", object(json!({"type": "musubi"})), 7, &["default/blue", "type", "musubi"]),
        (
            "itself, chained",
            object(json!({"plugins": [{"type": "bridge"}, {"type": "musubi"}]})),
            7,
            &["default/blue", "type", "musubi"],
        ),
        (
            "a wrong key",
            object(json!({"type": "bridge", "hairpinMode": 1})),
            7,
            &["default/blue", "hairpinMode", "true or false"],
        ),
        ("wrong IPAM", object(json!({"type": "bridge", "ipam": 5})), 7, &["default/blue", "ipam"]),
        (
            "a vlan out of range",
            object(json!({"type": "vlan", "master": "x", "vlanId": 4096})),
            7,
            &["default/blue", "vlanId", "4094"],
        ),
        (
            "a map instead of a text",
            ("nad.json".into(), definition("default", "blue", &json!({"type": "bridge"}))),
            7,
            &["default/blue", "spec.config", "string", "nad.json"],
        ),
        ("wrong YAML", ("nad.yaml".into(), "kind: [\nmetadata".into()), 7, &["default/blue", "nad.yaml"]),
        ("wrong JSON file", ("nad.json".into(), "{".into()), 7, &["default/blue", "nad.json"]),
        (
            "no name",
            ("nad.yaml".into(), "kind: NetworkAttachmentDefinition\nmetadata: {}\nspec: {}\n".into()),
            7,
            &["default/blue", "nad.yaml", "name"],
        ),
        (
            "a name that is a path",
            ("nad.json".into(), definition("default", "../blue", &json!("{}"))),
            7,
            &["default/blue", "../blue", "lower-case"],
        ),
        (
            "no configuration, and no file",
            ("nad.yaml".into(), "kind: NetworkAttachmentDefinition\nmetadata: {name: blue}\n".into()),
            7,
            &["default/blue", "spec.config", "conf.d"],
        ),
        (
            "twice in a file",
            (
                "nad.json".into(),
                format!(
                    "{} {}",
                    definition("default", "blue", &json!("{}")),
                    definition("default", "blue", &json!("{}"))
                ),
            ),
            7,
            &["default/blue", "more than one", "nad.json"],
        ),
    ];
    for (case, (file, manifest), code, words) in rows {
        let node = Node::new();
        let mut config = node.config(&node.default_bridge());
        config["confDir"] = json!(node.folder().join("conf.d"));
        node.definition("default", "good", &node.bridge("br-good", "good", "10.2.0.0/24"));
        node.pod("default", "web", "good,blue");
        node.manifest(&file, &manifest);
        let sandbox = Sandbox::new("c1", "default/web");
        let output = run(&node, "ADD", &sandbox, &[], &config.to_string());
        assert_error(case, &output, code, words);
        assert_untouched(case, &node, &sandbox);
        let conf = node.folder().join("musubi.conf");
        std::fs::write(&conf, config.to_string()).unwrap();
        let explained = node.cli(&["explain", "web", "--config", conf.to_str().unwrap()]);
        if case == "nobody's type" {
            // Whether a plugin is on the runtime's CNI_PATH is not for explain to know; it tells what it sees.
            assert!(explained.ok && explained.stdout.contains("nobody-has-it"), "{explained:?}");
        } else {
            assert_error(case, &explained, code, words);
        }
    }
}

#[test]
fn two_objects_of_one_name() {
    let node = Node::new();
    let config = node.config(&node.default_bridge()).to_string();
    let blue = node.bridge("br-blue", "blue", "10.2.0.0/24");
    node.definition("default", "blue", &blue);
    node.pod("default", "web", "blue");
    std::fs::create_dir(node.manifests().join("sub")).unwrap();
    let again = definition("default", "blue", &json!(blue.to_string()));
    node.manifest("sub/again.yml", &format!("---\n{again}\n---\n"));
    let sandbox = Sandbox::new("c1", "default/web");
    let output = run(&node, "ADD", &sandbox, &[], &config);
    assert_error(
        "two definitions",
        &output,
        7,
        &["default/blue", "more than one", "nad-default-blue.json", "again.yml"],
    );
    assert_untouched("two definitions", &node, &sandbox);

    std::fs::remove_file(node.manifests().join("sub/again.yml")).unwrap();
    node.manifest("sub/pods.json", r#"{"kind":"List","items":[{"kind":"Pod","metadata":{"name":"web"}}]}"#);
    let output = run(&node, "ADD", &sandbox, &[], &config);
    assert_error("two pods", &output, 7, &["pod default/web", "more than one", "pods.json"]);
    assert_untouched("two pods", &node, &sandbox);

    std::fs::remove_file(node.manifests().join("sub/pods.json")).unwrap();
    std::fs::create_dir(node.manifests().join("status")).unwrap();
    node.manifest("status/blue.json", &again);
    let output = run(&node, "ADD", &sandbox, &[], &config);
    assert!(output.ok, "what is below status/ is no manifest: {}", output.stdout);
}

#[test]
fn a_manifest_that_cannot_be_read_hurts_only_what_it_may_hold() {
    let node = Node::new();
    let config = node.config(&node.default_bridge());
    node.definition("default", "blue", &node.bridge("br-blue", "blue", "10.2.0.0/24"));
    node.pod("default", "web", "blue");
    node.manifest("broken.yaml", "kind: [");
    let one_wrong = format!(
        "{}\n{}\n",
        definition("default", "wrong", &json!(5)),
        definition("default", "green", &json!(node.bridge("br-green", "green", "10.3.0.0/24").to_string())),
    );
    node.manifest("mixed.json", &one_wrong);
    std::fs::write(node.folder().join("musubi.conf"), config.to_string()).unwrap();
    let conf = node.folder().join("musubi.conf").display().to_string();

    let explained = node.cli(&["explain", "web", "--config", &conf, "-o", "json"]).result();
    let warnings: Vec<&str> = explained["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("broken.yaml"), "{warnings:?}");
    assert!(warnings[1].contains("mixed.json") && warnings[1].contains("wrong"), "{warnings:?}");
    node.pod("default", "web", "blue,green");
    let sandbox = Sandbox::new("c1", "default/web");
    let _ = node.call("ADD", &sandbox, &config).result();
    node.call("DEL", &sandbox, &config).succeeded();

    let unknown = Sandbox::new("c2", "default/api");
    let output = run(&node, "ADD", &unknown, &[], &config.to_string());
    assert_error("a pod that may be in it", &output, 7, &["pod default/api", "broken.yaml"]);
}

#[test]
fn a_pod_that_is_not_known_is_tried_again() {
    let node = Node::new();
    let config = node.config(&node.default_bridge()).to_string();
    let sandbox = Sandbox::new("c1", "default/web");
    let output = run(&node, "ADD", &sandbox, &[], &config);
    assert_error("no such pod", &output, 11, &["default/web"]);
    assert_untouched("no such pod", &node, &sandbox);
    node.manifest(
        "pod.json",
        r#"{"kind":"Pod","metadata":{"name":"web","uid":"b","annotations":{"k8s.v1.cni.cncf.io/networks":"[null]"}}}"#,
    );
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=a";
    let output = run(&node, "ADD", &sandbox, &[("CNI_ARGS", args)], &config);
    assert_error("another uid", &output, 11, &["default/web", "uid"]);
    let output = run(&node, "ADD", &sandbox, &[], &config);
    assert_error("null", &output, 7, &["k8s.v1.cni.cncf.io/networks", "element 1", "null"]);
    assert_untouched("null", &node, &sandbox);
}

#[test]
fn a_wrong_cluster_network() {
    let node = Node::new();
    let conf_dir = node.folder().join("conf.d");
    let sub = conf_dir.join("sub");
    std::fs::create_dir_all(&sub).unwrap();
    let empty = node.folder().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let file = |name: &str, text: &str| {
        let path = sub.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let rows: Vec<(String, u64, &[&str])> = vec![
        ("nope".into(), 7, &["clusterNetwork", "kube-system/nope", "conf.d"]),
        ("/nonexistent/net.conf".into(), 7, &["clusterNetwork", "/nonexistent/net.conf"]),
        (empty.display().to_string(), 7, &["clusterNetwork", ".conf", ".conflist"]),
        (file("json.conf", "{"), 6, &["clusterNetwork", "json.conf", "JSON"]),
        (file("nameless.conf", r#"{"type":"bridge"}"#), 7, &["clusterNetwork", "nameless.conf", "name"]),
        (file("typeless.conf", r#"{"name":"x"}"#), 7, &["clusterNetwork", "typeless.conf", "type"]),
        (file("path.conf", r#"{"name":"x","type":"a/b"}"#), 7, &["clusterNetwork", "path.conf", "type", "a/b"]),
        (file("own.conf", r#"{"name":"x","type":"musubi"}"#), 7, &["clusterNetwork", "own.conf", "musubi"]),
        (
            file("own.conflist", r#"{"name":"x","plugins":[{"type":"bridge"},{"type":"musubi"}]}"#),
            7,
            &["clusterNetwork", "own.conflist", "musubi"],
        ),
    ];
    for (value, code, words) in rows {
        let mut config = node.config(&node.default_bridge());
        config["confDir"] = json!(conf_dir);
        config["clusterNetwork"] = json!(value);
        let sandbox = Sandbox::new("c1", "");
        let output = run(&node, "ADD", &sandbox, &[], &config.to_string());
        assert_error(&value, &output, code, words);
        assert_untouched(&value, &node, &sandbox);
        // The same for who asks whether the network is ready.
        let (status, message) = node.call_network("STATUS", &config).error();
        assert_eq!(status, 50, "{value}: {message}");
    }
}

#[test]
fn unknown_keys_of_ours_are_warned_about_by_name() {
    let node = Node::new();
    let mut config = node.config(&node.default_bridge());
    config["isGateway"] = json!(true);
    config["timeoutseconds"] = json!(30);
    let sandbox = Sandbox::new("c1", "");
    let output = node.call("ADD", &sandbox, &config);
    let _ = output.result();
    let warned: Vec<&str> = output.stderr.lines().filter(|line| line.contains("not known")).collect();
    assert_eq!(warned.len(), 1, "{}", output.stderr);
    assert!(warned[0].contains("\"isGateway\""), "{warned:?}");
}

/// DEL is not held up by what it does not need.
#[test]
fn del_takes_what_is_wrong_as_it_comes() {
    let node = Node::new();
    let config = node.config(&node.default_bridge());
    let sandbox = Sandbox::new("c1", "");
    let _ = node.call("ADD", &sandbox, &config).result();
    let mut wrong = config.clone();
    wrong["manifestDir"] = json!("/nonexistent");
    wrong["delegates"] = json!([{"name": "n", "type": "nobody-has-it"}]);
    let output = run(&node, "DEL", &sandbox, &[("CNI_ARGS", "a;;b"), ("CNI_NETNS", "")], &wrong.to_string());
    assert!(output.ok, "{}", output.stdout);
    assert_eq!(node.leftover_files(), Vec::<String>::new());
    assert_eq!(link_names(&sandbox.netns), ["lo"]);
}

fn definition(namespace: &str, name: &str, config: &Value) -> String {
    json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
           "metadata": {"name": name, "namespace": namespace}, "spec": {"config": config}})
    .to_string()
}

/// Calls our plugin with some variables other than usual; an empty one is not set.
fn run(node: &Node, command: &str, sandbox: &Sandbox, changes: &[(&str, &str)], stdin: &str) -> Output {
    let mut call = Command::new(node::musubi());
    call.env("CNI_COMMAND", command).env("CNI_CONTAINERID", &sandbox.id).env("CNI_IFNAME", "eth0");
    call.env("CNI_NETNS", sandbox.netns.path()).env("CNI_ARGS", sandbox.args());
    for (name, value) in changes {
        if value.is_empty() {
            call.env_remove(name);
        } else {
            call.env(name, value);
        }
    }
    node.run(call, stdin)
}

fn assert_error(case: &str, output: &Output, code: u64, words: &[&str]) {
    assert!(!output.ok, "{case}: succeeded with {}", output.stdout);
    let (actual, message) = output.error();
    assert_eq!(actual, code, "{case}: {message}");
    let error = output.json();
    let whole = format!("{message}\n{}", error["details"].as_str().unwrap_or_default());
    for word in words {
        assert!(whole.contains(word), "{case}: {whole:?} does not name {word:?}");
    }
    let short = message.len() < 700 && !message.contains('\n');
    assert!(short, "{case}: not one short line: {message:?}");
    assert!(!message.contains("panic") && !message.contains("internal error"), "{case}: {message}");
}

fn assert_untouched(case: &str, node: &Node, sandbox: &Sandbox) {
    assert_eq!(node.links(), ["lo"], "{case}: links of the host");
    assert_eq!(link_names(&sandbox.netns), ["lo"], "{case}: links of the pod");
    assert_eq!(node.leftover_files(), Vec::<String>::new(), "{case}: files");
    assert!(!Path::new(&node.reservations()).exists(), "{case}: reservations");
}

//! `musubi explain`: where it reads from, what it shows, and that the default network is found as a node would find it.

use musubi_tests::node::{Node, Output};
use serde_json::{Value, json};

#[test]
fn the_configuration_may_stand_in_a_list() {
    let node = node();
    let single = node.config(&node.default_bridge());
    let mut inner = single.clone();
    for key in ["name", "cniVersion"] {
        inner.as_object_mut().unwrap().shift_remove(key);
    }
    let list = json!({"cniVersion": "1.0.0", "name": "cluster", "plugins": [{"type": "bandwidth"}, inner]});
    let [alone, in_list] = [single, list].map(|config| json_of(&explain(&node, &config, &[])));
    assert_eq!(alone, in_list, "the same plan");
    let foreign = json!({"cniVersion": "1.0.0", "name": "cluster", "plugins": [{"type": "bridge"}]});
    let (code, message) = explain(&node, &foreign, &[]).error();
    assert_eq!(code, 7);
    assert!(message.contains("\"type\": \"musubi\""), "{message}");
}

#[test]
fn the_folder_of_manifests_can_be_another() {
    let node = node();
    let other = node.folder().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("pod.yaml"), "kind: Pod\nmetadata: {name: web, namespace: apps}\n").unwrap();
    let folder = other.to_str().unwrap();
    let mut config = node.config(&node.default_bridge());
    let shown = json_of(&explain(&node, &config, &["-n", "apps", "--manifests", folder]));
    assert_eq!((&shown["pod"], shown["attachments"].as_array().unwrap().len()), (&json!("apps/web"), 1));
    let (code, message) = explain(&node, &config, &["-n", "apps"]).error();
    assert_eq!(code, 11, "{message}");
    assert!(message.contains("apps/web"), "{message}");
    config.as_object_mut().unwrap().shift_remove("manifestDir");
    assert!(explain(&node, &config, &["-n", "apps", "--manifests", folder]).ok);
    let output = explain(&node, &config, &[]);
    assert_eq!(output.error().0, 7);
    assert!(output.stdout.contains("--manifests"), "it says what to give: {}", output.stdout);
    let output = node.cli(&["explain", "web", "--config", "/nonexistent/00-musubi.conf"]);
    assert!(!output.ok && output.stderr.contains("/nonexistent/00-musubi.conf"), "{output:?}");
}

#[test]
fn the_table_begins_at_the_left_and_says_who_does_it() {
    let node = node();
    let mut config = node.config(&node.default_bridge());
    config["nativeDelegates"] = json!(["bridge"]);
    config["isGateway"] = json!(true);
    node.pod(
        "default",
        "web",
        r#"[{"name":"blue","ips":["10.2.0.9/24"],"default-route":["10.2.0.1"]},{"name":"chained"}]"#,
    );
    let file = node.folder().join("table.conf");
    std::fs::write(&file, config.to_string()).unwrap();
    let output = node.cli(&["explain", "web", "--config", file.to_str().unwrap()]);
    assert!(output.ok, "{output:?}");
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines[0], "pod default/web");
    assert!(lines[2].starts_with("INTERFACE  NETWORK"), "{}", output.stdout);
    let rows: Vec<Vec<&str>> = lines[3..7].iter().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..5], ["eth0", "default-network", "(default)", "bridge", "native:"]);
    assert_eq!(rows[1][..4], ["net1", "default/blue", "bridge", "native:"]);
    assert!(lines[4].contains("IP=10.2.0.9/24") && lines[4].contains("default route by 10.2.0.1"), "{}", lines[4]);
    assert_eq!(rows[2][..4], ["net2", "default/chained", "macvlan", "external:"]);
    assert!(lines[5].contains("nativeDelegates"), "{}", lines[5]);
    assert_eq!(rows[3][..2], ["tuning", "external:"], "the second of a chain stands below the first");
    assert!(lines.iter().any(|line| line.starts_with("warning: ") && line.contains("isGateway")), "{}", output.stdout);
    assert!(lines.iter().all(|line| !line.ends_with(' ')), "no blanks at the end");
}

#[test]
fn each_delegate_says_who_runs_it_and_why() {
    let node = node();
    let bridge = |keys: Value| {
        let mut conf = node.default_bridge();
        conf.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        conf
    };
    let rows: Vec<(Value, Value, &str, &str)> = vec![
        (json!({}), json!(null), "native", "bundled"),
        (json!({}), json!(false), "external", "nativeDelegates"),
        (json!({}), json!(["macvlan"]), "external", "nativeDelegates"),
        (json!({"ipMasq": true, "ipMasqBackend": "iptables"}), json!(true), "external", "ipMasqBackend"),
        (json!({"type": "acme-cni"}), json!(null), "external", "acme-cni"),
    ];
    for (keys, native, runs, why) in rows {
        let mut config = node.config(&bridge(keys.clone()));
        config["nativeDelegates"] = native;
        let delegate = json_of(&explain(&node, &config, &[]))["attachments"][0]["delegates"][0].clone();
        assert_eq!(delegate["runs"], runs, "{keys}");
        assert!(delegate["why"].as_str().unwrap().contains(why), "{keys}: {}", delegate["why"]);
    }
}

#[test]
fn warnings_are_listed_with_their_network_and_key() {
    let node = node();
    node.definition(
        "default",
        "odd",
        &json!({"cniVersion": "1.0.0", "name": "odd", "type": "bridge", "isGatway": true}),
    );
    node.pod("default", "web", r#"[{"name":"odd","vlan":5}]"#);
    node.manifest("broken.json", "{");
    let mut config = node.config(&node.default_bridge());
    config["multusNameSpace"] = json!("kube-system");
    config["clusterNetworks"] = json!("x");
    config["defaultNetworks"] = json!(["blue"]);
    config["logLevel"] = json!("loud");
    let shown = json_of(&explain(&node, &config, &[]));
    let warnings: Vec<&str> = shown["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let expected: [&[&str]; 6] = [
        &["\"clusterNetworks\"", "not known"],
        &["\"defaultNetworks\"", "ignored", "clusterNetwork"],
        &["\"logLevel\"", "loud", "panic", "debug"],
        &["default/odd", "isGatway"],
        &["default/odd", "\"vlan\"", "annotation"],
        &["broken.json"],
    ];
    for words in expected {
        let found = warnings.iter().filter(|line| words.iter().all(|word| line.contains(word))).count();
        assert_eq!(found, 1, "{words:?} in {warnings:#?}");
    }
    assert_eq!(warnings.len(), expected.len(), "{warnings:#?}");
    config["defaultNetworks"] = json!([]);
    config["clusterNetwork"] = json!("cluster");
    node.definition("kube-system", "cluster", &node.bridge("br-c", "cluster", "10.7.0.0/24"));
    let shown = json_of(&explain(&node, &config, &[]));
    assert!(shown["warnings"].to_string().contains(r#"\"delegates\" is ignored"#), "{}", shown["warnings"]);
}

#[test]
fn a_plugin_that_is_not_there_is_told() {
    let node = node();
    let config = node.config(&json!({"cniVersion": "1.0.0", "name": "n", "type": "acme-cni"}));
    let warnings = json_of(&explain(&node, &config, &[]))["warnings"].to_string();
    assert!(warnings.contains("acme-cni") && warnings.contains("/bin"), "{warnings}");
    let bin = node.folder().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink("/bin/true", bin.join("acme-cni")).unwrap();
    assert_eq!(json_of(&explain(&node, &config, &[]))["warnings"], json!([]));
}

#[test]
fn the_cluster_network_is_found_in_the_order_of_multus() {
    let node = node();
    let conf_dir = node.folder().join("conf.d");
    let folder = node.folder().join("net.d");
    for path in [&conf_dir, &folder, &folder.join("by-path")] {
        std::fs::create_dir(path).unwrap();
    }
    let write = |path: std::path::PathBuf, config: Value| {
        std::fs::write(&path, config.to_string()).unwrap();
        path.display().to_string()
    };
    let conf = |name: &str, mark: &str| json!({"cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": mark});
    let list = |name: &str, mark: &str| json!({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "bridge", "bridge": mark}]});
    let plan = |value: &str| {
        let mut config = node.config(&node.default_bridge());
        config.as_object_mut().unwrap().shift_remove("delegates");
        config["confDir"] = json!(conf_dir);
        config["clusterNetwork"] = json!(value);
        let shown = json_of(&explain(&node, &config, &[]));
        let attachment = &shown["attachments"][0];
        assert_eq!((&attachment["interface"], &attachment["default"]), (&json!("eth0"), &json!(true)));
        let marks: Vec<String> = attachment["delegates"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| d["config"]["bridge"].as_str().unwrap_or_else(|| d["type"].as_str().unwrap()).to_owned())
            .collect();
        format!("{}: {}", attachment["network"].as_str().unwrap(), marks.join(" "))
    };

    // By name: files are known by the name inside; lists come before single configurations, whatever the file's name.
    write(conf_dir.join("10-x.conf"), conf("cluster", "conf"));
    assert_eq!(plan("cluster"), "cluster: conf");
    write(conf_dir.join("05-x.json"), conf("cluster", "json"));
    assert_eq!(plan("cluster"), "cluster: json");
    write(conf_dir.join("90-x.conflist"), list("cluster", "list"));
    assert_eq!(plan("cluster"), "cluster: list");
    // Other files of the folder do not matter: broken ones, ours, those of other names.
    std::fs::write(conf_dir.join("00-broken.conflist"), "{").unwrap();
    write(
        conf_dir.join("00-musubi.conf"),
        json!({"name": "musubi-network", "type": "musubi", "clusterNetwork": "cluster"}),
    );
    write(conf_dir.join("00-other.conf"), json!({"name": "cluster2", "type": "a/b"}));
    write(conf_dir.join("cluster.txt"), conf("cluster", "txt"));
    assert_eq!(plan("cluster"), "cluster: list");
    // A definition of multusNamespace comes before any file, one of another namespace does not count.
    node.definition("default", "cluster", &conf("x", "elsewhere"));
    assert_eq!(plan("cluster"), "cluster: list");
    node.definition("kube-system", "cluster", &conf("inner", "definition"));
    assert_eq!(plan("cluster"), "kube-system/cluster: definition");

    // By path: the first file of a folder, or a file; a list brings the plugins of its folder along.
    write(folder.join("20-second.conf"), conf("second", "second"));
    assert_eq!(plan(&format!("{}", folder.display())), "second: second");
    write(folder.join("10-first.conflist"), list("by-path", "first"));
    std::fs::write(folder.join("00-zero.json"), "not read: neither .conf nor .conflist").unwrap();
    assert_eq!(plan(&format!("{}/", folder.display())), "by-path: first");
    write(folder.join("by-path/20-b.conf"), json!({"type": "tuning"}));
    write(folder.join("by-path/10-a.conf"), json!({"type": "portmap"}));
    std::fs::write(folder.join("by-path/notes.txt"), "not read").unwrap();
    let file = folder.join("10-first.conflist").display().to_string();
    assert_eq!(plan(&file), "by-path: first portmap tuning");
    let mut alone = list("by-path", "first");
    alone["loadOnlyInlinedPlugins"] = json!(true);
    write(folder.join("10-first.conflist"), alone);
    assert_eq!(plan(&file), "by-path: first");
    write(folder.join("30-single.conf"), conf("by-path", "single"));
    assert_eq!(plan(&format!("{}/30-single.conf", folder.display())), "by-path: single", "a single one has no folder");
}

#[test]
fn a_definition_without_a_configuration_names_a_file() {
    let node = node();
    let conf_dir = node.folder().join("conf.d");
    std::fs::create_dir(&conf_dir).unwrap();
    let mut config = node.config(&node.default_bridge());
    config["confDir"] = json!(conf_dir);
    for spec in ["", "spec: {}\n", "spec: {config: \"\"}\n", "spec: {config: null}\n", "spec: {config: \"  \"}\n"] {
        node.manifest(
            "nad.yaml",
            &format!(
                "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata: {{name: ondisk}}\n{spec}"
            ),
        );
        node.pod("default", "web", "ondisk");
        let file = conf_dir.join("77-any.conf");
        let _ = std::fs::remove_file(&file);
        let (code, message) = explain(&node, &config, &[]).error();
        assert_eq!(code, 7);
        assert!(message.contains("default/ondisk") && message.contains("conf.d"), "{message}");
        std::fs::write(&file, r#"{"cniVersion":"1.0.0","name":"ondisk","type":"bridge","bridge":"b7"}"#).unwrap();
        let attachment = json_of(&explain(&node, &config, &[]))["attachments"][1].clone();
        assert_eq!(
            (&attachment["network"], &attachment["delegates"][0]["config"]["bridge"]),
            (&json!("default/ondisk"), &json!("b7"))
        );
        std::fs::write(&file, r#"{"name":"ondisk","type":"musubi","clusterNetwork":"x"}"#).unwrap();
        let (code, message) = explain(&node, &config, &[]).error();
        assert_eq!(code, 7);
        assert!(message.contains("77-any.conf") && message.contains("musubi"), "{message}");
        std::fs::write(&file, r#"{"name":"ondisk""#).unwrap();
        let (code, message) = explain(&node, &config, &[]).error();
        assert_eq!(code, 6, "a file that may be the one");
        assert!(message.contains("default/ondisk") && message.contains("77-any.conf"), "{message}");
    }
}

#[test]
fn further_default_networks_come_before_the_pods_own() {
    let node = node();
    for name in ["cluster", "extra1", "extra2"] {
        node.definition("kube-system", name, &node.bridge(&format!("b-{name}"), name, "10.7.0.0/24"));
    }
    node.definition("home", "cluster", &node.bridge("b-home", "home", "10.8.0.0/24"));
    node.pod("default", "web", "blue");
    node.pod("kube-system", "web", "default/blue");
    node.pod("apps", "web", "default/blue");
    let mut config = node.config(&node.default_bridge());
    config.as_object_mut().unwrap().shift_remove("delegates");
    // The machine's own folder may be there, and closed to whoever runs this.
    config["confDir"] = json!(node.folder().join("none"));
    config["clusterNetwork"] = json!("cluster");
    config["defaultNetworks"] = json!(["extra1", "extra2"]);
    let names = |config: &Value, namespace: &str| {
        let shown = json_of(&explain(&node, config, &["-n", namespace]));
        let attachments = shown["attachments"].as_array().unwrap().iter();
        attachments
            .map(|a| format!("{}@{}", a["network"].as_str().unwrap(), a["interface"].as_str().unwrap()))
            .collect::<Vec<_>>()
    };
    let all = ["kube-system/cluster@eth0", "kube-system/extra1@net1", "kube-system/extra2@net2", "default/blue@net3"];
    assert_eq!(names(&config, "default"), all);
    assert_eq!(names(&config, "kube-system"), ["kube-system/cluster@eth0", "default/blue@net1"]);
    // The annotation puts another network in the place of the first alone.
    node.manifest(
        "pod-other-web.yaml",
        "kind: Pod\nmetadata: {name: web, namespace: other, annotations: {v1.multus-cni.io/default-network: extra2}}\n",
    );
    let chosen = ["kube-system/extra2@eth0", "kube-system/extra1@net1", "kube-system/extra2@net2"];
    assert_eq!(names(&config, "other"), chosen);
    config["systemNamespaces"] = json!(["apps"]);
    assert_eq!(names(&config, "kube-system"), all);
    assert_eq!(names(&config, "apps"), ["kube-system/cluster@eth0", "default/blue@net1"]);
    config["defaultNetworks"] = json!(["extra1", "nope"]);
    let (code, message) = explain(&node, &config, &[]).error();
    assert_eq!(code, 7);
    assert!(message.contains("defaultNetworks") && message.contains("kube-system/nope"), "{message}");
    config["defaultNetworks"] = json!([]);
    config["multusNamespace"] = json!("home");
    assert_eq!(names(&config, "default"), ["home/cluster@eth0", "default/blue@net1"]);
}

#[test]
fn networks_in_line_are_all_attached_in_order() {
    let node = node();
    let mut config = node.config(&node.default_bridge());
    config["delegates"] = json!([
        node.default_bridge(),
        {"cniVersion": "1.0.0", "plugins": [{"type": "bridge", "bridge": "b1"}, {"type": "tuning"}]},
        {"cniVersion": "1.0.0", "type": "bridge", "bridge": "b2"},
    ]);
    node.pod("default", "web", "blue");
    let shown = json_of(&explain(&node, &config, &[]));
    let attachments: Vec<(String, String, usize)> = shown["attachments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| {
            let text = |key: &str| a[key].as_str().unwrap().to_owned();
            (text("network"), text("interface"), a["delegates"].as_array().unwrap().len())
        })
        .collect();
    let wanted = [
        ("default-network", "eth0", 1),
        ("musubi-network", "net1", 2),
        ("musubi-network", "net2", 1),
        ("default/blue", "net3", 1),
    ];
    assert_eq!(
        attachments,
        wanted.map(|(network, interface, plugins)| (network.to_owned(), interface.to_owned(), plugins))
    );
    assert_eq!(shown["attachments"][1]["delegates"][0]["config"]["name"], "musubi-network", "a name is injected");
}

#[test]
fn a_pod_on_the_hosts_network_is_told_so() {
    let node = node();
    node.manifest("host.yaml", "kind: Pod\nmetadata: {name: agent}\nspec: {hostNetwork: true}\n");
    let file = node.folder().join("m.conf");
    std::fs::write(&file, node.config(&node.default_bridge()).to_string()).unwrap();
    let shown = node.cli(&["explain", "agent", "--config", file.to_str().unwrap(), "-o", "json"]).result();
    assert!(shown["warnings"].to_string().contains("host's network"), "{}", shown["warnings"]);
}

/// A node with a pod `default/web` and a few definitions.
fn node() -> Node {
    let node = Node::new();
    node.definition("default", "blue", &node.bridge("br-blue", "blue", "10.2.0.0/24"));
    let chained = json!({"cniVersion": "1.0.0", "name": "chained", "plugins": [
        {"type": "macvlan", "master": "up0"}, {"type": "tuning"},
    ]});
    node.definition("default", "chained", &chained);
    node.pod("default", "web", "");
    node
}

fn explain(node: &Node, config: &Value, more: &[&str]) -> Output {
    let file = node.folder().join("00-musubi.conf");
    std::fs::write(&file, config.to_string()).unwrap();
    let arguments = [&["explain", "web", "--config", file.to_str().unwrap(), "-o", "json"], more].concat();
    let output = node.cli(&arguments);
    assert_eq!(node.links(), ["lo"], "explain touches nothing");
    assert!(!node.state().exists(), "explain writes nothing");
    output
}

fn json_of(output: &Output) -> Value {
    output.result()
}

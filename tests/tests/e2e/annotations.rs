//! The networks annotation, row by row: what planning makes of it, by the library and by `musubi explain`, and what of it
//! each plugin is sent. `tests/vectors/` holds the rows of the standard table; its neighbours are here.

mod fixture;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use self::fixture::{annotated_pod, config, config_file, explain, names, node, planned, pod, refused, write_config};

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

#[test]
fn the_copied_vectors_are_the_shared_ones() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    if !shared.is_dir() {
        return;
    }
    for file in ["networks-annotation.json", "README.md"] {
        let [ours, theirs] = [vectors().join(file), shared.join(file)].map(|path| std::fs::read(path).unwrap());
        assert!(ours == theirs, "tests/vectors/{file} differs from the shared one: copy it again");
    }
}

#[test]
fn each_vector_is_planned_as_it_says() {
    let node = node();
    let rows: Vec<Value> =
        serde_json::from_slice(&std::fs::read(vectors().join("networks-annotation.json")).unwrap()).unwrap();
    assert!(rows.len() > 30, "the table is whole");
    for row in &rows {
        let case = row["case"].as_str().unwrap();
        pod(&node, row["annotation"].as_str());
        match row["expect"].get("error") {
            Some(code) => refused(&node, case, code.as_u64().unwrap(), &[]),
            None => {
                let wanted = row["expect"]["attachments"].as_array().unwrap().iter();
                let wanted: Vec<String> = wanted
                    .map(|a| format!("{}@{}", a["network"].as_str().unwrap(), a["interface"].as_str().unwrap()))
                    .collect();
                planned(&node, case, &wanted);
            }
        }
    }
}

#[test]
fn interfaces_are_named_by_their_place() {
    let node = node();
    let rows: [(&str, &[&str]); 9] = [
        ("a@my_interface", &["default/a@my_interface"]),
        ("default/a@my_interface", &["default/a@my_interface"]),
        ("a,b@net9,other/a", &["default/a@net1", "default/b@net9", "other/a@net3"]),
        ("a@net2,b@net1", &["default/a@net2", "default/b@net1"]),
        ("l2@Net_1", &["default/l2@Net_1"]),
        (r#"[{"name":"a","interfaceRequest":"old0"}]"#, &["default/a@old0"]),
        (r#"[{"name":"a","interface":""},{"name":"dotted.name"}]"#, &["default/a@net1", "default/dotted.name@net2"]),
        (" [ ] ", &[]),
        ("a,a,a@x0,a", &["default/a@net1", "default/a@net2", "default/a@x0", "default/a@net4"]),
    ];
    for (annotation, wanted) in rows {
        pod(&node, Some(annotation));
        planned(&node, annotation, wanted);
    }
}

#[test]
fn a_wrong_annotation_is_refused_with_its_place_and_key() {
    let node = node();
    let element = |keys: Value| {
        let mut keys = keys;
        let name = keys.get("name").cloned().unwrap_or_else(|| "a".into());
        keys["name"] = name;
        json!([keys]).to_string()
    };
    let second = |keys: Value| json!([{"name": "a"}, keys]).to_string();
    let rows: Vec<(String, &[&str])> = vec![
        // Names of interfaces.
        ("a,b@net1".into(), &["default/b", "net1", "default/a"]),
        ("a@net2,b".into(), &["default/b", "net2", "default/a"]),
        (second(json!({"name": "b", "interface": "eth0"})), &["default/b", "interface", "eth0"]),
        (second(json!({"name": "b", "interface": "a/b"})), &["element 2", "interface"]),
        (second(json!({"name": "b", "interface": "lo"})), &["element 2", "interface", "lo"]),
        (second(json!({"name": "b", "interface": "all"})), &["element 2", "interface"]),
        (second(json!({"name": "b", "interface": "x%d"})), &["element 2", "interface"]),
        (second(json!({"name": "b", "interface": "x:1"})), &["element 2", "interface"]),
        (second(json!({"name": "b", "interface": "abcdefghijklmnop"})), &["element 2", "interface", "15"]),
        // Names that Multus' own tests refuse.
        ("root@someIP/root@someOtherIP/root@thirdIP".into(), &["element 1"]),
        ("root@someIP/root@someOtherIP/root@thirdIP@garbagevalue".into(), &["element 1"]),
        ("root@someIP/root@someOtherIP".into(), &["element 1"]),
        ("default/a@myIfc Name".into(), &["element 1", "white space"]),
        ("default/a@very_long_interface_name".into(), &["element 1", "15"]),
        // Names of networks.
        ("a,dotted.name".into(), &["element 2", "dotted.name"]),
        ("a,@x0".into(), &["element 2"]),
        ("/a".into(), &["element 1"]),
        ("other/b".into(), &["element 1", "other/b"]),
        ("a,other/nope".into(), &["element 2", "other/nope", "NetworkAttachmentDefinition"]),
        (element(json!({"name": "b", "namespace": "nowhere"})), &["element 1", "nowhere/b"]),
        (element(json!({"name": 7})), &["element 1", "name"]),
        (element(json!({"namespace": "A"})), &["element 1", "namespace"]),
        // The shape of the whole.
        ("[]]".into(), &["JSON"]),
        ("[[]]".into(), &["element 1"]),
        ("[1]".into(), &["element 1"]),
        ("[null, {\"name\": \"a\"}]".into(), &["element 1", "null"]),
        ("{}".into(), &["list"]),
        ("\"a\"".into(), &["list"]),
        (",".repeat(1 << 20), &["1048576"]),
        ("[".repeat(1 << 16), &["JSON"]),
        // Addresses.
        (element(json!({"name": "ips", "ips": []})), &["element 1", "ips", "empty"]),
        (element(json!({"name": "ips", "ips": "10.9.0.5"})), &["element 1", "ips", "list"]),
        (element(json!({"name": "ips", "ips": ["10.9.0.5/33"]})), &["element 1", "ips[0]"]),
        (element(json!({"name": "ips", "ips": ["10.9.0.5", null]})), &["element 1", "ips[1]"]),
        (element(json!({"name": "vlan", "ips": ["10.9.0.5/24"]})), &["default/vlan", "ips", "capabilit"]),
        (element(json!({"name": "dhcp", "ips": ["10.9.0.5/24"]})), &["default/dhcp", "ips"]),
        (element(json!({"name": "ipvlan", "mac": "02:00:00:00:00:05"})), &["default/ipvlan", "mac", "capabilit"]),
        (element(json!({"name": "ptp", "mac": "02:00:00:00:00:05"})), &["default/ptp", "mac"]),
        (element(json!({"name": "vlan", "mac": "02:00:00:00:00:05"})), &["default/vlan", "mac"]),
        (element(json!({"mac": "01:00:5e:00:00:01"})), &["element 1", "mac"]),
        (element(json!({"mac": "02:00:00:00:00:01:02:03"})), &["element 1", "mac", "6-byte"]),
        (element(json!({"infiniband-guid": "02:00:00:00:00:01"})), &["element 1", "infiniband-guid", "8-byte"]),
        (
            element(json!({"infiniband-guid": "02:00:00:00:00:01:02:03"})),
            &["default/a", "infiniband-guid", "infinibandGUID"],
        ),
        (element(json!({"name": "ips", "ips": ["10.9.0.5"], "ipam-claim-reference": "c"})), &["ipam-claim-reference"]),
        (element(json!({"ipam-claim-reference": "A b"})), &["ipam-claim-reference"]),
        // Ports and bandwidth.
        (
            element(json!({"portMappings": [{"hostPort": 80, "containerPort": 80}]})),
            &["default/a", "portMappings", "capabilit"],
        ),
        (element(json!({"name": "ports", "portMappings": []})), &["element 1", "portMappings"]),
        (
            element(json!({"name": "ports", "portMappings": [{"hostPort": 0, "containerPort": 80}]})),
            &["portMappings[0].hostPort", "65535"],
        ),
        (element(json!({"name": "ports", "portMappings": [{"hostPort": 80}]})), &["portMappings[0].containerPort"]),
        (
            element(
                json!({"name": "ports", "portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]}),
            ),
            &["portMappings[0].protocol", "TCP"],
        ),
        (element(json!({"bandwidth": {"ingressRate": 1000}})), &["default/a", "bandwidth", "capabilit"]),
        (element(json!({"name": "bw", "bandwidth": {}})), &["bandwidth", "ingressRate"]),
        (element(json!({"name": "bw", "bandwidth": {"egressRate": 0}})), &["bandwidth"]),
        (
            element(json!({"name": "bw", "bandwidth": {"ingressRate": 1, "egressBurst": 1}})),
            &["bandwidth.egressBurst", "egressRate"],
        ),
        // Default routes: one of each family over the whole pod.
        (element(json!({"default-route": ["10.1.0.1", "10.1.0.2"]})), &["default-route"]),
        (element(json!({"default-route": "10.1.0.1"})), &["default-route"]),
        (element(json!({"default-route": ["10.1.0.1/24"]})), &["default-route[0]"]),
        (
            json!([{"name": "a", "default-route": []}, {"name": "b", "default-route": ["fd00::1"]}]).to_string(),
            &["element 2", "default-route", "IPv6"],
        ),
        // Arguments and devices.
        (element(json!({"cni-args": "a=b"})), &["cni-args"]),
        (element(json!({"cni-args": []})), &["cni-args"]),
        (element(json!({"name": "textargs", "cni-args": {"a": 1}})), &["default/textargs", "args"]),
        (element(json!({"name": "textcni", "cni-args": {"a": 1}})), &["default/textcni", "args.cni"]),
        (element(json!({"deviceID": 7})), &["deviceID"]),
    ];
    for (annotation, words) in rows {
        pod(&node, Some(&annotation));
        refused(&node, &annotation[..annotation.len().min(100)], 7, words);
    }
}

/// What a selection turns into: (annotation, `runtimeConfig` of each plugin, `cniArgs`, how many warnings speak of it).
#[test]
fn requests_travel_by_capability_or_by_arguments() {
    let node = node();
    let none = Value::Null;
    let element = |keys: Value| json!([keys]).to_string();
    let rows: Vec<(String, Vec<Value>, Value, &[&str])> = vec![
        (
            element(json!({"name": "ips", "ips": ["10.9.0.5/24", "fd00::5"]})),
            vec![json!({"ips": ["10.9.0.5/24", "fd00::5"]})],
            json!({}),
            &[],
        ),
        (
            element(json!({"name": "mac", "mac": "02-00-00-00-00-05"})),
            vec![none.clone(), json!({"mac": "02:00:00:00:00:05"})],
            json!({}),
            &[],
        ),
        (
            element(
                json!({"name": "ports", "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "UDP", "hostIP": "10.0.0.1"}]}),
            ),
            vec![
                none.clone(),
                json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": "10.0.0.1"}]}),
            ],
            json!({}),
            &[],
        ),
        (
            element(json!({"name": "bw", "bandwidth": {"ingressRate": 1000}})),
            vec![none.clone(), json!({"bandwidth": {"ingressRate": 1000, "ingressBurst": 4_294_967_295_u64}})],
            json!({}),
            &[],
        ),
        (
            element(json!({"name": "bw", "bandwidth": {"egressRate": 5, "egressBurst": 6}})),
            vec![none.clone(), json!({"bandwidth": {"egressRate": 5, "egressBurst": 6}})],
            json!({}),
            &[],
        ),
        // Addresses by CNI_ARGS, where nothing declares the capability.
        (
            element(json!({"name": "a", "ips": ["10.9.0.5/24", "10.9.0.6"]})),
            vec![none.clone()],
            json!({"IP": "10.9.0.5/24,10.9.0.6"}),
            &[],
        ),
        (
            element(json!({"name": "macvlan", "ips": ["10.9.0.5/24"]})),
            vec![none.clone()],
            json!({"IP": "10.9.0.5/24"}),
            &[],
        ),
        (
            element(json!({"name": "a", "mac": "02:00:00:00:00:05"})),
            vec![none.clone()],
            json!({"MAC": "02:00:00:00:00:05"}),
            &[],
        ),
        (
            element(json!({"name": "l2", "mac": "02:00:00:00:00:05"})),
            vec![none.clone()],
            json!({"MAC": "02:00:00:00:00:05"}),
            &[],
        ),
        (
            element(json!({"name": "macvlan", "mac": "02:00:00:00:00:05", "ips": ["10.9.0.5/24"]})),
            vec![none.clone()],
            json!({"IP": "10.9.0.5/24", "MAC": "02:00:00:00:00:05"}),
            &[],
        ),
        (
            element(json!({"name": "whereabouts", "ips": ["10.9.0.5/24"]})),
            vec![none.clone()],
            json!({"IP": "10.9.0.5/24"}),
            &[],
        ),
        (
            element(json!({"name": "ovs", "mac": "02:00:00:00:00:05"})),
            vec![none.clone()],
            json!({"MAC": "02:00:00:00:00:05"}),
            &[],
        ),
        (
            element(json!({"name": "acme", "ips": ["10.9.0.5/24"]})),
            vec![none.clone()],
            json!({"IP": "10.9.0.5/24"}),
            &["default/acme", "ips", "acme-cni"],
        ),
        (
            element(json!({"name": "acme", "mac": "02:00:00:00:00:05"})),
            vec![none.clone()],
            json!({"MAC": "02:00:00:00:00:05"}),
            &["default/acme", "mac", "acme-cni"],
        ),
        (
            element(json!({"name": "acmeipam", "ips": ["10.9.0.5/24"]})),
            vec![none.clone()],
            json!({"IP": "10.9.0.5/24"}),
            &["default/acmeipam", "ips", "acme-ipam"],
        ),
        // Devices, GUIDs, and what is nobody's business.
        (
            element(json!({"name": "sriov", "deviceID": "0000:03:02.1", "infiniband-guid": "02:00:00:00:00:01:02:03"})),
            vec![json!({"infinibandGUID": "02:00:00:00:00:01:02:03", "deviceID": "0000:03:02.1"})],
            json!({}),
            &[],
        ),
        (
            element(json!({"name": "a", "deviceID": "0000:03:02.1"})),
            vec![none.clone()],
            json!({}),
            &["default/a", "deviceID"],
        ),
        (
            element(json!({"name": "a", "deviceID": "", "mac": "", "infiniband-guid": ""})),
            vec![none.clone()],
            json!({}),
            &[],
        ),
        (element(json!({"name": "a", "ipam-claim-reference": "vm-1"})), vec![none.clone()], json!({}), &[]),
        (
            element(json!({"name": "a", "gateway": "10.1.0.1"})),
            vec![none.clone()],
            json!({}),
            &["default/a", "gateway"],
        ),
        (element(json!({"name": "a", "example.com/own": {"x": 1}})), vec![none], json!({}), &[]),
    ];
    for (annotation, runtime_configs, args, warned) in rows {
        pod(&node, Some(&annotation));
        let explained = explain(&node);
        let attachment = &explained["attachments"][1];
        let sent: Vec<&Value> =
            attachment["delegates"].as_array().unwrap().iter().map(|d| &d["config"]["runtimeConfig"]).collect();
        assert_eq!(json!(sent), json!(runtime_configs), "{annotation}");
        assert_eq!(attachment["cniArgs"], args, "{annotation}");
        let warnings: Vec<&str> = explained["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let ours = warnings.iter().filter(|line| !line.contains("is not in")).collect::<Vec<_>>();
        assert_eq!(ours.len(), usize::from(!warned.is_empty()), "{annotation}: {warnings:?}");
        assert!(warned.iter().all(|word| ours[0].contains(word)), "{annotation}: {warnings:?} tell {warned:?}");
    }
}

#[test]
fn without_legacy_arguments_only_capabilities_carry_addresses() {
    let node = node();
    let mut config = config(&node);
    config["legacyCniArgs"] = json!(false);
    write_config(&node, &config);
    for (keys, key) in [
        (json!({"name": "a", "ips": ["10.9.0.5/24"]}), "ips"),
        (json!({"name": "a", "mac": "02:00:00:00:00:05"}), "mac"),
        (json!({"name": "acme", "mac": "02:00:00:00:00:05"}), "mac"),
    ] {
        pod(&node, Some(&json!([keys]).to_string()));
        refused(&node, key, 7, &[key, "legacyCniArgs"]);
    }
    pod(&node, Some(r#"[{"name":"ips","ips":["10.9.0.5/24"]}]"#));
    assert_eq!(explain(&node)["attachments"][1]["cniArgs"], json!({}));
}

#[test]
fn cni_args_are_merged_into_each_plugin_and_win() {
    let node = node();
    pod(&node, Some(r#"[{"name":"merged","cni-args":{"b":2,"deep":{"x":1.0}}}]"#));
    let explained = explain(&node);
    let configs: Vec<String> = explained["attachments"][1]["delegates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|delegate| delegate["config"]["args"].to_string())
        .collect();
    assert_eq!(
        configs,
        [
            r#"{"other":true,"cni":{"a":1,"b":2,"deep":{"x":1.0}}}"#,
            r#"{"cni":{"b":2,"deep":{"x":1.0}}}"#,
            r#"{"cni":{"b":2,"deep":{"x":1.0}}}"#,
        ]
    );
}

#[test]
fn each_family_has_one_default_route() {
    let node = node();
    let rows = [
        (
            json!([{"name": "a", "default-route": ["10.1.0.1"]}, {"name": "b", "default-route": ["fd00::1"]}]),
            vec!["10.1.0.1"],
            vec!["fd00::1"],
        ),
        (
            json!([{"name": "a", "default-route": ["10.1.0.1", "fd00::1"]}, {"name": "b"}]),
            vec!["10.1.0.1", "fd00::1"],
            vec![],
        ),
        (json!([{"name": "a"}, {"name": "b", "default-route": []}]), vec![], vec![]),
    ];
    for (annotation, first, second) in rows {
        pod(&node, Some(&annotation.to_string()));
        let explained = explain(&node);
        assert_eq!(explained["attachments"][1]["defaultRoute"], json!(first), "{annotation}");
        assert_eq!(explained["attachments"][2]["defaultRoute"], json!(second), "{annotation}");
    }
}

#[test]
fn the_default_network_can_be_chosen_by_annotation() {
    let node = node();
    node.definition("kube-system", "storage", &node.bridge("br-s", "storage", "10.30.0.0/24"));
    let annotate = |default: &str, networks: &str| {
        let mut annotations = Map::new();
        annotations.insert("v1.multus-cni.io/default-network".into(), default.into());
        annotations.insert("k8s.v1.cni.cncf.io/networks".into(), networks.into());
        annotated_pod(&node, &annotations);
    };
    let good = [
        ("storage", "a", vec!["kube-system/storage@eth0", "default/a@net1"]),
        ("storage@data0", "a", vec!["kube-system/storage@data0", "default/a@net1"]),
        ("default/a", "", vec!["default/a@eth0"]),
        (
            r#"[{"name":"a","namespace":"other","mac":"02:00:00:00:00:05"}]"#,
            "other/a",
            vec!["other/a@eth0", "other/a@net1"],
        ),
        ("storage@data0", "a@eth0", vec!["kube-system/storage@data0", "default/a@eth0"]),
    ];
    for (default, networks, wanted) in good {
        annotate(default, networks);
        let explained = explain(&node);
        assert_eq!(names(&explained), wanted, "{default:?}");
        assert_eq!(explained["attachments"][0]["default"], true);
    }
    let bad: [(&str, &str, &[&str]); 6] = [
        ("", "", &["v1.multus-cni.io/default-network", "0 networks"]),
        ("[]", "", &["v1.multus-cni.io/default-network", "0 networks"]),
        ("[null]", "", &["v1.multus-cni.io/default-network", "element 1"]),
        ("storage,default/a", "", &["v1.multus-cni.io/default-network", "2 networks"]),
        ("nope", "", &["v1.multus-cni.io/default-network", "kube-system/nope"]),
        ("storage@net1", "a", &["net1", "kube-system/storage", "default/a"]),
    ];
    for (default, networks, words) in bad {
        annotate(default, networks);
        refused(&node, default, 7, words);
    }
    annotate(r#"[{"name":"storage","default-route":["10.30.0.1"]}]"#, r#"[{"name":"a","default-route":["10.9.0.1"]}]"#);
    refused(&node, "two default routes over both annotations", 7, &["default/a", "default-route"]);
}

#[test]
fn isolation_covers_every_way_to_name_a_network() {
    let node = node();
    node.definition("kube-system", "storage", &node.bridge("br-s", "storage", "10.30.0.0/24"));
    let rows: Vec<(&str, Value, &str, &str, bool)> = vec![
        ("networks", json!(null), "apps", "apps/mine", true),
        ("networks", json!(null), "apps", "mine", true),
        ("networks", json!(null), "apps", "default/a", true),
        ("networks", json!(null), "apps", "other/a", false),
        ("networks", json!("other"), "apps", "other/a", true),
        ("networks", json!("other"), "apps", "default/a", false),
        ("networks", json!("default, other"), "apps", "mine,default/a,other/a", true),
        ("networks", json!(null), "apps", r#"[{"name":"a","namespace":"other"}]"#, false),
        ("networks", json!(null), "apps", "kube-system/storage", false),
        ("default-network", json!(null), "apps", "storage", true),
        ("default-network", json!(null), "apps", "apps/mine", true),
        ("default-network", json!(null), "apps", "other/a", false),
    ];
    node.definition("apps", "mine", &node.bridge("br-mine", "mine", "10.31.0.0/24"));
    for (which, global, namespace, annotation, allowed) in rows {
        let mut config = config(&node);
        config["namespaceIsolation"] = json!(true);
        if global.is_string() {
            config["globalNamespaces"] = global.clone();
        }
        write_config(&node, &config);
        let key = match which {
            "networks" => "k8s.v1.cni.cncf.io/networks",
            _ => "v1.multus-cni.io/default-network",
        };
        node.manifest(
            "pod.json",
            &json!({"apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": "p", "namespace": namespace, "annotations": {key: annotation}}})
            .to_string(),
        );
        let output = node.cli(&["explain", "-n", namespace, "p", "--config", &config_file(&node), "-o", "json"]);
        assert_eq!(output.ok, allowed, "{which} {annotation} with {global}: {}", output.stdout);
        if !allowed {
            let (code, message) = output.error();
            assert_eq!(code, 7);
            assert!(["isolation", "apps", key].iter().all(|word| message.contains(word)), "{message}");
        }
    }
}

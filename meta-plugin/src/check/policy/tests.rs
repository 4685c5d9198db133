//! What a fence lets through and what it stops: for each field of a policy both, then the ways in which one could try to
//! get around.

use super::*;
use crate::check::definition;

/// The policy of the tenant blue, from `examples/`.
fn example() -> Policies {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/policies/tenant-blue.yaml");
    let policy: musubi_crds::AttachmentPolicy =
        serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let mut policies = Policies::default();
    policies.insert("tenant-blue".to_owned(), policy.spec);
    policies
}

fn of(specs: &[Value]) -> Policies {
    let mut policies = Policies::default();
    for (position, spec) in specs.iter().enumerate() {
        let mut spec = spec.clone();
        spec["namespaces"] = json!(["blue"]);
        let spec: AttachmentPolicySpec = serde_json::from_value(spec.clone()).unwrap_or_else(|e| panic!("{e}: {spec}"));
        assert_eq!(spec.problem(), None, "{spec:?}");
        policies.insert(format!("p{position}"), spec);
    }
    policies
}

fn blue() -> Labels {
    Labels::from([("tenant".to_owned(), "blue".to_owned())])
}

/// What the fence around `blue` has against a definition; empty where it has nothing.
fn refusal(policies: &Policies, config: &Value) -> String {
    let fence = policies.fence("blue", &blue()).expect("a policy selects it");
    let list = definition::parse(&config.to_string(), "net").unwrap_or_else(|e| panic!("{e}: {config}"));
    fence.definition(&list).err().map(|e| e.to_string()).unwrap_or_default()
}

#[track_caller]
fn check(policies: &Policies, rows: &[(Value, &str)]) {
    for (config, expected) in rows {
        let refusal = refusal(policies, config);
        if expected.is_empty() {
            assert_eq!(refusal, "", "{config}");
        } else {
            assert!(refusal.starts_with(expected), "{config}:\n{refusal}\nexpected\n{expected}");
        }
    }
}

#[test]
fn who_is_selected() {
    let mut policies = example();
    assert!(policies.fence("any", &blue()).is_some() && policies.fence("any", &Labels::new()).is_none());
    policies.insert("by-name".to_owned(), serde_json::from_value(json!({"namespaces": ["red"]})).unwrap());
    assert!(policies.fence("red", &Labels::new()).is_some());
    assert!(policies.need_labels("red"), "other policies may select it, too");
    let by_label = json!({"namespaceSelector": {"matchLabels": {(NAMESPACE_NAME_LABEL): "green"}}});
    policies.insert("by-own-label".to_owned(), serde_json::from_value(by_label).unwrap());
    assert!(policies.fence("green", &Labels::new()).is_some());
    let lie = Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), "green".to_owned())]);
    assert!(policies.fence("brown", &lie).is_none(), "the name is what it is called, not what a label says");
    policies.remove("tenant-blue");
    policies.remove("by-own-label");
    assert!(!policies.need_labels("red"));
}

#[test]
fn a_namespace_has_what_its_policies_grant_together() {
    let policies = of(&[
        json!({"delegates": [{"type": "macvlan", "masters": ["ens4"]}], "addresses": ["10.0.0.0/25"]}),
        json!({"delegates": [{"type": "macvlan", "masters": ["ens5"]}], "addresses": ["10.0.0.128/25"], "externalPlugins": ["tuning"]}),
    ]);
    let ipam = json!({"type": "host-local", "subnet": "10.0.0.0/24"});
    check(
        &policies,
        &[
            (json!({"type": "macvlan", "master": "ens4", "ipam": ipam}), ""),
            (json!({"plugins": [{"type": "macvlan", "master": "ens5"}, {"type": "tuning"}]}), ""),
            (
                json!({"type": "macvlan", "master": "ens6"}),
                "master: ens6 is not among what policies p0, p1 grant to namespace blue: ens4, ens5",
            ),
            (
                json!({"type": "ptp", "ipam": ipam}),
                "type: ptp is not among what policies p0, p1 grant to namespace blue: macvlan",
            ),
        ],
    );
    let nothing = of(&[json!({})]);
    check(
        &nothing,
        &[(json!({"type": "loopback"}), "type: loopback is not among what policy p0 grants to namespace blue: none")],
    );
}

#[test]
fn masters_bridges_vlans_and_vnis() {
    let vlans = |trunk: Value| json!({"type": "bridge", "bridge": "blue-1", "vlanTrunk": trunk});
    let ipam = json!({"type": "static"});
    check(
        &example(),
        &[
            (json!({"type": "macvlan", "master": "ens4"}), ""),
            (json!({"type": "macvlan", "master": "ens5.7"}), ""),
            (
                json!({"type": "macvlan", "master": "ens5"}),
                "master: ens5 is not among what policy tenant-blue grants to namespace blue: ens4, ens5.*",
            ),
            (json!({"type": "macvlan", "master": "ens3"}), "master: ens3 is not among"),
            (json!({"type": "macvlan"}), "master: the master of the default route is not among"),
            (json!({"type": "macvlan", "master": ""}), "master: the master of the default route is not among"),
            (json!({"type": "macvlan", "master": "ens3", "linkInContainer": true}), "master: ens3 is not among"),
            (json!({"type": "ipvlan", "master": "ens4", "ipam": ipam}), "type: ipvlan is not among"),
            (json!({"type": "vxlan", "vni": 4000, "master": "ens3", "group": "239.1.1.1"}), ""),
            (json!({"type": "vxlan", "vni": 4999, "master": "ens3", "bridge": "mbr4999"}), ""),
            (
                json!({"type": "vxlan", "vni": 5000, "master": "ens3"}),
                "vni: 5000 is not among what policy tenant-blue grants to namespace blue: 4000-4999",
            ),
            (json!({"type": "vxlan", "vni": 4000, "master": "ens4"}), "master: ens4 is not among"),
            (json!({"type": "vxlan", "vni": 4000}), "master: the master of the default route is not among"),
            (
                json!({"type": "vxlan", "vni": 4000, "master": "ens3", "bridge": "cni0"}),
                "bridge: cni0 is not among what policy tenant-blue grants to namespace blue: none",
            ),
            (
                json!({"type": "vxlan", "vni": 4000, "master": "ens3", "bridge": "mbr4001"}),
                "bridge: mbr4001 is not among",
            ),
            (
                json!({"type": "vxlan", "vni": 4000, "master": "ens3", "port": 8472}),
                "port: 8472 is not among what policy tenant-blue grants to namespace blue: 4789",
            ),
            (json!({"type": "bridge", "bridge": "blue-1", "vlan": 100}), ""),
            (
                json!({"type": "bridge", "bridge": "blue-1", "vlan": 200}),
                "vlan: VLAN 200 is not among what policy tenant-blue grants to namespace blue: 100-199",
            ),
            (json!({"type": "bridge", "bridge": "blue-1"}), "vlan: frames without a VLAN is not among"),
            (
                json!({"type": "bridge", "vlan": 100}),
                "bridge: cni0 is not among what policy tenant-blue grants to namespace blue: blue-*",
            ),
            (json!({"type": "bridge", "bridge": "red-1", "vlan": 100}), "bridge: red-1 is not among"),
            (vlans(json!([{"id": 100}, {"minID": 150, "maxID": 199}])), ""),
            (vlans(json!([{"id": 100}, {"minID": 150, "maxID": 200}])), "vlanTrunk: VLAN 200 is not among"),
            (
                json!({"type": "bridge", "bridge": "blue-1", "vlan": 100, "preserveDefaultVlan": true}),
                "preserveDefaultVlan: frames without a VLAN is not among",
            ),
        ],
    );
    let more = of(&[json!({"delegates": [
        {"type": "vlan", "masters": ["ens4"], "vlans": ["10-19"]},
        {"type": "vlan", "masters": ["ens5"], "vlans": ["20-29"]},
        {"type": "bridge", "bridges": ["b*"], "vlans": ["10-14"]},
        {"type": "bridge", "bridges": ["b1"], "vlans": ["15-19"]},
        {"type": "bridge", "bridges": ["plain"]},
        {"type": "ipvlan", "masters": ["*"]},
        {"type": "vxlan", "masters": ["*"], "vnis": ["7"], "ports": ["8472"], "bridges": ["x"], "vteps": ["10.9.0.0/16"]},
        {"type": "loopback"},
        {"type": "ptp"},
    ], "addresses": ["10.0.0.0/8"]})]);
    let of_vlan = |master: &str, id: u16| json!({"type": "vlan", "master": master, "vlanId": id, "ipam": ipam});
    let trunk = |bridge: &str| json!({"type": "bridge", "bridge": bridge, "vlanTrunk": [{"minID": 12, "maxID": 17}]});
    check(
        &more,
        &[
            (of_vlan("ens4", 10), ""),
            (of_vlan("ens5", 20), ""),
            (of_vlan("ens4", 20), "vlanId: VLAN 20 is not among what policy p0 grants to namespace blue: 10-19"),
            (json!({"type": "vlan", "master": "ens4", "ipam": ipam}), "vlanId: frames without a VLAN is not among"),
            (trunk("b1"), ""),
            (trunk("b2"), "vlanTrunk: VLAN 15 is not among"),
            (json!({"type": "bridge", "bridge": "plain"}), ""),
            (json!({"type": "bridge", "bridge": "plain", "vlan": 1}), "vlan: VLAN 1 is not among"),
            (json!({"type": "ipvlan", "ipam": ipam}), ""),
            (json!({"type": "vxlan", "vni": 7, "port": 8472, "bridge": "x", "remotes": ["10.9.0.1"]}), ""),
            (
                json!({"type": "vxlan", "vni": 7, "port": 8472, "remotes": ["10.8.0.1"]}),
                "remotes: 10.8.0.1 is not among what policy p0 grants to namespace blue: 10.9.0.0/16",
            ),
            (json!({"type": "vxlan", "vni": 7, "port": 8472, "local": "10.8.0.1"}), "local: 10.8.0.1 is not among"),
            (json!({"type": "vxlan", "vni": 7, "port": 8472, "group": "239.0.0.1"}), "group: 239.0.0.1 is not among"),
            (
                json!({"type": "vxlan", "vni": 7}),
                "port: 4789 is not among what policy p0 grants to namespace blue: 8472",
            ),
            (json!({"type": "loopback"}), ""),
            (
                json!({"type": "ptp", "ipam": {"type": "static", "addresses": [{"address": "10.1.1.1/24", "gateway": "10.1.1.2"}]}}),
                "",
            ),
        ],
    );
}

#[test]
fn addresses() {
    let host_local = |fields: Value| {
        let mut ipam = json!({"type": "host-local"});
        ipam.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "ens4", "ipam": ipam})
    };
    let fixed = |address: &str| json!({"type": "macvlan", "master": "ens4", "ipam": {"type": "static", "addresses": [{"address": address}]}});
    let gateway =
        |key: &str, ipam: Value| json!({"type": "bridge", "bridge": "blue-1", "vlan": 100, (key): true, "ipam": ipam});
    let outside = "ipam: 10.41.0.1-10.41.0.254 is not among the addresses that policy tenant-blue grants to namespace blue: 10.40.0.0/16, fd00:40::/32";
    check(
        &example(),
        &[
            (host_local(json!({"subnet": "10.40.7.0/24"})), ""),
            (host_local(json!({"subnet": "fd00:40:1::/64"})), ""),
            (host_local(json!({"subnet": "10.41.0.0/24"})), outside),
            (host_local(json!({"ranges": [[{"subnet": "10.40.0.0/24"}], [{"subnet": "10.41.0.0/24"}]]})), outside),
            // What pods are given counts, however wide their LAN is: the node has no part in it.
            (host_local(json!({"subnet": "10.0.0.0/8", "rangeStart": "10.40.0.1", "rangeEnd": "10.40.0.9"})), ""),
            (
                host_local(json!({"subnet": "10.0.0.0/8", "rangeStart": "10.40.0.1", "rangeEnd": "10.41.0.9"})),
                "ipam: 10.40.0.1-10.41.0.9 is not",
            ),
            (fixed("10.40.0.7/8"), ""),
            (fixed("10.41.0.7/24"), "ipam: 10.41.0.7 is not among the addresses"),
            (gateway("isGateway", json!({"type": "host-local", "subnet": "10.40.0.0/24"})), ""),
            (
                gateway("isGateway", json!({"type": "static", "addresses": [{"address": "10.40.0.7/8"}]})),
                "ipam: 10.0.0.0/8 is not among",
            ),
            (
                gateway("isDefaultGateway", json!({"type": "static", "addresses": [{"address": "10.40.0.7/8"}]})),
                "ipam: 10.0.0.0/8 is not among",
            ),
            (
                gateway("isGateway", json!({"type": "host-local", "subnet": "10.40.0.0/24", "gateway": "192.168.0.1"})),
                "ipam: the gateway 192.168.0.1 is not among",
            ),
            (
                json!({"type": "macvlan", "master": "ens4", "args": {"cni": {"ips": ["10.41.0.7/24"]}}, "ipam": {"type": "static"}}),
                "ipam: 10.41.0.7 is not",
            ),
            (
                json!({"type": "macvlan", "master": "ens4", "runtimeConfig": {"ips": ["10.41.0.7/24"]}, "ipam": {"type": "static"}}),
                "ipam: 10.41.0.7 is not",
            ),
            (
                json!({"type": "macvlan", "master": "ens4", "runtimeConfig": {"ipRanges": [[{"subnet": "10.41.0.0/24"}]]}, "ipam": {"type": "host-local"}}),
                outside,
            ),
        ],
    );
    let halves = of(&[
        json!({"delegates": [{"type": "macvlan", "masters": ["*"]}], "addresses": ["10.0.0.0/25", "10.0.0.128/26", "10.0.0.192/26", "10.0.1.128/25"]}),
    ]);
    check(
        &halves,
        &[
            (json!({"type": "macvlan", "ipam": {"type": "host-local", "subnet": "10.0.0.0/24"}}), ""),
            (
                json!({"type": "macvlan", "ipam": {"type": "host-local", "subnet": "10.0.0.0/23"}}),
                "ipam: 10.0.0.1-10.0.1.254 is not",
            ),
        ],
    );
}

#[test]
fn external_plugins() {
    let sriov = |more: Value| {
        let mut conf = json!({"type": "sriov"});
        conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        conf
    };
    check(
        &example(),
        &[
            (sriov(json!({"vlan": 7, "spoofchk": "on"})), ""),
            (sriov(json!({"ipam": {"type": "host-local", "subnet": "10.40.0.0/24"}})), ""),
            (
                sriov(json!({"ipam": {"type": "host-local", "subnet": "10.41.0.0/24"}})),
                "ipam: 10.41.0.1-10.41.0.254 is not",
            ),
            (
                sriov(json!({"ipam": {"type": "whereabouts", "range": "10.40.0.0/24"}})),
                "ipam.type: whereabouts is not among what policy tenant-blue grants to namespace blue: sriov",
            ),
            (json!({"type": "host-device", "device": "ens3"}), "type: host-device is not among"),
            (json!({"type": "host-local"}), "type: host-local is not among"),
            (
                json!({"plugins": [{"type": "macvlan", "master": "ens4"}, {"type": "tuning", "sysctl": {}}]}),
                "plugins[1].type: tuning is not among",
            ),
            (
                json!({"plugins": [sriov(json!({})), {"type": "macvlan", "master": "ens3"}]}),
                "plugins[1].master: ens3 is not among",
            ),
        ],
    );
    let any = of(&[json!({"externalPlugins": ["*"]})]);
    check(&any, &[(json!({"type": "anything"}), ""), (json!({"type": "bridge"}), "type: bridge is not among")]);
}

#[test]
fn paths() {
    let denied = "policy tenant-blue grants no files, sockets and devices of the node to namespace blue";
    let at = |key: &str| format!("{key}: {denied}");
    let ipam = |key: &str| json!({"type": "macvlan", "master": "ens4", "ipam": {"type": "host-local", "subnet": "10.40.0.0/24", (key): "/x"}});
    let sriov = |key: &str, value: Value| json!({"type": "sriov", (key): value});
    let rows: Vec<(Value, String)> = vec![
        (ipam("dataDir"), at("ipam.dataDir")),
        (ipam("DATADIR"), at("ipam.DATADIR")),
        (ipam("resolvConf"), at("ipam.resolvConf")),
        (json!({"type": "macvlan", "master": "ens4", "deviceID": "0000:00:1f.6"}), at("deviceID")),
        (json!({"type": "macvlan", "master": "ens4", "dns": {"domain": "/etc"}}), at("dns.domain")),
        (sriov("logFile", json!("/var/log/x")), at("logFile")),
        (sriov("LogFile", json!("x")), at("LogFile")),
        (sriov("kubeconfig", json!("k")), at("kubeconfig")),
        (sriov("deviceID", json!("0000:00:1f.6")), at("deviceID")),
        (sriov("whatever", json!({"deep": [{"er": "unix:///run/x.sock"}]})), at("whatever.deep[0].er")),
        (sriov("whatever", json!("../../x")), at("whatever")),
        (sriov("whatever", json!("10.40.0.0/24")), String::new()),
    ];
    let rows: Vec<(Value, &str)> = rows.iter().map(|(conf, expected)| (conf.clone(), expected.as_str())).collect();
    check(&example(), &rows);
    let fence = example();
    let fence = fence.fence("blue", &blue()).unwrap();
    assert_eq!(
        fence.node_file().unwrap_err().msg,
        "spec.config: is missing, and policy tenant-blue grants no files of the node to namespace blue"
    );

    let allowed = of(&[
        json!({"delegates": [{"type": "macvlan", "masters": ["ens4"]}], "addresses": ["10.40.0.0/16"], "externalPlugins": ["sriov"], "paths": "allow"}),
    ]);
    check(&allowed, &[(ipam("dataDir"), ""), (ipam("resolvConf"), ""), (sriov("logFile", json!("/x")), "")]);
    assert_eq!(allowed.fence("blue", &blue()).unwrap().node_file(), Ok(()));
}

#[test]
fn what_nobody_has_a_row_for_is_refused() {
    let unknown = "namespace blue, which policy tenant-blue limits";
    check(
        &example(),
        &[
            (
                json!({"type": "macvlan", "master": "ens4", "comment": "x"}),
                &format!("comment: is no key of macvlan, and no others may be set in {unknown}"),
            ),
            (json!({"type": "macvlan", "master": "ens4", "bridge": "cni0"}), "bridge: is no key of macvlan"),
            (
                json!({"type": "macvlan", "master": "ens4", "ipam": {"type": "static", "address": "10.0.0.1"}}),
                "ipam.address: is no key of macvlan",
            ),
            (
                json!({"type": "macvlan", "master": "ens4", "runtimeConfig": {"deviceID": "x"}}),
                "runtimeConfig.deviceID: is no key of macvlan",
            ),
            (
                json!({"type": "macvlan", "master": "ens4", "prevResult": {"ips": []}}),
                &format!("prevResult: is not for a definition to set in {unknown}"),
            ),
            (
                json!({"type": "macvlan", "master": "ens4", "cni.dev/valid-attachments": []}),
                "cni.dev/valid-attachments: is not for a definition",
            ),
            // Go folds this letter to `s`, a plugin of another language does not.
            (json!({"type": "macvlan", "master": "ens4", "ma\u{17f}ter": "ens3"}), "ma\u{17f}ter: is no key in ASCII"),
            (
                json!({"type": "sriov", "ipam": {"type": "host-local", "subnet": "10.40.0.0/24", "\u{17f}ubnet": "10.41.0.0/24"}}),
                "ipam.\u{17f}ubnet: is no key in ASCII",
            ),
        ],
    );
}

#[test]
fn keys_in_any_case_are_the_same_key_and_stand_there_once() {
    check(
        &example(),
        &[
            (json!({"Type": "macvlan", "MASTER": "ens4"}), ""),
            (json!({"TYPE": "macvlan", "MASTER": "ens3"}), "master: ens3 is not among"),
            (
                json!({"type": "macvlan", "master": "ens4", "Master": "ens3"}),
                "Master: stands here twice, in different case",
            ),
            (
                json!({"type": "macvlan", "MASTER": "ens3", "master": "ens4"}),
                "master: stands here twice, in different case",
            ),
            (
                json!({"type": "macvlan", "master": "ens4", "MASTER": null}),
                "MASTER: stands here twice, in different case",
            ),
            (
                json!({"type": "macvlan", "master": "ens4", "ipam": {"type": "host-local", "subnet": "10.40.0.0/24", "SUBNET": "10.41.0.0/24"}}),
                "ipam.SUBNET: stands here twice",
            ),
            (json!({"type": "sriov", "x": {"a": 1, "A": 2}}), "x.A: stands here twice"),
        ],
    );
}

#[test]
fn a_value_that_the_reference_plugin_serves_is_within_the_same_fence() {
    let conf = |bridge: &str| json!({"type": "bridge", "bridge": bridge, "vlan": 100, "ipMasq": true, "ipMasqBackend": "iptables"});
    check(&example(), &[(conf("blue-1"), ""), (conf("cni0"), "bridge: cni0 is not among")]);
}

#[test]
fn definitions_of_other_namespaces() {
    let policies = example();
    let fence = policies.fence("blue", &blue()).unwrap();
    for namespace in ["blue", "shared-networks"] {
        assert_eq!(fence.definitions_of(namespace), Ok(()), "{namespace}");
    }
    for namespace in ["red", "kube-system", "default", "shared-networks-2", ""] {
        let error = fence.definitions_of(namespace).unwrap_err();
        assert_eq!(error.code, code::CONFIG);
        let text = format!("policy tenant-blue grants no definition of namespace {namespace} to namespace blue");
        assert_eq!(error.msg, text);
        assert_eq!(error.details, "use a definition of the pod's own namespace; granted are: shared-networks");
    }
}

#[test]
fn requests() {
    let policies = example();
    let fence = policies.fence("blue", &blue()).unwrap();
    let request = |fields: &Value, network: &str| {
        let mut element = json!({"name": "net"});
        element.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let selection = musubi_crds::parse_networks(&json!([element]).to_string(), "blue").unwrap().remove(0);
        let list = definition::parse(network, "net").unwrap();
        fence.requests(&selection, &list).err().map(|e| e.msg).unwrap_or_default()
    };
    let lan = r#"{"type": "macvlan", "ipam": {"type": "static"}}"#;
    let gateway = r#"{"type": "bridge", "isGateway": true, "ipam": {"type": "static"}}"#;
    let rows = [
        (lan, json!({}), ""),
        (lan, json!({"ips": ["10.40.0.7"], "mac": "02:00:00:00:00:01"}), ""),
        (lan, json!({"ips": ["10.40.0.7/16", "fd00:40::1/64"]}), ""),
        (
            lan,
            json!({"ips": ["10.40.0.7", "10.41.0.7"]}),
            "ips: 10.41.0.7 is not among the addresses that policy tenant-blue grants",
        ),
        (lan, json!({"cni-args": {"ips": ["10.41.0.7"]}}), "cni-args.ips[0]: 10.41.0.7 is not among the addresses"),
        (
            lan,
            json!({"cni-args": {"IPS": ["10.41.0.7/24"]}}),
            "cni-args.IPS[0]: 10.41.0.7/24 is not among the addresses",
        ),
        (lan, json!({"cni-args": {"x": {"y": "fd00:41::1"}}}), "cni-args.x.y: fd00:41::1 is not among the addresses"),
        (lan, json!({"cni-args": {"ips": ["10.40.0.7"], "label": "x"}}), ""),
        (lan, json!({"cni-args": {"dataDir": "x"}}), "cni-args.dataDir: policy tenant-blue grants no files"),
        (lan, json!({"cni-args": {"x": "/etc"}}), "cni-args.x: policy tenant-blue grants no files"),
        (lan, json!({"deviceID": "0000:00:1f.6"}), "deviceID: policy tenant-blue grants no files, sockets and devices"),
        // A wide LAN is the pod's own affair, until the node is to route to it.
        (lan, json!({"ips": ["10.40.0.7/8"]}), ""),
        (gateway, json!({"ips": ["10.40.0.7/24"]}), ""),
        (gateway, json!({"ips": ["10.40.0.7/8"]}), "ips: 10.40.0.7/8 is not among the addresses"),
        (
            gateway,
            json!({"cni-args": {"ips": ["10.40.0.7/8"]}}),
            "cni-args.ips[0]: 10.40.0.7/8 is not among the addresses",
        ),
    ];
    for (network, fields, expected) in rows {
        let found = request(&fields, network);
        assert!(if expected.is_empty() { found.is_empty() } else { found.starts_with(expected) }, "{fields}: {found}");
    }
}

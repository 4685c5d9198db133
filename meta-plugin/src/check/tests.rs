//! What admission and `lint` say of definitions and pods: for every rule one that passes and one that does not, with the
//! text; and what it costs when a whole cluster is known.

use std::time::{Duration, Instant};

use musubi_crds::{NETWORK_STATUS_ANNOTATION, NETWORKS_ANNOTATION};
use serde_json::{Value, json};

use super::*;
use crate::config::Config;
use crate::store::manifest::Object;
use crate::store::{Definition, KnownPod};

fn definition_of(name: &str, config: &Value) -> Definition {
    let (namespace, name) = name.split_once('/').unwrap();
    let config = Some(config.as_str().map_or_else(|| config.to_string(), str::to_owned));
    Definition { namespace: namespace.into(), name: name.into(), config, ..Definition::default() }
}

fn pod_of(manifest: Value) -> KnownPod {
    let mut manifest = manifest;
    manifest["kind"] = json!("Pod");
    match Object::read(manifest).unwrap() {
        Some(Object::Pod(known)) => known,
        other => panic!("{other:?}"),
    }
}

/// A pod that selects networks.
fn selecting(networks: &Value) -> KnownPod {
    let networks = networks.as_str().map_or_else(|| networks.to_string(), str::to_owned);
    pod_of(json!({"metadata": {"name": "web", "annotations": {(NETWORKS_ANNOTATION): networks}}}))
}

/// A pod that runs, attached to a network of the namespace `default`.
fn attached(name: &str, network: &str, ip: &str, phase: &str) -> KnownPod {
    let status = json!([{"name": "cluster", "default": true}, {"name": network, "interface": "net1", "ips": [ip]}]);
    pod_of(json!({
        "metadata": {"name": name, "annotations": {(NETWORK_STATUS_ANNOTATION): status.to_string()}},
        "status": {"phase": phase},
    }))
}

fn world() -> World {
    World::new(Config::assumed().unwrap(), Settings::default())
}

fn host_local(subnet: &str) -> Value {
    json!({"cniVersion": "1.0.0", "type": "macvlan", "ipam": {"type": "host-local", "subnet": subnet}})
}

fn lines(findings: &[Finding]) -> Vec<String> {
    let word = |finding: &Finding| if finding.is_error() { "error" } else { "warning" };
    findings.iter().map(|finding| format!("{} {}: {}", word(finding), finding.key, finding.message)).collect()
}

#[track_caller]
fn assert_found(findings: &[Finding], expected: &[&str], what: impl fmt::Display) {
    let found = lines(findings);
    let fits = found.len() == expected.len() && found.iter().zip(expected).all(|(line, start)| line.starts_with(start));
    assert!(fits, "{what}\nfound    {found:#?}\nexpected {expected:#?}");
}

#[test]
fn a_definition_is_read_as_add_reads_it() {
    let static_ipam = |address: &str| json!({"type": "static", "addresses": [{"address": address}]});
    let rows: Vec<(Value, &[&str])> = vec![
        (json!({"cniVersion": "1.0.0", "type": "bridge"}), &[]),
        // The peers' validator refuses lists without a name (npwg 3.1); the definition's name is theirs.
        (json!({"cniVersion": "1.0.0", "plugins": [{"type": "bridge"}]}), &[]),
        (json!("{"), &["error : network default/net: the network configuration is not JSON"]),
        (json!("[]"), &["error : network default/net: the network configuration must be a JSON object, not a list"]),
        (json!({}), &["error plugins: network default/net: plugins: is missing"]),
        (json!({"plugins": 1}), &["error plugins: network default/net: plugins: must be a list"]),
        (json!({"plugins": [{}]}), &["error plugins[0].type: network default/net: plugins[0].type: is missing"]),
        (json!({"name": "a b", "type": "bridge"}), &["error name: network default/net: name: "]),
        (
            json!({"cniVersion": "9.0.0", "type": "bridge"}),
            &["error : network default/net: cniVersion \"9.0.0\" is not served"],
        ),
        (json!({"type": "musubi"}), &["error type: network default/net: type: \"musubi\" inside a musubi network"]),
        (
            json!({"type": "bridge", "colour": 1}),
            &["warning colour: network default/net: key \"colour\" is not known and is ignored"],
        ),
        (
            json!({"type": "bridge", "mtu": 1}),
            &["error mtu: network default/net: mtu: 1 is less than an IPv4 packet needs"],
        ),
        (
            json!({"type": "bridge", "vlan": 4095}),
            &["error vlan: network default/net: vlan: must be a whole number from 0 to 4094"],
        ),
        (json!({"type": "vxlan", "vni": 0}), &["error vni: network default/net: vni: "]),
        (json!({"type": "vxlan", "vni": 16_777_216}), &["error vni: network default/net: vni: "]),
        (json!({"type": "vlan", "master": "eth0", "ipam": static_ipam("10.0.0.2/24"), "vlanId": 4094}), &[]),
        (
            json!({"type": "bridge", "ipam": static_ipam("10.0.0.2")}),
            &["error ipam.addresses[0].address: network default/net: ipam.addresses[0].address: "],
        ),
        (json!({"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.0.0.0/a4"}}), &["error ipam.subnet: "]),
        (
            json!({"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.0.0.64/26", "rangeStart": "10.0.0.63"}}),
            &["error ipam.rangeStart: network default/net: ipam.rangeStart: 10.0.0.63 is not in 10.0.0.64/26"],
        ),
        (
            json!({"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.0.0.64/26", "rangeEnd": "10.0.0.128"}}),
            &["error ipam.rangeEnd: "],
        ),
        (
            json!({"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}}),
            &["error ipam.rangeStart: "],
        ),
        (json!({"type": "bridge", "ipam": {"type": "host-local", "subnet": "2g00::/64"}}), &["error ipam.subnet: "]),
        (json!({"type": "bridge", "ipam": {"type": "host-local", "subnet": "fd00::/129"}}), &["error ipam.subnet: "]),
        (json!({"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.0.0.0/7"}}), &[]),
        (
            json!({"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "routes": [{"dst": "10.9.0.0"}]}}),
            &["error ipam.routes[0].dst: "],
        ),
        (
            json!({"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "gateway": "10.1.0.1"}}),
            &["warning ipam: network default/net: the gateway 10.1.0.1 is in none of the network's subnets"],
        ),
        (
            json!({"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "routes": [{"dst": "10.9.0.0/16", "gw": "10.1.0.1"}]}}),
            &["warning ipam: network default/net: the next hop 10.1.0.1 is in none of the network's subnets"],
        ),
        (
            json!({"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "routes": [{"dst": "10.9.0.0/16", "gw": "10.0.0.9"}]}}),
            &[],
        ),
        // Each plugin that is wrong is told, not the first alone.
        (
            json!({"plugins": [{"type": "bridge", "mtu": 1}, {"type": "tuning"}, {"type": "vxlan"}]}),
            &[
                "error plugins[0].mtu: network default/net: plugins[0].mtu: 1 is less",
                "error plugins[2].vni: network default/net: plugins[2].vni: is missing",
            ],
        ),
        (json!({"type": "sriov"}), &["warning : network default/net: plugin \"sriov\" needs a device"]),
        (json!({"type": "calico", "whatever": 1}), &[]),
    ];
    for (config, expected) in rows {
        assert_found(&definition::created(&world(), &definition_of("default/net", &config)), expected, &config);
    }
    let bare = Definition { config: None, ..definition_of("default/net", &json!({})) };
    assert_found(
        &definition::created(&world(), &bare),
        &["warning : network default/net: without a configuration"],
        "no spec.config",
    );
}

#[test]
fn names_of_definitions_and_resources() {
    let bridge = json!({"type": "bridge"});
    assert_found(
        &definition::created(&world(), &definition_of("default/a.b", &bridge)),
        &["warning : network default/a.b: only the JSON form of the annotation can name it"],
        "a.b",
    );
    for name in ["0net", "net-1"] {
        assert_found(&definition::created(&world(), &definition_of(&format!("default/{name}"), &bridge)), &[], name);
    }
    for (resource, is_right) in [
        ("intel.com/nic", true),
        ("intel.com/Nic_1.x", true),
        ("nic", false),
        ("Intel.com/nic", false),
        ("intel.com/-nic", false),
        ("intel.com/a/b", false),
        ("intel.com/", false),
    ] {
        let definition = Definition { resource_name: Some(resource.into()), ..definition_of("default/net", &bridge) };
        let errors =
            definition::created(&world(), &definition).into_iter().filter(Finding::is_error).collect::<Vec<_>>();
        assert_eq!(errors.is_empty(), is_right, "{resource}: {errors:?}");
        assert!(
            errors.iter().all(|e| e.field == "metadata.annotations[k8s.v1.cni.cncf.io/resourceName]"),
            "{errors:?}"
        );
    }
}

#[test]
fn what_definitions_share_is_a_warning_and_by_policy_an_error() {
    let mut world = world();
    world.apply(Object::Definition(definition_of("red/lan", &host_local("10.0.0.0/24"))));
    world.apply(Object::Definition(definition_of("red/far", &host_local("10.9.0.0/24"))));
    let new = definition_of("blue/new", &host_local("10.0.0.128/25"));
    let shared = "network blue/new: subnet 10.0.0.128/25, which overlaps 10.0.0.0/24, is also network red/lan's";
    assert_found(&definition::created(&world, &new), &[&format!("warning : {shared}")], "without a policy");
    let policy = |overlaps: &str| {
        let grants = json!([{"type": "macvlan", "masters": ["*"]}]);
        json!({"namespaces": ["blue"], "delegates": grants, "addresses": ["10.0.0.0/8"], "overlaps": overlaps})
    };
    for (overlaps, expected) in [
        ("deny", format!("error : {shared}, and policy p does not grant that")),
        ("allow", format!("warning : {shared}")),
    ] {
        world.apply(Object::Policy("p".into(), serde_json::from_value(policy(overlaps)).unwrap()));
        assert_found(&definition::created(&world, &new), &[&expected], overlaps);
    }
    world.apply(Object::Policy("p".into(), serde_json::from_value(policy("deny")).unwrap()));
    world.apply(Object::Definition(definition_of("blue/own", &host_local("10.0.0.192/26"))));
    world.remove_definition("red", "lan");
    assert_found(
        &definition::created(&world, &new),
        &["warning : network blue/new: subnet 10.0.0.128/25, which overlaps 10.0.0.192/26, is also network blue/own's"],
        "within one namespace",
    );
    for n in 0..20 {
        world.apply(Object::Definition(definition_of(&format!("red/n{n}"), &host_local("10.0.0.0/24"))));
    }
    assert_eq!(definition::created(&world, &new).len(), 6, "five are named, the others counted");
}

#[test]
fn a_change_is_refused_that_strands_pods() {
    let vxlan = |vni: u32| json!({"cniVersion": "1.0.0", "type": "vxlan", "vni": vni});
    let vlan = |id: u16, master: &str| json!({"cniVersion": "1.0.0", "type": "vlan", "master": master, "vlanId": id, "ipam": {"type": "static"}});
    let bridge = |name: &str, mtu: u32| json!({"cniVersion": "1.0.0", "type": "bridge", "bridge": name, "mtu": mtu});
    let trunk =
        |last: u16| json!({"cniVersion": "1.0.0", "type": "bridge", "vlanTrunk": [{"minID": 5, "maxID": last}]});
    let rows = [
        (vxlan(50), vxlan(50), None, false),
        (
            vxlan(50),
            vxlan(51),
            Some(
                "vni: network default/net: the VNI (50 to 51) changes under pod default/a and 1 more, which keep what they have",
            ),
            true,
        ),
        (vlan(50, "ens4"), vlan(51, "ens4"), Some("vlan: network default/net: the VLAN (50 to 51) changes"), true),
        (
            vlan(50, "ens4"),
            vlan(50, "ens5"),
            Some("master: network default/net: the master (ens4 to ens5) changes"),
            true,
        ),
        (bridge("a", 1500), bridge("b", 1500), Some("bridge: network default/net: the bridge (a to b) changes"), true),
        (
            bridge("a", 1500),
            bridge("a", 1400),
            Some(": network default/net: pod default/a and 1 more use it and keep what they have"),
            false,
        ),
        (trunk(9), trunk(19), Some(": network default/net: pod default/a and 1 more use it"), false),
        (trunk(9), trunk(8), Some("vlan: network default/net: the VLAN (5, 6, 7, 8, 9 to 5, 6, 7, 8) changes"), true),
        (vxlan(50), bridge("a", 1500), Some("type: network default/net: the type (vxlan to bridge) changes"), true),
        (
            host_local("10.0.0.0/24"),
            host_local("10.1.0.0/24"),
            Some("subnet: network default/net: the subnet (10.0.0.0/24 to 10.1.0.0/24) changes"),
            true,
        ),
        (
            vxlan(50),
            json!({"type": "vxlan", "vni": 50, "cniVersion": "1.1.0"}),
            Some(": network default/net: pod default/a and 1 more use it"),
            false,
        ),
    ];
    for (old, new, expected, is_error) in rows {
        let mut world = world();
        for pod in ["a", "b"] {
            world.apply(Object::Pod(attached(pod, "default/net", "10.0.0.7", "Running")));
        }
        let [old, new] = [old, new].map(|config| definition_of("default/net", &config));
        let word = if is_error { "error" } else { "warning" };
        let line = expected.map(|text| format!("{word} {text}"));
        assert_found(
            &definition::updated(&world, &old, &new),
            &line.iter().map(String::as_str).collect::<Vec<_>>(),
            format!("{new:?}"),
        );
        let forced = Definition { is_forced: true, ..new.clone() };
        assert!(!definition::updated(&world, &old, &forced).iter().any(Finding::is_error), "musubi.dev/force: {new:?}");
        for pod in ["a", "b"] {
            world.apply(Object::Pod(attached(pod, "default/net", "10.0.0.7", "Succeeded")));
        }
        assert_found(&definition::updated(&world, &old, &new), &[], "pods that are over");
    }
    // Pods of networks with nearly this name are not its pods.
    let mut world = world();
    for network in ["default/net2", "other/net", "net", "default/ne"] {
        world.apply(Object::Pod(attached(&network.replace('/', "-"), network, "10.0.0.7", "Running")));
    }
    let [old, new] = [50, 51].map(|vni| definition_of("default/net", &vxlan(vni)));
    assert_found(&definition::updated(&world, &old, &new), &[], "near misses");
}

#[test]
fn a_removal_is_at_most_a_warning() {
    let mut world = world();
    let net = definition_of("default/net", &json!({"type": "bridge"}));
    assert_found(&definition::deleted(&world, &net), &[], "unused");
    world.apply(Object::Pod(attached("a", "default/net", "10.0.0.7", "Running")));
    assert_found(&definition::deleted(&world, &net), &["warning : network default/net: pod default/a use it"], "used");
    world.remove_pod("default", "a");
    assert_found(&definition::deleted(&world, &net), &[], "used no more");
}

/// `lan` has addresses of a pool, `fixed` takes any, `plain` none; `vf` wants a device.
fn networks() -> World {
    let mut world = world();
    let with_ips = |mut config: Value| {
        config["capabilities"] = json!({"ips": true});
        config
    };
    world.apply(Object::Definition(definition_of("default/lan", &with_ips(host_local("10.0.0.0/24")))));
    world.apply(Object::Definition(definition_of(
        "default/fixed",
        &with_ips(json!({"cniVersion": "1.0.0", "type": "bridge", "ipam": {"type": "static"}})),
    )));
    world.apply(Object::Definition(definition_of("default/plain", &json!({"cniVersion": "1.0.0", "type": "bridge"}))));
    world.apply(Object::Definition(definition_of("other/far", &json!({"cniVersion": "1.0.0", "type": "bridge"}))));
    world.apply(Object::Definition(Definition { config: None, ..definition_of("default/node", &json!({})) }));
    world.apply(Object::Definition(Definition {
        resource_name: Some("example.com/vf".into()),
        ..definition_of("default/vf", &json!({"cniVersion": "1.0.0", "type": "sriov"}))
    }));
    world.apply(Object::Pod(attached("db", "default/lan", "10.0.0.7", "Running")));
    world.apply(Object::Pod(attached("job", "default/lan", "10.0.0.8", "Succeeded")));
    world
}

#[test]
fn a_pod_is_planned_as_add_plans_it() {
    let element = "annotation k8s.v1.cni.cncf.io/networks, element";
    let rows: Vec<(Value, Vec<String>)> = vec![
        (json!("plain, other/far, node"), vec![]),
        (json!("nowhere"), vec![format!("error : {element} 1: network default/nowhere: there is no such NetworkAttachmentDefinition")]),
        (json!("plain@a/b"), vec!["error : annotation k8s.v1.cni.cncf.io/networks: element 1".into()]),
        (json!("plain@x, lan@x"), vec!["error : annotation k8s.v1.cni.cncf.io/networks: element 2".into()]),
        (json!("plain@net2, lan"), vec!["error : network default/lan: key \"interface\": \"net2\" is already the interface of network default/plain".into()]),
        (json!("[{}]"), vec!["error : annotation k8s.v1.cni.cncf.io/networks: element 1, key \"name\"".into()]),
        (json!([{"name": "plain", "ips": ["10.0.0.9"]}]), vec!["error : network default/plain: key \"ips\": no plugin of the network declares the capability \"ips\"".into()]),
        (json!([{"name": "plain", "portMappings": [{"hostPort": 1, "containerPort": 1}]}]), vec!["error : network default/plain: key \"portMappings\"".into()]),
        (json!([{"name": "lan", "ips": ["10.0.0.9"]}]), vec![]),
        (json!([{"name": "lan", "ips": ["10.1.0.9"]}]), vec!["error : network default/lan: host-local: failed to allocate all requested IPs: 10.1.0.9".into()]),
        (json!([{"name": "lan", "ips": ["10.0.0.1"]}]), vec!["error : network default/lan: host-local: requested IP 10.0.0.1 is its subnet's gateway".into()]),
        (json!([{"name": "lan", "ips": ["10.0.0.7"]}]), vec!["error : network default/lan: ips: 10.0.0.7 is in use by pod default/db".into()]),
        (json!([{"name": "lan", "ips": ["10.0.0.8"]}]), vec![]),
        (json!([{"name": "fixed", "ips": ["10.0.0.7/24"]}]), vec![]),
        (json!([{"name": "plain", "default-route": ["10.0.0.1"]}, {"name": "lan", "default-route": ["10.0.0.1"]}]), vec!["error : annotation k8s.v1.cni.cncf.io/networks: element 2".into()]),
        (json!([{"name": "plain", "colour": 1}]), vec!["warning : network default/plain: annotation key \"colour\" is not known".into()]),
        // A configuration that lies on the node is not known here, nor what it can be asked for.
        (json!([{"name": "node", "ips": ["10.0.0.9"], "interface": "x"}]), vec![]),
    ];
    let world = networks();
    for (networks, expected) in rows {
        let findings = pod::admitted(&world, &selecting(&networks));
        assert_found(&findings, &expected.iter().map(String::as_str).collect::<Vec<_>>(), &networks);
        assert!(
            findings.iter().all(|f| f.field == format!("metadata.annotations[{NETWORKS_ANNOTATION}]")),
            "{findings:?}"
        );
    }
    let own = attached("db", "default/lan", "10.0.0.7", "Running");
    let mut again = own.clone();
    again.pod.annotations.insert(NETWORKS_ANNOTATION.into(), json!([{"name": "lan", "ips": ["10.0.0.7"]}]).to_string());
    assert_found(&pod::admitted(&world, &again), &[], "its own address");
}

#[test]
fn pods_that_select_nothing_have_nothing_to_be_said_of() {
    for annotations in [json!({}), json!({(NETWORKS_ANNOTATION): ""}), json!({"other": "[{]"})] {
        let pod = pod_of(json!({"metadata": {"generateName": "web-", "annotations": annotations}}));
        assert_found(&pod::admitted(&networks(), &pod), &[], &annotations);
    }
}

#[test]
fn the_default_network_is_checked_too() {
    let of = |value: &str| {
        pod_of(json!({"metadata": {"name": "web", "annotations": {"v1.multus-cni.io/default-network": value}}}))
    };
    assert_found(&pod::admitted(&networks(), &of("default/plain")), &[], "one that is there");
    let findings = pod::admitted(&networks(), &of("plain"));
    assert_found(
        &findings,
        &["error : annotation v1.multus-cni.io/default-network: network kube-system/plain: there is no such"],
        "another namespace's",
    );
    assert_eq!(findings[0].field, "metadata.annotations[v1.multus-cni.io/default-network]");
}

#[test]
fn settings_decide() {
    let lenient = |settings: Settings| {
        let mut world = networks();
        world.settings = settings;
        world
    };
    let host = pod_of(
        json!({"metadata": {"name": "web", "annotations": {(NETWORKS_ANNOTATION): "plain"}}, "spec": {"hostNetwork": true}}),
    );
    assert_found(
        &pod::admitted(&networks(), &host),
        &["warning : pod default/web: it uses the host's network"],
        "host network",
    );
    let strict = lenient(Settings { host_network_is_error: true, ..Settings::default() });
    assert_found(
        &pod::admitted(&strict, &host),
        &["error : pod default/web: it uses the host's network"],
        "host network, denied",
    );

    let warns = lenient(Settings { missing_definitions_may_come: true, ..Settings::default() });
    let missing = ["warning : network default/nowhere: there is no such NetworkAttachmentDefinition"];
    assert_found(&pod::admitted(&warns, &selecting(&json!("plain, nowhere"))), &missing, "a definition may come");
    assert_found(
        &pod::admitted(&warns, &selecting(&json!("nowhere@x, plain@x"))),
        &["error : annotation k8s.v1.cni.cncf.io/networks: element 2"],
        "all else is checked",
    );
}

#[test]
fn devices_have_to_be_asked_for() {
    let with = |resources: Value| {
        let containers = json!([{"name": "a", "resources": resources}, {"name": "b"}]);
        pod_of(
            json!({"metadata": {"name": "web", "annotations": {(NETWORKS_ANNOTATION): "vf, vf"}}, "spec": {"containers": containers}}),
        )
    };
    assert_found(&pod::admitted(&networks(), &with(json!({"limits": {"example.com/vf": "2"}}))), &[], "two");
    let one = pod::admitted(&networks(), &with(json!({"requests": {"example.com/vf": 1}})));
    assert_found(
        &one,
        &[
            "error : network default/vf: the pod was allocated no device of resource \"example.com/vf\" that is left for it, which plugin \"sriov\" needs",
        ],
        "one",
    );
}

#[test]
fn a_pod_within_a_fence() {
    let mut world = networks();
    let spec = json!({
        "namespaceSelector": {"matchLabels": {"tenant": "blue"}}, "definitions": {"fromNamespaces": ["other"]},
        "delegates": [{"type": "bridge", "bridges": ["blue-*"]}], "addresses": ["10.40.0.0/16"],
    });
    world.apply(Object::Policy("blue".into(), serde_json::from_value(spec).unwrap()));
    let free = pod::admitted(&world, &selecting(&json!("plain")));
    assert_found(&free, &[], "no policy selects it");
    world.apply(Object::Namespace("default".into(), [("tenant".to_owned(), "blue".to_owned())].into()));
    let rows = [
        (json!("other/far"), ""),
        (
            json!("plain"),
            "error : annotation k8s.v1.cni.cncf.io/networks, element 1: network default/plain: bridge: cni0 is not among what policy blue grants",
        ),
        (
            json!("third/x"),
            "error : annotation k8s.v1.cni.cncf.io/networks, element 1: network third/x: policy blue grants no definition of namespace third",
        ),
        (
            json!("node"),
            "error : annotation k8s.v1.cni.cncf.io/networks, element 1: network default/node: spec.config: is missing, and policy blue grants no files",
        ),
        (
            json!([{"name": "far", "namespace": "other", "ips": ["10.9.0.1"]}]),
            "error : annotation k8s.v1.cni.cncf.io/networks, element 1: network other/far: ips: 10.9.0.1 is not among",
        ),
    ];
    for (networks, expected) in rows {
        let expected: Vec<&str> = Some(expected).filter(|text| !text.is_empty()).into_iter().collect();
        assert_found(&pod::admitted(&world, &selecting(&networks)), &expected, &networks);
    }
    world.break_policy("blue".into(), "spec: gone wrong".into());
    assert_found(
        &pod::admitted(&world, &selecting(&json!("other/far"))),
        &["error : policy blue cannot be read: spec: gone wrong"],
        "nobody knows whom it limits",
    );
    world.remove_policy("blue");
    assert_found(&pod::admitted(&world, &selecting(&json!("plain"))), &[], "without the policy");
    world.settings.namespaces_are_known = true;
    let by_label = json!({"namespaceSelector": {"matchLabels": {"x": "y"}}});
    world.apply(Object::Policy("x".into(), serde_json::from_value(by_label).unwrap()));
    world.remove_namespace("default");
    assert_found(
        &pod::admitted(&world, &selecting(&json!("plain"))),
        &["error : annotation k8s.v1.cni.cncf.io/networks, element 1: namespace default is not known yet"],
        "its labels may select it",
    );
}

/// A world of so many definitions, five times as many pods, and a policy for all.
fn crowded(definitions: usize) -> World {
    let mut world = world();
    for n in 0..definitions {
        let mut config = host_local(&format!("10.{}.{}.0/24", n / 250, n % 250));
        for (key, value) in
            [("name", json!(format!("n{n}"))), ("master", json!("ens4")), ("capabilities", json!({"ips": true}))]
        {
            config[key] = value;
        }
        world.apply(Object::Definition(definition_of(&format!("ns{}/net{n}", n % 5), &config)));
        for m in 0..5 {
            let ip = format!("10.{}.{}.{}", n / 250, n % 250, m + 2);
            let mut pod = attached(&format!("p{n}-{m}"), &format!("ns{}/net{n}", n % 5), &ip, "Running");
            pod.pod.namespace = format!("ns{}", n % 5);
            world.apply(Object::Pod(pod));
        }
    }
    let grants = json!([{"type": "macvlan", "masters": ["ens*"]}]);
    let spec = json!({"namespaceSelector": {}, "delegates": grants, "addresses": ["10.0.0.0/8"]});
    world.apply(Object::Policy("all".into(), serde_json::from_value(spec).unwrap()));
    world
}

/// 1,000 definitions and 5,000 pods: a decision costs what it costs among a hundredth of them. Medians taken in turn, for the
/// machine may be busy; what it costs is printed.
#[test]
fn a_decision_is_quick_however_much_is_known() {
    let decide = |world: &World, n: usize| {
        let mut pod = selecting(&json!([{"name": format!("net{}", n % 10), "ips": [format!("10.0.{}.200", n % 10)]}]));
        pod.pod.namespace = format!("ns{}", n % 5);
        let mut config = host_local(&format!("10.200.{}.0/24", n % 250));
        config["master"] = json!("ens4");
        let definition = definition_of(&format!("ns1/new{n}"), &config);
        let begin = Instant::now();
        let findings = [pod::admitted(world, &pod), definition::created(world, &definition)].concat();
        let took = begin.elapsed() / 2;
        assert_found(&findings, &[], n);
        took
    };
    let (small, large) = (crowded(10), crowded(1000));
    let pairs = (0..1000).map(|n| (decide(&small, n), decide(&large, n)));
    let (mut few, mut many): (Vec<Duration>, Vec<Duration>) = pairs.unzip();
    for times in [&mut few, &mut many] {
        times.sort();
    }
    let (median, p99) = (many[500], many[990]);
    eprintln!(
        "a decision among 1,000 definitions and 5,000 pods: median {median:?}, p99 {p99:?}; among 10 and 50: {:?}",
        few[500]
    );
    assert!(median < few[500] * 3, "{median:?} among many, {:?} among few", few[500]);
}

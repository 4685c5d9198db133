//! The grammar, row by row: an annotation, and what is read from it or the error a person sees.

use serde_json::{Value, json};

use super::{MAX_ANNOTATION_BYTES, NetworkSelection, PortMapping, Protocol, parse_default_network, parse_networks};
use crate::name::InterfaceName;

const LABEL_63: &str = "a23456789-123456789-123456789-123456789-123456789-123456789-123";

/// A selection as `namespace/name@interface`.
fn short(selection: &NetworkSelection) -> String {
    let interface = selection.interface.as_ref().map(|name| format!("@{name}"));
    format!("{}/{}{}", selection.namespace, selection.name, interface.unwrap_or_default())
}

fn networks(annotation: &str) -> Vec<String> {
    parse_networks(annotation, "pods").unwrap().iter().map(short).collect()
}

fn problem(annotation: &str) -> String {
    let error = parse_networks(annotation, "pods").expect_err(annotation);
    let line = error.to_string();
    assert!(!line.contains(char::is_control) && line.len() < 300, "not one short line: {line:?}");
    line
}

/// The only element of a list, which has the name `a` and the given keys besides.
fn element(keys: Value) -> NetworkSelection {
    let mut selections = parse_networks(&list_of_one(keys), "pods").unwrap();
    assert_eq!(selections.len(), 1);
    selections.remove(0)
}

fn list_of_one(mut keys: Value) -> String {
    keys["name"] = json!("a");
    json!([keys]).to_string()
}

#[test]
fn the_text_form_is_a_comma_list() {
    let rows: [(&str, &[&str]); 13] = [
        ("", &[]),
        (" \n\t", &[]),
        ("a", &["pods/a"]),
        (" a , b ", &["pods/a", "pods/b"]),
        ("a,a", &["pods/a", "pods/a"]),
        ("other/a", &["other/a"]),
        ("a@eth1", &["pods/a@eth1"]),
        ("other/a@Net_1", &["other/a@Net_1"]),
        ("other / a @ eth1", &["other/a@eth1"]),
        ("a@eth0.100,b", &["pods/a@eth0.100", "pods/b"]),
        ("1/2", &["1/2"]),
        ("a@abcdefghijklmno", &["pods/a@abcdefghijklmno"]),
        (LABEL_63, &["pods/a23456789-123456789-123456789-123456789-123456789-123456789-123"]),
    ];
    for (annotation, expected) in rows {
        assert_eq!(networks(annotation), expected, "{annotation:?}");
    }
}

#[test]
fn the_text_form_refuses() {
    let empty = "it is empty; each element between the commas is [namespace/]name[@interface]";
    let long = format!("{LABEL_63}4");
    let rows = [
        (",", format!("element 1: {empty}")),
        ("a,", format!("element 2: {empty}")),
        ("a, ,b", format!("element 2: {empty}")),
        ("x/y/z", "element 1: \"x/y/z\" is not of the form [namespace/]name[@interface]".into()),
        ("b,a@b@c", "element 2: \"a@b@c\" is not of the form [namespace/]name[@interface]".into()),
        ("root@ip/root@ip", "element 1: \"root@ip/root@ip\" is not of the form".into()),
        ("a@b/c", "element 1: \"b/c\" cannot name an interface: \"/\"".into()),
        ("A", "element 1: \"A\" is not the name of a network (at most 63 lower-case letters".into()),
        ("a b", "element 1: \"a b\" is not the name of a network".into()),
        ("a.b", "element 1: \"a.b\" is not the name of a network".into()),
        ("a\0", "element 1: \"a\\0\" is not the name of a network".into()),
        ("ns/", "element 1: \"\" is not the name of a network".into()),
        ("@eth1", "element 1: \"\" is not the name of a network".into()),
        ("/a", "element 1: \"\" is not the name of a namespace".into()),
        ("Ns/a", "element 1: \"Ns\" is not the name of a namespace".into()),
        (long.as_str(), "element 1: \"a23456789-".into()),
        ("a@", "element 1: \"\" cannot name an interface: it is empty".into()),
        ("a@abcdefghijklmnop", "element 1: \"abcdefghijklmnop\" cannot name an interface: the kernel allows".into()),
        ("default/a@my Ifc", "element 1: \"my Ifc\" cannot name an interface: white space".into()),
        ("a@lo", "element 1: \"lo\" cannot name an interface: this name is reserved".into()),
        ("a@x0,b,c@x0", "element 3: the interface name \"x0\" is already used by element 1; each needs its own".into()),
        ("}", "element 1: \"}\" is not the name of a network".into()),
    ];
    for (annotation, expected) in rows {
        let line = problem(annotation);
        assert!(line.starts_with(&expected), "{annotation:?}\n  said: {line}\nwanted: {expected}");
    }
}

#[test]
fn the_json_form_is_a_list_of_objects() {
    let rows: [(&str, &[&str]); 14] = [
        ("[]", &[]),
        (" [ ] ", &[]),
        (r#"[{"name":"a"}]"#, &["pods/a"]),
        (r#"[{"name":"a"},{"name":"a"}]"#, &["pods/a", "pods/a"]),
        (r#"[{"name":"a.b-c","namespace":"other","interface":"Net_1"}]"#, &["other/a.b-c@Net_1"]),
        (r#"[{"name":"a","namespace":"","interface":""}]"#, &["pods/a"]),
        (r#"[{"name":"a","namespace":null,"interface":null,"mac":null,"ips":null,"bandwidth":null}]"#, &["pods/a"]),
        (r#"[{"name":"a","interfaceRequest":"x0"}]"#, &["pods/a@x0"]),
        (r#"[{"name":"a","interface":"","interfaceRequest":"x0"}]"#, &["pods/a@x0"]),
        (r#"[{"name":"a","interface":"x1","interfaceRequest":"x0"}]"#, &["pods/a@x1"]),
        (r#"[{"Name":"a","nameSpace":"other"}]"#, &["other/a"]),
        (r#"[{"NAME":"b","name":"a","Name":"c"}]"#, &["pods/a"]),
        (r#"[{"NAME":"b","Name":"a"}]"#, &["pods/a"]),
        (r#"[{"name":"b","name":"a"}]"#, &["pods/a"]),
    ];
    for (annotation, expected) in rows {
        assert_eq!(networks(annotation), expected, "{annotation}");
    }
}

#[test]
fn the_json_form_refuses_what_is_no_list_of_named_objects() {
    let rows = [
        (r#"{"name":"a"}"#, r#"an object is not a list like [{"name": "net-a"}]"#),
        (r#""a""#, r#""a" is not a list"#),
        (
            r#"a,"b""#,
            "it is not valid JSON (anything with [, { or \" in it is read as JSON): expected value at line 1 column 1",
        ),
        ("[", "it is not valid JSON (anything"),
        ("[]]", "it is not valid JSON (anything"),
        (
            "[{\"name\":\"a\"},]",
            "it is not valid JSON (anything with [, { or \" in it is read as JSON): trailing comma at line 1 column 15",
        ),
        ("[{\"name\":\"a\",}]", "it is not valid JSON (anything"),
        (
            "[{\"name\":\n\"a\0\"}]",
            "it is not valid JSON (anything with [, { or \" in it is read as JSON): control character",
        ),
        ("[{\"name\":\"a\"}]\0", "it is not valid JSON (anything"),
        ("[null]", r#"element 1: null is not an object like {"name": "net-a"}"#),
        (r#"[{"name":"a"},"b"]"#, r#"element 2: "b" is not an object like"#),
        ("[1]", "element 1: 1 is not an object"),
        ("[[]]", "element 1: a list is not an object"),
        ("[{}]", "element 1, key \"name\": it is missing; each element names a network"),
        (r#"[{"namespace":"default"}]"#, "element 1, key \"name\": it is missing"),
        (r#"[{"name":null}]"#, "element 1, key \"name\": it is missing"),
        (r#"[{"name":""}]"#, "element 1, key \"name\": \"\" is not the name of an object"),
        (r#"[{"name":"A"}]"#, "element 1, key \"name\": \"A\" is not the name of an object (at most 253"),
        (r#"[{"name":"a/b"}]"#, "element 1, key \"name\": \"a/b\" is not the name"),
        (r#"[{"name":"a\u0000"}]"#, r#"element 1, key "name": "a\0" is not the name"#),
        (r#"[{"name":7}]"#, "element 1, key \"name\": 7 is not a string"),
        (
            r#"[{"name":"a","interface":"x0"},{"name":"b","interface":"x0"}]"#,
            "element 2: the interface name \"x0\" is already used by element 1",
        ),
    ];
    for (annotation, expected) in rows {
        let line = problem(annotation);
        assert!(line.starts_with(expected), "{annotation}\n  said: {line}\nwanted: {expected}");
    }
}

#[test]
fn every_key_is_read() {
    let selection = element(json!({
        "namespace": "other",
        "interface": "x0",
        "ips": ["10.1.0.5/24", "FD00::5"],
        "mac": "C2:11:22:33:44:66",
        "infiniband-guid": "c2:11:22:33:44:55:66:77",
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80},
            {"hostPort": 65535, "containerPort": 1, "protocol": "Udp", "hostIP": "0.0.0.0"},
            {"hostPort": 1, "containerPort": 65535, "protocol": "SCTP", "hostIP": null},
        ],
        "bandwidth": {"ingressRate": 1000, "ingressBurst": 2000, "egressRate": 3000, "egressBurst": 4000},
        "default-route": ["10.1.0.1", "fd00::1"],
        "cni-args": {"b": 1, "a": {"deep": [null, 1.5]}},
        "deviceID": "0000:03:02.1",
        "ipam-claim-reference": null,
        "example.com/tag": 1,
    }));
    assert_eq!(short(&selection), "other/a@x0");
    let ips: Vec<String> = selection.ips.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.1.0.5/24", "FD00::5"]);
    assert_eq!(selection.mac.unwrap().to_string(), "c2:11:22:33:44:66");
    assert_eq!(selection.infiniband_guid.unwrap().to_string(), "c2:11:22:33:44:55:66:77");
    let ports: Vec<Value> = selection.port_mappings.iter().map(PortMapping::to_json).collect();
    assert_eq!(
        json!(ports),
        json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 65535, "containerPort": 1, "protocol": "udp", "hostIP": "0.0.0.0"},
            {"hostPort": 1, "containerPort": 65535, "protocol": "sctp"},
        ])
    );
    assert_eq!(selection.port_mappings[0].protocol, Protocol::Tcp);
    assert_eq!(
        selection.bandwidth.unwrap().to_json(),
        json!({"ingressRate": 1000, "ingressBurst": 2000, "egressRate": 3000, "egressBurst": 4000})
    );
    assert_eq!(json!(selection.default_route), json!(["10.1.0.1", "fd00::1"]));
    assert_eq!(
        Value::Object(selection.cni_args.unwrap()).to_string(),
        r#"{"b":1,"a":{"deep":[null,1.5]}}"#,
        "the order of keys survives"
    );
    assert_eq!(selection.device_id.as_deref(), Some("0000:03:02.1"));
    assert_eq!((selection.ipam_claim_reference, selection.unknown_keys), (None, Vec::new()));
    let claim = element(json!({"ipam-claim-reference": "vm-a.net-b"}));
    assert_eq!(claim.ipam_claim_reference.as_deref(), Some("vm-a.net-b"));
}

#[test]
fn a_name_alone_asks_for_nothing() {
    assert_eq!(element(json!({})), NetworkSelection::new("pods", "a"));
    assert_eq!(parse_networks("a", "pods").unwrap(), [NetworkSelection::new("pods", "a")]);
}

#[test]
fn a_rate_may_stand_without_its_burst() {
    let bandwidth = element(json!({"bandwidth": {"egressRate": i64::MAX, "ingressBurst": null}})).bandwidth;
    assert_eq!(bandwidth.unwrap().to_json(), json!({"egressRate": i64::MAX}));
}

#[test]
fn what_a_go_client_leaves_out_is_left_out() {
    let empty = element(json!({
        "namespace": "", "interface": "", "mac": "", "infiniband-guid": "", "deviceID": "", "ipam-claim-reference": "",
        "cni-args": null,
    }));
    assert_eq!(empty, NetworkSelection::new("pods", "a"));
    let mapping = json!({"hostPort": 80, "containerPort": 80, "protocol": "", "hostIP": ""});
    let ports = element(json!({"portMappings": [mapping]})).port_mappings;
    assert_eq!(ports[0].to_json(), json!({"hostPort": 80, "containerPort": 80, "protocol": "tcp"}));
    let limits = json!({"ingressRate": 1000, "ingressBurst": 0, "egressRate": 0, "egressBurst": 0});
    assert_eq!(element(json!({"bandwidth": limits})).bandwidth.unwrap().to_json(), json!({"ingressRate": 1000}));
}

#[test]
fn an_empty_default_route_is_not_an_absent_one() {
    assert_eq!(element(json!({"default-route": []})).default_route, Some(Vec::new()));
    assert_eq!(element(json!({"default-route": null})).default_route, None);
}

#[test]
fn each_value_is_checked() {
    let ports = |mapping: Value| json!({"portMappings": [{"hostPort": 1, "containerPort": 1}, mapping]});
    let rows = [
        (json!({"namespace": "a.b"}), "namespace", "\"a.b\" is not the name of a namespace"),
        (json!({"namespace": ["x"]}), "namespace", "a list is not a string"),
        (json!({"interface": "my Ifc"}), "interface", "\"my Ifc\" cannot name an interface"),
        (json!({"interface": "all"}), "interface", "this name is reserved"),
        (json!({"interface": "x0", "interfaceRequest": 1}), "interfaceRequest", "1 is not a string"),
        (json!({"interfaceRequest": "a/b"}), "interfaceRequest", "\"a/b\" cannot name an interface"),
        (json!({"ips": []}), "ips", "the list is empty; give it an address or leave the key out"),
        (json!({"ips": "10.1.0.5"}), "ips", "\"10.1.0.5\" is not a list of strings"),
        (
            json!({"ips": ["10.1.0.5", "10.0.0.300"]}),
            "ips[1]",
            "\"10.0.0.300\" is not an IP address with or without prefix",
        ),
        (json!({"ips": [null]}), "ips[0]", "null is not a string"),
        (json!({"mac": "02:00"}), "mac", "\"02:00\" is not a 6-byte MAC address (like 02:00:00:00:00:01)"),
        (json!({"mac": "02:00:00:00:00:01:02:03"}), "mac", "is not a 6-byte MAC address"),
        (json!({"mac": "01:00:5e:00:00:01"}), "mac", "is no interface's address"),
        (json!({"mac": 2}), "mac", "2 is not a string"),
        (json!({"infiniband-guid": "02:00:00:00:00:01"}), "infiniband-guid", "is not an 8-byte InfiniBand GUID"),
        (json!({"portMappings": []}), "portMappings", "the list is empty"),
        (json!({"portMappings": {}}), "portMappings", "an object is not a list of objects"),
        (json!({"portMappings": [80]}), "portMappings[0]", "80 is not an object"),
        (ports(json!({"containerPort": 80})), "portMappings[1].hostPort", "it is missing; both ports are needed"),
        (ports(json!({"hostPort": 80})), "portMappings[1].containerPort", "it is missing"),
        (
            ports(json!({"hostPort": 70000, "containerPort": 80})),
            "portMappings[1].hostPort",
            "70000 is not an integer from 1 to 65535",
        ),
        (
            ports(json!({"hostPort": 0, "containerPort": 80})),
            "portMappings[1].hostPort",
            "0 is not an integer from 1 to 65535",
        ),
        (ports(json!({"hostPort": 80, "containerPort": -1})), "portMappings[1].containerPort", "-1 is not an integer"),
        (ports(json!({"hostPort": 80.5, "containerPort": 80})), "portMappings[1].hostPort", "80.5 is not an integer"),
        (ports(json!({"hostPort": "80", "containerPort": 80})), "portMappings[1].hostPort", "\"80\" is not an integer"),
        (
            ports(json!({"hostPort": 1, "containerPort": 1, "protocol": "icmp"})),
            "portMappings[1].protocol",
            "\"icmp\" is not TCP, UDP or SCTP",
        ),
        (
            ports(json!({"hostPort": 1, "containerPort": 1, "hostIP": "10.0.0.1/8"})),
            "portMappings[1].hostIP",
            "\"10.0.0.1/8\" is not an IP address",
        ),
        (json!({"bandwidth": {}}), "bandwidth", "it limits nothing"),
        (json!({"bandwidth": 5}), "bandwidth", "5 is not an object"),
        (json!({"bandwidth": {"ingressRate": 0}}), "bandwidth", "it limits nothing"),
        (json!({"bandwidth": {"ingressRate": -1}}), "bandwidth.ingressRate", "-1 is not an integer from 0 to"),
        (
            json!({"bandwidth": {"ingressRate": 0, "ingressBurst": 1000}}),
            "bandwidth.ingressBurst",
            "it needs \"ingressRate\" beside it",
        ),
        (
            json!({"bandwidth": {"ingressRate": u64::MAX}}),
            "bandwidth.ingressRate",
            "is not an integer from 0 to 9223372036854775807",
        ),
        (json!({"bandwidth": {"ingressRate": "1M"}}), "bandwidth.ingressRate", "\"1M\" is not an integer"),
        (json!({"bandwidth": {"ingressBurst": 1000}}), "bandwidth.ingressBurst", "it needs \"ingressRate\" beside it"),
        (
            json!({"bandwidth": {"ingressRate": 1, "egressBurst": 1}}),
            "bandwidth.egressBurst",
            "it needs \"egressRate\" beside it",
        ),
        (json!({"default-route": "10.1.0.1"}), "default-route", "is not a list of strings"),
        (
            json!({"default-route": ["10.1.0.1/24"]}),
            "default-route[0]",
            "\"10.1.0.1/24\" is not the IP address of a gateway",
        ),
        (json!({"default-route": ["10.1.0.1", ""]}), "default-route[1]", "\"\" is not the IP address of a gateway"),
        (json!({"default-route": ["10.1.0.1", "10.1.0.2"]}), "default-route", "it has two gateways of one family"),
        (json!({"cni-args": "a=b"}), "cni-args", "\"a=b\" is not an object"),
        (json!({"cni-args": []}), "cni-args", "a list is not an object"),
        (json!({"deviceID": 7}), "deviceID", "7 is not a string"),
        (json!({"deviceID": "a\nb"}), "deviceID", "\"a\\nb\" is not the id of a device"),
        (json!({"ipam-claim-reference": "A b"}), "ipam-claim-reference", "\"A b\" is not the name of an object"),
        (
            json!({"ips": ["10.1.0.5"], "ipam-claim-reference": "c"}),
            "ipam-claim-reference",
            "a claim brings its own addresses",
        ),
        (json!({"MAC": "x"}), "mac", "\"x\" is not a 6-byte MAC address"),
    ];
    for (keys, key, expected) in rows {
        let annotation = list_of_one(keys);
        let line = problem(&annotation);
        let place = format!("element 1, key \"{key}\": ");
        assert!(line.starts_with(&place), "{annotation}\nsaid: {line}");
        assert!(line.contains(expected), "{annotation}\n  said: {line}\nwanted: {expected}");
    }
}

#[test]
fn one_element_sets_the_default_route_of_a_family() {
    let annotation = |routes: &[Value]| {
        let elements = routes.iter().map(|route| json!({"name": "a", "default-route": route}));
        Value::Array(elements.collect()).to_string()
    };
    let good = [
        vec![json!(["10.1.0.1", "fd00::1"]), json!(null)],
        vec![json!(["10.1.0.1"]), json!(["fd00::1"])],
        vec![json!(null), json!([]), json!(null)],
    ];
    for routes in good {
        assert!(parse_networks(&annotation(&routes), "pods").is_ok(), "{routes:?}");
    }
    let bad = [
        (vec![json!(["10.1.0.1"]), json!(["10.2.0.1"])], "IPv4"),
        (vec![json!(["fd00::1", "10.1.0.1"]), json!(["fd00::2"])], "IPv6"),
        (vec![json!([]), json!([])], "IPv4"),
        (vec![json!(["10.1.0.1"]), json!([])], "IPv4"),
        (vec![json!([]), json!(["fd00::1"])], "IPv6"),
    ];
    for (routes, family) in bad {
        assert_eq!(
            problem(&annotation(&routes)),
            format!(
                "element 2, key \"default-route\": element 1 sets the {family} default route already; only one element can"
            ),
            "{routes:?}"
        );
    }
}

#[test]
fn unknown_keys_without_a_dot_are_told() {
    let selection = element(json!({
        "gateway": "10.1.0.1",
        "example.com/own": {"x": 1},
        "Interface": "x0",
        "portMappings": [{"hostPort": 1, "containerPort": 1, "hostport": 2, "port": 3, "a.b/c": 4}],
        "bandwidth": {"ingressRate": 1, "ingresBurst": 1},
        "cni-args": {"anything": 1},
        "bad\nkey": null,
    }));
    assert_eq!(selection.interface, Some(InterfaceName::parse("x0").unwrap()));
    assert_eq!(
        selection.unknown_keys,
        ["gateway", "bad\\nkey", "portMappings[0].hostport", "portMappings[0].port", "bandwidth.ingresBurst"]
    );
}

#[test]
fn a_default_network_is_exactly_one() {
    let read = |annotation| parse_default_network(annotation, "kube-system");
    assert_eq!(short(&read("a").unwrap()), "kube-system/a");
    assert_eq!(short(&read("other/a@eth5").unwrap()), "other/a@eth5");
    assert_eq!(short(&read(r#"[{"name":"a.b","mac":"02:00:00:00:00:01"}]"#).unwrap()), "kube-system/a.b");
    let rows = [
        ("", "it selects 0 networks; exactly one can be the default network"),
        ("[]", "it selects 0 networks"),
        ("a,b", "it selects 2 networks"),
        (r#"[{"name":"a"},{"name":"b"}]"#, "it selects 2 networks"),
        ("[null]", "element 1: null is not an object"),
        ("A", "element 1: \"A\" is not the name of a network"),
    ];
    for (annotation, expected) in rows {
        let line = read(annotation).expect_err(annotation).to_string();
        assert!(line.starts_with(expected), "{annotation:?}: {line}");
    }
}

#[test]
fn an_error_says_where_in_its_fields_too() {
    let error = parse_networks(r#"[{"name":"a"},{"name":"b","mac":"02:00"}]"#, "pods").unwrap_err();
    assert_eq!((error.position, error.key.as_deref()), (Some(2), Some("mac")));
    assert_eq!(
        error.to_string(),
        "element 2, key \"mac\": \"02:00\" is not a 6-byte MAC address (like 02:00:00:00:00:01)"
    );
}

#[test]
fn hostile_sizes_end_at_once() {
    let too_long = format!("the annotation is 1048576 bytes long; at most {MAX_ANNOTATION_BYTES} are read");
    assert_eq!(problem(&",".repeat(1 << 20)), too_long);
    assert!(problem(&",".repeat(MAX_ANNOTATION_BYTES)).starts_with("element 1: it is empty"));
    assert!(problem(&format!("[{}", ",".repeat(MAX_ANNOTATION_BYTES - 1))).starts_with("it is not valid JSON"));
    assert!(problem(&"[".repeat(MAX_ANNOTATION_BYTES)).contains("recursion limit exceeded"));
    assert!(problem(&r#"[{"a":"#.repeat(MAX_ANNOTATION_BYTES / 6)).contains("recursion limit exceeded"));
    assert!(problem(&"x".repeat(MAX_ANNOTATION_BYTES)).starts_with("element 1: \"xxx"));
    let many_keys: String = (0..20_000).map(|number| format!(",\"k{number}\":0")).collect();
    let selections = parse_networks(&format!("[{{\"name\":\"a\"{many_keys}}}]"), "pods").unwrap();
    assert_eq!(selections[0].unknown_keys.len(), 20_000);
    // A full-sized annotation whose elements all differ is read in time that grows with its size alone.
    let many: Vec<String> = (0..20_000).map(|number| format!("a@if{number}")).collect();
    assert_eq!(parse_networks(&many.join(","), "pods").unwrap().len(), 20_000);
}

//! What holds for every annotation: it is read or refused, never a panic; and what is written out is read back.

use proptest::collection::{hash_set, vec};
use proptest::option;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{
    Bandwidth, NetworkSelection, PortMapping, Protocol, SelectionError, parse_default_network, parse_networks,
};
use crate::address::{InfinibandGuid, MacAddress, RequestedIp};
use crate::name::InterfaceName;

proptest! {
    #[test]
    fn any_text_is_read_or_refused(annotation in any::<String>()) {
        outcome_is_sound(parse_networks(&annotation, "pods"))?;
    }

    #[test]
    fn any_text_near_the_grammar_is_read_or_refused(annotation in r#"[a-c/@, \[\]{}":.%A\x00\n-]{0,40}"#) {
        outcome_is_sound(parse_networks(&annotation, "pods"))?;
        let _ = parse_default_network(&annotation, "pods");
    }

    #[test]
    fn any_json_is_read_or_refused(value in json_value()) {
        outcome_is_sound(parse_networks(&value.to_string(), "pods"))?;
    }

    #[test]
    fn any_json_under_known_keys_is_read_or_refused(elements in vec(element_like(), 0..4)) {
        outcome_is_sound(parse_networks(&Value::Array(elements).to_string(), "pods"))?;
    }

    #[test]
    fn the_text_form_reads_back(selections in distinct(text_selection())) {
        let annotation: Vec<String> = selections.iter().map(as_text).collect();
        prop_assert_eq!(parse_networks(&annotation.join(","), "pods"), Ok(selections.clone()));
        prop_assert_eq!(parse_networks(&annotation.join(" , "), "pods"), Ok(selections));
    }

    #[test]
    fn the_json_form_reads_back(selections in distinct(json_selection())) {
        let annotation = Value::Array(selections.iter().map(as_json).collect());
        prop_assert_eq!(parse_networks(&annotation.to_string(), "pods"), Ok(selections));
    }

    #[test]
    fn a_status_is_read_or_refused(annotation in any::<String>(), value in json_value()) {
        let _ = crate::status::from_annotation(&annotation);
        let _ = crate::status::from_annotation(&json!([value]).to_string());
    }
}

/// An error is one short line; a selection has what the types cannot promise.
fn outcome_is_sound(outcome: Result<Vec<NetworkSelection>, SelectionError>) -> Result<(), TestCaseError> {
    match outcome {
        Err(error) => {
            let line = error.to_string();
            prop_assert!(!line.contains(char::is_control), "{:?}", line);
            prop_assert!(line.chars().count() < 1000, "{:?}", line);
        }
        Ok(selections) => {
            for selection in selections {
                prop_assert!(!selection.name.is_empty() && !selection.namespace.is_empty());
                prop_assert!(selection.ips.is_empty() || selection.ipam_claim_reference.is_none());
            }
        }
    }
    Ok(())
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(json!("10.1.0.5/24")),
        Just(json!("02:00:00:00:00:01")),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((key(), inner), 0..4).prop_map(|keys| keys.into_iter().collect()),
        ]
    })
}

const KEYS: [&str; 23] = [
    "name",
    "namespace",
    "interface",
    "interfaceRequest",
    "ips",
    "mac",
    "infiniband-guid",
    "portMappings",
    "bandwidth",
    "default-route",
    "cni-args",
    "deviceID",
    "ipam-claim-reference",
    "hostPort",
    "containerPort",
    "protocol",
    "hostIP",
    "ingressRate",
    "ingressBurst",
    "NAME",
    "dns",
    "gateway",
    "device-info",
];

fn key() -> impl Strategy<Value = String> {
    prop_oneof![4 => proptest::sample::select(&KEYS[..]).prop_map(str::to_owned), 1 => any::<String>()]
}

/// An object with a good name, so that the other keys are reached.
fn element_like() -> impl Strategy<Value = Value> {
    vec((key(), json_value()), 0..5).prop_map(|keys| {
        let mut object: Map<String, Value> = keys.into_iter().collect();
        object.insert("name".to_owned(), json!("a"));
        Value::Object(object)
    })
}

/// Some selections, no two of which ask for one interface name or set the default route.
fn distinct(selection: impl Strategy<Value = NetworkSelection>) -> impl Strategy<Value = Vec<NetworkSelection>> {
    let names = hash_set("[a-zA-Z0-9_.-]{1,12}".prop_map(|name| format!("x{name}")), 5);
    (vec(selection, 0..5), names).prop_map(|(mut selections, names)| {
        for (selection, name) in selections.iter_mut().zip(names) {
            if selection.interface.is_some() {
                selection.interface = Some(InterfaceName::parse(&name).unwrap());
            }
        }
        let with_route = selections.iter_mut().filter(|selection| selection.default_route.is_some());
        with_route.skip(1).for_each(|selection| selection.default_route = None);
        selections
    })
}

fn label() -> impl Strategy<Value = String> {
    "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
}

fn text_selection() -> impl Strategy<Value = NetworkSelection> {
    (label(), label(), any::<bool>()).prop_map(|(namespace, name, has_interface)| NetworkSelection {
        interface: has_interface.then(|| InterfaceName::parse("x").unwrap()),
        ..NetworkSelection::new(namespace, name)
    })
}

fn as_text(selection: &NetworkSelection) -> String {
    let interface = selection.interface.as_ref().map(|name| format!("@{name}")).unwrap_or_default();
    format!("{}/{}{interface}", selection.namespace, selection.name)
}

fn json_selection() -> impl Strategy<Value = NetworkSelection> {
    let names = (text_selection(), "[a-z0-9]{1,9}(\\.[a-z0-9]{1,9}){0,3}");
    let addresses = (vec(requested_ip(), 0..3), option::of(mac()), option::of(guid()));
    let limits = (vec(port_mapping(), 0..3), option::of(bandwidth()));
    let rest = (option::of(gateways()), option::of(arguments()), option::of("[0-9a-f:.]{1,12}"), option::of(label()));
    (names, addresses, limits, rest).prop_map(
        |((selection, name), (ips, mac, infiniband_guid), (port_mappings, bandwidth), rest)| {
            let (default_route, cni_args, device_id, claim) = rest;
            NetworkSelection {
                name,
                ipam_claim_reference: claim.filter(|_| ips.is_empty()),
                ips,
                mac,
                infiniband_guid,
                port_mappings,
                bandwidth,
                default_route,
                cni_args,
                device_id,
                ..selection
            }
        },
    )
}

fn as_json(selection: &NetworkSelection) -> Value {
    let texts = |list: &[RequestedIp]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let keys = [
        ("namespace", json!(selection.namespace)),
        ("name", json!(selection.name)),
        ("interface", json!(selection.interface.as_ref().map(ToString::to_string))),
        ("ips", list_or_null(&selection.ips, texts(&selection.ips).into())),
        ("mac", json!(selection.mac.map(|mac| mac.to_string()))),
        ("infiniband-guid", json!(selection.infiniband_guid.map(|guid| guid.to_string()))),
        (
            "portMappings",
            list_or_null(&selection.port_mappings, selection.port_mappings.iter().map(PortMapping::to_json).collect()),
        ),
        ("bandwidth", selection.bandwidth.as_ref().map(Bandwidth::to_json).into()),
        ("default-route", json!(selection.default_route)),
        ("cni-args", json!(selection.cni_args)),
        ("deviceID", json!(selection.device_id)),
        ("ipam-claim-reference", json!(selection.ipam_claim_reference)),
    ];
    keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn list_or_null<T>(items: &[T], list: Value) -> Value {
    if items.is_empty() { Value::Null } else { list }
}

fn requested_ip() -> impl Strategy<Value = RequestedIp> {
    prop_oneof![
        ("10\\.[1-9]\\.[1-9][0-9]\\.[1-9]", option::of(0..=32u8)),
        ("(fd00|FD00:0)::[1-9a-fA-F]{1,4}", option::of(0..=128u8)),
    ]
    .prop_map(|(address, prefix)| {
        let prefix = prefix.map(|prefix| format!("/{prefix}")).unwrap_or_default();
        RequestedIp::parse(&format!("{address}{prefix}")).unwrap()
    })
}

fn mac() -> impl Strategy<Value = MacAddress> {
    "[0-9a-f][26ae](:[0-9a-f]{2}){5}".prop_map(|text| MacAddress::parse(&text).unwrap())
}

fn guid() -> impl Strategy<Value = InfinibandGuid> {
    "[0-9a-f]{2}(-[0-9a-f]{2}){7}".prop_map(|text| InfinibandGuid::parse(&text).unwrap())
}

fn port_mapping() -> impl Strategy<Value = PortMapping> {
    let protocol = proptest::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    (1..=u16::MAX, 1..=u16::MAX, protocol, any::<Option<std::net::IpAddr>>()).prop_map(
        |(host_port, container_port, protocol, host_ip)| PortMapping { host_port, container_port, protocol, host_ip },
    )
}

fn bandwidth() -> impl Strategy<Value = Bandwidth> {
    let value = || 1..=i64::MAX.unsigned_abs();
    (value(), option::of(value()), option::of((value(), option::of(value())))).prop_map(
        |(ingress_rate, ingress_burst, egress)| Bandwidth {
            ingress_rate: Some(ingress_rate),
            ingress_burst,
            egress_rate: egress.map(|(rate, _)| rate),
            egress_burst: egress.and_then(|(_, burst)| burst),
        },
    )
}

fn gateways() -> impl Strategy<Value = Vec<std::net::IpAddr>> {
    let one = |text: &str| text.parse().unwrap();
    proptest::sample::select(vec![
        vec![],
        vec![one("10.1.0.1")],
        vec![one("fe80::1")],
        vec![one("fd00::1"), one("10.1.0.1")],
    ])
}

fn arguments() -> impl Strategy<Value = Map<String, Value>> {
    // Floats are left out: what JSON keeps of them is not the parser's doing.
    vec((any::<String>(), prop_oneof![any::<i64>().prop_map(Value::from), any::<String>().prop_map(Value::from)]), 0..4)
        .prop_map(|keys| keys.into_iter().collect())
}

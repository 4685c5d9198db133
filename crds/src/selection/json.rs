//! The JSON form of the annotation: a list of objects (multi-net 4.1.2), read with the strictness of the standard.

use std::net::IpAddr;

use serde_json::Value;

use super::object::{Object, described};
use super::{Bandwidth, NetworkSelection, PortMapping, Protocol, SelectionError};
use crate::address::{InfinibandGuid, MacAddress, RequestedIp, parse_gateway};
use crate::excerpt::quoted;
use crate::name::{InterfaceName, is_dns_label, is_dns_subdomain};

const ELEMENT_KEYS: [&str; 13] = [
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
];
const PORT_MAPPING_KEYS: [&str; 4] = ["hostPort", "containerPort", "protocol", "hostIP"];
const BANDWIDTH_KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

pub(super) fn parse(annotation: &str, default_namespace: &str) -> Result<Vec<NetworkSelection>, SelectionError> {
    let value: Value = serde_json::from_str(annotation).map_err(|error| {
        SelectionError::whole(format!(
            "it is not valid JSON (anything with [, {{ or \" in it is read as JSON): {error}"
        ))
    })?;
    let Value::Array(elements) = value else {
        return Err(SelectionError::whole(format!(
            "{} is not a list like [{{\"name\": \"net-a\"}}]",
            described(&value)
        )));
    };
    (1..)
        .zip(&elements)
        .map(|(position, value)| element(value, default_namespace).map_err(|error| error.at(position)))
        .collect()
}

fn element(value: &Value, default_namespace: &str) -> Result<NetworkSelection, SelectionError> {
    let Value::Object(keys) = value else {
        return Err(SelectionError::whole(format!(
            "{} is not an object like {{\"name\": \"net-a\"}}",
            described(value)
        )));
    };
    let object = Object::element(keys);
    let selection = NetworkSelection {
        namespace: namespace(&object)?.unwrap_or(default_namespace).to_owned(),
        name: name(&object)?.to_owned(),
        interface: interface(&object)?,
        ips: ips(&object)?,
        mac: parsed(&object, "mac", MacAddress::parse)?,
        infiniband_guid: parsed(&object, "infiniband-guid", InfinibandGuid::parse)?,
        port_mappings: port_mappings(&object)?,
        bandwidth: bandwidth(&object)?,
        default_route: default_route(&object)?,
        cni_args: object.map("cni-args")?.cloned(),
        device_id: parsed(&object, "deviceID", device_id)?,
        ipam_claim_reference: parsed(&object, "ipam-claim-reference", object_name)?,
        unknown_keys: unknown_keys(&object)?,
    };
    if selection.ipam_claim_reference.is_some() && !selection.ips.is_empty() {
        return Err(object.error(
            "ipam-claim-reference",
            "a claim brings its own addresses; use it without \"ips\", or \"ips\" without it",
        ));
    }
    Ok(selection)
}

fn name<'a>(object: &Object<'a>) -> Result<&'a str, SelectionError> {
    match object.string("name")? {
        None => Err(object.error("name", "it is missing; each element names a network")),
        Some(name) if is_dns_subdomain(name) => Ok(name),
        Some(name) => Err(object.error("name", not_a_subdomain(name))),
    }
}

/// Empty is absent (multi-net 4.1.2).
fn namespace<'a>(object: &Object<'a>) -> Result<Option<&'a str>, SelectionError> {
    match object.string("namespace")? {
        None | Some("") => Ok(None),
        Some(namespace) if is_dns_label(namespace) => Ok(Some(namespace)),
        Some(namespace) => Err(object.error(
            "namespace",
            format!(
                "{} is not the name of a namespace (at most 63 lower-case letters, digits and inner \"-\")",
                quoted(namespace)
            ),
        )),
    }
}

/// `interfaceRequest` is what Multus called the key before the standard; it counts where `interface` is empty.
fn interface(object: &Object) -> Result<Option<InterfaceName>, SelectionError> {
    let keys = ["interface", "interfaceRequest"];
    let [standard, legacy] = keys.map(|key| object.string(key));
    let named = keys.into_iter().zip([standard?, legacy?]);
    let first = named.filter_map(|(key, name)| Some((key, name.filter(|name| !name.is_empty())?))).next();
    first.map(|(key, name)| InterfaceName::parse(name).map_err(|problem| object.error(key, problem))).transpose()
}

fn ips(object: &Object) -> Result<Vec<RequestedIp>, SelectionError> {
    let ips = object.strings("ips", RequestedIp::parse)?;
    some_if_present(object, "ips", ips, "an address")
}

fn port_mappings(object: &Object) -> Result<Vec<PortMapping>, SelectionError> {
    let mappings = match object.objects("portMappings")? {
        None => None,
        Some(list) => Some(list.iter().map(port_mapping).collect::<Result<_, _>>()?),
    };
    some_if_present(object, "portMappings", mappings, "a mapping")
}

/// A list that is given names something (multi-net 4.1.2): empty and absent are not the same to say.
fn some_if_present<T>(object: &Object, key: &str, list: Option<Vec<T>>, what: &str) -> Result<Vec<T>, SelectionError> {
    match list {
        Some(list) if list.is_empty() => {
            Err(object.error(key, format!("the list is empty; give it {what} or leave the key out")))
        }
        list => Ok(list.unwrap_or_default()),
    }
}

fn port_mapping(object: &Object) -> Result<PortMapping, SelectionError> {
    Ok(PortMapping {
        host_port: port(object, "hostPort")?,
        container_port: port(object, "containerPort")?,
        protocol: parsed(object, "protocol", protocol)?.unwrap_or_default(),
        host_ip: parsed(object, "hostIP", host_ip)?,
    })
}

fn port(object: &Object, key: &str) -> Result<u16, SelectionError> {
    let port = object.integer(key, 1..=u64::from(u16::MAX))?;
    port.and_then(|port| u16::try_from(port).ok())
        .ok_or_else(|| object.error(key, "it is missing; both ports are needed, from 1 to 65535"))
}

fn protocol(name: &str) -> Result<Protocol, String> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.as_str().eq_ignore_ascii_case(name))
        .ok_or_else(|| format!("{} is not TCP, UDP or SCTP", quoted(name)))
}

fn host_ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{} is not an IP address (like 192.0.2.1 or fd00::1)", quoted(text)))
}

fn bandwidth(object: &Object) -> Result<Option<Bandwidth>, SelectionError> {
    let Some(limits) = object.object("bandwidth")? else {
        return Ok(None);
    };
    // The clients read these as Go's int, and write a zero for each that they leave out.
    let value = |key| Ok(limits.integer(key, 0..=i64::MAX.unsigned_abs())?.filter(|bits| *bits > 0));
    let bandwidth = Bandwidth {
        ingress_rate: value("ingressRate")?,
        ingress_burst: value("ingressBurst")?,
        egress_rate: value("egressRate")?,
        egress_burst: value("egressBurst")?,
    };
    let without_rate = |burst, rate| limits.error(burst, format!("it needs \"{rate}\" beside it"));
    match bandwidth {
        Bandwidth { ingress_rate: None, ingress_burst: Some(_), .. } => {
            Err(without_rate("ingressBurst", "ingressRate"))
        }
        Bandwidth { egress_rate: None, egress_burst: Some(_), .. } => Err(without_rate("egressBurst", "egressRate")),
        Bandwidth { ingress_rate: None, egress_rate: None, .. } => Err(object.error(
            "bandwidth",
            "it limits nothing; give \"ingressRate\", \"egressRate\" or both, or leave the key out",
        )),
        bandwidth => Ok(Some(bandwidth)),
    }
}

fn default_route(object: &Object) -> Result<Option<Vec<IpAddr>>, SelectionError> {
    const KEY: &str = "default-route";
    let gateways = object.strings(KEY, parse_gateway)?;
    let list = gateways.as_deref().unwrap_or_default();
    for is_family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
        if list.iter().filter(|gateway| is_family(gateway)).count() > 1 {
            return Err(object.error(KEY, "it has two gateways of one family; a pod has one default route a family"));
        }
    }
    Ok(gateways)
}

fn device_id(text: &str) -> Result<String, String> {
    if text.contains(char::is_control) {
        return Err(format!("{} is not the id of a device (like 0000:03:02.1)", quoted(text)));
    }
    Ok(text.to_owned())
}

fn object_name(name: &str) -> Result<String, String> {
    if is_dns_subdomain(name) {
        return Ok(name.to_owned());
    }
    Err(not_a_subdomain(name))
}

fn not_a_subdomain(name: &str) -> String {
    format!(
        "{} is not the name of an object (at most 253 lower-case letters, digits, inner \"-\" and \".\")",
        quoted(name)
    )
}

/// A string that `parse` reads. An empty one is absent, as it is to the clients written in Go.
fn parsed<T, E: std::fmt::Display>(
    object: &Object,
    key: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, SelectionError> {
    let text = object.string(key)?.filter(|text| !text.is_empty());
    text.map(parse).transpose().map_err(|problem| object.error(key, problem))
}

fn unknown_keys(element: &Object) -> Result<Vec<String>, SelectionError> {
    let mut unknown = element.unknown(&ELEMENT_KEYS);
    for mapping in element.objects("portMappings")?.unwrap_or_default() {
        unknown.extend(mapping.unknown(&PORT_MAPPING_KEYS));
    }
    if let Some(bandwidth) = element.object("bandwidth")? {
        unknown.extend(bandwidth.unknown(&BANDWIDTH_KEYS));
    }
    Ok(unknown)
}

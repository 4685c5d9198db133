//! The annotations by which a pod selects networks (multi-net 4.1), in their text and their JSON form. Every value is
//! checked here, and what cannot be read is an error: nothing is ignored, as the standard would allow. Whether the
//! networks exist, and can do what is asked of them, is for the planner to say.

mod json;
mod object;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
mod text;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::address::{InfinibandGuid, MacAddress, RequestedIp};
use crate::excerpt::quoted;
use crate::name::InterfaceName;

/// The longest annotation that is read, in bytes: Kubernetes stores no more for all annotations of an object together
/// (`TotalAnnotationSizeLimitB`).
pub const MAX_ANNOTATION_BYTES: usize = 256 * 1024;

/// One network that a pod asks for, with all it asks of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkSelection {
    /// The namespace of the definition: as written, or the default that the caller gave.
    pub namespace: String,
    /// The name of the definition: a DNS label in the text form, a DNS subdomain in JSON.
    pub name: String,
    /// The name the interface shall have; `None` leaves it to the planner.
    pub interface: Option<InterfaceName>,
    /// Addresses the interface shall have; empty when none were asked for.
    pub ips: Vec<RequestedIp>,
    /// The MAC address the interface shall have.
    pub mac: Option<MacAddress>,
    /// The InfiniBand GUID the interface shall have.
    pub infiniband_guid: Option<InfinibandGuid>,
    /// Ports of the host to be forwarded; empty when none were asked for.
    pub port_mappings: Vec<PortMapping>,
    /// Limits of the traffic.
    pub bandwidth: Option<Bandwidth>,
    /// Gateways of the pod's default routes, at most one of each family. `None`: this network has no say in the default
    /// route. Empty: the gateways that the network's own IPAM returns.
    pub default_route: Option<Vec<IpAddr>>,
    /// To be merged into `args.cni` of each plugin, whole.
    pub cni_args: Option<Map<String, Value>>,
    /// The device to use when no device plugin names one.
    pub device_id: Option<String>,
    /// The name of an IPAMClaim in the pod's namespace (multi-net 8).
    pub ipam_claim_reference: Option<String>,
    /// Keys without a dot that nobody defined: reserved by the standard, ignored here, to be warned about. Given as
    /// paths, such as `bandwidth.ingresRate`; shortened where they are very long.
    pub unknown_keys: Vec<String>,
}

/// One port of the host forwarded to one of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// The port on the host, 1–65535.
    pub host_port: u16,
    /// The port in the pod, 1–65535.
    pub container_port: u16,
    /// The transport protocol; TCP when not given.
    pub protocol: Protocol,
    /// The host's address to listen on; `None` for all.
    pub host_ip: Option<IpAddr>,
}

/// A transport protocol whose ports can be forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// TCP
    #[default]
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// Limits of an interface's traffic. At least one rate is given, and a burst only where its rate is; no value is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Into the pod, in bits a second.
    pub ingress_rate: Option<u64>,
    /// Into the pod, in bits.
    pub ingress_burst: Option<u64>,
    /// Out of the pod, in bits a second.
    pub egress_rate: Option<u64>,
    /// Out of the pod, in bits.
    pub egress_burst: Option<u64>,
}

/// Why an annotation cannot be used. Displayed on one line, with the place and what would be accepted there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", place(*position, key.as_deref()))]
pub struct SelectionError {
    /// The element of the annotation, counted from 1; `None` when it is about the whole.
    pub position: Option<usize>,
    /// The key within the element as a path, such as `portMappings[0].hostPort`.
    pub key: Option<String>,
    /// What is wrong and what would be right, without the place.
    pub problem: String,
}

/// Reads the annotation `k8s.v1.cni.cncf.io/networks`. A selection without a namespace is in `pod_namespace`; an empty
/// text or an empty JSON list selects nothing.
///
/// # Errors
/// Names the element and the key of the first thing that is wrong. Two elements that ask for one interface name are an
/// error, and so are two that set the default route of one family (an empty `default-route` may turn out to be of either
/// family, so it stands alone).
pub fn parse_networks(annotation: &str, pod_namespace: &str) -> Result<Vec<NetworkSelection>, SelectionError> {
    if annotation.len() > MAX_ANNOTATION_BYTES {
        return Err(SelectionError::whole(format!(
            "the annotation is {} bytes long; at most {MAX_ANNOTATION_BYTES} are read",
            annotation.len()
        )));
    }
    let selections = if annotation.contains(['[', '{', '"']) {
        json::parse(annotation, pod_namespace)?
    } else {
        text::parse(annotation, pod_namespace)?
    };
    refuse_shared_interface_names(&selections)?;
    refuse_competing_default_routes(&selections)?;
    Ok(selections)
}

/// Reads the annotation `v1.multus-cni.io/default-network`: the grammar of [`parse_networks`], with exactly one element.
///
/// # Errors
/// As [`parse_networks`], and when there is no element or more than one.
pub fn parse_default_network(annotation: &str, default_namespace: &str) -> Result<NetworkSelection, SelectionError> {
    let mut selections = parse_networks(annotation, default_namespace)?;
    match (selections.len(), selections.pop()) {
        (1, Some(selection)) => Ok(selection),
        (count, _) => {
            Err(SelectionError::whole(format!("it selects {count} networks; exactly one can be the default network")))
        }
    }
}

fn refuse_shared_interface_names(selections: &[NetworkSelection]) -> Result<(), SelectionError> {
    let mut holders = HashMap::new();
    for (position, selection) in (1..).zip(selections) {
        let Some(interface) = &selection.interface else {
            continue;
        };
        if let Some(holder) = holders.insert(interface, position) {
            return Err(SelectionError::whole(format!(
                "the interface name {} is already used by element {holder}; each needs its own",
                quoted(interface.as_str())
            ))
            .at(position));
        }
    }
    Ok(())
}

fn refuse_competing_default_routes(selections: &[NetworkSelection]) -> Result<(), SelectionError> {
    let [mut v4_holder, mut v6_holder] = [None; 2];
    for (position, selection) in (1..).zip(selections) {
        let Some(gateways) = &selection.default_route else {
            continue;
        };
        let unknown = gateways.is_empty();
        let families = [
            ("IPv4", &mut v4_holder, unknown || gateways.iter().any(IpAddr::is_ipv4)),
            ("IPv6", &mut v6_holder, unknown || gateways.iter().any(IpAddr::is_ipv6)),
        ];
        for (family, holder, _) in families.into_iter().filter(|(_, _, wanted)| *wanted) {
            if let Some(holder) = holder.replace(position) {
                return Err(SelectionError::key(
                    "default-route",
                    format!("element {holder} sets the {family} default route already; only one element can"),
                )
                .at(position));
            }
        }
    }
    Ok(())
}

impl NetworkSelection {
    /// A network by name alone, with nothing asked of it.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into(), ..Self::default() }
    }
}

impl PortMapping {
    /// One element of `runtimeConfig.portMappings` (CNI conventions).
    pub fn to_json(&self) -> Value {
        let mut mapping = json!({
            "hostPort": self.host_port,
            "containerPort": self.container_port,
            "protocol": self.protocol.as_str(),
        });
        if let Some(host_ip) = self.host_ip {
            mapping["hostIP"] = json!(host_ip);
        }
        mapping
    }
}

impl Protocol {
    /// The name in lower case, as the CNI conventions write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl Bandwidth {
    /// The object `runtimeConfig.bandwidth` (CNI conventions), with the values that are given.
    pub fn to_json(&self) -> Value {
        let values = [
            ("ingressRate", self.ingress_rate),
            ("ingressBurst", self.ingress_burst),
            ("egressRate", self.egress_rate),
            ("egressBurst", self.egress_burst),
        ];
        let given = values.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.into())));
        Value::Object(given.collect())
    }
}

impl SelectionError {
    fn whole(problem: impl fmt::Display) -> Self {
        Self { position: None, key: None, problem: problem.to_string() }
    }

    fn key(key: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self { key: Some(key.into()), ..Self::whole(problem) }
    }

    fn at(self, position: usize) -> Self {
        Self { position: Some(position), ..self }
    }
}

/// `element 2, key "mac": `, as far as it is known.
fn place(position: Option<usize>, key: Option<&str>) -> String {
    match (position, key) {
        (None, None) => String::new(),
        (None, Some(key)) => format!("key \"{key}\": "),
        (Some(position), None) => format!("element {position}: "),
        (Some(position), Some(key)) => format!("element {position}, key \"{key}\": "),
    }
}

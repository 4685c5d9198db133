//! Checks of what a pod asks of a network: whether it may name it, and by which way the network can honour the request.

use std::collections::BTreeSet;

use musubi_crds::{Bandwidth, NetworkSelection, RESOURCE_NAME_ANNOTATION};
use musubi_delegates::cni::{CniError, ConfList, NetConf, code};
use musubi_delegates::registry;
use serde_json::{Map, Value, json};

use crate::config::Config;

/// Bits a burst may hold where none is asked for: what the kubelet's runtimes send, and the bandwidth plugin accepts.
pub const UNLIMITED_BURST: u64 = u32::MAX as u64;
/// External plugins that take a MAC from `CNI_ARGS`.
const MAC_FROM_ARGS: &[&str] = &["tap", "tuning", "ovs", "cnv-bridge", "cnv-tuning", "sriov", "ib-sriov"];
/// External plugins, of IPAM most of them, that take addresses from `CNI_ARGS`.
const IP_FROM_ARGS: &[&str] = &["whereabouts", "calico", "calico-ipam"];
/// External plugins that take neither from there.
const NOTHING_FROM_ARGS: &[&str] = &[
    "host-device",
    "dummy",
    "vrf",
    "sbr",
    "portmap",
    "bandwidth",
    "firewall",
    "dhcp",
    "bond",
    "rdma",
    "route-override",
    "passthru",
];

/// External plugins that do nothing without a device, with the keys that name one, or what stands in for it.
const NEEDS_DEVICE: &[(&str, &[&str])] = &[
    ("sriov", &["deviceID"]),
    ("ib-sriov", &["deviceID"]),
    ("accelerated-bridge", &["deviceID"]),
    ("host-device", &["device", "hwaddr", "kernelpath", "pciBusID"]),
    // A port of OVN, which is an argument, says which bridge it is.
    ("ovs", &["bridge", "deviceID", "args"]),
];

/// Refuses a definition of another namespace where the configuration isolates namespaces.
///
/// # Errors
/// Code 7.
pub fn isolation(
    config: &Config,
    pod_namespace: &str,
    target: &str,
    also_allowed: Option<&str>,
) -> Result<(), CniError> {
    let allowed = !config.namespace_isolation
        || target == pod_namespace
        || config.global_namespaces.contains(target)
        || also_allowed == Some(target);
    if allowed {
        return Ok(());
    }
    Err(CniError::new(
        code::CONFIG,
        format!("namespace isolation: a pod of namespace {pod_namespace} may not use a network of namespace {target}"),
    )
    .with_details("use a definition of the pod's own namespace, or let \"globalNamespaces\" list the other"))
}

/// How a selection's requests reach the plugins of its chain.
#[derive(Debug, Default, PartialEq)]
pub struct Requests {
    /// `runtimeConfig`, by capability.
    pub runtime_config: Map<String, Value>,
    /// Pairs added to `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// What may not be honoured after all, one line each.
    pub warnings: Vec<String>,
}

/// Finds the way of each request: by capability where a plugin of the chain declares it, else an address or MAC in
/// `CNI_ARGS` where one reads it there.
///
/// # Errors
/// Code 7: nothing in the chain can honour a request.
pub fn requests(config: &Config, selection: &NetworkSelection, list: &ConfList) -> Result<Requests, CniError> {
    let mut requests = Requests::default();
    if !selection.ips.is_empty() {
        let ips: Vec<String> = selection.ips.iter().map(ToString::to_string).collect();
        requests.address(config, list, ("ips", "IP"), Value::from(ips.clone()), ips.join(","))?;
    }
    if let Some(mac) = selection.mac {
        requests.address(config, list, ("mac", "MAC"), json!(mac.to_string()), mac.to_string())?;
    }
    if !selection.port_mappings.is_empty() {
        let mappings = selection.port_mappings.iter().map(musubi_crds::PortMapping::to_json).collect();
        requests.capability(list, "portMappings", "portMappings", Value::Array(mappings))?;
    }
    if let Some(bandwidth) = &selection.bandwidth {
        requests.capability(list, "bandwidth", "bandwidth", with_bursts(bandwidth))?;
    }
    if let Some(guid) = &selection.infiniband_guid {
        requests.capability(list, "infiniband-guid", "infinibandGUID", guid.to_string().into())?;
    }
    if let Some(device) = &selection.device_id {
        requests.device(list, device);
    }
    Ok(requests)
}

impl Requests {
    /// As in Multus, a device that no plugin asks for by capability goes nowhere; here somebody is told.
    fn device(&mut self, list: &ConfList, device: &str) {
        if !declares(list, "deviceID") {
            self.warnings.push(
                "key \"deviceID\" is ignored: no plugin of the network declares the capability \"deviceID\"".to_owned(),
            );
        }
        self.runtime_config.insert("deviceID".to_owned(), device.into());
    }

    fn capability(&mut self, list: &ConfList, key: &str, capability: &str, value: Value) -> Result<(), CniError> {
        if !declares(list, capability) {
            let why = format!("no plugin of the network declares the capability \"{capability}\"");
            return Err(cannot_travel(key, capability, &why));
        }
        self.runtime_config.insert(capability.to_owned(), value);
        Ok(())
    }

    /// Sends a request by capability, or as an argument where the chain knows no such capability.
    fn address(
        &mut self,
        config: &Config,
        list: &ConfList,
        (capability, argument): (&str, &str),
        value: Value,
        text: String,
    ) -> Result<(), CniError> {
        if declares(list, capability) {
            return self.capability(list, capability, capability, value);
        }
        let refusal = |why: &str| Err(cannot_travel(capability, capability, why));
        match Readers::of(list, argument) {
            Readers::None => refusal(&format!(
                "no plugin of the network declares the capability \"{capability}\" or reads {argument} from CNI_ARGS"
            )),
            _ if !config.legacy_cni_args => refusal(&format!(
                "no plugin of the network declares the capability \"{capability}\", and \"legacyCniArgs\" is false"
            )),
            Readers::Known => {
                self.args.push((argument.to_owned(), text));
                Ok(())
            }
            Readers::Unknown(plugin_type) => {
                self.warnings.push(format!(
                    "key \"{capability}\" is passed as {argument} in CNI_ARGS; whether \"{plugin_type}\" reads it there is not known"
                ));
                self.args.push((argument.to_owned(), text));
                Ok(())
            }
        }
    }
}

fn cannot_travel(key: &str, capability: &str, why: &str) -> CniError {
    CniError::new(code::CONFIG, format!("key \"{key}\": {why}")).with_details(format!(
        "add \"capabilities\": {{\"{capability}\": true}} to the plugin that honours it, or remove the request"
    ))
}

/// Whether a plugin of the chain reads an argument from `CNI_ARGS`.
enum Readers {
    /// One that does.
    Known,
    /// One of a type nobody has told us about.
    Unknown(String),
    /// None.
    None,
}

impl Readers {
    fn of(list: &ConfList, argument: &str) -> Self {
        let types: Vec<&str> =
            list.plugins.iter().flat_map(|plugin| [plugin.plugin_type().ok(), ipam_type(plugin)]).flatten().collect();
        if types.iter().any(|plugin_type| reads(plugin_type, argument)) {
            return Self::Known;
        }
        types.iter().find(|plugin_type| !is_known(plugin_type)).map_or(Self::None, |t| Self::Unknown((*t).to_owned()))
    }
}

/// Whether a type is known to read an argument from `CNI_ARGS`: bundled ones by their own word, others by a table.
fn reads(plugin_type: &str, argument: &str) -> bool {
    let table = if argument == "IP" { IP_FROM_ARGS } else { MAC_FROM_ARGS };
    registry::known_args(plugin_type).contains(&argument) || table.contains(&plugin_type)
}

fn is_known(plugin_type: &str) -> bool {
    let tables = [registry::BUNDLED, MAC_FROM_ARGS, IP_FROM_ARGS, NOTHING_FROM_ARGS];
    tables.iter().any(|table| table.contains(&plugin_type))
}

fn ipam_type(plugin: &NetConf) -> Option<&str> {
    let view = plugin.view();
    let ipam = view.object("ipam").ok()??;
    ipam.string("type").ok()?.filter(|t| !t.is_empty())
}

/// Whether a plugin of the chain declares a capability.
#[must_use]
pub fn declares(list: &ConfList, capability: &str) -> bool {
    list.plugins.iter().any(|plugin| plugin.has_capability(capability))
}

/// The type of the chain's plugin that does nothing without a device and has none yet: neither by its own configuration nor
/// by the annotation.
#[must_use]
pub fn needs_device<'a>(list: &'a ConfList, selection: Option<&NetworkSelection>) -> Option<&'a str> {
    let requested = selection.is_some_and(|selection| selection.device_id.is_some());
    let argued = selection.is_some_and(|selection| selection.cni_args.is_some());
    list.plugins.iter().find_map(|plugin| {
        let plugin_type = plugin.plugin_type().ok()?;
        let (_, keys) = NEEDS_DEVICE.iter().find(|(known, _)| *known == plugin_type)?;
        let given = keys.iter().any(|key| plugin.get(key).is_some() || (*key == "args" && argued));
        let comes_by_capability = requested && plugin.has_capability("deviceID");
        (!given && !comes_by_capability).then_some(plugin_type)
    })
}

/// The error for a network whose definition leaves a plugin without a device.
#[must_use]
pub fn no_resource(plugin_type: &str) -> CniError {
    CniError::new(
        code::CONFIG,
        format!("plugin \"{plugin_type}\" needs a device, and neither configuration nor annotation names one"),
    )
    .with_details(format!(
        "give the definition the annotation {RESOURCE_NAME_ANNOTATION} with a device plugin's resource"
    ))
}

/// The error for a device that is wanted and not there. The kubelet allocates before it starts a pod, so trying again does
/// not help.
#[must_use]
pub fn no_device(resource: &str, needed_by: Option<&str>) -> CniError {
    let by = needed_by.map(|plugin_type| format!(", which plugin \"{plugin_type}\" needs")).unwrap_or_default();
    CniError::new(
        code::CONFIG,
        format!("the pod was allocated no device of resource \"{}\" that is left for it{by}", resource.escape_debug()),
    )
    .with_details("have the pod's containers request as many devices of the resource as it has networks that name it")
}

/// The bandwidth plugin wants a burst beside each rate (multi-net 4.1.2.1 lets us choose it).
fn with_bursts(bandwidth: &Bandwidth) -> Value {
    let fill = |rate: Option<u64>, burst: Option<u64>| burst.or(rate.map(|_| UNLIMITED_BURST));
    Bandwidth {
        ingress_burst: fill(bandwidth.ingress_rate, bandwidth.ingress_burst),
        egress_burst: fill(bandwidth.egress_rate, bandwidth.egress_burst),
        ..bandwidth.clone()
    }
    .to_json()
}

/// Refuses more than one default route of a family over the whole pod. A list without gateways takes what its network's
/// IPAM returns, of either family.
///
/// # Errors
/// Code 7.
pub fn one_default_route<'a>(
    requests: impl Iterator<Item = (&'a str, &'a [std::net::IpAddr])>,
) -> Result<(), CniError> {
    let mut taken: BTreeSet<bool> = BTreeSet::new();
    for (network, gateways) in requests {
        let families: BTreeSet<bool> = if gateways.is_empty() {
            BTreeSet::from([true, false])
        } else {
            gateways.iter().map(|g| g.is_ipv4()).collect()
        };
        if !taken.is_disjoint(&families) || families.len() < gateways.len() {
            return Err(CniError::new(
                code::CONFIG,
                format!("network {network}: key \"default-route\": a pod has one default route for each of IPv4 and IPv6, and this would be another"),
            )
            .with_details("leave \"default-route\" on one network of each family, with one gateway"));
        }
        taken.extend(families);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_type_is_said_to_read_and_not_to_read_an_argument() {
        for plugin_type in NOTHING_FROM_ARGS {
            assert!(!reads(plugin_type, "IP") && !reads(plugin_type, "MAC"), "{plugin_type}");
            assert!(!registry::BUNDLED.contains(plugin_type), "{plugin_type} speaks for itself");
        }
        let readers = [("IP", "host-local"), ("IP", "static"), ("IP", "whereabouts")];
        let readers = readers.into_iter().chain(["bridge", "macvlan", "ovs", "cnv-bridge"].map(|t| ("MAC", t)));
        for (argument, plugin_type) in readers {
            assert!(reads(plugin_type, argument) && is_known(plugin_type), "{plugin_type} reads {argument}");
        }
        for (argument, plugin_type) in
            [("IP", "bridge"), ("MAC", "ipvlan"), ("MAC", "ptp"), ("MAC", "vlan"), ("MAC", "host-local")]
        {
            assert!(!reads(plugin_type, argument) && is_known(plugin_type), "{plugin_type} does not read {argument}");
        }
    }

    #[test]
    fn each_family_has_one_default_route() {
        let ip = |text: &str| text.parse().unwrap();
        let [v4, v6, both, own] =
            [vec![ip("10.0.0.1")], vec![ip("fd00::1")], vec![ip("10.0.0.1"), ip("fd00::1")], vec![]];
        let good: [&[&Vec<std::net::IpAddr>]; 5] = [&[], &[&v4], &[&v4, &v6], &[&both], &[&own]];
        for requests in good {
            one_default_route(requests.iter().map(|gateways| ("n", gateways.as_slice()))).unwrap();
        }
        let bad: [&[&Vec<std::net::IpAddr>]; 4] = [&[&v4, &v4], &[&v6, &both], &[&own, &v4], &[&own, &own]];
        for requests in bad {
            let error = one_default_route(requests.iter().map(|gateways| ("ns/n", gateways.as_slice()))).unwrap_err();
            assert!(
                error.code == code::CONFIG && error.msg.contains("ns/n") && error.msg.contains("default-route"),
                "{error}"
            );
        }
    }
}

//! The network-status of an attachment, made from its CNI result in the shape that the Go client writes
//! (`k8s.v1.cni.cncf.io/network-status`, multi-net §5).

use std::net::IpAddr;

use musubi_crds::{NetworkStatus, status::Dns};
use musubi_delegates::cni::{CniResult, Interface};

use crate::record::{Attached, Record};

/// The entries of one network: one for each interface in the pod, in the order of the result; a result that names none
/// there gives one entry, for the interface that was asked for. Of several, the default one is the interface of the first address with a gateway.
#[must_use]
pub fn entries(network: &str, interface: &str, default: bool, result: &CniResult) -> Vec<NetworkStatus> {
    let common = NetworkStatus {
        name: network.to_owned(),
        gateway: gateways(result),
        dns: Dns {
            nameservers: result.dns.nameservers.clone(),
            domain: result.dns.domain.clone(),
            search: result.dns.search.clone(),
            options: result.dns.options.clone(),
        },
        ..NetworkStatus::default()
    };
    let in_pod: Vec<(usize, &Interface)> =
        result.interfaces.iter().enumerate().filter(|(_, i)| !i.sandbox.is_empty()).collect();
    if in_pod.is_empty() {
        let ips = result.ips.iter().map(|ip| ip.address.addr()).collect();
        return vec![NetworkStatus { interface: Some(interface.to_owned()), ips, default, ..common }];
    }
    let first = in_pod.first().map(|(position, _)| *position);
    let with_gateway =
        result.ips.iter().find(|ip| ip.gateway.is_some()).and_then(|ip| usize::try_from(ip.interface?).ok());
    let chosen = with_gateway.filter(|p| in_pod.iter().any(|(position, _)| position == p)).or(first);
    let last = in_pod.last().map(|(position, _)| *position);
    in_pod
        .iter()
        .map(|(position, i)| NetworkStatus {
            interface: Some(i.name.clone()),
            mac: Some(i.mac.clone()).filter(|mac| !mac.is_empty()),
            mtu: i.mtu,
            ips: addresses(result, *position, last == Some(*position)),
            default: default && chosen == Some(*position),
            ..common.clone()
        })
        .collect()
}

/// The addresses of an interface; those that name no interface belong to the last.
fn addresses(result: &CniResult, position: usize, last: bool) -> Vec<IpAddr> {
    let position = i64::try_from(position).ok();
    let own = result.ips.iter().filter(|ip| match ip.interface {
        Some(index) if index >= 0 => Some(index) == position,
        _ => last,
    });
    own.map(|ip| ip.address.addr()).collect()
}

/// The gateways of the result's default routes; one without a gateway of its own uses its family's.
fn gateways(result: &CniResult) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for route in result.routes.iter().filter(|route| route.dst.prefix_len() == 0) {
        let of_family = || {
            let gateways = result.ips.iter().filter_map(|ip| ip.gateway);
            gateways.into_iter().find(|gateway| gateway.is_ipv4() == route.dst.addr().is_ipv4())
        };
        if let Some(gateway) = route.gw.or_else(of_family)
            && !found.contains(&gateway)
        {
            found.push(gateway);
        }
    }
    found
}

/// The network-status of a record: the default network's entries first, then in plan order.
#[must_use]
pub fn of_record(record: &Record) -> Vec<NetworkStatus> {
    let of = |attached: &Attached| {
        let result = attached.result().unwrap_or_default();
        let mut entries = entries(&attached.network, &attached.interface, attached.default, &result);
        entries.iter_mut().for_each(|entry| entry.device_info = attached.device_info.clone());
        entries
    };
    record.attachments.iter().flat_map(of).collect()
}

/// The network-status that an ADD wrote which came to its end.
#[must_use]
pub fn written(record: &Record) -> Option<Vec<NetworkStatus>> {
    record.attachments.iter().all(|attached| attached.result.is_some()).then(|| of_record(record))
}

#[cfg(test)]
mod tests {
    use musubi_delegates::cni::Version;
    use serde_json::{Value, json};

    use super::*;

    fn entries_of(default: bool, result: Value) -> Value {
        let result = CniResult::parse(&result, Version::LATEST).unwrap();
        serde_json::to_value(entries("ns/net", "net1", default, &result)).unwrap()
    }

    /// (case, CNI result, entries): the shape of the Go client, `reference/npwg.md` items 28–35.
    #[test]
    fn a_result_becomes_entries() {
        let pod = |name: &str, mac: &str| json!({"name": name, "mac": mac, "sandbox": "/run/netns/x"});
        let rows = [
            ("nothing in it", json!({}), json!([{"name": "ns/net", "interface": "net1", "default": true, "dns": {}}])),
            (
                "addresses alone, as before 0.3.0",
                json!({"ips": [{"address": "10.1.0.5/24"}]}),
                json!([{"name": "ns/net", "interface": "net1", "ips": ["10.1.0.5"], "default": true, "dns": {}}]),
            ),
            (
                "an interface of the host alone",
                json!({"interfaces": [{"name": "cni0", "mac": "02:00:00:00:00:01"}], "ips": [{"address": "10.1.0.5/24"}]}),
                json!([{"name": "ns/net", "interface": "net1", "ips": ["10.1.0.5"], "default": true, "dns": {}}]),
            ),
            (
                "host and pod",
                json!({
                    "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "net1", "mac": "02:00:00:00:00:01", "mtu": 1400, "sandbox": "/n"}],
                    "ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1", "interface": 2}, {"address": "fd00::5/64", "interface": 2}],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}, {"dst": "10.9.0.0/16", "gw": "10.1.0.9"}],
                    "dns": {"nameservers": ["10.0.0.2"], "domain": "d", "search": ["s"], "options": ["o"]},
                }),
                json!([{
                    "name": "ns/net", "interface": "net1", "ips": ["10.1.0.5", "fd00::5"], "mac": "02:00:00:00:00:01", "mtu": 1400,
                    "default": true, "dns": {"nameservers": ["10.0.0.2"], "domain": "d", "search": ["s"], "options": ["o"]},
                    "gateway": ["10.1.0.1", "fd00::1"],
                }]),
            ),
            (
                "a default route that names no gateway, and no gateway to be had",
                json!({"interfaces": [pod("net1", "")], "ips": [{"address": "10.1.0.5/24", "interface": 0}], "routes": [{"dst": "0.0.0.0/0"}]}),
                json!([{"name": "ns/net", "interface": "net1", "ips": ["10.1.0.5"], "default": true, "dns": {}}]),
            ),
            (
                "several in the pod: the default one holds the first address with a gateway, addresses of nobody are the last's",
                json!({
                    "interfaces": [pod("a0", "02:00:00:00:00:01"), {"name": "host0"}, pod("b0", "02:00:00:00:00:02")],
                    "ips": [
                        {"address": "10.1.0.5/24", "interface": 0},
                        {"address": "10.2.0.5/24", "gateway": "10.2.0.1", "interface": 2},
                        {"address": "10.3.0.5/24"},
                        {"address": "10.4.0.5/24", "interface": 1},
                    ],
                }),
                json!([
                    {"name": "ns/net", "interface": "a0", "ips": ["10.1.0.5"], "mac": "02:00:00:00:00:01", "dns": {}},
                    {"name": "ns/net", "interface": "b0", "ips": ["10.2.0.5", "10.3.0.5"], "mac": "02:00:00:00:00:02", "default": true, "dns": {}},
                ]),
            ),
        ];
        for (case, result, expected) in rows {
            assert_eq!(entries_of(true, result.clone()), expected, "{case}");
            let others = entries_of(false, result);
            assert!(others.as_array().unwrap().iter().all(|entry| entry.get("default").is_none()), "{case}: {others}");
        }
    }
}

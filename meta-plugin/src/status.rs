//! The network-status of an attachment, made from its CNI result in the shape that the Go client writes
//! (`k8s.v1.cni.cncf.io/network-status`, multi-net §5).

use std::net::IpAddr;

use musubi_crds::{NetworkStatus, status::Dns};
use musubi_delegates::cni::{CniResult, Interface};

/// The entries of one network: one for each interface in the pod, in the order of the result; a result with a single
/// interface or none gives one entry. Of several, the default one is the interface of the first address with a gateway.
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
    let in_pod: Vec<(usize, &Interface)> = match result.interfaces.as_slice() {
        [] => {
            let ips = result.ips.iter().map(|ip| ip.address.addr()).collect();
            return vec![NetworkStatus { interface: Some(interface.to_owned()), ips, default, ..common }];
        }
        [only] => vec![(0, only)],
        several => several.iter().enumerate().filter(|(_, i)| !i.sandbox.is_empty()).collect(),
    };
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

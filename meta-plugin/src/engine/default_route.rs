//! Which network has the pod's default route: moved in the kernel, family by family, and in the results, so that the
//! runtime, CHECK and the network-status all tell what is really there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use musubi_delegates::cni::{CniError, CniResult, Route as ResultRoute, code};
use musubi_delegates::netlink::route::{MAIN_TABLE, Route};
use musubi_delegates::netns::Namespace;

use crate::record::Record;

/// Moves the default routes that the plan asks for.
///
/// # Errors
/// A network without the gateway it was asked for; the kernel refuses a route.
pub fn select(pod: &Namespace, record: &mut Record) -> Result<(), CniError> {
    let mut results: Vec<CniResult> = record.attachments.iter().map(|a| a.result().unwrap_or_default()).collect();
    let mut changed = false;
    for chosen in 0..record.attachments.len() {
        let Some(requested) = record.attachments[chosen].default_route.clone() else { continue };
        let attached = &record.attachments[chosen];
        let failed = |e: CniError| {
            e.context(format!("network {}, interface {}: default route", attached.network, attached.interface))
        };
        let gateways = if requested.is_empty() { own_gateways(&results[chosen]) } else { requested };
        if gateways.is_empty() {
            return Err(failed(
                CniError::new(code::DELEGATE, "the network's IPAM returned no gateway")
                    .with_details("name the gateway in \"default-route\", or give the network's IPAM one"),
            ));
        }
        for gateway in gateways {
            move_to(pod, &attached.interface, gateway).map_err(failed)?;
            for (position, result) in results.iter_mut().enumerate() {
                result.routes.retain(|route| !(is_in_main_table(route) && is_default_of(route.dst, gateway)));
                if position == chosen {
                    result.routes.push(ResultRoute { gw: Some(gateway), ..ResultRoute::to(default_of(gateway)) });
                }
            }
            changed = true;
        }
    }
    if changed {
        for (attached, result) in record.attachments.iter_mut().zip(&results) {
            attached.set_result(result)?;
        }
    }
    Ok(())
}

/// The gateways of a result's addresses, the first of each family.
fn own_gateways(result: &CniResult) -> Vec<IpAddr> {
    let mut gateways: Vec<IpAddr> = Vec::new();
    for gateway in result.ips.iter().filter_map(|ip| ip.gateway) {
        if !gateways.iter().any(|g| g.is_ipv4() == gateway.is_ipv4()) {
            gateways.push(gateway);
        }
    }
    gateways
}

/// Removes every default route of the gateway's family from the main table and adds the new one.
fn move_to(pod: &Namespace, interface: &str, gateway: IpAddr) -> Result<(), CniError> {
    let link = pod
        .netlink
        .link_by_name(interface)?
        .ok_or_else(|| CniError::new(code::DELEGATE, format!("interface \"{interface}\" does not exist")))?;
    let present = pod.netlink.routes()?;
    let obsolete =
        present.iter().filter(|r| r.table == MAIN_TABLE && is_default_of(r.destination, gateway) && r.interface != 0);
    let mut requests: Vec<_> = obsolete.map(Route::remove).collect();
    requests.push(Route::new(default_of(gateway), Some(gateway), link.index).add());
    Ok(pod.netlink.request_all(requests)?)
}

/// A route of another table stays in the kernel, so it stays in the result.
fn is_in_main_table(route: &ResultRoute) -> bool {
    route.table.is_none_or(|table| table == i64::from(MAIN_TABLE) || table == 0)
}

fn is_default_of(destination: IpNet, gateway: IpAddr) -> bool {
    destination.prefix_len() == 0 && destination.addr().is_ipv4() == gateway.is_ipv4()
}

fn default_of(gateway: IpAddr) -> IpNet {
    let any: IpAddr = if gateway.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    IpNet::new_assert(any, 0)
}

//! What every kind of interface shares once its link exists in the pod: sysctls, addresses, routes, and the comparison of
//! all that with a result. The link is configured while it is down and brought up in the middle of one batch.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::cni::{CniError, CniResult, Route as ResultRoute, code};
use crate::netlink::address::{self, Address};
use crate::netlink::link::OPERATIONAL;
use crate::netlink::route::{MAIN_TABLE, Route};
use crate::netlink::{Link, LinkChange};
use crate::netns::{Family, Namespace};
use crate::pause::Pauses;

/// How long duplicate address detection may take at most: one second a probe, three probes, and the wait before them
/// (RFC 4862, 5.4).
const DETECTION: Duration = Duration::from_secs(5);
/// How long the kernel may take from a link's carrier to its being operational, which is a matter of a work queue.
const CARRIER: Duration = Duration::from_millis(200);
/// How long pauses between looks at a link or an address become.
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// How an interface is brought up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings {
    /// Wait for IPv6 duplicate address detection, and fail when it finds another owner.
    pub detect_duplicates: bool,
    /// Announce IPv6 addresses that the interface gets later, too (`ndisc_notify`): from routers, or by the pod itself.
    pub announce_v6: bool,
    /// Leave it down.
    pub keep_down: bool,
    /// The way to it opens after it has come up, as a bridge's port does: announced then is what counts.
    pub opens_later: bool,
    /// Reach even the own subnet by its gateway: the link leads to the host alone (ptp).
    pub routed: bool,
}

/// Gives a new link its addresses and routes and brings it up; [`settle`] waits until it can be used. `position` is its
/// place in `result.interfaces`: the addresses that point there are its own.
///
/// # Errors
/// The step that the kernel refused.
pub fn configure(
    pod: &Namespace,
    link: &Link,
    result: &CniResult,
    position: usize,
    settings: Settings,
) -> Result<(), CniError> {
    let addresses = own_addresses(result, position);
    if pod.has_ipv6() {
        set_sysctls(pod, &link.name, addresses.iter().any(|net| net.addr().is_ipv6()), settings)?;
    }
    let change = |what: &str| LinkChange::of(link.index, format!("{what} interface \"{}\"", link.name));
    let arp_notify = change("set arp_notify of").announce_ipv4();
    if settings.keep_down {
        return Ok(pod.netlink.request(arp_notify.request())?);
    }
    // Of one change the kernel brings the link up first, and announces nothing then.
    let (mut batch, up) = match settings.opens_later {
        true => (Vec::new(), change("bring up").up().announce_ipv4()),
        false => (vec![arp_notify.request()], change("bring up").up()),
    };
    let (v4, v6): (Vec<&IpNet>, Vec<&IpNet>) = addresses.iter().partition(|net| net.addr().is_ipv4());
    let add = |net: &IpNet| match settings.routed {
        true => address::add_without_route(link.index, *net, settings.detect_duplicates),
        false => address::add(link.index, *net, settings.detect_duplicates),
    };
    // IPv4 first, so that the kernel announces it as the link comes up (arp_notify); IPv6 after, because a prefix route
    // of a link that is down is not kept.
    batch.extend(v4.into_iter().map(add));
    batch.push(up.request());
    batch.extend(v6.into_iter().map(add));
    let mut routes = routes(result, link.index, position)?;
    if settings.routed {
        let to_gateways = gateway_routes(result, link.index, position);
        batch.extend(to_gateways.iter().map(Route::add));
        routes.iter_mut().for_each(|route| route.onlink = is_past(route, &to_gateways));
    }
    batch.extend(routes.iter().map(Route::add));
    Ok(pod.netlink.request_all(batch)?)
}

/// The kernel routes that a result asks for on an interface. A route without a gateway takes the first of its family that
/// came with an address; one that is listed twice counts once (the reference plugins fail with "file exists").
///
/// # Errors
/// A number that the kernel's field cannot hold.
pub fn routes(result: &CniResult, index: u32, position: usize) -> Result<Vec<Route>, CniError> {
    let mut seen = HashSet::new();
    let mut routes = Vec::new();
    for route in &result.routes {
        let gateway = route.gw.or_else(|| gateway_of(result, position, route.dst.addr()));
        let mut kernel = Route::new(route.dst.trunc(), gateway, index);
        kernel.mtu = route.mtu;
        kernel.advmss = route.advmss;
        if let Some(priority) = number(route, "priority", route.priority)? {
            kernel.priority = Some(priority);
        }
        if let Some(table) = number(route, "table", route.table)? {
            kernel.table = table;
        }
        if let Some(scope) = number(route, "scope", route.scope)? {
            kernel.scope = scope;
        }
        if seen.insert((kernel.destination, kernel.gateway, kernel.table, kernel.priority)) {
            routes.push(kernel);
        }
    }
    Ok(routes)
}

/// What stands in for the kernel's own subnet routes where a link leads to the gateway alone: one to the gateway itself,
/// and one to the subnet by the gateway.
#[must_use]
pub fn gateway_routes(result: &CniResult, index: u32, position: usize) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    for ip in own(result, position) {
        let Some(gateway) = ip.gateway else { continue };
        let source = Some(ip.address.addr());
        let to_gateway = Route { source, scope: libc::RT_SCOPE_LINK, ..Route::new(gateway.into(), None, index) };
        let to_subnet = Route { source, ..Route::new(ip.address.trunc(), Some(gateway), index) };
        for route in [to_gateway, to_subnet] {
            // A subnet of one address needs no route, and two addresses of one subnet need it once.
            let is_own = route.destination == IpNet::from(ip.address.addr());
            if !is_own && !routes.iter().any(|other| other.destination == route.destination) {
                routes.push(route);
            }
        }
    }
    routes
}

/// Whether a route goes by a gateway that there is no route to: on a link that leads to the host alone it is behind that
/// link nevertheless.
fn is_past(route: &Route, to_gateways: &[Route]) -> bool {
    route.gateway.is_some_and(|gateway| !to_gateways.iter().any(|to| to.destination == IpNet::from(gateway)))
}

fn number<T: TryFrom<i64>>(route: &ResultRoute, key: &str, value: Option<i64>) -> Result<Option<T>, CniError> {
    value
        .map(|value| {
            T::try_from(value)
                .map_err(|_| CniError::new(code::CONFIG, format!("route {}: {key} {value} is out of range", route.dst)))
        })
        .transpose()
}

/// The place of a pod's interface in a result.
#[must_use]
pub fn position(result: &CniResult, name: &str) -> Option<usize> {
    result.interfaces.iter().position(|interface| interface.name == name && !interface.sandbox.is_empty())
}

/// The addresses of a result that belong to the interface at `position`.
#[must_use]
pub fn own_addresses(result: &CniResult, position: usize) -> Vec<IpNet> {
    own(result, position).map(|ip| ip.address).collect()
}

fn own(result: &CniResult, position: usize) -> impl Iterator<Item = &crate::cni::IpConfig> {
    result.ips.iter().filter(move |ip| ip.interface == i64::try_from(position).ok())
}

fn gateway_of(result: &CniResult, position: usize, family_of: IpAddr) -> Option<IpAddr> {
    own(result, position).filter_map(|ip| ip.gateway).find(|gateway| gateway.is_ipv4() == family_of.is_ipv4())
}

fn set_sysctls(pod: &Namespace, name: &str, with_v6: bool, settings: Settings) -> Result<(), CniError> {
    if with_v6 {
        for interface in ["lo", name] {
            if pod.sysctl(Family::V6, interface, "disable_ipv6").as_deref() != Some("0") {
                pod.set_sysctl(Family::V6, interface, "disable_ipv6", "0")?;
            }
        }
        pod.set_sysctl(Family::V6, name, "keep_addr_on_down", "1")?;
    }
    if with_v6 || settings.announce_v6 {
        pod.set_sysctl(Family::V6, name, "ndisc_notify", "1")?;
    }
    if settings.detect_duplicates {
        pod.set_sysctl(Family::V6, name, "enhanced_dad", "1")?;
    }
    // Governs the link-local address, which the kernel makes by itself as the link comes up.
    pod.set_sysctl(Family::V6, name, "accept_dad", if settings.detect_duplicates { "1" } else { "0" })
}

/// Waits until the link can be used, and has neighbours told of it where nobody could hear them told before.
///
/// # Errors
/// Another host has one of its addresses, or detection did not end.
pub fn settle(pod: &Namespace, link: &Link, settings: Settings, deadline: Instant) -> Result<(), CniError> {
    if settings.keep_down {
        return Ok(());
    }
    let limit = deadline.min(Instant::now() + DETECTION);
    if pod.has_ipv6() {
        wait_detected(pod, link, settings, limit)?;
    } else if settings.opens_later {
        wait_operational(pod, link, settings, limit)?;
    }
    if settings.opens_later { announce(pod, link) } else { Ok(()) }
}

/// The kernel announces a link's addresses (`arp_notify`, `ndisc_notify`) as it comes up, and when its MAC is set, to the same
/// one as well (`inetdev_event`, `ndisc_netdev_event`). What a link sends before it is operational is dropped.
fn announce(pod: &Namespace, link: &Link) -> Result<(), CniError> {
    let Some(mac) = link.mac else { return Ok(()) };
    let change = LinkChange::of(link.index, format!("announce interface \"{}\"", link.name));
    Ok(pod.netlink.request(change.attr(libc::IFLA_ADDRESS, mac).request())?)
}

/// Waits until no address of the link is tentative. The kernel makes the link-local one as soon as the link is operational:
/// where it is there, so is all that comes before it.
fn wait_detected(pod: &Namespace, link: &Link, settings: Settings, limit: Instant) -> Result<(), CniError> {
    let mut is_operational = false;
    let mut pauses = Pauses::up_to(LONGEST_PAUSE);
    loop {
        let addresses = pod.netlink.addresses(link.index)?;
        if let Some(taken) = addresses.iter().find(|a| a.is_duplicate()) {
            return Err(CniError::new(
                code::DELEGATE,
                format!("address {} of interface \"{}\" is in use by another host", taken.net, link.name),
            )
            .with_details(
                "IPv6 duplicate address detection (RFC 4862) had an answer: free the address or choose another",
            ));
        }
        let Some(tentative) = addresses.iter().find(|a| a.is_tentative()) else {
            if is_operational || addresses.iter().any(Address::is_link_local) {
                return Ok(());
            }
            wait_operational(pod, link, settings, limit)?;
            is_operational = true;
            continue;
        };
        if Instant::now() >= limit {
            return Err(CniError::new(
                code::DELEGATE,
                format!("address {} of interface \"{}\" is still tentative", tentative.net, link.name),
            )
            .with_details("IPv6 duplicate address detection did not finish: is the link below operational?"));
        }
        pauses.sleep();
    }
}

/// Waits until frames can pass (RFC 2863): only then does the kernel make the link-local address, tentative for a moment, and
/// start detection. A link whose carrier nothing promises is not waited for, and one that has it for a short time.
fn wait_operational(pod: &Namespace, link: &Link, settings: Settings, limit: Instant) -> Result<(), CniError> {
    let is_promised = settings.detect_duplicates || settings.opens_later;
    let limit = if is_promised { limit } else { limit.min(Instant::now() + CARRIER) };
    let mut pauses = Pauses::up_to(LONGEST_PAUSE);
    while Instant::now() < limit {
        match pod.netlink.link_by_index(link.index)? {
            Some(now) if now.operational_state == OPERATIONAL => return Ok(()),
            Some(now) if is_promised || now.flags & libc::IFF_LOWER_UP as u32 != 0 => pauses.sleep(),
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// Compares the pod's interface with what ADD said of it: that it is there and up, its MAC, its addresses and routes.
///
/// # Errors
/// The first difference.
pub fn verify(pod: &Namespace, name: &str, kind: &str, result: &CniResult) -> Result<Link, CniError> {
    let differs = |what: String| CniError::new(code::DELEGATE, format!("interface \"{name}\" {what}"));
    let link = pod.netlink.link_by_name(name)?.ok_or_else(|| differs("is gone".to_owned()))?;
    if !link.is_kind(kind) {
        return Err(differs(format!("is a {}, not a {kind}", link.kind.as_deref().unwrap_or("physical interface"))));
    }
    let Some(position) = position(result, name) else {
        return Err(differs("is not in the result of ADD (prevResult)".to_owned()));
    };
    let expected = result.interfaces[position].mac.as_str();
    let actual = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if !expected.is_empty() && !expected.eq_ignore_ascii_case(&actual) {
        return Err(differs(format!("has MAC {actual}, not {expected}")));
    }
    let addresses = pod.netlink.addresses(link.index)?;
    for wanted in own_addresses(result, position) {
        if !addresses.iter().any(|a| a.net == wanted) {
            return Err(differs(format!("has lost address {wanted}")));
        }
    }
    verify_routes(pod, name, result, position, link.index)?;
    Ok(link)
}

fn verify_routes(pod: &Namespace, name: &str, result: &CniResult, position: usize, index: u32) -> Result<(), CniError> {
    if result.routes.is_empty() {
        return Ok(());
    }
    let present = pod.netlink.routes()?;
    for wanted in routes(result, index, position)? {
        let found = present.iter().any(|route| {
            route.destination == wanted.destination
                && route.interface == index
                // Source-based routing (sbr) moves routes to tables of its own.
                && (wanted.table == MAIN_TABLE || route.table == wanted.table)
                // Another plugin of the chain may have moved a default route to another gateway.
                && (wanted.is_default() || wanted.gateway.is_none() || route.gateway == wanted.gateway)
        });
        if !found {
            let table = if wanted.table == MAIN_TABLE { String::new() } else { format!(" in table {}", wanted.table) };
            return Err(CniError::new(
                code::DELEGATE,
                format!("interface \"{name}\" has lost its route to {}{table}", wanted.destination),
            ));
        }
    }
    Ok(())
}

/// Lets the host forward packets of a family between its interfaces.
///
/// # Errors
/// The sysctl cannot be written.
pub fn enable_forwarding(host: &Namespace, address: IpAddr) -> Result<(), CniError> {
    let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
    if host.sysctl(family, "all", "forwarding").as_deref() == Some("1") {
        return Ok(());
    }
    host.set_sysctl(family, "all", "forwarding", "1")
}

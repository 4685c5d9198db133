//! `ptp`: a veth pair between the pod and the host, with no bridge: the host routes to each pod by itself and is the pod's
//! gateway, also towards its own subnet. Takes the keys of the reference plugin.

use ipnet::IpNet;

use crate::cni::{CniError, CniResult, ConfigError, Dns, NetConf, ValidAttachment, code};
use crate::configure::{self, Settings};
use crate::delegate::{Added, Attachment, Context, Delegate, OwnedLink};
use crate::firewall::{self, Owner};
use crate::interface::{self, Fitting};
use crate::ipam::Ipam;
use crate::netlink::route::Route;
use crate::netlink::{Link, Netlink, address};
use crate::uses::Uses;
use crate::veth::{self, Pair, Wanted};

/// The keys of this kind beside the common ones.
pub(crate) const KEYS: &[&str] = &["ipMasq", "ipMasqBackend", "mtu"];
/// Position of the pod's interface in a result: after the host's end.
const POD: usize = 1;

/// A parsed `ptp` configuration.
#[derive(Debug)]
pub struct Ptp {
    ip_masq: bool,
    mtu: Option<u32>,
    dns: Dns,
    ipam: Ipam,
    warnings: Vec<String>,
}

impl Delegate for Ptp {
    fn parse(conf: &NetConf) -> Result<Self, ConfigError> {
        let view = conf.view();
        firewall::parse_backend(&view)?;
        let Some(ipam) = Ipam::parse(conf)? else {
            return Err(view.error("ipam", "is missing; a ptp needs addresses: set \"ipam\" with a \"type\""));
        };
        let mut warnings = interface::unknown_keys(conf, KEYS);
        warnings.extend(ipam.warnings());
        Ok(Self {
            ip_masq: view.bool("ipMasq")?,
            mtu: interface::mtu(&view)?,
            dns: interface::dns(conf)?,
            ipam,
            warnings,
        })
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn uses(&self) -> Uses {
        Uses { node_is_gateway: true, ..Uses::default() }.with_ipam(Some(&self.ipam))
    }

    fn add(&self, at: &Attachment<'_>) -> Result<Added, CniError> {
        let pair = Pair::create(at, Wanted { mtu: self.mtu, ..Wanted::default() })?;
        interface::complete(at, pair.links(), || {
            self.finish(at, &pair).map_err(|error| interface::undone(error, self.forget_rules(at)))
        })
    }

    fn check(&self, at: &Attachment<'_>, result: &CniResult) -> Result<(), CniError> {
        self.ipam.check(at)?;
        let differs = |what: String| Err(CniError::new(code::DELEGATE, what));
        let pod = at.pod()?;
        let inside = configure::verify(pod, at.interface.as_str(), "veth", result)?;
        if !inside.is_up() {
            return differs(format!("interface \"{}\" is down", at.interface));
        }
        let position = configure::position(result, at.interface.as_str()).unwrap_or(POD);
        let inner = configure::gateway_routes(result, inside.index, position);
        if let Some(lost) = first_missing(&pod.netlink, &inner)? {
            return differs(format!("interface \"{}\" has lost its route to {lost}", at.interface));
        }
        let Some(outside) = veth::host_end(at)?.filter(Link::is_up) else {
            return differs(format!("the host's end of interface \"{}\" is gone or down", at.interface));
        };
        if let Some(lost) = first_missing(&at.host.netlink, &host_routes(result, outside.index, position))? {
            return differs(format!("the host has lost its route to {lost} by \"{}\"", outside.name));
        }
        let present = at.host.netlink.addresses(outside.index)?;
        if let Some(lost) = gateways(result, position).into_iter().find(|net| !present.iter().any(|a| a.net == *net)) {
            return differs(format!(
                "the host's end \"{}\" has lost the gateway's address {}",
                outside.name,
                lost.addr()
            ));
        }
        let addresses = configure::own_addresses(result, position);
        if self.ip_masq { firewall::verify_masquerade(at, &addresses) } else { Ok(()) }
    }

    fn detach(&self, at: &Attachment<'_>) -> Result<Vec<OwnedLink>, CniError> {
        let links = interface::pod_link(at, "veth")?;
        self.forget_rules(at)?;
        Ok(links)
    }

    fn release(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        self.ipam.release(at)
    }

    fn status(&self, cx: &Context<'_>) -> Result<(), CniError> {
        self.ipam.status(cx)
    }

    fn gc(&self, cx: &Context<'_>, valid: &[ValidAttachment]) -> Result<(), CniError> {
        let rules = firewall::gc(cx.host, cx.network, cx.mark, valid);
        rules.and(self.ipam.gc(cx, valid))
    }
}

impl Ptp {
    fn finish(&self, at: &Attachment<'_>, pair: &Pair) -> Result<CniResult, CniError> {
        pair.open(at)?;
        let fitting = Fitting {
            ipam: Some(&self.ipam),
            interfaces: pair.interfaces(at).into(),
            position: POD,
            settings: Settings { routed: true, ..Settings::default() },
            open: &|| Ok(()),
        };
        let mut result = fitting.fit(at, &pair.pod, |result| {
            connect_host(at, &pair.host, result)?;
            if self.ip_masq {
                let addresses = configure::own_addresses(result, POD);
                firewall::masquerade(at.host.netfilter()?, &Owner::of(at), &addresses)?;
            }
            Ok(())
        })?;
        if !self.dns.is_empty() {
            result.dns = self.dns.clone();
        }
        Ok(result)
    }

    /// Takes the rules away by their owner, whether or not the pod is still there.
    fn forget_rules(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        if self.ip_masq { firewall::forget(at.host, &Owner::of(at)) } else { Ok(()) }
    }
}

/// Makes the host the pod's gateway: the gateway's address on the host's end, a route to each of the pod's addresses, and
/// forwarding.
fn connect_host(at: &Attachment<'_>, outside: &Link, result: &CniResult) -> Result<(), CniError> {
    if let Some(ip) = result.ips.iter().find(|ip| ip.gateway.is_none()) {
        return Err(CniError::new(
            code::DELEGATE,
            format!("ipam: address {} came without a gateway, which ptp needs", ip.address),
        )
        .with_details("set a \"gateway\" in \"ipam\", beside the address or range"));
    }
    let addresses = gateways(result, POD).into_iter().map(|net| address::add(outside.index, net, false));
    let routes = host_routes(result, outside.index, POD);
    at.host.netlink.request_all(addresses.chain(routes.iter().map(Route::add)).collect())?;
    result.ips.iter().try_for_each(|ip| configure::enable_forwarding(at.host, ip.address.addr()))
}

/// The gateways as addresses of their own, each once.
fn gateways(result: &CniResult, position: usize) -> Vec<IpNet> {
    let mut gateways: Vec<IpNet> = Vec::new();
    for ip in result.ips.iter().filter(|ip| ip.interface == i64::try_from(position).ok()) {
        if let Some(gateway) = ip.gateway.map(IpNet::from)
            && !gateways.contains(&gateway)
        {
            gateways.push(gateway);
        }
    }
    gateways
}

fn host_routes(result: &CniResult, outside: u32, position: usize) -> Vec<Route> {
    let to = |net: IpNet| Route { scope: libc::RT_SCOPE_HOST, ..Route::new(net.addr().into(), None, outside) };
    configure::own_addresses(result, position).into_iter().map(to).collect()
}

/// The first of the routes that the kernel does not have any more, by its destination.
fn first_missing(netlink: &Netlink, wanted: &[Route]) -> Result<Option<IpNet>, CniError> {
    let present = netlink.routes()?;
    let is_there = |route: &&Route| {
        !present
            .iter()
            .any(|p| (p.destination, p.gateway, p.interface) == (route.destination, route.gateway, route.interface))
    };
    Ok(wanted.iter().find(is_there).map(|route| route.destination))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(mut value: Value) -> Result<Ptp, ConfigError> {
        let object = value.as_object_mut().unwrap();
        object.entry("ipam").or_insert(json!({"type": "static", "addresses": [{"address": "10.0.0.2/24"}]}));
        Ptp::parse(&NetConf(object.clone()))
    }

    #[test]
    fn every_key_is_read() {
        let value =
            json!({"ipMasq": true, "ipMasqBackend": "nftables", "mtu": 1450, "dns": {"domain": "a"}, "vlan": 3});
        let ptp = parse(value).unwrap();
        assert_eq!((ptp.ip_masq, ptp.mtu, ptp.dns.domain.as_str()), (true, Some(1450), "a"));
        assert_eq!(ptp.warnings, ["key \"vlan\" is not known and is ignored"]);
        let ptp = parse(json!({})).unwrap();
        assert_eq!((ptp.ip_masq, ptp.mtu, ptp.dns.is_empty()), (false, None, true));
    }

    #[test]
    fn an_error_names_the_key_and_its_code_says_whether_the_reference_would_serve_it() {
        let cases = [
            (json!({"ipMasqBackend": "iptables"}), (code::UNSUPPORTED_FIELD, "ipMasqBackend")),
            (json!({"ipMasqBackend": "pf"}), (code::CONFIG, "ipMasqBackend")),
            (json!({"ipMasq": 1}), (code::CONFIG, "ipMasq")),
            (json!({"mtu": "1450"}), (code::CONFIG, "mtu")),
            (json!({"ipam": {}}), (code::CONFIG, "ipam")),
            (json!({"ipam": 5}), (code::CONFIG, "ipam")),
        ];
        for (value, expected) in cases {
            let error = parse(value.clone()).unwrap_err();
            assert_eq!((error.code, error.key.as_str()), expected, "{value}: {error}");
        }
    }

    fn result(ips: &[(&str, &str)]) -> CniResult {
        let ip = |(address, gateway): &(&str, &str)| crate::cni::IpConfig {
            interface: Some(1),
            address: address.parse().unwrap(),
            gateway: gateway.parse().ok(),
        };
        CniResult { ips: ips.iter().map(ip).collect(), ..CniResult::default() }
    }

    #[test]
    fn the_pod_reaches_even_its_own_subnet_by_the_gateway() {
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        let cases: [(Pairs, &[&str]); 4] = [
            (&[("10.0.0.2/24", "10.0.0.1")], &["10.0.0.1/32 -", "10.0.0.0/24 10.0.0.1"]),
            (&[("10.0.0.2/24", "10.0.0.1"), ("10.0.0.3/24", "10.0.0.1")], &["10.0.0.1/32 -", "10.0.0.0/24 10.0.0.1"]),
            (&[("10.0.0.2/32", "169.254.1.1")], &["169.254.1.1/32 -"]),
            (&[("fd00::2/64", "fd00::1")], &["fd00::1/128 -", "fd00::/64 fd00::1"]),
        ];
        for (ips, expected) in cases {
            let routes = configure::gateway_routes(&result(ips), 7, POD);
            let shown = |route: &Route| {
                format!("{} {}", route.destination, route.gateway.map_or("-".to_owned(), |gateway| gateway.to_string()))
            };
            assert_eq!(routes.iter().map(shown).collect::<Vec<_>>(), expected);
        }
    }
}

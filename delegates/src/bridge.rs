//! `bridge`: a veth pair between the pod and a Linux bridge on the host, which is made when it is missing. Takes the keys
//! of the reference plugin; the bridge itself lives in [`crate::bridge_device`].

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::bridge_device::{self, BridgeDevice};
use crate::cni::{CniError, CniResult, ConfigError, Dns, NetConf, Route, ValidAttachment, View, code};
use crate::configure::{self, Settings};
use crate::delegate::{Added, Attachment, Context, Delegate, OwnedLink};
use crate::firewall::{self, Owner};
use crate::interface::{self, Fitting};
use crate::ipam::Ipam;
use crate::netlink::link::data_u8;
use crate::netlink::vlan::VlanMembership;
use crate::netlink::{Link, LinkChange, MacAddress};
use crate::uses::Uses;
use crate::veth::{self, Pair, Wanted};

/// `IFLA_BRPORT_MODE`: hairpin.
const PORT_HAIRPIN: u16 = 4;
/// `IFLA_BRPORT_ISOLATED`.
const PORT_ISOLATED: u16 = 33;
/// The VLAN every port starts in.
const DEFAULT_VLAN: u16 = 1;
/// Position of the pod's interface in a result: after the bridge and the host's end.
const POD: usize = 2;

/// The keys of this kind beside the common ones.
pub(crate) const KEYS: &[&str] = &[
    "bridge",
    "isGateway",
    "isDefaultGateway",
    "forceAddress",
    "ipMasq",
    "ipMasqBackend",
    "mtu",
    "hairpinMode",
    "promiscMode",
    "vlan",
    "vlanTrunk",
    "preserveDefaultVlan",
    "macspoofchk",
    "enabledad",
    "disableContainerInterface",
    "portIsolation",
];

/// A parsed `bridge` configuration.
#[derive(Debug)]
pub struct Bridge {
    device: BridgeDevice,
    is_gateway: bool,
    is_default_gateway: bool,
    ip_masq: bool,
    hairpin: bool,
    isolated: bool,
    vlan: Option<u16>,
    trunk: Vec<VlanMembership>,
    preserve_default_vlan: bool,
    spoof_check: bool,
    settings: Settings,
    mac: Option<MacAddress>,
    dns: Dns,
    ipam: Option<Ipam>,
    warnings: Vec<String>,
}

impl Delegate for Bridge {
    fn parse(conf: &NetConf) -> Result<Self, ConfigError> {
        let view = conf.view();
        let is_default_gateway = view.bool("isDefaultGateway")?;
        let is_gateway = is_default_gateway || view.bool("isGateway")?;
        let hairpin = view.bool("hairpinMode")?;
        let promiscuous = view.bool("promiscMode")?;
        if hairpin && promiscuous {
            return Err(view.error("hairpinMode", "cannot be set together with promiscMode; choose one"));
        }
        let vlan = view.uint("vlan", 0..=4094)?.and_then(|id| u16::try_from(id).ok()).filter(|id| *id > 0);
        let trunk = trunk(&view)?;
        let ipam = Ipam::parse(conf)?;
        let keep_down = view.bool("disableContainerInterface")?;
        if keep_down && ipam.is_some() {
            return Err(view.error(
                "disableContainerInterface",
                "cannot be true with \"ipam\": an interface that stays down carries no address",
            ));
        }
        let device = BridgeDevice {
            name: interface::interface_name(&view, "bridge")?.unwrap_or_else(|| "cni0".to_owned()),
            mtu: interface::mtu(&view)?,
            promiscuous,
            vlan_filtering: vlan.is_some() || !trunk.is_empty(),
            group: None,
            force_address: view.bool("forceAddress")?,
        };
        if let Some(vlan) = vlan.filter(|_| is_gateway)
            && crate::cni::InterfaceName::parse(&device.vlan_interface(vlan)).is_err()
        {
            return Err(view.error("bridge", format!("\"{}\" is longer than 15 bytes, the name of the VLAN's gateway interface; choose a shorter bridge name", device.vlan_interface(vlan))));
        }
        firewall::parse_backend(&view)?;
        let mut warnings = interface::unknown_keys(conf, KEYS);
        warnings.extend(ipam.iter().flat_map(Ipam::warnings));
        Ok(Self {
            device,
            is_gateway,
            is_default_gateway,
            ip_masq: view.bool("ipMasq")?,
            hairpin,
            isolated: view.bool("portIsolation")?,
            vlan,
            trunk,
            preserve_default_vlan: view.bool("preserveDefaultVlan")?,
            spoof_check: view.bool("macspoofchk")?,
            settings: Settings {
                detect_duplicates: view.bool("enabledad")?,
                keep_down,
                opens_later: true,
                ..Settings::default()
            },
            mac: interface::requested_mac(conf, true)?,
            dns: interface::dns(conf)?,
            ipam,
            warnings,
        })
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn uses(&self) -> Uses {
        let untagged = |key: &'static str| (key, 0..=0);
        let access = self.vlan.map(|id| ("vlan", id..=id));
        let mut vlans: Vec<_> =
            access.into_iter().chain(self.trunk.iter().map(|range| ("vlanTrunk", range.first..=range.last))).collect();
        if vlans.is_empty() {
            vlans.push(untagged("vlan"));
        } else if self.preserve_default_vlan {
            vlans.push(untagged("preserveDefaultVlan"));
        }
        Uses {
            bridge: Some(self.device.name.clone()),
            vlans,
            node_is_gateway: self.is_gateway,
            node_has_subnets: self.is_gateway,
            ..Uses::default()
        }
        .with_ipam(self.ipam.as_ref())
    }

    fn add(&self, at: &Attachment<'_>) -> Result<Added, CniError> {
        let mac = self.mac.or(interface::mac_argument(at)?);
        let bridge = self.device.ensure(at)?;
        let pair = Pair::create(at, Wanted { mac, mtu: self.device.mtu, master: Some(bridge.index) })?;
        interface::complete(at, pair.links(), || {
            self.set_port(at, &pair.host)?;
            // A bridge whose MAC nobody has set takes that of a port. Nothing else is at work on either yet: the port is down.
            let bridge = at.host.netlink.link_by_index(bridge.index)?.unwrap_or(bridge);
            let owner = Owner::of(at);
            self.finish(at, &bridge, &pair, &owner)
                .map_err(|error| interface::undone(error, self.forget_rules(at, &owner)))
        })
    }

    fn check(&self, at: &Attachment<'_>, result: &CniResult) -> Result<(), CniError> {
        let differs = |what: String| Err(CniError::new(code::DELEGATE, what));
        if let Some(ipam) = &self.ipam {
            ipam.check(at)?;
        }
        let bridge = self.device.check(at)?;
        let inside = configure::verify(at.pod()?, at.interface.as_str(), "veth", result)?;
        if inside.is_up() == self.settings.keep_down {
            return differs(format!(
                "interface \"{}\" is {}",
                at.interface,
                if inside.is_up() { "up" } else { "down" }
            ));
        }
        let Some(port) = veth::host_end(at)? else {
            return differs(format!("the host's end of interface \"{}\" is gone", at.interface));
        };
        if port.master != Some(bridge.index) {
            return differs(format!("interface \"{}\" is no port of bridge \"{}\" any more", port.name, bridge.name));
        }
        for (on, attribute, what) in
            [(self.hairpin, PORT_HAIRPIN, "hairpin mode"), (self.isolated, PORT_ISOLATED, "isolation")]
        {
            if (data_u8(port.port(), attribute).unwrap_or(0) != 0) != on {
                return differs(format!(
                    "{what} of bridge port \"{}\" is {}",
                    port.name,
                    if on { "off" } else { "on" }
                ));
            }
        }
        self.check_vlans(at, &port)?;
        if self.is_gateway {
            self.device.check_gateways(at, &bridge, self.vlan, result)?;
        }
        self.check_rules(at, &port, &inside, result)
    }

    fn detach(&self, at: &Attachment<'_>) -> Result<Vec<OwnedLink>, CniError> {
        let links = interface::pod_link(at, "veth")?;
        self.forget_rules(at, &Owner::of(at))?;
        Ok(links)
    }

    fn release(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        interface::ipam_release(self.ipam.as_ref(), at)
    }

    fn status(&self, cx: &Context<'_>) -> Result<(), CniError> {
        self.device.status(cx)?;
        interface::ipam_status(self.ipam.as_ref(), cx)
    }

    fn gc(&self, cx: &Context<'_>, valid: &[ValidAttachment]) -> Result<(), CniError> {
        let rules = firewall::gc(cx.host, cx.network, cx.mark, valid);
        rules.and(interface::ipam_gc(self.ipam.as_ref(), cx, valid))
    }
}

impl Bridge {
    fn set_port(&self, at: &Attachment<'_>, port: &Link) -> Result<(), CniError> {
        let mut requests = Vec::new();
        if self.hairpin || self.isolated {
            let change = LinkChange::of(port.index, format!("set bridge port \"{}\"", port.name));
            let flags = |data: crate::netlink::message::Message| {
                let data = if self.hairpin { data.u8(PORT_HAIRPIN, 1) } else { data };
                if self.isolated { data.u8(PORT_ISOLATED, 1) } else { data }
            };
            requests.push(change.bridge_port(flags).request());
        }
        if self.device.vlan_filtering {
            if !self.preserve_default_vlan && (self.vlan.is_some_and(|id| id != DEFAULT_VLAN)) {
                requests.push(VlanMembership::access(DEFAULT_VLAN).remove(port.index, false));
            }
            requests.extend(self.trunk.iter().map(|range| range.add(port.index, false)));
            requests.extend(self.vlan.map(|id| VlanMembership::access(id).add(port.index, false)));
        }
        Ok(at.host.netlink.request_all(requests)?)
    }

    fn finish(&self, at: &Attachment<'_>, bridge: &Link, pair: &Pair, owner: &Owner) -> Result<CniResult, CniError> {
        if self.spoof_check
            && let Some(mac) = pair.pod.mac
        {
            firewall::check_spoofing(at.host.netfilter()?, owner, &pair.host.name, mac)?;
        }
        let [outside, inside] = pair.interfaces(at);
        let fitting = Fitting {
            ipam: self.ipam.as_ref(),
            interfaces: vec![interface::described(bridge, String::new()), outside, inside],
            position: POD,
            settings: self.settings,
            open: &|| pair.open_port(at, !self.settings.keep_down),
        };
        let mut result = fitting.fit(at, &pair.pod, |result| {
            if self.is_gateway {
                self.be_gateway(at, bridge, result)?;
            }
            Ok(())
        })?;
        if self.ip_masq {
            let addresses = configure::own_addresses(&result, POD);
            let masqueraded =
                at.host.netfilter().and_then(|netfilter| firewall::masquerade(netfilter, owner, &addresses));
            if let Err(error) = masqueraded {
                return Err(interface::undone(error.into(), interface::ipam_release(self.ipam.as_ref(), at)));
            }
        }
        if !self.dns.is_empty() {
            result.dns = self.dns.clone();
        }
        Ok(result)
    }

    /// Puts the gateways on the bridge, or on its interface in the VLAN, and completes the result.
    fn be_gateway(&self, at: &Attachment<'_>, bridge: &Link, result: &mut CniResult) -> Result<(), CniError> {
        let gateways = bridge_device::complete_gateways(result);
        if self.is_default_gateway {
            for gateway in result.ips.iter().filter_map(|ip| ip.gateway) {
                add_default_route(&mut result.routes, gateway);
            }
        }
        let gateway_interface = match self.vlan {
            Some(vlan) => {
                let link = self.device.ensure_vlan_interface(at, bridge, vlan)?;
                result.interfaces.push(interface::described(&link, String::new()));
                link
            }
            None => bridge.clone(),
        };
        self.device.be_gateway(at, &gateway_interface, &gateways)
    }

    fn check_vlans(&self, at: &Attachment<'_>, port: &Link) -> Result<(), CniError> {
        if !self.device.vlan_filtering {
            return Ok(());
        }
        let present = at.host.netlink.vlans(port.index)?;
        let access = self.vlan.map(VlanMembership::access);
        for wanted in self.trunk.iter().copied().chain(access) {
            for id in wanted.first..=wanted.last {
                if !present.iter().any(|v| v.first == id && v.pvid == wanted.pvid && v.untagged == wanted.untagged) {
                    return Err(CniError::new(
                        code::DELEGATE,
                        format!("bridge port \"{}\" is no member of VLAN {id} any more", port.name),
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_rules(&self, at: &Attachment<'_>, port: &Link, inside: &Link, result: &CniResult) -> Result<(), CniError> {
        if self.spoof_check
            && let Some(mac) = inside.mac
        {
            firewall::verify_spoof_check(at, &port.name, mac)?;
        }
        if self.ip_masq {
            let position = configure::position(result, at.interface.as_str()).unwrap_or(POD);
            firewall::verify_masquerade(at, &configure::own_addresses(result, position))?;
        }
        Ok(())
    }

    /// Takes the rules away by their owner, whether or not the pod is still there.
    fn forget_rules(&self, at: &Attachment<'_>, owner: &Owner) -> Result<(), CniError> {
        if self.spoof_check || self.ip_masq { firewall::forget(at.host, owner) } else { Ok(()) }
    }
}

/// `vlanTrunk`: single ids and ranges, sorted and each id once.
fn trunk(view: &View<'_>) -> Result<Vec<VlanMembership>, ConfigError> {
    let mut ids = BTreeSet::new();
    for element in view.objects("vlanTrunk")? {
        let read = |key| Ok::<_, ConfigError>(element.uint(key, 1..=4094)?.and_then(|id| u16::try_from(id).ok()));
        match (read("id")?, read("minID")?, read("maxID")?) {
            (None, Some(first), Some(last)) if first <= last => ids.extend(first..=last),
            (None, Some(first), Some(last)) => {
                return Err(element.error("maxID", format!("{last} is less than minID {first}")));
            }
            (Some(id), None, None) => {
                ids.insert(id);
            }
            _ => {
                return Err(
                    element.error("id", "an element is either {\"id\": 1..4094} or {\"minID\": …, \"maxID\": …}")
                );
            }
        }
    }
    Ok(merge(ids))
}

/// Neighbouring ids become ranges, which the kernel takes in one piece.
fn merge(ids: BTreeSet<u16>) -> Vec<VlanMembership> {
    let mut ranges: Vec<VlanMembership> = Vec::new();
    for id in ids {
        match ranges.last_mut() {
            Some(range) if range.last + 1 == id => range.last = id,
            _ => ranges.push(VlanMembership::tagged(id, id)),
        }
    }
    ranges
}

/// Adds a default route by a gateway unless the family has one. One without a gateway would take this one anyway.
fn add_default_route(routes: &mut Vec<Route>, gateway: std::net::IpAddr) {
    let any = if gateway.is_ipv4() { IpNet::V4(Default::default()) } else { IpNet::V6(Default::default()) };
    match routes.iter_mut().find(|route| route.dst == any) {
        Some(route) => {
            route.gw.get_or_insert(gateway);
        }
        None => routes.push(Route { gw: Some(gateway), ..Route::to(any) }),
    }
}

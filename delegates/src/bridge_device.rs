//! A Linux bridge on the host, shared by the pods of its networks: made when missing, never removed, and changed only in
//! what the configuration asks for. VXLAN networks make theirs here too.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;

use ipnet::IpNet;
use nix::errno::Errno;

use crate::cni::{CniError, CniResult, code};
use crate::configure;
use crate::delegate::{Attachment, Context};
use crate::netlink::link::data_u8;
use crate::netlink::vlan::VlanMembership;
use crate::netlink::{Link, LinkChange, MacAddress, NewLink, address};
use crate::netns::Family;
use crate::random;
use crate::shared;

/// `IFLA_BR_VLAN_FILTERING`.
const VLAN_FILTERING: u16 = 7;

/// What the configuration asks of the bridge.
#[derive(Debug, Clone)]
pub struct BridgeDevice {
    /// Its name.
    pub name: String,
    /// MTU in bytes when it is made here; an existing one keeps its own.
    pub mtu: Option<u32>,
    /// Receive frames for every address (`IFF_PROMISC`).
    pub promiscuous: bool,
    /// Tell VLANs apart.
    pub vlan_filtering: bool,
    /// `IFLA_GROUP` when it is made here: marks one that is removed with others of its group.
    pub group: Option<NonZeroU32>,
    /// Replace an address in the way of a gateway instead of failing.
    pub force_address: bool,
}

impl BridgeDevice {
    /// Finds the bridge or makes it, and brings it into the state asked for.
    ///
    /// # Errors
    /// The name belongs to another kind of interface; VLANs are asked of a bridge that does not filter them.
    pub fn ensure(&self, cx: &Context<'_>) -> Result<Link, CniError> {
        if let Some(link) = self.find(cx)?
            && self.is_ready(&link)
        {
            return self.accept(link);
        }
        let _lock = shared::lock(cx.state_dir, "bridge", &self.name)?;
        let link = match self.find(cx)? {
            Some(link) => link,
            None => self.create(cx)?,
        };
        if !self.is_ready(&link) {
            let change = LinkChange::of(link.index, format!("bring up bridge \"{}\"", self.name)).up();
            let change = if self.promiscuous { change.flag(libc::IFF_PROMISC, true) } else { change };
            cx.host.netlink.request(change.request())?;
        }
        self.accept(link)
    }

    fn find(&self, cx: &Context<'_>) -> Result<Option<Link>, CniError> {
        let link = cx.host.netlink.link_by_name(&self.name)?;
        match link {
            Some(link) if !link.is_kind("bridge") => Err(CniError::new(
                code::DELEGATE,
                format!(
                    "bridge: interface \"{}\" exists and is a {}",
                    self.name,
                    link.kind.as_deref().unwrap_or("physical interface")
                ),
            )
            .with_details("set \"bridge\" to the name of a bridge, or to one that is free")),
            other => Ok(other),
        }
    }

    fn is_ready(&self, link: &Link) -> bool {
        link.is_up() && (!self.promiscuous || link.flags & libc::IFF_PROMISC as u32 != 0)
    }

    fn accept(&self, link: Link) -> Result<Link, CniError> {
        if self.vlan_filtering && data_u8(link.data(), VLAN_FILTERING) == Some(0) {
            return Err(CniError::new(code::DELEGATE, format!("vlan: bridge \"{}\" exists and does not filter VLANs", self.name))
                .with_details("its ports would not be kept apart: turn vlan_filtering on for this bridge, or name another in \"bridge\""));
        }
        Ok(link)
    }

    /// Makes the bridge with a MAC of its own: one that follows its ports changes when a pod goes, and stalls the others.
    fn create(&self, cx: &Context<'_>) -> Result<Link, CniError> {
        let netlink = &cx.host.netlink;
        let link = NewLink::named(&self.name).mac(Some(MacAddress::random())).mtu(self.mtu);
        let link = match self.group {
            Some(group) => link.group(group.get()),
            None => link,
        };
        let request =
            link.of_kind("bridge", |data| if self.vlan_filtering { data.u8(VLAN_FILTERING, 1) } else { data });
        match netlink.request(request) {
            Ok(()) => {}
            Err(e) if e.errno == Errno::EEXIST => {}
            Err(e) if e.errno == Errno::EOPNOTSUPP && self.vlan_filtering => {
                return Err(CniError::new(code::DELEGATE, format!("vlan: {e}"))
                    .with_details("this kernel's bridge cannot filter VLANs (CONFIG_BRIDGE_VLAN_FILTERING)"));
            }
            Err(e) => return Err(e.into()),
        }
        cx.host.set_sysctl(Family::V6, &self.name, "accept_ra", "0")?;
        self.find(cx)?.ok_or_else(|| {
            CniError::new(code::DELEGATE, format!("bridge \"{}\" vanished as soon as it was made", self.name))
        })
    }

    /// Puts the gateways on the bridge or on its interface in a VLAN. Addresses of other subnets stay; one that differs in
    /// the same family (IPv4) or overlaps (IPv6) is replaced when `forceAddress` says so.
    ///
    /// # Errors
    /// Such an address is in the way.
    pub fn ensure_addresses(&self, cx: &Context<'_>, link: &Link, gateways: &BTreeSet<IpNet>) -> Result<(), CniError> {
        let netlink = &cx.host.netlink;
        let present: Vec<IpNet> = netlink.addresses(link.index)?.into_iter().map(|a| a.net).collect();
        if gateways.iter().all(|net| present.contains(net)) {
            return Ok(());
        }
        let _lock = shared::lock(cx.state_dir, "bridge", &self.name)?;
        pin_mac(cx, link)?;
        for gateway in gateways {
            let present = netlink.addresses(link.index)?;
            if present.iter().any(|a| a.net == *gateway) {
                continue;
            }
            for other in present.iter().map(|a| a.net).filter(|other| in_the_way(*other, *gateway, gateways)) {
                if !self.force_address {
                    return Err(CniError::new(
                        code::DELEGATE,
                        format!("bridge \"{}\" has address {other}, not the gateway {gateway} of this network", link.name),
                    )
                    .with_details("name another bridge in \"bridge\", correct the gateway, or set \"forceAddress\": true to replace it"));
                }
                netlink.request(address::remove(link.index, other))?;
            }
            match netlink.request(address::add(link.index, *gateway, false)) {
                Err(e) if e.errno != Errno::EEXIST => return Err(e.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the host the gateway: the addresses are on the bridge (or its interface in a VLAN) and packets are forwarded.
    ///
    /// # Errors
    /// As [`Self::ensure_addresses`]; the sysctl cannot be written.
    pub fn be_gateway(&self, cx: &Context<'_>, link: &Link, gateways: &BTreeSet<IpNet>) -> Result<(), CniError> {
        self.ensure_addresses(cx, link, gateways)?;
        gateways.iter().try_for_each(|net| configure::enable_forwarding(cx.host, net.addr()))
    }

    /// The name of the bridge's interface in a VLAN.
    #[must_use]
    pub fn vlan_interface(&self, vlan: u16) -> String {
        format!("{}.{vlan}", self.name)
    }

    /// Finds or makes the bridge's interface in a VLAN: a veth pair on the host, one end an access port of the bridge.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn ensure_vlan_interface(&self, cx: &Context<'_>, bridge: &Link, vlan: u16) -> Result<Link, CniError> {
        let name = self.vlan_interface(vlan);
        let netlink = &cx.host.netlink;
        let find = || netlink.link_by_name(&name);
        if let Some(link) = find()?.filter(Link::is_up) {
            return Ok(link);
        }
        let _lock = shared::lock(cx.state_dir, "bridge", &self.name)?;
        let vanished =
            || CniError::new(code::DELEGATE, format!("interface \"{name}\" vanished as soon as it was made"));
        let link = match find()? {
            Some(link) => link,
            None => {
                let port_name = random::interface_name("veth");
                let port = NewLink::named(&port_name).mtu(Some(bridge.mtu)).master(Some(bridge.index)).up();
                // A veth's peer cannot be born up: it is opened before it has its other end (ENOTCONN).
                let inside = NewLink::named(&name).mac(Some(MacAddress::random())).mtu(Some(bridge.mtu));
                netlink.request(port.veth(inside))?;
                find()?.ok_or_else(vanished)?
            }
        };
        if link.is_up() {
            return Ok(link);
        }
        // It comes up last: one that is up is complete, whoever made it.
        let mut requests = Vec::new();
        if let Some(port) = link.parent.filter(|_| link.is_kind("veth") && link.parent_netns.is_none()) {
            requests.push(VlanMembership::access(vlan).add(port, false));
            if vlan != 1 {
                requests.push(VlanMembership::access(1).remove(port, false));
            }
        }
        requests.push(LinkChange::of(link.index, format!("bring up interface \"{name}\"")).up().request());
        netlink.request_all(requests)?;
        Ok(link)
    }

    /// CHECK of the bridge itself.
    ///
    /// # Errors
    /// It is gone, down, or not as promiscuous as asked.
    pub fn check(&self, cx: &Context<'_>) -> Result<Link, CniError> {
        let gone = || CniError::new(code::DELEGATE, format!("bridge \"{}\" is gone", self.name));
        let link = self.find(cx)?.ok_or_else(gone)?;
        if !self.is_ready(&link) {
            let what = if link.is_up() { "not promiscuous" } else { "down" };
            return Err(CniError::new(code::DELEGATE, format!("bridge \"{}\" is {what}", self.name)));
        }
        self.accept(link)
    }

    /// CHECK of the gateways that a result names: their addresses are on the bridge, or on its interface in a VLAN.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_gateways(
        &self,
        at: &Attachment<'_>,
        bridge: &Link,
        vlan: Option<u16>,
        result: &CniResult,
    ) -> Result<(), CniError> {
        let netlink = &at.host.netlink;
        let lost = |what: String| CniError::new(code::DELEGATE, what);
        let name = vlan.map(|vlan| self.vlan_interface(vlan));
        let index = match &name {
            Some(name) => {
                let link = netlink.link_by_name(name)?.filter(Link::is_up);
                link.ok_or_else(|| lost(format!("interface \"{name}\" is gone or down")))?.index
            }
            None => bridge.index,
        };
        let present = netlink.addresses(index)?;
        let own = configure::position(result, at.interface.as_str()).and_then(|position| i64::try_from(position).ok());
        let mut gateways = result.ips.iter().filter(|ip| ip.interface == own).filter_map(|ip| ip.gateway);
        match gateways.find(|gateway| !present.iter().any(|address| address.net.addr() == *gateway)) {
            Some(gateway) => {
                let holder = name.map_or(format!("bridge \"{}\"", bridge.name), |name| format!("interface \"{name}\""));
                Err(lost(format!("{holder} has lost the gateway address {gateway}")))
            }
            None => Ok(()),
        }
    }

    /// STATUS of the bridge: a missing one would be made, one of another kind is in the way.
    ///
    /// # Errors
    /// Code 50.
    pub fn status(&self, cx: &Context<'_>) -> Result<(), CniError> {
        let usable = self.find(cx).and_then(|link| link.map_or(Ok(()), |link| self.accept(link).map(drop)));
        usable.map_err(|e| CniError { code: code::NOT_AVAILABLE, ..e })
    }
}

/// Gives a bridge that somebody else made the MAC it has now for good: one that was never set follows its ports, and pods
/// that know the gateway by it lose their way when it changes.
fn pin_mac(cx: &Context<'_>, link: &Link) -> Result<(), CniError> {
    if !link.is_kind("bridge") {
        return Ok(());
    }
    // A bridge whose last port has gone is left with a MAC of zeros, which it cannot keep.
    let mac = link.mac.filter(|mac| mac.0 != [0; 6]).unwrap_or_else(MacAddress::random);
    let change = LinkChange::of(link.index, format!("set the MAC of bridge \"{}\"", link.name));
    Ok(cx.host.netlink.request(change.attr(libc::IFLA_ADDRESS, mac).request())?)
}

/// The gateways of a result with their subnets; an address that IPAM gave none for gets the subnet's first one.
pub fn complete_gateways(result: &mut CniResult) -> BTreeSet<IpNet> {
    let mut gateways = BTreeSet::new();
    for ip in &mut result.ips {
        ip.gateway = ip.gateway.or_else(|| first_address(ip.address));
        gateways.extend(ip.gateway.and_then(|gateway| IpNet::new(gateway, ip.address.prefix_len()).ok()));
    }
    gateways
}

/// The gateway that a network has when IPAM names none: its first address.
fn first_address(net: IpNet) -> Option<IpAddr> {
    match net.trunc().addr() {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|n| Ipv6Addr::from(n).into()),
    }
}

/// Whether an address on the bridge contradicts a gateway: any other of IPv4, an overlapping one of IPv6 (a link may have
/// many), but never one that the same result asks for.
fn in_the_way(other: IpNet, gateway: IpNet, wanted: &BTreeSet<IpNet>) -> bool {
    if wanted.contains(&other) || other.addr().is_ipv4() != gateway.addr().is_ipv4() {
        return false;
    }
    other.addr().is_ipv4() || other.contains(&gateway.network()) || gateway.contains(&other.network())
}

//! Interfaces by rtnetlink (`linux/if_link.h`): look up, create in place, change, delete one or a whole group.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::mac::MacAddress;
use super::message::{Attributes, Message, text, u16_at, u32_at};
use super::socket::{Netlink, Request, Result};

const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
/// Of `IFLA_AF_SPEC`: `IFLA_INET_CONF`.
const INET_CONF: u16 = 1;
/// Of `IFLA_INET_CONF` (`linux/ip.h`): announce IPv4 addresses as the link comes up.
const IPV4_DEVCONF_ARP_NOTIFY: u16 = 22;
/// Of `IFLA_AF_SPEC`: `IFLA_INET6_ADDR_GEN_MODE`.
const INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
pub(super) const EXT_MASK: u16 = 29;

/// `IF_OPER_UP` of RFC 2863: frames can pass.
pub const OPERATIONAL: u8 = 6;

/// What the kernel says of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// `ifindex`, unique in its namespace.
    pub index: u32,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its Ethernet address, where it has one of six bytes.
    pub mac: Option<MacAddress>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// `IFF_…` flags.
    pub flags: u32,
    /// `bridge`, `veth`, `macvlan` …; absent for hardware and `lo`.
    pub kind: Option<String>,
    /// Index of the bridge (or bond, VRF) it is a port of.
    pub master: Option<u32>,
    /// Index of the link below it or, for a veth, of its peer; in the namespace of `parent_netns` when that is set.
    pub parent: Option<u32>,
    /// `IFLA_LINK_NETNSID`: the parent lives in another namespace.
    pub parent_netns: Option<i32>,
    /// RFC 2863 operational state; see [`OPERATIONAL`].
    pub operational_state: u8,
    /// `IFLA_GROUP`.
    pub group: u32,
    /// How often promiscuous mode was asked for.
    pub promiscuity: u32,
    /// `IFLA_INFO_DATA`: what the kind itself tells.
    pub data: Vec<u8>,
    /// `IFLA_INFO_SLAVE_DATA`: what the master tells of this port.
    pub port: Vec<u8>,
}

impl Link {
    /// Whether it is administratively up (`IFF_UP`).
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP as u32 != 0
    }

    /// Whether it is of a kind.
    #[must_use]
    pub fn is_kind(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }

    /// The attributes of its kind.
    #[must_use]
    pub fn data(&self) -> Attributes<'_> {
        Attributes(&self.data)
    }

    /// The attributes of the port it is.
    #[must_use]
    pub fn port(&self) -> Attributes<'_> {
        Attributes(&self.port)
    }

    fn read(payload: &[u8]) -> Option<Self> {
        let mut link = Self { index: u32_at(payload, 4)?, flags: u32_at(payload, 8)?, ..Self::default() };
        for (kind, value) in Attributes(payload.get(16..)?) {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_ADDRESS => link.mac = MacAddress::from_bytes(value),
                libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
                libc::IFLA_MASTER => link.master = u32_at(value, 0),
                libc::IFLA_LINK => link.parent = u32_at(value, 0),
                IFLA_LINK_NETNSID => link.parent_netns = u32_at(value, 0).map(|v| v as i32),
                libc::IFLA_OPERSTATE => link.operational_state = value.first().copied().unwrap_or(0),
                libc::IFLA_GROUP => link.group = u32_at(value, 0)?,
                libc::IFLA_PROMISCUITY => link.promiscuity = u32_at(value, 0)?,
                libc::IFLA_LINKINFO => {
                    let info = Attributes(value);
                    link.kind = info.get(IFLA_INFO_KIND).map(text);
                    link.data = info.get(IFLA_INFO_DATA).unwrap_or_default().to_vec();
                    link.port = info.get(IFLA_INFO_SLAVE_DATA).unwrap_or_default().to_vec();
                }
                _ => {}
            }
        }
        if link.parent_netns.is_some() && link.parent.is_none() {
            // Before Linux 5.14 a parent elsewhere is left out when its index is the link's own (feadc4b6cf42).
            link.parent = Some(link.index);
        }
        Some(link)
    }
}

/// A link to be made: what is common to all kinds, then one of the kinds. Always created exclusively (`NLM_F_EXCL`).
#[derive(Debug)]
pub struct NewLink<'a> {
    name: &'a str,
    mac: Option<MacAddress>,
    mtu: Option<u32>,
    parent: Option<u32>,
    master: Option<u32>,
    group: Option<u32>,
    namespace: Option<BorrowedFd<'a>>,
    up: bool,
}

impl<'a> NewLink<'a> {
    /// A link of that name, down, in the socket's namespace.
    #[must_use]
    pub fn named(name: &'a str) -> Self {
        Self { name, mac: None, mtu: None, parent: None, master: None, group: None, namespace: None, up: false }
    }

    /// With this Ethernet address.
    #[must_use]
    pub fn mac(mut self, mac: Option<MacAddress>) -> Self {
        self.mac = mac;
        self
    }

    /// With this MTU in bytes; `0` and `None` leave it to the kernel.
    #[must_use]
    pub fn mtu(mut self, mtu: Option<u32>) -> Self {
        self.mtu = mtu.filter(|mtu| *mtu > 0);
        self
    }

    /// On top of this link (`IFLA_LINK`).
    #[must_use]
    pub fn parent(mut self, index: u32) -> Self {
        self.parent = Some(index);
        self
    }

    /// As a port of this bridge.
    #[must_use]
    pub fn master(mut self, index: Option<u32>) -> Self {
        self.master = index;
        self
    }

    /// In this `IFLA_GROUP`.
    #[must_use]
    pub fn group(mut self, group: u32) -> Self {
        self.group = Some(group);
        self
    }

    /// Born in this namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &'a impl AsFd) -> Self {
        self.namespace = Some(namespace.as_fd());
        self
    }

    /// Born up.
    #[must_use]
    pub fn up(mut self) -> Self {
        self.up = true;
        self
    }

    /// The request that makes it: `kind`, and what `data` appends to `IFLA_INFO_DATA`.
    #[must_use]
    pub fn of_kind(self, kind: &str, data: impl FnOnce(Message) -> Message) -> Request {
        let operation = format!("create {kind} interface \"{}\"", self.name);
        let message = self
            .put(Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL))
            .nest(libc::IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, kind).nest(IFLA_INFO_DATA, data));
        Request::new(operation, message)
    }

    /// The request that makes a veth pair: this end and its peer, each where and as it is described.
    #[must_use]
    pub fn veth(self, peer: NewLink<'_>) -> Request {
        self.of_kind("veth", |data| data.nest(VETH_INFO_PEER, |message| peer.put(message)))
    }

    fn put(self, message: Message) -> Message {
        let up = if self.up { libc::IFF_UP as u32 } else { 0 };
        let mut header = [0; 16];
        header[8..12].copy_from_slice(&up.to_ne_bytes());
        header[12..16].copy_from_slice(&up.to_ne_bytes());
        message
            .fixed(&header)
            .text(libc::IFLA_IFNAME, self.name)
            .attr_if(libc::IFLA_ADDRESS, self.mac)
            .attr_if(libc::IFLA_MTU, self.mtu.map(u32::to_ne_bytes))
            .attr_if(libc::IFLA_LINK, self.parent.map(u32::to_ne_bytes))
            .attr_if(libc::IFLA_MASTER, self.master.map(u32::to_ne_bytes))
            .attr_if(libc::IFLA_GROUP, self.group.map(u32::to_ne_bytes))
            .attr_if(libc::IFLA_NET_NS_FD, self.namespace.map(|fd| fd.as_raw_fd().to_ne_bytes()))
    }
}

/// A change to an existing link, sent as one message.
#[derive(Debug)]
pub struct LinkChange {
    operation: String,
    index: u32,
    flags: u32,
    mask: u32,
    attributes: Message,
}

impl LinkChange {
    /// Changes the link of that index; `operation` names the change in an error.
    #[must_use]
    pub fn of(index: u32, operation: impl Into<String>) -> Self {
        Self { operation: operation.into(), index, flags: 0, mask: 0, attributes: Message::new(0, 0) }
    }

    /// Sets or clears `IFF_…` flags.
    #[must_use]
    pub fn flag(mut self, flag: i32, on: bool) -> Self {
        self.mask |= flag as u32;
        if on {
            self.flags |= flag as u32;
        }
        self
    }

    /// Brings it up.
    #[must_use]
    pub fn up(self) -> Self {
        self.flag(libc::IFF_UP, true)
    }

    /// Has it announce its IPv4 addresses by gratuitous ARP when it comes up: the sysctl `arp_notify`.
    #[must_use]
    pub fn announce_ipv4(mut self) -> Self {
        self.attributes = self.attributes.nest(libc::IFLA_AF_SPEC, |families| {
            families
                .nest(libc::AF_INET as u16, |inet| inet.nest(INET_CONF, |conf| conf.u32(IPV4_DEVCONF_ARP_NOTIFY, 1)))
        });
        self
    }

    /// Keeps the kernel from giving it an IPv6 link-local address. Takes effect where it stands before the change that
    /// brings it up, not in the same one. `EAFNOSUPPORT` where the link has no IPv6: its MTU is below 1280 bytes.
    #[must_use]
    pub fn no_link_local(mut self) -> Self {
        self.attributes = self.attributes.nest(libc::IFLA_AF_SPEC, |families| {
            families.nest(libc::AF_INET6 as u16, |inet6| inet6.u8(INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE))
        });
        self
    }

    /// Sets any `IFLA_…` attribute.
    #[must_use]
    pub fn attr(mut self, kind: u16, payload: impl AsRef<[u8]>) -> Self {
        self.attributes = self.attributes.attr(kind, payload);
        self
    }

    /// Renames it.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.attributes = self.attributes.text(libc::IFLA_IFNAME, name);
        self
    }

    /// Sets attributes of its kind (`IFLA_INFO_DATA`).
    #[must_use]
    pub fn data(mut self, kind: &str, data: impl FnOnce(Message) -> Message) -> Self {
        self.attributes = self
            .attributes
            .nest(libc::IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, kind).nest(IFLA_INFO_DATA, data));
        self
    }

    /// Sets attributes of the bridge port it is (`IFLA_INFO_SLAVE_DATA`).
    #[must_use]
    pub fn bridge_port(mut self, data: impl FnOnce(Message) -> Message) -> Self {
        self.attributes = self.attributes.nest(libc::IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_SLAVE_KIND, "bridge").nest(IFLA_INFO_SLAVE_DATA, data)
        });
        self
    }

    /// The request. `RTM_NEWLINK` without `NLM_F_CREATE`, as `ip link set` sends it: `RTM_SETLINK` ignores the kind's
    /// own attributes.
    #[must_use]
    pub fn request(self) -> Request {
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&self.index.to_ne_bytes());
        header[8..12].copy_from_slice(&self.flags.to_ne_bytes());
        header[12..16].copy_from_slice(&self.mask.to_ne_bytes());
        let attributes = self.attributes.finish(0, 0).split_off(super::message::HEADER);
        Request::new(self.operation, Message::new(libc::RTM_NEWLINK, 0).fixed(&header).fixed(&attributes))
    }
}

/// The request that deletes a link by index.
#[must_use]
pub fn delete(index: u32, name: &str) -> Request {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    Request::new(format!("delete interface \"{name}\""), Message::new(libc::RTM_DELLINK, 0).fixed(&header))
}

/// The request that deletes every link of a group in the socket's namespace, with one grace period for all of them
/// (`rtnl_group_dellink`). Group 0 is every link that was never given one, so it is never asked for.
#[must_use]
pub fn delete_group(group: std::num::NonZeroU32) -> Request {
    let message = Message::new(libc::RTM_DELLINK, 0).fixed(&[0; 16]).u32(libc::IFLA_GROUP, group.get());
    Request::new(format!("delete the interfaces of group {group}"), message)
}

impl Netlink {
    /// Makes a link in the socket's own namespace and returns what the kernel tells of it at once, before it is a port or
    /// up; kernels before 6.2 tell nothing.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn create(&self, request: Request) -> Result<Option<Link>> {
        self.request_echoed(request, Link::read)
    }

    /// The link of that name, if there is one.
    ///
    /// # Errors
    /// Any refusal besides "no such device".
    pub fn link_by_name(&self, name: &str) -> Result<Option<Link>> {
        let message = Message::new(libc::RTM_GETLINK, 0)
            .fixed(&[0; 16])
            .text(libc::IFLA_IFNAME, name)
            .u32(EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        self.get(Request::new(format!("look up interface \"{name}\""), message), Link::read)
    }

    /// The link of that index, if there is one.
    ///
    /// # Errors
    /// Any refusal besides "no such device".
    pub fn link_by_index(&self, index: u32) -> Result<Option<Link>> {
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let message = Message::new(libc::RTM_GETLINK, 0).fixed(&header).u32(EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        self.get(Request::new(format!("look up interface {index}"), message), Link::read)
    }

    /// All links of the namespace.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn links(&self) -> Result<Vec<Link>> {
        let message = Message::new(libc::RTM_GETLINK, 0).fixed(&[0; 16]).u32(EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        self.dump(Request::new("list the interfaces", message), Link::read)
    }

    /// The ports of a bridge (or bond, VRF).
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn ports(&self, master: u32) -> Result<Vec<Link>> {
        let message = Message::new(libc::RTM_GETLINK, 0)
            .fixed(&[0; 16])
            .u32(EXT_MASK, RTEXT_FILTER_SKIP_STATS)
            .u32(libc::IFLA_MASTER, master);
        let mut ports = self.dump(Request::new("list the ports of a bridge", message), Link::read)?;
        ports.retain(|link| link.master == Some(master));
        Ok(ports)
    }

    /// Deletes a link by index; `false` when it was gone already.
    ///
    /// # Errors
    /// Any other refusal.
    pub fn delete_link(&self, index: u32, name: &str) -> Result<bool> {
        match self.request(delete(index, name)) {
            Ok(()) => Ok(true),
            Err(e) if e.errno == nix::errno::Errno::ENODEV => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// A 16-bit number in a link's data, in host order.
#[must_use]
pub fn data_u16(attributes: Attributes<'_>, kind: u16) -> Option<u16> {
    u16_at(attributes.get(kind)?, 0)
}

/// A 32-bit number in a link's data, in host order.
#[must_use]
pub fn data_u32(attributes: Attributes<'_>, kind: u16) -> Option<u32> {
    u32_at(attributes.get(kind)?, 0)
}

/// A byte in a link's data.
#[must_use]
pub fn data_u8(attributes: Attributes<'_>, kind: u16) -> Option<u8> {
    attributes.get(kind)?.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_elsewhere_with_the_links_own_index_is_told_of_by_its_namespace_alone() {
        let read = |attributes: &[(u16, u32)]| {
            let mut header = [0; 16];
            header[4] = 2;
            let message =
                attributes.iter().fold(Message::new(libc::RTM_NEWLINK, 0).fixed(&header), |message, (kind, value)| {
                    message.u32(*kind, *value)
                });
            let link = Link::read(&message.finish(0, 0)[super::super::message::HEADER..]).unwrap();
            (link.parent, link.parent_netns)
        };
        assert_eq!(read(&[]), (None, None));
        assert_eq!(read(&[(libc::IFLA_LINK, 5)]), (Some(5), None));
        assert_eq!(read(&[(libc::IFLA_LINK, 5), (IFLA_LINK_NETNSID, 0)]), (Some(5), Some(0)));
        assert_eq!(read(&[(IFLA_LINK_NETNSID, 0)]), (Some(2), Some(0)));
    }
}

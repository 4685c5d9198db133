//! Addresses of interfaces by rtnetlink (`linux/if_addr.h`).

use std::net::IpAddr;

use ipnet::IpNet;

use super::message::{Attributes, Message, u32_at};
use super::socket::{Netlink, Request, Result};

/// `IFA_FLAGS`: the flags in 32 bits.
const IFA_FLAGS: u16 = 8;
/// Duplicate address detection is still running; the address cannot be used yet.
const TENTATIVE: u32 = 0x40;
/// Duplicate address detection found another owner.
const DUPLICATE: u32 = 0x08;
/// Set: no duplicate address detection for this address.
const NODAD: u32 = 0x02;
/// Set: the kernel makes no route to the address's subnet.
const NOPREFIXROUTE: u32 = 0x200;

/// An address the kernel holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The interface it is on.
    pub index: u32,
    /// The address and the length of its prefix.
    pub net: IpNet,
    flags: u32,
}

impl Address {
    /// Whether duplicate address detection has not finished.
    #[must_use]
    pub fn is_tentative(&self) -> bool {
        self.flags & TENTATIVE != 0
    }

    /// Whether duplicate address detection found another owner (`IFA_F_DADFAILED`).
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        self.flags & DUPLICATE != 0
    }

    /// Whether it is of IPv6 and link-local (RFC 4291, 2.5.6).
    #[must_use]
    pub fn is_link_local(&self) -> bool {
        matches!(self.net.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local())
    }

    /// Its `IFA_F_…` flags.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.flags
    }

    fn read(payload: &[u8]) -> Option<Self> {
        let prefix = *payload.get(1)?;
        let attributes = Attributes(payload.get(8..)?);
        let value = attributes.get(libc::IFA_LOCAL).or_else(|| attributes.get(libc::IFA_ADDRESS))?;
        let flags = attributes.get(IFA_FLAGS).and_then(|v| u32_at(v, 0)).unwrap_or(u32::from(*payload.get(2)?));
        Some(Self { index: u32_at(payload, 4)?, net: IpNet::new(ip(value)?, prefix).ok()?, flags })
    }
}

/// Reads an address of four or sixteen bytes.
#[must_use]
pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

/// An address in network order.
#[must_use]
pub fn ip_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// `AF_INET` or `AF_INET6`.
#[must_use]
pub fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

/// The request that adds an address. Without `detect_duplicates` an IPv6 address is usable at once (`IFA_F_NODAD`).
#[must_use]
pub fn add(index: u32, net: IpNet, detect_duplicates: bool) -> Request {
    add_with(index, net, no_detection(net, detect_duplicates))
}

/// As [`add`], without the kernel's route to the address's subnet (`IFA_F_NOPREFIXROUTE`).
#[must_use]
pub fn add_without_route(index: u32, net: IpNet, detect_duplicates: bool) -> Request {
    add_with(index, net, NOPREFIXROUTE | no_detection(net, detect_duplicates))
}

fn no_detection(net: IpNet, detect_duplicates: bool) -> u32 {
    if net.addr().is_ipv6() && !detect_duplicates { NODAD } else { 0 }
}

fn add_with(index: u32, net: IpNet, flags: u32) -> Request {
    let message = fixed(Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL), index, net);
    let message = match net {
        // A subnet of one or two addresses has no broadcast address (RFC 3021).
        IpNet::V4(v4) if v4.prefix_len() < 31 => message.attr(libc::IFA_BROADCAST, v4.broadcast().octets()),
        _ => message,
    };
    let message = if flags == 0 { message } else { message.u32(IFA_FLAGS, flags) };
    Request::new(format!("add address {net}"), message)
}

/// The request that removes an address.
#[must_use]
pub fn remove(index: u32, net: IpNet) -> Request {
    Request::new(format!("remove address {net}"), fixed(Message::new(libc::RTM_DELADDR, 0), index, net))
}

fn fixed(message: Message, index: u32, net: IpNet) -> Message {
    let [a, b, c, d] = index.to_ne_bytes();
    let bytes = ip_bytes(net.addr());
    message
        .fixed(&[family(net.addr()), net.prefix_len(), 0, 0, a, b, c, d])
        .attr(libc::IFA_LOCAL, &bytes)
        .attr(libc::IFA_ADDRESS, &bytes)
}

impl Netlink {
    /// All addresses of one family (`AF_INET`, `AF_INET6`) in the namespace.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn all_addresses(&self, family: u8) -> Result<Vec<Address>> {
        let message = Message::new(libc::RTM_GETADDR, 0).fixed(&[family, 0, 0, 0, 0, 0, 0, 0]);
        self.dump(Request::new("list all addresses", message), Address::read)
    }

    /// The addresses of one interface, both families.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn addresses(&self, index: u32) -> Result<Vec<Address>> {
        let [a, b, c, d] = index.to_ne_bytes();
        let message = Message::new(libc::RTM_GETADDR, 0).fixed(&[0, 0, 0, 0, a, b, c, d]);
        self.dump(Request::new(format!("list the addresses of interface {index}"), message), |payload| {
            Address::read(payload).filter(|address| address.index == index)
        })
    }
}

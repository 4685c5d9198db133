//! Routes by rtnetlink (`linux/rtnetlink.h`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::address::{family, ip, ip_bytes};
use super::message::{Attributes, Message, u32_at};
use super::socket::{Netlink, Request, Result};

const RTNH_F_ONLINK: u32 = 4;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
/// `RT_TABLE_MAIN`.
pub const MAIN_TABLE: u32 = 254;

/// A unicast route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to; the unspecified address with prefix 0 is the default route.
    pub destination: IpNet,
    /// By which gateway; `None` is the link itself.
    pub gateway: Option<IpAddr>,
    /// Out of which interface.
    pub interface: u32,
    /// Metric; lower wins. `None` is the kernel's own default for the family.
    pub priority: Option<u32>,
    /// Routing table; 254 is main.
    pub table: u32,
    /// `RT_SCOPE_…` (0 universe, 253 link, 254 host).
    pub scope: u8,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Path MTU in bytes (`RTAX_MTU`).
    pub mtu: Option<u32>,
    /// Advertised segment size in bytes (`RTAX_ADVMSS`).
    pub advmss: Option<u32>,
    /// The gateway need not be inside a subnet of the interface (`RTNH_F_ONLINK`).
    pub onlink: bool,
    /// `RTPROT_…`: who made it (2 the kernel, 3 boot, 4 static).
    pub protocol: u8,
}

impl Route {
    /// A route out of an interface, in the main table, with the scope that fits: a gateway-less IPv4 route has scope
    /// link, or gateways inside its subnet would be refused.
    #[must_use]
    pub fn new(destination: IpNet, gateway: Option<IpAddr>, interface: u32) -> Self {
        let link = gateway.is_none() && destination.addr().is_ipv4();
        Self {
            destination,
            gateway,
            interface,
            priority: None,
            table: MAIN_TABLE,
            scope: if link { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE },
            source: None,
            mtu: None,
            advmss: None,
            onlink: false,
            protocol: libc::RTPROT_STATIC,
        }
    }

    /// Whether it is a default route.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0
    }

    /// The request that adds it. Not exclusive: routes of one destination by several gateways may stand side by side.
    #[must_use]
    pub fn add(&self) -> Request {
        self.request("add", Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE), self.scope)
    }

    /// The request that removes it.
    #[must_use]
    pub fn remove(&self) -> Request {
        self.request("remove", Message::new(libc::RTM_DELROUTE, 0), self.scope)
    }

    fn request(&self, verb: &str, message: Message, scope: u8) -> Request {
        let operation = match self.gateway {
            Some(gateway) => format!("{verb} route {} via {gateway}", self.destination),
            None => format!("{verb} route {}", self.destination),
        };
        let short_table = u8::try_from(self.table).unwrap_or(libc::RT_TABLE_UNSPEC);
        let flags = if self.onlink { RTNH_F_ONLINK } else { 0 };
        let [f0, f1, f2, f3] = flags.to_ne_bytes();
        let address = self.destination.addr();
        let mut message = message.fixed(&[
            family(address),
            self.destination.prefix_len(),
            0,
            0,
            short_table,
            self.protocol,
            scope,
            libc::RTN_UNICAST,
            f0,
            f1,
            f2,
            f3,
        ]);
        if !self.is_default() {
            message = message.attr(libc::RTA_DST, ip_bytes(self.destination.trunc().addr()));
        }
        message = message
            .attr_if(libc::RTA_GATEWAY, self.gateway.map(ip_bytes))
            .u32(libc::RTA_OIF, self.interface)
            .u32(libc::RTA_TABLE, self.table)
            .attr_if(libc::RTA_PREFSRC, self.source.map(ip_bytes))
            .attr_if(libc::RTA_PRIORITY, self.priority.map(u32::to_ne_bytes));
        if self.mtu.is_some() || self.advmss.is_some() {
            message = message.nest(libc::RTA_METRICS, |metrics| {
                metrics
                    .attr_if(RTAX_MTU, self.mtu.map(u32::to_ne_bytes))
                    .attr_if(RTAX_ADVMSS, self.advmss.map(u32::to_ne_bytes))
            });
        }
        Request::new(operation, message)
    }

    fn read(payload: &[u8]) -> Option<Self> {
        let [family, prefix, _, _, table, protocol, scope, kind] = *payload.first_chunk::<8>()?;
        if kind != libc::RTN_UNICAST {
            return None;
        }
        let attributes = Attributes(payload.get(12..)?);
        let number = |kind| attributes.get(kind).and_then(|v| u32_at(v, 0));
        let any: IpAddr = match i32::from(family) {
            libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
            libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let destination = attributes.get(libc::RTA_DST).map_or(Some(any), ip)?;
        let metrics = attributes.nested(libc::RTA_METRICS);
        Some(Self {
            destination: IpNet::new(destination, prefix).ok()?,
            gateway: attributes.get(libc::RTA_GATEWAY).and_then(ip),
            // A route with several next hops names no interface of its own; it is none that we made.
            interface: number(libc::RTA_OIF).unwrap_or(0),
            priority: number(libc::RTA_PRIORITY),
            table: number(libc::RTA_TABLE).unwrap_or(u32::from(table)),
            scope,
            source: attributes.get(libc::RTA_PREFSRC).and_then(ip),
            mtu: metrics.get(RTAX_MTU).and_then(|v| u32_at(v, 0)),
            advmss: metrics.get(RTAX_ADVMSS).and_then(|v| u32_at(v, 0)),
            onlink: u32_at(payload, 8)? & RTNH_F_ONLINK != 0,
            protocol,
        })
    }
}

impl Netlink {
    /// All unicast routes of the namespace, both families, all tables.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn routes(&self) -> Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut header = [0; 12];
            header[0] = family as u8;
            let message = Message::new(libc::RTM_GETROUTE, 0).fixed(&header);
            match self.dump(Request::new("list the routes", message), Route::read) {
                Ok(found) => routes.extend(found),
                // A kernel without IPv6 has no such routes.
                Err(e) if family == libc::AF_INET6 && e.errno == nix::errno::Errno::EOPNOTSUPP => {}
                Err(e) => return Err(e),
            }
        }
        Ok(routes)
    }

    /// The interface of the first default route in the main table, IPv4 before IPv6.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn default_route_interface(&self) -> Result<Option<u32>> {
        Ok(self
            .routes()?
            .into_iter()
            .find(|route| route.is_default() && route.table == MAIN_TABLE && route.interface != 0)
            .map(|route| route.interface))
    }
}

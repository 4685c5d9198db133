//! What a VXLAN network has on the host: one VXLAN device and one bridge for each VNI, shared by the VNI's pods. Made for
//! the first, compared with the configuration for every later one, removed after the last; all of it under the VNI's lock.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::Path;

use nix::errno::Errno;

use crate::bridge_device::BridgeDevice;
use crate::cni::{CniError, code};
use crate::delegate::Context;
use crate::interface;
use crate::netlink::address::{self, ip, ip_bytes};
use crate::netlink::link::{self, data_u8, data_u32};
use crate::netlink::message::Message;
use crate::netlink::neighbour::ForwardingEntry;
use crate::netlink::{Link, LinkChange, MacAddress, NewLink};
use crate::netns::Namespace;
use crate::shared::{self, SharedLock};

/// `IFLA_VXLAN_…` of `linux/if_link.h`.
mod attribute {
    pub const ID: u16 = 1;
    pub const GROUP: u16 = 2;
    pub const LINK: u16 = 3;
    pub const LOCAL: u16 = 4;
    pub const LEARNING: u16 = 7;
    pub const PORT: u16 = 15;
    pub const GROUP6: u16 = 16;
    pub const LOCAL6: u16 = 17;
}

/// The kind of a VNI's lock.
const LOCK: &str = "vxlan";
/// First byte of the `IFLA_GROUP` of host links, before the VNI's three: recognisable, never 0 and within 31 bits.
const GROUP_MARK: u32 = 0x4d00_0000;
/// IPv4 or IPv6, UDP and VXLAN headers and the inner Ethernet header, in bytes (RFC 7348, 5).
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;
/// The least MTU a link may have (RFC 791).
const LEAST_MTU: u32 = 68;

/// A VXLAN network identifier, 1 to 16777215.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(NonZeroU32);

impl Vni {
    /// The largest: 24 bits (RFC 7348, 5).
    pub const MAX: u32 = 0xff_ffff;

    /// Takes a number from 1 to [`Self::MAX`].
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).filter(|vni| vni.get() <= Self::MAX).map(Self)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// Name of its VXLAN device.
    #[must_use]
    pub fn device_name(self) -> String {
        format!("mvx{self}")
    }

    /// Name of its bridge, unless the configuration has another.
    #[must_use]
    pub fn bridge_name(self) -> String {
        format!("mbr{self}")
    }

    /// `IFLA_GROUP` of what is made on the host for it.
    #[must_use]
    pub fn link_group(self) -> NonZeroU32 {
        self.0 | GROUP_MARK
    }

    /// The VNI that a link was made for.
    fn of_link(link: &Link) -> Option<Self> {
        (link.group & !Self::MAX == GROUP_MARK).then(|| Self::new(link.group & Self::MAX)).flatten()
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where frames go whose receiver is not known: broadcast, multicast, unknown unicast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flood {
    /// To a multicast group of the underlay.
    Group(IpAddr),
    /// To each of these VTEPs but the node's own (head-end replication); to none at all when it is empty.
    Remotes(BTreeSet<IpAddr>),
}

/// What the configuration asks of the host.
#[derive(Debug, Clone)]
pub struct VxlanDevice {
    /// The network's number.
    pub vni: Vni,
    /// The underlay's interface; the one with the default route when not given.
    pub master: Option<String>,
    /// Source address of the outer packets; chosen by the kernel's routes when not given.
    pub local: Option<IpAddr>,
    /// UDP port, both here and at the other VTEPs.
    pub port: u16,
    /// Where frames to everybody go.
    pub flood: Flood,
    /// Learn which VTEP a MAC address is behind from the frames received.
    pub learning: bool,
    /// MTU in bytes; what the underlay leaves when not given.
    pub mtu: Option<u32>,
    /// The bridge.
    pub bridge: BridgeDevice,
}

/// The host's side as it is.
#[derive(Debug, Clone)]
pub struct Present {
    /// The VXLAN device.
    pub device: Link,
    /// The bridge it is a port of.
    pub bridge: Link,
    /// Whether this call made the device.
    pub is_new: bool,
}

impl VxlanDevice {
    /// Waits for the VNI's lock. Who makes a port holds it from [`Self::ensure`] until the port is there, so that
    /// nobody takes the bridge for unused in between. A bridge's own lock is only ever taken after it.
    ///
    /// # Errors
    /// Code 5.
    pub fn lock(&self, cx: &Context<'_>) -> Result<SharedLock, CniError> {
        lock(cx.state_dir, self.vni)
    }

    /// Finds or makes device and bridge. Ones that differ from the configuration are made anew if they are ours and no
    /// pod uses them. What a failed call made is taken back.
    ///
    /// # Errors
    /// A device in use that differs; an MTU that the underlay cannot carry; the kernel's refusal.
    pub fn ensure(&self, cx: &Context<'_>, lock: &SharedLock) -> Result<Present, CniError> {
        if let Some(device) = self.find(cx)? {
            let master = self.underlay(cx, Some(&device))?;
            self.check_mtu(&master)?;
            match self.compare(cx, &device, &self.named_bridge(cx)?, &master) {
                Ok(()) => return self.bring_up(cx, device),
                Err(difference) if !self.remove_if_unused(cx, lock)? => return Err(difference),
                Err(_) => {}
            }
        }
        let master = self.underlay(cx, None)?;
        self.check_mtu(&master)?;
        self.create(cx, &master).inspect_err(|_| {
            // The first error says more than what may follow from it.
            let _ = self.remove_if_unused(cx, lock);
        })
    }

    /// Removes device and bridge if no pod uses them; whether they are gone. A bridge that was there before stays.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn remove_if_unused(&self, cx: &Context<'_>, _lock: &SharedLock) -> Result<bool, CniError> {
        remove_locked(cx.host, self.vni, &self.bridge.name)
    }

    /// CHECK of the host's side.
    ///
    /// # Errors
    /// What is gone, down or different.
    pub fn check(&self, cx: &Context<'_>) -> Result<Present, CniError> {
        let bridge = self.bridge.check(cx)?;
        let name = self.vni.device_name();
        let Some(device) = self.find(cx)? else {
            return Err(CniError::new(code::DELEGATE, format!("VXLAN interface \"{name}\" is gone")));
        };
        if !device.is_up() {
            return Err(CniError::new(code::DELEGATE, format!("VXLAN interface \"{name}\" is down")));
        }
        let master = self.underlay(cx, Some(&device))?;
        self.compare(cx, &device, &bridge, &master)?;
        Ok(Present { device, bridge, is_new: false })
    }

    /// STATUS: the underlay is there, and what exists already fits.
    ///
    /// # Errors
    /// Code 50.
    pub fn status(&self, cx: &Context<'_>) -> Result<(), CniError> {
        let usable = || {
            let device = self.find(cx)?;
            let master = self.underlay(cx, device.as_ref())?;
            self.check_mtu(&master)?;
            self.bridge.status(cx)?;
            let Some(device) = device else { return Ok(()) };
            let in_use = || match device.master {
                Some(master) => is_used(cx.host, self.vni, master),
                None => Ok(false),
            };
            match self.compare(cx, &device, &self.named_bridge(cx)?, &master) {
                Err(difference) if in_use()? => Err(difference),
                _ => Ok(()),
            }
        };
        usable().map_err(|e: CniError| CniError { code: code::NOT_AVAILABLE, ..e })
    }

    /// The link the tunnel goes through: the configured one; else the one an existing device has, for the default route may
    /// move while pods use it; else the one with the default route.
    fn underlay(&self, cx: &Context<'_>, device: Option<&Link>) -> Result<Link, CniError> {
        let own = device.and_then(|device| data_u32(device.data(), attribute::LINK)).filter(|_| self.master.is_none());
        if let Some(index) = own
            && let Some(link) = cx.host.netlink.link_by_index(index)?
        {
            return Ok(link);
        }
        interface::master(cx.host, self.master.as_deref())
    }

    fn find(&self, cx: &Context<'_>) -> Result<Option<Link>, CniError> {
        Ok(cx.host.netlink.link_by_name(&self.vni.device_name())?)
    }

    /// The bridge of the configured name; one that is not there has no index.
    fn named_bridge(&self, cx: &Context<'_>) -> Result<Link, CniError> {
        let missing = || Link { name: self.bridge.name.clone(), ..Link::default() };
        Ok(cx.host.netlink.link_by_name(&self.bridge.name)?.unwrap_or_else(missing))
    }

    fn bring_up(&self, cx: &Context<'_>, device: Link) -> Result<Present, CniError> {
        let bridge = self.bridge.ensure(cx)?;
        if !device.is_up() {
            let change = LinkChange::of(device.index, format!("bring up interface \"{}\"", device.name)).up();
            cx.host.netlink.request(change.request()).map_err(|e| self.refused(cx, e))?;
        }
        Ok(Present { device, bridge, is_new: false })
    }

    /// The VTEPs to flood to: the configured ones without this node itself, so that one list serves all nodes. Frames sent
    /// to an address of its own the kernel would hand straight back (`vxlan_encap_bypass`), and the bridge would take the
    /// VXLAN device for the place of its own pods.
    fn remotes(&self, cx: &Context<'_>) -> Result<BTreeSet<IpAddr>, CniError> {
        let mut remotes = match &self.flood {
            Flood::Remotes(remotes) => remotes.clone(),
            Flood::Group(_) => BTreeSet::new(),
        };
        if let Some(remote) = remotes.first() {
            for own in cx.host.netlink.all_addresses(address::family(*remote))? {
                remotes.remove(&own.net.addr());
            }
        }
        Ok(remotes)
    }

    fn is_v6(&self) -> bool {
        let other = match &self.flood {
            Flood::Group(group) => Some(group),
            Flood::Remotes(remotes) => remotes.first(),
        };
        self.local.as_ref().or(other).is_some_and(IpAddr::is_ipv6)
    }

    fn largest_mtu(&self, master: &Link) -> u32 {
        master.mtu.saturating_sub(if self.is_v6() { OVERHEAD_V6 } else { OVERHEAD_V4 })
    }

    fn check_mtu(&self, master: &Link) -> Result<(), CniError> {
        let largest = self.largest_mtu(master);
        let wanted = self.mtu.unwrap_or(LEAST_MTU);
        if wanted <= largest {
            return Ok(());
        }
        let underlay = format!("interface \"{}\" (MTU {})", master.name, master.mtu);
        Err(CniError::new(code::CONFIG, format!("mtu: {wanted} is more than the {largest} that {underlay} leaves"))
            .with_details("lower \"mtu\", or remove it to take what fits, or raise the MTU of the underlay"))
    }

    fn create(&self, cx: &Context<'_>, master: &Link) -> Result<Present, CniError> {
        let mtu = self.mtu.unwrap_or_else(|| self.largest_mtu(master));
        let bridge = BridgeDevice { mtu: Some(mtu), ..self.bridge.clone() }.ensure(cx)?;
        if let Some(other) = Vni::of_link(&bridge).filter(|vni| *vni != self.vni) {
            return Err(CniError::new(
                code::CONFIG,
                format!("bridge: \"{}\" is the bridge of VNI {other}, and the two would be joined", bridge.name),
            )
            .with_details("name another bridge, or remove \"bridge\" for one of this VNI's own"));
        }
        let name = self.vni.device_name();
        // Born as a port and up: the socket's port is bound in the same step, so one that is taken leaves nothing behind.
        let request = NewLink::named(&name)
            .mac(Some(MacAddress::random()))
            .mtu(Some(mtu))
            .group(self.vni.link_group().get())
            .master(Some(bridge.index))
            .up()
            .of_kind("vxlan", |data| self.describe(data, master));
        cx.host.netlink.request(request).map_err(|e| self.refused(cx, e))?;
        let device = self.find(cx)?.ok_or_else(|| {
            CniError::new(code::DELEGATE, format!("VXLAN interface \"{name}\" vanished as soon as it was made"))
        })?;
        let remotes = self.remotes(cx)?;
        if !remotes.is_empty() {
            let entries = remotes.iter().map(|remote| ForwardingEntry::flood(device.index, *remote).append());
            cx.host.netlink.request_all(entries.collect())?;
        }
        Ok(Present { device, bridge, is_new: true })
    }

    fn describe(&self, data: Message, master: &Link) -> Message {
        let data = data
            .u32(attribute::ID, self.vni.get())
            .u32(attribute::LINK, master.index)
            .be16(attribute::PORT, self.port)
            .u8(attribute::LEARNING, self.learning.into());
        let data = match &self.flood {
            Flood::Group(group @ IpAddr::V4(_)) => data.attr(attribute::GROUP, ip_bytes(*group)),
            Flood::Group(group @ IpAddr::V6(_)) => data.attr(attribute::GROUP6, ip_bytes(*group)),
            Flood::Remotes(_) => data,
        };
        match self.local {
            Some(local @ IpAddr::V4(_)) => data.attr(attribute::LOCAL, ip_bytes(local)),
            Some(local @ IpAddr::V6(_)) => data.attr(attribute::LOCAL6, ip_bytes(local)),
            // The unspecified address alone tells the kernel that the underlay is IPv6 (`vxlan_config_validate`).
            None if self.is_v6() => data.attr(attribute::LOCAL6, [0; 16]),
            None => data,
        }
    }

    /// Words for the refusals that a person can do something about.
    fn refused(&self, cx: &Context<'_>, error: crate::netlink::Error) -> CniError {
        match error.errno {
            Errno::EEXIST => {
                let links = cx.host.netlink.links().unwrap_or_default();
                let other = links.iter().find(|link| {
                    link.is_kind("vxlan")
                        && data_u32(link.data(), attribute::ID) == Some(self.vni.get())
                        && port(link) == Some(self.port)
                });
                let owner = other.map(|link| format!(" by interface \"{}\"", link.name)).unwrap_or_default();
                CniError::new(code::DELEGATE, format!("vni: {} on UDP port {} is taken{owner}", self.vni, self.port))
                    .with_details("choose another \"vni\" or \"port\", or remove that interface")
            }
            Errno::EADDRINUSE => CniError::new(
                code::DELEGATE,
                format!("port: UDP port {} is taken by another program: {error}", self.port),
            )
            .with_details("choose another \"port\", the same on every node"),
            Errno::EOPNOTSUPP => CniError::new(code::DELEGATE, error.to_string())
                .with_details("this kernel has no VXLAN (CONFIG_VXLAN, module vxlan) or no IPv6"),
            _ => error.into(),
        }
    }

    /// Compares what is there with the configuration.
    fn compare(&self, cx: &Context<'_>, device: &Link, bridge: &Link, master: &Link) -> Result<(), CniError> {
        self.differences(cx, device, bridge, master)?.into_iter().find(|d| d.is != d.asked).map_or(Ok(()), |d| {
            let Difference { key, is, asked } = d;
            Err(CniError::new(
                code::DELEGATE,
                format!("{key}: VXLAN interface \"{}\" has {is}, the configuration asks for {asked}", device.name),
            )
            .with_details(format!(
                "VNI {} is shared by its pods: give all its networks one configuration, or choose another \"vni\"; \
                 a new configuration takes effect once no pod of this node uses the VNI",
                self.vni
            )))
        })
    }

    fn differences(
        &self,
        cx: &Context<'_>,
        device: &Link,
        bridge: &Link,
        master: &Link,
    ) -> Result<Vec<Difference>, CniError> {
        let kind = device.kind.as_deref().unwrap_or("a physical interface");
        if kind != "vxlan" {
            return Ok(vec![Difference::of("vni", format!("kind {kind}"), "kind vxlan".to_owned())]);
        }
        let data = device.data();
        let name_of = |index: Option<u32>| match index {
            Some(index) if index == bridge.index => bridge.name.clone(),
            Some(index) if index == master.index => master.name.clone(),
            Some(index) => match cx.host.netlink.link_by_index(index) {
                Ok(Some(link)) => link.name,
                _ => format!("interface {index}"),
            },
            None => "none".to_owned(),
        };
        let address = |v4, v6| data.get(v4).or_else(|| data.get(v6)).and_then(ip);
        let number = |n: Option<u32>| n.map_or("none".to_owned(), |n| n.to_string());
        let group = match &self.flood {
            Flood::Group(group) => Some(*group),
            Flood::Remotes(_) => None,
        };
        let largest = self.largest_mtu(master);
        // Without a configured one any MTU that the underlay carries will do: the pods follow the device.
        let mtu = self.mtu.unwrap_or(device.mtu.min(largest));
        Ok(vec![
            Difference::of("vni", number(data_u32(data, attribute::ID)), self.vni.to_string()),
            Difference::of("master", name_of(data_u32(data, attribute::LINK)), master.name.clone()),
            Difference::of("port", number(port(device).map(u32::from)), self.port.to_string()),
            Difference::of("local", shown(address(attribute::LOCAL, attribute::LOCAL6)), shown(self.local)),
            Difference::of("group", shown(address(attribute::GROUP, attribute::GROUP6)), shown(group)),
            Difference::of("remotes", listed(&flooded_to(cx, device)?), listed(&self.remotes(cx)?)),
            Difference::of(
                "learning",
                (data_u8(data, attribute::LEARNING) != Some(0)).to_string(),
                self.learning.to_string(),
            ),
            Difference::of("mtu", device.mtu.to_string(), mtu.to_string()),
            Difference::of("bridge", name_of(device.master), bridge.name.clone()),
        ])
    }
}

struct Difference {
    key: &'static str,
    is: String,
    asked: String,
}

impl Difference {
    fn of(key: &'static str, is: String, asked: String) -> Self {
        Self { key, is, asked }
    }
}

fn shown(address: Option<IpAddr>) -> String {
    address.map_or("none".to_owned(), |address| address.to_string())
}

fn listed(addresses: &BTreeSet<IpAddr>) -> String {
    let list: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    if list.is_empty() { "none".to_owned() } else { list.join(", ") }
}

fn port(device: &Link) -> Option<u16> {
    Some(u16::from_be_bytes(device.data().get(attribute::PORT)?.try_into().ok()?))
}

/// The VTEPs that frames to everybody go to. A multicast group stands in the same list.
fn flooded_to(cx: &Context<'_>, device: &Link) -> Result<BTreeSet<IpAddr>, CniError> {
    let entries = cx.host.netlink.forwarding_entries(device.index)?;
    let flood = entries.into_iter().filter(|entry| entry.mac.0 == [0; 6] && !entry.remote.is_multicast());
    Ok(flood.map(|entry| entry.remote).collect())
}

fn lock(state_dir: &Path, vni: Vni) -> Result<SharedLock, CniError> {
    shared::lock(state_dir, LOCK, &vni.to_string())
}

/// The VNIs that this installation has a device or a bridge for and no pod, each with its links' names: left behind, or left
/// to an agent to remove. [`remove_if_unused`] takes them away.
///
/// # Errors
/// The kernel cannot be asked.
pub fn unused(host: &Namespace, state_dir: &Path) -> Result<BTreeMap<Vni, Vec<String>>, CniError> {
    let links = host.netlink.links()?;
    let mut made: BTreeMap<Vni, Vec<&Link>> = BTreeMap::new();
    for link in &links {
        if let Some(vni) = Vni::of_link(link).filter(|vni| shared::was_locked(state_dir, LOCK, &vni.to_string())) {
            made.entry(vni).or_default().push(link);
        }
    }
    let has_pods = |vni: &Vni, own: &[&Link]| {
        let bridges: Vec<u32> = own.iter().flat_map(|link| link.master.into_iter().chain([link.index])).collect();
        links.iter().any(|port| port.name != vni.device_name() && port.master.is_some_and(|m| bridges.contains(&m)))
    };
    made.retain(|vni, own| !has_pods(vni, own));
    Ok(made.into_iter().map(|(vni, own)| (vni, own.iter().map(|link| link.name.clone()).collect())).collect())
}

/// Removes a VNI's device and bridge if no pod uses them; whether they are gone. `bridge` is the configured name, for
/// when the device no longer tells.
///
/// # Errors
/// Code 5 for the lock; the kernel's refusal.
pub fn remove_if_unused(host: &Namespace, state_dir: &Path, vni: Vni, bridge: &str) -> Result<bool, CniError> {
    let netlink = &host.netlink;
    if netlink.link_by_name(&vni.device_name())?.is_none() && netlink.link_by_name(bridge)?.is_none() {
        return Ok(true);
    }
    let _lock = lock(state_dir, vni)?;
    remove_locked(host, vni, bridge)
}

fn remove_locked(host: &Namespace, vni: Vni, bridge: &str) -> Result<bool, CniError> {
    let netlink = &host.netlink;
    let device = netlink
        .link_by_name(&vni.device_name())?
        .filter(|link| link.is_kind("vxlan") && data_u32(link.data(), attribute::ID) == Some(vni.get()));
    let bridge = match device.as_ref().and_then(|device| device.master) {
        Some(index) => netlink.link_by_index(index)?,
        None => netlink.link_by_name(bridge)?,
    };
    if let Some(bridge) = &bridge
        && is_used(host, vni, bridge.index)?
    {
        return Ok(false);
    }
    let group = vni.link_group();
    // The name is ours as well (another program may have moved the link to a group of its own).
    let ours =
        |bridge: &Link| bridge.is_kind("bridge") && (bridge.group == group.get() || bridge.name == vni.bridge_name());
    let links: Vec<Link> = device.into_iter().chain(bridge.filter(ours)).collect();
    if links.iter().any(|link| link.group == group.get()) {
        // Whatever it answers, each link is looked up again: one message spares the second wait for the kernel's
        // readers, it proves nothing.
        let _ = netlink.request(link::delete_group(group));
    }
    for link in &links {
        if netlink.link_by_index(link.index)?.is_some() {
            netlink.delete_link(link.index, &link.name)?;
        }
    }
    Ok(true)
}

/// Whether anything but the VNI's own device is a port of the bridge.
fn is_used(host: &Namespace, vni: Vni, bridge: u32) -> Result<bool, CniError> {
    let name = vni.device_name();
    let ports = host.netlink.ports(bridge)?;
    Ok(ports.iter().any(|port| port.name != name))
}

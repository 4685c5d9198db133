//! Veth pairs between a pod and the host: the pod's end is born in the pod under its final name, the host's end, where there
//! is one, as a port of its bridge, both down and in one message.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::cni::{CniError, CniResult, Interface, code};
use crate::delegate::{Attachment, OwnedLink, Side};
use crate::interface::{described, taken, undone};
use crate::mark::Mark;
use crate::netlink::link::OPERATIONAL;
use crate::netlink::{Link, LinkChange, MacAddress, NewLink};
use crate::netns::{Family, Namespace};
use crate::pause::Pauses;
use crate::random;

/// How names of host ends begin.
const HOST_PREFIX: &str = "veth";
/// Names are random; a clash this often in a row is no chance.
const NAME_TRIES: usize = 10;
/// How long pauses between looks at a port become.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// What a pair is to be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// MAC of the pod's end; random when not given.
    pub mac: Option<MacAddress>,
    /// MTU of both ends in bytes.
    pub mtu: Option<u32>,
    /// Bridge that the host's end becomes a port of.
    pub master: Option<u32>,
}

/// A pair that was made.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The host's end.
    pub host: Link,
    /// The pod's end.
    pub pod: Link,
}

impl Pair {
    /// Makes a pair for an attachment; [`Self::open`] or [`Self::open_port`] brings the host's end up.
    ///
    /// # Errors
    /// The interface exists in the pod, or the kernel refuses.
    pub fn create(at: &Attachment<'_>, wanted: Wanted) -> Result<Self, CniError> {
        let pod = at.pod()?;
        let name = at.interface.as_str();
        let mac = wanted.mac.unwrap_or_else(MacAddress::random);
        for _ in 0..NAME_TRIES {
            let host_name = random::interface_name(HOST_PREFIX);
            // A MAC of our choice is one that udev's MACAddressPolicy leaves alone (cni#943).
            let host_mac =
                at.mark.map_or_else(MacAddress::random, |mark| mark.host_mac(at.container_id.as_str(), name));
            let host = NewLink::named(&host_name).mac(Some(host_mac)).mtu(wanted.mtu).master(wanted.master);
            let host = match at.mark {
                Some(mark) => host.group(mark.group()),
                None => host,
            };
            let peer = NewLink::named(name).mac(Some(mac)).mtu(wanted.mtu).in_namespace(pod);
            let peer = match at.group {
                Some(group) => peer.group(group.get()),
                None => peer,
            };
            match at.host.netlink.create(host.veth(peer)) {
                Ok(told) => {
                    return Self::find(at, told, (&host_name, host_mac), mac)
                        .map_err(|error| undone(error, delete_host_end(at, &host_name)));
                }
                Err(e) if e.errno == Errno::EEXIST => {
                    if pod.netlink.link_by_name(name)?.is_some() {
                        return Err(taken(name));
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        Err(CniError::new(code::DELEGATE, "create veth interface: no free name on the host"))
    }

    /// The pair of which the kernel told one end, or which is looked up by the other: each knows its peer by its index.
    fn find(
        at: &Attachment<'_>,
        told: Option<Link>,
        host: (&str, MacAddress),
        mac: MacAddress,
    ) -> Result<Self, CniError> {
        let (name, (host_name, host_mac)) = (at.interface.as_str(), host);
        let vanished =
            |name: &str| CniError::new(code::DELEGATE, format!("interface \"{name}\" vanished as soon as it was made"));
        let (outside, inside, mtu) = match told {
            Some(Link { index, parent: Some(peer), mtu, .. }) => (index, peer, mtu),
            _ => {
                let pod = at.pod()?.netlink.link_by_name(name)?.ok_or_else(|| vanished(name))?;
                (pod.parent.ok_or_else(|| vanished(host_name))?, pod.index, pod.mtu)
            }
        };
        let end = |index, name: &str, mac, peer| Link {
            index,
            name: name.to_owned(),
            mac: Some(mac),
            kind: Some("veth".to_owned()),
            parent: Some(peer),
            mtu,
            ..Link::default()
        };
        Ok(Self { host: end(outside, host_name, host_mac, inside), pod: end(inside, name, mac, outside) })
    }

    /// Brings the host's end up. It takes no advertisements of routers.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn open(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        at.host.set_sysctl(Family::V6, &self.host.name, "accept_ra", "0")?;
        Ok(at.host.netlink.request(self.change("bring up").up().request())?)
    }

    /// As [`Self::open`], for a bridge's port. If the pod's end is up, waits until the bridge forwards what comes from it.
    /// A port has no IPv6 address of its own: nobody could reach it there, and it would cost duplicate address detection for
    /// each pod.
    ///
    /// # Errors
    /// It did not come up before the deadline; the kernel's refusal.
    pub fn open_port(&self, at: &Attachment<'_>, pod_is_up: bool) -> Result<(), CniError> {
        if at.host.has_ipv6() {
            let change = self.change("take the IPv6 address from").no_link_local();
            match at.host.netlink.request(change.request()) {
                // A link whose MTU is too small for IPv6 has none.
                Err(error) if error.errno != Errno::EAFNOSUPPORT => return Err(error.into()),
                _ => {}
            }
        }
        self.open(at)?;
        if pod_is_up { self.wait_for_port(at) } else { Ok(()) }
    }

    fn change(&self, what: &str) -> LinkChange {
        LinkChange::of(self.host.index, format!("{what} interface \"{}\"", self.host.name))
    }

    /// The carrier's change reaches the bridge from a work queue of the kernel.
    fn wait_for_port(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        let mut pauses = Pauses::up_to(LONGEST_PAUSE);
        loop {
            match at.host.netlink.link_by_index(self.host.index)? {
                Some(link) if link.operational_state == OPERATIONAL => return Ok(()),
                Some(_) if Instant::now() < at.deadline => pauses.sleep(),
                _ => {
                    let name = &self.host.name;
                    return Err(CniError::new(code::DELEGATE, format!("bridge port \"{name}\" did not come up")));
                }
            }
        }
    }

    /// Both ends as what ADD made, the pod's last: deleting either takes the other with it.
    #[must_use]
    pub fn links(&self) -> Vec<OwnedLink> {
        vec![OwnedLink::of(Side::Host, &self.host), OwnedLink::of(Side::Pod, &self.pod)]
    }

    /// Both ends as interfaces of a result: host, pod.
    #[must_use]
    pub fn interfaces(&self, at: &Attachment<'_>) -> [Interface; 2] {
        [described(&self.host, String::new()), described(&self.pod, at.sandbox())]
    }
}

/// Deletes a pair that was just made, of which no more is known than the host's name for it.
fn delete_host_end(at: &Attachment<'_>, name: &str) -> Result<(), CniError> {
    match at.host.netlink.link_by_name(name)? {
        Some(link) => OwnedLink::of(Side::Host, &link).delete(at.host),
        None => Ok(()),
    }
}

/// The host's end of the attachment's pair, found from the pod's.
///
/// # Errors
/// The kernel cannot be asked.
pub fn host_end(at: &Attachment<'_>) -> Result<Option<Link>, CniError> {
    let Some(pod) = at.pod else { return Ok(None) };
    let Some(inside) = pod.netlink.link_by_name(at.interface.as_str())? else { return Ok(None) };
    match inside.parent.filter(|_| inside.is_kind("veth")) {
        Some(index) => {
            let link = at.host.netlink.link_by_index(index)?;
            Ok(link.filter(|link| link.is_kind("veth") && link.parent == Some(inside.index)))
        }
        None => Ok(None),
    }
}

/// The host ends that attachments on record by an installation have, or once had: of its group, and a veth by kind and name.
///
/// # Errors
/// The kernel cannot be asked.
pub fn host_ends(host: &Namespace, mark: Mark) -> Result<Vec<Link>, CniError> {
    let mut links = host.netlink.links()?;
    links.retain(|link| is_host_end(link, mark));
    Ok(links)
}

/// Whether a link is such a host end.
#[must_use]
pub fn is_host_end(link: &Link, mark: Mark) -> bool {
    let digits = link.name.strip_prefix(HOST_PREFIX).unwrap_or_default();
    link.group == mark.group()
        && link.is_kind("veth")
        && digits.len() == 8
        && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The host's end as a result tells of it, for when the pod's namespace is gone and the kernel has yet to take the pair
/// apart. Its name is random, and its MAC random or the attachment's own, so a link that has both is the one.
///
/// # Errors
/// The kernel cannot be asked.
pub fn host_end_of(at: &Attachment<'_>, result: &CniResult) -> Result<Option<Link>, CniError> {
    for told in result.interfaces.iter().filter(|interface| interface.sandbox.is_empty()) {
        let link = at.host.netlink.link_by_name(&told.name)?.filter(|link| link.is_kind("veth"));
        if let Some(link) = link
            && link.mac.is_some_and(|mac| mac.to_string().eq_ignore_ascii_case(&told.mac))
        {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

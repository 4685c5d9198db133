//! What is there without a record: host ends of veth pairs, rules, device-info files and reservations that attachments of ours
//! had, and the devices of VNIs without pods. Each is known by a mark that only our own engine sets; whatever has none is
//! somebody else's, however much it looks like ours.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use musubi_delegates::cni::{CniError, ContainerId, code};
use musubi_delegates::delegate::{OwnedLink, Side};
use musubi_delegates::firewall::{self, Owner};
use musubi_delegates::ipam;
use musubi_delegates::mark::Mark;
use musubi_delegates::netlink::Link;
use musubi_delegates::veth;
use musubi_delegates::vxlan_device::{self, Vni};

use super::{Finding, Kind, Outcome, PATIENCE, Place, What};
use crate::engine::locking;
use crate::records::{Records, Stored};

/// Who holds which addresses, as our indexes say.
type Reserved = (ipam::store::Owner, Vec<IpAddr>);

/// Something without a record.
#[derive(Debug, Clone)]
pub(super) enum Leftover {
    Link { link: Link, container_id: String },
    Rules(Owner),
    DeviceInfo(DeviceInfo),
    Reservation { container_id: String, interface: String, addresses: Vec<IpAddr> },
    Vxlan { vni: Vni, names: Vec<String> },
}

/// A device-info file of ours: `musubi-<container id>-<interface>-<hash>.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeviceInfo {
    name: String,
    container_id: String,
}

impl DeviceInfo {
    /// Both names may hold dashes; an interface's rarely does, and what is taken for the container's serves the lock alone.
    fn of_file(name: &str) -> Option<Self> {
        let (of_attachment, hash) = name.strip_prefix("musubi-")?.strip_suffix(".json")?.rsplit_once('-')?;
        let (container_id, interface) = of_attachment.rsplit_once('-')?;
        let is_hash = !hash.is_empty() && hash.bytes().all(|b| b.is_ascii_alphanumeric());
        let is_ours = is_hash && !interface.is_empty() && ContainerId::parse(container_id).is_ok();
        is_ours.then(|| Self { name: name.to_owned(), container_id: container_id.to_owned() })
    }

    fn is_by(&self, container_id: &str, interface: &str) -> bool {
        let rest = self.name.strip_prefix(&format!("musubi-{container_id}-{interface}-"));
        rest.is_some_and(|hash| !hash.contains('-'))
    }
}

/// Lists what may be left. Where nothing was ever recorded there can be nothing.
pub(super) fn survey(place: Place<'_>, errors: &mut Vec<CniError>) -> Vec<Leftover> {
    let Some(mark) = mark_of(place.state_dir) else { return Vec::new() };
    let reserved = ipam::recorded(place.state_dir);
    let listed = [
        veth::host_ends(place.host, mark)
            .map(|links| links.into_iter().map(|link| host_end(link, mark, &reserved)).collect()),
        firewall::owners_marked(place.host, mark).map(|owners| owners.into_iter().map(Leftover::Rules).collect()),
        device_info_files(place.device_info),
        Ok(reserved.iter().map(reservation).collect()),
        vxlan_device::unused(place.host, place.state_dir)
            .map(|vnis| vnis.into_iter().map(|(vni, names)| Leftover::Vxlan { vni, names }).collect()),
    ];
    let mut found: Vec<Leftover> = Vec::new();
    for list in listed {
        match list {
            Ok(list) => found.extend(list),
            Err(error) => errors.push(error),
        }
    }
    found
}

/// A host's end says nothing of its container by itself; addresses that are still reserved may.
fn host_end(link: Link, mark: Mark, reserved: &[Reserved]) -> Leftover {
    let is_its = |(owner, _): &&Reserved| link.mac == Some(mark.host_mac(&owner.container_id, &owner.interface));
    let container_id = reserved.iter().find(is_its).map(|(owner, _)| owner.container_id.clone()).unwrap_or_default();
    Leftover::Link { link, container_id }
}

fn reservation((owner, addresses): &Reserved) -> Leftover {
    let (container_id, interface) = (owner.container_id.clone(), owner.interface.clone());
    Leftover::Reservation { container_id, interface, addresses: addresses.clone() }
}

fn device_info_files(folder: &Path) -> Result<Vec<Leftover>, CniError> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| CniError::new(code::IO, format!("read {}: {e}", folder.display())))?,
    };
    let files = entries.flatten().filter_map(|entry| DeviceInfo::of_file(entry.file_name().to_str()?));
    Ok(files.map(Leftover::DeviceInfo).collect())
}

/// What records, orphans among them, speak of.
#[derive(Default)]
pub(super) struct Held<'a> {
    /// Container and interface.
    attachments: BTreeSet<(&'a str, &'a str)>,
    rules: BTreeSet<Owner>,
    macs: BTreeSet<[u8; 6]>,
    /// Name and index.
    links: BTreeSet<(&'a str, u32)>,
    /// Containers with a record whose content is lost: what they hold nobody knows.
    damaged: BTreeSet<&'a str>,
}

impl<'a> Held<'a> {
    pub(super) fn by(state_dir: &Path, records: impl Iterator<Item = &'a Stored>) -> Self {
        let mark = mark_of(state_dir);
        let mut held = Self::default();
        for stored in records {
            match stored {
                Stored::Whole(record) => record.attachments.iter().for_each(|attached| {
                    let (container, interface) = (record.container_id.as_str(), attached.interface.as_str());
                    held.attachments.insert((container, interface));
                    held.rules.insert(Owner::new(container, &attached.cni_name, interface).marked(mark));
                    held.macs.extend(mark.map(|mark| mark.host_mac(container, interface).0));
                    held.links.extend(attached.links.iter().filter(|l| l.host).map(|l| (l.name.as_str(), l.index)));
                }),
                Stored::Damaged { key, .. } => {
                    held.damaged.insert(&key.container_id);
                }
            }
        }
        held
    }

    /// Whether a record speaks of it, or may.
    pub(super) fn has(&self, leftover: &Leftover) -> bool {
        match leftover {
            Leftover::Link { link, .. } => {
                // Which links a damaged record speaks of cannot be told.
                !self.damaged.is_empty()
                    || link.mac.is_none_or(|mac| self.macs.contains(&mac.0))
                    || self.links.contains(&(link.name.as_str(), link.index))
            }
            Leftover::Rules(owner) => {
                self.rules.contains(owner) || self.damaged.iter().any(|container| owner.is_of_container(container))
            }
            Leftover::DeviceInfo(file) => {
                self.attachments.iter().any(|(container, interface)| file.is_by(container, interface))
                    || self.damaged.iter().any(|container| file.name.starts_with(&format!("musubi-{container}-")))
            }
            Leftover::Reservation { container_id, interface, .. } => {
                self.attachments.contains(&(container_id.as_str(), interface.as_str()))
                    || self.damaged.contains(container_id.as_str())
            }
            // Who uses a VNI the ports of its bridge say.
            Leftover::Vxlan { .. } => false,
        }
    }
}

impl Leftover {
    pub(super) fn found(&self) -> Finding {
        let without = |what: &str| format!("{what} without a record");
        let (kind, reason, resources) = match self {
            Self::Link { link, .. } => (Kind::HostLink, without("an interface"), vec![host_interface(&link.name)]),
            Self::Rules(owner) => (Kind::Rules, without("rules"), vec![format!("nf_tables rules of {owner}")]),
            Self::DeviceInfo(file) => (Kind::DeviceInfo, without("a device-info file"), vec![file.name.clone()]),
            Self::Reservation { interface, addresses, .. } => {
                let reserved = |address: &IpAddr| format!("address {address} reserved for {interface}");
                (Kind::Reservation, without("a reservation"), addresses.iter().map(reserved).collect())
            }
            Self::Vxlan { vni, names } => {
                let links = names.iter().map(|name| host_interface(name)).collect();
                (Kind::Vxlan, format!("VNI {vni} has no pod on this node"), links)
            }
        };
        let container_id = self.container_id().to_owned();
        Finding { kind, container_id, pod: String::new(), reason, resources, what: What::Leftover(self.clone()) }
    }

    fn container_id(&self) -> &str {
        match self {
            Self::Link { container_id, .. } | Self::Reservation { container_id, .. } => container_id,
            Self::Rules(owner) => owner.container_id(),
            Self::DeviceInfo(file) => &file.container_id,
            Self::Vxlan { .. } => "",
        }
    }

    /// Whether it is still there. What cannot be looked at is not taken for left over.
    pub(super) fn is_there(&self, place: Place<'_>) -> bool {
        match self {
            Self::Link { link, .. } => {
                let now = place.host.netlink.link_by_index(link.index).ok().flatten();
                now.is_some_and(|now| {
                    (&now.name, now.mac, now.group, now.parent) == (&link.name, link.mac, link.group, link.parent)
                })
            }
            Self::Rules(owner) => mark_of(place.state_dir)
                .and_then(|mark| firewall::owners_marked(place.host, mark).ok())
                .is_some_and(|owners| owners.contains(owner)),
            Self::DeviceInfo(file) => self.path(place, file).exists(),
            Self::Reservation { container_id, interface, .. } => {
                let is_its =
                    |(owner, _): &Reserved| (&owner.container_id, &owner.interface) == (container_id, interface);
                ipam::recorded(place.state_dir).iter().any(is_its)
            }
            Self::Vxlan { vni, .. } => {
                vxlan_device::unused(place.host, place.state_dir).is_ok_and(|unused| unused.contains_key(vni))
            }
        }
    }

    /// Removes it, after another look under the lock of its container, where that is known. Where it is not, that it was there
    /// before the records were read, and is still, is proof enough: what an ADD makes has a record before it.
    pub(super) fn release(&self, place: Place<'_>, deadline: Instant) -> Result<Outcome, CniError> {
        let container = ContainerId::parse(self.container_id()).ok();
        let lock = container
            .map(|container| locking::take(place.state_dir, &container, Instant::now() + PATIENCE))
            .transpose()?;
        let outcome = self.release_unless_held(place, deadline);
        if let Some(lock) = lock {
            lock.remove();
        }
        outcome
    }

    fn release_unless_held(&self, place: Place<'_>, deadline: Instant) -> Result<Outcome, CniError> {
        if !self.is_there(place) {
            return Ok(Outcome::Settled);
        }
        let (records, orphans) = super::read(place.state_dir)?;
        if Held::by(place.state_dir, records.iter().chain(&orphans)).has(self) {
            return Ok(Outcome::Settled);
        }
        self.remove(place, deadline).map(|()| Outcome::Released)
    }

    fn remove(&self, place: Place<'_>, deadline: Instant) -> Result<(), CniError> {
        match self {
            Self::Link { link, .. } => OwnedLink::of(Side::Host, link).delete(place.host),
            Self::Rules(owner) => firewall::forget(place.host, owner),
            Self::DeviceInfo(file) => {
                let path = self.path(place, file);
                fs::remove_file(&path).map_err(|e| CniError::new(code::IO, format!("remove {}: {e}", path.display())))
            }
            Self::Reservation { container_id, interface, .. } => {
                no_link_uses_it(place, container_id, interface)?;
                let errors = ipam::release_container(place.state_dir, container_id, deadline, &|owner, entry| {
                    entry.recorded && owner.interface == *interface
                });
                errors.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
            }
            Self::Vxlan { vni, names } => {
                let bridge = names.iter().find(|name| **name != vni.device_name()).cloned();
                let bridge = bridge.unwrap_or_else(|| vni.bridge_name());
                vxlan_device::remove_if_unused(place.host, place.state_dir, *vni, &bridge).map(drop)
            }
        }
    }

    fn path(&self, place: Place<'_>, file: &DeviceInfo) -> PathBuf {
        place.device_info.join(&file.name)
    }
}

fn mark_of(state_dir: &Path) -> Option<Mark> {
    Records::of(state_dir).mark()
}

fn host_interface(name: &str) -> String {
    format!("host interface {name}")
}

/// An address is given back only when no link can use it any more.
fn no_link_uses_it(place: Place<'_>, container_id: &str, interface: &str) -> Result<(), CniError> {
    let Some(mark) = mark_of(place.state_dir) else { return Ok(()) };
    let mac = mark.host_mac(container_id, interface);
    match veth::host_ends(place.host, mark)?.into_iter().find(|link| link.mac == Some(mac)) {
        None => Ok(()),
        Some(link) => Err(CniError::new(
            code::TRY_AGAIN,
            format!("interface {interface} is still there by its host's end \"{}\"", link.name),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_info_file_is_of_an_attachment_by_both_its_names() {
        let file = |name: &str| DeviceInfo::of_file(name);
        for (name, container_id) in [
            ("musubi-c1-net1-0a1b2c3d.json", Some("c1")),
            ("musubi-pod-1-net1-0a.json", Some("pod-1")),
            ("musubi-c1-net1.json", None),
            ("musubi--net1-0a.json", None),
            ("musubi-c1-net1-0a", None),
            ("musubi-c1-net1-.json", None),
            ("musubi-c1--0a.json", None),
            ("c1-net1-0a.json", None),
            ("default-sriov-net1-device.json", None),
        ] {
            assert_eq!(file(name).map(|file| file.container_id).as_deref(), container_id, "{name}");
        }
        let is_by = |name: &str, container: &str, interface: &str| file(name).unwrap().is_by(container, interface);
        assert!(is_by("musubi-c1-net1-0a.json", "c1", "net1"));
        assert!(is_by("musubi-c1-a-b-0a.json", "c1", "a-b"), "an interface with a dash");
        assert!(is_by("musubi-c-1-net1-0a.json", "c-1", "net1"), "a container with a dash");
        assert!(!is_by("musubi-c1-net1-0a.json", "c1", "net"));
        assert!(!is_by("musubi-c1-net1-0a.json", "c", "1-net1"));
        assert!(!is_by("musubi-c1-net1-net2-0a.json", "c1", "net1"), "that is interface net1-net2");
    }
}

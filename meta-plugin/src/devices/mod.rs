//! The devices that a pod's networks use: which of those that the kubelet allocated to the pod goes to which network. One
//! allocator a pod, taken from in plan order, so that no device is handed out twice. Asking the kubelet is in [`kubelet`],
//! the files that describe a device in [`info`].

pub mod info;
pub mod kubelet;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use musubi_delegates::cni::{CniError, ContainerId};
use musubi_delegates::mark::Mark;

use self::info::Folder;
use crate::cancel::Cancel;
use crate::check::request;
use crate::config::Config;
use crate::networks::Wanted;
use crate::store::Pod;

/// A device allocated to a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The device plugin's resource.
    pub resource: String,
    /// Its id, which for a PCI device is the address.
    pub id: String,
}

/// What a plan has of devices.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    pool: Option<Pool>,
    files: Option<Files>,
}

/// Where the devices of a container's attachments are described.
#[derive(Debug, Clone)]
struct Files {
    folder: Folder,
    mark: Mark,
    container: ContainerId,
}

/// What the kubelet says of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pool {
    /// By resource, in the order they are taken: that of their texts, as in Multus. The kubelet's own order changes from
    /// call to call.
    allocated: BTreeMap<String, BTreeSet<String>>,
    /// Resources of which the node has devices; others are mere numbers, such as those that tell where a bridge is.
    allocatable: BTreeSet<String>,
}

/// What there is for a network that names a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// A device, taken.
    Device(Device),
    /// No device is left.
    None {
        /// Whether the resource has devices on this node.
        is_allocatable: bool,
    },
    /// Nobody was asked.
    Unasked,
}

impl Pool {
    /// Makes one of pairs of resource and device, and of the resources that have devices.
    pub fn new(
        allocated: impl IntoIterator<Item = (String, String)>,
        allocatable: impl IntoIterator<Item = String>,
    ) -> Self {
        let mut pool = Self { allocatable: allocatable.into_iter().collect(), ..Self::default() };
        for (resource, id) in allocated {
            pool.allocated.entry(resource).or_default().insert(id);
        }
        pool
    }

    /// Whether it has a device for each network.
    fn is_enough_for(&self, users: &Users<'_>) -> bool {
        users
            .iter()
            .all(|(resource, networks)| self.allocated.get(*resource).map_or(0, BTreeSet::len) >= networks.len())
    }

    fn take(&mut self, resource: &str) -> Taken {
        match self.allocated.get_mut(resource).and_then(BTreeSet::pop_first) {
            Some(id) => Taken::Device(Device { resource: resource.to_owned(), id }),
            None => Taken::None { is_allocatable: self.allocatable.contains(resource) },
        }
    }
}

impl Devices {
    /// For a plan of no pod's ADD: no network gets a device, and none is missed.
    #[must_use]
    pub fn unasked() -> Self {
        Self::default()
    }

    /// For a plan of a pod whose allocation is known.
    #[must_use]
    pub fn of(pool: Pool) -> Self {
        Self { pool: Some(pool), files: None }
    }

    /// For ADD. The kubelet is asked only if a network names a resource.
    ///
    /// # Errors
    /// Code 11: the kubelet cannot be asked or does not know the pod yet, or nobody waits for it any more.
    pub fn of_pod(
        config: &Config,
        pod: Option<&Pod>,
        wanted: &[Wanted],
        container: &ContainerId,
        deadline: Instant,
        cancel: &Cancel,
    ) -> Result<Self, CniError> {
        let users = by_resource(wanted);
        let pool = match (pod, &config.pod_resources_socket) {
            (Some(pod), Some(socket)) if !users.is_empty() => kubelet::ask(socket, pod, &users, deadline, cancel)?,
            _ => Pool::default(),
        };
        // A network without a resource may have a device, too, and say so itself.
        let described = !users.is_empty()
            || wanted.iter().any(|wanted| request::declares(&wanted.network.list, "CNIDeviceInfoFile"));
        let mark = described.then(|| mark(&config.cni_dir)).flatten();
        let files = mark.map(|mark| Files { folder: config.device_info.clone(), mark, container: container.clone() });
        Ok(Self { pool: Some(pool), files })
    }

    /// Takes the next device of a resource.
    pub fn take(&mut self, resource: &str) -> Taken {
        self.pool.as_mut().map_or(Taken::Unasked, |pool| pool.take(resource))
    }

    /// Where the device behind an interface of the pod is described; `None` where there is no pod.
    #[must_use]
    pub fn info_file(&self, interface: &str) -> Option<PathBuf> {
        let of = |files: &Files| files.folder.of_attachment(files.mark, files.container.as_str(), interface);
        self.files.as_ref().map(of)
    }
}

/// The installation's mark, from the first ADD on. Without a state folder ADD fails where it has to write there.
fn mark(state_dir: &Path) -> Option<Mark> {
    Mark::of(state_dir).or_else(|| {
        std::fs::create_dir_all(state_dir).ok()?;
        Mark::of(state_dir)
    })
}

/// The networks that name each resource; one that is selected twice stands there twice.
type Users<'a> = BTreeMap<&'a str, Vec<&'a str>>;

fn by_resource(wanted: &[Wanted]) -> Users<'_> {
    let mut users = Users::new();
    for network in wanted.iter().map(|wanted| &wanted.network) {
        if let Some(resource) = &network.resource_name {
            users.entry(resource).or_default().push(&network.name);
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(allocated: &[(&str, &str)], allocatable: &[&str]) -> Pool {
        let pairs = allocated.iter().map(|(resource, id)| ((*resource).to_owned(), (*id).to_owned()));
        Pool::new(pairs, allocatable.iter().map(|resource| (*resource).to_owned()))
    }

    fn device(resource: &str, id: &str) -> Taken {
        Taken::Device(Device { resource: resource.to_owned(), id: id.to_owned() })
    }

    #[test]
    fn each_device_is_taken_once_and_in_the_order_of_the_ids() {
        let orders: [&[&str]; 2] =
            [&["0000:03:02.3", "0000:03:02.1"], &["0000:03:02.1", "0000:03:02.3", "0000:03:02.1"]];
        for ids in orders {
            let allocated: Vec<_> = ids.iter().map(|id| ("a.com/vf", *id)).chain([("b.com/nic", "7")]).collect();
            let mut devices = Devices::of(pool(&allocated, &["a.com/vf"]));
            assert_eq!(devices.take("a.com/vf"), device("a.com/vf", "0000:03:02.1"));
            assert_eq!(devices.take("b.com/nic"), device("b.com/nic", "7"));
            assert_eq!(devices.take("a.com/vf"), device("a.com/vf", "0000:03:02.3"));
            assert_eq!(devices.take("a.com/vf"), Taken::None { is_allocatable: true });
            assert_eq!(devices.take("b.com/nic"), Taken::None { is_allocatable: false });
            assert_eq!(devices.take("a.com"), Taken::None { is_allocatable: false });
        }
        assert_eq!(Devices::unasked().take("a.com/vf"), Taken::Unasked);
    }

    #[test]
    fn the_same_id_of_two_resources_is_two_devices() {
        let mut devices = Devices::of(pool(&[("a.com/x", "0"), ("a.com/y", "0")], &[]));
        assert_eq!(devices.take("a.com/y"), device("a.com/y", "0"));
        assert_eq!(devices.take("a.com/x"), device("a.com/x", "0"));
    }
}

//! What a record says: all that is done for one attachment of ours, so that DEL needs nothing else. Where records are kept
//! is the business of [`crate::records`].

use std::fs;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::OnceLock;

use musubi_delegates::cni::{CniError, CniResult, ContainerId, InterfaceName, NetworkName, Version};
use musubi_delegates::delegate::{OwnedLink, Side};
use musubi_delegates::mark::fnv1a;
use musubi_delegates::netns::Identity;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The format that records are written in.
pub const VERSION: u32 = 1;

/// How far an attachment of ours has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// ADD has begun and not ended; what is listed may be there.
    Adding,
    /// ADD has ended.
    Attached,
    /// DEL has begun, or taking back an ADD that failed.
    Deleting,
}

/// One attachment of ours: a pod's sandbox with all its networks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Format of the file.
    pub version: u32,
    /// Whose it is.
    pub container_id: String,
    /// Our own network's name.
    pub network: String,
    /// The interface the runtime asked for.
    pub interface: String,
    /// The pod, where there is one.
    pub pod: Option<PodName>,
    /// `CNI_NETNS` of ADD.
    pub netns: PathBuf,
    /// Which namespace that was.
    pub namespace: NamespaceId,
    /// `/proc/sys/kernel/random/boot_id` of ADD.
    pub boot_id: String,
    /// `IFLA_GROUP` of the links inside the pod.
    pub group: NonZeroU32,
    /// How far it has come.
    pub state: State,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Folder of manifests that its network-status was written below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_dir: Option<PathBuf>,
    /// `CNI_ARGS` as the runtime sent them.
    pub args: String,
    /// Folders with plugin binaries.
    pub path: Vec<PathBuf>,
    /// Id of the request that ADD was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// The process of ours that works on it, or did last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Running>,
    /// The external plugin that runs now; its process id is its group's too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Running>,
    /// What DEL tried in vain, how often.
    #[serde(default)]
    pub failed_deletes: u32,
    /// The network-status is not written yet.
    #[serde(default)]
    pub status_pending: bool,
    /// The networks in the order they were made.
    pub attachments: Vec<Attached>,
}

/// A pod's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid as the store has it.
    pub uid: String,
}

/// [`Identity`] in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct NamespaceId {
    pub cookie: Option<u64>,
    pub device: u64,
    pub inode: u64,
}

impl From<Identity> for NamespaceId {
    fn from(Identity { cookie, device, inode }: Identity) -> Self {
        Self { cookie, device, inode }
    }
}

impl From<NamespaceId> for Identity {
    fn from(NamespaceId { cookie, device, inode }: NamespaceId) -> Self {
        Self { cookie, device, inode }
    }
}

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// Its process id.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: tells it from a later process of that id.
    pub start_time: u64,
}

impl Running {
    /// The process of that id, unless it has ended.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        start_time(pid).map(|start_time| Self { pid, start_time })
    }

    /// This process.
    #[must_use]
    pub fn this() -> Option<Self> {
        static THIS: OnceLock<Option<Running>> = OnceLock::new();
        *THIS.get_or_init(|| Self::of(std::process::id()))
    }

    /// Whether it has not ended yet. Means nothing after another boot.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }
}

/// One network of a record.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attached {
    /// `namespace/name`, or the configuration's own name.
    pub network: String,
    /// Its name in the configuration.
    pub cni_name: String,
    /// Its interface in the pod.
    pub interface: String,
    /// Whether it is the cluster default.
    pub default: bool,
    /// The configuration's CNI version.
    pub cni_version: String,
    /// `disableCheck` of the list.
    #[serde(default)]
    pub disable_check: bool,
    /// `CNI_ARGS` its plugins are sent.
    pub args: String,
    /// Gateways of the pod's default route, where it has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_route: Option<Vec<IpAddr>>,
    /// Whether any plugin of it was begun.
    #[serde(default)]
    pub begun: bool,
    /// Its plugins.
    pub delegates: Vec<RecordedDelegate>,
    /// The chain's final result, of version 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Where its device is described.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_info_file: Option<PathBuf>,
    /// What stood there after its plugins had run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_info: Option<Value>,
    /// Links made for it alone.
    #[serde(default)]
    pub links: Vec<RecordedLink>,
}

/// One plugin of a network of a record.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedDelegate {
    /// Its `type`.
    #[serde(rename = "type")]
    pub plugin_type: String,
    /// Whether we did it ourselves.
    pub native: bool,
    /// The bytes it was sent on ADD, `prevResult` aside.
    pub config: String,
    /// Whether it was begun.
    #[serde(default)]
    pub begun: bool,
}

/// [`OwnedLink`] in a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RecordedLink {
    pub host: bool,
    pub name: String,
    pub index: u32,
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<u32>,
}

impl From<OwnedLink> for RecordedLink {
    fn from(link: OwnedLink) -> Self {
        Self { host: link.side == Side::Host, name: link.name, index: link.index, kind: link.kind, peer: link.peer }
    }
}

impl From<&RecordedLink> for OwnedLink {
    fn from(link: &RecordedLink) -> Self {
        let side = if link.host { Side::Host } else { Side::Pod };
        Self { side, name: link.name.clone(), index: link.index, kind: link.kind.clone(), peer: link.peer }
    }
}

impl Attached {
    /// The version of its configuration.
    #[must_use]
    pub fn version(&self) -> Version {
        Version::parse(&self.cni_version).unwrap_or(Version::LATEST)
    }

    /// Its interface in the pod.
    ///
    /// # Errors
    /// The record holds none that is a name.
    pub fn interface_name(&self) -> Result<InterfaceName, CniError> {
        InterfaceName::parse(&self.interface)
    }

    /// The final result, where ADD came that far.
    #[must_use]
    pub fn result(&self) -> Option<CniResult> {
        CniResult::parse(self.result.as_ref()?, Version::LATEST).ok()
    }

    /// Keeps a result.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn set_result(&mut self, result: &CniResult) -> Result<(), CniError> {
        self.result = Some(result.to_json(Version::LATEST)?);
        Ok(())
    }
}

/// Which record: container, interface and network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The container.
    pub container_id: String,
    /// The interface the runtime asked for.
    pub interface: String,
    /// Our own network's name.
    pub network: String,
}

impl Key {
    /// The key of a request.
    #[must_use]
    pub fn new(container_id: &ContainerId, interface: &InterfaceName, network: &NetworkName) -> Self {
        Self { container_id: container_id.to_string(), interface: interface.to_string(), network: network.to_string() }
    }

    /// The `IFLA_GROUP` of its links: 31 bits of a hash over all three, never 0.
    #[must_use]
    pub fn group(&self) -> NonZeroU32 {
        let hash = fnv1a(self.file_name().bytes());
        let folded = (hash ^ (hash >> 32)) as u32 & 0x7fff_ffff;
        NonZeroU32::new(folded).unwrap_or(NonZeroU32::MIN)
    }

    /// Its file's name. `:` is in none of the three, so the name can be taken apart again.
    pub(crate) fn file_name(&self) -> String {
        format!("{}:{}:{}.json", self.container_id, self.interface, self.network)
    }

    /// The key that a file's name says.
    pub(crate) fn of_file(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(".json")?.splitn(3, ':');
        let mut next = || parts.next().map(str::to_owned);
        Some(Self { container_id: next()?, interface: next()?, network: next()? })
    }
}

impl Record {
    /// Which record it is.
    #[must_use]
    pub fn key(&self) -> Key {
        Key {
            container_id: self.container_id.clone(),
            interface: self.interface.clone(),
            network: self.network.clone(),
        }
    }

    /// `namespace/name` of the pod; empty without one.
    #[must_use]
    pub fn pod_key(&self) -> String {
        self.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)).unwrap_or_default()
    }

    /// Whether it was made in this boot; after another one no kernel object of it is left.
    #[must_use]
    pub fn is_of_this_boot(&self) -> bool {
        self.boot_id == boot_id()
    }

    /// Whether an ADD that has not ended yet is at work on it.
    #[must_use]
    pub fn is_being_added(&self) -> bool {
        let at_work = || self.worker.is_some_and(|worker| worker.is_alive());
        self.state == State::Adding && self.is_of_this_boot() && at_work()
    }

    /// An ADD that died may have begun any delegate of ours since it wrote the record last; taking back what was never
    /// done is no error. An external plugin is recorded before it runs, so it was begun only if the record says so.
    pub(crate) fn assume_begun(&mut self) {
        for attached in &mut self.attachments {
            for delegate in attached.delegates.iter_mut().filter(|delegate| delegate.native) {
                delegate.begun = true;
                attached.begun = true;
            }
        }
    }
}

/// This boot's id; empty where `/proc` does not tell.
#[must_use]
pub fn boot_id() -> String {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    let read = || fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    BOOT_ID.get_or_init(read).clone()
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// When a process was started, in clock ticks since boot (proc(5), field 22 of stat); `None` when it has ended, even if
/// nobody has waited for it yet.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command in parentheses may itself hold spaces and parentheses; counting begins after the last.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
impl Record {
    /// One of this boot that is still being added, without a pod or an attachment: what a test begins with.
    pub(crate) fn begun(key: &Key) -> Self {
        Self {
            version: VERSION,
            container_id: key.container_id.clone(),
            network: key.network.clone(),
            interface: key.interface.clone(),
            pod: None,
            netns: PathBuf::from("/run/netns/x"),
            namespace: NamespaceId { cookie: Some(1), device: 4, inode: 5 },
            boot_id: boot_id(),
            group: key.group(),
            state: State::Adding,
            since: now(),
            manifest_dir: None,
            args: String::new(),
            path: Vec::new(),
            request_id: String::new(),
            worker: None,
            running: None,
            failed_deletes: 0,
            status_pending: false,
            attachments: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(container_id: &str, interface: &str, network: &str) -> Key {
        Key { container_id: container_id.into(), interface: interface.into(), network: network.into() }
    }

    /// Links of a running pod are found by it after an upgrade, so it must never change.
    #[test]
    fn groups_are_fixed_and_differ_by_every_part() {
        let groups: std::collections::BTreeSet<u32> =
            [key("c1", "eth0", "net"), key("c2", "eth0", "net"), key("c1", "eth1", "net"), key("c1", "eth0", "ten")]
                .iter()
                .map(|key| key.group().get())
                .collect();
        assert_eq!(groups.len(), 4);
        assert!(groups.iter().all(|group| *group <= 0x7fff_ffff));
        assert_eq!(key("c1", "eth0", "net").group().get(), 1_636_687_087);
    }

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let own = start_time(std::process::id()).unwrap();
        assert_eq!(start_time(std::process::id()), Some(own));
        assert_eq!(start_time(u32::MAX), None);
    }
}

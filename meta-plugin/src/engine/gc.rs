//! GC: removing what nobody needs any more. The CNI verb works on the records of one network; `musubi gc` on all records
//! whose pod is gone. Neither touches what it does not know.

use std::path::Path;
use std::time::{Duration, Instant};

use musubi_delegates::cni::{CniError, Command, ContainerId, NetConf, NetworkName, ValidAttachment, Version, code};
use musubi_delegates::external::{self, Surroundings};
use musubi_delegates::netns::Namespace;
use musubi_delegates::registry;
use serde_json::{Value, json};

use super::teardown::{Teardown, namespace_of};
use super::{Hands, Operation, by_name, is_time, joined, locking, withdraw};
use crate::lock::{ContainerLock, GcFence};
use crate::record::{Attached, Key, Record, RecordedDelegate};
use crate::records::{Records, Stored};
use crate::status;
use crate::store::DirectoryStore;

/// How long GC waits for a container that something else works on before leaving it to the next time.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long another's plugin may take for its GC.
const PLUGIN_TIME: Duration = Duration::from_secs(10);

impl Operation<'_> {
    /// Records of this network that the runtime does not list are torn down; then each delegate's network is told what
    /// our records still hold for it, never the runtime's list, which knows nothing of it.
    pub(super) fn gc(&self) -> Result<(), CniError> {
        let network = self.own_network()?;
        let valid = self.request.conf.valid_attachments()?.ok_or_else(|| {
            CniError::new(code::CONFIG, "key \"cni.dev/valid-attachments\": is missing; GC needs the list of attachments in use, which may be empty")
        })?;
        let mut errors = Vec::new();
        for stored in self.records.all()? {
            let key = stored.key();
            let listed = valid.iter().any(|v| v.container_id == key.container_id && v.interface == key.interface);
            if key.network == network.as_str() && !listed && !is_being_added(&stored) {
                errors.extend(self.collect(&stored).err());
            }
        }
        errors.extend(self.tell_delegates());
        if errors.is_empty() { Ok(()) } else { Err(joined(&errors)) }
    }

    fn collect(&self, seen: &Stored) -> Result<(), CniError> {
        let key = &seen.key();
        let container = ContainerId::parse(&key.container_id)?;
        // Whoever holds it is making or removing this very attachment.
        let Ok(lock) = locking::take(&self.config.cni_dir, &container, Instant::now() + PATIENCE) else {
            return Ok(());
        };
        let Some(stored) = self.records.read(key)?.filter(|stored| is_unchanged(seen, stored)) else {
            lock.remove();
            return Ok(());
        };
        let errors = self.tear_down_stored(&stored, &lock);
        if !errors.is_empty() {
            return Err(joined(&errors));
        }
        self.records.remove(key)?;
        if let Stored::Whole(record) = &stored
            && let Some(pod) = &record.pod
        {
            let written = status::written(record);
            let store = self.store.as_ref();
            withdraw::status(store, &self.records, key, &pod.namespace, &pod.name, written.as_deref());
        }
        lock.remove();
        Ok(())
    }

    fn tell_delegates(&self) -> Vec<CniError> {
        // From here on no ADD can reserve what its record does not show to us.
        let _fence = match GcFence::alone(&self.config.cni_dir, self.deadline) {
            Ok(fence) => fence,
            Err(error) => return vec![error],
        };
        let mut records = Vec::new();
        let all = match self.records.all() {
            Ok(all) => all,
            Err(error) => return vec![error],
        };
        for stored in all {
            match stored {
                Stored::Whole(record) => records.push(*record),
                Stored::Damaged { key, .. } => {
                    // Its pod may live, and nobody knows what it holds.
                    tracing::warn!("the record of container {} is damaged: no address is collected", key.container_id);
                    return Vec::new();
                }
            }
        }
        let mut told: Vec<(String, String)> = Vec::new();
        let mut errors = Vec::new();
        for attached in records.iter().flat_map(|record| &record.attachments) {
            let Ok(network) = NetworkName::parse(&attached.cni_name) else { continue };
            let valid = held(&records, &attached.cni_name);
            for delegate in &attached.delegates {
                let what = (attached.cni_name.clone(), delegate.plugin_type.clone());
                if told.contains(&what) {
                    continue;
                }
                told.push(what);
                let outcome = self.tell(&network, attached.version(), delegate, &valid);
                errors.extend(
                    outcome
                        .map_err(|e| {
                            e.context(format!("network {}, plugin {}", attached.network, delegate.plugin_type))
                        })
                        .err(),
                );
            }
        }
        errors
    }

    fn tell(
        &self,
        network: &NetworkName,
        version: Version,
        delegate: &RecordedDelegate,
        valid: &[ValidAttachment],
    ) -> Result<(), CniError> {
        let mut conf = NetConf::parse(delegate.config.as_bytes())?;
        conf.remove("runtimeConfig");
        conf.set_valid_attachments(valid);
        if delegate.native {
            let native = registry::parse(&delegate.plugin_type, &conf)
                .ok_or_else(|| CniError::new(code::CONFIG, "the type is not bundled any more"))??;
            return native.gc(&self.hands().context(network, version, &conf), valid);
        }
        if version < Version::V1_1_0 {
            return Ok(());
        }
        let plugin = external::find(&delegate.plugin_type, &self.path)?;
        // ADDs wait meanwhile.
        let hands = Hands { deadline: self.deadline.min(Instant::now() + PLUGIN_TIME), ..self.hands() };
        hands.exec_network(Command::Gc, &plugin, &conf.to_bytes()).map(drop)
    }
}

/// What an ADD is making at this moment is no garbage, whatever list was made before.
fn is_being_added(stored: &Stored) -> bool {
    matches!(stored, Stored::Whole(record) if record.is_being_added())
}

/// Whether a record is still what it was before its lock was taken.
fn is_unchanged(before: &Stored, now: &Stored) -> bool {
    match (before, now) {
        (Stored::Whole(before), Stored::Whole(now)) => {
            (before.state, before.since, before.worker) == (now.state, now.since, now.worker)
        }
        (Stored::Damaged { .. }, Stored::Damaged { .. }) => true,
        _ => false,
    }
}

/// What the records hold of a CNI network, whichever of our own networks it came by.
fn held(records: &[Record], cni_name: &str) -> Vec<ValidAttachment> {
    let mut valid = Vec::new();
    for record in records {
        for attached in record.attachments.iter().filter(|a| a.cni_name == cni_name) {
            valid.push(ValidAttachment {
                container_id: record.container_id.clone(),
                interface: attached.interface.clone(),
            });
        }
    }
    valid
}

/// How long an orphan rests between two tries.
const ORPHAN_INTERVAL: Duration = Duration::from_secs(60);

/// A record that `musubi gc` takes for left over.
#[derive(Debug)]
pub struct Stale {
    /// Which.
    pub key: Key,
    /// `namespace/name` of its pod.
    pub pod: String,
    /// Why, for a person.
    pub reason: String,
    /// What it still holds, for a person.
    pub resources: Vec<String>,
    /// Whether DEL has already given it up.
    pub orphan: bool,
    stored: Stored,
}

impl Stale {
    /// As `musubi gc -o json` shows it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({"containerId": self.key.container_id, "pod": self.pod, "reason": self.reason, "resources": self.resources})
    }
}

/// Finds the records of a state folder whose pod is gone: its namespace does not exist any more, or is another's, or the
/// node has booted since; records whose content is lost; and orphans of earlier DELs.
///
/// # Errors
/// The state folder cannot be read.
pub fn find_stale(state_dir: &Path) -> Result<Vec<Stale>, CniError> {
    let records = Records::of(state_dir);
    let mut stale = Vec::new();
    for stored in records.all()? {
        if let Some(reason) = why_stale(&stored) {
            stale.push(Stale::of(stored, reason, false));
        }
    }
    for stored in records.orphaned()? {
        stale.push(Stale::of(stored, "its DEL could not release everything".to_owned(), true));
    }
    Ok(stale)
}

impl Stale {
    fn of(stored: Stored, reason: String, orphan: bool) -> Self {
        let (pod, resources) = match &stored {
            Stored::Whole(record) => {
                (record.pod_key(), record.attachments.iter().filter(|a| a.begun).flat_map(resources).collect())
            }
            Stored::Damaged { .. } => (String::new(), Vec::new()),
        };
        Self { key: stored.key(), pod, reason, resources, orphan, stored }
    }

    /// Releases it through its delegates, under the container's lock. Does nothing when it has changed meanwhile.
    ///
    /// # Errors
    /// What could not be released; the record stays.
    pub fn release(&self, state_dir: &Path, deadline: Instant) -> Result<(), CniError> {
        self.under_lock(state_dir, |records, stored, lock| {
            if self.orphan && records.read(&self.key)?.is_some() {
                return Err(CniError::new(
                    code::TRY_AGAIN,
                    "the container is attached anew; what its last DEL left waits for the next",
                )
                .with_details("it is released after the container's DEL"));
            }
            if matches!(stored, Stored::Damaged { .. }) && !records.is_of_earlier_boot(&self.key) {
                return Err(CniError::new(
                    code::TRY_AGAIN,
                    "its record is damaged, and whether its pod still runs nobody knows",
                )
                .with_details("its DEL, or the runtime's GC, releases what it has"));
            }
            self.release_now(records, stored, state_dir, lock, deadline)
        })
    }

    /// Does something with the record as it is now, under the lock of its container, unless it has changed meanwhile.
    fn under_lock(
        &self,
        state_dir: &Path,
        work: impl FnOnce(&Records, &Stored, &ContainerLock) -> Result<(), CniError>,
    ) -> Result<(), CniError> {
        let container = ContainerId::parse(&self.key.container_id)?;
        let lock = locking::take(state_dir, &container, Instant::now() + PATIENCE)?;
        let records = Records::of(state_dir);
        let now = if self.orphan { records.read_orphan(&self.key) } else { records.read(&self.key) };
        let outcome = match now?.filter(|now| is_unchanged(&self.stored, now)) {
            Some(stored) => work(&records, &stored, &lock),
            None => Ok(()),
        };
        lock.remove();
        outcome
    }

    fn release_now(
        &self,
        records: &Records,
        stored: &Stored,
        state_dir: &Path,
        lock: &ContainerLock,
        deadline: Instant,
    ) -> Result<(), CniError> {
        let errors = tear_down(state_dir, records, stored, lock, deadline)?;
        if !errors.is_empty() {
            return Err(joined(&errors));
        }
        if self.orphan {
            return records.remove_orphan(&self.key);
        }
        records.remove(&self.key)?;
        if let Stored::Whole(record) = stored
            && let (Some(pod), Some(folder)) = (&record.pod, &record.manifest_dir)
        {
            let (store, written) = (DirectoryStore::empty(folder), status::written(record));
            withdraw::status(&store, records, &self.key, &pod.namespace, &pod.name, written.as_deref());
        }
        Ok(())
    }
}

fn tear_down(
    state_dir: &Path,
    records: &Records,
    stored: &Stored,
    lock: &ContainerLock,
    deadline: Instant,
) -> Result<Vec<CniError>, CniError> {
    let record = match stored {
        Stored::Whole(record) => record,
        Stored::Damaged { key, .. } => return Ok(by_name::release(state_dir, key, false, deadline)),
    };
    locking::end_running(record);
    let host = Namespace::current()?;
    let pod = namespace_of(record, None);
    let hands = Hands { host: &host, path: &record.path, state_dir, deadline, programs: Surroundings::default() };
    Ok(Teardown { hands, lock: Some(lock), record, pod: pod.as_ref(), records }.run())
}

fn why_stale(stored: &Stored) -> Option<String> {
    let record = match stored {
        Stored::Damaged { problem, .. } => return Some(format!("its record is damaged: {problem}")),
        Stored::Whole(record) => record,
    };
    if !record.is_of_this_boot() {
        return Some("the node has booted since".to_owned());
    }
    match Namespace::open(&record.netns) {
        Ok(None) => Some(format!("its network namespace {} is gone", record.netns.display())),
        Ok(Some(namespace)) if !namespace.identity.is_same(&record.namespace.into()) => {
            Some(format!("{} is another pod's network namespace now", record.netns.display()))
        }
        // A namespace that cannot be looked at is no reason to take anything away.
        Ok(Some(_)) | Err(_) => None,
    }
}

/// What an attachment holds, for a person: addresses and links.
fn resources(attached: &Attached) -> Vec<String> {
    let mut resources = Vec::new();
    for ip in attached.result().unwrap_or_default().ips {
        resources.push(format!("address {} of network {}", ip.address.addr(), attached.network));
    }
    for link in attached.links.iter().filter(|link| link.host) {
        resources.push(format!("host interface {}", link.name));
    }
    if resources.is_empty() {
        resources.push(format!("network {} on {}", attached.network, attached.interface));
    }
    resources
}

/// Releases what earlier boots left before the first address of this one is given: their pods cannot come back, and
/// their addresses would be missing.
///
/// # Errors
/// The state folder cannot be read.
pub fn release_earlier_boots(state_dir: &Path, own: &ContainerId, deadline: Instant) -> Result<(), CniError> {
    let marker = state_dir.join("boot");
    let boot = crate::record::boot_id();
    if std::fs::read_to_string(&marker).is_ok_and(|known| known == boot) {
        return Ok(());
    }
    for stale in find_stale(state_dir)? {
        // A record that lost its content lost it in the power cut before this boot.
        let earlier = match &stale.stored {
            Stored::Whole(record) => !record.is_of_this_boot(),
            Stored::Damaged { .. } => true,
        };
        if !earlier || stale.orphan || stale.key.container_id == own.as_str() {
            continue;
        }
        if let Err(error) = stale.under_lock(state_dir, |records, stored, lock| {
            stale.release_now(records, stored, state_dir, lock, deadline)
        }) {
            tracing::warn!("container {}: {error}", stale.key.container_id);
        }
    }
    // Without the marker the next ADD looks again.
    if let Err(e) = crate::store::directory::write_whole(&marker, boot.as_bytes()) {
        tracing::warn!("write {}: {e}", marker.display());
    }
    Ok(())
}

/// Whether orphans are to be tried again: there are some, and the last try is a minute ago.
pub(super) fn orphans_are_due(state_dir: &Path) -> bool {
    let has_some = std::fs::read_dir(state_dir.join("orphans")).is_ok_and(|mut entries| entries.next().is_some());
    if !has_some {
        return false;
    }
    is_time(&state_dir.join("orphans-tried"), ORPHAN_INTERVAL)
}

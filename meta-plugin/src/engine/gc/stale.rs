//! Records that stand for nothing any more: of an earlier boot, of a namespace that is gone, of a sandbox that the runtime has
//! forgotten, without content, orphans of DEL; and statuses that are still to be written. What is there without any record
//! is `leftover`'s business.

use std::path::Path;
use std::time::{Duration, Instant};

use musubi_delegates::cni::{CniError, ContainerId, code};
use musubi_delegates::external::Surroundings;
use musubi_delegates::netns::Namespace;

use super::{Finding, Kind, Outcome, PATIENCE, Place, What};
use crate::engine::teardown::{Teardown, namespace_of};
use crate::engine::{Hands, by_name, is_time, joined, locking, pending, withdraw};
use crate::lock::ContainerLock;
use crate::record::{Attached, Key, boot_id};
use crate::records::{Records, Stored};
use crate::status;
use crate::store::{DirectoryStore, directory};

/// How long an orphan rests between two tries.
const ORPHAN_INTERVAL: Duration = Duration::from_secs(60);

/// What an ADD is making at this moment is no garbage, whatever list was made before.
pub(super) fn is_being_added(stored: &Stored) -> bool {
    matches!(stored, Stored::Whole(record) if record.is_being_added())
}

/// Whether a record is still what it was before its lock was taken.
pub(super) fn is_unchanged(before: &Stored, now: &Stored) -> bool {
    match (before, now) {
        (Stored::Whole(before), Stored::Whole(now)) => {
            (before.state, before.since, before.worker) == (now.state, now.since, now.worker)
        }
        (Stored::Damaged { .. }, Stored::Damaged { .. }) => true,
        _ => false,
    }
}

/// The record, if it stands for nothing any more.
pub(super) fn judge(stored: &Stored) -> Option<Finding> {
    let (kind, reason) = why_stale(stored)?;
    Some(found(kind, reason, stored.clone()))
}

/// A record that DEL had to give up.
pub(super) fn orphan(stored: Stored) -> Finding {
    let finding = found(Kind::Orphan, "its DEL could not release everything".to_owned(), stored.clone());
    Finding { what: What::Orphan(Box::new(stored)), ..finding }
}

/// A record that stands for nothing, with what it still holds.
pub(super) fn found(kind: Kind, reason: String, stored: Stored) -> Finding {
    let (pod, resources) = match &stored {
        Stored::Whole(record) => {
            (record.pod_key(), record.attachments.iter().filter(|a| a.begun).flat_map(resources).collect())
        }
        Stored::Damaged { .. } => (String::new(), Vec::new()),
    };
    let container_id = stored.key().container_id;
    Finding { kind, container_id, pod, reason, resources, what: What::Record(Box::new(stored)) }
}

fn why_stale(stored: &Stored) -> Option<(Kind, String)> {
    let record = match stored {
        Stored::Damaged { problem, .. } => return Some((Kind::Damaged, format!("its record is damaged: {problem}"))),
        Stored::Whole(record) => record,
    };
    if !record.is_of_this_boot() {
        return Some((Kind::EarlierBoot, "the node has booted since".to_owned()));
    }
    if record.is_being_added() {
        return None;
    }
    let netns = record.netns.display();
    match Namespace::open(&record.netns) {
        Ok(None) => Some((Kind::NamespaceGone, format!("its network namespace {netns} is gone"))),
        Ok(Some(namespace)) if !namespace.identity.is_same(&record.namespace.into()) => {
            Some((Kind::NamespaceGone, format!("{netns} is another pod's network namespace now")))
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

/// Releases what a stale record holds, and the record.
///
/// # Errors
/// What could not be released; the record stays.
pub(super) fn release(kind: Kind, seen: &Stored, state_dir: &Path, deadline: Instant) -> Result<Outcome, CniError> {
    under_lock(state_dir, seen, Records::read, |records, stored, lock| {
        // The runtime's list cannot be asked again here; all else is looked at once more.
        let is_stale = kind == Kind::NotListed || why_stale(stored).is_some();
        if !is_stale || is_being_added(stored) {
            return Ok(Outcome::Settled);
        }
        if matches!(stored, Stored::Damaged { .. }) && !records.is_of_earlier_boot(&stored.key()) {
            return Err(CniError::new(
                code::TRY_AGAIN,
                "its record is damaged, and whether its pod still runs nobody knows",
            )
            .with_details("its DEL, or the runtime's GC, releases what it has"));
        }
        release_record(records, stored, state_dir, lock, deadline).map(|()| Outcome::Released)
    })
}

/// Releases what an orphan still holds, and the orphan.
///
/// # Errors
/// What could not be released; the orphan stays.
pub(super) fn release_orphan(seen: &Stored, state_dir: &Path, deadline: Instant) -> Result<Outcome, CniError> {
    under_lock(state_dir, seen, Records::read_orphan, |records, stored, lock| {
        let key = stored.key();
        if records.read(&key)?.is_some() {
            return Err(CniError::new(
                code::TRY_AGAIN,
                "the container is attached anew; what its last DEL left waits for the next",
            )
            .with_details("it is released after the container's DEL"));
        }
        tear_down(state_dir, records, stored, lock, deadline)?;
        records.remove_orphan(&key).map(|()| Outcome::Released)
    })
}

/// Does something with a record as it is now, under the lock of its container, unless it has changed meanwhile.
fn under_lock(
    state_dir: &Path,
    seen: &Stored,
    read: impl Fn(&Records, &Key) -> Result<Option<Stored>, CniError>,
    work: impl FnOnce(&Records, &Stored, &ContainerLock) -> Result<Outcome, CniError>,
) -> Result<Outcome, CniError> {
    let key = seen.key();
    let container = ContainerId::parse(&key.container_id)?;
    let lock = locking::take(state_dir, &container, Instant::now() + PATIENCE)?;
    let records = Records::of(state_dir);
    let outcome = match read(&records, &key)?.filter(|now| is_unchanged(seen, now)) {
        Some(stored) => work(&records, &stored, &lock),
        None => Ok(Outcome::Settled),
    };
    lock.remove();
    outcome
}

fn release_record(
    records: &Records,
    stored: &Stored,
    state_dir: &Path,
    lock: &ContainerLock,
    deadline: Instant,
) -> Result<(), CniError> {
    let key = stored.key();
    tear_down(state_dir, records, stored, lock, deadline)?;
    records.remove(&key)?;
    if let Stored::Whole(record) = stored
        && let (Some(pod), Some(folder)) = (&record.pod, &record.manifest_dir)
    {
        let (store, written) = (DirectoryStore::empty(folder), status::written(record));
        withdraw::status(&store, records, &key, &pod.namespace, &pod.name, written.as_deref());
    }
    Ok(())
}

fn tear_down(
    state_dir: &Path,
    records: &Records,
    stored: &Stored,
    lock: &ContainerLock,
    deadline: Instant,
) -> Result<(), CniError> {
    let errors = match stored {
        Stored::Whole(record) => {
            locking::end_running(record);
            let host = Namespace::current()?;
            let pod = namespace_of(record, None);
            let hands = Hands {
                host: &host,
                path: &record.path,
                state_dir,
                deadline,
                programs: Surroundings::default(),
                agent_removes_shared: false,
            };
            let teardown =
                Teardown { hands, lock: Some(lock), record, pod: pod.as_ref(), records: Some(records), whole: true };
            teardown.run()
        }
        Stored::Damaged { key, .. } => by_name::release(state_dir, key, false, deadline),
    };
    if errors.is_empty() { Ok(()) } else { Err(joined(&errors)) }
}

/// The statuses that can be written from here: of those that nobody waits for any more the mark alone is left.
pub(super) fn pending(place: Place<'_>, records: &[Stored]) -> Vec<Finding> {
    let known = |key: &Key| records.iter().find(|stored| stored.key() == *key);
    let found = |key: Key| {
        let record = match known(&key) {
            Some(Stored::Whole(record)) => Some(record),
            // Whether it waits for its status nobody knows.
            Some(Stored::Damaged { .. }) => return None,
            None => None,
        };
        let waiting = record.filter(|record| record.status_pending);
        if waiting.is_some_and(|record| record.manifest_dir.is_none() && place.store.is_none()) {
            return None;
        }
        let (pod, reason) = match waiting {
            Some(record) => (record.pod_key(), "its network-status could not be written"),
            None => (String::new(), "nobody waits for its network-status any more"),
        };
        Some(Finding {
            kind: Kind::Status,
            container_id: key.container_id.clone(),
            resources: vec![if pod.is_empty() { "a mark".to_owned() } else { format!("network-status of {pod}") }],
            pod,
            reason: reason.to_owned(),
            what: What::Status(key),
        })
    };
    pending::keys(place.state_dir).into_iter().filter_map(found).collect()
}

/// Writes a status that is still to be written, to the place's store or where the record says.
///
/// # Errors
/// It was not written.
pub(super) fn write_status(place: Place<'_>, key: &Key) -> Result<Outcome, CniError> {
    let written =
        pending::write(place.state_dir, key, |record, pod, status| match (place.store, &record.manifest_dir) {
            (Some(store), _) => store.write_status(pod, status),
            (None, Some(folder)) => crate::store::Store::write_status(&DirectoryStore::empty(folder), pod, status),
            (None, None) => Err(CniError::new(code::TRY_AGAIN, "where its network-status goes is not known here")),
        });
    written.map(|()| Outcome::Released)
}

/// Releases what earlier boots left before the first address of this one is given: their pods cannot come back, and
/// their addresses would be missing.
///
/// # Errors
/// The state folder cannot be read.
pub fn release_earlier_boots(state_dir: &Path, own: &ContainerId, deadline: Instant) -> Result<(), CniError> {
    let marker = state_dir.join("boot");
    let boot = boot_id();
    if std::fs::read_to_string(&marker).is_ok_and(|known| known == boot) {
        return Ok(());
    }
    for stored in Records::of(state_dir).all()? {
        // A record that lost its content lost it in the power cut before this boot.
        let earlier = match &stored {
            Stored::Whole(record) => !record.is_of_this_boot(),
            Stored::Damaged { .. } => true,
        };
        let container = stored.key().container_id;
        if !earlier || container == own.as_str() {
            continue;
        }
        let released = under_lock(state_dir, &stored, Records::read, |records, stored, lock| {
            release_record(records, stored, state_dir, lock, deadline).map(|()| Outcome::Released)
        });
        if let Err(error) = released {
            tracing::warn!("container {container}: {error}");
        }
    }
    // Without the marker the next ADD looks again.
    if let Err(e) = directory::write_whole(&marker, boot.as_bytes()) {
        tracing::warn!("write {}: {e}", marker.display());
    }
    Ok(())
}

/// Whether orphans are to be tried again: there are some, and the last try is a minute ago.
pub(in crate::engine) fn orphans_are_due(state_dir: &Path) -> bool {
    let has_some = std::fs::read_dir(state_dir.join("orphans")).is_ok_and(|mut entries| entries.next().is_some());
    if !has_some {
        return false;
    }
    is_time(&state_dir.join("orphans-tried"), ORPHAN_INTERVAL)
}

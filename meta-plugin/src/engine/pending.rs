//! Network-statuses that could not be written when ADD wanted to, of pods that can do without for a while: a mark for each
//! below `<cniDir>/pending/`, so that whether there are any costs one look, and the writing of them later on.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use musubi_crds::NetworkStatus;
use musubi_delegates::cni::{CniError, ContainerId, code};
use musubi_delegates::mutation;

use super::{is_time, locking};
use crate::record::{Key, Record, State};
use crate::records::{Records, Stored};
use crate::status;
use crate::store::{Pod, Store};

/// How long they rest between two tries.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a container that something else works on is waited for.
const PATIENCE: Duration = Duration::from_millis(200);

/// Marks a status as not written yet.
///
/// # Errors
/// Code 5.
pub(super) fn note(state_dir: &Path, key: &Key) -> Result<(), CniError> {
    let mark = mark(state_dir, key);
    let folder = state_dir.join("pending");
    mutation::before("pending.write", mark.display());
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&mark, ""))
        .map_err(|e| CniError::new(code::IO, format!("write {}: {e}", mark.display())))
}

/// Whether there are some, and the last try is a while ago. If so, this is the next try.
pub(crate) fn is_due(state_dir: &Path) -> bool {
    let has_some = fs::read_dir(state_dir.join("pending")).is_ok_and(|mut marks| marks.next().is_some());
    has_some && is_time(&state_dir.join("pending-tried"), INTERVAL)
}

/// Writes them. What is written, or is not wanted any more, loses its mark.
#[must_use]
pub fn write_all(state_dir: &Path, store: &dyn Store) -> Vec<CniError> {
    let write_one = |key: &Key| write(state_dir, key, |_, pod, status| store.write_status(pod, status));
    keys(state_dir).iter().filter_map(|key| write_one(key).err()).collect()
}

/// Those that have a mark.
pub(super) fn keys(state_dir: &Path) -> Vec<Key> {
    let marks = fs::read_dir(state_dir.join("pending")).into_iter().flatten().flatten();
    let mut keys: Vec<Key> = marks.filter_map(|mark| Key::of_file(mark.file_name().to_str()?)).collect();
    keys.sort();
    keys
}

/// Writes one by the caller's means, if it is still wanted.
///
/// # Errors
/// It was not written, and keeps its mark.
pub(super) fn write(
    state_dir: &Path,
    key: &Key,
    write_status: impl FnOnce(&Record, &Pod, &[NetworkStatus]) -> Result<(), CniError>,
) -> Result<(), CniError> {
    let container = ContainerId::parse(&key.container_id)?;
    let lock = locking::take(state_dir, &container, Instant::now() + PATIENCE)?;
    let records = Records::of(state_dir);
    let stored = records.read(key)?;
    let is_gone = stored.is_none();
    if let Some(Stored::Whole(mut record)) = stored
        && let Some(pod) = record.pod.clone().filter(|_| record.status_pending && record.state == State::Attached)
    {
        let pod = Pod { namespace: pod.namespace, name: pod.name, uid: pod.uid, ..Pod::default() };
        let written = write_status(&record, &pod, &status::of_record(&record));
        written.map_err(|e| e.context(format!("pod {}", pod.key())))?;
        record.status_pending = false;
        records.write(&record, false)?;
    }
    forget(state_dir, key);
    if is_gone {
        lock.remove();
    }
    Ok(())
}

/// Takes a mark away. One that stays is looked at again, nothing more.
pub(super) fn forget(state_dir: &Path, key: &Key) {
    let mark = mark(state_dir, key);
    mutation::before("pending.remove", mark.display());
    let _ = fs::remove_file(mark);
}

fn mark(state_dir: &Path, key: &Key) -> PathBuf {
    state_dir.join("pending").join(key.file_name())
}

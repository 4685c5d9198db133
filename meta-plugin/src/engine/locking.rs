//! Taking a container's lock. A plugin that outlived the process which started it still holds it: that one is ended, since
//! nobody will ever ask for its result, and waiting for it could take as long as it likes.

use std::path::Path;
use std::time::{Duration, Instant};

use musubi_delegates::cni::{CniError, ContainerId};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::lock::ContainerLock;
use crate::record::{Record, Running};
use crate::records::{Records, Stored};

/// How long a process group that was killed may take to end.
const DYING: Duration = Duration::from_secs(2);

/// Waits for the lock of a container until the deadline, and ends what a dead operation left running.
///
/// # Errors
/// Code 11: another operation on the container still runs. Code 5: the state folder cannot be used.
pub fn take(cni_dir: &Path, container: &ContainerId, deadline: Instant) -> Result<ContainerLock, CniError> {
    ContainerLock::take_meanwhile(cni_dir, container, deadline, || end_orphans(cni_dir, container))
}

/// Tries to take it once, for who waits in another way. With `look_around`, what a dead operation left running is ended
/// when it is not to be had.
///
/// # Errors
/// As [`take`].
pub fn attempt(cni_dir: &Path, container: &ContainerId, look_around: bool) -> Result<ContainerLock, CniError> {
    let attempt = ContainerLock::take(cni_dir, container, Instant::now());
    if look_around && attempt.is_err() {
        end_orphans(cni_dir, container);
    }
    attempt
}

fn end_orphans(cni_dir: &Path, container: &ContainerId) {
    for stored in Records::of(cni_dir).of_container(container.as_str()).unwrap_or_default() {
        if let Stored::Whole(record) = stored
            && let Some(orphan) = orphan_of(&record)
        {
            end(orphan);
        }
    }
}

/// Ends the plugin that a record says still runs. Only for whoever holds the container's lock: then nobody waits for it.
pub fn end_running(record: &Record) {
    let Some(orphan) = orphan_of(record) else { return };
    end(orphan);
    let until = Instant::now() + DYING;
    while orphan.is_alive() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The plugin that runs for nobody any more: it lives, and the process that started it does not.
fn orphan_of(record: &Record) -> Option<Running> {
    let running = record.running.filter(|running| running.is_alive())?;
    let has_parent = record.worker.is_some_and(|worker| worker.is_alive());
    (record.is_of_this_boot() && !has_parent).then_some(running)
}

fn end(orphan: Running) {
    let Some(group) = i32::try_from(orphan.pid).ok().filter(|group| *group > 1) else { return };
    if let Err(error) = killpg(Pid::from_raw(group), Signal::SIGKILL) {
        tracing::debug!("end process group {group}: {error}");
    }
}

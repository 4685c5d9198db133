//! One lock a container: a file below `<cniDir>/locks/`, held by `flock`. External plugins inherit its descriptor, so the
//! lock lasts as long as anything still works on the container, whoever started it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use musubi_delegates::cni::{CniError, ContainerId, code};
use musubi_delegates::mutation;

/// How often a lock that another holds is tried again.
const POLL: Duration = Duration::from_millis(5);
/// Every how many tries there is a look at what else can be done.
const LOOK_AROUND: u32 = 10;

/// The held lock of a container.
#[derive(Debug)]
pub struct ContainerLock {
    file: File,
    path: PathBuf,
}

impl ContainerLock {
    /// Waits for the lock until the deadline.
    ///
    /// # Errors
    /// Code 11: another operation on the container still runs. Code 5: the state folder cannot be written.
    pub fn take(cni_dir: &Path, container: &ContainerId, deadline: Instant) -> Result<Self, CniError> {
        Self::take_meanwhile(cni_dir, container, deadline, || ())
    }

    /// As [`Self::take`], with something to do at intervals while another holds it.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_meanwhile(
        cni_dir: &Path,
        container: &ContainerId,
        deadline: Instant,
        mut meanwhile: impl FnMut(),
    ) -> Result<Self, CniError> {
        let mut tries = 0u32;
        let folder = cni_dir.join("locks");
        let path = folder.join(container.as_str());
        let failed = |e| cannot_lock(&path, &e);
        fs::create_dir_all(&folder).map_err(failed)?;
        loop {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
            match file.try_lock() {
                // Its last holder may have unlinked it between our open and our lock; then it protects nothing.
                Ok(()) if is_at(&file, &path) => return Ok(Self { file, path }),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(CniError::new(
                        code::TRY_AGAIN,
                        format!("container {container}: another operation on it still runs"),
                    )
                    .with_details("it ends by itself within its time limit (timeoutSeconds); try again then"));
                }
                Err(TryLockError::WouldBlock) => {
                    if tries.is_multiple_of(LOOK_AROUND) {
                        meanwhile();
                    }
                    tries += 1;
                    std::thread::sleep(POLL);
                }
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
        }
    }

    /// Removes the file, when nothing of the container is left, and lets the lock go.
    pub fn remove(self) {
        mutation::before("lock.remove", self.path.display());
        // A file that stays behind is empty and is used again; it is no reason for DEL to fail.
        let _ = fs::remove_file(&self.path);
    }
}

/// Keeps apart two moments that must not overlap: an ADD writing its first record, and GC between its look at the records
/// and the last delegate it tells of them. Without it GC would free what an ADD reserves after that look.
#[derive(Debug)]
pub struct GcFence {
    _file: File,
}

impl GcFence {
    /// For an ADD: shared with other ADDs.
    ///
    /// # Errors
    /// Code 11: GC still runs at the deadline. Code 5: the state folder cannot be written.
    pub fn shared(cni_dir: &Path, deadline: Instant) -> Result<Self, CniError> {
        Self::take(cni_dir, deadline, File::try_lock_shared)
    }

    /// For GC: alone.
    ///
    /// # Errors
    /// As [`Self::shared`].
    pub fn alone(cni_dir: &Path, deadline: Instant) -> Result<Self, CniError> {
        Self::take(cni_dir, deadline, File::try_lock)
    }

    fn take(
        cni_dir: &Path,
        deadline: Instant,
        attempt: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Self, CniError> {
        let path = cni_dir.join("gc.lock");
        let failed = |e| cannot_lock(&path, &e);
        fs::create_dir_all(cni_dir).map_err(failed)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        loop {
            match attempt(&file) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(CniError::new(code::TRY_AGAIN, "a GC of this node still runs")
                        .with_details("it ends by itself; try again then"));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(POLL),
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
        }
    }
}

impl AsFd for ContainerLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn cannot_lock(path: &Path, error: &io::Error) -> CniError {
    CniError::new(code::IO, format!("lock {}: {error}", path.display()))
        .with_details("the state folder (cniDir) must be writable")
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_waits_and_is_told_after_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let id = ContainerId::parse("c1").unwrap();
        let held = ContainerLock::take(folder.path(), &id, Instant::now()).unwrap();
        let refused = ContainerLock::take(folder.path(), &id, Instant::now() + POLL).unwrap_err();
        assert_eq!(refused.code, code::TRY_AGAIN);
        held.remove();
        ContainerLock::take(folder.path(), &id, Instant::now()).unwrap();
    }
}

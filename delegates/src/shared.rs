//! Locks of what pods share on a host: a bridge, a VXLAN device. Each has a file of its own in our state folder, taken
//! after the container's lock. Who needs both takes the VXLAN device's first: its bridge is made under it.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::cni::{CniError, code};

/// Where they are below the state folder.
const FOLDER: &str = "shared";

/// A held lock; let go when dropped.
#[derive(Debug)]
pub struct SharedLock(#[allow(dead_code)] File);

/// Waits for the lock of a shared thing: `kind` and `name` as in `bridge`, `cni0`.
///
/// # Errors
/// Code 5: the state folder cannot be written.
pub fn lock(state_dir: &Path, kind: &str, name: &str) -> Result<SharedLock, CniError> {
    let path = path(state_dir, kind, name);
    let open = || {
        std::fs::create_dir_all(state_dir.join(FOLDER))?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    open().map(SharedLock).map_err(|e: std::io::Error| {
        CniError::new(code::IO, format!("lock {}: {e}", path.display()))
            .with_details("the state folder (cniDir) must be writable")
    })
}

/// Whether this installation ever took that lock: its file stays.
#[must_use]
pub fn was_locked(state_dir: &Path, kind: &str, name: &str) -> bool {
    path(state_dir, kind, name).exists()
}

fn path(state_dir: &Path, kind: &str, name: &str) -> PathBuf {
    state_dir.join(FOLDER).join(format!("{kind}-{name}.lock"))
}

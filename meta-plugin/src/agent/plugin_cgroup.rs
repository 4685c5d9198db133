//! The cgroup that external plugins run in, beside the agent's: what they use does not count against the agent's own limit,
//! and a plugin that takes too much does not take the agent with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::host_mounts::HostMounts;

/// Its name below the root of the hierarchy.
const NAME: &str = "musubi-plugins";
/// Where the hierarchies are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// Makes it; `None` where none is wanted or can be had. It is wanted in a container, whose cgroup is the agent's, and where
/// a limit is set.
pub(super) fn make(mounts: &HostMounts, limit: Option<u64>) -> Option<PathBuf> {
    if *mounts != HostMounts::Entered && limit.is_none() {
        return None;
    }
    let (folder, limit_file) = place(Path::new(ROOT));
    match prepare(&folder, limit_file, limit) {
        Ok(()) => Some(folder),
        Err(error) => {
            tracing::warn!("external plugins run in the agent's own cgroup: {}: {error}", folder.display());
            None
        }
    }
}

/// Version 2 has one hierarchy, version 1 one for memory.
fn place(root: &Path) -> (PathBuf, &'static str) {
    if root.join("cgroup.controllers").exists() {
        (root.join(NAME), "memory.max")
    } else {
        (root.join("memory").join(NAME), "memory.limit_in_bytes")
    }
}

fn prepare(folder: &Path, limit_file: &str, limit: Option<u64>) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match limit {
        Some(bytes) => fs::write(folder.join(limit_file), bytes.to_string()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_place() {
        let root = tempfile::tempdir().unwrap();
        let first = (root.path().join("memory/musubi-plugins"), "memory.limit_in_bytes");
        assert_eq!(place(root.path()), first);
        fs::write(root.path().join("cgroup.controllers"), "memory").unwrap();
        let second = (root.path().join("musubi-plugins"), "memory.max");
        assert_eq!(place(root.path()), second);
        prepare(&second.0, second.1, Some(5 << 20)).unwrap();
        assert_eq!(fs::read_to_string(second.0.join("memory.max")).unwrap(), "5242880");
        prepare(&second.0, second.1, None).unwrap();
    }
}

//! The host's mounts: an agent in a container leaves its own mount namespace at the start, so that every path means the
//! same to it as to the plugin that the runtime calls. What it needs of its own mounts, it keeps open as folders.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;

/// Where kubelet puts a pod's token and the API server's CA.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Whose mounts the agent sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostMounts {
    /// Its own, which are the host's, or are meant to be used.
    Own,
    /// The host's, since it entered them.
    Entered,
    /// Its own, although the host's are wanted: it must take no work.
    Failed(String),
}

impl HostMounts {
    /// Why the agent must take no work; `None` when it may.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        match self {
            Self::Own | Self::Entered => None,
            Self::Failed(reason) => Some(reason),
        }
    }
}

/// A folder that stays open: its files are found through it wherever the process goes, as they are at that moment.
/// Kubelet renews what a volume holds by putting another link in the place of `..data`, which is seen here.
#[derive(Clone)]
pub struct Folder {
    handle: Arc<OwnedFd>,
    path: PathBuf,
}

impl fmt::Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Folder").field(&self.path).finish()
    }
}

impl Folder {
    /// Opens a folder.
    ///
    /// # Errors
    /// There is none, or it may not be looked into.
    pub fn open(path: &Path) -> io::Result<Self> {
        let handle = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { handle: Arc::new(handle), path: path.to_owned() })
    }

    /// Where it was when it was opened, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path for those who take nothing else. It works in this process alone while the folder is open, and where `/proc` is
    /// this process's own.
    #[must_use]
    pub fn path_of(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.handle.as_raw_fd()))
    }

    /// Reads a file of it as it is now.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = openat(self.handle.as_fd(), name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        File::from(file).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// What the agent keeps of its own mounts.
#[derive(Debug)]
pub struct Kept {
    /// The service account; `None` outside of a cluster.
    pub service_account: Option<Folder>,
    /// The folder of the agent's configuration file.
    pub configuration: Option<Folder>,
}

impl Kept {
    /// Opens both folders.
    #[must_use]
    pub fn open(service_account: &Path, config_file: &Path) -> Self {
        let folder = config_file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self { service_account: Folder::open(service_account).ok(), configuration: Folder::open(folder).ok() }
    }
}

/// Enters the host's mount namespace, that of `namespace`; with none, or where it is the process's own, it stays. To be
/// called before there is a second thread: the kernel lets no process with several of them change its mounts. The working
/// directory is the host's `/` afterwards.
#[must_use]
pub fn enter(namespace: Option<&Path>) -> HostMounts {
    let Some(namespace) = namespace else { return HostMounts::Own };
    match try_enter(namespace) {
        Ok(outcome) => outcome,
        Err(reason) => HostMounts::Failed(format!("the host's mount namespace {}: {reason}", namespace.display())),
    }
}

fn try_enter(namespace: &Path) -> Result<HostMounts, String> {
    // Then process 1 is no process of the host, and its mounts are the container's.
    if namespace.starts_with("/proc/1") && std::process::id() == 1 {
        return Err("process 1 is the agent itself; the pod needs hostPID".into());
    }
    let file = File::open(namespace).map_err(|e| cannot(&e))?;
    let identity = |m: std::fs::Metadata| (m.dev(), m.ino());
    let wanted = file.metadata().map(identity).map_err(|e| cannot(&e))?;
    let own = std::fs::metadata("/proc/self/ns/mnt").map(identity).map_err(|e| cannot(&e))?;
    if wanted == own {
        return Ok(HostMounts::Own);
    }
    let cgroups = File::open(namespace.with_file_name("cgroup"));
    match setns(file.as_fd(), CloneFlags::CLONE_NEWNS) {
        Ok(()) => {
            // A container of version 2 sees its own part of the cgroups alone, and could not move plugins out of it.
            let entered = cgroups.and_then(|cgroups| Ok(setns(cgroups.as_fd(), CloneFlags::CLONE_NEWCGROUP)?));
            if let Err(error) = entered {
                tracing::debug!("the host's cgroup namespace is not entered: {error}");
            }
            Ok(HostMounts::Entered)
        }
        Err(Errno::EINVAL) => {
            Err("the kernel refuses it: this is no mount namespace, or the agent has several threads".into())
        }
        Err(errno) => Err(cannot(&errno.into())),
    }
}

fn cannot(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "{error}; the agent needs CAP_SYS_ADMIN, CAP_SYS_CHROOT and CAP_SYS_PTRACE on the host, and no profile that forbids it"
        ),
        io::ErrorKind::NotFound => format!("{error}; the pod needs hostPID"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_on_the_host_stays_where_it_is() {
        assert_eq!(enter(None), HostMounts::Own);
        assert_eq!(enter(Some(Path::new("/proc/self/ns/mnt"))), HostMounts::Own);
        assert_eq!(HostMounts::Own.problem(), None);
    }

    #[test]
    fn why_the_hosts_mounts_cannot_be_entered_is_told() {
        for (path, why) in [("/nowhere/mnt", "hostPID"), ("/proc/self/ns/net", "no mount namespace")] {
            let state = enter(Some(Path::new(path)));
            let reason = state.problem().unwrap();
            assert!(reason.contains(path) && reason.contains(why), "{reason}");
        }
    }

    #[test]
    fn a_folder_shows_its_files_as_they_are_now() {
        let place = tempfile::tempdir().unwrap();
        let kept = Kept::open(&place.path().join("none"), &place.path().join("agent.json"));
        assert!(kept.service_account.is_none());
        let folder = kept.configuration.unwrap();
        assert_eq!(folder.read("agent.json").unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(place.path().join("agent.json"), "one").unwrap();
        assert_eq!(folder.read("agent.json").unwrap(), b"one");
        std::fs::write(place.path().join("new"), "two").unwrap();
        std::fs::rename(place.path().join("new"), place.path().join("agent.json")).unwrap();
        assert_eq!(folder.read("agent.json").unwrap(), b"two");
        assert_eq!(std::fs::read(folder.path_of("agent.json")).unwrap(), b"two");
        assert_eq!(folder.path(), place.path());
    }
}

//! Network namespaces as sets of handles: a netlink socket and the two sysctl folders, opened by one short-lived thread
//! that enters the namespace and ends. Nobody else ever changes namespace, so there is nothing to restore or to leak.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;

use crate::cni::{CniError, code};
use crate::mutation;
use crate::netlink::{self, Netlink};
use crate::sys;

/// What tells one namespace from another, also from a later one at the same path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// `SO_NETNS_COOKIE`, unique within a boot; absent before Linux 5.14.
    pub cookie: Option<u64>,
    /// Device of the namespace's file.
    pub device: u64,
    /// Inode of the namespace's file; may be used again after the namespace is gone.
    pub inode: u64,
}

impl Identity {
    /// Whether both speak of one namespace: by cookie where both have one, else by device and inode.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self.cookie, other.cookie) {
            (Some(a), Some(b)) => a == b,
            _ => (self.device, self.inode) == (other.device, other.inode),
        }
    }
}

/// The address family of a sysctl.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `net.ipv4.conf`
    V4,
    /// `net.ipv6.conf`
    V6,
}

/// An open network namespace.
#[derive(Debug)]
pub struct Namespace {
    /// Where it was opened.
    pub path: PathBuf,
    /// A routing socket in it.
    pub netlink: Netlink,
    /// What it is.
    pub identity: Identity,
    netfilter: OnceCell<Netlink>,
    file: File,
    ipv4: OwnedFd,
    ipv6: Option<OwnedFd>,
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Namespace {
    /// Opens a namespace by its file; `None` when there is none at that path any more: nothing, or a file that is no
    /// network namespace (what remains of a bind mount that was undone).
    ///
    /// # Errors
    /// Code 8 when it cannot be entered.
    pub fn open(path: &Path) -> Result<Option<Self>, CniError> {
        Opening::of(path).wait()
    }

    /// Opens the namespace the calling thread is in.
    ///
    /// # Errors
    /// Code 8 when `/proc` does not show it or the sockets cannot be made.
    pub fn current() -> Result<Self, CniError> {
        let path = Path::new("/proc/thread-self/ns/net");
        let open = || Self::assemble(path, File::open(path)?, Handles::open()?);
        open().map_err(|e| namespace_error(path, &e))
    }

    fn assemble(path: &Path, file: File, handles: Handles) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let identity = Identity {
            cookie: sys::namespace_cookie(handles.netlink.as_fd()),
            device: metadata.dev(),
            inode: metadata.ino(),
        };
        let Handles { netlink, ipv4, ipv6 } = handles;
        Ok(Self { path: path.to_owned(), netlink, identity, netfilter: OnceCell::new(), file, ipv4, ipv6 })
    }

    /// A netfilter socket in it, opened when it is first asked for and kept. To close one after rules were removed waits for
    /// a grace period of the kernel (`nft_rcv_nl_event`), 20 ms; kept until the end, that wait is over by then.
    ///
    /// # Errors
    /// The socket cannot be made; `EPROTONOSUPPORT` on kernels without netfilter.
    pub fn netfilter(&self) -> netlink::Result<&Netlink> {
        if let Some(socket) = self.netfilter.get() {
            return Ok(socket);
        }
        let socket = inside(&self.file, || Netlink::netfilter().map_err(|e| io::Error::from(e.errno)))
            .map_err(|e| netlink::Error::io("open a netfilter socket", &e))?;
        Ok(self.netfilter.get_or_init(|| socket))
    }

    /// Whether the kernel has IPv6 here at all.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.ipv6.is_some()
    }

    /// Sets `net.<family>.conf.<interface>.<key>`; `interface` may be `all` or `default`. Does nothing where the kernel
    /// has no such family or no such key.
    ///
    /// # Errors
    /// The file is there and cannot be written.
    pub fn set_sysctl(&self, family: Family, interface: &str, key: &str, value: &str) -> Result<(), CniError> {
        let Some(mut file) = self.open_sysctl(family, interface, key, OFlag::O_WRONLY) else { return Ok(()) };
        mutation::before("sysctl.write", format_args!("{key} of {interface}: {value}"));
        let mut write = || file.as_mut().map_err(|e| io::Error::from(*e))?.write_all(value.as_bytes());
        write().map_err(|e| {
            CniError::new(code::IO, format!("set sysctl {key} of {interface} to {value}: {e}"))
                .with_details("/proc/sys must be writable for this plugin")
        })
    }

    /// Reads `net.<family>.conf.<interface>.<key>`; `None` when there is none.
    #[must_use]
    pub fn sysctl(&self, family: Family, interface: &str, key: &str) -> Option<String> {
        let mut file = self.open_sysctl(family, interface, key, OFlag::O_RDONLY)?.ok()?;
        // All of them are numbers, which the kernel hands over in one piece.
        let mut value = [0; 32];
        let length = file.read(&mut value).ok()?;
        Some(str::from_utf8(&value[..length]).ok()?.trim().to_owned())
    }

    fn open_sysctl(&self, family: Family, interface: &str, key: &str, mode: OFlag) -> Option<Result<File, nix::Error>> {
        let folder = match family {
            Family::V4 => &self.ipv4,
            Family::V6 => self.ipv6.as_ref()?,
        };
        let path = format!("{interface}/{key}");
        match openat(folder, path.as_str(), mode | OFlag::O_CLOEXEC, Mode::empty()) {
            Err(nix::Error::ENOENT) => None,
            other => Some(other.map(File::from)),
        }
    }
}

/// A namespace that a thread is opening, while whoever wants it has other things to do.
#[derive(Debug)]
pub struct Opening {
    path: PathBuf,
    thread: io::Result<JoinHandle<io::Result<Option<Namespace>>>>,
}

impl Opening {
    /// Begins to open the namespace at a path.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        let opened = path.to_owned();
        let enter_and_open = move || {
            let file = match File::open(&opened) {
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
                file => file?,
            };
            match setns(&file, CloneFlags::CLONE_NEWNET) {
                // setns(2): a descriptor that is no namespace of this type.
                Err(Errno::EINVAL) => Ok(None),
                entered => entered
                    .map_err(io::Error::from)
                    .and_then(|()| Handles::open())
                    .and_then(|handles| Namespace::assemble(&opened, file, handles))
                    .map(Some),
            }
        };
        Self { path: path.to_owned(), thread: std::thread::Builder::new().spawn(enter_and_open) }
    }

    /// Waits for it; see [`Namespace::open`].
    ///
    /// # Errors
    /// Code 8 when it cannot be entered.
    pub fn wait(self) -> Result<Option<Namespace>, CniError> {
        let failed = |_| Err(io::Error::other("the thread that entered it failed"));
        let opened = self.thread.and_then(|thread| thread.join().unwrap_or_else(failed));
        opened.map_err(|e| namespace_error(&self.path, &e))
    }
}

/// Opens something in a namespace, on a thread that ends with it.
fn inside<T: Send>(namespace: &File, open: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let enter = || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            open()
        };
        match std::thread::Builder::new().spawn_scoped(scope, enter)?.join() {
            Ok(opened) => opened,
            Err(_) => Err(io::Error::other("the thread that entered it failed")),
        }
    })
}

struct Handles {
    netlink: Netlink,
    ipv4: OwnedFd,
    ipv6: Option<OwnedFd>,
}

impl Handles {
    /// Opens them in the calling thread's namespace: `/proc/sys/net` shows whose task looks it up.
    fn open() -> io::Result<Self> {
        Ok(Self {
            netlink: Netlink::route().map_err(|e| io::Error::from(e.errno))?,
            ipv4: File::open("/proc/sys/net/ipv4/conf")?.into(),
            ipv6: match File::open("/proc/sys/net/ipv6/conf") {
                Ok(folder) => Some(folder.into()),
                Err(e) if e.kind() == ErrorKind::NotFound => None,
                Err(e) => return Err(e),
            },
        })
    }
}

fn namespace_error(path: &Path, error: &io::Error) -> CniError {
    CniError::new(code::NAMESPACE, format!("network namespace {}: {error}", path.display()))
        .with_details("entering a network namespace takes CAP_SYS_ADMIN in the namespace's owner")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_without_a_namespace_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plain");
        std::fs::write(&file, "").unwrap();
        for path in [folder.path().join("missing"), file.join("below"), file] {
            assert!(Namespace::open(&path).unwrap().is_none(), "{}", path.display());
        }
    }
}

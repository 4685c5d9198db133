//! The folder of reservations that the reference host-local and ours share: one file for each address, a lock, and the last
//! address given out for each pool. Every operation here is one the reference does too, so both may use one folder at the
//! same time. Who holds what without reading every file is the index's business.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::index::Entries;
use crate::mutation;
use crate::pause::Pauses;

/// The longest pause between two looks at a lock that another process holds; it holds it for well under a millisecond (the
/// reference: for 35 ms in a folder of 4,000 reservations).
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// The folder of reservations could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call on one of its files failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried: `create`, `write`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another process held the lock until the deadline.
    #[error("{path} is still locked by another process")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
}

impl StoreError {
    fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
        move |source| StoreError::Io { action, path: path.to_path_buf(), source }
    }
}

/// Who holds a reservation: an attachment, or everything of a container where an old version wrote no interface.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`; empty in the old format.
    pub interface: String,
}

impl Owner {
    /// The owner that an attachment's reservations name.
    pub fn new(container_id: &str, interface: &str) -> Owner {
        Owner { container_id: container_id.to_string(), interface: interface.to_string() }
    }

    /// The owner in the old format: the container alone.
    pub fn without_interface(&self) -> Owner {
        Owner::new(&self.container_id, "")
    }

    /// Reads a reservation's content as the reference does, white space around it ignored. `None` for what no request can
    /// ever ask for: nothing at all, or text that is no container id and interface name.
    pub fn parse(content: &str) -> Option<Owner> {
        let content = content.trim();
        let (container_id, interface) = content.split_once("\r\n").unwrap_or((content, ""));
        let plausible = |text: &str| !text.contains(['/', ':', '\0', '\r', '\n']);
        let valid = !container_id.is_empty() && plausible(container_id) && plausible(interface);
        valid.then(|| Owner::new(container_id, interface))
    }

    fn content(&self) -> String {
        format!("{}\r\n{}", self.container_id, self.interface)
    }
}

/// What a reservation's file says.
#[derive(Debug, PartialEq, Eq)]
pub enum Held {
    /// There is no such file.
    Free,
    /// It is empty: whoever made it died before writing. Under the lock this is always a leftover.
    Leftover,
    /// It names an attachment or a container.
    By(Owner),
    /// It holds something else.
    Unknown,
}

/// The folder `<dataDir>/<network>`, locked as the reference locks it (flock on its file `lock`) until this is dropped.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// The folder itself, for its times.
    handle: File,
    /// Holds the lock; never read.
    _lock: File,
    reads: Cell<usize>,
}

impl Folder {
    /// Creates the folder (0755) where it is missing and takes its lock.
    ///
    /// # Errors
    /// The folder or its lock cannot be made, or the lock is not free before the deadline.
    pub fn lock(path: &Path, deadline: Instant) -> Result<Folder, StoreError> {
        loop {
            if let Some(folder) = Self::lock_existing(path, deadline)? {
                return Ok(folder);
            }
            DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(StoreError::io("create", path))?;
        }
    }

    /// Takes the lock of a folder that exists; `None` where it does not, or no longer does.
    ///
    /// # Errors
    /// As [`Self::lock`].
    pub fn lock_existing(path: &Path, deadline: Instant) -> Result<Option<Folder>, StoreError> {
        let lock_path = path.join("lock");
        loop {
            let handle = match File::open(path) {
                Err(gone) if gone.kind() == ErrorKind::NotFound => return Ok(None),
                opened => opened.map_err(StoreError::io("open", path))?,
            };
            let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_CLOEXEC;
            let lock = match openat(&handle, "lock", flags, Mode::from_bits_truncate(0o750)) {
                Err(Errno::ENOENT) => return Ok(None),
                opened => File::from(opened.map_err(io::Error::from).map_err(StoreError::io("open", &lock_path))?),
            };
            wait_for(&lock, &lock_path, deadline)?;
            // Whoever wipes the folder takes the lock file away too: a lock on a deleted file protects nothing.
            if is_same_file(&lock, &lock_path) {
                return Ok(Some(Folder { path: path.to_path_buf(), handle, _lock: lock, reads: Cell::new(0) }));
            }
        }
    }

    /// The folder as an open file, for its modification time.
    pub fn handle(&self) -> &File {
        &self.handle
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many reservations were read since the folder was locked.
    pub fn reads(&self) -> usize {
        self.reads.get()
    }

    /// Takes the file of a free address, still empty; `None` when the address is taken. A leftover counts as free.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn claim(&self, address: IpAddr) -> Result<Option<File>, StoreError> {
        let path = self.file_of(address);
        mutation::before("reservation.claim", path.display());
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        match options.clone().create_new(true).open(&path) {
            Err(exists) if exists.kind() == ErrorKind::AlreadyExists && is_leftover(&path) => {
                options.open(&path).map(Some).map_err(StoreError::io("open", &path))
            }
            Err(exists) if exists.kind() == ErrorKind::AlreadyExists => Ok(None),
            created => created.map(Some).map_err(StoreError::io("create", &path)),
        }
    }

    /// Writes the owner into a claimed file, in one call.
    ///
    /// # Errors
    /// The write fails, as on a full disk; the file may hold a part.
    pub fn write(&self, mut file: &File, address: IpAddr, owner: &Owner) -> Result<(), StoreError> {
        mutation::before("reservation.write", format_args!("{address} in {}", self.path.display()));
        file.write_all(owner.content().as_bytes()).map_err(|source| StoreError::Io {
            action: "write",
            path: self.file_of(address),
            source,
        })
    }

    /// What the address's file says.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn read(&self, address: IpAddr) -> Result<Held, StoreError> {
        let path = self.file_of(address);
        self.reads.set(self.reads.get() + 1);
        let content = match read_bounded(&path) {
            Err(gone) if gone.kind() == ErrorKind::NotFound => return Ok(Held::Free),
            read => read.map_err(StoreError::io("read", &path))?,
        };
        if content.is_empty() {
            return Ok(Held::Leftover);
        }
        let owner = str::from_utf8(&content).ok().and_then(Owner::parse);
        Ok(owner.map_or(Held::Unknown, Held::By))
    }

    /// Frees an address; one that is free already is fine.
    ///
    /// # Errors
    /// The file is there and cannot be removed.
    pub fn remove(&self, address: IpAddr) -> Result<(), StoreError> {
        let path = self.file_of(address);
        mutation::before("reservation.release", path.display());
        match fs::remove_file(&path) {
            Err(gone) if gone.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(StoreError::io("remove", &path)),
        }
    }

    /// The addresses that have a file, by one listing, without reading any.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn addresses(&self) -> Result<HashSet<IpAddr>, StoreError> {
        addresses_in(&self.path)
    }

    /// Reads every reservation.
    ///
    /// # Errors
    /// The folder cannot be read. A single file that cannot be read is left out, as by the reference.
    pub fn scan(&self) -> Result<Entries, StoreError> {
        let mut entries = Entries::new();
        for address in self.addresses()? {
            match self.read(address) {
                Ok(Held::By(owner)) => entries.entry(owner).or_default().addresses.push(address),
                Ok(_) => {}
                Err(unreadable) => tracing::warn!("{unreadable}"),
            }
        }
        Ok(entries)
    }

    /// The address given out last for a pool; `None` when there is none or the file is not an address.
    pub fn last_reserved(&self, pool: usize) -> Option<IpAddr> {
        last_reserved_in(&self.path, pool)
    }

    /// Remembers the address given out last for a pool.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_last_reserved(&self, pool: usize, address: IpAddr) -> Result<(), StoreError> {
        let path = self.path.join(last_reserved_name(pool));
        mutation::before("reservation.last", format_args!("{address} in {}", path.display()));
        let text = address.to_string();
        // Not truncated first: ext4 starts to write such a file to the disk when it is closed.
        let open = || OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let write = |mut file: File| {
            let length = text.len() as u64;
            let is_longer = file.metadata()?.len() > length;
            file.write_all(text.as_bytes())?;
            if is_longer { file.set_len(length) } else { Ok(()) }
        };
        open().and_then(write).map_err(StoreError::io("write", &path))
    }

    fn file_of(&self, address: IpAddr) -> PathBuf {
        reservation(&self.path, address)
    }
}

/// A reservation's file. Go prints an IPv4 address in IPv6 clothing as IPv4, so that is what the reference would name it.
fn reservation(folder: &Path, address: IpAddr) -> PathBuf {
    folder.join(address.to_canonical().to_string())
}

/// The addresses that have a file in a folder, locked or not; none where there is no folder.
///
/// # Errors
/// The folder is there and cannot be read.
pub fn addresses_in(folder: &Path) -> Result<HashSet<IpAddr>, StoreError> {
    let names = match fs::read_dir(folder) {
        Err(gone) if gone.kind() == ErrorKind::NotFound => return Ok(HashSet::new()),
        opened => opened.map_err(StoreError::io("read", folder))?,
    };
    let address = |name: io::Result<fs::DirEntry>| match name {
        Ok(name) => name.file_name().to_str()?.parse().ok().map(Ok),
        Err(failed) => Some(Err(StoreError::io("read", folder)(failed))),
    };
    names.filter_map(address).collect()
}

/// Whether an address has a file with content in a folder, locked or not.
pub fn is_taken(folder: &Path, address: IpAddr) -> bool {
    let path = reservation(folder, address);
    path.symlink_metadata().is_ok_and(|file| !file.is_file() || file.len() > 0)
}

/// The address given out last for a pool of a folder, locked or not.
pub fn last_reserved_in(folder: &Path, pool: usize) -> Option<IpAddr> {
    let content = read_bounded(&folder.join(last_reserved_name(pool))).ok()?;
    str::from_utf8(&content).ok()?.trim().parse().ok()
}

fn last_reserved_name(pool: usize) -> String {
    format!("last_reserved_ip.{pool}")
}

fn is_leftover(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|file| file.is_file() && file.len() == 0)
}

/// A reservation is well under 300 bytes; whatever is longer is none of a host-local and never matches.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(128);
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path)?
        .take(4096)
        .read_to_end(&mut content)?;
    Ok(content)
}

fn is_same_file(open: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (open.metadata(), path.metadata()) else {
        return false;
    };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

/// Takes the lock before the deadline. Polled, because a blocking flock cannot be given one.
fn wait_for(lock: &File, path: &Path, deadline: Instant) -> Result<(), StoreError> {
    let mut pauses = Pauses::up_to(LOCK_PAUSE);
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::Error(failed)) => {
                return Err(StoreError::io("lock", path)(failed));
            }
            Err(fs::TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(StoreError::Locked { path: path.to_path_buf() });
            }
            Err(fs::TryLockError::WouldBlock) => {
                pauses.sleep();
            }
        }
    }
}

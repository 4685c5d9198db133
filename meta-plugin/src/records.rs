//! The records' files below the state folder: one JSON file each, named by container, interface and network, replaced
//! whole; and the orphans, what DEL had to leave. What they say is in [`crate::record`].

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use musubi_delegates::cni::{CniError, code};
use musubi_delegates::mark::Mark;
use musubi_delegates::mutation;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::record::{Key, Record, State, VERSION};

/// What a record's file holds.
#[derive(Debug, Clone)]
pub enum Stored {
    /// A record.
    Whole(Box<Record>),
    /// A file whose content is lost (a power cut) or of a newer version; its name still says whose it is.
    Damaged {
        /// From the name.
        key: Key,
        /// What is wrong with the content.
        problem: String,
    },
}

impl Stored {
    /// Which record it is.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Whole(record) => record.key(),
            Self::Damaged { key, .. } => key.clone(),
        }
    }
}

/// The records of a state folder.
#[derive(Debug, Clone)]
pub struct Records {
    folder: PathBuf,
    orphans: PathBuf,
}

impl Records {
    /// The records below `cniDir`.
    #[must_use]
    pub fn of(cni_dir: &Path) -> Self {
        Self { folder: cni_dir.join("records"), orphans: cni_dir.join("orphans") }
    }

    /// What is left on the host for those on record is marked with; none before the first record.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        Mark::of(&self.folder)
    }

    /// Reads one; `None` when there is none.
    ///
    /// # Errors
    /// Code 5: the folder cannot be read.
    pub fn read(&self, key: &Key) -> Result<Option<Stored>, CniError> {
        read_file(&self.folder.join(key.file_name()), key)
    }

    /// All records, by name.
    ///
    /// # Errors
    /// Code 5: the folder cannot be read.
    pub fn all(&self) -> Result<Vec<Stored>, CniError> {
        read_keys(&self.folder, |_| true)
    }

    /// All records that DEL had to give up for the time being.
    ///
    /// # Errors
    /// Code 5: the folder cannot be read.
    pub fn orphaned(&self) -> Result<Vec<Stored>, CniError> {
        read_keys(&self.orphans, |_| true)
    }

    /// Those of one container, by name.
    ///
    /// # Errors
    /// Code 5: the folder cannot be read.
    pub fn of_container(&self, container_id: &str) -> Result<Vec<Stored>, CniError> {
        read_keys(&self.folder, |key| key.container_id == container_id)
    }

    /// Whether a record's file was written before this boot, for one whose content does not tell.
    #[must_use]
    pub fn is_of_earlier_boot(&self, key: &Key) -> bool {
        let written = fs::metadata(self.folder.join(key.file_name())).and_then(|m| m.modified());
        let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let uptime = uptime.split_whitespace().next().and_then(|seconds| seconds.parse::<f64>().ok());
        match (written.ok().and_then(|time| time.elapsed().ok()), uptime) {
            (Some(age), Some(uptime)) => age.as_secs_f64() > uptime,
            _ => false,
        }
    }

    /// Writes one, whole or not at all. With `durable` it survives a power cut from then on.
    ///
    /// # Errors
    /// Code 5.
    pub fn write(&self, record: &Record, durable: bool) -> Result<(), CniError> {
        let file = self.folder.join(record.key().file_name());
        let bytes = serde_json::to_vec(record).map_err(|e| CniError::new(code::IO, format!("record: {e}")))?;
        mutation::before("record.write", file.display());
        let write = || {
            // One temporary name is enough, since the container is locked; a process that dies leaves no second one behind.
            let new = self.folder.join(temporary_name(&record.key()));
            match write_private(&new, &bytes) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir_all(&self.folder)?;
                    write_private(&new, &bytes)?;
                }
                written => written.inspect_err(|_| drop(fs::remove_file(&new)))?,
            }
            mutation::before("record.rename", file.display());
            put_in_place(&new, &file)?;
            if durable {
                fs::File::open(&file)?.sync_all()?;
                fs::File::open(&self.folder)?.sync_all()?;
            }
            Ok(())
        };
        write().map_err(|e: io::Error| {
            CniError::new(code::IO, format!("write record {}: {e}", file.display()))
                .with_details("nothing is done without a record: make room, or make the state folder (cniDir) writable")
        })
    }

    /// Removes one; it may be gone already.
    ///
    /// # Errors
    /// Code 5.
    pub fn remove(&self, key: &Key) -> Result<(), CniError> {
        let file = self.folder.join(key.file_name());
        mutation::before("record.remove", file.display());
        remove_file(&self.folder.join(temporary_name(key)))?;
        remove_file(&file)
    }

    /// Moves one to the orphans: DEL is over for the runtime, but something of it is still to be released.
    ///
    /// # Errors
    /// Code 5.
    pub fn orphan(&self, key: &Key) -> Result<(), CniError> {
        let name = key.file_name();
        mutation::before("record.orphan", &name);
        let moved = fs::create_dir_all(&self.orphans)
            .and_then(|()| fs::rename(self.folder.join(&name), self.orphans.join(&name)));
        moved.map_err(|e| CniError::new(code::IO, format!("move record {name} to {}: {e}", self.orphans.display())))
    }

    /// Reads an orphan; `None` when there is none.
    ///
    /// # Errors
    /// Code 5: the folder cannot be read.
    pub fn read_orphan(&self, key: &Key) -> Result<Option<Stored>, CniError> {
        read_file(&self.orphans.join(key.file_name()), key)
    }

    /// Removes an orphan.
    ///
    /// # Errors
    /// Code 5.
    pub fn remove_orphan(&self, key: &Key) -> Result<(), CniError> {
        let file = self.orphans.join(key.file_name());
        mutation::before("orphan.remove", file.display());
        remove_file(&file)
    }
}

/// What plugins are sent may hold secrets: nobody else reads it.
fn write_private(file: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(file)?.write_all(bytes)
}

/// Gives a file the name of another, which it replaces. ext4 starts to write out what is renamed over a file
/// (`auto_da_alloc`), and whoever removes that next waits for the disk, 5 ms and more; names that are exchanged are no such case.
fn put_in_place(new: &Path, file: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, new, AT_FDCWD, file, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => {
            mutation::before("record.tidy", new.display());
            fs::remove_file(new)
        }
        // There was none before, or the filesystem cannot exchange names.
        Err(_) => fs::rename(new, file),
    }
}

fn remove_file(path: &Path) -> Result<(), CniError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(CniError::new(code::IO, format!("remove record {}: {e}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Whether a file can have the key's name. Where none can, nothing was ever recorded.
///
/// # Errors
/// Code 7, with how many bytes there are too many.
pub(crate) fn fits_a_file(key: &Key) -> Result<(), CniError> {
    const NAME_MAX: usize = 255; // limits.h
    let excess = temporary_name(key).len().saturating_sub(NAME_MAX);
    if excess == 0 {
        return Ok(());
    }
    Err(CniError::new(
        code::CONFIG,
        format!("container id, interface and network name are together {excess} bytes too long to be kept on record"),
    )
    .with_details("shorten \"name\" in the configuration"))
}

fn temporary_name(key: &Key) -> String {
    format!(".{}.new", key.file_name())
}

fn read_keys(folder: &Path, wanted: impl Fn(&Key) -> bool) -> Result<Vec<Stored>, CniError> {
    // An entry that cannot be read is an error: GC would free what a record it does not see holds.
    let names = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<OsString>>>());
    let names = match names {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names.map_err(|e| CniError::new(code::IO, format!("records in {}: {e}", folder.display())))?,
    };
    let mut keys: Vec<Key> = names.iter().filter_map(|name| Key::of_file(name.to_str()?)).collect();
    keys.retain(wanted);
    keys.sort();
    keys.iter().filter_map(|key| read_file(&folder.join(key.file_name()), key).transpose()).collect()
}

fn read_file(file: &Path, key: &Key) -> Result<Option<Stored>, CniError> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(CniError::new(code::IO, format!("record {}: {e}", file.display()))),
    };
    let damaged = |problem: String| Some(Stored::Damaged { key: key.clone(), problem });
    Ok(match serde_json::from_slice::<Record>(&bytes) {
        Ok(record) if record.version > VERSION => {
            damaged(format!("it is of version {}, this is {VERSION}", record.version))
        }
        Ok(record) if record.key() != *key => damaged("its content belongs to another record".to_owned()),
        Ok(mut record) => {
            if record.state == State::Adding {
                record.assume_begun();
            }
            Some(Stored::Whole(Box::new(record)))
        }
        Err(e) => damaged(e.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(container_id: &str, interface: &str, network: &str) -> Key {
        Key { container_id: container_id.into(), interface: interface.into(), network: network.into() }
    }

    #[test]
    fn a_record_is_kept_under_its_three_names() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::of(folder.path());
        let keys =
            [key("c1", "eth0", "net"), key("c1", "eth0", "net.b"), key("c1", "eth1", "net"), key("c2", "eth0", "net")];
        assert!(records.all().unwrap().is_empty() && records.read(&keys[0]).unwrap().is_none(), "no folder yet");
        for key in &keys {
            records.write(&Record::begun(key), true).unwrap();
        }
        let all: Vec<Key> = records.all().unwrap().iter().map(Stored::key).collect();
        assert_eq!(all, [&keys[0], &keys[1], &keys[2], &keys[3]].map(Clone::clone));
        records.remove(&keys[1]).unwrap();
        records.remove(&keys[1]).unwrap();
        assert!(records.read(&keys[1]).unwrap().is_none());
        assert!(matches!(records.read(&keys[0]).unwrap(), Some(Stored::Whole(found)) if found.key() == keys[0]));
    }

    /// Configurations may hold passwords of the networks' own services.
    #[test]
    fn a_record_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let key = key("c1", "eth0", "net");
        for _ in 0..2 {
            Records::of(folder.path()).write(&Record::begun(&key), false).unwrap();
            let mode = fs::metadata(folder.path().join("records/c1:eth0:net.json")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn an_orphan_is_kept_apart() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::of(folder.path());
        let key = key("c1", "eth0", "net");
        records.write(&Record::begun(&key), false).unwrap();
        records.orphan(&key).unwrap();
        assert!(records.all().unwrap().is_empty());
        assert_eq!(records.orphaned().unwrap().iter().map(Stored::key).collect::<Vec<_>>(), std::slice::from_ref(&key));
        records.remove_orphan(&key).unwrap();
        assert!(records.orphaned().unwrap().is_empty());
    }

    /// A power cut, a newer version, a copied file: the name still says whose reservations to release.
    #[test]
    fn a_record_that_cannot_be_used_still_has_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::of(folder.path());
        let key = key("c1", "eth0", "net");
        records.write(&Record::begun(&key), false).unwrap();
        let file = folder.path().join("records/c1:eth0:net.json");
        let whole = fs::read_to_string(&file).unwrap();
        let rows = [
            (String::new(), "EOF"),
            (whole[..whole.len() / 2].to_owned(), "EOF"),
            ("\0".repeat(100), "expected value"),
            (whole.replace("\"version\":1", "\"version\":2"), "version 2"),
            (whole.replace("\"containerId\":\"c1\"", "\"containerId\":\"c2\""), "another record"),
            ("null".to_owned(), "invalid type"),
        ];
        for (content, expected) in rows {
            fs::write(&file, content).unwrap();
            match records.read(&key).unwrap() {
                Some(Stored::Damaged { key: found, problem }) => {
                    assert_eq!(found, key);
                    assert!(problem.contains(expected), "{problem:?} does not say {expected:?}");
                }
                other => panic!("{expected}: {other:?}"),
            }
        }
    }

    #[test]
    fn files_that_are_no_records_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::of(folder.path());
        records.write(&Record::begun(&key("c1", "eth0", "net")), false).unwrap();
        for name in [".tmpAbCdEf", "c1.json", "c1:eth0.json", "c1:eth0:net.json.bak"] {
            fs::write(folder.path().join("records").join(name), "{}").unwrap();
        }
        assert_eq!(records.all().unwrap().len(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_said_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("records"), "a file").unwrap();
        let error = Records::of(folder.path()).write(&Record::begun(&key("c1", "eth0", "net")), false).unwrap_err();
        assert_eq!(error.code, code::IO);
        assert!(error.msg.contains("records/c1:eth0:net.json") && error.details.contains("cniDir"), "{error}");
    }
}

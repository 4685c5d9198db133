//! Our own memory of who holds what in a folder of reservations, so that an attachment is found without reading the files of
//! all others. It is a shortcut only: it says by itself whether it is complete, and where it is not the folder is read.
//!
//! The index of a folder is a folder of symbolic links that point nowhere: `<container id>:<interface>` → `ours 10.1.0.5
//! fd00::5` (`alone` where the delegate was called on its own, `seen` where another program made the reservation). A link is written in one system call, and a power cut
//! cannot leave it empty.
//!
//! How a foreign writer is noticed: after each change, under the lock, both folders are given one and the same modification
//! time, one second in the past and exact to the nanosecond. Whoever creates or removes a file later makes the kernel
//! set the folder's time to *now*, so the two differ from then on. No granularity of the kernel's clock (4 ms before Linux
//! 6.13) hides a change, as it would if the kernel's own times were compared: a change within the tick of our last look
//! would leave the time as it was. Two further guards: a modification time set by hand is older than the change time that the kernel
//! keeps beside it, and only such a time counts, because the two folders may well be changed within one tick and then carry
//! one time before they are sealed (or never are: the process died); and a filesystem that rounds the time is found out by reading it back.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, FileTimes};
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::store::Owner;
use crate::mutation;

/// What an attachment holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Whether an ADD of ours made the reservation.
    pub ours: bool,
    /// Whether that was for an attachment on record, not by a delegate called on its own.
    pub recorded: bool,
    /// Its addresses in this folder.
    pub addresses: Vec<IpAddr>,
}

/// Everything that is held in a folder.
pub type Entries = HashMap<Owner, Entry>;

/// The index of one folder of reservations. Used only while that folder is locked.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    handle: File,
}

impl Index {
    /// Where the index of a folder is kept below our state folder.
    pub fn path_for(state_dir: &Path, folder: &Path) -> PathBuf {
        let mut name = String::new();
        for part in folder.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir)) {
            if !name.is_empty() {
                name.push(',');
            }
            name.push_str(&part.as_os_str().to_string_lossy().replace('%', "%25").replace(',', "%2C"));
        }
        state_dir.join("host-local").join(name)
    }

    /// The folder that an index of this name is of: the way back from [`Self::path_for`].
    pub fn folder_of(name: &str) -> PathBuf {
        let parts = name.split(',').map(|part| part.replace("%2C", ",").replace("%25", "%"));
        Path::new("/").join(parts.collect::<PathBuf>())
    }

    /// Opens the index, empty where it did not exist.
    ///
    /// # Errors
    /// Its folder cannot be made or opened: there is no index then.
    pub fn open(path: PathBuf) -> io::Result<Index> {
        let open = || File::open(&path);
        let handle = match open() {
            Err(missing) if missing.kind() == ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
                open()?
            }
            opened => opened?,
        };
        Ok(Index { path, handle })
    }

    /// Whether nothing happened in the folder since [`Self::seal`]: then what the index says is all there is.
    pub fn is_complete(&self, folder: &File) -> bool {
        let (Ok(index), Ok(folder)) = (self.handle.metadata(), folder.metadata()) else {
            return false;
        };
        let modified = |meta: &fs::Metadata| (meta.mtime(), meta.mtime_nsec());
        let set_by_hand = |meta: &fs::Metadata| modified(meta) < (meta.ctime(), meta.ctime_nsec());
        modified(&index) == modified(&folder) && set_by_hand(&index) && set_by_hand(&folder)
    }

    /// Declares the index complete. A failure leaves it incomplete, which costs time and nothing else.
    pub fn seal(&self, folder: &File) {
        mutation::before("reservation.seal", self.path.display());
        let mark = SystemTime::now() - Duration::from_secs(1);
        let sealed = set_exactly(folder, mark).and_then(|()| set_exactly(&self.handle, mark));
        if let Err(reason) = sealed {
            tracing::debug!("{} stays incomplete: {reason}", self.path.display());
        }
    }

    /// What an attachment holds; `None` for one that holds nothing.
    ///
    /// # Errors
    /// The link cannot be read or is not one of ours.
    pub fn get(&self, owner: &Owner) -> io::Result<Option<Entry>> {
        match fs::read_link(self.link(owner)) {
            Err(missing) if missing.kind() == ErrorKind::NotFound => Ok(None),
            // A name too long for a link has no entry; `put` refuses it, so the index is never complete with such an owner.
            Err(long) if long.kind() == ErrorKind::InvalidFilename => Ok(None),
            target => decode(&target?).map(Some),
        }
    }

    /// Sets what an attachment holds, atomically; nothing removes it.
    ///
    /// # Errors
    /// The link cannot be written.
    pub fn put(&self, owner: &Owner, entry: &Entry) -> io::Result<()> {
        let link = self.link(owner);
        mutation::before("reservation.index", link.display());
        if entry.addresses.is_empty() {
            return match fs::remove_file(link) {
                Err(missing) if missing.kind() == ErrorKind::NotFound => Ok(()),
                removed => removed,
            };
        }
        let target = encode(entry);
        match symlink(&target, &link) {
            Err(exists) if exists.kind() == ErrorKind::AlreadyExists => {
                // One temporary name is enough: the folder is locked.
                let new = self.path.join(".new");
                let _ = fs::remove_file(&new);
                symlink(&target, &new)?;
                fs::rename(&new, &link)
            }
            made => made,
        }
    }

    /// Everything the index holds. An entry that cannot be read comes without addresses.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn entries(&self) -> io::Result<Entries> {
        let mut entries = Entries::new();
        for name in fs::read_dir(&self.path)? {
            let name = name?;
            let owner = name.file_name().to_str().and_then(owner_of);
            let entry = fs::read_link(name.path()).and_then(|target| decode(&target));
            entries.extend(owner.map(|owner| (owner, entry.unwrap_or_default())));
        }
        Ok(entries)
    }

    /// Makes the index say what a scan of the folder found. Whose an attachment is stays as the index had it, and is filled
    /// into `found`.
    ///
    /// # Errors
    /// A link cannot be written or removed: the index is not complete then.
    pub fn rebuild(&self, found: &mut Entries) -> io::Result<()> {
        let known = self.entries()?;
        for (owner, entry) in found.iter_mut() {
            (entry.ours, entry.recorded) = known.get(owner).map_or((false, false), |k| (k.ours, k.recorded));
            entry.addresses.sort();
            if known.get(owner) != Some(entry) {
                self.put(owner, entry)?;
            }
        }
        for gone in known.keys().filter(|owner| !found.contains_key(owner)) {
            self.put(gone, &Entry::default())?;
        }
        Ok(())
    }

    fn link(&self, owner: &Owner) -> PathBuf {
        // No container id and no interface name can hold a colon.
        self.path.join(format!("{}:{}", owner.container_id, owner.interface))
    }
}

fn owner_of(name: &str) -> Option<Owner> {
    let (container_id, interface) = name.split_once(':')?;
    Some(Owner::new(container_id, interface))
}

fn encode(entry: &Entry) -> String {
    let word = match (entry.ours, entry.recorded) {
        (true, true) => "ours",
        (true, false) => "alone",
        (false, _) => "seen",
    };
    let mut text = word.to_string();
    for address in &entry.addresses {
        text.push(' ');
        text.push_str(&address.to_string());
    }
    text
}

fn decode(target: &Path) -> io::Result<Entry> {
    let parse = || {
        let mut words = target.to_str()?.split(' ');
        let (ours, recorded) = match words.next()? {
            "ours" => (true, true),
            "alone" => (true, false),
            "seen" => (false, false),
            _ => return None,
        };
        let addresses = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
        Some(Entry { ours, recorded, addresses })
    };
    parse().ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "not an entry of a host-local index"))
}

/// Sets a modification time and makes sure that the filesystem kept it to the nanosecond.
fn set_exactly(file: &File, time: SystemTime) -> io::Result<()> {
    file.set_times(FileTimes::new().set_modified(time))?;
    if file.metadata()?.modified()? == time {
        return Ok(());
    }
    Err(io::Error::new(ErrorKind::Unsupported, "the filesystem keeps no exact times"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(ours: bool, addresses: &[&str]) -> Entry {
        Entry { ours, recorded: ours, addresses: addresses.iter().map(|address| address.parse().unwrap()).collect() }
    }

    fn places() -> (tempfile::TempDir, File, Index) {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("net");
        fs::create_dir(&folder).unwrap();
        let index = Index::open(place.path().join("index")).unwrap();
        (place, File::open(folder).unwrap(), index)
    }

    #[test]
    fn each_folder_has_its_own_place() {
        let state = Path::new("/s");
        for (folder, name) in [
            ("/var/lib/cni/networks/net1", "var,lib,cni,networks,net1"),
            ("/var//lib/cni/./networks/net1/", "var,lib,cni,networks,net1"),
            ("/var,lib/cni", "var%2Clib,cni"),
            ("/var%2Clib/cni", "var%252Clib,cni"),
            ("/a/../b", "a,..,b"),
        ] {
            assert_eq!(Index::path_for(state, Path::new(folder)), state.join("host-local").join(name), "{folder}");
        }
    }

    #[test]
    fn an_entry_is_a_link_that_a_person_can_read() {
        let (place, _folder, index) = places();
        let owner = Owner::new("c1", "eth0");
        index.put(&owner, &entry(true, &["10.1.0.5", "fd00::5"])).unwrap();
        let link = fs::read_link(place.path().join("index/c1:eth0")).unwrap();
        assert_eq!(link, Path::new("ours 10.1.0.5 fd00::5"));
        index.put(&owner, &entry(false, &["10.1.0.6"])).unwrap();
        assert_eq!(index.get(&owner).unwrap(), Some(entry(false, &["10.1.0.6"])));
        let alone = Entry { recorded: false, ..entry(true, &["10.1.0.7"]) };
        index.put(&owner, &alone).unwrap();
        assert_eq!(fs::read_link(place.path().join("index/c1:eth0")).unwrap(), Path::new("alone 10.1.0.7"));
        assert_eq!(index.get(&owner).unwrap(), Some(alone));
        index.put(&owner, &Entry::default()).unwrap();
        assert_eq!(index.get(&owner).unwrap(), None);
        assert_eq!(index.entries().unwrap(), Entries::new());
    }

    #[test]
    fn an_index_is_complete_from_its_seal_to_the_next_change_of_the_folder() {
        let (place, folder, index) = places();
        assert!(!index.is_complete(&folder), "never sealed");
        index.seal(&folder);
        assert!(index.is_complete(&folder));
        // A change in the very tick of the seal, a thousand times: none may be missed.
        for round in 0..1000 {
            index.seal(&folder);
            fs::write(place.path().join(format!("net/{round}")), "x").unwrap();
            assert!(!index.is_complete(&folder), "round {round}: a new file went unnoticed");
            index.seal(&folder);
            fs::remove_file(place.path().join(format!("net/{round}"))).unwrap();
            assert!(!index.is_complete(&folder), "round {round}: a removal went unnoticed");
        }
    }

    #[test]
    fn two_folders_changed_in_one_tick_do_not_pass_for_sealed() {
        let (place, folder, index) = places();
        for round in 0..1000 {
            fs::write(place.path().join(format!("net/{round}")), "x").unwrap();
            index.put(&Owner::new("c", &round.to_string()), &entry(true, &["10.0.0.1"])).unwrap();
            assert!(!index.is_complete(&folder), "round {round}");
        }
    }

    #[test]
    fn a_broken_entry_is_an_error_and_the_next_scan_repairs_it() {
        let (place, _folder, index) = places();
        let (kept, gone) = (Owner::new("c1", "eth0"), Owner::new("c2", "eth0"));
        for owner in [&kept, &gone] {
            fs::write(place.path().join(format!("index/{}:eth0", owner.container_id)), "").unwrap();
            assert!(index.get(owner).is_err());
        }
        let mut found = Entries::from([(kept.clone(), entry(false, &["10.0.0.7"]))]);
        index.rebuild(&mut found).unwrap();
        assert_eq!(index.get(&kept).unwrap(), Some(entry(false, &["10.0.0.7"])));
        assert_eq!(index.get(&gone).unwrap(), None);
    }

    #[test]
    fn a_rebuild_remembers_what_is_ours() {
        let (_place, _folder, index) = places();
        let (ours, theirs, gone) = (Owner::new("c1", "eth0"), Owner::new("c2", "eth0"), Owner::new("c3", "eth0"));
        index.put(&ours, &entry(true, &["10.0.0.2"])).unwrap();
        index.put(&gone, &entry(true, &["10.0.0.4"])).unwrap();
        let mut found =
            Entries::from([(ours.clone(), entry(false, &["10.0.0.2"])), (theirs.clone(), entry(false, &["10.0.0.3"]))]);
        index.rebuild(&mut found).unwrap();
        let expected = Entries::from([(ours, entry(true, &["10.0.0.2"])), (theirs, entry(false, &["10.0.0.3"]))]);
        assert_eq!(found, expected);
        assert_eq!(index.entries().unwrap(), expected);
    }
}

//! A locked folder of reservations together with its index: claims, commits, releases and lists, at a cost that does not grow
//! with what others hold, as long as nobody else wrote into the folder. Which addresses to try is the caller's choice.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::index::{Entries, Entry, Index};
use super::store::{Folder, Held, Owner, StoreError};

/// Where the reservations of a network are, and where we keep our index of them.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    index: Option<PathBuf>,
    recorded: bool,
}

impl Store {
    /// The reservations in a folder (`<dataDir>/<network>`), without an index: every lookup reads the folder.
    pub fn open(folder: impl Into<PathBuf>) -> Store {
        Store { folder: folder.into(), index: None, recorded: false }
    }

    /// The same with an index below our state folder. It is used where it can be and missed nowhere else.
    pub fn with_index(self, state_dir: &Path) -> Store {
        let index = Some(Index::path_for(state_dir, &self.folder));
        Store { index, ..self }
    }

    /// The same, for attachments on record: so the index says of what is reserved from here on.
    pub fn recorded(self, recorded: bool) -> Store {
        Store { recorded, ..self }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Creates the folder where it is missing and locks it.
    ///
    /// # Errors
    /// The folder cannot be made, locked before the deadline or read.
    pub fn lock(&self, deadline: Instant) -> Result<Reservations, StoreError> {
        self.reservations(Folder::lock(&self.folder, deadline)?)
    }

    /// Locks a folder that exists; `None` where it does not, so that nobody holds anything.
    ///
    /// # Errors
    /// As [`Self::lock`].
    pub fn lock_existing(&self, deadline: Instant) -> Result<Option<Reservations>, StoreError> {
        let folder = Folder::lock_existing(&self.folder, deadline)?;
        folder.map(|folder| self.reservations(folder)).transpose()
    }

    fn reservations(&self, folder: Folder) -> Result<Reservations, StoreError> {
        Reservations::of(folder, self.index.as_deref(), self.recorded)
    }
}

/// An address whose file is ours and still empty. Dropped without [`Reservations::commit`] or [`Reservations::abandon`] it
/// is a leftover that anybody may take over.
#[derive(Debug)]
pub struct Claim {
    /// The pool's position: the number in `last_reserved_ip.<n>`.
    pub pool: usize,
    /// The address.
    pub address: IpAddr,
    file: File,
}

/// The reservations of a network, locked until this is dropped.
#[derive(Debug)]
pub struct Reservations {
    folder: Folder,
    index: Option<Index>,
    /// What a reading of the whole folder found; absent while the index is complete.
    scanned: Option<Entries>,
    /// Whether folder or index were touched since they were last sealed.
    changed: bool,
    recorded: bool,
}

impl Reservations {
    fn of(folder: Folder, index: Option<&Path>, recorded: bool) -> Result<Reservations, StoreError> {
        let index = index.and_then(|path| match Index::open(path.to_path_buf()) {
            Ok(index) => Some(index),
            Err(reason) => {
                tracing::warn!("no index of {} in {}: {reason}", folder.path().display(), path.display());
                None
            }
        });
        let complete = index.as_ref().is_some_and(|index| index.is_complete(folder.handle()));
        let mut reservations = Reservations { folder, index, scanned: None, changed: false, recorded };
        if !complete {
            reservations.scan()?;
        }
        Ok(reservations)
    }

    /// The address given out last for a pool.
    pub fn last_reserved(&self, pool: usize) -> Option<IpAddr> {
        self.folder.last_reserved(pool)
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How many reservations were read since the folder was locked.
    pub fn reads(&self) -> usize {
        self.folder.reads()
    }

    /// What an attachment holds, those of its container in the old format included.
    ///
    /// # Errors
    /// The folder or one of the files cannot be read.
    pub fn held_by(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, StoreError> {
        let mut held = self.proven(owner)?;
        held.extend(self.proven(&owner.without_interface())?);
        Ok(held)
    }

    /// Takes an address, if it is free.
    ///
    /// # Errors
    /// Its file cannot be created.
    pub fn claim(&mut self, pool: usize, address: IpAddr) -> Result<Option<Claim>, StoreError> {
        let file = self.folder.claim(address)?;
        self.changed |= file.is_some();
        Ok(file.map(|file| Claim { pool, address, file }))
    }

    /// Gives claims back, as far as that is possible: what stays is empty, and free.
    pub fn abandon(&mut self, claims: &[Claim]) {
        for claim in claims {
            if let Err(left) = self.folder.remove(claim.address) {
                tracing::warn!("{left}");
            }
        }
    }

    /// Makes claims the attachment's reservations.
    ///
    /// The index goes first: a process that dies between the two leaves empty files, which are free, and never a reservation
    /// that we do not know to be ours.
    ///
    /// # Errors
    /// A file cannot be written, as on a full disk. Nothing is reserved then.
    pub fn commit(&mut self, owner: &Owner, claims: &[Claim]) -> Result<(), StoreError> {
        let before = match self.entry(owner) {
            Ok(entry) => entry.unwrap_or_default(),
            Err(unreadable) => {
                self.abandon(claims);
                return Err(unreadable);
            }
        };
        let mut after = Entry { ours: true, recorded: self.recorded, addresses: before.addresses.clone() };
        after.addresses.extend(claims.iter().map(|claim| claim.address));
        after.addresses.sort();
        after.addresses.dedup();
        self.set_entry(owner, after);
        let written = self.write(owner, claims);
        if written.is_err() {
            self.abandon(claims);
            self.set_entry(owner, before);
        }
        written
    }

    /// Frees everything an attachment holds: what names it, and only where there is nothing, what an old version wrote for the
    /// whole container. Says what it freed.
    ///
    /// # Errors
    /// The folder cannot be read or a file cannot be removed; what could be freed is.
    pub fn release(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, StoreError> {
        let freed = self.release_exactly(owner)?;
        if !freed.is_empty() || owner.interface.is_empty() {
            return Ok(freed);
        }
        self.release_exactly(&owner.without_interface())
    }

    /// Everything that is held.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&mut self) -> Result<Vec<(Owner, Entry)>, StoreError> {
        if self.scanned.is_none() {
            match self.index.as_ref().map(Index::entries) {
                Some(Ok(entries)) => return Ok(sorted(entries)),
                _ => self.scan()?,
            }
        }
        Ok(sorted(self.scanned.clone().unwrap_or_default()))
    }

    /// Frees what every owner holds whom the caller condemns. Says whom that was.
    ///
    /// # Errors
    /// The folder cannot be read, or a file not be removed: the first such error, after all others were tried.
    pub fn release_matching(&mut self, condemned: &dyn Fn(&Owner, &Entry) -> bool) -> Result<Vec<Owner>, StoreError> {
        let mut failed = Ok(());
        let mut released = Vec::new();
        for (owner, entry) in self.list()? {
            if !condemned(&owner, &entry) {
                continue;
            }
            match self.release_exactly(&owner) {
                Ok(_) => released.push(owner),
                Err(error) => failed = failed.and(Err(error)),
            }
        }
        failed.map(|()| released)
    }

    /// The addresses of an index entry whose files say the same. An entry that is wrong shows that the index is.
    fn proven(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, StoreError> {
        let Some(entry) = self.entry(owner)? else {
            return Ok(Vec::new());
        };
        let mut proven = Vec::new();
        for address in &entry.addresses {
            if self.folder.read(*address)? == Held::By(owner.clone()) {
                proven.push(*address);
            }
        }
        if proven.len() < entry.addresses.len() && self.scanned.is_none() {
            self.scan()?;
            return Ok(self.entry(owner)?.unwrap_or_default().addresses);
        }
        Ok(proven)
    }

    fn release_exactly(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, StoreError> {
        let Some(entry) = self.entry(owner)? else {
            return Ok(Vec::new());
        };
        let mut freed = Vec::new();
        for address in &entry.addresses {
            match self.folder.read(*address)? {
                // Empty: the content was lost in a power cut, the index still knows whose it was.
                Held::Leftover => self.folder.remove(*address)?,
                Held::By(holder) if holder == *owner => self.folder.remove(*address)?,
                _ => continue,
            }
            self.changed = true;
            freed.push(*address);
        }
        self.set_entry(owner, Entry::default());
        Ok(freed)
    }

    fn write(&self, owner: &Owner, claims: &[Claim]) -> Result<(), StoreError> {
        for claim in claims {
            self.folder.write(&claim.file, claim.address, owner)?;
        }
        for claim in claims {
            self.folder.set_last_reserved(claim.pool, claim.address)?;
        }
        Ok(())
    }

    fn entry(&mut self, owner: &Owner) -> Result<Option<Entry>, StoreError> {
        if self.scanned.is_none() {
            match self.index.as_ref().map(|index| index.get(owner)) {
                Some(Ok(entry)) => return Ok(entry),
                Some(Err(broken)) => {
                    tracing::warn!("the index of {} is made anew: {broken}", self.folder.path().display());
                }
                // It was lost since the folder was locked: what could not be written made it useless.
                None => {}
            }
            self.scan()?;
        }
        Ok(self.scanned.as_ref().and_then(|scanned| scanned.get(owner).cloned()))
    }

    fn set_entry(&mut self, owner: &Owner, entry: Entry) {
        self.changed = true;
        let written = self.index.as_ref().map(|index| index.put(owner, &entry));
        if let Some(Err(reason)) = written {
            tracing::warn!("the index of {} is not kept: {reason}", self.folder.path().display());
            self.index = None;
        }
        if let Some(scanned) = &mut self.scanned {
            match entry.addresses.is_empty() {
                true => scanned.remove(owner),
                false => scanned.insert(owner.clone(), entry),
            };
        }
    }

    /// Reads the whole folder and brings the index up to date with it.
    fn scan(&mut self) -> Result<(), StoreError> {
        let mut found = self.folder.scan()?;
        let rebuilt = self.index.as_ref().map(|index| index.rebuild(&mut found));
        if let Some(Err(reason)) = rebuilt {
            tracing::warn!("the index of {} is not kept: {reason}", self.folder.path().display());
            self.index = None;
        }
        self.scanned = Some(found);
        self.changed = true;
        Ok(())
    }
}

impl Drop for Reservations {
    fn drop(&mut self) {
        if let Some(index) = self.index.as_ref().filter(|_| self.changed && !std::thread::panicking()) {
            index.seal(self.folder.handle());
        }
    }
}

fn sorted(entries: Entries) -> Vec<(Owner, Entry)> {
    let mut entries: Vec<_> = entries.into_iter().filter(|(_, entry)| !entry.addresses.is_empty()).collect();
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    entries
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;

    struct Place {
        place: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Place {
            Place { place: tempfile::tempdir().unwrap() }
        }

        fn folder(&self) -> PathBuf {
            self.place.path().join("networks/net1")
        }

        fn lock(&self) -> Reservations {
            let store = Store::open(self.folder()).with_index(&self.place.path().join("state"));
            store.lock(soon()).unwrap()
        }

        /// What the reference does to reserve an address, without a word to us.
        fn foreign(&self, address: &str, content: &str) {
            fs::create_dir_all(self.folder()).unwrap();
            fs::write(self.folder().join(address), content).unwrap();
        }

        fn content(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.folder().join(name)).ok()
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn reserve(reservations: &mut Reservations, owner: &Owner, addresses: &[&str]) {
        let claims: Vec<Claim> =
            addresses.iter().enumerate().map(|(pool, a)| reservations.claim(pool, ip(a)).unwrap().unwrap()).collect();
        reservations.commit(owner, &claims).unwrap();
    }

    #[test]
    fn files_are_named_written_and_permitted_as_the_reference_does() {
        let place = Place::new();
        reserve(&mut place.lock(), &Owner::new("c1", "eth0"), &["10.77.0.2", "fd77::2"]);
        for (name, content, mode) in [
            ("10.77.0.2", "c1\r\neth0", 0o600),
            ("fd77::2", "c1\r\neth0", 0o600),
            ("last_reserved_ip.0", "10.77.0.2", 0o600),
            ("last_reserved_ip.1", "fd77::2", 0o600),
            ("lock", "", 0o750),
        ] {
            assert_eq!(place.content(name).as_deref(), Some(content), "{name}");
            let permissions = fs::metadata(place.folder().join(name)).unwrap().permissions();
            assert_eq!(permissions.mode() & 0o777, mode, "{name}");
        }
        assert_eq!(fs::metadata(place.folder()).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(place.folder()).unwrap().count(), 5);
    }

    #[test]
    fn a_shorter_last_address_replaces_a_longer_one_whole() {
        let place = Place::new();
        let mut reservations = place.lock();
        reserve(&mut reservations, &Owner::new("c1", "eth0"), &["10.77.0.200"]);
        reserve(&mut reservations, &Owner::new("c2", "eth0"), &["10.77.0.3"]);
        assert_eq!(place.content("last_reserved_ip.0").unwrap(), "10.77.0.3");
        assert_eq!(reservations.last_reserved(0), Some(ip("10.77.0.3")));
    }

    #[test]
    fn with_a_complete_index_no_reservation_of_another_is_read() {
        let place = Place::new();
        for host in 2..200 {
            place.foreign(&format!("10.0.0.{host}"), &format!("other{host}\r\neth0"));
        }
        assert_eq!(place.lock().reads(), 198, "the first look reads all");
        let owner = Owner::new("c1", "eth0");
        let mut reservations = place.lock();
        assert_eq!(reservations.held_by(&owner).unwrap(), Vec::<IpAddr>::new());
        reserve(&mut reservations, &owner, &["10.0.0.201"]);
        assert_eq!(reservations.reads(), 0);
        drop(reservations);
        let mut reservations = place.lock();
        assert_eq!(reservations.release(&owner).unwrap(), [ip("10.0.0.201")]);
        assert_eq!(reservations.reads(), 1, "its own alone");
    }

    #[test]
    fn what_a_foreign_writer_did_is_noticed() {
        let place = Place::new();
        let (mine, theirs) = (Owner::new("c1", "eth0"), Owner::new("c2", "eth0"));
        reserve(&mut place.lock(), &mine, &["10.0.0.2"]);
        place.foreign("10.0.0.3", "c2\r\neth0");
        assert_eq!(place.lock().held_by(&theirs).unwrap(), [ip("10.0.0.3")]);
        fs::remove_file(place.folder().join("10.0.0.2")).unwrap();
        assert_eq!(place.lock().held_by(&mine).unwrap(), Vec::<IpAddr>::new());
        fs::remove_dir_all(place.folder()).unwrap();
        assert_eq!(place.lock().held_by(&theirs).unwrap(), Vec::<IpAddr>::new());
    }

    #[test]
    fn an_index_that_is_wrong_is_not_believed() {
        let place = Place::new();
        let (one, other) = (Owner::new("c1", "eth0"), Owner::new("c2", "eth0"));
        reserve(&mut place.lock(), &one, &["10.0.0.2"]);
        // Rewriting a file leaves the folder's time as it was.
        fs::write(place.folder().join("10.0.0.2"), "c2\r\neth0").unwrap();
        let mut reservations = place.lock();
        assert_eq!(reservations.held_by(&one).unwrap(), Vec::<IpAddr>::new());
        assert_eq!(reservations.held_by(&other).unwrap(), [ip("10.0.0.2")]);
        assert_eq!(reservations.release(&one).unwrap(), Vec::<IpAddr>::new());
        assert!(place.content("10.0.0.2").is_some(), "another's reservation stays");
    }

    #[test]
    fn release_matches_what_the_reference_matches() {
        for (content, freed) in [
            ("c1\r\neth0", true),
            ("  c1\r\neth0\n", true),
            ("c1", true),
            ("c1\n", true),
            ("c1\r\neth1", false),
            ("c12\r\neth0", false),
            ("c1\neth0", false),
            ("\u{0}\u{1}", false),
        ] {
            let place = Place::new();
            place.foreign("10.0.0.2", content);
            let released = place.lock().release(&Owner::new("c1", "eth0")).unwrap();
            assert_eq!(!released.is_empty(), freed, "{content:?}");
            assert_eq!(place.content("10.0.0.2").is_none(), freed, "{content:?}");
        }
    }

    #[test]
    fn the_old_format_is_released_only_when_nothing_names_the_interface() {
        let place = Place::new();
        place.foreign("10.0.0.2", "c1\r\neth0");
        place.foreign("10.0.0.3", "c1");
        let owner = Owner::new("c1", "eth0");
        assert_eq!(place.lock().release(&owner).unwrap(), [ip("10.0.0.2")]);
        assert_eq!(place.lock().release(&owner).unwrap(), [ip("10.0.0.3")]);
        assert_eq!(place.lock().release(&owner).unwrap(), Vec::<IpAddr>::new());
    }

    #[test]
    fn an_empty_file_is_free_and_a_full_one_is_not() {
        let place = Place::new();
        place.foreign("10.0.0.2", "");
        place.foreign("10.0.0.3", "x");
        let mut reservations = place.lock();
        assert!(reservations.claim(0, ip("10.0.0.3")).unwrap().is_none());
        reserve(&mut reservations, &Owner::new("c1", "eth0"), &["10.0.0.2"]);
        assert_eq!(place.content("10.0.0.2").unwrap(), "c1\r\neth0");
    }

    #[test]
    fn a_reservation_that_lost_its_content_is_released_by_the_index() {
        let place = Place::new();
        let owner = Owner::new("c1", "eth0");
        reserve(&mut place.lock(), &owner, &["10.0.0.2"]);
        fs::write(place.folder().join("10.0.0.2"), "").unwrap();
        assert_eq!(place.lock().release(&owner).unwrap(), [ip("10.0.0.2")]);
        assert_eq!(place.content("10.0.0.2"), None);
    }

    #[test]
    fn a_failed_commit_leaves_no_reservation() {
        let place = Place::new();
        let owner = Owner::new("c1", "eth0");
        // A folder where the file with the last address belongs makes the last step fail.
        fs::create_dir_all(place.folder().join("last_reserved_ip.0")).unwrap();
        let mut reservations = place.lock();
        let claim = reservations.claim(0, ip("10.0.0.2")).unwrap().unwrap();
        let error = reservations.commit(&owner, &[claim]).unwrap_err().to_string();
        assert!(error.starts_with("cannot write ") && error.contains("last_reserved_ip.0"), "{error}");
        assert_eq!(place.content("10.0.0.2"), None);
        drop(reservations);
        assert_eq!(place.lock().held_by(&owner).unwrap(), Vec::<IpAddr>::new());
    }

    #[test]
    fn without_a_writable_index_everything_works_by_reading() {
        let place = Place::new();
        fs::write(place.place.path().join("state"), "no folder").unwrap();
        let owner = Owner::new("c1", "eth0");
        reserve(&mut place.lock(), &owner, &["10.0.0.2"]);
        assert_eq!(place.lock().held_by(&owner).unwrap(), [ip("10.0.0.2")]);
        assert_eq!(place.lock().release(&owner).unwrap(), [ip("10.0.0.2")]);
        assert_eq!(place.content("10.0.0.2"), None);
    }

    #[test]
    fn an_index_that_breaks_midway_is_replaced_by_reading() {
        let place = Place::new();
        let (one, other) = (Owner::new("c1", "eth0"), Owner::new("c2", "eth0"));
        reserve(&mut place.lock(), &one, &["10.0.0.2"]);
        reserve(&mut place.lock(), &other, &["10.0.0.3"]);
        let mut reservations = place.lock();
        // No link can have so long a name, so this owner cannot be noted.
        let endless = Owner::new(&"x".repeat(300), "eth0");
        reserve(&mut reservations, &endless, &["10.0.0.4"]);
        for owner in [&one, &other, &endless] {
            assert_eq!(reservations.release(owner).unwrap().len(), 1, "{owner:?}");
        }
        assert_eq!(fs::read_dir(place.folder()).unwrap().count(), 2, "the lock and the last address");
    }

    #[test]
    fn ours_are_told_from_those_of_others() {
        let place = Place::new();
        place.foreign("10.0.0.9", "podman1\r\neth0");
        reserve(&mut place.lock(), &Owner::new("c1", "eth0"), &["10.0.0.2"]);
        place.foreign("10.0.0.10", "podman2\r\neth0");
        let listed: Vec<_> = place.lock().list().unwrap().into_iter().map(|(o, e)| (o.container_id, e.ours)).collect();
        let expected = [("c1".to_string(), true), ("podman1".to_string(), false), ("podman2".to_string(), false)];
        assert_eq!(listed, expected);
        let freed = place.lock().release_matching(&|_, entry| entry.ours).unwrap();
        assert_eq!(freed, [Owner::new("c1", "eth0")]);
        assert!(place.content("10.0.0.9").is_some() && place.content("10.0.0.10").is_some());
    }

    #[test]
    fn a_lock_that_another_holds_is_waited_for_until_the_deadline() {
        let place = Place::new();
        let held = place.lock();
        let store = Store::open(place.folder());
        let error = store.lock(Instant::now() + Duration::from_millis(20)).unwrap_err().to_string();
        assert!(error.ends_with("networks/net1/lock is still locked by another process"), "{error}");
        let waiting = std::thread::spawn(move || store.lock(soon()).map(|_| ()));
        std::thread::sleep(Duration::from_millis(10));
        drop(held);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn a_folder_that_is_not_there_holds_nothing_and_is_not_made_by_looking() {
        let place = Place::new();
        assert!(Store::open(place.folder()).lock_existing(soon()).unwrap().is_none());
        assert!(!place.folder().exists());
    }
}

//! Writes the archive that the kernel unpacks as its first file system: cpio in the "newc" form (the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`), uncompressed, all owned by root.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const FOLDER: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const TRAILER: &str = "TRAILER!!!";
/// Length of a header: six bytes of magic and thirteen numbers of eight hexadecimal digits.
const HEADER: u64 = 6 + 13 * 8;

/// The archive's entries by their path in the guest. A path sorts after its parents, which is the order the kernel needs.
#[derive(Debug, Default)]
pub(super) struct Initramfs(BTreeMap<PathBuf, Entry>);

#[derive(Debug)]
enum Entry {
    Folder,
    Bytes(Vec<u8>),
    Host(PathBuf),
}

impl Initramfs {
    /// Adds a file of the host, or a folder and all that is in it; links are followed.
    pub(super) fn host(&mut self, guest: &Path, host: &Path) -> Result<()> {
        let unreadable = || format!("cannot read {}, which goes into the virtual machine", host.display());
        if !fs::metadata(host).with_context(unreadable)?.is_dir() {
            self.add(guest, Entry::Host(host.to_owned()));
            return Ok(());
        }
        self.add(guest, Entry::Folder);
        for child in fs::read_dir(host).with_context(unreadable)? {
            let child = child.with_context(unreadable)?;
            self.host(&guest.join(child.file_name()), &child.path())?;
        }
        Ok(())
    }

    pub(super) fn bytes(&mut self, guest: &Path, bytes: Vec<u8>) {
        self.add(guest, Entry::Bytes(bytes));
    }

    pub(super) fn host_files(&self) -> impl Iterator<Item = &Path> {
        self.0.values().filter_map(|entry| match entry {
            Entry::Host(path) => Some(path.as_path()),
            Entry::Folder | Entry::Bytes(_) => None,
        })
    }

    /// Returns the archive's size in bytes.
    pub(super) fn write(&self, path: &Path) -> Result<u64> {
        let unwritable = || format!("cannot write {}", path.display());
        let mut archive =
            Archive { to: BufWriter::new(File::create(path).with_context(unwritable)?), written: 0, inode: 0 };
        for (guest, entry) in &self.0 {
            archive.entry(guest, entry).with_context(|| format!("cannot archive {}", guest.display()))?;
        }
        archive.member(TRAILER, 0, 0, &mut io::empty()).with_context(unwritable)?;
        archive.to.flush().with_context(unwritable)?;
        Ok(archive.written)
    }

    /// Paths lose their leading slash; the folders above come along.
    fn add(&mut self, guest: &Path, entry: Entry) {
        let guest = guest.strip_prefix("/").unwrap_or(guest);
        for parent in guest.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            self.0.entry(parent.to_owned()).or_insert(Entry::Folder);
        }
        self.0.insert(guest.to_owned(), entry);
    }
}

struct Archive<W> {
    to: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, guest: &Path, entry: &Entry) -> Result<()> {
        let name = guest.to_str().context("the name is not UTF-8")?;
        match entry {
            Entry::Folder => self.member(name, FOLDER | 0o755, 0, &mut io::empty()),
            Entry::Bytes(bytes) => self.member(name, REGULAR | 0o644, bytes.len() as u64, &mut bytes.as_slice()),
            Entry::Host(path) => {
                let mut file = File::open(path)?;
                let metadata = file.metadata()?;
                self.member(name, REGULAR | metadata.permissions().mode() & 0o7777, metadata.len(), &mut file)
            }
        }
    }

    fn member(&mut self, name: &str, mode: u32, size: u64, content: &mut dyn io::Read) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(size).context("larger than the 4 GiB that newc can say")?;
        let name_size = u32::try_from(name.len() + 1)?;
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let numbers = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let header: String = numbers.iter().map(|number| format!("{number:08X}")).collect();
        write!(self.to, "070701{header}{name}\0")?;
        self.written += HEADER + u64::from(name_size);
        self.pad()?;
        let copied = io::copy(content, &mut self.to)?;
        ensure!(copied == u64::from(size), "the file changed while it was read");
        self.written += copied;
        self.pad()
    }

    fn pad(&mut self) -> Result<()> {
        while !self.written.is_multiple_of(4) {
            self.to.write_all(&[0])?;
            self.written += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name mode size` of every member, and its content.
    fn read_back(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
        let number = |at: usize, field: usize| {
            let start = at + 6 + field * 8;
            u32::from_str_radix(std::str::from_utf8(&archive[start..start + 8]).unwrap(), 16).unwrap()
        };
        let mut members = Vec::new();
        let mut at = 0;
        while at < archive.len() {
            assert_eq!(&archive[at..at + 6], b"070701");
            let (mode, size, name_size) = (number(at, 1), number(at, 6) as usize, number(at, 11) as usize);
            let name = std::str::from_utf8(&archive[at + 110..at + 110 + name_size - 1]).unwrap();
            let content = (at + 110 + name_size).next_multiple_of(4);
            members.push((format!("{name} {mode:o} {size}"), archive[content..content + size].to_vec()));
            at = (content + size).next_multiple_of(4);
        }
        members
    }

    #[test]
    fn members_come_after_the_folders_they_are_in() {
        let folder = tempfile::tempdir().unwrap();
        let (host, path) = (folder.path().join("tree"), folder.path().join("archive"));
        fs::create_dir_all(host.join("sub")).unwrap();
        fs::write(host.join("sub/tool"), "#!x").unwrap();
        fs::set_permissions(host.join("sub/tool"), fs::Permissions::from_mode(0o755)).unwrap();

        let mut initramfs = Initramfs::default();
        initramfs.bytes("/vm/a".as_ref(), b"four+".to_vec());
        initramfs.host("/opt/tree".as_ref(), &host).unwrap();
        let size = initramfs.write(&path).unwrap();

        let archive = fs::read(path).unwrap();
        assert_eq!(archive.len() as u64, size);
        let expected: [(&str, &[u8]); 7] = [
            ("opt 40755 0", b""),
            ("opt/tree 40755 0", b""),
            ("opt/tree/sub 40755 0", b""),
            ("opt/tree/sub/tool 100755 3", b"#!x"),
            ("vm 40755 0", b""),
            ("vm/a 100644 5", b"four+"),
            ("TRAILER!!! 0 0", b""),
        ];
        let expected = expected.map(|(name, content)| (name.to_owned(), content.to_vec()));
        assert_eq!(read_back(&archive), expected);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Initramfs::default().host("/x".as_ref(), "/no/such/file".as_ref()).unwrap_err();
        assert!(error.to_string().contains("/no/such/file"), "{error}");
    }
}

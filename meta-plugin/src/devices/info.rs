//! Files that describe a device (device-info 1.1): a device plugin writes one for each of its devices; ADD copies it for the
//! attachment, whose plugins may rewrite it; what stands there in the end is published, and DEL removes it.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use musubi_delegates::cni::{CniError, code};
use musubi_delegates::mark::{Mark, fnv1a};
use musubi_delegates::mutation;
use nix::fcntl::OFlag;
use serde_json::Value;

use super::Device;

/// Bytes of a file beyond which it is no description of a device: real ones have a few hundred, and all that is published
/// has to fit into a pod's annotations.
const MAX_BYTES: u64 = 16 << 10;

/// The folder of device-info files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder, which has one for device plugins and one for attachments.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The file that a device plugin writes (device-info §4.1).
    #[must_use]
    pub fn of_device(&self, device: &Device) -> PathBuf {
        let part = |text: &str| text.replace('/', "-");
        self.0.join("dp").join(format!("{}-{}-device.json", part(&device.resource), part(&device.id)))
    }

    /// The file of an attachment. Its name begins as the names of all of ours do; what it ends with tells it from that of
    /// another installation, and of another attachment whose names make the same text.
    #[must_use]
    pub fn of_attachment(&self, mark: Mark, container: &str, interface: &str) -> PathBuf {
        let hash = fnv1a(format!("{container}:{interface}").bytes());
        let hash = (hash ^ (hash >> 32)) & 0x00ff_ffff;
        self.0.join("cni").join(format!("musubi-{container}-{interface}-{mark}{hash:06x}.json"))
    }
}

/// Gives an attachment's plugins the description that the device plugin wrote. Without a usable one they may write their
/// own: the folder is there, and nothing of an earlier attachment.
///
/// # Errors
/// What is wrong with the description or the folder, in one line; ADD can do without.
pub fn prepare(file: &Path, of_device: Option<&Path>) -> Result<(), String> {
    let at = |e: io::Error| format!("device-info file {}: {e}", file.display());
    if let Some(folder) = file.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(at)?;
    }
    mutation::before("device-info.clear", file.display());
    remove_both(file).map_err(at)?;
    let Some(of_device) = of_device else { return Ok(()) };
    let Some(bytes) = read_bytes(of_device)? else { return Ok(()) };
    parse(&bytes).map_err(|problem| about(of_device, &problem))?;
    let new = temporary(file);
    mutation::before("device-info.write", file.display());
    fs::write(&new, &bytes).and_then(|()| fs::rename(&new, file)).map_err(at)
}

/// What an attachment's file says after its plugins have run; `None` when there is none.
///
/// # Errors
/// What is wrong with it, in one line.
pub fn read(file: &Path) -> Result<Option<Value>, String> {
    let bytes = read_bytes(file)?;
    bytes.map(|bytes| parse(&bytes).map_err(|problem| about(file, &problem))).transpose()
}

/// Removes an attachment's file; it may be gone already.
///
/// # Errors
/// Code 5.
pub fn remove(file: &Path) -> Result<(), CniError> {
    mutation::before("device-info.remove", file.display());
    remove_both(file).map_err(|e| CniError::new(code::IO, format!("remove device-info file {}: {e}", file.display())))
}

fn remove_both(file: &Path) -> io::Result<()> {
    for path in [temporary(file), file.to_owned()] {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// One temporary name is enough, since the container is locked.
fn temporary(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!(".{name}"))
}

/// Others write these files, so it may be anything that stands there: a pipe is not waited for, and a huge file not read.
fn read_bytes(file: &Path) -> Result<Option<Vec<u8>>, String> {
    let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(file);
    let opened = match opened {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|e| about(file, &e))?,
    };
    let metadata = opened.metadata().map_err(|e| about(file, &e))?;
    if !metadata.is_file() {
        return Err(about(file, &"is no file"));
    }
    let mut bytes = Vec::new();
    opened.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| about(file, &e))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(about(file, &format!("is larger than {MAX_BYTES} bytes")));
    }
    Ok(Some(bytes))
}

fn about(file: &Path, problem: &dyn std::fmt::Display) -> String {
    format!("device-info file {} is ignored: {problem}", file.display())
}

/// A description that every reader of the status can read: known keys hold what the standard's Go types hold, since one that
/// does not makes the whole status unreadable there. Unknown keys stay.
fn parse(bytes: &[u8]) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| format!("it is not JSON: {e}"))?;
    let Value::Object(map) = &value else { return Err("it is no JSON object".to_owned()) };
    if map.get("type").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err("key \"type\" must be a text".to_owned());
    }
    if map.get("version").is_some_and(|version| !version.is_string()) {
        return Err("key \"version\" must be a text".to_owned());
    }
    for (kind, texts) in DETAILS {
        let Some(details) = map.get(*kind) else { continue };
        let Value::Object(details) = details else { return Err(format!("key \"{kind}\" must be an object")) };
        if let Some(key) = texts.iter().find(|key| details.get(**key).is_some_and(|value| !value.is_string())) {
            return Err(format!("key \"{kind}.{key}\" must be a text"));
        }
    }
    Ok(value)
}

/// What each kind of device says of itself (device-info §3).
const DETAILS: &[(&str, &[&str])] = &[
    ("pci", &["pci-address", "vhost-net", "rdma-device", "pf-pci-address", "representor-device"]),
    ("vdpa", &["parent-device", "driver", "path", "pci-address", "pf-pci-address", "representor-device"]),
    ("vhost-user", &["mode", "path"]),
    ("memif", &["role", "path", "mode"]),
];

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;
    use serde_json::json;

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::new(temporary.path().join("devinfo"));
        fs::create_dir_all(temporary.path().join("devinfo/dp")).unwrap();
        (temporary, folder)
    }

    fn attachment(folder: &Folder) -> PathBuf {
        folder.of_attachment(Mark::of(Path::new("/")).unwrap(), "c1", "net1")
    }

    fn device(resource: &str, id: &str) -> Device {
        Device { resource: resource.to_owned(), id: id.to_owned() }
    }

    #[test]
    fn the_files_of_devices_are_where_device_plugins_write_them() {
        let folder = Folder::new(PathBuf::from("/devinfo"));
        let rows = [
            (device("intel.com/vf", "0000:03:02.1"), "/devinfo/dp/intel.com-vf-0000:03:02.1-device.json"),
            (device("a.com/x/y", "../../etc/passwd"), "/devinfo/dp/a.com-x-y-..-..-etc-passwd-device.json"),
        ];
        for (device, path) in rows {
            assert_eq!(folder.of_device(&device), Path::new(path));
        }
    }

    #[test]
    fn each_attachment_of_each_installation_has_a_file_of_its_own() {
        let (temporary, folder) = folder();
        let [mark, other] = [temporary.path(), &temporary.path().join("devinfo")].map(|path| Mark::of(path).unwrap());
        let files = [
            folder.of_attachment(mark, "c1", "net1"),
            folder.of_attachment(other, "c1", "net1"),
            folder.of_attachment(mark, "c1-a", "b"),
            folder.of_attachment(mark, "c1", "a-b"),
        ];
        assert_eq!(files.iter().collect::<std::collections::BTreeSet<_>>().len(), files.len());
        assert_eq!(folder.of_attachment(mark, "c1", "net1"), files[0], "the same each time");
        let name = files[0].file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with(&format!("musubi-c1-net1-{mark}")) && name.ends_with(".json"), "{name}");
    }

    #[test]
    fn what_is_removed_may_be_gone_already() {
        let (_temporary, folder) = folder();
        let file = attachment(&folder);
        prepare(&file, None).unwrap();
        for path in [temporary(&file), file.clone()] {
            fs::write(&path, "{}").unwrap();
            remove(&file).unwrap();
            remove(&file).unwrap();
            assert!(!path.exists(), "{}", path.display());
        }
    }

    #[test]
    fn a_description_is_copied_as_it_is_and_replaces_an_earlier_one() {
        let (_temporary, folder) = folder();
        let (source, file) = (folder.of_device(&device("a.com/vf", "1")), attachment(&folder));
        let text =
            r#"{ "type": "pci", "version": "1.1.0", "x": 1.50, "pci": {"pci-address": "0000:03:02.1", "numa": 1} }"#;
        prepare(&file, Some(&source)).unwrap();
        assert_eq!(read(&file).unwrap(), None, "no device plugin wrote one");
        for earlier in ["", "{\"type\":\"memif\"}"] {
            fs::write(&file, earlier).unwrap();
            fs::write(&source, text).unwrap();
            prepare(&file, Some(&source)).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
            assert_eq!(read(&file).unwrap().unwrap()["pci"], json!({"pci-address": "0000:03:02.1", "numa": 1}));
            prepare(&file, None).unwrap();
            assert!(!file.exists(), "nothing of an earlier attachment");
        }
    }

    #[test]
    fn what_describes_no_device_is_named_and_not_copied() {
        let (_temporary, folder) = folder();
        let (source, file) = (folder.of_device(&device("a.com/vf", "1")), attachment(&folder));
        let rows = [
            ("".to_owned(), "not JSON"),
            ("[]".to_owned(), "no JSON object"),
            ("{}".to_owned(), "\"type\""),
            (r#"{"type":""}"#.to_owned(), "\"type\""),
            (r#"{"type":5}"#.to_owned(), "\"type\""),
            (r#"{"type":"pci","version":1.1}"#.to_owned(), "\"version\""),
            (r#"{"type":"pci","pci":null}"#.to_owned(), "\"pci\""),
            (r#"{"type":"pci","pci":{"pci-address":["x"]}}"#.to_owned(), "\"pci.pci-address\""),
            (r#"{"type":"memif","vhost-user":{"mode":1}}"#.to_owned(), "\"vhost-user.mode\""),
            (format!(r#"{{"type":"pci","x":"{}"}}"#, "x".repeat(1 << 20)), "larger than 16384 bytes"),
            ("[".repeat(10_000), "not JSON"),
        ];
        for (text, words) in rows {
            fs::write(&source, &text).unwrap();
            let problem = prepare(&file, Some(&source)).unwrap_err();
            assert!(problem.contains(words) && problem.contains("a.com-vf-1-device.json"), "{words}: {problem}");
            assert!(!file.exists(), "{words}");
            fs::write(&file, &text).unwrap();
            let problem = read(&file).unwrap_err();
            assert!(problem.contains(words) && !problem.contains('\n'), "{words}: {problem}");
        }
    }

    #[test]
    fn nothing_waits_for_what_is_no_file() {
        let (_temporary, folder) = folder();
        let (source, file) = (folder.of_device(&device("a.com/vf", "1")), attachment(&folder));
        nix::unistd::mkfifo(&source, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        assert!(prepare(&file, Some(&source)).unwrap_err().contains("is no file"));
        fs::create_dir(&file).unwrap();
        assert!(read(&file).unwrap_err().contains("is no file"));
    }
}

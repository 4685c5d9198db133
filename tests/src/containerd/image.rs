//! The image of a pod's sandbox, built here as an OCI archive: one layer with one static program, `pause.rs`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;

/// The program, as `build.rs` compiled it.
const PAUSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// The image's name.
pub const NAME: &str = "musubi.test/pause:1";

/// The archive, built once for all tests of a process.
///
/// # Panics
/// When `tar` or `sha256sum` is missing.
#[must_use]
pub fn archive() -> &'static [u8] {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();
    ARCHIVE.get_or_init(build)
}

fn build() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let layout = Layout::new(&folder);
    let layer = layout.add_file(&layer(folder.path()));
    let config = layout.add(&json!({
        "architecture": architecture(), "os": "linux", "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
    }));
    let manifest = layout.add(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")],
    }));
    let mut named = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    named["annotations"] = json!({"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": NAME});
    layout.write("index.json", &json!({"schemaVersion": 2, "manifests": [named]}));
    layout.write("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}));
    let archive = folder.path().join("image.tar");
    tar(&layout.folder, &archive, &["blobs", "index.json", "oci-layout"]);
    fs::read(archive).expect("the archive")
}

/// The one layer: the program alone. Its owner is root by number, whoever packs it.
fn layer(folder: &Path) -> PathBuf {
    let root = folder.join("root");
    fs::create_dir(&root).expect("a folder");
    fs::write(root.join("pause"), PAUSE).expect("the program");
    fs::set_permissions(root.join("pause"), fs::Permissions::from_mode(0o755)).expect("the program can be run");
    let layer = folder.join("layer.tar");
    tar(&root, &layer, &["--owner=0", "--group=0", "pause"]);
    layer
}

/// The architecture by the name that images use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An OCI image layout that grows.
struct Layout {
    folder: PathBuf,
}

struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest, "size": self.size})
    }
}

impl Layout {
    fn new(folder: &TempDir) -> Self {
        let folder = folder.path().join("layout");
        fs::create_dir_all(folder.join("blobs/sha256")).expect("a folder");
        Self { folder }
    }

    fn write(&self, name: &str, content: &Value) {
        fs::write(self.folder.join(name), content.to_string()).expect("a file of the image");
    }

    fn add(&self, content: &Value) -> Blob {
        self.write("blob", content);
        self.add_file(&self.folder.join("blob"))
    }

    /// Moves a file to its place among the blobs, which is its digest.
    fn add_file(&self, file: &Path) -> Blob {
        let printed = run(Command::new("sha256sum").arg(file));
        let digest = printed.split_whitespace().next().expect("a digest").to_owned();
        let size = fs::metadata(file).expect("a blob").len();
        fs::rename(file, self.folder.join("blobs/sha256").join(&digest)).expect("a blob in its place");
        Blob { digest: format!("sha256:{digest}"), size }
    }
}

fn tar(folder: &Path, archive: &Path, arguments: &[&str]) {
    run(Command::new("tar").arg("--create").arg("--file").arg(archive).arg("--directory").arg(folder).args(arguments));
}

/// What a tool prints.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("start {command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

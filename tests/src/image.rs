//! Container images without a container engine: one static program in one layer, as an OCI image layout in a tar archive that
//! `ctr images import`, `podman load`, `skopeo` and `docker load` take. The same program gives the same bytes.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Digests name what they are of; times would differ from one build to the next.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// An image to write.
#[derive(Debug)]
pub struct Image<'a> {
    /// Its name in full, with the registry. The last part is the program's: `/<name>` is the entry point.
    pub repository: &'a str,
    /// Its tag.
    pub version: &'a str,
    /// What it is, in one line.
    pub description: &'a str,
    /// The static program.
    pub program: &'a [u8],
}

/// Something in the archive that is named by its digest.
struct Blob {
    media_type: &'static str,
    content: Vec<u8>,
}

impl Image<'_> {
    /// The archive.
    ///
    /// # Errors
    /// The program is none that runs in an empty file system.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let architecture = architecture(self.program)?;
        // Not compressed: every runtime takes it so, and what pushes it to a registry compresses it.
        let layer = Blob {
            media_type: "application/vnd.oci.image.layer.v1.tar",
            content: archive([(self.name(), 0o755, self.program)])?,
        };
        let config =
            Blob::json("application/vnd.oci.image.config.v1+json", &self.config(architecture, &layer.digest()));
        let manifest = Blob::json(
            "application/vnd.oci.image.manifest.v1+json",
            &json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config.descriptor(),
                "layers": [layer.descriptor()],
            }),
        );
        let index = self.index(&manifest, architecture).to_string();
        let for_docker = self.docker_manifest(&config, &layer).to_string();
        let [config_path, layer_path, manifest_path] = [&config, &layer, &manifest].map(Blob::path);
        archive([
            ("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#.as_slice()),
            ("index.json", 0o644, index.as_bytes()),
            ("manifest.json", 0o644, for_docker.as_bytes()),
            (&config_path, 0o644, &config.content),
            (&layer_path, 0o644, &layer.content),
            (&manifest_path, 0o644, &manifest.content),
        ])
    }

    /// What a pod's `image:` and `docker run` call it.
    #[must_use]
    pub fn reference(&self) -> String {
        let short = self.repository.strip_prefix("docker.io/library/").unwrap_or(self.repository);
        format!("{short}:{}", self.version)
    }

    fn name(&self) -> &str {
        self.repository.rsplit('/').next().unwrap_or(self.repository)
    }

    fn config(&self, architecture: &str, layer: &str) -> Value {
        json!({
            "created": CREATED,
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Entrypoint": [format!("/{}", self.name())],
                "WorkingDir": "/",
                "Labels": {
                    "org.opencontainers.image.title": self.name(),
                    "org.opencontainers.image.description": self.description,
                    "org.opencontainers.image.version": self.version,
                    "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
                },
            },
            "rootfs": {"type": "layers", "diff_ids": [layer]},
            "history": [{"created": CREATED, "created_by": format!("the static program as /{}", self.name())}],
        })
    }

    fn index(&self, manifest: &Blob, architecture: &str) -> Value {
        let mut descriptor = manifest.descriptor();
        descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        descriptor["annotations"] = json!({
            // containerd and podman take this one, and kubelet asks for the name in full.
            "io.containerd.image.name": format!("{}:{}", self.repository, self.version),
            "org.opencontainers.image.ref.name": self.reference(),
        });
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [descriptor]})
    }

    /// `docker load` without containerd's image store reads this instead of the index.
    fn docker_manifest(&self, config: &Blob, layer: &Blob) -> Value {
        json!([{"Config": config.path(), "RepoTags": [self.reference()], "Layers": [layer.path()]}])
    }
}

impl Blob {
    fn json(media_type: &'static str, value: &Value) -> Self {
        Self { media_type, content: value.to_string().into_bytes() }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", hex_digest(&self.content))
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", hex_digest(&self.content))
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest(), "size": self.content.len()})
    }
}

/// The SHA-256 of some bytes, in hexadecimal.
#[must_use]
pub fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tar archive of files (path, mode, content) that are root's and of no time.
fn archive<'a>(files: impl IntoIterator<Item = (&'a str, u32, &'a [u8])>) -> Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for (path, mode, content) in files {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(u64::try_from(content.len())?);
        builder.append_data(&mut header, path, content)?;
    }
    Ok(builder.into_inner()?)
}

/// What images call the machine that a program is for, from its ELF header (elf(5)).
fn architecture(program: &[u8]) -> Result<&'static str> {
    ensure!(program.starts_with(b"\x7fELF\x02\x01"), "it is no 64-bit little-endian ELF program");
    ensure!(!asks_for_a_loader(program)?, "it is linked dynamically, and the image has no libraries; use `make build`");
    match u16::from_le_bytes(bytes(program, 18)?) {
        62 => Ok("amd64"),
        183 => Ok("arm64"),
        machine => bail!("it is for ELF machine {machine}; known are 62 (x86_64) and 183 (aarch64)"),
    }
}

fn asks_for_a_loader(program: &[u8]) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    let table = usize::try_from(u64::from_le_bytes(bytes(program, 32)?))?;
    let (size, count) = (u16::from_le_bytes(bytes(program, 54)?), u16::from_le_bytes(bytes(program, 56)?));
    for entry in 0..usize::from(count) {
        if u32::from_le_bytes(bytes(program, table.saturating_add(entry * usize::from(size)))?) == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

fn bytes<const N: usize>(program: &[u8], offset: usize) -> Result<[u8; N]> {
    let found = program.get(offset..).and_then(|rest| rest.first_chunk());
    found.copied().context("it ends in the middle of its ELF header")
}

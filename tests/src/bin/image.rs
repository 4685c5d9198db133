//! `make image`: writes the image of a program, `image PROGRAM ARCHIVE`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use musubi_tests::image::Image;

/// The programs that there are images of, and what each is in one line. Each has an image of its own, with nothing in it
/// that it does not need.
const PROGRAMS: [(&str, &str); 2] = [
    ("musubi", "Several networks for one pod: a Kubernetes CNI meta-plugin"),
    ("musubi-webhook", "Several networks for one pod: the admission server"),
];

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [program, archive] = arguments.as_slice() else { bail!("call it as: image PROGRAM ARCHIVE") };
    write(program, archive)
}

#[allow(clippy::print_stdout, reason = "it is what the user of make sees")]
fn write(program: &Path, archive: &Path) -> Result<()> {
    let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((_, description)) = PROGRAMS.iter().find(|(known, _)| *known == name) else {
        bail!("{} is none of {}", program.display(), PROGRAMS.map(|(known, _)| known).join(", "));
    };
    let content = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let image = Image {
        repository: &format!("docker.io/library/{name}"),
        version: env!("CARGO_PKG_VERSION"),
        description,
        program: &content,
    };
    let bytes = image.archive().with_context(|| format!("{} cannot be put into an image", program.display()))?;
    if let Some(folder) = archive.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(archive, &bytes).with_context(|| format!("cannot write {}", archive.display()))?;
    println!("{}: {}, {:.1} MB", archive.display(), image.reference(), bytes.len() as f64 / 1e6);
    Ok(())
}

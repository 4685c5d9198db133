//! `make image`: writes the image of a program, `image PROGRAM ARCHIVE`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use musubi_tests::image::Image;

fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [program, archive] = arguments.as_slice() else { bail!("call it as: image PROGRAM ARCHIVE") };
    write(program, archive)
}

#[allow(clippy::print_stdout, reason = "it is what the user of make sees")]
fn write(program: &Path, archive: &Path) -> Result<()> {
    let content = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let image = Image {
        repository: "docker.io/library/musubi",
        version: env!("CARGO_PKG_VERSION"),
        description: "Several networks for one pod: a Kubernetes CNI meta-plugin",
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

//! Finds the shared libraries, the loader among them, without which a dynamic program of the host does not start in the
//! virtual machine. They keep their host path there.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The libraries of all the programs among `files`.
pub(super) fn needed_by<'a>(files: impl Iterator<Item = &'a Path>) -> Result<BTreeSet<PathBuf>> {
    let mut needed = BTreeSet::new();
    for file in files {
        if is_elf(file)? {
            needed.extend(libraries(file)?);
        }
    }
    Ok(needed)
}

fn is_elf(file: &Path) -> Result<bool> {
    let mut magic = Vec::new();
    File::open(file)
        .and_then(|file| file.take(4).read_to_end(&mut magic))
        .with_context(|| format!("cannot read {}", file.display()))?;
    Ok(magic == b"\x7fELF")
}

/// ldd fails on a static program; that program needs nothing.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let ldd = Command::new("ldd").arg(program).output().context("cannot run ldd (Debian package libc-bin)")?;
    let list = String::from_utf8_lossy(&ldd.stdout);
    ensure!(!list.contains("not found"), "{} needs a library that is not installed:\n{list}", program.display());
    if !ldd.status.success() {
        return Ok(Vec::new());
    }
    Ok(paths(&list).collect())
}

/// `libc.so.6 => /lib/libc.so.6 (0x…)`, or `/lib64/ld-linux-x86-64.so.2 (0x…)` for the loader.
fn paths(list: &str) -> impl Iterator<Item = PathBuf> {
    list.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_brings_its_libraries_and_its_loader() {
        let needed = needed_by([Path::new("/bin/sh"), Path::new("/etc/hostname")].into_iter()).unwrap();
        for name in ["libc.so.6", "ld-linux-x86-64.so.2"] {
            assert!(needed.iter().any(|path| path.ends_with(name)), "{name} is not in {needed:?}");
        }
    }
}

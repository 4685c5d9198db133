//! `musubi install`: puts this program into the runtime's folder of plugins, whole or not at all. The configuration that
//! makes the runtime call it is the agent's to write, once it can serve: no node is configured for a plugin that is not there.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;

use super::print;

/// Where runtimes look for plugins.
pub(super) const BIN_DIR: &str = "/opt/cni/bin";
/// A plugin's file is called as its `type`.
const PROGRAM: &str = "musubi";
/// The one name of an unfinished copy: whoever comes next finds and replaces it.
const UNFINISHED: &str = ".musubi.new";
/// Anybody may run it, only its owner may change it.
const MODE: u32 = 0o755;
/// How long another install may take.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Options of `musubi install`.
#[derive(Args)]
pub struct Options {
    /// The runtime's folder of plugins
    #[arg(long, value_name = "DIR", default_value = BIN_DIR)]
    bin_dir: PathBuf,
}

pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    fs::create_dir_all(&options.bin_dir)
        .with_context(|| format!("cannot make {}; --bin-dir names another folder", options.bin_dir.display()))?;
    let folder = PluginFolder::lock(&options.bin_dir)?;
    // The link leads to this very file, whatever became of the name it was started by.
    let ourselves = File::open("/proc/self/exe").context("cannot read this program's own file")?;
    let done = match folder.install(ourselves)? {
        Installed::New => "installed",
        Installed::Replaced => "replaced",
        Installed::Unchanged => "unchanged",
    };
    print(&format!("{done} {} (version {})\n", folder.program().display(), env!("CARGO_PKG_VERSION")))?;
    Ok(ExitCode::SUCCESS)
}

/// What an install changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Installed {
    /// There was none before.
    New,
    /// There was another one, perhaps a newer one.
    Replaced,
    /// It was there already.
    Unchanged,
}

/// The runtime's folder of plugins, while nobody else installs or uninstalls there.
pub(super) struct PluginFolder {
    path: PathBuf,
    folder: File,
}

impl PluginFolder {
    /// Waits until nobody else works on the folder.
    pub(super) fn lock(path: &Path) -> anyhow::Result<Self> {
        let folder = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match folder.try_lock() {
                Ok(()) => return Ok(Self { path: path.to_owned(), folder }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(POLL),
                Err(TryLockError::WouldBlock) => {
                    bail!("{} is in use by another install or uninstall; try again when it has ended", path.display())
                }
                Err(TryLockError::Error(e)) => {
                    return Err(e).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
    }

    /// The program's file.
    pub(super) fn program(&self) -> PathBuf {
        self.path.join(PROGRAM)
    }

    /// Removes the program and what an interrupted install left; says whether the program was there.
    pub(super) fn remove(&self) -> anyhow::Result<bool> {
        self.remove_file(UNFINISHED)?;
        self.remove_file(PROGRAM)
    }

    fn install(&self, mut program: File) -> anyhow::Result<Installed> {
        let installed = self.program();
        let there = installed.symlink_metadata().is_ok();
        if there && is_same(&installed, &mut program).with_context(|| format!("cannot read {}", installed.display()))? {
            self.remove_file(UNFINISHED)?;
            return Ok(Installed::Unchanged);
        }
        self.put(program).with_context(|| format!("cannot install {}", installed.display()))?;
        Ok(if there { Installed::Replaced } else { Installed::New })
    }

    /// Copies beside the old file, then takes its name. A process that runs the old one keeps it, and nobody ever opens the
    /// file that runs for writing, which the kernel refuses ("text file busy"). A power cut leaves one of the two, whole.
    fn put(&self, mut program: File) -> io::Result<()> {
        program.rewind()?;
        let unfinished = self.path.join(UNFINISHED);
        let copied = (|| {
            let mut copy = OpenOptions::new().create(true).truncate(true).write(true).mode(MODE).open(&unfinished)?;
            io::copy(&mut program, &mut copy)?;
            copy.set_permissions(Permissions::from_mode(MODE))?;
            copy.sync_all()?;
            drop(copy);
            fs::rename(&unfinished, self.program())
        })();
        copied.inspect_err(|_| drop(fs::remove_file(&unfinished)))?;
        self.folder.sync_all()
    }

    fn remove_file(&self, name: &str) -> anyhow::Result<bool> {
        let file = self.path.join(name);
        match fs::remove_file(&file) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e).with_context(|| format!("cannot remove {}", file.display())),
        }
    }
}

/// Whether the file is a program of this content. A link is none: it may lead elsewhere in the runtime's mount namespace.
fn is_same(file: &Path, program: &mut File) -> io::Result<bool> {
    let there = file.symlink_metadata()?;
    if !there.is_file() || there.permissions().mode() & 0o7777 != MODE || there.len() != program.metadata()?.len() {
        return Ok(false);
    }
    same_content(&mut File::open(file)?, program)
}

/// Compares two files of one length.
fn same_content(one: &mut File, other: &mut File) -> io::Result<bool> {
    let (mut of_one, mut of_other) = ([0; 1 << 15], [0; 1 << 15]);
    loop {
        let length = one.read(&mut of_one)?;
        other.read_exact(&mut of_other[..length])?;
        if length == 0 || of_one[..length] != of_other[..length] {
            return Ok(length == 0);
        }
    }
}

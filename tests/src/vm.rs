//! A virtual machine for the kinds of interface that the running kernel lacks: Debian's kernel under QEMU's own
//! processor emulation, with an initramfs made for one run of one program. It needs neither root nor KVM; what it boots
//! is fetched by `tests/setup.sh`. What the program does in there is its caller's business.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use initramfs::Initramfs;
use modules::ModuleFolder;

pub mod guest;
mod initramfs;
mod libraries;
mod modules;
mod static_build;

/// The reference CNI plugins are in this folder of every machine.
pub const CNI_BIN: &str = "/usr/lib/cni";

const QEMU: &str = "qemu-system-x86_64";
const TEST_BINARY: &str = "/test";
const SHELL: &str = "/bin/sh";
/// Lines of output and console that an error shows.
const TAIL: usize = 40;
const POLL: Duration = Duration::from_millis(10);

/// Few features and no self-tests boot a third faster. At level 1 the kernel is silent until it panics; at 0 it is
/// silent even then.
const QEMU_ARGUMENTS: &str = "-accel tcg -cpu qemu64,+rdrand -smp 1 \
    -nodefaults -no-reboot -display none -monitor none -nic none";
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 loglevel=1 panic=-1 random.trust_cpu=on mitigations=off cryptomgr.notests";

/// Modules of every machine; what they depend on comes along. `br_netfilter` is left out on purpose: it changes how
/// every bridge behaves. Nothing in the machine loads modules on demand, so nf_tables expressions are listed one by one.
const MODULES: &[&str] = &[
    "bridge",
    "dummy",
    "ipvlan",
    "macvlan",
    "8021q",
    "veth",
    "vrf",
    "vxlan",
    "nfnetlink",
    "nf_tables",
    "nf_conntrack",
    "nf_nat",
    "nft_chain_nat",
    "nft_ct",
    "nft_limit",
    "nft_masq",
    "nft_meta_bridge",
    "nft_nat",
    "nft_redir",
    "nft_reject_bridge",
    "nft_reject_inet",
    "nft_fib_inet",
    "nft_compat",
    "xt_addrtype",
    "xt_comment",
    "xt_conntrack",
    "xt_mark",
    "xt_MASQUERADE",
    "xt_nat",
];

/// What goes into the machine and what it runs.
#[derive(Debug)]
pub struct Machine {
    kernel: PathBuf,
    modules: ModuleFolder,
    wanted_modules: Vec<String>,
    init: PathBuf,
    files: BTreeMap<PathBuf, PathBuf>,
    environment: BTreeMap<String, String>,
}

/// How a program in the machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit code, 128 + n when signal n ended it.
    pub exit_code: i32,
    /// Its standard output and standard error as they came, without the kernel's messages.
    pub output: String,
}

impl Machine {
    /// A machine with the kernel, the modules and the plugins that `tests/setup.sh` has fetched.
    ///
    /// # Errors
    /// Names `tests/setup.sh` when something it provides is missing; fails when the machine's init cannot be built.
    pub fn new() -> Result<Self> {
        ensure!(on_path(QEMU), "{QEMU} is missing: run tests/setup.sh");
        let debian = workspace().join("target/debian");
        let kernel_package = unpacked(&debian, "kernel")?;
        let plugins = unpacked(&debian, "containernetworking-plugins")?;
        let mut machine = Self {
            kernel: only_entry(&kernel_package.join("boot"), "vmlinuz-")?,
            modules: ModuleFolder::read(&only_entry(&kernel_package.join("lib/modules"), "")?)?,
            wanted_modules: MODULES.iter().map(ToString::to_string).collect(),
            init: static_build::binary("vm-init")?,
            files: BTreeMap::new(),
            environment: BTreeMap::new(),
        };
        machine.file(&plugins.join("usr/lib/cni"), CNI_BIN);
        Ok(machine)
    }

    /// Puts a file, or a folder with all that is in it, at the absolute path `guest`. Modes are kept; the shared
    /// libraries of a dynamic program come along.
    pub fn file(&mut self, host: &Path, guest: &str) -> &mut Self {
        self.files.insert(guest.into(), host.into());
        self
    }

    /// Sets an environment variable of the program. Nothing is inherited from the host; `PATH`, `HOME` and
    /// [`guest::INSIDE`] are set from the start.
    pub fn env(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// Loads another kernel module, and what it depends on, before the program starts.
    pub fn module(&mut self, name: &str) -> &mut Self {
        self.wanted_modules.push(name.into());
        self
    }

    /// Boots, runs one program as root beside an init that does nothing else, and powers off.
    ///
    /// # Errors
    /// A file that cannot be read, a kernel that panics, and a machine still running after `timeout` (boot included):
    /// the error ends with the last lines of what the machine wrote. A program that fails is no error.
    pub fn run(&self, program_in_guest: &str, args: &[&str], timeout: Duration) -> Result<Outcome> {
        let work = TempDir::new().context("cannot make a folder for the virtual machine")?;
        let initramfs = work.path().join("initramfs");
        let command: Vec<&str> = [program_in_guest].into_iter().chain(args.iter().copied()).collect();
        let bytes = self.write_initramfs(&initramfs, &command)?;
        let wires = Wires::new(&work);
        let mut qemu = self.start(&initramfs, bytes, &wires)?;
        ensure!(
            ends_within(&mut qemu, timeout)?,
            "the virtual machine still ran after {timeout:?}:\n{}",
            wires.story()
        );
        wires.outcome()
    }

    /// Builds the integration-test binary `name` of this crate as a static file and runs those of its tests in the
    /// machine that are `#[ignore]`d and whose path contains `filter`.
    ///
    /// # Errors
    /// As [`Machine::run`], and when `filter` selects no test or a test fails.
    pub fn run_tests(&mut self, name: &str, filter: &str, timeout: Duration) -> Result<Outcome> {
        let binary = static_build::test(env!("CARGO_PKG_NAME"), name)?;
        self.file(&binary, TEST_BINARY);
        let outcome = self.run(TEST_BINARY, &["--ignored", filter], timeout)?;
        ensure!(outcome.exit_code == 0, "tests failed in the virtual machine:\n{}", outcome.output);
        ensure!(!outcome.output.contains("\nrunning 0 tests\n"), "no ignored test of {name} matches {filter:?}");
        keep_log(&outcome)?;
        Ok(outcome)
    }

    /// Builds integration-test binaries of another package as static files and runs all their tests in one machine, one
    /// binary after the other whatever became of the one before.
    ///
    /// # Errors
    /// As [`Machine::run`], and when a test fails or a binary has none.
    pub fn run_all_tests(&mut self, package: &str, names: &[&str], timeout: Duration) -> Result<Outcome> {
        let mut script = String::from("failed=0\n");
        for name in names {
            let guest = format!("/tests/{name}");
            self.file(&static_build::test(package, name)?, &guest);
            script += &format!("{guest} || failed=1\n");
        }
        script += "exit $failed";
        self.file(Path::new(SHELL), SHELL);
        let outcome = self.run(SHELL, &["-c", &script], timeout)?;
        ensure!(outcome.exit_code == 0, "tests of {package} failed in the virtual machine:\n{}", outcome.output);
        ensure!(!outcome.output.contains("\nrunning 0 tests\n"), "a test binary of {package} ran no test");
        keep_log(&outcome)?;
        Ok(outcome)
    }

    /// Returns the size in bytes.
    fn write_initramfs(&self, path: &Path, command: &[&str]) -> Result<u64> {
        let modules = self.modules.with_dependencies(&self.wanted_modules)?;
        let mut archive = Initramfs::default();
        archive.host("/init".as_ref(), &self.init)?;
        for (guest, host) in &self.files {
            archive.host(guest, host)?;
        }
        for library in libraries::needed_by(archive.host_files())? {
            archive.host(&library, &library)?;
        }
        for module in &modules {
            archive.bytes(&Path::new(guest::MODULES).join(&module.name), module.load()?);
        }
        archive.bytes(guest::MODULE_ORDER.as_ref(), guest::join(modules.iter().map(|module| module.name.as_str())));
        archive.bytes(guest::COMMAND.as_ref(), guest::join(command.iter().copied()));
        let environment: Vec<String> = self.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        archive.bytes(guest::ENVIRONMENT.as_ref(), guest::join(environment.iter().map(String::as_str)));
        archive.write(path)
    }

    /// `setpriv` ends the machine with the test that started it, even if that is killed.
    fn start(&self, initramfs: &Path, bytes: u64, wires: &Wires) -> Result<Child> {
        // The archive is in memory twice while the kernel unpacks it, and its file system may fill half of the memory.
        let megabytes = 512 + 3 * bytes.div_ceil(1 << 20);
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", QEMU])
            .args(QEMU_ARGUMENTS.split_whitespace())
            .args(["-m", &format!("{megabytes}M"), "-append", KERNEL_ARGUMENTS])
            .args(["-serial", &chardev(&wires.console), "-serial", &chardev(&wires.output)])
            .args(["-kernel".as_ref(), self.kernel.as_os_str()])
            .args(["-initrd".as_ref(), initramfs.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&wires.qemu).context("cannot write below the temporary folder")?)
            .spawn()
            .context("cannot run setpriv (Debian package util-linux)")
    }
}

/// Keeps what the tests in the machine printed, for `tests/check-conformance`: `cargo test` shows no output of a test that
/// passes.
fn keep_log(outcome: &Outcome) -> Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/vm-tests.log");
    let mut log = File::options().create(true).append(true).open(path).with_context(|| path.to_owned())?;
    Ok(log.write_all(outcome.output.as_bytes())?)
}

/// Where the machine's two serial ports and QEMU's own complaints end.
struct Wires {
    console: PathBuf,
    output: PathBuf,
    qemu: PathBuf,
}

impl Wires {
    fn new(work: &TempDir) -> Self {
        let [console, output, qemu] = ["console", "output", "qemu"].map(|name| work.path().join(name));
        Self { console, output, qemu }
    }

    fn outcome(&self) -> Result<Outcome> {
        match guest::Ending::find(&read(&self.output)) {
            Some((output, guest::Ending::Exited(exit_code))) => Ok(Outcome { exit_code, output: output.to_owned() }),
            Some((_, guest::Ending::Failed(reason))) => {
                bail!("the virtual machine cannot run the program: {reason}")
            }
            None => bail!("the virtual machine stopped by itself:\n{}", self.story()),
        }
    }

    /// The last lines of all that the machine and QEMU wrote; of a panic the first ones, which say why.
    fn story(&self) -> String {
        let console = read(&self.console);
        let console = match console.find("Kernel panic") {
            Some(panic) => quote(console[panic..].lines().take(TAIL)),
            None => tail(&console),
        };
        [tail(&read(&self.output)), console, tail(&read(&self.qemu))].concat()
    }
}

/// Kills the machine when it does not end by itself.
fn ends_within(qemu: &mut Child, timeout: Duration) -> Result<bool> {
    let deadline = Instant::now() + timeout;
    while qemu.try_wait()?.is_none() {
        if Instant::now() > deadline {
            qemu.kill()?;
            qemu.wait()?;
            return Ok(false);
        }
        thread::sleep(POLL);
    }
    Ok(true)
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// The folder of a package that `tests/setup.sh` has unpacked to its end.
fn unpacked(debian: &Path, package: &str) -> Result<PathBuf> {
    let folder = debian.join(package);
    ensure!(folder.join(".complete").exists(), "{} is missing or incomplete: run tests/setup.sh", folder.display());
    Ok(folder)
}

fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let unreadable = || format!("cannot read {}: remove target/debian and run tests/setup.sh", folder.display());
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(entry.path());
        }
    }
    bail!("{} holds no {prefix}*: remove target/debian and run tests/setup.sh", folder.display())
}

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

/// QEMU takes a comma in a value when it is doubled.
fn chardev(path: &Path) -> String {
    format!("file:{}", path.display().to_string().replace(',', ",,"))
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn tail(text: &str) -> String {
    let skipped = text.lines().count().saturating_sub(TAIL);
    quote(text.lines().skip(skipped))
}

fn quote<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.map(|line| format!("  | {line}\n")).collect()
}

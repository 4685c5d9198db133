//! What a runtime takes for its machine: process, mount and network namespaces whose process 1 does nothing. `/run` is
//! empty at start, as after a boot, and `/var/lib` is a folder of the test's. When process 1 ends, or the test, the kernel
//! ends all that runs in there and takes the mounts along.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Netns;

/// Process 1 of the machine: prints its own number as the test sees it (`/proc` is still the test's then) and sleeps.
/// Whoever ignores SIGCHLD need not reap the children it inherits. A boot has an id of its own.
const INIT: &str = r#"
read -r pid rest </proc/self/stat
trap '' CHLD
mount -t proc proc /proc
mount --bind "$1/boot-id" /proc/sys/kernel/random/boot_id
mount --bind "$1/var-lib" /var/lib
mount -t tmpfs tmpfs /run
echo "$pid"
exec sleep infinity
"#;

/// A machine that runs.
#[derive(Debug)]
pub struct Machine {
    starter: Child,
    init: i32,
}

impl Machine {
    /// Boots a machine that has this network namespace and keeps what is to survive it in `folder`. It ends with the
    /// calling thread at the latest.
    ///
    /// # Panics
    /// Without the rights that `tests/in-namespaces` gets, or when the kernel lacks a namespace.
    #[must_use]
    pub fn boot(host: &Netns, folder: &Path) -> Self {
        fs::create_dir_all(folder.join("var-lib")).expect("a folder");
        fs::copy("/proc/sys/kernel/random/uuid", folder.join("boot-id")).expect("an id of this boot");
        let log = folder.join("boot.log");
        let mut starter = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nsenter", &format!("--net={}", host.path().display())])
            .args(["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL"])
            .args(["sh", "-eu", "-c", INIT, "init"])
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a log"))
            .spawn()
            .expect("util-linux is installed");
        let mut line = String::new();
        let stdout = starter.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line of process 1");
        let init = line.trim().parse().unwrap_or_else(|_| {
            panic!("the machine does not boot: {}", fs::read_to_string(&log).unwrap_or_default());
        });
        Self { starter, init }
    }

    /// Starts a program in there.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(&self, mut command: Command) -> Child {
        let open = |kind| File::open(format!("/proc/{}/ns/{kind}", self.init)).expect("a namespace of the machine");
        let namespaces = ["net", "pid", "mnt"].map(open);
        let enter_and_spawn = move || {
            // A mount namespace is entered by a thread that shares its working directory with nobody.
            unshare(CloneFlags::CLONE_FS).expect("a thread of its own");
            for namespace in &namespaces {
                setns(namespace, CloneFlags::empty()).expect("enter the machine");
            }
            command.spawn().unwrap_or_else(|e| panic!("start {command:?}: {e}"))
        };
        std::thread::spawn(enter_and_spawn).join().expect("the thread ends")
    }

    /// Where the test sees an absolute path of the machine's. `/var/run` is the link to `/run` that it is everywhere.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        let inside = inside.strip_prefix("/var").filter(|rest| rest.starts_with("/run/")).unwrap_or(inside);
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Process 1 has ended when all others of its namespace have.
        let _ = kill(Pid::from_raw(self.init), Signal::SIGKILL);
        let _ = self.starter.wait();
    }
}

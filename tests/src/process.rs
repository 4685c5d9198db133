//! A program that runs beside a test: watched by its log, told to stop, and killed with its value.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long something may take to become so.
const ENOUGH: Duration = Duration::from_secs(20);
/// How often there is a look whether it is.
const POLL: Duration = Duration::from_millis(5);

/// A running program.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// One that was started, and logs to a file.
    #[must_use]
    pub fn of(child: Child, log: PathBuf) -> Self {
        Self { child, log }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until something is so.
    ///
    /// # Panics
    /// When it does not become so.
    pub fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + ENOUGH;
        while !is_so() {
            assert!(Instant::now() < deadline, "still not so: {what}; log:\n{}", self.log());
            std::thread::sleep(POLL);
        }
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, signal).expect("a running program");
    }

    /// Tells it to stop and waits for its end; whether it ended well.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn stop(mut self) -> bool {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + ENOUGH;
        loop {
            if let Some(status) = self.child.try_wait().expect("its status") {
                return status.success();
            }
            assert!(Instant::now() < deadline, "it does not stop; log:\n{}", self.log());
            std::thread::sleep(POLL);
        }
    }

    /// Kills it, if it still runs.
    pub fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

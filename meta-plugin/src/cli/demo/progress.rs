//! What is being done, on stderr: a line for each step, on a terminal written where it will say how long it took.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Tells of steps.
#[derive(Debug)]
pub(super) struct Progress {
    is_terminal: bool,
    started: Instant,
}

impl Progress {
    /// To stderr.
    pub fn new() -> Self {
        Self { is_terminal: io::stderr().is_terminal(), started: Instant::now() }
    }

    /// Does a step and tells how it went. `title` says what is done, for a person.
    ///
    /// # Errors
    /// The step's own.
    pub fn step<T>(&self, title: &str, step: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        if self.is_terminal {
            tell(&format!("  {title} …"));
        }
        let started = Instant::now();
        let outcome = step();
        let mark = if outcome.is_ok() { '✓' } else { '✗' };
        let start = if self.is_terminal { "\r\x1b[K" } else { "" };
        tell(&format!("{start}{mark} {title:<58}{:>7.1} ms\n", milliseconds(started.elapsed())));
        outcome
    }

    /// Says something that is no step.
    pub fn say(&self, text: &str) {
        tell(&format!("{text}\n"));
    }

    /// Since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A reader that is gone is no failure.
fn tell(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

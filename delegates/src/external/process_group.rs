//! A child process with its group and its three pipes, run to its end or to a deadline by one
//! thread that never blocks on a pipe. It knows nothing of CNI; a group that is dropped before its
//! end is killed.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// The most that is read from stdout, in bytes.
pub(super) const STDOUT_MAX: usize = 8 << 20;

/// How much is read at once, in bytes.
const CHUNK: usize = 16 << 10;

/// The most an ordinary user can make a pipe hold, in bytes (`/proc/sys/fs/pipe-max-size`).
const LARGEST_PIPE: usize = 1 << 20;

/// How much of the end of stderr is kept, in bytes.
const STDERR_KEPT: usize = 4 << 10;

/// How long a killed process may take to go. Only one that hangs inside the kernel takes longer.
const REAP_LIMIT: Duration = Duration::from_secs(2);

/// What a process that ended left behind.
pub(super) struct Collected {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its stdout.
    pub stdout: Vec<u8>,
    /// The end of its stderr.
    pub stderr: Vec<u8>,
}

/// Why a process was killed.
pub(super) enum Interruption {
    /// Its time was over.
    Deadline {
        /// The end of its stderr.
        stderr: Vec<u8>,
    },
    /// Nobody waits for it any more.
    Cancelled,
    /// It printed more than [`STDOUT_MAX`].
    TooMuchOutput,
    /// The pipes or the process could not be used.
    Io(io::Error),
}

impl From<io::Error> for Interruption {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A running child that leads a process group.
pub(super) struct Group {
    /// None once the process has ended, or is left to a thread that waits for it.
    child: Option<Child>,
    id: u32,
}

impl Group {
    /// Takes a child that was started in a group of its own, with three pipes.
    pub fn new(child: Child) -> Self {
        Self { id: child.id(), child: Some(child) }
    }

    /// The id of the process and of its group.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Writes `stdin`, reads what is printed, and waits for the process itself to end. Whoever else
    /// still holds the pipes then (a daemon it started) is not waited for.
    pub fn run(
        mut self,
        stdin: &[u8],
        deadline: Instant,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Collected, Interruption> {
        let Some(child) = self.child.as_mut() else {
            return Err(io::Error::from(ErrorKind::NotFound).into());
        };
        let mut pipes = Pipes::of(child, stdin)?;
        let mut pause = SHORTEST_PAUSE;
        loop {
            let moved = pipes.transfer()?;
            if let Some(status) = child.try_wait()? {
                pipes.drain()?;
                self.child = None;
                return Ok(Collected { status, stdout: pipes.printed, stderr: pipes.said });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Interruption::Deadline { stderr: std::mem::take(&mut pipes.said) });
            }
            if is_cancelled() {
                return Err(Interruption::Cancelled);
            }
            pause = if moved { SHORTEST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            pipes.wait(pause.min(left))?;
        }
    }
}

/// A process that closed its pipes is gone within microseconds; one that lives on without them is
/// looked at now and then.
const SHORTEST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

impl Drop for Group {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        if let Ok(id) = i32::try_from(self.id) {
            // Not reaped yet, so the ids are still its own. The group is gone when ESRCH says so;
            // both are tried, for it may have left its group.
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
            let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
        }
        let limit = Instant::now() + REAP_LIMIT;
        let mut pause = SHORTEST_PAUSE;
        while Instant::now() < limit {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        thread::spawn(move || child.wait());
    }
}

/// Our ends of the pipes, none of which blocks; each is closed as soon as it has nothing more to
/// move.
struct Pipes<'a> {
    stdin: Option<ChildStdin>,
    to_write: &'a [u8],
    stdout: Option<ChildStdout>,
    printed: Vec<u8>,
    stderr: Option<ChildStderr>,
    said: Vec<u8>,
}

impl<'a> Pipes<'a> {
    fn of(child: &mut Child, to_write: &'a [u8]) -> io::Result<Self> {
        let pipes = Self {
            stdin: child.stdin.take(),
            to_write,
            stdout: child.stdout.take(),
            printed: Vec::new(),
            stderr: child.stderr.take(),
            said: Vec::new(),
        };
        for end in pipes.open() {
            // The flag belongs to our end alone: the two ends of a pipe are opened separately.
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | access_mode(end)?))?;
        }
        Ok(pipes)
    }

    fn open(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let stdin = self.stdin.as_ref().map(AsFd::as_fd);
        stdin.into_iter().chain(self.stdout.as_ref().map(AsFd::as_fd)).chain(self.stderr.as_ref().map(AsFd::as_fd))
    }

    /// Moves what can be moved now; whether anything was.
    fn transfer(&mut self) -> Result<bool, Interruption> {
        let wrote = self.write()?;
        let printed = read_available(&mut self.stdout, &mut self.printed, STDOUT_MAX + 1)?;
        if self.printed.len() > STDOUT_MAX {
            return Err(Interruption::TooMuchOutput);
        }
        let said = read_available(&mut self.stderr, &mut self.said, usize::MAX)?;
        self.said.drain(..self.said.len().saturating_sub(STDERR_KEPT));
        Ok(wrote || printed || said)
    }

    /// Takes what the ended process left in the pipes, and closes them. That is never more than the
    /// pipes hold; a daemon that goes on writing is not followed further.
    fn drain(&mut self) -> Result<(), Interruption> {
        self.stdin = None;
        for _ in 0..LARGEST_PIPE / CHUNK {
            if !self.transfer()? {
                break;
            }
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<bool> {
        let Some(stdin) = self.stdin.as_mut() else {
            return Ok(false);
        };
        let moved = match stdin.write(self.to_write) {
            Ok(count) => {
                self.to_write = self.to_write.get(count..).unwrap_or_default();
                count > 0
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(false);
            }
            // It need not read what it is sent.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.to_write = &[];
                false
            }
            Err(error) => return Err(error),
        };
        if self.to_write.is_empty() {
            self.stdin = None;
        }
        Ok(moved)
    }

    /// Waits until something can be moved, but no longer than `timeout` (rounded up to a
    /// millisecond while a pipe is open).
    fn wait(&self, timeout: Duration) -> io::Result<()> {
        let input = self.stdin.iter().map(|stdin| PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
        let stdout = self.stdout.iter().map(|stdout| PollFd::new(stdout.as_fd(), PollFlags::POLLIN));
        let stderr = self.stderr.iter().map(|stderr| PollFd::new(stderr.as_fd(), PollFlags::POLLIN));
        let mut fds: Vec<_> = input.chain(stdout).chain(stderr).collect();
        if fds.is_empty() {
            thread::sleep(timeout);
            return Ok(());
        }
        let milliseconds = PollTimeout::try_from(timeout.max(Duration::from_millis(1))).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, milliseconds) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn access_mode(fd: BorrowedFd<'_>) -> nix::Result<OFlag> {
    Ok(OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?))
}

/// Reads what is there, at most [`CHUNK`] bytes a call and never past `max` in all; closes the pipe
/// at its end. Whether anything was read.
fn read_available(pipe: &mut Option<impl Read>, into: &mut Vec<u8>, max: usize) -> io::Result<bool> {
    let Some(reader) = pipe.as_mut() else {
        return Ok(false);
    };
    let mut buffer = [0; CHUNK];
    let room = CHUNK.min(max.saturating_sub(into.len()));
    let chunk = buffer.get_mut(..room).unwrap_or_default();
    match reader.read(chunk) {
        Ok(0) => {
            *pipe = None;
            Ok(false)
        }
        Ok(count) => {
            into.extend_from_slice(buffer.get(..count).unwrap_or_default());
            Ok(true)
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    fn shell(script: &str) -> Group {
        let piped = Stdio::piped;
        let child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(piped())
            .stdout(piped())
            .stderr(piped())
            .process_group(0)
            .spawn();
        Group::new(child.unwrap())
    }

    #[test]
    fn of_stderr_the_end_is_kept() {
        let soon = Instant::now() + Duration::from_secs(20);
        let collected = shell("head -c 300000 /dev/zero >&2; echo end >&2").run(b"", soon, &|| false).ok().unwrap();
        assert!(collected.stderr.ends_with(b"\0\0end\n"));
        assert_eq!(collected.stderr.len(), STDERR_KEPT);
    }

    #[test]
    fn a_group_that_is_dropped_is_killed() {
        let group = shell("sleep 600");
        let id = group.id();
        drop(group);
        let gone = kill(Pid::from_raw(i32::try_from(id).unwrap()), None);
        assert_eq!(gone, Err(nix::errno::Errno::ESRCH));
    }
}

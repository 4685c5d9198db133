//! The log of a program that is to die at a line of it. The pipe holds one line: whoever writes the next waits until the one
//! before is taken, so a program that is killed while a line is only looked at has done no more than what that line says.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use nix::unistd::pipe2;

/// Bytes of a page: the smallest pipe, and the longest line that comes in one piece.
const PAGE: usize = 4096;

/// One line of a program's log at a time.
#[derive(Debug)]
pub struct Log {
    lines: File,
    copy: File,
    copied: OwnedFd,
}

/// A line that says what is about to be changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mutation {
    /// `CNI_COMMAND` of the operation.
    pub command: String,
    /// Its container.
    pub container: String,
    /// The kind of change, as `link.create`.
    pub point: String,
}

impl Log {
    /// A log and the end that the program writes to.
    ///
    /// # Panics
    /// When no pipe can be made.
    #[must_use]
    pub fn new() -> (Self, Stdio) {
        // With O_DIRECT each write takes a page of its own (pipe(2), "packet mode").
        let (lines, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_DIRECT).expect("a pipe");
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PAGE as i32)).expect("a pipe of one page");
        let (copy, copied) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        (Self { lines: lines.into(), copy: copy.into(), copied }, writer.into())
    }

    /// Waits for the next line and leaves it where it is; `None` once nobody can write any more.
    ///
    /// # Panics
    /// When the pipe cannot be read.
    #[must_use]
    pub fn look(&self) -> Option<String> {
        let length =
            tee(self.lines.as_fd(), self.copied.as_fd(), PAGE, SpliceFFlags::empty()).expect("a line is copied");
        let mut line = vec![0; length];
        (&self.copy).read_exact(&mut line).expect("the copy of a line");
        (length > 0).then(|| String::from_utf8_lossy(&line).into_owned())
    }

    /// Takes the line that was looked at.
    ///
    /// # Panics
    /// When the pipe cannot be read.
    pub fn take(&self) {
        let _ = (&self.lines).read(&mut [0; PAGE]).expect("the line is there");
    }
}

impl Mutation {
    /// What a line says, if it is one of these.
    #[must_use]
    pub fn of(line: &str) -> Option<Self> {
        let between = |before: &str, after: char| {
            let (_, rest) = line.split_once(before)?;
            Some(rest.split_once(after)?.0.to_owned())
        };
        Some(Self {
            command: between("operation{command=", ' ')?,
            container: between("container=\"", '"')?,
            point: between("mutation=\"", '"')?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_program_waits_at_its_second_line_until_the_first_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let (log, stderr) = Log::new();
        let script = "echo 1 >&2; touch first; echo 2 >&2; touch second; echo 3 >&2";
        let mut child =
            Command::new("sh").args(["-c", script]).current_dir(folder.path()).stderr(stderr).spawn().unwrap();
        assert_eq!(log.look().as_deref(), Some("1\n"));
        assert_eq!(log.look().as_deref(), Some("1\n"), "it is still there");
        while !file("first").exists() {
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!file("second").exists());
        log.take();
        assert_eq!(log.look().as_deref(), Some("2\n"));
        child.kill().unwrap();
        child.wait().unwrap();
        log.take();
        assert!(log.look().is_none_or(|line| line == "3\n"));
    }

    #[test]
    fn a_line_names_command_container_and_point() {
        let line = "2026-01-01T00:00:00.0Z DEBUG operation{command=ADD container=\"c1\" request=\"00\"}: create veth \"a\" mutation=\"link.create\"\n";
        let mutation = Mutation { command: "ADD".into(), container: "c1".into(), point: "link.create".into() };
        assert_eq!(Mutation::of(line), Some(mutation));
        assert_eq!(Mutation::of("2026-01-01T00:00:00.0Z  INFO done command=ADD container=\"c1\"\n"), None);
    }
}

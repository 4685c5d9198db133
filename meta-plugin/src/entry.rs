//! The program's entry, in place of the one in Rust's runtime. That spends a tenth of a millisecond of each call on looking
//! for the main thread's stack, and some of each thread's start on a second stack, to be able to say that the first has
//! overflowed; the kernel's guard page ends the program then all the same. What else it does is done here.
#![expect(unsafe_code, reason = "the C library finds the entry by its name")]

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd};
use std::panic::catch_unwind;
use std::process::ExitCode;

use musubi_delegates::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// What the program ends with when its main thread has panicked, as with Rust's runtime, or could not even begin.
const FAULT: i32 = 101;

/// Arguments are read where [`std::env`] has them from: the GNU C library hands them to it before this.
#[unsafe(no_mangle)]
pub extern "C" fn main() -> c_int {
    sys::ignore_broken_pipes();
    if fill_standard_streams().is_err() {
        return FAULT;
    }
    catch_unwind(crate::start).map_or(FAULT, number)
}

/// Whoever starts us with a standard stream closed would have the next file that is opened take its place, and what is
/// printed go there.
fn fill_standard_streams() -> io::Result<()> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let is_closed = |stream: &BorrowedFd<'_>| fcntl(stream, FcntlArg::F_GETFD) == Err(Errno::EBADF);
    for _ in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()].iter().filter(|stream| is_closed(stream)) {
        // The lowest number that is free is that of the stream: those before it are open by now.
        let _ = File::options().read(true).write(true).open("/dev/null")?.into_raw_fd();
    }
    Ok(())
}

/// The number of an exit code, which tells it to Rust's runtime alone.
fn number(code: ExitCode) -> i32 {
    (0..=u8::MAX).find(|number| ExitCode::from(*number) == code).map_or(FAULT, i32::from)
}

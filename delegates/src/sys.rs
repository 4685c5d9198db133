//! The one place with `unsafe`: system calls that no safe wrapper offers.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

/// `SO_NETNS_COOKIE` of socket(7), Linux 5.14: a number that no other network namespace of this boot has or had.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the network namespace a socket belongs to; `None` before Linux 5.14.
#[must_use]
pub fn namespace_cookie(socket: BorrowedFd<'_>) -> Option<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to live locals of the size that `length` says, and the kernel writes no more than that.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (outcome == 0).then_some(cookie)
}

/// Has a write to a pipe or socket that nobody reads any more fail (EPIPE) instead of ending the program (signal(7)).
pub fn ignore_broken_pipes() {
    // SAFETY: to ignore a signal runs no code of ours when it comes, and the number is that of one which can be ignored.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// Has the C library serve all threads from one pool of memory: each thread would make one of its own otherwise, and what
/// it frees would stay there. A pool that shrinks and grows with each request is left alone, up to half a MiB, and what is
/// large is never part of it (mallopt(3)). Other C libraries do not know any of this.
pub fn share_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers and changes how later allocations are made, nothing that exists.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 << 10);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

/// Gives memory that nobody uses any more back to the kernel (malloc_trim(3)). Other C libraries do so by themselves.
pub fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a size and touches free memory alone; the C library locks its pools for it.
    unsafe {
        libc::malloc_trim(0);
    }
}

//! Network namespaces for tests, bound to files as runtimes bind theirs. The test's own mount namespace
//! (`tests/in-namespaces`) keeps the mounts to itself.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use musubi_delegates::netlink::{LinkChange, Netlink};
use musubi_delegates::netns::Namespace;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use tempfile::TempDir;

/// A network namespace that lives as long as this value, `lo` up.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    _folder: TempDir,
}

impl Netns {
    /// Makes one.
    ///
    /// # Panics
    /// Without the right to: run tests by `cargo test`, which takes care of that.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("netns");
        File::create(&path).expect("a file to bind to");
        let bound = path.clone();
        let make = move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &bound, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        };
        std::thread::spawn(make)
            .join()
            .expect("the thread ends")
            .expect("a network namespace: run the tests by `cargo test`, which uses tests/in-namespaces");
        let netns = Self { path, _folder: folder };
        netns.enter(|| {
            let netlink = Netlink::route().expect("a netlink socket");
            let lo = netlink.link_by_name("lo").expect("links").expect("lo");
            netlink.request(LinkChange::of(lo.index, "bring up lo").up().request()).expect("lo comes up");
        });
        netns
    }

    /// Its file: what a runtime passes as `CNI_NETNS`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs something inside, on a thread of its own: what it opens or starts there stays there.
    ///
    /// # Panics
    /// When `body` does.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let file = File::open(&self.path).expect("the namespace is there");
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                body()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Opens it as our delegates do.
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn open(&self) -> Namespace {
        Namespace::open(&self.path).expect("it can be entered").expect("it is there")
    }

    /// Ends the namespace early, as a runtime does before it calls DEL late.
    pub fn end(&self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.end();
    }
}

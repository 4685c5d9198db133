//! Namespaces of the demo's own: whatever it does, the machine's links, rules and files are out of reach, and when its
//! process ends, however it ends, the kernel takes all of it away.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// Folders that every machine has one of; the demo's own file system covers the first, for the demo alone.
const PLACES: [&str; 3] = ["/tmp", "/run", "/mnt"];

/// Where the demo is once it has left the machine.
#[derive(Debug)]
pub(super) struct Own {
    /// An empty folder.
    pub folder: PathBuf,
    /// Whether a user namespace had to be made.
    pub in_user_namespace: bool,
}

/// Leaves the machine's namespaces and mounts an empty file system. To be called before any thread is started: a process
/// of several cannot enter a user namespace (unshare(2)).
///
/// # Errors
/// Says what to do where the machine forbids user namespaces.
pub(super) fn enter() -> anyhow::Result<Own> {
    let in_user_namespace = leave()?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot make the mounts private")?;
    let place = PLACES.map(Path::new).into_iter().find(|place| place.is_dir());
    let place = place.with_context(|| format!("no folder to work in: none of {} is there", PLACES.join(", ")))?;
    mount(Some("musubi-demo"), place, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .with_context(|| format!("cannot mount a tmpfs on {}", place.display()))?;
    Ok(Own { folder: place.to_owned(), in_user_namespace })
}

/// With the right to, network and mount namespaces alone; without it, a user namespace comes first. The kernel is asked
/// instead of the user id: root of a container may lack the right. Returns whether there is a user namespace.
fn leave() -> anyhow::Result<bool> {
    let wanted = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    match unshare(wanted) {
        Ok(()) => Ok(false),
        Err(Errno::EPERM) => {
            become_root().and_then(|()| Ok(unshare(wanted)?)).map_err(|e| forbidden(&e))?;
            Ok(true)
        }
        Err(errno) => bail!("cannot make network and mount namespaces: {}", errno.desc()),
    }
}

fn become_root() -> io::Result<()> {
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    // user_namespaces(7): the group map of an unprivileged process may be written only once setgroups(2) is given up.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}

fn forbidden(error: &io::Error) -> anyhow::Error {
    anyhow!(
        "this machine refuses user namespaces ({error}): run the demo as root (in a container: a privileged one), or \
         allow them by `sysctl -w user.max_user_namespaces=10000` (on Debian also kernel.unprivileged_userns_clone=1, \
         on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0)"
    )
}

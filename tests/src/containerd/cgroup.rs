//! The control group below which a runtime makes those of its pods: one of the test's own in every hierarchy of the
//! machine, removed with all that is left below it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const HIERARCHIES: &str = "/sys/fs/cgroup";
/// A group stays busy until the last process that was killed in it is gone.
const ENOUGH: Duration = Duration::from_secs(5);

/// A group by its name. The runtime makes it with the first pod.
#[derive(Debug)]
pub struct Cgroup {
    name: String,
}

impl Cgroup {
    /// A name that nobody else has.
    #[must_use]
    pub fn named_after(folder: &Path) -> Self {
        let unique = folder.file_name().unwrap_or_default().to_string_lossy();
        Self { name: format!("musubi-test-{}", unique.trim_start_matches('.')) }
    }

    /// What the runtime is given for a parent.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/{}", self.name)
    }

    /// Its folders: one in each hierarchy of version 1, one in that of version 2.
    fn folders(&self) -> Vec<PathBuf> {
        let mounted = fs::read_dir(HIERARCHIES).into_iter().flatten().flatten().map(|entry| entry.path());
        let places = mounted.chain([PathBuf::from(HIERARCHIES)]);
        places.map(|place| place.join(&self.name)).filter(|folder| folder.is_dir()).collect()
    }

    /// The groups below it, pods that a runtime still holds for instance.
    #[must_use]
    pub fn pods(&self) -> Vec<PathBuf> {
        self.folders().iter().flat_map(|folder| below(folder)).collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + ENOUGH;
        loop {
            let left = self.folders().into_iter().filter(|folder| !remove(folder)).count();
            if left == 0 || Instant::now() > deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn below(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Removes a group with those below it. Its files are the kernel's and go along.
fn remove(group: &Path) -> bool {
    let all_below = below(group).iter().map(|group| remove(group)).fold(true, |all, removed| all & removed);
    all_below && fs::remove_dir(group).is_ok()
}

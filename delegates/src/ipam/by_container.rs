//! What is held in every folder of reservations that we ever used, and giving back what a container holds there, for a DEL
//! that knows nothing but the container: its record is lost. Our indexes say which folders these are.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use super::index::{Entry, Index};
use super::reservations::Store;
use super::store::{Owner, StoreError};

/// Frees those reservations of a container that the caller condemns, wherever they are. `state_dir` is our state folder.
///
/// # Errors
/// Every folder that could not be used, or not in time; all others are done.
pub fn release_container(
    state_dir: &Path,
    container_id: &str,
    deadline: Instant,
    condemned: &dyn Fn(&Owner, &Entry) -> bool,
) -> Vec<StoreError> {
    let mut errors = Vec::new();
    let indexes = fs::read_dir(state_dir.join("host-local")).into_iter().flatten().flatten();
    for index in indexes.filter(|index| holds(&index.path(), container_id)) {
        let Some(folder) = index.file_name().to_str().map(Index::folder_of) else { continue };
        let its = |owner: &Owner, entry: &Entry| owner.container_id == container_id && condemned(owner, entry);
        let released = match Store::open(folder).with_index(state_dir).lock_existing(deadline) {
            Ok(Some(mut reservations)) => reservations.release_matching(&its).map(drop),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        errors.extend(released.err());
    }
    errors
}

/// All that our indexes say is reserved for attachments on record. No folder is locked, so it is true for a moment only, and
/// what cannot be read is left out.
#[must_use]
pub fn recorded(state_dir: &Path) -> Vec<(Owner, Vec<IpAddr>)> {
    let folders = fs::read_dir(state_dir.join("host-local")).into_iter().flatten().flatten();
    let entries =
        folders.filter_map(|folder| Index::open(folder.path()).and_then(|index| index.entries()).ok()).flatten();
    let mut found: Vec<(Owner, Vec<IpAddr>)> = entries
        .filter(|(_, entry)| entry.recorded && !entry.addresses.is_empty())
        .map(|(owner, entry)| (owner, entry.addresses))
        .collect();
    found.sort();
    found
}

/// Whether an index has entries of a container. What we reserved ourselves it always has, complete or not.
fn holds(index: &Path, container_id: &str) -> bool {
    let prefix = format!("{container_id}:");
    let entries = fs::read_dir(index).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_container_gives_back_what_is_condemned_in_every_folder_and_others_keep_theirs() {
        let place = tempfile::tempdir().unwrap();
        let (state, soon) = (place.path().join("state"), || Instant::now() + Duration::from_secs(5));
        let owners = [Owner::new("c1", "eth0"), Owner::new("c1", "net1"), Owner::new("c10", "eth0")];
        for network in ["blue", "gr,een%2C"] {
            let store = Store::open(place.path().join(network)).with_index(&state);
            let mut reservations = store.lock(soon()).unwrap();
            for (number, owner) in owners.iter().enumerate() {
                let address = format!("10.0.0.{number}").parse().unwrap();
                let claim = reservations.claim(0, address).unwrap().unwrap();
                reservations.commit(owner, &[claim]).unwrap();
            }
        }
        let store = Store::open(place.path().join("blue")).with_index(&state).recorded(true);
        let mut reservations = store.lock(soon()).unwrap();
        let claim = reservations.claim(0, "10.0.0.9".parse().unwrap()).unwrap().unwrap();
        reservations.commit(&Owner::new("c2", "eth0"), &[claim]).unwrap();
        drop(reservations);
        assert_eq!(recorded(&state), [(Owner::new("c2", "eth0"), vec!["10.0.0.9".parse::<IpAddr>().unwrap()])]);

        let errors = release_container(&state, "c1", soon(), &|owner, entry| owner.interface != "net1" && entry.ours);
        assert!(errors.is_empty(), "{errors:?}");
        for network in ["blue", "gr,een%2C"] {
            let store = Store::open(place.path().join(network)).with_index(&state);
            let left: Vec<Owner> = store.lock(soon()).unwrap().list().unwrap().into_iter().map(|(o, _)| o).collect();
            assert_eq!(left[..2], owners[1..], "{network}");
        }
    }
}

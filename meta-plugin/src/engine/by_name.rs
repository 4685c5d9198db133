//! What can be given back when only the name of a record is left: the addresses and the rules of its container, except those
//! of the container's other attachments, whose records still stand.

use std::path::Path;
use std::time::Instant;

use musubi_delegates::cni::CniError;
use musubi_delegates::firewall;
use musubi_delegates::ipam;
use musubi_delegates::netlink::Netlink;

use crate::record::Key;
use crate::records::{Records, Stored};

/// Releases it. With `only_ours` a reservation goes only if an ADD of ours made it: nothing says that the container ever was
/// in a record.
pub(super) fn release(state_dir: &Path, key: &Key, only_ours: bool, deadline: Instant) -> Vec<CniError> {
    let container = key.container_id.as_str();
    let kept = match interfaces_in_use(state_dir, container) {
        Ok(kept) => kept,
        Err(error) => return vec![error],
    };
    let unused = |interface: &str| !kept.iter().any(|kept| kept == interface);
    let mut errors: Vec<CniError> = ipam::release_container(state_dir, container, deadline, &|owner, entry| {
        unused(&owner.interface) && (entry.ours || !only_ours)
    })
    .into_iter()
    .map(CniError::from)
    .collect();
    errors.extend(forget_rules(container, &kept).err());
    errors
}

fn interfaces_in_use(state_dir: &Path, container: &str) -> Result<Vec<String>, CniError> {
    let mut interfaces = Vec::new();
    for stored in Records::of(state_dir).of_container(container)? {
        if let Stored::Whole(record) = stored {
            interfaces.extend(record.attachments.into_iter().map(|attached| attached.interface));
        }
    }
    Ok(interfaces)
}

fn forget_rules(container: &str, kept: &[String]) -> Result<(), CniError> {
    let nft = Netlink::netfilter()?;
    let stale = |owner: &firewall::Owner| {
        owner.is_of_container(container) && !kept.iter().any(|interface| owner.is_by(container, interface))
    };
    for owner in firewall::masqueraded_owners(&nft)?.iter().filter(|owner| stale(owner)) {
        firewall::unmasquerade(&nft, owner)?;
    }
    for owner in firewall::spoof_checked_owners(&nft)?.iter().filter(|owner| stale(owner)) {
        firewall::uncheck_spoofing(&nft, owner)?;
    }
    Ok(())
}

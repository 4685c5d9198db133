//! How we know again what is ours on the host when no record speaks of it: a mark of the installation, which is its folder
//! of records. Host ends of pods' veth pairs carry it as `IFLA_GROUP`, nf_tables chains as their comment. Whoever calls a
//! delegate on its own keeps no records, so what that makes carries none.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::netlink::MacAddress;

/// First byte of the group, before the mark's three: never 0, within 31 bits, and not that of VXLAN devices.
const GROUP_MARK: u32 = 0x6d00_0000;
/// First word of the comment of a chain.
const COMMENT: &str = "musubi";

/// The mark of one installation, 24 bits. It comes from the folder of records itself, not from its path: one that was
/// mistyped, or removed and made anew, has another, and what the pods of the old one have is nobody's leftover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(u32);

impl Mark {
    /// The mark of a folder of records; none while there is no such folder.
    #[must_use]
    pub fn of(records: &Path) -> Option<Self> {
        let folder = fs::metadata(records).ok()?;
        // Where the filesystem keeps no time of birth, device and inode have to do.
        let born = folder.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let hash = fnv1a(format!("{}/{}/{}", folder.dev(), folder.ino(), born.as_nanos()).bytes());
        Some(Self((hash ^ (hash >> 32)) as u32 & 0x00ff_ffff))
    }

    /// The `IFLA_GROUP` of host ends.
    #[must_use]
    pub fn group(self) -> u32 {
        GROUP_MARK | self.0
    }

    /// The comment of chains.
    #[must_use]
    pub fn comment(self) -> String {
        format!("{COMMENT} {self}")
    }

    /// The mark in a chain's comment.
    #[must_use]
    pub fn of_comment(comment: &str) -> Option<Self> {
        let digits = comment.strip_prefix(COMMENT)?.strip_prefix(' ')?;
        (digits.len() == 6).then(|| u32::from_str_radix(digits, 16).ok().map(Self)).flatten()
    }

    /// The MAC of the host's end of an attachment, by which its record is found: 46 bits of a hash, locally administered.
    #[must_use]
    pub fn host_mac(self, container_id: &str, interface: &str) -> MacAddress {
        let hash = fnv1a(format!("{self}/{container_id}/{interface}").bytes());
        // FNV leaves the low bits of similar texts similar; the high half is mixed into them.
        let [.., a, b, c, d, e, f] = (hash ^ (hash >> 41)).to_be_bytes();
        MacAddress([a & 0xfc | 0x02, b, c, d, e, f])
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}

/// FNV-1a over bytes: a hash that stays the same over versions of ours and of Rust.
pub fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_folder_keeps_its_mark_whatever_path_leads_there_and_another_folder_has_another() {
        let place = tempfile::tempdir().unwrap();
        let (one, other) = (place.path().join("one"), place.path().join("other"));
        assert_eq!(Mark::of(&one), None, "no folder yet");
        fs::create_dir(&one).unwrap();
        fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&one, place.path().join("link")).unwrap();
        let mark = Mark::of(&one).unwrap();
        fs::write(one.join("record"), "").unwrap();
        for same in [one.clone(), place.path().join("link"), place.path().join("other/../one/")] {
            assert_eq!(Mark::of(&same), Some(mark), "{}", same.display());
        }
        assert_ne!(Mark::of(&other), Some(mark));
        assert!(mark.group() > 255 && mark.group() < 1 << 31, "{:x}", mark.group());
    }

    #[test]
    fn a_comment_tells_the_mark_and_others_tell_none() {
        assert_eq!(Mark(0x00a1).comment(), "musubi 0000a1");
        assert_eq!(Mark::of_comment("musubi 0000a1"), Some(Mark(0xa1)));
        for other in ["", "musubi", "musubi ", "musubi a1", "musubi 0000g1", "musubi 0000a10", "others 0000a1"] {
            assert_eq!(Mark::of_comment(other), None, "{other:?}");
        }
    }

    #[test]
    fn host_ends_have_macs_of_their_own() {
        let mut macs = BTreeSet::new();
        for container in 0..1000 {
            for interface in ["eth0", "net1", "net2"] {
                let mac = Mark(7).host_mac(&format!("container{container}"), interface);
                assert!(mac.is_unicast() && mac.0[0] & 2 != 0, "{mac} is a locally administered unicast address");
                macs.insert(mac.0);
            }
        }
        macs.insert(Mark(8).host_mac("container0", "eth0").0);
        assert_eq!(macs.len(), 3001);
    }
}

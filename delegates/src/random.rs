//! Random bytes from the kernel, for MAC addresses and host-side interface names.

use std::hash::{BuildHasher, RandomState};

/// `N` random bytes. The standard library's per-process hash keys come from `getrandom(2)`; a fresh state a call makes
/// them differ, which is all that a name or a MAC address needs (no secret depends on them).
#[must_use]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    for chunk in out.chunks_mut(8) {
        let word = RandomState::new().hash_one(std::process::id()).to_ne_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    out
}

/// A host-side interface name: the prefix and eight random hexadecimal digits.
#[must_use]
pub fn interface_name(prefix: &str) -> String {
    format!("{prefix}{:08x}", u32::from_ne_bytes(bytes::<4>()))
}

//! Ethernet addresses, parsed once and written the one way users see them.

use std::fmt;
use std::str::FromStr;

/// A 6-byte Ethernet address; written `02:00:00:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// A random, locally administered unicast address (IEEE 802, second-lowest bit of the first byte).
    #[must_use]
    pub fn random() -> Self {
        let bytes = crate::random::bytes::<6>();
        Self([(bytes[0] & 0xfe) | 0x02, bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]])
    }

    /// Whether it can be an interface's own address: neither a group address nor all zero.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }

    /// Reads the kernel's bytes; `None` when the link has no 6-byte address.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }
}

impl AsRef<[u8]> for MacAddress {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A text that is not a 6-byte address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a 6-byte MAC address like 02:00:00:00:00:01")]
pub struct NotAMacAddress(String);

impl FromStr for MacAddress {
    type Err = NotAMacAddress;

    /// Takes the three forms that Go's `net.ParseMAC` takes: `02:00:…`, `02-00-…` and `0200.0000.0001`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (separator, digits) = match text.as_bytes().get(2) {
            Some(b':') => (':', 2),
            Some(b'-') => ('-', 2),
            _ => ('.', 4),
        };
        let mut bytes = Vec::with_capacity(6);
        for group in text.split(separator) {
            if group.len() != digits || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(NotAMacAddress(text.to_owned()));
            }
            let value = u16::from_str_radix(group, 16).map_err(|_| NotAMacAddress(text.to_owned()))?;
            bytes.extend_from_slice(&value.to_be_bytes()[2 - digits / 2..]);
        }
        Self::from_bytes(&bytes).ok_or_else(|| NotAMacAddress(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_three_forms() {
        for text in ["02:00:5e:10:00:ff", "02-00-5E-10-00-FF", "0200.5e10.00ff"] {
            assert_eq!(text.parse::<MacAddress>().unwrap().to_string(), "02:00:5e:10:00:ff");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "02:00:00",
            "02:00:00:00:00:01:02:03",
            "zz:00:00:00:00:01",
            "+2:00:00:00:00:01",
            "020000000001",
            "02:00-00:00:00:01",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_random_one_is_local_unicast() {
        let mac = MacAddress::random();
        assert!(mac.is_unicast() && mac.0[0] & 2 == 2);
        assert_ne!(mac, MacAddress::random());
    }
}

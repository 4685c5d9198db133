//! Addresses that a pod may ask for: IP addresses with or without a prefix, MAC addresses and InfiniBand GUIDs. Each is
//! parsed once and cannot be wrong later; whether a network can honour it is decided elsewhere.

use std::fmt;
use std::net::IpAddr;

use crate::excerpt::quoted;

/// A text that is not the address it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {problem}", quoted(text))]
pub struct InvalidAddress {
    text: String,
    problem: &'static str,
}

impl InvalidAddress {
    fn new(text: &str, problem: &'static str) -> Self {
        Self { text: text.to_owned(), problem }
    }
}

/// The MAC address of an Ethernet interface, six bytes. Displayed as `02:00:00:00:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// Reads `02:00:00:00:00:01`, `02-00-00-00-00-01` or `0200.0000.0001`, in either case.
    ///
    /// # Errors
    /// When the text is none of these, or is an address that the kernel gives to no interface: all zero or multicast.
    pub fn parse(text: &str) -> Result<Self, InvalidAddress> {
        let bytes = octets::<6>(text)
            .ok_or_else(|| InvalidAddress::new(text, "is not a 6-byte MAC address (like 02:00:00:00:00:01)"))?;
        // The kernel's is_valid_ether_addr.
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(InvalidAddress::new(
                text,
                "is no interface's address: it is multicast or all zero (use one like 02:00:00:00:00:01)",
            ));
        }
        Ok(Self(bytes))
    }

    /// The six bytes in the order they are written.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_octets(&self.0, f)
    }
}

/// The GUID of an InfiniBand interface, eight bytes. Displayed as `c2:11:22:33:44:55:66:77`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InfinibandGuid([u8; 8]);

impl InfinibandGuid {
    /// Reads a GUID in the forms that [`MacAddress::parse`] takes, with eight bytes.
    ///
    /// # Errors
    /// When the text is in none of these forms.
    pub fn parse(text: &str) -> Result<Self, InvalidAddress> {
        octets(text)
            .map(Self)
            .ok_or_else(|| InvalidAddress::new(text, "is not an 8-byte InfiniBand GUID (like c2:11:22:33:44:55:66:77)"))
    }

    /// The eight bytes in the order they are written.
    pub fn octets(self) -> [u8; 8] {
        self.0
    }
}

impl fmt::Display for InfinibandGuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_octets(&self.0, f)
    }
}

/// An IP address that a pod asks for, with the prefix length if it was written. Displayed exactly as it was written,
/// because plugins get it that way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestedIp {
    address: IpAddr,
    prefix_length: Option<u8>,
    written: String,
}

impl RequestedIp {
    /// Reads `10.1.0.5`, `10.1.0.5/24`, `fd00::5` or `fd00::5/64` (multi-net 4.1.2).
    ///
    /// # Errors
    /// When the text is neither, or the address is one that no interface can have.
    pub fn parse(text: &str) -> Result<Self, InvalidAddress> {
        const SHAPE: &str = "is not an IP address with or without prefix (like 10.1.0.5/24 or fd00::5)";
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| InvalidAddress::new(text, SHAPE))?;
        let prefix_length = match prefix {
            None => None,
            Some(prefix) => Some(prefix_length(prefix, address).ok_or_else(|| InvalidAddress::new(text, SHAPE))?),
        };
        unicast(address, text)?;
        Ok(Self { address, prefix_length, written: text.to_owned() })
    }

    /// The address alone.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The prefix length in bits, if one was written.
    pub fn prefix_length(&self) -> Option<u8> {
        self.prefix_length
    }
}

impl fmt::Display for RequestedIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

/// The address of a gateway, without prefix.
pub(crate) fn parse_gateway(text: &str) -> Result<IpAddr, InvalidAddress> {
    let address = text
        .parse()
        .map_err(|_| InvalidAddress::new(text, "is not the IP address of a gateway (like 10.1.0.1 or fd00::1)"))?;
    unicast(address, text)?;
    Ok(address)
}

/// Refuses addresses that neither an interface nor a gateway can have, and IPv4 addresses written as IPv6 ones, whose
/// family would be another here than in a plugin written in Go.
fn unicast(address: IpAddr, text: &str) -> Result<(), InvalidAddress> {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || is_broadcast {
        return Err(InvalidAddress::new(text, "is not an address that one host can have"));
    }
    if address.to_canonical() != address {
        return Err(InvalidAddress::new(text, "is an IPv4 address written as an IPv6 one (write it like 10.1.0.5)"));
    }
    Ok(())
}

fn prefix_length(text: &str, address: IpAddr) -> Option<u8> {
    let longest = if address.is_ipv4() { 32 } else { 128 };
    // Digits alone: Rust would read "+24" as well, and "024" means different things to different readers.
    let is_plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    text.parse().ok().filter(|length| is_plain && *length <= longest)
}

/// Bytes in hexadecimal: pairs joined by `:` or by `-`, or groups of four digits joined by `.` (the forms that Go's
/// `net.ParseMAC` takes, and therefore every plugin).
fn octets<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (separator, digits) = match (text.as_bytes().get(2), text.as_bytes().get(4)) {
        (Some(b':'), _) => (':', 2),
        (Some(b'-'), _) => ('-', 2),
        (_, Some(b'.')) => ('.', 4),
        _ => return None,
    };
    let mut bytes = [0; N];
    let mut filled = 0;
    for group in text.split(separator) {
        if group.len() != digits {
            return None;
        }
        for pair in group.as_bytes().chunks_exact(2) {
            *bytes.get_mut(filled)? = nibble(pair[0])? << 4 | nibble(pair[1])?;
            filled += 1;
        }
    }
    (filled == N).then_some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn write_octets(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (index, byte) in bytes.iter().enumerate() {
        if index > 0 {
            f.write_str(":")?;
        }
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{InfinibandGuid, MacAddress, RequestedIp, parse_gateway};

    #[test]
    fn mac_addresses_have_six_bytes() {
        let rows = [
            ("02:00:00:00:00:01", Some("02:00:00:00:00:01")),
            ("C2-11-aB-33-44-66", Some("c2:11:ab:33:44:66")),
            ("c211.2233.4466", Some("c2:11:22:33:44:66")),
            ("", None),
            ("02:00", None),
            ("02:00:00:00:00:01:", None),
            ("02:00:00:00:00", None),
            ("02:00:00:00:00:01:02:03", None),
            ("02:00:00-00:00:01", None),
            ("2:0:0:0:0:1", None),
            ("020000000001", None),
            ("0200.0000", None),
            ("02:00:00:00:00:0g", None),
            ("02:00:00:00:00:+1", None),
            ("ää:00:00:00:00:01", None),
            ("01:00:5e:00:00:01", None), // multicast
            ("ff:ff:ff:ff:ff:ff", None),
            ("00:00:00:00:00:00", None),
        ];
        for (text, expected) in rows {
            let parsed = MacAddress::parse(text).map(|mac| mac.to_string());
            assert_eq!(parsed.ok().as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn guids_have_eight_bytes() {
        let rows = [
            ("c2:11:22:33:44:55:66:77", Some("c2:11:22:33:44:55:66:77")),
            ("C2-11-22-33-44-55-66-77", Some("c2:11:22:33:44:55:66:77")),
            ("c211.2233.4455.6677", Some("c2:11:22:33:44:55:66:77")),
            ("01:00:00:00:00:00:00:00", Some("01:00:00:00:00:00:00:00")),
            ("02:00:00:00:00:01", None),
            ("c2:11:22:33:44:55:66:77:88", None),
        ];
        for (text, expected) in rows {
            let parsed = InfinibandGuid::parse(text).map(|guid| guid.to_string());
            assert_eq!(parsed.ok().as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn requested_addresses_keep_their_spelling() {
        let rows = [
            ("10.1.0.5", Some(("10.1.0.5", None))),
            ("10.1.0.5/24", Some(("10.1.0.5", Some(24)))),
            ("10.1.0.5/0", Some(("10.1.0.5", Some(0)))),
            ("FD00:0::5/64", Some(("fd00::5", Some(64)))),
            ("fd00::5/128", Some(("fd00::5", Some(128)))),
            ("", None),
            ("10.0.0.300", None),
            ("010.0.0.1", None),
            (" 10.1.0.5", None),
            ("10.1.0.5/", None),
            ("10.1.0.5/33", None),
            ("10.1.0.5/+8", None),
            ("10.1.0.5/024", None),
            ("10.1.0.5/24/24", None),
            ("fd00::5/129", None),
            ("fe80::1%eth0", None),
            ("0.0.0.0", None),
            ("224.0.0.1", None),
            ("255.255.255.255", None),
            ("ff02::1", None),
            ("::ffff:10.1.0.5", None),
        ];
        for (text, expected) in rows {
            let parsed = RequestedIp::parse(text).ok();
            let read = parsed.as_ref().map(|ip| (ip.address().to_string(), ip.prefix_length()));
            assert_eq!(read, expected.map(|(address, prefix)| (address.to_owned(), prefix)), "{text:?}");
            if let Some(ip) = parsed {
                assert_eq!(ip.to_string(), text);
            }
        }
    }

    #[test]
    fn gateways_are_addresses_without_prefix() {
        for (text, is_gateway) in [
            ("10.1.0.1", true),
            ("fe80::1", true),
            ("10.1.0.1/24", false),
            ("0.0.0.0", false),
            ("::ffff:10.1.0.1", false),
            ("gateway", false),
        ] {
            assert_eq!(parse_gateway(text).is_ok(), is_gateway, "{text:?}");
        }
    }
}

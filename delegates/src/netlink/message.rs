//! Netlink messages as bytes: a builder for what we send and an iterator over what the kernel answers. It knows the
//! framing (`linux/netlink.h`: 4-byte alignment, host byte order) and nothing of any family.

/// Set in an attribute's type when its payload is itself a list of attributes (`NLA_F_NESTED`).
const NESTED: u16 = 1 << 15;
/// The bits of an attribute's type that name it (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;
/// Size of `struct nlmsghdr`.
pub const HEADER: usize = 16;

/// One netlink request: the header, the family's fixed part and its attributes.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// Starts a message of a type (`RTM_…`, `NFT_MSG_…`) with `NLM_F_…` flags; `NLM_F_REQUEST` is always set.
    #[must_use]
    pub fn new(kind: u16, flags: i32) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self { bytes }
    }

    /// Appends the family's fixed part, padded to four bytes.
    #[must_use]
    pub fn fixed(mut self, part: &[u8]) -> Self {
        self.bytes.extend_from_slice(part);
        self.pad();
        self
    }

    /// Appends an attribute with any payload.
    #[must_use]
    pub fn attr(mut self, kind: u16, payload: impl AsRef<[u8]>) -> Self {
        let payload = payload.as_ref();
        let length = (4 + payload.len()) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.pad();
        self
    }

    /// Appends an attribute only when there is a value.
    #[must_use]
    pub fn attr_if(self, kind: u16, payload: Option<impl AsRef<[u8]>>) -> Self {
        match payload {
            Some(payload) => self.attr(kind, payload),
            None => self,
        }
    }

    /// Appends a byte.
    #[must_use]
    pub fn u8(self, kind: u16, value: u8) -> Self {
        self.attr(kind, [value])
    }

    /// Appends a 16-bit number in host order.
    #[must_use]
    pub fn u16(self, kind: u16, value: u16) -> Self {
        self.attr(kind, value.to_ne_bytes())
    }

    /// Appends a 16-bit number in network order (ports, EtherTypes).
    #[must_use]
    pub fn be16(self, kind: u16, value: u16) -> Self {
        self.attr(kind, value.to_be_bytes())
    }

    /// Appends a 32-bit number in host order.
    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, value.to_ne_bytes())
    }

    /// Appends a 32-bit number in network order (nf_tables uses it throughout).
    #[must_use]
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, value.to_be_bytes())
    }

    /// Appends a text with the closing NUL the kernel expects.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attr(kind, bytes)
    }

    /// Appends an attribute whose payload is what `fill` appends.
    #[must_use]
    pub fn nest(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        let mut filled = fill(self);
        let length = (filled.bytes.len() - start) as u16;
        filled.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    /// Its type, its flags, and the first byte after the header, which is the address family in all of them.
    pub(super) fn head(&self) -> (u16, i32, u8) {
        let number = |at| u16_at(&self.bytes, at).unwrap_or_default();
        (number(4), i32::from(number(6)), self.bytes.get(HEADER).copied().unwrap_or_default())
    }

    /// The finished bytes, with length, flags and sequence number in the header.
    pub(super) fn finish(mut self, sequence: u32, extra_flags: i32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | extra_flags as u16;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The attributes in a received payload: `(type, payload)` pairs. A truncated one ends the walk.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The payload of the first attribute of that type.
    #[must_use]
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find(|(k, _)| *k == kind).map(|(_, payload)| payload)
    }

    /// A nested list; empty when absent.
    #[must_use]
    pub fn nested(self, kind: u16) -> Self {
        Self(self.get(kind).unwrap_or_default())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & TYPE_MASK;
        let payload = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

/// Reads a host-order 16-bit number at an offset, if there is one.
#[must_use]
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

/// Reads a host-order 32-bit number at an offset, if there is one.
#[must_use]
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

/// A NUL-terminated text attribute.
#[must_use]
pub fn text(payload: &[u8]) -> String {
    let end = payload.iter().position(|b| *b == 0).unwrap_or(payload.len());
    String::from_utf8_lossy(&payload[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_written() {
        let message = Message::new(16, 0).fixed(&[7; 5]).text(3, "eth0").nest(18, |m| m.u8(1, 9).u32(2, 77));
        let bytes = message.finish(5, libc::NLM_F_ACK);
        assert_eq!(u32_at(&bytes, 0), Some(bytes.len() as u32));
        assert_eq!(u32_at(&bytes, 8), Some(5));
        let attributes = Attributes(&bytes[HEADER + 8..]);
        assert_eq!(attributes.get(3).map(text).as_deref(), Some("eth0"));
        assert_eq!(attributes.nested(18).get(1), Some(&[9][..]));
        assert_eq!(attributes.nested(18).get(2).and_then(|p| u32_at(p, 0)), Some(77));
    }

    #[test]
    fn a_truncated_attribute_ends_the_walk() {
        for bytes in [&[8, 0, 1, 0, 1][..], &[2, 0, 1, 0], &[0; 3], &[0; 8]] {
            assert_eq!(Attributes(bytes).count(), 0, "{bytes:?}");
        }
    }
}

//! What a policy's lists are made of: ranges of numbers, ranges of addresses, and names with `*` in them. Each is a text in
//! a manifest.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::excerpt::quoted;

/// A text that is none of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is not {expected}", quoted(text))]
pub struct NotInForm {
    text: String,
    expected: &'static str,
}

/// Numbers from a first to a last, written `7` or `100-199`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NumberRange {
    first: u32,
    last: u32,
}

/// A network of addresses, written as 10.40.0.0/16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange(IpNet);

/// A name in which each `*` stands for any characters, none included.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern(String);

impl NumberRange {
    const PATTERN: &str = "^[0-9]{1,8}(-[0-9]{1,8})?$";

    /// Whether every number of the other is in this one.
    #[must_use]
    pub fn contains(&self, number: u32) -> bool {
        self.numbers().contains(&number)
    }

    /// The numbers.
    #[must_use]
    pub fn numbers(&self) -> RangeInclusive<u32> {
        self.first..=self.last
    }
}

impl TryFrom<String> for NumberRange {
    type Error = NotInForm;

    fn try_from(text: String) -> Result<Self, NotInForm> {
        // `parse` would take a sign.
        let number =
            |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u32>().ok()).flatten();
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(NotInForm { text, expected: "a number or a range of numbers (7 or 100-199)" }),
        }
    }
}

impl AddressRange {
    const PATTERN: &str = "^[0-9A-Fa-f.:]{2,45}/[0-9]{1,3}$";

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }

    /// The last of them.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.0.broadcast()
    }
}

impl TryFrom<String> for AddressRange {
    type Error = NotInForm;

    fn try_from(text: String) -> Result<Self, NotInForm> {
        match text.parse::<IpNet>() {
            Ok(net) if net == net.trunc() => Ok(Self(net)),
            _ => Err(NotInForm { text, expected: "NETWORK/PREFIX without host bits (10.40.0.0/16)" }),
        }
    }
}

impl NamePattern {
    const PATTERN: &str = r"^[^/:\s]{1,64}$";

    /// Whether the whole of a name is in the pattern's form.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let Some((head, rest)) = self.0.split_once('*') else { return self.0 == name };
        let Some(mut name) = name.strip_prefix(head) else { return false };
        let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
        for piece in middle.split('*') {
            let Some(at) = name.find(piece) else { return false };
            name = &name[at + piece.len()..];
        }
        name.ends_with(tail)
    }

    /// Whether it matches every name.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0.bytes().all(|byte| byte == b'*')
    }
}

impl TryFrom<String> for NamePattern {
    type Error = NotInForm;

    fn try_from(text: String) -> Result<Self, NotInForm> {
        let is_foreign = |c: char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control();
        if text.is_empty() || text.len() > 64 || text.contains(is_foreign) {
            return Err(NotInForm { text, expected: "a name or a pattern of names (ens4 or ens5.*)" });
        }
        Ok(Self(text))
    }
}

impl fmt::Display for NumberRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { first, last } if first == last => write!(f, "{first}"),
            Self { first, last } => write!(f, "{first}-{last}"),
        }
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The three are texts of a form in the schema, too.
macro_rules! text_of_a_form {
    ($($kind:ident),*) => {$(
        impl From<$kind> for String {
            fn from(value: $kind) -> Self {
                value.to_string()
            }
        }

        impl JsonSchema for $kind {
            fn schema_name() -> Cow<'static, str> {
                stringify!($kind).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "maxLength": 64, "pattern": Self::PATTERN})
            }
        }
    )*};
}
text_of_a_form!(NumberRange, AddressRange, NamePattern);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_numbers_is_one_or_from_first_to_last() {
        for (text, first, last) in [("0", 0, 0), ("7", 7, 7), ("100-199", 100, 199), ("5-5", 5, 5)] {
            let range = NumberRange::try_from(text.to_owned()).unwrap();
            assert_eq!(range.numbers(), first..=last, "{text}");
            assert!(range.contains(first) && range.contains(last) && !range.contains(last + 1), "{text}");
        }
        for text in ["", "-", "7-", "-7", "199-100", "+7", "7 - 9", "0x7", "1-2-3", "4294967296", "all"] {
            assert!(NumberRange::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_range_of_addresses_is_a_network() {
        let range = |text: &str| AddressRange::try_from(text.to_owned());
        let v4 = range("10.40.0.0/16").unwrap();
        assert!(v4.contains("10.40.255.255".parse().unwrap()) && v4.contains("::ffff:10.40.0.1".parse().unwrap()));
        assert!(!v4.contains("10.41.0.0".parse().unwrap()) && !v4.contains("fd00::1".parse().unwrap()));
        assert_eq!(v4.last().to_string(), "10.40.255.255");
        assert!(range("fd00:40::/32").unwrap().contains("fd00:40::7".parse().unwrap()));
        for text in ["", "10.40.0.0", "10.40.0.1/16", "10.40.0.0/33", "fd00::/129", "lan"] {
            assert!(range(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_pattern_matches_whole_names() {
        let rows = [
            ("ens4", &["ens4"][..], &["ens", "ens41", "xens4", "ENS4", ""][..]),
            ("ens5.*", &["ens5.", "ens5.1", "ens5.100.7"], &["ens5", "ens51", "xens5.1", "ens5x1"]),
            ("blue-*", &["blue-", "blue-1"], &["blue", "red-blue-1"]),
            ("*-blue", &["-blue", "a-blue", "a-blue-blue"], &["a-blue-b"]),
            ("a*b*c", &["abc", "aXbYc", "abbcc"], &["ac", "ab", "acb", "bc"]),
            ("ab*ba", &["abba", "abXba"], &["aba", "ab", "ba"]),
            ("a*a", &["aa", "aba"], &["a", "ab"]),
            ("*", &["", "anything"], &[]),
            ("**", &["", "x"], &[]),
            ("ä*", &["ä", "äö"], &["a"]),
        ];
        for (pattern, matching, others) in rows {
            let parsed = NamePattern::try_from(pattern.to_owned()).unwrap();
            for name in matching {
                assert!(parsed.matches(name), "{pattern} matches {name:?}");
            }
            for name in others {
                assert!(!parsed.matches(name), "{pattern} does not match {name:?}");
            }
            assert_eq!(parsed.is_any(), matches!(pattern, "*" | "**"), "{pattern}");
        }
        for text in ["", "a b", "/dev", "eth0:1", &"x".repeat(65)] {
            assert!(NamePattern::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }
}

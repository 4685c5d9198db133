//! Names as Kubernetes and the kernel allow them. The annotation parsers use these; what a name refers to is looked up
//! elsewhere.

use std::fmt;

use crate::excerpt::quoted;

/// The name of a network interface inside a pod: one that the kernel accepts as it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

/// A text that cannot name an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} cannot name an interface: {problem}", quoted(name))]
pub struct InvalidInterfaceName {
    name: String,
    problem: &'static str,
}

impl InterfaceName {
    /// The longest interface name in bytes (the kernel's `IFNAMSIZ` less the closing zero).
    pub const MAX_BYTES: usize = 15;

    /// Reads an interface name by the rules of the kernel's `dev_valid_name`. `%` is refused besides, because the kernel
    /// takes it for a pattern and picks a name itself, and so are `lo`, which every pod has, and the two names that the
    /// folders `/proc/sys/net/*/conf` give a meaning of their own.
    ///
    /// # Errors
    /// Says which of the rules the name breaks.
    pub fn parse(name: &str) -> Result<Self, InvalidInterfaceName> {
        match broken_rule(name) {
            None => Ok(Self(name.to_owned())),
            Some(problem) => Err(InvalidInterfaceName { name: name.to_owned(), problem }),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn broken_rule(name: &str) -> Option<&'static str> {
    // 0xa0 is white space to the kernel (its tables are Latin-1) even as a part of a UTF-8 character.
    let is_space = |text: &str| text.contains(char::is_whitespace) || text.bytes().any(|byte| byte == 0xa0);
    match name {
        "" => Some("it is empty"),
        _ if name.len() > InterfaceName::MAX_BYTES => Some("the kernel allows at most 15 bytes"),
        "." | ".." | "lo" | "all" | "default" => Some("this name is reserved"),
        _ if name.contains(['/', ':', '%']) => Some("\"/\", \":\" and \"%\" are not allowed"),
        _ if is_space(name) => Some("white space is not allowed"),
        _ if name.contains(char::is_control) => Some("control characters are not allowed"),
        _ => None,
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for InterfaceName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Whether `name` is a DNS label (RFC 1123): the form of every namespace, and of a definition's name in the text form of
/// the annotation (multi-net 3.3).
pub fn is_dns_label(name: &str) -> bool {
    name.len() <= 63 && is_label_shaped(name)
}

/// Whether `name` is a DNS subdomain (RFC 1123): labels joined by dots, the form of most Kubernetes object names.
pub fn is_dns_subdomain(name: &str) -> bool {
    // Kubernetes bounds the whole, not each label.
    name.len() <= 253 && name.split('.').all(is_label_shaped)
}

/// `[a-z0-9]([-a-z0-9]*[a-z0-9])?`
fn is_label_shaped(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::{InterfaceName, is_dns_label, is_dns_subdomain};

    #[test]
    fn interface_names_follow_the_kernel() {
        for good in ["a", "net1", "Net_1", "eth0.100", "-", "...", "ä", "abcdefghijklmno", "lo0", "All"] {
            assert_eq!(InterfaceName::parse(good).map(|name| name.to_string()), Ok(good.to_owned()));
        }
        let rows = [
            ("", "it is empty"),
            ("abcdefghijklmnop", "at most 15 bytes"),
            ("ääääääää", "at most 15 bytes"),
            (".", "reserved"),
            ("..", "reserved"),
            ("lo", "reserved"),
            ("all", "reserved"),
            ("default", "reserved"),
            ("a/b", "not allowed"),
            ("eth0:1", "not allowed"),
            ("net%d", "not allowed"),
            ("a b", "white space"),
            ("a\t", "white space"),
            ("a\n", "white space"),
            ("a\u{b}", "white space"),
            ("a\u{a0}b", "white space"),
            ("à", "white space"), // UTF-8 C3 A0
            ("a\0", "control characters"),
            ("\u{1b}[31m", "control characters"),
        ];
        for (bad, reason) in rows {
            let problem = InterfaceName::parse(bad).unwrap_err().to_string();
            assert!(problem.contains(reason), "{bad:?}: {problem}");
        }
    }

    #[test]
    fn object_names_are_dns_labels_or_subdomains() {
        let label = |length: usize| "a".repeat(length);
        let rows = [
            ("a", true, true),
            ("net-1", true, true),
            ("1", true, true),
            (label(63).as_str(), true, true),
            (label(64).as_str(), false, true),
            (label(253).as_str(), false, true),
            (label(254).as_str(), false, false),
            ("a.b", false, true),
            ("", false, false),
            ("A", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("a_b", false, false),
            ("a..b", false, false),
            (".a", false, false),
            ("a.-b", false, false),
            ("ä", false, false),
            ("a\0", false, false),
        ]
        .map(|(name, as_label, as_subdomain)| (name.to_owned(), as_label, as_subdomain));
        for (name, as_label, as_subdomain) in rows {
            assert_eq!(is_dns_label(&name), as_label, "label {name:?}");
            assert_eq!(is_dns_subdomain(&name), as_subdomain, "subdomain {name:?}");
        }
    }
}

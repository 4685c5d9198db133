//! Container ids, network names and interface names, checked once where they enter (CNI 1.1
//! §Parameters, and libcni's own checks). Everything behind the edge holds these types and need not
//! look again.

use std::fmt;

use super::error::{CniError, code};

/// The longest interface name, in bytes: the kernel's IFNAMSIZ less its final NUL.
pub const INTERFACE_NAME_MAX: usize = 15;

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type! {
    /// A container's id: a letter or digit, then letters, digits, `_`, `.` and `-`. Safe as a file
    /// name but for its length.
    ContainerId
}
name_type! {
    /// A network's name: same alphabet as [`ContainerId`].
    NetworkName
}
name_type! {
    /// An interface name the kernel takes as it is: 1 to 15 bytes, not `.` or `..`, without `/`, `:`, white
    /// space, NUL, and `%`, for which the kernel would put a number of its choice.
    InterfaceName
}

impl ContainerId {
    /// Empty is code 3 (unknown container), other faults are code 4 (environment).
    pub fn parse(s: &str) -> Result<Self, CniError> {
        if s.is_empty() {
            return Err(CniError::new(code::UNKNOWN_CONTAINER, "the container id is empty"));
        }
        if !is_identifier(s) {
            return Err(CniError::new(code::ENVIRONMENT, format!("container id {}: {IDENTIFIER_RULE}", shown(s))));
        }
        Ok(Self(s.to_owned()))
    }
}

impl NetworkName {
    /// Any fault is code 7 (configuration).
    pub fn parse(s: &str) -> Result<Self, CniError> {
        if s.is_empty() {
            return Err(CniError::new(code::CONFIG, "name: the network has no name")
                .with_details("add \"name\" to the configuration"));
        }
        if !is_identifier(s) {
            return Err(CniError::new(code::CONFIG, format!("name: {}: {IDENTIFIER_RULE}", shown(s))));
        }
        Ok(Self(s.to_owned()))
    }
}

impl InterfaceName {
    /// Any fault is code 4 (environment).
    pub fn parse(s: &str) -> Result<Self, CniError> {
        let problem = if s.is_empty() {
            "is empty"
        } else if s.len() > INTERFACE_NAME_MAX {
            "is longer than 15 bytes"
        } else if s == "." || s == ".." {
            "cannot be an interface's name"
        } else if s.contains(|c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace()) {
            "holds `/`, `:`, `%`, white space or NUL"
        } else {
            return Ok(Self(s.to_owned()));
        };
        Err(CniError::new(code::ENVIRONMENT, format!("interface name {} {problem}", shown(s))))
    }
}

const IDENTIFIER_RULE: &str = "must begin with a letter or digit and go on with letters, digits, `_`, `.` or `-`";

fn is_identifier(s: &str) -> bool {
    let mut bytes = s.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// A foreign string for an error line: quoted, escaped and cut.
pub(crate) fn shown(s: &str) -> String {
    const LONGEST: usize = 80;
    match s.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &s[..end]),
        None => format!("{s:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers() {
        for good in ["a", "0", "a_b.c-d", "e3db5c381934", "A.", &"x".repeat(300)] {
            assert_eq!(ContainerId::parse(good).unwrap().as_str(), good);
            assert_eq!(NetworkName::parse(good).unwrap().to_string(), good);
        }
        for bad in ["_a", ".a", "-a", "a b", "a/b", "../x", "ä", "a\n", "a\0", " "] {
            assert_eq!(ContainerId::parse(bad).unwrap_err().code, 4, "{bad:?}");
            assert_eq!(NetworkName::parse(bad).unwrap_err().code, 7, "{bad:?}");
        }
        assert_eq!(ContainerId::parse("").unwrap_err().code, 3);
        assert_eq!(NetworkName::parse("").unwrap_err().code, 7);
    }

    #[test]
    fn interface_names() {
        for good in ["eth0", "a", "...", "fifteen-bytes-1", "ü", "net1@x"] {
            assert_eq!(InterfaceName::parse(good).unwrap().as_str(), good);
        }
        for bad in
            ["", ".", "..", "sixteen-bytes-12", "a/b", "a:b", "a%d", "a b", "a\tb", "a\u{a0}b", "a\0", "üüüüüüüü"]
        {
            assert_eq!(InterfaceName::parse(bad).unwrap_err().code, 4, "{bad:?}");
        }
    }

    #[test]
    fn an_error_line_shows_foreign_text_escaped_and_cut() {
        let error = NetworkName::parse(&format!("\n{}", "x".repeat(10_000))).unwrap_err();
        assert!(error.msg.starts_with(r#"name: "\nxxx"#) && error.msg.len() < 300, "{}", error.msg);
    }
}

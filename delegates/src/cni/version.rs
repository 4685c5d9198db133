//! The versions of the CNI specification, in their order. Nothing here knows what differs between
//! them: that is with the results and requests that do.

use std::fmt;

use super::error::{CniError, code};
use super::names::shown;

/// A version of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// The first; also what an absent `cniVersion` means.
    V0_1_0,
    /// Adds VERSION.
    V0_2_0,
    /// Adds lists of plugins and results with interfaces.
    V0_3_0,
    /// Mends a word in 0.3.0.
    V0_3_1,
    /// Adds CHECK, and `prevResult` on DEL.
    V0_4_0,
    /// Takes away single configurations and `version` in results.
    V1_0_0,
    /// Adds GC, STATUS and `cniVersions`, and details of interfaces and routes.
    V1_1_0,
}

impl Version {
    /// Every version there is, oldest first. All are served.
    pub const ALL: [Version; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest version.
    pub const LATEST: Version = Self::V1_1_0;

    /// Reads a `cniVersion`. An empty one means 0.1.0 (libcni); an unknown one is code 1.
    pub fn parse(s: &str) -> Result<Version, CniError> {
        if s.is_empty() {
            return Ok(Self::V0_1_0);
        }
        Self::ALL.into_iter().find(|version| version.as_str() == s).ok_or_else(|| {
            CniError::new(code::INCOMPATIBLE_VERSION, format!("cniVersion {} is not served", shown(s)))
                .with_details(format!("use one of {}", Self::ALL.map(Self::as_str).join(", ")))
        })
    }

    /// The version as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_written_and_ordered() {
        for version in Version::ALL {
            assert_eq!(Version::parse(version.as_str()).unwrap(), version);
        }
        assert!(Version::ALL.is_sorted());
        assert_eq!(Version::ALL.last(), Some(&Version::LATEST));
        assert_eq!(Version::parse("").unwrap(), Version::V0_1_0);
    }

    #[test]
    fn other_versions_are_refused_with_the_list_of_those_served() {
        for bad in ["1.2.0", "2.0.0", "0.5.0", "1.0", "1", "v1.0.0", "1.0.0 ", "x"] {
            let error = Version::parse(bad).unwrap_err();
            assert_eq!(error.code, 1, "{bad}");
            assert!(error.details.contains("0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"));
        }
    }
}

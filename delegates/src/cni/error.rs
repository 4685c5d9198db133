//! The two errors of this crate's users: the CNI error object, which a runtime reads, and the
//! configuration error, which pure parsing finds before anything is touched. What is wrong is said
//! here in one line; who is asked to mend it goes to `details`.

use std::fmt::Display;

use serde_json::{Map, Value};

use super::version::Version;
use super::view::View;

/// Error codes: CNI 1.1 §Error, the library's own 8, and ours from 100 on.
pub mod code {
    /// The configuration's CNI version is not served, or the command is newer than it.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A known key, or a value of it, that we do not serve; the message names both.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown: the runtime need not call DEL.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A `CNI_…` variable is missing or wrong; the message names it.
    pub const ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// Something is not the JSON it has to be.
    pub const DECODE: u32 = 6;
    /// The network configuration is wrong.
    pub const CONFIG: u32 = 7;
    /// The network namespace is missing, or is not one we may work in (libcni's code, absent from
    /// the specification's table).
    pub const NAMESPACE: u32 = 8;
    /// The runtime should try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: ADD cannot be served.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: ADD cannot be served, and running containers may have lost connectivity.
    pub const LIMITED: u32 = 51;
    /// A delegate failed.
    pub const DELEGATE: u32 = 100;
    /// A delegate failed, and could not be undone completely.
    pub const UNDO_INCOMPLETE: u32 = 101;
}

/// The CNI error object (CNI 1.1 §Error). Displayed as its message, then what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { "; " })]
pub struct CniError {
    /// One of [`code`], or a plugin's own.
    pub code: u32,
    /// What is wrong, in one line.
    pub msg: String,
    /// What to do about it; may be empty.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same error, saying what to do about it.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The same error with `prefix: ` before its message: the network and interface it happened to.
    #[must_use]
    pub fn context(mut self, prefix: impl Display) -> Self {
        self.msg = format!("{prefix}: {}", self.msg);
        self
    }

    /// The object for stdout. The specification asks for `cniVersion` in it, though the reference
    /// plugins leave it out.
    pub fn to_json(&self, version: Version) -> Value {
        let mut object = Map::new();
        object.insert("cniVersion".into(), version.as_str().into());
        object.insert("code".into(), self.code.into());
        object.insert("msg".into(), self.msg.as_str().into());
        if !self.details.is_empty() {
            object.insert("details".into(), self.details.as_str().into());
        }
        Value::Object(object)
    }

    /// Reads an error object. `None` when `v` is something else: neither `code` nor `msg` is in it,
    /// or one has a wrong type.
    pub fn from_json(v: &Value) -> Option<Self> {
        let view = View::of(v.as_object()?, "");
        let code = view.uint("code", 0..=u64::from(u32::MAX)).ok()?;
        let msg = view.string("msg").ok()?;
        if code.is_none() && msg.is_none() {
            return None;
        }
        Some(Self {
            code: code.and_then(|code| u32::try_from(code).ok()).unwrap_or(0),
            msg: msg.unwrap_or_default().to_owned(),
            details: view.string("details").ok()?.unwrap_or_default().to_owned(),
        })
    }
}

/// A configuration that cannot be honoured, found by pure parsing, before anything is touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct ConfigError {
    /// [`code::CONFIG`], or [`code::UNSUPPORTED_FIELD`] for a value of a known key that we do not
    /// serve.
    pub code: u32,
    /// Where: the key's path, as `ipam.ranges[0][1].subnet`.
    pub key: String,
    /// What is wrong, and which values are accepted.
    pub problem: String,
}

impl ConfigError {
    /// The value is wrong (code 7).
    pub fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { code: code::CONFIG, key: key.into(), problem: problem.into() }
    }

    /// The value is right, but we do not serve it (code 2).
    pub fn unsupported(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { code: code::UNSUPPORTED_FIELD, ..Self::new(key, problem) }
    }

    /// The same error, seen from the object that `parent` leads to.
    #[must_use]
    pub fn under(mut self, parent: &str) -> Self {
        let separator = if self.key.starts_with('[') { "" } else { "." };
        self.key = format!("{parent}{separator}{}", self.key);
        self
    }
}

impl From<ConfigError> for CniError {
    fn from(error: ConfigError) -> Self {
        Self::new(error.code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_object_carries_the_version_and_leaves_out_empty_details() {
        let error = CniError::new(code::CONFIG, "name: missing");
        assert_eq!(error.to_json(Version::V0_4_0), json!({"cniVersion": "0.4.0", "code": 7, "msg": "name: missing"}));
        assert_eq!(error.to_string(), "name: missing");

        let error = error.with_details("write one").context("network a");
        assert_eq!(error.to_string(), "network a: name: missing; write one");
        assert_eq!(CniError::from_json(&error.to_json(Version::V1_1_0)), Some(error));
    }

    #[test]
    fn error_objects_of_others_are_read() {
        let cases = [
            (json!({"code": 999, "msg": "no"}), Some((999, "no", ""))),
            (json!({"Code": 11, "Msg": "busy", "Details": "later", "x": 1}), Some((11, "busy", "later"))),
            (json!({"msg": "no code"}), Some((0, "no code", ""))),
            (json!({"code": 5}), Some((5, "", ""))),
            (json!({"cniVersion": "1.0.0", "ips": []}), None),
            (json!({"code": "seven", "msg": "x"}), None),
            (json!({"code": -1, "msg": "x"}), None),
            (json!([]), None),
            (json!(null), None),
        ];
        for (input, expected) in cases {
            let read = CniError::from_json(&input);
            assert_eq!(read.as_ref().map(|e| (e.code, e.msg.as_str(), e.details.as_str())), expected, "{input}");
        }
    }

    #[test]
    fn a_configuration_error_points_at_its_key() {
        let error = ConfigError::new("subnet", "must be a network").under("ranges[0][1]").under("ipam");
        assert_eq!(error.to_string(), "ipam.ranges[0][1].subnet: must be a network");
        assert_eq!(CniError::from(error).code, code::CONFIG);
        assert_eq!(ConfigError::new("[0]", "x").under("list").key, "list[0]");
        assert_eq!(CniError::from(ConfigError::unsupported("ipMasqBackend", "x")).code, code::UNSUPPORTED_FIELD);
    }
}

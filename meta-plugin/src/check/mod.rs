//! What ADD refuses, as pure functions, so that whoever checks earlier gives the same answer in the same words: admission,
//! `lint` and ADD itself. What is known of the cluster comes from a [`World`]; nothing is read or asked here.

pub mod definition;
mod overlap;
pub mod pod;
pub mod policy;
pub mod request;
mod world;

use std::fmt;

use musubi_delegates::cni::CniError;

pub use world::{Settings, World};

#[cfg(test)]
mod tests;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It works, though perhaps not as intended.
    Warning,
    /// It would fail, or is not allowed.
    Error,
}

/// Something found in an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The field of the object, as `spec.config` or `metadata.annotations[k8s.v1.cni.cncf.io/networks]`.
    pub field: String,
    /// The path of a key in the JSON that the field holds, as `plugins[0].vlan`; empty where it is about the whole.
    pub key: String,
    /// What is wrong, in one line; for an error the text that ADD would give.
    pub message: String,
    /// What to do about it; may be empty.
    pub advice: String,
}

impl Finding {
    fn error(field: &str, key: &str, error: CniError) -> Self {
        Self::new(Severity::Error, field, key, error.msg, error.details)
    }

    fn warning(field: &str, key: &str, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, field, key, message.into(), String::new())
    }

    fn new(severity: Severity, field: &str, key: &str, message: String, advice: String) -> Self {
        Self { severity, field: field.to_owned(), key: key.to_owned(), message, advice }
    }

    fn advise(mut self, advice: &str) -> Self {
        advice.clone_into(&mut self.advice);
        self
    }

    /// Whether the object is refused for it.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.advice.is_empty() { Ok(()) } else { write!(f, "; {}", self.advice) }
    }
}

/// The field that an annotation is.
fn annotation(name: &str) -> String {
    format!("metadata.annotations[{name}]")
}

//! Who asked for an operation, beside what the request itself says: how to tell it from others, whether it still waits, and
//! what its plugins inherit. What came of it network by network is noted here for whoever wants to know.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use musubi_delegates::cni::CniError;
use musubi_delegates::random;

use crate::cancel::Cancel;
use crate::record::Attached;

/// The caller of one operation.
#[derive(Debug, Default)]
pub struct Caller {
    /// Tells the operation from every other; stands in its log lines, errors, Events and records.
    pub id: String,
    /// Set when nobody waits for the outcome of ADD or CHECK any more.
    pub cancel: Cancel,
    /// The environment that external plugins start from; `None` is this process's own.
    pub environment: Option<Vec<(String, String)>>,
    /// Whether devices that pods share are left for the agent to remove, some time after their last user.
    pub agent_removes_shared: bool,
    /// The folder of the cgroup that external plugins run in; `None` is this process's own.
    pub plugin_cgroup: Option<PathBuf>,
    steps: Mutex<Vec<Step>>,
}

/// One network of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `namespace/name`, or the configuration's own name.
    pub network: String,
    /// Its interface in the pod.
    pub interface: String,
    /// The type of its first plugin.
    pub kind: String,
    /// How long it took.
    pub took: Duration,
    /// The CNI code that it failed with.
    pub error: Option<u32>,
}

impl Step {
    pub(super) fn of(attached: &Attached, took: Duration, error: Option<&CniError>) -> Self {
        Self {
            network: attached.network.clone(),
            interface: attached.interface.clone(),
            kind: attached.delegates.first().map(|delegate| delegate.plugin_type.clone()).unwrap_or_default(),
            took,
            error: error.map(|error| error.code),
        }
    }
}

impl Caller {
    /// A caller that waits, in this process's own environment.
    #[must_use]
    pub fn new() -> Self {
        Self { id: new_id(), ..Self::default() }
    }

    /// The client of an agent, with its own environment for plugins.
    #[must_use]
    pub fn of_client(id: String, environment: Vec<(String, String)>, plugin_cgroup: Option<PathBuf>) -> Self {
        Self { id, environment: Some(environment), plugin_cgroup, agent_removes_shared: true, ..Self::default() }
    }

    /// The trace that the runtime's call belongs to (W3C `traceparent`); plugins inherit it as it came.
    #[must_use]
    pub fn trace(&self) -> Option<String> {
        const VARIABLE: &str = "TRACEPARENT";
        match &self.environment {
            Some(given) => given.iter().find(|(key, _)| key == VARIABLE).map(|(_, value)| value.clone()),
            None => std::env::var(VARIABLE).ok(),
        }
    }

    /// An error with the id by which to find its operation in the log, where Events and the history have it too.
    pub(super) fn signed(&self, error: CniError) -> CniError {
        let details = if error.details.is_empty() { String::new() } else { format!("{}; ", error.details) };
        CniError { details: format!("{details}request {}", self.id), ..error }
    }

    /// Notes what became of a network.
    pub(super) fn note(&self, step: Step) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push(step);
    }

    /// What became of each network so far.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A new id for an operation: 64 random bits in hexadecimal.
#[must_use]
pub fn new_id() -> String {
    format!("{:016x}", u64::from_ne_bytes(random::bytes::<8>()))
}

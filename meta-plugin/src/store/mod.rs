//! Where pods and definitions come from and where a pod's status goes: one trait, one file a place.

pub mod directory;

use std::collections::BTreeMap;

use musubi_crds::{NETWORKS_ANNOTATION, NetworkStatus};
use musubi_delegates::cni::CniError;

pub use directory::DirectoryStore;

/// What the plan needs to know of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid as the store has it; a static pod's differs from the kubelet's.
    pub uid: String,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Whether it shares the host's network.
    pub host_network: bool,
}

impl Pod {
    /// An annotation's value; an empty one counts as absent.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str).filter(|value| !value.trim().is_empty())
    }

    /// Whether it names networks of its own.
    #[must_use]
    pub fn selects_networks(&self) -> bool {
        self.annotation(NETWORKS_ANNOTATION).is_some()
    }

    /// `namespace/name`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// What the plan needs to know of a NetworkAttachmentDefinition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Definition {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `spec.config`; absent means a file of the node with that name.
    pub config: Option<String>,
    /// `k8s.v1.cni.cncf.io/resourceName`.
    pub resource_name: Option<String>,
}

/// A place that holds pods and definitions.
pub trait Store {
    /// The pod, if there is one.
    ///
    /// # Errors
    /// Code 11 when asking again may help; 7 when the place is wrong.
    fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, CniError>;

    /// The definition, if there is one.
    ///
    /// # Errors
    /// As for pods.
    fn network(&self, namespace: &str, name: &str) -> Result<Option<Definition>, CniError>;

    /// Writes a pod's network-status.
    ///
    /// # Errors
    /// It was not written.
    fn write_status(&self, pod: &Pod, status: &[NetworkStatus]) -> Result<(), CniError>;

    /// Removes what `write_status` left, where the place does not remove it with the pod. With `written`, only if that is
    /// still what stands there: another sandbox of the pod may have written its own since. Says whether none stands there
    /// now.
    ///
    /// # Errors
    /// It cannot be removed.
    fn remove_status(&self, namespace: &str, name: &str, written: Option<&[NetworkStatus]>) -> Result<bool, CniError>;

    /// What is wrong with the place without being in the way, one line each.
    fn warnings(&self) -> Vec<String>;
}

/// The store of a configuration without one: no pod is known, nothing is written.
#[derive(Debug, Default)]
pub struct NoStore;

impl Store for NoStore {
    fn pod(&self, _: &str, _: &str) -> Result<Option<Pod>, CniError> {
        Ok(None)
    }

    fn network(&self, _: &str, _: &str) -> Result<Option<Definition>, CniError> {
        Ok(None)
    }

    fn write_status(&self, _: &Pod, _: &[NetworkStatus]) -> Result<(), CniError> {
        Ok(())
    }

    fn remove_status(&self, _: &str, _: &str, _: Option<&[NetworkStatus]>) -> Result<bool, CniError> {
        Ok(true)
    }

    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

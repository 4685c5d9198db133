//! Where pods and definitions come from and where a pod's status goes: one trait, one file a place.

pub mod directory;
pub mod kubernetes;
pub mod manifest;

use std::collections::BTreeMap;
use std::sync::Arc;

use musubi_crds::{NETWORKS_ANNOTATION, NetworkStatus};
use musubi_delegates::cni::CniError;
use serde_json::{Map, Value};

pub use directory::DirectoryStore;
pub use kubernetes::KubernetesStore;
pub use manifest::KnownPod;

use crate::check::policy::{Labels, Policies};

/// Annotation of a static pod's mirror in the API: the kubelet's uid of the pod.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

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

    /// Whether the kubelet made it of a file: its uid in the API is its mirror's, not the kubelet's.
    #[must_use]
    pub fn is_static(&self) -> bool {
        self.annotations.contains_key(MIRROR_ANNOTATION)
            || self.annotations.get("kubernetes.io/config.source").is_some_and(|source| source != "api")
    }

    /// `namespace/name`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// The pod that a runtime asks for, with what the runtime itself knows of it.
#[derive(Debug, Clone, Copy)]
pub struct PodQuery<'a> {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: &'a str,
    /// `K8S_POD_NAME`.
    pub name: &'a str,
    /// `K8S_POD_UID`: the kubelet's; a static pod has another in the API.
    pub uid: Option<&'a str>,
    /// The annotations that the runtime hands over as it has them from the kubelet
    /// (`io.kubernetes.cri.pod-annotations`).
    pub annotations: Option<&'a Map<String, Value>>,
}

impl<'a> PodQuery<'a> {
    /// The pod of that name, whatever its uid.
    #[must_use]
    pub fn named(namespace: &'a str, name: &'a str) -> Self {
        Self { namespace, name, uid: None, annotations: None }
    }

    /// The pod without asking anybody else. A static pod's uid stays unknown: it is its mirror's.
    #[must_use]
    pub fn as_the_runtime_knows_it(&self) -> Option<Pod> {
        let (given, uid) = (self.annotations?, self.uid?);
        let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        let annotations = given.iter().filter_map(text).collect();
        let mut pod = Pod {
            namespace: self.namespace.to_owned(),
            name: self.name.to_owned(),
            uid: uid.to_owned(),
            annotations,
            host_network: false,
        };
        if pod.is_static() {
            pod.uid.clear();
        }
        Some(pod)
    }
}

/// Something to tell the pod's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// A word for programs, in the form `AddedInterface`.
    pub reason: &'static str,
    /// A line for people.
    pub message: String,
    /// Whether something is wrong.
    pub warning: bool,
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
    /// `musubi.dev/force`: it may be changed under pods that use it.
    pub is_forced: bool,
}

impl Definition {
    /// `namespace/name`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A place that holds pods and definitions.
pub trait Store {
    /// The pod, if there is one.
    ///
    /// # Errors
    /// Code 11 when asking again may help; 7 when the place is wrong.
    fn pod(&self, asked: &PodQuery<'_>) -> Result<Option<Pod>, CniError>;

    /// The definition, if there is one.
    ///
    /// # Errors
    /// As for pods.
    fn network(&self, namespace: &str, name: &str) -> Result<Option<Definition>, CniError>;

    /// Who may use what. Asked only for pods that select networks.
    ///
    /// # Errors
    /// As for pods; and a policy that cannot be read is one that nobody may get past.
    fn policies(&self) -> Result<Arc<Policies>, CniError>;

    /// The labels of a namespace. Asked only where a policy selects by label.
    ///
    /// # Errors
    /// As for pods.
    fn labels(&self, namespace: &str) -> Result<Labels, CniError>;

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

    /// Tells the pod's owner, in places that have a way to. What cannot be told is not worth failing for.
    fn tell(&self, _pod: &Pod, _events: Vec<Event>) {}

    /// Whether there is anything to ask: without a place for pods the default networks alone are attached.
    fn knows_pods(&self) -> bool {
        true
    }

    /// What is wrong with the place without being in the way, one line each.
    fn warnings(&self) -> Vec<String>;
}

/// The store of a configuration without one: no pod is known, nothing is written.
#[derive(Debug, Default)]
pub struct NoStore;

impl Store for NoStore {
    fn knows_pods(&self) -> bool {
        false
    }

    fn pod(&self, _: &PodQuery<'_>) -> Result<Option<Pod>, CniError> {
        Ok(None)
    }

    fn network(&self, _: &str, _: &str) -> Result<Option<Definition>, CniError> {
        Ok(None)
    }

    fn policies(&self) -> Result<Arc<Policies>, CniError> {
        Ok(Arc::default())
    }

    fn labels(&self, _: &str) -> Result<Labels, CniError> {
        Ok(Labels::new())
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

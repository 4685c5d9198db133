//! What is known of a cluster, as an index that events feed and that answers without looking through all: definitions, pods
//! with their addresses, policies, namespaces. It is a store, so the very code that ADD looks networks up with reads it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use musubi_crds::{NETWORK_STATUS_ANNOTATION, NetworkStatus, status};
use musubi_delegates::cni::{CniError, code};

use super::overlap::{Overlaps, Shared};
use super::policy::{Labels, Policies};
use crate::config::Config;
use crate::store::manifest::Object;
use crate::store::{Definition, KnownPod, Pod, PodQuery, Store};

/// What is decided by setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// A pod may name definitions that are not known (a warning).
    pub missing_definitions_may_come: bool,
    /// A pod of the host's network may name networks, which it does not get, is an error instead of a warning.
    pub host_network_is_error: bool,
    /// All namespaces are told of; else one that is not known has no labels.
    pub namespaces_are_known: bool,
}

/// What is known.
#[derive(Debug, Clone)]
pub struct World {
    pub(super) config: Config,
    pub(super) settings: Settings,
    definitions: HashMap<String, Definition>,
    overlaps: Overlaps,
    /// There are many of them: each name is kept once.
    pods: HashMap<Arc<str>, Status>,
    /// Pods by the network they are attached to.
    users: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Pods by network and address. More than one is an accident.
    holders: HashMap<(Arc<str>, IpAddr), Vec<Arc<str>>>,
    policies: Arc<Policies>,
    broken_policies: BTreeMap<String, String>,
    namespaces: HashMap<String, Labels>,
}

/// What a pod is attached to: networks and addresses.
#[derive(Debug, Clone, Default)]
struct Status(Box<[Attached]>);

/// A network and the pod's addresses there.
type Attached = (Arc<str>, Box<[IpAddr]>);

impl World {
    /// An empty world. `config` is the cluster's own configuration of ours, where it is known.
    #[must_use]
    pub fn new(config: Config, settings: Settings) -> Self {
        Self {
            config,
            settings,
            definitions: HashMap::new(),
            overlaps: Overlaps::default(),
            pods: HashMap::new(),
            users: HashMap::new(),
            holders: HashMap::new(),
            policies: Arc::default(),
            broken_policies: BTreeMap::new(),
            namespaces: HashMap::new(),
        }
    }

    /// An object is new or has changed.
    pub fn apply(&mut self, object: Object) {
        match object {
            Object::Pod(known) => self.apply_pod(&known),
            Object::Definition(definition) => self.apply_definition(definition),
            Object::Policy(name, spec) => {
                self.broken_policies.remove(&name);
                Arc::make_mut(&mut self.policies).insert(name, spec);
            }
            Object::Namespace(name, labels) => {
                self.namespaces.insert(name, labels);
            }
        }
    }

    /// A definition is gone.
    pub fn remove_definition(&mut self, namespace: &str, name: &str) {
        let key = format!("{namespace}/{name}");
        self.definitions.remove(&key);
        self.overlaps.remove(&key);
    }

    /// A pod is gone.
    pub fn remove_pod(&mut self, namespace: &str, name: &str) {
        let key = format!("{namespace}/{name}");
        let Some(Status(networks)) = self.pods.remove(key.as_str()) else { return };
        for (network, addresses) in networks {
            for address in addresses {
                let place = (Arc::clone(&network), address);
                if let Some(holders) = self.holders.get_mut(&place) {
                    holders.retain(|holder| **holder != *key);
                    if holders.is_empty() {
                        self.holders.remove(&place);
                    }
                }
            }
            if let Some(users) = self.users.get_mut(&network) {
                users.remove(key.as_str());
                if users.is_empty() {
                    self.users.remove(&network);
                }
            }
        }
    }

    /// A policy is gone.
    pub fn remove_policy(&mut self, name: &str) {
        self.broken_policies.remove(name);
        Arc::make_mut(&mut self.policies).remove(name);
    }

    /// A namespace is gone.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// A policy cannot be read. Until it can, or is gone, no pod gets networks that it selects: nobody knows whom it limits.
    pub fn break_policy(&mut self, name: String, problem: String) {
        self.broken_policies.insert(name, problem);
    }

    /// The definitions that share something with this one, other than itself.
    pub(super) fn sharing(&self, definition: &Definition) -> Vec<Shared> {
        self.overlaps.with(definition)
    }

    /// The pods that are attached to a network.
    pub(super) fn users(&self, network: &str) -> impl Iterator<Item = &str> {
        self.users.get(network).into_iter().flatten().map(AsRef::as_ref)
    }

    /// A pod other than `pod` that has an address on a network.
    pub(super) fn holder(&self, network: &str, address: IpAddr, pod: &str) -> Option<&str> {
        let (network, _) = self.users.get_key_value(network)?;
        let holders = self.holders.get(&(Arc::clone(network), address))?;
        holders.iter().map(AsRef::as_ref).find(|holder| *holder != pod)
    }

    fn apply_definition(&mut self, definition: Definition) {
        self.overlaps.apply(&definition);
        self.definitions.insert(definition.key(), definition);
    }

    fn apply_pod(&mut self, known: &KnownPod) {
        self.remove_pod(&known.pod.namespace, &known.pod.name);
        let Status(mut networks) = if known.is_over { Status::default() } else { Status::of(&known.pod) };
        if networks.is_empty() {
            return;
        }
        let key: Arc<str> = known.pod.key().into();
        for (network, addresses) in &mut networks {
            if let Some((known, _)) = self.users.get_key_value(network) {
                *network = Arc::clone(known);
            }
            self.users.entry(Arc::clone(network)).or_default().insert(Arc::clone(&key));
            for address in &**addresses {
                let place = (Arc::clone(network), *address);
                self.holders.entry(place).or_insert_with(|| Vec::with_capacity(1)).push(Arc::clone(&key));
            }
        }
        self.pods.insert(key, Status(networks));
    }
}

/// Networks of definitions alone, which are told by the `/` in their names. A status that cannot be read says nothing.
impl Status {
    fn of(pod: &Pod) -> Self {
        let Some(text) = pod.annotation(NETWORK_STATUS_ANNOTATION) else { return Self::default() };
        let entries: Vec<NetworkStatus> = status::from_annotation(text).unwrap_or_default();
        let defined = entries.into_iter().filter(|entry| entry.name.contains('/'));
        Self(defined.map(|entry| (entry.name.into(), entry.ips.into())).collect())
    }
}

impl Store for World {
    /// Who asks about a pod has it.
    fn pod(&self, _: &PodQuery<'_>) -> Result<Option<Pod>, CniError> {
        Ok(None)
    }

    fn network(&self, namespace: &str, name: &str) -> Result<Option<Definition>, CniError> {
        Ok(self.definitions.get(&format!("{namespace}/{name}")).cloned())
    }

    fn policies(&self) -> Result<Arc<Policies>, CniError> {
        match self.broken_policies.first_key_value() {
            None => Ok(Arc::clone(&self.policies)),
            Some((name, problem)) => {
                Err(CniError::new(code::CONFIG, format!("policy {name} cannot be read: {problem}")).with_details(
                    "correct or remove the policy; until then no pod is attached to networks that it selects",
                ))
            }
        }
    }

    fn labels(&self, namespace: &str) -> Result<Labels, CniError> {
        match self.namespaces.get(namespace) {
            Some(labels) => Ok(labels.clone()),
            None if !self.settings.namespaces_are_known => Ok(Labels::new()),
            None => Err(CniError::new(
                code::TRY_AGAIN,
                format!("namespace {namespace} is not known yet, and a policy selects by its labels"),
            )),
        }
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

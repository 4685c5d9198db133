//! What is known of the cluster: definitions, namespaces, policies, and the networks that running pods are on; followed, and
//! trimmed to what decisions read. What an object names and is not known is asked for: it may be a moment old.

mod feed;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use futures_util::stream::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod as KubernetesPod};
use kube::api::{Api, ListParams, WatchParams};
use kube::core::{ObjectList, PartialObjectMeta};
use kube::{Client, ResourceExt};
use musubi::cancel::Cancel;
use musubi::check;
use musubi::store::kubernetes::connection::{Failure, Patience};
use musubi::store::kubernetes::table::Freshness;
use musubi::store::kubernetes::watch::{AllPolicies, Events, Followed, follow};
use musubi::store::kubernetes::{Connection, definition_of, pod_of};
use musubi::store::manifest::Object;
use musubi::store::{Definition, KnownPod, Store};
use musubi_crds::{NETWORK_STATUS_ANNOTATION, NetworkAttachmentDefinition};
use tokio::sync::Semaphore;

use self::feed::{Feed, Labels};
use crate::mutate::{Demand, INJECT_ANNOTATION, NODE_SELECTOR_ANNOTATION};

/// How long one object may be asked for: an API server waits some seconds for us.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a watch may be silent: after it, its connection counts as dead. What is known goes on being used: while the API
/// server is away, it asks nothing.
const LIVE: Duration = Duration::from_secs(60);
/// How many are asked for at once.
const ASKED_AT_ONCE: usize = 8;

/// A definition, and what a pod that names it is given.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    definition: Definition,
    demand: Demand,
}

impl Known {
    fn of(object: &NetworkAttachmentDefinition) -> Self {
        let definition = definition_of(&object.namespace().unwrap_or_default(), &object.name_any(), object);
        let annotation = |key: &str| object.annotations().get(key).map(|text| text.trim().to_owned());
        let demand = Demand {
            resource: definition.resource_name.clone(),
            node_selector: annotation(NODE_SELECTOR_ANNOTATION).filter(|text| !text.is_empty()),
            inject: annotation(INJECT_ANNOTATION).is_none_or(|text| text != "false"),
        };
        Self { definition, demand }
    }
}

/// What is known, as one.
struct State {
    checks: check::World,
    demands: HashMap<String, Demand>,
}

/// Objects that were asked for because nobody had told of them yet.
#[derive(Debug, Default)]
pub struct Asked {
    definitions: Vec<Known>,
    namespace: Option<(String, BTreeMap<String, String>)>,
}

/// The cluster.
pub struct World {
    connection: Arc<Connection>,
    state: Arc<RwLock<State>>,
    definitions: Feed<Known>,
    namespaces: Feed<Labels>,
    policies: Feed<musubi_crds::AttachmentPolicySpec>,
    pods: Feed<KnownPod>,
    asking: Semaphore,
}

impl World {
    /// A world with nothing but its own settings in it.
    #[must_use]
    pub fn new(connection: Arc<Connection>, checks: check::World) -> Self {
        let state = Arc::new(RwLock::new(State { checks, demands: HashMap::new() }));
        Self {
            connection,
            definitions: Feed::of(&state),
            namespaces: Feed::of(&state),
            policies: Feed::of(&state),
            pods: Feed::of(&state),
            state,
            asking: Semaphore::new(ASKED_AT_ONCE),
        }
    }

    /// Follows the cluster from now on.
    pub fn follow(&self) {
        let connection = || Arc::clone(&self.connection);
        tokio::spawn(follow(connection(), Definitions, self.definitions.clone(), LIVE));
        tokio::spawn(follow(connection(), Namespaces, self.namespaces.clone(), LIVE));
        tokio::spawn(follow(connection(), AllPolicies, self.policies.clone(), LIVE));
        tokio::spawn(follow(connection(), RunningPods, self.pods.clone(), LIVE));
    }

    /// How what is known is, by its name in messages.
    #[must_use]
    pub fn freshness(&self) -> [(&'static str, Freshness); 4] {
        [
            ("definitions", self.definitions.freshness()),
            ("namespaces", self.namespaces.freshness()),
            ("policies", self.policies.freshness()),
            ("pods", self.pods.freshness()),
        ]
    }

    /// Asks the API server for those of the definitions that are not known, and for the namespace.
    ///
    /// # Errors
    /// One could not be asked for.
    pub async fn ask(&self, namespace: &str, definitions: &[(String, String)]) -> Result<Asked, Failure> {
        let mut asked = Asked::default();
        if !self.namespaces.knows(namespace) {
            let found = self.get("get namespace", |client| async move {
                Api::<Namespace>::all(client).get_metadata_opt(namespace).await
            });
            asked.namespace = found.await?.map(|object| (namespace.to_owned(), object.labels().clone()));
        }
        for (namespace, name) in definitions {
            let key = format!("{namespace}/{name}");
            if self.definitions.knows(&key) || asked.definitions.iter().any(|known| known.definition.key() == key) {
                continue;
            }
            let found = self.get("get network-attachment-definition", |client| async move {
                Api::<NetworkAttachmentDefinition>::namespaced(client, namespace).get_opt(name).await
            });
            asked.definitions.extend(found.await?.as_ref().map(Known::of));
        }
        Ok(asked)
    }

    async fn get<T, F>(&self, what: &'static str, request: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = kube::Result<T>>,
    {
        let _turn = self.asking.acquire().await;
        let patience = Patience { deadline: Instant::now() + ANSWER, once: true, cancel: Cancel::default() };
        self.connection.request(what, &patience, request).await
    }

    /// What a pod that names a definition is given; `None` when there is no such definition.
    #[must_use]
    pub fn demand(&self, asked: &Asked, namespace: &str, name: &str) -> Option<Demand> {
        let key = format!("{namespace}/{name}");
        let asked = || asked.definitions.iter().find(|known| known.definition.key() == key);
        self.read().demands.get(&key).cloned().or_else(|| asked().map(|known| known.demand.clone()))
    }

    /// Judges by what is known and what was asked for.
    pub fn judge<T>(&self, asked: &Asked, judge: impl FnOnce(&check::World) -> T) -> T {
        if asked.definitions.is_empty() && asked.namespace.is_none() {
            return judge(&self.read().checks);
        }
        // What was asked for is not kept: nobody would tell when it goes. What has been told of meanwhile is newer.
        let checks = &mut self.write().checks;
        let new: Vec<&Definition> = asked.definitions.iter().map(|known| &known.definition).collect();
        let new: Vec<&Definition> =
            new.into_iter().filter(|d| matches!(checks.network(&d.namespace, &d.name), Ok(None))).collect();
        for definition in &new {
            checks.apply(Object::Definition((*definition).clone()));
        }
        let namespace = asked.namespace.as_ref().filter(|(name, _)| !self.namespaces.knows(name));
        if let Some((name, labels)) = namespace {
            checks.apply(Object::Namespace(name.clone(), labels.clone()));
        }
        let judgement = judge(checks);
        for definition in new {
            checks.remove_definition(&definition.namespace, &definition.name);
        }
        if let Some((name, _)) = namespace {
            checks.remove_namespace(name);
        }
        judgement
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Definitions;

impl Followed for Definitions {
    type Object = NetworkAttachmentDefinition;
    type Kept = Known;
    const WHAT: &'static str = "network-attachment-definitions";

    fn keep(object: Self::Object) -> Known {
        Known::of(&object)
    }
}

struct Namespaces;

impl Followed for Namespaces {
    type Object = PartialObjectMeta<Namespace>;
    type Kept = Labels;
    const WHAT: &'static str = "namespaces";

    async fn list(&self, client: Client, params: ListParams) -> kube::Result<ObjectList<Self::Object>> {
        Api::<Namespace>::all(client).list_metadata(&params).await
    }

    async fn watch(&self, client: Client, params: WatchParams, version: &str) -> kube::Result<Events<Self::Object>> {
        Ok(Api::<Namespace>::all(client).watch_metadata(&params, version).await?.boxed())
    }

    fn keep(object: Self::Object) -> Labels {
        Labels(object.metadata.labels.unwrap_or_default())
    }
}

/// The pods that have not ended. For the server, one that ends leaves the selection, and so its metadata is enough.
struct RunningPods;

impl Followed for RunningPods {
    type Object = PartialObjectMeta<KubernetesPod>;
    type Kept = KnownPod;
    const WHAT: &'static str = "pods";

    async fn list(&self, client: Client, params: ListParams) -> kube::Result<ObjectList<Self::Object>> {
        Api::<KubernetesPod>::all(client).list_metadata(&params).await
    }

    async fn watch(&self, client: Client, params: WatchParams, version: &str) -> kube::Result<Events<Self::Object>> {
        Ok(Api::<KubernetesPod>::all(client).watch_metadata(&params, version).await?.boxed())
    }

    fn keep(object: Self::Object) -> KnownPod {
        let mut pod = pod_of(object.metadata);
        pod.annotations.retain(|key, _| key == NETWORK_STATUS_ANNOTATION);
        KnownPod { pod, ..KnownPod::default() }
    }

    fn field_selector(&self) -> Option<String> {
        Some("status.phase!=Succeeded,status.phase!=Failed".to_owned())
    }
}

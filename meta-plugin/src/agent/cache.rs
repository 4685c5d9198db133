//! What the agent remembers of the API: this node's pods and every definition, trimmed to what planning reads. It answers
//! only while the watch behind it is live and only for the very pod that is asked for; otherwise the API is asked.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::StreamExt;
use k8s_openapi::api::core::v1::Pod as KubernetesPod;
use kube::Client;
use kube::api::{Api, ListParams, WatchParams};
use kube::core::{ObjectList, ObjectMeta, PartialObjectMeta};
use musubi_crds::{AttachmentPolicySpec, DEFAULT_NETWORK_ANNOTATION, NETWORKS_ANNOTATION};

use crate::check::policy::Policies;
use crate::store::kubernetes::table::{Freshness, Table};
use crate::store::kubernetes::watch::{Events, Followed};
use crate::store::kubernetes::{Cache, pod_of};
use crate::store::{Definition, Event, MIRROR_ANNOTATION, Pod, PodQuery};

/// The annotations that planning reads; all others are forgotten.
const KEPT: [&str; 4] =
    [NETWORKS_ANNOTATION, DEFAULT_NETWORK_ANNOTATION, MIRROR_ANNOTATION, "kubernetes.io/config.source"];
/// Annotations of our own group are kept too.
const OWN: &str = "musubi.dev/";

/// The cache.
pub struct ClusterCache {
    pods: Table<Pod>,
    definitions: Table<Definition>,
    policies: Table<AttachmentPolicySpec>,
    /// What they say together, and after which change of the table that was.
    joined: Mutex<(u64, Arc<Policies>)>,
    live: Duration,
    send: Box<dyn Fn(Pod, Vec<Event>) + Send + Sync>,
}

impl ClusterCache {
    /// An empty cache, which counts for `live` after the server's last event or bookmark; Events go to `send`.
    #[must_use]
    pub fn new(live: Duration, send: impl Fn(Pod, Vec<Event>) + Send + Sync + 'static) -> Self {
        let (pods, definitions, policies) = (Table::default(), Table::default(), Table::default());
        Self { pods, definitions, policies, joined: Mutex::default(), live, send: Box::new(send) }
    }

    /// Where a watch of this node's pods goes.
    #[must_use]
    pub fn follow_pods(&self) -> Table<Pod> {
        self.pods.clone()
    }

    /// Where a watch of all definitions goes.
    #[must_use]
    pub fn follow_definitions(&self) -> Table<Definition> {
        self.definitions.clone()
    }

    /// Where a watch of all policies goes.
    #[must_use]
    pub fn follow_policies(&self) -> Table<AttachmentPolicySpec> {
        self.policies.clone()
    }

    /// How the table of pods is.
    #[must_use]
    pub fn pods(&self) -> Freshness {
        self.pods.freshness()
    }

    /// How the table of definitions is.
    #[must_use]
    pub fn definitions(&self) -> Freshness {
        self.definitions.freshness()
    }

    /// How the table of policies is.
    #[must_use]
    pub fn policy_table(&self) -> Freshness {
        self.policies.freshness()
    }
}

impl Cache for ClusterCache {
    fn pod(&self, asked: &PodQuery<'_>) -> Option<Pod> {
        let pod = self.pods.heard_within(self.live, &key(asked.namespace, asked.name))?;
        let uid = asked.uid?;
        let is_it = pod.uid == uid || pod.annotations.get(MIRROR_ANNOTATION).is_some_and(|mirrored| mirrored == uid);
        is_it.then_some(pod)
    }

    fn network(&self, namespace: &str, name: &str) -> Option<Definition> {
        self.definitions.heard_within(self.live, &key(namespace, name))
    }

    fn policies(&self) -> Option<Arc<Policies>> {
        self.policies.read_within(self.live, |revision, specs| {
            let mut joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
            if joined.0 != revision {
                let mut policies = Policies::default();
                for (name, spec) in specs {
                    policies.insert(name.clone(), spec.clone());
                }
                *joined = (revision, Arc::new(policies));
            }
            Arc::clone(&joined.1)
        })
    }

    fn send_later(&self, pod: &Pod, events: Vec<Event>) {
        // Many may wait: what an Event says of its pod is who it is.
        let named =
            Pod { namespace: pod.namespace.clone(), name: pod.name.clone(), uid: pod.uid.clone(), ..Pod::default() };
        (self.send)(named, events);
    }
}

/// A pod without the annotations that nobody reads.
fn trimmed(metadata: ObjectMeta) -> Pod {
    let mut pod = pod_of(metadata);
    pod.annotations.retain(|key, _| KEPT.contains(&key.as_str()) || key.starts_with(OWN));
    pod
}

fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// This node's pods: their metadata alone.
pub struct PodsOfNode {
    /// The node's name in the API.
    pub node: String,
}

impl Followed for PodsOfNode {
    type Object = PartialObjectMeta<KubernetesPod>;
    type Kept = Pod;
    const WHAT: &'static str = "pods";

    async fn list(&self, client: Client, params: ListParams) -> kube::Result<ObjectList<Self::Object>> {
        Api::<KubernetesPod>::all(client).list_metadata(&params).await
    }

    async fn watch(&self, client: Client, params: WatchParams, version: &str) -> kube::Result<Events<Self::Object>> {
        Ok(Api::<KubernetesPod>::all(client).watch_metadata(&params, version).await?.boxed())
    }

    fn keep(object: Self::Object) -> Pod {
        trimmed(object.metadata)
    }

    fn field_selector(&self) -> Option<String> {
        Some(format!("spec.nodeName={}", self.node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::kubernetes::watch::Sink;

    fn pod(uid: &str, annotations: &[(&str, &str)]) -> Pod {
        let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        trimmed(ObjectMeta { uid: Some(uid.to_owned()), annotations: Some(annotations), ..ObjectMeta::default() })
    }

    fn asked<'a>(name: &'a str, uid: Option<&'a str>) -> PodQuery<'a> {
        PodQuery { uid, ..PodQuery::named("ns", name) }
    }

    #[test]
    fn a_pod_counts_with_its_uid_and_while_the_watch_is_live() {
        let live = Duration::from_secs(60);
        let cache = ClusterCache::new(live, |_, _| ());
        let sink = cache.follow_pods();
        sink.replace(vec![("ns/a".to_owned(), pod("1", &[(NETWORKS_ANNOTATION, "n"), ("big", "x")]))]);
        assert_eq!(cache.pod(&asked("a", Some("1"))), None, "nothing was heard yet");
        sink.heard();
        let found = cache.pod(&asked("a", Some("1"))).unwrap();
        assert_eq!(found.annotations.into_iter().collect::<Vec<_>>(), [(NETWORKS_ANNOTATION.into(), "n".into())]);
        for other in [asked("a", Some("2")), asked("a", None), asked("b", Some("1"))] {
            assert_eq!(cache.pod(&other), None, "{other:?}");
        }
        sink.apply("ns/static".to_owned(), pod("api", &[(MIRROR_ANNOTATION, "kubelet")]));
        assert_eq!(cache.pod(&asked("static", Some("kubelet"))).unwrap().uid, "api", "the PATCH needs the mirror's");
        sink.remove("ns/a");
        assert_eq!(cache.pod(&asked("a", Some("1"))), None);
        cache.pods.last_heard(live + Duration::from_secs(1));
        assert_eq!(cache.pod(&asked("static", Some("kubelet"))), None, "silence for over a minute");
    }

    #[test]
    fn policies_are_joined_anew_when_they_change_and_not_before() {
        let cache = ClusterCache::new(Duration::from_secs(60), |_, _| ());
        let sink = cache.follow_policies();
        assert!(cache.policies().is_none(), "nothing was heard yet");
        sink.heard();
        let spec = |tenant: &str| -> AttachmentPolicySpec {
            serde_json::from_value(serde_json::json!({"namespaceSelector": {"matchLabels": {"tenant": tenant}}}))
                .unwrap()
        };
        let now = || cache.policies().unwrap();
        let mut before = now();
        let changes: [&dyn Fn(); 4] = [
            &|| sink.apply("a".to_owned(), spec("blue")),
            &|| sink.apply("a".to_owned(), spec("red")),
            &|| sink.remove("a"),
            &|| sink.replace(vec![("b".to_owned(), spec("blue"))]),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert!(Arc::ptr_eq(&before, &now()), "nothing has changed before change {number}");
            change();
            assert!(!Arc::ptr_eq(&before, &now()), "change {number}");
            before = now();
        }
        sink.apply("b".to_owned(), spec("blue"));
        assert!(Arc::ptr_eq(&before, &now()), "it says nothing new");
    }
}

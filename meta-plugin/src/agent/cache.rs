//! What the agent remembers of the API: this node's pods and every definition, trimmed to what planning reads. It answers
//! only while the watch behind it is live and only for the very pod that is asked for; otherwise the API is asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::core::ObjectMeta;
use musubi_crds::{DEFAULT_NETWORK_ANNOTATION, NETWORKS_ANNOTATION};

use super::watch::Sink;
use crate::store::kubernetes::{Cache, pod_of};
use crate::store::{Definition, Event, MIRROR_ANNOTATION, Pod, PodQuery};

/// The annotations that planning reads; all others are forgotten.
const KEPT: [&str; 4] =
    [NETWORKS_ANNOTATION, DEFAULT_NETWORK_ANNOTATION, MIRROR_ANNOTATION, "kubernetes.io/config.source"];
/// Annotations of our own group are kept too.
const OWN: &str = "musubi.dev/";

/// The cache.
pub struct ClusterCache {
    pods: Arc<Mutex<Table<Pod>>>,
    definitions: Arc<Mutex<Table<Definition>>>,
    live: Duration,
    send: Box<dyn Fn(Pod, Vec<Event>) + Send + Sync>,
}

struct Table<T> {
    objects: HashMap<String, T>,
    heard: Option<Instant>,
}

/// How a table is, for readiness and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// Objects in it.
    pub objects: usize,
    /// Since the server last said something; `None` before it ever did.
    pub age: Option<Duration>,
}

impl ClusterCache {
    /// An empty cache, which counts for `live` after the server's last event or bookmark; Events go to `send`.
    #[must_use]
    pub fn new(live: Duration, send: impl Fn(Pod, Vec<Event>) + Send + Sync + 'static) -> Self {
        Self { pods: Arc::default(), definitions: Arc::default(), live, send: Box::new(send) }
    }

    /// Where a watch of this node's pods goes.
    #[must_use]
    pub fn follow_pods(&self) -> Follow<Pod> {
        Follow(Arc::clone(&self.pods))
    }

    /// Where a watch of all definitions goes.
    #[must_use]
    pub fn follow_definitions(&self) -> Follow<Definition> {
        Follow(Arc::clone(&self.definitions))
    }

    /// How the table of pods is.
    #[must_use]
    pub fn pods(&self) -> Freshness {
        lock(&self.pods).freshness()
    }

    /// How the table of definitions is.
    #[must_use]
    pub fn definitions(&self) -> Freshness {
        lock(&self.definitions).freshness()
    }
}

impl Cache for ClusterCache {
    fn pod(&self, asked: &PodQuery<'_>) -> Option<Pod> {
        let table = lock(&self.pods);
        let pod = table.if_heard_within(self.live)?.get(&key(asked.namespace, asked.name))?;
        let uid = asked.uid?;
        let is_it = pod.uid == uid || pod.annotations.get(MIRROR_ANNOTATION).is_some_and(|mirrored| mirrored == uid);
        is_it.then(|| pod.clone())
    }

    fn network(&self, namespace: &str, name: &str) -> Option<Definition> {
        lock(&self.definitions).if_heard_within(self.live)?.get(&key(namespace, name)).cloned()
    }

    fn send_later(&self, pod: &Pod, events: Vec<Event>) {
        (self.send)(pod.clone(), events);
    }
}

/// One table of the cache, as the sink of a watch.
pub struct Follow<T>(Arc<Mutex<Table<T>>>);

impl<T: Send> Sink<T> for Follow<T> {
    fn replace(&self, objects: Vec<(String, T)>) {
        lock(&self.0).objects = objects.into_iter().collect();
    }

    fn apply(&self, name: String, object: T) {
        lock(&self.0).objects.insert(name, object);
    }

    fn remove(&self, name: &str) {
        lock(&self.0).objects.remove(name);
    }

    fn heard(&self) {
        lock(&self.0).heard = Some(Instant::now());
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { objects: HashMap::new(), heard: None }
    }
}

impl<T> Table<T> {
    fn freshness(&self) -> Freshness {
        Freshness { objects: self.objects.len(), age: self.heard.map(|heard| heard.elapsed()) }
    }

    fn if_heard_within(&self, time: Duration) -> Option<&HashMap<String, T>> {
        self.heard.is_some_and(|heard| heard.elapsed() <= time).then_some(&self.objects)
    }
}

/// A pod without the annotations that nobody reads.
pub(super) fn trimmed(metadata: ObjectMeta) -> Pod {
    let mut pod = pod_of(metadata);
    pod.annotations.retain(|key, _| KEPT.contains(&key.as_str()) || key.starts_with(OWN));
    pod
}

fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

fn lock<T>(table: &Mutex<Table<T>>) -> MutexGuard<'_, Table<T>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        lock(&cache.pods).heard = Instant::now().checked_sub(live + Duration::from_secs(1));
        assert_eq!(cache.pod(&asked("static", Some("kubelet"))), None, "silence for over a minute");
    }
}

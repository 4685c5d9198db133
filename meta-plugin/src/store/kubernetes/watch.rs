//! Following one kind of object in the API: a streaming list where the server has them, else a paged list, then a watch from
//! there on, for ever. What is remembered of the objects is the sink's business; nothing is kept here but a version.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{BoxStream, StreamExt};
use kube::api::{Api, ListParams, WatchParams};
use kube::core::{ObjectList, Resource, WatchEvent};
use kube::{Client, ResourceExt};
use musubi_crds::{AttachmentPolicy, AttachmentPolicySpec, NetworkAttachmentDefinition};
use serde::de::DeserializeOwned;

use super::connection::{Failure, Patience, failure_of};
use super::{Connection, definition_of};
use crate::cancel::Cancel;
use crate::store::Definition;

/// How much longer than a watch silence may last before the connection counts as dead.
const SILENCE: Duration = Duration::from_secs(5);
/// Objects a page of a list.
const PAGE: u32 = 250;
/// Pauses after failures: the first, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];
/// The annotation of the bookmark that ends a streaming list.
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// What is followed.
pub trait Followed: Send + Sync + 'static {
    /// The object as it is sent.
    type Object: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static;
    /// What is kept of it.
    type Kept: Send + 'static;
    /// What it is, for the log.
    const WHAT: &'static str;

    /// A page of all objects.
    fn list(
        &self,
        client: Client,
        params: ListParams,
    ) -> impl Future<Output = kube::Result<ObjectList<Self::Object>>> + Send {
        async move { Api::<Self::Object>::all(client).list(&params).await }
    }

    /// The changes since a version.
    fn watch(
        &self,
        client: Client,
        params: WatchParams,
        version: &str,
    ) -> impl Future<Output = kube::Result<Events<Self::Object>>> + Send {
        async move { Ok(Api::<Self::Object>::all(client).watch(&params, version).await?.boxed()) }
    }

    /// What is kept of an object.
    fn keep(object: Self::Object) -> Self::Kept;

    /// Which objects, if not all.
    fn field_selector(&self) -> Option<String> {
        None
    }
}

/// What happens to objects, as the server sends it.
pub type Events<T> = BoxStream<'static, kube::Result<WatchEvent<T>>>;

/// Where changes go; objects are named `namespace/name`, those without a namespace by name.
pub trait Sink<T>: Send {
    /// These are all.
    fn replace(&self, objects: Vec<(String, T)>);
    /// This one is new or has changed.
    fn apply(&self, name: String, object: T);
    /// This one is gone.
    fn remove(&self, name: &str);
    /// The server has just said something: what is remembered is current.
    fn heard(&self);
}

/// Every definition of the cluster.
pub struct Definitions;

impl Followed for Definitions {
    type Object = NetworkAttachmentDefinition;
    type Kept = Definition;
    const WHAT: &'static str = "network-attachment-definitions";

    fn keep(object: Self::Object) -> Definition {
        definition_of(&object.namespace().unwrap_or_default(), &object.name_any(), &object)
    }
}

/// Every policy of the cluster.
pub struct AllPolicies;

impl Followed for AllPolicies {
    type Object = AttachmentPolicy;
    type Kept = AttachmentPolicySpec;
    const WHAT: &'static str = "attachmentpolicies";

    fn keep(object: Self::Object) -> AttachmentPolicySpec {
        object.spec
    }
}

/// Why following has to begin anew, or after a while.
enum Interruption {
    /// The version is too old (410): list again.
    Expired,
    /// The server has no streaming lists.
    NoStreamingLists(String),
    /// Something failed.
    Failed(Failure),
}

impl From<kube::Error> for Interruption {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 410 => Self::Expired,
            error => Self::Failed(failure_of(error)),
        }
    }
}

/// Follows objects for ever. What is remembered of them counts for `live` after the server's last word.
pub async fn follow<F: Followed>(connection: Arc<Connection>, followed: F, sink: impl Sink<F::Kept>, live: Duration) {
    // The server sends a bookmark before a watch ends, so that one comes while what we remember still counts.
    let watch_time = Duration::from_secs((live * 5 / 6).as_secs().max(1));
    let mut follower = Follower { connection, followed, sink, watch_time, version: None, streaming: true };
    let mut pause = PAUSES[0];
    loop {
        let began = Instant::now();
        let interruption = match follower.advance().await {
            Ok(()) => {
                // A server that ends each watch at once is not asked without pause.
                tokio::time::sleep(PAUSES[0].saturating_sub(began.elapsed())).await;
                continue;
            }
            Err(interruption) => interruption,
        };
        match interruption {
            Interruption::Expired => follower.version = None,
            Interruption::NoStreamingLists(why) => {
                tracing::debug!("{}: listed page by page: {why}", F::WHAT);
                follower.streaming = false;
                continue;
            }
            // The kind is not there, so there are no objects of it. It may come.
            Interruption::Failed(Failure::Refused(status)) if status.code == 404 => {
                follower.version = None;
                follower.sink.replace(Vec::new());
                follower.sink.heard();
                pause = PAUSES[1];
            }
            Interruption::Failed(failure) => {
                tracing::warn!("watch of {}: {failure}", F::WHAT);
                // Credentials, the server's address and its authority may all be others by now.
                if matches!(failure, Failure::Credentials(_) | Failure::Away(_)) {
                    follower.connection.forget();
                }
            }
        }
        if began.elapsed() > PAUSES[1] {
            pause = PAUSES[0];
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES[1]);
    }
}

struct Follower<F: Followed, S> {
    connection: Arc<Connection>,
    followed: F,
    sink: S,
    /// How long the server keeps a watch open.
    watch_time: Duration,
    version: Option<String>,
    streaming: bool,
}

impl<F: Followed, S: Sink<F::Kept>> Follower<F, S> {
    /// Lists if there is no version to watch from, then watches until the server ends the watch.
    async fn advance(&mut self) -> Result<(), Interruption> {
        if self.version.is_none() && !self.streaming {
            self.list().await?;
        }
        let client = self.connection.client().await.map_err(Interruption::Failed)?;
        let mut params = WatchParams {
            field_selector: self.followed.field_selector(),
            timeout: u32::try_from(self.watch_time.as_secs()).ok(),
            ..WatchParams::default()
        };
        let mut initial = None;
        if self.version.is_none() {
            params = params.initial_events();
            initial = Some(Vec::new());
        }
        let version = self.version.clone().unwrap_or_default();
        let longest = self.watch_time + SILENCE;
        let opened = tokio::time::timeout(longest, self.followed.watch(client, params, &version)).await;
        let opened = opened.map_err(|_| silence(longest))?;
        let mut events = opened.map_err(|error| Self::interruption(error, initial.is_some()))?;
        loop {
            let next = tokio::time::timeout(longest, events.next()).await;
            let next = next.map_err(|_| silence(longest))?;
            let Some(event) = next else {
                // A server that knows nothing of streaming lists never ends one.
                return if initial.is_some() {
                    Err(Interruption::NoStreamingLists("it did not end".to_owned()))
                } else {
                    Ok(())
                };
            };
            let event = event.map_err(|error| Self::interruption(error, initial.is_some()))?;
            self.take(event, &mut initial)?;
        }
    }

    fn take(
        &mut self,
        event: WatchEvent<F::Object>,
        initial: &mut Option<Vec<(String, F::Kept)>>,
    ) -> Result<(), Interruption> {
        let version = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let (version, name) = (object.resource_version(), name_of(&object));
                let kept = F::keep(object);
                match initial {
                    Some(all) => all.push((name, kept)),
                    None => self.sink.apply(name, kept),
                }
                version
            }
            WatchEvent::Deleted(object) => {
                self.sink.remove(&name_of(&object));
                object.resource_version()
            }
            WatchEvent::Bookmark(bookmark) => {
                if bookmark.metadata.annotations.contains_key(INITIAL_END)
                    && let Some(all) = initial.take()
                {
                    self.sink.replace(all);
                }
                Some(bookmark.metadata.resource_version)
            }
            WatchEvent::Error(status) => return Err(Self::interruption(kube::Error::Api(status), initial.is_some())),
        };
        if initial.is_none() {
            self.version = version.or(self.version.take());
            self.sink.heard();
        }
        Ok(())
    }

    /// Refusals of a streaming list come as an answer or inside the stream; only what may pass is no refusal.
    fn interruption(error: kube::Error, is_list: bool) -> Interruption {
        match error {
            kube::Error::Api(status) if is_list && !matches!(status.code, 401 | 403 | 410 | 429 | 503 | 504) => {
                Interruption::NoStreamingLists(status.message)
            }
            error => error.into(),
        }
    }

    async fn list(&mut self) -> Result<(), Interruption> {
        let mut all = Vec::new();
        let mut params = ListParams { field_selector: self.followed.field_selector(), ..ListParams::default() };
        params = params.limit(PAGE);
        let version = loop {
            let patience = Patience {
                deadline: Instant::now() + self.watch_time + SILENCE,
                once: false,
                cancel: Cancel::default(),
            };
            let page = self.connection.request("list", &patience, |client| self.followed.list(client, params.clone()));
            let page = page.await.map_err(|failure| match failure.status() {
                410 => Interruption::Expired,
                _ => Interruption::Failed(failure),
            })?;
            all.extend(page.items.into_iter().map(|object| (name_of(&object), F::keep(object))));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break page.metadata.resource_version,
            }
        };
        self.version = version;
        self.sink.replace(all);
        self.sink.heard();
        Ok(())
    }
}

fn name_of(object: &impl ResourceExt) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

fn silence(time: Duration) -> Interruption {
    Interruption::Failed(Failure::Away(format!("silence for {} s", time.as_secs())))
}

//! The Kubernetes store: pods and definitions from the agent's cache, from the runtime, or by GET; the network-status by a
//! metadata PATCH that carries the pod's uid; Events on the pod. Synchronous outside: the connection hides its runtime.

pub mod connection;
mod event;
mod refusal;
pub mod table;
pub mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use hyper::Request as HttpRequest;
use hyper::header::{ACCEPT, HeaderValue};
use k8s_openapi::api::core::v1::{Event as KubernetesEvent, Namespace, Pod as KubernetesPod};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::core::{ObjectMeta, PartialObjectMeta, Request, Status};
use kube::{Api, Resource, ResourceExt};
use musubi_crds::{AttachmentPolicy, NETWORK_STATUS_ANNOTATION, NetworkAttachmentDefinition, NetworkStatus, status};
use musubi_delegates::cni::{CniError, code};
use musubi_delegates::mutation;
use serde_json::{Value, json};

pub use self::connection::{Connection, Source};
use self::connection::{Failure, Patience};
use super::{Definition, Event, Pod, PodQuery, Store};
use crate::cancel::Cancel;
use crate::check::policy::{Labels, Policies};

/// How long the status of a pod that can do without, or an Event, may hold an operation up.
const OPTIONAL: Duration = Duration::from_secs(5);

/// What an agent remembers of the API. It answers only what it is sure of.
pub trait Cache: Send + Sync {
    /// The pod, if it is known with the uid that is asked for.
    fn pod(&self, asked: &PodQuery<'_>) -> Option<Pod>;
    /// The definition, if it is known.
    fn network(&self, namespace: &str, name: &str) -> Option<Definition>;
    /// The policies, if they are known.
    fn policies(&self) -> Option<Arc<Policies>>;
    /// Takes Events to be sent when there is time.
    fn send_later(&self, pod: &Pod, events: Vec<Event>);
}

/// The API of one cluster, for one operation.
pub struct KubernetesStore {
    connection: Arc<Connection>,
    cache: Option<Arc<dyn Cache>>,
    deadline: Instant,
    cancel: Cancel,
}

impl KubernetesStore {
    /// The store of an operation that ends at `deadline`. Nothing is asked before it is needed.
    #[must_use]
    pub fn new(connection: Arc<Connection>, cache: Option<Arc<dyn Cache>>, deadline: Instant, cancel: Cancel) -> Self {
        Self { connection, cache, deadline, cancel }
    }

    fn patience(&self) -> Patience {
        Patience { deadline: self.deadline, once: false, cancel: self.cancel.clone() }
    }

    /// For what the pod can do without.
    fn little_patience(&self) -> Patience {
        let deadline = self.deadline.min(Instant::now() + OPTIONAL);
        Patience { deadline, once: true, cancel: self.cancel.clone() }
    }

    fn get_pod(&self, namespace: &str, name: &str, patience: Patience) -> Result<Option<Pod>, CniError> {
        let (of, named) = (namespace.to_owned(), name.to_owned());
        let found = self.connection.call("get pod", patience, move |client| {
            let (pods, named) = (Api::<KubernetesPod>::namespaced(client, &of), named.clone());
            async move { pods.get_metadata_opt(&named).await }
        });
        let found = found.map_err(|failure| failure.to_cni(&format!("pod {namespace}/{name}")))?;
        Ok(found.map(|object| pod_of(object.metadata)))
    }

    /// The pod's uid in the API: a static pod is known there by its mirror's.
    fn uid_of(&self, pod: &Pod, patience: Patience) -> Result<String, CniError> {
        if !pod.uid.is_empty() {
            return Ok(pod.uid.clone());
        }
        match self.get_pod(&pod.namespace, &pod.name, patience)? {
            Some(found) => Ok(found.uid),
            None => Err(is_gone(pod)),
        }
    }
}

impl Store for KubernetesStore {
    fn pod(&self, asked: &PodQuery<'_>) -> Result<Option<Pod>, CniError> {
        if let Some(pod) = self.cache.as_ref().and_then(|cache| cache.pod(asked)) {
            return Ok(Some(pod));
        }
        if let Some(pod) = asked.as_the_runtime_knows_it() {
            return Ok(Some(pod));
        }
        self.get_pod(asked.namespace, asked.name, self.patience())
    }

    fn network(&self, namespace: &str, name: &str) -> Result<Option<Definition>, CniError> {
        if let Some(definition) = self.cache.as_ref().and_then(|cache| cache.network(namespace, name)) {
            return Ok(Some(definition));
        }
        let (of, named) = (namespace.to_owned(), name.to_owned());
        let found = self.connection.call("get network-attachment-definition", self.patience(), move |client| {
            let (definitions, named) = (Api::<NetworkAttachmentDefinition>::namespaced(client, &of), named.clone());
            async move { definitions.get_opt(&named).await }
        });
        // With a namespace or a kind that does not exist, the server says 404 too.
        let found = found.map_err(|failure| failure.to_cni(&format!("definition {namespace}/{name}")))?;
        Ok(found.as_ref().map(|object| definition_of(namespace, name, object)))
    }

    /// A cluster whose API does not know the kind has no policies.
    fn policies(&self) -> Result<Arc<Policies>, CniError> {
        if let Some(policies) = self.cache.as_ref().and_then(|cache| cache.policies()) {
            return Ok(policies);
        }
        let listed = self.connection.call("list attachmentpolicies", self.patience(), |client| async move {
            Api::<AttachmentPolicy>::all(client).list(&ListParams::default()).await
        });
        match listed {
            Ok(list) => Ok(Arc::new(policies_of(list.items))),
            Err(Failure::Refused(status)) if status.code == 404 => Ok(Arc::default()),
            Err(failure) => Err(failure.to_cni("attachmentpolicies")),
        }
    }

    fn labels(&self, namespace: &str) -> Result<Labels, CniError> {
        let named = namespace.to_owned();
        let found = self.connection.call("get namespace", self.patience(), move |client| {
            let (namespaces, named) = (Api::<Namespace>::all(client), named.clone());
            async move { namespaces.get_metadata(&named).await }
        });
        let found = found.map_err(|failure| failure.to_cni(&format!("labels of namespace {namespace}")))?;
        Ok(found.metadata.labels.unwrap_or_default())
    }

    fn write_status(&self, pod: &Pod, statuses: &[NetworkStatus]) -> Result<(), CniError> {
        let patience = if pod.selects_networks() { self.patience() } else { self.little_patience() };
        let uid = self.uid_of(pod, patience.clone())?;
        let annotations = json!({NETWORK_STATUS_ANNOTATION: status::to_annotation(statuses)});
        // The server refuses the patch for another uid: a pod created anew under this name keeps its own status.
        let patch = json!({"metadata": {"uid": uid, "annotations": annotations}});
        let request = status_patch(pod, patch).map_err(|e| connection::failure_of(e).to_cni("network-status"))?;
        mutation::before("status.write", format_args!("pod {}", pod.key()));
        let written = self.connection.call("patch pod", patience, move |client| {
            let request = request.clone();
            async move { client.request::<PartialObjectMeta<KubernetesPod>>(request).await }
        });
        match written {
            Ok(_) => Ok(()),
            Err(Failure::Refused(status)) if status.code == 404 => Err(is_gone(pod)),
            Err(Failure::Refused(status)) if is_about_uid(&status) => Err(CniError::new(
                code::TRY_AGAIN,
                format!("pod {} was created anew: its uid is not {uid} any more", pod.key()),
            )
            .with_details("the runtime tries again with the new pod")),
            Err(failure) => Err(failure.to_cni(&format!("network-status of pod {}", pod.key()))),
        }
    }

    /// The status goes with the pod; one of a sandbox that failed is replaced by the next.
    fn remove_status(&self, _: &str, _: &str, _: Option<&[NetworkStatus]>) -> Result<bool, CniError> {
        Ok(true)
    }

    fn tell(&self, pod: &Pod, events: Vec<Event>) {
        if let Some(cache) = &self.cache {
            return cache.send_later(pod, events);
        }
        let (connection, patience, pod) = (Arc::clone(&self.connection), self.little_patience(), pod.clone());
        self.connection.wait_for(async move {
            let sending = events.iter().map(|event| send_event(&connection, &patience, &pod, event));
            if let Err(failure) = try_join_all(sending).await {
                tracing::debug!("events of pod {}: {failure}", pod.key());
            }
        });
    }

    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Sends one Event.
///
/// # Errors
/// It was not taken.
pub async fn send_event(connection: &Connection, patience: &Patience, pod: &Pod, event: &Event) -> Result<(), Failure> {
    let object = event::object(pod, event);
    let sent = connection.request("create event", patience, |client| {
        let object = &object;
        async move {
            Api::<KubernetesEvent>::namespaced(client, &pod.namespace).create(&PostParams::default(), object).await
        }
    });
    sent.await.map(drop)
}

/// A pod by its metadata.
#[must_use]
pub fn pod_of(metadata: ObjectMeta) -> Pod {
    Pod {
        namespace: metadata.namespace.unwrap_or_default(),
        name: metadata.name.unwrap_or_default(),
        uid: metadata.uid.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        host_network: false,
    }
}

/// A definition as the plan needs it.
#[must_use]
pub fn definition_of(namespace: &str, name: &str, object: &NetworkAttachmentDefinition) -> Definition {
    Definition {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        config: object.config().map(str::to_owned),
        resource_name: object.resource_name().map(str::to_owned),
        is_forced: object.is_forced(),
    }
}

/// Policies by name.
#[must_use]
pub fn policies_of(objects: impl IntoIterator<Item = AttachmentPolicy>) -> Policies {
    let mut policies = Policies::default();
    for object in objects {
        policies.insert(object.name_any(), object.spec);
    }
    policies
}

fn is_gone(pod: &Pod) -> CniError {
    CniError::new(code::TRY_AGAIN, format!("pod {} is not in the API any more", pod.key()))
        .with_details("it was deleted while it started; its sandbox is removed next")
}

/// Through the status: who may patch the pod itself may change what it runs, and the agent is not given that. The answer is
/// the metadata alone.
fn status_patch(pod: &Pod, patch: Value) -> kube::Result<HttpRequest<Vec<u8>>> {
    const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let pods = Request::new(KubernetesPod::url_path(&(), Some(&pod.namespace)));
    let mut request = pods
        .patch_subresource("status", &pod.name, &PatchParams::default(), &Patch::Merge(patch))
        .map_err(kube::Error::BuildRequest)?;
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static(METADATA));
    Ok(request)
}

/// A patch with another uid is 422, and its cause names the field (recorded of Kubernetes 1.36).
fn is_about_uid(status: &Status) -> bool {
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    status.code == 422 && causes.iter().any(|cause| cause.field == "metadata.uid")
}

//! What is decided about a review: which check it goes to, with what is known of the cluster. The checks themselves are
//! `musubi`'s; how a review comes here, and the answer back, is the server's business.

use musubi::check::{self, Finding};
use musubi::store::manifest::Object;
use musubi::store::{Definition, KnownPod};
use musubi_crds::{DEFAULT_NETWORK_ANNOTATION, NETWORKS_ANNOTATION};
use musubi_delegates::cni::CniError;
use serde_json::Value;

use crate::certificates::{Shown, Trouble};
use crate::metrics::Metrics;
use crate::mutate::{self, Change, Rules, gets_no_networks, is_mirror};
use crate::review::{Operation, Request, Verdict};
use crate::world::{Asked, World};

/// The annotations by which pods name networks.
const INPUT_ANNOTATIONS: [&str; 2] = [NETWORKS_ANNOTATION, DEFAULT_NETWORK_ANNOTATION];

/// Everything a decision needs.
pub struct Gate {
    /// What is known of the cluster.
    pub world: World,
    /// How pods are changed.
    pub rules: Rules,
    /// What is counted.
    pub metrics: Metrics,
    /// The certificate that is shown.
    pub shown: Shown,
    /// What is wrong with it.
    pub trouble: Trouble,
}

impl Gate {
    /// Everything that is not as it should be, for a person.
    #[must_use]
    pub fn why_not_ready(&self) -> Vec<String> {
        let unheard = self.unheard().map(|what| format!("{what}: the API server has not answered yet"));
        let trouble = self.trouble.get().map(|problem| format!("certificates: {problem}"));
        let uncertified = self.shown.expires().is_none().then(|| "there is no certificate yet".to_owned());
        unheard.chain(trouble).chain(uncertified).collect()
    }

    /// Whether the first lists are all there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.unheard().next().is_none()
    }

    fn unheard(&self) -> impl Iterator<Item = &'static str> {
        self.world.freshness().into_iter().filter(|(_, freshness)| freshness.age.is_none()).map(|(what, _)| what)
    }

    /// Brings the gauges up to date.
    pub fn measure(&self) {
        for (what, freshness) in self.world.freshness() {
            self.metrics.cached(what, freshness);
        }
        self.metrics.certificate_expires(self.shown.expires());
    }

    /// Judges a write.
    pub async fn validate(&self, request: &Request) -> Verdict {
        let judged = if request.is_about_definitions() {
            self.definition(request).await
        } else if request.is_about_pods() && names_other_networks(request) {
            self.pod(request).await
        } else {
            return Verdict::default();
        };
        judged.map_or_else(Verdict::refused, Verdict::of)
    }

    /// Changes a new pod.
    pub async fn mutate(&self, request: &Request) -> Verdict {
        if !request.is_about_pods() || request.sub_resource.is_some() || request.operation != Operation::Create {
            return Verdict::default();
        }
        let changed = async {
            let asked = self.ask_for_networks(request).await?;
            let demand = |namespace: &str, name: &str| self.world.demand(&asked, namespace, name);
            mutate::change(&request.object, request.namespace(), demand, &self.rules).map_err(|e| e.to_string())
        };
        match changed.await {
            Ok(Change { operations, warnings }) => Verdict { refusal: None, warnings, patch: operations },
            Err(problem) => Verdict::refused(problem),
        }
    }

    async fn pod(&self, request: &Request) -> Result<Vec<Finding>, String> {
        if is_mirror(&request.object) {
            return Ok(Vec::new());
        }
        let asked = self.ask_for_networks(request).await?;
        let pod = pod_of(request)?;
        Ok(self.world.judge(&asked, |world| check::pod::admitted(world, &pod)))
    }

    async fn definition(&self, request: &Request) -> Result<Vec<Finding>, String> {
        let asked = self.ask(request.namespace(), &[]).await?;
        let read = |object: &Value| definition_of(request, object);
        match request.operation {
            Operation::Create => {
                let new = read(&request.object)?;
                Ok(self.world.judge(&asked, |world| check::definition::created(world, &new)))
            }
            Operation::Update => {
                let (old, new) = (read(&request.old_object)?, read(&request.object)?);
                Ok(self.world.judge(&asked, |world| check::definition::updated(world, &old, &new)))
            }
            Operation::Delete => {
                let old = read(&request.old_object)?;
                Ok(self.world.judge(&asked, |world| check::definition::deleted(world, &old)))
            }
            Operation::Connect => Ok(Vec::new()),
        }
    }

    /// Asks for the definitions that a pod names and that are not known.
    async fn ask_for_networks(&self, request: &Request) -> Result<Asked, String> {
        let (object, namespace) = (&request.object, request.namespace());
        let names = if gets_no_networks(object) {
            Vec::new()
        } else {
            mutate::named(object, namespace, &self.rules.default_namespace).map_err(|error| error.to_string())?
        };
        self.ask(namespace, &names).await
    }

    async fn ask(&self, namespace: &str, definitions: &[(String, String)]) -> Result<Asked, String> {
        // Before all lists are there a policy would be passed over.
        if let Some(what) = self.unheard().next() {
            return Err(format!("musubi-webhook has just started and has no {what} yet; try again in a moment"));
        }
        let asked = self.world.ask(namespace, definitions).await;
        asked.map_err(|failure| CniError::to_string(&failure.to_cni("networks that are not known yet")))
    }
}

/// Whether the networks that a pod names are others than before.
fn names_other_networks(request: &Request) -> bool {
    match request.operation {
        Operation::Create => true,
        Operation::Update => INPUT_ANNOTATIONS.iter().any(|annotation| {
            let value = |pod: &Value| pod["metadata"]["annotations"][annotation].clone();
            value(&request.object) != value(&request.old_object)
        }),
        Operation::Delete | Operation::Connect => false,
    }
}

fn pod_of(request: &Request) -> Result<KnownPod, String> {
    match read(request, &request.object, "Pod")? {
        Object::Pod(pod) => Ok(pod),
        _ => Err("the review is about a pod and holds none".to_owned()),
    }
}

fn definition_of(request: &Request, object: &Value) -> Result<Definition, String> {
    match read(request, object, "NetworkAttachmentDefinition")? {
        Object::Definition(definition) => Ok(definition),
        _ => Err("the review is about a definition and holds none".to_owned()),
    }
}

/// Reads an object; what it leaves out of its own identity the request has.
fn read(request: &Request, object: &Value, kind: &str) -> Result<Object, String> {
    let mut object = object.clone();
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return Err("the object has no metadata".to_owned());
    };
    metadata.insert("namespace".to_owned(), request.namespace().into());
    if let Some(name) = request.name.as_deref().filter(|name| !name.is_empty()) {
        metadata.insert("name".to_owned(), name.into());
    }
    object["kind"] = kind.into();
    Object::read(object)?.ok_or_else(|| "the object is of no kind that is known".to_owned())
}

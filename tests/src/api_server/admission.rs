//! Admission: the webhooks that are asked before an object is written, the mutating ones first. `matchConditions` are not
//! evaluated, and each call has a connection of its own; everything else is as a real server does it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::access::User;
use super::object;
use super::patch;
use super::request::{Request, Target};
use super::shared::Shared;
use super::status::Status;
use super::webhook::Endpoint;

/// What is about to be done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It is new.
    Create,
    /// It gets another state.
    Update,
    /// It goes.
    Delete,
}

impl Operation {
    fn word(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }

    fn options(self) -> &'static str {
        match self {
            Self::Create => "CreateOptions",
            Self::Update => "UpdateOptions",
            Self::Delete => "DeleteOptions",
        }
    }
}

/// A write that is reviewed.
pub struct Review<'a> {
    /// The server.
    pub shared: &'a Shared,
    /// The object.
    pub target: &'a Target,
    /// The request.
    pub request: &'a Request,
    /// Who asks for it.
    pub user: &'a User,
    /// What is asked.
    pub operation: Operation,
    /// Whether it will have no effect.
    pub dry_run: bool,
}

/// Asks the webhooks; the object as they leave it, and their warnings.
pub async fn review(
    review: &Review<'_>,
    mut new: Option<Value>,
    old: Option<&Value>,
) -> Result<(Option<Value>, Vec<String>), Status> {
    let mut warnings = Vec::new();
    if review.target.resource.group == "admissionregistration.k8s.io" {
        return Ok((new, warnings));
    }
    for webhook in review.webhooks("mutatingwebhookconfigurations", new.as_ref(), old) {
        let Some(answer) = review.ask(&webhook, new.as_ref(), old, &mut warnings).await? else { continue };
        if let Some(text) = answer["patch"].as_str() {
            let changed = patched(new.as_ref(), text).map_err(|why| failed(&webhook, &why))?;
            object::check(&review.target.resource, old, &changed)?;
            new = Some(changed);
        }
    }
    for webhook in review.webhooks("validatingwebhookconfigurations", new.as_ref(), old) {
        review.ask(&webhook, new.as_ref(), old, &mut warnings).await?;
    }
    Ok((new, warnings))
}

impl Review<'_> {
    /// The webhooks that want to see this write, in the order of their configurations' names.
    fn webhooks(&self, plural: &str, new: Option<&Value>, old: Option<&Value>) -> Vec<Value> {
        let store = self.shared.store();
        let Some((index, _)) = store.resource("admissionregistration.k8s.io", "v1", plural) else { return Vec::new() };
        let all =
            store.objects(index).values().flat_map(|object| object.value["webhooks"].as_array().into_iter().flatten());
        let namespace_labels = || {
            let (index, _) = store.resource("", "v1", "namespaces")?;
            Some(store.get(index, self.target.namespace.as_deref()?)?.value["metadata"]["labels"].clone())
        };
        let labels = |object: Option<&Value>| object.map(|object| object["metadata"]["labels"].clone());
        let wants = |webhook: &&Value| {
            let selects =
                |key: &str, labels: Option<Value>| labels.is_some_and(|labels| selected(&webhook[key], &labels));
            let by_namespace = if self.target.resource.kind == "Namespace" {
                selects("namespaceSelector", labels(new.or(old)))
            } else {
                namespace_labels().is_none_or(|labels| selected(&webhook["namespaceSelector"], &labels))
            };
            let by_object = selects("objectSelector", labels(new)) || selects("objectSelector", labels(old));
            let rules = webhook["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
            by_namespace && by_object && rules.iter().any(|rule| self.is_under(rule))
        };
        all.filter(wants).cloned().collect()
    }

    fn is_under(&self, rule: &Value) -> bool {
        let has = |key: &str, wanted: &str| {
            rule[key].as_array().is_some_and(|values| values.iter().any(|value| value == wanted || value == "*"))
        };
        let resource = &self.target.resource;
        let plural = resource.plural.as_str();
        let named = match &self.target.subresource {
            None => has("resources", plural) || has("resources", "*/*"),
            Some(sub) => {
                let forms = [format!("{plural}/{sub}"), format!("{plural}/*"), format!("*/{sub}"), "*/*".to_owned()];
                let listed = rule["resources"].as_array().into_iter().flatten().filter_map(Value::as_str);
                listed.into_iter().any(|listed| forms.iter().any(|form| form == listed))
            }
        };
        let scoped = match rule["scope"].as_str() {
            Some("Namespaced") => resource.namespaced,
            Some("Cluster") => !resource.namespaced,
            _ => true,
        };
        named
            && scoped
            && has("operations", self.operation.word())
            && has("apiGroups", &resource.group)
            && has("apiVersions", &resource.version)
    }

    /// Asks one webhook; its response, or nothing when it cannot be asked and need not be.
    async fn ask(
        &self,
        webhook: &Value,
        new: Option<&Value>,
        old: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Value>, Status> {
        let uid = object::uid();
        let answer = match Endpoint::of(self.shared, webhook) {
            Err(why) => Err(why),
            Ok(endpoint) => {
                let answer = endpoint.call(&self.body(&uid, new, old)).await;
                answer.map_err(|why| format!("failed to call webhook: Post {:?}: {why}", endpoint.url()))
            }
        };
        let response = answer.and_then(|review| understood(&review, &uid));
        let response = match response {
            Ok(response) => response,
            Err(_) if webhook["failurePolicy"] == "Ignore" => return Ok(None),
            Err(why) => return Err(failed(webhook, &why)),
        };
        let told = response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
        warnings.extend(told.map(str::to_owned));
        if response["allowed"] == true { Ok(Some(response)) } else { Err(denied(webhook, &response["status"])) }
    }

    fn body(&self, uid: &str, new: Option<&Value>, old: Option<&Value>) -> Value {
        let resource = &self.target.resource;
        let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
        let plural = json!({"group": resource.group, "version": resource.version, "resource": resource.plural});
        let name = new.or(old).map_or(Value::Null, |object| object["metadata"]["name"].clone());
        let mut request = json!({"uid": uid, "kind": kind, "resource": plural});
        if let Some(subresource) = &self.target.subresource {
            request["subResource"] = subresource.clone().into();
            request["requestSubResource"] = subresource.clone().into();
        }
        request["requestKind"] = kind;
        request["requestResource"] = plural;
        request["name"] = name;
        if let Some(namespace) = &self.target.namespace {
            request["namespace"] = namespace.clone().into();
        }
        request["operation"] = self.operation.word().into();
        request["userInfo"] = self.user.info();
        request["object"] = new.cloned().unwrap_or_default();
        request["oldObject"] = old.cloned().unwrap_or_default();
        request["dryRun"] = self.dry_run.into();
        request["options"] = self.options();
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
    }

    fn options(&self) -> Value {
        let mut options = json!({"kind": self.operation.options(), "apiVersion": "meta.k8s.io/v1"});
        if self.operation == Operation::Delete
            && let Ok(sent) = serde_json::from_slice::<Value>(&self.request.body)
        {
            patch::merge(&mut options, &sent);
        }
        if self.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        for key in ["fieldManager", "fieldValidation", "propagationPolicy"] {
            let value = self.request.query.get(key);
            if !value.is_empty() {
                options[key] = value.into();
            }
        }
        options
    }
}

/// A webhook's response, if it is one to this request.
fn understood(review: &Value, uid: &str) -> Result<Value, String> {
    if review["kind"] != "AdmissionReview" || review["apiVersion"] != "admission.k8s.io/v1" {
        return Err("expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview".to_owned());
    }
    let response = &review["response"];
    if response.is_null() {
        return Err("webhook response was absent".to_owned());
    }
    if response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {}", response["uid"]));
    }
    if response["patch"].is_string() != (response["patchType"] == "JSONPatch") {
        return Err("a patch and its type JSONPatch go together".to_owned());
    }
    Ok(response.clone())
}

fn patched(object: Option<&Value>, text: &str) -> Result<Value, String> {
    let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
    let operations: Value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    let object = object.ok_or("there is no object to patch")?;
    patch::json(object, &operations).map_err(|failure| format!("the patch does not apply: {failure:?}"))
}

fn failed(webhook: &Value, why: &str) -> Status {
    Status::internal(format!("Internal error occurred: failed calling webhook {}: {why}", webhook["name"]))
        .with_details(json!({"causes": [{"message": format!("failed calling webhook {}: {why}", webhook["name"])}]}))
}

fn denied(webhook: &Value, status: &Value) -> Status {
    let by = format!("admission webhook {} denied the request", webhook["name"]);
    let text = |key: &str| status[key].as_str().filter(|text| !text.is_empty());
    let message = match text("message").or_else(|| text("reason")) {
        Some(why) => format!("{by}: {why}"),
        None => format!("{by} without explanation"),
    };
    let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok()).filter(|code| *code >= 400);
    let mut refusal = Status::new(code.unwrap_or(400), text("reason").unwrap_or_default(), message);
    refusal.details = status.get("details").cloned().map(Box::new);
    refusal
}

/// Whether a label selector of an object selects these labels; one that is not there selects all.
fn selected(selector: &Value, labels: &Value) -> bool {
    let equal =
        selector["matchLabels"].as_object().into_iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let holds = |expression: &Value| {
        let label = expression["key"].as_str().and_then(|key| labels.get(key));
        let listed = |label: &Value| expression["values"].as_array().is_some_and(|values| values.contains(label));
        match expression["operator"].as_str() {
            Some("In") => label.is_some_and(listed),
            Some("NotIn") => !label.is_some_and(listed),
            Some("Exists") => label.is_some(),
            _ => label.is_none(),
        }
    };
    equal && selector["matchExpressions"].as_array().into_iter().flatten().all(holds)
}

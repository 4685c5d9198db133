//! What a request does: who may, which verb it is, and each verb's steps. Reading is in `list.rs`, what becomes of an object
//! in `object.rs`.

use std::sync::Arc;

use hyper::Method;
use serde_json::{Value, json};

use super::access::{self, User};
use super::admission::{self, Operation};
use super::answer::{Answer, json_error};
use super::list::{self, Form};
use super::managed_fields::{self, Manager};
use super::object::{self, Prepared, Write};
use super::patch::{self, Failure};
use super::request::{Request, Target};
use super::shared::Shared;
use super::status::{Cause, Status};
use super::store::{self, Object, Store};

/// The forms of a patch.
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// What bodies may be written in.
const BODIES: [&str; 2] = ["application/json", "application/yaml"];

/// How often an update is tried when the object changes under it.
const ATTEMPTS: usize = 5;

/// Answers a request.
pub async fn answer(shared: &Shared, request: &Request) -> Answer {
    match handle(shared, request).await {
        Ok(answer) => answer,
        Err(status) => Answer::status(&status),
    }
}

async fn handle(shared: &Shared, request: &Request) -> Result<Answer, Status> {
    let user = shared.tokens().user(request)?;
    match request.path.as_str() {
        "/healthz" | "/livez" | "/readyz" => return Ok(Answer::text(200, "ok")),
        "/version" => return Ok(Answer::object(200, &version())),
        _ => {}
    }
    let target = Target::parse(&shared.store(), &request.path);
    access::authorize(&user, target.as_ref(), request)?;
    let Some(target) = target else { return Ok(Answer::page_not_found()) };
    if (target.resource.plural.as_str(), target.subresource.as_deref()) == ("serviceaccounts", Some("token")) {
        return Ok(new_token(shared));
    }
    if let Some(subresource) = &target.subresource
        && !(subresource == "status" && target.resource.status)
    {
        return if target.resource.custom {
            Err(Status::not_found(&target.resource, target.name()))
        } else {
            Ok(Answer::page_not_found())
        };
    }
    let call = Call { shared, target: &target, request, user: &user };
    match (target.verb(request), &request.method) {
        ("watch", _) => list::watch(shared, &target, request).await,
        ("list", _) => list::list(shared, &target, request).await,
        ("get", _) => call.get().await,
        ("create", _) if target.name.is_none() && target.namespace.is_some() == target.resource.namespaced => {
            call.create().await
        }
        ("update", _) if target.name.is_some() => call.replace().await,
        ("patch", _) if target.name.is_some() => call.patch().await,
        ("delete", _) if target.subresource.is_none() => call.delete().await,
        ("deletecollection", &Method::DELETE) => call.delete_collection().await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// A TokenRequest's answer. As no bindings are looked at, whoever has the token may do everything.
fn new_token(shared: &Shared) -> Answer {
    let token = shared.issue_token(None);
    Answer::object(
        201,
        &json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "status": {"token": token}}),
    )
}

/// One call of one object.
struct Call<'a> {
    shared: &'a Shared,
    target: &'a Target,
    request: &'a Request,
    user: &'a User,
}

impl Call<'_> {
    async fn get(&self) -> Result<Answer, Status> {
        let form = Form::accepted(self.request, false)?;
        list::reach(self.shared, list::version(self.request)?).await?;
        let object = self.stored()?;
        Ok(Answer::json(200, form.bytes(&object)))
    }

    async fn create(&self) -> Result<Answer, Status> {
        let form = Form::accepted(self.request, false)?;
        let value = self.body()?;
        self.create_value(value, self.write(None), form).await
    }

    async fn create_value(&self, value: Value, write: Write, form: Form) -> Result<Answer, Status> {
        let resource = &self.target.resource;
        let namespace = self.target.namespace.as_deref();
        self.check_namespace(&value)?;
        let Prepared { value, warnings } = object::create(resource, namespace, value, &write)?;
        let (value, mut told) = admission::review(&self.review(Operation::Create), Some(value), None).await?;
        told.extend(warnings);
        let value = value.unwrap_or_default();
        let name = value["metadata"]["name"].as_str().unwrap_or_default();
        let key = store::key(namespace, name);
        let stored = self.shared.write(|store| match store.get(self.target.index, &key) {
            Some(_) => Err(Status::already_exists(resource, name)),
            None if self.is_dry_run() => Ok(Object::unstamped(value.clone(), 0)),
            None => {
                let stored = store.put(self.target.index, value.clone());
                if resource.plural == "namespaces" {
                    give_account(store, name);
                }
                Ok(stored)
            }
        })?;
        Ok(Answer::json(201, form.bytes(&stored)).with_warnings(&told))
    }

    async fn replace(&self) -> Result<Answer, Status> {
        let value = self.body()?;
        let resource = &self.target.resource;
        let name = value["metadata"]["name"].as_str().unwrap_or_default();
        if name != self.target.name() {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                self.target.name()
            )));
        }
        self.check_namespace(&value)?;
        let uid = value["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        self.change(&self.write(None), |old| {
            let found = old["metadata"]["uid"].as_str().unwrap_or_default();
            if !uid.is_empty() && uid != found {
                let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {found}");
                return Err(Status::conflict(resource, self.target.name(), &why));
            }
            Ok(value.clone())
        })
        .await
    }

    async fn patch(&self) -> Result<Answer, Status> {
        let kind = self.request.content_type();
        let resource = &self.target.resource;
        if resource.custom && (!PATCHES.contains(&kind) || kind == PATCHES[2]) {
            return Err(Status::unsupported_media(&[PATCHES[0], PATCHES[1], PATCHES[3]]));
        }
        if !PATCHES.contains(&kind) {
            return Err(Status::unsupported_by_route());
        }
        let body = &self.request.body;
        let write = self.write(Some(String::from_utf8_lossy(body).into_owned()));
        if kind == PATCHES[3] {
            return self.apply(write).await;
        }
        if self.request.query.is("force") {
            let cause = Cause::forbidden("force", "may not be specified for non-apply patch");
            return Err(Status::invalid_options("PatchOptions", &cause));
        }
        // A patch that cannot be read is refused only once the object is found.
        let read = serde_json::from_slice::<Value>(body);
        let malformed = |why: &str| Status::bad_request(format!("error decoding patch: {why}"));
        self.change(&write, |old| {
            let patch = read.as_ref().map_err(|error| malformed(&json_error(body, error)))?;
            if kind == PATCHES[0] {
                return patch::json(old, patch).map_err(|failure| match failure {
                    Failure::Malformed => malformed("this is no list of operations"),
                    Failure::Refused => Status::patch_rejected(),
                });
            }
            if !patch.is_object() {
                return Err(malformed("json: cannot unmarshal into Go value of type map[string]interface {}"));
            }
            let mut new = old.clone();
            match kind == PATCHES[1] {
                true => patch::merge(&mut new, patch),
                false => patch::strategic(&mut new, patch, ""),
            }
            Ok(new)
        })
        .await
    }

    async fn apply(&self, mut write: Write) -> Result<Answer, Status> {
        if self.request.query.get("fieldManager").is_empty() {
            let cause = Cause::required("fieldManager", "is required for apply patch");
            return Err(Status::invalid_options("PatchOptions", &cause));
        }
        write.manager.operation = "Apply";
        let resource = &self.target.resource;
        let text = String::from_utf8_lossy(&self.request.body);
        let patch: Value = serde_json::from_str(&text)
            .or_else(|_| serde_saphyr::from_str(&text))
            .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))?;
        if patch["kind"] != resource.kind.as_str() || patch["apiVersion"] != resource.api_version() {
            return Err(Status::bad_request("invalid object type: apiVersion and kind have to be those of the path"));
        }
        if !patch["metadata"]["managedFields"].as_array().is_none_or(Vec::is_empty) {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        let exists = self.shared.store().get(self.target.index, &self.target.key()).is_some();
        if exists {
            let force = self.request.query.is("force");
            let manager = write.manager.clone();
            return self.change(&write, |old| managed_fields::apply(resource, old, &patch, &manager, force)).await;
        }
        if let Some(uid) = patch["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty()) {
            let why =
                format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
            return Err(Status::conflict(resource, self.target.name(), &why));
        }
        let mut value = patch;
        value["metadata"]["name"] = self.target.name().into();
        self.create_value(value, write, Form::accepted(self.request, false)?).await
    }

    /// Reads, changes and stores an object; again when it has been changed meanwhile.
    async fn change(&self, write: &Write, make: impl Fn(&Value) -> Result<Value, Status>) -> Result<Answer, Status> {
        let form = Form::accepted(self.request, false)?;
        let resource = &self.target.resource;
        for _ in 0..ATTEMPTS {
            let old = self.stored()?;
            let made = make(&old.value)?;
            let subresource = self.target.subresource.as_deref();
            let Prepared { value, warnings } = object::update(resource, subresource, &old.value, made, write)?;
            let review = self.review(Operation::Update);
            let (value, mut told) = admission::review(&review, Some(value), Some(&old.value)).await?;
            told.extend(warnings);
            if let Some(stored) = self.store_changed(&old, value.unwrap_or_default()) {
                return Ok(Answer::json(200, form.bytes(&stored)).with_warnings(&told));
            }
        }
        Err(Status::modified(resource, self.target.name()))
    }

    /// Stores a new state in the place of the old one; `None` when that is not there any more.
    fn store_changed(&self, old: &Arc<Object>, new: Value) -> Option<Arc<Object>> {
        let index = self.target.index;
        self.shared.write(|store| {
            let present = store.get(index, &old.key())?;
            if present.version != old.version {
                return None;
            }
            if old.value == new {
                return Some(Arc::clone(present));
            }
            if self.is_dry_run() {
                return Some(Object::unstamped(new, old.version));
            }
            let is_over = new["metadata"]["deletionTimestamp"].is_string() && !has_finalizers(&new);
            let stored = store.put(index, new);
            if is_over && has_finalizers(&old.value) {
                store.remove(index, &old.key());
            }
            Some(stored)
        })
    }

    async fn delete(&self) -> Result<Answer, Status> {
        let form = Form::accepted(self.request, false)?;
        let options = self.delete_options()?;
        let resource = &self.target.resource;
        let old = self.stored()?;
        let metadata = &old.value["metadata"];
        for (key, told, in_object) in [("uid", "UID", "uid"), ("resourceVersion", "ResourceVersion", "resourceVersion")]
        {
            let wanted = &options["preconditions"][key];
            if wanted.is_string() && wanted != &metadata[in_object] {
                let [wanted, found] = [wanted, &metadata[in_object]].map(|v| v.as_str().unwrap_or_default());
                let why =
                    format!("Precondition failed: {told} in precondition: {wanted}, {told} in object meta: {found}");
                return Err(Status::conflict(resource, self.target.name(), &why));
            }
        }
        admission::review(&self.review(Operation::Delete), None, Some(&old.value)).await?;
        let last = if self.is_dry_run() { Arc::clone(&old) } else { self.remove(&old)? };
        if resource.kind == "Pod" || last.value["metadata"]["deletionTimestamp"].is_string() {
            return Ok(Answer::json(200, form.bytes(&last)));
        }
        let mut details = json!({"name": self.target.name(), "kind": resource.plural, "uid": metadata["uid"]});
        if !resource.group.is_empty() {
            details["group"] = resource.group.clone().into();
        }
        let success =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
        Ok(Answer::object(200, &success))
    }

    /// Removes an object, or marks it while finalizers hold it; with a namespace goes all that is in it.
    fn remove(&self, old: &Object) -> Result<Arc<Object>, Status> {
        let (index, key) = (self.target.index, old.key());
        self.shared.write(|store| {
            if self.target.resource.kind == "Namespace" {
                store.clear_namespace(&key);
            }
            if has_finalizers(&old.value) {
                let mut marked = old.value.clone();
                if marked["metadata"]["deletionTimestamp"].is_null() {
                    marked["metadata"]["deletionTimestamp"] = object::now().into();
                }
                return Ok(store.put(index, marked));
            }
            store.remove(index, &key).ok_or_else(|| Status::not_found(&self.target.resource, self.target.name()))
        })
    }

    async fn delete_collection(&self) -> Result<Answer, Status> {
        let selection = list::selection(self.target, self.request)?;
        let index = self.target.index;
        let (removed, version) = self.shared.write(|store| {
            let selected = store.objects(index).iter().filter(|(_, object)| selection.has(&object.value));
            let keys: Vec<String> = selected.map(|(key, _)| key.clone()).collect();
            let removed = keys.iter().filter_map(|key| store.remove(index, key)).map(|object| object.value.clone());
            (removed.collect::<Vec<Value>>(), store.version())
        });
        let resource = &self.target.resource;
        Ok(Answer::object(
            200,
            &json!({"kind": format!("{}List", resource.kind), "apiVersion": resource.api_version(),
                "metadata": {"resourceVersion": version.to_string()}, "items": removed}),
        ))
    }

    fn stored(&self) -> Result<Arc<Object>, Status> {
        let store = self.shared.store();
        let object = store.get(self.target.index, &self.target.key());
        object.cloned().ok_or_else(|| Status::not_found(&self.target.resource, self.target.name()))
    }

    fn body(&self) -> Result<Value, Status> {
        let resource = &self.target.resource;
        let body = &self.request.body;
        let value: Value = match self.request.content_type() {
            "" | "application/json" => serde_json::from_slice(body).map_err(|error| {
                Status::bad_request(format!(
                    "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {}",
                    resource.kind,
                    json_error(body, &error)
                ))
            })?,
            "application/yaml" => serde_saphyr::from_slice(body).map_err(|e| Status::bad_request(e.to_string()))?,
            _ => return Err(Status::unsupported_media(&BODIES)),
        };
        for (key, wanted) in [("apiVersion", resource.api_version()), ("kind", resource.kind.clone())] {
            let found = value[key].as_str().unwrap_or_default();
            if found.is_empty() && resource.custom {
                return Err(Status::bad_request(format!("Object '{key}' is missing in the request's body")));
            }
            if !found.is_empty() && found != wanted {
                return Err(Status::bad_request(format!(
                    "the API version in the data ({}) does not match the expected API version ({})",
                    value["apiVersion"].as_str().unwrap_or_default(),
                    resource.api_version()
                )));
            }
        }
        Ok(value)
    }

    /// The namespace has to be that of the path, and to be there.
    fn check_namespace(&self, value: &Value) -> Result<(), Status> {
        let Some(namespace) = &self.target.namespace else { return Ok(()) };
        let named = value["metadata"]["namespace"].as_str().unwrap_or_default();
        if !named.is_empty() && named != namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        let store = self.shared.store();
        match store.resource("", "v1", "namespaces") {
            Some((index, namespaces)) if store.get(index, namespace).is_none() => {
                Err(Status::not_found(&namespaces, namespace))
            }
            _ => Ok(()),
        }
    }

    fn delete_options(&self) -> Result<Value, Status> {
        match self.request.body.as_ref() {
            b"" => Ok(json!({})),
            body => serde_json::from_slice(body).map_err(|error| Status::bad_request(json_error(body, &error))),
        }
    }

    fn write(&self, patch: Option<String>) -> Write {
        let manager =
            Manager { name: self.request.manager(), operation: "Update", subresource: self.target.subresource.clone() };
        Write { manager, patch, field_validation: self.request.query.get("fieldValidation").to_owned() }
    }

    fn review(&self, operation: Operation) -> admission::Review<'_> {
        admission::Review {
            shared: self.shared,
            target: self.target,
            request: self.request,
            user: self.user,
            operation,
            dry_run: self.is_dry_run(),
        }
    }

    fn is_dry_run(&self) -> bool {
        self.request.query.get("dryRun") == "All"
    }
}

/// What the server says of itself.
fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "clean", "buildDate": "",
        "goVersion": "", "compiler": "", "platform": "linux/amd64",
    })
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
}

/// What a controller of a real cluster does a moment later: each namespace has its default account.
fn give_account(store: &mut Store, namespace: &str) {
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}});
    if let Some((index, resource)) = store.find(|resource| resource.plural == "serviceaccounts") {
        store.put(index, object::direct(&resource, account));
    }
}

//! What the server makes of an object before it stores it: names, uids and times, defaults, what each kind of write may
//! touch, and the order of keys. Where the object comes from is left to `verbs.rs`, what is wrong with it to `validate.rs`.

use std::hash::{BuildHasher, Hasher, RandomState};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::managed_fields::{self, Manager};
use super::patch::as_map;
use super::resources::Resource;
use super::status::{Cause, Status};
use super::validate;

/// How a write came.
#[derive(Debug, Clone)]
pub struct Write {
    /// Who writes.
    pub manager: Manager,
    /// Whether by a patch: then unknown fields and other uids are refused in other words.
    pub patch: Option<String>,
    /// `Strict`, `Warn` or `Ignore`.
    pub field_validation: String,
}

/// An object ready to be stored, with what to warn of.
#[derive(Debug)]
pub struct Prepared {
    /// The object, without resourceVersion.
    pub value: Value,
    /// Sentences for `Warning` headers.
    pub warnings: Vec<String>,
}

/// Makes a new object complete.
pub fn create(
    resource: &Resource,
    namespace: Option<&str>,
    mut value: Value,
    write: &Write,
) -> Result<Prepared, Status> {
    let readable = validate::types(resource, &value);
    readable.map_err(|why| unreadable(resource, &why))?;
    if value["metadata"]["resourceVersion"].as_str().is_some_and(|version| !version.is_empty()) {
        return Err(Status::internal("resourceVersion should not be set on objects to be created"));
    }
    if resource.status {
        as_map(&mut value).shift_remove("status");
    }
    let warnings = prune(resource, &mut value, write)?;
    stamp(resource, namespace, &mut value);
    default(resource, &mut value);
    let mut causes = repeated(&validate::metadata(&value), if resource.kind == "Pod" { 2 } else { 1 });
    causes.extend(validate::new_object(resource, &value));
    causes.extend(schema(resource, &value));
    refuse(resource, &value, &causes)?;
    let fields = managed_fields::of_new(resource, &value, &write.manager);
    value["metadata"]["managedFields"] = fields;
    add_by_admission(resource, &mut value);
    arrange(resource, &mut value);
    Ok(Prepared { value, warnings })
}

/// Makes a new state of an object complete; the old value itself when nothing has changed.
pub fn update(
    resource: &Resource,
    subresource: Option<&str>,
    old: &Value,
    mut new: Value,
    write: &Write,
) -> Result<Prepared, Status> {
    let name = old["metadata"]["name"].as_str().unwrap_or_default();
    validate::types(resource, &new).map_err(|why| match &write.patch {
        None => unreadable(resource, &why),
        Some(patch) => {
            let cause = Cause::invalid("patch", &Value::from(patch.as_str()), &why);
            Status::invalid(resource, name, &[cause])
        }
    })?;
    let asked = new["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if !asked.is_empty() && asked != old["metadata"]["resourceVersion"] {
        return Err(Status::modified(resource, name));
    }
    if asked.is_empty() && resource.custom && write.patch.is_none() {
        let cause = Cause::invalid("metadata.resourceVersion", &json!(0), "must be specified for an update");
        return Err(Status::invalid(resource, name, &[cause]));
    }
    let applied = (write.manager.operation == "Apply").then(|| new["metadata"]["managedFields"].take());
    keep(resource, subresource, old, &mut new);
    let warnings = prune(resource, &mut new, write)?;
    let mut causes = repeated(&immutable(old, &new), 2);
    causes.extend(repeated(&validate::metadata(&new), if resource.kind == "Pod" { 4 } else { 2 }));
    causes.extend(validate::changed_object(resource, old, &new));
    causes.extend(schema(resource, &new));
    refuse(resource, &new, &causes)?;
    let manages_otherwise = applied.as_ref().is_some_and(|fields| !managed_fields::is_same(old, fields));
    if is_same(old, &new) && !manages_otherwise {
        return Ok(Prepared { value: old.clone(), warnings });
    }
    if resource.has_generation() && is_desired_otherwise(old, &new) {
        new["metadata"]["generation"] = (old["metadata"]["generation"].as_u64().unwrap_or(0) + 1).into();
    }
    new["metadata"]["managedFields"] =
        applied.unwrap_or_else(|| managed_fields::of_changed(resource, old, &new, &write.manager));
    arrange(resource, &mut new);
    Ok(Prepared { value: new, warnings })
}

/// Refuses what a webhook made of an object when that is no object the server would take.
pub fn check(resource: &Resource, old: Option<&Value>, value: &Value) -> Result<(), Status> {
    validate::types(resource, value).map_err(|why| unreadable(resource, &why))?;
    let mut causes = validate::metadata(value);
    match old {
        None => causes.extend(validate::new_object(resource, value)),
        Some(old) => {
            causes.extend(immutable(old, value));
            causes.extend(validate::changed_object(resource, old, value));
        }
    }
    causes.extend(schema(resource, value));
    refuse(resource, value, &causes)
}

/// Completes an object that a test puts into the store by itself: nothing is refused, what is there stays.
pub fn direct(resource: &Resource, mut value: Value) -> Value {
    let namespace = resource.namespaced.then(|| {
        let namespace = value["metadata"]["namespace"].as_str();
        namespace.filter(|namespace| !namespace.is_empty()).unwrap_or("default").to_owned()
    });
    let given = value["metadata"].clone();
    let status = value.get("status").cloned();
    stamp(resource, namespace.as_deref(), &mut value);
    default(resource, &mut value);
    for key in ["uid", "creationTimestamp", "deletionTimestamp", "generation", "managedFields"] {
        if let Some(given) = given.get(key) {
            value["metadata"][key] = given.clone();
        }
    }
    if let Some(status) = status {
        value["status"] = status;
    }
    arrange(resource, &mut value);
    value
}

/// The time as metadata carries it.
pub fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A random uid.
pub fn uid() -> String {
    let (high, low) = (random(), random());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        0x8000 | (low >> 48) & 0x3fff,
        low & 0xffff_ffff_ffff
    )
}

/// Whether two states differ in nothing but what the server itself keeps count with.
pub fn is_same(old: &Value, new: &Value) -> bool {
    let differs = |key: &str, old: &Value, new: &Value| match key {
        "metadata" => !is_same_metadata(old, new),
        _ => old != new,
    };
    is_same_map(old, new, differs)
}

fn is_same_metadata(old: &Value, new: &Value) -> bool {
    is_same_map(old, new, |key, old, new| key != "resourceVersion" && key != "managedFields" && old != new)
}

fn is_same_map(old: &Value, new: &Value, differs: impl Fn(&str, &Value, &Value) -> bool) -> bool {
    let (Some(before), Some(after)) = (old.as_object(), new.as_object()) else { return old == new };
    let changed = |(key, value): (&String, &Value)| differs(key, before.get(key).unwrap_or(&Value::Null), value);
    !after.iter().any(changed)
        && !before.iter().any(|(key, value)| !after.contains_key(key) && differs(key, value, &Value::Null))
}

fn is_desired_otherwise(old: &Value, new: &Value) -> bool {
    !is_same_map(old, new, |key, old, new| key != "metadata" && key != "status" && old != new)
}

fn unreadable(resource: &Resource, why: &str) -> Status {
    let (kind, version) = (&resource.kind, &resource.version);
    Status::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"))
}

/// Removes unknown fields of a custom object, and answers them as asked: by warnings, by a refusal, or not at all.
fn prune(resource: &Resource, value: &mut Value, write: &Write) -> Result<Vec<String>, Status> {
    let Some(schema) = &resource.schema else { return Ok(Vec::new()) };
    let unknown = validate::prune(schema, value);
    match (write.field_validation.as_str(), unknown.first()) {
        ("Strict", Some(first)) => Err(match &write.patch {
            Some(patch) => Status::strict_patch(patch, first),
            None => {
                let fields: Vec<String> = unknown.iter().map(|field| format!("unknown field \"{field}\"")).collect();
                unreadable(resource, &format!("strict decoding error: {}", fields.join(", ")))
            }
        }),
        ("Ignore", _) => Ok(Vec::new()),
        _ => Ok(unknown.iter().map(|field| format!("unknown field \"{field}\"")).collect()),
    }
}

fn schema(resource: &Resource, value: &Value) -> Vec<Cause> {
    resource.schema.as_ref().map(|schema| validate::schema(schema, value)).unwrap_or_default()
}

fn refuse(resource: &Resource, value: &Value, causes: &[Cause]) -> Result<(), Status> {
    if causes.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(resource, value["metadata"]["name"].as_str().unwrap_or_default(), causes))
}

/// A real server asks several of its layers the same, and each answers.
fn repeated(causes: &[Cause], times: usize) -> Vec<Cause> {
    causes.iter().flat_map(|cause| std::iter::repeat_n(cause.clone(), times)).collect()
}

/// Gives a new object its identity.
fn stamp(resource: &Resource, namespace: Option<&str>, value: &mut Value) {
    value["apiVersion"] = resource.api_version().into();
    value["kind"] = resource.kind.clone().into();
    let metadata = as_map(&mut value["metadata"]);
    for key in ["resourceVersion", "selfLink", "deletionTimestamp", "managedFields", "generation"] {
        metadata.shift_remove(key);
    }
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (name, prefix) = (text("name"), text("generateName"));
    if name.is_empty() && !prefix.is_empty() {
        metadata.insert("name".to_owned(), format!("{prefix}{}", suffix()).into());
    }
    if let Some(namespace) = namespace {
        metadata.insert("namespace".to_owned(), namespace.into());
    }
    metadata.insert("uid".to_owned(), uid().into());
    metadata.insert("creationTimestamp".to_owned(), now().into());
    if resource.has_generation() {
        metadata.insert("generation".to_owned(), 1.into());
    }
}

/// Carries over what a write may not touch.
fn keep(resource: &Resource, subresource: Option<&str>, old: &Value, new: &mut Value) {
    if subresource == Some("status") {
        let status = new.get("status").cloned();
        let mut metadata = if resource.custom { old["metadata"].clone() } else { new["metadata"].clone() };
        carry(&old["metadata"], &mut metadata, "ownerReferences");
        *new = old.clone();
        new["metadata"] = metadata;
        if let Some(status) = status {
            new["status"] = status;
        }
    } else if resource.status {
        carry(old, new, "status");
    }
    for key in ["apiVersion", "kind"] {
        carry(old, new, key);
    }
    let metadata = &mut new["metadata"];
    for key in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "managedFields"] {
        carry(&old["metadata"], metadata, key);
    }
    for key in ["uid", "name", "namespace"] {
        if metadata[key].as_str().is_none_or(str::is_empty) {
            carry(&old["metadata"], metadata, key);
        }
    }
    carry(&old["metadata"], metadata, "resourceVersion");
}

fn carry(from: &Value, to: &mut Value, key: &str) {
    match from.get(key) {
        Some(value) => drop(as_map(to).insert(key.to_owned(), value.clone())),
        None => drop(as_map(to).shift_remove(key)),
    }
}

fn immutable(old: &Value, new: &Value) -> Vec<Cause> {
    let changed = ["name", "namespace", "uid"].into_iter().filter(|key| old["metadata"][key] != new["metadata"][key]);
    changed.map(|key| Cause::invalid(&format!("metadata.{key}"), &new["metadata"][key], "field is immutable")).collect()
}

/// What the server fills in before it asks who manages which field.
fn default(resource: &Resource, value: &mut Value) {
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Pod") => default_pod(value),
        ("", "Namespace") => {
            let name = value["metadata"]["name"].clone();
            value["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            fill(value, &json!({"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}));
        }
        ("", "Event") => {
            let empty = json!({"source": {}, "firstTimestamp": null, "lastTimestamp": null, "eventTime": null,
                "reportingComponent": "", "reportingInstance": ""});
            fill(value, &empty);
        }
        ("", "Secret") => fill(value, &json!({"type": "Opaque"})),
        _ => {}
    }
}

fn default_pod(value: &mut Value) {
    let spec = json!({
        "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst", "securityContext": {},
        "schedulerName": "default-scheduler", "enableServiceLinks": true,
    });
    let containers = value["spec"]["containers"].as_array();
    let asks = |container: &Value| container["resources"].as_object().is_some_and(|resources| !resources.is_empty());
    let class = if containers.is_some_and(|all| all.iter().any(asks)) { "Burstable" } else { "BestEffort" };
    fill(value, &json!({"spec": spec, "status": {"phase": "Pending", "qosClass": class}}));
    for list in ["containers", "initContainers"] {
        let containers = value["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let image = container["image"].as_str().unwrap_or_default();
            let latest = image.ends_with(":latest") || !image.rsplit('/').next().unwrap_or_default().contains(':');
            let container_defaults = json!({
                "resources": {}, "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "imagePullPolicy": if latest { "Always" } else { "IfNotPresent" },
            });
            fill(container, &container_defaults);
        }
    }
}

/// What admission plugins of the server add to pods; nobody manages these fields.
fn add_by_admission(resource: &Resource, value: &mut Value) {
    if (resource.group.as_str(), resource.kind.as_str()) != ("", "Pod") {
        return;
    }
    let toleration =
        |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
    let tolerations = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(toleration);
    fill(
        value,
        &json!({"spec": {"tolerations": tolerations, "priority": 0, "preemptionPolicy": "PreemptLowerPriority"}}),
    );
}

/// Adds what is missing.
fn fill(value: &mut Value, defaults: &Value) {
    let Some(defaults) = defaults.as_object().filter(|_| value.is_object() || value.is_null()) else { return };
    let fields = as_map(value);
    for (key, default) in defaults {
        match fields.get_mut(key) {
            Some(present) => fill(present, default),
            None => drop(fields.insert(key.clone(), default.clone())),
        }
    }
}

/// Puts keys into the order in which a real server sends them: sorted for custom objects, by type for built-in ones.
fn arrange(resource: &Resource, value: &mut Value) {
    if resource.custom {
        value.sort_all_objects();
        return;
    }
    first(value, &["kind", "apiVersion", "metadata"]);
    let order = [
        "name",
        "generateName",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "labels",
        "annotations",
    ];
    let metadata = &mut value["metadata"];
    first(metadata, &order);
    for key in ["labels", "annotations"] {
        if let Some(words) = metadata.get_mut(key).and_then(Value::as_object_mut) {
            words.sort_keys();
        }
    }
}

fn first(value: &mut Value, order: &[&str]) {
    let fields = as_map(value);
    let mut arranged = Map::new();
    for key in order {
        if let Some((key, value)) = fields.shift_remove_entry(*key) {
            arranged.insert(key, value);
        }
    }
    arranged.append(fields);
    *fields = arranged;
}

fn suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut number = random();
    let letters = std::iter::repeat_with(|| {
        let letter = LETTERS[(number % LETTERS.len() as u64) as usize];
        number /= LETTERS.len() as u64;
        char::from(letter)
    });
    letters.take(5).collect()
}

/// The standard library seeds each hasher anew.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

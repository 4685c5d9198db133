//! What is refused of an object: wrong types, unknown fields of custom resources, names, and the few rules for pods and
//! Events that our clients could break. Pure; `object.rs` says when each is asked.

use std::fmt::Display;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::serde::Deserialize;
use serde_json::{Map, Value};

use super::resources::Resource;
use super::status::Cause;

/// What all annotations of an object may take, keys and values together.
const ANNOTATIONS_LIMIT: usize = 262_144;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

/// Whether an object can be read as its kind; the error says where it cannot.
pub fn types(resource: &Resource, value: &Value) -> Result<(), String> {
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Pod") => read::<Pod>(value),
        ("", "Event") => read::<Event>(value),
        ("", "Namespace") => read::<Namespace>(value),
        ("", "Node") => read::<Node>(value),
        ("", "Secret") => read::<Secret>(value),
        ("", "ConfigMap") => read::<ConfigMap>(value),
        ("coordination.k8s.io", "Lease") => read::<Lease>(value),
        _ => match value.get("metadata") {
            Some(metadata) => read::<ObjectMeta>(metadata),
            None => Ok(()),
        },
    }
}

fn read<'a, T: Deserialize<'a>>(value: &'a Value) -> Result<(), String> {
    T::deserialize(value).map(drop).map_err(|error| error.to_string())
}

/// Removes the fields that a custom resource's schema does not know; their paths.
pub fn prune(schema: &Value, value: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    prune_below(schema, value, "", &mut unknown);
    unknown
}

fn prune_below(schema: &Value, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(fields) if schema["x-kubernetes-preserve-unknown-fields"] != true => {
            prune_fields(schema, fields, path, unknown);
        }
        Value::Array(elements) => {
            for (index, element) in elements.iter_mut().enumerate() {
                prune_below(&schema["items"], element, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

fn prune_fields(schema: &Value, fields: &mut Map<String, Value>, path: &str, unknown: &mut Vec<String>) {
    if schema["additionalProperties"].is_object() || schema["additionalProperties"] == true {
        return;
    }
    fields.retain(|key, value| {
        let field = join(path, key);
        match schema["properties"].get(key) {
            Some(schema) => {
                prune_below(schema, value, &field, unknown);
                true
            }
            None if path.is_empty() && ["apiVersion", "kind", "metadata"].contains(&key.as_str()) => true,
            None => {
                unknown.push(field);
                false
            }
        }
    });
}

/// What a custom resource's schema refuses: types, required fields and enumerations. Patterns, limits and CEL rules are
/// not evaluated.
pub fn schema(schema: &Value, value: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    schema_below(schema, value, "", &mut causes);
    causes
}

fn schema_below(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let found = type_of(value);
    if let Some(wanted) = schema["type"].as_str() {
        let fits = wanted == found
            || (wanted == "number" && found == "integer")
            || (value.is_null() && schema["nullable"] == true);
        if !fits {
            causes.push(Cause::wrong_type(path, wanted, found));
            return;
        }
    }
    if let Some(allowed) = schema["enum"].as_array().filter(|allowed| !allowed.contains(value)) {
        causes.push(Cause::not_supported(path, value, allowed));
    }
    match value {
        Value::Object(fields) => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            for key in required.filter(|key| !fields.contains_key(*key)) {
                causes.push(Cause::required(&join(path, key), ""));
            }
            for (key, value) in fields {
                let below = schema["properties"].get(key).or_else(|| schema.get("additionalProperties"));
                if let Some(below) = below {
                    schema_below(below, value, &join(path, key), causes);
                }
            }
        }
        Value::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                schema_below(&schema["items"], element, &format!("{path}[{index}]"), causes);
            }
        }
        _ => {}
    }
}

/// What is wrong with the metadata of any object.
pub fn metadata(value: &Value) -> Vec<Cause> {
    let metadata = &value["metadata"];
    let mut causes = Vec::new();
    let name = metadata["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if !is_subdomain(name) {
        causes.push(Cause::invalid("metadata.name", &metadata["name"], SUBDOMAIN));
    }
    let annotations = metadata["annotations"].as_object();
    let size: usize = annotations.into_iter().flatten().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if size > ANNOTATIONS_LIMIT {
        causes.push(Cause::too_long("metadata.annotations", ANNOTATIONS_LIMIT));
    }
    for (field, keys) in [("metadata.annotations", annotations), ("metadata.labels", metadata["labels"].as_object())] {
        for (key, _) in keys.into_iter().flatten().filter(|(key, _)| !is_qualified_name(key)) {
            let why = "name part must consist of alphanumeric characters, '-', '_' or '.', \
                       and must start and end with an alphanumeric character";
            causes.push(Cause::invalid(field, &Value::from(key.as_str()), why));
        }
    }
    causes
}

/// What is wrong with a new object of a built-in kind, beside its metadata.
pub fn new_object(resource: &Resource, value: &Value) -> Vec<Cause> {
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Pod") => new_pod(value),
        ("", "Event") => event(value),
        _ => Vec::new(),
    }
}

fn new_pod(value: &Value) -> Vec<Cause> {
    let containers = value["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if containers.is_empty() {
        return vec![Cause::required("spec.containers", "")];
    }
    let missing = |index: usize, container: &Value, key: &str| {
        container[key]
            .as_str()
            .is_none_or(str::is_empty)
            .then(|| Cause::required(&format!("spec.containers[{index}].{key}"), ""))
    };
    let checks =
        containers.iter().enumerate().flat_map(|(index, c)| [missing(index, c, "name"), missing(index, c, "image")]);
    checks.flatten().collect()
}

/// The rules for Events of the core group: the old ones without `eventTime`, the new ones with it.
fn event(value: &Value) -> Vec<Cause> {
    let namespace = value["metadata"]["namespace"].as_str().unwrap_or_default();
    let involved = value["involvedObject"]["namespace"].as_str().unwrap_or_default();
    let mismatch = || Cause::invalid("involvedObject.namespace", &involved.into(), "does not match event.namespace");
    let is_new = value["eventTime"].is_string();
    let matches = match (involved.is_empty(), is_new) {
        (true, false) => namespace == "default",
        (true, true) => ["default", "kube-system"].contains(&namespace),
        (false, _) => is_new || namespace == involved,
    };
    let mut causes: Vec<Cause> = (!matches).then(mismatch).into_iter().collect();
    if is_new {
        for key in ["reportingComponent", "reportingInstance", "action", "reason"] {
            if value[key].as_str().is_none_or(str::is_empty) {
                causes.push(Cause::required(key, ""));
            }
        }
        let limits = [("reportingInstance", 128), ("action", 128), ("reason", 128), ("message", 1024)];
        for (key, limit) in limits {
            if value[key].as_str().is_some_and(|text| text.len() > limit) {
                let why = format!("can have at most {limit} characters");
                causes.push(Cause::invalid(key, &"".into(), &why));
            }
        }
    }
    causes
}

/// What may not change of an object.
pub fn changed_object(resource: &Resource, old: &Value, new: &Value) -> Vec<Cause> {
    if resource.kind != "Pod" || pod_without_mutable_fields(old) == pod_without_mutable_fields(new) {
        return Vec::new();
    }
    let why = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
               `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
               `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
    vec![Cause::forbidden("spec", why)]
}

fn pod_without_mutable_fields(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    if let Some(fields) = spec.as_object_mut() {
        for key in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"] {
            fields.shift_remove(key);
        }
        for list in ["containers", "initContainers"] {
            let containers = fields.get_mut(list).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
                container.shift_remove("image");
            }
        }
    }
    spec
}

fn is_subdomain(name: &str) -> bool {
    let is_label = |label: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        edge(label.chars().next()) && edge(label.chars().last()) && label.chars().all(inside)
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

fn is_qualified_name(key: &str) -> bool {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inside = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let prefix_fits = prefix.is_none_or(|prefix| is_subdomain(&prefix.to_ascii_lowercase()));
    prefix_fits
        && name.len() <= 63
        && edge(name.chars().next())
        && edge(name.chars().last())
        && name.chars().all(inside)
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn join(path: &str, key: impl Display) -> String {
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}

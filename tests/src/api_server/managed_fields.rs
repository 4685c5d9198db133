//! Who manages which field: the `managedFields` of objects, and server-side apply, which rests on them. Sets of fields are
//! kept as they travel (`fieldsV1`): maps from `f:name` or `k:{"name":"c"}` to the set below.

use serde_json::{Map, Value, json};

use super::object;
use super::patch;
use super::resources::Resource;
use super::status::Status;

/// Who writes, and how.
#[derive(Debug, Clone)]
pub struct Manager {
    /// The field manager.
    pub name: String,
    /// `Update` or `Apply`.
    pub operation: &'static str,
    /// The subresource written to.
    pub subresource: Option<String>,
}

impl Manager {
    fn is(&self, entry: &Value) -> bool {
        entry["manager"] == self.name
            && entry["operation"] == self.operation
            && entry["subresource"].as_str() == self.subresource.as_deref()
    }

    fn entry(&self, resource: &Resource, mut fields: Value) -> Value {
        fields.sort_all_objects();
        let mut entry = json!({
            "manager": self.name, "operation": self.operation, "apiVersion": resource.api_version(), "time": object::now(),
            "fieldsType": "FieldsV1", "fieldsV1": fields,
        });
        if let Some(subresource) = &self.subresource {
            entry["subresource"] = subresource.clone().into();
        }
        entry
    }
}

/// `managedFields` of a new object.
pub fn of_new(resource: &Resource, value: &Value, manager: &Manager) -> Value {
    let fields = Reader { resource, subresource: None }.object(None, value);
    json!([manager.entry(resource, fields)])
}

/// `managedFields` after an update: what it changed belongs to the manager, and to nobody else.
pub fn of_changed(resource: &Resource, old: &Value, new: &Value, manager: &Manager) -> Value {
    let reader = Reader { resource, subresource: manager.subresource.as_deref() };
    let changed = reader.object(Some(old), new);
    let there = reader.object(None, new);
    let mut entries = Vec::new();
    let mut own = json!({});
    for mut entry in old["metadata"]["managedFields"].as_array().cloned().unwrap_or_default() {
        let fields = &mut entry["fieldsV1"];
        retain(fields, &there);
        if manager.is(&entry) {
            own = entry["fieldsV1"].take();
        } else {
            subtract(&mut entry["fieldsV1"], &changed);
            if !is_empty(&entry["fieldsV1"]) {
                entries.push(entry);
            }
        }
    }
    unite(&mut own, &changed);
    if !is_empty(&own) {
        entries.push(manager.entry(resource, own));
    }
    entries.into()
}

/// Server-side apply: `patch` is all that the manager wants; what it wanted before and no longer does is removed.
pub fn apply(resource: &Resource, old: &Value, patch: &Value, manager: &Manager, force: bool) -> Result<Value, Status> {
    let reader = Reader { resource, subresource: manager.subresource.as_deref() };
    let wanted = reader.object(None, patch);
    let (mine, mut others): (Vec<Value>, Vec<Value>) = entries(old).into_iter().partition(|entry| manager.is(entry));
    let mut differing = reader.object(Some(old), patch);
    retain(&mut differing, &reader.object(None, old));
    if !force {
        refuse_conflicts(resource, old, &others, &differing)?;
    }
    let mut given_up = mine.into_iter().next().map_or_else(|| json!({}), |mut entry| entry["fieldsV1"].take());
    subtract(&mut given_up, &wanted);
    for entry in &mut others {
        subtract(&mut given_up, &entry["fieldsV1"]);
        subtract(&mut entry["fieldsV1"], &differing);
    }
    others.retain(|entry| !is_empty(&entry["fieldsV1"]));
    let mut new = old.clone();
    remove(&mut new, &given_up);
    patch::strategic(&mut new, patch, "");
    others.insert(0, manager.entry(resource, wanted));
    new["metadata"]["managedFields"] = others.into();
    Ok(new)
}

/// Whether these are the managed fields that an object has, but for their times.
pub fn is_same(object: &Value, fields: &Value) -> bool {
    let without_times = |mut entries: Vec<Value>| {
        entries.iter_mut().filter_map(Value::as_object_mut).for_each(|entry| drop(entry.shift_remove("time")));
        entries
    };
    without_times(entries(object)) == without_times(fields.as_array().cloned().unwrap_or_default())
}

fn entries(object: &Value) -> Vec<Value> {
    object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default()
}

fn refuse_conflicts(resource: &Resource, old: &Value, others: &[Value], differing: &Value) -> Result<(), Status> {
    let mut causes = Vec::new();
    for entry in others {
        let mut conflicting = differing.clone();
        retain(&mut conflicting, &entry["fieldsV1"]);
        let manager = entry["manager"].as_str().unwrap_or_default();
        let version = entry["apiVersion"].as_str().unwrap_or_default();
        let message = match entry["operation"].as_str() {
            Some("Apply") => format!("conflict with \"{manager}\""),
            _ => format!("conflict with \"{manager}\" using {version}"),
        };
        for path in leaves(&conflicting) {
            causes.push(json!({"reason": "FieldManagerConflict", "message": message, "field": path}));
        }
    }
    if causes.is_empty() {
        return Ok(());
    }
    let told: Vec<String> = causes.iter().map(|c| format!("{}: {}", text(&c["message"]), text(&c["field"]))).collect();
    let (count, ending) = (causes.len(), if causes.len() == 1 { "" } else { "s" });
    let message = format!("Apply failed with {count} conflict{ending}: {}", told.join("; "));
    let name = text(&old["metadata"]["name"]).to_owned();
    let mut status = Status::new(409, "Conflict", message).about(resource, &name, &resource.plural);
    if let Some(details) = &mut status.details {
        details["causes"] = causes.into();
    }
    Err(status)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Reads sets of fields out of objects.
struct Reader<'a> {
    resource: &'a Resource,
    subresource: Option<&'a str>,
}

impl Reader<'_> {
    /// The fields of an object, or with `old` those that are new or other than there.
    fn object(&self, old: Option<&Value>, new: &Value) -> Value {
        let mut fields = Map::new();
        for (key, value) in new.as_object().into_iter().flatten() {
            let old = old.and_then(|old| old.get(key));
            let is_own = match key.as_str() {
                "apiVersion" | "kind" => false,
                "status" => self.subresource == Some("status") || !self.resource.status,
                _ => !is_nothing(value),
            };
            if key == "metadata" {
                let below = self.metadata(old, value);
                if !is_empty(&below) {
                    fields.insert("f:metadata".to_owned(), below);
                }
            } else if is_own {
                self.add(&mut fields, old, key, value, self.resource.custom);
            }
        }
        fields.into()
    }

    fn metadata(&self, old: Option<&Value>, new: &Value) -> Value {
        let mut fields = Map::new();
        for key in ["annotations", "finalizers", "generateName", "labels", "ownerReferences"] {
            if let Some(value) = new.get(key) {
                self.add(&mut fields, old.and_then(|old| old.get(key)), key, value, true);
            }
        }
        fields.into()
    }

    /// Adds a field where it differs from the old one; `marks` says whether maps name themselves (`.`), as those of unknown
    /// type do, and the resources of containers.
    fn add(&self, fields: &mut Map<String, Value>, old: Option<&Value>, key: &str, new: &Value, marks: bool) {
        if old == Some(new) {
            return;
        }
        let below = match new {
            Value::Object(values) if key != "involvedObject" => self.map(old, values, marks || key == "resources"),
            Value::Array(elements) if self.has_names(key) => self.named(old, elements),
            _ => json!({}),
        };
        // A map or list that only lost elements has none that differ: that is no field of its own.
        let was_set = old.is_some_and(|old| old.is_object() || old.is_array() && self.has_names(key));
        if !(was_set && is_empty(&below)) {
            fields.insert(format!("f:{key}"), below);
        }
    }

    fn map(&self, old: Option<&Value>, values: &Map<String, Value>, marks: bool) -> Value {
        let mut fields = Map::new();
        if marks && !values.is_empty() && old.is_none_or(|old| !old.is_object()) {
            fields.insert(".".to_owned(), json!({}));
        }
        for (key, value) in values.iter().filter(|(_, value)| marks || !is_nothing(value)) {
            self.add(&mut fields, old.and_then(|old| old.get(key)), key, value, marks);
        }
        fields.into()
    }

    /// A list whose elements are known by their names.
    fn named(&self, old: Option<&Value>, elements: &[Value]) -> Value {
        let mut fields = Map::new();
        for element in elements {
            let same = |old: &&Value| old["name"] == element["name"];
            let old = old.and_then(Value::as_array).and_then(|old| old.iter().find(same));
            let mut below = self.map(old, element.as_object().unwrap_or(&Map::new()), false);
            if old.is_none() {
                below["."] = json!({});
            }
            if !is_empty(&below) {
                fields.insert(format!("k:{}", json!({"name": element["name"]})), below);
            }
        }
        fields.into()
    }

    fn has_names(&self, key: &str) -> bool {
        !self.resource.custom && matches!(key, "containers" | "initContainers")
    }
}

/// What typed objects do not even send.
fn is_nothing(value: &Value) -> bool {
    value.is_null() || value == ""
}

fn is_empty(set: &Value) -> bool {
    set.as_object().is_none_or(Map::is_empty)
}

fn unite(set: &mut Value, other: &Value) {
    patch::merge(set, other);
}

/// Takes the leaves of `other` out of a set, and what is empty then.
fn subtract(set: &mut Value, other: &Value) {
    let (Some(fields), Some(taken)) = (set.as_object_mut(), other.as_object()) else { return };
    fields.retain(|key, below| match taken.get(key) {
        None => true,
        Some(_) if is_empty(below) => key == ".",
        Some(taken) => {
            subtract(below, taken);
            !is_empty(below)
        }
    });
    if fields.keys().all(|key| key == ".") && taken.contains_key(".") {
        fields.clear();
    }
}

/// Keeps of a set what is in `other` too.
fn retain(set: &mut Value, other: &Value) {
    let (Some(fields), Some(kept)) = (set.as_object_mut(), other.as_object()) else { return };
    fields.retain(|key, below| match kept.get(key) {
        None => key == ".",
        Some(kept) => {
            let was_leaf = is_empty(below);
            retain(below, kept);
            was_leaf || !is_empty(below)
        }
    });
    if fields.keys().all(|key| key == ".") {
        fields.clear();
    }
}

/// Removes the fields of a set from an object.
fn remove(value: &mut Value, set: &Value) {
    for (key, below) in set.as_object().into_iter().flatten() {
        let Some((name, fields)) = key.strip_prefix("f:").zip(value.as_object_mut()) else { continue };
        if is_empty(below) {
            fields.shift_remove(name);
        } else if let Some(value) = fields.get_mut(name) {
            remove(value, below);
        }
    }
}

/// The paths of a set's leaves.
fn leaves(set: &Value) -> Vec<String> {
    let mut paths = Vec::new();
    for (key, below) in set.as_object().into_iter().flatten().filter(|(key, _)| *key != ".") {
        let name = format!(".{}", key.strip_prefix("f:").unwrap_or(key));
        match leaves(below) {
            none if none.is_empty() => paths.push(name),
            some => paths.extend(some.into_iter().map(|below| format!("{name}{below}"))),
        }
    }
    paths
}

//! Patches, applied to a value: JSON patch (RFC 6902), merge patch (RFC 7396), and strategic merge patch as far as maps go
//! and lists have a known key. Pure; who may patch what is left to `object.rs`, server-side apply to `managed_fields.rs`.

use serde_json::{Map, Value};

/// Merge patch: maps are merged, `null` removes, everything else replaces.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    let fields = as_map(target);
    for (key, change) in changes {
        if change.is_null() {
            fields.shift_remove(key);
        } else {
            merge(fields.entry(key.as_str()).or_insert(Value::Null), change);
        }
    }
}

/// Strategic merge patch: as [`merge`], but lists whose elements have a merge key are merged element by element, and the
/// directive `$patch: replace` or `delete` is obeyed.
pub fn strategic(target: &mut Value, patch: &Value, field: &str) {
    match patch {
        Value::Object(changes) => strategic_map(target, changes),
        Value::Array(elements) => match merge_key(field) {
            Some(key) if target.is_array() => strategic_list(target, elements, key),
            _ => *target = patch.clone(),
        },
        other => *target = other.clone(),
    }
}

fn strategic_map(target: &mut Value, changes: &Map<String, Value>) {
    let directive = changes.get("$patch").and_then(Value::as_str);
    if directive == Some("replace") {
        let mut replaced = changes.clone();
        replaced.shift_remove("$patch");
        *target = replaced.into();
        return;
    }
    let fields = as_map(target);
    for (key, change) in changes.iter().filter(|(key, _)| !key.starts_with('$')) {
        let deletes = change.is_null() || change["$patch"] == "delete";
        if deletes {
            fields.shift_remove(key);
        } else {
            strategic(fields.entry(key.as_str()).or_insert(Value::Null), change, key);
        }
    }
}

fn strategic_list(target: &mut Value, changes: &[Value], key: &str) {
    let Value::Array(elements) = target else { return };
    for change in changes {
        let place = elements.iter().position(|element| element[key] == change[key]);
        match (place, change["$patch"] == "delete") {
            (Some(place), true) => drop(elements.remove(place)),
            (Some(place), false) => strategic(&mut elements[place], change, ""),
            (None, true) => {}
            (None, false) => elements.push(change.clone()),
        }
    }
}

/// The key that tells elements of a list apart, for the lists of pods and metadata.
fn merge_key(field: &str) -> Option<&'static str> {
    match field {
        "containers" | "initContainers" | "ephemeralContainers" | "volumes" | "env" | "imagePullSecrets" => {
            Some("name")
        }
        "conditions" => Some("type"),
        "ownerReferences" => Some("uid"),
        "podIPs" | "hostIPs" => Some("ip"),
        "volumeMounts" => Some("mountPath"),
        _ => None,
    }
}

/// Why a JSON patch was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It is no JSON patch.
    Malformed,
    /// An operation, a `test` for instance, does not hold for this object.
    Refused,
}

/// JSON patch: operations in their order, all or nothing.
pub fn json(target: &Value, patch: &Value) -> Result<Value, Failure> {
    let mut result = target.clone();
    for operation in patch.as_array().ok_or(Failure::Malformed)? {
        let text = |key: &str| operation[key].as_str().ok_or(Failure::Malformed);
        let path = text("path")?;
        match text("op")? {
            "add" => add(&mut result, path, value_of(operation)?)?,
            "remove" => drop(remove(&mut result, path)?),
            "replace" => *existing(&mut result, path)? = value_of(operation)?,
            "move" => {
                let moved = remove(&mut result, text("from")?)?;
                add(&mut result, path, moved)?;
            }
            "copy" => {
                let copied = existing(&mut result, text("from")?)?.clone();
                add(&mut result, path, copied)?;
            }
            "test" => {
                let wanted = value_of(operation)?;
                // As the server's library has it: what is missing equals null.
                let found = result.pointer(path).cloned().unwrap_or(Value::Null);
                if found != wanted {
                    return Err(Failure::Refused);
                }
            }
            _ => return Err(Failure::Malformed),
        }
    }
    Ok(result)
}

fn value_of(operation: &Value) -> Result<Value, Failure> {
    operation.get("value").cloned().ok_or(Failure::Malformed)
}

fn existing<'a>(target: &'a mut Value, path: &str) -> Result<&'a mut Value, Failure> {
    target.pointer_mut(path).ok_or(Failure::Refused)
}

fn add(target: &mut Value, path: &str, value: Value) -> Result<(), Failure> {
    if path.is_empty() {
        *target = value;
        return Ok(());
    }
    let (parent, last) = parent(target, path)?;
    match parent {
        Value::Object(fields) => drop(fields.insert(last, value)),
        Value::Array(elements) => {
            let place = if last == "-" { elements.len() } else { place(&last)? };
            if place > elements.len() {
                return Err(Failure::Refused);
            }
            elements.insert(place, value);
        }
        _ => return Err(Failure::Refused),
    }
    Ok(())
}

fn remove(target: &mut Value, path: &str) -> Result<Value, Failure> {
    let (parent, last) = parent(target, path)?;
    match parent {
        Value::Object(fields) => fields.shift_remove(&last).ok_or(Failure::Refused),
        Value::Array(elements) => {
            let place = place(&last)?;
            if place < elements.len() { Ok(elements.remove(place)) } else { Err(Failure::Refused) }
        }
        _ => Err(Failure::Refused),
    }
}

fn parent<'a>(target: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), Failure> {
    let (parent, last) = path.rsplit_once('/').ok_or(Failure::Malformed)?;
    Ok((existing(target, parent)?, last.replace("~1", "/").replace("~0", "~")))
}

fn place(text: &str) -> Result<usize, Failure> {
    text.parse().map_err(|_| Failure::Refused)
}

/// The fields of a value, which becomes a map if it is none.
pub fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(fields) => fields,
        _ => unreachable!("it was made a map"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Failure, merge, strategic};

    #[test]
    fn maps_are_merged_and_null_removes() {
        // (before, patch, after): the rows of RFC 7396, appendix A, that matter here
        let rows = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": "foo"}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        ];
        for (before, patch, after) in rows {
            let [mut by_merge, mut by_strategy] = [before.clone(), before.clone()];
            merge(&mut by_merge, &patch);
            strategic(&mut by_strategy, &patch, "");
            assert_eq!([by_merge, by_strategy], [after.clone(), after], "{before} {patch}");
        }
    }

    #[test]
    fn lists_with_a_key_are_merged_by_strategy() {
        let mut pod = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}], "args": [1]});
        let patch =
            json!({"containers": [{"name": "b", "image": "2"}, {"name": "a", "$patch": "delete"}], "args": [2]});
        strategic(&mut pod, &patch, "");
        assert_eq!(pod, json!({"containers": [{"name": "b", "image": "2"}], "args": [2]}));
    }

    #[test]
    fn json_patches_hold_all_or_nothing() {
        let object = json!({"a": {"b/c": 1}, "list": [1, 2]});
        let rows: [(Value, Result<Value, Failure>); 9] = [
            (json!([{"op": "add", "path": "/a/b~1c", "value": 2}]), Ok(json!({"a": {"b/c": 2}, "list": [1, 2]}))),
            (
                json!([{"op": "test", "path": "/list/1", "value": 2}, {"op": "add", "path": "/list/-", "value": 3}]),
                Ok(json!({"a": {"b/c": 1}, "list": [1, 2, 3]})),
            ),
            (json!([{"op": "remove", "path": "/list/0"}]), Ok(json!({"a": {"b/c": 1}, "list": [2]}))),
            (json!([{"op": "move", "from": "/a", "path": "/b"}]), Ok(json!({"list": [1, 2], "b": {"b/c": 1}}))),
            (json!([{"op": "test", "path": "/list/1", "value": 1}]), Err(Failure::Refused)),
            (json!([{"op": "add", "path": "/none/x", "value": 1}]), Err(Failure::Refused)),
            (json!([{"op": "replace", "path": "/none", "value": 1}]), Err(Failure::Refused)),
            (json!([{"op": "add", "path": "/x"}]), Err(Failure::Malformed)),
            (json!({"op": "add"}), Err(Failure::Malformed)),
        ];
        for (patch, wanted) in rows {
            assert_eq!(super::json(&object, &patch), wanted, "{patch}");
        }
    }
}

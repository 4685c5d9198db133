//! A JSON patch (RFC 6902) while it is made: each change is applied to a copy of the document, so that the next one sees it,
//! and what a path lacks on the way is made first.

use serde_json::{Map, Value, json};

/// The patch.
pub struct Patch {
    document: Value,
    operations: Vec<Value>,
}

impl Patch {
    /// A patch of a document, empty yet.
    pub fn of(document: Value) -> Self {
        Self { document, operations: Vec::new() }
    }

    /// The document as the patch leaves it.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// The operations, in order.
    pub fn into_operations(self) -> Vec<Value> {
        self.operations
    }

    /// Sets a member of an object.
    pub fn set(&mut self, path: &[&str], value: Value) {
        let Some((last, parents)) = path.split_last() else { return };
        self.make(parents, || Value::Object(Map::new()));
        if let Some(Value::Object(parent)) = at(&mut self.document, parents) {
            parent.insert((*last).to_owned(), value.clone());
            self.operations.push(json!({"op": "add", "path": pointer(path), "value": value}));
        }
    }

    /// Appends to an array.
    pub fn push(&mut self, path: &[&str], value: Value) {
        self.make(path, || Value::Array(Vec::new()));
        if let Some(Value::Array(array)) = at(&mut self.document, path) {
            array.push(value.clone());
            self.operations.push(json!({"op": "add", "path": format!("{}/-", pointer(path)), "value": value}));
        }
    }

    /// Makes what is missing on the way to a place: objects, and at the end of it what `empty` gives.
    fn make(&mut self, path: &[&str], empty: impl Fn() -> Value) {
        for length in 1..=path.len() {
            let (place, parents) = (path[length - 1], &path[..length - 1]);
            let Some(Value::Object(parent)) = at(&mut self.document, parents) else { continue };
            if parent.get(place).is_none_or(Value::is_null) {
                let value = if length == path.len() { empty() } else { Value::Object(Map::new()) };
                parent.insert(place.to_owned(), value.clone());
                self.operations.push(json!({"op": "add", "path": pointer(&path[..length]), "value": value}));
            }
        }
    }
}

fn at<'a>(document: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    path.iter().try_fold(document, |value, key| match value {
        Value::Array(array) => array.get_mut(key.parse::<usize>().ok()?),
        value => value.get_mut(*key),
    })
}

fn pointer(path: &[&str]) -> String {
    path.iter().map(|key| format!("/{}", key.replace('~', "~0").replace('/', "~1"))).collect()
}

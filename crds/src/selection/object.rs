//! One JSON object of the annotation, read key by key, with errors that name the key. Keys are matched exactly or else
//! whatever their case, as the clients written in Go do, and `null` is as good as absent.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::SelectionError;
use crate::excerpt::{excerpt, quoted};

pub(super) struct Object<'a> {
    keys: &'a Map<String, Value>,
    /// What leads to this object, with a dot at its end; empty for an element itself.
    path: String,
}

impl<'a> Object<'a> {
    pub(super) fn element(keys: &'a Map<String, Value>) -> Self {
        Self { keys, path: String::new() }
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>, SelectionError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(super) fn integer(&self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, SelectionError> {
        let expected = format!("an integer from {} to {}", range.start(), range.end());
        self.typed(key, &expected, |value| value.as_u64().filter(|number| range.contains(number)))
    }

    pub(super) fn map(&self, key: &str) -> Result<Option<&'a Map<String, Value>>, SelectionError> {
        self.typed(key, "an object", Value::as_object)
    }

    /// The object under `key`.
    pub(super) fn object(&self, key: &str) -> Result<Option<Self>, SelectionError> {
        let path = format!("{}.", self.path(key));
        Ok(self.map(key)?.map(|keys| Self { keys, path }))
    }

    /// The list of strings under `key`, each read by `parse`.
    pub(super) fn strings<T, E: std::fmt::Display>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<Vec<T>>, SelectionError> {
        let Some(list) = self.typed(key, "a list of strings", Value::as_array)? else {
            return Ok(None);
        };
        let item = |(index, value): (usize, &Value)| {
            let path = format!("{}[{index}]", self.path(key));
            match value.as_str() {
                Some(text) => parse(text).map_err(|problem| SelectionError::key(path, problem)),
                None => Err(wrong(path, value, "a string")),
            }
        };
        list.iter().enumerate().map(item).collect::<Result<_, _>>().map(Some)
    }

    /// The list of objects under `key`.
    pub(super) fn objects(&self, key: &str) -> Result<Option<Vec<Self>>, SelectionError> {
        let Some(list) = self.typed(key, "a list of objects", Value::as_array)? else {
            return Ok(None);
        };
        let item = |(index, value): (usize, &'a Value)| {
            let path = format!("{}[{index}]", self.path(key));
            match value.as_object() {
                Some(keys) => Ok(Self { keys, path: format!("{path}.") }),
                None => Err(wrong(path, value, "an object")),
            }
        };
        list.iter().enumerate().map(item).collect::<Result<_, _>>().map(Some)
    }

    /// An error about `key` of this object.
    pub(super) fn error(&self, key: &str, problem: impl std::fmt::Display) -> SelectionError {
        SelectionError::key(self.path(key), problem)
    }

    /// The paths of the keys that are neither in `known` nor somebody's own, which have a dot (multi-net 4.1.2.1).
    pub(super) fn unknown(&self, known: &[&str]) -> Vec<String> {
        let read: Vec<&str> = known.iter().filter_map(|key| Some(self.find(key)?.0)).collect();
        let strange = |key: &&String| !key.contains('.') && !read.contains(&key.as_str());
        self.keys.keys().filter(strange).map(|key| self.path(&excerpt(key))).collect()
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, SelectionError> {
        match self.find(key) {
            None | Some((_, Value::Null)) => Ok(None),
            Some((_, value)) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(wrong(self.path(key), value, expected)),
            },
        }
    }

    fn find(&self, key: &str) -> Option<(&'a str, &'a Value)> {
        // As in Go, the last of several spellings counts; unlike there, the exact one comes before all others.
        let in_any_case = || self.keys.iter().rfind(|(written, _)| written.eq_ignore_ascii_case(key));
        let (written, value) = self.keys.get_key_value(key).or_else(in_any_case)?;
        Some((written, value))
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }
}

fn wrong(path: String, value: &Value, expected: &str) -> SelectionError {
    SelectionError::key(path, format!("{} is not {expected}", described(value)))
}

/// What a value is, for a person: short values as they are, others by their type.
pub(super) fn described(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => excerpt(&value.to_string()),
        Value::String(text) => quoted(text),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

//! Going through the JSON of a configuration key by key, each with its path.

use musubi_delegates::cni::ConfigError;
use serde_json::Value;

/// Refuses keys about which plugins disagree: two of one object that differ in their case alone, and letters that some fold
/// to ASCII (Go's JSON reads `ſ` as `s`).
pub(super) fn unambiguous(value: &Value, path: &str) -> Result<(), ConfigError> {
    match value {
        Value::Object(map) => {
            for (position, (key, value)) in map.iter().enumerate() {
                if !key.is_ascii() {
                    return Err(ConfigError::new(below(path, key), "is no key in ASCII"));
                }
                if map.keys().take(position).any(|earlier| earlier.eq_ignore_ascii_case(key)) {
                    return Err(ConfigError::new(below(path, key), "stands here twice, in different case"));
                }
                unambiguous(value, &below(path, key))?;
            }
            Ok(())
        }
        Value::Array(list) => {
            list.iter().enumerate().try_for_each(|(i, value)| unambiguous(value, &format!("{path}[{i}]")))
        }
        _ => Ok(()),
    }
}

/// Calls `see` with each key: its path without positions, with them, and its value. It says whether to look inside.
pub(super) fn walk(value: &Value, bare: &str, path: &str, see: &mut impl FnMut(&str, &str, &Value) -> bool) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let (bare, path) = (below(bare, key), below(path, key));
                if see(&bare, &path, value) {
                    walk(value, &bare, &path, see);
                }
            }
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| walk(value, bare, &format!("{path}[{i}]"), see));
        }
        _ => {}
    }
}

/// Calls `see` with every text in a value, keys of objects aside, and its path.
pub(super) fn texts(
    value: &Value,
    path: &str,
    see: &mut impl FnMut(&str, &str) -> Result<(), ConfigError>,
) -> Result<(), ConfigError> {
    match value {
        Value::String(text) => see(path, text),
        Value::Object(map) => map.iter().try_for_each(|(key, value)| texts(value, &below(path, key), see)),
        Value::Array(list) => {
            list.iter().enumerate().try_for_each(|(i, value)| texts(value, &format!("{path}[{i}]"), see))
        }
        _ => Ok(()),
    }
}

fn below(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

//! Typed reading of one JSON object. Keys match whatever their case, the last duplicate wins and
//! `null` is absent, as in Go, so what works with the reference plugins works here; every error
//! carries the key's whole path and what is accepted.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::error::ConfigError;
use super::names::shown;

/// One JSON object and the path that led to it.
#[derive(Debug, Clone)]
pub struct View<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

impl<'a> View<'a> {
    /// Reads `map`, which stands at `path`; the path of the outermost object is empty.
    pub fn of(map: &'a Map<String, Value>, path: impl Into<String>) -> Self {
        Self { map, path: path.into() }
    }

    /// The value of `k` as it is, `null` being absent.
    pub fn raw(&self, k: &str) -> Option<&'a Value> {
        find(self.map, k)
    }

    /// A string; an empty one is returned as such.
    pub fn string(&self, k: &str) -> Result<Option<&'a str>, ConfigError> {
        self.typed(k, "a string", Value::as_str)
    }

    /// A string with something in it: Go's plugins take an empty one for absent.
    pub fn text(&self, k: &str) -> Result<Option<&'a str>, ConfigError> {
        Ok(self.string(k)?.filter(|s| !s.is_empty()))
    }

    /// A boolean, false when absent.
    pub fn bool(&self, k: &str) -> Result<bool, ConfigError> {
        Ok(self.opt_bool(k)?.unwrap_or(false))
    }

    /// A boolean for which absent means something else than false.
    pub fn opt_bool(&self, k: &str) -> Result<Option<bool>, ConfigError> {
        self.typed(k, "true or false", Value::as_bool)
    }

    /// A boolean, also written as the string "true" or "false" in any case (libcni's reading of
    /// list-level switches).
    pub fn lenient_bool(&self, k: &str) -> Result<bool, ConfigError> {
        let read = |value: &Value| match value {
            Value::Bool(b) => Some(*b),
            Value::String(s) if s.eq_ignore_ascii_case("true") => Some(true),
            Value::String(s) if s.eq_ignore_ascii_case("false") => Some(false),
            _ => None,
        };
        Ok(self.typed(k, "true or false", read)?.unwrap_or(false))
    }

    /// A whole number within `range`.
    pub fn uint(&self, k: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ConfigError> {
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        self.typed(k, &wanted, |value| value.as_u64().filter(|n| range.contains(n)))
    }

    /// A whole number of either sign.
    pub fn int(&self, k: &str) -> Result<Option<i64>, ConfigError> {
        self.typed(k, "a whole number", Value::as_i64)
    }

    /// An object.
    pub fn object(&self, k: &str) -> Result<Option<View<'a>>, ConfigError> {
        Ok(self.typed(k, "an object", Value::as_object)?.map(|map| View::of(map, self.path(k))))
    }

    /// A list of objects, each knowing its position; none when absent.
    pub fn objects(&self, k: &str) -> Result<Vec<View<'a>>, ConfigError> {
        let list = self.list(k)?.map(Vec::as_slice).unwrap_or_default();
        list.iter()
            .enumerate()
            .map(|(i, element)| {
                let path = format!("{}[{i}]", self.path(k));
                match element.as_object() {
                    Some(map) => Ok(View::of(map, path)),
                    None => Err(ConfigError::new(path, format!("must be an object, not {}", kind(element)))),
                }
            })
            .collect()
    }

    /// A list of strings.
    pub fn strings(&self, k: &str) -> Result<Option<Vec<&'a str>>, ConfigError> {
        let Some(list) = self.list(k)? else {
            return Ok(None);
        };
        list.iter()
            .enumerate()
            .map(|(i, element)| {
                let wrong = || {
                    ConfigError::new(
                        format!("{}[{i}]", self.path(k)),
                        format!("must be a string, not {}", kind(element)),
                    )
                };
                element.as_str().ok_or_else(wrong)
            })
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// A list of anything.
    pub fn list(&self, k: &str) -> Result<Option<&'a Vec<Value>>, ConfigError> {
        self.typed(k, "a list", Value::as_array)
    }

    /// An IPv4 or IPv6 address without a prefix; an empty string is absent.
    pub fn ip(&self, k: &str) -> Result<Option<IpAddr>, ConfigError> {
        self.text(k)?
            .map(|s| s.parse().map_err(|_| self.error(k, format!("must be an IP address, not {}", shown(s)))))
            .transpose()
    }

    /// An address with its prefix length; host bits are kept. An empty string is an error, as it is
    /// to Go.
    pub fn net(&self, k: &str) -> Result<Option<IpNet>, ConfigError> {
        self.string(k)?
            .map(|s| s.parse().map_err(|_| self.error(k, format!("must be ADDRESS/PREFIX, not {}", shown(s)))))
            .transpose()
    }

    /// The keys as they are written, in their order.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.map.keys().map(String::as_str)
    }

    /// The paths of the keys outside `known`, whatever their case.
    pub fn unknown(&self, known: &[&str]) -> Vec<String> {
        self.keys().filter(|key| !known.iter().any(|k| k.eq_ignore_ascii_case(key))).map(|key| self.path(key)).collect()
    }

    /// A warning for each of them.
    pub fn warn_of_unknown(&self, known: &[&str]) -> Vec<String> {
        let warning = |path| format!("key \"{path}\" is not known and is ignored");
        self.unknown(known).into_iter().map(warning).collect()
    }

    /// The whole path of `k`.
    pub fn path(&self, k: &str) -> String {
        if self.path.is_empty() { k.to_owned() } else { format!("{}.{k}", self.path) }
    }

    /// An error about `k`, which stands in this object.
    pub fn error(&self, k: &str, problem: impl Into<String>) -> ConfigError {
        ConfigError::new(self.path(k), problem)
    }

    fn typed<T>(
        &self,
        k: &str,
        wanted: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.raw(k) else {
            return Ok(None);
        };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(self.error(k, format!("must be {wanted}, not {}", kind(value)))),
        }
    }
}

/// The value of `key` in whatever case: the last that is not `null`.
pub(crate) fn find<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.iter().rev().find(|(k, value)| k.eq_ignore_ascii_case(key) && !value.is_null()).map(|(_, value)| value)
}

/// What a value is, for an error line. Contents are shown of short scalars alone: the rest may be
/// long, or secret.
pub(crate) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => shown(s),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn keys_match_in_any_case_the_last_wins_and_null_is_absent() {
        let map = object(json!({"HostPort": 1, "hostport": 2, "HOSTPORT": null, "mtu": null}));
        let view = View::of(&map, "");
        assert_eq!(view.uint("hostPort", 0..=9).unwrap(), Some(2));
        assert_eq!(view.raw("mtu"), None);
        assert!(!view.bool("mtu").unwrap());
        assert!(view.objects("mtu").unwrap().is_empty());
    }

    #[test]
    fn values_are_read_by_type() {
        let map =
            object(json!({"s": "", "b": true, "n": 4094, "i": -3, "l": ["a", "b"], "o": {"x": 1}, "os": [{}, {}],
            "ip": "fd00::1", "noip": "", "net": "10.1.2.3/24", "yes": "TRUE", "no": "false"}));
        let view = View::of(&map, "");
        assert_eq!((view.string("s").unwrap(), view.text("s").unwrap()), (Some(""), None));
        assert_eq!((view.opt_bool("b").unwrap(), view.opt_bool("none").unwrap()), (Some(true), None));
        assert_eq!((view.uint("n", 0..=4094).unwrap(), view.int("i").unwrap()), (Some(4094), Some(-3)));
        assert_eq!(view.strings("l").unwrap(), Some(vec!["a", "b"]));
        assert_eq!(view.objects("os").unwrap()[1].path("k"), "os[1].k");
        assert_eq!(view.object("o").unwrap().unwrap().path("x"), "o.x");
        assert_eq!(view.ip("ip").unwrap().unwrap().to_string(), "fd00::1");
        assert_eq!(view.ip("noip").unwrap(), None);
        assert_eq!(view.net("net").unwrap().unwrap().to_string(), "10.1.2.3/24");
        assert!(
            view.lenient_bool("yes").unwrap() && view.lenient_bool("b").unwrap() && !view.lenient_bool("no").unwrap()
        );
    }

    #[test]
    fn errors_name_the_whole_path_and_what_is_accepted() {
        let map = object(
            json!({"s": 1, "b": "true", "n": 4095, "f": 1.5, "neg": -1, "l": "a", "l2": ["a", 2], "o": [], "os": [{}, 1],
            "ip": "10.0.0.1/8", "net": "10.0.0.1", "odd": "maybe"}),
        );
        let view = View::of(&map, "ipam.ranges[0]");
        let error = |e: ConfigError| e.to_string().replace("ipam.ranges[0].", "");
        let cases = [
            (error(view.string("s").unwrap_err()), "s: must be a string, not 1"),
            (error(view.bool("b").unwrap_err()), "b: must be true or false, not \"true\""),
            (error(view.lenient_bool("odd").unwrap_err()), "odd: must be true or false, not \"maybe\""),
            (error(view.uint("n", 0..=4094).unwrap_err()), "n: must be a whole number from 0 to 4094, not 4095"),
            (error(view.uint("neg", 0..=1).unwrap_err()), "neg: must be a whole number from 0 to 1, not -1"),
            (error(view.int("f").unwrap_err()), "f: must be a whole number, not 1.5"),
            (error(view.strings("l").unwrap_err()), "l: must be a list, not \"a\""),
            (error(view.strings("l2").unwrap_err()), "l2[1]: must be a string, not 2"),
            (error(view.object("o").unwrap_err()), "o: must be an object, not a list"),
            (error(view.objects("os").unwrap_err()), "os[1]: must be an object, not 1"),
            (error(view.ip("ip").unwrap_err()), "ip: must be an IP address, not \"10.0.0.1/8\""),
            (error(view.net("net").unwrap_err()), "net: must be ADDRESS/PREFIX, not \"10.0.0.1\""),
        ];
        for (found, expected) in cases {
            assert_eq!(found, expected);
        }
        assert_eq!(view.string("s").unwrap_err().key, "ipam.ranges[0].s");
    }

    #[test]
    fn unknown_keys_are_listed_with_their_path_as_written() {
        let map = object(json!({"Type": "x", "MTU": 1, "Fancy": 2, "odd": 3}));
        assert_eq!(View::of(&map, "ipam").unknown(&["type", "mtu"]), ["ipam.Fancy", "ipam.odd"]);
        assert_eq!(View::of(&map, "").keys().count(), 4);
    }
}

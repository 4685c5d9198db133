//! `CNI_ARGS`: `KEY=VALUE` pairs between semicolons. Which keys mean something is left to those who
//! read them.

use std::fmt;

use super::error::{CniError, code};
use super::names::shown;

/// The pairs of `CNI_ARGS`, in the order they came. Keys differ by case, as in the reference
/// plugins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniArgs(Vec<(String, String)>);

impl CniArgs {
    /// Reads `K=V;K=V`. Each piece holds exactly one `=` (libcni's grammar: a final `;` is an error
    /// too). Code 4.
    pub fn parse(s: &str) -> Result<Self, CniError> {
        if s.is_empty() {
            return Ok(Self::default());
        }
        s.split(';')
            .enumerate()
            .map(|(i, piece)| {
                pair(piece).ok_or_else(|| {
                    CniError::new(
                        code::ENVIRONMENT,
                        format!("CNI_ARGS: pair {} is not KEY=VALUE: {}", i + 1, shown(piece)),
                    )
                    .with_details("write pairs as KEY=VALUE;KEY=VALUE, without a final `;`")
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Reads what can be read: for DEL, which has to succeed whatever the runtime sends.
    pub fn parse_lossy(s: &str) -> Self {
        Self(s.split(';').filter_map(pair).collect())
    }

    /// The value of `key`; of several the last.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Replaces the value of `key` in its place, or appends the pair. Says whether it could: a `;`
    /// or `=` cannot be written in this grammar, and such a pair is not taken, lest it smuggle in
    /// another.
    pub fn set(&mut self, key: &str, value: impl Into<String>) -> bool {
        let value = value.into();
        let writable = |s: &str| !s.contains([';', '=', '\0']);
        if key.is_empty() || !writable(key) || !writable(&value) {
            return false;
        }
        match self.0.iter().position(|(k, _)| k == key) {
            Some(first) => {
                self.0[first].1 = value;
                let mut at = 0;
                self.0.retain(|(k, _)| {
                    at += 1;
                    k != key || at == first + 1
                });
            }
            None => self.0.push((key.to_owned(), value)),
        }
        true
    }

    /// Removes `key`, however often it is there.
    pub fn remove(&mut self, key: &str) {
        self.0.retain(|(k, _)| k != key);
    }

    /// The pairs in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether there is no pair at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `IgnoreUnknown` is set: plugins then pass over keys they do not know.
    pub fn ignore_unknown(&self) -> bool {
        self.get(IGNORE_UNKNOWN)
            .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("t"))
    }

    /// Refuses keys outside `known`, unless `IgnoreUnknown` is set, as the reference plugins do.
    /// Code 4.
    pub fn reject_unknown(&self, known: &[&str]) -> Result<(), CniError> {
        if self.ignore_unknown() {
            return Ok(());
        }
        let unknown: Vec<_> = self
            .iter()
            .map(|(key, _)| key)
            .filter(|key| *key != IGNORE_UNKNOWN && !known.contains(key))
            .map(shown)
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let accepted = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(CniError::new(
            code::ENVIRONMENT,
            format!("CNI_ARGS: unknown keys {} (known: {accepted})", unknown.join(", ")),
        )
        .with_details("correct them, or add IgnoreUnknown=1"))
    }
}

const IGNORE_UNKNOWN: &str = "IgnoreUnknown";

fn pair(piece: &str) -> Option<(String, String)> {
    let (key, value) = piece.split_once('=')?;
    (!key.is_empty() && !value.contains('=')).then(|| (key.to_owned(), value.to_owned()))
}

impl fmt::Display for CniArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (key, value)) in self.iter().enumerate() {
            write!(f, "{}{key}={value}", if i == 0 { "" } else { ";" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pairs_are_read_in_order_and_the_last_of_a_key_wins() {
        let args = CniArgs::parse("IgnoreUnknown=1;K8S_POD_NAME=web;IP=;K8S_POD_NAME=db").unwrap();
        assert_eq!(args.get("K8S_POD_NAME"), Some("db"));
        assert_eq!(args.get("IP"), Some(""));
        assert_eq!(args.get("k8s_pod_name"), None);
        assert_eq!(args.to_string(), "IgnoreUnknown=1;K8S_POD_NAME=web;IP=;K8S_POD_NAME=db");
        assert!(CniArgs::parse("").unwrap().is_empty());
    }

    #[test]
    fn pieces_that_are_no_pair_are_refused_with_their_position_and_passed_over_on_del() {
        for (bad, position) in [("A=1;", 2), (";A=1", 1), ("A", 1), ("A=1;B", 2), ("A=1=2", 1), ("=1", 1), (";", 1)] {
            let error = CniArgs::parse(bad).unwrap_err();
            assert_eq!(error.code, 4);
            assert!(error.msg.contains(&format!("pair {position} ")), "{bad}: {error}");
        }
        assert_eq!(CniArgs::parse_lossy("A=1;;B;C=2;").to_string(), "A=1;C=2");
    }

    #[test]
    fn unknown_keys_are_refused_unless_told_to_ignore_them() {
        for (text, ok) in [
            ("IP=10.0.0.1", true),
            ("IP=10.0.0.1;K8S_POD_NAME=x", false),
            ("MAC=aa", false),
            ("ip=10.0.0.1", false),
            ("IgnoreUnknown=1;MAC=aa", true),
            ("IgnoreUnknown=true;MAC=aa", true),
            ("MAC=aa;IgnoreUnknown=True", true),
            ("IgnoreUnknown=0;MAC=aa", false),
            ("IgnoreUnknown=0;IP=1", true),
            ("", true),
        ] {
            assert_eq!(CniArgs::parse(text).unwrap().reject_unknown(&["IP", "GATEWAY"]).is_ok(), ok, "{text}");
        }
        let error = CniArgs::parse("MAC=secret").unwrap().reject_unknown(&["IP"]).unwrap_err();
        assert_eq!(error.msg, "CNI_ARGS: unknown keys \"MAC\" (known: IP)");
    }

    #[test]
    fn setting_keeps_the_place_and_removes_the_other_copies() {
        let mut args = CniArgs::parse("A=1;B=2;A=3").unwrap();
        assert!(args.set("A", "9"));
        assert!(args.set("C", "4"));
        args.remove("B");
        assert_eq!(args.to_string(), "A=9;C=4");
        for (key, value) in [("D", "1;E=2"), ("D", "a=b"), ("D;E", "1"), ("", "1")] {
            assert!(!args.set(key, value));
        }
        assert_eq!(args.to_string(), "A=9;C=4");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(pairs in prop::collection::vec(("[A-Za-z0-9_]{1,8}", "[^;=\0]{0,12}"), 0..8)) {
            let text = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(";");
            let args = CniArgs::parse(&text).unwrap();
            prop_assert_eq!(args.to_string(), text);
            prop_assert_eq!(args.iter().count(), pairs.len());
        }

        #[test]
        fn no_text_panics_and_lossy_reading_takes_at_least_as_much(text in "[A=;é\0 ]{0,30}") {
            if let Ok(args) = CniArgs::parse(&text) {
                prop_assert_eq!(CniArgs::parse_lossy(&text), args);
            }
        }
    }
}

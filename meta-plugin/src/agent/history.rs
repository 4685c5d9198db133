//! The last operations with their timings, in memory: what `musubi status --history` asks the agent for. What must outlive
//! the agent is in the records.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How many operations are remembered.
pub const KEPT: usize = 100;
/// In characters: an error's message is one line for a person, but some of it comes from plugins.
const LONGEST_MESSAGE: usize = 500;

/// One operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The id that log lines, errors and Events of it carry.
    #[serde(default)]
    pub request_id: String,
    /// `ADD`, `DEL`, …
    pub verb: String,
    /// `namespace/name`; empty where there is none.
    #[serde(default)]
    pub pod: String,
    /// The sandbox; empty where the operation is about none.
    #[serde(default)]
    pub container_id: String,
    /// The networks it was about, in their order.
    #[serde(default)]
    pub networks: Vec<NetworkEntry>,
    /// When it came.
    pub started: Timestamp,
    /// From then to the answer.
    pub milliseconds: f64,
    /// Why it failed; `None` if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

/// One network of an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkEntry {
    /// `namespace/name` of a definition, else the configuration's name.
    pub network: String,
    /// Its interface in the pod.
    pub interface: String,
    /// How long its plugins took.
    pub milliseconds: f64,
}

/// How an operation failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The CNI code.
    pub code: u32,
    /// The cause, for a person.
    pub message: String,
}

/// A duration as it is shown: in milliseconds, to the microsecond.
#[must_use]
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// The last operations, each one piece of JSON: many small pieces that live long would keep all the memory of a burst.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Box<str>>>);

impl History {
    /// Remembers an operation, and forgets the oldest.
    pub fn record(&self, mut entry: Entry) {
        if let Some(error) = &mut entry.error {
            error.message = error.message.chars().take(LONGEST_MESSAGE).collect();
        }
        let entry = json!(entry).to_string().into_boxed_str();
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == KEPT {
            entries.pop_back();
        }
        entries.push_front(entry);
    }

    /// All of them, the newest first: `{"operations": […]}`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let operations: Vec<Value> = entries.iter().filter_map(|entry| serde_json::from_str(entry).ok()).collect();
        json!({"operations": operations})
    }
}

/// Reads back what [`History::to_json`] made, of another version of the agent too.
///
/// # Errors
/// It is not what it should be.
pub fn parse(history: &Value) -> Result<Vec<Entry>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Whole {
        operations: Vec<Entry>,
    }
    Whole::deserialize(history).map(|whole| whole.operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str) -> Entry {
        Entry {
            request_id: id.into(),
            verb: "ADD".into(),
            pod: "default/web".into(),
            container_id: "c1".into(),
            networks: vec![NetworkEntry {
                network: "default/blue".into(),
                interface: "net1".into(),
                milliseconds: 1.5,
            }],
            started: Timestamp::from_second(1_700_000_000).unwrap(),
            milliseconds: milliseconds(Duration::from_micros(3250)),
            error: None,
        }
    }

    #[test]
    fn the_last_hundred_are_shown_the_newest_first() {
        let history = History::default();
        assert_eq!(history.to_json(), json!({"operations": []}));
        for n in 0..250 {
            history.record(entry(&format!("r{n}")));
        }
        let entries = parse(&history.to_json()).unwrap();
        assert_eq!(entries.len(), KEPT);
        assert_eq!((&*entries[0].request_id, &*entries[99].request_id), ("r249", "r150"));
    }

    #[test]
    fn an_operation_is_shown_with_all_that_is_known_of_it() {
        let history = History::default();
        let failed = Failure { code: 7, message: "x".repeat(LONGEST_MESSAGE - 1) + "öö" };
        history.record(Entry { error: Some(failed), networks: vec![], ..entry("r1") });
        history.record(entry("r2"));
        let shown = history.to_json();
        let failed = &shown["operations"][1]["error"];
        assert_eq!(
            (&failed["code"], failed["message"].as_str().unwrap().chars().count()),
            (&json!(7), LONGEST_MESSAGE)
        );
        assert_eq!(
            shown["operations"][0],
            json!({
                "requestId": "r2", "verb": "ADD", "pod": "default/web", "containerId": "c1",
                "networks": [{"network": "default/blue", "interface": "net1", "milliseconds": 1.5}],
                "started": "2023-11-14T22:13:20Z", "milliseconds": 3.25,
            })
        );
    }

    #[test]
    fn another_version_of_the_agent_is_understood() {
        let other = json!({"operations": [{"verb": "GC", "started": "2023-11-14T22:13:20Z", "milliseconds": 1.0, "new": 1}], "more": 2});
        let entries = parse(&other).unwrap();
        assert_eq!((entries[0].verb.as_str(), entries[0].pod.as_str(), &entries[0].error), ("GC", "", &None));
        assert!(parse(&json!({})).is_err());
    }
}

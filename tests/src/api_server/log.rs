//! The log of requests: what was asked, and how it was answered.

use std::collections::VecDeque;

use hyper::body::Bytes;
use serde_json::Value;

/// How many requests the log keeps.
const LOGGED: usize = 10_000;

/// A request that was served, as the log has it.
#[derive(Debug, Clone)]
pub struct Served {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The query string as sent.
    pub query: String,
    /// `Content-Type`.
    pub content_type: String,
    /// `Accept`.
    pub accept: String,
    /// `User-Agent`.
    pub user_agent: String,
    /// The body.
    pub body: Bytes,
    /// The status of the answer; none while there is none.
    pub status: Option<u16>,
}

impl Served {
    /// The body as JSON, null when it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// The last requests.
#[derive(Debug, Default)]
pub struct Log {
    entries: VecDeque<Served>,
    /// How many came before the first entry.
    forgotten: usize,
}

impl Log {
    /// Adds a request; the number by which its answer is added.
    pub fn add(&mut self, request: Served) -> usize {
        if self.entries.len() == LOGGED {
            self.entries.pop_front();
            self.forgotten += 1;
        }
        self.entries.push_back(request);
        self.forgotten + self.entries.len() - 1
    }

    /// Adds how a request was answered.
    pub fn answered(&mut self, number: usize, status: u16) {
        let index = number.checked_sub(self.forgotten);
        if let Some(entry) = index.and_then(|index| self.entries.get_mut(index)) {
            entry.status = Some(status);
        }
    }

    /// All that is remembered, in the order it came.
    pub fn entries(&self) -> Vec<Served> {
        self.entries.iter().cloned().collect()
    }

    /// All that is remembered; it is forgotten.
    pub fn take(&mut self) -> Vec<Served> {
        self.forgotten += self.entries.len();
        self.entries.drain(..).collect()
    }
}

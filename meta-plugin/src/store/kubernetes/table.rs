//! A table of what is followed in the API, by `namespace/name`: the sink of a watch, and how long ago the server last said
//! something about it. Copies share it. Which objects are worth keeping is said where they are followed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::watch::Sink;

/// The table.
pub struct Table<T>(Arc<Mutex<Rows<T>>>);

struct Rows<T> {
    objects: HashMap<String, T>,
    heard: Option<Instant>,
    /// Counts its changes.
    revision: u64,
}

/// How a table is, for readiness and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// Objects in it.
    pub objects: usize,
    /// Since the server last said something; `None` before it ever did.
    pub age: Option<Duration>,
}

impl<T> Table<T> {
    /// How it is now.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        let rows = self.rows();
        Freshness { objects: rows.objects.len(), age: rows.heard.map(|heard| heard.elapsed()) }
    }

    /// What somebody makes of all objects, if the server was last heard within this time. The number is another after each
    /// change of them.
    pub fn read_within<R>(&self, time: Duration, read: impl FnOnce(u64, &HashMap<String, T>) -> R) -> Option<R> {
        let rows = self.rows();
        Some(read(rows.revision, rows.if_heard_within(time)?))
    }

    fn rows(&self) -> MutexGuard<'_, Rows<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pretends that the server has been silent.
    #[cfg(test)]
    pub(crate) fn last_heard(&self, ago: Duration) {
        self.rows().heard = Instant::now().checked_sub(ago);
    }
}

impl<T: Clone> Table<T> {
    /// An object, if the server was last heard within this time.
    #[must_use]
    pub fn heard_within(&self, time: Duration, name: &str) -> Option<T> {
        self.rows().if_heard_within(time)?.get(name).cloned()
    }
}

impl<T> Rows<T> {
    fn if_heard_within(&self, time: Duration) -> Option<&HashMap<String, T>> {
        self.heard.is_some_and(|heard| heard.elapsed() <= time).then_some(&self.objects)
    }
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Rows { objects: HashMap::new(), heard: None, revision: 0 })))
    }
}

impl<T: Send + PartialEq> Sink<T> for Table<T> {
    fn replace(&self, objects: Vec<(String, T)>) {
        let mut rows = self.rows();
        rows.objects = objects.into_iter().collect();
        rows.revision += 1;
    }

    /// An object that says nothing new stays where it is: replaced each time, the table would end up scattered over all
    /// the memory that was in use at some time.
    fn apply(&self, name: String, object: T) {
        let mut rows = self.rows();
        if rows.objects.get(&name) != Some(&object) {
            rows.objects.insert(name, object);
            rows.revision += 1;
        }
    }

    fn remove(&self, name: &str) {
        let mut rows = self.rows();
        if rows.objects.remove(name).is_some() {
            rows.revision += 1;
        }
    }

    fn heard(&self) {
        self.rows().heard = Some(Instant::now());
    }
}

//! What the server's thread and the handle that tests hold share: the store, the settings, the log, and the signals by which
//! watches learn that there is something new.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch as signal;

use super::access::Tokens;
use super::faults::{Fault, Rules};
use super::log::Log;
use super::store::Store;

/// All that is shared.
#[derive(Debug)]
pub struct Shared {
    store: Mutex<Store>,
    tokens: Mutex<Tokens>,
    settings: Mutex<Settings>,
    /// What goes wrong.
    pub faults: Mutex<Rules>,
    /// What was asked.
    pub log: Mutex<Log>,
    /// Where the services of webhooks are.
    pub services: Mutex<HashMap<String, SocketAddr>>,
    /// What watches wait for.
    pub signals: signal::Sender<Signals>,
}

/// What watches wait for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Signals {
    /// The newest resourceVersion.
    pub version: u64,
    /// Whether they are silent.
    pub paused: bool,
    /// How often all of them were closed.
    pub closed: u64,
}

/// What a test may set.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long each answer takes.
    pub latency: Duration,
    /// The time between bookmarks.
    pub bookmark_every: Duration,
    /// Whether watches may begin with all that is there.
    pub streaming_lists: bool,
}

impl Shared {
    /// A server without objects.
    pub fn new() -> Self {
        let settings =
            Settings { latency: Duration::ZERO, bookmark_every: Duration::from_secs(60), streaming_lists: true };
        Self {
            store: Mutex::new(Store::new()),
            tokens: Mutex::default(),
            settings: Mutex::new(settings),
            faults: Mutex::default(),
            log: Mutex::default(),
            services: Mutex::default(),
            signals: signal::Sender::new(Signals::default()),
        }
    }

    /// The store; not to be held while waiting for anything.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    /// The tokens.
    pub fn tokens(&self) -> MutexGuard<'_, Tokens> {
        lock(&self.tokens)
    }

    /// A new token of the account that our programs use; with `rules`, it may do what a role of these rules allows.
    pub fn issue_token(&self, rules: Option<Vec<Value>>) -> String {
        let token = format!("token-{}", super::object::uid());
        self.tokens().add(token.clone(), "system:serviceaccount:kube-system:musubi", rules);
        token
    }

    /// The settings as they are now.
    pub fn settings(&self) -> Settings {
        *lock(&self.settings)
    }

    /// Changes settings.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut lock(&self.settings));
    }

    /// What befalls a request.
    pub fn fault(&self, method: &str, path: &str) -> Option<Fault> {
        lock(&self.faults).take(method, path)
    }

    /// Works on the store, and tells watches what came of it.
    pub fn write<T>(&self, work: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let before = store.version();
        let result = work(&mut store);
        let version = store.version();
        drop(store);
        if version != before {
            self.signals.send_modify(|signals| signals.version = signals.version.max(version));
        }
        result
    }
}

/// The value, also when a test has failed while it held it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

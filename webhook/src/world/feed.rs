//! How what is followed comes into the world: one feed a kind of object, which knows the names that it has brought, so that
//! a new list takes out what is gone.

use std::collections::{BTreeMap, HashSet};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use musubi::store::KnownPod;
use musubi::store::kubernetes::table::Freshness;
use musubi::store::kubernetes::watch::Sink;
use musubi::store::manifest::Object;
use musubi_crds::AttachmentPolicySpec;

use super::{Known, State};

/// Labels of a namespace.
pub struct Labels(pub BTreeMap<String, String>);

/// What can be fed; objects are named as in [`Sink`].
pub(super) trait Fed: Send {
    /// Puts it into the world.
    fn apply(self, state: &mut State, name: &str);
    /// Takes one out.
    fn remove(state: &mut State, name: &str);
}

/// One kind's feed; copies share it.
pub struct Feed<K> {
    state: Arc<RwLock<State>>,
    brought: Arc<Mutex<Brought>>,
    kind: PhantomData<fn(K)>,
}

#[derive(Default)]
struct Brought {
    names: HashSet<String>,
    heard: Option<Instant>,
}

impl<K> Feed<K> {
    /// A feed of a world.
    pub(super) fn of(state: &Arc<RwLock<State>>) -> Self {
        Self { state: Arc::clone(state), brought: Arc::default(), kind: PhantomData }
    }

    /// Whether it has brought an object.
    pub fn knows(&self, name: &str) -> bool {
        self.brought().names.contains(name)
    }

    /// How it is now.
    pub fn freshness(&self) -> Freshness {
        let brought = self.brought();
        Freshness { objects: brought.names.len(), age: brought.heard.map(|heard| heard.elapsed()) }
    }

    fn brought(&self) -> MutexGuard<'_, Brought> {
        self.brought.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Clone for Feed<K> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), brought: Arc::clone(&self.brought), kind: PhantomData }
    }
}

/// The world is locked first, here as everywhere.
impl<K: Fed> Sink<K> for Feed<K> {
    fn replace(&self, objects: Vec<(String, K)>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut brought = self.brought();
        let mut gone = std::mem::take(&mut brought.names);
        for (name, object) in objects {
            gone.remove(&name);
            object.apply(&mut state, &name);
            brought.names.insert(name);
        }
        for name in gone {
            K::remove(&mut state, &name);
        }
    }

    fn apply(&self, name: String, object: K) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        object.apply(&mut state, &name);
        self.brought().names.insert(name);
    }

    fn remove(&self, name: &str) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        K::remove(&mut state, name);
        self.brought().names.remove(name);
    }

    fn heard(&self) {
        self.brought().heard = Some(Instant::now());
    }
}

fn parts(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or(("", name))
}

impl Fed for Known {
    fn apply(self, state: &mut State, name: &str) {
        state.demands.insert(name.to_owned(), self.demand);
        state.checks.apply(Object::Definition(self.definition));
    }

    fn remove(state: &mut State, name: &str) {
        state.demands.remove(name);
        let (namespace, name) = parts(name);
        state.checks.remove_definition(namespace, name);
    }
}

impl Fed for KnownPod {
    fn apply(self, state: &mut State, _: &str) {
        state.checks.apply(Object::Pod(self));
    }

    fn remove(state: &mut State, name: &str) {
        let (namespace, name) = parts(name);
        state.checks.remove_pod(namespace, name);
    }
}

impl Fed for AttachmentPolicySpec {
    fn apply(self, state: &mut State, name: &str) {
        match self.problem() {
            Some(problem) => state.checks.break_policy(name.to_owned(), problem),
            None => state.checks.apply(Object::Policy(name.to_owned(), self)),
        }
    }

    fn remove(state: &mut State, name: &str) {
        state.checks.remove_policy(name);
    }
}

impl Fed for Labels {
    fn apply(self, state: &mut State, name: &str) {
        state.checks.apply(Object::Namespace(name.to_owned(), self.0));
    }

    fn remove(state: &mut State, name: &str) {
        state.checks.remove_namespace(name);
    }
}

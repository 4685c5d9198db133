//! The objects, their one growing resourceVersion, and the history from which watches are served. It knows nothing of HTTP,
//! and takes objects as they are: `object.rs` makes them complete before.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use hyper::body::Bytes;
use serde_json::Value;

use super::resources::{self, Resource};
use super::select::Selection;

/// How many changes are remembered; a client that is further behind has to list again.
const REMEMBERED: usize = 5_000;

/// The first resourceVersion, so that a watch "from 1" is from before the server remembers, as it is on a real one.
const FIRST: u64 = 1_000;

/// An object as stored: its value and its bytes, made once.
#[derive(Debug)]
pub struct Object {
    /// What it says.
    pub value: Value,
    /// The same in JSON.
    pub json: Bytes,
    /// Its resourceVersion.
    pub version: u64,
}

impl Object {
    /// Stamps a value with a resourceVersion.
    pub fn new(mut value: Value, version: u64) -> Arc<Self> {
        value["metadata"]["resourceVersion"] = version.to_string().into();
        Self::unstamped(value, version)
    }

    /// Takes a value as it is: it will not be stored.
    pub fn unstamped(value: Value, version: u64) -> Arc<Self> {
        let json = Bytes::from(value.to_string());
        Arc::new(Self { value, json, version })
    }

    /// `namespace/name`, or the name where there is no namespace: the order of lists.
    pub fn key(&self) -> String {
        let metadata = &self.value["metadata"];
        key(metadata["namespace"].as_str(), metadata["name"].as_str().unwrap_or_default())
    }
}

/// Where an object of this name is stored.
pub fn key(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// What happened to an object, as a watcher sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It came, or began to match.
    Added,
    /// It changed.
    Modified,
    /// It went, or ceased to match.
    Deleted,
}

#[derive(Debug)]
struct Entry {
    resource: usize,
    version: u64,
    before: Option<Arc<Object>>,
    /// What it was changed to; for one that was deleted its last state, stamped with the version of the deletion.
    after: Arc<Object>,
    deleted: bool,
}

/// All objects of a resource by their keys.
pub type Objects = BTreeMap<String, Arc<Object>>;

/// The store.
#[derive(Debug)]
pub struct Store {
    resources: Vec<Arc<Resource>>,
    objects: Vec<Objects>,
    version: u64,
    oldest: u64,
    history: VecDeque<Entry>,
}

impl Store {
    /// An empty store of the known resources.
    pub fn new() -> Self {
        let resources: Vec<Arc<Resource>> = resources::known().into_iter().map(Arc::new).collect();
        let objects = resources.iter().map(|_| Objects::new()).collect();
        Self { resources, objects, version: FIRST, oldest: FIRST, history: VecDeque::new() }
    }

    /// Adds a resource, or takes the place of the one of that name.
    pub fn define(&mut self, resource: Resource) {
        match self.resource(&resource.group, &resource.version, &resource.plural) {
            Some((index, _)) => self.resources[index] = Arc::new(resource),
            None => {
                self.resources.push(Arc::new(resource));
                self.objects.push(Objects::new());
            }
        }
    }

    /// The resource of a path.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<(usize, Arc<Resource>)> {
        self.find(|r| r.group == group && r.version == version && r.plural == plural)
    }

    /// The first resource for which `matches` holds.
    pub fn find(&self, matches: impl Fn(&Resource) -> bool) -> Option<(usize, Arc<Resource>)> {
        let index = self.resources.iter().position(|resource| matches(resource))?;
        Some((index, Arc::clone(&self.resources[index])))
    }

    /// The newest resourceVersion.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The oldest resourceVersion from which can be watched.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Objects of a resource, now.
    pub fn objects(&self, resource: usize) -> &Objects {
        &self.objects[resource]
    }

    /// Objects of a resource as they were; `None` when that is no longer known.
    pub fn objects_at(&self, resource: usize, version: u64) -> Option<Objects> {
        if version < self.oldest {
            return None;
        }
        let mut objects = self.objects[resource].clone();
        for entry in self.history.iter().rev().take_while(|entry| entry.version > version) {
            if entry.resource == resource {
                match &entry.before {
                    Some(before) => objects.insert(before.key(), Arc::clone(before)),
                    None => objects.remove(&entry.after.key()),
                };
            }
        }
        Some(objects)
    }

    /// One object.
    pub fn get(&self, resource: usize, key: &str) -> Option<&Arc<Object>> {
        self.objects[resource].get(key)
    }

    /// Stores a new object, or a new state of one.
    pub fn put(&mut self, resource: usize, value: Value) -> Arc<Object> {
        self.version += 1;
        let after = Object::new(value, self.version);
        let before = self.objects[resource].insert(after.key(), Arc::clone(&after));
        self.remember(Entry { resource, version: self.version, before, after: Arc::clone(&after), deleted: false });
        after
    }

    /// Removes an object; its last state.
    pub fn remove(&mut self, resource: usize, key: &str) -> Option<Arc<Object>> {
        let before = self.objects[resource].remove(key)?;
        self.version += 1;
        let after = Object::new(before.value.clone(), self.version);
        let entry = Entry { resource, version: self.version, before: Some(before), after, deleted: true };
        let last = Arc::clone(&entry.after);
        self.remember(entry);
        Some(last)
    }

    /// Removes all that is in a namespace.
    pub fn clear_namespace(&mut self, namespace: &str) {
        let inside = format!("{namespace}/");
        for resource in 0..self.resources.len() {
            let all = self.objects[resource].keys();
            let keys: Vec<String> = all.filter(|key| key.starts_with(&inside)).cloned().collect();
            keys.iter().for_each(|key| drop(self.remove(resource, key)));
        }
    }

    /// Forgets the history, as etcd does every five minutes. Watches that are open go on.
    pub fn compact(&mut self) {
        self.version += 1;
        self.oldest = self.version;
    }

    /// What a watcher of a selection sees after a version; `None` when the history does not reach so far back.
    pub fn changes(&self, resource: usize, after: u64, selection: &Selection) -> Option<Vec<(Change, Arc<Object>)>> {
        let forgotten =
            self.history.front().is_some_and(|first| self.history.len() == REMEMBERED && first.version > after + 1);
        if forgotten && after < self.oldest {
            return None;
        }
        let first = self.history.partition_point(|entry| entry.version <= after);
        let entries = self.history.range(first..).filter(|entry| entry.resource == resource);
        Some(entries.filter_map(|entry| entry.seen_by(selection)).collect())
    }

    fn remember(&mut self, entry: Entry) {
        if self.history.len() == REMEMBERED
            && let Some(forgotten) = self.history.pop_front()
        {
            self.oldest = self.oldest.max(forgotten.version);
        }
        self.history.push_back(entry);
    }
}

impl Entry {
    fn seen_by(&self, selection: &Selection) -> Option<(Change, Arc<Object>)> {
        let matched = self.before.as_ref().filter(|before| selection.has(&before.value));
        let matches = !self.deleted && selection.has(&self.after.value);
        match (matched, matches) {
            (None, false) => None,
            (None, true) => Some((Change::Added, Arc::clone(&self.after))),
            (Some(_), true) => Some((Change::Modified, Arc::clone(&self.after))),
            (Some(before), false) => Some((Change::Deleted, Object::new(before.value.clone(), self.version))),
        }
    }
}

//! The connections that are open: no more than so many. One that comes when all places are taken gets the place of the one
//! that has been of no use for longest, so that nobody is kept out by those who only hold places.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

/// All places.
pub struct Connections {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    taken: HashMap<u64, Taken>,
}

struct Taken {
    of_use: Instant,
    wanted_back: Arc<Notify>,
}

impl Connections {
    /// So many places.
    pub fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default() }
    }

    /// How many are taken.
    pub fn open(&self) -> usize {
        self.state().taken.len()
    }

    /// Takes a place.
    pub fn enter(&self) -> Place<'_> {
        let mut state = self.state();
        let mut displaces = false;
        if state.taken.len() >= self.limit
            && let Some(id) = state.taken.iter().min_by_key(|(id, taken)| (taken.of_use, **id)).map(|(id, _)| *id)
            && let Some(taken) = state.taken.remove(&id)
        {
            taken.wanted_back.notify_one();
            displaces = true;
        }
        let (id, wanted_back) = (state.next, Arc::new(Notify::new()));
        state.next += 1;
        state.taken.insert(id, Taken { of_use: Instant::now(), wanted_back: Arc::clone(&wanted_back) });
        Place { connections: self, id, wanted_back, displaces }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place, until it is dropped or wanted back.
pub struct Place<'a> {
    connections: &'a Connections,
    id: u64,
    wanted_back: Arc<Notify>,
    /// Whether another had to go for it.
    pub displaces: bool,
}

impl Place<'_> {
    /// Waits until the place is wanted for another.
    pub async fn wanted_back(&self) {
        self.wanted_back.notified().await;
    }

    /// A request has been answered.
    pub fn was_of_use(&self) {
        if let Some(taken) = self.connections.state().taken.get_mut(&self.id) {
            taken.of_use = Instant::now();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.connections.state().taken.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_one_of_no_use_for_longest_makes_room() {
        let connections = Connections::new(2);
        let (a, b) = (connections.enter(), connections.enter());
        a.was_of_use();
        let c = connections.enter();
        assert!(c.displaces && !a.displaces && !b.displaces);
        b.wanted_back().await;
        assert_eq!(connections.open(), 2);
        drop(b);
        assert_eq!(connections.open(), 2, "its place was another's already");
        drop(a);
        assert!(!connections.enter().displaces);
    }
}

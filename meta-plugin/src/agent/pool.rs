//! The threads that operations run on: a fixed number at the most, started when there is work, and a queue of fixed length
//! in front of them. A burst waits there; memory does not grow with it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Stack of a worker in bytes: address space, of which an operation touches a part.
const STACK: usize = 1 << 20;

/// How long a worker waits for work before it ends: its stack is memory.
const REST: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// The pool; copies share the threads.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    workers: usize,
    queue: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    threads: usize,
    idle: usize,
    done: u64,
}

/// How busy a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Jobs that wait for a thread.
    pub waiting: usize,
    /// Jobs at work.
    pub running: usize,
    /// Jobs that have ended.
    pub done: u64,
}

impl Pool {
    /// A pool of so many threads with room for so many waiting jobs.
    #[must_use]
    pub fn new(workers: usize, queue: usize) -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), work: Condvar::new(), workers, queue }))
    }

    /// Takes a job, or gives it back when there is no room for it.
    ///
    /// # Errors
    /// The job.
    pub fn submit(&self, job: Job) -> Result<(), Job> {
        let mut state = self.0.lock();
        let has_thread = state.waiting.len() < state.idle;
        if !has_thread && state.threads >= self.0.workers && state.waiting.len() >= self.0.queue {
            return Err(job);
        }
        state.waiting.push_back(job);
        if !has_thread && state.threads < self.0.workers {
            let shared = Arc::clone(&self.0);
            let builder = std::thread::Builder::new().name("operation".to_owned()).stack_size(STACK);
            match builder.spawn(move || shared.work()) {
                Ok(_) => state.threads += 1,
                // Those that are there get to it.
                Err(_) if state.threads > 0 => {}
                Err(_) => return Err(state.waiting.pop_back().unwrap_or_else(|| Box::new(|| ()))),
            }
        }
        drop(state);
        self.0.work.notify_one();
        Ok(())
    }

    /// How busy it is now.
    #[must_use]
    pub fn load(&self) -> Load {
        let state = self.0.lock();
        Load { waiting: state.waiting.len(), running: state.threads - state.idle, done: state.done }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker's life: jobs never panic out of it, they are guarded where they are made.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.waiting.pop_front() {
                drop(state);
                job();
                state = self.lock();
                state.done += 1;
                continue;
            }
            state.idle += 1;
            let (woken, wait) = self.work.wait_timeout(state, REST).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if wait.timed_out() && state.waiting.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_waits_in_order_and_what_is_too_much_comes_back() {
        let pool = Pool::new(2, 3);
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let (done, finished) = mpsc::channel();
        let submit = |number: usize| {
            let (gate, done) = (Arc::clone(&gate), done.clone());
            pool.submit(Box::new(move || {
                gate.lock().unwrap().recv().unwrap();
                done.send(number).unwrap();
            }))
            .is_ok()
        };
        assert!(submit(0) && submit(1));
        while pool.load().running < 2 || pool.load().waiting > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(submit(2) && submit(3) && submit(4));
        assert!(!submit(5), "two run, three wait");
        assert_eq!(pool.load(), Load { waiting: 3, running: 2, done: 0 });
        for _ in 0..5 {
            release.send(()).unwrap();
        }
        let mut order: Vec<usize> = (0..5).map(|_| finished.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2, 3, 4]);
        assert!(submit(6), "there is room again");
        release.send(()).unwrap();
        assert_eq!(finished.recv_timeout(Duration::from_secs(10)), Ok(6));
    }
}

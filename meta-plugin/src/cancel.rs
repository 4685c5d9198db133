//! Cancelling an operation whose caller has gone away: a flag that the engine looks at between its steps, and that whatever
//! waits for somebody else can wait for too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use musubi_delegates::cni::{CniError, code};
use tokio::sync::Notify;

/// Set once, never taken back. Copies share one flag.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    set: AtomicBool,
    waiting: Notify,
}

impl Cancel {
    /// Sets it.
    pub fn set(&self) {
        self.0.set.store(true, Ordering::Release);
        self.0.waiting.notify_waiters();
    }

    /// Whether it is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.set.load(Ordering::Acquire)
    }

    /// Waits until it is.
    pub async fn wait(&self) {
        let waiting = self.0.waiting.notified();
        tokio::pin!(waiting);
        // Whoever sets it after this line wakes us; who did before is seen by the look that follows.
        waiting.as_mut().enable();
        if !self.is_set() {
            waiting.await;
        }
    }

    /// An error once it is set.
    ///
    /// # Errors
    /// Code 11: nobody waits for the outcome any more.
    pub fn check(&self) -> Result<(), CniError> {
        if self.is_set() { Err(gone()) } else { Ok(()) }
    }
}

/// The error of an operation that was cancelled.
#[must_use]
pub fn gone() -> CniError {
    CniError::new(code::TRY_AGAIN, "the caller went away before the operation ended; it is taken back")
}

//! Waiting for what others do by themselves and nobody tells of: short pauses first, then longer ones.

use std::time::Duration;

/// The first pause: what the kernel does in a work queue is mostly over by then.
const FIRST: Duration = Duration::from_micros(20);

/// Pauses between looks at a state, each twice as long as the one before.
#[derive(Debug)]
pub struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    /// Pauses up to so long.
    #[must_use]
    pub fn up_to(longest: Duration) -> Self {
        Self { next: FIRST.min(longest), longest }
    }

    /// Sleeps for the next one.
    pub fn sleep(&mut self) {
        std::thread::sleep(self.next);
        self.next = (self.next * 2).min(self.longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest() {
        let mut pauses = Pauses::up_to(Duration::from_micros(100));
        let mut seen = Vec::new();
        for _ in 0..5 {
            seen.push(pauses.next.as_micros());
            pauses.sleep();
        }
        assert_eq!(seen, [20, 40, 80, 100, 100]);
    }
}

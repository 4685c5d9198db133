//! What is about to change the world says so in the log: one line at DEBUG right before it, with the name of the kind of
//! change. Who reads the log knows how far an operation came, and a test can end the process at each of these points.
//! Never a secret: names of things, no configuration.

use std::fmt::Display;

/// The target of these lines.
pub const TARGET: &str = "musubi::mutation";

/// Says that `what` is about to be changed. `point` is the kind of change, as `link.create`, and stays what it is.
pub fn before(point: &'static str, what: impl Display) {
    tracing::debug!(target: TARGET, mutation = point, "{what}");
}

//! The node agent: what makes operations faster and looks after what they leave. It is never needed.

pub mod reconcile;

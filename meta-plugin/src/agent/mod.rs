//! The node agent: the same engine, kept in memory in front of its cache.

pub mod cache;
pub mod client;
pub mod pool;
pub mod protocol;
pub mod watch;

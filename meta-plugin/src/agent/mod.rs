//! The node agent: what is asked of it by configuration, what it keeps for runtime and plugin, and what it shows of itself.

pub mod config;
pub mod credentials;
pub mod history;
pub mod host_mounts;
pub mod metrics;
pub mod primary;
pub mod runtime_conf;

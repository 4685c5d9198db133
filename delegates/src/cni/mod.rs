//! The CNI protocol, versions 0.1.0 to 1.1.0: what a runtime sends, what a plugin answers, and the
//! words both use. No interface is touched here; what a request leads to is left to the delegates
//! and to the head.

pub mod args;
pub mod conf;
pub mod error;
pub mod names;
pub mod request;
pub mod result;
pub mod version;
pub mod view;

pub use args::CniArgs;
pub use conf::{ConfList, NetConf, ValidAttachment};
pub use error::{CniError, ConfigError, code};
pub use names::{ContainerId, InterfaceName, NetworkName};
pub use request::{Command, Request};
pub use result::{CniResult, Dns, Interface, IpConfig, Route};
pub use version::Version;
pub use view::View;

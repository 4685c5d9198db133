//! What the end-to-end tests share: namespaces, a node to run our plugin on, an API server, and the virtual machine.

pub mod api_server;
pub mod cluster;
pub mod netns;
pub mod node;
pub mod recorded;
pub mod vm;

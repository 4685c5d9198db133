//! What the end-to-end tests share: namespaces, a node to run our plugin on, and the virtual machine.

pub mod agent;
pub mod netns;
pub mod node;
pub mod recorded;
pub mod vm;

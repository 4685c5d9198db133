//! What the end-to-end tests share: namespaces, a node to run our plugin on, the virtual machine; and the container image.

pub mod agent;
pub mod image;
pub mod netns;
pub mod node;
pub mod recorded;
pub mod vm;

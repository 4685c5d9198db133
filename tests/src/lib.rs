//! What the end-to-end tests share: namespaces, a node to run our plugin on, the virtual machine and a real
//! runtime.

pub mod containerd;
pub mod netns;
pub mod node;
pub mod recorded;
pub mod vm;

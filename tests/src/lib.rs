//! What the end-to-end tests share: namespaces, a node to run our plugin on, fakes of its neighbours, and the virtual machine.

pub mod grpc;
pub mod kubelet;
pub mod netns;
pub mod node;
pub mod recorded;
pub mod sandboxes;
pub mod vm;

//! What the end-to-end tests share: namespaces, a node to run our plugin on, fakes of its neighbours, the virtual machine,
//! and the container image.

pub mod agent;
pub mod grpc;
pub mod image;
pub mod kubelet;
pub mod netns;
pub mod node;
pub mod recorded;
pub mod sandboxes;
pub mod vm;

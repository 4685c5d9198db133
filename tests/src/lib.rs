//! What the end-to-end tests share: namespaces, a node to run our plugin on, a real runtime, an API server, the admission server, fakes of the
//! node's other neighbours, the virtual machine, and the container image.

pub mod agent;
pub mod api_server;
pub mod cluster;
pub mod containerd;
pub mod gate;
pub mod grpc;
pub mod image;
pub mod kubelet;
pub mod mutations;
pub mod netns;
pub mod node;
pub mod process;
pub mod recorded;
pub mod relay;
pub mod sandboxes;
pub mod vm;

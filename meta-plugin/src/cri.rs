//! The container runtime's own view, by CRI: which sandboxes it knows. A sandbox whose ADD still runs is not among them;
//! what that means for who may remove what is the caller's business.

use std::path::Path;

use musubi_delegates::cni::{CniError, code};
use tonic::Status;
use tonic::transport::Channel;

use crate::grpc;
use crate::grpc::runtime::runtime_service_client::RuntimeServiceClient;
use crate::grpc::runtime::{ListPodSandboxRequest, PodSandbox, PodSandboxState, VersionRequest};

/// A sandbox that the runtime knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// `CNI_CONTAINERID` of its requests.
    pub id: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid, as the kubelet has it.
    pub uid: String,
    /// Whether it runs; else it has been stopped and waits for its removal.
    pub is_ready: bool,
}

/// All sandboxes that the runtime behind a socket knows, stopped ones too. Wait for it with [`grpc::wait`].
///
/// # Errors
/// Code 11: it cannot be asked.
pub async fn sandboxes(socket: &Path) -> Result<Vec<Sandbox>, CniError> {
    let answer = connect(socket).await?.list_pod_sandbox(ListPodSandboxRequest {}).await;
    let answer = answer.map_err(|status| refused(socket, &status))?.into_inner();
    Ok(answer.items.into_iter().map(Sandbox::from).collect())
}

/// The name and version of the runtime behind a socket. Wait for it with [`grpc::wait`].
///
/// # Errors
/// Code 11: it cannot be asked.
pub async fn version(socket: &Path) -> Result<String, CniError> {
    let answer = connect(socket).await?.version(VersionRequest {}).await;
    let answer = answer.map_err(|status| refused(socket, &status))?.into_inner();
    Ok(format!("{} {}", answer.runtime_name, answer.runtime_version))
}

async fn connect(socket: &Path) -> Result<RuntimeServiceClient<Channel>, CniError> {
    let channel = grpc::connect(socket).await.map_err(|e| e.context("container runtime"))?;
    Ok(RuntimeServiceClient::new(channel).max_decoding_message_size(grpc::MAX_ANSWER))
}

fn refused(socket: &Path, status: &Status) -> CniError {
    let problem = grpc::words(status);
    CniError::new(code::TRY_AGAIN, format!("container runtime at {} does not answer: {problem}", socket.display()))
}

impl From<PodSandbox> for Sandbox {
    fn from(sandbox: PodSandbox) -> Self {
        let is_ready = sandbox.state() == PodSandboxState::SandboxReady;
        let pod = sandbox.metadata.unwrap_or_default();
        Self { id: sandbox.id, namespace: pod.namespace, name: pod.name, uid: pod.uid, is_ready }
    }
}

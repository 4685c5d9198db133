//! A container runtime as far as listing its sandboxes goes, for tests of what is done about sandboxes that are gone. A real
//! runtime's behaviour is tested with a real one.

use std::path::Path;
use std::sync::{Arc, Mutex};

use tonic::service::Routes;
use tonic::{Request, Response, Status};

use self::interface::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use self::interface::{
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxMetadata, PodSandboxState, VersionRequest,
    VersionResponse,
};
use crate::grpc::Served;

#[allow(missing_docs, clippy::all)]
mod interface {
    include!(concat!(env!("OUT_DIR"), "/servers/runtime.v1.rs"));
}

type Known = Arc<Mutex<Result<Vec<PodSandbox>, String>>>;

/// A runtime that runs until it is dropped.
#[derive(Debug)]
pub struct Sandboxes {
    known: Known,
    _served: Served,
}

impl Sandboxes {
    /// Starts one behind a socket that knows no sandbox.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn start(socket: &Path) -> Self {
        let known = Arc::new(Mutex::new(Ok(Vec::new())));
        let server = RuntimeServiceServer::new(Answers(Arc::clone(&known)));
        Self { known, _served: Served::start(socket, Routes::new(server)) }
    }

    /// Has it know these and no others: id, pod as `namespace/name`, uid, whether it runs.
    pub fn are(&self, sandboxes: &[(&str, &str, &str, bool)]) {
        let sandboxes = sandboxes.iter().map(|(id, pod, uid, is_ready)| {
            let (namespace, name) = pod.split_once('/').expect("namespace/name");
            let state = if *is_ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready };
            let metadata =
                PodSandboxMetadata { name: name.to_owned(), uid: (*uid).to_owned(), namespace: namespace.to_owned() };
            PodSandbox { id: (*id).to_owned(), metadata: Some(metadata), state: state.into() }
        });
        self.set(Ok(sandboxes.collect()));
    }

    /// Has it refuse to say.
    pub fn refuse(&self, why: &str) {
        self.set(Err(why.to_owned()));
    }

    fn set(&self, known: Result<Vec<PodSandbox>, String>) {
        *self.known.lock().expect("no test panics while it holds them") = known;
    }
}

#[derive(Debug)]
struct Answers(Known);

#[tonic::async_trait]
impl RuntimeService for Answers {
    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        let answer = VersionResponse { runtime_name: "fake".to_owned(), runtime_version: "1.0".to_owned() };
        Ok(Response::new(answer))
    }

    async fn list_pod_sandbox(
        &self,
        _: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let known = self.0.lock().expect("no test panics while it holds them").clone();
        Ok(Response::new(ListPodSandboxResponse { items: known.map_err(Status::internal)? }))
    }
}

//! A kubelet as far as its PodResources API goes: tests say which pods it has admitted with which devices, and how it
//! misbehaves. Like the real one it lists devices in another order each time.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tonic::service::Routes;
use tonic::{Request, Response, Status};

use self::interface::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use self::interface::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices, ContainerResources,
    GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest, ListPodResourcesResponse, PodResources,
};
use crate::grpc::Served;

#[allow(missing_docs, clippy::all)]
mod interface {
    include!(concat!(env!("OUT_DIR"), "/servers/v1.rs"));
}

/// What becomes of `Get`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Get {
    /// It is answered, as by recent kubelets.
    #[default]
    Served,
    /// Its feature is off, as it was by default for long.
    Disabled,
    /// There is no such call, as in old kubelets.
    Unknown,
}

#[derive(Debug, Default)]
struct State {
    pods: Vec<PodResources>,
    allocatable: BTreeSet<String>,
    get: Get,
    delay: Duration,
    rejects: usize,
    calls: Vec<String>,
}

/// A kubelet that runs until it is dropped.
#[derive(Debug)]
pub struct Kubelet {
    state: Arc<Mutex<State>>,
    _served: Served,
}

impl Kubelet {
    /// Starts one behind a socket, without any pod or device.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn start(socket: &Path) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let server = PodResourcesListerServer::new(Answers(Arc::clone(&state)));
        Self { state, _served: Served::start(socket, Routes::new(server)) }
    }

    /// Admits a pod `namespace/name`; each container has resources with the ids of their devices. The resources become
    /// allocatable.
    pub fn admit(&self, pod: &str, containers: &[&[(&str, &[&str])]]) {
        let (namespace, name) = pod.split_once('/').expect("namespace/name");
        let devices = |container: &&[(&str, &[&str])]| {
            let devices = container.iter().map(|(resource, ids)| ContainerDevices {
                resource_name: (*resource).to_owned(),
                device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            });
            devices.collect::<Vec<_>>()
        };
        let containers: Vec<ContainerResources> = containers
            .iter()
            .enumerate()
            .map(|(n, container)| ContainerResources { name: format!("c{n}"), devices: devices(container) })
            .collect();
        let mut state = self.state();
        let resources = containers.iter().flat_map(|container| &container.devices);
        state.allocatable.extend(resources.map(|device| device.resource_name.clone()));
        state.pods.push(PodResources { name: name.to_owned(), namespace: namespace.to_owned(), containers });
    }

    /// Gives the node devices of a resource.
    pub fn make_allocatable(&self, resource: &str) {
        self.state().allocatable.insert(resource.to_owned());
    }

    /// Says what becomes of `Get`.
    pub fn serve_get(&self, get: Get) {
        self.state().get = get;
    }

    /// Has every answer take its time.
    pub fn delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// Has it reject so many calls, as it does with more than it serves in a second.
    pub fn reject(&self, calls: usize) {
        self.state().rejects = calls;
    }

    /// The calls so far, by name; they are forgotten.
    #[must_use]
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the state")
    }
}

#[derive(Debug)]
struct Answers(Arc<Mutex<State>>);

impl Answers {
    /// Notes a call; what it sees is the state after the delay.
    async fn call<T>(
        &self,
        name: &str,
        answer: impl FnOnce(&mut State) -> Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        let lock = || self.0.lock().expect("no test panics while it holds the state");
        let delay = {
            let mut state = lock();
            state.calls.push(name.to_owned());
            state.delay
        };
        tokio::time::sleep(delay).await;
        let mut state = lock();
        for device in state.pods.iter_mut().flat_map(|pod| &mut pod.containers).flat_map(|c| &mut c.devices) {
            device.device_ids.reverse();
        }
        if state.rejects > 0 {
            state.rejects -= 1;
            return Err(Status::resource_exhausted("rejected by rate limit"));
        }
        answer(&mut state).map(Response::new)
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Answers {
    async fn list(&self, _: Request<ListPodResourcesRequest>) -> Result<Response<ListPodResourcesResponse>, Status> {
        self.call("List", |state| Ok(ListPodResourcesResponse { pod_resources: state.pods.clone() })).await
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        let device =
            |resource: &String| ContainerDevices { resource_name: resource.clone(), device_ids: vec!["x".into()] };
        self.call("GetAllocatableResources", |state| {
            Ok(AllocatableResourcesResponse { devices: state.allocatable.iter().map(device).collect() })
        })
        .await
    }

    async fn get(&self, request: Request<GetPodResourcesRequest>) -> Result<Response<GetPodResourcesResponse>, Status> {
        let GetPodResourcesRequest { pod_name, pod_namespace } = request.into_inner();
        self.call("Get", |state| match state.get {
            Get::Unknown => Err(Status::unimplemented("unknown method Get for service v1.PodResourcesLister")),
            Get::Disabled => Err(Status::unknown("PodResources API Get method disabled")),
            Get::Served => {
                let pod = state.pods.iter().find(|pod| pod.name == pod_name && pod.namespace == pod_namespace);
                let missing = || Status::unknown(format!("pod {pod_name} in namespace {pod_namespace} not found"));
                Ok(GetPodResourcesResponse { pod_resources: Some(pod.cloned().ok_or_else(missing)?) })
            }
        })
        .await
    }
}

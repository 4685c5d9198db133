//! The kubelet's side of the Container Runtime Interface: pods described as the kubelet describes them, and blocking calls
//! that many threads may make at once.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use api::image_service_client::ImageServiceClient;
use api::runtime_service_client::RuntimeServiceClient;

/// The interface's own messages (`proto/cri.proto`).
pub mod api {
    #![allow(missing_docs, reason = "generated")]
    #![allow(clippy::all, reason = "generated")]
    tonic::include_proto!("runtime.v1");
}

/// No call may take longer.
const ENOUGH: Duration = Duration::from_secs(60);

/// A pod as the kubelet has it from its API server.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its own annotations.
    pub annotations: HashMap<String, String>,
    /// Its TCP ports: on the host, in the pod.
    pub host_ports: Vec<(i32, i32)>,
    /// How many sandboxes it had before.
    pub attempt: u32,
}

impl Pod {
    /// A pod of the namespace `default` that selects networks; the empty text selects none.
    #[must_use]
    pub fn selecting(name: &str, networks: &str) -> Self {
        let annotation = ("k8s.v1.cni.cncf.io/networks".to_owned(), networks.to_owned());
        Self {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-of-{name}"),
            annotations: Some(annotation).filter(|(_, networks)| !networks.is_empty()).into_iter().collect(),
            ..Self::default()
        }
    }

    /// The same with one more annotation.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The sandbox that the kubelet asks for: the pod's annotations and two of its own, labels that say whose it is.
    fn sandbox_config(&self, cgroup_parent: &str) -> api::PodSandboxConfig {
        let pairs = |pairs: &[(&str, &str)]| {
            let owned = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            owned.collect::<HashMap<String, String>>()
        };
        let mut annotations = self.annotations.clone();
        annotations.extend(pairs(&[
            ("kubernetes.io/config.seen", "2026-01-01T00:00:00.000000000Z"),
            ("kubernetes.io/config.source", "api"),
        ]));
        let ports = self.host_ports.iter();
        api::PodSandboxConfig {
            metadata: Some(api::PodSandboxMetadata {
                name: self.name.clone(),
                uid: self.uid.clone(),
                namespace: self.namespace.clone(),
                attempt: self.attempt,
            }),
            hostname: self.name.clone(),
            dns_config: Some(api::DnsConfig { servers: vec!["10.96.0.10".to_owned()] }),
            port_mappings: ports
                .map(|&(host_port, container_port)| api::PortMapping { container_port, host_port })
                .collect(),
            labels: pairs(&[
                ("io.kubernetes.pod.name", &self.name),
                ("io.kubernetes.pod.namespace", &self.namespace),
                ("io.kubernetes.pod.uid", &self.uid),
            ]),
            annotations,
            linux: Some(api::LinuxPodSandboxConfig { cgroup_parent: cgroup_parent.to_owned() }),
        }
    }
}

/// A connection to a runtime. It outlives the runtime's restarts.
#[derive(Debug)]
pub struct Cri {
    calls: Runtime,
    channel: Channel,
    cgroup_parent: String,
}

impl Cri {
    /// A connection by the runtime's socket, made with the first call. Pods get their control groups below
    /// `cgroup_parent`.
    ///
    /// # Panics
    /// When the process can have no more threads.
    #[must_use]
    pub fn new(socket: &Path, cgroup_parent: &str) -> Self {
        let calls = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a thread");
        let endpoint = Endpoint::new(format!("unix:{}", socket.display())).expect("the path of a socket");
        let channel = calls.block_on(async { endpoint.timeout(ENOUGH).connect_lazy() });
        Self { calls, channel, cgroup_parent: cgroup_parent.to_owned() }
    }

    /// RunPodSandbox: the sandbox's id.
    ///
    /// # Errors
    /// As the runtime says.
    pub fn run(&self, pod: &Pod) -> Result<String, Status> {
        let config = Some(pod.sandbox_config(&self.cgroup_parent));
        let answer = self.wait(self.runtime().run_pod_sandbox(api::RunPodSandboxRequest { config }))?;
        Ok(answer.pod_sandbox_id)
    }

    /// StopPodSandbox.
    ///
    /// # Errors
    /// As the runtime says.
    pub fn stop(&self, id: &str) -> Result<(), Status> {
        let request = api::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.wait(self.runtime().stop_pod_sandbox(request)).map(drop)
    }

    /// RemovePodSandbox.
    ///
    /// # Errors
    /// As the runtime says.
    pub fn remove(&self, id: &str) -> Result<(), Status> {
        let request = api::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.wait(self.runtime().remove_pod_sandbox(request)).map(drop)
    }

    /// ListPodSandbox.
    ///
    /// # Errors
    /// As the runtime says.
    pub fn list(&self) -> Result<Vec<api::PodSandbox>, Status> {
        Ok(self.wait(self.runtime().list_pod_sandbox(api::ListPodSandboxRequest {}))?.items)
    }

    /// PodSandboxStatus, with what the runtime tells besides.
    ///
    /// # Errors
    /// As the runtime says.
    pub fn status(&self, id: &str) -> Result<api::PodSandboxStatusResponse, Status> {
        let request = api::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        self.wait(self.runtime().pod_sandbox_status(request))
    }

    /// The runtime's name and version.
    ///
    /// # Errors
    /// As the runtime says.
    pub fn version(&self) -> Result<(String, String), Status> {
        let answer = self.wait(self.runtime().version(api::VersionRequest {}))?;
        Ok((answer.runtime_name, answer.runtime_version))
    }

    /// Why the node's network is not ready, by the runtime's condition `NetworkReady`; `None` when it is.
    ///
    /// # Errors
    /// As the runtime says.
    pub fn network_problem(&self) -> Result<Option<String>, Status> {
        let answer = self.wait(self.runtime().status(api::StatusRequest { verbose: false }))?;
        let condition = answer.status.into_iter().flat_map(|s| s.conditions).find(|c| c.r#type == "NetworkReady");
        let condition = condition.ok_or_else(|| Status::not_found("no condition NetworkReady"))?;
        Ok(if condition.status { None } else { Some(condition.message) })
    }

    /// The CNI configurations that the runtime works with, as they were written.
    ///
    /// # Errors
    /// As the runtime says.
    ///
    /// # Panics
    /// When the runtime is none that tells.
    pub fn configurations(&self) -> Result<Vec<String>, Status> {
        let answer = self.wait(self.runtime().status(api::StatusRequest { verbose: true }))?;
        let told: Value = serde_json::from_str(&answer.info["cniconfig"]).expect("JSON");
        let networks = told["Networks"].as_array().into_iter().flatten();
        Ok(networks.filter_map(|network| network["Config"]["Source"].as_str().map(str::to_owned)).collect())
    }

    /// Whether the runtime has this image.
    ///
    /// # Errors
    /// As the runtime says.
    pub fn has_image(&self, image: &str) -> Result<bool, Status> {
        let image = Some(api::ImageSpec { image: image.to_owned() });
        let mut images = ImageServiceClient::new(self.channel.clone());
        Ok(self.wait(images.image_status(api::ImageStatusRequest { image }))?.image.is_some())
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    fn wait<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
        self.calls.block_on(call).map(Response::into_inner)
    }
}

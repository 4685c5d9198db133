//! Asking the kubelet which devices it allocated to a pod, by its PodResources API. One connection, one to three calls: the
//! pod's own devices, by `List` where `Get` is not served, and what the node has of devices at all where the pod has too
//! few.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use musubi_delegates::cni::{CniError, code};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::{Pool, Users};
use crate::cancel::Cancel;
use crate::grpc;
use crate::grpc::podresources::pod_resources_lister_client::PodResourcesListerClient;
use crate::grpc::podresources::{
    AllocatableResourcesRequest, ContainerDevices, GetPodResourcesRequest, ListPodResourcesRequest, PodResources,
};
use crate::store::Pod;

/// What the kubelet behind a socket says of a pod some of whose networks name resources.
///
/// The kubelet allocates when it admits a pod, before it has the runtime make the sandbox. So a pod that it does not know is
/// one it has not told us of yet, and asking again helps; one that it knows never gets another device.
///
/// # Errors
/// Code 11: nobody answers in time, or the pod is not known yet.
pub(super) fn ask(
    socket: &Path,
    pod: &Pod,
    users: &Users<'_>,
    deadline: Instant,
    cancel: &Cancel,
) -> Result<Pool, CniError> {
    let advice = "the kubelet says which devices a pod was allocated; \"podResourcesSocket\" is where it is asked";
    grpc::wait(deadline, cancel, pool(socket, pod, users)).map_err(|e| {
        let for_networks = |(resource, networks): (&&str, &Vec<&str>)| {
            let distinct: BTreeSet<&str> = networks.iter().copied().collect();
            let names: Vec<&str> = distinct.into_iter().collect();
            format!("\"{}\" for {}", resource.escape_debug(), names.join(" and "))
        };
        let wanted: Vec<String> = users.iter().map(for_networks).collect();
        e.context(format!("devices of {}, from the kubelet", wanted.join(", "))).with_details(advice)
    })
}

async fn pool(socket: &Path, pod: &Pod, users: &Users<'_>) -> Result<Pool, CniError> {
    let channel = grpc::connect(socket).await?;
    let mut kubelet = PodResourcesListerClient::new(channel).max_decoding_message_size(grpc::MAX_ANSWER);
    let resources = pod_resources(&mut kubelet, pod).await?.ok_or_else(|| {
        CniError::new(code::TRY_AGAIN, format!("pod {} is not known to it yet, so nothing is allocated", pod.key()))
    })?;
    let allocated = resources.containers.into_iter().flat_map(|container| container.devices).flat_map(pairs);
    let pool = Pool::new(allocated, []);
    if pool.is_enough_for(users) {
        return Ok(pool);
    }
    let node = patiently(async || kubelet.get_allocatable_resources(AllocatableResourcesRequest {}).await).await;
    let node = node.map_err(|status| refused("GetAllocatableResources", &status))?;
    let allocatable = node.devices.into_iter().map(|device| device.resource_name).collect();
    Ok(Pool { allocatable, ..pool })
}

/// What is allocated to a pod; `None` when the kubelet does not know it. `Get` is refused in the same way by a kubelet that
/// does not serve it and for a pod that is not known (its code says neither), so `List` has the last word.
async fn pod_resources(
    kubelet: &mut PodResourcesListerClient<Channel>,
    pod: &Pod,
) -> Result<Option<PodResources>, CniError> {
    let request = GetPodResourcesRequest { pod_name: pod.name.clone(), pod_namespace: pod.namespace.clone() };
    match patiently(async || kubelet.get(request.clone()).await).await {
        Ok(answer) => return Ok(answer.pod_resources),
        Err(status) if matches!(status.code(), Code::Unavailable | Code::Cancelled) => {
            return Err(refused("Get", &status));
        }
        Err(_) => {}
    }
    let all = patiently(async || kubelet.list(ListPodResourcesRequest {}).await).await;
    let mut pods = all.map_err(|status| refused("List", &status))?.pod_resources.into_iter();
    Ok(pods.find(|resources| resources.name == pod.name && resources.namespace == pod.namespace))
}

/// Calls again while there are too many calls: the kubelet serves 100 in a second, and 10 at once.
async fn patiently<T>(mut call: impl AsyncFnMut() -> Result<Response<T>, Status>) -> Result<T, Status> {
    let mut pause = Duration::from_millis(20);
    loop {
        match call().await {
            Err(status) if status.code() == Code::ResourceExhausted => tokio::time::sleep(pause).await,
            answer => return answer.map(Response::into_inner),
        }
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

fn pairs(devices: ContainerDevices) -> impl Iterator<Item = (String, String)> {
    let resource = devices.resource_name;
    devices.device_ids.into_iter().map(move |id| (resource.clone(), id))
}

fn refused(call: &str, status: &Status) -> CniError {
    CniError::new(code::TRY_AGAIN, format!("{call} is refused: {}", grpc::words(status)))
}

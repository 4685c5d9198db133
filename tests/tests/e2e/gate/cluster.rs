//! The whole: objects are written to an API server, which asks the gate by the configurations of `deploy/webhook`.

use musubi_tests::cluster::{Cluster, NAMESPACE};
use musubi_tests::gate::{self, Gate};
use serde_json::{Value, json};

use super::bridge;

fn cluster() -> (Cluster, Gate) {
    let server = musubi_tests::api_server::ApiServer::start();
    gate::install(&server);
    let gate = Gate::start(&server, &[]);
    server.map_service("kube-system/musubi-webhook", gate.address());
    (Cluster::of(server), gate)
}

fn pod(name: &str, networks: &str) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {"k8s.v1.cni.cncf.io/networks": networks}},
        "spec": {"containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}]},
    })
}

/// The error of a creation.
fn refusal(cluster: &Cluster, pod: &Value) -> String {
    use k8s_openapi::api::core::v1::Pod;
    use kube::Api;
    use kube::api::PostParams;
    let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
    let pods: Api<Pod> = Api::namespaced(cluster.client(), NAMESPACE);
    match cluster.run(async move { pods.create(&PostParams::default(), &pod).await }) {
        Err(kube::Error::Api(status)) => status.message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn pods_are_given_devices_and_refused_what_add_would_refuse() {
    let (cluster, _gate) = cluster();
    cluster.create_definition("blue", &bridge("blue"));
    cluster.create_definition_from(&json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": "fast", "annotations": {"k8s.v1.cni.cncf.io/resourceName": "intel.com/vf"}},
        "spec": {"config": json!({"cniVersion": "1.0.0", "name": "fast", "type": "sriov"}).to_string()},
    }));
    let made = cluster.create_pod_from(&pod("web", "blue,fast"));
    let requests = made.spec.unwrap().containers.remove(0).resources.unwrap().requests.unwrap();
    assert_eq!(requests["intel.com/vf"].0, "1");
    let problem = refusal(&cluster, &pod("lost", "blue,nowhere"));
    assert!(problem.starts_with("admission webhook \"pods.musubi.dev\" denied the request: annotation"), "{problem}");
    assert!(problem.contains("musubi-test/nowhere"), "{problem}");
    assert!(cluster.pod("lost").is_none());
}

#[test]
fn definitions_are_refused_when_they_are_written() {
    use kube::Api;
    use kube::api::PostParams;
    use musubi_crds::NetworkAttachmentDefinition;
    let (cluster, _gate) = cluster();
    let wrong: NetworkAttachmentDefinition = serde_json::from_value(json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": "wrong"},
        "spec": {"config": json!({"cniVersion": "1.0.0", "type": "vlan", "vlanId": 5000, "master": "eth0"}).to_string()},
    }))
    .unwrap();
    let api: Api<NetworkAttachmentDefinition> = Api::namespaced(cluster.client(), NAMESPACE);
    let outcome = cluster.run(async move { api.create(&PostParams::default(), &wrong).await });
    let Err(kube::Error::Api(status)) = outcome else { panic!("{outcome:?}") };
    assert!(status.message.contains("network musubi-test/wrong: vlanId: "), "{}", status.message);
    cluster.create_definition("blue", &bridge("blue"));
    cluster.delete_definition("blue");
}

#[test]
fn without_the_gate_deletions_go_on_and_new_pods_with_networks_wait() {
    let (cluster, gate) = cluster();
    cluster.create_definition("blue", &bridge("blue"));
    drop(gate);
    let problem = refusal(&cluster, &pod("web", "blue"));
    assert!(problem.contains("failed calling webhook"), "{problem}");
    cluster.delete_definition("blue");
    assert!(cluster.definition("blue").is_none());
}

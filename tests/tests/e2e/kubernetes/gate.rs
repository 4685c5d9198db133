//! The admission server on a cluster: registered by the configurations of `deploy/webhook`, for the tests' namespace alone,
//! and asked by the API server when the examples are applied.

use std::net::SocketAddr;
use std::path::Path;

use musubi_tests::cluster::{Cluster, NAMESPACE};
use musubi_tests::gate::{Gate, manifests};
use serde_json::{Value, json};

/// The configurations' name on the cluster, and the policy's.
const NAME: &str = "musubi-test";

const DEFINITIONS: &str = "/apis/k8s.cni.cncf.io/v1/namespaces/musubi-test/network-attachment-definitions";
const PODS: &str = "/api/v1/namespaces/musubi-test/pods";
const POLICIES: &str = "/apis/musubi.dev/v1alpha1/attachmentpolicies";

/// A cluster with the gate in front of the tests' namespace.
fn guarded() -> (Cluster, Gate) {
    let cluster = Cluster::start();
    let create = |path: &str, object: &Value| {
        cluster.send("POST", path, object).unwrap_or_else(|e| panic!("{path}: {e}"));
    };
    for mut secret in manifests("secret.yaml") {
        secret["metadata"]["namespace"] = NAMESPACE.into();
        create(&format!("/api/v1/namespaces/{NAMESPACE}/secrets"), &secret);
    }
    for mut configuration in manifests("configurations.yaml") {
        configuration["metadata"]["name"] = NAME.into();
        for webhook in configuration["webhooks"].as_array_mut().unwrap() {
            webhook["clientConfig"]["service"]["namespace"] = NAMESPACE.into();
            webhook["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}});
        }
        let kind = configuration["kind"].as_str().unwrap().to_lowercase();
        create(&format!("/apis/admissionregistration.k8s.io/v1/{kind}s"), &configuration);
    }
    let gate = Gate::of(&cluster, &["--namespace", NAMESPACE, "--configurations", NAME]);
    lead_to(&cluster, gate.address());
    gate.until_ready();
    (cluster, gate)
}

/// The service that the configurations name, with the gate behind it.
fn lead_to(cluster: &Cluster, gate: SocketAddr) {
    let name = "musubi-webhook";
    let service = json!({"metadata": {"name": name}, "spec": {"ports": [{"name": "https", "port": 443, "targetPort": gate.port()}]}});
    let slice = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": if gate.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [gate.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": gate.port(), "protocol": "TCP"}],
    });
    cluster.send("POST", &format!("/api/v1/namespaces/{NAMESPACE}/services"), &service).unwrap();
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices");
    cluster.send("POST", &slices, &slice).unwrap();
}

/// The objects of a folder of `examples/`.
fn examples(folder: &str) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(folder);
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
        .iter()
        .flat_map(|file| serde_saphyr::from_multiple::<Value>(&std::fs::read_to_string(file).unwrap()).unwrap())
        .collect()
}

/// Why the API server does not take an object.
fn refusal(cluster: &Cluster, path: &str, object: &Value) -> String {
    match cluster.send("POST", path, object) {
        Err(kube::Error::Api(status)) => status.message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_examples_are_taken_and_what_would_fail_is_not() {
    let (cluster, _gate) = guarded();
    for mut policy in examples("policies") {
        policy["metadata"]["name"] = NAME.into();
        cluster.send("POST", POLICIES, &policy).unwrap();
    }
    for (path, folder) in [(DEFINITIONS, "definitions"), (PODS, "pods")] {
        for mut object in examples(folder) {
            object["metadata"]["namespace"] = NAMESPACE.into();
            let name = object["metadata"]["name"].to_string();
            cluster.send("POST", path, &object).unwrap_or_else(|e| panic!("{folder} {name}: {e}"));
        }
    }
    let wrong = json!({"cniVersion": "1.0.0", "type": "vlan", "vlanId": 5000, "master": "eth0"}).to_string();
    let definition = |name: &str, config: &str| {
        json!({
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": name}, "spec": {"config": config},
        })
    };
    let problem = refusal(&cluster, DEFINITIONS, &definition("wrong", &wrong));
    assert!(problem.contains("network musubi-test/wrong: vlanId: "), "{problem}");
    let pod = |name: &str, networks: &str| {
        json!({
            "metadata": {"name": name, "annotations": {"k8s.v1.cni.cncf.io/networks": networks}},
            "spec": {"containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}]},
        })
    };
    let problem = refusal(&cluster, PODS, &pod("lost", "blue,nowhere"));
    assert!(problem.contains("denied the request") && problem.contains("musubi-test/nowhere"), "{problem}");
    let mut fast = definition("fast", &json!({"cniVersion": "1.0.0", "name": "fast", "type": "sriov"}).to_string());
    fast["metadata"]["annotations"] = json!({"k8s.v1.cni.cncf.io/resourceName": "musubi.dev/vf"});
    cluster.send("POST", DEFINITIONS, &fast).unwrap();
    let made = cluster.send("POST", PODS, &pod("quick", "fast")).unwrap();
    assert_eq!(made["spec"]["containers"][0]["resources"]["requests"]["musubi.dev/vf"], "1", "{made}");
}

//! Where pods and definitions are: the same tests run with a folder of manifests and with an API server.

use std::fs;

use serde_json::{Value, json};

use super::cri::Pod;
use crate::node::Node;

const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// What the tests want of a cluster.
pub trait Cluster: Sync {
    /// Adds a NetworkAttachmentDefinition to the namespace `default`.
    fn define(&self, node: &Node, name: &str, config: &Value);

    /// Adds a pod.
    fn create(&self, node: &Node, pod: &Pod);

    /// Takes a pod away.
    fn delete(&self, node: &Node, pod: &Pod);

    /// The pod's network-status; `None` when it has none.
    fn network_status(&self, node: &Node, pod: &Pod) -> Option<Value>;
}

/// A folder of manifests, the node's own.
#[derive(Debug)]
pub struct Manifests;

impl Cluster for Manifests {
    fn define(&self, node: &Node, name: &str, config: &Value) {
        node.definition("default", name, config);
    }

    fn create(&self, node: &Node, pod: &Pod) {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid, "annotations": pod.annotations},
        });
        // Others read the folder at any moment: a manifest appears whole.
        let new = node.folder().join(format!("new-{}", pod.name));
        fs::write(&new, object.to_string()).expect("a manifest");
        fs::rename(new, manifest(node, pod)).expect("a manifest in its place");
    }

    fn delete(&self, node: &Node, pod: &Pod) {
        fs::remove_file(manifest(node, pod)).expect("the pod's manifest");
    }

    fn network_status(&self, node: &Node, pod: &Pod) -> Option<Value> {
        let file = node.manifests().join("status").join(&pod.namespace).join(format!("{}.json", pod.name));
        let object: Value = serde_json::from_str(&fs::read_to_string(file).ok()?).expect("JSON");
        let annotation = object["metadata"]["annotations"][NETWORK_STATUS].as_str()?;
        Some(serde_json::from_str(annotation).expect("JSON in the annotation"))
    }
}

fn manifest(node: &Node, pod: &Pod) -> std::path::PathBuf {
    node.manifests().join(format!("pod-{}-{}.json", pod.namespace, pod.name))
}

//! Where pods and definitions are: the same tests run with a folder of manifests and with an API server.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::cri::Pod;
use crate::api_server::ApiServer;
use crate::node::Node;

const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// The name of the test's node.
pub const NODE: &str = "node-1";

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

    /// The node has booted, and has another network namespace.
    fn follow(&self, _node: &Node) {}
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
        status_of(&object)
    }
}

/// An API server on the node.
pub struct Api {
    cluster: crate::cluster::Cluster,
}

impl Api {
    /// Starts one, which knows the definitions among the node's manifests.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn start(node: &Node) -> Self {
        let cluster = node.host.enter(|| crate::cluster::Cluster::of(ApiServer::start()));
        let started = Self { cluster };
        for entry in fs::read_dir(node.manifests()).expect("manifests") {
            let object: Value = serde_json::from_slice(&fs::read(entry.expect("a file").path()).expect("a manifest"))
                .expect("a manifest in JSON");
            if object["kind"] == "NetworkAttachmentDefinition" {
                started.server().create(&object);
            }
        }
        started
    }

    /// The server, to look into it and to break it.
    ///
    /// # Panics
    /// Never: it is one of our own.
    #[must_use]
    pub fn server(&self) -> &ApiServer {
        self.cluster.fake().expect("a server of our own")
    }

    /// Writes a kubeconfig into a folder, for one who may do what the `rules` of a ClusterRole say.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn kubeconfig(&self, folder: &Path, rules: &[Value]) -> PathBuf {
        let file = self.cluster.kubeconfig(folder);
        fs::write(folder.join("token"), self.server().issue_token_for(rules)).expect("a token");
        file
    }
}

impl Cluster for Api {
    fn define(&self, _: &Node, name: &str, config: &Value) {
        self.server().create(&json!({
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": name, "namespace": "default"}, "spec": {"config": config.to_string()},
        }));
    }

    fn create(&self, _: &Node, pod: &Pod) {
        self.server().create(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid, "annotations": pod.annotations},
            "spec": {"nodeName": NODE, "containers": [{"name": "main", "image": super::image::NAME}]},
        }));
    }

    fn delete(&self, _: &Node, pod: &Pod) {
        assert!(self.server().delete("pods", &pod.namespace, &pod.name), "{} was there", pod.name);
    }

    fn network_status(&self, _: &Node, pod: &Pod) -> Option<Value> {
        status_of(&self.server().get("pods", &pod.namespace, &pod.name)?)
    }

    fn follow(&self, node: &Node) {
        self.server().stop();
        node.host.enter(|| self.server().resume_here());
    }
}

fn status_of(object: &Value) -> Option<Value> {
    let annotation = object["metadata"]["annotations"][NETWORK_STATUS].as_str()?;
    Some(serde_json::from_str(annotation).expect("JSON in the annotation"))
}

fn manifest(node: &Node, pod: &Pod) -> PathBuf {
    node.manifests().join(format!("pod-{}-{}.json", pod.namespace, pod.name))
}

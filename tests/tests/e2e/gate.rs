//! The admission server, asked over TLS: the reviews of a real API server, requests as none should be, certificates that
//! change under load, replicas that race, and the whole behind an API server.

mod certificates;
mod cluster;
mod requests;
mod reviews;

use std::path::Path;

use musubi_tests::api_server::ApiServer;
use musubi_tests::gate::{self, Client, Gate};
use serde_json::{Value, json};

/// An API server with one gate, whose authority is believed.
struct Scene {
    server: ApiServer,
    gate: Gate,
}

impl Scene {
    fn new(options: &[&str]) -> Self {
        Self::with(options, |_| ())
    }

    /// The same, with objects that are there before the gate is.
    fn with(options: &[&str], prepare: impl FnOnce(&ApiServer)) -> Self {
        let server = ApiServer::start();
        gate::install(&server);
        prepare(&server);
        let gate = Gate::start(&server, options);
        server.map_service("kube-system/musubi-webhook", gate.address());
        Self { server, gate }
    }

    fn client(&self) -> Client {
        self.gate.connect(&gate::believed(&self.server))
    }

    /// The response to a review.
    fn ask(&self, path: &str, review: &Value) -> Value {
        let answer = self.client().post(path, review.to_string().as_bytes()).expect("an answer");
        let response = answer.response();
        assert_eq!(response["uid"], review["request"]["uid"]);
        response
    }
}

/// A review that a real API server sent.
fn recorded(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/kubernetes-api/admission");
    serde_json::from_slice(&std::fs::read(folder.join(format!("{name}.json"))).unwrap()).unwrap()
}

fn definition(namespace: &str, name: &str, config: &Value) -> Value {
    json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"namespace": namespace, "name": name}, "spec": {"config": config.to_string()},
    })
}

/// A bridge that pods may ask for addresses on.
fn bridge(name: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": name, "capabilities": {"ips": true},
        "ipam": {"type": "host-local", "subnet": "10.21.0.0/16"},
    })
}

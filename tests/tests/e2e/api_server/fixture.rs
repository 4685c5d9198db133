//! A server, and requests to it as they are on the wire.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::{HeaderMap, Request};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use musubi_tests::api_server::ApiServer;
use musubi_tests::cluster::Cluster;
use serde_json::{Map, Value, json};

pub const JSON: &str = "application/json";
pub const JSON_PATCH: &str = "application/json-patch+json";
pub const MERGE: &str = "application/merge-patch+json";
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub const APPLY: &str = "application/apply-patch+yaml";

pub const PODS: &str = "/api/v1/namespaces/default/pods";
pub const DEFINITIONS: &str = "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions";

/// A server and a caller.
pub struct Server {
    pub cluster: Cluster,
    pub token: String,
    client: Client,
}

/// An answer.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Got {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {:?}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The body of a request that has to succeed.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert!(matches!(self.status, 200 | 201), "{} {}", self.status, self.text);
        self.json()
    }

    /// Status, reason and message of one that has to fail.
    #[track_caller]
    pub fn refused(&self) -> (u16, String, String) {
        assert!(self.status >= 400, "{} {}", self.status, self.text);
        let body = self.json();
        assert_eq!(body["code"], self.status, "{body}");
        (self.status, body["reason"].as_str().unwrap().to_owned(), body["message"].as_str().unwrap().to_owned())
    }
}

/// The events of a watch.
pub struct Events(Receiver<Value>);

impl Events {
    /// The next event.
    #[track_caller]
    pub fn next(&self) -> Value {
        self.0.recv_timeout(Duration::from_secs(10)).expect("an event")
    }

    /// `TYPE name` of the next event.
    #[track_caller]
    pub fn told(&self) -> String {
        let event = self.next();
        format!("{} {}", event["type"].as_str().unwrap(), event["object"]["metadata"]["name"].as_str().unwrap_or("-"))
    }

    /// Whether something has come; it is forgotten.
    pub fn arrived(&self) -> bool {
        self.0.try_recv().is_ok()
    }

    /// That nothing comes for a while.
    #[track_caller]
    pub fn silent(&self) {
        let next = self.0.recv_timeout(Duration::from_millis(150));
        assert_eq!(next, Err(RecvTimeoutError::Timeout), "nothing is to come");
    }

    /// That it ends, with nothing before.
    #[track_caller]
    pub fn ended(&self) {
        assert_eq!(self.0.recv_timeout(Duration::from_secs(10)), Err(RecvTimeoutError::Disconnected));
    }
}

impl Server {
    pub fn start() -> Self {
        let cluster = Cluster::of(ApiServer::start());
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig(folder.path())).unwrap();
        let token = std::fs::read_to_string(folder.path().join("token")).unwrap();
        let client = cluster.run(async move {
            let options = KubeConfigOptions::default();
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
            config.auth_info = Default::default();
            config.default_retry = false;
            Client::try_from(config).unwrap()
        });
        Self { cluster, token, client }
    }

    /// The controls.
    pub fn api(&self) -> &ApiServer {
        self.cluster.fake().unwrap()
    }

    /// Sends a request with the headers given, `Authorization` among them.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> kube::Result<Got> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.as_bytes().to_vec())).unwrap();
        let client = self.client.clone();
        self.cluster.run(async move {
            let (head, body) = client.send(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            let text = String::from_utf8(body.to_vec()).unwrap();
            Ok(Got { status: head.status.as_u16(), headers: head.headers, text })
        })
    }

    /// Sends a request with a valid token.
    pub fn call(&self, method: &str, path: &str, content_type: &str, body: &str) -> Got {
        let authorization = format!("Bearer {}", self.token);
        let headers = [("Authorization", authorization.as_str()), ("Content-Type", content_type)];
        self.send(method, path, &headers, body).unwrap()
    }

    pub fn get(&self, path: &str) -> Got {
        self.call("GET", path, JSON, "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Got {
        self.call("POST", path, JSON, &body.to_string())
    }

    pub fn put(&self, path: &str, body: &Value) -> Got {
        self.call("PUT", path, JSON, &body.to_string())
    }

    pub fn patch(&self, content_type: &str, path: &str, body: &Value) -> Got {
        self.call("PATCH", path, content_type, &body.to_string())
    }

    /// Opens a watch; `query` is what follows `watch=1`.
    pub fn watch(&self, path: &str, query: &str) -> Events {
        self.watch_as(path, query, JSON)
    }

    /// Opens a watch that accepts this form.
    pub fn watch_as(&self, path: &str, query: &str, accept: &str) -> Events {
        let request = Request::get(format!("{path}?watch=1{query}"))
            .header("Authorization", format!("Bearer {}", self.token))
            .header("Accept", accept)
            .body(Body::empty())
            .unwrap();
        let client = self.client.clone();
        let (to, from) = channel();
        self.cluster.run(async move {
            let response = client.send(request).await.unwrap();
            assert_eq!(response.status(), 200);
            let mut body = response.into_body();
            tokio::spawn(async move {
                let mut buffer = Vec::new();
                while let Some(Ok(frame)) = body.frame().await {
                    buffer.extend_from_slice(frame.data_ref().unwrap());
                    while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> = buffer.drain(..=end).collect();
                        if to.send(serde_json::from_slice(&line).unwrap()).is_err() {
                            return;
                        }
                    }
                }
            });
        });
        Events(from)
    }
}

/// A pod of the namespace `default` on a node.
pub fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "x"}]},
    })
}

/// A definition of the namespace `default`.
pub fn definition(name: &str) -> Value {
    json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": "default"}, "spec": {"config": "{}"},
    })
}

/// Changes of annotations.
pub fn annotations(annotations: Value) -> Value {
    json!({"metadata": {"annotations": annotations}})
}

/// A recording of a real server.
pub fn recording(name: &str) -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/kubernetes-api").join(name);
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// Compares what does not differ from server to server.
#[track_caller]
pub fn same_but_for_identity(what: &str, found: &Value, wanted: &Value) {
    let [found, wanted] = [found, wanted].map(|value| without_identity(value.clone()));
    assert_eq!(found, wanted, "{what}\nfound  {found}\nwanted {wanted}");
}

fn without_identity(value: Value) -> Value {
    const OWN: [&str; 7] =
        ["uid", "resourceVersion", "creationTimestamp", "time", "manager", "continue", "generateName"];
    match value {
        Value::Object(fields) => {
            let is_generated = fields.contains_key("generateName");
            let fields: Map<String, Value> = fields
                .into_iter()
                .filter(|(key, _)| !(is_generated && key == "name"))
                .map(|(key, value)| {
                    let is_own = OWN.contains(&key.as_str()) && value.is_string() && value != "";
                    let value = if is_own { json!("…") } else { without_identity(value) };
                    (key, value)
                })
                .collect();
            fields.into()
        }
        Value::Array(values) => values.into_iter().map(without_identity).collect(),
        other => other,
    }
}

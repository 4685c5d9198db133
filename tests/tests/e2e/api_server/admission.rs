//! Webhooks are asked as a real server asks them, and their answers obeyed.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::Response;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::fixture::{
    DEFINITIONS, MERGE, PODS, Server, annotations, definition, pod, recording, same_but_for_identity,
};

/// A webhook that answers as told and remembers what it was asked.
struct Webhook {
    address: SocketAddr,
    authority: String,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Webhook {
    /// Starts one that answers each request by what `respond` makes of it.
    fn start(respond: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        let names = ["127.0.0.1", "gate.musubi.svc"].map(str::to_owned);
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, respond) = (Arc::new(Mutex::new(Vec::new())), Arc::new(respond));
        let log = Arc::clone(&asked);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let serve = async {
                    loop {
                        let (stream, _) = listener.accept().await.unwrap();
                        let Ok(stream) = acceptor.accept(stream).await else { continue };
                        let (log, respond) = (Arc::clone(&log), Arc::clone(&respond));
                        let service = service_fn(move |request: hyper::Request<Incoming>| {
                            let (log, respond) = (Arc::clone(&log), Arc::clone(&respond));
                            async move {
                                let path = request.uri().path_and_query().unwrap().to_string();
                                let body = request.into_body().collect().await?.to_bytes();
                                let review: Value = serde_json::from_slice(&body).unwrap();
                                let mut response = respond(&review["request"]);
                                response["uid"] = review["request"]["uid"].clone();
                                log.lock().unwrap().push((path, review));
                                let answer = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
                                    "response": response});
                                hyper::Result::Ok(Response::new(Full::new(Bytes::from(answer.to_string()))))
                            }
                        });
                        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    }
                };
                tokio::select! { () = serve => {}, _ = stopped => {} }
            });
        });
        Self { address, authority: STANDARD.encode(made.cert.pem()), asked, stop: Some(stop), thread: Some(thread) }
    }

    /// An entry of `webhooks` that calls it for everything.
    fn entry(&self) -> Value {
        json!({
            "name": "gate.musubi.dev", "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5,
            "clientConfig": {"url": format!("https://{}/validate", self.address), "caBundle": self.authority},
            "rules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]}],
        })
    }

    fn take(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

fn configure(server: &Server, kind: &str, entry: &Value) {
    let plural = format!("{}s", kind.to_lowercase());
    server.api().delete(&plural, "", "gate");
    server.api().create(&json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
        "metadata": {"name": "gate"}, "webhooks": [entry]}));
}

const VALIDATING: &str = "ValidatingWebhookConfiguration";
const MUTATING: &str = "MutatingWebhookConfiguration";

#[test]
fn a_webhook_is_asked_as_recorded() {
    let server = Server::start();
    let webhook = Webhook::start(|_| json!({"allowed": true}));
    configure(&server, VALIDATING, &webhook.entry());
    let recorded = |name: &str| recording(&format!("admission/{name}.json"));
    let [create, update, delete] =
        ["CREATE", "UPDATE", "DELETE"].map(|word| recorded(&format!("NetworkAttachmentDefinition-{word}-sriov-a")));
    let mut sriov = definition("sriov-a");
    sriov["metadata"]["annotations"] = create["request"]["object"]["metadata"]["annotations"].clone();
    sriov["spec"] = create["request"]["object"]["spec"].clone();
    let apply = "fieldManager=kubectl-client-side-apply&fieldValidation=Ignore";
    server.post(&format!("{DEFINITIONS}?{apply}"), &sriov).ok();
    let path = format!("{DEFINITIONS}/sriov-a");
    server.patch(MERGE, &format!("{path}?fieldManager=kubectl-annotate"), &annotations(json!({"x": "y"}))).ok();
    server.call("DELETE", &path, "application/json", r#"{"propagationPolicy":"Background"}"#).ok();

    let asked = webhook.take();
    let wanted = [create, update, delete];
    assert_eq!(asked.len(), wanted.len());
    for ((path, mut review), mut wanted) in asked.into_iter().zip(wanted) {
        assert_eq!(path, "/validate?timeout=5s");
        for review in [&mut review, &mut wanted] {
            review["request"]["userInfo"] = Value::Null;
            for object in ["object", "oldObject"] {
                // Their order says who wrote last, and is another's when all is written within a second.
                let managed = review["request"][object].pointer_mut("/metadata/managedFields");
                if let Some(managed) = managed.and_then(Value::as_array_mut) {
                    managed.sort_by_key(|entry| entry["manager"].to_string());
                }
            }
        }
        let keys = |review: &Value| review["request"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&review), keys(&wanted), "in this order");
        same_but_for_identity("review", &review, &wanted);
    }

    let dry = recorded("Pod-CREATE-dry");
    let mut body = pod("dry", "node1");
    body["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "10m"}});
    body["metadata"]["annotations"] = dry["request"]["object"]["metadata"]["annotations"].clone();
    server.post(&format!("{PODS}?dryRun=All&{apply}"), &body).ok();
    let mut review = webhook.take().remove(0).1;
    review["request"]["userInfo"] = dry["request"]["userInfo"].clone();
    same_but_for_identity("dry run", &review, &dry);
}

#[test]
fn a_webhook_refuses_in_its_own_words() {
    let server = Server::start();
    let webhook = Webhook::start(|request| match request["name"].as_str().unwrap() {
        "silent" => json!({"allowed": false}),
        "odd" => json!({"allowed": true, "warnings": ["this is odd"]}),
        _ => json!({"allowed": false, "status": {"code": 422, "reason": "Invalid", "message": "no bridge named"}}),
    });
    configure(&server, VALIDATING, &webhook.entry());
    let create = |name: &str| server.post(DEFINITIONS, &definition(name));
    let told = "admission webhook \"gate.musubi.dev\" denied the request";
    assert_eq!(create("bad").refused(), (422, "Invalid".to_owned(), format!("{told}: no bridge named")));
    assert_eq!(create("silent").refused(), (400, String::new(), format!("{told} without explanation")));
    assert!(server.api().list("network-attachment-definitions").is_empty());
    assert_eq!(create("odd").header("Warning"), "299 - \"this is odd\"");
    assert_eq!(server.api().list("network-attachment-definitions").len(), 1);
}

#[test]
fn only_what_a_configuration_selects_is_asked_about() {
    let server = Server::start();
    let webhook = Webhook::start(|_| json!({"allowed": true}));
    server.api().create(&json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "free", "labels": {"musubi.dev/ignore": "true"}}}));
    let entry = |change: &dyn Fn(&mut Value)| {
        let mut entry = webhook.entry();
        change(&mut entry);
        configure(&server, VALIDATING, &entry);
    };
    let asked = |object: &Value| {
        let (namespace, name) =
            (object["metadata"]["namespace"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        let path = match object["kind"].as_str().unwrap() {
            "Pod" => format!("/api/v1/namespaces/{namespace}/pods"),
            _ => format!("/apis/k8s.cni.cncf.io/v1/namespaces/{namespace}/network-attachment-definitions"),
        };
        server.post(&path, object).ok();
        server.call("DELETE", &format!("{path}/{name}"), "application/json", "").ok();
        webhook.take().iter().map(|(_, r)| r["request"]["operation"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut labelled = pod("p", "node1");
    labelled["metadata"]["labels"] = json!({"gate": "on"});
    let mut free = definition("net");
    free["metadata"]["namespace"] = "free".into();
    let both = ["CREATE", "DELETE"];

    entry(&|_| {});
    assert_eq!(asked(&definition("net")), both);
    entry(&|entry| entry["rules"][0]["resources"] = json!(["network-attachment-definitions"]));
    assert_eq!((asked(&definition("net")).len(), asked(&labelled).len()), (2, 0));
    entry(&|entry| entry["rules"][0]["operations"] = json!(["CREATE", "UPDATE"]));
    assert_eq!(asked(&definition("net")), ["CREATE"]);
    entry(&|entry| entry["rules"][0]["scope"] = "Cluster".into());
    assert!(asked(&definition("net")).is_empty());
    let ignoring = json!({"matchExpressions": [{"key": "musubi.dev/ignore", "operator": "DoesNotExist"}]});
    entry(&|entry| entry["namespaceSelector"] = ignoring.clone());
    assert_eq!((asked(&definition("net")).len(), asked(&free).len()), (2, 0));
    entry(&|entry| entry["objectSelector"] = json!({"matchLabels": {"gate": "on"}}));
    assert_eq!((asked(&labelled).len(), asked(&pod("q", "node1")).len()), (2, 0));
}

#[test]
fn a_mutating_webhook_changes_what_is_stored() {
    let server = Server::start();
    let webhook = Webhook::start(|request| {
        let name = request["object"]["metadata"]["name"].as_str().unwrap();
        let value = if name == "bad" { json!(7) } else { json!("1") };
        let patch = json!([{"op": "add", "path": "/metadata/annotations", "value": {"devices": value}}]);
        json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string())})
    });
    let mut entry = webhook.entry();
    entry["clientConfig"] = json!({"service": {"namespace": "musubi", "name": "gate", "path": "/mutate"},
        "caBundle": webhook.authority});
    entry["rules"][0]["operations"] = json!(["CREATE"]);
    configure(&server, MUTATING, &entry);
    let refused = server.post(PODS, &pod("p", "node1")).refused();
    assert_eq!(
        (refused.0, refused.2.as_str()),
        (500, "Internal error occurred: failed calling webhook \"gate.musubi.dev\": service \"gate\" not found")
    );
    server.api().map_service("musubi/gate", webhook.address);
    let stored = server.post(PODS, &pod("p", "node1")).ok();
    assert_eq!(stored["metadata"]["annotations"], json!({"devices": "1"}));
    assert_eq!(webhook.take().remove(0).0, "/mutate?timeout=5s");
    assert_eq!(server.post(PODS, &pod("bad", "node1")).refused().0, 400, "what it makes of a pod has to be one");
}

#[test]
fn a_webhook_that_is_away_stops_writes_unless_it_may_be_ignored() {
    let server = Server::start();
    let mut entry = Webhook::start(|_| json!({"allowed": true})).entry();
    entry["timeoutSeconds"] = 1.into();
    configure(&server, VALIDATING, &entry);
    let (status, reason, message) = server.post(DEFINITIONS, &definition("net")).refused();
    assert_eq!((status, reason.as_str()), (500, "InternalError"));
    assert!(message.contains("failed calling webhook \"gate.musubi.dev\": failed to call webhook: Post"), "{message}");
    entry["failurePolicy"] = "Ignore".into();
    configure(&server, VALIDATING, &entry);
    server.post(DEFINITIONS, &definition("net")).ok();

    // One that accepts and says nothing.
    let silent = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    entry["clientConfig"]["url"] = format!("https://{}/", silent.local_addr().unwrap()).into();
    entry["failurePolicy"] = "Fail".into();
    configure(&server, VALIDATING, &entry);
    let (status, _, message) = server.post(DEFINITIONS, &definition("other")).refused();
    assert_eq!(status, 500);
    assert!(message.ends_with("context deadline exceeded"), "{message}");
}

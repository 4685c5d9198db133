//! The cluster that tests work on, through its HTTP API alone: the API server of `api_server/`, or a real one
//! (`MUSUBI_TEST_KUBECONFIG`), so that the same test runs on both. On a real one everything happens in a namespace of the
//! tests' own, and is removed at the end. Calls block; what a test wants to break is at [`Cluster::fake`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::{Request, Uri};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use musubi_crds::NetworkAttachmentDefinition;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::api_server::ApiServer;
use crate::netns::Netns;
use crate::relay;

/// The namespace of tests, on a real cluster and on ours.
pub const NAMESPACE: &str = "musubi-test";

/// The service account, and on a real cluster the binding, that tests run our programs with.
const ACCOUNT: &str = "musubi-test";

/// How long a test waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster, real or ours.
pub struct Cluster {
    fake: Option<ApiServer>,
    /// Its worker keeps the network namespace in which the cluster was made: there connections are opened.
    runtime: Option<Runtime>,
    client: Client,
    access: Access,
    _folder: TempDir,
}

/// What a kubeconfig is written from.
#[derive(Debug, Clone)]
struct Access {
    server: String,
    /// In PEM.
    authority: Option<String>,
    token: String,
    /// The name that the server's certificate has, where its address says another.
    name: Option<String>,
}

impl Cluster {
    /// The real cluster when `MUSUBI_TEST_KUBECONFIG` names one, else one of our own, served in the network namespace of the
    /// calling thread.
    ///
    /// # Panics
    /// When it cannot be reached.
    #[must_use]
    pub fn start() -> Self {
        match std::env::var_os("MUSUBI_TEST_KUBECONFIG") {
            Some(path) => Self::real(Path::new(&path)),
            None => Self::of(ApiServer::start()),
        }
    }

    /// As [`Self::start`], for programs of a node whose host is this namespace: our own server is served there, and a real one
    /// reached from there.
    ///
    /// # Panics
    /// When it cannot be reached.
    #[must_use]
    pub fn start_for(host: &Netns) -> Self {
        if std::env::var_os("MUSUBI_TEST_KUBECONFIG").is_none() {
            return host.enter(Self::start);
        }
        let mut cluster = Self::start();
        cluster.access.lead_through(host);
        cluster
    }

    /// A cluster of our own behind a given server.
    ///
    /// # Panics
    /// When it cannot be reached.
    #[must_use]
    pub fn of(server: ApiServer) -> Self {
        let access = Access {
            server: server.url(),
            authority: server.authority().map(str::to_owned),
            token: server.issue_token(),
            name: None,
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        let kubeconfig = access.write(folder.path());
        let runtime = runtime();
        let client = client(&runtime, &kubeconfig).0;
        server.create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}));
        Self { fake: Some(server), runtime: Some(runtime), client, access, _folder: folder }
    }

    fn real(kubeconfig: &Path) -> Self {
        let runtime = runtime();
        let (client, config) = client(&runtime, kubeconfig);
        let admin = client.clone();
        let token = wait(&runtime, async move { prepare(&admin).await.expect("a namespace to work in") });
        let authority = config.root_cert.map(|certificates| certificates.iter().map(|der| pem(der)).collect());
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let access = Access { server, authority, token, name: None };
        Self { fake: None, runtime: Some(runtime), client, access, _folder: folder }
    }

    /// Our own server, to look into it and to break it; none on a real cluster.
    #[must_use]
    pub fn fake(&self) -> Option<&ApiServer> {
        self.fake.as_ref()
    }

    /// Writes `kubeconfig` for our programs into a folder, its token in the file `token` beside it. On our own server the
    /// token is a new one: it can be revoked, or replaced in its file, and nobody else is touched.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn kubeconfig(&self, folder: &Path) -> PathBuf {
        match &self.fake {
            Some(server) => self.kubeconfig_with(folder, &server.issue_token()),
            None => self.access.write(folder),
        }
    }

    /// As [`Self::kubeconfig`], with a given token.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn kubeconfig_with(&self, folder: &Path, token: &str) -> PathBuf {
        Access { token: token.to_owned(), ..self.access.clone() }.write(folder)
    }

    /// The client, for what has no method here; its futures run by [`Self::run`].
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Sends any object to any path; the answer.
    ///
    /// # Errors
    /// The server refuses.
    pub fn send(&self, method: &'static str, path: &str, object: &Value) -> kube::Result<Value> {
        let (client, path, object) = (self.client(), path.to_owned(), object.clone());
        self.run(async move { send(&client, method, &path, &object).await })
    }

    /// The address of this machine that the server's machine reaches.
    ///
    /// # Panics
    /// When there is no way to the server.
    #[must_use]
    pub fn own_address(&self) -> IpAddr {
        let url: Uri = self.access.server.parse().expect("the server's URL");
        let server = (url.host().expect("a host").trim_matches(['[', ']']), url.port_u16().unwrap_or(443));
        let towards = server.to_socket_addrs().expect("an address").next().expect("an address");
        let any: IpAddr = if towards.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // Nothing is sent: to connect chooses the source.
        let socket = UdpSocket::bind((any, 0)).expect("a socket");
        socket.connect(towards).expect("a way to the server");
        socket.local_addr().expect("an address").ip()
    }

    /// Runs a future on the cluster's own thread to its end.
    ///
    /// # Panics
    /// When it does.
    pub fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        wait(self.runtime.as_ref().expect("it runs until it is dropped"), future)
    }

    /// Creates a pod on a node with these annotations; as stored. No kubelet acts on it unless the node is a real one.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn create_pod(&self, node: &str, name: &str, annotations: &[(&str, &str)]) -> Pod {
        let annotations: BTreeMap<&str, &str> = annotations.iter().copied().collect();
        self.create_pod_from(&json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}]},
        }))
    }

    /// Creates a pod; as stored.
    ///
    /// # Panics
    /// When it is none, or the server refuses.
    pub fn create_pod_from(&self, pod: &Value) -> Pod {
        let mut pod: Pod = serde_json::from_value(pod.clone()).expect("a pod");
        if self.fake.is_none() {
            // The namespace's own account is made a moment after the namespace, and no pod is taken before.
            pod.spec.get_or_insert_default().service_account_name = Some(ACCOUNT.to_owned());
        }
        let pods = self.pods();
        self.run(async move { pods.create(&PostParams::default(), &pod).await }).expect("a pod is created")
    }

    /// A pod, if it is there.
    ///
    /// # Panics
    /// When the server refuses.
    #[must_use]
    pub fn pod(&self, name: &str) -> Option<Pod> {
        let pods = self.pods();
        self.read(|| {
            let (pods, name) = (pods.clone(), name.to_owned());
            async move { pods.get_opt(&name).await }
        })
    }

    /// Sets an annotation of a pod, or removes it.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn annotate(&self, pod: &str, key: &str, value: Option<&str>) {
        let (pods, pod) = (self.pods(), pod.to_owned());
        let patch = Patch::Merge(json!({"metadata": {"annotations": {key: value}}}));
        let answer = self.run(async move { pods.patch_metadata(&pod, &PatchParams::default(), &patch).await });
        answer.expect("a pod is annotated");
    }

    /// An annotation of a pod, if both are there.
    #[must_use]
    pub fn annotation(&self, pod: &str, key: &str) -> Option<String> {
        self.pod(pod)?.metadata.annotations?.remove(key)
    }

    /// Waits until a pod has an annotation; its text.
    ///
    /// # Panics
    /// When it has none in time.
    #[must_use]
    pub fn wait_for_annotation(&self, pod: &str, key: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(text) = self.annotation(pod, key) {
                return text;
            }
            assert!(Instant::now() < end, "{pod} has no annotation {key} after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Deletes a pod without grace, and waits until it is gone.
    ///
    /// # Panics
    /// When it was not there, or stays.
    pub fn delete_pod(&self, name: &str) {
        let (pods, deleted) = (self.pods(), name.to_owned());
        let at_once = DeleteParams::default().grace_period(0);
        self.run(async move { pods.delete(&deleted, &at_once).await }).expect("a pod is deleted");
        let end = Instant::now() + PATIENCE;
        while self.pod(name).is_some() {
            assert!(Instant::now() < end, "{name} is still there after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Creates a NetworkAttachmentDefinition; as stored.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn create_definition(&self, name: &str, config: &Value) -> NetworkAttachmentDefinition {
        self.create_definition_from(&json!({
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": name}, "spec": {"config": config.to_string()},
        }))
    }

    /// Creates a NetworkAttachmentDefinition from its whole text; as stored.
    ///
    /// # Panics
    /// When it is none, or the server refuses.
    pub fn create_definition_from(&self, definition: &Value) -> NetworkAttachmentDefinition {
        let definition: NetworkAttachmentDefinition = serde_json::from_value(definition.clone()).expect("a definition");
        let definitions = self.definitions();
        let created = self.run(async move { definitions.create(&PostParams::default(), &definition).await });
        created.expect("a definition is created")
    }

    /// A definition, if it is there.
    ///
    /// # Panics
    /// When the server refuses.
    #[must_use]
    pub fn definition(&self, name: &str) -> Option<NetworkAttachmentDefinition> {
        let definitions = self.definitions();
        self.read(|| {
            let (definitions, name) = (definitions.clone(), name.to_owned());
            async move { definitions.get_opt(&name).await }
        })
    }

    /// Deletes a definition.
    ///
    /// # Panics
    /// When it was not there.
    pub fn delete_definition(&self, name: &str) {
        let (definitions, name) = (self.definitions(), name.to_owned());
        let deleted = self.run(async move { definitions.delete(&name, &DeleteParams::default()).await });
        deleted.expect("a definition is deleted");
    }

    /// Events about a pod, the oldest first.
    ///
    /// # Panics
    /// When the server refuses.
    #[must_use]
    pub fn events(&self, pod: &str) -> Vec<Event> {
        let events: Api<Event> = Api::namespaced(self.client(), NAMESPACE);
        let about = ListParams::default().fields(&format!("involvedObject.kind=Pod,involvedObject.name={pod}"));
        let listed = self.read(|| {
            let (events, about) = (events.clone(), about.clone());
            async move { events.list(&about).await }
        });
        let mut listed = listed.items;
        let number = |event: &Event| event.metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok());
        listed.sort_by_key(number);
        listed
    }

    /// Reads; once more when the connection has ended, as all do when the server is stopped.
    fn read<T, F>(&self, call: impl Fn() -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = kube::Result<T>> + Send + 'static,
    {
        let answer = match self.run(call()) {
            Err(kube::Error::Service(_) | kube::Error::HyperError(_)) => self.run(call()),
            answer => answer,
        };
        answer.expect("the server answers")
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client(), NAMESPACE)
    }

    fn definitions(&self) -> Api<NetworkAttachmentDefinition> {
        Api::namespaced(self.client(), NAMESPACE)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        if self.fake.is_none() {
            let client = self.client();
            wait(&runtime, async move { clean(&client).await });
        }
        runtime.shutdown_background();
    }
}

impl Access {
    /// Has the server reached from inside a namespace that is connected to nothing.
    fn lead_through(&mut self, inside: &Netns) {
        let url: Uri = self.server.parse().expect("the server's URL");
        let (host, scheme) = (url.host().expect("a host"), url.scheme_str().unwrap_or("https"));
        let port = url.port_u16().unwrap_or(443);
        self.server = format!("{scheme}://{}", relay::open(inside, format!("{host}:{port}")));
        self.name = Some(host.trim_matches(['[', ']']).to_owned());
    }

    fn write(&self, folder: &Path) -> PathBuf {
        let (file, token) = (folder.join("kubeconfig"), folder.join("token"));
        std::fs::write(&token, &self.token).expect("a token file");
        let mut cluster = json!({"server": self.server});
        if let Some(authority) = &self.authority {
            cluster["certificate-authority-data"] = STANDARD.encode(authority).into();
        }
        if let Some(name) = &self.name {
            cluster["tls-server-name"] = name.as_str().into();
        }
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "musubi",
            "clusters": [{"name": "cluster", "cluster": cluster}],
            "users": [{"name": "musubi", "user": {"tokenFile": token}}],
            "contexts": [{"name": "musubi", "context": {"cluster": "cluster", "user": "musubi"}}],
        });
        std::fs::write(&file, config.to_string()).expect("a kubeconfig");
        file
    }
}

fn runtime() -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime")
}

/// Runs a future on the runtime's worker, whatever namespace the caller is in.
fn wait<T: Send + 'static>(runtime: &Runtime, future: impl Future<Output = T> + Send + 'static) -> T {
    let (done, result) = std::sync::mpsc::channel();
    runtime.spawn(async move { done.send(future.await) });
    result.recv().expect("the future ends without a panic")
}

fn client(runtime: &Runtime, kubeconfig: &Path) -> (Client, Config) {
    // Another test of this process may have chosen it before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    wait(runtime, async move {
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a usable kubeconfig");
        config.default_retry = false;
        (Client::try_from(config.clone()).expect("a client"), config)
    })
}

/// Makes namespace, service account and binding on a real cluster; a token of the account.
async fn prepare(client: &Client) -> kube::Result<String> {
    clean(client).await;
    let account = json!({"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"});
    let objects = [
        ("/api/v1/namespaces".to_owned(), json!({"metadata": {"name": NAMESPACE}})),
        (format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts"), json!({"metadata": {"name": ACCOUNT}})),
        (BINDINGS.to_owned(), json!({"metadata": {"name": ACCOUNT}, "roleRef": role, "subjects": [account]})),
    ];
    for (path, object) in objects {
        send(client, "POST", &path, &object).await?;
    }
    // No pod is taken before the namespace has its default account.
    let account = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default");
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end && send(client, "GET", &account, &Value::Null).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{ACCOUNT}/token");
    let request = send(client, "POST", &path, &json!({"spec": {"expirationSeconds": 3600}})).await?;
    Ok(request["status"]["token"].as_str().unwrap_or_default().to_owned())
}

/// Removes what [`prepare`] made and tests left, and waits until the namespace is gone.
async fn clean(client: &Client) {
    let namespace = format!("/api/v1/namespaces/{NAMESPACE}");
    let pods = format!("{namespace}/pods?gracePeriodSeconds=0");
    // The gate first: without a program behind it, it would hold up what follows.
    let of_all = CLUSTER_WIDE.map(|kind| format!("{kind}/{ACCOUNT}"));
    for path in of_all.iter().map(String::as_str).chain([pods.as_str(), namespace.as_str()]) {
        // What is not there need not go.
        let _ = send(client, "DELETE", path, &json!({})).await;
    }
    let end = Instant::now() + Duration::from_secs(90);
    while Instant::now() < end && send(client, "GET", &namespace, &Value::Null).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";

/// Where tests make objects outside the namespace, each with the name `musubi-test`.
pub const CLUSTER_WIDE: [&str; 4] = [
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
    "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
    "/apis/musubi.dev/v1alpha1/attachmentpolicies",
    BINDINGS,
];

async fn send(client: &Client, method: &str, path: &str, body: &Value) -> kube::Result<Value> {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method).uri(path).header("Content-Type", "application/json").body(body);
    client.request(request.expect("a request")).await
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

//! An API server for tests: it behaves as a real kube-apiserver 1.36 in what Musubi and its tests use, checks as strictly, and
//! lets a test break what a real one would not break on demand. Here is the handle that tests hold; each part of the server
//! has a file of its own. It leaves out discovery, tables, protocol buffers, HTTP/2, quotas, and the patterns and CEL rules
//! of schemas; pods are deleted at once, whatever their grace.

mod access;
mod admission;
mod answer;
mod faults;
mod list;
mod log;
mod managed_fields;
mod object;
mod patch;
mod request;
mod resources;
mod select;
mod server;
mod shared;
mod status;
mod store;
mod tls;
mod validate;
mod verbs;
mod watch;
mod webhook;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, mpsc::channel};
use std::thread::JoinHandle;
use std::time::Duration;

use musubi_delegates::netlink::{LinkChange, Netlink};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use self::server::Command;
use self::shared::{Shared, lock};
use self::store::Store;

pub use self::faults::{Fault, Rule};
pub use self::log::Served;
pub use self::resources::Resource;

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    authority: Option<String>,
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Starts a server with TLS on a free port of 127.0.0.1, in the network namespace of the calling thread.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn start() -> Self {
        let certificates = tls::make().expect("certificates");
        Self::start_with(Some(certificates))
    }

    /// The same without TLS, for benchmarks.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn start_plain() -> Self {
        Self::start_with(None)
    }

    fn start_with(certificates: Option<tls::Certificates>) -> Self {
        bring_up_loopback();
        let shared = Arc::new(Shared::new());
        let (authority, acceptor) = certificates.map(|made| (made.authority, made.acceptor)).unzip();
        let (commands, received) = mpsc::unbounded_channel();
        let (bound, address) = channel();
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("api-server".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = server::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a port");
                bound.send(listener.local_addr().expect("its address")).expect("somebody waits");
                server::serve(served, listener, acceptor, received).await;
            });
            runtime.shutdown_background();
        });
        let server = Self {
            shared,
            address: address.recv().expect("the server listens"),
            authority,
            commands: Some(commands),
            thread: Some(thread.expect("a thread")),
        };
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            server.create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        }
        server
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The certificate of its authority in PEM, where it speaks TLS.
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    // Tokens.

    /// A new token, whose owner may do everything.
    #[must_use]
    pub fn issue_token(&self) -> String {
        self.shared.issue_token(None)
    }

    /// A new token, whose owner may do what the `rules` of a ClusterRole say.
    #[must_use]
    pub fn issue_token_for(&self, rules: &[Value]) -> String {
        self.shared.issue_token(Some(rules.to_vec()))
    }

    /// Makes a token invalid, at once and for open connections too.
    pub fn revoke_token(&self, token: &str) {
        self.shared.tokens().remove(token);
    }

    // Objects, past HTTP.

    /// Serves another resource, defined by a CustomResourceDefinition.
    pub fn define(&self, crd: &Value) {
        self.shared.store().define(Resource::custom(crd));
    }

    /// Creates an object, and the namespace it names where that is not there; as stored.
    ///
    /// # Panics
    /// When the kind is unknown or the object is there already.
    pub fn create(&self, object: &Value) -> Value {
        let (index, resource) = self.kind_of(object);
        let completed = object::direct(&resource, object.clone());
        if let Some(namespace) = completed["metadata"]["namespace"].as_str()
            && self.get("namespaces", "", namespace).is_none()
        {
            self.create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
        }
        let key = key_of(&completed);
        self.shared.write(|store| {
            assert!(store.get(index, &key).is_none(), "{} {key} is there already", resource.kind);
            store.put(index, completed).value.clone()
        })
    }

    /// Gives an object another state. What is said of its metadata replaces what was there; uid and creation stay unless said.
    ///
    /// # Panics
    /// When it is not there.
    pub fn replace(&self, object: &Value) -> Value {
        let (index, resource) = self.kind_of(object);
        let mut object = object.clone();
        if resource.namespaced && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = "default".into();
        }
        self.shared.write(|store| {
            let old = store.get(index, &key_of(&object)).expect("the object is there");
            for key in ["uid", "creationTimestamp"] {
                if object["metadata"][key].is_null() {
                    object["metadata"][key] = old.value["metadata"][key].clone();
                }
            }
            store.put(index, object::direct(&resource, object)).value.clone()
        })
    }

    /// Deletes an object at once; whether it was there. `plural` is `pods`, say; the namespace is empty for none.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) -> bool {
        let (index, _) = self.plural(plural);
        self.shared.write(|store| store.remove(index, &key(namespace, name)).is_some())
    }

    /// An object as stored.
    #[must_use]
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let (index, _) = self.plural(plural);
        self.shared.store().get(index, &key(namespace, name)).map(|object| object.value.clone())
    }

    /// All objects of a resource in the order of their names.
    #[must_use]
    pub fn list(&self, plural: &str) -> Vec<Value> {
        let (index, _) = self.plural(plural);
        self.shared.store().objects(index).values().map(|object| object.value.clone()).collect()
    }

    /// The newest resourceVersion.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.store().version()
    }

    // What was asked.

    /// The requests so far, in the order they came.
    #[must_use]
    pub fn log(&self) -> Vec<Served> {
        lock(&self.shared.log).entries()
    }

    /// The requests so far; they are forgotten.
    #[must_use]
    pub fn take_log(&self) -> Vec<Served> {
        lock(&self.shared.log).take()
    }

    // What goes wrong.

    /// Lets requests go wrong by a rule, until it is used up or [`Self::clear_faults`].
    pub fn inject(&self, rule: Rule) {
        lock(&self.shared.faults).add(rule);
    }

    /// Ends all rules.
    pub fn clear_faults(&self) {
        lock(&self.shared.faults).clear();
    }

    /// Lets every answer take this long.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.set(|settings| settings.latency = latency);
    }

    /// How often watches that want bookmarks get them: every minute unless set. Holds from the next bookmark on.
    pub fn set_bookmarks(&self, every: Duration) {
        self.shared.set(|settings| settings.bookmark_every = every);
    }

    /// Whether lists are streamed by watches (`sendInitialEvents`), as they are unless set.
    pub fn set_streaming_lists(&self, served: bool) {
        self.shared.set(|settings| settings.streaming_lists = served);
    }

    /// Closes the port and every connection: "connection refused".
    ///
    /// # Panics
    /// When the server has ended by itself.
    pub fn stop(&self) {
        let (done, stopped) = channel();
        self.command(Command::Stop(done));
        stopped.recv().expect("the server answers");
    }

    /// Listens again on the same port, with the objects as they are.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn resume(&self) {
        let (done, started) = channel();
        self.command(Command::Start(done));
        started.recv().expect("the server answers").expect("the port is free");
    }

    /// The same in the network namespace of the calling thread: the machine has booted, and has another.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn resume_here(&self) {
        self.command(Command::Serve(std::net::TcpListener::bind(self.address).expect("the port is free")));
    }

    /// Ends all watches, as a server does that is restarted.
    pub fn close_watches(&self) {
        self.shared.signals.send_modify(|signals| signals.closed += 1);
    }

    /// Forgets the history: the next watch from before now is answered by 410.
    pub fn compact(&self) {
        self.shared.write(Store::compact);
    }

    /// Keeps watches open and silent: neither events nor bookmarks. What happens meanwhile comes when it ends.
    pub fn pause_watches(&self, paused: bool) {
        self.shared.signals.send_modify(|signals| signals.paused = paused);
    }

    /// How many watches are open.
    #[must_use]
    pub fn open_watches(&self) -> usize {
        self.shared.signals.receiver_count()
    }

    // Webhooks.

    /// Where the service `namespace/name` of webhook configurations is reached.
    pub fn map_service(&self, service: &str, address: SocketAddr) {
        lock(&self.shared.services).insert(service.to_owned(), address);
    }

    fn command(&self, command: Command) {
        let commands = self.commands.as_ref().expect("the server runs");
        commands.send(command).expect("the server runs");
    }

    fn kind_of(&self, object: &Value) -> (usize, Arc<Resource>) {
        let found = self.shared.store().find(|r| object["kind"] == r.kind && object["apiVersion"] == r.api_version());
        found.unwrap_or_else(|| panic!("an unknown kind: {} {}", object["apiVersion"], object["kind"]))
    }

    fn plural(&self, plural: &str) -> (usize, Arc<Resource>) {
        let found = self.shared.store().find(|resource| resource.plural == plural);
        found.unwrap_or_else(|| panic!("an unknown resource: {plural}"))
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn key(namespace: &str, name: &str) -> String {
    store::key((!namespace.is_empty()).then_some(namespace), name)
}

fn key_of(object: &Value) -> String {
    let metadata = &object["metadata"];
    store::key(metadata["namespace"].as_str(), metadata["name"].as_str().unwrap_or_default())
}

/// A namespace begins with `lo` down.
fn bring_up_loopback() {
    let netlink = Netlink::route().expect("a netlink socket");
    let lo = netlink.link_by_name("lo").expect("links").expect("lo");
    if !lo.is_up() {
        netlink.request(LinkChange::of(lo.index, "bring up lo").up().request()).expect("lo comes up");
    }
}

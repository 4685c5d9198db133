//! An API server for tests: it behaves as a real kube-apiserver 1.36 in what Musubi and its tests use, checks as strictly, and
//! lets a test break what a real one would not break on demand. Here is the handle that tests hold; each part of the server
//! has a file of its own.

mod access;
mod admission;
mod faults;
mod list;
mod managed_fields;
mod object;
mod patch;
mod request;
mod resources;
mod select;
mod server;
mod status;
mod store;
mod tls;
mod validate;
mod verbs;
mod watch;

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::channel};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::body::Bytes;
use musubi_delegates::netlink::{LinkChange, Netlink};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch as signal};

use self::access::Tokens;
use self::faults::Rules;
use self::server::Command;
use self::store::Store;
use self::watch::Watch;

pub use self::faults::{Fault, Rule};
pub use self::resources::Resource;

/// How many requests the log keeps.
const LOGGED: usize = 10_000;

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    authority: Option<String>,
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// A request that was served, as the log has it.
#[derive(Debug, Clone)]
pub struct Served {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The query string as sent.
    pub query: String,
    /// `Content-Type`.
    pub content_type: String,
    /// `Accept`.
    pub accept: String,
    /// `User-Agent`.
    pub user_agent: String,
    /// The body.
    pub body: Bytes,
    /// The status of the answer; none while there is none.
    pub status: Option<u16>,
}

impl Served {
    /// The body as JSON, null when it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
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
        let mut store = self.shared.store();
        let key = key_of(&completed);
        assert!(store.get(index, &key).is_none(), "{} {key} is there already", resource.kind);
        let stored = store.put(index, completed).value.clone();
        let version = store.version();
        drop(store);
        self.shared.changed(version);
        stored
    }

    /// Gives an object another state. What is said of its metadata replaces what was there; uid and creation stay unless said.
    ///
    /// # Panics
    /// When it is not there.
    pub fn replace(&self, object: &Value) -> Value {
        let (index, resource) = self.kind_of(object);
        let mut store = self.shared.store();
        let mut object = object.clone();
        if resource.namespaced && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = "default".into();
        }
        let old = store.get(index, &key_of(&object)).expect("the object is there");
        for key in ["uid", "creationTimestamp"] {
            if object["metadata"][key].is_null() {
                object["metadata"][key] = old.value["metadata"][key].clone();
            }
        }
        let completed = object::direct(&resource, object);
        let stored = store.put(index, completed).value.clone();
        let version = store.version();
        drop(store);
        self.shared.changed(version);
        stored
    }

    /// Deletes an object at once; whether it was there. `plural` is `pods`, say; the namespace is empty for none.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) -> bool {
        let (index, _) = self.plural(plural);
        let mut store = self.shared.store();
        let was_there = store.remove(index, &key(namespace, name)).is_some();
        let version = store.version();
        drop(store);
        self.shared.changed(version);
        was_there
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
        lock(&self.shared.log).entries.iter().cloned().collect()
    }

    /// The requests so far; they are forgotten.
    #[must_use]
    pub fn take_log(&self) -> Vec<Served> {
        let mut log = lock(&self.shared.log);
        log.forgotten += log.entries.len();
        log.entries.drain(..).collect()
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
        lock(&self.shared.settings).latency = latency;
    }

    /// How often watches that want bookmarks get them: every minute unless set. Holds from the next bookmark on.
    pub fn set_bookmarks(&self, every: Duration) {
        lock(&self.shared.settings).bookmark_every = every;
    }

    /// Whether lists are streamed by watches (`sendInitialEvents`), as they are unless set.
    pub fn set_streaming_lists(&self, served: bool) {
        lock(&self.shared.settings).streaming_lists = served;
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

    /// Ends all watches, as a server does that is restarted.
    pub fn close_watches(&self) {
        self.shared.signals.send_modify(|signals| signals.closed += 1);
    }

    /// Forgets the history: the next watch from before now is answered by 410.
    pub fn compact(&self) {
        let mut store = self.shared.store();
        store.compact();
        let version = store.version();
        drop(store);
        self.shared.changed(version);
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

/// What the server's thread and the handle share.
#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    signals: signal::Sender<Signals>,
    tokens: Mutex<Tokens>,
    faults: Mutex<Rules>,
    settings: Mutex<Settings>,
    log: Mutex<Log>,
    services: Mutex<HashMap<String, SocketAddr>>,
}

/// What watches wait for.
#[derive(Debug, Clone, Copy, Default)]
struct Signals {
    /// The newest resourceVersion.
    version: u64,
    /// Whether they are silent.
    paused: bool,
    /// How often all of them were closed.
    closed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Settings {
    latency: Duration,
    bookmark_every: Duration,
    streaming_lists: bool,
}

#[derive(Debug, Default)]
struct Log {
    entries: VecDeque<Served>,
    /// How many came before the first entry.
    forgotten: usize,
}

impl Shared {
    fn new() -> Self {
        let settings =
            Settings { latency: Duration::ZERO, bookmark_every: Duration::from_secs(60), streaming_lists: true };
        Self {
            store: Mutex::new(Store::new()),
            signals: signal::Sender::new(Signals::default()),
            tokens: Mutex::default(),
            faults: Mutex::default(),
            settings: Mutex::new(settings),
            log: Mutex::default(),
            services: Mutex::default(),
        }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        lock(&self.tokens)
    }

    fn issue_token(&self, rules: Option<Vec<Value>>) -> String {
        let token = format!("token-{}", object::uid());
        self.tokens().add(token.clone(), "system:serviceaccount:kube-system:musubi", rules);
        token
    }

    fn settings(&self) -> Settings {
        *lock(&self.settings)
    }

    fn fault(&self, method: &str, path: &str) -> Option<Fault> {
        lock(&self.faults).take(method, path)
    }

    /// Tells watches that there is something new.
    fn changed(&self, version: u64) {
        self.signals.send_modify(|signals| signals.version = signals.version.max(version));
    }

    /// Logs a request; the number by which its answer is added.
    fn begin(&self, request: Served) -> usize {
        let mut log = lock(&self.log);
        if log.entries.len() == LOGGED {
            log.entries.pop_front();
            log.forgotten += 1;
        }
        log.entries.push_back(request);
        log.forgotten + log.entries.len() - 1
    }

    /// Logs how a request was answered.
    fn answered(&self, number: usize, status: u16) {
        let mut log = lock(&self.log);
        let index = number.checked_sub(log.forgotten);
        if let Some(entry) = index.and_then(|index| log.entries.get_mut(index)) {
            entry.status = Some(status);
        }
    }
}

/// What is answered.
#[derive(Debug)]
enum Answer {
    /// All at once.
    Whole { code: u16, content_type: &'static str, headers: Vec<(&'static str, String)>, body: Bytes },
    /// As it happens.
    Watch(Box<Watch>),
}

impl Answer {
    fn json(code: u16, body: Bytes) -> Self {
        Self::Whole { code, content_type: "application/json", headers: Vec::new(), body }
    }

    /// A watch that is over with its first event.
    fn event_stream(body: Bytes) -> Self {
        Self::json(200, body)
    }

    fn text(code: u16, text: &'static str) -> Self {
        let body = Bytes::from_static(text.as_bytes());
        Self::Whole { code, content_type: "text/plain; charset=utf-8", headers: Vec::new(), body }
    }

    fn page_not_found() -> Self {
        Self::text(404, "404 page not found\n")
    }

    fn with_header(mut self, name: &'static str, value: &str) -> Self {
        if let Self::Whole { headers, .. } = &mut self {
            headers.push((name, value.to_owned()));
        }
        self
    }

    fn with_warnings(self, warnings: &[String]) -> Self {
        let texts = warnings.iter().map(|warning| format!("299 - {warning:?}"));
        texts.fold(self, |answer, text| answer.with_header("Warning", &text))
    }

    fn code(&self) -> u16 {
        match self {
            Self::Whole { code, .. } => *code,
            Self::Watch(_) => 200,
        }
    }
}

/// Why bytes are no JSON, in the words of Go's decoder.
fn json_error(bytes: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let line = bytes.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let found = line.get(error.column().saturating_sub(1)).map_or(' ', |byte| char::from(*byte));
    format!("invalid character {found:?} looking for beginning of value")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

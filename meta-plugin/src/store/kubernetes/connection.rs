//! A connection to the API server: where its address and credentials come from, the runtime that its requests run on, and
//! how often and how long a request is tried. What is asked for is the business of those who ask.

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{ClientBuilder, ConfigExt, DynBody};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Client, Config};
use musubi_delegates::cni::{CniError, code};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::oneshot;
use tower::{BoxError, ServiceBuilder};

use super::refusal;
use crate::cancel::{self, Cancel};

/// The first pause between two tries; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause that we choose ourselves.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The least time a try gets while there is more.
const SHORTEST_TRY: Duration = Duration::from_secs(1);
/// How long a connection stays open that nobody uses.
const LONGEST_IDLE: Duration = Duration::from_secs(5);
/// How often credentials are read anew before they count as refused.
const CREDENTIAL_TRIES: u32 = 3;

/// Where the server's address and our credentials are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A kubeconfig file.
    Kubeconfig(PathBuf),
    /// A pod's service account.
    ServiceAccount {
        /// `https://host:port` of the server.
        server: String,
        /// The folder that `token` and `ca.crt` are mounted in.
        folder: PathBuf,
    },
}

/// Told of every request: what it was, how long it took, the HTTP status (0: no answer).
pub type Observer = Arc<dyn Fn(&'static str, Duration, u16) + Send + Sync>;

/// How long a request may be tried.
#[derive(Debug, Clone)]
pub struct Patience {
    /// When it has failed for good.
    pub deadline: Instant,
    /// Whether it is tried once, or until the deadline.
    pub once: bool,
    /// Ends it before.
    pub cancel: Cancel,
}

/// Why a request failed for good.
#[derive(Debug)]
pub enum Failure {
    /// The server's answer.
    Refused(Box<Status>),
    /// No answer that says anything, for a person.
    Away(String),
    /// The credentials cannot be read, or the server does not take them.
    Credentials(String),
    /// The caller is gone.
    Cancelled,
}

impl Failure {
    /// The server's status code; 0 without an answer.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Refused(status) => status.code,
            _ => 0,
        }
    }

    /// As a CNI error: `what` says what was asked for.
    #[must_use]
    pub fn to_cni(&self, what: &str) -> CniError {
        let (code, advice) = match self {
            Self::Cancelled => return cancel::gone(),
            Self::Away(_) => (code::TRY_AGAIN, "the API server cannot be reached; the runtime tries again"),
            Self::Credentials(_) => {
                (code::TRY_AGAIN, "the token is read anew at each try; is musubi agent running to renew it?")
            }
            Self::Refused(status) => match status.code {
                403 => (code::CONFIG, "give musubi's service account the role of deploy/rbac.yaml"),
                408 | 409 | 429 | 500.. => (code::TRY_AGAIN, "the API server is overloaded; the runtime tries again"),
                _ => (code::CONFIG, ""),
            },
        };
        CniError::new(code, format!("{what}: {self}")).with_details(advice)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(status) => {
                let message = status.message.lines().next().unwrap_or_default();
                write!(f, "the API server answers {}: {message}", status.code)
            }
            Self::Away(problem) => write!(f, "no answer from the API server: {problem}"),
            Self::Credentials(problem) => write!(f, "credentials: {problem}"),
            Self::Cancelled => f.write_str("the caller went away"),
        }
    }
}

/// A connection, made when it is first needed and made anew when its credentials are refused.
pub struct Connection {
    source: Source,
    worker: Worker,
    client: Mutex<Option<Client>>,
    observer: Option<Observer>,
}

/// The runtime that requests run on.
enum Worker {
    Own(Runtime),
    Of(Handle),
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Connection {
    /// A connection with a runtime of its own, for a process that does nothing else.
    ///
    /// # Errors
    /// Code 5: the kernel gives no runtime its files.
    pub fn alone(source: Source) -> Result<Self, CniError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| CniError::new(code::IO, format!("start talking to the API server: {e}")))?;
        Ok(Self { source, worker: Worker::Own(runtime), client: Mutex::new(None), observer: None })
    }

    /// A connection on a runtime that others drive.
    #[must_use]
    pub fn on(handle: Handle, source: Source, observer: Option<Observer>) -> Self {
        Self { source, worker: Worker::Of(handle), client: Mutex::new(None), observer }
    }

    /// Makes a request and waits for its outcome; not to be called on the runtime itself.
    ///
    /// # Errors
    /// See [`Self::request`].
    pub fn call<T, F>(
        self: &Arc<Self>,
        verb: &'static str,
        patience: Patience,
        request: impl Fn(Client) -> F + Send + Sync + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = kube::Result<T>> + Send + 'static,
    {
        let connection = Arc::clone(self);
        self.wait_for(async move { connection.request(verb, &patience, request).await })
            .unwrap_or_else(|| Err(Failure::Away("the request was given up half-way".to_owned())))
    }

    /// Waits for anything on the connection's runtime, where all of it happens: threads wake each other twice and no more.
    /// Not to be called on the runtime itself. `None` when it did not come to its end.
    pub fn wait_for<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        match &self.worker {
            Worker::Own(runtime) => Some(runtime.block_on(work)),
            Worker::Of(handle) => {
                let (sender, outcome) = oneshot::channel();
                handle.spawn(async move { sender.send(work.await).ok() });
                outcome.blocking_recv().ok()
            }
        }
    }

    /// Makes a request: again after a pause while the server is away, overloaded or failing, and again with credentials
    /// that are read anew when it does not take them.
    ///
    /// # Errors
    /// What the last try ended with, once there is no time for another; or the one before, where the end of time cut the last
    /// one short.
    pub async fn request<T, F: Future<Output = kube::Result<T>>>(
        &self,
        verb: &'static str,
        patience: &Patience,
        request: impl Fn(Client) -> F,
    ) -> Result<T, Failure> {
        let mut pauses = Pauses::default();
        let mut refused = 0;
        let mut before = None;
        loop {
            let outcome = tokio::select! {
                outcome = self.attempt(verb, patience, &request) => outcome,
                () = patience.cancel.wait() => return Err(Failure::Cancelled),
            };
            let failure = match (outcome, before.take()) {
                (Ok(answer), _) => return Ok(answer),
                // A try that the end of time cut short says less than the one before it.
                (Err(Failure::Away(_)), Some(told)) if Instant::now() >= patience.deadline => return Err(told),
                (Err(failure), _) => failure,
            };
            let pause = match &failure {
                Failure::Refused(status) if is_passing(status.code) => pauses.after(status),
                Failure::Away(_) => {
                    // It may be reached by another address, or under another authority, since.
                    self.forget();
                    pauses.next()
                }
                Failure::Credentials(_) if refused < CREDENTIAL_TRIES => {
                    self.forget();
                    refused += 1;
                    if refused == 1 { Duration::ZERO } else { pauses.next() }
                }
                _ => return Err(failure),
            };
            let once = patience.once && !matches!(failure, Failure::Credentials(_));
            if once || Instant::now() + pause >= patience.deadline {
                return Err(failure);
            }
            tracing::debug!("API {verb}: {failure}; again in {} ms", pause.as_millis());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = patience.cancel.wait() => return Err(Failure::Cancelled),
            }
            // On a busy machine a pause may take longer than the time that was left.
            if Instant::now() >= patience.deadline {
                return Err(failure);
            }
            before = Some(failure);
        }
    }

    /// One try gets half of the time that is left, so that a connection that has silently died leaves some for another.
    async fn attempt<T, F: Future<Output = kube::Result<T>>>(
        &self,
        verb: &'static str,
        patience: &Patience,
        request: &impl Fn(Client) -> F,
    ) -> Result<T, Failure> {
        let left = patience.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Away("it was not asked, for the operation's time is over".to_owned()));
        }
        let limit = if patience.once { left } else { (left / 2).max(SHORTEST_TRY).min(left) };
        let started = Instant::now();
        let work = async {
            let client = self.client().await?;
            request(client).await.map_err(failure_of)
        };
        let outcome = match tokio::time::timeout(limit, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Away(format!("nothing came within {:.1} s", limit.as_secs_f64()))),
        };
        if let Some(observer) = &self.observer {
            observer(verb, started.elapsed(), outcome.as_ref().err().map_or(200, Failure::status));
        }
        outcome
    }

    /// The client, made if there is none.
    ///
    /// # Errors
    /// Address or credentials cannot be read.
    pub async fn client(&self) -> Result<Client, Failure> {
        let known = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(client) = known {
            return Ok(client);
        }
        // kube takes the process's TLS provider; the first to set it wins, and ours is the same each time.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = client_of(self.config().await?).map_err(failure_of)?;
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        Ok(client)
    }

    /// Has the next request read address and credentials anew.
    pub fn forget(&self) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn config(&self) -> Result<Config, Failure> {
        let mut config = match &self.source {
            Source::Kubeconfig(file) => {
                let wrong = |problem: &dyn fmt::Display| {
                    let problem = problem.to_string();
                    let line = problem.lines().next().unwrap_or_default();
                    Failure::Credentials(format!("kubeconfig {}: {line}", file.display()))
                };
                let kubeconfig = Kubeconfig::read_from(file).map_err(|e| wrong(&e))?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|e| wrong(&e))?
            }
            Source::ServiceAccount { server, folder } => {
                let server = server.parse().map_err(|e| Failure::Credentials(format!("server {server}: {e}")))?;
                let mut config = Config::new(server);
                config.root_cert_file = Some(folder.join("ca.crt"));
                config.auth_info.token_file = Some(folder.join("token").display().to_string());
                config
            }
        };
        // Retries are ours, within the operation's budget.
        config.default_retry = false;
        Ok(config)
    }
}

/// A client by a configuration, as kube makes it but for how long connections wait for the next request: what a burst opened
/// is memory.
fn client_of(config: Config) -> kube::Result<Client> {
    let connections = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(LONGEST_IDLE)
        .build(config.rustls_https_connector()?);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_response(|answer: Response<Incoming>| {
            refusal::as_status(answer.map(|body| Box::new(body.map_err(BoxError::from)) as Box<DynBody>))
        })
        .map_err(BoxError::from)
        .service(connections);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// Pauses between tries: doubling, each up to a half longer by chance so that nodes do not come in step.
#[derive(Default)]
struct Pauses {
    last: Duration,
}

impl Pauses {
    fn next(&mut self) -> Duration {
        self.last = (self.last * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        let chance = RandomState::new().hash_one(self.last) % 128;
        self.last + self.last * u32::try_from(chance).unwrap_or_default() / 256
    }

    /// Not before the server wants to be asked again.
    fn after(&mut self, status: &Status) -> Duration {
        let wanted = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        self.next().max(Duration::from_secs(wanted.into()))
    }
}

/// Whether the same request may succeed later. A conflict comes from another's write at the same moment.
fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 409 | 429) || status >= 500
}

/// What a kube error is for us.
pub(crate) fn failure_of(error: kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) if status.code == 401 => {
            Failure::Credentials("the API server does not take the token (401)".to_owned())
        }
        kube::Error::Api(status) => Failure::Refused(status),
        kube::Error::Auth(error) => Failure::Credentials(error.to_string()),
        error => Failure::Away(innermost(&error)),
    }
}

/// The cause at the bottom: "connection refused" says more than what it passed through.
fn innermost(error: &kube::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    if let kube::Error::Service(service) = error {
        cause = service.as_ref();
    }
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn the_end_of_time_does_not_hide_what_the_server_answered() {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        let text = r#"{"current-context": "a", "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:1"}}], "users": [{"name": "a", "user": {}}]}"#;
        std::fs::write(&kubeconfig, text).unwrap();
        let connection = Arc::new(Connection::alone(Source::Kubeconfig(kubeconfig)).unwrap());
        let deadline = Instant::now() + FIRST_PAUSE * 10;
        let patience = Patience { deadline, once: false, cancel: Cancel::default() };
        let was_asked = AtomicBool::new(false);
        let failure = connection
            .call("get", patience, move |_| {
                let is_first = !was_asked.swap(true, Ordering::Relaxed);
                async move {
                    match is_first {
                        true => Err::<(), _>(kube::Error::Api(Box::new(Status::failure("busy", "").with_code(503)))),
                        false => std::future::pending().await,
                    }
                }
            })
            .unwrap_err();
        assert_eq!(failure.to_string(), "the API server answers 503: busy");
        assert!(Instant::now() >= deadline, "it was tried until the end");
    }
}

//! HTTPS for API servers, and for those who look after us. One client, whatever it does or leaves undone, costs no other
//! anything: handshakes, requests and bodies have limits of time and size, large bodies a lane of their own, and when there
//! are too many connections the one that has been of no use for longest makes room.

mod connections;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use musubi::agent::metrics::CONTENT_TYPE as METRICS_TYPE;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use self::connections::{Connections, Place};
use crate::Stage;
use crate::gate::Gate;
use crate::metrics::Outcome;
use crate::review::Request;

/// The longest body. What etcd keeps ends at 1.5 MiB, so this is enough for an object as it is and as it is to be.
const BODY_MAX: usize = 3 << 20;
/// From this length on a body is large.
const LARGE: usize = 64 << 10;
/// How many large bodies are held at once.
const LARGE_AT_ONCE: usize = 4;
/// How many connections are open at once.
const CONNECTIONS: usize = 512;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a request may take from its head to its answer; API servers wait as long unless told otherwise.
const REQUEST: Duration = Duration::from_secs(10);
/// How long the head of a request may take, the wait for one included: longer than the 90 s that an API server keeps an idle
/// connection, so that it is always the API server that closes it and no request is lost on the way.
const IDLE: Duration = Duration::from_secs(120);
/// How long open connections may go on after the server was told to stop.
const FAREWELL: Duration = Duration::from_secs(5);

/// The server.
pub struct Server {
    gate: Arc<Gate>,
    acceptor: TlsAcceptor,
    connections: Connections,
    large: Semaphore,
    stopping: watch::Receiver<Stage>,
}

impl Server {
    /// A server of a gate, which is told by `stopping` to come to its end.
    ///
    /// # Errors
    /// TLS cannot be had.
    pub fn new(gate: Arc<Gate>, stopping: watch::Receiver<Stage>) -> anyhow::Result<Arc<Self>> {
        let acceptor = TlsAcceptor::from(gate.shown.config()?);
        let (connections, large) = (Connections::new(CONNECTIONS), Semaphore::new(LARGE_AT_ONCE));
        Ok(Arc::new(Self { gate, acceptor, connections, large, stopping }))
    }

    /// Serves until it is stopped, and brings to their end the requests that are under way.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let accept = async {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => self.clone().spawn(stream),
                    Err(error) => accept_failed(&error).await,
                }
            }
        };
        tokio::select! {
            () = accept => {}
            () = self.told_to_stop() => {}
        }
        drop(listener);
        let until = Instant::now() + FAREWELL;
        while self.connections.open() > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn told_to_stop(&self) {
        // An error says that nobody is there any more to tell it.
        let _ = self.stopping.clone().wait_for(|stage| *stage == Stage::Stopping).await;
    }

    fn spawn(self: Arc<Self>, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let place = self.connections.enter();
            if place.displaces {
                self.gate.metrics.displaced();
            }
            tokio::select! {
                () = self.connection(stream, &place) => {}
                () = place.wanted_back() => {}
            }
        });
    }

    /// Serves one connection to its end. What goes wrong on it is of interest to its client alone.
    async fn connection(&self, stream: TcpStream, place: &Place<'_>) {
        let Ok(Ok(stream)) = timeout(HANDSHAKE, self.acceptor.accept(stream)).await else { return };
        let service = service_fn(async |request| {
            let response = self.answer(request).await;
            place.was_of_use();
            Ok::<_, Infallible>(response)
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(IDLE).half_close(false);
        let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
        let outcome = tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = self.told_to_stop() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = outcome {
            tracing::debug!("connection: {error}");
        }
    }

    async fn answer(&self, request: HttpRequest<Incoming>) -> Response<Full<Bytes>> {
        match request.uri().path() {
            "/validate" => self.review("validate", request).await,
            "/mutate" => self.review("mutate", request).await,
            "/healthz" => text(StatusCode::OK, "ok"),
            "/readyz" => self.ready(),
            "/metrics" => {
                self.gate.measure();
                self.gate.metrics.connections(self.connections.open());
                with_type(StatusCode::OK, METRICS_TYPE, self.gate.metrics.encode().into())
            }
            _ => text(StatusCode::NOT_FOUND, "not found"),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let mut reasons = self.gate.why_not_ready();
        if *self.stopping.borrow() != Stage::Serving {
            reasons.push("the server is stopping".to_owned());
        }
        match reasons.as_slice() {
            [] => text(StatusCode::OK, "ok"),
            reasons => text(StatusCode::SERVICE_UNAVAILABLE, &reasons.join("\n")),
        }
    }

    async fn review(&self, path: &'static str, request: HttpRequest<Incoming>) -> Response<Full<Bytes>> {
        let answered = timeout(REQUEST, self.reviewed(path, request)).await;
        let problem = match answered {
            Ok(Ok(body)) => return with_type(StatusCode::OK, "application/json", body),
            Ok(Err(problem)) => problem,
            Err(_) => Problem(StatusCode::REQUEST_TIMEOUT, format!("no whole request in {} s", REQUEST.as_secs())),
        };
        self.gate.metrics.request(path, Outcome::Failed);
        tracing::debug!("{path}: {} {}", problem.0.as_u16(), problem.1);
        let mut response = text(problem.0, &problem.1);
        if problem.0 == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        }
        // What is left of the body is not worth reading.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }

    async fn reviewed(&self, path: &'static str, request: HttpRequest<Incoming>) -> Result<Bytes, Problem> {
        if request.method() != Method::POST {
            return Err(Problem(StatusCode::METHOD_NOT_ALLOWED, "reviews are posted".to_owned()));
        }
        let content_type =
            request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if content_type.split(';').next().is_none_or(|kind| !kind.trim().eq_ignore_ascii_case("application/json")) {
            return Err(Problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "reviews are application/json".to_owned()));
        }
        let mut body = request.into_body();
        let mut bytes = Vec::new();
        let mut permit = None;
        let too_long = || Problem(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {BODY_MAX} bytes"));
        if body.size_hint().lower() > BODY_MAX as u64 {
            return Err(too_long());
        }
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Problem(StatusCode::BAD_REQUEST, format!("body: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > BODY_MAX {
                return Err(too_long());
            }
            if bytes.len() + data.len() > LARGE && permit.is_none() {
                permit = self.large.acquire().await.ok();
            }
            bytes.extend_from_slice(&data);
        }
        let gate = Arc::clone(&self.gate);
        if permit.is_none() {
            return decide(&gate, path, bytes).await;
        }
        // Reading megabytes of JSON would keep all others waiting.
        let work = move || Handle::current().block_on(decide(&gate, path, bytes));
        let decided = tokio::task::spawn_blocking(work).await;
        decided.unwrap_or_else(|error| Err(Problem(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())))
    }
}

/// What is wrong with a request.
#[derive(Debug)]
struct Problem(StatusCode, String);

async fn decide(gate: &Gate, path: &'static str, body: Vec<u8>) -> Result<Bytes, Problem> {
    let began = Instant::now();
    let request = Request::parse(&body).map_err(|problem| Problem(StatusCode::BAD_REQUEST, problem))?;
    drop(body);
    let verdict = if path == "mutate" { gate.mutate(&request).await } else { gate.validate(&request).await };
    let outcome = if verdict.refusal.is_some() { Outcome::Denied } else { Outcome::Allowed };
    gate.metrics.request(path, outcome);
    gate.metrics.decided(path, began.elapsed());
    if let Some(why) = &verdict.refusal {
        let name = request.name.as_deref().unwrap_or_default();
        tracing::info!(resource = request.resource.resource, namespace = request.namespace(), name, "refused: {why}");
    }
    Ok(verdict.to_json(&request.uid).to_string().into())
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", format!("{text}\n").into())
}

fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// No descriptors are left, most likely: some come back.
async fn accept_failed(error: &io::Error) {
    tracing::warn!("accept: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

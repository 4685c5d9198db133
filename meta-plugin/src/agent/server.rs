//! The agent's HTTP: which path is what, on the Unix socket and on the metrics address. Calls are taken by
//! [`super::operations`]; here their answers are put into the form that each client reads.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::TokioIo;
use musubi_delegates::cni::request::STDIN_MAX;
use musubi_delegates::cni::{CniError, Version};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::operations::{self, Client, Refused, Taken};
use super::protocol::{Call, NETNS_HEADER, PROTOCOL_HEADER, REQUEST_HEADER, STATE_HEADER, TAKEN_HEADER, to_body};
use super::{Agent, metrics};
use crate::cancel::Cancel;

/// The longest body in bytes: the longest configuration in base64, and room for the environment.
const BODY_MAX: usize = (STDIN_MAX as usize).div_ceil(3) * 4 + (2 << 20);

/// Where a connection came from, and so what it may ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// The Unix socket, which root alone can open.
    Socket,
    /// The metrics address: nothing that changes anything.
    Metrics,
}

/// Serves one connection to its end.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin + 'static>(agent: Arc<Agent>, stream: S, door: Door) {
    let service = service_fn(|request| {
        let agent = Arc::clone(&agent);
        async move { Ok::<_, Infallible>(answer(&agent, request, door).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.half_close(false).timer(hyper_util::rt::TokioTimer::new());
    // A client that goes away in the middle is no event.
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!("connection: {error}");
    }
}

async fn answer(agent: &Arc<Agent>, request: HttpRequest<Incoming>, door: Door) -> Response<Body> {
    match (request.uri().path(), door) {
        ("/healthz", _) => text(StatusCode::OK, "ok"),
        ("/readyz", _) => ready(agent),
        ("/metrics", _) => {
            agent.measure();
            with_type(StatusCode::OK, metrics::CONTENT_TYPE, agent.metrics.encode())
        }
        ("/history", Door::Socket) => json_answer(StatusCode::OK, &agent.history.to_json()),
        ("/cni", Door::Socket) => call(agent, request, false).await,
        ("/delegate", Door::Socket) => call(agent, request, true).await,
        _ => text(StatusCode::NOT_FOUND, "not found"),
    }
}

fn ready(agent: &Agent) -> Response<Body> {
    let reasons = agent.why_not_ready();
    if reasons.is_empty() { text(StatusCode::OK, "ok") } else { text(NOT_READY, &reasons.join("\n")) }
}

/// What Multus' daemon answers while it is not ready, and its clients look for.
const NOT_READY: StatusCode = StatusCode::INTERNAL_SERVER_ERROR;

async fn call(agent: &Arc<Agent>, request: HttpRequest<Incoming>, hot_plug: bool) -> Response<Body> {
    let client = client_of(&request);
    let body = match Limited::new(request.into_body(), BODY_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return text(StatusCode::BAD_REQUEST, &format!("body: {error}")),
    };
    let call: Call = match serde_json::from_slice(&body) {
        Ok(call) => call,
        Err(error) => return text(StatusCode::BAD_REQUEST, &format!("body: {error}")),
    };
    drop(body);
    let is_ours = matches!(client, Client::Ours { .. });
    match operations::take(agent, client, call, hot_plug).await {
        Ok(taken) if is_ours => later(taken),
        Ok(taken) => awaited(taken).await,
        Err(refused) => refusal(&refused, is_ours),
    }
}

fn client_of(request: &HttpRequest<Incoming>) -> Client {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    match (header(PROTOCOL_HEADER), header(REQUEST_HEADER)) {
        (Some(_), Some(id)) => Client::Ours { id, netns: header(NETNS_HEADER), state: header(STATE_HEADER) },
        _ => Client::Multus,
    }
}

/// For our client: the head now, which says that the call is taken, the outcome when it is there.
fn later(taken: Taken) -> Response<Body> {
    let id = HeaderValue::from_str(&taken.id).unwrap_or(HeaderValue::from_static("unprintable"));
    let mut response =
        Response::new(Body::Later { outcome: taken.outcome, version: taken.version, _guard: Guard(taken.cancel) });
    response.headers_mut().insert(TAKEN_HEADER, id);
    response
}

/// For Multus' clients: status and body when the outcome is there. Dropped on the way when the client goes.
async fn awaited(taken: Taken) -> Response<Body> {
    let _guard = Guard(taken.cancel);
    match taken.outcome.await {
        Ok(Ok(result)) => json_answer(StatusCode::OK, &json!({"Result": result})),
        Ok(Err(error)) => json_answer(StatusCode::BAD_REQUEST, &error.to_json(Version::LATEST)),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the operation ended without an outcome"),
    }
}

fn refusal(refused: &Refused, is_ours: bool) -> Response<Body> {
    let status = StatusCode::from_u16(refused.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    if is_ours { text(status, &refused.error.to_string()) } else { error_answer(&refused.error) }
}

/// Multus' clients know one status for failures.
fn error_answer(error: &CniError) -> Response<Body> {
    json_answer(StatusCode::BAD_REQUEST, &error.to_json(Version::LATEST))
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", format!("{text}\n"))
}

fn json_answer(status: StatusCode, value: &Value) -> Response<Body> {
    with_type(status, "application/json", value.to_string())
}

fn with_type(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::Whole(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Cancels the operation when the answer is dropped: with the connection of a client that has gone. After the outcome it
/// means nothing any more.
struct Guard(Cancel);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// The body of an answer.
enum Body {
    /// All of it is there.
    Whole(Full<Bytes>),
    /// It comes with an operation's outcome.
    Later { outcome: oneshot::Receiver<Result<Option<Value>, CniError>>, version: Version, _guard: Guard },
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Later { outcome, version, .. } => match Pin::new(outcome).poll(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(outcome)) => {
                    let bytes = Bytes::from(to_body(&outcome, *version).to_string());
                    *self = Self::Whole(Full::default());
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                // An outcome that never came is an answer without an end; the client looks into the record.
                Poll::Ready(Err(_)) => {
                    *self = Self::Whole(Full::default());
                    Poll::Ready(None)
                }
            },
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Later { .. } => SizeHint::default(),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(body) if body.is_end_stream())
    }
}

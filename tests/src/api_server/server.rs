//! The server's thread: it listens, speaks TLS and HTTP, reads requests whole, applies the faults a test wants, and keeps
//! the log. What a request means is left to `verbs.rs`.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WARNING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};
use tokio_rustls::TlsAcceptor;

use super::answer::Answer;
use super::faults::Fault;
use super::log::Served;
use super::request::{Query, Request};
use super::shared::{Shared, lock};
use super::status::Status;
use super::{verbs, watch};

/// The largest body that is read, as on a real server.
const LARGEST_BODY: usize = 3 * 1024 * 1024;

/// How long half an answer takes to leave.
const FLUSH: Duration = Duration::from_millis(20);

/// What the server's thread is told.
#[derive(Debug)]
pub enum Command {
    /// Close the port and all connections.
    Stop(Sender<()>),
    /// Listen again.
    Start(Sender<std::io::Result<()>>),
    /// Serve who comes to this port.
    Serve(std::net::TcpListener),
}

/// Serves until nobody holds the other end of `commands`.
pub async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let address = listener.local_addr();
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(stream) = accept(listener.as_ref()) => {
                connections.spawn(connection(Arc::clone(&shared), stream, acceptor.clone()));
            }
            Some(_) = connections.join_next() => {}
            command = commands.recv() => match command {
                None => return,
                Some(Command::Stop(done)) => {
                    listener = None;
                    connections.shutdown().await;
                    let _ = done.send(());
                }
                Some(Command::Start(done)) => {
                    let bound = match &address {
                        Ok(address) => listen(*address),
                        Err(error) => Err(std::io::Error::from(error.kind())),
                    };
                    let _ = done.send(bound.map(|bound| listener = Some(bound)));
                }
                Some(Command::Serve(bound)) => listener = listening(bound).ok(),
            }
        }
    }
}

/// Listens on an address, also one that has just been left.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    listening(std::net::TcpListener::bind(address)?)
}

fn listening(bound: std::net::TcpListener) -> std::io::Result<TcpListener> {
    bound.set_nonblocking(true)?;
    TcpListener::from_std(bound)
}

async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    match listener?.accept().await {
        Ok((stream, _)) => Some(stream),
        Err(_) => {
            // Out of descriptors, say: those who wait do not become fewer by being asked at once again.
            sleep(Duration::from_millis(10)).await;
            None
        }
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, acceptor: Option<TlsAcceptor>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| exchange(Arc::clone(&shared), request));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(None);
    // How a connection ends is the client's affair: nobody here wants to know.
    match acceptor {
        None => drop(http.serve_connection(TokioIo::new(stream), service).await),
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                drop(http.serve_connection(TokioIo::new(stream), service).await);
            }
        }
    }
}

/// The connection is to be closed without a further word.
#[derive(Debug)]
pub struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed on purpose")
    }
}

impl std::error::Error for Closed {}

async fn exchange(shared: Arc<Shared>, request: hyper::Request<Incoming>) -> Result<Response<Reply>, Closed> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, LARGEST_BODY).collect().await;
    let raw = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let request = Request {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: Query::parse(head.uri.query().unwrap_or_default()),
        headers: head.headers,
        body: body.map_err(|_| Closed)?.to_bytes(),
    };
    let entry = lock(&shared.log).add(Served {
        method: request.method.to_string(),
        path: request.path.clone(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        content_type: request.header("content-type").to_owned(),
        accept: request.header("accept").to_owned(),
        user_agent: request.header("user-agent").to_owned(),
        body: request.body.clone(),
        status: None,
    });
    let latency = shared.settings().latency;
    if !latency.is_zero() {
        sleep(latency).await;
    }
    let fault = shared.fault(request.method.as_str(), &raw);
    let answer = match &fault {
        None | Some(Fault::DropAfter | Fault::Half) => verbs::answer(&shared, &request).await,
        Some(Fault::Delay(time)) => {
            sleep(*time).await;
            verbs::answer(&shared, &request).await
        }
        Some(Fault::Drop) => return Err(Closed),
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::TooManyRequests(seconds)) => Answer::text(429, "Too many requests, please try again later.\n")
            .with_header("Retry-After", &seconds.to_string()),
        Some(Fault::Code(code)) => refusal(*code),
        Some(Fault::Gone) if request.query.is("watch") => {
            Answer::event_stream(watch::refused(&watch::too_old(1, shared.store().version())))
        }
        Some(Fault::Gone) => Answer::status(&Status::expired("too old resource version")),
    };
    lock(&shared.log).answered(entry, answer.code());
    match fault {
        Some(Fault::DropAfter) => Err(Closed),
        Some(Fault::Half) => Ok(reply(&shared, answer, true)),
        _ => Ok(reply(&shared, answer, false)),
    }
}

/// The `Status` that goes with a code.
fn refusal(code: u16) -> Answer {
    let (reason, message) = match code {
        401 => ("Unauthorized", "Unauthorized"),
        403 => ("Forbidden", "forbidden"),
        404 => ("NotFound", "the server could not find the requested resource"),
        409 => ("Conflict", "the server reported a conflict"),
        500 => ("InternalError", "Internal error occurred: etcdserver: request timed out"),
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
        504 => ("Timeout", "Timeout: request did not complete within the allotted timeout"),
        _ => ("", "an error on the server has prevented the request from succeeding"),
    };
    Answer::status(&Status::new(code, reason, message))
}

fn reply(shared: &Arc<Shared>, answer: Answer, half: bool) -> Response<Reply> {
    let (code, content_type, headers, body) = match answer {
        Answer::Whole { code, content_type, headers, body } => (code, content_type, headers, Reply::new(body, half)),
        Answer::Watch(watch) => {
            let (to, from) = mpsc::channel(16);
            tokio::spawn(watch.run(Arc::clone(shared), to));
            (200, "application/json", Vec::new(), Reply::Stream { from, half })
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in headers {
        let name = if name == "Warning" { WARNING } else { RETRY_AFTER };
        if let Ok(value) = HeaderValue::from_str(&value) {
            fields.append::<HeaderName>(name, value);
        }
    }
    response
}

/// A body.
enum Reply {
    /// All at once.
    Whole(Option<Bytes>),
    /// As it comes; or only half of its first piece.
    Stream { from: mpsc::Receiver<Bytes>, half: bool },
    /// The first half of what was promised; then, once that has surely left, the end of the connection.
    Half { length: Option<u64>, sent: Option<Bytes>, then: Pin<Box<Sleep>> },
}

impl Reply {
    fn new(body: Bytes, half: bool) -> Self {
        if half { Self::half(Some(body.len() as u64), &body) } else { Self::Whole(Some(body)) }
    }

    fn half(length: Option<u64>, body: &Bytes) -> Self {
        Self::Half { length, sent: Some(body.slice(..body.len() / 2)), then: Box::pin(sleep(FLUSH)) }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Closed;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Closed>>> {
        let this = self.get_mut();
        if let Self::Stream { from, half: true } = this {
            match ready!(from.poll_recv(cx)) {
                None => return Poll::Ready(Some(Err(Closed))),
                Some(piece) => *this = Self::half(None, &piece),
            }
        }
        let piece = match this {
            Self::Whole(body) => body.take().filter(|body| !body.is_empty()),
            Self::Stream { from, .. } => ready!(from.poll_recv(cx)),
            Self::Half { sent, then, .. } => {
                let piece = sent.take();
                if piece.is_none() {
                    ready!(then.as_mut().poll(cx));
                    return Poll::Ready(Some(Err(Closed)));
                }
                piece
            }
        };
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
            Self::Half { length: Some(length), .. } => SizeHint::with_exact(*length),
            Self::Half { .. } | Self::Stream { .. } => SizeHint::default(),
        }
    }
}

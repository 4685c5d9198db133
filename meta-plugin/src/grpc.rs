//! gRPC over Unix sockets, as the kubelet and container runtimes serve it: the generated messages and clients, connecting,
//! and waiting for an answer from code that is not asynchronous. What is asked stands in [`crate::cri`] and
//! [`crate::devices`].

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use hyper_util::rt::TokioIo;
use musubi_delegates::cni::{CniError, code};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Handle};
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use tower_service::Service;

use crate::cancel::{self, Cancel};

/// The kubelet's PodResources API.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod podresources {
    tonic::include_proto!("v1");
}

/// The container runtime interface.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod runtime {
    tonic::include_proto!("runtime.v1");
}

/// What an answer may hold in bytes: all pods of a node in one.
pub const MAX_ANSWER: usize = 16 << 20;

/// Connects to a socket.
///
/// # Errors
/// Code 11, with the socket and why nobody answers there.
pub async fn connect(socket: &Path) -> Result<Channel, CniError> {
    let unreachable = |why: &dyn std::fmt::Display| {
        CniError::new(code::TRY_AGAIN, format!("socket {} cannot be used: {why}", socket.display()))
    };
    let stream = UnixStream::connect(socket).await.map_err(|e| unreachable(&e))?;
    // The name is that of every local service; nobody looks it up.
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(Connected(Some(stream))).await.map_err(|e| unreachable(&e))
}

/// Waits for an answer until the deadline, or until nobody wants it any more: with the runtime of the thread where it has
/// one, else with one that lives as long as this call.
///
/// # Errors
/// The answer's own; code 11 when there was none in time or it was cancelled, 5 when no runtime can be started.
pub fn wait<T>(
    deadline: Instant,
    cancel: &Cancel,
    answer: impl Future<Output = Result<T, CniError>>,
) -> Result<T, CniError> {
    let in_time = async {
        tokio::select! {
            answer = answer => answer,
            () = cancel.wait() => Err(cancel::gone()),
            () = tokio::time::sleep_until(deadline.into()) => {
                Err(CniError::new(code::TRY_AGAIN, "there was no answer in time"))
            }
        }
    };
    if let Ok(runtime) = Handle::try_current() {
        return runtime.block_on(in_time);
    }
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| CniError::new(code::IO, format!("cannot wait for an answer: {e}")))?.block_on(in_time)
}

/// A refusal in a few words.
#[must_use]
pub fn words(status: &Status) -> String {
    match status.message() {
        "" => status.code().description().to_owned(),
        message => message.escape_debug().to_string(),
    }
}

/// A connection that is there already, for tonic to ask for once: what went wrong with connecting is known before.
struct Connected(Option<UnixStream>);

impl Service<Uri> for Connected {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self.0.take().ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset));
        Box::pin(std::future::ready(stream.map(TokioIo::new)))
    }
}

//! gRPC servers of tests: one thread with a runtime of its own for each, behind a Unix socket, until it is dropped.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use tonic::codegen::tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;

/// A server that runs.
#[derive(Debug)]
pub struct Served {
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    /// Serves behind a socket, which is there when this returns.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn start(socket: &Path, routes: Routes) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(async { tokio::net::UnixListener::bind(socket) }).expect("a socket");
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let serve = Server::builder().add_routes(routes).serve_with_incoming(UnixListenerStream::new(listener));
            runtime.block_on(async {
                tokio::select! {
                    served = serve => served.expect("to serve"),
                    _ = stopped => {}
                }
            });
        });
        Self { socket: socket.to_owned(), stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

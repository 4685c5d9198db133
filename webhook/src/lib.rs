//! The gate: what would fail when a pod starts is found when it is applied, and who may use which network is decided there.
//!
//! The checks are those of ADD and live in `musubi`; here they are served as admission, pods are given what their
//! networks need, and certificates are kept.

pub mod certificates;
pub mod gate;
pub mod metrics;
pub mod mutate;
pub mod options;
pub mod review;
pub mod server;
pub mod world;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use musubi::agent::config::AgentConfig;
use musubi::agent::credentials::api_server;
use musubi::agent::host_mounts::SERVICE_ACCOUNT;
use musubi::check::{self, Settings};
use musubi::config::Config;
use musubi::store::kubernetes::{Connection, Source};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::certificates::files::Files;
use self::certificates::keeper::{Keeper, Places};
use self::certificates::{Order, Shown, Trouble};
use self::gate::Gate;
use self::metrics::Metrics;
use self::mutate::{Injections, Rules};
use self::options::{Answer, LogFormat, Options};
use self::server::Server;
use self::world::World;

/// How many large bodies are read at once, each on a thread.
const THREADS: usize = 2;
/// How often memory is given back.
const BETWEEN_TIDYING: Duration = Duration::from_secs(60);
/// How long the server goes on after it was told to stop: by then no API server is sent to it any more.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// Runs the server until it is told to stop.
///
/// # Errors
/// It cannot start: a wrong configuration, no cluster, no port.
pub fn run(options: &Options) -> anyhow::Result<()> {
    musubi::log::start_on_stderr(options.log_level, options.log_format == LogFormat::Json);
    musubi_delegates::sys::share_memory();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.max_blocking_threads(THREADS).enable_all().build().context("start the runtime")?;
    runtime.block_on(serve(options))
}

async fn serve(options: &Options) -> anyhow::Result<()> {
    let metrics = Metrics::default();
    let connection = Arc::new(Connection::on(Handle::current(), source(options)?, Some(metrics.observer())));
    let shown = Shown::default();
    let trouble = keep_certificates(options, &connection, &shown);
    let plugin = plugin_config(&options.config)?;
    let rules = Rules {
        existing: options.existing_requests,
        pod_info: !options.no_pod_info,
        huge_pages: options.huge_pages,
        injections: Injections::follow(options.injections.clone()),
        default_namespace: plugin.multus_namespace.clone(),
    };
    let settings = Settings {
        missing_definitions_may_come: options.missing_definition == Answer::Warn,
        host_network_is_error: options.host_network == Answer::Deny,
        namespaces_are_known: true,
    };
    let world = World::new(connection, check::World::new(plugin, settings));
    let gate = Gate { world, rules, metrics, shown, trouble };
    gate.world.follow();
    let gate = Arc::new(gate);
    tokio::spawn(tidy(Arc::clone(&gate)));

    let listener = TcpListener::bind(options.listen).await.with_context(|| format!("--listen {}", options.listen))?;
    tracing::info!(address = %listener.local_addr()?, version = env!("CARGO_PKG_VERSION"), "serving");
    let (stop, stopping) = watch::channel(Stage::Serving);
    let server = tokio::spawn(Server::new(gate, stopping)?.serve(listener));
    told_to_stop().await?;
    stop.send_replace(Stage::Leaving);
    tokio::time::sleep(LAST_REQUESTS).await;
    stop.send_replace(Stage::Stopping);
    server.await?;
    tracing::info!("stopped");
    Ok(())
}

/// How far the server's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It serves.
    Serving,
    /// It serves those who have not heard yet that it is about to stop.
    Leaving,
    /// It ends what is under way.
    Stopping,
}

/// What lists and large bodies have used is free, but it is the process's until somebody says so.
async fn tidy(gate: Arc<Gate>) {
    while !gate.is_complete() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    loop {
        musubi_delegates::sys::give_memory_back();
        tokio::time::sleep(BETWEEN_TIDYING).await;
    }
}

async fn told_to_stop() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn keep_certificates(options: &Options, connection: &Arc<Connection>, shown: &Shown) -> Trouble {
    if let Some(folder) = &options.tls_dir {
        let files = Files::new(folder.clone(), shown.clone());
        let trouble = files.trouble();
        tokio::spawn(files.keep());
        return trouble;
    }
    let places = Places {
        namespace: options.namespace.clone(),
        secret: options.secret.clone(),
        configurations: options.configurations.clone(),
    };
    let names = vec![format!("{}.{}.svc", options.service, options.namespace)];
    let order = Order { names, lifetime: options.certificate_lifetime };
    let keeper = Keeper::new(Arc::clone(connection), places, order, shown.clone());
    let trouble = keeper.trouble();
    tokio::spawn(keeper.keep());
    trouble
}

fn source(options: &Options) -> anyhow::Result<Source> {
    if let Some(file) = &options.kubeconfig {
        return Ok(Source::Kubeconfig(file.clone()));
    }
    let server = api_server().context("no cluster: neither --kubeconfig nor a service account is there")?;
    Ok(Source::ServiceAccount { server, folder: PathBuf::from(SERVICE_ACCOUNT) })
}

/// The plugin's configuration as the agents write it for their nodes.
fn plugin_config(file: &Path) -> anyhow::Result<Config> {
    let parsed = if file.exists() { AgentConfig::read(file) } else { AgentConfig::parse(b"{}") };
    parsed.and_then(|agent| agent.plugin()).map_err(|error| anyhow::anyhow!("{error}"))
}

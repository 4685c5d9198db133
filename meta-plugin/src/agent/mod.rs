//! The node agent: the same engine as the exec'd plugin's, kept in memory behind a Unix socket with what it needs of the API.
//! It makes things faster and is never needed. Here its parts are put together and started; each is a file of its own.

pub mod cache;
pub mod client;
pub mod config;
pub mod credentials;
mod events;
pub mod history;
pub mod host_mounts;
pub mod metrics;
mod operations;
mod plugin_cgroup;
pub mod pool;
pub mod primary;
pub mod protocol;
pub mod reconcile;
pub mod runtime_conf;
mod server;
mod upkeep;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use musubi_delegates::cni::{CniError, ConfList, NetConf, code};
use serde_json::Map;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch as latest};

use self::cache::{ClusterCache, PodsOfNode};
use self::config::AgentConfig;
use self::credentials::{Credentials, api_server};
use self::history::History;
use self::host_mounts::{HostMounts, Kept, SERVICE_ACCOUNT};
use self::metrics::{Answer, Metrics};
use self::pool::Pool;
use self::server::Door;
use crate::config::STATE_DIR;
use crate::store::kubernetes::watch::{AllPolicies, Definitions, follow};
use crate::store::kubernetes::{Connection, Source};

/// How long operations may go on after the agent was told to stop. Kubernetes kills it after 30 seconds.
const FAREWELL: Duration = Duration::from_secs(25);

/// One node's agent.
pub(crate) struct Agent {
    config: Arc<AgentConfig>,
    mounts: HostMounts,
    pool: Pool,
    cluster: Option<Cluster>,
    plugin_cgroup: Option<PathBuf>,
    metrics: Arc<Metrics>,
    history: History,
    runtime_conf: latest::Receiver<runtime_conf::State>,
    stopping: AtomicBool,
}

/// The agent's side of the API.
struct Cluster {
    connection: Arc<Connection>,
    cache: Arc<ClusterCache>,
}

impl Agent {
    /// Why no call is taken; `None` when calls are.
    fn takes_no_work(&self) -> Option<String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Some("the agent is stopping".to_owned());
        }
        self.mounts.problem().map(str::to_owned)
    }

    /// Everything that is not as it should be, for a person.
    fn why_not_ready(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self.takes_no_work().into_iter().collect();
        reasons.extend(self.runtime_conf.borrow().problem().map(str::to_owned));
        if let Some(cluster) = &self.cluster {
            for (what, table) in [
                ("pods", cluster.cache.pods()),
                ("definitions", cluster.cache.definitions()),
                ("policies", cluster.cache.policy_table()),
            ] {
                if table.age.is_none() {
                    reasons.push(format!("{what}: the API server has not answered yet"));
                }
            }
        }
        reasons
    }

    /// Our own plugin as the runtime's configuration has it.
    fn own_plugin(&self) -> Result<NetConf, CniError> {
        let file = self.config.cni_config_dir.join(runtime_conf::FILE);
        let bytes = std::fs::read(&file).map_err(|e| {
            CniError::new(code::TRY_AGAIN, format!("{}: {e}", file.display())).with_details(
                "the agent writes it as soon as it knows the default network; /readyz says what it waits for",
            )
        })?;
        ConfList::parse(&bytes)?.request(0, None, &Map::new())
    }

    fn state_dir(&self) -> PathBuf {
        PathBuf::from(self.config.plugin_text("cniDir").unwrap_or(STATE_DIR))
    }

    /// Brings the gauges up to date.
    fn measure(&self) {
        let load = self.pool.load();
        self.metrics.load(load.waiting, load.running);
        if let Some(cluster) = &self.cluster {
            for (which, table) in [
                (metrics::Cache::Pods, cluster.cache.pods()),
                (metrics::Cache::Definitions, cluster.cache.definitions()),
                (metrics::Cache::Policies, cluster.cache.policy_table()),
            ] {
                self.metrics.cached(which, table.objects, table.age);
            }
        }
    }
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// Its configuration is wrong, or a socket cannot be had.
pub fn run(file: &Path) -> anyhow::Result<()> {
    let config = Arc::new(AgentConfig::read(file).map_err(|error| anyhow::anyhow!("{error}"))?);
    crate::log::start_agent(&config);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    // Before there is a second thread: a process with several of them cannot change its mounts.
    let kept = Kept::open(Path::new(SERVICE_ACCOUNT), file);
    let mounts = host_mounts::enter(config.host_mount_namespace.as_deref());
    if let Some(problem) = mounts.problem() {
        tracing::error!("no work is taken: {problem}");
    }
    musubi_delegates::cni::request::quieten_panics();
    musubi_delegates::sys::share_memory();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(serve(config, mounts, kept))
}

async fn serve(config: Arc<AgentConfig>, mounts: HostMounts, kept: Kept) -> anyhow::Result<()> {
    let socket = bind(&config)?;
    let metrics = Arc::new(Metrics::new());
    let (states, runtime_conf) =
        latest::channel(runtime_conf::State::Waiting { reason: "the agent has just started".into() });
    let agent = Arc::new(Agent {
        pool: Pool::new(config.workers, config.queue),
        cluster: cluster(&config, &kept, &metrics),
        plugin_cgroup: plugin_cgroup::make(&mounts, config.memory_limit),
        metrics,
        history: History::default(),
        runtime_conf,
        stopping: AtomicBool::new(false),
        mounts,
        config,
    });
    if let Some(cluster) = &agent.cluster {
        let pods = PodsOfNode { node: agent.config.node_name() };
        let live = agent.config.cache;
        tokio::spawn(follow(Arc::clone(&cluster.connection), pods, cluster.cache.follow_pods(), live));
        tokio::spawn(follow(Arc::clone(&cluster.connection), Definitions, cluster.cache.follow_definitions(), live));
        tokio::spawn(follow(Arc::clone(&cluster.connection), AllPolicies, cluster.cache.follow_policies(), live));
    }
    if agent.mounts.problem().is_none() {
        keep_credentials(&agent.config, &kept);
        let config = Arc::clone(&agent.config);
        thread("runtime-conf", move || runtime_conf::keep(config, &states))?;
        let worker = Arc::clone(&agent);
        thread("upkeep", move || upkeep::keep(&worker))?;
    }
    if let Some(address) = agent.config.metrics_address {
        let listener = TcpListener::bind(address).await.with_context(|| format!("metricsAddress {address}"))?;
        tokio::spawn(accept_metrics(Arc::clone(&agent), listener));
    }
    tracing::info!(socket = %agent.config.socket().display(), version = env!("CARGO_PKG_VERSION"), "serving");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        () = accept_calls(Arc::clone(&agent), socket) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    farewell(&agent).await;
    Ok(())
}

/// What was taken is brought to its end; what comes now finds no socket and is done by whoever asks.
async fn farewell(agent: &Agent) {
    agent.stopping.store(true, Ordering::Relaxed);
    let until = Instant::now() + FAREWELL;
    let busy = || agent.pool.load().waiting + agent.pool.load().running > 0;
    while busy() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The last answers are on their way.
    tokio::time::sleep(Duration::from_millis(50)).await;
    tracing::info!("stopped");
}

fn cluster(config: &AgentConfig, kept: &Kept, metrics: &Arc<Metrics>) -> Option<Cluster> {
    let source = match (config.plugin_text("kubeconfig"), &kept.service_account, api_server()) {
        _ if config.plugin_text("manifestDir").is_some() => return None,
        (Some(file), _, _) => Source::Kubeconfig(PathBuf::from(file)),
        // By its handle: the path is the container's, whose mounts are not this process's any more.
        (None, Some(folder), Some(server)) => Source::ServiceAccount { server, folder: folder.path_of("") },
        _ => {
            tracing::warn!(
                "no API server: neither \"kubeconfig\" nor \"manifestDir\" is set, and there is no service account"
            );
            return None;
        }
    };
    let counts = Arc::clone(metrics);
    let observer = Arc::new(move |request, took, status| {
        let answer = if status == 0 { Answer::None } else { Answer::Status(status) };
        counts.api_request(request, answer, took);
    });
    let connection = Arc::new(Connection::on(Handle::current(), source, Some(observer)));
    let send = events::sender(Arc::clone(&connection), config.events_per_second, Arc::clone(metrics));
    Some(Cluster { connection, cache: Arc::new(ClusterCache::new(config.cache, send)) })
}

/// The plugin on the host has no service account: it reads the agent's, as files.
fn keep_credentials(config: &AgentConfig, kept: &Kept) {
    if let (true, Some(folder), Some(server)) = (config.wants_credentials(), &kept.service_account, api_server()) {
        let credentials = Credentials::new(folder.clone(), server, config.own_kubeconfig());
        tokio::spawn(async move { credentials.keep().await });
    }
}

/// The socket, for root alone; an earlier agent's is replaced, and the name that Multus' clients know leads to it.
fn bind(config: &AgentConfig) -> anyhow::Result<UnixListener> {
    let (socket, alias) = (config.socket(), config.multus_socket());
    let at = |step: &str| format!("{step} {}", socket.display());
    std::fs::create_dir_all(&config.socket_dir).with_context(|| at("make the folder of"))?;
    // Bound beside its name and renamed, so that it is never there with other rights, and never absent.
    let new = config.socket_dir.join(format!(".{}.sock", std::process::id()));
    remove(&new).with_context(|| at("replace"))?;
    let listener = UnixListener::bind(&new).with_context(|| at("listen on"))?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).with_context(|| at("protect"))?;
    std::fs::rename(&new, &socket).with_context(|| at("replace"))?;
    let link = config.socket_dir.join(format!(".{}.link", std::process::id()));
    let linked = remove(&link)
        .and_then(|()| std::os::unix::fs::symlink(socket.file_name().unwrap_or_default(), &link))
        .and_then(|()| std::fs::rename(&link, &alias));
    if let Err(error) = linked {
        tracing::warn!("{} does not lead to the socket: {error}", alias.display());
    }
    Ok(listener)
}

fn remove(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn accept_calls(agent: Arc<Agent>, listener: UnixListener) {
    let limit = agent.config.connection_limit.map(|limit| Arc::new(Semaphore::new(limit)));
    loop {
        let permit = match &limit {
            Some(limit) => Arc::clone(limit).acquire_owned().await.ok(),
            None => None,
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let agent = Arc::clone(&agent);
                tokio::spawn(async move {
                    server::serve(agent, stream, Door::Socket).await;
                    drop(permit);
                });
            }
            Err(error) => accept_failed(&error).await,
        }
    }
}

async fn accept_metrics(agent: Arc<Agent>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(server::serve(Arc::clone(&agent), stream, Door::Metrics))),
            Err(error) => accept_failed(&error).await,
        }
    }
}

/// No descriptors are left, most likely: some come back.
async fn accept_failed(error: &io::Error) {
    tracing::warn!("accept: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).with_context(|| format!("start thread {name}"))?;
    Ok(())
}

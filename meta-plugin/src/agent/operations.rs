//! Taking calls: from a client's body to a request, its container's lock, a place in the queue, and the engine. How calls
//! arrive and answers leave is the server's business.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use musubi_delegates::cni::request::guarded;
use musubi_delegates::cni::{CniError, CniResult, NetConf, Request, Version, code};
use musubi_delegates::netns::Namespace;
use serde_json::Value;
use tokio::sync::oneshot;

use super::Agent;
use super::history::{Entry, Failure, NetworkEntry, milliseconds};
use super::protocol::{Call, InterfaceAttributes, TAKE_TIME, identity};
use crate::cancel::Cancel;
use crate::config::Config;
use crate::engine::{self, Caller, Work, caller, hotplug, locking};
use crate::lock::ContainerLock;
use crate::store::{KubernetesStore, Store};

/// How often a lock that another holds is tried again.
const POLL: Duration = Duration::from_millis(5);
/// Every how many tries what a dead operation left running is looked for.
const LOOK_AROUND: u32 = 10;
/// What is left of [`TAKE_TIME`] for the answer to arrive.
const MARGIN: Duration = Duration::from_millis(50);

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Client {
    /// Our exec'd plugin, which works itself unless the call is taken in time.
    Ours {
        /// Its id for the request.
        id: String,
        /// [`identity`] of `CNI_NETNS` as it sees it.
        netns: Option<String>,
        /// [`identity`] of the state folder as it sees it.
        state: Option<String>,
    },
    /// One of Multus' clients, which waits and wants a result of CNI 1.0.0.
    Multus,
}

/// A call that is taken: the outcome comes, and nobody has to wait for it.
pub(super) struct Taken {
    /// The request's id.
    pub id: String,
    /// The version of what it asks for.
    pub version: Version,
    /// Where the outcome arrives.
    pub outcome: oneshot::Receiver<Result<Option<Value>, CniError>>,
    /// To be set when nobody waits any more.
    pub cancel: Cancel,
}

/// Why a call is not taken: the HTTP status and, for a person or as a CNI error, the reason.
#[derive(Debug)]
pub(super) struct Refused {
    pub status: u16,
    pub error: CniError,
}

impl Refused {
    fn unavailable(error: CniError) -> Self {
        Self { status: 503, error }
    }
}

/// A call with all that is known before anything is done.
struct Prepared {
    request: Request,
    config: Config,
    caller: Caller,
    /// What is asked of a hot-plugged interface; `None` for a request of the runtime's own kind.
    hot_plug: Option<InterfaceAttributes>,
    started: Instant,
    deadline: Instant,
}

/// Takes a call: from here to its outcome it is this agent's.
pub(super) async fn take(agent: &Arc<Agent>, client: Client, call: Call, hot_plug: bool) -> Result<Taken, Refused> {
    if let Some(reason) = agent.takes_no_work() {
        return Err(Refused::unavailable(CniError::new(code::TRY_AGAIN, reason)));
    }
    let prepared = prepare(agent, &client, call, hot_plug).map_err(|error| Refused { status: 400, error })?;
    if let Client::Ours { netns, state, .. } = &client {
        refuse_another_file(prepared.request.netns.as_deref(), netns.as_deref())?;
        refuse_another_file(Some(&prepared.config.cni_dir), state.as_deref())?;
    }
    let lock = take_lock(&prepared, &client).await.map_err(Refused::unavailable)?;
    let (id, cancel) = (prepared.caller.id.clone(), prepared.caller.cancel.clone());
    let version = prepared.request.version;
    let (sender, outcome) = oneshot::channel();
    let shared = Arc::clone(agent);
    let job = Job { prepared, lock, sender, wants_1_0_0: client == Client::Multus, agent: shared };
    match agent.pool.submit(Box::new(move || job.run())) {
        Ok(()) => Ok(Taken { id, version, outcome, cancel }),
        // Whoever is turned away leaves nothing: the job that comes back holds the lock, and drops it.
        Err(_) => Err(Refused::unavailable(
            CniError::new(code::TRY_AGAIN, "the agent's queue is full")
                .with_details("\"queue\" says how long it may be"),
        )),
    }
}

fn prepare(agent: &Agent, client: &Client, call: Call, hot_plug: bool) -> Result<Prepared, CniError> {
    let started = Instant::now();
    let stdin = match client {
        // The delegate's own configuration is what is plugged; ours is the agent's.
        _ if hot_plug => call.config.clone(),
        Client::Multus => overlaid(&call.config, &agent.own_plugin()?)?,
        Client::Ours { .. } => call.config.clone(),
    };
    let own = if hot_plug { Some(hotplug::config(&agent.own_plugin()?)?) } else { None };
    let variable = |name: &str| match (call.env.get(name), &own) {
        // The dynamic-networks controller says nothing of where plugins are.
        (None, Some(own)) if name == "CNI_PATH" => Some(own.bin_dir.display().to_string()),
        (value, _) => value.cloned(),
    };
    let request = Request::read(&variable, &mut stdin.as_slice())?;
    request.admit()?;
    let config = own.map_or_else(|| engine::read_config(&request), Ok)?;
    let id = match client {
        Client::Ours { id, .. } => id.clone(),
        Client::Multus => caller::new_id(),
    };
    let caller = Caller::of_client(id, call.env.into_iter().collect(), agent.plugin_cgroup.clone());
    let deadline = started + config.timeout;
    let hot_plug = hot_plug.then(|| call.interface_attributes.unwrap_or_default());
    Ok(Prepared { request, config, caller, hot_plug, started, deadline })
}

/// As in Multus, the agent's configuration goes over what a client of Multus sends, which holds little more than a type.
fn overlaid(sent: &[u8], own: &NetConf) -> Result<Vec<u8>, CniError> {
    let mut conf = NetConf::parse(sent)?;
    for (key, value) in own.0.iter().filter(|(key, _)| !["cniVersion", "name", "runtimeConfig"].contains(&key.as_str()))
    {
        conf.insert(key, value.clone());
    }
    Ok(conf.to_bytes())
}

/// Paths mean the same to both only while both see the same files.
fn refuse_another_file(path: Option<&Path>, theirs: Option<&str>) -> Result<(), Refused> {
    let (Some(path), Some(theirs)) = (path, theirs) else { return Ok(()) };
    let ours = identity(path);
    if ours.as_deref() == Some(theirs) {
        return Ok(());
    }
    let (path, ours) = (path.display(), ours.map_or("nothing".to_owned(), |ours| format!("file {ours}")));
    let problem = format!("{path} is file {theirs} to the client and {ours} to the agent");
    let advice = "the agent must see the host's mounts; /readyz says whether it does";
    Err(Refused { status: 409, error: CniError::new(code::NAMESPACE, problem).with_details(advice) })
}

/// Our client works itself when the lock cannot be had soon; others wait as long as the operation may take.
async fn take_lock(prepared: &Prepared, client: &Client) -> Result<Option<ContainerLock>, CniError> {
    let Some(container) = &prepared.request.container_id else { return Ok(None) };
    let until = match client {
        Client::Ours { .. } => prepared.started + TAKE_TIME - MARGIN,
        Client::Multus => prepared.deadline,
    };
    let mut tries = 0u32;
    loop {
        match locking::attempt(&prepared.config.cni_dir, container, tries % LOOK_AROUND == 1) {
            Err(error) if error.code != code::TRY_AGAIN || Instant::now() >= until => return Err(error),
            Err(_) => tokio::time::sleep(POLL).await,
            Ok(lock) => return Ok(Some(lock)),
        }
        tries += 1;
    }
}

thread_local! {
    /// The host's namespace as a worker has it open, from one operation to the next.
    static HOST: Cell<Option<Namespace>> = const { Cell::new(None) };
}

/// A call in the queue.
struct Job {
    agent: Arc<Agent>,
    prepared: Prepared,
    lock: Option<ContainerLock>,
    sender: oneshot::Sender<Result<Option<Value>, CniError>>,
    wants_1_0_0: bool,
}

impl Job {
    fn run(self) {
        let Self { agent, prepared, lock, sender, wants_1_0_0 } = self;
        let outcome = guarded(|| work(&agent, &prepared, lock));
        let Prepared { request, caller, started, .. } = &prepared;
        remember(&agent, request, caller, *started, outcome.as_ref().err());
        crate::log::operation(request, caller, *started, outcome.as_ref().err());
        let outcome = match outcome {
            Ok(Some(result)) if wants_1_0_0 => as_1_0_0(&result, request.version).map(Some),
            other => other,
        };
        // Whoever has gone away finds the outcome in the record.
        let _ = sender.send(outcome);
    }
}

fn work(agent: &Agent, prepared: &Prepared, lock: Option<ContainerLock>) -> Result<Option<Value>, CniError> {
    let Prepared { request, config, caller, hot_plug, deadline, .. } = prepared;
    let read = || store(agent, config, *deadline, &caller.cancel);
    let store = engine::store_for(request, config, &read)?;
    let host = HOST.take().map_or_else(Namespace::current, Ok)?;
    let work = Work { request, config: config.clone(), caller, store, host: &host, deadline: *deadline, lock };
    let outcome = match hot_plug {
        Some(attributes) => hotplug::carry_out(work, attributes),
        None => engine::carry_out(work),
    };
    // After a failure its sockets may be in the middle of a conversation.
    HOST.set(outcome.is_ok().then_some(host));
    outcome
}

/// Folders of manifests are read as by the plugin; the API is the agent's own connection.
fn store(agent: &Agent, config: &Config, deadline: Instant, cancel: &Cancel) -> Result<Box<dyn Store>, CniError> {
    match &agent.cluster {
        Some(cluster) if config.manifest_dir.is_none() => {
            let cache = Arc::clone(&cluster.cache);
            Ok(Box::new(KubernetesStore::new(Arc::clone(&cluster.connection), Some(cache), deadline, cancel.clone())))
        }
        _ => engine::read_store(config, deadline, cancel),
    }
}

fn as_1_0_0(result: &Value, version: Version) -> Result<Value, CniError> {
    CniResult::parse(result, version)?.to_json(Version::V1_0_0)
}

fn remember(agent: &Agent, request: &Request, caller: &Caller, started: Instant, error: Option<&CniError>) {
    let took = started.elapsed();
    let code = error.map(|error| error.code);
    agent.metrics.operation(request.command, code, took);
    let steps = caller.steps();
    for step in &steps {
        agent.metrics.network(request.command, &step.kind, step.error, step.took);
    }
    let argument = |key| request.args.get(key).unwrap_or_default();
    let (namespace, name) = (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME"));
    agent.history.record(Entry {
        request_id: caller.id.clone(),
        verb: request.command.to_string(),
        pod: if name.is_empty() { String::new() } else { format!("{namespace}/{name}") },
        container_id: request.container_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        networks: steps
            .into_iter()
            .map(|step| NetworkEntry {
                network: step.network,
                interface: step.interface,
                milliseconds: milliseconds(step.took),
            })
            .collect(),
        started: jiff::Timestamp::now() - jiff::SignedDuration::try_from(took).unwrap_or_default(),
        milliseconds: milliseconds(took),
        error: error.map(|error| Failure { code: error.code, message: error.to_string() }),
    });
}

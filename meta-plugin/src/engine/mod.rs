//! The engine: carries requests out. One file a verb; what they share is here: the operation at hand, and running one
//! plugin of a chain, ours or another's.

mod add;
mod by_name;
pub mod caller;
mod check;
mod default_route;
mod del;
mod events;
pub mod gc;
pub mod hotplug;
pub(crate) mod locking;
pub mod pending;
mod teardown;
mod withdraw;

use std::cell::Cell;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use musubi_delegates::cni::request::{self, STDIN_MAX, guarded};
use musubi_delegates::cni::{
    CniArgs, CniError, CniResult, Command, ContainerId, InterfaceName, NetConf, NetworkName, Request, Version, code,
};
use musubi_delegates::delegate::{Attachment, Context};
use musubi_delegates::external::{self, ExecRequest, Surroundings};
use musubi_delegates::netns::Namespace;
use serde_json::Value;

pub use self::caller::Caller;
use crate::agent;
use crate::agent::client::Asked;
use crate::cancel::Cancel;
use crate::config::Config;
use crate::lock::ContainerLock;
use crate::records::Records;
use crate::store::kubernetes::{Connection, Source};
use crate::store::{DirectoryStore, KubernetesStore, NoStore, Store};

/// One request being carried out.
pub struct Operation<'a> {
    request: &'a Request,
    caller: &'a Caller,
    config: Config,
    store: Box<dyn Store>,
    records: Records,
    host: &'a Namespace,
    path: Vec<PathBuf>,
    deadline: Instant,
    lock: Cell<Option<ContainerLock>>,
}

/// Is our CNI plugin: has the agent answer the request in environment and stdin, or does it itself, and does afterwards
/// what can wait.
#[must_use]
pub fn serve() -> ExitCode {
    request::quieten_panics();
    let (caller, started) = (Caller::new(), Instant::now());
    let (mut stdin, mut why) = (Vec::new(), String::new());
    // VERSION comes without stdin, and the agent is not asked for it. What cannot be read is for the request's own reader.
    if std::env::var_os("CNI_COMMAND").is_some_and(|command| command != Command::Version.as_str()) {
        let _ = io::stdin().lock().take(STDIN_MAX + 1).read_to_end(&mut stdin);
        match guarded(|| Ok(agent::client::ask(&stdin, &caller.id))) {
            Ok(Asked::Answered(answer)) => return answer.print(),
            Ok(Asked::NotAnswered(reason)) => why = reason,
            Err(error) => why = error.to_string(),
        }
    }
    let mut known = None;
    let mut stdin = stdin.as_slice().chain(io::stdin().lock());
    let alone = |request: &Request| perform(request, &caller, started, &why, &mut known);
    let code = request::answer(&request::own_environment, &mut stdin, alone).print();
    if let Some(config) =
        known.filter(|config| gc::orphans_are_due(&config.cni_dir) || pending::is_due(&config.cni_dir))
    {
        tidy_up(&config);
    }
    code
}

/// Does the work without the agent, because of `why`.
fn perform(
    request: &Request,
    caller: &Caller,
    started: Instant,
    why: &str,
    known: &mut Option<Config>,
) -> Result<Option<Value>, CniError> {
    let config = read_config(request)?;
    crate::log::start(&config);
    tracing::debug!("without the agent: {why}");
    *known = Some(config.clone());
    let deadline = started + config.timeout;
    let store = || read_store(&config, deadline, &caller.cancel);
    let outcome = store_for(request, &config, &store).and_then(|store| {
        let host = Namespace::current()?;
        carry_out(Work { request, config: config.clone(), caller, store, host: &host, deadline, lock: None })
    });
    crate::log::operation(request, caller, started, outcome.as_ref().err());
    outcome
}

/// Our configuration in a request.
///
/// # Errors
/// It is wrong; for DEL, so wrong that no record can be found.
pub fn read_config(request: &Request) -> Result<Config, CniError> {
    match request.command {
        Command::Del => Config::parse_for_del(&request.conf),
        _ => Config::parse(&request.conf),
    }
}

/// An operation with all that it is given.
pub struct Work<'a> {
    /// What is asked for.
    pub request: &'a Request,
    /// Our configuration in it.
    pub config: Config,
    /// Who asks.
    pub caller: &'a Caller,
    /// Where pods and definitions are.
    pub store: Box<dyn Store>,
    /// The host's namespace.
    pub host: &'a Namespace,
    /// When it must have ended.
    pub deadline: Instant,
    /// The container's lock, where it is held already.
    pub lock: Option<ContainerLock>,
}

/// Carries an operation out.
///
/// # Errors
/// What failed; ADD has undone itself by then.
pub fn carry_out(work: Work<'_>) -> Result<Option<Value>, CniError> {
    with_operation(work, |operation| operation.run())
}

fn with_operation<T>(
    work: Work<'_>,
    carry_out: impl FnOnce(&Operation<'_>) -> Result<T, CniError>,
) -> Result<T, CniError> {
    let Work { request, config, caller, store, host, deadline, lock } = work;
    for warning in config.warnings.iter().chain(&store.warnings()) {
        tracing::warn!("{warning}");
    }
    let operation = Operation {
        request,
        caller,
        store,
        records: Records::of(&config.cni_dir),
        host,
        path: config.plugin_path(&request.path),
        deadline,
        config,
        lock: Cell::new(lock),
    };
    let container = request.container_id.as_ref().map(ContainerId::as_str);
    let outcome = tracing::debug_span!("operation", command = %request.command, container, request = caller.id)
        .in_scope(|| carry_out(&operation));
    // A lock that no verb came to take protects nothing that is there.
    if let Some(lock) = operation.lock.take() {
        lock.remove();
    }
    outcome.map_err(|error| caller.signed(error))
}

/// Orphans of earlier DELs and statuses that could not be written are tried again by a process of its own, which the
/// runtime does not wait for.
fn tidy_up(config: &Config) {
    let Ok(program) = std::env::current_exe() else { return };
    let mut command = process::Command::new(program);
    command.args(["gc", "--unfinished-only", "--state-dir"]).arg(&config.cni_dir);
    match (&config.manifest_dir, &config.kubeconfig) {
        (Some(folder), _) => drop(command.arg("--manifests").arg(folder)),
        (None, Some(file)) => drop(command.arg("--kubeconfig").arg(file)),
        (None, None) => {}
    }
    command.env_remove("CNI_COMMAND").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Err(error) = command.spawn() {
        tracing::warn!("cannot start {command:?}: {error}");
    }
}

impl Operation<'_> {
    fn run(&self) -> Result<Option<Value>, CniError> {
        match self.request.command {
            Command::Add => self.add().map(Some),
            Command::Del => self.del().map(|()| None),
            Command::Check => self.check().map(|()| None),
            Command::Status => self.status().map(|()| None),
            Command::Gc => self.gc().map(|()| None),
            Command::Version => Ok(None),
        }
    }

    fn hands(&self) -> Hands<'_> {
        Hands {
            host: self.host,
            path: &self.path,
            state_dir: &self.config.cni_dir,
            deadline: self.deadline,
            programs: Surroundings {
                environment: self.caller.environment.as_deref(),
                cgroup: self.caller.plugin_cgroup.as_deref(),
                is_cancelled: None,
            },
            agent_removes_shared: self.caller.agent_removes_shared,
        }
    }

    /// The container's lock: the one that is held already, or as soon as it can be had.
    fn take_lock(&self, container: &ContainerId) -> Result<ContainerLock, CniError> {
        match self.lock.take() {
            Some(lock) => Ok(lock),
            None => locking::take(&self.config.cni_dir, container, self.deadline),
        }
    }

    fn own_network(&self) -> Result<NetworkName, CniError> {
        self.request.conf.name()
    }

    /// Waits for the file that says the default network can be used.
    fn wait_until_ready(&self) -> Result<(), CniError> {
        let Some(file) = &self.config.readiness_file else { return Ok(()) };
        while !file.exists() {
            self.caller.cancel.check()?;
            if Instant::now() >= self.deadline {
                return Err(not_ready(file, code::TRY_AGAIN));
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Ok(())
    }
}

/// The store of an operation. DEL depends on nothing but the record and asks nobody; it knows where statuses are.
///
/// # Errors
/// The store cannot be read; for STATUS that is code 50.
pub fn store_for(
    request: &Request,
    config: &Config,
    read: &dyn Fn() -> Result<Box<dyn Store>, CniError>,
) -> Result<Box<dyn Store>, CniError> {
    match (&config.manifest_dir, request.command) {
        (Some(folder), Command::Del) => Ok(Box::new(DirectoryStore::empty(folder))),
        (None, Command::Del) => Ok(Box::new(NoStore)),
        (_, Command::Status) => read().map_err(|e| CniError { code: code::NOT_AVAILABLE, ..e }),
        _ => read(),
    }
}

/// The store that a configuration names: a folder's manifests, or the API server's objects.
///
/// # Errors
/// It cannot be read.
pub fn read_store(config: &Config, deadline: Instant, cancel: &Cancel) -> Result<Box<dyn Store>, CniError> {
    Ok(match (&config.manifest_dir, &config.kubeconfig) {
        (Some(folder), _) => Box::new(DirectoryStore::read(folder)?),
        (None, Some(file)) => {
            let connection = Connection::alone(Source::Kubeconfig(file.clone()))?;
            Box::new(KubernetesStore::new(Arc::new(connection), None, deadline, cancel.clone()))
        }
        (None, None) => Box::new(NoStore),
    })
}

fn not_ready(file: &Path, code: u32) -> CniError {
    CniError::new(code, format!("the default network is not ready: {} does not exist yet", file.display()))
        .with_details(
            "the file of \"readinessindicatorfile\" is written by the cluster's primary network; is it running?",
        )
}

/// What it takes to run plugins: the place, without any request.
#[derive(Clone, Copy)]
pub struct Hands<'a> {
    /// The host's namespace.
    pub host: &'a Namespace,
    /// Folders with plugin binaries.
    pub path: &'a [PathBuf],
    /// Our state folder.
    pub state_dir: &'a Path,
    /// When everything must have ended.
    pub deadline: Instant,
    /// What external plugins share.
    pub programs: Surroundings<'a>,
    /// Whether devices that pods share are left for an agent to remove.
    pub agent_removes_shared: bool,
}

/// One network's attachment as its plugins are told of it.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// Whose it is.
    pub container_id: &'a ContainerId,
    /// The network's CNI name.
    pub network: &'a NetworkName,
    /// The configuration's version.
    pub version: Version,
    /// Its interface in the pod.
    pub interface: &'a InterfaceName,
    /// `CNI_ARGS`.
    pub args: &'a CniArgs,
    /// `CNI_NETNS`; `None` once the namespace is not the pod's any more.
    pub netns: Option<&'a Path>,
    /// The pod's namespace.
    pub pod: Option<&'a Namespace>,
    /// `IFLA_GROUP` of its links.
    pub group: std::num::NonZeroU32,
}

impl<'a> Hands<'a> {
    /// The same, whose plugins are killed as soon as nobody waits for them.
    #[must_use]
    pub fn while_wanted<'b>(self, is_cancelled: &'b dyn Fn() -> bool) -> Hands<'b>
    where
        'a: 'b,
    {
        Hands { programs: Surroundings { is_cancelled: Some(is_cancelled), ..self.programs }, ..self }
    }

    /// What a native delegate is told of a network.
    #[must_use]
    pub fn context(&self, network: &'a NetworkName, version: Version, conf: &'a NetConf) -> Context<'a> {
        Context {
            network,
            conf,
            version,
            path: self.path,
            state_dir: self.state_dir,
            mark: Records::of(self.state_dir).mark(),
            deadline: self.deadline,
            host: self.host,
            programs: self.programs,
            agent_removes_shared: self.agent_removes_shared,
        }
    }

    /// What a native delegate is told of an attachment.
    #[must_use]
    pub fn attachment(&self, target: &Target<'a>, conf: &'a NetConf, prev: Option<&'a CniResult>) -> Attachment<'a> {
        Attachment {
            context: self.context(target.network, target.version, conf),
            container_id: target.container_id,
            interface: target.interface,
            args: target.args,
            netns: target.netns,
            pod: target.pod,
            group: Some(target.group),
            prev_result: prev,
        }
    }

    /// Runs another's plugin for an attachment.
    ///
    /// # Errors
    /// The plugin's own, or that it could not be run.
    pub fn exec<'b>(
        &'b self,
        command: Command,
        plugin: &'b Path,
        target: &'b Target<'b>,
        stdin: &'b [u8],
        lock: Option<&'b ContainerLock>,
        on_spawn: Option<&'b mut dyn FnMut(u32)>,
    ) -> Result<Option<Value>, CniError> {
        use std::os::fd::AsFd;
        external::exec(ExecRequest {
            plugin,
            command,
            container_id: Some(target.container_id),
            netns: target.netns,
            interface: Some(target.interface),
            args: target.args,
            path: self.path,
            stdin,
            deadline: self.deadline,
            surroundings: self.programs,
            inherit: lock.map(AsFd::as_fd),
            on_spawn,
        })
    }

    /// Runs another's plugin for a network as a whole (STATUS, GC).
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub fn exec_network(&self, command: Command, plugin: &Path, stdin: &[u8]) -> Result<Option<Value>, CniError> {
        external::exec(ExecRequest {
            plugin,
            command,
            container_id: None,
            netns: None,
            interface: None,
            args: &CniArgs::default(),
            path: self.path,
            stdin,
            deadline: self.deadline,
            surroundings: self.programs,
            inherit: None,
            on_spawn: None,
        })
    }
}

/// A delegate's failure as ours: code 100 with its own inside, and where it happened. Codes that tell the runtime what to
/// do (try again, the namespace, STATUS) stay what they are.
#[must_use]
pub fn delegate_failed(network: &str, interface: &str, plugin_type: &str, error: CniError) -> CniError {
    let place = format!("network {network}, interface {interface}, plugin {plugin_type}");
    let kept =
        [code::NAMESPACE, code::TRY_AGAIN, code::NOT_AVAILABLE, code::LIMITED, code::DELEGATE, code::UNDO_INCOMPLETE];
    if kept.contains(&error.code) {
        return error.context(place);
    }
    let code = error.code;
    CniError { code: code::DELEGATE, msg: format!("{place}: {} (code {code})", error.msg), details: error.details }
}

/// Refuses the namespaces that no pod may have: the host's, and that of process 1 (a hostNetwork pod).
///
/// # Errors
/// Code 8.
fn refuse_host_namespace(pod: &Namespace, host: &Namespace) -> Result<(), CniError> {
    use std::os::unix::fs::MetadataExt;
    let of_init = std::fs::metadata("/proc/1/ns/net").ok().map(|m| (m.dev(), m.ino()));
    let is_init = of_init == Some((pod.identity.device, pod.identity.inode));
    if is_init || pod.identity.is_same(&host.identity) {
        return Err(CniError::new(
            code::NAMESPACE,
            format!("network namespace {} is the host's own", pod.path.display()),
        )
        .with_details("a hostNetwork pod gets no interfaces of its own"));
    }
    Ok(())
}

/// Several errors as one: all messages, the first's details.
pub(super) fn joined(errors: &[CniError]) -> CniError {
    let first = errors.first().cloned().unwrap_or_else(|| CniError::new(code::DELEGATE, "DEL failed"));
    let messages: Vec<&str> = errors.iter().map(|e| e.msg.as_str()).collect();
    CniError { msg: messages.join("; "), ..first }
}

/// Whether the last try is long enough ago; if so, this is one. The file's time says when that was.
pub(super) fn is_time(tried: &Path, interval: Duration) -> bool {
    let age = std::fs::metadata(tried).and_then(|m| m.modified()).ok().and_then(|time| time.elapsed().ok());
    age.is_none_or(|age| age >= interval) && std::fs::write(tried, "").is_ok()
}

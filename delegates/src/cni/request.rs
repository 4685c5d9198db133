//! One call of a plugin: environment and stdin in, at most one JSON document out. The order of the checks is that of the
//! reference plugins' skeleton; what a command does is left to the handler.

use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::args::CniArgs;
use super::conf::NetConf;
use super::error::{CniError, code};
use super::names::{ContainerId, InterfaceName, shown};
use super::version::Version;

/// The most a configuration on stdin may hold, in bytes.
pub const STDIN_MAX: u64 = 16 << 20;

/// `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    /// Every command.
    pub const ALL: [Command; 6] = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];

    /// Reads `CNI_COMMAND`; code 4 for another word.
    pub fn parse(s: &str) -> Result<Self, CniError> {
        Self::ALL.into_iter().find(|command| command.as_str() == s).ok_or_else(|| {
            let accepted = Self::ALL.map(Self::as_str).join(", ");
            CniError::new(code::ENVIRONMENT, format!("CNI_COMMAND must be one of {accepted}, not {}", shown(s)))
        })
    }

    /// The command as it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The oldest configuration version that knows the command (CNI 1.1 §CNI operations).
    pub fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }

    /// The variables that must be set and not empty.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Gc => &["CNI_PATH"],
            // The reference skeleton asks STATUS for CNI_PATH, the specification does not.
            Self::Status | Self::Version => &[],
        }
    }

    fn is_about_one_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Check | Self::Del)
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a runtime asks of a plugin. Identity is there for ADD, CHECK and DEL, and for no other command.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// `CNI_CONTAINERID`.
    pub container_id: Option<ContainerId>,
    /// `CNI_NETNS`; DEL may come without.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`.
    pub interface: Option<InterfaceName>,
    /// `CNI_ARGS`.
    pub args: CniArgs,
    /// `CNI_PATH`, where plugins are.
    pub path: Vec<PathBuf>,
    /// The configuration on stdin; empty for VERSION.
    pub conf: NetConf,
    /// stdin as it came.
    pub stdin: Vec<u8>,
    /// The configuration's version.
    pub version: Version,
    /// `CNI_NETNS_OVERRIDE`: the plugin's own namespace is meant (the reference skeleton's variable).
    pub netns_override: bool,
}

impl Request {
    /// Reads a request. All variables that are missing are named in one error (code 4). stdin is not read for VERSION.
    pub fn read(env: &dyn Fn(&str) -> Option<String>, stdin: &mut dyn Read) -> Result<Request, CniError> {
        read(env, stdin).map_err(|refusal| refusal.error)
    }

    /// The container's id; an error for a command that has none.
    pub fn container_id(&self) -> Result<&ContainerId, CniError> {
        self.container_id.as_ref().ok_or_else(|| self.absent("CNI_CONTAINERID"))
    }

    /// The interface's name; an error for a command that has none.
    pub fn interface(&self) -> Result<&InterfaceName, CniError> {
        self.interface.as_ref().ok_or_else(|| self.absent("CNI_IFNAME"))
    }

    /// The namespace's path; an error where it was not given.
    pub fn netns(&self) -> Result<&Path, CniError> {
        self.netns.as_deref().ok_or_else(|| self.absent("CNI_NETNS"))
    }

    fn absent(&self, variable: &str) -> CniError {
        CniError::new(code::ENVIRONMENT, format!("{variable} is not set for {}", self.command))
    }
}

/// Runs a plugin as a process: reads the request, calls `handler`, prints its answer or an error object in one write.
/// A panic is an error object too. VERSION is answered here; a command newer than the configuration is refused (code 1), and so is work in
/// this process's own network namespace, before the handler is called (code 8).
pub fn serve(handler: impl FnOnce(&Request) -> Result<Option<Value>, CniError>) -> ExitCode {
    std::panic::set_hook(Box::new(remember_panic));
    let env = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let (text, ok) = answer(&env, &mut io::stdin().lock(), handler);
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    if ok && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What [`serve`] prints, and whether it is a success.
pub fn answer(
    env: &dyn Fn(&str) -> Option<String>,
    stdin: &mut dyn Read,
    handler: impl FnOnce(&Request) -> Result<Option<Value>, CniError>,
) -> (String, bool) {
    let outcome = read(env, stdin).and_then(|request| {
        let version = request.version;
        perform(&request, handler).map_err(|error| Refusal { error, version })
    });
    match outcome {
        Ok(None) => (String::new(), true),
        Ok(Some(value)) => (value.to_string(), true),
        Err(refusal) => (refusal.error.to_json(refusal.version).to_string(), false),
    }
}

/// An error, and the version of the object that tells it.
struct Refusal {
    error: CniError,
    version: Version,
}

impl From<CniError> for Refusal {
    fn from(error: CniError) -> Self {
        Self { error, version: Version::LATEST }
    }
}

fn read(env: &dyn Fn(&str) -> Option<String>, stdin: &mut dyn Read) -> Result<Request, Refusal> {
    let mut request = read_environment(env)?;
    if request.command == Command::Version {
        return Ok(request);
    }
    request.stdin = read_stdin(stdin)?;
    request.conf = NetConf::parse(&request.stdin)?;
    request.version = request.conf.version()?;
    let version = request.version;
    request.conf.name().map_err(|error| Refusal { error, version })?;
    Ok(request)
}

fn read_environment(env: &dyn Fn(&str) -> Option<String>) -> Result<Request, CniError> {
    let get = |name: &str| env(name).filter(|value| !value.is_empty());
    let command = get("CNI_COMMAND").ok_or_else(|| {
        CniError::new(code::ENVIRONMENT, "CNI_COMMAND is not set")
            .with_details("set it to one of ADD, DEL, CHECK, GC, STATUS, VERSION")
    })?;
    let command = Command::parse(&command)?;
    let missing: Vec<_> = command.required().iter().copied().filter(|name| get(name).is_none()).collect();
    if !missing.is_empty() {
        return Err(CniError::new(
            code::ENVIRONMENT,
            format!("{command} needs variables that are not set: {}", missing.join(", ")),
        ));
    }
    let own = |name: &str| get(name).filter(|_| command.is_about_one_attachment());
    Ok(Request {
        command,
        container_id: own("CNI_CONTAINERID").map(|id| ContainerId::parse(&id)).transpose()?,
        netns: own("CNI_NETNS").map(PathBuf::from),
        interface: own("CNI_IFNAME").map(|name| InterfaceName::parse(&name)).transpose()?,
        args: read_args(command, &get("CNI_ARGS").unwrap_or_default())?,
        path: get("CNI_PATH")
            .map(|path| std::env::split_paths(&path).filter(|entry| !entry.as_os_str().is_empty()).collect())
            .unwrap_or_default(),
        conf: NetConf::default(),
        stdin: Vec::new(),
        version: Version::LATEST,
        netns_override: get("CNI_NETNS_OVERRIDE")
            .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true")),
    })
}

/// Faulty arguments stop what makes something, never what takes it away.
fn read_args(command: Command, text: &str) -> Result<CniArgs, CniError> {
    match command {
        Command::Add | Command::Check => CniArgs::parse(text),
        _ => Ok(CniArgs::parse_lossy(text)),
    }
}

fn read_stdin(stdin: &mut dyn Read) -> Result<Vec<u8>, CniError> {
    let mut bytes = Vec::new();
    stdin.take(STDIN_MAX + 1).read_to_end(&mut bytes).map_err(|error| {
        CniError::new(code::IO, format!("cannot read the network configuration from stdin: {error}"))
    })?;
    if bytes.len() as u64 > STDIN_MAX {
        return Err(CniError::new(
            code::IO,
            format!("the network configuration on stdin is longer than {} MiB", STDIN_MAX >> 20),
        ));
    }
    Ok(bytes)
}

fn perform(
    request: &Request,
    handler: impl FnOnce(&Request) -> Result<Option<Value>, CniError>,
) -> Result<Option<Value>, CniError> {
    if request.command == Command::Version {
        return Ok(Some(
            json!({"cniVersion": Version::LATEST.as_str(), "supportedVersions": Version::ALL.map(Version::as_str)}),
        ));
    }
    if request.version < request.command.since() {
        let msg = format!(
            "{} needs cniVersion {} or newer, the configuration has {}",
            request.command,
            request.command.since(),
            request.version
        );
        return Err(CniError::new(code::INCOMPATIBLE_VERSION, msg));
    }
    refuse_own_namespace(request)?;
    let answer = catch_unwind(AssertUnwindSafe(|| handler(request)))
        .unwrap_or_else(|panic| Err(internal_error(panic.as_ref())))?;
    if request.command == Command::Add && answer.is_none() {
        return Err(CniError::new(code::DELEGATE, "internal error: ADD has no result"));
    }
    Ok(answer)
}

/// The reference skeleton looks only after the work is done, and leaves it there. A path that is gone is no fault on DEL.
fn refuse_own_namespace(request: &Request) -> Result<(), CniError> {
    let Some(path) = request.netns.as_deref().filter(|_| !request.netns_override) else {
        return Ok(());
    };
    let theirs = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(_) if request.command == Command::Del => return Ok(()),
        Err(error) => {
            return Err(CniError::new(code::NAMESPACE, format!("CNI_NETNS {}: {error}", path.display())));
        }
    };
    let own = std::fs::metadata("/proc/thread-self/ns/net").map_err(|error| {
        CniError::new(code::NAMESPACE, format!("cannot look at this process's network namespace: {error}"))
    })?;
    if (theirs.dev(), theirs.ino()) == (own.dev(), own.ino()) {
        return Err(CniError::new(
            code::NAMESPACE,
            format!("CNI_NETNS {} is the network namespace of this process", path.display()),
        )
        .with_details("give the container's namespace; pods on the host's network get no interfaces"));
    }
    Ok(())
}

/// Where the last panic was: the payload that is caught does not say.
static PANICKED_AT: Mutex<Option<String>> = Mutex::new(None);

/// In place of the default hook, whose lines on stderr say nothing to who runs a cluster.
fn remember_panic(info: &std::panic::PanicHookInfo<'_>) {
    if let Ok(mut at) = PANICKED_AT.lock() {
        *at = info.location().map(ToString::to_string);
    }
}

fn internal_error(panic: &(dyn std::any::Any + Send)) -> CniError {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let at = PANICKED_AT.lock().ok().and_then(|mut at| at.take()).map(|at| format!(" at {at}")).unwrap_or_default();
    CniError::new(code::DELEGATE, format!("internal error: {}{at}", text.unwrap_or("a panic without a message")))
        .with_details("this is a fault of the plugin: please report it")
}

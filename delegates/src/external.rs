//! External delegates: any CNI plugin, found in the plugin folders and run as a process of its own. Everything about
//! processes is here (time limit, group, pipes, errors); which plugin runs with which configuration is decided elsewhere.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{self, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cni::names::shown;
use crate::cni::{CniArgs, CniError, Command, ContainerId, InterfaceName, code};

mod process_group;

use process_group::{Collected, Group, Interruption};

/// One call of an external plugin.
pub struct ExecRequest<'a> {
    /// The program, as [`find`] returned it.
    pub plugin: &'a Path,
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`.
    pub container_id: Option<&'a ContainerId>,
    /// `CNI_NETNS`; none is sent as an empty one, which tells DEL that the namespace is gone.
    pub netns: Option<&'a Path>,
    /// `CNI_IFNAME`.
    pub interface: Option<&'a InterfaceName>,
    /// `CNI_ARGS`.
    pub args: &'a CniArgs,
    /// `CNI_PATH`.
    pub path: &'a [PathBuf],
    /// The configuration.
    pub stdin: &'a [u8],
    /// When the plugin and all that it started are killed.
    pub deadline: Instant,
    /// Further variables, set last.
    pub extra_env: &'a [(String, String)],
    /// A descriptor the plugin inherits: a lock that has to outlive this process while the plugin runs.
    pub inherit: Option<BorrowedFd<'a>>,
    /// Called with the process id, which is its group's too, once the plugin runs.
    pub on_spawn: Option<&'a mut dyn FnMut(u32)>,
}

/// The plugin's program: the first executable file named `plugin_type` in the folders of `path`. Relative folders are passed
/// over, so the working directory never matters. Code 7 when there is none, or when `plugin_type` could name a file elsewhere.
pub fn find(plugin_type: &str, path: &[PathBuf]) -> Result<PathBuf, CniError> {
    if !crate::cni::conf::is_plugin_name(plugin_type) {
        return Err(CniError::new(
            code::CONFIG,
            format!("type: must name a plugin, without `/`, not {}", shown(plugin_type)),
        ));
    }
    let folders: Vec<&Path> = path.iter().map(PathBuf::as_path).filter(|folder| is_searchable(folder)).collect();
    let joined = std::env::join_paths(&folders).unwrap_or_default();
    which::which_in(plugin_type, Some(joined), "/").map_err(|_| not_found(plugin_type, &folders))
}

/// Runs the plugin and waits for it: the value it printed for ADD (`null` included) and VERSION, nothing for other commands.
///
/// When the plugin fails with an error object, that is the error, unchanged. Otherwise the code is 100 and the message says how the plugin
/// ended and what its last line on stderr was. At the deadline its whole process group is killed. "Text file busy" (a plugin that is just being
/// installed) is tried six times.
pub fn exec(mut request: ExecRequest<'_>) -> Result<Option<Value>, CniError> {
    let started = Instant::now();
    let group = spawn_when_ready(&request).map_err(|error| cannot_start(&request, &error))?;
    if let Some(on_spawn) = request.on_spawn.as_mut() {
        on_spawn(group.id());
    }
    let collected = group.run(request.stdin, request.deadline);
    let collected = collected.map_err(|interruption| interrupted(&request, &interruption, started.elapsed()))?;
    forward(&request, &collected);
    if collected.status.success() { printed(&request, &collected) } else { Err(failure(&request, &collected)) }
}

fn is_searchable(folder: &Path) -> bool {
    // A colon cannot be told from the separator that `which` splits at.
    folder.is_absolute() && !folder.as_os_str().as_encoded_bytes().contains(&b':')
}

fn not_found(plugin_type: &str, folders: &[&Path]) -> CniError {
    let listed = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
    let problem = match folders.iter().map(|folder| folder.join(plugin_type)).find(|file| file.is_file()) {
        Some(file) => {
            return CniError::new(code::CONFIG, format!("{} is not executable", file.display()))
                .with_details("chmod +x it");
        }
        None if folders.is_empty() => "cannot be looked for: CNI_PATH names no absolute folder".to_owned(),
        None => format!("is not in {listed}"),
    };
    CniError::new(code::CONFIG, format!("plugin {} {problem}", shown(plugin_type)))
        .with_details("install it or correct \"type\"")
}

/// Waits before another try at a file that is busy. Six tries as in the reference, but within 5 seconds and short at first: an
/// installer's copy is done in milliseconds.
const BUSY_WAITS: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_millis(1000),
    Duration::from_millis(3000),
];

fn spawn_when_ready(request: &ExecRequest<'_>) -> io::Result<Group> {
    for wait in BUSY_WAITS {
        match spawn(request) {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() + wait < request.deadline => {
                thread::sleep(wait)
            }
            other => return other,
        }
    }
    spawn(request)
}

/// Held while a descriptor without close-on-exec is open, so that no plugin started by another thread of ours inherits it: the
/// other plugin would hold this container's lock. Programs that others start in this process must not be long-lived.
static SPAWNING: Mutex<()> = Mutex::new(());

fn spawn(request: &ExecRequest<'_>) -> io::Result<Group> {
    if Instant::now() >= request.deadline {
        return Err(io::Error::new(ErrorKind::TimedOut, "no time is left"));
    }
    let mut command = process::Command::new(request.plugin);
    command
        .env_clear()
        .envs(environment(std::env::vars_os(), request))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let _guard = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
    // A copy of a descriptor has no close-on-exec flag; a lock of flock(2) belongs to all copies together.
    let _inherited = request.inherit.map(nix::unistd::dup).transpose()?;
    command.spawn().map(Group::new)
}

/// What is inherited (`TRACEPARENT` and its like among it), without any `CNI_…` of our own caller, then this request's.
fn environment(
    inherited: impl Iterator<Item = (OsString, OsString)>,
    request: &ExecRequest<'_>,
) -> Vec<(OsString, OsString)> {
    let text = |value: Option<&str>| OsString::from(value.unwrap_or_default());
    let own = [
        ("CNI_COMMAND", text(Some(request.command.as_str()))),
        ("CNI_CONTAINERID", text(request.container_id.map(ContainerId::as_str))),
        ("CNI_NETNS", request.netns.map(OsString::from).unwrap_or_default()),
        ("CNI_IFNAME", text(request.interface.map(InterfaceName::as_str))),
        ("CNI_ARGS", OsString::from(request.args.to_string())),
        ("CNI_PATH", joined(request.path)),
    ];
    let extra = request.extra_env.iter().map(|(key, value)| (OsString::from(key), OsString::from(value)));
    inherited
        .filter(|(key, _)| !key.as_encoded_bytes().starts_with(b"CNI_"))
        .chain(own.map(|(key, value)| (OsString::from(key), value)))
        .chain(extra)
        .collect()
}

fn joined(path: &[PathBuf]) -> OsString {
    path.iter().map(|folder| folder.as_os_str()).collect::<Vec<_>>().join(OsStr::new(":"))
}

/// What a plugin that succeeded printed. Only ADD and VERSION have something to say.
fn printed(request: &ExecRequest<'_>, collected: &Collected) -> Result<Option<Value>, CniError> {
    if !matches!(request.command, Command::Add | Command::Version) {
        return Ok(None);
    }
    let what = match serde_json::from_slice(&collected.stdout) {
        Ok(value @ (Value::Object(_) | Value::Null)) => return Ok(Some(value)),
        Ok(_) => "printed JSON that is no CNI result".to_owned(),
        Err(_) if collected.stdout.trim_ascii().is_empty() => "printed no CNI result".to_owned(),
        Err(error) => format!("printed no CNI result: {error}"),
    };
    let said = last_words(&collected.stderr).map(|line| format!("; it said: {line}")).unwrap_or_default();
    Err(CniError::new(code::DELEGATE, format!("{} succeeded but {what}{said}", subject(request)))
        .with_details(format!("check that {} is a CNI plugin", request.plugin.display())))
}

fn failure(request: &ExecRequest<'_>, collected: &Collected) -> CniError {
    own_error(&collected.stdout).unwrap_or_else(|| {
        let said = last_words(&collected.stderr).map(|line| format!(": {line}")).unwrap_or_default();
        CniError::new(
            code::DELEGATE,
            format!("{} {} without a CNI error{said}", subject(request), ending(collected.status)),
        )
    })
}

/// The error object on stdout. The reference plugins print one after their result when the namespace is their own, so the last counts.
fn own_error(stdout: &[u8]) -> Option<CniError> {
    let documents = serde_json::Deserializer::from_slice(stdout).into_iter::<Value>();
    documents.map_while(Result::ok).filter_map(|value| CniError::from_json(&value)).last()
}

fn interrupted(request: &ExecRequest<'_>, interruption: &Interruption, after: Duration) -> CniError {
    let subject = subject(request);
    match interruption {
        Interruption::Deadline { stderr } => {
            let said = last_words(stderr).map(|line| format!("; it said: {line}")).unwrap_or_default();
            CniError::new(
                code::DELEGATE,
                format!("{subject} was killed: it did not end in {:.1} s{said}", after.as_secs_f64()),
            )
            .with_details("find out what it waits for, or raise \"timeoutSeconds\"")
        }
        Interruption::TooMuchOutput => CniError::new(
            code::DELEGATE,
            format!("{subject} was killed: it printed more than {} MiB", process_group::STDOUT_MAX >> 20),
        ),
        Interruption::Io(error) => CniError::new(code::IO, format!("{subject} was killed: cannot talk to it: {error}")),
    }
}

fn cannot_start(request: &ExecRequest<'_>, error: &io::Error) -> CniError {
    let error = CniError::new(
        code::DELEGATE,
        format!("cannot start {} for {}: {error}", request.plugin.display(), request.command),
    );
    error.with_details("check the program, its interpreter and its permissions")
}

/// "plugin macvlan: ADD", the start of each message.
fn subject(request: &ExecRequest<'_>) -> String {
    let name = request.plugin.file_name().unwrap_or(request.plugin.as_os_str());
    format!("plugin {}: {}", name.display(), request.command)
}

fn ending(status: ExitStatus) -> String {
    let Some(number) = status.signal() else {
        return format!("failed with exit status {}", status.code().unwrap_or(-1));
    };
    match Signal::try_from(number) {
        Ok(signal) => format!("was killed by signal {number} ({signal})"),
        Err(_) => format!("was killed by signal {number}"),
    }
}

/// The last line with something in it, printable and short.
fn last_words(stderr: &[u8]) -> Option<String> {
    const LONGEST: usize = 200;
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect())
}

/// Passes on what the plugin wrote to stderr, as far as it was kept.
fn forward(request: &ExecRequest<'_>, collected: &Collected) {
    let plugin = subject(request);
    for line in String::from_utf8_lossy(&collected.stderr).lines().filter(|line| !line.trim().is_empty()) {
        if collected.status.success() {
            tracing::info!("{plugin}: {}", line.escape_debug());
        } else {
            tracing::warn!("{plugin}: {}", line.escape_debug());
        }
    }
}

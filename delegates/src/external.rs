//! External delegates: any CNI plugin, found in the plugin folders and run as a process of its own.
//! Everything about processes is here (time limit, group, pipes, errors); which plugin runs with
//! which configuration is decided elsewhere.

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
use crate::mutation;

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
    /// What it shares with the other programs of its operation.
    pub surroundings: Surroundings<'a>,
    /// A descriptor the plugin inherits: a lock that has to outlive this process while the plugin
    /// runs.
    pub inherit: Option<BorrowedFd<'a>>,
    /// Called with the process id, which is its group's too, once the plugin runs.
    pub on_spawn: Option<&'a mut dyn FnMut(u32)>,
}

/// What all programs of one operation share.
#[derive(Clone, Copy, Default)]
pub struct Surroundings<'a> {
    /// The variables that they inherit; `None` is this process's own. No `CNI_…` among them goes on.
    pub environment: Option<&'a [(String, String)]>,
    /// The folder of the cgroup that they run in; `None` is this process's own.
    pub cgroup: Option<&'a Path>,
    /// Whether nobody waits for them any more: then they are killed.
    pub is_cancelled: Option<&'a dyn Fn() -> bool>,
}

/// The plugin's program: the first executable file named `plugin_type` in the folders of `path`.
/// Relative folders are passed over, so the working directory never matters. Code 7 when there is
/// none, or when `plugin_type` could name a file elsewhere.
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

/// Runs the plugin and waits for it: the value it printed for ADD (`null` included) and VERSION,
/// nothing for other commands.
///
/// When the plugin fails with an error object, that is the error, unchanged. Otherwise the code is
/// 100 and the message says how the plugin ended and what its last line on stderr was. At the
/// deadline its whole process group is killed. "Text file busy" (a plugin that is just being
/// installed) is tried six times.
pub fn exec(mut request: ExecRequest<'_>) -> Result<Option<Value>, CniError> {
    let started = Instant::now();
    mutation::before("plugin.start", format_args!("{} for {}", request.plugin.display(), request.command));
    let group = spawn_when_ready(&request).map_err(|error| cannot_start(&request, &error))?;
    if let Some(on_spawn) = request.on_spawn.as_mut() {
        on_spawn(group.id());
    }
    if let Some(cgroup) = request.surroundings.cgroup {
        move_to_cgroup(group.id(), cgroup);
    }
    let is_cancelled = || request.surroundings.is_cancelled.is_some_and(|is_cancelled| is_cancelled());
    let collected = group.run(request.stdin, request.deadline, &is_cancelled);
    mutation::before("plugin.end", format_args!("{} for {}", request.plugin.display(), request.command));
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

/// Waits before another try at a file that is busy. Six tries as in the reference, but within 5
/// seconds and short at first: an installer's copy is done in milliseconds.
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

/// Held while a descriptor without close-on-exec is open, so that no plugin started by another
/// thread of ours inherits it: the other plugin would hold this container's lock. Programs that
/// others start in this process must not be long-lived.
static SPAWNING: Mutex<()> = Mutex::new(());

fn spawn(request: &ExecRequest<'_>) -> io::Result<Group> {
    if Instant::now() >= request.deadline {
        return Err(io::Error::new(ErrorKind::TimedOut, "no time is left"));
    }
    let mut command = process::Command::new(request.plugin);
    command
        .env_clear()
        .envs(environment(inherited(request), request))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let _guard = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
    // A copy of a descriptor has no close-on-exec flag; a lock of flock(2) belongs to all copies
    // together.
    let _inherited = request.inherit.map(nix::unistd::dup).transpose()?;
    command.spawn().map(Group::new)
}

/// What is inherited (`TRACEPARENT` and its like among it), without any `CNI_…` of our own caller,
/// then this request's.
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
    inherited
        .filter(|(key, _)| !key.as_encoded_bytes().starts_with(b"CNI_"))
        .chain(own.map(|(key, value)| (OsString::from(key), value)))
        .collect()
}

fn inherited(request: &ExecRequest<'_>) -> Box<dyn Iterator<Item = (OsString, OsString)>> {
    match request.surroundings.environment {
        Some(given) => {
            let given: Vec<_> = given.iter().map(|(key, value)| (key.into(), value.into())).collect();
            Box::new(given.into_iter())
        }
        None => Box::new(std::env::vars_os()),
    }
}

/// Its memory then counts there. Where that cannot be done it counts with this process's, as it would have without.
fn move_to_cgroup(pid: u32, cgroup: &Path) {
    if let Err(error) = std::fs::write(cgroup.join("cgroup.procs"), pid.to_string()) {
        tracing::debug!("plugin stays in its parent's cgroup: {}: {error}", cgroup.display());
    }
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

/// The error object on stdout. The reference plugins print one after their result when the
/// namespace is their own, so the last counts.
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
        Interruption::Cancelled => {
            CniError::new(code::TRY_AGAIN, format!("{subject} was killed: nobody waits for its result any more"))
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;

    use nix::fcntl::{Flock, FlockArg};
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    /// A folder with one plugin, a shell script, and what it is called with.
    struct Scripted {
        folder: TempDir,
        plugin: PathBuf,
        path: [PathBuf; 2],
        id: ContainerId,
        interface: InterfaceName,
        args: CniArgs,
    }

    impl Scripted {
        fn new(script: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let plugin = folder.path().join("plug");
            fs::write(&plugin, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
            Self {
                plugin,
                path: [folder.path().to_owned(), PathBuf::from("/opt/cni/bin")],
                folder,
                id: ContainerId::parse("c1").unwrap(),
                interface: InterfaceName::parse("net1").unwrap(),
                args: CniArgs::parse("IgnoreUnknown=1;A=b").unwrap(),
            }
        }

        fn file(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn run<'a>(&'a self, change: impl FnOnce(&mut ExecRequest<'a>)) -> Result<Option<Value>, CniError> {
            let mut request = ExecRequest {
                plugin: &self.plugin,
                command: Command::Add,
                container_id: Some(&self.id),
                netns: Some(Path::new("/run/netns/a")),
                interface: Some(&self.interface),
                args: &self.args,
                path: &self.path,
                stdin: b"{\"type\":\"plug\"}",
                deadline: Instant::now() + Duration::from_secs(20),
                surroundings: Surroundings::default(),
                inherit: None,
                on_spawn: None,
            };
            change(&mut request);
            exec(request)
        }

        /// Runs with a deadline of `milliseconds`; the error and how long it took.
        fn run_for(&self, milliseconds: u64) -> (CniError, Duration) {
            let started = Instant::now();
            let error =
                self.run(|request| request.deadline = started + Duration::from_millis(milliseconds)).unwrap_err();
            (error, started.elapsed())
        }
    }

    /// Whether the process has ended, or does within two seconds.
    fn ends(pid: &str) -> bool {
        let state = || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).ok();
        (0..200).any(|_| {
            let over = state().is_none_or(|stat| stat.contains(") Z "));
            if !over {
                thread::sleep(Duration::from_millis(10));
            }
            over
        })
    }

    #[test]
    fn a_plugin_is_found_in_the_first_absolute_folder_that_has_it() {
        let (first, second) = (Scripted::new(""), Scripted::new(""));
        fs::write(first.file("data"), "").unwrap();
        let folders = [
            PathBuf::from("relative"),
            PathBuf::from(""),
            second.folder.path().to_owned(),
            first.folder.path().to_owned(),
        ];
        assert_eq!(find("plug", &folders).unwrap(), second.file("plug"));

        let missing = find("foo", &folders).unwrap_err();
        assert_eq!(missing.code, code::CONFIG);
        let listed = format!("{}, {}", second.folder.path().display(), first.folder.path().display());
        assert_eq!(missing.to_string(), format!("plugin \"foo\" is not in {listed}; install it or correct \"type\""));
        let unexecutable = find("data", &folders).unwrap_err();
        assert!(unexecutable.msg.ends_with("data is not executable"), "{unexecutable}");
        assert!(find("plug", &[]).unwrap_err().msg.contains("CNI_PATH names no absolute folder"));
    }

    #[test]
    fn a_type_that_could_name_another_file_is_refused() {
        for bad in ["", ".", "..", "../sh", "/bin/sh", "a/b", "a\\b", "sh\0"] {
            let error = find(bad, &[PathBuf::from("/bin")]).unwrap_err();
            assert!(
                error.code == code::CONFIG && error.msg.starts_with("type: must name a plugin"),
                "{bad:?}: {error}"
            );
        }
    }

    #[test]
    fn the_working_directory_is_never_searched() {
        // Tests run in the crate's folder, where this file is; a colon would make `which` split the
        // entry.
        assert!(Path::new("Cargo.toml").is_file());
        for folder in [".", "", "src/..", "/nonexistent:."] {
            assert!(
                find("Cargo.toml", &[PathBuf::from(folder)]).unwrap_err().msg.contains("cannot be looked for"),
                "{folder}"
            );
        }
    }

    #[test]
    fn a_plugin_gets_the_request_and_its_result_comes_back() {
        let plugin = Scripted::new(
            r#"printf '{"in":%s,"seen":"%s|%s|%s|%s|%s|%s|%s"}' "$(cat)" "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_NETNS" "$CNI_IFNAME" "$CNI_ARGS" "$CNI_PATH" "$X""#,
        );
        let variables = [("X", "y"), ("CNI_ARGS", "another's")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let printed = plugin.run(|request| request.surroundings.environment = Some(&variables)).unwrap().unwrap();
        let folder = plugin.folder.path().display();
        assert_eq!(printed["in"], json!({"type": "plug"}));
        assert_eq!(printed["seen"], format!("ADD|c1|/run/netns/a|net1|IgnoreUnknown=1;A=b|{folder}:/opt/cni/bin|y"));
    }

    #[test]
    fn absent_parts_of_a_request_are_empty_variables() {
        let plugin = Scripted::new(
            r#"printf '{"seen":"%s|%s|%s|%s"}' "${CNI_NETNS-unset}" "${CNI_IFNAME-unset}" "${CNI_CONTAINERID-unset}" "${CNI_BIN-unset}""#,
        );
        let printed = plugin
            .run(|request| (request.netns, request.interface, request.container_id) = (None, None, None))
            .unwrap()
            .unwrap();
        assert_eq!(printed["seen"], "|||unset");
    }

    /// Runs itself with the variables set, for a process cannot safely set its own.
    #[test]
    fn trace_context_is_inherited_and_our_callers_cni_variables_are_not() {
        const NAME: &str = "external::tests::trace_context_is_inherited_and_our_callers_cni_variables_are_not";
        if std::env::var_os("TRACEPARENT").is_none() {
            let inner = process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", NAME])
                .envs([
                    ("TRACEPARENT", "00-1-2-01"),
                    ("TRACESTATE", "a=1"),
                    ("BAGGAGE", "b=2"),
                    ("CNI_BIN", "/x"),
                    ("CNI_NETNS", "/upper"),
                ])
                .output()
                .unwrap();
            assert!(inner.status.success(), "{}", String::from_utf8_lossy(&inner.stdout));
            return;
        }
        let plugin = Scripted::new(
            r#"printf '{"seen":"%s|%s|%s|%s|%s"}' "$TRACEPARENT" "$TRACESTATE" "$BAGGAGE" "${CNI_BIN-unset}" "$CNI_NETNS""#,
        );
        let printed = plugin.run(|request| request.netns = None).unwrap().unwrap();
        assert_eq!(printed["seen"], "00-1-2-01|a=1|b=2|unset|");
    }

    #[test]
    fn what_is_printed_counts_for_add_alone() {
        for (script, expected) in [
            ("echo '{\"ips\":[]}'", Some(json!({"ips": []}))),
            ("echo null", Some(Value::Null)),
            ("echo noise >&2; printf '\\n{}\\n'", Some(json!({}))),
        ] {
            assert_eq!(Scripted::new(script).run(|_| ()).unwrap(), expected, "{script}");
        }
        for command in [Command::Del, Command::Check, Command::Gc, Command::Status] {
            assert_eq!(Scripted::new("echo garbage").run(|request| request.command = command).unwrap(), None);
        }
        for (script, expected) in [
            ("", "plugin plug: ADD succeeded but printed no CNI result"),
            (
                "echo garbage; echo oops >&2",
                "plugin plug: ADD succeeded but printed no CNI result: expected value at line 1 column 1; it said: oops",
            ),
            ("echo '{} {}'", "plugin plug: ADD succeeded but printed no CNI result: trailing characters"),
            ("echo '[1]'", "plugin plug: ADD succeeded but printed JSON that is no CNI result"),
        ] {
            let error = Scripted::new(script).run(|_| ()).unwrap_err();
            assert_eq!(error.code, code::DELEGATE);
            assert!(error.msg.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_plugins_own_error_is_kept_as_it_is() {
        let object = r#"{"cniVersion":"1.0.0","code":11,"msg":"pool is\nempty","details":"add a range"}"#;
        let expected = CniError::new(11, "pool is\nempty").with_details("add a range");
        for script in [
            format!("printf %s '{object}'; exit 1"),
            format!("printf %s '{{\"ips\":[]}}{object}'; exit 3"),
            format!("printf %s '{object}'; kill -9 $$"),
        ] {
            assert_eq!(Scripted::new(&script).run(|_| ()).unwrap_err(), expected, "{script}");
        }
        let error = Scripted::new(r#"echo '{"code":999,"msg":"x"}'; exit 1"#)
            .run(|request| request.command = Command::Del)
            .unwrap_err();
        assert_eq!(error, CniError::new(999, "x"));
    }

    #[test]
    fn a_plugin_that_fails_otherwise_is_told_by_its_end_and_last_words() {
        for (script, expected) in [
            ("exit 3", "plugin plug: ADD failed with exit status 3 without a CNI error"),
            (
                "echo first >&2; printf 'last \\033[1m words\\n\\n' >&2; exit 1",
                "plugin plug: ADD failed with exit status 1 without a CNI error: last  [1m words",
            ),
            ("cat; exit 2", "plugin plug: ADD failed with exit status 2 without a CNI error"),
            ("kill -9 $$", "plugin plug: ADD was killed by signal 9 (SIGKILL) without a CNI error"),
            ("kill -SEGV $$", "plugin plug: ADD was killed by signal 11 (SIGSEGV) without a CNI error"),
        ] {
            let error = Scripted::new(script).run(|request| request.stdin = b"{\"password\":\"hunter2\"}").unwrap_err();
            assert_eq!((error.code, error.msg.as_str()), (code::DELEGATE, expected));
        }
        let long = Scripted::new("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1").run(|_| ()).unwrap_err();
        assert!(long.msg.ends_with("xxx") && long.msg.len() < 300, "{long}");
    }

    #[test]
    fn a_program_that_cannot_start_is_an_error_with_its_cause() {
        let plugin = Scripted::new("");
        fs::write(plugin.file("plug"), "#!/nonexistent/interpreter\n").unwrap();
        let error = plugin.run(|_| ()).unwrap_err();
        assert!(
            error.code == code::DELEGATE && error.msg.contains("plug for ADD: No such file or directory"),
            "{error}"
        );
    }

    #[test]
    fn a_plugin_that_hangs_is_killed_with_all_it_started() {
        let plugin =
            Scripted::new("sleep 600 & echo $! > $0.grandchild; echo $$ > $0.pid; echo waiting for rain >&2; wait");
        let (error, took) = plugin.run_for(700);
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(error.code, code::DELEGATE);
        assert!(
            error.msg.starts_with("plugin plug: ADD was killed: it did not end in 0.7 s; it said: waiting for rain"),
            "{error}"
        );
        for file in ["plug.pid", "plug.grandchild"] {
            assert!(ends(&fs::read_to_string(plugin.file(file)).unwrap()), "{file} still runs");
        }
    }

    #[test]
    fn closed_pipes_do_not_outwit_the_deadline() {
        let (error, took) = Scripted::new("exec >&- 2>&- <&-; sleep 600").run_for(300);
        assert!(
            error.msg.contains("was killed: it did not end in 0.3 s") && took < Duration::from_secs(5),
            "{error} {took:?}"
        );
        let (error, took) = Scripted::new("echo '{}'; exec sleep 600 <&-").run_for(300);
        assert!(error.msg.contains("was killed") && took < Duration::from_secs(5), "{error} {took:?}");
    }

    #[test]
    fn a_daemon_that_holds_the_pipes_is_not_waited_for() {
        let plugin = Scripted::new("setsid sleep 600 & echo $! > $0.pid; echo '{\"ok\":1}'");
        let started = Instant::now();
        assert_eq!(plugin.run(|_| ()).unwrap(), Some(json!({"ok": 1})));
        assert!(started.elapsed() < Duration::from_secs(5));
        let pid: i32 = fs::read_to_string(plugin.file("plug.pid")).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }

    #[test]
    fn what_a_plugin_left_in_its_pipes_is_read_after_its_end() {
        let plugin = Scripted::new("printf '{\"a\":\"%060000d\"}' 0; printf '%060000d\\nlast' 0 >&2; exit $EXIT");
        let run = |exit: &str| {
            let exit = [("EXIT".to_owned(), exit.to_owned())];
            let mut linger = |_| thread::sleep(Duration::from_millis(200));
            plugin.run(|request| {
                request.surroundings.environment = Some(&exit);
                request.on_spawn = Some(&mut linger);
            })
        };
        let printed = run("0").unwrap().unwrap();
        assert_eq!(printed["a"].as_str().unwrap().len(), 60_000);
        let error = run("1").unwrap_err();
        assert!(error.msg.ends_with(": last"), "{error}");
    }

    #[test]
    fn input_that_nobody_reads_and_output_without_end_do_not_block() {
        let large = vec![b' '; 4 << 20];
        assert_eq!(Scripted::new("echo '{}'").run(|request| request.stdin = &large).unwrap(), Some(json!({})));
        let echoed = format!("{{\"a\":\"{}\"}}", "x".repeat(2 << 20));
        let both_ways = Scripted::new("cat").run(|request| request.stdin = echoed.as_bytes()).unwrap().unwrap();
        assert_eq!(both_ways["a"].as_str().unwrap().len(), 2 << 20);
        let error = Scripted::new("cat /dev/zero").run(|_| ()).unwrap_err();
        assert_eq!(error.msg, "plugin plug: ADD was killed: it printed more than 8 MiB");
        let stderr = Scripted::new("head -c 20000000 /dev/zero >&2; echo >&2; echo the end >&2; exit 1")
            .run(|_| ())
            .unwrap_err();
        assert!(stderr.msg.ends_with(": the end"), "{stderr}");
    }

    #[test]
    fn a_busy_program_is_tried_again_until_it_is_written() {
        let plugin = Scripted::new("echo '{}'");
        let writer = fs::OpenOptions::new().append(true).open(plugin.file("plug")).unwrap();
        let closing = thread::spawn(move || {
            thread::sleep(Duration::from_millis(150));
            drop(writer);
        });
        assert_eq!(plugin.run(|_| ()).unwrap(), Some(json!({})));
        closing.join().unwrap();
    }

    #[test]
    fn no_plugin_is_started_when_no_time_is_left() {
        let plugin = Scripted::new("touch $0.ran");
        let error = plugin.run(|request| request.deadline = Instant::now()).unwrap_err();
        assert!(error.msg.ends_with("no time is left") && !plugin.file("plug.ran").exists(), "{error}");
    }

    #[test]
    fn the_plugin_holds_the_lock_it_inherits_and_nobody_afterwards() {
        let plugin = Scripted::new("while [ ! -e $0.go ]; do sleep 0.01; done; echo '{}'");
        let lock = plugin.file("lock");
        let open = || fs::OpenOptions::new().create(true).append(true).open(&lock).unwrap();
        let held = Flock::lock(open(), FlockArg::LockExclusiveNonblock).unwrap();
        let inherited = held.as_fd().try_clone_to_owned().unwrap();
        let is_free = || Flock::lock(open(), FlockArg::LockExclusiveNonblock).is_ok();
        thread::scope(|scope| {
            let (started, starts) = std::sync::mpsc::channel();
            let plugin = &plugin;
            let running = scope.spawn(move || {
                let mut on_spawn = |pid| started.send(pid).unwrap();
                let result = plugin.run(|request| {
                    request.inherit = Some(inherited.as_fd());
                    request.on_spawn = Some(&mut on_spawn);
                });
                drop(inherited);
                result
            });
            let pid: u32 = starts.recv().unwrap();
            let holders = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
            let holds =
                holders.filter_map(|entry| fs::read_link(entry.path()).ok()).filter(|target| *target == lock).count();
            assert_eq!((holds, is_free()), (1, false));
            fs::write(plugin.file("plug.go"), "").unwrap();
            assert_eq!(running.join().unwrap().unwrap(), Some(json!({})));
        });
        assert!(!is_free());
        drop(held);
        assert!(is_free());
    }
}

//! One call of a plugin: environment and stdin in, at most one JSON document out. The order of the
//! checks is that of the reference plugins' skeleton; what a command does is left to the handler.

use std::cell::Cell;
use std::fs::Metadata;
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
pub enum Command {
    /// Attach a container to the network.
    Add,
    /// Take it off again.
    Del,
    /// Compare what is there with what ADD answered.
    Check,
    /// Free what no valid attachment holds.
    Gc,
    /// Say whether ADD could be served.
    Status,
    /// Say which versions are served.
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

/// What a runtime asks of a plugin. Identity is there for ADD, CHECK and DEL, and for no other
/// command.
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
    /// `CNI_NETNS_OVERRIDE`: the plugin's own namespace is meant (the reference skeleton's
    /// variable).
    pub netns_override: bool,
}

impl Request {
    /// Reads a request. All variables that are missing are named in one error (code 4). stdin is
    /// not read for VERSION.
    pub fn read(env: &dyn Fn(&str) -> Option<String>, stdin: &mut dyn Read) -> Result<Request, CniError> {
        read(env, stdin, &Cell::new(Version::LATEST))
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

    /// Whether the request may be worked on at all. A command newer than the configuration is
    /// refused (code 1); so is the network namespace of this thread or of process 1 (code 8, unless
    /// `CNI_NETNS_OVERRIDE` is set), and for ADD and CHECK one that does not exist.
    pub fn admit(&self) -> Result<(), CniError> {
        let (command, version) = (self.command, self.version);
        if version < command.since() {
            let msg =
                format!("{command} needs cniVersion {} or newer, the configuration has {version}", command.since());
            return Err(CniError::new(code::INCOMPATIBLE_VERSION, msg));
        }
        refuse_own_namespace(self, Path::new(HOST_NAMESPACE))
    }

    fn absent(&self, variable: &str) -> CniError {
        CniError::new(code::ENVIRONMENT, format!("{variable} is not set for {}", self.command))
    }
}

/// Runs a plugin as a process: reads the request, calls `handler`, prints its answer or an error
/// object in one write. A panic is an error object too. VERSION is answered here; a command newer
/// than the configuration is refused (code 1), and so is work in this process's own network
/// namespace, before the handler is called (code 8).
pub fn serve(handler: impl FnOnce(&Request) -> Result<Option<Value>, CniError>) -> ExitCode {
    quieten_panics();
    answer(&own_environment, &mut io::stdin().lock(), handler).print()
}

/// A variable of this process.
pub fn own_environment(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// What a plugin prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// At most one JSON document.
    pub text: String,
    /// Whether the call is a success.
    pub ok: bool,
}

impl Answer {
    /// Prints it, in one write, and says with which code the process has to end.
    pub fn print(&self) -> ExitCode {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(self.text.as_bytes()).and_then(|()| stdout.flush());
        if self.ok && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// What [`serve`] prints for an environment and what is on stdin.
pub fn answer(
    env: &dyn Fn(&str) -> Option<String>,
    stdin: &mut dyn Read,
    handler: impl FnOnce(&Request) -> Result<Option<Value>, CniError>,
) -> Answer {
    let version = Cell::new(Version::LATEST);
    match guarded(|| perform(&read(env, stdin, &version)?, handler)) {
        Ok(value) => Answer { text: value.map(|value| value.to_string()).unwrap_or_default(), ok: true },
        Err(error) => Answer { text: error.to_json(version.get()).to_string(), ok: false },
    }
}

/// Does some work; a panic in it is an error like any other.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, CniError>) -> Result<T, CniError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(internal_error(panic.as_ref())))
}

/// Reads a request, and tells `version` as soon as it is known: an error object is of the
/// configuration's version.
fn read(
    env: &dyn Fn(&str) -> Option<String>,
    stdin: &mut dyn Read,
    version: &Cell<Version>,
) -> Result<Request, CniError> {
    let mut request = read_environment(env)?;
    if request.command == Command::Version {
        return Ok(request);
    }
    request.stdin = read_stdin(stdin)?;
    request.conf = NetConf::parse(&request.stdin)?;
    request.version = request.conf.version()?;
    version.set(request.version);
    request.conf.name()?;
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
    request.admit()?;
    let answer = handler(request)?;
    if request.command == Command::Add && answer.is_none() {
        return Err(CniError::new(code::DELEGATE, "internal error: ADD has no result"));
    }
    Ok(answer)
}

/// The network namespace of process 1.
const HOST_NAMESPACE: &str = "/proc/1/ns/net";

/// The reference skeleton looks only after the work is done, and leaves it there. A path that is
/// gone is no fault on DEL.
fn refuse_own_namespace(request: &Request, host: &Path) -> Result<(), CniError> {
    let Some(path) = request.netns.as_deref().filter(|_| !request.netns_override) else {
        return Ok(());
    };
    let refused = |problem: String| CniError::new(code::NAMESPACE, format!("CNI_NETNS {}: {problem}", path.display()));
    let theirs = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(_) if request.command == Command::Del => return Ok(()),
        Err(error) => return Err(refused(error.to_string())),
    };
    let own = std::fs::metadata("/proc/thread-self/ns/net")
        .map_err(|error| refused(format!("cannot compare it with this process's: {error}")))?;
    let advice = "give the container's namespace; pods on the host's network get no interfaces";
    if is_same_file(&theirs, &own) {
        return Err(refused("this is the plugin's own network namespace".into()).with_details(advice));
    }
    // Only root may look at process 1; others could not work in its namespace anyway.
    if std::fs::metadata(host).is_ok_and(|host| is_same_file(&theirs, &host)) {
        return Err(refused("this is the host's network namespace".into()).with_details(advice));
    }
    Ok(())
}

fn is_same_file(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Where the last panic was: the payload that is caught does not say.
static PANICKED_AT: Mutex<Option<String>> = Mutex::new(None);

/// Has panics speak through the error that [`guarded`] makes of them.
pub fn quieten_panics() {
    std::panic::set_hook(Box::new(remember_panic));
}

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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const CONF: &str = r#"{"cniVersion":"1.1.0","name":"net","type":"x"}"#;

    type Changes = &'static [(&'static str, &'static str)];

    /// A whole environment for `command`, with `changes` made to it; an empty value takes the
    /// variable away.
    fn environment(command: &str, changes: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> + use<> {
        let whole = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/proc/self/ns/mnt"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "IgnoreUnknown=1;A=b"),
            ("CNI_PATH", "/opt/cni/bin:/x"),
        ];
        let map: HashMap<String, String> =
            whole.iter().chain(changes).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        move |name: &str| map.get(name).filter(|value| !value.is_empty()).cloned()
    }

    fn read_request(command: &str, changes: &[(&str, &str)], stdin: &str) -> Result<Request, CniError> {
        Request::read(&environment(command, changes), &mut stdin.as_bytes())
    }

    /// The JSON printed, and whether it is a success; null for no output.
    fn answered(
        command: &str,
        changes: &[(&str, &str)],
        stdin: &str,
        handler: impl FnOnce(&Request) -> Result<Option<Value>, CniError>,
    ) -> (Value, bool) {
        let Answer { text, ok } = answer(&environment(command, changes), &mut stdin.as_bytes(), handler);
        (if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }, ok)
    }

    fn conf(version: &str) -> String {
        json!({"cniVersion": version, "name": "net", "type": "x"}).to_string()
    }

    #[test]
    fn a_request_is_read_whole() {
        let request = read_request("ADD", &[("CNI_NETNS_OVERRIDE", "TRUE")], CONF).unwrap();
        assert_eq!(request.command, Command::Add);
        assert_eq!(request.container_id().unwrap().as_str(), "c1");
        assert_eq!(request.interface().unwrap().as_str(), "eth0");
        assert_eq!(request.netns().unwrap(), Path::new("/proc/self/ns/mnt"));
        assert_eq!(request.args.get("A"), Some("b"));
        assert_eq!(request.path, [PathBuf::from("/opt/cni/bin"), PathBuf::from("/x")]);
        assert_eq!(request.stdin, CONF.as_bytes());
        assert_eq!(request.version, Version::V1_1_0);
        assert!(request.netns_override);
    }

    #[test]
    fn what_containerd_sends_is_read() {
        let recorded = [
            include_str!("../../testdata/runtime/containerd-1.6-ADD.json"),
            include_str!("../../testdata/runtime/containerd-1.6-DEL.json"),
        ];
        let calls: Vec<Value> = recorded
            .iter()
            .flat_map(|text| serde_json::Deserializer::from_str(text).into_iter())
            .map(Result::unwrap)
            .collect();
        let read = calls.iter().map(|call| {
            let env = |name: &str| call["env"][name].as_str().map(str::to_owned);
            let request = Request::read(&env, &mut call["stdin"].to_string().as_bytes()).unwrap();
            assert_eq!((request.args.get("K8S_POD_NAME"), request.args.ignore_unknown()), (Some("rec"), true));
            (request.command, request.netns.is_some())
        });
        // The namespace is gone when DEL is repeated.
        assert_eq!(
            read.collect::<Vec<_>>(),
            [(Command::Add, true), (Command::Del, true), (Command::Del, false), (Command::Del, false)]
        );
    }

    #[test]
    fn the_recorded_calls_are_those_shared_by_all() {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/runtime");
        let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/runtime");
        for name in ["containerd-1.6-ADD.json", "containerd-1.6-DEL.json"] {
            match std::fs::read(shared.join(name)) {
                Ok(text) => {
                    assert!(text == std::fs::read(own.join(name)).unwrap(), "{name} differs from {}", shared.display())
                }
                Err(error) => eprintln!("SKIPPED: {name} is not beside the repository: {error}"),
            }
        }
    }

    #[test]
    fn each_command_asks_for_its_variables_and_names_all_that_are_missing() {
        let all = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"];
        for (command, required) in [
            ("ADD", &all[..4]),
            ("CHECK", &all[..4]),
            ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"][..]),
            ("GC", &["CNI_PATH"][..]),
            ("STATUS", &[]),
            ("VERSION", &[]),
        ] {
            let none = all.map(|name| (name, ""));
            match read_request(command, &none, CONF) {
                Ok(_) => assert!(required.is_empty(), "{command}"),
                Err(error) => {
                    assert_eq!(error.code, code::ENVIRONMENT);
                    assert_eq!(
                        error.msg,
                        format!("{command} needs variables that are not set: {}", required.join(", "))
                    );
                }
            }
            for missing in all {
                let result = read_request(command, &[(missing, "")], CONF);
                assert_eq!(result.is_err(), required.contains(&missing), "{command} without {missing}");
            }
        }
    }

    #[test]
    fn faulty_input_has_its_code() {
        let long = format!("{CONF}{}", " ".repeat(17 << 20));
        let cases: &[(&str, Changes, &str, u32, &str)] = &[
            ("", &[], CONF, 4, "CNI_COMMAND is not set"),
            ("add", &[], CONF, 4, "CNI_COMMAND must be one of ADD, DEL, CHECK, GC, STATUS, VERSION, not \"add\""),
            ("UPDATE", &[], CONF, 4, "CNI_COMMAND must be one of"),
            ("ADD", &[("CNI_CONTAINERID", "../x")], CONF, 4, "container id"),
            ("ADD", &[("CNI_IFNAME", "a/b")], CONF, 4, "interface name"),
            ("DEL", &[("CNI_IFNAME", "sixteen-bytes-12")], CONF, 4, "interface name"),
            ("ADD", &[("CNI_ARGS", "A=1;")], CONF, 4, "CNI_ARGS: pair 2"),
            ("ADD", &[], &long, 5, "the network configuration on stdin is longer than 16 MiB"),
            ("ADD", &[], "", 6, "the network configuration is not JSON"),
            (
                "ADD",
                &[],
                "{",
                6,
                "the network configuration is not JSON: EOF while parsing an object at line 1 column 1",
            ),
            ("ADD", &[], "[]", 6, "the network configuration must be a JSON object"),
            ("ADD", &[], r#"{"cniVersion":"1.0.0"}"#, 7, "name: "),
            ("STATUS", &[], r#"{"cniVersion":"1.1.0","name":"a b"}"#, 7, "name: "),
            ("ADD", &[], r#"{"cniVersion":"9.0.0","name":"n"}"#, 1, "cniVersion \"9.0.0\""),
        ];
        for (command, changes, stdin, code, start) in cases {
            let error = read_request(command, changes, stdin).unwrap_err();
            assert_eq!(error.code, *code, "{error}");
            assert!(error.msg.starts_with(start), "{error}");
        }
    }

    #[test]
    fn an_error_is_told_in_the_configurations_version_as_soon_as_that_is_known() {
        for (stdin, version) in
            [(r#"{"cniVersion":"0.3.1"}"#, "0.3.1"), (r#"{"cniVersion":"9.0.0"}"#, "1.1.0"), ("{", "1.1.0")]
        {
            let (printed, ok) = answered("ADD", &[], stdin, |_| Ok(None));
            assert!(!ok && printed["cniVersion"] == version, "{printed}");
        }
    }

    #[test]
    fn a_read_error_is_code_5() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("gone"))
            }
        }
        assert_eq!(Request::read(&environment("ADD", &[]), &mut Broken).unwrap_err().code, code::IO);
    }

    #[test]
    fn what_takes_away_does_not_stumble_over_arguments() {
        let request = read_request("DEL", &[("CNI_ARGS", "A=1;;x"), ("CNI_NETNS", "")], CONF).unwrap();
        assert_eq!((request.args.get("A"), request.netns.as_ref()), (Some("1"), None));
        assert_eq!(request.netns().unwrap_err().code, code::ENVIRONMENT);
        // Leftovers of an attachment mean nothing to GC and STATUS.
        let request = read_request("GC", &[("CNI_CONTAINERID", "../x")], CONF).unwrap();
        assert_eq!((request.container_id().is_err(), request.interface().is_err()), (true, true));
    }

    #[test]
    fn version_is_answered_without_stdin() {
        struct Untouchable;
        impl Read for Untouchable {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                panic!("VERSION must not read stdin")
            }
        }
        let env = environment("VERSION", &[("CNI_PATH", ""), ("CNI_CONTAINERID", "")]);
        let Answer { text, ok } = answer(&env, &mut Untouchable, |_| panic!("VERSION must not reach the handler"));
        assert!(ok);
        assert_eq!(
            text,
            r#"{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#
        );
    }

    #[test]
    fn commands_newer_than_the_configuration_are_refused_before_the_handler() {
        for (command, version, served) in [
            ("ADD", "", true),
            ("DEL", "0.1.0", true),
            ("CHECK", "0.3.1", false),
            ("CHECK", "0.4.0", true),
            ("GC", "1.0.0", false),
            ("GC", "1.1.0", true),
            ("STATUS", "1.0.0", false),
            ("STATUS", "1.1.0", true),
        ] {
            let called = Cell::new(false);
            let (printed, ok) = answered(command, &[], &conf(version), |_| {
                called.set(true);
                Ok(Some(json!({})))
            });
            assert_eq!((ok, called.get()), (served, served), "{command} {version}");
            if !served {
                assert_eq!((&printed["code"], &printed["cniVersion"]), (&json!(1), &json!(version)));
            }
        }
    }

    #[test]
    fn the_plugins_own_namespace_is_refused_before_work() {
        let own = "/proc/thread-self/ns/net";
        let gone = "/nonexistent/netns";
        for (command, netns, overridden, expected) in [
            ("ADD", own, "", Some(8)),
            ("CHECK", own, "", Some(8)),
            ("DEL", own, "", Some(8)),
            ("ADD", own, "1", None),
            ("DEL", own, "true", None),
            ("ADD", own, "0", Some(8)),
            ("ADD", gone, "", Some(8)),
            ("CHECK", gone, "", Some(8)),
            ("DEL", gone, "", None),
            ("DEL", "", "", None),
            ("ADD", "/proc/thread-self/ns/mnt", "", None),
            ("GC", own, "", None),
        ] {
            let called = Cell::new(false);
            let (printed, ok) =
                answered(command, &[("CNI_NETNS", netns), ("CNI_NETNS_OVERRIDE", overridden)], CONF, |_| {
                    called.set(true);
                    Ok(Some(json!({})))
                });
            let code = printed["code"].as_u64();
            assert_eq!(
                (code, ok, called.get()),
                (expected, expected.is_none(), expected.is_none()),
                "{command} {netns} {overridden:?}"
            );
        }
    }

    #[test]
    fn the_hosts_namespace_is_refused_from_another_one() {
        // Process 1 cannot be looked at everywhere: the main thread's namespace stands for its own.
        let main = "/proc/self/ns/net";
        let request = read_request("ADD", &[("CNI_NETNS", main)], CONF).unwrap();
        let outcome = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
            Some([main, "/proc/self/ns/mnt"].map(|host| refuse_own_namespace(&request, Path::new(host))))
        });
        let Some([host, other]) = outcome.join().unwrap() else {
            eprintln!("SKIPPED: needs root to make a network namespace");
            return;
        };
        let error = host.unwrap_err();
        assert!(error.code == 8 && error.msg.ends_with("this is the host's network namespace"), "{error}");
        assert_eq!(other, Ok(()));
    }

    #[test]
    fn one_document_is_printed_whatever_the_handler_does() {
        let error = || CniError::new(11, "busy").with_details("wait");
        let changes = &[("CNI_NETNS", "/proc/thread-self/ns/mnt")];
        let own = &conf("0.4.0");
        assert_eq!(answered("ADD", changes, own, |_| Ok(Some(json!({"ips": []})))), (json!({"ips": []}), true));
        assert_eq!(answered("DEL", changes, own, |_| Ok(None)), (Value::Null, true));
        assert_eq!(
            answered("ADD", changes, own, |_| Err(error())),
            (json!({"cniVersion": "0.4.0", "code": 11, "msg": "busy", "details": "wait"}), false)
        );
        let (printed, ok) = answered("ADD", changes, own, |_| Ok(None));
        assert_eq!((&printed["code"], ok), (&json!(100), false));
        let (printed, ok) = answered("DEL", changes, own, |_| panic!("an index of {}", 3));
        assert!(!ok && printed["code"] == 100 && printed["cniVersion"] == "0.4.0", "{printed}");
        assert!(printed["msg"].as_str().unwrap().starts_with("internal error: an index of 3"), "{printed}");
        let (printed, ok) = answered("ADD", &[("CNI_IFNAME", "")], own, |_| Ok(None));
        assert!(!ok && printed["code"] == 4 && printed["cniVersion"] == "1.1.0", "{printed}");
    }

    /// Runs itself as a process that serves, for the exit code and the streams are a process's.
    #[test]
    fn a_process_that_panics_prints_one_error_object_and_exits_1() {
        const ROLE: &str = "MUSUBI_TEST_SERVE";
        if std::env::var_os(ROLE).is_some() {
            let code = serve(|_| panic!("deliberate"));
            assert_eq!(code, ExitCode::FAILURE);
            return;
        }
        let netns = "/proc/thread-self/ns/mnt";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "cni::request::tests::a_process_that_panics_prints_one_error_object_and_exits_1",
                "--nocapture",
            ])
            .envs([
                ("CNI_COMMAND", "ADD"),
                ("CNI_CONTAINERID", "c"),
                ("CNI_IFNAME", "e"),
                ("CNI_PATH", "/"),
                ("CNI_NETNS", netns),
                (ROLE, "1"),
            ])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(CONF.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let document = stdout.find('{').map(|start| &stdout[start..]).unwrap_or_default();
        let printed = serde_json::Deserializer::from_str(document).into_iter::<Value>().next().unwrap().unwrap();
        let msg = printed["msg"].as_str().unwrap();
        assert!(msg.starts_with("internal error: deliberate at ") && msg.contains("request.rs:"), "{msg}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert!(output.status.success(), "serve did not return a failure: {stdout} {stderr}");
    }
}

//! An agent for tests: started on a node as the DaemonSet starts it, asked over its socket, stopped or killed.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::node::{Node, musubi};
use crate::process::Process;

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    folder: PathBuf,
}

/// What the agent answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// The folder of a node's agent.
#[must_use]
pub fn folder(node: &Node) -> PathBuf {
    node.folder().join("agent")
}

/// The socket of a node's agent, for `agentSocket`.
#[must_use]
pub fn socket(node: &Node) -> PathBuf {
    folder(node).join("musubi.sock")
}

/// The configuration of a node's agent: the store and the default network are those of `plugin`, a configuration of ours.
#[must_use]
pub fn config(node: &Node, plugin: &Value) -> Value {
    let mut config = json!({
        "socketDir": folder(node), "cniConfigDir": folder(node).join("net.d"), "hostMountNamespace": "",
        "logLevel": "debug", "reconcileSeconds": 3600, "nodeName": "node-1",
    });
    for (key, value) in plugin.as_object().expect("an object") {
        if !["cniVersion", "type", "agentSocket"].contains(&key.as_str()) {
            config[key] = value.clone();
        }
    }
    config
}

fn log_of(node: &Node) -> File {
    fs::create_dir_all(folder(node)).expect("a folder");
    File::options().create(true).append(true).open(folder(node).join("log")).expect("a log")
}

/// What starts a node's agent, by way of a wrapper where there is one.
fn command(node: &Node, config: &Value, wrapper: &[&str]) -> Command {
    let folder = folder(node);
    fs::create_dir_all(folder.join("net.d")).expect("a folder");
    let file = folder.join("agent.json");
    fs::write(&file, config.to_string()).expect("a configuration");
    let log = log_of(node);
    let program = musubi().display().to_string();
    let all = [wrapper, &[&program, "agent", "--config"]].concat();
    let mut command = Command::new(all[0]);
    command.args(&all[1..]).arg(&file).envs(node.env.iter().cloned());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command
}

impl Agent {
    /// Starts an agent and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(node: &Node, config: &Value) -> Self {
        let agent = Self::spawn(node, config);
        agent.wait_until_it_answers();
        agent
    }

    /// Starts an agent on a machine that is more than a network namespace, and waits until it answers. What starts it there
    /// is given: `spawn`, and for an agent in a container a program that makes it one and goes on as the rest of its
    /// arguments say.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn start_by(node: &Node, config: &Value, container: &[&str], spawn: impl FnOnce(Command) -> Child) -> Self {
        let agent = Self::of(node, spawn(command(node, config, container)));
        agent.wait_until_it_answers();
        agent
    }

    /// Starts an agent in a mount namespace of its own, where an empty folder is mounted over another, and waits until it
    /// answers.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start_apart(node: &Node, config: &Value, hidden: &Path) -> Self {
        fs::create_dir_all(hidden).expect("a folder");
        let script = r#"mount -t tmpfs tmpfs "$1" && shift && exec "$@""#;
        let hidden = hidden.display().to_string();
        let apart = ["unshare", "--mount", "sh", "-c", script, "sh", &hidden];
        Self::start_by(node, config, &apart, |mut command| {
            node.host.enter(|| command.spawn().expect("start the agent"))
        })
    }

    /// Starts an agent without waiting for it.
    ///
    /// # Panics
    /// When the program cannot be started.
    #[must_use]
    pub fn spawn(node: &Node, config: &Value) -> Self {
        let log = log_of(node);
        Self::spawn_logging_to(node, config, log.into())
    }

    /// As [`Self::spawn`], with a log that is read elsewhere.
    ///
    /// # Panics
    /// When the program cannot be started.
    #[must_use]
    pub fn spawn_logging_to(node: &Node, config: &Value, log: Stdio) -> Self {
        let mut command = command(node, config, &[]);
        command.stderr(log);
        let child = node.host.enter(|| command.spawn().expect("start the agent"));
        Self::of(node, child)
    }

    fn of(node: &Node, child: Child) -> Self {
        let folder = folder(node);
        Self { process: Process::of(child, folder.join("log")), folder }
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_until_it_answers(&self) {
        self.until("it answers", |agent| agent.try_get("/healthz").is_some_and(|answer| answer.status == 200));
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until something is so.
    ///
    /// # Panics
    /// When it does not become so.
    pub fn until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        self.process.until(what, || is_so(self));
    }

    /// Asks for a path.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn get(&self, path: &str) -> Answer {
        self.try_get(path).unwrap_or_else(|| panic!("no answer to {path}; log:\n{}", self.log()))
    }

    /// Asks for a path; `None` without an answer.
    #[must_use]
    pub fn try_get(&self, path: &str) -> Option<Answer> {
        exchange(
            &self.folder.join("musubi.sock"),
            &format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
        )
    }

    /// Posts a body as Go's HTTP client does.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn post(&self, path: &str, body: &str) -> Answer {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: dummy\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
             Content-Type: application/json\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n",
            body.len()
        );
        // Multus' clients know the socket by its other name.
        exchange(&self.folder.join("multus.sock"), &format!("{head}{body}"))
            .unwrap_or_else(|| panic!("no answer to {path}; log:\n{}", self.log()))
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Tells it to stop and waits for its end; whether it ended well.
    ///
    /// # Panics
    /// When it does not end.
    #[must_use]
    pub fn stop(self) -> bool {
        self.process.stop()
    }
}

fn exchange(socket: &Path, message: &str) -> Option<Answer> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.write_all(message.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

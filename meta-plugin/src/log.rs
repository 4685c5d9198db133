//! Where log lines go: failures and warnings to stderr, which runtimes keep, unless the configuration says otherwise; one
//! line an operation with its outcome and duration, and every step, where it asks for them.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use musubi_delegates::cni::{CniError, Request};
use tracing::Level;
use tracing::subscriber::set_global_default;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::{MakeWriter, MakeWriterExt};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, fmt, registry};

use crate::agent::config::{AgentConfig, LogFormat};
use crate::config::{Config, LogLevel};
use crate::engine::Caller;

/// Starts logging as the plugin's configuration says. A second call in one process changes nothing.
pub fn start(config: &Config) {
    Log { level: config.log_level, file: config.log_file.as_deref(), to_stderr: config.log_to_stderr, json: false }
        .start();
}

/// Starts logging as the agent's configuration says.
pub fn start_agent(config: &AgentConfig) {
    let json = config.log_format == LogFormat::Json;
    Log { level: config.log_level, file: config.log_file.as_deref(), to_stderr: config.log_to_stderr, json }.start();
}

/// Starts logging to stderr alone.
pub fn start_on_stderr(level: LogLevel, json: bool) {
    Log { level, file: None, to_stderr: true, json }.start();
}

struct Log<'a> {
    level: LogLevel,
    file: Option<&'a Path>,
    to_stderr: bool,
    json: bool,
}

impl Log<'_> {
    /// A file that cannot be opened is no reason for a pod not to start, or not to end: the log goes to stderr then.
    fn start(&self) {
        let level = match self.level {
            LogLevel::Panic => return,
            LogLevel::Error => Level::ERROR,
            LogLevel::Warning => Level::WARN,
            LogLevel::Verbose => Level::INFO,
            LogLevel::Debug => Level::DEBUG,
        };
        let file = self.file.map(|path| (path, OpenOptions::new().create(true).append(true).open(path)));
        match file {
            Some((_, Ok(file))) if self.to_stderr => self.write_to(level, Mutex::new(file).and(std::io::stderr)),
            Some((_, Ok(file))) => self.write_to(level, Mutex::new(file)),
            Some((path, Err(problem))) => {
                self.write_to(level, std::io::stderr);
                tracing::warn!("logFile {}: {problem}", path.display());
            }
            None if self.to_stderr => self.write_to(level, std::io::stderr),
            None => {}
        }
    }

    fn write_to(&self, level: Level, writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static) {
        // A log that nobody can write to, a reader that has gone, must not end the operation: errors inside are kept inside.
        let lines = fmt::layer().with_target(false).with_ansi(false).log_internal_errors(false).with_writer(writer);
        // What other crates have to say of each frame they send is for their authors.
        let wanted = Targets::new().with_default(level.min(Level::WARN)).with_target("musubi", level);
        // Only the first call of a process can set it.
        let _ = if self.json {
            set_global_default(registry().with(lines.json().flatten_event(true).with_filter(wanted)))
        } else {
            set_global_default(registry().with(lines.with_filter(wanted)))
        };
    }
}

/// The line of a finished operation.
pub fn operation(request: &Request, caller: &Caller, started: Instant, error: Option<&CniError>) {
    let argument = |key| request.args.get(key).unwrap_or_default();
    let pod = format!("{}/{}", argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME"));
    let container = request.container_id.as_ref().map(ToString::to_string).unwrap_or_default();
    let steps = caller.steps();
    let networks: Vec<String> = steps.iter().map(|step| format!("{}@{}", step.network, step.interface)).collect();
    let networks = networks.join(",");
    let milliseconds = started.elapsed().as_micros() as f64 / 1000.0;
    let (command, id, trace) = (request.command, &caller.id, caller.trace());
    match error {
        None => tracing::info!(%command, pod, container, networks, milliseconds, request = id, trace, "done"),
        Some(error) => tracing::error!(
            %command, pod, container, networks, milliseconds, request = id, trace, code = error.code, "{error}"
        ),
    }
}

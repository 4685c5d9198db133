//! Where log lines go: failures and warnings to stderr, which runtimes keep, unless the configuration says otherwise; one
//! line an operation with its outcome and duration, and every step, where it asks for them.

use std::fs::OpenOptions;
use std::sync::Mutex;
use std::time::Instant;

use musubi_delegates::cni::{CniError, Request};
use tracing::Level;
use tracing::subscriber::set_global_default;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::writer::MakeWriterExt;

use crate::config::{Config, LogLevel};
use crate::engine::Caller;

/// Starts logging as the configuration says. A file that cannot be opened is no reason for a pod not to start, or not to
/// end: the log goes to stderr then. A second call in one process changes nothing.
pub fn start(config: &Config) {
    let level = match config.log_level {
        LogLevel::Panic => return,
        LogLevel::Error => Level::ERROR,
        LogLevel::Warning => Level::WARN,
        LogLevel::Verbose => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
    };
    // A log that nobody can write to, a reader that has gone, must not end the operation: errors inside are kept inside.
    let lines =
        fmt::Subscriber::builder().with_max_level(level).with_target(false).with_ansi(false).log_internal_errors(false);
    let file = config.log_file.as_ref().map(|path| (path, OpenOptions::new().create(true).append(true).open(path)));
    // Only the first call of a process can set it.
    let _ = match file {
        Some((_, Ok(file))) if config.log_to_stderr => {
            set_global_default(lines.with_writer(Mutex::new(file).and(std::io::stderr)).finish())
        }
        Some((_, Ok(file))) => set_global_default(lines.with_writer(Mutex::new(file)).finish()),
        Some((path, Err(problem))) => {
            let started = set_global_default(lines.with_writer(std::io::stderr).finish());
            tracing::warn!("logFile {}: {problem}", path.display());
            started
        }
        None if config.log_to_stderr => set_global_default(lines.with_writer(std::io::stderr).finish()),
        None => return,
    };
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

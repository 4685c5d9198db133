//! Where log lines go: nowhere unless the configuration says so, since a runtime shows stderr to nobody in particular.
//! One line an operation, with its outcome and duration; warnings and steps by level.

use std::fs::OpenOptions;
use std::sync::Mutex;
use std::time::Instant;

use musubi_delegates::cni::{CniError, Request, code};
use tracing::Level;
use tracing_subscriber::fmt;

use crate::config::{Config, LogLevel};

/// Starts logging as the configuration says. A second call in one process changes nothing.
///
/// # Errors
/// Code 5: the log file cannot be opened.
pub fn start(config: &Config) -> Result<(), CniError> {
    let level = match config.log_level {
        LogLevel::Panic => return Ok(()),
        LogLevel::Error => Level::ERROR,
        LogLevel::Verbose => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
    };
    let lines = fmt::Subscriber::builder().with_max_level(level).with_target(false).with_ansi(false);
    let started = match &config.log_file {
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path).map_err(|e| {
                CniError::new(code::IO, format!("logFile {}: {e}", path.display()))
                    .with_details("make its folder writable, or remove \"logFile\"")
            })?;
            tracing::subscriber::set_global_default(lines.with_writer(Mutex::new(file)).finish())
        }
        None if config.log_to_stderr => {
            tracing::subscriber::set_global_default(lines.with_writer(std::io::stderr).finish())
        }
        None => return Ok(()),
    };
    // Only the first call of a process can set it.
    drop(started);
    Ok(())
}

/// The line of a finished operation.
pub fn operation(request: &Request, started: Instant, error: Option<&CniError>) {
    let argument = |key| request.args.get(key).unwrap_or_default();
    let pod = format!("{}/{}", argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME"));
    let container = request.container_id.as_ref().map(ToString::to_string).unwrap_or_default();
    let milliseconds = started.elapsed().as_micros() as f64 / 1000.0;
    match error {
        None => tracing::info!(command = %request.command, pod, container, milliseconds, "done"),
        Some(error) => {
            tracing::error!(command = %request.command, pod, container, milliseconds, code = error.code, "{error}")
        }
    }
}

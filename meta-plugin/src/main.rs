//! Decides what the program is today: a bundled plugin by its name, our own CNI plugin by `CNI_COMMAND`, else the
//! command line. Nothing is started before that is known.
#![cfg_attr(target_env = "gnu", no_main)]

#[cfg(target_env = "gnu")]
mod entry;

use std::path::Path;
use std::process::ExitCode;

use musubi::{cli, engine};
use musubi_delegates::registry;

#[cfg(not(target_env = "gnu"))]
fn main() -> ExitCode {
    start()
}

fn start() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&called).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if registry::BUNDLED.contains(&name) {
        return cli::delegate::run(name);
    }
    if std::env::var_os("CNI_COMMAND").is_some() && !is_delegate_call() {
        return engine::serve();
    }
    cli::run()
}

/// `musubi delegate TYPE` is called with `CNI_COMMAND` set, too.
fn is_delegate_call() -> bool {
    std::env::args_os().nth(1).is_some_and(|argument| argument == "delegate")
}

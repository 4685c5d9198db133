//! `musubi agent`: the node agent, until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

/// Options of `musubi agent`.
#[derive(Args)]
pub struct Options {
    /// The agent's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    crate::agent::run(&options.config)?;
    Ok(ExitCode::SUCCESS)
}

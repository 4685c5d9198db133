//! The command line: one file a command. All printing goes through [`print`].

mod agent;
pub mod delegate;
mod demo;
mod explain;
mod gc;
pub mod history;
mod install;
mod lint;
mod status;
mod uninstall;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use serde_json::Value;

use crate::config::STATE_DIR;

/// Several networks for one pod: a CNI meta-plugin, and the tools around it.
#[derive(Parser)]
#[command(
    name = "musubi",
    version,
    about = "Several networks for one pod: a Kubernetes CNI meta-plugin, and the tools around it",
    after_help = "First steps:
  musubi demo      see it work, without root
  musubi status    what pods have now
  musubi explain web --config 00-musubi.conf --manifests DIR
                   what a pod would get, and why

A container runtime calls musubi as the CNI plugin of \"type\": \"musubi\", with CNI_COMMAND in its environment. \
Called by the name of a bundled plugin, by link or copy, it is that plugin alone; see musubi help delegate."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// See it work: two simulated nodes and four pods, without root
    Demo(demo::Options),
    /// Show what ADD would do for a pod, without doing it
    Explain(explain::Options),
    /// Check manifests: definitions against each other, pods against definitions, all against policies
    ///
    /// Exits with 1 if there is an error, with 2 if the arguments cannot be used.
    Lint(lint::Options),
    /// List the networks that pods have, from the records of this node
    Status(status::Options),
    /// Release what pods that are gone have left behind
    Gc(gc::Options),
    /// Be the node agent: keep in memory what pods need, and carry out what the plugin is asked for
    Agent(agent::Options),
    /// Put this program where the container runtime looks for plugins
    Install(install::Options),
    /// Give the node back to its primary CNI
    Uninstall(uninstall::Options),
    /// Be one bundled CNI plugin alone
    ///
    /// Called as any CNI plugin is: its variables in the environment, the configuration on stdin.
    Delegate {
        /// One of bridge, macvlan, ipvlan, vlan, vxlan, ptp, loopback, host-local, static
        #[arg(value_name = "TYPE")]
        plugin_type: String,
    },
    /// Print the version and the CNI versions that are spoken
    Version,
}

/// How a command prints: for reading, or for programs.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// Options that several commands share.
#[derive(Args, Clone)]
pub(crate) struct StateDir {
    /// The state folder: "cniDir" of the configuration
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub(crate) state_dir: PathBuf,
}

/// Runs the command line.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let outcome = match cli.command {
        Command::Demo(options) => demo::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::Lint(options) => lint::run(&options),
        Command::Status(options) => status::run(&options),
        Command::Gc(options) => gc::run(&options),
        Command::Agent(options) => agent::run(&options),
        Command::Install(options) => install::run(&options),
        Command::Uninstall(options) => uninstall::run(&options),
        Command::Delegate { plugin_type } => return delegate::run(&plugin_type),
        Command::Version => version(),
    };
    match outcome {
        Ok(code) => code,
        Err(e) => {
            let _ = writeln!(io::stderr(), "musubi: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says what is wrong with the arguments.
pub(crate) fn unusable(error: &anyhow::Error) -> anyhow::Result<ExitCode> {
    writeln!(io::stderr(), "musubi: {error:#}")?;
    Ok(ExitCode::from(2))
}

fn version() -> anyhow::Result<ExitCode> {
    let cni: Vec<&str> = musubi_delegates::cni::Version::ALL.iter().map(|v| v.as_str()).collect();
    print(&format!("musubi {}\nCNI {}\n", env!("CARGO_PKG_VERSION"), cni.join(", ")))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a text; a reader that closed its end early is no failure.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Prints a value as indented JSON.
pub(crate) fn print_json(value: &Value) -> anyhow::Result<()> {
    print(&format!("{value:#}\n"))
}

/// As much of a container's id as `crictl` shows.
pub(crate) fn short_id(container_id: &str) -> String {
    container_id.chars().take(12).collect()
}

/// A table without lines, as `kubectl` prints them.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for row in rows {
        table.add_row(row);
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

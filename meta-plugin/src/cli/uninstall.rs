//! `musubi uninstall`: gives the node back to its primary CNI. The runtime's configuration goes first, the program last and
//! only when no pod needs it any more. What other programs made stays, and a second run does what the first had to leave.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use musubi_delegates::netns::Namespace;
use nix::sys::signal::{SigSet, Signal};
use serde_json::Value;

use super::install::{BIN_DIR, PluginFolder};
use super::{StateDir, print};
use crate::agent::host_mounts;
use crate::config::{AGENT_SOCKET, OUR_TYPE};
use crate::engine::gc::{DEVICE_INFO, Finding, Place, Reality};
use crate::records::{Records, Stored};

/// What the agent writes for the runtime, what a person may have written instead, and how Cilium renames both until its own
/// end, when it names them back.
const CONFIGURATIONS: [&str; 4] =
    ["00-musubi.conflist", "00-musubi.conf", "00-musubi.conflist.cilium_bak", "00-musubi.conf.cilium_bak"];
/// How the names begin of what was not finished.
const UNFINISHED: &str = ".00-musubi.conf";
/// The folder of what the plugin needs to reach the API server.
const CREDENTIALS: &str = "musubi.d";
/// What runtimes take for a configuration.
const RUNTIME_READS: [&str; 3] = [".conf", ".conflist", ".json"];
/// How long the release of one attachment may take.
const RELEASE_TIME: Duration = Duration::from_secs(90);
/// How often a command that stays looks whether it can go on.
const AGAIN: Duration = Duration::from_secs(10);
/// How many pods are named in one line.
const NAMED: usize = 5;

/// Options of `musubi uninstall`.
#[derive(Args, Clone)]
pub struct Options {
    /// The runtime's folder of plugins
    #[arg(long, value_name = "DIR", default_value = BIN_DIR)]
    bin_dir: PathBuf,
    /// The runtime's folder of configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    config_dir: PathBuf,
    #[command(flatten)]
    state: StateDir,
    /// Go on while an agent runs, and remove the program while pods still have networks of ours
    #[arg(long)]
    force: bool,
    /// Stay, and finish when the last pod with networks of ours is gone: for a DaemonSet
    #[arg(long)]
    stay: bool,
    /// Work in the mount namespace of process 1: for a container that shares the host's processes
    #[arg(long)]
    host: bool,
}

pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let host = options.host.then_some(Path::new("/proc/1/ns/mnt"));
    if let Some(problem) = host_mounts::enter(host).problem() {
        bail!("{problem}");
    }
    let done = uninstall(options)?;
    print(&lines(&done))?;
    if options.stay { stay(options, done) } else { Ok(ExitCode::SUCCESS) }
}

/// Repeats until a signal ends it. The first process of a container gets only the signals it waits for.
fn stay(options: &Options, mut said: Vec<String>) -> anyhow::Result<ExitCode> {
    let ends: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    ends.thread_block().context("cannot block signals")?;
    let options = options.clone();
    thread::spawn(move || {
        loop {
            thread::sleep(AGAIN);
            let now = uninstall(&options).unwrap_or_else(|e| vec![format!("{e:#}")]);
            // An unread line is no reason to stop.
            if now != said && print(&lines(&now)).is_ok() {
                said = now;
            }
        }
    });
    ends.wait().context("cannot wait for a signal")?;
    Ok(ExitCode::SUCCESS)
}

fn lines(done: &[String]) -> String {
    match done {
        [] => "nothing of musubi is left here\n".to_owned(),
        _ => done.iter().map(|line| format!("{line}\n")).collect(),
    }
}

/// One line for each thing that was done or left.
fn uninstall(options: &Options) -> anyhow::Result<Vec<String>> {
    let configurations = configurations(&options.config_dir)?;
    refuse_another_state_folder(&configurations, &options.state.state_dir)?;
    if !options.force {
        refuse_beside_an_agent(&configurations)?;
    }
    let mut done = remove_configurations(&options.config_dir, &configurations)?;
    done.extend(remove_folder(&options.config_dir.join(CREDENTIALS))?);
    done.extend(release_stale(&options.state.state_dir)?);
    done.extend(remove_program(options)?);
    Ok(done)
}

/// A file of the runtime's that has one of our names.
struct Configuration {
    path: PathBuf,
    content: Value,
}

impl Configuration {
    fn plugins(&self) -> impl Iterator<Item = &Value> {
        let list = self.content["plugins"].as_array();
        list.into_iter().flatten().chain(list.is_none().then_some(&self.content))
    }

    /// A name is no proof.
    fn ours(&self) -> Option<&Value> {
        self.plugins().find(|plugin| plugin["type"] == OUR_TYPE)
    }
}

fn configurations(config_dir: &Path) -> anyhow::Result<Vec<Configuration>> {
    let mut found = Vec::new();
    for path in CONFIGURATIONS.map(|name| config_dir.join(name)) {
        let text = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let content = serde_json::from_slice(&text).with_context(|| {
            format!("{} is no configuration; remove it by hand if nobody needs it, then try again", path.display())
        })?;
        found.push(Configuration { path, content });
    }
    Ok(found)
}

/// Names of the files of a folder, sorted; none when there is no folder.
fn file_names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
    };
    let entries = entries.with_context(|| format!("cannot read {}", folder.display()))?;
    let files = entries.iter().filter(|entry| entry.path().is_file());
    let mut names: Vec<String> = files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

/// Whether the program is needed is read from the records, and once the configuration is gone nothing tells where they are.
fn refuse_another_state_folder(configurations: &[Configuration], state_dir: &Path) -> anyhow::Result<()> {
    for configuration in configurations {
        let configured = configuration.ours().and_then(|conf| conf["cniDir"].as_str());
        if let Some(configured) = configured.filter(|folder| Path::new(folder) != state_dir) {
            bail!("{} keeps its records elsewhere: say --state-dir {configured}", configuration.path.display());
        }
    }
    Ok(())
}

/// An agent would write the configuration again at once.
fn refuse_beside_an_agent(configurations: &[Configuration]) -> anyhow::Result<()> {
    let configured =
        configurations.iter().filter_map(Configuration::ours).find_map(|conf| conf["agentSocket"].as_str());
    let socket = configured.unwrap_or(AGENT_SOCKET);
    if UnixStream::connect(socket).is_ok() {
        bail!("an agent still serves {socket} and would write the configuration again; end it first, or use --force");
    }
    Ok(())
}

fn remove_configurations(config_dir: &Path, configurations: &[Configuration]) -> anyhow::Result<Vec<String>> {
    let remove = |path: &Path| fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()));
    for name in file_names(config_dir)?.iter().filter(|name| name.starts_with(UNFINISHED)) {
        remove(&config_dir.join(name))?;
    }
    let (ours, others): (Vec<_>, Vec<_>) = configurations.iter().partition(|conf| conf.ours().is_some());
    let mut done = Vec::new();
    for Configuration { path, .. } in others {
        done.push(format!("kept {}: it is not ours, its type is not \"{OUR_TYPE}\"", path.display()));
    }
    for Configuration { path, .. } in &ours {
        remove(path)?;
        done.push(format!("removed {}", path.display()));
    }
    if !ours.is_empty() {
        // A power cut must not bring it back when the program is gone.
        let synced = File::open(config_dir).and_then(|folder| folder.sync_all());
        synced.with_context(|| format!("cannot sync {}", config_dir.display()))?;
        done.push(match next_configuration(config_dir)? {
            Some(next) => format!("new pods get their network from {next}"),
            None => format!("new pods have no network: {} holds no other configuration", config_dir.display()),
        });
    }
    Ok(done)
}

/// What the runtime reads from now on: the first by name.
fn next_configuration(config_dir: &Path) -> anyhow::Result<Option<String>> {
    let is_read = |name: &String| RUNTIME_READS.iter().any(|ending| name.ends_with(ending));
    Ok(file_names(config_dir)?.into_iter().find(is_read))
}

fn remove_folder(folder: &Path) -> anyhow::Result<Option<String>> {
    match fs::remove_dir_all(folder) {
        Ok(()) => Ok(Some(format!("removed {}", folder.display()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot remove {}", folder.display())),
    }
}

/// Some runtimes delete by the configuration of the day, which names us no more: pods that end from now on are stale.
fn release_stale(state_dir: &Path) -> anyhow::Result<Vec<String>> {
    let host = Namespace::current()?;
    let place = Place { state_dir, device_info: Path::new(DEVICE_INFO), host: &host, store: None };
    let release = |left: &Finding| {
        let of = format!("container {} ({})", left.container_id, left.reason);
        match left.release(place, Instant::now() + RELEASE_TIME) {
            Ok(_) => format!("released what was left of {of}"),
            Err(e) => format!("could not release what is left of {of}: {e}"),
        }
    };
    let findings = Reality::look(place)?.findings(place);
    Ok(findings.iter().map(release).collect())
}

fn remove_program(options: &Options) -> anyhow::Result<Option<String>> {
    if !options.bin_dir.exists() {
        return Ok(None);
    }
    let folder = PluginFolder::lock(&options.bin_dir)?;
    let program = folder.program().display().to_string();
    let pods = pods_left(&options.state.state_dir)?;
    if !pods.is_empty() && !options.force {
        return Ok(folder.program().exists().then(|| {
            format!(
                "kept {program}: to end, {} still need it; uninstall again when they are gone, or with --force",
                in_short(&pods)
            )
        }));
    }
    Ok(folder.remove()?.then(|| format!("removed {program}")))
}

/// Pods, or where there is none containers, that have a record.
fn pods_left(state_dir: &Path) -> anyhow::Result<BTreeSet<String>> {
    let records = Records::of(state_dir);
    let name = |stored: &Stored| match stored {
        Stored::Whole(record) if record.pod.is_some() => format!("pod {}", record.pod_key()),
        stored => format!("container {}", stored.key().container_id),
    };
    Ok(records.all()?.iter().chain(&records.orphaned()?).map(name).collect())
}

fn in_short(names: &BTreeSet<String>) -> String {
    let named = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

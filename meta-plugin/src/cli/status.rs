//! `musubi status`: what pods have on this node, from the records.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::{Format, StateDir, history, print, print_json, short_id, table};
use crate::agent;
use crate::config::AGENT_SOCKET;
use crate::record::{Attached, Record, State, now};
use crate::records::{Records, Stored};

/// Options of `musubi status`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    state: StateDir,
    /// The agent's last operations with their timings, in place of what pods have
    #[arg(long)]
    history: bool,
    /// The agent's socket, for --history
    #[arg(long, value_name = "FILE", default_value = AGENT_SOCKET)]
    agent_socket: PathBuf,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if options.history {
        return show_history(options);
    }
    let records = Records::of(&options.state.state_dir);
    let mut attachments = Vec::new();
    let mut notes = Vec::new();
    for stored in records.all()? {
        match stored {
            Stored::Whole(record) => {
                attachments.extend(record.attachments.iter().map(|attached| Row::of(&record, attached)))
            }
            Stored::Damaged { key, problem } => {
                notes.push(format!("the record of container {} is damaged: {problem}", key.container_id))
            }
        }
    }
    for stored in records.orphaned()? {
        notes.push(format!(
            "container {}: its DEL could not release everything; see musubi gc --dry-run",
            stored.key().container_id
        ));
    }
    match options.output {
        Format::Json => print_json(&json!({"attachments": attachments.iter().map(Row::to_json).collect::<Vec<_>>()}))?,
        Format::Table => {
            let header = ["POD", "CONTAINER", "INTERFACE", "NETWORK", "ADDRESSES", "MAC", "STATE", "AGE"];
            let mut text = if attachments.is_empty() {
                format!("no pod has networks of ours ({})\n", options.state.state_dir.display())
            } else {
                table(&header, attachments.iter().map(Row::cells))
            };
            for note in notes {
                text.push_str(&format!("note: {note}\n"));
            }
            print(&text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_history(options: &Options) -> anyhow::Result<ExitCode> {
    let known = agent::client::get(&options.agent_socket, "/history")
        .with_context(|| format!("no agent answers at {}", options.agent_socket.display()))?;
    match options.output {
        Format::Json => print_json(&known)?,
        Format::Table => print(&history::render(&known, jiff::Timestamp::now())?)?,
    }
    Ok(ExitCode::SUCCESS)
}

struct Row {
    pod: String,
    container_id: String,
    network: String,
    interface: String,
    ips: Vec<String>,
    mac: String,
    state: State,
    since: u64,
}

impl Row {
    fn of(record: &Record, attached: &Attached) -> Self {
        let result = attached.result().unwrap_or_default();
        let own = result.interfaces.iter().find(|i| i.name == attached.interface && !i.sandbox.is_empty());
        Self {
            pod: record.pod_key(),
            container_id: record.container_id.clone(),
            network: attached.network.clone(),
            interface: attached.interface.clone(),
            ips: result.ips.iter().map(|ip| ip.address.addr().to_string()).collect(),
            mac: own.map(|i| i.mac.clone()).unwrap_or_default(),
            state: record.state,
            since: record.since,
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "pod": self.pod,
            "containerId": self.container_id,
            "network": self.network,
            "interface": self.interface,
            "ips": self.ips,
            "mac": self.mac,
            "state": self.state,
            "since": timestamp(self.since),
        })
    }

    fn cells(&self) -> Vec<String> {
        let state = match self.state {
            State::Adding => "adding",
            State::Attached => "attached",
            State::Deleting => "deleting",
        };
        vec![
            if self.pod.is_empty() { "-".to_owned() } else { self.pod.clone() },
            short_id(&self.container_id),
            self.interface.clone(),
            self.network.clone(),
            self.ips.join(","),
            self.mac.clone(),
            state.to_owned(),
            age(now().saturating_sub(self.since)),
        ]
    }
}

/// A duration as `kubectl` shows ages.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Seconds since 1970 as RFC 3339 in UTC.
fn timestamp(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map(|t| t.to_string()).unwrap_or_default()
}

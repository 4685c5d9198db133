//! `musubi gc`: shows, and unless it is a dry run releases, what pods that are gone have left behind.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::{Format, StateDir, print, print_json, short_id, table};
use crate::engine::gc::{Stale, find_stale};
use crate::engine::pending;
use crate::store::DirectoryStore;

/// How long the release of one attachment may take.
const RELEASE_TIME: Duration = Duration::from_secs(90);

/// Options of `musubi gc`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    state: StateDir,
    /// Only show what would be released
    #[arg(long)]
    dry_run: bool,
    /// Only what earlier operations could not finish: orphans of DEL, and statuses that were not written
    #[arg(long, hide = true)]
    unfinished_only: bool,
    /// Where those statuses go
    #[arg(long, hide = true)]
    manifests: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let state_dir = &options.state.state_dir;
    let mut stale = find_stale(state_dir)?;
    stale.retain(|left| left.orphan || !options.unfinished_only);
    let mut failures = Vec::new();
    if let Some(folder) = options.manifests.as_deref().filter(|_| !options.dry_run) {
        let store = DirectoryStore::empty(folder);
        failures.extend(pending::write_all(state_dir, &store).iter().map(ToString::to_string));
    }
    let mut results = Vec::with_capacity(stale.len());
    for left in &stale {
        if options.dry_run {
            results.push("would be released");
            continue;
        }
        let outcome = left.release(state_dir, Instant::now() + RELEASE_TIME);
        results.push(if outcome.is_ok() { "released" } else { "kept" });
        failures.extend(outcome.err().map(|error| format!("container {}: {error}", left.key.container_id)));
    }
    match options.output {
        Format::Json => print_json(&json!({"stale": stale.iter().map(Stale::to_json).collect::<Vec<_>>()}))?,
        Format::Table if stale.is_empty() => print("nothing is left behind\n")?,
        Format::Table => {
            let rows = stale.iter().zip(results).map(|(left, result)| {
                vec![
                    short_id(&left.key.container_id),
                    left.pod.clone(),
                    left.reason.clone(),
                    left.resources.join(", "),
                    result.to_owned(),
                ]
            });
            print(&table(&["CONTAINER", "POD", "REASON", "HELD", "RESULT"], rows))?;
        }
    }
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("{}", failures.join("\n"))
}

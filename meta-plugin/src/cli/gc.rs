//! `musubi gc`: shows, and unless it is a dry run releases, what pods that are gone have left behind.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use musubi_delegates::netns::Namespace;
use serde_json::json;

use super::{Format, StateDir, print, print_json, short_id, table};
use crate::engine::gc::{DEVICE_INFO, Finding, Place, Reality};
use crate::store::{DirectoryStore, Store};

/// How long the release of one finding may take.
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
    /// The folder of device-info files
    #[arg(long, hide = true, value_name = "DIR", default_value = DEVICE_INFO)]
    device_info: PathBuf,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let host = Namespace::current()?;
    let store = options.manifests.as_deref().map(DirectoryStore::empty);
    let place = Place {
        state_dir: &options.state.state_dir,
        device_info: &options.device_info,
        host: &host,
        store: store.as_ref().map(|store| store as &dyn Store),
    };
    let (found, errors) = look(options, place)?;
    let mut failures: Vec<String> = errors;
    let mut results = Vec::with_capacity(found.len());
    for finding in &found {
        if options.dry_run {
            results.push("would be released");
            continue;
        }
        let outcome = finding.release(place, Instant::now() + RELEASE_TIME);
        results.push(if outcome.is_ok() { "released" } else { "kept" });
        failures.extend(outcome.err().map(|error| format!("{}: {error}", subject(finding))));
    }
    show(options.output, &found, &results)?;
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("{}", failures.join("\n"))
}

/// What was left behind, and what could not be looked at.
fn look(options: &Options, place: Place<'_>) -> anyhow::Result<(Vec<Finding>, Vec<String>)> {
    if options.unfinished_only {
        return Ok((Reality::recorded(place.state_dir)?.unfinished(place), Vec::new()));
    }
    let reality = Reality::look(place)?;
    Ok((reality.findings(place), reality.errors.iter().map(ToString::to_string).collect()))
}

/// What a failure is about: the container, where one is known.
fn subject(finding: &Finding) -> String {
    match finding.container_id.as_str() {
        "" => finding.resources.join(", "),
        container => format!("container {container}"),
    }
}

fn show(format: Format, found: &[Finding], results: &[&str]) -> anyhow::Result<()> {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    match format {
        Format::Json => print_json(&json!({"stale": found.iter().map(Finding::to_json).collect::<Vec<_>>()}))?,
        Format::Table if found.is_empty() => print("nothing is left behind\n")?,
        Format::Table => {
            let rows = found.iter().zip(results).map(|(finding, result)| {
                vec![
                    or_dash(&short_id(&finding.container_id)),
                    or_dash(&finding.pod),
                    finding.reason.clone(),
                    finding.resources.join(", "),
                    (*result).to_owned(),
                ]
            });
            print(&table(&["CONTAINER", "POD", "REASON", "HELD", "RESULT"], rows))?;
        }
    }
    Ok(())
}

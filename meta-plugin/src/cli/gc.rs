//! `musubi gc`: shows, and unless it is a dry run releases, what pods that are gone have left behind.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use musubi_delegates::netns::Namespace;
use serde_json::json;

use super::{Format, StateDir, print, print_json, short_id, table};
use crate::cancel::Cancel;
use crate::engine::gc::{DEVICE_INFO, Finding, Outcome, Place, Reality};
use crate::store::kubernetes::{Connection, Source};
use crate::store::{DirectoryStore, KubernetesStore, Store};

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
    /// Where those statuses go: a folder of manifests
    #[arg(long, hide = true)]
    manifests: Option<PathBuf>,
    /// Where those statuses go: a cluster
    #[arg(long, hide = true, conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,
    /// The folder of device-info files
    #[arg(long, hide = true, value_name = "DIR", default_value = DEVICE_INFO)]
    device_info: PathBuf,
    /// How to print
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let host = Namespace::current()?;
    let store = store(options)?;
    let place = Place {
        state_dir: &options.state.state_dir,
        device_info: &options.device_info,
        host: &host,
        store: store.as_deref(),
    };
    let (found, mut failures) = look(options, place)?;
    let mut shown = Vec::with_capacity(found.len());
    for finding in found {
        if options.dry_run {
            shown.push((finding, "would be released"));
            continue;
        }
        match finding.release(place, Instant::now() + RELEASE_TIME) {
            Ok(Outcome::Released) => shown.push((finding, "released")),
            Ok(Outcome::Settled) => {}
            Err(error) => {
                failures.push(format!("{}: {error}", subject(&finding)));
                shown.push((finding, "kept"));
            }
        }
    }
    show(options.output, &shown)?;
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("{}", failures.join("\n"))
}

/// Where statuses go that are still to be written.
fn store(options: &Options) -> anyhow::Result<Option<Box<dyn Store>>> {
    if let Some(folder) = &options.manifests {
        return Ok(Some(Box::new(DirectoryStore::empty(folder))));
    }
    let Some(file) = &options.kubeconfig else { return Ok(None) };
    let connection = Arc::new(Connection::alone(Source::Kubeconfig(file.clone()))?);
    let until = Instant::now() + RELEASE_TIME;
    Ok(Some(Box::new(KubernetesStore::new(connection, None, until, Cancel::default()))))
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

fn show(format: Format, found: &[(Finding, &str)]) -> anyhow::Result<()> {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    match format {
        Format::Json => {
            let stale: Vec<_> = found.iter().map(|(finding, _)| finding.to_json()).collect();
            print_json(&json!({"stale": stale}))?;
        }
        Format::Table if found.is_empty() => print("nothing is left behind\n")?,
        Format::Table => {
            let rows = found.iter().map(|(finding, result)| {
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

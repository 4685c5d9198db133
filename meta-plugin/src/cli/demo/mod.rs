//! `musubi demo`: a small cluster in namespaces of its own, pods from the examples, every network proved by packets, and
//! nothing left afterwards. Pods are attached by calling this program as a runtime does; nothing here attaches anything.

mod draw;
mod enter;
mod lab;
mod manifests;
mod observe;
mod ping;
mod progress;
mod remains;
mod runtime;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{print, print_json};
use enter::Own;
use lab::Lab;
use manifests::{Manifests, Network};
use observe::{Ping, PodReport};
use progress::Progress;
use remains::Snapshot;

/// Options of `musubi demo`.
#[derive(Args)]
pub struct Options {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Keep the cluster until Enter, to look around and to break it; then ping again
    #[arg(long)]
    keep: bool,
}

/// What `--json` prints.
#[derive(Debug, Default, Serialize)]
struct Report {
    pods: Vec<PodReport>,
    pings: Vec<Ping>,
    skipped: Vec<Skipped>,
    leftovers: Vec<String>,
    /// Networks that do not connect all who are on them, and why.
    #[serde(skip)]
    unreachable: BTreeMap<String, &'static str>,
    /// What stays by design.
    #[serde(skip)]
    kept: Vec<String>,
}

/// A kind that this kernel lacks.
#[derive(Debug, Serialize)]
struct Skipped {
    kind: String,
    reason: String,
}

impl Report {
    fn is_good(&self) -> bool {
        self.leftovers.is_empty() && self.pings.iter().all(|ping| ping.ok)
    }
}

pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let progress = Progress::new();
    let own = progress.step("leave the machine's namespaces for our own", enter::enter)?;
    let (lab, report) = show(options, &progress, &own)?;
    if options.json {
        print_json(&serde_json::to_value(&report)?)?;
    } else {
        let coloured = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        print(&draw::result(&lab, &report, coloured))?;
        print(&format!("{:.1} s in all\n", progress.elapsed().as_secs_f64()))?;
    }
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// From an empty machine to an empty machine.
fn show(options: &Options, progress: &Progress, own: &Own) -> anyhow::Result<(Lab, Report)> {
    let mut report = Report::default();
    let mut manifests = Manifests::read()?;
    progress.step("see what this kernel can do", || skip_what_is_missing(&mut manifests, &mut report.skipped))?;
    let networks = manifests.networks()?;
    let default = networks.first().map(|network| network.name.clone()).unwrap_or_default();
    let lab = progress.step("two nodes and a cable between them", || Lab::build(&own.folder, &manifests))?;
    let before = Snapshot::of(&lab)?;

    call_for_each(&lab, progress, "ADD")?;
    report.pods = progress.step("read interfaces and network-status", || observe::pods(&lab, &networks))?;
    report.unreachable = observe::unreachable_by_design(&report.pods, &default);
    let ping = |report: &mut Report| {
        report.pings = observe::pings(&lab, &report.pods, &default)?;
        Ok(())
    };
    progress.step("ping every pod from every other, on every network", || ping(&mut report))?;
    if options.keep {
        hold(&lab, progress, own)?;
        progress.step("ping again", || ping(&mut report))?;
    }
    call_for_each(&lab, progress, "DEL")?;
    let remains = progress.step("compare what is there with what was", || {
        Ok::<_, anyhow::Error>(Snapshot::of(&lab)?.since(&before, &networks))
    })?;
    (report.leftovers, report.kept) = (remains.leftovers, remains.kept);
    Ok((lab, report))
}

fn skip_what_is_missing(manifests: &mut Manifests, skipped: &mut Vec<Skipped>) -> anyhow::Result<()> {
    for (number, network) in extra(&manifests.networks()?).iter().enumerate() {
        if let Some(reason) = lab::what_is_missing(network, number)? {
            manifests.remove(network)?;
            skipped.push(Skipped { kind: network.kind.clone(), reason });
        }
    }
    if !lab::has_ipv6() {
        manifests.remove_ipv6()?;
        skipped.push(Skipped { kind: "IPv6".to_owned(), reason: "this kernel has no IPv6".to_owned() });
    }
    Ok(())
}

/// All but the default network, which no pod is without.
fn extra(networks: &[Network]) -> &[Network] {
    networks.get(1..).unwrap_or_default()
}

fn call_for_each(lab: &Lab, progress: &Progress, command: &str) -> anyhow::Result<()> {
    for pod in &lab.pods {
        let Some(node) = lab.nodes.get(pod.node) else { continue };
        progress.step(&format!("{command} {} on {}", pod.name, node.name), || runtime::call(command, node, pod))?;
    }
    Ok(())
}

/// Says how to get inside, and waits for Enter or the end of the input.
fn hold(lab: &Lab, progress: &Progress, own: &Own) -> anyhow::Result<()> {
    let process = std::process::id();
    let user = if own.in_user_namespace { format!("-t {process} -U --preserve-credentials ") } else { String::new() };
    progress.say("\nThe cluster stays until Enter. To get inside, from another terminal:\n");
    let nodes = lab.nodes.iter().map(|node| (&node.name, &node.namespace));
    for (name, namespace) in nodes.chain(lab.pods.iter().map(|pod| (&pod.name, &pod.namespace))) {
        progress.say(&format!("  {name:<8} nsenter {user}--net=/proc/{process}/root{}", namespace.display()));
    }
    progress.say("\nBreak something (ip link set net1 down), press Enter, and see which pings fail.");
    io::stdin().read_line(&mut String::new())?;
    Ok(())
}

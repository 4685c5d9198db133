//! The demo's result for a person: the topology, the pods' network-status, the table of pings, and what is left. At most
//! 100 columns.

use std::fmt::Write;

use super::super::table;
use super::observe::{Interface, Ping, PodReport};
use super::{Report, lab::Lab};

/// Columns inside a node's box and inside a pod's.
const NODE: usize = 46;
const POD: usize = NODE - 4;
/// Columns between the nodes.
const GAP: usize = 2;

/// Everything, in the order in which a reader asks.
pub(super) fn result(lab: &Lab, report: &Report, coloured: bool) -> String {
    let mut text = format!("\n{}\n{}\n{}", topology(lab, &report.pods), statuses(&report.pods), pings(report));
    for skipped in &report.skipped {
        let _ = writeln!(text, "skipped: {}: {}", skipped.kind, skipped.reason);
    }
    text.push_str(&remains(report));
    if coloured { colour(&text) } else { text }
}

/// The nodes side by side, pods inside, the underlay below.
fn topology(lab: &Lab, pods: &[PodReport]) -> String {
    let boxes: Vec<Vec<String>> = lab
        .nodes
        .iter()
        .map(|node| {
            let own = pods.iter().filter(|pod| pod.node == node.name);
            let inside = own.flat_map(pod_box).chain([format!(" eth0 {}", node.address)]);
            let mut lines = framed(&node.name, NODE, inside);
            if let Some(bottom) = lines.last_mut() {
                *bottom = bottom.replacen("└───", "└──┬", 1);
            }
            lines
        })
        .collect();
    let height = boxes.iter().map(Vec::len).max().unwrap_or(0);
    let mut text = String::new();
    for row in 0..height {
        let cells = boxes.iter().map(|lines| lines.get(row).cloned().unwrap_or_default());
        let line = cells.map(|cell| fit(&cell, NODE + 2)).collect::<Vec<_>>().join(&" ".repeat(GAP));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text.push_str(&cable(lab.nodes.len()));
    text
}

fn pod_box(pod: &PodReport) -> Vec<String> {
    framed(&pod.name, POD, pod.interfaces.iter().flat_map(interface_lines))
        .iter()
        .map(|line| format!(" {line}"))
        .collect()
}

/// Interface, network, kind and first address; every other address on a line of its own.
fn interface_lines(interface: &Interface) -> Vec<String> {
    let name = format!(" {:<5} {:<9} {:<8} ", interface.name, short(&interface.network), interface.kind);
    let indent = " ".repeat(name.chars().count());
    let starts = std::iter::once(name).chain(std::iter::repeat(indent));
    let ips = if interface.ips.is_empty() {
        vec![String::new()]
    } else {
        interface.ips.iter().map(ToString::to_string).collect()
    };
    starts.zip(ips).map(|(start, ip)| start + &ip).collect()
}

fn framed(title: &str, width: usize, lines: impl IntoIterator<Item = String>) -> Vec<String> {
    let rule = "─".repeat(width.saturating_sub(title.chars().count() + 3));
    let top = format!("┌─ {title} {rule}┐");
    let middle = lines.into_iter().map(|line| format!("│{}│", fit(&line, width)));
    std::iter::once(top).chain(middle).chain([format!("└{}┘", "─".repeat(width))]).collect()
}

/// From below the first node to below the last.
fn cable(nodes: usize) -> String {
    let label = " underlay 192.168.50.0/24 ";
    let length = (NODE + 2 + GAP) * nodes.saturating_sub(1) - 1;
    let left = length.saturating_sub(label.len()) / 2;
    format!("   └{}{label}{}┘\n", "─".repeat(left), "─".repeat(length - left - label.len()))
}

/// Exactly that many columns.
fn fit(text: &str, width: usize) -> String {
    let cut: String = text.chars().take(width).collect();
    format!("{cut}{}", " ".repeat(width.saturating_sub(cut.chars().count())))
}

/// Namespace `default` goes without saying.
fn short(network: &str) -> &str {
    network.strip_prefix("default/").unwrap_or(network)
}

fn statuses(pods: &[PodReport]) -> String {
    let rows = pods.iter().flat_map(|pod| {
        pod.network_status.iter().enumerate().map(move |(position, entry)| {
            vec![
                if position == 0 { pod.name.clone() } else { String::new() },
                entry.interface.clone().unwrap_or_default(),
                entry.name.clone(),
                entry.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
                entry.mac.clone().unwrap_or_default(),
                if entry.default { "default" } else { "" }.to_owned(),
            ]
        })
    });
    let header = ["POD", "INTERFACE", "NETWORK", "IPS", "MAC", ""];
    format!("network-status, as the store has it\n\n{}", table(&header, rows))
}

/// A row for each ordered pair, a column for each network.
fn pings(report: &Report) -> String {
    let mut networks: Vec<&str> = Vec::new();
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for ping in &report.pings {
        if !networks.contains(&ping.network.as_str()) {
            networks.push(&ping.network);
        }
        if !pairs.contains(&(&ping.from, &ping.to)) {
            pairs.push((&ping.from, &ping.to));
        }
    }
    let rows = pairs.iter().map(|(from, to)| {
        let cells = networks.iter().map(|network| {
            let found = report.pings.iter().find(|p| p.from == *from && p.to == *to && p.network == *network);
            found.map_or("·".to_owned(), cell)
        });
        [format!("{from} → {to}")].into_iter().chain(cells).collect()
    });
    let columns = networks.iter().map(|network| short(network).to_uppercase());
    let header: Vec<String> = ["PING (ms)".to_owned()].into_iter().chain(columns).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut text = table(&header, rows);
    for (network, why) in &report.unreachable {
        let _ = writeln!(text, "· not connected by {}, by design: {why}", short(network));
    }
    for ping in report.pings.iter().filter(|ping| !ping.ok) {
        let error = ping.error.as_deref().unwrap_or("no address");
        let _ = writeln!(text, "✗ {} → {} over {}: {error}", ping.from, ping.to, ping.network);
    }
    text
}

fn cell(ping: &Ping) -> String {
    match ping.rtt_ms {
        Some(time) if ping.ok => format!("✓ {time:.3}"),
        _ => "✗ lost".to_owned(),
    }
}

fn remains(report: &Report) -> String {
    let mut text = String::new();
    for leftover in &report.leftovers {
        let _ = writeln!(text, "✗ left behind: {leftover}");
    }
    if report.leftovers.is_empty() {
        text.push_str("✓ nothing is left: links, addresses, rules, reservations, records and statuses are as before\n");
    }
    if !report.kept.is_empty() {
        let _ = writeln!(text, "· bridges without ports stay with their nodes, as with the reference plugin:");
        let _ = writeln!(text, "  {}", report.kept.join(", "));
    }
    text
}

fn colour(text: &str) -> String {
    text.replace('✓', "\x1b[32m✓\x1b[0m").replace('✗', "\x1b[31m✗\x1b[0m")
}

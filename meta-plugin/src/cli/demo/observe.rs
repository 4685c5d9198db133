//! What there is to see while the pods run: their interfaces as the kernel has them, their network-status as the store
//! has it, and which of them answer each other.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use musubi_crds::{NETWORK_STATUS_ANNOTATION, NetworkStatus, status};
use serde::Serialize;
use serde_json::Value;

use super::lab::{Lab, Pod, inside, open};
use super::manifests::Network;
use super::ping::Echo;

/// A pod as `musubi demo --json` has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodReport {
    pub name: String,
    pub node: String,
    /// As the kernel has them.
    pub interfaces: Vec<Interface>,
    /// As the store has it.
    pub network_status: Vec<NetworkStatus>,
}

/// An interface of a pod.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Interface {
    pub name: String,
    pub network: String,
    pub kind: String,
    /// Without prefix and without link-local ones.
    pub ips: Vec<IpAddr>,
    pub mac: String,
}

/// A cell of the table: one pod to another over one network, answered for every family that both have there.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Ping {
    pub from: String,
    pub to: String,
    pub network: String,
    pub ok: bool,
    /// Round trip in milliseconds, of the slowest family; absent when one was not answered.
    pub rtt_ms: Option<f64>,
    /// What went wrong.
    #[serde(skip)]
    pub error: Option<String>,
}

/// Reads the pods, in the order of the cluster.
///
/// # Errors
/// A status is missing or cannot be read, or the kernel would not tell.
pub(super) fn pods(lab: &Lab, networks: &[Network]) -> anyhow::Result<Vec<PodReport>> {
    lab.pods.iter().map(|pod| report(lab, pod, networks).with_context(|| format!("pod {}", pod.name))).collect()
}

fn report(lab: &Lab, pod: &Pod, networks: &[Network]) -> anyhow::Result<PodReport> {
    let node = lab.nodes.get(pod.node).context("is on no node")?;
    let file = node.manifests().join("status/default").join(format!("{}.json", pod.name));
    let text = std::fs::read(&file).with_context(|| format!("no status at {}", file.display()))?;
    let object: Value = serde_json::from_slice(&text)?;
    let annotation = object["metadata"]["annotations"][NETWORK_STATUS_ANNOTATION].as_str();
    let network_status = status::from_annotation(annotation.context("the status has no annotation")?)?;
    let interfaces = interfaces(pod, &network_status, networks)?;
    Ok(PodReport { name: pod.name.clone(), node: node.name.clone(), interfaces, network_status })
}

/// The status says which network an interface is of; everything else is asked of the kernel.
fn interfaces(pod: &Pod, entries: &[NetworkStatus], networks: &[Network]) -> anyhow::Result<Vec<Interface>> {
    let netlink = open(&pod.namespace)?.netlink;
    let mut interfaces = Vec::new();
    for entry in entries {
        let name = entry.interface.clone().unwrap_or_default();
        let link = netlink.link_by_name(&name)?.with_context(|| format!("no interface {name}"))?;
        let ips = netlink.addresses(link.index)?.into_iter().map(|address| address.net.addr());
        let network = networks.iter().find(|network| network.name == entry.name);
        interfaces.push(Interface {
            name,
            network: entry.name.clone(),
            kind: network.map(|network| network.kind.clone()).unwrap_or_default(),
            ips: ips.filter(|ip| !is_link_local(*ip)).collect(),
            mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        });
    }
    Ok(interfaces)
}

/// Whether it is an address that the kernel gives every IPv6 interface.
pub(super) fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Whether a packet can pass by design: a bridge is its own node's alone, but for the default network, whose parts the
/// nodes route.
fn is_reachable(from: &PodReport, to: &PodReport, interface: &Interface, default: &str) -> bool {
    from.node == to.node || interface.kind != "bridge" || interface.network == default
}

/// Pings every ordered pair of pods on every network that both are on and that connects them; the pods at the same time.
///
/// # Errors
/// A pod's namespace cannot be entered. An unanswered ping is none.
pub(super) fn pings(lab: &Lab, pods: &[PodReport], default: &str) -> anyhow::Result<Vec<Ping>> {
    let echoes = |from: &PodReport| -> Vec<(Ping, Vec<Echo>)> {
        let others = pods.iter().filter(|to| to.name != from.name);
        others.flat_map(|to| from.interfaces.iter().filter_map(|own| cell(from, to, own, default))).collect()
    };
    let all: anyhow::Result<Vec<Vec<Ping>>> = std::thread::scope(|scope| {
        let senders = pods.iter().zip(&lab.pods).map(|(report, pod)| {
            let cells = echoes(report);
            scope.spawn(move || inside(&pod.namespace, || Ok(cells.into_iter().map(send).collect())))
        });
        let senders: Vec<_> = senders.collect();
        let join = |sender: std::thread::ScopedJoinHandle<'_, _>| {
            sender.join().unwrap_or_else(|_| anyhow::bail!("a ping failed"))
        };
        senders.into_iter().map(join).collect()
    });
    Ok(all?.into_iter().flatten().collect())
}

/// A cell to be, with an echo for each family.
fn cell(from: &PodReport, to: &PodReport, own: &Interface, default: &str) -> Option<(Ping, Vec<Echo>)> {
    let theirs = to.interfaces.iter().find(|theirs| theirs.network == own.network)?;
    if !is_reachable(from, to, own, default) {
        return None;
    }
    let pairs = own.ips.iter().flat_map(|source| {
        let same_family = theirs.ips.iter().filter(|ip| ip.is_ipv4() == source.is_ipv4());
        same_family.map(|destination| (*source, *destination))
    });
    let echoes = pairs.map(|(source, destination)| Echo { interface: own.name.clone(), source, destination }).collect();
    let ping = Ping {
        from: from.name.clone(),
        to: to.name.clone(),
        network: own.network.clone(),
        ok: false,
        rtt_ms: None,
        error: None,
    };
    Some((ping, echoes))
}

/// No address to ping is a failure, not a success.
fn send((mut ping, echoes): (Ping, Vec<Echo>)) -> Ping {
    let mut slowest = None;
    for echo in &echoes {
        match echo.send() {
            Ok(time) => slowest = slowest.max(Some(time)),
            Err(e) => {
                let Echo { interface, source, destination } = echo;
                ping.error = Some(format!("{source} on {interface} to {destination}: {e}"));
                return ping;
            }
        }
    }
    ping.ok = slowest.is_some();
    ping.rtt_ms = slowest.map(milliseconds);
    ping
}

/// To the microsecond.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Pairs that share a network without being connected by it: network, and why.
pub(super) fn unreachable_by_design(pods: &[PodReport], default: &str) -> BTreeMap<String, &'static str> {
    let mut found = BTreeMap::new();
    for (from, to) in pods.iter().flat_map(|from| pods.iter().map(move |to| (from, to))) {
        let apart = from.interfaces.iter().filter(|own| !is_reachable(from, to, own, default));
        found.extend(apart.map(|own| (own.network.clone(), "a bridge is its own node's alone")));
    }
    found
}

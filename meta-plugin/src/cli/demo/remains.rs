//! What a pod could leave behind, as a set of lines: taken before the first pod and after the last, the difference is
//! what is left.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use musubi_delegates::firewall;
use musubi_delegates::netlink::{Link, Netlink};

use super::lab::{Lab, Node, inside, open};
use super::manifests::Network;
use super::observe::is_link_local;

/// `RTPROT_KERNEL`: the route belongs to an address.
const MADE_BY_KERNEL: u8 = 2;
/// How the line of a bridge without ports ends.
const UNUSED_BRIDGE: &str = " (bridge, unused)";

/// Links, rules and files of a cluster.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Snapshot(BTreeSet<String>);

/// What is left of pods.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Remains {
    /// What should not be there.
    pub leftovers: Vec<String>,
    /// What outlives pods by design: a bridge is the node's, here as with the reference plugin.
    pub kept: Vec<String>,
}

impl Snapshot {
    /// Looks at every node and pod.
    ///
    /// # Errors
    /// The kernel would not tell.
    pub fn of(lab: &Lab) -> anyhow::Result<Self> {
        let mut lines = BTreeSet::new();
        for node in &lab.nodes {
            lines.extend(node_lines(node)?);
        }
        for pod in &lab.pods {
            let links = open(&pod.namespace)?.netlink.links()?;
            lines.extend(links.into_iter().map(|link| format!("{}: link {}", pod.name, link.name)));
        }
        Ok(Self(lines))
    }

    /// What is here and was not `before`, and what was and is not; `networks` name the bridges that stay.
    pub fn since(&self, before: &Self, networks: &[Network]) -> Remains {
        let mut remains = Remains::default();
        for line in self.0.difference(&before.0) {
            match bridge_that_stays(line, networks) {
                Some(bridge) => remains.kept.push(bridge),
                None => remains.leftovers.push(line.clone()),
            }
        }
        remains.leftovers.extend(before.0.difference(&self.0).map(|line| format!("{line} is gone")));
        remains
    }
}

/// Node and name, if the line is of an unused bridge that a bridge network names.
fn bridge_that_stays(line: &str, networks: &[Network]) -> Option<String> {
    let (node, link) = line.split_once(": link ")?;
    let name = link.strip_suffix(UNUSED_BRIDGE)?;
    let is_of_network = networks.iter().any(|n| n.kind == "bridge" && n.bridge.as_deref() == Some(name));
    is_of_network.then(|| format!("{node} {name}"))
}

fn node_lines(node: &Node) -> anyhow::Result<Vec<String>> {
    let mut lines = network_lines(&open(&node.namespace)?.netlink)?;
    let owners = inside(&node.namespace, || {
        let nft = Netlink::netfilter()?;
        Ok([firewall::masqueraded_owners(&nft)?, firewall::spoof_checked_owners(&nft)?].concat())
    })?;
    lines.extend(owners.iter().map(|owner| format!("nf_tables rules of {owner}")));
    // Namespaces and the folders of their files are the demo's own.
    for folder in ["manifests", "reservations", "state"] {
        files_below(&node.folder, Path::new(folder), &mut lines)?;
    }
    Ok(lines.into_iter().map(|line| format!("{}: {line}", node.name)).collect())
}

/// Links, their addresses, and routes that the kernel has not made by itself. What is on a bridge without ports stays
/// with it.
fn network_lines(netlink: &Netlink) -> anyhow::Result<Vec<String>> {
    let links = netlink.links()?;
    let (unused, used): (Vec<&Link>, Vec<&Link>) =
        links.iter().partition(|link| link.is_kind("bridge") && !links.iter().any(|l| l.master == Some(link.index)));
    let mut lines: Vec<String> = unused.iter().map(|link| format!("link {}{UNUSED_BRIDGE}", link.name)).collect();
    for Link { name, index, kind, .. } in used {
        lines.push(format!("link {name} ({})", kind.as_deref().unwrap_or("device")));
        // The kernel gives link-local addresses when it likes.
        let addresses = netlink.addresses(*index)?.into_iter().filter(|a| !is_link_local(a.net.addr()));
        lines.extend(addresses.map(|address| format!("address {} of {name}", address.net)));
    }
    let made = netlink.routes()?.into_iter().filter(|route| route.protocol != MADE_BY_KERNEL);
    lines.extend(made.map(|route| format!("route to {} by interface {}", route.destination, route.interface)));
    Ok(lines)
}

fn files_below(root: &Path, folder: &Path, lines: &mut Vec<String>) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(root.join(folder)) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            files_below(root, &path, lines)?;
        } else if !is_of_no_pod(&path) {
            lines.push(format!("file {}", path.display()));
        }
    }
    Ok(())
}

/// Files that say nothing of any pod: locks of what pods share and of the reservations, where host-local goes on
/// counting, and which boot our plugin saw last. Locks of containers are in `state/locks`, and are to be gone.
fn is_of_no_pod(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let folder = file.parent().unwrap_or(file);
    if [Path::new("state"), Path::new("state/shared")].contains(&folder) {
        return name == "boot" || name.ends_with(".lock");
    }
    file.starts_with("reservations") && (name == "lock" || name.starts_with("last_reserved_ip."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(lines: &[&str]) -> Snapshot {
        Snapshot(lines.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn whatever_differs_is_left_over_but_a_bridge_without_ports() {
        let network =
            |kind: &str, bridge: &str| Network { name: kind.into(), kind: kind.into(), bridge: Some(bridge.into()) };
        let networks = [network("bridge", "cni0"), network("vxlan", "mbr7")];
        let before = snapshot(&["n: link eth0 (veth)"]);
        let cases: [(&str, &[&str], &[&str]); 6] = [
            ("n: link cni0 (bridge, unused)", &[], &["n cni0"]),
            ("n: link cni0 (bridge)", &["n: link cni0 (bridge)"], &[]),
            ("n: link mbr7 (bridge, unused)", &["n: link mbr7 (bridge, unused)"], &[]),
            ("n: link veth1 (veth)", &["n: link veth1 (veth)"], &[]),
            ("n: file state/records/x", &["n: file state/records/x"], &[]),
            ("n: link eth0 (veth)", &[], &[]),
        ];
        for (line, leftovers, kept) in cases {
            let remains = snapshot(&["n: link eth0 (veth)", line]).since(&before, &networks);
            assert_eq!(remains.leftovers, leftovers, "{line}");
            assert_eq!(remains.kept, kept, "{line}");
        }
        assert_eq!(snapshot(&[]).since(&before, &networks).leftovers, ["n: link eth0 (veth) is gone"]);
    }
    #[test]
    fn a_file_of_a_pod_is_not_mistaken_for_one_of_the_node() {
        let cases = [
            ("state/boot", true),
            ("state/gc.lock", true),
            ("state/shared/vxlan-100.lock", true),
            ("reservations/blue/lock", true),
            ("reservations/blue/last_reserved_ip.0", true),
            ("reservations/blue/10.10.0.2", false),
            ("state/locks/lock", false),
            ("state/locks/demo-web.lock", false),
            ("state/records/lock", false),
            ("manifests/status/default/web.json", false),
        ];
        for (file, expected) in cases {
            assert_eq!(is_of_no_pod(Path::new(file)), expected, "{file}");
        }
    }
}

//! What a pod could leave behind, as a set of lines: taken before the first pod and after the last, the difference is
//! what is left.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use musubi_delegates::firewall;
use musubi_delegates::netlink::Netlink;

use super::lab::{Lab, Node, inside, open};
use super::manifests::Network;

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
        let bridges: Vec<&str> =
            networks.iter().filter(|n| n.kind == "bridge").filter_map(|n| n.bridge.as_deref()).collect();
        let stays =
            |line: &str| bridges.iter().any(|bridge| line.ends_with(&format!(": link {bridge} (bridge, unused)")));
        let mut remains = Remains::default();
        for line in self.0.difference(&before.0) {
            let list = if stays(line) { &mut remains.kept } else { &mut remains.leftovers };
            list.push(line.clone());
        }
        remains.leftovers.extend(before.0.difference(&self.0).map(|line| format!("{line} is gone")));
        remains
    }
}

fn node_lines(node: &Node) -> anyhow::Result<Vec<String>> {
    let links = open(&node.namespace)?.netlink.links()?;
    let is_used = |index: u32| links.iter().any(|link| link.master == Some(index));
    let mut lines: Vec<String> = links
        .iter()
        .map(|link| match &link.kind {
            Some(kind) if kind == "bridge" && !is_used(link.index) => format!("link {} ({kind}, unused)", link.name),
            Some(kind) => format!("link {} ({kind})", link.name),
            None => format!("link {}", link.name),
        })
        .collect();
    let owners = inside(&node.namespace, || {
        let nft = Netlink::netfilter()?;
        Ok([firewall::masqueraded_owners(&nft)?, firewall::spoof_checked_owners(&nft)?].concat())
    })?;
    lines.extend(owners.iter().map(|owner| format!("nf_tables rules of {owner}")));
    // Names and folders of namespaces are the demo's own.
    for folder in ["manifests", "reservations", "state"] {
        files_below(&node.folder, Path::new(folder), &mut lines)?;
    }
    Ok(lines.into_iter().map(|line| format!("{}: {line}", node.name)).collect())
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

/// Files that say nothing of any pod: what our plugin and host-local lock, where host-local goes on counting, and which
/// boot our plugin saw last.
fn is_of_no_pod(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let is_lock = file.starts_with("state/shared") && name.ends_with(".lock");
    is_lock
        || file == Path::new("state/boot")
        || name == "lock"
        || name == ".seal"
        || name.starts_with("last_reserved_ip.")
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
            ("n: link cni0 (bridge, unused)", &[], &["n: link cni0 (bridge, unused)"]),
            ("n: link cni0 (bridge)", &["n: link cni0 (bridge)"], &[]),
            ("n: link mbr7 (bridge, unused)", &["n: link mbr7 (bridge, unused)"], &[]),
            ("n: link veth1 (veth)", &["n: link veth1 (veth)"], &[]),
            ("n: file state/records/x", &["n: file state/records/x"], &[]),
            ("n: link eth0 (veth)", &[], &[]),
        ];
        for (line, leftovers, kept) in cases {
            let after = snapshot(&["n: link eth0 (veth)", line]);
            let remains = after.since(&before, &networks);
            assert_eq!(
                (remains.leftovers, remains.kept),
                (leftovers.iter().map(ToString::to_string).collect(), kept.iter().map(ToString::to_string).collect()),
                "{line}"
            );
        }
        assert_eq!(snapshot(&[]).since(&before, &networks).leftovers, ["n: link eth0 (veth) is gone"]);
    }
}

//! The simulated cluster: nodes and pods as network namespaces, the nodes joined by links, each node with folders of its
//! own. Pods get here what a runtime gives them before it calls CNI: an empty namespace.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use ipnet::{IpNet, Ipv4Net};
use musubi_delegates::netlink::route::Route;
use musubi_delegates::netlink::{LinkChange, Netlink, NewLink, address};
use musubi_delegates::netns::Namespace;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

use super::manifests::{Manifests, Network, NodeFolders};

const NODES: [&str; 2] = ["node-1", "node-2"];
/// The links between the nodes: macvlan and VXLAN stand on the first, ipvlan on the second, since a link carries
/// macvlans or ipvlans, not both.
const UNDERLAYS: [&str; 2] = ["eth0", "eth1"];
/// `IFLA_VXLAN_ID`.
const VXLAN_ID: u16 = 1;

/// The simulated cluster.
#[derive(Debug)]
pub(super) struct Lab {
    pub nodes: Vec<Node>,
    pub pods: Vec<Pod>,
}

/// A simulated node.
#[derive(Debug)]
pub(super) struct Node {
    pub name: String,
    /// Its namespace's file.
    pub namespace: PathBuf,
    /// Everything it keeps.
    pub folder: PathBuf,
    /// Our configuration, as its runtime would read it.
    pub configuration: Value,
    /// Its address on the first underlay.
    pub address: Ipv4Addr,
    /// The default network's subnet.
    subnet: Ipv4Net,
}

/// A pod's sandbox.
#[derive(Debug)]
pub(super) struct Pod {
    pub name: String,
    /// Position of its node.
    pub node: usize,
    /// Its namespace's file.
    pub namespace: PathBuf,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
}

impl Node {
    /// `manifestDir`.
    pub fn manifests(&self) -> PathBuf {
        self.folder.join("manifests")
    }

    fn reservations(&self) -> PathBuf {
        self.folder.join("reservations")
    }

    fn state(&self) -> PathBuf {
        self.folder.join("state")
    }
}

impl Lab {
    /// Makes the nodes, joins them, and makes the pods' namespaces.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn build(folder: &Path, manifests: &Manifests) -> anyhow::Result<Self> {
        let mut lab = Self { nodes: Vec::new(), pods: Vec::new() };
        for (number, name) in (1..).zip(NODES) {
            lab.add_node(&folder.join(name), name, number, manifests)?;
        }
        lab.join_nodes().context("cannot join the nodes")?;
        Ok(lab)
    }

    fn add_node(&mut self, folder: &Path, name: &str, number: u8, manifests: &Manifests) -> anyhow::Result<()> {
        let mut node = Node {
            name: name.to_owned(),
            namespace: folder.join("netns"),
            folder: folder.to_owned(),
            configuration: Value::Null,
            address: Ipv4Addr::new(192, 168, 50, number),
            subnet: Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24),
        };
        for folder in [node.manifests(), folder.join("pods")] {
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let (state, files, reservations) = (node.state(), node.manifests(), node.reservations());
        let subnet = node.subnet.to_string();
        let folders = NodeFolders { state: &state, manifests: &files, reservations: &reservations, subnet: &subnet };
        node.configuration = manifests.configuration(&folders);
        manifests.write(&folders)?;
        make_namespace(&node.namespace, true)?;
        for pod in manifests.pods_of(name) {
            let namespace = folder.join("pods").join(&pod);
            make_namespace(&namespace, false)?;
            self.pods.push(Pod { container_id: format!("demo-{pod}"), name: pod, node: self.nodes.len(), namespace });
        }
        self.nodes.push(node);
        Ok(())
    }

    /// A cable for each underlay, addresses on the first, and the routes between the nodes' parts of the default network
    /// that in a cluster its network add-on makes.
    fn join_nodes(&self) -> anyhow::Result<()> {
        let ends: Vec<Namespace> = self.nodes.iter().map(|node| open(&node.namespace)).collect::<Result<_, _>>()?;
        let [first, second] = ends.as_slice() else { return Err(anyhow!("two nodes are joined, not {}", ends.len())) };
        for name in UNDERLAYS {
            let peer = NewLink::named(name).in_namespace(second);
            first.netlink.request(NewLink::named(name).veth(peer))?;
        }
        for (node, end) in self.nodes.iter().zip(&ends) {
            let mut underlay = 0;
            for name in UNDERLAYS.iter().rev() {
                underlay = end.netlink.link_by_name(name)?.with_context(|| format!("no link {name}"))?.index;
                end.netlink.request(LinkChange::of(underlay, format!("bring up {name}")).up().request())?;
            }
            let own = Ipv4Net::new(node.address, 24)?;
            end.netlink.request(address::add(underlay, own.into(), false))?;
            for other in self.nodes.iter().filter(|other| other.name != node.name) {
                let route = Route::new(IpNet::V4(other.subnet), Some(other.address.into()), underlay);
                end.netlink.request(route.add())?;
            }
        }
        Ok(())
    }
}

/// Why the kernel cannot make links of a network's kind, if so. Asked by making one in the calling thread's namespace,
/// which is the demo's own; it stays there, since deleting takes longer than all the rest. `number` tells it from others.
///
/// # Errors
/// The kernel refused for another reason than not knowing the kind.
pub(super) fn what_is_missing(network: &Network, number: usize) -> anyhow::Result<Option<String>> {
    let [probe, lower, peer] = ["probe", "lower", "peer"].map(|name| format!("{name}{number}"));
    let netlink = Netlink::route()?;
    netlink.request(NewLink::named(&lower).veth(NewLink::named(&peer)))?;
    let parent = netlink.link_by_name(&lower)?.with_context(|| format!("no link {lower}"))?.index;
    let probe = NewLink::named(&probe);
    let made = netlink.request(match network.kind.as_str() {
        kind @ "vxlan" => probe.of_kind(kind, |data| data.u32(VXLAN_ID, 1)),
        kind @ ("macvlan" | "ipvlan") => probe.parent(parent).of_kind(kind, |data| data),
        kind => probe.of_kind(kind, |data| data),
    });
    match made {
        Ok(()) => Ok(None),
        Err(e) if e.errno == Errno::EOPNOTSUPP => {
            let (kind, option) = (&network.kind, network.kind.to_uppercase());
            Ok(Some(format!("this kernel has no {kind} (module {kind}, CONFIG_{option})")))
        }
        Err(e) => Err(e.into()),
    }
}

/// Whether the kernel has IPv6.
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").is_dir()
}

/// Opens a namespace of the demo's.
///
/// # Errors
/// It cannot be entered, or is gone.
pub(super) fn open(namespace: &Path) -> anyhow::Result<Namespace> {
    Namespace::open(namespace)?.with_context(|| format!("namespace {} is gone", namespace.display()))
}

/// Runs something in a namespace, on a thread of its own: what it opens or starts there stays there.
///
/// # Errors
/// The namespace cannot be entered.
pub(super) fn inside<T: Send>(namespace: &Path, body: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let file = File::open(namespace).with_context(|| format!("cannot open {}", namespace.display()))?;
    on_a_thread(|| {
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {}", namespace.display()))?;
        body()
    })
}

/// A network namespace that its file keeps alive, as runtimes make them; `lo` is up, and a node forwards.
fn make_namespace(file: &Path, is_node: bool) -> anyhow::Result<()> {
    File::create(file).with_context(|| format!("cannot make {}", file.display()))?;
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        mount(Some("/proc/thread-self/ns/net"), file, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("cannot bind a network namespace to {}", file.display()))?;
        let netlink = Netlink::route()?;
        let lo = netlink.link_by_name("lo")?.context("no link lo")?;
        netlink.request(LinkChange::of(lo.index, "bring up lo").up().request())?;
        if is_node {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot set net.ipv4.ip_forward")?;
        }
        Ok(())
    })
}

fn on_a_thread<T: Send>(body: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let ended = std::thread::scope(|scope| scope.spawn(body).join());
    ended.unwrap_or_else(|_| Err(anyhow!("a thread of the demo failed")))
}

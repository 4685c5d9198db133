//! What an attachment left on a node, as facts that two programs can be compared by: `pod/eth0/mtu` → `1500`. Whatever is
//! random (MACs, names of veths, paths) is replaced by what it stands for.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use musubi_delegates::firewall;
use musubi_delegates::netlink::{Link, Netlink};
use musubi_tests::netns::Netns;
use nix::libc;
use serde_json::Value;

use super::stage::Stage;

pub type Facts = BTreeMap<String, String>;

/// `IFA_F_SECONDARY`, `IFA_F_DADFAILED`, `IFA_F_DEPRECATED`, `IFA_F_PERMANENT`. The others say how an address came to be,
/// or show in the routes.
const ADDRESS_FLAGS: [(u32, &str); 4] =
    [(0x01, "secondary"), (0x08, "duplicate"), (0x20, "deprecated"), (0x80, "permanent")];
const LINK_FLAGS: [(i32, &str); 4] = [
    (libc::IFF_UP, "up"),
    (libc::IFF_PROMISC, "promisc"),
    (libc::IFF_ALLMULTI, "allmulti"),
    (libc::IFF_NOARP, "noarp"),
];
/// Changes by itself: the port's state.
const PORT_STATE: u16 = 1;
/// Numbers of a bridge that are settings: the rest are timers and identities.
const BRIDGE_SETTINGS: [(u16, &str); 4] = [(5, "stp"), (7, "vlanFiltering"), (22, "mcastRouter"), (39, "defaultVlan")];

/// Links, addresses and routes of both namespaces, and the files of host-local.
pub fn state(stage: &Stage) -> Facts {
    let mut facts = Facts::new();
    let (host, pod) = (Place::read(&stage.node.host), Place::read(&stage.sandbox.netns));
    let names = Names::read(&host, &pod);
    for (prefix, place, other) in [("host", &host, &pod), ("pod", &pod, &host)] {
        place.links(prefix, other, &names, &mut facts);
        place.addresses(prefix, &names, &mut facts);
        place.routes(prefix, &names, &mut facts);
        place.vlans(prefix, &names, &mut facts);
    }
    files(&stage.node.reservations(), "files", &mut facts);
    facts.extend(rules(stage));
    facts
}

/// Whom our tables of nf_tables have rules for.
pub fn rules(stage: &Stage) -> Facts {
    let owners = stage.node.host.enter(|| {
        let nft = Netlink::netfilter().expect("a netlink socket");
        let masqueraded = firewall::masqueraded_owners(&nft).expect("rules");
        (masqueraded, firewall::spoof_checked_owners(&nft).expect("rules"))
    });
    let mut facts = Facts::new();
    for (what, owners) in [("masquerade", owners.0), ("spoof check", owners.1)] {
        facts.extend(owners.iter().map(|owner| (format!("host/rules/{what}/{owner}"), "there".to_owned())));
    }
    facts
}

/// The sysctls of every interface.
pub fn settings(stage: &Stage) -> Facts {
    let mut facts = Facts::new();
    let (host, pod) = (Place::read(&stage.node.host), Place::read(&stage.sandbox.netns));
    let names = Names::read(&host, &pod);
    for (prefix, netns, place) in [("host", &stage.node.host, &host), ("pod", &stage.sandbox.netns, &pod)] {
        sysctls(prefix, netns, place, &names, &mut facts);
    }
    facts
}

/// A result as facts, after ADD. A MAC that is the named link's is `its own`.
pub fn result(stage: &Stage, result: &Value) -> Facts {
    let (host, pod) = (Place::read(&stage.node.host), Place::read(&stage.sandbox.netns));
    let names = Names::read(&host, &pod);
    let mut result = result.clone();
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        let place = if interface["sandbox"].as_str().unwrap_or("").is_empty() { &host } else { &pod };
        let name = interface["name"].as_str().unwrap_or("").to_owned();
        let own = place.links.iter().find(|link| link.name == name).and_then(|link| link.mac);
        if own.map(|mac| mac.to_string()).as_deref() == interface["mac"].as_str() {
            interface["mac"] = "its own".into();
        }
        interface["name"] = names.of_name(&name).into();
    }
    let text = result.to_string().replace(&stage.sandbox.netns.path().display().to_string(), "<sandbox>");
    let mut facts = Facts::new();
    flatten("result", &serde_json::from_str(&text).expect("JSON"), &mut facts);
    facts
}

/// Nothing, `{}` and `[]` are no facts.
fn flatten(path: &str, value: &Value, facts: &mut Facts) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| flatten(&format!("{path}/{key}"), value, facts)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(at, value)| flatten(&format!("{path}/{at}"), value, facts));
        }
        Value::Null => {}
        other => {
            facts.insert(path.to_owned(), other.to_string());
        }
    }
}

/// One namespace.
struct Place {
    netlink: Netlink,
    links: Vec<Link>,
}

impl Place {
    fn read(netns: &Netns) -> Self {
        let netlink = netns.open().netlink;
        let links = netlink.links().expect("links");
        Self { netlink, links }
    }

    fn by_index(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    fn links(&self, prefix: &str, other: &Place, names: &Names, facts: &mut Facts) {
        for link in &self.links {
            let mut fact = |key: &str, value: String| {
                facts.insert(format!("{prefix}/{}/{key}", names.of(link)), value);
            };
            let flags = LINK_FLAGS.iter().filter(|(flag, _)| link.flags & *flag as u32 != 0).map(|(_, name)| *name);
            fact("flags", flags.collect::<Vec<_>>().join(" "));
            fact("kind", link.kind.clone().unwrap_or_default());
            fact("mtu", link.mtu.to_string());
            let parent = link.parent.and_then(|index| {
                if link.parent_netns.is_some() { other.by_index(index) } else { self.by_index(index) }
            });
            if let Some(parent) = parent {
                fact("parent", names.of(parent));
                if link.mac == parent.mac {
                    fact("mac", "its parent's".to_owned());
                }
            }
            if let Some(master) = link.master.and_then(|index| self.by_index(index)) {
                fact("master", names.of(master));
                // One byte each: switches such as hairpin and isolated.
                for (kind, value) in link.port().filter(|(kind, value)| value.len() == 1 && *kind != PORT_STATE) {
                    fact(&format!("port/{kind}"), value[0].to_string());
                }
            }
            match link.kind.as_deref() {
                Some("bridge") => {
                    for (kind, name) in BRIDGE_SETTINGS {
                        if let Some(value) = link.data().get(kind) {
                            fact(name, format!("{value:?}"));
                        }
                    }
                }
                Some("macvlan" | "ipvlan" | "vlan") => {
                    link.data().for_each(|(kind, value)| fact(&format!("data/{kind}"), format!("{value:?}")));
                }
                _ => {}
            }
        }
    }

    fn addresses(&self, prefix: &str, names: &Names, facts: &mut Facts) {
        for link in &self.links {
            for address in self.netlink.addresses(link.index).expect("addresses") {
                if !is_link_local(address.net.addr()) {
                    let flags = ADDRESS_FLAGS.iter().filter(|(flag, _)| address.flags() & flag != 0).map(|(_, n)| *n);
                    let key = format!("{prefix}/{}/address/{}", names.of(link), address.net);
                    facts.insert(key, flags.collect::<Vec<_>>().join(" "));
                }
            }
        }
    }

    /// Of the makers of routes the kernel alone is told apart.
    fn routes(&self, prefix: &str, names: &Names, facts: &mut Facts) {
        for route in self.netlink.routes().expect("routes") {
            if is_link_local(route.destination.addr()) {
                continue;
            }
            let device = self.by_index(route.interface).map(|link| names.of(link)).unwrap_or_default();
            let mut key = format!("{prefix}/{device}/route/{}", route.destination);
            if let Some(gateway) = route.gateway {
                key += &format!(" via {gateway}");
            }
            let mut value = format!("table {} scope {} metric {:?}", route.table, route.scope, route.priority);
            for (what, number) in [("mtu", route.mtu), ("advmss", route.advmss)] {
                value += &number.map(|number| format!(" {what} {number}")).unwrap_or_default();
            }
            value += &route.source.map(|source| format!(" src {source}")).unwrap_or_default();
            value += if route.onlink { " onlink" } else { "" };
            value += if route.protocol == libc::RTPROT_KERNEL { " by the kernel" } else { "" };
            let known = facts.entry(key).or_default();
            *known = if known.is_empty() { value } else { format!("{known}; {value}") };
        }
    }

    /// Of ports of bridges, in kernels that can.
    fn vlans(&self, prefix: &str, names: &Names, facts: &mut Facts) {
        for link in self.links.iter().filter(|link| link.master.is_some() || link.is_kind("bridge")) {
            for vlan in self.netlink.vlans(link.index).unwrap_or_default() {
                let how = [(vlan.pvid, "pvid"), (vlan.untagged, "untagged")];
                let how: Vec<&str> = how.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
                let key = format!("{prefix}/{}/vlan/{}-{}", names.of(link), vlan.first, vlan.last);
                facts.insert(key, how.join(" "));
            }
        }
    }
}

/// Link-local addresses come and go with the carrier; that ours are never tentative is tested on its own.
fn is_link_local(address: std::net::IpAddr) -> bool {
    matches!(address, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// What random names stand for.
struct Names(BTreeMap<String, String>);

impl Names {
    fn read(host: &Place, pod: &Place) -> Self {
        let mut names = BTreeMap::new();
        for link in host.links.iter().filter(|link| link.is_kind("veth") && link.name.starts_with("veth")) {
            let place = if link.parent_netns.is_some() { pod } else { host };
            let peer = link.parent.and_then(|index| place.by_index(index));
            names
                .insert(link.name.clone(), peer.map_or("<lone>".to_owned(), |peer| format!("<peer of {}>", peer.name)));
        }
        Self(names)
    }

    fn of(&self, link: &Link) -> String {
        self.of_name(&link.name)
    }

    fn of_name(&self, name: &str) -> String {
        self.0.get(name).cloned().unwrap_or_else(|| name.to_owned())
    }
}

/// The sysctls of each interface that differ from the namespace's default.
fn sysctls(prefix: &str, netns: &Netns, place: &Place, names: &Names, facts: &mut Facts) {
    let links: Vec<String> = place.links.iter().map(|link| link.name.clone()).collect();
    let read = || {
        let mut found = Vec::new();
        for family in ["ipv4", "ipv6"] {
            let folder = format!("/proc/sys/net/{family}/conf");
            let default = values(Path::new(&folder).join("default").as_path());
            for name in links.iter().map(String::as_str).chain(["all"]) {
                for (key, value) in values(&Path::new(&folder).join(name)) {
                    if default.get(&key) != Some(&value) {
                        found.push((family, name.to_owned(), key, value));
                    }
                }
            }
        }
        found
    };
    for (family, name, key, value) in netns.enter(read) {
        // The MTU is a fact of the link.
        if (key != "mtu" && name != "lo") || key == "disable_ipv6" {
            facts.insert(format!("{prefix}/{}/sysctl/{family}/{key}", names.of_name(&name)), value);
        }
    }
}

fn values(folder: &Path) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Ok(value) = fs::read_to_string(entry.path()) {
            values.insert(entry.file_name().to_string_lossy().into_owned(), value.trim().to_owned());
        }
    }
    values
}

fn files(folder: &Path, prefix: &str, facts: &mut Facts) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        let metadata = entry.metadata().expect("metadata");
        facts.insert(format!("{name}/mode"), format!("{:o}", metadata.permissions().mode() & 0o7777));
        if metadata.is_dir() {
            files(&entry.path(), &name, facts);
        } else {
            let content = fs::read_to_string(entry.path()).expect("text");
            facts.insert(name, format!("{content:?}"));
        }
    }
}

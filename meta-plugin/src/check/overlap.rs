//! What definitions share that they should not without knowing: subnets that overlap, one VNI, one folder of reservations. An
//! index, so that a new definition is compared with those alone that it meets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::PathBuf;

use ipnet::IpNet;
use musubi_delegates::uses::{Uses, uses};
use serde_json::{Map, json};

use super::definition;
use crate::store::Definition;

/// Something that two definitions share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shared {
    /// The other definition.
    pub(super) with: String,
    /// What it is.
    pub(super) what: Thing,
}

/// What can be shared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Thing {
    /// Subnets: this definition's and the other's.
    Subnet(IpNet, IpNet),
    /// A VNI at a port.
    Vni(u32),
    /// A folder of host-local.
    Folder(PathBuf),
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subnet(ours, theirs) if ours == theirs => write!(f, "subnet {ours}"),
            Self::Subnet(ours, theirs) => write!(f, "subnet {ours}, which overlaps {theirs},"),
            Self::Vni(vni) => write!(f, "VNI {vni}"),
            Self::Folder(folder) => write!(f, "host-local's folder {}", folder.display()),
        }
    }
}

/// The index.
#[derive(Debug, Clone, Default)]
pub(super) struct Overlaps {
    /// By network: all subnets inside a network follow it, and those around it are few and known by their prefixes.
    subnets: BTreeMap<IpNet, BTreeSet<String>>,
    vnis: HashMap<(u32, u16), BTreeSet<String>>,
    folders: HashMap<PathBuf, BTreeSet<String>>,
    of: HashMap<String, Vec<Uses>>,
}

impl Overlaps {
    /// A definition is new or has changed.
    pub(super) fn apply(&mut self, definition: &Definition) {
        let key = definition.key();
        self.remove(&key);
        let all = used_by(definition);
        for used in &all {
            for (subnet, _) in &used.addresses {
                self.subnets.entry(*subnet).or_default().insert(key.clone());
            }
            if let Some(vni) = used.vni.zip(used.port) {
                self.vnis.entry(vni).or_default().insert(key.clone());
            }
            if let Some(folder) = &used.folder {
                self.folders.entry(folder.clone()).or_default().insert(key.clone());
            }
        }
        self.of.insert(key, all);
    }

    /// A definition is gone.
    pub(super) fn remove(&mut self, key: &str) {
        for used in self.of.remove(key).unwrap_or_default() {
            for (subnet, _) in &used.addresses {
                if let Some(keys) = self.subnets.get_mut(subnet) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.subnets.remove(subnet);
                    }
                }
            }
            if let Some(keys) = used.vni.zip(used.port).and_then(|vni| self.vnis.get_mut(&vni)) {
                keys.remove(key);
            }
            if let Some(keys) = used.folder.as_ref().and_then(|folder| self.folders.get_mut(folder)) {
                keys.remove(key);
            }
        }
    }

    /// What others share with a definition, which may be in the index itself.
    pub(super) fn with(&self, definition: &Definition) -> Vec<Shared> {
        let own = definition.key();
        let mut found = BTreeSet::new();
        let mut add = |keys: &BTreeSet<String>, what: Thing| {
            let others = keys.iter().filter(|key| **key != own);
            found.extend(others.map(|key| Shared { with: key.clone(), what: what.clone() }));
        };
        for used in used_by(definition) {
            for (subnet, _) in &used.addresses {
                self.meeting(*subnet).for_each(|(other, keys)| add(keys, Thing::Subnet(*subnet, other)));
            }
            if let Some((vni, port)) = used.vni.zip(used.port)
                && let Some(keys) = self.vnis.get(&(vni, port))
            {
                add(keys, Thing::Vni(vni));
            }
            if let Some(folder) = &used.folder
                && let Some(keys) = self.folders.get(folder)
            {
                add(keys, Thing::Folder(folder.clone()));
            }
        }
        found.into_iter().collect()
    }

    /// Networks either contain one another or have nothing in common.
    fn meeting(&self, subnet: IpNet) -> impl Iterator<Item = (IpNet, &BTreeSet<String>)> {
        let around = (0..subnet.prefix_len()).filter_map(move |prefix| {
            let wider = IpNet::new(subnet.addr(), prefix).ok()?.trunc();
            self.subnets.get(&wider).map(|keys| (wider, keys))
        });
        let inside = self.subnets.range(subnet..).take_while(move |(other, _)| subnet.contains(*other));
        around.chain(inside.map(|(other, keys)| (*other, keys)))
    }
}

/// What each plugin of a definition uses; of one that is wrong, nothing is known.
pub(super) fn used_by(definition: &Definition) -> Vec<Uses> {
    let Some(config) = &definition.config else { return Vec::new() };
    let Ok(list) = definition::parse(config, &definition.name) else { return Vec::new() };
    let of = |index| {
        let mut conf = list.request(index, None, &Map::new()).ok()?;
        if index > 0 {
            conf.insert("prevResult", json!({"cniVersion": list.version.as_str()}));
        }
        uses(&conf).ok()
    };
    (0..list.plugins.len()).filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(name: &str, config: &str) -> Definition {
        let (namespace, name) = name.split_once('/').unwrap();
        Definition {
            namespace: namespace.into(),
            name: name.into(),
            config: Some(config.into()),
            ..Definition::default()
        }
    }

    fn host_local(name: &str, subnet: &str) -> Definition {
        let config = format!(
            r#"{{"name":"n-{}","type":"macvlan","ipam":{{"type":"host-local","subnet":"{subnet}"}}}}"#,
            name.replace('/', "-")
        );
        definition(name, &config)
    }

    fn met(index: &Overlaps, definition: &Definition) -> Vec<String> {
        index.with(definition).into_iter().map(|shared| format!("{} {}", shared.with, shared.what)).collect()
    }

    #[test]
    fn subnets_meet_that_contain_one_another() {
        let mut index = Overlaps::default();
        for (name, subnet) in
            [("a/wide", "10.0.0.0/8"), ("a/inner", "10.1.0.0/16"), ("b/narrow", "10.1.2.0/24"), ("b/six", "fd00::/64")]
        {
            index.apply(&host_local(name, subnet));
        }
        let rows = [
            (
                "10.1.2.128/25",
                vec![
                    "a/inner subnet 10.1.2.128/25, which overlaps 10.1.0.0/16,",
                    "a/wide subnet 10.1.2.128/25, which overlaps 10.0.0.0/8,",
                    "b/narrow subnet 10.1.2.128/25, which overlaps 10.1.2.0/24,",
                ],
            ),
            (
                "10.1.0.0/16",
                vec![
                    "a/inner subnet 10.1.0.0/16",
                    "a/wide subnet 10.1.0.0/16, which overlaps 10.0.0.0/8,",
                    "b/narrow subnet 10.1.0.0/16, which overlaps 10.1.2.0/24,",
                ],
            ),
            (
                "10.1.3.0/24",
                vec![
                    "a/inner subnet 10.1.3.0/24, which overlaps 10.1.0.0/16,",
                    "a/wide subnet 10.1.3.0/24, which overlaps 10.0.0.0/8,",
                ],
            ),
            ("192.168.0.0/16", vec![]),
            ("fd00::/32", vec!["b/six subnet fd00::/32, which overlaps fd00::/64,"]),
            ("fd01::/64", vec![]),
        ];
        for (subnet, expected) in rows {
            assert_eq!(met(&index, &host_local("c/new", subnet)), expected, "{subnet}");
        }
        assert_eq!(met(&index, &host_local("b/six", "fd00::/64")), Vec::<String>::new(), "itself does not count");
        index.remove("a/wide");
        index.apply(&host_local("a/inner", "172.16.0.0/12"));
        assert_eq!(met(&index, &host_local("c/new", "10.1.3.0/24")), Vec::<String>::new());
    }

    #[test]
    fn vnis_meet_at_one_port_and_folders_by_the_networks_name() {
        let mut index = Overlaps::default();
        index.apply(&definition("a/x", r#"{"name":"x","type":"vxlan","vni":7}"#));
        index.apply(&definition(
            "a/y",
            r#"{"name":"same","type":"macvlan","ipam":{"type":"host-local","subnet":"10.0.0.0/24"}}"#,
        ));
        let rows = [
            (r#"{"type":"vxlan","vni":7}"#, vec!["a/x VNI 7"]),
            (r#"{"type":"vxlan","vni":7,"port":8472}"#, vec![]),
            (r#"{"type":"vxlan","vni":8}"#, vec![]),
            (
                r#"{"name":"same","type":"ptp","ipam":{"type":"host-local","subnet":"10.9.0.0/24"}}"#,
                vec!["a/y host-local's folder /var/lib/cni/networks/same"],
            ),
            (
                r#"{"name":"same","type":"ptp","ipam":{"type":"host-local","dataDir":"/d","subnet":"10.9.0.0/24"}}"#,
                vec![],
            ),
            ("no JSON", vec![]),
        ];
        for (config, expected) in rows {
            assert_eq!(met(&index, &definition("b/new", config)), expected, "{config}");
        }
    }
}

//! What a configuration takes of the node and of its networks: the links it stands on, VLANs, VNIs, addresses, folders. Read
//! off the parsed configuration, so that whoever compares or limits configurations sees what ADD would do. What may be
//! taken is for others to say.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::cni::{ConfigError, NetConf, code};
use crate::ipam::Ipam;
use crate::registry;

/// The link that another is made on top of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Below {
    /// One by name.
    Named(String),
    /// Whichever has the default route, or whichever a plugin before in the chain made.
    Found,
}

/// What a configuration uses. What its kind does not have is absent or empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uses {
    /// The link below.
    pub master: Option<Below>,
    /// The bridge on the host.
    pub bridge: Option<String>,
    /// Whether the bridge is the VNI's own.
    pub is_own_bridge: bool,
    /// VLANs, by the key that names them; 0 is what has no tag.
    pub vlans: Vec<(&'static str, RangeInclusive<u16>)>,
    /// The VXLAN network.
    pub vni: Option<u32>,
    /// VXLAN's UDP port.
    pub port: Option<u16>,
    /// Ends of VXLAN's tunnels and its multicast group, by key.
    pub vteps: Vec<(&'static str, IpAddr)>,
    /// What pods may be given: each a subnet and, of it, the first and the last address.
    pub addresses: Vec<(IpNet, RangeInclusive<IpAddr>)>,
    /// The gateways that stand beside them.
    pub gateways: Vec<IpAddr>,
    /// The next hops of the pod's routes.
    pub next_hops: Vec<IpAddr>,
    /// Whether the node itself becomes the gateway.
    pub node_is_gateway: bool,
    /// Whether the node gets a route to the whole of each subnet.
    pub node_has_subnets: bool,
    /// Where host-local keeps its reservations.
    pub folder: Option<PathBuf>,
}

/// Reads what a configuration of any type uses; of a type that is not bundled this is what its bundled IPAM does. A value
/// that the reference plugin serves and we do not changes nothing of it.
///
/// # Errors
/// The configuration is wrong.
pub fn uses(conf: &NetConf) -> Result<Uses, ConfigError> {
    let plugin_type = conf.view().text("type")?.unwrap_or_default();
    let Some(parsed) = registry::parse(plugin_type, conf) else {
        return Ok(Uses::default().with_ipam(Ipam::parse(conf)?.as_ref()));
    };
    match parsed {
        Ok(delegate) => Ok(delegate.uses()),
        Err(error) if error.code == code::UNSUPPORTED_FIELD && conf.get(&error.key).is_some() => {
            let mut served = conf.clone();
            served.remove(&error.key);
            uses(&served)
        }
        Err(error) => Err(error),
    }
}

impl Uses {
    /// The same, with what an IPAM gives.
    pub(crate) fn with_ipam(mut self, ipam: Option<&Ipam>) -> Self {
        if let Some(ipam) = ipam {
            ipam.used(&mut self);
        }
        self
    }
}

/// A named master, or the one that is found.
pub(crate) fn below(name: Option<&String>) -> Option<Below> {
    Some(name.map_or(Below::Found, |name| Below::Named(name.clone())))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(mut keys: Value) -> Uses {
        keys["name"] = json!("net");
        uses(&NetConf(keys.as_object().unwrap().clone())).unwrap()
    }

    fn named(name: &str) -> Option<Below> {
        Some(Below::Named(name.to_owned()))
    }

    #[test]
    fn what_each_kind_stands_on() {
        let ipam = json!({"type": "static"});
        let rows = [
            (json!({"type": "macvlan"}), Uses { master: Some(Below::Found), ..Uses::default() }),
            (json!({"type": "macvlan", "MASTER": "ens4"}), Uses { master: named("ens4"), ..Uses::default() }),
            (json!({"type": "ipvlan", "master": "a", "ipam": ipam}), Uses { master: named("a"), ..Uses::default() }),
            (
                json!({"type": "vlan", "master": "a", "vlanId": 7, "ipam": ipam}),
                Uses { master: named("a"), vlans: vec![("vlanId", 7..=7)], ..Uses::default() },
            ),
            (
                json!({"type": "bridge"}),
                Uses { bridge: Some("cni0".into()), vlans: vec![("vlan", 0..=0)], ..Uses::default() },
            ),
            (
                json!({"type": "bridge", "bridge": "b", "vlan": 5, "vlanTrunk": [{"minID": 8, "maxID": 9}], "preserveDefaultVlan": true}),
                Uses {
                    bridge: Some("b".into()),
                    vlans: vec![("vlan", 5..=5), ("vlanTrunk", 8..=9), ("preserveDefaultVlan", 0..=0)],
                    ..Uses::default()
                },
            ),
            (
                json!({"type": "bridge", "bridge": "b", "vlanTrunk": [{"id": 8}]}),
                Uses { bridge: Some("b".into()), vlans: vec![("vlanTrunk", 8..=8)], ..Uses::default() },
            ),
            (
                json!({"type": "vxlan", "vni": 9, "port": 8472, "local": "10.0.0.1", "remotes": ["10.0.0.2"]}),
                Uses {
                    master: Some(Below::Found),
                    bridge: Some("mbr9".into()),
                    is_own_bridge: true,
                    vni: Some(9),
                    port: Some(8472),
                    vteps: vec![("local", "10.0.0.1".parse().unwrap()), ("remotes", "10.0.0.2".parse().unwrap())],
                    ..Uses::default()
                },
            ),
            (json!({"type": "ptp", "ipam": ipam}), Uses { node_is_gateway: true, ..Uses::default() }),
            (json!({"type": "loopback"}), Uses::default()),
            (json!({"type": "calico"}), Uses::default()),
        ];
        for (conf, expected) in rows {
            assert_eq!(of(conf.clone()), expected, "{conf}");
        }
    }

    #[test]
    fn what_ipam_gives() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let host_local = json!({"type": "host-local", "dataDir": "/d", "ranges": [[{"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.9"}]]});
        for conf in [json!({"type": "macvlan", "ipam": host_local}), json!({"type": "calico", "ipam": host_local})] {
            let used = of(conf);
            assert_eq!(used.addresses, [("10.0.0.0/24".parse().unwrap(), ip("10.0.0.1")..=ip("10.0.0.9"))]);
            assert_eq!((used.gateways, used.folder), (vec![ip("10.0.0.1")], Some(PathBuf::from("/d/net"))));
        }
        let fixed = json!({"type": "static", "addresses": [{"address": "10.0.0.7/8", "gateway": "10.0.0.1"}]});
        let used = of(json!({"type": "bridge", "ipam": fixed, "isDefaultGateway": true}));
        assert_eq!(used.addresses, [("10.0.0.0/8".parse().unwrap(), ip("10.0.0.7")..=ip("10.0.0.7"))]);
        assert_eq!(used.gateways, [ip("10.0.0.1")]);
        assert!(used.node_is_gateway && used.node_has_subnets && used.folder.is_none());
    }

    #[test]
    fn a_value_that_we_leave_to_the_reference_plugin_hides_nothing() {
        let used = of(json!({"type": "bridge", "bridge": "b", "ipMasqBackend": "iptables"}));
        assert_eq!(used.bridge.as_deref(), Some("b"));
    }
}

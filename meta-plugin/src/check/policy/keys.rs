//! The table that says of every key of every bundled type which field of a policy governs it. A key without a row is
//! refused where a policy applies: what nobody has thought about is not granted.

/// What governs a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Governor {
    /// `delegates` and `externalPlugins`: it chooses the plugin.
    Plugin,
    /// `masters`.
    Masters,
    /// `bridges`.
    Bridges,
    /// `vlans`.
    Vlans,
    /// `vnis`.
    Vnis,
    /// `ports`.
    Ports,
    /// `vteps`.
    Vteps,
    /// `addresses`.
    Addresses,
    /// `paths`.
    Paths,
    /// Nothing: a definition in a limited namespace may not set it.
    Never,
    /// The rows of the keys inside.
    Inside,
    /// Nobody has to: the reason. Nothing below it is looked into but for paths.
    Free(&'static str),
}

use Governor as G;

/// Keys by their path, without positions in lists.
pub(super) const ROWS: &[(&str, Governor)] = &[
    ("cniVersion", G::Free("the language that is spoken")),
    ("cniVersions", G::Free("the language that is spoken")),
    ("name", G::Free("names a folder of reservations, in which there is one file an address, and these are governed")),
    ("type", G::Plugin),
    ("args", G::Inside),
    ("args.cni", G::Inside),
    ("args.cni.ips", G::Addresses),
    ("args.cni.mac", G::Free("the pod's own interface")),
    ("runtimeConfig", G::Inside),
    ("runtimeConfig.ips", G::Addresses),
    ("runtimeConfig.ipRanges", G::Addresses),
    ("runtimeConfig.mac", G::Free("the pod's own interface")),
    ("capabilities", G::Free("what may be requested; the requests are governed")),
    ("prevResult", G::Never),
    ("dns", G::Free("the pod's own name resolution")),
    ("deviceID", G::Paths),
    ("pciBusID", G::Paths),
    ("cni.dev/valid-attachments", G::Never),
    ("cni.dev/attachments", G::Never),
    ("disableCheck", G::Free("the pod's own CHECK")),
    ("disableGC", G::Free("its own network's GC")),
    ("loadOnlyInlinedPlugins", G::Free("about files of the node, which a definition has none of")),
    ("master", G::Masters),
    ("linkInContainer", G::Free("a name in the pod is held to the same masters")),
    ("mtu", G::Free("the pod's own link; no more than the master's, or its own bridge's")),
    ("mode", G::Free("how pods of one granted master see each other")),
    ("mac", G::Free("the pod's own interface")),
    ("bcqueuelen", G::Free("the pod's own link")),
    ("vlanId", G::Vlans),
    ("bridge", G::Bridges),
    ("isGateway", G::Addresses),
    ("isDefaultGateway", G::Addresses),
    ("forceAddress", G::Free("a granted bridge's own address, which is governed")),
    ("ipMasq", G::Free("the pod leaves by the node's address, as it does by its default network")),
    ("ipMasqBackend", G::Free("how ipMasq is done")),
    ("hairpinMode", G::Free("a port of a granted bridge")),
    ("promiscMode", G::Free("a granted bridge")),
    ("vlan", G::Vlans),
    ("vlanTrunk", G::Vlans),
    ("preserveDefaultVlan", G::Vlans),
    ("macspoofchk", G::Free("a port of a granted bridge")),
    ("enabledad", G::Free("the pod's own addresses")),
    ("disableContainerInterface", G::Free("the pod's own interface")),
    ("portIsolation", G::Free("a port of a granted bridge")),
    ("vni", G::Vnis),
    ("port", G::Ports),
    ("local", G::Vteps),
    ("group", G::Vteps),
    ("remotes", G::Vteps),
    ("learning", G::Free("the VNI's own device")),
    ("ipam", G::Inside),
    ("ipam.type", G::Plugin),
    ("ipam.subnet", G::Addresses),
    ("ipam.rangeStart", G::Addresses),
    ("ipam.rangeEnd", G::Addresses),
    ("ipam.gateway", G::Addresses),
    ("ipam.ranges", G::Inside),
    ("ipam.ranges.subnet", G::Addresses),
    ("ipam.ranges.rangeStart", G::Addresses),
    ("ipam.ranges.rangeEnd", G::Addresses),
    ("ipam.ranges.gateway", G::Addresses),
    ("ipam.routes", G::Free("the pod's own routes")),
    ("ipam.addresses", G::Inside),
    ("ipam.addresses.address", G::Addresses),
    ("ipam.addresses.gateway", G::Addresses),
    ("ipam.dns", G::Free("the pod's own name resolution")),
    ("ipam.dataDir", G::Paths),
    ("ipam.resolvConf", G::Paths),
];

/// Keys that name something of the node in plugins that are not bundled, wherever they stand and whatever is in them.
/// Other values are told by their look: see [`is_path`].
pub(super) const PATH_KEYS: &[&str] = &[
    "binDir",
    "CNIDeviceInfoFile",
    "cniDir",
    "confDir",
    "configPath",
    "configuration_path",
    "daemonSocketDir",
    "dataDir",
    "device",
    "deviceID",
    "etcdKeyFile",
    "hwaddr",
    "kernelpath",
    "kubeconfig",
    "logFile",
    "log_file",
    "log_file_path",
    "ovnConfig",
    "pciBusID",
    "readinessindicatorfile",
    "resolvConf",
    "socketDir",
    "socket_file",
    "subnetFile",
    "unix_socket",
];

/// What governs the key at a path; the case of keys counts for nobody.
pub(super) fn governor(path: &str) -> Option<Governor> {
    ROWS.iter().find(|(key, _)| key.eq_ignore_ascii_case(path)).map(|(_, governor)| *governor)
}

/// Whether a text names a file, a socket or a device of the node.
pub(super) fn is_path(text: &str) -> bool {
    let text = text.trim_start();
    let begins = ["/", "./", "../", "~", "\\", "@", "unix:", "file:"];
    begins.iter().any(|prefix| text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix)))
        || text.split('/').any(|part| part == "..")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use musubi_crds::policy::DelegateKind;
    use musubi_delegates::registry;

    use super::*;

    #[test]
    fn every_key_of_every_bundled_type_has_a_row_and_every_row_a_key() {
        let mut known = BTreeSet::new();
        for kind in DelegateKind::ALL {
            known.extend(registry::keys(kind.as_str()).unwrap_or_else(|| panic!("{kind:?} is bundled")));
        }
        let governed: BTreeSet<String> = ROWS.iter().map(|(key, _)| (*key).to_owned()).collect();
        assert_eq!(governed.len(), ROWS.len(), "no key has two rows");
        assert_eq!(known.difference(&governed).collect::<Vec<_>>(), Vec::<&String>::new(), "keys without a row");
        let inside = ["args.cni", "runtimeConfig."];
        let unused = governed.difference(&known).filter(|key| !inside.iter().any(|prefix| key.starts_with(prefix)));
        assert_eq!(unused.collect::<Vec<_>>(), Vec::<&String>::new(), "rows without a key");
    }

    #[test]
    fn every_bundled_kind_can_be_granted() {
        let kinds: Vec<&str> = registry::BUNDLED.iter().copied().filter(|t| registry::keys(t).is_some()).collect();
        assert_eq!(kinds, DelegateKind::ALL.map(DelegateKind::as_str));
    }

    #[test]
    fn a_path_is_told_by_its_look() {
        for text in
            ["/var/x", "./x", "../x", "~/x", "unix:///x", "UNIX:x", "file:///x", "@abstract", "a/../b", " /x", "\\\\x"]
        {
            assert!(is_path(text), "{text}");
        }
        for text in ["", "10.0.0.0/16", "fd00::/64", "eth0", "intel.com/nic", "a/b", "..x", "00:11:22:33:44:55"] {
            assert!(!is_path(text), "{text}");
        }
    }
}

//! Which types are bundled, and for each configuration whether the delegate in this program carries it out or the plugin of
//! that name. A new kind of interface is one line in `KINDS` and one in [`BUNDLED`].

use crate::bridge::{self, Bridge};
use crate::cni::{ConfigError, NetConf, code};
use crate::delegate::Delegate;
use crate::interface::COMMON_KEYS;
use crate::ipam::{Ipam, host_local, static_addresses};
use crate::ipvlan::{self, Ipvlan};
use crate::loopback::Loopback;
use crate::macvlan::{self, Macvlan};
use crate::on_master;
use crate::ptp::{self, Ptp};
use crate::remains::Remains;
use crate::vlan::{self, Vlan};
use crate::vxlan::{self, Vxlan};

/// Every type this program can be called as: the kinds of interface, then the IPAM types.
pub const BUNDLED: &[&str] =
    &["bridge", "macvlan", "ipvlan", "vlan", "vxlan", "ptp", "loopback", "host-local", "static"];

/// A kind of interface.
struct Kind {
    name: &'static str,
    /// The kernel's kind of the link it makes in the pod.
    link: Option<&'static str>,
    /// The keys of its configuration, beside those of every kind.
    keys: &'static [&'static [&'static str]],
    /// The keys of `CNI_ARGS` it reads.
    args: &'static [&'static str],
    parse: fn(&NetConf) -> Result<Box<dyn Delegate>, ConfigError>,
}

const KINDS: &[Kind] = &[
    Kind { name: "bridge", link: Some("veth"), keys: &[bridge::KEYS], args: &["MAC"], parse: boxed::<Bridge> },
    Kind {
        name: "macvlan",
        link: Some("macvlan"),
        keys: &[on_master::KEYS, macvlan::KEYS],
        args: &["MAC"],
        parse: boxed::<Macvlan>,
    },
    Kind {
        name: "ipvlan",
        link: Some("ipvlan"),
        keys: &[on_master::KEYS, ipvlan::KEYS],
        args: &[],
        parse: boxed::<Ipvlan>,
    },
    Kind { name: "vlan", link: Some("vlan"), keys: &[on_master::KEYS, vlan::KEYS], args: &[], parse: boxed::<Vlan> },
    Kind { name: "vxlan", link: Some("veth"), keys: &[vxlan::KEYS], args: &["MAC"], parse: boxed::<Vxlan> },
    Kind { name: "ptp", link: Some("veth"), keys: &[ptp::KEYS], args: &[], parse: boxed::<Ptp> },
    Kind { name: "loopback", link: None, keys: &[], args: &[], parse: boxed::<Loopback> },
];

fn boxed<D: Delegate + 'static>(conf: &NetConf) -> Result<Box<dyn Delegate>, ConfigError> {
    Ok(Box::new(D::parse(conf)?))
}

fn kind(plugin_type: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == plugin_type)
}

/// Reads the configuration of a bundled kind of interface; `None` for any other type.
#[must_use]
pub fn parse(plugin_type: &str, conf: &NetConf) -> Option<Result<Box<dyn Delegate>, ConfigError>> {
    kind(plugin_type).map(|kind| (kind.parse)(conf))
}

/// As [`parse`], for DEL, which has to take away what is there even if the configuration has gone wrong since ADD: such a
/// one becomes a delegate that detaches and releases, and does nothing else.
#[must_use]
pub fn parse_for_del(plugin_type: &str, conf: &NetConf) -> Option<Box<dyn Delegate>> {
    let kind = kind(plugin_type)?;
    Some((kind.parse)(conf).unwrap_or_else(|error| Box::new(Remains::of(conf, kind.link, &error))))
}

/// The paths of all keys that a bundled kind of interface knows, without positions in lists; `None` for any other type.
#[must_use]
pub fn keys(plugin_type: &str) -> Option<Vec<String>> {
    let kind = kind(plugin_type)?;
    let own = kind.keys.iter().copied().flatten().chain(COMMON_KEYS).map(|key| (*key).to_owned());
    Some(own.chain(Ipam::keys()).collect())
}

/// The keys of `CNI_ARGS` that a bundled type reads (DESIGN: a requested `IP` or `MAC` may travel there).
#[must_use]
pub fn known_args(plugin_type: &str) -> &'static [&'static str] {
    match plugin_type {
        "host-local" => host_local::CNI_ARGS_KEYS,
        "static" => static_addresses::CNI_ARGS_KEYS,
        other => kind(other).map_or(&[], |kind| kind.args),
    }
}

/// Who carries a configuration out.
pub enum Runs {
    /// The delegate in this program.
    Native(Box<dyn Delegate>),
    /// The plugin of that type on `CNI_PATH`.
    External {
        /// The reason, for a person.
        why: String,
        /// What the native delegate has against the configuration: the error (code 2) where there is no such plugin.
        refused: Option<ConfigError>,
    },
}

/// Decides who carries a configuration out. `native_allowed` is the `nativeDelegates` of our configuration.
///
/// The native delegate of a kind refuses with code 2 each key or value that the reference plugin of that name knows and it
/// does not; only for these the plugin is asked. Keys that neither knows are warnings.
///
/// # Errors
/// The configuration is wrong whoever carries it out.
pub fn decide(plugin_type: &str, conf: &NetConf, native_allowed: impl Fn(&str) -> bool) -> Result<Runs, ConfigError> {
    let external = |why: String, refused| Ok(Runs::External { why, refused });
    let Some(kind) = kind(plugin_type) else {
        return external(format!("type \"{}\" is not bundled", plugin_type.escape_debug()), None);
    };
    if !native_allowed(plugin_type) {
        return external(format!("\"nativeDelegates\" leaves out {plugin_type}"), None);
    }
    match (kind.parse)(conf) {
        Ok(delegate) => Ok(Runs::Native(delegate)),
        Err(error) if error.code == code::UNSUPPORTED_FIELD => {
            external(format!("the native {plugin_type} does not serve {error}"), Some(error))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn conf(value: Value) -> NetConf {
        NetConf(value.as_object().unwrap().clone())
    }

    #[test]
    fn every_kind_is_bundled_and_beside_them_ipam_alone() {
        let kinds: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        assert_eq!([kinds.as_slice(), &["host-local", "static"]].concat(), BUNDLED);
    }

    #[test]
    fn arguments_are_those_the_type_reads() {
        let cases: [(&str, &[&str]); 5] = [
            ("bridge", &["MAC"]),
            ("macvlan", &["MAC"]),
            ("ptp", &[]),
            ("static", &["IP", "GATEWAY"]),
            ("calico", &[]),
        ];
        for (plugin_type, expected) in cases {
            assert_eq!(known_args(plugin_type), expected, "{plugin_type}");
        }
    }

    #[test]
    fn who_runs_is_decided_by_type_by_policy_and_by_what_the_native_one_serves() {
        let ipam = json!({"type": "static", "addresses": []});
        let cases = [
            ("calico", json!({}), "external: type \"calico\" is not bundled"),
            ("macvlan", json!({}), "native"),
            ("ptp", json!({"ipam": ipam, "ipMasq": true, "ipMasqBackend": "nftables"}), "native"),
            (
                "ptp",
                json!({"ipam": ipam, "ipMasq": true, "ipMasqBackend": "iptables"}),
                "external, or else code 2 for ipMasqBackend",
            ),
            ("vlan", json!({"master": "eth0", "ipam": ipam}), "external: \"nativeDelegates\" leaves out vlan"),
            (
                "macvlan",
                json!({"mode": "fast"}),
                "error: mode: must be bridge, private, vepa or passthru, not \"fast\"",
            ),
            ("macvlan", json!({"mode": "bridge", "colour": "red"}), "native"),
            ("host-local", json!({"ipam": {"type": "host-local"}}), "external: type \"host-local\" is not bundled"),
        ];
        for (plugin_type, value, expected) in cases {
            let outcome = match decide(plugin_type, &conf(value.clone()), |plugin_type| plugin_type != "vlan") {
                Ok(Runs::Native(_)) => "native".to_owned(),
                Ok(Runs::External { refused: Some(error), .. }) => {
                    format!("external, or else code {} for {}", error.code, error.key)
                }
                Ok(Runs::External { why, refused: None }) => format!("external: {why}"),
                Err(error) => format!("error: {error}"),
            };
            assert_eq!(outcome, expected, "{plugin_type} {value}");
        }
    }

    #[test]
    fn del_has_a_delegate_whatever_became_of_the_configuration() {
        for kind in BUNDLED.iter().filter(|kind| parse(kind, &conf(json!({}))).is_some()) {
            assert!(
                parse_for_del(kind, &conf(json!({"ipam": 7, "mtu": -1, "master": [], "mode": {}}))).is_some(),
                "{kind}"
            );
        }
        assert!(parse_for_del("calico", &conf(json!({}))).is_none());
    }
}

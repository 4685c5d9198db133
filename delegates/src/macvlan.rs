//! `macvlan`: an interface with a MAC of its own on top of a link of the host, or of the pod. Takes the keys of the
//! reference plugin; without `ipam` it is layer 2 alone.

use crate::cni::{CniError, CniResult, ConfigError, Dns, NetConf, ValidAttachment, View};
use crate::configure::Settings;
use crate::delegate::{Added, Attachment, Context, Delegate, OwnedLink};
use crate::interface;
use crate::ipam::Ipam;
use crate::netlink::MacAddress;
use crate::netlink::link::data_u32;
use crate::on_master::{self, Kind, Master};
use crate::uses::{self, Uses};

const KIND: Kind = Kind { name: "macvlan", title: "macvlan", module: "macvlan" };
/// `IFLA_MACVLAN_MODE`.
const DATA_MODE: u16 = 1;
/// `IFLA_MACVLAN_BC_QUEUE_LEN`.
const DATA_BROADCAST_QUEUE: u16 = 7;

/// The keys of this kind beside the common ones.
pub(crate) const KEYS: &[&str] = &["mode", "mac", "bcqueuelen"];

/// How the links of one master reach each other (`MACVLAN_MODE_…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Not at all.
    Private = 1,
    /// By way of the switch outside.
    Vepa = 2,
    /// Directly.
    Bridge = 4,
    /// There is but one, and it has the master's MAC.
    Passthru = 8,
}

impl Mode {
    fn parse(view: &View<'_>) -> Result<Self, ConfigError> {
        match view.text("mode")? {
            None | Some("bridge") => Ok(Self::Bridge),
            Some("private") => Ok(Self::Private),
            Some("vepa") => Ok(Self::Vepa),
            Some("passthru") => Ok(Self::Passthru),
            Some(other) => Err(view
                .error("mode", format!("must be bridge, private, vepa or passthru, not \"{}\"", other.escape_debug()))),
        }
    }
}

/// A parsed `macvlan` configuration.
#[derive(Debug)]
pub struct Macvlan {
    master: Master,
    mode: Mode,
    mtu: Option<u32>,
    broadcast_queue: Option<u32>,
    /// The configuration's own `mac`, which `CNI_ARGS` come before.
    mac: Option<MacAddress>,
    /// `runtimeConfig.mac`, which comes before both.
    runtime_mac: Option<MacAddress>,
    dns: Dns,
    ipam: Option<Ipam>,
    warnings: Vec<String>,
}

impl Delegate for Macvlan {
    fn parse(conf: &NetConf) -> Result<Self, ConfigError> {
        let view = conf.view();
        let ipam = Ipam::parse(conf)?;
        let mut warnings = interface::unknown_keys(conf, &[on_master::KEYS, KEYS].concat());
        warnings.extend(ipam.iter().flat_map(Ipam::warnings));
        let queue = view.uint("bcqueuelen", 0..=u64::from(u32::MAX))?;
        Ok(Self {
            master: Master::parse(&view)?,
            mode: Mode::parse(&view)?,
            mtu: interface::mtu(&view)?,
            broadcast_queue: queue.and_then(|length| u32::try_from(length).ok()).filter(|length| *length > 0),
            mac: interface::mac(&view, "mac")?,
            runtime_mac: interface::requested_mac(conf, false)?,
            dns: interface::dns(conf)?,
            ipam,
            warnings,
        })
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn uses(&self) -> Uses {
        Uses { master: uses::below(self.master.name.as_ref()), ..Uses::default() }.with_ipam(self.ipam.as_ref())
    }

    fn add(&self, at: &Attachment<'_>) -> Result<Added, CniError> {
        let mac = match self.runtime_mac {
            Some(mac) => Some(mac),
            None => interface::mac_argument(at)?.or(self.mac),
        };
        let master = self.master.find(at, None)?;
        master.carries(self.mtu)?;
        let link = master.create(at, KIND, mac, self.mtu, |data| {
            let data = data.u32(DATA_MODE, self.mode as u32);
            match self.broadcast_queue {
                Some(length) => data.u32(DATA_BROADCAST_QUEUE, length),
                None => data,
            }
        })?;
        let settings = Settings { announce_v6: true, ..Settings::default() };
        on_master::complete(at, &link, self.ipam.as_ref(), settings, &self.dns, |_| ())
    }

    fn check(&self, at: &Attachment<'_>, result: &CniResult) -> Result<(), CniError> {
        if let Some(ipam) = &self.ipam {
            ipam.check(at)?;
        }
        let link = self.master.check(at, KIND, result)?;
        on_master::verify_mode(at, data_u32(link.data(), DATA_MODE) == Some(self.mode as u32), self.mode)
    }

    fn detach(&self, at: &Attachment<'_>) -> Result<Vec<OwnedLink>, CniError> {
        interface::pod_link(at, KIND.name)
    }

    fn release(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        interface::ipam_release(self.ipam.as_ref(), at)
    }

    fn status(&self, cx: &Context<'_>) -> Result<(), CniError> {
        self.master.status(cx)?;
        interface::ipam_status(self.ipam.as_ref(), cx)
    }

    fn gc(&self, cx: &Context<'_>, valid: &[ValidAttachment]) -> Result<(), CniError> {
        interface::ipam_gc(self.ipam.as_ref(), cx, valid)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(value: Value) -> Result<Macvlan, ConfigError> {
        Macvlan::parse(&NetConf(value.as_object().unwrap().clone()))
    }

    #[test]
    fn everything_has_a_default() {
        let macvlan =
            parse(json!({"ipam": {}, "mtu": 0, "bcqueuelen": 0, "mode": "", "master": "", "mac": ""})).unwrap();
        assert_eq!(macvlan.master, Master { name: None, in_pod: false });
        assert_eq!((macvlan.mode, macvlan.mtu, macvlan.broadcast_queue), (Mode::Bridge, None, None));
        assert!(macvlan.ipam.is_none() && macvlan.warnings.is_empty());
    }

    #[test]
    fn every_key_is_read_whatever_its_case() {
        let value = json!({"Master": "eth1", "LinkInContainer": true, "MODE": "passthru", "mtu": 1400, "bcQueueLen": 4294967295u32,
            "mac": "02:00:00:00:00:01", "RuntimeConfig": {"mac": "02-00-00-00-00-02"}, "colour": 1});
        let macvlan = parse(value).unwrap();
        assert_eq!(macvlan.master, Master { name: Some("eth1".to_owned()), in_pod: true });
        assert_eq!((macvlan.mode, macvlan.mtu, macvlan.broadcast_queue), (Mode::Passthru, Some(1400), Some(u32::MAX)));
        let shown = |mac: Option<MacAddress>| mac.map(|mac| mac.to_string()).unwrap_or_default();
        assert_eq!(
            (shown(macvlan.mac), shown(macvlan.runtime_mac)),
            ("02:00:00:00:00:01".into(), "02:00:00:00:00:02".into())
        );
        assert_eq!(macvlan.warnings, ["key \"colour\" is not known and is ignored"]);
    }

    #[test]
    fn an_error_names_the_key_and_what_is_accepted() {
        let cases = [
            (json!({"mode": "vlan"}), "mode: must be bridge, private, vepa or passthru, not \"vlan\""),
            (json!({"mode": 4}), "mode: must be a string, not 4"),
            (json!({"mtu": 60}), "mtu: 60 is less than an IPv4 packet needs; accepted are 0 and 68 to 65535"),
            (json!({"mtu": -1}), "mtu: must be a whole number from 0 to 65535, not -1"),
            (
                json!({"bcqueuelen": 4294967296u64}),
                "bcqueuelen: must be a whole number from 0 to 4294967295, not 4294967296",
            ),
            (json!({"linkInContainer": "yes"}), "linkInContainer: must be true or false, not \"yes\""),
            (
                json!({"mac": "01:00:5e:00:00:01"}),
                "mac: 01:00:5e:00:00:01 is a group address; an interface needs a unicast one",
            ),
            (
                json!({"runtimeConfig": {"mac": "x"}}),
                "runtimeConfig.mac: \"x\" is not a 6-byte MAC address like 02:00:00:00:00:01",
            ),
            (json!({"dns": []}), "dns: must be an object, not a list"),
            (json!({"dns": {"nameservers": [1]}}), "dns.nameservers[0]: must be a string, not 1"),
        ];
        for (value, expected) in cases {
            assert_eq!(parse(value.clone()).unwrap_err().to_string(), expected, "{value}");
        }
        for master in ["a/b", "sixteen-letters-", "."] {
            assert_eq!(parse(json!({"master": master})).unwrap_err().key, "master");
        }
    }
}

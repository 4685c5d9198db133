//! `ipvlan`: an interface that shares its master's MAC and is told apart by its addresses. Takes the keys of the
//! reference plugin; after another plugin of the chain it may take over that one's addresses instead of having `ipam`.

use crate::cni::{CniError, CniResult, ConfigError, Dns, NetConf, ValidAttachment, View, code};
use crate::configure::Settings;
use crate::delegate::{Added, Attachment, Context, Delegate, OwnedLink};
use crate::interface;
use crate::ipam::Ipam;
use crate::netlink::link::data_u16;
use crate::on_master::{self, Kind, Master};
use crate::uses::{self, Uses};

const KIND: Kind = Kind { name: "ipvlan", title: "ipvlan", module: "ipvlan" };
/// `IFLA_IPVLAN_MODE`.
const DATA_MODE: u16 = 1;

/// The keys of this kind beside the common ones.
pub(crate) const KEYS: &[&str] = &["mode"];

/// On which layer packets are handed over (`IPVLAN_MODE_…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Switched: ARP and broadcasts work.
    L2 = 0,
    /// Routed, past the host's firewall.
    L3 = 1,
    /// Routed, through the host's firewall and connection tracking.
    L3s = 2,
}

impl Mode {
    fn parse(view: &View<'_>) -> Result<Self, ConfigError> {
        match view.text("mode")? {
            None | Some("l2") => Ok(Self::L2),
            Some("l3") => Ok(Self::L3),
            Some("l3s") => Ok(Self::L3s),
            Some(other) => Err(view.error("mode", format!("must be l2, l3 or l3s, not \"{}\"", other.escape_debug()))),
        }
    }
}

/// A parsed `ipvlan` configuration.
#[derive(Debug)]
pub struct Ipvlan {
    master: Master,
    mode: Mode,
    mtu: Option<u32>,
    dns: Dns,
    /// None: the addresses are those of the plugin before in the chain.
    ipam: Option<Ipam>,
    warnings: Vec<String>,
}

impl Delegate for Ipvlan {
    fn parse(conf: &NetConf) -> Result<Self, ConfigError> {
        let view = conf.view();
        let ipam = Ipam::parse(conf)?;
        if ipam.is_none() && view.raw("prevResult").is_none() {
            return Err(view.error(
                "ipam",
                "is missing; an ipvlan needs addresses: set \"ipam\" with a \"type\", or put it after a plugin that gives some",
            ));
        }
        let mut warnings = interface::unknown_keys(conf, &[on_master::KEYS, KEYS].concat());
        warnings.extend(ipam.iter().flat_map(Ipam::warnings));
        Ok(Self {
            master: Master::parse(&view)?,
            mode: Mode::parse(&view)?,
            mtu: interface::mtu(&view)?,
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
        let chained = self.chained_addresses(at)?;
        let master = self.master.find(at, self.chained_master(at)?)?;
        let link = master.create(at, KIND, None, self.mtu, |data| data.u16(DATA_MODE, self.mode as u16))?;
        let settings = Settings { announce_v6: true, ..Settings::default() };
        on_master::complete(at, &link, self.ipam.as_ref(), settings, &self.dns, |result| {
            if let Some(previous) = chained {
                result.ips = previous.ips.clone();
                result.ips.iter_mut().for_each(|ip| ip.interface = Some(0));
                result.routes = previous.routes.clone();
            }
        })
    }

    fn check(&self, at: &Attachment<'_>, result: &CniResult) -> Result<(), CniError> {
        if let Some(ipam) = &self.ipam {
            ipam.check(at)?;
        }
        let link = self.master.check(at, KIND, result)?;
        on_master::verify_mode(at, data_u16(link.data(), DATA_MODE) == Some(self.mode as u16), self.mode)
    }

    /// Needs no master: it may be gone, or never have been there.
    fn detach(&self, at: &Attachment<'_>) -> Result<Vec<OwnedLink>, CniError> {
        interface::pod_link(at, KIND.name)
    }

    fn release(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        interface::ipam_release(self.ipam.as_ref(), at)
    }

    fn status(&self, cx: &Context<'_>) -> Result<(), CniError> {
        // In a chain the master may be the interface that another plugin is going to make.
        if self.ipam.is_some() || self.master.name.is_some() {
            self.master.status(cx)?;
        }
        interface::ipam_status(self.ipam.as_ref(), cx)
    }

    fn gc(&self, cx: &Context<'_>, valid: &[ValidAttachment]) -> Result<(), CniError> {
        interface::ipam_gc(self.ipam.as_ref(), cx, valid)
    }
}

impl Ipvlan {
    /// The result that addresses are taken from, where there is no `ipam`.
    fn chained_addresses<'a>(&self, at: &Attachment<'a>) -> Result<Option<&'a CniResult>, CniError> {
        match (&self.ipam, at.prev_result) {
            (Some(_), _) => Ok(None),
            (None, Some(previous)) if !previous.ips.is_empty() => Ok(Some(previous)),
            (None, _) => {
                Err(CniError::new(code::CONFIG, "ipam: is missing, and the plugin before (prevResult) gave no address")
                    .with_details("set \"ipam\" with a \"type\", or put ipvlan after a plugin that gives addresses"))
            }
        }
    }

    /// The master's name where the configuration has none and a plugin came before: the single interface it made.
    fn chained_master<'a>(&self, at: &Attachment<'a>) -> Result<Option<&'a str>, CniError> {
        let Some(previous) = at.prev_result.filter(|_| self.master.name.is_none()) else { return Ok(None) };
        match previous.interfaces.as_slice() {
            [only] if !only.name.is_empty() => Ok(Some(&only.name)),
            _ => Err(CniError::new(
                code::CONFIG,
                "master: not set, and the plugin before (prevResult) did not make a single interface",
            )
            .with_details("set \"master\" to the interface the network is reached by")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(value: Value) -> Result<Ipvlan, ConfigError> {
        Ipvlan::parse(&NetConf(value.as_object().unwrap().clone()))
    }

    #[test]
    fn every_key_is_read() {
        let ipam = json!({"type": "static", "addresses": [{"address": "10.0.0.2/24"}]});
        for (mode, expected) in [("", Mode::L2), ("l2", Mode::L2), ("l3", Mode::L3), ("l3s", Mode::L3s)] {
            let value =
                json!({"mode": mode, "master": "eth1", "mtu": 1400, "linkInContainer": true, "ipam": ipam, "flag": 1});
            let ipvlan = parse(value).unwrap();
            assert_eq!((ipvlan.mode, ipvlan.mtu), (expected, Some(1400)));
            assert_eq!(ipvlan.master, Master { name: Some("eth1".to_owned()), in_pod: true });
            assert_eq!(ipvlan.warnings, ["key \"flag\" is not known and is ignored"]);
        }
    }

    #[test]
    fn in_a_chain_the_addresses_may_be_those_of_the_plugin_before() {
        assert!(parse(json!({"prevResult": {"ips": []}})).unwrap().ipam.is_none());
        for alone in [json!({}), json!({"ipam": {}}), json!({"ipam": {"type": ""}, "prevResult": null})] {
            let error = parse(alone).unwrap_err();
            assert_eq!(
                error.to_string(),
                "ipam: is missing; an ipvlan needs addresses: set \"ipam\" with a \"type\", or put it after a plugin that gives some"
            );
        }
    }

    #[test]
    fn an_error_names_the_key_and_what_is_accepted() {
        let cases = [
            (json!({"prevResult": {}, "mode": "L2"}), "mode: must be l2, l3 or l3s, not \"L2\""),
            (json!({"prevResult": {}, "mtu": 70000}), "mtu: must be a whole number from 0 to 65535, not 70000"),
            (json!({"prevResult": {}, "linkInContainer": 1}), "linkInContainer: must be true or false, not 1"),
        ];
        for (value, expected) in cases {
            assert_eq!(parse(value.clone()).unwrap_err().to_string(), expected, "{value}");
        }
        assert_eq!(parse(json!({"prevResult": {}, "master": "a b"})).unwrap_err().key, "master");
    }
}

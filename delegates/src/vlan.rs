//! `vlan`: an interface that speaks one 802.1Q VLAN of its master. Takes the keys of the reference plugin.

use crate::cni::{CniError, CniResult, ConfigError, Dns, NetConf, ValidAttachment, code};
use crate::configure::Settings;
use crate::delegate::{Added, Attachment, Context, Delegate, OwnedLink};
use crate::interface;
use crate::ipam::Ipam;
use crate::netlink::link::data_u16;
use crate::on_master::{self, Kind, Master};
use crate::uses::{self, Uses};

const KIND: Kind = Kind { name: "vlan", title: "802.1q VLAN", module: "8021q" };
/// `IFLA_VLAN_ID`.
const DATA_ID: u16 = 1;

/// The keys of this kind beside the common ones.
pub(crate) const KEYS: &[&str] = &["vlanId"];

/// A parsed `vlan` configuration.
#[derive(Debug)]
pub struct Vlan {
    master: Master,
    id: u16,
    mtu: Option<u32>,
    dns: Dns,
    ipam: Ipam,
    warnings: Vec<String>,
}

impl Delegate for Vlan {
    fn parse(conf: &NetConf) -> Result<Self, ConfigError> {
        let view = conf.view();
        let master = Master::parse(&view)?;
        if master.name.is_none() {
            return Err(view.error("master", "is missing; must name the interface that carries the VLAN"));
        }
        let mut warnings = interface::unknown_keys(conf, &[on_master::KEYS, KEYS].concat());
        let id = view.uint("vlanId", 0..=4094)?.and_then(|id| u16::try_from(id).ok());
        if id.is_none() {
            warnings.push(
                "key \"vlanId\" is not set: frames are tagged with VLAN 0, which carries a priority alone".to_owned(),
            );
        }
        let Some(ipam) = Ipam::parse(conf)? else {
            return Err(view.error("ipam", "is missing; a vlan needs addresses: set \"ipam\" with a \"type\""));
        };
        warnings.extend(ipam.warnings());
        Ok(Self {
            master,
            id: id.unwrap_or(0),
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
        let vlans = vec![("vlanId", self.id..=self.id)];
        Uses { master: uses::below(self.master.name.as_ref()), vlans, ..Uses::default() }.with_ipam(Some(&self.ipam))
    }

    fn add(&self, at: &Attachment<'_>) -> Result<Added, CniError> {
        let master = self.master.find(at, None)?;
        master.carries(self.mtu)?;
        if !master.link.is_up() {
            return Err(CniError::new(code::DELEGATE, format!("master: interface \"{}\" is down", master.link.name))
                .with_details("a VLAN comes up only on a link that is up: ip link set up"));
        }
        let link = master.create(at, KIND, None, self.mtu, |data| data.u16(DATA_ID, self.id))?;
        on_master::complete(at, &link, Some(&self.ipam), Settings::default(), &self.dns, |_| ())
    }

    fn check(&self, at: &Attachment<'_>, result: &CniResult) -> Result<(), CniError> {
        self.ipam.check(at)?;
        let link = self.master.check(at, KIND, result)?;
        let differs =
            |what: String| Err(CniError::new(code::DELEGATE, format!("interface \"{}\" has {what}", at.interface)));
        match data_u16(link.data(), DATA_ID) {
            Some(id) if id == self.id => {}
            other => return differs(format!("VLAN {}, not {}", other.unwrap_or_default(), self.id)),
        }
        match self.mtu {
            Some(mtu) if mtu != link.mtu => differs(format!("MTU {}, not {mtu}", link.mtu)),
            _ => Ok(()),
        }
    }

    /// Needs no master: it may be gone, and the link with it.
    fn detach(&self, at: &Attachment<'_>) -> Result<Vec<OwnedLink>, CniError> {
        interface::pod_link(at, KIND.name)
    }

    fn release(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        self.ipam.release(at)
    }

    fn status(&self, cx: &Context<'_>) -> Result<(), CniError> {
        self.master.status(cx)?;
        self.ipam.status(cx)
    }

    fn gc(&self, cx: &Context<'_>, valid: &[ValidAttachment]) -> Result<(), CniError> {
        self.ipam.gc(cx, valid)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(mut value: Value) -> Result<Vlan, ConfigError> {
        let object = value.as_object_mut().unwrap();
        object.entry("master").or_insert(json!("eth0"));
        object.entry("ipam").or_insert(json!({"type": "static", "addresses": [{"address": "10.0.0.2/24"}]}));
        Vlan::parse(&NetConf(object.clone()))
    }

    #[test]
    fn every_key_is_read() {
        let vlan = parse(json!({"vlanId": 4094, "mtu": 1496, "linkInContainer": true})).unwrap();
        assert_eq!((vlan.id, vlan.mtu, vlan.warnings.len()), (4094, Some(1496), 0));
        assert_eq!(vlan.master, Master { name: Some("eth0".to_owned()), in_pod: true });
        assert_eq!(parse(json!({"vlanId": 0})).unwrap().warnings, Vec::<String>::new());
    }

    #[test]
    fn without_an_id_it_is_that_of_the_reference_with_a_warning() {
        let vlan = parse(json!({})).unwrap();
        assert_eq!((vlan.id, vlan.warnings.len()), (0, 1));
    }

    #[test]
    fn an_error_names_the_key_and_what_is_accepted() {
        let cases = [
            (json!({"master": null}), "master: is missing; must name the interface that carries the VLAN"),
            (json!({"ipam": {}}), "ipam: is missing; a vlan needs addresses: set \"ipam\" with a \"type\""),
            (json!({"vlanId": 4095}), "vlanId: must be a whole number from 0 to 4094, not 4095"),
            (json!({"vlanId": "5"}), "vlanId: must be a whole number from 0 to 4094, not \"5\""),
            (json!({"mtu": 1}), "mtu: 1 is less than an IPv4 packet needs; accepted are 0 and 68 to 65535"),
        ];
        for (value, expected) in cases {
            assert_eq!(parse(value.clone()).unwrap_err().to_string(), expected, "{value}");
        }
    }
}

//! `vlan`: an interface that speaks one 802.1Q VLAN of its master. Takes the keys of the reference plugin.

use crate::cni::{CniError, CniResult, ConfigError, Dns, NetConf, ValidAttachment, code};
use crate::configure::Settings;
use crate::delegate::{Added, Attachment, Context, Delegate, OwnedLink, Side};
use crate::interface::{self, Fitting};
use crate::ipam::Ipam;
use crate::netlink::link::data_u16;
use crate::on_master::{self, Kind, Master};
use crate::veth;

const KIND: Kind = Kind { name: "vlan", title: "802.1q VLAN", module: "8021q" };
/// `IFLA_VLAN_ID`.
const DATA_ID: u16 = 1;

const KEYS: &[&str] = &["vlanId"];

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

    fn add(&self, at: &Attachment<'_>) -> Result<Added, CniError> {
        let master = self.master.find(at, None)?;
        master.carries(self.mtu)?;
        if !master.link.is_up() {
            return Err(CniError::new(code::DELEGATE, format!("master: interface \"{}\" is down", master.link.name))
                .with_details("a VLAN comes up only on a link that is up: ip link set up"));
        }
        let link = master.create(at, KIND, None, self.mtu, |data| data.u16(DATA_ID, self.id))?;
        interface::complete(at, vec![OwnedLink::of(Side::Pod, &link)], || {
            let fitting = Fitting {
                ipam: Some(&self.ipam),
                interfaces: vec![veth::interface(&link, at.sandbox())],
                position: 0,
                settings: Settings::default(),
            };
            let result = fitting.fit(at, &link, |_| Ok(()))?;
            Ok(CniResult { dns: self.dns.clone(), ..result })
        })
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

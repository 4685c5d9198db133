//! What DEL can do with a configuration that was right at ADD and is wrong now: take the link away by its name and kind,
//! the rules by their owner, and give back the addresses as far as `ipam` can still be read, and a VNI's devices after its
//! last pod.

use crate::cni::{CniError, CniResult, ConfigError, NetConf, ValidAttachment};
use crate::delegate::{Added, Attachment, Context, Delegate, OwnedLink};
use crate::firewall::{self, Owner};
use crate::interface;
use crate::ipam::Ipam;
use crate::uses::Uses;
use crate::vxlan;
use crate::vxlan_device::{self, Vni};

/// A delegate for DEL alone.
#[derive(Debug)]
pub struct Remains {
    error: ConfigError,
    link: Option<&'static str>,
    ipam: Option<Ipam>,
    vxlan: Option<(Vni, String)>,
}

impl Remains {
    /// What remains of a configuration that `error` was found in. `link` is the kernel's kind of the link in the pod.
    #[must_use]
    pub fn of(conf: &NetConf, link: Option<&'static str>, error: &ConfigError) -> Self {
        let vxlan = if conf.plugin_type().is_ok_and(|t| t == "vxlan") { vxlan::shared_of(conf) } else { None };
        Self { error: error.clone(), link, ipam: Ipam::parse_for_release(conf).ok().flatten(), vxlan }
    }

    fn refuse<T>(&self) -> Result<T, CniError> {
        Err(self.error.clone().into())
    }
}

impl Delegate for Remains {
    fn parse(conf: &NetConf) -> Result<Self, ConfigError> {
        Ok(Self::of(conf, None, &ConfigError::new("type", "is of no use but for DEL")))
    }

    fn warnings(&self) -> Vec<String> {
        vec![format!("{}: taken away as far as that can be read", self.error)]
    }

    fn uses(&self) -> Uses {
        Uses::default()
    }

    fn add(&self, _at: &Attachment<'_>) -> Result<Added, CniError> {
        self.refuse()
    }

    fn check(&self, _at: &Attachment<'_>, _result: &CniResult) -> Result<(), CniError> {
        self.refuse()
    }

    fn detach(&self, at: &Attachment<'_>) -> Result<Vec<OwnedLink>, CniError> {
        if self.link == Some("veth")
            && let Err(error) = firewall::forget(at.host, &Owner::of(at))
        {
            // Whether there ever were rules is not known any more, nor whether this kernel can have any.
            tracing::warn!("{}: {error}", at.network);
        }
        self.link.map_or(Ok(Vec::new()), |kind| interface::pod_link(at, kind))
    }

    fn release(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        let addresses = interface::ipam_release(self.ipam.as_ref(), at);
        let shared = match &self.vxlan {
            Some((vni, bridge)) if !at.agent_removes_shared => {
                vxlan_device::remove_if_unused(at.host, at.state_dir, *vni, bridge).map(drop)
            }
            _ => Ok(()),
        };
        addresses.and(shared)
    }

    fn status(&self, _cx: &Context<'_>) -> Result<(), CniError> {
        self.refuse()
    }

    fn gc(&self, _cx: &Context<'_>, _valid: &[ValidAttachment]) -> Result<(), CniError> {
        self.refuse()
    }
}

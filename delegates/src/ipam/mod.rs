//! IPAM: which addresses an attachment gets. Chooses between `host-local` and `static` in process and any other
//! type as an external plugin; what is done with the addresses is the delegates' business.

pub mod external;
pub mod host_local;
mod host_local_conf;
pub mod index;
mod parts;
pub mod ranges;
pub mod reservations;
mod resolv_conf;
pub mod static_addresses;
pub mod store;

pub use external::External;
pub use host_local::HostLocal;
pub use static_addresses::Static;

use crate::cni::{CniError, CniResult, ConfigError, NetConf, ValidAttachment};
use crate::delegate::{Attachment, Context};

/// A parsed `ipam` that can be carried out.
#[derive(Debug, Clone, PartialEq)]
pub enum Ipam {
    /// Pools of this host.
    HostLocal(HostLocal),
    /// Addresses as written.
    Static(Static),
    /// A plugin.
    External(External),
}

impl Ipam {
    /// Reads the `ipam` of a network configuration: `runtimeConfig` and `args.cni` count, `CNI_ARGS` come with the request.
    /// `None` where there is none, or one without a type: the attachment is layer 2.
    ///
    /// # Errors
    /// The key and what is accepted.
    pub fn parse(conf: &NetConf) -> Result<Option<Ipam>, ConfigError> {
        let Some(ipam) = conf.view().object("ipam")? else {
            return Ok(None);
        };
        Ok(match ipam.text("type")? {
            None => None,
            Some("host-local") => Some(Ipam::HostLocal(HostLocal::parse(conf)?)),
            Some("static") => Some(Ipam::Static(Static::parse(conf)?)),
            Some(other) if other.contains(['/', '\0']) || other == "." || other == ".." => {
                return Err(ipam.error("type", "must be a plugin's name, without a path"));
            }
            Some(other) => Some(Ipam::External(External::new(other))),
        })
    }

    /// What was ignored, one line each.
    pub fn warnings(&self) -> &[String] {
        match self {
            Ipam::HostLocal(host_local) => host_local.warnings(),
            Ipam::Static(fixed) => fixed.warnings(),
            Ipam::External(_) => &[],
        }
    }

    /// The attachment's addresses, with routes and name resolution.
    ///
    /// # Errors
    /// They cannot be had; nothing is reserved then.
    pub fn add(&self, at: &Attachment<'_>) -> Result<CniResult, CniError> {
        match self {
            Ipam::HostLocal(host_local) => host_local.add(at),
            Ipam::Static(fixed) => fixed.add(at),
            Ipam::External(external) => external.add(at),
        }
    }

    /// Whether the attachment still has the addresses that the final result of ADD names.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, at: &Attachment<'_>, result: &CniResult) -> Result<(), CniError> {
        match self {
            Ipam::HostLocal(host_local) => host_local.check(at, result),
            Ipam::Static(fixed) => fixed.check(at, result),
            Ipam::External(external) => external.check(at),
        }
    }

    /// Gives the attachment's addresses back. Nothing that is gone already is an error.
    ///
    /// # Errors
    /// What could not be released; repeating may help.
    pub fn release(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        match self {
            Ipam::HostLocal(host_local) => host_local.release(at),
            Ipam::Static(_) => Ok(()),
            Ipam::External(external) => external.release(at),
        }
    }

    /// Whether ADD could get addresses now.
    ///
    /// # Errors
    /// Code 50 with the reason, or the plugin's own error.
    pub fn status(&self, cx: &Context<'_>) -> Result<(), CniError> {
        match self {
            Ipam::HostLocal(host_local) => host_local.status(cx),
            Ipam::Static(_) => Ok(()),
            Ipam::External(external) => external.status(cx),
        }
    }

    /// Frees what belongs to none of the valid attachments and is known to be ours.
    ///
    /// # Errors
    /// What could not be freed.
    pub fn gc(&self, cx: &Context<'_>, valid: &[ValidAttachment]) -> Result<(), CniError> {
        match self {
            Ipam::HostLocal(host_local) => host_local.gc(cx, valid),
            Ipam::Static(_) => Ok(()),
            Ipam::External(external) => external.gc(cx, valid),
        }
    }
}

//! What a native delegate is: one trait, what it is told ([`Context`], [`Attachment`]) and what it answers ([`Added`]).
//! Parsing is pure and complete; only a parsed delegate can act. DEL is two steps: `detach` names the links and undoes
//! host-side state, `release` gives the addresses back once no link can use them any more.

use std::num::NonZeroU32;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::cni::{
    CniArgs, CniError, CniResult, ConfigError, ContainerId, InterfaceName, NetConf, NetworkName, ValidAttachment,
    Version, code,
};
use crate::external::Surroundings;
use crate::mark::Mark;
use crate::netlink::{self, Link};
use crate::netns::Namespace;
use crate::uses::Uses;

/// What every verb is told: the network and the place.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The network's CNI name.
    pub network: &'a NetworkName,
    /// The whole configuration, as the plugin is sent it.
    pub conf: &'a NetConf,
    /// The configuration's CNI version.
    pub version: Version,
    /// Folders with plugin binaries (`CNI_PATH`), for an external IPAM.
    pub path: &'a [PathBuf],
    /// Our state folder: locks of what pods share, the address index.
    pub state_dir: &'a Path,
    /// What is left on the host of an attachment on record is marked with; `None` for a delegate called on its own.
    pub mark: Option<Mark>,
    /// When the whole operation must have ended.
    pub deadline: Instant,
    /// The host's namespace.
    pub host: &'a Namespace,
    /// What an external IPAM shares with the operation's other programs.
    pub programs: Surroundings<'a>,
    /// Whether a link that pods share is left for an agent to remove once its last user is gone.
    pub agent_removes_shared: bool,
}

/// What ADD, CHECK and DEL are told besides: the one attachment.
#[derive(Clone, Copy)]
pub struct Attachment<'a> {
    /// The network and the place.
    pub context: Context<'a>,
    /// Whose it is.
    pub container_id: &'a ContainerId,
    /// Its interface in the pod.
    pub interface: &'a InterfaceName,
    /// `CNI_ARGS`.
    pub args: &'a CniArgs,
    /// `CNI_NETNS` as it was given; `None` on a DEL without one.
    pub netns: Option<&'a Path>,
    /// The pod's namespace; `None` on a DEL after it is gone.
    pub pod: Option<&'a Namespace>,
    /// `IFLA_GROUP` for links inside the pod; `None` for a delegate called on its own.
    pub group: Option<NonZeroU32>,
    /// Result of the plugin before it in the chain.
    pub prev_result: Option<&'a CniResult>,
}

impl<'a> Deref for Attachment<'a> {
    type Target = Context<'a>;

    fn deref(&self) -> &Self::Target {
        &self.context
    }
}

impl<'a> Attachment<'a> {
    /// The pod's namespace, which ADD and CHECK cannot do without.
    ///
    /// # Errors
    /// Code 8 when it is gone.
    pub fn pod(&self) -> Result<&'a Namespace, CniError> {
        self.pod.ok_or_else(|| {
            let path = self.netns.map(|p| p.display().to_string()).unwrap_or_default();
            CniError::new(code::NAMESPACE, format!("network namespace {path:?} does not exist"))
        })
    }

    /// The `sandbox` of interfaces inside the pod: `CNI_NETNS` as it was given.
    #[must_use]
    pub fn sandbox(&self) -> String {
        self.netns.map(|p| p.display().to_string()).unwrap_or_default()
    }
}

/// On which side of the namespace border a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// In the host's namespace.
    Host,
    /// In the pod's.
    Pod,
}

/// A link that exists for one attachment alone; enough to know it again and to never delete another in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedLink {
    /// Where it is.
    pub side: Side,
    /// Its name.
    pub name: String,
    /// Its `ifindex`.
    pub index: u32,
    /// Its kind, as the kernel calls it.
    pub kind: String,
    /// `ifindex` of its veth peer.
    pub peer: Option<u32>,
}

impl OwnedLink {
    /// Describes a link the kernel just told of.
    #[must_use]
    pub fn of(side: Side, link: &Link) -> Self {
        Self {
            side,
            name: link.name.clone(),
            index: link.index,
            kind: link.kind.clone().unwrap_or_default(),
            peer: link.is_kind("veth").then_some(link.parent).flatten(),
        }
    }

    /// Deletes it if it is still the one that was described; anything else of that index is left alone.
    ///
    /// # Errors
    /// The kernel refuses, other than because it is gone.
    pub fn delete(&self, namespace: &Namespace) -> Result<(), CniError> {
        match namespace.netlink.link_by_index(self.index)? {
            Some(link) if self.is(&link) => {
                namespace.netlink.delete_link(self.index, &link.name)?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether a link the kernel tells of is this one. In a pod the name does not count: it may rename its own links. On
    /// the host it does: an index and a peer's index may come again with other links, a random name does not.
    #[must_use]
    pub fn is(&self, link: &Link) -> bool {
        self.index == link.index
            && (self.side == Side::Pod || self.name == link.name)
            && link.kind.as_deref().unwrap_or_default() == self.kind
            && (self.peer.is_none() || self.peer == link.parent)
    }
}

/// What ADD made.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Added {
    /// The CNI result, prevResult taken into account.
    pub result: CniResult,
    /// The links made for this attachment alone, both sides.
    pub links: Vec<OwnedLink>,
}

/// A native delegate: a parsed configuration that can be carried out.
pub trait Delegate {
    /// Reads the configuration. Pure: no I/O, and whatever it accepts can be carried out.
    ///
    /// # Errors
    /// Names the key, its value's problem and what is accepted.
    fn parse(conf: &NetConf) -> Result<Self, ConfigError>
    where
        Self: Sized;

    /// What was ignored, one line each, for a person.
    fn warnings(&self) -> Vec<String>;

    /// What it takes of the node and of its networks.
    fn uses(&self) -> Uses;

    /// Makes the attachment.
    ///
    /// # Errors
    /// What failed; everything this call did is undone by then.
    fn add(&self, at: &Attachment<'_>) -> Result<Added, CniError>;

    /// Compares the kernel with the final result of ADD.
    ///
    /// # Errors
    /// The first difference.
    fn check(&self, at: &Attachment<'_>, result: &CniResult) -> Result<(), CniError>;

    /// Names the links of the attachment that still exist and undoes what it has on the host. Nothing that is gone
    /// already is an error.
    ///
    /// # Errors
    /// What could not be undone; repeating may help.
    fn detach(&self, at: &Attachment<'_>) -> Result<Vec<OwnedLink>, CniError>;

    /// Gives the addresses back, and leaves what pods share to its next or last user.
    ///
    /// # Errors
    /// What could not be released; repeating may help.
    fn release(&self, at: &Attachment<'_>) -> Result<(), CniError>;

    /// Whether ADD could work now.
    ///
    /// # Errors
    /// Code 50 with the reason.
    fn status(&self, cx: &Context<'_>) -> Result<(), CniError>;

    /// Frees what belongs to none of the valid attachments and is known to be ours.
    ///
    /// # Errors
    /// What could not be freed.
    fn gc(&self, cx: &Context<'_>, valid: &[ValidAttachment]) -> Result<(), CniError>;
}

impl From<netlink::Error> for CniError {
    /// A kernel refusal inside a delegate is code 100; the errno and the kernel's words stay in the message.
    fn from(error: netlink::Error) -> Self {
        Self::new(code::DELEGATE, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_known_again_by_what_another_in_its_place_would_not_share() {
        let made = Link {
            index: 7,
            name: "veth0a1b2c3d".to_owned(),
            kind: Some("veth".to_owned()),
            parent: Some(2),
            ..Link::default()
        };
        let cases: [(&str, Link, [bool; 2]); 5] = [
            ("itself", made.clone(), [true, true]),
            ("renamed", Link { name: "eth9".to_owned(), ..made.clone() }, [false, true]),
            ("of another kind", Link { kind: Some("vxlan".to_owned()), ..made.clone() }, [false, false]),
            ("with another peer", Link { parent: Some(3), ..made.clone() }, [false, false]),
            ("of another index", Link { index: 8, ..made.clone() }, [false, false]),
        ];
        for (what, link, expected) in cases {
            let is = [Side::Host, Side::Pod].map(|side| OwnedLink::of(side, &made).is(&link));
            assert_eq!(is, expected, "{what}, on the host and in the pod");
        }
    }
}

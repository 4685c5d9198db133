//! What macvlan, ipvlan and vlan do alike: each is a link of its own on top of another, the master, which is found on the
//! host or in the pod. What sets a kind apart stays in its own file.

use std::fmt::Debug;

use nix::errno::Errno;

use crate::cni::{CniError, CniResult, ConfigError, Dns, View, code};
use crate::configure::{self, Settings};
use crate::delegate::{Added, Attachment, Context, OwnedLink, Side};
use crate::interface::{self, Fitting};
use crate::ipam::Ipam;
use crate::netlink::message::Message;
use crate::netlink::{self, Link, LinkChange, MacAddress};
use crate::netns::Namespace;

/// Keys of all three kinds.
pub const KEYS: &[&str] = &["master", "mtu", "linkInContainer"];

/// A kind of link that needs a master.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// The kernel's name for it.
    pub name: &'static str,
    /// What it is called where the kernel does not know it.
    pub title: &'static str,
    /// The kernel module that brings it.
    pub module: &'static str,
}

/// What the configuration says of the link below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Master {
    /// Its name; none is the link of the default route.
    pub name: Option<String>,
    /// It is in the pod (`linkInContainer`).
    pub in_pod: bool,
}

/// A master that was found, and where.
pub struct Found<'a> {
    /// The namespace it is in.
    pub namespace: &'a Namespace,
    /// The link.
    pub link: Link,
}

impl Master {
    /// Reads `master` and `linkInContainer`.
    ///
    /// # Errors
    /// A name that no interface can have, or a value of the wrong type.
    pub fn parse(view: &View<'_>) -> Result<Self, ConfigError> {
        Ok(Self { name: interface::interface_name(view, "master")?, in_pod: view.bool("linkInContainer")? })
    }

    /// Finds the link; `chained` is its name where only the plugin before in the chain knows it.
    ///
    /// # Errors
    /// Code 100: it is missing.
    pub fn find<'a>(&self, at: &Attachment<'a>, chained: Option<&str>) -> Result<Found<'a>, CniError> {
        let namespace = if self.in_pod { at.pod()? } else { at.context.host };
        let name = self.name.as_deref().or(chained);
        let link =
            interface::master(namespace, name).map_err(|e| if self.in_pod { e.context("in the pod") } else { e })?;
        Ok(Found { namespace, link })
    }

    /// CHECK of the attachment's link: its kind, that it is up, its MAC, addresses and routes, and that a master which
    /// is named is still the one below it.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, at: &Attachment<'_>, kind: Kind, result: &CniResult) -> Result<Link, CniError> {
        let link = configure::verify(at.pod()?, at.interface.as_str(), kind.name, result)?;
        let differs =
            |what: String| Err(CniError::new(code::DELEGATE, format!("interface \"{}\" {what}", at.interface)));
        if !link.is_up() {
            return differs("is down".to_owned());
        }
        // Where the master is that of the default route, the route may have moved since, and the link stays where it is.
        if let Some(name) = &self.name {
            let found = self.find(at, None)?;
            if link.parent != Some(found.link.index) || link.parent_netns.is_none() != self.in_pod {
                return differs(format!("is not on top of master \"{name}\""));
            }
        }
        Ok(link)
    }

    /// STATUS of the master; one in a pod is known when there is a pod.
    ///
    /// # Errors
    /// Code 50: it is missing.
    pub fn status(&self, cx: &Context<'_>) -> Result<(), CniError> {
        if self.in_pod { Ok(()) } else { interface::master_status(cx.host, self.name.as_deref()) }
    }
}

/// Ends the ADD of such a link, which is all that its attachment has: IPAM, `adjust` to complete the result, and the link as
/// it is to be. When a step fails the link is deleted again.
///
/// # Errors
/// The step that failed.
pub fn complete(
    at: &Attachment<'_>,
    link: &Link,
    ipam: Option<&Ipam>,
    settings: Settings,
    dns: &Dns,
    adjust: impl FnOnce(&mut CniResult),
) -> Result<Added, CniError> {
    interface::complete(at, vec![OwnedLink::of(Side::Pod, link)], || {
        let interfaces = vec![interface::described(link, at.sandbox())];
        let fitting = Fitting { ipam, interfaces, position: 0, settings, open: &|| Ok(()) };
        let adjust = |result: &mut CniResult| {
            adjust(result);
            Ok(())
        };
        Ok(CniResult { dns: dns.clone(), ..fitting.fit(at, link, adjust)? })
    })
}

/// CHECK of a link's mode.
///
/// # Errors
/// It has another.
pub fn verify_mode(at: &Attachment<'_>, is_in_it: bool, mode: impl Debug) -> Result<(), CniError> {
    if is_in_it {
        return Ok(());
    }
    let mode = format!("{mode:?}").to_lowercase();
    Err(CniError::new(code::DELEGATE, format!("interface \"{}\" is not in mode {mode} any more", at.interface)))
}

impl Found<'_> {
    /// Refuses an MTU that the link below cannot carry.
    ///
    /// # Errors
    /// Code 7, with the range.
    pub fn carries(&self, mtu: Option<u32>) -> Result<(), CniError> {
        let most = self.link.mtu;
        match mtu {
            Some(mtu) if mtu > most => Err(CniError::new(
                code::CONFIG,
                format!(
                    "mtu: {mtu} is more than master \"{}\" carries; accepted are 0 and 68 to {most}",
                    self.link.name
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Makes a link of a kind on top of this one, in the pod under its final name. `data` appends what the kind needs.
    /// One that is born with another MAC than the wanted one, as in mode passthru of macvlan, is given that after; the kernel
    /// gives it to the master as well until the link is gone.
    ///
    /// # Errors
    /// The kernel's refusal, after which there is no link; the name is taken in the pod.
    pub fn create(
        &self,
        at: &Attachment<'_>,
        kind: Kind,
        mac: Option<MacAddress>,
        mtu: Option<u32>,
        data: impl Fn(Message) -> Message,
    ) -> Result<Link, CniError> {
        let link = interface::create_in_pod(
            at,
            self.namespace,
            |link| link.mac(mac).mtu(mtu).parent(self.link.index).of_kind(kind.name, &data),
            |error| self.refused(kind, error),
        )?;
        let Some(wanted) = mac.filter(|mac| link.mac != Some(*mac)) else { return Ok(link) };
        let change = LinkChange::of(link.index, format!("set MAC {wanted} of interface \"{}\"", link.name));
        let pod = at.pod()?;
        match pod.netlink.request(change.attr(libc::IFLA_ADDRESS, wanted).request()) {
            Ok(()) => Ok(Link { mac, ..link }),
            Err(error) => Err(interface::undone(error.into(), OwnedLink::of(Side::Pod, &link).delete(pod))),
        }
    }

    fn refused(&self, kind: Kind, error: netlink::Error) -> CniError {
        let master = &self.link.name;
        match error.errno {
            Errno::EOPNOTSUPP => CniError::new(
                code::DELEGATE,
                format!("the kernel lacks {} interfaces (module {})", kind.title, kind.module),
            )
            .with_details(format!("load the module on this node: modprobe {}", kind.module)),
            Errno::EBUSY => CniError::from(error).with_details(format!(
                "master \"{master}\" is in other use: a port of a bridge or bond, or the master of another kind of interface"
            )),
            // What exists is not the name: create_in_pod has tried two.
            Errno::EEXIST => CniError::from(error).with_details(format!(
                "master \"{master}\" has such an interface, in this namespace or another's: a VLAN of it can be given to one pod at a time"
            )),
            _ => CniError::from(error).context(format!("on master \"{master}\"")),
        }
    }
}

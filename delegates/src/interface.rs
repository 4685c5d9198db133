//! What the kinds of interface do alike: reading the keys they share, the birth of a link in the pod, addresses from
//! IPAM, and taking everything back when a step fails.

use nix::errno::Errno;

use crate::cni::{CniError, CniResult, ConfigError, Dns, Interface, NetConf, ValidAttachment, View, code};
use crate::configure::{self, Settings};
use crate::delegate::{Added, Attachment, Context, OwnedLink, Side};
use crate::ipam::Ipam;
use crate::netlink::{self, Link, LinkChange, MacAddress, NewLink, Request};
use crate::netns::Namespace;
use crate::random;

/// Keys of every plugin's configuration, and those that libcni and we put there.
pub const COMMON_KEYS: &[&str] = &[
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "args",
    "runtimeConfig",
    "capabilities",
    "prevResult",
    "dns",
    "ipam",
    "deviceID",
    "pciBusID",
    "cni.dev/valid-attachments",
    "cni.dev/attachments",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
];

/// The keys of a configuration that a kind does not know, as warnings.
#[must_use]
pub fn unknown_keys(conf: &NetConf, known: &[&str]) -> Vec<String> {
    let known: Vec<&str> = known.iter().chain(COMMON_KEYS).copied().collect();
    conf.view().warn_of_unknown(&known)
}

/// Reads an MTU: absent and 0 leave it to the kernel; others are 68 (the least IPv4 allows, RFC 791) to 65535 bytes.
///
/// # Errors
/// Any other value.
pub fn mtu(view: &View<'_>) -> Result<Option<u32>, ConfigError> {
    match view.uint("mtu", 0..=65535)? {
        None | Some(0) => Ok(None),
        Some(mtu @ 68..) => Ok(u32::try_from(mtu).ok()),
        Some(mtu) => {
            Err(view.error("mtu", format!("{mtu} is less than an IPv4 packet needs; accepted are 0 and 68 to 65535")))
        }
    }
}

/// Reads a MAC address that an interface can have.
///
/// # Errors
/// Not a 6-byte address, or a group address.
pub fn mac(view: &View<'_>, key: &str) -> Result<Option<MacAddress>, ConfigError> {
    let Some(text) = view.string(key)?.filter(|text| !text.is_empty()) else { return Ok(None) };
    parse_mac(text).map(Some).map_err(|problem| view.error(key, problem))
}

/// Reads an interface name that the host's kernel accepts.
///
/// # Errors
/// Not 1 to 15 bytes, or with characters that no interface name has.
pub fn interface_name(view: &View<'_>, key: &str) -> Result<Option<String>, ConfigError> {
    let Some(name) = view.string(key)?.filter(|name| !name.is_empty()) else { return Ok(None) };
    match crate::cni::InterfaceName::parse(name) {
        Ok(name) => Ok(Some(name.as_str().to_owned())),
        Err(error) => Err(view.error(key, error.msg)),
    }
}

fn parse_mac(text: &str) -> Result<MacAddress, String> {
    let mac: MacAddress = text.parse().map_err(|e| format!("{e}"))?;
    if mac.is_unicast() { Ok(mac) } else { Err(format!("{mac} is a group address; an interface needs a unicast one")) }
}

/// The MAC asked for in `runtimeConfig.mac`, and under it the one in `args.cni.mac` when the kind reads that.
///
/// # Errors
/// Not a usable address.
pub fn requested_mac(conf: &NetConf, with_args: bool) -> Result<Option<MacAddress>, ConfigError> {
    let view = conf.view();
    if let Some(runtime) = view.object("runtimeConfig")?
        && let Some(address) = mac(&runtime, "mac")?
    {
        return Ok(Some(address));
    }
    if !with_args {
        return Ok(None);
    }
    let Some(args) = view.object("args")? else { return Ok(None) };
    let Some(cni) = args.object("cni")? else { return Ok(None) };
    mac(&cni, "mac")
}

/// The MAC in `CNI_ARGS` (`MAC=`).
///
/// # Errors
/// Code 4: not a usable address.
pub fn mac_argument(at: &Attachment<'_>) -> Result<Option<MacAddress>, CniError> {
    let Some(text) = at.args.get("MAC") else { return Ok(None) };
    parse_mac(text).map(Some).map_err(|problem| CniError::new(code::ENVIRONMENT, format!("CNI_ARGS MAC: {problem}")))
}

/// Reads the configuration's own `dns`.
///
/// # Errors
/// A field of the wrong type.
pub fn dns(conf: &NetConf) -> Result<Dns, ConfigError> {
    match (conf.view().object("dns")?, conf.get("dns")) {
        (Some(_), Some(value)) => Dns::parse(value).map_err(|e| e.under("dns")),
        _ => Ok(Dns::default()),
    }
}

/// Makes a link in the pod under its final name. `finish` turns the description into the request of its kind, sent on
/// `parent`'s socket. Older kernels (6.1) look for a clash of names in the parent's namespace instead of the pod's: when
/// the name is really free there, the link is born under a random one and renamed. `refused` words the kernel's refusal.
///
/// # Errors
/// The kernel's refusal; the name is taken in the pod.
pub fn create_in_pod(
    at: &Attachment<'_>,
    parent: &Namespace,
    finish: impl Fn(NewLink<'_>) -> Request,
    refused: impl Fn(netlink::Error) -> CniError,
) -> Result<Link, CniError> {
    let pod = at.pod()?;
    let wanted = at.interface.as_str();
    let describe = |name| {
        let link = NewLink::named(name).in_namespace(pod);
        finish(match at.group {
            Some(group) => link.group(group.get()),
            None => link,
        })
    };
    match parent.netlink.request(describe(wanted)) {
        Ok(()) => born(pod, wanted),
        Err(e) if e.errno == Errno::EEXIST && pod.netlink.link_by_name(wanted)?.is_none() => {
            let temporary = random::interface_name("mus");
            parent.netlink.request(describe(&temporary)).map_err(&refused)?;
            let link = born(pod, &temporary)?;
            let rename = LinkChange::of(link.index, format!("name interface \"{wanted}\"")).name(wanted);
            match pod.netlink.request(rename.request()) {
                Ok(()) => Ok(Link { name: wanted.to_owned(), ..link }),
                Err(error) => Err(undone(error.into(), OwnedLink::of(Side::Pod, &link).delete(pod))),
            }
        }
        Err(e) if e.errno == Errno::EEXIST => Err(taken(wanted)),
        Err(e) => Err(refused(e)),
    }
}

/// The error for a name that the pod already uses (CNI 1.1 §ADD: the plugin must fail).
#[must_use]
pub fn taken(name: &str) -> CniError {
    CniError::new(code::DELEGATE, format!("interface \"{name}\" already exists in the pod"))
        .with_details("choose another interface name, or DEL the attachment that has it")
}

fn born(pod: &Namespace, name: &str) -> Result<Link, CniError> {
    pod.netlink
        .link_by_name(name)?
        .ok_or_else(|| CniError::new(code::DELEGATE, format!("interface \"{name}\" vanished as soon as it was made")))
}

/// One attachment between the birth of its link and its result.
pub struct Fitting<'a> {
    /// Where addresses come from; `None` is layer 2 alone.
    pub ipam: Option<&'a Ipam>,
    /// The result's interfaces, complete.
    pub interfaces: Vec<Interface>,
    /// Which of them the pod's is.
    pub position: usize,
    /// How it comes up.
    pub settings: Settings,
    /// Opens the way to the pod, where one is still closed, once its interface is as it is to be.
    pub open: &'a dyn Fn() -> Result<(), CniError>,
}

impl Fitting<'_> {
    /// Asks IPAM, lets `adjust` complete the result, configures the link and waits until it can be used. Addresses are given
    /// back if a step fails.
    ///
    /// # Errors
    /// The step that failed.
    pub fn fit(
        self,
        at: &Attachment<'_>,
        link: &Link,
        adjust: impl FnOnce(&mut CniResult) -> Result<(), CniError>,
    ) -> Result<CniResult, CniError> {
        let mut result = match self.ipam {
            Some(ipam) => ipam.add(at)?,
            None => CniResult::default(),
        };
        let position = self.position;
        let finish = || {
            if self.ipam.is_some() && result.ips.is_empty() {
                return Err(CniError::new(code::DELEGATE, "ipam: no address was returned")
                    .with_details("remove \"ipam\" for a layer-2 interface, or give it an address range"));
            }
            result.interfaces = self.interfaces;
            for ip in &mut result.ips {
                ip.interface = i64::try_from(position).ok();
            }
            adjust(&mut result)?;
            let pod = at.pod()?;
            configure::configure(pod, link, &result, position, self.settings)?;
            (self.open)()?;
            configure::settle(pod, link, self.settings, at.deadline)
        };
        match finish() {
            Ok(()) => Ok(result),
            Err(error) => Err(undone(error, ipam_release(self.ipam, at))),
        }
    }
}

/// Ends an ADD: `body` does what is left, and when it fails `links` are deleted again.
///
/// # Errors
/// The body's, with code 101 when the links could not be taken back.
pub fn complete(
    at: &Attachment<'_>,
    links: Vec<OwnedLink>,
    body: impl FnOnce() -> Result<CniResult, CniError>,
) -> Result<Added, CniError> {
    match body() {
        Ok(result) => Ok(Added { result, links }),
        Err(error) => {
            let undo = delete_links(at, links.iter().rev());
            Err(undone(error, undo))
        }
    }
}

/// Deletes links by index, each on its side; those in a pod that is gone went with it. All are tried.
///
/// # Errors
/// The first that the kernel refuses to delete.
pub fn delete_links<'a>(at: &Attachment<'_>, links: impl Iterator<Item = &'a OwnedLink>) -> Result<(), CniError> {
    let delete = |link: &OwnedLink| match link.side {
        Side::Host => link.delete(at.host),
        Side::Pod => at.pod.map_or(Ok(()), |pod| link.delete(pod)),
    };
    links.map(delete).fold(Ok(()), Result::and)
}

/// A link as an interface of a result; `sandbox` is empty for one on the host.
#[must_use]
pub fn described(link: &Link, sandbox: String) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        sandbox,
        ..Interface::default()
    }
}

/// The error of a step that failed, after what it had done was taken back; code 101 when that failed too.
#[must_use]
pub fn undone(error: CniError, undo: Result<(), CniError>) -> CniError {
    match undo {
        Ok(()) => error,
        Err(undo) => {
            CniError::new(code::UNDO_INCOMPLETE, format!("{}; and it could not be undone: {}", error.msg, undo.msg))
                .with_details(error.details)
        }
    }
}

/// The pod's interface as a link to remove, if it is there and of that kind.
///
/// # Errors
/// The kernel cannot be asked.
pub fn pod_link(at: &Attachment<'_>, kind: &str) -> Result<Vec<OwnedLink>, CniError> {
    let Some(pod) = at.pod else { return Ok(Vec::new()) };
    let link = pod.netlink.link_by_name(at.interface.as_str())?;
    Ok(link.filter(|link| link.is_kind(kind)).iter().map(|link| OwnedLink::of(Side::Pod, link)).collect())
}

/// Finds the link that another is to be made on: the one named, or the one with the default route.
///
/// # Errors
/// Code 100: there is none; `details` says which key to set.
pub fn master(namespace: &Namespace, named: Option<&str>) -> Result<Link, CniError> {
    match named {
        Some(name) => namespace.netlink.link_by_name(name)?.ok_or_else(|| {
            CniError::new(code::DELEGATE, format!("master: there is no interface \"{name}\""))
                .with_details("set \"master\" to an interface that this node has")
        }),
        None => {
            let found = match namespace.netlink.default_route_interface()? {
                Some(index) => namespace.netlink.link_by_index(index)?,
                None => None,
            };
            found.ok_or_else(|| {
                CniError::new(code::DELEGATE, "master: not set, and this node has no default route to take it from")
                    .with_details("set \"master\" to the interface the network is reached by")
            })
        }
    }
}

/// STATUS of what a kind stands on: its master, as code 50 when it is missing.
///
/// # Errors
/// Code 50.
pub fn master_status(host: &Namespace, named: Option<&str>) -> Result<(), CniError> {
    master(host, named).map(drop).map_err(|e| CniError { code: code::NOT_AVAILABLE, ..e })
}

/// STATUS of the addresses.
///
/// # Errors
/// Code 50.
pub fn ipam_status(ipam: Option<&Ipam>, cx: &Context<'_>) -> Result<(), CniError> {
    ipam.map_or(Ok(()), |ipam| ipam.status(cx))
}

/// Gives the addresses back.
///
/// # Errors
/// What could not be released.
pub fn ipam_release(ipam: Option<&Ipam>, at: &Attachment<'_>) -> Result<(), CniError> {
    ipam.map_or(Ok(()), |ipam| ipam.release(at))
}

/// GC of the addresses.
///
/// # Errors
/// What could not be freed.
pub fn ipam_gc(ipam: Option<&Ipam>, cx: &Context<'_>, valid: &[ValidAttachment]) -> Result<(), CniError> {
    ipam.map_or(Ok(()), |ipam| ipam.gc(cx, valid))
}

//! What we ask of nf_tables: masquerade what leaves a pod, and drop what a pod sends under another's MAC. Both live in
//! tables of our own, `musubi` of the families inet and bridge, beside those of others, which are never touched. Each
//! ADD makes whatever part of them is missing, so what `nft flush ruleset` took away is back with the next one.
//!
//! Two pods can hold one address (two networks with the same subnet; a pod that starts while its predecessor with the
//! same fixed address still stops): each keeps its masquerading until its own DEL. A host interface belongs to one pod.

mod dispatch;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;

use crate::cni::{CniError, ConfigError, NetworkName, ValidAttachment, View, code};
use crate::delegate::Attachment;
use crate::mark::{Mark, fnv1a};
use crate::netlink::address::ip_bytes;
use crate::netlink::nftables::{BaseChain, COMMENT_MAX, Chain, Expressions, Family, JumpMap, Layer, Register, Table};
use crate::netlink::{MacAddress, Netlink, Result};
use crate::netns::Namespace;
use dispatch::{Dispatch, Entry, Key};

const MASQUERADE: Dispatch = Dispatch {
    table: Table { family: Family::Inet, name: "musubi" },
    // `NF_IP_PRI_NAT_SRC`, which `nft` calls srcnat.
    base: BaseChain { name: "postrouting", kind: "nat", hook: libc::NF_INET_POST_ROUTING, priority: 100 },
    keys: &[SOURCE_V4, SOURCE_V6],
    shares: true,
    feature: "nf_tables NAT (modules nft_chain_nat and nft_masq)",
    read: |note| masquerading(note.parse().ok()?).into(),
};

const SPOOF_CHECK: Dispatch = Dispatch {
    table: Table { family: Family::Bridge, name: "musubi" },
    // `NF_BR_PRE_ROUTING` and `NF_BR_PRI_NAT_DST_BRIDGED`: before anything else is done with a frame.
    base: BaseChain { name: "prerouting", kind: "filter", hook: 0, priority: -300 },
    keys: &[HOST_INTERFACE],
    shares: false,
    feature: "nf_tables for bridges (CONFIG_NF_TABLES_BRIDGE)",
    read: |note| {
        let (interface, mac) = note.split_once(' ')?;
        Some(dropping_spoofed(interface, mac.parse().ok()?))
    },
};

// The types are `nft`'s `TYPE_IPADDR`, `TYPE_IP6ADDR` and `TYPE_IFNAME`.
const SOURCE_V4: Key = Key {
    map: JumpMap { name: "source4", key_type: 7, key_length: 4, key_in_host_order: false },
    load: |rule| source(rule, false),
};
const SOURCE_V6: Key = Key {
    map: JumpMap { name: "source6", key_type: 8, key_length: 16, key_in_host_order: false },
    load: |rule| source(rule, true),
};
const HOST_INTERFACE: Key = Key {
    map: JumpMap { name: "port", key_type: 41, key_length: libc::IFNAMSIZ as u32, key_in_host_order: true },
    load: |rule| rule.meta(Register::FIRST, libc::NFT_META_IIFNAME),
};

/// How many bytes of each of its names an owner keeps: all of a container id as runtimes make them and of an interface.
const CONTAINER_ID_MAX: usize = 64;
const INTERFACE_MAX: usize = 20;
const NETWORK_MAX: usize = 40;
// Two slashes stand between them, a NUL behind them.
const _: () = assert!(CONTAINER_ID_MAX + INTERFACE_MAX + NETWORK_MAX + 2 < COMMENT_MAX);

/// Whose rules they are: one attachment. It names the chain they are in, for people (`nft list ruleset`) and for DEL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    name: String,
    /// The installation whose records speak of it; the chain carries it as a comment, which Linux before 5.10 does not keep.
    mark: Option<Mark>,
}

impl Owner {
    /// The attachment of a container to a network by an interface. Names too long for a comment are shortened, with a
    /// hash of the whole.
    #[must_use]
    pub fn new(container_id: &str, network: &str, interface: &str) -> Self {
        let name = format!(
            "{}/{}/{}",
            shorten(container_id, CONTAINER_ID_MAX),
            shorten(interface, INTERFACE_MAX),
            shorten(network, NETWORK_MAX)
        );
        Self { name, mark: None }
    }

    /// The same, of this installation.
    #[must_use]
    pub fn marked(self, mark: Option<Mark>) -> Self {
        Self { mark, ..self }
    }

    /// Whose the rules of this attachment are.
    #[must_use]
    pub fn of(at: &Attachment<'_>) -> Self {
        Self::new(at.container_id.as_str(), at.network.as_str(), at.interface.as_str()).marked(at.mark)
    }

    /// Whether the attachment is to this network.
    #[must_use]
    pub fn is_in_network(&self, network: &str) -> bool {
        self.name.splitn(3, '/').nth(2) == Some(&shorten(network, NETWORK_MAX))
    }

    /// Whether it is an attachment of this container by this interface, to whichever network.
    #[must_use]
    pub fn is_by(&self, container_id: &str, interface: &str) -> bool {
        let mut names = self.name.splitn(3, '/');
        names.next() == Some(&shorten(container_id, CONTAINER_ID_MAX))
            && names.next() == Some(&shorten(interface, INTERFACE_MAX))
    }

    /// Whether it is an attachment of this container.
    #[must_use]
    pub fn is_of_container(&self, container_id: &str) -> bool {
        self.container_id() == shorten(container_id, CONTAINER_ID_MAX)
    }

    /// The container's id, or what is kept of a very long one.
    #[must_use]
    pub fn container_id(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }

    fn chain(&self) -> String {
        format!("pod/{}", self.name)
    }

    fn of_chain(chain: &Chain) -> Option<Self> {
        let name = chain.name.strip_prefix("pod/")?;
        let mark = Mark::of_comment(&chain.comment);
        (name.splitn(3, '/').count() == 3).then(|| Self { name: name.to_owned(), mark })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Masquerades what leaves for elsewhere from each of these addresses: neither to its own subnet nor to multicast
/// (`ipMasq` of the CNI reference plugins). Does nothing where that is so already; what the owner had besides goes.
///
/// # Errors
/// The kernel's refusal; it names what the kernel lacks.
pub fn masquerade(nft: &Netlink, owner: &Owner, addresses: &[IpNet]) -> Result<()> {
    MASQUERADE.attach(nft, owner, &entries(addresses))
}

/// Ends masquerading for this owner; nothing to end is no error.
///
/// # Errors
/// The kernel's refusal.
pub fn unmasquerade(nft: &Netlink, owner: &Owner) -> Result<()> {
    MASQUERADE.detach(nft, owner)
}

/// Whether each of these addresses is masqueraded for this owner.
///
/// # Errors
/// The kernel's refusal.
pub fn is_masqueraded(nft: &Netlink, owner: &Owner, addresses: &[IpNet]) -> Result<bool> {
    MASQUERADE.is_attached(nft, owner, &entries(addresses))
}

/// All owners for whom something is masqueraded.
///
/// # Errors
/// The kernel's refusal.
pub fn masqueraded_owners(nft: &Netlink) -> Result<Vec<Owner>> {
    MASQUERADE.owners(nft)
}

/// Drops every frame from a pod's host-side interface whose source is not the pod's MAC. Whatever was said of that
/// interface, or for that owner, before holds no longer.
///
/// # Errors
/// The kernel's refusal; it names what the kernel lacks.
pub fn check_spoofing(nft: &Netlink, owner: &Owner, host_interface: &str, mac: MacAddress) -> Result<()> {
    SPOOF_CHECK.attach(nft, owner, &[dropping_spoofed(host_interface, mac)])
}

/// Ends the spoof check for this owner; nothing to end is no error.
///
/// # Errors
/// The kernel's refusal.
pub fn uncheck_spoofing(nft: &Netlink, owner: &Owner) -> Result<()> {
    SPOOF_CHECK.detach(nft, owner)
}

/// Whether frames from the interface are checked, for this owner, to come from this MAC alone.
///
/// # Errors
/// The kernel's refusal.
pub fn is_spoof_checked(nft: &Netlink, owner: &Owner, host_interface: &str, mac: MacAddress) -> Result<bool> {
    SPOOF_CHECK.is_attached(nft, owner, &[dropping_spoofed(host_interface, mac)])
}

/// All owners for whom spoofing is checked.
///
/// # Errors
/// The kernel's refusal.
pub fn spoof_checked_owners(nft: &Netlink) -> Result<Vec<Owner>> {
    SPOOF_CHECK.owners(nft)
}

/// Takes away whatever the owner has; what is gone already, or was never there, is no error.
///
/// # Errors
/// Code 100: the kernel's refusal; both are tried.
pub fn forget(host: &Namespace, owner: &Owner) -> std::result::Result<(), CniError> {
    let Some(nft) = open_if_known(host)? else { return Ok(()) };
    Ok(unmasquerade(nft, owner).and(uncheck_spoofing(nft, owner))?)
}

/// Takes away what is still there for attachments to this network other than the valid ones. What another installation, or a
/// delegate called on its own, has there is theirs.
///
/// # Errors
/// Code 100: the kernel's refusal.
pub fn gc(
    host: &Namespace,
    network: &NetworkName,
    mark: Option<Mark>,
    valid: &[ValidAttachment],
) -> std::result::Result<(), CniError> {
    let Some(nft) = open_if_known(host)? else { return Ok(()) };
    let network = network.as_str();
    let valid: BTreeSet<Owner> =
        valid.iter().map(|v| Owner::new(&v.container_id, network, &v.interface).marked(mark)).collect();
    let is_stale = |owner: &Owner| owner.is_in_network(network) && owner.mark == mark && !valid.contains(owner);
    for owner in masqueraded_owners(nft)?.iter().filter(|owner| is_stale(owner)) {
        unmasquerade(nft, owner)?;
    }
    for owner in spoof_checked_owners(nft)?.iter().filter(|owner| is_stale(owner)) {
        uncheck_spoofing(nft, owner)?;
    }
    Ok(())
}

/// All owners that attachments on record by this installation have, or once had.
///
/// # Errors
/// Code 100: the kernel's refusal.
pub fn owners_marked(host: &Namespace, mark: Mark) -> std::result::Result<BTreeSet<Owner>, CniError> {
    let Some(nft) = open_if_known(host)? else { return Ok(BTreeSet::new()) };
    let owners = masqueraded_owners(nft)?.into_iter().chain(spoof_checked_owners(nft)?);
    Ok(owners.filter(|owner| owner.mark == Some(mark)).collect())
}

/// Reads `ipMasqBackend`, which may ask for nf_tables alone: we write no iptables rules.
///
/// # Errors
/// Another backend: code 2 for `iptables`, which the reference plugin serves, code 7 for anything else.
pub fn parse_backend(view: &View<'_>) -> std::result::Result<(), ConfigError> {
    match view.text("ipMasqBackend")? {
        None | Some("nftables") => Ok(()),
        Some("iptables") => Err(ConfigError::unsupported(
            view.path("ipMasqBackend"),
            "\"iptables\" is served by the bridge and ptp plugins alone; \"nftables\" is accepted here",
        )),
        Some(_) => Err(view.error("ipMasqBackend", "must be \"nftables\" or \"iptables\"")),
    }
}

/// CHECK of an attachment's masquerading.
///
/// # Errors
/// Code 100: some of it is gone.
pub fn verify_masquerade(at: &Attachment<'_>, addresses: &[IpNet]) -> std::result::Result<(), CniError> {
    let kept = is_masqueraded(at.host.netfilter()?, &Owner::of(at), addresses)?;
    if kept { Ok(()) } else { Err(lost(at, "masquerade")) }
}

/// CHECK of an attachment's spoof check.
///
/// # Errors
/// Code 100: it is gone, or for another interface or MAC.
pub fn verify_spoof_check(
    at: &Attachment<'_>,
    host_interface: &str,
    mac: MacAddress,
) -> std::result::Result<(), CniError> {
    let kept = is_spoof_checked(at.host.netfilter()?, &Owner::of(at), host_interface, mac)?;
    if kept { Ok(()) } else { Err(lost(at, "spoof check")) }
}

fn lost(at: &Attachment<'_>, what: &str) -> CniError {
    let problem = format!("the {what} rules of interface \"{}\" are gone from nf_tables", at.interface);
    CniError::new(code::DELEGATE, problem)
        .with_details("another program took them away, for example by flushing the ruleset; a new ADD puts them back")
}

/// A netfilter socket; `None` on a kernel that has no netfilter, and therefore no rules either.
fn open_if_known(host: &Namespace) -> Result<Option<&Netlink>> {
    match host.netfilter() {
        Err(e) if e.errno == Errno::EPROTONOSUPPORT => Ok(None),
        opened => opened.map(Some),
    }
}

fn entries(addresses: &[IpNet]) -> Vec<Entry> {
    let distinct: BTreeSet<IpNet> = addresses.iter().copied().collect();
    distinct.into_iter().map(masquerading).collect()
}

/// `ip saddr ADDRESS ip daddr != SUBNET ip daddr != 224.0.0.0/4 masquerade`
fn masquerading(address: IpNet) -> Entry {
    let key = if address.addr().is_ipv4() { &SOURCE_V4 } else { &SOURCE_V6 };
    let own = ip_bytes(address.addr());
    let destination = if address.addr().is_ipv4() { 16 } else { 24 };
    let rule = move |rule| {
        let rule = (key.load)(rule).equals(Register::FIRST, &ip_bytes(address.addr()));
        let elsewhere = [address.trunc(), multicast(address)].into_iter().fold(rule, |rule, net| {
            let (mask, network) = (ip_bytes(net.netmask()), ip_bytes(net.network()));
            rule.payload(Register::FIRST, Layer::Network, destination, mask.len())
                .mask(Register::FIRST, &mask)
                .differs(Register::FIRST, &network)
        });
        elsewhere.masquerade()
    };
    Entry { note: address.to_string(), key, value: own, rule: Box::new(rule) }
}

/// Loads the source address of packets of one family.
fn source(rule: Expressions, v6: bool) -> Expressions {
    let (family, offset, length) = if v6 { (libc::NFPROTO_IPV6, 8, 16) } else { (libc::NFPROTO_IPV4, 12, 4) };
    rule.meta(Register::FIRST, libc::NFT_META_NFPROTO).equals(Register::FIRST, &[family as u8]).payload(
        Register::FIRST,
        Layer::Network,
        offset,
        length,
    )
}

fn multicast(address: IpNet) -> IpNet {
    let (first, length): (IpAddr, u8) = match address {
        IpNet::V4(_) => ([224, 0, 0, 0].into(), 4),
        IpNet::V6(_) => ([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
    };
    IpNet::new_assert(first, length)
}

/// `iifname INTERFACE ether saddr != MAC drop`
fn dropping_spoofed(host_interface: &str, mac: MacAddress) -> Entry {
    let mut name = host_interface.as_bytes().to_vec();
    name.resize(libc::IFNAMSIZ, 0);
    let value = name.clone();
    let rule = move |rule| {
        (HOST_INTERFACE.load)(rule)
            .equals(Register::FIRST, &name)
            .payload(Register::FIRST, Layer::Link, 6, 6)
            .differs(Register::FIRST, mac.as_ref())
            .drop()
    };
    Entry { note: format!("{host_interface} {mac}"), key: &HOST_INTERFACE, value, rule: Box::new(rule) }
}

/// A name of at most `length` bytes: itself, or its beginning and a hash (FNV-1a) of all of it. `~` is in no CNI name.
fn shorten(name: &str, length: usize) -> String {
    if name.len() <= length {
        return name.to_owned();
    }
    let hash = fnv1a(name.bytes());
    let beginning: String = name
        .chars()
        .scan(0, |size, c| {
            *size += c.len_utf8();
            (*size + 17 <= length).then_some(c)
        })
        .collect();
    format!("{beginning}~{hash:016x}")
}

#[cfg(test)]
mod tests;

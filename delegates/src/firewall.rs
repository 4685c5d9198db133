//! What we ask of nf_tables: masquerade what leaves a pod, and drop what a pod sends under another's MAC. Both live in
//! tables of our own, `musubi` of the families inet and bridge, beside those of others, which are never touched. Each
//! ADD makes whatever part of them is missing, so what `nft flush ruleset` took away is back with the next one.
//!
//! Masquerading is a rule for each address of each owner, not an element of a set: two pods can hold one address (two
//! networks with the same subnet; a pod that starts while its predecessor with the same fixed address still stops), a
//! set holds a key once, and then one pod's DEL would end the other's masquerading. Only the first packet of a
//! connection sees these rules. The spoof check sees every frame and is two set lookups however many pods there are; a
//! host interface belongs to one pod alone, so a key has one owner.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;

use crate::cni::{CniError, ConfigError, NetworkName, ValidAttachment, View};
use crate::delegate::Attachment;
use crate::netlink::address::ip_bytes;
use crate::netlink::nftables::{
    BaseChain, COMMENT_MAX, Element, Expression, Expressions, Family, Layer, Register, Rule, Set, Table, Transaction,
};
use crate::netlink::{MacAddress, Netlink, Result};

const INET: Table<'static> = Table { family: Family::Inet, name: "musubi" };
const BRIDGE: Table<'static> = Table { family: Family::Bridge, name: "musubi" };

/// Where source addresses are translated (`NF_IP_PRI_NAT_SRC`, `srcnat`).
const POSTROUTING: BaseChain<'static> =
    BaseChain { name: "postrouting", kind: "nat", hook: libc::NF_INET_POST_ROUTING, priority: 100 };
/// As early as a bridge's frames are seen (`NF_BR_PRI_NAT_DST_BRIDGED`, `dstnat`); `NF_BR_PRE_ROUTING` is 0.
const PREROUTING: BaseChain<'static> = BaseChain { name: "prerouting", kind: "filter", hook: 0, priority: -300 };

/// Interface names are keys of 16 bytes, Ethernet addresses of 6, padded to 8 where they follow something. The types are
/// `nft`'s (`TYPE_IFNAME`, `TYPE_ETHERADDR`; a concatenation shifts by 6 bits), for its listing alone.
const NAME_LENGTH: usize = libc::IFNAMSIZ;
const IFNAME: u32 = 41;
const ETHER_ADDR: u32 = 9;
/// The host interfaces that are checked.
const CHECKED: Set<'static> = Set { name: "checked", key_type: IFNAME, key_length: NAME_LENGTH as u32 };
/// Which source address is a checked interface's own.
const OWN_MAC: Set<'static> =
    Set { name: "own_mac", key_type: IFNAME << 6 | ETHER_ADDR, key_length: NAME_LENGTH as u32 + 8 };

/// What a kernel without masquerading is told to lack.
const NAT: &str = "nf_tables NAT (modules nft_chain_nat and nft_masq)";
/// What a kernel without bridge filtering is told to lack.
const BRIDGE_FILTER: &str = "nf_tables for bridges (CONFIG_NF_TABLES_BRIDGE)";
/// A change that another program's overtakes is worked out anew this often before it is an error.
const TRIES: usize = 10;

/// How many bytes of each of its names an owner keeps: all of a container id as runtimes make them and of an interface.
const CONTAINER_ID_MAX: usize = 64;
const INTERFACE_MAX: usize = 20;
const NETWORK_MAX: usize = 40;
// Two spaces stand between them, a NUL behind them.
const _: () = assert!(CONTAINER_ID_MAX + INTERFACE_MAX + NETWORK_MAX + 2 < COMMENT_MAX);

/// Whose a rule is: one attachment. It stands in the rule's comment, for people (`nft list ruleset`) and for DEL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(String);

impl Owner {
    /// The attachment of a container to a network by an interface. Names too long for a comment are shortened, with a
    /// hash of the whole.
    #[must_use]
    pub fn new(container_id: &str, network: &str, interface: &str) -> Self {
        Self(format!(
            "{} {} {}",
            shorten(container_id, CONTAINER_ID_MAX),
            shorten(interface, INTERFACE_MAX),
            shorten(network, NETWORK_MAX)
        ))
    }

    /// Whose the rules of this attachment are.
    #[must_use]
    pub fn of(at: &Attachment<'_>) -> Self {
        Self::new(at.container_id.as_str(), at.network.as_str(), at.interface.as_str())
    }

    /// Whether the attachment is to this network.
    #[must_use]
    pub fn is_in_network(&self, network: &str) -> bool {
        self.0.splitn(3, ' ').nth(2) == Some(&shorten(network, NETWORK_MAX))
    }

    fn read(comment: &str) -> Option<Self> {
        (comment.splitn(3, ' ').count() == 3).then(|| Self(comment.to_owned()))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Masquerades what leaves for elsewhere from each of these addresses: neither to its own subnet nor to multicast
/// (`ipMasq` of the CNI reference plugins). An address that is masqueraded for this owner already is left alone; one
/// that no longer is his goes.
///
/// # Errors
/// The kernel's refusal; it names what the kernel lacks.
pub fn masquerade(nft: &Netlink, owner: &Owner, addresses: &[IpNet]) -> Result<()> {
    retry(|| {
        let (kept, stale): (Vec<Rule>, Vec<Rule>) = rules_of(nft, owner)?
            .into_iter()
            .partition(|rule| addresses.iter().any(|address| does_masquerade(rule, *address)));
        let missing: BTreeSet<IpNet> = addresses
            .iter()
            .copied()
            .filter(|address| !kept.iter().any(|rule| does_masquerade(rule, *address)))
            .collect();
        if missing.is_empty() && stale.is_empty() {
            return Ok(());
        }
        let setup = Transaction::default().table(INET).chain(INET, POSTROUTING, NAT);
        let added = missing.into_iter().fold(setup, |changes, address| {
            changes.rule(INET, POSTROUTING.name, |rule| masquerading(rule, address), &owner.0, NAT)
        });
        nft.transaction(without_rules(added, &stale))
    })
}

/// Ends masquerading for this owner; nothing to end is no error.
///
/// # Errors
/// The kernel's refusal.
pub fn unmasquerade(nft: &Netlink, owner: &Owner) -> Result<()> {
    retry(|| nft.transaction(without_rules(Transaction::default(), &rules_of(nft, owner)?)))
}

/// Whether each of these addresses is masqueraded for this owner.
///
/// # Errors
/// The kernel's refusal.
pub fn is_masqueraded(nft: &Netlink, owner: &Owner, addresses: &[IpNet]) -> Result<bool> {
    let rules = rules_of(nft, owner)?;
    Ok(addresses.iter().all(|address| rules.iter().any(|rule| does_masquerade(rule, *address))))
}

/// All owners for whom something is masqueraded.
///
/// # Errors
/// The kernel's refusal.
pub fn masqueraded_owners(nft: &Netlink) -> Result<Vec<Owner>> {
    let rules = nft.rules(INET, POSTROUTING.name, |_| true)?;
    Ok(owners(rules.iter().map(|rule| rule.comment.as_str())))
}

/// Drops every frame from a pod's host-side interface whose source is not the pod's MAC. Whatever was said of that
/// interface, or for that owner, before is forgotten.
///
/// # Errors
/// The kernel's refusal; it names what the kernel lacks.
pub fn check_spoofing(nft: &Netlink, owner: &Owner, host_interface: &str, mac: MacAddress) -> Result<()> {
    let (name, pair) = spoof_keys(host_interface, mac);
    retry(|| {
        let about = |element: &Element| element.comment == owner.0 || element.key.starts_with(&name);
        let setup = Transaction::default()
            .table(BRIDGE)
            .set(BRIDGE, CHECKED)
            .set(BRIDGE, OWN_MAC)
            .chain(BRIDGE, PREROUTING, BRIDGE_FILTER)
            // Made anew each time, in the same instant: cheaper than looking whether it is still as we left it.
            .flush(BRIDGE, PREROUTING.name)
            .rule(BRIDGE, PREROUTING.name, dropping_spoofed, "", BRIDGE_FILTER);
        let cleared = without_elements(nft, setup, about)?;
        nft.transaction(cleared.element(BRIDGE, OWN_MAC, &pair, &owner.0).element(BRIDGE, CHECKED, &name, &owner.0))
    })
}

/// Ends the spoof check for this owner; nothing to end is no error.
///
/// # Errors
/// The kernel's refusal.
pub fn uncheck_spoofing(nft: &Netlink, owner: &Owner) -> Result<()> {
    retry(|| nft.transaction(without_elements(nft, Transaction::default(), |element| element.comment == owner.0)?))
}

/// Whether frames from the interface are checked, for this owner, to come from this MAC alone.
///
/// # Errors
/// The kernel's refusal.
pub fn is_spoof_checked(nft: &Netlink, owner: &Owner, host_interface: &str, mac: MacAddress) -> Result<bool> {
    let (name, pair) = spoof_keys(host_interface, mac);
    let drops = nft
        .rules(BRIDGE, PREROUTING.name, |_| true)?
        .iter()
        .any(|rule| rule.expressions == Expressions::describe(dropping_spoofed));
    let checked = nft.elements(BRIDGE, CHECKED.name)?;
    let allowed: Vec<Element> =
        nft.elements(BRIDGE, OWN_MAC.name)?.into_iter().filter(|element| element.key.starts_with(&name)).collect();
    Ok(drops
        && checked.iter().any(|element| element.key == name && element.comment == owner.0)
        && matches!(&allowed[..], [element] if element.key == pair))
}

/// All owners for whom spoofing is checked.
///
/// # Errors
/// The kernel's refusal.
pub fn spoof_checked_owners(nft: &Netlink) -> Result<Vec<Owner>> {
    let mut elements = nft.elements(BRIDGE, CHECKED.name)?;
    elements.extend(nft.elements(BRIDGE, OWN_MAC.name)?);
    Ok(owners(elements.iter().map(|element| element.comment.as_str())))
}

/// Takes away what is still there for attachments to this network other than the valid ones.
///
/// # Errors
/// Code 100: the kernel's refusal.
pub fn gc(network: &NetworkName, valid: &[ValidAttachment]) -> std::result::Result<(), CniError> {
    let nft = Netlink::netfilter()?;
    let valid: BTreeSet<Owner> =
        valid.iter().map(|v| Owner::new(&v.container_id, network.as_str(), &v.interface)).collect();
    let is_stale = |owner: &Owner| owner.is_in_network(network.as_str()) && !valid.contains(owner);
    for owner in masqueraded_owners(&nft)?.iter().filter(|owner| is_stale(owner)) {
        unmasquerade(&nft, owner)?;
    }
    for owner in spoof_checked_owners(&nft)?.iter().filter(|owner| is_stale(owner)) {
        uncheck_spoofing(&nft, owner)?;
    }
    Ok(())
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

fn rules_of(nft: &Netlink, owner: &Owner) -> Result<Vec<Rule>> {
    nft.rules(INET, POSTROUTING.name, |comment| comment == owner.0)
}

fn without_rules(changes: Transaction, rules: &[Rule]) -> Transaction {
    rules.iter().fold(changes, |changes, rule| changes.delete_rule(INET, POSTROUTING.name, rule.handle))
}

fn does_masquerade(rule: &Rule, address: IpNet) -> bool {
    let expected: Vec<Expression> = Expressions::describe(|rule| masquerading(rule, address));
    rule.expressions == expected
}

/// `ip saddr ADDRESS ip daddr != SUBNET ip daddr != 224.0.0.0/4 masquerade`
fn masquerading(rule: Expressions, address: IpNet) -> Expressions {
    let family = [if address.addr().is_ipv4() { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 } as u8];
    let own = ip_bytes(address.addr());
    let (source, destination) = if address.addr().is_ipv4() { (12, 16) } else { (8, 24) };
    let rule = rule
        .meta(Register::FIRST, libc::NFT_META_NFPROTO)
        .equals(Register::FIRST, &family)
        .payload(Register::FIRST, Layer::Network, source, own.len())
        .equals(Register::FIRST, &own);
    [address.trunc(), multicast(address)]
        .into_iter()
        .fold(rule, |rule, net| {
            rule.payload(Register::FIRST, Layer::Network, destination, own.len())
                .mask(Register::FIRST, &ip_bytes(net.netmask()))
                .differs(Register::FIRST, &ip_bytes(net.network()))
        })
        .masquerade()
}

fn multicast(address: IpNet) -> IpNet {
    let (first, length): (IpAddr, u8) = match address {
        IpNet::V4(_) => ([224, 0, 0, 0].into(), 4),
        IpNet::V6(_) => ([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
    };
    IpNet::new_assert(first, length)
}

/// `iifname @checked iifname . ether saddr != @own_mac drop`
fn dropping_spoofed(rule: Expressions) -> Expressions {
    rule.meta(Register::FIRST, libc::NFT_META_IIFNAME)
        .within(Register::FIRST, CHECKED)
        .payload(Register::SECOND, Layer::Link, 6, 6)
        .outside(Register::FIRST, OWN_MAC)
        .drop()
}

/// The keys of an interface in [`CHECKED`] and, with its MAC, in [`OWN_MAC`].
fn spoof_keys(host_interface: &str, mac: MacAddress) -> (Vec<u8>, Vec<u8>) {
    let mut name = host_interface.as_bytes().to_vec();
    name.resize(NAME_LENGTH, 0);
    let mut pair = name.clone();
    pair.extend_from_slice(mac.as_ref());
    pair.resize(NAME_LENGTH + 8, 0);
    (name, pair)
}

/// Adds to the changes that the elements of both sets that are `about` something go.
fn without_elements(nft: &Netlink, changes: Transaction, about: impl Fn(&Element) -> bool) -> Result<Transaction> {
    [CHECKED, OWN_MAC].into_iter().try_fold(changes, |changes, set| {
        let elements = nft.elements(BRIDGE, set.name)?;
        Ok(elements
            .iter()
            .filter(|element| about(element))
            .fold(changes, |changes, element| changes.delete_element(BRIDGE, set, &element.key)))
    })
}

fn owners<'a>(comments: impl Iterator<Item = &'a str>) -> Vec<Owner> {
    comments.filter_map(Owner::read).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Reading and changing are two steps: what was read may be gone (`ENOENT`) or still changing (`EBUSY`) by then.
fn retry(change: impl Fn() -> Result<()>) -> Result<()> {
    let mut outcome = change();
    for _ in 1..TRIES {
        match &outcome {
            Err(e) if e.message.is_none() && matches!(e.errno, Errno::ENOENT | Errno::EBUSY | Errno::EAGAIN) => {
                outcome = change();
            }
            _ => break,
        }
    }
    outcome
}

/// A name of at most `length` bytes: itself, or its beginning and a hash (FNV-1a) of all of it. `~` is in no CNI name.
fn shorten(name: &str, length: usize) -> String {
    if name.len() <= length {
        return name.to_owned();
    }
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
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

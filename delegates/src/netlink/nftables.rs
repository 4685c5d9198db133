//! nf_tables by nfnetlink (`linux/netfilter/nf_tables.h`): tables, chains, rules and sets, changed in transactions that
//! the kernel applies whole or not at all, and read back by dumps. What the rules are for is `firewall`'s business.
//! All numbers are in network order here.

mod expressions;

use nix::errno::Errno;

use super::message::{Attributes, Message, text};
use super::socket::{Error, Netlink, Request, Result};
pub use expressions::{Expression, Expressions, Layer, Register};

const LIST_ELEM: u16 = 1;

const TABLE_NAME: u16 = 1;

const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const CHAIN_USERDATA: u16 = 12;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const POLICY_ACCEPT: u32 = 1;

const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;

const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_ID: u16 = 10;
const SET_USERDATA: u16 = 13;

const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;

const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// The longest comment `nft` shows, its closing NUL included (`NFTNL_UDATA_COMMENT_MAXLEN`).
pub const COMMENT_MAX: usize = 128;
/// `NFTNL_UDATA_RULE_COMMENT` and `NFTNL_UDATA_CHAIN_COMMENT`: how `nft` marks a comment in user data.
const COMMENT: u8 = 0;
/// `NFTNL_UDATA_SET_KEYBYTEORDER` and `BYTEORDER_HOST_ENDIAN`: how `nft` marks the order of a key's bytes.
const KEY_BYTE_ORDER: u8 = 0;
const HOST_ORDER: u32 = 1;

/// A table's family: which packets its chains can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// Frames that pass a bridge.
    Bridge,
}

impl Family {
    fn number(self) -> u8 {
        (match self {
            Self::Inet => libc::NFPROTO_INET,
            Self::Bridge => libc::NFPROTO_BRIDGE,
        }) as u8
    }

    fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        }
    }
}

/// A table, by which everything else is found.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// Its family.
    pub family: Family,
    /// Its name, unique in the family.
    pub name: &'a str,
}

/// A chain that the kernel calls at a hook.
#[derive(Debug, Clone, Copy)]
pub struct BaseChain<'a> {
    /// Its name, unique in the table.
    pub name: &'a str,
    /// `filter` or `nat`.
    pub kind: &'a str,
    /// `NF_INET_…` or `NF_BR_…`.
    pub hook: i32,
    /// Lower runs earlier.
    pub priority: i32,
}

/// A map from keys to the chains that packets jump to.
#[derive(Debug, Clone, Copy)]
pub struct JumpMap<'a> {
    /// Its name, unique in the table.
    pub name: &'a str,
    /// `nft`'s number for the type of the key; the kernel only hands it back.
    pub key_type: u32,
    /// Size of a key in bytes.
    pub key_length: u32,
    /// Whether the key's bytes are in the host's order, as `nft` holds interface names to be; for its listing alone.
    pub key_in_host_order: bool,
}

/// A chain as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name, unique in the table.
    pub name: String,
    /// Its comment; empty when it has none.
    pub comment: String,
}

/// A rule as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// By which it is deleted.
    pub handle: u64,
    /// Its comment; empty when it has none.
    pub comment: String,
    /// What it does.
    pub expressions: Vec<Expression>,
}

/// An element of a [`JumpMap`] as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jump {
    /// The key.
    pub key: Vec<u8>,
    /// The chain.
    pub chain: String,
}

/// Changes that the kernel makes all at once or not at all.
#[derive(Debug, Default)]
pub struct Transaction {
    requests: Vec<Request>,
    /// For each request, what the kernel lacks when it does not know what is asked for.
    features: Vec<&'static str>,
}

impl Transaction {
    /// Makes the table unless it is there.
    #[must_use]
    pub fn table(self, table: Table<'_>) -> Self {
        let feature = match table.family {
            Family::Inet => "nf_tables for IPv4 and IPv6 (CONFIG_NF_TABLES_INET)",
            Family::Bridge => "nf_tables for bridges (CONFIG_NF_TABLES_BRIDGE)",
        };
        let message = table.message(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE).text(TABLE_NAME, table.name);
        self.and(format!("create {table}"), message, feature)
    }

    /// Deletes a table with all that is in it, as somebody else may.
    #[cfg(test)]
    pub(crate) fn delete_table(self, table: Table<'_>) -> Self {
        let message = table.message(libc::NFT_MSG_DELTABLE, 0).text(TABLE_NAME, table.name);
        self.and(format!("delete {table}"), message, "")
    }

    /// Makes the chain unless it is there. `feature` is what the kernel lacks when it knows no such chain.
    #[must_use]
    pub fn chain(self, table: Table<'_>, chain: BaseChain<'_>, feature: &'static str) -> Self {
        let message = table
            .message(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE)
            .text(CHAIN_TABLE, table.name)
            .text(CHAIN_NAME, chain.name)
            .nest(CHAIN_HOOK, |hook| {
                hook.be32(HOOK_NUMBER, chain.hook as u32).be32(HOOK_PRIORITY, chain.priority as u32)
            })
            .be32(CHAIN_POLICY, POLICY_ACCEPT)
            .text(CHAIN_TYPE, chain.kind);
        self.and(format!("create chain {} in {table}", chain.name), message, feature)
    }

    /// Makes a chain that other chains jump to, unless it is there. Kernels before 5.10 ignore the comment.
    #[must_use]
    pub fn inner_chain(self, table: Table<'_>, name: &str, comment: &str) -> Self {
        let message = table
            .message(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE)
            .text(CHAIN_TABLE, table.name)
            .text(CHAIN_NAME, name)
            .attr_if(CHAIN_USERDATA, write_comment(comment));
        self.and(format!("create chain {name} in {table}"), message, "")
    }

    /// Deletes a chain with its rules. `EBUSY`: something still jumps to it.
    #[must_use]
    pub fn delete_chain(self, table: Table<'_>, name: &str) -> Self {
        let message = table.message(libc::NFT_MSG_DELCHAIN, 0).text(CHAIN_TABLE, table.name).text(CHAIN_NAME, name);
        self.and(format!("delete chain {name} of {table}"), message, "")
    }

    /// Empties a chain.
    #[must_use]
    pub fn flush(self, table: Table<'_>, chain: &str) -> Self {
        let message = table.message(libc::NFT_MSG_DELRULE, 0).text(RULE_TABLE, table.name).text(RULE_CHAIN, chain);
        self.and(format!("empty chain {chain} of {table}"), message, "")
    }

    /// Appends a rule. `feature` is what the kernel lacks when it does not know an expression.
    #[must_use]
    pub fn rule(
        self,
        table: Table<'_>,
        chain: &str,
        expressions: impl FnOnce(Expressions) -> Expressions,
        comment: &str,
        feature: &'static str,
    ) -> Self {
        let message = table
            .message(libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND)
            .text(RULE_TABLE, table.name)
            .text(RULE_CHAIN, chain)
            .nest(RULE_EXPRESSIONS, |list| Expressions::fill(list, expressions))
            .attr_if(RULE_USERDATA, write_comment(comment));
        self.and(format!("add a rule to chain {chain} of {table}"), message, feature)
    }

    /// Deletes a rule.
    #[must_use]
    pub fn delete_rule(self, table: Table<'_>, chain: &str, handle: u64) -> Self {
        let message = table
            .message(libc::NFT_MSG_DELRULE, 0)
            .text(RULE_TABLE, table.name)
            .text(RULE_CHAIN, chain)
            .attr(RULE_HANDLE, handle.to_be_bytes());
        self.and(format!("delete rule {handle} of chain {chain} of {table}"), message, "")
    }

    /// Makes the map unless it is there.
    #[must_use]
    pub fn map(self, table: Table<'_>, map: JumpMap<'_>) -> Self {
        // Any number will do that no other set of this transaction has.
        let id = self.requests.len() as u32 + 1;
        let order = [&[KEY_BYTE_ORDER, 4][..], &HOST_ORDER.to_ne_bytes()].concat();
        let message = table
            .message(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE)
            .text(SET_TABLE, table.name)
            .text(SET_NAME, map.name)
            .be32(SET_FLAGS, libc::NFT_SET_MAP as u32)
            .be32(SET_KEY_TYPE, map.key_type)
            .be32(SET_KEY_LENGTH, map.key_length)
            .be32(SET_DATA_TYPE, libc::NFT_DATA_VERDICT)
            .be32(SET_ID, id)
            .attr_if(SET_USERDATA, map.key_in_host_order.then_some(order));
        self.and(format!("create map {} in {table}", map.name), message, "nf_tables maps (CONFIG_NF_TABLES)")
    }

    /// Adds to a map that packets of this key jump to this chain. `EEXIST`: the map knows the key.
    #[must_use]
    pub fn jump(self, table: Table<'_>, map: JumpMap<'_>, key: &[u8], chain: &str) -> Self {
        let message = table.message(libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        let message = table.element(message, map, key, |element| {
            element.nest(ELEMENT_DATA, |data| data.nest(DATA_VERDICT, |verdict| expressions::jump(verdict, chain)))
        });
        self.and(format!("add chain {chain} to map {} of {table}", map.name), message, "")
    }

    /// Deletes a key from a map.
    #[must_use]
    pub fn delete_jump(self, table: Table<'_>, map: JumpMap<'_>, key: &[u8]) -> Self {
        let message = table.element(table.message(libc::NFT_MSG_DELSETELEM, 0), map, key, |element| element);
        self.and(format!("delete a key of map {} of {table}", map.name), message, "")
    }

    fn and(mut self, operation: String, message: Message, feature: &'static str) -> Self {
        self.requests.push(Request::new(operation, message));
        self.features.push(feature);
        self
    }
}

impl Table<'_> {
    fn message(self, kind: i32, flags: i32) -> Message {
        let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
        Message::new(kind, flags).fixed(&[self.family.number(), 0, 0, 0])
    }

    fn element(self, message: Message, map: JumpMap<'_>, key: &[u8], more: impl FnOnce(Message) -> Message) -> Message {
        message.text(ELEMENTS_TABLE, self.name).text(ELEMENTS_SET, map.name).nest(ELEMENTS, |list| {
            list.nest(LIST_ELEM, |element| more(element.nest(ELEMENT_KEY, |data| data.attr(DATA_VALUE, key))))
        })
    }
}

impl std::fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "nf_tables table {} {}", self.family.name(), self.name)
    }
}

impl Netlink {
    /// Makes all changes of a transaction, or none.
    ///
    /// # Errors
    /// The first change that the kernel refuses; it says which feature the kernel lacks where that is the cause.
    pub fn transaction(&self, transaction: Transaction) -> Result<()> {
        let Transaction { requests, features } = transaction;
        let outcomes = self.batch(boundary(libc::NFNL_MSG_BATCH_BEGIN), requests, boundary(libc::NFNL_MSG_BATCH_END));
        let refused = outcomes
            .map_err(|error| name_lack(error, "nf_tables (CONFIG_NF_TABLES)"))?
            .into_iter()
            .zip(features)
            .find_map(|(outcome, feature)| Some(name_lack(outcome?, feature)));
        refused.map_or(Ok(()), Err)
    }

    /// The rules of a chain, in order; none when there is no such chain.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn rules(&self, table: Table<'_>, chain: &str) -> Result<Vec<Rule>> {
        self.rules_with(table, chain, |_| true)
    }

    /// The rules of a chain whose comment is `wanted`.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn rules_with(&self, table: Table<'_>, chain: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<Rule>> {
        let message = table.message(libc::NFT_MSG_GETRULE, 0).text(RULE_TABLE, table.name).text(RULE_CHAIN, chain);
        let request = Request::new(format!("list chain {chain} of {table}"), message);
        none_if_absent(self.dump(request, |payload| read_rule(payload, &wanted)))
    }

    /// A table's chains; none when there is no such table.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn chains(&self, table: Table<'_>) -> Result<Vec<Chain>> {
        let request = Request::new(format!("list {table}"), table.message(libc::NFT_MSG_GETCHAIN, 0));
        none_if_absent(self.dump(request, |payload| {
            let attributes = Attributes(payload.get(4..)?);
            (attributes.get(CHAIN_TABLE).map(text)? == table.name).then_some(())?;
            let comment = read_comment(attributes.get(CHAIN_USERDATA)).to_owned();
            Some(Chain { name: attributes.get(CHAIN_NAME).map(text)?, comment })
        }))
    }

    /// Whether the table has a chain of that name.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn has_chain(&self, table: Table<'_>, name: &str) -> Result<bool> {
        let message = table.message(libc::NFT_MSG_GETCHAIN, 0).text(CHAIN_TABLE, table.name).text(CHAIN_NAME, name);
        let request = Request::new(format!("look up chain {name} of {table}"), message);
        let answer = self.get(request, |_| Some(())).map(|found| found.into_iter().collect());
        Ok(!none_if_absent(answer)?.is_empty())
    }

    /// The chain that a map has packets of this key jump to.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn jump_of(&self, table: Table<'_>, map: JumpMap<'_>, key: &[u8]) -> Result<Option<String>> {
        let message = table.element(table.message(libc::NFT_MSG_GETSETELEM, 0), map, key, |element| element);
        let request = Request::new(format!("look up a key of map {} of {table}", map.name), message);
        let answer = self.get(request, |payload| Some(read_jumps(payload))).map(|found| found.into_iter().collect());
        Ok(none_if_absent(answer)?.into_iter().flatten().next().map(|jump| jump.chain))
    }

    /// The elements of a map, in no order; none when there is no such map.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn jumps(&self, table: Table<'_>, map: JumpMap<'_>) -> Result<Vec<Jump>> {
        let message =
            table.message(libc::NFT_MSG_GETSETELEM, 0).text(ELEMENTS_TABLE, table.name).text(ELEMENTS_SET, map.name);
        let request = Request::new(format!("list map {} of {table}", map.name), message);
        let parts = none_if_absent(self.dump(request, |payload| Some(read_jumps(payload))))?;
        Ok(parts.into_iter().flatten().collect())
    }
}

/// The message that opens or closes a transaction. It is for the subsystem as a whole, of no family.
fn boundary(kind: i32) -> Message {
    let [high, low] = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
    Message::new(kind as u16, 0).fixed(&[libc::AF_UNSPEC as u8, libc::NFNETLINK_V0 as u8, high, low])
}

/// A kernel that was built without a part, or whose modules are not installed, answers with one of these and says no
/// more. A request that needs no such part comes with an empty `feature`.
fn name_lack(mut error: Error, feature: &str) -> Error {
    let unknown =
        matches!(error.errno, Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT);
    if unknown && error.message.is_none() && !feature.is_empty() {
        error.message = Some(format!("the kernel lacks {feature}"));
    }
    error
}

/// What is listed is absent: the object itself, its family, or (`EINVAL` of `nfnetlink_rcv_msg`) all of nf_tables.
fn none_if_absent<T>(listed: Result<Vec<T>>) -> Result<Vec<T>> {
    match listed {
        Err(e) if matches!(e.errno, Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EINVAL) => {
            Ok(Vec::new())
        }
        other => other,
    }
}

fn read_rule(payload: &[u8], wanted: impl Fn(&str) -> bool) -> Option<Rule> {
    let attributes = Attributes(payload.get(4..)?);
    let comment = read_comment(attributes.get(RULE_USERDATA));
    // Most are another owner's: they are not worth reading to the end.
    wanted(comment).then_some(())?;
    Some(Rule {
        handle: u64::from_be_bytes(attributes.get(RULE_HANDLE)?.try_into().ok()?),
        comment: comment.to_owned(),
        expressions: expressions::read(attributes.nested(RULE_EXPRESSIONS)),
    })
}

fn read_jumps(payload: &[u8]) -> Vec<Jump> {
    let attributes = Attributes(payload.get(4..).unwrap_or_default());
    let read = |element| {
        let element = Attributes(element);
        Some(Jump {
            key: element.nested(ELEMENT_KEY).get(DATA_VALUE)?.to_vec(),
            chain: expressions::jump_target(element.nested(ELEMENT_DATA))?,
        })
    };
    attributes.nested(ELEMENTS).filter_map(|(_, element)| read(element)).collect()
}

/// User data is a list of type, length and value, a byte each of the former two; `nft` shows one as `comment "…"`.
fn write_comment(comment: &str) -> Option<Vec<u8>> {
    let length = comment.len() + 1;
    (!comment.is_empty() && length <= COMMENT_MAX).then(|| {
        let mut bytes = vec![COMMENT, length as u8];
        bytes.extend_from_slice(comment.as_bytes());
        bytes.push(0);
        bytes
    })
}

/// The comment; empty when there is none or it is no text.
fn read_comment(user_data: Option<&[u8]>) -> &str {
    let mut rest = user_data.unwrap_or_default();
    while let [kind, length, more @ ..] = rest {
        let Some(value) = more.get(..usize::from(*length)) else { break };
        if *kind == COMMENT {
            return std::str::from_utf8(value).unwrap_or_default().trim_end_matches('\0');
        }
        rest = more.get(value.len()..).unwrap_or_default();
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_comes_back_as_it_was_written() {
        for comment in ["", "pod/a", &"c".repeat(COMMENT_MAX - 1)] {
            assert_eq!(read_comment(write_comment(comment).as_deref()), comment);
        }
        assert_eq!(write_comment(&"c".repeat(COMMENT_MAX)), None);
    }

    #[test]
    fn user_data_of_others_is_read_as_far_as_it_goes() {
        let cases: [(&[u8], &str); 6] = [
            (&[], ""),
            (&[0], ""),
            (&[0, 9, b'a'], ""),
            (&[7, 1, 0, 0, 2, b'a', 0], "a"),
            (&[0, 2, 0xff, 0], ""),
            (&[7, 255, 0], ""),
        ];
        for (bytes, comment) in cases {
            assert_eq!(read_comment(Some(bytes)), comment, "{bytes:?}");
        }
    }

    #[test]
    fn what_the_kernel_lacks_is_named_unless_it_says_more_itself() {
        let refusal = |errno, message: Option<&str>| {
            let error = Error { operation: "create".into(), errno, message: message.map(str::to_owned) };
            name_lack(error, "nat").message
        };
        assert_eq!(refusal(Errno::ENOENT, None).as_deref(), Some("the kernel lacks nat"));
        assert_eq!(refusal(Errno::EOPNOTSUPP, None).as_deref(), Some("the kernel lacks nat"));
        assert_eq!(refusal(Errno::ENOENT, Some("No such type")).as_deref(), Some("No such type"));
        assert_eq!(refusal(Errno::EPERM, None), None);
    }
}

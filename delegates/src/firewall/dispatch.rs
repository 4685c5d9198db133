//! A chain for each owner, found by its name, and a map by which packets find it: so ADD and DEL cost the same however
//! many others there are, and so do packets. What the rules say is for the user of this file to tell.

use nix::errno::Errno;

use super::Owner;
use crate::mark::Mark;
use crate::netlink::nftables::{BaseChain, Expressions, JumpMap, Register, Rule, Table, Transaction};
use crate::netlink::{Netlink, Result};

/// Where a key that several owners have is looked up: a map holds it once, for the first of them.
const SHARED: &str = "shared";
/// A change that another's overtakes is worked out anew this often before it is an error.
const TRIES: usize = 10;

/// Writes a rule.
pub(super) type RuleWriter = Box<dyn Fn(Expressions) -> Expressions>;

/// A base chain that leads each packet to its owner's chain.
pub(super) struct Dispatch {
    pub table: Table<'static>,
    pub base: BaseChain<'static>,
    pub keys: &'static [Key],
    /// What several owners of one key get: all their chains, or that of the newest alone.
    pub shares: bool,
    /// What the kernel lacks when it knows no such chain or rule.
    pub feature: &'static str,
    /// The rule that stands under a note.
    pub read: fn(&str) -> Option<Entry>,
}

/// A property of packets that tells their owner.
pub(super) struct Key {
    pub map: JumpMap<'static>,
    /// Loads it into the first register.
    pub load: fn(Expressions) -> Expressions,
}

/// A rule for the packets of one key.
pub(super) struct Entry {
    /// The rule's comment, from which [`Dispatch::read`] makes the same entry again.
    pub note: String,
    pub key: &'static Key,
    pub value: Vec<u8>,
    pub rule: RuleWriter,
}

impl Dispatch {
    /// Makes the owner's chain of exactly these entries, and all that leads there.
    pub fn attach(&self, nft: &Netlink, owner: &Owner, entries: &[Entry]) -> Result<()> {
        if entries.is_empty() {
            return self.detach(nft, owner);
        }
        retry(|| {
            let rules = nft.rules(self.table, &owner.chain())?;
            if rules.len() == entries.len() && self.has_all(nft, owner, &rules, entries)? {
                return Ok(());
            }
            self.try_detach(nft, owner)?;
            nft.transaction(self.attachment(nft, owner, entries)?)
        })
    }

    /// Takes the owner's chain away, and all that leads there.
    pub fn detach(&self, nft: &Netlink, owner: &Owner) -> Result<()> {
        retry(|| self.try_detach(nft, owner))
    }

    /// Whether packets of these entries find their rules.
    pub fn is_attached(&self, nft: &Netlink, owner: &Owner, entries: &[Entry]) -> Result<bool> {
        Ok(entries.is_empty() || self.has_all(nft, owner, &nft.rules(self.table, &owner.chain())?, entries)?)
    }

    /// All who have a chain.
    pub fn owners(&self, nft: &Netlink) -> Result<Vec<Owner>> {
        let mut owners: Vec<Owner> = nft.chains(self.table)?.iter().filter_map(Owner::of_chain).collect();
        owners.sort();
        Ok(owners)
    }

    fn attachment(&self, nft: &Netlink, owner: &Owner, entries: &[Entry]) -> Result<Transaction> {
        let chain = owner.chain();
        let mark = owner.mark.map(Mark::comment).unwrap_or_default();
        // What the base chain leads to cannot be gone while it stands. Making it anew would cost a grace period: the rules it
        // had are released after one, and a process that ends waits for that.
        let setup = if self.has_base(nft)? { Transaction::default() } else { self.setup() };
        let changes = entries.iter().fold(setup.inner_chain(self.table, &chain, &mark), |changes, entry| {
            changes.rule(self.table, &chain, &entry.rule, &entry.note, self.feature)
        });
        distinct_keys(entries).into_iter().try_fold(changes, |changes, entry| {
            let Entry { key, value, .. } = entry;
            let taken = nft.jump_of(self.table, key.map, value)?.is_some();
            Ok(if taken && self.shares {
                changes.rule(self.table, SHARED, shared_rule(entry, &chain), &owner.name, "")
            } else if taken {
                changes.delete_jump(self.table, key.map, value).jump(self.table, key.map, value, &chain)
            } else {
                changes.jump(self.table, key.map, value, &chain)
            })
        })
    }

    /// Everything that is not an owner's.
    fn setup(&self) -> Transaction {
        let mut changes = Transaction::default().table(self.table);
        if self.shares {
            changes = changes.inner_chain(self.table, SHARED, "");
        }
        for key in self.keys {
            changes = changes.map(self.table, key.map);
        }
        changes = changes.chain(self.table, self.base, self.feature).flush(self.table, self.base.name);
        for rule in self.base_rules() {
            changes = changes.rule(self.table, self.base.name, rule, "", self.feature);
        }
        changes
    }

    fn base_rules(&self) -> Vec<RuleWriter> {
        let lead = |key: &'static Key| -> RuleWriter {
            Box::new(move |rule| (key.load)(rule).jump_by(Register::FIRST, key.map))
        };
        let shared: Option<RuleWriter> = self.shares.then(|| Box::new(|rule: Expressions| rule.jump(SHARED)) as _);
        self.keys.iter().map(lead).chain(shared).collect()
    }

    /// In two steps: some kernels release a chain from what jumped to it only once that change is made.
    fn try_detach(&self, nft: &Netlink, owner: &Owner) -> Result<()> {
        let chain = owner.chain();
        // A refused transaction costs a grace period, so nothing is deleted on the chance that it is there.
        if !nft.has_chain(self.table, &chain)? {
            return Ok(());
        }
        let mut changes = Transaction::default();
        for (map, value) in self.ways(nft, &chain)? {
            changes = changes.delete_jump(self.table, map, &value);
        }
        for rule in nft.rules_with(self.table, SHARED, |comment| comment == owner.name)? {
            changes = changes.delete_rule(self.table, SHARED, rule.handle);
        }
        nft.transaction(changes)?;
        nft.transaction(Transaction::default().delete_chain(self.table, &chain))
    }

    /// The elements that jump to the chain. Its rules say which keys to look at; if somebody emptied it, all are.
    fn ways(&self, nft: &Netlink, chain: &str) -> Result<Vec<(JumpMap<'static>, Vec<u8>)>> {
        let entries: Vec<Entry> =
            nft.rules(self.table, chain)?.iter().filter_map(|rule| (self.read)(&rule.comment)).collect();
        let mut ways = Vec::new();
        for Entry { key, value, .. } in distinct_keys(&entries) {
            if nft.jump_of(self.table, key.map, value)?.as_deref() == Some(chain) {
                ways.push((key.map, value.clone()));
            }
        }
        if entries.is_empty() {
            for Key { map, .. } in self.keys {
                let jumps = nft.jumps(self.table, *map)?.into_iter().filter(|jump| jump.chain == chain);
                ways.extend(jumps.map(|jump| (*map, jump.key)));
            }
        }
        Ok(ways)
    }

    fn has_all(&self, nft: &Netlink, owner: &Owner, rules: &[Rule], entries: &[Entry]) -> Result<bool> {
        let has_rule = |entry: &Entry| rules.iter().any(|r| r.expressions == Expressions::describe(&entry.rule));
        if !entries.iter().all(has_rule) || !self.has_base(nft)? {
            return Ok(false);
        }
        let chain = owner.chain();
        for entry in entries {
            let Entry { key, value, .. } = entry;
            if nft.jump_of(self.table, key.map, value)?.as_deref() == Some(chain.as_str()) {
                continue;
            }
            let expected = Expressions::describe(shared_rule(entry, &chain));
            let shared = nft.rules_with(self.table, SHARED, |comment| comment == owner.name)?;
            if !shared.iter().any(|rule| rule.expressions == expected) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn has_base(&self, nft: &Netlink) -> Result<bool> {
        let expected = self.base_rules().into_iter().map(Expressions::describe);
        let rules = nft.rules(self.table, self.base.name)?;
        Ok(rules.into_iter().map(|rule| rule.expressions).eq(expected))
    }
}

/// An owner can have one address in two subnets: two rules, one key.
fn distinct_keys(entries: &[Entry]) -> Vec<&Entry> {
    let mut distinct: Vec<&Entry> = Vec::new();
    for entry in entries {
        if !distinct.iter().any(|other| other.key.map.name == entry.key.map.name && other.value == entry.value) {
            distinct.push(entry);
        }
    }
    distinct
}

fn shared_rule(entry: &Entry, chain: &str) -> impl Fn(Expressions) -> Expressions {
    move |rule| (entry.key.load)(rule).equals(Register::FIRST, &entry.value).jump(chain)
}

/// Reading and changing are two steps: what was read may be gone (`ENOENT`), taken (`EEXIST`) or in use (`EBUSY`) then.
fn retry(change: impl Fn() -> Result<()>) -> Result<()> {
    let mut outcome = change();
    for _ in 1..TRIES {
        let overtaken = |errno| matches!(errno, Errno::ENOENT | Errno::EEXIST | Errno::EBUSY | Errno::EAGAIN);
        match &outcome {
            Err(e) if e.message.is_none() && overtaken(e.errno) => outcome = change(),
            _ => break,
        }
    }
    outcome
}

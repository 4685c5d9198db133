//! The agent's regular pass over what was left behind: on start and every `reconcileSeconds`. What there is to find is the
//! engine's knowledge (`engine::gc`); here is what only a process that lives on can know: which sandboxes the runtime has
//! not listed for a while. How the runtime is asked is the caller's business.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use musubi_delegates::cni::CniError;
use musubi_delegates::netns::Namespace;

use crate::engine::gc::{Finding, Kind, Outcome, Place, Reality};
use crate::record::{Key, Record, State};
use crate::records::Stored;
use crate::store::Store;

/// How many times longer a list without any sandbox must last: it says as much of the runtime as of the sandboxes.
const WITH_NOTHING: u32 = 3;
/// How long the release of one finding may take.
const RELEASE_TIME: Duration = Duration::from_secs(30);

/// Asks the runtime for the ids of all its pod sandboxes, running or not.
pub type AskRuntime<'a> = &'a dyn Fn() -> Result<Vec<String>, CniError>;

/// What a pass works with.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// The moment of the pass.
    pub now: Instant,
    /// The folder of device-info files.
    pub device_info: &'a Path,
    /// How the runtime's sandboxes are listed, where a socket is configured.
    pub ask_runtime: Option<AskRuntime<'a>>,
    /// Where network-statuses go that could not be written before; where there is none, to the folder that the record says.
    pub store: Option<&'a dyn Store>,
}

/// What a pass did.
#[derive(Debug, Default)]
pub struct Report {
    /// How many of each kind were found.
    pub found: BTreeMap<Kind, usize>,
    /// How many of them were released.
    pub released: usize,
    /// How many stay until the next pass.
    pub kept: usize,
    /// What was in the way: one for each that was kept, and what could not be looked at.
    pub errors: Vec<CniError>,
}

/// Compares records with reality once and releases what was left behind, with a line of log for each.
///
/// # Errors
/// The state folder cannot be read, or the host's namespace not be opened: nothing was done.
pub fn run_once(state_dir: &Path, options: Options<'_>, reconciler: &mut Reconciler) -> Result<Report, CniError> {
    let host = Namespace::current()?;
    let place = Place { state_dir, device_info: options.device_info, host: &host, store: options.store };
    // The records come before the runtime's list: of a sandbox that is in none but the list nothing is ever removed.
    let reality = Reality::look(place)?;
    let mut report = Report::default();
    let listed = options.ask_runtime.and_then(|ask| ask().map_err(|error| report.errors.push(error)).ok());
    report.errors.extend(reality.errors.iter().cloned());
    let mut findings = reality.findings(place);
    let known: Vec<Key> = findings.iter().filter_map(Finding::record).collect();
    let forgotten = reconciler.pass(options.now, &reality.records, listed.as_deref());
    findings.extend(forgotten.into_iter().filter(|finding| finding.record().is_none_or(|key| !known.contains(&key))));
    for finding in &findings {
        settle(finding, place, &mut report);
    }
    Ok(report)
}

fn settle(finding: &Finding, place: Place<'_>, report: &mut Report) {
    let Finding { container_id: container, pod, reason, .. } = finding;
    let (kind, held) = (finding.kind.as_str(), finding.resources.join(", "));
    let outcome = finding.release(place, Instant::now() + RELEASE_TIME);
    if matches!(outcome, Ok(Outcome::Settled)) {
        return;
    }
    *report.found.entry(finding.kind).or_default() += 1;
    match outcome {
        Ok(_) => {
            report.released += 1;
            tracing::info!(kind, container, pod, reason, held, "left behind, released");
        }
        Err(error) => {
            report.kept += 1;
            tracing::warn!(kind, container, pod, reason, held, code = error.code, "left behind, kept: {error}");
            report.errors.push(error);
        }
    }
}

/// Knows since when the runtime has not listed the sandboxes of which there are records. A sandbox is listed only after its
/// ADD has ended, and a runtime that just started, or is another's, may list none: so a single look proves nothing.
#[derive(Debug)]
pub struct Reconciler {
    /// How long a sandbox must be missing from the runtime's list before it counts as gone.
    patience: Duration,
    missing: BTreeMap<Key, Missing>,
    /// Whether the runtime ever listed a sandbox that we have on record: otherwise it is not the one that calls us.
    is_our_runtime: bool,
    /// Since when it has listed nothing at all.
    empty_since: Option<Instant>,
}

/// Since when a record's sandbox is missing. A record that changes begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Missing {
    since: Instant,
    state: State,
    changed: u64,
}

impl Reconciler {
    /// One that has seen nothing yet. A sandbox that is missing from the runtime's list for `patience` counts as gone.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self { patience, missing: BTreeMap::new(), is_our_runtime: false, empty_since: None }
    }

    /// One look: the records as they were before the runtime was asked, and its list, if it answered. Returns the records whose
    /// sandboxes are gone by its account. A failed answer ends all suspicion: what it says next may be its first words.
    pub fn pass(&mut self, now: Instant, records: &[Stored], sandboxes: Option<&[String]>) -> Vec<Finding> {
        let Some(sandboxes) = sandboxes else {
            self.missing.clear();
            self.empty_since = None;
            return Vec::new();
        };
        let is_listed = |record: &Record| sandboxes.contains(&record.container_id);
        let candidates: Vec<&Record> = records.iter().filter_map(of_runtime).collect();
        self.is_our_runtime |= candidates.iter().any(|record| is_listed(record));
        self.empty_since = sandboxes.is_empty().then(|| self.empty_since.unwrap_or(now));

        let before = std::mem::take(&mut self.missing);
        let mut gone = Vec::new();
        for record in candidates.into_iter().filter(|record| !is_listed(record)) {
            let (key, fresh) = (record.key(), Missing { since: now, state: record.state, changed: record.since });
            let missing = before.get(&key).filter(|known| fresh.is_same(known)).copied().unwrap_or(fresh);
            if self.is_believed(now, missing.since) {
                gone.push(Finding::not_listed(record, now.saturating_duration_since(missing.since)));
            }
            self.missing.insert(key, missing);
        }
        gone
    }

    fn is_believed(&self, now: Instant, since: Instant) -> bool {
        let enough = |since: Instant, patience| now.saturating_duration_since(since) >= patience;
        let believes_nothing = self.empty_since.is_none_or(|since| enough(since, self.patience * WITH_NOTHING));
        self.is_our_runtime && enough(since, self.patience) && believes_nothing
    }
}

impl Missing {
    fn is_same(&self, other: &Self) -> bool {
        (self.state, self.changed) == (other.state, other.changed)
    }
}

/// The record, if the runtime has to list its sandbox: a runtime of the kubelet's made it, as only that says `K8S_POD_UID`
/// (podman uses the same networks, and no runtime lists what it runs), and its ADD has ended.
fn of_runtime(stored: &Stored) -> Option<&Record> {
    let Stored::Whole(record) = stored else { return None };
    let argument = |pair: &str| pair.strip_prefix("K8S_POD_UID=").is_some_and(|uid| !uid.is_empty());
    (record.args.split(';').any(argument) && !record.is_being_added()).then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{NamespaceId, Running, boot_id};

    const MINUTE: Duration = Duration::from_secs(60);

    fn record(container: &str) -> Record {
        let key = Key { container_id: container.into(), interface: "eth0".into(), network: "musubi".into() };
        Record {
            namespace: NamespaceId { cookie: None, device: 4, inode: 5 },
            boot_id: String::new(),
            state: State::Attached,
            since: 1000,
            args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=uid-1".to_owned(),
            ..Record::begun(&key)
        }
    }

    fn stored(containers: &[&str]) -> Vec<Stored> {
        containers.iter().map(|container| Stored::Whole(Box::new(record(container)))).collect()
    }

    /// The minute, what the runtime lists if it answers, and the sandboxes that count as gone then.
    type Step<'a> = (u32, Option<&'a [&'a str]>, &'a [&'a str]);

    fn story(records: &[Stored], answers: &[Step<'_>]) {
        let (mut reconciler, start) = (Reconciler::new(MINUTE * 5), Instant::now());
        for (minute, answer, expected) in answers {
            let listed = answer.map(|ids| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
            let gone = reconciler.pass(start + MINUTE * *minute, records, listed.as_deref());
            let ids: Vec<&str> = gone.iter().map(|finding| finding.container_id.as_str()).collect();
            assert_eq!(ids, *expected, "minute {minute}, listed {answer:?}");
            assert!(gone.iter().all(|finding| finding.kind == Kind::NotListed));
        }
    }

    #[test]
    fn a_sandbox_is_gone_when_two_lists_five_minutes_apart_miss_it() {
        let records = stored(&["a", "b"]);
        story(&records, &[(0, Some(&["a"]), &[]), (4, Some(&["a"]), &[]), (5, Some(&["a"]), &["b"])]);
        story(&records, &[(0, Some(&["a"]), &[]), (60, Some(&["a"]), &["b"]), (61, Some(&["a"]), &["b"])]);
    }

    #[test]
    fn a_sandbox_that_is_starting_is_listed_later_and_is_not_gone() {
        let records = stored(&["a", "starting"]);
        let both: &[&str] = &["a", "starting"];
        story(
            &records,
            &[(0, Some(&["a"]), &[]), (3, Some(both), &[]), (6, Some(&["a"]), &[]), (10, Some(&["a"]), &[])],
        );
    }

    #[test]
    fn a_runtime_that_fails_ends_all_suspicion() {
        let records = stored(&["a", "b"]);
        story(&records, &[(0, Some(&["a"]), &[]), (4, None, &[]), (5, Some(&["a"]), &[]), (10, Some(&["a"]), &["b"])]);
        story(&records, &[(0, None, &[]), (60, None, &[])]);
    }

    #[test]
    fn an_empty_list_is_believed_late_and_only_of_the_runtime_that_calls_us() {
        let records = stored(&["a", "b"]);
        let nothing: Option<&[&str]> = Some(&[]);
        // The wrong socket: it never listed any of ours.
        story(&records, &[(0, nothing, &[]), (60, nothing, &[]), (600, Some(&["others"]), &[]), (900, nothing, &[])]);
        // A runtime that starts again with nothing, and then finds its sandboxes.
        let both: &[&str] = &["a", "b"];
        story(&records, &[(0, Some(both), &[]), (1, nothing, &[]), (15, nothing, &[]), (16, Some(both), &[])]);
        // One whose sandboxes are really gone.
        story(&records, &[(0, Some(both), &[]), (1, nothing, &[]), (10, nothing, &[]), (16, nothing, &["a", "b"])]);
    }

    #[test]
    fn a_record_that_changes_begins_anew() {
        let (mut reconciler, start) = (Reconciler::new(MINUTE * 5), Instant::now());
        let listed = ["a".to_owned()];
        let mut records = stored(&["a", "b"]);
        assert!(reconciler.pass(start, &records, Some(&listed)).is_empty());
        records[1] = Stored::Whole(Box::new(Record { since: 1001, ..record("b") }));
        assert!(reconciler.pass(start + MINUTE * 6, &records, Some(&listed)).is_empty(), "attached anew");
        records[1] = Stored::Whole(Box::new(Record { since: 1001, state: State::Deleting, ..record("b") }));
        assert!(reconciler.pass(start + MINUTE * 12, &records, Some(&listed)).is_empty(), "its DEL has begun");
        assert_eq!(reconciler.pass(start + MINUTE * 17, &records, Some(&listed)).len(), 1);
        records.pop();
        assert!(
            reconciler.pass(start + MINUTE * 18, &records, Some(&listed)).is_empty(),
            "there is no record any more"
        );
        assert!(reconciler.missing.is_empty(), "and nothing is remembered of it");
    }

    #[test]
    fn what_no_runtime_of_the_kubelet_made_is_never_missing() {
        let mut records = stored(&["a", "podman"]);
        for args in ["", "K8S_POD_NAME=podman;K8S_POD_NAMESPACE=podman", "K8S_POD_UID="] {
            records[1] = Stored::Whole(Box::new(Record { args: args.to_owned(), ..record("podman") }));
            story(&records, &[(0, Some(&["a"]), &[]), (60, Some(&["a"]), &[])]);
        }
        let key = record("lost").key();
        records[1] = Stored::Damaged { key, problem: "EOF".to_owned() };
        story(&records, &[(0, Some(&["a"]), &[]), (60, Some(&["a"]), &[])]);
    }

    #[test]
    fn what_is_being_added_is_not_missing_however_long_that_takes() {
        let mut records = stored(&["a", "slow"]);
        let worker = Running::this();
        let adding = Record { state: State::Adding, boot_id: boot_id(), worker, ..record("slow") };
        records[1] = Stored::Whole(Box::new(adding.clone()));
        story(&records, &[(0, Some(&["a"]), &[]), (60, Some(&["a"]), &[])]);
        // Whoever was at it has died.
        records[1] = Stored::Whole(Box::new(Record { worker: None, ..adding }));
        story(&records, &[(0, Some(&["a"]), &[]), (60, Some(&["a"]), &["slow"])]);
    }

    #[test]
    fn the_finding_says_how_long() {
        let (mut reconciler, start) = (Reconciler::new(MINUTE * 5), Instant::now());
        let (records, listed) = (stored(&["a", "b"]), ["a".to_owned()]);
        reconciler.pass(start, &records, Some(&listed));
        let gone = reconciler.pass(start + MINUTE * 7, &records, Some(&listed));
        assert_eq!(gone[0].reason, "the runtime has not listed its sandbox for 7 minutes");
        assert_eq!(gone[0].record(), Some(record("b").key()));
    }
}

//! Finding what was left behind and releasing it. The CNI verb works by the runtime's list; `musubi gc` and the agent compare
//! the records with what is really there: `stale` holds records whose pod is gone, `leftover` what is there without a record.
//! Nothing is touched that an installation's own records or marks do not speak of.

mod leftover;
mod stale;
mod verb;

use std::path::Path;
use std::time::{Duration, Instant};

use musubi_delegates::cni::CniError;
use musubi_delegates::netns::Namespace;
use serde_json::{Value, json};

use self::leftover::{Held, Leftover};
use crate::record::{Key, Record};
use crate::records::{Records, Stored};
use crate::store::Store;
pub(super) use stale::orphans_are_due;
pub use stale::release_earlier_boots;

/// How long GC waits for a container that something else works on before leaving it to the next time.
const PATIENCE: Duration = Duration::from_millis(200);

/// Where device-info files of CNI plugins are (Device Information Specification 1.1, 3.1).
pub const DEVICE_INFO: &str = "/var/run/k8s.cni.cncf.io/devinfo/cni";

/// The place that is looked at.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Our state folder.
    pub state_dir: &'a Path,
    /// The folder of device-info files.
    pub device_info: &'a Path,
    /// The host's namespace.
    pub host: &'a Namespace,
    /// Where network-statuses go, unless the record says a folder.
    pub store: Option<&'a dyn Store>,
}

/// What sort of thing was left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A record of an earlier boot.
    EarlierBoot,
    /// A record whose namespace is gone, or another's by now.
    NamespaceGone,
    /// A record whose sandbox the runtime does not list any more.
    NotListed,
    /// A record without content.
    Damaged,
    /// A record that DEL had to give up.
    Orphan,
    /// A network-status that is not written yet.
    Status,
    /// The host's end of a veth pair, without a record.
    HostLink,
    /// Rules in nf_tables, without a record.
    Rules,
    /// A device-info file, without a record.
    DeviceInfo,
    /// Reserved addresses, without a record.
    Reservation,
    /// The devices of a VNI without any pod.
    Vxlan,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 11] = [
        Self::EarlierBoot,
        Self::NamespaceGone,
        Self::NotListed,
        Self::Damaged,
        Self::Orphan,
        Self::Status,
        Self::HostLink,
        Self::Rules,
        Self::DeviceInfo,
        Self::Reservation,
        Self::Vxlan,
    ];

    /// Its name in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EarlierBoot => "earlier-boot",
            Self::NamespaceGone => "namespace-gone",
            Self::NotListed => "not-listed",
            Self::Damaged => "damaged-record",
            Self::Orphan => "orphan",
            Self::Status => "status",
            Self::HostLink => "host-link",
            Self::Rules => "rules",
            Self::DeviceInfo => "device-info",
            Self::Reservation => "reservation",
            Self::Vxlan => "vxlan",
        }
    }
}

/// One thing that was left behind.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What sort of thing.
    pub kind: Kind,
    /// Whose; empty where nothing tells.
    pub container_id: String,
    /// `namespace/name` of its pod; empty where nothing tells.
    pub pod: String,
    /// Why, for a person.
    pub reason: String,
    /// What it holds, for a person.
    pub resources: Vec<String>,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Record(Box<Stored>),
    Orphan(Box<Stored>),
    Status(Key),
    Leftover(Leftover),
}

impl Finding {
    /// The sandbox of a record that the runtime has not listed for a while.
    #[must_use]
    pub fn not_listed(record: &Record, since: Duration) -> Self {
        let reason = format!("the runtime has not listed its sandbox for {} minutes", since.as_secs() / 60);
        stale::found(Kind::NotListed, reason, Stored::Whole(Box::new(record.clone())))
    }

    /// The record it is about.
    #[must_use]
    pub fn record(&self) -> Option<Key> {
        match &self.what {
            What::Record(stored) | What::Orphan(stored) => Some(stored.key()),
            What::Status(key) => Some(key.clone()),
            What::Leftover(_) => None,
        }
    }

    /// As `musubi gc -o json` shows it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({"containerId": self.container_id, "pod": self.pod, "reason": self.reason, "resources": self.resources})
    }

    /// Releases it through the delegates' code, after another look at it under the container's lock. One that has been
    /// settled meanwhile is no error.
    ///
    /// # Errors
    /// What could not be released; it stays, and is found again. Code 11: something else works on the container.
    pub fn release(&self, place: Place<'_>, deadline: Instant) -> Result<(), CniError> {
        match &self.what {
            What::Record(stored) => stale::release(self.kind, stored, place.state_dir, deadline),
            What::Orphan(stored) => stale::release_orphan(stored, place.state_dir, deadline),
            What::Status(key) => stale::write_status(place, key),
            What::Leftover(leftover) => leftover.release(place, deadline),
        }
    }
}

/// What is there beside what is recorded, at one moment.
pub struct Reality {
    /// The records, as they were before anything was compared with them.
    pub records: Vec<Stored>,
    /// What could not be looked at.
    pub errors: Vec<CniError>,
    orphans: Vec<Stored>,
    leftovers: Vec<Leftover>,
}

impl Reality {
    /// Looks around. What is there is listed before the records are read: an ADD writes its record before it makes anything,
    /// so whatever was listed and is still there belongs to a record that was read then, or to none.
    ///
    /// # Errors
    /// The state folder cannot be read.
    pub fn look(place: Place<'_>) -> Result<Self, CniError> {
        let mut errors = Vec::new();
        let mut leftovers = leftover::survey(place, &mut errors);
        let records = Records::of(place.state_dir).all()?;
        // A record that becomes an orphan between the two is seen twice, never not at all.
        let orphans = Records::of(place.state_dir).orphaned()?;
        let held = Held::by(place.state_dir, records.iter().chain(&orphans));
        leftovers.retain(|leftover| !held.has(leftover) && leftover.is_there(place));
        Ok(Self { records, errors, orphans, leftovers })
    }

    /// Only what the records tell of by themselves: nothing of the kernel is looked at.
    ///
    /// # Errors
    /// The state folder cannot be read.
    pub fn recorded(state_dir: &Path) -> Result<Self, CniError> {
        let records = Records::of(state_dir);
        let (records, orphans) = (records.all()?, records.orphaned()?);
        Ok(Self { records, orphans, errors: Vec::new(), leftovers: Vec::new() })
    }

    /// What was left behind: records first, so that addresses are given back when no link can use them any more.
    #[must_use]
    pub fn findings(&self, place: Place<'_>) -> Vec<Finding> {
        let mut findings: Vec<Finding> = self.records.iter().filter_map(stale::judge).collect();
        findings.extend(self.unfinished(place));
        findings.extend(self.leftovers.iter().map(Leftover::found));
        findings
    }

    /// What earlier operations could not finish: orphans of DEL, and statuses that were not written.
    #[must_use]
    pub fn unfinished(&self, place: Place<'_>) -> Vec<Finding> {
        let orphans = self.orphans.iter().cloned().map(stale::orphan);
        orphans.chain(stale::pending(place, &self.records)).collect()
    }
}

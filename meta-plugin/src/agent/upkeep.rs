//! What the agent does when nobody asks: the pass over what was left behind, and statuses that could not be written before.
//! Blocks, on a thread of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use musubi_delegates::cni::CniError;

use super::Agent;
use super::metrics::RecordCounts;
use super::reconcile::{AskRuntime, Options, Reconciler, run_once};
use crate::cancel::Cancel;
use crate::engine::gc::DEVICE_INFO;
use crate::engine::pending;
use crate::record::State;
use crate::records::{Records, Stored};
use crate::store::{DirectoryStore, KubernetesStore, Store};
use crate::{cri, grpc};

/// Between two looks at what is due.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two times that memory is given back to the kernel.
const TIDY: Duration = Duration::from_secs(5);
/// How long the runtime may take to list its sandboxes.
const CRI_TIME: Duration = Duration::from_secs(10);
/// How long the statuses of one look may take.
const STATUS_TIME: Duration = Duration::from_secs(30);

/// Keeps things in order for ever.
pub(super) fn keep(agent: &Arc<Agent>) {
    let state_dir = agent.state_dir();
    let mut reconciler = Reconciler::new(agent.config.unlisted);
    let (mut due, mut tidied) = (Instant::now(), Instant::now());
    loop {
        if pending::is_due(&state_dir) {
            for error in pending::write_all(&state_dir, store(agent).as_ref()) {
                tracing::warn!("{error}");
            }
        }
        if Instant::now() >= due {
            pass(agent, &state_dir, &mut reconciler);
            due = Instant::now() + agent.config.reconcile;
        }
        // What a burst has used is free, but it is the process's until somebody says so.
        let load = agent.pool.load();
        if load.waiting + load.running == 0 && tidied.elapsed() >= TIDY {
            musubi_delegates::sys::give_memory_back();
            tidied = Instant::now();
        }
        std::thread::sleep(PAUSE);
    }
}

fn pass(agent: &Agent, state_dir: &Path, reconciler: &mut Reconciler) {
    let store = store(agent);
    let device_info = agent.config.plugin_text("deviceInfoDir").map(|folder| Path::new(folder).join("cni"));
    let ask = agent.config.cri_socket.as_deref().map(|socket| move || sandboxes(socket));
    let options = Options {
        now: Instant::now(),
        device_info: device_info.as_deref().unwrap_or(Path::new(DEVICE_INFO)),
        ask_runtime: ask.as_ref().map(|ask| ask as AskRuntime<'_>),
        store: Some(store.as_ref()),
    };
    match run_once(state_dir, options, reconciler) {
        Ok(report) => {
            for (kind, count) in &report.found {
                (0..*count).for_each(|_| agent.metrics.leak(kind.as_str()));
            }
            for error in &report.errors {
                tracing::debug!("looking for what was left behind: {error}");
            }
        }
        Err(error) => tracing::warn!("looking for what was left behind: {error}"),
    }
    agent.metrics.records(counts(state_dir));
}

fn sandboxes(socket: &Path) -> Result<Vec<String>, CniError> {
    let known = grpc::wait(Instant::now() + CRI_TIME, &Cancel::default(), cri::sandboxes(socket))?;
    Ok(known.into_iter().map(|sandbox| sandbox.id).collect())
}

/// Where statuses go.
fn store(agent: &Agent) -> Box<dyn Store> {
    let deadline = Instant::now() + STATUS_TIME;
    match (&agent.cluster, agent.config.plugin_text("manifestDir")) {
        (Some(cluster), _) => {
            Box::new(KubernetesStore::new(Arc::clone(&cluster.connection), None, deadline, Cancel::default()))
        }
        (None, Some(folder)) => Box::new(DirectoryStore::empty(Path::new(folder))),
        (None, None) => Box::new(crate::store::NoStore),
    }
}

fn counts(state_dir: &Path) -> RecordCounts {
    let records = Records::of(state_dir);
    let mut counts = RecordCounts::default();
    for stored in records.all().unwrap_or_default() {
        let count = match stored {
            Stored::Damaged { .. } => &mut counts.damaged,
            Stored::Whole(record) => match record.state {
                State::Adding => &mut counts.adding,
                State::Attached => &mut counts.attached,
                State::Deleting => &mut counts.deleting,
            },
        };
        *count += 1;
    }
    counts.orphaned = records.orphaned().unwrap_or_default().len() as u64;
    counts
}

//! ADD: plan, record, then one network after the other. When one fails, it and all before it are taken back.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use musubi_delegates::cni::{CniArgs, CniError, CniResult, Command, ContainerId, Version, code};
use musubi_delegates::external;
use musubi_delegates::netns::{Namespace, Opening};
use musubi_delegates::registry::Runs;
use serde_json::Value;

use super::caller::Step;
use super::teardown::Teardown;
use super::{
    Hands, Operation, Target, default_route, delegate_failed, events, gc, joined, pending, refuse_host_namespace,
};
use crate::check::definition;
use crate::config::StatusFor;
use crate::devices::{Devices, info};
use crate::lock::{ContainerLock, GcFence};
use crate::networks::{self, Wanted};
use crate::plan::{self, Plan, Planned};
use crate::record::{self, Attached, Key, PodName, Record, RecordedDelegate, Running, State};
use crate::records::{self, Stored};
use crate::status;
use crate::store::{Pod, PodQuery};

/// How long undoing a failed ADD may take. With the default time limit of ADD itself it ends before the two minutes that
/// the kubelet gives its runtime.
pub(super) const UNDO_TIME: Duration = Duration::from_secs(25);
/// The capability by which runtimes hand the pod's annotations over (containerd, CRI-O).
const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

impl Operation<'_> {
    pub(super) fn add(&self) -> Result<Value, CniError> {
        self.caller.cancel.check()?;
        self.wait_until_ready()?;
        let pod = self.find_pod()?;
        let outcome = self.add_for(pod.as_ref());
        if let (Err(error), Some(pod)) = (&outcome, &pod)
            && !self.caller.cancel.is_set()
        {
            self.store.tell(pod, vec![events::failed(error, &self.caller.id)]);
        }
        outcome
    }

    fn add_for(&self, pod: Option<&Pod>) -> Result<Value, CniError> {
        let interface = self.request.interface()?;
        let netns = self.request.netns()?;
        let opening = Opening::of(netns);
        let wanted = networks::look_up(&self.config, pod, self.store.as_ref())?;
        let devices = self.devices(pod, &wanted)?;
        let plan = plan::plan(&self.config, wanted, interface, devices)?;
        for warning in plan.warnings.iter().skip(self.config.warnings.len()) {
            tracing::warn!("{warning}");
        }
        let sandbox = opening.wait()?.ok_or_else(|| {
            let what = if netns.exists() { "is no network namespace" } else { "does not exist" };
            CniError::new(code::NAMESPACE, format!("network namespace {} {what}", netns.display()))
        })?;
        refuse_host_namespace(&sandbox, self.host)?;
        let binaries = self.find_binaries(&plan.attachments)?;
        let container = self.request.container_id()?;
        let key = Key::new(container, interface, &self.own_network()?);
        records::fits_a_file(&key)?;
        let lock = self.take_lock(container)?;
        let outcome = self.add_locked(&key, &plan, pod, &sandbox, &lock, binaries);
        if outcome.is_err() && matches!(self.records.read(&key), Ok(None)) {
            lock.remove();
        }
        outcome
    }

    fn add_locked(
        &self,
        key: &Key,
        plan: &Plan,
        pod: Option<&Pod>,
        sandbox: &Namespace,
        lock: &ContainerLock,
        binaries: HashMap<String, PathBuf>,
    ) -> Result<Value, CniError> {
        let container = self.request.container_id()?;
        if let Some(answer) = self.answered_before(key)? {
            return Ok(answer);
        }
        gc::release_earlier_boots(&self.config.cni_dir, container, self.deadline)?;
        self.clear_earlier(key, sandbox, lock)?;
        interfaces_are_free(&plan.attachments, sandbox)?;

        let mut record = self.new_record(key, pod, plan, sandbox);
        let fence = GcFence::shared(&self.config.cni_dir, self.deadline)?;
        self.records.write(&record, !binaries.is_empty())?;
        drop(fence);
        let mut adding = Adding { operation: self, container, sandbox, lock, binaries };
        match adding.all(plan, &mut record, pod) {
            Ok(value) => Ok(value),
            Err(error) => Err(self.take_back(record, sandbox, lock, error)),
        }
    }

    /// The answer to this very request, where an agent came to its end with it and could not say so any more.
    fn answered_before(&self, key: &Key) -> Result<Option<Value>, CniError> {
        match self.records.read(key)? {
            Some(Stored::Whole(record))
                if record.state == State::Attached
                    && record.request_id == self.caller.id
                    && record.is_of_this_boot() =>
            {
                answer(&record, self.request.version).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// The pod that the runtime names; none when it names none.
    fn find_pod(&self) -> Result<Option<Pod>, CniError> {
        let argument = |key| self.request.args.get(key).filter(|v| !v.is_empty());
        let (Some(name), Some(namespace)) = (argument("K8S_POD_NAME"), argument("K8S_POD_NAMESPACE")) else {
            return Ok(None);
        };
        if !self.store.knows_pods() {
            return Ok(None);
        }
        let uid = argument("K8S_POD_UID");
        let annotations = self.config.runtime_config.get(POD_ANNOTATIONS).and_then(Value::as_object);
        let pod = self.store.pod(&PodQuery { namespace, name, uid, annotations })?.ok_or_else(|| {
            CniError::new(code::TRY_AGAIN, format!("pod {namespace}/{name} is not known"))
                .with_details("it is not in the store yet, or it has been deleted")
        })?;
        match uid {
            Some(uid) if !pod.uid.is_empty() && pod.uid != uid && !pod.is_static() => Err(CniError::new(
                code::TRY_AGAIN,
                format!("pod {namespace}/{name} has uid {}, the runtime asks for {uid}", pod.uid),
            )
            .with_details("the pod was created anew under its old name; the runtime tries again with the new one")),
            _ => Ok(Some(pod)),
        }
    }

    /// The devices that networks may have.
    pub(super) fn devices(&self, pod: Option<&Pod>, wanted: &[Wanted]) -> Result<Devices, CniError> {
        let container = self.request.container_id()?;
        Devices::of_pod(&self.config, pod, wanted, container, self.deadline, &self.caller.cancel)
    }

    /// The programs of all plugins that are not ours, found before anything is touched.
    pub(super) fn find_binaries(&self, planned: &[Planned]) -> Result<HashMap<String, PathBuf>, CniError> {
        let mut binaries = HashMap::new();
        for planned in planned {
            for delegate in &planned.delegates {
                let Runs::External { refused, .. } = &delegate.runs else { continue };
                if binaries.contains_key(&delegate.plugin_type) {
                    continue;
                }
                let found = external::find(&delegate.plugin_type, &self.path).map_err(|e| {
                    // What our own delegate has against the configuration says more than that nobody else is there.
                    let error = refused.clone().map_or(e, CniError::from);
                    definition::in_network(&planned.network, error)
                })?;
                binaries.insert(delegate.plugin_type.clone(), found);
            }
        }
        Ok(binaries)
    }

    /// A record of the same attachment: one that was never finished, or whose namespace is another, is cleared away;
    /// one that stands means that the runtime has not called DEL (CNI 1.1 §ADD).
    fn clear_earlier(&self, key: &Key, sandbox: &Namespace, lock: &ContainerLock) -> Result<(), CniError> {
        let Some(stored) = self.records.read(key)? else {
            self.clear_orphan(key, lock);
            return Ok(());
        };
        if let Stored::Whole(record) = &stored
            && record.state == State::Attached
            && record.is_of_this_boot()
            && sandbox.identity.is_same(&record.namespace.into())
        {
            return Err(CniError::new(
                code::DELEGATE,
                format!("interface {} of container {} is attached already", key.interface, key.container_id),
            )
            .with_details("call DEL before the next ADD"));
        }
        let errors = self.tear_down_stored(&stored, lock);
        if let Some(error) = errors.into_iter().next() {
            return Err(error.context("what an earlier ADD left could not be removed"));
        }
        self.records.remove(key)?;
        self.clear_orphan(key, lock);
        Ok(())
    }

    /// What an earlier DEL had to leave is tried again now: later its retry would hit the new attachment. Only where no
    /// record stands, for its links have the same group.
    fn clear_orphan(&self, key: &Key, lock: &ContainerLock) {
        let Ok(Some(orphan)) = self.records.read_orphan(key) else { return };
        let errors = self.tear_down_stored(&orphan, lock);
        let cleared = if errors.is_empty() { self.records.remove_orphan(key) } else { Err(joined(&errors)) };
        if let Err(error) = cleared {
            tracing::warn!("container {}: still among the orphans: {error}", key.container_id);
        }
    }

    fn new_record(&self, key: &Key, pod: Option<&Pod>, plan: &Plan, sandbox: &Namespace) -> Record {
        Record {
            version: record::VERSION,
            container_id: key.container_id.clone(),
            network: key.network.clone(),
            interface: key.interface.clone(),
            pod: pod.map(|pod| PodName {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
            }),
            netns: sandbox.path.clone(),
            namespace: sandbox.identity.into(),
            boot_id: record::boot_id(),
            group: key.group(),
            state: State::Adding,
            since: record::now(),
            manifest_dir: self.config.manifest_dir.clone(),
            args: self.request.args.to_string(),
            path: self.path.clone(),
            request_id: self.caller.id.clone(),
            worker: Running::this(),
            running: None,
            failed_deletes: 0,
            status_pending: false,
            attachments: plan.attachments.iter().map(|planned| self.new_attached(planned)).collect(),
        }
    }

    pub(super) fn new_attached(&self, planned: &Planned) -> Attached {
        Attached {
            network: planned.network.clone(),
            cni_name: planned.list.name.as_ref().map(ToString::to_string).unwrap_or_default(),
            interface: planned.interface.to_string(),
            default: planned.default,
            cni_version: planned.list.version.to_string(),
            disable_check: planned.list.disable_check,
            args: self.arguments(planned).to_string(),
            default_route: planned.default_route.clone(),
            begun: false,
            delegates: planned
                .delegates
                .iter()
                .map(|delegate| RecordedDelegate {
                    plugin_type: delegate.plugin_type.clone(),
                    native: matches!(delegate.runs, Runs::Native(_)),
                    config: Value::Object(delegate.conf.0.clone()).to_string(),
                    begun: false,
                })
                .collect(),
            result: None,
            device_info_file: planned.device_info_file.clone(),
            device_info: None,
            links: Vec::new(),
        }
    }

    /// `CNI_ARGS` of a network's plugins: the runtime's as they came, and what was requested of this network.
    fn arguments(&self, planned: &Planned) -> CniArgs {
        let mut args = self.request.args.clone();
        if !args.is_empty() || !planned.args.is_empty() {
            // Plugins refuse keys they do not know without it, and K8S_POD_NAME is known to none of them.
            if !args.ignore_unknown() {
                args.set("IgnoreUnknown", "1");
            }
        }
        for (key, value) in &planned.args {
            args.set(key, value.clone());
        }
        args
    }

    /// Undoes a failed ADD. What cannot be undone stays in the record for DEL, with every link that is known by now.
    fn take_back(&self, mut record: Record, sandbox: &Namespace, lock: &ContainerLock, error: CniError) -> CniError {
        record.state = State::Deleting;
        // Undoing runs to the end even if it was the time limit that ended ADD.
        let hands = Hands { deadline: Instant::now() + self.config.timeout.min(UNDO_TIME), ..self.hands() };
        let records = &self.records;
        let teardown = Teardown {
            hands,
            lock: Some(lock),
            record: &record,
            pod: Some(sandbox),
            records: Some(records),
            whole: true,
        };
        let errors = teardown.run();
        let Some(first) = errors.first() else {
            self.take_status_back(&record);
            pending::forget(&self.config.cni_dir, &record.key());
            return match records.remove(&record.key()) {
                Ok(()) => error,
                Err(e) => undo_incomplete(&error, &e),
            };
        };
        // The record that stands already says enough for DEL; this one says more.
        if let Err(e) = records.write(&record, false) {
            tracing::warn!("{e}");
        }
        undo_incomplete(&error, first)
    }

    /// ADD may have failed after the network-status was written.
    fn take_status_back(&self, record: &Record) {
        let (Some(pod), Some(written)) = (&record.pod, status::written(record)) else { return };
        if let Err(error) = self.store.remove_status(&pod.namespace, &pod.name, Some(&written)) {
            tracing::warn!("{error}");
        }
    }
}

pub(super) fn undo_incomplete(error: &CniError, undo: &CniError) -> CniError {
    CniError::new(code::UNDO_INCOMPLETE, format!("{}; and undoing it failed: {}", error.msg, undo.msg)).with_details(
        if error.details.is_empty() { "DEL undoes what is left".to_owned() } else { error.details.clone() },
    )
}

/// What the runtime is told of a finished ADD: the default network's result alone.
fn answer(record: &Record, version: Version) -> Result<Value, CniError> {
    record.attachments.first().and_then(Attached::result).unwrap_or_default().to_json(version)
}

/// No interface may exist yet under a planned name; `loopback` works on one that always does.
pub(super) fn interfaces_are_free(planned: &[Planned], sandbox: &Namespace) -> Result<(), CniError> {
    for planned in planned {
        let name = planned.interface.as_str();
        let makes_one = planned.delegates.first().is_some_and(|d| d.plugin_type != "loopback");
        if makes_one && sandbox.netlink.link_by_name(name)?.is_some() {
            return Err(musubi_delegates::interface::taken(name).context(format!("network {}", planned.network)));
        }
    }
    Ok(())
}

/// What the plugins of a network left of its device's description.
fn read_device_info(planned: &Planned) -> Option<Value> {
    info::read(planned.device_info_file.as_ref()?).unwrap_or_else(|problem| {
        tracing::warn!("network {}: {problem}", planned.network);
        None
    })
}

/// The part of ADD that touches things.
pub(super) struct Adding<'a> {
    pub(super) operation: &'a Operation<'a>,
    pub(super) container: &'a ContainerId,
    pub(super) sandbox: &'a Namespace,
    pub(super) lock: &'a ContainerLock,
    pub(super) binaries: HashMap<String, PathBuf>,
}

impl Adding<'_> {
    fn all(&mut self, plan: &Plan, record: &mut Record, pod: Option<&Pod>) -> Result<Value, CniError> {
        for (position, planned) in plan.attachments.iter().enumerate() {
            self.operation.caller.cancel.check()?;
            let started = Instant::now();
            let outcome = self.network(planned, position, record);
            let attached = &record.attachments[position];
            self.operation.caller.note(Step::of(attached, started.elapsed(), outcome.as_ref().err()));
            let result = outcome?;
            record.attachments[position].set_result(&result)?;
            // Ours need not be on the disk before the end: an ADD that dies is undone as if all of them had been begun.
            if planned.delegates.iter().any(|delegate| matches!(delegate.runs, Runs::External { .. })) {
                self.operation.records.write(record, false)?;
            }
        }
        default_route::select(self.sandbox, record)?;
        // A result that the runtime's version cannot say is an error before anybody is told of the pod.
        let answer = answer(record, self.operation.request.version)?;
        self.publish(record, pod)?;
        self.operation.caller.cancel.check()?;
        record.state = State::Attached;
        record.since = record::now();
        self.operation.records.write(record, false)?;
        if let Some(pod) = pod.filter(|pod| pod.selects_networks()) {
            self.operation.store.tell(pod, events::added(record));
        }
        Ok(answer)
    }

    /// Runs the chain of one network.
    pub(super) fn network(
        &mut self,
        planned: &Planned,
        position: usize,
        record: &mut Record,
    ) -> Result<CniResult, CniError> {
        let operation = self.operation;
        let args = operation.arguments(planned);
        let network =
            planned.list.name.as_ref().ok_or_else(|| CniError::new(code::CONFIG, "the network has no name"))?;
        let target = Target {
            container_id: self.container,
            network,
            version: planned.list.version,
            interface: &planned.interface,
            args: &args,
            netns: Some(&self.sandbox.path),
            pod: Some(self.sandbox),
            group: record.group,
        };
        self.prepare_device_info(planned);
        let is_cancelled = || operation.caller.cancel.is_set();
        let mut previous: Option<CniResult> = None;
        for (index, delegate) in planned.delegates.iter().enumerate() {
            let failed = |e| delegate_failed(&planned.network, planned.interface.as_str(), &delegate.plugin_type, e);
            let mut conf = delegate.conf.clone();
            if let Some(previous) = &previous {
                conf.insert("prevResult", previous.to_json(planned.list.version)?);
            }
            record.attachments[position].begun = true;
            record.attachments[position].delegates[index].begun = true;
            previous = match &delegate.runs {
                Runs::Native(native) => {
                    let hands = operation.hands().while_wanted(&is_cancelled);
                    let at = hands.attachment(&target, &conf, previous.as_ref());
                    let added = native.add(&at).map_err(|error| {
                        // It has undone itself; undoing it again could hit what another has there, as a name that was taken.
                        record.attachments[position].delegates[index].begun = error.code == code::UNDO_INCOMPLETE;
                        failed(error)
                    })?;
                    record.attachments[position].links.extend(added.links.into_iter().map(Into::into));
                    Some(added.result)
                }
                Runs::External { .. } => {
                    let value =
                        self.external(&delegate.plugin_type, &target, &conf.to_bytes(), record).map_err(failed)?;
                    let result =
                        value.map(|v| CniResult::parse(&v, planned.list.version)).transpose().map_err(failed)?;
                    result.or(previous)
                }
            };
        }
        record.attachments[position].device_info = read_device_info(planned);
        Ok(previous.unwrap_or_default())
    }

    /// What a device is like is said for the plugins' and the status' sake; the network works without.
    fn prepare_device_info(&self, planned: &Planned) {
        let Some(file) = &planned.device_info_file else { return };
        let of_device = planned.device.as_ref().map(|device| self.operation.config.device_info.of_device(device));
        if let Err(problem) = info::prepare(file, of_device.as_deref()) {
            tracing::warn!("network {}: {problem}", planned.network);
        }
    }

    /// Runs another's plugin. The record on disk names its process while it runs, and is synced before the next.
    fn external(
        &self,
        plugin_type: &str,
        target: &Target<'_>,
        stdin: &[u8],
        record: &mut Record,
    ) -> Result<Option<Value>, CniError> {
        let operation = self.operation;
        let missing = || CniError::new(code::CONFIG, format!("plugin \"{plugin_type}\" was not looked up"));
        let plugin = self.binaries.get(plugin_type).ok_or_else(missing)?;
        operation.records.write(record, false)?;
        let is_cancelled = || operation.caller.cancel.is_set();
        let mut note = |pid: u32| {
            record.running = Running::of(pid);
            if let Err(e) = operation.records.write(record, false) {
                tracing::warn!("{e}");
            }
        };
        let outcome = operation.hands().while_wanted(&is_cancelled).exec(
            Command::Add,
            plugin,
            target,
            stdin,
            Some(self.lock),
            Some(&mut note),
        );
        record.running = None;
        operation.records.write(record, true)?;
        outcome
    }

    /// Writes the network-status. A pod that selects no networks can do without it for a while.
    fn publish(&self, record: &mut Record, pod: Option<&Pod>) -> Result<(), CniError> {
        let Some(pod) = pod else { return Ok(()) };
        let config = &self.operation.config;
        if config.status_for == StatusFor::Selected && !pod.selects_networks() {
            return Ok(());
        }
        match self.operation.store.write_status(pod, &status::of_record(record)) {
            Err(e) if !pod.selects_networks() => {
                tracing::warn!("pod {}: {e}", pod.key());
                record.status_pending = true;
                pending::note(&self.operation.config.cni_dir, &record.key())
            }
            other => other,
        }
    }
}

//! Taking an attachment of ours back from its record: what a failed ADD, DEL and GC share. Every plugin is run, every
//! error collected, all links of the pod deleted at once, and addresses given back only when no link can use them.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Instant;

use musubi_delegates::cni::{CniArgs, CniError, CniResult, Command, ContainerId, NetConf, NetworkName, Version, code};
use musubi_delegates::delegate::{Delegate, OwnedLink, Side};
use musubi_delegates::external;
use musubi_delegates::netlink::link;
use musubi_delegates::netns::Namespace;
use musubi_delegates::registry;

use super::{Hands, Operation, Target, by_name, delegate_failed, locking};
use crate::devices::info;
use crate::lock::ContainerLock;
use crate::record::{Attached, Record, RecordedDelegate, Running};
use crate::records::{Records, Stored};

/// One teardown.
pub struct Teardown<'a> {
    /// The place.
    pub hands: Hands<'a>,
    /// The container's lock, for plugins to inherit.
    pub lock: Option<&'a ContainerLock>,
    /// What was done.
    pub record: &'a Record,
    /// The pod's namespace, if it is still the one that the record speaks of.
    pub pod: Option<&'a Namespace>,
    /// Where the record is, to note in it which plugin runs; `None` where it says more than is taken back.
    pub records: Option<&'a Records>,
    /// Whether it is all that the pod has of ours: then its links go in one message.
    pub whole: bool,
}

/// A network of the record with what its plugins are told.
struct Step<'a> {
    attached: &'a Attached,
    container: ContainerId,
    network: NetworkName,
    interface: musubi_delegates::cni::InterfaceName,
    args: CniArgs,
    result: Option<CniResult>,
}

impl Teardown<'_> {
    /// Does all of it.
    pub fn run(&self) -> Vec<CniError> {
        let mut errors = Vec::new();
        let begun = self.record.attachments.iter().flat_map(|a| &a.delegates).filter(|d| d.begun);
        let mut externals = u32::try_from(begun.filter(|d| !d.native).count()).unwrap_or(u32::MAX);
        let mut links: Vec<OwnedLink> = Vec::new();
        let mut natives: Vec<(Step<'_>, Box<dyn Delegate>, NetConf)> = Vec::new();
        for attached in self.record.attachments.iter().rev().filter(|attached| attached.begun) {
            links.extend(attached.links.iter().map(OwnedLink::from));
            let step = || self.step(attached);
            for delegate in attached.delegates.iter().rev().filter(|delegate| delegate.begun) {
                let outcome = if delegate.native {
                    step().and_then(|step| self.detach(step, delegate, &mut links, &mut natives))
                } else {
                    let deadline = share(self.hands.deadline, externals);
                    externals = externals.saturating_sub(1);
                    step().and_then(|step| self.exec(&step, delegate, deadline))
                };
                let failed = |e| delegate_failed(&attached.network, &attached.interface, &delegate.plugin_type, e);
                errors.extend(outcome.map_err(failed).err());
            }
        }
        let undeleted = self.delete_links(&links);
        if undeleted.is_empty() {
            for (step, native, conf) in &natives {
                let at = self.hands.attachment(&self.target(step), conf, None);
                let failed = |e| delegate_failed(&step.attached.network, &step.attached.interface, "ipam", e);
                errors.extend(native.release(&at).map_err(failed).err());
            }
        }
        errors.extend(undeleted);
        // A plugin that failed is called again, with a configuration that names the file.
        if errors.is_empty() {
            let files = self.record.attachments.iter().filter_map(|attached| attached.device_info_file.as_ref());
            errors.extend(files.filter_map(|file| info::remove(file).err()));
        }
        errors
    }

    fn step<'b>(&self, attached: &'b Attached) -> Result<Step<'b>, CniError> {
        Ok(Step {
            attached,
            container: ContainerId::parse(&self.record.container_id)?,
            network: NetworkName::parse(&attached.cni_name)?,
            interface: attached.interface_name()?,
            args: CniArgs::parse_lossy(&attached.args),
            result: attached.result(),
        })
    }

    fn target<'b>(&'b self, step: &'b Step<'_>) -> Target<'b> {
        Target {
            container_id: &step.container,
            network: &step.network,
            version: step.attached.version(),
            interface: &step.interface,
            args: &step.args,
            netns: self.pod.map(|_| self.record.netns.as_path()),
            pod: self.pod,
            group: self.record.group,
        }
    }

    /// Undoes what a native delegate has on the host and learns its links.
    fn detach<'b>(
        &self,
        step: Step<'b>,
        delegate: &RecordedDelegate,
        links: &mut Vec<OwnedLink>,
        natives: &mut Vec<(Step<'b>, Box<dyn Delegate>, NetConf)>,
    ) -> Result<(), CniError> {
        let conf = sent_on_delete(delegate, step.attached.version(), step.result.as_ref())?;
        let native = registry::parse_for_del(&delegate.plugin_type, &conf).ok_or_else(|| {
            CniError::new(code::CONFIG, format!("type \"{}\" is not bundled any more", delegate.plugin_type))
        })?;
        let outcome = native.detach(&self.hands.attachment(&self.target(&step), &conf, step.result.as_ref()));
        natives.push((step, native, conf));
        links.extend(outcome?);
        Ok(())
    }

    fn exec(&self, step: &Step<'_>, delegate: &RecordedDelegate, deadline: Instant) -> Result<(), CniError> {
        let conf = sent_on_delete(delegate, step.attached.version(), step.result.as_ref())?;
        let plugin = external::find(&delegate.plugin_type, self.hands.path)?;
        let target = self.target(step);
        let hands = Hands { deadline, ..self.hands };
        let mut note = |pid| self.note_running(pid);
        hands.exec(Command::Del, &plugin, &target, &conf.to_bytes(), self.lock, Some(&mut note)).map(drop)
    }

    /// Whoever comes after us, should we die, has to know what still runs. DEL goes on where that cannot be written.
    fn note_running(&self, pid: u32) {
        let Some(records) = self.records else { return };
        // An orphan's record is elsewhere; its file says nothing of processes.
        if !matches!(records.read(&self.record.key()), Ok(Some(_))) {
            return;
        }
        let (worker, running) = (Running::this(), Running::of(pid));
        if let Err(error) = records.write(&Record { worker, running, ..self.record.clone() }, false) {
            tracing::warn!("{error}");
        }
    }

    /// One message for all links of the pod, then a look at what remains: a pod may have put its links elsewhere.
    fn delete_links(&self, links: &[OwnedLink]) -> Vec<CniError> {
        if let Some(pod) = self.pod.filter(|_| self.whole) {
            delete_group(pod, self.record.group);
        }
        let mut seen = Vec::new();
        let mut errors = Vec::new();
        if !self.record.is_of_this_boot() {
            return errors;
        }
        for owned in links {
            let namespace = match owned.side {
                Side::Host => Some(self.hands.host),
                Side::Pod => self.pod,
            };
            let Some(namespace) = namespace else { continue };
            if seen.contains(&(owned.side, owned.index)) {
                continue;
            }
            seen.push((owned.side, owned.index));
            errors.extend(owned.delete(namespace).err());
        }
        errors
    }
}

/// The deadline of the next of so many plugins: a fair share of the time left, so that one that hangs leaves some to those
/// after it. Addresses are released in whatever time is left, even none.
fn share(deadline: Instant, plugins: u32) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / plugins.max(1)
}

/// Whether there was nothing to delete, or the pod's own link stood in the way, is seen by the look-ups after it.
fn delete_group(pod: &Namespace, group: NonZeroU32) {
    if let Err(error) = pod.netlink.request(link::delete_group(group)) {
        tracing::debug!("{error}");
    }
}

/// What a plugin is sent on DEL and CHECK: the very bytes of ADD, with the chain's final result from 0.4.0 on.
pub(super) fn sent_on_delete(
    delegate: &RecordedDelegate,
    version: Version,
    result: Option<&CniResult>,
) -> Result<NetConf, CniError> {
    let mut conf = NetConf::parse(delegate.config.as_bytes())?;
    if let Some(result) = result
        && version >= Version::V0_4_0
    {
        conf.insert("prevResult", result.to_json(version)?);
    }
    Ok(conf)
}

impl Operation<'_> {
    /// Takes back whatever a record's file says, or its name alone.
    pub(super) fn tear_down_stored(&self, stored: &Stored, lock: &ContainerLock) -> Vec<CniError> {
        match stored {
            Stored::Whole(record) => {
                locking::end_running(record);
                let pod = self.namespace_of(record);
                let path = self.path_for(record);
                let hands = Hands { path: &path, ..self.hands() };
                Teardown {
                    hands,
                    lock: Some(lock),
                    record,
                    pod: pod.as_ref(),
                    records: Some(&self.records),
                    whole: true,
                }
                .run()
            }
            Stored::Damaged { key, problem } => {
                tracing::warn!("record of container {} is damaged: {problem}", key.container_id);
                if self.request.container_id.as_ref().is_some_and(|id| id.as_str() == key.container_id) {
                    self.undo_default_network(key);
                }
                by_name::release(&self.config.cni_dir, key, false, self.deadline)
            }
        }
    }

    /// The namespace that a record speaks of, if it is still that one, at its path or at the request's.
    pub(super) fn namespace_of(&self, record: &Record) -> Option<Namespace> {
        let own = self.request.container_id.as_ref().is_some_and(|id| id.as_str() == record.container_id);
        namespace_of(record, self.request.netns.as_deref().filter(|_| own))
    }

    /// The record's own plugin folders come after the request's: the program may have moved with an upgrade.
    pub(super) fn path_for(&self, record: &Record) -> Vec<PathBuf> {
        let mut path = self.path.clone();
        path.extend(record.path.iter().filter(|folder| !self.path.contains(folder)).cloned());
        path
    }
}

/// The namespace that a record speaks of, if it is still that one; looked for at its own path, then at another.
pub(super) fn namespace_of(record: &Record, elsewhere: Option<&Path>) -> Option<Namespace> {
    if !record.is_of_this_boot() {
        return None;
    }
    let open = |path| Namespace::open(path).ok().flatten();
    let same = |namespace: &Namespace| namespace.identity.is_same(&record.namespace.into());
    [Some(record.netns.as_path()), elsewhere].into_iter().flatten().filter_map(open).find(same)
}

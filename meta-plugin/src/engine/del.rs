//! DEL: from the record alone. It runs everything, collects every error, and fails only while repeating can help.

use std::path::Path;
use std::time::Instant;

use musubi_delegates::cni::{CniError, Command};
use musubi_delegates::external;
use musubi_delegates::netns::Namespace;
use musubi_delegates::registry::Runs;
use musubi_delegates::standalone;

use super::caller::Step;
use super::{Operation, Target, by_name, joined, pending, withdraw};
use crate::devices::Devices;
use crate::networks;
use crate::plan;
use crate::record::{Key, Record, State};
use crate::records::{self, Stored};
use crate::status;
use crate::store::DirectoryStore;

/// After this many failures with the namespace gone, DEL succeeds and what is left becomes an orphan.
const TRIES: u32 = 3;

impl Operation<'_> {
    pub(super) fn del(&self) -> Result<(), CniError> {
        let container = self.request.container_id()?;
        let key = Key::new(container, self.request.interface()?, &self.own_network()?);
        if let Err(never_added) = records::fits_a_file(&key) {
            tracing::warn!("{never_added}");
            return Ok(());
        }
        let lock = self.take_lock(container)?;
        let mut stored = self.records.read(&key)?;
        if let Some(Stored::Whole(record)) = &mut stored {
            record.state = State::Deleting;
        }
        let started = Instant::now();
        let errors = match &stored {
            Some(stored) => self.tear_down_stored(stored, &lock),
            None => {
                self.del_without_record(&key);
                Vec::new()
            }
        };
        if let Some(Stored::Whole(record)) = &stored {
            // The links of all of them go at once: each takes as long as all.
            let (took, error) = (started.elapsed(), errors.first());
            record.attachments.iter().for_each(|attached| self.caller.note(Step::of(attached, took, error)));
        }
        if matches!(&stored, Some(Stored::Whole(record)) if record.status_pending) {
            pending::forget(&self.config.cni_dir, &key);
        }
        let pod = self.pod_of(stored.as_ref());
        let written = match &stored {
            Some(Stored::Whole(record)) => status::written(record),
            _ => None,
        };
        let outcome =
            if errors.is_empty() { self.records.remove(&key) } else { self.give_up_or_fail(stored, &key, &errors) };
        // After the record, so that of several DELs for one pod the last sees that it is the last.
        if let Some((namespace, name)) = pod.filter(|_| self.config.manifest_dir.is_some()) {
            withdraw::status(self.store.as_ref(), &self.records, &key, &namespace, &name, written.as_deref());
        }
        if outcome.is_ok() {
            lock.remove();
        }
        outcome
    }

    /// The pod that a record or else the request speaks of.
    fn pod_of(&self, stored: Option<&Stored>) -> Option<(String, String)> {
        let argument = |key| self.request.args.get(key).map(str::to_owned);
        match stored {
            Some(Stored::Whole(record)) => record.pod.as_ref().map(|pod| (pod.namespace.clone(), pod.name.clone())),
            _ => argument("K8S_POD_NAMESPACE").zip(argument("K8S_POD_NAME")),
        }
    }

    /// Repeating helps while the namespace is there, or while a failure may pass. It cannot help against a program that is
    /// missing, or one that has failed three times for a namespace that no longer exists.
    fn give_up_or_fail(&self, stored: Option<Stored>, key: &Key, errors: &[CniError]) -> Result<(), CniError> {
        let Some(Stored::Whole(mut record)) = stored else { return Err(joined(errors)) };
        record.failed_deletes += 1;
        record.running = None;
        if let Err(error) = self.records.write(&record, false) {
            tracing::warn!("container {}: this failure is not counted: {error}", record.container_id);
        }
        let gone = self.namespace_of(&record).is_none();
        let missing = self.misses_a_program(&record);
        if missing || (gone && record.failed_deletes >= TRIES) {
            tracing::error!("container {}: kept among the orphans: {}", record.container_id, joined(errors).msg);
            return self.records.orphan(key);
        }
        Err(joined(errors))
    }

    fn misses_a_program(&self, record: &Record) -> bool {
        let begun = record.attachments.iter().flat_map(|a| &a.delegates).filter(|d| d.begun && !d.native);
        let path = self.path_for(record);
        begun.into_iter().any(|d| external::find(&d.plugin_type, &path).is_err())
    }

    /// Without a record DEL does what the request itself says: the default network's plugins, the links of our group, and
    /// the reservations of that container. It was probably done before, so nothing here is an error.
    fn del_without_record(&self, key: &Key) {
        self.undo_default_network(key);
        for error in by_name::release(&self.config.cni_dir, key, true, self.deadline) {
            tracing::debug!("DEL without a record: {error}");
        }
    }

    /// Takes back what the request and the configuration alone tell of.
    pub(super) fn undo_default_network(&self, key: &Key) {
        let pod = self.request.netns.as_deref().and_then(|path: &Path| Namespace::open(path).ok().flatten());
        let pod = pod.filter(|pod| super::refuse_host_namespace(pod, self.host).is_ok());
        let pod = pod.filter(|pod| !self.is_of_another_container(pod, key));
        if let Err(error) = self.run_default_network(pod.as_ref(), key) {
            tracing::debug!("DEL without a record: {error}");
        }
        if let Some(pod) = &pod
            && let Err(error) = pod.netlink.request(musubi_delegates::netlink::link::delete_group(key.group()))
        {
            tracing::debug!("{error}");
        }
    }

    /// Whether the path of a namespace that is gone has become another container's.
    fn is_of_another_container(&self, pod: &Namespace, key: &Key) -> bool {
        let is_there = |stored: &Stored| match stored {
            Stored::Whole(record) => {
                record.container_id != key.container_id
                    && record.is_of_this_boot()
                    && pod.identity.is_same(&record.namespace.into())
            }
            Stored::Damaged { .. } => false,
        };
        // What cannot be read might be of that namespace.
        self.records.all().map_or(true, |records| records.iter().any(is_there))
    }

    fn run_default_network(&self, pod: Option<&Namespace>, key: &Key) -> Result<(), CniError> {
        let interface = self.request.interface()?;
        // A folder that cannot be read is no obstacle to what the configuration has in line; an API server that does not
        // answer would be, so it is not asked.
        let manifests = self.config.manifest_dir.as_deref().and_then(|folder| DirectoryStore::read(folder).ok());
        let store = manifests.as_ref().map_or(self.store.as_ref(), |manifests| manifests);
        let wanted = networks::default_only(&self.config, store)?;
        let plan = plan::plan(&self.config, wanted, interface, Devices::unasked())?;
        for planned in plan.attachments.iter().rev() {
            let Some(network) = &planned.list.name else { continue };
            let target = Target {
                container_id: self.request.container_id()?,
                network,
                version: planned.list.version,
                interface: &planned.interface,
                args: &self.request.args,
                netns: pod.and(self.request.netns.as_deref()),
                pod,
                group: key.group(),
            };
            for delegate in planned.delegates.iter().rev() {
                let outcome = match &delegate.runs {
                    Runs::Native(native) => self.undo_native(native.as_ref(), &target, &delegate.conf),
                    Runs::External { .. } => external::find(&delegate.plugin_type, &self.path)
                        .and_then(|plugin| {
                            self.hands().exec(Command::Del, &plugin, &target, &delegate.conf.to_bytes(), None, None)
                        })
                        .map(drop),
                };
                if let Err(error) = outcome {
                    tracing::debug!("DEL without a record: {error}");
                }
            }
        }
        Ok(())
    }

    fn undo_native(
        &self,
        native: &dyn musubi_delegates::delegate::Delegate,
        target: &Target<'_>,
        conf: &musubi_delegates::cni::NetConf,
    ) -> Result<(), CniError> {
        let at = self.hands().attachment(target, conf, None);
        standalone::take_away(native, &at)
    }
}

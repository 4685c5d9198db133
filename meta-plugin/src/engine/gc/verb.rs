//! GC, the CNI verb: works on the records of one network, by the runtime's list, and tells each delegate's network what our
//! records still hold. What is compared with reality instead is the business of the files beside it.

use std::time::{Duration, Instant};

use musubi_delegates::cni::{CniError, Command, ContainerId, NetConf, NetworkName, ValidAttachment, Version, code};
use musubi_delegates::external;
use musubi_delegates::registry;

use super::PATIENCE;
use super::stale::{is_being_added, is_unchanged};
use crate::engine::{Hands, Operation, joined, locking, withdraw};
use crate::lock::GcFence;
use crate::record::{Record, RecordedDelegate};
use crate::records::Stored;
use crate::status;

/// How long another's plugin may take for its GC.
const PLUGIN_TIME: Duration = Duration::from_secs(10);

impl Operation<'_> {
    /// Records of this network that the runtime does not list are torn down; then each delegate's network is told what
    /// our records still hold for it, never the runtime's list, which knows nothing of it.
    pub(in crate::engine) fn gc(&self) -> Result<(), CniError> {
        let network = self.own_network()?;
        let valid = self.request.conf.valid_attachments()?.ok_or_else(|| {
            CniError::new(code::CONFIG, "key \"cni.dev/valid-attachments\": is missing; GC needs the list of attachments in use, which may be empty")
        })?;
        let mut errors = Vec::new();
        for stored in self.records.all()? {
            let key = stored.key();
            let listed = valid.iter().any(|v| v.container_id == key.container_id && v.interface == key.interface);
            if key.network == network.as_str() && !listed && !is_being_added(&stored) {
                errors.extend(self.collect(&stored).err());
            }
        }
        errors.extend(self.tell_delegates());
        if errors.is_empty() { Ok(()) } else { Err(joined(&errors)) }
    }

    fn collect(&self, seen: &Stored) -> Result<(), CniError> {
        let key = &seen.key();
        let container = ContainerId::parse(&key.container_id)?;
        // Whoever holds it is making or removing this very attachment.
        let Ok(lock) = locking::take(&self.config.cni_dir, &container, Instant::now() + PATIENCE) else {
            return Ok(());
        };
        let Some(stored) = self.records.read(key)?.filter(|stored| is_unchanged(seen, stored)) else {
            lock.remove();
            return Ok(());
        };
        let errors = self.tear_down_stored(&stored, &lock);
        if !errors.is_empty() {
            return Err(joined(&errors));
        }
        self.records.remove(key)?;
        if let Stored::Whole(record) = &stored
            && let Some(pod) = &record.pod
        {
            let written = status::written(record);
            let store = self.store.as_ref();
            withdraw::status(store, &self.records, key, &pod.namespace, &pod.name, written.as_deref());
        }
        lock.remove();
        Ok(())
    }

    fn tell_delegates(&self) -> Vec<CniError> {
        // From here on no ADD can reserve what its record does not show to us.
        let _fence = match GcFence::alone(&self.config.cni_dir, self.deadline) {
            Ok(fence) => fence,
            Err(error) => return vec![error],
        };
        let mut records = Vec::new();
        let all = match self.records.all() {
            Ok(all) => all,
            Err(error) => return vec![error],
        };
        for stored in all {
            match stored {
                Stored::Whole(record) => records.push(*record),
                Stored::Damaged { key, .. } => {
                    // Its pod may live, and nobody knows what it holds.
                    tracing::warn!("the record of container {} is damaged: no address is collected", key.container_id);
                    return Vec::new();
                }
            }
        }
        let mut told: Vec<(String, String)> = Vec::new();
        let mut errors = Vec::new();
        for attached in records.iter().flat_map(|record| &record.attachments) {
            let Ok(network) = NetworkName::parse(&attached.cni_name) else { continue };
            let valid = held(&records, &attached.cni_name);
            for delegate in &attached.delegates {
                let what = (attached.cni_name.clone(), delegate.plugin_type.clone());
                if told.contains(&what) {
                    continue;
                }
                told.push(what);
                let outcome = self.tell(&network, attached.version(), delegate, &valid);
                errors.extend(
                    outcome
                        .map_err(|e| {
                            e.context(format!("network {}, plugin {}", attached.network, delegate.plugin_type))
                        })
                        .err(),
                );
            }
        }
        errors
    }

    fn tell(
        &self,
        network: &NetworkName,
        version: Version,
        delegate: &RecordedDelegate,
        valid: &[ValidAttachment],
    ) -> Result<(), CniError> {
        let mut conf = NetConf::parse(delegate.config.as_bytes())?;
        conf.remove("runtimeConfig");
        conf.set_valid_attachments(valid);
        if delegate.native {
            let native = registry::parse(&delegate.plugin_type, &conf)
                .ok_or_else(|| CniError::new(code::CONFIG, "the type is not bundled any more"))??;
            return native.gc(&self.hands().context(network, version, &conf), valid);
        }
        if version < Version::V1_1_0 {
            return Ok(());
        }
        let plugin = external::find(&delegate.plugin_type, &self.path)?;
        // ADDs wait meanwhile.
        let hands = Hands { deadline: self.deadline.min(Instant::now() + PLUGIN_TIME), ..self.hands() };
        hands.exec_network(Command::Gc, &plugin, &conf.to_bytes()).map(drop)
    }
}

/// What the records hold of a CNI network, whichever of our own networks it came by.
fn held(records: &[Record], cni_name: &str) -> Vec<ValidAttachment> {
    let mut valid = Vec::new();
    for record in records {
        for attached in record.attachments.iter().filter(|a| a.cni_name == cni_name) {
            valid.push(ValidAttachment {
                container_id: record.container_id.clone(),
                interface: attached.interface.clone(),
            });
        }
    }
    valid
}

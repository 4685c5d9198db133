//! Taking a pod's network-status away with its last sandbox, in places that do not remove it with the pod.

use musubi_crds::NetworkStatus;

use crate::record::Key;
use crate::records::{Records, Stored};
use crate::store::Store;

/// The status of a pod that is gone is gone, unless the pod has another sandbox by now, whose status it is: that it is
/// what this attachment wrote is seen at one look, otherwise the pod's other records tell. `key` is the attachment's, which
/// has no record any more or does not count.
pub(super) fn status(
    store: &dyn Store,
    records: &Records,
    key: &Key,
    namespace: &str,
    name: &str,
    written: Option<&[NetworkStatus]>,
) {
    let remove = |written| store.remove_status(namespace, name, written);
    let outcome = match written.map_or(Ok(false), |written| remove(Some(written))) {
        Ok(false) if !has_other_record(records, key, namespace, name) => remove(None),
        outcome => outcome,
    };
    if let Err(error) = outcome {
        tracing::warn!("{error}");
    }
}

fn has_other_record(records: &Records, key: &Key, namespace: &str, name: &str) -> bool {
    let is_of_pod = |stored: &Stored| match stored {
        Stored::Whole(record) => {
            record.key() != *key
                && record.pod.as_ref().is_some_and(|pod| pod.namespace == namespace && pod.name == name)
        }
        Stored::Damaged { .. } => false,
    };
    records.all().is_ok_and(|records| records.iter().any(is_of_pod))
}

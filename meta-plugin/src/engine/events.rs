//! What a pod's owner is told of ADD, in the words that Multus' users know.

use musubi_delegates::cni::CniError;

use crate::record::{Attached, Record};
use crate::store::Event;

/// One Event for each network, as `kubectl describe pod` shows them.
pub(super) fn added(record: &Record) -> Vec<Event> {
    let event = |attached: &Attached| {
        let result = attached.result().unwrap_or_default();
        let addresses: Vec<String> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
        let message = format!("Add {} [{}] from {}", attached.interface, addresses.join(" "), attached.network);
        Event { reason: "AddedInterface", message, warning: false }
    };
    record.attachments.iter().map(event).collect()
}

/// Why the pod does not start, and by which id to find it in the log.
pub(super) fn failed(error: &CniError, request_id: &str) -> Event {
    let message = format!("{error} (code {}, request {request_id})", error.code);
    Event { reason: "FailedAddingInterface", message, warning: true }
}

//! An Event as the API stores it: on the pod, of this node's musubi.

use std::hash::{BuildHasher, RandomState};

use k8s_openapi::api::core::v1::{Event as KubernetesEvent, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::ObjectMeta;

use crate::store::{Event, Pod};

/// Who tells.
const COMPONENT: &str = "musubi";
/// The longest message the API takes, in bytes.
const LONGEST_MESSAGE: usize = 1024;
/// The longest name of an object, in bytes.
const LONGEST_NAME: usize = 253;

pub(super) fn object(pod: &Pod, event: &Event) -> KubernetesEvent {
    let now = Time(jiff::Timestamp::now());
    KubernetesEvent {
        metadata: ObjectMeta { name: Some(name(pod)), namespace: Some(pod.namespace.clone()), ..ObjectMeta::default() },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()).filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        },
        type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(event.reason.to_owned()),
        message: Some(shortened(&event.message, LONGEST_MESSAGE).to_owned()),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: node_name() }),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        ..KubernetesEvent::default()
    }
}

/// The pod's name and something that no other Event of it has.
fn name(pod: &Pod) -> String {
    let unique = format!(".{:016x}", RandomState::new().hash_one(&pod.name));
    format!("{}{unique}", shortened(&pod.name, LONGEST_NAME - unique.len()))
}

fn node_name() -> Option<String> {
    Some(std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_owned())
}

fn shortened(text: &str, longest: usize) -> &str {
    let end = (0..=longest.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_for_the_api_is_cut_between_characters() {
        let pod = Pod { namespace: "ns".into(), name: "p".repeat(250), uid: "u".into(), ..Pod::default() };
        let event = Event { reason: "AddedInterface", message: "ä".repeat(600), warning: false };
        let object = object(&pod, &event);
        assert_eq!(object.metadata.name.unwrap().len(), LONGEST_NAME);
        assert_eq!(object.message.unwrap(), "ä".repeat(512));
        assert_eq!(object.involved_object.uid.as_deref(), Some("u"));
    }
}

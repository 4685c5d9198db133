//! Whose pod it is: pods that were created anew under their name, static pods and their mirrors, pods that are gone and
//! pods that are not there yet.

use k8s_openapi::api::core::v1::Pod;
use musubi_tests::node::link_names;
use serde_json::json;

use super::stage::{NETWORKS, NODE, POLICIES, STATUS, Stage, Started, WAYS, Way};
use crate::scene::assert_words;

/// The pod that a runtime still starts, while the cluster has another of its name.
fn recreated(stage: &Stage) -> Started {
    let old = stage.pod("web", &[(NETWORKS, "blue")]);
    stage.cluster.delete_pod("web");
    let _ = stage.pod("web", &[(NETWORKS, "blue")]);
    old
}

#[test]
fn a_pod_that_was_created_anew_is_tried_again_before_anything_is_touched() {
    for way in WAYS {
        let stage = Stage::new(way);
        let old = recreated(&stage);
        let (code, message) = stage.add(&old).error();
        assert_eq!(code, 11, "{message}");
        assert_words(&message, &["pod musubi-test/web has uid", &old.uid], "created anew");
        stage.assert_asked(&["GET /pods/web"], "read live, for the cache knows another uid");
        assert!(!stage.scene.node.state().join("records").exists(), "no record was begun");
        stage.nothing_is_left(&[&old], "created anew");
        assert_eq!(stage.cluster.annotation("web", STATUS), None);
    }
}

/// The runtime hands over what it knows; only the server knows that this pod is gone.
#[test]
fn a_status_for_a_pod_that_was_created_anew_is_refused_and_all_is_taken_back() {
    for way in WAYS {
        let stage = Stage::new(way);
        let old = recreated(&stage).handed_over(&[(NETWORKS, "blue")]);
        let (code, message) = stage.add(&old).error();
        assert_eq!(code, 11, "{message}");
        assert_words(&message, &["pod musubi-test/web was created anew", &old.uid], "created anew");
        assert_eq!(stage.cluster.annotation("web", STATUS), None, "the new pod's status is its own");
        stage.nothing_is_left(&[&old], "created anew meanwhile");
        stage.del(&old).succeeded();
    }
}

/// A static pod as kubelet announces it: its own uid stands in an annotation of the mirror.
fn mirror(stage: &Stage, kubelet: &str) -> Pod {
    let pod = stage.cluster.create_pod_from(&json!({
        "metadata": {"name": "static", "annotations": {
            NETWORKS: "blue", "kubernetes.io/config.mirror": kubelet, "kubernetes.io/config.hash": kubelet,
            "kubernetes.io/config.source": "file", "kubernetes.io/config.seen": "2026-11-21T08:00:00Z",
        }},
        "spec": {"nodeName": NODE, "containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}]},
    }));
    stage.wait_for_cache();
    stage.settle();
    pod
}

#[test]
fn a_static_pod_is_known_to_the_server_by_its_mirrors_uid() {
    const KUBELET: &str = "0123456789abcdef0123456789abcdef";
    const ADDED: [&str; 3] = ["PATCH /pods/static/status", "POST /events", "POST /events"];
    let (pod, blue) = ("GET /pods/static", "GET /network-attachment-definitions/blue");
    let cases = [
        (Way::Alone, false, vec![POLICIES, pod, blue]),
        (Way::Alone, true, vec![POLICIES, pod, blue]),
        (Way::Agent, false, vec![]),
        (Way::Agent, true, vec![]),
    ];
    for (way, handed_over, reads) in cases {
        let Some(stage) = Stage::breakable(way) else { return };
        let stored = mirror(&stage, KUBELET);
        let mut started = Started { uid: KUBELET.to_owned(), ..stage.started(&stored) };
        if handed_over {
            started = started.handed_over(&[(NETWORKS, "blue"), ("kubernetes.io/config.source", "file")]);
        }
        let _ = stage.add(&started).result();
        let log = stage.api().log();
        let patch = log.iter().find(|request| request.method == "PATCH").unwrap().json();
        assert_eq!(patch["metadata"]["uid"], stored.metadata.uid.unwrap(), "{way:?}");
        let case = format!("a static pod, annotations handed over: {handed_over}");
        stage.assert_asked(&[&reads[..], &ADDED].concat(), &case);
        assert_eq!(stage.status(&started).unwrap().len(), 2);
        stage.del(&started).succeeded();
        stage.nothing_is_left(&[&started], "static");
    }
}

#[test]
fn a_pod_that_is_gone_is_attached_to_nothing() {
    for way in WAYS {
        let stage = Stage::new(way);
        let read = stage.pod("read", &[(NETWORKS, "blue")]);
        let selecting = stage.pod("selecting", &[]).handed_over(&[(NETWORKS, "blue")]);
        let plain = stage.pod("plain", &[]).handed_over(&[]);
        for name in ["read", "selecting", "plain"] {
            stage.cluster.delete_pod(name);
        }
        stage.wait_for_cache();
        let (code, message) = stage.add(&read).error();
        assert_eq!((code, message.as_str()), (11, "pod musubi-test/read is not known"), "gone when it is read");
        let (code, message) = stage.add(&selecting).error();
        let wanted = "pod musubi-test/selecting is not in the API any more";
        assert_eq!((code, message.as_str()), (11, wanted), "gone when its status is written");
        // Its status was all that the server was needed for.
        let _ = stage.add(&plain).result();
        assert_eq!(link_names(&plain.sandbox.netns), ["eth0", "lo"]);
        stage.del(&plain).succeeded();
        stage.nothing_is_left(&[&read, &selecting, &plain], "gone");
    }
}

#[test]
fn a_pod_that_is_not_there_yet_is_tried_again() {
    for way in WAYS {
        let stage = Stage::new(way);
        let mut early = stage.pod("web", &[]);
        stage.cluster.delete_pod("web");
        stage.wait_for_cache();
        assert_eq!(stage.add(&early).error().0, 11);
        stage.nothing_is_left(&[&early], "not there yet");
        // No waiting for the cache: what it does not know yet is read live.
        early.uid = stage.cluster.create_pod(NODE, "web", &[(NETWORKS, "blue")]).metadata.uid.unwrap();
        let _ = stage.add(&early).result();
        assert_eq!(link_names(&early.sandbox.netns), ["eth0", "lo", "net1"]);
        stage.del(&early).succeeded();
        stage.nothing_is_left(&[&early], "there");
    }
}

//! A kube client as our programs use it: each thing they rely on, and each thing that goes wrong for them.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Config, Error, ResourceExt};
use musubi_crds::NetworkAttachmentDefinition;
use musubi_tests::api_server::{Fault, Rule};
use serde_json::json;

use super::fixture::{Server, definition, pod};

fn pods(server: &Server) -> Api<Pod> {
    Api::namespaced(server.cluster.client(), "default")
}

#[track_caller]
fn code(error: Error) -> u16 {
    match error {
        Error::Api(status) => status.code,
        other => panic!("an answer, not {other}"),
    }
}

#[test]
fn objects_are_read_whole_or_by_their_metadata() {
    let server = Server::start();
    let stored = server.api().create(&pod("p", "node1"));
    let client = server.cluster.client();
    assert_eq!(server.cluster.run(async move { client.apiserver_version().await.unwrap() }).minor, "36");
    let pods = pods(&server);
    let (whole, part, none) = server.cluster.run(async move {
        let none = pods.get_opt("other").await.unwrap();
        (pods.get("p").await.unwrap(), pods.get_metadata("p").await.unwrap(), none)
    });
    assert_eq!(whole.uid().unwrap(), stored["metadata"]["uid"]);
    assert_eq!(whole.spec.unwrap().node_name.unwrap(), "node1");
    assert_eq!(part.metadata.uid.unwrap(), stored["metadata"]["uid"]);
    assert!(none.is_none());
}

#[test]
fn a_long_list_comes_in_pages_of_one_moment() {
    let server = Server::start();
    for number in 0..7 {
        server.api().create(&definition(&format!("net{number}")));
    }
    let definitions: Api<NetworkAttachmentDefinition> = Api::all(server.cluster.client());
    let next = definitions.clone();
    let first = server.cluster.run(async move { definitions.list(&ListParams::default().limit(3)).await.unwrap() });
    assert_eq!(first.metadata.remaining_item_count, Some(4));

    // What changes between two pages is not seen: they are of one moment.
    server.api().delete("network-attachment-definitions", "default", "net5");
    server.api().create(&definition("net4a"));
    let token = first.metadata.continue_.clone().unwrap();
    let params = ListParams::default().limit(9).continue_token(&token);
    let rest = server.cluster.run(async move { next.list(&params).await.unwrap() });
    assert_eq!(rest.metadata.resource_version, first.metadata.resource_version);
    let names: Vec<String> = first.items.iter().chain(&rest.items).map(ResourceExt::name_any).collect();
    assert_eq!(names, ["net0", "net1", "net2", "net3", "net4", "net5", "net6"]);
}

#[test]
fn a_page_that_has_expired_says_how_to_go_on() {
    let server = Server::start();
    for name in ["a", "b", "c"] {
        server.api().create(&definition(name));
    }
    let path = "/apis/k8s.cni.cncf.io/v1/network-attachment-definitions?limit=1&continue=";
    let token = server.get(path).ok()["metadata"]["continue"].as_str().unwrap().to_owned();
    server.api().compact();
    let refused = server.get(&format!("{path}{token}"));
    assert_eq!((refused.status, &refused.json()["reason"]), (410, &json!("Expired")));
    let fresh = refused.json()["metadata"]["continue"].as_str().unwrap().to_owned();
    let page = server.get(&format!("{path}{fresh}")).ok();
    assert_eq!(page["items"][0]["metadata"]["name"], "b");
}

#[test]
fn a_watch_tells_changes_and_bookmarks() {
    let server = Server::start();
    server.api().set_bookmarks(Duration::from_millis(100));
    let pods = pods(&server);
    let from = server.api().version().to_string();
    let events = server.cluster.run(async move {
        let params = WatchParams::default().fields("spec.nodeName=node1").timeout(30);
        pods.watch(&params, &from).await.unwrap().boxed()
    });
    server.api().create(&pod("elsewhere", "node2"));
    server.api().create(&pod("here", "node1"));
    server.api().replace(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "here", "annotations": {"a": "b"}},
        "spec": {"nodeName": "node1"},
    }));
    server.api().delete("pods", "default", "here");
    let now = server.api().version().to_string();
    let told = server.cluster.run(async move {
        let events: Vec<WatchEvent<Pod>> = events.take(5).try_collect().await.unwrap();
        let tell = |event: &WatchEvent<Pod>| match event {
            WatchEvent::Added(pod) => format!("added {}", pod.name_any()),
            WatchEvent::Modified(pod) => format!("modified {}", pod.name_any()),
            WatchEvent::Deleted(pod) => format!("deleted {}", pod.name_any()),
            WatchEvent::Bookmark(bookmark) => format!("bookmark {}", bookmark.metadata.resource_version),
            WatchEvent::Error(status) => format!("error {}", status.code),
        };
        events.iter().map(tell).collect::<Vec<String>>()
    });
    let (changes, bookmarks): (Vec<&String>, Vec<&String>) =
        told.iter().partition(|text| !text.starts_with("bookmark"));
    assert_eq!(changes, ["added here", "modified here", "deleted here"]);
    assert_eq!(bookmarks.last().unwrap().as_str(), format!("bookmark {now}"));
}

#[test]
fn a_streaming_list_ends_with_its_mark() {
    let server = Server::start();
    for name in ["a", "b"] {
        server.api().create(&pod(name, "node1"));
    }
    let streaming: Api<PartialObjectMeta<Pod>> = Api::all(server.cluster.client());
    let told = server.cluster.run(async move {
        let params = WatchParams::default().initial_events();
        let mut events = streaming.watch(&params, "0").await.unwrap().boxed();
        let mut told = Vec::new();
        loop {
            match events.try_next().await.unwrap().unwrap() {
                WatchEvent::Added(pod) => told.push(pod.name_any()),
                WatchEvent::Bookmark(mark) => {
                    assert_eq!(mark.metadata.annotations["k8s.io/initial-events-end"], "true");
                    return told;
                }
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(told, ["a", "b"]);
}

#[test]
fn refusals_inside_a_watch_reach_the_client_as_errors() {
    let server = Server::start();
    server.api().set_streaming_lists(false);
    server.api().create(&pod("a", "node1"));
    let before = server.api().version().to_string();
    server.api().compact();
    for (params, version, wanted) in
        [(WatchParams::default(), before.as_str(), 410), (WatchParams::default().initial_events(), "0", 500)]
    {
        let (pods, version) = (pods(&server), version.to_owned());
        let event = server.cluster.run(async move {
            pods.watch(&params, &version).await.unwrap().boxed().try_next().await.unwrap().unwrap()
        });
        let WatchEvent::Error(status) = event else { panic!("{event:?}") };
        assert_eq!(status.code, wanted);
    }
}

#[test]
fn a_status_is_patched_only_into_the_pod_that_is_meant() {
    let server = Server::start();
    let uid = server.api().create(&pod("p", "node1"))["metadata"]["uid"].as_str().unwrap().to_owned();
    let patch =
        |uid: &str| json!({"metadata": {"uid": uid, "annotations": {"k8s.v1.cni.cncf.io/network-status": "[]"}}});
    let send = |patch| {
        let pods = pods(&server);
        server
            .cluster
            .run(async move { pods.patch_metadata("p", &PatchParams::default(), &Patch::Merge(&patch)).await })
    };
    let answer = send(patch(&uid)).unwrap();
    assert_eq!(answer.annotations()["k8s.v1.cni.cncf.io/network-status"], "[]");

    // The pod is made anew under its name.
    server.api().delete("pods", "default", "p");
    let stored = server.api().create(&pod("p", "node1"));
    assert_ne!(stored["metadata"]["uid"], uid.as_str());
    assert_eq!(code(send(patch(&uid)).unwrap_err()), 422);
    assert_eq!(server.api().get("pods", "default", "p").unwrap(), stored, "the other pod is as it was");
    server.api().delete("pods", "default", "p");
    assert_eq!(code(send(patch(&uid)).unwrap_err()), 404);
}

#[test]
fn each_fault_reaches_the_client() {
    let server = Server::start();
    server.api().create(&pod("p", "node1"));
    let get = || {
        let pods = pods(&server);
        server.cluster.run(async move { pods.get("p").await })
    };
    for (fault, wanted) in [(Fault::TooManyRequests(3), 429), (Fault::Code(503), 503), (Fault::Gone, 410)] {
        server.api().inject(Rule::once(fault.clone()).method("GET").path("/pods/p"));
        assert_eq!(code(get().unwrap_err()), wanted, "{fault:?}");
        assert!(get().is_ok(), "{fault:?} befalls one request");
    }
    for fault in [Fault::Drop, Fault::DropAfter, Fault::Half] {
        server.api().inject(Rule::once(fault.clone()));
        let error = get().unwrap_err();
        assert!(
            matches!(error, Error::Service(_) | Error::HyperError(_) | Error::ReadEvents(_)),
            "{fault:?}: {error:?}"
        );
        assert!(get().is_ok(), "a new connection is made after {fault:?}");
    }
}

#[test]
fn each_kubeconfig_has_a_token_of_its_own() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = Kubeconfig::read_from(server.cluster.kubeconfig(folder.path())).unwrap();
    let token = std::fs::read_to_string(folder.path().join("token")).unwrap();
    let get = move |kubeconfig: Kubeconfig| async move {
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let nodes: Api<Node> = Api::all(Client::try_from(config).unwrap());
        nodes.list(&ListParams::default()).await
    };
    server.cluster.run(get(kubeconfig.clone())).unwrap();
    server.api().revoke_token(&token);
    assert_eq!(code(server.cluster.run(get(kubeconfig.clone())).unwrap_err()), 401);
    std::fs::write(folder.path().join("token"), server.api().issue_token()).unwrap();
    server.cluster.run(get(kubeconfig)).unwrap();
    server.cluster.create_pod("node1", "p", &[]);
}

/// What runs on either cluster: here on ours, with `MUSUBI_TEST_KUBECONFIG` on a real one.
#[test]
fn a_cluster_is_used_by_its_api_alone() {
    let cluster = musubi_tests::cluster::Cluster::start();
    let created = cluster.create_pod("musubi-test-node", "p", &[("k8s.v1.cni.cncf.io/networks", "net")]);
    assert_eq!(cluster.pod("p").unwrap().uid(), created.uid());
    assert_eq!(cluster.wait_for_annotation("p", "k8s.v1.cni.cncf.io/networks"), "net");
    cluster.annotate("p", "other", Some("1"));
    assert_eq!(cluster.annotation("p", "other").as_deref(), Some("1"));
    cluster.annotate("p", "other", None);
    assert_eq!(cluster.annotation("p", "other"), None);
    cluster.create_definition("net", &json!({"type": "bridge"}));
    assert_eq!(cluster.definition("net").unwrap().config(), Some(r#"{"type":"bridge"}"#));
    let folder = tempfile::tempdir().unwrap();
    assert!(cluster.kubeconfig(folder.path()).is_file());
    assert_eq!(cluster.events("p").iter().filter(|event| event.reason.as_deref() == Some("AddedInterface")).count(), 0);
    cluster.delete_definition("net");
    assert!(cluster.definition("net").is_none());
    cluster.delete_pod("p");
    assert!(cluster.pod("p").is_none());
}

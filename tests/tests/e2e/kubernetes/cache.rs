//! What the agent remembers of the cluster: when it counts, what is read live all the same, and how it becomes current again
//! after each kind of trouble with its watches.

use std::time::{Duration, Instant};

use musubi_tests::api_server::{Fault, Rule};
use musubi_tests::cluster::NAMESPACE;
use musubi_tests::node::link_names;
use serde_json::json;

use super::stage::{NETWORKS, NODE, Stage, Started, Way, name};
use crate::scene::until;

/// How long what is remembered counts in these tests; the server sends bookmarks more often.
const COUNTS: Duration = Duration::from_secs(1);

/// Pods, definitions and policies.
const WATCHES: usize = 3;

fn stage() -> Option<Stage> {
    let stage = Stage::breakable_with(Way::Agent, &json!({"cacheSeconds": COUNTS.as_secs()}))?;
    stage.api().set_bookmarks(COUNTS / 10);
    // Watches that were opened before keep their time.
    stage.api().close_watches();
    until("the watches are open again", || stage.api().open_watches() == WATCHES);
    Some(stage)
}

/// What ADD asks, the status and Events aside.
fn reads_of(stage: &Stage, pod: &Started) -> Vec<String> {
    stage.settle();
    let output = stage.add(pod);
    assert!(output.ok, "{output:?}");
    let log = stage.api().take_log().into_iter();
    let reads = log.filter(|request| request.method == "GET" && !request.query.contains("watch="));
    reads.map(|request| request.path.rsplit('/').next().unwrap().to_owned()).collect()
}

#[test]
fn it_counts_while_the_server_is_heard() {
    let Some(stage) = stage() else { return };
    let mut pods =
        ["first", "second", "third", "fourth"].map(|name| stage.pod(name, &[(NETWORKS, "blue")])).into_iter();
    let mut next = || pods.next().unwrap();
    std::thread::sleep(COUNTS * 2);
    assert_eq!(reads_of(&stage, &next()), [""; 0], "bookmarks alone keep it current");
    stage.api().pause_watches(true);
    assert_eq!(reads_of(&stage, &next()), [""; 0], "a moment of silence is none");
    std::thread::sleep(COUNTS * 2);
    assert_eq!(
        reads_of(&stage, &next()),
        ["third", "attachmentpolicies", "blue"],
        "after a longer one everything is read live"
    );
    stage.api().pause_watches(false);
    std::thread::sleep(COUNTS / 2);
    assert_eq!(reads_of(&stage, &next()), [""; 0], "and it counts again");
}

#[test]
fn a_pod_counts_by_its_uid() {
    let Some(stage) = stage() else { return };
    let old = stage.pod("web", &[(NETWORKS, "blue")]);
    stage.api().pause_watches(true);
    assert!(stage.api().delete("pods", NAMESPACE, name(&old)));
    let new = stage.started(&stage.cluster.create_pod(NODE, "web", &[(NETWORKS, "green@lan")]));
    assert_eq!(reads_of(&stage, &new), ["web"], "what is remembered is another's");
    assert_eq!(link_names(&new.sandbox.netns), ["eth0", "lan", "lo"]);
}

#[test]
fn a_definition_that_it_does_not_know_is_read_live() {
    let Some(stage) = stage() else { return };
    let pod = stage.pod("web", &[(NETWORKS, "red")]);
    stage.settle();
    stage.api().pause_watches(true);
    let (code, message) = stage.add(&pod).error();
    assert!(code == 7 && message.contains("red"), "{code} {message}");
    let asked: Vec<String> = stage.api().take_log().into_iter().map(|request| request.path).collect();
    assert!(asked.iter().any(|path| path.ends_with("/red")), "looked for before it is missing: {asked:?}");
    let network = stage.scene.node.bridge("br-red", "red", "10.4.0.0/24");
    stage.cluster.create_definition("red", &network);
    assert_eq!(reads_of(&stage, &pod), ["red"], "created a moment ago");
    assert_eq!(link_names(&pod.sandbox.netns), ["eth0", "lo", "net1"]);
}

#[test]
fn changes_of_definitions_are_followed() {
    let Some(stage) = stage() else { return };
    let pod = stage.pod("web", &[(NETWORKS, "blue")]);
    stage.cluster.delete_definition("blue");
    stage.wait_for_cache();
    let (code, message) = stage.add(&pod).error();
    assert!(code == 7 && message.contains("musubi-test/blue"), "{code} {message}");
    stage.cluster.create_definition("blue", &stage.scene.node.bridge("br-other", "other", "10.5.0.0/24"));
    stage.wait_for_cache();
    assert_eq!(reads_of(&stage, &pod), [""; 0]);
    assert!(stage.scene.node.links().contains(&"br-other".to_owned()), "{:?}", stage.scene.node.links());
}

/// After each trouble a pod and a definition of a moment ago are known without being read.
#[test]
fn it_becomes_current_again_by_itself() {
    type Trouble = (&'static str, fn(&Stage));
    let troubles: [Trouble; 8] = [
        ("watches are closed", |stage| stage.api().close_watches()),
        ("the history is forgotten while a watch is silent", |stage| {
            stage.api().pause_watches(true);
            stage.api().create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}}));
            stage.api().create(&json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "unseen", "namespace": "other"},
                "spec": {"nodeName": NODE, "containers": []},
            }));
            stage.api().compact();
            stage.api().pause_watches(false);
        }),
        ("the history is forgotten and watches are closed", |stage| {
            stage.api().compact();
            stage.api().close_watches();
        }),
        ("a watch is answered by 410", |stage| {
            stage.api().inject(Rule::once(Fault::Gone).path("watch=").times(2));
            stage.api().close_watches();
        }),
        ("watches fail for a while", |stage| {
            stage.api().inject(Rule::always(Fault::Code(503)).path("watch=").times(4));
            stage.api().close_watches();
        }),
        ("watches break off for a while", |stage| {
            stage.api().inject(Rule::always(Fault::Half).path("watch=").times(4));
            stage.api().close_watches();
        }),
        ("the server is restarted", |stage| {
            stage.api().stop();
            std::thread::sleep(Duration::from_millis(500));
            stage.api().resume();
        }),
        ("lists are not streamed any more", |stage| {
            stage.api().set_streaming_lists(false);
            stage.api().compact();
            stage.api().close_watches();
        }),
    ];
    let Some(stage) = stage() else { return };
    for (number, (trouble, bring)) in troubles.into_iter().enumerate() {
        bring(&stage);
        let network = format!("net-{number}");
        let config = stage.scene.node.bridge(&format!("br-{number}"), &network, &format!("10.{}.0.0/24", 20 + number));
        stage.cluster.create_definition(&network, &config);
        let pod = stage.pod(&format!("pod-{number}"), &[(NETWORKS, &network)]);
        // Of policies there is none whose coming would show that they are followed again.
        until("the watches are open again", || stage.api().open_watches() == WATCHES);
        std::thread::sleep(COUNTS / 5);
        assert_eq!(reads_of(&stage, &pod), [""; 0], "{trouble}; log:\n{}", stage.agent.as_ref().unwrap().log());
    }
}

#[test]
fn a_server_without_streaming_lists_is_read_page_by_page() {
    let Some(mut stage) = Stage::breakable(Way::Alone) else { return };
    for number in 0..600 {
        stage.api().create(&json!({
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": format!("filler-{number}"), "namespace": NAMESPACE}, "spec": {"config": "{}"},
        }));
    }
    stage.api().set_streaming_lists(false);
    stage.way = Way::Agent;
    stage.start_agent(&json!({}));
    stage.wait_for_cache();
    let log = stage.api().take_log();
    let pages = log.iter().filter(|request| request.query.contains("limit=") && request.path.contains("definitions"));
    assert!(pages.count() >= 3, "602 definitions, 250 a page");
    let pod = stage.pod("web", &[(NETWORKS, "blue")]);
    assert_eq!(reads_of(&stage, &pod), [""; 0]);
}

/// A server, or something in front of it, that ends each watch as soon as it begins is not asked without end.
#[test]
fn watches_that_end_at_once_are_opened_with_pauses() {
    let Some(stage) = stage() else { return };
    stage.settle();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        stage.api().close_watches();
        std::thread::sleep(Duration::from_millis(2));
    }
    let watches = stage.api().log().into_iter().filter(|request| request.query.contains("watch=")).count();
    assert!((2..=16).contains(&watches), "{watches} in a second, of two kinds");
}

//! An API server that refuses, fails, is slow or says nothing: what is tried again and until when, with which code it ends,
//! and that nothing is left then.

use std::time::{Duration, Instant};

use musubi_tests::api_server::{Fault, Rule};
use musubi_tests::cluster::Cluster;
use musubi_tests::node::link_names;
use serde_json::{Value, json};

use super::stage::{NETWORKS, STATUS, Stage, Started, WAYS, Way};
use crate::scene::assert_words;

/// Requests that ADD needs: where a fault befalls it.
const GET_POD: (&str, &str) = ("GET", "/pods/");
const GET_DEFINITION: (&str, &str) = ("GET", "/network-attachment-definitions/");
const PATCH: (&str, &str) = ("PATCH", "/status");

/// What ADD needs by either way; the agent reads by its watches.
fn needed(way: Way) -> &'static [(&'static str, &'static str)] {
    match way {
        Way::Alone => &[GET_POD, GET_DEFINITION, PATCH],
        Way::Agent => &[PATCH],
    }
}

fn befall(stage: &Stage, rule: Rule, (method, path): (&str, &str)) {
    stage.api().inject(rule.method(method).path(path));
}

fn selecting(stage: &Stage, name: &str) -> Started {
    stage.pod(name, &[(NETWORKS, "blue")])
}

#[test]
fn what_may_pass_is_tried_again() {
    let faults = [
        (Fault::Code(500), 3),
        (Fault::Code(503), 3),
        (Fault::Code(504), 1),
        (Fault::Code(409), 1),
        (Fault::Drop, 2),
        (Fault::DropAfter, 1),
        (Fault::Half, 1),
        (Fault::TooManyRequests(0), 2),
        (Fault::Delay(Duration::from_millis(700)), 1),
    ];
    for way in WAYS {
        let Some(stage) = Stage::breakable(way) else { return };
        for (number, (fault, times)) in faults.iter().enumerate() {
            for (befallen, place) in needed(way).iter().enumerate() {
                let case = format!("{fault:?} for {place:?}, {way:?}");
                let pod = selecting(&stage, &format!("pod-{number}-{befallen}"));
                befall(&stage, Rule::always(fault.clone()).times(*times), *place);
                let output = stage.add(&pod);
                assert!(output.ok, "{case}: {output:?}");
                assert_eq!(stage.status(&pod).unwrap().len(), 2, "{case}");
                assert_eq!(stage.events(&pod, 2).len(), 2, "{case}");
                stage.api().clear_faults();
                stage.del(&pod).succeeded();
                stage.nothing_is_left(&[&pod], &case);
            }
        }
    }
}

/// A connection that has silently died: half of the time is left for another.
#[test]
fn a_request_that_is_lost_leaves_time_for_another() {
    for way in WAYS {
        let Some(stage) = Stage::breakable(way) else { return };
        for place in needed(way) {
            let pod = selecting(&stage, "web");
            befall(&stage, Rule::once(Fault::Silence), *place);
            let started = Instant::now();
            let output = stage.call("ADD", &pod, &stage.config_with("timeoutSeconds", 4.into()));
            assert!(output.ok, "{place:?}: {output:?}");
            assert!(started.elapsed() >= Duration::from_millis(1500), "{place:?}: {:?}", started.elapsed());
            stage.del(&pod).succeeded();
            stage.cluster.delete_pod("web");
        }
    }
}

/// multus.md pain 10: a server that takes 700 ms a request is slow, and no reason to fail.
#[test]
fn a_slow_server_is_waited_for() {
    for way in WAYS {
        let Some(stage) = Stage::breakable(way) else { return };
        let pod = selecting(&stage, "web");
        stage.api().set_latency(Duration::from_millis(700));
        let output = stage.add(&pod);
        stage.api().set_latency(Duration::ZERO);
        assert!(output.ok, "{way:?}: {output:?}");
        assert_eq!(stage.status(&pod).unwrap().len(), 2);
        stage.del(&pod).succeeded();
        stage.nothing_is_left(&[&pod], "slow");
    }
}

#[test]
fn an_overloaded_server_is_asked_again_when_it_wants() {
    for way in WAYS {
        let Some(stage) = Stage::breakable(way) else { return };
        for (number, place) in needed(way).iter().enumerate() {
            let pod = selecting(&stage, &format!("pod-{number}"));
            befall(&stage, Rule::once(Fault::TooManyRequests(1)), *place);
            let started = Instant::now();
            let output = stage.add(&pod);
            assert!(output.ok, "{place:?}: {output:?}");
            assert!(started.elapsed() >= Duration::from_secs(1), "{place:?}: asked after {:?}", started.elapsed());
            stage.del(&pod).succeeded();
        }
    }
}

#[test]
fn what_does_not_pass_ends_with_the_budget_and_leaves_nothing() {
    /// What happens, what the error says, and whether there is anything to wait for.
    type Case = (Fault, &'static str, bool);
    let cases: [Case; 5] = [
        (Fault::Code(503), "the API server answers 503", true),
        (Fault::Drop, "no answer from the API server", true),
        (Fault::Half, "no answer from the API server", true),
        (Fault::Silence, "no answer from the API server: nothing came within", true),
        (Fault::TooManyRequests(60), "the API server answers 429", false),
    ];
    for way in WAYS {
        let Some(stage) = Stage::breakable(way) else { return };
        let config = stage.config_with("timeoutSeconds", 2.into());
        for (number, (fault, words, waits)) in cases.iter().enumerate() {
            for (befallen, place) in needed(way).iter().enumerate() {
                let case = format!("{fault:?} for {place:?}, {way:?}");
                let pod = selecting(&stage, &format!("pod-{number}-{befallen}"));
                befall(&stage, Rule::always(fault.clone()), *place);
                let started = Instant::now();
                let (code, message) = stage.call("ADD", &pod, &config).error();
                let took = started.elapsed();
                stage.api().clear_faults();
                assert_eq!(code, 11, "{case}: {message}");
                assert_words(&message, &[words], &case);
                let wanted = if *waits { 800..5000 } else { 0..1500 };
                assert!(wanted.contains(&took.as_millis()), "{case}: {took:?}");
                stage.nothing_is_left(&[&pod], &case);
                stage.del(&pod).succeeded();
            }
        }
    }
}

#[test]
fn a_server_that_is_not_there_ends_with_the_budget_and_leaves_nothing() {
    for way in WAYS {
        let Some(stage) = Stage::breakable(way) else { return };
        let pod = selecting(&stage, "web");
        let config = stage.config_with("timeoutSeconds", 2.into());
        stage.api().stop();
        let (code, message) = stage.call("ADD", &pod, &config).error();
        assert_eq!(code, 11, "{way:?}: {message}");
        assert_words(&message, &["pod", "musubi-test/web", "no answer from the API server", "refused"], "stopped");
        stage.nothing_is_left(&[&pod], "stopped");
        stage.del(&pod).succeeded();
        stage.api().resume();
        let output = stage.add(&pod);
        assert!(output.ok, "{way:?}: {output:?}");
        assert_eq!(stage.status(&pod).unwrap().len(), 2);
        stage.del(&pod).succeeded();
        stage.nothing_is_left(&[&pod], "stopped and back");
    }
}

#[test]
fn what_is_missing_in_the_role_is_named() {
    /// Which resource the role lacks, what the error says; no error where one can do without.
    type Case = (&'static str, Way, Option<&'static str>);
    let cases: [Case; 6] = [
        ("pods", Way::Alone, Some("cannot get resource \"pods\"")),
        ("network-attachment-definitions", Way::Alone, Some("cannot get resource \"network-attachment-definitions\"")),
        ("pods/status", Way::Alone, Some("cannot patch resource \"pods/status\"")),
        ("events", Way::Alone, None),
        ("pods/status", Way::Agent, Some("cannot patch resource \"pods/status\"")),
        ("events", Way::Agent, None),
    ];
    for (lacking, way, words) in cases {
        let Some(mut stage) = Stage::breakable(way) else { return };
        let pod = selecting(&stage, "web");
        let rules: Vec<Value> =
            super::stage::rules().into_iter().filter(|rule| rule["resources"] != json!([lacking])).collect();
        let (old, limited) = (stage.token.clone(), stage.api().issue_token_for(&rules));
        stage.set_token(limited);
        stage.api().revoke_token(&old);
        let started = Instant::now();
        let output = stage.add(&pod);
        match words {
            None => assert!(output.ok, "{lacking}: {output:?}"),
            Some(words) => {
                let (code, message) = output.error();
                assert_eq!(code, 7, "{lacking}: {message}");
                assert_words(&message, &["the API server answers 403", words], lacking);
                assert!(output.json()["details"].as_str().unwrap().contains("deploy/rbac.yaml"), "{output:?}");
                assert!(started.elapsed() < Duration::from_secs(5), "not tried again: {:?}", started.elapsed());
                stage.nothing_is_left(&[&pod], lacking);
            }
        }
        stage.del(&pod).succeeded();
    }
}

/// kubelet writes a new token into the file long before the old one ends.
#[test]
fn an_expired_token_is_read_anew_at_once() {
    for way in WAYS {
        let Some(mut stage) = Stage::breakable(way) else { return };
        let before = selecting(&stage, "before");
        assert!(stage.add(&before).ok);
        let (old, new) = (stage.token.clone(), stage.api().issue_token_for(&super::stage::rules()));
        stage.api().revoke_token(&old);
        let (code, message) = stage.add(&selecting(&stage, "without")).error();
        assert_eq!(code, 11, "{way:?}: {message}");
        assert_words(&message, &["the API server does not take the token (401)"], "expired");
        stage.set_token(new);
        let after = stage.started(&stage.cluster.create_pod("node-1", "after", &[(NETWORKS, "blue")]));
        let started = Instant::now();
        let output = stage.add(&after);
        assert!(output.ok, "{way:?}: {output:?}");
        assert!(started.elapsed() < Duration::from_secs(10), "{way:?}: {:?}", started.elapsed());
        assert_eq!(stage.status(&after).unwrap().len(), 2, "{way:?}");
        // The agent's watches go on under the new token.
        stage.wait_for_cache();
        stage.del(&before).succeeded();
        stage.del(&after).succeeded();
        stage.nothing_is_left(&[&before, &after], "expired token");
    }
}

/// The server moves, and its certificate is another authority's: both stand in the kubeconfig, which is read anew.
#[test]
fn another_address_and_authority_are_read_anew() {
    for way in WAYS {
        let Some(mut stage) = Stage::breakable(way) else { return };
        let before = selecting(&stage, "before");
        assert!(stage.add(&before).ok);
        let new = stage.scene.node.host.enter(Cluster::start);
        let (old_api, new_api) = (stage.api(), new.fake().unwrap());
        // Its history does not reach back to what was seen at the old address.
        for number in 0..=old_api.version() {
            new_api
                .create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("n{number}")}}));
        }
        new_api.compact();
        let _ = new.kubeconfig(stage.scene.node.folder());
        old_api.stop();
        stage.cluster = new;
        stage.cluster.create_definition("blue", &stage.scene.node.bridge("br-blue", "blue", "10.2.0.0/24"));
        let after = selecting(&stage, "after");
        let output = stage.add(&after);
        assert!(output.ok, "{way:?}: {output:?}");
        assert_eq!(stage.status(&after).unwrap().len(), 2, "{way:?}");
        stage.del(&before).succeeded();
        stage.del(&after).succeeded();
        stage.nothing_is_left(&[&before, &after], "another authority");
    }
}

#[test]
fn events_that_cannot_be_sent_harm_nothing() {
    for way in WAYS {
        for fault in [Fault::Code(500), Fault::Code(403), Fault::Drop, Fault::Silence] {
            let Some(stage) = Stage::breakable(way) else { return };
            let pod = selecting(&stage, "web");
            befall(&stage, Rule::always(fault.clone()), ("POST", "/events"));
            let started = Instant::now();
            let output = stage.add(&pod);
            assert!(output.ok, "{fault:?}: {output:?}");
            let limit = if way == Way::Agent { 3 } else { 7 };
            assert!(started.elapsed() < Duration::from_secs(limit), "{fault:?}, {way:?}: {:?}", started.elapsed());
            assert_eq!(stage.status(&pod).unwrap().len(), 2);
            stage.del(&pod).succeeded();
            stage.nothing_is_left(&[&pod], "without Events");
        }
    }
}

#[test]
fn events_wait_in_line_while_pods_do_not() {
    let Some(stage) = Stage::breakable_with(Way::Agent, &json!({"eventsPerSecond": 2})) else { return };
    let pods: Vec<Started> = (0..4).map(|number| selecting(&stage, &format!("pod-{number}"))).collect();
    let started = Instant::now();
    for pod in &pods {
        let _ = stage.add(pod).result();
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(3), "eight Events would take four seconds: {took:?}");
    let sent = stage.api().list("events").len();
    assert!(sent < 8, "two a second, not {sent} in {took:?}");
    for pod in &pods {
        assert_eq!(stage.events(pod, 2).len(), 2);
    }
    assert!(started.elapsed() > Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn none_are_sent_where_none_are_wanted() {
    let Some(stage) = Stage::breakable_with(Way::Agent, &json!({"eventsPerSecond": 0})) else { return };
    let pod = selecting(&stage, "quiet");
    let _ = stage.add(&pod).result();
    assert_eq!(stage.status(&pod).unwrap().len(), 2);
    stage.del(&pod).succeeded();
    assert_eq!(stage.api().list("events"), [serde_json::Value::Null; 0]);
}

/// All annotations of an object together have a limit, which the pod's other owners may have used up.
#[test]
fn a_status_that_has_no_room_is_said_so() {
    for way in WAYS {
        let stage = Stage::new(way);
        let filler = "x".repeat(262_144 - 300);
        let pod = stage.pod("web", &[(NETWORKS, "blue"), ("example.com/filler", &filler)]);
        let (code, message) = stage.add(&pod).error();
        assert_eq!(code, 7, "{message}");
        assert_words(&message, &["network-status of pod musubi-test/web", "262144"], "no room");
        assert_eq!(stage.cluster.annotation("web", STATUS), None);
        assert_eq!(link_names(&pod.sandbox.netns), ["lo"]);
        stage.nothing_is_left(&[&pod], "no room");
    }
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_named() {
    let stage = Stage::new(Way::Alone);
    let pod = selecting(&stage, "web");
    let wrong = stage.scene.node.folder().join("wrong");
    for (text, words) in
        [(None, "No such file"), (Some("a: b: c"), "line 1"), (Some("apiVersion: v1\nkind: Config\n"), "context")]
    {
        match text {
            Some(text) => std::fs::write(&wrong, text).unwrap(),
            None => assert!(!wrong.exists()),
        }
        let (code, message) = stage.call("ADD", &pod, &stage.config_with("kubeconfig", json!(wrong))).error();
        assert_eq!(code, 11, "{message}");
        assert_words(&message, &[wrong.to_str().unwrap(), words], "kubeconfig");
        stage.nothing_is_left(&[&pod], "kubeconfig");
    }
}

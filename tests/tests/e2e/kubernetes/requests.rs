//! Which requests each operation makes, and what it writes.

use musubi_tests::node::{Sandbox, link_names};
use serde_json::{Value, json};

use super::stage::{NETWORKS, NODE, POLICIES, STATUS, Stage, Started, WAYS, Way, entries};

#[test]
fn a_pod_gets_its_networks_a_status_and_events() {
    for way in WAYS {
        let stage = Stage::new(way);
        let pod = stage.pod("web", &[(NETWORKS, "blue, green@lan")]);
        let result = stage.add(&pod).result();
        assert_eq!(result["ips"].as_array().unwrap().len(), 1, "the default network's result alone");
        assert_eq!(link_names(&pod.sandbox.netns), ["eth0", "lan", "lo", "net1"]);
        let wanted =
            entries(&[("default-network", "eth0"), ("musubi-test/blue", "net1"), ("musubi-test/green", "lan")]);
        assert_eq!(stage.status(&pod).unwrap(), wanted, "{way:?}");
        let address = result["ips"][0]["address"].as_str().unwrap().trim_end_matches("/24").to_owned();
        let text = stage.cluster.annotation("web", STATUS).unwrap();
        let status: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&status[0]["ips"], &status[0]["default"]), (&json!([address]), &json!(true)));
        let events = stage.events(&pod, 3);
        assert_eq!(
            events.iter().map(|(reason, message)| format!("{reason}: {message}")).collect::<Vec<_>>(),
            [
                "AddedInterface: Add eth0 [10.1.0.2/24] from default-network",
                "AddedInterface: Add lan [10.3.0.2/24] from musubi-test/green",
                "AddedInterface: Add net1 [10.2.0.2/24] from musubi-test/blue",
            ],
            "{way:?}"
        );
        stage.check(&pod).succeeded();
        stage.del(&pod).succeeded();
        stage.del(&pod).succeeded();
        stage.nothing_is_left(&[&pod], "after DEL");
    }
}

/// What a pod costs: the status and its Events, and the reads that nobody else can answer.
#[test]
fn nothing_is_asked_that_is_known() {
    const PATCH: &str = "PATCH /pods/web/status";
    const EVENT: &str = "POST /events";
    const GET_POD: &str = "GET /pods/web";
    const GET_BLUE: &str = "GET /network-attachment-definitions/blue";
    struct Case {
        what: &'static str,
        networks: &'static [(&'static str, &'static str)],
        handed_over: bool,
        status: &'static str,
        alone: &'static [&'static str],
        agent: &'static [&'static str],
    }
    let selecting: &[(&str, &str)] = &[(NETWORKS, "blue")];
    let cases = [
        Case {
            what: "a pod that selects a network",
            networks: selecting,
            handed_over: false,
            status: "all",
            alone: &[POLICIES, GET_POD, GET_BLUE, PATCH, EVENT, EVENT],
            agent: &[PATCH, EVENT, EVENT],
        },
        Case {
            what: "the same, annotations by the runtime",
            networks: selecting,
            handed_over: true,
            status: "all",
            alone: &[POLICIES, GET_BLUE, PATCH, EVENT, EVENT],
            agent: &[PATCH, EVENT, EVENT],
        },
        Case { what: "no networks", networks: &[], handed_over: true, status: "all", alone: &[PATCH], agent: &[PATCH] },
        Case {
            what: "no networks, annotations unknown",
            networks: &[],
            handed_over: false,
            status: "all",
            alone: &[GET_POD, PATCH],
            agent: &[PATCH],
        },
        Case {
            what: "no networks, and no status wanted then",
            networks: &[],
            handed_over: true,
            status: "selected",
            alone: &[],
            agent: &[],
        },
    ];
    for way in WAYS {
        for case in &cases {
            let stage = Stage::new(way);
            let mut pod = stage.pod("web", case.networks);
            if case.handed_over {
                pod = pod.handed_over(case.networks);
            }
            let config = stage.config_with("networkStatus", case.status.into());
            let _ = stage.call("ADD", &pod, &config).result();
            let expected = if way == Way::Agent { case.agent } else { case.alone };
            stage.assert_asked(expected, case.what);
            stage.call("CHECK", &pod, &config).succeeded();
            stage.call("DEL", &pod, &config).succeeded();
            stage.call("DEL", &pod, &config).succeeded();
            stage.assert_asked(&[], &format!("CHECK and DEL of {}", case.what));
            stage.nothing_is_left(&[&pod], case.what);
        }
    }
}

#[test]
fn a_sandbox_without_a_pod_asks_nobody() {
    for way in WAYS {
        let stage = Stage::new(way);
        let pod = Started { sandbox: Sandbox::new("alone", ""), uid: String::new(), annotations: None };
        let _ = stage.add(&pod).result();
        stage.check(&pod).succeeded();
        stage.del(&pod).succeeded();
        stage.assert_asked(&[], "no pod is named");
        stage.nothing_is_left(&[&pod], "no pod is named");
    }
}

/// The forms that the recorded answers of a real server were given to.
#[test]
fn statuses_are_patched_and_events_created_in_the_right_form() {
    for way in WAYS {
        let Some(stage) = Stage::breakable(way) else { return };
        let pod = stage.pod("web", &[(NETWORKS, "blue")]);
        let _ = stage.add(&pod).result();
        let _ = stage.events(&pod, 2);
        let log = stage.api().log();
        assert!(log.iter().all(|request| request.method != "PUT"), "never a PUT: it would undo what others write");
        let patch = log.iter().find(|request| request.method == "PATCH").unwrap();
        assert_eq!(patch.content_type, "application/merge-patch+json");
        assert!(patch.accept.contains("as=PartialObjectMetadata"), "{}", patch.accept);
        let body = patch.json();
        assert_eq!(body["metadata"]["uid"], pod.uid);
        assert_eq!(body["metadata"]["annotations"].as_object().unwrap().keys().collect::<Vec<_>>(), [STATUS]);
        assert_eq!((body.as_object().unwrap().len(), body["metadata"].as_object().unwrap().len()), (1, 2), "{body}");

        let recorded: Value =
            serde_json::from_str(include_str!("../../../data/kubernetes-api/event-created.json")).unwrap();
        for event in stage.api().list("events") {
            for key in ["kind", "apiVersion", "reason", "type", "count", "source"] {
                let (found, recorded) = (&event[key], &recorded[key]);
                match recorded {
                    Value::Object(recorded) => recorded.iter().for_each(|(k, v)| assert_eq!(&found[k], v, "{k}")),
                    _ => assert_eq!(found, recorded, "{key}"),
                }
            }
            let about = &event["involvedObject"];
            assert_eq!(
                (&about["kind"], &about["apiVersion"], &about["name"]),
                (&json!("Pod"), &json!("v1"), &json!("web"))
            );
            assert_eq!(about["uid"], pod.uid, "kubectl describe finds it by the uid");
        }
    }
}

/// `kubectl describe pod` says why, in the words of the answer, and by which id to find it in the log.
#[test]
fn the_owner_of_a_pod_is_told_why_it_does_not_start() {
    for way in WAYS {
        let stage = Stage::new(way);
        let pod = stage.pod("web", &[(NETWORKS, "blue,nowhere")]);
        let output = stage.add(&pod);
        let (code, message) = output.error();
        assert_eq!(code, 7, "{message}");
        let (reason, told) = stage.events(&pod, 1).remove(0);
        assert_eq!(reason, "FailedAddingInterface");
        assert!(told.starts_with(&message) && message.contains("nowhere"), "{told}");
        let id = told.rsplit("request ").next().unwrap().trim_end_matches(')');
        let log = stage.agent.as_ref().map_or(output.stderr.clone(), |agent| agent.log());
        assert!(id.len() >= 8 && log.contains(id), "request {id}: {log}");
        assert_eq!(stage.status(&pod), None);
        stage.nothing_is_left(&[&pod], "a network that is not there");
    }
}

#[test]
fn a_pod_is_explained_from_the_cluster() {
    let stage = Stage::new(Way::Alone);
    let pod = stage.pod("web", &[(NETWORKS, "blue@lan")]);
    let file = stage.scene.node.folder().join("musubi.conf");
    let mut config = stage.scene.config.clone();
    let kubeconfig = config.as_object_mut().unwrap().remove("kubeconfig").unwrap();
    std::fs::write(&file, config.to_string()).unwrap();
    let explain = |pod: &str| {
        let arguments = ["explain", "-n", "musubi-test", pod, "-o", "json", "--config", file.to_str().unwrap()];
        stage.scene.node.cli(&[&arguments[..], &["--kubeconfig", kubeconfig.as_str().unwrap()]].concat())
    };
    let plan = explain("web").result();
    let attachments = plan["attachments"].as_array().unwrap().iter();
    let found: Vec<_> =
        attachments.map(|a| (a["network"].as_str().unwrap(), a["interface"].as_str().unwrap())).collect();
    assert_eq!(found, [("default-network", "eth0"), ("musubi-test/blue", "lan")]);
    stage.assert_asked(&[POLICIES, "GET /pods/web", "GET /network-attachment-definitions/blue"], "explain");
    assert_eq!(explain("nobody").error(), (11, "pod musubi-test/nobody is not in the cluster".to_owned()));
    stage.nothing_is_left(&[&pod], "explained");
}

/// Whoever watches another node's pods does not see this one.
#[test]
fn the_agent_remembers_the_pods_of_its_node() {
    let stage = Stage::new(Way::Agent);
    let pod = stage.pod("here", &[(NETWORKS, "blue")]);
    let elsewhere = stage.cluster.create_pod("node-2", "there", &[(NETWORKS, "blue")]);
    stage.settle();
    let elsewhere = stage.started(&elsewhere);
    for (pod, gets) in [(&pod, &[][..]), (&elsewhere, &["GET /pods/there"][..])] {
        let _ = stage.add(pod).result();
        let patch = format!("PATCH /pods/{}/status", super::stage::name(pod));
        stage.assert_asked(&[gets, &[&patch, "POST /events", "POST /events"]].concat(), NODE);
        stage.del(pod).succeeded();
    }
}

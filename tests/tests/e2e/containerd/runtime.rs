//! What the runtime does and what becomes of it: which verbs it sends, its death in the middle of ADD, the machine's boot.

use std::fs;
use std::time::Duration;

use musubi_tests::containerd::cri::Pod;
use musubi_tests::containerd::cri::api::{PodSandbox, PodSandboxState};
use musubi_tests::node::musubi;
use serde_json::{Value, json};

use super::stage::{Stage, WITH_API, Way};
use crate::scene::{PASS_ON, RECORD, crowd, masqueraded, until};

/// What this runtime does is written down in `docs/decisions/`; should it change, that page has to.
#[test]
fn the_runtime_speaks_a_version_it_was_offered_and_ends_a_pod_twice() {
    for way in WITH_API {
        let stage = Stage::new(way);
        let note = r#"conf=$(cat)
    version=${conf#*'"cniVersion":"'}
    annotations=no
    case $conf in *'"io.kubernetes.cri.pod-annotations":{"k8s.v1.cni.cncf.io/networks":"blue"'*) annotations=yes;; esac
    echo "$CNI_COMMAND ${version%%'"'*} annotations:$annotations" >> $D/calls"#;
        // Everything goes on to our program, which the runtime calls by this name.
        stage.scene.plugin("musubi", &format!("{note}\nprintf %s \"$conf\" | exec {}", musubi().display()));
        let pod = Pod::selecting("web", "blue");
        let id = stage.run(&pod);
        stage.remove(&id);
        let expected = ["ADD 0.4.0 annotations:yes", "DEL 0.4.0 annotations:yes", "DEL 0.4.0 annotations:yes"];
        assert_eq!(stage.scene.calls(), expected);
        stage.assert_nothing_is_left("version");
    }
}

#[test]
fn commands_that_this_runtime_never_sends_work_on_its_pods() {
    for way in WITH_API {
        let stage = Stage::new(way);
        let pods = ["one", "two"].map(|name| Pod::selecting(name, "blue"));
        let [one, two] = pods.each_ref().map(|pod| stage.run(pod));
        let done = (true, String::new());
        assert_eq!(stage.call("STATUS", "1.1.0", None, json!({})), done);

        let check = |id: &str| {
            let note = stage.runtime.note("musubi-network", id);
            stage.call("CHECK", "0.4.0", Some(id), json!({"prevResult": note["result"]}))
        };
        assert_eq!([check(&one), check(&two)], [done.clone(), done.clone()]);

        let keep = |ids: &[&String]| {
            let valid: Vec<Value> = ids.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
            stage.call("GC", "1.1.0", None, json!({"cni.dev/valid-attachments": valid}))
        };
        assert_eq!(keep(&[&one, &two]), done);
        assert_eq!([check(&one), check(&two)], [done.clone(), done.clone()], "both are wanted");
        assert_eq!(keep(&[&one]), done);
        assert_eq!(stage.scene.reserved(), ["blue/10.2.0.2", "default-network/10.1.0.2"], "the other's are free again");
        stage.assert_attached(&pods[0], &one, &["blue"]);
        [one, two].iter().for_each(|id| stage.remove(id));
        stage.assert_nothing_is_left("GC");
    }
}

#[test]
fn a_runtime_killed_during_add_leaves_nothing_once_the_sandbox_is_removed() {
    #[derive(Debug, PartialEq)]
    enum Ends {
        WhileTheRuntimeIsAway,
        WhenTheRuntimeIsBack,
        WhenTheSandboxIsStopped,
    }
    for ends in [Ends::WhileTheRuntimeIsAway, Ends::WhenTheRuntimeIsBack, Ends::WhenTheSandboxIsStopped] {
        let case = format!("the plugin ends {ends:?}");
        let mut stage = Stage::new(Way::Agent);
        let other = Pod::selecting("other", "green");
        let others = stage.run(&other);
        let wait = "[ $CNI_COMMAND != ADD ] || until [ -e $D/go ]; do sleep 0.02; done";
        stage.chain("slow", "10.9.0.0/24", &format!("{RECORD}\n{wait}\n{PASS_ON}"));
        let end_plugin = |stage: &Stage| fs::write(stage.scene.node.folder().join("go"), "").unwrap();
        let is_attached = |stage: &Stage| {
            let records = stage.scene.records();
            records.len() == 2
                && records.iter().all(|file| fs::read_to_string(file).is_ok_and(|text| text.contains("\"attached\"")))
        };
        let mut pod = Pod::selecting("web", "blue,slow");
        stage.create(&pod);

        std::thread::scope(|scope| {
            let running = scope.spawn(|| stage.runtime.cri.run(&pod));
            until("the slow plugin runs", || stage.scene.calls().iter().any(|call| call.starts_with("ADD slow")));
            stage.runtime.kill();
            running.join().unwrap().unwrap_err();
        });
        if ends == Ends::WhileTheRuntimeIsAway {
            end_plugin(&stage);
            until(&case, || is_attached(&stage));
        }
        stage.runtime.restart();
        if ends == Ends::WhenTheRuntimeIsBack {
            end_plugin(&stage);
            until(&case, || is_attached(&stage));
        }
        let unfinished: Vec<PodSandbox> = stage.list().into_iter().filter(|sandbox| sandbox.id != others).collect();
        let [unfinished] = &unfinished[..] else { panic!("{case}: {unfinished:?}") };
        assert_eq!(unfinished.state(), PodSandboxState::SandboxNotready, "{case}");
        std::thread::scope(|scope| {
            let removing = scope.spawn(|| stage.remove(&unfinished.id));
            if ends == Ends::WhenTheSandboxIsStopped {
                std::thread::sleep(Duration::from_millis(300));
                assert!(!removing.is_finished(), "{case}: DEL waits for the ADD that still runs");
                end_plugin(&stage);
            }
            removing.join().unwrap();
        });
        assert_eq!(stage.scene.reserved(), ["default-network/10.1.0.2", "green/10.3.0.2"], "{case}: the other pod's");

        pod.attempt += 1;
        let id = stage.run_again(&pod);
        stage.assert_attached(&pod, &id, &["blue", "slow"]);
        stage.assert_attached(&other, &others, &["green"]);
        [id, others].iter().for_each(|id| stage.remove(id));
        stage.assert_nothing_is_left(&case);
    }
}

/// At whatever point it was with each pod. What a killed runtime leaves behind itself (a namespace, control groups) is its
/// own affair.
#[test]
fn a_runtime_killed_in_a_crowd_leaves_nothing_of_ours_once_its_sandboxes_are_removed() {
    let mut stage = Stage::new(Way::Agent);
    for round in 1..=3 {
        std::thread::scope(|scope| {
            let stage = &stage;
            scope.spawn(move || {
                crowd(16, 8, |number| {
                    let pod = Pod::selecting(&format!("pod-{round}-{number}"), "blue,green");
                    stage.create(&pod);
                    // From some moment on nobody answers.
                    if let Ok(id) = stage.runtime.cri.run(&pod) {
                        let _ = stage.runtime.cri.stop(&id).and_then(|()| stage.runtime.cri.remove(&id));
                    }
                });
            });
            until("some pods are attached", || stage.scene.records().len() > round);
            stage.runtime.kill();
        });
        stage.runtime.restart();
        let known = stage.list();
        assert!(!known.is_empty(), "round {round}: the runtime was killed too late");
        known.iter().for_each(|sandbox| stage.remove(&sandbox.id));
        stage.scene.nothing_is_left(&[], &[], &format!("round {round}"));
    }
    let pod = Pod::selecting("last", "blue,green");
    let id = stage.run(&pod);
    stage.assert_attached(&pod, &id, &["blue", "green"]);
}

#[test]
fn after_a_boot_the_next_pods_get_the_addresses_of_those_before() {
    for way in WITH_API {
        let mut stage = Stage::new(way);
        // This pool has room for two pods.
        let mut small = masqueraded(stage.scene.node.bridge("br-small", "small", "10.8.0.0/24"));
        small["ipam"]["rangeStart"] = "10.8.0.2".into();
        small["ipam"]["rangeEnd"] = "10.8.0.3".into();
        stage.define("small", &small);
        let mut pods = ["one", "two"].map(|name| Pod::selecting(name, "small,green"));
        let before = pods.each_ref().map(|pod| stage.run(pod));
        let full = Pod::selecting("three", "small");
        stage.create(&full);
        let error = stage.runtime.cri.run(&full).unwrap_err();
        assert!(error.message().contains("small"), "{}", error.message());

        stage = stage.reboot();
        assert_eq!(stage.scene.reserved().len(), 6, "what is on disk is kept: {:?}", stage.scene.reserved());
        assert_eq!(stage.scene.node.links(), ["lo"]);
        let known: Vec<PodSandboxState> = stage.list().iter().map(PodSandbox::state).collect();
        assert_eq!(known, [PodSandboxState::SandboxNotready; 2]);
        if way == Way::Agent {
            stage.start_agent();
        }
        // The kubelet starts a pod's next sandbox before it removes the last one.
        let after = pods.each_mut().map(|pod| {
            pod.attempt += 1;
            stage.run_again(pod)
        });
        let addresses = |network: &str| {
            let reserved = stage.scene.reserved().into_iter();
            reserved.filter(|name| name.starts_with(network)).collect::<Vec<_>>()
        };
        assert_eq!(addresses("small/"), ["small/10.8.0.2", "small/10.8.0.3"], "{way:?}");
        assert_eq!(stage.scene.reserved().len(), 6, "{way:?}: {:?}", stage.scene.reserved());
        before.iter().for_each(|id| stage.remove(id));
        for (pod, id) in pods.iter().zip(&after) {
            stage.assert_attached(pod, id, &["small", "green"]);
        }
        after.iter().for_each(|id| stage.remove(id));
        stage.assert_nothing_is_left(&format!("{way:?}"));
    }
}

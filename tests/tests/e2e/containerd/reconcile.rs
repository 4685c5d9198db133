//! The agent's pass over what was left behind, with a real runtime to ask: it lists a pod only once its ADD has ended, and one
//! that it has lost never again.

use std::fs;
use std::time::Duration;

use musubi_tests::containerd::cri::Pod;
use serde_json::json;

use super::stage::{Stage, Way};
use crate::scene::{PASS_ON, RECORD, Scene, until};

/// As often as can be, and with the least patience.
fn impatient(way: Way) -> Stage {
    Stage::with(way, Scene::new(), json!({"reconcileSeconds": 1, "unlistedSeconds": 1}))
}

fn leaks(stage: &Stage) -> Vec<String> {
    let metrics = stage.agent().get("/metrics").body;
    metrics.lines().filter(|line| line.starts_with("musubi_leaks_found_total")).map(str::to_owned).collect()
}

#[test]
fn what_a_sandbox_has_is_released_when_the_runtime_has_lost_it() {
    let mut stage = impatient(Way::Agent);
    let (kept, lost) = (Pod::selecting("kept", "blue"), Pod::selecting("lost", "blue,green"));
    let [kept_id, lost_id] = [&kept, &lost].map(|pod| stage.run(pod));
    let all = stage.scene.reserved();
    assert_eq!(all.len(), 5, "{all:?}");
    stage.runtime.forget(&lost_id);
    assert_eq!(stage.list().len(), 1, "{:?}", stage.list());

    until("its addresses are free", || stage.scene.reserved().len() == 2);
    assert_eq!(stage.scene.reserved(), ["blue/10.2.0.2", "default-network/10.1.0.2"]);
    until("its record is gone", || stage.scene.records().len() == 1);
    stage.agent().until("it is logged", |agent| agent.log().contains("the runtime has not listed its sandbox for"));
    stage.assert_attached(&kept, &kept_id, &["blue"]);
    stage.remove(&kept_id);
    stage.scene.nothing_is_left(&[], &[], "the lost one's");
}

/// By whichever way the ADD runs: the record says who does the work, and that one lives.
#[test]
fn a_sandbox_whose_add_takes_its_time_is_never_taken_for_lost() {
    for way in [Way::Agent, Way::PluginAlone] {
        let stage = impatient(way);
        let other = Pod::selecting("other", "green");
        let others = stage.run(&other);
        let wait = "[ $CNI_COMMAND != ADD ] || until [ -e $D/go ]; do sleep 0.02; done";
        stage.chain("slow", "10.9.0.0/24", &format!("{RECORD}\n{wait}\n{PASS_ON}"));
        let pod = Pod::selecting("web", "blue,slow");
        stage.create(&pod);
        let (runtime, run) = (&stage.runtime, &pod);
        let id = std::thread::scope(|scope| {
            let running = scope.spawn(move || runtime.cri.run(run));
            until("the slow plugin runs", || stage.scene.calls().iter().any(|call| call.starts_with("ADD slow")));
            let agent = stage.agent.is_none().then(|| stage.new_agent());
            assert_eq!(runtime.cri.list().unwrap().len(), 1, "the runtime does not list it yet");
            // Several passes.
            std::thread::sleep(Duration::from_secs(5));
            assert_eq!(stage.scene.calls(), ["ADD slow net2 netns"], "{way:?}");
            fs::write(stage.scene.node.folder().join("go"), "").unwrap();
            let id = running.join().unwrap().unwrap_or_else(|e| panic!("{way:?}: {}", e.message()));
            drop(agent);
            id
        });
        stage.assert_attached(&pod, &id, &["blue", "slow"]);
        if way == Way::Agent {
            assert_eq!(leaks(&stage), [""; 0]);
        }
        [id, others].iter().for_each(|id| stage.remove(id));
        stage.assert_nothing_is_left(&format!("{way:?}"));
    }
}

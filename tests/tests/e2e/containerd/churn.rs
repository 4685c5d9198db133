//! Pods that come and go in numbers, and what happens to the agent meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use musubi_tests::containerd::cri::Pod;

use super::stage::{Stage, WITH_API, Way};
use crate::scene::crowd;

const LINKS: [&str; 4] = ["br-blue", "br-green", "cni0", "lo"];

#[test]
fn two_hundred_pods_come_and_go_sixteen_at_a_time() {
    for way in WITH_API {
        let stage = Stage::new(way);
        crowd(200, 16, |number| {
            stage.live(&Pod::selecting(&format!("pod-{number}"), "blue,green"), &["blue", "green"]);
        });
        stage.assert_nothing_is_left(&format!("{way:?}"));
        assert_eq!(stage.scene.node.links(), LINKS);
    }
}

/// A pod whose agent dies in the middle of its ADD or DEL is finished by its own plugin; one that comes meanwhile has no agent.
#[test]
fn pods_come_and_go_while_the_agent_is_killed_and_started_again() {
    let mut stage = Stage::new(Way::Agent);
    let mut first = stage.agent.take();
    let (mut kills, mut by_agents) = (0, 0);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (stage, is_over) = (&stage, &is_over);
        let pods = scope.spawn(move || {
            let _ends = OnDrop(is_over);
            crowd(100, 16, |number| {
                stage.live(&Pod::selecting(&format!("pod-{number}"), "blue,green"), &["blue", "green"]);
            });
        });
        while !is_over.load(Ordering::Relaxed) {
            let agent = first.take().unwrap_or_else(|| stage.new_agent());
            // Some die before they have done anything, some in the middle of much.
            std::thread::sleep(Duration::from_millis(50 + 150 * (kills % 4)));
            by_agents += agent.get("/history").json()["operations"].as_array().unwrap().len();
            drop(agent);
            kills += 1;
        }
        pods.join().unwrap();
    });
    stage.assert_nothing_is_left("killed agents");
    assert_eq!(stage.scene.node.links(), LINKS);
    assert!(kills >= 5 && by_agents >= 20, "{kills} agents were killed, {by_agents} operations were theirs");
}

/// Raises a flag whatever ends the work.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

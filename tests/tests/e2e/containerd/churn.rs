//! Pods that come and go in numbers, and what happens to the agent meanwhile.

use musubi_tests::containerd::cri::Pod;

use super::stage::{Stage, WITH_API};
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

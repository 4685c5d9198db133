//! The agent is replaced while pods come and go: neither they nor the runtime's configuration notice.

use std::sync::atomic::{AtomicUsize, Ordering};

use musubi_tests::containerd::cri::Pod;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::json;

use super::stage::{Stage, Way};
use crate::scene::crowd;

/// What happens to our configuration's file.
struct Watched(Inotify);

impl Watched {
    fn of(stage: &Stage) -> Self {
        let watch = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        let changes = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE;
        watch.add_watch(&stage.runtime.conf_dir(), changes | AddWatchFlags::IN_MODIFY).unwrap();
        Self(watch)
    }

    /// Changes since the last look.
    fn changes(&self) -> Vec<AddWatchFlags> {
        let events = std::iter::from_fn(|| self.0.read_events().ok()).flatten();
        let ours = events.filter(|event| event.name.as_ref().is_some_and(|name| name == "00-musubi.conflist"));
        ours.map(|event| event.mask).collect()
    }
}

#[test]
fn an_agent_takes_over_from_another_without_the_configuration_being_absent_or_a_pod_failing() {
    let mut stage = Stage::new(Way::Agent);
    let early = Pod::selecting("early", "blue");
    let early_id = stage.run(&early);
    let written = std::fs::read(stage.runtime.conf_file()).unwrap();
    let watched = Watched::of(&stage);
    let first = stage.agent.take().unwrap();
    let lived = AtomicUsize::new(0);
    let last = std::thread::scope(|scope| {
        let (stage, lived) = (&stage, &lived);
        let pods = scope.spawn(move || {
            crowd(60, 8, |number| {
                stage.live(&Pod::selecting(&format!("pod-{number}"), "blue,green"), &["blue", "green"]);
                lived.fetch_add(1, Ordering::Relaxed);
            });
        });
        let mut agent = first;
        while !pods.is_finished() {
            assert!(agent.stop(), "it ends well");
            agent = stage.new_agent();
            agent.until("it is ready", |agent| agent.get("/readyz").status == 200);
        }
        pods.join().unwrap();
        agent
    });
    assert_eq!(lived.into_inner(), 60);
    assert_eq!(watched.changes(), [], "the file is what it was, and nobody has touched it");
    assert_eq!(std::fs::read(stage.runtime.conf_file()).unwrap(), written);

    // A new version that has more to say puts its file in the place of the old one.
    assert!(last.stop());
    stage.config["timeoutSeconds"] = json!(60);
    stage.start_agent();
    stage.runtime.wait_until_our_configuration_is_used();
    assert_eq!(watched.changes(), [AddWatchFlags::IN_MOVED_TO]);
    assert_eq!(stage.plugin()["timeoutSeconds"], 60);
    stage.remove(&early_id);
    stage.assert_nothing_is_left("upgrades");
}

//! Changes that only few operations make: DEL gives up what cannot be released yet, and a status has to wait.

use std::fs;
use std::sync::mpsc;

use musubi_tests::mutations::Log;
use musubi_tests::node::{Sandbox, link_names};

use super::{Dies, Round, VICTIM, watch};
use crate::scene::Scene;

/// Has the plugin die alone at the first change of a kind.
fn die(scene: &Scene, command: &'static str, sandbox: &Sandbox, point: &str, late: bool) {
    let mut config = scene.config.clone();
    config["logLevel"] = "debug".into();
    let at = Some((point.to_owned(), 0));
    let round = Round { command, dies: Dies::Plugin, at, late, by_agent: false, again: false };
    let (log, end) = Log::new();
    let mut child = scene.start_logging_to(command, sandbox, &config, end);
    let (sender, client) = mpsc::channel();
    sender.send(child.id()).unwrap();
    let seen = watch(&log, &round, None, &client);
    child.wait().unwrap();
    assert_eq!(seen.died_at.as_deref(), Some(point), "{:?}", seen.changes);
}

/// What the next operation does after its own answer, when it is due.
fn tidy_up(scene: &Scene) {
    let state = scene.node.state().display().to_string();
    let manifests = scene.node.manifests().display().to_string();
    let tidied = scene.node.cli(&["gc", "--unfinished-only", "--state-dir", &state, "--manifests", &manifests]);
    assert!(tidied.ok, "{}{}", tidied.stdout, tidied.stderr);
}

#[test]
fn a_del_that_gives_up_leaves_one_orphan_wherever_it_is_killed() {
    for point in ["record.write", "record.orphan", "status.remove", "lock.remove"] {
        for late in [false, true] {
            let case = format!("{point}, {}", if late { "after it" } else { "before it" });
            let scene = Scene::new();
            scene.node.leave_unfinished();
            scene.chain("green", "10.3.0.0/24", &["fickle"]);
            let plugin = scene.recording_plugin("fickle");
            let sandbox = scene.sandbox(VICTIM);
            let _ = scene.add(&sandbox).result();
            fs::remove_file(plugin).unwrap();
            die(&scene, "DEL", &sandbox, point, late);
            scene.del(&sandbox).succeeded();
            assert_eq!(link_names(&sandbox.netns), ["lo"], "{case}");
            assert_eq!((scene.reserved().len(), scene.rules().len(), scene.records().len()), (0, 0, 0), "{case}");
            assert_eq!(scene.orphans().len(), 1, "{case}");
            scene.recording_plugin("fickle");
            tidy_up(&scene);
            assert_eq!(scene.calls().last().unwrap(), "DEL fickle net2 netns", "{case}");
            scene.nothing_is_left(&[&sandbox], &[], &case);
        }
    }
}

#[test]
fn a_status_that_has_to_wait_is_written_or_forgotten_wherever_add_is_killed() {
    for (again, late) in [(false, false), (false, true), (true, false), (true, true)] {
        let case = format!("again: {again}, late: {late}");
        let scene = Scene::new();
        scene.node.leave_unfinished();
        let status = scene.node.manifests().join("status");
        fs::write(&status, "in the way").unwrap();
        scene.node.pod("default", "web", "");
        let sandbox = scene.sandbox(VICTIM);
        die(&scene, "ADD", &sandbox, "pending.write", late);
        if again {
            let _ = scene.add(&sandbox).result();
            fs::remove_file(&status).unwrap();
            tidy_up(&scene);
            assert!(scene.status("default/web").is_some(), "{case}");
        }
        let _ = fs::remove_file(&status);
        scene.del(&sandbox).succeeded();
        tidy_up(&scene);
        scene.nothing_is_left(&[&sandbox], &[], &case);
    }
}

//! The cluster's own CNI plugin changes its configuration, renames it, or breaks it for a while: pods follow it, and where they
//! cannot, everybody is told why.

use std::fs;

use musubi_tests::containerd::cri::Pod;
use serde_json::{Value, json};

use super::stage::{PRIMARY, Stage, Way, interfaces};
use crate::scene::until;

/// The first address of the pod's first interface.
fn address(stage: &Stage, id: &str) -> String {
    interfaces(&stage.runtime.netns(id))["eth0"]["ips"][0].as_str().unwrap().to_owned()
}

/// What STATUS answers: its code and message.
fn status(stage: &Stage) -> (u64, String) {
    let (ok, answer) = stage.call("STATUS", "1.1.0", None, json!({}));
    if ok {
        return (0, answer);
    }
    let error: Value = serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer}"));
    (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
}

#[test]
fn pods_follow_the_primary_network_as_it_changes_and_moves() {
    let stage = Stage::new(Way::Agent);
    let before = Pod::selecting("before", "blue");
    let before_id = stage.run(&before);
    assert_eq!(address(&stage, &before_id), "10.1.0.2");

    let mut other = stage.primary();
    other["plugins"][0]["bridge"] = "cni1".into();
    other["plugins"][0]["ipam"]["subnet"] = "10.11.0.0/24".into();
    other["plugins"][0]["capabilities"] = json!({"ips": true});
    stage.put(PRIMARY, &other);
    until("its capabilities are declared", || stage.plugin()["capabilities"]["ips"] == true);
    stage.runtime.wait_until_our_configuration_is_used();
    let changed = Pod::selecting("changed", "blue");
    let changed_id = stage.run(&changed);
    stage.assert_attached(&changed, &changed_id, &["blue"]);
    assert_eq!(address(&stage, &changed_id), "10.11.0.2");

    let (from, to) = (stage.runtime.conf_dir().join(PRIMARY), stage.runtime.conf_dir().join("20-moved.conflist"));
    fs::rename(from, &to).unwrap();
    until("the new name is written", || stage.plugin()["clusterNetwork"] == to.to_str().unwrap());
    stage.runtime.wait_until_our_configuration_is_used();
    let moved = Pod::selecting("moved", "blue");
    let moved_id = stage.run(&moved);
    stage.assert_attached(&moved, &moved_id, &["blue"]);
    assert_eq!(address(&stage, &moved_id), "10.11.0.3");

    // What was attached by another configuration is detached by that one.
    [before_id, changed_id, moved_id].iter().for_each(|id| stage.remove(id));
    stage.assert_nothing_is_left("the primary network changed");
}

#[test]
fn while_the_primary_network_is_broken_pods_end_and_new_ones_wait() {
    let stage = Stage::new(Way::Agent);
    let file = stage.runtime.conf_dir().join(PRIMARY);
    let (whole, ours) = (fs::read(&file).unwrap(), fs::read(stage.runtime.conf_file()).unwrap());
    type Break = fn(&std::path::Path, &[u8]);
    let rows: [(&str, Break, &str); 2] = [
        ("half", |file, whole| fs::write(file, &whole[..whole.len() / 2]).unwrap(), "line 1"),
        ("taken", |file, _| fs::rename(file, file.with_extension("conflist.bak")).unwrap(), "renamed to"),
    ];
    for (name, break_it, why) in rows {
        let early = Pod::selecting(&format!("early-{name}"), "blue");
        let early_id = stage.run(&early);
        assert_eq!(status(&stage), (0, String::new()));

        break_it(&file, &whole);
        until("the agent says so", || stage.agent().get("/readyz").status == 500);
        let ready = stage.agent().get("/readyz").body;
        assert!(ready.contains(PRIMARY) && ready.contains(why), "{name}: {ready}");
        let (code, message) = status(&stage);
        assert_eq!(code, 50, "{name}: {message}");
        assert!(message.contains(PRIMARY), "{name}: {message}");
        assert_eq!(fs::read(stage.runtime.conf_file()).unwrap(), ours, "{name}: ours stays");

        stage.remove(&early_id);
        let late = Pod::selecting(&format!("late-{name}"), "blue");
        stage.create(&late);
        let error = stage.runtime.cri.run(&late).unwrap_err();
        assert!(error.message().contains(PRIMARY), "{name}: {}", error.message());
        stage.assert_nothing_is_left(name);

        let _ = fs::remove_file(file.with_extension("conflist.bak"));
        stage.put(PRIMARY, &serde_json::from_slice(&whole).unwrap());
        until("the agent is ready again", || stage.agent().get("/readyz").status == 200);
        assert_eq!(status(&stage), (0, String::new()));
        let id = stage.run_again(&late);
        stage.assert_attached(&late, &id, &["blue"]);
        stage.remove(&id);
    }
    stage.assert_nothing_is_left("the primary network broke");
}

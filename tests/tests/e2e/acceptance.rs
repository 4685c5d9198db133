//! What a demanding user of the finished program came upon: chains that a runtime makes around us, configurations that are
//! spoiled between ADD and DEL, names at the limits of what a file can be called.

use musubi_tests::node::link_names;
use serde_json::{Value, json};

use crate::scene::Scene;

/// The record says what there is to undo, so a configuration that was spoiled after ADD holds no pod up.
#[test]
fn del_succeeds_with_a_configuration_that_was_spoiled_since() {
    let rows: [(&str, Value); 8] = [
        ("delegates", json!({})),
        ("delegates", json!([])),
        ("delegates", json!([{"type": "musubi"}])),
        ("clusterNetwork", json!(5)),
        ("timeoutSeconds", json!(0)),
        ("runtimeConfig", json!(3)),
        ("nativeDelegates", json!("bridge")),
        ("networkStatus", json!("none")),
    ];
    for (number, (key, value)) in rows.into_iter().enumerate() {
        let case = format!("{key}: {value}");
        let scene = Scene::new();
        let spoiled = scene.with(key, value);
        let sandbox = scene.sandbox(&format!("c{number}"));
        assert_eq!(scene.node.call("ADD", &sandbox, &spoiled).error().0, 7, "{case}");
        let without_record = scene.node.call("DEL", &sandbox, &spoiled);
        assert!(without_record.ok, "{case}, without a record: {}", without_record.stdout);

        let _ = scene.add(&sandbox).result();
        let output = scene.node.call("DEL", &sandbox, &spoiled);
        assert!(output.ok, "{case}: {}", output.stdout);
        assert!(output.stderr.contains(key), "{case}: {}", output.stderr);
        scene.nothing_is_left(&[&sandbox], &[], &case);
        assert_eq!(link_names(&sandbox.netns), ["lo"], "{case}");
    }
}

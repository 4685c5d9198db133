//! `musubi status` and `musubi gc`: what the records of a node say, for a person and for programs.

use std::path::Path;

use musubi_tests::node::{Node, Output, Sandbox};
use musubi_tests::recorded;
use serde_json::{Value, json};

#[test]
fn status_lists_every_attachment_of_every_pod() {
    let node = node();
    assert_eq!(json(&node, "status"), json!({"attachments": []}));
    assert!(cli(&node, &["status"]).stdout.contains("no pod"), "an empty table says so");

    let config = node.config(&node.default_bridge());
    let sandbox = Sandbox::new("c1", "default/web");
    let result = node.call("ADD", &sandbox, &config).result();
    let shown = json(&node, "status");
    let rows = shown["attachments"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    let since = rows[0]["since"].as_str().unwrap();
    assert!(since.len() == 20 && since.ends_with('Z') && since.contains('T'), "RFC 3339: {since}");
    assert_eq!(
        rows[0],
        json!({"pod": "default/web", "containerId": "c1", "network": "default-network", "interface": "eth0", "ips": ["10.1.0.2"],
               "mac": result["interfaces"][2]["mac"], "state": "attached", "since": since})
    );
    assert_eq!((&rows[1]["network"], &rows[1]["interface"]), (&json!("default/blue"), &json!("net1")));

    let table = cli(&node, &["status"]).stdout;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(table.starts_with("POD  "), "{table}");
    assert_eq!(lines[0], ["POD", "CONTAINER", "INTERFACE", "NETWORK", "ADDRESSES", "MAC", "STATE", "AGE"]);
    assert_eq!(lines[1][..5], ["default/web", "c1", "eth0", "default-network", "10.1.0.2"]);
    node.call("DEL", &sandbox, &config).succeeded();
    assert_eq!(json(&node, "status"), json!({"attachments": []}));
}

#[test]
fn gc_releases_what_pods_that_are_gone_have_left() {
    let node = node();
    let config = node.config(&node.default_bridge());
    let [here, gone] = ["c1", "c2"].map(|id| Sandbox::new(id, "default/web"));
    for sandbox in [&here, &gone] {
        let _ = node.call("ADD", sandbox, &config).result();
    }
    assert_eq!(json(&node, "gc"), json!({"stale": []}), "a pod that is there is not touched");
    assert!(cli(&node, &["gc"]).stdout.contains("nothing"), "and that is said");
    gone.netns.end();

    let dry = node.cli(&["gc", "--dry-run", "--state-dir", node.state().to_str().unwrap(), "-o", "json"]).result();
    let stale = dry["stale"].as_array().unwrap();
    assert_eq!(stale.len(), 1, "{dry}");
    assert_eq!((&stale[0]["containerId"], &stale[0]["pod"]), (&json!("c2"), &json!("default/web")));
    assert!(stale[0]["reason"].as_str().unwrap().contains("is gone"), "{dry}");
    assert!(stale[0]["resources"].to_string().contains("10.1.0.3"), "{dry}");
    assert_eq!(json(&node, "status")["attachments"].as_array().unwrap().len(), 4, "a dry run changes nothing");

    assert_eq!(json(&node, "gc")["stale"], dry["stale"], "it releases what the dry run showed");
    let left = json(&node, "status");
    assert!(left["attachments"].as_array().unwrap().iter().all(|row| row["containerId"] == "c1"), "{left}");
    assert_eq!(json(&node, "gc"), json!({"stale": []}));
    let again = Sandbox::new("c3", "");
    let _ = node.call("ADD", &again, &config).result();
    node.call("CHECK", &here, &config).succeeded();
}

#[test]
fn a_damaged_record_is_shown_and_not_lost() {
    let node = node();
    let config = node.config(&node.default_bridge());
    let sandbox = Sandbox::new("c1", "default/web");
    let _ = node.call("ADD", &sandbox, &config).result();
    std::fs::write(node.state().join("records/c1:eth0:musubi-network.json"), "{").unwrap();
    let table = cli(&node, &["status"]).stdout;
    assert!(table.contains("c1") && table.contains("damaged"), "{table}");
    let (code, message) = node.call("CHECK", &sandbox, &config).error();
    assert!(code == 5 && message.contains("damaged"), "{message}");
}

#[test]
fn an_orphan_is_shown_until_it_is_released() {
    let mut node = Node::new();
    node.leave_unfinished();
    recorded::install(&mut node, Path::new(env!("CARGO_BIN_EXE_recorder")), &["rec-main"]);
    let config = node.config(&json!({"cniVersion": "1.0.0", "name": "n", "type": "rec-main"}));
    let sandbox = Sandbox::new("c1", "");
    let _ = node.call("ADD", &sandbox, &config).result();
    std::fs::remove_file(node.folder().join("bin/rec-main")).unwrap();
    sandbox.netns.end();
    node.call("DEL", &sandbox, &config).succeeded();
    assert!(cli(&node, &["status"]).stdout.contains("c1"), "what could not be released is shown");
    let state = node.state().display().to_string();
    let dry = node.cli(&["gc", "--dry-run", "--state-dir", &state, "-o", "json"]).result();
    assert_eq!(dry["stale"][0]["containerId"], "c1", "{dry}");
    let failed = cli(&node, &["gc"]);
    assert!(!failed.ok && failed.stderr.contains("rec-main"), "{failed:?}");

    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_recorder"), node.folder().join("bin/rec-main")).unwrap();
    assert!(cli(&node, &["gc"]).ok);
    let calls = recorded::take(&node);
    let last = calls.last().unwrap();
    assert_eq!((last.command.as_str(), last.var("CNI_CONTAINERID"), last.var("CNI_NETNS")), ("DEL", "c1", ""));
    assert_eq!(json(&node, "gc"), json!({"stale": []}));
}

fn node() -> Node {
    let node = Node::new();
    node.definition("default", "blue", &node.bridge("br-blue", "blue", "10.2.0.0/24"));
    node.pod("default", "web", "blue");
    node
}

fn cli(node: &Node, arguments: &[&str]) -> Output {
    let state = node.state().display().to_string();
    node.cli(&[arguments, &["--state-dir", &state]].concat())
}

fn json(node: &Node, command: &str) -> Value {
    cli(node, &[command, "-o", "json"]).result()
}

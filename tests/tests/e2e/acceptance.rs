//! What a demanding user of the finished program came upon: chains that a runtime makes around us, configurations that are
//! spoiled between ADD and DEL, names at the limits of what a file can be called.

use musubi_delegates::netlink::LinkChange;
use musubi_tests::node::{Sandbox, link_names};
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

/// A plugin that the runtime runs after us may give the interface another MAC: `prevResult` says so.
#[test]
fn check_expects_what_later_plugins_of_the_runtimes_chain_left() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("c1");
    let own = scene.add(&sandbox).result();
    let eth0 = own["interfaces"].as_array().unwrap().iter().position(|i| i["name"] == "eth0").unwrap();
    let mut later = own.clone();
    later["interfaces"][eth0]["mac"] = json!("02:00:00:00:00:11");

    scene.node.call("CHECK", &sandbox, &scene.with("prevResult", own.clone())).succeeded();
    let early = scene.node.call("CHECK", &sandbox, &scene.with("prevResult", later.clone())).error();
    assert!(early.1.contains("not 02:00:00:00:00:11"), "{}", early.1);

    set_mac(&sandbox, "eth0", [2, 0, 0, 0, 0, 0x11]);
    scene.node.call("CHECK", &sandbox, &scene.with("prevResult", later)).succeeded();
    for unaware in [scene.config.clone(), scene.with("prevResult", own), scene.with("prevResult", json!({}))] {
        let error = scene.node.call("CHECK", &sandbox, &unaware).error();
        assert!(error.1.contains("has MAC 02:00:00:00:00:11"), "{}", error.1);
    }
}

fn set_mac(sandbox: &Sandbox, name: &str, mac: [u8; 6]) {
    const IFLA_ADDRESS: u16 = 1; // if_link.h
    let pod = sandbox.netns.open();
    let link = pod.netlink.link_by_name(name).unwrap().unwrap();
    pod.netlink.request(LinkChange::of(link.index, "test").attr(IFLA_ADDRESS, mac).request()).unwrap();
}

/// What GC takes away has no status any more; the status of the pod's new sandbox stays.
#[test]
fn gc_removes_the_status_of_what_it_takes_away() {
    let scene = Scene::new();
    let (old, new) = (scene.sandbox("old"), scene.sandbox("new"));
    let _ = scene.add(&old).result();
    let _ = scene.add(&new).result();
    let listing = |listed: Value| scene.with("cni.dev/valid-attachments", listed);

    let config = listing(json!([{"containerID": "new", "ifname": "eth0"}]));
    scene.node.call_network("GC", &config).succeeded();
    assert_eq!(link_names(&old.netns), ["lo"]);
    assert!(scene.status("default/web").is_some(), "the new sandbox's");

    scene.node.call_network("GC", &listing(json!([]))).succeeded();
    assert_eq!(scene.status("default/web"), None);
    scene.nothing_is_left(&[&old, &new], &[], "gc");
}

/// A record's file is named after container, interface and network. What no file can be named after is refused before
/// anything is done, so that DEL has nothing to do.
#[test]
fn names_that_no_record_can_have_are_refused_and_del_succeeds() {
    let scene = Scene::new();
    let rows = [
        ("longest", "c".repeat(200), "n".repeat(255 - 200 - ".:eth0:.json.new".len()), true),
        ("one byte more", "c".repeat(200), "n".repeat(255 - 200 - ".:eth0:.json.new".len() + 1), false),
        ("network", "c1".to_owned(), "n".repeat(300), false),
        ("container", "c".repeat(300), "n".to_owned(), false),
    ];
    for (case, container, network, possible) in rows {
        let sandbox = scene.sandbox(&container);
        let config = scene.with("name", network.into());
        let added = scene.node.call("ADD", &sandbox, &config);
        assert_eq!(added.ok, possible, "{case}: {}", added.stdout);
        if !possible {
            let (code, message) = added.error();
            assert_eq!((code, message.contains("too long")), (7, true), "{case}: {message}");
        }
        let removed = scene.node.call("DEL", &sandbox, &config);
        assert!(removed.ok, "{case}: {}", removed.stdout);
        scene.nothing_is_left(&[&sandbox], &[], case);
    }
}

/// The kernel makes `br0` of `br%d`, and `br1` the next time: nobody would find them again.
#[test]
fn a_name_that_the_kernel_would_number_is_refused() {
    let scene = Scene::new();
    let before = scene.node.links();
    let sandbox = scene.sandbox("c1");
    let output = scene.node.call_interface("ADD", &sandbox, "eth%d", &scene.config);
    assert_eq!(output.error().0, 4, "{}", output.stdout);
    for network in [json!({"type": "bridge", "bridge": "br%d"}), json!({"type": "vxlan", "vni": 3, "bridge": "br%d"})] {
        let mut network = network;
        network["cniVersion"] = json!("1.0.0");
        network["name"] = json!("blue");
        scene.definition("blue", &network);
        let (code, message) = scene.add(&sandbox).error();
        assert_eq!(code, 7, "{message}");
        assert!(message.contains("default/blue: bridge: interface name \"br%d\""), "{message}");
    }
    assert_eq!(scene.node.links(), before);
}

/// Places that cannot work are named for what they are.
#[test]
fn places_that_cannot_work_are_named() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("c1");
    let relative = scene.with("cniDir", json!("state"));
    let (code, message) = scene.node.call("ADD", &sandbox, &relative).error();
    assert_eq!(code, 7, "{message}");
    assert!(message.contains("cniDir") && message.contains("absolute"), "{message}");
    let nowhere = scene.with("manifestDir", json!("/nonexistent"));
    let (code, message) = scene.node.call_network("STATUS", &nowhere).error();
    assert_eq!(code, 50, "{message}");
    sandbox.netns.end();
    std::fs::write(sandbox.netns.path(), "").unwrap();
    let (code, message) = scene.add(&sandbox).error();
    assert_eq!(code, 8, "{message}");
    assert!(message.contains("is no network namespace"), "{message}");
    scene.del(&sandbox).succeeded();
}

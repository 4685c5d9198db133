//! Many at once: a burst of pods, one container called from several sides, and what pods share made by the first of them.

use std::collections::HashSet;
use std::sync::Mutex;

use musubi_tests::node::{Sandbox, link_names};
use serde_json::json;

use crate::scene::{Scene, crowd, masqueraded};

#[test]
fn a_burst_of_pods_gets_distinct_addresses_and_leaves_nothing() {
    const PODS: usize = 40;
    let scene = Scene::new();
    scene.definition("red", &masqueraded(scene.node.bridge("br-red", "red", "10.4.0.0/24")));
    scene.node.pod("default", "web", "blue,green,red");
    let sandboxes: Vec<Sandbox> = (0..PODS).map(|number| scene.sandbox(&format!("pod{number}"))).collect();
    let addresses = Mutex::new(HashSet::new());
    crowd(PODS, 16, |number| {
        let result = scene.add(&sandboxes[number]).result();
        let address = result["ips"][0]["address"].as_str().unwrap().to_owned();
        assert!(addresses.lock().unwrap().insert(address), "one address given twice: {result}");
    });
    let reserved = scene.reserved();
    assert_eq!(reserved.len(), PODS * 4, "{reserved:?}");
    assert_eq!(scene.rules().len(), PODS * 4);
    crowd(PODS, 16, |number| scene.check(&sandboxes[number]).succeeded());
    crowd(PODS, 16, |number| scene.del(&sandboxes[number]).succeeded());
    scene.nothing_is_left(&sandboxes.iter().collect::<Vec<_>>(), &[], "burst");
    assert_eq!(scene.node.links(), ["br-blue", "br-green", "br-red", "cni0", "lo"], "one bridge a network");
}

#[test]
fn a_burst_with_gc_between_loses_nobody() {
    const PODS: usize = 16;
    let scene = Scene::new();
    let sandboxes: Vec<Sandbox> = (0..PODS).map(|number| scene.sandbox(&format!("pod{number}"))).collect();
    let everybody: Vec<_> = sandboxes.iter().map(|s| json!({"containerID": s.id, "ifname": "eth0"})).collect();
    let config = scene.with("cni.dev/valid-attachments", json!(everybody));
    std::thread::scope(|scope| {
        let adds = scope.spawn(|| crowd(PODS, 4, |number| drop(scene.add(&sandboxes[number]).result())));
        while !adds.is_finished() {
            scene.node.call_network("GC", &config).succeeded();
        }
        adds.join().unwrap();
    });
    for sandbox in &sandboxes {
        scene.check(sandbox).succeeded();
        scene.del(sandbox).succeeded();
    }
    scene.nothing_is_left(&sandboxes.iter().collect::<Vec<_>>(), &[], "burst with GC");
}

#[test]
fn add_and_del_of_one_container_come_one_after_the_other() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("c1");
    for round in 0..20 {
        let outputs = std::thread::scope(|scope| {
            let add = scope.spawn(|| scene.add(&sandbox));
            let del = scope.spawn(|| scene.del(&sandbox));
            [add.join().unwrap(), del.join().unwrap()]
        });
        assert!(outputs.iter().all(|output| output.ok), "round {round}: {outputs:?}");
        match link_names(&sandbox.netns).len() {
            1 => scene.nothing_is_left(&[&sandbox], &[], "ADD first"),
            _ => scene.check(&sandbox).succeeded(),
        }
        scene.del(&sandbox).succeeded();
        scene.nothing_is_left(&[&sandbox], &[], &format!("round {round}"));
    }
}

#[test]
fn of_two_adds_of_one_attachment_one_succeeds() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("c1");
    let outputs = std::thread::scope(|scope| {
        let both = [scope.spawn(|| scene.add(&sandbox)), scope.spawn(|| scene.add(&sandbox))];
        both.map(|add| add.join().unwrap())
    });
    let failed: Vec<_> = outputs.iter().filter(|output| !output.ok).collect();
    assert_eq!(failed.len(), 1, "{outputs:?}");
    assert!(failed[0].error().1.contains("attached already"));
    scene.check(&sandbox).succeeded();
    scene.del(&sandbox).succeeded();
    scene.nothing_is_left(&[&sandbox], &[], "two");
}

#[test]
fn one_container_gets_two_interfaces_at_once() {
    let scene = Scene::new();
    scene.node.pod("default", "web", "");
    let sandbox = scene.sandbox("c1");
    let interfaces = ["eth0", "eth1"];
    std::thread::scope(|scope| {
        for interface in interfaces {
            let (scene, sandbox) = (&scene, &sandbox);
            let mut config = scene.config.clone();
            // A default route each would clash.
            config["delegates"][0]["isDefaultGateway"] = false.into();
            scope.spawn(move || drop(scene.node.call_interface("ADD", sandbox, interface, &config).result()));
        }
    });
    assert_eq!(link_names(&sandbox.netns), ["eth0", "eth1", "lo"]);
    assert_eq!(scene.reserved().len(), 2);
    scene.node.call_interface("DEL", &sandbox, "eth0", &scene.config).succeeded();
    assert_eq!(link_names(&sandbox.netns), ["eth1", "lo"], "the other interface stays");
    scene.node.call_interface("CHECK", &sandbox, "eth1", &scene.config).succeeded();
    scene.node.call_interface("DEL", &sandbox, "eth1", &scene.config).succeeded();
    scene.nothing_is_left(&[&sandbox], &[], "two interfaces");
}

#[test]
fn the_first_users_of_a_bridge_share_one() {
    for round in 0..5 {
        let scene = Scene::new();
        let sandboxes: Vec<Sandbox> = (0..8).map(|number| scene.sandbox(&format!("pod{number}"))).collect();
        crowd(8, 8, |number| drop(scene.add(&sandboxes[number]).result()));
        let bridges: Vec<String> = scene.node.links().into_iter().filter(|name| !name.starts_with("veth")).collect();
        assert_eq!(bridges, ["br-blue", "br-green", "cni0", "lo"], "round {round}");
        crowd(8, 8, |number| scene.check(&sandboxes[number]).succeeded());
        crowd(8, 8, |number| scene.del(&sandboxes[number]).succeeded());
        scene.nothing_is_left(&sandboxes.iter().collect::<Vec<_>>(), &[], "bridge");
    }
}

//! Called by a real runtime.

use std::time::Instant;

use musubi_tests::containerd::Containerd;
use musubi_tests::containerd::cluster::{Cluster, Manifests};
use musubi_tests::containerd::cri::Pod;
use musubi_tests::node::Node;
use serde_json::{Value, json};

fn configuration(node: &Node, default: &Value) -> Value {
    let mut plugin = node.config(default);
    plugin.as_object_mut().unwrap().retain(|key, _| key != "cniVersion" && key != "name");
    plugin["capabilities"] = json!({
        "portMappings": true, "bandwidth": true, "dns": true, "io.kubernetes.cri.pod-annotations": true,
    });
    json!({
        "cniVersion": "0.4.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "musubi-network", "plugins": [plugin],
    })
}

#[test]
fn smoke() {
    let t = Instant::now();
    let node = Node::new();
    let conf = configuration(&node, &node.default_bridge());
    let c = Containerd::start(node);
    println!("start {:?}", t.elapsed());
    println!("{:?} {:?}", c.cri.version(), c.cri.network_problem());
    std::fs::write(c.conf_dir().join("00-musubi.conflist"), conf.to_string()).unwrap();
    c.wait_until_the_network_is_ready();
    println!("ready {:?}", t.elapsed());
    Manifests.define(&c.node, "blue", &c.node.bridge("br-blue", "blue", "10.2.0.0/24"));
    let pod = Pod::selecting("web", "blue");
    Manifests.create(&c.node, &pod);
    for _ in 0..3 {
        let t = Instant::now();
        let id = c.cri.run(&pod).unwrap_or_else(|e| panic!("{e} {}", c.log_tail()));
        println!("run {:?}", t.elapsed());
        println!("{:?}", c.netns(&id).netlink.links().unwrap().iter().map(|l| &l.name).collect::<Vec<_>>());
        println!("{:?}", c.leftovers());
        let t = Instant::now();
        c.cri.stop(&id).unwrap();
        println!("stop {:?}", t.elapsed());
        c.cri.remove(&id).unwrap();
        println!("remove {:?}", t.elapsed());
        println!("{:?}", c.leftovers());
    }
    println!("{}", c.log_tail());
    let t = Instant::now();
    let c = c.reboot();
    println!("reboot {:?}", t.elapsed());
    let t = Instant::now();
    drop(c);
    println!("drop {:?}", t.elapsed());
}

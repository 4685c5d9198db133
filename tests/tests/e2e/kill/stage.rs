//! Where processes are killed: a node whose pod `default/web` has a network of each sort, and other pods that come and go
//! meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};

use musubi_delegates::netlink::address;
use musubi_tests::agent;
use musubi_tests::node::{Node, Sandbox, link_names};
use serde_json::{Value, json};

use crate::scene::{Scene, files, masqueraded};

/// Interfaces of `default/web`.
pub const INTERFACES: [&str; 8] = ["eth0", "lo", "net1", "net2", "net3", "net4", "net5", "net6"];
/// A device of `default/web`, and its resource.
pub const DEVICE: (&str, &str) = ("example.com/vf", "0000:03:02.1");

pub struct Stage {
    pub scene: Scene,
    /// The agent's configuration.
    pub agent: Value,
}

impl Stage {
    /// A node whose devices are given out by the kubelet behind a socket.
    pub fn new(kubelet: &std::path::Path) -> Self {
        let mut scene = Scene::new();
        scene.config["podResourcesSocket"] = json!(kubelet);
        scene.config["deviceInfoDir"] = json!(scene.node.folder().join("devinfo"));
        let agent = agent::config(&scene.node, &scene.config);
        scene.config["agentSocket"] = json!(agent::socket(&scene.node));
        uplink(&scene.node);
        networks(&scene);
        describe_device(&scene);
        let selected = r#"[{"name":"blue","default-route":["10.2.0.1"]},{"name":"green"},{"name":"overlay"},
            {"name":"flat"},{"name":"line"},{"name":"tagged","ips":["10.8.0.5/24"]}]"#;
        scene.node.pod("default", "web", selected);
        scene.node.pod("default", "load", "blue");
        Self { scene, agent }
    }

    /// The configuration of a plugin that works alone and says what it does.
    pub fn alone(&self) -> Value {
        let mut config = self.scene.with("agentSocket", "".into());
        config["logLevel"] = "debug".into();
        config
    }

    /// Adds and deletes a pod until told to stop; each call has to succeed.
    pub fn load(&self, sandbox: &Sandbox, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let added = self.scene.add(sandbox).result();
            assert!(added["ips"][0]["address"].is_string(), "{added}");
            assert_eq!(link_names(&sandbox.netns), ["eth0", "lo", "net1"], "{}", sandbox.id);
            self.scene.del(sandbox).succeeded();
        }
    }

    /// That a pod has all it was promised.
    pub fn is_attached(&self, sandbox: &Sandbox, case: &str) {
        assert_eq!(link_names(&sandbox.netns), INTERFACES, "{case}");
        let checked = self.scene.check(sandbox);
        assert!(checked.ok, "{case}: {}", checked.stdout);
        let status = self.scene.status("default/web").unwrap_or_else(|| panic!("{case}: no network-status"));
        let names: Vec<&str> = status.as_array().unwrap().iter().map(|e| e["interface"].as_str().unwrap()).collect();
        assert_eq!(names, ["eth0", "net1", "net2", "net3", "net4", "net5", "net6"], "{case}");
    }

    /// That nothing is left of a pod while others live.
    pub fn is_gone(&self, sandbox: &Sandbox, case: &str) {
        assert_eq!(link_names(&sandbox.netns), ["lo"], "{case}");
        let own = format!("/{}", sandbox.id);
        let of_it = |file: &String| {
            file.contains(&format!("{own}:")) || file.ends_with(&own) || file.contains("status/default/web")
        };
        let left: Vec<String> = self.scene.node.leftover_files().into_iter().filter(of_it).collect();
        assert_eq!(left, [""; 0], "{case}");
        assert_eq!(self.scene.status("default/web"), None, "{case}");
        assert_eq!(
            files(self.scene.node.folder().join("devinfo/cni")),
            [""; 0].map(std::path::PathBuf::from),
            "{case}"
        );
    }
}

/// The host's way to other nodes, for macvlan and VXLAN.
fn uplink(node: &Node) {
    node.add_uplink("up0", "other0");
    let host = node.host.open();
    let index = host.netlink.link_by_name("up0").unwrap().unwrap().index;
    host.netlink.request(address::add(index, "192.168.50.1/24".parse().unwrap(), false)).unwrap();
}

fn networks(scene: &Scene) {
    let node = &scene.node;
    let mut blue = masqueraded(node.bridge("br-blue", "blue", "10.2.0.0/24"));
    for key in ["macspoofchk", "portIsolation", "hairpinMode"] {
        blue[key] = true.into();
    }
    scene.definition("blue", &blue);
    chain_with_device(scene);
    let pool = |ranges: Value| json!({"type": "host-local", "dataDir": node.reservations(), "ranges": ranges});
    scene.definition(
        "overlay",
        &json!({"cniVersion": "1.0.0", "name": "overlay", "type": "vxlan", "vni": 7, "master": "up0",
            "remotes": ["192.168.50.2", "192.168.50.3"], "isGateway": true, "ipam": pool(json!([[{"subnet": "10.5.0.0/24"}]]))}),
    );
    scene.definition(
        "flat",
        &json!({"cniVersion": "1.0.0", "name": "flat", "type": "macvlan", "master": "up0",
            "ipam": pool(json!([[{"subnet": "10.6.0.0/24"}], [{"subnet": "fd00:6::/64"}]]))}),
    );
    scene.definition(
        "line",
        &json!({"cniVersion": "1.0.0", "name": "line", "type": "ptp", "ipMasq": true,
            "ipam": pool(json!([[{"subnet": "10.7.0.0/24"}]]))}),
    );
    let static_routes = json!({"type": "static", "routes": [{"dst": "10.80.0.0/16", "gw": "10.8.0.1"}]});
    scene.definition(
        "tagged",
        &json!({"cniVersion": "1.0.0", "name": "tagged", "type": "bridge", "bridge": "br-tagged", "mac": "02:00:00:00:08:05",
            "capabilities": {"ips": true}, "ipam": static_routes}),
    );
}

/// A bridge and another's plugin, with a device between them.
fn chain_with_device(scene: &Scene) {
    scene.recording_plugin("noting");
    let mut bridge = masqueraded(scene.node.bridge("br-green", "green", "10.3.0.0/24"));
    bridge.as_object_mut().unwrap().remove("cniVersion");
    let config = json!({"cniVersion": "1.0.0", "name": "green", "plugins": [bridge, {"type": "noting"}]});
    let object = json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": "green", "namespace": "default", "annotations": {"k8s.v1.cni.cncf.io/resourceName": DEVICE.0}},
        "spec": {"config": config.to_string()},
    });
    scene.node.manifest("nad-default-green.json", &object.to_string());
}

fn describe_device(scene: &Scene) {
    let folder = scene.node.folder().join("devinfo/dp");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("{}-{}-device.json", DEVICE.0.replace('/', "-"), DEVICE.1));
    std::fs::write(file, json!({"type": "pci", "version": "1.1.0", "pci": {"pci-address": DEVICE.1}}).to_string())
        .unwrap();
}

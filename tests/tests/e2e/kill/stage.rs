//! Where processes are killed: a node whose pod `web` has a network of each sort, and other pods that come and go meanwhile.
//! Pods and definitions are in a folder, or in an API server.

use std::sync::atomic::{AtomicBool, Ordering};

use musubi_delegates::netlink::address;
use musubi_tests::agent;
use musubi_tests::api_server::ApiServer;
use musubi_tests::cluster::{Cluster, NAMESPACE};
use musubi_tests::kubelet::Kubelet;
use musubi_tests::node::{Node, Sandbox, link, link_names};
use serde_json::{Value, json};

use crate::scene::{Scene, files, masqueraded, until};

/// Interfaces of `web` that its status tells of.
const INTERFACES: [&str; 7] = ["eth0", "net1", "net2", "net3", "net4", "net5", "net6"];
/// The networks that `web` selects.
const SELECTED: &str = r#"[{"name":"blue","default-route":["10.2.0.1"]},{"name":"green"},{"name":"overlay"},
    {"name":"flat"},{"name":"line"},{"name":"tagged","ips":["10.8.0.5/24"]}]"#;
/// A resource and the device of it that `web` is given.
const DEVICE: (&str, &str) = ("example.com/vf", "0000:03:02.1");

const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
const STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// The kubelet that gives `web` its device, for all stages.
pub struct Device {
    folder: tempfile::TempDir,
    _kubelet: Kubelet,
}

impl Device {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kubelet = Kubelet::start(&folder.path().join("kubelet.sock"));
        kubelet.admit("default/web", &[&[(DEVICE.0, &[DEVICE.1])]]);
        Self { folder, _kubelet: kubelet }
    }
}

pub struct Stage {
    pub scene: Scene,
    /// The agent's configuration.
    pub agent: Value,
    /// Whether `web` selects a network whose plugin refuses.
    pub add_fails: bool,
    cluster: Option<Cluster>,
}

impl Stage {
    /// Pods and definitions are in a folder, and one of the networks has a device.
    pub fn in_folder(device: &Device) -> Self {
        let mut scene = Scene::new();
        scene.config["podResourcesSocket"] = json!(device.folder.path().join("kubelet.sock"));
        scene.config["deviceInfoDir"] = json!(scene.node.folder().join("devinfo"));
        describe_device(&scene.node);
        for (name, config) in networks(&scene) {
            let resource =
                if name == "green" { json!({"k8s.v1.cni.cncf.io/resourceName": DEVICE.0}) } else { json!({}) };
            let object = json!({
                "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
                "metadata": {"name": name, "namespace": "default", "annotations": resource},
                "spec": {"config": config.to_string()},
            });
            scene.node.manifest(&format!("nad-default-{name}.json"), &object.to_string());
        }
        scene.node.pod("default", "web", SELECTED);
        scene.node.pod("default", "load", "blue");
        Self::of(scene, None)
    }

    /// Pods and definitions are in an API server on the node.
    pub fn in_cluster() -> Self {
        let mut scene = Scene::new();
        let cluster = scene.node.host.enter(|| Cluster::of(ApiServer::start()));
        for (name, config) in networks(&scene) {
            cluster.create_definition(name, &config);
        }
        cluster.create_pod("node-1", "web", &[(NETWORKS, SELECTED)]);
        cluster.create_pod("node-1", "load", &[(NETWORKS, "blue")]);
        scene.config.as_object_mut().unwrap().remove("manifestDir");
        scene.config["kubeconfig"] = json!(cluster.kubeconfig(scene.node.folder()));
        Self::of(scene, Some(cluster))
    }

    fn of(mut scene: Scene, cluster: Option<Cluster>) -> Self {
        uplink(&scene.node);
        let agent = agent::config(&scene.node, &scene.config);
        scene.config["agentSocket"] = json!(agent::socket(&scene.node));
        Self { scene, agent, add_fails: false, cluster }
    }

    /// As [`Self::in_folder`], with one more network, whose plugin refuses.
    pub fn whose_add_fails(device: &Device) -> Self {
        let stage = Self::in_folder(device);
        stage.scene.plugin("refusing", "[ $CNI_COMMAND != ADD ]");
        stage.scene.chain("red", "10.9.0.0/24", &["refusing"]);
        let selected = SELECTED.strip_suffix(']').unwrap();
        stage.scene.node.pod("default", "web", &format!("{selected},{{\"name\":\"red\"}}]"));
        Self { add_fails: true, ..stage }
    }

    /// A sandbox of one of its pods.
    pub fn sandbox(&self, id: &str, pod: &str) -> Sandbox {
        let namespace = if self.cluster.is_some() { NAMESPACE } else { "default" };
        Sandbox::new(id, &format!("{namespace}/{pod}"))
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

    /// That the pod has all it was promised, and its status says so.
    pub fn is_attached(&self, sandbox: &Sandbox, case: &str) {
        let mut names = link_names(&sandbox.netns);
        names.retain(|name| name != "lo");
        assert_eq!(names, INTERFACES, "{case}");
        let checked = self.scene.check(sandbox);
        assert!(checked.ok, "{case}: {}", checked.stdout);
        let status = self.status().unwrap_or_else(|| panic!("{case}: no network-status"));
        for (entry, interface) in status.as_array().unwrap().iter().zip(INTERFACES) {
            let mac = link(&sandbox.netns, interface).mac.unwrap().to_string();
            assert_eq!((&entry["interface"], &entry["mac"]), (&json!(interface), &json!(mac)), "{case}: {status}");
        }
    }

    /// That nothing is left of the pod while others live.
    pub fn is_gone(&self, sandbox: &Sandbox, case: &str) {
        assert_eq!(link_names(&sandbox.netns), ["lo"], "{case}");
        let own = format!("/{}", sandbox.id);
        // An agent that looks for what there is to do for it holds its lock for a moment, be it after DEL.
        let lock = self.scene.node.state().join("locks").join(&sandbox.id);
        until(&format!("{case}: the lock is gone"), || !lock.exists());
        let mut left = self.scene.node.leftover_files();
        left.extend(files(self.scene.node.folder().join("devinfo/cni")).iter().map(|file| file.display().to_string()));
        let holds = |file: &String| std::fs::read_to_string(file).is_ok_and(|text| text.starts_with(&sandbox.id));
        left.retain(|file| {
            file.contains(&format!("{own}:")) || file.ends_with(&own) || file.contains("devinfo") || holds(file)
        });
        left.extend(self.scene.rules().into_iter().filter(|owner| owner.contains(&sandbox.id)));
        assert_eq!(left, [""; 0], "{case}");
        // In the API it goes with the pod.
        assert!(self.cluster.is_some() || self.status().is_none(), "{case}: the network-status is still there");
    }

    fn status(&self) -> Option<Value> {
        match &self.cluster {
            Some(cluster) => Some(serde_json::from_str(&cluster.annotation("web", STATUS)?).unwrap()),
            None => self.scene.status("default/web"),
        }
    }
}

/// The host's way to other nodes, for macvlan and VXLAN.
fn uplink(node: &Node) {
    node.add_uplink("up0", "other0");
    let host = node.host.open();
    let index = host.netlink.link_by_name("up0").unwrap().unwrap().index;
    host.netlink.request(address::add(index, "192.168.50.1/24".parse().unwrap(), false)).unwrap();
}

/// A network of each sort: spoof check and isolation, a chain with another's plugin, VXLAN, macvlan with both families,
/// point to point, and a bridge without gateway, with an address by request.
fn networks(scene: &Scene) -> Vec<(&'static str, Value)> {
    let node = &scene.node;
    let mut blue = masqueraded(node.bridge("br-blue", "blue", "10.2.0.0/24"));
    for key in ["macspoofchk", "portIsolation", "hairpinMode"] {
        blue[key] = true.into();
    }
    scene.recording_plugin("noting");
    let mut green = masqueraded(node.bridge("br-green", "green", "10.3.0.0/24"));
    green.as_object_mut().unwrap().remove("cniVersion");
    let pool = |subnets: &[&str]| {
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
        json!({"type": "host-local", "dataDir": node.reservations(), "ranges": ranges})
    };
    let mut overlay =
        json!({"type": "vxlan", "vni": 7, "master": "up0", "isGateway": true, "ipam": pool(&["10.5.0.0/24"])});
    overlay["remotes"] = json!(["192.168.50.2", "192.168.50.3"]);
    let flat = json!({"type": "macvlan", "master": "up0", "ipam": pool(&["10.6.0.0/24", "fd00:6::/64"])});
    let line = json!({"type": "ptp", "ipMasq": true, "ipam": pool(&["10.7.0.0/24"])});
    let mut tagged = json!({"type": "bridge", "bridge": "br-tagged", "capabilities": {"ips": true}});
    tagged["ipam"] = json!({"type": "static", "routes": [{"dst": "10.80.0.0/16", "gw": "10.8.0.1"}]});
    let named = |name: &str, mut config: Value| {
        config["cniVersion"] = "1.0.0".into();
        config["name"] = name.into();
        config
    };
    let chain = json!({"plugins": [green, {"type": "noting"}]});
    [("blue", blue), ("green", chain), ("overlay", overlay), ("flat", flat), ("line", line), ("tagged", tagged)]
        .map(|(name, config)| (name, named(name, config)))
        .into()
}

/// What a device plugin says of the device.
fn describe_device(node: &Node) {
    let folder = node.folder().join("devinfo/dp");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("{}-{}-device.json", DEVICE.0.replace('/', "-"), DEVICE.1));
    let text = json!({"type": "pci", "version": "1.1.0", "pci": {"pci-address": DEVICE.1}}).to_string();
    std::fs::write(file, text).unwrap();
}

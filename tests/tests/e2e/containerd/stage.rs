//! What these tests stand on: a node with containerd, its primary network, an API server with the rights of `deploy/`, and
//! an agent that writes the runtime's configuration; and the proof of what pods have and of what is left.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use k8s_openapi::api::rbac::v1::ClusterRole;
use musubi_delegates::netlink::Link;
use musubi_delegates::netns::Namespace;
use musubi_tests::agent::{self, Agent};
use musubi_tests::api_server::ApiServer;
use musubi_tests::containerd::Containerd;
use musubi_tests::containerd::cluster::{Api, Cluster, Manifests, NODE};
use musubi_tests::containerd::cri::Pod;
use musubi_tests::containerd::cri::api::PodSandbox;
use serde_json::{Value, json};

use crate::deploy::object;
use crate::scene::{Scene, masqueraded};

/// The file of the node's own network, as the cluster's first CNI plugin leaves it.
pub const PRIMARY: &str = "10-primary.conflist";

/// Who does the work, by whose configuration, and where objects are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The agent; it has written the configuration. An API server.
    Agent,
    /// The plugin, by the configuration that an agent wrote which is gone. An API server.
    PluginAlone,
    /// The plugin, by a configuration written by hand. A folder of manifests.
    Manifests,
}

/// Every way with an API server.
pub const WITH_API: [Way; 2] = [Way::Agent, Way::PluginAlone];

/// A scene with a runtime, which has taken up our configuration.
pub struct Stage {
    pub agent: Option<Agent>,
    pub runtime: Containerd,
    api: Option<Api>,
    pub scene: Scene,
    /// The agent's configuration.
    pub config: Value,
    /// What puts the agent into a container; empty for an agent on the node itself.
    pub container: Vec<String>,
}

impl Stage {
    pub fn new(way: Way) -> Self {
        Self::of(way, Scene::new())
    }

    pub fn of(way: Way, scene: Scene) -> Self {
        Self::with(way, scene, json!({}))
    }

    /// A stage whose agent has further keys.
    pub fn with(way: Way, scene: Scene, keys: Value) -> Self {
        let mut stage = Self::without_ours(way, scene);
        if way == Way::Manifests {
            stage.put("00-musubi.conflist", &by_hand(&stage.scene.config));
        } else {
            stage.config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
            stage.start_agent();
        }
        stage.runtime.wait_until_our_configuration_is_used();
        stage.agent.take_if(|_| way == Way::PluginAlone);
        stage
    }

    /// A node before our time: the runtime has the primary network alone.
    pub fn without_ours(way: Way, scene: Scene) -> Self {
        let runtime = Containerd::start(&scene.node);
        let api = (way != Way::Manifests).then(|| Api::start(&scene.node));
        let mut stage = Self { agent: None, config: json!({}), container: vec![], runtime, api, scene };
        if way != Way::Manifests {
            stage.config = stage.agent_config();
            stage.put(PRIMARY, &stage.primary());
        }
        stage
    }

    fn agent_config(&self) -> Value {
        let mut config = agent::config(&self.scene.node, &self.scene.config);
        let all = config.as_object_mut().unwrap();
        ["delegates", "manifestDir", "name"].into_iter().for_each(|key| drop(all.remove(key)));
        let own = json!({
            "cniConfigDir": self.runtime.conf_dir(), "criSocket": self.runtime.socket(), "nodeName": NODE,
            "kubeconfig": self.api.as_ref().unwrap().kubeconfig(self.scene.node.folder(), &role()),
        });
        all.extend(own.as_object().unwrap().clone());
        config
    }

    /// The scene's default network, as a list.
    pub fn primary(&self) -> Value {
        let mut network = self.scene.config["delegates"][0].clone();
        if network.get("plugins").is_none() {
            let plugin = network.clone();
            network = json!({"cniVersion": plugin["cniVersion"], "name": plugin["name"], "plugins": [plugin]});
        }
        network
    }

    /// Puts a file into the runtime's folder, whole. containerd 1.6 reads the folder again when a file in it is written or
    /// renamed, not when one is moved into it.
    pub fn put(&self, name: &str, content: &Value) {
        let new = self.runtime.conf_dir().join(".new");
        fs::write(&new, content.to_string()).unwrap();
        fs::rename(new, self.runtime.conf_dir().join(name)).unwrap();
    }

    /// Starts an agent, in the place of one that may run, and waits until it is ready.
    pub fn start_agent(&mut self) {
        self.agent = None;
        self.agent = Some(self.new_agent());
        self.agent().until("it is ready", |agent| agent.get("/readyz").status == 200);
    }

    /// Starts an agent and waits until it answers.
    pub fn new_agent(&self) -> Agent {
        let container: Vec<&str> = self.container.iter().map(String::as_str).collect();
        Agent::start_by(&self.scene.node, &self.config, &container, |command| self.runtime.spawn(command))
    }

    pub fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    fn cluster(&self) -> &dyn Cluster {
        self.api.as_ref().map_or(&Manifests, |api| api)
    }

    /// The API server of a stage that has one.
    pub fn server(&self) -> &ApiServer {
        self.api.as_ref().unwrap().server()
    }

    /// The plugin's configuration, as the runtime has it.
    pub fn plugin(&self) -> Value {
        let list: Value = serde_json::from_slice(&fs::read(self.runtime.conf_file()).unwrap()).unwrap();
        let mut plugin = list["plugins"][0].clone();
        plugin["name"] = list["name"].clone();
        plugin
    }

    /// Calls our program as a runtime of another kind or age would, on the same node: whether it succeeds, and its answer.
    pub fn call(&self, command: &str, version: &str, id: Option<&str>, more: Value) -> (bool, String) {
        let mut conf = self.plugin();
        conf["cniVersion"] = version.into();
        conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let bin = self.scene.node.folder().join("bin");
        let mut call = Command::new(bin.join("musubi"));
        call.env("CNI_COMMAND", command).env("CNI_PATH", bin);
        if let Some(id) = id {
            call.env("CNI_CONTAINERID", id).env("CNI_NETNS", self.runtime.netns_path(id)).env("CNI_IFNAME", "eth0");
        }
        call.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = self.runtime.spawn(call);
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The machine loses its power and boots. The agent does not start by itself.
    pub fn reboot(mut self) -> Self {
        self.agent = None;
        self.runtime = self.runtime.reboot(&mut self.scene.node);
        self.cluster().follow(&self.scene.node);
        self
    }

    pub fn define(&self, name: &str, config: &Value) {
        self.cluster().define(&self.scene.node, name, config);
    }

    /// Defines a bridge of its own for each name; network number n has the subnet 10.<100 + n>.0.0/24.
    pub fn bridges(&self, names: &[&str]) {
        for (number, name) in names.iter().enumerate() {
            let bridge = self.scene.node.bridge(&format!("br-{name}"), name, &format!("10.{}.0.0/24", 100 + number));
            self.define(name, &masqueraded(bridge));
        }
    }

    /// Defines a chain of a bridge and of a plugin that is this script.
    pub fn chain(&self, name: &str, subnet: &str, script: &str) {
        self.scene.plugin(name, script);
        self.define(name, &self.scene.chained(name, subnet, &[name]));
    }

    pub fn create(&self, pod: &Pod) {
        self.cluster().create(&self.scene.node, pod);
    }

    pub fn delete(&self, pod: &Pod) {
        self.cluster().delete(&self.scene.node, pod);
    }

    /// Publishes a pod and runs its sandbox.
    pub fn run(&self, pod: &Pod) -> String {
        self.create(pod);
        self.run_again(pod)
    }

    pub fn run_again(&self, pod: &Pod) -> String {
        self.runtime.cri.run(pod).unwrap_or_else(|e| panic!("{}: {}", pod.name, e.message()))
    }

    /// What the kubelet does with a sandbox that is not wanted any more.
    pub fn remove(&self, id: &str) {
        self.runtime.cri.stop(id).unwrap_or_else(|e| panic!("stop {id}: {}", e.message()));
        self.runtime.cri.remove(id).unwrap_or_else(|e| panic!("remove {id}: {}", e.message()));
    }

    /// A pod's whole life; it is proved to have these networks while it lives.
    pub fn live(&self, pod: &Pod, networks: &[&str]) {
        let id = self.run(pod);
        self.assert_attached(pod, &id, networks);
        self.remove(&id);
        self.delete(pod);
    }

    pub fn list(&self) -> Vec<PodSandbox> {
        self.runtime.cri.list().unwrap()
    }

    /// The addresses that the runtime knows of.
    fn ips(&self, id: &str) -> Vec<String> {
        let network = self.runtime.cri.status(id).unwrap().status.unwrap().network.unwrap();
        [network.ip].into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect()
    }

    pub fn status(&self, pod: &Pod) -> Value {
        let status = self.cluster().network_status(&self.scene.node, pod);
        status.unwrap_or_else(|| panic!("{} has no status", pod.name))
    }

    /// The pod's status names these networks, in this order, and says of each interface what the namespace says of it;
    /// the runtime got the first one's address.
    pub fn assert_attached(&self, pod: &Pod, id: &str, networks: &[&str]) {
        let status = self.status(pod);
        let entries = status.as_array().unwrap();
        let names: Vec<&str> = entries.iter().map(|entry| entry["name"].as_str().unwrap()).collect();
        let own: Vec<String> = networks.iter().map(|name| format!("default/{name}")).collect();
        let wanted: Vec<&str> = ["default-network"].into_iter().chain(own.iter().map(String::as_str)).collect();
        assert_eq!(names, wanted, "{}", pod.name);

        let told: BTreeMap<String, Value> = entries
            .iter()
            .map(|e| (e["interface"].as_str().unwrap().to_owned(), json!({"mac": e["mac"], "ips": e["ips"]})))
            .collect();
        assert_eq!(told, interfaces(&self.runtime.netns(id)), "{}", pod.name);
        for (place, entry) in entries.iter().enumerate() {
            assert_eq!(entry["default"] == true, place == 0, "the default network is the first and no other: {status}");
        }
        assert_eq!(json!(self.ips(id)), entries[0]["ips"], "{}: the runtime knows the default network alone", pod.name);
    }

    /// No pod is left, nor anything of one: neither ours nor the runtime's.
    pub fn assert_nothing_is_left(&self, case: &str) {
        assert!(self.list().is_empty(), "{case}: {:?}", self.list());
        self.scene.nothing_is_left(&[], &[], case);
        assert_eq!(self.runtime.leftovers(), Vec::<PathBuf>::new(), "{case}");
    }
}

/// What a runtime is given where no agent is to write it. Old runtimes do not know the second key and take the first, new
/// ones take the highest version they know.
fn by_hand(ours: &Value) -> Value {
    let mut plugin = ours.clone();
    plugin.as_object_mut().unwrap().retain(|key, _| key != "cniVersion" && key != "name");
    plugin["capabilities"] = json!({"io.kubernetes.cri.pod-annotations": true});
    json!({
        "cniVersion": "0.4.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": ours["name"], "plugins": [plugin],
    })
}

/// What the agent, and the plugin with it, may do on a cluster.
pub fn role() -> Vec<Value> {
    let role: ClusterRole = object("ClusterRole");
    role.rules.unwrap().into_iter().map(|rule| json!(rule)).collect()
}

/// What a pod's namespace holds besides `lo`: MAC and addresses by interface, but for those the kernel itself gives.
pub fn interfaces(netns: &Namespace) -> BTreeMap<String, Value> {
    let links = netns.netlink.links().unwrap().into_iter().filter(|link| link.name != "lo");
    let describe = |link: Link| {
        let addresses = netns.netlink.addresses(link.index).unwrap().into_iter().map(|address| address.net.addr());
        let given = addresses.filter(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()));
        let ips: Vec<String> = given.map(|ip| ip.to_string()).collect();
        (link.name, json!({"mac": link.mac.map(|mac| mac.to_string()), "ips": ips}))
    };
    links.map(describe).collect()
}

/// Gateway and interface of the pod's default routes.
pub fn default_routes(netns: &Namespace) -> Vec<(String, String)> {
    let routes = netns.netlink.routes().unwrap().into_iter().filter(|route| route.is_default());
    let interface = |index| netns.netlink.link_by_index(index).unwrap().unwrap().name;
    routes.map(|route| (route.gateway.unwrap().to_string(), interface(route.interface))).collect()
}

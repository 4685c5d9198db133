//! What the tests of the Kubernetes store share: a node, a cluster whose API server it reaches, and our plugin, alone or in
//! front of an agent. Our programs may do there what `deploy/rbac.yaml` allows and no more.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use musubi_tests::agent::{self, Agent};
use musubi_tests::api_server::ApiServer;
use musubi_tests::cluster::{Cluster, NAMESPACE};
use musubi_tests::node::{Node, Output, Sandbox, musubi};
use serde_json::{Map, Value, json};

use crate::scene::{Scene, masqueraded, until};

/// The annotation that selects networks.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// The annotation that says what became of it.
pub const STATUS: &str = "k8s.v1.cni.cncf.io/network-status";
/// The node's name in the cluster.
pub const NODE: &str = "node-1";
/// What an ADD asks that selects networks and has no agent: who may use what.
pub const POLICIES: &str = "GET /apis/musubi.dev/v1alpha1/attachmentpolicies";
/// By when what is not waited for has been asked.
const SETTLED: Duration = Duration::from_millis(100);

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The plugin that the runtime executes.
    Alone,
    /// The agent that it asks.
    Agent,
}

/// Both ways: each outcome is the same by either.
pub const WAYS: [Way; 2] = [Way::Alone, Way::Agent];

/// A node with the networks `blue` and `green` of a cluster.
pub struct Stage {
    pub scene: Scene,
    pub cluster: Cluster,
    pub agent: Option<Agent>,
    pub way: Way,
    /// The token that our programs use, in a file beside their kubeconfig.
    pub token: String,
}

/// A pod on the node, as a runtime knows it.
pub struct Started {
    pub sandbox: Sandbox,
    /// `K8S_POD_UID`: the kubelet's.
    pub uid: String,
    /// What the runtime hands over of its annotations, where it does.
    pub annotations: Option<Value>,
}

impl Stage {
    pub fn new(way: Way) -> Self {
        Self::with(way, &json!({}))
    }

    /// A stage whose API server can be broken; none on a real cluster, which is said loudly.
    pub fn breakable(way: Way) -> Option<Self> {
        Self::breakable_with(way, &json!({}))
    }

    /// As [`Self::breakable`], the agent's configuration with further keys.
    #[allow(clippy::print_stdout, reason = "whoever runs it has to see what was not tested")]
    pub fn breakable_with(way: Way, agent_keys: &Value) -> Option<Self> {
        (!is_real_cluster()).then(|| Self::with(way, agent_keys))
    }

    fn with(way: Way, agent_keys: &Value) -> Self {
        let node = Node::new();
        let cluster = Cluster::start_for(&node.host);
        let kubeconfig = cluster.kubeconfig(node.folder());
        let mut config = node.config(&masqueraded(node.default_bridge()));
        let keys = config.as_object_mut().unwrap();
        keys.remove("manifestDir");
        keys.insert("kubeconfig".into(), json!(kubeconfig));
        keys.insert("logLevel".into(), "debug".into());
        keys.insert("capabilities".into(), json!({"io.kubernetes.cri.pod-annotations": true}));
        for (name, subnet) in [("blue", "10.2.0.0/24"), ("green", "10.3.0.0/24")] {
            cluster.create_definition(name, &masqueraded(node.bridge(&format!("br-{name}"), name, subnet)));
        }
        let mut stage = Self { scene: Scene { node, config }, cluster, agent: None, way, token: String::new() };
        if let Some(api) = stage.cluster.fake() {
            stage.set_token(api.issue_token_for(&rules()));
        }
        if way == Way::Agent {
            stage.start_agent(agent_keys);
        }
        stage.settle();
        stage
    }

    /// Starts an agent and waits until it knows the cluster.
    pub fn start_agent(&mut self, keys: &Value) {
        let mut config = agent::config(&self.scene.node, &self.scene.config);
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        self.scene.config["agentSocket"] = json!(agent::socket(&self.scene.node));
        let agent = Agent::start(&self.scene.node, &config);
        agent.until("ready", |agent| agent.get("/readyz").status == 200);
        self.agent = Some(agent);
    }

    /// The API server, to look into it and to break it.
    pub fn api(&self) -> &ApiServer {
        self.cluster.fake().expect("not on a real cluster")
    }

    /// Gives our programs another token.
    pub fn set_token(&mut self, token: String) {
        std::fs::write(self.token_file(), &token).unwrap();
        self.token = token;
    }

    pub fn token_file(&self) -> PathBuf {
        self.scene.node.folder().join("token")
    }

    /// Creates a pod of the node, and waits until an agent knows it.
    pub fn pod(&self, name: &str, annotations: &[(&str, &str)]) -> Started {
        let pod = self.cluster.create_pod(NODE, name, annotations);
        self.wait_for_cache();
        self.settle();
        self.started(&pod)
    }

    /// A pod of the cluster as the runtime starts it.
    pub fn started(&self, pod: &Pod) -> Started {
        let name = pod.metadata.name.as_deref().unwrap();
        let uid = pod.metadata.uid.clone().unwrap();
        let id = format!("{name}-{}", &uid[..8]);
        Started { sandbox: Sandbox::new(&id, &format!("{NAMESPACE}/{name}")), uid, annotations: None }
    }

    /// Waits until an agent's cache holds what the server does.
    pub fn wait_for_cache(&self) {
        let (Some(agent), Some(api)) = (&self.agent, self.cluster.fake()) else { return };
        let of_node = |pod: &&Value| pod["spec"]["nodeName"] == NODE;
        agent.until("the cache is current", |agent| {
            let metrics = agent.get("/metrics").body;
            let cached = |which: &str| {
                let line = format!("musubi_cached_objects{{cache=\"{which}\"}} ");
                metrics.lines().find_map(|found| found.strip_prefix(&line)?.parse::<usize>().ok())
            };
            cached("pods") == Some(api.list("pods").iter().filter(of_node).count())
                && cached("definitions") == Some(api.list("network-attachment-definitions").len())
        });
    }

    pub fn add(&self, pod: &Started) -> Output {
        self.call("ADD", pod, &self.scene.config)
    }

    pub fn del(&self, pod: &Started) -> Output {
        self.call("DEL", pod, &self.scene.config)
    }

    pub fn check(&self, pod: &Started) -> Output {
        self.call("CHECK", pod, &self.scene.config)
    }

    /// Calls the plugin as a runtime does. Where there is an agent, it is the agent who works.
    pub fn call(&self, command: &str, pod: &Started, config: &Value) -> Output {
        let output = self.call_in_a_crowd(command, pod, config);
        let alone = output.stderr.contains("without the agent");
        assert_eq!(alone, self.way == Way::Alone, "{command} by {:?}: {}", self.way, output.stderr);
        output
    }

    /// The same, where an agent may have too much to do.
    pub fn call_in_a_crowd(&self, command: &str, pod: &Started, config: &Value) -> Output {
        let mut config = config.clone();
        if let Some(annotations) = &pod.annotations {
            config["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": annotations});
        }
        let sandbox = &pod.sandbox;
        let mut args = sandbox.args();
        if !args.is_empty() {
            args += &format!(";K8S_POD_UID={}", pod.uid);
        }
        let mut call = Command::new(musubi());
        call.env("CNI_COMMAND", command).env("CNI_CONTAINERID", &sandbox.id).env("CNI_ARGS", args);
        call.env("CNI_NETNS", sandbox.netns.path()).env("CNI_IFNAME", "eth0");
        self.scene.node.run(call, &config.to_string())
    }

    /// A configuration with another key.
    pub fn config_with(&self, key: &str, value: Value) -> Value {
        self.scene.with(key, value)
    }

    /// The pod's network-status: names and interfaces in order.
    pub fn status(&self, pod: &Started) -> Option<Vec<(String, String)>> {
        let text = self.cluster.annotation(name(pod), STATUS)?;
        let entries: Vec<Value> = serde_json::from_str(&text).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Some(entries.iter().map(|entry| (text(&entry["name"]), text(&entry["interface"]))).collect())
    }

    /// Forgets what has been asked so far.
    pub fn settle(&self) {
        if let Some(api) = self.cluster.fake() {
            std::thread::sleep(if self.agent.is_some() { SETTLED } else { Duration::ZERO });
            drop(api.take_log());
        }
    }

    /// That exactly this has been asked since, in any order, watches aside: method and path below the namespace. What a real
    /// cluster was asked is not known.
    pub fn assert_asked(&self, expected: &[&str], case: &str) {
        let Some(api) = self.cluster.fake() else { return };
        let asked = || {
            let log = api.log().into_iter().filter(|request| !request.query.contains("watch="));
            let mut asked: Vec<String> =
                log.map(|request| format!("{} {}", request.method, below(&request.path))).collect();
            asked.sort();
            asked
        };
        let mut expected: Vec<String> = expected.iter().map(|&request| request.to_owned()).collect();
        expected.sort();
        let end = Instant::now() + Duration::from_secs(5);
        while asked().len() < expected.len() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.agent.is_some() {
            std::thread::sleep(SETTLED);
        }
        assert_eq!(asked(), expected, "{case}, {:?}", self.way);
        drop(api.take_log());
    }

    /// Waits until the pod has this many Events: reason and message, in the order of their texts.
    pub fn events(&self, pod: &Started, count: usize) -> Vec<(String, String)> {
        let read = || {
            let events = self.cluster.events(name(pod)).into_iter();
            let ours =
                events.filter(|event| event.source.as_ref().is_some_and(|s| s.component.as_deref() == Some("musubi")));
            let mut texts: Vec<(String, String)> =
                ours.map(|event| (event.reason.unwrap_or_default(), event.message.unwrap_or_default())).collect();
            texts.sort();
            texts
        };
        until(&format!("{} has {count} Events", pod.sandbox.pod), || read().len() >= count);
        read()
    }

    /// That nothing of these pods is left on the node.
    pub fn nothing_is_left(&self, pods: &[&Started], case: &str) {
        let sandboxes: Vec<&Sandbox> = pods.iter().map(|pod| &pod.sandbox).collect();
        self.scene.nothing_is_left(&sandboxes, &[], &format!("{case}, {:?}", self.way));
    }
}

impl Started {
    /// The same, its annotations handed over by the runtime.
    pub fn handed_over(mut self, annotations: &[(&str, &str)]) -> Self {
        let map: Map<String, Value> = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
        self.annotations = Some(Value::Object(map));
        self
    }
}

/// Whether the API server is one that cannot be broken; if so, the test is skipped, which is said loudly.
pub fn is_real_cluster() -> bool {
    let is_real = std::env::var_os("MUSUBI_TEST_KUBECONFIG").is_some();
    if is_real {
        announce_skip();
    }
    is_real
}

#[allow(clippy::print_stdout, reason = "a test that does not run says so")]
fn announce_skip() {
    println!("SKIPPED on a real cluster: {}", std::thread::current().name().unwrap_or_default());
}

/// A pod's name.
pub fn name(pod: &Started) -> &str {
    pod.sandbox.pod.rsplit('/').next().unwrap()
}

/// Networks and interfaces as [`Stage::status`] gives them; a name without namespace is the default network's.
pub fn entries(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(network, interface)| ((*network).to_owned(), (*interface).to_owned())).collect()
}

/// A path without what is the same for all.
fn below(path: &str) -> String {
    let rest = [format!("/api/v1/namespaces/{NAMESPACE}"), format!("/apis/k8s.cni.cncf.io/v1/namespaces/{NAMESPACE}")]
        .iter()
        .find_map(|prefix| path.strip_prefix(prefix.as_str()).map(str::to_owned));
    rest.unwrap_or_else(|| path.to_owned())
}

/// What the role of `deploy/rbac.yaml` allows.
pub fn rules() -> Vec<Value> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/rbac.yaml")).unwrap();
    let objects: Vec<BTreeMap<String, Value>> = serde_saphyr::from_multiple(&text).unwrap();
    let role = objects.into_iter().find(|object| object["kind"] == "ClusterRole").unwrap();
    role["rules"].as_array().unwrap().clone()
}

//! The agent's part of the benchmark: our program in front of an agent and an API server, without the agent, the floor with
//! its one PATCH, and what the agent takes of memory. The API server is the tests' own, in this process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod as KubernetesPod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use musubi::cancel::Cancel;
use musubi::store::kubernetes::connection::Patience;
use musubi::store::kubernetes::{Connection, Source};
use musubi_tests::agent::{self, Agent};
use musubi_tests::api_server::ApiServer;
use musubi_tests::cluster::Cluster;
use musubi_tests::node::{Node, musubi};
use serde_json::{Value, json};

use crate::memory_of;
use crate::samples::{Samples, row, say, table};
use crate::sides::{Floor, Networks, Pod, Reference, Side, cni_env, exec};
use crate::turns::{self, AT_A_TIME, Make, PODS, Times, by_verb, crowd, for_all, rate};

/// Definitions and pods that the agent knows when its memory is measured.
const KNOWN: (usize, usize) = (1000, 110);
/// Pairs of ADD and DEL after which it is measured again.
const PAIRS: usize = 10_000;

/// How long a node takes to be at rest after a burst: its last Events have been sent by then, 50 a second.
const QUIET: Duration = Duration::from_secs(25);

/// A node of a cluster: its API server, its agent, and pods that select all networks but the default one.
struct Stage {
    cluster: Cluster,
    agent: Agent,
    config: Value,
    uids: Vec<String>,
}

impl Stage {
    fn new(node: &Node, networks: Networks, pods: usize) -> Self {
        let cluster = Cluster::of(ApiServer::start());
        let data_dir = node.folder().join("ours");
        let server = cluster.fake().expect("our own server");
        for number in 1..networks.0 {
            server.create(&definition(&format!("network-{number}"), &Networks::config(number, &data_dir)));
        }
        let selection: Vec<String> = (1..networks.0).map(|number| format!("network-{number}")).collect();
        let uids = (0..pods).map(|number| create_pod(server, number, &selection.join(","))).collect();
        let mut config = node.config(&Networks::config(0, &data_dir));
        config.as_object_mut().expect("an object").remove("manifestDir");
        config["kubeconfig"] = json!(cluster.kubeconfig(node.folder()));
        config["agentSocket"] = json!(agent::socket(node));
        let mut for_agent = agent::config(node, &config);
        for_agent["logLevel"] = "error".into();
        let agent = Agent::start(node, &for_agent);
        let known = format!("musubi_cached_objects{{cache=\"pods\"}} {pods}");
        agent.until("the pods are known", |agent| agent.get("/metrics").body.contains(&known));
        agent.until("ready", |agent| agent.get("/readyz").status == 200);
        Self { cluster, agent, config, uids }
    }

    /// By the agent, or without it.
    fn ours(&self, with_agent: bool) -> Ours {
        let mut config = self.config.clone();
        if !with_agent {
            config["agentSocket"] = "".into();
        }
        Ours { config: config.to_string(), uids: self.uids.clone() }
    }

    fn patch(&self, node: &Node) -> PatchOnly {
        let source = Source::Kubeconfig(self.cluster.kubeconfig(node.folder()));
        PatchOnly { connection: Arc::new(Connection::alone(source).expect("a runtime")), uids: self.uids.clone() }
    }
}

fn definition(name: &str, config: &Value) -> Value {
    json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": "default"}, "spec": {"config": config.to_string()},
    })
}

fn create_pod(server: &ApiServer, number: usize, networks: &str) -> String {
    let created = server.create(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("pod-{number}"), "namespace": "default",
            "annotations": {"k8s.v1.cni.cncf.io/networks": networks},
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}]},
    }));
    created["metadata"]["uid"].as_str().expect("a uid").to_owned()
}

/// `musubi`, called once, as a kubelet has it called.
struct Ours {
    config: String,
    uids: Vec<String>,
}

impl Ours {
    fn call(&self, command: &str, pod: &Pod) {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};K8S_POD_UID={}",
            pod.name(),
            self.uids[pod.number as usize]
        );
        exec(&musubi(), &cni_env(command, pod, "eth0", &args), &self.config);
    }
}

impl Side for Ours {
    fn add(&self, pod: &Pod) {
        self.call("ADD", pod);
    }

    fn del(&self, pod: &Pod) {
        self.call("DEL", pod);
    }
}

/// The one request to the API server that an ADD needs.
struct PatchOnly {
    connection: Arc<Connection>,
    uids: Vec<String>,
}

impl PatchOnly {
    fn send(&self, pod: &Pod) {
        let status = "x".repeat(700);
        let metadata = json!({"uid": self.uids[pod.number as usize], "annotations": {"k8s.v1.cni.cncf.io/network-status": status}});
        let patch = Arc::new(Patch::Merge(json!({"metadata": metadata})));
        let patience =
            Patience { deadline: Instant::now() + Duration::from_secs(5), once: true, cancel: Cancel::default() };
        let name = pod.name();
        let sent = self.connection.call("patch", patience, move |client| {
            let (pods, patch, name) =
                (Api::<KubernetesPod>::namespaced(client, "default"), Arc::clone(&patch), name.clone());
            async move { pods.patch_metadata(&name, &PatchParams::default(), &patch).await }
        });
        sent.expect("a patched pod");
    }
}

/// The netlink messages and the PATCH.
struct WithPatch {
    floor: Floor,
    patch: PatchOnly,
}

impl Side for WithPatch {
    fn add(&self, pod: &Pod) {
        self.floor.add(pod);
        self.patch.send(pod);
    }

    fn del(&self, pod: &Pod) {
        self.floor.del(pod);
    }
}

/// ADD and DEL of one pod.
pub fn attach(node: &Node) {
    table(
        "ADD and DEL of one pod with an API server",
        &[
            "networks",
            "what",
            "floor",
            "with agent",
            "without agent",
            "reference plugins",
            "agent / floor",
            "budget",
            "reference / agent",
        ],
    );
    for count in [1, 4, 8] {
        attach_to(node, Networks(count));
    }
}

fn attach_to(node: &Node, networks: Networks) {
    let stage = Stage::new(node, networks, 1);
    let (agent, alone) = (stage.ours(true), stage.ours(false));
    let pod = Pod::new(0);
    // Makes the bridges, which the floor takes for granted.
    agent.add(&pod);
    agent.del(&pod);
    let floor = WithPatch { floor: Floor::new(networks, false), patch: stage.patch(node) };
    let reference = Reference::new(node, networks);
    let measured = turns::of_one_pod([&floor, &agent, &alone, &reference], &pod);
    for ((what, [floor, agent, alone, reference]), budget) in by_verb(&measured).into_iter().zip(["≤ 2×", "≤ 1.15×"])
    {
        let ratio = |one: &Samples, other: &Samples| format!("{:.2}×", one.median() / other.median());
        row(&[
            networks.0.to_string(),
            what.to_owned(),
            floor.cell(),
            agent.cell(),
            alone.cell(),
            reference.cell(),
            ratio(agent, floor),
            budget.to_owned(),
            ratio(reference, agent),
        ]);
    }
    assert!(stage.agent.get("/history").body.contains("\"ADD\""), "the agent did the work");
}

/// Many pods at once.
pub fn burst(node: &Node) {
    let networks = Networks(4);
    let stage = Stage::new(node, networks, PODS as usize);
    let (ours, pod) = (stage.ours(true), Pod::new(0));
    ours.add(&pod);
    ours.del(&pod);
    drop(Reference::new(node, networks));
    let sides: [Make<'_>; 4] = [
        &|| Box::new(WithPatch { floor: Floor::new(networks, false), patch: stage.patch(node) }),
        &|| Box::new(stage.ours(true)),
        &|| Box::new(stage.ours(false)),
        &|| Box::new(Reference::new(node, networks)),
    ];
    let measured = turns::of_bursts(node, sides);
    table(
        &format!("Burst with an API server: {PODS} pods × {} networks, {AT_A_TIME} at a time", networks.0),
        &["side", "ADD/s", "DEL/s", "budget", "ADD of all, ms", "DEL of all, ms"],
    );
    let names = ["floor", "musubi with agent", "musubi without agent", "reference plugins"];
    for ((name, Times { add, del }), budget) in names.iter().zip(&measured).zip(["", "≥ 250, ≥ 200", "", ""]) {
        row(&[*name, &rate(add), &rate(del), budget, &add.cell(), &del.cell()]);
    }
}

/// What the agent takes: when it knows a cluster, and after many operations.
pub fn memory(node: &Node) {
    let networks = Networks(4);
    let stage = Stage::new(node, networks, KNOWN.1);
    let server = stage.cluster.fake().expect("our own server");
    for number in stage.cluster_definitions()..KNOWN.0 {
        let config = Networks::config(number as u32 % 200, node.folder());
        server.create(&definition(&format!("other-{number}"), &config));
    }
    let known = format!("musubi_cached_objects{{cache=\"definitions\"}} {}", KNOWN.0);
    stage.agent.until("the definitions are known", |agent| agent.get("/metrics").body.contains(&known));
    table(
        &format!("The agent's memory with {} definitions and {} pods, MiB", KNOWN.0, KNOWN.1),
        &["after", "resident", "anonymous", "of files", "budget"],
    );
    let show = |after: &str| {
        let of = |what| format!("{:.1}", memory_of(stage.agent.pid(), what));
        row(&[after, &of("VmRSS"), &of("RssAnon"), &of("RssFile"), "≤ 12 resident, ≤ 5 anonymous"]);
    };
    show("start");
    let mut pods = crowd();
    let make = || -> Box<dyn Side> { Box::new(stage.ours(true)) };
    let mut done = 0;
    for until in [PAIRS / 10, PAIRS / 2, PAIRS] {
        while done < until {
            pods = for_all(node, pods, &make, |side, pod| side.add(pod)).1;
            pods = for_all(node, pods, &make, |side, pod| side.del(pod)).1;
            done += pods.len();
        }
        show(&format!("{done} pairs of ADD and DEL"));
        std::thread::sleep(QUIET);
        show("… and a rest");
    }
    say("");
}

impl Stage {
    fn cluster_definitions(&self) -> usize {
        self.cluster.fake().expect("our own server").list("network-attachment-definitions").len()
    }
}

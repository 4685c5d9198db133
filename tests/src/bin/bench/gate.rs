//! The admission server's part of the benchmark: decisions a second on one core, how long one takes, and memory, with a
//! large cluster known. Asked over TLS on kept connections, as API servers ask.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use musubi_tests::api_server::ApiServer;
use musubi_tests::gate::{self, Gate};
use musubi_tests::node::Node;
use serde_json::{Value, json};

use crate::memory_of;
use crate::samples::{row, table, time};

/// What the server knows.
const DEFINITIONS: u32 = 1000;
const PODS: u32 = 5000;
/// How long each kind of review is asked.
const ASKED: Duration = Duration::from_secs(4);
/// Connections while decisions are counted.
const AT_ONCE: usize = 8;

/// Decisions of several kinds, and memory before and after.
pub fn admission(_: &Node) {
    let server = ApiServer::start();
    gate::install(&server);
    for number in 0..DEFINITIONS {
        server.create(&definition(number));
    }
    for number in 0..PODS {
        server.create(&running(number));
    }
    let gate = Gate::start(&server, &["--log-level=verbose"]);
    pin(gate.pid(), "0");
    let memory = |what| memory_of(gate.pid(), what);
    // Memory that the lists have used is given back a moment after.
    std::thread::sleep(Duration::from_secs(1));
    let at_start = memory("VmRSS");
    table(
        &format!("Admission with {DEFINITIONS} definitions and {PODS} pods known, on one core, over TLS"),
        &["review", "decisions/s", "CPU a decision, µs", "one at a time, ms: median", "p99", "budget"],
    );
    let kinds = [
        ("pod of 3 networks, allowed", "/validate", pod("net-1,net-2,net-3", "")),
        ("pod that asks for an address, allowed", "/validate", pod("", "10.1.255.9/16")),
        ("pod of a missing network, refused", "/validate", pod("net-1,nowhere", "")),
        ("pod of 3 networks, given 2 devices", "/mutate", pod("net-7,net-7,net-1", "")),
        (
            "definition, new",
            "/validate",
            review("network-attachment-definitions", "k8s.cni.cncf.io", &definition(DEFINITIONS)),
        ),
    ];
    for (name, path, review) in kinds {
        let asked =
            Asked::ask(&gate, &gate::believed(&server), path, review.to_string().as_bytes(), !name.contains("refused"));
        row(&[
            name.to_owned(),
            format!("{:.0}", asked.rate),
            format!("{:.0}", asked.cpu.as_secs_f64() * 1e6),
            format!("{:.3}", asked.quantile(0.5)),
            format!("{:.3}", asked.quantile(0.99)),
            "≥ 5,000/s, p99 ≤ 2 ms".to_owned(),
        ]);
    }
    table("The admission server's memory, MiB", &["after", "resident", "anonymous", "of files", "budget"]);
    let cell = |value: f64| format!("{value:.1}");
    row(&["start", &cell(at_start), "", "", "≤ 30 resident"]);
    let now = ["VmRSS", "RssAnon", "RssFile"].map(|what| cell(memory(what)));
    row(&["the decisions above", &now[0], &now[1], &now[2], "≤ 30 resident"]);
}

/// What was measured of one kind of review.
struct Asked {
    rate: f64,
    cpu: Duration,
    /// One at a time, in order.
    latencies: Vec<Duration>,
}

impl Asked {
    fn ask(gate: &Gate, authority: &str, path: &str, review: &[u8], is_allowed: bool) -> Self {
        let mut client = gate.connect(authority);
        let first = client.post(path, review).expect("an answer").response();
        assert_eq!(first["allowed"], is_allowed, "{first}");
        let mut one = || time(|| assert_eq!(client.post(path, review).expect("an answer").status, 200)).0;
        for _ in 0..200 {
            let _ = one();
        }
        let until = Instant::now() + ASKED / 2;
        let mut latencies = Vec::new();
        while Instant::now() < until {
            latencies.push(one());
        }
        latencies.sort_unstable();

        let done = AtomicBool::new(false);
        let (cpu_before, began) = (cpu(gate.pid()), Instant::now());
        let decisions: u32 = std::thread::scope(|scope| {
            let ask = || {
                let mut client = gate.connect(authority);
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    client.post(path, review).expect("an answer");
                    count += 1;
                }
                count
            };
            let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(ask)).collect();
            std::thread::sleep(ASKED);
            done.store(true, Ordering::Relaxed);
            threads.into_iter().map(|thread| thread.join().expect("a count")).sum()
        });
        let rate = f64::from(decisions) / began.elapsed().as_secs_f64();
        Self { rate, cpu: (cpu(gate.pid()) - cpu_before) / decisions.max(1), latencies }
    }

    /// In milliseconds.
    fn quantile(&self, share: f64) -> f64 {
        let index = (self.latencies.len() as f64 * share) as usize;
        self.latencies[index.min(self.latencies.len() - 1)].as_secs_f64() * 1000.0
    }
}

/// Keeps a process on one core.
fn pin(pid: u32, core: &str) {
    let pinned = Command::new("taskset").args(["-a", "-p", "-c", core, &pid.to_string()]).output();
    assert!(pinned.expect("taskset").status.success(), "a core of its own");
}

/// The time that a process has had of the processor.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("its state").split_whitespace().collect();
    // utime and stime, fields 14 and 15 of proc(5), in hundredths of a second.
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 10)
}

/// One of four kinds, each with a subnet of its own; every seventh has devices.
fn definition(number: u32) -> Value {
    let (high, low) = (number / 250, number % 250);
    let ipam =
        json!({"type": "host-local", "subnet": format!("10.{}.0.0/16", low + 1), "dataDir": format!("/run/n{high}")});
    let config = match number % 4 {
        0 => json!({"cniVersion": "1.0.0", "type": "macvlan", "master": "eth1", "mode": "bridge", "ipam": ipam}),
        1 => json!({"cniVersion": "1.0.0", "type": "vlan", "master": "eth1", "vlanId": number + 1, "ipam": ipam}),
        2 => json!({"cniVersion": "1.0.0", "type": "vxlan", "master": "eth1", "vni": number + 1, "ipam": ipam}),
        _ => json!({"cniVersion": "1.0.0", "plugins": [
            {"type": "bridge", "bridge": format!("br{number}"), "capabilities": {"ips": true, "mac": true}, "ipam": ipam},
            {"type": "tuning"},
        ]}),
    };
    let resource =
        if number.is_multiple_of(7) { json!({"k8s.v1.cni.cncf.io/resourceName": "intel.com/vf"}) } else { json!({}) };
    json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": format!("net-{number}"), "namespace": "default", "annotations": resource},
        "spec": {"config": config.to_string()},
    })
}

fn running(number: u32) -> Value {
    let entry = |position: u32| {
        let network = (number * 3 + position) % DEFINITIONS;
        let ip = format!("10.{}.{}.{}", network % 250 + 1, number / 250, number % 250);
        json!({"name": format!("default/net-{network}"), "interface": format!("net{position}"), "ips": [ip],
            "mac": "02:00:00:00:00:01", "dns": {}})
    };
    let status = json!([{"name": "cbr0", "interface": "eth0", "ips": ["10.244.0.9"], "default": true, "dns": {}},
        entry(1), entry(2), entry(3)]);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{number}"), "namespace": "default",
            "annotations": {"k8s.v1.cni.cncf.io/network-status": status.to_string()}},
        "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}]},
        "status": {"phase": "Running"},
    })
}

/// A review of a new pod, as long as a real one's. Without networks it asks for an address on `net-3`.
fn pod(networks: &str, address: &str) -> Value {
    let annotation = match networks {
        "" => json!([{"name": "net-3", "ips": [address.replace("10.1.", "10.4.")]}]).to_string(),
        networks => networks.to_owned(),
    };
    let mut object = running(PODS);
    object["metadata"]["name"] = "new".into();
    object["metadata"]["annotations"] = json!({"k8s.v1.cni.cncf.io/networks": annotation});
    object["metadata"]["managedFields"] = json!([{"manager": "kubectl-create", "fieldsV1": "x".repeat(1000)}]);
    object["spec"]["tolerations"] = json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]);
    review("pods", "", &object)
}

fn review(resource: &str, group: &str, object: &Value) -> Value {
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "9e302172-6976-4ff3-83a3-dfdc9ab0bbce", "resource": {"group": group, "version": "v1", "resource": resource},
            "kind": {"group": group, "version": "v1", "kind": object["kind"]}, "name": object["metadata"]["name"],
            "namespace": "default", "operation": "CREATE", "object": object, "oldObject": null, "dryRun": false,
        },
    })
}

//! Called by a real runtime: containerd runs pods as the kubelet asks it to, and each has what it selects, its status says
//! so, and nothing is left of it, whatever happens to the runtime or to the machine meanwhile. Who writes the runtime's
//! configuration and where pods are published is said in one place each: [`configuration`], [`Cluster`].

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use musubi_delegates::netlink::Link;
use musubi_delegates::netns::Namespace;
use musubi_tests::containerd::Containerd;
use musubi_tests::containerd::cluster::{Cluster, Manifests};
use musubi_tests::containerd::cri::Pod;
use musubi_tests::containerd::cri::api::{PodSandbox, PodSandboxState};
use musubi_tests::node::musubi;
use musubi_tests::recorded;
use serde_json::{Value, json};

use crate::scene::{PASS_ON, RECORD, Scene, crowd, masqueraded, until};

/// A scene with a runtime, which has taken up our configuration.
struct Stage {
    runtime: Containerd,
    cluster: Box<dyn Cluster>,
    scene: Scene,
}

/// What the runtime is given for a network. Old runtimes do not know the second key and take the first, new ones take the
/// highest version they know.
fn configuration(ours: &Value) -> Value {
    let mut plugin = ours.clone();
    plugin.as_object_mut().unwrap().retain(|key, _| key != "cniVersion" && key != "name");
    plugin["capabilities"] =
        json!({"portMappings": true, "bandwidth": true, "io.kubernetes.cri.pod-annotations": true});
    json!({
        "cniVersion": "0.4.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": ours["name"], "plugins": [plugin],
    })
}

impl Stage {
    fn new() -> Self {
        Self::of(Scene::new())
    }

    fn of(scene: Scene) -> Self {
        let runtime = Containerd::start(&scene.node);
        // containerd 1.6 reads the folder again when a file in it is written or renamed, not when one is moved into it.
        let (new, file) = (runtime.conf_dir().join(".new"), runtime.conf_dir().join("00-musubi.conflist"));
        fs::write(&new, configuration(&scene.config).to_string()).unwrap();
        fs::rename(new, file).unwrap();
        runtime.wait_until_the_network_is_ready();
        Self { runtime, cluster: Box::new(Manifests), scene }
    }

    /// Defines a bridge of its own for each name; network number n has the subnet 10.<100 + n>.0.0/24.
    fn bridges(&self, names: &[&str]) {
        for (number, name) in names.iter().enumerate() {
            let bridge = self.scene.node.bridge(&format!("br-{name}"), name, &format!("10.{}.0.0/24", 100 + number));
            self.cluster.define(&self.scene.node, name, &masqueraded(bridge));
        }
    }

    /// Publishes a pod and runs its sandbox.
    fn run(&self, pod: &Pod) -> String {
        self.cluster.create(&self.scene.node, pod);
        self.run_again(pod)
    }

    fn run_again(&self, pod: &Pod) -> String {
        self.runtime.cri.run(pod).unwrap_or_else(|e| panic!("{}: {}", pod.name, e.message()))
    }

    /// What the kubelet does with a sandbox that is not wanted any more.
    fn remove(&self, id: &str) {
        self.runtime.cri.stop(id).unwrap_or_else(|e| panic!("stop {id}: {}", e.message()));
        self.runtime.cri.remove(id).unwrap_or_else(|e| panic!("remove {id}: {}", e.message()));
    }

    fn list(&self) -> Vec<PodSandbox> {
        self.runtime.cri.list().unwrap()
    }

    /// The addresses that the runtime knows of.
    fn ips(&self, id: &str) -> Vec<String> {
        let network = self.runtime.cri.status(id).unwrap().status.unwrap().network.unwrap();
        [network.ip].into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect()
    }

    fn status(&self, pod: &Pod) -> Value {
        self.cluster.network_status(&self.scene.node, pod).unwrap_or_else(|| panic!("{} has no status", pod.name))
    }

    /// The pod's status names these networks, in this order, and says of each interface what the namespace says of it;
    /// the runtime got the first one's address.
    fn assert_attached(&self, pod: &Pod, id: &str, networks: &[&str]) {
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
    fn assert_nothing_is_left(&self, case: &str) {
        assert!(self.list().is_empty(), "{case}: {:?}", self.list());
        self.scene.nothing_is_left(&[], &[], case);
        assert_eq!(self.runtime.leftovers(), Vec::<PathBuf>::new(), "{case}");
    }
}

/// What a pod's namespace holds besides `lo`: MAC and addresses by interface, but for those the kernel itself gives.
fn interfaces(netns: &Namespace) -> BTreeMap<String, Value> {
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
fn default_routes(netns: &Namespace) -> Vec<(String, String)> {
    let routes = netns.netlink.routes().unwrap().into_iter().filter(|route| route.is_default());
    let interface = |index| netns.netlink.link_by_index(index).unwrap().unwrap().name;
    routes.map(|route| (route.gateway.unwrap().to_string(), interface(route.interface))).collect()
}

#[test]
fn pods_have_as_many_networks_as_they_select() {
    const NAMES: [&str; 8] = ["n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8"];
    let stage = Stage::new();
    stage.bridges(&NAMES);
    let pods = [0, 1, 3, 8].map(|count| (count, Pod::selecting(&format!("pod-{count}"), &NAMES[..count].join(","))));
    let ids = pods.each_ref().map(|(_, pod)| stage.run(pod));
    for ((count, pod), id) in pods.iter().zip(&ids) {
        stage.assert_attached(pod, id, &NAMES[..*count]);
        let names: Vec<String> = interfaces(&stage.runtime.netns(id)).into_keys().collect();
        let wanted: Vec<String> =
            ["eth0".to_owned()].into_iter().chain((1..=*count).map(|n| format!("net{n}"))).collect();
        assert_eq!(names, wanted);
    }
    assert!(stage.list().iter().all(|sandbox| sandbox.state() == PodSandboxState::SandboxReady));
    ids.iter().for_each(|id| stage.remove(id));
    stage.assert_nothing_is_left("networks");
}

#[test]
fn pods_have_the_addresses_and_macs_they_ask_for() {
    let stage = Stage::new();
    let asked = json!({
        "cniVersion": "1.0.0", "name": "asked", "type": "bridge", "bridge": "br-asked",
        "capabilities": {"ips": true, "mac": true}, "ipam": {"type": "static"},
    });
    stage.cluster.define(&stage.scene.node, "asked", &asked);
    let annotation = json!([
        {"name": "asked", "interface": "data0", "ips": ["10.70.0.7/24", "fd70::7/64"], "mac": "02:00:00:00:70:07"},
    ]);
    let pod = Pod::selecting("web", &annotation.to_string());
    let id = stage.run(&pod);
    stage.assert_attached(&pod, &id, &["asked"]);
    let data0 = &interfaces(&stage.runtime.netns(&id))["data0"];
    assert_eq!(*data0, json!({"mac": "02:00:00:00:70:07", "ips": ["10.70.0.7", "fd70::7"]}));
    stage.remove(&id);
    stage.assert_nothing_is_left("addresses");
}

#[test]
fn the_default_route_is_where_the_pod_wants_it() {
    let stage = Stage::new();
    let mut uplink = stage.scene.node.bridge("br-uplink", "uplink", "10.70.0.0/24");
    uplink["isDefaultGateway"] = false.into();
    uplink["isGateway"] = true.into();
    stage.cluster.define(&stage.scene.node, "uplink", &uplink);
    let plain = Pod::selecting("plain", "uplink");
    let routed = Pod::selecting("routed", r#"[{"name": "uplink", "default-route": ["10.70.0.1"]}]"#);
    for (pod, gateway, interface) in [(plain, "10.1.0.1", "eth0"), (routed, "10.70.0.1", "net1")] {
        let id = stage.run(&pod);
        stage.assert_attached(&pod, &id, &["uplink"]);
        assert_eq!(default_routes(&stage.runtime.netns(&id)), [(gateway.to_owned(), interface.to_owned())]);
        stage.remove(&id);
    }
    stage.assert_nothing_is_left("default route");
}

#[test]
fn a_pod_that_cannot_be_attached_does_not_start_and_leaves_nothing() {
    let stage = Stage::new();
    let pod = Pod::selecting("web", "blue,missing");
    stage.cluster.create(&stage.scene.node, &pod);
    let error = stage.runtime.cri.run(&pod).unwrap_err();
    assert!(error.message().contains("default/missing"), "the kubelet's Event names the network: {}", error.message());
    stage.assert_nothing_is_left("missing");
    // The kubelet tries again, and the definition is there by now.
    stage.bridges(&["missing"]);
    let id = stage.run_again(&pod);
    stage.assert_attached(&pod, &id, &["blue", "missing"]);
    stage.remove(&id);
    stage.assert_nothing_is_left("found");
}

/// The runtime writes its keys as Go writes a structure without names (`HostPort`).
#[test]
fn what_the_runtime_knows_of_the_pod_reaches_the_default_network() {
    let mut scene = Scene::new();
    recorded::install(&mut scene.node, env!("CARGO_BIN_EXE_recorder").as_ref(), &["rec"]);
    let mut bridge = scene.node.default_bridge();
    bridge.as_object_mut().unwrap().retain(|key, _| key != "cniVersion" && key != "name");
    let capable = json!({"type": "rec", "capabilities": {"portMappings": true, "bandwidth": true}});
    scene.config["delegates"] =
        json!([{"cniVersion": "1.0.0", "name": "default-network", "plugins": [bridge, capable]}]);
    let stage = Stage::of(scene);
    let mut pod = Pod::selecting("web", "blue")
        .annotated("kubernetes.io/ingress-bandwidth", "10M")
        .annotated("kubernetes.io/egress-bandwidth", "5M");
    pod.host_ports = vec![(8088, 80)];
    let id = stage.run(&pod);

    let calls = recorded::take(&stage.scene.node);
    let [add] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!(
        add.conf()["runtimeConfig"],
        json!({
            "bandwidth": {"IngressRate": 10_000_000, "IngressBurst": 4_294_967_295_u64,
                          "EgressRate": 5_000_000, "EgressBurst": 4_294_967_295_u64},
            "portMappings": [{"HostPort": 8088, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
        })
    );
    for pair in [
        "K8S_POD_NAMESPACE=default",
        "K8S_POD_NAME=web",
        "K8S_POD_UID=uid-of-web",
        &format!("K8S_POD_INFRA_CONTAINER_ID={id}"),
    ] {
        assert!(add.var("CNI_ARGS").split(';').any(|have| have == pair), "no {pair} in {}", add.var("CNI_ARGS"));
    }
    stage.remove(&id);
    let sent: Vec<(String, Value)> = recorded::take(&stage.scene.node)
        .iter()
        .map(|call| (call.command.clone(), call.conf()["runtimeConfig"].clone()))
        .collect();
    let del = ("DEL".to_owned(), add.conf()["runtimeConfig"].clone());
    assert_eq!(sent, [del.clone(), del], "on stop and, the record gone, once more on removal");
    stage.assert_nothing_is_left("default network");
}

/// What this runtime does is written down in `docs/decisions/`; should it change, that page has to.
#[test]
fn the_runtime_speaks_a_version_it_was_offered_and_ends_a_pod_twice() {
    let stage = Stage::new();
    let note = r#"conf=$(cat)
version=${conf#*'"cniVersion":"'}
annotations=no
case $conf in *'"io.kubernetes.cri.pod-annotations":{"k8s.v1.cni.cncf.io/networks":"blue"'*) annotations=yes;; esac
echo "$CNI_COMMAND ${version%%'"'*} annotations:$annotations" >> $D/calls"#;
    // Everything goes on to our program, which the runtime calls by this name.
    stage.scene.plugin("musubi", &format!("{note}\nprintf %s \"$conf\" | exec {}", musubi().display()));
    let pod = Pod::selecting("web", "blue");
    let id = stage.run(&pod);
    stage.remove(&id);
    let expected = ["ADD 0.4.0 annotations:yes", "DEL 0.4.0 annotations:yes", "DEL 0.4.0 annotations:yes"];
    assert_eq!(stage.scene.calls(), expected);
    stage.assert_nothing_is_left("version");
}

/// Calls our program as a runtime of another kind or age would, on the same node.
fn call(stage: &Stage, command: &str, version: &str, id: Option<&str>, more: Value) -> (bool, String) {
    let list = configuration(&stage.scene.config);
    let mut conf = list["plugins"][0].clone();
    conf["cniVersion"] = version.into();
    conf["name"] = list["name"].clone();
    conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let bin = stage.scene.node.folder().join("bin");
    let mut call = Command::new(bin.join("musubi"));
    call.env("CNI_COMMAND", command).env("CNI_PATH", bin);
    if let Some(id) = id {
        call.env("CNI_CONTAINERID", id).env("CNI_NETNS", stage.runtime.netns_path(id)).env("CNI_IFNAME", "eth0");
    }
    call.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = stage.runtime.spawn(call);
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn commands_that_this_runtime_never_sends_work_on_its_pods() {
    let stage = Stage::new();
    let pods = ["one", "two"].map(|name| Pod::selecting(name, "blue"));
    let [one, two] = pods.each_ref().map(|pod| stage.run(pod));
    let done = (true, String::new());
    assert_eq!(call(&stage, "STATUS", "1.1.0", None, json!({})), done);

    let check = |id: &str| {
        let note = stage.runtime.note("musubi-network", id);
        call(&stage, "CHECK", "0.4.0", Some(id), json!({"prevResult": note["result"]}))
    };
    assert_eq!([check(&one), check(&two)], [done.clone(), done.clone()]);

    let keep = |ids: &[&String]| {
        let valid: Vec<Value> = ids.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
        call(&stage, "GC", "1.1.0", None, json!({"cni.dev/valid-attachments": valid}))
    };
    assert_eq!(keep(&[&one, &two]), done);
    assert_eq!([check(&one), check(&two)], [done.clone(), done.clone()], "both are wanted");
    assert_eq!(keep(&[&one]), done);
    assert_eq!(stage.scene.reserved(), ["blue/10.2.0.2", "default-network/10.1.0.2"], "the other's are free again");
    stage.assert_attached(&pods[0], &one, &["blue"]);
    [one, two].iter().for_each(|id| stage.remove(id));
    stage.assert_nothing_is_left("GC");
}

#[test]
fn a_runtime_killed_during_add_leaves_nothing_once_the_sandbox_is_removed() {
    #[derive(Debug, PartialEq)]
    enum Ends {
        WhileTheRuntimeIsAway,
        WhenTheRuntimeIsBack,
        WhenTheSandboxIsStopped,
    }
    for ends in [Ends::WhileTheRuntimeIsAway, Ends::WhenTheRuntimeIsBack, Ends::WhenTheSandboxIsStopped] {
        let case = format!("the plugin ends {ends:?}");
        let mut stage = Stage::new();
        let other = Pod::selecting("other", "green");
        let others = stage.run(&other);
        stage.scene.chain("slow", "10.9.0.0/24", &["slow"]);
        let wait = "[ $CNI_COMMAND != ADD ] || until [ -e $D/go ]; do sleep 0.02; done";
        stage.scene.plugin("slow", &format!("{RECORD}\n{wait}\n{PASS_ON}"));
        let end_plugin = |stage: &Stage| fs::write(stage.scene.node.folder().join("go"), "").unwrap();
        let is_attached = |stage: &Stage| {
            let records = stage.scene.records();
            records.len() == 2
                && records.iter().all(|file| fs::read_to_string(file).is_ok_and(|text| text.contains("\"attached\"")))
        };
        let mut pod = Pod::selecting("web", "blue,slow");
        stage.cluster.create(&stage.scene.node, &pod);

        std::thread::scope(|scope| {
            let running = scope.spawn(|| stage.runtime.cri.run(&pod));
            until("the slow plugin runs", || stage.scene.calls().iter().any(|call| call.starts_with("ADD slow")));
            stage.runtime.kill();
            running.join().unwrap().unwrap_err();
        });
        if ends == Ends::WhileTheRuntimeIsAway {
            end_plugin(&stage);
            until(&case, || is_attached(&stage));
        }
        stage.runtime.restart();
        if ends == Ends::WhenTheRuntimeIsBack {
            end_plugin(&stage);
            until(&case, || is_attached(&stage));
        }
        let unfinished: Vec<PodSandbox> = stage.list().into_iter().filter(|sandbox| sandbox.id != others).collect();
        let [unfinished] = &unfinished[..] else { panic!("{case}: {unfinished:?}") };
        assert_eq!(unfinished.state(), PodSandboxState::SandboxNotready, "{case}");
        std::thread::scope(|scope| {
            let removing = scope.spawn(|| stage.remove(&unfinished.id));
            if ends == Ends::WhenTheSandboxIsStopped {
                std::thread::sleep(Duration::from_millis(300));
                assert!(!removing.is_finished(), "{case}: DEL waits for the ADD that still runs");
                end_plugin(&stage);
            }
            removing.join().unwrap();
        });
        assert_eq!(stage.scene.reserved(), ["default-network/10.1.0.2", "green/10.3.0.2"], "{case}: the other pod's");

        pod.attempt += 1;
        let id = stage.run_again(&pod);
        stage.assert_attached(&pod, &id, &["blue", "slow"]);
        stage.assert_attached(&other, &others, &["green"]);
        [id, others].iter().for_each(|id| stage.remove(id));
        stage.assert_nothing_is_left(&case);
    }
}

/// At whatever point it was with each pod. What a killed runtime leaves behind itself (a namespace, control groups) is its
/// own affair.
#[test]
fn a_runtime_killed_in_a_crowd_leaves_nothing_of_ours_once_its_sandboxes_are_removed() {
    let mut stage = Stage::new();
    for round in 1..=3 {
        std::thread::scope(|scope| {
            let stage = &stage;
            scope.spawn(move || {
                crowd(16, 8, |number| {
                    let pod = Pod::selecting(&format!("pod-{round}-{number}"), "blue,green");
                    stage.cluster.create(&stage.scene.node, &pod);
                    // From some moment on nobody answers.
                    if let Ok(id) = stage.runtime.cri.run(&pod) {
                        let _ = stage.runtime.cri.stop(&id).and_then(|()| stage.runtime.cri.remove(&id));
                    }
                });
            });
            until("some pods are attached", || stage.scene.records().len() > round);
            stage.runtime.kill();
        });
        stage.runtime.restart();
        let known = stage.list();
        assert!(!known.is_empty(), "round {round}: the runtime was killed too late");
        known.iter().for_each(|sandbox| stage.remove(&sandbox.id));
        stage.scene.nothing_is_left(&[], &[], &format!("round {round}"));
    }
    let pod = Pod::selecting("last", "blue,green");
    let id = stage.run(&pod);
    stage.assert_attached(&pod, &id, &["blue", "green"]);
}

#[test]
fn after_a_boot_the_next_pods_get_the_addresses_of_those_before() {
    let mut stage = Stage::new();
    // The pool of blue has room for two pods.
    let mut blue = masqueraded(stage.scene.node.bridge("br-blue", "blue", "10.2.0.0/24"));
    blue["ipam"]["rangeStart"] = "10.2.0.2".into();
    blue["ipam"]["rangeEnd"] = "10.2.0.3".into();
    stage.cluster.define(&stage.scene.node, "blue", &blue);
    let mut pods = ["one", "two"].map(|name| Pod::selecting(name, "blue,green"));
    let before = pods.each_ref().map(|pod| stage.run(pod));
    let full = Pod::selecting("three", "blue");
    stage.cluster.create(&stage.scene.node, &full);
    let error = stage.runtime.cri.run(&full).unwrap_err();
    assert!(error.message().contains("blue"), "{}", error.message());

    stage.runtime = stage.runtime.reboot(&mut stage.scene.node);
    assert_eq!(stage.scene.reserved().len(), 6, "what is on disk is kept: {:?}", stage.scene.reserved());
    assert_eq!(stage.scene.node.links(), ["lo"]);
    let known: Vec<PodSandboxState> = stage.list().iter().map(PodSandbox::state).collect();
    assert_eq!(known, [PodSandboxState::SandboxNotready; 2]);
    // The kubelet starts a pod's next sandbox before it removes the last one.
    let after = pods.each_mut().map(|pod| {
        pod.attempt += 1;
        stage.run_again(pod)
    });
    let addresses = |network: &str| {
        let reserved = stage.scene.reserved().into_iter();
        reserved.filter(|name| name.starts_with(network)).collect::<Vec<_>>()
    };
    assert_eq!(addresses("blue/"), ["blue/10.2.0.2", "blue/10.2.0.3"]);
    assert_eq!(stage.scene.reserved().len(), 6, "{:?}", stage.scene.reserved());
    before.iter().for_each(|id| stage.remove(id));
    for (pod, id) in pods.iter().zip(&after) {
        stage.assert_attached(pod, id, &["blue", "green"]);
    }
    after.iter().for_each(|id| stage.remove(id));
    stage.assert_nothing_is_left("boot");
}

#[test]
fn two_hundred_pods_come_and_go_sixteen_at_a_time() {
    let stage = Stage::new();
    crowd(200, 16, |number| {
        let pod = Pod::selecting(&format!("pod-{number}"), "blue,green");
        let id = stage.run(&pod);
        stage.assert_attached(&pod, &id, &["blue", "green"]);
        stage.remove(&id);
        stage.cluster.delete(&stage.scene.node, &pod);
    });
    stage.assert_nothing_is_left("churn");
    assert_eq!(stage.scene.node.links(), ["br-blue", "br-green", "cni0", "lo"]);
}

//! Devices: what the kubelet allocated to a pod reaches its networks' plugins, each device once and in a stable order; what
//! describes them reaches the status and is gone after DEL. The kubelet is a fake, the plugins write down what they are sent.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use musubi::cancel::Cancel;
use musubi::{cri, grpc};
use musubi_delegates::cni::CniError;
use musubi_tests::kubelet::{Get, Kubelet};
use musubi_tests::node::Sandbox;
use musubi_tests::recorded::{self, Call};
use musubi_tests::sandboxes::Sandboxes;
use serde_json::{Value, json};

use crate::scene::{Scene, assert_words, files};

const VF: &str = "intel.com/vf";
const MARKER: &str = "bridge.network.kubevirt.io/br1";

#[test]
fn each_network_gets_a_device_of_its_own_in_the_order_of_the_ids() {
    let lab = Lab::new();
    let kubelet = lab.kubelet();
    lab.network("a", Some(VF), &json!([{"type": "sriov"}]));
    lab.network("b", Some(VF), &json!([{"type": "sriov"}]));
    lab.network("other", Some("mellanox.com/nic"), &json!([{"type": "sriov"}]));
    lab.scene.node.pod("default", "web", "b,other,a");
    kubelet.admit(
        "default/web",
        &[&[(VF, &["0000:03:02.7", "0000:03:02.3"]), ("mellanox.com/nic", &["9"])], &[(VF, &["0000:03:02.3"])]],
    );
    kubelet.admit("other/web", &[&[(VF, &["0000:03:00.1"])]]);
    for (get, calls) in [
        (Get::Served, vec!["Get"]),
        (Get::Served, vec!["Get"]),
        (Get::Disabled, vec!["Get", "List"]),
        (Get::Unknown, vec!["Get", "List"]),
    ] {
        kubelet.serve_get(get);
        let sandbox = lab.scene.sandbox("c1");
        let _ = lab.add(&sandbox).result();
        let sent = recorded::take(&lab.scene.node);
        assert_eq!(device_ids(&sent), ["", "0000:03:02.3", "9", "0000:03:02.7"], "{get:?}");
        assert_eq!(kubelet.take_calls(), calls, "{get:?}: asked once");
        lab.del(&sandbox).succeeded();
        let _ = recorded::take(&lab.scene.node);
        assert_eq!(kubelet.take_calls(), [""; 0], "{get:?}: DEL needs no kubelet");
    }
}

#[test]
fn every_plugin_of_a_chain_gets_the_device_and_later_the_same_bytes() {
    let lab = Lab::new();
    let kubelet = lab.kubelet();
    let chain = json!([
        {"type": "sriov", "DeviceID": "written by hand", "vlan": 5},
        {"type": "tuning", "capabilities": {"deviceID": true}},
        {"type": "rdma"},
    ]);
    lab.network("a", Some(VF), &chain);
    lab.scene.node.pod("default", "web", r#"[{"name": "a", "deviceID": "0000:99:00.0"}]"#);
    kubelet.admit("default/web", &[&[(VF, &["0000:03:02.3"])]]);
    let sandbox = lab.scene.sandbox("c1");
    let added = lab.add(&sandbox);
    let _ = added.result();
    assert!(added.stderr.contains("default/a") && added.stderr.contains("deviceID"), "{}", added.stderr);
    let added: Vec<Call> = recorded::take(&lab.scene.node).into_iter().skip(1).collect();
    let types: Vec<&str> = added.iter().map(|call| call.plugin.as_str()).collect();
    assert_eq!(types, ["sriov", "tuning", "rdma"]);
    for call in &added {
        let conf = call.conf();
        assert_eq!((&conf["deviceID"], &conf["pciBusID"]), (&json!("0000:03:02.3"), &json!("0000:03:02.3")), "{conf}");
        assert_eq!(conf.get("DeviceID"), None, "{conf}");
    }
    assert_eq!(added[0].conf().get("runtimeConfig"), None);
    assert_eq!(added[1].conf()["runtimeConfig"], json!({"deviceID": "0000:03:02.3"}), "not the annotation's");
    let bytes = |calls: &[Call]| calls.iter().map(Call::without_prev_result).collect::<Vec<_>>();
    lab.scene.node.call("CHECK", &sandbox, &lab.config).succeeded();
    assert_eq!(bytes(&recorded::take(&lab.scene.node)[1..]), bytes(&added), "CHECK");
    drop(kubelet);
    lab.del(&sandbox).succeeded();
    let mut deleted = recorded::take(&lab.scene.node);
    deleted.reverse();
    assert_eq!(bytes(&deleted[1..]), bytes(&added), "DEL, without a kubelet");
}

#[test]
fn a_default_network_by_annotation_takes_from_the_same_devices() {
    let lab = Lab::new();
    let kubelet = lab.kubelet();
    lab.network("a", Some(VF), &json!([{"type": "sriov"}]));
    lab.pod(json!({"v1.multus-cni.io/default-network": "default/a", "k8s.v1.cni.cncf.io/networks": "a,a"}));
    kubelet.admit("default/web", &[&[(VF, &["vf9", "vf10", "vf1"])]]);
    let sandbox = lab.scene.sandbox("c1");
    let _ = lab.add(&sandbox).result();
    assert_eq!(device_ids(&recorded::take(&lab.scene.node)), ["vf1", "vf10", "vf9"]);
}

#[test]
fn a_kubelet_that_cannot_say_yet_is_asked_again_by_the_runtime() {
    let lab = Lab::new();
    lab.network("a", Some(VF), &json!([{"type": "sriov"}]));
    lab.scene.node.pod("default", "web", "a");
    let sandbox = lab.scene.sandbox("c1");
    let socket = lab.socket();
    let refused = |case: &str, words: &[&str]| {
        let (code, message) = lab.add(&sandbox).error();
        assert_eq!(code, 11, "{case}: {message}");
        assert_words(&message, &[&["default/a", VF, "kubelet"], words].concat(), case);
        assert_eq!(recorded::take(&lab.scene.node).len(), 0, "{case}: nothing is begun");
        lab.scene.nothing_is_left(&[&sandbox], &[], case);
    };
    refused("no socket", &["kubelet.sock"]);
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    refused("nobody behind the socket", &["kubelet.sock", "refused"]);
    std::fs::remove_file(&socket).unwrap();

    let kubelet = lab.kubelet();
    for get in [Get::Served, Get::Disabled, Get::Unknown] {
        kubelet.serve_get(get);
        refused("the pod is not known", &["default/web", "not known"]);
    }
    kubelet.admit("default/web", &[&[(VF, &["1"])]]);
    kubelet.delay(Duration::from_secs(30));
    let started = Instant::now();
    let hurried = Lab { config: lab.with("timeoutSeconds", json!(1)), ..lab };
    let (code, message) = hurried.add(&sandbox).error();
    assert!(code == 11 && started.elapsed() < Duration::from_secs(10), "{code} {message}");
    assert_words(&message, &[VF, "kubelet", "in time"], "slow");

    kubelet.delay(Duration::from_millis(50));
    kubelet.reject(3);
    let _ = hurried.add(&sandbox).result();
    assert_eq!(device_ids(&recorded::take(&hurried.scene.node)), ["", "1"]);
}

#[test]
fn a_device_that_is_wanted_and_not_there_is_an_error_before_anything_is_done() {
    let lab = Lab::new();
    let kubelet = lab.kubelet();
    kubelet.make_allocatable("free.com/nic");
    let host_device = |keys: Value| {
        let mut conf = json!({"type": "host-device"});
        conf.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        json!([conf])
    };
    lab.network("two", Some(VF), &json!([{"type": "rec"}]));
    lab.network("none", Some("free.com/nic"), &json!([{"type": "rec"}]));
    lab.network("needed", Some(MARKER), &json!([{"type": "rec"}, {"type": "ib-sriov"}]));
    lab.network("bare", None, &json!([{"type": "sriov"}]));
    lab.network("host", None, &host_device(json!({})));
    lab.network("ovs", None, &json!([{"type": "ovs"}]));
    kubelet.admit("default/web", &[&[(VF, &["1"])], &[]]);
    let rows: [(&str, &[&str]); 7] = [
        ("two,two", &["default/two", VF]),
        ("none", &["default/none", "free.com/nic"]),
        (r#"[{"name":"none","deviceID":"7"}]"#, &["default/none", "free.com/nic"]),
        ("needed", &["default/needed", MARKER, "ib-sriov"]),
        ("bare", &["default/bare", "sriov", "device"]),
        ("host", &["default/host", "host-device"]),
        ("ovs", &["default/ovs", "\"ovs\""]),
    ];
    let sandbox = lab.scene.sandbox("c1");
    for (networks, words) in rows {
        lab.scene.node.pod("default", "web", networks);
        let (code, message) = lab.add(&sandbox).error();
        assert_eq!(code, 7, "{networks}: {message}");
        assert_words(&message, words, networks);
        assert_eq!(recorded::take(&lab.scene.node).len(), 0, "{networks}: nothing is begun");
        lab.scene.nothing_is_left(&[&sandbox], &[], networks);
    }

    lab.network("host", None, &host_device(json!({"device": "eno1"})));
    lab.network("ovs", None, &json!([{"type": "ovs", "bridge": "br0"}]));
    lab.network("bare", None, &json!([{"type": "sriov", "deviceID": "0000:03:02.5"}]));
    lab.scene.node.pod("default", "web", "host,ovs,bare");
    let _ = lab.add(&sandbox).result();
    assert_eq!(device_ids(&recorded::take(&lab.scene.node)), ["", "", "", "0000:03:02.5"], "configured by hand");
}

#[test]
fn a_resource_that_is_a_mere_number_asks_for_no_device() {
    let lab = Lab::new();
    let kubelet = lab.kubelet();
    lab.network("a", Some(MARKER), &json!([{"type": "rec", "capabilities": {"deviceID": true}}]));
    kubelet.admit("default/web", &[&[(VF, &["1"])]]);
    lab.scene.node.pod("default", "web", "a");
    let sandbox = lab.scene.sandbox("c1");
    let _ = lab.add(&sandbox).result();
    let calls = recorded::take(&lab.scene.node);
    assert_eq!(device_ids(&calls), ["", ""]);
    assert_eq!(calls[1].conf().get("runtimeConfig"), None);
    assert_eq!(kubelet.take_calls(), ["Get", "GetAllocatableResources"]);
    lab.del(&sandbox).succeeded();

    lab.scene.node.pod("default", "web", r#"[{"name": "a", "deviceID": "7"}]"#);
    let _ = recorded::take(&lab.scene.node);
    let _ = lab.add(&sandbox).result();
    assert_eq!(
        recorded::take(&lab.scene.node)[1].conf()["runtimeConfig"],
        json!({"deviceID": "7"}),
        "the annotation's"
    );
}

#[test]
fn no_kubelet_is_asked_where_no_network_names_a_resource_or_none_is_configured() {
    let lab = Lab::new();
    let kubelet = lab.kubelet();
    lab.network("a", None, &json!([{"type": "rec"}]));
    lab.scene.node.pod("default", "web", "a");
    let sandbox = lab.scene.sandbox("c1");
    let _ = lab.add(&sandbox).result();
    lab.del(&sandbox).succeeded();

    lab.network("a", Some(MARKER), &json!([{"type": "rec"}]));
    let alone = Lab { config: lab.with("podResourcesSocket", json!("")), ..lab };
    let _ = alone.add(&sandbox).result();
    assert_eq!(kubelet.take_calls(), [""; 0]);
    alone.network("a", Some(VF), &json!([{"type": "sriov"}]));
    alone.del(&sandbox).succeeded();
    assert_words(
        &alone.add(&sandbox).error().1,
        &["default/a", VF, "sriov"],
        "nobody allocates, and a plugin needs one",
    );
}

#[test]
fn a_native_delegate_takes_no_notice_of_a_device() {
    let lab = Lab::new();
    let kubelet = lab.kubelet();
    let mut bridge = lab.scene.node.bridge("br-a", "a", "10.9.0.0/24");
    bridge.as_object_mut().unwrap().remove("cniVersion");
    lab.network("a", Some("rdma/shared"), &json!([bridge]));
    lab.scene.node.pod("default", "web", "a");
    kubelet.admit("default/web", &[&[("rdma/shared", &["1"])]]);
    let sandbox = lab.scene.sandbox("c1");
    let added = lab.add(&sandbox);
    let _ = added.result();
    assert!(!added.stderr.contains("deviceID"), "{}", added.stderr);
    let config = lab.scene.record()["attachments"][1]["delegates"][0].clone();
    assert!(config["native"] == true && config["config"].as_str().unwrap().contains(r#""deviceID":"1""#), "{config}");
    lab.scene.node.call("CHECK", &sandbox, &lab.config).succeeded();
    lab.del(&sandbox).succeeded();
    lab.nothing_is_left(&sandbox);
}

#[test]
fn what_describes_a_device_reaches_plugins_and_status_and_is_gone_after_del() {
    let lab = Lab::new();
    let kubelet = lab.kubelet();
    let info = json!({"type": "pci", "version": "1.1.0", "pci": {"pci-address": "0000:03:02.3"}, "vendor": {"x": [1]}});
    lab.describe("intel.com-vf-0000:03:02.3", &info.to_string());
    lab.network(
        "a",
        Some(VF),
        &json!([{"type": "sriov"}, {"type": "rec", "capabilities": {"CNIDeviceInfoFile": true}}]),
    );
    lab.scene.node.pod("default", "web", "a,a");
    kubelet.admit("default/web", &[&[(VF, &["0000:03:02.3", "0000:03:02.4"])]]);
    let [first, second] = [lab.scene.sandbox("c1"), lab.scene.sandbox("c2")];
    let _ = lab.add(&first).result();
    let calls = recorded::take(&lab.scene.node);
    assert_eq!(calls[1].conf().get("runtimeConfig"), None, "sriov asks for no file");
    let mut paths: Vec<String> = [&calls[2], &calls[4]].map(info_path).into();
    assert_eq!(std::fs::read_to_string(&paths[0]).unwrap(), info.to_string());
    assert!(!Path::new(&paths[1]).exists(), "nobody described that device");

    let status = lab.scene.status("default/web").unwrap();
    assert_eq!((&status[0]["device-info"], &status[1]["device-info"]), (&json!(null), &info), "{status}");
    assert_eq!(status[2].get("device-info"), None, "{status}");

    let _ = lab.add(&second).result();
    let calls = recorded::take(&lab.scene.node);
    paths.extend([&calls[2], &calls[4]].map(info_path));
    let distinct: std::collections::BTreeSet<&String> = paths.iter().collect();
    assert_eq!(distinct.len(), 4, "a file for each attachment: {paths:?}");
    lab.scene.node.call("CHECK", &first, &lab.config).succeeded();
    lab.del(&first).succeeded();
    let _ = recorded::take(&lab.scene.node);
    assert_eq!(lab.info_files(), [PathBuf::from(&paths[2])], "the other sandbox's stays");
    std::fs::remove_dir_all(lab.scene.node.manifests()).unwrap();
    lab.del(&second).succeeded();
    lab.nothing_is_left(&second);
}

#[test]
fn plugins_may_describe_a_device_themselves() {
    let lab = Lab::new();
    let script = r#"
        [ $CNI_COMMAND = ADD ] || exit 0
        file=$(sed 's/.*"CNIDeviceInfoFile":"\([^"]*\)".*/\1/')
        echo '{"type":"vhost-user","version":"1.1.0","vhost-user":{"mode":"server","path":"/x"}}' > $file
        echo '{"cniVersion":"1.0.0"}'"#;
    lab.scene.plugin("userspace", script);
    lab.network("a", None, &json!([{"type": "userspace", "capabilities": {"CNIDeviceInfoFile": true}}]));
    lab.scene.node.pod("default", "web", "a");
    let sandbox = lab.scene.sandbox("c1");
    let _ = lab.add(&sandbox).result();
    let status = lab.scene.status("default/web").unwrap();
    assert_eq!(status[1]["device-info"]["vhost-user"], json!({"mode": "server", "path": "/x"}), "{status}");
    lab.del(&sandbox).succeeded();
    lab.nothing_is_left(&sandbox);
}

#[test]
fn a_bad_description_is_a_warning() {
    let lab = Lab::new();
    let kubelet = lab.kubelet();
    lab.network("a", Some(VF), &json!([{"type": "sriov"}]));
    lab.scene.node.pod("default", "web", "a");
    kubelet.admit("default/web", &[&[(VF, &["1"])]]);
    let sandbox = lab.scene.sandbox("c1");
    for text in ["{", r#"{"type":7}"#, &format!("\"{}\"", "x".repeat(1 << 20))] {
        lab.describe("intel.com-vf-1", text);
        let added = lab.add(&sandbox);
        let _ = added.result();
        let line = added.stderr.lines().find(|line| line.contains("intel.com-vf-1-device.json"));
        assert!(line.is_some_and(|line| line.contains("default/a") && line.len() < 400), "{}", added.stderr);
        assert_eq!(lab.scene.status("default/web").unwrap()[1].get("device-info"), None);
        lab.del(&sandbox).succeeded();
        lab.nothing_is_left(&sandbox);
    }
}

#[test]
fn an_add_that_fails_leaves_no_description() {
    let lab = Lab::new();
    let kubelet = lab.kubelet();
    lab.describe("intel.com-vf-1", r#"{"type":"pci"}"#);
    let failing =
        json!({"type": "rec", "recorder": {"error": {"ADD": {"cniVersion": "1.0.0", "code": 999, "msg": "no"}}}});
    lab.network("a", Some(VF), &json!([{"type": "sriov"}, failing]));
    lab.scene.node.pod("default", "web", "a");
    kubelet.admit("default/web", &[&[(VF, &["1"])]]);
    let sandbox = lab.scene.sandbox("c1");
    assert_eq!(lab.add(&sandbox).error().0, 100);
    lab.nothing_is_left(&sandbox);
}

#[test]
fn a_killed_add_leaves_no_description_after_del() {
    let lab = Lab::new();
    let kubelet = lab.kubelet();
    lab.describe("intel.com-vf-1", r#"{"type":"pci"}"#);
    lab.scene.plugin("killer", "[ $CNI_COMMAND != ADD ] || kill -9 $PPID");
    lab.network("a", Some(VF), &json!([{"type": "killer"}]));
    lab.scene.node.pod("default", "web", "a");
    kubelet.admit("default/web", &[&[(VF, &["1"])]]);
    let sandbox = lab.scene.sandbox("c1");
    let killed = lab.add(&sandbox);
    assert!(!killed.ok && killed.stdout.is_empty(), "{killed:?}");
    assert_eq!(lab.info_files().len(), 1, "what the plugins were to read");
    lab.del(&sandbox).succeeded();
    lab.nothing_is_left(&sandbox);
}

#[test]
fn explain_needs_no_kubelet() {
    let lab = Lab::new();
    lab.network("a", Some(VF), &json!([{"type": "sriov"}]));
    lab.network("bare", None, &json!([{"type": "sriov"}]));
    lab.scene.node.pod("default", "web", "a");
    let config = lab.scene.node.folder().join("musubi.conf");
    std::fs::write(&config, lab.config.to_string()).unwrap();
    let explain = || lab.scene.node.cli(&["explain", "web", "--config", config.to_str().unwrap(), "-o", "json"]);
    let explained = explain().result();
    let [warning] = &explained["warnings"].as_array().unwrap()[..] else { panic!("{explained}") };
    assert_words(warning.as_str().unwrap(), &["default/a", VF, "deviceID", "pciBusID"], "explain");
    lab.scene.node.pod("default", "web", "bare");
    assert_words(&explain().error().1, &["default/bare", "sriov"], "explain");
}

#[test]
fn whoever_waits_for_no_answer_any_more_gets_none() {
    let cancel = Cancel::default();
    let cancelled = cancel.clone();
    let caller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        cancelled.set();
    });
    let started = Instant::now();
    let never = std::future::pending::<Result<(), CniError>>();
    let error = grpc::wait(Instant::now() + Duration::from_secs(60), &cancel, never).unwrap_err();
    assert!(error.code == 11 && started.elapsed() < Duration::from_secs(30), "{error}");
    caller.join().unwrap();
}

#[test]
fn a_runtimes_sandboxes_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cri.sock");
    let list = || wait(cri::sandboxes(&socket));
    let error = list().unwrap_err();
    assert!(error.code == 11 && error.msg.contains("cri.sock"), "{error}");
    let runtime = Sandboxes::start(&socket);
    assert_eq!(list().unwrap(), []);
    runtime.are(&[("c1", "default/web", "u1", true), ("c2", "kube-system/dns", "u2", false)]);
    let sandbox = |id: &str, namespace: &str, name: &str, uid: &str, is_ready| cri::Sandbox {
        id: id.into(),
        namespace: namespace.into(),
        name: name.into(),
        uid: uid.into(),
        is_ready,
    };
    assert_eq!(
        list().unwrap(),
        [sandbox("c1", "default", "web", "u1", true), sandbox("c2", "kube-system", "dns", "u2", false)]
    );
    assert_eq!(wait(cri::version(&socket)).unwrap(), "fake 1.0");
    runtime.refuse("store is\nlocked");
    let error = list().unwrap_err();
    assert!(error.code == 11 && error.msg.contains("locked") && !error.msg.contains('\n'), "{error}");
}

fn wait<T>(answer: impl Future<Output = Result<T, CniError>>) -> Result<T, CniError> {
    grpc::wait(Instant::now() + Duration::from_secs(10), &Cancel::default(), answer)
}

/// A node whose default network is a plugin that only writes down its calls, as are all but the native ones.
struct Lab {
    scene: Scene,
    config: Value,
}

impl Lab {
    fn new() -> Self {
        let mut scene = Scene::new();
        let recording = ["rec", "sriov", "ib-sriov", "rdma", "tuning", "ovs", "host-device"];
        recorded::install(&mut scene.node, Path::new(env!("CARGO_BIN_EXE_recorder")), &recording);
        let mut config = scene.node.config(&json!({"cniVersion": "1.0.0", "name": "d", "type": "rec"}));
        config["podResourcesSocket"] = json!(scene.node.folder().join("kubelet.sock"));
        config["deviceInfoDir"] = json!(scene.node.folder().join("devinfo"));
        Self { scene, config }
    }

    fn socket(&self) -> PathBuf {
        self.scene.node.folder().join("kubelet.sock")
    }

    fn kubelet(&self) -> Kubelet {
        Kubelet::start(&self.socket())
    }

    fn with(&self, key: &str, value: Value) -> Value {
        let mut config = self.config.clone();
        config[key] = value;
        config
    }

    /// A definition in the namespace `default` that may name a resource.
    fn network(&self, name: &str, resource: Option<&str>, plugins: &Value) {
        let annotations: Value =
            resource.map_or(json!({}), |resource| json!({"k8s.v1.cni.cncf.io/resourceName": resource}));
        let object = json!({
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {"name": name, "namespace": "default", "annotations": annotations},
            "spec": {"config": json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins}).to_string()},
        });
        self.scene.node.manifest(&format!("nad-default-{name}.json"), &object.to_string());
    }

    fn pod(&self, annotations: Value) {
        let metadata = json!({"name": "web", "namespace": "default", "annotations": annotations});
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata});
        self.scene.node.manifest("pod-default-web.json", &object.to_string());
    }

    /// What a device plugin says of a device.
    fn describe(&self, device: &str, text: &str) {
        let folder = self.scene.node.folder().join("devinfo/dp");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{device}-device.json")), text).unwrap();
    }

    fn info_files(&self) -> Vec<PathBuf> {
        files(self.scene.node.folder().join("devinfo/cni"))
    }

    fn add(&self, sandbox: &Sandbox) -> musubi_tests::node::Output {
        self.scene.node.call("ADD", sandbox, &self.config)
    }

    fn del(&self, sandbox: &Sandbox) -> musubi_tests::node::Output {
        self.scene.node.call("DEL", sandbox, &self.config)
    }

    fn nothing_is_left(&self, sandbox: &Sandbox) {
        self.scene.nothing_is_left(&[sandbox], &[], "devices");
        assert_eq!(self.info_files(), Vec::<PathBuf>::new());
    }
}

/// The device each call names, empty for none.
fn device_ids(calls: &[Call]) -> Vec<String> {
    calls.iter().map(|call| call.conf()["deviceID"].as_str().unwrap_or_default().to_owned()).collect()
}

fn info_path(call: &Call) -> String {
    call.conf()["runtimeConfig"]["CNIDeviceInfoFile"].as_str().expect("a path").to_owned()
}

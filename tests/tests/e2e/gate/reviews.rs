//! Reviews as a real API server sends them, and what is answered.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{Scene, bridge, definition, recorded};

const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";

/// The networks that the recorded pods name.
fn scene(options: &[&str]) -> Scene {
    Scene::with(options, |server| {
        for name in ["br1", "br2"] {
            server.create(&definition("default", name, &bridge(name)));
        }
        let mut sriov =
            definition("default", "sriov", &json!({"cniVersion": "1.0.0", "name": "sriov", "type": "sriov"}));
        sriov["metadata"]["annotations"] = json!({"k8s.v1.cni.cncf.io/resourceName": "intel.com/vf"});
        server.create(&sriov);
    })
}

fn with_networks(mut review: Value, networks: &str) -> Value {
    review["request"]["object"]["metadata"]["annotations"] = json!({NETWORKS: networks});
    review
}

fn allowed(response: &Value) -> bool {
    response["allowed"].as_bool().unwrap()
}

#[test]
fn what_a_real_server_asked_is_answered() {
    let scene = scene(&[]);
    for name in [
        "NetworkAttachmentDefinition-CREATE-sriov-a",
        "NetworkAttachmentDefinition-UPDATE-sriov-a",
        "NetworkAttachmentDefinition-DELETE-sriov-a",
        "Pod-CREATE-dry",
        "Pod-CREATE-web-928xf",
        "Pod-UPDATE-web-928xf",
    ] {
        for path in ["/validate", "/mutate"] {
            let response = scene.ask(path, &recorded(name));
            assert!(allowed(&response), "{name} {path}: {response}");
            assert!(response.get("patch").is_none(), "{name} {path}: no network of these needs anything");
        }
    }
}

#[test]
fn a_pod_is_refused_by_the_text_of_add() {
    let scene = scene(&[]);
    let rows = [
        ("[null]", "annotation k8s.v1.cni.cncf.io/networks: "),
        (
            "br1,nowhere",
            "annotation k8s.v1.cni.cncf.io/networks, element 2: network default/nowhere: there is no such NetworkAttachmentDefinition",
        ),
        (
            "br1@net2,br2",
            "network default/br2: key \"interface\": \"net2\" is already the interface of network default/br1",
        ),
        (
            r#"[{"name":"br1","bandwidth":{"ingressRate":1}}]"#,
            "network default/br1: key \"bandwidth\": no plugin of the network declares the capability",
        ),
        (
            "sriov",
            "network default/sriov: the pod was allocated no device of resource \"intel.com/vf\" that is left for it",
        ),
    ];
    for (networks, text) in rows {
        let response = scene.ask("/validate", &with_networks(recorded("Pod-CREATE-web-928xf"), networks));
        let status = &response["status"];
        assert!(!allowed(&response) && status["message"].as_str().unwrap().starts_with(text), "{networks}: {response}");
        assert_eq!((&status["code"], &status["reason"]), (&json!(403), &json!("Forbidden")));
    }
    assert!(allowed(&scene.ask("/validate", &with_networks(recorded("Pod-CREATE-web-928xf"), "br1@eth1,br2@eth2"))));
}

#[test]
fn only_other_networks_are_looked_at_on_update() {
    let scene = scene(&[]);
    let mut review = with_networks(recorded("Pod-UPDATE-web-928xf"), "nowhere");
    assert!(!allowed(&scene.ask("/validate", &review)));
    review["request"]["oldObject"]["metadata"]["annotations"] = json!({NETWORKS: "nowhere", "a": "b"});
    assert!(allowed(&scene.ask("/validate", &review)), "what was admitted stays, whatever became of the definition");
    review["request"]["subResource"] = "status".into();
    review["request"]["oldObject"]["metadata"]["annotations"] = json!(null);
    assert!(!allowed(&scene.ask("/validate", &review)), "by the status annotations are changed as well");
    review["request"]["operation"] = "DELETE".into();
    assert!(allowed(&scene.ask("/validate", &review)));
}

#[test]
fn a_pod_gets_what_its_networks_need() {
    let scene = scene(&[]);
    let review = with_networks(recorded("Pod-CREATE-web-928xf"), "sriov,sriov,br1");
    let response = scene.ask("/mutate", &review);
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = BASE64_STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: Vec<Value> = serde_json::from_slice(&patch).unwrap();
    let requests =
        patch.iter().find(|operation| operation["path"] == "/spec/containers/0/resources/requests/intel.com~1vf");
    assert_eq!(requests.unwrap()["value"], "2");
    assert!(patch.iter().any(|operation| operation["value"]["name"] == "podnetinfo"));
}

#[test]
fn annotations_are_injected_as_a_file_says_that_changes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    let scene = scene(&["--injections", file.to_str().unwrap()]);
    let mut review = with_networks(recorded("Pod-CREATE-web-928xf"), "sriov");
    review["request"]["object"]["metadata"]["labels"]["rdma"] = "true".into();
    let injected = || {
        let response = scene.ask("/mutate", &review);
        let patch = BASE64_STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
        let patch: Vec<Value> = serde_json::from_slice(&patch).unwrap();
        let found = patch.into_iter().find(|operation| operation["path"] == "/metadata/annotations/example.com~1rdma");
        found.map(|operation| operation["value"].clone())
    };
    assert_eq!(injected(), None, "there is no file");
    for value in ["on", "off"] {
        let annotations = json!({"example.com/rdma": value});
        let injection = json!({"op": "add", "path": "/metadata/annotations", "value": annotations});
        std::fs::write(&file, json!({"user-defined-injections": {"rdma": injection}}).to_string()).unwrap();
        scene.gate.until("the file is read anew", || injected() == Some(value.into()));
    }
    std::fs::write(&file, "{").unwrap();
    scene.gate.until("the file's fault is told", || scene.gate.log().contains("EOF"));
    assert_eq!(injected(), Some("off".into()), "what cannot be read changes nothing");
}

#[test]
fn settings_make_warnings_of_refusals_and_the_other_way_round() {
    let host = |mut review: Value| {
        review["request"]["object"]["spec"]["hostNetwork"] = true.into();
        review
    };
    let pod = || recorded("Pod-CREATE-web-928xf");
    let (missing, of_host) = (with_networks(pod(), "br1,nowhere"), host(with_networks(pod(), "br1")));
    let answers = |scene: &Scene| {
        [&missing, &of_host].map(|review| {
            let response = scene.ask("/validate", review);
            (allowed(&response), response["warnings"][0].as_str().unwrap_or_default().to_owned())
        })
    };
    let [(missing_allowed, _), (host_allowed, host_warning)] = answers(&scene(&[]));
    assert!(!missing_allowed && host_allowed && host_warning.contains("uses the host's network"), "{host_warning}");
    let other = scene(&["--missing-definition=warn", "--host-network=deny"]);
    let [(missing_allowed, missing_warning), (host_allowed, _)] = answers(&other);
    assert!(missing_allowed && !host_allowed && missing_warning.contains("default/nowhere"), "{missing_warning}");
}

#[test]
fn a_definition_is_read_as_add_reads_it() {
    let scene = scene(&[]);
    let review = |config: &str| {
        let mut review = recorded("NetworkAttachmentDefinition-CREATE-sriov-a");
        review["request"]["object"]["spec"]["config"] = config.into();
        review
    };
    let rows = [
        (r#"{"type":"bridge"}"#, None),
        (r#"{"cniVersion":"1.0.0","plugins":[{"type":"bridge","vlan":7},{"type":"tuning"}]}"#, None),
        ("", None),
        ("{", Some("network default/sriov-a: ")),
        ("[]", Some("network default/sriov-a: ")),
        (r#"{"type":"bridge","vlan":4096}"#, Some("network default/sriov-a: vlan: ")),
        (r#"{"plugins":[{"type":"bridge"},{"type":"vxlan"}]}"#, Some("network default/sriov-a: plugins[1].vni: ")),
    ];
    for (config, problem) in rows {
        let response = scene.ask("/validate", &review(config));
        let message = response["status"]["message"].as_str();
        match problem {
            None => assert!(allowed(&response), "{config}: {response}"),
            Some(problem) => assert!(message.is_some_and(|m| m.starts_with(problem)), "{config}: {response}"),
        }
    }
}

#[test]
fn an_address_that_another_pod_has_is_not_given_again() {
    let scene = scene(&[]);
    let holder = |phase: &str| {
        let status = json!([{"name": "default/br1", "interface": "net1", "ips": ["10.21.0.77"]}]).to_string();
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "holder", "namespace": "default", "annotations": {"k8s.v1.cni.cncf.io/network-status": status}},
            "spec": {"containers": [{"name": "c", "image": "x"}]}, "status": {"phase": phase}})
    };
    let review = recorded("Pod-CREATE-web-928xf");
    assert!(review.to_string().contains("10.21.0.77/16"));
    scene.server.create(&holder("Running"));
    scene.gate.until("the pod is known", || !allowed(&scene.ask("/validate", &review)));
    let message = scene.ask("/validate", &review)["status"]["message"].clone();
    assert_eq!(
        message,
        "network default/br1: ips: 10.21.0.77 is in use by pod default/holder; ask for another address, or remove the pod that has it"
    );
    scene.server.replace(&holder("Succeeded"));
    scene.gate.until("it has ended", || allowed(&scene.ask("/validate", &review)));
}

#[test]
fn a_policy_holds_at_admission() {
    let scene = scene(&[]);
    let pod = with_networks(recorded("Pod-CREATE-web-928xf"), "br1");
    let review = recorded("NetworkAttachmentDefinition-CREATE-sriov-a");
    let mut macvlan = review.clone();
    macvlan["request"]["object"]["spec"]["config"] = json!({"type": "macvlan", "master": "ens9"}).to_string().into();
    assert!(allowed(&scene.ask("/validate", &pod)) && allowed(&scene.ask("/validate", &macvlan)));
    let policy = json!({
        "apiVersion": "musubi.dev/v1alpha1", "kind": "AttachmentPolicy", "metadata": {"name": "tenant"},
        "spec": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
            "delegates": [{"type": "macvlan", "masters": ["ens4"]}]},
    });
    scene.server.create(&policy);
    scene.gate.until("the bridge is fenced off", || !allowed(&scene.ask("/validate", &pod)));
    let refusals = [&pod, &macvlan].map(|review| scene.ask("/validate", review)["status"]["message"].to_string());
    for (refusal, word) in refusals.iter().zip(["addresses", "ens9"]) {
        assert!(refusal.contains("tenant") && refusal.contains(word), "{refusal}");
    }
    assert!(scene.server.delete("attachmentpolicies", "", "tenant"));
    scene.gate.until("it is open again", || allowed(&scene.ask("/validate", &pod)));
}

#[test]
fn a_definition_that_is_used_is_not_changed_under_its_pods() {
    let scene = scene(&[]);
    let mut review = recorded("NetworkAttachmentDefinition-UPDATE-sriov-a");
    let config = |subnet: &str| {
        let ipam = json!({"type": "host-local", "subnet": subnet});
        json!({"cniVersion": "1.0.0", "name": "sriov-a", "type": "bridge", "ipam": ipam}).to_string()
    };
    review["request"]["oldObject"]["spec"]["config"] = config("10.7.0.0/16").into();
    review["request"]["object"]["spec"]["config"] = config("10.8.0.0/16").into();
    assert!(allowed(&scene.ask("/validate", &review)), "nobody uses it");
    let status = json!([{"name": "default/sriov-a", "interface": "net1", "ips": ["10.7.0.2"]}]).to_string();
    scene.server.create(&json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "user", "namespace": "default", "annotations": {"k8s.v1.cni.cncf.io/network-status": status}},
        "spec": {"containers": [{"name": "c", "image": "x"}]}, "status": {"phase": "Running"}}));
    scene.gate.until("its user is known", || !allowed(&scene.ask("/validate", &review)));
    let mut deletion = recorded("NetworkAttachmentDefinition-DELETE-sriov-a");
    deletion["request"]["namespace"] = "default".into();
    let response = scene.ask("/validate", &deletion);
    assert!(allowed(&response) && response["warnings"][0].as_str().unwrap().contains("default/user"), "{response}");
    review["request"]["object"]["metadata"]["annotations"]["musubi.dev/force"] = "true".into();
    let response = scene.ask("/validate", &review);
    assert!(allowed(&response) && response["warnings"].is_array(), "{response}");
}

#[test]
fn a_namespace_that_is_a_moment_old_is_asked_for() {
    let scene = scene(&[]);
    scene.server.create(&json!({
        "apiVersion": "musubi.dev/v1alpha1", "kind": "AttachmentPolicy", "metadata": {"name": "tenant"},
        "spec": {"namespaceSelector": {"matchLabels": {"tenant": "blue"}}},
    }));
    let cached = "musubi_webhook_cached_objects{cache=\"policies\"} 1";
    scene.gate.until("the policy is known", || scene.gate.get("/metrics").body.contains(cached));
    scene.server.pause_watches(true);
    for (namespace, tenant, is_allowed) in [("of-blue", "blue", false), ("of-red", "red", true)] {
        let labels = json!({"tenant": tenant});
        scene.server.create(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}),
        );
        let mut review = recorded("NetworkAttachmentDefinition-CREATE-sriov-a");
        review["request"]["namespace"] = namespace.into();
        let config = json!({"cniVersion": "1.0.0", "name": "x", "type": "bridge"}).to_string();
        review["request"]["object"]["spec"]["config"] = config.into();
        assert_eq!(allowed(&scene.ask("/validate", &review)), is_allowed, "{namespace}");
    }
}

#[test]
fn a_definition_that_is_a_moment_old_is_asked_for() {
    let scene = scene(&[]);
    scene.server.pause_watches(true);
    let review = with_networks(recorded("Pod-CREATE-web-928xf"), "new");
    assert!(!allowed(&scene.ask("/validate", &review)));
    scene.server.create(&definition("default", "new", &bridge("new")));
    assert!(allowed(&scene.ask("/validate", &review)), "no watch has told of it");
    assert!(allowed(&scene.ask("/mutate", &review)));
}

#[test]
fn nothing_is_written_while_a_review_is_answered() {
    let scene = scene(&[]);
    let _ = scene.server.take_log();
    for name in ["Pod-CREATE-dry", "Pod-CREATE-web-928xf", "NetworkAttachmentDefinition-CREATE-sriov-a"] {
        for path in ["/validate", "/mutate"] {
            scene.ask(path, &recorded(name));
        }
    }
    let written: Vec<String> =
        scene.server.log().into_iter().filter(|served| served.method != "GET").map(|served| served.path).collect();
    assert_eq!(written, Vec::<String>::new());
}

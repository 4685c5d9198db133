//! A network plugged into a running pod, in the words of the dynamic-networks controller: what it knows, it knows from CRI.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use musubi_tests::agent::Answer;
use musubi_tests::containerd::cri::Pod;
use serde_json::{Value, json};

use super::stage::{Stage, Way, interfaces};
use crate::scene::{PASS_ON, RECORD};

/// What the controller sends: no `CNI_PATH`, and arguments that do not say `IgnoreUnknown`.
fn delegate(stage: &Stage, command: &str, pod: &Pod, id: &str, interface: &str, network: &Value) -> Answer {
    let attributes = match command {
        "ADD" => json!({"ips": ["10.4.0.77/24"], "mac": "02:00:00:00:00:77", "cni-args": null}),
        _ => json!(null),
    };
    let body = json!({
        "env": {
            "CNI_COMMAND": command, "CNI_CONTAINERID": id, "CNI_NETNS": stage.runtime.netns_path(id),
            "CNI_IFNAME": interface,
            "CNI_ARGS": format!("K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}", pod.namespace, pod.name, pod.uid),
        },
        "config": BASE64_STANDARD.encode(network.to_string()),
        "interfaceAttributes": attributes,
    });
    stage.agent().post("/delegate", &body.to_string())
}

#[test]
fn the_pods_own_removal_covers_what_was_plugged_in() {
    let stage = Stage::new(Way::Agent);
    // As Go's plugins, which refuse arguments that they do not know.
    let strict = "case $CNI_ARGS in *IgnoreUnknown=1*) ;; *) exit 1 ;; esac";
    stage.scene.plugin("noting", &format!("{strict}\n{RECORD}\n{PASS_ON}"));
    let mut red = stage.scene.chained("red", "10.4.0.0/24", &["noting"]);
    red["plugins"][0]["capabilities"] = json!({"ips": true, "mac": true});
    let pod = Pod::selecting("web", "blue");
    let id = stage.run(&pod);

    for interface in ["hot1", "hot2"] {
        let plugged = delegate(&stage, "ADD", &pod, &id, interface, &red);
        assert_eq!(plugged.status, 200, "{plugged:?}");
        let there = &interfaces(&stage.runtime.netns(&id))[interface];
        assert_eq!(*there, json!({"mac": "02:00:00:00:00:77", "ips": ["10.4.0.77"]}));
        assert_eq!(plugged.json()["Result"]["ips"][0]["address"], "10.4.0.77/24");
        if interface == "hot1" {
            let pulled = delegate(&stage, "DEL", &pod, &id, interface, &red);
            assert_eq!(pulled.status, 200, "{pulled:?}");
            stage.assert_attached(&pod, &id, &["blue"]);
        }
    }
    let note = stage.runtime.note("musubi-network", &id);
    let check = stage.call("CHECK", "0.4.0", Some(&id), json!({"prevResult": note["result"]}));
    assert_eq!(check, (true, String::new()));
    stage.remove(&id);
    assert_eq!(
        stage.scene.calls(),
        [
            "ADD noting hot1 netns",
            "DEL noting hot1 netns",
            "ADD noting hot2 netns",
            "CHECK noting hot2 netns",
            "DEL noting hot2 netns",
        ]
    );
    stage.assert_nothing_is_left("plugged");
}

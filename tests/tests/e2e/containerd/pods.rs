//! What pods get of a real runtime: the networks they select, as they want them, or a reason why not.

use musubi_tests::containerd::cri::Pod;
use musubi_tests::containerd::cri::api::PodSandboxState;
use musubi_tests::recorded;
use serde_json::{Value, json};

use super::stage::{Stage, WITH_API, Way, default_routes, interfaces};
use crate::scene::Scene;

#[test]
fn pods_have_as_many_networks_as_they_select() {
    const NAMES: [&str; 8] = ["n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8"];
    for way in [Way::Agent, Way::PluginAlone, Way::Manifests] {
        let stage = Stage::new(way);
        stage.bridges(&NAMES);
        let pods =
            [0, 1, 3, 8].map(|count| (count, Pod::selecting(&format!("pod-{count}"), &NAMES[..count].join(","))));
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
        stage.assert_nothing_is_left(&format!("{way:?}"));
    }
}

#[test]
fn pods_have_the_addresses_and_macs_they_ask_for() {
    for way in WITH_API {
        let stage = Stage::new(way);
        let asked = json!({
            "cniVersion": "1.0.0", "name": "asked", "type": "bridge", "bridge": "br-asked",
            "capabilities": {"ips": true, "mac": true}, "ipam": {"type": "static"},
        });
        stage.define("asked", &asked);
        let annotation = json!([
            {"name": "asked", "interface": "data0", "ips": ["10.70.0.7/24", "fd70::7/64"], "mac": "02:00:00:00:70:07"},
        ]);
        let pod = Pod::selecting("web", &annotation.to_string());
        let id = stage.run(&pod);
        stage.assert_attached(&pod, &id, &["asked"]);
        let data0 = &interfaces(&stage.runtime.netns(&id))["data0"];
        assert_eq!(*data0, json!({"mac": "02:00:00:00:70:07", "ips": ["10.70.0.7", "fd70::7"]}));
        stage.remove(&id);
        stage.assert_nothing_is_left(&format!("{way:?}"));
    }
}

#[test]
fn the_default_route_is_where_the_pod_wants_it() {
    for way in WITH_API {
        let stage = Stage::new(way);
        let mut uplink = stage.scene.node.bridge("br-uplink", "uplink", "10.70.0.0/24");
        uplink["isDefaultGateway"] = false.into();
        uplink["isGateway"] = true.into();
        stage.define("uplink", &uplink);
        let plain = Pod::selecting("plain", "uplink");
        let routed = Pod::selecting("routed", r#"[{"name": "uplink", "default-route": ["10.70.0.1"]}]"#);
        for (pod, gateway, interface) in [(plain, "10.1.0.1", "eth0"), (routed, "10.70.0.1", "net1")] {
            let id = stage.run(&pod);
            stage.assert_attached(&pod, &id, &["uplink"]);
            assert_eq!(default_routes(&stage.runtime.netns(&id)), [(gateway.to_owned(), interface.to_owned())]);
            stage.remove(&id);
        }
        stage.assert_nothing_is_left(&format!("{way:?}"));
    }
}

#[test]
fn a_pod_that_cannot_be_attached_does_not_start_and_leaves_nothing() {
    for way in WITH_API {
        let stage = Stage::new(way);
        let pod = Pod::selecting("web", "blue,missing");
        stage.create(&pod);
        let error = stage.runtime.cri.run(&pod).unwrap_err();
        assert!(
            error.message().contains("default/missing"),
            "the kubelet's Event names the network: {}",
            error.message()
        );
        stage.assert_nothing_is_left("missing");
        // The kubelet tries again, and the definition is there by now.
        stage.bridges(&["missing"]);
        let id = stage.run_again(&pod);
        stage.assert_attached(&pod, &id, &["blue", "missing"]);
        stage.remove(&id);
        stage.assert_nothing_is_left("found");
    }
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
    let stage = Stage::of(Way::Agent, scene);
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

/// The runtime hands over the pod's annotations, and they are enough.
#[test]
fn nobody_asks_the_api_server_for_the_pod() {
    let pods = "/api/v1/namespaces/default/pods";
    let definitions = "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions";
    let policies = "/apis/musubi.dev/v1alpha1/attachmentpolicies";
    let patch = format!("PATCH {pods}/web/status");
    let rows = [
        (Way::Agent, vec![patch.clone()]),
        (Way::PluginAlone, vec![format!("GET {policies}"), format!("GET {definitions}/blue"), patch]),
    ];
    for (way, expected) in rows {
        let stage = Stage::new(way);
        // An agent that remembers the pod would not have to ask either.
        stage.server().pause_watches(true);
        let _ = stage.server().take_log();
        let pod = Pod::selecting("web", "blue");
        let id = stage.run(&pod);
        stage.assert_attached(&pod, &id, &["blue"]);
        stage.remove(&id);
        let asked = stage.server().log().into_iter().filter(|asked| !asked.path.ends_with("/events"));
        let asked: Vec<String> = asked.map(|asked| format!("{} {}", asked.method, asked.path)).collect();
        assert_eq!(asked, expected, "{way:?}");
    }
}

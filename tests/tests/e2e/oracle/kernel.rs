//! What ours puts into the kernel and the reference plugins (1.1.1) do not: all that a route says, addresses that can be
//! used at once, and a bridge's MAC that stays.

use musubi_delegates::netlink::{LinkChange, Netlink, NewLink};
use musubi_tests::node::link;
use nix::libc;
use serde_json::{Value, json};

use super::stage::{Stage, Who, dual_stack, extend, host_local};

fn conf(kind: &str, more: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "net", "type": kind});
    extend(&mut conf, more);
    conf
}

#[test]
fn routes_carry_all_they_say_into_the_kernel() {
    let routes = json!([
        {"dst": "192.168.50.0/24", "gw": "10.8.0.9", "mtu": 1400, "advmss": 1300, "priority": 50},
        {"dst": "192.168.60.0/24", "gw": "10.8.0.9", "table": 1000},
        {"dst": "192.168.70.0/24", "scope": 253, "gw": null},
        {"dst": "fd50::/64", "gw": "fd08::9", "mtu": 1400, "advmss": 1300, "priority": 50, "table": 1000},
    ]);
    let ipam = json!({"type": "static", "routes": routes,
        "addresses": [{"address": "10.8.0.5/24"}, {"address": "fd08::5/64"}]});
    for (kind, more) in [("bridge", json!({"bridge": "br0"})), ("macvlan", json!({"master": "up0"}))] {
        let stage = Stage::new();
        stage.uplink();
        let mut conf = conf(kind, &more);
        conf["ipam"] = ipam.clone();
        let result = stage.call(Who::Ours, "ADD", &conf).result();
        assert_eq!(result["routes"][0], routes[0], "{kind}: the result says it too");
        let present = stage.sandbox.netns.open().netlink.routes().unwrap();
        let found = |dst: &str| {
            let route = present
                .iter()
                .find(|route| route.destination.to_string() == dst)
                .unwrap_or_else(|| panic!("{kind}: {dst}"));
            (route.mtu, route.advmss, route.priority, route.table, route.scope)
        };
        assert_eq!(found("192.168.50.0/24"), (Some(1400), Some(1300), Some(50), 254, 0), "{kind}");
        assert_eq!(found("192.168.60.0/24"), (None, None, None, 1000, 0), "{kind}");
        assert_eq!(found("192.168.70.0/24"), (None, None, None, 254, 253), "{kind}");
        assert_eq!(found("fd50::/64"), (Some(1400), Some(1300), Some(50), 1000, 0), "{kind}");
    }
}

/// Right after ADD every address can be used, the link-local one included.
pub fn no_address_is_tentative(stage: &Stage, conf: &Value) {
    let result = stage.call(Who::Ours, "ADD", conf).result();
    let pod = stage.sandbox.netns.open().netlink;
    let index = pod.link_by_name("eth0").unwrap().unwrap().index;
    let addresses = pod.addresses(index).unwrap();
    assert!(!addresses.iter().any(|a| a.is_tentative()), "{}: {addresses:?}", conf["type"]);
    for ip in result["ips"].as_array().unwrap() {
        let wanted = ip["address"].as_str().unwrap();
        assert!(addresses.iter().any(|a| a.net.to_string() == wanted), "{}: {wanted} in {addresses:?}", conf["type"]);
    }
    // The kernel makes the link-local address of a link whose carrier is on; it is not detected either.
    let link_local_later = pod.addresses(index).unwrap();
    assert!(!link_local_later.iter().any(|a| a.is_tentative()), "{}: {link_local_later:?}", conf["type"]);
}

#[test]
fn add_returns_with_no_address_tentative() {
    let without_gateway =
        json!({"type": "static", "addresses": [{"address": "fd08::5/64"}, {"address": "10.8.0.5/24"}]});
    let with_gateway = dual_stack(&json!({"routes": [{"dst": "::/0"}]}));
    for ipam in [&without_gateway, &with_gateway] {
        no_address_is_tentative(&Stage::new(), &conf("bridge", &json!({"bridge": "br0", "ipam": ipam})));
        let detecting = json!({"bridge": "br0", "enabledad": true, "ipam": ipam});
        no_address_is_tentative(&Stage::new(), &conf("bridge", &detecting));
        let stage = Stage::new();
        stage.uplink();
        no_address_is_tentative(&stage, &conf("macvlan", &json!({"master": "up0", "ipam": ipam})));
    }
    no_address_is_tentative(&Stage::new(), &conf("ptp", &json!({"ipam": with_gateway})));
}

#[test]
fn a_duplicate_is_found_when_detection_is_on() {
    let stage = Stage::new();
    let ipam = json!({"type": "static", "addresses": [{"address": "fd08::5/64"}]});
    let conf = conf("bridge", &json!({"bridge": "br0", "enabledad": true, "ipam": ipam}));
    let _ = stage.call(Who::Ours, "ADD", &conf).result();
    let other = stage.sandbox("c2");
    let links = stage.node.links();
    let (code, message) = stage.call_for(Who::Ours, "ADD", &other, "eth0", &conf).error();
    assert_eq!(code, 100, "{message}");
    assert!(message.contains("fd08::5/64") && message.contains("in use by another host"), "{message}");
    assert_eq!(stage.node.links(), links, "nothing is left");
    assert!(other.netns.open().netlink.link_by_name("eth0").unwrap().is_none(), "nothing is left");
}

/// A port with the lowest MAC there is: a bridge whose MAC was never set takes it.
fn plug_lowest(host: &Netlink, bridge: u32, name: &str) -> u32 {
    let mac = "00:00:00:00:00:01".parse().unwrap();
    host.request(NewLink::named(name).mac(Some(mac)).master(Some(bridge)).veth(NewLink::named("plug-peer"))).unwrap();
    host.link_by_name(name).unwrap().unwrap().index
}

#[test]
fn the_mac_of_a_bridge_stays() {
    let lan = host_local("10.7.0.0/24", &json!({}));
    let cases = [
        ("layer 2", json!({"bridge": "br0"}), false),
        ("layer 3", json!({"bridge": "br0", "isGateway": true, "ipam": lan}), false),
        ("somebody else's", json!({"bridge": "br0", "isGateway": true, "ipam": lan}), true),
    ];
    for (what, more, exists) in cases {
        let stage = Stage::new();
        if exists {
            stage.bridge("br0");
        }
        let conf = conf("bridge", &more);
        let result = stage.call(Who::Ours, "ADD", &conf).result();
        let bridge = link(&stage.node.host, "br0");
        let mac = bridge.mac.unwrap().to_string();
        assert_eq!(result["interfaces"][0]["mac"], mac, "{what}");
        let now = || link(&stage.node.host, "br0").mac.unwrap().to_string();
        let host = stage.host();
        let plugged = plug_lowest(&host, bridge.index, "plug");
        assert_eq!(now(), mac, "{what}: a port with a lower MAC came");
        host.delete_link(plugged, "plug").unwrap();
        assert_eq!(now(), mac, "{what}: and went");
        stage.call(Who::Ours, "DEL", &conf).succeeded();
        assert_eq!(now(), mac, "{what}: the last port went");
        let _ = stage.call(Who::Ours, "ADD", &conf).result();
        assert_eq!(now(), mac, "{what}: another pod came");
    }
}

#[test]
fn a_bridge_left_with_a_mac_of_zeros_gets_a_gateway_all_the_same() {
    let stage = Stage::new();
    stage.bridge("br0");
    let bridge = link(&stage.node.host, "br0").index;
    let plugged = plug_lowest(&stage.host(), bridge, "plug");
    stage.host().delete_link(plugged, "plug").unwrap();
    let more = json!({"bridge": "br0", "isGateway": true, "ipam": host_local("10.7.0.0/24", &json!({}))});
    let _ = stage.call(Who::Ours, "ADD", &conf("bridge", &more)).result();
    assert_ne!(link(&stage.node.host, "br0").mac.unwrap().to_string(), "00:00:00:00:00:00");
}

/// Keys that the reference plugins have since 1.1.1.
#[test]
fn newer_keys_reach_the_kernel() {
    let stage = Stage::new();
    stage.uplink();
    let isolated = conf("bridge", &json!({"bridge": "br0", "portIsolation": true}));
    let _ = stage.call(Who::Ours, "ADD", &isolated).result();
    let port = stage.host().links().unwrap().into_iter().find(|l| l.master.is_some()).unwrap();
    assert_eq!(port.port().get(33), Some(&[1][..]), "IFLA_BRPORT_ISOLATED");

    let down = stage.sandbox("down");
    let keep_down = conf("bridge", &json!({"bridge": "br0", "disableContainerInterface": true}));
    let _ = stage.call_for(Who::Ours, "ADD", &down, "eth0", &keep_down).result();
    assert!(!link(&down.netns, "eth0").is_up());

    let queue = stage.sandbox("queue");
    let macvlan = conf("macvlan", &json!({"master": "up0", "bcqueuelen": 4000}));
    let _ = stage.call_for(Who::Ours, "ADD", &queue, "eth0", &macvlan).result();
    assert_eq!(link(&queue.netns, "eth0").data().get(7), Some(&4000u32.to_ne_bytes()[..]), "IFLA_MACVLAN_BC_QUEUE_LEN");

    let inside = stage.sandbox("inside");
    let pod = inside.netns.open().netlink;
    pod.request(NewLink::named("own0").veth(NewLink::named("own1"))).unwrap();
    let own = pod.link_by_name("own0").unwrap().unwrap().index;
    pod.request(LinkChange::of(own, "up").flag(libc::IFF_UP, true).request()).unwrap();
    let nested = conf("macvlan", &json!({"master": "own0", "linkInContainer": true}));
    let _ = stage.call_for(Who::Ours, "ADD", &inside, "eth0", &nested).result();
    let eth0 = link(&inside.netns, "eth0");
    assert_eq!((eth0.parent, eth0.parent_netns), (Some(own), None));
}

#[test]
fn newer_keys_that_make_no_sense_are_refused_before_anything_is_made() {
    let lan = host_local("10.7.0.0/24", &json!({}));
    let cases = [
        (json!({"vlanTrunk": [{"minID": 5}]}), "vlanTrunk"),
        (json!({"vlanTrunk": [{"maxID": 5}]}), "vlanTrunk"),
        (json!({"vlanTrunk": [{"id": 0}]}), "vlanTrunk"),
        (json!({"vlanTrunk": [{"id": 4095}]}), "vlanTrunk"),
        (json!({"vlanTrunk": [{"minID": 9, "maxID": 5}]}), "vlanTrunk"),
        (json!({"disableContainerInterface": true, "ipam": lan}), "disableContainerInterface"),
        (json!({"portIsolation": "perhaps"}), "portIsolation"),
        (json!({"ipMasq": true, "ipMasqBackend": "ufw", "ipam": lan}), "ipMasqBackend"),
    ];
    for (more, key) in cases {
        let stage = Stage::new();
        let mut conf = conf("bridge", &more);
        conf["bridge"] = "br0".into();
        let (code, message) = stage.call(Who::Ours, "ADD", &conf).error();
        assert_eq!(code, 7, "{more}: {message}");
        assert!(message.contains(key), "{more}: {message}");
        assert_eq!(stage.node.links(), ["lo"], "{more}");
        assert_eq!(stage.node.leftover_files(), Vec::<String>::new(), "{more}");
    }
}

#[test]
fn the_first_call_with_no_folder_yet_says_nothing_on_stderr() {
    let stage = Stage::new();
    let conf = conf("host-local", &json!({"ipam": host_local("10.7.0.0/24", &json!({}))}));
    let output = stage.call(Who::Ours, "ADD", &conf);
    assert!(output.ok, "{}", output.stdout);
    assert_eq!(output.stderr, "");
}

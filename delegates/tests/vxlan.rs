//! vxlan on the running kernel: two nodes joined by an underlay, pods that talk across it, and what a node looks like while
//! the pods of a VNI come and go.
#![allow(clippy::unwrap_used)]

mod common;

use std::cell::RefCell;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Pod, addresses, link, on_host, set_down, set_up};
use musubi_delegates::cni::{CniArgs, CniError, Command, ContainerId, InterfaceName, NetConf, Request};
use musubi_delegates::delegate::{Attachment, Context, Delegate};
use musubi_delegates::netlink::neighbour::ForwardingEntry;
use musubi_delegates::netlink::{LinkChange, NewLink, address};
use musubi_delegates::netns::Namespace;
use musubi_delegates::standalone;
use musubi_delegates::vxlan::Vxlan;
use musubi_delegates::vxlan_device::{Vni, remove_if_unused};
use serde_json::{Value, json};

// packets ---------------------------------------------------------------------------------------------------------------

#[test]
fn pods_of_two_nodes_talk() {
    on_host("pods_of_two_nodes_talk", |_| {
        let cases = [
            // name, what node a says of the underlay, what node b says, MTU
            ("remotes", json!({"remotes": ["192.0.2.2"]}), json!({"remotes": ["192.0.2.1"]}), 1450),
            (
                "remotes and local",
                json!({"remotes": ["192.0.2.2", "192.0.2.9"], "local": "192.0.2.1", "port": 8472}),
                json!({"remotes": ["192.0.2.1"], "local": "192.0.2.2", "port": 8472}),
                1450,
            ),
            (
                "no learning",
                json!({"remotes": ["192.0.2.2"], "learning": false}),
                json!({"remotes": ["192.0.2.1"]}),
                1450,
            ),
            (
                "one list for all nodes",
                json!({"remotes": ["192.0.2.1", "192.0.2.2"]}),
                json!({"remotes": ["192.0.2.1", "192.0.2.2"]}),
                1450,
            ),
            ("IPv6 remotes", json!({"remotes": ["2001:db8::2"]}), json!({"remotes": ["2001:db8::1"]}), 1430),
            (
                "IPv6 remotes and local",
                json!({"remotes": ["2001:db8::2"], "local": "2001:db8::1"}),
                json!({"remotes": ["2001:db8::1"], "local": "2001:db8::2"}),
                1430,
            ),
            ("group", json!({"group": "239.1.1.7"}), json!({"group": "239.1.1.7"}), 1450),
            ("IPv6 group", json!({"group": "ff05::7"}), json!({"group": "ff05::7"}), 1430),
            (
                "own MTU",
                json!({"remotes": ["192.0.2.2"], "mtu": 1300}),
                json!({"remotes": ["192.0.2.1"], "mtu": 1300}),
                1300,
            ),
        ];
        for (name, ours, theirs, mtu) in cases {
            let [a, b] = nodes();
            let (pod_a, pod_b) = (Pod::new(), Pod::new());
            let net_a = a.network(&pod_a, "a", with(ours, json!({"ipam": fixed(&["10.60.0.1/24", "fd60::1/64"])})));
            let net_b = b.network(&pod_b, "b", with(theirs, json!({"ipam": fixed(&["10.60.0.2/24", "fd60::2/64"])})));
            net_a.add().unwrap_or_else(|e| panic!("{name}: {e}"));
            net_b.add().unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(link(&pod_a.namespace, "net1").unwrap().mtu, mtu, "{name}");

            for (from, to, at) in
                [(&pod_a, &pod_b, "10.60.0.2"), (&pod_b, &pod_a, "10.60.0.1"), (&pod_a, &pod_b, "fd60::2")]
            {
                assert!(hears(from, to, at, 1), "{name}: nothing reached {at}");
            }
            // The largest datagram that is no fragment: IPv4 and UDP headers are 28 bytes, IPv6's 48.
            assert!(hears(&pod_a, &pod_b, "10.60.0.2", mtu as usize - 28), "{name}: a full packet is lost");
            assert!(hears(&pod_b, &pod_a, "fd60::1", mtu as usize - 48), "{name}: a full IPv6 packet is lost");

            net_a.check().unwrap_or_else(|e| panic!("{name}: {e}"));
            net_a.del().unwrap();
            net_b.del().unwrap();
            for node in [&a, &b] {
                assert_eq!(node.links(), ["lo", "up0"], "{name}");
            }
        }
    });
}

#[test]
fn frames_to_everybody_reach_the_listed_nodes_alone() {
    on_host("frames_to_everybody_reach_the_listed_nodes_alone", |_| {
        let [a, b] = nodes();
        let (pod_a, pod_b) = (Pod::new(), Pod::new());
        a.network(&pod_a, "a", json!({"remotes": [], "ipam": fixed(&["10.60.0.1/24"])})).add().unwrap();
        b.network(&pod_b, "b", json!({"remotes": ["192.0.2.1"], "ipam": fixed(&["10.60.0.2/24"])})).add().unwrap();
        // b finds a, and a learns from b's frames where b is.
        assert!(!hears(&pod_a, &pod_b, "10.60.0.2", 1), "a floods to nobody, and was heard");
        assert!(hears(&pod_b, &pod_a, "10.60.0.1", 1));
        assert!(hears(&pod_a, &pod_b, "10.60.0.2", 1));
    });
}

#[test]
fn pods_of_different_networks_do_not_hear_each_other() {
    on_host("pods_of_different_networks_do_not_hear_each_other", |_| {
        let [a, b] = nodes();
        let (pod_a, pod_b) = (Pod::new(), Pod::new());
        let keys = |vni, remote, address| json!({"vni": vni, "remotes": [remote], "ipam": fixed(&[address])});
        a.network(&pod_a, "a", keys(7, "192.0.2.2", "10.60.0.1/24")).add().unwrap();
        b.network(&pod_b, "b", keys(8, "192.0.2.1", "10.60.0.2/24")).add().unwrap();
        assert!(!hears(&pod_a, &pod_b, "10.60.0.2", 1));
    });
}

// the node --------------------------------------------------------------------------------------------------------------

#[test]
fn a_node_has_one_device_and_one_bridge_for_all_pods_of_a_vni() {
    on_host("a_node_has_one_device_and_one_bridge_for_all_pods_of_a_vni", |_| {
        let [node, _other] = nodes();
        let (first, second) = (Pod::new(), Pod::new());
        let keys = json!({"remotes": ["192.0.2.3", "192.0.2.2"], "ipam": node.host_local()});
        let one = node.network(&first, "c1", keys.clone());
        let two = node.network(&second, "c2", with(keys, json!({"remotes": ["192.0.2.2", "192.0.2.3"]})));

        let result = one.add().unwrap();
        let device = link(node.host(), "mvx7").unwrap();
        let bridge = link(node.host(), "mbr7").unwrap();
        let inside = link(&first.namespace, "net1").unwrap();
        let outside = node.link(inside.parent.unwrap());
        let mac = |link: &musubi_delegates::netlink::Link| link.mac.unwrap().to_string();
        let expected = json!({"cniVersion": "1.1.0",
            "interfaces": [
                {"name": "mbr7", "mac": mac(&bridge)},
                {"name": outside.name, "mac": mac(&outside)},
                {"name": "net1", "mac": mac(&inside), "sandbox": first.path()}],
            "ips": [{"address": "10.60.0.2/24", "gateway": "10.60.0.1", "interface": 2}]});
        assert_eq!(result, expected);
        assert_eq!((device.master, outside.master), (Some(bridge.index), Some(bridge.index)));
        assert!(device.is_up() && bridge.is_up() && outside.is_up());
        assert_eq!((device.mtu, bridge.mtu, outside.mtu, inside.mtu), (1450, 1450, 1450, 1450));
        assert!(device.group == bridge.group && device.group != 0 && device.group < 1 << 31);
        assert_eq!(outside.group, 0, "a pod's end must not go with the devices");
        assert_eq!(addresses(node.host(), "mbr7"), Vec::<String>::new());

        two.add().unwrap();
        assert_eq!(link(node.host(), "mvx7").unwrap().index, device.index);
        assert!(hears(&first, &second, "10.60.0.3", 1));
        one.del().unwrap();
        assert_eq!(link(node.host(), "mbr7").map(|l| l.index), Some(bridge.index));
        two.check().unwrap();
        two.del().unwrap();
        assert_eq!(node.links(), ["lo", "up0"]);
        two.del().unwrap();
        one.del().unwrap();
    });
}

#[test]
fn a_difference_to_the_device_in_use_is_an_error_that_names_it() {
    on_host("a_difference_to_the_device_in_use_is_an_error_that_names_it", |_| {
        let [node, _other] = nodes();
        let (first, second) = (Pod::new(), Pod::new());
        let base = json!({"master": "up0", "local": "192.0.2.1", "remotes": ["192.0.2.2"], "mtu": 1400});
        let one = node.network(&first, "c1", base.clone());
        one.add().unwrap();
        node.add_link("up1");
        let before = node.links();
        let cases = [
            (json!({"port": 4790}), "port: VXLAN interface \"mvx7\" has 4789, the configuration asks for 4790"),
            (json!({"master": "up1"}), "master: VXLAN interface \"mvx7\" has up0, the configuration asks for up1"),
            (json!({"local": null}), "local: VXLAN interface \"mvx7\" has 192.0.2.1, the configuration asks for none"),
            (
                json!({"local": "192.0.2.5"}),
                "local: VXLAN interface \"mvx7\" has 192.0.2.1, the configuration asks for 192.0.2.5",
            ),
            (
                json!({"remotes": ["192.0.2.2", "192.0.2.4"]}),
                "remotes: VXLAN interface \"mvx7\" has 192.0.2.2, the configuration asks for 192.0.2.2, 192.0.2.4",
            ),
            (
                json!({"remotes": []}),
                "remotes: VXLAN interface \"mvx7\" has 192.0.2.2, the configuration asks for none",
            ),
            (
                json!({"remotes": null, "group": "239.0.0.7"}),
                "group: VXLAN interface \"mvx7\" has none, the configuration asks for 239.0.0.7",
            ),
            (
                json!({"learning": false}),
                "learning: VXLAN interface \"mvx7\" has true, the configuration asks for false",
            ),
            (json!({"mtu": 1300}), "mtu: VXLAN interface \"mvx7\" has 1400, the configuration asks for 1300"),
            (json!({"bridge": "br9"}), "bridge: VXLAN interface \"mvx7\" has mbr7, the configuration asks for br9"),
        ];
        for (change, expected) in cases {
            let two = node.network(&second, "c2", with(base.clone(), change.clone()));
            assert_eq!(two.add().unwrap_err().msg, expected, "{change}");
            assert_eq!(two.call(Command::Status).unwrap_err().code, 50, "{change}");
            assert_eq!(node.links(), before, "{change}");
            assert!(link(&second.namespace, "net1").is_none(), "{change}");
            two.del().unwrap();
        }
        one.check().unwrap();

        // No MTU of its own: the pod takes the device's.
        let two = node.network(&second, "c2", with(base.clone(), json!({"mtu": 0})));
        two.add().unwrap();
        assert_eq!(link(&second.namespace, "net1").unwrap().mtu, 1400);
        two.del().unwrap();

        // With the last pod gone, the new configuration is the device's.
        one.del().unwrap();
        let two = node.network(&second, "c2", with(base, json!({"port": 4790})));
        two.add().unwrap();
        two.check().unwrap();
    });
}

#[test]
fn a_device_left_without_pods_is_made_anew_for_another_configuration() {
    on_host("a_device_left_without_pods_is_made_anew_for_another_configuration", |_| {
        let [node, _other] = nodes();
        let (first, second) = (Pod::new(), Pod::new());
        let one = node.network(&first, "c1", json!({"remotes": ["192.0.2.2"]}));
        one.add().unwrap();
        let index = link(&first.namespace, "net1").unwrap().index;
        first.namespace.netlink.delete_link(index, "net1").unwrap();
        let two = node.network(&second, "c2", json!({"remotes": ["192.0.2.3"]}));
        two.call(Command::Status).unwrap();
        two.add().unwrap();
        assert_eq!(node.remotes("mvx7"), ["192.0.2.3"]);
        two.check().unwrap();
    });
}

#[test]
fn a_node_does_not_flood_to_itself() {
    on_host("a_node_does_not_flood_to_itself", |_| {
        for (remotes, others) in [
            (["192.0.2.1", "192.0.2.2", "192.0.2.3"], vec!["192.0.2.2", "192.0.2.3"]),
            (["2001:db8::3", "2001:db8::2", "2001:db8::1"], vec!["2001:db8::2", "2001:db8::3"]),
        ] {
            let [node, _other] = nodes();
            let pod = Pod::new();
            let net = node.network(&pod, "c1", json!({"remotes": remotes}));
            net.add().unwrap();
            assert_eq!(node.remotes("mvx7"), others);
            net.check().unwrap();
        }
    });
}

#[test]
fn an_agent_removes_the_devices_later() {
    on_host("an_agent_removes_the_devices_later", |_| {
        let [node, _other] = nodes();
        let pod = Pod::new();
        let net = node.network(&pod, "c1", json!({}));
        net.add().unwrap();
        let conf = NetConf(net.conf.as_object().unwrap().clone());
        let delegate = Vxlan::parse(&conf).unwrap();
        let state_dir = node.folder.path().join("state");
        let at = Attachment {
            context: Context {
                network: &conf.name().unwrap(),
                conf: &conf,
                version: conf.version().unwrap(),
                path: &[],
                state_dir: &state_dir,
                mark: None,
                deadline: Instant::now() + Duration::from_secs(10),
                host: node.host(),
                programs: musubi_delegates::external::Surroundings::default(),
                agent_removes_shared: true,
            },
            container_id: &ContainerId::parse("c1").unwrap(),
            interface: &InterfaceName::parse("net1").unwrap(),
            args: &CniArgs::default(),
            netns: None,
            pod: Some(&pod.namespace),
            group: None,
            prev_result: None,
        };
        let (vni, bridge) = delegate.shared();
        assert!(!remove_if_unused(node.host(), &state_dir, vni, bridge).unwrap(), "a pod uses it");
        for owned in delegate.detach(&at).unwrap() {
            owned.delete(&pod.namespace).unwrap();
        }
        delegate.release(&at).unwrap();
        assert_eq!(node.links(), ["lo", "mbr7", "mvx7", "up0"]);
        assert!(remove_if_unused(node.host(), &state_dir, vni, bridge).unwrap());
        assert_eq!(node.links(), ["lo", "up0"]);
    });
}

#[test]
fn a_bridge_that_was_there_stays_and_keeps_its_ports() {
    on_host("a_bridge_that_was_there_stays_and_keeps_its_ports", |_| {
        let [node, _other] = nodes();
        let netlink = &node.host().netlink;
        netlink.request(NewLink::named("br9").up().of_kind("bridge", |data| data)).unwrap();
        let pod = Pod::new();
        let net = node.network(&pod, "c1", json!({"bridge": "br9"}));
        net.add().unwrap();
        assert_eq!(link(node.host(), "mvx7").unwrap().master, link(node.host(), "br9").map(|l| l.index));
        net.check().unwrap();
        net.del().unwrap();
        assert_eq!(node.links(), ["br9", "lo", "up0"]);

        // While others use the bridge, their VXLAN stays.
        node.add_link("port");
        let (bridge, port) = (link(node.host(), "br9").unwrap(), link(node.host(), "port").unwrap());
        let join = LinkChange::of(port.index, "test").attr(libc::IFLA_MASTER, bridge.index.to_ne_bytes());
        netlink.request(join.request()).unwrap();
        net.add().unwrap();
        net.del().unwrap();
        assert_eq!(node.links(), ["br9", "lo", "mvx7", "port", "port-peer", "up0"]);
        assert_eq!(link(node.host(), "port").unwrap().master, Some(bridge.index));
    });
}

#[test]
fn one_bridge_does_not_join_two_networks() {
    on_host("one_bridge_does_not_join_two_networks", |_| {
        let [node, _other] = nodes();
        let (first, second) = (Pod::new(), Pod::new());
        node.network(&first, "c1", json!({"bridge": "shared"})).add().unwrap();
        let error = node.network(&second, "c2", json!({"vni": 8, "bridge": "shared"})).add().unwrap_err();
        assert_eq!(error.msg, "bridge: \"shared\" is the bridge of VNI 7, and the two would be joined");
        assert_eq!(
            node.links().iter().filter(|name| !name.starts_with("veth")).collect::<Vec<_>>(),
            ["lo", "mvx7", "shared", "up0"]
        );
    });
}

#[test]
fn devices_in_another_group_are_removed_as_well() {
    on_host("devices_in_another_group_are_removed_as_well", |_| {
        for regrouped in [&["mvx7"][..], &["mbr7"], &["mvx7", "mbr7"]] {
            let [node, _other] = nodes();
            let pod = Pod::new();
            let net = node.network(&pod, "c1", json!({}));
            net.add().unwrap();
            for name in regrouped {
                let change = LinkChange::of(link(node.host(), name).unwrap().index, "test");
                node.host().netlink.request(change.attr(libc::IFLA_GROUP, 5u32.to_ne_bytes()).request()).unwrap();
            }
            net.del().unwrap();
            assert_eq!(node.links(), ["lo", "up0"], "{regrouped:?}");
        }
    });
}

#[test]
fn del_needs_neither_the_pod_nor_a_right_configuration_nor_the_devices() {
    on_host("del_needs_neither_the_pod_nor_a_right_configuration_nor_the_devices", |_| {
        let [node, _other] = nodes();
        let pod = Pod::new();
        let mut net = node.network(&pod, "c1", json!({"ipam": node.host_local()}));
        net.add().unwrap();
        let device = link(node.host(), "mvx7").unwrap();
        node.host().netlink.delete_link(device.index, "mvx7").unwrap();
        net.conf["port"] = json!("many");
        net.del().unwrap();
        assert_eq!(node.links(), ["lo", "up0"]);

        let net = node.network(&pod, "c1", json!({"ipam": node.host_local()}));
        net.add().unwrap();
        drop(pod);
        // The kernel takes the namespace apart in its own time.
        let mut left = node.links();
        let limit = Instant::now() + Duration::from_secs(10);
        while left.iter().any(|name| name.starts_with("veth")) && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(10));
            left = node.links();
        }
        let net = Network { netns: None, ..net };
        net.del().unwrap();
        assert_eq!(node.links(), ["lo", "up0"]);
        net.del().unwrap();
    });
}

#[test]
fn a_pod_whose_namespace_is_just_going_does_not_hold_the_devices() {
    on_host("a_pod_whose_namespace_is_just_going_does_not_hold_the_devices", |_| {
        let [node, _other] = nodes();
        for _ in 0..8 {
            let pod = Pod::new();
            let net = node.network(&pod, "c1", json!({}));
            net.add().unwrap();
            drop(pod);
            Network { netns: None, ..net }.del().unwrap();
            assert_eq!(node.links(), ["lo", "up0"]);
        }
    });
}

#[test]
fn a_failed_add_leaves_nothing() {
    on_host("a_failed_add_leaves_nothing", |_| {
        let [node, _other] = nodes();
        let taken = node.pod.run(|| UdpSocket::bind("0.0.0.0:4700").unwrap());
        let netlink = &node.host().netlink;
        let other = NewLink::named("other").of_kind("vxlan", |data| data.u32(1, 9).be16(15, 4789));
        netlink.request(other).unwrap();
        let pod = Pod::new();
        common::add_link(&pod.namespace, "taken");
        let before = node.links();
        let cases = [
            (json!({"mtu": 1451}), "net1", "mtu: 1451 is more than the 1450 that interface \"up0\" (MTU 1500) leaves"),
            (json!({"mtu": 1431, "local": "2001:db8::1"}), "net1", "mtu: 1431 is more than the 1430 that"),
            (json!({"master": "gone"}), "net1", "master: there is no interface \"gone\""),
            (json!({"bridge": "up0"}), "net1", "bridge: interface \"up0\" exists and is a veth"),
            (json!({"port": 4700}), "net1", "port: UDP port 4700 is taken by another program"),
            (json!({"vni": 9}), "net1", "vni: 9 on UDP port 4789 is taken by interface \"other\""),
            (json!({}), "taken", "interface \"taken\" already exists in the pod"),
            (json!({"ipam": {"type": "nowhere"}}), "net1", "nowhere"),
        ];
        for (keys, interface, expected) in cases {
            let net = Network { interface: interface.to_owned(), ..node.network(&pod, "c1", keys.clone()) };
            let error = net.add().unwrap_err();
            assert!(error.msg.contains(expected), "{keys}: {error}");
            assert_eq!(node.links(), before, "{keys}");
            assert!(link(&pod.namespace, "net1").is_none(), "{keys}");
        }
        drop(taken);
    });
}

#[test]
fn a_failed_add_leaves_other_pods_alone() {
    on_host("a_failed_add_leaves_other_pods_alone", |_| {
        let [node, _other] = nodes();
        let (first, second) = (Pod::new(), Pod::new());
        let one = node.network(&first, "c1", json!({"ipam": fixed(&["10.60.0.2/24"]), "isGateway": true}));
        one.add().unwrap();
        let before = node.links();
        let two = node.network(&second, "c2", json!({"ipam": fixed(&["10.61.0.2/24"]), "isGateway": true}));
        let error = two.add().unwrap_err();
        assert!(error.msg.contains("has address 10.60.0.1/24, not the gateway 10.61.0.1/24"), "{error}");
        assert_eq!(node.links(), before);
        one.check().unwrap();
    });
}

#[test]
fn pods_come_and_go_at_the_same_time() {
    on_host("pods_come_and_go_at_the_same_time", |_| {
        let [node, _other] = nodes();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (netns, folder, ipam) = (node.pod.path(), node.folder.path().to_owned(), node.host_local());
                scope.spawn(move || {
                    for round in 0..6 {
                        let pod = Pod::new();
                        let net = network(&netns, &folder, &pod, &format!("c{thread}-{round}"), json!({"ipam": ipam}));
                        net.add().unwrap();
                        net.check().unwrap();
                        net.del().unwrap();
                    }
                });
            }
        });
        assert_eq!(node.links(), ["lo", "up0"]);
    });
}

// keys ------------------------------------------------------------------------------------------------------------------

#[test]
fn the_host_is_the_gateway_where_it_is_asked_to() {
    on_host("the_host_is_the_gateway_where_it_is_asked_to", |_| {
        let [node, _other] = nodes();
        let pod = Pod::new();
        let net = node.network(&pod, "c1", json!({"isGateway": true, "ipam": fixed(&["10.60.0.9/24", "fd60::9/64"])}));
        let result = net.add().unwrap();
        assert_eq!(result["ips"][0]["gateway"], "10.60.0.1");
        assert_eq!(addresses(node.host(), "mbr7"), ["10.60.0.1/24", "fd60::1/64"]);
        assert!(hears(&pod, &node.pod, "10.60.0.1", 1));
        let forwarding = node.host().sysctl(musubi_delegates::netns::Family::V4, "all", "forwarding");
        assert_eq!(forwarding.as_deref(), Some("1"));
        net.check().unwrap();
        let bridge = link(node.host(), "mbr7").unwrap();
        node.host().netlink.request(address::remove(bridge.index, "10.60.0.1/24".parse().unwrap())).unwrap();
        let error = net.call(Command::Check).unwrap_err();
        assert_eq!(error.msg, "bridge \"mbr7\" has lost the gateway address 10.60.0.1");
    });
}

#[test]
fn the_mac_comes_from_the_most_specific_place() {
    on_host("the_mac_comes_from_the_most_specific_place", |_| {
        let [node, _other] = nodes();
        let (conf, args, cni, runtime) =
            ("02:00:00:00:00:01", "MAC=02:00:00:00:00:02", "02:00:00:00:00:03", "02:00:00:00:00:04");
        let cases = [
            (json!({"mac": conf}), "", "02:00:00:00:00:01"),
            (json!({"mac": conf}), args, "02:00:00:00:00:02"),
            (json!({"mac": conf, "args": {"cni": {"mac": cni}}}), args, "02:00:00:00:00:03"),
            (
                json!({"mac": conf, "args": {"cni": {"mac": cni}}, "runtimeConfig": {"mac": runtime}}),
                args,
                "02:00:00:00:00:04",
            ),
        ];
        for (keys, args, expected) in cases {
            let pod = Pod::new();
            let net = Network { args: args.to_owned(), ..node.network(&pod, "c1", keys.clone()) };
            let result = net.add().unwrap();
            assert_eq!(result["interfaces"][2]["mac"], expected, "{keys} {args}");
            assert_eq!(link(&pod.namespace, "net1").unwrap().mac.unwrap().to_string(), expected);
            net.del().unwrap();
        }
    });
}

#[test]
fn the_underlay_is_the_link_with_the_default_route() {
    on_host("the_underlay_is_the_link_with_the_default_route", |_| {
        let [node, _other] = nodes();
        let pod = Pod::new();
        let net = node.network(&pod, "c1", json!({"master": null}));
        let error = net.add().unwrap_err();
        assert_eq!(error.msg, "master: not set, and this node has no default route to take it from");
        assert_eq!(net.call(Command::Status).unwrap_err().code, 50);
        let up = link(node.host(), "up0").unwrap();
        let default = musubi_delegates::netlink::route::Route::new("0.0.0.0/0".parse().unwrap(), None, up.index);
        node.host().netlink.request(default.add()).unwrap();
        net.call(Command::Status).unwrap();
        net.add().unwrap();
        let device = link(node.host(), "mvx7").unwrap();
        // IFLA_VXLAN_LINK
        assert_eq!(musubi_delegates::netlink::link::data_u32(device.data(), 3), Some(up.index));

        // A default route that moves away, or ends, is no business of pods that have their tunnel.
        node.host().netlink.request(default.remove()).unwrap();
        net.call(Command::Check).unwrap();
        let second = Pod::new();
        node.network(&second, "c2", json!({"master": null})).add().unwrap();
    });
}

#[test]
fn check_notices_what_changed() {
    on_host("check_notices_what_changed", |_| {
        type Break = fn(&Node, &Pod);
        let cases: [(&str, Break); 9] = [
            ("mtu: VXLAN interface \"mvx7\" has 1450, the configuration asks for 1350", |node, _| {
                let index = link(node.host(), "up0").unwrap().index;
                let lower = LinkChange::of(index, "test").attr(libc::IFLA_MTU, 1400u32.to_ne_bytes());
                node.host().netlink.request(lower.request()).unwrap();
            }),
            ("VXLAN interface \"mvx7\" is gone", |node, _| {
                node.delete("mvx7");
            }),
            ("VXLAN interface \"mvx7\" is down", |node, _| set_down(node.host(), "mvx7")),
            ("bridge \"mbr7\" is gone", |node, _| node.delete("mbr7")),
            ("bridge \"mbr7\" is down", |node, _| set_down(node.host(), "mbr7")),
            ("remotes: VXLAN interface \"mvx7\" has none, the configuration asks for 192.0.2.2", |node, _| {
                let index = link(node.host(), "mvx7").unwrap().index;
                let entry = ForwardingEntry::flood(index, "192.0.2.2".parse().unwrap());
                node.host().netlink.request(entry.remove()).unwrap();
            }),
            ("bridge: VXLAN interface \"mvx7\" has none, the configuration asks for mbr7", |node, _| {
                let index = link(node.host(), "mvx7").unwrap().index;
                let leave = LinkChange::of(index, "test").attr(libc::IFLA_MASTER, 0u32.to_ne_bytes());
                node.host().netlink.request(leave.request()).unwrap();
            }),
            ("is no port of bridge \"mbr7\" any more", |node, pod| {
                let index = link(&pod.namespace, "net1").unwrap().parent.unwrap();
                let leave = LinkChange::of(index, "test").attr(libc::IFLA_MASTER, 0u32.to_ne_bytes());
                node.host().netlink.request(leave.request()).unwrap();
            }),
            ("interface \"net1\" has lost address 10.60.0.1/24", |_, pod| {
                let index = link(&pod.namespace, "net1").unwrap().index;
                pod.namespace.netlink.request(address::remove(index, "10.60.0.1/24".parse().unwrap())).unwrap();
            }),
        ];
        for (expected, change) in cases {
            let [node, _other] = nodes();
            let pod = Pod::new();
            let net = node.network(&pod, "c1", json!({"remotes": ["192.0.2.2"], "ipam": fixed(&["10.60.0.1/24"])}));
            net.add().unwrap();
            net.call(Command::Check).unwrap();
            change(&node, &pod);
            let error = net.call(Command::Check).unwrap_err();
            assert!(error.msg.contains(expected), "{expected}: {error}");
            net.del().unwrap();
            assert_eq!(node.links().iter().filter(|n| n.starts_with('m')).count(), 0, "{expected}");
        }
    });
}

#[test]
fn gc_removes_what_no_pod_uses() {
    on_host("gc_removes_what_no_pod_uses", |_| {
        let [node, _other] = nodes();
        let pod = Pod::new();
        let mut net = node.network(&pod, "c1", json!({}));
        net.add().unwrap();
        net.conf["cni.dev/valid-attachments"] = json!([]);
        net.call(Command::Gc).unwrap();
        assert!(link(node.host(), "mvx7").is_some(), "a pod uses it");
        let index = link(&pod.namespace, "net1").unwrap().index;
        pod.namespace.netlink.delete_link(index, "net1").unwrap();
        net.call(Command::Gc).unwrap();
        assert_eq!(node.links(), ["lo", "up0"]);
    });
}

#[test]
fn names_and_group_come_from_the_vni() {
    for (number, device, bridge, group) in
        [(1, "mvx1", "mbr1", 0x4d00_0001), (16_777_215, "mvx16777215", "mbr16777215", 0x4dff_ffff)]
    {
        let vni = Vni::new(number).unwrap();
        assert_eq!((vni.device_name().as_str(), vni.bridge_name().as_str()), (device, bridge));
        assert_eq!(vni.link_group().get(), group);
    }
    assert_eq!((Vni::new(0), Vni::new(16_777_216)), (None, None));
}

/// The kernel answers each entry, and more answers than a socket's buffer holds (some 250) would be lost.
#[test]
fn a_vni_may_span_a_thousand_nodes() {
    on_host("a_vni_may_span_a_thousand_nodes", |_| {
        let [node, _other] = nodes();
        let pod = Pod::new();
        let remotes: Vec<String> = (0..1000).map(|n| format!("198.18.{}.{}", n / 250, n % 250 + 1)).collect();
        let net = node.network(&pod, "c1", json!({"remotes": remotes}));
        net.add().unwrap();
        assert_eq!(node.remotes("mvx7").len(), 1000);
        net.check().unwrap();
        net.del().unwrap();
    });
}

// helpers ---------------------------------------------------------------------------------------------------------------

/// A node: a namespace whose link `up0` leads to the other node, and a folder.
struct Node {
    pod: Pod,
    folder: tempfile::TempDir,
}

/// Two nodes, 192.0.2.1 and .2, 2001:db8::1 and ::2.
fn nodes() -> [Node; 2] {
    let nodes = [(); 2].map(|()| Node { pod: Pod::new(), folder: tempfile::tempdir().unwrap() });
    let [a, b] = &nodes;
    let far = NewLink::named("up0").in_namespace(b.host());
    a.host().netlink.request(NewLink::named("up0").veth(far)).unwrap();
    for (i, node) in nodes.iter().enumerate() {
        set_up(node.host(), "lo");
        set_up(node.host(), "up0");
        let index = link(node.host(), "up0").unwrap().index;
        for net in [format!("192.0.2.{}/24", i + 1), format!("2001:db8::{}/64", i + 1)] {
            node.host().netlink.request(address::add(index, net.parse().unwrap(), false)).unwrap();
        }
    }
    nodes
}

impl Node {
    fn host(&self) -> &Namespace {
        &self.pod.namespace
    }

    fn network(&self, pod: &Pod, container_id: &str, keys: Value) -> Network {
        network(&self.pod.path(), self.folder.path(), pod, container_id, keys)
    }

    fn host_local(&self) -> Value {
        json!({"type": "host-local", "dataDir": self.folder.path().join("addresses"), "ranges": [[{"subnet": "10.60.0.0/24"}]]})
    }

    fn add_link(&self, name: &str) {
        common::add_link(self.host(), name);
    }

    fn link(&self, index: u32) -> musubi_delegates::netlink::Link {
        self.host().netlink.link_by_index(index).unwrap().unwrap()
    }

    fn links(&self) -> Vec<String> {
        let mut names: Vec<String> = self.host().netlink.links().unwrap().into_iter().map(|link| link.name).collect();
        names.sort();
        names
    }

    fn remotes(&self, name: &str) -> Vec<String> {
        let index = link(self.host(), name).unwrap().index;
        let entries = self.host().netlink.forwarding_entries(index).unwrap();
        let mut remotes: Vec<String> = entries.iter().map(|entry| entry.remote.to_string()).collect();
        remotes.sort();
        remotes
    }

    fn delete(&self, name: &str) {
        let index = link(self.host(), name).unwrap().index;
        self.host().netlink.delete_link(index, name).unwrap();
    }
}

/// Calls of `vxlan` on a node, as a runtime makes them there.
struct Network {
    node: PathBuf,
    state_dir: PathBuf,
    netns: Option<PathBuf>,
    container_id: String,
    interface: String,
    args: String,
    conf: Value,
    result: RefCell<Option<Value>>,
}

/// VNI 7 over `up0`, unless `keys` say otherwise.
fn network(node: &Path, folder: &Path, pod: &Pod, container_id: &str, keys: Value) -> Network {
    let conf = json!({"cniVersion": "1.1.0", "name": "net", "type": "vxlan", "vni": 7, "master": "up0"});
    Network {
        node: node.to_owned(),
        state_dir: folder.join("state"),
        netns: Some(pod.path()),
        container_id: container_id.to_owned(),
        interface: "net1".to_owned(),
        args: String::new(),
        conf: with(conf, keys),
        result: RefCell::new(None),
    }
}

impl Network {
    /// ADD; its result is the `prevResult` of what follows.
    fn add(&self) -> Result<Value, CniError> {
        let result = self.call(Command::Add)?.unwrap();
        self.result.replace(Some(result.clone()));
        Ok(result)
    }

    fn check(&self) -> Result<(), CniError> {
        self.call(Command::Check).map(drop)
    }

    fn del(&self) -> Result<(), CniError> {
        self.call(Command::Del).map(drop)
    }

    fn call(&self, command: Command) -> Result<Option<Value>, CniError> {
        let mut conf = NetConf(self.conf.as_object().unwrap().clone());
        if let Some(result) = self.result.borrow().clone() {
            conf.insert("prevResult", result);
        }
        let request = Request {
            command,
            container_id: Some(ContainerId::parse(&self.container_id).unwrap()),
            netns: self.netns.clone(),
            interface: Some(InterfaceName::parse(&self.interface).unwrap()),
            args: CniArgs::parse(&self.args).unwrap(),
            path: Vec::new(),
            stdin: conf.to_bytes(),
            version: conf.version().unwrap(),
            conf,
            netns_override: false,
        };
        let node = std::fs::File::open(&self.node).unwrap();
        let state_dir = &self.state_dir;
        let (node, request) = (&node, &request);
        let call = move || {
            nix::sched::setns(node, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            standalone::run("vxlan", request, state_dir)
        };
        std::thread::scope(|scope| scope.spawn(call).join().unwrap())
    }
}

fn with(mut conf: Value, keys: Value) -> Value {
    for (key, value) in keys.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

fn fixed(addresses: &[&str]) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|address| json!({"address": address})).collect();
    json!({"type": "static", "addresses": addresses})
}

/// Whether a datagram of so many bytes that one pod sends to an address reaches the other.
fn hears(from: &Pod, to: &Pod, at: &str, bytes: usize) -> bool {
    let at: IpAddr = at.parse().unwrap();
    let receiver = to.run(|| UdpSocket::bind((at, 0)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    let address = receiver.local_addr().unwrap();
    from.run(|| {
        let any: &str = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        UdpSocket::bind(any).unwrap().send_to(&vec![7; bytes], address).unwrap();
    });
    let mut buffer = vec![0; bytes + 1];
    receiver.recv_from(&mut buffer).is_ok_and(|(length, _)| length == bytes)
}

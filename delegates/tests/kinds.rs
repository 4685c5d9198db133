//! macvlan, ptp and loopback on the running kernel, and the calls of ipvlan and vlan that need no such link: what a pod and
//! a node look like after ADD, what CHECK notices, and that nothing is left after DEL or a failed ADD.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::UdpSocket;
use std::time::Duration;

use common::{Host, Plugin, Pod, addresses, link, on_host, routes, set_down, set_up};
use musubi_delegates::cni::Command;
use musubi_delegates::firewall;
use musubi_delegates::netlink::link::{data_u16, data_u32};
use musubi_delegates::netlink::{LinkChange, Netlink, address};
use serde_json::{Value, json};

fn fixed(addresses: &[(&str, &str)]) -> Value {
    let element = |(address, gateway): &(&str, &str)| match *gateway {
        "" => json!({"address": address}),
        gateway => json!({"address": address, "gateway": gateway}),
    };
    json!({"type": "static", "addresses": addresses.iter().map(element).collect::<Vec<_>>()})
}

// macvlan ---------------------------------------------------------------------------------------------------------------

#[test]
fn macvlan_in_every_mode() {
    on_host("macvlan_in_every_mode", |host| {
        for (mode, number) in
            [(json!(null), 4), (json!("private"), 1), (json!("vepa"), 2), (json!("bridge"), 4), (json!("passthru"), 8)]
        {
            let master = host.add_link("up0");
            let pod = Pod::new();
            let keys = json!({"master": "up0", "mode": mode, "mtu": 1400, "bcqueuelen": 300, "dns": {"nameservers": ["9.9.9.9"]},
                "runtimeConfig": {"mac": "02:11:22:33:44:55"}, "ipam": host.host_local("10.88.0.0/24")});
            let mut plugin = Plugin::new(host, "macvlan", &pod, keys);
            let result = plugin.add().unwrap();
            let expected = json!({"cniVersion": "1.1.0", "dns": {"nameservers": ["9.9.9.9"]},
                "interfaces": [{"mac": "02:11:22:33:44:55", "name": "net1", "sandbox": pod.path()}],
                "ips": [{"address": "10.88.0.2/24", "gateway": "10.88.0.1", "interface": 0}]});
            assert_eq!(result, expected, "{mode}");

            let made = link(&pod.namespace, "net1").unwrap();
            assert!(made.is_kind("macvlan") && made.is_up());
            assert_eq!((made.mtu, made.mac.unwrap().to_string()), (1400, "02:11:22:33:44:55".to_owned()), "{mode}");
            assert_eq!(made.parent, Some(master.index));
            assert_eq!((data_u32(made.data(), 1), data_u32(made.data(), 7)), (Some(number), Some(300)), "{mode}");
            assert_eq!(addresses(&pod.namespace, "net1"), ["10.88.0.2/24"]);
            plugin.check().unwrap();

            plugin.del().unwrap();
            assert!(link(&pod.namespace, "net1").is_none());
            assert_eq!(host.reservations("net"), Vec::<String>::new());
            plugin.del().unwrap();
            host.namespace.netlink.delete_link(master.index, "up0").unwrap();
            std::fs::remove_dir_all(host.folder.path().join("addresses")).unwrap();
        }
    });
}

#[test]
fn macvlan_without_ipam_is_layer_two() {
    on_host("macvlan_without_ipam_is_layer_two", |host| {
        host.add_link("up0");
        let pod = Pod::new();
        let mut plugin = Plugin::new(host, "macvlan", &pod, json!({"master": "up0"}));
        let result = plugin.add().unwrap();
        assert_eq!(result["interfaces"][0]["name"], "net1");
        assert_eq!(result.get("ips"), None);
        assert!(link(&pod.namespace, "net1").unwrap().is_up());
        plugin.check().unwrap();
        set_down(&pod.namespace, "net1");
        assert_eq!(plugin.check().unwrap_err().msg, "interface \"net1\" is down");
    });
}

#[test]
fn the_mac_is_that_of_the_runtime_then_of_the_arguments_then_of_the_configuration() {
    on_host("the_mac_is_that_of_the_runtime_then_of_the_arguments_then_of_the_configuration", |host| {
        host.add_link("up0");
        let (conf, args, runtime) = ("02:00:00:00:00:01", "MAC=02:00:00:00:00:02", json!({"mac": "02:00:00:00:00:03"}));
        for (with_args, with_runtime, expected) in [
            ("", false, conf),
            (args, false, "02:00:00:00:00:02"),
            (args, true, "02:00:00:00:00:03"),
            ("", true, "02:00:00:00:00:03"),
        ] {
            let pod = Pod::new();
            let mut plugin = Plugin::new(host, "macvlan", &pod, json!({"master": "up0", "mac": conf}));
            plugin.args = with_args;
            if with_runtime {
                plugin.set("runtimeConfig", runtime.clone());
            }
            assert_eq!(plugin.add().unwrap()["interfaces"][0]["mac"], expected);
            assert_eq!(link(&pod.namespace, "net1").unwrap().mac.unwrap().to_string(), expected);
            plugin.del().unwrap();
        }
    });
}

#[test]
fn without_a_master_the_default_route_says_which() {
    on_host("without_a_master_the_default_route_says_which", |host| {
        let pod = Pod::new();
        let mut plugin = Plugin::new(host, "macvlan", &pod, json!({}));
        let error = plugin.add().unwrap_err();
        assert_eq!(error.msg, "master: not set, and this node has no default route to take it from");
        assert_eq!(plugin.call(Command::Status).unwrap_err().code, 50);

        host.add_link("other");
        let master = host.add_link("up0");
        default_route(&host.namespace, master.index);
        plugin.call(Command::Status).unwrap();
        plugin.add().unwrap();
        assert_eq!(link(&pod.namespace, "net1").unwrap().parent, Some(master.index));
        plugin.check().unwrap();
        host.namespace.netlink.delete_link(master.index, "up0").unwrap();
        assert_eq!(plugin.check().unwrap_err().msg, "interface \"net1\" is gone");
        plugin.del().unwrap();
    });
}

fn default_route(namespace: &musubi_delegates::netns::Namespace, index: u32) {
    let any = "0.0.0.0/0".parse().unwrap();
    namespace.netlink.request(musubi_delegates::netlink::route::Route::new(any, None, index).add()).unwrap();
}

#[test]
fn a_master_may_be_in_the_pod() {
    on_host("a_master_may_be_in_the_pod", |host| {
        let pod = Pod::new();
        let keys = json!({"master": "up0", "linkInContainer": true, "ipam": fixed(&[("10.1.0.2/24", "")])});
        let mut plugin = Plugin::new(host, "macvlan", &pod, keys);
        host.add_link("up0");
        assert_eq!(plugin.add().unwrap_err().msg, "in the pod: master: there is no interface \"up0\"");
        let master = common::add_link(&pod.namespace, "up0");
        plugin.add().unwrap();
        let made = link(&pod.namespace, "net1").unwrap();
        assert_eq!((made.parent, made.parent_netns), (Some(master.index), None));
        plugin.check().unwrap();
        plugin.del().unwrap();
        assert!(link(&pod.namespace, "net1").is_none() && link(&pod.namespace, "up0").is_some());
    });
}

/// Kernels up to 6.1 look for a clash of names on the host, too.
#[test]
fn a_name_that_the_host_uses_is_free_in_the_pod() {
    on_host("a_name_that_the_host_uses_is_free_in_the_pod", |host| {
        let own = host.add_link("net1");
        for (plugin_type, keys) in [
            ("macvlan", json!({"master": "net1"})),
            ("ptp", json!({"ipam": fixed(&[("10.1.0.2/24", "10.1.0.1")])})),
            ("bridge", json!({})),
        ] {
            let pod = Pod::new();
            let mut plugin = Plugin::new(host, plugin_type, &pod, keys);
            let result = plugin.add().unwrap();
            let made = result["interfaces"].as_array().unwrap().last().unwrap();
            assert_eq!((&made["name"], &made["sandbox"]), (&json!("net1"), &json!(pod.path())), "{plugin_type}");
            let names: Vec<String> = pod.namespace.netlink.links().unwrap().into_iter().map(|link| link.name).collect();
            assert_eq!(names, ["lo", "net1"], "{plugin_type}");
            plugin.check().unwrap();
            plugin.del().unwrap();
            assert!(link(&pod.namespace, "net1").is_none(), "{plugin_type}");
            assert_eq!(link(&host.namespace, "net1").map(|link| link.index), Some(own.index), "{plugin_type}");
        }
    });
}

#[test]
fn check_without_the_result_of_add_and_del_of_what_was_never_added() {
    on_host("check_without_the_result_of_add_and_del_of_what_was_never_added", |host| {
        host.add_link("up0");
        for (plugin_type, keys) in [
            ("macvlan", json!({"master": "up0", "ipam": host.host_local("10.1.0.0/24")})),
            ("ipvlan", json!({"master": "up0", "ipam": host.host_local("10.1.0.0/24")})),
            ("vlan", json!({"master": "up0", "ipam": host.host_local("10.1.0.0/24")})),
            ("ptp", json!({"ipMasq": true, "ipam": host.host_local("10.1.0.0/24")})),
            ("bridge", json!({"ipMasq": true, "macspoofchk": true, "ipam": host.host_local("10.1.0.0/24")})),
            ("loopback", json!({})),
            ("host-local", json!({"ipam": host.host_local("10.1.0.0/24")})),
        ] {
            let pod = Pod::new();
            let plugin = Plugin::new(host, plugin_type, &pod, keys);
            let error = plugin.check().unwrap_err();
            assert_eq!(
                (error.code, error.msg.as_str()),
                (7, "prevResult: is missing; CHECK compares with the result of ADD"),
                "{plugin_type}"
            );
            plugin.del().unwrap();
        }
        assert!(link(&host.namespace, "cni0").is_none(), "DEL makes no bridge");
    });
}

#[test]
fn a_failed_add_leaves_nothing() {
    on_host("a_failed_add_leaves_nothing", |host| {
        host.add_link("up0");
        let too_far = json!({"type": "static", "addresses": [{"address": "10.1.0.2/24"}], "routes": [{"dst": "10.9.0.0/16", "gw": "10.7.0.1"}]});
        let mut local = host.host_local("10.1.0.0/24");
        local["routes"] = json!([{"dst": "10.9.0.0/16", "gw": "10.7.0.1"}]);
        let cases = [
            (
                "macvlan",
                json!({"master": "up0", "ipam": too_far}),
                "add route 10.9.0.0/16 via 10.7.0.1: Network is unreachable",
            ),
            (
                "macvlan",
                json!({"master": "up0", "ipam": local}),
                "add route 10.9.0.0/16 via 10.7.0.1: Network is unreachable",
            ),
            ("macvlan", json!({"master": "up0", "ipam": fixed(&[])}), "ipam: no address was returned"),
            ("macvlan", json!({"master": "nope"}), "master: there is no interface \"nope\""),
            (
                "macvlan",
                json!({"master": "up0", "mtu": 9000}),
                "mtu: 9000 is more than master \"up0\" carries; accepted are 0 and 68 to 1500",
            ),
            (
                "macvlan",
                json!({"master": "up0", "cniVersion": "0.2.0"}),
                "a result without an address cannot be written as CNI 0.2.0",
            ),
            (
                "ptp",
                json!({"ipMasq": true, "ipam": fixed(&[("10.1.0.2/24", "")])}),
                "ipam: address 10.1.0.2/24 came without a gateway, which ptp needs",
            ),
            ("ptp", json!({"ipMasq": true, "ipam": fixed(&[])}), "ipam: no address was returned"),
        ];
        let before: Vec<String> = host.namespace.netlink.links().unwrap().into_iter().map(|link| link.name).collect();
        for (plugin_type, keys, problem) in cases {
            let pod = Pod::new();
            let mut plugin = Plugin::new(host, plugin_type, &pod, keys.clone());
            let error = plugin.add().unwrap_err();
            assert!(error.msg.contains(problem), "{keys}: {error}");
            assert_eq!(pod.namespace.netlink.links().unwrap().len(), 1, "{keys}: only lo");
            let after: Vec<String> =
                host.namespace.netlink.links().unwrap().into_iter().map(|link| link.name).collect();
            assert_eq!(after, before, "{keys}");
            assert_eq!(host.reservations("net"), Vec::<String>::new(), "{keys}");
            assert_eq!(masqueraded(), 0, "{keys}");
            plugin.del().unwrap();
        }
    });
}

#[test]
fn an_interface_that_exists_is_left_alone() {
    on_host("an_interface_that_exists_is_left_alone", |host| {
        host.add_link("up0");
        for (plugin_type, keys) in
            [("macvlan", json!({"master": "up0"})), ("ptp", json!({"ipam": fixed(&[("10.1.0.2/24", "10.1.0.1")])}))]
        {
            let pod = Pod::new();
            let present = common::add_link(&pod.namespace, "net1");
            let mut plugin = Plugin::new(host, plugin_type, &pod, keys);
            assert_eq!(plugin.add().unwrap_err().msg, "interface \"net1\" already exists in the pod");
            assert_eq!(link(&pod.namespace, "net1").map(|link| link.index), Some(present.index));
        }
    });
}

#[test]
fn check_notices_what_another_changed() {
    on_host("check_notices_what_another_changed", |host| {
        host.add_link("up0");
        host.add_link("up1");
        let pod = Pod::new();
        let mut ipam = fixed(&[("10.1.0.2/24", "10.1.0.1"), ("fd01::2/64", "")]);
        ipam["routes"] = json!([{"dst": "10.2.0.0/16"}]);
        let mut plugin = Plugin::new(host, "macvlan", &pod, json!({"master": "up0", "ipam": ipam}));
        plugin.add().unwrap();
        plugin.check().unwrap();

        plugin.set("mode", "private");
        assert_eq!(plugin.check().unwrap_err().msg, "interface \"net1\" is not in mode private any more");
        plugin.set("mode", "bridge");
        plugin.set("master", "up1");
        assert_eq!(plugin.check().unwrap_err().msg, "interface \"net1\" is not on top of master \"up1\"");
        plugin.set("master", "up0");

        let made = link(&pod.namespace, "net1").unwrap();
        let mac = LinkChange::of(made.index, "test").attr(libc::IFLA_ADDRESS, [2, 0, 0, 0, 0, 9]);
        pod.namespace.netlink.request(mac.request()).unwrap();
        let expected = format!("interface \"net1\" has MAC 02:00:00:00:00:09, not {}", made.mac.unwrap());
        assert_eq!(plugin.check().unwrap_err().msg, expected);
        let mac = LinkChange::of(made.index, "test").attr(libc::IFLA_ADDRESS, made.mac.unwrap());
        pod.namespace.netlink.request(mac.request()).unwrap();

        let route = pod
            .namespace
            .netlink
            .routes()
            .unwrap()
            .into_iter()
            .find(|r| r.destination.to_string() == "10.2.0.0/16")
            .unwrap();
        pod.namespace.netlink.request(route.remove()).unwrap();
        assert_eq!(plugin.check().unwrap_err().msg, "interface \"net1\" has lost its route to 10.2.0.0/16");
        pod.namespace.netlink.request(route.add()).unwrap();
        plugin.check().unwrap();

        pod.namespace.netlink.request(address::remove(made.index, "fd01::2/64".parse().unwrap())).unwrap();
        assert_eq!(plugin.check().unwrap_err().msg, "interface \"net1\" has lost address fd01::2/64");
    });
}

// ipvlan and vlan -------------------------------------------------------------------------------------------------------

/// Whether the kernel makes links of a kind. Small kernels do not: there the delegate has to say so and leave nothing, and
/// the rest of the test runs in the virtual machine.
fn kernel_has(plugin: &mut Plugin, pod: &Pod, lacking: &str) -> bool {
    match plugin.add() {
        Ok(_) => {
            plugin.check().unwrap();
            plugin.del().unwrap();
            assert!(link(&pod.namespace, "net1").is_none());
            plugin.conf.as_object_mut().unwrap().remove("prevResult");
            true
        }
        Err(error) => {
            assert_eq!(error.msg, lacking);
            assert!(std::env::var_os("MUSUBI_VM").is_none(), "the virtual machine's kernel has all kinds: {error}");
            assert!(link(&pod.namespace, "net1").is_none());
            plugin.del().unwrap();
            false
        }
    }
}

#[test]
fn a_vlan_reaches_the_same_vlan_alone() {
    on_host("a_vlan_reaches_the_same_vlan_alone", |host| {
        let master = host.add_link("up0");
        let pods = [Pod::new(), Pod::new()];
        let keys = |master, id, ip| json!({"master": master, "vlanId": id, "mtu": 1400, "ipam": fixed(&[(ip, "")])});
        let mut plugin = Plugin::new(host, "vlan", &pods[0], keys("up0", 7, "10.1.0.2/24"));
        if !kernel_has(&mut plugin, &pods[0], "the kernel lacks 802.1q VLAN interfaces (module 8021q)") {
            return;
        }
        let result = plugin.add().unwrap();
        let made = link(&pods[0].namespace, "net1").unwrap();
        assert!(made.is_kind("vlan") && made.is_up());
        assert_eq!((made.mtu, made.parent, data_u16(made.data(), 1)), (1400, Some(master.index), Some(7)));
        assert_eq!(
            result["interfaces"],
            json!([{"mac": master.mac.unwrap().to_string(), "name": "net1", "sandbox": pods[0].path()}])
        );

        let mut same =
            Plugin { container_id: "c2", ..Plugin::new(host, "vlan", &pods[1], keys("up0", 7, "10.1.0.3/24")) };
        let error = same.add().unwrap_err();
        assert!(error.details.contains("a VLAN of it can be given to one pod at a time"), "{error}");

        let mut peer =
            Plugin { container_id: "c2", ..Plugin::new(host, "vlan", &pods[1], keys("up0-peer", 7, "10.1.0.3/24")) };
        peer.add().unwrap();
        let server = pods[1].run(|| UdpSocket::bind("10.1.0.3:5000").unwrap());
        assert_arrives(&server, || pods[0].run(|| send("0.0.0.0:0", "10.1.0.3:5000")));

        plugin.check().unwrap();
        plugin.set("vlanId", 8);
        assert_eq!(plugin.check().unwrap_err().msg, "interface \"net1\" has VLAN 7, not 8");
        plugin.set("vlanId", 7);
        plugin.set("mtu", 1300);
        assert_eq!(plugin.check().unwrap_err().msg, "interface \"net1\" has MTU 1400, not 1300");
        host.namespace.netlink.delete_link(master.index, "up0").unwrap();
        assert_eq!(plugin.check().unwrap_err().msg, "interface \"net1\" is gone");
        plugin.del().unwrap();
        peer.del().unwrap();
    });
}

#[test]
fn a_vlan_needs_a_master_that_is_up_and_large_enough() {
    on_host("a_vlan_needs_a_master_that_is_up_and_large_enough", |host| {
        host.add_link("up0");
        let pod = Pod::new();
        let keys = json!({"master": "up0", "vlanId": 7, "mtu": 1501, "ipam": fixed(&[("10.1.0.2/24", "")])});
        let mut plugin = Plugin::new(host, "vlan", &pod, keys);
        let error = plugin.add().unwrap_err();
        assert_eq!(error.msg, "mtu: 1501 is more than master \"up0\" carries; accepted are 0 and 68 to 1500");
        plugin.set("mtu", 0);
        set_down(&host.namespace, "up0");
        assert_eq!(plugin.add().unwrap_err().msg, "master: interface \"up0\" is down");
    });
}

#[test]
fn ipvlan_in_every_mode() {
    on_host("ipvlan_in_every_mode", |host| {
        for (mode, number) in [("l2", 0), ("l3", 1), ("l3s", 2)] {
            let master = host.add_link("up0");
            let pods = [Pod::new(), Pod::new()];
            let keys = |ip| json!({"master": "up0", "mode": mode, "ipam": fixed(&[(ip, "")])});
            let mut plugin = Plugin::new(host, "ipvlan", &pods[0], keys("10.1.0.2/24"));
            if !kernel_has(&mut plugin, &pods[0], "the kernel lacks ipvlan interfaces (module ipvlan)") {
                return;
            }
            plugin.add().unwrap();
            let made = link(&pods[0].namespace, "net1").unwrap();
            assert!(made.is_kind("ipvlan") && made.is_up());
            assert_eq!(
                (made.mac, made.parent, data_u16(made.data(), 1)),
                (master.mac, Some(master.index), Some(number))
            );
            let mut other = Plugin { container_id: "c2", ..Plugin::new(host, "ipvlan", &pods[1], keys("10.1.0.3/24")) };
            other.add().unwrap();
            let server = pods[1].run(|| UdpSocket::bind("10.1.0.3:5000").unwrap());
            assert_arrives(&server, || pods[0].run(|| send("0.0.0.0:0", "10.1.0.3:5000")));
            plugin.check().unwrap();
            plugin.set("mode", if mode == "l2" { "l3" } else { "l2" });
            assert!(plugin.check().unwrap_err().msg.contains("is not in mode l"));
            host.namespace.netlink.delete_link(master.index, "up0").unwrap();
            plugin.del().unwrap();
            other.del().unwrap();
        }
    });
}

#[test]
fn ipvlan_takes_master_and_addresses_from_the_plugin_before() {
    on_host("ipvlan_takes_master_and_addresses_from_the_plugin_before", |host| {
        let master = host.add_link("up0");
        let pod = Pod::new();
        let previous = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "up0"}],
            "ips": [{"address": "10.1.0.2/24", "interface": 0}], "routes": [{"dst": "10.2.0.0/16", "gw": "10.1.0.1"}]});
        let mut plugin = Plugin::new(host, "ipvlan", &pod, json!({}));
        let refusals = [
            (
                json!({"interfaces": [{"name": "up0"}]}),
                "ipam: is missing, and the plugin before (prevResult) gave no address",
            ),
            (
                json!({"interfaces": [{"name": "up0"}, {"name": "up1"}], "ips": previous["ips"]}),
                "master: not set, and the plugin before (prevResult) did not make a single interface",
            ),
        ];
        for (previous, expected) in refusals {
            plugin.set("prevResult", previous);
            assert_eq!(plugin.add().unwrap_err().msg, expected);
        }
        plugin.set("prevResult", previous.clone());
        if !kernel_has(&mut plugin, &pod, "the kernel lacks ipvlan interfaces (module ipvlan)") {
            return;
        }
        plugin.set("prevResult", previous.clone());
        let result = plugin.add().unwrap();
        assert_eq!(
            result["interfaces"],
            json!([{"mac": master.mac.unwrap().to_string(), "name": "net1", "sandbox": pod.path()}])
        );
        assert_eq!((&result["ips"], &result["routes"]), (&previous["ips"], &previous["routes"]));
        assert_eq!(addresses(&pod.namespace, "net1"), ["10.1.0.2/24"]);
        assert_eq!(routes(&pod.namespace, "net1"), ["10.1.0.0/24 from 10.1.0.2", "10.2.0.0/16 via 10.1.0.1"]);
        plugin.check().unwrap();
        plugin.del().unwrap();
    });
}

// ptp -------------------------------------------------------------------------------------------------------------------

fn masqueraded() -> usize {
    firewall::masqueraded_owners(&Netlink::netfilter().unwrap()).unwrap().len()
}

fn ptp_ipam(host: &Host) -> Value {
    json!({"type": "host-local", "dataDir": host.folder.path().join("addresses"), "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "ranges": [[{"subnet": "10.99.0.0/24", "rangeStart": "10.99.0.10"}], [{"subnet": "fd99::/64", "rangeStart": "fd99::10"}]]})
}

#[test]
fn ptp_routes_between_host_and_pod() {
    on_host("ptp_routes_between_host_and_pod", |host| {
        let pod = Pod::new();
        let mut ipam = ptp_ipam(host);
        ipam["routes"] =
            json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.50.0.0/16", "gw": "10.60.0.1", "mtu": 1300}]);
        let keys = json!({"ipMasq": true, "mtu": 1450, "ipam": ipam});
        let mut plugin = Plugin::new(host, "ptp", &pod, keys);
        let result = plugin.add().unwrap();
        let outside = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        assert_eq!(result["interfaces"][0].get("sandbox"), None);
        assert_eq!(result["interfaces"][1]["sandbox"], json!(pod.path()));
        let ips = json!([{"address": "10.99.0.10/24", "gateway": "10.99.0.1", "interface": 1},
            {"address": "fd99::10/64", "gateway": "fd99::1", "interface": 1}]);
        assert_eq!(result["ips"], ips);
        assert_eq!(result["routes"], ipam["routes"]);

        let expected = [
            "0.0.0.0/0 via 10.99.0.1",
            "10.50.0.0/16 via 10.60.0.1",
            "10.99.0.0/24 via 10.99.0.1 from 10.99.0.10",
            "10.99.0.1/32 from 10.99.0.10",
            "::/0 via fd99::1",
            "fd99::/64 via fd99::1 from fd99::10",
            "fd99::1/128 from fd99::10",
        ];
        assert_eq!(routes(&pod.namespace, "net1"), expected);
        assert_eq!(addresses(&pod.namespace, "net1"), ["10.99.0.10/24", "fd99::10/64"]);
        assert_eq!(addresses(&host.namespace, &outside), ["10.99.0.1/32", "fd99::1/128"]);
        assert_eq!(routes(&host.namespace, &outside), ["10.99.0.10/32", "fd99::1/128", "fd99::10/128"]);
        for (namespace, name) in [(&host.namespace, outside.as_str()), (&pod.namespace, "net1")] {
            assert_eq!(link(namespace, name).unwrap().mtu, 1450);
        }
        assert_eq!(masqueraded(), 1);
        plugin.check().unwrap();

        let other_pod = Pod::new();
        let mut other = Plugin::new(host, "ptp", &other_pod, json!({"ipam": ptp_ipam(host)}));
        other.container_id = "c2";
        other.add().unwrap();
        for (to, from) in [("10.99.0.1:5000", "0.0.0.0:0"), ("[fd99::1]:5000", "[::]:0")] {
            let server = UdpSocket::bind(to).unwrap();
            assert_arrives(&server, || pod.run(|| send(from, to)));
        }
        for (to, from) in [("10.99.0.11:5000", "0.0.0.0:0"), ("[fd99::11]:5000", "[::]:0")] {
            let server = other_pod.run(|| UdpSocket::bind(to).unwrap());
            assert_arrives(&server, || pod.run(|| send(from, to)));
        }

        plugin.del().unwrap();
        assert!(link(&pod.namespace, "net1").is_none() && link(&host.namespace, &outside).is_none());
        assert_eq!(
            (host.reservations("net"), masqueraded()),
            (vec!["10.99.0.11".to_owned(), "fd99::11".to_owned()], 0)
        );
        plugin.del().unwrap();
        other.check().unwrap();
    });
}

fn send(from: &str, to: &str) {
    UdpSocket::bind(from).unwrap().send_to(b"hello", to).unwrap();
}

/// The first packet may wait for a neighbour to be found, longer than any other.
fn assert_arrives(server: &UdpSocket, send: impl Fn()) {
    server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut buffer = [0; 16];
    for _ in 0..6 {
        send();
        if server.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == b"hello") {
            return;
        }
    }
    panic!("no packet arrived at {:?}", server.local_addr());
}

#[test]
fn ptp_check_looks_at_both_ends() {
    on_host("ptp_check_looks_at_both_ends", |host| {
        let pod = Pod::new();
        let mut plugin = Plugin::new(host, "ptp", &pod, json!({"ipMasq": true, "ipam": ptp_ipam(host)}));
        let outside = plugin.add().unwrap()["interfaces"][0]["name"].as_str().unwrap().to_owned();
        let find = |namespace: &musubi_delegates::netns::Namespace, net: &str| {
            namespace
                .netlink
                .routes()
                .unwrap()
                .into_iter()
                .find(|r| r.destination.to_string() == net && r.table == 254)
                .unwrap()
        };
        let cases = [
            (&pod.namespace, "10.99.0.0/24", "interface \"net1\" has lost its route to 10.99.0.0/24".to_owned()),
            (
                &host.namespace,
                "10.99.0.10/32",
                format!("the host has lost its route to 10.99.0.10/32 by \"{outside}\""),
            ),
        ];
        for (namespace, net, expected) in cases {
            let route = find(namespace, net);
            namespace.netlink.request(route.remove()).unwrap();
            assert_eq!(plugin.check().unwrap_err().msg, expected);
            namespace.netlink.request(route.add()).unwrap();
        }
        plugin.check().unwrap();
        let nft = Netlink::netfilter().unwrap();
        for owner in firewall::masqueraded_owners(&nft).unwrap() {
            firewall::unmasquerade(&nft, &owner).unwrap();
        }
        assert_eq!(
            plugin.check().unwrap_err().msg,
            "the masquerade rules of interface \"net1\" are gone from nf_tables"
        );
        set_down(&host.namespace, &outside);
        assert!(plugin.check().is_err());
    });
}

// loopback --------------------------------------------------------------------------------------------------------------

#[test]
fn loopback_comes_up_and_goes_down() {
    on_host("loopback_comes_up_and_goes_down", |host| {
        let pod = Pod::new();
        let mut plugin = Plugin::new(host, "loopback", &pod, json!({}));
        plugin.interface = "eth7";
        let expected = json!({"cniVersion": "1.1.0", "interfaces": [{"mac": "00:00:00:00:00:00", "name": "lo", "sandbox": pod.path()}],
            "ips": [{"address": "127.0.0.1/8", "interface": 0}, {"address": "::1/128", "interface": 0}]});
        assert_eq!(plugin.add().unwrap(), expected);
        plugin.check().unwrap();
        plugin.del().unwrap();
        assert!(!link(&pod.namespace, "lo").unwrap().is_up());
        assert_eq!(plugin.check().unwrap_err().msg, "interface \"lo\" is down");
    });
}

#[test]
fn loopback_passes_the_previous_result_on() {
    on_host("loopback_passes_the_previous_result_on", |host| {
        let pod = Pod::new();
        let previous = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x"}]});
        let mut plugin = Plugin::new(host, "loopback", &pod, json!({"prevResult": previous}));
        assert_eq!(plugin.add().unwrap(), previous);
        assert!(link(&pod.namespace, "lo").unwrap().is_up());
    });
}

#[test]
fn loopback_refuses_another_address_and_leaves_lo_as_it_was() {
    on_host("loopback_refuses_another_address_and_leaves_lo_as_it_was", |host| {
        for up in [false, true] {
            let pod = Pod::new();
            if up {
                set_up(&pod.namespace, "lo");
            }
            pod.namespace.netlink.request(address::add(1, "10.0.0.1/8".parse().unwrap(), false)).unwrap();
            let mut plugin = Plugin::new(host, "loopback", &pod, json!({}));
            assert_eq!(plugin.add().unwrap_err().msg, "loopback interface found with non-loopback address 10.0.0.1");
            assert_eq!(link(&pod.namespace, "lo").unwrap().is_up(), up);
        }
    });
}

// DEL, whatever is gone -------------------------------------------------------------------------------------------------

#[test]
fn del_needs_neither_master_nor_default_route() {
    on_host("del_needs_neither_master_nor_default_route", |host| {
        let pod = Pod::new();
        for (plugin_type, keys) in [
            ("vlan", json!({"master": "gone", "vlanId": 5})),
            ("ipvlan", json!({})),
            ("ipvlan", json!({"master": "gone"})),
            ("macvlan", json!({"master": "gone"})),
        ] {
            reserve(host, "net", "c1");
            let mut plugin = Plugin::new(host, plugin_type, &pod, keys);
            plugin.set("ipam", host.host_local("10.5.0.0/24"));
            plugin.del().unwrap();
            assert_eq!(host.reservations("net"), Vec::<String>::new(), "{plugin_type}");
        }
    });
}

/// Puts a reservation into the folder, as the reference plugin writes it.
fn reserve(host: &Host, network: &str, container_id: &str) {
    let folder = host.folder.path().join("addresses").join(network);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("10.5.0.9"), format!("{container_id}\r\nnet1")).unwrap();
}

#[test]
fn del_after_the_namespace_frees_addresses_and_rules() {
    on_host("del_after_the_namespace_frees_addresses_and_rules", |host| {
        let gone = host.folder.path().join("gone");
        let plain = host.folder.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        for netns in [None, Some(gone), Some(plain)] {
            let pod = Pod::new();
            let mut plugin = Plugin::new(host, "ptp", &pod, json!({"ipMasq": true, "ipam": ptp_ipam(host)}));
            plugin.add().unwrap();
            assert_eq!((host.reservations("net").len(), masqueraded()), (2, 1));
            drop(pod);
            plugin.netns = netns;
            plugin.del().unwrap();
            assert_eq!((host.reservations("net").len(), masqueraded()), (0, 0));
        }
    });
}

#[test]
fn del_takes_away_what_a_configuration_gone_wrong_made() {
    on_host("del_takes_away_what_a_configuration_gone_wrong_made", |host| {
        host.add_link("up0");
        let cases = [
            ("macvlan", json!({"master": "up0", "ipam": host.host_local("10.5.0.0/24")}), "mode", json!("sideways")),
            (
                "macvlan",
                json!({"master": "up0", "ipam": host.host_local("10.5.0.0/24")}),
                "prevResult",
                json!({"ips": 7}),
            ),
            ("ptp", json!({"ipMasq": true, "ipam": ptp_ipam(host)}), "mtu", json!("big")),
        ];
        for (plugin_type, keys, key, wrong) in cases {
            let pod = Pod::new();
            let mut plugin = Plugin::new(host, plugin_type, &pod, keys);
            plugin.add().unwrap();
            plugin.set(key, wrong);
            plugin.del().unwrap();
            assert!(link(&pod.namespace, "net1").is_none(), "{plugin_type} {key}");
            assert_eq!((host.reservations("net").len(), masqueraded()), (0, 0), "{plugin_type} {key}");
        }
    });
}

// one type on its own ---------------------------------------------------------------------------------------------------

#[test]
fn unknown_arguments_are_refused_by_who_reads_arguments() {
    on_host("unknown_arguments_are_refused_by_who_reads_arguments", |host| {
        host.add_link("up0");
        let address = fixed(&[("10.1.0.2/24", "10.1.0.1")]);
        let cases = [
            ("macvlan", json!(null), "K8S_POD_NAME=web", Some("CNI_ARGS: unknown keys \"K8S_POD_NAME\" (known: MAC)")),
            ("macvlan", json!(null), "IgnoreUnknown=1;K8S_POD_NAME=web", None),
            ("macvlan", address.clone(), "IP=10.1.0.9/24", None),
            ("macvlan", address.clone(), "POD=x", Some("CNI_ARGS: unknown keys \"POD\" (known: MAC, IP, GATEWAY)")),
            ("loopback", json!(null), "K8S_POD_NAME=web", None),
            (
                "static",
                address.clone(),
                "MAC=02:00:00:00:00:01",
                Some("CNI_ARGS: unknown keys \"MAC\" (known: IP, GATEWAY)"),
            ),
        ];
        for (plugin_type, ipam, args, refusal) in cases {
            let pod = Pod::new();
            let mut plugin = Plugin::new(host, plugin_type, &pod, json!({"master": "up0", "ipam": ipam}));
            plugin.args = args;
            match (plugin.add(), refusal) {
                (Ok(_), None) => plugin.del().unwrap(),
                (Err(error), Some(refusal)) => assert_eq!((error.code, error.msg.as_str()), (4, refusal)),
                (outcome, _) => panic!("{plugin_type} {args}: {outcome:?}"),
            }
        }
    });
}

#[test]
fn ipam_types_on_their_own_answer_in_every_version() {
    on_host("ipam_types_on_their_own_answer_in_every_version", |host| {
        let cases = [
            ("0.2.0", json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.2/24", "gateway": "10.1.0.1"}, "dns": {}})),
            (
                "0.3.1",
                json!({"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.1.0.2/24", "gateway": "10.1.0.1"}], "dns": {}}),
            ),
            ("1.1.0", json!({"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}]})),
        ];
        for (version, expected) in cases {
            for (plugin_type, ipam) in
                [("host-local", host.host_local("10.1.0.0/24")), ("static", fixed(&[("10.1.0.2/24", "10.1.0.1")]))]
            {
                let pod = Pod::new();
                let mut plugin = Plugin::new(host, plugin_type, &pod, json!({"cniVersion": version, "ipam": ipam}));
                assert_eq!(plugin.add().unwrap(), expected, "{plugin_type} {version}");
                plugin.check().unwrap();
                plugin.call(Command::Status).unwrap();
                plugin.del().unwrap();
                plugin.del().unwrap();
            }
            std::fs::remove_dir_all(host.folder.path().join("addresses")).unwrap();
        }
    });
}

#[test]
fn gc_frees_addresses_and_rules_of_attachments_that_are_not_valid() {
    on_host("gc_frees_addresses_and_rules_of_attachments_that_are_not_valid", |host| {
        let pod = Pod::new();
        let mut plugin = Plugin::new(host, "ptp", &pod, json!({"ipMasq": true, "ipam": ptp_ipam(host)}));
        plugin.add().unwrap();
        plugin.set("cni.dev/valid-attachments", json!([{"containerID": "c1", "ifname": "net1"}]));
        plugin.call(Command::Gc).unwrap();
        assert_eq!((host.reservations("net").len(), masqueraded()), (2, 1));
        plugin.set("cni.dev/valid-attachments", json!([]));
        plugin.call(Command::Gc).unwrap();
        assert_eq!((host.reservations("net").len(), masqueraded()), (0, 0));
    });
}

// bridge ----------------------------------------------------------------------------------------------------------------

#[test]
fn bridge_connects_pods_to_each_other_and_to_their_gateway() {
    on_host("bridge_connects_pods_to_each_other_and_to_their_gateway", |host| {
        let keys = json!({"bridge": "br9", "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true, "mtu": 1400,
            "ipam": {"type": "host-local", "dataDir": host.folder.path().join("addresses"),
                "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]}});
        let pods = [Pod::new(), Pod::new()];
        let mut plugins = ["c1", "c2"].map(|container_id| {
            let pod = &pods[usize::from(container_id == "c2")];
            Plugin { container_id, ..Plugin::new(host, "bridge", pod, keys.clone()) }
        });
        let result = plugins[0].add().unwrap();
        plugins[1].add().unwrap();
        let bridge = link(&host.namespace, "br9").unwrap();
        let names = [0, 1, 2].map(|i| result["interfaces"][i]["name"].as_str().unwrap().to_owned());
        assert_eq!((names[0].as_str(), names[2].as_str()), ("br9", "net1"));
        assert_eq!(link(&host.namespace, &names[1]).unwrap().master, Some(bridge.index));
        let ips = json!([{"address": "10.77.0.2/24", "gateway": "10.77.0.1", "interface": 2},
            {"address": "fd77::2/64", "gateway": "fd77::1", "interface": 2}]);
        assert_eq!(result["ips"], ips);
        assert_eq!(
            result["routes"],
            json!([{"dst": "0.0.0.0/0", "gw": "10.77.0.1"}, {"dst": "::/0", "gw": "fd77::1"}])
        );
        assert_eq!(addresses(&host.namespace, "br9"), ["10.77.0.1/24", "fd77::1/64"]);
        assert_eq!((bridge.mtu, masqueraded()), (1400, 2));
        for (to, from, pod) in [
            ("10.77.0.1:5000", "0.0.0.0:0", None),
            ("10.77.0.3:5000", "0.0.0.0:0", Some(&pods[1])),
            ("[fd77::3]:5000", "[::]:0", Some(&pods[1])),
        ] {
            let bind = || UdpSocket::bind(to).unwrap();
            let server = pod.map_or_else(bind, |pod| pod.run(bind));
            assert_arrives(&server, || pods[0].run(|| send(from, to)));
        }
        let gateway = "10.77.0.1/24".parse().unwrap();
        host.namespace.netlink.request(address::remove(bridge.index, gateway)).unwrap();
        assert_eq!(plugins[0].check().unwrap_err().msg, "bridge \"br9\" has lost the gateway address 10.77.0.1");
        host.namespace.netlink.request(address::add(bridge.index, gateway, false)).unwrap();
        for plugin in &plugins {
            plugin.check().unwrap();
            plugin.del().unwrap();
            plugin.del().unwrap();
        }
        let after = link(&host.namespace, "br9").unwrap();
        assert_eq!(after.mac, bridge.mac);
        assert_eq!((host.reservations("net").len(), masqueraded(), link(&host.namespace, &names[1])), (0, 0, None));
    });
}

#[test]
fn a_bridge_as_layer_two_with_the_mac_of_whoever_asks_last() {
    on_host("a_bridge_as_layer_two_with_the_mac_of_whoever_asks_last", |host| {
        let pod = Pod::new();
        let keys = json!({"args": {"cni": {"mac": "02:00:00:00:00:02"}}, "portIsolation": true, "macspoofchk": true});
        let mut plugin = Plugin::new(host, "bridge", &pod, keys);
        plugin.args = "MAC=02:00:00:00:00:01";
        let result = plugin.add().unwrap();
        assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:02");
        assert_eq!((result["interfaces"][0]["name"].as_str(), result.get("ips")), (Some("cni0"), None));
        plugin.check().unwrap();
        let nft = Netlink::netfilter().unwrap();
        assert_eq!(firewall::spoof_checked_owners(&nft).unwrap().len(), 1);
        plugin.set("portIsolation", false);
        let outside = result["interfaces"][1]["name"].as_str().unwrap();
        assert_eq!(plugin.check().unwrap_err().msg, format!("isolation of bridge port \"{outside}\" is on"));
        plugin.netns = None;
        drop(pod);
        plugin.del().unwrap();
        assert_eq!(firewall::spoof_checked_owners(&nft).unwrap().len(), 0);
    });
}

#[test]
fn a_bridge_keeps_vlans_apart_and_has_a_gateway_in_each() {
    on_host("a_bridge_keeps_vlans_apart_and_has_a_gateway_in_each", |host| {
        let pods = [Pod::new(), Pod::new(), Pod::new()];
        let keys = |vlan: u16, ip: &str| json!({"bridge": "br9", "vlan": vlan, "isGateway": true, "ipam": fixed(&[(ip, "10.1.0.1")])});
        let mut first = Plugin::new(host, "bridge", &pods[0], keys(100, "10.1.0.2/24"));
        let result = match first.add() {
            Ok(result) => result,
            Err(error) => {
                assert!(error.details.contains("this kernel's bridge cannot filter VLANs"), "{error}");
                assert!(std::env::var_os("MUSUBI_VM").is_none(), "the virtual machine's kernel has all kinds: {error}");
                return;
            }
        };
        assert_eq!(result["interfaces"][3]["name"], "br9.100");
        assert_eq!(addresses(&host.namespace, "br9.100"), ["10.1.0.1/24"]);
        first.check().unwrap();
        set_down(&host.namespace, "br9.100");
        assert_eq!(first.check().unwrap_err().msg, "interface \"br9.100\" is gone or down");
        set_up(&host.namespace, "br9.100");
        let mut second =
            Plugin { container_id: "c2", ..Plugin::new(host, "bridge", &pods[1], keys(100, "10.1.0.3/24")) };
        second.add().unwrap();
        let mut stranger =
            Plugin { container_id: "c3", ..Plugin::new(host, "bridge", &pods[2], keys(200, "10.1.0.4/24")) };
        stranger.set("isGateway", false);
        stranger.add().unwrap();
        let gateway = UdpSocket::bind("10.1.0.1:5000").unwrap();
        assert_arrives(&gateway, || pods[0].run(|| send("0.0.0.0:0", "10.1.0.1:5000")));
        let server = pods[1].run(|| UdpSocket::bind("10.1.0.3:5000").unwrap());
        assert_arrives(&server, || pods[0].run(|| send("0.0.0.0:0", "10.1.0.3:5000")));
        pods[2].run(|| send("0.0.0.0:0", "10.1.0.3:5000"));
        server.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        while let Ok((_, from)) = server.recv_from(&mut [0; 16]) {
            assert_ne!(from.ip().to_string(), "10.1.0.4", "a packet crossed from VLAN 200 to VLAN 100");
        }

        let trunk = [json!({"minID": 101, "maxID": 103}), json!({"id": 7})];
        let pod = Pod::new();
        let mut member = Plugin::new(host, "bridge", &pod, json!({"bridge": "br9", "vlanTrunk": trunk}));
        member.container_id = "c4";
        let outside = member.add().unwrap()["interfaces"][1]["name"].as_str().unwrap().to_owned();
        member.check().unwrap();
        let index = link(&host.namespace, &outside).unwrap().index;
        let mut ids: Vec<(u16, bool)> = Vec::new();
        for vlan in host.namespace.netlink.vlans(index).unwrap() {
            ids.extend((vlan.first..=vlan.last).map(|id| (id, vlan.pvid)));
        }
        assert_eq!(ids, [(1, true), (7, false), (101, false), (102, false), (103, false)]);
        for plugin in [&first, &second, &stranger, &member] {
            plugin.del().unwrap();
        }
    });
}

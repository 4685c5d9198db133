//! `macvlan`, `ptp` and `loopback`, each of their keys.

use ipnet::IpNet;
use musubi_delegates::netlink::address;
use musubi_delegates::netlink::route::Route;
use serde_json::{Value, json};

use super::compare::{Case, compare};
use super::stage::{Stage, dual_stack, extend, host_local, small_pool};

/// All tables of this file.
pub const TABLES: &[fn() -> Vec<Case>] = &[
    macvlan_modes_and_addresses_cases,
    macvlan_macs_cases,
    macvlan_refusals_cases,
    ptp_pairs_cases,
    loopback_cases,
    ipvlan_and_vlan_refusals_cases,
];

fn lan() -> Value {
    host_local("10.7.0.0/24", &json!({}))
}

fn macvlan(what: &str, more: Value) -> Case {
    let mut conf = json!({"master": "up0"});
    extend(&mut conf, &more);
    Case::new("macvlan", what, conf).on(Stage::uplink)
}

/// An uplink that the default route leads out of.
pub fn default_route(stage: &Stage) {
    stage.uplink();
    let host = stage.host();
    let up = host.link_by_name("up0").unwrap().unwrap().index;
    host.request(address::add(up, "172.16.0.2/24".parse::<IpNet>().unwrap(), false)).unwrap();
    let all = "0.0.0.0/0".parse().unwrap();
    host.request(Route::new(all, Some("172.16.0.1".parse().unwrap()), up).add()).unwrap();
}

#[test]
fn macvlan_modes_and_addresses() {
    compare(macvlan_modes_and_addresses_cases());
}

fn macvlan_modes_and_addresses_cases() -> Vec<Case> {
    vec![
        macvlan("layer 2", json!({})).thorough(),
        macvlan("mode bridge", json!({"mode": "bridge", "ipam": lan()})).thorough(),
        macvlan("mode private", json!({"mode": "private", "ipam": lan()})),
        macvlan("mode vepa", json!({"mode": "vepa", "ipam": lan()})),
        macvlan("mode passthru", json!({"mode": "passthru", "ipam": lan()})),
        macvlan("dual stack", json!({"ipam": dual_stack(&json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}))}))
            .thorough(),
        macvlan("MTU", json!({"mtu": 1400, "ipam": lan()})),
        macvlan("dns", json!({"dns": {"nameservers": ["9.9.9.9"]}, "ipam": lan()})),
        Case::new("macvlan", "master by default route", json!({"ipam": lan()})).on(default_route),
        macvlan(
            "static and routes",
            json!({"ipam": {"type": "static", "addresses": [{"address": "10.8.0.5/24", "gateway": "10.8.0.1"}],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.8.0.9"}], "dns": {"domain": "a.test"}}}),
        ),
    ]
}

#[test]
fn macvlan_macs() {
    compare(macvlan_macs_cases());
}

fn macvlan_macs_cases() -> Vec<Case> {
    vec![
        macvlan("MAC of CNI_ARGS", json!({})).args("MAC=02:11:22:33:44:01"),
        macvlan("MAC of the configuration", json!({"mac": "02:11:22:33:44:02"})),
        macvlan(
            "MAC of runtimeConfig",
            json!({"mac": "02:11:22:33:44:02", "runtimeConfig": {"mac": "02:11:22:33:44:03"}}),
        ),
    ]
}

#[test]
fn macvlan_refusals() {
    compare(macvlan_refusals_cases());
}

fn macvlan_refusals_cases() -> Vec<Case> {
    let many =
        json!({"ipam": host_local("10.7.0.0/24", &json!({"routes": [{"dst": "10.50.0.0/16", "gw": "10.99.0.1"}]}))});
    vec![
        macvlan("no such master", json!({"master": "nowhere", "ipam": lan()})).refused(100),
        Case::new("macvlan", "no default route", json!({"ipam": lan()})).on(Stage::uplink).refused(100),
        macvlan("no such mode", json!({"mode": "fast", "ipam": lan()})).refused(7),
        macvlan("MTU over the master's", json!({"mtu": 1600, "ipam": lan()})).refused(7),
        macvlan("MTU below zero", json!({"mtu": -1, "ipam": lan()})).refused(7),
        macvlan("pool used up", json!({"ipam": small_pool()}))
            .on(|stage| {
                stage.uplink();
                stage.use_up_pool();
            })
            .refused(100),
        macvlan("interface exists", json!({"ipam": lan()})).interface("lo").refused(100),
        macvlan("route by nobody", many).refused(100),
    ]
}

#[test]
fn ptp_pairs() {
    compare(ptp_pairs_cases());
}

fn ptp_pairs_cases() -> Vec<Case> {
    vec![
        Case::new("ptp", "IPv4", json!({"ipam": lan()})).thorough(),
        Case::new("ptp", "IPv6", json!({"ipam": host_local("fd07::/64", &json!({"routes": [{"dst": "::/0"}]}))})),
        Case::new(
            "ptp",
            "dual stack with default routes",
            json!({"ipam": dual_stack(&json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}))}),
        )
        .thorough(),
        Case::new("ptp", "MTU", json!({"mtu": 1400, "ipam": lan()})),
        Case::new("ptp", "dns", json!({"dns": {"nameservers": ["9.9.9.9"]}, "ipam": lan()})),
        Case::new(
            "ptp",
            "route by another gateway",
            json!({"ipam": host_local("10.7.0.0/24", &json!({"routes": [{"dst": "10.50.0.0/16", "gw": "10.7.0.9"}]}))}),
        ),
        Case::new("ptp", "pool used up", json!({"ipMasq": true, "ipam": small_pool()}))
            .on(Stage::use_up_pool)
            .refused(100),
        Case::new("ptp", "no ipam", json!({})).refused(7),
        Case::new("ptp", "interface exists", json!({"ipam": lan()})).interface("lo").refused(100),
        Case::new("ptp", "no gateway", json!({"ipam": {"type": "static", "addresses": [{"address": "10.8.0.5/24"}]}}))
            .refused(100),
    ]
}

#[test]
fn loopback() {
    compare(loopback_cases());
}

fn loopback_cases() -> Vec<Case> {
    let previous = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}],
        "ips": [{"address": "10.1.0.2/24", "interface": 0}]});
    let foreign = |stage: &Stage| {
        let pod = stage.sandbox.netns.open().netlink;
        let lo = pod.link_by_name("lo").unwrap().unwrap().index;
        pod.request(address::add(lo, "10.1.1.1/32".parse::<IpNet>().unwrap(), false)).unwrap();
    };
    vec![
        Case::new("loopback", "alone", json!({})).interface("lo").thorough(),
        Case::new("loopback", "whatever the interface is called", json!({})).interface("eth7"),
        Case::new("loopback", "after another plugin", json!({"prevResult": previous})).interface("lo"),
        Case::new("loopback", "with an address that is not loopback's", json!({}))
            .interface("lo")
            .on(foreign)
            .refused(100),
    ]
}

#[test]
fn ipvlan_and_vlan_refusals() {
    compare(ipvlan_and_vlan_refusals_cases());
}

/// What is refused before the kernel is asked, so whether or not it has such interfaces. The rest is in the virtual machine.
fn ipvlan_and_vlan_refusals_cases() -> Vec<Case> {
    let conf = |more: Value| {
        let mut conf = json!({"master": "up0"});
        extend(&mut conf, &more);
        conf
    };
    let ipvlan = |what: &str, more: Value| Case::new("ipvlan", what, conf(more)).on(Stage::uplink).refused(7);
    let vlan = |what: &str, more: Value| Case::new("vlan", what, conf(more)).on(Stage::uplink).refused(7);
    vec![
        ipvlan("no ipam", json!({})),
        ipvlan("no such mode", json!({"mode": "l4", "ipam": lan()})),
        vlan("id out of range", json!({"vlanId": 4095, "ipam": lan()})),
        vlan("id below zero", json!({"vlanId": -1, "ipam": lan()})),
        vlan("no master", json!({"master": "", "vlanId": 5, "ipam": lan()})),
        vlan("no ipam", json!({"vlanId": 5})),
    ]
}

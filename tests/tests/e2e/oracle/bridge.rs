//! `bridge`, each of its keys.

use ipnet::IpNet;
use musubi_delegates::netlink::address;
use serde_json::{Value, json};

use super::compare::{Case, compare};
use super::stage::{Stage, dual_stack, extend, host_local, small_pool};

/// All tables of this file.
pub const TABLES: &[fn() -> Vec<Case>] =
    &[layers_two_and_three_cases, switches_cases, routes_and_dns_cases, macs_cases, bridges_that_exist_cases];

fn lan() -> Value {
    host_local("10.7.0.0/24", &json!({}))
}

fn bridge(what: &str, more: Value) -> Case {
    let mut conf = json!({"bridge": "br0"});
    extend(&mut conf, &more);
    Case::new("bridge", what, conf)
}

/// A bridge `br0` that somebody made, with an address.
fn with_address(stage: &Stage, net: &str) {
    stage.bridge("br0");
    let host = stage.host();
    let index = host.link_by_name("br0").unwrap().unwrap().index;
    host.request(address::add(index, net.parse::<IpNet>().unwrap(), false)).unwrap();
}

#[test]
fn layers_two_and_three() {
    compare(layers_two_and_three_cases());
}

fn layers_two_and_three_cases() -> Vec<Case> {
    vec![
        bridge("layer 2", json!({})),
        bridge("layer 2 by an empty ipam", json!({"ipam": {}})),
        Case::new("bridge", "default name", json!({"ipam": lan()})),
        bridge("no gateway", json!({"ipam": lan()})).thorough(),
        bridge("gateway", json!({"isGateway": true, "ipam": lan()})),
        bridge("default gateway", json!({"isDefaultGateway": true, "ipam": lan()})),
        bridge("IPv6", json!({"isDefaultGateway": true, "ipam": host_local("fd07::/64", &json!({}))})),
        bridge("dual stack", json!({"isDefaultGateway": true, "ipam": dual_stack(&json!({}))})).thorough(),
        bridge(
            "static addresses",
            json!({"isGateway": true, "ipam": {"type": "static", "addresses": [
                {"address": "10.8.0.5/24", "gateway": "10.8.0.254"}, {"address": "fd08::5/64"}, {"address": "10.9.0.5/24"}]}}),
        ),
    ]
}

#[test]
fn switches() {
    compare(switches_cases());
}

fn switches_cases() -> Vec<Case> {
    vec![
        bridge("MTU", json!({"mtu": 1400, "isGateway": true, "ipam": lan()})),
        bridge("hairpin", json!({"hairpinMode": true, "ipam": lan()})),
        bridge("promiscuous", json!({"promiscMode": true, "ipam": lan()})),
        bridge("enabledad", json!({"enabledad": true, "isGateway": true, "ipam": dual_stack(&json!({}))})).thorough(),
        bridge("numbers as text", json!({"mtu": "1400", "ipam": lan()})).refused(7),
        bridge("hairpin and promiscuous", json!({"hairpinMode": true, "promiscMode": true, "ipam": lan()})).refused(7),
        bridge("VLAN out of range", json!({"vlan": 4095, "ipam": lan()})).refused(7),
        bridge("VLAN below zero", json!({"vlan": -1, "ipam": lan()})).refused(7),
    ]
}

#[test]
fn routes_and_dns() {
    compare(routes_and_dns_cases());
}

fn routes_and_dns_cases() -> Vec<Case> {
    let routed = |routes: Value| host_local("10.7.0.0/24", &json!({"routes": routes}));
    let resolv = |stage: &Stage| {
        let text =
            "# ours\nnameserver 10.0.0.10\nnameserver fd00::10\nsearch a.test b.test\noptions ndots:5 timeout:1\n";
        std::fs::write(stage.node.folder().join("resolv.conf"), text).unwrap();
    };
    let from_file = host_local("10.7.0.0/24", &json!({"resolvConf": "$FOLDER/resolv.conf"}));
    vec![
        bridge(
            "routes with and without gateway",
            json!({"isGateway": true, "ipam": routed(json!([
                {"dst": "192.168.50.0/24", "gw": "10.7.0.254"}, {"dst": "192.168.60.0/24"}, {"dst": "0.0.0.0/0"}]))}),
        ),
        bridge(
            "default route by another gateway",
            json!({"isDefaultGateway": true, "ipam": routed(json!([{"dst": "0.0.0.0/0", "gw": "10.7.0.9"}]))}),
        ),
        bridge("default route twice", json!({"isDefaultGateway": true, "ipam": routed(json!([{"dst": "0.0.0.0/0"}]))})),
        bridge(
            "routes of both families",
            json!({"isGateway": true, "ipam": dual_stack(&json!({"routes": [
                {"dst": "::/0"}, {"dst": "fd50::/64", "gw": "fd07::9"}, {"dst": "0.0.0.0/0"}]}))}),
        ),
        bridge("route by nobody", json!({"ipam": routed(json!([{"dst": "10.50.0.0/16", "gw": "10.99.0.1"}]))}))
            .refused(100),
        bridge("resolvConf", json!({"ipam": from_file})).on(resolv),
        bridge(
            "dns over resolvConf",
            json!({"ipam": from_file, "dns": {"nameservers": ["9.9.9.9"], "domain": "c.test"}}),
        )
        .on(resolv),
        bridge("resolvConf missing", json!({"ipam": from_file})).refused(5),
    ]
}

#[test]
fn macs() {
    compare(macs_cases());
}

fn macs_cases() -> Vec<Case> {
    vec![
        bridge("MAC of CNI_ARGS", json!({})).args("MAC=02:11:22:33:44:01"),
        bridge("MAC of args.cni over CNI_ARGS", json!({"args": {"cni": {"mac": "02:11:22:33:44:02"}}}))
            .args("MAC=02:11:22:33:44:01"),
        bridge(
            "MAC of runtimeConfig over both",
            json!({"args": {"cni": {"mac": "02:11:22:33:44:02"}}, "runtimeConfig": {"mac": "02:11:22:33:44:03"}}),
        )
        .args("MAC=02:11:22:33:44:01"),
        bridge("MAC that is none", json!({"runtimeConfig": {"mac": "02:11:22"}})).refused(7),
        bridge("unknown CNI_ARGS", json!({})).args("COLOUR=red").refused(4),
        bridge("unknown CNI_ARGS ignored", json!({})).args("IgnoreUnknown=1;COLOUR=red"),
    ]
}

#[test]
fn bridges_that_exist() {
    compare(bridges_that_exist_cases());
}

fn bridges_that_exist_cases() -> Vec<Case> {
    let gateway = json!({"isGateway": true, "ipam": lan()});
    let v6 = json!({"isGateway": true, "ipam": host_local("fd07::/64", &json!({}))});
    let forced = |conf: &Value| {
        let mut conf = conf.clone();
        conf["forceAddress"] = true.into();
        conf
    };
    vec![
        bridge("reused", gateway.clone()).on(|stage| stage.bridge("br0")),
        bridge("reused with its gateway", gateway.clone()).on(|stage| with_address(stage, "10.7.0.1/24")),
        bridge("other IPv4 gateway", gateway.clone()).on(|stage| with_address(stage, "10.9.0.1/24")).refused(100),
        bridge("other IPv4 gateway replaced", forced(&gateway)).on(|stage| with_address(stage, "10.9.0.1/24")),
        bridge("overlapping IPv6 gateway", v6.clone()).on(|stage| with_address(stage, "fd07::9/48")).refused(100),
        bridge("overlapping IPv6 gateway replaced", forced(&v6)).on(|stage| with_address(stage, "fd07::9/48")),
        bridge("disjoint IPv6 gateway kept", v6).on(|stage| with_address(stage, "fd09::1/64")),
        bridge("no bridge", gateway).on(|stage| stage.node.add_uplink("br0", "far0")).refused(100),
        bridge("pool used up", json!({"isGateway": true, "ipMasq": true, "macspoofchk": true, "ipam": small_pool()}))
            .on(Stage::use_up_pool)
            .refused(100),
        bridge("interface exists", json!({"ipam": lan()})).interface("lo").refused(100),
    ]
}

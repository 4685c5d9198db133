//! What the running kernel may lack: `ipvlan`, `vlan`, and VLANs of bridges, in the virtual machine. One boot runs all.

use std::path::Path;
use std::time::{Duration, Instant};

use musubi_delegates::netlink::vlan::VlanMembership;
use musubi_tests::node::{link, musubi};
use musubi_tests::vm::{CNI_BIN, Machine};
use serde_json::{Value, json};

use super::compare::Case;
use super::kinds::default_route;
use super::stage::{Stage, dual_stack, extend, host_local};

/// All tables of this file.
pub const TABLES: &[fn() -> Vec<Case>] = &[ipvlans, vlans, bridge_vlans];

const PROGRAM: &str = "/musubi";
const ENOUGH: Duration = Duration::from_secs(240);

#[test]
fn the_rest_passes_in_the_virtual_machine() {
    let mut machine = Machine::new().unwrap();
    machine.file(Path::new(&musubi()), PROGRAM);
    machine.env("MUSUBI", PROGRAM).env("REFERENCE_PLUGINS", CNI_BIN).env("RUST_BACKTRACE", "0");
    let started = Instant::now();
    let outcome = machine.run_tests("e2e", "oracle::in_vm::", ENOUGH).unwrap();
    println!("{}in {:.1} s", outcome.output, started.elapsed().as_secs_f32());
}

fn lan() -> Value {
    host_local("10.7.0.0/24", &json!({}))
}

fn ipvlan(what: &str, more: Value) -> Case {
    let mut conf = json!({"master": "up0"});
    extend(&mut conf, &more);
    Case::new("ipvlan", what, conf).on(Stage::uplink)
}

fn ipvlans() -> Vec<Case> {
    let previous = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "up0"}], "routes": [{"dst": "10.50.0.0/16"}],
        "ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 0}]});
    let chained = Case::new("ipvlan", "addresses and master of the plugin before", json!({"prevResult": previous}));
    vec![
        ipvlan("mode l2", json!({"mode": "l2", "ipam": lan()})).thorough(),
        ipvlan("mode l3", json!({"mode": "l3", "ipam": lan()})),
        ipvlan("mode l3s", json!({"mode": "l3s", "ipam": lan()})),
        ipvlan("dual stack", json!({"ipam": dual_stack(&json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}))}))
            .thorough(),
        ipvlan("MTU and dns", json!({"mtu": 1400, "dns": {"nameservers": ["9.9.9.9"]}, "ipam": lan()})),
        Case::new("ipvlan", "master by default route", json!({"ipam": lan()})).on(default_route),
        chained.on(Stage::uplink),
        ipvlan("no such master", json!({"master": "nowhere", "ipam": lan()})).refused(100),
        Case::new("ipvlan", "no default route", json!({"ipam": lan()})).on(Stage::uplink).refused(100),
        ipvlan("interface exists", json!({"ipam": lan()})).interface("lo").refused(100),
    ]
}

fn vlan(what: &str, more: Value) -> Case {
    let mut conf = json!({"master": "up0", "vlanId": 100});
    extend(&mut conf, &more);
    Case::new("vlan", what, conf).on(Stage::uplink)
}

fn vlans() -> Vec<Case> {
    vec![
        vlan("IPv4", json!({"ipam": lan()})).thorough(),
        vlan("dual stack", json!({"ipam": dual_stack(&json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}))}))
            .thorough(),
        vlan("MTU and dns", json!({"mtu": 1400, "dns": {"nameservers": ["9.9.9.9"]}, "ipam": lan()})),
        vlan("highest id", json!({"vlanId": 4094, "ipam": lan()})),
        vlan("no such master", json!({"master": "nowhere", "ipam": lan()})).refused(100),
        vlan("MTU over the master's", json!({"mtu": 1600, "ipam": lan()})).refused(7),
        vlan("interface exists", json!({"ipam": lan()})).interface("lo").refused(100),
    ]
}

fn bridge(what: &str, more: Value) -> Case {
    let mut conf = json!({"bridge": "br0"});
    extend(&mut conf, &more);
    Case::new("bridge", what, conf)
}

fn bridge_vlans() -> Vec<Case> {
    vec![
        bridge("VLAN 100", json!({"vlan": 100, "ipam": lan()})),
        bridge("VLAN 1", json!({"vlan": 1, "ipam": lan()})),
        bridge("VLAN 0 is none", json!({"vlan": 0, "ipam": lan()})),
        bridge("VLAN 100 with gateway", json!({"vlan": 100, "isDefaultGateway": true, "ipam": dual_stack(&json!({}))})),
    ]
}

#[test]
#[ignore = "runs in the virtual machine"]
fn ipvlan_is_as_the_reference_has_it() {
    super::compare::compare(ipvlans());
}

#[test]
#[ignore = "runs in the virtual machine"]
fn vlan_is_as_the_reference_has_it() {
    super::compare::compare(vlans());
}

#[test]
#[ignore = "runs in the virtual machine"]
fn vlans_of_bridges_are_as_the_reference_has_them() {
    super::compare::compare(bridge_vlans());
}

#[test]
#[ignore = "runs in the virtual machine"]
fn what_one_adds_the_other_checks_and_removes() {
    use super::directions::both_ways;
    both_ways("ipvlan", &json!({"type": "ipvlan", "master": "up0", "ipam": lan()}), Stage::uplink, true);
    both_ways(
        "vlan",
        &json!({"type": "vlan", "master": "up0", "vlanId": 7, "ipam": dual_stack(&json!({}))}),
        Stage::uplink,
        true,
    );
    let access = json!({"type": "bridge", "bridge": "br0", "vlan": 100, "ipam": lan()});
    both_ways("bridge, VLAN 100", &access, |_| {}, true);
}

#[test]
#[ignore = "runs in the virtual machine"]
fn del_takes_away_what_is_left() {
    use super::del::{OF_A_MASTER, OF_EVERY_KIND, del_of_nothing, del_survives};
    let ipvlan = json!({"type": "ipvlan", "master": "up0", "ipam": lan()});
    let vlan = json!({"type": "vlan", "master": "up0", "vlanId": 7, "ipam": lan()});
    del_survives(&vlan, Stage::uplink, OF_EVERY_KIND);
    for conf in [ipvlan, vlan] {
        del_survives(&conf, Stage::uplink, OF_A_MASTER);
        del_of_nothing(&conf, Stage::uplink);
    }
}

#[test]
#[ignore = "runs in the virtual machine"]
fn add_returns_with_no_address_tentative() {
    let ipam = dual_stack(&json!({}));
    for (kind, id) in [("ipvlan", Value::Null), ("vlan", 7.into())] {
        let stage = Stage::new();
        stage.uplink();
        let conf =
            json!({"cniVersion": "1.1.0", "name": "net", "type": kind, "master": "up0", "vlanId": id, "ipam": ipam});
        super::kernel::no_address_is_tentative(&stage, &conf);
    }
}

/// Which VLANs a port is in: id, and p for the one of untagged frames, u for leaving untagged.
fn membership(more: Value) -> Vec<String> {
    let stage = Stage::new();
    let mut conf = json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0"});
    extend(&mut conf, &more);
    let _ = stage.call(super::stage::Who::Ours, "ADD", &conf).result();
    let index = link(&stage.sandbox.netns, "eth0").parent.unwrap();
    let text = |v: VlanMembership| {
        format!("{}{}{}", v.first, if v.pvid { "p" } else { "" }, if v.untagged { "u" } else { "" })
    };
    stage.host().vlans(index).unwrap().into_iter().map(text).collect()
}

/// `preserveDefaultVlan` and `vlanTrunk` are newer than the reference at hand.
#[test]
#[ignore = "runs in the virtual machine"]
fn ports_are_in_the_vlans_that_were_asked_for() {
    let cases = [
        (json!({"vlan": 100}), vec!["100pu"]),
        (json!({"vlan": 100, "preserveDefaultVlan": true}), vec!["1u", "100pu"]),
        (
            json!({"vlanTrunk": [{"id": 101}, {"minID": 200, "maxID": 203}]}),
            vec!["1pu", "101", "200", "201", "202", "203"],
        ),
        (json!({"vlanTrunk": [{"id": 5}, {"minID": 4, "maxID": 6}, {"id": 5}]}), vec!["1pu", "4", "5", "6"]),
        (json!({"vlan": 100, "vlanTrunk": [{"id": 101}]}), vec!["100pu", "101"]),
        (json!({"vlan": 100, "vlanTrunk": [{"minID": 99, "maxID": 101}]}), vec!["99", "100pu", "101"]),
    ];
    for (more, expected) in cases {
        assert_eq!(membership(more.clone()), expected, "{more}");
    }
}

#[test]
#[ignore = "runs in the virtual machine"]
fn vlans_keep_pods_apart() {
    super::packets::vlans_keep_pods_apart();
}

//! Results in every version of CNI.

use serde_json::json;

use super::compare::{Case, compare};
use super::facts;
use super::stage::{Stage, Who, dual_stack, host_local, with_result};

/// All tables of this file.
pub const TABLES: &[fn() -> Vec<Case>] = &[results_of_bridge_and_host_local_cases];

const VERSIONS: [&str; 6] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"];

#[test]
fn results_of_bridge_and_host_local() {
    compare(results_of_bridge_and_host_local_cases());
}

fn results_of_bridge_and_host_local_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for version in VERSIONS {
        let routes =
            json!({"routes": [{"dst": "192.168.50.0/24", "gw": "10.7.0.254"}, {"dst": "fd50::/64", "gw": "fd07::9"}]});
        let ipam = dual_stack(&routes);
        let conf = json!({"cniVersion": version, "bridge": "br0", "isDefaultGateway": true, "ipam": ipam,
            "dns": {"nameservers": ["9.9.9.9"], "search": ["a.test"], "domain": "b.test", "options": ["ndots:5"]}});
        cases.push(Case::new("bridge", &format!("version {version}"), conf));
        let alone = json!({"cniVersion": version, "ipam": ipam});
        cases.push(Case::new("host-local", &format!("version {version}"), alone));
        let layer_two = json!({"cniVersion": version, "bridge": "br0"});
        let case = Case::new("bridge", &format!("layer 2 in version {version}"), layer_two);
        cases.push(if version < "0.3" { case.refused(1) } else { case });
        let master = json!({"cniVersion": version, "master": "up0", "ipam": host_local("10.7.0.0/24", &json!({}))});
        cases.push(Case::new("macvlan", &format!("version {version}"), master).on(Stage::uplink));
    }
    cases
}

/// The reference at hand ends at 1.0.0; what 1.1.0 may say besides, ours says of routes alone.
#[test]
fn the_newest_version_says_what_the_one_before_does() {
    let routes = json!([{"dst": "192.168.50.0/24", "gw": "10.7.0.254", "mtu": 1400, "advmss": 1300, "priority": 5,
        "table": 1000, "scope": 0}]);
    let [mut older, mut newer] = ["1.0.0", "1.1.0"].map(|version| {
        let stage = Stage::new();
        let conf = json!({"cniVersion": version, "name": "net", "type": "bridge", "bridge": "br0",
            "isDefaultGateway": true, "ipam": dual_stack(&json!({"routes": routes}))});
        let result = stage.call(Who::Ours, "ADD", &conf).result();
        let facts = facts::result(&stage, &result);
        stage.call(Who::Ours, "CHECK", &with_result(&conf, &result)).succeeded();
        stage.call(Who::Ours, "DEL", &with_result(&conf, &result)).succeeded();
        (facts, result)
    });
    assert_eq!(newer.1["routes"][0], routes[0]);
    for (facts, _) in [&mut older, &mut newer] {
        facts.retain(|key, _| key != "result/cniVersion" && !key.starts_with("result/routes/0"));
    }
    assert_eq!(newer.0, older.0);
}

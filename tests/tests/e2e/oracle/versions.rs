//! Results in every version of CNI.

use serde_json::json;

use super::compare::{Case, compare};
use super::stage::{dual_stack, host_local};

const VERSIONS: [&str; 6] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"];

#[test]
fn results_of_bridge_and_host_local() {
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
        cases.push(Case::new("macvlan", &format!("version {version}"), master).on(super::stage::Stage::uplink));
    }
    compare(cases);
}

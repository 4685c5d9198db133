//! State that both programs share: what one adds the other checks and takes away, and nothing is left.

use serde_json::{Value, json};

use super::compare::left;
use super::facts;
use super::kinds::default_route;
use super::stage::{BOTH_WAYS, Stage, Who, dual_stack, host_local, with_result};

/// ADD by the one, CHECK and DEL by the other. `check` is false where theirs cannot.
pub fn both_ways(what: &str, conf: &Value, prepare: fn(&Stage), check: bool) {
    let mut conf = conf.clone();
    conf["cniVersion"] = "1.0.0".into();
    conf["name"] = "net".into();
    for (adds, removes) in BOTH_WAYS {
        let what = format!("{what}: {adds:?} adds, {removes:?} removes");
        let stage = Stage::new();
        prepare(&stage);
        let before = facts::state(&stage);
        let conf = with_result(&conf, &stage.call(adds, "ADD", &conf).result());
        assert_ne!(left(&facts::state(&stage), &before), Vec::<String>::new(), "{what}");
        if check || removes == Who::Ours {
            let output = stage.call(removes, "CHECK", &conf);
            assert!(output.ok, "{what}: CHECK {}", output.stdout);
        }
        let output = stage.call(removes, "DEL", &conf);
        assert!(output.ok, "{what}: DEL {}", output.stdout);
        assert_eq!(left(&facts::state(&stage), &before), Vec::<String>::new(), "{what}");
    }
}

#[test]
fn what_one_adds_the_other_checks_and_removes() {
    let lan = host_local("10.7.0.0/24", &json!({}));
    let routes = json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]});
    let bridge = |ipam: &Value| json!({"type": "bridge", "bridge": "br0", "isDefaultGateway": true, "ipam": ipam});
    both_ways("bridge", &bridge(&lan), |_| {}, true);
    both_ways("bridge, dual stack", &bridge(&dual_stack(&json!({}))), |_| {}, true);
    both_ways("bridge, layer 2", &json!({"type": "bridge", "bridge": "br0"}), |_| {}, false);
    both_ways("macvlan", &json!({"type": "macvlan", "master": "up0", "ipam": lan}), Stage::uplink, true);
    both_ways("macvlan, default route", &json!({"type": "macvlan", "ipam": dual_stack(&routes)}), default_route, true);
    both_ways("ptp", &json!({"type": "ptp", "ipam": lan}), |_| {}, true);
    both_ways("ptp, dual stack", &json!({"type": "ptp", "ipam": dual_stack(&routes)}), |_| {}, true);
}

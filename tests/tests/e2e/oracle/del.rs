//! DEL when something is gone that ADD had: the reference plugins fail or leak there (cni.md §5, "DEL not best-effort");
//! ours takes away whatever is left.

use serde_json::{Value, json};

use super::compare::left;
use super::facts;
use super::stage::{Stage, Who, host_local, with_result};

/// What `CNI_NETNS` is on DEL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pod {
    There,
    /// Its path is gone.
    Gone,
    /// The runtime names none.
    Unnamed,
    /// Something made an ordinary file of its path.
    PlainFile,
}

/// One way in which DEL finds less than ADD left.
pub struct Loss {
    pub what: &'static str,
    pub pod: Pod,
    pub spoil: fn(&Stage, &mut Value),
}

const NOTHING: fn(&Stage, &mut Value) = |_, _| {};

fn forget(conf: &mut Value, key: &str) {
    conf.as_object_mut().unwrap().remove(key);
}

/// Whatever the kind.
pub const OF_EVERY_KIND: &[Loss] = &[
    Loss { what: "namespace gone", pod: Pod::Gone, spoil: NOTHING },
    Loss { what: "no namespace named", pod: Pod::Unnamed, spoil: NOTHING },
    Loss { what: "namespace path is a plain file", pod: Pod::PlainFile, spoil: NOTHING },
    Loss { what: "no result", pod: Pod::There, spoil: |_, conf| forget(conf, "prevResult") },
    Loss { what: "result unreadable", pod: Pod::There, spoil: |_, conf| conf["prevResult"] = json!({"ips": 7}) },
    Loss { what: "MTU invalid now", pod: Pod::There, spoil: |_, conf| conf["mtu"] = (-5).into() },
    Loss { what: "range invalid now", pod: Pod::There, spoil: |_, conf| conf["ipam"]["subnet"] = "10.7.0.5/33".into() },
    Loss {
        what: "range too small now",
        pod: Pod::There,
        spoil: |_, conf| conf["ipam"]["subnet"] = "10.7.0.0/32".into(),
    },
    Loss {
        what: "interface gone",
        pod: Pod::There,
        spoil: |stage, _| {
            let pod = stage.sandbox.netns.open().netlink;
            if let Some(link) = pod.link_by_name("eth0").unwrap() {
                pod.delete_link(link.index, "eth0").unwrap();
            }
        },
    },
];

/// Kinds with a master.
pub const OF_A_MASTER: &[Loss] = &[
    Loss { what: "master renamed away", pod: Pod::There, spoil: |_, conf| conf["master"] = "nowhere".into() },
    Loss { what: "no master, no default route", pod: Pod::There, spoil: |_, conf| forget(conf, "master") },
    Loss {
        what: "master gone",
        pod: Pod::There,
        spoil: |stage, _| {
            let host = stage.host();
            let up = host.link_by_name("up0").unwrap().unwrap();
            host.delete_link(up.index, "up0").unwrap();
        },
    },
];

/// ADD, the loss, DEL twice: it succeeds, and no reservation, host link or link in a pod that is there is left.
pub fn del_survives(conf: &Value, prepare: fn(&Stage), losses: &[Loss]) {
    for loss in losses {
        let what = format!("{}: {}", conf["type"], loss.what);
        let stage = Stage::new();
        prepare(&stage);
        let before = facts::state(&stage);
        let mut conf = conf.clone();
        conf["cniVersion"] = "1.0.0".into();
        conf["name"] = "net".into();
        let added = stage.call(Who::Ours, "ADD", &conf);
        assert!(added.ok, "{what}: {}", added.stdout);
        let guarded = ["ipMasq", "macspoofchk"].iter().filter(|key| conf[**key] == true).count();
        assert_eq!(facts::rules(&stage).len(), guarded, "{what}: rules after ADD");
        conf = with_result(&stage.place(&conf), &added.json());
        (loss.spoil)(&stage, &mut conf);
        let netns = del_in(&stage, loss.pod);
        for _ in 0..2 {
            let env = [("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", netns.as_str())];
            let output = stage.call_raw(Who::Ours, conf["type"].as_str().unwrap(), "DEL", &env, &conf);
            assert!(output.ok, "{what}: {}", output.stdout);
        }
        let files: Vec<String> = stage.node.leftover_files();
        assert_eq!(files, Vec::<String>::new(), "{what}");
        assert_eq!(facts::rules(&stage), facts::Facts::new(), "{what}: rules after DEL");
        if loss.pod == Pod::There {
            let mut left = left(&facts::state(&stage), &before);
            // What the loss itself took.
            left.retain(|fact| !fact.starts_with("gone: host/"));
            assert_eq!(left, Vec::<String>::new(), "{what}");
        }
    }
}

/// Brings the pod's path into its state and returns `CNI_NETNS`.
fn del_in(stage: &Stage, pod: Pod) -> String {
    let path = stage.sandbox.netns.path().display().to_string();
    match pod {
        Pod::There => path,
        Pod::Unnamed => String::new(),
        Pod::Gone => {
            stage.sandbox.netns.end();
            path
        }
        Pod::PlainFile => {
            let file = stage.node.folder().join("not-a-namespace");
            std::fs::write(&file, "").unwrap();
            file.display().to_string()
        }
    }
}

#[test]
fn del_takes_away_what_is_left() {
    let lan = host_local("10.7.0.0/24", &json!({}));
    let bridge = json!({"type": "bridge", "bridge": "br0", "isGateway": true, "ipam": lan});
    let masquerading =
        json!({"type": "bridge", "bridge": "br0", "isGateway": true, "ipMasq": true, "macspoofchk": true, "ipam": lan});
    let ptp = json!({"type": "ptp", "ipMasq": true, "ipam": lan});
    let macvlan = json!({"type": "macvlan", "master": "up0", "ipam": lan});
    for conf in [&bridge, &masquerading, &ptp] {
        del_survives(conf, |_| {}, OF_EVERY_KIND);
    }
    del_survives(&macvlan, Stage::uplink, OF_EVERY_KIND);
    del_survives(&macvlan, Stage::uplink, OF_A_MASTER);
}

/// DEL of what was never added.
pub fn del_of_nothing(conf: &Value, prepare: fn(&Stage)) {
    let mut conf = conf.clone();
    conf["cniVersion"] = "1.0.0".into();
    conf["name"] = "net".into();
    let stage = Stage::new();
    prepare(&stage);
    let before = facts::state(&stage);
    stage.call(Who::Ours, "DEL", &conf).succeeded();
    assert_eq!(facts::state(&stage), before, "{}", conf["type"]);
}

#[test]
fn del_of_what_was_never_added_changes_nothing() {
    let lan = host_local("10.7.0.0/24", &json!({}));
    del_of_nothing(
        &json!({"type": "bridge", "bridge": "br0", "isGateway": true, "ipMasq": true, "macspoofchk": true, "ipam": lan}),
        |_| {},
    );
    del_of_nothing(&json!({"type": "ptp", "ipMasq": true, "ipam": lan}), |_| {});
    del_of_nothing(&json!({"type": "macvlan", "master": "up0", "ipam": lan}), |_| {});
    del_of_nothing(&json!({"type": "macvlan", "ipam": lan}), |_| {});
    del_of_nothing(&json!({"type": "vlan", "master": "up0", "vlanId": 5, "ipam": lan}), |_| {});
    del_of_nothing(&json!({"type": "ipvlan", "ipam": lan}), |_| {});
    del_of_nothing(&json!({"type": "host-local", "ipam": lan}), |_| {});
}

/// A name that is the pod's own business is not ours to take.
#[test]
fn del_leaves_an_interface_of_another_kind_alone() {
    let stage = Stage::new();
    stage.uplink();
    let lan = host_local("10.7.0.0/24", &json!({}));
    let bridge = json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "br0", "ipam": lan});
    let macvlan = json!({"cniVersion": "1.0.0", "name": "other", "type": "macvlan", "master": "up0", "ipam": lan});
    let _ = stage.call(Who::Ours, "ADD", &bridge).result();
    stage.call(Who::Ours, "DEL", &macvlan).succeeded();
    assert!(stage.sandbox.netns.open().netlink.link_by_name("eth0").unwrap().is_some());
    stage.call(Who::Ours, "DEL", &bridge).succeeded();
    assert!(stage.sandbox.netns.open().netlink.link_by_name("eth0").unwrap().is_none());
}

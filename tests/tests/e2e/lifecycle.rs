//! An attachment's life after ADD: what DEL, CHECK and GC do when namespace, record, definitions or plugins are not what
//! they were, and what the default route and the network-status say.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::Command;

use musubi_delegates::netlink::route::Route;
use musubi_delegates::netlink::{self, Link, LinkChange, NewLink};
use musubi_tests::netns::Netns;
use musubi_tests::node::{Output, Sandbox, link, link_names, musubi};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::scene::{PASS_ON, RECORD, Scene, assert_words, flush_ruleset, until};

// Attributes of a link (if_link.h), and the flag of one that is up.
const IFLA_MASTER: u16 = 10;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFF_UP: i32 = 1;

fn down(change: LinkChange) -> LinkChange {
    change.flag(IFF_UP, false)
}

fn change_in(netns: &Netns, name: &str, change: impl FnOnce(LinkChange) -> LinkChange) {
    let pod = netns.open();
    let link = pod.netlink.link_by_name(name).unwrap().unwrap();
    pod.netlink.request(change(LinkChange::of(link.index, "test")).request()).unwrap();
}

fn delete_in(netns: &Netns, name: &str) {
    let pod = netns.open();
    let link = pod.netlink.link_by_name(name).unwrap().unwrap();
    pod.netlink.delete_link(link.index, name).unwrap();
}

/// Calls DEL as a runtime that says less.
fn del_with(scene: &Scene, sandbox: &Sandbox, netns: Option<&str>, args: &str) -> Output {
    let mut call = Command::new(musubi());
    call.env("CNI_COMMAND", "DEL").env("CNI_CONTAINERID", &sandbox.id).env("CNI_IFNAME", "eth0").env("CNI_ARGS", args);
    if let Some(netns) = netns {
        call.env("CNI_NETNS", netns);
    }
    scene.node.run(call, &scene.config.to_string())
}

fn added(scene: &Scene, id: &str) -> Sandbox {
    let sandbox = scene.sandbox(id);
    let output = scene.add(&sandbox);
    assert!(output.ok, "{}", output.stdout);
    sandbox
}

/// Binds another new namespace where one is.
fn replace_namespace(sandbox: &Sandbox) {
    let path = sandbox.netns.path().to_owned();
    let make = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    };
    std::thread::spawn(make).join().unwrap();
}

#[test]
fn del_depends_on_nothing_but_the_record() {
    type Harm = fn(&Scene, &Sandbox);
    let harms: &[(&str, Harm)] = &[
        ("nothing", |_, _| ()),
        ("the namespace is gone", |_, sandbox| sandbox.netns.end()),
        ("a plain file is where the namespace was", |_, sandbox| {
            sandbox.netns.end();
            fs::write(sandbox.netns.path(), "").unwrap();
        }),
        ("the definitions are gone", |scene, _| {
            fs::remove_file(scene.node.manifests().join("nad-default-blue.json")).unwrap();
            fs::remove_file(scene.node.manifests().join("nad-default-green.json")).unwrap();
        }),
        ("the definitions are others", |scene, _| {
            scene.definition("blue", &json!({"cniVersion": "1.0.0", "name": "blue", "type": "macvlan"}));
            scene.definition("green", &json!({"type": 7}));
        }),
        ("the pod is gone", |scene, _| {
            fs::remove_file(scene.node.manifests().join("pod-default-web.json")).unwrap();
        }),
        ("the manifests cannot be read", |scene, _| scene.node.manifest("broken.yaml", "a: [")),
        ("the folder of manifests is gone", |scene, _| fs::remove_dir_all(scene.node.manifests()).unwrap()),
        ("the index of addresses is gone", |scene, _| {
            fs::remove_dir_all(scene.node.state().join("host-local")).unwrap();
        }),
        ("the reservations are gone", |scene, _| {
            fs::remove_dir_all(scene.node.reservations()).unwrap();
            // Our index of them goes with the next use of the folder; here, at once.
            fs::remove_dir_all(scene.node.state().join("host-local")).unwrap();
        }),
        ("a bridge is gone", |scene, _| delete_in(&scene.node.host, "br-blue")),
        ("the pod's links are gone", |_, sandbox| {
            for name in ["eth0", "net1", "net2"] {
                delete_in(&sandbox.netns, name);
            }
        }),
        ("the pod renamed its links", |_, sandbox| {
            for name in ["eth0", "net1", "net2"] {
                change_in(&sandbox.netns, name, |change| change.name(&format!("{name}x")));
            }
        }),
        ("the pod put its links into other groups", |_, sandbox| {
            for (group, name) in ["eth0", "net1", "net2"].iter().enumerate() {
                regroup(sandbox, name, group as u32);
            }
        }),
        ("the pod put lo into our group", |scene, sandbox| {
            let group = scene.record()["group"].as_u64().unwrap();
            regroup(sandbox, "lo", u32::try_from(group).unwrap());
        }),
        ("the rules are gone", |scene, _| flush(scene)),
    ];
    for (case, harm) in harms {
        let scene = Scene::new();
        let sandbox = added(&scene, "c1");
        assert_eq!(scene.rules().len(), 3, "{case}");
        harm(&scene, &sandbox);
        scene.del(&sandbox).succeeded();
        let is_namespace = !case.contains("plain file");
        let sandboxes = [&sandbox];
        scene.nothing_is_left(if is_namespace { &sandboxes } else { &[] }, &[], case);
        scene.del(&sandbox).succeeded();
    }
}

/// Sets a link's group as a pod with NET_ADMIN may.
fn regroup(sandbox: &Sandbox, name: &str, group: u32) {
    let index = link(&sandbox.netns, name).index;
    sandbox.netns.enter(|| {
        let netlink = netlink::Netlink::route().unwrap();
        netlink.request(LinkChange::of(index, "regroup").attr(IFLA_GROUP, group.to_ne_bytes()).request()).unwrap();
    });
}

fn flush(scene: &Scene) {
    scene.node.host.enter(flush_ruleset);
}

#[test]
fn del_needs_neither_namespace_nor_arguments_of_the_runtime() {
    for (case, netns, args) in [
        ("no CNI_NETNS", None, "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"),
        ("no CNI_ARGS", Some("its own"), ""),
        ("neither", None, ""),
        ("another path", Some("/nowhere"), ""),
        ("another pod", None, "K8S_POD_NAMESPACE=default;K8S_POD_NAME=other"),
    ] {
        let scene = Scene::new();
        let sandbox = added(&scene, "c1");
        let own = sandbox.netns.path().display().to_string();
        let netns = netns.map(|path| if path == "its own" { own.as_str() } else { path });
        del_with(&scene, &sandbox, netns, args).succeeded();
        scene.nothing_is_left(&[&sandbox], &[], case);
    }
}

#[test]
fn a_namespace_that_is_another_pods_by_now_is_not_touched() {
    let scene = Scene::new();
    scene.chain("green", "10.3.0.0/24", &["told"]);
    scene.recording_plugin("told");
    let sandbox = added(&scene, "c1");
    sandbox.netns.end();
    fs::write(sandbox.netns.path(), "").unwrap();
    replace_namespace(&sandbox);
    let stranger = sandbox.netns.open();
    for name in ["eth0", "net1", "net2"] {
        stranger.netlink.request(NewLink::named(name).veth(NewLink::named(&format!("{name}-peer")))).unwrap();
    }
    let group = scene.record()["group"].as_u64().unwrap();
    regroup(&sandbox, "net1", u32::try_from(group).unwrap());
    let links = link_names(&sandbox.netns);
    scene.del(&sandbox).succeeded();
    assert_eq!(link_names(&sandbox.netns), links, "all links of the other pod are there");
    assert_eq!(scene.calls().last().unwrap(), "DEL told net2 ", "an external plugin is called without CNI_NETNS");
    assert_eq!((scene.reserved().len(), scene.rules().len(), scene.records().len()), (0, 0, 0));
}

#[test]
fn a_repeated_del_spares_the_pod_that_has_the_path_now() {
    let scene = Scene::new();
    let old = added(&scene, "old");
    scene.del(&old).succeeded();
    let new = Sandbox { netns: old.netns, id: "new".to_owned(), pod: "default/web".to_owned() };
    assert!(scene.add(&new).ok);
    let again = Sandbox { netns: new.netns, id: "old".to_owned(), pod: "default/web".to_owned() };
    scene.del(&again).succeeded();
    let new = Sandbox { netns: again.netns, id: "new".to_owned(), pod: "default/web".to_owned() };
    scene.check(&new).succeeded();
    assert!(scene.status("default/web").is_some(), "the status is the new sandbox's");
    scene.del(&new).succeeded();
    scene.nothing_is_left(&[&new], &[], "again");
}

#[test]
fn a_link_that_the_pod_moved_away_goes_with_its_host_end() {
    let scene = Scene::new();
    let sandbox = added(&scene, "c1");
    let elsewhere = Netns::new();
    let index = link(&sandbox.netns, "net1").index;
    let pod = sandbox.netns.open();
    let target = fs::File::open(elsewhere.path()).unwrap();
    let there = target.as_raw_fd();
    pod.netlink.request(LinkChange::of(index, "move").attr(IFLA_NET_NS_FD, there.to_ne_bytes()).request()).unwrap();
    assert_eq!(link_names(&elsewhere), ["lo", "net1"]);
    scene.del(&sandbox).succeeded();
    assert_eq!(link_names(&elsewhere), ["lo"]);
    scene.nothing_is_left(&[&sandbox], &[], "moved");
}

fn reboot(scene: &Scene) {
    for file in scene.records() {
        let mut record: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        record["bootId"] = "00000000-0000-4000-8000-000000000000".into();
        fs::write(file, record.to_string()).unwrap();
    }
    fs::write(scene.node.state().join("boot"), "00000000-0000-4000-8000-000000000000").unwrap();
}

#[test]
fn del_after_a_boot_touches_no_kernel_object() {
    let scene = Scene::new();
    scene.chain("green", "10.3.0.0/24", &["told"]);
    scene.recording_plugin("told");
    let sandbox = added(&scene, "c1");
    let (inside, outside) = (link_names(&sandbox.netns), scene.node.links());
    reboot(&scene);
    scene.del(&sandbox).succeeded();
    assert_eq!((link_names(&sandbox.netns), scene.node.links()), (inside, outside), "links of whoever has them now");
    assert_eq!(scene.calls().last().unwrap(), "DEL told net2 ");
    assert_eq!((scene.reserved().len(), scene.records().len()), (0, 0));
}

#[test]
fn the_first_add_after_a_boot_frees_what_the_pods_before_had() {
    let scene = Scene::new();
    scene.chain("green", "10.3.0.0/24", &["told"]);
    scene.recording_plugin("told");
    // The pool of blue has room for two pods.
    let mut blue = scene.node.bridge("br-blue", "blue", "10.2.0.0/24");
    blue["ipam"]["rangeStart"] = "10.2.0.2".into();
    blue["ipam"]["rangeEnd"] = "10.2.0.3".into();
    scene.definition("blue", &blue);
    let (whole, damaged) = (added(&scene, "whole"), added(&scene, "damaged"));
    reboot(&scene);
    for file in scene.records().iter().filter(|file| file.display().to_string().contains("/damaged:")) {
        fs::write(file, "").unwrap();
    }
    for sandbox in [&whole, &damaged] {
        sandbox.netns.end();
    }
    fs::remove_file(scene.node.folder().join("calls")).unwrap();
    let (one, two) = (added(&scene, "one"), added(&scene, "two"));
    assert_eq!(scene.reserved().len(), 6, "{:?}", scene.reserved());
    assert_eq!(scene.calls()[..2], ["DEL told net2 ", "ADD told net2 netns"], "released before anything is given");
    for sandbox in [&one, &two, &whole, &damaged] {
        scene.del(sandbox).succeeded();
    }
    scene.nothing_is_left(&[&one, &two], &[], "boot");
}

#[test]
fn a_record_that_lost_its_content_still_says_whose_reservations_to_release() {
    for (case, content) in [
        ("empty", ""),
        ("garbage", "\u{0}\u{0}garbage"),
        ("half", "{\"version\":1,\"containerId\":\"c1\""),
        ("of another", "{}"),
        ("newer", "{\"version\": 99}"),
    ] {
        let scene = Scene::new();
        let (sandbox, other) = (added(&scene, "c1"), added(&scene, "c10"));
        let others: Vec<String> = scene.reserved().into_iter().filter(|file| file.ends_with(".3")).collect();
        fs::write(&scene.records()[1], content).unwrap();
        let file = scene.records()[1].display().to_string();
        assert!(file.contains("/c1:eth0"), "{file}");
        let (code, message) = scene.check(&sandbox).error();
        assert_eq!(code, 5, "{case}");
        assert_words(&message, &["record", "c1", "damaged"], case);
        scene.del(&sandbox).succeeded();
        assert_eq!(link_names(&sandbox.netns), ["lo"], "{case}");
        assert_eq!((scene.reserved(), scene.rules().len(), scene.records().len()), (others, 3, 1), "{case}");
        scene.check(&other).succeeded();
        scene.del(&other).succeeded();
        scene.nothing_is_left(&[&sandbox, &other], &[], case);
    }
}

#[test]
fn a_damaged_record_does_not_harm_the_containers_other_attachments() {
    let scene = Scene::new();
    let sandbox = added(&scene, "c1");
    let mut second = scene.config.clone();
    second["name"] = "second".into();
    second["delegates"][0] = scene.node.bridge("br-second", "second-default", "10.9.0.0/24");
    scene.node.pod("default", "web", "");
    assert!(scene.node.call_interface("ADD", &sandbox, "other0", &second).ok);
    let damaged = scene.records().into_iter().find(|file| file.display().to_string().contains("eth0")).unwrap();
    fs::write(damaged, "").unwrap();
    scene.del(&sandbox).succeeded();
    assert_eq!(scene.reserved(), ["second-default/10.9.0.2"]);
    scene.node.call_interface("CHECK", &sandbox, "other0", &second).succeeded();
    scene.node.call_interface("DEL", &sandbox, "other0", &second).succeeded();
    scene.nothing_is_left(&[&sandbox], &[], "second");
}

#[test]
fn a_plugin_that_is_gone_makes_an_orphan_that_is_released_when_it_is_back() {
    let scene = Scene::new();
    scene.node.leave_unfinished();
    scene.chain("green", "10.3.0.0/24", &["fickle"]);
    let plugin = scene.recording_plugin("fickle");
    let sandbox = added(&scene, "c1");
    fs::remove_file(&plugin).unwrap();
    scene.del(&sandbox).succeeded();
    assert_eq!(link_names(&sandbox.netns), ["lo"], "all that can be undone is");
    assert_eq!((scene.reserved().len(), scene.rules().len(), scene.records().len()), (0, 0, 0));
    assert_eq!(scene.orphans().len(), 1);
    let state = scene.node.state().display().to_string();
    let shown = scene.node.cli(&["gc", "--dry-run", "-o", "json", "--state-dir", &state]).result();
    assert_eq!(shown["stale"][0]["containerId"], "c1");
    assert_eq!(shown["stale"][0]["pod"], "default/web");
    assert_words(shown["stale"][0]["reason"].as_str().unwrap(), &["DEL"], "reason");
    let status = scene.node.cli(&["status", "--state-dir", &state]);
    assert!(status.stdout.contains("container c1: its DEL could not release everything"), "{}", status.stdout);

    scene.recording_plugin("fickle");
    fs::remove_file(scene.node.state().join("orphans-tried")).unwrap();
    let other = Sandbox::new("other", "");
    scene.node.call("DEL", &other, &scene.config).succeeded();
    until("the next operation has released the orphan after its own answer", || scene.orphans().is_empty());
    until("the lock is gone", || scene.node.leftover_files().is_empty());
    assert_eq!(scene.calls().last().unwrap(), "DEL fickle net2 netns");
    scene.nothing_is_left(&[&sandbox], &[], "orphan");
}

#[test]
fn an_orphan_never_takes_its_containers_new_attachment_down() {
    let scene = Scene::new();
    scene.node.leave_unfinished();
    scene.chain("green", "10.3.0.0/24", &["fickle"]);
    let plugin = scene.recording_plugin("fickle");
    let sandbox = added(&scene, "c1");
    fs::remove_file(&plugin).unwrap();
    scene.del(&sandbox).succeeded();
    assert_eq!(scene.orphans().len(), 1);
    // The container comes back without the network whose plugin is missing.
    scene.node.pod("default", "web", "blue");
    assert!(scene.add(&sandbox).ok);
    scene.recording_plugin("fickle");
    let (code, message) = scene.add(&sandbox).error();
    assert!(code == 100 && message.contains("attached already"), "{code} {message}");
    scene.check(&sandbox).succeeded();
    let state = scene.node.state().display().to_string();
    let refused = scene.node.cli(&["gc", "--state-dir", &state]);
    assert!(!refused.ok && refused.stderr.contains("attached anew"), "{} {}", refused.stdout, refused.stderr);
    scene.check(&sandbox).succeeded();
    scene.del(&sandbox).succeeded();
    assert!(scene.node.cli(&["gc", "--state-dir", &state]).ok);
    scene.nothing_is_left(&[&sandbox], &[], "anew");
}

#[test]
fn del_gives_up_after_three_failures_only_when_the_namespace_is_gone() {
    let scene = Scene::new();
    scene.node.leave_unfinished();
    scene.chain("green", "10.3.0.0/24", &["angry"]);
    scene
        .plugin("angry", &format!("[ $CNI_COMMAND = ADD ] || [ -e $D/calm ] || {{ echo no >&2; exit 1; }}\n{PASS_ON}"));
    let sandbox = added(&scene, "c1");
    for _ in 0..4 {
        let (code, message) = scene.del(&sandbox).error();
        assert_eq!(code, 100, "{message}");
        assert_words(&message, &["default/green", "net2", "angry"], "angry");
    }
    assert_eq!((scene.records().len(), scene.orphans().len()), (1, 0), "the record stays");
    assert_eq!(scene.record()["state"], "deleting");
    scene.edit_record(|record| record["failedDeletes"] = 0.into());
    sandbox.netns.end();
    assert!(!scene.del(&sandbox).ok);
    assert!(!scene.del(&sandbox).ok);
    scene.del(&sandbox).succeeded();
    assert_eq!((scene.records().len(), scene.orphans().len()), (0, 1));
    fs::write(scene.node.folder().join("calm"), "").unwrap();
    let state = scene.node.state().display().to_string();
    assert!(scene.node.cli(&["gc", "--state-dir", &state]).ok);
    scene.nothing_is_left(&[], &[], "angry");
}

#[test]
fn a_second_add_without_del_names_what_is_there() {
    let scene = Scene::new();
    let sandbox = added(&scene, "c1");
    let before = (scene.reserved(), link_names(&sandbox.netns), scene.node.links(), scene.rules());
    let (code, message) = scene.add(&sandbox).error();
    assert_eq!(code, 100, "{message}");
    assert_words(&message, &["eth0", "c1", "attached already"], "twice");
    assert_eq!((scene.reserved(), link_names(&sandbox.netns), scene.node.links(), scene.rules()), before);
    scene.check(&sandbox).succeeded();
    scene.del(&sandbox).succeeded();
    scene.nothing_is_left(&[&sandbox], &[], "twice");
}

#[test]
fn an_interface_of_another_is_never_touched() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("c1");
    let pod = sandbox.netns.open();
    pod.netlink.request(NewLink::named("net1").veth(NewLink::named("peer"))).unwrap();
    let before = link(&sandbox.netns, "net1").index;
    let (code, message) = scene.add(&sandbox).error();
    assert_eq!(code, 100);
    assert_words(&message, &["default/blue", "net1", "already exists"], "net1");
    assert_eq!((scene.node.links(), scene.records().len()), (vec!["lo".to_owned()], 0), "nothing was begun");
    assert_eq!(link(&sandbox.netns, "net1").index, before);
}

#[test]
fn the_hosts_own_namespace_is_refused() {
    let scene = Scene::new();
    for path in ["/proc/1/ns/net".to_owned(), scene.node.host.path().display().to_string()] {
        let mut call = Command::new(musubi());
        call.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "c1").env("CNI_IFNAME", "eth0").env("CNI_NETNS", &path);
        let (code, message) = scene.node.run(call, &scene.config.to_string()).error();
        assert_eq!(code, 8, "{path}: {message}");
        scene.nothing_is_left(&[], &[], &path);
    }
}

#[test]
fn check_names_what_has_drifted_and_the_next_add_puts_it_back() {
    type Drift = fn(&Scene, &Sandbox);
    let drifts: &[(&str, Drift, &[&str])] = &[
        (
            "address removed",
            |_, sandbox| {
                let pod = sandbox.netns.open();
                let index = link(&sandbox.netns, "net1").index;
                let address =
                    pod.netlink.addresses(index).unwrap().into_iter().find(|a| a.net.addr().is_ipv4()).unwrap();
                pod.netlink.request(netlink::address::remove(index, address.net)).unwrap();
            },
            &["default/blue", "net1", "10.2.0.2"],
        ),
        (
            "route removed",
            |_, sandbox| {
                let pod = sandbox.netns.open();
                let index = link(&sandbox.netns, "eth0").index;
                let routes = pod.netlink.routes().unwrap();
                let default = routes.iter().find(|r| r.destination.prefix_len() == 0 && r.interface == index).unwrap();
                pod.netlink.request(default.remove()).unwrap();
            },
            &["default-network", "eth0", "route", "0.0.0.0/0"],
        ),
        ("link down", |_, s| change_in(&s.netns, "net2", down), &["default/green", "net2", "lost its route"]),
        ("link removed", |_, s| delete_in(&s.netns, "net2"), &["default/green", "net2", "is gone"]),
        (
            "bridge port detached",
            |scene, sandbox| {
                let host_end = link(&sandbox.netns, "net1").parent.unwrap();
                let host = scene.node.host.open();
                host.netlink
                    .request(LinkChange::of(host_end, "detach").attr(IFLA_MASTER, 0_u32.to_ne_bytes()).request())
                    .unwrap();
            },
            &["default/blue", "no port of bridge \"br-blue\""],
        ),
        ("rules flushed", |scene, _| flush(scene), &["default-network", "eth0", "masquerade"]),
        (
            "reservation removed",
            |scene, _| fs::remove_file(scene.node.reservations().join("blue/10.2.0.2")).unwrap(),
            &["default/blue", "net1", "holds no address"],
        ),
        ("bridge down", |scene, _| change_in(&scene.node.host, "br-blue", down), &["default/blue", "br-blue", "down"]),
    ];
    for (case, drift, words) in drifts {
        let scene = Scene::new();
        let sandbox = added(&scene, "c1");
        scene.check(&sandbox).succeeded();
        drift(&scene, &sandbox);
        let (code, message) = scene.check(&sandbox).error();
        assert_eq!(code, 100, "{case}: {message}");
        assert_words(&message, words, case);
        scene.del(&sandbox).succeeded();
        assert!(scene.add(&sandbox).ok, "{case}");
        scene.check(&sandbox).succeeded();
        assert_eq!(scene.rules().len(), 3, "{case}");
        scene.del(&sandbox).succeeded();
        scene.nothing_is_left(&[&sandbox], &[], case);
    }
}

#[test]
fn check_without_an_attachment_says_so() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("c1");
    let (code, message) = scene.check(&sandbox).error();
    assert_eq!(code, 3, "{message}");
    assert_words(&message, &["container c1", "musubi-network"], "unknown");
    scene.nothing_is_left(&[&sandbox], &[], "unknown");
}

fn is_default(link: &Link, routes: &[Route], v4: bool) -> bool {
    let is = |r: &&Route| r.destination.prefix_len() == 0 && r.destination.addr().is_ipv4() == v4;
    let of_family: Vec<_> = routes.iter().filter(is).filter(|r| r.interface != 0).collect();
    assert!(of_family.len() <= 1, "one default route a family");
    of_family.iter().any(|r| r.interface == link.index)
}

#[test]
fn the_default_route_moves_by_family_in_kernel_result_and_status() {
    // What the annotation says of green; who has the default route of IPv4 and of IPv6; gateways in the status.
    let cases = [
        ("null", "eth0", "eth0", vec![json!(["10.1.0.1", "fd01::1"]), Value::Null]),
        (r#"["10.3.0.1"]"#, "net1", "eth0", vec![json!(["fd01::1"]), json!(["10.3.0.1"])]),
        (r#"["fd03::1"]"#, "eth0", "net1", vec![json!(["10.1.0.1"]), json!(["fd03::1"])]),
        (r#"["10.3.0.1","fd03::1"]"#, "net1", "net1", vec![Value::Null, json!(["10.3.0.1", "fd03::1"])]),
        ("[]", "net1", "net1", vec![Value::Null, json!(["10.3.0.1", "fd03::1"])]),
    ];
    for (asked, v4, v6, gateways) in cases {
        let scene = Scene::new();
        let dual = |bridge: &str, name: &str, number: u8, default: bool| {
            json!({"cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": bridge, "isGateway": true,
                "isDefaultGateway": default, "ipam": {"type": "host-local", "dataDir": scene.node.reservations(),
                "ranges": [[{"subnet": format!("10.{number}.0.0/24")}], [{"subnet": format!("fd0{number}::/64")}]]}})
        };
        let config = scene.node.config(&dual("cni0", "default-network", 1, true));
        scene.definition("green", &dual("br-green", "green", 3, false));
        let element = if asked == "null" {
            json!({"name": "green"})
        } else {
            json!({"name": "green", "default-route": serde_json::from_str::<Value>(asked).unwrap()})
        };
        scene.node.pod("default", "web", &json!([element]).to_string());
        let sandbox = scene.sandbox("c1");
        let result = scene.node.call("ADD", &sandbox, &config).result();
        let pod = sandbox.netns.open();
        let routes = pod.netlink.routes().unwrap();
        for name in ["eth0", "net1"] {
            let link = link(&sandbox.netns, name);
            assert_eq!(is_default(&link, &routes, true), name == v4, "{asked}: IPv4 by {name}");
            assert_eq!(is_default(&link, &routes, false), name == v6, "{asked}: IPv6 by {name}");
        }
        let told = |text: &str| result["routes"].as_array().into_iter().flatten().any(|r| r["dst"] == text);
        assert_eq!((told("0.0.0.0/0"), told("::/0")), (v4 == "eth0", v6 == "eth0"), "{asked}: {result}");
        let status = scene.status("default/web").unwrap();
        let found: Vec<Value> = status.as_array().unwrap().iter().map(|entry| entry["gateway"].clone()).collect();
        assert_eq!(found, gateways, "{asked}");
        scene.node.call("CHECK", &sandbox, &config).succeeded();
        scene.node.call("DEL", &sandbox, &config).succeeded();
        scene.nothing_is_left(&[&sandbox], &[], asked);
    }
}

#[test]
fn the_network_status_tells_what_is_in_the_pod() {
    let scene = Scene::new();
    scene.definition("flat", &json!({"cniVersion": "1.0.0", "name": "flat", "type": "bridge", "bridge": "br-flat"}));
    scene.chain("green", "10.3.0.0/24", &["many"]);
    // A plugin that made a second interface, and one on the host.
    scene.plugin("many", r#"[ $CNI_COMMAND != ADD ] || cat <<END
{"cniVersion":"1.0.0","interfaces":[{"name":"hostside","mac":"02:00:00:00:00:01"},
 {"name":"net2","mac":"02:00:00:00:00:02","sandbox":"$CNI_NETNS"},{"name":"net2b","mac":"02:00:00:00:00:03","sandbox":"$CNI_NETNS"}],
 "ips":[{"address":"10.3.0.2/24","interface":1},{"address":"10.3.0.3/24","gateway":"10.3.0.1","interface":2}],
 "dns":{"nameservers":["10.3.0.53"],"search":["green.example"]}}
END"#);
    scene.node.pod("default", "web", "flat,green");
    let sandbox = added(&scene, "c1");
    let text = fs::read_to_string(scene.node.manifests().join("status/default/web.json")).unwrap();
    assert!(!text.contains("<nil>"), "{text}");
    let status = scene.status("default/web").unwrap();
    let mac = |name: &str| link(&sandbox.netns, name).mac.unwrap().to_string();
    assert_eq!(
        status,
        json!([
            {"name": "default-network", "interface": "eth0", "ips": ["10.1.0.2"], "mac": mac("eth0"), "default": true,
             "dns": {}, "gateway": ["10.1.0.1"]},
            {"name": "default/flat", "interface": "net1", "mac": mac("net1"), "dns": {}},
            {"name": "default/green", "interface": "net2", "ips": ["10.3.0.2"], "mac": "02:00:00:00:00:02",
             "dns": {"nameservers": ["10.3.0.53"], "search": ["green.example"]}},
            {"name": "default/green", "interface": "net2b", "ips": ["10.3.0.3"], "mac": "02:00:00:00:00:03",
             "dns": {"nameservers": ["10.3.0.53"], "search": ["green.example"]}},
        ])
    );
    scene.del(&sandbox).succeeded();
    assert!(scene.status("default/web").is_none(), "removed on DEL");
}

#[test]
fn who_gets_a_status() {
    for (case, setting, networks, expected) in [
        ("every pod", Value::Null, "", true),
        ("every pod", "all".into(), "", true),
        ("only those that select networks", "selected".into(), "", false),
        ("those that select networks", "selected".into(), "blue", true),
    ] {
        let scene = Scene::new();
        scene.node.pod("default", "web", networks);
        let sandbox = scene.sandbox("c1");
        let config = scene.with("networkStatus", setting);
        assert!(scene.node.call("ADD", &sandbox, &config).ok);
        assert_eq!(scene.status("default/web").is_some(), expected, "{case}");
        let nameless = Sandbox::new("c2", "");
        assert!(scene.node.call("ADD", &nameless, &config).ok);
        assert_eq!(link_names(&nameless.netns), ["eth0", "lo"], "without a pod's name the default networks alone");
    }
}

#[test]
fn a_status_that_cannot_be_written_is_fatal_only_for_pods_that_select_networks() {
    let scene = Scene::new();
    let status = scene.node.manifests().join("status");
    fs::write(&status, "in the way").unwrap();
    let sandbox = scene.sandbox("c1");
    let (code, message) = scene.add(&sandbox).error();
    assert_eq!(code, 5, "{message}");
    assert_words(&message, &["network-status", "status/default/web.json"], "selects");
    scene.nothing_is_left(&[&sandbox], &[], "selects, but for the file in the way");
}

#[test]
fn a_status_that_could_not_be_written_is_written_later() {
    let scene = Scene::new();
    scene.node.leave_unfinished();
    let status = scene.node.manifests().join("status");
    fs::write(&status, "in the way").unwrap();
    scene.node.pod("default", "web", "");
    let sandbox = added(&scene, "c1");
    assert_eq!(scene.record()["statusPending"], true);
    fs::remove_file(&status).unwrap();
    fs::remove_file(scene.node.state().join("pending-tried")).unwrap();
    scene.check(&sandbox).succeeded();
    until("the next operation has written it after its own answer", || scene.status("default/web").is_some());
    until("the record knows", || scene.record()["statusPending"] == false);
    assert_eq!(scene.status("default/web").unwrap()[0]["ips"], json!(["10.1.0.2"]));
    scene.del(&sandbox).succeeded();
    until("no mark is left", || !scene.node.state().join("pending").read_dir().unwrap().any(|_| true));
    scene.nothing_is_left(&[&sandbox], &[], "pending");
}

fn valid(sandboxes: &[&Sandbox]) -> Value {
    sandboxes.iter().map(|s| json!({"containerID": s.id, "ifname": "eth0"})).collect()
}

#[test]
fn gc_frees_what_is_its_own_and_not_listed_and_nothing_else() {
    let scene = Scene::new();
    let (kept, stale) = (added(&scene, "kept"), added(&scene, "stale"));
    let other_network = Sandbox::new("elsewhere", "default/web");
    let mut second = scene.config.clone();
    second["name"] = "second".into();
    assert!(scene.node.call("ADD", &other_network, &second).ok);
    // Podman, in the same folder.
    fs::write(scene.node.reservations().join("blue/10.2.0.200"), "podman-container\r\neth0").unwrap();

    let (code, message) = scene.node.call_network("GC", &scene.config).error();
    assert_eq!(code, 7);
    assert_words(&message, &["cni.dev/valid-attachments", "missing"], "no list");

    let config = scene.with("cni.dev/valid-attachments", valid(&[&kept]));
    scene.node.call_network("GC", &config).succeeded();
    assert_eq!(link_names(&stale.netns), ["lo"]);
    assert_eq!(scene.records().len(), 2);
    scene.check(&kept).succeeded();
    scene.node.call("CHECK", &other_network, &second).succeeded();
    assert!(scene.reserved().contains(&"blue/10.2.0.200".to_owned()), "a stranger's reservation stays");
    assert_eq!(scene.reserved().len(), 7, "{:?}", scene.reserved());

    let logged = scene.node.folder().join("log");
    let mut config = config.clone();
    config["logFile"] = logged.display().to_string().into();
    config["logLevel"] = "debug".into();
    scene.node.call_network("GC", &config).succeeded();
    assert!(fs::read_to_string(logged).unwrap().contains("podman-container"), "and is reported");

    fs::remove_file(scene.node.reservations().join("blue/10.2.0.200")).unwrap();
    scene.del(&kept).succeeded();
    scene.node.call("DEL", &other_network, &second).succeeded();
    scene.nothing_is_left(&[&kept, &stale, &other_network], &[], "gc");
}

#[test]
fn gc_leaves_what_is_being_added_alone() {
    let scene = Scene::new();
    scene.chain("green", "10.3.0.0/24", &["slow"]);
    scene.plugin("slow", &format!("[ $CNI_COMMAND != ADD ] || {{ touch $D/begun; sleep 1; }}\n{PASS_ON}"));
    let sandbox = scene.sandbox("c1");
    let add = scene.start("ADD", &sandbox, &scene.config);
    until("the plugin runs", || scene.node.folder().join("begun").exists());
    let state = scene.node.state().display().to_string();
    let status = scene.node.cli(&["status", "-o", "json", "--state-dir", &state]).result();
    assert_eq!(status["attachments"][0]["state"], "adding");
    let config = scene.with("cni.dev/valid-attachments", json!([]));
    scene.node.call_network("GC", &config).succeeded();
    let output = add.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    scene.check(&sandbox).succeeded();
    scene.del(&sandbox).succeeded();
    scene.nothing_is_left(&[&sandbox], &[], "adding");
}

#[test]
fn the_command_line_shows_and_releases_what_is_stale() {
    let scene = Scene::new();
    let (alive, gone) = (added(&scene, "alive"), added(&scene, "gone"));
    let state = scene.node.state().display().to_string();
    let status = scene.node.cli(&["status", "-o", "json", "--state-dir", &state]).result();
    let first = &status["attachments"][0];
    let keys: Vec<&String> = first.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["pod", "containerId", "network", "interface", "ips", "mac", "state", "since"]);
    assert_eq!(
        json!([first["pod"], first["containerId"], first["network"], first["interface"], first["ips"], first["state"]]),
        json!(["default/web", "alive", "default-network", "eth0", ["10.1.0.2"], "attached"])
    );
    assert_eq!(first["mac"], link(&alive.netns, "eth0").mac.unwrap().to_string());
    gone.netns.end();
    let shown = scene.node.cli(&["gc", "--dry-run", "-o", "json", "--state-dir", &state]).result();
    let stale = shown["stale"].as_array().unwrap();
    assert_eq!(stale.len(), 1, "{shown}");
    assert_eq!((&stale[0]["containerId"], &stale[0]["pod"]), (&json!("gone"), &json!("default/web")));
    assert_words(stale[0]["reason"].as_str().unwrap(), &["network namespace", "is gone"], "reason");
    assert!(stale[0]["resources"].as_array().unwrap().contains(&"address 10.2.0.3 of network default/blue".into()));
    assert_eq!(scene.reserved().len(), 6, "a dry run releases nothing");
    assert_eq!(scene.node.cli(&["gc", "-o", "json", "--state-dir", &state]).result(), shown);
    assert_eq!(scene.reserved().len(), 3);
    assert_eq!(scene.node.cli(&["gc", "-o", "json", "--state-dir", &state]).result(), json!({"stale": []}));
    scene.check(&alive).succeeded();
    assert!(scene.status("default/web").is_none(), "the status was that of the newest sandbox, and went with it");
    alive.netns.end();
    let released = scene.node.cli(&["gc", "-o", "json", "--state-dir", &state]).result();
    assert_eq!(released["stale"][0]["containerId"], "alive");
    scene.nothing_is_left(&[], &[], "stale");
}

/// A runtime may close what it read the log from.
#[test]
fn a_log_that_nobody_reads_ends_no_operation() {
    let mut scene = Scene::new();
    scene.config["isGateway"] = json!(true);
    let sandbox = scene.sandbox("c1");
    for command in ["ADD", "DEL"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = scene.start_logging_to(command, &sandbox, &scene.config, writer.into());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stdout));
    }
    scene.nothing_is_left(&[&sandbox], &[], "no reader");
}

#[test]
fn default_networks_come_before_those_of_the_annotation() {
    let scene = Scene::new();
    scene.node.definition("kube-system", "main", &scene.node.default_bridge());
    scene.node.definition("kube-system", "storage", &scene.node.bridge("br-storage", "storage", "10.4.0.0/24"));
    let mut config = scene.config.clone();
    config.as_object_mut().unwrap().remove("delegates");
    config["clusterNetwork"] = "main".into();
    config["defaultNetworks"] = json!(["storage"]);
    let sandbox = scene.sandbox("c1");
    assert!(scene.node.call("ADD", &sandbox, &config).ok);
    let status = scene.status("default/web").unwrap();
    let listed: Vec<Value> = status.as_array().unwrap().iter().map(|e| json!([e["name"], e["interface"]])).collect();
    let expected = [
        json!(["kube-system/main", "eth0"]),
        json!(["kube-system/storage", "net1"]),
        json!(["default/blue", "net2"]),
        json!(["default/green", "net3"]),
    ];
    assert_eq!(listed, expected);
    scene.node.call("DEL", &sandbox, &config).succeeded();
    scene.nothing_is_left(&[&sandbox], &[], "default networks");
}

#[test]
fn del_runs_every_plugin_and_collects_every_error() {
    let scene = Scene::new();
    scene.chain("blue", "10.2.0.0/24", &["one"]);
    scene.chain("green", "10.3.0.0/24", &["two", "three"]);
    let failing = |name: &str, how: &str| {
        scene.plugin(name, &format!("{RECORD}\n[ $CNI_COMMAND = ADD ] || [ -e $D/calm ] || {{ {how}; }}\n{PASS_ON}"));
    };
    failing("one", "echo one fails >&2; exit 1");
    failing("two", "exec sleep 1000");
    failing("three", "echo three fails >&2; exit 1");
    let sandbox = added(&scene, "c1");
    let config = scene.with("timeoutSeconds", 3.into());
    let (code, message) = scene.node.call("DEL", &sandbox, &config).error();
    assert_eq!(code, 100);
    for words in ["plugin one", "one fails", "plugin two", "did not end", "plugin three", "three fails"] {
        assert!(message.contains(words), "no {words:?} in {message:?}");
    }
    assert_eq!(scene.calls()[3..], ["DEL three net2 netns", "DEL two net2 netns", "DEL one net1 netns"]);
    assert_eq!((link_names(&sandbox.netns), scene.reserved().len()), (vec!["lo".to_owned()], 0));
    fs::write(scene.node.folder().join("calm"), "").unwrap();
    scene.del(&sandbox).succeeded();
    scene.nothing_is_left(&[&sandbox], &[], "collected");
}

#[test]
fn gc_never_frees_what_an_add_reserves_meanwhile() {
    let scene = Scene::new();
    let mut bridge = scene.node.bridge("br-blue", "blue", "10.2.0.0/24");
    bridge.as_object_mut().unwrap().remove("cniVersion");
    let plugins = json!([bridge, {"type": "thorough"}]);
    scene.definition("blue", &json!({"cniVersion": "1.1.0", "name": "blue", "plugins": plugins}));
    scene.plugin(
        "thorough",
        &format!("{RECORD}\n[ $CNI_COMMAND != GC ] || {{ touch $D/collecting; sleep 1; }}\n{PASS_ON}"),
    );
    let first = added(&scene, "first");
    // Green is told of after blue, so what it is told was found out a second before.
    let config = scene.with("cni.dev/valid-attachments", valid(&[&first]));
    let second = scene.sandbox("second");
    std::thread::scope(|scope| {
        let gc = scope.spawn(|| scene.node.call_network("GC", &config));
        until("GC runs", || scene.node.folder().join("collecting").exists());
        assert!(scene.add(&second).ok);
        gc.join().unwrap().succeeded();
    });
    for sandbox in [&first, &second] {
        scene.check(sandbox).succeeded();
        scene.del(sandbox).succeeded();
    }
    scene.nothing_is_left(&[&first, &second], &[], "meanwhile");
}

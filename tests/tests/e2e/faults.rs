//! Each step of ADD and of DEL made to fail in turn: the error says what and where, DEL succeeds afterwards, and nothing is
//! left. What a plugin does that outlives the process which started it is here too; the deaths themselves are in `kill`.

use std::fs;
use std::time::{Duration, Instant};

use musubi_delegates::netlink::NewLink;
use musubi_tests::node::{Sandbox, link_names};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::scene::{PASS_ON, RECORD, Scene, assert_words, masqueraded, until};

type Prepare = fn(&Scene, &Sandbox);

/// What is prepared, the code, the words of the message, links of the pod that are not ours.
type Step = (&'static str, Prepare, u64, &'static [&'static str], &'static [&'static str]);

const STEPS: &[Step] = &[
    (
        "link exists",
        |_, sandbox| {
            let pod = sandbox.netns.open();
            pod.netlink.request(NewLink::named("net2").veth(NewLink::named("other"))).unwrap();
        },
        100,
        &["default/green", "net2", "already exists"],
        &["net2", "other"],
    ),
    (
        "address exists",
        |scene, _| {
            let mut other = scene.node.bridge("br-green", "other", "10.3.0.0/24");
            other["ipam"]["gateway"] = "10.3.0.77".into();
            let keeper = Sandbox::new("keeper", "");
            let config = scene.node.config(&other);
            let output = scene.node.call("ADD", &keeper, &config);
            assert!(output.ok, "{}", output.stdout);
            scene.node.call("DEL", &keeper, &config).succeeded();
        },
        100,
        &["default/green", "net2", "br-green", "10.3.0.77"],
        &[],
    ),
    (
        "requested address is the gateway",
        |scene, _| {
            let mut green = scene.node.bridge("br-green", "green", "10.3.0.0/24");
            green["capabilities"] = json!({"ips": true});
            scene.definition("green", &green);
            scene.node.pod("default", "web", r#"[{"name":"blue"},{"name":"green","ips":["10.3.0.1"]}]"#);
        },
        100,
        &["default/green", "net2", "10.3.0.1", "gateway"],
        &[],
    ),
    (
        "pool empty",
        |scene, _| {
            let mut green = scene.node.bridge("br-green", "green", "10.3.0.0/24");
            green["ipam"] = json!({"type": "host-local", "dataDir": scene.node.reservations(),
                "ranges": [[{"subnet": "10.3.0.0/24", "rangeStart": "10.3.0.1", "rangeEnd": "10.3.0.1"}]]});
            scene.definition("green", &green);
        },
        100,
        &["default/green", "net2", "no IP addresses available", "10.3.0.1"],
        &[],
    ),
    (
        "plugin missing",
        |scene, _| scene.chain("green", "10.3.0.0/24", &["nowhere"]),
        7,
        &["default/green", "nowhere", "is not in"],
        &[],
    ),
    (
        "plugin not executable",
        |scene, _| {
            use std::os::unix::fs::PermissionsExt;
            scene.chain("green", "10.3.0.0/24", &["plain"]);
            let file = scene.plugin("plain", "");
            fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
        },
        7,
        &["default/green", "plain is not executable"],
        &[],
    ),
    (
        "plugin hangs",
        |scene, _| {
            scene.chain("green", "10.3.0.0/24", &["sleepy"]);
            scene.plugin("sleepy", "[ $CNI_COMMAND != ADD ] || sleep 1000");
        },
        100,
        &["default/green", "net2", "sleepy", "did not end in"],
        &[],
    ),
    (
        "plugin hangs on ADD and on DEL, and its child with it",
        |scene, _| {
            scene.chain("green", "10.3.0.0/24", &["sleepy"]);
            scene.plugin("sleepy", "[ -e $D/awake ] || { touch $D/awake; sleep 1000 & sleep 1000; }");
        },
        100,
        &["default/green", "net2", "sleepy", "did not end in"],
        &[],
    ),
    (
        "plugin prints garbage",
        |scene, _| {
            scene.chain("green", "10.3.0.0/24", &["garbage"]);
            scene.plugin("garbage", "[ $CNI_COMMAND != ADD ] || { echo '{\"ips\": [ oops'; echo secret; }");
        },
        100,
        &["default/green", "net2", "garbage", "printed no CNI result"],
        &[],
    ),
    (
        "plugin prints nothing",
        |scene, _| {
            scene.chain("green", "10.3.0.0/24", &["mute"]);
            scene.plugin("mute", "exit 0");
        },
        100,
        &["default/green", "net2", "mute", "printed no CNI result"],
        &[],
    ),
    (
        "plugin fails without an error object",
        |scene, _| {
            scene.chain("green", "10.3.0.0/24", &["broken"]);
            scene.plugin("broken", "[ $CNI_COMMAND != ADD ] || { echo about to die; echo no luck >&2; exit 3; }");
        },
        100,
        &["default/green", "net2", "broken", "exit status 3", "no luck"],
        &[],
    ),
    (
        "plugin fails with an error object",
        |scene, _| {
            scene.chain("green", "10.3.0.0/24", &["decent"]);
            scene.plugin(
                "decent",
                r#"[ $CNI_COMMAND != ADD ] || { echo '{"cniVersion":"1.0.0","code":142,"msg":"no ports left"}'; exit 1; }"#,
            );
        },
        100,
        &["default/green", "net2", "decent", "no ports left", "142"],
        &[],
    ),
    (
        "plugin killed by a signal",
        |scene, _| {
            scene.chain("green", "10.3.0.0/24", &["suicidal"]);
            scene.plugin("suicidal", "[ $CNI_COMMAND != ADD ] || kill -SEGV $$");
        },
        100,
        &["default/green", "net2", "suicidal", "SIGSEGV"],
        &[],
    ),
    (
        "default route without a gateway",
        |scene, _| {
            let mut green = scene.node.bridge("br-green", "green", "10.3.0.0/24");
            green["ipam"] = json!({"type": "static", "addresses": [{"address": "10.3.0.5/24"}]});
            green["isDefaultGateway"] = false.into();
            scene.definition("green", &green);
            scene.node.pod("default", "web", r#"[{"name":"blue"},{"name":"green","default-route":[]}]"#);
        },
        100,
        &["default/green", "net2", "no gateway"],
        &[],
    ),
    (
        "the kernel refuses the default route",
        |scene, _| {
            scene.node.pod("default", "web", r#"[{"name":"blue"},{"name":"green","default-route":["10.99.0.1"]}]"#);
        },
        100,
        &["default/green", "net2", "default route", "unreachable"],
        &[],
    ),
    ("namespace gone", |_, sandbox| sandbox.netns.end(), 8, &["netns", "No such file"], &[]),
];

#[test]
fn a_step_of_add_that_fails_is_named_and_leaves_nothing() {
    for (case, prepare, code, words, foreign) in STEPS {
        let scene = Scene::new();
        let sandbox = scene.sandbox("c1");
        prepare(&scene, &sandbox);
        let config = scene.with("timeoutSeconds", 1.into());
        let started = Instant::now();
        let (found, message) = scene.node.call("ADD", &sandbox, &config).error();
        assert_eq!(found, *code, "{case}: {message}");
        assert_words(&message, words, case);
        assert!(started.elapsed() < Duration::from_secs(10), "{case}: the time limit is kept");
        scene.nothing_is_left(&[&sandbox], foreign, &format!("{case}, before DEL"));
        scene.del(&sandbox).succeeded();
        scene.nothing_is_left(&[&sandbox], foreign, case);
    }
}

#[test]
fn what_cannot_be_undone_is_code_101_and_del_undoes_it_later() {
    let scene = Scene::new();
    scene.chain("green", "10.3.0.0/24", &["stubborn"]);
    scene.plugin("stubborn", "[ -e $D/tame ] || { echo never >&2; exit 1; }");
    let sandbox = scene.sandbox("c1");
    let (code, message) = scene.add(&sandbox).error();
    assert_eq!(code, 101, "{message}");
    assert_words(&message, &["default/green", "net2", "stubborn", "undoing it failed", "never"], "undo");
    assert_eq!(link_names(&sandbox.netns), ["lo"], "all else is undone");
    assert_eq!(scene.reserved(), [""; 0]);
    let (code, _) = scene.del(&sandbox).error();
    assert_eq!(code, 100, "DEL fails while repeating can help");
    assert_eq!(scene.records().len(), 1, "the record stays");
    fs::write(scene.node.folder().join("tame"), "").unwrap();
    scene.del(&sandbox).succeeded();
    scene.nothing_is_left(&[&sandbox], &[], "undo");
}

/// A small file system that is full but for some bytes.
fn full_disk(folder: &std::path::Path, left: usize) {
    fs::create_dir_all(folder).unwrap();
    mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
    fs::write(folder.join("filler"), vec![0; 64 * 1024 - left]).unwrap();
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    // Pages of 4 KiB: with one left the first record fits beside nothing else.
    for (folder, left, code, words) in [
        ("state", 0, 5, &["record", "No space left"][..]),
        ("state", 4096, 5, &["record", "No space left"]),
        ("reservations", 0, 100, &["default-network", "eth0", "No space left"]),
        ("reservations", 8192, 100, &["net", "No space left"]),
    ] {
        let case = format!("{folder} full but for {left} bytes");
        let scene = Scene::new();
        let disk = scene.node.folder().join(folder);
        full_disk(&disk, left);
        let sandbox = scene.sandbox("c1");
        let (found, message) = scene.add(&sandbox).error();
        assert_eq!(found, code, "{case}: {message}");
        assert_words(&message, words, &case);
        assert_eq!(link_names(&sandbox.netns), ["lo"], "{case}");
        scene.del(&sandbox).succeeded();
        fs::remove_file(disk.join("filler")).unwrap();
        scene.nothing_is_left(&[&sandbox], &[], &case);
        umount2(&disk, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn del_succeeds_on_a_full_disk() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("c1");
    let disk = scene.node.state();
    fs::create_dir_all(&disk).unwrap();
    mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=256k")).unwrap();
    assert!(scene.add(&sandbox).ok);
    let mut filler = fs::File::create(disk.join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[0; 1024]).is_ok() {}
    scene.del(&sandbox).succeeded();
    fs::remove_file(disk.join("filler")).unwrap();
    scene.nothing_is_left(&[&sandbox], &[], "full disk");
    umount2(&disk, MntFlags::MNT_DETACH).unwrap();
}

fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn pid_in(file: std::path::PathBuf) -> Option<i32> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// A network whose plugin waits in a command until it is killed, once; and starts a call that is killed meanwhile.
fn abandon_plugin(scene: &Scene, sandbox: &Sandbox, command: &str) -> i32 {
    let script = format!(
        "{RECORD}\nif [ $CNI_COMMAND = {command} ] && [ ! -e $D/pid ]; then echo $$ > $D/pid; exec sleep 1000; fi\n{PASS_ON}"
    );
    scene.plugin("sleepy", &script);
    let mut child = scene.start(command, sandbox, &scene.config);
    let pid_file = scene.node.folder().join("pid");
    until("the plugin runs", || pid_in(pid_file.clone()).is_some());
    let pid = pid_in(pid_file).unwrap();
    until("the record names it", || scene.record()["running"]["pid"] == pid);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_running(pid), "a plugin outlives the one who started it");
    pid
}

#[test]
fn a_plugin_that_outlived_a_killed_operation_is_ended_by_the_next() {
    for (killed, next) in [("ADD", "DEL"), ("ADD", "ADD"), ("DEL", "DEL"), ("ADD", "GC")] {
        let case = format!("{killed} killed, then {next}");
        let scene = Scene::new();
        scene.chain("green", "10.3.0.0/24", &["sleepy"]);
        scene.recording_plugin("sleepy");
        let sandbox = scene.sandbox("c1");
        if killed == "DEL" {
            assert!(scene.add(&sandbox).ok);
        }
        let pid = abandon_plugin(&scene, &sandbox, killed);
        let started = Instant::now();
        match next {
            "GC" => {
                let config = scene.with("cni.dev/valid-attachments", json!([]));
                scene.node.call_network("GC", &config).succeeded();
            }
            "ADD" => assert!(scene.add(&sandbox).ok, "{case}"),
            _ => scene.del(&sandbox).succeeded(),
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{case}: it took {:?}", started.elapsed());
        assert!(!is_running(pid), "{case}: the plugin still runs");
        scene.del(&sandbox).succeeded();
        assert!(scene.calls().contains(&"DEL sleepy net2 netns".to_owned()), "{case}: {:?}", scene.calls());
        scene.nothing_is_left(&[&sandbox], &[], &case);
    }
}

#[test]
fn the_plugin_of_a_living_operation_is_waited_for() {
    let scene = Scene::new();
    scene.chain("green", "10.3.0.0/24", &["slow"]);
    scene.plugin("slow", &format!("[ $CNI_COMMAND != ADD ] || {{ touch $D/begun; sleep 1; }}\n{PASS_ON}"));
    let sandbox = scene.sandbox("c1");
    let add = scene.start("ADD", &sandbox, &scene.config);
    until("the plugin runs", || scene.node.folder().join("begun").exists());
    scene.del(&sandbox).succeeded();
    let added = add.wait_with_output().unwrap();
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stdout));
    scene.nothing_is_left(&[&sandbox], &[], "waited for");
}

#[test]
fn a_process_that_only_has_the_recorded_id_is_left_alone() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("c1");
    assert!(scene.add(&sandbox).ok);
    let mut bystander = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = i32::try_from(bystander.id()).unwrap();
    scene.edit_record(|record| {
        record["running"] = json!({"pid": pid, "startTime": 1});
        record["worker"] = Value::Null;
    });
    scene.del(&sandbox).succeeded();
    assert!(is_running(pid));
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    bystander.wait().unwrap();
}

#[test]
fn an_operation_waits_for_the_container_no_longer_than_its_time_limit() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("c1");
    let folder = scene.node.state().join("locks");
    fs::create_dir_all(&folder).unwrap();
    let held = fs::File::create(folder.join("c1")).unwrap();
    held.lock().unwrap();
    let config = scene.with("timeoutSeconds", 1.into());
    for command in ["ADD", "CHECK", "DEL"] {
        let started = Instant::now();
        let (code, message) = scene.node.call(command, &sandbox, &config).error();
        assert_eq!(code, 11, "{command}: {message}");
        assert_words(&message, &["container c1", "another operation"], command);
        assert!(started.elapsed() < Duration::from_secs(3), "{command}");
    }
    drop(held);
    scene.del(&sandbox).succeeded();
    scene.nothing_is_left(&[&sandbox], &[], "locked");
}

#[test]
fn a_chain_is_undone_in_reverse_with_the_plugin_that_failed() {
    let scene = Scene::new();
    for name in ["first", "second", "third"] {
        scene.recording_plugin(name);
    }
    scene.chain("blue", "10.2.0.0/24", &["first"]);
    scene.chain("green", "10.3.0.0/24", &["second", "failing", "third"]);
    scene.plugin("failing", &format!("{RECORD}\n[ $CNI_COMMAND != ADD ]"));
    let sandbox = scene.sandbox("c1");
    let (code, message) = scene.add(&sandbox).error();
    assert_eq!(code, 100, "{message}");
    let expected = [
        "ADD first net1 netns",
        "ADD second net2 netns",
        "ADD failing net2 netns",
        "DEL failing net2 netns",
        "DEL second net2 netns",
        "DEL first net1 netns",
    ];
    assert_eq!(scene.calls(), expected, "third was never begun, so it is not asked to undo anything");
    scene.del(&sandbox).succeeded();
    scene.nothing_is_left(&[&sandbox], &[], "chain");
}

#[test]
fn add_after_a_failed_add_works_without_del() {
    let scene = Scene::new();
    scene.chain("green", "10.3.0.0/24", &["moody"]);
    scene.plugin("moody", &format!("[ -e $D/well ] || exit 1\n{PASS_ON}"));
    let sandbox = scene.sandbox("c1");
    assert_eq!(scene.add(&sandbox).error().0, 101, "its DEL fails too");
    fs::write(scene.node.folder().join("well"), "").unwrap();
    assert!(scene.add(&sandbox).ok);
    scene.check(&sandbox).succeeded();
    scene.del(&sandbox).succeeded();
    scene.nothing_is_left(&[&sandbox], &[], "moody");
}

#[test]
fn a_default_network_that_fails_leaves_nothing() {
    let scene = Scene::new();
    let mut config = scene.config.clone();
    config["delegates"][0] = masqueraded(scene.node.bridge("cni0", "default-network", "10.1.0.0/30"));
    let keeper = Sandbox::new("keeper", "");
    assert!(scene.node.call("ADD", &keeper, &config).ok, "the pool has one address beside the gateway");
    let sandbox = scene.sandbox("c1");
    let (code, message) = scene.node.call("ADD", &sandbox, &config).error();
    assert_eq!(code, 100, "{message}");
    assert_words(&message, &["default-network", "eth0", "no IP addresses available"], "default");
    assert_eq!(scene.reserved(), ["default-network/10.1.0.2"], "the other pod keeps its address");
    assert_eq!(link_names(&sandbox.netns), ["lo"]);
    scene.node.call("DEL", &keeper, &config).succeeded();
    scene.nothing_is_left(&[&sandbox, &keeper], &[], "default");
}

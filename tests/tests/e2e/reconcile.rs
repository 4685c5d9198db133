//! What was left behind is found, shown and released, by `musubi gc` and by the agent's pass alike: each kind of leftover made
//! on purpose, beside things of others that look the same and stay.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use musubi::agent::reconcile::{Options, Reconciler, Report, run_once};
use musubi::engine::gc::Kind;
use musubi_delegates::cni::{CniError, code};
use musubi_delegates::firewall::{self, Owner};
use musubi_delegates::mark::Mark;
use musubi_delegates::netlink::NewLink;
use musubi_tests::node::{Output, Sandbox, link, link_names, musubi};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::scene::crowd;
use crate::scene::{PASS_ON, Scene, assert_words, until};

/// What the agent waits unless it is told otherwise.
const FIVE_MINUTES: Duration = Duration::from_secs(300);

fn added(scene: &Scene, id: &str) -> Sandbox {
    let sandbox = scene.sandbox(id);
    let output = scene.add(&sandbox);
    assert!(output.ok, "{}", output.stdout);
    sandbox
}

/// A record that is gone by other hands than ours.
fn lose_record(scene: &Scene, id: &str) {
    let is_its = |file: &&PathBuf| file.display().to_string().contains(&format!("/{id}:"));
    fs::remove_file(scene.records().iter().find(is_its).unwrap()).unwrap();
}

fn device_info(scene: &Scene) -> PathBuf {
    scene.node.folder().join("devinfo")
}

fn gc_in(scene: &Scene, state_dir: &Path, arguments: &[&str]) -> Output {
    let (state, devices) = (state_dir.display().to_string(), device_info(scene).display().to_string());
    let fixed = ["gc", "-o", "json", "--state-dir", &state, "--device-info", &devices];
    scene.node.cli(&[&fixed, arguments].concat())
}

fn gc(scene: &Scene) -> Vec<Value> {
    stale(&gc_in(scene, &scene.node.state(), &[]))
}

fn dry_run(scene: &Scene) -> Vec<Value> {
    stale(&gc_in(scene, &scene.node.state(), &["--dry-run"]))
}

fn stale(output: &Output) -> Vec<Value> {
    output.result()["stale"].as_array().unwrap().clone()
}

/// Container and resources of findings, in one line each.
fn lines(stale: &[Value]) -> Vec<String> {
    let resources = |finding: &Value| {
        finding["resources"].as_array().unwrap().iter().map(|r| r.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    stale.iter().map(|f| format!("{}: {}", f["containerId"].as_str().unwrap(), resources(f).join(", "))).collect()
}

fn host_ends(scene: &Scene) -> Vec<String> {
    scene.node.links().into_iter().filter(|name| name.starts_with("veth")).collect()
}

#[test]
fn what_lost_its_record_is_shown_and_removed_and_the_living_keep_theirs() {
    let scene = Scene::new();
    let (alive, lost) = (added(&scene, "alive"), added(&scene, "lost"));
    fs::create_dir(device_info(&scene)).unwrap();
    for file in ["musubi-lost-net1-0a1b2c3d.json", "musubi-alive-net1-0a1b2c3d.json", "default-sriov-device.json"] {
        fs::write(device_info(&scene).join(file), "{}").unwrap();
    }
    assert_eq!(dry_run(&scene), [] as [Value; 0], "all of it is on record");
    lose_record(&scene, "lost");

    let shown = dry_run(&scene);
    let mut kinds = lines(&shown);
    kinds.iter_mut().filter(|line| line.contains("veth")).for_each(|line| line.truncate("lost: host interface".len()));
    assert_eq!(
        kinds,
        [
            "lost: host interface",
            "lost: host interface",
            "lost: host interface",
            "lost: nf_tables rules of lost/eth0/default-network",
            "lost: nf_tables rules of lost/net1/blue",
            "lost: nf_tables rules of lost/net2/green",
            "lost: musubi-lost-net1-0a1b2c3d.json",
            "lost: address 10.1.0.3 reserved for eth0",
            "lost: address 10.2.0.3 reserved for net1",
            "lost: address 10.3.0.3 reserved for net2",
        ]
    );
    for finding in &shown {
        assert_words(finding["reason"].as_str().unwrap(), &["without a record"], "reason");
    }
    assert_eq!((host_ends(&scene).len(), scene.rules().len(), scene.reserved().len()), (6, 6, 6), "only shown");

    assert_eq!(gc(&scene), shown, "what is released is what was shown");
    assert_eq!(link_names(&lost.netns), ["lo"]);
    assert_eq!((host_ends(&scene).len(), scene.rules().len(), scene.reserved().len()), (3, 3, 3));
    assert!(!device_info(&scene).join("musubi-lost-net1-0a1b2c3d.json").exists());
    for file in ["musubi-alive-net1-0a1b2c3d.json", "default-sriov-device.json"] {
        assert!(device_info(&scene).join(file).exists(), "{file}");
    }
    scene.check(&alive).succeeded();
    assert_eq!(gc(&scene), [] as [Value; 0]);
    scene.del(&alive).succeeded();
    scene.nothing_is_left(&[&alive, &lost], &[], "lost");
}

#[test]
fn what_only_looks_like_ours_stays() {
    let scene = Scene::new();
    let alive = added(&scene, "alive");
    let ours = link(&scene.node.host, &host_ends(&scene)[0]).group;
    let elsewhere = tempfile::tempdir().unwrap();
    let theirs = Mark::of(elsewhere.path()).unwrap();
    let host = scene.node.host.open();
    let pair = |name: &str, group: u32, peer: &str| {
        host.netlink.request(NewLink::named(name).group(group).veth(NewLink::named(peer))).unwrap();
    };
    pair("veth0a1b2c3d", 0, "peer0");
    pair("veth0a1b2c3e", theirs.group(), "peer1");
    pair("uplink0", ours, "peer2");
    pair("vethuplink", ours, "peer3");
    // A VXLAN device of another program, by our name, and a bridge by the name of ours.
    let vxlan = NewLink::named("mvx9").of_kind("vxlan", |data| data.u32(1, 9).be16(15, 4790));
    host.netlink.request(vxlan).unwrap();
    host.netlink.request(NewLink::named("mbr9").of_kind("bridge", |data| data)).unwrap();
    scene.node.host.enter(|| {
        let nft = musubi_delegates::netlink::Netlink::netfilter().unwrap();
        let address = ["10.8.0.2/24".parse().unwrap()];
        for owner in [Owner::new("c8", "lan", "eth0"), Owner::new("c9", "lan", "eth0").marked(Some(theirs))] {
            firewall::masquerade(&nft, &owner, &address).unwrap();
        }
    });
    fs::write(scene.node.reservations().join("blue/10.2.0.200"), "podman-container\r\neth0").unwrap();
    // A delegate that is called on its own keeps no record.
    let alone = Sandbox::new("alone", "");
    let config = scene.node.bridge("br-blue", "blue", "10.2.0.0/24");
    assert!(scene.node.delegate("bridge", "ADD", &alone, "eth0", &config).ok);

    let links = scene.node.links();
    let before = (scene.rules(), scene.reserved(), link_names(&alone.netns));
    assert_eq!(dry_run(&scene), [] as [Value; 0]);
    assert_eq!(gc(&scene), [] as [Value; 0]);
    assert_eq!((scene.rules(), scene.reserved(), link_names(&alone.netns)), before);
    assert_eq!(scene.node.links(), links);
    scene.check(&alive).succeeded();
    scene.node.delegate("bridge", "DEL", &alone, "eth0", &config).succeeded();
}

/// A folder that was mistyped, or was emptied under running pods, speaks of nobody.
#[test]
fn another_state_folder_takes_nothing_away() {
    let scene = Scene::new();
    let alive = added(&scene, "alive");
    let other = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        assert_eq!(stale(&gc_in(&scene, other.path(), &[])), [] as [Value; 0]);
        // The second time, something was recorded there once.
        fs::create_dir_all(other.path().join("records")).unwrap();
    }
    scene.check(&alive).succeeded();
    let kept = scene.node.folder().join("kept");
    fs::create_dir(&kept).unwrap();
    let content = ["records", "host-local", "shared"];
    let swap =
        |from: &Path, to: &Path| content.iter().for_each(|name| fs::rename(from.join(name), to.join(name)).unwrap());
    swap(&scene.node.state(), &kept);
    fs::create_dir(scene.node.state().join("records")).unwrap();
    assert_eq!(gc(&scene), [] as [Value; 0], "the folder was emptied, and has other records since");
    fs::remove_dir_all(scene.node.state().join("records")).unwrap();
    swap(&kept, &scene.node.state());
    scene.check(&alive).succeeded();
    assert_eq!(gc(&scene), [] as [Value; 0], "and the old ones are back, with their mark");
    scene.check(&alive).succeeded();
    scene.del(&alive).succeeded();
    scene.nothing_is_left(&[&alive], &[], "another folder");
}

#[test]
fn an_add_that_was_killed_is_taken_back_once_its_namespace_is_gone_and_not_before() {
    let scene = Scene::new();
    scene.chain("green", "10.3.0.0/24", &["slow"]);
    scene.plugin("slow", &format!("[ $CNI_COMMAND != ADD ] || {{ touch $D/begun; exec sleep 1000; }}\n{PASS_ON}"));
    let sandbox = scene.sandbox("c1");
    let mut add = scene.start("ADD", &sandbox, &scene.config);
    until("the plugin runs", || scene.node.folder().join("begun").exists());
    let before = (scene.rules(), scene.reserved(), host_ends(&scene));
    assert_eq!(gc(&scene), [] as [Value; 0], "its owner lives");
    kill(Pid::from_raw(i32::try_from(add.id()).unwrap()), Signal::SIGKILL).unwrap();
    add.wait().unwrap();
    assert_eq!(gc(&scene), [] as [Value; 0], "its namespace is there, and its DEL may come");
    assert_eq!((scene.rules(), scene.reserved(), host_ends(&scene)), before);
    sandbox.netns.end();
    let released = gc(&scene);
    assert_eq!(released.len(), 1, "{released:?}");
    assert_words(released[0]["reason"].as_str().unwrap(), &["network namespace", "is gone"], "reason");
    scene.nothing_is_left(&[], &[], "killed");
}

#[test]
fn what_a_damaged_record_may_speak_of_stays_until_its_del() {
    let scene = Scene::new();
    let (broken, lost) = (added(&scene, "broken"), added(&scene, "lost"));
    lose_record(&scene, "lost");
    let [record] = &scene.records()[..] else { panic!("one record") };
    fs::write(record, "").unwrap();
    let output = gc_in(&scene, &scene.node.state(), &[]);
    assert!(!output.ok);
    for words in
        ["container broken: its record is damaged", "container lost: interface eth0 is still there by its host's end"]
    {
        assert!(output.stderr.contains(words), "no {words:?} in {:?}", output.stderr);
    }
    assert_eq!((host_ends(&scene).len(), scene.reserved().len()), (6, 6), "links come before their addresses");
    assert_eq!(scene.rules().len(), 3, "whose rules are whose can be told");
    scene.del(&broken).succeeded();
    gc(&scene);
    scene.nothing_is_left(&[&broken, &lost], &[], "damaged");
}

#[test]
fn a_status_that_is_still_to_be_written_is_shown_and_written() {
    let scene = Scene::new();
    let status = scene.node.manifests().join("status");
    fs::write(&status, "in the way").unwrap();
    scene.node.pod("default", "web", "");
    let sandbox = added(&scene, "c1");
    let shown = dry_run(&scene);
    assert_eq!(lines(&shown), ["c1: network-status of default/web"]);
    let refused = gc_in(&scene, &scene.node.state(), &[]);
    assert!(!refused.ok && refused.stderr.contains("container c1: pod default/web"), "{}", refused.stderr);
    fs::remove_file(&status).unwrap();
    assert_eq!(gc(&scene), shown);
    assert_eq!(scene.status("default/web").unwrap()[0]["ips"], json!(["10.1.0.2"]));
    assert_eq!(gc(&scene), [] as [Value; 0]);
    scene.del(&sandbox).succeeded();
    scene.nothing_is_left(&[&sandbox], &[], "status");
}

#[test]
fn the_devices_of_a_vni_go_once_no_pod_has_it() {
    let scene = Scene::new();
    scene.node.add_uplink("up0", "up1");
    let ipam = json!({"type": "host-local", "dataDir": scene.node.reservations(), "subnet": "10.7.0.0/24"});
    let overlay =
        json!({"cniVersion": "1.0.0", "name": "overlay", "type": "vxlan", "vni": 7, "master": "up0", "ipam": ipam});
    scene.definition("overlay", &overlay);
    scene.node.pod("default", "web", "overlay");
    let (alive, lost) = (added(&scene, "alive"), added(&scene, "lost"));
    lose_record(&scene, "lost");
    assert_eq!(gc(&scene).len(), 5, "two host ends, one owner of rules, two reservations");
    assert_eq!(gc(&scene), [] as [Value; 0], "the other pod uses the VNI");
    scene.check(&alive).succeeded();
    lose_record(&scene, "alive");
    assert_eq!(gc(&scene).len(), 5);
    let shown = dry_run(&scene);
    let resources: Vec<&str> = shown[0]["resources"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
    assert_eq!((shown.len(), resources), (1, vec!["host interface mbr7", "host interface mvx7"]));
    assert_words(shown[0]["reason"].as_str().unwrap(), &["VNI 7", "no pod"], "reason");
    assert_eq!(gc(&scene), shown);
    assert_eq!(scene.node.links(), ["cni0", "lo", "up0", "up1"]);
    scene.del(&alive).succeeded();
    scene.nothing_is_left(&[&alive, &lost], &[], "vni");
}

/// The agent's pass at a moment, with a runtime that answers so.
fn pass(
    scene: &Scene,
    reconciler: &mut Reconciler,
    now: Instant,
    runtime: &(dyn Fn() -> Result<Vec<String>, CniError> + Sync),
) -> Report {
    let (state, devices) = (scene.node.state(), device_info(scene));
    scene.node.host.enter(|| {
        let ask = || runtime();
        let options = Options { now, device_info: &devices, ask_runtime: Some(&ask), store: None };
        run_once(&state, options, reconciler).unwrap()
    })
}

/// ADD as the kubelet's runtimes call it.
fn added_by_runtime(scene: &Scene, id: &str) -> Sandbox {
    let sandbox = scene.sandbox(id);
    let mut call = Command::new(musubi());
    call.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0");
    call.env("CNI_NETNS", sandbox.netns.path()).env("CNI_ARGS", format!("{};K8S_POD_UID={id}-uid", sandbox.args()));
    assert!(scene.node.run(call, &scene.config.to_string()).ok);
    sandbox
}

#[test]
fn a_sandbox_that_the_runtime_has_forgotten_is_released_by_the_agent() {
    let scene = Scene::new();
    let (alive, forgotten) = (added_by_runtime(&scene, "alive"), added_by_runtime(&scene, "forgotten"));
    let podman = added(&scene, "podman");
    let (mut reconciler, start) = (Reconciler::new(FIVE_MINUTES), Instant::now());
    let minutes = |n: u64| start + Duration::from_secs(60 * n);
    let listing = || Ok(vec!["alive".to_owned()]);
    let failing = || Err(CniError::new(code::TRY_AGAIN, "the runtime does not answer"));
    for (minute, found) in [(0, 0), (4, 0), (6, 1)] {
        let report = pass(&scene, &mut reconciler, minutes(minute), &listing);
        assert_eq!(report.found.get(&Kind::NotListed).copied().unwrap_or(0), found, "minute {minute}: {report:?}");
        assert_eq!((report.released, report.kept), (found, 0), "minute {minute}: {report:?}");
    }
    assert_eq!(link_names(&forgotten.netns), ["lo"]);
    scene.check(&alive).succeeded();
    scene.check(&podman).succeeded();
    let report = pass(&scene, &mut reconciler, minutes(60), &failing);
    assert_eq!((report.found.len(), report.errors.len()), (0, 1), "{report:?}");
    scene.check(&alive).succeeded();
    scene.del(&alive).succeeded();
    scene.del(&podman).succeeded();
    scene.nothing_is_left(&[&alive, &forgotten, &podman], &[], "forgotten");
}

#[test]
fn the_agent_finds_what_musubi_gc_finds_and_counts_it_by_kind() {
    let scene = Scene::new();
    scene.chain("green", "10.3.0.0/24", &["fickle"]);
    let plugin = scene.recording_plugin("fickle");
    let orphaned = added(&scene, "orphaned");
    fs::remove_file(&plugin).unwrap();
    scene.node.leave_unfinished();
    scene.del(&orphaned).succeeded();
    scene.recording_plugin("fickle");
    let (gone, rebooted, lost) = (added(&scene, "gone"), added(&scene, "rebooted"), added(&scene, "lost"));
    gone.netns.end();
    rebooted.netns.end();
    let file = scene.records().into_iter().find(|file| file.display().to_string().contains("/rebooted:")).unwrap();
    let mut record: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    record["bootId"] = "00000000-0000-4000-8000-000000000000".into();
    fs::write(file, record.to_string()).unwrap();
    lose_record(&scene, "lost");

    let shown = dry_run(&scene).len();
    let runtime = || Ok(Vec::new());
    let report = pass(&scene, &mut Reconciler::new(FIVE_MINUTES), Instant::now(), &runtime);
    let found: Vec<(&str, usize)> = report.found.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
    let expected =
        [("earlier-boot", 1), ("namespace-gone", 1), ("orphan", 1), ("host-link", 3), ("rules", 3), ("reservation", 3)];
    assert_eq!(found, expected);
    assert_eq!((report.released, report.kept, report.errors.len()), (shown, 0, 0), "{report:?}");
    scene.nothing_is_left(&[&orphaned, &lost], &[], "all kinds");
}

#[test]
fn passes_in_the_midst_of_adds_and_dels_find_nothing_and_lose_nothing() {
    const PODS: usize = 16;
    let scene = Scene::new();
    let sandboxes: Vec<Sandbox> = (0..PODS).map(|number| scene.sandbox(&format!("pod{number}"))).collect();
    let mut passes = 0;
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            crowd(PODS, 4, |number| {
                for _ in 0..2 {
                    let _ = scene.add(&sandboxes[number]).result();
                    scene.check(&sandboxes[number]).succeeded();
                    scene.del(&sandboxes[number]).succeeded();
                }
                let _ = scene.add(&sandboxes[number]).result();
            });
        });
        let (mut reconciler, runtime) = (Reconciler::new(FIVE_MINUTES), || Ok(Vec::new()));
        while !churn.is_finished() {
            let report = pass(&scene, &mut reconciler, Instant::now(), &runtime);
            assert_eq!((report.found.len(), report.errors.len()), (0, 0), "{report:?}");
            passes += 1;
        }
        churn.join().unwrap();
    });
    assert!(passes > 10, "only {passes} passes");
    for sandbox in &sandboxes {
        scene.check(sandbox).succeeded();
        scene.del(sandbox).succeeded();
    }
    scene.nothing_is_left(&sandboxes.iter().collect::<Vec<_>>(), &[], "churn");
}

//! The API server is away: who starts all the same, whose status is written later and by whom, and pods that come and go
//! meanwhile.

use std::fs::{self, File};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use musubi_tests::node::link_names;
use serde_json::json;

use super::stage::{NETWORKS, Stage, Started, WAYS, Way, entries, name};
use crate::scene::{files, until};

/// How long pods come and go, and when of that the server is away. May be raised to minutes.
const CHURN: Duration = Duration::from_secs(20);
const AWAY: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(14)];
/// How long an operation may take: on a busy machine it takes a while even while nothing is wrong.
const BUDGET: u64 = 8;
/// Pods that come and go at a time.
const AT_A_TIME: usize = 8;

/// Whether marks of statuses are there that wait to be written.
fn pending(stage: &Stage) -> usize {
    files(stage.scene.node.state().join("pending")).len()
}

#[test]
fn a_pod_without_networks_of_its_own_starts_and_gets_its_status_later() {
    for way in WAYS {
        let Some(stage) = Stage::breakable(way) else { return };
        let known = stage.pod("known", &[]);
        let other = stage.pod("other", &[]).handed_over(&[]);
        // Alone, the plugin knows only what the runtime hands over.
        let known = if way == Way::Alone { known.handed_over(&[]) } else { known };
        stage.api().stop();
        let started = Instant::now();
        let _ = stage.add(&known).result();
        assert!(started.elapsed() < Duration::from_secs(10), "{way:?}: {:?}", started.elapsed());
        assert_eq!(link_names(&known.sandbox.netns), ["eth0", "lo"]);
        assert_eq!(pending(&stage), 1, "{way:?}");
        stage.check(&known).succeeded();
        let _ = stage.add(&other).result();
        stage.del(&other).succeeded();
        stage.api().resume();
        if way == Way::Alone {
            // The next operation sees to it, whatever it is, once the last try is long enough ago.
            until("the first try is over", || stage.scene.node.state().join("pending-tried").exists());
            std::thread::sleep(Duration::from_millis(500));
            let tried = File::options().write(true).open(stage.scene.node.state().join("pending-tried")).unwrap();
            tried.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
            stage.check(&known).succeeded();
        }
        until("the status is written", || stage.status(&known) == Some(entries(&[("default-network", "eth0")])));
        until("no mark is left", || pending(&stage) == 0);
        stage.del(&known).succeeded();
        stage.nothing_is_left(&[&known, &other], "status written later");
    }
}

/// All that planning needs is at hand; the status is not, and whoever asked for networks relies on it.
#[test]
fn a_pod_that_selects_networks_fails_closed() {
    for way in WAYS {
        let Some(stage) = Stage::breakable(way) else { return };
        let pod = stage.pod("web", &[(NETWORKS, "blue")]).handed_over(&[(NETWORKS, "blue")]);
        stage.api().stop();
        let (code, message) = stage.call("ADD", &pod, &stage.config_with("timeoutSeconds", 2.into())).error();
        assert_eq!(code, 11, "{message}");
        let wanted = if way == Way::Agent { "network-status of pod musubi-test/web" } else { "attachmentpolicies" };
        assert!(message.contains(wanted), "{way:?}: {message}");
        stage.nothing_is_left(&[&pod], "fails closed");
        stage.del(&pod).succeeded();
    }
}

#[test]
fn del_and_check_do_without() {
    for way in WAYS {
        let Some(stage) = Stage::breakable(way) else { return };
        let pod = stage.pod("web", &[(NETWORKS, "blue,green")]);
        let _ = stage.add(&pod).result();
        stage.api().stop();
        fs::remove_file(stage.token_file()).unwrap();
        stage.check(&pod).succeeded();
        let started = Instant::now();
        stage.del(&pod).succeeded();
        assert!(started.elapsed() < Duration::from_secs(10), "{way:?}: {:?}", started.elapsed());
        stage.nothing_is_left(&[&pod], "without a server");
    }
}

/// What reaches a pod's gateway by its default network.
fn reaches_its_gateway(stage: &Stage, pod: &Started) {
    let gateway = stage.scene.node.host.enter(|| UdpSocket::bind("10.1.0.1:0")).unwrap();
    gateway.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let address: SocketAddr = gateway.local_addr().unwrap();
    let sent = pod.sandbox.netns.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"knot", address).unwrap()
    });
    let mut received = [0; 8];
    assert_eq!((gateway.recv(&mut received).unwrap(), &received[..sent]), (4, b"knot".as_slice()));
}

/// Counts of what came of ADD.
#[derive(Default)]
struct Tally {
    before: AtomicUsize,
    away: AtomicUsize,
    failed: AtomicUsize,
    after: AtomicUsize,
}

#[test]
fn pods_come_and_go_through_an_outage() {
    for way in WAYS {
        let Some(stage) = Stage::breakable(way) else { return };
        let standing = stage.pod("standing", &[(NETWORKS, "blue")]);
        let _ = stage.add(&standing).result();
        let config = stage.config_with("timeoutSeconds", BUDGET.into());
        let (tally, phase, numbers) = (Tally::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..AT_A_TIME {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let number = numbers.fetch_add(1, Ordering::Relaxed);
                        come_and_go(&stage, number, &config, &phase, &tally);
                    }
                });
            }
            std::thread::sleep(AWAY[0]);
            stage.api().stop();
            phase.store(1, Ordering::SeqCst);
            std::thread::sleep((AWAY[1] - AWAY[0]) / 2);
            stage.call_in_a_crowd("CHECK", &standing, &config).succeeded();
            reaches_its_gateway(&stage, &standing);
            std::thread::sleep((AWAY[1] - AWAY[0]) / 2);
            phase.store(2, Ordering::SeqCst);
            stage.api().resume();
            std::thread::sleep(CHURN - AWAY[1]);
            over.store(true, Ordering::Relaxed);
        });
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let (before, away, failed, after) =
            (count(&tally.before), count(&tally.away), count(&tally.failed), count(&tally.after));
        println!(
            "{way:?}: {before} started before, {away} meanwhile without networks of their own, {failed} refused, {after} after"
        );
        assert!(before > 0 && away > 0 && failed > 0 && after > 0, "{way:?}: {before} {away} {failed} {after}");
        reaches_its_gateway(&stage, &standing);
        stage.del(&standing).succeeded();
        stage.nothing_is_left(&[&standing], "after the churn");
    }
}

/// One pod's life; every other one selects networks.
fn come_and_go(stage: &Stage, number: usize, config: &serde_json::Value, phase: &AtomicUsize, tally: &Tally) {
    let networks: &[(&str, &str)] = if number.is_multiple_of(2) { &[(NETWORKS, "blue,green")] } else { &[] };
    let annotations: serde_json::Map<_, _> =
        networks.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    let object = stage.api().create(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{number}"), "namespace": "musubi-test", "annotations": annotations},
        "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "pause"}]},
    }));
    let pod = stage.started(&serde_json::from_value(object).unwrap()).handed_over(networks);
    let phase_before = phase.load(Ordering::SeqCst);
    let output = stage.call_in_a_crowd("ADD", &pod, config);
    let links = link_names(&pod.sandbox.netns);
    if output.ok {
        let wanted: &[&str] = if networks.is_empty() { &["eth0", "lo"] } else { &["eth0", "lo", "net1", "net2"] };
        assert_eq!(links, wanted, "pod {number}");
        let counter = match (phase_before, networks.is_empty()) {
            (0, _) => &tally.before,
            (1, true) => &tally.away,
            _ => &tally.after,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        stage.call_in_a_crowd("CHECK", &pod, config).succeeded();
    } else {
        let (code, message) = output.error();
        assert_eq!(code, 11, "pod {number}: {message}");
        assert!(phase.load(Ordering::SeqCst) > 0, "pod {number}, before anything was wrong: {message}");
        assert_eq!(links, ["lo"], "pod {number}: {message}");
        tally.failed.fetch_add(1, Ordering::Relaxed);
    }
    stage.call_in_a_crowd("DEL", &pod, config).succeeded();
    assert_eq!(link_names(&pod.sandbox.netns), ["lo"], "pod {number}");
    assert!(stage.api().delete("pods", "musubi-test", name(&pod)));
}

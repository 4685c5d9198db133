//! The benchmark: our program, the chain of reference plugins and the floor beneath both, measured in turns in one run, so
//! that what else the machine does falls on all alike. Prints Markdown tables; `make bench` builds what it needs.
//!
//! `bench [start-up|attach|agent|host-local|burst|agent-burst|agent-memory|admission]…` measures these alone.

mod cluster;
mod gate;
mod samples;
mod sides;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use musubi_tests::netns::Netns;
use musubi_tests::node::{Node, musubi, reference_plugins};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use samples::{Samples, row, say, table, time};
use sides::{Floor, Networks, Ours, Pod, Reference, Side, exec};

/// Rounds before counting begins.
const WARM_UP: usize = 5;
/// Rounds that count.
const ROUNDS: usize = 31;
/// Between two measurements: what the kernel still does for the one before is over then.
const REST: Duration = Duration::from_millis(25);

/// A part of the benchmark, run in the host's namespace of a node.
type Section = fn(&Node);

fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    let node = Node::new();
    hide_state_folder(&node);
    let sections: [(&str, Section); 8] = [
        ("start-up", start_up),
        ("attach", attach),
        ("agent", cluster::attach),
        ("host-local", host_local),
        ("burst", burst),
        ("agent-burst", cluster::burst),
        ("agent-memory", cluster::memory),
        ("admission", gate::admission),
    ];
    say(&format!("Milliseconds, median (least–most) of {ROUNDS} rounds; all sides in turns."));
    for (name, section) in sections {
        if chosen.is_empty() || chosen.iter().any(|c| c == name) {
            node.host.enter(|| section(&node));
        }
    }
}

/// A delegate called alone keeps its state in `/var/lib/musubi`: here, in our own mount namespace, that is a folder of
/// the benchmark's.
fn hide_state_folder(node: &Node) {
    let var_lib = node.folder().join("var-lib");
    std::fs::create_dir(&var_lib).expect("a folder");
    mount(Some(&var_lib), "/var/lib", None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("a bind mount");
}

/// Measures several things in turns, the first one first in every other round.
fn in_turns(things: &mut [&mut dyn FnMut() -> Duration]) -> Vec<Samples> {
    let mut all = vec![Samples::default(); things.len()];
    for round in 0..WARM_UP + ROUNDS {
        let mut order: Vec<usize> = (0..things.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for thing in order {
            let sample = things[thing]();
            if round >= WARM_UP {
                all[thing].push(sample);
            }
        }
    }
    all
}

fn start_up(_: &Node) {
    let beside = |name| std::env::current_exe().expect("our own path").with_file_name(name);
    let (empty, ours, theirs) = (beside("empty"), musubi(), reference_plugins().join("bridge"));
    let version = [("CNI_COMMAND", "VERSION")];
    let ask = r#"{"cniVersion":"1.0.0"}"#;
    let run = |program: &Path| time(|| exec(program, &version, ask)).0;
    let samples = in_turns(&mut [&mut || run(&empty), &mut || run(&ours), &mut || run(&theirs)]);
    table("Start-up: spawn to exit", &["program", "ms", "over the empty program", "budget"]);
    let names = ["empty static program", "musubi, VERSION", "reference bridge, VERSION"];
    for ((name, sample), budget) in names.iter().zip(&samples).zip(["", "≤ 1 over the empty program", ""]) {
        row(&[*name, &sample.cell(), &sample.over(&samples[0]).cell(), budget]);
    }
}

fn attach(node: &Node) {
    table(
        "ADD and DEL of one pod",
        &[
            "networks",
            "state on",
            "what",
            "floor",
            "floor, until all ports forward",
            "musubi",
            "reference plugins",
            "musubi / floor",
            "less start-up",
            "reference / musubi",
        ],
    );
    for count in [1, 4, 8] {
        attach_to(node, "disk", Networks(count));
    }
    let in_memory = Node::new();
    mount(Some("tmpfs"), in_memory.folder(), Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("a tmpfs");
    std::fs::create_dir(in_memory.manifests()).expect("a folder");
    in_memory.host.enter(|| attach_to(&in_memory, "tmpfs", Networks(4)));
    umount2(in_memory.folder(), MntFlags::MNT_DETACH).expect("the tmpfs");
}

fn attach_to(node: &Node, state_on: &str, networks: Networks) {
    let start = [("CNI_COMMAND", "VERSION")];
    let ours = Ours::new(node, networks, 1);
    let pod = Pod::new(0);
    // Makes the bridges, which the floor takes for granted.
    ours.add(&pod);
    ours.del(&pod);
    let reference = Reference::new(node, networks);
    let (floor, forwarding) = (Floor::new(networks, false), Floor::new(networks, true));
    let sides: [&dyn Side; 4] = [&floor, &forwarding, &ours, &reference];
    let mut adds = vec![Samples::default(); sides.len()];
    let mut dels = adds.clone();
    let mut starts = Samples::default();
    for round in 0..WARM_UP + ROUNDS {
        let mut order: Vec<usize> = (0..sides.len()).collect();
        order.rotate_left(round % sides.len());
        for side in order {
            let (add, ()) = time(|| sides[side].add(&pod));
            std::thread::sleep(REST);
            let (del, ()) = time(|| sides[side].del(&pod));
            std::thread::sleep(REST);
            if round >= WARM_UP {
                adds[side].push(add);
                dels[side].push(del);
            }
        }
        let (sample, _) = time(|| exec(&musubi(), &start, "{\"cniVersion\":\"1.0.0\"}"));
        starts.push(sample);
    }
    for (what, samples) in [("ADD", &adds), ("DEL", &dels)] {
        let [floor, forwarding, ours, reference] = &samples[..] else { unreachable!("four sides") };
        let ratio = |one: f64, other: f64| format!("{:.2}×", one / other);
        row(&[
            networks.0.to_string(),
            state_on.to_owned(),
            what.to_owned(),
            floor.cell(),
            forwarding.cell(),
            ours.cell(),
            reference.cell(),
            ratio(ours.median(), floor.median()),
            ratio(ours.median() - starts.median(), floor.median()),
            ratio(reference.median(), ours.median()),
        ]);
    }
}

/// Reservations that a full folder holds.
const RESERVATIONS: u32 = 4000;

fn host_local(node: &Node) {
    let netns = Netns::new();
    let bin = node.folder().join("bin");
    std::fs::create_dir_all(&bin).expect("a folder");
    let ours = bin.join("host-local");
    std::os::unix::fs::symlink(musubi(), &ours).expect("a link");
    let theirs = reference_plugins().join("host-local");
    let mut places = Vec::new();
    for (side, program) in [("ours", &ours), ("theirs", &theirs)] {
        for reservations in [0, RESERVATIONS] {
            places.push(Place::new(node, side, program, &netns, reservations));
        }
    }
    let mut adds: Vec<_> = places.iter().map(|place| || place.add_and_del()).collect();
    let mut things: Vec<&mut dyn FnMut() -> Duration> = adds.iter_mut().map(|add| add as _).collect();
    let samples = in_turns(&mut things);
    table(
        "host-local ADD, exec'd alone",
        &["side", "no reservations", &format!("{RESERVATIONS} reservations"), "difference of medians", "budget"],
    );
    for (side, (pair, budget)) in ["musubi", "reference"].iter().zip(samples.chunks(2).zip(["≤ 1", ""])) {
        let difference = pair[1].median() - pair[0].median();
        row(&[*side, &pair[0].cell(), &pair[1].cell(), &format!("{difference:.2}"), budget]);
    }
}

/// A folder of reservations and who uses it.
struct Place {
    program: PathBuf,
    config: String,
    netns: String,
}

impl Place {
    fn new(node: &Node, side: &str, program: &Path, netns: &Netns, reservations: u32) -> Self {
        let data_dir = node.folder().join(format!("{side}-{reservations}"));
        let folder = data_dir.join("full");
        std::fs::create_dir_all(&folder).expect("a folder");
        let address = |number: u32| std::net::Ipv4Addr::from(0x0a09_0002 + number);
        for number in 0..reservations {
            std::fs::write(folder.join(address(number).to_string()), format!("{number:064x}\r\neth0")).expect("a file");
        }
        if reservations > 0 {
            let last = folder.join("last_reserved_ip.0");
            std::fs::write(last, address(reservations - 1).to_string()).expect("a file");
        }
        let config = json!({
            "cniVersion": "1.0.0", "name": "full", "type": "host-local",
            "ipam": {"type": "host-local", "dataDir": data_dir, "subnet": "10.9.0.0/16"},
        });
        Self {
            program: program.to_owned(),
            config: config.to_string(),
            netns: netns.path().to_str().expect("text").to_owned(),
        }
    }

    fn add_and_del(&self) -> Duration {
        let id = "f".repeat(64);
        let env = |command| {
            [
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", &*id),
                ("CNI_NETNS", &self.netns),
                ("CNI_IFNAME", "eth0"),
                ("CNI_PATH", "/nowhere"),
            ]
        };
        let (sample, _) = time(|| exec(&self.program, &env("ADD"), &self.config));
        exec(&self.program, &env("DEL"), &self.config);
        sample
    }
}

/// Pods of a burst.
const PODS: u32 = 40;
/// How many are worked on at a time.
const AT_A_TIME: usize = 16;
/// How often the burst is repeated: it is long enough by itself.
const BURSTS: usize = 5;

fn burst(node: &Node) {
    let networks = Networks(4);
    let ours = Ours::new(node, networks, PODS);
    let mut pods: VecDeque<Pod> = (0..PODS).map(Pod::new).collect();
    ours.add(&pods[0]);
    ours.del(&pods[0]);
    let reference = Reference::new(node, networks);
    let make: [&(dyn Fn() -> Box<dyn Side> + Sync); 3] =
        [&|| Box::new(Floor::new(networks, false)), &|| Box::new(Ours::new(node, networks, 0)), &|| {
            Box::new(Reference::new(node, networks))
        }];
    drop(reference);
    let mut samples = vec![[Samples::default(), Samples::default()]; make.len()];
    for round in 0..=BURSTS {
        for (make, [adds, dels]) in make.iter().zip(&mut samples) {
            let (add, all) = for_all(node, pods, *make, |side, pod| side.add(pod));
            std::thread::sleep(REST * 4);
            let (del, all) = for_all(node, all, *make, |side, pod| side.del(pod));
            std::thread::sleep(REST * 4);
            pods = all;
            if round > 0 {
                adds.push(add);
                dels.push(del);
            }
        }
    }
    table(
        &format!("Burst: {PODS} pods × {} networks, {AT_A_TIME} at a time", networks.0),
        &["side", "ADD/s", "DEL/s", "ADD of all, ms", "DEL of all, ms"],
    );
    let rate = |samples: &Samples| format!("{:.0}", f64::from(PODS) * 1000.0 / samples.median());
    for (name, [adds, dels]) in ["floor", "musubi", "reference plugins"].iter().zip(&samples) {
        row(&[*name, &rate(adds), &rate(dels), &adds.cell(), &dels.cell()]);
    }
}

/// Does something to all pods, several at a time. Threads and sockets are made before the clock starts.
fn for_all(
    node: &Node,
    pods: VecDeque<Pod>,
    make: &(dyn Fn() -> Box<dyn Side> + Sync),
    act: fn(&dyn Side, &Pod),
) -> (Duration, VecDeque<Pod>) {
    let (waiting, done) = (Mutex::new(pods), Mutex::new(VecDeque::new()));
    let (ready, finished) = (Barrier::new(AT_A_TIME + 1), Barrier::new(AT_A_TIME + 1));
    let work = || {
        node.host.enter(|| {
            let side = make();
            ready.wait();
            while let Some(pod) = { waiting.lock().expect("pods").pop_front() } {
                act(&*side, &pod);
                done.lock().expect("pods").push_back(pod);
            }
            finished.wait();
        });
    };
    let elapsed = std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(work);
        }
        ready.wait();
        time(|| finished.wait()).0
    });
    (elapsed, done.into_inner().expect("pods"))
}

/// A figure of `/proc/<pid>/status` in MiB.
fn memory_of(pid: u32, what: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("a figure");
    let kilobytes: f64 = line.trim_matches([':', '\t', ' ', 'k', 'B']).parse().expect("a number");
    kilobytes / 1024.0
}

//! The benchmark: our program, the chain of reference plugins and the floor beneath both, measured in turns in one run, so
//! that what else the machine does falls on all alike. Prints Markdown tables; `make bench` builds what it needs.
//!
//! `bench [start-up|attach|agent|host-local|burst|agent-burst|agent-memory|admission]…` measures these alone.

mod cluster;
mod gate;
mod samples;
mod sides;
mod turns;

use std::path::{Path, PathBuf};
use std::time::Duration;

use musubi_tests::netns::Netns;
use musubi_tests::node::{Node, musubi, reference_plugins};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use samples::{row, say, table, time};
use sides::{Floor, Networks, Ours, Pod, Reference, Side, exec};
use turns::{AT_A_TIME, Make, PODS, ROUNDS, Times, by_verb, in_turns, rate};

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

/// What asks a plugin for its versions.
const VERSION: [(&str, &str); 1] = [("CNI_COMMAND", "VERSION")];
const ASK: &str = r#"{"cniVersion":"1.0.0"}"#;

fn start_up(_: &Node) {
    let beside = |name| std::env::current_exe().expect("our own path").with_file_name(name);
    let (empty, ours, theirs) = (beside("empty"), musubi(), reference_plugins().join("bridge"));
    let run = |program: &Path| time(|| exec(program, &VERSION, ASK)).0;
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
    let ours = Ours::new(node, networks, 1);
    let pod = Pod::new(0);
    // Makes the bridges, which the floor takes for granted.
    ours.add(&pod);
    ours.del(&pod);
    let reference = Reference::new(node, networks);
    let (floor, forwarding) = (Floor::new(networks, false), Floor::new(networks, true));
    let measured = turns::of_one_pod([&floor, &forwarding, &ours, &reference, &StartUp], &pod);
    for (what, [floor, forwarding, ours, reference, start]) in by_verb(&measured) {
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
            ratio(ours.median() - start.median(), floor.median()),
            ratio(reference.median(), ours.median()),
        ]);
    }
}

/// Our program, asked for nothing but its versions.
struct StartUp;

impl Side for StartUp {
    fn add(&self, _: &Pod) {
        exec(&musubi(), &VERSION, ASK);
    }

    fn del(&self, _: &Pod) {
        exec(&musubi(), &VERSION, ASK);
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

fn burst(node: &Node) {
    let networks = Networks(4);
    let ours = Ours::new(node, networks, PODS);
    let pod = Pod::new(0);
    ours.add(&pod);
    ours.del(&pod);
    drop(Reference::new(node, networks));
    let sides: [Make<'_>; 3] =
        [&|| Box::new(Floor::new(networks, false)), &|| Box::new(Ours::new(node, networks, 0)), &|| {
            Box::new(Reference::new(node, networks))
        }];
    let measured = turns::of_bursts(node, sides);
    table(
        &format!("Burst: {PODS} pods × {} networks, {AT_A_TIME} at a time", networks.0),
        &["side", "ADD/s", "DEL/s", "ADD of all, ms", "DEL of all, ms"],
    );
    for (name, Times { add, del }) in ["floor", "musubi", "reference plugins"].iter().zip(&measured) {
        row(&[*name, &rate(add), &rate(del), &add.cell(), &del.cell()]);
    }
}

/// A figure of `/proc/<pid>/status` in MiB.
fn memory_of(pid: u32, what: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("a figure");
    let kilobytes: f64 = line.trim_matches([':', '\t', ' ', 'k', 'B']).parse().expect("a number");
    kilobytes / 1024.0
}

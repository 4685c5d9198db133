//! `musubi demo` as its users run it: as root, as nobody, on a machine that forbids it, in a cluster that somebody breaks,
//! and on a kernel with every kind of interface.
#![allow(clippy::unwrap_used, reason = "what is outside of test functions is part of a test, too")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use musubi_delegates::netlink::{LinkChange, NewLink};
use musubi_tests::netns::Netns;
use musubi_tests::node::{link_names, musubi};
use musubi_tests::vm::Machine;
use nix::errno::Errno;
use serde_json::Value;
use tempfile::TempDir;

/// The pods of `examples/` that the demo runs, and their nodes.
const PODS: [(&str, &str); 4] = [("web", "node-1"), ("db", "node-1"), ("api", "node-2"), ("cache", "node-2")];

/// The networks, their kinds, and whether they reach over the nodes.
const NETWORKS: [(&str, &str, bool); 5] = [
    ("cluster", "bridge", true),
    ("default/blue", "bridge", false),
    ("default/lan", "macvlan", true),
    ("default/overlay", "vxlan", true),
    ("default/shared", "ipvlan", true),
];

/// A machine with a link, a user's copy of the program, and nothing else.
struct Host {
    netns: Netns,
    folder: TempDir,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::copy(musubi(), folder.path().join("musubi")).unwrap();
        let netns = Netns::new();
        netns.open().netlink.request(NewLink::named("wan").veth(NewLink::named("isp"))).unwrap();
        Self { netns, folder }
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("musubi")
    }

    /// `musubi demo --json` behind a prefix such as `setpriv …`, in a process that may lose its rights.
    fn demo(&self, prefix: &[&str]) -> Output {
        let mut words = prefix.iter().map(ToString::to_string).chain([self.program().display().to_string()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(["demo", "--json"]).env("TMPDIR", "/tmp");
        self.netns.enter(|| command.output().unwrap())
    }

    /// Everything of the machine that a careless demo could change.
    fn state(&self) -> (Vec<String>, usize, BTreeSet<PathBuf>) {
        let files = |folder: &str| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
        let ours = |path: &PathBuf| ["node-1", "node-2"].iter().any(|node| path.ends_with(node));
        let routes = self.netns.open().netlink.routes().unwrap().len();
        (link_names(&self.netns), routes, files("/tmp").chain(files("/run")).filter(ours).collect())
    }
}

/// What the demo must have printed on a kernel with these kinds.
fn assert_shows(report: &Value, has_ipvlan: bool) {
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(report), ["pods", "pings", "skipped", "leftovers"]);
    assert_eq!(report["leftovers"], Value::Array(Vec::new()));

    let skipped = report["skipped"].as_array().unwrap();
    let kinds: Vec<&Value> = skipped.iter().map(|entry| &entry["kind"]).collect();
    assert_eq!(kinds, if has_ipvlan { vec![] } else { vec!["ipvlan"] });
    for entry in skipped {
        assert_eq!(keys(entry), ["kind", "reason"]);
        assert!(entry["reason"].as_str().unwrap().contains("CONFIG_IPVLAN"), "{entry}");
    }

    let networks: Vec<_> = NETWORKS.into_iter().filter(|(_, kind, _)| has_ipvlan || *kind != "ipvlan").collect();
    let pods = report["pods"].as_array().unwrap();
    assert_eq!(
        pods.iter().map(|pod| (pod["name"].as_str().unwrap(), pod["node"].as_str().unwrap())).collect::<Vec<_>>(),
        PODS
    );
    for pod in pods {
        assert_eq!(keys(pod), ["name", "node", "interfaces", "networkStatus"]);
        let interfaces = pod["interfaces"].as_array().unwrap();
        let found: Vec<_> =
            interfaces.iter().map(|i| (i["network"].as_str().unwrap(), i["kind"].as_str().unwrap())).collect();
        assert_eq!(found, networks.iter().map(|(name, kind, _)| (*name, *kind)).collect::<Vec<_>>());
        assert_eq!(interfaces[0]["name"], "eth0");
        let status = pod["networkStatus"].as_array().unwrap();
        assert_eq!(status[0]["default"], true);
        for (entry, interface) in status.iter().zip(interfaces) {
            assert_eq!(keys(interface), ["name", "network", "kind", "ips", "mac"]);
            // The interface as the kernel has it, the status as the store has it.
            for (of_status, of_kernel) in [("interface", "name"), ("name", "network"), ("ips", "ips"), ("mac", "mac")] {
                assert_eq!(entry[of_status], interface[of_kernel], "{entry}");
            }
        }
    }
    let overlay = &pods[1]["interfaces"][3];
    assert_eq!(overlay["ips"], serde_json::json!(["10.30.0.12", "fd00:30::12"]), "as db asks for");
    assert_eq!(overlay["mac"], "02:00:0a:1e:00:0c", "as db asks for");

    assert_eq!(cells(report, |_| true), expected_cells(&networks));
    for ping in report["pings"].as_array().unwrap() {
        assert_eq!(keys(ping), ["from", "to", "network", "ok", "rttMs"]);
        assert_eq!(ping["ok"], true, "{ping}");
        assert!(ping["rttMs"].as_f64().unwrap() > 0.0, "{ping}");
    }
}

type Cell = (String, String, String);

fn cells(report: &Value, wanted: impl Fn(&Value) -> bool) -> BTreeSet<Cell> {
    let text = |ping: &Value, key: &str| ping[key].as_str().unwrap().to_owned();
    let pings = report["pings"].as_array().unwrap().iter().filter(|ping| wanted(ping));
    pings.map(|ping| (text(ping, "from"), text(ping, "to"), text(ping, "network"))).collect()
}

fn expected_cells(networks: &[(&str, &str, bool)]) -> BTreeSet<Cell> {
    let mut cells = BTreeSet::new();
    for (from, from_node) in PODS {
        for (to, to_node) in PODS.iter().filter(|(to, _)| *to != from) {
            let connected = networks.iter().filter(|(_, _, over_nodes)| *over_nodes || from_node == *to_node);
            cells.extend(connected.map(|(network, ..)| (from.to_owned(), (*to).to_owned(), (*network).to_owned())));
        }
    }
    cells
}

fn kernel_has_ipvlan() -> bool {
    let host = Netns::new().open().netlink;
    host.request(NewLink::named("below").veth(NewLink::named("other"))).unwrap();
    let below = host.link_by_name("below").unwrap().unwrap().index;
    match host.request(NewLink::named("probe").parent(below).of_kind("ipvlan", |data| data)) {
        Ok(()) => true,
        Err(e) => {
            assert_eq!(e.errno, Errno::EOPNOTSUPP, "{e}");
            false
        }
    }
}

/// Words that start a program as a user without any right, and those that start another beside it. Nobody of the machine
/// where we are its root; where we are root of a user namespace with no other user in it, one of a namespace below.
fn without_rights() -> [Vec<&'static str>; 2] {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    if map.split_whitespace().eq(["0", "0", "4294967295"]) {
        let nobody = vec!["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
        [nobody.clone(), nobody]
    } else {
        [vec!["unshare", "--user", "--map-user", "65534", "--map-group", "65534", "--"], Vec::new()]
    }
}

#[test]
fn every_network_answers_and_nothing_is_left_for_root_and_for_nobody() {
    let has_ipvlan = kernel_has_ipvlan();
    let [nobody, _] = without_rights();
    for prefix in [Vec::new(), nobody] {
        let host = Host::new();
        let before = host.state();
        let output = host.demo(&prefix);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{prefix:?}: {told}");
        assert_shows(&serde_json::from_slice(&output.stdout).unwrap(), has_ipvlan);
        assert_eq!(host.state(), before, "{prefix:?}: the machine is as it was");
        for step in ["ADD web on node-1", "ping every pod", "DEL cache on node-2"] {
            let line = told.lines().find(|line| line.contains(step)).unwrap_or_else(|| panic!("no {step}: {told}"));
            assert!(line.starts_with('✓') && line.ends_with(" ms"), "{line}");
        }
    }
}

#[test]
fn for_a_person_it_is_a_drawing_and_tables_within_100_columns() {
    let host = Host::new();
    let output = host.netns.enter(|| Command::new(host.program()).arg("demo").output().unwrap());
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains('\x1b'), "colours are for terminals");
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    for part in [
        "┌─ node-1 ─",
        "│ ┌─ web ─",
        "fd00:30::11",
        "underlay 192.168.50.0/24",
        "default/overlay",
        "web → cache",
        "nothing is left",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let row = text.lines().find(|line| line.contains("web → api")).unwrap();
    assert!(row.contains('·'), "a bridge ends at its node, and that is said: {row}");
    assert!(text.contains("not connected by blue, by design"), "{text}");
}

#[test]
fn where_user_namespaces_are_forbidden_one_line_says_what_to_do() {
    let forbid =
        "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all -- \"$@\"";
    let prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh"];
    let output = Host::new().demo(&prefix);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let told = String::from_utf8(output.stderr).unwrap();
    let error: Vec<&str> = told.lines().filter(|line| line.starts_with("musubi:")).collect();
    let [error] = error.as_slice() else { panic!("{told}") };
    for part in ["refuses user namespaces", "as root", "user.max_user_namespaces"] {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
}

/// A demo that waits for Enter.
struct Kept {
    process: Child,
    /// For each node and pod the command that enters it.
    commands: Vec<(String, Vec<String>)>,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Kept {
    fn start(host: &Host, prefix: &[&str]) -> Self {
        let program = host.program().display().to_string();
        let words: Vec<&str> = prefix.iter().copied().chain([program.as_str(), "demo", "--json", "--keep"]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = host.netns.enter(|| command.spawn().unwrap());
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let mut commands = Vec::new();
        loop {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended without waiting");
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            match words.as_slice() {
                [name, nsenter, ..] if nsenter == "nsenter" => commands.push((name.clone(), words[1..].to_vec())),
                _ if line.contains("press Enter") => return Self { process, commands, stderr },
                _ => {}
            }
        }
    }

    fn command(&self, place: &str) -> &[String] {
        &self.commands.iter().find(|(name, _)| name == place).unwrap_or_else(|| panic!("no command for {place}")).1
    }

    /// The interfaces that the printed command finds in a place.
    fn interfaces(&self, prefix: &[&str], place: &str) -> String {
        let words: Vec<&str> = prefix.iter().copied().chain(self.command(place).iter().map(String::as_str)).collect();
        let output = Command::new(words[0]).args(&words[1..]).args(["cat", "/proc/net/dev"]).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn enter(mut self) -> (Option<i32>, Value) {
        self.process.stdin.take().unwrap().write_all(b"\n").unwrap();
        std::io::copy(&mut self.stderr, &mut std::io::sink()).unwrap();
        let output = self.process.wait_with_output().unwrap();
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
    }
}

#[test]
fn kept_it_can_be_entered_by_the_commands_it_prints() {
    let host = Host::new();
    let [nobody, beside] = without_rights();
    for (prefix, beside) in [(Vec::new(), Vec::new()), (nobody, beside)] {
        let kept = Kept::start(&host, &prefix);
        assert_eq!(kept.commands.len(), 6, "two nodes and four pods");
        assert!(kept.interfaces(&beside, "node-1").contains("mvx100:"));
        let inside = kept.interfaces(&beside, "cache");
        assert!(inside.contains("net3:") && !inside.contains("mvx100:"), "{inside}");
        let (code, report) = kept.enter();
        assert_eq!((code, cells(&report, |ping| ping["ok"] != true)), (Some(0), BTreeSet::new()), "{prefix:?}");
    }
}

#[test]
fn a_link_that_is_cut_is_seen_in_its_cells_and_nowhere_else() {
    let host = Host::new();
    let kept = Kept::start(&host, &[]);
    let namespace = kept.command("web").iter().find_map(|word| word.strip_prefix("--net=")).unwrap();
    let web = musubi_delegates::netns::Namespace::open(Path::new(namespace)).unwrap().unwrap();
    let overlay = web.netlink.link_by_name("net3").unwrap().unwrap();
    web.netlink.request(LinkChange::of(overlay.index, "cut").flag(1, false).request()).unwrap();
    drop(web);

    let (code, report) = kept.enter();
    assert_eq!(code, Some(1));
    let is_cut = |cell: &Cell| cell.2 == "default/overlay" && (cell.0 == "web" || cell.1 == "web");
    let all = cells(&report, |_| true);
    assert_eq!(cells(&report, |ping| ping["ok"] == false), all.iter().filter(|cell| is_cut(cell)).cloned().collect());
    assert_eq!(all.iter().filter(|cell| is_cut(cell)).count(), 6);
    assert_eq!(report["leftovers"], Value::Array(Vec::new()), "DEL takes a broken pod away, too");
    let lost = report["pings"].as_array().unwrap().iter().filter(|ping| ping["ok"] == false);
    assert!(lost.into_iter().all(|ping| ping["rttMs"].is_null()), "what was not answered took no time");
}

/// Where the kernel has every kind, nothing is skipped.
#[test]
fn vm_shows_ipvlan_too() {
    let mut machine = Machine::new().unwrap();
    for (host, guest) in
        [(musubi().as_path(), "/musubi"), (Path::new("/bin/sh"), "/bin/sh"), (Path::new("/bin/mkdir"), "/bin/mkdir")]
    {
        machine.file(host, guest);
    }
    let script =
        "mkdir -p /tmp; /musubi demo --json 2>/tmp/told || while read -r line; do echo \"$line\"; done </tmp/told";
    let outcome = machine.run("/bin/sh", &["-c", script], Duration::from_secs(120)).unwrap();
    let report = serde_json::from_str(&outcome.output).unwrap_or_else(|e| panic!("{e}: {}", outcome.output));
    assert_shows(&report, true);
}

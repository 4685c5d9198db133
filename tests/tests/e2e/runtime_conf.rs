//! The configuration that the agent keeps for the runtime: that it follows what happens in the folder, that no reader ever
//! sees half of it, and that it serves every verb when it is called as runtimes call it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use musubi::agent::config::AgentConfig;
use musubi::agent::runtime_conf::{FILE, Keeper, State, keep};
use musubi::config::Config;
use musubi_delegates::cni::{CniResult, ConfList, NetConf, ValidAttachment, Version};
use musubi_tests::node::{Node, Output, Sandbox};
use musubi_tests::recorded;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::scene::until;

/// Less than the time after which the folder is read without a reason.
const BY_NOTICE: Duration = Duration::from_secs(3);

/// A node whose folder for runtimes is below it, with recording plugins.
struct Place {
    node: Node,
}

impl Place {
    fn new() -> Self {
        let mut node = Node::new();
        recorded::install(&mut node, Path::new(env!("CARGO_BIN_EXE_recorder")), &["rec-main", "rec-second"]);
        fs::create_dir(node.folder().join("net.d")).unwrap();
        Self { node }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.node.folder().join("net.d").join(name)
    }

    fn put(&self, name: &str, network: &Value) {
        fs::write(self.path(name), network.to_string()).unwrap();
    }

    fn agent(&self, keys: Value) -> Arc<AgentConfig> {
        let folder = self.node.folder();
        let mut all = json!({
            "cniConfigDir": folder.join("net.d"), "socketDir": folder.join("run"),
            "cniDir": self.node.state(), "manifestDir": self.node.manifests(), "binDir": folder.join("bin"),
        });
        all.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let agent = AgentConfig::parse(all.to_string().as_bytes()).unwrap();
        assert_eq!(agent.warnings, [""; 0]);
        Arc::new(agent)
    }

    /// The configuration as an agent with these keys leaves it, read as a runtime reads it.
    fn written(&self, keys: Value) -> Runtime<'_> {
        let mut keeper = Keeper::new(self.agent(keys));
        let state = keeper.look(Instant::now());
        assert_eq!(state.problem(), None);
        Runtime { place: self, list: self.list(), is_old: false }
    }

    fn list(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path(FILE)).unwrap()).unwrap()
    }
}

/// Calls us as a runtime with libcni does.
#[derive(Clone)]
struct Runtime<'a> {
    place: &'a Place,
    list: Value,
    /// Whether it is one that has never heard of `cniVersions`.
    is_old: bool,
}

impl Runtime<'_> {
    fn conf(&self, prev: Option<&Value>) -> NetConf {
        let mut list = self.list.clone();
        if self.is_old {
            list.as_object_mut().unwrap().remove("cniVersions");
        }
        let list = ConfList::parse(list.to_string().as_bytes()).unwrap();
        let prev = prev.map(|prev| CniResult::parse(prev, list.version).unwrap());
        let known = json!({"portMappings": [{"HostPort": 80}], "bandwidth": {"IngressRate": 1}});
        list.request(0, prev.as_ref(), known.as_object().unwrap()).unwrap()
    }

    fn call(&self, command: &str, sandbox: &Sandbox, prev: Option<&Value>) -> Output {
        self.place.node.call(command, sandbox, &Value::Object(self.conf(prev).0))
    }

    fn status(&self) -> Output {
        let mut conf = self.conf(None);
        conf.remove("runtimeConfig");
        self.place.node.call_network("STATUS", &Value::Object(conf.0))
    }

    fn gc(&self, valid: &[&Sandbox]) -> Output {
        let valid = valid.iter().map(|s| ValidAttachment { container_id: s.id.clone(), interface: "eth0".into() });
        let mut conf = self.conf(None);
        conf.remove("runtimeConfig");
        conf.set_valid_attachments(&valid.collect::<Vec<_>>());
        self.place.node.call_network("GC", &Value::Object(conf.0))
    }
}

/// A primary network of two plugins; the first says what it is told to.
fn primary(version: &str) -> Value {
    let ips = if version < "1.0.0" {
        json!([{"version": "4", "address": "10.9.0.2/24"}])
    } else {
        json!([{"address": "10.9.0.2/24"}])
    };
    json!({"cniVersion": version, "name": "flat", "plugins": [
        {"type": "rec-main", "capabilities": {"portMappings": true}, "recorder": {"result": {"ips": ips}}},
        {"type": "rec-second", "capabilities": {"bandwidth": true}},
    ]})
}

/// An agent's part that keeps the configuration, as long as the value lives.
struct Keeping {
    states: Option<watch::Receiver<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeping {
    fn start(agent: Arc<AgentConfig>) -> Self {
        let (sender, states) = watch::channel(State::Waiting { reason: String::new() });
        let thread = std::thread::spawn(move || keep(agent, &sender));
        Self { states: Some(states), thread: Some(thread) }
    }

    fn state(&self) -> State {
        self.states.as_ref().unwrap().borrow().clone()
    }

    /// Waits for a state that only a notice of the change brings about so soon.
    fn becomes(&self, what: &str, is_so: impl Fn(&State) -> bool) {
        let started = Instant::now();
        until(what, || is_so(&self.state()));
        assert!(started.elapsed() < BY_NOTICE, "{what}: only after {:?}", started.elapsed());
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.states = None;
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn the_configuration_follows_what_happens_in_the_folder() {
    let place = Place::new();
    let keeping = Keeping::start(place.agent(json!({})));
    let uses = |file: &str| {
        let file = place.path(file).display().to_string();
        move |state: &State| matches!(state, State::Written { primary } if *primary == file)
    };
    keeping.becomes("it waits", |state| state.problem().is_some_and(|why| why.contains("no configuration")));
    assert!(!place.path(FILE).exists(), "multi-net 6.1: nothing before the default network is there");
    place.put("20-late.conflist", &primary("0.3.1"));
    keeping.becomes("the first one is taken", uses("20-late.conflist"));
    place.put("10-better.conflist", &primary("1.0.0"));
    keeping.becomes("the better one is taken", uses("10-better.conflist"));
    fs::rename(place.path("10-better.conflist"), place.path("10-better.conflist.cilium_bak")).unwrap();
    keeping.becomes("the other one is taken", uses("20-late.conflist"));
    let good = place.list();
    fs::write(place.path("20-late.conflist"), "{\"name\": \"fl").unwrap();
    keeping.becomes("half of it is no reason to change", |state| matches!(state, State::Stale { .. }));
    assert_eq!(place.list(), good);
    place.put("20-late.conflist", &primary("0.3.1"));
    keeping.becomes("it is whole again", uses("20-late.conflist"));
    fs::rename(place.path(FILE), place.path(&format!("{FILE}.cilium_bak"))).unwrap();
    let started = Instant::now();
    until("ours is written again", || place.path(FILE).exists());
    assert!(started.elapsed() < BY_NOTICE);
    // The folder itself may be made anew.
    fs::rename(place.path(""), place.node.folder().join("old.d")).unwrap();
    fs::create_dir(place.path("")).unwrap();
    place.put("30-new.conflist", &primary("1.0.0"));
    until("the new folder is noticed", || uses("30-new.conflist")(&keeping.state()));
    place.put("25-next.conflist", &primary("1.0.0"));
    keeping.becomes("and watched", uses("25-next.conflist"));
    drop(keeping);
    assert!(place.path(FILE).exists(), "an agent that ends leaves it in place");
}

#[test]
fn no_reader_ever_sees_half_a_configuration() {
    let place = Place::new();
    let texts = [primary("0.3.1").to_string(), primary("1.0.0").to_string().replace("bandwidth", "ips")];
    fs::write(place.path("10-a.conflist"), &texts[0]).unwrap();
    let seen = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let enough = || seen.iter().all(|count| count.load(Ordering::Relaxed) >= 20);
    let mut keeper = Keeper::new(place.agent(json!({})));
    keeper.look(Instant::now());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            until("both were read often enough", || {
                // As most programs write their files: in place, in pieces.
                let text = &texts[round % 2];
                fs::write(place.path("10-a.conflist"), &text[..text.len() / 2]).unwrap();
                fs::write(place.path("10-a.conflist"), text).unwrap();
                round += 1;
                enough()
            });
        });
        let reader = scope.spawn(|| {
            until("both were read often enough", || {
                let list = place.list();
                let list = ConfList::parse(list.to_string().as_bytes()).unwrap();
                Config::parse(&list.request(0, None, &Map::new()).unwrap()).unwrap();
                seen[usize::from(list.plugins[0].has_capability("ips"))].fetch_add(1, Ordering::Relaxed);
                enough()
            });
        });
        while !reader.is_finished() {
            keeper.look(Instant::now());
        }
    });
}

#[test]
fn every_runtime_is_served_in_its_version_whatever_the_primary_networks_is() {
    for network in ["0.3.1", "1.0.0", "1.1.0"] {
        for (is_old, version) in [(true, "0.4.0"), (false, "1.1.0")] {
            let case = format!("primary {network}, runtime {version}");
            let place = Place::new();
            place.node.definition(
                "default",
                "blue",
                &json!({"cniVersion": network, "name": "blue", "type": "rec-main"}),
            );
            place.node.pod("default", "web", "blue");
            place.put("10-flat.conflist", &primary(network));
            let runtime = Runtime { is_old, ..place.written(json!({})) };
            let sandbox = Sandbox::new("c1", "default/web");
            let result = runtime.call("ADD", &sandbox, None).result();
            assert_eq!(
                (&result["cniVersion"], &result["ips"][0]["address"]),
                (&json!(version), &json!("10.9.0.2/24")),
                "{case}"
            );
            assert_eq!(result["ips"][0].get("version"), is_old.then_some(&json!("4")), "{case}: in the runtime's form");

            let added = recorded::take(&place.node);
            let told = added
                .iter()
                .map(|call| (call.plugin.as_str(), call.conf()["runtimeConfig"].clone()))
                .collect::<Vec<_>>();
            assert_eq!(
                told[0],
                ("rec-main", json!({"portMappings": [{"HostPort": 80}]})),
                "{case}: each what it can do"
            );
            assert_eq!(told[1], ("rec-second", json!({"bandwidth": {"IngressRate": 1}})), "{case}");
            assert!(
                added[..2].iter().all(|call| call.conf()["cniVersion"] == *network),
                "{case}: plugins keep their version"
            );

            runtime.call("CHECK", &sandbox, Some(&result)).succeeded();
            let checks = recorded::take(&place.node).len();
            assert_eq!(checks, if network < "0.4.0" { 0 } else { 3 }, "{case}: CHECK reaches those who know it");
            if !is_old {
                runtime.status().succeeded();
                let _ = recorded::take(&place.node);
                let other = Sandbox::new("c2", "default/web");
                let _ = runtime.call("ADD", &other, None).result();
                let _ = recorded::take(&place.node);
                runtime.gc(&[&sandbox]).succeeded();
                let calls = recorded::take(&place.node);
                let deleted = calls.iter().filter(|call| call.command == "DEL");
                assert_eq!(
                    deleted.filter(|call| call.var("CNI_CONTAINERID") == "c2").count(),
                    3,
                    "{case}: GC takes c2"
                );
                let told = calls.iter().filter(|call| call.command == "GC").count();
                assert_eq!(told, if network < "1.1.0" { 0 } else { 3 }, "{case}: and tells those who know it");
                runtime.call("CHECK", &sandbox, Some(&result)).succeeded();
            }
            runtime.call("DEL", &sandbox, Some(&result)).succeeded();
            assert_eq!(place.node.leftover_files(), [""; 0], "{case}");
        }
    }
}

/// A runtime's upgrade or downgrade happens between ADD and DEL, and so does a change of the primary network.
#[test]
fn del_works_in_another_version_and_after_another_primary_network() {
    let place = Place::new();
    place.put("10-flat.conflist", &primary("1.0.0"));
    let before = place.written(json!({}));
    for (added_by_old, deleted_by_old) in [(true, false), (false, true)] {
        let sandbox = Sandbox::new("c1", "");
        let result = Runtime { is_old: added_by_old, ..before.clone() }.call("ADD", &sandbox, None).result();
        place.put("05-next.conflist", &json!({"cniVersion": "1.0.0", "name": "next", "type": "rec-second"}));
        let after = place.written(json!({}));
        assert_ne!(after.list, before.list);
        let after = Runtime { is_old: deleted_by_old, ..after };
        let _ = recorded::take(&place.node);
        // A runtime sends the result that it keeps, in the version that it speaks.
        let known = CniResult::parse(&result, Version::parse(result["cniVersion"].as_str().unwrap()).unwrap()).unwrap();
        let version = if deleted_by_old { Version::V0_4_0 } else { Version::V1_1_0 };
        after.call("DEL", &sandbox, Some(&known.to_json(version).unwrap())).succeeded();
        let called: Vec<String> = recorded::take(&place.node).iter().map(|c| c.plugin.clone()).collect();
        assert_eq!(called, ["rec-second", "rec-main"], "what was added, in reverse");
        assert_eq!(place.node.leftover_files(), [""; 0]);
        fs::remove_file(place.path("05-next.conflist")).unwrap();
        let _ = place.written(json!({}));
    }
}

#[test]
fn status_is_50_until_the_default_network_is_usable() {
    type Harm = fn(&Place);
    let harms: &[(&str, u64, &str, Harm)] = &[
        ("the primary's file is gone", 50, "10-flat.conflist", |p| {
            fs::remove_file(p.path("10-flat.conflist")).unwrap()
        }),
        ("it is empty", 50, "10-flat.conflist", |p| fs::write(p.path("10-flat.conflist"), "").unwrap()),
        ("it is half written", 50, "10-flat.conflist", |p| fs::write(p.path("10-flat.conflist"), "{\"na").unwrap()),
        ("a folder is in its place", 50, "no .conf", |p| {
            fs::remove_file(p.path("10-flat.conflist")).unwrap();
            fs::create_dir(p.path("10-flat.conflist")).unwrap();
        }),
        ("it is ours", 50, "musubi", |p| p.put("10-flat.conflist", &json!({"name": "n", "type": "musubi"}))),
        ("it is not ready", 50, "not ready", |p| fs::remove_file(p.path("ready")).unwrap()),
        ("its plugin is missing", 50, "rec-main", |p| fs::remove_file(p.node.folder().join("bin/rec-main")).unwrap()),
        ("a chained plugin is missing", 50, "rec-second", |p| {
            fs::remove_file(p.node.folder().join("bin/rec-second")).unwrap();
        }),
        ("it says so itself", 50, "no route yet", |p| failing(p, 50, "no route yet")),
        ("it says that pods lose their network", 51, "no route any more", |p| failing(p, 51, "no route any more")),
        ("it fails otherwise", 50, "out of memory", |p| failing(p, 11, "out of memory")),
        ("its IPAM plugin is missing", 50, "no-such-ipam", |p| {
            let bridge =
                json!({"cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipam": {"type": "no-such-ipam"}});
            p.put("10-flat.conflist", &bridge);
        }),
        ("our state folder is a file", 50, "state", |p| fs::write(p.node.state(), "").unwrap()),
    ];
    for (case, code, words, harm) in harms {
        let place = Place::new();
        place.put("10-flat.conflist", &primary("1.1.0"));
        fs::write(place.path("ready"), "").unwrap();
        let runtime = place.written(json!({"readinessindicatorfile": place.path("ready")}));
        assert!(runtime.status().ok, "{case}: usable before");
        let _ = fs::remove_dir_all(place.node.state());
        harm(&place);
        let output = runtime.status();
        assert!(!output.ok, "{case}: nobody notices");
        let (answered, message) = output.error();
        assert_eq!(answered, *code, "{case}: {message}");
        assert!(message.contains(words) && !message.contains('\n'), "{case}: {message}");
    }
}

/// Makes the primary network's first plugin answer STATUS with an error.
fn failing(place: &Place, code: u32, message: &str) {
    let mut network = primary("1.1.0");
    network["plugins"][0]["recorder"]["error"] =
        json!({"STATUS": {"cniVersion": "1.1.0", "code": code, "msg": message}});
    place.put("10-flat.conflist", &network);
}

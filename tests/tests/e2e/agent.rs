//! The agent in front of the engine: what it answers, who does the work when it does not, and that each request is done
//! once whoever goes away when.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use musubi_tests::agent::{self, Agent};
use musubi_tests::node::{Sandbox, link_names};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::scene::{PASS_ON, RECORD, Scene, files, until};

/// A scene whose configuration names the agent's socket, and the agent's own configuration.
fn scene() -> (Scene, Value) {
    let mut scene = Scene::new();
    let agent = agent::config(&scene.node, &scene.config);
    scene.config["agentSocket"] = json!(agent::socket(&scene.node));
    scene.config["logLevel"] = "debug".into();
    (scene, agent)
}

/// The operations that an agent has carried out, newest first: verb and outcome.
fn done(agent: &Agent) -> Vec<(String, u64)> {
    let history = agent.get("/history").json();
    let operations = history["operations"].as_array().unwrap().iter();
    operations
        .map(|o| (o["verb"].as_str().unwrap().to_owned(), o["error"]["code"].as_u64().unwrap_or_default()))
        .collect()
}

fn operations(of: &[(&str, u64)]) -> Vec<(String, u64)> {
    of.iter().map(|(verb, code)| ((*verb).to_owned(), *code)).collect()
}

#[test]
fn it_does_what_the_plugin_would_have_done() {
    let (scene, config) = scene();
    let alone = scene.sandbox("alone");
    let expected = scene.add(&alone).result();
    let status = scene.status("default/web").unwrap();
    scene.del(&alone).succeeded();

    let agent = Agent::start(&scene.node, &config);
    let sandbox = scene.sandbox("c1");
    let result = scene.add(&sandbox).result();
    let shape = |result: &Value| result["interfaces"].as_array().unwrap().len();
    assert_eq!(shape(&result), shape(&expected));
    assert_eq!(result["ips"][0]["gateway"], expected["ips"][0]["gateway"]);
    let names = |status: &Value| {
        let entries = status.as_array().unwrap().iter();
        entries.map(|e| (e["name"].clone(), e["interface"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(names(&scene.status("default/web").unwrap()), names(&status));
    assert_eq!(link_names(&sandbox.netns), ["eth0", "lo", "net1", "net2"]);
    scene.check(&sandbox).succeeded();
    scene.node.call_network("STATUS", &scene.config).succeeded();
    scene.del(&sandbox).succeeded();
    scene.del(&sandbox).succeeded();
    let (code, message) = scene.check(&sandbox).error();
    assert_eq!((code, message.as_str()), (3, "container c1 has no attachment of network musubi-network"));
    scene.nothing_is_left(&[&sandbox, &alone], &[], "by the agent");
    let all = [("CHECK", 3), ("DEL", 0), ("DEL", 0), ("STATUS", 0), ("CHECK", 0), ("ADD", 0)];
    assert_eq!(done(&agent), operations(&all));
    assert!(agent.stop(), "it ends well");
}

#[test]
fn the_work_is_done_without_it_when_it_does_not_answer() {
    type Case = (&'static str, fn(&Scene, &Value) -> Option<Agent>);
    let cases: [Case; 6] = [
        ("there is none", |_, _| None),
        ("its socket is left over", |scene, config| {
            drop(Agent::start(&scene.node, config));
            assert!(agent::socket(&scene.node).exists());
            None
        }),
        ("it is stopped, and says nothing", |scene, config| {
            let agent = Agent::start(&scene.node, config);
            agent.signal(Signal::SIGSTOP);
            Some(agent)
        }),
        ("it cannot enter the host's mounts", |scene, config| {
            let mut config = config.clone();
            config["hostMountNamespace"] = "/nonexistent".into();
            let agent = Agent::start(&scene.node, &config);
            let ready = agent.get("/readyz");
            assert!(ready.status == 500 && ready.body.contains("/nonexistent"), "{ready:?}");
            Some(agent)
        }),
        ("it sees another state folder", |scene, config| {
            // A container's own mounts, say, with the same paths and other files.
            let agent = Agent::start_apart(&scene.node, config, &scene.node.state());
            agent.until("it is ready", |agent| agent.get("/readyz").status == 200);
            Some(agent)
        }),
        ("something else listens there", |scene, _| {
            fs::create_dir_all(agent::folder(&scene.node)).unwrap();
            let listener = std::os::unix::net::UnixListener::bind(agent::socket(&scene.node)).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming().take(8) {
                    let _ = std::io::Write::write_all(&mut stream.unwrap(), b"SSH-2.0-OpenSSH_9.2\r\n\r\n");
                }
            });
            None
        }),
    ];
    for (case, prepare) in cases {
        let (scene, config) = scene();
        let agent = prepare(&scene, &config);
        let sandbox = scene.sandbox("c1");
        let started = Instant::now();
        let output = scene.add(&sandbox);
        assert!(output.ok, "{case}: {output:?}");
        assert!(output.stderr.contains("without the agent"), "{case}: {}", output.stderr);
        assert!(started.elapsed() < Duration::from_secs(5), "{case}: {:?}", started.elapsed());
        scene.check(&sandbox).succeeded();
        scene.del(&sandbox).succeeded();
        scene.nothing_is_left(&[&sandbox], &[], case);
        if let Some(agent) = agent {
            agent.signal(Signal::SIGCONT);
            assert_eq!(agent.get("/healthz").status, 200);
            // What was withdrawn is not done after all, but for the container's lock, which is taken before that is found out.
            until("withdrawn calls are over", || files(scene.node.state().join("locks")).is_empty());
            scene.nothing_is_left(&[&sandbox], &[], case);
        }
    }
}

/// A network whose plugin takes its time for ADD.
fn slow(scene: &Scene) {
    scene.chain("green", "10.3.0.0/24", &["slow"]);
    scene.plugin("slow", &format!("{RECORD}\n[ $CNI_COMMAND != ADD ] || {{ touch $D/slow; sleep 1.5; }}\n{PASS_ON}"));
}

#[test]
fn a_client_that_goes_away_cancels_add() {
    let (scene, config) = scene();
    slow(&scene);
    scene.plugin("slow", &format!("{RECORD}\n[ $CNI_COMMAND != ADD ] || {{ touch $D/slow; sleep 600; }}\n{PASS_ON}"));
    let agent = Agent::start(&scene.node, &config);
    let sandbox = scene.sandbox("c1");
    let mut client = scene.start("ADD", &sandbox, &scene.config);
    until("the slow plugin runs", || scene.node.folder().join("slow").exists());
    client.kill().unwrap();
    client.wait().unwrap();
    until("it is taken back", || done(&agent) == operations(&[("ADD", 11)]));
    assert_eq!(link_names(&sandbox.netns), ["lo"]);
    scene.nothing_is_left(&[&sandbox], &[], "cancelled");
    assert_eq!(scene.status("default/web"), None);
}

#[test]
fn del_runs_to_its_end_for_a_client_that_goes_away() {
    let (scene, config) = scene();
    scene.chain("green", "10.3.0.0/24", &["slow"]);
    scene.plugin("slow", &format!("{RECORD}\n[ $CNI_COMMAND != DEL ] || {{ touch $D/slow; sleep 0.5; }}\n{PASS_ON}"));
    let agent = Agent::start(&scene.node, &config);
    let sandbox = scene.sandbox("c1");
    assert!(scene.add(&sandbox).ok);
    let mut client = scene.start("DEL", &sandbox, &scene.config);
    until("the slow plugin runs", || scene.node.folder().join("slow").exists());
    client.kill().unwrap();
    client.wait().unwrap();
    until("it is done", || done(&agent)[0] == ("DEL".to_owned(), 0));
    scene.nothing_is_left(&[&sandbox], &[], "DEL without a client");
}

/// The agent dies while a plugin of an ADD runs: the client ends that plugin, and does the whole of it again.
#[test]
fn an_add_whose_agent_dies_is_done_by_its_client() {
    let (scene, config) = scene();
    slow(&scene);
    let agent = Agent::start(&scene.node, &config);
    let sandbox = scene.sandbox("c1");
    let client = scene.start("ADD", &sandbox, &scene.config);
    until("the slow plugin runs", || scene.node.folder().join("slow").exists());
    drop(agent);
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["ips"].as_array().unwrap().len(), 1);
    assert_eq!(link_names(&sandbox.netns), ["eth0", "lo", "net1", "net2"]);
    assert_eq!(
        scene.calls(),
        ["ADD slow net2 netns", "DEL slow net2 netns", "ADD slow net2 netns"],
        "taken back, then done again"
    );
    scene.check(&sandbox).succeeded();
    scene.del(&sandbox).succeeded();
    scene.nothing_is_left(&[&sandbox], &[], "after the agent's death");
}

/// The connection breaks after the agent has ended its work: the client finds the outcome of its request in the record.
#[test]
fn an_answer_that_was_lost_is_in_the_record() {
    let (scene, config) = scene();
    let agent = Agent::start(&scene.node, &config);
    let sandbox = scene.sandbox("c1");
    // A client that hangs up is played by one that asks by hand, with an id of its own; the record must stand.
    let answer = ours(&scene, &sandbox, "ADD", "0123456789abcdef");
    assert!(answer.contains("musubi-taken: 0123456789abcdef"), "{answer}");
    assert_eq!(scene.record()["requestId"], "0123456789abcdef");
    let (code, message) = scene.add(&sandbox).error();
    assert_eq!(code, 100, "another request is refused: {message}");
    // A later version of the plugin says more than this agent knows, and is served all the same.
    let again = ours_of("7", &scene, &sandbox, "ADD", "0123456789abcdef");
    let result = |answer: &str| {
        let from = answer.find("{\"Result\"").unwrap_or_else(|| panic!("{answer}"));
        serde_json::Deserializer::from_str(&answer[from..]).into_iter::<Value>().next().unwrap().unwrap()
    };
    assert_eq!(result(&again), result(&answer));
    assert_eq!(done(&agent), operations(&[("ADD", 0), ("ADD", 100), ("ADD", 0)]));
    scene.del(&sandbox).succeeded();
}

/// Sends a request as our plugin does, and gives the whole answer.
fn ours(scene: &Scene, sandbox: &Sandbox, command: &str, id: &str) -> String {
    ours_of("1", scene, sandbox, command, id)
}

/// As [`ours`], by a plugin that speaks another version of the protocol.
fn ours_of(protocol: &str, scene: &Scene, sandbox: &Sandbox, command: &str, id: &str) -> String {
    use std::io::{Read, Write};
    let body = body(scene, sandbox, command, "eth0", &scene.config, json!(null));
    let mut stream = std::os::unix::net::UnixStream::connect(agent::socket(&scene.node)).unwrap();
    let head = format!(
        "POST /cni HTTP/1.1\r\nHost: musubi\r\nContent-Length: {}\r\nConnection: close\r\nmusubi-protocol: {protocol}\r\nmusubi-request: {id}\r\nmusubi-unheard-of: 1\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A body as Multus' clients send it.
fn body(scene: &Scene, sandbox: &Sandbox, command: &str, interface: &str, config: &Value, attributes: Value) -> String {
    let path = scene.node.cni_path.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(":");
    json!({
        "env": {
            "CNI_COMMAND": command, "CNI_CONTAINERID": sandbox.id, "CNI_NETNS": sandbox.netns.path(),
            "CNI_IFNAME": interface, "CNI_PATH": path, "CNI_ARGS": sandbox.args(), "PATH": std::env::var("PATH").unwrap(),
            "TRACEPARENT": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        },
        "config": BASE64_STANDARD.encode(config.to_string()),
        "interfaceAttributes": attributes,
    })
    .to_string()
}

/// What Multus' shim sends: little more than a type. The agent's own configuration says the rest.
#[test]
fn clients_of_multus_are_served() {
    let (scene, config) = scene();
    scene.chain("green", "10.3.0.0/24", &["noting"]);
    scene.plugin("noting", &format!("echo \"$TRACEPARENT\" > $D/trace\n{PASS_ON}"));
    let agent = Agent::start(&scene.node, &config);
    agent.until("the runtime's configuration is written", |agent| agent.get("/readyz").status == 200);
    let sandbox = scene.sandbox("c1");
    let shim = json!({"cniVersion": "0.4.0", "name": "multus-cni-network", "type": "multus-shim", "logLevel": "error"});
    let post = |command: &str| agent.post("/cni", &body(&scene, &sandbox, command, "eth0", &shim, json!(null)));
    assert_eq!(agent.post("/healthz", "null").status, 200);

    let added = post("ADD");
    assert_eq!(added.status, 200, "{added:?}");
    let result = &added.json()["Result"];
    assert_eq!(result["cniVersion"], "1.0.0", "they read results of 1.0.0 and convert them themselves");
    assert_eq!(result["ips"][0].get("version"), None);
    assert_eq!(link_names(&sandbox.netns), ["eth0", "lo", "net1", "net2"]);
    let trace = fs::read_to_string(scene.node.folder().join("trace")).unwrap();
    assert_eq!(trace.trim(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert!(agent.log().contains("0af7651916cd43dd8448eb211c80319c"), "the trace stands in the log");

    let again = post("ADD");
    assert_eq!((again.status, &again.json()["code"]), (400, &json!(100)), "{again:?}");
    assert_eq!(post("CHECK").status, 200);
    let deleted = post("DEL");
    assert_eq!((deleted.status, deleted.json()), (200, json!({"Result": null})));
    scene.nothing_is_left(&[&sandbox], &[], "by Multus' client");
    for wrong in ["", "null", "[]", "{}", r#"{"env":{},"config":"?"}"#, r#"{"env":{"CNI_COMMAND":"ADD"},"config":""}"#]
    {
        assert_eq!(agent.post("/cni", wrong).status, 400, "{wrong}");
    }
    assert_eq!(agent.get("/nothing").status, 404);
}

#[test]
fn a_network_is_plugged_into_a_running_pod_and_pulled_out() {
    let (scene, config) = scene();
    let agent = Agent::start(&scene.node, &config);
    let sandbox = scene.sandbox("c1");
    let mut red = scene.node.bridge("br-red", "red", "10.4.0.0/24");
    red["capabilities"] = json!({"ips": true, "mac": true});
    let attributes = json!({"ips": ["10.4.0.77/24"], "mac": "02:00:00:00:00:77", "cni-args": null});
    let delegate = |command: &str, interface: &str, attributes: Value| {
        agent.post("/delegate", &body(&scene, &sandbox, command, interface, &red, attributes))
    };
    agent.until("ready", |agent| agent.get("/readyz").status == 200);
    let too_early = delegate("ADD", "hot1", attributes.clone());
    assert_eq!((too_early.status, &too_early.json()["code"]), (400, &json!(3)), "{too_early:?}");
    assert!(scene.add(&sandbox).ok);

    let plugged = delegate("ADD", "hot1", attributes.clone());
    assert_eq!(plugged.status, 200, "{plugged:?}");
    assert_eq!(plugged.json()["Result"]["ips"][0]["address"], "10.4.0.77/24");
    assert_eq!(link_names(&sandbox.netns), ["eth0", "hot1", "lo", "net1", "net2"]);
    assert_eq!(scene.record()["attachments"][3]["interface"], "hot1");
    scene.check(&sandbox).succeeded();
    let twice = delegate("ADD", "hot1", attributes.clone());
    assert_eq!(twice.status, 400, "{twice:?}");
    assert!(twice.body.contains("hot1"), "{twice:?}");
    assert_eq!(delegate("ADD", "net 1", json!(null)).status, 400);

    assert_eq!(delegate("DEL", "hot1", json!(null)).status, 200);
    assert_eq!(delegate("DEL", "hot1", json!(null)).status, 200, "safe to repeat");
    assert_eq!(delegate("DEL", "eth0", json!(null)).status, 200, "the pod's own stays");
    assert_eq!(link_names(&sandbox.netns), ["eth0", "lo", "net1", "net2"], "the pod's own networks stay");
    assert!(!scene.reserved().iter().any(|address| address.contains("10.4.0.77")), "{:?}", scene.reserved());
    scene.check(&sandbox).succeeded();

    assert_eq!(delegate("ADD", "hot2", json!(null)).status, 200);
    scene.del(&sandbox).succeeded();
    scene.nothing_is_left(&[&sandbox], &[], "the pod's DEL covers what was plugged in");
}

/// A plugged network that fails is taken back alone.
#[test]
fn a_plug_that_fails_spares_the_pods_own_networks() {
    let (scene, config) = scene();
    let agent = Agent::start(&scene.node, &config);
    agent.until("ready", |agent| agent.get("/readyz").status == 200);
    let sandbox = scene.sandbox("c1");
    assert!(scene.add(&sandbox).ok);
    scene.plugin("failing", "[ $CNI_COMMAND != ADD ] || { echo '{\"code\": 77, \"msg\": \"no\"}'; exit 1; }");
    let bridge = scene.node.bridge("br-red", "red", "10.4.0.0/24");
    let chain = json!({"cniVersion": "1.0.0", "name": "red", "plugins": [bridge, {"type": "failing"}]});
    let answer = agent.post("/delegate", &body(&scene, &sandbox, "ADD", "hot1", &chain, json!(null)));
    assert_eq!((answer.status, &answer.json()["code"]), (400, &json!(100)), "{answer:?}");
    assert_eq!(link_names(&sandbox.netns), ["eth0", "lo", "net1", "net2"]);
    assert_eq!(scene.record()["attachments"].as_array().unwrap().len(), 3);
    scene.check(&sandbox).succeeded();
    scene.del(&sandbox).succeeded();
    scene.nothing_is_left(&[&sandbox], &[], "after a plug that failed");
}

/// More calls at once than there is room for: each is done all the same, and memory does not grow.
#[test]
fn a_burst_waits_in_the_queue_or_is_done_by_the_clients() {
    let (scene, mut config) = scene();
    config["workers"] = 2.into();
    config["queue"] = 2.into();
    let agent = Agent::start(&scene.node, &config);
    let sandboxes: Vec<Sandbox> = (0..12).map(|n| scene.sandbox(&format!("c{n}"))).collect();
    let clients: Vec<_> = sandboxes.iter().map(|sandbox| scene.start("ADD", sandbox, &scene.config)).collect();
    for client in clients {
        let output = client.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let by_agent = done(&agent).len();
    assert!((1..=12).contains(&by_agent), "{by_agent} by the agent");
    for sandbox in &sandboxes {
        scene.check(sandbox).succeeded();
        scene.del(sandbox).succeeded();
    }
    scene.nothing_is_left(&sandboxes.iter().collect::<Vec<_>>(), &[], "after the burst");
}

#[test]
fn it_shows_what_it_does() {
    let (scene, mut config) = scene();
    config["metricsAddress"] = "127.0.0.1:19464".into();
    config["logFormat"] = "json".into();
    let agent = Agent::start(&scene.node, &config);
    let sandbox = scene.sandbox("c1");
    assert!(scene.add(&sandbox).ok);
    scene.node.pod("default", "web", "missing");
    let other = scene.sandbox("c2");
    let refused = scene.add(&other);
    assert_eq!(refused.error().0, 7);
    scene.node.pod("default", "web", "blue");
    let mut full = scene.node.bridge("br-blue", "blue", "10.2.0.0/24");
    full["ipam"]["rangeStart"] = "10.2.0.1".into();
    full["ipam"]["rangeEnd"] = "10.2.0.1".into();
    scene.definition("blue", &full);
    assert_eq!(scene.add(&other).error().0, 100);
    let metrics = agent.get("/metrics").body;
    for line in [
        r#"musubi_operations_total{verb="ADD",outcome="success"} 1"#,
        r#"musubi_operations_total{verb="ADD",outcome="configuration"} 1"#,
        r#"musubi_network_operations_total{verb="ADD",kind="bridge",outcome="success"} 4"#,
        r#"musubi_network_operations_total{verb="ADD",kind="bridge",outcome="delegate"} 1"#,
        "musubi_queued_operations 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in:\n{metrics}");
    }
    let history = agent.get("/history").json();
    let (failed, added) = (&history["operations"][1], &history["operations"][2]);
    assert_eq!((&failed["error"]["code"], &failed["pod"]), (&json!(7), &json!("default/web")));
    let id = failed["requestId"].as_str().unwrap();
    assert!(refused.json()["details"].as_str().unwrap().ends_with(&format!("request {id}")), "{refused:?}");
    let networks: Vec<&str> =
        added["networks"].as_array().unwrap().iter().map(|n| n["network"].as_str().unwrap()).collect();
    assert_eq!(networks, ["default-network", "default/blue", "default/green"]);
    // One line an operation, in JSON, with the id that history shows.
    let lines: Vec<Value> = agent.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let line = lines.iter().find(|line| line["request"] == added["requestId"]).unwrap_or_else(|| panic!("{lines:#?}"));
    assert_eq!(
        (&line["command"], &line["pod"], &line["message"]),
        (&json!("ADD"), &json!("default/web"), &json!("done"))
    );
    assert_eq!(line["networks"], "default-network@eth0,default/blue@net1,default/green@net2");
    let over_tcp = scene.node.host.enter(|| {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect("127.0.0.1:19464").unwrap();
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(over_tcp.starts_with("HTTP/1.1 200"), "{over_tcp}");
    scene.del(&sandbox).succeeded();
}

/// What another's plugin uses does not count against the agent. Where the cgroup cannot be made, it runs in the agent's own.
#[test]
fn external_plugins_run_in_a_cgroup_of_their_own() {
    let (scene, mut config) = scene();
    scene.chain("green", "10.3.0.0/24", &["noting"]);
    // The plugin is moved just after its start.
    scene.plugin(
        "noting",
        &format!("[ $CNI_COMMAND != ADD ] || {{ sleep 0.2; cat /proc/self/cgroup > $D/cgroup; }}\n{PASS_ON}"),
    );
    config["memoryLimit"] = "64Mi".into();
    let agent = Agent::start(&scene.node, &config);
    let sandbox = scene.sandbox("c1");
    assert!(scene.add(&sandbox).ok);
    let groups = fs::read_to_string(scene.node.folder().join("cgroup")).unwrap();
    let refused = agent.log().contains("external plugins run in the agent's own cgroup");
    assert!(groups.contains("/musubi-plugins") != refused, "{groups}\n{}", agent.log());
    scene.del(&sandbox).succeeded();
    drop(agent);
    for folder in ["/sys/fs/cgroup/memory/musubi-plugins", "/sys/fs/cgroup/musubi-plugins"] {
        let _ = fs::remove_dir(folder);
    }
}

/// What Rust's runtime would see to, were it asked to: the program has an entry of its own.
#[test]
fn closed_streams_are_filled_and_a_broken_pipe_ends_nothing() {
    let scene = Scene::new();
    let config = agent::config(&scene.node, &scene.config);
    let closed = ["sh", "-c", r#"exec "$@" <&- >&- 2>&-"#, "sh"];
    let spawn = |mut command: Command| scene.node.host.enter(|| command.spawn().unwrap());
    let agent = Agent::start_by(&scene.node, &config, &closed, spawn);
    let of_process = |file: &str| PathBuf::from(format!("/proc/{}/{file}", agent.pid()));
    for stream in 0..3 {
        assert_eq!(fs::read_link(of_process(&format!("fd/{stream}"))).unwrap(), Path::new("/dev/null"), "{stream}");
    }
    let status = fs::read_to_string(of_process("status")).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    assert_ne!(ignored & 1 << (Signal::SIGPIPE as i32 - 1), 0, "{ignored:x}");
}

#[test]
fn an_error_is_of_the_configurations_version_whoever_finds_it() {
    let (scene, config) = scene();
    scene.node.pod("default", "web", "missing");
    let agent = Agent::start(&scene.node, &config);
    for socket in [json!(agent::socket(&scene.node)), json!("")] {
        let sandbox = scene.sandbox("c1");
        let mut old = scene.with("cniVersion", "0.4.0".into());
        old["agentSocket"] = socket.clone();
        let answer = scene.node.call("ADD", &sandbox, &old);
        let error: Value = serde_json::from_str(&answer.stdout).unwrap();
        assert_eq!((answer.ok, &error["cniVersion"]), (false, &json!("0.4.0")), "{socket}: {error}");
        assert!(error["msg"].as_str().unwrap().contains("missing"), "{socket}: {error}");
    }
    assert_eq!(done(&agent).len(), 1);
}

//! `host-local` and `static`, called on their own, and host-local's files over several calls.

use serde_json::{Value, json};

use super::compare::{Case, compare, judge};
use super::facts::{self, Facts};
use super::stage::{BOTH, BOTH_WAYS, Stage, Who, dual_stack, extend, host_local, small_pool};

/// All tables of this file.
pub const TABLES: &[fn() -> Vec<Case>] =
    &[host_local_pools_cases, host_local_requests_cases, host_local_refusals_cases, static_addresses_cases];

fn pool(what: &str, ipam: Value) -> Case {
    Case::new("host-local", what, json!({"ipam": ipam}))
}

#[test]
fn host_local_pools() {
    compare(host_local_pools_cases());
}

fn host_local_pools_cases() -> Vec<Case> {
    vec![
        pool("one subnet", host_local("10.7.0.0/24", &json!({}))).thorough(),
        pool(
            "two range sets and routes",
            dual_stack(&json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "fd50::/64", "gw": "fd07::9"}]})),
        ),
        pool(
            "start, end and gateway",
            host_local(
                "10.7.0.0/24",
                &json!({"rangeStart": "10.7.0.20", "rangeEnd": "10.7.0.30", "gateway": "10.7.0.254"}),
            ),
        ),
        pool(
            "gateway inside the range",
            host_local("10.7.0.0/29", &json!({"rangeStart": "10.7.0.3", "gateway": "10.7.0.3"})),
        ),
        pool(
            "legacy range before ranges",
            host_local("10.7.0.0/24", &json!({"ranges": [[{"subnet": "10.8.0.0/24"}]]})),
        ),
        pool("smallest IPv4 subnet", host_local("10.7.0.0/30", &json!({}))),
        pool("smallest IPv6 subnet", host_local("fd07::/126", &json!({}))),
        pool(
            "several subnets in a set",
            json!({"type": "host-local", "dataDir": "$DATA", "ranges": [[
            {"subnet": "10.7.0.0/30"}, {"subnet": "10.8.0.0/30"}]]}),
        ),
        Case::new(
            "host-local",
            "runtimeConfig.ipRanges first",
            json!({
            "ipam": host_local("10.7.0.0/24", &json!({"ranges": [[{"subnet": "10.8.0.0/24"}]]})),
            "runtimeConfig": {"ipRanges": [[{"subnet": "10.9.0.0/24"}]]}}),
        ),
    ]
}

#[test]
fn host_local_requests() {
    compare(host_local_requests_cases());
}

fn host_local_requests_cases() -> Vec<Case> {
    let lan = host_local("10.7.0.0/24", &json!({}));
    let args = |ips: Value| json!({"ipam": dual_stack(&json!({})), "args": {"cni": {"ips": ips}}});
    vec![
        pool("CNI_ARGS IP", lan.clone()).args("IP=10.7.0.50"),
        pool("CNI_ARGS IP with a prefix", lan.clone()).args("IP=10.7.0.50/24"),
        pool("CNI_ARGS IP outside", lan.clone()).args("IP=10.8.0.50").refused(7),
        pool("CNI_ARGS IP of the gateway", lan.clone()).args("IP=10.7.0.1").refused(7),
        pool("CNI_ARGS IP that is none", lan.clone()).args("IP=ten").refused(4),
        pool("unknown CNI_ARGS", lan).args("COLOUR=red").refused(4),
        Case::new("host-local", "args.cni.ips of one set", args(json!(["10.7.0.50"]))),
        Case::new("host-local", "args.cni.ips with prefixes", args(json!(["10.7.0.50/24", "fd07::50/64"]))),
        Case::new("host-local", "args.cni.ips in no set", args(json!(["10.7.0.50", "10.9.0.1"]))).refused(7),
        Case::new(
            "host-local",
            "runtimeConfig.ips",
            json!({"ipam": dual_stack(&json!({})), "runtimeConfig": {"ips": ["fd07::7/64", "10.7.0.7"]}}),
        ),
    ]
}

#[test]
fn host_local_refusals() {
    compare(host_local_refusals_cases());
}

fn host_local_refusals_cases() -> Vec<Case> {
    let ranges = |ranges: Value| json!({"type": "host-local", "dataDir": "$DATA", "ranges": ranges});
    vec![
        pool("no range", json!({"type": "host-local", "dataDir": "$DATA"})).refused(7),
        pool("host bits", host_local("10.7.0.5/24", &json!({}))).refused(7),
        pool("too small", host_local("10.7.0.0/31", &json!({}))).refused(7),
        pool("start outside", host_local("10.7.0.0/24", &json!({"rangeStart": "10.8.0.1"}))).refused(7),
        pool("end outside", host_local("10.7.0.0/24", &json!({"rangeEnd": "10.8.0.1"}))).refused(7),
        pool("end before start", host_local("10.7.0.0/24", &json!({"rangeStart": "10.7.0.9", "rangeEnd": "10.7.0.5"})))
            .refused(7),
        pool("used up", small_pool()).on(Stage::use_up_pool).refused(100),
        pool("overlap in a set", ranges(json!([[{"subnet": "10.7.0.0/24"}, {"subnet": "10.7.0.0/25"}]]))).refused(7),
        pool("overlap of sets", ranges(json!([[{"subnet": "10.7.0.0/24"}], [{"subnet": "10.7.0.0/25"}]]))).refused(7),
        pool("families in one set", ranges(json!([[{"subnet": "10.7.0.0/24"}, {"subnet": "fd07::/64"}]]))).refused(7),
        Case::new(
            "host-local",
            "two IPv4 before 0.3.0",
            json!({"cniVersion": "0.2.0",
            "ipam": ranges(json!([[{"subnet": "10.7.0.0/24"}], [{"subnet": "10.8.0.0/24"}]]))}),
        )
        .refused(7),
    ]
}

#[test]
fn static_addresses() {
    compare(static_addresses_cases());
}

fn static_addresses_cases() -> Vec<Case> {
    let ipam = |more: Value| {
        let mut ipam = json!({"type": "static"});
        extend(&mut ipam, &more);
        json!({"ipam": ipam})
    };
    let own = json!({"addresses": [{"address": "10.8.0.5/24", "gateway": "10.8.0.1"}, {"address": "fd08::5/64"}],
        "routes": [{"dst": "10.0.0.0/8", "gw": "10.8.0.1"}, {"dst": "10.0.0.0/8", "gw": "10.8.0.2"}],
        "dns": {"nameservers": ["9.9.9.9"], "domain": "a.test", "search": ["a.test"], "options": ["ndots:5"]}});
    let with = |more: Value| {
        let mut conf = ipam(own.clone());
        extend(&mut conf, &more);
        conf
    };
    let args = json!({"args": {"cni": {"ips": ["10.8.0.6/24", "10.8.0.7/24"]}}});
    let mut all = args.clone();
    extend(&mut all, &json!({"runtimeConfig": {"ips": ["10.8.0.8/24", "fd08::8/64"]}}));
    vec![
        Case::new("static", "addresses, routes, dns", with(json!({}))),
        Case::new("static", "nothing", ipam(json!({}))),
        Case::new("static", "CNI_ARGS", with(json!({}))).args("IP=10.8.0.9/24;GATEWAY=10.8.0.254"),
        Case::new("static", "CNI_ARGS of several", with(json!({})))
            .args("IP=10.8.0.9/24,fd08::9/64;GATEWAY=10.8.0.254,fd08::1"),
        Case::new("static", "args.cni.ips", with(args)),
        Case::new("static", "runtimeConfig over all", with(all)).args("IP=10.8.0.9/24"),
        Case::new("static", "bad address", ipam(json!({"addresses": [{"address": "10.8.0.5"}]}))).refused(7),
        Case::new("static", "bad gateway", ipam(json!({"addresses": [{"address": "10.8.0.5/24", "gateway": "x"}]})))
            .refused(7),
        Case::new("static", "bad CNI_ARGS", with(json!({}))).args("IP=10.8.0.9").refused(4),
        Case::new("static", "bad runtimeConfig", with(json!({"runtimeConfig": {"ips": ["ten"]}}))).refused(7),
        Case::new("static", "no ipam", json!({})).refused(7),
    ]
}

/// One call: by whom (of the two that take part), for which container and interface, with which `CNI_ARGS`.
type Step = (usize, &'static str, &'static str, &'static str, &'static str);

/// Runs the steps and tells after each what came of it and which files there are.
fn story(programs: [Who; 2], ipam: &Value, steps: &[Step]) -> Vec<String> {
    let mut stage = Stage::new();
    let conf = json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": ipam});
    let mut story = Vec::new();
    for (by, command, id, interface, args) in steps {
        stage.args = (*args).to_owned();
        let sandbox = stage.sandbox(id);
        let output = stage.call_as(programs[*by], "host-local", command, &sandbox, interface, &conf);
        let address = match (output.ok, *command) {
            (true, "ADD") => output.json()["ips"][0]["address"].as_str().unwrap().to_owned(),
            (ok, _) => ok.to_string(),
        };
        let files =
            facts::state(&stage).into_iter().filter(|(key, _)| key.starts_with("files/") && !key.ends_with("/mode"));
        let files: Vec<String> = files.map(|(key, value)| format!("{key}={value}")).collect();
        story.push(format!("{command} {id} {interface} {args}: {address} {files:?}"));
    }
    story
}

/// Round robin over a pool of five, used up and freed again; two interfaces of a container; doubles; old files.
const LIFE_OF_A_POOL: &[Step] = &[
    (0, "ADD", "a", "eth0", ""),
    (1, "ADD", "b", "eth0", ""),
    (0, "ADD", "b", "eth0", ""),
    (1, "ADD", "b", "net1", ""),
    (0, "DEL", "a", "eth0", ""),
    (1, "ADD", "c", "eth0", ""),
    (0, "ADD", "d", "eth0", ""),
    (1, "ADD", "e", "eth0", ""),
    (0, "ADD", "f", "eth0", ""),
    (1, "ADD", "f", "eth0", ""),
    (0, "DEL", "b", "eth0", ""),
    (1, "ADD", "g", "eth0", ""),
    (0, "DEL", "nobody", "eth0", ""),
    (1, "DEL", "b", "net1", ""),
    (0, "DEL", "c", "eth0", ""),
    (1, "ADD", "h", "eth0", "IP=10.7.0.5"),
    (0, "ADD", "i", "eth0", "IP=10.7.0.5"),
    (1, "ADD", "i", "eth0", "IP=10.7.0.4"),
    (0, "ADD", "j", "eth0", ""),
];

#[test]
fn host_local_shares_a_pool_with_the_reference() {
    let ipam = host_local("10.7.0.0/29", &json!({}));
    let [theirs, ours] = BOTH.map(|who| story([who, who], &ipam, LIFE_OF_A_POOL));
    assert_eq!(ours, theirs);
    for (first, second) in BOTH_WAYS {
        assert_eq!(story([first, second], &ipam, LIFE_OF_A_POOL), theirs, "{first:?} and {second:?} in turn");
    }
    let v6 = host_local("fd07::/126", &json!({}));
    let steps: &[Step] = &[
        (0, "ADD", "a", "eth0", ""),
        (1, "ADD", "b", "eth0", ""),
        (0, "ADD", "c", "eth0", ""),
        (1, "DEL", "a", "eth0", ""),
        (0, "ADD", "c", "eth0", ""),
    ];
    let [theirs, ours] = BOTH.map(|who| story([who, who], &v6, steps));
    assert_eq!(ours, theirs);
}

/// What a reservation may say: ids alone (older versions), white space, others', and what a crash leaves.
pub const CONTENTS: &[&str] = &["c1", "c1\r\neth0", " c1\r\neth0\n", "c1\n", "c1\r\neth1", "c2", ""];

/// The name of such a case.
pub fn case_of(content: &str) -> String {
    format!("host-local: a file that says {content:?}")
}

#[test]
fn host_local_takes_files_that_others_wrote_as_the_reference_does() {
    let mut complaints = Vec::new();
    for content in CONTENTS {
        let [theirs, ours] = BOTH.map(|who| after_del_and_add(who, content));
        complaints.extend(judge(&case_of(content), &theirs, &ours));
    }
    assert_eq!(complaints, Vec::<String>::new());
}

/// A reservation of that content, DEL of c1, ADD of another.
fn after_del_and_add(who: Who, content: &str) -> Facts {
    let stage = Stage::new();
    let ipam = host_local("10.7.0.0/29", &json!({}));
    let conf = json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": ipam});
    let folder = stage.node.reservations().join("net");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("10.7.0.2"), content).unwrap();
    stage.call_as(who, "host-local", "DEL", &stage.sandbox, "eth0", &conf).succeeded();
    let left = folder.join("10.7.0.2").exists();
    let next = stage.call_as(who, "host-local", "ADD", &stage.sandbox("c9"), "eth0", &conf).result();
    [("left", left.to_string()), ("next", next["ips"][0]["address"].to_string())]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
}

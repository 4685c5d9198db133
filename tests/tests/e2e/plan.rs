//! What plugins are really sent, written down by a recording plugin: the very bytes that `musubi explain` shows, on DEL the
//! same as on ADD, in the order and with the arguments that the protocol asks for.

use std::path::Path;

use musubi_tests::node::{Node, Sandbox};
use musubi_tests::recorded::{self, Call};
use serde_json::{Map, Value, json};

const PLUGINS: &[&str] = &["rec-main", "rec-second", "rec-third"];

#[test]
fn add_sends_what_explain_shows_and_del_sends_it_again() {
    let node = node();
    // Unknown keys, kinds of numbers, order of keys, upper case: all of it is the plugin's business.
    let strange =
        r#"{"zeta":1.0,"alpha":[1,2.50,-0.0,1e3,18446744073709551615,null,{"b":"\u00e9\u0000","a":""}],"Type2":true}"#;
    node.manifest(
        "blue.yaml",
        &format!(
            "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata: {{name: blue}}\nspec:\n  config: '{}'\n",
            format_args!(
                r#"{{"zeta":9.0,"type":"rec-main","cniVersion":"1.0.0","unknown":{strange},"alpha":1,"name":"blue","ipam":{{"type":"x"}}}}"#
            )
        ),
    );
    node.definition("default", "chain", &chain("chain", "1.0.0"));
    let config = node.config(&chain("primary", "1.0.0"));
    node.pod("default", "web", "blue,chain@data0");
    let explained = explain(&node, &config, "web");
    let sandbox = Sandbox::new("c1", "default/web");

    let _ = node.call("ADD", &sandbox, &config).result();
    let added = recorded::take(&node);
    let order = ["rec-main", "rec-second", "rec-third", "rec-main", "rec-main", "rec-second", "rec-third"];
    assert_eq!(plugins(&added), order);
    let shown = configs(&explained);
    assert_eq!(added.iter().map(Call::without_prev_result).collect::<Vec<_>>(), shown);
    assert!(shown[3].contains(r#""zeta":1.0,"alpha":[1,2.5,-0.0,1000.0,18446744073709551615,null,"#), "{}", shown[3]);
    assert!(shown[3].starts_with(r#"{"zeta":9.0,"type":"rec-main","cniVersion":"1.0.0","unknown":"#), "{}", shown[3]);
    let previous: Vec<bool> = added.iter().map(|call| call.conf().get("prevResult").is_some()).collect();
    assert_eq!(previous, [false, true, true, false, false, true, true], "the first of a chain has no prevResult");
    let interfaces: Vec<&str> = added.iter().map(|call| call.var("CNI_IFNAME")).collect();
    assert_eq!(interfaces, ["eth0", "eth0", "eth0", "net1", "data0", "data0", "data0"]);

    node.call("CHECK", &sandbox, &config).succeeded();
    let checked = recorded::take(&node);
    assert_eq!(plugins(&checked), order, "CHECK goes the way of ADD");
    assert_eq!(checked.iter().map(Call::without_prev_result).collect::<Vec<_>>(), shown);
    assert!(checked.iter().all(|call| call.conf()["prevResult"].is_object()));

    node.call("DEL", &sandbox, &config).succeeded();
    let deleted = recorded::take(&node);
    let reversed: Vec<&str> = order.iter().rev().copied().collect();
    assert_eq!(plugins(&deleted), reversed, "DEL goes back");
    let mut bytes: Vec<String> = deleted.iter().map(Call::without_prev_result).collect();
    bytes.reverse();
    assert_eq!(bytes, shown, "DEL sends what ADD sent");
    let last = added.last().unwrap();
    assert_eq!(deleted[0].conf()["prevResult"]["ips"], last.conf()["prevResult"]["ips"], "the chain's final result");
    for (call, before) in deleted.iter().rev().zip(&added) {
        for name in ["CNI_ARGS", "CNI_IFNAME", "CNI_CONTAINERID", "CNI_NETNS"] {
            assert_eq!(call.var(name), before.var(name), "{name}");
        }
    }
    assert_eq!(node.leftover_files(), Vec::<String>::new());
}

#[test]
fn del_sends_what_add_sent_when_the_definition_has_changed_since() {
    let node = node();
    node.definition("default", "blue", &json!({"cniVersion": "1.0.0", "name": "blue", "type": "rec-main", "old": 1}));
    let config = node.config(&single("primary", "1.0.0"));
    node.pod("default", "web", "blue");
    let sandbox = Sandbox::new("c1", "default/web");
    let _ = node.call("ADD", &sandbox, &config).result();
    let added = recorded::take(&node);

    node.definition("default", "blue", &json!({"cniVersion": "0.3.1", "name": "red", "type": "nowhere", "new": 1}));
    std::fs::remove_file(node.manifests().join("pod-default-web.json")).unwrap();
    let other = node.config(&json!({"cniVersion": "0.3.1", "name": "other", "type": "rec-third"}));
    node.call("DEL", &sandbox, &other).succeeded();
    let deleted = recorded::take(&node);
    let bytes: Vec<String> = deleted.iter().rev().map(Call::without_prev_result).collect();
    assert_eq!(bytes, added.iter().map(Call::without_prev_result).collect::<Vec<_>>());
    assert_eq!(node.leftover_files(), Vec::<String>::new());
}

/// CNI 1.1 §DEL, §CHECK: the result comes back from 0.4.0 on, and CHECK exists since then.
#[test]
fn a_result_comes_back_from_0_4_0_on() {
    for (version, comes_back) in [("0.2.0", false), ("0.3.1", false), ("0.4.0", true), ("1.0.0", true), ("1.1.0", true)]
    {
        let node = node();
        let mut conf = single("primary", version);
        if version == "0.2.0" {
            conf["recorder"]["result"] = json!({"ip4": {"ip": "10.5.0.2/24", "gateway": "10.5.0.1"}});
        }
        let config = node.config(&conf);
        let sandbox = Sandbox::new("c1", "");
        let _ = node.call("ADD", &sandbox, &config).result();
        node.call("CHECK", &sandbox, &config).succeeded();
        node.call("DEL", &sandbox, &config).succeeded();
        let calls = recorded::take(&node);
        let commands: Vec<&str> = calls.iter().map(|call| call.command.as_str()).collect();
        let wanted: &[&str] = if comes_back { &["ADD", "CHECK", "DEL"] } else { &["ADD", "DEL"] };
        assert_eq!(commands, wanted, "{version}");
        let previous = calls.last().unwrap().conf().get("prevResult").cloned();
        assert_eq!(previous.is_some(), comes_back, "{version}");
        if let Some(previous) = previous {
            assert_eq!(previous["cniVersion"], version);
            assert_eq!(previous["ips"][0]["address"], "10.5.0.2/24");
        }
    }
}

/// The request of a real containerd: `delegates/testdata/runtime/` holds it, as it was recorded.
#[test]
fn what_the_runtime_sends_reaches_the_default_network_alone_and_as_it_came() {
    let recorded_add = containerd("ADD");
    let runtime_config = recorded_add["stdin"]["runtimeConfig"].clone();
    let node = node();
    let mut primary = single("primary", "1.0.0");
    primary["capabilities"] = json!({
        "portMappings": true, "bandwidth": true, "dns": true, "io.kubernetes.cri.pod-annotations": true, "ips": false,
    });
    let mut blue = single("blue", "1.0.0");
    blue["capabilities"] = primary["capabilities"].clone();
    node.definition("default", "blue", &blue);
    node.pod("default", "rec", "blue");
    let mut config = recorded_add["stdin"].clone();
    for (key, value) in node.config(&primary).as_object().unwrap() {
        if !["cniVersion", "name"].contains(&key.as_str()) {
            config[key] = value.clone();
        }
    }
    let mut sandbox = Sandbox::new("c1", "default/rec");
    sandbox.id = recorded_add["env"]["CNI_CONTAINERID"].as_str().unwrap().to_owned();
    let args = recorded_add["env"]["CNI_ARGS"].as_str().unwrap();

    let output = call_with_args(&node, "ADD", &sandbox, args, &config);
    assert_eq!(output["cniVersion"], "1.0.0", "the result is of the runtime's version");
    let calls = recorded::take(&node);
    let mut wanted = runtime_config.as_object().unwrap().clone();
    wanted.retain(|key, _| primary["capabilities"][key] == true);
    assert_eq!(wanted.len(), 4);
    let sent = calls[0].conf()["runtimeConfig"].to_string();
    assert_eq!(sent, Value::Object(wanted).to_string(), "capital letters, nulls and the last-applied text survive");
    assert!(sent.contains(r#""HostPort":8088"#) && sent.contains(r#""Searches":null"#), "{sent}");
    assert_eq!(calls[1].conf().get("runtimeConfig"), None, "other networks get nothing of it (multi-net 7.5)");
    assert_eq!(calls[0].var("CNI_ARGS"), args, "arguments go on in their order");
    assert_eq!(calls[1].var("CNI_ARGS"), args);

    // containerd's DEL has its arguments in another order, and hands the result back; plugins see ADD's arguments.
    let recorded_del = containerd("DEL");
    config["prevResult"] = recorded_del["stdin"]["prevResult"].clone();
    let _ = call_with_args(&node, "DEL", &sandbox, recorded_del["env"]["CNI_ARGS"].as_str().unwrap(), &config);
    let deleted = recorded::take(&node);
    assert_eq!(deleted[1].conf()["runtimeConfig"].to_string(), sent);
    assert_eq!(deleted[1].var("CNI_ARGS"), args);
    assert_eq!(deleted[1].conf()["prevResult"]["ips"][0]["address"], "10.5.0.2/24", "ours, not the runtime's copy");
    assert_eq!(node.leftover_files(), Vec::<String>::new());
}

#[test]
fn the_recorded_requests_are_the_shared_ones() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/runtime");
    if !shared.is_dir() {
        return;
    }
    for name in ["containerd-1.6-ADD.json", "containerd-1.6-DEL.json"] {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert!(read(&shared) == read(&runtime_data()), "copy the shared {name} again");
    }
}

#[test]
fn requests_of_the_pod_reach_the_plugins_that_declare_them() {
    let node = node();
    let blue = json!({"cniVersion": "1.0.0", "name": "blue", "plugins": [
        {"type": "rec-main", "capabilities": {"ips": true, "mac": true}, "recorder": {"result": result()}},
        {"type": "rec-second", "capabilities": {"portMappings": true, "mac": false}},
        {"type": "rec-third", "capabilities": {"bandwidth": true, "mac": true}, "args": {"cni": {"kept": 1, "color": "red"}}},
    ]});
    node.definition("default", "blue", &blue);
    node.pod(
        "default",
        "web",
        &json!([{"name": "blue", "ips": ["10.5.0.2/24"], "mac": "02:00:00:00:00:07",
                 "portMappings": [{"hostPort": 80, "containerPort": 8080}], "bandwidth": {"ingressRate": 1000},
                 "cni-args": {"color": "blue"}}])
        .to_string(),
    );
    let config = node.config(&single("primary", "1.0.0"));
    let shown = configs(&explain(&node, &config, "web"));
    let sandbox = Sandbox::new("c1", "default/web");
    let _ = node.call("ADD", &sandbox, &config).result();
    let calls = recorded::take(&node);
    assert_eq!(calls.iter().map(Call::without_prev_result).collect::<Vec<_>>(), shown);
    let sent: Vec<Value> = calls.iter().map(|call| call.conf()["runtimeConfig"].clone()).collect();
    assert_eq!(
        json!(sent),
        json!([
            null,
            {"ips": ["10.5.0.2/24"], "mac": "02:00:00:00:00:07"},
            {"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]},
            {"mac": "02:00:00:00:00:07", "bandwidth": {"ingressRate": 1000, "ingressBurst": 4_294_967_295_u64}},
        ])
    );
    let args: Vec<Value> = calls.iter().map(|call| call.conf()["args"]["cni"].clone()).collect();
    assert_eq!(json!(args), json!([null, {"color": "blue"}, {"color": "blue"}, {"kept": 1, "color": "blue"}]));
    assert!(calls.iter().all(|call| !call.var("CNI_ARGS").contains("MAC=")), "by capability alone");
}

#[test]
fn addresses_in_cni_args_follow_the_runtimes_own() {
    let node = node();
    node.definition("default", "blue", &json!({"cniVersion": "1.0.0", "name": "blue", "type": "rec-main"}));
    let annotation = r#"[{"name":"blue","ips":["10.5.0.2/24","fd00::2"],"mac":"02:00:00:00:00:07"}]"#;
    node.pod("default", "web", annotation);
    let config = node.config(&single("primary", "1.0.0"));
    let sandbox = Sandbox::new("c1", "default/web");
    let own = sandbox.args();
    let with = |own: &str| format!("{own};IP=10.5.0.2/24,fd00::2;MAC=02:00:00:00:00:07");
    let pod = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web";
    let rows = [
        (own.clone(), own.clone(), with(&own)),
        // Plugins refuse K8S_POD_NAME without IgnoreUnknown; an IP of the runtime's is replaced in its place.
        (pod.into(), format!("{pod};IgnoreUnknown=1"), with(&format!("{pod};IgnoreUnknown=1"))),
        (
            format!("IgnoreUnknown=true;IP=10.0.0.9;{pod}"),
            format!("IgnoreUnknown=true;IP=10.0.0.9;{pod}"),
            format!("IgnoreUnknown=true;IP=10.5.0.2/24,fd00::2;{pod};MAC=02:00:00:00:00:07"),
        ),
    ];
    for (runtime, default, blue) in rows {
        let _ = call_with_args(&node, "ADD", &sandbox, &runtime, &config);
        let _ = call_with_args(&node, "DEL", &sandbox, &runtime, &config);
        let sent: Vec<String> = recorded::take(&node).iter().map(|call| call.var("CNI_ARGS").to_owned()).collect();
        assert_eq!(sent, [&default, &blue, &blue, &default].map(String::as_str), "{runtime}");
    }
    let explained = explain(&node, &config, "web");
    assert_eq!(
        explained["attachments"][1]["cniArgs"].to_string(),
        r#"{"IP":"10.5.0.2/24,fd00::2","MAC":"02:00:00:00:00:07"}"#
    );
}

#[test]
fn each_plugin_is_called_with_the_whole_environment_of_the_protocol() {
    let mut node = node();
    node.env.push(("TRACEPARENT".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()));
    let config = node.config(&single("primary", "1.1.0"));
    let sandbox = Sandbox::new("c1", "");
    let _ = node.call("ADD", &sandbox, &config).result();
    let call = &recorded::take(&node)[0];
    let bin = node.folder().join("bin").display().to_string();
    let path = format!("{bin}:{}", node.cni_path[0].display());
    let rows = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", sandbox.netns.path().to_str().unwrap()),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", ""),
        ("CNI_PATH", path.as_str()),
        ("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    for (name, value) in rows {
        assert_eq!(call.var(name), value, "{name}");
    }
    let others: Vec<&String> =
        call.env.as_object().unwrap().keys().filter(|key| !rows.iter().any(|(name, _)| name == key)).collect();
    assert_eq!(others, Vec::<&String>::new());
}

#[test]
fn del_after_the_namespace_is_gone_says_so_to_plugins() {
    let node = node();
    let config = node.config(&single("primary", "1.0.0"));
    let sandbox = Sandbox::new("c1", "");
    let _ = node.call("ADD", &sandbox, &config).result();
    let added = recorded::take(&node);
    sandbox.netns.end();
    node.call("DEL", &sandbox, &config).succeeded();
    let deleted = recorded::take(&node);
    assert_eq!(deleted[0].var("CNI_NETNS"), "", "CNI 1.1 §DEL: no namespace is told as an empty one");
    assert_eq!(deleted[0].without_prev_result(), added[0].without_prev_result());
}

#[test]
fn a_configuration_without_a_name_is_given_one() {
    let node = node();
    let mut primary = single("", "1.0.0");
    primary.as_object_mut().unwrap().shift_remove("name");
    let list = json!({"cniVersion": "1.0.0", "plugins": [{"type": "rec-second"}]});
    node.definition("default", "blue", &list);
    node.pod("default", "web", "blue");
    let config = node.config(&primary);
    let sandbox = Sandbox::new("c1", "default/web");
    let _ = node.call("ADD", &sandbox, &config).result();
    let names: Vec<Value> = recorded::take(&node).iter().map(|call| call.conf()["name"].clone()).collect();
    assert_eq!(json!(names), json!(["musubi-network", "blue"]), "our own name, the definition's name");
}

#[test]
fn status_asks_every_plugin_of_the_default_network() {
    let node = node();
    node.definition("default", "blue", &single("blue", "1.1.0"));
    let config = node.config(&chain("primary", "1.1.0"));
    node.call_network("STATUS", &config).succeeded();
    let calls = recorded::take(&node);
    assert_eq!(plugins(&calls), PLUGINS);
    for call in &calls {
        assert_eq!(call.command, "STATUS");
        let conf = call.conf();
        assert_eq!((&conf["name"], &conf["cniVersion"]), (&json!("primary"), &json!("1.1.0")));
        assert_eq!((conf.get("prevResult"), conf.get("runtimeConfig")), (None, None));
        assert_eq!((call.var("CNI_CONTAINERID"), call.var("CNI_IFNAME")), ("", ""));
    }
    let mut failing = config.clone();
    failing["delegates"][0]["plugins"][1]["recorder"] =
        json!({"error": {"STATUS": {"cniVersion": "1.1.0", "code": 51, "msg": "half of it works"}}});
    let (code, message) = node.call_network("STATUS", &failing).error();
    assert_eq!(code, 51, "the plugin's own code is passed on");
    assert!(message.contains("half of it works") && message.contains("rec-second"), "{message}");
    // A plugin whose configuration knows no STATUS is not asked, but has to be there.
    let old = node.config(&single("primary", "1.0.0"));
    let _ = recorded::take(&node);
    node.call_network("STATUS", &old).succeeded();
    assert_eq!(recorded::take(&node).len(), 0);
}

#[test]
fn gc_tells_each_network_what_our_records_hold() {
    let node = node();
    node.definition("default", "blue", &single("blue", "1.1.0"));
    node.pod("default", "web", "blue");
    let config = node.config(&single("primary", "1.1.0"));
    let [kept, gone] = ["c1", "c2"].map(|id| Sandbox::new(id, "default/web"));
    for sandbox in [&kept, &gone] {
        let _ = node.call("ADD", sandbox, &config).result();
    }
    let added = recorded::take(&node);
    let mut request = config.clone();
    request["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    node.call_network("GC", &request).succeeded();
    let calls = recorded::take(&node);
    let deleted: Vec<&Call> = calls.iter().filter(|call| call.command == "DEL").collect();
    assert_eq!(deleted.iter().map(|call| call.var("CNI_CONTAINERID")).collect::<Vec<_>>(), ["c2", "c2"]);
    assert_eq!(deleted[0].without_prev_result(), added[3].without_prev_result(), "GC deletes with the bytes of ADD");
    let told: Vec<&Call> = calls.iter().filter(|call| call.command == "GC").collect();
    let valid: Vec<(Value, Value)> = told
        .iter()
        .map(|call| (call.conf()["name"].clone(), call.conf()["cni.dev/valid-attachments"].clone()))
        .collect();
    assert_eq!(
        valid,
        [
            (json!("primary"), json!([{"containerID": "c1", "ifname": "eth0"}])),
            (json!("blue"), json!([{"containerID": "c1", "ifname": "net1"}])),
        ]
    );
}

/// multus.md §1a `auxiliaryCNIChainName`: plugins of a folder beside the default network's file run after all networks.
#[test]
fn an_auxiliary_chain_runs_last() {
    let node = node();
    let folder = node.folder().join("net.d");
    std::fs::create_dir_all(folder.join("vendor")).unwrap();
    let file = folder.join("10-primary.conf");
    std::fs::write(&file, single("primary", "1.0.0").to_string()).unwrap();
    node.definition("default", "blue", &single("blue", "1.0.0"));
    node.pod("default", "web", "blue");
    let mut config = node.config(&single("unused", "1.0.0"));
    config["cniVersion"] = json!("1.0.0");
    config.as_object_mut().unwrap().shift_remove("delegates");
    config["clusterNetwork"] = json!(file);
    config["auxiliaryCNIChainName"] = json!("vendor");
    assert_eq!(configs(&explain(&node, &config, "web")).len(), 2, "an empty folder is no chain");

    for (name, plugin) in [("20-b.conf", "rec-third"), ("10-a.conf", "rec-second")] {
        std::fs::write(folder.join("vendor").join(name), json!({"type": plugin}).to_string()).unwrap();
    }
    let sandbox = Sandbox::new("c1", "default/web");
    let result = node.call("ADD", &sandbox, &config).result();
    assert_eq!(result["ips"][0]["address"], "10.5.0.2/24", "the runtime still gets the default network's result");
    let calls = recorded::take(&node);
    assert_eq!(plugins(&calls), ["rec-main", "rec-main", "rec-second", "rec-third"]);
    for call in &calls[2..] {
        assert_eq!((&call.conf()["name"], call.var("CNI_IFNAME")), (&json!("vendor"), "net2"));
        assert_eq!(call.conf()["prevResult"]["cniVersion"], "1.0.0", "chained plugins get a result, an empty one");
    }
    node.call("DEL", &sandbox, &config).succeeded();
    let deleted = recorded::take(&node);
    assert_eq!(plugins(&deleted), ["rec-third", "rec-second", "rec-main", "rec-main"]);
    assert_eq!(node.leftover_files(), Vec::<String>::new());
}

fn node() -> Node {
    let mut node = Node::new();
    recorded::install(&mut node, Path::new(env!("CARGO_BIN_EXE_recorder")), PLUGINS);
    node
}

fn result() -> Value {
    json!({
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x"}],
        "ips": [{"address": "10.5.0.2/24", "gateway": "10.5.0.1", "interface": 0, "version": "4"}],
    })
}

fn single(name: &str, version: &str) -> Value {
    json!({"cniVersion": version, "name": name, "type": "rec-main", "recorder": {"result": result()}})
}

fn chain(name: &str, version: &str) -> Value {
    json!({"cniVersion": version, "name": name, "plugins": [
        {"type": "rec-main", "recorder": {"result": result()}}, {"type": "rec-second", "extra": {"z": 1, "a": 2}}, {"type": "rec-third"},
    ]})
}

fn plugins(calls: &[Call]) -> Vec<&str> {
    calls.iter().map(|call| call.plugin.as_str()).collect()
}

fn explain(node: &Node, config: &Value, pod: &str) -> Value {
    let file = node.folder().join("00-musubi.conf");
    std::fs::write(&file, config.to_string()).unwrap();
    node.cli(&["explain", pod, "--config", file.to_str().unwrap(), "-o", "json"]).result()
}

/// Every plugin's configuration as `explain` shows it, on one line.
fn configs(explained: &Value) -> Vec<String> {
    let attachments = explained["attachments"].as_array().unwrap().iter();
    attachments.flat_map(|a| a["delegates"].as_array().unwrap()).map(|d| d["config"].to_string()).collect()
}

fn runtime_data() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../delegates/testdata/runtime")
}

/// The first request of a recording.
fn containerd(command: &str) -> Value {
    let bytes = std::fs::read(runtime_data().join(format!("containerd-1.6-{command}.json"))).unwrap();
    serde_json::Deserializer::from_slice(&bytes).into_iter().next().unwrap().unwrap()
}

/// Calls our plugin with the given `CNI_ARGS`; `null` for a call without a result.
fn call_with_args(node: &Node, command: &str, sandbox: &Sandbox, args: &str, config: &Value) -> Value {
    let mut call = std::process::Command::new(musubi_tests::node::musubi());
    call.env("CNI_COMMAND", command).env("CNI_CONTAINERID", &sandbox.id).env("CNI_NETNS", sandbox.netns.path());
    call.env("CNI_IFNAME", "eth0").env("CNI_ARGS", args);
    let output = node.run(call, &config.to_string());
    assert!(output.ok, "{command}: {}", output.stdout);
    if command == "ADD" { output.json() } else { Value::Object(Map::new()) }
}

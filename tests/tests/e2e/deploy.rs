//! `deploy/`: manifests that an API server would take as they stand, that fit together, and that give the agent what it
//! needs and no more.
#![allow(clippy::unwrap_used, reason = "what is outside of test functions is part of a test, too")]

mod webhook;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::serde::Serialize;
use k8s_openapi::serde::de::DeserializeOwned;
use musubi::agent::config::AgentConfig;
use musubi_tests::node::{Node, Sandbox, link_names, musubi};
use serde_json::{Value, json};

/// Every verb that the agent and the plugin have, and what for.
const VERBS: [(&str, &str, &str, &str); 11] = [
    ("", "pods", "get", "the plugin without an agent; a pod that the agent has not seen yet"),
    ("", "pods", "list", "the pods of this node, when the agent starts"),
    ("", "pods", "watch", "the pods of this node, from then on"),
    ("", "pods/status", "patch", "the network-status annotation"),
    ("", "events", "create", "AddedInterface, and why something was not attached"),
    ("k8s.cni.cncf.io", "network-attachment-definitions", "get", "as for pods"),
    ("k8s.cni.cncf.io", "network-attachment-definitions", "list", "all, when the agent starts"),
    ("k8s.cni.cncf.io", "network-attachment-definitions", "watch", "all, from then on"),
    ("musubi.dev", "attachmentpolicies", "list", "all, for the plugin alone and when the agent starts"),
    ("musubi.dev", "attachmentpolicies", "watch", "all, from then on"),
    ("", "namespaces", "get", "the labels that a policy selects by"),
];

fn text(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn documents(file: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&text(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// The files that `kubectl apply -k deploy` reads.
fn resources() -> Vec<String> {
    let kustomization = documents("kustomization.yaml").remove(0);
    serde_json::from_value(kustomization["resources"].clone()).unwrap()
}

fn objects() -> Vec<Value> {
    resources().iter().flat_map(|file| documents(file)).collect()
}

/// The one object of a kind, as its type reads it.
pub fn object<T: DeserializeOwned>(kind: &str) -> T {
    let mut found: Vec<Value> = objects().into_iter().filter(|object| object["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}");
    serde_json::from_value(found.remove(0)).unwrap()
}

fn daemon_sets() -> [DaemonSet; 2] {
    let uninstall = documents("uninstall.yaml").remove(0);
    [object("DaemonSet"), serde_json::from_value(uninstall).unwrap()]
}

fn pod_spec(set: &DaemonSet) -> Value {
    serde_json::to_value(&set.spec.as_ref().unwrap().template.spec).unwrap()
}

fn containers(set: &DaemonSet) -> Vec<Value> {
    let spec = pod_spec(set);
    let lists = ["initContainers", "containers"].map(|key| spec[key].as_array().cloned().unwrap_or_default());
    lists.concat()
}

pub fn container(name: &str) -> Value {
    let found = daemon_sets().iter().flat_map(containers).find(|container| container["name"] == name);
    found.unwrap_or_else(|| panic!("no container {name}"))
}

pub fn capabilities(container: &Value) -> Vec<String> {
    let capabilities = &container["securityContext"]["capabilities"];
    assert_eq!(capabilities["drop"], json!(["ALL"]), "{}", container["name"]);
    serde_json::from_value(capabilities["add"].clone()).unwrap()
}

/// An object as its type reads and writes it.
fn again<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{e} in {object}"));
    serde_json::to_value(typed).unwrap()
}

#[test]
fn every_key_is_one_that_the_api_knows() {
    for object in objects().iter().chain(&documents("uninstall.yaml")) {
        let read = match object["kind"].as_str().unwrap() {
            "ClusterRole" => again::<ClusterRole>(object),
            "ClusterRoleBinding" => again::<ClusterRoleBinding>(object),
            "ConfigMap" => again::<ConfigMap>(object),
            "CustomResourceDefinition" => again::<CustomResourceDefinition>(object),
            "DaemonSet" => again::<DaemonSet>(object),
            "ServiceAccount" => again::<ServiceAccount>(object),
            other => panic!("unexpected {other}"),
        };
        assert_eq!(read, *object, "a key that is not in the left is not known");
    }
}

#[test]
fn the_base_is_whole_and_uninstall_is_no_part_of_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let files: BTreeSet<String> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let beside = ["kustomization.yaml", "uninstall.yaml", "webhook"].map(str::to_owned);
    let expected = resources().into_iter().chain(beside);
    assert_eq!(files, expected.collect());
    // kustomize reads nothing outside of its folder, so these are copies.
    let generated = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/manifests");
    for file in ["network-attachment-definition.yaml", "attachment-policy.yaml"] {
        assert_eq!(text(file), std::fs::read_to_string(generated.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn the_role_has_the_verbs_that_are_used_and_no_others() {
    let role: ClusterRole = object("ClusterRole");
    let mut granted = BTreeSet::new();
    for rule in role.rules.unwrap() {
        assert_eq!((rule.resource_names, rule.non_resource_urls), (None, None));
        for group in rule.api_groups.unwrap() {
            for resource in rule.resources.iter().flatten() {
                granted.extend(rule.verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())));
            }
        }
    }
    let used = VERBS.map(|(group, resource, verb, _)| (group.to_owned(), resource.to_owned(), verb.to_owned()));
    assert_eq!(granted, used.into());
}

#[test]
fn the_account_is_bound_to_the_role_and_used() {
    let account: ServiceAccount = object("ServiceAccount");
    let role: ClusterRole = object("ClusterRole");
    let binding: ClusterRoleBinding = object("ClusterRoleBinding");
    assert_eq!(
        (binding.role_ref.kind.as_str(), Some(&binding.role_ref.name)),
        ("ClusterRole", role.metadata.name.as_ref())
    );
    let [subject] = &binding.subjects.unwrap()[..] else { panic!("one subject") };
    assert_eq!((subject.kind.as_str(), Some(&subject.name)), ("ServiceAccount", account.metadata.name.as_ref()));
    assert_eq!(subject.namespace, account.metadata.namespace);
    for set in daemon_sets() {
        assert_eq!(set.metadata.namespace, account.metadata.namespace);
        assert_eq!(pod_spec(&set)["serviceAccountName"], json!(account.metadata.name));
    }
    // Where the plugin looks for the definitions that its own configuration names.
    assert_eq!(account.metadata.namespace.as_deref(), Some("kube-system"));
}

#[test]
fn the_image_is_the_one_of_this_version() {
    let image = format!("musubi:{}", env!("CARGO_PKG_VERSION"));
    for container in daemon_sets().iter().flat_map(containers) {
        assert_eq!(container["image"], image, "{}", container["name"]);
        // `make image` gives it no registry, so there is nothing to pull it from anew.
        assert_eq!(container["imagePullPolicy"], "IfNotPresent");
    }
}

#[test]
fn every_node_gets_a_pod_that_is_not_evicted() {
    for set in daemon_sets() {
        let spec = pod_spec(&set);
        assert_eq!(spec["tolerations"], json!([{"operator": "Exists"}]));
        assert_eq!(spec["priorityClassName"], "system-node-critical");
        assert_eq!((&spec["hostNetwork"], &spec["hostPID"]), (&json!(true), &json!(true)));
        let labels = set.spec.as_ref().unwrap().template.metadata.as_ref().unwrap().labels.clone();
        assert_eq!(labels, set.spec.as_ref().unwrap().selector.match_labels);
        for container in containers(&set) {
            let resources = &container["resources"];
            assert_eq!(resources["requests"]["memory"], resources["limits"]["memory"], "{}", container["name"]);
            assert!(resources["requests"]["cpu"].is_string() && resources["limits"]["cpu"].is_null(), "{resources}");
        }
    }
}

/// `kubectl apply` of the second puts it in the place of the first, so that no agent runs beside it.
#[test]
fn uninstall_takes_the_place_of_the_agent_with_its_rights() {
    let [agent, uninstall] = daemon_sets();
    assert_eq!(agent.metadata, uninstall.metadata);
    let [of_agent, of_uninstall] = [&agent, &uninstall].map(|set| set.spec.as_ref().unwrap());
    assert_eq!(of_agent.selector, of_uninstall.selector);
    assert_eq!(of_agent.update_strategy, of_uninstall.update_strategy);
    assert_eq!(container("agent")["securityContext"], container("uninstall")["securityContext"]);
    let surge = of_agent.update_strategy.as_ref().unwrap().rolling_update.as_ref().unwrap().max_surge.clone();
    assert_eq!(serde_json::to_value(surge).unwrap(), json!(0), "never two on a node");
}

#[test]
fn what_is_mounted_is_there_and_used() {
    for set in daemon_sets() {
        let spec = pod_spec(&set);
        let names = |list: &Value| -> BTreeSet<String> {
            list.as_array().into_iter().flatten().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
        };
        let mounted: BTreeSet<String> = containers(&set).iter().flat_map(|c| names(&c["volumeMounts"])).collect();
        assert_eq!(mounted, names(&spec["volumes"]));
    }
    let volumes = &pod_spec(&daemon_sets()[0])["volumes"];
    let host: Vec<&Value> =
        volumes.as_array().unwrap().iter().filter_map(|v| v["hostPath"]["path"].as_str().map(|_| v)).collect();
    assert_eq!(host.len(), 1, "the agent finds the host's files by its mount namespace");
    assert_eq!(host[0]["hostPath"]["path"], "/opt/cni/bin", "the default of `binDir` and of `musubi uninstall`");
    let install = container("install");
    let mount = install["volumeMounts"][0]["mountPath"].as_str().unwrap();
    assert_eq!(install["args"], json!(["install", format!("--bin-dir={mount}")]));
}

#[test]
fn the_agent_is_configured_with_keys_it_knows_and_probed_where_it_listens() {
    let map: ConfigMap = object("ConfigMap");
    let data = map.data.unwrap();
    let [(file, content)] = &data.iter().collect::<Vec<_>>()[..] else { panic!("one file") };
    let configuration: Value = serde_json::from_str(content).unwrap();
    assert_eq!(AgentConfig::parse(content.as_bytes()).unwrap().warnings, Vec::<String>::new());
    let (set, agent) = (&daemon_sets()[0], container("agent"));
    let mount = &agent["volumeMounts"][0];
    let volumes = pod_spec(set)["volumes"].clone();
    let volume = volumes.as_array().unwrap().iter().find(|volume| volume["name"] == mount["name"]).unwrap();
    assert_eq!(volume["configMap"]["name"], json!(map.metadata.name));
    assert_eq!(agent["args"], json!(["agent", format!("--config={}/{file}", mount["mountPath"].as_str().unwrap())]));
    assert_eq!(agent["env"][0]["name"], "MUSUBI_NODE_NAME");
    assert_eq!(agent["env"][0]["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName");

    for (probe, path) in [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let get = &agent[probe]["httpGet"];
        let address = format!("{}:{}", get["host"].as_str().unwrap(), get["port"]);
        assert_eq!((json!(address), &get["path"]), (configuration["metricsAddress"].clone(), &json!(path)), "{probe}");
    }
}

#[test]
fn the_program_takes_the_arguments_that_it_is_given() {
    for name in ["install", "uninstall", "agent"] {
        let arguments: Vec<String> = serde_json::from_value(container(name)["args"].clone()).unwrap();
        let output = Command::new(musubi()).args(&arguments).arg("--help").output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
}

/// A program, as root with these capabilities alone.
fn limited(capabilities: &[String], program: &Path) -> Command {
    let wanted: String = capabilities.iter().map(|name| format!(",+{}", name.to_lowercase())).collect();
    let mut command = Command::new("setpriv");
    command.arg(format!("--bounding-set=-all{wanted}")).arg("--inh-caps=-all").arg(program);
    command
}

fn without(capabilities: &[String], one: &str) -> Vec<String> {
    assert!(capabilities.iter().any(|name| name == one));
    capabilities.iter().filter(|name| *name != one).cloned().collect()
}

#[test]
fn a_pod_gets_its_networks_by_the_agents_capabilities() {
    let all = capabilities(&container("agent"));
    for (capabilities, enough) in
        [(all.clone(), true), (without(&all, "NET_ADMIN"), false), (without(&all, "SYS_ADMIN"), false)]
    {
        let node = Node::new();
        node.add_uplink("eth0", "other0");
        node.definition("default", "blue", &node.bridge("br-blue", "blue", "10.2.0.0/24"));
        node.definition(
            "default",
            "direct",
            &json!({"cniVersion": "1.0.0", "name": "direct", "type": "ptp", "ipMasq": true,
                    "ipam": {"type": "host-local", "dataDir": node.reservations(), "subnet": "10.3.0.0/24"}}),
        );
        node.definition(
            "default",
            "overlay",
            &json!({"cniVersion": "1.0.0", "name": "overlay", "type": "vxlan", "vni": 7, "master": "eth0",
                    "ipam": {"type": "host-local", "dataDir": node.reservations(), "subnet": "10.4.0.0/24"}}),
        );
        node.pod("default", "web", "blue,direct,overlay");
        let sandbox = Sandbox::new("c1", "default/web");
        let config = node.config(&node.default_bridge());
        let call = |command: &str| {
            let mut call = limited(&capabilities, &musubi());
            call.env("CNI_COMMAND", command).env("CNI_CONTAINERID", "c1").env("CNI_IFNAME", "eth0");
            call.env("CNI_NETNS", sandbox.netns.path()).env("CNI_ARGS", sandbox.args());
            node.run(call, &config.to_string())
        };
        let added = call("ADD");
        assert_eq!(added.ok, enough, "{capabilities:?}: {added:?}");
        if enough {
            assert_eq!(link_names(&sandbox.netns), ["eth0", "lo", "net1", "net2", "net3"]);
            call("CHECK").succeeded();
            call("DEL").succeeded();
            assert_eq!(link_names(&sandbox.netns), ["lo"]);
            assert_eq!(node.leftover_files(), Vec::<String>::new());
        }
    }
}

#[test]
fn the_hosts_mount_namespace_is_entered_by_the_agents_capabilities() {
    let all = capabilities(&container("uninstall"));
    let rows = [
        (all.clone(), None),
        (without(&all, "SYS_ADMIN"), Some("SYS_ADMIN")),
        (without(&all, "SYS_CHROOT"), Some("SYS_CHROOT")),
        (without(&all, "SYS_PTRACE"), Some("SYS_PTRACE")),
    ];
    for (capabilities, missing) in rows {
        let node = Node::new();
        let inner = limited(&capabilities, &musubi());
        // Process 1 has every capability, and a mount namespace of its own.
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-ceu"]);
        command.arg("unshare --mount -- \"$@\"; exit").arg("sh").arg(inner.get_program()).args(inner.get_args());
        command.args(["uninstall", "--host", "--bin-dir"]).arg(node.folder().join("bin"));
        command.arg("--config-dir").arg(node.folder().join("net.d")).arg("--state-dir").arg(node.state());
        let output = node.run(command, "");
        assert_eq!(output.ok, missing.is_none(), "{missing:?}: {output:?}");
        assert!(output.stderr.contains(missing.unwrap_or_default()), "{output:?}");
    }
}

#[test]
fn the_program_is_installed_into_anybodys_folder_by_the_capabilities_of_install() {
    let all = capabilities(&container("install"));
    for (capabilities, enough) in [(all.clone(), true), (without(&all, "DAC_OVERRIDE"), false)] {
        let node = Node::new();
        let bin = node.folder().join("bin");
        std::fs::create_dir(&bin).unwrap();
        std::fs::set_permissions(&bin, std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
        let mut command = limited(&capabilities, &musubi());
        command.arg("install").arg("--bin-dir").arg(&bin);
        let output = node.run(command, "");
        assert_eq!(output.ok, enough, "{capabilities:?}: {output:?}");
        assert_eq!(bin.join("musubi").exists(), enough);
    }
}

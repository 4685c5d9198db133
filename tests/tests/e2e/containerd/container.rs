//! The agent as the DaemonSet runs it: in a container that has the node's processes and network and its own mounts, with the
//! capabilities of `deploy/`, a service account that kubelet mounts and renews, and nothing of the node's files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use musubi_tests::containerd::cri::Pod;
use serde_json::{Value, json};

use super::stage::{Stage, Way, role};
use crate::deploy::{capabilities, container};
use crate::scene::{Scene, until};

/// The container's mounts: the volume of the service account, and other folders where the node has those that matter.
const MOUNTS: &str = r#"
mount -t tmpfs none /run
mkdir -p /run/secrets/kubernetes.io/serviceaccount
mount --bind "$D/volume" /run/secrets/kubernetes.io/serviceaccount
for folder in net.d bin state; do
    mkdir -p "$D/$folder"
    mount -t tmpfs none "$D/$folder"
done
"#;

/// A node whose agent is in a container, with the volume that kubelet mounts into it.
fn stage() -> Stage {
    let mut stage = Stage::without_ours(Way::Agent, Scene::new());
    let folder = stage.scene.node.folder().display().to_string();
    renew(&stage, "..1");
    for name in ["token", "ca.crt"] {
        symlink(format!("..data/{name}"), volume(&stage).join(name)).unwrap();
    }
    let config = stage.config.as_object_mut().unwrap();
    for key in ["kubeconfig", "hostMountNamespace", "nodeName"] {
        config.remove(key);
    }
    let capabilities: String =
        capabilities(&container("agent")).iter().map(|name| format!(",+{}", name.to_lowercase())).collect();
    let limited = format!("exec setpriv --bounding-set=-all{capabilities} --inh-caps=-all \"$@\"");
    let address = stage.server().address();
    stage.container = vec![
        "env".to_owned(),
        format!("D={folder}"),
        format!("KUBERNETES_SERVICE_HOST={}", address.ip()),
        format!("KUBERNETES_SERVICE_PORT={}", address.port()),
        "MUSUBI_NODE_NAME=node-1".to_owned(),
    ];
    let script = format!("{MOUNTS}\n{limited}");
    stage.container.extend(["unshare", "--mount", "sh", "-ceu", &script, "container"].map(str::to_owned));
    stage
}

fn volume(stage: &Stage) -> PathBuf {
    stage.scene.node.folder().join("volume")
}

/// Puts a new token into the volume as kubelet does, by another link in the place of `..data`; the token.
fn renew(stage: &Stage, version: &str) -> String {
    let (volume, token) = (volume(stage), stage.server().issue_token_for(&role()));
    fs::create_dir_all(volume.join(version)).unwrap();
    fs::write(volume.join(version).join("token"), &token).unwrap();
    fs::write(volume.join(version).join("ca.crt"), stage.server().authority().unwrap()).unwrap();
    symlink(version, volume.join("..new")).unwrap();
    fs::rename(volume.join("..new"), volume.join("..data")).unwrap();
    token
}

/// What the agent has done so far, the newest first.
fn done(stage: &Stage) -> Vec<String> {
    let history: Value = stage.agent().get("/history").json();
    let operations = history["operations"].as_array().unwrap().iter();
    operations.map(|o| format!("{} {}", o["verb"].as_str().unwrap(), o["pod"].as_str().unwrap())).collect()
}

#[test]
fn the_agent_of_the_daemon_set_serves_pods() {
    let mut stage = stage();
    stage.start_agent();
    stage.runtime.wait_until_our_configuration_is_used();
    let pod = Pod::selecting("one", "blue,green");
    let id = stage.run(&pod);
    stage.assert_attached(&pod, &id, &["blue", "green"]);
    stage.remove(&id);
    let by_agent = ["DEL default/one", "DEL default/one", "ADD default/one"];
    assert_eq!(done(&stage), by_agent, "it sees the node's files, or it would have been told another namespace");

    // The old token is refused from now on, and the new one is in the volume.
    let old = fs::read_to_string(volume(&stage).join("token")).unwrap();
    let new = renew(&stage, "..2");
    stage.server().revoke_token(&old);
    let pod = Pod::selecting("two", "blue");
    let id = stage.run(&pod);
    stage.assert_attached(&pod, &id, &["blue"]);
    assert_eq!(done(&stage)[0], "ADD default/two");

    // Without an agent the plugin goes on, by the credentials that the agent has kept for it.
    let kept = stage.runtime.conf_dir().join("musubi.d/musubi.token");
    until("the plugin's token is the new one", || fs::read_to_string(&kept).is_ok_and(|token| token == new));
    stage.agent = None;
    let alone = Pod::selecting("alone", "blue");
    let alone_id = stage.run(&alone);
    stage.assert_attached(&alone, &alone_id, &["blue"]);
    [id, alone_id].iter().for_each(|id| stage.remove(id));
    stage.assert_nothing_is_left("container");
}

/// As with an agent whose namespace nobody could enter: it would do its work in the wrong place.
#[test]
fn an_agent_that_sees_other_files_than_the_plugin_is_given_no_work() {
    let mut stage = stage();
    stage.start_agent();
    stage.runtime.wait_until_our_configuration_is_used();
    stage.config["hostMountNamespace"] = json!("");
    stage.agent = None;
    stage.agent = Some(stage.new_agent());
    let pod = Pod::selecting("web", "blue");
    let id = stage.run(&pod);
    stage.assert_attached(&pod, &id, &["blue"]);
    stage.remove(&id);
    assert_eq!(done(&stage), [""; 0]);
    stage.assert_nothing_is_left("another mount namespace");
}

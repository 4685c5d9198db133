//! `musubi install` and `musubi uninstall` on a node in use: plugins that run meanwhile, copies that were interrupted, files of
//! others, and pods that are still there.
#![allow(clippy::unwrap_used, reason = "what is outside of test functions is part of a test, too")]

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use musubi_tests::node::{Node, Output, Sandbox, link_names, musubi};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn bin(node: &Node) -> PathBuf {
    node.folder().join("bin")
}

fn net_d(node: &Node) -> PathBuf {
    node.folder().join("net.d")
}

fn installed(node: &Node) -> PathBuf {
    bin(node).join("musubi")
}

fn install_command(node: &Node, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("install").arg("--bin-dir").arg(bin(node));
    command
}

fn install(node: &Node, program: &Path) -> Output {
    node.run(install_command(node, program), "")
}

fn uninstall_command(node: &Node, options: &[&str]) -> Command {
    let mut command = Command::new(musubi());
    command.arg("uninstall").args(options).arg("--bin-dir").arg(bin(node)).arg("--config-dir").arg(net_d(node));
    command.arg("--state-dir").arg(node.state());
    command
}

fn uninstall(node: &Node, options: &[&str]) -> Output {
    node.run(uninstall_command(node, options), "")
}

/// Another version of the program: what stands behind the end of an ELF file changes nothing but its bytes.
fn other_version(node: &Node) -> PathBuf {
    let file = node.folder().join("other-version");
    let mut bytes = fs::read(musubi()).unwrap();
    bytes.extend_from_slice(b"another version");
    fs::write(&file, bytes).unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    file
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn same(one: &Path, other: &Path) -> bool {
    fs::read(one).unwrap() == fs::read(other).unwrap()
}

#[test]
fn install_puts_the_program_there_and_a_second_time_leaves_it() {
    let node = Node::new();
    let first = install(&node, &musubi());
    assert!(first.ok && first.stdout.starts_with("installed "), "{first:?}");
    assert!(first.stdout.contains(installed(&node).to_str().unwrap()), "{first:?}");
    assert!(same(&installed(&node), &musubi()));
    let before = fs::metadata(installed(&node)).unwrap();
    assert_eq!(before.mode() & 0o7777, 0o755);

    // By itself, too: the installed one is run by hand.
    for program in [musubi(), installed(&node)] {
        let again = install(&node, &program);
        assert!(again.ok && again.stdout.starts_with("unchanged "), "{again:?}");
        let after = fs::metadata(installed(&node)).unwrap();
        assert_eq!((after.ino(), after.mtime_nsec()), (before.ino(), before.mtime_nsec()));
    }
    assert_eq!(names(&bin(&node)), ["musubi"]);

    fs::set_permissions(installed(&node), PermissionsExt::from_mode(0o644)).unwrap();
    assert!(install(&node, &musubi()).stdout.starts_with("replaced "), "a file that cannot be run is no program");
    assert_eq!(fs::metadata(installed(&node)).unwrap().mode() & 0o7777, 0o755);
}

/// The old program is in the middle of an ADD; the ADD ends as if nothing had been, and the new one does the DEL.
#[test]
fn an_upgrade_leaves_operations_that_run_to_their_end() {
    let node = Node::new();
    let (old, new) = (other_version(&node), musubi());
    assert!(install(&node, &old).ok);
    let sandbox = Sandbox::new("c1", "");
    let config = node.config(&node.default_bridge());
    let mut add = Command::new(installed(&node));
    add.env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", "c1").env("CNI_NETNS", sandbox.netns.path());
    add.env("CNI_IFNAME", "eth0").env("CNI_PATH", bin(&node)).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = node.host.enter(|| add.spawn().unwrap());
    wait_until("the old program runs", || {
        fs::read_link(format!("/proc/{}/exe", running.id())).is_ok_and(|exe| exe == installed(&node))
    });
    let write = fs::OpenOptions::new().write(true).open(installed(&node));
    assert_eq!(write.unwrap_err().kind(), ErrorKind::ExecutableFileBusy, "it cannot be overwritten");

    let upgrade = install(&node, &new);
    assert!(upgrade.ok && upgrade.stdout.starts_with("replaced "), "{upgrade:?}");
    assert!(same(&installed(&node), &new));
    running.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.1.0.2/24");
    node.run_plugin(&installed(&node), &[], "DEL", &sandbox, "eth0", &config).succeeded();
    assert_eq!(link_names(&sandbox.netns), ["lo"]);
    assert_eq!(node.leftover_files(), Vec::<String>::new());

    // And back: a downgrade is nothing else.
    assert!(install(&node, &old).stdout.starts_with("replaced "));
    assert!(same(&installed(&node), &old));
}

#[test]
fn an_install_killed_at_any_moment_leaves_a_whole_program() {
    let node = Node::new();
    let versions = [musubi(), other_version(&node)];
    assert!(install(&node, &versions[0]).ok);
    let time = {
        let start = std::time::Instant::now();
        assert!(install(&node, &versions[1]).ok);
        start.elapsed()
    };
    const KILLS: u32 = 24;
    let mut unfinished = 0;
    for round in 0..KILLS {
        let program = &versions[(round % 2) as usize];
        let mut running = install_command(&node, program).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(time * round / KILLS);
        running.kill().unwrap();
        running.wait().unwrap();
        unfinished += u32::from(names(&bin(&node)).len() > 1);
        assert!(versions.iter().any(|version| same(&installed(&node), version)), "killed in round {round}");
    }
    assert!(unfinished > 0, "no kill came in the middle of a copy");
    assert!(install(&node, &versions[0]).ok);
    assert!(same(&installed(&node), &versions[0]));
    assert_eq!(names(&bin(&node)), ["musubi"], "what was interrupted is gone");
}

#[test]
fn what_an_interrupted_install_left_goes_even_when_there_is_nothing_to_install() {
    let node = Node::new();
    assert!(install(&node, &musubi()).ok);
    fs::write(bin(&node).join(".musubi.new"), "half a program").unwrap();
    assert!(install(&node, &musubi()).stdout.starts_with("unchanged "));
    assert_eq!(names(&bin(&node)), ["musubi"]);
}

#[test]
fn installs_at_the_same_time_do_not_mix() {
    let node = Node::new();
    let versions = [musubi(), other_version(&node)];
    let start = |n: usize| install_command(&node, &versions[n % 2]).stdout(Stdio::null()).spawn().unwrap();
    let mut running: Vec<Child> = (0..8).map(start).collect();
    assert!(running.iter_mut().all(|child| child.wait().unwrap().success()));
    assert!(versions.iter().any(|version| same(&installed(&node), version)));
    assert_eq!(names(&bin(&node)), ["musubi"]);
}

#[test]
fn install_touches_no_file_of_others() {
    let node = Node::new();
    fs::create_dir(bin(&node)).unwrap();
    fs::write(bin(&node).join("bridge"), "another's plugin").unwrap();
    // A link may lead elsewhere for the runtime than for us: it is replaced, what it leads to is not.
    let elsewhere = node.folder().join("elsewhere");
    fs::copy(musubi(), &elsewhere).unwrap();
    symlink(&elsewhere, installed(&node)).unwrap();
    let other = other_version(&node);
    assert!(install(&node, &other).stdout.starts_with("replaced "));
    assert!(fs::symlink_metadata(installed(&node)).unwrap().is_file() && same(&installed(&node), &other));
    assert!(same(&elsewhere, &musubi()));
    assert_eq!(fs::read_to_string(bin(&node).join("bridge")).unwrap(), "another's plugin");
}

#[test]
fn an_install_that_cannot_be_says_why_and_leaves_nothing() {
    let node = Node::new();
    fs::create_dir_all(installed(&node).join("folder")).unwrap();
    let refused = install(&node, &musubi());
    assert!(!refused.ok && refused.stderr.contains("cannot install"), "{refused:?}");
    assert_eq!(names(&bin(&node)), ["musubi"], "the copy is taken back");

    fs::remove_dir_all(bin(&node)).unwrap();
    fs::write(bin(&node), "a file").unwrap();
    let refused = install(&node, &musubi());
    assert!(!refused.ok && refused.stderr.contains("--bin-dir"), "{refused:?}");
    assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
}

/// A node as the agent leaves it: program, configuration, credentials, and the primary CNI's own configuration.
fn installed_node() -> Node {
    let node = Node::new();
    assert!(install(&node, &musubi()).ok);
    fs::create_dir_all(net_d(&node).join("musubi.d")).unwrap();
    fs::write(net_d(&node).join("musubi.d/musubi.kubeconfig"), "{}").unwrap();
    configuration(&node, "00-musubi.conflist", &json!({"cniVersion": "0.4.0", "name": "n", "plugins": [ours(&node)]}));
    configuration(
        &node,
        "10-primary.conflist",
        &json!({"cniVersion": "1.0.0", "name": "p", "plugins": [{"type": "bridge"}]}),
    );
    fs::write(bin(&node).join("bridge"), "another's plugin").unwrap();
    node
}

fn ours(node: &Node) -> Value {
    json!({"type": "musubi", "clusterNetwork": "p", "agentSocket": node.folder().join("agent.sock")})
}

fn configuration(node: &Node, name: &str, content: &Value) {
    fs::write(net_d(node).join(name), content.to_string()).unwrap();
}

#[test]
fn uninstall_gives_the_node_back_to_its_primary_cni() {
    let node = installed_node();
    // One by hand, one that Cilium renamed and would name back, one that was interrupted.
    configuration(&node, "00-musubi.conf", &json!({"cniVersion": "0.4.0", "name": "n", "type": "musubi"}));
    configuration(&node, "00-musubi.conflist.cilium_bak", &json!({"name": "n", "plugins": [ours(&node)]}));
    fs::write(net_d(&node).join(".00-musubi.conflist.aBcDeF"), "{\"pl").unwrap();
    let done = uninstall(&node, &[]);
    assert!(done.ok, "{done:?}");
    let removed = |folder: PathBuf, name: &str| format!("removed {}\n", folder.join(name).display());
    let expected = [
        removed(net_d(&node), "00-musubi.conflist"),
        removed(net_d(&node), "00-musubi.conf"),
        removed(net_d(&node), "00-musubi.conflist.cilium_bak"),
        "new pods get their network from 10-primary.conflist\n".to_owned(),
        removed(net_d(&node), "musubi.d"),
        removed(bin(&node), "musubi"),
    ];
    assert_eq!(done.stdout, expected.concat());
    assert_eq!(names(&net_d(&node)), ["10-primary.conflist"]);
    assert_eq!(names(&bin(&node)), ["bridge"]);

    for _ in 0..2 {
        let again = uninstall(&node, &[]);
        assert!(again.ok && again.stdout == "nothing of musubi is left here\n", "{again:?}");
    }
}

#[test]
fn uninstall_on_a_machine_that_never_had_it_does_nothing() {
    let node = Node::new();
    let done = uninstall(&node, &[]);
    assert!(done.ok && done.stdout == "nothing of musubi is left here\n", "{done:?}");
    assert_eq!(names(node.folder()), ["manifests"], "it makes no folder");
}

#[test]
fn without_another_configuration_uninstall_says_that_pods_have_no_network() {
    let node = installed_node();
    fs::rename(net_d(&node).join("10-primary.conflist"), net_d(&node).join("10-primary.conflist.bak")).unwrap();
    let done = uninstall(&node, &[]);
    assert!(done.ok && done.stdout.contains("new pods have no network: "), "{done:?}");
}

#[test]
fn a_configuration_of_others_stays_whatever_its_name() {
    let node = installed_node();
    let rows = [
        json!({"cniVersion": "0.4.0", "name": "n", "type": "bridge"}),
        json!({"cniVersion": "0.4.0", "name": "musubi", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}),
        json!(["musubi"]),
    ];
    for content in rows {
        configuration(&node, "00-musubi.conflist", &content);
        let done = uninstall(&node, &[]);
        assert!(done.ok && done.stdout.contains("00-musubi.conflist: it is not ours"), "{done:?}");
        assert!(net_d(&node).join("00-musubi.conflist").exists());
    }

    fs::write(net_d(&node).join("00-musubi.conflist"), "{\"type\": \"musu").unwrap();
    let refused = uninstall(&node, &[]);
    assert!(!refused.ok && refused.stderr.contains("remove it by hand"), "{refused:?}");
    assert!(net_d(&node).join("00-musubi.conflist").exists(), "whose it is, nobody knows");
}

#[test]
fn uninstall_asks_for_the_state_folder_of_the_configuration() {
    let node = installed_node();
    let mut ours = ours(&node);
    ours["cniDir"] = json!("/var/lib/elsewhere");
    configuration(&node, "00-musubi.conflist", &json!({"cniVersion": "0.4.0", "name": "n", "plugins": [ours]}));
    let refused = uninstall(&node, &["--force"]);
    assert!(!refused.ok && refused.stderr.contains("say --state-dir /var/lib/elsewhere"), "{refused:?}");
    assert_eq!(names(&bin(&node)), ["bridge", "musubi"]);
}

/// A configuration without its plugin would fail every pod of the node.
#[test]
fn the_program_stays_while_the_configuration_cannot_be_removed() {
    let node = installed_node();
    fs::set_permissions(net_d(&node), PermissionsExt::from_mode(0o555)).unwrap();
    let uninstall = uninstall_command(&node, &[]);
    let mut without_rights = Command::new("setpriv");
    without_rights.args(["--bounding-set=-dac_override", "--inh-caps=-all"]);
    without_rights.arg(uninstall.get_program()).args(uninstall.get_args());
    let failed = node.run(without_rights, "");
    assert!(
        !failed.ok && failed.stderr.contains("cannot remove") && failed.stderr.contains("00-musubi.conflist"),
        "{failed:?}"
    );
    assert_eq!(names(&bin(&node)), ["bridge", "musubi"]);
    assert!(net_d(&node).join("musubi.d/musubi.kubeconfig").exists());
}

/// Its agent would put everything back at once.
#[test]
fn uninstall_waits_for_the_end_of_the_agent() {
    let node = installed_node();
    let agent = UnixListener::bind(node.folder().join("agent.sock")).unwrap();
    let refused = uninstall(&node, &[]);
    assert!(!refused.ok && refused.stderr.contains("agent.sock") && refused.stderr.contains("--force"), "{refused:?}");
    assert_eq!(
        names(&net_d(&node)),
        ["00-musubi.conflist", "10-primary.conflist", "musubi.d"],
        "nothing is done by halves"
    );
    drop(agent);
    assert!(uninstall(&node, &[]).ok, "a socket that nobody serves is no agent");
    assert_eq!(names(&net_d(&node)), ["10-primary.conflist"]);
}

/// Some runtimes still call the program for DEL; it goes when nobody needs it.
#[test]
fn the_program_stays_while_a_pod_has_networks_of_ours() {
    let node = installed_node();
    node.pod("default", "web", "");
    let sandbox = Sandbox::new("c1", "default/web");
    let config = node.config(&node.default_bridge());
    let _ = node.call("ADD", &sandbox, &config).result();

    let first = uninstall(&node, &[]);
    assert!(first.ok && first.stdout.contains("kept ") && first.stdout.contains("pod default/web"), "{first:?}");
    assert!(first.stdout.contains("uninstall again when they are gone, or with --force"), "{first:?}");
    assert_eq!(names(&net_d(&node)), ["10-primary.conflist"], "new pods are the primary CNI's already");
    assert_eq!(link_names(&sandbox.netns), ["eth0", "lo"], "the pod keeps what it has");

    node.run_plugin(&installed(&node), &[], "DEL", &sandbox, "eth0", &config).succeeded();
    let second = uninstall(&node, &[]);
    assert_eq!(second.stdout, format!("removed {}\n", installed(&node).display()));
    assert_eq!(names(&bin(&node)), ["bridge"]);
    assert_eq!(node.leftover_files(), Vec::<String>::new());
}

#[test]
fn uninstall_by_force_leaves_a_pod_its_network_and_its_record() {
    let node = installed_node();
    let sandbox = Sandbox::new("c1", "");
    let config = node.config(&node.default_bridge());
    let _ = node.call("ADD", &sandbox, &config).result();
    let done = uninstall(&node, &["--force"]);
    assert!(done.ok && done.stdout.contains("bin/musubi") && !done.stdout.contains("kept"), "{done:?}");
    assert_eq!(names(&bin(&node)), ["bridge"]);
    assert_eq!(link_names(&sandbox.netns), ["eth0", "lo"]);
    node.call("DEL", &sandbox, &config).succeeded();
    assert_eq!(node.leftover_files(), Vec::<String>::new(), "installed again, it finishes");
}

/// containerd deletes by the configuration of the day, so nobody calls us for pods that end after an uninstall.
#[test]
fn uninstall_releases_what_pods_that_are_gone_have_left() {
    let node = installed_node();
    let sandbox = Sandbox::new("c1", "");
    let config = node.config(&node.default_bridge());
    let _ = node.call("ADD", &sandbox, &config).result();
    sandbox.netns.end();
    let done = uninstall(&node, &[]);
    assert!(done.ok && done.stdout.contains("released what was left of container c1"), "{done:?}");
    assert_eq!(names(&bin(&node)), ["bridge"]);
    assert_eq!(node.leftover_files(), Vec::<String>::new());
}

#[test]
fn uninstall_can_stay_until_the_last_pod_is_gone() {
    let node = installed_node();
    let sandbox = Sandbox::new("c1", "");
    let config = node.config(&node.default_bridge());
    let _ = node.call("ADD", &sandbox, &config).result();
    let mut command = uninstall_command(&node, &["--stay"]);
    let mut staying = node.host.enter(|| command.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(staying.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.by_ref().any(|line| line.starts_with("kept ")), "the program is needed");
    assert!(installed(&node).exists());
    sandbox.netns.end();
    assert!(lines.by_ref().any(|line| line.ends_with("bin/musubi")), "it is not any more");
    assert!(!installed(&node).exists());
    kill(Pid::from_raw(i32::try_from(staying.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(staying.wait().unwrap().success(), "a signal ends it");
}

/// A container that shares the host's processes: process 1 sees the host's files, the program sees its own.
#[test]
fn uninstall_can_work_on_the_files_of_the_host() {
    let node = installed_node();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "sh", "-ceu"]);
    // Process 1 keeps the folder; for the other one, and in its mount namespace alone, there is an empty one instead.
    command.arg(
        r#"unshare --mount sh -ceu 'mount -t tmpfs tmpfs "$HIDDEN"; ls -A "$HIDDEN"; cd /; exec "$@"' sh "$@"
           exit"#,
    );
    let uninstall = uninstall_command(&node, &["--host"]);
    command.arg("sh").arg(uninstall.get_program()).args(uninstall.get_args()).env("HIDDEN", node.folder());
    let done = node.run(command, "");
    assert!(done.ok && done.stdout.starts_with("removed "), "{done:?}");
    assert_eq!(names(&net_d(&node)), ["10-primary.conflist"]);
    assert_eq!(names(&bin(&node)), ["bridge"]);
}

fn wait_until(what: &str, met: impl Fn() -> bool) {
    for _ in 0..500 {
        if met() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("5 s have passed, and not yet: {what}");
}

//! An agent in a container enters the host's mounts and keeps its own token and configuration: proved with a process whose
//! mounts are others than this one's, which plays the host and its kubelet.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

/// What the container mounts over the host's folders: the volume that kubelet renews, and a configuration of its own.
const CONTAINER: &str = r#"
mount --bind "$D/volume" "$D/secrets"
mount -t tmpfs none "$D/conf"
echo -n "the container's" > "$D/conf/agent.json"
"#;

/// The host's side: folders, and kubelet's volume.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        for folder in ["volume", "secrets", "conf"] {
            fs::create_dir(host.path(folder)).unwrap();
        }
        fs::write(host.path("conf/agent.json"), "the host's").unwrap();
        host.renew("..1", "token-1");
        for name in ["token", "ca.crt"] {
            symlink(format!("..data/{name}"), host.path("volume").join(name)).unwrap();
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Renews the token as kubelet does: a new folder, and a new link to it by rename.
    fn renew(&self, version: &str, token: &str) {
        let volume = self.path("volume");
        fs::create_dir(volume.join(version)).unwrap();
        fs::write(volume.join(version).join("token"), token).unwrap();
        fs::write(volume.join(version).join("ca.crt"), "a certificate").unwrap();
        symlink(version, volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        // Kubelet removes what nobody refers to any more.
        for entry in fs::read_dir(&volume).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with("..") && name != "..data" && name != version {
                fs::remove_dir_all(entry.path()).unwrap();
            }
        }
    }

    /// Starts an agent in a container; `wrapper` is what runs it there, `namespace` what it is told to enter.
    fn agent(&self, unshare: &[&str], wrapper: &str, namespace: &str) -> Agent {
        let script =
            format!("set -e; {CONTAINER} exec {wrapper} \"$0\" {namespace} \"$D/secrets\" \"$D/conf/agent.json\"");
        let mut call = Command::new("unshare");
        call.arg("--mount").args(unshare).args(["sh", "-c", &script, env!("CARGO_BIN_EXE_host-mounts")]);
        call.env("D", self.0.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = call.spawn().unwrap();
        let mut answers = BufReader::new(process.stdout.take().unwrap());
        let state = next(&mut answers);
        Agent { process, answers, state }
    }

    /// The mount namespace of this process, as processes with the host's process ids see it.
    fn namespace() -> String {
        format!("/proc/{}/ns/mnt", std::process::id())
    }
}

struct Agent {
    process: Child,
    answers: BufReader<ChildStdout>,
    state: Value,
}

impl Agent {
    fn ask(&mut self, question: String) -> Value {
        writeln!(self.process.stdin.as_mut().unwrap(), "{question}").unwrap();
        next(&mut self.answers)
    }

    fn state(&self) -> &str {
        self.state["state"].as_str().unwrap()
    }

    fn problem(&self) -> &str {
        self.state["problem"].as_str().unwrap_or_else(|| panic!("no problem: {}", self.state))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn next(answers: &mut BufReader<ChildStdout>) -> Value {
    let mut line = String::new();
    answers.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e} in {line:?}"))
}

#[test]
fn an_agent_in_a_container_sees_the_hosts_files_and_keeps_its_own() {
    let host = Host::new();
    let mut agent = host.agent(&[], "", &Host::namespace());
    assert_eq!(agent.state, json!({"state": "entered", "problem": null}));
    let path = |name: &str| host.path(name).display().to_string();
    assert_eq!(agent.ask(format!("read {}", path("conf/agent.json"))), "the host's");
    assert_eq!(agent.ask("config agent.json".into()), "the container's");
    assert_eq!(
        agent.ask(format!("read {}", path("secrets/token"))),
        Value::Null,
        "the volume is the container's alone"
    );
    assert_eq!(agent.ask("account token".into()), "token-1");
    let relative = path("conf/agent.json").trim_start_matches('/').to_owned();
    assert_eq!(agent.ask(format!("read {relative}")), "the host's", "it stands in the host's root folder");

    host.renew("..2", "token-2");
    assert_eq!(agent.ask("account token".into()), "token-2", "what kubelet renews is seen");
    assert_eq!(agent.ask("account ca.crt".into()), "a certificate");
    assert_eq!(agent.ask("account none".into()), Value::Null);

    fs::write(host.path("conf/new"), "made later").unwrap();
    assert_eq!(agent.ask(format!("read {}", path("conf/new"))), "made later");
}

#[test]
fn the_plugins_credentials_are_written_on_the_host_from_the_container() {
    let host = Host::new();
    let mut agent = host.agent(&[], "", &Host::namespace());
    let kubeconfig = host.path("net.d/musubi.d/musubi.kubeconfig");
    assert_eq!(agent.ask(format!("credentials {}", kubeconfig.display())), json!({"Ok": true}));
    assert_eq!(fs::read_to_string(kubeconfig.with_file_name("musubi.token")).unwrap(), "token-1");
    let text = fs::read_to_string(&kubeconfig).unwrap();
    assert!(text.contains("https://10.96.0.1:443") && !text.contains("token-1"), "{text}");
    assert_eq!(fs::metadata(&kubeconfig).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn an_agent_that_has_the_hosts_mounts_already_stays() {
    let host = Host::new();
    let mut agent = host.agent(&[], "", "/proc/self/ns/mnt");
    assert_eq!(agent.state(), "own");
    let own = agent.ask(format!("read {}", host.path("conf/agent.json").display()));
    assert_eq!(own, "the container's");
}

#[test]
fn where_it_cannot_enter_it_says_what_the_pod_lacks_and_goes_nowhere() {
    let rows: &[(&[&str], &str, &str, &str)] = &[
        (&[], "setpriv --bounding-set=-sys_admin", "", "CAP_SYS_ADMIN"),
        (&[], "setpriv --bounding-set=-sys_chroot", "", "CAP_SYS_CHROOT"),
        (&[], "setpriv --bounding-set=-sys_admin,-sys_ptrace", "", "CAP_SYS_PTRACE"),
        (&["--pid", "--fork", "--mount-proc"], "", "/proc/1/ns/mnt", "hostPID"),
        (&[], "", "/proc/4194305/ns/mnt", "hostPID"),
        (&[], "", "/proc/self/ns/uts", "no mount namespace"),
    ];
    for (unshare, wrapper, namespace, lacking) in rows {
        let host = Host::new();
        let own = Host::namespace();
        let namespace = if namespace.is_empty() { &own } else { *namespace };
        let mut agent = host.agent(unshare, wrapper, namespace);
        let case = format!("{wrapper}{namespace}");
        assert_eq!(agent.state(), "failed", "{case}: {}", agent.state);
        let problem = agent.problem().to_owned();
        assert!(
            problem.contains(namespace) && problem.contains(lacking) && !problem.contains('\n'),
            "{case}: {problem}"
        );
        let own = agent.ask(format!("read {}", host.path("conf/agent.json").display()));
        assert_eq!(own, "the container's", "{case}: it is where it was");
        assert_eq!(agent.ask("account token".into()), "token-1", "{case}");
    }
}

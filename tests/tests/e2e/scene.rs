//! What the tests of faults, of life and of crowds share: a node with a few networks, plugins that are shell scripts, calls
//! that can be killed, and the proof that nothing is left.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use musubi_delegates::firewall;
use musubi_delegates::netlink::Netlink;
use musubi_tests::node::{Node, Output, Sandbox, link_names, musubi};
use serde_json::{Value, json};

/// How long anything may take that is waited for.
pub const ENOUGH: Duration = Duration::from_secs(20);

/// A node with the networks `default/blue` and `default/green` beside the default one, all masqueraded, and the pod
/// `default/web`, which selects both.
pub struct Scene {
    pub node: Node,
    pub config: Value,
}

impl Scene {
    pub fn new() -> Self {
        let node = Node::new();
        let config = node.config(&masqueraded(node.default_bridge()));
        let scene = Self { node, config };
        scene.definition("blue", &masqueraded(scene.node.bridge("br-blue", "blue", "10.2.0.0/24")));
        scene.definition("green", &masqueraded(scene.node.bridge("br-green", "green", "10.3.0.0/24")));
        scene.node.pod("default", "web", "blue,green");
        scene
    }

    pub fn definition(&self, name: &str, config: &Value) {
        self.node.definition("default", name, config);
    }

    /// A chain of the bridge of network `name` and of plugins by their types.
    pub fn chain(&self, name: &str, subnet: &str, types: &[&str]) {
        self.definition(name, &self.chained(name, subnet, types));
    }

    /// The configuration of such a chain.
    pub fn chained(&self, name: &str, subnet: &str, types: &[&str]) -> Value {
        let mut bridge = masqueraded(self.node.bridge(&format!("br-{name}"), name, subnet));
        bridge.as_object_mut().unwrap().remove("cniVersion");
        let others = types.iter().map(|kind| json!({"type": kind}));
        let plugins: Vec<Value> = [bridge].into_iter().chain(others).collect();
        json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins})
    }

    pub fn with(&self, key: &str, value: Value) -> Value {
        let mut config = self.config.clone();
        config[key] = value;
        config
    }

    pub fn sandbox(&self, id: &str) -> Sandbox {
        Sandbox::new(id, "default/web")
    }

    pub fn add(&self, sandbox: &Sandbox) -> Output {
        self.node.call("ADD", sandbox, &self.config)
    }

    pub fn del(&self, sandbox: &Sandbox) -> Output {
        self.node.call("DEL", sandbox, &self.config)
    }

    pub fn check(&self, sandbox: &Sandbox) -> Output {
        self.node.call("CHECK", sandbox, &self.config)
    }

    /// Puts a shell script where plugins are.
    pub fn plugin(&self, name: &str, script: &str) -> PathBuf {
        let folder = self.node.folder().join("bin");
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join(name);
        // Never written in place: a test runs many threads, and a file that one of them has open for writing cannot be run.
        let new = folder.join(format!(".{name}"));
        fs::write(&new, format!("#!/bin/sh\nD={}\n{script}\n", self.node.folder().display())).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, &file).unwrap();
        file
    }

    /// A plugin that writes down each call and passes the result before it on.
    pub fn recording_plugin(&self, name: &str) -> PathBuf {
        self.plugin(name, &format!("{RECORD}\n{PASS_ON}"))
    }

    /// What recording plugins wrote down: one line a call.
    pub fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.node.folder().join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Starts a call without waiting for it.
    pub fn start(&self, command: &str, sandbox: &Sandbox, config: &Value) -> Child {
        self.start_logging_to(command, sandbox, config, Stdio::null())
    }

    pub fn start_logging_to(&self, command: &str, sandbox: &Sandbox, config: &Value, log: Stdio) -> Child {
        let mut call = Command::new(musubi());
        let path: Vec<String> = self.node.cni_path.iter().map(|p| p.display().to_string()).collect();
        call.env("CNI_COMMAND", command).env("CNI_CONTAINERID", &sandbox.id).env("CNI_PATH", path.join(":"));
        call.env("CNI_NETNS", sandbox.netns.path()).env("CNI_IFNAME", "eth0").env("CNI_ARGS", sandbox.args());
        call.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = self.node.host.enter(|| call.spawn().unwrap());
        let _ = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
        child
    }

    pub fn records(&self) -> Vec<PathBuf> {
        let mut records = files(self.node.state().join("records"));
        records.retain(|file| !file.file_name().unwrap().to_string_lossy().starts_with('.'));
        records
    }

    pub fn orphans(&self) -> Vec<PathBuf> {
        files(self.node.state().join("orphans"))
    }

    /// The only record, as JSON.
    pub fn record(&self) -> Value {
        let [file] = &self.records()[..] else { panic!("records: {:?}", self.records()) };
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    }

    /// Changes the only record.
    pub fn edit_record(&self, change: impl FnOnce(&mut Value)) {
        let mut record = self.record();
        change(&mut record);
        fs::write(&self.records()[0], record.to_string()).unwrap();
    }

    /// The pod's network-status as it is written.
    pub fn status(&self, pod: &str) -> Option<Value> {
        let text = fs::read_to_string(self.node.manifests().join(format!("status/{pod}.json"))).ok()?;
        let object: Value = serde_json::from_str(&text).unwrap();
        let annotation = object["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"].as_str().unwrap();
        Some(serde_json::from_str(annotation).unwrap())
    }

    /// Addresses that are reserved, `network/address`.
    pub fn reserved(&self) -> Vec<String> {
        let mut found = Vec::new();
        for network in files(self.node.reservations()) {
            for file in files(network.clone()) {
                let name = file.file_name().unwrap().to_string_lossy().into_owned();
                // A file without content reserves nothing.
                if name != "lock" && !name.starts_with("last_reserved") && fs::metadata(&file).unwrap().len() > 0 {
                    found.push(format!("{}/{name}", network.file_name().unwrap().to_string_lossy()));
                }
            }
        }
        found.sort();
        found
    }

    /// Owners of rules in the host's nf_tables.
    pub fn rules(&self) -> Vec<String> {
        self.node.host.enter(|| {
            let nft = Netlink::netfilter().unwrap();
            let owners = firewall::masqueraded_owners(&nft).unwrap().into_iter();
            owners.chain(firewall::spoof_checked_owners(&nft).unwrap()).map(|o| o.to_string()).collect()
        })
    }

    /// Proves that no link, rule, reservation, record, lock or status is left. `foreign` links of the pods may stay.
    pub fn nothing_is_left(&self, sandboxes: &[&Sandbox], foreign: &[&str], case: &str) {
        let mut wanted = [&["lo"], foreign].concat();
        wanted.sort_unstable();
        for sandbox in sandboxes.iter().filter(|sandbox| sandbox.netns.path().exists()) {
            assert_eq!(link_names(&sandbox.netns), wanted, "{case}: links of {}", sandbox.id);
        }
        let ours = |name: &String| name.starts_with("veth");
        let links: Vec<String> = self.node.links().into_iter().filter(ours).collect();
        assert_eq!(links, [""; 0], "{case}: host links");
        assert_eq!(self.rules(), [""; 0], "{case}: rules");
        assert_eq!(self.reserved(), [""; 0], "{case}: reservations");
        let is_empty_reservation = |file: &String| {
            file.starts_with(self.node.reservations().to_str().unwrap())
                && fs::metadata(file).is_ok_and(|m| m.len() == 0)
        };
        // The agent, looking for what there is to do for a container, holds its lock for a moment, be it after DEL.
        until(&format!("{case}: every lock is gone"), || files(self.node.state().join("locks")).is_empty());
        let mut left = self.node.leftover_files();
        left.retain(|file| !is_empty_reservation(file));
        left.extend(files(self.node.state().join("pending")).iter().map(|f| f.display().to_string()));
        assert_eq!(left, [""; 0], "{case}: files");
    }
}

/// Part of a script: writes the call down.
pub const RECORD: &str = r#"echo "$CNI_COMMAND ${0##*/} $CNI_IFNAME ${CNI_NETNS:+netns}" >> $D/calls"#;
/// Part of a script: the result of ADD is the one before. `prevResult` is what we add last.
pub const PASS_ON: &str = r#"[ $CNI_COMMAND != ADD ] || sed 's/.*"prevResult"://; s/}$//'"#;

pub fn masqueraded(mut config: Value) -> Value {
    config["ipMasq"] = true.into();
    config
}

pub fn files(folder: PathBuf) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + ENOUGH;
    while !is_so() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs `work` for each of `count` pods, so many at a time.
pub fn crowd(count: usize, at_a_time: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

/// What an error's words must be: one line, for a person.
pub fn assert_words(message: &str, words: &[&str], case: &str) {
    for word in words {
        assert!(message.contains(word), "{case}: no {word:?} in {message:?}");
    }
    assert!(!message.contains('\n') && message.len() < 400, "{case}: not one line for a person: {message:?}");
    assert!(!message.contains('{'), "{case}: a configuration is dumped: {message:?}");
}

/// What `nft flush ruleset` of another program does to the calling thread's namespace: one transaction that deletes every
/// table of every family.
pub fn flush_ruleset() {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
    };
    use std::os::fd::AsRawFd;

    const NF_TABLES: u16 = 10;
    let (begin, end, delete_table) = (0x10_u16, 0x11_u16, NF_TABLES << 8 | 2);
    let (request, acknowledged) = (1_u16, 1 | 4);
    let mut batch = Vec::new();
    for (kind, flags, subsystem) in
        [(begin, request, NF_TABLES), (delete_table, acknowledged, 0), (end, request, NF_TABLES)]
    {
        batch.extend(20_u32.to_ne_bytes()); // nlmsghdr: length, type, flags, sequence, port
        batch.extend(kind.to_ne_bytes());
        batch.extend(flags.to_ne_bytes());
        batch.extend([0; 8]);
        batch.extend([0; 2]); // nfgenmsg: family (any), version, subsystem
        batch.extend(subsystem.to_be_bytes());
    }
    let protocol = SockProtocol::NetlinkNetFilter;
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
    sendto(netlink.as_raw_fd(), &batch, &NetlinkAddr::new(0, 0), MsgFlags::empty()).unwrap();
    let mut answer = [0; 256];
    assert!(recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap() >= 20);
    assert_eq!(answer[16..20], [0; 4], "the kernel refuses the flush");
}

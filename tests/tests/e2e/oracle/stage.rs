//! Where a configuration is tried: a node, a sandbox, and one of two programs, the reference plugin of that type or our
//! delegate of the same. What they leave is read by `facts`.

use std::process::Command;
use std::sync::Once;

use musubi_delegates::netlink::{Netlink, NewLink};
use musubi_tests::node::{Node, Output, Sandbox, musubi, reference_plugins};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

/// Who carries a configuration out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The reference plugin.
    Theirs,
    /// Our delegate.
    Ours,
}

/// Both, theirs first.
pub const BOTH: [Who; 2] = [Who::Theirs, Who::Ours];
/// Each for ADD, the other for what comes after.
pub const BOTH_WAYS: [(Who, Who); 2] = [(Who::Theirs, Who::Ours), (Who::Ours, Who::Theirs)];

/// A node and one sandbox on it.
pub struct Stage {
    pub node: Node,
    pub sandbox: Sandbox,
    pub interface: &'static str,
    /// `CNI_ARGS`.
    pub args: String,
}

impl Stage {
    pub fn new() -> Self {
        keep_state_to_ourselves();
        Self { node: Node::new(), sandbox: Sandbox::new("c1", ""), interface: "eth0", args: String::new() }
    }

    /// Another sandbox on the same node.
    pub fn sandbox(&self, id: &str) -> Sandbox {
        Sandbox::new(id, "")
    }

    /// Runs a command of one of the programs for the stage's sandbox.
    pub fn call(&self, who: Who, command: &str, conf: &Value) -> Output {
        self.call_for(who, command, &self.sandbox, self.interface, conf)
    }

    /// As [`Self::call`], for another sandbox or interface.
    pub fn call_for(&self, who: Who, command: &str, sandbox: &Sandbox, interface: &str, conf: &Value) -> Output {
        let kind = conf["type"].as_str().expect("a type");
        self.call_as(who, kind, command, sandbox, interface, conf)
    }

    /// As [`Self::call_for`], by the program of another type than the configuration's.
    pub fn call_as(
        &self,
        who: Who,
        kind: &str,
        command: &str,
        sandbox: &Sandbox,
        interface: &str,
        conf: &Value,
    ) -> Output {
        let netns = sandbox.netns.path().display().to_string();
        let env = [("CNI_CONTAINERID", sandbox.id.as_str()), ("CNI_NETNS", &netns), ("CNI_IFNAME", interface)];
        self.call_raw(who, kind, command, &env, conf)
    }

    /// As [`Self::call`], with every variable chosen.
    pub fn call_raw(&self, who: Who, kind: &str, command: &str, env: &[(&str, &str)], conf: &Value) -> Output {
        let mut call = match who {
            Who::Theirs => Command::new(reference_plugins().join(kind)),
            Who::Ours => {
                let mut call = Command::new(musubi());
                call.args(["delegate", kind]);
                call
            }
        };
        call.env("CNI_COMMAND", command).env("CNI_ARGS", &self.args).envs(env.iter().copied());
        self.node.run(call, &self.place(conf).to_string())
    }

    /// A configuration with `$DATA` and `$FOLDER` replaced by folders of this node.
    pub fn place(&self, conf: &Value) -> Value {
        let text = conf
            .to_string()
            .replace("$DATA", &self.node.reservations().display().to_string())
            .replace("$FOLDER", &self.node.folder().display().to_string());
        serde_json::from_str(&text).expect("a configuration")
    }

    /// The host's rtnetlink.
    pub fn host(&self) -> Netlink {
        self.node.host.open().netlink
    }

    /// Adds an uplink `up0` whose other end is `far0`, for what needs a master.
    pub fn uplink(&self) {
        self.node.add_uplink("up0", "far0");
    }

    /// Leaves nothing of the pool that [`small_pool`] is.
    pub fn use_up_pool(&self) {
        let folder = self.node.reservations().join("net");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("10.7.0.2"), "somebody\r\neth0").expect("a reservation");
    }

    /// Adds a plain bridge to the host.
    pub fn bridge(&self, name: &str) {
        self.host().request(NewLink::named(name).up().of_kind("bridge", |data| data)).expect("a bridge");
    }
}

/// A configuration with the result of ADD in it, as CHECK and DEL get it.
pub fn with_result(conf: &Value, result: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    conf
}

/// host-local of one subnet, with more keys of `ipam`.
pub fn host_local(subnet: &str, more: &Value) -> Value {
    let mut ipam = json!({"type": "host-local", "dataDir": "$DATA", "subnet": subnet});
    extend(&mut ipam, more);
    ipam
}

/// host-local with one address to give.
pub fn small_pool() -> Value {
    host_local("10.7.0.0/30", &json!({}))
}

/// host-local of one IPv4 and one IPv6 subnet, with more keys of `ipam`.
pub fn dual_stack(more: &Value) -> Value {
    let mut ipam = json!({"type": "host-local", "dataDir": "$DATA", "ranges": [
        [{"subnet": "10.7.0.0/24"}], [{"subnet": "fd07::/64"}],
    ]});
    extend(&mut ipam, more);
    ipam
}

/// Adds the keys of one object to another.
pub fn extend(object: &mut Value, more: &Value) {
    for (key, value) in more.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
}

/// A delegate on its own keeps its locks below `/var/lib`; the machine's stays as it is behind a folder of our own.
fn keep_state_to_ourselves() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::fs::create_dir_all("/var/lib").expect("a folder");
        mount(Some("tmpfs"), "/var/lib", Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .expect("a folder over /var/lib");
    });
}

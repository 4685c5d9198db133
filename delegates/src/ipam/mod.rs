//! IPAM: which addresses an attachment gets. Chooses between `host-local` and `static` in process and any other
//! type as an external plugin; what is done with the addresses is the delegates' business.

mod by_container;
pub mod external;
pub mod host_local;
mod host_local_conf;
pub mod index;
mod parts;
pub mod ranges;
pub mod reservations;
mod resolv_conf;
pub mod static_addresses;
pub mod store;

pub use by_container::{recorded, release_container};
pub use external::External;
pub use host_local::HostLocal;
pub use static_addresses::Static;

use crate::cni::{CniArgs, CniError, CniResult, ConfigError, NetConf, ValidAttachment};
use crate::delegate::{Attachment, Context};
use crate::uses::Uses;

/// A parsed `ipam` that can be carried out.
#[derive(Debug, Clone, PartialEq)]
pub enum Ipam {
    /// Pools of this host.
    HostLocal(HostLocal),
    /// Addresses as written.
    Static(Static),
    /// A plugin.
    External(External),
}

impl Ipam {
    /// Reads the `ipam` of a network configuration: `runtimeConfig` and `args.cni` count, `CNI_ARGS` come with the request.
    /// `None` where there is none, or one without a type: the attachment is layer 2.
    ///
    /// # Errors
    /// The key and what is accepted.
    pub fn parse(conf: &NetConf) -> Result<Option<Ipam>, ConfigError> {
        let Some(ipam) = conf.view().object("ipam")? else {
            return Ok(None);
        };
        Ok(match ipam.text("type")? {
            None => None,
            Some("host-local") => Some(Ipam::HostLocal(HostLocal::parse(conf)?)),
            Some("static") => Some(Ipam::Static(Static::parse(conf)?)),
            Some(other) if other.contains(['/', '\0']) || other == "." || other == ".." => {
                return Err(ipam.error("type", "must be a plugin's name, without a path"));
            }
            Some(other) => Some(Ipam::External(External::new(other))),
        })
    }

    /// Reads what [`Self::release`] needs and no more, for a DEL whose configuration has become wrong since ADD.
    ///
    /// # Errors
    /// Not even that can be read.
    pub fn parse_for_release(conf: &NetConf) -> Result<Option<Ipam>, ConfigError> {
        let ipam = conf.view().object("ipam")?;
        match ipam.map(|ipam| ipam.text("type")).transpose()?.flatten() {
            Some("host-local") => HostLocal::parse_for_release(conf).map(|ipam| Some(Ipam::HostLocal(ipam))),
            Some("static") => Ok(None),
            _ => Ipam::parse(conf),
        }
    }

    /// The paths of all keys inside `ipam` that the bundled types know, without positions in lists.
    pub(crate) fn keys() -> impl Iterator<Item = String> {
        let tops = host_local_conf::KEYS.iter().chain(static_addresses::KEYS).map(|key| format!("ipam.{key}"));
        let ranges = host_local_conf::RANGE_KEYS.iter().map(|key| format!("ipam.ranges.{key}"));
        tops.chain(ranges).chain(static_addresses::ADDRESS_KEYS.iter().map(|key| format!("ipam.addresses.{key}")))
    }

    /// What was ignored, one line each.
    pub fn warnings(&self) -> Vec<String> {
        match self {
            Ipam::HostLocal(host_local) => host_local.warnings().to_vec(),
            Ipam::Static(fixed) => fixed.warnings().to_vec(),
            Ipam::External(_) => Vec::new(),
        }
    }

    /// Adds what it gives to what a configuration uses; what a plugin gives is not known here.
    pub(crate) fn used(&self, uses: &mut Uses) {
        match self {
            Ipam::HostLocal(host_local) => host_local.used(uses),
            Ipam::Static(fixed) => fixed.used(uses),
            Ipam::External(_) => {}
        }
    }

    /// Whether it can give what a request asks for, by the configuration alone; what a plugin can is not known here.
    ///
    /// # Errors
    /// What ADD would say.
    pub fn serves(&self, conf: &NetConf, args: &CniArgs) -> Result<(), CniError> {
        match self {
            Ipam::HostLocal(host_local) => host_local.serves(args),
            Ipam::Static(fixed) => fixed.serves(conf, args),
            Ipam::External(_) => Ok(()),
        }
    }

    /// The attachment's addresses, with routes and name resolution.
    ///
    /// # Errors
    /// They cannot be had; nothing is reserved then.
    pub fn add(&self, at: &Attachment<'_>) -> Result<CniResult, CniError> {
        match self {
            Ipam::HostLocal(host_local) => host_local.add(at),
            Ipam::Static(fixed) => fixed.add(at),
            Ipam::External(external) => external.add(at),
        }
    }

    /// Whether the attachment still has its addresses, and the result of ADD, which CHECK gets as `prevResult`, names them.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        match self {
            Ipam::HostLocal(host_local) => host_local.check(at),
            Ipam::Static(fixed) => fixed.check(at),
            Ipam::External(external) => external.check(at),
        }
    }

    /// Gives the attachment's addresses back. Nothing that is gone already is an error.
    ///
    /// # Errors
    /// What could not be released; repeating may help.
    pub fn release(&self, at: &Attachment<'_>) -> Result<(), CniError> {
        match self {
            Ipam::HostLocal(host_local) => host_local.release(at),
            Ipam::Static(_) => Ok(()),
            Ipam::External(external) => external.release(at),
        }
    }

    /// Whether ADD could get addresses now.
    ///
    /// # Errors
    /// Code 50 with the reason, or the plugin's own error.
    pub fn status(&self, cx: &Context<'_>) -> Result<(), CniError> {
        match self {
            Ipam::HostLocal(host_local) => host_local.status(cx),
            Ipam::Static(_) => Ok(()),
            Ipam::External(external) => external.status(cx),
        }
    }

    /// Frees what belongs to none of the valid attachments and is known to be ours.
    ///
    /// # Errors
    /// What could not be freed.
    pub fn gc(&self, cx: &Context<'_>, valid: &[ValidAttachment]) -> Result<(), CniError> {
        match self {
            Ipam::HostLocal(host_local) => host_local.gc(cx, valid),
            Ipam::Static(_) => Ok(()),
            Ipam::External(external) => external.gc(cx, valid),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::testing::{conf, with};
    use super::*;

    #[test]
    fn the_type_decides() {
        let kind = |conf: &NetConf| match Ipam::parse(conf).unwrap() {
            None => "none".to_string(),
            Some(Ipam::HostLocal(_)) => "ours: host-local".to_string(),
            Some(Ipam::Static(_)) => "ours: static".to_string(),
            Some(Ipam::External(external)) => external.plugin().to_string(),
        };
        for (ipam, expected) in [
            (json!({}), "none"),
            (json!(null), "none"),
            (json!({"type": ""}), "none"),
            (json!({"subnet": "10.0.0.0/8"}), "none"),
            (json!({"type": "host-local", "subnet": "10.0.0.0/8"}), "ours: host-local"),
            (json!({"Type": "static"}), "ours: static"),
            (json!({"type": "whereabouts", "range": "10.0.0.0/8"}), "whereabouts"),
            (json!({"type": "Static"}), "Static"),
        ] {
            assert_eq!(kind(&conf(ipam.clone())), expected, "{ipam}");
        }
        assert_eq!(kind(&with(json!({}))), "none");
    }

    #[test]
    fn a_wrong_type_is_an_error_before_anything_is_touched() {
        for (ipam, expected) in [
            (json!([]), "ipam: must be an object"),
            (json!("host-local"), "ipam: must be an object"),
            (json!({"type": 4}), "ipam.type: must be a string"),
            (json!({"type": "../host-local"}), "ipam.type: must be a plugin's name, without a path"),
            (json!({"type": ".."}), "ipam.type: must be a plugin's name, without a path"),
            (json!({"type": "host-local"}), "ipam.ranges: must name at least one range"),
        ] {
            let error = Ipam::parse(&conf(ipam.clone())).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{ipam}: {error}");
        }
    }
}

#[cfg(test)]
mod testing {
    //! What the tests of all IPAM types need: a configuration, a pod that asks for addresses, and a folder for both's files.

    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use serde_json::Value;

    use crate::cni::{CniArgs, CniResult, ContainerId, InterfaceName, NetConf, NetworkName};
    use crate::delegate::{Attachment, Context};
    use crate::netns::Namespace;

    /// A request of container `c1`, interface `eth0`, network `net1`, which a test may change.
    pub struct Asking {
        pub place: tempfile::TempDir,
        pub conf: NetConf,
        pub container_id: String,
        pub interface: String,
        pub args: String,
        pub path: Vec<PathBuf>,
        pub prev_result: Option<CniResult>,
    }

    /// A network of type `none` at CNI 1.1.0 with this `ipam`.
    pub fn conf(ipam: Value) -> NetConf {
        with(serde_json::json!({ "ipam": ipam }))
    }

    /// The same with any further keys.
    pub fn with(keys: Value) -> NetConf {
        let mut conf = NetConf::default();
        for (key, value) in [("cniVersion", "1.1.0"), ("name", "net1"), ("type", "none")] {
            conf.insert(key, value);
        }
        for (key, value) in keys.as_object().unwrap() {
            conf.insert(key, value.clone());
        }
        conf
    }

    impl Asking {
        /// `DIR` in the configuration stands for the folder of this test.
        pub fn new(conf: &NetConf) -> Asking {
            let place = tempfile::tempdir().unwrap();
            let text = String::from_utf8(conf.to_bytes()).unwrap();
            let text = text.replace("DIR", place.path().to_str().unwrap());
            Asking {
                conf: NetConf::parse(text.as_bytes()).unwrap(),
                place,
                container_id: "c1".to_string(),
                interface: "eth0".to_string(),
                args: String::new(),
                path: Vec::new(),
                prev_result: None,
            }
        }

        pub fn folder(&self) -> PathBuf {
            self.place.path().join("net1")
        }

        pub fn state_dir(&self) -> PathBuf {
            self.place.path().join("state")
        }

        pub fn ask<T>(&self, question: impl FnOnce(&Attachment<'_>) -> T) -> T {
            let host = Namespace::current().unwrap();
            let context = Context {
                network: &NetworkName::parse("net1").unwrap(),
                conf: &self.conf,
                version: self.conf.version().unwrap(),
                path: &self.path,
                state_dir: &self.state_dir(),
                mark: None,
                deadline: Instant::now() + Duration::from_secs(20),
                host: &host,
                programs: crate::external::Surroundings::default(),
                agent_removes_shared: false,
            };
            question(&Attachment {
                context,
                container_id: &ContainerId::parse(&self.container_id).unwrap(),
                interface: &InterfaceName::parse(&self.interface).unwrap(),
                args: &CniArgs::parse(&self.args).unwrap(),
                netns: Some(Path::new("/run/netns/c1")),
                pod: None,
                group: None,
                prev_result: self.prev_result.as_ref(),
            })
        }
    }
}

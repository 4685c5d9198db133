//! One bundled type as an ordinary CNI plugin, with nothing around it: no record, no group, links deleted by index. It is
//! what a runtime or another meta-plugin calls when it finds this program under the name of a reference plugin.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cni::{CniError, CniResult, Command, ConfigError, NetConf, NetworkName, Request, code};
use crate::delegate::{Attachment, Context, Delegate};
use crate::interface;
use crate::ipam::Ipam;
use crate::netns::Namespace;
use crate::registry::{known_args, parse, parse_for_del};

/// How long one call may take.
const LIMIT: Duration = Duration::from_secs(90);

/// Answers a request as the plugin `plugin_type`. `state_dir` holds the locks of what pods share.
///
/// # Errors
/// Code 4 for arguments that the type does not know, 7 for a wrong configuration, 8 without the pod's namespace, and whatever
/// the delegate has to say.
pub fn run(plugin_type: &str, request: &Request, state_dir: &Path) -> Result<Option<Value>, CniError> {
    let host = Namespace::current()?;
    let network = request.conf.name()?;
    let call = Call { plugin_type, request, state_dir, host: &host, network: &network };
    let conf = &request.conf;
    if matches!(request.command, Command::Add | Command::Check) {
        call.refuse_unknown_arguments()?;
    }
    if matches!(plugin_type, "host-local" | "static") {
        return call.address();
    }
    match request.command {
        Command::Add => call.add(&*call.parse(conf)?),
        Command::Check => call.check(&*call.parse(conf)?),
        Command::Del => call.del(),
        Command::Status => call.parse(conf)?.status(&call.context(conf)).map(|()| None),
        Command::Gc => match conf.valid_attachments()? {
            Some(valid) => call.parse(conf)?.gc(&call.context(conf), &valid).map(|()| None),
            None => Ok(None),
        },
        Command::Version => Ok(None),
    }
}

/// One call of the plugin.
struct Call<'a> {
    plugin_type: &'a str,
    request: &'a Request,
    state_dir: &'a Path,
    host: &'a Namespace,
    network: &'a NetworkName,
}

impl Call<'_> {
    fn add(&self, delegate: &dyn Delegate) -> Result<Option<Value>, CniError> {
        let pod = self.pod()?;
        let previous = self.request.conf.prev_result()?;
        let at = self.attachment(&self.request.conf, pod.as_ref(), previous.as_ref())?;
        at.pod()?;
        let added = delegate.add(&at)?;
        // An old version cannot say a result without addresses; then nobody would know of the interface.
        match added.result.to_json(self.request.version) {
            Ok(result) => Ok(Some(result)),
            Err(error) => Err(interface::undone(error, take_away(delegate, &at))),
        }
    }

    fn check(&self, delegate: &dyn Delegate) -> Result<Option<Value>, CniError> {
        let pod = self.pod()?;
        let result = self.result_of_add()?;
        let at = self.attachment(&self.request.conf, pod.as_ref(), Some(&result))?;
        delegate.check(&at, &result).map(|()| None)
    }

    fn del(&self) -> Result<Option<Value>, CniError> {
        let Some(delegate) = parse_for_del(self.plugin_type, &self.request.conf) else {
            return Err(self.not_bundled());
        };
        warn(&*delegate);
        let pod = self.pod()?;
        let previous = self.request.conf.prev_result().ok().flatten();
        let at = self.attachment(&self.request.conf, pod.as_ref(), previous.as_ref())?;
        take_away(&*delegate, &at).map(|()| None)
    }

    /// The call of an IPAM type: addresses alone, no interface, no namespace.
    fn address(&self) -> Result<Option<Value>, CniError> {
        let mut conf = self.request.conf.clone();
        let missing = || ConfigError::new("ipam", "is missing; must be an object");
        let mut ipam = NetConf(conf.get("ipam").and_then(Value::as_object).ok_or_else(missing)?.clone());
        // The caller chose the type by calling this plugin.
        ipam.insert("type", self.plugin_type);
        conf.insert("ipam", ipam.0);
        let context = self.context(&conf);
        let parsed = || Ipam::parse(&conf).and_then(|ipam| ipam.ok_or_else(missing)).inspect(warn_of_ipam);
        match self.request.command {
            Command::Add => {
                let at = self.attachment(&conf, None, None)?;
                let ipam = parsed()?;
                match ipam.add(&at)?.to_json(self.request.version) {
                    Ok(result) => Ok(Some(result)),
                    Err(error) => Err(interface::undone(error, ipam.release(&at))),
                }
            }
            Command::Check => {
                let result = self.result_of_add()?;
                parsed()?.check(&self.attachment(&conf, None, Some(&result))?).map(|()| None)
            }
            Command::Del => {
                let ipam = Ipam::parse_for_release(&conf)?;
                interface::ipam_release(ipam.as_ref(), &self.attachment(&conf, None, None)?).map(|()| None)
            }
            Command::Status => parsed()?.status(&context).map(|()| None),
            Command::Gc => match conf.valid_attachments()? {
                Some(valid) => parsed()?.gc(&context, &valid).map(|()| None),
                None => Ok(None),
            },
            Command::Version => Ok(None),
        }
    }

    fn parse(&self, conf: &NetConf) -> Result<Box<dyn Delegate>, CniError> {
        let delegate = parse(self.plugin_type, conf).ok_or_else(|| self.not_bundled())??;
        warn(&*delegate);
        Ok(delegate)
    }

    fn not_bundled(&self) -> CniError {
        CniError::new(code::CONFIG, format!("type: \"{}\" is not bundled", self.plugin_type.escape_debug()))
    }

    /// As the reference plugins do: a type that reads arguments refuses those it does not know, one that reads none does not
    /// look. What its IPAM reads is known as well.
    fn refuse_unknown_arguments(&self) -> Result<(), CniError> {
        let ipam = self.request.conf.view().object("ipam")?.map(|ipam| ipam.text("type")).transpose()?.flatten();
        let beside = ipam.filter(|ipam| *ipam != self.plugin_type);
        let known = [known_args(self.plugin_type), beside.map_or(&[], known_args)].concat();
        if known.is_empty() { Ok(()) } else { self.request.args.reject_unknown(&known) }
    }

    fn result_of_add(&self) -> Result<CniResult, CniError> {
        let result = self.request.conf.prev_result()?;
        result.ok_or_else(|| ConfigError::new("prevResult", "is missing; CHECK compares with the result of ADD").into())
    }

    fn pod(&self) -> Result<Option<Namespace>, CniError> {
        match &self.request.netns {
            Some(path) => Namespace::open(path),
            None => Ok(None),
        }
    }

    fn context<'a>(&'a self, conf: &'a NetConf) -> Context<'a> {
        Context {
            network: self.network,
            conf,
            version: self.request.version,
            path: &self.request.path,
            state_dir: self.state_dir,
            mark: None,
            deadline: Instant::now() + LIMIT,
            host: self.host,
            programs: crate::external::Surroundings::default(),
            agent_removes_shared: false,
        }
    }

    fn attachment<'a>(
        &'a self,
        conf: &'a NetConf,
        pod: Option<&'a Namespace>,
        prev_result: Option<&'a CniResult>,
    ) -> Result<Attachment<'a>, CniError> {
        Ok(Attachment {
            context: self.context(conf),
            container_id: self.request.container_id()?,
            interface: self.request.interface()?,
            args: &self.request.args,
            netns: self.request.netns.as_deref(),
            pod,
            group: None,
            prev_result,
        })
    }
}

/// DEL: detach, delete by index, and give the addresses back once no link can use them.
pub fn take_away(delegate: &dyn Delegate, at: &Attachment<'_>) -> Result<(), CniError> {
    let links = delegate.detach(at)?;
    interface::delete_links(at, links.iter())?;
    delegate.release(at)
}

fn warn(delegate: &dyn Delegate) {
    delegate.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
}

fn warn_of_ipam(ipam: &Ipam) {
    ipam.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
}

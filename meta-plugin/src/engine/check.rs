//! CHECK of every network of an attachment, and STATUS of the default network.

use musubi_delegates::cni::{CniArgs, CniError, CniResult, Command, ContainerId, NetConf, NetworkName, Version, code};
use musubi_delegates::external;
use musubi_delegates::netns::Namespace;
use musubi_delegates::registry::{self, Runs};

use super::teardown::sent_on_delete;
use super::{Operation, Target, delegate_failed, not_ready};
use crate::devices::Devices;
use crate::networks;
use crate::plan;
use crate::record::{Attached, Key, Record, RecordedDelegate, State};
use crate::records::Stored;

impl Operation<'_> {
    pub(super) fn check(&self) -> Result<(), CniError> {
        let container = self.request.container_id()?;
        let key = Key::new(container, self.request.interface()?, &self.own_network()?);
        let lock = self.take_lock(container)?;
        let record = match self.records.read(&key)? {
            Some(Stored::Whole(record)) if record.state == State::Attached => record,
            Some(Stored::Whole(_)) => {
                return Err(CniError::new(
                    code::DELEGATE,
                    format!("container {container} is not attached: its ADD did not end"),
                ));
            }
            Some(Stored::Damaged { problem, .. }) => {
                return Err(CniError::new(
                    code::IO,
                    format!("the record of container {container} is damaged: {problem}"),
                ));
            }
            None => {
                lock.remove();
                return Err(CniError::new(
                    code::UNKNOWN_CONTAINER,
                    format!("container {container} has no attachment of network {}", key.network),
                ));
            }
        };
        let pod = self.namespace_of(&record).ok_or_else(|| {
            CniError::new(
                code::NAMESPACE,
                format!("network namespace {} is not the one that was attached", record.netns.display()),
            )
        })?;
        for attached in &record.attachments {
            if attached.disable_check || attached.version() < Version::V0_4_0 {
                continue;
            }
            for delegate in &attached.delegates {
                self.check_delegate(&record, attached, delegate, &pod)
                    .map_err(|e| delegate_failed(&attached.network, &attached.interface, &delegate.plugin_type, e))?;
            }
        }
        Ok(())
    }

    fn check_delegate(
        &self,
        record: &Record,
        attached: &Attached,
        delegate: &RecordedDelegate,
        pod: &Namespace,
    ) -> Result<(), CniError> {
        let recorded =
            attached.result().ok_or_else(|| CniError::new(code::DELEGATE, "the record holds no result of ADD"))?;
        let result = self.changed_by_later_plugins(attached, &recorded)?.unwrap_or(recorded);
        let conf = sent_on_delete(delegate, attached.version(), Some(&result))?;
        let target = Target {
            container_id: &ContainerId::parse(&record.container_id)?,
            network: &NetworkName::parse(&attached.cni_name)?,
            version: attached.version(),
            interface: &attached.interface_name()?,
            args: &CniArgs::parse_lossy(&attached.args),
            netns: Some(&record.netns),
            pod: Some(pod),
            group: record.group,
        };
        if delegate.native {
            let native = registry::parse(&delegate.plugin_type, &conf)
                .ok_or_else(|| CniError::new(code::CONFIG, "the type is not bundled any more"))??;
            native.check(&self.hands().attachment(&target, &conf, Some(&result)), &result)
        } else {
            let plugin = external::find(&delegate.plugin_type, &self.path)?;
            self.hands().exec(Command::Check, &plugin, &target, &conf.to_bytes(), None, None).map(drop)
        }
    }

    /// The default network as plugins left it that the runtime ran after us, which is what CHECK's `prevResult` is for: one
    /// of them may have set another MAC. Where it says nothing else than we did, the record does, as it is not cut down
    /// to the runtime's version.
    fn changed_by_later_plugins(
        &self,
        attached: &Attached,
        recorded: &CniResult,
    ) -> Result<Option<CniResult>, CniError> {
        if !attached.default {
            return Ok(None);
        }
        let version = self.config.version;
        let Some(given) = self.request.conf.prev_result()? else { return Ok(None) };
        let is_of_the_pod = given.interfaces.iter().any(|i| !i.sandbox.is_empty() && i.name == attached.interface);
        let is_ours = given == CniResult::parse(&recorded.to_json(version)?, version)?;
        Ok((is_of_the_pod && !is_ours).then_some(given))
    }

    /// Whether the next ADD can work: the state folder, the readiness file, and every plugin of the default network.
    pub(super) fn status(&self) -> Result<(), CniError> {
        let unavailable = |e: CniError| {
            let code = if matches!(e.code, code::NOT_AVAILABLE | code::LIMITED) { e.code } else { code::NOT_AVAILABLE };
            CniError { code, ..e }
        };
        if let Some(file) = self.config.readiness_file.as_deref().filter(|file| !file.exists()) {
            return Err(not_ready(file, code::NOT_AVAILABLE));
        }
        std::fs::create_dir_all(&self.config.cni_dir).map_err(|e| {
            CniError::new(code::NOT_AVAILABLE, format!("state folder {}: {e}", self.config.cni_dir.display()))
        })?;
        let wanted = networks::default_only(&self.config, self.store.as_ref()).map_err(unavailable)?;
        let interface = musubi_delegates::cni::InterfaceName::parse("eth0")?;
        let plan = plan::plan(&self.config, wanted, &interface, Devices::unasked()).map_err(unavailable)?;
        for planned in &plan.attachments {
            let Some(network) = &planned.list.name else { continue };
            for delegate in &planned.delegates {
                self.delegate_status(
                    network,
                    planned.list.version,
                    &delegate.plugin_type,
                    &delegate.runs,
                    &delegate.conf,
                )
                .map_err(|e| {
                    unavailable(e).context(format!("network {}, plugin {}", planned.network, delegate.plugin_type))
                })?;
            }
        }
        Ok(())
    }

    fn delegate_status(
        &self,
        network: &NetworkName,
        version: Version,
        plugin_type: &str,
        runs: &Runs,
        conf: &NetConf,
    ) -> Result<(), CniError> {
        match runs {
            Runs::Native(native) => native.status(&self.hands().context(network, version, conf)),
            Runs::External { .. } => {
                let plugin = external::find(plugin_type, &self.path)?;
                if version < Version::V1_1_0 {
                    return Ok(());
                }
                self.hands().exec_network(Command::Status, &plugin, &conf.to_bytes()).map(drop)
            }
        }
    }
}

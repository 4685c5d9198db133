//! Plugging a network into a pod that runs, and pulling it out again (`/delegate` of Multus' protocol). It is added to the
//! pod's own record, so that the pod's DEL covers it.

use std::time::Instant;

use musubi_crds::{NetworkSelection, parse_networks};
use musubi_delegates::cni::{CniError, Command, ConfList, InterfaceName, NetConf, code};
use musubi_delegates::netns::Namespace;
use serde_json::{Value, json};

use super::add::{Adding, UNDO_TIME, interfaces_are_free, undo_incomplete};
use super::caller::Step;
use super::teardown::Teardown;
use super::{Hands, Operation, Work, joined, with_operation};
use crate::agent::protocol::InterfaceAttributes;
use crate::check::definition;
use crate::config::Config;
use crate::lock::ContainerLock;
use crate::networks::{self, Network, Wanted};
use crate::plan::{self, Planned};
use crate::record::{Attached, Record, Running, State};
use crate::records::Stored;

/// Our own configuration beside a request that holds a delegate's.
///
/// # Errors
/// It is wrong.
pub fn config(own: &NetConf) -> Result<Config, CniError> {
    Config::parse(own)
}

/// Carries out a request whose configuration is a delegate's.
///
/// # Errors
/// What failed; a failed ADD has undone itself by then.
pub fn carry_out(work: Work<'_>, attributes: &InterfaceAttributes) -> Result<Option<Value>, CniError> {
    with_operation(work, |operation| match operation.request.command {
        Command::Add => operation.plug(attributes).map(Some),
        Command::Del => operation.pull().map(|()| None),
        Command::Status | Command::Version => Ok(None),
        Command::Check | Command::Gc => Err(CniError::new(
            code::ENVIRONMENT,
            format!("{} of a hot-plugged network is not served; CHECK of the pod covers it", operation.request.command),
        )),
    })
}

impl Operation<'_> {
    fn plug(&self, attributes: &InterfaceAttributes) -> Result<Value, CniError> {
        self.caller.cancel.check()?;
        let container = self.request.container_id()?;
        let lock = self.take_lock(container)?;
        let mut record = self.record_of_pod()?.ok_or_else(|| {
            CniError::new(code::UNKNOWN_CONTAINER, format!("container {container} has no networks of ours"))
                .with_details("a network can be plugged into a pod whose own networks are attached")
        })?;
        let planned = self.plan_plug(&record, self.request.interface()?, attributes)?;
        let sandbox = self.namespace_of(&record).ok_or_else(|| {
            CniError::new(
                code::NAMESPACE,
                format!("network namespace {} is not the pod's any more", record.netns.display()),
            )
        })?;
        interfaces_are_free(std::slice::from_ref(&planned), &sandbox)?;
        let binaries = self.find_binaries(std::slice::from_ref(&planned))?;
        let position = record.attachments.len();
        record.attachments.push(self.new_attached(&planned));
        record.worker = Running::this();
        // An agent that dies from here on has begun it as far as DEL is concerned.
        begin(&mut record.attachments[position]);
        self.records.write(&record, !binaries.is_empty())?;
        let mut adding = Adding { operation: self, container, sandbox: &sandbox, lock: &lock, binaries };
        let started = Instant::now();
        let added = adding.network(&planned, position, &mut record);
        self.caller.note(Step::of(&record.attachments[position], started.elapsed(), added.as_ref().err()));
        let outcome = added.and_then(|result| {
            record.attachments[position].set_result(&result)?;
            self.caller.cancel.check()?;
            let answer = result.to_json(self.request.version)?;
            self.records.write(&record, false)?;
            Ok(answer)
        });
        outcome.map_err(|error| {
            let errors = self.take_out(&mut record, position, Some(&sandbox), &lock, self.undo_deadline());
            if errors.is_empty() { error } else { undo_incomplete(&error, &joined(&errors)) }
        })
    }

    fn pull(&self) -> Result<(), CniError> {
        let container = self.request.container_id()?;
        let lock = self.take_lock(container)?;
        let Some(mut record) = self.record_of_pod()? else {
            lock.remove();
            return Ok(());
        };
        let interface = self.request.interface()?;
        let is_it = |attached: &Attached| !attached.default && attached.interface == interface.as_str();
        let Some(position) = record.attachments.iter().position(is_it) else { return Ok(()) };
        let (sandbox, started, attached) =
            (self.namespace_of(&record), Instant::now(), record.attachments[position].clone());
        let errors = self.take_out(&mut record, position, sandbox.as_ref(), &lock, self.deadline);
        self.caller.note(Step::of(&attached, started.elapsed(), errors.first()));
        if errors.is_empty() { Ok(()) } else { Err(joined(&errors)) }
    }

    /// The record of the pod's own networks, if they are attached.
    fn record_of_pod(&self) -> Result<Option<Record>, CniError> {
        let container = self.request.container_id()?;
        let attached = |stored| match stored {
            Stored::Whole(record) if record.state == State::Attached && record.network == self.config.name => {
                Some(*record)
            }
            _ => None,
        };
        Ok(self.records.of_container(container.as_str())?.into_iter().find_map(attached))
    }

    fn plan_plug(
        &self,
        record: &Record,
        interface: &InterfaceName,
        attributes: &InterfaceAttributes,
    ) -> Result<Planned, CniError> {
        let text = self.request.conf.to_bytes();
        let name = self.request.conf.name()?.to_string();
        let list = definition::parse(&String::from_utf8_lossy(&text), &name)?;
        // In the words of the annotation, so that one parser says what is allowed.
        let mut element = json!({"name": "hot-plugged", "interface": interface.as_str()});
        if !attributes.ips.is_empty() {
            element["ips"] = json!(attributes.ips);
        }
        if !attributes.mac.is_empty() {
            element["mac"] = json!(attributes.mac);
        }
        if let Some(arguments) = &attributes.cni_args {
            element["cni-args"] = Value::Object(arguments.clone());
        }
        let selections = parse_networks(&json!([element]).to_string(), "default")
            .map_err(|e| CniError::new(code::CONFIG, format!("interfaceAttributes: {e}")))?;
        let selection = selections.into_iter().next();
        self.is_granted(record, &list, selection.as_ref()).map_err(|e| definition::in_network(&name, e))?;
        // A configuration names no resource, so the kubelet has nothing to say of it.
        let network = Network { name, list, resource_name: None };
        let wanted = Wanted { network, selection };
        let devices = self.devices(None, std::slice::from_ref(&wanted))?;
        let (planned, warnings) = plan::hot_plugged(&self.config, wanted, devices)?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        Ok(planned)
    }

    /// Whether policies grant the pod's namespace what is to be plugged in. Where it was defined nobody says, so it counts as
    /// defined in the pod's namespace.
    fn is_granted(
        &self,
        record: &Record,
        list: &ConfList,
        selection: Option<&NetworkSelection>,
    ) -> Result<(), CniError> {
        let Some(pod) = &record.pod else { return Ok(()) };
        let policies = self.store.policies()?;
        let Some(fence) = networks::fence(&policies, self.store.as_ref(), &pod.namespace)? else { return Ok(()) };
        selection.map_or(Ok(()), |selection| fence.requests(selection, list))?;
        Ok(fence.definition(list)?)
    }

    /// Takes one network of a pod back and out of its record.
    fn take_out(
        &self,
        record: &mut Record,
        position: usize,
        sandbox: Option<&Namespace>,
        lock: &ContainerLock,
        deadline: Instant,
    ) -> Vec<CniError> {
        let alone = Record { attachments: vec![record.attachments[position].clone()], ..record.clone() };
        let path = self.path_for(&alone);
        let hands = Hands { deadline, path: &path, ..self.hands() };
        let teardown = Teardown { hands, lock: Some(lock), record: &alone, pod: sandbox, records: None, whole: false };
        let mut errors = teardown.run();
        if errors.is_empty() {
            record.attachments.remove(position);
        }
        errors.extend(self.records.write(record, false).err());
        errors
    }

    fn undo_deadline(&self) -> Instant {
        Instant::now() + self.config.timeout.min(UNDO_TIME)
    }
}

fn begin(attached: &mut Attached) {
    attached.begun = true;
    for delegate in &mut attached.delegates {
        delegate.begun = true;
    }
}

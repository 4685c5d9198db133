//! Checks of a pod before it is started: its annotations through the lookup and the plan that ADD uses, and besides what only
//! somebody who knows the cluster can say: whether an address is another pod's, whether devices were asked for.

use std::collections::BTreeMap;

use musubi_crds::{DEFAULT_NETWORK_ANNOTATION, NETWORKS_ANNOTATION, NetworkSelection};
use musubi_delegates::cni::{CniArgs, CniError, ConfigError, InterfaceName, code};
use musubi_delegates::ipam::Ipam;

use super::{Finding, Severity, World, annotation, definition};
use crate::devices::{Devices, Pool};
use crate::networks::{self, Place, Wanted};
use crate::plan::{self, Planned};
use crate::store::{KnownPod, Store};

/// What is to be said of a pod that is new, or whose annotations have changed.
#[must_use]
pub fn admitted(world: &World, known: &KnownPod) -> Vec<Finding> {
    let pod = &known.pod;
    let selects = pod.selects_networks() || pod.annotations.contains_key(DEFAULT_NETWORK_ANNOTATION);
    if !selects {
        return Vec::new();
    }
    if pod.host_network {
        return vec![host_network(world, known)];
    }
    match plan(world, known) {
        Ok(findings) => findings,
        Err(error) => vec![refused(&error)],
    }
}

/// A pod of the host's network is never attached: its runtime calls no plugin.
fn host_network(world: &World, known: &KnownPod) -> Finding {
    let severity = if world.settings.host_network_is_error { Severity::Error } else { Severity::Warning };
    let message = format!("pod {}: it uses the host's network, so its networks are ignored", known.pod.key());
    Finding::new(
        severity,
        &annotation(NETWORKS_ANNOTATION),
        "",
        message,
        "remove hostNetwork or the annotation".to_owned(),
    )
}

fn refused(error: &CniError) -> Finding {
    let is_default = error.msg.starts_with(&format!("annotation {DEFAULT_NETWORK_ANNOTATION}"));
    let name = if is_default { DEFAULT_NETWORK_ANNOTATION } else { NETWORKS_ANNOTATION };
    Finding::error(&annotation(name), "", error.clone())
}

fn plan(world: &World, known: &KnownPod) -> Result<Vec<Finding>, CniError> {
    let config = &world.config;
    let place = Place::Elsewhere { missing_may_come: world.settings.missing_definitions_may_come };
    let wanted = networks::look_up_from(place, config, Some(&known.pod), world)?;
    let mut findings = missing(world, &wanted);
    findings.extend(devices(known, &wanted));
    let selections: Vec<Option<NetworkSelection>> = wanted.iter().map(|wanted| wanted.selection.clone()).collect();
    let plan = plan::plan(config, wanted, &InterfaceName::parse("eth0")?, Devices::of(requested(known)))?;
    let warnings = plan.warnings.into_iter().skip(config.warnings.len());
    findings.extend(warnings.map(|text| Finding::warning(&annotation(NETWORKS_ANNOTATION), "", text)));
    for (planned, selection) in plan.attachments.iter().zip(&selections) {
        if let Some(selection) = selection {
            addresses(world, known, planned, selection).map_err(|e| definition::in_network(&planned.network, e))?;
        }
    }
    Ok(findings)
}

/// Definitions that may yet come.
fn missing(world: &World, wanted: &[Wanted]) -> Vec<Finding> {
    let named = wanted.iter().filter_map(|wanted| wanted.selection.as_ref());
    let unknown = named.filter(|selection| matches!(world.network(&selection.namespace, &selection.name), Ok(None)));
    let finding = |selection: &NetworkSelection| {
        let error = definition::missing(&format!("{}/{}", selection.namespace, selection.name), "");
        Finding::new(Severity::Warning, &annotation(NETWORKS_ANNOTATION), "", error.msg, error.details)
    };
    unknown.map(finding).collect()
}

/// The devices that its containers ask for, as if the kubelet had allocated them.
fn requested(known: &KnownPod) -> Pool {
    let devices = known.resources.iter().flat_map(|(resource, number)| {
        // No pod has more networks than its annotation has room for.
        (0..(*number).min(1024)).map(move |n| (resource.clone(), format!("{n:04}")))
    });
    Pool::new(devices, [])
}

/// A network that names a resource gets a device where the pod's containers request one. Whether the resource has devices,
/// or is only a number that says where a network is, the node knows; so this is a warning.
fn devices(known: &KnownPod, wanted: &[Wanted]) -> Vec<Finding> {
    let mut needed: BTreeMap<&str, u64> = BTreeMap::new();
    for resource in wanted.iter().filter_map(|wanted| wanted.network.resource_name.as_deref()) {
        *needed.entry(resource).or_default() += 1;
    }
    let short = needed.into_iter().filter_map(|(resource, needed)| {
        let requested = known.resources.get(resource).copied().unwrap_or_default();
        let message = format!(
            "the pod's networks need {needed} of resource \"{}\", and its containers request {requested}",
            resource.escape_debug()
        );
        (requested < needed).then(|| {
            Finding::warning("spec.containers", "", message)
                .advise("request as many as the pod has networks that name it")
        })
    });
    short.collect()
}

/// Requested addresses have to be the network's to give, and nobody else's.
fn addresses(world: &World, known: &KnownPod, planned: &Planned, selection: &NetworkSelection) -> Result<(), CniError> {
    let mut args = CniArgs::default();
    for (key, value) in &planned.args {
        args.set(key, value.clone());
    }
    for delegate in &planned.delegates {
        if let Some(ipam) = Ipam::parse(&delegate.conf)? {
            ipam.serves(&delegate.conf, &args)?;
        }
    }
    let taken = |ip: &musubi_crds::RequestedIp| {
        world.holder(&planned.network, ip.address(), &known.pod.key()).map(|holder| (ip.address(), holder.to_owned()))
    };
    match selection.ips.iter().find_map(taken) {
        Some((address, holder)) => {
            let problem = format!("{address} is in use by pod {holder}");
            Err(CniError { code: code::CONFIG, ..ConfigError::new("ips", problem).into() }
                .with_details("ask for another address, or remove the pod that has it"))
        }
        None => Ok(()),
    }
}

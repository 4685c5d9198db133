//! Checks of a definition: that its configuration is one that ADD can use, in the words of ADD; what of it is odd; what it
//! shares with others; and what a change of it does to the pods that use it.

mod change;

use std::net::IpAddr;

use ipnet::IpNet;
use musubi_crds::RESOURCE_NAME_ANNOTATION;
use musubi_crds::name::{is_dns_label, is_dns_subdomain};
use musubi_delegates::cni::{CniError, ConfList, NetConf, NetworkName, code};
use musubi_delegates::uses::Uses;

use self::change::{in_use, stranding};
use super::overlap::used_by;
use super::policy::Fence;
use super::{Finding, Severity, World, annotation};
use crate::config::refuse_ourselves;
use crate::devices::Devices;
use crate::networks::{self, Network, Wanted};
use crate::plan;
use crate::store::{Definition, Store};

/// The field that holds the configuration.
const CONFIG: &str = "spec.config";
/// How many of the definitions that share something are named.
const NAMED: usize = 5;

/// What is to be said of a new definition.
#[must_use]
pub fn created(world: &World, definition: &Definition) -> Vec<Finding> {
    checked(world, definition).unwrap_or_else(|error| vec![Finding::error("metadata.namespace", "", error)])
}

fn checked(world: &World, definition: &Definition) -> Result<Vec<Finding>, CniError> {
    let policies = world.policies()?;
    let fence = networks::fence(&policies, world, &definition.namespace)?;
    let mut findings = names(definition);
    findings.extend(configuration(world, definition, fence.as_ref()));
    if !findings.iter().any(Finding::is_error) {
        findings.extend(oddities(definition));
        findings.extend(overlaps(world, definition, fence.as_ref()));
    }
    Ok(findings)
}

/// What is to be said of a change.
#[must_use]
pub fn updated(world: &World, old: &Definition, new: &Definition) -> Vec<Finding> {
    let mut findings = created(world, new);
    let same = (&old.config, &old.resource_name) == (&new.config, &new.resource_name);
    let Some(users) = in_use(world, &new.key()).filter(|_| !same) else { return findings };
    let forced = new.is_forced;
    let stranded = stranding(old, new);
    findings.extend(stranded.iter().map(|(key, what)| {
        let message = format!("network {}: {what} changes under {users}, which keep what they have", new.key());
        let severity = if forced { Severity::Warning } else { Severity::Error };
        Finding::new(severity, CONFIG, key, message, FORCE_ADVICE.to_owned())
    }));
    if stranded.is_empty() {
        let message =
            format!("network {}: {users} use it and keep what they have until they are created anew", new.key());
        findings.push(Finding::warning(CONFIG, "", message));
    }
    findings
}

/// What is to be said of a removal. Never an error: DEL needs no definition, and a refusal would be in the way of removing
/// its namespace.
#[must_use]
pub fn deleted(world: &World, definition: &Definition) -> Vec<Finding> {
    let users = in_use(world, &definition.key());
    let message = |users| {
        format!(
            "network {}: {users} use it and keep what they have; they cannot start anew without it",
            definition.key()
        )
    };
    users.map(|users| Finding::warning("metadata.name", "", message(users))).into_iter().collect()
}

const FORCE_ADVICE: &str =
    "make another definition, or set the annotation musubi.dev/force to \"true\" and create the pods anew";

fn names(definition: &Definition) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !is_dns_label(&definition.name) {
        findings.push(Finding::warning(
            "metadata.name",
            "",
            format!(
                "network {}: only the JSON form of the annotation can name it: its name is no DNS label",
                definition.key()
            ),
        ));
    }
    if let Some(resource) = definition.resource_name.as_ref().filter(|resource| !is_resource(resource)) {
        let message = format!(
            "network {}: \"{}\" is not the name of a resource (like example.com/nic)",
            definition.key(),
            resource.escape_debug()
        );
        let error = CniError::new(code::CONFIG, message);
        findings.push(Finding::error(&annotation(RESOURCE_NAME_ANNOTATION), "", error));
    }
    findings
}

/// An extended resource: a domain, `/` and a name (Kubernetes' `IsQualifiedName`).
fn is_resource(name: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_edge = |c: char| c.is_ascii_alphanumeric();
    name.split_once('/').is_some_and(|(domain, word)| {
        is_dns_subdomain(domain)
            && word.len() <= 63
            && word.chars().all(is_word)
            && word.starts_with(is_edge)
            && word.ends_with(is_edge)
    })
}

/// The configuration, as ADD would read it: every plugin's error, and when there is none what the plan of a pod that asks
/// for nothing says.
fn configuration(world: &World, definition: &Definition, fence: Option<&Fence<'_>>) -> Vec<Finding> {
    let full_name = definition.key();
    let here = |error: CniError| {
        let key = key_of(&error.msg).to_owned();
        Finding::error(CONFIG, &key, in_network(&full_name, error))
    };
    let Some(config) = &definition.config else {
        return match fence.map(Fence::node_file) {
            Some(Err(error)) => vec![here(error)],
            _ => vec![Finding::warning(
                CONFIG,
                "",
                format!(
                    "network {full_name}: without a configuration it is the one of that name on each node, which is not looked at here"
                ),
            )],
        };
    };
    let list = match parse(config, &definition.name) {
        Ok(list) => list,
        Err(error) => return vec![here(error)],
    };
    let wrong = plan::wrong_plugins(&world.config, &list);
    if !wrong.is_empty() {
        return wrong.into_iter().map(here).collect();
    }
    if let Some(Err(error)) = fence.map(|fence| fence.definition(&list)) {
        return vec![here(error.into())];
    }
    let network = Network { name: full_name, list, resource_name: definition.resource_name.clone() };
    let wanted = Wanted { network, selection: None };
    match plan::hot_plugged(&world.config, wanted, Devices::unasked()) {
        Ok((_, warnings)) => {
            warnings.into_iter().map(|text| Finding::warning(CONFIG, quoted_key(&text), text.clone())).collect()
        }
        // Which device an annotation names is for the pod to say.
        Err(error) => vec![Finding::new(Severity::Warning, CONFIG, "", error.msg, error.details)],
    }
}

/// What ADD takes and what yet is rarely meant: gateways and next hops outside of every subnet.
fn oddities(definition: &Definition) -> Vec<Finding> {
    used_by(definition).iter().flat_map(|used| unreachable(&definition.key(), used)).collect()
}

fn unreachable(network: &str, used: &Uses) -> Vec<Finding> {
    let subnets: Vec<IpNet> = used.addresses.iter().map(|(subnet, _)| *subnet).collect();
    let is_out = |address: &&IpAddr| !subnets.is_empty() && !subnets.iter().any(|subnet| subnet.contains(*address));
    let finding = |what: &str, address: &IpAddr| {
        Finding::warning(
            CONFIG,
            "ipam",
            format!("network {network}: the {what} {address} is in none of the network's subnets"),
        )
        .advise("correct it, unless it is reached directly all the same")
    };
    let gateways = used.gateways.iter().filter(is_out).map(|address| finding("gateway", address));
    gateways.chain(used.next_hops.iter().filter(is_out).map(|address| finding("next hop", address))).collect()
}

fn overlaps(world: &World, definition: &Definition, fence: Option<&Fence<'_>>) -> Vec<Finding> {
    let shared = world.sharing(definition);
    let forbidden = |with: &str| {
        let elsewhere = with.split_once('/').is_some_and(|(namespace, _)| namespace != definition.namespace);
        fence.filter(|fence| elsewhere && !fence.overlaps())
    };
    let mut findings: Vec<Finding> = shared
        .iter()
        .map(|shared| {
            let message = format!("network {}: {} is also network {}'s", definition.key(), shared.what, shared.with);
            match forbidden(&shared.with) {
                Some(fence) => {
                    let message = format!("{message}, and {} does not grant that", fence.name());
                    Finding::new(Severity::Error, CONFIG, "", message, "choose another".to_owned())
                }
                None => Finding::warning(CONFIG, "", message),
            }
        })
        .collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let others = findings.len().saturating_sub(NAMED);
    findings.truncate(NAMED);
    if others > 0 {
        let message = format!("network {}: it shares something with {others} other definitions, too", definition.key());
        findings.push(Finding::warning(CONFIG, "", message));
    }
    findings
}

/// The path that an error about a key begins with; empty where it begins otherwise.
pub(super) fn key_of(message: &str) -> &str {
    let (head, _) = message.split_once(": ").unwrap_or_default();
    let is_path = |c: char| c.is_alphanumeric() || matches!(c, '.' | '[' | ']' | '_' | '-' | '/');
    if head.chars().all(is_path) { head } else { "" }
}

/// The key that a warning quotes.
fn quoted_key(message: &str) -> &str {
    let quoted = message.split_once("key \"").and_then(|(_, rest)| rest.split_once('"')).map(|(key, _)| key);
    // IPAM's warnings begin with the path.
    quoted.unwrap_or_else(|| message.split(": ").find(|part| part.starts_with("ipam")).unwrap_or_default())
}

/// Reads a definition's `spec.config`. A configuration without a name takes the definition's (multi-net 3.4.2).
///
/// # Errors
/// Code 6 for JSON, 7 for what it says; the key is named.
pub fn parse(config: &str, definition_name: &str) -> Result<ConfList, CniError> {
    let mut list = ConfList::from_map(NetConf::parse(config.as_bytes())?.0)?;
    if list.name.is_none() {
        list.name = Some(NetworkName::parse(definition_name)?);
    }
    refuse_ourselves(&list)?;
    Ok(list)
}

/// Prefixes an error with the network it belongs to.
#[must_use]
pub fn in_network(network: &str, error: CniError) -> CniError {
    error.context(format!("network {network}"))
}

/// The error for a network that nobody defined.
#[must_use]
pub fn missing(network: &str, looked_in: &str) -> CniError {
    CniError::new(code::CONFIG, format!("network {network}: there is no such NetworkAttachmentDefinition{looked_in}"))
        .with_details("create the definition, or correct the name and namespace in the annotation")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_injected_where_there_is_none() {
        let rows = [
            (r#"{"type":"bridge"}"#, "net"),
            (r#"{"name":"","type":"bridge"}"#, "net"),
            (r#"{"name":null,"type":"bridge"}"#, "net"),
            (r#"{"name":"other","type":"bridge"}"#, "other"),
            (r#"{"plugins":[{"type":"bridge"}]}"#, "net"),
            (r#"{"Name":"Other.1","plugins":[{"type":"bridge"}]}"#, "Other.1"),
        ];
        for (config, name) in rows {
            let list = parse(config, "net").unwrap();
            assert_eq!(list.name.as_ref().map(NetworkName::as_str), Some(name), "{config}");
            let sent = list.request(0, None, &serde_json::Map::new()).unwrap();
            assert_eq!(sent.name().unwrap().as_str(), name, "{config}");
        }
    }
}

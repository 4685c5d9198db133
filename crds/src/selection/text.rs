//! The text form of the annotation: a comma list of `[namespace/]name[@interface]` (multi-net 4.1.1, with the interface
//! that every client has added to it).

use super::{NetworkSelection, SelectionError};
use crate::excerpt::quoted;
use crate::name::{InterfaceName, is_dns_label};

pub(super) fn parse(annotation: &str, default_namespace: &str) -> Result<Vec<NetworkSelection>, SelectionError> {
    if annotation.trim().is_empty() {
        return Ok(Vec::new());
    }
    (1..)
        .zip(annotation.split(','))
        .map(|(position, item)| element(item.trim(), default_namespace).map_err(|error| error.at(position)))
        .collect()
}

fn element(item: &str, default_namespace: &str) -> Result<NetworkSelection, SelectionError> {
    const FORM: &str = "[namespace/]name[@interface]";
    if item.is_empty() {
        return Err(SelectionError::whole(format!("it is empty; each element between the commas is {FORM}")));
    }
    if item.matches('/').count() > 1 || item.matches('@').count() > 1 {
        return Err(SelectionError::whole(format!("{} is not of the form {FORM}", quoted(item))));
    }
    let (network, interface) = match item.split_once('@') {
        Some((network, interface)) => (network, Some(interface.trim())),
        None => (item, None),
    };
    let (namespace, name) = match network.split_once('/') {
        Some((namespace, name)) => (Some(namespace.trim()), name.trim()),
        None => (None, network.trim()),
    };
    Ok(NetworkSelection {
        interface: interface.map(InterfaceName::parse).transpose().map_err(SelectionError::whole)?,
        ..NetworkSelection::new(
            namespace.map_or(Ok(default_namespace), |namespace| label(namespace, "namespace"))?,
            label(name, "network")?,
        )
    })
}

fn label<'a>(name: &'a str, what: &str) -> Result<&'a str, SelectionError> {
    if is_dns_label(name) {
        return Ok(name);
    }
    Err(SelectionError::whole(format!(
        "{} is not the name of a {what} (at most 63 lower-case letters, digits and inner \"-\")",
        quoted(name)
    )))
}

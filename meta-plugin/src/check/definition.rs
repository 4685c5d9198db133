//! Checks of one network configuration: that it is a CNI configuration or list, has a usable name and does not hold us.

use musubi_delegates::cni::{CniError, ConfList, NetConf, NetworkName, code};

use crate::config::refuse_ourselves;

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

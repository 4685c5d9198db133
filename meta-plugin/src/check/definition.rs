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

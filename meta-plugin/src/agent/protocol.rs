//! What travels between a CNI client and the agent: HTTP/1.1 on a Unix socket, with the bodies that Multus' clients speak.
//! Headers of ours tell our own client from those: it is told when its request is taken, and works itself until then.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use musubi_delegates::cni::{CniError, Version};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Header of our client: the version of this protocol that it speaks. A version that the other side does not know is no
/// reason to refuse: what is added is optional.
pub const PROTOCOL_HEADER: &str = "musubi-protocol";
/// The protocol's version.
pub const PROTOCOL: &str = "1";
/// Header of our client: the id of the request.
pub const REQUEST_HEADER: &str = "musubi-request";
/// Header of our client: device and inode of `CNI_NETNS` as it sees it.
pub const NETNS_HEADER: &str = "musubi-netns";
/// Header of our client: device and inode of the state folder as it sees it.
pub const STATE_HEADER: &str = "musubi-state";
/// Header of an answer to our client: the request is taken, the container's lock is held, and the body will come.
pub const TAKEN_HEADER: &str = "musubi-taken";

/// How long our client waits for its request to be taken.
pub const TAKE_TIME: Duration = Duration::from_millis(200);

/// A CNI request (`/cni`, `/delegate`).
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// Environment of the plugin.
    pub env: BTreeMap<String, String>,
    /// stdin of the plugin, in base64 as Go writes bytes.
    #[serde(with = "in_base64", default)]
    pub config: Vec<u8>,
    /// What is asked of a hot-plugged interface (`/delegate` alone).
    #[serde(rename = "interfaceAttributes", default, skip_serializing_if = "Option::is_none")]
    pub interface_attributes: Option<InterfaceAttributes>,
}

/// What is asked of a hot-plugged interface.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct InterfaceAttributes {
    /// Addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// MAC address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Merged into `args.cni` of each plugin.
    #[serde(rename = "cni-args", default, skip_serializing_if = "Option::is_none")]
    pub cni_args: Option<Map<String, Value>>,
}

/// The outcome of a request, for our client: the result in the version it asked for, or the error object.
pub fn to_body(outcome: &Result<Option<Value>, CniError>) -> Value {
    match outcome {
        Ok(result) => json!({"Result": result}),
        Err(error) => json!({"Error": error.to_json(Version::LATEST)}),
    }
}

/// The outcome in a body; `None` when it is none.
pub fn of_body(body: &[u8]) -> Option<Result<Option<Value>, CniError>> {
    let mut body: Map<String, Value> = serde_json::from_slice(body).ok()?;
    if let Some(error) = body.get("Error") {
        return CniError::from_json(error).map(Err);
    }
    Some(Ok(body.remove("Result")?)).map(|result| result.map(|value| (!value.is_null()).then_some(value)))
}

/// Which file is at a path, as both sides have to see it: `device:inode`.
pub fn identity(path: &Path) -> Option<String> {
    fs::metadata(path).ok().map(|file| format!("{}:{}", file.dev(), file.ino()))
}

mod in_base64 {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::{BASE64_STANDARD, Engine};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    /// Go writes no bytes as `null`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text: Option<String> = Option::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text.unwrap_or_default()).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use musubi_delegates::cni::code;

    use super::*;

    #[test]
    fn outcomes_arrive_as_they_were_sent() {
        let error = CniError::new(code::CONFIG, "wrong").with_details("mend it");
        for outcome in [Ok(None), Ok(Some(json!({"cniVersion": "0.4.0", "ips": []}))), Err(error)] {
            assert_eq!(of_body(to_body(&outcome).to_string().as_bytes()), Some(outcome));
        }
        for other in ["", "{}", "null", "[]", r#"{"Error":3}"#] {
            assert_eq!(of_body(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_call_of_a_go_client_is_read() {
        let call: Call =
            serde_json::from_str(r#"{"env":{"A":"b"},"config":"e30=","interfaceAttributes":null}"#).unwrap();
        assert_eq!((call.env["A"].as_str(), call.config.as_slice()), ("b", b"{}".as_slice()));
        let call: Call =
            serde_json::from_str(r#"{"env":{},"config":null,"interfaceAttributes":{"cni-args":{"x":1}}}"#).unwrap();
        assert_eq!(call.interface_attributes.unwrap().cni_args.unwrap()["x"], 1);
    }
}

//! What travels between a CNI client and the agent: HTTP/1.1 on a Unix socket, with the bodies that Multus' clients speak.
//! Headers of ours tell our own client from those: it is told when its request is taken, and works itself until then.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use musubi_delegates::cni::request::Answer;
use musubi_delegates::cni::{CniError, Version};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;
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
#[derive(Debug, Deserialize)]
pub struct Call {
    /// Environment of the plugin.
    pub env: BTreeMap<String, String>,
    /// stdin of the plugin, in base64 as Go writes bytes.
    #[serde(deserialize_with = "of_base64", default)]
    pub config: Vec<u8>,
    /// What is asked of a hot-plugged interface (`/delegate` alone).
    #[serde(rename = "interfaceAttributes", default)]
    pub interface_attributes: Option<InterfaceAttributes>,
}

/// Go writes no bytes as `null`.
fn of_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text: Option<String> = Option::deserialize(deserializer)?;
    BASE64_STANDARD.decode(text.unwrap_or_default()).map_err(de::Error::custom)
}

/// What is asked of a hot-plugged interface.
#[derive(Debug, Default, Deserialize)]
pub struct InterfaceAttributes {
    /// Addresses.
    #[serde(default)]
    pub ips: Vec<String>,
    /// MAC address.
    #[serde(default)]
    pub mac: String,
    /// Merged into `args.cni` of each plugin.
    #[serde(rename = "cni-args", default)]
    pub cni_args: Option<Map<String, Value>>,
}

/// A [`Call`] as our client sends it: this process's environment, as far as it is text, and its stdin.
pub struct Sent<'a> {
    /// stdin as it came.
    pub stdin: &'a [u8],
}

impl Serialize for Sent<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut call = serializer.serialize_map(Some(2))?;
        call.serialize_entry("env", &OwnEnvironment)?;
        call.serialize_entry("config", &BASE64_STANDARD.encode(self.stdin))?;
        call.end()
    }
}

struct OwnEnvironment;

impl Serialize for OwnEnvironment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = |(key, value): (OsString, OsString)| Some((key.into_string().ok()?, value.into_string().ok()?));
        serializer.collect_map(std::env::vars_os().filter_map(text))
    }
}

/// The outcome of a request, for our client: the result or the error object, either in the version it asked for.
pub fn to_body(outcome: &Result<Option<Value>, CniError>, version: Version) -> Value {
    match outcome {
        Ok(result) => json!({"Result": result}),
        Err(error) => json!({"Error": error.to_json(version)}),
    }
}

/// What our client prints of a body; `None` when it holds no outcome.
pub fn of_body(body: &[u8]) -> Option<Answer> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Body<'a> {
        #[serde(borrow)]
        error: Option<&'a RawValue>,
        #[serde(borrow, default, deserialize_with = "even_null")]
        result: Option<&'a RawValue>,
    }
    /// A result that is `null` is there: that of an operation that has none.
    fn even_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
        Deserialize::deserialize(deserializer).map(Some)
    }
    match serde_json::from_slice(body).ok()? {
        Body { error: Some(error), .. } if error.get().starts_with('{') => {
            Some(Answer { text: error.get().to_owned(), ok: false })
        }
        Body { error: None, result: Some(result) } if result.get() == "null" => {
            Some(Answer { text: String::new(), ok: true })
        }
        Body { error: None, result: Some(result) } => Some(Answer { text: result.get().to_owned(), ok: true }),
        _ => None,
    }
}

/// Which file is at a path, as both sides have to see it: `device:inode`.
pub fn identity(path: &Path) -> Option<String> {
    fs::metadata(path).ok().map(|file| format!("{}:{}", file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use musubi_delegates::cni::code;

    use super::*;

    #[test]
    fn outcomes_arrive_as_they_were_sent() {
        let error = CniError::new(code::CONFIG, "wrong").with_details("mend it");
        let told = error.to_json(Version::V0_4_0).to_string();
        for (outcome, text, ok) in [
            (Ok(None), "", true),
            (Ok(Some(json!({"cniVersion": "0.4.0", "ips": []}))), r#"{"cniVersion":"0.4.0","ips":[]}"#, true),
            (Err(error), told.as_str(), false),
        ] {
            let body = to_body(&outcome, Version::V0_4_0).to_string();
            assert_eq!(of_body(body.as_bytes()), Some(Answer { text: text.to_owned(), ok }), "{body}");
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

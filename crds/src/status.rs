//! The network-status annotation: what each network gave a pod, in the shape that the Go client of the standard writes,
//! since that is what everyone parses (multi-net 5). Which entries there are, and in which order, is decided elsewhere.

use std::net::IpAddr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::ser::PrettyFormatter;

use crate::NETWORK_STATUS_ANNOTATION;
use crate::excerpt::excerpt_of;

/// One entry of the annotation: one interface of one attachment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// `namespace/name` of the definition, or the name of the cluster's default network.
    pub name: String,
    /// The interface inside the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Its addresses, without prefix. A prefix that another writer left is dropped on reading.
    #[serde(default, deserialize_with = "addresses", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// Its hardware address: six bytes on Ethernet, twenty on InfiniBand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Whether this is the cluster's default network. At most one entry of a pod is.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_false")]
    pub default: bool,
    /// Name resolution, as the network's result has it. Written even when there is none.
    #[serde(default, deserialize_with = "or_default")]
    pub dns: Dns,
    /// The device behind the interface (device-info 1.1), whole.
    #[serde(default, rename = "device-info", skip_serializing_if = "Option::is_none")]
    pub device_info: Option<Value>,
    /// The gateways of the interface's default routes. Entries of another writer that are no addresses, such as Multus'
    /// `<nil>`, are dropped on reading.
    #[serde(default, deserialize_with = "gateways", skip_serializing_if = "Vec::is_empty")]
    pub gateway: Vec<IpAddr>,
}

/// Name resolution as a CNI result describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of name servers.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain; empty when there is none.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains to search.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// An annotation that is not a list of statuses.
#[derive(Debug, thiserror::Error)]
#[error("{NETWORK_STATUS_ANNOTATION} cannot be read: {}", excerpt_of(&.0.to_string(), 160))]
pub struct StatusError(#[from] serde_json::Error);

/// The text of the annotation: a JSON list whose objects are indented by four spaces, as the Go client has it.
pub fn to_annotation(statuses: &[NetworkStatus]) -> String {
    let objects: Vec<String> = statuses.iter().map(indented).collect();
    format!("[{}]", objects.join(","))
}

/// Reads the annotation as any client of the standard may have written it: unknown keys are skipped, `null` is absent,
/// and an empty text is an empty list.
///
/// # Errors
/// When the text is not a list of objects in JSON, an object has no name or a value has the wrong type.
pub fn from_annotation(annotation: &str) -> Result<Vec<NetworkStatus>, StatusError> {
    if annotation.trim().is_empty() {
        return Ok(Vec::new());
    }
    Ok(serde_json::from_str(annotation)?)
}

fn indented(status: &NetworkStatus) -> String {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"    "));
    let written = status.serialize(&mut serializer);
    debug_assert!(written.is_ok(), "a status is plain data");
    String::from_utf8_lossy(&text).into_owned()
}

fn is_false(value: &bool) -> bool {
    !value
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    let texts: Vec<String> = or_default(deserializer)?;
    let bare = |text: &String| text.split('/').next().unwrap_or_default().parse().map_err(D::Error::custom);
    texts.iter().map(bare).collect()
}

fn gateways<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    let texts: Vec<String> = or_default(deserializer)?;
    Ok(texts.iter().filter_map(|text| text.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Dns, NetworkStatus, from_annotation, to_annotation};

    fn full() -> NetworkStatus {
        NetworkStatus {
            name: "default/sriov-net".into(),
            interface: Some("net2".into()),
            ips: vec!["10.0.2.9".parse().unwrap(), "fd00::9".parse().unwrap()],
            mac: Some("aa:bb:cc:00:00:09".into()),
            mtu: Some(9000),
            default: true,
            dns: Dns {
                nameservers: vec!["192.168.2.53".into()],
                domain: "lab.local".into(),
                search: vec!["lab.local".into()],
                options: vec!["ndots:5".into()],
            },
            device_info: Some(json!({"type": "pci", "version": "1.1.0", "pci": {"pci-address": "0000:03:02.1"}})),
            gateway: vec!["10.0.2.1".parse().unwrap()],
        }
    }

    fn named(name: &str) -> NetworkStatus {
        NetworkStatus { name: name.into(), ..NetworkStatus::default() }
    }

    #[test]
    fn the_text_is_the_go_clients() {
        assert_eq!(to_annotation(&[]), "[]");
        assert_eq!(
            to_annotation(&[named("kindnet"), full()]),
            r#"[{
    "name": "kindnet",
    "dns": {}
},{
    "name": "default/sriov-net",
    "interface": "net2",
    "ips": [
        "10.0.2.9",
        "fd00::9"
    ],
    "mac": "aa:bb:cc:00:00:09",
    "mtu": 9000,
    "default": true,
    "dns": {
        "nameservers": [
            "192.168.2.53"
        ],
        "domain": "lab.local",
        "search": [
            "lab.local"
        ],
        "options": [
            "ndots:5"
        ]
    },
    "device-info": {
        "type": "pci",
        "version": "1.1.0",
        "pci": {
            "pci-address": "0000:03:02.1"
        }
    },
    "gateway": [
        "10.0.2.1"
    ]
}]"#
        );
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let statuses = vec![named("kindnet"), full()];
        assert_eq!(from_annotation(&to_annotation(&statuses)).unwrap(), statuses);
    }

    #[test]
    fn others_may_write_it_differently() {
        let with_ips =
            |ips: &[&str]| NetworkStatus { ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(), ..named("a") };
        let rows = [
            ("", vec![]),
            (" [] ", vec![]),
            (r#"[{"name":"a","default":false,"ips":null,"dns":null,"mtu":null,"mac":null}]"#, vec![named("a")]),
            (r#"[{"name":"a","dns":{"search":null}}]"#, vec![named("a")]),
            (r#"[{"name":"a","default-route":["10.0.0.1"],"example.com/x":1}]"#, vec![named("a")]),
            (r#"[{"name":"a","gateway":["<nil>"]}]"#, vec![named("a")]),
            (r#"[{"name":"a","ips":["10.0.0.2/24","fd00::2"]}]"#, vec![with_ips(&["10.0.0.2", "fd00::2"])]),
        ];
        for (text, statuses) in rows {
            assert_eq!(from_annotation(text).unwrap(), statuses, "{text}");
        }
    }

    #[test]
    fn what_is_no_status_is_refused() {
        for text in [
            "a",
            "null",
            "{}",
            "[null]",
            "[{}]",
            r#"[{"name":1}]"#,
            r#"[{"name":"a","ips":["x"]}]"#,
            "[{\"name\":\"a\"},]",
        ] {
            let problem = from_annotation(text).unwrap_err().to_string();
            assert!(problem.starts_with("k8s.v1.cni.cncf.io/network-status"), "{text}: {problem}");
            assert!(!problem.contains('\n'), "{text}: {problem}");
        }
    }
}

//! Which policies are read and which are refused: by the rules of the schema, which the API server applies, and by our own
//! reader, which is stricter than the schema can be.

use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::*;

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/attachment-policy.yaml");

/// Regenerate with `UPDATE=1 cargo test -p musubi-crds manifest`.
#[test]
fn the_manifest_is_the_generated_one() {
    let crd = serde_saphyr::to_string(&AttachmentPolicy::crd()).unwrap();
    let generated =
        format!("# Generated from crds/src/policy.rs by: UPDATE=1 cargo test -p musubi-crds manifest\n{crd}");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(MANIFEST, &generated).unwrap();
    }
    let written = std::fs::read_to_string(MANIFEST).unwrap_or_default();
    assert!(
        written == generated,
        "{MANIFEST} is out of date; run: UPDATE=1 cargo test -p musubi-crds manifest\n{generated}"
    );
}

#[test]
fn the_crd_is_cluster_scoped_and_structural() {
    let crd = serde_json::to_value(AttachmentPolicy::crd()).unwrap();
    assert_eq!(crd["metadata"]["name"], "attachmentpolicies.musubi.dev");
    assert_eq!((&crd["spec"]["scope"], &crd["spec"]["versions"][0]["name"]), (&json!("Cluster"), &json!("v1alpha1")));
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert_eq!(schema["required"], json!(["spec"]));
    let spec = &schema["properties"]["spec"]["properties"];
    for field in ["namespaces", "namespaceSelector", "delegates", "addresses", "externalPlugins", "paths", "overlaps"] {
        assert!(spec[field]["description"].is_string(), "{field} is documented");
    }
    assert_eq!(spec["paths"]["enum"], json!(["deny", "allow"]));
    assert_eq!(spec["delegates"]["items"]["properties"]["type"]["enum"].as_array().unwrap().len(), 7);
}

fn spec(mut fields: Value) -> Value {
    let object = fields.as_object_mut().unwrap();
    object.entry("namespaces").or_insert(json!(["blue"]));
    fields
}

fn of(delegate: Value) -> Value {
    spec(json!({"delegates": [delegate]}))
}

#[test]
fn what_the_issue_shows_is_read() {
    let policy: AttachmentPolicy = serde_saphyr::from_str(
        r#"
apiVersion: musubi.dev/v1alpha1
kind: AttachmentPolicy
metadata: {name: tenant-blue}
spec:
  namespaceSelector: {matchLabels: {tenant: blue}}
  definitions: {fromNamespaces: [shared-networks]}
  delegates:
  - {type: macvlan, masters: [ens4, "ens5.*"]}
  - {type: vxlan, vnis: ["4000-4999"], masters: [ens3]}
  - {type: bridge, bridges: ["blue-*"], vlans: ["100-199"]}
  addresses: ["10.40.0.0/16", "fd00:40::/32"]
  externalPlugins: [sriov]
  paths: deny
"#,
    )
    .unwrap();
    let spec = &policy.spec;
    assert_eq!(
        spec.delegates.iter().map(|grant| grant.kind.as_str()).collect::<Vec<_>>(),
        ["macvlan", "vxlan", "bridge"]
    );
    assert!(spec.delegates[0].masters[1].matches("ens5.7") && spec.delegates[1].vnis[0].contains(4999));
    assert!(spec.definitions.from_namespaces.contains("shared-networks"));
    assert_eq!((spec.paths, spec.overlaps), (Verdict::Deny, Verdict::Deny));
    let again = serde_json::to_value(&policy).unwrap();
    assert_eq!(again["spec"]["delegates"][2], json!({"type": "bridge", "bridges": ["blue-*"], "vlans": ["100-199"]}));
}

#[test]
fn rules_of_the_schema() {
    let macvlan = |more: Value| {
        let mut grant = json!({"type": "macvlan", "masters": ["ens4"]});
        grant.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        grant
    };
    let rows = [
        (spec(json!({})), None),
        (json!({"namespaceSelector": {}}), None),
        (json!({"paths": "deny"}), Some("say whom it is for")),
        (of(macvlan(json!({}))), None),
        (of(json!({"type": "macvlan"})), Some("masters is for")),
        (of(json!({"type": "bridge", "bridges": ["b"], "masters": ["m"]})), Some("masters is for")),
        (of(json!({"type": "bridge"})), Some("bridges is for")),
        (of(macvlan(json!({"bridges": ["b"]}))), Some("bridges is for")),
        (of(json!({"type": "bridge", "bridges": ["b"], "vlans": ["0", "5"]})), None),
        (of(json!({"type": "vlan", "masters": ["m"]})), Some("vlans is for")),
        (of(json!({"type": "vlan", "masters": ["m"], "vlans": ["5"]})), None),
        (of(macvlan(json!({"vlans": ["5"]}))), Some("vlans is for")),
        (of(json!({"type": "vxlan", "masters": ["m"]})), Some("vnis is for")),
        (of(json!({"type": "vxlan", "masters": ["m"], "vnis": ["5"], "bridges": ["b"], "ports": ["8472"]})), None),
        (of(macvlan(json!({"vnis": ["5"]}))), Some("vnis is for")),
        (of(macvlan(json!({"ports": ["5"]}))), Some("ports and vteps are for vxlan")),
        (of(macvlan(json!({"vteps": ["10.0.0.0/8"]}))), Some("ports and vteps are for vxlan")),
        (of(json!({"type": "ptp"})), None),
        (of(json!({"type": "loopback"})), None),
    ];
    for (spec, refused) in rows {
        let by_spec = AttachmentPolicySpec::validate_cel(&spec, None).err();
        let grants = spec["delegates"].as_array().into_iter().flatten();
        let by_grant = grants.filter_map(|grant| DelegateGrant::validate_cel(grant, None).err());
        let refusals: Vec<String> = by_spec.into_iter().chain(by_grant).map(|e| format!("{e:?}")).collect();
        match refused {
            None => assert_eq!(refusals, Vec::<String>::new(), "{spec}"),
            Some(why) => assert!(refusals.iter().any(|text| text.contains(why)), "{spec}: {refusals:?}"),
        }
        // Our own reader does not depend on an API server to have asked.
        let read = serde_json::from_value::<AttachmentPolicySpec>(spec.clone()).unwrap();
        assert_eq!(read.problem().is_some(), refused.is_some(), "{spec}: {:?}", read.problem());
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    let rows = [
        (of(json!({"type": "sriov"})), "unknown variant `sriov`"),
        (of(json!({"type": "Bridge", "bridges": ["b"]})), "unknown variant `Bridge`"),
        (of(json!({"type": "macvlan", "masters": ["ens4"], "modes": ["bridge"]})), "unknown field `modes`"),
        (of(json!({"type": "vlan", "masters": ["m"], "vlans": ["9-5"]})), "\"9-5\" is not a number or a range"),
        (spec(json!({"addresses": ["10.40.0.1/16"]})), "\"10.40.0.1/16\" is not NETWORK/PREFIX"),
        (spec(json!({"externalPlugins": ["/bin/sh"]})), "\"/bin/sh\" is not a name"),
        (spec(json!({"paths": "maybe"})), "unknown variant `maybe`"),
        (spec(json!({"delegate": []})), "unknown field `delegate`"),
    ];
    for (spec, expected) in rows {
        let error = serde_json::from_value::<AttachmentPolicySpec>(spec.clone()).unwrap_err().to_string();
        assert!(error.contains(expected), "{spec}: {error}");
    }
}

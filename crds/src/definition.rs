//! The Kubernetes object that defines a network (multi-net 3). The configuration inside stays text here: the CNI layer
//! reads it.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{FORCE_ANNOTATION, RESOURCE_NAME_ANNOTATION};

/// What a definition holds beside its metadata. A definition without `spec` is valid (multi-net 3.2), which
/// `#[kube(no_spec)]` alone can express: otherwise the derived type and its schema require one. So the field `spec` of
/// [`NetworkAttachmentDefinition`] is this struct, flattened, and the `spec` of the manifest is inside it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "k8s.cni.cncf.io",
    version = "v1",
    kind = "NetworkAttachmentDefinition",
    singular = "network-attachment-definition",
    plural = "network-attachment-definitions",
    shortname = "net-attach-def",
    namespaced,
    no_spec,
    derive = "Default",
    derive = "PartialEq",
    doc = "A network that pods can select by annotation, as defined by the Kubernetes Network Plumbing Working Group."
)]
pub struct NetworkAttachmentDefinitionFields {
    /// How the network is configured. Without it, the network is the one configured on the node under this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NetworkAttachmentDefinitionSpec")] // optional, but never null
    pub spec: Option<NetworkAttachmentDefinitionSpec>,
}

/// The configuration of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkAttachmentDefinitionSpec {
    /// A CNI configuration or configuration list, in JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub config: Option<String>,
}

impl NetworkAttachmentDefinition {
    /// The CNI configuration, if there is one. Nothing but white space counts as none: the network is then looked up on
    /// the node by the name of the definition (multi-net 3.4.1).
    pub fn config(&self) -> Option<&str> {
        let config = self.spec.spec.as_ref()?.config.as_deref()?;
        (!config.trim().is_empty()).then_some(config)
    }

    /// Whether the annotation [`FORCE_ANNOTATION`] lets it be changed under pods that use it.
    pub fn is_forced(&self) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        annotations.and_then(|all| all.get(FORCE_ANNOTATION)).is_some_and(|value| value == "true")
    }

    /// The resource whose devices this network uses, from the annotation [`RESOURCE_NAME_ANNOTATION`].
    pub fn resource_name(&self) -> Option<&str> {
        let annotations = self.metadata.annotations.as_ref()?;
        let name = annotations.get(RESOURCE_NAME_ANNOTATION)?.trim();
        (!name.is_empty()).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;
    use serde_json::json;

    use super::NetworkAttachmentDefinition;

    const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/network-attachment-definition.yaml");

    /// Regenerate with `UPDATE=1 cargo test -p musubi-crds manifest`.
    #[test]
    fn the_manifest_is_the_generated_one() {
        let crd = serde_saphyr::to_string(&NetworkAttachmentDefinition::crd()).unwrap();
        let generated =
            format!("# Generated from crds/src/definition.rs by: UPDATE=1 cargo test -p musubi-crds manifest\n{crd}");
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
    fn the_crd_is_what_the_standard_names() {
        let crd = serde_json::to_value(NetworkAttachmentDefinition::crd()).unwrap();
        assert_eq!(crd["metadata"]["name"], "network-attachment-definitions.k8s.cni.cncf.io");
        assert_eq!(crd["spec"]["group"], "k8s.cni.cncf.io");
        assert_eq!(crd["spec"]["scope"], "Namespaced");
        assert_eq!(
            crd["spec"]["names"],
            json!({
                "kind": "NetworkAttachmentDefinition",
                "plural": "network-attachment-definitions",
                "singular": "network-attachment-definition",
                "shortNames": ["net-attach-def"],
            })
        );
        let version = &crd["spec"]["versions"][0];
        assert_eq!(version["name"], "v1");
        assert_eq!((&version["served"], &version["storage"]), (&json!(true), &json!(true)));
        assert_eq!(version["subresources"], json!(null));
        let schema = &version["schema"]["openAPIV3Schema"];
        assert_eq!(schema["required"], json!(null));
        let spec = &schema["properties"]["spec"];
        assert_eq!(
            (&spec["type"], &spec["default"], &spec["required"]),
            (&json!("object"), &json!(null), &json!(null))
        );
        let config = &spec["properties"]["config"];
        assert_eq!((&config["type"], &config["nullable"]), (&json!("string"), &json!(null)));
    }

    #[test]
    fn a_configuration_is_optional() {
        let rows = [
            (json!({}), None),
            (json!({"spec": null}), None),
            (json!({"spec": {}}), None),
            (json!({"spec": {"config": null}}), None),
            (json!({"spec": {"config": ""}}), None),
            (json!({"spec": {"config": " \n"}}), None),
            (json!({"spec": {"config": "{}", "other": 1}}), Some("{}")),
        ];
        for (mut object, config) in rows {
            object["apiVersion"] = json!("k8s.cni.cncf.io/v1");
            object["kind"] = json!("NetworkAttachmentDefinition");
            object["metadata"] = json!({"name": "a", "namespace": "default"});
            let definition: NetworkAttachmentDefinition = serde_json::from_value(object.clone()).unwrap();
            assert_eq!(definition.config(), config, "{object}");
            assert_eq!(definition.metadata.name.as_deref(), Some("a"), "{object}");
        }
    }

    #[test]
    fn a_configuration_is_text() {
        for spec in [json!({"config": {"type": "bridge"}}), json!({"config": 1}), json!([1]), json!("bridge")] {
            let object = json!({"metadata": {"name": "a"}, "spec": spec});
            assert!(serde_json::from_value::<NetworkAttachmentDefinition>(object).is_err(), "{spec}");
        }
    }

    #[test]
    fn a_manifest_in_yaml_reads_the_same() {
        let definition: NetworkAttachmentDefinition = serde_saphyr::from_str(
            "apiVersion: k8s.cni.cncf.io/v1\n\
             kind: NetworkAttachmentDefinition\n\
             metadata:\n  name: a\n  annotations:\n    k8s.v1.cni.cncf.io/resourceName: example.com/nic\n\
             spec:\n  config: |\n    {\"type\": \"bridge\"}\n",
        )
        .unwrap();
        assert_eq!(definition.config().map(str::trim), Some("{\"type\": \"bridge\"}"));
        assert_eq!(definition.resource_name(), Some("example.com/nic"));
        let bare: NetworkAttachmentDefinition = serde_saphyr::from_str("metadata:\n  name: a\nspec:\n").unwrap();
        assert_eq!((bare.config(), bare.resource_name()), (None, None));
    }
}

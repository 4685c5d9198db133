//! Which kinds of object the API server knows: their names, scope and subresources, and for custom ones their schema.
//! What is stored of them is in `store.rs`.

use kube::CustomResourceExt;
use musubi_crds::{AttachmentPolicy, NetworkAttachmentDefinition};
use serde_json::Value;

/// A kind of object.
#[derive(Debug, Clone)]
pub struct Resource {
    /// The API group; empty for the core.
    pub group: String,
    /// Its version.
    pub version: String,
    /// The name in paths.
    pub plural: String,
    /// The name in objects.
    pub kind: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether there is a `status` subresource.
    pub status: bool,
    /// Whether it is defined by a CustomResourceDefinition.
    pub custom: bool,
    /// The schema of a custom one; without it anything is accepted.
    pub schema: Option<Value>,
}

impl Resource {
    /// `group/version`.
    #[must_use]
    pub fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// `plural.group`, as messages name it.
    #[must_use]
    pub fn qualified(&self) -> String {
        with_group(&self.plural, &self.group)
    }

    /// `Kind.group`, as messages name it.
    #[must_use]
    pub fn qualified_kind(&self) -> String {
        with_group(&self.kind, &self.group)
    }

    /// Whether objects count the changes of what is desired of them.
    #[must_use]
    pub fn has_generation(&self) -> bool {
        self.custom || self.kind == "Pod" || self.group == "admissionregistration.k8s.io"
    }

    /// The resource that a CustomResourceDefinition defines, in its first version.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn custom(crd: &Value) -> Self {
        let spec = &crd["spec"];
        let text = |value: &Value| value.as_str().expect("a CustomResourceDefinition").to_owned();
        let version = &spec["versions"][0];
        Self {
            group: text(&spec["group"]),
            version: text(&version["name"]),
            plural: text(&spec["names"]["plural"]),
            kind: text(&spec["names"]["kind"]),
            namespaced: spec["scope"] == "Namespaced",
            status: !version["subresources"]["status"].is_null(),
            custom: true,
            schema: version["schema"].get("openAPIV3Schema").cloned(),
        }
    }
}

fn with_group(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// What a server knows from the start.
pub fn known() -> Vec<Resource> {
    let rows: [(&str, &str, &str, &str, bool, bool); 13] = [
        ("", "v1", "namespaces", "Namespace", false, true),
        ("", "v1", "pods", "Pod", true, true),
        ("", "v1", "events", "Event", true, false),
        ("", "v1", "nodes", "Node", false, true),
        ("", "v1", "secrets", "Secret", true, false),
        ("", "v1", "configmaps", "ConfigMap", true, false),
        ("", "v1", "services", "Service", true, true),
        ("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", true, false),
        ("", "v1", "serviceaccounts", "ServiceAccount", true, false),
        ("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", false, false),
        ("coordination.k8s.io", "v1", "leases", "Lease", true, false),
        (ADMISSION, "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", false, false),
        (ADMISSION, "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", false, false),
    ];
    let customs = [NetworkAttachmentDefinition::crd(), AttachmentPolicy::crd()];
    let mut resources: Vec<Resource> = rows
        .into_iter()
        .map(|(group, version, plural, kind, namespaced, status)| Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: plural.to_owned(),
            kind: kind.to_owned(),
            namespaced,
            status,
            custom: false,
            schema: None,
        })
        .collect();
    resources
        .extend(customs.iter().map(|crd| Resource::custom(&serde_json::to_value(crd).expect("a definition of ours"))));
    resources
}

const ADMISSION: &str = "admissionregistration.k8s.io";

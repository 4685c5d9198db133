//! `AttachmentPolicy`: which namespaces may attach their pods to what. Only the words are here, each read once and then
//! right; which key of which plugin a field governs, and what becomes of a pod outside, is decided by the meta-plugin.

mod range;
mod selector;

use std::collections::BTreeSet;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use range::{AddressRange, NamePattern, NumberRange};
pub use selector::{LabelSelector, Operator, Requirement};

/// The label that Kubernetes gives every namespace: its own name.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// What the pods and the NetworkAttachmentDefinitions of some namespaces may use of the nodes' networks. A namespace that
/// no policy selects is not limited. One that is selected may use what its policies grant together, and nothing else: what
/// is left out here is not granted.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "musubi.dev",
    version = "v1alpha1",
    kind = "AttachmentPolicy",
    plural = "attachmentpolicies",
    shortname = "attpol",
    derive = "Default",
    derive = "PartialEq",
    doc = "Which namespaces may attach their pods to what."
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(test, x_kube(cel))]
#[x_kube(validation = Rule::new("has(self.namespaces) || has(self.namespaceSelector)")
    .message("say whom it is for: namespaces, namespaceSelector or both"))]
pub struct AttachmentPolicySpec {
    /// Namespaces by name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")))]
    pub namespaces: BTreeSet<String>,
    /// Namespaces by label, besides; an empty selector selects every namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LabelSelector")] // optional, but never null
    pub namespace_selector: Option<LabelSelector>,
    /// Definitions that pods may name besides those of their own namespace.
    #[serde(default, skip_serializing_if = "Definitions::is_none")]
    pub definitions: Definitions,
    /// Which bundled kinds of interface the namespace's definitions may make, and on what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub delegates: Vec<DelegateGrant>,
    /// Addresses that pods may have, as 10.40.0.0/16. They are asked of host-local and static ranges and of requests; an
    /// external IPAM plugin answers for itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub addresses: Vec<AddressRange>,
    /// Plugins that are not bundled, by type, "*" standing for any characters. Each does all that it can do: name only
    /// those that keep tenants apart by themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub external_plugins: Vec<NamePattern>,
    /// Whether definitions may name files, sockets and devices of the node (dataDir, resolvConf, logFile, kubeconfig,
    /// deviceID and their like), and configurations that lie on the node, as one without spec.config does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub paths: Verdict,
    /// Whether a definition may share subnets, VNIs or host-local folders with another namespace's. Asked at admission and
    /// by lint, which know all definitions.
    #[serde(default, skip_serializing_if = "is_default")]
    pub overlaps: Verdict,
}

/// Whether something is granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is not.
    #[default]
    Deny,
    /// It is.
    Allow,
}

/// Definitions outside of the pod's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Definitions {
    /// Namespaces whose definitions pods may name, whatever is in them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")))]
    pub from_namespaces: BTreeSet<String>,
}

impl Definitions {
    fn is_none(&self) -> bool {
        self.from_namespaces.is_empty()
    }
}

/// A kind of interface, and what it may be made on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(test, x_kube(cel))]
#[x_kube(
    validation = Rule::new("self.type in ['macvlan', 'ipvlan', 'vlan', 'vxlan'] == has(self.masters)")
        .message("masters is for macvlan, ipvlan, vlan and vxlan, which need it"),
    validation = Rule::new("has(self.bridges) ? self.type in ['bridge', 'vxlan'] : self.type != 'bridge'")
        .message("bridges is for bridge, which needs it, and for vxlan"),
    validation = Rule::new("has(self.vlans) ? self.type in ['bridge', 'vlan'] : self.type != 'vlan'")
        .message("vlans is for vlan, which needs it, and for bridge"),
    validation = Rule::new("(self.type == 'vxlan') == has(self.vnis)")
        .message("vnis is for vxlan, which needs it"),
    validation = Rule::new("self.type == 'vxlan' || !(has(self.ports) || has(self.vteps))")
        .message("ports and vteps are for vxlan"),
)]
pub struct DelegateGrant {
    /// The bundled kind.
    #[serde(rename = "type")]
    pub kind: DelegateKind,
    /// Interfaces of the node that it may be on top of, "*" standing for any characters: "ens5.*". A definition that leaves
    /// its master to the node's default route needs "*".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    pub masters: Vec<NamePattern>,
    /// Bridges of the node, "*" standing for any characters. A vxlan may always use the bridge of its VNI.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    pub bridges: Vec<NamePattern>,
    /// VLANs, as "7" or "100-199"; 0 is what carries no VLAN tag, and all that a bridge grants where none are given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    pub vlans: Vec<NumberRange>,
    /// VXLAN network identifiers, as "4000-4999".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    pub vnis: Vec<NumberRange>,
    /// UDP ports of VXLAN; 4789 where none are given. A VNI at another port is another network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    pub ports: Vec<NumberRange>,
    /// Addresses of VXLAN tunnel ends and multicast groups; any where none are given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    pub vteps: Vec<AddressRange>,
}

/// The kinds of interface that are bundled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is the CNI plugin of that name")]
pub enum DelegateKind {
    Bridge,
    Macvlan,
    Ipvlan,
    Vlan,
    Vxlan,
    Ptp,
    Loopback,
}

impl DelegateGrant {
    fn problem(&self) -> Option<String> {
        use DelegateKind as K;
        let on_master = matches!(self.kind, K::Macvlan | K::Ipvlan | K::Vlan | K::Vxlan);
        // Each field: whether it is given, must be, and may be.
        let fields = [
            ("masters", !self.masters.is_empty(), on_master, on_master),
            ("bridges", !self.bridges.is_empty(), self.kind == K::Bridge, matches!(self.kind, K::Bridge | K::Vxlan)),
            ("vlans", !self.vlans.is_empty(), self.kind == K::Vlan, matches!(self.kind, K::Bridge | K::Vlan)),
            ("vnis", !self.vnis.is_empty(), self.kind == K::Vxlan, self.kind == K::Vxlan),
            ("ports", !self.ports.is_empty(), false, self.kind == K::Vxlan),
            ("vteps", !self.vteps.is_empty(), false, self.kind == K::Vxlan),
        ];
        let kind = self.kind.as_str();
        fields.into_iter().find_map(|(field, given, needed, allowed)| match given {
            false if needed => Some(format!("{kind} needs {field}")),
            true if !allowed => Some(format!("{field} is not for {kind}")),
            _ => None,
        })
    }
}

impl DelegateKind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Bridge, Self::Macvlan, Self::Ipvlan, Self::Vlan, Self::Vxlan, Self::Ptp, Self::Loopback];

    /// The `type` of its plugin.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Macvlan => "macvlan",
            Self::Ipvlan => "ipvlan",
            Self::Vlan => "vlan",
            Self::Vxlan => "vxlan",
            Self::Ptp => "ptp",
            Self::Loopback => "loopback",
        }
    }

    /// The kind of a plugin's `type`.
    #[must_use]
    pub fn of(plugin_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == plugin_type)
    }
}

impl AttachmentPolicySpec {
    /// What the schema's rules would refuse, for manifests that no API server has read.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        if self.namespaces.is_empty() && self.namespace_selector.is_none() {
            return Some("spec: say whom it is for: namespaces, namespaceSelector or both".to_owned());
        }
        let selector = self.namespace_selector.iter().flat_map(|selector| &selector.match_expressions);
        let mut wrong = selector.filter(|requirement| !requirement.is_whole()).map(|requirement| &requirement.key);
        if let Some(key) = wrong.next() {
            return Some(format!(
                "spec.namespaceSelector: {key}: In and NotIn need values, Exists and DoesNotExist take none"
            ));
        }
        let wrong = |(position, grant): (usize, &DelegateGrant)| {
            grant.problem().map(|problem| format!("spec.delegates[{position}]: {problem}"))
        };
        self.delegates.iter().enumerate().find_map(wrong)
    }

    /// Whether it can only be told from a namespace's labels that the namespace is selected.
    #[must_use]
    pub fn needs_labels(&self, namespace: &str) -> bool {
        !self.namespaces.contains(namespace) && self.namespace_selector.as_ref().is_some_and(|s| !s.selects_all())
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests;

//! The words of Musubi: the Kubernetes API types, the grammar of the annotations that select networks, and the
//! network-status that reports them. Everything here is pure: no input or output, no async, no policy. What the words
//! lead to is decided by the meta-plugin.

pub mod address;
pub mod definition;
mod excerpt;
pub mod name;
pub mod selection;
pub mod status;

pub use address::{InfinibandGuid, MacAddress, RequestedIp};
pub use definition::{
    NetworkAttachmentDefinition, NetworkAttachmentDefinitionFields, NetworkAttachmentDefinitionSpec,
};
pub use name::InterfaceName;
pub use selection::{
    Bandwidth, NetworkSelection, PortMapping, Protocol, SelectionError, parse_default_network,
    parse_networks,
};
pub use status::{Dns, NetworkStatus};

/// Pod annotation that selects additional networks (multi-net 4.1); read by [`parse_networks`].
pub const NETWORKS_ANNOTATION: &str = "k8s.v1.cni.cncf.io/networks";

/// Pod annotation that reports what each network gave the pod (multi-net 5.1); written by [`status::to_annotation`].
pub const NETWORK_STATUS_ANNOTATION: &str = "k8s.v1.cni.cncf.io/network-status";

/// Pod annotation that replaces the cluster's default network for one pod; read by [`parse_default_network`]. Not in
/// the standard: Multus introduced it.
pub const DEFAULT_NETWORK_ANNOTATION: &str = "v1.multus-cni.io/default-network";

/// Annotation of a definition naming the resource whose devices its attachments use (device-info 4.1).
pub const RESOURCE_NAME_ANNOTATION: &str = "k8s.v1.cni.cncf.io/resourceName";

//! The words of Musubi: the Kubernetes API types, the grammar of the annotations that select networks, and the
//! network-status that reports them. Everything here is pure: no input or output, no async, no policy. What the words
//! lead to is decided by the meta-plugin.
//!
//! ```
//! let networks = musubi_crds::parse_networks("storage, other/lab@lab0", "default")?;
//! assert_eq!((&*networks[0].namespace, &*networks[0].name), ("default", "storage"));
//! assert_eq!(networks[1].interface.as_ref().map(|name| name.as_str()), Some("lab0"));
//!
//! let error = musubi_crds::parse_networks(r#"[{"name": "lab", "mac": "02:00"}]"#, "default").unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     r#"element 1, key "mac": "02:00" is not a 6-byte MAC address (like 02:00:00:00:00:01)"#
//! );
//! # Ok::<(), musubi_crds::SelectionError>(())
//! ```

pub mod address;
pub mod definition;
mod excerpt;
pub mod name;
pub mod policy;
pub mod selection;
pub mod status;

pub use address::{InfinibandGuid, MacAddress, RequestedIp};
pub use definition::{NetworkAttachmentDefinition, NetworkAttachmentDefinitionFields, NetworkAttachmentDefinitionSpec};
pub use name::InterfaceName;
pub use policy::{AttachmentPolicy, AttachmentPolicySpec};
pub use selection::{
    Bandwidth, NetworkSelection, PortMapping, Protocol, SelectionError, parse_default_network, parse_networks,
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

/// Annotation of a definition: `"true"` lets it be changed under pods that use it.
pub const FORCE_ANNOTATION: &str = "musubi.dev/force";

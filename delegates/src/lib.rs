//! The hands: the CNI protocol, netlink, IPAM, one file per kind of interface, and the exec of external plugins.

pub mod cni;
pub mod external;
pub mod ipam;

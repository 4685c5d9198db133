//! The hands: the CNI protocol, netlink, IPAM, one file per kind of interface, and the exec of external plugins.

pub mod cni;
pub mod configure;
pub mod delegate;
pub mod external;
pub mod firewall;
pub mod ipam;
pub mod netlink;
pub mod netns;
pub mod random;
mod sys;

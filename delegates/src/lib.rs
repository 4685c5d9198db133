//! The hands: the CNI protocol, netlink, IPAM, one file per kind of interface, and the exec of external plugins.

pub mod bridge;
pub mod bridge_device;
pub mod cni;
pub mod configure;
pub mod delegate;
pub mod external;
pub mod firewall;
pub mod interface;
pub mod ipam;
pub mod ipvlan;
pub mod loopback;
pub mod macvlan;
pub mod netlink;
pub mod netns;
pub mod on_master;
pub mod ptp;
pub mod random;
pub mod registry;
pub mod remains;
pub mod shared;
pub mod standalone;
mod sys;
pub mod veth;
pub mod vlan;
pub mod vxlan;
pub mod vxlan_device;

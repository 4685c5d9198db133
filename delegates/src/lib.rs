//! The hands: the CNI protocol, netlink, IPAM, one file per kind of interface, and the exec of external plugins.
//!
//! A module uses those of its own floor and of the floors below it, never one above:
//!
//! 1. words and bytes: [`cni`], [`netlink`], [`random`], [`mark`] (what is ours), [`mutation`] (what is
//!    said of a change), `sys` (the only `unsafe`)
//! 2. a namespace and what is in it: [`netns`], [`configure`] (addresses, routes, sysctls), [`shared`] (locks)
//! 3. what a delegate is: [`delegate`] (the trait), [`external`] (exec of a plugin)
//! 4. what delegates ask for: [`ipam`], [`firewall`] (nf_tables)
//! 5. what kinds share: [`interface`], then [`veth`], [`on_master`], [`bridge_device`], [`vxlan_device`]
//! 6. the kinds: [`bridge`], [`macvlan`], [`ipvlan`], [`vlan`], [`vxlan`], [`ptp`], [`loopback`]; [`remains`] is what DEL
//!    can do when a configuration is no longer any of them
//! 7. [`registry`] (type → delegate, native or external), and on it [`standalone`] (one type as a plugin of its own)

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
pub mod mark;
pub mod mutation;
pub mod netlink;
pub mod netns;
pub mod on_master;
pub mod pause;
pub mod ptp;
pub mod random;
pub mod registry;
pub mod remains;
pub mod shared;
pub mod standalone;
pub mod sys;
pub mod uses;
pub mod veth;
pub mod vlan;
pub mod vxlan;
pub mod vxlan_device;

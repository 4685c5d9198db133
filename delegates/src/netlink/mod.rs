//! Talking to the kernel by netlink: one socket a namespace, synchronous, no program started. Each file below knows one
//! kind of object; `socket` carries the conversation and `message` the bytes.

pub mod address;
pub mod link;
pub mod mac;
pub mod message;
pub mod neighbour;
pub mod nftables;
pub mod route;
pub mod socket;
pub mod vlan;

pub use link::{Link, LinkChange, NewLink};
pub use mac::MacAddress;
pub use socket::{Error, Netlink, Request, Result};

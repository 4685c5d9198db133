//! The reference plugins as oracle: the same configuration through Debian's and through our delegates.
#![allow(clippy::unwrap_used)]

mod bridge;
mod choice;
mod compare;
mod del;
mod differences;
mod directions;
mod facts;
mod in_vm;
mod ipam;
mod kernel;
mod kinds;
mod packets;
mod stage;
mod versions;

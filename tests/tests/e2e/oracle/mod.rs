//! The reference plugins as oracle: the same configuration through Debian's and through our delegates.

mod bridge;
mod compare;
mod del;
mod differences;
mod directions;
mod facts;
mod ipam;
mod kernel;
mod kinds;
mod stage;
mod versions;

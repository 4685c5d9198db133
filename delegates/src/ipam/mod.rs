//! IPAM: which addresses an attachment gets. Chooses between `host-local` and `static` in process and any other
//! type as an external plugin.

pub mod index;
pub mod ranges;
pub mod reservations;
pub mod store;

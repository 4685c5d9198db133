//! The one integration-test binary: our program on real kernels, called as runtimes call it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod annotations;
mod bad_input;
mod explain;
mod multus;
mod path;
mod plan;
mod vm_smoke;

//! The one integration-test binary: our program on real kernels, called as runtimes call it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod acceptance;
mod annotations;
mod api_server;
mod bad_input;
mod concurrency;
mod demo;
mod examples;
mod explain;
mod faults;
mod lifecycle;
mod multus;
mod oracle;
mod path;
mod plan;
mod scene;
mod status;
mod vm_kinds;
mod vm_smoke;

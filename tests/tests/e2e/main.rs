//! The one integration-test binary: our program on real kernels, called as runtimes call it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod acceptance;
mod agent;
mod annotations;
mod api_server;
mod bad_input;
mod concurrency;
mod containerd;
mod demo;
mod deploy;
mod devices;
mod examples;
mod explain;
mod faults;
mod gate;
mod host_mounts;
mod image;
mod install;
mod kill;
mod kubernetes;
mod lifecycle;
mod lint;
mod multus;
mod oracle;
mod path;
mod plan;
mod policy;
mod reconcile;
mod runtime_conf;
mod scene;
mod status;
mod vm_kinds;
mod vm_smoke;

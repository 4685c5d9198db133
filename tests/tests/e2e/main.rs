//! The one integration-test binary: our program on real kernels, called as runtimes call it.

mod annotations;
mod path;
mod plan;
mod vm_smoke;

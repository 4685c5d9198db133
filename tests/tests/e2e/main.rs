//! The one integration-test binary: our program on real kernels, called as runtimes call it.

mod path;
mod vm_kinds;
mod vm_smoke;

//! The one integration-test binary: our program on real kernels, called as runtimes call it.

mod faults;
mod path;
mod scene;
mod vm_smoke;

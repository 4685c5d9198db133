//! The one integration-test binary: our program on real kernels, called as runtimes call it.

mod concurrency;
mod faults;
mod lifecycle;
mod path;
mod scene;
mod vm_smoke;

//! The one integration-test binary: our program on real kernels, called as runtimes call it.

mod oracle;
mod path;
mod vm_smoke;

//! The program that does nothing: what the kernel alone takes to start and end a process. `make bench` builds it as
//! `musubi` is built and measures the two side by side.

fn main() {}

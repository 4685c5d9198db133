//! Multi-call dispatch only.
fn main() {}

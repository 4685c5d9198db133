//! Builds binaries of this workspace as static files, to run in a virtual machine that has no libraries. The explicit
//! `--target` keeps the flag away from procedural macros, which cannot be static.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The program `name` of this crate.
pub(super) fn binary(name: &str) -> Result<PathBuf> {
    build(env!("CARGO_PKG_NAME"), "--bin", name)
}

/// The integration-test binary `name` of a package.
pub(super) fn test(package: &str, name: &str) -> Result<PathBuf> {
    build(package, "--test", name)
}

fn build(package: &str, kind: &str, name: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--package", package, kind, name, "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics", "--manifest-path", env!("CARGO_MANIFEST_PATH")])
        .env("RUSTFLAGS", format!("{flags} -C target-feature=+crt-static"))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(built.status.success(), "cannot build {name} as a static file");
    let messages = String::from_utf8_lossy(&built.stdout);
    messages.lines().find_map(|line| executable(line, name)).with_context(|| format!("cargo built no {name}"))
}

/// The file that cargo says it made for `name`, if this is the message that says so.
fn executable(message: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let ours = message["target"]["name"] == name;
    message["executable"].as_str().filter(|_| ours).map(PathBuf::from)
}

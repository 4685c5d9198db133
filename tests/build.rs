//! Makes Rust of protocol buffers, without `protoc`: the servers' side of what our program is a client of, for the fakes of
//! the tests, and a client for a whole runtime. And a static program of `src/containerd/pause.rs`, which is all that the image
//! of a pod's sandbox holds: a second of the compiler's time, where a binary of this package would be linked with libraries
//! that the image has not.

use std::path::{Path, PathBuf};
use std::process::Command;

type Failure = Box<dyn std::error::Error>;

/// The interfaces that our program is a client of.
const OURS: &str = "../meta-plugin/proto";

fn main() -> Result<(), Failure> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    make_servers(&out.join("servers"))?;
    make_client()?;
    compile_pause(&out.join("pause"))
}

fn make_servers(folder: &Path) -> Result<(), Failure> {
    println!("cargo::rerun-if-changed={OURS}");
    let interfaces = protox::compile(["podresources.proto", "cri.proto"], [OURS])?;
    std::fs::create_dir_all(folder)?;
    let builder = tonic_prost_build::configure().build_client(false).build_transport(false);
    Ok(builder.out_dir(folder).compile_fds(interfaces)?)
}

fn make_client() -> Result<(), Failure> {
    println!("cargo::rerun-if-changed=proto");
    let interfaces = protox::compile(["proto/cri.proto"], ["proto"])?;
    Ok(tonic_prost_build::configure().build_server(false).compile_fds(interfaces)?)
}

fn compile_pause(program: &Path) -> Result<(), Failure> {
    let source = "src/containerd/pause.rs";
    println!("cargo::rerun-if-changed={source}");
    let mut compiler = Command::new(std::env::var("RUSTC")?);
    compiler.args(["--edition", "2024", "--target", &std::env::var("TARGET")?, "-O", source]);
    compiler.args(["-C", "target-feature=+crt-static", "-C", "panic=abort", "-C", "strip=symbols"]);
    let ended = compiler.arg("-o").arg(program).status()?;
    if ended.success() { Ok(()) } else { Err(format!("{compiler:?}: {ended}").into()) }
}

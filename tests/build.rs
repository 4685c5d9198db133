//! Makes Rust of the protocol buffers in `proto/`, without `protoc`, and a static program of `src/containerd/pause.rs`, which
//! is all that the image of a pod's sandbox holds: a second of the compiler's time, where a binary of this package would be
//! linked with libraries that the image has not.

use std::path::Path;
use std::process::Command;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["proto/cri.proto"], ["proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(files)?;
    compile_pause()
}

fn compile_pause() -> Result<(), Failure> {
    let source = "src/containerd/pause.rs";
    println!("cargo::rerun-if-changed={source}");
    let mut compiler = Command::new(std::env::var("RUSTC")?);
    compiler.args(["--edition", "2024", "--target", &std::env::var("TARGET")?, "-O", source]);
    compiler.args(["-C", "target-feature=+crt-static", "-C", "panic=abort", "-C", "strip=symbols"]);
    compiler.arg("-o").arg(Path::new(&std::env::var("OUT_DIR")?).join("pause"));
    let ended = compiler.status()?;
    if ended.success() { Ok(()) } else { Err(format!("{compiler:?}: {ended}").into()) }
}

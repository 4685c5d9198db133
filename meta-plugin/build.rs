//! Makes Rust of the gRPC interfaces in `proto/`, the clients' side alone. No `protoc` need be installed.

use std::error::Error;

const FILES: [&str; 2] = ["proto/podresources.proto", "proto/cri.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let interfaces = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().build_server(false).build_transport(false).compile_fds(interfaces)?;
    Ok(())
}

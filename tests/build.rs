//! Makes Rust of the gRPC interfaces that our program is a client of: the servers' side, for the fakes of the tests.

use std::error::Error;
use std::path::PathBuf;

const FOLDER: &str = "../meta-plugin/proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={FOLDER}");
    let interfaces = protox::compile(["podresources.proto", "cri.proto"], [FOLDER])?;
    let servers = PathBuf::from(std::env::var("OUT_DIR")?).join("servers");
    std::fs::create_dir_all(&servers)?;
    let builder = tonic_prost_build::configure().build_client(false).build_transport(false);
    builder.out_dir(servers).compile_fds(interfaces)?;
    Ok(())
}

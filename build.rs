//! Compiles the protocol with protox, so that no `protoc` is needed, and keeps the descriptor set for reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["walcast/v1/walcast.proto"], ["proto"])?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("walcast.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}

//! Compiles the protocol with protox, so that no `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["walcast/v1/walcast.proto"], ["proto"])?;
    // The server's half is for the tests' scripted hub.
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}

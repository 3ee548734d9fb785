//! Compiles the protocol with protox, so that no `protoc` is needed, and keeps the descriptor set for reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_file("walcast/v1/walcast.proto")?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("walcast.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(prost_types_set(compiler.file_descriptor_set().encode_to_vec())?)?;
    Ok(())
}

fn prost_types_set(bytes: Vec<u8>) -> Result<tonic_prost_build::FileDescriptorSet, prost::DecodeError> {
    tonic_prost_build::FileDescriptorSet::decode(bytes.as_slice())
}

//! The protocol: generated messages, the event encoder, and blocks, in which every change is encoded once.

pub mod block;
pub mod encode;
mod field;
#[cfg(test)]
mod reference;
pub mod rows;
mod structs;
#[cfg(test)]
mod tests;
pub mod token;
mod value;

/// Messages and services generated from `proto/`.
#[allow(missing_docs, clippy::all, unused_qualifications)]
pub mod pb {
    tonic::include_proto!("walcast.v1");

    /// The encoded `FileDescriptorSet`, comments included, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/walcast.bin"));
}

mod convert;

pub use convert::{
    InvalidPosition, position_from_pb, position_to_pb, relation_from_pb, relation_to_pb, timestamp, value_from_pb,
};

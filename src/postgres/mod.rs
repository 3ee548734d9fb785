//! PostgreSQL as walcast sees it.

mod connect;
pub mod conninfo;
mod error;
pub mod preflight;
pub mod publication;
pub mod replication;
pub mod server;
pub mod slot;
pub mod sql;
#[cfg(test)]
mod tests;
pub mod tls;

pub use connect::{Address, Server};
pub use error::{Error, Notice, Phase, Result};

//! PostgreSQL as walcast sees it.

pub mod conninfo;
mod connect;
mod error;
pub mod replication;
pub mod server;
pub mod sql;
pub mod tls;

pub use connect::{Address, Server};
pub use error::{Error, Notice, Phase, Result};

//! PostgreSQL as walcast sees it: two connections to one server. [`sql`] asks questions, [`replication`] streams the
//! changes of a slot; both are opened by the same code from [`conninfo`], so that they agree on encryption and passwords
//! and the second goes to the very server that the first one found.
//!
//! Nothing here decides what to do with the answers. Errors say whether a retry may help and what an operator can do
//! ([`Error::retryable`], [`Error::hint`]); [`preflight`] turns what a server lacks into statements to run.
//!
//! What surprised: the [protocol's](https://www.postgresql.org/docs/current/protocol-replication.html) walsender ends a
//! stream at shutdown with CommandComplete and no CopyDone; it waits for the confirmation of its last position and not
//! only of the last commit; and PostgreSQL 18 tells in a
//! notice what was an error before: that the publication is gone.

pub mod catalog;
mod connect;
pub mod conninfo;
mod contents;
pub mod copier;
pub mod copy;
pub mod database;
pub mod decoding;
mod error;
pub mod lineage;
pub mod logtables;
mod partitions;
pub mod preflight;
pub mod printed;
pub mod publication;
pub mod replication;
pub mod server;
pub mod shadow;
pub mod slot;
pub mod sql;
pub mod standby;
pub mod table;
#[cfg(test)]
mod tests;
pub mod tls;

pub use connect::{Address, Server};
pub use error::{Error, Notice, Phase, Result};

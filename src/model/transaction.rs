//! Transactions and what they consist of.

use crate::lsn::Lsn;

/// Where a transaction was read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Provenance {
    /// The replication slot.
    #[default]
    Slot,
    /// Log tables, after a failover.
    LogReplay,
    /// Log tables, by polling.
    LogPoll,
}

/// What begins a transaction. Its identity is (lineage, commit LSN, sequence).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Start of the commit record.
    pub commit_lsn: Lsn,
    /// As in [`Position`](super::Position).
    pub sequence: u32,
    /// Transaction id with its epoch (xid8).
    pub xid: u64,
    /// Commit time, microseconds since 2000-01-01 UTC (PostgreSQL's epoch). Not monotonic.
    pub commit_time: i64,
    /// Replication origin's name; empty for local transactions.
    pub origin: String,
    /// Slot or log tables.
    pub provenance: Provenance,
}

/// What happened to a row or a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Operation {
    /// A new row.
    Insert = 1,
    /// A changed row.
    Update = 2,
    /// A removed row.
    Delete = 3,
    /// Whole tables emptied.
    Truncate = 4,
    /// A row that was already there, from a snapshot.
    Read = 5,
}

//! Where a subscriber stands. An LSN alone does not say it: the same LSN exists on two timelines after a failover,
//! and transactions replayed at one consistent point share one.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

use crate::lsn::Lsn;

/// Identity of one unbroken course of history; see [`Lineage::id`]. Text form: 16 hexadecimal digits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct LineageId(pub u64);

impl fmt::Display for LineageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for LineageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 16 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a lineage: expected 16 hexadecimal digits")]
pub struct ParseLineageError(String);

impl FromStr for LineageId {
    type Err = ParseLineageError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() == 16
            && text.bytes().all(|b| b.is_ascii_hexdigit())
            && let Ok(id) = u64::from_str_radix(text, 16)
        {
            return Ok(LineageId(id));
        }
        Err(ParseLineageError(text.to_owned()))
    }
}

/// One course of the source's history, as told by
/// [`IDENTIFY_SYSTEM` and `TIMELINE_HISTORY`](https://www.postgresql.org/docs/current/protocol-replication.html).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// The cluster's identifier, set by initdb and kept by every physical copy.
    pub system_identifier: u64,
    /// Current timeline, from 1.
    pub timeline: u32,
    /// The timeline history file as the server sent it; empty on timeline 1. Numbers repeat after forks, text does not.
    pub history: String,
    /// Raised by an operator who declares a new start; 0 from the beginning.
    pub epoch: u32,
    /// On this lineage, where it left the one before; `Lsn::ZERO` for the first of a journal.
    pub switch_lsn: Lsn,
}

impl Lineage {
    /// First 64 bits of SHA-256 over everything that tells one history from another.
    pub fn id(&self) -> LineageId {
        let mut hash = Sha256::new();
        hash.update(self.system_identifier.to_be_bytes());
        hash.update(self.timeline.to_be_bytes());
        hash.update(self.epoch.to_be_bytes());
        hash.update(self.history.as_bytes());
        let digest = hash.finalize();
        let mut head = [0; 8];
        head.copy_from_slice(&digest[..8]);
        LineageId(u64::from_be_bytes(head))
    }
}

/// A resume point between transactions: everything up to and including it is done.
/// Ordered by `(lsn, sequence)` inside one lineage only, hence no `Ord`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// The history it belongs to.
    pub lineage: LineageId,
    /// End LSN of a commit record; of a message outside transactions its LSN; of a keepalive its WAL end.
    pub lsn: Lsn,
    /// 0 from the slot, 1..n for transactions replayed from log tables at one consistent point.
    pub sequence: u32,
}

impl Position {
    /// The position at `lsn` with sequence 0.
    pub fn new(lineage: LineageId, lsn: Lsn) -> Self {
        Position { lineage, lsn, sequence: 0 }
    }

    /// The order inside one lineage. Meaningless between two.
    pub fn order(&self) -> (Lsn, u32) {
        (self.lsn, self.sequence)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.lsn)?;
        if self.sequence > 0 {
            write!(f, "+{}", self.sequence)?;
        }
        write!(f, "@{}", self.lineage)
    }
}

//! The rows that are already there: what a session asks of whoever can read them, and what it gets. Pulled like blocks;
//! nothing is read further ahead than a few pieces.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{BoxFuture, Frame};
use crate::{
    model::{Position, Relation},
    reason::{Classified, Reason},
    selection::Selection,
    wire::token::{Handover, Progress},
};

/// Prefix of the logical messages that bound chunks.
pub const MARK_PREFIX: &str = "walcast.snapshot";

/// How rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotMode {
    /// All of them as of one point, in one long transaction of the source.
    Consistent,
    /// In chunks by key with the changes between them, each in a short transaction.
    Incremental,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct SnapshotRequest {
    /// Which tables, columns and rows the stream sees.
    pub selection: Arc<Selection>,
    /// `None`: by the size of the tables.
    pub mode: Option<SnapshotMode>,
    /// 0: as fast as it goes.
    pub max_rows_per_second: u32,
    /// Where an earlier stream was.
    pub resume: Option<Progress>,
    /// While true, nothing more is read.
    pub pause: watch::Receiver<bool>,
    /// One of the snapshots that may be read at the same time; held for as long as the primary has anything to do with it.
    pub permit: Arc<OwnedSemaphorePermit>,
}

/// A snapshot that has begun.
pub struct Snapshot {
    /// Names it in all its events; kept when an incremental one is resumed.
    pub id: u64,
    /// How it is read.
    pub mode: SnapshotMode,
    /// `schema.table` and estimated rows, in the order in which they end.
    pub tables: Vec<(String, i64)>,
    /// An earlier attempt was given up: what it sent counts for nothing.
    pub restarted: bool,
    /// Every transaction up to here is in the rows.
    pub start: Position,
    /// Which of those behind `start` are in the rows, too.
    pub handover: Handover,
    /// How far an earlier stream had come.
    pub progress: Progress,
    /// What the marks in the journal are called.
    pub run: u64,
    /// The rows.
    pub rows: Box<dyn Rows>,
}

/// Rows, piece by piece.
pub trait Rows: Send + Sync {
    /// The next piece; `None` after the last. Cancel-safe.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Piece>, SnapshotError>>;

    /// Goes on from an earlier place, since what came behind it lies on a lineage that was left. The number of the run whose
    /// marks count from now on; `None`: it cannot be done, and need not be.
    fn rewind(&mut self, to: Progress) -> Option<u64> {
        let _ = to;
        None
    }
}

/// READ changes in compact form as one gRPC message, prefix and events: a stream that wants them all sends it as it is.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The message.
    pub message: Frame,
    /// How many events are in it.
    pub rows: u32,
}

/// A part of a snapshot.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Rows of one relation version. Consistent mode.
    Rows {
        /// What they are positional against.
        relation: Arc<Relation>,
        /// The rows.
        batch: Batch,
    },
    /// A table is complete. Consistent mode.
    TableEnd {
        /// What its rows were positional against, had there been any.
        relation: Arc<Relation>,
    },
    /// What belongs right behind the mark with this number. Incremental mode.
    Chunk(Chunk),
    /// The mark with this number, and those before it, mean nothing.
    Void(u64),
}

/// Rows that hold at one place of the stream: those that a later transaction in front of it touched are left out.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The mark behind which it belongs.
    pub mark: u64,
    /// What the rows are positional against; `None`: no rows.
    pub relation: Option<Arc<Relation>>,
    /// The rows.
    pub batches: Vec<Batch>,
    /// Tables that are complete with it, as of their last rows.
    pub ended: Vec<Arc<Relation>>,
    /// What the stream has once it is sent; rows are counted by the stream.
    pub progress: Progress,
    /// Nothing comes after it.
    pub last: bool,
}

/// Reads rows of the source.
pub trait Snapshots: Send + Sync + 'static {
    /// Begins a snapshot.
    fn begin(&self, request: SnapshotRequest) -> BoxFuture<'_, Result<Snapshot, SnapshotError>>;

    /// Why a `schema.table` that is not published cannot be read, if there is more to say than that.
    fn refusal<'a>(&'a self, table: &'a str) -> BoxFuture<'a, Option<SnapshotError>> {
        let _ = table;
        Box::pin(async { None })
    }
}

/// Why rows cannot be read, or not to the end.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct SnapshotError {
    /// The documented reason.
    pub reason: Reason,
    /// A sentence for people.
    pub message: String,
    /// As the table of errors names the keys.
    pub metadata: Vec<(&'static str, String)>,
}

impl SnapshotError {
    /// Without metadata.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        SnapshotError { reason, message: message.into(), metadata: Vec::new() }
    }

    /// With one more pair of metadata.
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.metadata.push((key, value.into()));
        self
    }
}

impl Classified for SnapshotError {
    fn reason(&self) -> Reason {
        self.reason
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        self.metadata.clone()
    }
}

/// Keeps the journal from removing what lies behind a position, within its cap, for as long as it is held.
#[derive(Default)]
pub struct Reservation(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Reservation {
    /// Calls `release` when it is dropped.
    pub fn new(release: impl FnOnce() + Send + Sync + 'static) -> Self {
        Reservation(Some(Box::new(release)))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(release) = self.0.take() {
            release();
        }
    }
}

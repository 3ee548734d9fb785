//! What a session reads from. The journal implements [`Feed`] today; a distributed log can later. A session owns a
//! [`Cursor`], asks for the next block and sleeps on [`Feed::marks`] at the end: catch-up and live are the same loop.

mod history;
mod snapshot;

use std::{future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use tokio::sync::watch;

pub use history::{Crossing, History, Key, LineageStart};

use crate::{
    lsn::Lsn,
    model::{Described, Lineage, LineageId, Position, Printed, Relation, RelationId, Spelled},
    reason::{Classified, Reason},
    wire::{block::Block, pb, position_to_pb, token::Token},
};

pub use snapshot::{
    Batch, Chunk, MARK_PREFIX, Piece, Reservation, Rows, Snapshot, SnapshotError, SnapshotMode, SnapshotRequest,
    Snapshots,
};

/// A future that trait objects can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How far delivery may go. Moves only after fdatasync, unless the feed says otherwise by [`Feed::durable`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The durable mark: number of the first block that may not be read yet.
    pub next_block: u64,
    /// The complete mark: the last resume point, keepalives included.
    pub tail: Position,
}

/// Where a stream wants to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The oldest position that is retained.
    Earliest,
    /// The tail at the time of the call.
    Latest,
    /// Transactions whose end LSN is greater, on the current lineage.
    AfterLsn(Lsn),
    /// Exactly the successor of a position that was handed out before.
    After(Position),
    /// The first block that holds a commit at or after this time (microseconds since 2000-01-01 UTC).
    Since(i64),
}

/// A reading place, owned by one session. Survives any amount of waiting; costs nothing to anybody.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// Number of the next block to read.
    pub block: u64,
    /// Everything up to and including this is done: of the first block, only spans after it count.
    pub after: Position,
}

/// The retained range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Resume points before this are gone.
    pub earliest: Position,
    /// The last durable resume point.
    pub tail: Position,
    /// Bytes of segments on disk.
    pub bytes: u64,
    /// Commit time of the first retained transaction, microseconds since 2000-01-01 UTC; `None` while there is none.
    pub earliest_commit_time: Option<i64>,
    /// Bytes of WAL per second that retention has been removing lately; 0 when nothing is being removed. Feeds `expires_in`.
    pub expiry_bytes_per_second: u64,
}

impl Window {
    /// Whether what comes after this position has been removed.
    pub fn is_behind(&self, position: Position) -> bool {
        position.lineage == self.earliest.lineage && position.order() < self.earliest.order()
    }
}

/// Why a feed cannot give what was asked for. Every variant becomes a typed gRPC error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Older than the retained range.
    #[error("position {requested} is no longer retained; the earliest is {earliest}")]
    Expired {
        /// What was asked for.
        requested: Position,
        /// The oldest resume point that is left.
        earliest: Position,
    },
    /// On a part of history that a failover took back.
    #[error("position {requested} lies past the switch; the last common position is {common}")]
    Diverged {
        /// What was asked for.
        requested: Position,
        /// Last position that both histories share.
        common: Position,
    },
    /// No such lineage in this journal.
    #[error("lineage {0} is unknown to this journal")]
    LineageUnknown(LineageId),
    /// Damage on disk.
    #[error("journal is damaged after {after}: {detail}")]
    Corrupt {
        /// Last good position before the damage.
        after: Position,
        /// First good position behind it, if one was found.
        up_to: Option<Position>,
        /// File, offset and what does not match.
        detail: String,
    },
    /// Reading failed for another reason.
    #[error("journal cannot be read: {0}")]
    Io(Arc<std::io::Error>),
}

impl Classified for Error {
    fn reason(&self) -> Reason {
        match self {
            Error::Expired { .. } => Reason::PositionExpired,
            Error::Diverged { .. } => Reason::PositionDiverged,
            Error::LineageUnknown(_) => Reason::LineageUnknown,
            Error::Corrupt { .. } => Reason::JournalCorrupt,
            Error::Io(_) => Reason::Internal,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Error::Expired { requested, earliest } => {
                vec![("requested", requested.lsn.to_string()), ("earliest", earliest.lsn.to_string())]
            }
            Error::Diverged { requested, common } => {
                let (requested, lineage) = (requested.lsn.to_string(), common.lineage.to_string());
                vec![("requested", requested), ("common", common.lsn.to_string()), ("lineage", lineage)]
            }
            Error::LineageUnknown(id) => vec![("lineage", id.to_string())],
            Error::Corrupt { after, up_to, .. } => {
                let up_to = up_to.map_or_else(String::new, |position| position.lsn.to_string());
                vec![("from", after.lsn.to_string()), ("to", up_to)]
            }
            Error::Io(_) => Vec::new(),
        }
    }
}

/// One step of reading.
#[derive(Clone, Debug)]
pub enum Fetched {
    /// The block at the cursor, which now stands behind it.
    Block(Arc<Block>),
    /// Nothing durable at the cursor yet: wait on [`Feed::marks`].
    AtTail,
}

/// An ordered log of blocks that can be read from any retained position.
pub trait Feed: Send + Sync + 'static {
    /// The marks, and a wake-up whenever they move.
    fn marks(&self) -> watch::Receiver<Marks>;

    /// Where delivery may run ahead of fdatasync: the last durable resume point, and a wake-up whenever it moves. `None`:
    /// everything up to the marks is durable.
    fn durable(&self) -> Option<watch::Receiver<Position>> {
        None
    }

    /// What is retained now.
    fn window(&self) -> Window;

    /// Whether retention has removed what a stream that goes on behind this position needs.
    fn has_expired(&self, position: Position) -> bool {
        self.window().is_behind(position)
    }

    /// Commit time of about the first transaction behind this position, microseconds since 2000-01-01 UTC: not before it, and
    /// that of the first one that is retained, where that is a later one. `None`: not known.
    fn commit_time_behind(&self, position: Position) -> Option<i64> {
        let _ = position;
        None
    }

    /// Turns a start into a cursor. A position beyond the tail is located at the tail with `after` kept: its session
    /// waits there. `AfterLsn` resolves to the greatest resume point at or below the LSN.
    fn locate(&self, start: Start) -> BoxFuture<'_, Result<Cursor, Error>>;

    /// The hot path: the block at the cursor if it is in memory. `None` means: ask [`Feed::fetch`].
    fn hot(&self, cursor: &mut Cursor) -> Option<Fetched>;

    /// The block at the cursor from memory or disk.
    fn fetch<'a>(&'a self, cursor: &'a mut Cursor) -> BoxFuture<'a, Result<Fetched, Error>>;

    /// The relation version with this number.
    fn relation(&self, id: RelationId) -> Option<Arc<Relation>>;

    /// Every known relation version, oldest first.
    fn relations(&self) -> Vec<Arc<Relation>>;

    /// The current lineage; `None` before the source has ever connected.
    fn lineage(&self) -> Option<Arc<Lineage>>;

    /// Every lineage that was followed.
    fn history(&self) -> Arc<History> {
        Arc::default()
    }

    /// How many lineages were followed: cheap enough to be asked before every block. Whoever has seen a block or a tail
    /// of a lineage finds that lineage counted.
    fn lineages(&self) -> usize {
        0
    }

    /// The first block that may hold what a crossing leaves dead, as far as it is retained; `after` is what still holds.
    fn locate_dead<'a>(&'a self, crossing: &'a Crossing) -> BoxFuture<'a, Result<Cursor, Error>> {
        Box::pin(async { self.locate(Start::After(crossing.departs)).await })
    }

    /// A resume point at or before which no transaction has an id of `xid` or more; the latest that is known to be one.
    /// `None`: not known, look for it.
    fn before_xid(&self, xid: u64) -> Option<Position> {
        let _ = xid;
        None
    }

    /// Retention leaves what comes after `position` while the reservation is held, as long as the journal is not larger than
    /// its cap.
    fn reserve(&self, position: Position) -> Reservation {
        let _ = position;
        Reservation::default()
    }
}

/// A resume point together with `Position.snapshot`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// Everything up to and including this is done.
    pub position: Position,
    /// What else the stream needs to go on from there; usually empty.
    pub snapshot: Bytes,
}

/// For sending.
pub fn resume_to_pb(resume: &Resume) -> pb::Position {
    pb::Position { snapshot: resume.snapshot.clone(), ..position_to_pb(resume.position) }
}

impl From<Position> for Resume {
    fn from(position: Position) -> Self {
        Resume { position, snapshot: Bytes::new() }
    }
}

impl PartialEq<Position> for Resume {
    fn eq(&self, other: &Position) -> bool {
        self.position == *other && self.snapshot.is_empty()
    }
}

/// What sessions may ask of the source without knowing what it is.
pub trait Source: Send + Sync + 'static {
    /// Whether the slot streams now.
    fn connected(&self) -> bool;

    /// Flush and insert positions of the source's WAL, read now.
    fn wal(&self) -> BoxFuture<'_, Result<WalPositions, SourceAway>>;

    /// `schema.table` of every published table, as last read; `None` before the first connection.
    fn published(&self) -> Option<Arc<Vec<(String, String)>>>;

    /// Whether changes of this published table are those of partitions of which some tell less of an old row than the table
    /// is described with; as last looked.
    fn is_uneven(&self, schema: &str, table: &str) -> bool {
        let _ = (schema, table);
        false
    }

    /// Reads the published tables again: a table may have been created a moment ago. Changes nothing while it is away.
    fn refresh(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// These published tables, by `(schema, table)`, in the shape in which the next change would describe them; their `id`
    /// is 0. Those that it does not publish are left out, and all of them while it is away.
    fn relations<'a>(&'a self, tables: &'a [(String, String)]) -> BoxFuture<'a, Vec<Described>> {
        let _ = tables;
        Box::pin(async { Vec::new() })
    }

    /// The same for any number of tables, as they were a few seconds ago at most, so that many may ask.
    fn relations_lately<'a>(&'a self, tables: &'a [(String, String)]) -> BoxFuture<'a, Vec<Arc<Described>>> {
        Box::pin(async { self.relations(tables).await.into_iter().map(Arc::new).collect() })
    }

    /// The form in which each literal would be printed; `None` where that cannot be told, as while the source is away.
    fn printed<'a>(&'a self, literals: &'a [Spelled]) -> BoxFuture<'a, Vec<Option<Printed>>> {
        Box::pin(async { vec![None; literals.len()] })
    }

    /// What the source cannot give any more, as long as the hub does not go on without it: streams that have come to the
    /// end of what there is end with it.
    fn lost(&self) -> Option<Lost> {
        None
    }

    /// Asks the source for a keepalive now, so that the tail moves although nothing commits.
    fn nudge(&self);

    /// What status shows.
    fn status(&self) -> SourceStatus;
}

/// The two ends of the source's WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalPositions {
    /// `pg_current_wal_flush_lsn()`.
    pub flush: Lsn,
    /// `pg_current_wal_insert_lsn()`.
    pub insert: Lsn,
}

/// A range that the source's slot does not cover.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Lost {
    /// Complete up to here (exclusive start).
    pub from: Lsn,
    /// The source has written so far (inclusive end).
    pub to: Lsn,
    /// What became of the slot, and what an operator can do.
    pub detail: String,
}

impl Classified for Lost {
    fn reason(&self) -> Reason {
        Reason::SlotLost
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        vec![("from", self.from.to_string()), ("to", self.to.to_string())]
    }
}

/// The source cannot be asked now.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the source is away: {0}")]
pub struct SourceAway(pub String);

/// The source as status and metrics show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// Whether the slot streams.
    pub connected: bool,
    /// `IDENTIFY_SYSTEM`'s system identifier; 0 before the first connection.
    pub system_identifier: u64,
    /// Current timeline.
    pub timeline: u32,
    /// Slot name.
    pub slot: String,
    /// `pg_replication_slots.wal_status`.
    pub wal_status: String,
    /// `pg_replication_slots.confirmed_flush_lsn`.
    pub confirmed_flush: Lsn,
    /// `pg_current_wal_lsn()`.
    pub current: Lsn,
    /// Bytes between the slot's restart_lsn and the current LSN.
    pub retained_wal_bytes: u64,
    /// Why it is away, with the reason's name in front; empty while connected.
    pub last_error: String,
    /// What does not stop the stream and must be seen all the same, each with its reason's name in front.
    pub alarms: Vec<String>,
    /// The other configured servers, as last seen.
    pub standbys: Vec<StandbyStatus>,
}

/// A server that may take over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StandbyStatus {
    /// As configured.
    pub server: String,
    /// Whether the slot could be used there after a promotion.
    pub ready: bool,
    /// Why not; empty if it is.
    pub detail: String,
}

/// An opaque, already framed gRPC message: 5-byte prefix and encoded events.
pub type Frame = Bytes;

/// Who a checkpoint belongs to. Subscriber names are private to their principal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriberKey {
    /// The authenticated caller; empty when the hub runs without tokens.
    pub principal: String,
    /// `[a-zA-Z0-9._-]{1,128}`.
    pub name: String,
}

/// A named subscriber's durable state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Everything up to and including this was acknowledged; `None` before the first acknowledgement of a subscriber
    /// that started somewhere explicit.
    pub position: Option<Position>,
    /// `Position.snapshot` of the same acknowledgement.
    pub snapshot: Bytes,
    /// The encoded `walcast.v1.Filter` of the last stream; empty for everything, or when longer than 2 KiB.
    pub filter: Bytes,
    /// Hash of the canonical filter that `position` was made with.
    pub filter_hash: u64,
    /// Fencing token of the newest session.
    pub session: u64,
    /// Creation, microseconds since 2000-01-01 UTC.
    pub created: i64,
    /// Last time it was connected, microseconds since 2000-01-01 UTC. Retention stops counting it when this is too old.
    pub last_seen: i64,
}

impl Checkpoint {
    /// Behind what its next stream goes on; `None`: nowhere yet, or it reads the rows of a consistent snapshot anew.
    pub fn goes_on_behind(&self) -> Option<Position> {
        let owed = Token::decode(&self.snapshot).ok().and_then(|token| token.progress);
        self.position.filter(|_| owed.is_none_or(|owed| owed.incremental))
    }
}

/// The checkpoint could not be made durable.
#[derive(Clone, Debug, thiserror::Error)]
#[error("checkpoints cannot be written: {detail}")]
pub struct CheckpointError {
    /// What failed.
    pub detail: String,
    /// For lack of room.
    pub disk_full: bool,
}

impl CheckpointError {
    /// A failure that is not for lack of room.
    pub fn new(detail: impl Into<String>) -> Self {
        CheckpointError { detail: detail.into(), disk_full: false }
    }
}

/// From a subscriber's present state (`None`: there is none) to the next, or `None` to leave it.
pub type Change<'a> = Box<dyn FnOnce(Option<&Checkpoint>) -> Option<Checkpoint> + Send + 'a>;

/// Durable subscriber state. Reads come from memory, writes return after the fsync (grouped within 20 ms).
pub trait Checkpoints: Send + Sync + 'static {
    /// The state of one subscriber.
    fn get(&self, key: &SubscriberKey) -> Option<Checkpoint>;

    /// Replaces the state of one subscriber. Changes of one key are applied one after another. Returns what is durable
    /// then.
    fn update<'a>(
        &'a self,
        key: &'a SubscriberKey,
        change: Change<'a>,
    ) -> BoxFuture<'a, Result<Option<Checkpoint>, CheckpointError>>;

    /// Forgets a subscriber; whether there was one.
    fn delete<'a>(&'a self, key: &'a SubscriberKey) -> BoxFuture<'a, Result<bool, CheckpointError>>;

    /// How many subscribers there are.
    fn count(&self) -> usize {
        self.list().len()
    }

    /// Every subscriber, by principal and name.
    fn list(&self) -> Vec<(SubscriberKey, Checkpoint)>;
}

//! The journal: what was read from the slot, durable, in order, readable from any retained position.
//!
//! Segment files are the truth about the stream ([`segment`] specifies them); the store (sled) holds a catalogue that
//! makes them fast to open, and the checkpoints of named subscribers, which are in no segment.
//!
//! ```text
//!   Appender ──▶ queue ──▶ writer thread: one vectored write, one fdatasync, then
//!                            ├─▶ map, ring, marks ──▶ sessions (hot: ring; cold: chunks of segment files)
//!                            └─▶ keeper thread: catalogue rows, checkpoints, retention
//! ```
//!
//! - Nothing is visible before it is synced: ring, map and marks move after fdatasync returned. In eager mode they move after
//!   the write, so that `kill -9` takes nothing back and a power failure may; what PostgreSQL hears, checkpoints and the
//!   catalogue wait for the sync all the same ([`syncer`]).
//! - A failed fsync ends the process ([`Disk::fatal`]). A full disk only stops the writer until there is room.
//! - Damage below what was known synced is reported with its range and never hides what lies beside it.
//! - Positions compare inside one lineage. Blocks behind a LINEAGE record belong to that lineage; positions on the part
//!   that two histories share mean the same on both.

mod appender;
mod chunk;
mod disk;
#[doc(hidden)]
pub mod fuzzing;
mod horizon;
pub mod inspect;
mod keeper;
mod map;
mod open;
mod output;
mod read;
mod recovery;
mod replay;
mod retention;
mod ring;
mod rows;
pub mod segment;
mod store;
mod syncer;
mod tail;
mod writer;
mod xids;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use self::{
    chunk::ChunkCache,
    disk::DirLock,
    keeper::{Desk, Keeper},
    map::Map,
    retention::Expiry,
    ring::Ring,
    xids::Xids,
};
use crate::{
    feed::{LineageStart, Marks},
    model::{Position, Relation, Transaction},
    reason::{Classified, Reason},
};

pub use self::{
    appender::{Appender, Record},
    disk::{Disk, Os},
    horizon::Horizon,
    recovery::Damage,
    replay::Journaled,
    tail::Unreadable,
};

/// How a journal is kept.
#[derive(Clone)]
pub struct Options {
    /// Directory; created if missing. Held exclusively while the journal is open.
    pub dir: PathBuf,
    /// Size of a segment in bytes, reserved at once. A larger block gets a segment of its own.
    pub segment_bytes: u64,
    /// Bytes of the newest blocks in memory.
    pub ring_bytes: usize,
    /// Bytes of chunks in memory that cold readers share. Each place that is being read takes about a MiB: with less
    /// than one per reader, chunks are read again for every block.
    pub cache_bytes: u64,
    /// Segments go, whoever needs them, when the journal holds more bytes than this.
    pub retain_bytes: u64,
    /// Segments go when they are older than this and no subscriber needs them; subscribers that were not seen for
    /// this long do not count.
    pub retain_age: Duration,
    /// [`Appender::append`] waits while more than this is queued.
    pub queue_bytes: usize,
    /// Bytes that new segments leave free on the file system.
    pub reserve_bytes: u64,
    /// Show what is written before it is durable.
    pub eager: bool,
    /// Distance of the places where reading can start. 1 MiB; smaller for tests.
    pub index_bytes: u64,
    /// The operating system, or a broken one.
    pub disk: Arc<dyn Disk>,
}

impl Options {
    /// The defaults in a directory.
    pub fn new(dir: impl Into<PathBuf>) -> Options {
        Options {
            dir: dir.into(),
            segment_bytes: 128 << 20,
            ring_bytes: 32 << 20,
            cache_bytes: 32 << 20,
            retain_bytes: 10 << 30,
            retain_age: Duration::from_secs(7 * 24 * 3600),
            queue_bytes: 8 << 20,
            reserve_bytes: 64 << 20,
            eager: false,
            index_bytes: 1 << 20,
            disk: Arc::new(Os),
        }
    }
}

/// Why the journal cannot be opened or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Another hub, or another journal in this process, has it open.
    #[error("{} is in use by another hub", .0.display())]
    Locked(PathBuf),
    /// A file is of another format version.
    #[error("{} has format version {found}; this hub reads version {}", path.display(), segment::VERSION)]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A later hub wrote a record that this one does not know.
    #[error("{}: record kind {kind} is not known to format version {}", path.display(), segment::VERSION)]
    UnknownRecord {
        /// The file.
        path: PathBuf,
        /// The kind.
        kind: u8,
    },
    /// The end of the journal is damaged so that it cannot be continued.
    #[error("the journal is damaged after {}: {}", .0.after, .0.detail)]
    Corrupt(Damage),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// The record does not follow what was appended before: a defect of the caller. Nothing was appended.
    #[error("{what}: {position} does not follow {tail}")]
    Order {
        /// What was appended.
        what: &'static str,
        /// Where.
        position: Position,
        /// The end of the journal.
        tail: Position,
    },
    /// The writer has ended.
    #[error("the journal takes nothing any more: {0}")]
    Failed(Arc<str>),
}

impl Error {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { path: path.to_owned(), source: Arc::new(source) }
    }
}

impl Classified for Error {
    fn reason(&self) -> Reason {
        match self {
            Error::Corrupt(_) => Reason::JournalCorrupt,
            Error::Version { .. } | Error::UnknownRecord { .. } => Reason::Unsupported,
            Error::Locked(_) | Error::Io { .. } | Error::Order { .. } | Error::Failed(_) => Reason::Internal,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Error::Corrupt(damage) => {
                let up_to = damage.up_to.map_or_else(String::new, |position| position.lsn.to_string());
                vec![("from", damage.after.lsn.to_string()), ("to", up_to)]
            }
            _ => Vec::new(),
        }
    }
}

/// A transaction whose end has not been journaled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTransaction {
    /// What began.
    pub transaction: Transaction,
    /// Number of the block that holds its `begin`.
    pub first_block: u64,
    /// Ordinals that are journaled.
    pub ordinals: u64,
}

/// What an opened journal holds.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The complete mark: what PostgreSQL may be told, and where the slot goes on.
    pub complete: Position,
    /// Every lineage, oldest first; empty before the source has ever connected.
    pub lineages: Vec<LineageStart>,
    /// Every version that retained blocks may use, by id.
    pub relations: Vec<Arc<Relation>>,
    /// The version of each table that was announced last, by OID. Their greatest id is the greatest ever used.
    pub current: Vec<Arc<Relation>>,
    /// The transaction that was cut.
    pub open: Option<OpenTransaction>,
    /// Number of the next block.
    pub next_block: u64,
    /// What a replay from log tables need not read, oldest first.
    pub horizons: Vec<Horizon>,
    /// Nothing was there before.
    pub fresh: bool,
    /// Transaction id, with epoch, of the newest transaction: what a 32-bit id is widened with.
    pub last_xid: Option<u64>,
    /// The newest transactions were polled from log tables: the source may have committed others before the LSN of
    /// `complete`, and no slot is to go on there.
    pub polled: bool,
    /// Damage in the last segment. Older segments are checked when they are read.
    pub damage: Vec<Damage>,
    /// Bytes that a crash tore off and that were cut: nobody was ever told of them.
    pub torn_bytes: u64,
    /// Why checkpoints were lost, if they were.
    pub lost_checkpoints: Option<String>,
}

/// What readers, writer and keeper share.
struct Shared {
    options: Options,
    segments_dir: PathBuf,
    map: RwLock<Map>,
    ring: Ring,
    chunks: ChunkCache,
    marks: watch::Sender<Marks>,
    /// The last durable resume point: the tail of the marks, or in eager mode behind it.
    complete: watch::Sender<Position>,
    /// How many lineages there are; counted before the marks move to one.
    lineages: AtomicUsize,
    disk_full: watch::Sender<bool>,
    expiry: Expiry,
    xids: Xids,
    /// Positions behind which snapshots still need the journal.
    reserved: Mutex<HashMap<u64, Position>>,
    _lock: DirLock,
}

/// What the handles share; the last one stops the keeper.
struct Inner {
    shared: Arc<Shared>,
    desk: Arc<Desk>,
    _keeper: Keeper,
}

impl Inner {
    fn shared(&self) -> &Shared {
        &self.shared
    }

    fn desk(&self) -> &Desk {
        &self.desk
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("dir", &self.shared.options.dir).finish_non_exhaustive()
    }
}

/// The journal for everybody but its writer: a [`Feed`](crate::feed::Feed) and the
/// [`Checkpoints`](crate::feed::Checkpoints). Cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal {
    inner: Arc<Inner>,
}

impl Journal {
    fn shared(&self) -> &Shared {
        self.inner.shared()
    }

    fn desk(&self) -> &Desk {
        self.inner.desk()
    }

    /// Whether the writer waits for disk space, and a wake-up whenever that changes.
    pub fn disk_full(&self) -> watch::Receiver<bool> {
        self.shared().disk_full.subscribe()
    }

    /// The complete mark, which is all that PostgreSQL may be told, and a wake-up whenever it moves.
    pub fn complete(&self) -> watch::Receiver<Position> {
        self.shared().complete.subscribe()
    }

    /// Every transaction that is journaled now has an id below `next`; [`Feed::before_xid`](crate::feed::Feed::before_xid)
    /// knows nothing before it is told so once.
    pub fn bound_xids(&self, next: u64) {
        let tail = self.shared().marks.borrow().tail;
        self.shared().xids.bound(tail, next);
    }

    /// No transaction up to `position` has a greater id than `greatest` or those told before.
    pub fn note_xid(&self, position: Position, greatest: u64) {
        self.shared().xids.note(position, greatest);
    }

    /// Every lineage, oldest first.
    pub fn lineages(&self) -> Vec<LineageStart> {
        self.shared().map.read().history.starts().to_vec()
    }

    /// The directory, for [`inspect`].
    pub fn dir(&self) -> &Path {
        &self.shared().options.dir
    }
}

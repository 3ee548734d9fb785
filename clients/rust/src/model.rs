//! What a subscription yields.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;

use crate::{
    Error, Position, Relation, Row, Value, acks::Acks, pb, position::lsn_to_u64, relation::ReplicaIdentity,
    wire::RawChange,
};

/// What happened to a row or a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A new row.
    Insert,
    /// A changed row.
    Update,
    /// A removed row.
    Delete,
    /// All rows of a table removed.
    Truncate,
    /// A row that was already there, from a snapshot.
    Read,
}

impl Operation {
    fn of(number: i32) -> Result<Self, Error> {
        match pb::Operation::try_from(number) {
            Ok(pb::Operation::Insert) => Ok(Operation::Insert),
            Ok(pb::Operation::Update) => Ok(Operation::Update),
            Ok(pb::Operation::Delete) => Ok(Operation::Delete),
            Ok(pb::Operation::Read) => Ok(Operation::Read),
            _ => Err(Error::Protocol(format!("operation {number} of a change is not known to this version"))),
        }
    }

    /// `insert`, `update`, ...
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Insert => "insert",
            Operation::Update => "update",
            Operation::Delete => "delete",
            Operation::Truncate => "truncate",
            Operation::Read => "read",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<Operation> for pb::Operation {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Insert => pb::Operation::Insert,
            Operation::Update => pb::Operation::Update,
            Operation::Delete => pb::Operation::Delete,
            Operation::Truncate => pb::Operation::Truncate,
            Operation::Read => pb::Operation::Read,
        }
    }
}

/// How a changed row stands to the subscription's predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Matches now, did not before.
    Enter,
    /// Matches before and after.
    Stay,
    /// Matched before, does not now.
    Leave,
}

/// The statement behind a truncate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate {
    /// TRUNCATE ... CASCADE.
    pub cascade: bool,
    /// TRUNCATE ... RESTART IDENTITY.
    pub restart_identity: bool,
}

/// What happened to one row, or to a table in the case of a truncate. Rows are decoded when they are asked for.
#[derive(Clone, Debug)]
pub struct Change {
    operation: Operation,
    relation: Arc<Relation>,
    ordinal: u64,
    raw: Option<RawChange>,
    truncate: Option<Truncate>,
}

impl Change {
    pub(crate) fn new(relation: Arc<Relation>, raw: RawChange) -> Result<Self, Error> {
        let operation = Operation::of(raw.operation)?;
        Ok(Change { operation, relation, ordinal: raw.ordinal, raw: Some(raw), truncate: None })
    }

    pub(crate) fn truncate_of(relation: Arc<Relation>, message: &pb::Truncate) -> Self {
        let truncate = Truncate { cascade: message.cascade, restart_identity: message.restart_identity };
        let (operation, ordinal) = (Operation::Truncate, message.ordinal);
        Change { operation, relation, ordinal, raw: None, truncate: Some(truncate) }
    }

    /// What happened.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// `schema.table`, unquoted.
    pub fn table(&self) -> &str {
        self.relation.table()
    }

    /// The table's version that the rows fit.
    pub fn relation(&self) -> &Arc<Relation> {
        &self.relation
    }

    /// Number in its transaction, from 1, counted before filtering; 0 for rows of a snapshot.
    pub fn ordinal(&self) -> u64 {
        self.ordinal
    }

    /// CASCADE and RESTART IDENTITY of a truncate.
    pub fn truncate(&self) -> Option<Truncate> {
        self.truncate
    }

    fn row(&self, row: impl FnOnce(&RawChange) -> Option<(usize, usize)>) -> Result<Option<Row>, Error> {
        let Some(raw) = &self.raw else { return Ok(None) };
        let Some(range) = row(raw) else { return Ok(None) };
        let values = raw.row(&self.relation, range)?;
        Ok(Some(Row { relation: self.relation.clone(), values }))
    }

    /// The row as it was: for a delete, and for an update that PostgreSQL sent the old row or key of.
    ///
    /// # Errors
    /// [`Error::Protocol`] if it does not fit its relation or holds a value that this version does not know.
    pub fn before(&self) -> Result<Option<Row>, Error> {
        self.row(|raw| raw.before)
    }

    /// The row as it is; `None` for a delete or truncate.
    ///
    /// # Errors
    /// As [`Change::before`].
    pub fn after(&self) -> Result<Option<Row>, Error> {
        self.row(|raw| raw.after)
    }

    /// The columns of the replica identity, of the old row where there is one. Empty if the table has none.
    ///
    /// # Errors
    /// As [`Change::before`].
    pub fn key(&self) -> Result<Vec<(String, Value)>, Error> {
        let row = match self.before()? {
            Some(row) => Some(row),
            None => self.after()?,
        };
        let columns = self.relation.columns().iter().zip(row.into_iter().flat_map(|row| row.values));
        let key = columns.filter(|(column, _)| column.in_identity);
        Ok(key.filter_map(|(column, value)| Some((column.name.clone(), value?))).collect())
    }

    /// Columns whose value an update changed; `None` where the old row is not known whole, which needs REPLICA IDENTITY FULL.
    ///
    /// # Errors
    /// As [`Change::before`].
    pub fn changed_columns(&self) -> Result<Option<Vec<&str>>, Error> {
        match &self.raw {
            Some(raw)
                if self.operation == Operation::Update && self.relation.replica_identity() == ReplicaIdentity::Full =>
            {
                raw.changed(&self.relation)
            }
            _ => Ok(None),
        }
    }

    /// How the row stands to the subscription's predicate; `None` without one.
    pub fn transition(&self) -> Option<Transition> {
        match pb::Transition::try_from(self.raw.as_ref()?.transition) {
            Ok(pb::Transition::Enter) => Some(Transition::Enter),
            Ok(pb::Transition::Stay) => Some(Transition::Stay),
            Ok(pb::Transition::Leave) => Some(Transition::Leave),
            _ => None,
        }
    }
}

/// A logical message, from `pg_logical_emit_message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Chosen by its sender.
    pub prefix: String,
    /// Any bytes.
    pub content: Bytes,
    /// Number in its transaction, from 1; 0 outside a transaction.
    pub ordinal: u64,
    /// End of its WAL record, `X/Y`.
    pub lsn: String,
}

impl From<pb::LogicalMessage> for Message {
    fn from(message: pb::LogicalMessage) -> Self {
        let pb::LogicalMessage { prefix, content, ordinal, lsn, .. } = message;
        Message { prefix, content, ordinal, lsn }
    }
}

/// What is known of a transaction from its begin on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Where the commit record starts, `X/Y`; the LSN of a message outside transactions.
    pub commit_lsn: String,
    /// One unbroken course of history.
    pub lineage: String,
    /// 0 for transactions from the slot.
    pub sequence: u32,
    /// PostgreSQL's xid8; 0 for a message outside transactions and for rows of a snapshot.
    pub xid: u64,
    /// By the source's clock; `None` for messages outside transactions and for rows of a snapshot.
    pub commit_time: Option<SystemTime>,
    /// Name of the replication origin; empty for transactions of the source itself.
    pub origin: String,
    /// The snapshot that these rows belong to; empty for transactions.
    pub snapshot_id: String,
}

impl Begin {
    /// Lineage, commit LSN and sequence: the same whenever this transaction comes again.
    pub fn identity(&self) -> (&str, &str, u32) {
        (&self.lineage, &self.commit_lsn, self.sequence)
    }
}

impl TryFrom<pb::Begin> for Begin {
    type Error = Error;

    fn try_from(begin: pb::Begin) -> Result<Self, Error> {
        let commit_time = begin.commit_time.map(time).transpose()?;
        let pb::Begin { commit_lsn, lineage, sequence, xid, origin, .. } = begin;
        Ok(Begin { commit_lsn, lineage, sequence, xid, commit_time, origin, snapshot_id: String::new() })
    }
}

pub(crate) fn time(time: prost_types::Timestamp) -> Result<SystemTime, Error> {
    SystemTime::try_from(time).map_err(|error| Error::Protocol(format!("a time is out of range: {error}")))
}

/// A committed transaction with the changes that the subscription selects of it. A logical message outside transactions comes
/// as one without changes; rows of a snapshot come as some that name it.
#[derive(Debug)]
pub struct Transaction {
    pub(crate) begin: Arc<Begin>,
    pub(crate) position: Position,
    pub(crate) total_changes: u64,
    pub(crate) changes: Vec<Change>,
    pub(crate) messages: Vec<Message>,
    pub(crate) acks: Option<Arc<Acks>>,
    pub(crate) serial: u64,
}

impl Transaction {
    /// xid, commit LSN, commit time and so on, which are also at hand by dereferencing.
    pub fn begin(&self) -> &Arc<Begin> {
        &self.begin
    }

    /// Resume behind this transaction here: [`Start::After`](crate::Start::After).
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Changes in order; a truncate of several tables is one change per table.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Logical messages in it, in order.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Events in the whole transaction, before filtering.
    pub fn total_changes(&self) -> u64 {
        self.total_changes
    }

    /// Everything up to and including this transaction is done. Returns at once;
    /// [`Subscription::flush`](crate::Subscription::flush) waits until it is durable.
    ///
    /// # Errors
    /// [`Error::Misuse`] if the subscription is anonymous.
    pub fn ack(&self) -> Result<(), Error> {
        let acks = self.acks.as_ref().ok_or_else(|| Error::Misuse("the transaction was not handed out".into()))?;
        acks.acknowledge(&self.position, self.serial)
    }
}

impl std::ops::Deref for Transaction {
    type Target = Begin;

    fn deref(&self) -> &Begin {
        &self.begin
    }
}

impl<'a> IntoIterator for &'a Transaction {
    type Item = &'a Change;
    type IntoIter = std::slice::Iter<'a, Change>;

    fn into_iter(self) -> Self::IntoIter {
        self.changes.iter()
    }
}

/// How a stream was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The stream holds what comes after it.
    pub after: Position,
    /// The oldest resume point that the journal retains.
    pub earliest: Option<Position>,
    /// The journal's last resume point then.
    pub tail: Option<Position>,
    /// Fencing token of a named subscriber; 0 for an anonymous one.
    pub session: u64,
    /// Whether the named subscriber is new.
    pub created: bool,
    /// Whether the filter differs from the checkpoint's.
    pub filter_changed: bool,
}

/// Every selected change at or before `position` has been sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Up to here, inclusive.
    pub position: Position,
    /// The journal's last resume point.
    pub tail: Position,
    /// Whether position has reached tail.
    pub caught_up: bool,
    /// Whether the hub streams from the source now.
    pub source_connected: bool,
    /// The hub's clock.
    pub time: Option<SystemTime>,
    /// The durable checkpoint of a named subscriber.
    pub checkpoint: Option<Position>,
    /// When the position falls off the journal at the present rate; `None` while that is far.
    pub expires_in: Option<Duration>,
}

impl Progress {
    /// WAL between the position and the journal's tail, in bytes; 0 across lineages.
    pub fn lag_bytes(&self) -> u64 {
        let bytes = |position: &Position| lsn_to_u64(&position.lsn).unwrap_or(0);
        if self.position.lineage == self.tail.lineage {
            bytes(&self.tail).saturating_sub(bytes(&self.position))
        } else {
            0
        }
    }
}

/// A transaction that a failover took back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retracted {
    /// As it was sent.
    pub begin: Begin,
    /// The resume point that its commit had.
    pub position: Position,
    /// Events in the whole transaction.
    pub changes: u64,
}

/// The source failed over: what the old lineage has from `switch_lsn` on never happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineChanged {
    /// The one that ended.
    pub old_lineage: String,
    /// The one that goes on.
    pub new_lineage: String,
    /// Where they part, `X/Y`.
    pub switch_lsn: String,
    /// Transactions that this subscription may have received, oldest first.
    pub retracted: Vec<Retracted>,
    /// Where the new lineage goes on.
    pub position: Position,
}

/// Changes are missing between `after` (exclusive) and `up_to` (inclusive).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Complete up to here.
    pub after: Position,
    /// Complete again behind here.
    pub up_to: Position,
    /// For people.
    pub reason: String,
}

/// A snapshot starts. Its rows come as transactions with its identifier and changes with [`Operation::Read`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotBegin {
    /// Names it.
    pub snapshot_id: String,
    /// Tables in order, with estimated rows; -1 where there is no estimate.
    pub tables: Vec<(String, i64)>,
    /// Drop the rows that an earlier attempt delivered.
    pub restarted: bool,
}

/// A step of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotEvent {
    /// It starts.
    Begin(SnapshotBegin),
    /// It has read one table to its end.
    TableEnd {
        /// Names it.
        snapshot_id: String,
        /// `schema.table`.
        table: String,
        /// That were sent.
        rows: u64,
    },
    /// It is complete; changes follow from `position`.
    End {
        /// Names it.
        snapshot_id: String,
        /// Changes follow from here (exclusive).
        position: Position,
        /// Of all tables.
        rows: u64,
    },
}

/// Everything as it comes: [`Subscription::next_event`](crate::Subscription::next_event).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A transaction begins. Whether it happened is known with its Commit or Discard.
    Begin(Arc<Begin>),
    /// A change of the open transaction, or a row of a snapshot.
    Change(Change),
    /// A logical message, in the open transaction or outside.
    Message(Message),
    /// The open transaction, or a message outside transactions, is complete; resume behind the position.
    Commit {
        /// Of the transaction.
        begin: Arc<Begin>,
        /// Resume point.
        position: Position,
        /// Events in the whole transaction, before filtering.
        total_changes: u64,
    },
    /// The open transaction never happened; drop what came since its Begin.
    Discard {
        /// Of the transaction.
        begin: Arc<Begin>,
        /// For people.
        reason: String,
    },
    /// How far the stream is.
    Progress(Progress),
    /// A failover.
    TimelineChanged(TimelineChanged),
    /// Changes are missing.
    Gap(Gap),
    /// A snapshot.
    Snapshot(SnapshotEvent),
}

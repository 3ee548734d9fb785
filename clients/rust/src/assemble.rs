//! Puts transactions together from the events of successive streams, and drops what came before.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem,
    sync::Arc,
};

use bytes::Bytes;
use prost::Message as _;

use crate::{
    Error, Position,
    decode::Decoders,
    model::{
        Begin, Change, Event, Gap, Opened, Progress, Retracted, SnapshotBegin, SnapshotEvent, TimelineChanged,
        Transaction, time,
    },
    pb::{self, event::Kind},
    relation::Relation,
    wire::{self, RawChange, RawEvent},
};

/// What comes out.
pub(crate) enum Item {
    Transaction(Transaction),
    Event(Event),
}

/// A transaction between its begin and its commit.
struct Open {
    begin: Arc<Begin>,
    changes: Vec<Change>,
    messages: Vec<crate::Message>,
    bytes: usize,
}

impl Open {
    fn new(begin: Begin) -> Self {
        Open { begin: Arc::new(begin), changes: Vec::new(), messages: Vec::new(), bytes: 0 }
    }

    fn complete(self, position: Position, total_changes: u64) -> Transaction {
        let Open { begin, changes, messages, .. } = self;
        Transaction { begin, position, total_changes, changes, messages, acks: None, serial: 0 }
    }
}

/// What a response used of credit.
#[derive(Default)]
pub(crate) struct Spent {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
}

pub(crate) struct Assembler {
    decoders: Decoders,
    max_transaction_bytes: usize,
    /// Whether events are handed out as they come rather than whole transactions.
    pub(crate) streaming: bool,
    /// The resume point.
    pub(crate) received: Option<Position>,
    /// How the stream was opened, until it is taken.
    pub(crate) opened: Option<Opened>,
    pub(crate) ready: VecDeque<Item>,
    relations: HashMap<u32, Arc<Relation>>,
    open: Option<Open>,
    ordinal: u64,
    skip_until: u64,
    interrupted: Option<(Arc<Begin>, u64)>,
    rows: Option<Open>,
    snapshot_id: String,
    retracted: Vec<Retracted>,
    forks: HashSet<(String, String, String)>,
    spent: Spent,
}

fn unknown(what: &str) -> Error {
    Error::Protocol(format!("the hub sent {what} that this version does not know"))
}

fn misplaced(what: &str) -> Error {
    Error::Protocol(what.into())
}

/// A field that the protocol always sets.
fn set<T>(field: Option<T>, what: &str) -> Result<T, Error> {
    field.ok_or_else(|| Error::Protocol(format!("the hub sent {what} without its content")))
}

fn position(message: Option<pb::Position>) -> Result<Position, Error> {
    set(message, "an event with a position")?.try_into()
}

impl Assembler {
    /// Whether a transaction has begun that is not complete.
    pub(crate) fn is_within_transaction(&self) -> bool {
        self.open.is_some()
    }

    pub(crate) fn new(decoders: Decoders, max_transaction_bytes: usize) -> Self {
        Assembler {
            decoders,
            max_transaction_bytes,
            streaming: false,
            received: None,
            opened: None,
            ready: VecDeque::new(),
            relations: HashMap::new(),
            open: None,
            ordinal: 0,
            skip_until: 0,
            interrupted: None,
            rows: None,
            snapshot_id: String::new(),
            retracted: Vec::new(),
            forks: HashSet::new(),
            spent: Spent::default(),
        }
    }

    /// A new stream: part of a transaction comes again, and relations are numbered anew.
    pub(crate) fn reopen(&mut self) {
        let open = self.open.take().filter(|_| self.streaming);
        if let Some(open) = open {
            self.interrupted = Some((open.begin, self.ordinal.max(self.skip_until)));
        }
        self.rows = None;
        (self.ordinal, self.skip_until) = (0, 0);
        self.relations.clear();
        self.retracted.clear();
    }

    /// A response.
    pub(crate) fn receive(&mut self, response: &Bytes) -> Result<Spent, Error> {
        self.spent = Spent { events: 0, bytes: response.len() as u64 };
        wire::events(response, |event| match event {
            RawEvent::Change(change) => self.change(change),
            RawEvent::Other(bytes) => self.event(bytes),
        })?;
        self.flush_rows();
        if let Some(open) = self.open.as_mut().filter(|_| !self.streaming) {
            open.bytes += response.len();
            if open.bytes > self.max_transaction_bytes {
                return Err(Error::TransactionTooLarge { commit_lsn: open.begin.commit_lsn.clone() });
            }
        }
        Ok(mem::take(&mut self.spent))
    }

    fn push(&mut self, event: Event) {
        self.ready.push_back(Item::Event(event));
    }

    fn event(&mut self, bytes: Bytes) -> Result<(), Error> {
        let size = bytes.len();
        let event =
            pb::Event::decode(bytes).map_err(|error| Error::Protocol(format!("a response is garbled: {error}")))?;
        match event.kind.ok_or_else(|| unknown("an event of a kind"))? {
            Kind::Change(change) => self.change(RawChange::whole(change.encode_to_vec().into())?),
            Kind::Begin(begin) => self.begin(begin),
            Kind::Commit(commit) => self.commit(commit),
            Kind::Progress(progress) => {
                self.free(size);
                self.progress(progress)
            }
            Kind::Relation(relation) => {
                let relation = Relation::new(relation, &self.decoders);
                self.relations.insert(relation.relation_id(), Arc::new(relation));
                Ok(())
            }
            Kind::Truncate(truncate) => self.truncate(&truncate),
            Kind::Message(message) => self.message(message),
            Kind::Discard(discard) => {
                let open = self.open.take().ok_or_else(|| misplaced("discard without begin"))?;
                if self.streaming {
                    self.push(Event::Discard { begin: open.begin, reason: discard.reason });
                }
                Ok(())
            }
            Kind::Opened(opened) => {
                self.free(size);
                self.opened(opened)
            }
            Kind::TimelineChanged(changed) => self.timeline_changed(changed),
            Kind::Gap(gap) => {
                self.between("gap")?;
                let gap = Gap { after: position(gap.after)?, up_to: position(gap.up_to)?, reason: gap.reason };
                self.received = Some(gap.up_to.clone());
                self.push(Event::Gap(gap));
                Ok(())
            }
            Kind::SnapshotBegin(begin) => {
                self.between("snapshot_begin")?;
                self.snapshot_id.clone_from(&begin.snapshot_id);
                let tables = begin.tables.into_iter().map(|table| (table.table, table.estimated_rows)).collect();
                let (snapshot_id, restarted) = (begin.snapshot_id, begin.restarted);
                self.push(Event::Snapshot(SnapshotEvent::Begin(SnapshotBegin { snapshot_id, tables, restarted })));
                Ok(())
            }
            Kind::SnapshotTableEnd(end) => {
                self.between("snapshot_table_end")?;
                let pb::SnapshotTableEnd { snapshot_id, table, rows } = end;
                self.push(Event::Snapshot(SnapshotEvent::TableEnd { snapshot_id, table, rows }));
                Ok(())
            }
            Kind::SnapshotEnd(end) => {
                self.between("snapshot_end")?;
                let position = position(end.position)?;
                self.received = Some(position.clone());
                let (snapshot_id, rows) = (end.snapshot_id, end.rows);
                self.push(Event::Snapshot(SnapshotEvent::End { snapshot_id, position, rows }));
                Ok(())
            }
        }
    }

    /// An event that costs no bytes of credit, with its tag and length in the response.
    fn free(&mut self, size: usize) {
        let framed = 1 + prost::length_delimiter_len(size) + size;
        self.spent.bytes = self.spent.bytes.saturating_sub(framed as u64);
    }

    fn opened(&mut self, message: pb::Opened) -> Result<(), Error> {
        let after = position(message.after)?;
        if self.received.is_none() {
            self.received = Some(after.clone());
        }
        let pb::Opened { session, created, filter_changed, .. } = message;
        let at = |message: Option<pb::Position>| message.map(Position::try_from).transpose();
        let (earliest, tail) = (at(message.earliest)?, at(message.tail)?);
        self.opened = Some(Opened { after, earliest, tail, session, created, filter_changed });
        Ok(())
    }

    fn progress(&mut self, message: pb::Progress) -> Result<(), Error> {
        self.between("progress")?;
        let expires_in = message.expires_in.map(std::time::Duration::try_from).transpose();
        let progress = Progress {
            position: position(message.position)?,
            tail: position(message.tail)?,
            caught_up: message.caught_up,
            source_connected: message.source_connected,
            time: message.time.map(time).transpose()?,
            checkpoint: message.checkpoint.map(Position::try_from).transpose()?,
            expires_in: expires_in.map_err(|error| Error::Protocol(format!("a duration is out of range: {error}")))?,
        };
        self.received = Some(progress.position.clone());
        self.push(Event::Progress(progress));
        Ok(())
    }

    fn between(&mut self, kind: &str) -> Result<(), Error> {
        if self.open.is_some() {
            return Err(Error::Protocol(format!("{kind} inside a transaction")));
        }
        self.flush_rows();
        self.settle_interrupted();
        Ok(())
    }

    fn settle_interrupted(&mut self) {
        if let Some((begin, _)) = self.interrupted.take() {
            self.push(Event::Discard { begin, reason: "it did not come again after a reconnect".into() });
        }
    }

    fn begin(&mut self, begin: pb::Begin) -> Result<(), Error> {
        if self.open.is_some() {
            return Err(misplaced("a transaction begins inside another"));
        }
        self.flush_rows();
        let open = Open::new(begin.try_into()?);
        (self.ordinal, self.skip_until) = (0, 0);
        match self.interrupted.take() {
            Some((begin, ordinal)) if begin.identity() == open.begin.identity() => self.skip_until = ordinal,
            interrupted => {
                self.interrupted = interrupted;
                self.settle_interrupted();
                if self.streaming {
                    self.push(Event::Begin(open.begin.clone()));
                }
            }
        }
        self.open = Some(open);
        Ok(())
    }

    fn commit(&mut self, commit: pb::Commit) -> Result<(), Error> {
        let open = self.open.take().ok_or_else(|| misplaced("commit without begin"))?;
        let position = position(commit.position)?;
        if self.received.as_ref().is_some_and(|received| received.reaches(&position)) {
            tracing::debug!(position = %position, "a transaction came again and is dropped");
            if self.streaming {
                self.push(Event::Discard { begin: open.begin, reason: "it came before".into() });
            }
            return Ok(());
        }
        self.received = Some(position.clone());
        let item = if self.streaming {
            Item::Event(Event::Commit { begin: open.begin, position, total_changes: commit.total_changes })
        } else {
            Item::Transaction(open.complete(position, commit.total_changes))
        };
        self.ready.push_back(item);
        Ok(())
    }

    fn change(&mut self, raw: RawChange) -> Result<(), Error> {
        self.spent.events += 1;
        let relation = self.relation(raw.relation_id)?;
        let ordinal = raw.ordinal;
        let change = Change::new(relation, raw)?;
        match &mut self.open {
            Some(open) if !self.streaming => open.changes.push(change),
            Some(_) if ordinal > self.skip_until => {
                self.ordinal = ordinal;
                self.push(Event::Change(change));
            }
            Some(_) => {}
            None if change.operation() != crate::Operation::Read => {
                return Err(misplaced("a change outside a transaction"));
            }
            None if self.streaming => self.push(Event::Change(change)),
            None => self.snapshot_rows()?.changes.push(change),
        }
        Ok(())
    }

    fn relation(&self, number: u32) -> Result<Arc<Relation>, Error> {
        let relation = self.relations.get(&number).cloned();
        relation.ok_or_else(|| Error::Protocol(format!("relation {number} was not sent")))
    }

    fn alone(lsn: String, position: &Position, snapshot_id: String) -> Open {
        Open::new(Begin {
            commit_lsn: lsn,
            lineage: position.lineage.clone(),
            sequence: position.sequence,
            xid: 0,
            commit_time: None,
            origin: String::new(),
            snapshot_id,
        })
    }

    fn snapshot_rows(&mut self) -> Result<&mut Open, Error> {
        let at = self.received.as_ref().ok_or_else(|| misplaced("a row before opened"))?;
        let snapshot_id = &self.snapshot_id;
        Ok(self.rows.get_or_insert_with(|| Self::alone(at.lsn.clone(), at, snapshot_id.clone())))
    }

    fn flush_rows(&mut self) {
        if let (Some(rows), Some(at)) = (self.rows.take(), &self.received) {
            self.ready.push_back(Item::Transaction(rows.complete(at.clone(), 0)));
        }
    }

    fn truncate(&mut self, truncate: &pb::Truncate) -> Result<(), Error> {
        self.spent.events += 1;
        let relations = truncate.relation_ids.iter().map(|number| self.relation(*number));
        let relations = relations.collect::<Result<Vec<_>, _>>()?;
        let changes = relations.into_iter().map(|relation| Change::truncate_of(relation, truncate));
        match &mut self.open {
            None => return Err(misplaced("a truncate outside a transaction")),
            Some(open) if !self.streaming => open.changes.extend(changes),
            Some(_) if truncate.ordinal > self.skip_until => {
                self.ordinal = truncate.ordinal;
                self.ready.extend(changes.map(|change| Item::Event(Event::Change(change))));
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn message(&mut self, message: pb::LogicalMessage) -> Result<(), Error> {
        self.spent.events += 1;
        match &mut self.open {
            None => self.message_alone(message)?,
            Some(open) if !self.streaming => open.messages.push(message.into()),
            Some(_) if message.ordinal > self.skip_until => {
                self.ordinal = message.ordinal;
                self.push(Event::Message(message.into()));
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn message_alone(&mut self, message: pb::LogicalMessage) -> Result<(), Error> {
        self.between("message")?;
        let position = message.position.clone();
        let position: Position =
            position.ok_or_else(|| misplaced("a transactional message outside a transaction"))?.try_into()?;
        if self.received.as_ref().is_some_and(|received| received.reaches(&position)) {
            return Ok(());
        }
        self.received = Some(position.clone());
        let mut open = Self::alone(message.lsn.clone(), &position, String::new());
        if self.streaming {
            self.push(Event::Message(message.into()));
            self.push(Event::Commit { begin: open.begin, position, total_changes: 1 });
        } else {
            open.messages.push(message.into());
            self.ready.push_back(Item::Transaction(open.complete(position, 1)));
        }
        Ok(())
    }

    fn timeline_changed(&mut self, changed: pb::TimelineChanged) -> Result<(), Error> {
        self.between("timeline_changed")?;
        for entry in changed.retracted {
            let begin = set(entry.begin, "a retracted transaction")?.try_into()?;
            self.retracted.push(Retracted { begin, position: position(entry.position)?, changes: entry.changes });
        }
        if changed.more {
            return Ok(());
        }
        let retracted = mem::take(&mut self.retracted);
        let position = position(changed.position)?;
        self.received = Some(position.clone());
        let pb::TimelineChanged { old_lineage, new_lineage, switch_lsn, .. } = changed;
        let event = TimelineChanged { old_lineage, new_lineage, switch_lsn, retracted, position };
        if !self.forks.contains(&fork(&event)) {
            self.push(Event::TimelineChanged(event));
        }
        Ok(())
    }

    /// The user was told, so the same switch is not told again.
    pub(crate) fn told(&mut self, event: &TimelineChanged) {
        self.forks.insert(fork(event));
    }
}

fn fork(event: &TimelineChanged) -> (String, String, String) {
    (event.old_lineage.clone(), event.new_lineage.clone(), event.switch_lsn.clone())
}

//! An in-memory feed, source and checkpoint store.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::{Error, Hub, Limits, Principal, Session, StartAt, Subscription};
use crate::{
    feed::{
        self, BoxFuture, Checkpoint, CheckpointError, Checkpoints, Cursor, Feed, Fetched, History, Lost, Marks, Source,
        SourceAway, SourceStatus, Start, SubscriberKey, WalPositions, Window,
    },
    lsn::Lsn,
    model::{
        Column, Datum, Lineage, LineageId, OldImage, Operation, Position, Relation, RelationId, ReplicaIdentity,
        Transaction,
    },
    selection::Filter,
    shutdown::Drain,
    wire::{
        block::{Block, BlockBuilder},
        pb,
    },
};

mod client;

pub(super) use client::Client;

pub(super) const DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn lineage() -> Lineage {
    Lineage { system_identifier: 7, timeline: 1, history: String::new(), epoch: 0, switch_lsn: Lsn::ZERO }
}

pub(super) fn at(lsn: u64) -> Position {
    Position::new(lineage().id(), Lsn(lsn))
}

pub(super) struct MemoryFeed {
    blocks: Mutex<Vec<Arc<Block>>>,
    relations: Mutex<Vec<Arc<Relation>>>,
    marks: watch::Sender<Marks>,
    history: Mutex<Arc<History>>,
    /// Blocks below this number are cold.
    pub hot_from: AtomicU64,
    pub fetches: AtomicUsize,
    /// Threads that evaluate predicates wait in front of this block.
    barred: Mutex<Option<u64>>,
    unbarred: Condvar,
    /// Done once, when somebody has looked which relations there are.
    pub then: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    pub window: Mutex<Option<Window>>,
    pub known: AtomicBool,
}

impl MemoryFeed {
    pub fn new() -> Self {
        MemoryFeed {
            blocks: Mutex::default(),
            relations: Mutex::default(),
            marks: watch::Sender::new(Marks { next_block: 0, tail: at(100) }),
            history: Mutex::default(),
            hot_from: AtomicU64::new(0),
            fetches: AtomicUsize::new(0),
            barred: Mutex::default(),
            unbarred: Condvar::new(),
            then: Mutex::default(),
            window: Mutex::default(),
            known: AtomicBool::new(true),
        }
    }

    pub fn append(&self, mut block: Block) {
        let mut blocks = self.blocks.lock();
        block.number = blocks.len() as u64;
        let up_to = block.up_to;
        blocks.push(Arc::new(block));
        let next_block = blocks.len() as u64;
        drop(blocks);
        self.marks.send_modify(|marks| {
            let newer = up_to.lineage != marks.tail.lineage || up_to.order() > marks.tail.order();
            *marks = Marks { next_block, tail: if newer { up_to } else { marks.tail } };
        });
    }

    /// One more relation version is known.
    pub fn declare(&self, relation: Arc<Relation>) {
        self.relations.lock().push(relation);
    }

    /// From now on threads that evaluate predicates wait in front of this block.
    pub fn bar(&self, block: Option<u64>) {
        *self.barred.lock() = block;
        self.unbarred.notify_all();
    }

    pub fn keepalive(&self, lsn: u64) {
        self.marks.send_modify(|marks| marks.tail.lsn = marks.tail.lsn.max(Lsn(lsn)));
    }

    /// Goes on with a standby that has everything up to the switch; its first position.
    pub fn promote(&self, switch: Lsn) -> Position {
        let next_block = self.blocks.lock().len() as u64;
        let first = History::default().start(lineage(), Position::default(), 0, None);
        let mut history = History::of([first]);
        let promoted = Lineage { timeline: 2, history: "promoted".to_owned(), switch_lsn: switch, ..lineage() };
        let start = history.start(promoted, self.tail(), next_block, None);
        let tail = start.tail;
        history.push(start);
        *self.history.lock() = Arc::new(history);
        self.marks.send_modify(|marks| marks.tail = tail);
        tail
    }

    pub fn tail(&self) -> Position {
        self.marks.borrow().tail
    }

    fn get(&self, cursor: &mut Cursor) -> Fetched {
        match self.blocks.lock().get(cursor.block as usize) {
            Some(block) => {
                cursor.block += 1;
                Fetched::Block(block.clone())
            }
            None => Fetched::AtTail,
        }
    }

    fn place(&self, after: Position) -> Cursor {
        let blocks = self.blocks.lock();
        let holds = |block: &Arc<Block>| {
            block.up_to.order() > after.order() || block.up_to.order() == after.order() && block.ends_open
        };
        let block = blocks.iter().position(holds).unwrap_or(blocks.len()) as u64;
        Cursor { block, after }
    }
}

impl Feed for MemoryFeed {
    fn marks(&self) -> watch::Receiver<Marks> {
        self.marks.subscribe()
    }

    fn window(&self) -> Window {
        let window = Window { earliest: at(100), tail: self.tail(), ..Window::default() };
        self.window.lock().unwrap_or(window)
    }

    fn locate(&self, start: Start) -> BoxFuture<'_, Result<Cursor, feed::Error>> {
        let cursor = match start {
            Start::Earliest => Ok(self.place(at(100))),
            Start::Latest => Ok(self.place(self.tail())),
            Start::After(position) if position.lineage != lineage().id() => {
                Err(feed::Error::LineageUnknown(position.lineage))
            }
            Start::After(position) if position.lsn < Lsn(100) => {
                Err(feed::Error::Expired { requested: position, earliest: at(100) })
            }
            Start::After(position) => Ok(self.place(position)),
            Start::AfterLsn(lsn) => Ok(self.place(at(lsn.0))),
            Start::Since(_) => Ok(self.place(at(100))),
        };
        Box::pin(std::future::ready(cursor))
    }

    fn hot(&self, cursor: &mut Cursor) -> Option<Fetched> {
        if thread::current().name() == Some("predicates") {
            let barred = |block: &mut Option<u64>| block.is_some_and(|block| cursor.block >= block);
            self.unbarred.wait_while(&mut self.barred.lock(), barred);
        }
        (cursor.block >= self.hot_from.load(Ordering::Relaxed)).then(|| self.get(cursor))
    }

    fn fetch<'a>(&'a self, cursor: &'a mut Cursor) -> BoxFuture<'a, Result<Fetched, feed::Error>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.fetches.fetch_add(1, Ordering::Relaxed);
            Ok(self.get(cursor))
        })
    }

    fn relation(&self, id: RelationId) -> Option<Arc<Relation>> {
        self.relations.lock().iter().find(|relation| relation.id == id).cloned()
    }

    fn relations(&self) -> Vec<Arc<Relation>> {
        let relations = self.relations.lock().clone();
        let then = self.then.lock().take();
        if let Some(then) = then {
            then();
        }
        relations
    }

    fn lineage(&self) -> Option<Arc<Lineage>> {
        self.known.load(Ordering::Relaxed).then(|| Arc::new(lineage()))
    }

    fn history(&self) -> Arc<History> {
        self.history.lock().clone()
    }

    fn lineages(&self) -> usize {
        self.history.lock().len()
    }
}

/// `(schema, table)` of what is published.
type Published = Option<Arc<Vec<(String, String)>>>;

pub(super) struct MemorySource {
    feed: Arc<MemoryFeed>,
    pub connected: AtomicBool,
    pub wal: Mutex<Option<WalPositions>>,
    pub published: Mutex<Published>,
    pub lost: Mutex<Option<Lost>>,
    pub nudges: AtomicUsize,
}

impl Source for MemorySource {
    fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    fn wal(&self) -> BoxFuture<'_, Result<WalPositions, SourceAway>> {
        let wal = self.wal.lock().ok_or_else(|| SourceAway("stopped by the test".to_owned()));
        Box::pin(std::future::ready(wal))
    }

    fn published(&self) -> Option<Arc<Vec<(String, String)>>> {
        self.published.lock().clone()
    }

    fn lost(&self) -> Option<Lost> {
        self.lost.lock().clone()
    }

    fn nudge(&self) {
        self.nudges.fetch_add(1, Ordering::Relaxed);
        if let Some(wal) = *self.wal.lock() {
            self.feed.keepalive(wal.flush.0);
        }
    }

    fn status(&self) -> SourceStatus {
        SourceStatus::default()
    }
}

#[derive(Default)]
pub(super) struct MemoryCheckpoints {
    map: Mutex<BTreeMap<SubscriberKey, Checkpoint>>,
    pub broken: AtomicBool,
    pub writes: AtomicUsize,
}

impl Checkpoints for MemoryCheckpoints {
    fn get(&self, key: &SubscriberKey) -> Option<Checkpoint> {
        self.map.lock().get(key).cloned()
    }

    fn update<'a>(
        &'a self,
        key: &'a SubscriberKey,
        change: Box<dyn FnOnce(Option<&Checkpoint>) -> Option<Checkpoint> + Send + 'a>,
    ) -> BoxFuture<'a, Result<Option<Checkpoint>, CheckpointError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            if self.broken.load(Ordering::Relaxed) {
                return Err(CheckpointError::new("broken by the test"));
            }
            let mut map = self.map.lock();
            if let Some(next) = change(map.get(key)) {
                self.writes.fetch_add(1, Ordering::Relaxed);
                map.insert(key.clone(), next);
            }
            Ok(map.get(key).cloned())
        })
    }

    fn delete<'a>(&'a self, key: &'a SubscriberKey) -> BoxFuture<'a, Result<bool, CheckpointError>> {
        Box::pin(async move { Ok(self.map.lock().remove(key).is_some()) })
    }

    fn list(&self) -> Vec<(SubscriberKey, Checkpoint)> {
        self.map.lock().iter().map(|(key, checkpoint)| (key.clone(), checkpoint.clone())).collect()
    }
}

pub(super) const LIMITS: Limits = Limits {
    streams: 100,
    subscribers: 100,
    catch_up_readers: 2,
    catch_up_waiting: 100,
    snapshots: 100,
    projection_bytes: 64 << 20,
};

/// A hub in memory, and the writer of its feed.
pub(super) struct World {
    pub hub: Hub,
    pub feed: Arc<MemoryFeed>,
    pub source: Arc<MemorySource>,
    pub checkpoints: Arc<MemoryCheckpoints>,
    pub drain: Drain,
    pub writer: BlockBuilder,
    lsn: u64,
    xid: u64,
}

impl World {
    pub fn new() -> Self {
        World::with(LIMITS)
    }

    pub fn with(limits: Limits) -> Self {
        let feed = Arc::new(MemoryFeed::new());
        let source = Arc::new(MemorySource {
            feed: feed.clone(),
            connected: AtomicBool::new(true),
            wal: Mutex::new(Some(WalPositions { flush: Lsn(100), insert: Lsn(1 << 40) })),
            published: Mutex::default(),
            lost: Mutex::default(),
            nudges: AtomicUsize::new(0),
        });
        let checkpoints = Arc::new(MemoryCheckpoints::default());
        let drain = Drain::new();
        let hub = Hub::new(feed.clone(), source.clone(), checkpoints.clone(), limits, drain.clone());
        let writer = BlockBuilder::new(at(100));
        World { hub, feed, source, checkpoints, drain, writer, lsn: 100, xid: 500 }
    }

    /// Another hub over the same feed and checkpoints, as after a restart.
    pub fn restart(self) -> Self {
        let drain = Drain::new();
        let hub = Hub::new(self.feed.clone(), self.source.clone(), self.checkpoints.clone(), LIMITS, drain.clone());
        World { hub, drain, ..self }
    }

    /// Declares a relation version; every column but `amount`, which is numeric, is text, the first is the key.
    pub fn relation(&self, id: u32, table: &str, columns: &[&str]) -> Arc<Relation> {
        self.version(id, table, columns, ReplicaIdentity::Default)
    }

    /// The same with REPLICA IDENTITY FULL.
    pub fn full_relation(&self, id: u32, table: &str, columns: &[&str]) -> Arc<Relation> {
        self.version(id, table, columns, ReplicaIdentity::Full)
    }

    fn version(&self, id: u32, table: &str, columns: &[&str], replica_identity: ReplicaIdentity) -> Arc<Relation> {
        let column = |(index, name): (usize, &&str)| Column {
            name: (*name).to_owned(),
            type_oid: if *name == "amount" { 1700 } else { 25 },
            type_name: if *name == "amount" { "numeric" } else { "text" }.to_owned(),
            type_modifier: -1,
            in_identity: index == 0 || replica_identity == ReplicaIdentity::Full,
        };
        let relation = Arc::new(Relation {
            id: RelationId(id),
            oid: 1000 + id,
            schema: table.split('.').next().unwrap_or_default().to_owned(),
            table: table.split('.').nth(1).unwrap_or_default().to_owned(),
            replica_identity,
            columns: columns.iter().enumerate().map(column).collect(),
        });
        self.feed.declare(relation.clone());
        relation
    }

    pub fn publish(&self, tables: &[&str]) {
        let pair = |table: &&str| table.split_once('.').map(|(s, t)| (s.to_owned(), t.to_owned()));
        *self.source.published.lock() = Some(Arc::new(tables.iter().filter_map(pair).collect()));
    }

    pub fn begin(&mut self, origin: &str) {
        self.lsn += 10;
        self.xid += 1;
        let transaction = Transaction {
            commit_lsn: Lsn(self.lsn),
            xid: self.xid,
            commit_time: 1_000_000 * self.xid as i64,
            origin: origin.to_owned(),
            ..Transaction::default()
        };
        self.writer.begin(transaction, 0);
    }

    /// An insert, update or delete with these values in its images.
    pub fn change(&mut self, relation: &Relation, operation: Operation, values: &[&str]) {
        let new = (operation != Operation::Delete).then(|| values.iter().map(|v| Datum::Text(v.as_bytes())));
        let old = (operation == Operation::Delete).then(|| {
            let key = values.iter().enumerate();
            let key = key.map(|(i, v)| if i == 0 { Datum::Text(v.as_bytes()) } else { Datum::Null });
            (OldImage::Key, key)
        });
        self.writer.change(relation, operation, Lsn(self.lsn - 5), old, new).expect("a change that can be encoded");
    }

    /// An update or delete with the whole old row, as of a table with REPLICA IDENTITY FULL.
    pub fn change_full(&mut self, relation: &Relation, old: &[&str], new: Option<&[&str]>) {
        let operation = if new.is_some() { Operation::Update } else { Operation::Delete };
        let old = Some((OldImage::Full, old.iter().map(|v| Datum::Text(v.as_bytes()))));
        let new = new.map(|new| new.iter().map(|v| Datum::Text(v.as_bytes())));
        self.writer.change(relation, operation, Lsn(self.lsn - 5), old, new).expect("a change that can be encoded");
    }

    pub fn insert(&mut self, relation: &Relation, values: &[&str]) {
        self.change(relation, Operation::Insert, values);
    }

    pub fn commit(&mut self) -> Position {
        self.lsn += 5;
        self.writer.commit(at(self.lsn));
        at(self.lsn)
    }

    pub fn message_outside(&mut self, prefix: &str, content: &str) -> Position {
        self.lsn += 10;
        let position = at(self.lsn + 1);
        self.lsn += 1;
        self.writer
            .message_outside(prefix, content.as_bytes(), Lsn(self.lsn - 1), position)
            .expect("a message that can be encoded");
        position
    }

    /// Ends the block, if there is anything in it, and makes it durable.
    pub fn seal(&mut self) {
        if !self.writer.is_empty() {
            let block = self.writer.seal();
            self.feed.append(block);
        }
    }

    /// A transaction with one insert, in a block of its own.
    pub fn single(&mut self, relation: &Relation, values: &[&str]) -> Position {
        self.begin("");
        self.insert(relation, values);
        let position = self.commit();
        self.seal();
        position
    }

    pub async fn open(&self, request: Subscription) -> Client {
        Client::new(self.try_open(request).await.expect("a stream"))
    }

    pub async fn try_open(&self, request: Subscription) -> Result<Session, Error> {
        self.hub.subscribe(&Principal::default(), request).await
    }
}

/// From the earliest position, with frequent progress.
pub(super) fn earliest() -> Subscription {
    Subscription {
        start: Some(StartAt::Feed(Start::Earliest)),
        progress_interval: Some(Duration::from_millis(20)),
        ..Subscription::default()
    }
}

pub(super) fn named(name: &str) -> Subscription {
    Subscription { subscriber: Some(name.to_owned()), ..earliest() }
}

pub(super) fn after(position: Position) -> Subscription {
    Subscription { start: Some(StartAt::Feed(Start::After(position))), ..earliest() }
}

pub(super) fn tables(names: &[&str]) -> Filter {
    Filter { tables: names.iter().map(|name| (*name).to_owned()).collect(), ..Filter::default() }
}

pub(super) fn position(position: &Option<pb::Position>) -> Position {
    crate::wire::position_from_pb(position.as_ref().expect("a position")).expect("a valid position")
}

/// A lineage that the feed does not know.
pub(super) fn elsewhere(lsn: u64) -> Position {
    Position::new(LineageId(99), Lsn(lsn))
}

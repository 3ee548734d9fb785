//! What every [`Feed`] must do, whoever implements it. An implementation provides a [`Subject`] and calls [`run`].

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::Record;
use crate::{
    feed::{BoxFuture, Cursor, Error, Feed, Fetched, Start},
    lsn::Lsn,
    model::{Lineage, LineageId, Position, Relation, RelationId, ReplicaIdentity, Transaction},
    wire::block::{BlockBuilder, Span, SpanEnd},
};

/// A feed under test, and the way to fill it.
pub(crate) trait Subject: Send {
    fn feed(&self) -> Arc<dyn Feed>;
    fn append(&mut self, record: Record) -> BoxFuture<'_, ()>;
    /// Returns when everything appended is durable.
    fn flush(&mut self) -> BoxFuture<'_, ()>;
}

/// A transaction, or a message outside of one, as a subscriber puts it together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    pub position: Position,
    pub bytes: Bytes,
}

pub(crate) fn lineage(timeline: u32, switch: u64) -> Lineage {
    let history = if timeline == 1 { String::new() } else { format!("{timeline}\t{switch}") };
    Lineage { system_identifier: 7, timeline, history, epoch: 0, switch_lsn: Lsn(switch) }
}

pub(crate) fn relation(id: u32, oid: u32, table: &str) -> Arc<Relation> {
    let (schema, table, columns) = ("public".into(), table.into(), Vec::new());
    Arc::new(Relation { id: RelationId(id), oid, schema, table, replica_identity: ReplicaIdentity::Default, columns })
}

/// Makes transactions and remembers them.
pub(crate) struct Script {
    pub builder: BlockBuilder,
    pub lineage: LineageId,
    pub lsn: u64,
    pub xid: u64,
    pub units: Vec<Unit>,
    pub marks: Vec<Position>,
    open: Vec<u8>,
}

impl Script {
    pub fn new(position: Position) -> Script {
        Script {
            builder: BlockBuilder::new(position),
            lineage: position.lineage,
            lsn: position.lsn.0,
            xid: 700,
            units: Vec::new(),
            marks: Vec::new(),
            open: Vec::new(),
        }
    }

    /// Opens a transaction; its commit record lies `ahead` of the last position.
    pub fn begin(&mut self, ahead: u64) -> Transaction {
        self.xid += 1;
        self.lsn += ahead;
        let transaction = Transaction {
            commit_lsn: Lsn(self.lsn),
            xid: self.xid,
            commit_time: self.xid as i64 * 1000,
            ..Transaction::default()
        };
        self.builder.begin(transaction.clone(), 0);
        transaction
    }

    pub fn change(&mut self, relation: u32, size: usize) {
        let content: Vec<u8> = (0..size).map(|i| (i as u64 * self.xid) as u8).collect();
        self.builder.truncate(&[relation], false, false, Lsn(self.lsn - 1));
        self.builder.message("m", &content, Lsn(self.lsn - 1)).expect("encoded");
    }

    pub fn commit(&mut self) -> Position {
        self.lsn += 8;
        let position = Position::new(self.lineage, Lsn(self.lsn));
        self.builder.commit(position);
        position
    }

    pub fn message(&mut self) {
        self.lsn += 8;
        let position = Position::new(self.lineage, Lsn(self.lsn));
        self.builder.message_outside("out", b"side", Lsn(self.lsn - 1), position).expect("encoded");
    }

    /// Seals a block and notes what it completes.
    pub fn seal(&mut self) -> Record {
        let block = self.builder.seal();
        let (index, payload) = (block.index().expect("index"), block.payload());
        for span in &index.spans {
            self.open.extend_from_slice(&payload[span.start as usize..span.end as usize]);
            match span.ending {
                SpanEnd::Open => {}
                SpanEnd::Discard => self.open.clear(),
                SpanEnd::Commit { position, .. } | SpanEnd::Message { position } => {
                    self.units.push(Unit { position, bytes: std::mem::take(&mut self.open).into() });
                }
            }
        }
        Record::Block(block)
    }

    /// A keepalive.
    pub fn mark(&mut self, ahead: u64) -> Record {
        self.lsn += ahead;
        let position = Position::new(self.lineage, Lsn(self.lsn));
        self.builder.advance(position);
        self.marks.push(position);
        Record::Mark(position)
    }
}

/// Puts transactions together, as a session does.
pub(crate) struct Reader {
    pub cursor: Cursor,
    after: Position,
    open: Option<Vec<u8>>,
    pub units: Vec<Unit>,
}

impl Reader {
    pub fn new(cursor: Cursor) -> Reader {
        Reader { after: cursor.after, cursor, open: None, units: Vec::new() }
    }

    /// Reads to the tail.
    pub async fn drain(&mut self, feed: &dyn Feed) -> Result<(), Error> {
        while let Fetched::Block(block) = feed.fetch(&mut self.cursor).await? {
            assert_eq!(self.cursor.block, block.number + 1, "the cursor stands behind the block");
            let (index, payload) = (block.index().expect("index"), block.payload());
            for span in &index.spans {
                self.span(span, &payload[span.start as usize..span.end as usize]);
            }
        }
        Ok(())
    }

    fn span(&mut self, span: &Span, bytes: &[u8]) {
        let after = self.after;
        let done = |end: Position| end.lineage == after.lineage && end.order() <= after.order();
        let skipped = span.ending.position().is_some_and(done);
        let message = matches!(span.ending, SpanEnd::Message { .. });
        match &mut self.open {
            None if span.begin_len > 0 || message => self.open = Some(bytes.to_vec()),
            None => assert!(skipped || span.ending == SpanEnd::Discard, "a transaction without its begin"),
            Some(open) => {
                assert_eq!(span.begin_len, 0, "begin inside a transaction");
                open.extend_from_slice(bytes);
            }
        }
        match span.ending {
            SpanEnd::Open => {}
            SpanEnd::Discard => self.open = None,
            SpanEnd::Commit { position, .. } | SpanEnd::Message { position } => {
                let bytes = self.open.take().unwrap_or_default().into();
                if !skipped {
                    self.units.push(Unit { position, bytes });
                }
            }
        }
    }
}

/// Reads to the tail from a cursor.
pub(crate) async fn read_units(feed: &dyn Feed, cursor: Cursor) -> Result<Vec<Unit>, Error> {
    let mut reader = Reader::new(cursor);
    reader.drain(feed).await?;
    Ok(reader.units)
}

async fn units_from(feed: &dyn Feed, start: Start) -> Vec<Unit> {
    let cursor = feed.locate(start.clone()).await.unwrap_or_else(|error| panic!("{start:?}: {error}"));
    read_units(feed, cursor).await.unwrap_or_else(|error| panic!("{start:?}: {error}"))
}

fn after(units: &[Unit], position: Position) -> &[Unit] {
    &units[units.partition_point(|unit| unit.position.order() <= position.order())..]
}

/// Fills a subject with everything a feed can hold: small transactions, several in a block; large ones over many
/// blocks; messages outside transactions; keepalives; a discard.
pub(crate) async fn fill(subject: &mut dyn Subject, script: &mut Script, rounds: usize) {
    for round in 0..rounds {
        for n in 0..3 {
            script.begin(100);
            script.change(1, 20 + round % 50 + n);
            script.commit();
        }
        subject.append(script.seal()).await;
        subject.append(script.mark(24)).await;
        script.begin(400);
        for _ in 0..round % 7 {
            script.change(1 + (round as u32 % 2), 300);
            subject.append(script.seal()).await;
        }
        script.change(1, 10);
        match round % 5 {
            4 => script.builder.discard("test"),
            _ => drop(script.commit()),
        }
        script.message();
        subject.append(script.seal()).await;
    }
    subject.flush().await;
}

/// The whole suite over an empty subject.
pub(crate) async fn run(subject: &mut dyn Subject) {
    let feed = subject.feed();
    let first = lineage(1, 0);
    let unknown = Position::new(LineageId(99), Lsn(5));
    assert!(matches!(feed.locate(Start::After(unknown)).await, Err(Error::LineageUnknown(LineageId(99)))));
    assert!(matches!(feed.fetch(&mut feed.locate(Start::Earliest).await.expect("empty")).await, Ok(Fetched::AtTail)));

    let mut script = Script::new(Position::new(first.id(), Lsn(0x1000)));
    let begins = Position::new(first.id(), Lsn(0x1000));
    subject.append(Record::Lineage(first.clone())).await;
    subject.append(Record::Mark(begins)).await;
    subject.append(Record::Relation(relation(1, 16384, "a"))).await;
    subject.append(Record::Relation(relation(2, 16385, "b"))).await;
    subject.flush().await;
    assert_eq!(feed.lineage().as_deref(), Some(&first));
    assert_eq!(feed.marks().borrow().tail, begins);
    assert_eq!(feed.window().earliest, begins);

    fill(subject, &mut script, 40).await;
    check_all_starts(&*feed, &script, begins).await;
    check_open_transaction(subject, &mut script).await;
    check_all_starts(&*feed, &script, begins).await;
    check_waiting(subject, &mut script).await;
    check_readers(subject, &mut script, begins).await;
}

/// Every start gives exactly what follows it.
pub(crate) async fn check_all_starts(feed: &dyn Feed, script: &Script, begins: Position) {
    let units = &script.units;
    assert_eq!(units_from(feed, Start::Earliest).await, *units);
    assert_eq!(units_from(feed, Start::After(begins)).await, *units);
    let marks = *feed.marks().borrow();
    assert_eq!(feed.window().tail, marks.tail);
    assert!(units_from(feed, Start::Latest).await.is_empty());
    for position in units.iter().map(|unit| unit.position).chain(script.marks.iter().copied()) {
        assert_eq!(units_from(feed, Start::After(position)).await, after(units, position), "after {position}");
        for lsn in [position.lsn.0 - 1, position.lsn.0, position.lsn.0 + 1] {
            let bare = Position::new(position.lineage, Lsn(lsn));
            let cursor = feed.locate(Start::AfterLsn(Lsn(lsn))).await.expect("an LSN in the window");
            assert!(cursor.after.order() <= bare.order(), "{} is beyond {lsn:x}", cursor.after);
            assert_eq!(after(units, cursor.after), after(units, bare), "greatest resume point below {lsn:x}");
            assert_eq!(read_units(feed, cursor).await.expect("readable"), after(units, bare), "after LSN {lsn:x}");
        }
    }
    let early = Position::new(begins.lineage, Lsn(begins.lsn.0 - 1));
    assert!(matches!(feed.locate(Start::After(early)).await, Err(Error::Expired { .. })));
    assert!(matches!(feed.locate(Start::AfterLsn(early.lsn)).await, Err(Error::Expired { .. })));
    check_times(feed, script).await;
}

/// `Since` starts with the first block that holds a commit at or after the time.
async fn check_times(feed: &dyn Feed, script: &Script) {
    let mut cursor = feed.locate(Start::Earliest).await.expect("earliest");
    let mut blocks = Vec::new();
    while let Fetched::Block(block) = feed.fetch(&mut cursor).await.expect("readable") {
        blocks.push(block);
    }
    for time in (700..=script.xid + 2).map(|xid| xid as i64 * 1000 - 1) {
        let first = blocks.iter().find(|block| block.commit_time != 0 && block.commit_time >= time);
        let want = first.map_or(&[][..], |block| after(&script.units, block.after));
        assert_eq!(units_from(feed, Start::Since(time)).await, want, "since {time}");
    }
}

/// A stream that begins while a transaction is open gets all of it once it commits.
async fn check_open_transaction(subject: &mut dyn Subject, script: &mut Script) {
    let feed = subject.feed();
    script.begin(500);
    script.change(1, 50);
    subject.append(script.seal()).await;
    for _ in 0..20 {
        script.change(2, 400);
        subject.append(script.seal()).await;
    }
    subject.flush().await;
    let latest = feed.locate(Start::Latest).await.expect("latest");
    script.change(1, 5);
    let end = script.commit();
    subject.append(script.seal()).await;
    subject.flush().await;
    let units = read_units(&*feed, latest).await.expect("readable");
    assert_eq!(units.iter().map(|unit| unit.position).collect::<Vec<_>>(), [end]);
    assert_eq!(units.last(), script.units.last());
}

/// A position beyond the tail waits there; what ends at or before it is not for this stream.
async fn check_waiting(subject: &mut dyn Subject, script: &mut Script) {
    let feed = subject.feed();
    let mut marks = feed.marks();
    let tail = marks.borrow_and_update().tail;
    let beyond = Position { lsn: Lsn(tail.lsn.0 + 108), ..tail };
    let cursor = feed.locate(Start::After(beyond)).await.expect("beyond the tail");
    assert_eq!(cursor.after, beyond);
    assert_eq!(feed.locate(Start::AfterLsn(beyond.lsn)).await.expect("beyond the tail").after, beyond);
    let mut waiting = cursor.clone();
    assert!(matches!(feed.hot(&mut waiting), Some(Fetched::AtTail)));
    for _ in 0..2 {
        script.begin(100);
        script.change(1, 30);
        script.commit();
    }
    subject.append(script.seal()).await;
    marks.changed().await.expect("the feed lives");
    assert!(matches!(feed.hot(&mut waiting), Some(Fetched::Block(_))), "a moved mark means a readable block");
    subject.flush().await;
    assert_eq!(read_units(&*feed, cursor).await.expect("readable"), script.units[script.units.len() - 1..]);
}

/// Readers at mixed places see one sequence while it grows.
async fn check_readers(subject: &mut dyn Subject, script: &mut Script, begins: Position) {
    let feed = subject.feed();
    let starts: Vec<Position> = [begins].into_iter().chain(script.units.iter().map(|unit| unit.position)).collect();
    let end = watch::Sender::new(None);
    let read = |n: usize| {
        let (feed, start, mut end) = (feed.clone(), starts[n * 7 % starts.len()], end.subscribe());
        async move {
            let mut marks = feed.marks();
            let mut reader = Reader::new(feed.locate(Start::After(start)).await.expect("retained"));
            loop {
                marks.borrow_and_update();
                reader.drain(&*feed).await.expect("readable");
                let last = reader.units.last().map(|unit| unit.position);
                if last.is_some() && last == *end.borrow_and_update() {
                    return (start, reader.units);
                }
                tokio::select! {
                    moved = marks.changed() => moved.expect("the feed lives"),
                    known = end.changed() => known.expect("the test lives"),
                }
            }
        }
    };
    let readers: Vec<_> = (0..1000).map(|n| tokio::spawn(read(n))).collect();
    fill(subject, script, 40).await;
    end.send_replace(script.units.last().map(|unit| unit.position));
    for reader in readers {
        let (start, units) = reader.await.expect("a reader that ends");
        assert_eq!(units, after(&script.units, start));
    }
}

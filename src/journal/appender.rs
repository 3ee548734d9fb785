//! The one way into the journal: checks the order, numbers blocks, queues, and waits where it must.

use std::{sync::Arc, thread::JoinHandle, time::Duration};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::{Error, Horizon, Inner, writer::Entry};
use crate::{
    feed::{History, LineageStart, Marks},
    lsn::Lsn,
    model::{Lineage, Position, Relation},
    wire::block::Block,
};

/// What is appended.
#[derive(Debug)]
pub enum Record {
    /// Events. Its number is assigned here, whatever it was.
    Block(Block),
    /// A relation version, in front of the first block that uses it.
    Relation(Arc<Relation>),
    /// The history that everything after it belongs to. The current one again changes nothing.
    Lineage(Lineage),
    /// The same, where changes are missing in front of what follows: the first resume point behind them, and why.
    Gap(Lineage, Lsn, String),
    /// A resume point without events: what a keepalive says once everything received before it has been appended.
    Mark(Position),
    /// What follows is replayed from log tables and counts only with [`Record::Recovered`]: until then the marks stay
    /// where they are. Again inside a replay it changes nothing.
    Replay,
    /// Ends the replay: everything up to this position counts, and the named slot goes on from there.
    Recovered(Position, String),
    /// What a later replay need not read. At most the tail may lie before its high LSN.
    Horizon(Horizon),
}

/// Between the appender and the writer thread.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Wakes the writer.
    work: Condvar,
    /// Wakes the appender: the queue was taken, or a group is durable.
    moved: Notify,
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<Entry>,
    bytes: usize,
    writing: bool,
    /// Groups that are written and not durable yet: eager mode only.
    unsynced: usize,
    stop: bool,
    failed: Option<Arc<str>>,
}

impl Queue {
    /// Takes everything queued, waiting for something; `false` when asked to stop and nothing is left.
    pub fn take(&self, entries: &mut Vec<Entry>) -> bool {
        let mut state = self.state.lock();
        while state.entries.is_empty() && !state.stop {
            self.work.wait(&mut state);
        }
        if state.entries.is_empty() {
            return false;
        }
        std::mem::swap(&mut state.entries, entries);
        state.bytes = 0;
        state.writing = true;
        drop(state);
        self.moved.notify_waiters();
        true
    }

    /// What was taken is durable, or in eager mode written.
    pub fn done(&self) {
        self.state.lock().writing = false;
        self.moved.notify_waiters();
    }

    /// A group is written; it will be durable later.
    pub fn written(&self) {
        self.state.lock().unsynced += 1;
    }

    /// So many groups that were written are durable.
    pub fn synced(&self, groups: usize) {
        let mut state = self.state.lock();
        state.unsynced = state.unsynced.saturating_sub(groups);
        drop(state);
        self.moved.notify_waiters();
    }

    /// Nothing will be written any more.
    pub fn fail(&self, reason: String) {
        let mut state = self.state.lock();
        state.failed.get_or_insert(reason.into());
        state.writing = false;
        drop(state);
        self.moved.notify_waiters();
    }

    /// Waits; whether the writer was asked to stop.
    pub fn wait_for_stop(&self, timeout: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.stop {
            self.work.wait_for(&mut state, timeout);
        }
        state.stop
    }

    /// Whether the writer is to stop, and until then not to wait for disk space.
    pub fn set_stop(&self, stop: bool) {
        self.state.lock().stop = stop;
        self.work.notify_one();
    }
}

/// The single owner of the journal's end. Dropping it writes what is queued and stops; [`Appender::shutdown`] waits.
#[derive(Debug)]
pub struct Appender {
    queue: Arc<Queue>,
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
    queue_bytes: usize,
    next_block: u64,
    tail: Position,
    open: bool,
    history: Arc<History>,
    replaying: bool,
}

impl Appender {
    pub(super) fn new(queue: Arc<Queue>, inner: Arc<Inner>, thread: JoinHandle<()>) -> Appender {
        let map = inner.shared().map.read();
        let marks = map.marks;
        let history = map.history.clone();
        let open = map.open_since.is_some();
        drop(map);
        let queue_bytes = inner.shared().options.queue_bytes;
        let (next_block, tail) = (marks.next_block, marks.tail);
        Appender { queue, inner, thread: Some(thread), queue_bytes, next_block, tail, open, history, replaying: false }
    }

    /// Appends a record once there is room in the queue; the number of a block, 0 for other records. Durable later, see
    /// [`Appender::flush`] and the marks. Cancel-safe: a call that is dropped has either appended the record whole or
    /// dropped it; who must keep it waits for [`Appender::room`] and then calls [`Appender::push`].
    pub async fn append(&mut self, record: Record) -> Result<u64, Error> {
        self.room().await?;
        self.push(record)
    }

    /// Whether less than `queue_bytes` are queued.
    pub fn try_room(&self) -> bool {
        self.queue.state.lock().bytes <= self.queue_bytes
    }

    /// Returns when less than `queue_bytes` are queued. While the disk is full that may take long. Cancel-safe.
    pub async fn room(&mut self) -> Result<(), Error> {
        self.until(|state| state.bytes <= self.queue_bytes).await
    }

    /// Whether nothing is queued and the writer waits: what is appended now is written at once.
    pub fn is_idle(&self) -> bool {
        let state = self.queue.state.lock();
        state.entries.is_empty() && !state.writing
    }

    /// Returns when nothing is queued and the writer waits, or the journal has failed. Cancel-safe.
    pub async fn idle(&self) {
        self.until(|state| state.entries.is_empty() && !state.writing).await.ok();
    }

    /// Returns when everything appended so far is durable; the marks then. Cancel-safe.
    pub async fn flush(&mut self) -> Result<Marks, Error> {
        self.until(|state| state.entries.is_empty() && !state.writing && state.unsynced == 0).await?;
        Ok(*self.inner.shared().marks.borrow())
    }

    async fn until(&self, reached: impl Fn(&State) -> bool) -> Result<(), Error> {
        loop {
            let moved = self.queue.moved.notified();
            {
                let state = self.queue.state.lock();
                if let Some(reason) = &state.failed {
                    return Err(Error::Failed(reason.clone()));
                }
                if reached(&state) {
                    return Ok(());
                }
            }
            moved.await;
        }
    }

    /// Appends a record at once, whatever is queued.
    pub fn push(&mut self, record: Record) -> Result<u64, Error> {
        let mut number = 0;
        let (entry, bytes) = match record {
            Record::Block(mut block) => {
                self.check_block(&block)?;
                block.number = self.next_block;
                number = block.number;
                let bytes = block.footprint();
                (Entry::Block(Arc::new(block)), bytes)
            }
            Record::Relation(relation) => (Entry::Relation(relation), size_of::<Relation>()),
            Record::Lineage(lineage) => match self.start_of(lineage, None)? {
                Some(start) => (Entry::Lineage(start), 0),
                None => return Ok(0),
            },
            Record::Gap(lineage, up_to, reason) => match self.start_of(lineage, Some((up_to, reason)))? {
                Some(start) => (Entry::Lineage(start), 0),
                None => return Ok(0),
            },
            Record::Replay if self.replaying => return Ok(0),
            Record::Replay => {
                self.check_mark(self.tail)?;
                (Entry::Replay, 0)
            }
            Record::Recovered(position, slot) => {
                if !self.replaying {
                    return Err(Error::Order { what: "the end of a replay", position, tail: self.tail });
                }
                self.check_mark(position)?;
                (Entry::Recovered(position, slot), 0)
            }
            Record::Horizon(horizon) => {
                if self.replaying || self.tail.lineage != horizon.lineage || self.tail.lsn < horizon.high {
                    let position = Position::new(horizon.lineage, horizon.high);
                    return Err(Error::Order { what: "a horizon ahead of the journal", position, tail: self.tail });
                }
                let bytes = horizon.encoded_len();
                (Entry::Horizon(horizon), bytes)
            }
            Record::Mark(position) if position == self.tail => return Ok(0),
            Record::Mark(position) => {
                self.check_mark(position)?;
                (Entry::Mark(position), 0)
            }
        };
        let mut state = self.queue.state.lock();
        if let Some(reason) = &state.failed {
            return Err(Error::Failed(reason.clone()));
        }
        match &entry {
            Entry::Block(block) => {
                self.next_block += 1;
                self.tail = block.up_to;
                self.open = block.ends_open;
            }
            Entry::Lineage(start) => {
                self.tail = start.tail;
                Arc::make_mut(&mut self.history).push(start.clone());
            }
            Entry::Mark(position) => self.tail = *position,
            Entry::Recovered(position, _) => (self.tail, self.replaying) = (*position, false),
            Entry::Replay => self.replaying = true,
            Entry::Relation(_) | Entry::Horizon(_) => {}
        }
        state.entries.push(entry);
        state.bytes += bytes;
        drop(state);
        self.queue.work.notify_one();
        Ok(number)
    }

    /// The end of everything appended, durable or not, counted or not.
    pub fn tail(&self) -> Position {
        self.tail
    }

    /// Whether a replay has begun and not ended.
    pub fn replaying(&self) -> bool {
        self.replaying
    }

    fn check_block(&self, block: &Block) -> Result<(), Error> {
        let order = |what| Err(Error::Order { what, position: block.up_to, tail: self.tail });
        let completes = block.up_to != block.after;
        if self.history.is_empty() {
            return order("a block before the first lineage");
        }
        if block.after.lineage != self.tail.lineage || block.up_to.lineage != self.tail.lineage {
            return order("a block of another lineage");
        }
        if self.open == block.continued_begin().is_empty() {
            return order("a block that does not continue where the last one ended");
        }
        if completes && block.up_to.order() <= self.tail.order() || block.up_to.order() < block.after.order() {
            return order("a block whose transactions end at or before the tail");
        }
        if self.open && block.after != self.tail {
            return order("a block inside a transaction that begins elsewhere");
        }
        Ok(())
    }

    fn check_mark(&self, position: Position) -> Result<(), Error> {
        let order = |what| Err(Error::Order { what, position, tail: self.tail });
        if self.history.is_empty() || position.lineage != self.tail.lineage {
            return order("a mark of another lineage");
        }
        if self.open {
            return order("a mark inside a transaction");
        }
        if position.order() < self.tail.order() {
            return order("a mark before the tail");
        }
        Ok(())
    }

    fn start_of(&self, lineage: Lineage, gap: Option<(Lsn, String)>) -> Result<Option<LineageStart>, Error> {
        let id = lineage.id();
        if self.history.newest().is_some_and(|newest| newest.id == id) {
            return Ok(None);
        }
        let order = |what| Err(Error::Order { what, position: Position::new(id, lineage.switch_lsn), tail: self.tail });
        if self.history.rank(id).is_some() {
            return order("a lineage that was left before");
        }
        if self.open {
            return order("a lineage inside a transaction");
        }
        Ok(Some(self.history.start(lineage, self.tail, self.next_block, gap)))
    }

    /// Makes everything appended durable, stops the writer and writes the catalogue. While the disk is full it does not
    /// wait: what is queued is then lost, as after a crash, and the error says so.
    pub async fn shutdown(mut self) -> Result<(), Error> {
        self.queue.set_stop(true);
        if let Some(thread) = self.thread.take() {
            tokio::task::spawn_blocking(move || thread.join()).await.ok();
        }
        self.inner.desk().settled().await.ok();
        match &self.queue.state.lock().failed {
            Some(reason) => Err(Error::Failed(reason.clone())),
            None => Ok(()),
        }
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        self.queue.set_stop(true);
    }
}

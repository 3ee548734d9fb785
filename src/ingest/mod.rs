//! The loop that carries changes from the slot into the journal: decode, number, encode once, append, and tell
//! PostgreSQL what is durable.
//!
//! pgoutput protocol 1 sends a transaction only after its commit, and BEGIN already names the commit LSN, so changes
//! flow through in blocks and no transaction is ever held in memory. A block is sealed when it is large enough, or when
//! nothing more is to be had at once and the journal's writer is idle: while one fsync runs, the next block fills, which
//! is all the batching there is.
//!
//! What PostgreSQL is told is the *complete* mark, never a position inside a transaction, and never one that is not durable. Keepalives move it over WAL
//! that held nothing for us ([the documentation](https://www.postgresql.org/docs/current/protocol-replication.html)
//! calls their position the current end of WAL; for a logical walsender it is how far it has decoded): a keepalive's
//! position may be acknowledged once everything received before it is durable and the position itself is journaled.

mod gate;
mod relations;
mod replay;
mod resent;
mod take;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::{
    feed,
    journal::{self, Appender, Horizon, Journal, OpenTransaction, Record, Recovered},
    lsn::Lsn,
    metrics,
    model::{Lineage, Position, Relation, Transaction},
    pgoutput,
    postgres::{self, replication::ReplicationStream},
    reason::{Classified, Reason},
    shutdown::Drain,
    wire::{block::BlockBuilder, encode},
};

pub use gate::Gate;
use relations::Versions;
use resent::Resent;

/// A block is sealed at this many payload bytes: with the event that reaches them, and the prefix, one of the allocator's sizes and two
/// HTTP/2 frames of the default size. It is what a stalled subscriber keeps in memory; twice as many send no faster.
const BLOCK_BYTES: usize = 27 * 1024;

/// While changes come as fast as they can be read, PostgreSQL hears of the complete mark this often rather than after
/// every fsync.
const NEWS_INTERVAL: Duration = Duration::from_millis(10);

/// The LSN that START_REPLICATION and status updates may name for a resume point. WAL records start at multiples of 8,
/// and the position of a message outside transactions is its end + 1; rounding down gives back its end, at which the
/// next commit record may start. PostgreSQL skips a transaction whose commit record starts below the given LSN.
pub fn restart_lsn(position: Position) -> Lsn {
    Lsn(position.lsn.0 & !7)
}

/// Why streaming from the source ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection or the server said so.
    #[error(transparent)]
    Replication(#[from] postgres::Error),
    /// A message that is not pgoutput protocol 1; its bytes are to be quarantined.
    #[error("message at {lsn} cannot be decoded: {detail}")]
    Undecodable {
        /// Of the message.
        lsn: Lsn,
        /// What is wrong with it.
        detail: String,
        /// The message.
        bytes: Vec<u8>,
    },
    /// PostgreSQL 18 skips changes when its publication is missing and tells only by a notice.
    #[error("the server skips changes: {0}")]
    PublicationSkipped(String),
    /// A cut transaction came again with other content: discarded, to be read anew from the beginning.
    #[error("transaction {xid} was re-sent with other content after event {compared}; it is read again")]
    Resent {
        /// 64-bit transaction id.
        xid: u64,
        /// Events that were equal.
        compared: u64,
    },
    /// A replay from log tables was begun and cannot be ended: the source has gone on elsewhere, or its log tables have
    /// gone. The journal drops what was replayed when it is opened anew.
    #[error("a replay from the log tables was begun and cannot be ended; the hub has to start again, which drops it")]
    HalfReplayed,
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// The journaled part of a cut transaction cannot be read.
    #[error(transparent)]
    Feed(#[from] feed::Error),
}

impl Classified for Error {
    fn reason(&self) -> Reason {
        match self {
            Error::Replication(error) => error.reason(),
            Error::Undecodable { .. } => Reason::DecodeError,
            Error::PublicationSkipped(_) => Reason::PublicationMissing,
            Error::Resent { .. } | Error::HalfReplayed => Reason::SourceUnavailable,
            Error::Journal(error) => error.reason(),
            Error::Feed(error) => error.reason(),
        }
    }
}

/// Carries one source into one journal, over any number of connections.
pub struct Ingest {
    journal: Journal,
    appender: Appender,
    state: State,
    /// The transaction that the journal's last block leaves open.
    open: Option<OpenTransaction>,
    gate: Option<Gate>,
    horizons: Vec<Horizon>,
    desk: Arc<Desk>,
    /// Of a replay that has not ended.
    replayed: HashSet<u64>,
    /// The newest transactions were polled from log tables, and no replay has ended since.
    polled: bool,
}

/// What others hand to the running loop.
#[derive(Debug, Default)]
pub struct Desk {
    horizons: Mutex<Vec<Horizon>>,
    recorded: Mutex<Option<Horizon>>,
    sampling: AtomicBool,
    sample: Mutex<Sample>,
}

/// Per table (by OID) one transaction and how many of its changes came.
pub type Sample = HashMap<u32, (u64, u64)>;

impl Desk {
    /// Asks for a horizon to be recorded once the journal has reached it.
    pub fn record(&self, horizon: Horizon) {
        self.horizons.lock().push(horizon);
    }

    /// What was counted since the last call, a transaction per table; the first call begins the counting.
    pub fn sample(&self) -> Sample {
        self.sampling.store(true, Ordering::Relaxed);
        std::mem::take(&mut *self.sample.lock())
    }

    /// The last horizon that the journal had reached.
    pub fn recorded(&self) -> Option<Horizon> {
        self.recorded.lock().clone()
    }
}

/// What frames change; apart from the connection, whose buffer they borrow.
struct State {
    builder: BlockBuilder,
    versions: Versions,
    /// Relation versions to be journaled before the next block.
    described: Vec<Record>,
    /// BEGIN has been received, no event of it yet.
    begun: Option<Transaction>,
    in_transaction: bool,
    resent: Option<Resent>,
    scratch: BytesMut,
    /// End of WAL by the last keepalive or skipped transaction, not yet journaled.
    passed: Lsn,
    reply_requested: bool,
    last_xid: u64,
    /// Greatest transaction id received.
    greatest_xid: u64,
    /// A mark of a snapshot was the last event: the block is to end behind it, so that streams can stop there.
    marked: bool,
    transactions: u64,
    events: u64,
    /// Changes of the open transaction by table.
    tally: Vec<(u32, u64)>,
    counting: bool,
    desk: Arc<Desk>,
}

impl State {
    fn new(after: Position, known: &[Arc<Relation>]) -> Self {
        State {
            builder: BlockBuilder::new(after),
            versions: Versions::new(known),
            described: Vec::new(),
            begun: None,
            in_transaction: false,
            resent: None,
            scratch: BytesMut::new(),
            passed: Lsn::ZERO,
            reply_requested: false,
            last_xid: 0,
            greatest_xid: 0,
            marked: false,
            transactions: 0,
            events: 0,
            tally: Vec::new(),
            counting: false,
            desk: Arc::default(),
        }
    }
}

impl Ingest {
    /// Takes over where the journal ended.
    pub fn new(journal: Journal, appender: Appender, recovered: &Recovered) -> Self {
        let mut state = State::new(recovered.complete, &recovered.relations);
        state.last_xid = recovered.last_xid.unwrap_or(0);
        state.resent = recovered.open.clone().map(|open| Resent::new(open, recovered.complete));
        let horizons = recovered.horizons.clone();
        let (desk, replayed, polled) = (state.desk.clone(), HashSet::new(), recovered.polled);
        Ingest { journal, appender, state, open: recovered.open.clone(), gate: None, horizons, desk, replayed, polled }
    }

    /// Where others hand in what the loop takes.
    pub fn desk(&self) -> Arc<Desk> {
        self.desk.clone()
    }

    /// Holds back what this gate does not let pass.
    pub fn behind(self, gate: Option<Gate>) -> Self {
        Ingest { gate, ..self }
    }

    /// Whether something taken has to wait for the gate.
    fn held(&self) -> bool {
        let Some(gate) = &self.gate else { return false };
        let builder = &self.state.builder;
        !builder.is_empty() && builder.completes() && !gate.passes(builder.up_to().lsn)
    }

    /// The position to be journaled for WAL that held nothing for us, once the gate lets it pass.
    fn mark(&self) -> Option<Position> {
        self.state.mark().filter(|position| self.gate.as_ref().is_none_or(|gate| gate.passes(position.lsn)))
    }

    /// Appends at the end of a connection. What the gate holds is given up: it was not acknowledged and comes again.
    async fn append_or_forget(&mut self) -> Result<(), Error> {
        if self.held() { Ok(()) } else { self.append().await }
    }

    /// The complete mark: where the next connection starts.
    pub fn complete(&self) -> Position {
        *self.journal.complete().borrow()
    }

    /// Declares the lineage and the resume point that a new journal begins with.
    pub async fn found(&mut self, lineage: Lineage, consistent_point: Lsn) -> Result<(), Error> {
        let position = Position::new(lineage.id(), consistent_point);
        self.appender.append(Record::Lineage(lineage)).await?;
        self.appender.append(Record::Mark(position)).await?;
        self.appender.flush().await?;
        self.state.builder = BlockBuilder::new(position);
        Ok(())
    }

    /// Follows the server's history: what the journal holds behind the switch is dead from here on. A transaction that was
    /// cut is closed: where it holds on the new history too, the slot sends it again.
    pub async fn follow(&mut self, lineage: Lineage) -> Result<(), Error> {
        self.leave(Record::Lineage(lineage), "the source's history forked before the transaction was complete").await
    }

    /// Goes on behind a gap, on a lineage of its own: everything up to `up_to` that the journal does not have is missing.
    pub async fn skip(&mut self, lineage: Lineage, up_to: Lsn, reason: String) -> Result<(), Error> {
        self.leave(Record::Gap(lineage, up_to, reason), "the rest of the transaction is missing").await?;
        self.polled = false;
        Ok(())
    }

    async fn leave(&mut self, record: Record, why: &str) -> Result<(), Error> {
        self.state.discard_resent(why);
        self.append().await?;
        self.appender.append(record).await?;
        self.appender.flush().await?;
        self.state.builder = BlockBuilder::new(self.appender.tail());
        Ok(())
    }

    /// A 64-bit transaction id that lies near those to come, by which 32-bit ones are widened.
    pub fn widen_near(&mut self, xid: u64) {
        self.state.last_xid = xid;
    }

    /// Makes durable what the last connection left, and turns a transaction that it cut into one to be compared. Must be
    /// called before [`Ingest::complete`] is asked where the next connection starts: what is still being written
    /// would otherwise be sent again.
    pub async fn settle(&mut self) -> Result<(), Error> {
        self.append_or_forget().await?;
        self.appender.flush().await?;
        let tail = self.appender.tail();
        self.state.resent = self.open.clone().map(|open| Resent::new(open, tail));
        self.state.builder = BlockBuilder::new(tail);
        self.state.versions.start_connection();
        self.state.begun = None;
        self.state.tally.clear();
        self.state.in_transaction = false;
        self.state.passed = Lsn::ZERO;
        Ok(())
    }

    /// Streams until the connection ends or draining starts (then `Ok`, with everything received durable and told).
    pub async fn run(
        &mut self,
        stream: &mut ReplicationStream,
        status_interval: Duration,
        nudge: &Notify,
        drain: &Drain,
    ) -> Result<(), Error> {
        let mut complete = self.journal.complete();
        let mut told = None;
        let mut status_due = Instant::now();
        let mut next_news = status_due;
        loop {
            if !self.take_buffered(stream, status_interval, drain).await? {
                break;
            }
            if self.appender.is_idle() && !self.held() && !stream.crowded() {
                self.append().await?;
            }
            let durable = restart_lsn(*complete.borrow_and_update());
            self.take_horizons()?;
            let now = Instant::now();
            let news = told < Some(durable) && (!stream.crowded() || now >= next_news);
            if now >= status_due || self.state.reply_requested || news {
                crate::failpoint::hit("after_fsync_before_status");
                stream.send_status(durable, durable, durable, false).await?;
                told = Some(durable);
                next_news = now + NEWS_INTERVAL;
                self.state.reply_requested = false;
                status_due = now + status_interval;
            }
            let waits = self.held() || self.mark() != self.state.mark();
            let crowded = stream.crowded();
            let unsettled = !self.held() && !crowded && self.unsettled();
            let gate = async {
                match self.gate.as_mut() {
                    Some(gate) => gate.moved().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = drain.wait() => break,
                filled = stream.fill() => filled?,
                () = self.appender.idle(), if unsettled => {}
                () = gate, if waits => {}
                _ = complete.changed(), if !crowded => {}
                () = nudge.notified() => stream.send_status(durable, durable, durable, true).await?,
                () = tokio::time::sleep_until(status_due) => {}
            }
        }
        self.append_or_forget().await?;
        self.appender.flush().await?;
        let durable = restart_lsn(self.complete());
        stream.send_status(durable, durable, durable, false).await?;
        Ok(())
    }

    /// Takes every frame that is already in the receive buffer; false when draining started meanwhile.
    async fn take_buffered(
        &mut self,
        stream: &mut ReplicationStream,
        status_interval: Duration,
        drain: &Drain,
    ) -> Result<bool, Error> {
        loop {
            if let Some(resent) = &mut self.state.resent {
                resent.load(&self.journal).await?;
            }
            let taken = match stream.next_frame()? {
                Some(frame) => self.state.take(frame),
                None => break,
            };
            match taken {
                Ok(()) => {}
                Err(Error::Resent { xid, compared }) => {
                    self.state.discard_resent("the source sent it again with other content");
                    self.append_or_forget().await?;
                    return Err(Error::Resent { xid, compared });
                }
                Err(error) => {
                    self.append_or_forget().await?;
                    return Err(error);
                }
            }
            if self.state.builder.len() >= BLOCK_BYTES || self.state.marked {
                if !self.let_pass(stream, status_interval, drain).await? {
                    return Ok(false);
                }
                self.append_answering(stream, status_interval).await?;
            }
        }
        metrics::add(metrics::SOURCE_TRANSACTIONS, std::mem::take(&mut self.state.transactions));
        metrics::add(metrics::EVENTS_ENCODED, std::mem::take(&mut self.state.events));
        Ok(true)
    }

    /// Waits for the gate while the walsender keeps hearing from us; false when draining started meanwhile.
    async fn let_pass(
        &mut self,
        stream: &mut ReplicationStream,
        status_interval: Duration,
        drain: &Drain,
    ) -> Result<bool, Error> {
        while self.held() {
            let durable = restart_lsn(self.complete());
            let Some(gate) = &mut self.gate else { break };
            tokio::select! {
                () = drain.wait() => return Ok(false),
                () = gate.moved() => {}
                () = tokio::time::sleep(status_interval) => stream.send_status(durable, durable, durable, false).await?,
            }
        }
        Ok(true)
    }

    /// Appends while the walsender keeps hearing from us: the journal may be waiting for disk space for hours.
    async fn append_answering(
        &mut self,
        stream: &mut ReplicationStream,
        status_interval: Duration,
    ) -> Result<(), Error> {
        let durable = restart_lsn(self.complete());
        let append = self.append();
        tokio::pin!(append);
        loop {
            tokio::select! {
                biased;
                appended = &mut append => return appended,
                () = tokio::time::sleep(status_interval) => stream.send_status(durable, durable, durable, false).await?,
            }
        }
    }

    fn unsettled(&self) -> bool {
        !self.state.builder.is_empty() || self.mark().is_some() || !self.state.described.is_empty()
    }

    /// Hands everything taken so far to the journal: relation versions, the block, the position passed. Cancel-safe:
    /// it waits for room first and then hands over all of it at once.
    async fn append(&mut self) -> Result<(), Error> {
        self.appender.room().await?;
        self.state.marked = false;
        for record in std::mem::take(&mut self.state.described) {
            self.appender.push(record)?;
        }
        if !self.state.builder.is_empty() {
            let block = self.state.builder.seal();
            let begins_here = block.continued_begin().is_empty();
            let ends_open = block.ends_open;
            let one_span = !begins_here && ends_open && block.index().is_ok_and(|index| index.spans.len() == 1);
            let number = self.appender.push(Record::Block(block))?;
            let first_block = match &self.open {
                Some(open) if one_span => open.first_block,
                _ => number,
            };
            let open = self.state.builder.open_transaction().filter(|_| ends_open);
            self.open = open.map(|(transaction, ordinals)| OpenTransaction {
                transaction: transaction.clone(),
                first_block,
                ordinals,
            });
            if ends_open {
                crate::failpoint::hit("mid_transaction");
            }
        }
        if let Some(position) = self.mark() {
            self.appender.push(Record::Mark(position))?;
            self.state.builder.advance(position);
        }
        self.journal.note_xid(self.state.builder.up_to(), self.state.greatest_xid);
        Ok(())
    }

    /// Makes everything durable and stops the journal's writer. What no longer fits on a full disk is given up: it has
    /// not been acknowledged and comes again.
    pub async fn close(self) -> Result<(), Error> {
        Ok(self.appender.shutdown().await?)
    }
}

fn undecodable(lsn: Lsn, bytes: &[u8], detail: impl ToString) -> Error {
    Error::Undecodable { lsn, detail: detail.to_string(), bytes: bytes.to_vec() }
}

impl From<(Lsn, &[u8], pgoutput::Error)> for Error {
    fn from((lsn, bytes, error): (Lsn, &[u8], pgoutput::Error)) -> Self {
        undecodable(lsn, bytes, error)
    }
}

impl From<(Lsn, &[u8], encode::Error)> for Error {
    fn from((lsn, bytes, error): (Lsn, &[u8], encode::Error)) -> Self {
        undecodable(lsn, bytes, error)
    }
}

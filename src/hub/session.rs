//! The one session loop. A session owns a cursor and is pulled by the response body: it has no task and no queue, and
//! while nobody pulls it costs nothing but its cursor.
//!
//! [`Session::next`] alternates between [`Session::step`], which never waits, and one of the waits that a step asks for. All state
//! lives in the session and changes in steps only, so dropping a wait loses nothing.

use std::{collections::HashSet, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, Sleep},
};

use super::{
    Error,
    control::{SessionHandle, Shared},
    crossing::Passage,
    governor::Stride,
    group::Group,
    handover::Stamp,
    inner::{Inner, StreamPermit},
    outbox::{Next, Outbox},
    pace::{Pace, Standing},
    router::{self, Route},
    snapshot::{Running, Turn},
    tide::Told,
};
use crate::{
    feed::{self, Crossing, Cursor, Fetched, Frame, Marks, Resume, Snapshot},
    lsn::Lsn,
    metrics,
    model::{LineageId, Position, RelationId},
    reason::Classified,
    selection::Selection,
    shutdown::Ear,
    wire::{block::Block, pb, position_to_pb, token::Token},
};

const MAX_MESSAGE: usize = 4 << 20;
/// How often an idle stream looks whether the source is still there.
pub(super) const IDLE_CHECK: Duration = Duration::from_secs(1);
/// Blocks of which a stream may see nothing before it lets others run.
const BLOCKS_PER_STEP: usize = 16;
const TOUCH: Duration = Duration::from_secs(30);

/// What a client has received before its stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Nothing that the hub need know of.
    Nothing,
    /// It says where it is, and so may have received anything before. That must still hold.
    Position,
    /// The same, but the hub remembers where it was, and so it is the hub's business if that holds no more.
    Checkpoint,
}

/// What opening a stream found out.
pub(super) struct Opening {
    pub hub: Arc<Inner>,
    pub group: Arc<Group>,
    pub shared: Arc<Shared>,
    pub cursor: Cursor,
    pub stop_at: Option<Lsn>,
    pub created: bool,
    pub filter_changed: bool,
    pub max_message_bytes: Option<u32>,
    pub progress_interval: Option<Duration>,
    pub permit: StreamPermit,
    pub claim: Claim,
    /// Only what lies in front of this block, whatever became of it.
    pub until: Option<u64>,
    /// What the start position says beside the LSN.
    pub token: Token,
    pub snapshot: Option<(Snapshot, Option<Arc<Selection>>, watch::Sender<bool>)>,
}

/// The transaction that the next block continues.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Open {
    /// Whether its `begin` is among what was sent or is to be sent.
    pub begun: bool,
    /// Its events that were sent or are to be sent.
    pub sent: u64,
    /// It lies before the start and is left out.
    pub dropped: bool,
}

/// One open stream, pulled by the response body. Dropping it closes the stream.
pub struct Session {
    pub(super) hub: Arc<Inner>,
    pub(super) group: Arc<Group>,
    pub(super) shared: Arc<Shared>,
    pub(super) marks: watch::Receiver<Marks>,
    /// How the group's blocks are found while the stream follows the tail.
    pub(super) route: Option<(Arc<Route>, watch::Receiver<()>)>,
    /// The marks up to which the router says that nothing concerns the stream, while it stands there.
    pub(super) routed: Option<Marks>,
    /// Behind the last block that was taken in.
    pub(super) cursor: Cursor,
    pub(super) reading: Option<JoinHandle<(Cursor, Result<Fetched, feed::Error>)>>,
    /// Read, and not yet taken in.
    pub(super) incoming: Option<Arc<Block>>,
    pub(super) outbox: Outbox,
    /// The resume point behind the block in the outbox.
    pub(super) behind: Option<Position>,
    /// What ends the stream once the outbox is empty.
    pub(super) failed: Option<Error>,
    pub(super) open: Open,
    pub(super) start: Position,
    /// Transactions up to here are left out; `None` once nothing like that can come any more.
    pub(super) skip: Option<Position>,
    /// Whether the transaction that is open at the end of the incoming block comes after `skip`, once that is known.
    pub(super) wanted: Option<bool>,
    pub(super) relations_sent: HashSet<RelationId>,
    /// Every selected change at or before this has been handed out.
    pub(super) passed: Position,
    /// The lineage that it is on.
    pub(super) lineage: LineageId,
    /// Lineages of the feed when `leaving` was found out.
    pub(super) lineages: usize,
    /// Where the lineage ends, if it does.
    pub(super) leaving: Option<Crossing>,
    pub(super) passage: Option<Box<Passage>>,
    pub(super) claim: Claim,
    pub(super) until: Option<u64>,
    pub(super) stamp: Stamp,
    pub(super) running: Option<Box<Running>>,
    pub(super) caught_up: bool,
    pub(super) stride: Stride,
    pub(super) pace: Pace,
    pub(super) max_message: usize,
    pub(super) stop_at: Option<Lsn>,
    pub(super) timer: Option<Pin<Box<Sleep>>>,
    pub(super) draining: Ear,
    /// Once it has waited for the marks.
    pub(super) told: Option<Told>,
    pub(super) next_nudge: Instant,
    next_touch: Option<Instant>,
    opened: Option<Box<pb::Opened>>,
    /// Nothing comes after what was handed out last; why, for the metric.
    ended: Option<&'static str>,
    events_delivered: ::metrics::Counter,
    bytes_delivered: ::metrics::Counter,
    _permit: StreamPermit,
}

/// What a step comes to.
pub(super) enum Step {
    /// Others want the thread too.
    Yield,
    Frame(Frame),
    /// Ended with OK.
    Finished,
    /// Sleep until then, or until something happens.
    Wait {
        until: Instant,
        for_what: For,
    },
    /// Get the block at the cursor from disk.
    Read,
    /// Find out whether the incoming block's open transaction is wanted.
    Decide,
    /// The position to start at was not reached on its lineage: ask whether it still exists.
    Relocate,
    /// Find the end of a transaction with an event of so many bytes, to tell how it can be passed over.
    PassOver(usize),
    /// Cross to the lineage that goes on.
    Cross,
    /// The source cannot give what comes next.
    Lost(feed::Lost),
    /// Get the next rows of the snapshot.
    Pull,
}

/// What a stream sleeps for, apart from its timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// What its client does.
    Client,
    /// The marks.
    Marks,
    /// A block that concerns its group.
    Concern,
    /// Others go first.
    Rest,
}

impl Session {
    pub(super) fn new(opening: Opening) -> Self {
        let Opening { hub, group, shared, cursor, stop_at, token, snapshot, claim, until, .. } = opening;
        let mut stamp = Stamp::new(token);
        stamp.passed(cursor.after);
        let start = Resume { position: cursor.after, snapshot: stamp.encoded() };
        let marks = hub.feed.marks();
        let route = group.route.as_ref().filter(|_| stop_at.is_none() && until.is_none());
        let route = route.map(|route| (route.clone(), route.concerned()));
        let now = Instant::now();
        let opened = pb::Opened {
            after: Some(feed::resume_to_pb(&start)),
            earliest: Some(position_to_pb(hub.feed.window().earliest)),
            tail: Some(position_to_pb(marks.borrow().tail)),
            session: shared.session,
            created: opening.created,
            filter_changed: opening.filter_changed,
        };
        let standing = Standing { position: start, checkpoint: shared.checkpoint(), connected: hub.source.connected() };
        let running = snapshot.map(|(snapshot, only, paused)| {
            Running::new(snapshot, group.selection.clone(), only, paused, tracing::Span::current())
        });
        let (running, begin) = running.unzip();
        if running.as_ref().is_some_and(Running::is_consistent) {
            stamp.begins_with_rows(cursor.after);
        }
        let mut session = Session {
            passed: cursor.after,
            lineage: cursor.after.lineage,
            lineages: usize::MAX,
            leaving: None,
            passage: None,
            claim,
            until,
            stamp,
            running: running.map(Box::new),
            start: cursor.after,
            skip: Some(cursor.after),
            next_touch: shared.key.as_ref().map(|_| now + TOUCH),
            timer: None,
            draining: hub.drain.ear(),
            told: None,
            hub,
            group,
            shared,
            marks,
            route,
            routed: None,
            cursor,
            reading: None,
            incoming: None,
            outbox: Outbox::default(),
            behind: None,
            failed: None,
            // The first block may begin inside a transaction, but only in one that ends at or before the start.
            open: Open { dropped: true, ..Open::default() },
            wanted: None,
            relations_sent: HashSet::new(),
            caught_up: false,
            stride: Stride::default(),
            pace: Pace::new(opening.progress_interval, now, standing),
            max_message: opening.max_message_bytes.map_or(MAX_MESSAGE, |bytes| bytes as usize),
            stop_at,
            next_nudge: now,
            opened: until.is_none().then(|| Box::new(opened)),
            ended: None,
            events_delivered: ::metrics::counter!(metrics::EVENTS_DELIVERED),
            bytes_delivered: ::metrics::counter!(metrics::BYTES_DELIVERED),
            _permit: opening.permit,
        };
        if let Some(begin) = begin {
            session.say(pb::event::Kind::SnapshotBegin(begin));
        }
        session
    }

    /// For the other direction of Consume.
    pub fn handle(&self) -> SessionHandle {
        SessionHandle { shared: self.shared.clone(), hub: self.hub.clone() }
    }

    /// The next framed gRPC message: 5-byte prefix and events. `None`: ended with OK. After an error: nothing more.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Frame, Error>> {
        while self.ended.is_none() {
            let waited = match self.step() {
                Ok(Step::Frame(frame)) => return Some(Ok(frame)),
                Ok(Step::Finished) => {
                    self.ended = Some("OK");
                    return None;
                }
                Ok(Step::Yield) => {
                    tokio::task::yield_now().await;
                    Ok(())
                }
                Ok(Step::Wait { until, for_what }) => self.wait(until, for_what).await,
                Ok(Step::Read) => self.read().await,
                Ok(Step::Decide) => self.decide().await,
                Ok(Step::Relocate) => self.relocate().await,
                Ok(Step::PassOver(bytes)) => self.pass_over(bytes).await,
                Ok(Step::Cross) => self.cross().await,
                Ok(Step::Lost(lost)) => Err(Error::classified(&lost)),
                Ok(Step::Pull) => self.pull().await,
                Err(error) => Err(error),
            };
            if let Err(error) = waited {
                self.ended = Some(error.reason().as_str());
                return Some(Err(error));
            }
        }
        None
    }

    fn step(&mut self) -> Result<Step, Error> {
        if let Some(error) = self.shared.ended() {
            return Err(error);
        }
        if self.hub.drain.started() {
            self.shared.sent(self.passed);
            return Err(Error::draining(self.passed));
        }
        if let Some(opened) = self.opened.take() {
            return Ok(Step::Frame(self.hand_out_event(pb::event::Kind::Opened(*opened))));
        }
        if self.stop_at.is_some_and(|stop| self.stopped(stop)) {
            return Ok(Step::Finished);
        }
        let now = Instant::now();
        if self.next_touch.is_some_and(|touch| now >= touch) {
            self.next_touch = Some(now + TOUCH);
            self.shared.key.iter().for_each(|key| self.hub.touch(key));
        }
        let mut taken_in = 0;
        loop {
            if !self.outbox.is_empty() {
                match self.send() {
                    Next::Frame { frame, events } => return Ok(Step::Frame(self.hand_out(frame, events))),
                    Next::Starved => {
                        return Ok(match self.progress(now) {
                            Some(frame) => Step::Frame(frame),
                            None => self.pause(now, For::Client),
                        });
                    }
                    Next::TooLarge(bytes) => return Ok(Step::PassOver(bytes)),
                    Next::Malformed => return Err(Error::corrupt(self.cursor.block, "an event does not decode")),
                    Next::Empty => continue,
                }
            }
            if let Some(behind) = self.behind.take() {
                self.pass(behind);
            }
            if let Some(error) = self.failed.take() {
                self.shared.sent(self.passed);
                return Err(error);
            }
            self.look_at_history();
            if self.at_departure()? {
                return Ok(Step::Cross);
            }
            let number = self.incoming.as_ref().map_or(self.cursor.block, |block| block.number);
            if self.until.is_some_and(|until| number >= until) {
                return Ok(Step::Finished);
            }
            if (self.pace.may_be_due(now) || self.at_stop())
                && let Some(frame) = self.progress(now)
            {
                return Ok(Step::Frame(frame));
            }
            match self.snapshot_turn()? {
                Turn::Pass => {}
                Turn::Again => continue,
                Turn::Step(step) => return Ok(step),
            }
            if let Some(block) = self.incoming.take() {
                if taken_in == BLOCKS_PER_STEP {
                    self.incoming = Some(block);
                    return Ok(Step::Yield);
                }
                taken_in += 1;
                if let Some(step) = self.missing(&block)? {
                    self.incoming = Some(block);
                    return Ok(step);
                }
                self.stride.take(&block, now);
                self.take_in(&block)?;
                continue;
            }
            if self.reading.is_some() {
                return Ok(Step::Read);
            }
            if self.stride.must_rest(&self.hub.governor, now) {
                return Ok(self.pause(now, For::Rest));
            }
            if let Some(tail) = self.look_ahead() {
                return Ok(self.rest(now, tail, For::Concern));
            }
            match self.hub.feed.hot(&mut self.cursor) {
                Some(Fetched::Block(block)) => self.incoming = Some(block),
                Some(Fetched::AtTail) => {
                    let marks = *self.marks.borrow_and_update();
                    if marks.next_block > self.cursor.block {
                        return Ok(Step::Read);
                    }
                    if self.hub.feed.lineages() != self.lineages && self.until.is_none() {
                        continue;
                    }
                    if self.skip.is_some_and(|skip| skip.lineage != marks.tail.lineage) {
                        return Ok(Step::Relocate);
                    }
                    return Ok(self.rest(now, Some(marks.tail), For::Marks));
                }
                None => {
                    self.stride.reads_files();
                    return Ok(Step::Read);
                }
            }
        }
    }

    /// Passes over blocks that do not concern the group. `Some`: there is nothing to read before the router wakes the
    /// stream, and where the tail is, if that is known.
    fn look_ahead(&mut self) -> Option<Option<Position>> {
        self.routed = None;
        if self.running.is_some() || self.skip.is_some() || self.open.dropped || self.leaving.is_some() {
            return None;
        }
        let (route, concerned) = self.route.as_mut()?;
        concerned.mark_unchanged();
        let next = route.next(self.cursor.block);
        if self.hub.feed.lineages() != self.lineages {
            return None;
        }
        match next {
            router::Next::Unknown => None,
            router::Next::Block(number) => {
                self.pass_over_blocks(number);
                None
            }
            router::Next::Tail(marks) => {
                self.pass_over_blocks(marks.next_block);
                self.routed = Some(marks);
                Some(Some(marks.tail))
            }
            router::Next::Lagging(marks) => {
                self.pass_over_blocks(marks.next_block);
                if marks.tail.lineage == self.lineage && !self.outbox.begun() {
                    self.pass(marks.tail);
                }
                Some(None)
            }
            router::Next::Ahead => {
                let marks = *self.marks.borrow();
                Some((marks.next_block <= self.cursor.block).then_some(marks.tail))
            }
        }
    }

    /// The router says that no block before this number concerns the group. So either a transaction of which something was
    /// sent goes on behind them all, or none ends in them.
    fn pass_over_blocks(&mut self, next: u64) {
        if next > self.cursor.block {
            self.cursor.block = next;
            if !self.open.begun {
                self.open = Open::default();
            }
        }
    }

    fn send(&mut self) -> Next {
        let next = self.shared.credits(|credits| self.outbox.next(self.max_message, credits));
        if let Some(reached) = self.outbox.take_reached() {
            self.crossed(reached);
            self.pass(reached);
            self.shared.sent(reached);
        }
        next
    }

    /// Everything up to there has been handed out.
    pub(super) fn pass(&mut self, position: Position) {
        if position.lineage != self.passed.lineage || position.order() > self.passed.order() {
            self.passed = position;
            self.stamp.passed(position);
        }
    }

    pub(super) fn hand_out(&self, frame: Frame, events: u32) -> Frame {
        self.events_delivered.increment(u64::from(events));
        self.bytes_delivered.increment(frame.len() as u64);
        frame
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(reading) = &self.reading {
            reading.abort();
        }
        self.shared.close_orders();
        if let Some(key) = &self.shared.key {
            self.hub.registry.close(key, &self.shared);
            self.hub.touch(key);
        }
        let reason = self.ended.unwrap_or("CANCELLED");
        ::metrics::counter!(metrics::STREAMS_ENDED, "reason" => reason).increment(1);
    }
}

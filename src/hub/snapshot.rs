//! A session that sends rows which were there before its changes: in front of them, or in chunks between them.

use std::{collections::HashMap, sync::Arc};

use bytes::BytesMut;
use prost::Message as _;
use tokio::{sync::watch, time::Instant};

use super::{
    Error, RowFormat, Session,
    frames::{self, Message},
    group::Plan,
    outbox::Item,
    rows::{self, Unwritable},
    session::{For, Step},
};
use crate::{
    feed::{
        self, Batch, Chunk, Crossing, Frame, MARK_PREFIX, Piece, Resume, Rows, Snapshot, SnapshotError, SnapshotMode,
        resume_to_pb,
    },
    lsn::Lsn,
    model::{Operation, Relation, RelationId},
    selection::Selection,
    wire::{
        block::{Block, SpanEnd},
        encode, pb,
        token::Progress,
    },
};

/// Places along the way of an incremental snapshot that are remembered.
const TRAIL: usize = 256;

/// A snapshot in a stream.
pub(super) struct Running {
    id: String,
    mode: SnapshotMode,
    run: String,
    selection: Arc<Selection>,
    /// Of a backfill, which the rows have to pass too.
    only: Option<Arc<Selection>>,
    only_plans: HashMap<RelationId, Arc<Plan>>,
    paused: watch::Sender<bool>,
    rows: Box<dyn Rows>,
    plans: HashMap<RelationId, Arc<Plan>>,
    /// Pulled, and not yet taken in; the error ends the stream.
    piece: Option<Result<Option<Piece>, SnapshotError>>,
    /// The stream stands behind this mark and must not go on before it has what belongs there.
    at_mark: Option<u64>,
    /// Rows sent of each table that has not ended.
    sent: HashMap<String, u64>,
    total: u64,
    /// What positions say once the outbox is empty.
    reached: Option<Option<Progress>>,
    /// Incremental: where the rows stood along the stream, oldest first.
    trail: Vec<Progress>,
    /// Names the stream in the log; nobody is in it while a stream is polled.
    span: tracing::Span,
}

/// What a snapshot makes the session do.
pub(super) enum Turn {
    /// Go on as if there were none.
    Pass,
    /// Look again.
    Again,
    Step(Step),
}

fn plan(
    plans: &mut HashMap<RelationId, Arc<Plan>>,
    relation: &Arc<Relation>,
    selection: &Selection,
) -> Result<Arc<Plan>, Error> {
    if let Some(plan) = plans.get(&relation.id) {
        return Ok(plan.clone());
    }
    let plan = Arc::new(Plan::new(relation.clone(), selection)?);
    plans.insert(relation.id, plan.clone());
    Ok(plan)
}

/// Appends a row if the plan selects it; whether it does.
fn append(out: &mut BytesMut, framed: &[u8], plan: &Plan, format: RowFormat) -> Result<bool, Error> {
    if !plan.rules.passes(Operation::Read) {
        return Ok(false);
    }
    rows::change(out, framed, plan, format, Lsn::ZERO).map_err(|error| match error {
        Unwritable::Malformed => Error::internal("a row does not decode"),
        Unwritable::Undecided(error) => error.into(),
    })
}

/// Those rows of a batch that are selected, as the plan wants them, and how many they are. `only`: has to select them too.
fn selected(batch: &Batch, plan: &Plan, only: Option<&Plan>, format: RowFormat) -> Result<(Frame, u32), Error> {
    let mut message = Message::new();
    let mut events = 0;
    let mut rest = frames::payload(&batch.message);
    let mut unused = BytesMut::new();
    while !rest.is_empty() {
        let event = frames::first(rest).ok_or_else(|| Error::internal("a row does not decode"))?;
        let row = &rest[..event.len];
        rest = &rest[event.len..];
        unused.clear();
        let wanted = match only {
            Some(only) => append(&mut unused, row, only, RowFormat::Compact)?,
            None => true,
        };
        events += u32::from(wanted && append(&mut message.0, row, plan, format)?);
    }
    Ok((message.finish(), events))
}

impl Running {
    /// `span`: names the stream in the log.
    pub fn new(
        snapshot: Snapshot,
        selection: Arc<Selection>,
        only: Option<Arc<Selection>>,
        paused: watch::Sender<bool>,
        span: tracing::Span,
    ) -> (Self, pb::SnapshotBegin) {
        let Snapshot { id, mode, tables, restarted, progress, run, rows, .. } = snapshot;
        let id = format!("{id:016x}");
        let tables = tables.into_iter().map(|(table, estimated_rows)| pb::SnapshotTable { table, estimated_rows });
        let begin = pb::SnapshotBegin {
            snapshot_id: id.clone(),
            mode: match mode {
                SnapshotMode::Consistent => pb::SnapshotMode::Consistent,
                SnapshotMode::Incremental => pb::SnapshotMode::Incremental,
            } as i32,
            tables: tables.collect(),
            restarted,
        };
        let mut sent = HashMap::new();
        if progress.table_rows > 0 {
            sent.insert(progress.table.clone(), progress.table_rows);
        }
        let running = Running {
            id,
            mode,
            run: format!("{run:016x}"),
            selection,
            only,
            only_plans: HashMap::new(),
            paused,
            rows,
            plans: HashMap::new(),
            piece: None,
            at_mark: None,
            sent,
            total: progress.rows,
            reached: None,
            trail: vec![progress],
            span,
        };
        (running, begin)
    }

    fn plan(&mut self, relation: &Arc<Relation>) -> Result<Arc<Plan>, Error> {
        plan(&mut self.plans, relation, &self.selection)
    }

    /// Of a backfill.
    fn only(&mut self, relation: &Arc<Relation>) -> Result<Option<Arc<Plan>>, Error> {
        self.only.as_ref().map(|only| plan(&mut self.only_plans, relation, only)).transpose()
    }

    /// A chunk was sent. Of a long way every second step is forgotten.
    fn remember(&mut self, progress: Progress) {
        if self.trail.len() == TRAIL {
            let mut number = 0;
            self.trail.retain(|_| {
                number += 1;
                number % 2 == 1
            });
        }
        self.trail.push(progress);
    }

    /// Goes back to where the rows stood at the crossing: what chunks behind it hold may never have happened, and what they
    /// do not hold may be there again.
    fn rewind(&mut self, crossing: &Crossing) -> Option<Progress> {
        let kept = self.trail.iter().rposition(|progress| crossing.holds_lsn(progress.at)).unwrap_or(0);
        self.trail.truncate(kept + 1);
        let progress = self.trail.last()?.clone();
        let run = self.rows.rewind(progress.clone())?;
        self.run = format!("{run:016x}");
        (self.piece, self.at_mark, self.reached) = (None, None, None);
        self.total = progress.rows;
        self.sent = HashMap::from([(progress.table.clone(), progress.table_rows)]);
        Some(progress)
    }

    /// Whether nothing more is to be read.
    pub fn pause(&mut self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// `schema.table` of a relation version of which rows were sent.
    pub fn table(&self, relation: RelationId) -> Option<String> {
        self.plans.get(&relation).map(|plan| plan.relation.qualified_name())
    }

    /// Whether all rows come in front of all changes.
    pub fn is_consistent(&self) -> bool {
        self.mode == SnapshotMode::Consistent
    }

    /// Whether a piece would be of use now. Chunks are not read while they are paused, and those that were have their place.
    pub fn wants_piece(&self) -> bool {
        self.piece.is_none() && !(self.is_consistent() && *self.paused.borrow())
    }

    /// Waits for the next piece. Cancel-safe.
    pub async fn pull(&mut self) {
        if self.piece.is_none() {
            self.piece = Some(self.rows.next().await);
        }
    }

    /// The mark of this snapshot that the block ends with.
    fn mark(&self, block: &Block) -> Result<Option<u64>, Error> {
        let index = block.index().map_err(|error| Error::corrupt(block.number, &error.to_string()))?;
        let payload = frames::payload(block.message());
        for (place, span) in index.spans.iter().enumerate() {
            if !matches!(span.ending, SpanEnd::Message { .. }) {
                continue;
            }
            let event = payload.get(span.start as usize..span.end as usize).and_then(frames::first);
            let message = event.and_then(|event| pb::LogicalMessage::decode(event.body).ok());
            let Some(message) = message.filter(|message| message.prefix == MARK_PREFIX) else { continue };
            let content = std::str::from_utf8(&message.content).unwrap_or_default();
            let Some((_, number)) = content.split_once(':').filter(|(run, _)| *run == self.run) else { continue };
            return match number.parse() {
                Ok(number) if place + 1 == index.spans.len() => Ok(Some(number)),
                _ => Err(Error::snapshot_interrupted("a mark was not at the end of its block")),
            };
        }
        Ok(None)
    }
}

impl Session {
    /// What the snapshot wants before the stream goes on. The outbox is empty.
    pub(super) fn snapshot_turn(&mut self) -> Result<Turn, Error> {
        self.take_orders();
        if !self.outbox.is_empty() {
            return Ok(Turn::Again);
        }
        let Some(running) = &mut self.running else { return Ok(Turn::Pass) };
        if let Some(progress) = running.reached.take() {
            let (id, total) = (running.id.clone(), running.total);
            let ended = progress.is_none();
            match progress {
                Some(mut progress) => {
                    progress.at = self.passed.lsn;
                    if self.stamp.owe(progress.clone()) {
                        running.remember(progress);
                    }
                }
                None => self.stamp.update(|token| token.progress = None),
            }
            self.pace.at_once();
            if ended {
                self.running = None;
                self.shared.set_snapshot(None);
                self.pace.again();
                let position = Some(resume_to_pb(&self.resume()));
                self.say(pb::event::Kind::SnapshotEnd(pb::SnapshotEnd { snapshot_id: id, position, rows: total }));
            }
            return Ok(Turn::Again);
        }
        if let Some(leaving) = self.leaving.as_ref().filter(|_| running.mode == SnapshotMode::Consistent) {
            self.stamp.departs(leaving)?;
        }
        match running.mode {
            SnapshotMode::Consistent => match running.piece.take() {
                None if self.hub.feed.window().is_behind(self.passed) => {
                    let (requested, earliest) = (self.passed, self.hub.feed.window().earliest);
                    Err(feed::Error::Expired { requested, earliest }.into())
                }
                None if *running.paused.borrow() => Ok(Turn::Step(self.pause(Instant::now(), For::Client))),
                None => Ok(Turn::Step(Step::Pull)),
                Some(Err(error)) => Err(Error::classified(&error)),
                Some(Ok(piece)) => {
                    self.consistent(piece)?;
                    Ok(Turn::Again)
                }
            },
            SnapshotMode::Incremental => self.incremental(),
        }
    }

    fn consistent(&mut self, piece: Option<Piece>) -> Result<(), Error> {
        match piece {
            Some(Piece::Rows { relation, batch }) => self.send_rows(&relation, batch),
            Some(Piece::TableEnd { relation }) => self.end_table(&relation),
            Some(Piece::Chunk(_) | Piece::Void(_)) => Err(Error::internal("a chunk in a consistent snapshot")),
            None => {
                if let Some(running) = &mut self.running {
                    running.reached = Some(None);
                }
                Ok(())
            }
        }
    }

    fn incremental(&mut self) -> Result<Turn, Error> {
        let Some(running) = &mut self.running else { return Ok(Turn::Pass) };
        let piece = match &running.piece {
            Some(Err(error)) => return Err(Error::classified(error)),
            Some(Ok(None)) => return Err(Error::snapshot_interrupted("the rows ended before their tables did")),
            Some(Ok(Some(piece))) => piece,
            None if running.at_mark.is_some() => return Ok(Turn::Step(Step::Pull)),
            None => return Ok(Turn::Pass),
        };
        match (piece, running.at_mark) {
            (Piece::Void(mark), at) => {
                if at.is_some_and(|at| at <= *mark) {
                    running.at_mark = None;
                }
                running.piece = None;
                Ok(Turn::Again)
            }
            (Piece::Chunk(chunk), Some(at)) if chunk.mark == at => {
                running.at_mark = None;
                if let Some(Ok(Some(Piece::Chunk(chunk)))) = running.piece.take() {
                    self.send_chunk(chunk)?;
                }
                Ok(Turn::Again)
            }
            (Piece::Chunk(chunk), Some(at)) if chunk.mark > at => {
                running.at_mark = None;
                Ok(Turn::Again)
            }
            (Piece::Chunk(_), Some(_)) => Err(Error::snapshot_interrupted("the mark of a chunk has not come")),
            (Piece::Chunk(_), None) => Ok(Turn::Pass),
            (Piece::Rows { .. } | Piece::TableEnd { .. }, _) => Err(Error::internal("rows without a mark")),
        }
    }

    fn send_chunk(&mut self, chunk: Chunk) -> Result<(), Error> {
        if let Some(relation) = &chunk.relation {
            for batch in chunk.batches {
                self.send_rows(relation, batch)?;
            }
        }
        let Some(running) = &mut self.running else { return Ok(()) };
        let mut progress = chunk.progress;
        progress.rows = running.total;
        let unfinished = chunk.ended.is_empty();
        progress.table_rows = running.sent.get(&progress.table).copied().filter(|_| unfinished).unwrap_or(0);
        running.reached = Some((!chunk.last).then_some(progress));
        chunk.ended.iter().try_for_each(|relation| self.end_table(relation))
    }

    /// A table without rows is described too: whoever writes a file of it needs its columns.
    fn end_table(&mut self, relation: &Arc<Relation>) -> Result<(), Error> {
        self.describe(relation)?;
        let Some(running) = &mut self.running else { return Ok(()) };
        let table = relation.qualified_name();
        let rows = running.sent.remove(&table).unwrap_or(0);
        let snapshot_id = running.id.clone();
        self.say(pb::event::Kind::SnapshotTableEnd(pb::SnapshotTableEnd { snapshot_id, table, rows }));
        Ok(())
    }

    /// Sends the relation version that rows are positional against, once.
    fn describe(&mut self, relation: &Arc<Relation>) -> Result<(), Error> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let plan = running.plan(relation)?;
        if self.relations_sent.insert(relation.id) {
            let mut told = Message::new();
            told.0.extend_from_slice(&plan.event);
            self.outbox.push(Item { message: told.finish(), events: 1, counted: 0, begun: None, reached: None });
        }
        Ok(())
    }

    /// Puts rows into the outbox as filter and format want them.
    fn send_rows(&mut self, relation: &Arc<Relation>, batch: Batch) -> Result<(), Error> {
        let format = self.group.format;
        let Some(running) = &mut self.running else { return Ok(()) };
        let plan = running.plan(relation)?;
        let only = running.only(relation)?;
        let untouched = format == RowFormat::Compact
            && plan.rules.passes(Operation::Read)
            && plan.rules.columns.is_none()
            && plan.rules.predicate.is_none()
            && only.is_none();
        let (message, events) = match untouched {
            true => (batch.message, batch.rows),
            false => selected(&batch, &plan, only.as_deref(), format)?,
        };
        if events == 0 {
            return Ok(());
        }
        *running.sent.entry(relation.qualified_name()).or_default() += u64::from(events);
        running.total += u64::from(events);
        self.describe(relation)?;
        self.outbox.push(Item { message, events, counted: events.into(), begun: None, reached: None });
        Ok(())
    }

    /// Puts one event of the session's own into the outbox.
    pub(super) fn say(&mut self, kind: pb::event::Kind) {
        let mut message = Message::new();
        encode::event(&mut message.0, kind);
        self.outbox.push(Item { message: message.finish(), events: 1, counted: 0, begun: None, reached: None });
    }

    /// A block was taken in: where the stream has to stop behind it.
    pub(super) fn look_for_mark(&mut self, block: &Block) -> Result<(), Error> {
        if let Some(running) = self.running.as_mut().filter(|running| running.mode == SnapshotMode::Incremental) {
            running.at_mark = running.mark(block)?.or(running.at_mark);
        }
        Ok(())
    }

    /// The lineage is left, and with it the marks and what was read behind the crossing.
    pub(super) fn rewind_rows(&mut self, crossing: &Crossing) {
        let Some(running) = &mut self.running else { return };
        if let Some(progress) = running.rewind(crossing) {
            let (id, table, rows) = (&running.id, &progress.table, progress.rows);
            running.span.in_scope(|| tracing::info!(id, table, rows, "rows are read again from here"));
            self.stamp.update(|token| token.progress = Some(progress));
        }
    }

    /// Where the stream stands, with what else is needed to go on from there.
    pub(super) fn resume(&self) -> Resume {
        Resume { position: self.passed, snapshot: self.stamp.encoded() }
    }
}

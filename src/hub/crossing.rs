//! Where a lineage ends, its streams cross to the next one: a transaction that was half sent is discarded, the client is
//! told which transactions never happened, and only then comes anything new.
//!
//! What was lost is not kept anywhere apart: it is read from the feed again, where it still lies dead, and projected with
//! the stream's own selection. So the list is exact whatever the filter, and as long as it must be: it goes out in
//! parts.

use super::{
    Error, Session,
    frames::{Kind, Message, first, payload},
    outbox::Item,
    projection::{Cut, Projection},
    session::{Claim, Open},
};
use crate::{
    feed::{self, Crossing, Cursor, Fetched, Resume, Start, resume_to_pb},
    lsn::Lsn,
    model::Position,
    wire::{
        block::{Block, SpanEnd},
        encode, pb, position_from_pb, position_to_pb,
    },
};

/// Retracted transactions in one `timeline_changed`.
const PART: usize = 200;

/// A crossing under way.
pub(super) struct Passage {
    crossing: Crossing,
    cursor: Cursor,
    found: Vec<pb::Retracted>,
    open: Lost,
}

/// The dead transaction that the next block continues.
#[derive(Default)]
struct Lost {
    begin: Option<pb::Begin>,
    selected: bool,
}

/// Where the transaction commits that a block leaves open, and its sequence.
pub(super) fn open_commit(block: &Block) -> Result<Option<(Lsn, u32)>, Error> {
    if !block.ends_open {
        return Ok(None);
    }
    let index = block.index().map_err(|error| Error::corrupt(block.number, &error.to_string()))?;
    let begin = match index.spans.last() {
        Some(span) if span.begin_len > 0 => {
            payload(block.message()).get(span.start as usize..(span.start + span.begin_len) as usize)
        }
        _ => Some(block.continued_begin().as_ref()),
    };
    let malformed = || Error::corrupt(block.number, "a begin does not decode");
    let begin = begin.and_then(read_begin).ok_or_else(malformed)?;
    Ok(Some((begin.commit_lsn.parse().map_err(|_| malformed())?, begin.sequence)))
}

fn read_begin(framed: &[u8]) -> Option<pb::Begin> {
    prost::Message::decode(first(framed)?.body).ok()
}

/// Whether everything in the block that a stream may be sent holds behind the crossing.
fn holds(block: &Block, crossing: &Crossing) -> Result<bool, Error> {
    let open = match open_commit(block)? {
        // A commit record that starts at the switch is the first that lies behind it.
        Some((commit, 0)) => commit < crossing.to.lineage.switch_lsn,
        Some((commit, _)) => crossing.holds_lsn(commit),
        None => true,
    };
    Ok(open && crossing.holds(block.up_to))
}

impl Session {
    /// Finds out whether the stream's lineage has ended. Cheap when nothing has changed.
    pub(super) fn look_at_history(&mut self) {
        let lineages = self.hub.feed.lineages();
        if lineages != self.lineages && self.until.is_none() {
            self.lineages = lineages;
            self.leaving = self.hub.feed.history().crossing(self.lineage);
        }
    }

    /// Whether nothing that holds is left for the stream on its lineage.
    pub(super) fn at_departure(&self) -> Result<bool, Error> {
        let Some(leaving) = &self.leaving else { return Ok(false) };
        let under_way = self.passage.is_some();
        if under_way || self.lineage != leaving.departs.lineage || self.cursor.block > leaving.to.first_block {
            return Ok(true);
        }
        let Some(block) = &self.incoming else { return Ok(self.cursor.block >= leaving.to.first_block) };
        if block.number >= leaving.to.first_block || !leaving.holds(block.after) {
            return Ok(true);
        }
        let index = block.index().map_err(|error| Error::corrupt(block.number, &error.to_string()))?;
        let head = super::projection::head_of(index);
        Ok(match head.map(|head| head.ending) {
            Some(SpanEnd::Commit { position, .. }) => !leaving.holds(position),
            Some(SpanEnd::Open) => !holds(block, leaving)?,
            _ => false,
        })
    }

    /// Where the part of the block ends that still holds; `None`: it all does.
    pub(super) fn cut_at(&self, block: &Block) -> Result<Option<Position>, Error> {
        match &self.leaving {
            Some(leaving) if !holds(block, leaving)? => Ok(Some(leaving.departs)),
            _ => Ok(None),
        }
    }

    /// The rest of the lineage is dead: what comes next is the crossing.
    pub(super) fn leave(&mut self) {
        if let Some(leaving) = &self.leaving {
            self.cursor.block = self.cursor.block.max(leaving.to.first_block);
        }
    }

    /// One step of the crossing: puts something into the outbox, or reads a block.
    pub(super) async fn cross(&mut self) -> Result<(), Error> {
        if self.passage.is_none() && !self.begin_crossing().await? {
            return Ok(());
        }
        let Some(passage) = &self.passage else { return Ok(()) };
        if passage.crossing.same_course || passage.cursor.block >= passage.crossing.to.first_block {
            self.end_crossing();
            return Ok(());
        }
        let read = self.hub.spawn_read(passage.cursor.clone()).await;
        let (cursor, fetched) = read.map_err(|error| Error::internal(format!("reading a block: {error}")))?;
        let block = match fetched? {
            Fetched::Block(block) if block.number < passage.crossing.to.first_block => Some(block),
            _ => None,
        };
        let Some(mut passage) = self.passage.take() else { return Ok(()) };
        let collected = match block {
            Some(block) => {
                passage.cursor = cursor;
                self.collect(&mut passage, &block)
            }
            None => {
                passage.cursor.block = passage.crossing.to.first_block;
                Ok(())
            }
        };
        while passage.found.len() > PART {
            let rest = passage.found.split_off(PART);
            let part = std::mem::replace(&mut passage.found, rest);
            self.tell(&passage.crossing, part, true);
        }
        self.passage = Some(passage);
        collected
    }

    /// Discards what was half sent. Whether the crossing goes on at once.
    async fn begin_crossing(&mut self) -> Result<bool, Error> {
        let Some(crossing) = self.leaving.clone() else { return Ok(false) };
        if !crossing.same_course {
            self.stamp.leaves(&crossing)?;
        }
        if let Some(skip) = self.skip {
            match self.hub.place(Start::After(skip)).await {
                Err(feed::Error::Diverged { .. }) if self.claim == Claim::Checkpoint => self.skip = None,
                located => {
                    located.map_err(|error| self.stamp.diverged(error))?;
                }
            }
        }
        let cursor = match crossing.same_course {
            true => self.cursor.clone(),
            false => {
                let _turn = self.hub.turn(crossing.departs.lsn).await;
                self.hub.feed.locate_dead(&crossing).await?
            }
        };
        self.incoming = None;
        if let Some(reading) = self.reading.take() {
            reading.abort();
        }
        if !crossing.same_course {
            self.rewind_rows(&crossing);
        }
        if self.outbox.begun() {
            let mut message = Message::new();
            encode::discard(&mut message.0, "the source's history forked before the transaction was complete");
            let message = message.finish();
            self.outbox.push(Item { message, events: 1, counted: 0, begun: Some(false), reached: None });
        }
        self.passage = Some(Box::new(Passage { crossing, cursor, found: Vec::new(), open: Lost::default() }));
        Ok(self.outbox.is_empty())
    }

    fn end_crossing(&mut self) {
        let Some(passage) = &mut self.passage else { return };
        let crossing = passage.crossing.clone();
        let found = std::mem::take(&mut passage.found);
        if !crossing.same_course {
            self.tell(&crossing, found, false);
        }
        let to = &crossing.to;
        if let Some(reason) = &to.gap {
            let gap = pb::Gap {
                after: Some(position_to_pb(crossing.departs)),
                up_to: Some(self.resume_at(to.tail)),
                reason: reason.clone(),
            };
            self.announce(pb::event::Kind::Gap(gap), Some(to.tail));
        }
        let beyond = |skip: &Position| skip.lineage == crossing.departs.lineage && skip.order() > to.tail.order();
        self.skip = self.skip.filter(beyond).map(|skip| Position { lineage: to.id, ..skip });
        self.cursor = Cursor { block: to.first_block, after: to.tail };
        self.lineage = to.id;
        self.leaving = None;
        self.lineages = usize::MAX;
        self.open = Open::default();
        self.wanted = None;
    }

    /// For the client to acknowledge: with what a snapshot under way needs to go on from there.
    fn resume_at(&self, position: Position) -> pb::Position {
        resume_to_pb(&Resume { position, snapshot: self.stamp.encoded() })
    }

    fn tell(&mut self, crossing: &Crossing, retracted: Vec<pb::Retracted>, more: bool) {
        let position = match &crossing.to.gap {
            // What lies in front of the gap is still to be told: acknowledging this does not pass over it.
            Some(_) => Position { lineage: crossing.to.id, ..crossing.departs },
            None => crossing.to.tail,
        };
        let changed = pb::TimelineChanged {
            old_lineage: crossing.old.to_string(),
            new_lineage: crossing.to.id.to_string(),
            switch_lsn: crossing.to.lineage.switch_lsn.to_string(),
            retracted,
            more,
            position: Some(self.resume_at(position)),
        };
        self.announce(pb::event::Kind::TimelineChanged(changed), (!more).then_some(position));
    }

    fn announce(&mut self, kind: pb::event::Kind, reached: Option<Position>) {
        let mut message = Message::new();
        encode::event(&mut message.0, kind);
        self.outbox.push(Item { message: message.finish(), events: 1, counted: 0, begun: None, reached });
    }

    /// Adds what the stream's selection sees of a dead block.
    fn collect(&self, passage: &mut Passage, block: &Block) -> Result<(), Error> {
        let projection = self.group.own_projection(block, Cut { rewrite: true, ..Cut::default() })?;
        let mut open = std::mem::take(&mut passage.open);
        if let Some(head) = &projection.head {
            open.selected |= head.part.counted > 0;
            if open.begin.is_none() {
                open.begin = read_begin(block.continued_begin());
            }
            match head.ending {
                SpanEnd::Open => {
                    passage.open = open;
                    return Ok(());
                }
                SpanEnd::Commit { position, total } if open.selected => {
                    self.lost(passage, open.begin.take(), position, total);
                }
                _ => {}
            }
        }
        passage.open = self.collect_body(passage, block, &projection)?;
        Ok(())
    }

    fn collect_body(&self, passage: &mut Passage, block: &Block, projection: &Projection) -> Result<Lost, Error> {
        let malformed = || Error::corrupt(block.number, "an event does not decode");
        let mut open = Lost::default();
        let mut rest = payload(&projection.body.message);
        while let Some(event) = first(rest) {
            rest = &rest[event.len..];
            match event.kind {
                Kind::Begin => {
                    let begin = prost::Message::decode(event.body).map_err(|_| malformed())?;
                    open = Lost { begin: Some(begin), selected: true };
                }
                Kind::Commit => {
                    let commit: pb::Commit = prost::Message::decode(event.body).map_err(|_| malformed())?;
                    let position = commit.position.as_ref().and_then(|position| position_from_pb(position).ok());
                    let begin = std::mem::take(&mut open).begin;
                    self.lost(passage, begin, position.ok_or_else(malformed)?, commit.total_changes);
                }
                Kind::Message if open.begin.is_none() => {
                    let message: pb::LogicalMessage = prost::Message::decode(event.body).map_err(|_| malformed())?;
                    let position = message.position.as_ref().and_then(|position| position_from_pb(position).ok());
                    self.lost(passage, None, position.ok_or_else(malformed)?, 1);
                }
                Kind::Discard => open = Lost::default(),
                Kind::Change | Kind::Message | Kind::Other => {}
            }
        }
        Ok(open)
    }

    /// A transaction that never happened, if the client may have received it: whoever starts at a position of its own may
    /// have received anything, whoever does not has received what this stream has sent.
    fn lost(&self, passage: &mut Passage, begin: Option<pb::Begin>, position: Position, changes: u64) {
        let history = self.hub.feed.history();
        let dead = position.lineage != passage.crossing.departs.lineage || !passage.crossing.holds(position);
        let received = self.claim != Claim::Nothing || history.key(position) <= history.key(self.passed);
        if dead && received {
            passage.found.push(pb::Retracted { begin, position: Some(position_to_pb(position)), changes });
        }
    }

    /// The client has been told everything about the crossing to this lineage.
    pub(super) fn crossed(&mut self, reached: Position) {
        self.passage = self.passage.take().filter(|passage| passage.crossing.to.id != reached.lineage);
    }
}

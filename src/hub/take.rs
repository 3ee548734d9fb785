//! A session takes in a block: the group's projection of it, and what only this stream needs around it.

use std::sync::Arc;

use super::{
    Error, Session,
    crossing::open_commit,
    frames::Message,
    outbox::{End, Item},
    projection::{Cut, Head, Plans, Projection, head_of},
    session::{Open, Step},
};
use crate::{
    model::Position,
    wire::{
        block::{Block, SpanEnd},
        encode,
    },
};

/// How the transaction ends that the block continues; one that it does not continue never ended.
pub(super) fn end_of_head(block: &Block) -> Result<End, Error> {
    let index = block.index().map_err(|error| Error::corrupt(block.number, &error.to_string()))?;
    Ok(match head_of(index).map(|head| head.ending) {
        Some(SpanEnd::Commit { position, .. }) => End::At(position),
        Some(SpanEnd::Open) => End::Later,
        Some(SpanEnd::Discard | SpanEnd::Message { .. }) | None => End::Discarded,
    })
}

impl Session {
    /// What must be known before the block can be taken in.
    pub(super) fn missing(&self, block: &Block) -> Result<Option<Step>, Error> {
        let Some(skip) = self.skip else { return Ok(None) };
        if block.after.lineage != skip.lineage {
            return Ok(Some(Step::Relocate));
        }
        if self.wanted.is_none() && block.up_to.order() < skip.order() && opens_before(block, skip)? {
            return Ok(Some(Step::Decide));
        }
        Ok(None)
    }

    /// Fills the outbox with what the stream is to send of the block.
    pub(super) fn take_in(&mut self, block: &Arc<Block>) -> Result<(), Error> {
        self.stamp.crosses(block.up_to.lineage)?;
        self.look_for_mark(block)?;
        let open = std::mem::take(&mut self.open);
        let mut cut = Cut {
            head: open.dropped && !block.continued_begin().is_empty(),
            tail: self.wanted.take() == Some(false),
            ..Cut::default()
        };
        let departs = self.cut_at(block)?;
        cut.up_to = departs.map(|departs| departs.lsn);
        cut.tail |= departs.is_some();
        match self.skip {
            Some(skip) if block.after.order() < skip.order() => cut.after = Some(skip),
            _ => self.skip = None,
        }
        let mut projection = if cut == Cut::default() {
            self.group.projection(block)?
        } else {
            self.group.own_projection(block, cut)?
        };
        if projection.untouched && !agrees(open, &projection) {
            projection = self.group.own_projection(block, Cut { rewrite: true, ..cut })?;
        }
        if open.dropped {
            self.check_dropped(&projection)?;
        }
        self.fill(block, open, &projection, departs)?;
        self.behind = Some(departs.unwrap_or(block.up_to));
        if departs.is_some() {
            self.leave();
        }
        if let Some(failed) = &projection.failed {
            self.behind = Some(failed.up_to);
            self.failed = Some(failed.error.clone());
        }
        self.open = match (&projection.head, projection.tail) {
            (_, Some(tail)) => Open { begun: tail.begun, sent: tail.counted, dropped: cut.tail },
            (Some(Head { part, ending: SpanEnd::Open, .. }), None) => {
                Open { begun: open.begun || part.counted > 0, sent: open.sent + part.counted, ..open }
            }
            _ => Open::default(),
        };
        Ok(())
    }

    /// A feed that places a stream inside a transaction behind its start would make it lose the transaction.
    fn check_dropped(&self, projection: &Projection) -> Result<(), Error> {
        match projection.head.as_ref().map(|head| head.ending) {
            Some(SpanEnd::Commit { position, .. })
                if position.lineage == self.start.lineage && position.order() > self.start.order() =>
            {
                let start = self.start;
                Err(Error::internal(format!(
                    "a stream after {start} was placed inside the transaction up to {position}"
                )))
            }
            _ => Ok(()),
        }
    }

    fn fill(
        &mut self,
        block: &Block,
        open: Open,
        projection: &Projection,
        departs: Option<Position>,
    ) -> Result<(), Error> {
        self.preface(block, open, projection)?;
        let after = projection.tail.map(|tail| tail.begun);
        if projection.untouched {
            let continues = projection.head.as_ref().is_some_and(|head| head.ending == SpanEnd::Open);
            self.push(Item {
                message: block.message().clone(),
                events: projection.body.events,
                counted: projection.body.counted,
                begun: after.or((!continues).then_some(false)),
                reached: (block.up_to != block.after).then_some(block.up_to),
            })?;
            return Ok(());
        }
        if let Some(head) = &projection.head {
            self.push(Item {
                message: head.part.message.clone(),
                events: head.part.events,
                counted: head.part.counted,
                begun: None,
                reached: None,
            })?;
            self.end_head(open, head)?;
        }
        let up_to = departs.unwrap_or(block.up_to);
        let up_to = projection.failed.as_ref().map_or(up_to, |failed| failed.up_to);
        self.push(Item {
            message: projection.body.message.clone(),
            events: projection.body.events,
            counted: projection.body.counted,
            begun: Some(after.unwrap_or(false)),
            reached: (up_to != block.after).then_some(up_to),
        })
    }

    /// To the outbox, as far as it is not in a snapshot's rows already.
    fn push(&mut self, item: Item) -> Result<(), Error> {
        self.outbox.push(self.stamp.apply(item)?);
        Ok(())
    }

    /// Relation versions that the stream has not sent yet, and the `begin` of a continued transaction of which nothing was
    /// selected before.
    fn preface(&mut self, block: &Block, open: Open, projection: &Projection) -> Result<(), Error> {
        let begins = !open.begun && projection.head.as_ref().is_some_and(|head| head.part.counted > 0);
        if !begins && projection.relations.iter().all(|id| self.relations_sent.contains(id)) {
            return Ok(());
        }
        let mut message = Message::new();
        let mut events = 0;
        for id in &projection.relations {
            if self.relations_sent.insert(*id) {
                message.0.extend_from_slice(&self.group.plan(*id)?.event);
                events += 1;
            }
        }
        if begins {
            if block.continued_begin().is_empty() {
                return Err(Error::corrupt(block.number, "it continues a transaction without naming it"));
            }
            message.0.extend_from_slice(block.continued_begin());
            events += 1;
        }
        let begun = begins.then_some(true);
        self.push(Item { message: message.finish(), events, counted: 0, begun, reached: None })
    }

    fn end_head(&mut self, open: Open, head: &Head) -> Result<(), Error> {
        let sent = open.sent + head.part.counted;
        if !open.begun && sent == 0 {
            return Ok(());
        }
        let mut message = Message::new();
        let reached = match head.ending {
            SpanEnd::Commit { position, total } => {
                encode::commit(&mut message.0, position, sent, total);
                Some(position)
            }
            SpanEnd::Discard => {
                message.0.extend_from_slice(&head.discard);
                None
            }
            SpanEnd::Open | SpanEnd::Message { .. } => return Ok(()),
        };
        self.push(Item { message: message.finish(), events: 1, counted: 0, begun: Some(false), reached })
    }
}

/// Whether the block's own `commit` of a continued transaction tells what this stream has sent, and its `begin` was sent.
fn agrees(open: Open, projection: &Projection) -> bool {
    let Some(head) = &projection.head else { return true };
    open.begun
        && match head.ending {
            SpanEnd::Commit { total, .. } => open.sent + head.part.counted == total,
            _ => true,
        }
}

/// Whether a transaction begins in the block, goes on in the next one, and may end at or before `skip`. Its end is not known
/// here, but the start of its commit record is, and it ends behind that.
fn opens_before(block: &Block, skip: Position) -> Result<bool, Error> {
    if !block.ends_open {
        return Ok(false);
    }
    let index = block.index().map_err(|error| Error::corrupt(block.number, &error.to_string()))?;
    let begins_here = index.spans.last().is_some_and(|span| span.begin_len > 0);
    Ok(begins_here && open_commit(block)?.is_some_and(|commit| commit < skip.order()))
}

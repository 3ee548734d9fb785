//! What the journal says about transactions that a snapshot does not see.

use prost::Message;

use super::{away, interrupted};
use crate::{
    feed::{Cursor, Feed, Fetched, SnapshotError, Start},
    lsn::Lsn,
    model::{Position, Visibility},
    reason::{Classified, Reason},
    wire::{
        block::{Block, Index, Span, SpanEnd},
        pb,
    },
};

/// Where the reader was is not there any more, or cannot be read.
pub(super) fn unreadable(error: crate::feed::Error) -> SnapshotError {
    if error.reason() == Reason::PositionDiverged {
        return interrupted("the source has failed over while a chunk was read");
    }
    SnapshotError { reason: error.reason(), message: error.to_string(), metadata: error.metadata() }
}

pub(super) fn index(block: &Block) -> Result<&Index, SnapshotError> {
    let corrupt = |error| SnapshotError::new(Reason::JournalCorrupt, format!("block {}: {error}", block.number));
    block.index().map_err(corrupt)
}

/// The id of the transaction that a span belongs to; `None` for a message outside of transactions.
pub(super) fn xid(block: &Block, span: &Span) -> Result<Option<u64>, SnapshotError> {
    if matches!(span.ending, SpanEnd::Message { .. }) {
        return Ok(None);
    }
    let payload = block.payload();
    let begin = match span.begin_len {
        0 => Some(&block.continued_begin()[..]),
        len => payload.get(span.start as usize..(span.start + len) as usize),
    };
    let response = begin.and_then(|begin| pb::SubscribeResponse::decode(begin).ok());
    match response.and_then(|response| response.events.into_iter().next()).and_then(|event| event.kind) {
        Some(pb::event::Kind::Begin(begin)) => Ok(Some(begin.xid)),
        _ => {
            let message = format!("block {}: a begin does not decode", block.number);
            Err(SnapshotError::new(Reason::JournalCorrupt, message))
        }
    }
}

/// The next block at the cursor; waits for it.
pub(super) async fn next(feed: &dyn Feed, cursor: &mut Cursor) -> Result<std::sync::Arc<Block>, SnapshotError> {
    let mut marks = feed.marks();
    loop {
        marks.mark_unchanged();
        let fetched = match feed.hot(cursor) {
            Some(fetched) => fetched,
            None => feed.fetch(cursor).await.map_err(unreadable)?,
        };
        match fetched {
            Fetched::Block(block) => return Ok(block),
            Fetched::AtTail => marks.changed().await.map_err(|_| away("the hub is shutting down"))?,
        }
    }
}

/// A resume point with every transaction up to it visible in the snapshot; the latest that can be found without much ado.
/// `until`: where the WAL ended after the snapshot was taken; the journal holds everything before it.
pub(super) async fn before(feed: &dyn Feed, seen: &Visibility, until: Lsn) -> Result<Position, SnapshotError> {
    let tail = feed.marks().borrow().tail;
    if let Some(known) = feed.before_xid(seen.xmin)
        && known.lineage == tail.lineage
    {
        // What is known may be ahead of what is durable.
        return Ok(if known.order() > tail.order() { tail } else { known });
    }
    tracing::info!(xmin = seen.xmin, "a transaction from before the hub's start is open: searching the journal");
    let mut cursor = feed.locate(Start::Earliest).await.map_err(unreadable)?;
    let mut floor = cursor.after;
    loop {
        if floor.lineage == tail.lineage && floor.lsn >= until {
            return Ok(floor);
        }
        let fetched = feed.fetch(&mut cursor).await.map_err(unreadable)?;
        let Fetched::Block(block) = fetched else { return Ok(feed.marks().borrow().tail) };
        if block.after.lineage != tail.lineage {
            floor = block.up_to;
            continue;
        }
        for span in &index(&block)?.spans {
            if xid(&block, span)?.is_some_and(|xid| xid >= seen.xmin) {
                if floor.lineage != tail.lineage {
                    return Err(interrupted("a transaction from before the failover is still open"));
                }
                return Ok(floor);
            }
            floor = span.ending.position().unwrap_or(floor);
        }
    }
}

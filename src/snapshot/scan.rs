//! What the journal says about transactions that a snapshot does not see.

use std::time::Duration;

use prost::Message;
use tokio::sync::watch;

use super::{away, interrupted};
use crate::{
    feed::{Cursor, Feed, Fetched, Marks, SnapshotError, Start},
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

/// A resume point with every transaction up to it visible in the snapshot: the last one in front of the first transaction in the
/// journal that is not, or the tail. Looks no further than `until`, where the WAL ended after the snapshot was taken.
///
/// An id alone says little of where to look: a transaction that has been open for hours, or prepared, keeps `xmin` where it was when it
/// began, and that may have left the journal long ago. So what is known of ids only says where the search begins.
pub(super) async fn before(feed: &dyn Feed, seen: &Visibility, until: Lsn) -> Result<Position, SnapshotError> {
    let mut tail = feed.marks().borrow().tail;
    let start = match known_before(feed, seen.xmin).filter(|known| known.lineage == tail.lineage) {
        // What is known may be ahead of what is durable.
        Some(known) if known.order() >= tail.order() => return Ok(tail),
        Some(known) => Start::After(known),
        None => {
            tracing::info!(
                xmin = seen.xmin,
                "a transaction is open that is older than what is known: searching the journal"
            );
            Start::Earliest
        }
    };
    let mut cursor = feed.locate(start).await.map_err(unreadable)?;
    let mut floor = cursor.after;
    loop {
        if floor.lineage == tail.lineage && floor.lsn >= until {
            return Ok(floor);
        }
        // Asked for in front of the block: what becomes durable behind it has not been looked at.
        tail = feed.marks().borrow().tail;
        let fetched = feed.fetch(&mut cursor).await.map_err(unreadable)?;
        let Fetched::Block(block) = fetched else { return Ok(tail) };
        if block.after.lineage != tail.lineage {
            floor = block.up_to;
            continue;
        }
        if floor.lineage != tail.lineage {
            floor = block.after;
        }
        for span in &index(&block)?.spans {
            if xid(&block, span)?.is_some_and(|xid| !seen.sees(xid)) {
                return Ok(floor);
            }
            floor = span.ending.position().unwrap_or(floor);
        }
    }
}

/// A resume point at or before which no transaction has an id of `xid` or more, if one is known and what comes behind it is
/// retained.
pub(super) fn known_before(feed: &dyn Feed, xid: u64) -> Option<Position> {
    feed.before_xid(xid).filter(|known| !feed.window().is_behind(*known))
}

/// Waits for what only the journal can bring, for as long as it grows at all; `None`: it has not for so long. A hub that was away
/// for an hour has an hour's WAL to read first, and that is no failure.
pub(super) async fn while_it_grows<T>(
    marks: watch::Receiver<Marks>,
    patience: Duration,
    what: impl Future<Output = T>,
) -> Option<T> {
    let mut what = std::pin::pin!(what);
    loop {
        let before = *marks.borrow();
        if let Ok(done) = tokio::time::timeout(patience, &mut what).await {
            return Some(done);
        }
        if *marks.borrow() == before {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each mark takes longer than patience would allow a journal that stands still.
    #[tokio::test]
    async fn what_takes_long_is_waited_for_while_the_journal_grows() {
        let patience = Duration::from_millis(300);
        let (marks, reader) = watch::channel(Marks::default());
        let grows = async {
            for next_block in 1..=100 {
                tokio::time::sleep(patience / 10).await;
                marks.send_replace(Marks { next_block, ..Marks::default() });
            }
        };
        assert_eq!(while_it_grows(reader.clone(), patience, grows).await, Some(()), "ten times its patience");
        assert_eq!(while_it_grows(reader, patience, std::future::pending::<()>()).await, None);
    }
}

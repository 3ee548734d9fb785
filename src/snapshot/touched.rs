//! Which rows of a chunk were touched by transactions that the chunk's snapshot does not see, and which keys have moved meanwhile.

use std::{
    collections::{HashMap, HashSet},
    sync::OnceLock,
};

use super::{
    ahead::literals,
    moved::{Moved, Moves},
    scan::{self, index, unreadable},
};
use crate::{
    feed::{self, Feed, MARK_PREFIX, SnapshotError, Start},
    lsn::Lsn,
    model::{Position, RelationId, ReplicaIdentity, Value, Visibility},
    reason::Reason,
    wire::{
        block::{Block, Entry, EntryKind, Index, Span, SpanEnd},
        pb,
        rows::{ChangeView, RowView},
    },
};

/// Transactions that are remembered one by one; those behind are looked at again.
const REMEMBERED: usize = 65_536;

/// Transactions that were journaled and that the last snapshot did not see: where the search for the next chunk begins.
/// What one snapshot sees, the next sees too.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Ids, with the resume point in front.
    unseen: Vec<(u64, Position)>,
    /// Everything up to here was looked at; `None` before the first time.
    up_to: Option<Position>,
}

impl Seen {
    /// A resume point with every transaction up to it visible in the snapshot. Must be asked for before the mark is written:
    /// what is known then lies in front of it.
    pub async fn before(&mut self, feed: &dyn Feed, seen: &Visibility) -> Result<Position, SnapshotError> {
        self.unseen.retain(|(xid, _)| !seen.sees(*xid));
        match self.floor() {
            Some(floor) => Ok(floor),
            // No limit: everything up to the tail may have to be looked at.
            None => scan::before(feed, seen, Lsn(u64::MAX)).await,
        }
    }

    /// What the next search may need of the journal.
    pub fn floor(&self) -> Option<Position> {
        self.unseen.first().map(|(_, before)| *before).or(self.up_to)
    }
}

/// The rows of one chunk, by key.
pub(super) struct Touched<'a> {
    pub feed: &'a dyn Feed,
    /// The table.
    pub oid: u32,
    /// Its key's columns.
    pub key: &'a [String],
    /// Finds the rows by key: only called where something may have been touched, since most chunks are left alone.
    pub find: &'a (dyn Fn() -> Result<HashMap<Vec<u8>, usize>, SnapshotError> + Sync),
    /// By encoded key values, the rows that are left.
    pub rows: OnceLock<HashMap<Vec<u8>, usize>>,
    /// They were asked for by their keys: what is not in it is no reason to read a chunk again, it is asked for again.
    pub asked: bool,
}

/// What a transaction has done to the chunk so far. However large it is, that is no more than the chunk and what may be owed.
#[derive(Default)]
struct Done {
    /// Is in the rows, and only moves count.
    sees: bool,
    keys: HashSet<Vec<u8>>,
    moves: Moves,
    all: bool,
    /// The first row of which only a part is in the changes.
    partly: Option<usize>,
}

/// What is left of a chunk.
pub(super) struct Left {
    /// Rows by key; `None`: all.
    pub rows: Option<HashMap<Vec<u8>, usize>>,
    /// From this row on the chunk must be read again: a change brings it without a TOASTed value that it has left alone,
    /// and nobody else would.
    pub again: Option<usize>,
}

impl Touched<'_> {
    /// Reads the journal from `floor` up to the mark with this content, and takes out what was touched; what is left. What has
    /// moved goes into `moved`, for which it may have to begin in front of `floor`.
    pub async fn up_to(
        mut self,
        floor: Position,
        known: &mut Seen,
        seen: &Visibility,
        mark: &str,
        moved: &mut Moved,
    ) -> Result<Left, SnapshotError> {
        let mut again: Option<usize> = None;
        let begins = moved.begins(floor);
        let mut arrived = begins.lineage == floor.lineage;
        let mut cursor = self.feed.locate(Start::After(begins)).await.map_err(|error| match error {
            feed::Error::Diverged { .. } if !arrived => {
                super::away("the stream has not crossed to where chunks are read")
            }
            error => unreadable(error),
        })?;
        let mut places: HashMap<RelationId, Option<Vec<usize>>> = HashMap::new();
        let mut open: Option<Done> = None;
        let mut unseen = Vec::new();
        let mut before = begins;
        loop {
            let block = scan::next(self.feed, &mut cursor).await?;
            let elsewhere = block.after.lineage != floor.lineage && block.up_to.lineage != floor.lineage;
            arrived |= !elsewhere;
            if arrived && elsewhere {
                *known = Seen::default();
                return Err(super::interrupted("the source has failed over while a chunk was read"));
            }
            let index = index(&block)?;
            for span in &index.spans {
                if let SpanEnd::Message { position } = span.ending {
                    before = position;
                    if is_mark(&block, span, mark) {
                        *known = Seen { unseen, up_to: Some(position) };
                        moved.looked(begins, position);
                        return Ok(Left { rows: self.rows.into_inner(), again });
                    }
                    continue;
                }
                let xid = scan::xid(&block, span)?.unwrap_or_default();
                let ending = span.ending.position();
                // What an id is on another lineage, the snapshot does not know; it was in front of the floor.
                let sees = ending.unwrap_or(block.up_to).lineage != floor.lineage || seen.sees(xid);
                if !sees {
                    if unseen.len() < REMEMBERED && unseen.last().is_none_or(|(last, _)| *last != xid) {
                        unseen.push((xid, before));
                    } else if unseen.len() == REMEMBERED {
                        // Never seen: keeps the search from beginning behind it.
                        unseen.push((u64::MAX, before));
                    }
                }
                if sees && !moved.is_news(ending) {
                    open = None;
                } else {
                    let mut done = open.take().unwrap_or_default();
                    done.sees = sees;
                    self.collect(&block, index, span, &mut places, &mut done, moved)?;
                    match span.ending {
                        SpanEnd::Open => open = Some(done),
                        SpanEnd::Commit { .. } => {
                            again = again.into_iter().chain(done.partly).min();
                            moved.add(std::mem::take(&mut done.moves), xid, sees);
                            self.take_out(done);
                        }
                        SpanEnd::Discard | SpanEnd::Message { .. } => {}
                    }
                }
                before = ending.unwrap_or(before);
            }
        }
    }

    fn rows(&self) -> Result<&HashMap<Vec<u8>, usize>, SnapshotError> {
        match self.rows.get() {
            Some(rows) => Ok(rows),
            None => {
                let rows = (self.find)()?;
                Ok(self.rows.get_or_init(|| rows))
            }
        }
    }

    fn take_out(&mut self, done: Done) {
        if done.all {
            self.rows = OnceLock::from(HashMap::new());
        }
        let Some(rows) = self.rows.get_mut() else { return };
        for key in done.keys {
            rows.remove(&key);
        }
    }

    /// What a part of a transaction does.
    fn collect(
        &self,
        block: &Block,
        index: &Index,
        span: &Span,
        places: &mut HashMap<RelationId, Option<Vec<usize>>>,
        done: &mut Done,
        moved: &Moved,
    ) -> Result<(), SnapshotError> {
        let (sees, payload) = (done.sees, block.payload());
        let malformed = || SnapshotError::new(Reason::JournalCorrupt, format!("block {}: an event", block.number));
        let (from, to) = span.entries;
        for entry in index.entries.get(from as usize..to as usize).unwrap_or_default() {
            let framed =
                payload.get(entry.offset as usize..(entry.offset + entry.len) as usize).ok_or_else(malformed)?;
            match entry.kind {
                EntryKind::Message | EntryKind::Read => {}
                EntryKind::Truncate | EntryKind::Insert | EntryKind::Delete if sees => {}
                EntryKind::Truncate => done.all |= self.truncates(framed).ok_or_else(malformed)?,
                EntryKind::Insert | EntryKind::Update | EntryKind::Delete => {
                    let places = places.entry(entry.relation).or_insert_with(|| self.places(entry));
                    let Some(places) = places else { continue };
                    let view = ChangeView::parse(framed).map_err(|_| malformed())?;
                    let moves = || entry.kind == EntryKind::Update && !self.carried(entry);
                    let kept = |row: &RowView<'_>| row.iter().any(|value| value == Value::Unchanged);
                    if sees && view.before.is_none() && !(view.after.as_ref().is_some_and(kept) && moves()) {
                        continue;
                    }
                    let old = view.before.and_then(|row| row.key(places));
                    let new = view.after.and_then(|row| row.key(places));
                    if old.is_none() && (new.is_none() && !sees || new.is_some() && moves()) {
                        return Err(super::interrupted("a change does not tell its key"));
                    }
                    if let Some(row) = view.after.filter(kept)
                        && let Some(new) = &new
                    {
                        let old = old.as_ref().unwrap_or(new);
                        let touched = if sees { None } else { self.rows()?.get(new).copied() };
                        if old != new || touched.is_some() && self.asked {
                            moved.collect(&mut done.moves, old, new, || literals(&row, places))?;
                        } else {
                            done.partly = done.partly.into_iter().chain(touched).min();
                        }
                    }
                    if sees {
                        continue;
                    }
                    let rows = self.rows()?;
                    done.keys.extend(old.into_iter().chain(new).filter(|key| rows.contains_key(key)));
                }
            }
        }
        Ok(())
    }

    /// Where the key is in this relation version; `None` for another table. A version without the key's columns gives no
    /// places, and its changes no key.
    fn places(&self, entry: &Entry) -> Option<Vec<usize>> {
        let relation = self.feed.relation(entry.relation).filter(|relation| relation.oid == self.oid)?;
        let place = |name: &String| relation.columns.iter().position(|column| column.name == *name);
        Some(self.key.iter().map(place).collect::<Option<Vec<_>>>().unwrap_or_default())
    }

    /// Whether an UPDATE without the old key has left it as it was.
    fn carried(&self, entry: &Entry) -> bool {
        let Some(relation) = self.feed.relation(entry.relation) else { return false };
        let column = |name: &String| relation.columns.iter().find(|column| column.name == *name);
        relation.replica_identity != ReplicaIdentity::Full
            && self.key.iter().all(|name| column(name).is_some_and(|column| column.in_identity))
    }

    fn truncates(&self, framed: &[u8]) -> Option<bool> {
        let response: pb::SubscribeResponse = prost::Message::decode(framed).ok()?;
        let Some(pb::event::Kind::Truncate(truncate)) = response.events.into_iter().next()?.kind else { return None };
        let this = |id: &u32| self.feed.relation(RelationId(*id)).is_some_and(|relation| relation.oid == self.oid);
        Some(truncate.relation_ids.iter().any(this))
    }
}

/// Whether a message outside of transactions is this mark.
fn is_mark(block: &Block, span: &Span, mark: &str) -> bool {
    let payload = block.payload();
    let framed = payload.get(span.start as usize..span.end as usize);
    let response: Option<pb::SubscribeResponse> = framed.and_then(|framed| prost::Message::decode(framed).ok());
    let kind = response.and_then(|response| response.events.into_iter().next()).and_then(|event| event.kind);
    matches!(kind, Some(pb::event::Kind::Message(message))
             if message.prefix == MARK_PREFIX && message.content == mark.as_bytes())
}

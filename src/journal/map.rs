//! The catalogue in memory: which segments there are, where in them reading can start, which relation versions and
//! lineages they hold. Everything here can be rebuilt from the segments.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use super::rows::Pointer;
use crate::{
    feed::{Cursor, History, Key, Marks},
    model::{Position, Relation, RelationId},
};

/// A place in a segment where reading can start: the offset of a STATE record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub offset: u64,
    /// Number of the first block behind it.
    pub block: u64,
    /// The resume point in front.
    pub after: Position,
    /// The block where the transaction that is open here begins.
    pub open_since: Option<u64>,
    /// Latest commit time up to the next place; 0 for none.
    pub commit_time: i64,
    /// `commit_time` was found by reading, and records were damaged: there may have been a later one.
    pub is_damaged: bool,
}

/// A segment.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub number: u64,
    pub path: PathBuf,
    pub first_block: u64,
    pub after: Position,
    pub created: i64,
    pub salt: u64,
    /// Where the records that it begins with end.
    pub preamble: u64,
    /// Of the active segment: behind the last record that may be read.
    pub len: u64,
    /// Why none of it can be read.
    pub unreadable: Option<Arc<str>>,
    /// Ascending.
    pub places: Vec<Place>,
}

impl Segment {
    /// Whether the STATE that it begins with is not among the places: because it is damaged, or not published yet. The
    /// records in front of the first place are then a chunk of their own, of which nobody knows what is open in front
    /// of it. Without that chunk, damage in front of the first place would be in no chunk, and nobody would be told.
    pub fn is_headless(&self) -> bool {
        self.places.first().is_none_or(|place| place.block != self.first_block)
    }

    /// How many of its chunks lie in front of the first place.
    fn heads(&self) -> usize {
        usize::from(self.is_headless())
    }

    /// Whether a transaction may be open where it begins.
    pub fn may_begin_open(&self) -> bool {
        self.is_headless() || self.places.first().is_some_and(|place| place.open_since.is_some())
    }
}

/// A range of records between two places, or in front of the first, which is read at once.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub segment: u64,
    pub path: PathBuf,
    pub salt: u64,
    pub from: u64,
    pub to: u64,
    pub first_block: u64,
    /// Number of the first block behind it, as far as is known.
    pub next_block: u64,
    pub after: Position,
    /// The resume point in front of the next chunk; `None` for the last one.
    pub next_after: Option<Position>,
    /// Means nothing when `headless`.
    pub open_since: Option<u64>,
    /// 0 when `headless`, whatever it holds.
    pub commit_time: i64,
    /// No STATE begins it. See [`Segment::is_headless`].
    pub headless: bool,
    pub unreadable: Option<Arc<str>>,
}

/// See [`Map::chunk_after`].
#[derive(Clone, Debug)]
pub(super) enum After {
    Chunk(Chunk),
    /// Nothing more is durable.
    Tail,
    /// Retention has removed the chunk.
    Gone,
}

/// What is known of a relation version.
#[derive(Clone, Debug)]
pub(super) struct RelationEntry {
    pub relation: Arc<Relation>,
    /// Where it was recorded last.
    pub at: Pointer,
}

/// The whole catalogue.
#[derive(Clone, Debug, Default)]
pub(super) struct Map {
    /// Ascending and without gaps in numbers; never empty while the journal is open.
    pub segments: Vec<Segment>,
    pub relations: BTreeMap<RelationId, RelationEntry>,
    pub history: Arc<History>,
    pub marks: Marks,
    /// The block where the transaction that is open at the tail begins.
    pub open_since: Option<u64>,
    /// The oldest resume point and the block that follows it; `None` while there is no block.
    pub earliest: Option<(Position, u64)>,
    /// First commit time behind `earliest`.
    pub earliest_commit_time: Option<i64>,
    /// The first segment of a replay that does not count yet: nobody reads from there.
    pub held_from: Option<u64>,
}

impl Map {
    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }

    /// The oldest resume point.
    pub fn earliest(&self) -> Position {
        let (after, block) = self.earliest.unwrap_or((self.marks.tail, self.marks.next_block));
        self.history.onward(Cursor { block, after }).after
    }

    /// The first block behind the crossing in front of which nothing comes any more that holds; `None`: something does.
    pub fn next_crossed(&self, at: Position) -> Option<u64> {
        let crossing = self.history.crossing(at.lineage)?;
        let holds = crossing.departs.lineage == at.lineage && at.order() >= crossing.departs.order();
        Some(crossing.to.first_block).filter(|first| holds && *first >= self.first_block())
    }

    /// Whether retention has removed what comes behind this position, which is a subscriber's.
    pub fn has_expired(&self, position: Position) -> bool {
        let tail = self.marks.tail;
        if self.history.rank(position.lineage).is_none() {
            return false;
        }
        let at = self.history.floor(position);
        let at_tail = at.lineage == tail.lineage && at.order() >= tail.order();
        !at_tail && self.next_crossed(at).is_none() && self.key(at) < self.key(self.earliest())
    }

    /// Number of the first block that is still on disk.
    pub fn first_block(&self) -> u64 {
        self.segments.first().map_or(self.marks.next_block, |segment| segment.first_block)
    }

    /// See [`History::key`].
    pub fn key(&self, position: Position) -> Key {
        self.history.key(position)
    }

    /// The chunk with this block.
    pub fn chunk_of_block(&self, block: u64) -> Option<Chunk> {
        if block >= self.marks.next_block {
            return None;
        }
        let s = self.segments.partition_point(|segment| segment.first_block <= block).checked_sub(1)?;
        let segment = &self.segments[s];
        let c = segment.heads() + segment.places.partition_point(|place| place.block <= block);
        Some(self.chunk(s, c.saturating_sub(1)))
    }

    /// Where to look for the first commit after `position`: the last chunk that begins at or before it, or, when that
    /// does not say what is open in front of it, the last one before it that does.
    pub fn chunk_of_position(&self, position: Position) -> Option<Chunk> {
        let key = self.key(position);
        let mut s = self.segments.partition_point(|segment| self.key(segment.after) <= key).checked_sub(1)?;
        let segment = &self.segments[s];
        let c = segment.heads() + segment.places.partition_point(|place| self.key(place.after) <= key);
        let mut chunk = self.chunk(s, c.saturating_sub(1));
        while chunk.headless && s > 0 {
            s -= 1;
            let segment = &self.segments[s];
            chunk = self.chunk(s, (segment.heads() + segment.places.len()).saturating_sub(1));
        }
        Some(chunk)
    }

    /// The first chunk that may hold a commit at or after this time. Of a headless or damaged one nobody knows: it may,
    /// unless an earlier commit follows it.
    pub fn chunk_of_time(&self, time: i64) -> Option<Chunk> {
        let held = |segment: &&Segment| self.held_from.is_none_or(|from| segment.number < from);
        let mut unknown = None;
        for (s, segment) in self.segments.iter().take_while(held).enumerate() {
            if segment.is_headless() {
                unknown.get_or_insert((s, 0));
            }
            for (p, place) in segment.places.iter().enumerate() {
                let here = (s, segment.heads() + p);
                if place.commit_time != 0 {
                    if place.commit_time >= time {
                        let (s, c) = unknown.unwrap_or(here);
                        return Some(self.chunk(s, c));
                    }
                    unknown = None;
                }
                if place.is_damaged {
                    unknown.get_or_insert(here);
                }
            }
        }
        unknown.map(|(s, c)| self.chunk(s, c))
    }

    /// What follows a chunk that was read: the chunk itself, if it has grown since, or the next one.
    pub fn chunk_after(&self, chunk: &Chunk) -> After {
        let s = self.segments.partition_point(|segment| segment.number < chunk.segment);
        let Some(segment) = self.segments.get(s).filter(|segment| segment.number == chunk.segment) else {
            return After::Gone;
        };
        let c = segment.heads() + segment.places.partition_point(|place| place.offset <= chunk.from);
        let now = self.chunk(s, c.saturating_sub(1));
        if now.to > chunk.to {
            After::Chunk(now)
        } else if c < segment.heads() + segment.places.len() {
            After::Chunk(self.chunk(s, c))
        } else if s + 1 < self.segments.len() && self.held_from != Some(self.segments[s + 1].number) {
            After::Chunk(self.chunk(s + 1, 0))
        } else {
            After::Tail
        }
    }

    /// A segment's chunk `c`, counted with the one in front of the first place if there is one.
    fn chunk(&self, s: usize, c: usize) -> Chunk {
        let segment = &self.segments[s];
        let place = c.checked_sub(segment.heads()).and_then(|p| segment.places.get(p));
        let next = segment.places.get(c + 1 - segment.heads());
        let next_segment = self.segments.get(s + 1);
        let from = place.map_or(super::segment::RECORDS, |place| place.offset);
        Chunk {
            segment: segment.number,
            path: segment.path.clone(),
            salt: segment.salt,
            from,
            to: next.map_or(segment.len, |next| next.offset).max(from), // the file may have been cut short
            first_block: place.map_or(segment.first_block, |place| place.block),
            next_block: next
                .map(|next| next.block)
                .or(next_segment.map(|segment| segment.first_block))
                .unwrap_or(self.marks.next_block),
            after: place.map_or(segment.after, |place| place.after),
            next_after: next.map(|next| next.after).or(next_segment.map(|segment| segment.after)),
            open_since: place.and_then(|place| place.open_since),
            commit_time: place.map_or(0, |place| place.commit_time),
            headless: place.is_none(),
            unreadable: segment.unreadable.clone(),
        }
    }
}

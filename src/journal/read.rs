//! [`Feed`] over segments and ring: from a start to a cursor, from a cursor to a block.

use std::{
    fs::File,
    io,
    sync::{Arc, atomic::Ordering},
};

use tokio::sync::watch;

use super::{
    Shared,
    chunk::{self, Decoded},
    disk::FilePieces,
    map::{After, Chunk, Map, Segment},
    ring::Lookup,
    segment::{Kind, RECORDS, Scanner, Step},
};
use crate::{
    feed::{BoxFuture, Crossing, Cursor, Error, Feed, Fetched, History, Marks, Reservation, Start, Window},
    model::{Lineage, LineageId, Position, Relation, RelationId},
    wire::block::{Block, SpanEnd},
};

impl Feed for super::Journal {
    fn marks(&self) -> watch::Receiver<Marks> {
        self.shared().marks.subscribe()
    }

    fn durable(&self) -> Option<watch::Receiver<Position>> {
        self.shared().options.eager.then(|| self.complete())
    }

    fn window(&self) -> Window {
        let map = self.shared().map.read();
        Window {
            earliest: map.earliest(),
            tail: map.marks.tail,
            bytes: map.bytes(),
            earliest_commit_time: map.earliest_commit_time,
            expiry_bytes_per_second: self.shared().expiry.rate(),
        }
    }

    fn has_expired(&self, position: Position) -> bool {
        self.shared().map.read().has_expired(position)
    }

    fn commit_time_behind(&self, position: Position) -> Option<i64> {
        let map = self.shared().map.read();
        if map.has_expired(position) {
            return map.earliest_commit_time;
        }
        let chunk = map.chunk_of_position(map.history.floor(position))?;
        Some(chunk.commit_time).filter(|time| *time != 0)
    }

    fn locate(&self, start: Start) -> BoxFuture<'_, Result<Cursor, Error>> {
        Box::pin(self.shared().locate(start))
    }

    fn hot(&self, cursor: &mut Cursor) -> Option<Fetched> {
        let shared = self.shared();
        shared.hot(cursor).or_else(|| shared.cached(cursor))
    }

    fn fetch<'a>(&'a self, cursor: &'a mut Cursor) -> BoxFuture<'a, Result<Fetched, Error>> {
        Box::pin(self.shared().fetch(cursor))
    }

    fn relation(&self, id: RelationId) -> Option<Arc<Relation>> {
        self.shared().map.read().relations.get(&id).map(|entry| entry.relation.clone())
    }

    fn relations(&self) -> Vec<Arc<Relation>> {
        self.shared().map.read().relations.values().map(|entry| entry.relation.clone()).collect()
    }

    fn lineage(&self) -> Option<Arc<Lineage>> {
        self.shared().map.read().history.newest().map(|start| start.lineage.clone())
    }

    fn history(&self) -> Arc<History> {
        self.shared().map.read().history.clone()
    }

    fn lineages(&self) -> usize {
        self.shared().lineages.load(Ordering::Acquire)
    }

    fn locate_dead<'a>(&'a self, crossing: &'a Crossing) -> BoxFuture<'a, Result<Cursor, Error>> {
        Box::pin(self.shared().locate_dead(crossing))
    }

    fn before_xid(&self, xid: u64) -> Option<Position> {
        self.shared().xids.before(xid)
    }

    fn reserve(&self, position: Position) -> Reservation {
        let id = fastrand::u64(..);
        self.shared().reserved.lock().insert(id, position);
        let journal = self.clone();
        Reservation::new(move || {
            journal.shared().reserved.lock().remove(&id);
        })
    }
}

/// Puts the cursor behind the block. A position that lies further ahead is kept.
fn pass(cursor: &mut Cursor, block: Arc<Block>) -> Fetched {
    cursor.block = block.number + 1;
    let other = cursor.after.lineage != block.up_to.lineage;
    if other || cursor.after.order() < block.up_to.order() {
        cursor.after = block.up_to;
    }
    Fetched::Block(block)
}

/// The search for the first block that holds something after a position.
struct Search {
    history: Arc<History>,
    tail: Position,
    position: Position,
    /// Block where the transaction open at this point begins; `Err` when damage hides it.
    open_since: Result<Option<u64>, Error>,
    /// The greatest resume point up to here that is not after the position.
    floor: Position,
}

impl Search {
    fn is_after(&self, position: Position) -> bool {
        self.history.key(position) > self.history.key(self.position)
    }

    /// The block to start with, once the chunk with the first later commit is reached.
    fn walk(&mut self, decoded: &Decoded, chunk: &Chunk) -> Result<Option<u64>, Error> {
        let mut expected = chunk.first_block;
        for block in &decoded.blocks {
            if block.number != expected {
                self.cross_gap(decoded, expected, block.after, !block.continued_begin().is_empty())?;
            }
            expected = block.number + 1;
            if self.is_after(block.up_to) {
                return self.enter(block).map(Some);
            }
            if !block.ends_open {
                self.open_since = Ok(None);
            } else if block.continued_begin().is_empty() || block.up_to != block.after {
                self.open_since = Ok(Some(block.number));
            }
            self.floor = block.up_to;
        }
        if expected < chunk.next_block {
            self.cross_gap(decoded, expected, chunk.next_after.unwrap_or(self.tail), true)?;
        }
        Ok(None)
    }

    fn cross_gap(&mut self, decoded: &Decoded, first: u64, behind: Position, continues: bool) -> Result<(), Error> {
        let error = match decoded.block(first) {
            Some(Err(error)) => error,
            _ => Error::Corrupt { after: self.floor, up_to: None, detail: format!("block {first} is missing") },
        };
        if self.is_after(behind) {
            return Err(error);
        }
        self.open_since = if continues { Err(error) } else { Ok(None) };
        Ok(())
    }

    fn enter(&mut self, block: &Block) -> Result<u64, Error> {
        if !self.is_after(block.after) {
            self.floor = block.after;
        }
        let unreadable = |_| Error::Corrupt {
            after: block.after,
            up_to: Some(block.up_to),
            detail: format!("the index of block {} is unreadable", block.number),
        };
        let spans = &block.index().map_err(unreadable)?.spans;
        let continued = !block.continued_begin().is_empty();
        let mut first_wanted = true;
        for (i, span) in spans.iter().enumerate() {
            match span.ending.position() {
                Some(end) if !self.is_after(end) => {
                    self.floor = end;
                    first_wanted &= i > 0;
                }
                None if i == 0 && span.ending == SpanEnd::Discard => first_wanted = false,
                _ => {}
            }
        }
        if continued && first_wanted {
            return Ok(self.open_since.clone()?.unwrap_or(block.number));
        }
        Ok(block.number)
    }
}

impl Shared {
    pub(super) fn hot(&self, cursor: &mut Cursor) -> Option<Fetched> {
        match self.ring.get(cursor.block) {
            Lookup::Here(block) => Some(pass(cursor, block)),
            Lookup::Ahead => Some(Fetched::AtTail),
            Lookup::Older => None,
        }
    }

    /// The block at the cursor, if its chunk has been read and is still in memory.
    fn cached(&self, cursor: &mut Cursor) -> Option<Fetched> {
        let chunk = self.map.read().chunk_of_block(cursor.block)?;
        let block = self.chunks.ready(&chunk)?.block(cursor.block)?.ok()?;
        Some(pass(cursor, block))
    }

    async fn fetch(&self, cursor: &mut Cursor) -> Result<Fetched, Error> {
        loop {
            if let Some(fetched) = self.hot(cursor) {
                return Ok(fetched);
            }
            let (chunk, first_block, earliest) = {
                let map = self.map.read();
                (map.chunk_of_block(cursor.block), map.first_block(), map.earliest())
            };
            if cursor.block < first_block {
                return Err(Error::Expired { requested: cursor.after, earliest });
            }
            let Some(chunk) = chunk else { return Ok(Fetched::AtTail) };
            let Some(decoded) = self.read_chunk(&chunk).await? else { continue };
            match decoded.block(cursor.block) {
                Some(block) => return Ok(pass(cursor, block?)),
                None => return Err(hole(&chunk, cursor.block)),
            }
        }
    }

    /// `None`: retention has removed it meanwhile, look again.
    async fn read_chunk(&self, chunk: &Chunk) -> Result<Option<Arc<Decoded>>, Error> {
        match self.chunks.get(chunk).await {
            Ok(decoded) => Ok(Some(decoded)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.map.read().segments.first().is_some_and(|first| chunk.segment < first.number) {
                    return Ok(None);
                }
                let detail = format!("{} is missing", chunk.path.display());
                Err(Error::Corrupt { after: chunk.after, up_to: chunk.next_after, detail })
            }
            Err(error) => Err(Error::Io(Arc::new(error))),
        }
    }

    async fn locate(&self, start: Start) -> Result<Cursor, Error> {
        match start {
            Start::Earliest => Ok(earliest_cursor(&self.map.read())),
            Start::Latest => Ok(tail_cursor(&self.map.read())),
            Start::After(position) => {
                let cursor = self.locate_after(position, position).await?;
                Ok(Cursor { after: self.map.read().history.normalize(position), ..cursor })
            }
            Start::AfterLsn(lsn) => {
                let lineage = self.map.read().history.newest().map(|start| start.id).unwrap_or_default();
                let at = Position { lineage, lsn, sequence: u32::MAX };
                self.locate_after(at, Position::new(lineage, lsn)).await
            }
            Start::Since(time) => {
                let cursor = self.locate_since(time).await?;
                Ok(self.map.read().history.onward(cursor))
            }
        }
    }

    async fn locate_dead(&self, crossing: &Crossing) -> Result<Cursor, Error> {
        let departs = crossing.departs;
        {
            let map = self.map.read();
            if let Some((after, block)) = map.earliest.filter(|(after, _)| map.key(*after) > map.key(departs)) {
                return Ok(Cursor { block, after });
            }
        }
        let cursor = self.locate_at(departs, departs, false).await?;
        Ok(Cursor { after: departs, ..cursor })
    }

    /// The cursor whose `after` is the greatest resume point that is not after `position`.
    async fn locate_after(&self, position: Position, requested: Position) -> Result<Cursor, Error> {
        self.locate_at(position, requested, true).await
    }

    async fn locate_at(&self, position: Position, requested: Position, alive: bool) -> Result<Cursor, Error> {
        loop {
            let (mut search, mut chunk, first_block, expired) = {
                let map = self.map.read();
                let tail = map.marks.tail;
                if alive && (!map.history.is_empty() || requested.lineage != LineageId::default()) {
                    map.history.check(requested)?;
                }
                let at_tail = tail.lineage == position.lineage && position.order() >= tail.order();
                if at_tail || map.history.is_empty() {
                    let after = if requested.lsn == tail.lsn { tail } else { requested };
                    return Ok(Cursor { after, ..tail_cursor(&map) });
                }
                let at = map.history.normalize(position);
                if let Some(block) = map.next_crossed(at).filter(|_| alive) {
                    return Ok(Cursor { block, after: at });
                }
                let expired = Error::Expired { requested, earliest: map.earliest() };
                let retained = !alive || map.key(at) >= map.key(map.earliest());
                let Some(chunk) = map.chunk_of_position(at).filter(|_| retained) else { return Err(expired) };
                let (open_since, floor) = (opens(&chunk), chunk.after);
                let search = Search { history: map.history.clone(), tail, position: at, open_since, floor };
                (search, chunk, map.first_block(), expired)
            };
            let found = loop {
                let Some(decoded) = self.read_chunk(&chunk).await? else { break None };
                if let Some(block) = search.walk(&decoded, &chunk)? {
                    break Some(block);
                }
                match self.map.read().chunk_after(&chunk) {
                    After::Chunk(next) => {
                        if !next.headless {
                            search.open_since = Ok(next.open_since);
                        }
                        chunk = next;
                    }
                    After::Tail => break Some(search.open_since.clone()?.unwrap_or(chunk.next_block)),
                    After::Gone => break None,
                }
            };
            match found {
                Some(block) if block < first_block => return Err(expired),
                Some(block) => return Ok(Cursor { block, after: search.floor }),
                None => {}
            }
        }
    }

    async fn locate_since(&self, time: i64) -> Result<Cursor, Error> {
        let mut behind: Option<Chunk> = None;
        loop {
            let (next, earliest, tail) = {
                let map = self.map.read();
                let next = match &behind {
                    None => map.chunk_of_time(time).map_or(After::Tail, After::Chunk),
                    Some(chunk) => map.chunk_after(chunk),
                };
                (next, earliest_cursor(&map), tail_cursor(&map))
            };
            let chunk = match next {
                After::Chunk(chunk) => chunk,
                After::Tail => return Ok(tail),
                After::Gone => {
                    behind = None;
                    continue;
                }
            };
            let Some(decoded) = self.read_chunk(&chunk).await? else { continue };
            let mut open_since = opens(&chunk);
            let mut expected = chunk.first_block;
            for block in &decoded.blocks {
                if block.number != expected
                    && let Some(Err(error)) = decoded.block(expected)
                {
                    return Err(error);
                }
                expected = block.number + 1;
                let fresh = block.continued_begin().is_empty();
                if block.commit_time != 0 && block.commit_time >= time {
                    let first = match open_since {
                        Ok(open) if !fresh => open.unwrap_or(block.number),
                        Err(_) if !fresh && block.number >= earliest.block => {
                            self.locate_at(block.after, block.after, false).await?.block
                        }
                        _ => block.number,
                    };
                    let found = Cursor { block: first, after: block.after };
                    return Ok(if found.block < earliest.block { earliest } else { found });
                }
                open_since = match block.ends_open {
                    false => Ok(None),
                    true if fresh || block.up_to != block.after => Ok(Some(block.number)),
                    true => open_since,
                };
            }
            if let Some(lost) = decoded.gaps.first() {
                return Err(lost.error());
            }
            behind = Some(chunk);
        }
    }
}

/// Where the transaction begins that is open in front of a chunk.
fn opens(chunk: &Chunk) -> Result<Option<u64>, Error> {
    if !chunk.headless {
        return Ok(chunk.open_since);
    }
    let detail = format!("{}: what is open in front of {} is lost", chunk.path.display(), chunk.from);
    Err(Error::Corrupt { after: chunk.after, up_to: chunk.next_after, detail })
}

fn hole(chunk: &Chunk, number: u64) -> Error {
    let detail = format!("{}: block {number} is not where the index says", chunk.path.display());
    Error::Corrupt { after: chunk.after, up_to: chunk.next_after, detail }
}

fn tail_cursor(map: &Map) -> Cursor {
    Cursor { block: map.open_since.unwrap_or(map.marks.next_block), after: map.marks.tail }
}

fn earliest_cursor(map: &Map) -> Cursor {
    let cursor = map.earliest.map_or_else(|| tail_cursor(map), |(after, block)| Cursor { block, after });
    map.history.onward(cursor)
}

/// The oldest resume point, the block that follows it, and the first commit time there. Blocks the thread.
pub(super) fn find_earliest(map: &Map) -> io::Result<Option<(Position, u64, Option<i64>)>> {
    let Some(segment) = map.segments.first() else { return Ok(None) };
    let chunk = map.chunk_of_block(segment.first_block);
    if segment.after.lineage != LineageId::default() && !segment.may_begin_open() {
        let time = chunk.map_or(Ok(None), |chunk| first_commit_time(map, chunk, 0))?;
        return Ok(Some((segment.after, segment.first_block, time)));
    }
    if let Some((position, block)) = founded(segment)? {
        let time = chunk.map_or(Ok(None), |chunk| first_commit_time(map, chunk, block))?;
        return Ok(Some((position, block, time)));
    }
    let Some(mut chunk) = chunk else { return Ok(None) };
    loop {
        let decoded = chunk::read(&chunk)?;
        let damaged = decoded.gaps.first().is_some_and(|gap| gap.first == segment.first_block);
        if damaged && segment.after.lineage != LineageId::default() {
            return Ok(Some((segment.after, segment.first_block, first_commit_time(map, chunk, 0)?)));
        }
        for block in &decoded.blocks {
            let start = match block.continued_begin().is_empty() {
                true => Some(block.after),
                false => block.index().ok().and_then(|index| index.spans.iter().find_map(|s| s.ending.position())),
            };
            if let Some(position) = start {
                let (number, chunk) = (block.number, chunk.clone());
                return Ok(Some((position, number, first_commit_time(map, chunk, number)?)));
            }
        }
        match map.chunk_after(&chunk) {
            After::Chunk(next) => chunk = next,
            After::Tail | After::Gone => return Ok(Some((map.marks.tail, map.marks.next_block, None))),
        }
    }
}

/// The resume point that a journal's first segment begins with, before any block, and the number of the block behind it.
fn founded(segment: &Segment) -> io::Result<Option<(Position, u64)>> {
    if segment.after.lineage != LineageId::default() || segment.unreadable.is_some() {
        return Ok(None);
    }
    let file = File::open(&segment.path)?;
    let mut scanner = Scanner::new(FilePieces::new(&file, segment.len, 4096)?, segment.salt, RECORDS, false);
    loop {
        match scanner.step()? {
            Step::Record { header, .. } if header.kind == Kind::Mark as u8 => {
                return Ok(Some((header.last, header.block)));
            }
            Step::Record { header, .. } if header.kind != Kind::Block as u8 => {}
            Step::Record { .. } | Step::Damage { .. } | Step::End { .. } => return Ok(None),
        }
    }
}

/// The first commit time at or after a block.
fn first_commit_time(map: &Map, mut chunk: Chunk, from: u64) -> io::Result<Option<i64>> {
    loop {
        if chunk.commit_time != 0 || chunk.headless {
            let decoded = chunk::read(&chunk)?;
            let first = decoded.blocks.iter().find(|block| block.number >= from && block.commit_time != 0);
            if let Some(block) = first {
                return Ok(Some(block.commit_time));
            }
        }
        match map.chunk_after(&chunk) {
            After::Chunk(next) => chunk = next,
            After::Tail | After::Gone => return Ok(None),
        }
    }
}

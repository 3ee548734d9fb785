//! Opening: from files and store to a journal. Reads the last segment behind its last place, headers of the others, and
//! whatever the store does not know or knows wrongly.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Error,
    disk::{FilePieces, list_segments, read_header},
    horizon::{self, get_horizon},
    map::{Map, Place, RelationEntry, Segment},
    replay,
    rows::{self, Covered, Pointer, Row},
    segment::{BadHeader, Kind, Pieces, RECORD_LEN, RECORDS, RecordHeader, Scanner, Step},
    store::{Loaded, Write},
    tail::{State, Tail, get_lineage, get_relation, get_state},
};
use crate::{
    feed::{Checkpoint, History, LineageStart, Marks, SubscriberKey},
    model::{LineageId, Position, Relation, RelationId},
    wire::block::Block,
};

/// Damage that was met while opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Last good position before it.
    pub after: Position,
    /// First good position behind it, if one was found.
    pub up_to: Option<Position>,
    /// File, offsets and what does not match.
    pub detail: String,
}

/// What the store's rows say.
#[derive(Debug, Default)]
pub(super) struct Known {
    places: BTreeMap<u64, (u64, Vec<Place>)>,
    relations: BTreeMap<RelationId, Pointer>,
    lineages: BTreeMap<u32, Pointer>,
    covered: Option<Covered>,
    pub checkpoints: BTreeMap<SubscriberKey, Checkpoint>,
    /// Checkpoints that could not be read.
    pub lost_checkpoints: usize,
}

/// Sorts what was stored.
pub(super) fn sort_rows(loaded: &Loaded) -> Known {
    let mut known = Known::default();
    for (table, key, value) in &loaded.rows {
        match rows::read(*table, key, value) {
            Some(Row::Place { segment, salt, place }) => {
                let places = known.places.entry(segment).or_insert((salt, Vec::new()));
                if places.0 == salt {
                    places.1.push(place);
                }
            }
            Some(Row::Relation(id, at)) => drop(known.relations.insert(id, at)),
            Some(Row::Lineage(rank, at)) => drop(known.lineages.insert(rank, at)),
            Some(Row::Covered(covered)) => known.covered = Some(covered),
            Some(Row::Checkpoint(key, checkpoint)) => drop(known.checkpoints.insert(key, checkpoint)),
            None if *table == super::store::Table::Checkpoints => known.lost_checkpoints += 1,
            None => {}
        }
    }
    known
}

/// The journal as it was found on disk.
pub(super) struct Found {
    pub map: Map,
    pub tail: Tail,
    /// Where the last segment ends, and its last place. `None`: it cannot be continued, the next one must begin.
    pub resume: Option<(u64, u64, bool)>,
    pub damage: Vec<Damage>,
    /// Bytes behind the last intact record that a crash tore off.
    pub torn: u64,
    /// Rows that the store lacks.
    pub rows: Vec<Write>,
}

/// Reads the directory; `None` when it holds no segment.
pub(super) fn find(dir: &Path, known: &Known) -> Result<Option<Found>, Error> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    replay::cut(dir)?;
    let mut segments = read_headers(dir)?;
    let Some(last) = segments.last().cloned() else { return Ok(None) };
    if let Some(why) = &last.unreadable {
        let after = segments.iter().rev().nth(1).map_or(Position::default(), |segment| segment.after);
        let detail = format!("{}: {why}; moving the file away gives up what it holds", last.path.display());
        return Err(Error::Corrupt(Damage { after, up_to: None, detail }));
    }
    let salt_of = |number: u64| segments.iter().find(|s| s.number == number).map(|s| s.salt);
    let covered = known.covered.filter(|covered| salt_of(covered.at.segment) == Some(covered.salt));
    let mut finder = Finder { covered, ..Finder::default() };
    if let Some(covered) = covered
        && !finder.follow_pointers(known, &segments, covered.at).map_err(Error::io(dir))?
    {
        finder = Finder::default();
    }
    drop_unreadable_front(&mut segments, &mut finder.damage);
    let sealed = segments.len() - 1;
    let ends: Vec<u64> = segments.iter().skip(1).map(|next| next.first_block).collect();
    let sealed = segments.iter_mut().take(sealed).zip(ends).filter(|(segment, _)| segment.unreadable.is_none());
    for (segment, end) in sealed {
        let in_store = finder.covered.is_some_and(|covered| segment.number < covered.at.segment);
        match known.places.get(&segment.number) {
            Some((salt, places))
                if in_store
                    && *salt == segment.salt
                    && places.first().is_some_and(|place| place.block == segment.first_block) =>
            {
                segment.places.clone_from(places);
            }
            _ => finder.hop(segment, end)?,
        }
    }
    place_unreadable(&mut segments, &mut finder.damage)?;
    let mut tail = Tail { next_block: last.first_block, position: last.after, ..Tail::default() };
    let resume = finder.read_last(&mut segments, known, &mut tail)?;
    let map = Map {
        relations: finder.relations,
        history: Arc::new(History::of(tail.lineages.iter().cloned())),
        marks: Marks { next_block: tail.next_block, tail: tail.position },
        open_since: tail.open.as_ref().map(|open| open.first_block),
        segments,
        earliest: None,
        earliest_commit_time: None,
        held_from: None,
    };
    Ok(Some(Found { map, tail, resume, damage: finder.damage, torn: finder.torn, rows: finder.rows }))
}

fn read_headers(dir: &Path) -> Result<Vec<Segment>, Error> {
    let mut segments: Vec<Segment> = Vec::new();
    for (number, path) in list_segments(dir).map_err(Error::io(dir))? {
        let file = File::open(&path).map_err(Error::io(&path))?;
        let len = file.metadata().map_err(Error::io(&path))?.len();
        let mut segment = Segment {
            number,
            first_block: segments.last().map_or(0, |before| before.first_block),
            after: segments.last().map_or(Position::default(), |before| before.after),
            path,
            created: i64::MAX,
            salt: 0,
            preamble: RECORDS,
            len,
            unreadable: None,
            places: Vec::new(),
        };
        match read_header(&file).map_err(Error::io(&segment.path))? {
            Ok(header) if header.number == number => {
                segment.first_block = header.first_block;
                segment.after = header.after;
                segment.created = header.created;
                segment.salt = header.salt;
                segment.preamble = header.preamble;
            }
            Ok(header) => segment.unreadable = Some(format!("its header says segment {}", header.number).into()),
            Err(BadHeader::Version(found)) => return Err(Error::Version { path: segment.path, found }),
            Err(error @ BadHeader::Damaged) => segment.unreadable = Some(error.to_string().into()),
        }
        segments.push(segment);
    }
    Ok(segments)
}

/// Segments at the front that cannot be read are left out: what they hold is as good as expired.
fn drop_unreadable_front(segments: &mut Vec<Segment>, damage: &mut Vec<Damage>) {
    let first = segments.iter().position(|segment| segment.unreadable.is_none()).unwrap_or(0);
    for segment in segments.drain(..first) {
        let detail = format!("{}: {}", segment.path.display(), segment.unreadable.unwrap_or_default());
        damage.push(Damage { after: segment.after, up_to: None, detail });
    }
}

/// Finds out where a segment without a header begins: where the one in front ends.
fn place_unreadable(segments: &mut [Segment], damage: &mut Vec<Damage>) -> Result<(), Error> {
    for i in 1..segments.len() {
        let Some(why) = segments[i].unreadable.clone() else { continue };
        let before = &segments[i - 1];
        let (mut next_block, mut after) = (before.first_block, before.after);
        if before.unreadable.is_none() {
            let file = File::open(&before.path).map_err(Error::io(&before.path))?;
            let pieces = FilePieces::new(&file, before.len, 4096).map_err(Error::io(&before.path))?;
            let from = before.places.last().map_or(RECORDS, |place| place.offset);
            let mut scanner = Scanner::new(pieces, before.salt, from, false);
            loop {
                match scanner.step().map_err(Error::io(&before.path))? {
                    Step::End { .. } => break,
                    Step::Damage { to, .. } if to >= before.len => break,
                    Step::Damage { .. } => {}
                    Step::Record { header, .. } => {
                        next_block = header.block + u64::from(header.kind == Kind::Block as u8);
                        after = header.last;
                    }
                }
            }
        }
        let up_to = segments.get(i + 1).map(|next| next.after);
        let detail = format!("{}: {why}", segments[i].path.display());
        damage.push(Damage { after, up_to, detail });
        (segments[i].first_block, segments[i].after) = (next_block, after);
    }
    Ok(())
}

#[derive(Default)]
struct Finder {
    covered: Option<Covered>,
    relations: BTreeMap<RelationId, RelationEntry>,
    lineages: BTreeMap<u32, LineageStart>,
    damage: Vec<Damage>,
    torn: u64,
    rows: Vec<Write>,
}

impl Finder {
    /// Reads the records that the store points at; `false` when one is not there.
    fn follow_pointers(&mut self, known: &Known, segments: &[Segment], up_to: Pointer) -> io::Result<bool> {
        let first = segments.first().map_or(0, |segment| segment.number);
        let relations = known.relations.values().filter(|at| **at < up_to && at.segment >= first);
        let mut at: Vec<(Pointer, Option<u32>)> = relations.map(|at| (*at, None)).collect();
        at.extend(known.lineages.iter().filter(|(_, at)| **at < up_to).map(|(rank, at)| (*at, Some(*rank))));
        at.sort();
        let mut at = at.into_iter().peekable();
        while let Some((first, _)) = at.peek().copied() {
            let Some(segment) = segments.iter().find(|segment| segment.number == first.segment) else {
                return Ok(false);
            };
            let file = File::open(&segment.path)?;
            let mut pieces = FilePieces::new(&file, u64::MAX, 256 << 10)?;
            while let Some((pointer, rank)) = at.next_if(|(pointer, _)| pointer.segment == first.segment) {
                let Some((header, payload)) = record_at(&mut pieces, segment.salt, pointer.offset)? else {
                    return Ok(false);
                };
                let read = match (Kind::from_byte(header.kind), rank) {
                    (Some(Kind::Relation), None) => self.relation(&payload, pointer).is_ok(),
                    (Some(Kind::Lineage), Some(rank)) => {
                        get_lineage(&payload).map(|start| self.lineages.insert(rank, start)).is_ok()
                    }
                    _ => false,
                };
                if !read {
                    return Ok(false);
                }
            }
        }
        Ok(self.lineages.keys().copied().eq(0..self.lineages.len() as u32))
    }

    fn relation(&mut self, payload: &Bytes, at: Pointer) -> Result<Arc<Relation>, super::tail::Unreadable> {
        let relation = get_relation(payload)?;
        let entry = RelationEntry { relation: relation.clone(), at };
        let newest = self.relations.get(&relation.id).is_none_or(|known| known.at < at);
        if newest {
            self.relations.insert(relation.id, entry);
        }
        Ok(relation)
    }

    /// Finds the places of a sealed segment by its record headers. Its blocks go up to `end`, exclusive.
    fn hop(&mut self, segment: &mut Segment, end: u64) -> Result<(), Error> {
        let file = File::open(&segment.path).map_err(Error::io(&segment.path))?;
        let pieces = FilePieces::new(&file, segment.len, 4096).map_err(Error::io(&segment.path))?;
        let mut scanner = Scanner::new(pieces, segment.salt, RECORDS, false);
        let mut next_block = segment.first_block;
        loop {
            match scanner.step().map_err(Error::io(&segment.path))? {
                Step::End { .. } => break,
                Step::Damage { .. } => {
                    if let Some(place) = segment.places.last_mut() {
                        place.is_damaged = true;
                    }
                }
                Step::Record { offset, header, payload } => {
                    let at = Pointer { segment: segment.number, offset };
                    match Kind::from_byte(header.kind) {
                        None => return Err(Error::UnknownRecord { path: segment.path.clone(), kind: header.kind }),
                        Some(Kind::State) => {
                            if let Ok(state) = get_state(&payload) {
                                segment.places.push(place(offset, &header, &state));
                            }
                        }
                        Some(Kind::Relation) => {
                            if let Ok(relation) = self.relation(&payload, at) {
                                self.rows.push(rows::put_relation(relation.id, at));
                            }
                        }
                        Some(Kind::Block) => {
                            next_block = header.block + 1;
                            if let Some(place) = segment.places.last_mut() {
                                place.commit_time = place.commit_time.max(header.commit_time);
                            }
                        }
                        Some(Kind::Lineage) => {
                            if let Ok(start) = get_lineage(&payload) {
                                let known = self.lineages.values().any(|known| known.id == start.id);
                                let rank = self.lineages.len() as u32;
                                if !known {
                                    self.lineages.insert(rank, start);
                                }
                            }
                        }
                        Some(Kind::Mark | Kind::Recovered | Kind::Horizon) => {}
                    }
                }
            }
        }
        if let Some(place) = segment.places.last_mut() {
            place.is_damaged |= next_block < end;
        }
        let places = segment.places.iter().map(|place| rows::put_place(segment.number, segment.salt, place));
        self.rows.extend(places);
        Ok(())
    }

    /// Follows the last segment to its end. See [`Found::resume`].
    fn read_last(
        &mut self,
        segments: &mut [Segment],
        known: &Known,
        tail: &mut Tail,
    ) -> Result<Option<(u64, u64, bool)>, Error> {
        let Some(segment) = segments.last_mut() else { return Ok(None) };
        let file = File::open(&segment.path).map_err(Error::io(&segment.path))?;
        let here = self.covered.filter(|covered| covered.at.segment == segment.number);
        let from = match here {
            Some(covered) => {
                let places = known.places.get(&segment.number).filter(|(salt, _)| *salt == segment.salt);
                let places = places.map(|(_, places)| places.as_slice()).unwrap_or_default();
                segment.places.extend(places.iter().filter(|place| place.offset < covered.at.offset));
                if segment.places.first().is_none_or(|place| place.block != segment.first_block) {
                    let mut front = Segment { len: covered.at.offset, places: Vec::new(), ..segment.clone() };
                    self.hop(&mut front, covered.next_block)?;
                    segment.places = front.places;
                }
                self.seed(tail, segment.number);
                tail.restore(covered.next_block, covered.tail, State::default());
                covered.at.offset
            }
            None => {
                self.seed(tail, segment.number);
                RECORDS
            }
        };
        let mut proven = here.map_or(segment.preamble, |covered| covered.at.offset + 1);
        let mut bad: Vec<u64> = Vec::new();
        let mut scanner = scanner(&file, segment, from)?;
        let end = loop {
            match scanner.step().map_err(Error::io(&segment.path))? {
                Step::End { offset } => break offset,
                Step::Damage { from, to, .. } => {
                    bad.push(from);
                    if to >= segment.len {
                        break to;
                    }
                }
                Step::Record { offset, header, .. } => {
                    if Kind::from_byte(header.kind).is_none() {
                        return Err(Error::UnknownRecord { path: segment.path.clone(), kind: header.kind });
                    }
                    if header.synced <= offset {
                        proven = proven.max(header.synced);
                    }
                }
            }
        };
        let cut = bad.iter().copied().find(|from| *from >= proven).unwrap_or(end);
        self.torn = end.saturating_sub(cut);
        let followed = self.follow(&file, segment, from, cut, tail)?;
        let lost = here.filter(|covered| followed <= covered.at.offset);
        if let Some(covered) = lost {
            let detail = format!("{}: the records from {followed} on are gone", segment.path.display());
            self.damage.push(Damage { after: tail.position, up_to: Some(covered.tail), detail });
            tail.restore(covered.next_block, covered.tail, State::default());
            segment.len = segment.len.min(cut);
            return Ok(None);
        }
        let known = tail.lineages.iter().any(|start| start.id == tail.position.lineage);
        if cut < segment.preamble || !known && tail.position.lineage != LineageId::default() {
            let detail = format!("{}: its first records are gone", segment.path.display());
            return Err(Error::Corrupt(Damage { after: tail.position, up_to: None, detail }));
        }
        segment.len = cut;
        let place = segment.places.last().map_or(RECORDS, |place| place.offset);
        Ok(Some((cut, place, tail.next_block > segment.first_block)))
    }

    /// Gives the tail what the store knows in front of the place where scanning starts.
    fn seed(&self, tail: &mut Tail, segment: u64) {
        tail.lineages = self.lineages.values().cloned().collect();
        let mut entries: Vec<&RelationEntry> = self.relations.values().collect();
        entries.sort_by_key(|entry| entry.at);
        entries.iter().for_each(|entry| tail.relation(&entry.relation));
        let here = |relation: &Arc<Relation>| self.relations.get(&relation.id).is_some_and(|e| e.at.segment == segment);
        tail.superseded.retain(here);
    }

    /// Applies the records of the last segment up to `cut`; where the last intact one ends.
    fn follow(
        &mut self,
        file: &File,
        segment: &mut Segment,
        from: u64,
        cut: u64,
        tail: &mut Tail,
    ) -> Result<u64, Error> {
        let mut scanner = scanner(file, segment, from)?;
        let first_row = self.rows.len();
        let mut pending: Option<String> = None;
        let mut started = from == RECORDS;
        let mut reached = from;
        while scanner.offset() < cut {
            let (offset, header, payload) = match scanner.step().map_err(Error::io(&segment.path))? {
                Step::End { .. } => break,
                Step::Damage { from, .. } if from >= cut => break,
                Step::Damage { from, to, detail } => {
                    if let Some(place) = segment.places.last_mut() {
                        place.is_damaged = true;
                    }
                    pending.get_or_insert(format!("{}: {detail} at {from}..{to}", segment.path.display()));
                    continue;
                }
                Step::Record { offset, header, payload } => (offset, header, payload),
            };
            let at = Pointer { segment: segment.number, offset };
            reached = offset + header.size();
            let kind = Kind::from_byte(header.kind);
            let repeated = header.repeated && matches!(kind, Some(Kind::Relation | Kind::Lineage));
            let jumped = header.block != tail.next_block || kind != Some(Kind::Block) && header.first != tail.position;
            if jumped && started && !repeated {
                pending.get_or_insert(format!("{}: a gap in front of {offset}", segment.path.display()));
            }
            if let Some(detail) = pending.take() {
                self.damage.push(Damage { after: tail.position, up_to: Some(header.first), detail });
                tail.resume_at(header.block, header.first);
            }
            let unreadable = match kind {
                Some(Kind::Block) => self.block(segment, &header, payload, tail),
                Some(Kind::Relation) => self.relation(&payload, at).map(|relation| {
                    match repeated {
                        true => drop(tail.current.insert(relation.oid, relation.clone())),
                        false => tail.relation(&relation),
                    }
                    self.rows.push(rows::put_relation(relation.id, at));
                }),
                Some(Kind::Lineage) => get_lineage(&payload).map(|start| {
                    let known = tail.lineages.iter().position(|known| known.id == start.id);
                    let rank = known.unwrap_or(tail.lineages.len());
                    if known.is_none() {
                        tail.lineage(start);
                    }
                    if repeated {
                        tail.position = header.last;
                    }
                    self.rows.push(rows::put_lineage(rank as u32, at));
                }),
                Some(Kind::Mark) => {
                    tail.position = header.last;
                    Ok(())
                }
                Some(Kind::Recovered) => {
                    tail.recovered(header.last);
                    Ok(())
                }
                Some(Kind::Horizon) => get_horizon(&payload).map(|horizon| horizon::keep(&mut tail.horizons, horizon)),
                Some(Kind::State) => get_state(&payload).map(|state| {
                    let place = place(offset, &header, &state);
                    tail.restore(header.block, header.last, state);
                    segment.places.push(place);
                    let covered = Covered { at, salt: segment.salt, next_block: header.block, tail: header.last };
                    self.rows.push(rows::put_covered(&covered));
                }),
                None => Ok(()),
            };
            started = true;
            if let Err(error) = unreadable {
                pending = Some(format!("{}: {error} at {offset}", segment.path.display()));
            }
        }
        if let Some(detail) = pending {
            self.damage.push(Damage { after: tail.position, up_to: None, detail });
        }
        let found = segment.places.iter().filter(|place| place.offset >= from);
        let found = found.map(|place| rows::put_place(segment.number, segment.salt, place));
        self.rows.splice(first_row..first_row, found);
        Ok(reached)
    }

    fn block(
        &mut self,
        segment: &mut Segment,
        header: &RecordHeader,
        payload: Bytes,
        tail: &mut Tail,
    ) -> Result<(), super::tail::Unreadable> {
        let block = Block::decode(payload).map_err(|_| super::tail::Unreadable("block"))?;
        if let Some(place) = segment.places.last_mut() {
            place.commit_time = place.commit_time.max(header.commit_time);
        }
        let block = Arc::new(block);
        if tail.block(&block).is_err() {
            // The head of its transaction is lost; that damage has been reported where it lies.
            tail.resume_at(block.number + 1, block.up_to);
        }
        Ok(())
    }
}

fn scanner<'f>(file: &'f File, segment: &Segment, from: u64) -> Result<Scanner<FilePieces<'f>>, Error> {
    let pieces = FilePieces::new(file, segment.len, 1 << 20).map_err(Error::io(&segment.path))?;
    Ok(Scanner::new(pieces, segment.salt, from, true))
}

fn place(offset: u64, header: &RecordHeader, state: &State) -> Place {
    let open_since = state.open.as_ref().map(|open| open.first_block);
    Place { offset, block: header.block, after: header.last, open_since, commit_time: 0, is_damaged: false }
}

/// The intact record at an offset.
fn record_at(pieces: &mut impl Pieces, salt: u64, offset: u64) -> io::Result<Option<(RecordHeader, Bytes)>> {
    let head = pieces.piece(offset, RECORD_LEN)?;
    let Some(header) = RecordHeader::decode(salt, offset, &head) else { return Ok(None) };
    let payload = pieces.piece(offset + RECORD_LEN as u64, header.len as usize)?;
    let intact = payload.len() == header.len as usize && crc32c::crc32c(&payload) == header.payload_crc;
    Ok(intact.then_some((header, payload)))
}

//! The commit path: a thread that takes everything queued, writes it with one vectored write, syncs, and then moves the
//! marks. The next sync starts when the last one ended; there is no timer. Payloads are never copied. In eager mode the marks
//! move after the write, and [`Syncer`] follows with the sync.

use std::{
    fs::File,
    io,
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    Horizon, Shared,
    appender::Queue,
    disk::{now, preallocate, segment_path, sync_dir},
    horizon::{self, put_horizon},
    keeper::Desk,
    map::{Place, RelationEntry, Segment},
    rows::{self, Covered, Pointer},
    segment::{FileHeader, Kind, RECORD_LEN, RECORDS, RecordHeader},
    store::Write,
    syncer::{Syncer, Written},
    tail::{Tail, put_lineage, put_relation, put_state},
};
use crate::{
    failpoint,
    feed::{LineageStart, Marks},
    lsn::Lsn,
    metrics,
    model::{Position, Relation},
    wire::block::Block,
};

/// What [`Appender::append`](super::Appender::append) hands over, checked and numbered.
#[derive(Debug)]
pub(super) enum Entry {
    Block(Arc<Block>),
    Relation(Arc<Relation>),
    Lineage(LineageStart),
    Mark(Position),
    Replay,
    Recovered(Position, String),
    Horizon(Horizon),
}

/// Why the writer thread ended.
#[derive(Debug)]
pub(super) enum Stop {
    /// Asked to, perhaps while it waited for disk space.
    Asked,
    Fatal(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Fatal(error.to_string())
    }
}

/// The active segment and what will go into it.
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub desk: Arc<Desk>,
    pub queue: Arc<Queue>,
    pub tail: Tail,
    pub file: Arc<File>,
    pub header: FileHeader,
    /// Where the next record goes.
    pub offset: u64,
    /// Everything in front is written.
    pub written: u64,
    /// Everything in front is durable.
    pub synced: u64,
    pub preallocated: bool,
    /// Offset of the last place.
    pub place: u64,
    /// Whether the segment holds blocks.
    pub has_blocks: bool,
    /// Catalogue rows of a replay that does not count yet.
    pub held_rows: Vec<Write>,
    /// In eager mode.
    pub syncer: Option<Syncer>,
    pub batch: Batch,
}

/// Encoded records that are not written yet, and what they will change once they are durable.
#[derive(Default)]
pub(super) struct Batch {
    pub scratch: BytesMut,
    pub parts: Vec<Part>,
    /// Where the part of `scratch` begins that no entry of `parts` covers yet.
    from: usize,
    blocks: Vec<Arc<Block>>,
    places: Vec<Place>,
    relations: Vec<(Arc<Relation>, Pointer)>,
    lineages: Vec<(LineageStart, u32, Pointer)>,
    /// Nobody may see it before it is durable, in eager mode either.
    strict: bool,
}

pub(super) enum Part {
    Scratch(Range<usize>),
    Message(Bytes),
}

impl Batch {
    fn clear(&mut self) {
        self.scratch.clear();
        self.parts.clear();
        self.from = 0;
        self.blocks.clear();
        self.places.clear();
        self.relations.clear();
        self.lineages.clear();
        self.strict = false;
    }

    fn close_part(&mut self) {
        if self.from < self.scratch.len() {
            self.parts.push(Part::Scratch(self.from..self.scratch.len()));
            self.from = self.scratch.len();
        }
    }
}

impl Writer {
    /// Runs until asked to stop, or until nothing can be promised any more.
    pub fn run(mut self) {
        let mut entries = Vec::new();
        while self.queue.take(&mut entries) {
            let result = self.write_all(&mut entries);
            match result {
                Ok(()) => self.queue.done(),
                Err(Stop::Asked) => return self.queue.fail("there was no room on disk when the hub stopped".into()),
                Err(Stop::Fatal(reason)) => {
                    self.shared.options.disk.fatal(&reason);
                    self.queue.fail(reason);
                    return;
                }
            }
        }
        self.syncer = None; // syncs what it has
        // Spares the next open the search for records behind the last one. Reserved space is reserved again then.
        self.file.set_len(self.offset).ok();
    }

    fn write_all(&mut self, entries: &mut Vec<Entry>) -> Result<(), Stop> {
        let mut entries = entries.drain(..).peekable();
        while let Some(entry) = entries.next() {
            match entry {
                Entry::Mark(_) if matches!(entries.peek(), Some(Entry::Mark(_))) => {}
                entry => self.add(entry)?,
            }
        }
        self.commit()
    }

    fn add(&mut self, entry: Entry) -> Result<(), Stop> {
        let incoming = match &entry {
            Entry::Block(block) => (block.stored_bytes() + size_of::<Block>() + RECORD_LEN) as u64,
            _ => RECORD_LEN as u64,
        };
        self.note_synced();
        let full = self.offset + incoming > self.shared.options.segment_bytes;
        if self.has_blocks && (full || matches!(entry, Entry::Lineage(_))) {
            self.commit()?;
            self.roll(self.header.replay)?;
        }
        if self.offset - self.place >= self.shared.options.index_bytes {
            self.add_state();
        }
        match entry {
            Entry::Block(block) => self.add_block(&block)?,
            Entry::Relation(relation) => {
                self.tail.relation(&relation);
                self.add_relation(&relation, false);
            }
            Entry::Lineage(start) => {
                let first = self.tail.position;
                self.tail.lineage(start.clone());
                self.batch.strict = true;
                self.add_lineage(&start, self.tail.lineages.len() as u32 - 1, first, false);
                self.add_state();
            }
            Entry::Mark(position) => {
                let first = self.tail.position;
                self.tail.position = position;
                self.record(Kind::Mark, false, (first, position), |_| {});
            }
            Entry::Replay => {
                self.commit()?;
                self.roll(true)?;
            }
            Entry::Recovered(position, slot) => {
                self.commit()?; // a RECOVERED that is there proves that everything in front of it is
                let first = self.tail.position;
                self.tail.recovered(position);
                self.record(Kind::Recovered, false, (first, position), |out| out.put_slice(slot.as_bytes()));
                failpoint::hit("recovery_before_recovered");
                self.header.replay = false;
                self.batch.strict = true;
                self.commit()?;
                failpoint::hit("recovery_recovered");
                self.roll(false)?;
            }
            Entry::Horizon(horizon) => {
                let position = self.tail.position;
                self.record(Kind::Horizon, false, (position, position), |out| put_horizon(out, &horizon));
                horizon::keep(&mut self.tail.horizons, horizon);
            }
        }
        Ok(())
    }

    fn add_block(&mut self, block: &Arc<Block>) -> Result<(), Stop> {
        self.tail.block(block).map_err(|error| Stop::Fatal(format!("block {}: {error}", block.number)))?;
        let start = self.batch.scratch.len();
        self.batch.scratch.put_bytes(0, RECORD_LEN);
        block.encode_head(&mut self.batch.scratch);
        let head = &self.batch.scratch[start + RECORD_LEN..];
        let message = block.message();
        let len = head.len() + message.len();
        let header = RecordHeader {
            kind: Kind::Block as u8,
            repeated: false,
            len: u32::try_from(len).map_err(|_| Stop::Fatal(format!("block {} is too large", block.number)))?,
            payload_crc: crc32c::crc32c_append(crc32c::crc32c(head), message),
            block: block.number,
            first: block.after,
            last: block.up_to,
            synced: self.synced,
            commit_time: block.commit_time,
        };
        header.encode(self.header.salt, self.offset, &mut self.batch.scratch[start..]);
        self.batch.close_part();
        self.batch.parts.push(Part::Message(message.clone()));
        self.batch.scratch.put_bytes(0, (header.size() - RECORD_LEN as u64 - len as u64) as usize);
        self.offset += header.size();
        self.has_blocks = true;
        self.batch.blocks.push(block.clone());
        Ok(())
    }

    fn add_relation(&mut self, relation: &Arc<Relation>, repeated: bool) {
        let position = self.tail.position;
        let at = Pointer { segment: self.header.number, offset: self.offset };
        self.record(Kind::Relation, repeated, (position, position), |out| put_relation(out, relation));
        self.batch.relations.push((relation.clone(), at));
    }

    fn add_lineage(&mut self, start: &LineageStart, rank: u32, first: Position, repeated: bool) {
        let last = self.tail.position;
        let at = Pointer { segment: self.header.number, offset: self.offset };
        self.record(Kind::Lineage, repeated, (first, last), |out| put_lineage(out, start));
        self.batch.lineages.push((start.clone(), rank, at));
    }

    /// Adds a STATE record, and so a place.
    fn add_state(&mut self) {
        let position = self.tail.position;
        let state = self.tail.state();
        self.place = self.offset;
        self.batch.places.push(Place {
            offset: self.offset,
            block: self.tail.next_block,
            after: position,
            open_since: state.open.as_ref().map(|open| open.first_block),
            commit_time: 0,
            is_damaged: false,
        });
        self.record(Kind::State, false, (position, position), |out| put_state(out, &state));
    }

    fn record(&mut self, kind: Kind, repeated: bool, range: (Position, Position), payload: impl FnOnce(&mut BytesMut)) {
        let scratch = &mut self.batch.scratch;
        let start = scratch.len();
        scratch.put_bytes(0, RECORD_LEN);
        payload(scratch);
        let body = &scratch[start + RECORD_LEN..];
        let header = RecordHeader {
            kind: kind as u8,
            repeated,
            len: body.len() as u32,
            payload_crc: crc32c::crc32c(body),
            block: self.tail.next_block,
            first: range.0,
            last: range.1,
            synced: self.synced,
            commit_time: 0,
        };
        header.encode(self.header.salt, self.offset, &mut scratch[start..]);
        scratch.resize(start + header.size() as usize, 0);
        self.offset += header.size();
    }

    /// Writes and syncs the batch, then lets everybody see it; in eager mode the sync comes last.
    fn commit(&mut self) -> Result<(), Stop> {
        self.batch.close_part();
        if self.batch.parts.is_empty() {
            return Ok(());
        }
        let bytes = self.write_batch()?;
        self.written = self.offset;
        metrics::add(metrics::JOURNAL_BYTES_WRITTEN, bytes);
        if self.syncer.is_some() && !self.batch.strict && !self.header.replay {
            let rows = self.show();
            self.sync_later(rows)?;
        } else {
            self.settled()?;
            self.sync()?;
            self.synced = self.offset;
            metrics::add(metrics::JOURNAL_FSYNCS, 1);
            self.publish();
        }
        self.batch.clear();
        Ok(())
    }

    fn sync_later(&self, rows: Vec<Write>) -> Result<(), Stop> {
        let Some(syncer) = &self.syncer else { return Ok(()) };
        syncer.hand(Written {
            segment: self.header.number,
            file: self.file.clone(),
            offset: self.written,
            complete: self.tail.position,
            rows,
        })
    }

    /// Waits until what is written is durable.
    fn settled(&self) -> Result<(), Stop> {
        self.syncer.as_ref().map_or(Ok(()), Syncer::settled)
    }

    /// Notes how far the syncer has come, for the records to come.
    fn note_synced(&mut self) {
        let synced = self.syncer.as_ref().and_then(|syncer| syncer.synced(self.header.number));
        self.synced = self.synced.max(synced.unwrap_or(0));
    }

    /// Lets everybody see what is durable.
    fn publish(&mut self) {
        let rows = self.show();
        if !rows.is_empty() {
            self.desk.catalogue(rows);
        }
        if !self.header.replay {
            self.shared.complete.send_replace(self.tail.position);
        }
    }

    /// Lets everybody see the batch; rows for the catalogue, to be written once it is durable. Of a replay that does not count
    /// yet only the places and definitions move.
    fn show(&mut self) -> Vec<Write> {
        let held = self.header.replay;
        let marks = Marks { next_block: self.tail.next_block, tail: self.tail.position };
        let mut rows: Vec<Write> = Vec::new();
        let bytes = {
            let mut map = self.shared.map.write();
            if let Some(active) = map.segments.last_mut() {
                self.extend(active, &mut rows);
            }
            let released = !held && map.held_from.take().is_some();
            if released {
                self.shared.ring.restart(marks.next_block);
                self.batch.blocks.clear();
            }
            if map.earliest.is_none() && !held {
                // What a new journal begins with is its oldest resume point, although no block follows it yet.
                let begins = [map.marks, marks].into_iter().find(|marks| marks.tail.lsn != Lsn::ZERO);
                let block = self.batch.blocks.first().map(|block| (block.after, block.number));
                map.earliest = match begins {
                    Some(begins) if block.is_none_or(|(_, number)| begins.next_block <= number) => {
                        Some((begins.tail, begins.next_block))
                    }
                    _ => block,
                };
            }
            if map.earliest_commit_time.is_none() && !held {
                map.earliest_commit_time = self.batch.blocks.iter().map(|b| b.commit_time).find(|time| *time != 0);
            }
            for (relation, at) in &self.batch.relations {
                let entry = RelationEntry { relation: relation.clone(), at: *at };
                map.relations.insert(relation.id, entry);
                rows.push(rows::put_relation(relation.id, *at));
            }
            for (start, rank, at) in &self.batch.lineages {
                if *rank as usize == map.history.len() {
                    Arc::make_mut(&mut map.history).push(start.clone());
                    self.shared.lineages.store(map.history.len(), Ordering::Release);
                }
                rows.push(rows::put_lineage(*rank, *at));
            }
            if !held {
                map.open_since = self.tail.open.as_ref().map(|open| open.first_block);
                map.marks = marks;
            }
            map.bytes()
        };
        if let Some(place) = self.batch.places.last() {
            let at = Pointer { segment: self.header.number, offset: place.offset };
            let covered = Covered { at, salt: self.header.salt, next_block: place.block, tail: place.after };
            rows.push(rows::put_covered(&covered));
        }
        if held {
            self.held_rows.append(&mut rows);
            metrics::set(metrics::JOURNAL_BYTES, bytes as f64);
            return Vec::new();
        }
        rows.splice(0..0, self.held_rows.drain(..));
        self.shared.ring.push(self.batch.blocks.drain(..));
        self.shared.marks.send_if_modified(|now| std::mem::replace(now, marks) != marks);
        metrics::set(metrics::JOURNAL_BYTES, bytes as f64);
        rows
    }

    /// Adds the batch's places and commit times to the active segment. A place's row is final once the next one exists.
    fn extend(&self, active: &mut Segment, rows: &mut Vec<Write>) {
        let mut places = self.batch.places.iter().peekable();
        let mut add = |active: &mut Segment, place: &Place| {
            if let Some(last) = active.places.last() {
                rows.push(rows::put_place(active.number, active.salt, last));
            }
            active.places.push(*place);
        };
        for block in &self.batch.blocks {
            while let Some(place) = places.next_if(|place| place.block <= block.number) {
                add(active, place);
            }
            if let Some(place) = active.places.last_mut() {
                place.commit_time = place.commit_time.max(block.commit_time);
            }
        }
        places.for_each(|place| add(active, place));
        if let Some(last) = active.places.last().filter(|_| !self.batch.places.is_empty()) {
            rows.push(rows::put_place(active.number, active.salt, last));
        }
        active.len = self.offset;
    }

    /// Ends the active segment and begins the next one. The batch is empty.
    pub fn roll(&mut self, replay: bool) -> Result<(), Stop> {
        let header = FileHeader {
            number: self.header.number + 1,
            first_block: self.tail.next_block,
            after: self.tail.position,
            created: now(),
            salt: fastrand::u64(..),
            preamble: 0,
            replay,
        };
        self.settled()?;
        failpoint::hit("segment_roll");
        self.file.set_len(self.offset)?;
        self.file.sync_all().map_err(|error| Stop::Fatal(format!("fsync: {error}")))?;
        let last = self.shared.map.read().segments.last().and_then(|active| active.places.last().copied());
        self.desk.catalogue(last.map(|place| rows::put_place(self.header.number, self.header.salt, &place)));
        self.begin(header)
    }

    /// Creates a segment and makes it the active one. It gets its name once it is complete.
    pub fn begin(&mut self, header: FileHeader) -> Result<(), Stop> {
        let dir = self.shared.segments_dir.clone();
        let path = segment_path(&dir, header.number);
        let partial = path.with_extension("tmp");
        let (file, preallocated) = self.until_room(|| {
            self.check_reserve(self.shared.options.segment_bytes)?;
            let file = File::options().create(true).truncate(true).read(true).write(true).open(&partial)?;
            let preallocated = preallocate(&file, self.shared.options.segment_bytes);
            if preallocated.is_err() {
                std::fs::remove_file(&partial)?;
            }
            Ok((file, preallocated?))
        })?;
        (self.file, self.header, self.preallocated) = (Arc::new(file), header, preallocated);
        (self.offset, self.synced, self.has_blocks) = (RECORDS, 0, false);
        self.written = 0;
        self.batch.clear();
        self.batch.scratch.put_bytes(0, RECORDS as usize);
        for (rank, start) in self.tail.lineages.clone().into_iter().enumerate() {
            self.add_lineage(&start, rank as u32, self.tail.position, true);
        }
        let superseded = std::mem::take(&mut self.tail.superseded);
        for relation in superseded.iter().chain(&self.tail.current.values().cloned().collect::<Vec<_>>()) {
            self.add_relation(relation, true);
        }
        self.add_state();
        self.header.preamble = self.offset;
        self.batch.scratch[..RECORDS as usize].copy_from_slice(&self.header.encode());
        self.batch.close_part();
        self.write_batch()?;
        self.file.sync_all().map_err(|error| Stop::Fatal(format!("fsync: {error}")))?;
        std::fs::rename(&partial, &path)?;
        sync_dir(&dir).map_err(|error| Stop::Fatal(format!("fsync of the directory: {error}")))?;
        (self.written, self.synced) = (self.offset, self.offset);
        let mut map = self.shared.map.write();
        if header.replay {
            map.held_from.get_or_insert(header.number);
        }
        map.segments.push(Segment {
            number: header.number,
            path,
            first_block: header.first_block,
            after: header.after,
            created: header.created,
            salt: header.salt,
            preamble: self.offset,
            len: self.offset,
            unreadable: None,
            places: Vec::new(),
        });
        drop(map);
        self.publish();
        self.batch.clear();
        Ok(())
    }
}

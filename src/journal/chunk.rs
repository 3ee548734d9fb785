//! Cold reads: one chunk (the records between two places, about a MiB) is read and checked at once, and shared by
//! everybody who stands in it. Its blocks are slices of buffers of their own size: what a stalled stream holds on to are
//! blocks, not the chunk.

use std::{collections::VecDeque, fs::File, io, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::{
    disk::{read_range, will_need},
    map::Chunk,
    segment::{Kind, Pieces, RECORD_LEN, Scanner, Slice, Step},
};
use crate::{feed::Error, metrics, model::Position, wire::block::Block};

/// A chunk in memory.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    /// Ascending; not consecutive where there is damage.
    pub blocks: Vec<Arc<Block>>,
    pub gaps: Vec<Gap>,
    /// Bytes of memory of all blocks.
    pub footprint: u64,
}

/// Blocks that are damaged.
#[derive(Clone, Debug)]
pub(super) struct Gap {
    /// First missing number.
    pub first: u64,
    /// Behind the last missing number.
    pub next: u64,
    pub after: Position,
    pub up_to: Option<Position>,
    pub detail: String,
}

impl Gap {
    pub fn error(&self) -> Error {
        Error::Corrupt { after: self.after, up_to: self.up_to, detail: self.detail.clone() }
    }
}

impl Decoded {
    /// The block with this number; `None` when the chunk, as it was read, does not reach that far.
    pub fn block(&self, number: u64) -> Option<Result<Arc<Block>, Error>> {
        let at = self.blocks.partition_point(|block| block.number < number);
        if let Some(block) = self.blocks.get(at).filter(|block| block.number == number) {
            return Some(Ok(block.clone()));
        }
        let gap = self.gaps.iter().find(|gap| (gap.first..gap.next).contains(&number))?;
        Some(Err(gap.error()))
    }
}

/// Reads and checks a chunk. Blocks the thread.
pub(super) fn read(chunk: &Chunk) -> io::Result<Decoded> {
    if let Some(why) = &chunk.unreadable {
        return Ok(all_bad(chunk, why));
    }
    let file = File::open(&chunk.path)?;
    will_need(&file, chunk.from, chunk.to - chunk.from);
    metrics::add(metrics::JOURNAL_READS, 1);
    metrics::add(metrics::JOURNAL_BYTES_READ, chunk.to - chunk.from);
    decode(chunk, Parts::new(&file, chunk.to)?)
}

fn all_bad(chunk: &Chunk, why: &str) -> Decoded {
    let detail = format!("{}: {why}", chunk.path.display());
    let gap =
        Gap { first: chunk.first_block, next: chunk.next_block, after: chunk.after, up_to: chunk.next_after, detail };
    Decoded { gaps: vec![gap], ..Decoded::default() }
}

/// A file of which each large payload is read into a buffer of its own, where it stays, and small ones together.
struct Parts<'f> {
    file: &'f File,
    end: u64,
    part: Slice,
    /// The last payload was large; then behind the next header there is another one, most likely.
    large: bool,
}

/// Bytes of a buffer that small payloads share, and what is not small.
const PART: usize = 64 << 10;
const LARGE: usize = PART / 4;

impl<'f> Parts<'f> {
    /// Reads up to `end`, or the file's end if that comes first.
    fn new(file: &'f File, end: u64) -> io::Result<Self> {
        let end = end.min(file.metadata()?.len());
        Ok(Parts { file, end, part: Slice { base: 0, bytes: Bytes::new() }, large: true })
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        read_range(self.file, offset, (len as u64).min(self.end.saturating_sub(offset)) as usize)
    }
}

impl Pieces for Parts<'_> {
    fn piece(&mut self, offset: u64, len: usize) -> io::Result<Bytes> {
        let part = &self.part;
        let held = offset >= part.base && offset + len as u64 <= part.base + part.bytes.len() as u64;
        let header = len == RECORD_LEN;
        if !header {
            self.large = len >= LARGE;
        }
        if self.large && !held {
            return self.read(offset, len);
        }
        if !held {
            self.part = Slice { base: offset, bytes: self.read(offset, len.max(PART))? };
        }
        let piece = self.part.piece(offset, len)?;
        Ok(if self.large && !header { Bytes::copy_from_slice(&piece) } else { piece })
    }

    fn end(&self) -> u64 {
        self.end
    }
}

/// Checks the bytes of a chunk.
pub(super) fn decode(chunk: &Chunk, bytes: impl Pieces) -> io::Result<Decoded> {
    let mut decoded = Decoded::default();
    let mut scanner = Scanner::new(bytes, chunk.salt, chunk.from, true);
    let mut expected = chunk.first_block;
    let mut last = chunk.after;
    let mut pending: Option<String> = None;
    loop {
        match scanner.step()? {
            Step::End { .. } => break,
            Step::Damage { from, to, detail } => {
                pending.get_or_insert_with(|| format!("{}: {detail} at {from}..{to}", chunk.path.display()));
            }
            Step::Record { offset, header, payload } => {
                match Kind::from_byte(header.kind) {
                    None => return Err(unknown_kind(header.kind)),
                    Some(Kind::Block) => {}
                    Some(_) => {
                        if header.block == expected {
                            last = header.last;
                        }
                        continue;
                    }
                }
                let block = match Block::decode(payload) {
                    Ok(block) if block.number == header.block && block.up_to == header.last => block,
                    _ => {
                        let detail = format!("{}: unreadable block at {offset}", chunk.path.display());
                        pending.get_or_insert(detail);
                        continue;
                    }
                };
                if block.number < expected || block.number >= chunk.next_block {
                    continue;
                }
                if block.number > expected {
                    let detail = pending.take().unwrap_or_else(|| missing(chunk, expected, block.number));
                    decoded.gaps.push(Gap { first: expected, next: block.number, after: last, up_to: None, detail });
                }
                pending = None;
                expected = block.number + 1;
                last = block.up_to;
                decoded.footprint += block.footprint() as u64;
                decoded.blocks.push(Arc::new(block));
            }
        }
    }
    if expected < chunk.next_block {
        let detail = pending.take().unwrap_or_else(|| missing(chunk, expected, chunk.next_block));
        decoded.gaps.push(Gap { first: expected, next: chunk.next_block, after: last, up_to: None, detail });
    }
    for i in 0..decoded.gaps.len() {
        let behind = decoded.blocks.partition_point(|block| block.number < decoded.gaps[i].next);
        decoded.gaps[i].up_to =
            decoded.blocks[behind..].iter().find_map(|block| clean_start(block)).or(chunk.next_after);
    }
    Ok(decoded)
}

fn missing(chunk: &Chunk, first: u64, next: u64) -> String {
    format!("{}: blocks {first}..{next} are missing", chunk.path.display())
}

/// The first resume point in the block behind which everything is there even when the blocks before it are lost.
fn clean_start(block: &Block) -> Option<Position> {
    if block.continued_begin().is_empty() {
        return Some(block.after);
    }
    block.index().ok()?.spans.iter().find_map(|span| span.ending.position())
}

pub(super) fn unknown_kind(kind: u8) -> io::Error {
    let version = super::segment::VERSION;
    let text = format!("record kind {kind} is not known to format version {version}; a newer walcast wrote it");
    io::Error::new(io::ErrorKind::Unsupported, text)
}

type Cell = Arc<OnceCell<Arc<Decoded>>>;

/// The chunks that were read last, by bytes. Readers who want the same one wait for one read.
#[derive(Debug)]
pub(super) struct ChunkCache {
    limit: u64,
    entries: Mutex<VecDeque<Entry>>,
}

#[derive(Debug)]
struct Entry {
    segment: u64,
    from: u64,
    to: u64,
    cell: Cell,
}

impl Entry {
    /// Of the file while it is being read, then of memory.
    fn bytes(&self) -> u64 {
        self.cell.get().map_or(self.to - self.from, |decoded| decoded.footprint)
    }
}

impl ChunkCache {
    pub fn new(limit: u64) -> Self {
        ChunkCache { limit, entries: Mutex::default() }
    }

    /// The chunk, from memory or disk. Cancel-safe: another waiter takes over.
    pub async fn get(&self, chunk: &Chunk) -> io::Result<Arc<Decoded>> {
        let cell = self.cell(chunk);
        let read = || async {
            let chunk = chunk.clone();
            let decoded = tokio::task::spawn_blocking(move || read(&chunk)).await.map_err(io::Error::other)??;
            Ok(Arc::new(decoded))
        };
        cell.get_or_try_init(read).await.cloned()
    }

    /// The chunk, if it has been read as far as it goes now and is in memory.
    pub fn ready(&self, chunk: &Chunk) -> Option<Arc<Decoded>> {
        let mut entries = self.entries.lock();
        let is_it = |entry: &Entry| entry.segment == chunk.segment && entry.from == chunk.from && entry.to >= chunk.to;
        let at = entries.iter().position(is_it)?;
        let entry = entries.remove(at)?;
        let decoded = entry.cell.get().cloned();
        entries.push_front(entry);
        decoded
    }

    fn cell(&self, chunk: &Chunk) -> Cell {
        let mut entries = self.entries.lock();
        let at = entries.iter().position(|entry| entry.segment == chunk.segment && entry.from == chunk.from);
        let found = at.and_then(|at| entries.remove(at)).filter(|entry| entry.to >= chunk.to);
        let entry = found.unwrap_or_else(|| Entry {
            segment: chunk.segment,
            from: chunk.from,
            to: chunk.to,
            cell: Cell::default(),
        });
        let cell = entry.cell.clone();
        entries.push_front(entry);
        let mut bytes: u64 = entries.iter().map(Entry::bytes).sum();
        while bytes > self.limit && entries.len() > 1 {
            bytes -= entries.pop_back().map_or(0, |entry| entry.bytes());
        }
        cell
    }
}

//! The segment file format, version 1. Pure: bytes in, records out. All integers are little-endian.
//!
//! A segment is `segments/<number as 16 hexadecimal digits>.seg`: two copies of a header, then records without a gap.
//! Behind the last record the file holds zeros (preallocated) or ends.
//!
//! # Header, 80 bytes at offset 0 and once more at offset 4096; records begin at 8192
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `WALCASTJ` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | flags; bit 0: replay, counts only with a RECOVERED record in it or in a later one of the same replay |
//! | 16 | 8 | segment number, from 1, without gaps |
//! | 24 | 8 | number of the first block in it |
//! | 32 | 20 | position in front: lineage `u64`, LSN `u64`, sequence `u32` |
//! | 52 | 8 | creation by the hub's clock, microseconds since 2000-01-01 UTC, `i64` |
//! | 60 | 8 | salt, random |
//! | 68 | 8 | where the repeated records end: everything in front was synced before the file got its name |
//! | 76 | 4 | CRC32C of the 76 bytes before |
//!
//! # Record: 88 bytes, payload, zeros up to a multiple of 8
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `WJR\x01` |
//! | 4 | 1 | kind, see [`Kind`] |
//! | 5 | 1 | flags; bit 0: repeated from an earlier segment |
//! | 6 | 2 | zero |
//! | 8 | 4 | payload length without padding |
//! | 12 | 4 | CRC32C of the payload |
//! | 16 | 8 | block: its number; other kinds: the number of the next block |
//! | 24 | 20 | first position: the resume point in front |
//! | 44 | 20 | last position: the resume point behind |
//! | 64 | 8 | offset in this file that was known synced when the record was written |
//! | 72 | 8 | block: its latest commit time, microseconds since 2000-01-01 UTC, 0 for none; other kinds 0 |
//! | 80 | 4 | zero |
//! | 84 | 4 | CRC32C of salt (8), the record's offset in the file (8) and the 84 bytes before |
//!
//! The salt keeps a record that a user stored in a column, or one that the file system put elsewhere, from passing for
//! a record of this file. The header has a checksum of its own, so a damaged payload does not hide what follows it.
//!
//! # Payloads
//!
//! | kind | payload |
//! |---|---|
//! | 1 BLOCK | [`Block::encode_head`](crate::wire::block::Block::encode_head), then the gRPC message |
//! | 2 RELATION | a protobuf `walcast.v1.Relation`, one immutable version |
//! | 3 LINEAGE | system identifier `u64`, timeline `u32`, epoch `u32`, switch LSN `u64`, first block `u64`, last position on the lineage before (20), history length `u32`, history, first resume point (20), 1 if changes are missing in front of it else 0, why |
//! | 4 MARK | empty: a keepalive moved the resume point to the last position |
//! | 5 STATE | last xid `u64` (0: none); open transaction `u8` 0/1; if 1: first block `u64`, ordinals `u64`, length `u32`, framed `begin`; then how many HORIZON payloads `u16`, each with its length `u32`, oldest first |
//! | 6 RECOVERED | slot name: what was replayed up to the last position counts, and the named slot goes on there |
//! | 7 HORIZON | lineage `u64`, low LSN `u64`, high LSN `u64`, the text of a `pg_snapshot` |
//!
//! A replay from log tables begins a segment of its own, flagged in the header, and RECOVERED ends it. Segments of a
//! replay without RECOVERED are removed when the journal is opened: nobody was ever told of them.
//!
//! Other kinds belong to later versions and are an error that says so, never skipped.
//!
//! # What a reader may rely on
//!
//! A segment begins with every known LINEAGE, the current RELATION versions and those superseded since the segment
//! before began (all flagged as repeated), and one STATE: older files can be deleted without loss. Another STATE
//! follows about every MiB and after each LINEAGE; these are the only places where reading may start.
//!
//! In every segment but the last all bytes were synced. In the last one everything below the greatest synced offset
//! that any of its records names was. Damage below is damage; damage above is the tail that a crash tore off.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    lsn::Lsn,
    model::{LineageId, Position},
};

/// The format version that this code writes, and the only one that it reads.
pub const VERSION: u32 = 1;
/// Bytes of a file header.
pub const HEADER_LEN: usize = 80;
/// Where the second copy of the file header lies.
pub const HEADER_COPY: u64 = 4096;
/// Where records begin.
pub const RECORDS: u64 = 8192;
/// Bytes of a record header.
pub const RECORD_LEN: usize = 88;

const FILE_MAGIC: &[u8; 8] = b"WALCASTJ";
const RECORD_MAGIC: [u8; 4] = *b"WJR\x01";

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A block of events.
    Block = 1,
    /// A relation version.
    Relation = 2,
    /// The history that the following positions belong to.
    Lineage = 3,
    /// A resume point without events.
    Mark = 4,
    /// What a reader that starts here must know.
    State = 5,
    /// The replay up to here counts.
    Recovered = 6,
    /// What a replay from log tables need not read.
    Horizon = 7,
}

impl Kind {
    /// `None` for kinds of a later version.
    pub fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Block,
            2 => Kind::Relation,
            3 => Kind::Lineage,
            4 => Kind::Mark,
            5 => Kind::State,
            6 => Kind::Recovered,
            7 => Kind::Horizon,
            _ => return None,
        })
    }
}

/// A file header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// Segment number, from 1.
    pub number: u64,
    /// Number of the first block.
    pub first_block: u64,
    /// The resume point in front.
    pub after: Position,
    /// Creation by the hub's clock, microseconds since 2000-01-01 UTC.
    pub created: i64,
    /// Goes into every record's checksum.
    pub salt: u64,
    /// Where the records that the segment begins with end: everything in front was synced before the file got its name.
    pub preamble: u64,
    /// Part of a replay, which counts only with RECOVERED.
    pub replay: bool,
}

/// Why the head of a file is not a header that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// Neither copy is intact.
    #[error("both copies of the file header are damaged")]
    Damaged,
    /// Intact, but of another version.
    #[error("format version {0}; this hub reads version {VERSION}")]
    Version(u32),
}

impl FileHeader {
    /// The two copies with the zeros around them: everything in front of the first record.
    pub fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(RECORDS as usize);
        self.encode_copy(&mut out);
        out.resize(HEADER_COPY as usize, 0);
        self.encode_copy(&mut out);
        out.resize(RECORDS as usize, 0);
        out
    }

    fn encode_copy(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_slice(FILE_MAGIC);
        out.put_u32_le(VERSION);
        out.put_u32_le(u32::from(self.replay));
        out.put_u64_le(self.number);
        out.put_u64_le(self.first_block);
        put_position(out, self.after);
        out.put_i64_le(self.created);
        out.put_u64_le(self.salt);
        out.put_u64_le(self.preamble);
        let crc = crc32c::crc32c(&out[start..]);
        out.put_u32_le(crc);
    }

    /// Reads the header from the first [`RECORDS`] bytes of a file, or as many as there are.
    pub fn decode(head: &[u8]) -> Result<FileHeader, BadHeader> {
        let mut version = None;
        for at in [0, HEADER_COPY as usize] {
            let Some(mut copy) = head.get(at..at + HEADER_LEN) else { continue };
            let crc = crc32c::crc32c(&copy[..HEADER_LEN - 4]);
            if &copy[..8] != FILE_MAGIC || copy[HEADER_LEN - 4..] != crc.to_le_bytes() {
                continue;
            }
            copy.advance(8);
            let found = copy.get_u32_le();
            if found != VERSION {
                version = Some(found);
                continue;
            }
            let replay = copy.get_u32_le() & 1 != 0;
            return Ok(FileHeader {
                replay,
                number: copy.get_u64_le(),
                first_block: copy.get_u64_le(),
                after: get_position(&mut copy),
                created: copy.get_i64_le(),
                salt: copy.get_u64_le(),
                preamble: copy.get_u64_le(),
            });
        }
        Err(version.map_or(BadHeader::Damaged, BadHeader::Version))
    }
}

/// A record header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// As stored; [`Kind::from_byte`] says whether it is known.
    pub kind: u8,
    /// Repeated from an earlier segment.
    pub repeated: bool,
    /// Payload bytes without padding.
    pub len: u32,
    /// CRC32C of the payload.
    pub payload_crc: u32,
    /// Block number, or that of the next block.
    pub block: u64,
    /// The resume point in front.
    pub first: Position,
    /// The resume point behind.
    pub last: Position,
    /// Offset known synced when this was written.
    pub synced: u64,
    /// Latest commit time of a block.
    pub commit_time: i64,
}

impl RecordHeader {
    /// Writes the header over the [`RECORD_LEN`] bytes of `out`, for a record at `offset` of a file with this salt.
    pub fn encode(&self, salt: u64, offset: u64, out: &mut [u8]) {
        let Some(full) = out.get_mut(..RECORD_LEN) else { return debug_assert!(false, "room for a record header") };
        let mut to = &mut *full;
        to.put_slice(&RECORD_MAGIC);
        to.put_u8(self.kind);
        to.put_u8(u8::from(self.repeated));
        to.put_u16_le(0);
        to.put_u32_le(self.len);
        to.put_u32_le(self.payload_crc);
        to.put_u64_le(self.block);
        put_position(&mut to, self.first);
        put_position(&mut to, self.last);
        to.put_u64_le(self.synced);
        to.put_i64_le(self.commit_time);
        to.put_u32_le(0);
        let crc = header_crc(salt, offset, &full[..RECORD_LEN - 4]);
        full[RECORD_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads the header at `offset`; `None` when these bytes are not one.
    pub fn decode(salt: u64, offset: u64, bytes: &[u8]) -> Option<RecordHeader> {
        let bytes = bytes.get(..RECORD_LEN)?;
        if bytes[..4] != RECORD_MAGIC {
            return None;
        }
        let crc = header_crc(salt, offset, &bytes[..RECORD_LEN - 4]);
        if bytes[RECORD_LEN - 4..] != crc.to_le_bytes() {
            return None;
        }
        let mut from = &bytes[4..];
        let kind = from.get_u8();
        let repeated = from.get_u8() & 1 != 0;
        from.advance(2);
        Some(RecordHeader {
            kind,
            repeated,
            len: from.get_u32_le(),
            payload_crc: from.get_u32_le(),
            block: from.get_u64_le(),
            first: get_position(&mut from),
            last: get_position(&mut from),
            synced: from.get_u64_le(),
            commit_time: from.get_i64_le(),
        })
    }

    /// Bytes of the whole record, padding included.
    pub fn size(&self) -> u64 {
        record_size(u64::from(self.len))
    }
}

/// Bytes of a record with `payload` bytes of payload, padding included.
pub fn record_size(payload: u64) -> u64 {
    (RECORD_LEN as u64 + payload).next_multiple_of(8)
}

fn header_crc(salt: u64, offset: u64, bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&salt.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &offset.to_le_bytes());
    crc32c::crc32c_append(crc, bytes)
}

/// Bytes of a stored position.
pub const POSITION_LEN: usize = 20;

/// Appends a position.
pub fn put_position(out: &mut impl BufMut, position: Position) {
    out.put_u64_le(position.lineage.0);
    out.put_u64_le(position.lsn.0);
    out.put_u32_le(position.sequence);
}

/// Reads a position; the caller has checked that [`POSITION_LEN`] bytes are there.
pub fn get_position(bytes: &mut impl Buf) -> Position {
    Position { lineage: LineageId(bytes.get_u64_le()), lsn: Lsn(bytes.get_u64_le()), sequence: bytes.get_u32_le() }
}

/// Reads pieces of one segment. Implemented by files and by byte slices.
pub trait Pieces {
    /// `len` bytes at `offset`; fewer only at the end of what may be read.
    fn piece(&mut self, offset: u64, len: usize) -> std::io::Result<Bytes>;
    /// Behind the last byte that may be read.
    fn end(&self) -> u64;
    /// The first offset from here on that may hold something else than zeros.
    fn data_from(&mut self, offset: u64) -> u64 {
        offset
    }
}

/// A part of a segment in memory.
#[derive(Clone, Debug)]
pub struct Slice {
    /// Offset of the first byte in its file.
    pub base: u64,
    /// The bytes.
    pub bytes: Bytes,
}

impl Pieces for Slice {
    fn piece(&mut self, offset: u64, len: usize) -> std::io::Result<Bytes> {
        let start = offset.saturating_sub(self.base).min(self.bytes.len() as u64) as usize;
        let end = start.saturating_add(len).min(self.bytes.len());
        Ok(self.bytes.slice(start..end))
    }

    fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }
}

/// One step of a [`Scanner`].
#[derive(Clone, Debug)]
pub enum Step {
    /// An intact record. The payload is empty when the scanner does not read the payloads of blocks.
    Record {
        /// Offset in the file.
        offset: u64,
        /// Its header.
        header: RecordHeader,
        /// Its payload.
        payload: Bytes,
    },
    /// Bytes that are no record, with an intact record or the end behind them.
    Damage {
        /// First bad byte.
        from: u64,
        /// Where scanning goes on.
        to: u64,
        /// What is wrong there.
        detail: &'static str,
    },
    /// Only zeros, or nothing, from here on.
    End {
        /// Behind the last record.
        offset: u64,
    },
}

/// Walks the records of a segment, over damage to the next intact one.
#[derive(Debug)]
pub struct Scanner<P> {
    pieces: P,
    salt: u64,
    offset: u64,
    blocks: bool,
}

impl<P: Pieces> Scanner<P> {
    /// Starts at `offset`, which must be a place where a record begins. `blocks`: read and check the payloads of blocks
    /// too; those of other kinds are small and always read.
    pub fn new(pieces: P, salt: u64, offset: u64, blocks: bool) -> Self {
        Scanner { pieces, salt, offset, blocks }
    }

    /// Where the next step looks.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next step. After [`Step::End`] the same again.
    pub fn step(&mut self) -> std::io::Result<Step> {
        let offset = self.offset;
        if offset >= self.pieces.end() {
            return Ok(Step::End { offset });
        }
        let head = self.pieces.piece(offset, RECORD_LEN)?;
        let Some(header) = RecordHeader::decode(self.salt, offset, &head) else {
            let detail = if head.iter().all(|byte| *byte == 0) { "zeros" } else { "no record header" };
            return self.resync(offset, detail);
        };
        let next = offset + header.size();
        if next > self.pieces.end() {
            return self.resync(offset, "the record is longer than the file");
        }
        self.offset = next;
        if header.kind == Kind::Block as u8 && !self.blocks {
            return Ok(Step::Record { offset, header, payload: Bytes::new() });
        }
        let payload = self.pieces.piece(offset + RECORD_LEN as u64, header.len as usize)?;
        if payload.len() != header.len as usize || crc32c::crc32c(&payload) != header.payload_crc {
            return Ok(Step::Damage { from: offset, to: next, detail: "payload checksum" });
        }
        Ok(Step::Record { offset, header, payload })
    }

    /// Looks for the next intact record header behind `from`.
    fn resync(&mut self, from: u64, detail: &'static str) -> std::io::Result<Step> {
        const AHEAD: usize = 1 << 20;
        const PAGE: usize = 4096;
        static ZEROS: [u8; PAGE] = [0; PAGE];
        let mut at = (from + 8).next_multiple_of(8);
        let mut dirty = detail != "zeros";
        loop {
            at = at.max(self.pieces.data_from(at) & !7);
            if at >= self.pieces.end() {
                break;
            }
            let piece = self.pieces.piece(at, AHEAD)?;
            if piece.is_empty() {
                break;
            }
            for (page, bytes) in piece.chunks(PAGE).enumerate().filter(|(_, bytes)| *bytes != &ZEROS[..bytes.len()]) {
                dirty = true;
                let magic = |word: &[u8]| word.len() == 8 && word[..4] == RECORD_MAGIC;
                for word in bytes.chunks(8).enumerate().filter_map(|(word, bytes)| magic(bytes).then_some(word)) {
                    let found = at + (page * PAGE + 8 * word) as u64;
                    let head = self.pieces.piece(found, RECORD_LEN)?;
                    if RecordHeader::decode(self.salt, found, &head).is_some() {
                        self.offset = found;
                        return Ok(Step::Damage { from, to: found, detail });
                    }
                }
            }
            at += piece.len() as u64;
        }
        self.offset = self.pieces.end();
        Ok(if dirty { Step::Damage { from, to: self.offset, detail } } else { Step::End { offset: from } })
    }
}

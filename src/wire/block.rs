//! A block: a run of consecutive events, encoded once, with an index beside it.
//!
//! The payload is what goes to an unfiltered subscriber, byte for byte: a gRPC message prefix (5 bytes) and framed
//! events in compact form. The index says where each transaction and each change lies and is only read by filters and
//! by streams that begin inside the block, so it is decoded on first use.
//!
//! A transaction may span blocks. A block that continues one carries that transaction's framed `begin` in its header,
//! which makes every block understandable alone and projection a pure function of (block, selection). Relation events
//! are not in blocks: a session sends the versions that it has not sent yet in a message of their own.

mod builder;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use builder::BlockBuilder;

use super::field::{take_varint, unzigzag};
use crate::{
    lsn::Lsn,
    model::{LineageId, Operation, Position, RelationId},
};

/// Bytes in front of a gRPC message: a compression flag and a big-endian length
/// ([gRPC over HTTP/2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md)).
pub const MESSAGE_PREFIX: usize = 5;

/// What an [`Entry`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// A new row.
    Insert = 1,
    /// A changed row.
    Update = 2,
    /// A removed row.
    Delete = 3,
    /// `truncate`; its entry names the first relation, the event all.
    Truncate = 4,
    /// A row from a snapshot.
    Read = 5,
    /// A logical message inside its transaction.
    Message = 6,
}

impl EntryKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => EntryKind::Insert,
            2 => EntryKind::Update,
            3 => EntryKind::Delete,
            4 => EntryKind::Truncate,
            5 => EntryKind::Read,
            6 => EntryKind::Message,
            _ => return None,
        })
    }
}

impl From<Operation> for EntryKind {
    fn from(operation: Operation) -> Self {
        match operation {
            Operation::Insert => EntryKind::Insert,
            Operation::Update => EntryKind::Update,
            Operation::Delete => EntryKind::Delete,
            Operation::Truncate => EntryKind::Truncate,
            Operation::Read => EntryKind::Read,
        }
    }
}

/// One event with an ordinal: a change, a truncate or a message inside a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of the framed event in the payload, from 0.
    pub offset: u32,
    /// Of the framed event, in bytes.
    pub len: u32,
    /// Relation version; 0 for messages.
    pub relation: RelationId,
    /// Of the WAL record. Not unique: a COPY of 500 rows had 3 distinct ones.
    pub lsn: Lsn,
    /// What it is.
    pub kind: EntryKind,
}

/// How a [`Span`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanEnd {
    /// Not in this block: the next one continues the transaction.
    Open,
    /// The transaction's resume point and its number of ordinals.
    Commit {
        /// Resume point.
        position: Position,
        /// Ordinals in the whole transaction.
        total: u64,
    },
    /// The transaction never happened.
    Discard,
    /// Not a transaction: a logical message outside of one, with its own resume point.
    Message {
        /// Resume point.
        position: Position,
    },
}

impl SpanEnd {
    /// The resume point that this end provides.
    pub fn position(&self) -> Option<Position> {
        match self {
            SpanEnd::Commit { position, .. } | SpanEnd::Message { position } => Some(*position),
            SpanEnd::Open | SpanEnd::Discard => None,
        }
    }
}

/// The part of one transaction (or the one message) that lies in this block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First payload byte.
    pub start: u32,
    /// Behind the last payload byte.
    pub end: u32,
    /// Length of the framed `begin` at `start`; 0 when the block continues the transaction (see
    /// [`Block::continued_begin`]) or the span is a message.
    pub begin_len: u32,
    /// Its entries, as a range of [`Index::entries`].
    pub entries: (u32, u32),
    /// Payload offset of the framed `commit` or `discard`; equals `end` when there is none.
    pub end_offset: u32,
    /// How it ends.
    pub ending: SpanEnd,
}

/// The decoded index.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// Events with an ordinal, in order.
    pub entries: Vec<Entry>,
    /// Transactions and messages, in order.
    pub spans: Vec<Span>,
}

/// An immutable run of consecutive events. Cheap to share, never copied for a subscriber.
#[derive(Debug)]
pub struct Block {
    /// Assigned by the journal, without gaps.
    pub number: u64,
    /// The resume point in front of the block.
    pub after: Position,
    /// The last resume point in the block; `after` when nothing completes in it.
    pub up_to: Position,
    /// Events in the payload, begin and commit included.
    pub events: u32,
    /// Latest commit time in the block, microseconds since 2000-01-01 UTC; 0 for none.
    pub commit_time: i64,
    /// Whether the last span is [`SpanEnd::Open`].
    pub ends_open: bool,
    /// Framed `begin` of the transaction that the block continues; empty if it starts between transactions.
    continued_begin: Bytes,
    framed: Bytes,
    index_bytes: Bytes,
    index: OnceLock<Option<Index>>,
}

/// The bytes are not a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a block: {0}")]
pub struct InvalidBlock(pub &'static str);

const TAG_BEGIN: u8 = 0x20;
const TAG_COMMIT: u8 = 0x21;
const TAG_DISCARD: u8 = 0x22;
const TAG_MESSAGE: u8 = 0x23;

impl Block {
    /// The gRPC message that holds the whole block: prefix and payload.
    pub fn message(&self) -> &Bytes {
        &self.framed
    }

    /// The framed events, without the prefix.
    pub fn payload(&self) -> Bytes {
        self.framed.slice(MESSAGE_PREFIX..)
    }

    /// Framed `begin` of the transaction that the block continues; empty if it starts between transactions.
    pub fn continued_begin(&self) -> &Bytes {
        &self.continued_begin
    }

    /// The index. A block that was decoded from bytes has had its index checked by [`Block::decode`]'s checksum layer
    /// above; should it be unreadable all the same, it is [`InvalidBlock`].
    pub fn index(&self) -> Result<&Index, InvalidBlock> {
        self.index.get_or_init(|| decode_index(&self.index_bytes, self)).as_ref().ok_or(InvalidBlock("index"))
    }

    /// Bytes of memory that the block holds on to, or will once somebody has read its index.
    pub fn footprint(&self) -> usize {
        self.stored_bytes() + size_of::<Self>() + self.events as usize * size_of::<Entry>().max(size_of::<Span>() / 3)
    }

    /// Bytes of message and index, as they are stored.
    pub fn stored_bytes(&self) -> usize {
        self.framed.len() + self.index_bytes.len() + self.continued_begin.len()
    }

    /// Everything but the message, for storage; the message follows it.
    pub fn encode_head(&self, out: &mut BytesMut) {
        out.put_u64_le(self.number);
        put_position(out, self.after);
        put_position(out, self.up_to);
        out.put_u32_le(self.events);
        out.put_i64_le(self.commit_time);
        out.put_u8(u8::from(self.ends_open));
        out.put_u32_le(self.continued_begin.len() as u32);
        out.put_u32_le(self.index_bytes.len() as u32);
        out.put_slice(&self.continued_begin);
        out.put_slice(&self.index_bytes);
    }

    /// The inverse: head and message in one buffer, which the block then shares.
    pub fn decode(mut bytes: Bytes) -> Result<Self, InvalidBlock> {
        const FIXED: usize = 8 + 2 * POSITION_LEN + 4 + 8 + 1 + 4 + 4;
        if bytes.len() < FIXED {
            return Err(InvalidBlock("head"));
        }
        let number = bytes.get_u64_le();
        let after = get_position(&mut bytes);
        let up_to = get_position(&mut bytes);
        let events = bytes.get_u32_le();
        let commit_time = bytes.get_i64_le();
        let ends_open = match bytes.get_u8() {
            0 => false,
            1 => true,
            _ => return Err(InvalidBlock("head")),
        };
        let (begin_len, index_len) = (bytes.get_u32_le() as usize, bytes.get_u32_le() as usize);
        let rest = begin_len.checked_add(index_len).and_then(|n| n.checked_add(MESSAGE_PREFIX));
        if rest.is_none_or(|n| bytes.len() < n) {
            return Err(InvalidBlock("lengths"));
        }
        let continued_begin = bytes.split_to(begin_len);
        let index_bytes = bytes.split_to(index_len);
        let [0, length @ ..] = &bytes[..MESSAGE_PREFIX] else { return Err(InvalidBlock("message prefix")) };
        if u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize != bytes.len() - MESSAGE_PREFIX {
            return Err(InvalidBlock("message length"));
        }
        Ok(Block {
            number,
            after,
            up_to,
            events,
            commit_time,
            ends_open,
            continued_begin,
            framed: bytes,
            index_bytes,
            index: OnceLock::new(),
        })
    }
}

const POSITION_LEN: usize = 8 + 8 + 4;

fn put_position(out: &mut BytesMut, position: Position) {
    out.put_u64_le(position.lineage.0);
    out.put_u64_le(position.lsn.0);
    out.put_u32_le(position.sequence);
}

fn get_position(bytes: &mut Bytes) -> Position {
    Position { lineage: LineageId(bytes.get_u64_le()), lsn: Lsn(bytes.get_u64_le()), sequence: bytes.get_u32_le() }
}

/// Reads a block's index; `None` when it does not describe the block.
fn decode_index(mut bytes: &[u8], block: &Block) -> Option<Index> {
    let mut index = Index::default();
    let mut offset = 0u32;
    let mut lsn = block.after.lsn;
    let mut events = 0u32;
    let mut open: Option<Span> = None;
    if !block.continued_begin.is_empty() {
        open = Some(Span { start: 0, end: 0, begin_len: 0, entries: (0, 0), end_offset: 0, ending: SpanEnd::Open });
    }
    while let Some((&tag, rest)) = bytes.split_first() {
        bytes = rest;
        events = events.checked_add(1)?;
        let len = u32::try_from(take_varint(&mut bytes)?).ok().filter(|len| *len > 0)?;
        let start = offset;
        offset = offset.checked_add(len)?;
        let count = index.entries.len() as u32;
        let fresh =
            Span { start, end: start, begin_len: 0, entries: (count, count), end_offset: start, ending: SpanEnd::Open };
        match tag {
            TAG_BEGIN if open.is_none() => open = Some(Span { begin_len: len, ..fresh }),
            TAG_COMMIT | TAG_DISCARD => {
                let span = open.take()?;
                let ending = if tag == TAG_COMMIT {
                    let total = take_varint(&mut bytes)?;
                    SpanEnd::Commit { position: take_end(&mut bytes, &mut lsn, block.after)?, total }
                } else {
                    SpanEnd::Discard
                };
                let entries = (span.entries.0, count);
                index.spans.push(Span { end: offset, end_offset: start, entries, ending, ..span });
            }
            TAG_MESSAGE if open.is_none() => {
                let ending = SpanEnd::Message { position: take_end(&mut bytes, &mut lsn, block.after)? };
                index.spans.push(Span { end: offset, end_offset: offset, ending, ..fresh });
            }
            _ => {
                open.as_ref()?;
                let kind = EntryKind::from_byte(tag)?;
                let relation = RelationId(u32::try_from(take_varint(&mut bytes)?).ok()?);
                lsn = Lsn(lsn.0.wrapping_add(unzigzag(take_varint(&mut bytes)?) as u64));
                index.entries.push(Entry { offset: start, len, relation, lsn, kind });
            }
        }
    }
    let ends_open = open.is_some();
    index.entries.shrink_to_fit();
    if let Some(span) = open {
        let entries = (span.entries.0, index.entries.len() as u32);
        index.spans.push(Span { end: offset, end_offset: offset, entries, ..span });
    }
    index.spans.shrink_to_fit();
    let up_to = index.spans.iter().rev().find_map(|span| span.ending.position()).unwrap_or(block.after);
    let fits = offset as usize == block.framed.len() - MESSAGE_PREFIX
        && (events, ends_open, up_to) == (block.events, block.ends_open, block.up_to);
    fits.then_some(index)
}

fn take_end(bytes: &mut &[u8], lsn: &mut Lsn, after: Position) -> Option<Position> {
    *lsn = Lsn(lsn.0.wrapping_add(unzigzag(take_varint(bytes)?) as u64));
    let sequence = u32::try_from(take_varint(bytes)?).ok()?;
    Some(Position { lineage: after.lineage, lsn: *lsn, sequence })
}

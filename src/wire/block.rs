//! A block: a run of consecutive events, encoded once, with an index beside it.
//!
//! The payload is what goes to an unfiltered subscriber, byte for byte: a gRPC message prefix (5 bytes) and framed
//! events in compact form. The index says where each transaction and each change lies and is only read by filters and
//! by streams that begin inside the block, so it is decoded on first use.
//!
//! A transaction may span blocks. A block that continues one carries that transaction's framed `begin` in its header,
//! which makes every block understandable alone and projection a pure function of (block, selection). Relation events
//! are not in blocks: a session sends the versions that it has not sent yet in a message of their own.

use std::sync::OnceLock;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::encode;
use crate::{
    lsn::Lsn,
    model::{Datum, LineageId, OldImage, Operation, Position, Relation, RelationId, Transaction},
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
    /// Its entries, as a range of [`Block::entries`].
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
        self.index
            .get_or_init(|| decode_index(&self.index_bytes, self.framed.len() - MESSAGE_PREFIX, self.after))
            .as_ref()
            .ok_or(InvalidBlock("index"))
    }

    /// Bytes of memory that the block holds on to.
    pub fn footprint(&self) -> usize {
        self.framed.len() + self.index_bytes.len() + self.continued_begin.len() + size_of::<Self>()
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
        let ends_open = bytes.get_u8() != 0;
        let (begin_len, index_len) = (bytes.get_u32_le() as usize, bytes.get_u32_le() as usize);
        let rest = begin_len.checked_add(index_len).and_then(|n| n.checked_add(MESSAGE_PREFIX));
        if rest.is_none_or(|n| bytes.len() < n) {
            return Err(InvalidBlock("lengths"));
        }
        let continued_begin = bytes.split_to(begin_len);
        let index_bytes = bytes.split_to(index_len);
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

/// Fills blocks. Owned by whoever feeds the journal; knows which transaction is open.
#[derive(Debug)]
pub struct BlockBuilder {
    after: Position,
    up_to: Position,
    open: Option<Open>,
    framed: BytesMut,
    index: BytesMut,
    continued_begin: Bytes,
    entry_lsn: Lsn,
    events: u32,
    commit_time: i64,
}

#[derive(Debug)]
struct Open {
    begin: Bytes,
    transaction: Transaction,
    ordinals: u64,
}

impl BlockBuilder {
    /// A builder whose first block follows the resume point `after`.
    pub fn new(after: Position) -> Self {
        let mut builder = BlockBuilder {
            after,
            up_to: after,
            open: None,
            framed: BytesMut::new(),
            index: BytesMut::new(),
            continued_begin: Bytes::new(),
            entry_lsn: Lsn::ZERO,
            events: 0,
            commit_time: 0,
        };
        builder.start();
        builder
    }

    fn start(&mut self) {
        self.framed.reserve(80 * 1024);
        self.framed.put_bytes(0, MESSAGE_PREFIX);
        self.index.reserve(8 * 1024);
        self.continued_begin = self.open.as_ref().map(|open| open.begin.clone()).unwrap_or_default();
        self.after = self.up_to;
        self.entry_lsn = self.after.lsn;
        self.events = 0;
        self.commit_time = 0;
    }

    /// Bytes of payload so far.
    pub fn len(&self) -> usize {
        self.framed.len() - MESSAGE_PREFIX
    }

    /// Whether nothing has been added since the last [`BlockBuilder::seal`].
    pub fn is_empty(&self) -> bool {
        self.events == 0
    }

    /// The open transaction and how many ordinals it has so far.
    pub fn open_transaction(&self) -> Option<(&Transaction, u64)> {
        self.open.as_ref().map(|open| (&open.transaction, open.ordinals))
    }

    /// The last resume point that was added.
    pub fn up_to(&self) -> Position {
        self.up_to
    }

    /// Moves the resume point that the next events follow without adding an event: a keepalive's position, or another
    /// lineage. Only between transactions and between blocks.
    pub fn advance(&mut self, position: Position) {
        debug_assert!(self.is_empty() && self.open.is_none());
        self.after = position;
        self.up_to = position;
        self.entry_lsn = position.lsn;
    }

    /// Opens a transaction. Events are numbered from `ordinals` + 1: 0 for a new one, more when a transaction that was
    /// cut by a restart goes on, whose `begin` is then not written again.
    pub fn begin(&mut self, transaction: Transaction, ordinals: u64) {
        debug_assert!(self.open.is_none());
        let start = self.framed.len();
        encode::begin(&mut self.framed, self.up_to.lineage, &transaction);
        let begin = Bytes::copy_from_slice(&self.framed[start..]);
        if ordinals > 0 {
            debug_assert!(self.is_empty(), "a continued transaction starts a block");
            self.framed.truncate(start);
            self.continued_begin = begin.clone();
        } else {
            self.index.put_u8(TAG_BEGIN);
            put_varint(&mut self.index, begin.len() as u64);
            self.events += 1;
        }
        self.open = Some(Open { begin, transaction, ordinals });
    }

    fn next_ordinal(&mut self) -> u64 {
        let open = self.open.as_mut();
        debug_assert!(open.is_some(), "ordinals exist inside transactions only");
        open.map_or(0, |open| {
            open.ordinals += 1;
            open.ordinals
        })
    }

    fn entry(&mut self, kind: EntryKind, relation: RelationId, lsn: Lsn, start: usize) {
        self.index.put_u8(kind as u8);
        put_varint(&mut self.index, (self.framed.len() - start) as u64);
        put_varint(&mut self.index, u64::from(relation.0));
        put_varint(&mut self.index, zigzag(lsn.0.wrapping_sub(self.entry_lsn.0) as i64));
        self.entry_lsn = lsn;
        self.events += 1;
    }

    /// Adds a row change of the open transaction.
    pub fn change<'a, O, N>(
        &mut self,
        relation: &Relation,
        operation: Operation,
        lsn: Lsn,
        old: Option<(OldImage, O)>,
        new: Option<N>,
    ) -> Result<(), encode::Error>
    where
        O: Iterator<Item = Datum<'a>> + Clone,
        N: Iterator<Item = Datum<'a>> + Clone,
    {
        let ordinal = self.next_ordinal();
        let start = self.framed.len();
        encode::change(&mut self.framed, relation, operation, ordinal, old, new)?;
        self.entry(operation.into(), relation.id, lsn, start);
        Ok(())
    }

    /// Adds a truncate of the open transaction.
    pub fn truncate(&mut self, relations: &[u32], cascade: bool, restart_identity: bool, lsn: Lsn) {
        let ordinal = self.next_ordinal();
        let start = self.framed.len();
        encode::truncate(&mut self.framed, relations, cascade, restart_identity, ordinal);
        self.entry(EntryKind::Truncate, RelationId(relations.first().copied().unwrap_or(0)), lsn, start);
    }

    /// Adds a logical message of the open transaction.
    pub fn message(&mut self, prefix: &str, content: &[u8], lsn: Lsn) {
        let ordinal = self.next_ordinal();
        let start = self.framed.len();
        encode::message(&mut self.framed, prefix, content, ordinal, lsn, None);
        self.entry(EntryKind::Message, RelationId(0), lsn, start);
    }

    /// Adds a logical message between transactions, with its own resume point.
    pub fn message_outside(&mut self, prefix: &str, content: &[u8], lsn: Lsn, position: Position) {
        debug_assert!(self.open.is_none());
        let start = self.framed.len();
        encode::message(&mut self.framed, prefix, content, 0, lsn, Some(position));
        self.index.put_u8(TAG_MESSAGE);
        put_varint(&mut self.index, (self.framed.len() - start) as u64);
        self.put_end(position);
        self.events += 1;
    }

    /// Ends the open transaction with its resume point.
    pub fn commit(&mut self, position: Position) {
        let Some(open) = self.open.take() else { return debug_assert!(false, "commit without begin") };
        let start = self.framed.len();
        encode::commit(&mut self.framed, position, open.ordinals, open.ordinals);
        self.index.put_u8(TAG_COMMIT);
        put_varint(&mut self.index, (self.framed.len() - start) as u64);
        put_varint(&mut self.index, open.ordinals);
        self.put_end(position);
        self.commit_time = self.commit_time.max(open.transaction.commit_time);
        self.events += 1;
    }

    fn put_end(&mut self, position: Position) {
        put_varint(&mut self.index, zigzag(position.lsn.0.wrapping_sub(self.entry_lsn.0) as i64));
        put_varint(&mut self.index, u64::from(position.sequence));
        self.entry_lsn = position.lsn;
        self.up_to = position;
    }

    /// Ends the open transaction: it never happened.
    pub fn discard(&mut self, reason: &str) {
        debug_assert!(self.open.is_some());
        self.open = None;
        let start = self.framed.len();
        encode::discard(&mut self.framed, reason);
        self.index.put_u8(TAG_DISCARD);
        put_varint(&mut self.index, (self.framed.len() - start) as u64);
        self.events += 1;
    }

    /// Takes what has been added as a block (its number still 0) and starts the next one.
    pub fn seal(&mut self) -> Block {
        let len = self.len() as u32;
        self.framed[1..MESSAGE_PREFIX].copy_from_slice(&len.to_be_bytes());
        let block = Block {
            number: 0,
            after: self.after,
            up_to: self.up_to,
            events: self.events,
            commit_time: self.commit_time,
            ends_open: self.open.is_some(),
            continued_begin: std::mem::take(&mut self.continued_begin),
            framed: self.framed.split().freeze(),
            index_bytes: self.index.split().freeze(),
            index: OnceLock::new(),
        };
        self.start();
        block
    }
}

/// Reads an index; `None` when it does not describe a payload of `payload_len` bytes.
fn decode_index(mut bytes: &[u8], payload_len: usize, after: Position) -> Option<Index> {
    let mut index = Index::default();
    let mut offset = 0u32;
    let mut lsn = after.lsn;
    let mut open: Option<Span> = None;
    while let Some((&tag, rest)) = bytes.split_first() {
        bytes = rest;
        let len = u32::try_from(get_varint(&mut bytes)?).ok()?;
        let start = offset;
        offset = offset.checked_add(len)?;
        let count = index.entries.len() as u32;
        let fresh =
            Span { start, end: start, begin_len: 0, entries: (count, count), end_offset: start, ending: SpanEnd::Open };
        match tag {
            TAG_BEGIN => {
                if open.is_some() {
                    return None;
                }
                open = Some(Span { begin_len: len, ..fresh });
            }
            TAG_COMMIT => {
                let span = open.take().unwrap_or(fresh);
                let total = get_varint(&mut bytes)?;
                let position = get_end(&mut bytes, &mut lsn, after)?;
                let ending = SpanEnd::Commit { position, total };
                index.spans.push(Span {
                    end: offset,
                    end_offset: start,
                    entries: (span.entries.0, count),
                    ending,
                    ..span
                });
            }
            TAG_DISCARD => {
                let span = open.take().unwrap_or(fresh);
                let ending = SpanEnd::Discard;
                index.spans.push(Span {
                    end: offset,
                    end_offset: start,
                    entries: (span.entries.0, count),
                    ending,
                    ..span
                });
            }
            TAG_MESSAGE => {
                if open.is_some() {
                    return None;
                }
                let position = get_end(&mut bytes, &mut lsn, after)?;
                index.spans.push(Span {
                    end: offset,
                    end_offset: offset,
                    ending: SpanEnd::Message { position },
                    ..fresh
                });
            }
            _ => {
                let kind = EntryKind::from_byte(tag)?;
                let relation = RelationId(u32::try_from(get_varint(&mut bytes)?).ok()?);
                lsn = Lsn(lsn.0.wrapping_add(unzigzag(get_varint(&mut bytes)?) as u64));
                open.get_or_insert(fresh);
                index.entries.push(Entry { offset: start, len, relation, lsn, kind });
            }
        }
    }
    if let Some(span) = open {
        let count = index.entries.len() as u32;
        index.spans.push(Span { end: offset, end_offset: offset, entries: (span.entries.0, count), ..span });
    }
    (offset as usize == payload_len).then_some(index)
}

fn get_end(bytes: &mut &[u8], lsn: &mut Lsn, after: Position) -> Option<Position> {
    *lsn = Lsn(lsn.0.wrapping_add(unzigzag(get_varint(bytes)?) as u64));
    let sequence = u32::try_from(get_varint(bytes)?).ok()?;
    Some(Position { lineage: after.lineage, lsn: *lsn, sequence })
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

fn put_varint(out: &mut BytesMut, value: u64) {
    prost::encoding::encode_varint(value, out);
}

fn get_varint(bytes: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(bytes).ok()
}

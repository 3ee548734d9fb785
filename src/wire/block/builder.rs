//! The write side of blocks: events go in one by one, blocks come out.

use std::sync::OnceLock;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Block, EntryKind, MESSAGE_PREFIX, TAG_BEGIN, TAG_COMMIT, TAG_DISCARD, TAG_MESSAGE};
use crate::{
    lsn::Lsn,
    model::{Datum, OldImage, Operation, Position, Relation, RelationId, Transaction},
    wire::{encode, field::zigzag},
};

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
    transaction: Transaction,
    ordinals: u64,
    begin: Begin,
}

/// Where the framed `begin` of the open transaction is.
#[derive(Debug)]
enum Begin {
    /// In the block that is being filled.
    Here {
        /// Offset in `framed`.
        start: usize,
        /// Length.
        len: usize,
        /// Length of the index in front of it.
        index: usize,
    },
    /// In an earlier block.
    Earlier(Bytes),
}

impl BlockBuilder {
    /// A builder whose first block follows the resume point `after`.
    pub fn new(after: Position) -> Self {
        let mut builder = BlockBuilder {
            after,
            up_to: after,
            open: None,
            framed: BytesMut::with_capacity(PAYLOAD_CAPACITY),
            index: BytesMut::with_capacity(INDEX_CAPACITY),
            continued_begin: Bytes::new(),
            entry_lsn: Lsn::ZERO,
            events: 0,
            commit_time: 0,
        };
        builder.start();
        builder
    }

    fn start(&mut self) {
        self.framed.put_bytes(0, MESSAGE_PREFIX);
        self.continued_begin = match &self.open {
            Some(Open { begin: Begin::Earlier(begin), .. }) => begin.clone(),
            _ => Bytes::new(),
        };
        self.after = self.up_to;
        self.entry_lsn = self.after.lsn;
        self.events = 0;
        self.commit_time = 0;
    }

    /// Bytes of payload so far.
    pub fn len(&self) -> usize {
        self.framed.len() - MESSAGE_PREFIX
    }

    /// Whether [`BlockBuilder::seal`] would give a block without events: nothing has been added, or only the `begin`
    /// of a transaction that has no changes yet.
    pub fn is_empty(&self) -> bool {
        self.events - u32::from(self.bare_begin().is_some()) == 0
    }

    /// Whether the block has a resume point of its own so far.
    pub fn completes(&self) -> bool {
        self.up_to != self.after
    }

    /// The open transaction's `begin`, if it is in this block and nothing follows it.
    fn bare_begin(&self) -> Option<(usize, usize)> {
        match &self.open {
            Some(Open { ordinals: 0, begin: Begin::Here { start, index, .. }, .. }) => Some((*start, *index)),
            _ => None,
        }
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
    /// cut by a restart goes on, whose `begin` is then not written again. The two cannot be confused: a block never
    /// ends with a bare `begin` (see [`BlockBuilder::seal`]).
    pub fn begin(&mut self, transaction: Transaction, ordinals: u64) {
        debug_assert!(self.open.is_none());
        let (start, index) = (self.framed.len(), self.index.len());
        encode::begin(&mut self.framed, self.up_to.lineage, &transaction);
        let len = self.framed.len() - start;
        let begin = if ordinals > 0 {
            debug_assert!(self.is_empty(), "a continued transaction starts a block");
            let begin = Bytes::copy_from_slice(&self.framed[start..]);
            self.framed.truncate(start);
            self.continued_begin = begin.clone();
            Begin::Earlier(begin)
        } else {
            self.index.put_u8(TAG_BEGIN);
            put_varint(&mut self.index, len as u64);
            self.events += 1;
            Begin::Here { start, len, index }
        };
        self.open = Some(Open { transaction, ordinals, begin });
    }

    fn next_ordinal(&mut self) -> u64 {
        let open = self.open.as_mut();
        debug_assert!(open.is_some(), "ordinals exist inside transactions only");
        open.map_or(0, |open| {
            open.ordinals += 1;
            open.ordinals
        })
    }

    fn take_back_ordinal(&mut self) {
        if let Some(open) = self.open.as_mut() {
            open.ordinals = open.ordinals.saturating_sub(1);
        }
    }

    fn entry(&mut self, kind: EntryKind, relation: RelationId, lsn: Lsn, start: usize) {
        self.index.put_u8(kind as u8);
        put_varint(&mut self.index, (self.framed.len() - start) as u64);
        put_varint(&mut self.index, u64::from(relation.0));
        put_varint(&mut self.index, zigzag(lsn.0.wrapping_sub(self.entry_lsn.0) as i64));
        self.entry_lsn = lsn;
        self.events += 1;
    }

    /// Adds a row change of the open transaction. After an error the builder is as it was.
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
        if let Err(error) = encode::change(&mut self.framed, relation, operation, ordinal, old, new) {
            self.take_back_ordinal();
            return Err(error);
        }
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

    /// Fails when a message of this size would make the payload longer than a message may be.
    fn room_for(&self, prefix: &str, content: &[u8]) -> Result<(), encode::Error> {
        const MORE_THAN_THE_OTHER_FIELDS: usize = 256;
        let bytes = self.framed.len() + prefix.len() + content.len() + MORE_THAN_THE_OTHER_FIELDS;
        if bytes > encode::MAX_PAYLOAD { Err(encode::Error::TooLarge { bytes }) } else { Ok(()) }
    }

    /// Adds a logical message of the open transaction.
    pub fn message(&mut self, prefix: &str, content: &[u8], lsn: Lsn) -> Result<(), encode::Error> {
        self.room_for(prefix, content)?;
        let ordinal = self.next_ordinal();
        let start = self.framed.len();
        encode::message(&mut self.framed, prefix, content, ordinal, lsn, None);
        self.entry(EntryKind::Message, RelationId(0), lsn, start);
        Ok(())
    }

    /// Adds a logical message between transactions, with its own resume point.
    pub fn message_outside(
        &mut self,
        prefix: &str,
        content: &[u8],
        lsn: Lsn,
        position: Position,
    ) -> Result<(), encode::Error> {
        debug_assert!(self.open.is_none());
        self.room_for(prefix, content)?;
        let start = self.framed.len();
        encode::message(&mut self.framed, prefix, content, 0, lsn, Some(position));
        self.index.put_u8(TAG_MESSAGE);
        put_varint(&mut self.index, (self.framed.len() - start) as u64);
        self.put_end(position);
        self.events += 1;
        Ok(())
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
        debug_assert_eq!(position.lineage, self.after.lineage, "a block is of one lineage");
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

    /// Takes what has been added as a block (its number still 0) and starts the next one. A `begin` that nothing
    /// follows yet goes into the next block: then a transaction with a durable `begin` has a durable ordinal too, and
    /// whoever continues it after a restart knows by the ordinals alone whether the `begin` is there.
    pub fn seal(&mut self) -> Block {
        let bare = self.bare_begin();
        let held_back = bare.and_then(|(start, index)| {
            self.framed.truncate(start);
            self.index.truncate(index);
            self.events -= 1;
            self.open.take()
        });
        let len = self.len() as u32;
        self.framed[1..MESSAGE_PREFIX].copy_from_slice(&len.to_be_bytes());
        if let Some(Open { begin, .. }) = &mut self.open
            && let Begin::Here { start, len, .. } = *begin
        {
            *begin = Begin::Earlier(Bytes::copy_from_slice(&self.framed[start..start + len]));
        }
        let block = Block {
            number: 0,
            after: self.after,
            up_to: self.up_to,
            events: self.events,
            commit_time: self.commit_time,
            ends_open: self.open.is_some(),
            continued_begin: std::mem::take(&mut self.continued_begin),
            framed: take_exact(&mut self.framed, PAYLOAD_CAPACITY),
            index_bytes: take_exact(&mut self.index, INDEX_CAPACITY),
            index: OnceLock::new(),
        };
        self.start();
        if let Some(open) = held_back {
            self.begin(open.transaction, 0);
        }
        block
    }
}

/// Capacity that a builder keeps ready for one block's message.
const PAYLOAD_CAPACITY: usize = 40 * 1024;
/// Capacity that a builder keeps ready for one block's index.
const INDEX_CAPACITY: usize = 4 * 1024;

/// Takes the content, as a copy unless it is more than four times as large as usual: a block that shared the buffer would keep all of its capacity alive, more
/// than [`Block::footprint`] says.
fn take_exact(buffer: &mut BytesMut, capacity: usize) -> Bytes {
    if buffer.len() <= 4 * capacity {
        let content = Bytes::copy_from_slice(buffer);
        buffer.clear();
        if buffer.capacity() > 4 * capacity {
            *buffer = BytesMut::with_capacity(capacity);
        }
        return content;
    }
    std::mem::replace(buffer, BytesMut::with_capacity(capacity)).freeze()
}

fn put_varint(out: &mut BytesMut, value: u64) {
    prost::encoding::encode_varint(value, out);
}

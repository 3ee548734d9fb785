//! Rows of the store: how places, pointers and checkpoints are written. Every value ends with a CRC32C of key and
//! value; a row that fails it does not count. Integers in keys are big-endian (they sort), in values little-endian.

use bytes::{Buf, BufMut, Bytes};

use super::{
    map::Place,
    segment::{POSITION_LEN, get_position, put_position},
    store::{Table, VALUE_LIMIT, Write},
};
use crate::{
    feed::{Checkpoint, SubscriberKey},
    model::{Position, RelationId},
};

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pointer {
    pub segment: u64,
    pub offset: u64,
}

/// How far the tables reach: all records in front of this STATE record are in them, and it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Covered {
    pub at: Pointer,
    pub salt: u64,
    pub next_block: u64,
    pub tail: Position,
}

/// A row that was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Row {
    Place { segment: u64, salt: u64, place: Place },
    Relation(RelationId, Pointer),
    Lineage(u32, Pointer),
    Covered(Covered),
    Checkpoint(SubscriberKey, Checkpoint),
}

fn seal(table: Table, key: Vec<u8>, mut value: Vec<u8>) -> Write {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&key), &value);
    value.put_u32_le(crc);
    Write { table, key, value: Some(value) }
}

fn place_key(segment: u64, offset: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(16);
    key.put_u64(segment);
    key.put_u64(offset);
    key
}

pub(super) fn put_place(segment: u64, salt: u64, place: &Place) -> Write {
    let mut value = Vec::with_capacity(56);
    value.put_u64_le(salt);
    value.put_u64_le(place.block);
    put_position(&mut value, place.after);
    value.put_u64_le(place.open_since.unwrap_or(u64::MAX));
    value.put_i64_le(place.commit_time);
    value.put_u8(u8::from(place.is_damaged));
    seal(Table::Places, place_key(segment, place.offset), value)
}

pub(super) fn drop_place(segment: u64, offset: u64) -> Write {
    Write { table: Table::Places, key: place_key(segment, offset), value: None }
}

fn relation_key(id: RelationId) -> Vec<u8> {
    let mut key = vec![b'r'];
    key.put_u32(id.0);
    key
}

fn put_pointer(key: Vec<u8>, at: Pointer) -> Write {
    let mut value = Vec::with_capacity(20);
    value.put_u64_le(at.segment);
    value.put_u64_le(at.offset);
    seal(Table::Pointers, key, value)
}

pub(super) fn put_relation(id: RelationId, at: Pointer) -> Write {
    put_pointer(relation_key(id), at)
}

pub(super) fn drop_relation(id: RelationId) -> Write {
    Write { table: Table::Pointers, key: relation_key(id), value: None }
}

pub(super) fn put_lineage(rank: u32, at: Pointer) -> Write {
    let mut key = vec![b'l'];
    key.put_u32(rank);
    put_pointer(key, at)
}

pub(super) fn put_covered(covered: &Covered) -> Write {
    let mut value = Vec::with_capacity(60);
    value.put_u64_le(covered.at.segment);
    value.put_u64_le(covered.at.offset);
    value.put_u64_le(covered.salt);
    value.put_u64_le(covered.next_block);
    put_position(&mut value, covered.tail);
    seal(Table::Pointers, vec![b'c'], value)
}

fn checkpoint_key(key: &SubscriberKey) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + key.principal.len() + key.name.len());
    out.put_u16(key.principal.len() as u16);
    out.put_slice(key.principal.as_bytes());
    out.put_slice(key.name.as_bytes());
    out
}

/// Version of a checkpoint's value.
const CHECKPOINT_VERSION: u8 = 1;
/// Version of one with a `Position.snapshot`, which follows the fixed part with its length in front.
const CHECKPOINT_IN_SNAPSHOT: u8 = 2;

pub(super) fn put_checkpoint(key: &SubscriberKey, checkpoint: &Checkpoint) -> Write {
    let mut value = Vec::with_capacity(64 + checkpoint.filter.len());
    let in_snapshot = !checkpoint.snapshot.is_empty();
    value.put_u8(if in_snapshot { CHECKPOINT_IN_SNAPSHOT } else { CHECKPOINT_VERSION });
    value.put_u8(u8::from(checkpoint.position.is_some()));
    put_position(&mut value, checkpoint.position.unwrap_or_default());
    value.put_u64_le(checkpoint.filter_hash);
    value.put_u64_le(checkpoint.session);
    value.put_i64_le(checkpoint.created);
    value.put_i64_le(checkpoint.last_seen);
    if in_snapshot {
        value.put_u16_le(checkpoint.snapshot.len() as u16);
        value.put_slice(&checkpoint.snapshot);
    }
    value.put_slice(&checkpoint.filter);
    seal(Table::Checkpoints, checkpoint_key(key), value)
}

/// Whether a checkpoint stays under the store's limits.
pub(super) fn checkpoint_fits(key: &SubscriberKey, checkpoint: &Checkpoint) -> bool {
    key.principal.len() + key.name.len() <= 1024
        && checkpoint.filter.len() + checkpoint.snapshot.len() <= VALUE_LIMIT - 128
}

pub(super) fn drop_checkpoint(key: &SubscriberKey) -> Write {
    Write { table: Table::Checkpoints, key: checkpoint_key(key), value: None }
}

/// Reads a row; `None` when it is damaged or of a later version.
pub(super) fn read(table: Table, key: &[u8], value: &[u8]) -> Option<Row> {
    let (value, crc) = value.split_at_checked(value.len().checked_sub(4)?)?;
    if crc != crc32c::crc32c_append(crc32c::crc32c(key), value).to_le_bytes() {
        return None;
    }
    match table {
        Table::Places => read_place(key, value),
        Table::Pointers => read_pointer(key, value),
        Table::Checkpoints => read_checkpoint(key, value),
    }
}

fn read_place(mut key: &[u8], mut value: &[u8]) -> Option<Row> {
    let (segment, offset) = (key.try_get_u64().ok()?, key.try_get_u64().ok()?);
    let (salt, block) = (value.try_get_u64_le().ok()?, value.try_get_u64_le().ok()?);
    if value.len() < POSITION_LEN {
        return None;
    }
    let after = get_position(&mut value);
    let open_since = Some(value.try_get_u64_le().ok()?).filter(|block| *block != u64::MAX);
    let commit_time = value.try_get_i64_le().ok()?;
    let is_damaged = value.try_get_u8().is_ok_and(|flag| flag != 0); // older rows end in front of it
    Some(Row::Place { segment, salt, place: Place { offset, block, after, open_since, commit_time, is_damaged } })
}

fn read_pointer(mut key: &[u8], mut value: &[u8]) -> Option<Row> {
    let kind = key.try_get_u8().ok()?;
    let at = Pointer { segment: value.try_get_u64_le().ok()?, offset: value.try_get_u64_le().ok()? };
    match kind {
        b'r' => Some(Row::Relation(RelationId(key.try_get_u32().ok()?), at)),
        b'l' => Some(Row::Lineage(key.try_get_u32().ok()?, at)),
        b'c' => {
            let (salt, next_block) = (value.try_get_u64_le().ok()?, value.try_get_u64_le().ok()?);
            let tail = (value.len() >= POSITION_LEN).then(|| get_position(&mut value))?;
            Some(Row::Covered(Covered { at, salt, next_block, tail }))
        }
        _ => None,
    }
}

fn read_checkpoint(mut key: &[u8], mut value: &[u8]) -> Option<Row> {
    let len = usize::from(key.try_get_u16().ok()?);
    let (principal, name) = key.split_at_checked(len)?;
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    let subscriber = SubscriberKey { principal: text(principal)?, name: text(name)? };
    let version = value.try_get_u8().ok().filter(|v| matches!(*v, CHECKPOINT_VERSION | CHECKPOINT_IN_SNAPSHOT))?;
    let has_position = value.try_get_u8().ok()? != 0;
    let position = (value.len() >= POSITION_LEN).then(|| get_position(&mut value))?;
    let mut checkpoint = Checkpoint {
        position: has_position.then_some(position),
        snapshot: Bytes::new(),
        filter_hash: value.try_get_u64_le().ok()?,
        session: value.try_get_u64_le().ok()?,
        created: value.try_get_i64_le().ok()?,
        last_seen: value.try_get_i64_le().ok()?,
        filter: Bytes::new(),
    };
    if version == CHECKPOINT_IN_SNAPSHOT {
        let len = usize::from(value.try_get_u16_le().ok()?);
        let (snapshot, rest) = value.split_at_checked(len)?;
        checkpoint.snapshot = Bytes::copy_from_slice(snapshot);
        value = rest;
    }
    checkpoint.filter = Bytes::copy_from_slice(value);
    Some(Row::Checkpoint(subscriber, checkpoint))
}

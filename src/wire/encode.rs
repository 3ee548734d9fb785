//! Events as framed fields: tag of `SubscribeResponse.events`, length, event. Concatenation of framed events is a
//! valid response message, which is why a change can be encoded once and sent to everybody.
//!
//! Changes, `begin`, `commit` and messages are written by hand, without allocation; the bytes are what prost would
//! write, and the tests hold them to it. The rare kinds go through prost.

#[cfg(test)]
mod tests;

use bytes::BytesMut;
use prost::Message;

use super::{
    field::{Head, LEN, VARINT, delimited_len, key, scalar_len},
    pb, relation_to_pb, timestamp, value,
};
use crate::{
    lsn::Lsn,
    model::{Datum, LineageId, OldImage, Operation, Position, Provenance, Relation, ReplicaIdentity, Transaction},
    reason::{Classified, Reason},
};

/// Most bytes of one response message, and so of a block: protobuf libraries read no message longer than this.
/// Lower in this crate's unit tests.
pub const MAX_PAYLOAD: usize = if cfg!(test) { 1 << 26 } else { i32::MAX as usize };

/// An event that cannot be encoded. Nothing was appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A value that cannot be what its column's type says.
    #[error("column {column:?} of {table}: {detail}")]
    Value {
        /// `schema.table`.
        table: String,
        /// Column name.
        column: String,
        /// What does not fit.
        detail: String,
    },
    /// A row image with more or fewer columns than its relation.
    #[error("{got} columns in a row of {table}, which has {expected}")]
    ColumnCount {
        /// `schema.table`.
        table: String,
        /// Columns of the relation version.
        expected: usize,
        /// Columns of the row; one more than expected stands for any number beyond.
        got: usize,
    },
    /// The payload would exceed [`MAX_PAYLOAD`].
    #[error("{bytes} bytes do not fit into one message")]
    TooLarge {
        /// What the payload would have had.
        bytes: usize,
    },
}

impl Classified for Error {
    fn reason(&self) -> Reason {
        Reason::DecodeError
    }
}

// Field keys of `SubscribeResponse` and `Event`.
const EVENTS: u8 = 1;
const EVENT_BEGIN: u8 = 1;
pub(super) const EVENT_CHANGE: u8 = 3;
const EVENT_MESSAGE: u8 = 5;
const EVENT_COMMIT: u8 = 6;

/// Appends any event. For the rare kinds; changes have a path of their own.
pub fn event(out: &mut BytesMut, kind: pb::event::Kind) {
    let response = pb::SubscribeResponse { events: vec![pb::Event { kind: Some(kind) }] };
    response.encode(out).unwrap_or_default(); // BytesMut grows: encoding into it cannot fail
}

/// The keys and lengths that frame an event whose kind has this number and length.
#[inline]
pub(super) fn frame<const N: usize>(head: &mut Head<N>, kind: u8, len: usize) {
    head.delimited(EVENTS, delimited_len(len));
    head.delimited(kind, len);
}

/// Appends `begin`.
pub fn begin(out: &mut BytesMut, lineage: LineageId, transaction: &Transaction) {
    let lsn = LsnText::new(transaction.commit_lsn);
    let time = timestamp(transaction.commit_time);
    let (seconds, nanos) = (time.seconds as u64, time.nanos as u64);
    let time_len = scalar_len(seconds) + scalar_len(nanos);
    let provenance = match transaction.provenance {
        Provenance::Slot => pb::Provenance::Unspecified,
        Provenance::LogReplay => pb::Provenance::LogReplay,
        Provenance::LogPoll => pb::Provenance::LogPoll,
    } as u64;
    let origin = transaction.origin.as_bytes();
    let origin_len = if origin.is_empty() { 0 } else { delimited_len(origin.len()) };
    let len = delimited_len(lsn.len())
        + delimited_len(LINEAGE_LEN)
        + scalar_len(transaction.sequence.into())
        + scalar_len(transaction.xid)
        + delimited_len(time_len)
        + origin_len
        + scalar_len(provenance);

    let mut head = Head::<128>::new();
    frame(&mut head, EVENT_BEGIN, len);
    head.delimited(1, lsn.len());
    head.slice(lsn.as_slice());
    head.delimited(2, LINEAGE_LEN);
    head.slice(&lineage_text(lineage));
    head.scalar(3, transaction.sequence.into());
    head.scalar(4, transaction.xid);
    head.delimited(5, time_len);
    head.scalar(1, seconds);
    head.scalar(2, nanos);
    if !origin.is_empty() {
        head.delimited(6, origin.len());
        head.append_to(out);
        out.extend_from_slice(origin);
        head = Head::new();
    }
    head.scalar(7, provenance);
    head.append_to(out);
}

/// Appends `commit`: `changes` as sent in the stream, `total` as in the transaction.
pub fn commit(out: &mut BytesMut, position: Position, changes: u64, total: u64) {
    let position = PositionText::new(position);
    let mut head = Head::<128>::new();
    frame(&mut head, EVENT_COMMIT, delimited_len(position.len()) + scalar_len(changes) + scalar_len(total));
    position.put(&mut head, 1);
    head.scalar(2, changes);
    head.scalar(3, total);
    head.append_to(out);
}

/// Appends `discard`.
pub fn discard(out: &mut BytesMut, reason: &str) {
    event(out, pb::event::Kind::Discard(pb::Discard { reason: reason.to_owned() }));
}

/// Appends a logical message: `position` for one outside transactions, `ordinal` for one inside.
pub fn message(out: &mut BytesMut, prefix: &str, content: &[u8], ordinal: u64, lsn: Lsn, position: Option<Position>) {
    let lsn = LsnText::new(lsn);
    let position = position.map(PositionText::new);
    let present_len = |len: usize| if len == 0 { 0 } else { delimited_len(len) };
    let len = present_len(prefix.len())
        + present_len(content.len())
        + scalar_len(ordinal)
        + delimited_len(lsn.len())
        + position.as_ref().map_or(0, |position| delimited_len(position.len()));

    let mut head = Head::<128>::new();
    frame(&mut head, EVENT_MESSAGE, len);
    for (number, bytes) in [(1, prefix.as_bytes()), (2, content)] {
        if !bytes.is_empty() {
            head.delimited(number, bytes.len());
            head.append_to(out);
            out.extend_from_slice(bytes);
            head = Head::new();
        }
    }
    head.scalar(3, ordinal);
    head.delimited(4, lsn.len());
    head.slice(lsn.as_slice());
    if let Some(position) = position {
        position.put(&mut head, 5);
    }
    head.append_to(out);
}

/// Appends `truncate` of these relation versions.
pub fn truncate(out: &mut BytesMut, relations: &[u32], cascade: bool, restart_identity: bool, ordinal: u64) {
    event(
        out,
        pb::event::Kind::Truncate(pb::Truncate {
            relation_ids: relations.to_vec(),
            cascade,
            restart_identity,
            ordinal,
            tables: Vec::new(),
        }),
    );
}

/// Appends `relation`. `columns` says which to keep, one for each of the relation's; `None`: all.
pub fn relation_encode(out: &mut BytesMut, relation: &Relation, columns: Option<&[bool]>) {
    let mut message = relation_to_pb(relation);
    if let Some(columns) = columns {
        let mut keep = columns.iter().copied();
        message.columns.retain(|_| keep.next().unwrap_or(false));
    }
    event(out, pb::event::Kind::Relation(message));
}

/// More than the headers of a change can take: two framing fields, operation, relation, ordinal and the first row's.
const CHANGE_HEAD: usize = 48;
/// More than the header of a row can take.
const ROW_HEAD: usize = 8;

const BEFORE_ROW: u8 = 4;
const AFTER_ROW: u8 = 5;

/// Appends one change in compact form. `old` and `new` yield one datum per column of `relation`. On an error `out` is
/// as it was.
///
/// Rows are written first, behind a gap for their headers; when their lengths are known, headers and rows move
/// together. Each value is parsed once. Measured against a pass for the lengths and one for the bytes: the same time
/// for short rows, less for long ones and for updates with both images.
pub fn change<'a, O, N>(
    out: &mut BytesMut,
    relation: &Relation,
    operation: Operation,
    ordinal: u64,
    old: Option<(OldImage, O)>,
    new: Option<N>,
) -> Result<(), Error>
where
    O: Iterator<Item = Datum<'a>> + Clone,
    N: Iterator<Item = Datum<'a>> + Clone,
{
    let start = out.len();
    let result = change_rows(out, relation, operation, ordinal, old, new);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

#[inline]
fn change_rows<'a, O, N>(
    out: &mut BytesMut,
    relation: &Relation,
    operation: Operation,
    ordinal: u64,
    old: Option<(OldImage, O)>,
    new: Option<N>,
) -> Result<(), Error>
where
    O: Iterator<Item = Datum<'a>> + Clone,
    N: Iterator<Item = Datum<'a>> + Clone,
{
    let start = out.len();
    out.extend_from_slice(&[0; CHANGE_HEAD]);
    let old_start = out.len();
    let has_old = old.is_some();
    match old {
        Some((OldImage::Full, row)) if relation.replica_identity == ReplicaIdentity::Full => {
            put_row(out, relation, row)?
        }
        Some((_, row)) => put_key(out, relation, row)?,
        None => {}
    }
    let old_len = out.len() - old_start;
    if has_old && new.is_some() {
        out.extend_from_slice(&[0; ROW_HEAD]);
    }
    let new_start = out.len();
    let has_new = new.is_some();
    if let Some(row) = new {
        put_row(out, relation, row)?;
    }
    let new_len = out.len() - new_start;

    let fixed = 2 + scalar_len(relation.id.0.into()) + scalar_len(ordinal);
    let old_field = if has_old { delimited_len(old_len) } else { 0 };
    let new_field = if has_new { delimited_len(new_len) } else { 0 };
    let len = fixed + old_field + new_field;
    if start + delimited_len(delimited_len(len)) > MAX_PAYLOAD {
        return Err(Error::TooLarge { bytes: start + delimited_len(delimited_len(len)) });
    }
    let mut head = Head::<CHANGE_HEAD>::new();
    frame(&mut head, EVENT_CHANGE, len);
    head.byte(key(1, VARINT));
    head.byte(operation as u8);
    head.scalar(2, relation.id.0.into());
    head.scalar(3, ordinal);
    if has_old {
        head.delimited(BEFORE_ROW, old_len);
    } else if has_new {
        head.delimited(AFTER_ROW, new_len);
    }
    let mut end = start + head.as_slice().len();
    out[start..end].copy_from_slice(head.as_slice());
    if has_old {
        out.copy_within(old_start..old_start + old_len, end);
        end += old_len;
        if has_new {
            let mut head = Head::<ROW_HEAD>::new();
            head.delimited(AFTER_ROW, new_len);
            out[end..end + head.as_slice().len()].copy_from_slice(head.as_slice());
            end += head.as_slice().len();
        }
    }
    if has_new {
        out.copy_within(new_start..new_start + new_len, end);
        end += new_len;
    }
    out.truncate(end);
    Ok(())
}

#[inline]
fn put_row<'a>(out: &mut BytesMut, relation: &Relation, mut row: impl Iterator<Item = Datum<'a>>) -> Result<(), Error> {
    for (at, column) in relation.columns.iter().enumerate() {
        let Some(datum) = row.next() else { return Err(column_count(relation, at)) };
        value::put(out, column.type_oid, datum).map_err(|detail| unfit(relation, at, detail))?;
    }
    match row.next() {
        None => Ok(()),
        Some(_) => Err(column_count(relation, relation.columns.len() + 1)),
    }
}

/// In a key image pgoutput writes null for each column outside the replica identity; those are absent. Anything else
/// there is kept as it came, and so would be a null inside the identity, which PostgreSQL does not allow. Under the name of
/// a partitioned table an image may call itself full, and have nulls for what the partition's own identity leaves out; and
/// where such a table was FULL until a moment ago, which columns a key image has cannot be told.
fn put_key<'a>(out: &mut BytesMut, relation: &Relation, mut row: impl Iterator<Item = Datum<'a>>) -> Result<(), Error> {
    let unknown = relation.replica_identity == ReplicaIdentity::Full;
    for (at, column) in relation.columns.iter().enumerate() {
        match row.next() {
            None => return Err(column_count(relation, at)),
            Some(Datum::Null | Datum::Unchanged) if !column.in_identity || unknown => {
                value::put_missing(out, pb::Missing::Absent);
            }
            Some(datum) => {
                value::put(out, column.type_oid, datum).map_err(|detail| unfit(relation, at, detail))?;
            }
        }
    }
    match row.next() {
        None => Ok(()),
        Some(_) => Err(column_count(relation, relation.columns.len() + 1)),
    }
}

#[cold]
fn column_count(relation: &Relation, got: usize) -> Error {
    Error::ColumnCount { table: relation.qualified_name(), expected: relation.columns.len(), got }
}

#[cold]
fn unfit(relation: &Relation, column: usize, detail: String) -> Error {
    Error::Value { table: relation.qualified_name(), column: relation.columns[column].name.clone(), detail }
}

/// An LSN as text, on the stack.
pub(super) struct LsnText {
    bytes: [u8; 17],
    start: usize,
}

impl LsnText {
    pub(super) fn new(lsn: Lsn) -> Self {
        let mut text = LsnText { bytes: [0; 17], start: 17 };
        text.half(lsn.0 as u32);
        text.start -= 1;
        text.bytes[text.start] = b'/';
        text.half((lsn.0 >> 32) as u32);
        text
    }

    /// Writes from the right, so that leading zeros need not be counted.
    fn half(&mut self, mut value: u32) {
        loop {
            self.start -= 1;
            self.bytes[self.start] = b"0123456789ABCDEF"[(value & 0xf) as usize];
            value >>= 4;
            if value == 0 {
                return;
            }
        }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(super) fn len(&self) -> usize {
        17 - self.start
    }
}

const LINEAGE_LEN: usize = 16;

fn lineage_text(lineage: LineageId) -> [u8; LINEAGE_LEN] {
    std::array::from_fn(|at| b"0123456789abcdef"[(lineage.0 >> (60 - 4 * at) & 0xf) as usize])
}

/// The content of a `Position`.
struct PositionText {
    lsn: LsnText,
    lineage: LineageId,
    sequence: u32,
}

impl PositionText {
    fn new(position: Position) -> Self {
        PositionText { lsn: LsnText::new(position.lsn), lineage: position.lineage, sequence: position.sequence }
    }

    fn len(&self) -> usize {
        delimited_len(self.lsn.len()) + delimited_len(LINEAGE_LEN) + scalar_len(self.sequence.into())
    }

    fn put<const N: usize>(&self, head: &mut Head<N>, number: u8) {
        head.byte(key(number, LEN));
        head.varint(self.len() as u64);
        head.delimited(1, self.lsn.len());
        head.slice(self.lsn.as_slice());
        head.delimited(2, LINEAGE_LEN);
        head.slice(&lineage_text(self.lineage));
        head.scalar(3, self.sequence.into());
    }
}

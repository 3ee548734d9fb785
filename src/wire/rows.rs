//! The read side: an encoded change as it lies in a block, viewed without decoding it into messages, and the two ways
//! of writing it again for a subscription: with fewer columns, or as structs for people.
//!
//! Views are for the hub's own encoding (one field per value, rows in compact form), which journals and streams hold.
//! Everything is checked when the view is made, so that predicates can read values without a failure path.

mod pick;
#[cfg(test)]
mod tests;

use bytes::BytesMut;

pub use super::structs::struct_change;
use super::{
    encode,
    field::{Head, LEN, VARINT, delimited_len, key, scalar_len, skip, take_delimited, take_varint, unzigzag},
    pb, value,
};
use crate::model::{Operation, Relation, RelationId, RowAccess, Value};
pub use pick::{Pick, Picked};

/// The bytes are not the event they are taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an encoded event: {0}")]
pub struct InvalidEvent(pub &'static str);

/// One framed change in compact form. Row access by column number walks the row, which is cheap for the first columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChangeView<'a> {
    /// What happened to the row.
    pub operation: Operation,
    /// Relation version that the rows are positional against.
    pub relation_id: RelationId,
    /// Number in the transaction, from 1; 0 outside of one.
    pub ordinal: u64,
    /// Old image; its columns outside the replica identity are [`Value::Absent`].
    pub before: Option<RowView<'a>>,
    /// New image.
    pub after: Option<RowView<'a>>,
}

impl<'a> ChangeView<'a> {
    /// The view of one framed event, exactly.
    pub fn parse(framed: &'a [u8]) -> Result<Self, InvalidEvent> {
        let parts = Parts::take(framed)?;
        Ok(ChangeView {
            operation: parts.operation,
            relation_id: parts.relation_id,
            ordinal: parts.ordinal,
            before: parts.before.map(RowView::new).transpose()?,
            after: parts.after.map(RowView::new).transpose()?,
        })
    }
}

/// The first framed event of a payload, and the rest of it; `None` if the payload does not begin with one.
pub fn split_first(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&field, mut rest) = payload.split_first()?;
    if field != key(1, LEN) {
        return None;
    }
    take_delimited(&mut rest)?;
    Some(payload.split_at(payload.len() - rest.len()))
}

/// A change with its rows unread.
struct Parts<'a> {
    operation: Operation,
    relation_id: RelationId,
    ordinal: u64,
    before: Option<&'a [u8]>,
    after: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    fn take(framed: &'a [u8]) -> Result<Self, InvalidEvent> {
        let mut change = framed_kind(framed, encode::EVENT_CHANGE)?;
        let mut operation = None;
        let mut parts =
            Parts { operation: Operation::Insert, relation_id: RelationId(0), ordinal: 0, before: None, after: None };
        while !change.is_empty() {
            let field = take_varint(&mut change).ok_or(InvalidEvent("field of change"))?;
            match field {
                OPERATION => operation = Some(take_varint(&mut change).ok_or(InvalidEvent("operation"))?),
                RELATION_ID => {
                    let id = take_varint(&mut change).and_then(|id| u32::try_from(id).ok());
                    parts.relation_id = RelationId(id.ok_or(InvalidEvent("relation"))?);
                }
                ORDINAL => parts.ordinal = take_varint(&mut change).ok_or(InvalidEvent("ordinal"))?,
                BEFORE_ROW => parts.before = Some(take_delimited(&mut change).ok_or(InvalidEvent("row"))?),
                AFTER_ROW => parts.after = Some(take_delimited(&mut change).ok_or(InvalidEvent("row"))?),
                BEFORE_STRUCT | AFTER_STRUCT => {
                    return Err(InvalidEvent("a struct row where a compact one is expected"));
                }
                other => skip(&mut change, (other & 7) as u8).ok_or(InvalidEvent("field of change"))?,
            }
        }
        parts.operation = match operation {
            Some(1) => Operation::Insert,
            Some(2) => Operation::Update,
            Some(3) => Operation::Delete,
            Some(5) => Operation::Read,
            _ => return Err(InvalidEvent("operation")),
        };
        Ok(parts)
    }
}

impl RowAccess for ChangeView<'_> {
    fn before(&self, column: usize) -> Value<'_> {
        self.before.and_then(|row| row.get(column)).unwrap_or(Value::Absent)
    }

    fn after(&self, column: usize) -> Value<'_> {
        self.after.and_then(|row| row.get(column)).unwrap_or(Value::Absent)
    }
}

const OPERATION: u64 = key(1, VARINT) as u64;
const RELATION_ID: u64 = key(2, VARINT) as u64;
const ORDINAL: u64 = key(3, VARINT) as u64;
const BEFORE_ROW: u64 = key(4, LEN) as u64;
const AFTER_ROW: u64 = key(5, LEN) as u64;
const BEFORE_STRUCT: u64 = key(6, LEN) as u64;
const AFTER_STRUCT: u64 = key(7, LEN) as u64;

/// The content of the event's kind, which must have this number.
fn framed_kind(framed: &[u8], number: u8) -> Result<&[u8], InvalidEvent> {
    let mut rest = framed;
    for (expected, what) in [(1, "frame"), (number, "another kind of event")] {
        let Some((&found, content)) = rest.split_first() else { return Err(InvalidEvent("frame")) };
        if found != key(expected, LEN) {
            return Err(InvalidEvent(what));
        }
        let mut content = content;
        rest = match take_delimited(&mut content) {
            Some(inner) if content.is_empty() => inner,
            _ => return Err(InvalidEvent("length")),
        };
    }
    Ok(rest)
}

/// A row in compact form: its values in column order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowView<'a> {
    bytes: &'a [u8],
    len: usize,
}

impl<'a> RowView<'a> {
    fn new(row: &'a [u8]) -> Result<Self, InvalidEvent> {
        let mut rest = row;
        let mut len = 0;
        while !rest.is_empty() {
            let content = take_value(&mut rest).ok_or(InvalidEvent("value"))?;
            read(content).ok_or(InvalidEvent("value"))?;
            len += 1;
        }
        Ok(RowView { bytes: row, len })
    }

    /// Number of values: the columns of the relation version, as far as they are in the stream.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the row has no columns at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a column, numbered from 0; `None` behind the last.
    pub fn get(&self, column: usize) -> Option<Value<'a>> {
        let mut rest = self.bytes;
        for _ in 0..column {
            take_value(&mut rest)?;
        }
        take_value(&mut rest).and_then(read).map(value_of)
    }

    /// The encoded values of these columns, one behind the other; the same for equal values. `None` when one of them is not in
    /// the row, or there are no columns.
    pub fn key(&self, columns: &[usize]) -> Option<Vec<u8>> {
        let mut key = Vec::new();
        for column in columns {
            let value = self.encoded().nth(*column)?;
            let mut content = value;
            if let Content::Value(Value::Unchanged | Value::Absent) = take_value(&mut content).and_then(read)? {
                return None;
            }
            key.extend_from_slice(value);
        }
        (!key.is_empty()).then_some(key)
    }

    /// The values in column order.
    pub fn iter(&self) -> Values<'a> {
        Values { rest: self.bytes }
    }

    /// Bytes of the values that `columns` selects.
    fn selected_len(&self, columns: &[bool]) -> usize {
        self.encoded().zip(columns).filter(|(_, selected)| **selected).map(|(value, _)| value.len()).sum()
    }

    fn put_selected(&self, out: &mut BytesMut, columns: &[bool]) {
        for (value, _) in self.encoded().zip(columns).filter(|(_, selected)| **selected) {
            out.extend_from_slice(value);
        }
    }

    /// The values with their keys and lengths.
    fn encoded(&self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            let before = rest;
            take_value(&mut rest)?;
            Some(&before[..before.len() - rest.len()])
        })
    }
}

impl<'a> IntoIterator for RowView<'a> {
    type Item = Value<'a>;
    type IntoIter = Values<'a>;

    fn into_iter(self) -> Values<'a> {
        self.iter()
    }
}

/// The values of a [`RowView`].
#[derive(Clone, Debug)]
pub struct Values<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        take_value(&mut self.rest).and_then(read).map(value_of)
    }
}

#[inline]
fn take_value<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (&field, mut rest) = bytes.split_first()?;
    if field != value::VALUES {
        return None;
    }
    let content = take_delimited(&mut rest)?;
    *bytes = rest;
    Some(content)
}

/// The content of a `Value`, text not yet checked for UTF-8.
#[derive(Clone, Copy)]
enum Content<'a> {
    Value(Value<'a>),
    Text(&'a [u8]),
}

#[inline]
fn value_of(content: Content<'_>) -> Value<'_> {
    match content {
        Content::Value(value) => value,
        Content::Text(text) => std::str::from_utf8(text).map_or(Value::RawText(text), Value::Text),
    }
}

#[inline]
fn read(content: &[u8]) -> Option<Content<'_>> {
    let (&kind, mut rest) = content.split_first()?;
    let content = match kind {
        value::TEXT => Content::Text(take_delimited(&mut rest)?),
        value::INT => Content::Value(Value::Int(unzigzag(take_varint(&mut rest)?))),
        value::MISSING => Content::Value(match take_varint(&mut rest)? {
            1 => Value::Null,
            2 => Value::Unchanged,
            3 => Value::Absent,
            _ => return None,
        }),
        value::BOOL => Content::Value(Value::Bool(take_varint(&mut rest)? != 0)),
        value::FLOAT => {
            let (bits, after) = rest.split_first_chunk()?;
            rest = after;
            Content::Value(Value::Float(f64::from_le_bytes(*bits)))
        }
        value::BYTES => Content::Value(Value::Bytes(take_delimited(&mut rest)?)),
        value::RAW_TEXT => Content::Value(Value::RawText(take_delimited(&mut rest)?)),
        _ => return None,
    };
    rest.is_empty().then_some(content)
}

/// Every row of the view has as many columns as the relation, and as the mask if there is one.
pub(super) fn check_columns(
    view: &ChangeView<'_>,
    relation: &Relation,
    columns: Option<&[bool]>,
) -> Result<(), InvalidEvent> {
    let expected = relation.columns.len();
    let rows = [view.before, view.after].into_iter().flatten().all(|row| row.len() == expected);
    let mask = columns.is_none_or(|columns| columns.len() == expected);
    if rows && mask { Ok(()) } else { Err(InvalidEvent("another number of columns than its relation")) }
}

/// Appends the change with only the columns that `columns` selects, positional against the relation event that
/// [`encode::relation_encode`] writes for the same mask. The mask has one flag per column of `relation`; that it keeps
/// the columns of the replica identity is the caller's business. On an error nothing is appended.
pub fn project_change(
    out: &mut BytesMut,
    view: &ChangeView<'_>,
    relation: &Relation,
    columns: &[bool],
    transition: Option<pb::Transition>,
) -> Result<(), InvalidEvent> {
    check_columns(view, relation, Some(columns))?;
    let transition = transition.map_or(0, |transition| transition as u64);
    let before_len = view.before.map(|row| row.selected_len(columns));
    let after_len = view.after.map(|row| row.selected_len(columns));
    let len = 2
        + scalar_len(view.relation_id.0.into())
        + scalar_len(view.ordinal)
        + before_len.map_or(0, delimited_len)
        + after_len.map_or(0, delimited_len)
        + scalar_len(transition);
    let mut head = Head::<64>::new();
    encode::frame(&mut head, encode::EVENT_CHANGE, len);
    head.scalar(1, view.operation as u64);
    head.scalar(2, view.relation_id.0.into());
    head.scalar(3, view.ordinal);
    for (number, row, len) in [(4, view.before, before_len), (5, view.after, after_len)] {
        if let (Some(row), Some(len)) = (row, len) {
            head.delimited(number, len);
            head.append_to(out);
            row.put_selected(out, columns);
            head = Head::new();
        }
    }
    head.scalar(11, transition);
    head.append_to(out);
    Ok(())
}

/// Appends the truncate with only those relation versions that `keep` keeps; whether any was.
pub fn project_truncate(
    out: &mut BytesMut,
    framed: &[u8],
    mut keep: impl FnMut(RelationId) -> bool,
) -> Result<bool, InvalidEvent> {
    let mut truncate = decode_truncate(framed)?;
    truncate.relation_ids.retain(|id| keep(RelationId(*id)));
    Ok(put_truncate(out, truncate))
}

/// The same for ROW_FORMAT_STRUCT: `table` gives the `schema.table` of each version that is kept, which `tables` lists
/// in the order of `relation_ids`.
pub fn struct_truncate(
    out: &mut BytesMut,
    framed: &[u8],
    mut table: impl FnMut(RelationId) -> Option<String>,
) -> Result<bool, InvalidEvent> {
    let mut truncate = decode_truncate(framed)?;
    let tables = &mut truncate.tables;
    truncate.relation_ids.retain(|id| match table(RelationId(*id)) {
        Some(name) => {
            tables.push(name);
            true
        }
        None => false,
    });
    Ok(put_truncate(out, truncate))
}

fn decode_truncate(framed: &[u8]) -> Result<pb::Truncate, InvalidEvent> {
    prost::Message::decode(framed_kind(framed, 4)?).map_err(|_| InvalidEvent("truncate"))
}

fn put_truncate(out: &mut BytesMut, truncate: pb::Truncate) -> bool {
    let any = !truncate.relation_ids.is_empty();
    if any {
        encode::event(out, pb::event::Kind::Truncate(truncate));
    }
    any
}

//! ROW_FORMAT_STRUCT: rows as `google.protobuf.Struct`, which grpcurl and JSON clients show by column name.
//!
//! What a value becomes is decided by its column's type rather than by the value, so that a client sees one kind per
//! column: int8 and numeric are strings even where a double could hold them. The one exception is what JSON leaves no
//! choice in: a float that is not finite.

use std::fmt::Write;

use bytes::BytesMut;

use super::{
    encode::{self, LsnText},
    field::{FIXED64, Head, VARINT, delimited_len, key},
    pb,
    rows::{ChangeView, InvalidEvent, RowView, check_columns},
    value::oid,
};
use crate::{
    lsn::Lsn,
    model::{Column, Relation, Value},
};

// `google.protobuf.Value`.
const NULL_VALUE: u8 = key(1, VARINT);
const NUMBER_VALUE: u8 = key(2, FIXED64);
const STRING_VALUE: u8 = 3;
const BOOL_VALUE: u8 = key(4, VARINT);

/// Appends the change with struct rows: `lsn` is that of its WAL record, `columns` selects as in
/// [`project_change`](super::rows::project_change), `None` for all. Columns of the new image whose TOASTed value was
/// not sent are named in `unchanged` and have no entry; absent ones have none either. On an error nothing is appended.
///
/// Text that is not UTF-8, which a Struct cannot hold, shows each such byte as `\xHH`.
pub fn struct_change(
    out: &mut BytesMut,
    view: &ChangeView<'_>,
    relation: &Relation,
    columns: Option<&[bool]>,
    lsn: Lsn,
    transition: Option<pb::Transition>,
) -> Result<(), InvalidEvent> {
    check_columns(view, relation, columns)?;
    let selected = |at: usize| columns.is_none_or(|columns| columns[at]);
    let mut change = BytesMut::with_capacity(256);
    let mut fields = BytesMut::with_capacity(256);
    let mut scratch = String::new();

    let mut head = Head::<32>::new();
    head.scalar(1, view.operation as u64);
    head.scalar(2, view.relation_id.0.into());
    head.scalar(3, view.ordinal);
    head.append_to(&mut change);
    for (number, row) in [(6, view.before), (7, view.after)] {
        if let Some(row) = row {
            fields.clear();
            for (column, value) in named(row, relation, selected) {
                put_entry(&mut fields, &mut scratch, column, value);
            }
            put_delimited(&mut change, number, &[&fields]);
        }
    }
    for (column, value) in view.after.into_iter().flat_map(|row| named(row, relation, selected)) {
        if value == Value::Unchanged {
            put_delimited(&mut change, 8, &[column.name.as_bytes()]);
        }
    }
    put_delimited(&mut change, 9, &[relation.schema.as_bytes(), b".", relation.table.as_bytes()]);
    put_delimited(&mut change, 10, &[LsnText::new(lsn).as_slice()]);
    let mut head = Head::<16>::new();
    head.scalar(11, transition.map_or(0, |transition| transition as u64));
    head.append_to(&mut change);

    let mut head = Head::<32>::new();
    encode::frame(&mut head, encode::EVENT_CHANGE, change.len());
    head.append_to(out);
    out.extend_from_slice(&change);
    Ok(())
}

fn named<'a>(
    row: RowView<'a>,
    relation: &'a Relation,
    selected: impl Fn(usize) -> bool,
) -> impl Iterator<Item = (&'a Column, Value<'a>)> {
    let columns = relation.columns.iter().zip(row).enumerate();
    columns.filter(move |(at, _)| selected(*at)).map(|(_, column)| column)
}

/// A length-delimited field made of `parts`.
fn put_delimited(out: &mut BytesMut, number: u8, parts: &[&[u8]]) {
    let mut head = Head::<16>::new();
    head.delimited(number, parts.iter().map(|part| part.len()).sum());
    head.append_to(out);
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// One entry of `Struct.fields`; none for a value that is not there.
fn put_entry(out: &mut BytesMut, scratch: &mut String, column: &Column, value: Value<'_>) {
    scratch.clear();
    let number = |value: f64| {
        let mut head = Head::<16>::new();
        head.byte(NUMBER_VALUE);
        head.slice(&value.to_le_bytes());
        head
    };
    let flag = |key: u8, value: bool| {
        let mut head = Head::<16>::new();
        head.byte(key);
        head.byte(u8::from(value));
        head
    };
    let string = match value {
        Value::Absent | Value::Unchanged => return,
        Value::Null => return put_scalar(out, column, &flag(NULL_VALUE, false)),
        Value::Bool(value) => return put_scalar(out, column, &flag(BOOL_VALUE, value)),
        Value::Int(value) if column.type_oid != oid::INT8 => return put_scalar(out, column, &number(value as f64)),
        Value::Float(value) if value.is_finite() => {
            let value = if column.type_oid == oid::FLOAT4 { shortest(scratch, value) } else { value };
            return put_scalar(out, column, &number(value));
        }
        Value::Int(value) => {
            let _ = write!(scratch, "{value}");
            scratch.as_str()
        }
        Value::Float(value) if value.is_nan() => "NaN",
        Value::Float(value) => {
            if value > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            }
        }
        Value::Bytes(bytes) => {
            scratch.reserve(2 + 2 * bytes.len());
            scratch.push_str("\\x");
            for byte in bytes {
                scratch.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
                scratch.push(char::from(b"0123456789abcdef"[usize::from(byte & 0xf)]));
            }
            scratch.as_str()
        }
        Value::Text(text) => text,
        Value::RawText(text) => {
            for chunk in text.utf8_chunks() {
                scratch.push_str(chunk.valid());
                for byte in chunk.invalid() {
                    let _ = write!(scratch, "\\x{byte:02X}");
                }
            }
            scratch.as_str()
        }
    };
    put_key(out, column, delimited_len(string.len()));
    put_delimited(out, STRING_VALUE, &[string.as_bytes()]);
}

fn put_scalar<const N: usize>(out: &mut BytesMut, column: &Column, value: &Head<N>) {
    put_key(out, column, value.as_slice().len());
    out.extend_from_slice(value.as_slice());
}

/// Everything of an entry but the content of its value, which has `value_len` bytes.
fn put_key(out: &mut BytesMut, column: &Column, value_len: usize) {
    let name = column.name.as_bytes();
    let mut head = Head::<32>::new();
    head.delimited(1, delimited_len(name.len()) + delimited_len(value_len));
    head.delimited(1, name.len());
    head.append_to(out);
    out.extend_from_slice(name);
    let mut head = Head::<16>::new();
    head.delimited(2, value_len);
    head.append_to(out);
}

/// The double that prints like the float4 does: 0.1 rather than 0.10000000149. Narrowed again it is the same float4.
fn shortest(scratch: &mut String, value: f64) -> f64 {
    let _ = write!(scratch, "{}", value as f32);
    scratch.parse().unwrap_or(value)
}

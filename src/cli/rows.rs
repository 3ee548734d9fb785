//! Rows of compact changes, decoded with the relation version that came before them in the stream. A row is
//! positional against that version's columns; a row that does not fit it is an error, never a guess.

use crate::{
    model::Value,
    wire::pb::{self, Missing, value::Kind},
};

/// `float4`'s OID in pg_type.
const FLOAT4: u32 = 700;

/// One image of a row.
#[derive(Clone, Copy, Debug)]
pub struct RowView<'a> {
    columns: &'a [pb::Column],
    values: &'a [pb::Value],
}

/// The row does not fit its relation version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// More or fewer values than columns.
    #[error("a row of {table} has {values} values for {columns} columns")]
    Length {
        /// `schema.table`.
        table: String,
        /// In the row.
        values: usize,
        /// In the relation version.
        columns: usize,
    },
    /// A kind of value that this client does not know.
    #[error("column {column:?} of {table} has a value of a kind that this version does not know")]
    UnknownKind {
        /// `schema.table`.
        table: String,
        /// Column name.
        column: String,
    },
}

impl<'a> RowView<'a> {
    /// Checks that the row fits.
    pub fn new(relation: &'a pb::Relation, row: &'a pb::Row) -> Result<Self, RowError> {
        let (columns, values) = (&relation.columns[..], &row.values[..]);
        if columns.len() != values.len() {
            let (columns, values) = (columns.len(), values.len());
            return Err(RowError::Length { table: table_name(relation), values, columns });
        }
        for (column, value) in columns.iter().zip(values) {
            if read(value).is_none() {
                return Err(RowError::UnknownKind { table: table_name(relation), column: column.name.clone() });
            }
        }
        Ok(RowView { columns, values })
    }

    /// Columns and their values, in the relation's order.
    pub fn iter(self) -> impl Iterator<Item = (&'a pb::Column, Value<'a>)> {
        self.columns.iter().zip(self.values).map(|(column, value)| (column, read(value).unwrap_or(Value::Absent)))
    }

    /// The value of column number `index`, from 0; absent where there is none.
    pub fn value(self, index: usize) -> Value<'a> {
        self.values.get(index).and_then(read).unwrap_or(Value::Absent)
    }
}

/// `schema.table`, unquoted.
pub fn table_name(relation: &pb::Relation) -> String {
    format!("{}.{}", relation.schema, relation.table)
}

fn read(value: &pb::Value) -> Option<Value<'_>> {
    Some(match value.kind.as_ref()? {
        Kind::Missing(missing) => match Missing::try_from(*missing).ok()? {
            Missing::Null => Value::Null,
            Missing::Unchanged => Value::Unchanged,
            Missing::Absent => Value::Absent,
            Missing::Unspecified => return None,
        },
        Kind::BoolValue(value) => Value::Bool(*value),
        Kind::IntValue(value) => Value::Int(*value),
        Kind::FloatValue(value) => Value::Float(*value),
        Kind::BytesValue(bytes) => Value::Bytes(bytes),
        Kind::Text(text) => Value::Text(text),
        Kind::RawText(bytes) => Value::RawText(bytes),
    })
}

/// As text: what PostgreSQL would print, NULL and missing values in words.
pub fn to_text(column: &pb::Column, value: Value<'_>) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Unchanged => "(unchanged)".to_owned(),
        Value::Absent => "(absent)".to_owned(),
        Value::Bool(value) => if value { "t" } else { "f" }.to_owned(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => float_text(column, value),
        Value::Bytes(bytes) => hex(bytes),
        Value::Text(text) => text.to_owned(),
        Value::RawText(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// As JSON: numbers for integers and finite floats, text for everything that JSON has no kind for. `None`: there is
/// no value to show.
pub fn to_json(column: &pb::Column, value: Value<'_>) -> Option<serde_json::Value> {
    Some(match value {
        Value::Unchanged | Value::Absent => return None,
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => value.into(),
        Value::Int(value) => value.into(),
        Value::Float(value) => match float_text(column, value).parse().ok().and_then(serde_json::Number::from_f64) {
            Some(number) => number.into(),
            None => float_text(column, value).into(),
        },
        Value::Bytes(bytes) => hex(bytes).into(),
        Value::Text(text) => text.into(),
        Value::RawText(bytes) => serde_json::json!({ "raw": hex(bytes) }),
    })
}

/// A float4 arrives widened; its shortest text is that of the narrow number.
fn float_text(column: &pb::Column, value: f64) -> String {
    match value {
        v if v.is_nan() => "NaN".to_owned(),
        v if v.is_infinite() => if v > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        v if column.type_oid == FLOAT4 => (v as f32).to_string(),
        v => v.to_string(),
    }
}

/// `bytea`'s hex form.
pub fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let digits = digits.filter_map(|digit| char::from_digit(u32::from(digit), 16));
    "\\x".chars().chain(digits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{column, relation, row};

    #[test]
    fn every_kind_of_value_has_a_text_and_a_json_form() {
        let float4 = pb::Column { type_oid: FLOAT4, ..column("f", false) };
        let other = column("c", false);
        for (column, value, text, json) in [
            (&other, Value::Null, "null", Some("null")),
            (&other, Value::Unchanged, "(unchanged)", None),
            (&other, Value::Absent, "(absent)", None),
            (&other, Value::Bool(true), "t", Some("true")),
            (&other, Value::Int(i64::MAX), "9223372036854775807", Some("9223372036854775807")),
            (&other, Value::Float(0.1), "0.1", Some("0.1")),
            (&float4, Value::Float(f64::from(0.1f32)), "0.1", Some("0.1")),
            (&other, Value::Float(f64::NAN), "NaN", Some("\"NaN\"")),
            (&other, Value::Float(f64::NEG_INFINITY), "-Infinity", Some("\"-Infinity\"")),
            (&other, Value::Bytes(&[0, 0xAB]), "\\x00ab", Some("\"\\\\x00ab\"")),
            (&other, Value::Text("12.50"), "12.50", Some("\"12.50\"")),
            (&other, Value::RawText(&[0xE4]), "\u{FFFD}", Some("{\"raw\":\"\\\\xe4\"}")),
        ] {
            assert_eq!(to_text(column, value), text);
            assert_eq!(to_json(column, value).map(|json| json.to_string()).as_deref(), json);
        }
    }

    #[test]
    fn a_row_that_does_not_fit_is_refused() {
        let relation = relation(1, &[("id", true), ("name", false)]);
        assert!(RowView::new(&relation, &row(&[Kind::IntValue(1)])).is_err());
        let unknown = pb::Row { values: vec![pb::Value { kind: None }, pb::Value { kind: None }] };
        let error = RowView::new(&relation, &unknown).expect_err("an unknown kind");
        assert!(error.to_string().contains("\"id\" of public.t"), "{error}");
        assert!(RowView::new(&relation, &row(&[Kind::IntValue(1), Kind::Missing(0)])).is_err());
    }
}

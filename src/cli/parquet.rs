//! Rows as a [Parquet](https://parquet.apache.org/docs/file-format/) file: row groups of some 32 MB, Snappy. Types that
//! Parquet has keep their meaning; everything else is text as PostgreSQL prints it. A value that its column's Parquet
//! type cannot hold (an infinite date, a NaN in `numeric(p, s)`) is an error, never another value.

use std::{fs, io::BufWriter, sync::Arc};

use parquet::{
    basic::{Compression, LogicalType, Repetition, TimeUnit, Type as Physical},
    data_type::{
        BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FixedLenByteArray, FixedLenByteArrayType, FloatType,
        Int32Type, Int64Type,
    },
    errors::ParquetError,
    file::{
        properties::WriterProperties,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::types::Type,
};

use super::{
    error::Error,
    rows::{RowView, to_text},
};
use crate::{model::Value, selection::predicate::temporal, wire::pb};

/// Bytes of values at which a row group is written.
const GROUP: usize = 32 << 20;
/// From PostgreSQL's epoch back to Unix's.
const DAYS: i64 = 10_957;
const MICROS: i64 = DAYS * 86_400_000_000;
/// Digits that an `i64` and an `i128` hold.
const SHORT: u32 = 18;
const LONG: u32 = 38;

/// How a column is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Int2,
    Int4,
    /// `int8` and `oid`.
    Int8,
    Float4,
    Float8,
    Date,
    Timestamp,
    TimestampTz,
    /// `numeric` with these many digits, so many of them behind the point.
    Decimal(u32, u32),
    Bytes,
    Json,
    Text,
}

impl Kind {
    /// By type OID
    /// ([pg_type.dat](https://github.com/postgres/postgres/blob/master/src/include/catalog/pg_type.dat)).
    fn of(column: &pb::Column) -> Kind {
        match column.type_oid {
            16 => Kind::Bool,
            21 => Kind::Int2,
            23 => Kind::Int4,
            20 | 26 => Kind::Int8,
            700 => Kind::Float4,
            701 => Kind::Float8,
            1082 => Kind::Date,
            1114 => Kind::Timestamp,
            1184 => Kind::TimestampTz,
            1700 => Kind::numeric(column.type_modifier),
            17 => Kind::Bytes,
            114 | 3802 => Kind::Json,
            _ => Kind::Text,
        }
    }

    /// `numeric(p, s)` has `((p << 16) | s) + 4`, and `s` may be negative or greater than `p`; `numeric` alone has -1.
    fn numeric(modifier: i32) -> Kind {
        let Ok(declared) = u32::try_from(modifier - 4) else { return Kind::Text };
        let (precision, scale) = (declared >> 16, declared & 0x7ff);
        if (1..=LONG).contains(&precision) && scale <= precision { Kind::Decimal(precision, scale) } else { Kind::Text }
    }

    fn field(self, name: &str) -> Result<Type, ParquetError> {
        let (physical, logical) = match self {
            Kind::Bool => (Physical::BOOLEAN, None),
            Kind::Int2 => (Physical::INT32, Some(LogicalType::integer(16, true))),
            Kind::Int4 => (Physical::INT32, None),
            Kind::Int8 => (Physical::INT64, None),
            Kind::Float4 => (Physical::FLOAT, None),
            Kind::Float8 => (Physical::DOUBLE, None),
            Kind::Date => (Physical::INT32, Some(LogicalType::Date)),
            Kind::Timestamp => (Physical::INT64, Some(LogicalType::timestamp(false, TimeUnit::MICROS))),
            Kind::TimestampTz => (Physical::INT64, Some(LogicalType::timestamp(true, TimeUnit::MICROS))),
            Kind::Decimal(precision, scale) => {
                let physical = if precision <= SHORT { Physical::INT64 } else { Physical::FIXED_LEN_BYTE_ARRAY };
                (physical, Some(LogicalType::decimal(scale as i32, precision as i32)))
            }
            Kind::Bytes => (Physical::BYTE_ARRAY, None),
            Kind::Json => (Physical::BYTE_ARRAY, Some(LogicalType::Json)),
            Kind::Text => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        };
        let mut field = Type::primitive_type_builder(name, physical)
            .with_repetition(Repetition::OPTIONAL)
            .with_logical_type(logical);
        if let Kind::Decimal(precision, scale) = self {
            field = field.with_precision(precision as i32).with_scale(scale as i32);
            if precision > SHORT {
                field = field.with_length(16);
            }
        }
        field.build()
    }
}

/// Values of one column in the row group that is being filled.
enum Values {
    Bool(Vec<bool>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float(Vec<f32>),
    Double(Vec<f64>),
    Bytes(Vec<ByteArray>),
    Fixed(Vec<FixedLenByteArray>),
}

impl Values {
    fn of(kind: Kind) -> Values {
        match kind {
            Kind::Bool => Values::Bool(Vec::new()),
            Kind::Int2 | Kind::Int4 | Kind::Date => Values::Int32(Vec::new()),
            Kind::Int8 | Kind::Timestamp | Kind::TimestampTz => Values::Int64(Vec::new()),
            Kind::Decimal(precision, _) if precision <= SHORT => Values::Int64(Vec::new()),
            Kind::Decimal(..) => Values::Fixed(Vec::new()),
            Kind::Float4 => Values::Float(Vec::new()),
            Kind::Float8 => Values::Double(Vec::new()),
            Kind::Bytes | Kind::Json | Kind::Text => Values::Bytes(Vec::new()),
        }
    }
}

struct Column {
    kind: Kind,
    values: Values,
    /// 1 where there is a value, 0 where it is NULL.
    present: Vec<i16>,
}

impl Column {
    /// Adds a value; about its bytes. `None`: the column's type cannot hold it.
    fn add(&mut self, column: &pb::Column, value: Value<'_>) -> Option<usize> {
        if matches!(value, Value::Null | Value::Absent | Value::Unchanged) {
            self.present.push(0);
            return Some(2);
        }
        let size = match (&mut self.values, self.kind, value) {
            (Values::Bool(values), _, Value::Bool(value)) => push(values, value),
            (Values::Int32(values), _, Value::Int(value)) => push(values, i32::try_from(value).ok()?),
            (Values::Int64(values), Kind::Int8, Value::Int(value)) => push(values, value),
            (Values::Float(values), _, Value::Float(value)) => push(values, value as f32),
            (Values::Double(values), _, Value::Float(value)) => push(values, value),
            (Values::Int32(values), Kind::Date, Value::Text(text)) => {
                let days = finite(temporal::date(text.as_bytes())?)?.checked_add(DAYS)?;
                push(values, i32::try_from(days).ok()?)
            }
            (Values::Int64(values), Kind::Timestamp, Value::Text(text)) => {
                push(values, finite(temporal::timestamp(text.as_bytes())?)?.checked_add(MICROS)?)
            }
            (Values::Int64(values), Kind::TimestampTz, Value::Text(text)) => {
                push(values, finite(temporal::timestamptz(text.as_bytes())?)?.checked_add(MICROS)?)
            }
            (Values::Int64(values), Kind::Decimal(_, scale), Value::Text(text)) => {
                push(values, i64::try_from(unscaled(text, scale)?).ok()?)
            }
            (Values::Fixed(values), Kind::Decimal(_, scale), Value::Text(text)) => {
                push(values, FixedLenByteArray::from(unscaled(text, scale)?.to_be_bytes().to_vec()))
            }
            (Values::Bytes(values), Kind::Bytes, Value::Bytes(bytes)) => {
                push(values, ByteArray::from(bytes.to_vec()));
                bytes.len() + 16
            }
            (Values::Bytes(values), Kind::Json | Kind::Text, value) if !matches!(value, Value::RawText(_)) => {
                let text = to_text(column, value);
                let size = text.len() + 16;
                push(values, ByteArray::from(text.into_bytes()));
                size
            }
            _ => return None,
        };
        self.present.push(1);
        Some(size + 2)
    }

    fn write(&mut self, group: &mut SerializedRowGroupWriter<'_, BufWriter<fs::File>>) -> Result<(), ParquetError> {
        match &mut self.values {
            Values::Bool(values) => write::<BoolType>(group, values, &self.present)?,
            Values::Int32(values) => write::<Int32Type>(group, values, &self.present)?,
            Values::Int64(values) => write::<Int64Type>(group, values, &self.present)?,
            Values::Float(values) => write::<FloatType>(group, values, &self.present)?,
            Values::Double(values) => write::<DoubleType>(group, values, &self.present)?,
            Values::Bytes(values) => write::<ByteArrayType>(group, values, &self.present)?,
            Values::Fixed(values) => write::<FixedLenByteArrayType>(group, values, &self.present)?,
        }
        self.present.clear();
        Ok(())
    }
}

fn push<T>(values: &mut Vec<T>, value: T) -> usize {
    values.push(value);
    size_of::<T>()
}

fn write<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, BufWriter<fs::File>>,
    values: &mut Vec<T::T>,
    present: &[i16],
) -> Result<(), ParquetError> {
    let Some(mut column) = group.next_column()? else {
        return Err(ParquetError::General("a column too many".to_owned()));
    };
    column.typed::<T>().write_batch(values, Some(present), None)?;
    column.close()?;
    values.clear();
    Ok(())
}

fn finite(value: i64) -> Option<i64> {
    (value != i64::MAX && value != i64::MIN).then_some(value)
}

/// `12.30` with a scale of 2 is 1230.
fn unscaled(text: &str, scale: u32) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let missing = (scale as usize).checked_sub(fraction.len())?;
    let mut value: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()).chain(std::iter::repeat_n(b'0', missing)) {
        let digit = digit.is_ascii_digit().then(|| i128::from(digit - b'0'))?;
        value = value.checked_mul(10)?.checked_add(digit)?;
    }
    Some(if negative { -value } else { value })
}

/// A file that is being written.
pub struct ParquetFile {
    writer: SerializedFileWriter<BufWriter<fs::File>>,
    columns: Vec<Column>,
    described: Vec<pb::Column>,
    /// In the row group that is being filled.
    bytes: usize,
}

impl ParquetFile {
    /// With the columns of this relation.
    pub fn create(file: fs::File, relation: &pb::Relation) -> Result<ParquetFile, Error> {
        let kinds: Vec<Kind> = relation.columns.iter().map(Kind::of).collect();
        let fields = relation.columns.iter().zip(&kinds).map(|(column, kind)| kind.field(&column.name).map(Arc::new));
        let fields = fields.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let schema = Type::group_type_builder(&relation.table).with_fields(fields).build().map_err(failed)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by(concat!("walcast ", env!("CARGO_PKG_VERSION")).to_owned())
            .build();
        let buffered = BufWriter::with_capacity(1 << 20, file);
        let writer = SerializedFileWriter::new(buffered, Arc::new(schema), Arc::new(properties)).map_err(failed)?;
        let column = |kind: Kind| Column { kind, values: Values::of(kind), present: Vec::new() };
        Ok(ParquetFile {
            writer,
            columns: kinds.into_iter().map(column).collect(),
            described: relation.columns.clone(),
            bytes: 0,
        })
    }

    /// Whether rows of this relation version fit.
    pub fn fits(&self, relation: &pb::Relation) -> bool {
        let same = |(one, other): (&pb::Column, &pb::Column)| {
            one.name == other.name && one.type_oid == other.type_oid && one.type_modifier == other.type_modifier
        };
        self.described.len() == relation.columns.len() && self.described.iter().zip(&relation.columns).all(same)
    }

    /// Adds a row.
    pub fn add(&mut self, row: RowView<'_>) -> Result<(), Error> {
        for (column, (described, value)) in self.columns.iter_mut().zip(row.iter()) {
            self.bytes += column.add(described, value).ok_or_else(|| {
                let (value, name, kind) = (to_text(described, value), &described.name, &described.type_name);
                Error::Failed(format!(
                    "{value} in column {name:?} ({kind}) has no place in a Parquet file: leave the row or the column out, or \
                     write .jsonl or .csv"
                ))
            })?;
        }
        if self.bytes >= GROUP { self.write_group() } else { Ok(()) }
    }

    fn write_group(&mut self) -> Result<(), Error> {
        self.bytes = 0;
        let mut group = self.writer.next_row_group().map_err(failed)?;
        for column in &mut self.columns {
            column.write(&mut group).map_err(failed)?;
        }
        group.close().map_err(failed)?;
        Ok(())
    }

    /// Writes what is left and the footer; the file is to be synced.
    pub fn finish(mut self) -> Result<fs::File, Error> {
        if self.bytes > 0 {
            self.write_group()?;
        }
        let buffered = self.writer.into_inner().map_err(failed)?;
        buffered.into_inner().map_err(|error| failed(error.into_error().into()))
    }
}

fn failed(error: ParquetError) -> Error {
    Error::Failed(format!("writing the Parquet file: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lose_their_point() {
        assert_eq!(unscaled("12.30", 2), Some(1230));
        assert_eq!(unscaled("-0.07", 4), Some(-700));
        assert_eq!(unscaled("5", 3), Some(5000));
        assert_eq!(unscaled(&"9".repeat(38), 0), Some(10_i128.pow(38) - 1));
        for text in ["NaN", "Infinity", "1.234", "1e5"] {
            assert_eq!(unscaled(text, 2), None, "{text}");
        }
    }

    #[test]
    fn declared_numerics_are_decimals() {
        let modifier = |precision: i32, scale: i32| ((precision << 16) | (scale & 0x7ff)) + 4;
        assert_eq!(Kind::numeric(modifier(20, 4)), Kind::Decimal(20, 4));
        assert_eq!(Kind::numeric(modifier(18, 0)), Kind::Decimal(18, 0));
        for other in [-1, modifier(39, 0), modifier(3, -2), modifier(2, 5)] {
            assert_eq!(Kind::numeric(other), Kind::Text, "{other}");
        }
    }
}

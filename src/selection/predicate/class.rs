//! How the values of a column compare: one class per family of types, and scalars that borrow from the row.

use std::cmp::Ordering;

use super::{
    ast::Op,
    decimal::{self, Decimal},
    temporal,
};
use crate::model::{Column, Value};

/// A family of types that compare alike. Enums, arrays, ranges, json, `inet`, `money` and whatever else has no variant of
/// its own is [`Class::Other`]: equality of the text form only. A domain compares as the type that it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Class {
    Bool,
    /// `int2`, `int4`, `int8`, `oid`, with the type's range in [`Class::int_range`].
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    /// `text`, `varchar`, `name`, `"char"`.
    Text,
    /// `char(n)`: trailing spaces do not count, except for LIKE.
    Padded,
    Uuid,
    Bytes,
    /// A domain over `bytea`, whose values come in hex: it orders as the bytes do.
    Hex,
    Date,
    Time,
    TimeTz,
    Timestamp,
    TimestampTz,
    Interval,
    Other,
}

/// By type OID, which is fixed for built-in types
/// ([pg_type.dat](https://github.com/postgres/postgres/blob/master/src/include/catalog/pg_type.dat)).
const BUILT_IN: [(u32, &str, Class); 21] = [
    (16, "bool", Class::Bool),
    (17, "bytea", Class::Bytes),
    (18, "char", Class::Text),
    (19, "name", Class::Text),
    (20, "int8", Class::Int8),
    (21, "int2", Class::Int2),
    (23, "int4", Class::Int4),
    (25, "text", Class::Text),
    (26, "oid", Class::Oid),
    (700, "float4", Class::Float4),
    (701, "float8", Class::Float8),
    (1042, "bpchar", Class::Padded),
    (1043, "varchar", Class::Text),
    (1082, "date", Class::Date),
    (1083, "time", Class::Time),
    (1114, "timestamp", Class::Timestamp),
    (1184, "timestamptz", Class::TimestampTz),
    (1186, "interval", Class::Interval),
    (1266, "timetz", Class::TimeTz),
    (1700, "numeric", Class::Numeric),
    (2950, "uuid", Class::Uuid),
];

/// The column's type in pg_catalog without the schema. A domain has an OID of its own and the name of what it is over.
pub(super) fn base_name(column: &Column) -> &str {
    column.type_name.strip_prefix("pg_catalog.").unwrap_or(&column.type_name)
}

impl Class {
    pub fn of(column: &Column) -> Class {
        let is_domain = column.type_name.starts_with("pg_catalog.");
        let name = base_name(column);
        let found = BUILT_IN.iter().find(|built_in| built_in.0 == column.type_oid || is_domain && built_in.1 == name);
        match found.map_or(Class::Other, |built_in| built_in.2) {
            Class::Bytes if is_domain => Class::Hex,
            class => class,
        }
    }

    /// Inclusive bounds of an integer type.
    pub fn int_range(self) -> Option<(i64, i64)> {
        match self {
            Class::Int2 => Some((i16::MIN.into(), i16::MAX.into())),
            Class::Int4 => Some((i32::MIN.into(), i32::MAX.into())),
            Class::Int8 => Some((i64::MIN, i64::MAX)),
            Class::Oid => Some((0, u32::MAX.into())),
            _ => None,
        }
    }

    pub fn is_text(self) -> bool {
        matches!(self, Class::Text | Class::Padded)
    }

    /// Whether columns of the two classes compare without conversion of either.
    pub fn comparable(self, other: Class) -> bool {
        self == other
            || self.int_range().is_some() && other.int_range().is_some()
            || matches!((self, other), (Class::Float4 | Class::Float8, Class::Float4 | Class::Float8))
    }

    /// The value in a form that compares; `None` where it is not what the class says.
    pub fn read(self, value: Value<'_>) -> Option<Scalar<'_>> {
        let bytes = match value {
            Value::Int(int) if self.int_range().is_some() => return Some(Scalar::Int(int)),
            Value::Bool(bool) if self == Class::Bool => return Some(Scalar::Int(bool.into())),
            Value::Float(float) if matches!(self, Class::Float4 | Class::Float8) => return Some(Scalar::Float(float)),
            Value::Bytes(bytes) if self == Class::Bytes => return Some(Scalar::Bytes(bytes)),
            Value::Text(text) => text.as_bytes(),
            Value::RawText(raw) if self.is_text() || self == Class::Other => raw,
            _ => return None,
        };
        match self {
            // What has a kind of its own on the wire comes as text where the column is of a domain.
            Class::Int2 | Class::Int4 | Class::Int8 | Class::Oid => parse(bytes).map(Scalar::Int),
            Class::Float4 => parse::<f32>(bytes).map(|float| Scalar::Float(float.into())),
            Class::Float8 => parse(bytes).map(Scalar::Float),
            Class::Bool => (bytes == b"t" || bytes == b"f").then(|| Scalar::Int((bytes == b"t").into())),
            Class::Text | Class::Uuid | Class::Hex | Class::Other => Some(Scalar::Bytes(bytes)),
            Class::Padded => Some(Scalar::Bytes(trim(bytes))),
            Class::Numeric => Decimal::read(bytes).map(Scalar::Decimal),
            Class::Date => temporal::date(bytes).map(Scalar::Int),
            Class::Time => temporal::time(bytes).map(Scalar::Int),
            Class::TimeTz => temporal::timetz(bytes).map(Scalar::Int),
            Class::Timestamp => temporal::timestamp(bytes).map(Scalar::Int),
            Class::TimestampTz => temporal::timestamptz(bytes).map(Scalar::Int),
            Class::Interval => temporal::interval(bytes).map(Scalar::Span),
            Class::Bytes => None,
        }
    }
}

fn parse<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Without the spaces at the end.
pub(super) fn trim(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    &bytes[..end]
}

/// A value ready to compare with another of the same class.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scalar<'a> {
    /// Integers, booleans and all instants.
    Int(i64),
    Float(f64),
    Decimal(Decimal<'a>),
    Span(i128),
    /// Text, uuid and bytea, in byte order.
    Bytes(&'a [u8]),
}

impl Scalar<'_> {
    /// `None` only for scalars of different classes, which the type check keeps apart.
    pub fn order(&self, other: &Scalar<'_>) -> Option<Ordering> {
        Some(match (self, other) {
            (Scalar::Int(left), Scalar::Int(right)) => left.cmp(right),
            (Scalar::Bytes(left), Scalar::Bytes(right)) => left.cmp(right),
            (Scalar::Decimal(left), Scalar::Decimal(right)) => left.order(right),
            (Scalar::Float(left), Scalar::Float(right)) => order_floats(*left, *right),
            (Scalar::Span(left), Scalar::Span(right)) => left.cmp(right),
            _ => return None,
        })
    }

    /// Whether `op` holds; equality of bytes is decided by their length first.
    pub fn satisfies(&self, op: Op, other: &Scalar<'_>) -> Option<bool> {
        match (self, other) {
            (Scalar::Bytes(left), Scalar::Bytes(right)) if op.is_equality() => {
                Some((left == right) == (op == Op::EQUAL))
            }
            _ => self.order(other).map(|ordering| op.holds(ordering)),
        }
    }
}

/// PostgreSQL's order: NaN equals NaN and sorts last, -0 equals 0.
fn order_floats(left: f64, right: f64) -> Ordering {
    left.partial_cmp(&right).unwrap_or_else(|| left.is_nan().cmp(&right.is_nan()))
}

/// A literal in the form of its column's class.
#[derive(Clone, Debug)]
pub(super) enum Constant {
    Bool(bool),
    Int(i64),
    /// A date, time or timestamp.
    Instant(i64),
    Float(f64),
    Decimal(decimal::Owned),
    Span(i128),
    /// Of text, uuid, hex and the types without a class, whose values need no preparation.
    Text(Box<[u8]>),
    /// Of `char(n)`, without spaces at the end.
    Padded(Box<[u8]>),
    Bytes(Box<[u8]>),
}

impl Constant {
    /// Whether `value op self` holds, `value` not being null; `None` where it is not of this class. The frequent
    /// classes compare without a [`Scalar`].
    #[inline]
    pub fn compare(&self, class: Class, value: Value<'_>, op: Op) -> Option<bool> {
        match (self, value) {
            (Constant::Int(constant), Value::Int(int)) => Some(op.holds(int.cmp(constant))),
            (Constant::Bool(constant), Value::Bool(truth)) => Some(op.holds(truth.cmp(constant))),
            (Constant::Text(constant), Value::Text(text)) if op.is_equality() => {
                Some((*text.as_bytes() == **constant) == (op == Op::EQUAL))
            }
            _ => class.read(value)?.satisfies(op, &self.scalar()),
        }
    }

    pub fn scalar(&self) -> Scalar<'_> {
        match self {
            Constant::Bool(truth) => Scalar::Int((*truth).into()),
            Constant::Int(int) | Constant::Instant(int) => Scalar::Int(*int),
            Constant::Float(float) => Scalar::Float(*float),
            Constant::Decimal(number) => Scalar::Decimal(number.view()),
            Constant::Span(span) => Scalar::Span(*span),
            Constant::Text(bytes) | Constant::Padded(bytes) | Constant::Bytes(bytes) => Scalar::Bytes(bytes),
        }
    }
}

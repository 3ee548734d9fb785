//! Values as Rust has them.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::{Timestamp, civil, tz::Offset};
use uuid::Uuid;

/// A column's value. Its kind follows from the column's type alone; [`Value::Special`], NULL and unchanged values aside.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value {
    /// SQL NULL.
    Null,
    /// A TOASTed value that the update did not touch and PostgreSQL did not send: it is what it was.
    Unchanged,
    /// bool.
    Bool(bool),
    /// int2, int4, int8, oid.
    Int(i64),
    /// float4, float8; NaN and infinities included.
    Float(f64),
    /// bytea, and text that is not UTF-8.
    Bytes(Bytes),
    /// Text, and every type that has no other kind, as PostgreSQL prints it.
    Text(String),
    /// numeric.
    Numeric(Numeric),
    /// date.
    Date(civil::Date),
    /// time.
    Time(civil::Time),
    /// timetz.
    TimeTz(TimeTz),
    /// timestamp.
    Timestamp(civil::DateTime),
    /// timestamptz, in UTC. A [`Timestamp`] ends two days before PostgreSQL's year 9999 does: see [`Value::as_timestamp`].
    TimestampTz(civil::DateTime),
    /// interval.
    Interval(Interval),
    /// uuid.
    Uuid(Uuid),
    /// json, jsonb. A JSON null is `Json(Null)`, distinct from SQL NULL. Numbers beyond 64 bits are rounded; take them as text.
    Json(serde_json::Value),
    /// Arrays, nested for more dimensions; lower bounds are dropped.
    Array(Vec<Value>),
    /// Ranges.
    Range(Box<Range>),
    /// Multiranges.
    Multirange(Vec<Range>),
    /// A valid value that the native type cannot hold, as PostgreSQL prints it: infinite dates, years before 1 or after
    /// 9999, 24:00:00.
    Special {
        /// PostgreSQL's type.
        type_name: Arc<str>,
        /// The value.
        text: String,
    },
}

impl Value {
    /// Whether it is SQL NULL.
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// An integer.
    pub fn as_i64(&self) -> Option<i64> {
        if let Value::Int(value) = self { Some(*value) } else { None }
    }

    /// A float.
    pub fn as_f64(&self) -> Option<f64> {
        if let Value::Float(value) = self { Some(*value) } else { None }
    }

    /// A bool.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(value) = self { Some(*value) } else { None }
    }

    /// Text, or a numeric's or special value's text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Text(text) | Value::Special { text, .. } => Some(text),
            Value::Numeric(number) => Some(number.as_str()),
            _ => None,
        }
    }

    /// Bytes.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        if let Value::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    /// A timestamptz as an instant, until 9999-12-30 22:00:00 UTC.
    pub fn as_timestamp(&self) -> Option<Timestamp> {
        if let Value::TimestampTz(time) = self { Offset::UTC.to_timestamp(*time).ok() } else { None }
    }
}

/// For people; not PostgreSQL's text.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Unchanged => f.write_str("unchanged"),
            Value::Bool(value) => value.fmt(f),
            Value::Int(value) => value.fmt(f),
            Value::Float(value) => value.fmt(f),
            Value::Bytes(value) => write!(f, "{value:?}"),
            Value::Text(text) | Value::Special { text, .. } => f.write_str(text),
            Value::Numeric(value) => value.fmt(f),
            Value::Date(value) => value.fmt(f),
            Value::Time(value) => value.fmt(f),
            Value::TimeTz(value) => value.fmt(f),
            Value::Timestamp(value) => value.fmt(f),
            Value::TimestampTz(value) => write!(f, "{value}Z"),
            Value::Interval(value) => write!(f, "{value:?}"),
            Value::Uuid(value) => value.fmt(f),
            Value::Json(value) => value.fmt(f),
            Value::Array(values) => f.debug_list().entries(values.iter().map(|value| format!("{value}"))).finish(),
            Value::Range(range) => range.fmt(f),
            Value::Multirange(ranges) => f.debug_list().entries(ranges).finish(),
        }
    }
}

/// A numeric of any precision, as PostgreSQL prints it: the standard library has no decimal. Parse it into the decimal type of
/// your choice with [`Numeric::parse`]. `NaN`, `Infinity` and `-Infinity` are values too.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Numeric(pub(crate) String);

impl Numeric {
    /// The digits, without an exponent and with the scale kept.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Into a decimal type.
    ///
    /// # Errors
    /// Those of the type.
    pub fn parse<T: std::str::FromStr>(&self) -> Result<T, T::Err> {
        self.0.parse()
    }
}

impl fmt::Display for Numeric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A time of day with an offset from UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimeTz {
    /// Local time.
    pub time: civil::Time,
    /// East of UTC, in seconds.
    pub offset_seconds: i32,
}

impl fmt::Display for TimeTz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, seconds) = (if self.offset_seconds < 0 { '-' } else { '+' }, self.offset_seconds.unsigned_abs());
        write!(f, "{}{sign}{:02}:{:02}", self.time, seconds / 3600, seconds / 60 % 60)?;
        if seconds % 60 == 0 { Ok(()) } else { write!(f, ":{:02}", seconds % 60) }
    }
}

/// PostgreSQL's interval. A month has no fixed number of days, nor has a day a fixed number of hours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Interval {
    /// Years included.
    pub months: i64,
    /// Days.
    pub days: i64,
    /// The rest.
    pub microseconds: i64,
}

impl Interval {
    /// As a duration, a day being 24 hours. `None` if there are months or it is negative.
    pub fn to_duration(self) -> Option<Duration> {
        let microseconds = self.days.checked_mul(86_400_000_000)?.checked_add(self.microseconds)?;
        if self.months == 0 { Some(Duration::from_micros(u64::try_from(microseconds).ok()?)) } else { None }
    }
}

/// A range. `None` as a bound is unbounded; of an empty range both are `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Range {
    /// Lower bound.
    pub lower: Option<Value>,
    /// Upper bound.
    pub upper: Option<Value>,
    /// Whether the lower bound belongs to it.
    pub lower_inclusive: bool,
    /// Whether the upper bound belongs to it.
    pub upper_inclusive: bool,
    /// Whether it holds nothing.
    pub empty: bool,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.empty {
            return f.write_str("empty");
        }
        f.write_str(if self.lower_inclusive { "[" } else { "(" })?;
        self.lower.iter().try_for_each(|bound| bound.fmt(f))?;
        f.write_str(",")?;
        self.upper.iter().try_for_each(|bound| bound.fmt(f))?;
        f.write_str(if self.upper_inclusive { "]" } else { ")" })
    }
}

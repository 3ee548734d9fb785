//! From text as PostgreSQL prints it to values, by type name. The hub pins ISO dates, UTC and IntervalStyle postgres.

use std::{collections::HashMap, sync::Arc};

use jiff::{SignedDuration, civil};

use crate::{
    position::unhex,
    value::{Interval, Numeric, Range, TimeTz, Value},
};

/// Makes a value from text, or says what is wrong with it, which ends the subscription.
pub type Decoder = Arc<dyn Fn(&str) -> Result<Value, String> + Send + Sync>;

/// How a column's text becomes a value.
#[derive(Clone)]
pub(crate) enum Plan {
    Text,
    Scalar(Scalar),
    Array(Box<Plan>, char),
    Range(Scalar),
    Multirange(Scalar),
    Custom(Decoder),
}

/// Types with a native value.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Scalar {
    Bool,
    Int,
    Float,
    Bytea,
    Numeric,
    Date,
    Time,
    TimeTz,
    Timestamp,
    TimestampTz,
    Interval,
    Uuid,
    Json,
}

/// Text types of pg_catalog that have arrays, which print like all arrays but for box.
const TEXTS: &str = "text varchar bpchar name char xml inet cidr macaddr macaddr8 bit varbit money point lseg path polygon line \
    circle tsvector tsquery pg_lsn pg_snapshot txid_snapshot jsonpath xid xid8 cid tid refcursor regclass regtype regproc \
    regprocedure regoper regoperator regrole regnamespace regconfig regdictionary regcollation aclitem";

/// Decoders by type name.
#[derive(Clone, Default)]
pub(crate) struct Decoders {
    pub(crate) json_as_text: bool,
    pub(crate) custom: HashMap<String, Decoder>,
}

impl Decoders {
    pub(crate) fn plan(&self, type_name: &str) -> Plan {
        if let Some(decoder) = self.custom.get(type_name) {
            return Plan::Custom(decoder.clone());
        }
        self.builtin(type_name)
    }

    fn builtin(&self, type_name: &str) -> Plan {
        if let Some(element) = type_name.strip_prefix('_') {
            return match self.builtin(element) {
                _ if element == "box" => Plan::Array(Box::new(Plan::Text), ';'),
                Plan::Text if self.is_text(element) => Plan::Array(Box::new(Plan::Text), ','),
                Plan::Text | Plan::Array(..) => Plan::Text,
                plan => Plan::Array(Box::new(plan), ','),
            };
        }
        match (scalar(type_name), range(type_name)) {
            (Some(Scalar::Json), _) if self.json_as_text => Plan::Text,
            (Some(scalar), _) => Plan::Scalar(scalar),
            (None, Some(element)) if type_name.contains("multi") => Plan::Multirange(element),
            (None, Some(element)) => Plan::Range(element),
            (None, None) => Plan::Text,
        }
    }

    fn is_text(&self, type_name: &str) -> bool {
        TEXTS.split(' ').any(|name| name == type_name) || (self.json_as_text && scalar(type_name) == Some(Scalar::Json))
    }
}

fn scalar(type_name: &str) -> Option<Scalar> {
    Some(match type_name {
        "bool" => Scalar::Bool,
        "int2" | "int4" | "int8" | "oid" => Scalar::Int,
        "float4" | "float8" => Scalar::Float,
        "bytea" => Scalar::Bytea,
        "numeric" => Scalar::Numeric,
        "date" => Scalar::Date,
        "time" => Scalar::Time,
        "timetz" => Scalar::TimeTz,
        "timestamp" => Scalar::Timestamp,
        "timestamptz" => Scalar::TimestampTz,
        "interval" => Scalar::Interval,
        "uuid" => Scalar::Uuid,
        "json" | "jsonb" => Scalar::Json,
        _ => return None,
    })
}

fn range(type_name: &str) -> Option<Scalar> {
    Some(match type_name {
        "int4range" | "int8range" | "int4multirange" | "int8multirange" => Scalar::Int,
        "numrange" | "nummultirange" => Scalar::Numeric,
        "daterange" | "datemultirange" => Scalar::Date,
        "tsrange" | "tsmultirange" => Scalar::Timestamp,
        "tstzrange" | "tstzmultirange" => Scalar::TimestampTz,
        _ => return None,
    })
}

impl Plan {
    /// A value that came as text.
    pub(crate) fn decode(&self, text: &str, type_name: &Arc<str>) -> Result<Value, String> {
        match self {
            Plan::Text => Ok(Value::Text(text.into())),
            Plan::Scalar(scalar) => scalar.decode(text, type_name),
            Plan::Array(element, delimiter) => array(text, element, *delimiter, type_name),
            Plan::Range(element) => {
                let mut cursor = Cursor { text, at: 0 };
                let range = cursor.range(*element, type_name)?;
                if cursor.at == text.len() { Ok(Value::Range(Box::new(range))) } else { Err(cursor.wrong("range")) }
            }
            Plan::Multirange(element) => multirange(text, *element, type_name),
            Plan::Custom(decoder) => decoder(text),
        }
    }
}

impl Scalar {
    fn decode(self, text: &str, type_name: &Arc<str>) -> Result<Value, String> {
        let special = || Ok(Value::Special { type_name: type_name.clone(), text: text.into() });
        let value = match self {
            Scalar::Bool => Some(Value::Bool(text == "t")),
            Scalar::Int => text.parse().ok().map(Value::Int),
            Scalar::Float => text.parse().ok().map(Value::Float),
            Scalar::Bytea => text.strip_prefix("\\x").and_then(unhex).map(|bytes| Value::Bytes(bytes.into())),
            Scalar::Numeric => Some(Value::Numeric(Numeric(text.into()))),
            Scalar::Uuid => text.parse().ok().map(Value::Uuid),
            Scalar::Json => serde_json::from_str(text).ok().map(Value::Json),
            Scalar::Interval if text.ends_with("infinity") => return special(),
            Scalar::Interval => interval(text).map(Value::Interval),
            // Infinity and BC do not end in a digit; years after 9999 have more digits than four.
            _ if !text.ends_with(|last: char| last.is_ascii_digit()) => return special(),
            Scalar::Date | Scalar::Timestamp | Scalar::TimestampTz if has_long_year(text) => return special(),
            Scalar::Date => date(text).map(Value::Date),
            Scalar::Time | Scalar::TimeTz if text.starts_with("24") => return special(),
            Scalar::Time => time(text).map(Value::Time),
            Scalar::TimeTz => timetz(text),
            Scalar::Timestamp => timestamp(text).map(Value::Timestamp),
            Scalar::TimestampTz => timestamptz(text).map(Value::TimestampTz),
        };
        value.ok_or_else(|| format!("not a value: {text:?}"))
    }
}

fn digits<T: TryFrom<u32>>(text: &str, from: usize, to: usize) -> Option<T> {
    let bytes = text.as_bytes().get(from..to)?;
    let number = bytes
        .iter()
        .try_fold(0u32, |number, byte| byte.is_ascii_digit().then(|| number * 10 + u32::from(byte - b'0')))?;
    T::try_from(number).ok()
}

/// Whether the year has more than four digits.
fn has_long_year(text: &str) -> bool {
    text.split('-').next().is_some_and(|year| year.len() > 4 && year.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `YYYY-MM-DD`.
fn date(text: &str) -> Option<civil::Date> {
    civil::Date::new(digits(text, 0, 4)?, digits(text, 5, 7)?, digits(text, 8, 10)?).ok()
}

/// `HH:MM:SS[.ffffff]`.
fn time(text: &str) -> Option<civil::Time> {
    let nanoseconds: i32 = match text.len() {
        8 => 0,
        longer @ 10..=15 => digits::<i32>(text, 9, longer)? * 10i32.pow(18 - longer as u32),
        _ => return None,
    };
    civil::Time::new(digits(text, 0, 2)?, digits(text, 3, 5)?, digits(text, 6, 8)?, nanoseconds).ok()
}

/// Splits off `+HH[:MM[:SS]]`, in seconds.
fn offset(text: &str) -> Option<(&str, i32)> {
    let (clock, offset) = text.split_at(text.rfind(['+', '-'])?);
    let part = |at: usize| if offset.len() > at { digits::<i32>(offset, at + 1, at + 3) } else { Some(0) };
    let seconds = part(0)? * 3600 + part(3)? * 60 + part(6)?;
    Some((clock, if offset.starts_with('-') { -seconds } else { seconds }))
}

fn timetz(text: &str) -> Option<Value> {
    let (clock, offset_seconds) = offset(text)?;
    Some(Value::TimeTz(TimeTz { time: time(clock)?, offset_seconds }))
}

fn timestamp(text: &str) -> Option<civil::DateTime> {
    let clock = time(text.get(11..)?)?;
    Some(civil::DateTime::from_parts(date(text.get(..10)?)?, clock))
}

fn timestamptz(text: &str) -> Option<civil::DateTime> {
    let (stamp, seconds) = offset(text)?;
    let local = timestamp(stamp)?;
    if seconds == 0 { Some(local) } else { local.checked_sub(SignedDuration::from_secs(seconds.into())).ok() }
}

/// `-1 years -2 mons +3 days -04:05:06.7`.
fn interval(text: &str) -> Option<Interval> {
    let mut interval = Interval::default();
    let mut words = text.split(' ');
    while let Some(word) = words.next() {
        if word.contains(':') {
            interval.microseconds = clock(word)?;
            continue;
        }
        let amount: i64 = word.parse().ok()?;
        match words.next()?.trim_end_matches('s') {
            "year" => interval.months += 12 * amount,
            "mon" => interval.months += amount,
            "day" => interval.days += amount,
            _ => return None,
        }
    }
    Some(interval)
}

fn clock(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let parts: Vec<i64> =
        seconds.trim_start_matches(['-', '+']).split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [hours, minutes, seconds] = parts[..] else { return None };
    let fraction: i64 = format!("{fraction:0<6}").parse().ok()?;
    let microseconds = ((hours * 60 + minutes) * 60 + seconds).checked_mul(1_000_000)? + fraction;
    Some(if text.starts_with('-') { -microseconds } else { microseconds })
}

fn array(text: &str, element: &Plan, delimiter: char, type_name: &Arc<str>) -> Result<Value, String> {
    let at = if text.starts_with('[') { text.find('=').map_or(0, |at| at + 1) } else { 0 };
    let mut cursor = Cursor { text, at };
    let element_type: Arc<str> = type_name.strip_prefix('_').unwrap_or(type_name).into();
    let value = cursor.array(element, delimiter, &element_type, 0)?;
    if cursor.at == text.len() { Ok(value) } else { Err(cursor.wrong("array")) }
}

fn multirange(text: &str, element: Scalar, type_name: &Arc<str>) -> Result<Value, String> {
    let mut cursor = Cursor { text, at: 1 };
    let mut ranges = Vec::new();
    while cursor.peek() != Some('}') {
        if cursor.peek() == Some(',') {
            cursor.at += 1;
        }
        ranges.push(cursor.range(element, type_name)?);
    }
    Ok(Value::Multirange(ranges))
}

/// PostgreSQL has at most six dimensions.
const MAX_DIMENSIONS: usize = 6;

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl Cursor<'_> {
    fn wrong(&self, what: &str) -> String {
        format!("not a {what}: {:?}", self.text)
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at..)?.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn array(&mut self, element: &Plan, delimiter: char, type_name: &Arc<str>, depth: usize) -> Result<Value, String> {
        if self.next() != Some('{') || depth == MAX_DIMENSIONS {
            return Err(self.wrong("array"));
        }
        let mut values = Vec::new();
        if self.peek() == Some('}') {
            self.at += 1;
            return Ok(Value::Array(values));
        }
        loop {
            values.push(match self.peek() {
                Some('{') => self.array(element, delimiter, type_name, depth + 1)?,
                Some('"') => element.decode(&self.quoted()?, type_name)?,
                _ => {
                    let rest = &self.text[self.at..];
                    let end = rest.find([delimiter, '}']).ok_or_else(|| self.wrong("array"))?;
                    self.at += end;
                    if &rest[..end] == "NULL" { Value::Null } else { element.decode(&rest[..end], type_name)? }
                }
            });
            match self.next() {
                Some('}') => return Ok(Value::Array(values)),
                Some(mark) if mark == delimiter => {}
                _ => return Err(self.wrong("array")),
            }
        }
    }

    fn quoted(&mut self) -> Result<String, String> {
        let mut out = String::new();
        self.at += 1;
        loop {
            match self.next() {
                Some('"') => return Ok(out),
                Some('\\') => out.push(self.next().ok_or_else(|| self.wrong("array"))?),
                Some(other) => out.push(other),
                None => return Err(self.wrong("array")),
            }
        }
    }

    fn range(&mut self, element: Scalar, type_name: &Arc<str>) -> Result<Range, String> {
        if self.text.get(self.at..).is_some_and(|rest| rest.starts_with("empty")) {
            self.at += 5;
            return Ok(Range { lower: None, upper: None, lower_inclusive: false, upper_inclusive: false, empty: true });
        }
        let open = self.next();
        let (lower, comma) = self.bound(element, &[','], type_name)?;
        let (upper, close) = self.bound(element, &[']', ')'], type_name)?;
        if !matches!(open, Some('[' | '(')) || comma != ',' {
            return Err(self.wrong("range"));
        }
        Ok(Range { lower, upper, lower_inclusive: open == Some('['), upper_inclusive: close == ']', empty: false })
    }

    /// A bound and what ended it. Unbounded is `None`. A quote is doubled or escaped inside of quotes.
    fn bound(&mut self, element: Scalar, ends: &[char], type_name: &Arc<str>) -> Result<(Option<Value>, char), String> {
        let (mut out, mut present, mut quoted) = (String::new(), false, false);
        loop {
            let next = self.next().ok_or_else(|| self.wrong("range"))?;
            match next {
                end if !quoted && ends.contains(&end) => {
                    let value = if present { Some(element.decode(&out, type_name)?) } else { None };
                    return Ok((value, end));
                }
                '"' if quoted && self.peek() == Some('"') => {
                    self.at += 1;
                    out.push('"');
                }
                '"' => quoted = !quoted,
                '\\' => out.push(self.next().ok_or_else(|| self.wrong("range"))?),
                other => out.push(other),
            }
            present = true;
        }
    }
}

//! Literals get their meaning from the column beside them, as PostgreSQL's untyped literals do.

use super::{
    CheckError,
    ast::{Literal, Op, Spelling},
    class::{Class, Constant, base_name, trim},
    decimal::{self, Decimal},
    temporal,
};
use crate::model::Column;

/// A literal beside a column.
#[derive(Clone, Debug)]
pub(super) enum Typed {
    Null,
    Constant(Constant),
    /// A number that no value of an integer column equals: the greatest integer below it, which may lie outside of
    /// `i64`.
    Between(i128),
}

/// A comparison with a number that is not in the column's type, as one that is.
pub(super) enum Reduced {
    Compare(Op, i64),
    /// The same for every value that is not null.
    Always(bool),
}

/// `column op x` for integers, where `floor < x < floor + 1` or `x` lies outside of `i64`.
pub(super) fn reduce(op: Op, floor: i128) -> Reduced {
    if op.is_equality() {
        return Reduced::Always(op == Op::NOT_EQUAL);
    }
    let less = op == Op::LESS || op == Op::LESS_EQUAL;
    match i64::try_from(floor) {
        Ok(floor) => Reduced::Compare(if less { Op::LESS_EQUAL } else { Op::GREATER }, floor),
        Err(_) => Reduced::Always(less == (floor > 0)),
    }
}

/// Gives `literal` the type of `column`.
pub(super) fn typed(literal: &Literal, column: &Column, class: Class) -> Result<Typed, CheckError> {
    check_cast(literal, column, class)?;
    let refuse = |expected: &str| {
        let message =
            format!("column {:?} is {}: expected {expected}, but found {literal}", column.name, column.type_name);
        Err(CheckError::new(message, literal.offset))
    };
    let text = match &literal.spelling {
        Spelling::Null => return Ok(Typed::Null),
        Spelling::Bool(truth) if class == Class::Bool => return Ok(Typed::Constant(Constant::Bool(*truth))),
        Spelling::Bool(_) => return refuse(expected(class)),
        Spelling::Number(digits) => return number(digits, class).map_or_else(|| refuse(expected(class)), Ok),
        Spelling::Text(text) => text.as_str(),
    };
    let constant = match class {
        Class::Text => Some(Constant::Text(cut(text, column).as_bytes().into())),
        Class::Other => Some(Constant::Text(text.as_bytes().into())),
        Class::Padded => Some(Constant::Padded(trim(text.as_bytes()).into())),
        _ => quoted(text.trim_matches(|c: char| c.is_ascii_whitespace()), class),
    };
    constant.map_or_else(|| refuse(expected(class)), |constant| Ok(Typed::Constant(constant)))
}

/// An unquoted number.
fn number(digits: &str, class: Class) -> Option<Typed> {
    match class {
        Class::Numeric | Class::Float4 | Class::Float8 => quoted(digits, class).map(Typed::Constant),
        _ => {
            class.int_range()?;
            let (floor, exact) = Decimal::read(digits.as_bytes())?.floor()?;
            match i64::try_from(floor) {
                Ok(int) if exact => Some(Typed::Constant(Constant::Int(int))),
                _ => Some(Typed::Between(floor)),
            }
        }
    }
}

/// A quoted literal without the spaces around it.
fn quoted(text: &str, class: Class) -> Option<Constant> {
    if let Some((low, high)) = class.int_range() {
        return text.parse().ok().filter(|int| (low..=high).contains(int)).map(Constant::Int);
    }
    match class {
        Class::Bool => boolean(text).map(Constant::Bool),
        Class::Float4 => float(text, |text| text.parse::<f32>().ok().map(f64::from)),
        Class::Float8 => float(text, |text| text.parse().ok()),
        Class::Numeric => decimal::Owned::read(text).map(Constant::Decimal),
        Class::Uuid => uuid(text).map(|text| Constant::Text(text.into_bytes().into())),
        Class::Bytes => bytea(text).map(|bytes| Constant::Bytes(bytes.into())),
        Class::Hex => bytea(text).map(|_| Constant::Text(text.to_ascii_lowercase().into_bytes().into())),
        Class::Date => temporal::date(text.as_bytes()).map(Constant::Instant),
        Class::Time => temporal::time(text.as_bytes()).map(Constant::Instant),
        Class::TimeTz => temporal::timetz(text.as_bytes()).map(Constant::Instant),
        Class::Timestamp => temporal::timestamp(text.as_bytes()).map(Constant::Instant),
        Class::TimestampTz => temporal::timestamptz(text.as_bytes()).map(Constant::Instant),
        Class::Interval => temporal::interval(text.as_bytes()).map(Constant::Span),
        _ => None,
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "t" | "true" | "y" | "yes" | "on" | "1" => Some(true),
        "f" | "false" | "n" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// What overflows to infinity or underflows to zero is refused, as PostgreSQL does.
fn float(text: &str, parse: impl Fn(&str) -> Option<f64>) -> Option<Constant> {
    let number = Decimal::read(text.as_bytes())?;
    let value = parse(text)?;
    let finite = number.floor().is_some() && !text.to_ascii_lowercase().contains("inf");
    let vanished = value == 0.0 && text.split(['e', 'E']).next()?.bytes().any(|byte| matches!(byte, b'1'..=b'9'));
    (finite == value.is_finite() && !vanished).then_some(Constant::Float(value))
}

/// In PostgreSQL's output form; braces, capitals and missing hyphens are accepted.
fn uuid(text: &str) -> Option<String> {
    let text = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
    let digits: String = text.chars().filter(|c| *c != '-').map(|c| c.to_ascii_lowercase()).collect();
    if digits.len() != 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    Some([&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-"))
}

fn bytea(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix(r"\x")?.as_bytes();
    let nibble = |digit: u8| char::from(digit).to_digit(16);
    match digits.len() % 2 {
        0 => digits.chunks(2).map(|pair| Some((nibble(pair[0])? << 4 | nibble(pair[1])?) as u8)).collect(),
        _ => None,
    }
}

fn expected(class: Class) -> &'static str {
    match class {
        Class::Bool => "true or false",
        Class::Int2 | Class::Int4 | Class::Int8 | Class::Oid => "a number in its range",
        Class::Float4 | Class::Float8 => "a number in its range, 'NaN' or 'Infinity'",
        Class::Numeric => "a number, 'NaN' or 'Infinity'",
        Class::Text | Class::Padded => "a text in quotes",
        Class::Uuid => "a uuid in quotes",
        Class::Bytes | Class::Hex => r"bytes such as '\x00ff'",
        Class::Date => "a date such as '2026-01-31'",
        Class::Time => "a time such as '23:59:59.5'",
        Class::TimeTz => "a time such as '23:59:59+00'",
        Class::Timestamp => "a timestamp without zone such as '2026-01-31 23:59:59.5'",
        Class::TimestampTz => "a timestamp such as '2026-01-31 23:59:59.5+00'",
        Class::Interval => "an interval such as '1 day 02:00:00'",
        Class::Other => "a text in quotes, in the form PostgreSQL prints",
    }
}

/// A cast may only say what the column's type says anyway.
fn check_cast(literal: &Literal, column: &Column, class: Class) -> Result<(), CheckError> {
    let Some(cast) = literal.cast.as_deref() else { return Ok(()) };
    let fits = match cast {
        "int2" | "smallint" | "int4" | "int" | "integer" | "int8" | "bigint" => {
            class.int_range().is_some() && !rounds(&literal.spelling)
        }
        "float4" | "real" => class == Class::Float4,
        "float8" | "float" => class == Class::Float8,
        "numeric" | "decimal" => class == Class::Numeric,
        "bool" | "boolean" => class == Class::Bool,
        // Beside these `char(n)` is text without the spaces at its end.
        "text" | "varchar" => class == Class::Text || class == Class::Padded && !ends_with_space(&literal.spelling),
        "bpchar" | "oid" | "name" | "time" | "timetz" | "timestamp" | "timestamptz" | "date" | "interval" | "uuid"
        | "bytea" => base_name(column) == cast,
        other => column.type_name == other || column.type_name.split_once('.').is_some_and(|(_, name)| name == other),
    };
    if fits {
        return Ok(());
    }
    let message =
        format!("column {:?} is {} and does not compare with a literal of type {cast}", column.name, column.type_name);
    Err(CheckError::new(message, literal.offset))
}

/// Whether it is another number as an integer.
fn rounds(spelling: &Spelling) -> bool {
    let exact = |digits: &String| Some(Decimal::read(digits.as_bytes())?.floor()?.1);
    matches!(spelling, Spelling::Number(digits) if exact(digits) != Some(true))
}

fn ends_with_space(spelling: &Spelling) -> bool {
    matches!(spelling, Spelling::Text(text) if text.ends_with(' '))
}

/// What the types of fixed size make of a longer text: `name` has
/// [63 bytes](https://www.postgresql.org/docs/current/datatype-character.html), `"char"` one.
fn cut<'t>(text: &'t str, column: &Column) -> &'t str {
    let bytes = match base_name(column) {
        "name" => 63,
        "char" if text.starts_with(|c: char| c.is_ascii()) => 1,
        _ => return text,
    };
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

//! One column's value in compact form: `Row.values`, a `Value` with its oneof.
//!
//! What a value becomes is decided by its type's OID alone, never by its content, so a client can rely on the kind.
//! Only the types that `walcast.v1.Value` names have a kind of their own. **A domain has an OID of its own** and so is
//! text, whatever it is over; enums, arrays and composites likewise. All of these OIDs are fixed in
//! [pg_type.dat](https://github.com/postgres/postgres/blob/master/src/include/catalog/pg_type.dat).

use bytes::BytesMut;

use super::{
    field::{Head, LEN, VARINT, delimited_len, key, zigzag},
    pb::Missing,
};
use crate::model::Datum;

/// `Row.values`.
pub(super) const VALUES: u8 = key(1, LEN);
pub(super) const MISSING: u8 = key(1, VARINT);
pub(super) const BOOL: u8 = key(2, VARINT);
pub(super) const INT: u8 = key(3, VARINT);
pub(super) const FLOAT: u8 = key(4, super::field::FIXED64);
pub(super) const BYTES: u8 = key(5, LEN);
pub(super) const TEXT: u8 = key(6, LEN);
pub(super) const RAW_TEXT: u8 = key(7, LEN);

/// `pg_type.oid` of the types that need special care somewhere.
pub(super) mod oid {
    pub const BOOL: u32 = 16;
    pub const BYTEA: u32 = 17;
    pub const CHAR: u32 = 18;
    pub const NAME: u32 = 19;
    pub const INT8: u32 = 20;
    pub const INT2: u32 = 21;
    pub const INT4: u32 = 23;
    pub const TEXT: u32 = 25;
    pub const OID: u32 = 26;
    pub const JSON: u32 = 114;
    pub const XML: u32 = 142;
    pub const FLOAT4: u32 = 700;
    pub const FLOAT8: u32 = 701;
    pub const UNKNOWN: u32 = 705;
    pub const BPCHAR: u32 = 1042;
    pub const VARCHAR: u32 = 1043;
    pub const CSTRING: u32 = 2275;
    pub const JSONB: u32 = 3802;
}

/// Appends the value of a column of type `type_oid`. After an error `out` holds a part of it.
#[inline]
pub(super) fn put(out: &mut BytesMut, type_oid: u32, datum: Datum<'_>) -> Result<(), String> {
    match datum {
        Datum::Null => put_missing(out, Missing::Null),
        Datum::Unchanged => put_missing(out, Missing::Unchanged),
        Datum::Text(text) => return put_from_text(out, type_oid, text),
        Datum::Binary(binary) => return put_from_binary(out, type_oid, binary),
    }
    Ok(())
}

#[inline]
pub(super) fn put_missing(out: &mut BytesMut, missing: Missing) {
    out.extend_from_slice(&[VALUES, 2, MISSING, missing as u8]);
}

#[inline]
fn put_from_text(out: &mut BytesMut, type_oid: u32, text: &[u8]) -> Result<(), String> {
    match type_oid {
        oid::BOOL => match text {
            b"t" => put_bool(out, true),
            b"f" => put_bool(out, false),
            _ => return Err(unfit(text, "bool")),
        },
        oid::INT4 => {
            put_int(out, parse_int(text, i32::MIN.into(), i32::MAX.into()).ok_or_else(|| unfit(text, "int4"))?)
        }
        oid::INT8 => put_int(out, parse_int(text, i64::MIN, i64::MAX).ok_or_else(|| unfit(text, "int8"))?),
        oid::INT2 => {
            put_int(out, parse_int(text, i16::MIN.into(), i16::MAX.into()).ok_or_else(|| unfit(text, "int2"))?)
        }
        oid::OID => put_int(out, parse_int(text, 0, u32::MAX.into()).ok_or_else(|| unfit(text, "oid"))?),
        oid::FLOAT8 => put_float(out, parse_float8(text).ok_or_else(|| unfit(text, "float8"))?),
        oid::FLOAT4 => put_float(out, parse_float4(text).ok_or_else(|| unfit(text, "float4"))?),
        oid::BYTEA => return put_bytea(out, text).ok_or_else(|| unfit(text, "bytea")),
        _ => put_text(out, text),
    }
    Ok(())
}

#[cold]
fn put_from_binary(out: &mut BytesMut, type_oid: u32, binary: &[u8]) -> Result<(), String> {
    let unfit = |name: &str| format!("{} bytes are not a binary {name}", binary.len());
    match type_oid {
        oid::BOOL => match binary {
            [0] => put_bool(out, false),
            [1] => put_bool(out, true),
            _ => return Err(unfit("bool")),
        },
        oid::INT2 => {
            put_int(out, i16::from_be_bytes(binary.try_into().map_err(|_| unfit("int2"))?).into());
        }
        oid::INT4 => {
            put_int(out, i32::from_be_bytes(binary.try_into().map_err(|_| unfit("int4"))?).into());
        }
        oid::INT8 => put_int(out, i64::from_be_bytes(binary.try_into().map_err(|_| unfit("int8"))?)),
        oid::OID => put_int(out, u32::from_be_bytes(binary.try_into().map_err(|_| unfit("oid"))?).into()),
        oid::FLOAT4 => {
            put_float(out, f32::from_be_bytes(binary.try_into().map_err(|_| unfit("float4"))?).into());
        }
        oid::FLOAT8 => put_float(out, f64::from_be_bytes(binary.try_into().map_err(|_| unfit("float8"))?)),
        oid::BYTEA => put_delimited(out, BYTES, binary),
        oid::CHAR => match binary {
            [0] => put_text(out, b""),
            [byte] if byte.is_ascii() => put_text(out, binary),
            [byte] => put_text(out, format!("\\{byte:03o}").as_bytes()),
            _ => return Err(unfit("\"char\"")),
        },
        oid::JSONB => match binary {
            [1, json @ ..] => put_text(out, json),
            _ => return Err("not version 1 of binary jsonb".to_owned()),
        },
        oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::JSON | oid::XML | oid::UNKNOWN | oid::CSTRING => {
            put_text(out, binary)
        }
        _ => return Err(format!("the binary form of type {type_oid} has no conversion; ask for text")),
    }
    Ok(())
}

#[cold]
fn unfit(text: &[u8], name: &str) -> String {
    let shown = String::from_utf8_lossy(&text[..text.len().min(64)]);
    format!("{shown:?} is not {name}")
}

#[inline]
pub(super) fn put_bool(out: &mut BytesMut, value: bool) {
    out.extend_from_slice(&[VALUES, 2, BOOL, u8::from(value)]);
}

#[inline]
pub(super) fn put_int(out: &mut BytesMut, value: i64) {
    let mut head = Head::<16>::new();
    let value = zigzag(value);
    head.byte(VALUES);
    head.byte(1 + super::field::varint_len(value) as u8);
    head.byte(INT);
    head.varint(value);
    head.append_to(out);
}

#[inline]
pub(super) fn put_float(out: &mut BytesMut, value: f64) {
    let mut bytes = [VALUES, 9, FLOAT, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes[3..].copy_from_slice(&value.to_le_bytes());
    out.extend_from_slice(&bytes);
}

#[inline]
pub(super) fn put_text(out: &mut BytesMut, text: &[u8]) {
    let kind = if std::str::from_utf8(text).is_ok() { TEXT } else { RAW_TEXT };
    put_delimited(out, kind, text);
}

#[inline]
fn put_delimited(out: &mut BytesMut, kind: u8, content: &[u8]) {
    put_delimited_head(out, kind, content.len());
    out.extend_from_slice(content);
}

#[inline]
fn put_delimited_head(out: &mut BytesMut, kind: u8, len: usize) {
    if len < 0x7e {
        return out.extend_from_slice(&[VALUES, len as u8 + 2, kind, len as u8]);
    }
    let mut head = Head::<24>::new();
    head.byte(VALUES);
    head.varint(delimited_len(len) as u64);
    head.byte(kind);
    head.varint(len as u64);
    head.append_to(out);
}

/// Digits with an optional minus, as `int8out` prints them, inside `min..=max`.
#[inline]
fn parse_int(text: &[u8], min: i64, max: i64) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    let mut magnitude = 0u64; // 19 digits fit
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        magnitude = magnitude * 10 + u64::from(digit);
    }
    let value = if negative { 0i64.checked_sub_unsigned(magnitude)? } else { i64::try_from(magnitude).ok()? };
    (min..=max).contains(&value).then_some(value)
}

fn parse_float8(text: &[u8]) -> Option<f64> {
    match text {
        b"NaN" => Some(f64::NAN),
        b"Infinity" => Some(f64::INFINITY),
        b"-Infinity" => Some(f64::NEG_INFINITY),
        _ => decimal(text)?.parse().ok().filter(|value: &f64| value.is_finite()),
    }
}

/// Through `f32`, since that is what the shortest text of a float4 names; then widened, which is exact.
fn parse_float4(text: &[u8]) -> Option<f64> {
    match text {
        b"NaN" | b"Infinity" | b"-Infinity" => parse_float8(text),
        _ => decimal(text)?.parse().ok().filter(|value: &f32| value.is_finite()).map(f64::from),
    }
}

/// The text if it begins like a number: Rust's parser also knows names, which PostgreSQL spells otherwise.
fn decimal(text: &[u8]) -> Option<&str> {
    let begins = matches!(text, [b'0'..=b'9', ..] | [b'-', b'0'..=b'9', ..]);
    if begins { std::str::from_utf8(text).ok() } else { None }
}

/// `\x` and hexadecimal digits; or the older escape form, which pinned settings never send but which cannot be
/// mistaken for it (there a backslash is followed by another or by three octal digits).
fn put_bytea(out: &mut BytesMut, text: &[u8]) -> Option<()> {
    let Some(hex) = text.strip_prefix(b"\\x") else { return put_escaped_bytea(out, text) };
    let (pairs, []) = hex.as_chunks::<2>() else { return None };
    put_delimited_head(out, BYTES, pairs.len());
    let start = out.len();
    out.resize(start + pairs.len(), 0);
    let mut bad = 0;
    for (byte, [high, low]) in out[start..].iter_mut().zip(pairs) {
        let (high, low) = (NIBBLES[usize::from(*high)], NIBBLES[usize::from(*low)]);
        bad |= high | low;
        *byte = high << 4 | low & 0x0f;
    }
    (bad & 0xf0 == 0).then_some(())
}

/// The value of each hexadecimal digit, 0xff for every other byte.
const NIBBLES: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut digit = 0;
    while digit < 16 {
        table[b"0123456789abcdef"[digit] as usize] = digit as u8;
        table[b"0123456789ABCDEF"[digit] as usize] = digit as u8;
        digit += 1;
    }
    table
};

#[cold]
fn put_escaped_bytea(out: &mut BytesMut, text: &[u8]) -> Option<()> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    loop {
        rest = match rest {
            [] => break,
            [b'\\', b'\\', rest @ ..] => {
                decoded.push(b'\\');
                rest
            }
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', rest @ ..] => {
                decoded.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest
            }
            [b'\\', ..] => return None,
            [byte, rest @ ..] => {
                decoded.push(*byte);
                rest
            }
        };
    }
    put_delimited(out, BYTES, &decoded);
    Some(())
}

//! Protobuf fields by hand: the few shapes that the hot path writes
//! ([encoding](https://protobuf.dev/programming-guides/encoding/)). Lengths are canonical varints.

use bytes::BytesMut;

/// Wire types.
pub(super) const VARINT: u8 = 0;
pub(super) const FIXED64: u8 = 1;
pub(super) const LEN: u8 = 2;
pub(super) const FIXED32: u8 = 5;

/// The one-byte key of field `number` (1 to 15).
pub(super) const fn key(number: u8, wire_type: u8) -> u8 {
    number << 3 | wire_type
}

/// Bytes that `value` takes as a varint.
#[inline]
pub(super) const fn varint_len(value: u64) -> usize {
    ((70 - (value | 1).leading_zeros()) / 7) as usize
}

/// Bytes of a length-delimited field with `len` bytes of content and a one-byte key.
#[inline]
pub(super) const fn delimited_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

/// Bytes of a varint field, which proto3 leaves out when it is 0.
#[inline]
pub(super) const fn scalar_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value) }
}

#[inline]
pub(super) const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[inline]
pub(super) const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// A short run of fields on the stack: enough for every header of a change, and for a small value.
pub(super) struct Head<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Head<N> {
    #[inline]
    pub(super) const fn new() -> Self {
        Head { bytes: [0; N], len: 0 }
    }

    #[inline]
    pub(super) fn byte(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    #[inline]
    pub(super) fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.byte(value as u8);
    }

    /// The key and length of a length-delimited field.
    #[inline]
    pub(super) fn delimited(&mut self, number: u8, len: usize) {
        self.byte(key(number, LEN));
        self.varint(len as u64);
    }

    /// A varint field; nothing when it is 0.
    #[inline]
    pub(super) fn scalar(&mut self, number: u8, value: u64) {
        if value != 0 {
            self.byte(key(number, VARINT));
            self.varint(value);
        }
    }

    #[inline]
    pub(super) fn slice(&mut self, bytes: &[u8]) {
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    #[inline]
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Appends to `out`. Copies all N bytes, which is one store for a small N, and drops what is too much.
    #[inline]
    pub(super) fn append_to(&self, out: &mut BytesMut) {
        let end = out.len() + self.len;
        out.extend_from_slice(&self.bytes);
        out.truncate(end);
    }
}

/// Reads a varint of at most 10 bytes; `None` when it does not end or does not fit.
#[inline]
pub(super) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (place, byte) in bytes.iter().take(10).enumerate() {
        if place == 9 && *byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * place);
        if *byte < 0x80 {
            *bytes = &bytes[place + 1..];
            return Some(value);
        }
    }
    None
}

/// Reads a length and that many bytes.
#[inline]
pub(super) fn take_delimited<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(take_varint(bytes)?).ok()?;
    let (content, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(content)
}

/// Reads past one field whose key has been read.
pub(super) fn skip(bytes: &mut &[u8], wire_type: u8) -> Option<()> {
    match wire_type {
        VARINT => take_varint(bytes).map(drop),
        LEN => take_delimited(bytes).map(drop),
        FIXED64 => bytes.split_at_checked(8).map(|(_, rest)| *bytes = rest),
        FIXED32 => bytes.split_at_checked(4).map(|(_, rest)| *bytes = rest),
        _ => None,
    }
}

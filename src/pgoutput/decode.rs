//! Messages. One reader walks the bytes once; what comes in numbers (columns, tuples, OIDs) is walked for validation
//! and handed out as an iterator over the same bytes.

use std::borrow::Cow;

use super::{ColumnMessage, Error, ErrorKind, Message, RelationMessage, Tuple, tuple};
use crate::{
    lsn::Lsn,
    model::{OldImage, ReplicaIdentity},
};

const COLUMN_IN_IDENTITY: u8 = 1;
const TRUNCATE_CASCADE: u8 = 1;
const TRUNCATE_RESTART_IDENTITY: u8 = 2;
const MESSAGE_TRANSACTIONAL: u8 = 1;

/// Decodes one message: the payload of one XLogData frame, exactly.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, Error> {
    let mut reader = Reader { bytes, at: 0 };
    let message = match reader.u8()? {
        b'B' => Message::Begin { final_lsn: reader.lsn()?, commit_time: reader.u64()? as i64, xid: reader.u32()? },
        b'C' => Message::Commit {
            flags: reader.u8()?,
            commit_lsn: reader.lsn()?,
            end_lsn: reader.lsn()?,
            commit_time: reader.u64()? as i64,
        },
        b'O' => Message::Origin { lsn: reader.lsn()?, name: reader.name()? },
        b'R' => Message::Relation(relation(&mut reader)?),
        b'Y' => Message::Type { oid: reader.u32()?, namespace: reader.namespace()?, name: reader.name()? },
        b'I' => Message::Insert { oid: reader.u32()?, new: new_tuple(&mut reader)? },
        b'U' => update(&mut reader)?,
        b'D' => delete(&mut reader)?,
        b'T' => truncate(&mut reader)?,
        b'M' => logical_message(&mut reader)?,
        tag => return Err(Error { offset: 0, kind: ErrorKind::UnknownMessage(tag) }),
    };
    match bytes.len() - reader.at {
        0 => Ok(message),
        trailing => Err(reader.error(ErrorKind::Trailing(trailing))),
    }
}

fn relation<'a>(reader: &mut Reader<'a>) -> Result<RelationMessage<'a>, Error> {
    let oid = reader.u32()?;
    let namespace = reader.namespace()?;
    let name = reader.name()?;
    let replica_identity = match reader.u8()? {
        b'd' => ReplicaIdentity::Default,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        b'n' => ReplicaIdentity::Nothing,
        other => return Err(reader.error_before(1, ErrorKind::UnknownReplicaIdentity(other))),
    };
    let left = reader.count()?;
    let start = reader.at;
    for _ in 0..left {
        column(reader)?;
    }
    let columns = Columns { bytes: &reader.bytes[start..reader.at], left };
    Ok(RelationMessage { oid, namespace, name, replica_identity, columns })
}

fn column<'a>(reader: &mut Reader<'a>) -> Result<ColumnMessage<'a>, Error> {
    let flags = reader.u8()?;
    if flags & !COLUMN_IN_IDENTITY != 0 {
        return Err(reader.error_before(1, ErrorKind::UnknownFlags(flags)));
    }
    Ok(ColumnMessage {
        in_identity: flags & COLUMN_IN_IDENTITY != 0,
        name: reader.name()?,
        type_oid: reader.u32()?,
        modifier: reader.u32()? as i32,
    })
}

fn new_tuple<'a>(reader: &mut Reader<'a>) -> Result<Tuple<'a>, Error> {
    match reader.u8()? {
        b'N' => tuple::read(reader),
        other => Err(reader.error_before(1, ErrorKind::UnexpectedTuple(other))),
    }
}

fn update<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, Error> {
    let oid = reader.u32()?;
    let old_image = match reader.u8()? {
        b'N' => return Ok(Message::Update { oid, old: None, new: tuple::read(reader)? }),
        b'K' => OldImage::Key,
        b'O' => OldImage::Full,
        other => return Err(reader.error_before(1, ErrorKind::UnexpectedTuple(other))),
    };
    let old = tuple::read(reader)?;
    Ok(Message::Update { oid, old: Some((old_image, old)), new: new_tuple(reader)? })
}

fn delete<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, Error> {
    let oid = reader.u32()?;
    let old_image = match reader.u8()? {
        b'K' => OldImage::Key,
        b'O' => OldImage::Full,
        other => return Err(reader.error_before(1, ErrorKind::UnexpectedTuple(other))),
    };
    Ok(Message::Delete { oid, old_image, old: tuple::read(reader)? })
}

fn truncate<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, Error> {
    let count = reader.length()?;
    let flags = reader.u8()?;
    if flags & !(TRUNCATE_CASCADE | TRUNCATE_RESTART_IDENTITY) != 0 {
        return Err(reader.error_before(1, ErrorKind::UnknownFlags(flags)));
    }
    Ok(Message::Truncate {
        oids: Oids { bytes: reader.take(count.saturating_mul(4))? },
        cascade: flags & TRUNCATE_CASCADE != 0,
        restart_identity: flags & TRUNCATE_RESTART_IDENTITY != 0,
    })
}

fn logical_message<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, Error> {
    let flags = reader.u8()?;
    if flags & !MESSAGE_TRANSACTIONAL != 0 {
        return Err(reader.error_before(1, ErrorKind::UnknownFlags(flags)));
    }
    let lsn = reader.lsn()?;
    let prefix = reader.name()?;
    let length = reader.length()?;
    Ok(Message::Message {
        transactional: flags & MESSAGE_TRANSACTIONAL != 0,
        lsn,
        prefix,
        content: reader.take(length)?,
    })
}

/// The columns of a [`RelationMessage`].
#[derive(Clone, Debug, PartialEq)]
pub struct Columns<'a> {
    bytes: &'a [u8],
    left: u16,
}

impl<'a> Iterator for Columns<'a> {
    type Item = ColumnMessage<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let mut reader = Reader { bytes: self.bytes, at: 0 };
        let column = column(&mut reader).ok()?;
        self.bytes = &self.bytes[reader.at..];
        Some(column)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Columns<'_> {}

/// The tables of a [`Message::Truncate`], as `pg_class.oid`.
#[derive(Clone, Debug, PartialEq)]
pub struct Oids<'a> {
    bytes: &'a [u8],
}

impl Iterator for Oids<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (oid, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(u32::from_be_bytes(*oid))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.bytes.len() / 4, Some(self.bytes.len() / 4))
    }
}

impl ExactSizeIterator for Oids<'_> {}

/// A place in a message.
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn error(&self, kind: ErrorKind) -> Error {
        Error { offset: self.at, kind }
    }

    /// An error about the field of `len` bytes that was just read.
    pub(super) fn error_before(&self, len: usize, kind: ErrorKind) -> Error {
        Error { offset: self.at - len, kind }
    }

    #[inline]
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let rest = &self.bytes[self.at..];
        let Some((taken, _)) = rest.split_at_checked(len) else {
            return Err(self.error(ErrorKind::Truncated { missing: len - rest.len() }));
        };
        self.at += len;
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Result<u8, Error> {
        self.array::<1>().map(|[byte]| byte)
    }

    #[inline]
    fn u32(&mut self) -> Result<u32, Error> {
        self.array().map(u32::from_be_bytes)
    }

    #[inline]
    fn u64(&mut self) -> Result<u64, Error> {
        self.array().map(u64::from_be_bytes)
    }

    fn lsn(&mut self) -> Result<Lsn, Error> {
        self.u64().map(Lsn)
    }

    /// A length in bytes or a count: an Int32 that is not negative.
    #[inline]
    pub(super) fn length(&mut self) -> Result<usize, Error> {
        let length = self.u32()? as i32;
        usize::try_from(length).map_err(|_| self.error_before(4, ErrorKind::NegativeLength(length)))
    }

    /// A number of columns: an Int16 that is not negative.
    #[inline]
    pub(super) fn count(&mut self) -> Result<u16, Error> {
        let count = i16::from_be_bytes(self.array()?);
        u16::try_from(count).map_err(|_| self.error_before(2, ErrorKind::NegativeLength(count.into())))
    }

    fn name(&mut self) -> Result<Cow<'a, str>, Error> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().position(|byte| *byte == 0) else {
            return Err(self.error(ErrorKind::UnterminatedString));
        };
        self.at += end + 1;
        Ok(printable(&rest[..end]))
    }

    fn namespace(&mut self) -> Result<Cow<'a, str>, Error> {
        self.name().map(|name| if name.is_empty() { Cow::Borrowed("pg_catalog") } else { name })
    }
}

/// The name itself where it is UTF-8; otherwise with `\xHH` for each byte that is not.
fn printable(name: &[u8]) -> Cow<'_, str> {
    if let Ok(name) = std::str::from_utf8(name) {
        return Cow::Borrowed(name);
    }
    let mut text = String::with_capacity(name.len() + 12);
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02X}"));
        }
    }
    Cow::Owned(text)
}

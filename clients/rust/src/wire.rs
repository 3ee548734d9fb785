//! A cursor over protobuf's encoding, for the two messages that there are millions of: Change and Row. Generated types would
//! allocate a vector and every value's text twice.

use bytes::Bytes;

use crate::{Error, Missing, Value, relation::Relation};

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LENGTH: u32 = 2;
const FIXED32: u32 = 5;

/// Field 1 of every streaming response.
const EVENTS: u32 = 1 << 3 | LENGTH;
/// Event.change.
const CHANGE: u32 = 3 << 3 | LENGTH;

fn garbled() -> Error {
    Error::Protocol("a response is garbled".into())
}

/// A range of bytes.
#[derive(Clone, Copy)]
pub(crate) struct Wire<'a> {
    bytes: &'a [u8],
    pub(crate) at: usize,
    end: usize,
}

impl<'a> Wire<'a> {
    pub(crate) fn new(bytes: &'a [u8], at: usize, end: usize) -> Self {
        Wire { bytes, at, end }
    }

    fn has_more(&self) -> bool {
        self.at < self.end
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            if self.at >= self.end {
                return Err(garbled());
            }
            let next = self.bytes[self.at];
            self.at += 1;
            value |= u64::from(next & 0x7f) << shift;
            if next < 0x80 {
                return Ok(value);
            }
        }
        Err(garbled())
    }

    fn tag(&mut self) -> Result<u32, Error> {
        u32::try_from(self.varint()?).map_err(|_| garbled())
    }

    fn zigzag(&mut self) -> Result<i64, Error> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn take(&mut self, length: usize) -> Result<(usize, usize), Error> {
        if length > self.end - self.at {
            return Err(garbled());
        }
        self.at += length;
        Ok((self.at - length, self.at))
    }

    fn double(&mut self) -> Result<f64, Error> {
        let (from, to) = self.take(8)?;
        let bits = self.bytes[from..to].iter().rev().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        Ok(f64::from_bits(bits))
    }

    fn part(&mut self) -> Result<(usize, usize), Error> {
        let length = usize::try_from(self.varint()?).map_err(|_| garbled())?;
        self.take(length)
    }

    fn sub(&mut self) -> Result<Wire<'a>, Error> {
        let (at, end) = self.part()?;
        Ok(Wire { bytes: self.bytes, at, end })
    }

    fn skip(&mut self, tag: u32) -> Result<(), Error> {
        match tag & 7 {
            VARINT => self.varint().map(drop),
            FIXED64 => self.take(8).map(drop),
            LENGTH => self.part().map(drop),
            FIXED32 => self.take(4).map(drop),
            _ => Err(garbled()),
        }
    }
}

/// One event of a response.
pub(crate) enum RawEvent {
    Change(RawChange),
    /// Any other, for the generated type.
    Other(Bytes),
}

/// Calls back with each event of a response.
pub(crate) fn events(response: &Bytes, mut each: impl FnMut(RawEvent) -> Result<(), Error>) -> Result<(), Error> {
    let mut wire = Wire::new(response, 0, response.len());
    while wire.has_more() {
        let tag = wire.tag()?;
        if tag != EVENTS {
            wire.skip(tag)?;
            continue;
        }
        let mut event = wire.sub()?;
        let (start, end) = (event.at, event.end);
        if event.has_more() && event.tag()? == CHANGE {
            let change = event.sub()?;
            if !event.has_more() {
                each(RawEvent::Change(RawChange::read(response, change)?))?;
                continue;
            }
        }
        each(RawEvent::Other(response.slice(start..end)))?;
    }
    Ok(())
}

/// A Change as it came: its numbers, and where its rows are in the response.
#[derive(Clone, Debug)]
pub(crate) struct RawChange {
    bytes: Bytes,
    pub(crate) operation: i32,
    pub(crate) relation_id: u32,
    pub(crate) ordinal: u64,
    pub(crate) transition: i32,
    pub(crate) before: Option<(usize, usize)>,
    pub(crate) after: Option<(usize, usize)>,
}

impl RawChange {
    /// From a message of its own.
    pub(crate) fn whole(bytes: Bytes) -> Result<Self, Error> {
        let wire = Wire::new(&bytes, 0, bytes.len());
        RawChange::read(&bytes, wire)
    }

    fn read(bytes: &Bytes, mut wire: Wire<'_>) -> Result<Self, Error> {
        let (operation, relation_id, ordinal, transition) = (0, 0, 0, 0);
        let mut change =
            RawChange { bytes: bytes.clone(), operation, relation_id, ordinal, transition, before: None, after: None };
        while wire.has_more() {
            let tag = wire.tag()?;
            match (tag >> 3, tag & 7) {
                (1, VARINT) => change.operation = wire.varint()? as i32,
                (2, VARINT) => change.relation_id = wire.varint()? as u32,
                (3, VARINT) => change.ordinal = wire.varint()?,
                (4, LENGTH) => change.before = Some(wire.part()?),
                (5, LENGTH) => change.after = Some(wire.part()?),
                (11, VARINT) => change.transition = wire.varint()? as i32,
                _ => wire.skip(tag)?,
            }
        }
        Ok(change)
    }

    /// The values of a row, `None` for absent ones.
    pub(crate) fn row(&self, relation: &Relation, row: (usize, usize)) -> Result<Vec<Option<Value>>, Error> {
        let columns = relation.columns().len();
        let mut values = Vec::with_capacity(columns);
        let mut wire = Wire::new(&self.bytes, row.0, row.1);
        while wire.has_more() {
            let tag = wire.tag()?;
            if tag != EVENTS {
                wire.skip(tag)?;
                continue;
            }
            let value = wire.sub()?;
            if values.len() == columns {
                return Err(relation.misfit());
            }
            values.push(self.value(relation, values.len(), value)?);
        }
        if values.len() == columns { Ok(values) } else { Err(relation.misfit()) }
    }

    fn value(&self, relation: &Relation, column: usize, mut wire: Wire<'_>) -> Result<Option<Value>, Error> {
        while wire.has_more() {
            let tag = wire.tag()?;
            return Ok(Some(match (tag >> 3, tag & 7) {
                (1, VARINT) => match Missing::try_from(wire.varint()? as i32) {
                    Ok(Missing::Null) => Value::Null,
                    Ok(Missing::Unchanged) => Value::Unchanged,
                    Ok(Missing::Absent) => return Ok(None),
                    _ => return Err(relation.unknown(column, "is missing for a reason")),
                },
                (2, VARINT) => Value::Bool(wire.varint()? != 0),
                (3, VARINT) => Value::Int(wire.zigzag()?),
                (4, FIXED64) => Value::Float(wire.double()?),
                (5 | 7, LENGTH) => {
                    let (from, to) = wire.part()?;
                    Value::Bytes(self.bytes.slice(from..to))
                }
                (6, LENGTH) => {
                    let (from, to) = wire.part()?;
                    let text = std::str::from_utf8(&self.bytes[from..to]).map_err(|_| garbled())?;
                    relation.text(column, text)?
                }
                _ => {
                    wire.skip(tag)?;
                    continue;
                }
            }));
        }
        Err(relation.unknown(column, "has a kind"))
    }

    /// Names of the columns whose values differ; `None` if the old row is not known whole.
    pub(crate) fn changed<'r>(&self, relation: &'r Relation) -> Result<Option<Vec<&'r str>>, Error> {
        let (Some(before), Some(after)) = (self.before, self.after) else { return Ok(None) };
        let (old, new) = (self.parts(before)?, self.parts(after)?);
        if old.len() != relation.columns().len() || new.len() != old.len() {
            return Err(relation.misfit());
        }
        let missing = |part: (usize, usize), reason: Missing| self.bytes[part.0..part.1] == [1 << 3, reason as u8];
        let mut changed = Vec::new();
        for ((column, old), new) in relation.columns().iter().zip(old).zip(new) {
            if missing(new, Missing::Unchanged) {
                continue;
            }
            if missing(old, Missing::Absent) {
                return Ok(None);
            }
            if self.bytes[old.0..old.1] != self.bytes[new.0..new.1] {
                changed.push(column.name.as_str());
            }
        }
        Ok(Some(changed))
    }

    fn parts(&self, row: (usize, usize)) -> Result<Vec<(usize, usize)>, Error> {
        let mut wire = Wire::new(&self.bytes, row.0, row.1);
        let mut parts = Vec::new();
        while wire.has_more() {
            let tag = wire.tag()?;
            if tag == EVENTS { parts.push(wire.part()?) } else { wire.skip(tag)? }
        }
        Ok(parts)
    }
}

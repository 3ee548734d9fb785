//! Protobuf's fields, in place, and the values of rows.

use std::ops::Range;

/// Not protobuf, or parts of it that the protocol never uses.
#[derive(Debug)]
pub struct Malformed;

/// A part of a response. Empty at 0 for what is not there: no message in a response starts there.
#[derive(Clone, Copy, Default)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// `None` if the range is not within 32 bits.
    pub fn of(range: &Range<usize>) -> Option<Span> {
        Some(Span { start: range.start.try_into().ok()?, end: range.end.try_into().ok()? })
    }

    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    pub fn is_there(self) -> bool {
        self.start > 0
    }
}

/// What a field holds.
#[derive(Debug, PartialEq)]
pub enum Content {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32,
    /// Where it is in the data.
    Bytes(Range<usize>),
}

/// The fields of a message that is a part of `data`.
pub struct Fields<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// `None` if the range is not a part of the data.
    pub fn new(data: &'a [u8], range: Range<usize>) -> Option<Fields<'a>> {
        data.get(..range.end).filter(|data| range.start <= data.len()).map(|data| Fields { data, at: range.start })
    }

    fn varint(&mut self) -> Option<u64> {
        let first = *self.data.get(self.at)?;
        if first < 0x80 {
            self.at += 1;
            return Some(u64::from(first));
        }
        let mut value = 0u64;
        for (shift, byte) in (0..70).step_by(7).zip(self.data.get(self.at..)?) {
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, len: usize) -> Option<Range<usize>> {
        let start = self.at;
        let end = start.checked_add(len).filter(|end| *end <= self.data.len())?;
        self.at = end;
        Some(start..end)
    }

    fn field(&mut self) -> Option<(u64, Content)> {
        let key = self.varint()?;
        let content = match key & 7 {
            0 => Content::Varint(self.varint()?),
            1 => Content::Fixed64(self.data[self.take(8)?].try_into().ok()?),
            2 => {
                let len = self.varint()?.try_into().ok()?;
                Content::Bytes(self.take(len)?)
            }
            5 => {
                self.take(4)?;
                Content::Fixed32
            }
            _ => return None,
        };
        Some((key >> 3, content))
    }
}

impl Iterator for Fields<'_> {
    type Item = Result<(u64, Content), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.at < self.data.len()).then(|| self.field().ok_or(Malformed))
    }
}

/// A column's value as the hub sends it.
#[derive(Debug, PartialEq)]
pub enum Value<'a> {
    Null,
    Unchanged,
    Absent,
    Bool(bool),
    Int(i64),
    Float(f64),
    Bytes(&'a [u8]),
    Text(&'a str),
    RawText(&'a [u8]),
}

/// The values of a row that is a part of `data`. `None` in between: one that is out of the ordinary.
pub fn values(data: &[u8], row: Span) -> impl Iterator<Item = Option<Value<'_>>> {
    let fields = Fields::new(data, row.range());
    let broken = fields.is_none().then_some(None);
    let values = fields.into_iter().flatten().filter_map(|field| match field {
        Ok((1, Content::Bytes(range))) => Some(value(data, range)),
        Ok((1, _)) | Err(Malformed) => Some(None),
        Ok(_) => None,
    });
    broken.into_iter().chain(values)
}

fn value(data: &[u8], range: Range<usize>) -> Option<Value<'_>> {
    let mut found = None;
    for field in Fields::new(data, range)? {
        // Of several kinds the last one counts; that of a kind not known here is for others to say.
        found = Some(match field.ok()? {
            (1, Content::Varint(1)) => Value::Null,
            (1, Content::Varint(2)) => Value::Unchanged,
            (1, Content::Varint(3)) => Value::Absent,
            (2, Content::Varint(bool)) => Value::Bool(bool != 0),
            (3, Content::Varint(zigzag)) => Value::Int((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64)),
            (4, Content::Fixed64(bytes)) => Value::Float(f64::from_le_bytes(bytes)),
            (5, Content::Bytes(range)) => Value::Bytes(&data[range]),
            (6, Content::Bytes(range)) => Value::Text(std::str::from_utf8(&data[range]).ok()?),
            (7, Content::Bytes(range)) => Value::RawText(&data[range]),
            _ => return None,
        });
    }
    found
}

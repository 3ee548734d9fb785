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

    #[inline]
    fn varint(&mut self) -> Option<u64> {
        let first = *self.data.get(self.at)?;
        if first < 0x80 {
            self.at += 1;
            return Some(u64::from(first));
        }
        self.long()
    }

    fn long(&mut self) -> Option<u64> {
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

    #[inline]
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

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        (self.at < self.data.len()).then(|| self.field().ok_or(Malformed))
    }
}

/// A column's value as the hub sends it: what the hub's `model::Value` is. Written again, since a source distribution has to build
/// without the hub, and these nine lines are all that both have in common.
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

/// The values of a row that is a part of a response. `None` in between: one that is out of the ordinary.
pub struct Values<'a>(Option<Fields<'a>>);

impl<'a> Values<'a> {
    pub fn new(data: &'a [u8], row: Span) -> Values<'a> {
        Values(Fields::new(data, row.range()))
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = Option<Value<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let fields = self.0.as_mut()?;
        loop {
            match fields.next()? {
                Ok((1, Content::Bytes(range))) => return Some(value(fields.data, range)),
                Ok((number, _)) if number != 1 => {}
                _ => {
                    self.0 = None;
                    return Some(None);
                }
            }
        }
    }
}

/// The content of a value that is short and of one kind only, as nearly all are: a varint or a length of one byte.
fn short<'a>(value: &'a [u8]) -> Option<Value<'a>> {
    let (tag, rest) = value.split_first()?;
    let (first, content) = rest.split_first()?;
    match (tag, first) {
        (0x32, len) if usize::from(*len) == content.len() && *len < 0x80 => {
            std::str::from_utf8(content).ok().map(Value::Text)
        }
        (0x18, zigzag) if *zigzag < 0x80 && content.is_empty() => {
            Some(Value::Int(i64::from(zigzag >> 1) ^ -i64::from(zigzag & 1)))
        }
        (0x08, 1) if content.is_empty() => Some(Value::Null),
        _ => None,
    }
}

fn value(data: &[u8], range: Range<usize>) -> Option<Value<'_>> {
    if let Some(value) = short(&data[range.clone()]) {
        return Some(value);
    }
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

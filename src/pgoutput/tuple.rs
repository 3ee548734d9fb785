//! Row images.

use super::{Error, ErrorKind, decode::Reader};
use crate::model::Datum;

/// The columns of a row image, in the relation's order: an iterator over bytes that have been validated, cheap to
/// clone and to walk again.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuple<'a> {
    bytes: &'a [u8],
    left: u16,
}

/// Reads and validates one TupleData.
pub(super) fn read<'a>(reader: &mut Reader<'a>) -> Result<Tuple<'a>, Error> {
    let left = reader.count()?;
    let start = reader.at;
    for _ in 0..left {
        match reader.u8()? {
            b't' | b'b' => {
                let length = reader.length()?;
                reader.take(length)?;
            }
            b'n' | b'u' => {}
            other => return Err(reader.error_before(1, ErrorKind::UnknownColumnKind(other))),
        }
    }
    Ok(Tuple { bytes: &reader.bytes[start..reader.at], left })
}

impl<'a> Tuple<'a> {
    /// Columns that are left; at first all of the image.
    pub fn len(&self) -> usize {
        usize::from(self.left)
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// The encoded columns that are left, for checksums: equal bytes are equal images.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

impl<'a> Iterator for Tuple<'a> {
    type Item = Datum<'a>;

    #[inline]
    fn next(&mut self) -> Option<Datum<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (kind, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(match kind {
            b'n' => Datum::Null,
            b'u' => Datum::Unchanged,
            kind => {
                let (length, rest) = rest.split_first_chunk()?;
                let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
                self.bytes = rest;
                if *kind == b't' { Datum::Text(value) } else { Datum::Binary(value) }
            }
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len(), Some(self.len()))
    }
}

impl ExactSizeIterator for Tuple<'_> {}

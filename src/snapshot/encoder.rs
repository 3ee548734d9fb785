//! From rows of COPY to READ changes, in the very encoding of the stream's changes.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::refused;
use crate::{
    feed::SnapshotError,
    model::{Datum, OldImage, Operation, Relation},
    postgres::copy::RowReader,
    reason::{Classified, Reason},
    wire::encode,
};

/// Bytes at which a piece is handed over.
pub(super) const PIECE: usize = 64 * 1024;

pub(super) struct Encoder {
    pub relation: Arc<Relation>,
    reader: RowReader,
    out: BytesMut,
    rows: u64,
}

impl Encoder {
    pub fn new(relation: Arc<Relation>) -> Self {
        Encoder { relation, reader: RowReader::default(), out: BytesMut::with_capacity(PIECE + PIECE / 4), rows: 0 }
    }

    /// Encodes one row; the bytes of its event.
    pub fn add(&mut self, line: &[u8]) -> Result<std::ops::Range<usize>, SnapshotError> {
        let start = self.out.len();
        let row = self.reader.read(line).map_err(refused)?;
        let none = None::<(OldImage, std::iter::Empty<Datum<'_>>)>;
        encode::change(&mut self.out, &self.relation, Operation::Read, 0, none, Some(row))
            .map_err(|error| SnapshotError::new(wrong(&error), error.to_string()))?;
        self.rows += 1;
        Ok(start..self.out.len())
    }

    pub fn len(&self) -> usize {
        self.out.len()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.out
    }

    /// What has been encoded, and how many rows that is.
    pub fn take(&mut self) -> (Bytes, u64) {
        let full = std::mem::replace(&mut self.out, BytesMut::with_capacity(PIECE + PIECE / 4));
        (full.freeze(), std::mem::take(&mut self.rows))
    }
}

/// A value that its type's text form does not allow for, or another number of columns: the table has changed.
fn wrong(error: &encode::Error) -> Reason {
    match error {
        encode::Error::ColumnCount { .. } => Reason::SnapshotInterrupted,
        _ => error.reason(),
    }
}

//! From rows of COPY to READ changes, in the very encoding of the stream's changes, as messages that are sent as they are.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::refused;
use crate::{
    feed::{Batch, SnapshotError},
    model::{Datum, OldImage, Operation, Relation},
    postgres::copy::RowReader,
    reason::{Classified, Reason},
    wire::{block::MESSAGE_PREFIX, encode},
};

/// Bytes at which a batch is handed over.
const BATCH: usize = 64 * 1024;

pub(super) struct Encoder {
    relation: Arc<Relation>,
    reader: RowReader,
    batch: Builder,
}

impl Encoder {
    pub fn new(relation: Arc<Relation>) -> Self {
        Encoder { relation, reader: RowReader::default(), batch: Builder::default() }
    }

    /// Encodes one row. A batch that is full with it.
    pub fn add(&mut self, line: &[u8]) -> Result<Option<Batch>, SnapshotError> {
        let row = self.reader.read(line).map_err(refused)?;
        let none = None::<(OldImage, std::iter::Empty<Datum<'_>>)>;
        encode::change(&mut self.batch.out, &self.relation, Operation::Read, 0, none, Some(row))
            .map_err(|error| SnapshotError::new(wrong(&error), error.to_string()))?;
        self.batch.rows += 1;
        Ok(self.batch.take_if_full())
    }

    /// What has been encoded and is in no batch yet.
    pub fn take(&mut self) -> Option<Batch> {
        self.batch.take()
    }
}

/// A batch that is being filled.
pub(super) struct Builder {
    out: BytesMut,
    rows: u32,
}

impl Default for Builder {
    fn default() -> Self {
        let mut out = BytesMut::with_capacity(BATCH + BATCH / 4);
        out.put_bytes(0, MESSAGE_PREFIX);
        Builder { out, rows: 0 }
    }
}

impl Builder {
    /// Appends a row that has been encoded before. A batch that is full with it.
    pub fn add(&mut self, framed: &[u8]) -> Option<Batch> {
        self.out.extend_from_slice(framed);
        self.rows += 1;
        self.take_if_full()
    }

    fn take_if_full(&mut self) -> Option<Batch> {
        if self.out.len() < BATCH { None } else { self.take() }
    }

    pub fn take(&mut self) -> Option<Batch> {
        if self.rows == 0 {
            return None;
        }
        let Builder { mut out, rows } = std::mem::take(self);
        let len = (out.len() - MESSAGE_PREFIX) as u32;
        out[1..MESSAGE_PREFIX].copy_from_slice(&len.to_be_bytes());
        Some(Batch { message: out.freeze(), rows })
    }
}

/// A value that its type's text form does not allow for, or another number of columns: the table has changed.
fn wrong(error: &encode::Error) -> Reason {
    match error {
        encode::Error::ColumnCount { .. } => Reason::SnapshotInterrupted,
        _ => error.reason(),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{
        model::{Column, RelationId, ReplicaIdentity},
        wire::pb,
    };

    #[test]
    fn a_batch_is_a_message_with_as_many_events_as_it_says() {
        let column = |name: &str, type_oid| Column {
            name: name.into(),
            type_oid,
            type_name: String::new(),
            type_modifier: -1,
            in_identity: false,
        };
        let relation = Relation {
            id: RelationId(7),
            oid: 1,
            schema: "s".into(),
            table: "t".into(),
            replica_identity: ReplicaIdentity::Default,
            columns: vec![column("id", 23), column("text", 25)],
        };
        let mut encoder = Encoder::new(Arc::new(relation));
        let mut batches = Vec::new();
        for row in 0..10_000 {
            batches.extend(encoder.add(format!("{row}\tsome text\n").as_bytes()).unwrap());
        }
        batches.extend(encoder.take());
        assert!(encoder.take().is_none() && batches.len() > 1);
        let mut rows = 0;
        for batch in batches {
            let (prefix, payload) = batch.message.split_at(MESSAGE_PREFIX);
            assert_eq!(prefix[1..], (payload.len() as u32).to_be_bytes());
            let response = pb::SubscribeResponse::decode(payload).unwrap();
            assert_eq!(response.events.len(), batch.rows as usize);
            rows += batch.rows;
        }
        assert_eq!(rows, 10_000);
    }
}

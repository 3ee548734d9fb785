//! A transaction that a restart cut comes again from its beginning. What the journal already has of it is not written
//! twice: each re-sent event is encoded again and compared with the journaled bytes and LSN.
//!
//! It is usually the same, also after later DDL. It is not when ALTER PUBLICATION, ALTER TYPE RENAME VALUE or ALTER
//! SCHEMA RENAME committed while the transaction was open: then its content depends on where the connection began to
//! decode ([logical decoding uses the catalogue as of the decoding
//! point](https://www.postgresql.org/docs/current/logicaldecoding-explanation.html)), and the part must be discarded.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    feed::{self, Cursor, Feed, Fetched},
    journal::OpenTransaction,
    lsn::Lsn,
    wire::block::{Block, Entry},
};

/// The journaled part of a cut transaction, read along with its repetition.
#[derive(Debug)]
pub(super) struct Resent {
    /// What the journal knows of it.
    pub open: OpenTransaction,
    cursor: Cursor,
    loaded: Option<(Arc<Block>, Bytes, Vec<Entry>)>,
    next: usize,
    compared: u64,
}

impl Resent {
    pub fn new(open: OpenTransaction, after: crate::model::Position) -> Self {
        let cursor = Cursor { block: open.first_block, after };
        Resent { open, cursor, loaded: None, next: 0, compared: 0 }
    }

    /// Events that are equal so far.
    pub fn compared(&self) -> u64 {
        self.compared
    }

    /// Whether everything journaled has been compared.
    pub fn finished(&self) -> bool {
        self.compared == self.open.ordinals
    }

    /// Makes the next journaled event available to [`Resent::matches`].
    pub async fn load(&mut self, feed: &dyn Feed) -> Result<(), feed::Error> {
        while !self.finished() && self.loaded.as_ref().is_none_or(|(_, _, entries)| self.next == entries.len()) {
            let Fetched::Block(block) = feed.fetch(&mut self.cursor).await? else {
                return Ok(()); // fewer blocks than ordinals: nothing matches, the part is discarded
            };
            let entries = match block.index() {
                Ok(index) => match index.spans.last() {
                    Some(span) => index.entries[span.entries.0 as usize..span.entries.1 as usize].to_vec(),
                    None => Vec::new(),
                },
                Err(_) => Vec::new(),
            };
            let payload = block.payload();
            self.loaded = Some((block, payload, entries));
            self.next = 0;
        }
        Ok(())
    }

    /// Compares the next re-sent event, framed, with the journaled one.
    pub fn matches(&mut self, lsn: Lsn, framed: &[u8]) -> bool {
        let Some((_, payload, entries)) = &self.loaded else { return false };
        let Some(entry) = entries.get(self.next) else { return false };
        let journaled = payload.get(entry.offset as usize..(entry.offset + entry.len) as usize);
        let equal = entry.lsn == lsn && journaled == Some(framed);
        self.next += 1;
        self.compared += u64::from(equal);
        equal
    }
}

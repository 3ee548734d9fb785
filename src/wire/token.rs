//! `Position.snapshot`: what a stream needs beside the LSN to go on from there. Opaque to clients, and not trusted when
//! it comes back: what it names is looked up again, and what it holds can only make its own stream see less or more.
//!
//! Two things are in it. Until the stream has passed the LSN that was read after a snapshot was taken, whether a
//! transaction is in the rows is decided by its id, so the snapshot itself travels along ([`Handover`]). And
//! while rows are still owed, it says how far they have come ([`Progress`]).

use bytes::Bytes;
use prost::Message;

use crate::{
    lsn::Lsn,
    model::{LineageId, Visibility},
};

/// The whole of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Token {
    /// Which transactions the rows already hold, while that is not a question of the LSN alone.
    pub handover: Option<Handover>,
    /// The rows that are owed; `None` once the snapshot has ended.
    pub progress: Option<Progress>,
}

/// Until `until`, transactions that `seen` sees are in the rows and are not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The lineage on which `until` and the ids mean something.
    pub lineage: LineageId,
    /// `pg_current_wal_insert_lsn()`, read after the snapshot was taken: no later commit is in it.
    pub until: Lsn,
    /// The snapshot.
    pub seen: Visibility,
}

/// How far the rows have come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// `SnapshotBegin.snapshot_id`.
    pub id: u64,
    /// Incremental; otherwise consistent, which starts over.
    pub incremental: bool,
    /// Incremental: tables whose OID is less are done; a renamed table keeps its place.
    pub oid: u32,
    /// Incremental: the name of that table, `schema.table`.
    pub table: String,
    /// Incremental: the last key of that table that was sent, as text, column by column; empty at its beginning.
    pub key: Vec<String>,
    /// Incremental: the names of the key's columns.
    pub key_columns: Vec<String>,
    /// Rows sent so far.
    pub rows: u64,
    /// Rows of the current table sent so far.
    pub table_rows: u64,
    /// `SnapshotOptions.max_rows_per_second`.
    pub max_rows_per_second: u32,
    /// Names of the tables it is about, when it is not all that the filter selects; a backfill.
    pub tables: Vec<String>,
    /// The `where` of a backfill.
    pub predicate: String,
    /// Incremental: the mark of the last chunk in these rows. On a stream that stands before it they hold what came later.
    pub at: Lsn,
    /// Incremental: behind this place there are changes for which rows of the current table are read again; 0: behind `at` at
    /// the earliest.
    pub owed_after: Lsn,
}

impl Progress {
    /// The same snapshot with no row sent.
    pub fn from_the_beginning(self) -> Progress {
        let Progress { id, incremental, max_rows_per_second, tables, predicate, .. } = self;
        Progress { id, incremental, max_rows_per_second, tables, predicate, ..Progress::default() }
    }
}

/// The bytes are not a token of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not what a hub of this version has sent")]
pub struct InvalidToken;

const VERSION: u32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Raw {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(message, optional, tag = "2")]
    handover: Option<RawHandover>,
    #[prost(message, optional, tag = "3")]
    progress: Option<RawProgress>,
}

#[derive(Clone, PartialEq, Message)]
struct RawHandover {
    #[prost(fixed64, tag = "1")]
    lineage: u64,
    #[prost(uint64, tag = "2")]
    until: u64,
    #[prost(uint64, tag = "3")]
    xmin: u64,
    /// Beyond `xmin`, as are `running`.
    #[prost(uint64, tag = "4")]
    xmax: u64,
    #[prost(uint64, repeated, tag = "5")]
    running: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct RawProgress {
    #[prost(fixed64, tag = "1")]
    id: u64,
    #[prost(bool, tag = "2")]
    incremental: bool,
    #[prost(string, tag = "3")]
    table: String,
    #[prost(string, repeated, tag = "4")]
    key: Vec<String>,
    #[prost(uint64, tag = "5")]
    rows: u64,
    #[prost(uint64, tag = "6")]
    table_rows: u64,
    #[prost(uint32, tag = "7")]
    max_rows_per_second: u32,
    #[prost(string, repeated, tag = "8")]
    tables: Vec<String>,
    #[prost(string, tag = "9")]
    predicate: String,
    #[prost(uint64, tag = "10")]
    at: u64,
    #[prost(uint32, tag = "11")]
    oid: u32,
    #[prost(string, repeated, tag = "12")]
    key_columns: Vec<String>,
    #[prost(uint64, tag = "13")]
    owed_after: u64,
}

impl Token {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.handover.is_none() && self.progress.is_none()
    }

    /// For `Position.snapshot`; empty when it says nothing.
    pub fn encode(&self) -> Bytes {
        if self.is_empty() {
            return Bytes::new();
        }
        let handover = self.handover.as_ref().map(|handover| RawHandover {
            lineage: handover.lineage.0,
            until: handover.until.0,
            xmin: handover.seen.xmin,
            xmax: handover.seen.xmax.saturating_sub(handover.seen.xmin),
            running: handover.seen.running.iter().map(|xid| xid.saturating_sub(handover.seen.xmin)).collect(),
        });
        let progress = self.progress.clone().map(|progress| RawProgress {
            id: progress.id,
            incremental: progress.incremental,
            table: progress.table,
            key: progress.key,
            rows: progress.rows,
            table_rows: progress.table_rows,
            max_rows_per_second: progress.max_rows_per_second,
            tables: progress.tables,
            predicate: progress.predicate,
            at: progress.at.0,
            oid: progress.oid,
            key_columns: progress.key_columns,
            owed_after: progress.owed_after.0,
        });
        Raw { version: VERSION, handover, progress }.encode_to_vec().into()
    }

    /// The inverse.
    pub fn decode(bytes: &[u8]) -> Result<Token, InvalidToken> {
        if bytes.is_empty() {
            return Ok(Token::default());
        }
        let raw = Raw::decode(bytes).map_err(|_| InvalidToken)?;
        if raw.version != VERSION {
            return Err(InvalidToken);
        }
        let handover = raw.handover.map(|raw| {
            let mut running: Vec<u64> = raw.running.iter().map(|xid| raw.xmin.saturating_add(*xid)).collect();
            running.sort_unstable();
            let seen = Visibility { xmin: raw.xmin, xmax: raw.xmin.saturating_add(raw.xmax), running };
            Handover { lineage: LineageId(raw.lineage), until: Lsn(raw.until), seen }
        });
        let progress = raw.progress.map(|raw| Progress {
            id: raw.id,
            incremental: raw.incremental,
            table: raw.table,
            key: raw.key,
            rows: raw.rows,
            table_rows: raw.table_rows,
            max_rows_per_second: raw.max_rows_per_second,
            tables: raw.tables,
            predicate: raw.predicate,
            at: Lsn(raw.at),
            oid: raw.oid,
            key_columns: raw.key_columns,
            owed_after: Lsn(raw.owed_after),
        });
        Ok(Token { handover, progress })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_were() {
        let handover = Handover {
            lineage: LineageId(7),
            until: Lsn(0x1234_5678),
            seen: "70000:70100:70000,70007,70099".parse().unwrap(),
        };
        let progress = Progress {
            id: 9,
            incremental: true,
            oid: 16_384,
            table: "public.t".into(),
            key: vec!["5".into(), "ä\t".into()],
            key_columns: vec!["id".into(), "name".into()],
            rows: 12,
            table_rows: 5,
            max_rows_per_second: 100,
            tables: vec!["public.t".into()],
            predicate: "id > 5".into(),
            at: Lsn(99),
            owed_after: Lsn(98),
        };
        for token in [
            Token::default(),
            Token { handover: Some(handover.clone()), progress: None },
            Token { handover: None, progress: Some(progress.clone()) },
            Token { handover: Some(handover), progress: Some(progress) },
        ] {
            assert_eq!(Token::decode(&token.encode()), Ok(token));
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        assert_eq!(Token::decode(b"garbage"), Err(InvalidToken));
        let later = Raw { version: VERSION + 1, handover: None, progress: None }.encode_to_vec();
        assert_eq!(Token::decode(&later), Err(InvalidToken));
    }
}

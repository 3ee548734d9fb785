//! Incremental mode: chunks in key order, each read in a short transaction with a snapshot of its own, with the stream's
//! changes between them.
//!
//! A chunk belongs behind a mark, a logical message written after it was read. Up to there the stream has delivered
//! every transaction that the chunk's snapshot does not see; what one of them touched is left out of the chunk, and the
//! rest is the newest state at that place. The usual rule, to drop what changed between two marks, keeps stale rows
//! on PostgreSQL: a transaction becomes visible after its commit record is written, so the chunk can be read after the record
//! of a change, and behind the low mark, without seeing it
//! ([DBLog](https://arxiv.org/abs/2010.12597) assumes that it cannot).

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Exporter, Pacer, Session, away,
    encoder::{Encoder, PIECE},
    no_key, readable, refused,
    touched::{Seen, Touched},
};
use crate::{
    feed::{BoxFuture, Chunk, MARK_PREFIX, Piece, Reservation, Rows, SnapshotError},
    model::{Position, Relation, Visibility},
    postgres::{
        copy::CopyRows,
        sql::Sql,
        table::{self, Table},
    },
    reason::Reason,
    selection::Selection,
    wire::{rows::ChangeView, token::Progress},
};

/// How long a chunk's transaction should be open.
const CHUNK_TIME: Duration = Duration::from_millis(200);
const FIRST_LIMIT: usize = 1024;
const MAX_LIMIT: usize = 64 * 1024;
/// Bytes of encoded rows at which the next chunk is made smaller; at twice as many the chunk ends where it is.
const CHUNK_BYTES: usize = 8 << 20;
/// When a chunk ends where it is, whatever it has.
const LONGEST_CHUNK: Duration = Duration::from_millis(700);
/// How long a mark may take to arrive.
const MARK_LAG: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Failures one after another that are taken for the source's being away; more end the snapshot, to be resumed.
const FAILURES: u32 = 20;

/// What [`start`] goes on with.
pub(super) struct Begun {
    pub marker: Option<Session>,
    pub request: Arc<Selection>,
    pub pause: watch::Receiver<bool>,
    pub run: u64,
    pub progress: Progress,
}

/// A snapshot that is being read.
pub(super) struct Incremental {
    pieces: mpsc::Receiver<Result<Piece, SnapshotError>>,
    _reader: AbortOnDropHandle<()>,
    exporter: Exporter,
    request: Arc<Selection>,
    pause: watch::Receiver<bool>,
}

pub(super) fn start(exporter: Exporter, begun: Begun, reservation: Reservation) -> Incremental {
    let Begun { marker, request, pause, run, progress } = begun;
    let (sender, pieces) = mpsc::channel(1);
    let reader = Reader {
        exporter: exporter.clone(),
        selection: request.clone(),
        pause: pause.clone(),
        run,
        session: marker,
        tables: None,
        mark: 0,
        limit: FIRST_LIMIT,
        seen: Seen::default(),
        pacer: Pacer::new(progress.max_rows_per_second),
        progress,
        reservation,
        waits: false,
    };
    let reader = AbortOnDropHandle::new(tokio::spawn(reader.run(sender)));
    Incremental { pieces, _reader: reader, exporter, request, pause }
}

impl Rows for Incremental {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Piece>, SnapshotError>> {
        Box::pin(async { self.pieces.recv().await.transpose() })
    }

    fn rewind(&mut self, progress: Progress) -> Option<u64> {
        let run = fastrand::u64(1..);
        let begun = Begun { marker: None, request: self.request.clone(), pause: self.pause.clone(), run, progress };
        let feed = &self.exporter.feed;
        let reservation = feed.reserve(feed.marks().borrow().tail);
        *self = start(self.exporter.clone(), begun, reservation);
        Some(run)
    }
}

struct Reader {
    exporter: Exporter,
    selection: Arc<Selection>,
    pause: watch::Receiver<bool>,
    run: u64,
    session: Option<Session>,
    /// What is selected, until a table ends or something fails.
    tables: Option<Vec<Table>>,
    /// Number of the last mark.
    mark: u64,
    /// Rows of the next chunk.
    limit: usize,
    seen: Seen,
    progress: Progress,
    pacer: Pacer,
    reservation: Reservation,
    /// The last chunk came no further: its first row waits for a transaction that is in the stream and not to be seen yet.
    waits: bool,
}

/// A chunk as it was read.
struct Read {
    seen: Visibility,
    relation: Arc<Relation>,
    key: Vec<String>,
    /// The encoded rows, and where each is.
    encoder: Encoder,
    rows: Vec<std::ops::Range<usize>>,
    /// The same as they came.
    lines: Vec<Bytes>,
    /// The table has no row behind them.
    ends: bool,
    /// The key up to which rows were looked at; `None`: that of the last row.
    boundary: Option<Vec<String>>,
    /// COPY was left in the middle, and with it the session.
    hung_up: bool,
}

impl Read {
    /// Where the key is in a row.
    fn places(&self) -> Vec<usize> {
        self.key.iter().filter_map(|name| place(&self.relation, name)).collect()
    }
}

impl Reader {
    async fn run(mut self, pieces: mpsc::Sender<Result<Piece, SnapshotError>>) {
        let mut failures = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            self.pacer.ready().await;
            if self.pause.wait_for(|paused| !*paused).await.is_err() {
                return;
            }
            let piece = match self.chunk().await {
                Ok(chunk) => {
                    failures = 0;
                    pause = FIRST_PAUSE;
                    Ok(Piece::Chunk(chunk))
                }
                Err(error) => {
                    self.session = None;
                    self.tables = None;
                    self.seen = Seen::default();
                    failures += 1;
                    let passes = matches!(error.reason, Reason::SourceUnavailable | Reason::SnapshotInterrupted);
                    if !passes || failures > FAILURES {
                        Err(error)
                    } else {
                        tracing::info!(reason = error.reason.as_str(), %error, "a chunk is read again");
                        Ok(Piece::Void(self.mark))
                    }
                }
            };
            let retry = matches!(piece, Ok(Piece::Void(_))) || std::mem::take(&mut self.waits);
            let ends = matches!(&piece, Err(_) | Ok(Piece::Chunk(Chunk { last: true, .. })));
            if pieces.send(piece).await.is_err() || ends {
                return;
            }
            if retry {
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Reads the next chunk, and what of it holds at its mark.
    async fn chunk(&mut self) -> Result<Chunk, SnapshotError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => self.exporter.session().await?,
        };
        let selected = match self.tables.take() {
            Some(tables) => tables,
            None => self.exporter.selected(&session.0, &self.selection).await?,
        };
        let mut ended = Vec::new();
        let behind = selected.iter().filter(|table| table.relation.oid >= self.progress.oid);
        let table = behind.min_by_key(|table| table.relation.oid).cloned();
        let read = match &table {
            Some(table) => {
                if table.relation.oid != self.progress.oid {
                    self.progress.key.clear();
                    self.progress.table_rows = 0;
                    self.progress.oid = table.relation.oid;
                }
                self.progress.table = table.relation.qualified_name();
                Some(self.read(&session, table).await?)
            }
            None => None,
        };
        let floor = match &read {
            Some(read) => Some(self.seen.before(&*self.exporter.feed, &read.seen).await?),
            None => None,
        };
        let session = match &read {
            Some(read) if read.hung_up => self.exporter.session().await?,
            _ => session,
        };
        self.mark += 1;
        let content = content(self.run, self.mark);
        table::emit_mark(&session.0, MARK_PREFIX, &content).await.map_err(refused)?;
        self.session = Some(session);
        let (Some(read), Some(floor)) = (read, floor) else {
            // Every table from here on was dropped meanwhile.
            let (mark, progress) = (self.mark, self.progress.clone());
            return Ok(Chunk { mark, relation: None, framed: Vec::new(), ended, progress, last: true });
        };
        let mut read = read;
        let framed = self.valid(&mut read, floor, &content).await?;
        self.pacer.count(read.rows.len() as u64);
        let relation = (!framed.is_empty()).then(|| read.relation.clone());
        let mut progress = self.progress.clone();
        let mut last = false;
        if read.ends {
            ended.push(read.relation.clone());
            progress.key.clear();
            progress.table_rows = 0;
            progress.oid = progress.oid.saturating_add(1);
            last = selected.iter().all(|table| table.relation.oid < progress.oid);
        } else if let Some(boundary) = read.boundary {
            progress.key = boundary;
        } else if let Some(line) = read.lines.last() {
            progress.key = key_texts(line, &read.places())?;
        }
        if !read.ends {
            self.tables = Some(selected);
        }
        self.progress = progress.clone();
        Ok(Chunk { mark: self.mark, relation, framed, ended, progress, last })
    }

    /// One short transaction.
    async fn read(&mut self, session: &Session, table: &Table) -> Result<Read, SnapshotError> {
        let sql = &session.0;
        readable(std::slice::from_ref(table), sql).await?;
        let began = Instant::now();
        table::begin_locked(sql, &[table.quoted()]).await.map_err(refused)?;
        let (seen, _) = table::snapshot(sql).await.map_err(refused)?;
        let name = (table.relation.schema.clone(), table.relation.table.clone());
        let found = table::tables(sql, &self.exporter.publication, &[name]).await.map_err(refused)?;
        let Some(table) = found.into_iter().find(|found| found.relation.oid == table.relation.oid) else {
            return Err(super::interrupted("a table was replaced while it was read"));
        };
        let Some(table) = super::wanted(table, &self.selection)? else {
            return Err(super::interrupted("a table is no longer selected"));
        };
        if table.key.is_empty() {
            return Err(no_key(&table));
        }
        if table.key != self.progress.key_columns {
            self.progress.key.clear();
            self.progress.key_columns = table.key.clone();
        }
        let relation = self.exporter.numbered(&table.relation);
        let mut encoder = Encoder::new(relation.clone());
        let mut rows = Vec::new();
        let mut lines = Vec::new();
        let (query, boundary) = self.query(sql, &table).await?;
        let mut copied = CopyRows::start(sql, &query).await.map_err(refused)?;
        let mut hung_up = false;
        while let Some(line) = copied.next().await.map_err(refused)? {
            rows.push(encoder.add(&line)?);
            lines.push(line);
            if encoder.len() >= 2 * CHUNK_BYTES || began.elapsed() >= LONGEST_CHUNK {
                hung_up = true;
                sql.hang_up();
                break;
            }
        }
        let (ends, boundary) = match hung_up {
            true => (false, None),
            false => {
                sql.batch("COMMIT").await.map_err(refused)?;
                let ends = if table.filtered() { boundary.is_none() } else { rows.len() < self.limit };
                (ends, boundary)
            }
        };
        let took = began.elapsed();
        if hung_up {
            self.limit = (rows.len() / 2).max(1);
        } else if took > CHUNK_TIME || encoder.len() > CHUNK_BYTES {
            self.limit = (self.limit / 2).max(1);
        } else if took < CHUNK_TIME / 2 && encoder.len() < CHUNK_BYTES / 2 {
            self.limit = (self.limit * 2).min(MAX_LIMIT);
        }
        Ok(Read { seen, relation, key: table.key, encoder, rows, lines, ends, boundary, hung_up })
    }

    /// How the next chunk is read, and the key at which it ends if rows are left out: then its time is that of the rows that
    /// are looked at, however few of them come.
    async fn query(&self, sql: &Sql, table: &Table) -> Result<(String, Option<Vec<String>>), SnapshotError> {
        let after = &self.progress.key;
        if !table.filtered() {
            return Ok((table.select_chunk(after, self.limit), None));
        }
        let mut found = CopyRows::start(sql, &table.select_boundary(after, self.limit)).await.map_err(refused)?;
        let mut boundary = None;
        while let Some(line) = found.next().await.map_err(refused)? {
            boundary = Some(key_texts(&line, &(0..table.key.len()).collect::<Vec<_>>())?);
        }
        Ok((table.select_between(after, boundary.as_deref().unwrap_or_default()), boundary))
    }

    /// The rows that no transaction touched which the chunk's snapshot does not see, of those up to the mark.
    async fn valid(&mut self, read: &mut Read, floor: Position, content: &str) -> Result<Vec<Bytes>, SnapshotError> {
        let places = read.places();
        let by_key = || {
            let mut by_key = HashMap::with_capacity(read.rows.len());
            for (number, range) in read.rows.iter().enumerate() {
                let view = ChangeView::parse(&read.encoder.bytes()[range.clone()]);
                let key = view.ok().and_then(|view| view.after).and_then(|row| row.key(&places));
                let key = key.ok_or_else(|| SnapshotError::new(Reason::Internal, "a row without its key"))?;
                by_key.insert(key, number);
            }
            Ok(by_key)
        };
        let (oid, rows) = (read.relation.oid, OnceLock::new());
        let touched = Touched { feed: &*self.exporter.feed, oid, key: &read.key, find: &by_key, rows };
        let marked = tokio::time::timeout(MARK_LAG, touched.up_to(floor, &mut self.seen, &read.seen, content)).await;
        let left = marked.map_err(|_| away("a mark of the snapshot has not arrived"))??;
        if let Some(floor) = self.seen.floor() {
            self.reservation = self.exporter.feed.reserve(floor);
        }
        if let Some(again) = left.again {
            read.rows.truncate(again);
            read.lines.truncate(again);
            read.ends = false;
            read.boundary = None;
            self.waits = again == 0;
        }
        let keep = left.rows.map(|rows| {
            let mut keep = vec![false; read.rows.len()];
            for number in rows.into_values() {
                if let Some(keep) = keep.get_mut(number) {
                    *keep = true;
                }
            }
            keep
        });
        let mut framed = Vec::new();
        let mut piece = Vec::with_capacity(PIECE);
        for (number, range) in read.rows.iter().enumerate() {
            if keep.as_ref().is_some_and(|keep| !keep[number]) {
                continue;
            }
            piece.extend_from_slice(&read.encoder.bytes()[range.clone()]);
            if piece.len() >= PIECE {
                framed.push(Bytes::from(std::mem::replace(&mut piece, Vec::with_capacity(PIECE))));
            }
        }
        if !piece.is_empty() {
            framed.push(piece.into());
        }
        Ok(framed)
    }
}

/// What a mark holds: whose it is, and its number.
pub(super) fn content(run: u64, mark: u64) -> String {
    format!("{run:016x}:{mark}")
}

fn place(relation: &Relation, name: &str) -> Option<usize> {
    relation.columns.iter().position(|column| column.name == name)
}

fn key_texts(line: &[u8], places: &[usize]) -> Result<Vec<String>, SnapshotError> {
    let mut reader = crate::postgres::copy::RowReader::default();
    let row: Vec<_> = reader.read(line).map_err(refused)?.collect();
    let text = |place: &usize| match row.get(*place) {
        Some(crate::model::Datum::Text(text)) => std::str::from_utf8(text).ok().map(str::to_owned),
        _ => None,
    };
    let key = places.iter().map(text).collect::<Option<Vec<_>>>();
    key.ok_or_else(|| SnapshotError::new(Reason::SnapshotImpossible, "a key that is not UTF-8 cannot be resumed after"))
}

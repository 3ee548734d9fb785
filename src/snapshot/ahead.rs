//! The rows of chunks, each read in a short transaction with a snapshot of its own. The next one is read while the mark of
//! the last is under way, and no more than that one.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, mpsc, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use super::{Exporter, Session, encoder::Encoder, interrupted, no_key, pacer::Pacer, readable, refused};
use crate::{
    feed::{Batch, SnapshotError},
    model::{Relation, Value, Visibility},
    postgres::{
        self,
        copier::{Copied, Copier},
        server,
        table::{self, Table},
    },
    reason::Reason,
    selection::Selection,
    wire::{
        block::MESSAGE_PREFIX,
        rows::{ChangeView, RowView, split_first},
        token::Progress,
    },
};

/// How long a chunk's transaction should be open.
const CHUNK_TIME: Duration = Duration::from_millis(200);
/// When a chunk ends where it is, whatever it has. If that is nothing, the next one has fewer rows; a single row has twice
/// the time whenever it takes longer, since it has to come.
const LONGEST_CHUNK: Duration = Duration::from_millis(700);
/// What a chunk's transaction may take to find out whether the table is still what it was: catalogues can be slow, and fewer rows would
/// not make them faster. Beyond it is a failure.
const LONGEST_LIKENESS: Duration = Duration::from_secs(10);
/// Bytes of encoded rows at which the next chunk is made smaller; at twice as many the chunk ends where it is.
const CHUNK_BYTES: usize = 4 << 20;
/// Attempts at reading a table that changes meanwhile.
const ATTEMPTS: usize = 5;
/// A prepared statement.
const LIKENESS: &str = "walcast_likeness";
const FIRST_LIMIT: usize = 1024;
const MAX_LIMIT: usize = 64 * 1024;
/// With a limit of speed, chunks are small enough for so many in a second.
const CHUNKS_PER_SECOND: usize = 40;
/// But no smaller than this.
const LEAST_LIMIT: usize = 256;

/// How chunks are read.
#[derive(Clone)]
pub(super) struct Order {
    pub exporter: Exporter,
    pub selection: Arc<Selection>,
    pub pause: watch::Receiver<bool>,
}

/// How large chunks are, as it was found to be good.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Rows.
    limit: usize,
    /// When a chunk ends where it is.
    patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { limit: FIRST_LIMIT, patience: LONGEST_CHUNK }
    }
}

impl Pace {
    /// A chunk of so many rows was cut off. `advanced`: not in front of the first one.
    fn cut_off(mut self, rows: usize, advanced: bool) -> Pace {
        self.limit = (rows / 2).max(1);
        match (advanced, rows) {
            (true, _) => self.in_time(),
            (false, 0..=1) => self.patience = self.patience.saturating_mul(2),
            (false, _) => {}
        }
        self
    }

    fn in_time(&mut self) {
        self.patience = (self.patience / 2).max(LONGEST_CHUNK);
    }
}

/// The session that reads what tables are like, and writes marks.
pub(super) type Shared = Arc<Mutex<Session>>;

/// Reads chunks until it is dropped.
pub(super) struct Ahead {
    reads: mpsc::Receiver<Result<Option<Read>, SnapshotError>>,
    _reader: AbortOnDropHandle<()>,
}

/// A chunk as it was read.
pub(super) struct Read {
    pub seen: Visibility,
    pub relation: Arc<Relation>,
    /// The key's columns.
    pub key: Vec<String>,
    /// These are rows that were asked for by their keys.
    pub asked: bool,
    /// Nothing of what was to be read is missing.
    pub whole: bool,
    pub batches: Vec<Batch>,
    /// The table has no row behind them.
    pub ends: bool,
    /// Nothing is selected behind them.
    pub last: bool,
    /// What is done when these rows are.
    pub progress: Progress,
    /// Of the next chunk.
    pub pace: Pace,
}

impl Read {
    /// The rows, encoded.
    pub fn rows(&self) -> impl Iterator<Item = &[u8]> {
        self.batches.iter().flat_map(rows_of)
    }

    /// Where the key is in a row.
    pub fn places(&self) -> Vec<usize> {
        let place = |name: &String| self.relation.columns.iter().position(|column| column.name == *name);
        self.key.iter().filter_map(place).collect()
    }

    /// The key of an encoded row as literals that PostgreSQL reads as the same values.
    pub fn key_of(&self, row: &[u8]) -> Result<Vec<String>, SnapshotError> {
        let row = ChangeView::parse(row).ok().and_then(|view| view.after).ok_or_else(keyless)?;
        literals(&row, &self.places())
    }
}

/// The values of a row at these places as literals that PostgreSQL reads as the same values.
pub(super) fn literals(row: &RowView<'_>, places: &[usize]) -> Result<Vec<String>, SnapshotError> {
    let value = |place: &usize| literal(row.get(*place).ok_or_else(keyless)?).ok_or_else(unresumable);
    places.iter().map(value).collect()
}

fn keyless() -> SnapshotError {
    SnapshotError::new(Reason::Internal, "a row without its key")
}

fn rows_of(batch: &Batch) -> impl Iterator<Item = &[u8]> {
    let mut rest = batch.message.get(MESSAGE_PREFIX..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (row, behind) = split_first(rest)?;
        rest = behind;
        Some(row)
    })
}

impl Ahead {
    /// Begins with the rows of these keys, and behind `progress`.
    pub fn start(order: Order, session: Shared, asked: Vec<Vec<String>>, progress: Progress, pace: Pace) -> Self {
        let (sender, reads) = mpsc::channel(1);
        let reader = Reader {
            order,
            session,
            copier: None,
            tables: None,
            described: None,
            pace,
            most: most(progress.max_rows_per_second),
            pacer: Pacer::new(progress.max_rows_per_second),
            asked,
            progress,
        };
        Ahead { reads, _reader: AbortOnDropHandle::new(tokio::spawn(reader.run(sender))) }
    }

    /// The next chunk; `None` if there is no table to read any more. After that, after the last chunk and after an error
    /// there is nothing.
    pub async fn next(&mut self) -> Result<Option<Read>, SnapshotError> {
        match self.reads.recv().await {
            Some(read) => read,
            None => Err(interrupted("the reader of the rows has ended")),
        }
    }
}

/// Rows of a chunk at most.
fn most(rows_per_second: u32) -> usize {
    match rows_per_second as usize {
        0 => MAX_LIMIT,
        rows => (rows / CHUNKS_PER_SECOND).clamp(LEAST_LIMIT, MAX_LIMIT),
    }
}

/// A table, and the answer of [`LIKENESS`] as long as it is like that.
struct Described {
    table: Table,
    likeness: Vec<u8>,
}

struct Reader {
    order: Order,
    session: Shared,
    copier: Option<Copier>,
    /// What is selected, until a table ends.
    tables: Option<Vec<Table>>,
    described: Option<Described>,
    pace: Pace,
    most: usize,
    pacer: Pacer,
    /// Keys of rows that are read first, if the table is still the one that `progress` is in.
    asked: Vec<Vec<String>>,
    progress: Progress,
}

impl Reader {
    async fn run(mut self, reads: mpsc::Sender<Result<Option<Read>, SnapshotError>>) {
        loop {
            let Ok(place) = reads.reserve().await else { return };
            self.pacer.ready().await;
            if self.order.pause.wait_for(|paused| !*paused).await.is_err() {
                return;
            }
            let read = self.chunk().await;
            let goes_on = matches!(&read, Ok(Some(read)) if !read.last);
            place.send(read);
            if !goes_on {
                return;
            }
        }
    }

    async fn chunk(&mut self) -> Result<Option<Read>, SnapshotError> {
        let selected = match self.tables.take() {
            Some(tables) => tables,
            None => {
                let session = self.session.lock().await;
                self.order.exporter.selected(&session.sql, &self.order.selection).await?
            }
        };
        let behind = selected.iter().filter(|table| table.relation.oid >= self.progress.oid);
        // Every table from here on may have been dropped meanwhile.
        let Some(table) = behind.min_by_key(|table| table.relation.oid) else { return Ok(None) };
        if table.relation.oid != self.progress.oid {
            self.asked.clear();
            self.progress.key.clear();
            self.progress.table_rows = 0;
            self.progress.oid = table.relation.oid;
        }
        self.progress.table = table.relation.qualified_name();
        let mut read = self.read(table).await?;
        if read.ends {
            let progress = &mut read.progress;
            progress.key.clear();
            progress.table_rows = 0;
            progress.oid = progress.oid.saturating_add(1);
            read.last = selected.iter().all(|table| table.relation.oid < progress.oid);
        } else {
            self.tables = Some(selected);
        }
        self.progress = read.progress.clone();
        Ok(Some(read))
    }

    async fn read(&mut self, table: &Table) -> Result<Read, SnapshotError> {
        for _ in 0..ATTEMPTS {
            let described = match self.described.take().filter(|known| known.table.relation.oid == table.relation.oid) {
                Some(described) => described,
                None => self.describe(table).await?,
            };
            if let Some(read) = self.read_as(&described).await? {
                self.described = Some(described);
                return Ok(read);
            }
        }
        Err(interrupted("a table changes faster than it can be read"))
    }

    /// What the table is like, and by what a transaction can tell that it is like that.
    async fn describe(&self, table: &Table) -> Result<Described, SnapshotError> {
        let session = self.session.lock().await;
        let sql = &session.sql;
        let publication = &self.order.exporter.publication;
        let statements = format!("DEALLOCATE ALL; {}", table::prepare_likeness(LIKENESS, sql.version()));
        sql.batch(&statements).await.map_err(refused)?;
        table::begin_locked(sql, &[]).await.map_err(refused)?;
        let statement = table::execute_likeness(LIKENESS, publication, table.relation.oid);
        let likeness = sql.one(&statement, &[]).await.map_err(refused)?;
        let likeness: String = likeness.try_get(0).map_err(|error| refused(error.into()))?;
        let name = (table.relation.schema.clone(), table.relation.table.clone());
        let found = table::tables(sql, publication, &[name]).await.map_err(refused)?;
        sql.batch("COMMIT").await.map_err(refused)?;
        let Some(table) = found.into_iter().find(|found| found.relation.oid == table.relation.oid) else {
            return Err(interrupted("a table was replaced while it was read"));
        };
        readable(std::slice::from_ref(&table), sql).await?;
        let Some(table) = super::wanted(table, &self.order.selection)? else {
            return Err(interrupted("a table is no longer selected"));
        };
        if table.key.is_empty() {
            Err(no_key(&table))
        } else {
            Ok(Described { table, likeness: likeness.into_bytes() })
        }
    }

    async fn copier(&mut self) -> Result<Copier, SnapshotError> {
        if let Some(copier) = self.copier.take() {
            return Ok(copier);
        }
        let session = self.session.lock().await;
        let mut copier = self.order.exporter.copier(&session).await?;
        let statement = table::prepare_likeness(LIKENESS, session.sql.version());
        copier.run(&statement).await.map_err(refused)?;
        Ok(copier)
    }

    /// One short transaction; `None`: the table is not like that any more.
    async fn read_as(&mut self, described: &Described) -> Result<Option<Read>, SnapshotError> {
        let Described { table, likeness } = described;
        let mut copier = self.copier().await?;
        let mut progress = self.progress.clone();
        if table.key != progress.key_columns {
            self.asked.clear();
            progress.key.clear();
            progress.key_columns = table.key.clone();
        }
        let relation = self.order.exporter.numbered(&table.relation);
        let asked = !self.asked.is_empty();
        let limit = self.pace.limit.min(self.most);
        let piece = self.pacer.piece().unwrap_or(limit);
        let statements = format!(
            "{} SET LOCAL statement_timeout = {}; SELECT pg_catalog.pg_current_snapshot(); {}; SET LOCAL statement_timeout = {};",
            table::begin_locked_statements(&[table.quoted()]),
            LONGEST_LIKENESS.as_millis(),
            table::execute_likeness(LIKENESS, &self.order.exporter.publication, table.relation.oid),
            self.pace.patience.as_millis()
        );
        let mut answers = copier.run(&statements).await.map_err(refused)?.into_iter();
        let mut answer = || answers.next().and_then(|row| row.into_iter().next().flatten()).unwrap_or_default();
        let seen = server::parse_snapshot(&String::from_utf8_lossy(&answer())).map_err(refused)?;
        if answer() != *likeness {
            copier.run("ROLLBACK").await.map_err(refused)?;
            self.copier = Some(copier);
            return Ok(None);
        }
        // Locks have been waited for without a snapshot.
        let began = Instant::now();
        let until = began + self.pace.patience;
        let key = table.key.clone();
        let mut read = Read {
            seen,
            relation,
            key,
            asked,
            whole: true,
            batches: Vec::new(),
            ends: false,
            last: false,
            progress,
            pace: self.pace,
        };
        if asked {
            let keys = std::mem::take(&mut self.asked);
            let query = table.select_keys(&keys);
            copier.send(&format!("COPY ({query}) TO STDOUT; COMMIT")).await.map_err(refused)?;
            let Copy { batches, rows, whole } = copy(&mut copier, &read.relation, until, 0).await?;
            self.pacer.count(rows);
            if whole {
                self.copier = Some(copier);
                self.pace.in_time();
            } else {
                self.pace = Pace { limit, ..self.pace.cut_off(keys.len(), rows > 0) };
            }
            (read.batches, read.whole, read.pace) = (batches, whole, self.pace);
            return Ok(Some(read));
        }
        let (mut left, mut bytes, mut done) = (limit, 0, 0);
        read.whole = loop {
            let asked = left.min(piece);
            let mut boundary = None;
            if table.filtered() {
                // The time of a chunk is that of the rows that are looked at, however few of them come.
                let boundary_at = table.select_boundary(&read.progress.key, asked);
                let Some(rows) = in_time(until, copier.run(&boundary_at)).await? else {
                    self.pace = self.pace.cut_off(done + asked, done > 0);
                    break false;
                };
                boundary = rows.into_iter().next().map(texts).transpose()?;
            }
            left -= asked;
            let query = match table.filtered() {
                true => table.select_between(&read.progress.key, boundary.as_deref().unwrap_or_default()),
                false => table.select_chunk(&read.progress.key, asked),
            };
            let commit = if left == 0 { "; COMMIT" } else { "" };
            copier.send(&format!("COPY ({query}) TO STDOUT{commit}")).await.map_err(refused)?;
            let Copy { batches, rows, whole } = copy(&mut copier, &read.relation, until, bytes).await?;
            bytes += batches.iter().map(|batch| batch.message.len()).sum::<usize>();
            self.pacer.count(rows);
            read.batches.extend(batches);
            if !whole {
                let looked_at = if table.filtered() || rows == 0 { asked } else { rows };
                self.pace = self.pace.cut_off(done + looked_at, done + rows > 0);
            }
            match boundary.filter(|_| whole) {
                Some(boundary) => read.progress.key = boundary,
                None => {
                    read.ends = whole && (table.filtered() || rows < asked);
                    let last = read.batches.last().and_then(|batch| rows_of(batch).last());
                    if let Some(last) = last.filter(|_| rows > 0) {
                        read.progress.key = read.key_of(last)?;
                    }
                }
            }
            done += asked;
            let slow = began.elapsed() >= CHUNK_TIME / 2 || !self.pacer.is_ready_by(began + CHUNK_TIME);
            let over = left == 0 || read.ends || bytes >= CHUNK_BYTES || slow;
            if !whole || over {
                break whole;
            }
            self.pacer.ready().await;
        };
        if read.whole {
            if left > 0 {
                copier.run("COMMIT").await.map_err(refused)?;
            }
            self.copier = Some(copier);
            self.pace.in_time();
            let took = began.elapsed();
            if took > CHUNK_TIME || bytes > CHUNK_BYTES {
                self.pace.limit = (limit / 2).max(1);
            } else if took < CHUNK_TIME / 2 && bytes < CHUNK_BYTES / 2 {
                self.pace.limit = (limit * 2).min(MAX_LIMIT);
            }
        }
        read.pace = self.pace;
        Ok(Some(read))
    }
}

/// `None`: it has taken longer, and the session can only be dropped.
async fn in_time<T>(
    until: Instant,
    what: impl Future<Output = postgres::Result<T>>,
) -> Result<Option<T>, SnapshotError> {
    match tokio::time::timeout_at(until, what).await {
        Err(_) => Ok(None),
        Ok(Err(error)) if is_timeout(&error) => Ok(None),
        Ok(done) => done.map(Some).map_err(refused),
    }
}

/// The server has given up by itself.
fn is_timeout(error: &postgres::Error) -> bool {
    error.sqlstate() == Some("57014")
}

/// Rows of one statement.
struct Copy {
    batches: Vec<Batch>,
    rows: usize,
    /// All of them. Otherwise the connection is in the middle of them.
    whole: bool,
}

/// Takes what a COPY gives, for a chunk that has so many bytes already, up to what a chunk may have.
async fn copy(
    copier: &mut Copier,
    relation: &Arc<Relation>,
    until: Instant,
    mut bytes: usize,
) -> Result<Copy, SnapshotError> {
    let mut encoder = Encoder::new(relation.clone());
    let mut copy = Copy { batches: Vec::new(), rows: 0, whole: false };
    while !copy.whole {
        match copier.copied() {
            Ok(Some(Copied::Row(line))) => {
                copy.rows += 1;
                let Some(batch) = encoder.add(line)? else { continue };
                bytes += batch.message.len();
                copy.batches.push(batch);
                if bytes >= 2 * CHUNK_BYTES || Instant::now() >= until {
                    break;
                }
            }
            Ok(Some(Copied::End)) => copy.whole = true,
            Ok(None) => {
                if in_time(until, copier.fill()).await?.is_none() {
                    break;
                }
            }
            Err(error) if is_timeout(&error) => break,
            Err(error) => return Err(refused(error)),
        }
    }
    copy.batches.extend(encoder.take());
    Ok(copy)
}

fn unresumable() -> SnapshotError {
    SnapshotError::new(Reason::SnapshotImpossible, "a key that is not UTF-8 cannot be resumed after")
}

/// The columns of a key.
fn texts(row: Vec<Option<Vec<u8>>>) -> Result<Vec<String>, SnapshotError> {
    let text = |value: Option<Vec<u8>>| value.and_then(|value| String::from_utf8(value).ok());
    row.into_iter().map(text).collect::<Option<_>>().ok_or_else(unresumable)
}

fn literal(value: Value<'_>) -> Option<String> {
    Some(match value {
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) if value.is_nan() => "NaN".to_owned(),
        Value::Float(f64::INFINITY) => "Infinity".to_owned(),
        Value::Float(f64::NEG_INFINITY) => "-Infinity".to_owned(),
        // The shortest text that gives the same value back.
        Value::Float(value) => format!("{value:?}"),
        Value::Bytes(bytes) => bytes.iter().fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}")),
        Value::Text(text) => text.to_owned(),
        Value::Null | Value::Unchanged | Value::Absent | Value::RawText(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_read_back_as_the_same_values() {
        let read = |value| literal(value).unwrap();
        assert_eq!(read(Value::Float(0.1)), "0.1");
        assert_eq!(read(Value::Float(f64::from(1.1_f32))).parse::<f32>().unwrap(), 1.1);
        assert_eq!(read(Value::Float(5e-324)).parse::<f64>().unwrap(), 5e-324);
        assert_eq!(read(Value::Float(f64::NEG_INFINITY)), "-Infinity");
        assert_eq!(read(Value::Bytes(&[0, 0xff])), "\\x00ff");
        assert_eq!(read(Value::Int(i64::MIN)), "-9223372036854775808");
        assert_eq!(read(Value::Bool(true)), "true");
        assert_eq!(literal(Value::Null), None);
    }

    /// Chunks get smaller, and the row that is left has all the time it takes.
    #[test]
    fn what_takes_too_long_comes_in_the_end() {
        let (mut pace, mut attempts) = (Pace::default(), 0);
        while pace.patience < Duration::from_secs(20) {
            pace = pace.cut_off(pace.limit, false);
            attempts += 1;
        }
        assert_eq!((pace.limit, attempts), (1, 10 + 5));
        pace = pace.cut_off(1, true);
        assert!(pace.patience > Duration::from_secs(10), "the next one may be like it");
        (0..10).for_each(|_| pace.in_time());
        assert_eq!(pace.patience, LONGEST_CHUNK);
        assert_eq!(Pace::default().cut_off(600, true).limit, 300);
    }

    #[test]
    fn a_limit_of_speed_makes_chunks_small() {
        assert_eq!([most(0), most(1), most(20_000), most(u32::MAX)], [MAX_LIMIT, LEAST_LIMIT, 500, MAX_LIMIT]);
    }
}

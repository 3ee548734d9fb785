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
        copier::{Copied, Copier},
        server,
        table::{self, Table},
    },
    reason::Reason,
    selection::Selection,
    wire::{
        block::MESSAGE_PREFIX,
        rows::{ChangeView, split_first},
        token::Progress,
    },
};

/// How long a chunk's transaction should be open.
const CHUNK_TIME: Duration = Duration::from_millis(200);
/// When a chunk ends where it is, whatever it has.
const LONGEST_CHUNK: Duration = Duration::from_millis(700);
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
    pub batches: Vec<Batch>,
    /// The table has no row behind them.
    pub ends: bool,
    /// Nothing is selected behind them.
    pub last: bool,
    /// What is done when these rows are.
    pub progress: Progress,
    /// How many rows the next chunk should have.
    pub limit: usize,
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
        let malformed = || SnapshotError::new(Reason::Internal, "a row without its key");
        let row = ChangeView::parse(row).ok().and_then(|view| view.after).ok_or_else(malformed)?;
        let mut key = Vec::new();
        for place in self.places() {
            let value = row.get(place).ok_or_else(malformed)?;
            key.push(literal(value).ok_or_else(unresumable)?);
        }
        Ok(key)
    }
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
    /// Begins behind `progress`, with chunks of `limit` rows or a few if that is 0.
    pub fn start(order: Order, session: Shared, progress: Progress, limit: usize) -> Self {
        let (sender, reads) = mpsc::channel(1);
        let reader = Reader {
            order,
            session,
            copier: None,
            tables: None,
            described: None,
            limit: if limit == 0 { FIRST_LIMIT } else { limit },
            most: most(progress.max_rows_per_second),
            pacer: Pacer::new(progress.max_rows_per_second),
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
    limit: usize,
    most: usize,
    pacer: Pacer,
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
            progress.key.clear();
            progress.key_columns = table.key.clone();
        }
        let relation = self.order.exporter.numbered(&table.relation);
        let limit = self.limit.min(self.most);
        let piece = self.pacer.piece().unwrap_or(limit);
        let mut statements = format!(
            "{} SELECT pg_catalog.pg_current_snapshot(); {};",
            table::begin_locked_statements(&[table.quoted()]),
            table::execute_likeness(LIKENESS, &self.order.exporter.publication, table.relation.oid)
        );
        if table.filtered() {
            // The time of a chunk is that of the rows that are looked at, however few of them come.
            statements.push_str(&table.select_boundary(&progress.key, limit.min(piece)));
        }
        let began = Instant::now();
        let mut answers = copier.run(&statements).await.map_err(refused)?.into_iter();
        let mut answer = || answers.next().and_then(|row| row.into_iter().next().flatten()).unwrap_or_default();
        let seen = server::parse_snapshot(&String::from_utf8_lossy(&answer())).map_err(refused)?;
        if answer() != *likeness {
            copier.run("ROLLBACK").await.map_err(refused)?;
            self.copier = Some(copier);
            return Ok(None);
        }
        let mut boundary = answers.next().map(texts).transpose()?;
        let key = table.key.clone();
        let mut read = Read { seen, relation, key, batches: Vec::new(), ends: false, last: false, progress, limit: 0 };
        let mut left = limit;
        let mut bytes = 0;
        let whole = loop {
            let asked = left.min(piece);
            left -= asked;
            let query = match table.filtered() {
                true => table.select_between(&read.progress.key, boundary.as_deref().unwrap_or_default()),
                false => table.select_chunk(&read.progress.key, asked),
            };
            let commit = if left == 0 { "; COMMIT" } else { "" };
            copier.send(&format!("COPY ({query}) TO STDOUT{commit}")).await.map_err(refused)?;
            let Copy { batches, rows, whole } = copy(&mut copier, &read.relation, began, bytes).await?;
            bytes += batches.iter().map(|batch| batch.message.len()).sum::<usize>();
            self.pacer.count(rows);
            read.batches.extend(batches);
            if !whole {
                self.limit = ((limit - left - asked + rows) / 2).max(1);
            }
            match boundary.take().filter(|_| whole) {
                Some(boundary) => read.progress.key = boundary,
                None => {
                    read.ends = whole && (table.filtered() || rows < asked);
                    if let Some(last) = read.batches.last().and_then(|batch| rows_of(batch).last()) {
                        read.progress.key = read.key_of(last)?;
                    }
                }
            }
            let over = left == 0 || read.ends || bytes >= CHUNK_BYTES || began.elapsed() >= CHUNK_TIME / 2;
            if !whole || over {
                break whole;
            }
            self.pacer.ready().await;
            if table.filtered() {
                let rows = copier.run(&table.select_boundary(&read.progress.key, left.min(piece))).await;
                boundary = rows.map_err(refused)?.into_iter().next().map(texts).transpose()?;
            }
        };
        if whole {
            if left > 0 {
                copier.run("COMMIT").await.map_err(refused)?;
            }
            self.copier = Some(copier);
            let took = began.elapsed();
            if took > CHUNK_TIME || bytes > CHUNK_BYTES {
                self.limit = (limit / 2).max(1);
            } else if took < CHUNK_TIME / 2 && bytes < CHUNK_BYTES / 2 {
                self.limit = (limit * 2).min(MAX_LIMIT);
            }
        }
        read.limit = self.limit;
        Ok(Some(read))
    }
}

/// Rows of one statement.
struct Copy {
    batches: Vec<Batch>,
    rows: usize,
    /// All of them. Otherwise the connection is in the middle of them.
    whole: bool,
}

/// Takes what a COPY gives, for a chunk that `began` then and has so many bytes already, up to what a chunk may have.
async fn copy(
    copier: &mut Copier,
    relation: &Arc<Relation>,
    began: Instant,
    mut bytes: usize,
) -> Result<Copy, SnapshotError> {
    let mut encoder = Encoder::new(relation.clone());
    let mut copy = Copy { batches: Vec::new(), rows: 0, whole: false };
    while !copy.whole {
        match copier.copied().map_err(refused)? {
            Some(Copied::Row(line)) => {
                copy.rows += 1;
                let Some(batch) = encoder.add(line)? else { continue };
                bytes += batch.message.len();
                copy.batches.push(batch);
                if bytes >= 2 * CHUNK_BYTES || began.elapsed() >= LONGEST_CHUNK {
                    break;
                }
            }
            Some(Copied::End) => copy.whole = true,
            None => copier.fill().await.map_err(refused)?,
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

    #[test]
    fn a_limit_of_speed_makes_chunks_small() {
        assert_eq!([most(0), most(1), most(20_000), most(u32::MAX)], [MAX_LIMIT, LEAST_LIMIT, 500, MAX_LIMIT]);
    }
}

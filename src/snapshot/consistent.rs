//! Consistent mode: all rows as of one snapshot. One connection takes it after locking the tables; others import it and
//! copy ranges of pages ([TID range scans](https://www.postgresql.org/docs/14/release-14.html)).
//!
//! A lock that is waited for blocks those that come later, even where they would be compatible. So a reader that found an
//! ALTER TABLE in front of it would wait for the first connection, which nobody lets go. Readers are used if they can connect
//! and get their locks at once; if none does, the first one reads.
//!
//! The transaction holds back vacuum and DDL. It ends with the last row that is read, and when nobody has asked for rows for
//! `limits.snapshot_idle`: a client that stalls, is paused, or grants no credit, cannot hold it open.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{Exporter, Locked, Pacer, Session, encoder::Encoder, interrupted, refused};
use crate::{
    feed::{Batch, BoxFuture, Piece, Reservation, Rows, SnapshotError},
    model::Relation,
    postgres::{
        copier::{Copied, Copier},
        copy::CopyRows,
        table::{self, Table},
    },
    reason::Reason,
};

/// Pages of one range: 32 MiB of the usual 8 KiB.
const RANGE: i64 = 4096;
/// Connections that read, at most.
const READERS: usize = 3;
/// Pieces that wait for the stream.
const AHEAD: usize = 4;

/// One COPY.
struct Job {
    table: usize,
    relation: Arc<Relation>,
    query: String,
}

enum Message {
    Rows {
        relation: Arc<Relation>,
        batch: Batch,
    },
    /// A job of this table is done.
    Done(usize),
}

/// What readers share.
#[derive(Clone)]
struct Jobs {
    left: Arc<Mutex<VecDeque<Job>>>,
    messages: mpsc::Sender<Result<Message, SnapshotError>>,
    asked: Arc<Asked>,
    /// Its snapshot is what the readers read, and its locks are theirs. It goes with the last of them.
    _held: Option<Arc<Session>>,
}

/// When the stream last asked for rows.
struct Asked {
    last: Mutex<Instant>,
    idle: Duration,
    given_up: AtomicBool,
}

impl Asked {
    fn now(&self) {
        *self.last.lock() = Instant::now();
    }

    /// When patience ends.
    fn until(&self) -> Instant {
        *self.last.lock() + self.idle
    }
}

impl Jobs {
    /// Waits until there is room for the message; false: nobody wants it.
    async fn tell(&self, message: Message) -> bool {
        loop {
            let until = self.asked.until();
            if let Ok(place) = tokio::time::timeout_at(until, self.messages.reserve()).await {
                return place.map(|place| place.send(Ok(message))).is_ok();
            }
            if self.asked.until() <= Instant::now() {
                self.asked.given_up.store(true, Ordering::Relaxed);
                return false;
            }
        }
    }

    async fn rows(&self, job: &Job, batch: Option<Batch>) -> bool {
        match batch {
            Some(batch) => self.tell(Message::Rows { relation: job.relation.clone(), batch }).await,
            None => true,
        }
    }
}

/// A snapshot that is being read.
pub(super) struct Consistent {
    messages: mpsc::Receiver<Result<Message, SnapshotError>>,
    /// The tables with the jobs that are left of each.
    left: Vec<(Arc<Relation>, usize)>,
    /// Tables that ended and were not told of yet.
    ended: VecDeque<usize>,
    unfinished: usize,
    pacer: Pacer,
    asked: Arc<Asked>,
    _readers: Vec<AbortOnDropHandle<()>>,
    _reservation: Reservation,
}

pub(super) async fn start(
    exporter: &Exporter,
    locked: Locked,
    reservation: Reservation,
    pacer: Pacer,
) -> Result<Consistent, SnapshotError> {
    let exported = table::export_snapshot(&locked.session.sql).await.map_err(refused)?;
    let mut jobs = VecDeque::new();
    let mut left = Vec::new();
    for (number, found) in locked.tables.iter().enumerate() {
        let relation = exporter.numbered(&found.relation);
        let before = jobs.len();
        if found.parts.is_empty() {
            jobs.push_back(Job { table: number, relation: relation.clone(), query: found.select(None, &[]) });
        }
        for (part, pages) in &found.parts {
            for range in ranges(*pages) {
                let query = found.select(Some(part), &range.into_iter().collect::<Vec<_>>());
                jobs.push_back(Job { table: number, relation: relation.clone(), query });
            }
        }
        left.push((relation, jobs.len() - before));
    }
    let ended = left.iter().enumerate().filter(|(_, (_, jobs))| *jobs == 0).map(|(number, _)| number).collect();
    let unfinished = left.len();
    let names: Vec<String> = locked.tables.iter().map(Table::quoted).collect();
    let begin = table::begin_with_statements(&exported, &names);
    let mut readers = Vec::new();
    // One keeps up with a limit, and leaves the other cores alone.
    let most = if pacer.limits() { 1 } else { READERS };
    for _ in 0..jobs.len().clamp(1, most) {
        let opened = async {
            let mut copier = exporter.copier(&locked.session, &pacer).await?;
            copier.run(&begin).await.map_err(refused)?;
            Ok::<_, SnapshotError>(copier)
        };
        match opened.await {
            Ok(copier) => readers.push(Reader::Copier(copier)),
            Err(error) => {
                tracing::info!(%error, "rows are read over fewer connections");
                break;
            }
        }
    }
    let held = match readers.is_empty() {
        true => {
            readers.push(Reader::Holder(locked.session));
            None
        }
        false => Some(Arc::new(locked.session)),
    };
    let (sender, messages) = mpsc::channel(AHEAD);
    let asked =
        Arc::new(Asked { last: Mutex::new(Instant::now()), idle: exporter.patience.idle, given_up: false.into() });
    let jobs = Jobs { left: Arc::new(Mutex::new(jobs)), messages: sender, asked: asked.clone(), _held: held };
    let start = |reader| AbortOnDropHandle::new(tokio::spawn(read(reader, jobs.clone())));
    let readers = readers.into_iter().map(start).collect();
    Ok(Consistent { messages, left, ended, unfinished, pacer, asked, _readers: readers, _reservation: reservation })
}

/// Conditions that cut a table of so many pages. The last has no end.
fn ranges(pages: i64) -> Vec<Option<String>> {
    let count = (pages / RANGE).max(1);
    let condition = |number: i64| {
        let from = (number > 0).then(|| format!("ctid >= '({},0)'", number * RANGE));
        let to = (number + 1 < count).then(|| format!("ctid < '({},0)'", (number + 1) * RANGE));
        let both: Vec<String> = from.into_iter().chain(to).collect();
        (!both.is_empty()).then(|| both.join(" AND "))
    };
    (0..count).map(condition).collect()
}

/// Who copies rows.
enum Reader {
    Copier(Copier),
    /// The session that took the snapshot.
    Holder(Session),
}

/// Does jobs until none is left, or nobody listens.
async fn read(mut reader: Reader, jobs: Jobs) {
    loop {
        let Some(job) = jobs.left.lock().pop_front() else { return };
        let copied = match &mut reader {
            Reader::Copier(copier) => copy_rows(copier, &job, &jobs).await,
            Reader::Holder(session) => copy_rows_by_holder(session, &job, &jobs).await,
        };
        match copied {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                jobs.messages.send(Err(starts_over(error))).await.ok();
                return;
            }
        }
    }
}

/// The rows are those of one moment, which goes with the connections that hold it.
fn starts_over(error: SnapshotError) -> SnapshotError {
    match error.reason {
        Reason::SourceUnavailable | Reason::SnapshotInterrupted => interrupted(format!(
            "{error}; a consistent snapshot that was interrupted starts over when its stream is resumed"
        )),
        _ => error,
    }
}

async fn copy_rows(copier: &mut Copier, job: &Job, jobs: &Jobs) -> Result<bool, SnapshotError> {
    copier.send(&format!("COPY ({}) TO STDOUT", job.query)).await.map_err(refused)?;
    let mut encoder = Encoder::new(job.relation.clone());
    loop {
        let batch = match copier.copied().map_err(refused)? {
            Some(Copied::Row(line)) => encoder.add(line)?,
            Some(Copied::End) => break,
            None => {
                copier.fill().await.map_err(refused)?;
                continue;
            }
        };
        if batch.is_some() && !jobs.rows(job, batch).await {
            return Ok(false);
        }
    }
    Ok(jobs.rows(job, encoder.take()).await && jobs.tell(Message::Done(job.table)).await)
}

async fn copy_rows_by_holder(session: &Session, job: &Job, jobs: &Jobs) -> Result<bool, SnapshotError> {
    let mut rows = CopyRows::start(&session.sql, &job.query).await.map_err(refused)?;
    let mut encoder = Encoder::new(job.relation.clone());
    while let Some(line) = rows.next().await.map_err(refused)? {
        let batch = encoder.add(&line)?;
        if !jobs.rows(job, batch).await {
            return Ok(false);
        }
    }
    Ok(jobs.rows(job, encoder.take()).await && jobs.tell(Message::Done(job.table)).await)
}

impl Consistent {
    async fn piece(&mut self) -> Result<Option<Piece>, SnapshotError> {
        loop {
            if let Some(number) = self.ended.pop_front() {
                self.unfinished -= 1;
                return Ok(Some(Piece::TableEnd { relation: self.left[number].0.clone() }));
            }
            if self.unfinished == 0 {
                return Ok(None);
            }
            self.asked.now();
            self.pacer.ready().await;
            match self.messages.recv().await {
                Some(Ok(Message::Rows { relation, batch })) => {
                    self.pacer.count(batch.rows.into());
                    return Ok(Some(Piece::Rows { relation, batch }));
                }
                Some(Ok(Message::Done(number))) => {
                    self.left[number].1 -= 1;
                    if self.left[number].1 == 0 {
                        self.ended.push_back(number);
                    }
                }
                Some(Err(error)) => return Err(error),
                None if self.asked.given_up.load(Ordering::Relaxed) => {
                    return Err(interrupted(format!(
                        "nothing was taken of a consistent snapshot for {} s: its transaction on the primary was ended \
                         (limits.snapshot_idle), and it starts over when its stream is resumed",
                        self.asked.idle.as_secs()
                    )));
                }
                None => return Err(interrupted("the rows ended before their tables did")),
            }
        }
    }
}

impl Rows for Consistent {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Piece>, SnapshotError>> {
        Box::pin(self.piece())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_every_page_once() {
        assert_eq!(ranges(0), [None]);
        assert_eq!(ranges(RANGE * 2 - 1), [None]);
        let cut = |text: &str| Some(text.to_owned());
        assert_eq!(
            ranges(RANGE * 3 + 5),
            [cut("ctid < '(4096,0)'"), cut("ctid >= '(4096,0)' AND ctid < '(8192,0)'"), cut("ctid >= '(8192,0)'"),]
        );
    }
}

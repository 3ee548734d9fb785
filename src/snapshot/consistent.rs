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
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Exporter, Locked, Session,
    encoder::Encoder,
    interrupted,
    pacer::Pacer,
    pages::{self, Cut, Pages},
    refused,
};
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

/// Connections that read, at most.
const READERS: usize = 3;
/// Pieces that wait for the stream.
const AHEAD: usize = 4;

/// A range of a table's pages.
struct Job {
    table: usize,
    relation: Arc<Relation>,
    found: Arc<Table>,
    /// Where the pages are; `None`: everything.
    part: Option<(String, Pages)>,
}

impl Job {
    /// All of it, or these pages of its own.
    fn query(&self, pages: Option<Pages>) -> String {
        let part = self.part.as_ref().map(|(part, _)| part.as_str());
        let condition = pages.and_then(Pages::condition);
        self.found.select(part, condition.as_slice())
    }
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
    /// So does the place of the snapshot: a client that stalls keeps it no longer than the transaction.
    _permit: Arc<OwnedSemaphorePermit>,
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
    /// Waits until there is room for the message, and no longer than the transaction may be held for a stream that takes nothing; false:
    /// nobody wants it.
    async fn tell(&self, message: Result<Message, SnapshotError>) -> bool {
        loop {
            let until = self.asked.until();
            if let Ok(place) = tokio::time::timeout_at(until, self.messages.reserve()).await {
                return place.map(|place| place.send(message)).is_ok();
            }
            if self.asked.until() <= Instant::now() {
                self.asked.given_up.store(true, Ordering::Relaxed);
                return false;
            }
        }
    }
}

impl Jobs {
    /// Ends the snapshot with this error, which nobody may want to know either.
    async fn fail(&self, error: SnapshotError) {
        self.tell(Err(starts_over(error))).await;
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
    asked: Arc<Asked>,
    _readers: Vec<AbortOnDropHandle<()>>,
    _reservation: Reservation,
}

/// What a snapshot takes from others.
pub(super) struct Held {
    pub reservation: Reservation,
    pub permit: Arc<OwnedSemaphorePermit>,
}

pub(super) async fn start(
    exporter: &Exporter,
    locked: Locked,
    held: Held,
    rows_per_second: u32,
) -> Result<Consistent, SnapshotError> {
    let exported = table::export_snapshot(&locked.session.sql).await.map_err(refused)?;
    let mut jobs = VecDeque::new();
    let mut left = Vec::new();
    for (number, found) in locked.tables.iter().enumerate() {
        let relation = exporter.numbered(&found.relation);
        let before = jobs.len();
        let found = Arc::new(found.clone());
        let mut add = |part| {
            jobs.push_back(Job { table: number, relation: relation.clone(), found: found.clone(), part });
        };
        if found.parts.is_empty() {
            add(None);
        }
        for (part, pages) in &found.parts {
            pages::ranges(*pages).for_each(|range| add(Some((part.clone(), range))));
        }
        left.push((relation, jobs.len() - before));
    }
    let ended = left.iter().enumerate().filter(|(_, (_, jobs))| *jobs == 0).map(|(number, _)| number).collect();
    let unfinished = left.len();
    let names: Vec<String> = locked.tables.iter().map(Table::quoted).collect();
    let begin = table::begin_with_statements(&exported, &names);
    let mut readers = Vec::new();
    // One keeps up with a limit, and leaves the other cores alone.
    let most = if rows_per_second > 0 { 1 } else { READERS };
    for _ in 0..jobs.len().clamp(1, most) {
        let opened = async {
            let mut copier = exporter.copier(&locked.session).await?;
            copier.run(&begin).await.map_err(refused)?;
            Ok::<_, SnapshotError>(copier)
        };
        match opened.await {
            Ok(copier) => readers.push(Connection::Copier(copier)),
            Err(error) => {
                tracing::info!(%error, "rows are read over fewer connections");
                break;
            }
        }
    }
    let Held { reservation, permit } = held;
    let session = match readers.is_empty() {
        true => {
            readers.push(Connection::Holder(locked.session));
            None
        }
        false => Some(Arc::new(locked.session)),
    };
    let (sender, messages) = mpsc::channel(AHEAD);
    let asked =
        Arc::new(Asked { last: Mutex::new(Instant::now()), idle: exporter.patience.idle, given_up: false.into() });
    let left_jobs = Arc::new(Mutex::new(jobs));
    let jobs = Jobs { left: left_jobs, messages: sender, asked: asked.clone(), _held: session, _permit: permit };
    let start = |connection| {
        let pacer = Pacer::new(rows_per_second);
        let reader = Reader { connection, jobs: jobs.clone(), cut: Cut::new(pacer.piece(), rows_per_second), pacer };
        AbortOnDropHandle::new(tokio::spawn(reader.run()))
    };
    let readers = readers.into_iter().map(start).collect();
    Ok(Consistent { messages, left, ended, unfinished, asked, _readers: readers, _reservation: reservation })
}

/// Who copies rows.
enum Connection {
    Copier(Copier),
    /// The session that took the snapshot.
    Holder(Session),
}

struct Reader {
    connection: Connection,
    jobs: Jobs,
    pacer: Pacer,
    cut: Cut,
}

impl Reader {
    /// Does jobs until none is left, or nobody listens.
    async fn run(mut self) {
        loop {
            let Some(job) = self.jobs.left.lock().pop_front() else { return };
            match self.read(&job).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    self.jobs.fail(error).await;
                    return;
                }
            }
        }
    }

    /// False: nobody listens.
    async fn read(&mut self, job: &Job) -> Result<bool, SnapshotError> {
        let mut encoder = Encoder::new(job.relation.clone());
        match &job.part {
            None => {
                if self.copy(job, &job.query(None), &mut encoder).await?.is_none() {
                    return Ok(false);
                }
            }
            Some((_, range)) => {
                let mut left = Some(*range);
                while let Some(pages) = self.cut.first(&mut left) {
                    match self.copy(job, &job.query(Some(pages)), &mut encoder).await? {
                        Some(rows) => self.cut.learn(pages, rows),
                        None => return Ok(false),
                    }
                }
            }
        }
        Ok(self.jobs.tell(Ok(Message::Done(job.table))).await)
    }

    /// The rows of one query, and how many they were; `None`: nobody listens.
    async fn copy(&mut self, job: &Job, query: &str, encoder: &mut Encoder) -> Result<Option<usize>, SnapshotError> {
        let mut hand = Hand { jobs: &self.jobs, job, pacer: &mut self.pacer };
        let rows = match &mut self.connection {
            Connection::Copier(copier) => copy_rows(copier, query, encoder, &mut hand).await?,
            Connection::Holder(session) => copy_rows_by_holder(session, query, encoder, &mut hand).await?,
        };
        let Some(rows) = rows else { return Ok(None) };
        Ok(hand.over(encoder.take()).await.then_some(rows))
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

/// Hands rows over, as fast as they may come.
struct Hand<'a> {
    jobs: &'a Jobs,
    job: &'a Job,
    pacer: &'a mut Pacer,
}

impl Hand<'_> {
    /// Behind the pause that the rows cost. False: nobody listens.
    async fn over(&mut self, batch: Option<Batch>) -> bool {
        let Some(batch) = batch else { return true };
        self.pacer.count(batch.rows as usize);
        let relation = self.job.relation.clone();
        let wanted = self.jobs.tell(Ok(Message::Rows { relation, batch })).await;
        self.pacer.ready().await;
        wanted
    }
}

async fn copy_rows(
    copier: &mut Copier,
    query: &str,
    encoder: &mut Encoder,
    hand: &mut Hand<'_>,
) -> Result<Option<usize>, SnapshotError> {
    copier.send(&format!("COPY ({query}) TO STDOUT")).await.map_err(refused)?;
    let mut rows = 0;
    loop {
        let batch = match copier.copied().map_err(refused)? {
            Some(Copied::Row(line)) => encoder.add(line)?,
            Some(Copied::End) => return Ok(Some(rows)),
            None => {
                copier.fill().await.map_err(refused)?;
                continue;
            }
        };
        rows += 1;
        if batch.is_some() && !hand.over(batch).await {
            return Ok(None);
        }
    }
}

async fn copy_rows_by_holder(
    session: &Session,
    query: &str,
    encoder: &mut Encoder,
    hand: &mut Hand<'_>,
) -> Result<Option<usize>, SnapshotError> {
    let mut copied = CopyRows::start(&session.sql, query).await.map_err(refused)?;
    let mut rows = 0;
    while let Some(line) = copied.next().await.map_err(refused)? {
        let batch = encoder.add(&line)?;
        rows += 1;
        if !hand.over(batch).await {
            return Ok(None);
        }
    }
    Ok(Some(rows))
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
            match self.messages.recv().await {
                Some(Ok(Message::Rows { relation, batch })) => return Ok(Some(Piece::Rows { relation, batch })),
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
    use tokio::sync::Semaphore;

    use super::*;

    /// A stream that takes nothing, with all there is room for, does not keep a reader that fails from letting go.
    #[tokio::test]
    async fn an_error_that_nobody_takes_is_given_up() {
        let places = Arc::new(Semaphore::new(1));
        let permit = Arc::new(places.clone().try_acquire_owned().unwrap());
        let (messages, mut stalled) = mpsc::channel(1);
        let (last, idle) = (Mutex::new(Instant::now()), Duration::from_millis(50));
        let asked = Arc::new(Asked { last, idle, given_up: false.into() });
        let jobs = Jobs { left: Arc::default(), messages, asked: asked.clone(), _held: None, _permit: permit };
        assert!(jobs.tell(Ok(Message::Done(0))).await);
        let failing = async move { jobs.fail(interrupted("terminating connection")).await };
        tokio::time::timeout(Duration::from_secs(20), failing).await.expect("it waits no longer than for rows");
        assert!(asked.given_up.load(Ordering::Relaxed) && places.available_permits() == 1);
        assert!(matches!(stalled.recv().await, Some(Ok(_))) && stalled.recv().await.is_none());
    }
}

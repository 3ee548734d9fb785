//! Consistent mode: all rows as of one snapshot. One connection takes it after locking the tables; others import it and
//! copy ranges of pages ([TID range scans](https://www.postgresql.org/docs/14/release-14.html)).
//!
//! A lock that is waited for blocks those that come later, even where they would be compatible. So a reader that found an
//! ALTER TABLE in front of it would wait for the first connection, which nobody lets go. Readers are used if they get their
//! locks at once; if none does, the first one reads.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::mpsc;
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

type Jobs = Arc<Mutex<VecDeque<Job>>>;
type Messages = mpsc::Sender<Result<Message, SnapshotError>>;

/// A snapshot that is being read.
pub(super) struct Consistent {
    messages: mpsc::Receiver<Result<Message, SnapshotError>>,
    /// The tables with the jobs that are left of each.
    left: Vec<(Arc<Relation>, usize)>,
    /// Tables that ended and were not told of yet.
    ended: VecDeque<usize>,
    unfinished: usize,
    pacer: Pacer,
    _readers: Vec<AbortOnDropHandle<()>>,
    /// Its snapshot is what the readers read, and its locks are theirs.
    _holder: Option<Session>,
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
    for _ in 0..jobs.len().clamp(1, READERS) {
        let mut copier = exporter.copier(&locked.session).await?;
        match copier.run(&begin).await {
            Ok(_) => readers.push(Reader::Copier(copier)),
            Err(error) => {
                tracing::info!(%error, "rows are read over fewer connections");
                break;
            }
        }
    }
    let holder = match readers.is_empty() {
        true => {
            readers.push(Reader::Holder(locked.session));
            None
        }
        false => Some(locked.session),
    };
    let jobs: Jobs = Arc::new(Mutex::new(jobs));
    let (sender, messages) = mpsc::channel(AHEAD);
    let start = |reader| AbortOnDropHandle::new(tokio::spawn(read(reader, jobs.clone(), sender.clone())));
    let readers = readers.into_iter().map(start).collect();
    Ok(Consistent {
        messages,
        left,
        ended,
        unfinished,
        pacer,
        _readers: readers,
        _holder: holder,
        _reservation: reservation,
    })
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
async fn read(mut reader: Reader, jobs: Jobs, messages: Messages) {
    loop {
        let Some(job) = jobs.lock().pop_front() else { return };
        let copied = match &mut reader {
            Reader::Copier(copier) => copy_rows(copier, &job, &messages).await,
            Reader::Holder(session) => copy_rows_by_holder(session, &job, &messages).await,
        };
        match copied {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                messages.send(Err(starts_over(error))).await.ok();
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

async fn copy_rows(copier: &mut Copier, job: &Job, messages: &Messages) -> Result<bool, SnapshotError> {
    copier.send(&format!("COPY ({}) TO STDOUT", job.query)).await.map_err(refused)?;
    let mut encoder = Encoder::new(job.relation.clone());
    loop {
        match copier.next().map_err(refused)? {
            Some(Copied::Row(line)) => {
                if let Some(batch) = encoder.add(line)?
                    && !hand_over(job, batch, messages).await
                {
                    return Ok(false);
                }
            }
            Some(Copied::End) => return Ok(finish(encoder, job, messages).await),
            None => copier.fill().await.map_err(refused)?,
        }
    }
}

async fn copy_rows_by_holder(session: &Session, job: &Job, messages: &Messages) -> Result<bool, SnapshotError> {
    let mut rows = CopyRows::start(&session.sql, &job.query).await.map_err(refused)?;
    let mut encoder = Encoder::new(job.relation.clone());
    while let Some(line) = rows.next().await.map_err(refused)? {
        if let Some(batch) = encoder.add(&line)?
            && !hand_over(job, batch, messages).await
        {
            return Ok(false);
        }
    }
    Ok(finish(encoder, job, messages).await)
}

async fn finish(mut encoder: Encoder, job: &Job, messages: &Messages) -> bool {
    if let Some(batch) = encoder.take()
        && !hand_over(job, batch, messages).await
    {
        return false;
    }
    messages.send(Ok(Message::Done(job.table))).await.is_ok()
}

async fn hand_over(job: &Job, batch: Batch, messages: &Messages) -> bool {
    messages.send(Ok(Message::Rows { relation: job.relation.clone(), batch })).await.is_ok()
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

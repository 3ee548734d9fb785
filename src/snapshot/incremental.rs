//! Incremental mode: chunks in key order, each read in a short transaction with a snapshot of its own, with the stream's
//! changes between them.
//!
//! A chunk belongs behind a mark, a logical message written after it was read. Up to there the stream has delivered
//! every transaction that the chunk's snapshot does not see; what one of them touched is left out of the chunk, and the
//! rest is the newest state at that place. The usual rule, to drop what changed between two marks, keeps stale rows
//! on PostgreSQL: a transaction becomes visible after its commit record is written, so the chunk can be read after the record
//! of a change, and behind the low mark, without seeing it
//! ([DBLog](https://arxiv.org/abs/2010.12597) assumes that it cannot).
//!
//! # Reading ahead
//!
//! A mark takes a flush of the WAL, decoding and a sync of the journal, so the next chunk is read meanwhile ([`super::ahead`]).
//! It is as exact as if it had waited. What decides about a row is the chunk's own snapshot and the chunk's own mark, and of
//! these it is only asked
//!
//! - that the mark is written after the snapshot was taken. Then everything that the snapshot sees has its commit record in
//!   front of the mark, and no change that comes behind is older than the row. Marks are written here, one after
//!   another, each when its chunk is complete; how long it has lain by then does not matter;
//! - that every transaction in front of the mark which the snapshot does not see is looked at. The search begins at a floor
//!   up to which the snapshot sees everything. Snapshots are taken in the chunks' order, and what one sees the next
//!   sees too; so what the search for one chunk has found to be seen, it needs not look at for the next, although that one's
//!   snapshot was taken before the search ended ([`super::touched::Seen`]);
//! - that chunk and mark are on one history. The session that reads is on the server of the one that writes marks, on the
//!   same timeline, and both are given up together.
//!
//! Where a part of a chunk has to be read again, what was read behind it was never marked and is thrown away. Memory holds
//! what the stream sends, what waits for it or for its mark, and what is being read: three chunks.
//!
//! # Resting
//!
//! A client that stalls, is paused, or is busy with the changes in front of a chunk may want the next one in a year. After
//! `limits.snapshot_idle` its snapshot gives back what others wait for, sessions on the primary and the place among the
//! snapshots that are read, and takes them again when a chunk is wanted: what is lost is the chunk that was read ahead. The
//! journal keeps nothing for it meanwhile. Where that has left the last mark behind, the table is read from its beginning, as it is
//! for a client that resumes so late ([`super::moved`]).

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Session,
    ahead::{Ahead, Order, Pace, Read, Shared},
    away,
    encoder::Builder,
    interrupted,
    moved::Moved,
    refused, scan,
    touched::{Seen, Touched},
};
use crate::{
    failpoint,
    feed::{Batch, BoxFuture, Chunk, MARK_PREFIX, Piece, Reservation, Rows, SnapshotError},
    model::{Position, Visibility},
    postgres::table,
    reason::Reason,
    wire::{rows::ChangeView, token::Progress},
};

/// How long a mark may take to arrive while nothing else does.
const MARK_LAG: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Chunks that fail one after another although the source is there; more end the snapshot, to be resumed. An outage of the
/// source is no subscriber's error, however long it takes.
const FAILURES: u32 = 20;

type Pieces = mpsc::Sender<Result<Piece, SnapshotError>>;

/// A snapshot that is being read.
pub(super) struct Incremental {
    pieces: mpsc::Receiver<Result<Piece, SnapshotError>>,
    _placer: AbortOnDropHandle<()>,
    order: Order,
    place: Place,
}

/// The snapshot's place among those that are read at the same time.
#[derive(Clone)]
pub(super) struct Place {
    all: Arc<Semaphore>,
    /// `None`: it rests.
    held: Arc<parking_lot::Mutex<Option<Arc<OwnedSemaphorePermit>>>>,
}

impl Place {
    pub fn new(permit: Arc<OwnedSemaphorePermit>) -> Self {
        Place { all: permit.semaphore().clone(), held: Arc::new(Some(permit).into()) }
    }

    /// For another reader, whose predecessor may not have ended yet.
    fn hand_over(&self) -> Self {
        Place { all: self.all.clone(), held: Arc::new(self.held.lock().take().into()) }
    }

    /// Waits until it is held; false: never again.
    async fn take(&self) -> bool {
        if self.held.lock().is_some() {
            return true;
        }
        let Ok(permit) = self.all.clone().acquire_owned().await else { return false };
        *self.held.lock() = Some(Arc::new(permit));
        true
    }

    fn give_back(&self) {
        self.held.lock().take();
    }
}

/// `marker`: with a position at and in front of which all snapshots see everything.
pub(super) fn start(
    order: Order,
    place: Place,
    marker: Option<(Session, Position)>,
    run: u64,
    progress: Progress,
    reservation: Reservation,
) -> Incremental {
    let (sender, pieces) = mpsc::channel(1);
    let (marker, needed) = marker.unzip();
    let placer = Placer {
        order: order.clone(),
        place: place.clone(),
        run,
        session: marker.map(shared),
        needed,
        ahead: None,
        pace: Pace::default(),
        mark: 0,
        seen: Seen::default(),
        moved: None,
        last: Visibility::default(),
        progress,
        reservation: Some(reservation),
        waits: false,
    };
    Incremental { pieces, _placer: AbortOnDropHandle::new(tokio::spawn(placer.run(sender))), order, place }
}

impl Drop for Incremental {
    /// At once: the placer ends when the runtime comes to it.
    fn drop(&mut self) {
        self.place.give_back();
    }
}

impl Rows for Incremental {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Piece>, SnapshotError>> {
        Box::pin(async { self.pieces.recv().await.transpose() })
    }

    fn rewind(&mut self, progress: Progress) -> Option<u64> {
        let run = fastrand::u64(1..);
        let feed = &self.order.exporter.feed;
        let reservation = feed.reserve(feed.marks().borrow().tail);
        *self = start(self.order.clone(), self.place.hand_over(), None, run, progress, reservation);
        Some(run)
    }
}

fn shared(session: Session) -> Shared {
    Arc::new(Mutex::new(session))
}

/// Puts each chunk behind its mark.
struct Placer {
    order: Order,
    place: Place,
    run: u64,
    /// Writes marks, and tells the reader what tables are like.
    session: Option<Shared>,
    /// What the journal must have when the first chunk looks for what it does not see: everything behind this.
    needed: Option<Position>,
    /// `None`: begins anew behind `progress`.
    ahead: Option<Ahead>,
    /// What the reader had found to be good.
    pace: Pace,
    /// Number of the last mark.
    mark: u64,
    seen: Seen,
    /// Of the table that the rows have come to; `None`: not known yet.
    moved: Option<Moved>,
    /// What the last chunk's snapshot saw.
    last: Visibility,
    /// Up to and including the last chunk.
    progress: Progress,
    /// Keeps in the journal what the search for the next chunk needs; `None`: it has rested.
    reservation: Option<Reservation>,
    /// The last chunk came no further: its first row waits for a transaction that is in the stream and not to be seen yet.
    waits: bool,
}

impl Placer {
    async fn run(mut self, pieces: Pieces) {
        let mut failures = 0;
        let mut pause = FIRST_PAUSE;
        while let Some(place) = self.wanted(&pieces).await {
            let piece = match self.chunk().await {
                Ok(Some(chunk)) => {
                    failures = 0;
                    pause = FIRST_PAUSE;
                    Ok(Piece::Chunk(chunk))
                }
                Ok(None) => {
                    self.rest();
                    continue;
                }
                Err(error) => {
                    self.ahead = None;
                    self.session = None;
                    self.seen = Seen::default();
                    let passes = match error.reason {
                        Reason::SourceUnavailable => true,
                        Reason::SnapshotInterrupted => {
                            failures += 1;
                            failures <= FAILURES
                        }
                        Reason::PositionExpired if self.reservation.is_none() => {
                            self.moved = Some(from_the_beginning(&mut self.progress));
                            failures += 1;
                            failures <= FAILURES
                        }
                        _ => false,
                    };
                    if !passes {
                        Err(error)
                    } else {
                        tracing::info!(reason = error.reason.as_str(), %error, "a chunk is read again");
                        Ok(Piece::Void(self.mark))
                    }
                }
            };
            let retry = matches!(piece, Ok(Piece::Void(_))) || std::mem::take(&mut self.waits);
            let ends = matches!(&piece, Err(_) | Ok(Piece::Chunk(Chunk { last: true, .. })));
            place.send(piece);
            if ends {
                return;
            }
            if retry && !failpoint::planted("snapshot_hurries") {
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Waits until a chunk is wanted and may be read; `None`: never again.
    async fn wanted<'a>(&mut self, pieces: &'a Pieces) -> Option<mpsc::Permit<'a, Result<Piece, SnapshotError>>> {
        let mut pause = self.order.pause.clone();
        let mut wanted = std::pin::pin!(async {
            let place = pieces.reserve().await.ok()?;
            pause.wait_for(|paused| !*paused).await.ok()?;
            Some(place)
        });
        let place = match tokio::time::timeout(self.idle(), &mut wanted).await {
            Ok(place) => place?,
            Err(_) => {
                self.rest();
                wanted.await?
            }
        };
        self.place.take().await.then_some(place)
    }

    fn idle(&self) -> Duration {
        self.order.exporter.patience.idle
    }

    /// Gives back what others may want, until a chunk is wanted.
    fn rest(&mut self) {
        tracing::info!(
            table = self.progress.table,
            rows = self.progress.rows,
            "a snapshot rests, since nobody takes its rows"
        );
        (self.ahead, self.session) = (None, None);
        self.place.give_back();
        self.seen = Seen::default();
        self.reservation = None;
    }

    /// The next chunk, and what of it holds at its mark; `None`: it is paused for long.
    async fn chunk(&mut self) -> Result<Option<Chunk>, SnapshotError> {
        let idle = self.idle();
        let session = match &self.session {
            Some(session) => session.clone(),
            None => {
                let session = self.order.exporter.session().await?;
                self.needed = Some(session.needed);
                self.session.insert(shared(session)).clone()
            }
        };
        let moved = match &mut self.moved {
            Some(moved) => moved,
            None => {
                let known = Moved::resumed(&*self.order.exporter.feed, &self.progress).await?;
                self.moved.insert(known.unwrap_or_else(|| from_the_beginning(&mut self.progress)))
            }
        };
        let start = || {
            let (asked, progress) = (moved.ask(&self.last), self.progress.clone());
            Ahead::start(self.order.clone(), session.clone(), asked, progress, self.pace)
        };
        let read = tokio::select! {
            read = self.ahead.get_or_insert_with(start).next() => read?,
            () = paused_for(self.order.pause.clone(), idle) => return Ok(None),
        };
        let floor = match &read {
            Some(read) => Some(self.seen.before(&*self.order.exporter.feed, &read.seen).await?),
            None => None,
        };
        if self.needed.take().is_some_and(|needed| self.order.exporter.feed.window().is_behind(needed)) {
            return Err(interrupted("the journal has left behind what a chunk may not see"));
        }
        self.mark += 1;
        let content = content(self.run, self.mark);
        table::emit_mark(&session.lock().await.sql, MARK_PREFIX, &content).await.map_err(refused)?;
        let (Some(read), Some(floor)) = (read, floor) else {
            let (mark, progress) = (self.mark, self.progress.clone());
            let none = Chunk { mark, relation: None, batches: Vec::new(), ended: Vec::new(), progress, last: true };
            return Ok(Some(none));
        };
        self.pace = read.pace;
        self.place(read, floor, &content).await.map(Some)
    }

    /// The rows that no transaction touched which the chunk's snapshot does not see, of those up to the mark.
    async fn place(&mut self, read: Read, floor: Position, content: &str) -> Result<Chunk, SnapshotError> {
        let by_key = || by_key(&read);
        let (oid, rows) = (read.relation.oid, OnceLock::new());
        let feed = &*self.order.exporter.feed;
        let mut moved = match self.moved.take() {
            Some(moved) if moved.is_of(oid, &read.key) => moved,
            _ => Moved::of(oid, &read.key),
        };
        let touched = Touched { feed, oid, key: &read.key, find: &by_key, rows, asked: read.asked };
        let marked = touched.up_to(floor, &mut self.seen, &read.seen, content, &mut moved);
        let marked = scan::while_it_grows(feed.marks(), MARK_LAG, marked).await;
        let moved = self.moved.insert(moved);
        let left = marked.ok_or_else(|| away("a mark of the snapshot has not arrived"))??;
        if let Some(floor) = self.seen.floor() {
            self.reservation = Some(feed.reserve(floor));
        }
        if read.asked {
            let came = if read.whole { None } else { Some(by_key()?) };
            moved.answered(came.as_ref());
        }
        self.last = read.seen.clone();
        let mut progress = read.progress.clone();
        let (mut ended, mut last) = (Vec::new(), read.last);
        let ends = read.ends && left.again.is_none();
        if moved.is_too_much() {
            (self.ahead, last, self.waits) = (None, false, true);
            progress.oid = oid;
            *moved = from_the_beginning(&mut progress);
        } else if left.again.is_some() || ends && !moved.is_empty() {
            if ends {
                moved.is_sent();
            }
            // What was read behind is read again too.
            (self.ahead, last) = (None, false);
            let kept = left.again.unwrap_or_else(|| read.rows().count());
            self.waits = kept == 0 && !moved.is_due(&read.seen);
            match kept.checked_sub(1).and_then(|last| read.rows().nth(last)) {
                Some(row) => {
                    progress.oid = oid;
                    progress.key = read.key_of(row)?;
                }
                None => progress = self.progress.clone(),
            }
        } else if read.ends {
            ended.push(read.relation.clone());
        } else if !read.asked && moved.is_due(&read.seen) {
            self.ahead = None;
        }
        progress.owed_after = moved.owed_after();
        let batches = match (left.rows, left.again) {
            (None, None) => read.batches,
            (rows, again) => kept(&read, rows, again.unwrap_or(usize::MAX)),
        };
        let relation = (!batches.is_empty()).then_some(read.relation);
        self.progress = progress.clone();
        Ok(Chunk { mark: self.mark, relation, batches, ended, progress, last })
    }
}

/// Returns when it has been paused for so long at a stretch.
async fn paused_for(mut pause: watch::Receiver<bool>, idle: Duration) {
    while pause.wait_for(|paused| *paused).await.is_ok() {
        match tokio::time::timeout(idle, pause.wait_for(|paused| !*paused)).await {
            Err(_) => return,
            Ok(Err(_)) => break,
            Ok(Ok(_)) => {}
        }
    }
    std::future::pending().await
}

/// The table is read from its beginning.
fn from_the_beginning(progress: &mut Progress) -> Moved {
    progress.key.clear();
    Moved::of(progress.oid, &progress.key_columns)
}

/// Where each row is, by its key as changes have it.
fn by_key(read: &Read) -> Result<HashMap<Vec<u8>, usize>, SnapshotError> {
    let places = read.places();
    let mut by_key = HashMap::new();
    for (number, row) in read.rows().enumerate() {
        let key = ChangeView::parse(row).ok().and_then(|view| view.after).and_then(|row| row.key(&places));
        by_key.insert(key.ok_or_else(|| SnapshotError::new(Reason::Internal, "a row without its key"))?, number);
    }
    Ok(by_key)
}

/// Those of the first `most` rows that are left; `None`: all.
fn kept(read: &Read, left: Option<HashMap<Vec<u8>, usize>>, most: usize) -> Vec<Batch> {
    let left: Option<std::collections::HashSet<usize>> = left.map(|left| left.into_values().collect());
    let mut batches = Vec::new();
    let mut builder = Builder::default();
    for (number, row) in read.rows().enumerate().take(most) {
        if left.as_ref().is_none_or(|left| left.contains(&number)) {
            batches.extend(builder.add(row));
        }
    }
    batches.extend(builder.take());
    batches
}

/// What a mark holds: whose it is, and its number.
pub(super) fn content(run: u64, mark: u64) -> String {
    format!("{run:016x}:{mark}")
}

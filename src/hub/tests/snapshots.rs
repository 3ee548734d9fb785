//! Streams with rows, from whoever can read them.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    feed::{BoxFuture, Piece, Resume, Rows, Snapshot, SnapshotError, SnapshotMode, SnapshotRequest, Snapshots},
    hub::{Backfill, Principal, StartAt, Subscription, acknowledge, testing::*},
    lsn::Lsn,
    model::{Position, Visibility},
    wire::{
        pb::{self, event::Kind},
        token::{Handover, Progress},
    },
};

/// What was open when rows were read is open until here.
const UNTIL: Lsn = Lsn(100_000);

/// Consistent ones have no rows; incremental ones have them in a year.
#[derive(Default)]
struct Reader(AtomicU64);

struct Nothing {
    _request: SnapshotRequest,
    mode: SnapshotMode,
}

impl Rows for Nothing {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Piece>, SnapshotError>> {
        match self.mode {
            SnapshotMode::Consistent => Box::pin(async { Ok(None) }),
            SnapshotMode::Incremental => Box::pin(std::future::pending()),
        }
    }

    fn rewind(&mut self, to: Progress) -> Option<u64> {
        Some(to.id)
    }
}

impl Snapshots for Reader {
    fn begin(&self, request: SnapshotRequest) -> BoxFuture<'_, Result<Snapshot, SnapshotError>> {
        let id = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        let mode = request.mode.unwrap_or(SnapshotMode::Incremental);
        let asked = request.resume.clone().unwrap_or_default();
        let progress = Progress { id, incremental: mode == SnapshotMode::Incremental, ..asked };
        let running: Vec<u64> = (500..1700).collect();
        let seen = Visibility { xmin: 300, xmax: 1700, running };
        let handover = Handover { lineage: lineage().id(), until: UNTIL, seen };
        let (tables, start, rows) = (Vec::new(), at(100), Box::new(Nothing { _request: request, mode }));
        let snapshot = Snapshot { id, mode, tables, restarted: false, start, handover, progress, run: id, rows };
        Box::pin(std::future::ready(Ok(snapshot)))
    }
}

fn reads(mode: SnapshotMode) -> Subscription {
    Subscription { start: Some(StartAt::Snapshot { mode: Some(mode), max_rows_per_second: 0 }), ..named("a") }
}

async fn until(client: &mut Client, mut wanted: impl FnMut(&Kind) -> bool) -> Kind {
    loop {
        let kind = client.next().await.expect("the stream goes on").expect("without an error");
        if wanted(&kind) {
            return kind;
        }
    }
}

fn resume(told: &pb::Position) -> Resume {
    Resume { position: position(&Some(told.clone())), snapshot: told.snapshot.clone() }
}

/// What a commit or a progress tells to acknowledge.
async fn told(client: &mut Client, at: Position) -> Resume {
    let mut found = None;
    let is = |place: &Option<pb::Position>| place.is_some() && position(place) == at;
    until(client, |kind| {
        found = match kind {
            Kind::Commit(commit) if is(&commit.position) => commit.position.clone(),
            Kind::Progress(progress) if is(&progress.position) => progress.position.clone(),
            Kind::SnapshotBegin(begin) => panic!("{begin:?}"),
            _ => None,
        };
        found.is_some()
    })
    .await;
    resume(&found.unwrap())
}

async fn kept(client: &mut Client, sent: &Resume) {
    client.session.handle().acknowledge(sent.clone()).expect("it was sent");
    let is_kept = |kind: &Kind| match kind {
        Kind::Progress(progress) => progress.checkpoint.as_ref().is_some_and(|kept| resume(kept) == *sent),
        _ => false,
    };
    until(client, is_kept).await;
}

/// Neither what was open when the first rows were read nor an order is more than a checkpoint keeps; both would be.
#[tokio::test]
async fn an_order_waits_until_positions_have_room_for_it() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    world.hub.reads_rows_with(Arc::new(Reader::default()));
    let mut client = world.open(reads(SnapshotMode::Consistent)).await;
    until(&mut client, |kind| matches!(kind, Kind::SnapshotEnd(_))).await;
    let one = world.single(&orders, &["1"]);
    let resume = told(&mut client, one).await;
    assert!(resume.snapshot.len() > 2000, "{} bytes", resume.snapshot.len());
    kept(&mut client, &resume).await;

    let predicate = format!("id = '{}'", "x".repeat(1900));
    let start = Backfill::Start { tables: vec!["shop.orders".to_owned()], predicate, max_rows_per_second: 0 };
    let principal = Principal::default();
    let id = world.hub.backfill(&principal, "a", "", start).await.expect("ordered");
    let paused = world.hub.backfill(&principal, "a", &id, Backfill::Pause).await;
    assert_eq!(paused.expect("it waits"), id);
    let two = world.single(&orders, &["2"]);
    let resume = told(&mut client, two).await;
    kept(&mut client, &resume).await;
    // Whoever sent it, it is no reason to end the stream.
    let large = Resume { position: two, snapshot: Bytes::from(vec![0; acknowledge::KEPT + 1]) };
    client.session.handle().acknowledge(large).expect("it changes nothing");
    let three = world.single(&orders, &["3"]);
    let resume = told(&mut client, three).await;
    kept(&mut client, &resume).await;

    world.feed.keepalive(UNTIL.0);
    let begin = until(&mut client, |kind| matches!(kind, Kind::SnapshotBegin(_))).await;
    assert!(matches!(begin, Kind::SnapshotBegin(begin) if begin.snapshot_id == id));
    let resume = told(&mut client, at(UNTIL.0)).await;
    assert!((1900..=acknowledge::KEPT).contains(&resume.snapshot.len()), "{} bytes", resume.snapshot.len());
    kept(&mut client, &resume).await;
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Its rows are taken up while the stream is polled, when nobody is in the stream's span.
#[tokio::test]
async fn a_backfill_that_goes_back_says_whose_it_is() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _logged = tracing::subscriber::set_default(subscriber);
    let world = World::new();
    world.relation(1, "shop.orders", &["id"]);
    world.hub.reads_rows_with(Arc::new(Reader::default()));
    let mut client = world.open(named("mirror")).await;
    assert!(client.progress().await.caught_up);
    let tables = vec!["shop.orders".to_owned()];
    let start = Backfill::Start { tables, predicate: String::new(), max_rows_per_second: 0 };
    world.hub.backfill(&Principal::default(), "mirror", "", start).await.expect("ordered");
    until(&mut client, |kind| matches!(kind, Kind::SnapshotBegin(_))).await;
    world.feed.promote(world.feed.tail().lsn);
    until(&mut client, |kind| matches!(kind, Kind::TimelineChanged(_))).await;
    let logged = String::from_utf8(log.0.lock().clone()).expect("text");
    let line = logged.lines().find(|line| line.contains("rows are read again from here")).expect("a line");
    assert!(line.contains("stream{subscriber=\"mirror\""), "{line}");
}

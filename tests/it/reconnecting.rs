//! Everybody at once: a thousand streams that come back from old positions beside others that are live.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use walcast::wire::pb::{self, event::Kind};

use crate::harness::{
    Stage,
    client::{Client, Request},
    history::order,
    stage,
};

const STREAMS: usize = 1000;
const PER_CONNECTION: usize = 50;
/// Places from which they come back.
const PLACES: usize = 25;
const ROWS: i64 = 20;
const READERS: usize = 8;
/// Transactions that each of them reads.
const NEXT: usize = 6;

/// Transactions of 20 rows of 2 kB each, 6 MB in all; where each ends.
async fn filled(stage: &Stage) -> Vec<pb::Position> {
    for transaction in 0..150 {
        let sql = format!(
            "INSERT INTO t SELECT {transaction} * {ROWS} + i, repeat('x', 2000) FROM generate_series(1, {ROWS}) i"
        );
        stage.db.run(&sql).await;
    }
    let history = stage.everything().await;
    let commit = |kind: &Kind| match kind {
        Kind::Commit(commit) => commit.position.clone(),
        _ => None,
    };
    history.last().kinds().filter_map(commit).collect()
}

/// Reads what follows the transaction with this number. Each must be exactly the next.
async fn comes_back(client: Client, name: Option<String>, commits: Arc<Vec<pb::Position>>, from: usize) {
    let request = name.map_or_else(Request::new, |name| Request::named(&name)).after(&commits[from]);
    let mut stream = client.subscribe(&request).await;
    let mut next = from + 1;
    let mut ordinal = 0;
    while next <= from + NEXT {
        stream.log.events.clear();
        assert!(stream.pull().await, "{}", stream.describe());
        for record in &stream.log.events {
            match &record.kind {
                Kind::Opened(opened) => assert_eq!(opened.after.as_ref().map(order), Some(order(&commits[from]))),
                _ if next > from + NEXT => break,
                Kind::Begin(_) => ordinal = 0,
                Kind::Change(change) => {
                    ordinal += 1;
                    assert_eq!(change.ordinal, ordinal);
                }
                Kind::Commit(commit) => {
                    assert_eq!(
                        (commit.position.as_ref().map(order), ordinal),
                        (Some(order(&commits[next])), ROWS as u64)
                    );
                    next += 1;
                }
                _ => {}
            }
        }
    }
}

/// One that was there all along: the longest that a row took to arrive, in milliseconds.
async fn stays_live(client: Client, opened: Arc<AtomicBool>, stop: Arc<AtomicBool>) -> (u64, u64) {
    let mut stream = client.subscribe(&Request::new().latest().tables(&["public.ticks"])).await;
    let (mut seen, mut slowest) = (0, 0);
    while !stop.load(Ordering::SeqCst) {
        stream.log.events.clear();
        assert!(stream.pull().await, "{}", stream.describe());
        opened.store(true, Ordering::SeqCst);
        for record in &stream.log.events {
            let Kind::Change(change) = &record.kind else { continue };
            seen += 1;
            let sent = change.after_row.as_ref().and_then(|row| row.values.get(1)).and_then(|value| value.kind.clone());
            let Some(pb::value::Kind::IntValue(sent)) = sent else { panic!("{change:?}") };
            slowest = slowest.max(now_ms().saturating_sub(sent as u64));
        }
    }
    (seen, slowest)
}

/// One that reads everything from files and goes on until it is live: the next row after it came to the tail. Ticks go on.
async fn becomes_live(client: Client) -> usize {
    let mut stream = client.subscribe(&Request::new().earliest()).await;
    let (mut rows, mut caught_up) = (0, false);
    loop {
        stream.log.events.clear();
        assert!(stream.pull().await, "{}", stream.describe());
        for record in &stream.log.events {
            match &record.kind {
                Kind::Progress(progress) => caught_up |= progress.caught_up,
                Kind::Change(_) if caught_up => return rows,
                Kind::Change(_) => rows += 1,
                _ => {}
            }
        }
    }
}

fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_millis() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_come_back_at_once() {
    let stage = stage()
        .sql("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE ticks (id int PRIMARY KEY, at int8)")
        .env("WALCAST_SEGMENT_BYTES", "1MiB")
        .env("WALCAST_RING_BYTES", "1MiB")
        .env("WALCAST_CACHE_BYTES", "4MiB")
        .env("WALCAST_LIMITS_CATCH_UP_READERS", &READERS.to_string())
        .start()
        .await;
    let commits = Arc::new(filled(&stage).await);
    let journal = stage.hub.metric("walcast_journal_bytes").await;
    let before: BTreeMap<_, _> = stage.hub.metrics().await;
    let (stop, live) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let watching = tokio::spawn(stays_live(stage.client(), live.clone(), stop.clone()));
    crate::harness::eventually(Duration::from_secs(30), || async {
        live.load(Ordering::SeqCst).then_some(()).ok_or(())
    })
    .await;
    let ticks = Arc::new(AtomicU64::new(0));
    let ticking = tokio::spawn({
        let (db, stop, ticks) = (stage.cluster.connect().await, stop.clone(), ticks.clone());
        async move {
            while !stop.load(Ordering::SeqCst) {
                let n = ticks.fetch_add(1, Ordering::SeqCst);
                db.run(&format!("INSERT INTO ticks VALUES ({n}, {})", now_ms())).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });

    let started = Instant::now();
    let clients: Vec<Client> = (0..STREAMS / PER_CONNECTION).map(|_| stage.client()).collect();
    let mut streams = JoinSet::new();
    for n in 0..STREAMS {
        let name = (n % 2 == 0).then(|| format!("worker{n}"));
        let from = n % PLACES * 4;
        streams.spawn(comes_back(clients[n / PER_CONNECTION].clone(), name, commits.clone(), from));
    }
    let all: Vec<_> = (0..4).map(|n| tokio::spawn(becomes_live(clients[n].clone()))).collect();
    while let Some(read) = streams.join_next().await {
        read.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    }
    for stream in all {
        let rows = stream.await.expect("a stream that becomes live");
        assert!(rows >= 150 * ROWS as usize, "{rows} rows before it was live");
    }
    let took = started.elapsed();
    stop.store(true, Ordering::SeqCst);
    ticking.await.expect("ticks");
    stage.db.run(&format!("INSERT INTO ticks VALUES (-1, {})", now_ms())).await;
    let (seen, slowest) = watching.await.expect("a live stream");

    let after = stage.hub.metrics().await;
    let grown = |name: &str| after.get(name).unwrap_or(&0.0) - before.get(name).unwrap_or(&0.0);
    let (reads, bytes) = (grown("walcast_journal_reads_total"), grown("walcast_journal_bytes_read_total"));
    let delivered_bytes = (STREAMS * NEXT) as f64 * ROWS as f64 * 2000.0;
    let rests = grown("walcast_catch_up_rests_total");
    println!(
        "{STREAMS} streams, {:.0} MB, in {took:?}, {rests} rests; {reads} reads of {:.1} MB from a journal of {:.1} MB; \
         live: {seen} rows, the slowest {slowest} ms; {} MB",
        delivered_bytes / 1e6,
        bytes / 1e6,
        journal / 1e6,
        stage.hub.rss_peak() >> 20
    );
    // Alone, each would read one piece at least. How many bytes that are depends on who is let go on together.
    assert!(reads > 0.0 && reads < STREAMS as f64, "streams at the same place share reads: {reads}");
    assert!(bytes > reads * 128.0 * 1024.0, "pieces are large: {reads} reads of {bytes} bytes");
    assert!(rests > 0.0, "streams that catch up give way to a live one");
    assert!(seen > 10 && slowest < 5000, "live streams go on: {seen} rows, the slowest {slowest} ms");
    assert!(stage.hub.rss_peak() < 256 << 20, "{} MB", stage.hub.rss_peak() >> 20);
}

//! Rows that are already there, in the subscriber's own stream, and then every change: no seam.

use std::time::Duration;

use walcast::wire::pb::{self, SnapshotMode, event::Kind};

use crate::harness::{
    Shutdown, Stage,
    client::{Request, Stream},
    command::walcast,
    eventually,
    history::{End, History, StreamLog, lsn},
    parsed::{Cell, Parsed, Unit, What},
    stage,
    stage::held,
    validators::{self, Replica},
    workload::{self, Plan, Workload},
};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, name text)";

fn ended(log: &StreamLog) -> bool {
    log.kinds().any(|kind| matches!(kind, Kind::SnapshotEnd(_)))
}

async fn snapshot(stage: &Stage, request: Request) -> Stream {
    let mut stream = stage.client().subscribe(&request).await;
    let mut looked_at = 0;
    let new_end = |log: &StreamLog| {
        let new = &log.events[looked_at..];
        looked_at = log.events.len();
        new.iter().any(|record| matches!(record.kind, Kind::SnapshotEnd(_)))
    };
    stream.until("snapshot_end", new_end).await;
    stream
}

/// The rows of the snapshot, as `id`.
fn read(parsed: &Parsed<'_>) -> Vec<i64> {
    let mut ids: Vec<i64> = parsed.streams.iter().flatten().filter_map(read_id).collect();
    ids.sort_unstable();
    ids
}

fn read_id(unit: &Unit) -> Option<i64> {
    let Unit::Read { item, .. } = unit else { return None };
    match item.what.get("id") {
        Some(Cell::Int(id)) => Some(*id),
        other => panic!("{other:?}"),
    }
}

fn changed(parsed: &Parsed<'_>) -> Vec<i64> {
    let id = |what: &What| match what.get("id") {
        Some(Cell::Int(id)) => *id,
        other => panic!("{other:?}"),
    };
    parsed.items().map(|item| id(&item.what)).collect()
}

/// Rows and changes make the tables at the source.
async fn makes_the_source(stage: &Stage, history: &History, tables: &[&str], incremental: bool) {
    let parsed = held(history, validators::formal(history));
    let mut replica = Replica::default();
    replica.incremental = incremental;
    held(history, replica.apply(&parsed));
    let tables: Vec<String> = tables.iter().map(|table| (*table).to_owned()).collect();
    held(history, replica.equals_source(&stage.db, &tables).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_come_first_and_then_every_change() {
    let stage = stage()
        .sql(TABLE)
        .sql("INSERT INTO items SELECT n, 'item ' || n FROM generate_series(1, 1000) n")
        .start()
        .await;
    stage.db.run("INSERT INTO items VALUES (1001, 'after the slot')").await;
    let mut stream = snapshot(&stage, Request::new().snapshot(SnapshotMode::Consistent)).await;
    stage.db.run("UPDATE items SET name = 'later' WHERE id = 1; DELETE FROM items WHERE id = 2").await;
    stream.reaches(stage.goal().await).await;
    let history = stream.close();
    let parsed = held(&history, validators::formal(&history));
    assert_eq!(read(&parsed), (1..=1001).collect::<Vec<_>>());
    assert_eq!(changed(&parsed), [1, 2]);
    let begin = history.last().kinds().find_map(|kind| match kind {
        Kind::SnapshotBegin(begin) => Some(begin.clone()),
        _ => None,
    });
    let begin = begin.expect("snapshot_begin");
    assert_eq!((begin.mode(), begin.restarted), (SnapshotMode::Consistent, false));
    assert_eq!(begin.tables[0].table, "public.items");
    let ends: Vec<_> = history
        .last()
        .kinds()
        .filter_map(|kind| match kind {
            Kind::SnapshotTableEnd(end) => Some((end.table.clone(), end.rows, end.snapshot_id == begin.snapshot_id)),
            Kind::SnapshotEnd(end) => {
                assert!(end.position.is_some());
                Some((String::new(), end.rows, end.snapshot_id == begin.snapshot_id))
            }
            _ => None,
        })
        .collect();
    assert_eq!(ends, [("public.items".to_owned(), 1001, true), (String::new(), 1001, true)]);
    makes_the_source(&stage, &history, &["public.items"], false).await;
}

/// Transactions that are open when the snapshot is taken are not in the rows, wherever they wrote first, and come after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_in_flight_come_after_the_rows() {
    let stage = stage().sql(TABLE).sql("INSERT INTO items VALUES (1, 'old')").start().await;
    let other = stage.cluster.connect().await;
    other.run("BEGIN; INSERT INTO items VALUES (2, 'in flight'); UPDATE items SET name = 'new' WHERE id = 1").await;
    let prepared = stage.cluster.connect().await;
    prepared.run("BEGIN; SAVEPOINT s; INSERT INTO items VALUES (3, 'rolled back'); ROLLBACK TO s; INSERT INTO items VALUES (4, 'x')").await;
    stage.db.run("INSERT INTO items VALUES (5, 'before')").await;
    let mut stream = snapshot(&stage, Request::new().snapshot(SnapshotMode::Consistent)).await;
    stage.db.run("INSERT INTO items VALUES (6, 'after')").await;
    other.run("COMMIT").await;
    prepared.run("COMMIT").await;
    stream.reaches(stage.goal().await).await;
    let history = stream.close();
    let parsed = held(&history, validators::formal(&history));
    assert_eq!(read(&parsed), [1, 5]);
    assert_eq!(changed(&parsed), [6, 2, 1, 4]);
    makes_the_source(&stage, &history, &["public.items"], false).await;
}

/// `root`: partitions are published, and read, as their root.
async fn under_load(mode: SnapshotMode, root: bool, exclude: &[&str]) {
    let publication = format!("CREATE PUBLICATION walcast FOR ALL TABLES WITH (publish_via_partition_root = {root})");
    let setup = stage().sql(workload::SCHEMA).publication(&publication).setting("synchronous_commit", "off");
    let stage = setup.start().await;
    let mut tables: Vec<&str> = workload::TABLES.iter().copied().filter(|table| !exclude.contains(table)).collect();
    if root {
        tables.retain(|table| !table.starts_with("load.measurements"));
        tables.push("load.measurements");
    }
    let plan = Plan { clients: 3, large_rows: 100, prepared: true, ..Plan::random() };
    let workload = Workload::start(stage.cluster.config("postgres"), plan);
    let mut streams = Vec::new();
    for round in 1..=2 {
        workload.commits(round * 100, Duration::from_secs(60)).await;
        let exclude: Vec<String> = exclude.iter().map(|table| (*table).to_owned()).collect();
        let request = Request::new().snapshot(mode).filter(|filter| filter.exclude_tables = exclude);
        let (one, two) = tokio::join!(snapshot(&stage, request.clone()), snapshot(&stage, request));
        streams.extend([one, two]);
    }
    let report = workload.stop().await;
    println!("{report:?}");
    // Flushes what was committed asynchronously.
    stage
        .db
        .run("BEGIN; SET LOCAL synchronous_commit = on; SELECT pg_logical_emit_message(true, 'flush', ''); COMMIT")
        .await;
    let goal = stage.flushed().await;
    for mut stream in streams {
        stream.reaches(goal).await;
        let history = stream.close();
        makes_the_source(&stage, &history, &tables, mode == SnapshotMode::Incremental).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consistent_snapshot_under_load_makes_the_source() {
    under_load(SnapshotMode::Consistent, false, &[]).await;
    under_load(SnapshotMode::Consistent, true, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incremental_snapshot_under_load_makes_the_source() {
    under_load(SnapshotMode::Incremental, false, &["load.log"]).await;
    under_load(SnapshotMode::Incremental, true, &["load.log"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_stream_ends_at_the_tail_behind_its_rows() {
    let stage = stage().sql(TABLE).sql("INSERT INTO items SELECT n, 'x' FROM generate_series(1, 5000) n").start().await;
    for mode in [SnapshotMode::Consistent, SnapshotMode::Incremental, SnapshotMode::Unspecified] {
        let history = stage.collect(Request::new().snapshot(mode)).await;
        let parsed = held(&history, validators::formal(&history));
        assert_eq!(read(&parsed).len(), 5000, "{mode:?}");
        assert!(matches!(history.last().end, End::Completed));
        let position = history.position().expect("a position");
        assert!(position.snapshot.is_empty(), "nothing is owed at the end: {position:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incremental_snapshot_goes_on_where_it_was() {
    let mut stage =
        stage().sql(TABLE).sql("INSERT INTO items SELECT n, 'x' FROM generate_series(1, 20000) n").start().await;
    let mut history = History::default();
    let options = pb::SnapshotOptions { mode: SnapshotMode::Incremental as i32, max_rows_per_second: 8000 };
    let mut request = Request::new();
    request.0.start = Some(pb::Start { at: Some(pb::start::At::Snapshot(options)) });
    let mut lives = 0;
    loop {
        let mut stream = stage.client().subscribe(&request).await;
        let progressed = |log: &StreamLog| {
            ended(log)
                || log.progress().filter(|progress| !progress.position.iter().all(|p| p.snapshot.is_empty())).count()
                    > 2
        };
        stream.until("progress inside the snapshot, or its end", progressed).await;
        let done = ended(&stream.log);
        stage.db.run(&format!("UPDATE items SET name = 'life {lives}' WHERE id % 500 = {lives}")).await;
        stage.db.run(&format!("DELETE FROM items WHERE id % 777 = {lives}")).await;
        if done {
            stream.reaches(stage.goal().await).await;
        }
        let mut closed = stream.close();
        let position = closed.position().expect("a position");
        closed.streams[0].number = lives;
        history.streams.append(&mut closed.streams);
        if done {
            break;
        }
        assert!(!position.snapshot.is_empty(), "the rows are owed");
        request = Request::new().after(&position);
        lives += 1;
        match lives {
            1 => {
                stage.hub.kill9();
                stage.hub.start().await;
            }
            2 => {
                stage.cluster.restart(Shutdown::Fast);
                stage.reconnect().await;
            }
            _ => {}
        }
    }
    assert!(lives >= 2, "interrupted {lives} times");
    history.may_be_cut = true;
    let parsed = held(&history, Parsed::of(&history));
    let ids: Vec<&str> = history
        .streams
        .iter()
        .flat_map(StreamLog::kinds)
        .filter_map(|kind| match kind {
            Kind::SnapshotBegin(begin) => Some(begin.snapshot_id.as_str()),
            _ => None,
        })
        .collect();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "one snapshot: {ids:?}");
    let rows = read(&parsed).len();
    assert!(rows < 32_000, "{rows} rows were sent of 20000: it starts over again and again");
    let mut replica = Replica::default();
    replica.incremental = true;
    held(&history, replica.apply(&parsed));
    held(&history, replica.equals_source(&stage.db, &["public.items".to_owned()]).await);
}

/// The hub cannot remember what came before its start, and looks it up in the journal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_from_before_the_start_of_the_hub_is_not_lost() {
    let mut stage = stage().sql(TABLE).sql("INSERT INTO items VALUES (1, 'old')").start().await;
    let other = stage.cluster.connect().await;
    other.run("BEGIN; INSERT INTO items VALUES (2, 'open all the time')").await;
    stage.db.run("INSERT INTO items VALUES (3, 'before the restart')").await;
    stage.hub.kill9();
    stage.hub.start().await;
    stage.streaming().await;
    stage.db.run("INSERT INTO items VALUES (4, 'behind it')").await;
    for (mode, incremental) in [(SnapshotMode::Consistent, false), (SnapshotMode::Incremental, true)] {
        let mut stream = snapshot(&stage, Request::new().snapshot(mode)).await;
        if incremental {
            other.run("COMMIT").await;
        }
        stage.db.run("UPDATE items SET name = name || '!' WHERE id = 3").await;
        stream.reaches(stage.goal().await).await;
        let history = stream.close();
        let parsed = held(&history, validators::formal(&history));
        assert_eq!(read(&parsed), [1, 3, 4]);
        assert_eq!(changed(&parsed), if incremental { vec![2, 3] } else { vec![3] });
        if incremental {
            makes_the_source(&stage, &history, &["public.items"], true).await;
        }
    }
}

async fn slow_snapshot_while_wal_is_written(max_rows_per_second: u32, retain: &[(&str, &str)]) -> (Stage, Stream) {
    let mut setup = stage().sql(TABLE).sql("INSERT INTO items SELECT n, 'x' FROM generate_series(1, 12000) n");
    setup = setup.env("WALCAST_SEGMENT_BYTES", "1MiB");
    for (name, value) in retain {
        setup = setup.env(name, value);
    }
    let stage = setup.sql("CREATE TABLE load (id int, data text)").start().await;
    let mut request = Request::new().progress_every(Duration::from_millis(100));
    let options = pb::SnapshotOptions { mode: SnapshotMode::Consistent as i32, max_rows_per_second };
    request.0.start = Some(pb::Start { at: Some(pb::start::At::Snapshot(options)) });
    let mut stream = stage.client().subscribe(&request).await;
    stream.until("snapshot_begin", |log| log.kinds().any(|kind| matches!(kind, Kind::SnapshotBegin(_)))).await;
    for n in 0..20 {
        stage.db.run(&format!("INSERT INTO load SELECT {n}, repeat('x', 1000) FROM generate_series(1, 500)")).await;
    }
    stage.journaled().await;
    (stage, stream)
}

/// Without the snapshot, everything but the last segment would go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_keeps_what_the_hand_over_needs() {
    let (stage, mut stream) = slow_snapshot_while_wal_is_written(2000, &[("WALCAST_RETAIN_AGE", "1s")]).await;
    stream.until("snapshot_end", ended).await;
    stream.reaches(stage.goal().await).await;
    makes_the_source(&stage, &stream.close(), &["public.items", "public.load"], false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_cap_a_snapshot_ends_with_an_error() {
    // Two minutes, whatever else the machine does.
    let (stage, mut stream) = slow_snapshot_while_wal_is_written(100, &[("WALCAST_RETAIN_BYTES", "3MiB")]).await;
    stream.fails_with("POSITION_EXPIRED").await;
    let small = |bytes: f64| bytes <= f64::from(5 << 20);
    stage.hub.metric_becomes("walcast_journal_bytes", Duration::from_secs(30), small).await;
    whom_retention_passes_is_told_of(&stage).await;
}

async fn whom_retention_passes_is_told_of(stage: &Stage) {
    let mut slow = stage.client().subscribe(&Request::named("slow").earliest()).await;
    slow.until("a transaction", |log| log.commits() > 0).await;
    let first = slow.log.position().expect("a position");
    stage.client().acknowledge("slow", &first, slow.opened().session).await.expect("acknowledged");
    drop(slow);
    let hub = format!("http://127.0.0.1:{}", stage.hub.grpc_port());
    let listed = || {
        let list = walcast(&["subscribers", "list", "--hub", &hub], &[]).stdout;
        list.lines().find(|line| line.starts_with("slow")).map(str::to_owned).unwrap_or_default()
    };
    assert!(!listed().contains("expired"), "{}", listed());
    for n in 0..12 {
        stage.db.run(&format!("INSERT INTO load SELECT {n}, repeat('x', 1000) FROM generate_series(1, 500)")).await;
    }
    stage.hub.metric_becomes("walcast_subscriber_expired", Duration::from_secs(30), |expired| expired == 1.0).await;
    assert!(listed().contains("expired, gone for") && !listed().contains("  0 ms  "), "{}", listed());
    stage.client().subscribe(&Request::named("slow")).await.fails_with("POSITION_EXPIRED").await;
    let log = stage.hub.log();
    let told =
        log.lines().filter(|line| line.contains("WARN") && line.contains("slow") && line.contains("POSITION_EXPIRED"));
    assert_eq!(told.count(), 1, "{}", stage.hub.log_tail(20));
}

/// Its rows are those of one point, which went with the connections that held it. They are more than sockets hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consistent_snapshot_whose_connections_end_is_interrupted_and_begins_anew() {
    let stage = stage()
        .sql(TABLE)
        .sql("INSERT INTO items SELECT n, repeat('x', 8000) FROM generate_series(1, 12000) n")
        .start()
        .await;
    let options = pb::SnapshotOptions { mode: SnapshotMode::Consistent as i32, max_rows_per_second: 2000 };
    let mut request = Request::new();
    request.0.start = Some(pb::Start { at: Some(pb::start::At::Snapshot(options)) });
    let mut stream = stage.client().subscribe(&request).await;
    stream.until("snapshot_begin", |log| log.kinds().any(|kind| matches!(kind, Kind::SnapshotBegin(_)))).await;
    let snapshots = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND backend_xmin IS NOT NULL";
    stage.db.run(snapshots).await;
    let failure = stream.fails_with("SNAPSHOT_INTERRUPTED").await;
    assert!(failure.retry.is_some(), "{failure:?}");
    let mut stream = stage.client().subscribe(&request).await;
    stream.until("snapshot_end", ended).await;
    makes_the_source(&stage, &stream.close(), &["public.items"], false).await;
}

/// Its transaction holds back vacuum and DDL on the primary: a client that takes nothing does not hold it open for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_which_nothing_is_taken_lets_the_primary_and_others_go() {
    let stage = stage()
        .sql(TABLE)
        .sql("INSERT INTO items SELECT n, repeat('x', 8000) FROM generate_series(1, 12000) n")
        .sql("CREATE TABLE load (id int PRIMARY KEY, data text)")
        .env("WALCAST_LIMITS_SNAPSHOT_IDLE", "2s")
        .env("WALCAST_LIMITS_SNAPSHOTS", "1")
        .env("WALCAST_SEGMENT_BYTES", "1MiB")
        .env("WALCAST_RETAIN_BYTES", "4MiB")
        .start()
        .await;
    let open = "SELECT count(*) FROM pg_stat_activity
                WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND backend_xmin IS NOT NULL";
    let mut stream = stage.client().subscribe(&Request::new().snapshot(SnapshotMode::Consistent)).await;
    stream.until("snapshot_begin", |log| log.kinds().any(|kind| matches!(kind, Kind::SnapshotBegin(_)))).await;
    assert!(stage.db.number(open).await > 0);
    eventually(Duration::from_secs(60), || async {
        match stage.db.number(open).await {
            0 => Ok(()),
            sessions => Err(format!("{sessions} sessions hold a snapshot")),
        }
    })
    .await;
    let failure = stream.fails_with("SNAPSHOT_INTERRUPTED").await;
    assert!(failure.message.contains("limits.snapshot_idle") && failure.retry.is_some(), "{failure:?}");
    drop(stream);
    an_incremental_one_lets_others_go_first(stage).await;
}

/// There is one place. Who stalls, or is paused, gives it back, and has everything in the end.
async fn an_incremental_one_lets_others_go_first(stage: Stage) {
    stage.db.run("DELETE FROM items WHERE id > 6000").await;
    let request = Request::named("stalled").snapshot(SnapshotMode::Incremental);
    let mut stalled = stage.client().subscribe(&request).await;
    stalled.until("a row", |log| log.kinds().any(|kind| matches!(kind, Kind::Change(_)))).await;
    let others = || async {
        let request = Request::new().snapshot(SnapshotMode::Consistent);
        let failure = stage.client().subscribe(&request).await.fails_with("TOO_MANY_STREAMS").await;
        assert!(failure.retry.is_some(), "{failure:?}");
        eventually(Duration::from_secs(60), || async {
            let mut other = stage.client().subscribe(&request).await;
            while other.pull().await && !ended(&other.log) {}
            if ended(&other.log) { Ok(()) } else { Err(format!("{:?}", other.log.end)) }
        })
        .await;
    };
    others().await;
    stage.db.run("UPDATE items SET name = 'changed' WHERE id % 7 = 0").await;
    // More than was read ahead.
    stalled.until("half of the rows", |log| log.changes() > 3000).await;
    let paused = |paused| pb::BackfillRequest {
        subscriber: "stalled".into(),
        action: if paused { pb::BackfillAction::Pause } else { pb::BackfillAction::Resume } as i32,
        ..Default::default()
    };
    crate::snapshot_backfill::backfill(&stage, paused(true)).await.expect("paused");
    let taking = async {
        loop {
            assert!(stalled.pull().await, "{}", stalled.describe());
        }
    };
    tokio::select! {
        () = others() => {}
        () = taking => {}
    }
    assert!(!ended(&stalled.log), "it is paused");
    the_journal_leaves_it_behind(&stage, &mut stalled).await;
    crate::snapshot_backfill::backfill(&stage, paused(false)).await.expect("resumed");
    stalled.until("snapshot_end", ended).await;
    makes_the_source(&stage, &stalled.close(), &["public.items", "public.load"], true).await;
}

/// Changes go on, and the stream takes them, until nothing of what was there before is retained.
async fn the_journal_leaves_it_behind(stage: &Stage, stream: &mut Stream) {
    let before = stage.flushed().await;
    for n in 0..16 {
        let ids = format!("generate_series({n} * 500 + 1, {n} * 500 + 500)");
        stage.db.run(&format!("INSERT INTO load SELECT id, repeat('x', 1000) FROM {ids} id")).await;
        let all = stream.log.changes() + 500;
        stream.until("what was written", |log| log.changes() == all).await;
    }
    let client = stage.client();
    eventually(Duration::from_secs(30), || async {
        let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
        let earliest = status.journal.and_then(|journal| journal.earliest).ok_or("nothing is retained")?;
        if lsn(&earliest.lsn) > before {
            Ok(())
        } else {
            Err(format!("{earliest:?} is retained, from before {before}"))
        }
    })
    .await;
}

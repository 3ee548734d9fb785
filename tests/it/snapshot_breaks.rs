//! What happens to a snapshot half-way: a failover, tables that are altered, dropped or renamed, commits that nobody sees yet.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use walcast::wire::pb::{self, SnapshotMode, event::Kind};

use crate::harness::{
    Db, Shutdown, Stage,
    client::{Request, Stream},
    eventually,
    history::{History, StreamLog},
    pair::{self, Pair, Slots, kept},
    parsed::{Cell, Parsed, Unit},
    stage,
    stage::held,
    validators::{self, Replica},
    versions,
};
use crate::snapshot_states::a_slot_waits;

const ITEMS: &str = "CREATE TABLE items (id int PRIMARY KEY, name text);
    INSERT INTO items SELECT n, 'old' FROM generate_series(1, 20000) n";

pub fn slowly(mode: SnapshotMode, max_rows_per_second: u32) -> Request {
    let options = pb::SnapshotOptions { mode: mode as i32, max_rows_per_second };
    let mut request = Request::new().progress_every(Duration::from_millis(50));
    request.0.start = Some(pb::Start { at: Some(pb::start::At::Snapshot(options)) });
    request
}

pub fn ended(log: &StreamLog) -> bool {
    log.kinds().any(|kind| matches!(kind, Kind::SnapshotEnd(_)))
}

pub fn rows(log: &StreamLog) -> usize {
    log.kinds().filter(|kind| matches!(kind, Kind::Change(change) if change.operation() == pb::Operation::Read)).count()
}

pub fn begun(log: &StreamLog) -> Option<&pb::SnapshotBegin> {
    log.kinds().find_map(|kind| match kind {
        Kind::SnapshotBegin(begin) => Some(begin),
        _ => None,
    })
}

/// `id` of every READ row, ascending, without repetition.
pub fn ids(parsed: &Parsed<'_>) -> Vec<i64> {
    let id = |unit: &Unit| match unit {
        Unit::Read { item, .. } => match item.what.get("id") {
            Some(Cell::Int(id)) => Some(*id),
            other => panic!("{other:?}"),
        },
        _ => None,
    };
    let mut ids: Vec<i64> = parsed.streams.iter().flatten().filter_map(id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

pub async fn makes(history: &History, db: &Db, tables: &[&str], incremental: bool) {
    let mut replica = Replica::default();
    replica.incremental = incremental;
    held(history, replica.apply(&held(history, Parsed::of(history))));
    let tables: Vec<String> = tables.iter().map(|table| (*table).to_owned()).collect();
    held(history, replica.equals_source(db, &tables).await);
}

/// Chunks that were read behind the switch hold rows of transactions that never happened, and lack rows that these deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incremental_snapshot_goes_on_after_a_failover() {
    let mut pair = Pair::start(versions::default_major(), Slots::Copied, ITEMS, &[]).await;
    let mut stream = pair.client().subscribe(&slowly(SnapshotMode::Incremental, 3000)).await;
    stream.until("the first chunk", |log| rows(log) > 0).await;
    pair.caught_up().await;
    pair.cut_off().await;
    let db = pair.db().await;
    db.run("DELETE FROM items WHERE id % 100 = 0; UPDATE items SET name = 'lost' WHERE id % 100 = 1").await;
    db.run("INSERT INTO items VALUES (-1, 'lost')").await;
    stream.until("what will be lost", |log| log.commits() == 3).await;
    let before = rows(&stream.log);
    stream.until("a chunk behind it", |log| rows(log) > before).await;
    assert!(!ended(&stream.log), "too fast for this test: {}", stream.describe());
    drop(db);
    pair.fail_over().await;
    let db = pair.db().await;
    db.run("UPDATE items SET name = 'new' WHERE id % 1000 = 7; INSERT INTO items VALUES (0, 'new')").await;
    pair::streaming(&pair.primary).await;
    stream.until("snapshot_end", ended).await;
    let goal = pair.truth().await.end();
    stream.reaches(goal).await;
    let history = stream.close();
    held(&kept(&history), validators::formal(&kept(&history)));
    assert_eq!(history.last().kinds().filter(|kind| matches!(kind, Kind::SnapshotBegin(_))).count(), 1, "one snapshot");
    makes(&kept(&history), &db, &["public.items"], true).await;
}

/// Whoever cannot reach the source tries again as often as it takes: the hub does so without its pauses here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_any_length_is_outlasted() {
    let mut stage = stage().sql(ITEMS).env("WALCAST_FAILPOINTS", "snapshot_hurries=plant").start().await;
    let mut stream = stage.client().subscribe(&slowly(SnapshotMode::Incremental, 5000)).await;
    stream.until("the first chunk", |log| rows(log) > 0).await;
    stage.cluster.stop(Shutdown::Fast);
    eventually(Duration::from_secs(30), || async {
        match stage.hub.log().matches("a chunk is read again").count() {
            attempts if attempts > 60 => Ok(()),
            attempts => Err(format!("{attempts} attempts")),
        }
    })
    .await;
    stage.cluster.resume();
    stage.reconnect().await;
    stage.db.run("UPDATE items SET name = 'new' WHERE id % 1000 = 7; DELETE FROM items WHERE id % 1000 = 8").await;
    stage.streaming().await;
    stream.until("snapshot_end", ended).await;
    stream.reaches(stage.goal().await).await;
    let history = stream.close();
    held(&history, validators::formal(&history));
    makes(&history, &stage.db, &["public.items"], true).await;
}

/// Where the source is there and a chunk fails again and again, the stream ends, and goes on there when the cause is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_keeps_failing_ends_the_stream_and_is_gone_on_from() {
    let stage = stage()
        .sql("CREATE TABLE items (id int PRIMARY KEY, unit text)")
        .sql("INSERT INTO items SELECT n, CASE n WHEN 15000 THEN 'unknown' ELSE 'day' END FROM generate_series(1, 20000) n")
        .publication("CREATE PUBLICATION walcast FOR TABLE items WHERE (date_trunc(unit, timestamp '2026-01-01') IS NOT NULL)")
        .env("WALCAST_FAILPOINTS", "snapshot_hurries=plant")
        .start()
        .await;
    let mut stream = stage.client().subscribe(&slowly(SnapshotMode::Incremental, 0)).await;
    let failure = stream.fails_with("SNAPSHOT_INTERRUPTED").await;
    assert!(failure.message.contains("unknown"), "{failure:?}");
    let position = stream.log.position().expect("a position");
    let first = stream.close();
    stage.db.run("ALTER PUBLICATION walcast SET TABLE items").await;
    stage.db.run("UPDATE items SET unit = 'hour' WHERE id = 15000 OR id % 1000 = 7").await;
    let mut stream = stage.client().subscribe(&Request::new().after(&position)).await;
    stream.until("snapshot_end", ended).await;
    stream.reaches(stage.goal().await).await;
    let second = stream.close();
    let of = |history| ids(&held(history, Parsed::of(history)));
    let (read, rest) = (of(&first), of(&second));
    assert!(read.first() == Some(&1) && rest.first() > Some(&1), "it starts over");
    let mut replica = Replica::default();
    replica.incremental = true;
    held(&first, replica.apply(&held(&first, Parsed::of(&first))));
    held(&second, replica.apply(&held(&second, Parsed::of(&second))));
    held(&second, replica.equals_source(&stage.db, &["public.items".into()]).await);
}

/// The rows hold what the new primary never received.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consistent_snapshot_starts_over_after_a_failover() {
    let mut pair = Pair::start(versions::default_major(), Slots::Copied, ITEMS, &[]).await;
    pair.caught_up().await;
    pair.cut_off().await;
    pair.db().await.run("INSERT INTO items VALUES (-1, 'lost')").await;
    let request = slowly(SnapshotMode::Consistent, 4000);
    let mut stream = pair.client().subscribe(&request).await;
    stream.until("rows", |log| rows(log) > 0).await;
    let position = stream.opened().after.clone().expect("a position");
    pair.fail_over().await;
    let db = pair.db().await;
    db.run("INSERT INTO items VALUES (0, 'new')").await;
    let failure = stream.fails_with("SNAPSHOT_INTERRUPTED").await;
    assert!(failure.message.contains("starts over"), "{failure:?}");
    pair::streaming(&pair.primary).await;
    pair.journaled().await;
    let mut stream = pair.client().subscribe(&Request::new().after(&position)).await;
    stream.until("snapshot_end", ended).await;
    assert!(begun(&stream.log).expect("snapshot_begin").restarted);
    stream.reaches(pair.truth().await.end()).await;
    let history = stream.close();
    assert_eq!(ids(&held(&history, Parsed::of(&history))).first(), Some(&0), "without the row that was lost");
    makes(&history, &db, &["public.items"], false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_change_between_chunks() {
    let stage = stage()
        .sql("CREATE TABLE first (id int PRIMARY KEY, other int UNIQUE NOT NULL)")
        .sql("INSERT INTO first SELECT n, -n FROM generate_series(1, 10000) n")
        .sql("CREATE TABLE gone (id int PRIMARY KEY); INSERT INTO gone SELECT generate_series(1, 3000)")
        .sql("CREATE TABLE named (id int PRIMARY KEY); INSERT INTO named SELECT generate_series(10001, 12000)")
        .start()
        .await;
    let mut stream = stage.client().subscribe(&slowly(SnapshotMode::Incremental, 5000)).await;
    stream.until("the first chunk", |log| rows(log) > 0).await;
    let begin = begun(&stream.log).expect("snapshot_begin").clone();
    assert_eq!(begin.tables.len(), 3);
    stage.db.run("ALTER TABLE first ADD COLUMN extra int DEFAULT 7; DROP TABLE gone").await;
    // The key of the rows that were sent means nothing under the new one, and a name is not the table.
    stage.db.run("ALTER TABLE first DROP CONSTRAINT first_pkey, ADD PRIMARY KEY (other)").await;
    stage.db.run("ALTER TABLE named RENAME TO aaa").await;
    stream.until("snapshot_end", ended).await;
    let history = stream.close();
    let parsed = held(&history, validators::formal(&history));
    assert_eq!(ids(&parsed), (1..=12000).collect::<Vec<_>>());
    let ends = history.last().kinds().filter_map(|kind| match kind {
        Kind::SnapshotTableEnd(end) => Some(end.table.as_str()),
        _ => None,
    });
    assert_eq!(ends.collect::<Vec<_>>(), ["public.first", "public.aaa"], "a table that is gone has no end");
    let wide = |kind: &Kind| matches!(kind, Kind::Relation(relation) if relation.columns.len() == 3);
    assert!(history.last().kinds().any(wide), "rows of the new shape");
}

/// Its locks hold DDL back until the rows are read; TRUNCATE or a rewrite would leave an older snapshot without rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_do_not_change_under_a_consistent_snapshot() {
    let stage = stage()
        .sql("CREATE TABLE items (id int PRIMARY KEY, name text)")
        .sql("INSERT INTO items SELECT n, repeat('x', 4000) FROM generate_series(1, 9000) n")
        .start()
        .await;
    let mut stream = stage.client().subscribe(&slowly(SnapshotMode::Consistent, 4000)).await;
    stream.until("rows", |log| rows(log) > 0).await;
    let refused = "DO $$ BEGIN SET LOCAL lock_timeout = '100ms'; DROP TABLE items; RAISE 'dropped';
                   EXCEPTION WHEN lock_not_available THEN NULL; END $$";
    stage.db.run(refused).await;
    let other = stage.cluster.connect().await;
    let altered = tokio::spawn(async move {
        other.run("ALTER TABLE items ALTER COLUMN id TYPE bigint, ADD COLUMN extra int; INSERT INTO items VALUES (0, 'after', 1)").await;
    });
    stream.until("snapshot_end", ended).await;
    altered.await.expect("altered");
    stream.reaches(stage.goal().await).await;
    let history = stream.close();
    let parsed = held(&history, validators::formal(&history));
    assert_eq!(ids(&parsed), (1..=9000).collect::<Vec<_>>());
    let inserted: Vec<_> = parsed.items().map(|item| item.what.get("extra").cloned()).collect();
    assert_eq!(inserted, [Some(Cell::Int(1))]);
}

pub async fn waits(db: &Db, condition: &str) {
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE {condition}");
    eventually(Duration::from_secs(30), || async {
        match db.number(&sql).await {
            0 => Err(format!("nobody of whom {condition}")),
            _ => Ok(()),
        }
    })
    .await;
}

/// A commit that waits for a standby that does not exist.
pub struct Stuck {
    task: JoinHandle<()>,
    /// Commits again and again until one waits: a reload does not hold at once.
    probe: JoinHandle<()>,
    stop: CancellationToken,
}

pub async fn stuck(stage: &Stage, statement: &str) -> Stuck {
    stage.db.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    stage.db.run("SELECT pg_reload_conf()").await;
    let (probing, stop) = (stage.cluster.connect().await, CancellationToken::new());
    let stopped = stop.clone();
    let probe = tokio::spawn(async move {
        while !stopped.is_cancelled() {
            probing.run("SELECT pg_logical_emit_message(true, 'probe', '')").await;
        }
    });
    waits(&stage.db, "wait_event = 'SyncRep'").await;
    let (other, text) = (stage.cluster.connect().await, statement.to_owned());
    let task = tokio::spawn(async move { other.run(&text).await });
    waits(&stage.db, "wait_event = 'SyncRep' AND query NOT LIKE '%probe%'").await;
    Stuck { task, probe, stop }
}

pub async fn release(stage: &Stage, stuck: Stuck) {
    stuck.stop.cancel();
    stage.db.run("ALTER SYSTEM RESET synchronous_standby_names").await;
    stage.db.run("SELECT pg_reload_conf()").await;
    stuck.task.await.expect("released");
    stuck.probe.await.expect("released");
}

/// Starts the hub such that the statement's commit record lies in front of what its new journal begins with.
pub async fn stuck_in_front_of_the_journal(stage: &mut Stage, statement: &str) -> Stuck {
    let (one, two) = (stage.cluster.connect().await, stage.cluster.connect().await);
    one.run("BEGIN; SELECT pg_current_xact_id()").await;
    stage.hub.spawn();
    waits(&stage.db, "backend_type = 'walsender' AND wait_event = 'transactionid'").await;
    // The slot's consistent point now waits for this one, and no transaction that begins behind it is in the stream before.
    two.run("BEGIN; SELECT pg_current_xact_id()").await;
    one.run("ROLLBACK").await;
    let xid = two.text("SELECT pg_current_xact_id()::xid::text").await.expect("an xid");
    let lock = format!("pid IN (SELECT pid FROM pg_locks WHERE NOT granted AND transactionid::text = '{xid}')");
    waits(&stage.db, &lock).await;
    let stuck = stuck(stage, statement).await;
    two.run("ROLLBACK").await;
    stage.hub.ready().await;
    stage.streaming().await;
    stuck
}

/// A commit record that lies in front of the slot's beginning, of a transaction that nobody sees yet, would be neither in
/// the rows nor in the stream. Behind the beginning it is in the stream, however often the hub starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_nobody_sees_yet_is_not_lost() {
    let mut stage = stage()
        .sql("CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items VALUES (1, 'old')")
        .no_oracle()
        .env("WALCAST_LIMITS_SNAPSHOT_SETTLE", "2s")
        .prepare()
        .await;
    let two_is_stuck = stuck_in_front_of_the_journal(&mut stage, "INSERT INTO items VALUES (2, 'stuck')").await;
    let client = stage.client();
    let refused = client.subscribe(&slowly(SnapshotMode::Consistent, 0)).await.fails_with("SOURCE_UNAVAILABLE").await;
    a_slot_waits(&stage).await;
    let pid = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%stuck%'";
    let pid = stage.db.number(pid).await.to_string();
    assert!(
        refused.message.contains("wait for a synchronous standby") && refused.message.contains(&pid),
        "{refused:?}"
    );
    let rows_of = tokio::spawn(async move {
        loop {
            let mut stream = client.subscribe(&slowly(SnapshotMode::Consistent, 0)).await;
            while !ended(&stream.log) && stream.pull().await {}
            if ended(&stream.log) {
                return stream.close();
            }
        }
    });
    waits(&stage.db, "query LIKE '%a.wait_event = ''SyncRep''%' AND pid <> pg_backend_pid()").await;
    release(&stage, two_is_stuck).await;
    let history = rows_of.await.expect("the rows");
    assert_eq!(ids(&held(&history, validators::formal(&history))), [1, 2]);

    let three_is_stuck = stuck(&stage, "INSERT INTO items VALUES (3, 'stuck')").await;
    stage.journaled().await;
    stage.hub.kill9();
    stage.hub.start().await;
    stage.streaming().await;
    a_slot_waits(&stage).await;
    for mode in [SnapshotMode::Consistent, SnapshotMode::Incremental] {
        let mut stream = stage.client().subscribe(&slowly(mode, 0).tables(&["public.*"])).await;
        stream.until("snapshot_end and the commit", |log| ended(log) && log.commits() == 1).await;
        let history = stream.close();
        let parsed = held(&history, validators::formal(&history));
        assert_eq!(ids(&parsed), [1, 2], "{mode:?}");
        let inserted: Vec<_> = parsed.items().map(|item| item.what.get("id").cloned()).collect();
        assert_eq!(inserted, [Some(Cell::Int(3))], "{mode:?}");
    }
    release(&stage, three_is_stuck).await;
}

/// The stream has an UPDATE without the TOASTed value that it left alone, the chunk still has the row as it was before. Neither
/// is the row as it is: the chunk waits until it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_waits_for_the_row_of_which_the_stream_has_a_part() {
    let stage = stage()
        .sql("CREATE TABLE wide (id int PRIMARY KEY, n int, body text); ALTER TABLE wide ALTER body SET STORAGE EXTERNAL")
        .sql("INSERT INTO wide SELECT n, 0, repeat('x', 10000) FROM generate_series(1, 3) n")
        .start()
        .await;
    let task = stuck(&stage, "UPDATE wide SET n = 1 WHERE id = 2").await;
    stage.journaled().await;
    let mut stream = stage.client().subscribe(&slowly(SnapshotMode::Incremental, 0).tables(&["public.*"])).await;
    stream.until("the part and the row in front of it", |log| log.commits() == 1 && rows(log) == 1).await;
    assert!(!ended(&stream.log), "{}", stream.describe());
    release(&stage, task).await;
    stream.until("snapshot_end", ended).await;
    let history = stream.close();
    assert_eq!(rows(history.last()), 3);
    makes(&history, &stage.db, &["public.wide"], true).await;
}

/// What a chunk needs of the journal begins in front of the oldest transaction that no snapshot shows yet. It is kept up to the
/// cap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_cap_an_incremental_snapshot_ends_with_an_error() {
    let stage = stage()
        .sql(ITEMS)
        .sql("CREATE TABLE load (id int, data text)")
        .env("WALCAST_SEGMENT_BYTES", "1MiB")
        .env("WALCAST_RETAIN_BYTES", "3MiB")
        .start()
        .await;
    let stuck = stuck(&stage, "INSERT INTO items VALUES (0, 'stuck')").await;
    stage.journaled().await;
    let mut stream = stage.client().subscribe(&slowly(SnapshotMode::Incremental, 1000).tables(&["public.items"])).await;
    stream.until("rows", |log| rows(log) > 0).await;
    for n in 0..20 {
        let insert = format!("INSERT INTO load SELECT {n}, repeat('x', 1000) FROM generate_series(1, 500)");
        stage.db.run(&format!("BEGIN; SET LOCAL synchronous_commit = local; {insert}; COMMIT")).await;
    }
    stream.fails_with("POSITION_EXPIRED").await;
    assert!(!ended(&stream.log));
    release(&stage, stuck).await;
}

/// DDL waits behind the locks of the session that took the snapshot, and whoever comes later waits behind the DDL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_read_although_a_change_of_the_table_waits() {
    let mut stage = stage().sql(ITEMS).start().await;
    // Holds the snapshot up between its locks and its rows.
    stage.hub.kill9();
    let release = stage.hub.hold("snapshot_seen=hold@1");
    stage.hub.start().await;
    stage.streaming().await;
    let client = stage.client();
    let rows_of = tokio::spawn(async move {
        let mut stream = client.subscribe(&slowly(SnapshotMode::Consistent, 0)).await;
        stream.until("snapshot_end", ended).await;
        stream
    });
    let lock = |mode: &str, granted: &str| {
        format!(
            "pid IN (SELECT pid FROM pg_locks WHERE relation = 'items'::regclass AND mode = '{mode}' AND {granted})"
        )
    };
    waits(&stage.db, &lock("AccessShareLock", "granted")).await;
    let other = stage.cluster.connect().await;
    let altered = tokio::spawn(async move { other.run("ALTER TABLE items ADD COLUMN extra int").await });
    waits(&stage.db, &lock("AccessExclusiveLock", "NOT granted")).await;
    std::fs::write(&release, "").expect("a file");
    let stream = rows_of.await.expect("the rows");
    altered.await.expect("altered");
    let history = stream.close();
    assert_eq!(ids(&held(&history, validators::formal(&history))), (1..=20000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_the_client_cannot_receive_is_named() {
    let stage = stage()
        .sql("CREATE TABLE wide (id int PRIMARY KEY, data text); INSERT INTO wide VALUES (1, ''), (2, repeat('x', 3000000))")
        .start()
        .await;
    for mode in [SnapshotMode::Consistent, SnapshotMode::Incremental] {
        let request = Request::new().snapshot(mode).max_message_bytes(1 << 20);
        let mut stream: Stream = stage.client().subscribe(&request).await;
        let failure = stream.fails_with("EVENT_TOO_LARGE").await;
        assert_eq!(failure.metadata["table"], "public.wide", "{failure:?}");
    }
}

/// Finding out whether a table is still what it was may take longer than rows may; a chunk is neither cut off nor lost for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_catalogues_keep_no_chunk_from_being_read() {
    let stage = stage().sql(ITEMS).start().await;
    let mut stream = stage.client().subscribe(&slowly(SnapshotMode::Incremental, 3000)).await;
    stream.until("the first chunk", |log| rows(log) > 0).await;
    // What every chunk asks for, and no session in the middle of something else.
    stage.db.run("BEGIN; LOCK TABLE pg_publication_rel IN ACCESS EXCLUSIVE MODE").await;
    let other = stage.cluster.connect().await;
    let asks = "query LIKE '%walcast_likeness%' AND wait_event_type = 'Lock'
                AND clock_timestamp() - query_start > interval '1.5 seconds'";
    waits(&other, asks).await;
    stage.db.run("COMMIT").await;
    stream.until("snapshot_end", ended).await;
    assert!(!stage.hub.log().contains("a chunk is read again"), "{}", stage.hub.log());
    makes(&stream.close(), &stage.db, &["public.items"], true).await;
}

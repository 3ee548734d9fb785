//! A hub whose role may not see the sessions of others, where synchronous replication is on: a temporary slot waits for the commits that it
//! could miss, and is gone afterwards.

use std::time::Duration;

use walcast::{
    lsn::Lsn,
    postgres::{
        conninfo::ConnectOptions,
        replication::{Replication, ReplicationStream},
        sql::Sql,
    },
    wire::pb::SnapshotMode,
};

use crate::{
    harness::{
        Stage, eventually,
        history::{History, lsn},
        hub::{Hub, READY},
        stage,
        stage::held,
        validators,
    },
    snapshot_breaks::{ended, ids, makes, release, slowly, stuck, stuck_in_front_of_the_journal},
};

/// A stage whose hub is not started yet and sees nobody.
async fn blind(settle: &str) -> Stage {
    let mut stage = stage()
        .sql("CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items VALUES (1, 'old')")
        .sql("CREATE TABLE load (id int, data text)")
        .sql("CREATE ROLE hub LOGIN REPLICATION PASSWORD 'p'; GRANT SELECT ON items, load TO hub")
        .no_oracle()
        .prepare()
        .await;
    stage.hub = Hub::new(&stage.cluster.dsn().replace("user=postgres", "user=hub password=p"));
    stage.hub.env("WALCAST_SEGMENT_BYTES", "1MiB");
    stage.hub.env("WALCAST_RETAIN_BYTES", "3MiB");
    stage.hub.env("WALCAST_LIMITS_SNAPSHOT_SETTLE", settle);
    stage
}

/// Somebody else streams from the hub's slot, and confirms nothing.
async fn slot_taken(stage: &Stage) -> ReplicationStream {
    let options = ConnectOptions::parse(Some(&stage.cluster.dsn()), &|_| None).expect("options");
    let sql = Sql::connect(&options).await.expect("a session");
    eventually(Duration::from_secs(20), || async {
        let session = Replication::connect(&options, sql.server()).await.map_err(|error| error.to_string())?;
        session.start("walcast", Lsn::ZERO, "walcast").await.map_err(|error| error.to_string())
    })
    .await
}

/// Waits until so many temporary slots are there.
async fn slots(stage: &Stage, expected: i64) {
    let made = "SELECT count(*) FROM pg_replication_slots WHERE temporary AND slot_name LIKE 'walcast_snapshot_%'";
    eventually(Duration::from_secs(20), || async {
        match stage.db.number(made).await {
            found if found == expected => Ok(()),
            found => Err(format!("{found} temporary slots")),
        }
    })
    .await;
}

/// Waits until so many are being made, and wait for what ran before.
async fn slots_wait(stage: &Stage, expected: i64) {
    slots(stage, expected).await;
    let waits = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'";
    eventually(Duration::from_secs(20), || async {
        match stage.db.number(waits).await {
            found if found == expected => Ok(()),
            found => Err(format!("{found} wait for a transaction")),
        }
    })
    .await;
}

/// The journal leaves behind everything that it has now.
async fn journal_moves_on(stage: &Stage) {
    let before = stage.flushed().await;
    for n in 0..10 {
        let insert = format!("INSERT INTO load SELECT {n}, repeat('x', 1000) FROM generate_series(1, 600)");
        stage.db.run(&format!("BEGIN; SET LOCAL synchronous_commit = local; {insert}; COMMIT")).await;
    }
    eventually(Duration::from_secs(30), || async {
        let status = stage.client().status().await.map_err(|failure| format!("{failure:?}"))?;
        let earliest = status.journal.and_then(|journal| journal.earliest).ok_or("no journal")?;
        if lsn(&earliest.lsn) > before { Ok(()) } else { Err(format!("{earliest:?} is still there")) }
    })
    .await;
}

fn rows_of(stage: &Stage, mode: SnapshotMode) -> tokio::task::JoinHandle<History> {
    let client = stage.client();
    tokio::spawn(async move {
        let mut stream = client.subscribe(&slowly(mode, 0).tables(&["public.item*"])).await;
        stream.until("snapshot_end", ended).await;
        stream.close()
    })
}

/// Sessions that nobody can see into are there for good, and a hub that was started and has not got its slot knows nothing of what is open.
/// The temporary slot tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_temporary_slot_waits_for_commits_that_the_hub_cannot_see() {
    let mut stage = blind("30s").await;
    let stuck = stuck_in_front_of_the_journal(&mut stage, "INSERT INTO items VALUES (2, 'stuck')").await;
    stage.hub.kill9();
    let taken = slot_taken(&stage).await;
    stage.hub.start().await;

    // Who asks and goes leaves nothing on the server, although what was waited for goes on.
    let given_up = rows_of(&stage, SnapshotMode::Consistent);
    slots_wait(&stage, 1).await;
    given_up.abort();
    slots(&stage, 0).await;

    let (consistent, incremental) = (SnapshotMode::Consistent, SnapshotMode::Incremental);
    let (all, chunks) = (rows_of(&stage, consistent), rows_of(&stage, incremental));
    slots_wait(&stage, 2).await;
    // What begins behind them is not waited for.
    let open = stage.cluster.connect().await;
    open.run("BEGIN; SET LOCAL synchronous_commit = local; INSERT INTO items VALUES (3, 'open')").await;
    assert!(!all.is_finished() && !chunks.is_finished(), "rows came without a commit that no snapshot shows");
    release(&stage, stuck).await;
    let all = all.await.expect("the rows");
    slots(&stage, 0).await;
    // Chunks have their places in the stream, which goes on now.
    drop(taken);
    for (mode, history) in [(consistent, all), (incremental, chunks.await.expect("the rows"))] {
        assert_eq!(ids(&held(&history, validators::formal(&history))), [1, 2], "{mode:?}");
        makes(&history, &stage.db, &["public.items"], mode == incremental).await;
    }
    open.run("COMMIT").await;
}

/// What to do is told, and first what makes a slot superfluous.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_temporary_slot_that_cannot_be_made_says_why() {
    let mut stage = blind("1s").await;
    let stuck = stuck_in_front_of_the_journal(&mut stage, "INSERT INTO items VALUES (2, 'stuck')").await;
    stage.db.run("SET synchronous_commit = local").await;
    // On a slow machine the time may be over before the server has answered.
    let refused = async |because: &str| {
        eventually(Duration::from_secs(30), || async {
            let mut stream = stage.client().subscribe(&slowly(SnapshotMode::Consistent, 0)).await;
            let refused = stream.fails_with("SOURCE_UNAVAILABLE").await;
            let (grant, slot) = refused.message.split_once("; ").ok_or("one part")?;
            assert!(grant.contains("GRANT pg_read_all_stats"), "{refused:?}");
            if slot.contains(because) { Ok(()) } else { Err(slot.to_owned()) }
        })
        .await;
    };
    refused("waits for transactions").await;
    slots(&stage, 0).await;
    let free = "SELECT current_setting('max_replication_slots')::int8 - count(*) FROM pg_replication_slots";
    for n in 0..stage.db.number(free).await {
        stage.db.run(&format!("SELECT pg_create_physical_replication_slot('other{n}')")).await;
    }
    refused("Raise max_replication_slots").await;
    stage.db.run("SELECT pg_drop_replication_slot('other0')").await;
    stage.db.run("ALTER ROLE hub NOREPLICATION").await;
    refused("ALTER ROLE name REPLICATION").await;
    stage.db.run("GRANT pg_read_all_stats TO hub").await;
    let mut refused = stage.client().subscribe(&slowly(SnapshotMode::Consistent, 0)).await;
    let refused = refused.fails_with("SOURCE_UNAVAILABLE").await;
    assert!(refused.message.contains("that are not in the journal wait for a synchronous standby"), "{refused:?}");
    release(&stage, stuck).await;
}

/// A commit that nobody sees yet may be in the journal when it is looked for, and not when the stream begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_leaves_the_journal_while_a_snapshot_begins_is_not_lost() {
    let mut stage = stage()
        .sql("CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items VALUES (1, 'old')")
        .sql("CREATE TABLE load (id int, data text)")
        .no_oracle()
        .env("WALCAST_SEGMENT_BYTES", "1MiB")
        .env("WALCAST_RETAIN_BYTES", "3MiB")
        .prepare()
        .await;
    let let_go = stage.hub.hold("snapshot_seen=hold@1");
    stage.hub.start().await;
    stage.streaming().await;
    let open = stage.cluster.connect().await;
    open.run("BEGIN; SELECT pg_current_xact_id()").await;
    journal_moves_on(&stage).await;
    let stuck = stuck(&stage, "INSERT INTO items VALUES (2, 'stuck')").await;
    stage.journaled().await;
    let client = stage.client();
    let refused = tokio::spawn(async move {
        let mut stream = client.subscribe(&slowly(SnapshotMode::Consistent, 0).tables(&["public.items"])).await;
        stream.fails_with("SNAPSHOT_INTERRUPTED").await
    });
    let held = let_go.with_extension("held");
    eventually(READY, || async { if held.exists() { Ok(()) } else { Err(stage.hub.log_tail(3)) } }).await;
    journal_moves_on(&stage).await;
    std::fs::write(&let_go, "").expect("a file");
    let failure = refused.await.expect("refused");
    assert!(failure.message.contains("the journal has left behind"), "{failure:?}");
    release(&stage, stuck).await;
    open.run("COMMIT").await;
    let history = rows_of(&stage, SnapshotMode::Consistent).await.expect("the rows");
    makes(&history, &stage.db, &["public.items"], false).await;
}

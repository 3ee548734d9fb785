//! What keeps the log tables small, complete and unblocked while nothing is wrong.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::{
    harness::{
        Stage, eventually, stage,
        workload::{self, Plan, Workload},
    },
    logtables::{PATIENCE, drop_slot, everything, horizon, install, recoveries},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_pruned_all_the_time_still_has_what_a_replay_needs() {
    let mut stage = stage().sql(workload::SCHEMA).start().await;
    install(&stage);
    stage.db.run("UPDATE walcast.settings SET leaf_bytes = 65536").await;
    let workload = Workload::start(stage.cluster.config("postgres"), Plan { large_rows: 1000, ..Plan::random() });
    for round in 1..=2 {
        workload.commits(workload.report().committed + 20, PATIENCE).await;
        horizon(&stage).await;
        let before = stage.db.number("SELECT coalesce(min(id), 0) FROM walcast.log").await;
        eventually(PATIENCE, || async {
            let first = stage.db.number("SELECT coalesce(min(id), 0) FROM walcast.log").await;
            if first > before { Ok(()) } else { Err(format!("the oldest row is {first}, was {before}")) }
        })
        .await;
        stage.hub.kill9();
        drop_slot(&stage).await;
        workload.commits(workload.report().committed + 100, PATIENCE).await;
        stage.hub.start().await;
        recoveries(&stage, round).await;
    }
    println!("{:?}", workload.stop().await);
    let counts = everything(&stage, false).await;
    assert!(counts.replayed >= 100, "{counts:?}");
}

/// Leaves with rows, by number.
async fn leaves(stage: &Stage) -> Vec<String> {
    let rows = stage.db.rows("SELECT leaf, count(*) FROM walcast.log GROUP BY 1 ORDER BY 1").await;
    rows.into_iter().map(|row| row.into_iter().flatten().collect::<Vec<_>>().join(":")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruning_removes_nothing_that_the_horizon_does_not_cover() {
    let stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY)").prepare().await;
    install(&stage);
    let now = || async { stage.db.text("SELECT pg_current_snapshot()").await.expect("a snapshot") };
    let prune = async |snapshot: &str| stage.db.number(&format!("SELECT walcast.prune('{snapshot}')")).await;
    let long = stage.cluster.connect().await;
    long.run("BEGIN; INSERT INTO t VALUES (-1)").await;
    stage.db.run("INSERT INTO t VALUES (1)").await;
    let early = now().await;
    stage.db.run("UPDATE walcast.settings SET leaf_bytes = 8192").await;
    assert_eq!(prune(&early).await, 0, "the leaf that is written");
    stage.db.run("UPDATE walcast.settings SET leaf_bytes = 1000000").await;
    stage.db.run("INSERT INTO t VALUES (2)").await;
    assert_eq!(leaves(&stage).await, ["0:1", "1:1"]);
    // The writer holds its lock, although nobody sees its row.
    assert_eq!(prune(&now().await).await, 0, "a transaction still writes there");
    long.run("COMMIT").await;
    assert_eq!(prune(&early).await, 0, "it ended behind the horizon");
    assert_eq!(leaves(&stage).await, ["0:2", "1:1"]);
    assert_eq!(prune(&now().await).await, 1);
    assert_eq!(leaves(&stage).await, ["1:1"], "the leaf in use stays");
    let refused = stage.db.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT walcast.prune('1:1:')").await;
    assert!(refused.is_err(), "with one snapshot the check would be blind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_a_new_slot_waits_for_is_named() {
    let mut stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY, v text)").start().await;
    install(&stage);
    stage.db.run("INSERT INTO t VALUES (1, 'before')").await;
    horizon(&stage).await;
    stage.db.run("BEGIN; INSERT INTO t VALUES (2, 'prepared'); PREPARE TRANSACTION 'in doubt'").await;
    let xid = stage.db.text("SELECT transaction FROM pg_prepared_xacts").await.expect("the prepared one");
    stage.hub.terminate();
    drop_slot(&stage).await;
    stage.db.run("INSERT INTO t VALUES (3, 'gap')").await;
    stage.hub.spawn();
    let client = stage.client();
    let alarms = || async {
        let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
        Ok::<_, String>(status.source.unwrap_or_default())
    };
    eventually(PATIENCE, || async {
        let source = alarms().await?;
        let named = source.alarms.iter().any(|alarm| {
            let who = format!("RECOVERY_BLOCKED: transaction {xid}, prepared as \"in doubt\"");
            alarm.starts_with(&who) && alarm.ends_with(" s old")
        });
        let told = source.last_error.starts_with("RECOVERY_BLOCKED");
        if named && told { Ok(()) } else { Err(format!("{source:?}")) }
    })
    .await;
    // A hub that waits can be stopped, and the next one waits again.
    let (status, took) = stage.hub.terminate();
    assert!(status.success() && took < PATIENCE / 4, "{status} after {took:?}");
    stage.hub.spawn();
    stage.db.run("COMMIT PREPARED 'in doubt'").await;
    recoveries(&stage, 1).await;
    eventually(PATIENCE, || async {
        let source = alarms().await?;
        if source.connected && source.alarms.is_empty() { Ok(()) } else { Err(format!("{source:?}")) }
    })
    .await;
    let counts = everything(&stage, false).await;
    assert!(counts.streamed + counts.replayed == 3, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_was_not_logged_is_noticed_by_counting() {
    let publication = "CREATE PUBLICATION walcast FOR TABLE t, f WHERE (id % 2 = 0)";
    let tables = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE f (id int PRIMARY KEY)";
    let stage = stage().sql(tables).publication(publication).start().await;
    install(&stage);
    horizon(&stage).await;
    // Nothing that looks at triggers or DDL could notice this one.
    stage.db.run("ALTER EVENT TRIGGER walcast_ddl DISABLE").await;
    let (client, id) = (stage.client(), AtomicU32::new(0));
    // Two rows each time, of which the filter lets one pass.
    let alarmed_after = async |sql: &str, tables: &[&str]| {
        let id = id.fetch_add(2, Ordering::Relaxed);
        for table in tables {
            stage.db.run(&sql.replace("@", table).replace("#", &format!("VALUES ({id}), ({})", id + 1))).await;
        }
        let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
        let alarms = status.source.unwrap_or_default().alarms;
        let alarmed = |table: &&str| {
            alarms.iter().any(|alarm| alarm.starts_with(&format!("FAILOVER_NOT_PROTECTED: {table}: transaction ")))
        };
        Ok::<_, String>(tables.iter().filter(|table| alarmed(table)).count())
    };
    let unlogged = "BEGIN; ALTER TABLE @ DISABLE TRIGGER \"!walcast\"; INSERT INTO @ #; \
                    ALTER TABLE @ ENABLE ALWAYS TRIGGER \"!walcast\"; COMMIT";
    let told = |alarmed: usize, wanted: usize| if alarmed == wanted { Ok(()) } else { Err(stage.hub.log_tail(5)) };
    let tables = ["t", "f"];
    eventually(PATIENCE, || async { told(alarmed_after(unlogged, &tables).await?, 2) }).await;
    eventually(PATIENCE, || async { told(alarmed_after("INSERT INTO @ #", &tables).await?, 0) }).await;
}

//! The slot is gone, the log tables are not: nothing is missing, nothing comes twice.

use std::{os::unix::process::ExitStatusExt, process::Output, time::Duration};

use walcast::journal::inspect;

use crate::harness::{
    Stage,
    client::Request,
    eventually,
    follower::{Follower, Resume},
    history::History,
    stage,
    stage::held,
    validators::{self, Replica},
    workload::{self, Plan, Workload, ledger_agrees},
};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// `walcast` with arguments, against the stage's database.
pub fn walcast(stage: &Stage, args: &[&str]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_walcast"));
    command.args(args).env("WALCAST_DSN", stage.cluster.dsn()).output().expect("walcast")
}

pub fn install(stage: &Stage) {
    let output = walcast(stage, &["logtables", "install"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until the journal has recorded a horizon that was taken after the call.
pub async fn horizon(stage: &Stage) {
    let now = stage.flushed().await;
    eventually(PATIENCE, || async {
        match inspect::horizon(stage.hub.data_dir()).expect("readable") {
            Some(horizon) if horizon.high >= now => Ok(()),
            other => Err(format!("{other:?}, waiting for {now}")),
        }
    })
    .await;
}

pub async fn drop_slot(stage: &Stage) {
    eventually(PATIENCE, || async {
        let dropped = stage.db.batch_execute("SELECT pg_drop_replication_slot('walcast')").await;
        dropped.map_err(|error| error.to_string())
    })
    .await;
}

/// Waits until the hub has recovered this often.
pub async fn recoveries(stage: &Stage, times: usize) {
    eventually(PATIENCE, || async {
        let found = stage.hub.log().matches("recovered from the log tables").count();
        if found == times { Ok(()) } else { Err(format!("{found} of {times}: {}", stage.hub.log_tail(5))) }
    })
    .await;
}

/// Everything from the beginning, held against the oracle across recoveries. On a busy machine making a slot may take so long that
/// the log tables are polled meanwhile, and then there is no exact order to ask for.
pub async fn check(stage: &Stage, history: &History, exact_order: bool) -> validators::Counts {
    let truth = stage.truth().await;
    let parsed = held(history, validators::formal(history));
    let exact_order = exact_order && !parsed.polled();
    let counts = held(history, validators::recovered(&parsed, &truth, exact_order));
    if exact_order {
        held(history, validators::exact_lsns(&parsed, &truth));
    }
    let mut replica = Replica::default();
    held(history, replica.apply(&parsed));
    if stage.db.text("SELECT to_regclass('load.ledger')").await.is_some() {
        held(history, ledger_agrees(&stage.db, &parsed).await);
        let tables: Vec<String> = workload::TABLES.iter().map(|table| (*table).to_owned()).collect();
        held(history, replica.equals_source(&stage.db, &tables).await);
    }
    counts
}

/// A history from the beginning, whose changes must give the source's tables.
pub async fn replica_agrees(stage: &Stage, history: &History) {
    let parsed = held(history, validators::formal(history));
    let mut replica = Replica::default();
    held(history, replica.apply(&parsed));
    held(history, ledger_agrees(&stage.db, &parsed).await);
    let tables: Vec<String> = workload::TABLES.iter().map(|table| (*table).to_owned()).collect();
    held(history, replica.equals_source(&stage.db, &tables).await);
}

pub async fn everything(stage: &Stage, exact_order: bool) -> validators::Counts {
    let history = stage.collect(Request::new().earliest()).await;
    check(stage, &history, exact_order).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_dropped_under_load_is_made_good() {
    let mut stage = stage().sql(workload::SCHEMA).start().await;
    install(&stage);
    let inspect = "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_walinspect'";
    let exact = stage.db.number(inspect).await == 1;
    if exact {
        stage.db.run("CREATE EXTENSION pg_walinspect").await;
    }
    let plan = Plan { large_rows: 2000, ..Plan::random() };
    let follower = Follower::start(stage.client(), Request::new().earliest(), Resume::Position, true);
    let workload = Workload::start(stage.cluster.config("postgres"), plan);
    for round in 0..2 {
        workload.commits(workload.report().committed + 100, PATIENCE).await;
        horizon(&stage).await;
        stage.hub.kill9();
        drop_slot(&stage).await;
        workload.commits(workload.report().committed + 150, PATIENCE).await;
        stage.hub.start().await;
        recoveries(&stage, round + 1).await;
        println!("round {round}: {:?}", workload.report());
    }
    workload.commits(workload.report().committed + 50, PATIENCE).await;
    println!("{:?}", workload.stop().await);
    let found = stage.hub.log().matches("exact_order=true").count();
    assert_eq!(found, if exact { 2 } else { 0 }, "{}", stage.hub.log_tail(20));
    let goal = stage.flushed().await;
    let counts = everything(&stage, exact).await;
    println!("{counts:?}");
    assert!(counts.replayed >= 200 && counts.streamed >= 200, "{counts:?}");
    follower.reaches(goal, PATIENCE).await;
    let followed = follower.stop().await;
    check(&stage, &followed.history, false).await;
}

/// Places in a recovery, in their order.
const PLACES: [&str; 7] = [
    "recovery_slot_dropped",
    "recovery_slot_created",
    "recovery_mid_replay",
    "recovery_replayed",
    "recovery_before_recovered",
    "recovery_recovered",
    "segment_roll",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_of_a_recovery_survives_kill_9() {
    let mut stage = stage().sql(workload::SCHEMA).env("WALCAST_SEGMENT_BYTES", "1MiB").start().await;
    install(&stage);
    let plan = Plan { large_rows: 500, clients: 2, ..Plan::random() };
    let follower = Follower::start(stage.client(), Request::new().earliest(), Resume::Position, true);
    let workload = Workload::start(stage.cluster.config("postgres"), plan);
    workload.commits(50, PATIENCE).await;
    horizon(&stage).await;
    stage.hub.kill9();
    drop_slot(&stage).await;
    workload.commits(workload.report().committed + 100, PATIENCE).await;
    stage.db.run("INSERT INTO load.bulk SELECT -1, 1, i, md5(i::text) FROM generate_series(1, 60000) i").await;
    for (number, place) in PLACES.iter().enumerate() {
        for hit in 1..=2 {
            stage.hub.failpoints(&format!("{place}=abort@{hit}"));
            stage.hub.spawn();
            let ended = tokio::time::timeout(PATIENCE, async {
                loop {
                    if let Some(status) = stage.hub.exited() {
                        break Some(status);
                    }
                    if hit == 2 && stage.slot("active").await.as_deref() == Some("t") && recovered(&stage, number) {
                        break None; // it goes by this place once
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
            match ended.await.expect("an end") {
                Some(status) => assert_eq!(status.signal(), Some(6), "{place}: {status}\n{}", stage.hub.log_tail(20)),
                None => {
                    // The next place needs a lost slot again.
                    horizon(&stage).await;
                    stage.hub.kill9();
                    drop_slot(&stage).await;
                }
            }
            workload.commits(workload.report().committed + 20, PATIENCE).await;
            println!("{place}@{hit} {:?}", workload.report());
            if *place == "recovery_recovered" && hit == 1 {
                break;
            }
        }
    }
    workload.stop().await;
    stage.hub.failpoints("");
    stage.hub.start().await;
    stage.streaming().await;
    let goal = stage.flushed().await;
    let counts = everything(&stage, false).await;
    println!("{counts:?}");
    assert!(counts.replayed >= 50, "{counts:?}");
    follower.reaches(goal, PATIENCE).await;
    let followed = follower.stop().await;
    check(&stage, &followed.history, false).await;
}

fn recovered(stage: &Stage, _number: usize) -> bool {
    let log = stage.hub.log();
    let last_start = log.rfind("journal open").unwrap_or(0);
    log[last_start..].contains("recovered from the log tables")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_log_tables_a_lost_slot_is_told() {
    let mut stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY)").start().await;
    stage.hub.terminate();
    stage.db.run("INSERT INTO t VALUES (1)").await;
    drop_slot(&stage).await;
    stage.hub.spawn();
    let client = stage.client();
    eventually(PATIENCE, || async {
        let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
        let error = status.source.map(|source| source.last_error).unwrap_or_default();
        let told = error.starts_with("SLOT_LOST") && error.contains("walcast logtables install");
        if told { Ok(()) } else { Err(error) }
    })
    .await;
}

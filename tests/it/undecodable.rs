//! Slots that the server itself cannot decode: it answers each START_REPLICATION with an internal error at the same place.

use std::path::PathBuf;

use crate::{
    harness::{Db, Stage, client::Request, eventually, stage, versions},
    logtables::{PATIENCE, check, drop_slot, horizon, install, recoveries},
};

/// Begins a transaction that has an id; which.
async fn open(db: &Db) -> String {
    db.run("BEGIN").await;
    db.text("SELECT pg_current_xact_id()").await.expect("an id")
}

/// Waits until the creation of a slot waits for this transaction.
async fn waits_for(db: &Db, xid: &str) {
    let waiting = format!(
        "SELECT count(*) FROM pg_locks l JOIN pg_replication_slots s ON s.active_pid = l.pid
         WHERE l.locktype = 'transactionid' AND NOT l.granted AND l.transactionid = '{xid}'"
    );
    eventually(PATIENCE, || async { if db.number(&waiting).await == 1 { Ok(()) } else { Err(xid.to_owned()) } }).await;
}

/// While a slot is made, PostgreSQL overlooks what commits before the transactions that ran at the beginning have ended, if
/// one that began earlier still runs then. A table that was made meanwhile is unknown to the decoding of a row that comes
/// soon after. Returns once the slot is made; what is returned is to be committed.
async fn spoil(stage: &mut Stage, overlooked: &str, later: &str) -> Db {
    let (first, second, third) =
        (stage.cluster.connect().await, stage.cluster.connect().await, stage.cluster.connect().await);
    let xid = open(&first).await;
    stage.hub.spawn();
    waits_for(&stage.db, &xid).await;
    let xid = open(&second).await;
    stage.db.run(overlooked).await;
    first.run("COMMIT").await;
    waits_for(&stage.db, &xid).await;
    open(&third).await;
    third.run(later).await;
    second.run("COMMIT").await;
    third
}

/// Waits until the hub says this of its source.
async fn told(stage: &Stage, reason: &str, parts: &[&str]) -> String {
    eventually(PATIENCE, || async {
        let status = stage.client().status().await.map_err(|failure| format!("{failure:?}"))?;
        let error = status.source.unwrap_or_default().last_error;
        let all = error.starts_with(reason) && parts.iter().all(|part| error.contains(part));
        if all { Ok(error) } else { Err(error) }
    })
    .await
}

async fn made_good(major: u32) {
    let mut stage = stage().version(major).sql("CREATE TABLE t (id int PRIMARY KEY)").start().await;
    install(&stage);
    stage.db.run("INSERT INTO t VALUES (1)").await;
    horizon(&stage).await;
    stage.hub.kill9();
    drop_slot(&stage).await;
    stage.db.run("INSERT INTO t VALUES (2)").await;
    let born = "CREATE TABLE born (id int PRIMARY KEY)";
    let third = spoil(&mut stage, born, "INSERT INTO born VALUES (1)").await;
    recoveries(&stage, 1).await;
    stage.streaming().await;
    third.run("COMMIT").await;
    stage.db.run("INSERT INTO born VALUES (2); INSERT INTO t VALUES (3)").await;
    recoveries(&stage, 2).await;
    stage.streaming().await;
    stage.db.run("INSERT INTO born VALUES (3)").await;
    stage.journaled().await;
    let history = stage.collect(Request::new().earliest()).await;
    let counts = check(&stage, &history, false).await;
    assert_eq!((counts.streamed, counts.replayed), (2, 4), "{counts:?}");
    let log = stage.hub.log();
    assert!(log.contains("cannot be decoded from") && log.contains("to relation OID"), "{}", stage.hub.log_tail(20));
    assert_eq!(stage.hub.metric("walcast_slot_decode_failures_total").await, 6.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_cannot_be_decoded_is_made_good() {
    made_good(versions::default_major()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_cannot_be_decoded_is_made_good_on_every_version_of_the_matrix() {
    for major in versions::matrix() {
        made_good(major).await;
    }
}

/// The snapshot that decoding begins with, damaged; what it was.
async fn damage(stage: &Stage) -> (PathBuf, Vec<u8>) {
    let restart = stage.slot("restart_lsn").await.expect("a slot").replace('/', "-");
    let file = stage.cluster.data_dir().join(format!("pg_logical/snapshots/{restart}.snap"));
    let was = std::fs::read(&file).expect("a snapshot");
    let mut damaged = was.clone();
    damaged.iter_mut().for_each(|byte| *byte ^= 0x55);
    std::fs::write(&file, damaged).expect("damaged");
    (file, was)
}


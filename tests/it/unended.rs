//! Recoveries from log tables that do not end: what is said of the slot afterwards, and what becomes of it.

use std::os::unix::process::ExitStatusExt;

use walcast::{lsn::Lsn, wire::pb::event::Kind};

use crate::{
    harness::{
        Stage,
        client::Request,
        eventually,
        history::lsn,
        parsed::{Cell, Parsed},
        stage,
        stage::held,
    },
    logtables::{PATIENCE, drop_slot, horizon, install, walcast},
    logtables_causes::last_error,
};

/// A hub that was stopped with one row journaled, log tables installed, a second row in the source.
async fn stopped() -> Stage {
    let mut stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY)").no_oracle().start().await;
    install(&stage);
    stage.db.run("INSERT INTO t VALUES (1)").await;
    horizon(&stage).await;
    stage.hub.terminate();
    stage.db.run("INSERT INTO t VALUES (2)").await;
    stage
}

/// Has the policy go on behind the gap; where the gap ends, and the rows that there are.
async fn go_on(stage: &mut Stage, id: i64) -> (Lsn, Vec<i64>) {
    stage.hub.terminate();
    stage.hub.env("WALCAST_ON_SLOT_LOST", "continue");
    stage.hub.start().await;
    stage.hub.metric_becomes("walcast_source_connected", PATIENCE, |connected| connected == 1.0).await;
    stage.db.run(&format!("INSERT INTO t VALUES ({id})")).await;
    stage.journaled().await;
    let history = stage.collect(Request::new().earliest()).await;
    let gaps = history.last().kinds().filter_map(|kind| match kind {
        Kind::Gap(gap) => Some(lsn(&gap.up_to.as_ref().expect("an end").lsn)),
        _ => None,
    });
    let gaps: Vec<Lsn> = gaps.collect();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    let parsed = held(&history, Parsed::of(&history));
    let ids = parsed.items().map(|item| match item.what.get("id") {
        Some(Cell::Int(id)) => *id,
        other => panic!("{other:?}"),
    });
    (gaps[0], ids.collect())
}

async fn confirmed(stage: &Stage) -> Lsn {
    stage.db.lsn("(SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'walcast')").await
}

/// Nothing has been done to the slot yet: it is what it was, and the policy to go on uses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_does_not_begin_changes_nothing() {
    let mut stage = stopped().await;
    stage.db.run("SELECT pg_replication_slot_advance('walcast', pg_current_wal_insert_lsn())").await;
    let ahead = confirmed(&stage).await;
    stage.db.run("INSERT INTO t VALUES (3)").await;
    stage.hub.failpoints("recovery_checked=abort@1");
    stage.hub.spawn();
    assert_eq!(stage.hub.wait_exit(PATIENCE).await.signal(), Some(6), "{}", stage.hub.log_tail(10));
    let output = walcast(&stage, &["logtables", "uninstall", "--yes"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    stage.hub.failpoints("");
    stage.hub.spawn();
    last_error(&stage, "SLOT_LOST", &format!("was acknowledged up to {ahead} elsewhere")).await;
    last_error(&stage, "SLOT_LOST", &format!(" to {ahead} would be missing")).await;
    assert_eq!(go_on(&mut stage, 4).await, (ahead, vec![1, 3, 4]));
}

/// The new slot is made, and the log turns out not to have everything. Nobody died: the slot has what comes from where it
/// begins, unless DDL may have been overlooked.
async fn no_longer_covered(ddl: bool) {
    let mut stage = stopped().await;
    drop_slot(&stage).await;
    let release = stage.hub.hold("recovery_slot_created=hold@1");
    let is_held = release.with_extension("held");
    stage.hub.spawn();
    eventually(PATIENCE, || async { if is_held.exists() { Ok(()) } else { Err(stage.hub.log_tail(3)) } }).await;
    let begins = confirmed(&stage).await;
    if ddl {
        stage.db.run("ALTER TABLE t ADD a text").await;
    }
    stage
        .db
        .run(
            "INSERT INTO walcast.shapes (relid, created, captured, shape)
             SELECT s.relid, false, false, s.shape FROM walcast.shapes s WHERE s.relid = 't'::regclass LIMIT 1; \
             INSERT INTO t VALUES (3)",
        )
        .await;
    std::fs::write(&release, "").expect("a file");
    let said = if ddl { ", and DDL has committed since" } else { &*format!(", and begins at {begins}") };
    last_error(&stage, "SLOT_LOST", &format!("was made for a recovery that did not end{said}")).await;
    if !ddl {
        last_error(&stage, "SLOT_LOST", &format!(" to {begins} would be missing")).await;
    }
    assert!(!stage.hub.log().contains("died"), "{}", stage.hub.log_tail(20));
    let (gap, ids) = go_on(&mut stage, 4).await;
    match ddl {
        false => assert_eq!((gap, ids), (begins, vec![1, 3, 4])),
        true => assert!(gap > begins && ids == [1, 4], "{gap} {begins} {ids:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_does_not_end_leaves_a_slot_that_is_used() {
    no_longer_covered(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_may_have_overlooked_ddl_is_made_again() {
    no_longer_covered(true).await;
}

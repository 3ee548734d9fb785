//! Slots that the server itself cannot decode: it answers each START_REPLICATION with an internal error at the same place.

use walcast::{lsn::Lsn, wire::pb::event::Kind};

use crate::{
    harness::{Db, Stage, client::Request, eventually, parsed::Parsed, stage, stage::held, validators, versions},
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

/// The hub keeps a slot that PostgreSQL will not be able to decode, which it does not do by itself.
async fn spoil(stage: &mut Stage) -> Db {
    stage.hub.failpoints("overlook_ddl=plant");
    let ddl = "CREATE TABLE born (id int PRIMARY KEY)";
    overlooked(stage, ddl, "INSERT INTO born VALUES (1)").await.0
}

/// While a slot is made, PostgreSQL overlooks what commits before the transactions that ran at the beginning have ended, if
/// one that began earlier still runs then. A table that was made meanwhile is unknown to the decoding of a row that comes
/// soon after. Returns once the slot is made; the transaction that is returned is to be committed.
async fn overlooked(stage: &mut Stage, ddl: &str, later: &str) -> (Db, String) {
    let (first, second, third) =
        (stage.cluster.connect().await, stage.cluster.connect().await, stage.cluster.connect().await);
    let xid = open(&first).await;
    stage.hub.spawn();
    waits_for(&stage.db, &xid).await;
    let xid = open(&second).await;
    stage.db.run(ddl).await;
    first.run("COMMIT").await;
    waits_for(&stage.db, &xid).await;
    let xid = open(&third).await;
    third.run(later).await;
    second.run("COMMIT").await;
    (third, xid)
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
    let third = spoil(&mut stage).await;
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

/// A column that is added while the slot is made, for the first time or anew: what comes in it is not left out.
async fn not_overlooked(major: u32) {
    let mut stage = stage().version(major).sql("CREATE TABLE t (id int PRIMARY KEY)").no_oracle().prepare().await;
    let (third, xid) = overlooked(&mut stage, "ALTER TABLE t ADD a text", "SELECT").await;
    waits_for(&stage.db, &xid).await;
    third.run("COMMIT").await;
    stage.hub.ready().await;
    install(&stage);
    stage.db.run("INSERT INTO t VALUES (2, 'a')").await;
    horizon(&stage).await;
    stage.hub.kill9();
    drop_slot(&stage).await;
    let (third, xid) = overlooked(&mut stage, "ALTER TABLE t ADD b text", "INSERT INTO t VALUES (3, 'a', 'b')").await;
    waits_for(&stage.db, &xid).await;
    third.run("COMMIT").await;
    recoveries(&stage, 1).await;
    stage.db.run("INSERT INTO t VALUES (4, 'a', 'b'); UPDATE t SET a = 'c' WHERE id = 2").await;
    stage.journaled().await;
    let history = stage.collect(Request::new().earliest()).await;
    let parsed = held(&history, validators::formal(&history));
    let mut replica = validators::Replica::default();
    held(&history, replica.apply(&parsed));
    held(&history, replica.equals_source(&stage.db, &["public.t".to_owned()]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ddl_while_a_slot_is_made_is_not_overlooked() {
    not_overlooked(versions::default_major()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ddl_while_a_slot_is_made_is_not_overlooked_on_every_version_of_the_matrix() {
    for major in versions::matrix() {
        not_overlooked(major).await;
    }
}

/// A hub that dies before it has compared what tables were like before and after the making of its first slot: the next one
/// uses the slot if nothing has changed, and else makes it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_nobody_has_examined_is() {
    let sql = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (3)";
    let mut stage = stage().sql(sql).no_oracle().prepare().await;
    let (adopted, again) = ("found the slot; the journal is new", "DDL has committed since the slot was begun");
    let data = stage.hub.data_dir().to_owned();
    stage.hub.in_data_dir(&data.with_file_name("first"));
    stage.hub.failpoints("slot_unexamined=abort@1");
    stage.hub.spawn();
    stage.hub.wait_exit(PATIENCE).await;
    stage.hub.failpoints("");
    stage.hub.start().await;
    stage.streaming().await;
    let log = stage.hub.log();
    assert!(log.contains(adopted) && !log.contains(again), "{log}");
    stage.hub.terminate();
    drop_slot(&stage).await;

    stage.hub.in_data_dir(&data);
    stage.hub.failpoints("slot_unexamined=abort@1");
    let update = "UPDATE t SET a = 'a' WHERE id = 3";
    let (third, xid) = overlooked(&mut stage, "ALTER TABLE t ADD a text", update).await;
    stage.hub.wait_exit(PATIENCE).await;
    stage.hub.failpoints("");
    stage.hub.spawn();
    waits_for(&stage.db, &xid).await; // the slot that was there would have this row without its column
    third.run("COMMIT").await;
    stage.hub.ready().await;
    stage.streaming().await;
    stage.db.run("INSERT INTO t VALUES (4, 'a'); UPDATE t SET a = 'b'").await;
    assert!(stage.hub.log().contains(again), "{}", stage.hub.log());
    stage.journaled().await;
    let history = stage.collect(Request::new().earliest()).await;
    let parsed = held(&history, validators::formal(&history));
    let cells: Vec<_> =
        parsed.transactions().flat_map(|span| &span.items).map(|item| format!("{:?}", item.what)).collect();
    assert_eq!(cells.len(), 3, "{cells:#?}");
    assert!(cells[1..].iter().all(|cells| cells.contains("\"b\"")), "{cells:#?}");
    // Nobody's slot is in question any more.
    stage.hub.kill9();
    stage.hub.start().await;
    stage.streaming().await;
    assert_eq!(stage.hub.log().matches("created the slot").count(), 1);
}

/// Nothing can make it good, so it is kept, whatever the policy says: an operator may repair it, or drop it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_log_tables_it_is_kept_and_the_gap_is_told() {
    let setup = stage().sql("CREATE TABLE t (id int PRIMARY KEY)").args(&["--set", "source.on_slot_lost=continue"]);
    let mut stage = setup.no_oracle().prepare().await;
    let third = spoil(&mut stage).await;
    stage.hub.ready().await;
    stage.db.run("INSERT INTO t VALUES (1)").await;
    let mut live = stage.client().subscribe(&Request::new().earliest()).await;
    live.until("a row from before", |log| log.commits() == 1).await;
    let before = stage.flushed().await;
    third.run("COMMIT").await;
    stage.db.run("INSERT INTO t VALUES (2)").await;
    let error = told(&stage, "SLOT_LOST", &["cannot be decoded from", "to relation OID", "logtables install"]).await;
    assert!(error.contains("the slot is kept and tried again"), "{error}");
    let failure = live.fails_with("SLOT_LOST").await;
    let bound = |key: &str| failure.metadata.get(key).and_then(|lsn| lsn.parse::<Lsn>().ok()).expect("a bound");
    assert!(bound("from") <= before && bound("to") > before, "{failure:?}");
    let confirmed = stage.db.lsn("(SELECT confirmed_flush_lsn FROM pg_replication_slots)").await;
    assert!(confirmed <= before, "{confirmed} is behind {before}");
    assert_eq!(stage.hub.metric("walcast_source_connected").await, 0.0);

    // Dropped by an operator: the policy applies.
    drop_slot(&stage).await;
    stage.hub.metric_becomes("walcast_source_connected", PATIENCE, |connected| connected == 1.0).await;
    let mut live = stage.client().subscribe(&Request::new().earliest()).await;
    live.until("the gap", |log| log.kinds().any(|kind| matches!(kind, Kind::Gap(_)))).await;
    stage.db.run("INSERT INTO born VALUES (3)").await;
    live.until("what comes behind it", |log| log.commits() == 2).await;

    // A damaged file that is repaired: the hub goes on by itself, and nothing is missing.
    // A transaction that is open where decoding begins makes the file indispensable.
    let running = stage.cluster.connect().await;
    open(&running).await;
    let since = stage.flushed().await;
    let restart = "(SELECT restart_lsn FROM pg_replication_slots)";
    eventually(PATIENCE, || async {
        stage.db.run("CHECKPOINT; SELECT pg_logical_emit_message(false, '', '')").await;
        let restart = stage.db.lsn(restart).await;
        if restart > since { Ok(()) } else { Err(restart) }
    })
    .await;
    stage.hub.terminate();
    let name = stage.db.lsn(restart).await.to_string().replace('/', "-");
    let file = stage.cluster.data_dir().join(format!("pg_logical/snapshots/{name}.snap"));
    let whole = std::fs::read(&file).expect("a snapshot");
    let rows = stage.db.number("SELECT count(*) FROM born").await;
    std::fs::write(&file, whole.iter().map(|byte| !byte).collect::<Vec<_>>()).expect("damaged");
    stage.db.run("INSERT INTO born VALUES (4)").await;
    stage.hub.start().await;
    told(&stage, "SLOT_LOST", &["cannot be decoded from", "XX001"]).await;
    std::fs::write(&file, whole).expect("repaired");
    stage.journaled().await;
    stage.hub.metric_becomes("walcast_source_connected", PATIENCE, |connected| connected == 1.0).await;
    let history = stage.collect(Request::new().earliest().tables(&["public.born"])).await;
    let parsed = held(&history, Parsed::of(&history));
    assert_eq!(parsed.transactions().count() as i64, rows, "one of them lay in the gap, and one came since");
}

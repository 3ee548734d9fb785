//! The primary is killed, a standby without the slot takes its place: the stream goes on with what the log tables have,
//! nothing is missing and nothing comes twice, and what was lost with the old primary is taken back in words.

use std::os::unix::process::ExitStatusExt;

use walcast::{journal::inspect, wire::pb};

use crate::{
    failover::status_says,
    harness::{
        client::Request,
        eventually,
        follower::{Follower, Resume},
        history::History,
        hub::Hub,
        pair::{self, Pair, Slots, kept, retracted},
        parsed::Parsed,
        stage::held,
        validators::{self, Replica},
        versions,
        workload::{self, Plan, Workload, ledger_agrees},
    },
    logtables::PATIENCE,
};

pub fn install(pair: &Pair) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_walcast"));
    command.args(["logtables", "install"]).env("WALCAST_DSN", pair.primary.dsn());
    let output = command.output().expect("walcast");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until the journal has a horizon that was taken after the call, and the standby has what it covers.
pub async fn horizon(pair: &Pair) {
    recorded(pair).await;
    pair.caught_up().await;
}

/// Waits until the journal has a horizon that was taken after the call.
async fn recorded(pair: &Pair) {
    let now = pair.flushed().await;
    eventually(PATIENCE, || async {
        match inspect::horizon(pair.hub.data_dir()).expect("readable") {
            Some(horizon) if horizon.high >= now => Ok(()),
            other => Err(format!("{other:?}, waiting for {now}")),
        }
    })
    .await;
}

/// Waits until the hub has recovered this often.
pub async fn recoveries(pair: &Pair, times: usize) {
    eventually(PATIENCE, || async {
        let found = pair.hub.log().matches("recovered from the log tables").count();
        if found == times { Ok(()) } else { Err(format!("{found} of {times}: {}", pair.hub.log_tail(5))) }
    })
    .await;
}

pub struct Seen {
    pub retracted: usize,
    pub replayed: usize,
}

/// A history across switches: formally right, and without what was taken back it is the survivor's history.
pub async fn check(pair: &Pair, history: &History) -> Seen {
    let parsed = held(history, Parsed::of(history));
    held(history, validators::ordered(&parsed));
    held(history, validators::unique(&parsed));
    held(history, validators::lineage(&parsed, None));
    held(history, validators::loud(history));
    let kept = kept(history);
    let left = held(&kept, Parsed::of(&kept));
    let db = pair.db().await;
    held(&kept, ledger_agrees(&db, &left).await);
    let mut replica = Replica::default();
    held(&kept, replica.apply(&left));
    let tables: Vec<String> = workload::TABLES.iter().map(|table| (*table).to_owned()).collect();
    held(&kept, replica.equals_source(&db, &tables).await);
    let replayed = left.transactions().filter(|span| span.provenance == pb::Provenance::LogReplay as i32).count();
    Seen { retracted: retracted(&parsed).len(), replayed }
}

/// Promotes with losses, writes before the hub is there, kills the hub at these places of the recovery, and compares.
async fn promoted_without_the_slot(major: u32, places: &[&str]) {
    let mut pair = Pair::start(major, Slots::Lost, workload::SCHEMA, &[]).await;
    install(&pair);
    let plan = Plan { large_rows: 300, clients: 3, ..Plan::random() };
    let follower = Follower::start(pair.client(), Request::new().earliest(), Resume::Position, true);
    let workload = Workload::start(pair.primary.config("postgres"), plan);
    workload.commits(60, PATIENCE).await;
    horizon(&pair).await;
    workload.commits(workload.report().committed + 30, PATIENCE).await;
    // From here on the standby has nothing: the hub shows it to subscribers, and it will be lost.
    pair.cut_off().await;
    workload.commits(workload.report().committed + 40, PATIENCE).await;
    let shown = pair.flushed().await;
    follower.reaches(shown, PATIENCE).await;
    // The newest horizon lies behind the switch: what it sees, other transactions will be called by the same ids.
    recorded(&pair).await;
    pair.hub.kill9();
    pair.fail_over().await;
    println!("before: {:?}", workload.stop().await);
    let plan = Plan { first_client: 100, ..plan };
    let workload = Workload::start(pair.primary.config("postgres"), plan);
    workload.commits(80, PATIENCE).await;
    println!("after: {:?}", workload.stop().await);
    for (number, place) in places.iter().enumerate() {
        pair.hub.failpoints(&format!("{place}=abort@1"));
        pair.hub.spawn();
        let status = pair.hub.wait_exit(PATIENCE).await;
        assert_eq!(status.signal(), Some(6), "{place}: {status}\n{}", pair.hub.log_tail(20));
        let more = format!("INSERT INTO load.ledger (client, n) VALUES (-1, {number})");
        pair.db().await.run(&more).await;
    }
    let plan = Plan { first_client: 200, ..plan };
    let workload = Workload::start(pair.primary.config("postgres"), plan);
    pair.hub.failpoints("");
    pair.hub.start().await;
    recoveries(&pair, 1).await;
    workload.commits(workload.report().committed + 40, PATIENCE).await;
    println!("after: {:?}", workload.stop().await);
    let goal = pair.flushed().await;
    let whole = pair.collect(Request::new().earliest()).await;
    let seen = check(&pair, &whole).await;
    assert!(seen.replayed >= 80, "{} were replayed", seen.replayed);
    assert_eq!(seen.retracted, 0, "this stream was never sent any of it");
    follower.reaches(goal, PATIENCE).await;
    let history = follower.stop().await.history;
    let seen = check(&pair, &history).await;
    assert!(seen.replayed >= 80 && seen.retracted >= 30, "{} replayed, {} retracted", seen.replayed, seen.retracted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_standby_without_the_slot_is_followed_without_a_gap() {
    promoted_without_the_slot(versions::default_major(), &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_after_a_promotion_survives_kill_9() {
    let places = [
        "before_lineage",
        "after_lineage",
        "slot_unexamined",
        "recovery_slot_created",
        "recovery_mid_replay",
        "recovery_before_recovered",
    ];
    promoted_without_the_slot(versions::default_major(), &places).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_without_the_slot_on_every_version_of_the_matrix() {
    for major in versions::matrix() {
        promoted_without_the_slot(major, &["recovery_mid_replay"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_promotions_in_a_row() {
    let mut pair = Pair::start(versions::default_major(), Slots::Lost, workload::SCHEMA, &[]).await;
    install(&pair);
    let follower = Follower::start(pair.client(), Request::new().earliest(), Resume::Position, true);
    for round in 0..2 {
        let plan = Plan { ddl: false, clients: 2, first_client: 100 * round, ..Plan::random() };
        let workload = Workload::start(pair.primary.config("postgres"), plan);
        workload.commits(40, PATIENCE).await;
        horizon(&pair).await;
        workload.commits(workload.report().committed + 20, PATIENCE).await;
        pair.cut_off().await;
        workload.commits(workload.report().committed + 10, PATIENCE).await;
        pair.fail_over().await;
        println!("round {round}: {:?}", workload.stop().await);
        recoveries(&pair, round as usize + 1).await;
        if round == 0 {
            pair.rebuild().await;
        }
    }
    let goal = pair.flushed().await;
    follower.reaches(goal, PATIENCE).await;
    check(&pair, &follower.stop().await.history).await;
    check(&pair, &pair.collect(Request::new().earliest()).await).await;
}

/// The newest horizon lies behind the switch. What it sees has never happened on the new primary, where other transactions
/// have these ids: their rows stay in the log until the journal has a horizon of the new history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_that_are_handed_out_again_are_not_pruned() {
    let tables = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)";
    let mut pair = Pair::start(versions::default_major(), Slots::Copied, tables, &[]).await;
    install(&pair);
    horizon(&pair).await;
    pair.cut_off().await;
    let db = pair.db().await;
    for id in 0..40 {
        db.run(&format!("INSERT INTO t VALUES ({id})")).await;
    }
    let dead: i64 = db.number("SELECT pg_current_xact_id()::text::int8").await;
    drop(db);
    recorded(&pair).await;
    pair.hub.pause(true);
    pair.fail_over().await;
    let db = pair.db().await;
    db.run("INSERT INTO t VALUES (100); INSERT INTO t VALUES (101)").await;
    assert!(db.number("SELECT max(xid::text::int8) FROM walcast.log").await < dead, "ids are handed out again");
    // The leaf with these rows is not written any more, and an alarm shows that the hub has looked at the log tables.
    db.run("UPDATE walcast.settings SET leaf_bytes = 1; SELECT walcast.prune('1:1:')").await;
    db.run("ALTER TABLE other DISABLE TRIGGER ALL").await;
    pair.hub.pause(false);
    status_says(&pair, |status| {
        let alarms = status.source.as_ref().map(|source| source.alarms.clone()).unwrap_or_default();
        alarms.iter().any(|alarm| alarm.starts_with("FAILOVER_NOT_PROTECTED: public.other"))
    })
    .await;
    pair.hub.terminate();
    assert_eq!(db.number("SELECT count(*) FROM walcast.log WHERE new_row IN ('(100)', '(101)')").await, 2);
}

/// Behind the gate a recovery waits, too, and says for whom: what it would show is lost with the primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_waits_for_the_gate() {
    let gate = ["--set", "source.gate=walreceiver"];
    let mut pair = Pair::start(versions::default_major(), Slots::Lost, workload::SCHEMA, &gate).await;
    install(&pair);
    let write = async |pair: &Pair, n: i64| {
        pair.db().await.run(&format!("INSERT INTO load.ledger (client, n) VALUES (-1, {n})")).await;
    };
    write(&pair, 1).await;
    horizon(&pair).await;
    pair.hub.kill9();
    let slot = "SELECT pg_drop_replication_slot('walcast')";
    eventually(PATIENCE, || async { pair.db().await.batch_execute(slot).await.map_err(|error| error.to_string()) })
        .await;
    write(&pair, 2).await;
    pair.caught_up().await;
    pair.cut_off().await;
    write(&pair, 3).await;
    pair.hub.spawn();
    status_says(&pair, |status| {
        let alarms = status.source.as_ref().map(|source| source.alarms.clone()).unwrap_or_default();
        alarms.iter().any(|alarm| alarm.starts_with("RECOVERY_BLOCKED: standbys of the gate (walreceiver)"))
    })
    .await;
    let mut live = pair.client().subscribe(&Request::new().earliest()).await;
    live.until("what was journaled", |log| log.commits() == 1).await;
    pair.fail_over().await;
    write(&pair, 4).await;
    pair.rebuild().await;
    live.until("what the survivor has", |log| log.commits() == 3).await;
    let history = live.close();
    let seen = check(&pair, &history).await;
    assert_eq!((seen.replayed, seen.retracted), (2, 0));
}

/// The recovery waits for a transaction that nobody ends, and meanwhile the standby is promoted. The old primary lives on and
/// would keep the hub waiting for ever; the hub looks at the other servers all the same, and leaves it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_waits_ends_when_another_server_has_gone_on() {
    let mut pair = Pair::start(versions::default_major(), Slots::Lost, workload::SCHEMA, &[]).await;
    install(&pair);
    let write = async |pair: &Pair, n: i64| {
        pair.db().await.run(&format!("INSERT INTO load.ledger (client, n) VALUES (-1, {n})")).await;
    };
    write(&pair, 1).await;
    horizon(&pair).await;
    pair.hub.terminate();
    let db = pair.db().await;
    db.run("SELECT pg_drop_replication_slot('walcast')").await;
    db.run("BEGIN; INSERT INTO load.ledger (client, n) VALUES (-1, 2); PREPARE TRANSACTION 'in doubt'").await;
    write(&pair, 3).await;
    pair.hub.spawn();
    status_says(&pair, |status| {
        let source = status.source.clone().unwrap_or_default();
        let waits = source.alarms.iter().any(|alarm| alarm.starts_with("RECOVERY_BLOCKED: transaction "));
        waits && matches!(&source.standbys[..], [standby] if standby.detail == "the slot is not there")
    })
    .await;
    pair.caught_up().await;
    pair.standby.promote().await;
    std::mem::swap(&mut pair.primary, &mut pair.standby);
    pair.db().await.run("COMMIT PREPARED 'in doubt'").await;
    write(&pair, 4).await;
    recoveries(&pair, 1).await;
    assert!(pair.hub.log().contains("has gone on on timeline 2"), "{}", pair.hub.log_tail(20));
    write(&pair, 5).await;
    pair::streaming(&pair.primary).await;
    check(&pair, &pair.collect(Request::new().earliest()).await).await;
}

/// The new primary dies while the hub replays its log, and a third server takes over from further back: what was begun
/// belongs to a history that is left. The hub ends, and the next one follows the third.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_whose_source_dies_is_forgotten() {
    let mut pair = Pair::prepare(versions::default_major(), Slots::Lost, workload::SCHEMA, &[]).await;
    let third = pair.primary.standby(&pair::SETTINGS).await;
    pair.hub = Hub::new(&pair::dsn(&[&pair.primary, &pair.standby, &third]));
    pair.hub.start().await;
    pair.streaming().await;
    install(&pair);
    let db = pair.db().await;
    db.run("INSERT INTO load.ledger (client, n) VALUES (-1, 1)").await;
    horizon(&pair).await;
    pair::replayed(&third, &pair.primary).await;
    pair::isolate(&third).await;
    pair.hub.kill9();
    for n in 0..3 {
        let rows = format!("SELECT -7, {n}, i, repeat(md5(i::text), 200) FROM generate_series(1, 1000) i");
        db.run(&format!("INSERT INTO load.bulk {rows}")).await;
    }
    pair.caught_up().await;
    drop(db);
    pair.fail_over().await;
    let (release, held) = (pair.hub.dir().join("release"), pair.hub.dir().join("release.held"));
    pair.hub.failpoints("recovery_mid_replay=hold@20");
    pair.hub.env("WALCAST_FAILPOINT_RELEASE", &release.display().to_string());
    pair.hub.spawn();
    eventually(PATIENCE, || async { if held.exists() { Ok(()) } else { Err(pair.hub.log_tail(3)) } }).await;
    pair.primary.kill9();
    third.promote().await;
    pair.primary = third;
    pair.db().await.run("INSERT INTO load.ledger (client, n) VALUES (-1, 2)").await;
    std::fs::write(&release, "").expect("a file");
    let status = pair.hub.wait_exit(PATIENCE).await;
    assert_eq!(status.code(), Some(1), "{}", pair.hub.log_tail(5));
    assert!(pair.hub.log().contains("a replay from the log tables was begun and cannot be ended"));
    pair.hub.failpoints("");
    pair.hub.start().await;
    recoveries(&pair, 1).await;
    pair.db().await.run("INSERT INTO load.ledger (client, n) VALUES (-1, 3)").await;
    let history = pair.collect(Request::new().earliest()).await;
    let seen = check(&pair, &history).await;
    assert_eq!((seen.replayed, seen.retracted), (1, 0));
}

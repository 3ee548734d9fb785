//! A slot that came to the new primary by other means than the server's own. PostgreSQL streams from it whether or not it
//! can be decoded from where it stands; the hub does not.

use std::time::Duration;

use walcast::wire::pb::{Provenance, event::Kind};

use crate::{
    failover::ids,
    harness::{
        Db, Shutdown,
        client::Request,
        eventually,
        follower::{Follower, Resume},
        history::lsn,
        pair::{self, Pair, Slots},
        parsed::Parsed,
        stage::held,
        validators, versions,
        workload::{self, Plan, Workload},
    },
    logtables_failover::{check, horizon, install, recoveries},
};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";
const PATIENCE: Duration = Duration::from_secs(60);

/// Lets the slot's restart_lsn pass a transaction that stays open and has written nothing, so that decoding from there
/// needs the serialized snapshot.
async fn moves_into(pair: &Pair, open: &Db) {
    open.run("BEGIN; SELECT pg_current_xact_id()").await;
    let db = pair.db().await;
    let begun = db.lsn("pg_current_wal_insert_lsn()").await;
    eventually(PATIENCE, || async {
        db.run("INSERT INTO t VALUES (-1, 'moves it'); DELETE FROM t WHERE id = -1; CHECKPOINT").await;
        let sql = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'walcast'";
        let restart = db.text(sql).await.unwrap_or_default();
        if lsn(&restart) > begun { Ok(()) } else { Err(format!("{restart}, waiting for {begun}")) }
    })
    .await;
}

/// The primary dies with a transaction open at the slot's restart_lsn, after commits that the hub has not read; the slot's
/// state file has come to the standby as it was before them, and nothing else of it.
async fn with_the_state_file_alone(major: u32, args: &[&str], log_tables: bool, prepared: bool) -> Pair {
    let mut pair = Pair::start(major, Slots::Lost, TABLE, args).await;
    let db = pair.db().await;
    db.run("INSERT INTO t VALUES (1, 'journaled')").await;
    if log_tables {
        install(&pair);
        horizon(&pair).await;
    }
    let open = pair.db().await;
    moves_into(&pair, &open).await;
    if prepared {
        open.run("PREPARE TRANSACTION 'left behind'").await;
    }
    pair.journaled().await;
    pair.hub.kill9();
    pair.caught_up().await;
    pair.standby.stop(Shutdown::Fast);
    pair.copy_state("walcast");
    pair.standby.resume();
    for id in 2..=5 {
        db.run(&format!("INSERT INTO t VALUES ({id}, 'committed before the failover')")).await;
    }
    pair.caught_up().await;
    pair.fail_over().await;
    drop(open);
    pair.db().await.run("INSERT INTO t VALUES (6, 'committed after it')").await;
    pair
}

/// How many of the five rows PostgreSQL itself would give a consumer that trusts the slot. Moves nothing.
async fn given(pair: &Pair) -> i64 {
    let sql = "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('walcast', NULL, NULL, 'proto_version', '1', \
               'publication_names', 'walcast') WHERE get_byte(data, 0) = ascii('I')";
    pair.db().await.number(sql).await
}

async fn kept(pair: &Pair) -> Vec<i64> {
    let whole = pair.collect(Request::new().earliest()).await;
    let ids = ids(&held(&whole, Parsed::of(&whole)));
    ids.into_iter().filter(|id| *id > 0).collect()
}

async fn a_state_file_alone(major: u32) {
    let mut pair = with_the_state_file_alone(major, &[], false, false).await;
    let given = given(&pair).await;
    assert!(given < 2, "{given} of five: PostgreSQL has become better than it was");
    pair.hub.start().await;
    let error = pair.source_error("SLOT_LOST").await;
    assert!(error.contains(".snap") && error.contains("did not come along"), "{error}");
    let mut stream = pair.client().subscribe(&Request::new().earliest()).await;
    let failure = stream.fails_with("SLOT_LOST").await;
    assert!(failure.lsn("from") < failure.lsn("to"), "{failure:?}");
    assert!(failure.message.contains("drop it (walcast slot drop)"), "a new data directory would take it: {failure:?}");
    // With what its decoding begins with the slot is as good as the servers' own.
    pair.copy_snapshots();
    pair.hub.metric_becomes("walcast_source_connected", PATIENCE, |connected| connected == 1.0).await;
    assert_eq!(kept(&pair).await, [1, 2, 3, 4, 5, 6]);
    // It is examined on each connect until it has moved past the switch, not only when the switch is found.
    pair.hub.kill9();
    pair.hub.start().await;
    pair::streaming(&pair.primary).await;
    pair.db().await.run("INSERT INTO t VALUES (7, 'later')").await;
    pair.journaled().await;
    assert_eq!(kept(&pair).await, [1, 2, 3, 4, 5, 6, 7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_whose_state_file_came_alone_is_not_streamed_from() {
    a_state_file_alone(versions::default_major()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_whose_state_file_came_alone_on_every_version_of_the_matrix() {
    for major in versions::matrix() {
        a_state_file_alone(major).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_whose_state_file_came_alone_is_replaced() {
    let go_on = ["--set", "source.on_slot_lost=continue"];
    let mut pair = with_the_state_file_alone(versions::default_major(), &go_on, false, false).await;
    pair.hub.start().await;
    // A slot that is being made is active too.
    pair.hub.metric_becomes("walcast_source_connected", PATIENCE, |connected| connected == 1.0).await;
    pair.db().await.run("INSERT INTO t VALUES (7, 'behind the gap')").await;
    pair.journaled().await;
    let whole = pair.collect(Request::new().earliest()).await;
    let gaps: Vec<&str> = whole
        .last()
        .kinds()
        .filter_map(|kind| match kind {
            Kind::Gap(gap) => Some(gap.reason.as_str()),
            _ => None,
        })
        .collect();
    assert!(matches!(gaps[..], [reason] if reason.contains(".snap")), "{gaps:?}");
    assert_eq!(kept(&pair).await, [1, 7]);

    let mut pair = with_the_state_file_alone(versions::default_major(), &[], true, false).await;
    pair.hub.start().await;
    recoveries(&pair, 1).await;
    pair::streaming(&pair.primary).await;
    pair.db().await.run("INSERT INTO t VALUES (7, 'by the new slot')").await;
    pair.journaled().await;
    assert_eq!(kept(&pair).await, [1, 2, 3, 4, 5, 6, 7]);
}

/// The transaction that was open is prepared and outlives the primary: the slot would wait for it, and so does a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_that_was_left_behind_does_not_stop_the_stream() {
    let mut pair = with_the_state_file_alone(versions::default_major(), &[], true, true).await;
    pair.hub.start().await;
    let mut live = pair.client().subscribe(&Request::new().earliest()).await;
    let polled = |kind: &&Kind| matches!(kind, Kind::Begin(begin) if begin.provenance() == Provenance::LogPoll);
    live.until("both sides of the failover", |log| log.kinds().filter(polled).count() == 5).await;
    assert_eq!(pair.hub.log().matches("recovered from the log tables").count(), 0);
    pair.db().await.run("ROLLBACK PREPARED 'left behind'").await;
    recoveries(&pair, 1).await;
    pair::streaming(&pair.primary).await;
    pair.db().await.run("INSERT INTO t VALUES (7, 'by the new slot')").await;
    pair.journaled().await;
    assert_eq!(kept(&pair).await, [1, 2, 3, 4, 5, 6, 7]);
}

/// PostgreSQL 16: the hub keeps a slot of its own on the standby. Whether that is worth anything shows under load, with
/// transactions open when the primary dies, twice in a row.
async fn a_slot_of_the_hubs_own(major: u32) {
    let mut pair = Pair::start(major, Slots::Synced, workload::SCHEMA, &[]).await;
    let follower = Follower::start(pair.client(), Request::new().earliest(), Resume::Position, true);
    for round in 0..2 {
        let plan = Plan { ddl: round == 0, clients: 3, large_rows: 500, ..Plan::random() }.renamed(round);
        let load = Workload::start(pair.primary.config("postgres"), plan);
        load.commits(60, PATIENCE).await;
        pair.client_says_ready().await;
        load.commits(load.report().committed + 60, PATIENCE).await;
        if round == 0 {
            pair.cut_off().await;
            load.commits(load.report().committed + 30, PATIENCE).await;
        }
        pair.fail_over().await;
        println!("round {round}: {:?}", load.stop().await);
        let load = Workload::start(pair.primary.config("postgres"), plan.renamed(10 + round));
        load.commits(30, PATIENCE).await;
        pair::streaming(&pair.primary).await;
        load.commits(load.report().committed + 30, PATIENCE).await;
        println!("round {round}: {:?}", load.stop().await);
        if round == 0 {
            pair.rebuild().await;
        }
    }
    let goal = pair.flushed().await;
    follower.reaches(goal, PATIENCE).await;
    let seen = check(&pair, &follower.stop().await.history).await;
    assert!(seen.retracted > 0 && seen.replayed == 0, "the slot had everything");
    check(&pair, &pair.collect(Request::new().earliest()).await).await;
}

/// Begins a transaction that has an id.
async fn open(pair: &Pair, sql: &str) -> Db {
    let db = pair.db().await;
    db.run(&format!("BEGIN; SELECT pg_current_xact_id(); {sql}")).await;
    db
}

/// A column that is added while the hub's slot on the standby is made is not overlooked there either.
async fn ddl_while_it_is_made(major: u32) {
    let mut pair = Pair::prepare(major, Slots::Synced, "CREATE TABLE t (id int PRIMARY KEY)", &[]).await;
    pair.standby.kill9();
    pair.hub.start().await;
    pair.streaming().await;
    let log = pair.standby.log_path();
    let says = async |what: &str| {
        eventually(PATIENCE, || async {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            if log.contains(&format!("logical decoding found {what}")) { Ok(()) } else { Err(what.to_owned()) }
        })
        .await;
    };
    // What a standby has heard of before it begins is waited for first. So `first` is opened once it has begun.
    let before = open(&pair, "").await;
    pair.db().await.run("SELECT pg_logical_emit_message(true, '', '')").await;
    pair.hub.pause(true);
    pair.standby.resume();
    pair.caught_up().await;
    pair.hub.pause(false);
    let again = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'walcast'";
    pair.db().await.run(again).await; // the hub looks at its standbys when it begins to stream
    let standby = pair.standby.connect().await;
    let begun =
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walcast_making' AND catalog_xmin IS NOT NULL";
    eventually(PATIENCE, || async {
        let found = standby.number(begun).await;
        if found == 1 { Ok(()) } else { Err(pair.hub.log_tail(3)) }
    })
    .await;
    let first = open(&pair, "").await;
    before.run("COMMIT").await;
    says("initial starting point").await;
    let second = open(&pair, "").await;
    pair.db().await.run("ALTER TABLE t ADD a text").await;
    first.run("COMMIT").await;
    says("initial consistent point").await;
    let third = open(&pair, "INSERT INTO t VALUES (3, 'a')").await;
    second.run("COMMIT").await;
    eventually(PATIENCE, || async {
        // The second time it waits without a word for what the standby knows to be open.
        if pair.hub.log().contains("it is made again") { Ok(()) } else { Err(pair.hub.log_tail(3)) }
    })
    .await;
    let kept = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walcast'";
    assert_eq!(standby.number(kept).await, 0, "nothing has this name that nobody has examined");
    third.run("COMMIT").await;
    drop((before, first, second, third, standby));
    pair.client_says_ready().await;
    pair.caught_up().await;
    pair.hub.kill9();
    pair.db().await.run("INSERT INTO t VALUES (4, 'b')").await;
    pair.caught_up().await;
    pair.fail_over().await;
    pair.hub.start().await;
    pair.streaming().await;
    pair.db().await.run("UPDATE t SET a = 'c' WHERE id = 3").await;
    pair.journaled().await;
    let history = pair.collect(Request::new().earliest()).await;
    let parsed = held(&history, validators::formal(&history));
    let mut replica = validators::Replica::default();
    held(&history, replica.apply(&parsed));
    held(&history, replica.equals_source(&pair.db().await, &["public.t".to_owned()]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_of_the_hubs_own_on_a_standby_on_every_version_of_the_matrix() {
    for major in versions::matrix().into_iter().filter(|major| *major == 16) {
        a_slot_of_the_hubs_own(major).await;
        ddl_while_it_is_made(major).await;
    }
}

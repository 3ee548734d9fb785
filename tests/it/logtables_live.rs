//! What happens to the slot while the hub runs, and what the hub does while a new one cannot be made.

use std::os::unix::process::ExitStatusExt;

use walcast::wire::pb::{self, event::Kind};

use crate::{
    harness::{
        Stage,
        client::Request,
        eventually,
        follower::{Follower, Resume},
        parsed::Parsed,
        stage,
        stage::held,
        truth, validators,
        workload::{self, Plan, Workload},
    },
    logtables::{PATIENCE, check, drop_slot, everything, horizon, install, recoveries, replica_agrees, walcast},
};

/// Waits for an alarm that holds all of these words.
async fn alarm(stage: &Stage, words: &[&str]) {
    eventually(PATIENCE, || async {
        let status = stage.client().status().await.map_err(|failure| format!("{failure:?}"))?;
        let alarms = status.source.unwrap_or_default().alarms;
        let told = alarms.iter().any(|alarm| words.iter().all(|word| alarm.contains(word)));
        if told { Ok(()) } else { Err(format!("{alarms:?}")) }
    })
    .await;
}

/// Waits until what is written now has come although there is no slot.
async fn delivers(stage: &Stage, client: i64) {
    let mut live = stage.client().subscribe(&Request::new().earliest().tables(&["load.ledger"])).await;
    let insert = format!("INSERT INTO load.ledger (client, n) VALUES ({client}, 0) RETURNING txid");
    let xid: u64 = stage.db.text(&insert).await.and_then(|xid| xid.parse().ok()).expect("an id");
    let polled = |kind: &Kind| matches!(kind, Kind::Begin(begin) if begin.xid == xid && begin.provenance() == pb::Provenance::LogPoll);
    live.until("what is written while the slot waits", |log| log.kinds().any(polled)).await;
}

/// A part of the load, from its beginning to its end.
async fn load(stage: &Stage, plan: Plan, round: u32) {
    let workload = Workload::start(stage.cluster.config("postgres"), plan.renamed(round));
    workload.commits(30, PATIENCE).await;
    println!("{:?}", workload.stop().await);
}

/// A prepared transaction keeps a new slot from being made. What commits meanwhile is delivered, whatever happens to the hub.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_new_slot_waits_the_log_tables_are_polled() {
    let mut stage = stage().sql(workload::SCHEMA).start().await;
    install(&stage);
    let plan = Plan { large_rows: 300, clients: 2, ..Plan::random() };
    let follower = Follower::start(stage.client(), Request::new().earliest(), Resume::Position, true);
    load(&stage, plan, 0).await;
    horizon(&stage).await;
    stage.db.run("BEGIN; INSERT INTO load.ledger (client, n) VALUES (-1, 0); PREPARE TRANSACTION 'stuck'").await;
    stage.hub.kill9();
    drop_slot(&stage).await;
    load(&stage, plan, 1).await;
    for (round, place) in ["recovery_polled", "recovery_poll_durable", "mid_transaction"].into_iter().enumerate() {
        if place == "mid_transaction" {
            stage.db.run("INSERT INTO load.bulk SELECT -2, 1, i, md5(i::text) FROM generate_series(1, 2000) i").await;
        }
        stage.hub.failpoints(&format!("{place}=abort@1"));
        stage.hub.spawn();
        let status = stage.hub.wait_exit(PATIENCE).await;
        assert_eq!(status.signal(), Some(6), "{place}: {status}\n{}", stage.hub.log_tail(20));
        load(&stage, plan, 2 + round as u32).await;
    }
    stage.hub.failpoints("");
    stage.hub.start().await;
    alarm(&stage, &["RECOVERY_BLOCKED", "\"stuck\""]).await;
    delivers(&stage, -3).await;
    load(&stage, plan, 5).await;
    delivers(&stage, -4).await;
    stage.db.run("COMMIT PREPARED 'stuck'").await;
    recoveries(&stage, 1).await;
    load(&stage, plan, 6).await;
    stage.streaming().await;
    let goal = stage.flushed().await;
    let history = stage.collect(Request::new().earliest()).await;
    let counts = check(&stage, &history, false).await;
    println!("{counts:?}");
    assert!(counts.replayed >= 80 && counts.streamed >= 30, "{counts:?}");
    let parsed = held(&history, Parsed::of(&history));
    let from = |provenance: pb::Provenance| parsed.transactions().filter(|s| s.provenance == provenance as i32).count();
    assert!(from(pb::Provenance::LogPoll) >= 80 && from(pb::Provenance::LogReplay) >= 1, "the prepared one at least");
    follower.reaches(goal, PATIENCE).await;
    check(&stage, &follower.stop().await.history, false).await;
    // What was polled and what ended it are told apart after a restart too.
    stage.hub.kill9();
    stage.hub.start().await;
    stage.streaming().await;
    everything(&stage, false).await;
}

/// A commit that waits for a standby has its record in the WAL and still counts as running, so that a poll does not see it
/// while it sees later ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_waits_for_a_standby_blocks_and_is_not_lost() {
    let mut stage = stage().sql(workload::SCHEMA).start().await;
    install(&stage);
    stage.db.run("INSERT INTO load.ledger (client, n) VALUES (-1, 0)").await;
    horizon(&stage).await;
    stage.hub.kill9();
    drop_slot(&stage).await;
    stage.db.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'; SELECT pg_reload_conf()").await;
    let waits = stage.cluster.connect().await;
    let waiting = tokio::spawn(async move { waits.run("INSERT INTO load.ledger (client, n) VALUES (-2, 0)").await });
    eventually(PATIENCE, || async {
        let found = stage.db.number("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await;
        if found == 1 { Ok(()) } else { Err(found) }
    })
    .await;
    stage.db.run("SET synchronous_commit = local").await;
    stage.hub.start().await;
    let of = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let who =
        stage.db.text(&format!("SELECT format('transaction %s, server process %s', backend_xid, pid) {of}")).await;
    alarm(&stage, &["RECOVERY_BLOCKED", &who.expect("it waits"), "SyncRep", " s old"]).await;
    delivers(&stage, -3).await;
    // Killed here, the hub finds a journal whose end lies behind a commit that it does not have. A slot that somebody makes
    // there is not to be streamed from.
    stage.hub.kill9();
    stage.db.run("ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()").await;
    waiting.await.expect("committed");
    eventually(PATIENCE, || async {
        let of = "FROM pg_replication_slots WHERE slot_name = 'walcast'";
        stage.db.rows(&format!("SELECT pg_drop_replication_slot(slot_name) {of} AND NOT active")).await;
        let left = stage.db.number(&format!("SELECT count(*) {of}")).await;
        if left == 0 { Ok(()) } else { Err("the server still makes the slot of the hub that was killed") }
    })
    .await;
    stage.db.run(&format!("SELECT pg_copy_logical_replication_slot('{}', 'walcast')", truth::SLOT)).await;
    stage.hub.start().await;
    recoveries(&stage, 1).await;
    stage.streaming().await;
    let history = stage.collect(Request::new().earliest()).await;
    let counts = check(&stage, &history, false).await;
    assert_eq!((counts.streamed, counts.replayed), (1, 2), "{counts:?}");
}

/// The walsender is ended and the slot dropped under it, twice, while the hub runs and a load goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_dropped_under_a_running_hub_is_made_good() {
    let stage = stage().sql(workload::SCHEMA).start().await;
    install(&stage);
    let follower = Follower::start(stage.client(), Request::new().earliest(), Resume::Position, true);
    let plan = Plan { large_rows: 500, clients: 3, ..Plan::random() };
    let workload = Workload::start(stage.cluster.config("postgres"), plan);
    for round in 0..2 {
        workload.commits(workload.report().committed + 60, PATIENCE).await;
        horizon(&stage).await;
        eventually(PATIENCE, || async {
            let sql = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
                       WHERE slot_name = 'walcast' AND active_pid IS NOT NULL";
            stage.db.rows(sql).await;
            let dropped = stage.db.batch_execute("SELECT pg_drop_replication_slot('walcast')").await;
            dropped.map_err(|error| error.to_string())
        })
        .await;
        recoveries(&stage, round + 1).await;
    }
    workload.commits(workload.report().committed + 60, PATIENCE).await;
    println!("{:?}", workload.stop().await);
    let goal = stage.flushed().await;
    let counts = everything(&stage, false).await;
    println!("{counts:?}");
    follower.reaches(goal, PATIENCE).await;
    check(&stage, &follower.stop().await.history, false).await;
}

/// A hub that hangs for a while comes back to find its slot invalidated by `max_slot_wal_keep_size`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_invalidated_under_a_running_hub_is_made_good_or_told() {
    for log_tables in [true, false] {
        let setup = stage().sql(workload::SCHEMA).setting("max_slot_wal_keep_size", "2MB").no_oracle();
        let stage = setup.setting("max_wal_size", "32MB").setting("min_wal_size", "32MB").start().await;
        if log_tables {
            install(&stage);
        }
        let plan = Plan { ddl: false, clients: 2, ..Plan::random() };
        let workload = Workload::start(stage.cluster.config("postgres"), plan);
        workload.commits(30, PATIENCE).await;
        if log_tables {
            horizon(&stage).await;
        } else {
            stage.journaled().await;
        }
        let mut live = stage.client().subscribe(&Request::new().latest()).await;
        live.until("opened", |log| log.opened().is_some()).await;
        stage.hub.pause(true);
        eventually(PATIENCE, || async {
            stage.db.run("SELECT pg_switch_wal(); CHECKPOINT").await;
            let status = stage.slot("wal_status").await;
            if status.as_deref() == Some("lost") { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await;
        stage.hub.pause(false);
        if log_tables {
            recoveries(&stage, 1).await;
            workload.stop().await;
            stage.db.run("INSERT INTO load.ledger (client, n) VALUES (-1, -1)").await;
            let history = stage.collect(Request::new().earliest()).await;
            replica_agrees(&stage, &history).await;
        } else {
            let failure = live.fails_with("SLOT_LOST").await;
            assert!(failure.lsn("from") < failure.lsn("to"), "{failure:?}");
            workload.stop().await;
        }
    }
}

/// The connections break in the middle of a replay: the same process begins again and repeats nothing. When the log tables
/// are gone by then, what was begun cannot be ended: the hub ends, and the next one has never heard of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_breaks_off_is_begun_again_or_forgotten() {
    let setup = stage().sql("CREATE TABLE t (id int PRIMARY KEY, v text)");
    let mut stage = setup.args(&["--set", "source.on_slot_lost=continue"]).start().await;
    install(&stage);
    stage.db.run("INSERT INTO t VALUES (0, 'streamed')").await;
    let release = stage.hub.dir().join("release");
    let told = stage.hub.dir().join("release.held");
    for round in 0..2 {
        horizon(&stage).await;
        stage.hub.kill9();
        drop_slot(&stage).await;
        // More than sockets and buffers take: the log is still being read when the connection breaks.
        for n in round * 3..round * 3 + 3 {
            let rows = format!("SELECT {n} * 1000 + i, repeat(md5(i::text), 200) FROM generate_series(1, 1000) i");
            stage.db.run(&format!("INSERT INTO t {rows}")).await;
        }
        stage.hub.failpoints("recovery_mid_replay=hold@20");
        stage.hub.env("WALCAST_FAILPOINT_RELEASE", &release.display().to_string());
        stage.hub.spawn();
        eventually(PATIENCE, || async { if told.exists() { Ok(()) } else { Err(stage.hub.log_tail(3)) } }).await;
        let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'walcast'";
        assert!(stage.db.number(ended).await >= 3, "a session, a walsender, and who reads the log");
        if round == 1 {
            assert!(walcast(&stage, &["logtables", "uninstall", "--yes"]).status.success());
        }
        std::fs::write(&release, "").expect("a file");
        if round == 0 {
            recoveries(&stage, 1).await;
            stage.streaming().await;
            let counts = everything(&stage, false).await;
            assert_eq!((counts.streamed, counts.replayed), (1, 3));
            std::fs::remove_file(&told).and_then(|()| std::fs::remove_file(&release)).expect("files");
        }
    }
    let status = stage.hub.wait_exit(PATIENCE).await;
    assert_eq!(status.code(), Some(1), "{}", stage.hub.log_tail(5));
    assert!(stage.hub.log().contains("a replay from the log tables was begun and cannot be ended"));
    stage.hub.failpoints("");
    stage.hub.start().await;
    // A slot is active while it is made, too.
    stage.hub.metric_becomes("walcast_source_connected", PATIENCE, |connected| connected == 1.0).await;
    stage.db.run("INSERT INTO t VALUES (-1, 'behind the gap')").await;
    let history = stage.collect(Request::new().earliest()).await;
    let parsed = held(&history, validators::formal(&history));
    assert_eq!(parsed.transactions().count(), 5, "what was forgotten was shown");
    assert!(history.last().kinds().any(|kind| matches!(kind, Kind::Gap(_))), "and was not told");
}

//! Histories that are not one promotion: several in a row, a primary that comes back, forks with the same timeline number,
//! a restore to the past, another system.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use walcast::wire::pb::event::Kind;

use crate::{
    failover::{changed, ids, status_says},
    harness::{
        Cluster, Db,
        client::Request,
        command::walcast,
        eventually,
        follower::{Follower, Resume},
        history::lsn,
        pair::{self, Pair, Slots, crossed, kept, retracted},
        parsed::Parsed,
        stage::held,
        validators::{self, Replica},
        versions,
        workload::{self, Plan, Workload, ledger_agrees},
    },
};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

/// Two promotions one after the other, each with a workload that goes on and a part that is lost.
async fn there_and_back(major: u32, slots: Slots) {
    let mut pair = Pair::start(major, slots, workload::SCHEMA, &[]).await;
    let plan = Plan { clients: 2, large_rows: 2000, ..Plan::random() };
    let by_position = Follower::start(pair.client(), Request::new().earliest(), Resume::Position, true);
    let by_checkpoint = Follower::start(
        pair.client(),
        Request::named("mirror").earliest(),
        Resume::Checkpoint { one_in: 5, seed: plan.seed },
        true,
    );
    for round in 0..2 {
        // Without load: a copied slot comes without the snapshot that decoding goes on from, and with transactions running
        // at its restart_lsn the server skips what commits before it has found a consistent point again.
        pair.carry_again(round).await;
        let load = Workload::start(pair.primary.config("postgres"), plan.renamed(round));
        load.commits(60, Duration::from_secs(60)).await;
        pair.caught_up().await;
        pair.cut_off().await;
        load.commits(load.report().committed + 60, Duration::from_secs(60)).await;
        pair.primary.kill9();
        let report = load.stop().await;
        println!("round {round}: {report:?}");
        pair.standby.promote().await;
        std::mem::swap(&mut pair.primary, &mut pair.standby);
        let load = Workload::start(pair.primary.config("postgres"), plan.renamed(10 + round));
        load.commits(30, Duration::from_secs(60)).await;
        load.stop().await;
        pair::streaming(&pair.primary).await;
        if round == 0 {
            pair.rebuild().await;
        }
    }
    let goal = pair.truth().await.end();
    let db = pair.db().await;
    for follower in [by_position, by_checkpoint] {
        follower.reaches_on(pair.lineage().await, goal, Duration::from_secs(60)).await;
        let mut history = follower.stop().await.history;
        history.note = format!("WALCAST_TEST_SEED={}; {}", plan.seed, history.note);
        pair.check(&history).await;
        let kept = kept(&history);
        let parsed = held(&kept, Parsed::of(&kept));
        held(&kept, ledger_agrees(&db, &parsed).await);
        println!("{:?}: {} streams, {} retracted", history.subscriber, history.streams.len(), {
            retracted(&held(&history, Parsed::of(&history))).len()
        });
    }
    let whole = pair.collect(Request::new().earliest()).await;
    pair.check(&whole).await;
    let parsed = held(&whole, Parsed::of(&whole));
    assert_eq!(whole.last().kinds().filter(|kind| matches!(kind, Kind::TimelineChanged(_))).count(), 2);
    held(&whole, ledger_agrees(&db, &parsed).await);
    let mut replica = Replica::default();
    held(&whole, replica.apply(&parsed));
    let tables: Vec<String> = workload::TABLES.iter().map(|table| (*table).to_owned()).collect();
    held(&whole, replica.equals_source(&db, &tables).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_and_back() {
    there_and_back(versions::default_major(), Slots::Copied).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_and_back_with_synchronized_slots_on_every_version_of_the_matrix() {
    for major in versions::matrix().into_iter().filter(|major| *major >= 17) {
        there_and_back(major, Slots::Synced).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_comes_back_is_stale() {
    let mut pair = Pair::start(versions::default_major(), Slots::Copied, TABLE, &[]).await;
    let db = pair.db().await;
    db.run("INSERT INTO t VALUES (1, 'common')").await;
    let mut live = pair.client().subscribe(&Request::new().earliest()).await;
    live.until("the common part", |log| log.commits() == 1).await;
    pair.caught_up().await;
    pair.cut_off().await;
    pair.fail_over().await;
    pair::streaming(&pair.primary).await;
    pair.db().await.run("INSERT INTO t VALUES (2, 'new')").await;
    live.until("the new part", |log| log.commits() == 2).await;

    // The old primary stands first in the connection string, takes writes, and has the slot.
    pair.standby.resume();
    let stale = pair.standby.connect().await;
    for id in 100..103 {
        stale.run(&format!("INSERT INTO t VALUES ({id}, 'nobody should see this')")).await;
    }
    pair.hub.kill9();
    // An operator's word that is not needed lets nothing in, now or later.
    let word = rebase(pair.hub.data_dir(), &stale).await;
    pair.hub.start().await;
    pair::streaming(&pair.primary).await;
    pair.db().await.run("INSERT INTO t VALUES (3, 'new')").await;
    pair.journaled().await;
    assert!(!word.exists(), "the word is not spent");
    let whole = pair.collect(Request::new().earliest()).await;
    assert_eq!(ids(&held(&whole, Parsed::of(&whole))), [1, 2, 3]);

    // With nobody else there it is refused.
    pair.primary.kill9();
    let error = pair.source_error("SOURCE_STALE_PRIMARY").await;
    assert!(error.contains("timeline"), "{error}");
    let whole = pair.client().subscribe(&Request::new().earliest()).await;
    drop(whole);
    stale.run("INSERT INTO t VALUES (103, 'nor this')").await;
    pair.primary.resume();
    pair::streaming(&pair.primary).await;
    pair.db().await.run("INSERT INTO t VALUES (4, 'new')").await;
    let whole = pair.collect(Request::new().earliest()).await;
    pair.check(&whole).await;
    assert_eq!(ids(&held(&whole, Parsed::of(&whole))), [1, 2, 3, 4]);
}

/// A hub that was away during the failover finds both: the old primary looks to it as it always did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_primaries_the_one_that_went_on_is_followed() {
    let mut pair = Pair::start(versions::default_major(), Slots::Copied, TABLE, &[]).await;
    pair.db().await.run("INSERT INTO t VALUES (1, 'common')").await;
    pair.journaled().await;
    pair.caught_up().await;
    pair.hub.terminate();
    pair.standby.promote().await;
    pair.primary.connect().await.run("INSERT INTO t VALUES (100, 'stale')").await;
    pair.standby.connect().await.run("INSERT INTO t VALUES (2, 'new')").await;
    pair.hub.start().await;
    pair::streaming(&pair.standby).await;
    std::mem::swap(&mut pair.primary, &mut pair.standby);
    let whole = pair.collect(Request::new().earliest()).await;
    pair.check(&whole).await;
    assert_eq!(ids(&held(&whole, Parsed::of(&whole))), [1, 2]);
}

/// The old primary still answers and still streams: the hub notices by itself that another one has gone on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_was_overtaken_is_left() {
    let mut pair = Pair::start(versions::default_major(), Slots::Copied, TABLE, &[]).await;
    pair.db().await.run("INSERT INTO t VALUES (1, 'common')").await;
    let mut live = pair.client().subscribe(&Request::new().earliest()).await;
    live.until("the common part", |log| log.commits() == 1).await;
    pair.caught_up().await;
    let (old, new) = (pair.primary.port(), pair.standby.port());
    shown(&pair, &[new]).await;
    pair.standby.promote().await;
    pair.standby.connect().await.run("INSERT INTO t VALUES (2, 'new')").await;
    live.until("the new part", |log| log.commits() == 2).await;
    // The new primary is no standby any more, ready or not.
    shown(&pair, &[old]).await;
    assert_eq!(pair.hub.metric("walcast_standby_slot_ready").await, 0.0, "it went another way");
    pair.primary.connect().await.run("INSERT INTO t VALUES (100, 'nobody should see this')").await;
    std::mem::swap(&mut pair.primary, &mut pair.standby);
    pair.db().await.run("INSERT INTO t VALUES (3, 'new')").await;
    live.until("more", |log| log.commits() == 3).await;
    let history = live.close();
    pair.check(&history).await;
    assert_eq!(ids(&held(&history, Parsed::of(&history))), [1, 2, 3]);
}

/// Waits until readiness is shown of exactly these servers.
async fn shown(pair: &Pair, ports: &[u16]) {
    let expected: Vec<String> =
        ports.iter().map(|port| format!("walcast_standby_slot_ready{{standby=\"127.0.0.1:{port}\"}}")).collect();
    eventually(Duration::from_secs(30), || async {
        let samples = pair.hub.metrics().await.into_keys();
        let found: Vec<String> = samples.filter(|name| name.starts_with("walcast_standby_slot_ready")).collect();
        if found == expected { Ok(()) } else { Err(format!("{found:?} instead of {expected:?}")) }
    })
    .await;
}

/// Two standbys of one primary are promoted one after the other: both are on timeline 2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_with_the_same_timeline_number_is_told_by_its_text() {
    let mut pair = Pair::prepare(versions::default_major(), Slots::Lost, TABLE, &[]).await;
    let other = pair.primary.standby(&pair::SETTINGS).await;
    let dsn = pair::dsn(&[&pair.primary, &pair.standby, &other]);
    pair.hub = crate::harness::hub::Hub::new(&dsn).args(&["--set", "source.on_slot_lost=continue"]);
    pair.hub.start().await;
    pair.streaming().await;
    let db = pair.db().await;
    db.run("INSERT INTO t VALUES (1, 'common to all')").await;
    let mut live = pair.client().subscribe(&Request::new().earliest()).await;
    live.until("the common part", |log| log.commits() == 1).await;
    pair::replayed(&other, &pair.primary).await;
    pair::isolate(&other).await;
    db.run("INSERT INTO t VALUES (2, 'common to two')").await;
    live.until("more", |log| log.commits() == 2).await;
    pair.caught_up().await;
    pair.fail_over().await;
    pair::streaming(&pair.primary).await;
    pair.db().await.run("INSERT INTO t VALUES (3, 'only there')").await;
    live.until("the first switch", |log| log.commits() == 3).await;
    // While both answer, neither number says which went on: the one that is followed is kept, also when the hub connects anew.
    other.promote().await;
    let db = pair.db().await;
    db.run("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'walcast'").await;
    let second = other.port().to_string();
    status_says(&pair, |status| {
        let standbys = status.source.as_ref().map(|source| source.standbys.clone()).unwrap_or_default();
        standbys.iter().any(|standby| standby.server.contains(&second) && standby.detail.contains("takes writes"))
    })
    .await;
    db.run("INSERT INTO t VALUES (5, 'only there, too')").await;
    live.until("what is written behind the fork", |log| log.commits() == 4).await;
    assert_eq!(changed(&live.log).len(), 1, "{}", live.describe());
    pair.primary.kill9();
    pair::streaming(&other).await;
    other.connect().await.run("INSERT INTO t VALUES (4, 'the other branch')").await;
    live.until("the second switch", |log| log.commits() == 5).await;
    let told = changed(&live.log);
    assert_eq!(told.len(), 2, "{}", live.describe());
    assert!(lsn(&told[1].switch_lsn) < lsn(&told[0].switch_lsn), "the second branch left earlier");
    assert_eq!(told[1].retracted.len(), 3, "common to two, and only there: {told:?}");
    status_says(&pair, |status| status.source.as_ref().is_some_and(|source| source.timeline == 2)).await;
    let history = live.close();
    held(&history, validators::formal(&history));
    let left = kept(&history);
    assert_eq!(ids(&held(&left, Parsed::of(&left))), [1, 4]);
    let mut early = pair.client().subscribe(&Request::new().earliest().stop_at_tail()).await;
    early.ended().await;
    let early = early.close();
    assert_eq!(ids(&held(&early, validators::formal(&early))), [1, 4]);
}

/// What a restore to a point in time comes to: the same system, a new timeline that leaves the known one far back. What was
/// lost is told in parts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_to_the_past_is_told_in_parts() {
    let mut pair = Pair::start(versions::default_major(), Slots::Copied, TABLE, &[]).await;
    let db = pair.db().await;
    db.run("INSERT INTO t VALUES (0, 'kept')").await;
    pair.caught_up().await;
    pair.cut_off().await;
    let rows: Vec<String> = (1..=450).map(|id| format!("INSERT INTO t VALUES ({id}, 'lost')")).collect();
    db.run(&rows.join(";")).await;
    db.run("SELECT pg_logical_emit_message(false, 'lost', 'outside')").await;
    let mut live = pair.client().subscribe(&Request::new().earliest()).await;
    live.until("everything", |log| log.commits() == 451 && log.changes() == 452).await;
    pair.fail_over().await;
    pair.db().await.run("INSERT INTO t VALUES (-1, 'new')").await;
    live.until("the new part", |log| log.commits() == 452).await;
    let told = changed(&live.log);
    assert!(told.len() > 1 && told[..told.len() - 1].iter().all(|part| part.more), "{}", told.len());
    assert_eq!(told.iter().map(|part| part.retracted.len()).sum::<usize>(), 451, "the message too");
    assert!(!told[told.len() - 1].more);
    let history = live.close();
    pair.check(&history).await;
    let left = kept(&history);
    assert_eq!(ids(&held(&left, Parsed::of(&left))), [0, -1]);
}

/// A base backup is recovered to a point in the past: the same system, a new timeline, no slot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_to_a_point_in_time_is_followed() {
    let mut stage = crate::harness::stage().sql(TABLE).setting("wal_keep_size", "1GB").start().await;
    crate::logtables::install(&stage);
    stage.db.run("INSERT INTO t VALUES (1, 'in the backup')").await;
    crate::logtables::horizon(&stage).await;
    let mut backup = stage.cluster.backup().await;
    stage.db.run("INSERT INTO t VALUES (2, 'in the archive'); INSERT INTO t VALUES (3, 'in the archive')").await;
    let target = stage.flushed().await;
    let mut live = stage.client().subscribe(&Request::new().earliest()).await;
    for id in 4..=6 {
        stage.db.run(&format!("INSERT INTO t VALUES ({id}, 'a mistake')")).await;
    }
    live.until("everything", |log| log.commits() == 6).await;
    let past = live.log.position().expect("a position");
    stage.cluster.stop(crate::harness::Shutdown::Fast);
    backup.restore(&stage.cluster, target).await;
    let db = backup.connect().await;
    db.run("INSERT INTO t VALUES (7, 'new')").await;
    assert_eq!(db.number("SELECT count(*) FROM t").await, 4);
    live.until("the new part", |log| log.commits() == 7).await;
    let [told] = changed(&live.log)[..] else { panic!("{}", live.describe()) };
    assert_eq!(told.retracted.len(), 3, "{told:?}");
    assert!(lsn(&told.switch_lsn) >= target && lsn(&told.switch_lsn) < lsn(&past.lsn), "{told:?}");
    let history = live.close();
    held(&history, validators::formal(&history));
    let left = kept(&history);
    assert_eq!(ids(&held(&left, Parsed::of(&left))), [1, 2, 3, 7]);
    let mut refused = stage.client().subscribe(&Request::new().after(&past)).await;
    refused.fails_with("POSITION_DIVERGED").await;
    pair::streaming(&backup).await;
    let whole = stage.collect(Request::new().earliest()).await;
    assert_eq!(ids(&held(&whole, validators::formal(&whole))), [1, 2, 3, 7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_system_needs_an_operators_word() {
    let mut pair = Pair::start(versions::default_major(), Slots::Lost, TABLE, &[]).await;
    pair.db().await.run("INSERT INTO t VALUES (1, 'old system')").await;
    pair.journaled().await;
    let mut live = pair.client().subscribe(&Request::new().earliest()).await;
    live.until("the old part", |log| log.commits() == 1).await;
    // The other system takes the place, and the port, of the old one.
    let port = pair.primary.port().to_string();
    pair.primary.kill9();
    pair.standby.kill9();
    let other = Cluster::of_another_system(versions::default_major(), &[("port", &port)]);
    let db = other.connect().await;
    db.run(TABLE).await;
    db.run("INSERT INTO t VALUES (2, 'in between'); CREATE PUBLICATION walcast FOR ALL TABLES").await;
    let error = pair.source_error("SOURCE_CHANGED").await;
    assert!(error.contains("walcast rebase"), "{error}");
    assert!(!crossed(&live.log));
    let word = rebase(pair.hub.data_dir(), &db).await;
    pair::streaming(&other).await;
    db.run("INSERT INTO t VALUES (3, 'new system')").await;
    live.until("the new part", |log| log.commits() == 2).await;
    assert!(!word.exists(), "the word is not spent");
    let kinds: Vec<&str> = live.log.kinds().filter_map(name).collect();
    assert_eq!(kinds, ["commit", "timeline", "gap", "commit"], "{}", live.describe());
    assert_eq!(changed(&live.log)[0].retracted, []);
    let history = live.close();
    assert_eq!(ids(&held(&history, Parsed::of(&history))), [1, 3]);
    pair.hub.kill9();
    pair.hub.start().await;
    pair::streaming(&other).await;
    let mut whole = pair.client().subscribe(&Request::new().earliest()).await;
    whole.until("both parts", |log| log.commits() == 2).await;
    assert_eq!(whole.log.kinds().filter_map(name).collect::<Vec<_>>(), ["commit", "timeline", "gap", "commit"]);
}

/// pg_upgrade makes another system of the same data: that takes an operator's word, and the gap is stated. The log tables
/// come along and make a slot good that is lost later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pg_upgrade_needs_an_operators_word() {
    let mut stage = crate::harness::stage().sql(TABLE).no_oracle().start().await;
    crate::logtables::install(&stage);
    stage.db.run("INSERT INTO t VALUES (1, 'before')").await;
    let mut live = stage.client().subscribe(&Request::new().earliest()).await;
    live.until("the old part", |log| log.commits() == 1).await;
    stage.cluster.stop(crate::harness::Shutdown::Fast);
    let port = stage.cluster.port().to_string();
    let mut upgraded = Cluster::of_another_system(stage.cluster.major(), &[("port", &port)]);
    upgraded.stop(crate::harness::Shutdown::Fast);
    if !upgraded.upgrade(&stage.cluster) {
        return println!("no pg_upgrade for PostgreSQL {}", upgraded.major());
    }
    upgraded.resume();
    stage.cluster = upgraded;
    stage.reconnect().await;
    stage.db.run("INSERT INTO t VALUES (2, 'in between')").await;
    let client = stage.client();
    eventually(Duration::from_secs(30), || async {
        let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
        let error = status.source.map(|source| source.last_error).unwrap_or_default();
        if error.starts_with("SOURCE_CHANGED") && error.contains("walcast rebase") { Ok(()) } else { Err(error) }
    })
    .await;
    let word = rebase(stage.hub.data_dir(), &stage.db).await;
    stage.streaming().await;
    stage.db.run("INSERT INTO t VALUES (3, 'behind the gap')").await;
    live.until("the new part", |log| log.commits() == 2).await;
    assert!(!word.exists(), "the word is not spent");
    let kinds: Vec<&str> = live.log.kinds().filter_map(name).collect();
    assert_eq!(kinds, ["commit", "timeline", "gap", "commit"], "{}", live.describe());
    crate::logtables::horizon(&stage).await;
    stage.hub.kill9();
    crate::logtables::drop_slot(&stage).await;
    stage.db.run("INSERT INTO t VALUES (4, 'replayed')").await;
    stage.hub.start().await;
    crate::logtables::recoveries(&stage, 1).await;
    stage.db.run("INSERT INTO t VALUES (5, 'streamed')").await;
    let whole = stage.collect(Request::new().earliest()).await;
    assert_eq!(ids(&held(&whole, validators::formal(&whole))), [1, 3, 4, 5]);
}

/// An operator's word that the hub is to go on at the system of this connection; the file that holds it until it is spent.
async fn rebase(dir: &Path, db: &Db) -> PathBuf {
    let system = db.text("SELECT system_identifier::text FROM pg_control_system()").await.expect("an identifier");
    walcast(&["rebase", "--system-identifier", &system, "--data-dir", &dir.display().to_string()], &[]).good();
    dir.join("rebase")
}

fn name(kind: &Kind) -> Option<&'static str> {
    match kind {
        Kind::TimelineChanged(_) => Some("timeline"),
        Kind::Gap(_) => Some("gap"),
        Kind::Commit(_) => Some("commit"),
        _ => None,
    }
}

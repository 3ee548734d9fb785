//! PostgreSQL goes away, its publication or slot changes behind the hub's back, the hub is told to stop.

use std::time::Duration;

use walcast::wire::pb::{SnapshotMode, event::Kind};

use crate::{
    harness::{
        Shutdown, Stage,
        client::Request,
        eventually,
        follower::{Follower, Resume},
        history::lsn,
        hub::Hub,
        stage,
        stage::held,
        validators::Replica,
        versions,
        workload::{self, Plan, Workload, ledger_agrees},
    },
    logtables_causes::last_error,
};

async fn restart_under_load(major: u32, mode: Shutdown) {
    let mut stage = stage().version(major).sql(workload::SCHEMA).start().await;
    let request = Request::named("one").earliest().progress_every(Duration::from_millis(200));
    let followers = vec![
        Follower::start(stage.client(), request.clone(), Resume::Position, false),
        Follower::start(stage.client(), Request::new().earliest(), Resume::Position, false),
    ];
    let workload = Workload::start(stage.cluster.config("postgres"), Plan { large_rows: 2000, ..Plan::random() });
    let seed = workload.seed();
    workload.commits(60, Duration::from_secs(30)).await;
    for _ in 0..2 {
        let took = stage.cluster.restart(mode);
        if mode == Shutdown::Fast {
            assert!(took < Duration::from_secs(10), "the hub held the shutdown up for {took:?}");
        }
        let before = workload.report().committed;
        workload.commits(before + 60, Duration::from_secs(30)).await;
    }
    workload.stop().await;
    stage.reconnect().await;
    let goal = stage.goal().await;
    for follower in followers {
        follower.reaches(goal, Duration::from_secs(60)).await;
        let mut history = follower.stop().await.history;
        history.note = format!("seed {seed}");
        assert_eq!(history.streams.len(), 1, "an outage of PostgreSQL is not a subscriber's error");
        let parsed = stage.check(&history).await;
        held(&history, ledger_agrees(&stage.db, &parsed).await);
        let mut replica = Replica::default();
        held(&history, replica.apply(&parsed));
        let tables: Vec<String> = workload::TABLES.iter().map(|table| (*table).to_owned()).collect();
        held(&history, replica.equals_source(&stage.db, &tables).await);
    }
    assert!(stage.hub.metric("walcast_source_reconnects_total").await >= 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_restart_under_load_leaves_streams_open() {
    restart_under_load(versions::default_major(), Shutdown::Fast).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_postgresql_under_load_leaves_streams_open() {
    restart_under_load(versions::default_major(), Shutdown::Immediate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_on_every_version_of_the_matrix() {
    for major in versions::matrix() {
        restart_under_load(major, Shutdown::Fast).await;
    }
}

/// What the hub says about its source.
async fn source_error(stage: &Stage, reason: &str) -> String {
    let client = stage.client();
    eventually(Duration::from_secs(30), || async {
        let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
        let source = status.source.ok_or("no source status")?;
        if source.last_error.contains(reason) { Ok(source.last_error) } else { Err(format!("{source:?}")) }
    })
    .await
}

async fn publication_dropped(major: u32) {
    let mut stage = stage().version(major).sql("CREATE TABLE t (id int PRIMARY KEY)").no_oracle().start().await;
    stage.db.run("INSERT INTO t VALUES (1)").await;
    stage.journaled().await;
    let mut stream = stage.client().subscribe(&Request::new().earliest()).await;
    stream.until("the first row", |log| log.commits() == 1).await;
    stage.db.run("DROP PUBLICATION walcast").await;
    stage.db.run("INSERT INTO t VALUES (2)").await;
    let lost_from = stage.db.lsn("pg_current_wal_insert_lsn()").await;
    source_error(&stage, "PUBLICATION_MISSING").await;
    stage.db.run("INSERT INTO t VALUES (3)").await;
    let confirmed = lsn(&stage.slot("confirmed_flush_lsn").await.expect("an LSN"));
    assert!(confirmed < lost_from, "PostgreSQL was told {confirmed}, rows up to {lost_from} were skipped");
    let seen = stream.log.progress().count();
    stream
        .until("the stream goes on and says that the source is away", |log| {
            log.progress().count() > seen && log.progress().next_back().is_some_and(|p| !p.source_connected)
        })
        .await;
    assert_eq!(stream.log.changes(), 1);

    // Made again, it does not exist where those rows are: no stream of this slot gets past them.
    stage.db.run("CREATE PUBLICATION walcast FOR ALL TABLES").await;
    let told = source_error(&stage, "SLOT_LOST").await;
    assert!(told.contains("in which the publication does not exist") && told.contains("Only a new slot"), "{told}");
    assert!(told.contains("drop it (walcast slot drop)"), "a new data directory would take it: {told}");
    let failure = stream.fails_with("SLOT_LOST").await;
    assert!(failure.lsn("from") < lost_from && failure.lsn("to") > lost_from, "{failure:?}");
    let attempts = stage.hub.metric("walcast_source_reconnects_total").await;
    let again = |now: f64| now >= attempts + 3.0;
    stage.hub.metric_becomes("walcast_source_reconnects_total", Duration::from_secs(60), again).await;
    assert_eq!(stage.hub.metric("walcast_source_connected").await, 0.0);
    let lines = stage.hub.log().lines().filter(|line| line.contains("in which the publication does not exist")).count();
    assert!(lines < 3, "{lines} lines about the same\n{}", stage.hub.log_tail(20));
    stage.hub.terminate();
    stage.hub.env("WALCAST_ON_SLOT_LOST", "continue");
    stage.hub.start().await;
    let mut stream = stage.client().subscribe(&Request::new().earliest()).await;
    stream.until("the gap", |log| log.kinds().any(|kind| matches!(kind, Kind::Gap(_)))).await;
    stage.streaming().await;
    stage.db.run("INSERT INTO t VALUES (4)").await;
    stream.until("what comes behind it", |log| log.changes() == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_publication_is_noticed_before_anything_is_acknowledged() {
    publication_dropped(versions::default_major()).await;
}

/// 18 goes on silently with a WARNING, which is why this runs there as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_publication_is_noticed_on_every_version_of_the_matrix() {
    for major in versions::matrix() {
        publication_dropped(major).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_ahead_of_the_journal_is_refused() {
    let mut stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY)").start().await;
    stage.db.run("INSERT INTO t VALUES (1)").await;
    stage.journaled().await;
    stage.hub.terminate();
    stage.db.run("INSERT INTO t VALUES (2)").await;
    stage.db.run("SELECT pg_replication_slot_advance('walcast', pg_current_wal_insert_lsn())").await;
    stage.db.run("INSERT INTO t VALUES (3)").await;
    stage.hub.spawn();
    source_error(&stage, "SLOT_LOST").await;
    let mut stream = stage.client().subscribe(&Request::new().earliest()).await;
    let silent =
        |log: &crate::harness::history::StreamLog| log.progress().next_back().is_some_and(|p| !p.source_connected);
    while !silent(&stream.log) && crate::harness::client::within(stream.pull()).await {}
    assert_eq!(stream.log.changes(), 1, "nothing from behind the gap without a word");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_was_dropped_is_not_made_anew_in_silence() {
    let mut stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY)").start().await;
    stage.db.run("INSERT INTO t VALUES (1)").await;
    stage.journaled().await;
    stage.hub.terminate();
    stage.db.run("SELECT pg_drop_replication_slot('walcast'); INSERT INTO t VALUES (2)").await;
    stage.hub.spawn();
    let error = source_error(&stage, "SLOT_LOST").await;
    assert!(error.contains('/'), "the gap is named: {error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hubs_do_not_share_a_slot() {
    let stage = stage().start().await;
    let mut second = Hub::new(&stage.cluster.dsn());
    second.spawn();
    let client = crate::harness::client::Client::new(second.grpc_port());
    eventually(Duration::from_secs(30), || async {
        let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
        let error = status.source.map(|source| source.last_error).unwrap_or_default();
        if error.contains("SLOT_IN_USE") { Ok(()) } else { Err(error) }
    })
    .await;
    assert_ne!(second.get("/readyz").await.expect("/readyz").0, 200);
    assert_eq!(stage.hub.get("/readyz").await.expect("/readyz").0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_drains_and_says_where_to_resume() {
    let mut stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY)").start().await;
    stage.db.run("INSERT INTO t SELECT generate_series(1, 500)").await;
    let mut streams = Vec::new();
    for request in [Request::new().earliest(), Request::named("worker").earliest()] {
        let mut stream = stage.client().subscribe(&request).await;
        stream.until("all rows", |log| log.changes() == 500).await;
        streams.push(stream);
    }
    let mut stuck = stage.client().consume(&Request::new().earliest()).await;
    stuck.until("opened", |log| log.opened().is_some()).await;
    let (status, took) = stage.hub.terminate();
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    for mut stream in streams {
        let failure = stream.fails_with("DRAINING").await;
        let last = stream.log.position().expect("a position");
        assert!(failure.lsn("position") >= lsn(&last.lsn), "{failure:?}, received up to {last:?}");
    }
    let failure = stuck.fails_with("DRAINING").await;
    assert!(failure.retry.is_some());
    stage.hub.start().await;
    stage.streaming().await;
    stage.everything().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_accepted_while_postgresql_is_away() {
    let mut stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY)").start().await;
    stage.db.run("INSERT INTO t VALUES (1)").await;
    stage.journaled().await;
    stage.hub.kill9();
    stage.cluster.stop(Shutdown::Fast);
    stage.hub.spawn();
    let client = stage.client();
    let stream = eventually(Duration::from_secs(20), || async {
        let mut stream = client.subscribe(&Request::new().earliest()).await;
        if stream.pull().await && stream.log.opened().is_some() {
            Ok(stream)
        } else {
            Err(format!("{:?}", stream.log.end))
        }
    })
    .await;
    let mut stream = stream;
    stream.until("what the journal has", |log| log.commits() == 1).await;
    stage.cluster.resume();
    stage.reconnect().await;
    stage.db.run("INSERT INTO t VALUES (2)").await;
    stream.reaches(stage.goal().await).await;
    stage.check(&stream.close()).await;
}

/// LSNs, timeline and system identifier are the same in every database of a cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_is_pointed_at_another_database_touches_nothing() {
    let mut stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY)").start().await;
    stage.db.run("INSERT INTO t VALUES (1)").await;
    stage.journaled().await;
    stage.hub.terminate();
    stage.db.run("CREATE DATABASE other").await;
    let other = stage.cluster.connect_to("other").await;
    other.run("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION walcast FOR ALL TABLES").await;
    other.run("SELECT pg_create_logical_replication_slot('others', 'pgoutput')").await;
    other.run("INSERT INTO t VALUES (7)").await;

    // Nor does a new one: the slot of the default name is that of the first.
    let founded = stage.slot("confirmed_flush_lsn").await;
    let own = std::mem::replace(&mut stage.hub, Hub::new(&stage.cluster.dsn_of("other")));
    stage.hub.spawn();
    last_error(&stage, "PREFLIGHT_FAILED", "belongs to database \"postgres\", not \"other\"; give another name").await;
    stage.hub.terminate();
    // Started again it has segments, and still nothing that it could serve.
    stage.hub.spawn();
    last_error(&stage, "PREFLIGHT_FAILED", "give another name").await;
    assert_ne!(stage.hub.get("/readyz").await.expect("/readyz").0, 200);
    stage.hub.terminate();
    assert_eq!(stage.slot("confirmed_flush_lsn").await, founded, "the first database's slot");
    let refused =
        std::mem::replace(&mut stage.hub, Hub::new(&stage.cluster.dsn_of("other")).args(&["--slot", "others"]));
    stage.hub.in_data_dir(refused.data_dir());
    stage.hub.start().await;
    stage.hub.metric_becomes("walcast_source_connected", Duration::from_secs(30), |connected| connected == 1.0).await;
    stage.client().subscribe(&Request::new().earliest()).await.until("the row", |log| log.changes() == 1).await;
    stage.hub.terminate();
    stage.hub = own;

    let confirmed = || other.text("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'others'");
    let before = confirmed().await;

    let elsewhere = Hub::new(&stage.cluster.dsn_of("other")).args(&["--slot", "others"]);
    let own = std::mem::replace(&mut stage.hub, elsewhere);
    stage.hub.in_data_dir(own.data_dir());
    stage.hub.spawn();
    last_error(&stage, "SOURCE_CHANGED", "the journal of database postgres").await;
    let rows = Request::new().tables(&["public.t"]).snapshot(SnapshotMode::Consistent);
    stage.client().subscribe(&rows).await.fails_with("SOURCE_UNAVAILABLE").await;
    stage.hub.terminate();
    assert_eq!(confirmed().await, before, "the other database's slot");

    // Made again under its name it is another one, and there is none to point the hub back to.
    stage.db.run("DROP DATABASE other WITH (FORCE)").await;
    stage.db.run("CREATE DATABASE other").await;
    stage.hub.in_data_dir(refused.data_dir());
    stage.hub.spawn();
    last_error(&stage, "SOURCE_CHANGED", "it was dropped and made again").await;
    stage.hub.terminate();

    stage.hub = own;
    stage.db.run("ALTER DATABASE postgres SET work_mem = '5MB'; INSERT INTO t VALUES (2)").await;
    stage.hub.start().await;
    let whole = stage.everything().await;
    let mut replica = Replica::default();
    held(&whole, replica.apply(&stage.check(&whole).await));
    held(&whole, replica.equals_source(&stage.db, &["public.t".to_owned()]).await);
}

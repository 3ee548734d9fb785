//! The harness itself: a test tool that cannot fail is worse than none.

use std::time::Duration;

use walcast::wire::pb;

use crate::harness::{
    Cluster, Shutdown, eventually,
    truth::{self, Op},
    workload::{self, Plan, Workload},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_starts_stops_crashes_and_keeps_its_data() {
    let mut cluster = Cluster::with_settings(&[("fsync", "off")]);
    let db = cluster.connect().await;
    db.run("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    assert_eq!(db.text("SHOW wal_level").await.as_deref(), Some("logical"));
    cluster.restart(Shutdown::Fast);
    cluster.connect().await.run("INSERT INTO t VALUES (2)").await;
    cluster.restart(Shutdown::Immediate);
    cluster.connect().await.run("INSERT INTO t VALUES (3)").await;
    cluster.kill9();
    cluster.resume();
    assert_eq!(cluster.connect().await.number("SELECT count(*) FROM t").await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_follows_and_is_promoted() {
    let mut primary = Cluster::start();
    let db = primary.connect().await;
    db.run("CREATE TABLE t (id int PRIMARY KEY)").await;
    let standby = primary.standby(&[]).await;
    db.run("INSERT INTO t VALUES (1)").await;
    let replica = standby.connect().await;
    eventually(Duration::from_secs(20), || async {
        let rows = replica.number("SELECT count(*) FROM t").await;
        if rows == 1 { Ok(()) } else { Err(rows) }
    })
    .await;
    drop(db);
    primary.stop(Shutdown::Fast);
    standby.promote().await;
    standby.connect().await.run("INSERT INTO t VALUES (2)").await;
    let file = replica.text("SELECT pg_walfile_name(pg_current_wal_insert_lsn())").await;
    assert!(file.as_deref().is_some_and(|name| name.starts_with("00000002")), "{file:?}");
}

/// Other versions are asked for with WALCAST_TEST_PG_VERSIONS; without it this looks at the default one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_version_of_the_matrix_starts() {
    let mut versions = crate::harness::versions::matrix();
    versions.push(crate::harness::versions::default_major());
    for major in versions {
        let cluster = Cluster::with(major, &[]);
        let number = cluster.connect().await.number("SHOW server_version_num").await;
        assert_eq!(number / 10_000, i64::from(major));
    }
}

#[tokio::test]
#[should_panic(expected = "last seen: \"two\"")]
async fn a_missed_deadline_says_what_was_seen_last() {
    let _: () = eventually(Duration::from_millis(40), || async { Err("two") }).await;
}

/// The workload against a real server, its truth read from the oracle's slot and from the ledger.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_workload_and_the_oracle_agree() {
    let cluster = Cluster::with_settings(&[("fsync", "off"), ("deadlock_timeout", "50ms")]);
    let db = cluster.connect().await;
    db.run(workload::SCHEMA).await;
    db.run("CREATE PUBLICATION walcast FOR ALL TABLES").await;
    truth::watch(&db).await;
    let plan = Plan { transactions: 150, large_rows: 3000, ..Plan::random() };
    let report = Workload::start(cluster.config("postgres"), plan).done().await;
    println!("{report:?}");
    assert!(report.committed > 300 && report.rolled_back > 0 && report.ddl > 0 && report.large > 0, "{report:?}");
    assert_eq!(report.unknown, 0);

    let truth = truth::read(&cluster, "postgres", "walcast").await;
    let ledger = truth.entries.iter().flat_map(|entry| &entry.items);
    let ledger = ledger.filter(|item| item.what == Op::Row(pb::Operation::Insert, "load.ledger".into())).count();
    assert_eq!(ledger as i64, db.number("SELECT count(*) FROM load.ledger").await);
    assert_eq!(ledger as u64, report.committed);
    let xids: Vec<u32> = truth.entries.iter().map(|entry| entry.xid).filter(|xid| *xid != 0).collect();
    let known = db.rows("SELECT txid FROM load.ledger").await;
    for row in known {
        let txid: u64 = row[0].as_ref().expect("not null").parse().expect("a number");
        assert!(xids.contains(&(txid as u32)), "{txid} is not in the oracle's history");
    }
    for kind in [
        Op::Row(pb::Operation::Update, "load.accounts".into()),
        Op::Row(pb::Operation::Delete, "load.accounts".into()),
        Op::Row(pb::Operation::Update, "load.evolving".into()),
        Op::Row(pb::Operation::Insert, "load.measurements_high".into()),
        Op::Truncate(vec!["load.scratch".into()]),
    ] {
        assert!(truth.entries.iter().flat_map(|entry| &entry.items).any(|item| item.what == kind), "no {kind:?}");
    }
    let message = |transactional: bool| {
        let is = |item: &truth::Expected| matches!(item.what, Op::Message(..));
        truth.entries.iter().any(|entry| (entry.xid != 0) == transactional && entry.items.iter().any(is))
    };
    assert!(message(true) && message(false), "both kinds of logical messages");
    assert!(truth.entries.is_sorted_by_key(|entry| entry.end_lsn));
}

/// A server that restarts under the workload leaves no client behind and no ledger row unknown to the oracle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_workload_survives_a_restart_of_the_server() {
    let mut cluster = Cluster::with_settings(&[("deadlock_timeout", "50ms")]);
    let db = cluster.connect().await;
    db.run(workload::SCHEMA).await;
    let workload = Workload::start(cluster.config("postgres"), Plan { ddl: false, ..Plan::random() });
    workload.commits(50, Duration::from_secs(30)).await;
    drop(db);
    cluster.restart(Shutdown::Immediate);
    let before = workload.report().committed;
    workload.commits(before + 50, Duration::from_secs(30)).await;
    let report = workload.stop().await;
    let rows = cluster.connect().await.number("SELECT count(*) FROM load.ledger").await as u64;
    assert!((report.committed..=report.committed + report.unknown).contains(&rows), "{rows} rows, {report:?}");
}

//! The harness itself: a test tool that cannot fail is worse than none.

use std::time::Duration;

use crate::harness::{Cluster, Shutdown, eventually};

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

//! A slow, stuck or hostile subscriber costs the others nothing and never holds WAL on the primary.

use std::time::{Duration, Instant};

use crate::harness::{
    client::Request,
    eventually,
    follower::{Follower, Resume},
    stage,
    stage::held,
    validators,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stuck_readers_cost_their_neighbours_nothing() {
    let stage =
        stage().sql("CREATE TABLE t (id int PRIMARY KEY, v text)").env("WALCAST_RING_BYTES", "4MiB").start().await;
    // One without credit, one that never reads its socket, one that closes its connection in the middle.
    let mut broke = stage.client().consume(&Request::named("broke").earliest()).await;
    broke.until("opened", |log| log.opened().is_some()).await;
    let deaf = stage.client().subscribe(&Request::named("deaf").earliest()).await;
    let gone = stage.client().subscribe(&Request::new().earliest()).await;
    let healthy: Vec<Follower> = ["a", "b"]
        .into_iter()
        .map(|name| Follower::start(stage.client(), Request::named(name).earliest(), Resume::Position, false))
        .collect();

    let mut retained = Vec::new();
    let sample = "SELECT pg_current_wal_insert_lsn() - confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'walcast'";
    drop(gone);
    for round in 0..20 {
        let sql = format!(
            "INSERT INTO t SELECT {round} * 1000 + i, repeat(md5(i::text), 64) FROM generate_series(1, 1000) i"
        );
        stage.db.run(&sql).await;
    }
    let committed = Instant::now();
    let goal = stage.goal().await;
    for follower in &healthy {
        follower.reaches(goal, Duration::from_secs(30)).await;
    }
    eventually(Duration::from_secs(20), || async {
        let bytes = stage.db.number(sample).await;
        if bytes < 1 << 20 { Ok(()) } else { Err(bytes) }
    })
    .await;
    retained.push(stage.db.number(sample).await as u64);

    let mut histories = Vec::new();
    for follower in healthy {
        histories.push(follower.stop().await.history);
    }
    for history in &histories {
        stage.check(history).await;
        assert_eq!(history.streams.len(), 1, "nobody was cut off");
    }
    let all: Vec<_> = histories.iter().collect();
    let checked = validators::isolated(&all, goal, committed, Duration::from_secs(20), &retained, 1 << 20);
    held(&histories[0], checked);
    assert_eq!(broke.log.changes(), 0, "it is still stuck");

    // What was slow is served in full, from disk by now, as soon as it reads.
    broke.grant(u64::MAX, u64::MAX).await;
    broke.reaches(goal).await;
    stage.check(&broke.close()).await;
    let mut deaf = deaf;
    deaf.reaches(goal).await;
    stage.check(&deaf.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_reader_does_not_grow_the_hub() {
    let stage =
        stage().sql("CREATE TABLE t (id int PRIMARY KEY, v text)").env("WALCAST_RING_BYTES", "8MiB").start().await;
    let mut stuck = Vec::new();
    for _ in 0..10 {
        let mut stream = stage.client().consume(&Request::new().earliest()).await;
        stream.until("opened", |log| log.opened().is_some()).await;
        stuck.push(stream);
    }
    let before = stage.hub.rss_peak();
    for round in 0..10 {
        let sql =
            format!("INSERT INTO t SELECT {round} * 10000 + i, repeat('z', 1000) FROM generate_series(1, 10000) i");
        stage.db.run(&sql).await;
    }
    stage.journaled().await;
    let grown = stage.hub.rss_peak().saturating_sub(before);
    assert!(grown < 96 << 20, "100 MB passed by, the hub grew by {} MiB", grown >> 20);
}

//! `kill -9` at every bad moment. Failpoints abort the hub at a named place: see [`PLACES`]; other rounds kill it
//! from outside at a random moment.

use std::{collections::BTreeMap, os::unix::process::ExitStatusExt, time::Duration};

use walcast::lsn::Lsn;

use crate::harness::{
    Stage,
    client::Request,
    eventually,
    follower::{Followed, Follower, Resume},
    history::lsn,
    stage,
    stage::held,
    validators::{self, Replica},
    versions,
    workload::{self, Plan, Workload, ledger_agrees},
};

/// Named places in the hub, hit in this order of rounds. Each is passed by once per
/// * block of a transaction that was journaled while the transaction is open,
/// * fdatasync of a segment, before PostgreSQL is told of it,
/// * change to a new segment file, between making it and using it,
/// * group of checkpoints, between the write and its fsync.
const PLACES: [&str; 4] = ["mid_transaction", "after_fsync_before_status", "segment_roll", "checkpoint_write"];

/// One hub's life that ends badly. Says whether the failpoint was what ended it.
async fn one_life(stage: &mut Stage, followers: &[Follower], place: Option<&str>, random: &mut fastrand::Rng) -> bool {
    match place {
        Some(place) => {
            stage.hub.failpoints(&format!("{place}=abort@{}", random.u32(1..4)));
            stage.hub.spawn();
            let status = stage.hub.wait_exit(Duration::from_secs(30)).await;
            assert_eq!(
                status.signal(),
                Some(6),
                "aborted at {place}, not ended with {status}:\n{}",
                stage.hub.log_tail(20)
            );
            true
        }
        None => {
            stage.hub.failpoints("");
            stage.hub.spawn();
            let before: usize = followers.iter().map(Follower::changes).sum();
            let more = random.usize(1..4000);
            eventually(Duration::from_secs(30), || async {
                let now: usize = followers.iter().map(Follower::changes).sum();
                if now >= before + more { Ok(()) } else { Err(format!("{} new changes of {more}", now - before)) }
            })
            .await;
            stage.hub.kill9();
            false
        }
    }
}

async fn survives_kill_9(major: u32, lives: usize, large_rows: u32) {
    let mut stage = stage().version(major).sql(workload::SCHEMA).env("WALCAST_SEGMENT_BYTES", "1MiB").start().await;
    let plan = Plan { large_rows: 1000, clients: 2, ..Plan::random() };
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let by_position = Request::new().earliest();
    let by_checkpoint = |seed| Resume::Checkpoint { one_in: 6, seed };
    let followers = vec![
        Follower::start(stage.client(), by_position, Resume::Position, true),
        Follower::start(
            stage.client(),
            Request::named("one").earliest().filter(|f| f.exclude_tables = vec!["load.bulk".into()]),
            by_checkpoint(plan.seed),
            true,
        ),
        Follower::start(
            stage.client(),
            Request::named("two").earliest().tables(&["load.ledger", "load.accounts"]),
            by_checkpoint(plan.seed + 1),
            true,
        ),
    ];
    let workload = Workload::start(stage.cluster.config("postgres"), plan);
    workload.commits(20, Duration::from_secs(30)).await;
    stage.hub.kill9();

    let mut aborted: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut inside, mut told) = (0, Vec::new());
    for life in 0..lives {
        if life % 10 == 0 {
            // A transaction over many blocks that waits for the next hub: whoever dies soon dies inside it.
            let rows = if life % 20 == 0 { large_rows } else { large_rows / 10 };
            let sql =
                format!("INSERT INTO load.bulk SELECT -1, {life}, i, md5(i::text) FROM generate_series(1, {rows}) i");
            stage.db.run(&sql).await;
        }
        let place = match life % 10 {
            0..3 => Some(PLACES[0]),
            3 | 4 => Some(PLACES[1]),
            5 => Some(PLACES[2]),
            6 => Some(PLACES[3]),
            _ => None,
        };
        if one_life(&mut stage, &followers, place, &mut random).await {
            *aborted.entry(place.expect("a place")).or_default() += 1;
        }
        inside += usize::from(followers.iter().any(Follower::inside_transaction));
        told.push(lsn(&stage.slot("confirmed_flush_lsn").await.expect("an LSN")));
        assert!(told.is_sorted(), "confirmed_flush went back: {told:?}");
    }
    println!("aborted at {aborted:?}, {inside} times with a follower inside a transaction, of {lives} lives");
    if lives >= 30 {
        assert!(PLACES.iter().all(|place| aborted.get(place).is_some_and(|n| *n >= 3)), "{aborted:?}");
        assert!(inside >= 3, "only {inside} lives ended with a follower inside a transaction");
    }

    let report = workload.stop().await;
    println!("{report:?}");
    stage.hub.failpoints("");
    stage.hub.spawn();
    journal_reaches(&stage, &told).await;
    stage.hub.ready().await;
    stage.streaming().await;
    let goal = stage.goal().await;
    finish(&stage, followers, goal, plan.seed).await;
}

/// Before the slot streams again the journal has at least what PostgreSQL was told.
async fn journal_reaches(stage: &Stage, told: &[Lsn]) {
    let client = stage.client();
    let tail = eventually(Duration::from_secs(30), || async {
        let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
        status.journal.and_then(|journal| journal.tail).map(|tail| lsn(&tail.lsn)).ok_or("no tail".to_owned())
    })
    .await;
    validators::server_was_told_less_than_journaled(told, tail).unwrap_or_else(|violation| panic!("{violation}"));
}

pub async fn finish(stage: &Stage, followers: Vec<Follower>, goal: Lsn, seed: u64) {
    let truth = stage.truth().await;
    let whole = stage.collect(Request::new().earliest()).await;
    let journal = held(&whole, validators::all(&whole, &truth));
    held(&whole, ledger_agrees(&stage.db, &journal).await);
    for follower in followers {
        follower.reaches(goal, Duration::from_secs(60)).await;
        let Followed { mut history, acknowledged } = follower.stop().await;
        history.note = format!("WALCAST_TEST_SEED={seed}; {}", history.note);
        println!("{:?}: {} streams, {} changes", history.subscriber, history.streams.len(), history.changes());
        let parsed = held(&history, validators::all(&history, &truth));
        if !history.subscriber.is_empty() {
            let listed = stage.client().subscriber(&history.subscriber).await;
            let checkpoint = listed.and_then(|subscriber| subscriber.checkpoint);
            held(&history, validators::acknowledgements_survive(&acknowledged, checkpoint.as_ref()));
        }
        if history.filter.is_none() {
            held(&history, validators::durable(&parsed, &journal));
            held(&history, validators::repeats_are_identical(&[&parsed, &journal]));
            held(&history, ledger_agrees(&stage.db, &parsed).await);
            let mut replica = Replica::default();
            held(&history, replica.apply(&parsed));
            let tables: Vec<String> = workload::TABLES.iter().map(|table| (*table).to_owned()).collect();
            held(&history, replica.equals_source(&stage.db, &tables).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_kills_lose_nothing_and_repeat_nothing_else() {
    survives_kill_9(versions::default_major(), 40, 100_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_on_every_version_of_the_matrix() {
    for major in versions::matrix() {
        survives_kill_9(major, 10, 20_000).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_crash_at_once() {
    let mut stage = stage().sql(workload::SCHEMA).start().await;
    let plan = Plan { large_rows: 3000, ..Plan::random() };
    let follower = Follower::start(stage.client(), Request::new().earliest(), Resume::Position, true);
    let workload = Workload::start(stage.cluster.config("postgres"), plan);
    for round in 0..3 {
        workload.commits(workload.report().committed + 50, Duration::from_secs(30)).await;
        stage.hub.kill9();
        stage.cluster.kill9();
        stage.cluster.resume();
        stage.hub.start().await;
        stage.streaming().await;
        println!("round {round}: {:?}", workload.report());
    }
    workload.stop().await;
    stage.reconnect().await;
    let goal = stage.goal().await;
    finish(&stage, vec![follower], goal, plan.seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_that_changes_inside_a_cut_transaction_discards_the_part() {
    let mut stage = stage()
        .sql("CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, v text)")
        .publication("CREATE PUBLICATION walcast FOR TABLE a, b")
        .start()
        .await;
    let mut stream = stage.client().subscribe(&Request::new().earliest()).await;
    stream.until("opened", |log| log.opened().is_some()).await;
    drop(stream);
    let long = stage.cluster.connect().await;
    long.run("BEGIN; INSERT INTO a SELECT i, repeat('a', 100) FROM generate_series(1, 20000) i; INSERT INTO b SELECT i, repeat('b', 100) FROM generate_series(1, 20000) i").await;
    stage.db.run("ALTER PUBLICATION walcast DROP TABLE b").await;
    long.run("INSERT INTO a SELECT i, repeat('c', 100) FROM generate_series(20001, 30000) i").await;
    stage.hub.terminate();
    long.run("COMMIT").await;
    stage.hub.failpoints("mid_transaction=abort@4");
    stage.hub.spawn();
    stage.hub.wait_exit(Duration::from_secs(30)).await;
    stage.db.run("ALTER PUBLICATION walcast ADD TABLE b").await;
    stage.hub.failpoints("");
    stage.hub.start().await;
    stage.streaming().await;
    // Whether the re-sent transaction is the same is the server's to say. Either way a reader sees one whole transaction.
    let history = stage.collect(Request::new().earliest()).await;
    let parsed = held(&history, validators::formal(&history));
    assert_eq!(parsed.transactions().count(), 1);
    assert!(parsed.items().count() >= 30_000);
}

//! A primary dies at a random moment under a random workload, a standby with some lag takes its place, and the hub is
//! killed at the named places of the recovery. The ledger on the survivor says what happened.
//!
//! `WALCAST_CHAOS_SEEDS` is how many seeds (3), `WALCAST_TEST_SEED` the first one.

use std::{os::unix::process::ExitStatusExt, time::Duration};

use crate::harness::{
    client::Request,
    eventually,
    follower::{Follower, Resume},
    pair::{self, Pair, Slots, kept, retracted},
    parsed::{Identity, Parsed},
    stage::held,
    validators::{self, Replica},
    versions,
    workload::{self, Plan, Workload, ledger_agrees},
};

/// Where the hub is killed while it follows the new history, before and after the record of it is durable.
const PLACES: [&str; 4] = ["before_lineage", "after_lineage", "mid_transaction", "after_fsync_before_status"];

async fn one_failover(major: u32, slots: Slots, seed: u64) {
    println!("WALCAST_TEST_SEED={seed} on {major}, slots {slots:?}");
    let mut random = fastrand::Rng::with_seed(seed);
    let env_small = ["--set", "journal.segment_bytes=1MiB"];
    let mut pair = Pair::start(major, slots, workload::SCHEMA, &env_small).await;
    let plan = Plan { seed, clients: 3, transactions: 0, large_rows: 3000, ddl: true, first_client: 0 };
    let filtered = Request::named("two").earliest().tables(&["load.ledger", "load.accounts"]);
    let checkpoint = |offset| Resume::Checkpoint { one_in: 4, seed: seed + offset };
    let followers = vec![
        Follower::start(pair.client(), Request::new().earliest(), Resume::Position, true),
        Follower::start(pair.client(), Request::named("one").earliest(), checkpoint(1), true),
        Follower::start(pair.client(), filtered, checkpoint(2), true),
    ];
    let load = Workload::start(pair.primary.config("postgres"), plan);
    load.commits(30 + random.u64(..100), Duration::from_secs(60)).await;
    if random.u32(..4) > 0 {
        pair.cut_off().await;
        load.commits(load.report().committed + random.u64(..150), Duration::from_secs(60)).await;
    }
    // Half of the time the hub is away while the primary dies; then it finds the switch when it comes back.
    let away = random.bool();
    if away {
        pair.hub.kill9();
    }
    pair.primary.kill9();
    println!("before: {:?}", load.stop().await);
    pair.standby.promote().await;
    std::mem::swap(&mut pair.primary, &mut pair.standby);
    let load = Workload::start(pair.primary.config("postgres"), plan.renamed(0));
    if !away {
        pair.hub.kill9();
    }
    let mut aborted = Vec::new();
    for place in PLACES {
        pair.hub.failpoints(&format!("{place}=abort@{}", if place.contains("lineage") { 1 } else { random.u32(1..4) }));
        pair.hub.spawn();
        let ended = eventually(Duration::from_secs(30), || async {
            // A place that lies behind the hub is not passed again.
            match pair.hub.get("/readyz").await {
                Ok((200, body)) if body.contains("\"source_connected\":true") && place.contains("lineage") => Ok(false),
                Err(_) if !pair.hub.is_alive() => Ok(true),
                other => Err(format!("{place}: {other:?}")),
            }
        })
        .await;
        if ended {
            let status = pair.hub.wait_exit(Duration::from_secs(5)).await;
            assert_eq!(status.signal(), Some(6), "aborted at {place}, not ended with {status}");
            aborted.push(place);
        } else {
            pair.hub.kill9();
        }
    }
    pair.hub.failpoints("");
    pair.hub.spawn();
    pair.hub.ready().await;
    pair::streaming(&pair.primary).await;
    load.commits(40, Duration::from_secs(60)).await;
    println!("after: {:?}, aborted at {aborted:?}", load.stop().await);
    // A hub that lived through the switch may have followed before it was killed.
    assert!(!away || aborted.starts_with(&["before_lineage", "after_lineage"]), "{aborted:?}");
    finish(&pair, followers, seed).await;
}

async fn finish(pair: &Pair, followers: Vec<Follower>, seed: u64) {
    let (goal, lineage, db) = (pair.truth().await.end(), pair.lineage().await, pair.db().await);
    let whole = pair.collect(Request::new().earliest()).await;
    pair.check(&whole).await;
    let journal = held(&whole, Parsed::of(&whole));
    held(&whole, ledger_agrees(&db, &journal).await);
    let mut replica = Replica::default();
    held(&whole, replica.apply(&journal));
    let tables: Vec<String> = workload::TABLES.iter().map(|table| (*table).to_owned()).collect();
    held(&whole, replica.equals_source(&db, &tables).await);
    let old = whole.last().opened().and_then(|opened| opened.after.clone()).expect("a position").lineage;
    let lost = pair.client().read_retracted(&old).await.expect("what was lost");
    let lost: std::collections::BTreeSet<Identity> = lost
        .iter()
        .filter_map(|kind| match kind {
            walcast::wire::pb::event::Kind::Begin(begin) => {
                Some((begin.lineage.clone(), crate::harness::history::lsn(&begin.commit_lsn), begin.sequence))
            }
            _ => None,
        })
        .collect();
    println!("{} transactions were lost", lost.len());
    for follower in followers {
        follower.reaches_on(lineage.clone(), goal, Duration::from_secs(60)).await;
        let mut history = follower.stop().await.history;
        history.note = format!("WALCAST_TEST_SEED={seed}; {}", history.note);
        pair.check(&history).await;
        let parsed = held(&history, Parsed::of(&history));
        held(&history, validators::lineage(&parsed, Some(&lost)));
        let left = kept(&history);
        let parsed_left = held(&left, Parsed::of(&left));
        if history.filter.is_none() {
            held(&left, ledger_agrees(&db, &parsed_left).await);
            held(&left, validators::repeats_are_identical(&[&parsed_left, &journal]));
        }
        println!(
            "{:?}: {} streams, {} changes, {} retracted",
            history.subscriber,
            history.streams.len(),
            history.changes(),
            retracted(&parsed).len()
        );
    }
}

async fn seeds(major: u32, slots: Slots, default: u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("WALCAST_TEST_SEED").unwrap_or_else(|| fastrand::u64(..1 << 40));
    for seed in first..first + number("WALCAST_CHAOS_SEEDS").unwrap_or(default) {
        one_failover(major, slots, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_with_the_slot_copied() {
    seeds(versions::default_major(), Slots::Copied, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_with_synchronized_slots_on_every_version_of_the_matrix() {
    for major in versions::matrix().into_iter().filter(|major| *major >= 17) {
        seeds(major, Slots::Synced, 1).await;
    }
}

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{BURST, Governor, Grants, LIVE, PIECE, Stride, rate::Growth};
use crate::{
    hub::testing::{MemoryFeed, World},
    wire::block::Block,
};

fn governor() -> Governor {
    Governor::new(Arc::new(MemoryFeed::new()))
}

/// Somebody is live for as long as the test takes.
fn beside_live() -> Governor {
    let governor = governor();
    governor.grants.live.store(u64::MAX, Ordering::Relaxed);
    governor
}

/// Blocks of so many bytes and a little more.
fn blocks(count: usize, bytes: usize) -> Vec<Arc<Block>> {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id", "note"]);
    let note = "x".repeat(bytes);
    (0..count)
        .map(|id| {
            world.begin("");
            world.insert(&orders, &[&id.to_string(), &note]);
            world.commit();
            Arc::new(world.writer.seal())
        })
        .collect()
}

#[test]
fn nobody_is_given_way_where_nobody_is_live() {
    let governor = governor();
    assert!(governor.rest(PIECE, Duration::ZERO).is_none());
    governor.live();
    assert!(governor.grants.anybody_live());
    let grants = Arc::into_inner(governor.grants).expect("no thread runs");
    let later = Grants { began: grants.began - LIVE, ..grants };
    assert!(!later.anybody_live(), "not for ever");
}

#[tokio::test]
async fn who_rests_goes_on_and_who_gave_up_keeps_nobody_waiting() {
    let governor = beside_live();
    for round in 0..100 {
        let rest = governor.rest(PIECE, Duration::ZERO);
        let mut rest = rest.expect("somebody is live");
        assert_eq!(rest.at_latest, None, "the journal does not grow");
        if round % 3 > 0 {
            rest.over(&governor).await;
        }
    }
}

#[tokio::test]
async fn everybody_goes_on_when_nobody_is_live_any_more() {
    let governor = beside_live();
    let mut rests: Vec<_> = (0..1000).map(|_| governor.rest(PIECE, Duration::ZERO).expect("a rest")).collect();
    governor.grants.live.store(0, Ordering::Relaxed);
    for rest in &mut rests {
        rest.over(&governor).await;
    }
    assert!(governor.rest(PIECE, Duration::ZERO).is_none());
}

#[test]
fn a_rest_never_lets_the_journal_grow_faster_than_a_stream_reads() {
    let governor = beside_live();
    let growing = |per_second| {
        let mut growth = Growth::default();
        growth.look(0);
        growth.grows_by(per_second);
        governor.grants.state.lock().growth = growth;
    };
    let at_most = |took| {
        let before = tokio::time::Instant::now();
        let rest = governor.rest(1_000_000, took)?;
        rest.at_latest.map(|at_latest| at_latest - before)
    };
    // A megabyte, and half of the time in which as much is written.
    growing(2e6);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    let slack = Duration::from_secs(30);
    let rest = at_most(Duration::ZERO).expect("a rest with an end");
    assert!((Duration::from_millis(250)..Duration::from_millis(250) + slack).contains(&rest), "{rest:?}");
    growing(2e6);
    assert_eq!(at_most(Duration::from_secs(10)), None, "it has needed that long already");
    growing(1e9);
    assert_eq!(at_most(Duration::ZERO), None, "so fast that there is no time to rest");
}

#[test]
fn a_burst_is_no_catching_up() {
    let governor = beside_live();
    let now = tokio::time::Instant::now();
    let blocks = blocks(BURST / PIECE, PIECE);
    let mut stride = Stride::default();
    for block in &blocks[1..] {
        stride.take(block, now);
        assert!(!stride.must_rest(&governor, now));
    }
    stride.at_tail(&governor, true);
    stride.take(&blocks[0], now);
    assert!(!stride.must_rest(&governor, now), "it came to the tail in between");
    for block in &blocks {
        stride.take(block, now);
    }
    assert!(stride.must_rest(&governor, now));
    assert!(stride.must_rest(&governor, now), "until it has rested");
}

#[tokio::test]
async fn who_reads_the_journal_rests_after_each_piece() {
    let governor = beside_live();
    let now = tokio::time::Instant::now();
    let large = blocks(1, PIECE).remove(0);
    let small = blocks(1, 0).remove(0);
    let mut stride = Stride::default();
    stride.reads_files();
    for _ in 0..3 {
        assert!(!stride.must_rest(&governor, now));
        stride.take(&large, now);
        assert!(stride.must_rest(&governor, now));
        stride.rested(&governor).await;
    }
    let mut taken = 0;
    while !stride.must_rest(&governor, now) {
        stride.take(&small, now);
        taken += 1;
    }
    assert!((10..60).contains(&taken), "small blocks have their price: {taken}");
}

#[test]
fn live_is_who_gets_something_after_it_stood_at_the_tail() {
    let governor = governor();
    let now = tokio::time::Instant::now();
    let block = blocks(1, 10).remove(0);
    let mut stride = Stride::default();
    stride.take(&block, now);
    stride.at_tail(&governor, true);
    assert!(!governor.grants.anybody_live(), "it has caught up");
    stride.at_tail(&governor, true);
    assert!(!governor.grants.anybody_live(), "and got nothing");
    stride.take(&block, now);
    stride.at_tail(&governor, true);
    assert!(governor.grants.anybody_live());
    let ends = self::governor();
    let mut stride = Stride::default();
    for _ in 0..2 {
        stride.take(&block, now);
        stride.at_tail(&ends, false);
        stride.at_tail(&ends, false);
    }
    assert!(!ends.grants.anybody_live(), "a stream that ends at the tail");
}

//! Streams whose predicate is evaluated by a thread that has not come to the tail.

use crate::{
    feed::Lost,
    hub::{Subscription, testing::*},
    lsn::Lsn,
    reason::{Classified, Reason},
    selection::Filter,
};

fn residual() -> Subscription {
    let filter = Filter { predicate: "state >= 'in'".to_owned(), ..tables(&["shop.*"]) };
    Subscription { filter: Some(filter), ..earliest() }
}

#[tokio::test]
async fn a_stream_that_lags_has_not_caught_up_however_the_writer_goes_on() {
    let mut world = World::new();
    let orders = world.full_relation(1, "shop.orders", &["id", "state"]);
    let mut client = world.open(residual()).await;
    let first = world.single(&orders, &["1", "in"]);
    assert_eq!(client.until(first).await.len(), 3);
    // The thread has begun with one block when there are more, and gets beyond that one.
    world.feed.bar(Some(1));
    let begun = world.single(&orders, &["2", "at"]);
    client.until_caught_up(false).await;
    let end = [(); 4].map(|()| world.single(&orders, &["3", "at"]))[3];
    let further = [begun.lsn.0 + 30, begun.lsn.0 + 45].map(at);
    for (block, up_to) in [(4, further[0]), (5, further[1])] {
        world.feed.bar(Some(block));
        let told = loop {
            let told = client.progress().await;
            if position(&told.position) == up_to {
                break told;
            }
        };
        assert!(!told.caught_up, "{told:?}");
        assert_eq!(position(&told.tail), end);
    }
    world.feed.bar(None);
    assert_eq!(client.until(end).await, [""; 0]);
    client.until_caught_up(true).await;
}

#[tokio::test]
async fn a_stream_that_lags_gets_what_there_is_before_it_hears_that_the_slot_is_lost() {
    let mut world = World::new();
    let orders = world.full_relation(1, "shop.orders", &["id", "state"]);
    let mut client = world.open(residual()).await;
    let first = world.single(&orders, &["1", "in"]);
    assert_eq!(client.until(first).await.len(), 3);
    client.until_caught_up(true).await;
    world.feed.bar(Some(1));
    world.single(&orders, &["2", "at"]);
    let last = world.single(&orders, &["3", "in"]);
    let lost = Lost { from: last.lsn, to: Lsn(1 << 30), detail: "dropped by the test".to_owned() };
    *world.source.lost.lock() = Some(lost);
    for _ in 0..3 {
        assert_eq!(position(&client.progress().await.position), first);
    }
    world.feed.bar(None);
    for expected in ["begin", "1", "commit"] {
        let line = client.line_within(DEADLINE).await.expect("a line");
        assert_eq!(line.split(' ').next(), Some(expected));
    }
    assert_eq!(client.error().await.reason(), Reason::SlotLost);
}

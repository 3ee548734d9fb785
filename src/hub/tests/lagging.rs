//! Streams whose predicate is evaluated by a thread that has not come to the tail.

use crate::{
    hub::{Subscription, testing::*},
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

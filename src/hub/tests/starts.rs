//! Where streams begin, and what is refused before they do.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use crate::{
    feed::{Start, WalPositions},
    hub::{Hub, Limits, Principal, StartAt, Subscription, testing::*},
    lsn::Lsn,
    reason::{Classified, Reason},
    selection::Filter,
};

async fn refused(world: &World, request: Subscription) -> Reason {
    world.try_open(request).await.err().expect("refused").reason()
}

fn at_lsn(lsn: u64) -> Subscription {
    Subscription { start: Some(StartAt::Feed(Start::AfterLsn(Lsn(lsn)))), ..earliest() }
}

#[tokio::test]
async fn a_start_inside_a_block_leaves_out_what_is_done() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    let mut positions = Vec::new();
    for id in 0..3 {
        world.begin("");
        world.insert(&orders, &[&id.to_string()]);
        positions.push(world.commit());
    }
    positions.push(world.message_outside("m", ""));
    world.begin("");
    world.insert(&orders, &["4"]);
    world.seal();
    world.insert(&orders, &["5"]);
    let end = world.commit();
    world.seal();
    let everything = world.open(earliest()).await.until(end).await;
    assert_eq!(everything.len(), 3 * 3 + 1 + 4);
    for (index, position) in positions.iter().enumerate() {
        let rest = world.open(after(*position)).await.until(end).await;
        assert_eq!(rest, everything[((index + 1) * 3).min(10)..], "after {position}");
    }
    assert_eq!(world.open(after(end)).await.until(end).await, [""; 0]);
}

#[tokio::test]
async fn an_anonymous_stream_without_a_start_begins_at_the_tail() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    let end = world.single(&orders, &["1"]);
    let request = Subscription { start: None, ..earliest() };
    let mut client = world.open(request).await;
    assert_eq!(client.until(end).await, [""; 0]);
    assert_eq!(position(&client.opened.after), end);
    let end = world.single(&orders, &["2"]);
    assert_eq!(client.until(end).await.len(), 3);
}

#[tokio::test]
async fn a_named_subscriber_needs_a_checkpoint_or_a_start() {
    let world = World::new();
    let without = Subscription { start: None, ..named("a") };
    assert_eq!(refused(&world, without.clone()).await, Reason::CheckpointMissing);
    let strict = Subscription { start: Some(StartAt::Checkpoint), ..named("a") };
    assert_eq!(refused(&world, strict.clone()).await, Reason::CheckpointMissing);
    assert_eq!(refused(&world, Subscription { subscriber: None, ..strict }).await, Reason::CheckpointMissing);
    let mut client = world.open(named("a")).await;
    client.progress().await;
    assert!(client.opened.created && client.opened.session == 1);
    assert_eq!(refused(&world, without).await, Reason::CheckpointMissing, "nothing was acknowledged yet");
    let mut client = world.open(named("a")).await;
    client.progress().await;
    assert!(!client.opened.created && client.opened.session == 2);
}

#[tokio::test]
async fn a_position_beyond_the_tail_waits_if_the_source_has_written_it() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    *world.source.wal.lock() = Some(WalPositions { flush: Lsn(200), insert: Lsn(200) });
    assert_eq!(refused(&world, after(at(201))).await, Reason::PositionInFuture);
    assert_eq!(refused(&world, at_lsn(201)).await, Reason::PositionInFuture);
    let mut client = world.open(at_lsn(125)).await;
    assert_eq!(position(&client.progress().await.position), at(125), "never below the start");
    assert_eq!(world.single(&orders, &["1"]), at(115));
    world.begin("");
    world.insert(&orders, &["2"]);
    world.seal();
    world.insert(&orders, &["3"]);
    assert_eq!(world.commit(), at(130));
    world.seal();
    let line = |lines: Vec<String>| lines.into_iter().next();
    assert_eq!(line(client.until(at(130)).await).as_deref(), Some("begin 0/7D"), "it begins at the start itself");

    *world.source.wal.lock() = None;
    assert_eq!(refused(&world, at_lsn(1000)).await, Reason::SourceUnavailable);
    assert!(world.try_open(after(at(1000))).await.is_ok(), "a hub handed it out");
    assert_eq!(refused(&world, after(elsewhere(1000))).await, Reason::LineageUnknown);
    assert_eq!(refused(&world, after(at(50))).await, Reason::PositionExpired);
}

#[tokio::test]
async fn a_transaction_that_may_end_before_the_start_is_decided_by_its_end() {
    for (start, wanted) in [(129, true), (130, false), (131, false)] {
        let mut world = World::new();
        let orders = world.relation(1, "shop.orders", &["id"]);
        let mut client = world.open(at_lsn(start)).await;
        world.single(&orders, &["1"]);
        world.begin("");
        world.insert(&orders, &["2"]);
        world.seal();
        assert_eq!(client.line_within(Duration::from_millis(50)).await, None);
        world.insert(&orders, &["3"]);
        world.seal();
        assert_eq!(world.commit(), at(130));
        world.begin("");
        world.insert(&orders, &["4"]);
        let end = world.commit();
        world.seal();
        let lines = client.until(end).await;
        assert_eq!(lines.len(), if wanted { 4 + 3 } else { 3 }, "after {start}: {lines:?}");
        assert_eq!(lines.last().map(String::as_str), Some("commit 0/91 1/1"));
    }
}

#[tokio::test]
async fn bad_requests_are_refused_before_anything_is_written() {
    let world = World::new();
    let long = "x".repeat(129);
    for name in ["", "a b", "ä", "a/b", long.as_str()] {
        let error = world.try_open(named(name)).await.err().expect("refused");
        assert_eq!(error.reason(), Reason::RequestInvalid, "{name:?}");
        assert_eq!(error.violations()[0].0, "subscriber");
    }
    let filter = |filter| Subscription { filter: Some(filter), ..named("a") };
    let invalid = Filter { tables: vec!["nodot".to_owned()], ..Filter::default() };
    assert_eq!(refused(&world, filter(invalid)).await, Reason::FilterInvalid);
    assert_eq!(refused(&world, filter(tables(&["shop.orders"]))).await, Reason::Starting);
    world.relation(1, "shop.orders", &["id"]);
    assert!(world.try_open(filter(tables(&["shop.orders"]))).await.is_ok(), "known from the feed");
    world.publish(&["shop.items"]);
    assert_eq!(refused(&world, filter(tables(&["shop.orders"]))).await, Reason::TableNotPublished);
    world.feed.known.store(false, Ordering::Relaxed);
    assert_eq!(refused(&world, named("b")).await, Reason::Starting);
    let names: Vec<String> = world.hub.subscribers(&Principal::default()).into_iter().map(|s| s.key.name).collect();
    assert_eq!(names, ["a"]);
}

#[tokio::test]
async fn rights_bound_what_arrives() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    let secret = world.relation(2, "shop.secret", &["id"]);
    world.publish(&["shop.orders", "shop.secret"]);
    world.begin("");
    world.insert(&orders, &["1"]);
    world.insert(&secret, &["2"]);
    let end = world.commit();
    world.seal();
    let principal = Principal { name: "reader".to_owned(), tables: Some(Arc::new(vec!["shop.orders".to_owned()])) };
    let open = async |hub: &Hub, request| hub.subscribe(&principal, request).await;
    let mut client = Client::new(open(&world.hub, earliest()).await.expect("a stream"));
    assert_eq!(client.until(end).await, ["begin 0/6E", "1 OPERATION_INSERT shop.orders [1]", "commit 0/73 1/2"]);
    let request = Subscription { filter: Some(tables(&["shop.*"])), ..earliest() };
    let error = open(&world.hub, request).await.err().expect("refused");
    assert_eq!(error.reason(), Reason::PermissionDenied);
    assert_eq!(error.metadata(), [("table", "shop.secret".to_owned())]);
}

#[tokio::test]
async fn limits_hold_and_are_given_back() {
    let world = World::with(Limits { streams: 2, subscribers: 1, ..LIMITS });
    let one = world.try_open(named("a")).await.expect("a stream");
    assert_eq!(refused(&world, named("b")).await, Reason::TooManyStreams, "subscribers");
    let _two = world.try_open(earliest()).await.expect("a stream");
    assert_eq!(world.hub.streams(), 2);
    assert_eq!(refused(&world, earliest()).await, Reason::TooManyStreams);
    drop(one);
    assert_eq!(world.hub.streams(), 1);
    assert!(world.try_open(named("a")).await.is_ok());
}

#[tokio::test]
async fn a_stream_that_would_wait_behind_too_many_others_is_refused() {
    let mut world = World::with(Limits { catch_up_readers: 1, catch_up_waiting: 2, ..LIMITS });
    let orders = world.relation(1, "shop.orders", &["id"]);
    let (first, end) = (world.single(&orders, &["1"]), world.single(&orders, &["2"]));
    let reading = world.hub.inner.turn(first.lsn).await;
    let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(world.try_open(earliest()))).collect();
    for stream in &mut waiting {
        assert!(futures_util::poll!(stream).is_pending());
    }
    assert_eq!(refused(&world, after(first)).await, Reason::TooManyStreams);
    assert_eq!(refused(&world, at_lsn(first.lsn.0)).await, Reason::TooManyStreams);
    assert!(world.try_open(after(end)).await.is_ok(), "nothing to read");
    // Who gives up leaves room, and the next is not refused but waits.
    waiting.pop();
    let mut next = Box::pin(world.try_open(after(first)));
    assert!(futures_util::poll!(&mut next).is_pending());
    drop(reading);
    assert!(waiting.remove(0).await.is_ok() && next.await.is_ok());
}

#[tokio::test]
async fn draining_ends_every_stream_at_its_position() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    let end = world.single(&orders, &["1"]);
    let mut idle = world.open(earliest()).await;
    idle.until(end).await;
    world.begin("");
    world.insert(&orders, &["2"]);
    world.seal();
    let mut inside = world.open(after(end)).await;
    inside.line_within(DEADLINE).await.expect("begin");
    let waiting = tokio::spawn(async move { idle.error().await });
    world.drain.start();
    for error in [waiting.await.expect("no panic"), inside.error().await] {
        assert_eq!(error.reason(), Reason::Draining);
        assert_eq!(error.metadata()[0], ("position", end.lsn.to_string()));
    }
    assert_eq!(refused(&world, earliest()).await, Reason::Draining);
    assert!(inside.next().await.is_none(), "after an error nothing more");
}

#[test]
fn sessions_can_be_moved_between_threads() {
    fn send<T: Send>(_: T) {}
    fn future(mut session: crate::hub::Session) {
        send(async move { session.next().await });
    }
    let _ = future;
}

//! Acknowledgements, fencing, resets.

use std::sync::atomic::Ordering;

use crate::{
    feed::{Checkpoints, Start, SubscriberKey},
    hub::{Principal, StartAt, Subscription, testing::*},
    model::Position,
    reason::{Classified, Reason},
};

async fn acknowledge(world: &World, position: Position, session: u64) -> Result<Position, Reason> {
    let principal = Principal::default();
    let done = world.hub.acknowledge(&principal, "a", position, session).await.map_err(|error| error.reason())?;
    Ok(done.position)
}

fn resume() -> Subscription {
    Subscription { start: None, ..named("a") }
}

fn stored(world: &World) -> Option<Position> {
    let key = SubscriberKey { principal: String::new(), name: "a".to_owned() };
    world.checkpoints.get(&key).and_then(|checkpoint| checkpoint.position)
}

/// Three transactions.
fn written() -> (World, Vec<Position>) {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    let positions = (0..3).map(|id| world.single(&orders, &[&id.to_string()])).collect();
    (world, positions)
}

#[tokio::test]
async fn checkpoints_move_forward_and_streams_resume_there() {
    let (world, positions) = written();
    let mut client = world.open(named("a")).await;
    client.until(positions[2]).await;
    assert_eq!(acknowledge(&world, positions[1], 1).await, Ok(positions[1]));
    assert_eq!(acknowledge(&world, positions[0], 1).await, Ok(positions[1]), "below: succeeds, changes nothing");
    assert_eq!(acknowledge(&world, at(1), 0).await, Ok(positions[1]));
    assert_eq!(stored(&world), Some(positions[1]));
    drop(client);
    let mut client = world.open(resume()).await;
    assert_eq!(client.until(positions[2]).await.len(), 3);
    assert_eq!(position(&client.opened.after), positions[1]);
    assert!(!client.opened.filter_changed);
}

#[tokio::test]
async fn nothing_is_acknowledged_before_it_was_sent() {
    let (world, positions) = written();
    let mut client = world.open(named("a")).await;
    while client.line_within(DEADLINE).await.is_none_or(|line| !line.starts_with("commit")) {}
    for session in [0, 1] {
        assert_eq!(acknowledge(&world, positions[1], session).await, Err(Reason::AckAhead));
    }
    assert_eq!(acknowledge(&world, positions[0], 1).await, Ok(positions[0]));
    drop(client);
    for session in [0, 1] {
        assert_eq!(acknowledge(&world, positions[1], session).await, Err(Reason::AckAhead), "still what it was sent");
    }
    let mut client = world.open(resume()).await;
    client.until(positions[2]).await;
    world.feed.keepalive(500);
    client.until(at(500)).await;
    assert_eq!(acknowledge(&world, at(500), 2).await, Ok(at(500)), "a progress may be acknowledged");
    assert_eq!(acknowledge(&world, at(501), 2).await, Err(Reason::AckAhead));
    assert_eq!(acknowledge(&world, elsewhere(1), 2).await, Err(Reason::AckAhead));
}

#[tokio::test]
async fn after_a_restart_of_the_hub_the_tail_is_the_bound() {
    let (world, positions) = written();
    let mut client = world.open(named("a")).await;
    client.progress().await;
    drop(client);
    let restarted = world.restart();
    assert_eq!(acknowledge(&restarted, positions[2], 0).await, Ok(positions[2]));
    assert_eq!(acknowledge(&restarted, at(9999), 0).await, Err(Reason::AckAhead));
    assert_eq!(acknowledge(&restarted, elsewhere(1), 0).await, Err(Reason::LineageUnknown));
    assert_eq!(acknowledge(&World::new(), at(100), 0).await, Err(Reason::SubscriberUnknown));
}

#[tokio::test]
async fn a_newer_stream_fences_the_older() {
    let (world, positions) = written();
    let mut old = world.open(named("a")).await;
    old.until(positions[2]).await;
    let waiting = tokio::spawn(async move { old.error().await });
    let mut new = world.open(named("a")).await;
    assert_eq!(waiting.await.expect("no panic").reason(), Reason::SubscriberFenced);
    assert_eq!(acknowledge(&world, positions[0], 1).await, Err(Reason::SubscriberFenced));
    new.until(positions[2]).await;
    assert_eq!(new.opened.session, 2);
    assert_eq!(acknowledge(&world, positions[0], 2).await, Ok(positions[0]));
    assert_eq!(acknowledge(&world, positions[0], 3).await, Err(Reason::SubscriberFenced), "no such session");
    let subscribers = world.hub.subscribers(&Principal::default());
    assert!(subscribers[0].connected);
    assert_eq!(subscribers[0].lag_bytes, positions[2].lsn.since(positions[0].lsn));
    assert!(subscribers[0].lag.is_some());
}

#[tokio::test]
async fn a_changed_filter_is_told_until_a_position_was_made_with_it() {
    let (world, positions) = written();
    let other = || Subscription { filter: Some(tables(&["shop.*"])), ..resume() };
    let mut client = world.open(named("a")).await;
    client.until(positions[2]).await;
    acknowledge(&world, positions[0], 1).await.expect("acknowledged");
    for expected in [true, true] {
        let mut client = world.open(other()).await;
        client.until(positions[2]).await;
        assert_eq!(client.opened.filter_changed, expected);
    }
    let mut client = world.open(other()).await;
    client.until(positions[2]).await;
    acknowledge(&world, positions[1], 4).await.expect("acknowledged");
    let mut client = world.open(other()).await;
    client.until(positions[2]).await;
    assert!(!client.opened.filter_changed);
}

#[tokio::test]
async fn acknowledgements_inside_a_stream_come_back_in_progress() {
    let (world, positions) = written();
    let mut client = world.open(named("a")).await;
    client.until(positions[2]).await;
    let handle = client.session.handle();
    assert_eq!(handle.acknowledge(at(9999)).map_err(|error| error.reason()), Err(Reason::AckAhead));
    for position in [positions[0], positions[2], positions[1]] {
        handle.acknowledge(position).expect("it was sent");
    }
    while client.progress().await.checkpoint.is_none_or(|it| position(&Some(it)) != positions[2]) {}
    assert_eq!(stored(&world), Some(positions[2]));
    assert!(world.checkpoints.writes.load(Ordering::Relaxed) <= 3, "coalesced");

    let anonymous = world.try_open(earliest()).await.expect("a stream").handle();
    assert_eq!(anonymous.acknowledge(at(100)).map_err(|error| error.reason()), Err(Reason::RequestInvalid));
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_written_is_an_error() {
    let (world, positions) = written();
    let mut client = world.open(named("a")).await;
    client.until(positions[2]).await;
    world.checkpoints.broken.store(true, Ordering::Relaxed);
    assert_eq!(acknowledge(&world, positions[0], 0).await, Err(Reason::Internal));
    client.session.handle().acknowledge(positions[0]).expect("it was sent");
    assert_eq!(client.error().await.reason(), Reason::Internal);
    assert_eq!(stored(&world), None);
}

#[tokio::test]
async fn a_reset_is_the_only_way_back() {
    let (world, positions) = written();
    let principal = Principal::default();
    let mut client = world.open(named("a")).await;
    client.until(positions[2]).await;
    acknowledge(&world, positions[2], 1).await.expect("acknowledged");
    let start = StartAt::Feed(Start::After(positions[0]));
    assert_eq!(world.hub.reset_subscriber(&principal, "a", start.clone()).await.ok(), Some(positions[0]));
    assert_eq!(client.error().await.reason(), Reason::SubscriberFenced);
    assert_eq!(stored(&world), Some(positions[0]));
    for session in [0, 1] {
        assert!(acknowledge(&world, positions[2], session).await.is_err(), "a late one does not undo the reset");
    }
    let mut client = world.open(resume()).await;
    assert_eq!(client.until(positions[2]).await.len(), 6);
    assert_eq!(client.opened.session, 3);
    for (name, start, reason) in [
        ("b", start, Reason::SubscriberUnknown),
        ("a", StartAt::Checkpoint, Reason::RequestInvalid),
        ("a", StartAt::Feed(Start::After(elsewhere(1))), Reason::LineageUnknown),
    ] {
        let error = world.hub.reset_subscriber(&principal, name, start).await.expect_err("refused");
        assert_eq!(error.reason(), reason);
    }
}

#[tokio::test]
async fn a_deleted_subscriber_is_gone() {
    let (world, positions) = written();
    let principal = Principal::default();
    let mut client = world.open(named("a")).await;
    client.until(positions[2]).await;
    world.hub.delete_subscriber(&principal, "a").await.expect("deleted");
    assert_eq!(client.error().await.reason(), Reason::SubscriberFenced);
    drop(client);
    assert_eq!(acknowledge(&world, positions[0], 0).await, Err(Reason::SubscriberUnknown));
    let error = world.hub.delete_subscriber(&principal, "a").await.expect_err("there is none");
    assert_eq!(error.reason(), Reason::SubscriberUnknown);
    assert_eq!(world.try_open(resume()).await.err().map(|error| error.reason()), Some(Reason::CheckpointMissing));
}

#[tokio::test]
async fn names_are_private_to_their_principal() {
    let (world, positions) = written();
    let principal = |name: &str| Principal { name: name.to_owned(), tables: None };
    for name in ["x", "y"] {
        let session = world.hub.subscribe(&principal(name), named("a")).await.expect("a stream");
        let mut client = Client::new(session);
        client.until(positions[2]).await;
        assert_eq!(client.opened.session, 1);
    }
    assert_eq!(world.hub.subscribers(&principal("x")).len(), 1);
    assert_eq!(world.hub.subscribers(&Principal::default()).len(), 2);
    let start = || StartAt::Feed(Start::Earliest);
    let error = world.hub.reset_subscriber(&Principal::default(), "a", start()).await.expect_err("whose?");
    assert_eq!(error.reason(), Reason::RequestInvalid);
    world.hub.delete_subscriber(&principal("x"), "a").await.expect("its own");
    assert!(world.hub.reset_subscriber(&Principal::default(), "a", start()).await.is_ok(), "the only one left");
}

//! Credits and message sizes.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    time::Duration,
};

use tokio::time::{Instant, timeout};

use crate::{
    hub::{
        Principal, Retracted, RowFormat, Subscription,
        session::{For, Step},
        testing::*,
    },
    lsn::Lsn,
    model::Position,
    reason::{Classified, Reason},
    wire::pb,
};

const SHORT: Duration = Duration::from_millis(60);

/// Transactions of 3, 2 and 1 inserts in one block.
fn written() -> (World, Position) {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    let mut end = at(100);
    for count in [3, 2, 1] {
        world.begin("");
        for id in 0..count {
            world.insert(&orders, &[&id.to_string()]);
        }
        end = world.commit();
    }
    world.seal();
    (world, end)
}

async fn lines(client: &mut Client) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(line) = client.line_within(SHORT).await {
        lines.push(line.split(' ').next().unwrap_or_default().to_owned());
    }
    lines
}

#[tokio::test]
async fn events_are_sent_as_far_as_credit_goes() {
    let (world, end) = written();
    let mut client = world.open(Subscription { credits: true, ..earliest() }).await;
    let handle = client.session.handle();
    let progress = client.progress().await;
    assert_eq!(position(&progress.position), at(100), "opened and progress are free");
    assert_eq!(progress.credit, Some(pb::Credit { events: 0, bytes: 0 }));
    assert_eq!(lines(&mut client).await, [""; 0]);
    handle.grant(2, u64::MAX);
    assert_eq!(lines(&mut client).await, ["begin", "1", "2"]);
    handle.grant(1, 0);
    assert_eq!(lines(&mut client).await, ["3", "commit"], "the commit is free");
    let progress = client.progress().await;
    assert_eq!(position(&progress.position), at(115), "a position inside the block");
    assert_eq!(progress.credit, Some(pb::Credit { events: 0, bytes: u64::MAX }));
    assert!(!progress.caught_up);
    handle.grant(u64::MAX, 0);
    assert_eq!(lines(&mut client).await, ["begin", "1", "2", "commit", "begin", "1", "commit"]);
    assert_eq!(position(&client.progress().await.position), end);
}

#[tokio::test]
async fn one_event_may_overdraw_bytes() {
    let (world, _) = written();
    let mut client = world.open(Subscription { credits: true, ..earliest() }).await;
    let handle = client.session.handle();
    handle.grant(100, 0);
    assert_eq!(lines(&mut client).await, [""; 0]);
    let mut received = Vec::new();
    while !received.iter().any(|line| line == "2") {
        handle.grant(0, 1);
        received.extend(lines(&mut client).await);
        if received.is_empty() {
            handle.grant(0, 20);
        }
    }
    assert_eq!(received, ["begin", "1", "2"]);
}

/// Polls within the time of a stream that has nothing to say.
async fn polls(client: &mut Client, time: Duration) -> u64 {
    let mut polls = 0;
    let mut next = pin!(client.session.next());
    let silent = poll_fn(|cx| {
        polls += 1;
        next.as_mut().poll(cx).map(drop)
    });
    assert!(timeout(time, silent).await.is_err(), "it says something");
    polls
}

/// A failover is told for credit, and before it nothing of where the stream stands is.
#[tokio::test]
async fn a_stream_that_may_not_cross_for_want_of_credit_sleeps() {
    let world = World::new();
    let mut client = world.open(Subscription { credits: true, ..earliest() }).await;
    assert!(client.progress().await.caught_up);
    let promoted = world.feed.promote(world.feed.tail().lsn);
    let begun = Instant::now();
    let polls = polls(&mut client, Duration::from_millis(300)).await;
    // Twice until it has crossed, and once a second it looks whether the source is still there.
    assert!(polls <= 4 + begun.elapsed().as_secs(), "{polls} polls");
    client.session.handle().grant(1, 1);
    let pb::event::Kind::TimelineChanged(changed) = client.event().await else { panic!("nothing else") };
    assert_eq!(position(&changed.position), promoted);
    assert_eq!(position(&client.progress().await.position), promoted);
}

#[tokio::test]
async fn a_stream_of_what_never_happened_rests_as_long_as_it_is_to() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    world.single(&orders, &["1"]);
    world.feed.promote(Lsn(100));
    let request = Retracted { old_lineage: lineage().id(), filter: None, row_format: RowFormat::Compact };
    let mut session = world.hub.read_retracted(&Principal::default(), request).await.expect("a stream");
    let later = Instant::now() + Duration::from_secs(60);
    assert!(session.progress(later).is_none());
    let Step::Wait { until, .. } = session.pause(later, For::Rest) else { panic!("a pause is a wait") };
    assert!(until > later);
}

#[tokio::test]
async fn a_stream_without_credits_does_not_wait_for_any() {
    let (world, end) = written();
    let mut client = world.open(earliest()).await;
    assert_eq!(client.until(end).await.len(), 12);
    assert_eq!(client.progress().await.credit, None);
}

#[tokio::test]
async fn messages_are_cut_to_what_the_client_can_receive() {
    let (world, end) = written();
    let expected = world.open(earliest()).await.until(end).await;
    for limit in [60, 100, 150, 1000] {
        let mut client = world.open(Subscription { max_message_bytes: Some(limit), ..earliest() }).await;
        assert_eq!(client.until(end).await, expected);
        let events = |frame: &&bytes::Bytes| -> usize {
            let response: pb::SubscribeResponse = prost::Message::decode(&frame[5..]).expect("a response");
            response.events.len()
        };
        let largest = client.frames.iter().filter(|frame| events(frame) > 1).map(|frame| frame.len() - 5).max();
        assert!(largest.is_none_or(|largest| largest <= limit as usize), "{largest:?} of {limit}");
    }
}

#[tokio::test]
async fn an_event_that_is_too_large_can_be_passed_over_on_purpose() {
    for blocks in [false, true] {
        let mut world = World::new();
        let orders = world.relation(1, "shop.orders", &["id"]);
        let first = world.single(&orders, &["1"]);
        world.begin("");
        world.insert(&orders, &["2"]);
        world.insert(&orders, &[&"x".repeat(500)]);
        if blocks {
            world.seal();
        }
        world.insert(&orders, &["3"]);
        let large = world.commit();
        world.seal();
        let end = world.single(&orders, &["4"]);

        let request = Subscription { max_message_bytes: Some(200), ..named("a") };
        let mut client = world.open(request.clone()).await;
        let error = client.error().await;
        assert_eq!(error.reason(), Reason::EventTooLarge);
        let metadata = error.metadata();
        let expected = [
            ("limit", "200".to_owned()),
            ("lsn", large.lsn.to_string()),
            ("lineage", large.lineage.to_string()),
            ("sequence", "0".to_owned()),
            ("table", "shop.orders".to_owned()),
            ("ordinal", "2".to_owned()),
        ];
        assert_eq!(metadata[1..], expected);
        assert!(metadata[0].0 == "bytes" && metadata[0].1.parse::<u32>().is_ok_and(|bytes| bytes > 500));
        drop(client);

        let principal = Principal::default();
        let acknowledge = |position| world.hub.acknowledge(&principal, "a", position, 0);
        let reason = |result: Result<crate::feed::Resume, crate::hub::Error>| {
            result.map(|done| done.position).map_err(|error| error.reason())
        };
        assert_eq!(reason(acknowledge(first).await), Ok(first));
        assert_eq!(reason(acknowledge(end).await), Err(Reason::AckAhead));
        let between = Position::new(large.lineage, Lsn(large.lsn.0 - 1));
        assert_eq!(reason(acknowledge(between).await), Err(Reason::AckAhead), "exactly that position");
        let mut again = world.open(Subscription { start: None, ..request.clone() }).await;
        assert_eq!(again.error().await.reason(), Reason::EventTooLarge, "never by accident");
        drop(again);
        assert_eq!(reason(acknowledge(large).await), Ok(large));
        let mut client = world.open(Subscription { start: None, ..request }).await;
        assert_eq!(client.until(end).await.len(), 3);
    }
}

#[tokio::test]
async fn an_event_that_is_too_large_and_never_happened_is_left_out() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    world.begin("");
    world.insert(&orders, &["1"]);
    world.insert(&orders, &[&"x".repeat(500)]);
    world.seal();
    world.writer.discard("republished");
    let end = world.single(&orders, &["2"]);
    let mut client = world.open(Subscription { max_message_bytes: Some(200), ..earliest() }).await;
    let lines = client.until(end).await;
    assert_eq!(lines[..3], ["begin 0/6E", "1 OPERATION_INSERT shop.orders [1]", "discard"]);
    assert_eq!(lines.len(), 6);
}

//! What a subscription does with a stream that breaks, repeats itself, or says something new: against scripted streams.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::scripted::*;
use tonic::Code;
use walcast_client::{
    Client, Error, Event, Position, Reason, Retry, Start, Subscription, SubscriptionBuilder,
    pb::{self, event::Kind},
};

fn fast() -> Retry {
    Retry { initial: Duration::from_millis(1), maximum: Duration::from_millis(10), give_up_after: None }
}

fn client(hub: &Hub) -> Client {
    Client::new(&hub.address).unwrap()
}

fn subscription(hub: &Hub) -> SubscriptionBuilder {
    client(hub).subscription().stop_at_tail().retry(fast())
}

fn at(number: u64) -> Position {
    position(number).try_into().unwrap()
}

fn ids_of(tx: &walcast_client::Transaction) -> Vec<i64> {
    tx.changes().iter().map(|change| change.after().unwrap().unwrap()["id"].as_i64().unwrap()).collect()
}

async fn ids(stream: &mut Subscription) -> Vec<Vec<i64>> {
    let mut all = Vec::new();
    while let Some(tx) = stream.next().await {
        all.push(ids_of(&tx.unwrap()));
    }
    all
}

fn first() -> Script {
    script(|connection| async move {
        connection.send(all!([opened(0, 0), relation()], transaction(16, 1), transaction(32, 2))).await;
        connection.send(vec![begin(48), insert(1, 4800)]).await;
        Err(lost())
    })
}

fn second() -> Script {
    script(|connection| async move {
        let start = connection.asked.borrow().open.clone().unwrap().start.unwrap();
        assert_eq!(start.at, Some(pb::start::At::After(position(32))), "resumes behind what was received whole");
        connection
            .send(all!([opened(32, 0), relation()], transaction(32, 2), transaction(48, 2), [progress(64)]))
            .await;
        over()
    })
}

fn playing(events: Vec<pb::Event>) -> Script {
    script(move |connection| {
        let events = events.clone();
        async move {
            connection.send(events).await;
            over()
        }
    })
}

fn refusing(code: Code, reason: &'static str, retry: Option<Duration>) -> Script {
    script(move |_| async move { Err(refusal(code, reason, retry)) })
}

#[tokio::test]
async fn a_broken_stream_goes_on_without_loss_or_repeat() {
    let hub = Hub::new(vec![first(), second()]).await;
    let losses = Arc::new(Mutex::new(Vec::new()));
    let told = losses.clone();
    let mut stream = subscription(&hub)
        .start(Start::Earliest)
        .on_reconnect(move |error, _| told.lock().unwrap().push(error.reason.clone()))
        .subscribe()
        .unwrap();
    assert_eq!(ids(&mut stream).await, [vec![1600], vec![3200, 3201], vec![4800, 4801]]);
    assert_eq!(losses.lock().unwrap()[..], [Reason::ConnectionLost]);
    assert_eq!(stream.position(), Some(at(64)));
}

#[tokio::test]
async fn events_continue_inside_a_transaction() {
    let hub = Hub::new(vec![first(), second()]).await;
    let mut stream = subscription(&hub).start(Start::Earliest).subscribe().unwrap();
    let mut kinds = Vec::new();
    while let Some(event) = stream.next_event().await {
        kinds.push(match event.unwrap() {
            Event::Change(change) => change.after().unwrap().unwrap()["id"].to_string(),
            Event::Begin(_) => "begin".into(),
            Event::Commit { .. } => "commit".into(),
            Event::Discard { .. } => "discard".into(),
            Event::Progress(_) => "progress".into(),
            other => format!("{other:?}"),
        });
    }
    let expected = "begin 1600 commit begin 3200 3201 commit begin 4800 discard begin 3200 3201 discard begin 4800 4801 \
                    commit progress";
    assert_eq!(kinds.join(" "), expected);
}

#[tokio::test]
async fn events_drop_repeats_by_identity() {
    let again = playing(all!([opened(32, 0), relation()], transaction(48, 3)));
    let hub = Hub::new(vec![first(), again]).await;
    let mut stream = subscription(&hub).subscribe().unwrap();
    let mut ordinals = Vec::new();
    while let Some(event) = stream.next_event().await {
        match event.unwrap() {
            Event::Change(change) => ordinals.push(change.ordinal()),
            Event::Discard { reason, .. } => panic!("{reason}"),
            _ => {}
        }
    }
    assert_eq!(ordinals, [1, 1, 2, 1, 2, 3]);
}

#[tokio::test]
async fn a_discarded_transaction_never_comes() {
    let discard = event(Kind::Discard(pb::Discard { reason: "made anew".into() }));
    let events = all!([opened(0, 0), relation(), begin(16), insert(1, 1), discard], transaction(16, 1));
    let hub = Hub::new(vec![playing(events)]).await;
    assert_eq!(ids(&mut subscription(&hub).subscribe().unwrap()).await, [[1600]]);
}

#[tokio::test]
async fn automatic_acknowledgement_follows_the_loop_body() {
    let two = || {
        script(|connection| async move {
            connection.send(all!([opened(0, 3), relation()], transaction(16, 1), transaction(32, 1))).await;
            connection.until_ended().await;
            over()
        })
    };
    let hub = Hub::new(vec![two(), two()]).await;
    let mut left = client(&hub).subscription().subscriber("s").subscribe().unwrap();
    left.next().await.unwrap().unwrap();
    left.close().await; // makes durable what was acknowledged
    let connection = hub.connections().remove(0);
    connection.until_ended().await;
    assert!(connection.acks().is_empty(), "the first transaction was still in the user's hands");
    assert!(hub.unary_acks().is_empty());
    let mut stream = client(&hub).subscription().subscriber("s").subscribe().unwrap();
    stream.next().await.unwrap().unwrap();
    let connection = hub.connections().remove(1);
    stream.next().await.unwrap().unwrap();
    connection.until_acked(16).await;
    stream.close().await;
    connection.until_ended().await;
    assert!(!connection.acks().contains(&lsn(32)));
    let durable: Vec<_> = hub.unary_acks().into_iter().map(|ack| (ack.position.unwrap().lsn, ack.session)).collect();
    assert_eq!(durable, [(lsn(16), 3)]);
}

#[tokio::test]
async fn acknowledgements_are_gathered() {
    let hub = Hub::new(vec![script(|connection| async move {
        connection.send(vec![opened(0, 1), relation()]).await;
        for number in 1..=500 {
            connection.send(transaction(number * 16, 1)).await;
        }
        connection.send(vec![progress(501 * 16)]).await;
        connection.until_acked(501 * 16).await;
        over()
    })])
    .await;
    let mut stream = subscription(&hub).subscriber("s").subscribe().unwrap();
    assert_eq!(ids(&mut stream).await.len(), 500);
    let acks = hub.connections()[0].acks();
    assert!(acks.len() < 100, "{} acknowledgements", acks.len());
    let numbers: Vec<u64> = acks.iter().map(|lsn| walcast_client::lsn_to_u64(lsn).unwrap()).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b));
}

#[tokio::test]
async fn explicit_acknowledgements_hold_progress_back() {
    let hub = Hub::new(vec![script(|connection| async move {
        connection.send(vec![opened(0, 1), relation(), progress(8)]).await;
        connection.until_acked(8).await;
        connection.send(all!(transaction(16, 1), [progress(32)], transaction(48, 1))).await;
        connection.until_ended().await;
        over()
    })])
    .await;
    let mut stream = client(&hub).subscription().subscriber("s").auto_ack(false).subscribe().unwrap();
    let one = stream.next().await.unwrap().unwrap();
    let two = stream.next().await.unwrap().unwrap();
    let connection = hub.connections().remove(0);
    one.ack().unwrap();
    connection.until_acked(16).await;
    // Acknowledgements only go forward: one of 0/20 would have kept this one back.
    assert_eq!(connection.acks(), [lsn(8), lsn(16)], "progress behind an open transaction is not acknowledged");
    let ahead = stream.ack_position(&at(80)).unwrap_err();
    assert_eq!(ahead.reason(), Some(&Reason::AckAhead));
    two.ack().unwrap();
    assert_eq!(stream.flush().await.unwrap().as_ref(), Some(two.position()));
}

#[tokio::test]
async fn credit_is_granted_as_the_user_reads() {
    let hub = Hub::new(vec![script(|connection| async move {
        connection.send(vec![opened(0, 0), relation()]).await;
        connection.until(|asked| asked.events == 10).await;
        connection.send(transaction(16, 5)).await;
        connection.until(|asked| asked.events == 15).await;
        connection.send(all!([begin(32)], (1..=10).map(|ordinal| insert(ordinal, 1)))).await;
        connection.until(|asked| asked.events == 25).await;
        connection.send(vec![commit(32, 10)]).await;
        over()
    })])
    .await;
    let mut stream = subscription(&hub).window(10, 1 << 20).subscribe().unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().changes().len(), 5);
    assert_eq!(stream.next().await.unwrap().unwrap().changes().len(), 10, "larger than the window, and whole");
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn the_checkpoint_goes_before_the_given_start() {
    let none = || {
        script(|connection| async move {
            assert!(connection.asked.borrow().open.clone().unwrap().start.is_none());
            Err(refusal(Code::NotFound, "CHECKPOINT_MISSING", None))
        })
    };
    let fresh = script(|connection| async move {
        let start = connection.asked.borrow().open.clone().unwrap().start.unwrap();
        assert_eq!(start.at, Some(pb::start::At::Latest(())));
        connection.send(vec![opened(16, 1)]).await;
        connection.until_acked(16).await;
        connection.send(all!([relation()], transaction(32, 1))).await;
        over()
    });
    let hub = Hub::new(vec![none(), fresh, none()]).await;
    assert_eq!(ids(&mut subscription(&hub).subscriber("s").start(Start::Latest).subscribe().unwrap()).await, [[3200]]);
    let mut unknown = subscription(&hub).subscriber("s").subscribe().unwrap();
    let error = unknown.next().await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(&Reason::CheckpointMissing));
    assert!(unknown.next().await.is_none(), "it has ended");
}

#[tokio::test]
async fn each_reason_is_told_and_not_tried_again() {
    for (text, reason) in Reason::ALL.iter().cloned().chain([("NEW_IN_2030", Reason::Unknown("NEW_IN_2030".into()))]) {
        let hub = Hub::new(vec![refusing(Code::FailedPrecondition, text, None)]).await;
        let error = subscription(&hub).subscribe().unwrap().next().await.unwrap().unwrap_err();
        let Error::Hub(error) = error else { panic!("{error}") };
        assert_eq!((&error.reason, error.reason.as_str(), error.earliest()), (&reason, text, Some("0/5")));
        assert_eq!(hub.connections().len(), 1, "without RetryInfo it is not tried again");
    }
}

#[test]
fn every_documented_reason_is_known() {
    let Ok(readme) = std::fs::read_to_string("../../README.md") else { return };
    let documented: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| name.contains('_') && name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .collect();
    assert!(documented.len() > 15, "{documented:?}");
    for reason in documented {
        assert!(Reason::ALL.iter().any(|(text, _)| *text == reason), "{reason}");
    }
}

#[tokio::test]
async fn retry_info_is_obeyed_and_tokens_are_asked_for_on_each_connection() {
    let fine = playing(all!([opened(0, 0), relation()], transaction(16, 1)));
    let hub = Hub::new(vec![refusing(Code::Unavailable, "STARTING", Some(Duration::from_millis(400))), fine]).await;
    let tokens = AtomicUsize::new(0);
    let token = move || format!("t{}", tokens.fetch_add(1, Ordering::Relaxed));
    let client = Client::builder(&hub.address).token_from(token).build().unwrap();
    let started = Instant::now();
    let mut stream = client.subscription().stop_at_tail().retry(fast()).subscribe().unwrap();
    assert_eq!(ids(&mut stream).await.len(), 1);
    assert!(started.elapsed() >= Duration::from_millis(400));
    let asked = hub.connections().into_iter().map(|connection| connection.asked.borrow().authorization.clone());
    assert_eq!(asked.collect::<Vec<_>>(), [Some("Bearer t0".into()), Some("Bearer t1".into())]);
}

#[tokio::test]
async fn a_twin_that_lost_its_connection_does_not_take_over_again() {
    let hub = Hub::new(vec![script(|connection| async move {
        connection.send(all!([opened(0, 3), relation()], transaction(16, 1))).await;
        Err(lost())
    })])
    .await;
    hub.fence_below(4);
    let mut stream = client(&hub).subscription().subscriber("s").retry(fast()).subscribe().unwrap();
    stream.next().await.unwrap().unwrap();
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(&Reason::SubscriberFenced));
    assert_eq!(hub.connections().len(), 1);
}

#[tokio::test]
async fn what_the_client_does_not_know_is_an_error() {
    let change = |change: pb::Change| event(Kind::Change(pb::Change { ordinal: 1, ..change }));
    let inserted =
        |relation_id, after_row| change(pb::Change { operation: 1, relation_id, after_row, ..Default::default() });
    let at_lsn = |lsn: &str| {
        let position =
            |lsn: &str| Some(pb::Position { lsn: lsn.into(), lineage: LINEAGE.into(), ..Default::default() });
        event(Kind::Progress(pb::Progress { position: position(lsn), tail: position("0/FF"), ..Default::default() }))
    };
    let novel = Some(pb::Row { values: vec![pb::Value::default(), pb::Value::default()] });
    let wrong = [
        vec![pb::Event::default()],
        vec![insert(1, 1)],
        vec![commit(16, 1)],
        vec![begin(16), begin(32)],
        vec![begin(16), progress(32)],
        vec![begin(16), inserted(99, None)],
        vec![begin(16), change(pb::Change { operation: 77, relation_id: 7, ..Default::default() }), commit(16, 1)],
        vec![begin(16), inserted(7, Some(pb::Row::default())), commit(16, 1)],
        vec![begin(16), inserted(7, novel), commit(16, 1)],
        vec![at_lsn("0/x")],
        vec![at_lsn("20")],
        vec![at_lsn("+0/1")],
        vec![at_lsn("")],
        vec![begin(16), event(Kind::Commit(pb::Commit::default()))],
    ];
    for events in wrong {
        let hub = Hub::new(vec![playing(all!([opened(0, 0), relation()], events.clone()))]).await;
        let mut stream = subscription(&hub).subscribe().unwrap();
        let outcome = match stream.next().await {
            Some(Ok(tx)) => tx.changes().iter().try_for_each(|change| change.after().map(|_| ())),
            Some(Err(error)) => Err(error),
            None => Ok(()),
        };
        assert!(matches!(outcome, Err(Error::Protocol(_))), "{events:?}: {outcome:?}");
    }
}

fn fork(more: bool, retracted: &[u64]) -> pb::Event {
    let taken_back = |number: &u64| pb::Retracted {
        begin: match begin(*number).kind {
            Some(Kind::Begin(begin)) => Some(begin),
            _ => None,
        },
        position: Some(position(*number)),
        changes: 1,
    };
    event(Kind::TimelineChanged(pb::TimelineChanged {
        old_lineage: LINEAGE.into(),
        new_lineage: "bb".into(),
        switch_lsn: "0/20".into(),
        retracted: retracted.iter().map(taken_back).collect(),
        more,
        position: Some(position_on(32, "bb")),
    }))
}

fn failover() -> Vec<Script> {
    let before = script(|connection| async move {
        connection.send(all!([opened(0, 1), relation()], transaction(16, 1), transaction(48, 1))).await;
        connection.send(vec![fork(true, &[48]), fork(false, &[64]), progress(32)]).await;
        Err(lost())
    });
    let events = all!([opened_on(32, 2, "bb"), fork(true, &[48]), fork(false, &[64]), relation()], transaction(64, 1));
    vec![before, playing(events)]
}

#[tokio::test]
async fn a_failover_cannot_be_missed() {
    let hub = Hub::new(failover()).await;
    let mut stream = subscription(&hub).subscriber("s").subscribe().unwrap();
    for _ in 0..2 {
        stream.next().await.unwrap().unwrap();
    }
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(error.goes_on());
    let Error::TimelineChanged(changed) = error else { panic!("{error}") };
    assert_eq!(changed.retracted.iter().map(|entry| entry.begin.xid).collect::<Vec<_>>(), [48, 64]);
    assert_eq!(changed.position, position_on(32, "bb").try_into().unwrap());
    assert_eq!(ids(&mut stream).await.len(), 1, "it goes on, and the same failover is not told again");

    let hub = Hub::new(failover()).await;
    let told = Arc::new(AtomicUsize::new(0));
    let count = told.clone();
    let hook = move |_: &walcast_client::TimelineChanged| {
        count.fetch_add(1, Ordering::Relaxed);
    };
    let mut stream = subscription(&hub).subscriber("s").on_timeline_changed(hook).subscribe().unwrap();
    assert_eq!((ids(&mut stream).await.len(), told.load(Ordering::Relaxed)), (3, 1));
}

#[tokio::test]
async fn closing_from_elsewhere_ends_the_loop_and_a_cancelled_wait_loses_nothing() {
    let cancelled = Arc::new(tokio::sync::Notify::new());
    let go = cancelled.clone();
    let hub = Hub::new(vec![script(move |connection| {
        let go = go.clone();
        async move {
            connection.send(all!([opened(0, 1), relation()], transaction(16, 1))).await;
            go.notified().await;
            connection.send(transaction(32, 1)).await;
            connection.until_ended().await;
            over()
        }
    })])
    .await;
    let mut stream = client(&hub).subscription().subscriber("s").subscribe().unwrap();
    stream.next().await.unwrap().unwrap();
    tokio::time::timeout(Duration::from_millis(20), stream.next()).await.expect_err("not before it was cancelled");
    cancelled.notify_one();
    assert_eq!(ids_of(&stream.next().await.unwrap().unwrap()), [3200]);
    let closer = stream.closer();
    let ended = tokio::spawn(async move { stream.next().await.is_none() });
    hub.connections()[0].until_acked(32).await;
    closer.close();
    assert!(ended.await.unwrap());
    hub.connections()[0].until_ended().await;
}

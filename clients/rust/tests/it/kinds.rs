//! What is not an ordinary change: rows of a snapshot, truncates, messages, gaps, and transactions that are too large.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use walcast_client::{
    Client, Error, Operation, SubscriptionBuilder, Transaction, Truncate,
    pb::{self, event::Kind},
};

use crate::scripted::*;

async fn playing(events: Vec<pb::Event>) -> Hub {
    let script = script(move |connection| {
        let events = events.clone();
        async move {
            connection.send(events).await;
            over()
        }
    });
    Hub::new(vec![script]).await
}

fn subscription(hub: &Hub) -> SubscriptionBuilder {
    Client::new(&hub.address).unwrap().subscription().stop_at_tail()
}

fn ids(tx: &Transaction) -> Vec<i64> {
    tx.changes().iter().map(|change| change.after().unwrap().unwrap()["id"].as_i64().unwrap()).collect()
}

fn read(id: i64) -> pb::Event {
    let mut event = insert(0, id);
    if let Some(Kind::Change(change)) = &mut event.kind {
        change.set_operation(pb::Operation::Read);
    }
    event
}

fn snapshot(restarted: bool) -> Vec<pb::Event> {
    let begin = pb::SnapshotBegin { snapshot_id: "s1".into(), restarted, ..Default::default() };
    let end = pb::SnapshotEnd { snapshot_id: "s1".into(), position: Some(position(16)), rows: 2 };
    let (begin, end) = (event(Kind::SnapshotBegin(begin)), event(Kind::SnapshotEnd(end)));
    all!([opened(8, 0), begin, relation(), read(1), read(2), end], transaction(32, 1))
}

#[tokio::test]
async fn rows_of_a_snapshot_are_transactions_that_name_it() {
    let hub = playing(snapshot(false)).await;
    let told = Arc::new(AtomicUsize::new(0));
    let count = told.clone();
    let hook = move |_: &walcast_client::SnapshotEvent| {
        count.fetch_add(1, Ordering::Relaxed);
    };
    let mut stream = subscription(&hub).on_snapshot(hook).subscribe().unwrap();
    let rows = stream.next().await.unwrap().unwrap();
    assert_eq!((ids(&rows), rows.snapshot_id.as_str(), rows.xid), (vec![1, 2], "s1", 0));
    assert_eq!(rows.changes()[0].operation(), Operation::Read);
    assert_eq!(ids(&stream.next().await.unwrap().unwrap()), [3200]);
    assert_eq!(told.load(Ordering::Relaxed), 2);

    let hub = playing(snapshot(true)).await;
    let error = subscription(&hub).subscribe().unwrap().next().await.unwrap().unwrap_err();
    assert!(error.goes_on() && matches!(error, Error::SnapshotRestarted(_)), "{error}");
}

#[tokio::test]
async fn truncates_and_messages() {
    let mut other = relation();
    if let Some(Kind::Relation(relation)) = &mut other.kind {
        (relation.relation_id, relation.table) = (8, "u".into());
    }
    let truncate = pb::Truncate { relation_ids: vec![8, 7], ordinal: 1, cascade: true, ..Default::default() };
    let message = |ordinal, position| {
        let (prefix, content, lsn) = ("p".into(), b"c"[..].into(), "0/5".into());
        event(Kind::Message(pb::LogicalMessage { prefix, content, ordinal, lsn, position }))
    };
    let (inside, outside) = (message(2, None), message(0, Some(position(32))));
    let within = [begin(16), event(Kind::Truncate(truncate)), inside, commit(16, 2)];
    let hub = playing(all!([opened(0, 0), relation(), other], within, [outside])).await;
    let mut stream = subscription(&hub).subscribe().unwrap();
    let tx = stream.next().await.unwrap().unwrap();
    assert_eq!(tx.changes().iter().map(|change| change.table()).collect::<Vec<_>>(), ["public.u", "public.t"]);
    assert_eq!(tx.changes()[1].truncate(), Some(Truncate { cascade: true, restart_identity: false }));
    assert_eq!((tx.messages().len(), &tx.messages()[0].content[..]), (1, &b"c"[..]));
    let alone = stream.next().await.unwrap().unwrap();
    assert_eq!((alone.changes().len(), alone.messages().len(), alone.position().lsn.as_str()), (0, 1, "0/20"));
}

#[tokio::test]
async fn a_gap_cannot_be_missed_and_a_large_transaction_is_refused() {
    let gap = pb::Gap { after: Some(position(8)), up_to: Some(position(16)), reason: "lost".into() };
    let hub = playing(all!([opened(0, 0), event(Kind::Gap(gap)), relation()], transaction(32, 1))).await;
    let mut stream = subscription(&hub).subscribe().unwrap();
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(error.goes_on());
    let Error::Gap(gap) = error else { panic!("{error}") };
    assert_eq!(gap.up_to.lsn, "0/10");
    assert_eq!(ids(&stream.next().await.unwrap().unwrap()), [3200]);

    let hub = playing(vec![opened(0, 0), relation(), begin(16), insert(1, 1)]).await;
    let mut stream = subscription(&hub).max_transaction_bytes(10).subscribe().unwrap();
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(matches!(error, Error::TransactionTooLarge { .. }), "{error}");
}

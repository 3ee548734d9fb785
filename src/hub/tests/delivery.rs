//! What arrives: catch-up and live, filters, relation versions, transactions across blocks, progress.

use std::{sync::atomic::Ordering, time::Duration};

use crate::{
    hub::{RowFormat, Subscription, testing::*},
    lsn::Lsn,
    model::Operation,
    reason::{Classified, Reason},
    selection::Filter,
    wire::pb,
};

#[tokio::test]
async fn catch_up_and_live_have_no_seam() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id", "note"]);
    let mut expected = Vec::new();
    let mut end = at(100);
    for id in 0..20 {
        end = world.single(&orders, &[&id.to_string(), "old"]);
        expected.push(format!("1 OPERATION_INSERT shop.orders [{id} old]"));
    }
    world.feed.hot_from.store(15, Ordering::Relaxed);
    let mut client = world.open(earliest()).await;
    let changes = |lines: Vec<String>| lines.into_iter().filter(|line| line.contains("INSERT")).collect::<Vec<_>>();
    assert_eq!(changes(client.until(end).await), expected);
    assert_eq!(world.feed.fetches.load(Ordering::Relaxed), 15, "cold blocks are read, hot ones are not");
    assert_eq!(position(&client.opened.after), at(100));
    assert_eq!(position(&client.opened.tail), end);

    let live = world.single(&orders, &["20", "new"]);
    assert_eq!(changes(client.until(live).await), ["1 OPERATION_INSERT shop.orders [20 new]"]);
}

#[tokio::test]
async fn an_unfiltered_stream_gets_the_blocks_own_bytes() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    let end = world.single(&orders, &["1"]);
    let mut client = world.open(earliest()).await;
    client.until(end).await;
    let mut cursor = crate::feed::Cursor { block: 0, after: at(100) };
    let Some(crate::feed::Fetched::Block(block)) = crate::feed::Feed::hot(&*world.feed, &mut cursor) else { panic!() };
    let shared = client.frames.iter().any(|frame| frame.as_ptr() == block.message().as_ptr());
    assert!(shared, "the same memory");
}

#[tokio::test]
async fn the_hubs_own_tables_and_messages_are_never_sent() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    let own = world.relation(2, "walcast.log", &["id"]);
    world.begin("");
    world.insert(&orders, &["1"]);
    world.seal();
    world.insert(&own, &["2"]);
    world.writer.message("walcast.mark", b"x", Lsn(1)).expect("encodes");
    world.writer.message("audit", b"x", Lsn(1)).expect("encodes");
    world.writer.truncate(&[1, 2], false, false, Lsn(1));
    world.seal();
    world.insert(&orders, &["6"]);
    world.commit();
    world.message_outside("walcast.heartbeat", "");
    world.begin("");
    world.insert(&own, &["1"]);
    world.seal();
    world.insert(&orders, &["2"]);
    let end = world.commit();
    world.seal();
    let mut client = world.open(earliest()).await;
    assert_eq!(
        client.until(end).await,
        [
            "begin 0/6E",
            "1 OPERATION_INSERT shop.orders [1]",
            "4 message audit",
            "5 truncate [1]",
            "6 OPERATION_INSERT shop.orders [6]",
            "commit 0/73 4/6",
            "begin 0/88",
            "2 OPERATION_INSERT shop.orders [2]",
            "commit 0/8D 1/2",
        ]
    );
}

#[tokio::test]
async fn a_transaction_is_begun_where_something_is_selected_first() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id", "note"]);
    let items = world.relation(2, "shop.items", &["id", "note"]);
    world.begin("");
    world.insert(&orders, &["1", "a"]);
    world.seal();
    world.insert(&orders, &["2", "b"]);
    world.insert(&items, &["3", "c"]);
    world.seal();
    world.insert(&orders, &["4", "d"]);
    world.seal();
    world.insert(&items, &["5", "e"]);
    world.commit();
    world.begin("");
    world.insert(&orders, &["1", "f"]);
    let end = world.commit();
    world.seal();
    let filter = |names: &[&str]| Subscription { filter: Some(tables(names)), ..earliest() };
    world.publish(&["shop.items", "shop.orders"]);
    assert_eq!(
        world.open(filter(&["shop.items"])).await.until(end).await,
        ["begin 0/6E", "3 OPERATION_INSERT shop.items [3 c]", "5 OPERATION_INSERT shop.items [5 e]", "commit 0/73 2/5"]
    );
    assert_eq!(
        world.open(filter(&["shop.orders"])).await.until(end).await,
        [
            "begin 0/6E",
            "1 OPERATION_INSERT shop.orders [1 a]",
            "2 OPERATION_INSERT shop.orders [2 b]",
            "4 OPERATION_INSERT shop.orders [4 d]",
            "commit 0/73 3/5",
            "begin 0/7D",
            "1 OPERATION_INSERT shop.orders [1 f]",
            "commit 0/82 1/1",
        ]
    );
    assert_eq!(world.open(filter(&["other.*"])).await.until(end).await, [""; 0]);
}

#[tokio::test]
async fn a_discarded_transaction_is_discarded_where_it_was_begun() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    let items = world.relation(2, "shop.items", &["id"]);
    world.begin("");
    world.insert(&orders, &["1"]);
    world.seal();
    world.writer.discard("republished");
    world.begin("");
    world.insert(&items, &["2"]);
    let end = world.commit();
    world.seal();
    world.publish(&["shop.items", "shop.orders"]);
    let filter = |names: &[&str]| Subscription { filter: Some(tables(names)), ..earliest() };
    assert_eq!(
        world.open(filter(&["shop.orders"])).await.until(end).await,
        ["begin 0/6E", "1 OPERATION_INSERT shop.orders [1]", "discard"]
    );
    assert_eq!(
        world.open(filter(&["shop.items"])).await.until(end).await,
        ["begin 0/78", "1 OPERATION_INSERT shop.items [2]", "commit 0/7D 1/1"]
    );
    assert_eq!(world.open(earliest()).await.until(end).await.len(), 6);
}

#[tokio::test]
async fn both_relation_versions_of_a_block_come_before_it() {
    let mut world = World::new();
    let before = world.relation(1, "shop.orders", &["id"]);
    let after_ddl = world.relation(2, "shop.orders", &["id", "note"]);
    world.begin("");
    world.insert(&before, &["1"]);
    world.commit();
    world.begin("");
    world.insert(&after_ddl, &["2", "x"]);
    world.commit();
    world.seal();
    let end = world.single(&before, &["3"]);
    let mut client = world.open(earliest()).await;
    let mut relations = Vec::new();
    loop {
        match client.event().await {
            pb::event::Kind::Relation(relation) => relations.push((relation.relation_id, relation.columns.len())),
            pb::event::Kind::Progress(progress) if position(&progress.position) == end => break,
            _ => {}
        }
    }
    assert_eq!(relations, [(1, 1), (2, 2)], "each once, in order of use");
}

#[tokio::test]
async fn columns_operations_origins_and_messages() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id", "note", "total"]);
    world.begin("east");
    world.insert(&orders, &["1", "a", "10"]);
    world.commit();
    world.begin("");
    world.insert(&orders, &["2", "b", "20"]);
    world.change(&orders, Operation::Update, &["2", "c", "30"]);
    world.change(&orders, Operation::Delete, &["2", "", ""]);
    world.writer.message("audit.login", b"x", Lsn(1)).expect("encodes");
    world.writer.message("other", b"x", Lsn(1)).expect("encodes");
    world.seal();
    world.commit();
    let end = world.message_outside("audit.out", "y");
    world.seal();
    let filter = Filter {
        operations: vec![Operation::Insert, Operation::Delete],
        columns: vec!["*.total".to_owned()],
        message_prefixes: vec!["audit.*".to_owned()],
        origins: vec![String::new()],
        ..Filter::default()
    };
    let request = Subscription { filter: Some(filter.clone()), ..earliest() };
    assert_eq!(
        world.open(request).await.until(end).await,
        [
            "begin 0/7D",
            "1 OPERATION_INSERT shop.orders [2 20]",
            "3 OPERATION_DELETE shop.orders [2 -]",
            "4 message audit.login",
            "commit 0/82 3/5",
            "0 message audit.out",
        ]
    );
    let east = Filter { origins: vec!["east".to_owned()], ..filter };
    let request = Subscription { filter: Some(east), row_format: RowFormat::Struct, ..earliest() };
    assert_eq!(
        world.open(request).await.until(end).await,
        ["begin 0/6E", "1 OPERATION_INSERT shop.orders {id total}", "commit 0/73 1/1"]
    );
}

#[tokio::test]
async fn a_truncate_names_only_selected_tables() {
    let mut world = World::new();
    world.relation(1, "shop.orders", &["id"]);
    world.relation(2, "shop.items", &["id"]);
    world.publish(&["shop.items"]);
    world.begin("");
    world.writer.truncate(&[1, 2], true, false, Lsn(1));
    world.writer.truncate(&[1], true, false, Lsn(1));
    let end = world.commit();
    world.seal();
    let request = |row_format| Subscription { filter: Some(tables(&["shop.items"])), row_format, ..earliest() };
    let expected = ["begin 0/6E", "1 truncate [2]", "commit 0/73 1/2"];
    assert_eq!(world.open(request(RowFormat::Compact)).await.until(end).await, expected);
    assert_eq!(world.open(request(RowFormat::Struct)).await.until(end).await, expected);
}

#[tokio::test]
async fn progress_moves_although_nothing_matches() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    let mut client = world.open(Subscription { filter: Some(tables(&["other.*"])), ..earliest() }).await;
    let first = client.progress().await;
    assert!(first.caught_up && first.source_connected, "at once when caught up: {first:?}");
    assert_eq!(position(&first.position), at(100));
    let end = world.single(&orders, &["1"]);
    assert_eq!(client.until(end).await, [""; 0]);
    world.feed.keepalive(1000);
    assert_eq!(client.until(at(1000)).await, [""; 0]);
}

#[tokio::test]
async fn progress_tells_that_the_source_is_away() {
    let world = World::new();
    let request = Subscription { progress_interval: Some(Duration::from_secs(3600)), ..earliest() };
    let mut client = world.open(request).await;
    assert!(client.progress().await.source_connected);
    world.source.connected.store(false, Ordering::Relaxed);
    assert!(!client.progress().await.source_connected);
}

#[tokio::test]
async fn progress_stops_in_front_of_an_open_transaction() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    let end = world.single(&orders, &["1"]);
    world.begin("");
    world.insert(&orders, &["2"]);
    world.seal();
    let mut everything = world.open(earliest()).await;
    let mut nothing = world.open(Subscription { filter: Some(tables(&["other.*"])), ..earliest() }).await;
    nothing.until(end).await;
    for expected in ["begin 0/6E", "1 OPERATION_INSERT shop.orders [1]", "commit 0/73 1/1", "begin 0/7D"] {
        assert_eq!(everything.line_within(DEADLINE).await.as_deref(), Some(expected));
    }
    assert!(everything.line_within(DEADLINE).await.is_some_and(|line| line.ends_with("[2]")));
    assert_eq!(everything.line_within(Duration::from_millis(100)).await, None);
    let end = world.commit();
    world.seal();
    assert_eq!(everything.until(end).await, ["commit 0/82 1/1"]);
    assert_eq!(nothing.until(end).await, [""; 0]);
}

#[tokio::test]
async fn stop_at_tail_ends_with_ok_once_the_tail_has_passed() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    world.single(&orders, &["1"]);
    world.source.wal.lock().as_mut().expect("connected").flush = Lsn(5000);
    let request = Subscription { stop_at_tail: true, progress_interval: None, ..earliest() };
    let mut client = world.open(request.clone()).await;
    let mut last = None;
    while let Some(event) = client.next().await {
        last = Some(event.expect("no error"));
    }
    let Some(pb::event::Kind::Progress(progress)) = last else { panic!("{last:?}") };
    assert_eq!(position(&progress.position), at(5000));
    assert!(world.source.nudges.load(Ordering::Relaxed) > 0);

    *world.source.wal.lock() = None;
    let error = world.try_open(request).await.err().expect("the source is away");
    assert_eq!(error.reason(), Reason::SourceUnavailable);
}

#[tokio::test]
async fn streams_of_the_same_filter_share_their_projections() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    let mut end = at(100);
    for id in 0..10 {
        end = world.single(&orders, &[&id.to_string()]);
    }
    world.publish(&["shop.orders"]);
    let mut streams = Vec::new();
    for names in [["shop.*", "shop.orders"], ["shop.orders", "shop.*"]] {
        let mut client = world.open(Subscription { filter: Some(tables(&names)), ..earliest() }).await;
        client.until(end).await;
        streams.push(client);
    }
    let pointers = |client: &Client| client.frames.iter().map(|frame| frame.as_ptr()).collect::<Vec<_>>();
    let (one, two) = (pointers(&streams[0]), pointers(&streams[1]));
    assert_eq!(one.iter().filter(|pointer| two.contains(pointer)).count(), 10, "the same memory");
}

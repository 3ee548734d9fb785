//! The way of one change: order, boundaries, starts, ends, resumption.

use std::time::Duration;

use walcast::wire::pb::{self, event::Kind};

use crate::harness::{
    Shutdown, Stage,
    client::Request,
    eventually,
    history::{End, lsn, order},
    parsed::{Cell, What},
    process, stage,
    stage::held,
    validators::{self, Replica},
    versions,
};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, name text)";

async fn with_table() -> Stage {
    stage().sql(TABLE).start().await
}

async fn insert(stage: &Stage, from: i32, to: i32) {
    for id in from..=to {
        stage.db.run(&format!("INSERT INTO items VALUES ({id}, 'item {id}')")).await;
    }
}

fn ids(history: &crate::harness::history::History) -> Vec<i64> {
    let parsed = validators::formal(history).expect("a valid history");
    let id = |what: &What| match what.get("id") {
        Some(Cell::Int(id)) => *id,
        other => panic!("{other:?}"),
    };
    parsed.items().map(|item| id(&item.what)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_arrives_in_its_transaction() {
    let stage = with_table().await;
    stage
        .db
        .run(
            "BEGIN; INSERT INTO items VALUES (1, 'a'), (2, 'b'); UPDATE items SET name = 'A' WHERE id = 1; \
             UPDATE items SET id = 3 WHERE id = 2; DELETE FROM items WHERE id = 1; COMMIT; TRUNCATE items",
        )
        .await;
    let history = stage.everything().await;
    let parsed = stage.check(&history).await;
    let spans: Vec<_> = parsed.transactions().collect();
    assert_eq!(spans.len(), 2);
    let operations: Vec<_> = spans[0]
        .items
        .iter()
        .map(|item| match &item.what {
            What::Row { operation, before, after, .. } => (*operation, before.clone(), after.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    let row = |id: i64, name: &str| Some(vec![Cell::Int(id), Cell::Text(name.into())]);
    let key = |id: i64| Some(vec![Cell::Int(id), Cell::Absent]);
    assert_eq!(
        operations,
        [
            (pb::Operation::Insert, None, row(1, "a")),
            (pb::Operation::Insert, None, row(2, "b")),
            (pb::Operation::Update, None, row(1, "A")),
            (pb::Operation::Update, key(2), row(3, "b")),
            (pb::Operation::Delete, key(1), None),
        ]
    );
    assert!(matches!(&spans[1].items[0].what, What::Truncate { tables, .. } if tables == &["public.items"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_stream_receives_what_commits() {
    let stage = with_table().await;
    let mut stream = stage.client().subscribe(&Request::new()).await;
    stream.until("opened", |log| log.opened().is_some()).await;
    insert(&stage, 1, 3).await;
    stream.reaches(stage.goal().await).await;
    let history = stream.close();
    assert_eq!(ids(&history), [1, 2, 3]);
    stage.check(&history).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolled_back_and_empty_transactions_are_not_sent_but_covered_by_progress() {
    let stage = with_table().await;
    stage
        .db
        .run(
            "BEGIN; INSERT INTO items VALUES (1, 'never'); ROLLBACK; \
             BEGIN; SAVEPOINT s; INSERT INTO items VALUES (2, 'never'); ROLLBACK TO s; COMMIT; \
             CREATE TABLE unrelated (); INSERT INTO items VALUES (3, 'kept')",
        )
        .await;
    let goal = stage.flushed().await;
    let history = stage.everything().await;
    assert_eq!(ids(&history), [3]);
    assert_eq!(history.last().commits(), 1);
    assert!(order(&history.position().expect("a position")).0 >= goal, "progress covers the rest");
}

/// What a new journal begins with stays its oldest position, also when WAL that holds nothing for it came first,
/// and when the hub was restarted before its first transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_hub_serves_from_where_its_slot_begins() {
    let mut stage = with_table().await;
    let begins = stage.slot("confirmed_flush_lsn").await.expect("an LSN");
    stage.db.run("CREATE TABLE unrelated ()").await;
    assert_eq!(ids(&stage.everything().await), Vec::<i64>::new());
    for clean in [true, false] {
        if clean {
            stage.hub.terminate();
        } else {
            stage.hub.kill9();
        }
        stage.hub.start().await;
        stage.streaming().await;
        assert_eq!(ids(&stage.collect(Request::new().after_lsn(&begins)).await), Vec::<i64>::new());
    }
    insert(&stage, 1, 2).await;
    let found = stage.collect(Request::new().after_lsn(&begins)).await;
    assert_eq!(ids(&found), [1, 2]);
    stage.check(&found).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_mean_what_they_say() {
    let stage = with_table().await;
    insert(&stage, 1, 2).await;
    let between = stage.db.lsn("pg_current_wal_insert_lsn()").await;
    let time = stage.db.number("SELECT extract(epoch FROM clock_timestamp())::bigint").await;
    insert(&stage, 3, 4).await;
    let everything = stage.everything().await;
    assert_eq!(ids(&everything), [1, 2, 3, 4]);

    let after_lsn = stage.collect(Request::new().after_lsn(between)).await;
    assert_eq!(ids(&after_lsn), [3, 4]);
    stage.check(&after_lsn).await;

    let second = everything.last().kinds().filter_map(|kind| match kind {
        Kind::Commit(commit) => commit.position.clone(),
        _ => None,
    });
    let positions: Vec<pb::Position> = second.collect();
    for (index, position) in positions.iter().enumerate() {
        let resumed = stage.collect(Request::new().after(position)).await;
        assert_eq!(ids(&resumed).len(), 3 - index, "after {position:?}");
        stage.check(&resumed).await;
        // The end LSN of a commit, typed by a person, is the same place; a byte before it is not.
        let typed = stage.collect(Request::new().after_lsn(&position.lsn)).await;
        assert_eq!(ids(&typed), ids(&resumed));
        let before = walcast::lsn::Lsn(lsn(&position.lsn).0 - 1);
        assert_eq!(ids(&stage.collect(Request::new().after_lsn(before)).await).len(), 4 - index);
    }

    assert_eq!(ids(&stage.collect(Request::new()).await), Vec::<i64>::new(), "anonymous without a start is latest");
    assert_eq!(ids(&stage.collect(Request::new().latest()).await), Vec::<i64>::new());
    let since = stage.collect(Request::new().since(prost_types::Timestamp { seconds: time - 3600, nanos: 0 })).await;
    assert_eq!(ids(&since), [1, 2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_at_tail_ends_with_ok_at_or_past_the_sources_flush_position() {
    let stage = with_table().await;
    insert(&stage, 1, 1).await;
    let goal = stage.flushed().await;
    let mut stream = stage.client().subscribe(&Request::new().earliest().stop_at_tail()).await;
    assert!(matches!(stream.ended().await, End::Completed));
    let last = stream.log.progress().next_back().expect("a progress").position.clone().expect("a position");
    assert!(lsn(&last.lsn) >= goal, "{last:?}, the source was at {goal}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_beyond_the_tail_but_written_waits() {
    let mut stage = with_table().await;
    insert(&stage, 1, 1).await;
    stage.journaled().await;
    let insert_lsn = stage.db.lsn("pg_current_wal_insert_lsn()").await;
    let mut stream = stage.client().subscribe(&Request::new().after_lsn(insert_lsn)).await;
    stream.until("opened", |log| log.opened().is_some()).await;
    insert(&stage, 2, 2).await;
    stream.reaches(stage.goal().await).await;
    assert_eq!(ids(&stream.close()), [2]);
    stage.hub.kill9();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transaction_spans_messages_and_stays_whole() {
    let stage = with_table().await;
    stage.db.run("INSERT INTO items SELECT i, repeat('x', 200) FROM generate_series(1, 10000) i").await;
    insert(&stage, 10_001, 10_001).await;
    let request = Request::new().earliest().max_message_bytes(64 << 10);
    let history = stage.collect(request).await;
    let parsed = stage.check(&history).await;
    let sizes: Vec<usize> = parsed.transactions().map(|span| span.items.len()).collect();
    assert_eq!(sizes, [10_000, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_100_000_rows_is_never_held_in_memory() {
    let stage = stage().sql("CREATE TABLE wide (id int PRIMARY KEY, data text)").start().await;
    let before = stage.hub.rss_peak();
    // About 200 MB of rows in one transaction; the ring holds 64 MiB.
    stage.db.run("INSERT INTO wide SELECT i, repeat(md5(i::text), 62) FROM generate_series(1, 100000) i").await;
    stage.journaled().await;
    let grown = stage.hub.rss_peak().saturating_sub(before);
    assert!(grown < 160 << 20, "the hub grew by {} MiB", grown >> 20);
    let mut stream = stage.client().subscribe(&Request::new().earliest().stop_at_tail()).await;
    assert!(matches!(stream.ended().await, End::Completed), "{:?}", stream.log.end);
    assert_eq!(stream.log.changes(), 100_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_survive_restarts_of_the_hub_with_their_relation_versions() {
    let mut stage = with_table().await;
    insert(&stage, 1, 2).await;
    stage.db.run("ALTER TABLE items ADD COLUMN price numeric; UPDATE items SET price = 1.50 WHERE id = 1").await;
    let before = stage.everything().await;
    for kill in [false, true] {
        stage.journaled().await;
        if kill {
            stage.hub.kill9();
        } else {
            assert!(stage.hub.terminate().0.success());
        }
        stage.hub.start().await;
        stage.streaming().await;
        let again = stage.everything().await;
        let (a, b) = (validators::formal(&before).unwrap(), validators::formal(&again).unwrap());
        held(&again, validators::durable(&a, &b));
        held(&again, validators::repeats_are_identical(&[&a, &b]));
    }
    stage.db.run("UPDATE items SET price = 2 WHERE id = 2").await;
    let history = stage.everything().await;
    let parsed = stage.check(&history).await;
    let mut replica = Replica::default();
    replica.apply(&parsed).unwrap();
    held(&history, replica.equals_source(&stage.db, &["public.items".into()]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consume_sends_nothing_without_credit_and_counts_it_exactly() {
    let stage = with_table().await;
    insert(&stage, 1, 10).await;
    let request = Request::named("credits").earliest().progress_every(Duration::from_millis(100));
    let mut stream = stage.client().consume(&request).await;
    stream.until("progress without credit", |log| log.progress().count() >= 2).await;
    assert_eq!(stream.log.changes(), 0, "nothing is sent before the first grant");
    stream.grant(3, u64::MAX).await;
    stream.until("three changes", |log| log.changes() == 3).await;
    let seen = stream.log.progress().count();
    stream.until("more progress", |log| log.progress().count() >= seen + 2).await;
    assert_eq!(stream.log.changes(), 3, "no more than was granted");
    stream.grant(u64::MAX, 0).await;
    let goal = stage.goal().await;
    stream.reaches(goal).await;

    let position = stream.log.position().expect("a position");
    stream.acknowledge(&position).await;
    stream
        .until("the durable checkpoint", |log| {
            log.progress().any(|p| p.checkpoint.as_ref().is_some_and(|c| order(c) >= order(&position)))
        })
        .await;
    stage.check(&stream.close()).await;
    let listed = stage.client().subscriber("credits").await.expect("listed");
    assert_eq!(listed.checkpoint.as_ref().map(order), Some(order(&position)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn byte_credit_may_be_overdrawn_by_one_event_only() {
    let stage = with_table().await;
    for id in 1..=20 {
        stage.db.run(&format!("INSERT INTO items VALUES ({id}, repeat('y', 5000))")).await;
    }
    let request = Request::new().earliest().progress_every(Duration::from_millis(100));
    let mut stream = stage.client().consume(&request).await;
    // Two rows of 5,000 bytes fit with what comes before them, the third overdraws.
    stream.grant(u64::MAX, 12_000).await;
    stream.until("three changes", |log| log.changes() >= 3).await;
    let seen = stream.log.progress().count();
    stream.until("more progress", |log| log.progress().count() >= seen + 2).await;
    assert_eq!(stream.log.changes(), 3);
    stream.grant(0, u64::MAX).await;
    stream.reaches(stage.goal().await).await;
    stage.check(&stream.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn struct_rows_carry_types_by_type() {
    let stage = stage()
        .sql("CREATE TABLE people (id int PRIMARY KEY, big int8, price numeric, ratio float8, ok bool, note text)")
        .start()
        .await;
    stage.db.run("INSERT INTO people VALUES (1, 7, 1.50, 'NaN', true, NULL), (2, 8, 2, 0.5, false, '')").await;
    let history = stage.collect(Request::new().earliest().structs()).await;
    let parsed = stage.check(&history).await;
    let items: Vec<_> = parsed.items().map(|item| &item.what).collect();
    let text = |text: &str| Some(Cell::Text(text.into()));
    let number = |n: f64| Some(Cell::Float(n.to_bits()));
    for (what, id, big, price, ratio, note) in
        [(items[0], 1.0, "7", "1.50", text("NaN"), Some(Cell::Null)), (items[1], 2.0, "8", "2", number(0.5), text(""))]
    {
        assert_eq!(what.tables(), ["public.people"]);
        assert_eq!(what.get("id").cloned(), number(id));
        assert_eq!(what.get("big").cloned(), text(big));
        assert_eq!(what.get("price").cloned(), text(price));
        assert_eq!(what.get("ratio").cloned(), ratio);
        assert_eq!(what.get("note").cloned(), note);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logical_messages_come_inside_and_outside_transactions() {
    let mut stage = with_table().await;
    stage
        .db
        .run(
            "BEGIN; INSERT INTO items VALUES (1, 'a'); SELECT pg_logical_emit_message(true, 'audit', 'in'); \
             SELECT pg_logical_emit_message(false, 'audit', 'at once'); ROLLBACK; \
             BEGIN; SELECT pg_logical_emit_message(true, 'audit', 'kept'); INSERT INTO items VALUES (2, 'b'); COMMIT",
        )
        .await;
    let history = stage.everything().await;
    let contents: Vec<Vec<u8>> = history
        .last()
        .kinds()
        .filter_map(|kind| match kind {
            Kind::Message(message) => Some(message.content.to_vec()),
            _ => None,
        })
        .collect();
    assert_eq!(contents, [b"at once".to_vec(), b"kept".to_vec()]);

    // A message outside transactions has no commit by which a slot would know it as done: the hub must.
    let mut expected = contents;
    for life in 0..4 {
        let content = format!("life {life}");
        stage.db.run(&format!("SELECT pg_logical_emit_message(false, 'audit', '{content}')")).await;
        stage.db.run(&format!("INSERT INTO items VALUES ({life} + 10, 'flushes it')")).await;
        expected.push(content.into_bytes());
        stage.journaled().await;
        if life % 2 == 0 {
            stage.hub.kill9();
        } else {
            stage.hub.terminate();
        }
        stage.hub.start().await;
        stage.streaming().await;
        let history = stage.everything().await;
        let seen: Vec<Vec<u8>> = history
            .last()
            .kinds()
            .filter_map(|kind| match kind {
                Kind::Message(message) => Some(message.content.to_vec()),
                _ => None,
            })
            .collect();
        assert_eq!(seen, expected, "after {} restarts", life + 1);
    }
}

/// Transaction ids come as 32 bits and are counted on in 64, as `pg_current_xact_id()` does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_ids_have_64_bits() {
    let mut stage = stage().sql(TABLE).prepare().await;
    let resetwal = versions::bin_dir(stage.cluster.major()).join("pg_resetwal");
    if !resetwal.is_file() {
        eprintln!("SKIPPED: this server came without pg_resetwal, which sets the epoch");
        return;
    }
    stage.db.run("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await;
    stage.cluster.stop(Shutdown::Fast);
    let mut command = process::command(&resetwal, process::Account::Server, "KILL");
    command.args(["-e", "3", "-D"]).arg(stage.cluster.data_dir());
    process::run(command);
    stage.cluster.resume();
    stage.reconnect().await;
    stage.hub.start().await;
    stage.streaming().await;
    let mut expected = Vec::new();
    for id in 1..=3 {
        let sql = format!("WITH new AS (INSERT INTO items VALUES ({id}, 'x')) SELECT pg_current_xact_id()::text");
        let xid: u64 = stage.db.text(&sql).await.and_then(|text| text.parse().ok()).expect("an xid");
        assert!(xid > 3 << 32, "{xid}");
        expected.push(xid);
    }
    stage.journaled().await;
    let history = stage.collect(Request::new().earliest()).await;
    let xids = history.last().kinds().filter_map(|kind| match kind {
        Kind::Begin(begin) => Some(begin.xid),
        _ => None,
    });
    assert_eq!(xids.collect::<Vec<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_publication_is_created_on_request_and_both_creations_are_said() {
    let setup = stage().sql(TABLE).sql("CREATE TABLE \"No Key\" (id int)").publication("");
    let stage = setup.args(&["--create-publication"]).prepare().await;
    let mut stage = stage;
    stage.hub.start().await;
    stage.streaming().await;
    assert_eq!(
        stage.db.text("SELECT puballtables FROM pg_publication WHERE pubname = 'walcast'").await.as_deref(),
        Some("t")
    );
    let log = stage.hub.log().to_lowercase();
    assert!(log.contains("publication") && log.contains("slot"), "one line each says what was created:\n{log}");
    let fails = |line: &&str| line.contains("warn") && line.contains("update and delete fail in the application");
    let told = log.lines().find(fails).unwrap_or_else(|| panic!("{log}"));
    assert!(told.contains("in public.\"no key\"") && told.contains("replica identity full;"), "{told}");
    assert!(!told.contains("public.t,"), "{told}");
    insert(&stage, 1, 1).await;
    assert_eq!(ids(&stage.collect(Request::new().earliest()).await), [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_source_holds_no_wal_back() {
    let stage =
        stage().sql("CREATE TABLE unpublished (id int)").publication("CREATE PUBLICATION walcast").start().await;
    let held = || {
        stage.db.number(
            "SELECT pg_current_wal_insert_lsn() - restart_lsn FROM pg_replication_slots WHERE slot_name = 'walcast'",
        )
    };
    for _ in 0..4 {
        // Nothing is published, so only keepalives can move the slot.
        stage.db.run("INSERT INTO unpublished SELECT generate_series(1, 20000)").await;
    }
    eventually(Duration::from_secs(60), || async {
        stage.db.run("CHECKPOINT").await;
        let bytes = held().await;
        if bytes < 1 << 20 { Ok(()) } else { Err(format!("{bytes} bytes of WAL are held back")) }
    })
    .await;
    let history = stage.collect(Request::new().earliest()).await;
    assert_eq!(history.changes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_says_where_the_source_is_while_nothing_commits() {
    let mut stage = with_table().await;
    let request = Request::new().latest().progress_every(Duration::from_millis(100));
    let mut stream = stage.client().subscribe(&request).await;
    stream.until("caught up", |log| log.progress().any(|p| p.caught_up && p.source_connected)).await;
    stage.cluster.stop(Shutdown::Fast);
    stream.until("the source is away", |log| log.progress().next_back().is_some_and(|p| !p.source_connected)).await;
    assert_eq!(stage.hub.get("/readyz").await.expect("/readyz").0, 200, "an outage must not get the hub killed");
    stage.cluster.resume();
    stream.until("it is back", |log| log.progress().next_back().is_some_and(|p| p.source_connected)).await;
    stage.reconnect().await;
    insert(&stage, 1, 1).await;
    stream.reaches(stage.goal().await).await;
    stage.check(&stream.close()).await;
}

//! Every refusal has a reason of the documented table, and comes before the stream opens.

use prost_types::Timestamp;
use walcast::{
    lsn::Lsn,
    wire::pb::{self, Operation, consume_request::Request as Send},
};

use crate::harness::{
    Stage,
    client::{Client, Request, refused},
    history::{End, Failure},
    stage,
    validators::typed,
};

async fn with_rows() -> Stage {
    let stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY, v text)").start().await;
    stage.db.run("INSERT INTO t VALUES (1, 'a'); INSERT INTO t VALUES (2, 'b')").await;
    stage.journaled().await;
    stage
}

/// The stream is refused with this reason and nothing was sent.
async fn refusal(stage: &Stage, request: Request, reason: &str) -> Failure {
    let mut stream = stage.client().subscribe(&request).await;
    let failure = stream.fails_with(reason).await;
    assert!(stream.log.events.is_empty(), "validated before the stream opens: {:?}", stream.log.events);
    failure
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_that_cannot_be_resumed_at() {
    let stage = with_rows().await;
    let history = stage.everything().await;
    let good = history.position().expect("a position");
    let insert = stage.db.lsn("pg_current_wal_insert_lsn()").await;
    refusal(&stage, Request::new().after_lsn(Lsn(insert.0 + (1 << 40))), "POSITION_IN_FUTURE").await;
    let beyond = pb::Position { lsn: Lsn(insert.0 + (1 << 40)).to_string(), ..good.clone() };
    refusal(&stage, Request::new().after(&beyond), "POSITION_IN_FUTURE").await;
    let foreign = pb::Position { lineage: "0123456789abcdef".into(), ..good.clone() };
    refusal(&stage, Request::new().after(&foreign), "LINEAGE_UNKNOWN").await;
    let expired = refusal(&stage, Request::new().after_lsn("0/1"), "POSITION_EXPIRED").await;
    let earliest = history.last().opened().and_then(|opened| opened.earliest.clone()).expect("earliest");
    assert_eq!(expired.metadata.get("earliest"), Some(&earliest.lsn));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_not_well_formed_name_the_field() {
    let stage = with_rows().await;
    let position =
        |lsn: &str, lineage: &str| pb::Position { lsn: lsn.into(), lineage: lineage.into(), ..Default::default() };
    let mut unknown_format = Request::new();
    unknown_format.0.row_format = 99;
    let mut no_start = Request::new();
    no_start.0.start = Some(pb::Start { at: None });
    let cases = [
        (Request::named("has space"), "subscriber"),
        (Request::named(&"x".repeat(129)), "subscriber"),
        (Request::new().after_lsn("16B3748"), "start"),
        (Request::new().after_lsn("0/G"), "start"),
        (Request::new().after(&position("0/1", "not hex")), "start"),
        (Request::new().after(&position("", "")), "start"),
        (Request::new().since(Timestamp { seconds: i64::MAX, nanos: -5 }), "start"),
        (unknown_format, "row_format"),
        (no_start, "start"),
    ];
    for (request, field) in cases {
        let shown = format!("{:?}", request.0);
        let failure = refusal(&stage, request, "REQUEST_INVALID").await;
        assert!(failure.violations.iter().any(|path| path.starts_with(field)), "{shown}: {failure:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_that_cannot_be_applied_name_the_field() {
    let stage = with_rows().await;
    stage.db.run("CREATE TABLE never (id int PRIMARY KEY, \"W\" int)").await;
    let failure = refusal(&stage, Request::new().tables(&["public.missing"]), "TABLE_NOT_PUBLISHED").await;
    assert!(failure.message.contains("public.missing"), "{failure:?}");
    let where_ = |text: &str| Request::new().tables(&["public.t"]).filter(|f| f.r#where = text.into());
    let mut bad_operation = Request::new().operations(&[Operation::Insert]);
    bad_operation.0.filter.as_mut().expect("a filter").operations = vec![77];
    let cases = [
        (where_("id >"), "filter.where"),
        (where_("no_such_column = 1"), "filter.where"),
        (where_("v > 5"), "filter.where"),
        (where_("v = 'x'"), "filter.where"), // not in the replica identity, and DELETE is selected
        (Request::new().tables(&["[a"]), "filter.tables"),
        (Request::new().filter(|f| f.columns = vec!["public.t.v".into(), "public.t.w".into()]), "filter.columns[1]"),
        (Request::new().filter(|f| f.columns = vec!["pubic.t.v".into()]), "filter.columns[0]"),
        (
            Request::new().tables(&["public.never"]).filter(|f| f.columns = vec!["public.t.v".into()]),
            "filter.columns[0]",
        ),
        (bad_operation, "filter.operations"),
    ];
    for (request, field) in cases {
        let shown = format!("{:?}", request.0.filter);
        let mut stream = stage.client().subscribe(&request).await;
        stream.ended().await;
        let End::Failed(failure) = &stream.log.end else { panic!("{shown}: {:?}", stream.log.end) };
        typed(failure).expect("a typed error of the table");
        assert!(matches!(failure.reason.as_str(), "FILTER_INVALID" | "REQUEST_INVALID"), "{shown}: {failure:?}");
        assert!(failure.violations.iter().any(|path| path.starts_with(field)), "{shown}: {failure:?}");
    }
    // Columns of a table that has never changed, of one that was added a moment ago, and of the past.
    stage.db.run("ALTER TABLE t ADD w int").await;
    stage.db.run("ALTER TABLE t DROP v").await;
    for column in ["public.never.W", "public.t.w", "public.t.v"] {
        stage.collect(Request::new().filter(|f| f.columns = vec![column.to_owned()])).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_the_client_cannot_receive_ends_the_stream() {
    let stage = with_rows().await;
    stage.db.run("INSERT INTO t VALUES (3, repeat('x', 100000))").await;
    let mut stream = stage.client().subscribe(&Request::new().earliest().max_message_bytes(50_000)).await;
    let failure = stream.fails_with("EVENT_TOO_LARGE").await;
    assert!(failure.metadata["bytes"].parse::<u64>().expect("a number") > 100_000, "{failure:?}");
    let skipped = failure.lsn("lsn");
    assert_eq!(stream.log.commits(), 2, "what comes before it was sent");
    let truth = stage.truth().await;
    let last = truth.entries.last().expect("an entry");
    assert!(skipped >= last.commit_lsn && skipped <= last.end_lsn, "{skipped} names the transaction {last:?}");
}

/// What is too large stops a subscriber until it is passed over on purpose, by acknowledging the position that the error
/// names, or by starting after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_too_large_can_be_passed_over_on_purpose_only() {
    let stage = with_rows().await;
    stage.db.run("BEGIN; INSERT INTO t VALUES (3, 'c'); INSERT INTO t VALUES (4, repeat('x', 100000)); COMMIT").await;
    stage.db.run("INSERT INTO t VALUES (5, 'e')").await;
    for name in ["compact", "struct"] {
        let mut request = Request::named(name).max_message_bytes(50_000);
        if name == "struct" {
            request = request.structs();
        }
        let client = stage.client();
        let mut stream = client.subscribe(&request.clone().earliest()).await;
        let failure = stream.fails_with("EVENT_TOO_LARGE").await;
        assert_eq!((failure.metadata["table"].as_str(), failure.metadata["ordinal"].as_str()), ("public.t", "2"));
        assert_eq!(failure.metadata["limit"], "50000");
        let behind = pb::Position {
            lineage: failure.metadata["lineage"].clone(),
            lsn: failure.metadata["lsn"].clone(),
            sequence: failure.metadata["sequence"].parse().expect("a number"),
            ..Default::default()
        };
        let sent = stream.log.position().expect("a position");
        client.acknowledge(name, &sent, 0).await.expect("what was sent");
        client.subscribe(&request).await.fails_with("EVENT_TOO_LARGE").await;
        let beyond = stage.collect(Request::new().earliest()).await.position().expect("a position");
        refused(client.acknowledge(name, &beyond, 0).await, "ACK_AHEAD");
        client.acknowledge(name, &behind, 0).await.expect("the named position");
        for request in [request, Request::new().max_message_bytes(50_000).after(&behind)] {
            let history = stage.collect(request).await;
            assert_eq!(history.changes(), 1, "only what comes behind it");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consume_begins_with_open_and_opens_once() {
    let stage = with_rows().await;
    let client = stage.client();
    let open = || Send::Open(Request::new().earliest().0);
    let credit = || Send::Credit(pb::Credit { events: 1, bytes: 1 });
    for requests in [vec![credit()], vec![open(), open()], vec![]] {
        let shown = format!("{requests:?}");
        let End::Failed(failure) = client.consume_raw(requests).await else { panic!("{shown} was accepted") };
        assert_eq!(failure.reason, "REQUEST_INVALID", "{shown}: {failure:?}");
        typed(&failure).expect("a typed error of the table");
    }
    let mut stream = client.consume(&Request::named("worker").earliest()).await;
    stream.until("opened", |log| log.opened().is_some()).await;
    let tail = stage.everything().await.position().expect("a position");
    stream.acknowledge(&tail).await;
    stream.fails_with("ACK_AHEAD").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_told_and_can_be_retried() {
    let stage = stage()
        .env("WALCAST_LIMITS_STREAMS", "3")
        .env("WALCAST_LIMITS_STREAMS_PER_CONNECTION", "2")
        .env("WALCAST_LIMITS_SUBSCRIBERS", "1")
        .start()
        .await;
    let opens = async |client: &Client, request: &Request| {
        let mut stream = client.subscribe(request).await;
        stream.until("opened", |log| log.opened().is_some()).await;
        stream
    };
    let refused = async |client: &Client, request: &Request, words: &str| {
        let failure = client.subscribe(request).await.fails_with("TOO_MANY_STREAMS").await;
        assert_eq!(failure.code, tonic::Code::ResourceExhausted);
        assert!(failure.retry.is_some() && failure.message.contains(words), "{failure:?}");
    };
    let (client, other) = (stage.client(), stage.client());
    let one = Request::named("one").latest();
    let mut open = vec![opens(&client, &one).await];
    refused(&client, &Request::named("two").latest(), "(limits.subscribers); `walcast subscribers delete`").await;
    open.push(opens(&client, &Request::new()).await);
    refused(&client, &Request::new(), "2 streams are open on this connection").await;
    open.push(opens(&other, &Request::new()).await);
    refused(&other, &Request::new(), "3 streams are open, which is the limit (limits.streams)").await;
    refused(&stage.client(), &one, "3 streams are open").await;
    open.pop();
    crate::harness::eventually(std::time::Duration::from_secs(20), || async {
        let mut stream = other.subscribe(&Request::new()).await;
        match tokio::time::timeout(std::time::Duration::from_secs(5), stream.pull()).await {
            Ok(true) => Ok(()),
            other => Err(format!("{other:?} {:?}", stream.log.end)),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expired_is_refused_and_the_rest_is_served() {
    let stage = stage()
        .sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .env("WALCAST_SEGMENT_BYTES", "1MiB")
        .env("WALCAST_RETAIN_BYTES", "4MiB")
        .start()
        .await;
    stage.db.run("INSERT INTO t VALUES (0, 'first')").await;
    let first = stage.everything().await.position().expect("a position");
    for round in 0..16 {
        let sql = format!(
            "INSERT INTO t SELECT {round} * 1000 + i, repeat(md5(i::text), 32) FROM generate_series(1, 1000) i"
        );
        stage.db.run(&sql).await;
    }
    stage.journaled().await;
    let client = stage.client();
    crate::harness::eventually(std::time::Duration::from_secs(30), || async {
        let mut stream = client.subscribe(&Request::new().after(&first).stop_at_tail()).await;
        stream.ended().await;
        if stream.log.end.reason() == Some("POSITION_EXPIRED") { Ok(()) } else { Err(format!("{:?}", stream.log.end)) }
    })
    .await;
    // Retention works behind the writer; nothing is written any more.
    crate::harness::eventually(std::time::Duration::from_secs(30), || async {
        let bytes =
            client.status().await.map_err(|failure| format!("{failure:?}"))?.journal.map(|journal| journal.bytes);
        if bytes.is_some_and(|bytes| bytes <= 7 << 20) {
            Ok(())
        } else {
            Err(format!("{bytes:?} bytes are kept of 4 MiB"))
        }
    })
    .await;
    let failure = refusal(&stage, Request::new().after(&first), "POSITION_EXPIRED").await;
    let kept = stage.collect(Request::new().after_lsn(failure.lsn("earliest"))).await;
    assert!(kept.changes() > 0, "the rest is there");
    stage.check(&kept).await;
    refused(client.acknowledge("nobody", &first, 0).await, "SUBSCRIBER_UNKNOWN");
}

/// A stream that stands still near the end of what is retained is told how long its position will last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_will_expire_is_told_in_time() {
    let stage = stage()
        .sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .env("WALCAST_SEGMENT_BYTES", "1MiB")
        .env("WALCAST_RETAIN_BYTES", "8MiB")
        .start()
        .await;
    let interval = std::time::Duration::from_millis(100);
    let mut slow: Option<crate::harness::client::Stream> = None;
    for round in 0..200 {
        let sql =
            format!("INSERT INTO t SELECT {round} * 1000 + i, repeat(md5(i::text), 32) FROM generate_series(1, 500) i");
        stage.db.run(&sql).await;
        stage.journaled().await;
        // One that reads nothing more, opened again where it had to give up.
        if slow.as_ref().is_none_or(|stream| !matches!(stream.log.end, End::Open)) {
            slow = Some(stage.client().consume(&Request::new().earliest().progress_every(interval)).await);
        }
        let Some(stream) = &mut slow else { continue };
        let seen = stream.log.progress().count();
        while stream.log.progress().count() == seen && crate::harness::client::within(stream.pull()).await {}
        if let Some(left) = stream.log.progress().find_map(|progress| progress.expires_in) {
            assert!((0..7 * 86_400).contains(&left.seconds), "{left:?}");
            let caught_up = stage.collect(Request::new().latest()).await;
            assert!(caught_up.last().progress().all(|progress| progress.expires_in.is_none()), "only who is behind");
            return;
        }
    }
    panic!("no progress says when the position expires");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_offered_yet_is_said() {
    let stage = with_rows().await;
    let mut other_source = Request::new();
    other_source.0.source = "second".into();
    let mut stream = stage.client().subscribe(&other_source).await;
    stream.ended().await;
    let End::Failed(failure) = &stream.log.end else { panic!("{:?}", stream.log.end) };
    assert!(matches!(failure.reason.as_str(), "UNSUPPORTED" | "REQUEST_INVALID"), "{failure:?}");
    typed(failure).expect("a typed error of the table");
}

//! The stream of changes.

use std::{collections::HashSet, time::Duration};

use super::cluster::{Cluster, PATIENCE};
use crate::{
    lsn::Lsn,
    postgres::{
        Error, Phase, Result,
        logtables::blockers,
        replication::{Frame, Replication, ReplicationStream},
        server, slot,
        sql::Sql,
    },
    reason::{Classified, Reason},
};

async fn replication(cluster: &Cluster, sql: &Sql) -> Replication {
    Replication::connect(&cluster.options(""), sql.server()).await.unwrap()
}

/// A server with a table t, a publication p of it, and a slot s that has begun.
async fn started(settings: &str) -> (Cluster, Sql, Lsn) {
    let cluster = Cluster::start(settings, "").await;
    let sql = cluster.sql().await;
    sql.batch("CREATE TABLE t (id serial PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE t").await.unwrap();
    let mut session = replication(&cluster, &sql).await;
    let created = session.create_slot("s", false).await.unwrap();
    assert_eq!(created.name, "s");
    assert!(created.consistent_point > Lsn::ZERO);
    session.close().await.unwrap();
    (cluster, sql, created.consistent_point)
}

async fn stream(cluster: &Cluster, sql: &Sql) -> ReplicationStream {
    replication(cluster, sql).await.start("s", Lsn::ZERO, "p").await.unwrap()
}

/// Waits for the next frame that `pick` takes; keepalives are answered with nothing confirmed.
async fn until<T>(stream: &mut ReplicationStream, mut pick: impl FnMut(&Frame<'_>) -> Option<T>) -> Result<T> {
    let search = async {
        loop {
            let mut reply = false;
            while let Some(frame) = stream.next_frame()? {
                if let Some(found) = pick(&frame) {
                    return Ok(found);
                }
                reply |= matches!(frame, Frame::Keepalive { reply_requested: true, .. });
            }
            if reply {
                stream.send_status(Lsn::ZERO, Lsn::ZERO, Lsn::ZERO, false).await?;
            }
            stream.fill().await?;
        }
    };
    tokio::time::timeout(PATIENCE, search).await.expect("in time")
}

/// The kinds of pgoutput messages up to and including the next Commit, and the Commit's end LSN.
async fn transaction(stream: &mut ReplicationStream) -> Result<(String, Lsn)> {
    let mut kinds = String::new();
    until(stream, |frame| match frame {
        Frame::XLogData { data, .. } => {
            kinds.push(char::from(data[0]));
            // Commit: kind, flags, commit LSN, end LSN, time.
            (data[0] == b'C').then(|| (kinds.clone(), Lsn(u64::from_be_bytes(*data[10..].first_chunk().unwrap()))))
        }
        _ => None,
    })
    .await
}

#[tokio::test]
async fn changes_flow_and_the_slot_follows_the_status() {
    let (cluster, sql, _) = started("").await;
    let mut stream = stream(&cluster, &sql).await;
    sql.batch("INSERT INTO t (v) VALUES ('a'); UPDATE t SET v = 'b'; DELETE FROM t").await.unwrap();
    let (kinds, end) = transaction(&mut stream).await.unwrap();
    assert_eq!(kinds, "BRIUDC");
    sql.batch("SELECT pg_logical_emit_message(false, 'prefix', 'content')").await.unwrap();
    let is_message = |frame: &Frame<'_>| match frame {
        Frame::XLogData { wal_start, sent_at, data: [b'M', ..], .. } => Some((*wal_start, *sent_at)),
        _ => None,
    };
    let (message, sent_at) = until(&mut stream, is_message).await.unwrap();
    assert!(message > Lsn::ZERO);
    let now: i64 = {
        let row = sql.one("SELECT (extract(epoch FROM now() - '2000-01-01 UTC'::timestamptz) * 1e6)::int8", &[]).await;
        row.unwrap().get(0)
    };
    assert!((now - sent_at).abs() < 60_000_000, "{sent_at} is the server's clock");

    stream.send_status(end, end, end, true).await.unwrap();
    let answered = |frame: &Frame<'_>| match frame {
        Frame::Keepalive { wal_end, .. } => (*wal_end >= end).then_some(()),
        _ => None,
    };
    until(&mut stream, answered).await.unwrap();
    let confirmed = async {
        loop {
            let state = slot::state(&sql, "s").await.unwrap().unwrap();
            assert!(state.active_pid.is_some());
            if state.confirmed_flush == Some(end) {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, confirmed).await.expect("in time");

    stream.stop().await.unwrap();
    let state = slot::state(&sql, "s").await.unwrap().unwrap();
    assert_eq!(state.active_pid, None, "the slot is free when stop returns");
}

#[tokio::test]
async fn cancelled_futures_lose_nothing() {
    let (cluster, sql, _) = started("").await;
    let mut stream = stream(&cluster, &sql).await;
    sql.batch("INSERT INTO t (v) SELECT repeat('x', i % 3000) FROM generate_series(1, 3000) i").await.unwrap();
    let mut inserts = 0;
    let mut cancelled = 0;
    let mut end = None;
    let work = async {
        while end.is_none() {
            tokio::select! {
                biased;
                () = tokio::task::yield_now() => cancelled += 1,
                outcome = stream.fill() => outcome.unwrap(),
            }
            tokio::select! {
                biased;
                outcome = stream.send_status(Lsn::ZERO, Lsn::ZERO, Lsn::ZERO, false) => outcome.unwrap(),
                () = tokio::task::yield_now() => {}
            }
            while let Some(frame) = stream.next_frame().unwrap() {
                match frame {
                    Frame::XLogData { data: [b'I', ..], .. } => inserts += 1,
                    Frame::XLogData { data: [b'C', ..], wal_start, .. } => end = Some(wal_start),
                    _ => {}
                }
            }
            // Polled once and dropped: what it has read must not be lost.
            let _ = futures_util::FutureExt::now_or_never(stream.fill());
        }
    };
    tokio::time::timeout(PATIENCE, work).await.expect("in time");
    assert_eq!(inserts, 3000);
    assert!(cancelled > 0);
    stream.stop().await.unwrap();
}

#[tokio::test]
async fn a_large_backlog_and_a_large_row() {
    let (cluster, sql, _) = started("max_wal_size = '4GB'\nlogical_decoding_work_mem = '512MB'").await;
    // 100,000 rows of about 2,000 bytes in 100 transactions, and one row of 50 MB.
    let fill = "DO $$ BEGIN FOR n IN 1 .. 100 LOOP
                    INSERT INTO t (v) SELECT repeat(md5(i::text), 62) FROM generate_series(1, 1000) i; COMMIT;
                END LOOP; END $$";
    sql.batch("ALTER TABLE t ALTER v SET STORAGE PLAIN").await.unwrap();
    sql.batch(fill).await.unwrap();
    sql.batch("ALTER TABLE t ALTER v SET STORAGE EXTERNAL").await.unwrap();
    sql.batch("INSERT INTO t (v) VALUES (repeat('y', 50 * 1024 * 1024))").await.unwrap();
    let mut stream = stream(&cluster, &sql).await;
    let (mut rows, mut bytes, mut largest, mut after) = (0, 0, 0, 0);
    until(&mut stream, |frame| match frame {
        Frame::XLogData { data, .. } => {
            bytes += data.len();
            largest = largest.max(data.len());
            rows += u32::from(data[0] == b'I');
            after += u32::from(largest > 1 << 20);
            // The large row's own Commit.
            (data[0] == b'C' && after > 1).then(|| assert!(data.len() < 100))
        }
        _ => None,
    })
    .await
    .unwrap();
    assert_eq!(rows, 100_001);
    assert!(bytes > 200_000_000 + 50 * 1024 * 1024, "{bytes}");
    assert!(largest > 50 * 1024 * 1024 && largest < 51 * 1024 * 1024, "{largest}");
    sql.batch("INSERT INTO t (v) VALUES ('small again')").await.unwrap();
    assert_eq!(transaction(&mut stream).await.unwrap().0, "BIC");
    stream.stop().await.unwrap();
}

#[tokio::test]
async fn settings_of_role_and_options_do_not_reach_the_values() {
    let (cluster, sql, _) = started("").await;
    sql.batch(
        "CREATE TABLE v (id int PRIMARY KEY, ts timestamptz, i interval, b bytea, f float8, m money, c regclass);
         ALTER PUBLICATION p ADD TABLE v;
         ALTER ROLE postgres SET datestyle = 'German'; ALTER ROLE postgres SET timezone = 'Asia/Tokyo';
         ALTER ROLE postgres SET intervalstyle = 'iso_8601'; ALTER ROLE postgres SET bytea_output = 'escape';
         ALTER ROLE postgres SET search_path = public",
    )
    .await
    .unwrap();
    let options = cluster.options("options='-c extra_float_digits=-10 -c TimeZone=Asia/Kolkata'");
    let session = Replication::connect(&options, sql.server()).await.unwrap();
    let mut stream = session.start("s", Lsn::ZERO, "p").await.unwrap();
    sql.batch(
        "INSERT INTO v VALUES (1, '2024-02-03 04:05:06.7+00', '1 day 2 hours', '\\x00ff', 0.1::float8 + 0.2, '12.5', 't')",
    )
    .await
    .unwrap();
    let row = until(&mut stream, |frame| match frame {
        Frame::XLogData { data: data @ [b'I', ..], .. } => Some(String::from_utf8_lossy(data).into_owned()),
        _ => None,
    })
    .await
    .unwrap();
    let expected =
        ["2024-02-03 04:05:06.7+00", "1 day 02:00:00", "\\x00ff", "0.30000000000000004", "12.50", "public.t"];
    for text in expected {
        assert!(row.contains(text), "{text} in {row:?}");
    }
}

#[tokio::test]
async fn what_is_missing_is_told_by_phase() {
    let (cluster, sql, _) = started("").await;
    let start = async |slot: &str, publication: &str| {
        replication(&cluster, &sql).await.start(slot, Lsn::ZERO, publication).await
    };
    let error = start("absent", "p").await.err().unwrap();
    assert!(matches!(&error, Error::Server { phase: Phase::Command, .. }), "{error}");
    assert_eq!((error.sqlstate(), error.reason()), (Some("42704"), Reason::SlotLost));

    let mut stream = start("s", "it's \"odd\"").await.unwrap();
    let error = start("s", "p").await.err().unwrap();
    assert_eq!((error.sqlstate(), error.reason()), (Some("55006"), Reason::SlotInUse));
    assert!(error.retryable());
    sql.batch("INSERT INTO t (v) VALUES ('a')").await.unwrap();
    if sql.version() >= 180_000 {
        // PostgreSQL 18 goes on without the changes and tells it in a notice only.
        let warning = until(&mut stream, |frame| match frame {
            Frame::Notice(notice) => Some(notice.clone()),
            _ => None,
        });
        let warning = warning.await.unwrap();
        assert_eq!((warning.severity.as_str(), warning.code.as_str()), ("WARNING", "55000"), "{warning}");
        assert!(warning.message.contains("it's \"odd\""), "{warning}");
    } else {
        let error = transaction(&mut stream).await.unwrap_err();
        assert!(matches!(&error, Error::Server { phase: Phase::Streaming, .. }), "{error}");
        assert_eq!((error.sqlstate(), error.reason()), (Some("42704"), Reason::PublicationMissing));
        assert!(error.to_string().contains("it's \"odd\""), "{error}");
    }

    let mut session = replication(&cluster, &sql).await;
    let error = session.create_slot("s", false).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("42710"), "{error}");
    assert!(!error.retryable());
}

/// What PostgreSQL itself got wrong before 14.13, 15.8 and 16.4, where WALCAST_TEST_PG_BIN may lead.
#[tokio::test]
async fn a_slot_that_waits_beside_another_begins_with_a_whole_transaction() {
    let (cluster, sql, _) = started("").await;
    let open = cluster.sql().await;
    open.batch("BEGIN; INSERT INTO t (v) VALUES ('a')").await.unwrap();
    let mut session = replication(&cluster, &sql).await;
    let making = tokio::spawn(async move {
        let created = session.create_slot("waits", false).await;
        session.close().await.unwrap();
        created
    });
    let waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'transactionid' AND backend_type = 'walsender'";
    let waiting = async {
        while sql.optional(waits, &[]).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the slot waits for the transaction");
    // The other slot's decoder leaves its snapshot at the checkpoint's record of what runs.
    sql.batch("CHECKPOINT; SELECT * FROM pg_logical_slot_get_binary_changes('s', NULL, NULL, 'proto_version', '1', 'publication_names', 'p')")
        .await
        .unwrap();
    open.batch("INSERT INTO t (v) VALUES ('b'); COMMIT; UPDATE t SET v = 'c' WHERE id = 1").await.unwrap();
    making.await.unwrap().unwrap();
    let mut stream = replication(&cluster, &sql).await.start("waits", Lsn::ZERO, "p").await.unwrap();
    sql.batch("UPDATE t SET v = 'd' WHERE id = 1").await.unwrap();
    let (kinds, _) = transaction(&mut stream).await.unwrap();
    assert!(["BRIIC", "BRUC"].contains(&kinds.as_str()), "the first transaction is a part of one: {kinds}");
}

#[tokio::test]
async fn notices_are_frames() {
    let (cluster, sql, _) = started("").await;
    let options = cluster.options("options='-c client_min_messages=log -c log_min_messages=fatal'");
    let session = Replication::connect(&options, sql.server()).await.unwrap();
    let mut stream = session.start("s", Lsn::ZERO, "p").await.unwrap();
    let notice = until(&mut stream, |frame| match frame {
        Frame::Notice(notice) => Some(notice.clone()),
        _ => None,
    })
    .await
    .unwrap();
    assert_eq!((notice.severity.as_str(), notice.code.as_str()), ("LOG", "00000"));
    assert!(!notice.message.is_empty() && notice.detail.is_some(), "{notice}");
    sql.batch("INSERT INTO t (v) VALUES ('a')").await.unwrap();
    assert_eq!(transaction(&mut stream).await.unwrap().0, "BRIC");
}

#[tokio::test]
async fn the_servers_end_is_seen() {
    let (cluster, sql, _) = started("").await;
    let mut one = stream(&cluster, &sql).await;
    let pid = slot::state(&sql, "s").await.unwrap().unwrap().active_pid.unwrap();
    sql.batch(&format!("SELECT pg_terminate_backend({pid})")).await.unwrap();
    let error = until(&mut one, |_| None::<()>).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("57P01"), "{error}");
    assert!(error.retryable() && error.reason() == Reason::SourceUnavailable);
    drop(one);

    sql.batch("INSERT INTO t (v) VALUES ('a')").await.unwrap();
    let mut two = loop {
        match replication(&cluster, &sql).await.start("s", Lsn::ZERO, "p").await {
            Err(error) if error.is("55006") => tokio::task::yield_now().await,
            outcome => break outcome.unwrap(),
        }
    };
    transaction(&mut two).await.unwrap();
    cluster.shut_down();
    // The walsender waits until everything is confirmed, then says CopyDone and closes.
    let farewell = async {
        loop {
            let mut reply = None;
            while let Some(frame) = two.next_frame()? {
                match frame {
                    Frame::CopyDone => return Ok(()),
                    Frame::Keepalive { wal_end, .. } => reply = Some(wal_end),
                    _ => {}
                }
            }
            if let Some(at) = reply {
                two.send_status(at, at, at, false).await?;
            }
            two.fill().await?;
        }
    };
    let outcome: Result<()> = tokio::time::timeout(PATIENCE, farewell).await.expect("in time");
    outcome.unwrap();
    let error = until(&mut two, |_| None::<()>).await.unwrap_err();
    assert!(matches!(error, Error::Closed), "{error}");
    let error = tokio::time::timeout(PATIENCE, async {
        loop {
            match Sql::connect(&cluster.options("")).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => break error,
            }
        }
    });
    let error = error.await.expect("in time");
    assert!(error.retryable(), "{error}");
}

#[tokio::test]
async fn positions_and_transaction_ids() {
    let (cluster, sql, consistent) = started("").await;
    let before = server::wal_positions(&sql).await.unwrap();
    assert!(before.insert >= consistent && before.insert >= before.flush);
    let next = server::current_xid8(&sql).await.unwrap();
    let xid: String = {
        let row = sql.one("INSERT INTO t (v) VALUES ('a') RETURNING pg_current_xact_id()::xid::text", &[]).await;
        row.unwrap().get(0)
    };
    assert_eq!(server::widen(xid.parse().unwrap(), next), next, "xmax is the next to be given out on an idle server");
    assert!(server::wal_positions(&sql).await.unwrap().insert > before.insert);
    assert_eq!(server::server_version_num(&sql).await.unwrap(), sql.version());

    let open = cluster.sql().await;
    open.batch("BEGIN").await.unwrap();
    let row = open.one("SELECT pg_current_xact_id()::text::int8, pg_backend_pid()", &[]).await.unwrap();
    let (running, pid): (i64, i32) = (row.get(0), row.get(1));
    let epoch = 7_u64 << 32; // ids of locks have 32 bits
    let found = blockers::of(&sql, &[epoch + running.unsigned_abs(), epoch + 3]).await.unwrap();
    let who: HashSet<_> = found.into_iter().map(|found| (found.xid, found.pid)).collect();
    assert_eq!(who, [(running.to_string(), Some(pid)), ("3".to_owned(), None)].into(), "the other one has ended");
}

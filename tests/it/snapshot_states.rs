//! In which states of source and hub rows can be read, and how: what is open, prepared or stuck, a hub that is behind, another server
//! at the same address, and which mode it is by the size of the tables.

use std::time::Duration;

use walcast::wire::pb::{BackfillAction, SnapshotMode, event::Kind};

use crate::{
    harness::{
        Db, Shutdown, Stage,
        client::{Request, Stream},
        eventually,
        history::lsn,
        hub::{Hub, READY},
        pair::{Pair, Slots},
        parsed::{Cell, Parsed},
        proxy::Address,
        stage,
        stage::held,
        validators, versions,
    },
    snapshot_backfill::{backfill, order},
    snapshot_breaks::{begun, ended, ids, makes, rows, slowly},
};

const BOTH: [SnapshotMode; 2] = [SnapshotMode::Consistent, SnapshotMode::Incremental];

fn changed(parsed: &Parsed<'_>) -> Vec<i64> {
    let id = |cell: Option<&Cell>| match cell {
        Some(Cell::Int(id)) => *id,
        other => panic!("{other:?}"),
    };
    parsed.items().map(|item| id(item.what.get("id"))).collect()
}

/// What a slot would do here: it waits for every transaction that is open.
pub async fn a_slot_waits(stage: &Stage) {
    let db = stage.cluster.connect().await;
    let slot =
        "DO $$ BEGIN PERFORM pg_create_logical_replication_slot('tmp', 'pgoutput', true); RAISE 'it does not wait';
                EXCEPTION WHEN query_canceled THEN NULL; END $$";
    db.run(&format!("SET statement_timeout = '300ms'; {slot}")).await;
}

/// Sessions of the hub that have a transaction open.
pub async fn open_transactions(stage: &Stage) -> i64 {
    let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walcast' AND xact_start IS NOT NULL
                AND backend_type = 'client backend'";
    stage.db.number(open).await
}

/// A transaction that stays open, or prepared, keeps xmin where it was when it began. The journal may have left that place long ago,
/// and it does not matter: what has committed since is seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stays_open_keeps_nobody_from_reading_rows() {
    let stage = stage()
        .sql("CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items VALUES (1, 'old')")
        .sql("CREATE TABLE load (id int, data text)")
        .env("WALCAST_SEGMENT_BYTES", "1MiB")
        .env("WALCAST_RETAIN_BYTES", "3MiB")
        .start()
        .await;
    stage.db.run("BEGIN; INSERT INTO items VALUES (2, 'prepared'); PREPARE TRANSACTION 'p'").await;
    let open = stage.cluster.connect().await;
    open.run("BEGIN; UPDATE items SET name = 'open' WHERE id = 1").await;
    let mut streams = Vec::new();
    for mode in BOTH {
        let mut stream = stage.client().subscribe(&slowly(mode, 0).tables(&["public.items"])).await;
        stream.until("snapshot_end", ended).await;
        streams.push((mode, vec![1], stream));
    }
    let before = stage.flushed().await;
    for n in 0..20 {
        stage.db.run(&format!("INSERT INTO load SELECT {n}, repeat('x', 1000) FROM generate_series(1, 500)")).await;
    }
    stage.db.run("INSERT INTO items VALUES (3, 'behind it')").await;
    stage.journaled().await;
    eventually(Duration::from_secs(30), || async {
        let status = stage.client().status().await.map_err(|failure| format!("{failure:?}"))?;
        let earliest = status.journal.and_then(|journal| journal.earliest).ok_or("no journal")?;
        if lsn(&earliest.lsn) > before { Ok(()) } else { Err(format!("{earliest:?} is still there")) }
    })
    .await;
    a_slot_waits(&stage).await;
    for mode in BOTH {
        streams.push((mode, vec![1, 3], stage.client().subscribe(&slowly(mode, 0).tables(&["public.items"])).await));
    }
    for (_, _, stream) in &mut streams[2..] {
        stream.until("snapshot_end", ended).await;
    }
    stage.db.run("COMMIT PREPARED 'p'").await;
    open.run("COMMIT").await;
    let goal = stage.goal().await;
    for (mode, expected, mut stream) in streams {
        stream.reaches(goal).await;
        let history = stream.close();
        let parsed = held(&history, validators::formal(&history));
        assert_eq!(ids(&parsed), expected, "{mode:?}");
        assert_eq!(changed(&parsed), if expected == [1] { vec![3, 2, 1] } else { vec![2, 1] }, "{mode:?}");
        makes(&history, &stage.db, &["public.items"], mode == SnapshotMode::Incremental).await;
    }
}

/// The source's process that feeds the hub, stopped.
struct Behind(rustix::process::Pid);

impl Behind {
    async fn of(db: &Db) -> Behind {
        let pid = db.number("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'walcast'").await;
        let pid = rustix::process::Pid::from_raw(pid as i32).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stopped");
        Behind(pid)
    }

    /// What it has not sent is never sent.
    fn kill(self) {
        rustix::process::kill_process(self.0, rustix::process::Signal::KILL).expect("killed");
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, rustix::process::Signal::CONT);
    }
}

/// The rows do not wait for the journal, and nothing is held open on the primary while chunks do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_is_behind_sends_rows_at_once() {
    let stage = stage()
        .sql("CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items VALUES (1, 'old'), (2, 'old')")
        .start()
        .await;
    let open = stage.cluster.connect().await;
    open.run("BEGIN; INSERT INTO items VALUES (3, 'open')").await;
    let behind = Behind::of(&stage.db).await;
    stage.db.run("INSERT INTO items VALUES (4, 'not journaled'); UPDATE items SET name = 'new' WHERE id = 1").await;
    let mut consistent = stage.client().subscribe(&slowly(SnapshotMode::Consistent, 0)).await;
    consistent.until("snapshot_end", ended).await;
    let mut incremental = stage.client().subscribe(&slowly(SnapshotMode::Incremental, 0)).await;
    incremental.until("snapshot_begin", |log| begun(log).is_some()).await;
    eventually(Duration::from_secs(20), || async {
        match open_transactions(&stage).await {
            0 => Ok(()),
            open => Err(format!("{open} transactions are open while a mark is waited for")),
        }
    })
    .await;
    assert_eq!(rows(&incremental.log), 0, "a chunk has its place behind its mark");
    stage.db.run("DELETE FROM items WHERE id = 2").await;
    open.run("COMMIT").await;
    drop(behind);
    incremental.until("snapshot_end", ended).await;
    let goal = stage.goal().await;
    for (mode, mut stream) in [(SnapshotMode::Consistent, consistent), (SnapshotMode::Incremental, incremental)] {
        stream.reaches(goal).await;
        let history = stream.close();
        let parsed = held(&history, validators::formal(&history));
        if mode == SnapshotMode::Consistent {
            assert_eq!((ids(&parsed), changed(&parsed)), (vec![1, 2, 4], vec![2, 3]));
        }
        makes(&history, &stage.db, &["public.items"], mode == SnapshotMode::Incremental).await;
    }
}

/// Rows that were sent in front of what the journal had not got hold what went with the primary. And a transaction that was prepared
/// before the failover and is so still keeps nobody waiting: a slot would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_hub_that_is_behind_has_sent_is_taken_back_by_a_failover() {
    let schema = "CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items SELECT n, 'old' FROM generate_series(1, 10) n";
    let mut pair = Pair::start(versions::default_major(), Slots::Copied, schema, &[]).await;
    let db = pair.db().await;
    db.run("BEGIN; INSERT INTO items VALUES (11, 'prepared'); PREPARE TRANSACTION 'p'").await;
    pair.caught_up().await;
    pair.cut_off().await;
    let behind = Behind::of(&db).await;
    db.run("INSERT INTO items VALUES (-1, 'lost')").await;
    let mut stream = pair.client().subscribe(&slowly(SnapshotMode::Consistent, 0)).await;
    stream.until("snapshot_end", ended).await;
    let position = stream.log.kinds().find_map(|kind| match kind {
        Kind::SnapshotEnd(end) => end.position.clone(),
        _ => None,
    });
    drop(db);
    pair.fail_over().await;
    behind.kill();
    let failure = stream.fails_with("SNAPSHOT_INTERRUPTED").await;
    assert!(failure.message.contains("starts over"), "{failure:?}");
    let history = stream.close();
    assert_eq!(ids(&held(&history, Parsed::of(&history))).first(), Some(&-1));
    let db = pair.db().await;
    db.run("INSERT INTO items VALUES (12, 'new')").await;
    pair.streaming().await;
    pair.journaled().await;
    let mut streams = Vec::new();
    for request in [
        Request::new().after(&position.expect("a position")),
        slowly(SnapshotMode::Consistent, 0),
        slowly(SnapshotMode::Incremental, 0),
    ] {
        let mut stream = pair.client().subscribe(&request).await;
        stream.until("snapshot_end", ended).await;
        streams.push(stream);
    }
    assert!(begun(&streams[0].log).expect("snapshot_begin").restarted);
    db.run("COMMIT PREPARED 'p'").await;
    let goal = pair.truth().await.end();
    for (number, mut stream) in streams.into_iter().enumerate() {
        stream.reaches(goal).await;
        let history = stream.close();
        let parsed = held(&history, Parsed::of(&history));
        assert_eq!(ids(&parsed), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12]);
        assert_eq!(changed(&parsed), [11]);
        makes(&history, &db, &["public.items"], number == 2).await;
    }
}

/// How many transactions a session of the hub had open while rows came, and the oldest age of one. It aims at 200 ms and gives up
/// at 700; on a machine that does something else the looks take longer too.
async fn watched(stage: &Stage, stream: &mut Stream) -> usize {
    let watched = tokio::spawn({
        let db = stage.cluster.connect().await;
        async move {
            let oldest = "SELECT backend_start::text || xact_start::text, (extract(epoch FROM clock_timestamp() - xact_start) * 1000)::int8
                          FROM pg_stat_activity WHERE application_name = 'walcast' AND backend_type = 'client backend'
                          AND xact_start IS NOT NULL";
            let (mut seen, mut longest) = (std::collections::HashSet::new(), 0);
            let (mut looked, mut stall) = (std::time::Instant::now(), Duration::ZERO);
            loop {
                stall = stall.max(looked.elapsed());
                looked = std::time::Instant::now();
                for row in db.rows(oldest).await {
                    let age: i64 = row[1].as_deref().and_then(|age| age.parse().ok()).unwrap_or_default();
                    longest = longest.max(age);
                    seen.extend(row[0].clone());
                }
                if db.number("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT ''that is all'''").await > 0 {
                    return (seen.len(), longest, stall.as_millis() as i64);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    stream.until("snapshot_end", ended).await;
    stage.db.text("SELECT 'that is all'").await;
    let (transactions, longest, stall) = watched.await.expect("watched");
    println!("{transactions} transactions were seen, the longest {longest} ms old; a look took {stall} ms");
    assert!(longest < 1000 + 4 * stall, "one of {longest} ms, with {stall} ms for a look");
    transactions
}

/// No chunk's transaction lasts, however long the whole takes and whatever the client does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incremental_snapshot_holds_no_transaction_open() {
    let stage = stage()
        .sql("CREATE TABLE items (id int PRIMARY KEY, name text)")
        .sql("INSERT INTO items SELECT n, repeat('x', 2000) FROM generate_series(1, 12000) n")
        .start()
        .await;
    let began = std::time::Instant::now();
    let mut stream = stage.client().subscribe(&slowly(SnapshotMode::Incremental, 3000)).await;
    let transactions = watched(&stage, &mut stream).await;
    let took = began.elapsed().as_millis() as i64;
    assert!(took > 3000 && transactions > 5, "{transactions} transactions in {took} ms");

    // A client that stops reading does not hold one open either.
    let stalled = stage.client().subscribe(&slowly(SnapshotMode::Incremental, 0)).await;
    let none_for = async |times: u32| {
        for time in 0..times {
            match open_transactions(&stage).await {
                0 => tokio::time::sleep(Duration::from_millis(20)).await,
                open => return Err(format!("{open} are open at look {time}")),
            }
        }
        Ok(())
    };
    eventually(Duration::from_secs(20), || none_for(10)).await;
    drop(stalled);
}

/// Rows that take long where those in front of them did not, and of which none comes for a while: they are the expense of a row filter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_of_rows_that_take_long_is_given_up() {
    let stage = stage()
        .sql("CREATE TABLE items (id int PRIMARY KEY, cost int NOT NULL DEFAULT 0)")
        .publication("CREATE PUBLICATION walcast FOR TABLE items WHERE (length(repeat('x', cost)) >= 0)")
        .sql("INSERT INTO items SELECT generate_series(1, 3000)")
        .sql("INSERT INTO items SELECT n, 4000000 FROM generate_series(3001, 3060) n")
        .start()
        .await;
    let mut stream = stage.client().subscribe(&slowly(SnapshotMode::Incremental, 0)).await;
    watched(&stage, &mut stream).await;
    let history = stream.close();
    assert_eq!(ids(&held(&history, validators::formal(&history))), (1..=3060).collect::<Vec<_>>());
}

/// A connection that copies rows goes to the address at which the marks are written. Another server may answer there by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_comes_from_another_server_at_the_same_address() {
    let mut stage = stage()
        .sql("CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items SELECT n, 'old' FROM generate_series(1, 100) n")
        .prepare()
        .await;
    let other = stage.cluster.standby(&[]).await;
    other.promote().await;
    other.connect().await.run("INSERT INTO items VALUES (0, 'elsewhere')").await;
    for mode in BOTH {
        let address = Address::of(stage.cluster.port()).await;
        let dsn = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", address.port);
        stage.hub = Hub::new(&dsn);
        let release = stage.hub.hold("snapshot_copier=hold@1");
        stage.hub.start().await;
        stage.streaming().await;
        let client = stage.client();
        let rows_of = tokio::spawn(async move {
            let mut stream = client.subscribe(&slowly(mode, 0)).await;
            stream.until("snapshot_end", ended).await;
            stream.close()
        });
        let at = release.with_extension("held");
        eventually(READY, || async { if at.exists() { Ok(()) } else { Err(stage.hub.log_tail(3)) } }).await;
        address.leads_to(other.port());
        std::fs::write(&release, "").expect("a file");
        eventually(READY, || async {
            let noticed = stage.hub.log().contains("has failed over while a session was opened");
            if noticed { Ok(()) } else { Err(stage.hub.log_tail(3)) }
        })
        .await;
        address.leads_to(stage.cluster.port());
        let history = rows_of.await.expect("the rows");
        assert_eq!(ids(&held(&history, validators::formal(&history))), (1..=100).collect::<Vec<_>>(), "{mode:?}");
        stage.hub.kill9();
    }
}

/// A table is made to have so many pages without rows.
async fn enlarge(stage: &mut Stage, table: &str, pages: u64) {
    /// Of one file of a table.
    const SEGMENT: u64 = 131_072;
    let path = stage.db.text(&format!("SELECT pg_relation_filepath('{table}')")).await.expect("a path");
    let path = stage.cluster.data_dir().join(path);
    stage.cluster.stop(Shutdown::Fast);
    for number in 0..=pages / SEGMENT {
        let path = if number == 0 { path.clone() } else { path.with_extension(number.to_string()) };
        let file =
            std::fs::File::options().create(true).truncate(false).write(true).open(&path).expect("the table's file");
        file.set_len((pages - number * SEGMENT).min(SEGMENT) * 8192).expect("room");
        crate::harness::process::give_to_server(&path);
    }
    stage.cluster.resume();
    stage.reconnect().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_size_of_the_tables_decides_without_a_choice() {
    let mut stage = stage()
        .sql("CREATE TABLE large (id int PRIMARY KEY); INSERT INTO large SELECT generate_series(1, 10)")
        .sql("CREATE TABLE small (id int PRIMARY KEY); INSERT INTO small SELECT generate_series(11, 20)")
        .sql("CREATE TABLE keyless (id int); CREATE TABLE part (id int PRIMARY KEY) PARTITION BY RANGE (id)")
        .sql("CREATE TABLE part_of PARTITION OF part DEFAULT; INSERT INTO part VALUES (21)")
        .prepare()
        .await;
    enlarge(&mut stage, "large", 131_072).await;
    stage.hub.start().await;
    stage.streaming().await;
    let mode_of = async |stage: &Stage, tables: &[&str]| {
        let history = stage.collect(Request::new().snapshot(SnapshotMode::Unspecified).tables(tables)).await;
        let found = ids(&held(&history, validators::formal(&history)));
        (begun(history.last()).expect("snapshot_begin").mode(), found.len())
    };
    let (large, small, part) = ("public.large", "public.small", "public.part_of");
    assert_eq!(mode_of(&stage, &[large]).await, (SnapshotMode::Consistent, 10), "1 GiB");
    assert_eq!(mode_of(&stage, &[large, small]).await, (SnapshotMode::Incremental, 20), "1 GiB and a page");
    assert_eq!(mode_of(&stage, &[small, part]).await, (SnapshotMode::Consistent, 11));
    let refused = Request::new().snapshot(SnapshotMode::Unspecified).tables(&[large, small, "public.keyless"]);
    let refused = stage.client().subscribe(&refused).await.fails_with("SNAPSHOT_IMPOSSIBLE").await;
    assert_eq!(refused.metadata["table"], "public.keyless");
    let chosen = Request::new().snapshot(SnapshotMode::Consistent).tables(&[large, small, "public.keyless"]);
    stage.collect(chosen).await;
}

/// PAUSE and RESUME act on the rows that a stream began with, too. Changes wait behind the rows of a consistent snapshot, and go on
/// beside those of an incremental one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_a_stream_began_with_are_paused_and_resumed() {
    let stage = stage()
        .sql("CREATE TABLE items (id int PRIMARY KEY, name text)")
        .sql("INSERT INTO items SELECT n, repeat('x', 500) FROM generate_series(1, 6000) n")
        .start()
        .await;
    let mut other = stage.client().subscribe(&Request::new().latest()).await;
    other.until("opened", |log| log.opened().is_some()).await;
    for (number, mode) in BOTH.into_iter().enumerate() {
        let mut request = slowly(mode, 4000);
        request.0.subscriber = "sub".into();
        let mut stream: Stream = stage.client().subscribe(&request).await;
        stream.until("rows", |log| rows(log) > 0).await;
        let id = begun(&stream.log).expect("snapshot_begin").snapshot_id.clone();
        assert_eq!(backfill(&stage, order(BackfillAction::Pause)).await.expect("paused"), id);
        let another = walcast::wire::pb::BackfillRequest { snapshot_id: "0".into(), ..order(BackfillAction::Resume) };
        assert!(backfill(&stage, another).await.is_err(), "another snapshot");
        stage.db.run(&format!("INSERT INTO items VALUES ({}, 'meanwhile')", 10_000 + number)).await;
        let goal = stage.goal().await;
        other.reaches(goal).await;
        if mode == SnapshotMode::Incremental {
            stream.reaches(goal).await;
        }
        // 20 times 50 ms: at 4000 rows per second nothing else can be the cause.
        let (mut last, mut since) = (rows(&stream.log), stream.log.progress().count());
        stream
            .until("nothing but progress", |log| {
                let (now, told) = (rows(log), log.progress().count());
                if now != last {
                    (last, since) = (now, told);
                }
                told >= since + 20
            })
            .await;
        assert!(!ended(&stream.log) && last < 6000, "{last} rows came: {mode:?}");
        backfill(&stage, order(BackfillAction::Resume)).await.expect("resumed");
        stream.until("snapshot_end", ended).await;
        stream.reaches(goal).await;
        makes(&stream.close(), &stage.db, &["public.items"], mode == SnapshotMode::Incremental).await;
    }
}

//! Rows whose key changes while they are read in chunks, without a TOASTed value that the change leaves alone: whoever has not
//! got the row cannot make it from the change, and the chunks have been at its new place.

use tokio_util::sync::CancellationToken;
use walcast::wire::pb::SnapshotMode;

use crate::{
    harness::{Db, client::Request, stage, stage::held, validators},
    snapshot_breaks::{ended, ids, makes, release, rows, slowly, stuck},
};

const WIDE: &str = "CREATE TABLE wide (id int PRIMARY KEY, n int, body text);
    ALTER TABLE wide ALTER body SET STORAGE EXTERNAL;
    INSERT INTO wide SELECT n, 0, repeat(chr(65 + n % 26), 2100) FROM generate_series(1, 6000) n;
    CREATE TABLE zero (id int PRIMARY KEY); INSERT INTO zero VALUES (1)";

/// From unread to read and back, further and into another's place, alone and many at a time.
async fn moves(db: &Db, step: i32) {
    let (far, near) = (6000 - step * 3, 300 + step);
    db.run(&format!(
        "UPDATE wide SET id = -{far} WHERE id = {far};
         UPDATE wide SET id = id - 10000, n = n + 1 WHERE id IN ({far} - 1, {far} - 2);
         UPDATE wide SET id = id - 10000 WHERE id = -{far};
         UPDATE wide SET n = n + 1 WHERE id = -10000 - {far};
         UPDATE wide SET id = 20000 + {near} WHERE id = {near};
         UPDATE wide SET id = -20000 - {near} WHERE id = 20000 + {near}"
    ))
    .await;
    if step % 10 == 0 {
        db.run(&format!(
            "BEGIN; DELETE FROM wide WHERE id = {step} / 10; UPDATE wide SET id = {step} / 10 WHERE id = {far} - 100; COMMIT;
             UPDATE wide SET id = -30000 - {step} WHERE id = {far} - 200;
             UPDATE wide SET id = 30000 + {step} WHERE id = -30000 - {step};
             DELETE FROM wide WHERE id = -10000 - {far}"
        ))
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_moves_behind_the_chunks_comes_whole() {
    let stage = stage().sql(WIDE).start().await;
    let mut stream = stage.client().subscribe(&slowly(SnapshotMode::Incremental, 3000)).await;
    let mut before = Vec::new();
    for step in 0..240 {
        // Changes that the client has got are not sent again to it, but what they owe is.
        if step % 30 == 0 && step <= 120 {
            let last = rows(&stream.log);
            stream.until("a chunk", |log| rows(log) > last).await;
            assert!(!ended(&stream.log), "too fast for this test: {}", stream.describe());
            if step > 0 {
                let position = stream.log.position().expect("a position");
                before.extend(stream.close().streams);
                stream = stage.client().subscribe(&Request::new().after(&position)).await;
            }
        }
        moves(&stage.db, step).await;
    }
    stream.until("snapshot_end", ended).await;
    stream.reaches(stage.goal().await).await;
    let mut history = stream.close();
    history.streams.splice(0..0, before);
    makes(&history, &stage.db, &["public.wide", "public.zero"], true).await;
}

/// The last chunk does not see yet where its row is, and the table does not end before one has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_waits_for_the_row_that_has_moved() {
    let stage = stage()
        .sql("CREATE TABLE wide (id int PRIMARY KEY, n int, body text); ALTER TABLE wide ALTER body SET STORAGE EXTERNAL")
        .sql("INSERT INTO wide SELECT n, 0, repeat('x', 10000) FROM generate_series(1, 3) n")
        .start()
        .await;
    let task = stuck(&stage, "UPDATE wide SET id = 0 WHERE id = 2").await;
    stage.journaled().await;
    let mut stream = stage.client().subscribe(&slowly(SnapshotMode::Incremental, 0).tables(&["public.*"])).await;
    stream.until("the others", |log| log.commits() == 1 && rows(log) >= 2).await;
    assert!(!ended(&stream.log), "{}", stream.describe());
    release(&stage, task).await;
    stream.until("snapshot_end", ended).await;
    let history = stream.close();
    assert_eq!(ids(&held(&history, validators::formal(&history))), [0, 1, 3]);
    makes(&history, &stage.db, &["public.wide"], true).await;
}

/// Transactions move more rows behind the chunks than are remembered one by one, and the table is read from its beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_moves_altogether_is_read_again() {
    let stage = stage().sql(WIDE).env("WALCAST_FAILPOINTS", "remember_few_moves=plant").start().await;
    let mut stream = stage.client().subscribe(&slowly(SnapshotMode::Incremental, 3000)).await;
    stream.until("a chunk", |log| rows(log) > 0).await;
    stage.db.run("BEGIN; UPDATE wide SET id = id - 10000; UPDATE wide SET id = id - 10000; ROLLBACK").await;
    stage.db.run("UPDATE wide SET id = id - 10000 WHERE id % 8 > 0").await;
    assert!(!ended(&stream.log), "too fast for this test: {}", stream.describe());
    stream.until("snapshot_end", ended).await;
    assert!(rows(&stream.log) > 6001, "{}", stream.describe());
    makes(&stream.close(), &stage.db, &["public.wide", "public.zero"], true).await;
}

/// At every moment there are moves that the last snapshot does not see, of rows that were sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_ends_whatever_moves_in_it() {
    let stage = stage().sql(WIDE).start().await;
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut moving = Vec::new();
    for task in 0..4 {
        let (db, stop) = (stage.cluster.connect().await, stop.clone());
        moving.push(tokio::spawn(async move {
            let mut row = task;
            while !stop.is_cancelled() {
                db.run(&format!("UPDATE wide SET id = -id WHERE id IN ({row}, -{row})")).await;
                row = (row + 4 * 7) % 6000;
            }
        }));
    }
    let mut stream = stage.client().subscribe(&slowly(SnapshotMode::Incremental, 0).tables(&["public.*"])).await;
    stream.until("snapshot_end", ended).await;
    stop.cancel();
    for task in moving {
        task.await.expect("it moves rows");
    }
    stream.reaches(stage.goal().await).await;
    assert!(stream.log.commits() > 20, "{}", stream.describe());
    makes(&stream.close(), &stage.db, &["public.wide", "public.zero"], true).await;
}

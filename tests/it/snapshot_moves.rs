//! Rows whose key changes while they are read in chunks, without a TOASTed value that the change leaves alone: whoever has not
//! got the row cannot make it from the change, and the chunks have been at its new place.

use walcast::wire::pb::SnapshotMode;

use crate::{
    harness::{
        Db, Stage,
        client::{Request, Stream},
        history::StreamLog,
        stage,
        stage::held,
        validators,
    },
    snapshot_breaks::{ended, makes, release, rows, slowly, stuck},
};

const WIDE: &str = "CREATE TABLE wide (id int PRIMARY KEY, n int, body text);
    ALTER TABLE wide ALTER body SET STORAGE EXTERNAL;
    INSERT INTO wide SELECT n, 0, repeat(chr(65 + n % 26), 2100) FROM generate_series(1, 6000) n;
    CREATE TABLE zero (id int PRIMARY KEY); INSERT INTO zero VALUES (1)";

fn wide(rows_per_second: u32) -> Request {
    slowly(SnapshotMode::Incremental, rows_per_second)
}

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

async fn made(stage: &Stage, mut stream: Stream, before: Vec<StreamLog>) {
    stream.until("snapshot_end", ended).await;
    stream.reaches(stage.goal().await).await;
    let mut history = stream.close();
    history.streams.splice(0..0, before);
    held(&history, validators::formal(&history));
    makes(&history, &stage.db, &["public.wide", "public.zero"], true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_moves_behind_the_chunks_comes_whole() {
    let stage = stage().sql(WIDE).start().await;
    let mut stream = stage.client().subscribe(&wide(3000)).await;
    stream.until("the first chunk", |log| rows(log) > 0).await;
    for step in 0..300 {
        moves(&stage.db, step).await;
        if step == 100 {
            assert!(!ended(&stream.log), "too fast for this test: {}", stream.describe());
        }
    }
    made(&stage, stream, Vec::new()).await;
}

//! Row filters that change while clients write: each row of the log has to meet the filter that the stream would have had
//! for it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use crate::{
    harness::{Cluster, Db, eventually, stage},
    logtables::{PATIENCE, drop_slot, horizon, install, walcast},
    logtables_causes::{last_error, replays_what_is_streamed},
};

/// Clients that write into both tables, in any order, so that their locks meet those of ALTER PUBLICATION.
struct Writers {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<u64>>,
}

impl Writers {
    async fn start(cluster: &Cluster, clients: u64) -> Writers {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for client in 0..clients {
            let (db, stop, committed) = (cluster.connect().await, stop.clone(), committed.clone());
            tasks.push(tokio::spawn(async move {
                let mut failed = 0;
                while !stop.load(Ordering::Relaxed) {
                    match db.batch_execute(&transaction(client)).await {
                        Ok(()) => drop(committed.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => {
                            // The other side of a deadlock with ALTER PUBLICATION.
                            assert_eq!(error.code().map(|code| code.code()), Some("40P01"), "{error:?}");
                            db.run("ROLLBACK").await;
                            failed += 1;
                        }
                    }
                }
                failed
            }));
        }
        Writers { stop, committed, tasks }
    }

    /// Waits for so many more.
    async fn more(&self, commits: u64) {
        let goal = self.committed.load(Ordering::Relaxed) + commits;
        eventually(PATIENCE, || async {
            assert!(self.tasks.iter().all(|task| !task.is_finished()), "a client failed");
            let committed = self.committed.load(Ordering::Relaxed);
            if committed >= goal { Ok(()) } else { Err(format!("{committed} of {goal}")) }
        })
        .await;
    }

    /// How many committed, how many were rolled back by a deadlock.
    async fn stop(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = 0;
        for task in self.tasks {
            failed += task.await.expect("a client");
        }
        (self.committed.load(Ordering::Relaxed), failed)
    }
}

/// Rows of the client's own are written, so that clients wait for ALTER PUBLICATION only.
fn transaction(client: u64) -> String {
    let mut sql = String::from("BEGIN;");
    let (usual, mixed) = (fastrand::choice(["f", "g"]).expect("one"), fastrand::u32(0..5) == 0);
    for _ in 0..fastrand::u32(1..5) {
        let table = if mixed { fastrand::choice(["f", "g"]).expect("one") } else { usual };
        let (own, n) = (format!("id % 4 = {client}"), fastrand::u32(0..12));
        sql += &match fastrand::u32(0..6) {
            0..=2 => format!("INSERT INTO {table} SELECT nextval('ids') * 4 + {client}, {n}, 'x';"),
            3 => format!("UPDATE {table} SET n = {n} WHERE {own} AND n = {};", fastrand::u32(0..12)),
            4 => format!("SAVEPOINT s; UPDATE {table} SET v = v || 'y' WHERE {own} AND n = {n}; ROLLBACK TO s;"),
            _ => format!("DELETE FROM {table} WHERE {own} AND n >= {n};"),
        };
    }
    sql + "COMMIT"
}

/// The next tables and filters of the publication.
async fn change(db: &Db) {
    let filter = || match fastrand::u32(0..4) {
        0 => String::new(),
        _ => format!(" WHERE (n % {} = 0)", fastrand::u32(2..5)),
    };
    db.run(&format!("ALTER PUBLICATION walcast SET TABLE f{}, g{}", filter(), filter())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_that_change_under_writers_are_those_of_the_stream() {
    let table = |name: &str| format!("CREATE TABLE {name} (id int8, n int, v text, PRIMARY KEY (id, n))");
    let setup = stage().sql("CREATE SEQUENCE ids").sql(&table("f")).sql(&table("g"));
    let mut stage = setup.publication("CREATE PUBLICATION walcast FOR TABLE f WHERE (n % 2 = 0), g").start().await;
    install(&stage);
    let writers = Writers::start(&stage.cluster, 4).await;
    writers.more(20).await;
    horizon(&stage).await;
    stage.hub.terminate();
    let tail = stage.db.lsn("(SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'walcast')").await;
    let ddl = stage.cluster.connect().await;
    for _ in 0..15 {
        writers.more(10).await;
        change(&ddl).await;
    }
    writers.more(10).await;
    println!("{:?}", writers.stop().await);
    let log = std::fs::read_to_string(stage.cluster.log_path()).expect("the server's log");
    println!("{} deadlocks", log.matches("deadlock detected").count());
    assert!(!log.contains("do not follow"), "what deadlocks is tried again");
    let status = walcast(&stage, &["logtables", "status"]);
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
    replays_what_is_streamed(&mut stage, tail).await;

    // A command that could not be followed, and one that could: how to read the rows in between is not known, and is said.
    horizon(&stage).await;
    stage.hub.terminate();
    stage.db.run("ALTER FUNCTION walcast.note(oid, bool) RENAME TO lost").await;
    stage.db.run("ALTER PUBLICATION walcast SET TABLE f WHERE (n < 5), g").await;
    stage.db.run("INSERT INTO f VALUES (-1, 4), (-2, 6)").await;
    stage.db.run("ALTER FUNCTION walcast.lost(oid, bool) RENAME TO note").await;
    stage.db.run("ALTER PUBLICATION walcast SET TABLE f WHERE (n < 9), g").await;
    drop_slot(&stage).await;
    stage.hub.spawn();
    last_error(&stage, "SLOT_LOST", "public.f: its triggers were disabled for a while within the gap, or its").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_does_not_wait_for_whoever_holds_a_table_with_a_filter() {
    let setup = stage().sql("CREATE TABLE f (id int8 PRIMARY KEY, n int)");
    let stage = setup.publication("CREATE PUBLICATION walcast FOR TABLE f WHERE (id > 0)").no_oracle().start().await;
    install(&stage);
    let ddl = stage.cluster.connect().await;
    ddl.run("BEGIN; LOCK TABLE f IN ACCESS EXCLUSIVE MODE").await;
    let output = walcast(&stage, &["logtables", "status"]);
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(!output.status.success(), "what was not looked at is not known to be protected: {said:?}");
    assert!(said[0].contains("tables        1") && said[1].contains("were not compared: try again"), "{said:?}");
    ddl.run("COMMIT; BEGIN; LOCK TABLE walcast.log IN ACCESS EXCLUSIVE MODE").await;
    let output = walcast(&stage, &["logtables", "status"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("locked the log itself: try again"), "{said}");
    ddl.run("COMMIT").await;
    let output = walcast(&stage, &["logtables", "status"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

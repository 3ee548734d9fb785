//! What log tables cost those who write, and how long a recovery from them takes.

use std::time::Duration;

use walcast::journal::inspect;

use super::Suites;
use crate::{
    client::{From, Until},
    harness::{Cluster, Db, Hub, wait::eventually},
    proc::{Client, now_us},
    report::{Section, Spread, count},
    stage::orders,
};

const PATIENCE: Duration = Duration::from_secs(600);

/// A table per contender; the log tables cover one, and one has statement triggers with transition tables.
const CONTENDERS: [(&str, &str); 3] = [
    ("plain", "no log tables"),
    ("logged", "log tables (row triggers)"),
    ("by_statement", "statement triggers, for comparison"),
];

const BY_STATEMENT: &str = "
    CREATE TABLE statement_log (id bigserial, xid xid8 DEFAULT pg_current_xact_id(), relid oid, op \"char\",
        old_row text, new_row text);
    CREATE FUNCTION log_insert() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO statement_log (relid, op, new_row) SELECT TG_RELID, 'I', n::text FROM new_rows n; RETURN NULL; END $$;
    CREATE FUNCTION log_update() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO statement_log (relid, op, old_row, new_row) SELECT TG_RELID, 'U', a.o::text, b.n::text
        FROM (SELECT row_number() OVER () k, o FROM old_rows o) a
        JOIN (SELECT row_number() OVER () k, n FROM new_rows n) b USING (k); RETURN NULL; END $$;
    CREATE TRIGGER log_insert AFTER INSERT ON by_statement REFERENCING NEW TABLE AS new_rows
        FOR EACH STATEMENT EXECUTE FUNCTION log_insert();
    CREATE TRIGGER log_update AFTER UPDATE ON by_statement REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
        FOR EACH STATEMENT EXECUTE FUNCTION log_update()";

fn install(dsn: &str) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_walcast"))
        .args(["logtables", "install", "--dsn", dsn])
        .output()
        .expect("walcast");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Seconds and bytes of WAL that a statement takes.
async fn cost(db: &Db, sql: &str) -> (f64, f64) {
    let before = db.lsn("pg_current_wal_insert_lsn()").await;
    let begun = now_us();
    db.run(sql).await;
    let seconds = (now_us() - begun) as f64 / 1e6;
    (seconds, db.lsn("pg_current_wal_insert_lsn()").await.since(before) as f64)
}

/// What one contender's runs took, a value per run.
#[derive(Default)]
struct Costs {
    insert: Vec<f64>,
    insert_wal: Vec<f64>,
    update: Vec<f64>,
    update_wal: Vec<f64>,
    /// Of single-row transactions: median and 99th percentile, microseconds.
    median: Vec<f64>,
    p99: Vec<f64>,
}

impl Suites {
    /// Rows per second in one statement, WAL, and the latency of small transactions.
    pub(super) async fn logtables(&mut self) -> Section {
        let (runs, rows, commits) = (self.runs(), self.pick(100_000, 20_000), self.pick(3_000, 1_000));
        let about = format!(
            "One session; four columns (int8 key, text, timestamptz, numeric). {rows} rows per INSERT and per UPDATE of all, \
             then {commits} single-row INSERTs, each a transaction that waits for its fsync. {runs} runs."
        );
        let columns = ["", "insert, us/row", "bytes of WAL", "update, us/row", "bytes of WAL", "commit, us", "p99"];
        let mut section = Section::new("8-logtables", "What log tables cost the writer", about, &columns);
        section.unit = "microseconds per inserted row".to_owned();
        self.stage.db.run("CREATE DATABASE logged").await;
        let db = self.stage.cluster.connect_to("logged").await;
        for (table, _) in CONTENDERS {
            let columns = "id int8 PRIMARY KEY, v text, at timestamptz, amount numeric";
            db.run(&format!("CREATE TABLE {table} ({columns})")).await;
        }
        db.run(BY_STATEMENT).await;
        db.run("CREATE PUBLICATION walcast FOR TABLE logged").await;
        install(&self.stage.cluster.dsn_of("logged"));
        let mut costs = [Costs::default(), Costs::default(), Costs::default()];
        for _ in 0..=runs {
            for ((table, _), costs) in CONTENDERS.iter().zip(&mut costs) {
                self.write(&db, table, rows, commits, costs).await;
            }
        }
        for ((_, label), costs) in CONTENDERS.iter().zip(costs) {
            // The first round warms up.
            let of = |values: &[f64], per: f64| Spread::of(values.iter().skip(1).map(|value| value / per));
            let (rows, insert) = (rows as f64, of(&costs.insert, rows as f64 / 1e6));
            section.bar(*label, insert.median, *label != CONTENDERS[1].1);
            section.row(&[
                (*label).to_owned(),
                insert.show(1),
                of(&costs.insert_wal, rows).show(0),
                of(&costs.update, rows / 1e6).show(1),
                of(&costs.update_wal, rows).show(0),
                of(&costs.median, 1.0).show(0),
                of(&costs.p99, 1.0).show(0),
            ]);
        }
        drop(db);
        self.stage.db.run("DROP DATABASE logged WITH (FORCE)").await;
        section
    }

    async fn write(&self, db: &Db, table: &str, rows: u64, commits: u64, costs: &mut Costs) {
        db.run(&format!("TRUNCATE {table}, statement_log, walcast.log")).await;
        let values = "n, 'row ' || md5(n::text), now(), n / 7.0";
        let (seconds, wal) =
            cost(db, &format!("INSERT INTO {table} SELECT {values} FROM generate_series(1, {rows}) n")).await;
        costs.insert.push(seconds);
        costs.insert_wal.push(wal);
        let (seconds, wal) = cost(db, &format!("UPDATE {table} SET amount = amount + 1")).await;
        costs.update.push(seconds);
        costs.update_wal.push(wal);
        let insert = format!("INSERT INTO {table} SELECT {values} FROM (SELECT $1::int8 AS n) s");
        let insert = db.prepare(&insert).await.expect("a statement");
        let mut latencies = Vec::new();
        for n in 0..commits {
            let begun = now_us();
            db.execute(&insert, &[&((rows + 1 + n) as i64)]).await.expect("an insert");
            latencies.push((now_us() - begun) as f64);
        }
        latencies.sort_by(f64::total_cmp);
        costs.median.push(latencies[latencies.len() / 2]);
        costs.p99.push(latencies[latencies.len() * 99 / 100]);
    }

    /// From a promotion without the slot to the first event on the subscriber's stream.
    pub(super) async fn recovery(&mut self) -> Section {
        let (runs, sizes) =
            (self.pick(5, 1), self.pick(&[0, 10_000, 100_000, 1_000_000][..], &[0, 10_000, 100_000][..]));
        let about = format!(
            "A primary with log tables and a standby without the slot. The hub is killed, so many rows are written, 100 to a \
             transaction, and reach the standby; the primary is killed and the standby promoted. From then to the first \
             event on the subscriber's stream, the start of the hub included; and what of it the recovery took by its own \
             account. {runs} runs. The subscriber checks that nothing is missing and nothing comes twice."
        );
        let columns =
            ["rows in the log that the hub has not read", "seconds to the first event", "of them the recovery"];
        let mut section =
            Section::new("8b-recovery", "Promotion without the slot to the first new event", about, &columns);
        section.unit = "seconds".to_owned();
        for rows in sizes {
            let (mut walls, mut recoveries) = (Vec::new(), Vec::new());
            for _ in 0..runs {
                let (wall, recovery) = recover(*rows).await;
                walls.push(wall);
                recoveries.push(recovery);
            }
            let wall = Spread::of(walls);
            section.row(&[count(*rows as f64), wall.show(2), Spread::of(recoveries).show(2)]);
            section.bar(format!("{} rows", count(*rows as f64)), wall.median, false);
        }
        section
    }
}

async fn recover(rows: u64) -> (f64, f64) {
    let settings = [("wal_keep_size", "8GB"), ("max_wal_size", "16GB"), ("wal_retrieve_retry_interval", "100ms")];
    let mut primary = Cluster::with_settings(&settings);
    let db = primary.connect().await;
    db.run("CREATE TABLE logged (id int8 PRIMARY KEY, v text); CREATE PUBLICATION walcast FOR TABLE logged").await;
    let standby = primary.standby(&settings).await;
    install(&primary.dsn());
    let hosts = format!("host=127.0.0.1,127.0.0.1 port={},{}", primary.port(), standby.port());
    let mut hub = Hub::new(&format!("{hosts} user=postgres dbname=postgres"));
    hub.start().await;
    let mut client = Client::start(&orders(&hub, 1, From::Earliest, Until::Reconnect));
    db.run("INSERT INTO logged VALUES (1, 'the first')").await;
    client.report();
    let now = db.lsn("pg_current_wal_insert_lsn()").await;
    db.run("INSERT INTO logged VALUES (2, 'the second')").await;
    eventually(PATIENCE, || async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        match inspect::horizon(hub.data_dir()).expect("readable") {
            Some(horizon) if horizon.high >= now => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    hub.kill9();
    client.report();
    if rows > 0 {
        let write = format!(
            "DO $$ BEGIN PERFORM set_config('synchronous_commit', 'off', false);
             FOR i IN 0 .. {} LOOP
               INSERT INTO logged SELECT n, rpad(md5(n::text), 100, 'x') FROM generate_series(3 + i * 100, 102 + i * 100) n;
               COMMIT;
             END LOOP; END $$",
            rows / 100 - 1
        );
        db.run(&write).await;
    }
    db.run(&format!("RESET synchronous_commit; INSERT INTO logged VALUES ({}, 'the last')", rows + 3)).await;
    let end = db.lsn("pg_current_wal_flush_lsn()").await;
    eventually(PATIENCE, || async {
        let replayed = standby.connect().await.lsn("pg_last_wal_replay_lsn()").await;
        if replayed >= end { Ok(()) } else { Err(replayed) }
    })
    .await;
    drop(db);
    primary.kill9();
    standby.promote().await;
    let promoted = now_us();
    hub.spawn();
    let first = client.report();
    let wall = (first.first_us - promoted) as f64 / 1e6;
    assert_eq!((first.id, first.holes), (3, 0), "the first row that the hub had not read");
    // Its event may be at the subscriber before the line is in the log.
    eventually(PATIENCE, || async {
        if hub.log().contains("recovered from the log tables") { Ok(()) } else { Err("no recovery in the log") }
    })
    .await;
    hub.kill9();
    let all = client.report();
    assert_eq!(all.holes, 0, "changes were lost or came twice");
    let log = hub.log();
    let line = log.lines().rev().find(|line| line.contains("recovered from the log tables")).expect("a recovery");
    let took = line.split("seconds=").nth(1).and_then(|rest| rest.split_whitespace().next());
    (wall, took.and_then(|seconds| seconds.parse().ok()).expect("seconds"))
}

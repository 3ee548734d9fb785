//! Bytes on the wire, against what the plug-ins send for the same transactions.

use super::Suites;
use crate::{
    client::{From, Until},
    events::hash,
    proc::Client,
    report::{Section, Spread},
    stage::{Shape, orders, validate},
};

/// CopyData ('d' and a length) and XLogData ('w' and three numbers) around every message of a walsender.
const ENVELOPE: i64 = 5 + 25;
/// Changes in a transaction of pgbench's: three updates and an insert.
const PGBENCH: u64 = 4;
const SLOT: &str = "sized";

impl Suites {
    pub(super) async fn bytes(&mut self) -> Section {
        let rows = self.pick(50_000, 10_000);
        let runs = self.runs();
        let about = format!(
            "Bytes per transaction: what a subscriber's socket received, HTTP/2 and gRPC framing included, and what \
                     pgoutput and wal2json (format 2) say about the same WAL by SQL, with 30 bytes of replication protocol \
                     for each of their messages. TCP and IP headers are in none of them. The column zstd says what the hub's \
                     messages would be if each were compressed by itself, which the hub does not do. The hub's figures are \
                     medians of {runs} runs, each checked for count and order; what the plug-ins say is always the same."
        );
        let columns = ["workload", "hub", "hub, zstd", "pgoutput", "wal2json", "hub / pgoutput", "hub / wal2json"];
        let mut section = Section::new("9-bytes", "Bytes on the wire per transaction", about, &columns);
        section.unit = "bytes on the wire, of pgoutput's".to_owned();
        let shapes = [
            ("pgbench (TPC-B)", None),
            ("1 row", Some(Shape::Small(1))),
            ("100 rows", Some(Shape::Small(100))),
            ("100 rows of 20 columns", Some(Shape::Wide)),
            ("100 rows of 2 kB", Some(Shape::Text)),
        ];
        for (name, shape) in shapes {
            self.stage.db.rows("SELECT pg_create_logical_replication_slot('json', 'wal2json')").await;
            let per = match shape {
                None => PGBENCH,
                Some(Shape::Small(1)) => 1,
                Some(_) => 100,
            };
            let hash = match shape {
                Some(shape) => self.stage.backlog(SLOT, shape, rows).await.hash,
                None => self.pgbench(rows / PGBENCH).await,
            };
            let transactions = (rows / per) as f64;
            let [pgoutput, json] = self.plugins().await;
            let (mut sent, mut compressed) = (Vec::new(), Vec::new());
            for run in 1..=runs {
                let slot = self.stage.copy_of(SLOT).await;
                let mut hub = self.stage.hub(&slot, &[]);
                hub.start().await;
                let mut orders = orders(&hub, 1, From::Earliest, Until::Changes(rows));
                orders.compress = true;
                let (report, _) = Client::start(&orders).finish();
                assert_eq!((report.changes, report.hash), (rows, hash), "changes at the sink");
                sent.push(report.bytes as f64);
                compressed.push(report.compressed as f64);
                if run == runs {
                    validate(&self.stage, &hub, SLOT).await;
                }
                hub.kill9();
                drop(hub);
                self.stage.drop_slot(&slot).await;
            }
            let (bytes, compressed) = (Spread::of(sent).median, Spread::of(compressed).median);
            for slot in ["json", SLOT] {
                self.stage.drop_slot(slot).await;
            }
            let table = if shape.is_some() {
                SLOT
            } else {
                "pgbench_accounts, pgbench_branches, pgbench_history, pgbench_tellers"
            };
            self.stage.db.run(&format!("DROP TABLE {table}")).await;
            let each = |bytes: f64| format!("{:.1}", bytes / transactions);
            section.row(&[
                name.to_owned(),
                each(bytes),
                each(compressed),
                each(pgoutput),
                each(json),
                format!("{:.2}", bytes / pgoutput),
                format!("{:.2}", bytes / json),
            ]);
            section.bar(format!("{name}, hub"), bytes / pgoutput, false);
            section.bar(format!("{name}, wal2json"), json / pgoutput, true);
            let mut goal = |of: &str, peer: f64, most: f64| {
                let text = format!("Bytes of a transaction, {name}, of {of}'s: at most {most:.2}");
                section.goal(text, format!("{:.2}", bytes / peer), bytes <= most * peer);
            };
            match shape {
                None => {
                    goal("pgoutput", pgoutput, 0.8);
                    goal("wal2json", json, 0.4);
                }
                Some(Shape::Text) => goal("pgoutput", pgoutput, 1.0),
                Some(_) => {}
            }
        }
        section
    }

    /// So many of pgbench's own transactions behind the slots; the hash of their first columns, as its history tells them.
    async fn pgbench(&mut self, transactions: u64) -> u64 {
        self.stage.run_pgbench(&["-i", "-q"]);
        self.stage.db.rows(&format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")).await;
        let skip = "SELECT pg_replication_slot_advance('json', pg_current_wal_flush_lsn())";
        self.stage.db.rows(skip).await;
        self.stage.run_pgbench(&["-n", "-M", "prepared", "-t", &transactions.to_string()]);
        let history = "SELECT aid::text, tid::text, bid::text FROM pgbench_history ORDER BY ctid";
        let mut all = 0;
        for row in self.stage.db.rows(history).await {
            let [aid, tid, bid] =
                [0, 1, 2].map(|at| row[at].as_ref().and_then(|text| text.parse().ok()).expect("a number"));
            all = [aid, tid, bid, tid].into_iter().fold(all, hash);
        }
        all
    }

    /// What pgoutput and wal2json send for what is behind their slots.
    async fn plugins(&self) -> [f64; 2] {
        let db = &self.stage.db;
        let sum = |length: &str| format!("SELECT sum({length} + {ENVELOPE}) FROM");
        let pgoutput = format!(
            "{} pg_logical_slot_peek_binary_changes('{SLOT}', NULL, NULL, 'proto_version', '1', 'publication_names', 'bench')",
            sum("length(data)")
        );
        let json = format!(
            "{} pg_logical_slot_peek_changes('json', NULL, NULL, 'format-version', '2')",
            sum("octet_length(data)")
        );
        [db.number(&pgoutput).await as f64, db.number(&json).await as f64]
    }
}

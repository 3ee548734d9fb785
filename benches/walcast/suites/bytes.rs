//! Bytes on the wire, against what the plug-ins send for the same transactions.

use super::Suites;
use crate::{
    client::{From, Until},
    proc::Client,
    report::Section,
    stage::{Shape, orders},
};

/// CopyData ('d' and a length) and XLogData ('w' and three numbers) around every message of a walsender.
const ENVELOPE: i64 = 5 + 25;

impl Suites {
    pub(super) async fn bytes(&mut self) -> Section {
        let rows = self.pick(50_000, 10_000);
        let about = "Bytes per transaction: what a subscriber's socket received, HTTP/2 and gRPC framing included, and what \
                     pgoutput and wal2json (format 2) say about the same WAL by SQL, with 30 bytes of replication protocol \
                     for each of their messages. TCP and IP headers are in none of them.";
        let columns = ["workload", "hub", "pgoutput", "wal2json", "hub / pgoutput", "hub / wal2json"];
        let mut section = Section::new("9-bytes", "Bytes on the wire per transaction", about, &columns);
        section.unit = "bytes on the wire, of pgoutput's".to_owned();
        let shapes = [
            ("1 row", Shape::Small(1)),
            ("100 rows", Shape::Small(100)),
            ("100 rows of 20 columns", Shape::Wide),
            ("100 rows of 2 kB", Shape::Text),
        ];
        for (name, shape) in shapes {
            let per = if shape == Shape::Small(1) { 1 } else { 100 };
            let transactions = (rows / per) as f64;
            self.stage.db.rows("SELECT pg_create_logical_replication_slot('json', 'wal2json')").await;
            let backlog = self.stage.backlog("sized", shape, rows).await;
            let db = &self.stage.db;
            let sum = |length: &str| format!("SELECT sum({length} + {ENVELOPE}) FROM");
            let pgoutput = db
                .number(&format!(
                    "{} pg_logical_slot_peek_binary_changes('sized', NULL, NULL, 'proto_version', '1', \
                     'publication_names', 'bench')",
                    sum("length(data)")
                ))
                .await as f64;
            let json = db
                .number(&format!(
                    "{} pg_logical_slot_peek_changes('json', NULL, NULL, 'format-version', '2')",
                    sum("octet_length(data)")
                ))
                .await as f64;
            let slot = self.stage.copy(&backlog).await;
            let mut hub = self.stage.hub(&slot, &[]);
            hub.start().await;
            let (report, _) = Client::start(&orders(&hub, 1, From::Earliest, Until::Changes(rows))).finish();
            crate::stage::check(&backlog, &report);
            let hub_bytes = report.bytes as f64;
            drop(hub);
            self.stage.drop_slot(&slot).await;
            self.stage.drop_slot("json").await;
            self.stage.drop(backlog).await;
            let each = |bytes: f64| format!("{:.1}", bytes / transactions);
            section.row(&[
                name.to_owned(),
                each(hub_bytes),
                each(pgoutput),
                each(json),
                format!("{:.2}", hub_bytes / pgoutput),
                format!("{:.2}", hub_bytes / json),
            ]);
            section.bar(format!("{name}, hub"), hub_bytes / pgoutput, false);
            section.bar(format!("{name}, wal2json"), json / pgoutput, true);
            if name == "1 row" {
                let met = hub_bytes <= 0.85 * pgoutput;
                let text = "Bytes of a transaction of 1 row, of pgoutput's: at most 0.85";
                section.goal(text, format!("{:.2}", hub_bytes / pgoutput), met);
                let met = hub_bytes <= 0.30 * json;
                let text = "Bytes of a transaction of 1 row, of wal2json's: at most 0.30";
                section.goal(text, format!("{:.2}", hub_bytes / json), met);
            }
        }
        section
    }
}

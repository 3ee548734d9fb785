//! The rows that are there: through the hub to one client, beside psql's COPY, which throws them away.

use std::time::Duration;

use super::Suites;
use crate::{
    client::{From, Until},
    proc::{self, Client, now_us},
    report::{Section, Spread, count, mb},
    stage::{Shape, orders},
};

const TABLE: &str = "snapped";

impl Suites {
    pub(super) async fn snapshot(&mut self) -> Section {
        let rows = self.pick(5_000_000, 1_000_000);
        let runs = self.runs();
        let about = format!(
            "A table of {} rows of about 160 bytes with a primary key, from the request to the last row: \
             `psql -c \"COPY {TABLE} TO STDOUT\" > /dev/null`, and one client of the hub in each mode. {runs} runs each, in turns.",
            count(rows as f64)
        );
        let mut section =
            Section::new("12-snapshot", "Rows that are already there", about, &["reader", "wall s", "rows/s"]);
        section.unit = "rows/s".to_owned();
        self.stage.table(TABLE, Shape::Small(1000), rows).await;
        let mut hub = self.stage.hub(TABLE, &[]);
        hub.start().await;
        let (mut copy, mut consistent, mut incremental) = (Vec::new(), Vec::new(), Vec::new());
        let mut longest = 0.0;
        self.stage.psql_copy(TABLE);
        let before = proc::memory(hub.pid(), "VmHWM");
        for _ in 0..runs {
            copy.push(self.stage.psql_copy(TABLE));
            for (mode, walls) in [(false, &mut consistent), (true, &mut incremental)] {
                let orders = orders(&hub, 1, From::Snapshot { incremental: mode }, Until::Changes(rows));
                let started = now_us();
                let client = tokio::task::spawn_blocking(move || Client::start(&orders).finish());
                while !client.is_finished() {
                    let age = self.stage.oldest_transaction().await;
                    if mode && age > longest {
                        longest = age;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                let (report, _) = client.await.expect("the client");
                assert_eq!(report.changes, rows, "rows at the client");
                walls.push((report.end_us - started) as f64 / 1e6);
            }
        }
        let rss = proc::memory(hub.pid(), "VmHWM");
        for (name, walls, peer) in
            [("psql COPY", &copy, true), ("consistent", &consistent, false), ("incremental", &incremental, false)]
        {
            let wall = Spread::of(walls.iter().copied());
            section.row(&[name.to_owned(), wall.show(2), count(rows as f64 / wall.median)]);
            section.bar(name, rows as f64 / wall.median, peer);
        }
        let ratio = |walls: &[f64]| Spread::of(copy.iter().zip(walls).map(|(peer, hub)| peer / hub));
        let (whole, chunks) = (ratio(&consistent), ratio(&incremental));
        section.goal("Consistent, of psql COPY's rate: 0.90", whole.show(2), whole.median >= 0.90);
        section.goal("Incremental, of psql COPY's rate: 0.50", chunks.show(2), chunks.median >= 0.50);
        section.goal("Longest transaction of incremental mode: under 1 s", format!("{longest:.2} s"), longest < 1.0);
        let grown = rss.saturating_sub(before);
        let text = format!("Growth of the hub's RSS over {} rows: under 64 MB", count(rows as f64));
        section.goal(text, mb(grown) + " MB", grown < 64_000_000);
        hub.kill9();
        drop(hub);
        self.stage.drop_slot(TABLE).await;
        self.stage.db.run(&format!("DROP TABLE {TABLE}")).await;
        section
    }
}

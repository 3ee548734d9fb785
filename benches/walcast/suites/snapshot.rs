//! The rows that are there: through the hub to one client, beside psql's COPY, which throws them away.

use std::time::Duration;

use super::Suites;
use crate::{
    client::{From, Until},
    harness::Hub,
    proc::{self, Client, now_us},
    report::{Section, Spread, count, mb},
    stage::{Shape, orders},
};

const TABLE: &str = "snapped";
const SMALLER: &str = "snapped_smaller";
/// Between two looks at how long transactions are open.
const LOOK: Duration = Duration::from_millis(25);

/// One snapshot of a table.
pub(super) struct Read {
    pub wall: f64,
    /// Age in seconds of the oldest transaction of the hub's that was seen.
    pub longest: f64,
    /// CPU seconds.
    pub hub: f64,
    pub client: f64,
}

/// Of the ids of so many rows, which come in any order: several connections read a table.
fn sum(rows: u64) -> i64 {
    (rows * (rows + 1) / 2) as i64
}

impl Suites {
    /// From the request to the last row.
    pub(super) async fn read(&self, hub: &Hub, table: &str, rows: u64, incremental: bool, per_second: u32) -> Read {
        let from = From::Snapshot { incremental, max_rows_per_second: per_second };
        let mut orders = orders(hub, 1, from, Until::Changes(rows));
        orders.tables = vec![format!("public.{table}")];
        let (started, before) = (now_us(), proc::cpu(hub.pid()));
        let client = tokio::task::spawn_blocking(move || Client::start(&orders).finish());
        let mut longest: f64 = 0.0;
        while !client.is_finished() {
            longest = longest.max(self.stage.oldest_transaction().await);
            tokio::time::sleep(LOOK).await;
        }
        let (report, client) = client.await.expect("the client");
        assert_eq!((report.changes, report.ids), (rows, sum(rows)), "rows at the client");
        let hub = proc::cpu(hub.pid()) - before;
        Read { wall: (report.end_us - started) as f64 / 1e6, longest, hub, client }
    }

    /// How much a new hub's RSS grows over a table that is read in both modes.
    async fn growth(&self, table: &str, rows: u64) -> u64 {
        let mut hub = self.stage.hub(table, &[]);
        hub.start().await;
        let before = proc::memory(hub.pid(), "VmHWM");
        for incremental in [false, true] {
            self.read(&hub, table, rows, incremental, 0).await;
        }
        let grown = proc::memory(hub.pid(), "VmHWM").saturating_sub(before);
        hub.kill9();
        drop(hub);
        self.stage.drop_slot(table).await;
        grown
    }

    pub(super) async fn snapshot(&mut self) -> Section {
        let (rows, fewer) = (self.pick(5_000_000, 1_000_000), self.pick(1_000_000, 200_000));
        let runs = self.runs();
        let about = format!(
            "A table of {} rows of about 160 bytes with a primary key, from the request to the last row: \
             `psql -c \"COPY {TABLE} TO STDOUT\" > /dev/null`, and one client of the hub in each mode. {runs} runs each, in turns. \
             Open transactions are looked for in pg_stat_activity every {} ms. RSS: the growth of a new hub's peak over each \
             of two tables, in both modes. Rows are counted, and the sum of their keys is checked.",
            count(rows as f64),
            LOOK.as_millis()
        );
        let columns = ["reader", "wall s", "rows/s", "reader CPU s", "subscriber CPU s"];
        let mut section = Section::new("12-snapshot", "Rows that are already there", about, &columns);
        section.unit = "rows/s".to_owned();
        self.stage.table(SMALLER, Shape::Small(1000), fewer).await;
        self.stage.table(TABLE, Shape::Small(1000), rows).await;
        let (small, large) = (self.growth(SMALLER, fewer).await, self.growth(TABLE, rows).await);
        let mut hub = self.stage.hub(TABLE, &[]);
        hub.start().await;
        let (mut copy, mut consistent, mut incremental) = (Vec::new(), Vec::new(), Vec::new());
        let mut cpu: [Vec<(f64, f64)>; 3] = Default::default();
        let mut longest: f64 = 0.0;
        self.stage.psql_copy(TABLE);
        for _ in 0..runs {
            let (wall, psql) = self.stage.psql_copy(TABLE);
            copy.push(wall);
            cpu[0].push((psql, 0.0));
            let read = self.read(&hub, TABLE, rows, false, 0).await;
            consistent.push(read.wall);
            cpu[1].push((read.hub, read.client));
            let read = self.read(&hub, TABLE, rows, true, 0).await;
            cpu[2].push((read.hub, read.client));
            incremental.push(read.wall);
            longest = longest.max(read.longest);
        }
        for ((name, walls, peer), cpu) in
            [("psql COPY", &copy, true), ("consistent", &consistent, false), ("incremental", &incremental, false)]
                .into_iter()
                .zip(&cpu)
        {
            let wall = Spread::of(walls.iter().copied());
            let [reader, client] = [|cpu: &(f64, f64)| cpu.0, |cpu: &(f64, f64)| cpu.1]
                .map(|part| Spread::of(cpu.iter().map(part)).show(2));
            let client = if peer { "-".to_owned() } else { client };
            section.row(&[name.to_owned(), wall.show(2), count(rows as f64 / wall.median), reader, client]);
            section.bar(name, rows as f64 / wall.median, peer);
        }
        let ratio = |walls: &[f64]| Spread::of(copy.iter().zip(walls).map(|(peer, hub)| peer / hub));
        let (whole, chunks) = (ratio(&consistent), ratio(&incremental));
        section.goal("Consistent, of psql COPY's rate: 0.90", whole.show(2), whole.median >= 0.90);
        section.goal("Incremental, of psql COPY's rate: 0.50", chunks.show(2), chunks.median >= 0.50);
        section.goal("Longest transaction of incremental mode: under 1 s", format!("{longest:.2} s"), longest < 1.0);
        let text = format!(
            "The hub's RSS over {} rows is that over {}: within 16 MB",
            count(rows as f64),
            count(fewer as f64)
        );
        let measured = format!("it grew by {} MB and by {} MB", mb(large), mb(small));
        section.goal(text, measured, large <= small + 16_000_000);
        hub.kill9();
        drop(hub);
        self.stage.drop_slot(TABLE).await;
        self.stage.db.run(&format!("DROP TABLE {TABLE}; DROP TABLE {SMALLER}")).await;
        section
    }
}

//! What others notice of a snapshot that keeps to half of its full rate: live subscribers by the latency of their changes, the
//! primary's writers by their transactions per second, beside a COPY of PostgreSQL's own that is read at the same pace.

use std::{
    io::Read as _,
    process::Child,
    time::{Duration, Instant},
};

use super::{Suites, latency::Sample};
use crate::{
    client::{From, Until},
    harness::{Hub, process},
    proc::Client,
    report::{Section, Spread, count},
    stage::{Shape, orders},
};

const TABLE: &str = "seen";
/// Live subscribers.
const LIVE: usize = 10;
/// Transactions per second that they follow.
const RATE: u64 = 500;

/// What goes on meanwhile.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Beside {
    Nothing,
    Copy,
    Consistent,
    Incremental,
}

impl Beside {
    fn name(self) -> &'static str {
        match self {
            Beside::Nothing => "nothing",
            Beside::Copy => "psql COPY",
            Beside::Consistent => "consistent snapshot",
            Beside::Incremental => "incremental snapshot",
        }
    }
}

/// Something that reads until it is dropped.
enum Reader {
    Nobody,
    Psql(Child),
    Hub { _client: Client },
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Reader::Psql(child) = self {
            process::signal(child, rustix::process::Signal::KILL);
            let _ = child.wait();
        }
    }
}

/// Half of what the table gives at full speed.
struct Half {
    rows: u64,
    rows_per_second: u32,
    bytes_per_second: f64,
    /// For how long it is worth measuring beside it.
    seconds: u64,
}

impl Suites {
    pub(super) async fn snapshot_effect(&mut self) -> Section {
        let rows = self.pick(5_000_000, 1_000_000);
        let runs = self.pick(5, 3);
        self.stage.table(TABLE, Shape::Small(1000), rows).await;
        for table in ["stamps", "written"] {
            self.stage.db.run(&format!("CREATE TABLE {table} (id bigserial PRIMARY KEY, at int8)")).await;
        }
        let mut hub = self.stage.hub(TABLE, &[]);
        hub.start().await;
        self.stage.psql_copy(TABLE);
        let full = rows as f64 / self.read(&hub, TABLE, rows, false, 0).await.wall;
        let bytes = self
            .stage
            .db
            .number(&format!("SELECT sum(length(t::text))::int8 FROM (SELECT * FROM {TABLE} LIMIT 10000) t"))
            .await;
        let half = Half {
            rows,
            rows_per_second: (full / 2.0) as u32,
            bytes_per_second: full / 2.0 * bytes as f64 / 10_000.0,
            seconds: ((rows as f64 / full * 2.0 * 0.8) as u64).clamp(2, 20),
        };
        let about = format!(
            "A table of {} rows of about 160 bytes is read at {} rows/s, half of the {} that a consistent snapshot has just given. \
             Beside it: {LIVE} subscribers that follow {RATE} transactions/s of pgbench (the last of them counts), and pgbench \
             with 4 clients that commit as fast as they can. PostgreSQL's COPY is read at the same pace through a pipe. {} \
             seconds per run, {runs} runs each, in turns.",
            count(rows as f64),
            count(f64::from(half.rows_per_second)),
            count(full),
            half.seconds
        );
        let columns = ["beside", "p99 ms of live subscribers", "pgbench tps"];
        let mut section = Section::new("12b-snapshot-effect", "Beside a snapshot at half its rate", about, &columns);
        section.unit = "pgbench transactions/s".to_owned();
        let every = [Beside::Nothing, Beside::Copy, Beside::Consistent, Beside::Incremental];
        let (mut p99, mut tps): ([Vec<f64>; 4], [Vec<f64>; 4]) = Default::default();
        for _ in 0..runs {
            for (at, beside) in every.into_iter().enumerate() {
                p99[at].push(self.latency_beside(&hub, beside, &half));
                tps[at].push(self.tps_beside(&hub, beside, &half));
            }
        }
        for (at, beside) in every.into_iter().enumerate() {
            let (p99, tps) = (Spread::of(p99[at].iter().copied()), Spread::of(tps[at].iter().copied()));
            section.row(&[beside.name().to_owned(), p99.show(2), tps.show(0)]);
            section.bar(beside.name(), tps.median, matches!(beside, Beside::Nothing | Beside::Copy));
        }
        let median = |values: &Vec<f64>| Spread::of(values.iter().copied()).median;
        for (at, beside) in every.into_iter().enumerate().skip(2) {
            let (slower, fewer) = (median(&p99[at]) / median(&p99[0]) - 1.0, 1.0 - median(&tps[at]) / median(&tps[1]));
            let text = format!("p99 of {LIVE} live subscribers beside a {}: at most 20 % more", beside.name());
            section.goal(text, format!("{:+.0} %", slower * 100.0), slower < 0.2);
            let text = format!("pgbench beside a {}: at most 10 % fewer than beside COPY", beside.name());
            section.goal(text, format!("{:+.0} %", -fewer * 100.0), fewer < 0.1);
        }
        hub.kill9();
        drop(hub);
        self.stage.drop_slot(TABLE).await;
        self.stage.db.run(&format!("DROP TABLE {TABLE}; DROP TABLE stamps; DROP TABLE written")).await;
        section
    }

    /// Reads at half speed until it is dropped.
    fn begin(&self, hub: &Hub, beside: Beside, half: &Half) -> Reader {
        match beside {
            Beside::Nothing => Reader::Nobody,
            Beside::Copy => {
                let mut child = self.stage.psql_pipe(TABLE);
                let mut pipe = child.stdout.take().expect("stdout");
                let rate = half.bytes_per_second;
                std::thread::spawn(move || {
                    let (mut buffer, mut read, started) = (vec![0; 64 << 10], 0.0, Instant::now());
                    while let Ok(bytes @ 1..) = pipe.read(&mut buffer) {
                        read += bytes as f64;
                        let due = Duration::from_secs_f64(read / rate);
                        std::thread::sleep(due.saturating_sub(started.elapsed()));
                    }
                });
                Reader::Psql(child)
            }
            Beside::Consistent | Beside::Incremental => {
                let incremental = beside == Beside::Incremental;
                let from = From::Snapshot { incremental, max_rows_per_second: half.rows_per_second };
                let mut orders = orders(hub, 1, from, Until::Following(half.rows));
                orders.tables = vec![format!("public.{TABLE}")];
                let mut client = Client::start(&orders);
                client.report();
                Reader::Hub { _client: client }
            }
        }
    }

    fn latency_beside(&self, hub: &Hub, beside: Beside, half: &Half) -> f64 {
        let changes = RATE * half.seconds;
        let mut orders = orders(hub, LIVE, From::Latest, Until::Latency(changes));
        orders.tables = vec!["public.stamps".to_owned()];
        let mut client = Client::start(&orders);
        client.report();
        let reader = self.begin(hub, beside, half);
        let mut load = self.load(RATE, changes);
        let (report, _) = client.finish();
        drop(reader);
        Self::enough(&mut load);
        Sample::of(report.latencies_us).p99
    }

    /// Transactions per second of writers without a limit.
    fn tps_beside(&self, hub: &Hub, beside: Beside, half: &Half) -> f64 {
        let script = process::scratch().join("write.sql");
        std::fs::write(&script, "INSERT INTO written (at) VALUES (0);\n").expect("script");
        let reader = self.begin(hub, beside, half);
        let (seconds, script) = (half.seconds.to_string(), script.display().to_string());
        let mut child = self.stage.pgbench(&["-n", "-M", "prepared", "-c", "4", "-T", &seconds, "-f", &script]);
        let mut text = String::new();
        child.stdout.take().expect("stdout").read_to_string(&mut text).expect("pgbench's report");
        let _ = child.wait();
        drop(reader);
        let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        tps.unwrap_or_else(|| panic!("no tps in {text:?}"))
    }
}

//! From the commit to the subscriber.

use std::{
    path::Path,
    process::{Child, Stdio},
};

use super::Suites;
use crate::{
    client::{From, Until},
    harness::process::{self, Account},
    pgoutput,
    proc::Client,
    report::{Section, Spread},
    stage::orders,
};

const RATE: u64 = 1000;

/// Percentiles in milliseconds.
struct Sample {
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Sample {
    fn of(mut latencies: Vec<u32>) -> Sample {
        latencies.sort_unstable();
        let at = |share: f64| {
            let index = ((latencies.len() as f64 * share) as usize).min(latencies.len() - 1);
            f64::from(latencies[index]) / 1000.0
        };
        Sample { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }
}

impl Suites {
    pub(super) async fn latency(&mut self) -> Section {
        let runs = self.runs();
        let changes = self.pick(15_000, 5_000);
        let about = format!(
            "pgbench with 4 connections commits {RATE} transactions/s (synchronous, fsync on), each an insert of \
             clock_timestamp() taken before its commit; a reader compares it with the same host's clock at arrival. So the \
             server's own commit is in both figures. {changes} changes per run, {runs} runs each, taking turns."
        );
        let columns = ["reader", "p50 ms", "p99 ms", "p99.9 ms", "max ms"];
        let mut section = Section::new("3-latency", "Commit to client at 1,000 transactions/s", about, &columns);
        self.stage.db.run("CREATE TABLE stamps (id bigserial, at int8)").await;
        let slots = ["latency_hub", "latency_peer"];
        for slot in slots {
            let create = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
            self.stage.db.rows(&create).await;
        }
        let mut hub = self.stage.hub(slots[0], &[]);
        hub.start().await;
        let mut samples = (Vec::new(), Vec::new());
        for _ in 0..runs {
            samples.0.push(self.direct_latency(slots[1], changes).await);
            let mut client = Client::start(&orders(&hub, 1, From::Latest, Until::Latency(changes)));
            client.report();
            let mut load = self.load(changes);
            let (report, _) = client.finish();
            let _ = load.wait();
            samples.1.push(Sample::of(report.latencies_us));
        }
        drop(hub);
        for (name, samples) in [("pg_recvlogical", &samples.0), ("hub and one subscriber", &samples.1)] {
            let of = |value: fn(&Sample) -> f64| Spread::of(samples.iter().map(value));
            let p99 = of(|sample| sample.p99);
            section.row(&[
                name.to_owned(),
                of(|sample| sample.p50).show(2),
                p99.show(2),
                of(|sample| sample.p999).show(2),
                of(|sample| sample.max).show(1),
            ]);
            section.bar(format!("{name}, p50"), of(|sample| sample.p50).median, name.starts_with("pg"));
            section.bar(format!("{name}, p99"), p99.median, name.starts_with("pg"));
            if name.starts_with("hub") {
                section.goal(
                    "Commit to client at 1,000 transactions/s: p99 under 10 ms",
                    p99.show(2),
                    p99.median < 10.0,
                );
            }
        }
        section.unit = "ms".to_owned();
        for slot in slots {
            self.stage.drop_slot(slot).await;
        }
        self.stage.db.run("DROP TABLE stamps").await;
        section
    }

    async fn direct_latency(&self, slot: &str, changes: u64) -> Sample {
        let skip = format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_flush_lsn())");
        self.stage.db.rows(&skip).await;
        let mut reader = self.stage.recvlogical(slot, None, "-");
        let pipe = reader.stdout.take().expect("stdout");
        let mut load = self.load(changes);
        let latencies = pgoutput::latencies(pipe, changes);
        process::signal(&reader, rustix::process::Signal::INT);
        let _ = reader.wait();
        let _ = load.wait();
        Sample::of(latencies)
    }

    /// Commits somewhat more than are waited for.
    fn load(&self, changes: u64) -> Child {
        let script = process::scratch().join("stamp.sql");
        let insert = "INSERT INTO stamps (at) VALUES ((extract(epoch FROM clock_timestamp()) * 1000000)::int8);\n";
        std::fs::write(&script, insert).expect("script");
        let bin = format!("/usr/lib/postgresql/{}/bin/pgbench", self.stage.cluster.major());
        let mut command = process::command(Path::new(&bin), Account::Own, "KILL");
        command.args(["-h", "127.0.0.1", "-p", &self.stage.cluster.port().to_string(), "-U", "postgres", "-n"]);
        command.args(["-M", "prepared", "-c", "4", "-R", &RATE.to_string(), "-t", &(changes / 4 + 250).to_string()]);
        command.arg("-f").arg(&script).arg("postgres");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        process::spawn(command).expect("pgbench")
    }
}

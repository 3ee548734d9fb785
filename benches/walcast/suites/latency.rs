//! From the commit to the subscriber.

use std::{
    path::Path,
    process::{Child, Stdio},
};

use super::Suites;
use crate::{
    client::{From, Until},
    harness::{
        Hub,
        process::{self, Account},
    },
    pgoutput,
    proc::Client,
    report::{Section, Spread, count},
    stage::orders,
};

/// Percentiles in milliseconds.
pub(super) struct Sample {
    p50: f64,
    pub p99: f64,
    p999: f64,
    max: f64,
}

impl Sample {
    pub fn of(mut latencies: Vec<u32>) -> Sample {
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
        let seconds = self.pick(10, 4);
        let about = format!(
            "pgbench with 4 connections commits so many transactions/s (synchronous, fsync on), each an insert of \
             clock_timestamp() taken before its commit; a reader compares it with the same host's clock at arrival. So the \
             server's own commit is in both figures. With 100 subscribers it is the last of them that counts. {seconds} \
             seconds per run, {runs} runs each, taking turns."
        );
        let columns = ["transactions/s", "reader", "p50 ms", "p99 ms", "p99.9 ms", "max ms"];
        let mut section = Section::new("3-latency", "Commit to client", about, &columns);
        self.stage.db.run("CREATE TABLE stamps (id bigserial, at int8)").await;
        let slots = ["latency_hub", "latency_peer"];
        for slot in slots {
            let create = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
            self.stage.db.rows(&create).await;
        }
        let mut hub = self.stage.hub(slots[0], &[]);
        hub.start().await;
        for (rate, last_of) in [(100, true), (1000, true), (5000, false)] {
            let changes = rate * seconds;
            let mut samples: [Vec<Sample>; 3] = Default::default();
            for _ in 0..runs {
                samples[0].push(self.direct_latency(slots[1], rate, changes).await);
                samples[1].push(self.hub_latency(&hub, 1, rate, changes));
                if last_of {
                    samples[2].push(self.hub_latency(&hub, 100, rate, changes));
                }
            }
            let of = |at: usize, value: fn(&Sample) -> f64| Spread::of(samples[at].iter().map(value));
            let names = ["pg_recvlogical", "hub, 1 subscriber", "hub, last of 100"];
            for (at, name) in names.iter().enumerate().filter(|(at, _)| !samples[*at].is_empty()) {
                let (p50, p99) = (of(at, |sample| sample.p50), of(at, |sample| sample.p99));
                section.row(&[
                    count(rate as f64),
                    (*name).to_owned(),
                    p50.show(2),
                    p99.show(2),
                    of(at, |sample| sample.p999).show(2),
                    of(at, |sample| sample.max).show(1),
                ]);
                section.bar(format!("{rate}/s, {name}, p50"), p50.median, at == 0);
                section.bar(format!("{rate}/s, {name}, p99"), p99.median, at == 0);
                if at > 0 {
                    let added = [
                        p50.median - of(0, |sample| sample.p50).median,
                        p99.median - of(0, |sample| sample.p99).median,
                    ];
                    let text = format!("{} transactions/s, {name}: p50 + 1 ms, p99 + 3 ms", count(rate as f64));
                    let measured = format!("{:+.2} ms, {:+.2} ms", added[0], added[1]);
                    section.goal(text, measured, added[0] <= 1.0 && added[1] <= 3.0);
                }
                if (rate, at) == (1000, 1) {
                    let text = "Commit to client at 1,000 transactions/s: p99 under 10 ms";
                    section.goal(text, p99.show(2), p99.median < 10.0);
                }
            }
        }
        drop(hub);
        section.unit = "ms".to_owned();
        for slot in slots {
            self.stage.drop_slot(slot).await;
        }
        self.stage.db.run("DROP TABLE stamps").await;
        section
    }

    fn hub_latency(&self, hub: &Hub, subscribers: usize, rate: u64, changes: u64) -> Sample {
        let mut client = Client::start(&orders(hub, subscribers, From::Latest, Until::Latency(changes)));
        client.report();
        let mut load = self.load(rate, changes);
        let (report, _) = client.finish();
        let _ = load.wait();
        Sample::of(report.latencies_us)
    }

    async fn direct_latency(&self, slot: &str, rate: u64, changes: u64) -> Sample {
        let skip = format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_flush_lsn())");
        self.stage.db.rows(&skip).await;
        let mut reader = self.stage.recvlogical(slot, None, "-");
        let pipe = reader.stdout.take().expect("stdout");
        let mut load = self.load(rate, changes);
        let latencies = pgoutput::latencies(pipe, changes);
        process::signal(&reader, rustix::process::Signal::INT);
        let _ = reader.wait();
        let _ = load.wait();
        Sample::of(latencies)
    }

    /// Commits somewhat more than are waited for.
    pub(super) fn load(&self, rate: u64, changes: u64) -> Child {
        let script = process::scratch().join("stamp.sql");
        let insert = "INSERT INTO stamps (at) VALUES ((extract(epoch FROM clock_timestamp()) * 1000000)::int8);\n";
        std::fs::write(&script, insert).expect("script");
        let bin = format!("/usr/lib/postgresql/{}/bin/pgbench", self.stage.cluster.major());
        let mut command = process::command(Path::new(&bin), Account::Own, "KILL");
        command.args(["-h", "127.0.0.1", "-p", &self.stage.cluster.port().to_string(), "-U", "postgres", "-n"]);
        command.args(["-M", "prepared", "-c", "4", "-R", &rate.to_string(), "-t", &(changes / 4 + 250).to_string()]);
        command.arg("-f").arg(&script).arg("postgres");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        process::spawn(command).expect("pgbench")
    }
}

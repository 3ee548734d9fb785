//! From the commit to the subscriber.

use std::process::Child;

use super::Suites;
use crate::{
    client::{From, Orders, Until},
    harness::{Hub, process},
    pgoutput,
    proc::{self, Client},
    rawtcp,
    report::{Section, Spread, count, mb},
    stage::{orders, validate},
};

/// Who reads.
struct Reader {
    name: &'static str,
    subscribers: usize,
    through: Through,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Through {
    /// PostgreSQL's own client, and nothing else.
    Nothing,
    /// A server that writes to every connection what this client prints, over plain TCP.
    RawTcp,
    Hub,
    EagerHub,
}

/// The first one is what the others are compared with.
const READERS: [Reader; 6] = [
    Reader { name: "pg_recvlogical", subscribers: 1, through: Through::Nothing },
    Reader { name: "raw TCP, last of 100", subscribers: 100, through: Through::RawTcp },
    Reader { name: "hub, 1 subscriber", subscribers: 1, through: Through::Hub },
    Reader { name: "hub, last of 100", subscribers: 100, through: Through::Hub },
    Reader { name: "eager hub, 1 subscriber", subscribers: 1, through: Through::EagerHub },
    Reader { name: "eager hub, last of 100", subscribers: 100, through: Through::EagerHub },
];

/// Percentiles in milliseconds, and what it cost.
#[derive(Default)]
pub(super) struct Sample {
    pub(super) p50: f64,
    pub(super) p99: f64,
    p999: f64,
    max: f64,
    /// CPU seconds of each process, of several clients together.
    pub(super) walsender: f64,
    pub(super) server: f64,
    pub(super) clients: f64,
    /// Peak of the server, in bytes.
    pub(super) rss: u64,
}

impl Sample {
    pub fn of(mut latencies: Vec<u32>) -> Sample {
        latencies.sort_unstable();
        let at = |share: f64| {
            let index = ((latencies.len() as f64 * share) as usize).min(latencies.len() - 1);
            f64::from(latencies[index]) / 1000.0
        };
        Sample { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1.0), ..Sample::default() }
    }
}

impl Suites {
    pub(super) async fn latency(&mut self) -> Section {
        let runs = self.runs();
        let seconds = self.pick(10, 4);
        let about = format!(
            "pgbench with 4 connections commits so many transactions/s (synchronous, fsync on), each an insert of \
             clock_timestamp() taken before its commit; a reader compares it with the same host's clock at arrival. So the \
             server's own commit is in both figures. With 100 subscribers it is the last of them that counts. An eager hub \
             delivers before its fdatasync. Raw TCP is a thread that writes {} bytes to 100 connections, one after another, \
             whenever pg_recvlogical prints an insert: what the machine can do at all. {seconds} seconds per run, {runs} runs \
             each, taking turns; nobody else reads the WAL meanwhile. Every subscriber is checked for changes that are missing or \
             come twice.",
            rawtcp::STAMPED
        );
        let columns = [
            "transactions/s",
            "reader",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "max ms",
            "walsender CPU s",
            "server CPU s",
            "clients CPU s",
            "server RSS MB",
        ];
        let mut section = Section::new("3-latency", "Commit to client", about, &columns);
        self.stage.db.run("CREATE TABLE stamps (id bigserial, at int8)").await;
        let peer = "latency_peer";
        self.stage.db.rows(&format!("SELECT pg_create_logical_replication_slot('{peer}', 'pgoutput')")).await;
        for (rate, last_of) in [(100, true), (1000, true), (5000, false)] {
            let changes = rate * seconds;
            let mut samples: [Vec<Sample>; READERS.len()] = Default::default();
            for run in 1..=runs {
                let last = run == runs;
                for (reader, samples) in READERS.iter().zip(&mut samples) {
                    if reader.subscribers == 1 || last_of {
                        samples.push(match reader.through {
                            Through::Nothing => self.direct_latency(peer, rate, changes).await,
                            Through::RawTcp => self.raw_latency(peer, reader.subscribers, rate, changes).await,
                            Through::Hub => self.hub_latency(reader.subscribers, &[], rate, changes, last).await,
                            Through::EagerHub => {
                                self.hub_latency(reader.subscribers, &["--eager"], rate, changes, last).await
                            }
                        });
                    }
                }
            }
            let of = |at: usize, value: fn(&Sample) -> f64| Spread::of(samples[at].iter().map(value));
            for (at, reader) in READERS.iter().enumerate().filter(|(at, _)| !samples[*at].is_empty()) {
                let name = reader.name;
                let (p50, p99) = (of(at, |sample| sample.p50), of(at, |sample| sample.p99));
                section.row(&[
                    count(rate as f64),
                    name.to_owned(),
                    p50.show(2),
                    p99.show(2),
                    of(at, |sample| sample.p999).show(2),
                    of(at, |sample| sample.max).show(1),
                    of(at, |sample| sample.walsender).show(2),
                    if reader.through == Through::Nothing {
                        "-".to_owned()
                    } else {
                        of(at, |sample| sample.server).show(2)
                    },
                    of(at, |sample| sample.clients).show(2),
                    match samples[at].iter().map(|sample| sample.rss).max() {
                        Some(rss @ 1..) => mb(rss),
                        _ => "-".to_owned(),
                    },
                ]);
                section.bar(format!("{rate}/s, {name}, p50"), p50.median, at == 0);
                section.bar(format!("{rate}/s, {name}, p99"), p99.median, at == 0);
                if matches!(reader.through, Through::Hub | Through::EagerHub) {
                    let added = [
                        p50.median - of(0, |sample| sample.p50).median,
                        p99.median - of(0, |sample| sample.p99).median,
                    ];
                    let (text, reached) = match reader.through {
                        Through::Hub => ("p50 + 1 ms, p99 + 3 ms", added[0] <= 1.0 && added[1] <= 3.0),
                        _ => ("p50 + 200 us", added[0] <= 0.2),
                    };
                    let text = format!("{} transactions/s, {name}: {text}", count(rate as f64));
                    section.goal(text, format!("{:+.2} ms, {:+.2} ms", added[0], added[1]), reached);
                }
                if (rate, reader.subscribers, reader.through) == (1000, 1, Through::Hub) {
                    let text = "Commit to client at 1,000 transactions/s: p99 under 10 ms";
                    section.goal(text, p99.show(2), p99.median < 10.0);
                }
            }
        }
        section.unit = "ms".to_owned();
        self.stage.drop_slot(peer).await;
        self.stage.db.run("DROP TABLE stamps").await;
        section
    }

    /// The last one is held against the tests' validators, too.
    async fn hub_latency(&mut self, subscribers: usize, args: &[&str], rate: u64, changes: u64, last: bool) -> Sample {
        const SLOT: &str = "latency_hub";
        self.stage.db.rows(&format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")).await;
        let copy = self.stage.copy_of(SLOT).await;
        let mut hub = self.stage.hub(SLOT, args);
        hub.start().await;
        let walsender = self.stage.serving(SLOT).await;
        let sample = self.latency_through(&hub, walsender, subscribers, rate, changes);
        if last {
            validate(&self.stage, &hub, &copy).await;
        }
        hub.kill9();
        self.stage.drop_slot(SLOT).await;
        self.stage.drop_slot(&copy).await;
        sample
    }

    /// With so many subscribers, of the last.
    pub(super) fn latency_through(
        &self,
        hub: &Hub,
        walsender: u32,
        subscribers: usize,
        rate: u64,
        changes: u64,
    ) -> Sample {
        proc::forget_peak(hub.pid());
        let spent = || [walsender, hub.pid()].map(proc::cpu);
        let before = spent();
        let orders = orders(hub, subscribers, From::Latest, Until::Latency(changes));
        let sample = self.latency_of(&orders, rate, changes);
        let after = spent();
        let rss = proc::memory(hub.pid(), "VmHWM");
        Sample { walsender: after[0] - before[0], server: after[1] - before[1], rss, ..sample }
    }

    fn latency_of(&self, orders: &Orders, rate: u64, changes: u64) -> Sample {
        let mut client = Client::start(orders);
        client.report();
        let mut load = self.load(rate, changes);
        let (report, clients) = client.finish();
        Self::enough(&mut load);
        Sample { clients, ..Sample::of(report.latencies_us) }
    }

    async fn raw_latency(&self, slot: &str, subscribers: usize, rate: u64, changes: u64) -> Sample {
        let mut reader = self.direct(slot).await;
        let port = process::free_port();
        let mut server = rawtcp::start_stamps(port, subscribers, changes, &mut reader);
        proc::listens(port);
        let until = Until::RawLatency(changes);
        let watch = proc::Watch::start(vec![server.id()]);
        let walsender = self.stage.walsender(slot).await;
        let before = proc::cpu(walsender);
        let sample = self.latency_of(&Orders { port, streams: subscribers, until, ..Orders::default() }, rate, changes);
        let walsender = proc::cpu(walsender) - before;
        process::signal(&reader, rustix::process::Signal::INT);
        let (through, _) = proc::wait(&mut reader);
        let (server, _) = proc::wait(&mut server);
        Sample { walsender, server: through + server, rss: watch.end(), ..sample }
    }

    /// PostgreSQL's own client on what commits from now on.
    async fn direct(&self, slot: &str) -> Child {
        let skip = format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_flush_lsn())");
        self.stage.db.rows(&skip).await;
        self.stage.recvlogical(slot, None, "-")
    }

    async fn direct_latency(&self, slot: &str, rate: u64, changes: u64) -> Sample {
        let mut reader = self.direct(slot).await;
        let pipe = reader.stdout.take().expect("stdout");
        let mut load = self.load(rate, changes);
        let latencies = pgoutput::latencies(pipe, changes);
        let walsender = proc::cpu(self.stage.walsender(slot).await);
        process::signal(&reader, rustix::process::Signal::INT);
        let (clients, _) = proc::wait(&mut reader);
        Self::enough(&mut load);
        Sample { walsender, clients, ..Sample::of(latencies) }
    }

    /// Commits somewhat more than are waited for: a connection may fall behind. [`enough`](Self::enough) ends it.
    pub(super) fn load(&self, rate: u64, changes: u64) -> Child {
        let script = process::scratch().join("stamp.sql");
        let insert = "INSERT INTO stamps (at) VALUES ((extract(epoch FROM clock_timestamp()) * 1000000)::int8);\n";
        std::fs::write(&script, insert).expect("script");
        let (rate, each) = (rate.to_string(), (changes / 4 + 250).to_string());
        let script = script.display().to_string();
        self.stage.pgbench(&["-n", "-M", "prepared", "-c", "4", "-R", &rate, "-t", &each, "-f", &script])
    }

    /// Everything that is waited for has come.
    pub(super) fn enough(load: &mut Child) {
        process::signal(load, rustix::process::Signal::INT);
        let _ = load.wait();
    }
}

//! Catching up from segment files that are in nobody's memory.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use super::{Suites, latency::Sample};
use crate::{
    client::{From, Until},
    harness::Hub,
    proc::{self, Client, now_us},
    report::{Section, Spread, count, mb},
    stage::{Backlog, Cost, Shape, orders},
};

/// Transactions per second while others catch up.
const LIVE_RATE: u64 = 1000;

/// Events of each: begin, change, commit.
const LIVE_EVENTS: u64 = 3;

/// The live stream flows so long before the others begin.
const ALONE: Duration = Duration::from_millis(300);

/// What a live subscriber had, and events/s and CPU seconds of those beside it.
struct Beside {
    sample: Sample,
    rate: f64,
    clients: f64,
}

impl Suites {
    pub(super) async fn catch_up(&mut self) -> Section {
        let runs = self.runs();
        let rows = self.pick(1_000_000, 300_000);
        let about = format!(
            "{} changes of about 160 bytes in segment files, a ring of 1 MiB, and the files dropped from the page cache \
             before each run; 1 and 16 subscribers read them from the beginning. Beside it pg_recvlogical on the same WAL, \
             which is in the cache, and raw TCP of as many bytes. {runs} runs each. Then the latency of one live subscriber \
             at {} transactions/s, alone, while 1 and 16 others catch up from the files again and again (in the page cache by then), and while raw TCP, which \
             has nothing to do with the hub, moves bytes over 16 connections on the same two cores; {} seconds each, {runs} \
             runs.",
            count(rows as f64),
            count(LIVE_RATE as f64),
            self.pick(10, 4)
        );
        let columns =
            ["readers", "wall s", "deliveries/s", "walsender CPU s", "server CPU s", "client CPU s", "server RSS MB"];
        let mut section = Section::new("9b-catch-up", "Catching up from a cold journal", about, &columns);
        section.unit = "deliveries/s".to_owned();
        let backlog = self.stage.backlog("cold", Shape::Small(1000), rows).await;
        let (hub, slot) = self.hot(&backlog, &["--set", "journal.ring_bytes=1MiB"]).await;
        let mut costs: [Vec<Cost>; 4] = Default::default();
        for _ in 0..runs {
            costs[0].push(self.stage.direct(&backlog, 1).await);
            for (at, subscribers) in [(1, 1), (2, 16)] {
                forget(&hub);
                costs[at].push(Self::replay(&hub, &backlog, subscribers));
            }
            let bytes = costs[2][0].bytes / 16;
            costs[3].push(Self::raw(16, bytes, 4));
        }
        let bytes = costs[2][0].bytes / 16;
        let live = self.beside_catch_up(&hub, &slot, &backlog, bytes, runs).await;
        drop(hub);
        self.stage.drop_slot(&slot).await;
        self.stage.drop(backlog).await;
        let names = ["pg_recvlogical", "hub, 1 subscriber", "hub, 16 subscribers", "raw TCP, 16 connections"];
        let mut rates = Vec::new();
        for ((name, costs), readers) in names.iter().zip(&costs).zip([1, 1, 16, 16]) {
            let of = |value: fn(&Cost) -> f64| Spread::of(costs.iter().map(value));
            let wall = of(|cost| cost.wall);
            rates.push((rows * readers) as f64 / wall.median);
            section.row(&[
                (*name).to_owned(),
                wall.show(3),
                count(rates[rates.len() - 1]),
                if costs[0].walsender > 0.0 { of(|cost| cost.walsender).show(2) } else { "-".to_owned() },
                of(|cost| cost.reader).show(2),
                if costs[0].bytes > 0 { of(|cost| cost.client).show(2) } else { "-".to_owned() },
                mb(costs.iter().map(|cost| cost.rss).max().unwrap_or(0)),
            ]);
            section.bar(*name, rates[rates.len() - 1], !name.starts_with("hub"));
        }
        for (at, readers) in [(1, "one subscriber"), (2, "16 subscribers")] {
            let times = rates[at] / rates[0];
            let text = format!("Catch-up of {readers}, of the walsender's rate: 10");
            section.goal(text, format!("{times:.1}"), times >= 10.0);
        }
        let names = ["nobody", "1 subscriber catching up", "16 subscribers catching up", "raw TCP, 16 connections"];
        let of = |at: usize, value: fn(&Beside) -> f64| Spread::of(live[at].iter().map(value));
        let p99 = |at: usize| of(at, |beside| beside.sample.p99);
        for (at, name) in names.iter().enumerate() {
            let p50 = of(at, |beside| beside.sample.p50);
            let text = format!("live beside {name}: p50 {} ms, p99 {} ms", p50.show(2), p99(at).show(2));
            let beside = of(at, |beside| beside.rate).median;
            let beside = if beside > 0.0 { format!("{}, beside live", count(beside)) } else { "-".to_owned() };
            section.row(&[
                text,
                "-".to_owned(),
                beside,
                of(at, |beside| beside.sample.walsender).show(2),
                of(at, |beside| beside.sample.server).show(2),
                of(at, |beside| beside.sample.clients + beside.clients).show(2),
                mb(live[at].iter().map(|beside| beside.sample.rss).max().unwrap_or(0)),
            ]);
        }
        for at in [1, 2] {
            let share = (p99(at).median / p99(0).median - 1.0) * 100.0;
            let text = format!("p99 of a live subscriber beside {}: within 10 %", names[at]);
            section.goal(text, format!("{share:+.0} %"), share <= 10.0);
            let times = of(at, |beside| beside.rate).median / rates[0];
            let text = format!("{} beside a live one, of the walsender's rate: 10", names[at]);
            section.goal(text, format!("{times:.1}"), times >= 10.0);
        }
        section
    }

    /// A live subscriber beside each of the loads.
    async fn beside_catch_up(
        &mut self,
        hub: &Hub,
        slot: &str,
        backlog: &Backlog,
        bytes: u64,
        runs: usize,
    ) -> [Vec<Beside>; 4] {
        let changes = LIVE_RATE * self.pick(10, 4);
        self.stage.db.run("CREATE TABLE stamps (id bigserial, at int8)").await;
        let runtime = tokio::runtime::Handle::current();
        let walsender = self.stage.serving(slot).await;
        let mut samples: [Vec<Beside>; 4] = Default::default();
        for _ in 0..runs {
            for (at, samples) in samples.iter_mut().enumerate() {
                let over = AtomicBool::new(false);
                let beside = std::thread::scope(|scope| {
                    let load = scope.spawn(|| match at {
                        0 => (0.0, 0.0),
                        3 => {
                            let mut clients = 0.0;
                            while !over.load(Ordering::Relaxed) {
                                clients += Self::raw(16, bytes, 4).client;
                            }
                            (0.0, clients)
                        }
                        _ => {
                            std::thread::sleep(ALONE);
                            let delivered = || runtime.block_on(hub.metric("walcast_events_delivered_total"));
                            let (before, began) = (delivered(), now_us());
                            let mut orders = orders(hub, [1, 16][at - 1], From::Earliest, Until::Again);
                            orders.expected = Some((backlog.changes, backlog.hash));
                            let mut client = Client::start(&orders);
                            client.report();
                            while !over.load(Ordering::Relaxed) {
                                std::thread::sleep(Duration::from_millis(10));
                            }
                            let seconds = (now_us() - began) as f64 / 1e6;
                            let rate = (delivered() - before) / seconds - (LIVE_EVENTS * LIVE_RATE) as f64;
                            (rate, proc::cpu(client.pid()))
                        }
                    });
                    let sample = self.latency_through(hub, walsender, 1, LIVE_RATE, changes);
                    over.store(true, Ordering::Relaxed);
                    let (rate, clients) = load.join().expect("load");
                    Beside { sample, rate, clients }
                });
                samples.push(beside);
            }
        }
        self.stage.db.run("DROP TABLE stamps").await;
        samples
    }
}

/// Drops the journal's segments from the page cache.
fn forget(hub: &Hub) {
    let segments = std::fs::read_dir(hub.data_dir().join("segments")).expect("segments");
    for segment in segments.flatten() {
        let from = format!("if={}", segment.path().display());
        let done = Command::new("dd").args([from.as_str(), "iflag=nocache", "count=0", "status=none"]).status();
        assert!(done.is_ok_and(|status| status.success()), "dd of {from}");
    }
}

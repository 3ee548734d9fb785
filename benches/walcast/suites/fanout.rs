//! Many subscribers: what a delivery costs, what the primary notices, and what a stalled one does to the others.

use super::Suites;
use crate::{
    client::{From, Orders, Until},
    harness::{Hub, process},
    naive::{self, Encoded},
    proc::{self, Client},
    rawtcp,
    report::{Section, Spread, count, mb},
    stage::{Backlog, Cost, Shape, check, orders, validate},
};

/// Fits into the ring; [`fanout`](Suites::fanout) sees that nobody reads files.
const HOT: u64 = 160_000;

impl Suites {
    /// A hub that holds a backlog in memory.
    pub(super) async fn hot(&mut self, backlog: &Backlog, args: &[&str]) -> (Hub, String) {
        let slot = self.stage.copy(backlog).await;
        let mut hub = self.stage.hub(&slot, args);
        hub.start().await;
        let (report, _) = Client::start(&orders(&hub, 1, From::Earliest, Until::Changes(backlog.changes))).finish();
        check(backlog, &report);
        validate(&self.stage, &hub, &backlog.slot).await;
        (hub, slot)
    }

    /// Reads the journal from its beginning to its tail.
    pub(super) fn replay(hub: &Hub, backlog: &Backlog, subscribers: usize) -> Cost {
        Self::replay_beside(hub, backlog, subscribers, 0, 0)
    }

    fn replay_beside(hub: &Hub, backlog: &Backlog, subscribers: usize, frame: u32, stalled: usize) -> Cost {
        let _stalled = (stalled > 0).then(|| {
            let mut orders = orders(hub, 0, From::Earliest, Until::Killed);
            orders.stalled = stalled;
            let mut client = Client::start(&orders);
            client.report();
            client
        });
        proc::forget_peak(hub.pid());
        let before = proc::cpu(hub.pid());
        let mut orders = orders(hub, subscribers, From::Earliest, Until::Tail);
        orders.frame = frame;
        let (report, client) = Client::start(&orders).finish();
        check(backlog, &report);
        let reader = proc::cpu(hub.pid()) - before;
        let wall = (report.end_us - report.first_us) as f64 / 1e6;
        let rss = proc::memory(hub.pid(), "VmHWM");
        Cost { wall, reader, client, rss, bytes: report.bytes, walsender: 0.0 }
    }

    /// That every one of so many subscribers gets everything in order; not measured, since looking costs more than reading.
    fn all_of(hub: &Hub, backlog: &Backlog, subscribers: usize) {
        let mut orders = orders(hub, subscribers, From::Earliest, Until::Tail);
        orders.all_look = true;
        check(backlog, &Client::start(&orders).finish().0);
    }

    /// `pieces` of 16 KiB in each writev.
    pub(super) fn raw(subscribers: usize, bytes: u64, pieces: usize) -> Cost {
        let port = process::free_port();
        let mut server = rawtcp::start(port, bytes, subscribers, pieces);
        proc::listens(port);
        let watch = proc::Watch::start(vec![server.id()]);
        let client = Client::start(&Orders { port, streams: subscribers, until: Until::Raw, ..Orders::default() });
        let (report, client) = client.finish();
        assert_eq!(report.bytes, bytes * subscribers as u64);
        let (reader, _) = proc::wait(&mut server);
        let wall = (report.end_us - report.first_us) as f64 / 1e6;
        Cost { wall, reader, client, bytes: report.bytes, rss: watch.end(), ..Cost::default() }
    }

    fn naive(subscribers: usize, rows: u64, encoded: Encoded) -> Cost {
        let port = process::free_port();
        let mut server = naive::start(port, rows, subscribers, encoded);
        let orders = Orders { port, streams: subscribers, until: Until::Changes(rows), ..Orders::default() };
        let (report, client) = Client::start(&orders).finish();
        let wall = (report.end_us - report.first_us) as f64 / 1e6;
        let (reader, rss) = (proc::cpu(server.id()), proc::memory(server.id(), "VmHWM"));
        process::signal(&server, rustix::process::Signal::KILL);
        let _ = server.wait();
        Cost { wall, reader, client, bytes: report.bytes, rss, ..Cost::default() }
    }

    pub(super) async fn fanout(&mut self) -> Section {
        let runs = self.runs();
        let rows = self.pick(HOT, 100_000);
        let about = format!(
            "{} changes of about 160 bytes in the hub's ring; so many subscribers without a filter read them all at once, \
             each over a connection of its own, in one process that counts bytes (one stream is checked for count and \
             order, the others must have as many bytes; before the runs all 50 are checked). HTTP/2's frames hold 16 KiB unless the client offers more. Beside it 10 \
             pg_recvlogical on 10 slots; raw TCP, a server that writes as many bytes to as many connections with writev, 64 \
             KiB or 16 KiB at a time, and does nothing else; and a naive server, which puts each transaction of the \
             same rows into a broadcast channel and lets tonic encode it for each subscriber, or encodes it once and lets \
             tonic's codec copy the bytes for each. {runs} runs each.",
            count(rows as f64)
        );
        let columns = [
            "server",
            "wall s",
            "deliveries/s",
            "MB/s",
            "CPU ns per delivery",
            "walsender CPU s",
            "server CPU s",
            "client CPU s",
            "server RSS MB",
        ];
        let mut section = Section::new("5-fanout", "Deliveries from a hot backlog", about, &columns);
        section.unit = "deliveries/s".to_owned();
        let backlog = self.stage.backlog("hot", Shape::Small(1000), rows).await;
        let (hub, slot) = self.hot(&backlog, &[]).await;
        Self::all_of(&hub, &backlog, 50);
        let reads = async || hub.metric("walcast_journal_reads_total").await;
        let before = reads().await;
        let mut all: Vec<(String, usize, Vec<Cost>)> = Vec::new();
        let mut put = |name: String, subscribers: usize, cost: Cost| match all.iter_mut().find(|row| row.0 == name) {
            Some(row) => row.2.push(cost),
            None => all.push((name, subscribers, vec![cost])),
        };
        for _ in 0..runs {
            for subscribers in [1, 10, 50] {
                let cost = Self::replay(&hub, &backlog, subscribers);
                let bytes = cost.bytes / subscribers as u64;
                put(format!("hub, {subscribers} subscribers"), subscribers, cost);
                put(format!("raw TCP, {subscribers} connections"), subscribers, Self::raw(subscribers, bytes, 4));
                if subscribers > 1 {
                    let cost = Self::naive(subscribers, rows, Encoded::Each);
                    put(format!("naive, {subscribers} subscribers"), subscribers, cost);
                    let cost = Self::naive(subscribers, rows, Encoded::Once);
                    put(format!("tonic's codec, {subscribers} subscribers"), subscribers, cost);
                }
                if subscribers == 50 {
                    let cost = Self::replay_beside(&hub, &backlog, subscribers, 1 << 20, 0);
                    put("hub, frames of 1 MiB offered, 50 subscribers".to_owned(), subscribers, cost);
                    put("raw TCP, 16 KiB at a time, 50 connections".to_owned(), 50, Self::raw(50, bytes, 1));
                }
            }
            put("10 direct slots".to_owned(), 10, self.stage.direct(&backlog, 10).await);
        }
        assert_eq!(reads().await, before, "reads of files");
        drop(hub);
        self.stage.drop_slot(&slot).await;
        self.stage.drop(backlog).await;
        let rate = |subscribers: usize, costs: &[Cost]| {
            (subscribers as u64 * rows) as f64 / Spread::of(costs.iter().map(|cost| cost.wall)).median
        };
        for (name, subscribers, costs) in &all {
            let of = |value: fn(&Cost) -> f64| Spread::of(costs.iter().map(value));
            let per_second = rate(*subscribers, costs);
            let cpu = of(|cost| cost.reader + cost.walsender);
            section.row(&[
                name.clone(),
                of(|cost| cost.wall).show(3),
                count(per_second),
                match costs[0].bytes {
                    0 => "-".to_owned(),
                    _ => format!("{:.0}", of(|cost| cost.bytes as f64 / cost.wall / 1e6).median),
                },
                format!("{:.0}", cpu.median * 1e9 / (rows * *subscribers as u64) as f64),
                if costs[0].walsender > 0.0 { of(|cost| cost.walsender).show(2) } else { "-".to_owned() },
                of(|cost| cost.reader).show(2),
                if costs[0].bytes > 0 { of(|cost| cost.client).show(2) } else { "-".to_owned() },
                costs.iter().map(|cost| cost.rss).max().map_or("-".to_owned(), mb),
            ]);
            section.bar(name.clone(), per_second, !name.starts_with("hub"));
        }
        let find = |name: &str| all.iter().find(|row| row.0.starts_with(name)).expect("measured");
        let cpu = |name: &str| Spread::of(find(name).2.iter().map(|cost| cost.reader)).median;
        let per_second = rate(50, &find("hub, 50").2);
        section.goal("Deliveries/s to 50 subscribers: 10,000,000", count(per_second), per_second >= 10e6);
        let share = cpu("raw TCP, 50") / cpu("hub, 50");
        section.goal("Deliveries per second of CPU, of raw TCP's: 0.5", format!("{share:.2}"), share >= 0.5);
        let share = cpu("raw TCP, 50") / cpu("hub, frames");
        let text = "The same, clients that offer HTTP/2 frames of 1 MiB: 0.5";
        section.goal(text, format!("{share:.2}"), share >= 0.5);
        let added = |server: &str| {
            let more = cpu(&format!("{server}, 50")) - cpu(&format!("{server}, 10"));
            (more * 1e9 / (40 * rows) as f64).max(0.0)
        };
        let (hub, naive) = (added("hub"), added("naive"));
        let text = "CPU per added subscriber and change: at most 100 ns";
        section.goal(text, format!("{hub:.0} ns"), hub <= 100.0);
        let text = "CPU per added subscriber and change, of a naive server's: 0.25";
        section.goal(text, format!("{:.2}", hub / naive), hub <= naive / 4.0);
        let copying = added("tonic's codec");
        let text = "The same, of one that encodes once and copies for each: at most 1";
        section.goal(text, format!("{:.2}", hub / copying), hub <= copying);
        section
    }

    pub(super) async fn primary(&mut self) -> Section {
        let runs = self.runs();
        let rows = self.pick(HOT, 100_000);
        let about = format!(
            "CPU seconds of the primary's walsenders for {} changes, read by the hub with 1 and with 50 subscribers that \
             follow while it drains, and by pg_recvlogical on 1 and on 10 slots. {runs} runs each.",
            count(rows as f64)
        );
        let columns =
            ["readers", "walsender CPU s", "reader CPU s", "subscriber CPU s", "reader RSS MB", "wall s", "deliveries"];
        let mut section = Section::new("7-primary", "What the primary pays", about, &columns);
        section.unit = "walsender CPU seconds".to_owned();
        let backlog = self.stage.backlog("paid", Shape::Small(1000), rows).await;
        let mut costs: [Vec<Cost>; 4] = Default::default();
        for _ in 0..runs {
            costs[0].push(self.stage.direct(&backlog, 1).await);
            costs[1].push(self.stage.direct(&backlog, 10).await);
            costs[2].push(self.stage.through_hub(&backlog, 1).await);
            costs[3].push(self.stage.through_hub(&backlog, 50).await);
        }
        self.stage.validate(&backlog).await;
        self.stage.drop(backlog).await;
        let names = ["1 slot", "10 slots", "hub, 1 subscriber", "hub, 50 subscribers"];
        let cpu: Vec<Spread> = costs.iter().map(|c| Spread::of(c.iter().map(|cost| cost.walsender))).collect();
        for ((name, costs), (cpu, readers)) in names.iter().zip(&costs).zip(cpu.iter().zip([1, 10, 1, 50])) {
            let of = |value: fn(&Cost) -> f64| Spread::of(costs.iter().map(value)).show(2);
            section.row(&[
                (*name).to_owned(),
                cpu.show(2),
                of(|cost| cost.reader),
                if name.starts_with("hub") { of(|cost| cost.client) } else { "-".to_owned() },
                mb(costs.iter().map(|cost| cost.rss).max().unwrap_or(0)),
                of(|cost| cost.wall),
                count((rows * readers) as f64),
            ]);
            section.bar(*name, cpu.median, name.ends_with("slot") || name.ends_with("slots"));
        }
        let times = cpu[3].median / cpu[0].median;
        let text = "Walsender CPU with 50 subscribers, of one slot's: at most 1.05";
        section.goal(text, format!("{times:.2}"), times <= 1.05);
        section
    }

    pub(super) async fn isolation(&mut self) -> Section {
        let runs = self.runs();
        let rows = self.pick(HOT, 100_000);
        let about = format!(
            "10 subscribers read {} changes from the ring, alone and beside 20 that opened the same stream and then never \
             read. {runs} runs each, taking turns.",
            count(rows as f64)
        );
        let columns = ["beside", "wall s", "deliveries/s", "hub CPU s", "client CPU s", "hub RSS MB"];
        let mut section = Section::new("a-isolation", "Beside stalled subscribers", about, &columns);
        section.unit = "deliveries/s".to_owned();
        let backlog = self.stage.backlog("isolated", Shape::Small(1000), rows).await;
        let (hub, slot) = self.hot(&backlog, &[]).await;
        let mut costs = [Vec::new(), Vec::new()];
        for _ in 0..runs {
            for (costs, stalled) in costs.iter_mut().zip([0, 20]) {
                costs.push(Self::replay_beside(&hub, &backlog, 10, 0, stalled));
            }
        }
        drop(hub);
        self.stage.drop_slot(&slot).await;
        self.stage.drop(backlog).await;
        let mut rates = Vec::new();
        for (name, costs) in ["nobody", "20 stalled subscribers"].iter().zip(&costs) {
            let wall = Spread::of(costs.iter().map(|cost| cost.wall));
            rates.push((rows * 10) as f64 / wall.median);
            let rss = costs.iter().map(|cost| cost.rss).max().unwrap_or(0);
            let of = |value: fn(&Cost) -> f64| Spread::of(costs.iter().map(value)).show(2);
            section.row(&[
                (*name).to_owned(),
                wall.show(3),
                count((rows * 10) as f64 / wall.median),
                of(|cost| cost.reader),
                of(|cost| cost.client),
                mb(rss),
            ]);
            section.bar(*name, (rows * 10) as f64 / wall.median, rates.len() == 1);
        }
        let share = rates[1] / rates[0];
        let text = "Rate beside stalled subscribers, of the rate without: 0.98";
        section.goal(text, format!("{share:.2}"), share >= 0.98);
        section
    }
}

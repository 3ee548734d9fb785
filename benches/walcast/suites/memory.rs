//! What a subscriber that does nothing costs.

use std::time::Duration;

use super::Suites;
use crate::{
    client::{From, Orders, Until},
    harness::{Hub, process},
    naive::{self, Encoded},
    proc::{self, Client},
    report::{Section, Spread, count},
    stage::{Shape, check, orders, validate},
};

const COLUMNS: [&str; 5] = ["server", "subscribers", "RSS MB", "KiB per subscriber", "server CPU s"];

/// Subscribers of the naive server that its memory is counted from.
const FEW: usize = 1;
/// What it has to send: as much as the hub's ring holds.
const NAIVE_CHANGES: u64 = 200_000;

/// One number of subscribers, a value per run.
struct Row {
    server: &'static str,
    subscribers: String,
    /// Zero where nothing is to be divided.
    streams: usize,
    rss: Vec<f64>,
    /// Above what the server has without them.
    above: Vec<f64>,
    /// Seconds, until it has settled.
    cpu: Vec<f64>,
}

#[derive(Default)]
struct Rows(Vec<Row>);

impl Rows {
    fn put(&mut self, server: &'static str, subscribers: String, streams: usize, seen: &Seen, base: u64) {
        let row = match self.0.iter_mut().position(|row| row.subscribers == subscribers && row.server == server) {
            Some(at) => &mut self.0[at],
            None => {
                let (rss, above, cpu) = (Vec::new(), Vec::new(), Vec::new());
                self.0.push(Row { server, subscribers, streams, rss, above, cpu });
                self.0.last_mut().expect("pushed")
            }
        };
        row.rss.push(seen.rss as f64 / 1e6);
        row.above.push(seen.rss.saturating_sub(base) as f64 / 1024.0 / streams.max(1) as f64);
        row.cpu.push(seen.cpu);
    }

    fn show(&self, section: &mut Section) {
        for row in &self.0 {
            let of = |values: &[f64]| Spread::of(values.iter().copied());
            section.row(&[
                row.server.to_owned(),
                row.subscribers.clone(),
                of(&row.rss).show(1),
                if row.streams > 0 { of(&row.above).show(1) } else { "-".to_owned() },
                of(&row.cpu).show(2),
            ]);
            let label = format!("{}, {}", row.server, row.subscribers);
            section.bar(label, of(&row.rss).median, row.server != HUB);
        }
    }

    /// Median KiB of each subscriber.
    fn each(&self, subscribers: &str) -> Option<f64> {
        let row = self.0.iter().find(|row| row.server == HUB && row.subscribers == subscribers)?;
        Some(Spread::of(row.above.iter().copied()).median)
    }
}

const HUB: &str = "hub";
const NAIVE: &str = "naive";

/// A server that has settled.
struct Seen {
    rss: u64,
    cpu: f64,
}

impl Suites {
    pub(super) async fn memory(&mut self) -> Section {
        let runs = self.runs();
        let about = format!(
            "VmRSS of the hub once it has settled, with so many subscribers that follow a quiet database, each over a \
             connection of its own; over TLS, which is not compared with anything, too. Beside it the naive server of the fan-out, \
             counted from what it has with {FEW} subscriber. {runs} runs each, every one with new servers. Subscribers are checked for \
             what they must not get, changes."
        );
        let mut section = Section::new("8-memory", "Memory of idle subscribers", about, &COLUMNS);
        section.unit = "server RSS, MB".to_owned();
        let empty = "memory_empty";
        self.stage.db.rows(&format!("SELECT pg_create_logical_replication_slot('{empty}', 'pgoutput')")).await;
        let tls = certificate();
        let (few, many) = self.pick(([1, 100, 1000, 10_000], [1000, 10_000]), ([1, 100, 200, 300], [200, 300]));
        let mut rows = Rows::default();
        for _ in 0..runs {
            let mut hub = self.stage.hub(empty, &[]);
            hub.start().await;
            let base = settled(hub.pid()).await;
            rows.put(HUB, "0 idle".to_owned(), 0, &base, base.rss);
            for streams in few {
                let seen = idle(&hub, streams, "").await;
                rows.put(HUB, format!("{streams} idle"), streams, &seen, base.rss);
            }
            hub.kill9();
            drop(hub);
            let args = ["--tls-cert", &tls[0], "--tls-key", &tls[1]];
            let mut hub = self.stage.hub(empty, &args);
            hub.start().await;
            let base = settled(hub.pid()).await;
            for streams in many {
                let seen = idle(&hub, streams, &tls[0]).await;
                rows.put(HUB, format!("{streams} idle, over TLS"), streams, &seen, base.rss);
            }
            hub.kill9();
            drop(hub);
            let base = naively(1, FEW).await;
            for streams in many {
                let seen = naively(1, streams).await;
                rows.put(NAIVE, format!("{streams} idle"), streams - FEW, &seen, base.rss);
            }
        }
        self.stage.drop_slot(empty).await;
        rows.show(&mut section);
        let base = Spread::of(rows.0[0].rss.iter().copied());
        let text = "RSS of an idle hub: 40 MB and the ring, which is empty";
        section.goal(text, base.show(1) + " MB", base.median <= 40.0);
        for streams in &few[2..] {
            let Some(each) = rows.each(&format!("{streams} idle")) else { continue };
            let text = format!("Memory of each of {streams} idle subscribers: at most 24 KiB");
            section.goal(text, format!("{each:.1} KiB"), each <= 24.0);
        }
        section
    }

    pub(super) async fn stalled(&mut self) -> Section {
        let runs = self.runs();
        let minutes = self.pick(10, 0);
        let about = format!(
            "VmRSS of the hub once it has settled, with so many subscribers that asked for a backlog and never read it, each over a \
             connection of its own: all from the beginning, which is in the ring, and each from a place of its own in files, \
             of which it then holds the block that it was sent last. Beside it the naive server of the fan-out with {} rows, \
             counted from what it has with {FEW} such subscriber. {runs} runs each, every one with new servers; and once, since it takes so \
             long, 1,000 of the latter for {minutes} minutes. They answer pings and open no window, as a gRPC client whose program takes nothing.",
            count(NAIVE_CHANGES as f64)
        );
        let mut section = Section::new("8b-stalled", "Memory of stalled subscribers", about, &COLUMNS);
        section.unit = "server RSS, MB".to_owned();
        let many = self.pick(1000, 300);
        let changes = self.pick(1_000_000, 300_000);
        let backlog = self.stage.backlog("held", Shape::Small(1000), changes).await;
        let end = backlog.end.parse::<walcast::lsn::Lsn>().expect("an LSN").0;
        let begin = "SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots WHERE slot_name = 'held'";
        let begin = self.stage.db.number(begin).await as u64;
        let mut rows = Rows::default();
        for run in 1..=runs {
            let slot = self.stage.copy(&backlog).await;
            let mut hub = self.stage.hub(&slot, &[]);
            hub.start().await;
            let (report, _) = Client::start(&orders(&hub, 1, From::Earliest, Until::Changes(backlog.changes))).finish();
            check(&backlog, &report);
            // What lies behind the ring comes through the cache of chunks, which is full then.
            check(&backlog, &Client::start(&orders(&hub, 1, From::Earliest, Until::Tail)).finish().0);
            let base = settled(hub.pid()).await;
            rows.put(HUB, "0, ring and cache filled".to_owned(), 0, &base, base.rss);
            let spread = From::Spread(begin, end);
            for (stalled, from, name) in [
                (100, From::Earliest, "100 stalled"),
                (many, From::Earliest, "stalled"),
                (many, spread, "stalled, each at its place"),
            ] {
                let (seen, client) = stall(&hub, stalled, from.clone()).await;
                let name = if stalled == many { format!("{many} {name}") } else { name.to_owned() };
                rows.put(HUB, name.clone(), stalled, &seen, base.rss);
                assert_eq!(hub.metric("walcast_streams").await, stalled as f64);
                if run == runs && stalled == many && !matches!(from, From::Earliest) && minutes > 0 {
                    tokio::time::sleep(Duration::from_secs(60 * minutes)).await;
                    let later = settled(hub.pid()).await;
                    assert_eq!(hub.metric("walcast_streams").await, stalled as f64, "they answer pings");
                    let growth = (later.rss as f64 / seen.rss as f64 - 1.0) * 100.0;
                    let text = format!("Growth of the hub's RSS in {minutes} minutes with {name}: under 5 %");
                    section.goal(text, format!("{growth:.1} %"), growth < 5.0);
                    rows.put(HUB, format!("{name}, {minutes} minutes later"), stalled, &later, base.rss);
                }
                drop(client);
            }
            if run == runs {
                validate(&self.stage, &hub, &backlog.slot).await;
            }
            hub.kill9();
            drop(hub);
            self.stage.drop_slot(&slot).await;
            let base = naively(NAIVE_CHANGES, FEW).await;
            let seen = naively(NAIVE_CHANGES, many).await;
            rows.put(NAIVE, format!("{many} stalled"), many - FEW, &seen, base.rss);
        }
        self.stage.drop(backlog).await;
        rows.show(&mut section);
        for places in ["", ", each at its place"] {
            let Some(each) = rows.each(&format!("{many} stalled{places}")) else { continue };
            let text = format!("Memory of a stalled subscriber{places}: at most 64 KiB");
            section.goal(text, format!("{each:.1} KiB"), each <= 64.0);
        }
        section
    }
}

async fn idle(hub: &Hub, streams: usize, ca: &str) -> Seen {
    let mut orders = orders(hub, streams, From::Latest, Until::Killed);
    orders.ca = ca.to_owned();
    let mut client = Client::start(&orders);
    client.report();
    settled(hub.pid()).await
}

/// They stay as long as the client does.
async fn stall(hub: &Hub, stalled: usize, start: From) -> (Seen, Client) {
    let mut orders = orders(hub, 0, start, Until::Killed);
    orders.stalled = stalled;
    let mut client = Client::start(&orders);
    client.report();
    (settled(hub.pid()).await, client)
}

/// The naive server, which sends so many changes as soon as all have subscribed. Nobody reads more than the first.
async fn naively(changes: u64, stalled: usize) -> Seen {
    let port = process::free_port();
    let mut server = naive::start(port, changes, stalled, Encoded::Each);
    let mut client = Client::start(&Orders { port, stalled, ..Orders::default() });
    client.report();
    let seen = settled(server.id()).await;
    drop(client);
    process::signal(&server, rustix::process::Signal::KILL);
    let _ = server.wait();
    seen
}

/// Files with a certificate for localhost and its key.
fn certificate() -> [String; 2] {
    let directory = process::scratch().join("tls");
    std::fs::create_dir_all(&directory).expect("directory");
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let files = ["cert.pem", "key.pem"].map(|name| directory.join(name).display().to_string());
    std::fs::write(&files[0], key.cert.pem()).expect("certificate");
    std::fs::write(&files[1], key.signing_key.serialize_pem()).expect("key");
    files
}

/// Seconds after which the hub's allocator gives back what is free.
const DECAY: u32 = 10;

/// Once its resident bytes have not moved by a percent for longer than [`DECAY`].
async fn settled(pid: u32) -> Seen {
    let (mut last, mut still) = (0, 0);
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = proc::memory(pid, "VmRSS");
        match now.abs_diff(last) * 100 < now {
            true => still += 1,
            false => (last, still) = (now, 0),
        }
        if still > DECAY {
            break;
        }
    }
    Seen { rss: proc::memory(pid, "VmRSS"), cpu: proc::cpu(pid) }
}

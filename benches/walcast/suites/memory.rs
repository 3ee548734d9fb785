//! What a subscriber that does nothing costs.

use std::time::Duration;

use super::Suites;
use crate::{
    client::{From, Until},
    harness::process,
    proc::{self, Client},
    report::{Section, mb},
    stage::{Shape, orders},
};

const COLUMNS: [&str; 3] = ["subscribers", "hub RSS MB", "KiB per subscriber"];

impl Suites {
    pub(super) async fn memory(&mut self) -> Section {
        let about = "VmRSS of the hub once it has settled, with so many subscribers that follow a quiet database, each over \
                     a connection of its own. One run.";
        let mut section = Section::new("8-memory", "Memory of idle subscribers", about, &COLUMNS);
        section.unit = "hub RSS, MB".to_owned();
        let empty = "memory_empty";
        self.stage.db.rows(&format!("SELECT pg_create_logical_replication_slot('{empty}', 'pgoutput')")).await;
        let mut quiet = self.stage.hub(empty, &[]);
        quiet.start().await;
        let base = settled(quiet.pid()).await;
        section.row(&["0 idle".to_owned(), mb(base), "-".to_owned()]);
        section.goal("RSS of an idle hub: 40 MB and the ring, which is empty", mb(base) + " MB", base <= 40_000_000);
        section.bar("0 idle", base as f64 / 1e6, false);
        for streams in self.pick(&[1, 100, 1000, 10_000][..], &[1, 100, 300]).iter().copied() {
            let mut client = Client::start(&orders(&quiet, streams, From::Latest, Until::Killed));
            client.report();
            let rss = settled(quiet.pid()).await;
            let each = rss.saturating_sub(base) as f64 / 1024.0 / streams as f64;
            section.row(&[format!("{streams} idle"), mb(rss), format!("{each:.1}")]);
            section.bar(format!("{streams} idle"), rss as f64 / 1e6, false);
            if streams > 100 {
                let text = format!("Memory of each of {streams} idle subscribers: at most 24 KiB");
                section.goal(text, format!("{each:.1} KiB"), each <= 24.0);
            }
        }
        drop(quiet);
        self.encrypted(&mut section, empty).await;
        self.stage.drop_slot(empty).await;
        section
    }

    pub(super) async fn stalled(&mut self) -> Section {
        let about = "VmRSS of the hub once it has settled, with so many subscribers that asked for a backlog in the ring and \
                     never read, each over a connection of its own; with 1,000 of them again after 10 minutes. One run.";
        let mut section = Section::new("8b-stalled", "Memory of stalled subscribers", about, &COLUMNS);
        section.unit = "hub RSS, MB".to_owned();
        let backlog = self.stage.backlog("held", Shape::Small(1000), 200_000).await;
        let slot = self.stage.copy(&backlog).await;
        let mut hub = self.stage.hub(&slot, &[]);
        hub.start().await;
        let (report, _) = Client::start(&orders(&hub, 1, From::Earliest, Until::Changes(backlog.changes))).finish();
        crate::stage::check(&backlog, &report);
        let base = settled(hub.pid()).await;
        section.row(&["0, the ring filled".to_owned(), mb(base), "-".to_owned()]);
        section.bar("0, the ring filled", base as f64 / 1e6, false);
        for stalled in [100, self.pick(1000, 300)] {
            let mut orders = orders(&hub, 0, From::Earliest, Until::Killed);
            orders.stalled = stalled;
            let mut client = Client::start(&orders);
            client.report();
            let mut rss = settled(hub.pid()).await;
            if stalled == 1000 {
                let first = rss;
                tokio::time::sleep(Duration::from_secs(600)).await;
                rss = settled(hub.pid()).await;
                let growth = (rss as f64 / first as f64 - 1.0) * 100.0;
                let text = "Growth of the hub's RSS in 10 minutes with 1,000 stalled subscribers: under 5 %";
                section.goal(text, format!("{growth:.1} %"), growth < 5.0);
            }
            let each = rss.saturating_sub(base) as f64 / 1024.0 / stalled as f64;
            section.row(&[format!("{stalled} stalled"), mb(rss), format!("{each:.1}")]);
            section.bar(format!("{stalled} stalled"), rss as f64 / 1e6, false);
            if stalled > 100 {
                section.goal("Memory of a stalled subscriber: at most 64 KiB", format!("{each:.1} KiB"), each <= 64.0);
            }
        }
        drop(hub);
        self.stage.drop_slot(&slot).await;
        self.stage.drop(backlog).await;
        section
    }

    /// The same over TLS, which is not compared with anything.
    async fn encrypted(&self, section: &mut Section, slot: &str) {
        let directory = process::scratch().join("tls");
        std::fs::create_dir_all(&directory).expect("directory");
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let [cert_file, key_file] = ["cert.pem", "key.pem"].map(|name| directory.join(name).display().to_string());
        std::fs::write(&cert_file, key.cert.pem()).expect("certificate");
        std::fs::write(&key_file, key.signing_key.serialize_pem()).expect("key");
        let mut hub = self.stage.hub(slot, &["--tls-cert", &cert_file, "--tls-key", &key_file]);
        hub.start().await;
        let base = settled(hub.pid()).await;
        for streams in self.pick(&[1000, 10_000][..], &[300]).iter().copied() {
            let mut orders = orders(&hub, streams, From::Latest, Until::Killed);
            orders.ca = cert_file.clone();
            let mut client = Client::start(&orders);
            client.report();
            let rss = settled(hub.pid()).await;
            let each = rss.saturating_sub(base) as f64 / 1024.0 / streams as f64;
            section.row(&[format!("{streams} idle, over TLS"), mb(rss), format!("{each:.1}")]);
        }
    }
}

/// Resident bytes, once they have not moved by a percent for a second.
async fn settled(pid: u32) -> u64 {
    let mut last = 0;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = proc::memory(pid, "VmRSS");
        if now.abs_diff(last) * 100 < now {
            return now;
        }
        last = now;
    }
    last
}

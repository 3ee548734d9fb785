//! Catching up from segment files that are in nobody's memory.

use std::process::Command;

use super::Suites;
use crate::{
    harness::Hub,
    report::{Section, Spread, count},
    stage::{Cost, Shape},
};

impl Suites {
    pub(super) async fn catch_up(&mut self) -> Section {
        let runs = self.runs().min(3);
        let rows = self.pick(1_000_000, 300_000);
        let about = format!(
            "{} changes of about 160 bytes in segment files, a ring of 1 MiB, and the files dropped from the page cache \
             before each run; 1 and 16 subscribers read them from the beginning. Beside it pg_recvlogical on the same WAL, \
             which is in the cache, and raw TCP of as many bytes. {runs} runs each.",
            count(rows as f64)
        );
        let columns = ["readers", "wall s", "deliveries/s", "server CPU s"];
        let mut section = Section::new("9b-catch-up", "Catching up from a cold journal", about, &columns);
        section.unit = "deliveries/s".to_owned();
        let backlog = self.stage.backlog("cold", Shape::Small(1000), rows).await;
        let (hub, slot) = self.hot(&backlog, &["--set", "journal.ring_bytes=1MiB"]).await;
        let mut costs: [Vec<Cost>; 4] = Default::default();
        for _ in 0..runs {
            costs[0].push(self.stage.direct(&backlog, 1).await);
            for (at, subscribers) in [(1, 1), (2, 16)] {
                forget(&hub);
                costs[at].push(Self::replay(&hub, &backlog, subscribers).0);
            }
            let bytes = costs[2][0].bytes / 16;
            costs[3].push(Self::raw(16, bytes));
        }
        drop(hub);
        self.stage.drop_slot(&slot).await;
        self.stage.drop(backlog).await;
        let names = ["pg_recvlogical", "hub, 1 subscriber", "hub, 16 subscribers", "raw TCP, 16 connections"];
        let mut rates = Vec::new();
        for ((name, costs), readers) in names.iter().zip(&costs).zip([1, 1, 16, 16]) {
            let of = |value: fn(&Cost) -> f64| Spread::of(costs.iter().map(value));
            let wall = of(|cost| cost.wall);
            rates.push((rows * readers) as f64 / wall.median);
            let cpu = of(|cost| cost.reader + cost.walsender);
            section.row(&[(*name).to_owned(), wall.show(3), count(rates[rates.len() - 1]), cpu.show(2)]);
            section.bar(*name, rates[rates.len() - 1], !name.starts_with("hub"));
        }
        let times = rates[1] / rates[0];
        let text = "Catch-up of one subscriber, of the walsender's rate: 5";
        section.goal(text, format!("{times:.1}"), times >= 5.0);
        section
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

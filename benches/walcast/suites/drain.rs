//! One reader, a backlog: is the hub as fast as PostgreSQL's own client, which throws everything away?

use super::Suites;
use crate::{
    report::{Section, Spread, count, mb},
    stage::{Cost, Shape},
};

const COLUMNS: &[&str] =
    &["reader", "wall s", "changes/s", "walsender CPU s", "reader CPU s", "subscriber CPU s", "reader RSS MB"];

fn row(name: &str, changes: u64, costs: &[Cost]) -> Vec<String> {
    let of = |value: fn(&Cost) -> f64| Spread::of(costs.iter().map(value));
    let wall = of(|cost| cost.wall);
    vec![
        name.to_owned(),
        wall.show(2),
        count(changes as f64 / wall.median),
        of(|cost| cost.walsender).show(2),
        of(|cost| cost.reader).show(2),
        if costs[0].client > 0.0 { of(|cost| cost.client).show(2) } else { "-".to_owned() },
        mb(largest(costs)),
    ]
}

fn largest(costs: &[Cost]) -> u64 {
    costs.iter().map(|cost| cost.rss).max().unwrap_or(0)
}

/// Changes of which a history fits into memory.
const VALIDATED: u64 = 1_000_000;

/// Of the walls of runs that took turns, pair by pair.
fn ratio(peer: &[Cost], hub: &[Cost]) -> Spread {
    Spread::of(peer.iter().zip(hub).map(|(peer, hub)| peer.wall / hub.wall))
}

impl Suites {
    /// Both, and unless the transactions are too large for that, what the tests' validators say of the hub's stream.
    async fn pair(&mut self, shape: Shape, rows: u64, runs: usize) -> (Vec<Cost>, Vec<Cost>) {
        let backlog = self.stage.backlog("drained", shape, rows).await;
        let (mut peer, mut hub) = (Vec::new(), Vec::new());
        // The first reading of new WAL is not like the others.
        self.stage.direct(&backlog, 1).await;
        for _ in 0..runs {
            peer.push(self.stage.direct(&backlog, 1).await);
            hub.push(self.stage.through_hub(&backlog, 1).await);
        }
        if rows <= VALIDATED {
            self.stage.validate(&backlog).await;
        }
        self.stage.drop(backlog).await;
        (peer, hub)
    }

    pub(super) async fn drain(&mut self) -> Section {
        let rows = self.pick(1_000_000, 300_000);
        let runs = self.runs();
        let about = format!(
            "{} inserts of about 160 bytes in transactions of 1,000, read from a copy of the same slot: by pg_recvlogical \
             -f /dev/null, and by the hub with its journal on disk and one subscriber, from starting the process to the \
             last change at the subscriber, who checks count and order. {runs} runs each.",
            count(rows as f64)
        );
        let mut section = Section::new("1-drain", "Draining a backlog", about, COLUMNS);
        let (peer, hub) = self.pair(Shape::Small(1000), rows, runs).await;
        for (name, costs, is_peer) in [("pg_recvlogical", &peer, true), ("hub and one subscriber", &hub, false)] {
            section.row(&row(name, rows, costs));
            section.bar(name, rows as f64 / Spread::of(costs.iter().map(|cost| cost.wall)).median, is_peer);
        }
        section.unit = "changes/s".to_owned();
        let ratio = ratio(&peer, &hub);
        section.goal("Drain rate, of pg_recvlogical's: 0.80", ratio.show(2), ratio.median >= 0.80);
        let rss = largest(&hub);
        section.goal("RSS of the hub while draining: under 100 MB", mb(rss) + " MB", rss < 100_000_000);
        section
    }

    pub(super) async fn transaction(&mut self) -> Section {
        let rows = self.pick(10_000_000, 1_000_000);
        let runs = self.pick(5, 1);
        let about = format!(
            "{} inserts of about 160 bytes in one transaction, as above. {runs} runs each.",
            count(rows as f64)
        );
        let mut section = Section::new("2-transaction", "One large transaction", about, COLUMNS);
        let (peer, hub) = self.pair(Shape::Small(rows), rows, runs).await;
        section.row(&row("pg_recvlogical", rows, &peer));
        section.row(&row("hub and one subscriber", rows, &hub));
        let ratio = ratio(&peer, &hub);
        section.goal("Rate of one large transaction, of pg_recvlogical's: 0.95", ratio.show(2), ratio.median >= 0.95);
        let rss = largest(&hub);
        let text = format!("RSS of the hub with a transaction of {} rows: under 100 MB", count(rows as f64));
        section.goal(text, mb(rss) + " MB", rss < 100_000_000);
        section
    }

    pub(super) async fn workloads(&mut self) -> Section {
        let runs = self.runs();
        let rows = |quick| self.pick(1_000_000, quick);
        let shapes = [
            ("1 row per transaction", Shape::Small(1), rows(60_000)),
            ("100 rows per transaction", Shape::Small(100), rows(200_000)),
            ("8,000 rows per transaction", Shape::Small(8000), rows(200_000)),
            ("20 columns", Shape::Wide, rows(60_000)),
            ("2 kB of text", Shape::Text, rows(60_000)),
        ];
        let about = format!(
            "Inserts, read by pg_recvlogical -f /dev/null and by the hub with one subscriber, as in the first section. {runs} \
             runs each."
        );
        let columns = [
            "workload",
            "changes",
            "pg_recvlogical s",
            "hub s",
            "ratio",
            "walsender CPU s (peer, hub)",
            "reader CPU s (peer, hub)",
            "subscriber CPU s",
            "RSS MB (peer, hub)",
        ];
        let mut section = Section::new("6-workloads", "Five workloads", about, &columns);
        section.unit = "drain rate, of pg_recvlogical's".to_owned();
        for (name, shape, rows) in shapes {
            let (peer, hub) = self.pair(shape, rows, runs).await;
            let of = |costs: &[Cost], value: fn(&Cost) -> f64| Spread::of(costs.iter().map(value));
            let both =
                |value: fn(&Cost) -> f64| format!("{:.2}, {:.2}", of(&peer, value).median, of(&hub, value).median);
            let ratio = ratio(&peer, &hub);
            section.row(&[
                name.to_owned(),
                count(rows as f64),
                of(&peer, |cost| cost.wall).show(2),
                of(&hub, |cost| cost.wall).show(2),
                ratio.show(2),
                both(|cost| cost.walsender),
                both(|cost| cost.reader),
                of(&hub, |cost| cost.client).show(2),
                [&peer, &hub].map(|costs| mb(largest(costs))).join(", "),
            ]);
            section.bar(name, ratio.median, false);
            section.goal(format!("{name}: 0.95 of pg_recvlogical"), ratio.show(2), ratio.median >= 0.95);
        }
        section
    }
}

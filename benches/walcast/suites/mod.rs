//! What is measured. Each suite makes one section of the report.

mod bytes;
mod catch_up;
mod clients;
mod drain;
mod fanout;
mod filters;
mod latency;
mod logtables;
mod memory;
mod predicates;
mod restart;
mod snapshot;
mod snapshot_effect;

use super::{
    report::{self, Report},
    stage::Stage,
};

pub struct Suites {
    quick: bool,
    stage: Stage,
    report: Report,
}

/// In the order in which they run.
pub const NAMES: &[&str] = &[
    "drain",
    "transaction",
    "latency",
    "restart",
    "restart-large",
    "fanout",
    "filters",
    "predicates",
    "workloads",
    "primary",
    "memory",
    "stalled",
    "bytes",
    "catch-up",
    "isolation",
    "snapshot",
    "snapshot-effect",
    "clients",
    "logtables",
    "recovery",
];

impl Suites {
    pub async fn new(quick: bool) -> Suites {
        Suites { quick, stage: Stage::new().await, report: Report::open(quick) }
    }

    pub async fn run(&mut self, names: &[&str]) {
        for name in NAMES.iter().filter(|name| names.is_empty() || names.contains(name)) {
            println!("{name}");
            let circumstances = report::circumstances();
            let section = match *name {
                "drain" => self.drain().await,
                "transaction" => self.transaction().await,
                "latency" => self.latency().await,
                "restart" => {
                    let (bytes, id) = (self.pick(1 << 30, 256 << 20), "4-restart");
                    self.restart(id, bytes, 2.0).await
                }
                "restart-large" => {
                    let (bytes, id) = (self.pick(10 << 30, 1 << 30), "4b-restart-large");
                    self.restart(id, bytes, 0.5).await
                }
                "fanout" => self.fanout().await,
                "filters" => self.filters().await,
                "predicates" => self.predicates().await,
                "workloads" => self.workloads().await,
                "primary" => self.primary().await,
                "memory" => self.memory().await,
                "stalled" => self.stalled().await,
                "bytes" => self.bytes().await,
                "snapshot" => self.snapshot().await,
                "snapshot-effect" => self.snapshot_effect().await,
                "clients" => self.clients().await,
                "logtables" => self.logtables().await,
                "recovery" => self.recovery().await,
                "catch-up" => self.catch_up().await,
                _ => self.isolation().await,
            };
            self.report.add(section.under(circumstances));
        }
    }

    /// Runs of each contender.
    fn runs(&self) -> usize {
        if self.quick { 3 } else { 5 }
    }

    fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

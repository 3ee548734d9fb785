//! For random histories, filters, block cuts, message limits, credits and start positions a stream is what the filter
//! selects of each transaction behind the start, one transaction after the other.

use std::sync::{Arc, atomic::Ordering};

use crate::{
    hub::{RowFormat, Subscription, testing::*},
    lsn::Lsn,
    model::{Operation, Position, Relation},
    selection::Filter,
};

const TABLES: [&str; 4] = ["shop.orders", "shop.items", "audit.log", "walcast.own"];
const ORIGINS: [&str; 2] = ["", "east"];
const PREFIXES: [&str; 3] = ["note", "audit", "walcast.mark"];

/// What happened, apart from how it was cut into blocks.
enum Happened {
    Transaction { begin: String, origin: usize, events: Vec<(u64, What)>, end: Option<Position> },
    Message { prefix: usize, position: Position },
}

enum What {
    Change { table: usize, operation: Operation, values: [String; 2] },
    Truncate { tables: Vec<usize> },
    Message { prefix: usize },
}

/// What a stream asks for, in terms of the history rather than of globs.
struct Asked {
    filter: Option<Filter>,
    tables: Vec<usize>,
    operations: Vec<Operation>,
    narrow: bool,
    prefixes: Vec<usize>,
    origins: Vec<usize>,
}

const OPERATIONS: [Operation; 4] = [Operation::Insert, Operation::Update, Operation::Delete, Operation::Truncate];

fn asked(random: &mut fastrand::Rng) -> Asked {
    let mut asked = Asked {
        filter: None,
        tables: vec![0, 1, 2],
        operations: OPERATIONS.to_vec(),
        narrow: false,
        prefixes: vec![0, 1],
        origins: vec![0, 1],
    };
    if random.u8(0..4) == 0 {
        return asked;
    }
    let mut filter = Filter::default();
    if random.bool() {
        asked.tables = (0..3).filter(|_| random.bool()).collect();
        filter.tables = asked.tables.iter().map(|table| TABLES[*table].to_owned()).collect();
        filter.tables.push("nothing.*".to_owned());
    } else if random.bool() {
        asked.tables = vec![0];
        filter.tables = vec!["shop.*".to_owned(), "walcast.*".to_owned()];
        filter.exclude_tables = vec!["*.items".to_owned()];
    }
    if random.bool() {
        asked.operations = OPERATIONS.into_iter().filter(|_| random.bool()).collect();
        asked.operations.push(OPERATIONS[random.usize(0..4)]);
        filter.operations = asked.operations.clone();
    }
    if random.bool() {
        asked.narrow = true;
        filter.columns = vec!["*.none".to_owned()];
    }
    asked.prefixes = (0..2).filter(|_| random.bool()).collect();
    filter.message_prefixes = asked.prefixes.iter().map(|prefix| PREFIXES[*prefix].to_owned()).collect();
    if random.u8(0..4) == 0 {
        let origin = random.usize(0..2);
        asked.origins = vec![origin];
        filter.origins = vec![ORIGINS[origin].to_owned()];
    }
    asked.filter = Some(filter);
    asked
}

impl Asked {
    fn line(&self, ordinal: u64, what: &What) -> Option<String> {
        let operations = ["", "OPERATION_INSERT", "OPERATION_UPDATE", "OPERATION_DELETE"];
        Some(match what {
            What::Change { table, operation, values } => {
                if !self.tables.contains(table) || !self.operations.contains(operation) {
                    return None;
                }
                let second = if *operation == Operation::Delete { "-" } else { &values[1] };
                let values = if self.narrow { values[0].clone() } else { format!("{} {second}", values[0]) };
                format!("{ordinal} {} {} [{values}]", operations[*operation as usize], TABLES[*table])
            }
            What::Truncate { tables } => {
                let kept: Vec<u32> =
                    tables.iter().filter(|table| self.tables.contains(table)).map(|table| *table as u32 + 1).collect();
                if kept.is_empty() || !self.operations.contains(&Operation::Truncate) {
                    return None;
                }
                format!("{ordinal} truncate {kept:?}")
            }
            What::Message { prefix } => {
                if !self.prefixes.contains(prefix) {
                    return None;
                }
                format!("{ordinal} message {}", PREFIXES[*prefix])
            }
        })
    }

    fn stream(&self, history: &[Happened], after: Position) -> Vec<String> {
        let mut lines = Vec::new();
        let mut resume = at(100);
        for happened in history {
            let before = resume;
            match happened {
                Happened::Message { prefix, position } => {
                    resume = *position;
                    let selected = self.prefixes.contains(prefix) && self.origins.contains(&0);
                    if position.order() > after.order() && selected {
                        lines.push(format!("0 message {}", PREFIXES[*prefix]));
                    }
                }
                Happened::Transaction { begin, origin, events, end } => {
                    resume = end.unwrap_or(resume);
                    let behind = end.map_or(before.order() >= after.order(), |end| end.order() > after.order());
                    let selected: Vec<String> =
                        events.iter().filter_map(|(ordinal, what)| self.line(*ordinal, what)).collect();
                    if !behind || selected.is_empty() || !self.origins.contains(origin) {
                        continue;
                    }
                    let count = selected.len();
                    lines.push(format!("begin {begin}"));
                    lines.extend(selected);
                    lines.push(match end {
                        Some(end) => format!("commit {} {count}/{}", end.lsn, events.len()),
                        None => "discard".to_owned(),
                    });
                }
            }
        }
        lines
    }
}

struct Scribe {
    world: World,
    relations: Vec<Arc<Relation>>,
    random: fastrand::Rng,
    /// One cut in so many places; 0 for none.
    cuts: u8,
}

impl Scribe {
    fn cut(&mut self) {
        if self.cuts > 0 && self.random.u8(0..self.cuts) == 0 {
            self.world.seal();
        }
    }

    fn what(&mut self, ordinal: u64) -> What {
        match self.random.u8(0..10) {
            0 => {
                let prefix = self.random.usize(0..3);
                self.world.writer.message(PREFIXES[prefix], b"content", Lsn(1)).expect("encodes");
                What::Message { prefix }
            }
            1 => {
                let tables: Vec<usize> = (0..4).filter(|_| self.random.bool()).collect();
                let tables = if tables.is_empty() { vec![1] } else { tables };
                let ids: Vec<u32> = tables.iter().map(|table| *table as u32 + 1).collect();
                self.world.writer.truncate(&ids, false, false, Lsn(1));
                What::Truncate { tables }
            }
            _ => {
                let table = if self.random.u8(0..6) == 0 { 3 } else { self.random.usize(0..3) };
                let operation = OPERATIONS[self.random.usize(0..3)];
                let values = [ordinal.to_string(), "v".repeat(self.random.usize(1..30))];
                let relation = self.relations[table].clone();
                self.world.change(&relation, operation, &[&values[0], &values[1]]);
                What::Change { table, operation, values }
            }
        }
    }

    fn write(&mut self, transactions: usize) -> Vec<Happened> {
        let mut history = Vec::new();
        for _ in 0..transactions {
            if self.random.u8(0..6) == 0 {
                let prefix = self.random.usize(0..3);
                let position = self.world.message_outside(PREFIXES[prefix], "content");
                history.push(Happened::Message { prefix, position });
                self.cut();
                continue;
            }
            let origin = usize::from(self.random.u8(0..4) == 0);
            self.world.begin(ORIGINS[origin]);
            let begin = self.world.writer.open_transaction().map(|(open, _)| open.commit_lsn.to_string());
            let mut events = Vec::new();
            for ordinal in 1..=self.random.u64(1..7) {
                events.push((ordinal, self.what(ordinal)));
                self.cut();
            }
            let discarded = self.random.u8(0..10) == 0;
            let end = if discarded {
                self.world.writer.discard("republished");
                None
            } else {
                Some(self.world.commit())
            };
            self.cut();
            history.push(Happened::Transaction { begin: begin.unwrap_or_default(), origin, events, end });
        }
        // A last one that nobody can take for anything else, so that every stream has an end to wait for.
        let position = self.world.message_outside("walcast.end", "");
        self.world.seal();
        history.push(Happened::Message { prefix: 2, position });
        history
    }
}

/// Without discarded transactions at the beginning: a feed may place a stream behind them.
fn happened(mut lines: &[String]) -> &[String] {
    while lines.first().is_some_and(|line| line.starts_with("begin")) {
        match lines.iter().position(|line| line.starts_with("commit") || line == "discard") {
            Some(end) if lines[end] == "discard" => lines = &lines[end + 1..],
            _ => break,
        }
    }
    lines
}

fn positions(history: &[Happened]) -> Vec<Position> {
    let ends = history.iter().filter_map(|happened| match happened {
        Happened::Transaction { end, .. } => *end,
        Happened::Message { position, .. } => Some(*position),
    });
    std::iter::once(at(100)).chain(ends).collect()
}

async fn history_of(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let world = World::new();
    world.publish(&TABLES);
    let relations =
        TABLES.iter().enumerate().map(|(index, table)| world.relation(index as u32 + 1, table, &["id", "v"])).collect();
    let cuts = random.u8(0..5);
    let mut scribe = Scribe { world, relations, random: random.fork(), cuts };
    let history = scribe.write(random.usize(1..15));
    let world = scribe.world;
    let ends = positions(&history);
    let end = world.feed.tail();
    for _ in 0..6 {
        let asked = asked(&mut random);
        let start = ends[random.usize(0..ends.len())];
        world.feed.hot_from.store(random.u64(0..10), Ordering::Relaxed);
        let request = Subscription {
            filter: asked.filter.clone(),
            max_message_bytes: random.bool().then(|| random.u32(150..400)),
            credits: random.bool(),
            row_format: RowFormat::Compact,
            progress_interval: Some(std::time::Duration::from_millis(10)),
            ..after(start)
        };
        let mut client = world.open(request.clone()).await;
        let handle = client.session.handle();
        let granting = tokio::spawn({
            let mut random = random.fork();
            async move {
                loop {
                    handle.grant(random.u64(1..4), random.u64(1..400));
                    tokio::task::yield_now().await;
                }
            }
        });
        let lines = client.until(end).await;
        granting.abort();
        let expected = asked.stream(&history, start);
        assert_eq!(happened(&lines), happened(&expected), "seed {seed}, after {start}, {request:#?}");
    }
}

#[tokio::test]
async fn streams_equal_the_model() {
    for seed in 0..300 {
        history_of(seed).await;
    }
}

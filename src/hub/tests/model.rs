//! For random histories, filters, predicates, block cuts, message limits, credits and start positions a stream is what
//! the filter selects of each transaction behind the start, one transaction after the other; whether the history was
//! there before the stream, or is written while streams follow it and the router finds out for them what concerns whom.

use std::sync::{Arc, OnceLock, atomic::Ordering};

use crate::{
    feed::Feed,
    hub::{RowFormat, Subscription, testing::*},
    lsn::Lsn,
    model::{Operation, Position, Relation},
    selection::{Filter, TableRule},
    wire::pb,
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
    Change { table: usize, operation: Operation, old: Row, new: Row },
    Truncate { tables: Vec<usize> },
    Message { prefix: usize },
}

type Row = [String; 2];

/// A predicate as text, and what it means.
#[derive(Clone, Copy)]
struct Where(&'static str, fn(&Row) -> bool);

/// On any table: its key is its first column.
const ON_KEY: [Where; 4] = [
    Where("id = '2'", |row| row[0] == "2"),
    Where("'3'=ID and not id is null", |row| row[0] == "3"),
    Where("id > '3'", |row| *row[0] > *"3"),
    Where("id in ('1', '4')", |row| row[0] == "1" || row[0] == "4"),
];

/// On the table with REPLICA IDENTITY FULL.
const ON_ROW: [Where; 5] = [
    Where("v = 'a'", |row| row[1] == "a"),
    Where("v = 'b' AND id <> '2'", |row| row[1] == "b" && row[0] != "2"),
    Where("NOT v = 'c'", |row| row[1] != "c"),
    Where("v LIKE 'a%' OR id = '3'", |row| row[1].starts_with('a') || row[0] == "3"),
    Where("v BETWEEN 'b' AND 'c'", |row| row[1] == "b" || row[1] == "c"),
];

/// The table with REPLICA IDENTITY FULL.
const FULL: usize = 1;

/// What a stream asks for, in terms of the history rather than of globs.
struct Asked {
    filter: Option<Filter>,
    tables: Vec<usize>,
    operations: Vec<Operation>,
    narrow: bool,
    predicates: [Option<Where>; 3],
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
        predicates: [None; 3],
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
        filter.columns = vec!["*.id".to_owned()];
    }
    if random.bool() {
        let everywhere = ON_KEY[random.usize(0..4)];
        asked.predicates = [Some(everywhere); 3];
        filter.predicate = everywhere.0.to_owned();
    }
    for (table, name) in TABLES.iter().enumerate().take(3) {
        if random.bool() {
            let predicate = match table {
                FULL => ON_ROW[random.usize(0..5)],
                _ => ON_KEY[random.usize(0..4)],
            };
            asked.predicates[table] = Some(predicate);
            filter.rules.push(TableRule {
                tables: (*name).to_owned(),
                columns: filter.columns.clone(),
                predicate: predicate.0.to_owned(),
                operations: filter.operations.clone(),
            });
        }
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
            What::Change { table, operation, old, new } => {
                if !self.tables.contains(table) || !self.operations.contains(operation) {
                    return None;
                }
                let transition = match self.predicates[*table] {
                    None => "",
                    Some(Where(_, holds)) => match (*operation, holds(old), holds(new)) {
                        (Operation::Insert, _, true) | (Operation::Update, false, true) => "_ENTER",
                        (Operation::Update, true, true) => "_STAY",
                        (Operation::Update, true, false) | (Operation::Delete, true, _) => "_LEAVE",
                        _ => return None,
                    },
                };
                let image = |row: &Row, key: bool| match (self.narrow, key) {
                    (true, _) => format!(" [{}]", row[0]),
                    (false, true) => format!(" [{} -]", row[0]),
                    (false, false) => format!(" [{} {}]", row[0], row[1]),
                };
                let images = match *operation {
                    Operation::Delete => image(old, *table != FULL),
                    Operation::Update if *table == FULL => image(old, false) + &image(new, false),
                    _ => image(new, false),
                };
                format!("{ordinal} {} {}{images}{transition}", operations[*operation as usize], TABLES[*table])
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
    /// Streams run in between, and blocks get cold.
    live: bool,
}

impl Scribe {
    fn new(world: World, random: &mut fastrand::Rng, live: bool) -> Self {
        world.publish(&TABLES);
        let version = |(index, table): (usize, &&str)| match index {
            FULL => world.full_relation(index as u32 + 1, table, &["id", "v"]),
            _ => world.relation(index as u32 + 1, table, &["id", "v"]),
        };
        let relations = TABLES.iter().enumerate().map(version).collect();
        Scribe { world, relations, cuts: random.u8(0..5), random: random.fork(), live }
    }

    async fn cut(&mut self) {
        if self.cuts > 0 && self.random.u8(0..self.cuts) == 0 {
            self.world.seal();
        }
        if self.live {
            for _ in 0..self.random.usize(0..20) {
                tokio::task::yield_now().await;
            }
            if self.random.u8(0..20) == 0 {
                let next = self.world.feed.marks().borrow().next_block;
                self.world.feed.hot_from.store(next.saturating_sub(self.random.u64(0..5)), Ordering::Relaxed);
            }
        }
    }

    fn what(&mut self) -> What {
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
                let relation = self.relations[table].clone();
                let new = [self.random.u8(1..6).to_string(), self.random.char('a'..='c').to_string()];
                let [id, v] = [new[0].as_str(), new[1].as_str()];
                if table != FULL || operation == Operation::Insert {
                    let long = if table == FULL { v.to_owned() } else { v.repeat(self.random.usize(1..30)) };
                    self.world.change(&relation, operation, &[id, &long]);
                    let new = [id.to_owned(), long];
                    return What::Change { table, operation, old: new.clone(), new };
                }
                let old = [self.random.u8(1..6).to_string(), self.random.char('a'..='c').to_string()];
                let update = operation == Operation::Update;
                self.world.change_full(&relation, &[&old[0], &old[1]], update.then_some(&[id, v]));
                What::Change { table, operation, old, new }
            }
        }
    }

    async fn write(&mut self, transactions: usize) -> Vec<Happened> {
        let mut history = Vec::new();
        for _ in 0..transactions {
            if self.random.u8(0..6) == 0 {
                let prefix = self.random.usize(0..3);
                let position = self.world.message_outside(PREFIXES[prefix], "content");
                history.push(Happened::Message { prefix, position });
                self.cut().await;
                continue;
            }
            let origin = usize::from(self.random.u8(0..4) == 0);
            self.world.begin(ORIGINS[origin]);
            let begin = self.world.writer.open_transaction().map(|(open, _)| open.commit_lsn.to_string());
            let mut events = Vec::new();
            for ordinal in 1..=self.random.u64(1..7) {
                events.push((ordinal, self.what()));
                self.cut().await;
            }
            let discarded = self.random.u8(0..10) == 0;
            let end = if discarded {
                self.world.writer.discard("republished");
                None
            } else {
                Some(self.world.commit())
            };
            self.cut().await;
            history.push(Happened::Transaction { begin: begin.unwrap_or_default(), origin, events, end });
        }
        history
    }

    fn end(&mut self, history: &mut Vec<Happened>) -> Position {
        // A last one that nobody can take for anything else, so that every stream has an end to wait for.
        let position = self.world.message_outside("walcast.end", "");
        self.world.seal();
        history.push(Happened::Message { prefix: 2, position });
        position
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

fn request(asked: &Asked, start: Position, random: &mut fastrand::Rng) -> Subscription {
    Subscription {
        filter: asked.filter.clone(),
        max_message_bytes: random.bool().then(|| random.u32(150..400)),
        credits: random.bool(),
        row_format: RowFormat::Compact,
        progress_interval: Some(std::time::Duration::from_millis(10)),
        ..after(start)
    }
}

/// The lines of a stream up to its end, which may not be known yet.
async fn read(mut client: Client, end: Arc<OnceLock<Position>>, mut random: fastrand::Rng) -> Vec<String> {
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
    let mut lines = Vec::new();
    loop {
        match client.event().await {
            pb::event::Kind::Progress(progress) => {
                let told = position(&progress.position);
                if let Some(end) = end.get().filter(|end| told.order() >= end.order()) {
                    assert_eq!(told, *end);
                    break;
                }
            }
            event => lines.extend(client.line(&event)),
        }
        for _ in 0..random.usize(0..3) {
            tokio::task::yield_now().await;
        }
    }
    granting.abort();
    lines
}

async fn history_of(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut scribe = Scribe::new(World::new(), &mut random, false);
    let mut history = scribe.write(random.usize(1..15)).await;
    let end = Arc::new(OnceLock::from(scribe.end(&mut history)));
    let world = scribe.world;
    let ends = positions(&history);
    for _ in 0..6 {
        let asked = asked(&mut random);
        let start = ends[random.usize(0..ends.len())];
        world.feed.hot_from.store(random.u64(0..10), Ordering::Relaxed);
        let request = request(&asked, start, &mut random);
        let client = world.open(request.clone()).await;
        let lines = read(client, end.clone(), random.fork()).await;
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

async fn followed(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut scribe = Scribe::new(World::new(), &mut random, true);
    let end = Arc::new(OnceLock::new());
    let mut history = Vec::new();
    let mut readers = Vec::new();
    for _ in 0..random.usize(1..5) {
        let ends = positions(&history);
        for _ in 0..4 {
            let asked = asked(&mut random);
            let start = ends[random.usize(0..ends.len())];
            let request = request(&asked, start, &mut random);
            let client = scribe.world.open(request.clone()).await;
            readers.push((asked, start, request, tokio::spawn(read(client, end.clone(), random.fork()))));
        }
        history.extend(scribe.write(random.usize(1..15)).await);
    }
    end.set(scribe.end(&mut history)).expect("set once");
    for (asked, start, request, lines) in readers {
        let lines = lines.await.unwrap_or_else(|error| panic!("seed {seed}, after {start}, {request:#?}: {error}"));
        let expected = asked.stream(&history, start);
        assert_eq!(happened(&lines), happened(&expected), "seed {seed}, after {start}, {request:#?}");
    }
}

#[tokio::test]
async fn streams_that_follow_equal_the_model() {
    for seed in 0..200 {
        followed(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn streams_that_follow_on_many_threads_equal_the_model() {
    for seed in 1000..1100 {
        followed(seed).await;
    }
}

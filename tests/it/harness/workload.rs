//! A random workload of several clients from one seed. Each committed transaction leaves a row in `load.ledger`, which
//! says afterwards what really happened, also where a client never heard the answer to its COMMIT.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio_postgres::Config;

use super::{
    Db,
    parsed::{Cell, Parsed, Violation},
    wait::eventually,
};

/// What the clients do.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub clients: u32,
    /// Stop after this many transactions of each client; 0 = until told.
    pub transactions: u32,
    /// Rows of a large transaction; 0 = none. About one transaction in 40 is large.
    pub large_rows: u32,
    /// ALTER TABLE in mid-stream by the first client.
    pub ddl: bool,
    /// Between two transactions of a client while nobody waits for commits.
    pub pause: Duration,
    /// Some transactions are prepared, and some of those stay in doubt for a while.
    pub prepared: bool,
    /// Number of the first client.
    pub first_client: u32,
}

impl Plan {
    /// The seed comes from `WALCAST_TEST_SEED` or the clock, and is printed.
    pub fn random() -> Plan {
        let given = std::env::var("WALCAST_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| fastrand::u64(..));
        println!("workload seed: WALCAST_TEST_SEED={seed}");
        Plan {
            seed,
            clients: 4,
            transactions: 0,
            large_rows: 0,
            ddl: true,
            prepared: false,
            pause: Duration::ZERO,
            first_client: 0,
        }
    }
}

impl Plan {
    /// The same plan for clients with other numbers, so that a later load leaves other ledger rows.
    pub fn renamed(self, round: u32) -> Plan {
        Plan { first_client: 1 + 100 * (round + 1), ddl: false, ..self }
    }
}

/// Tables of the workload; the publication must hold them.
pub const SCHEMA: &str = "
    CREATE SCHEMA load;
    CREATE TABLE load.ledger (
        txid xid8 NOT NULL DEFAULT pg_current_xact_id(), client int, n int, PRIMARY KEY (client, n));
    CREATE TABLE load.accounts (id int PRIMARY KEY, owner text NOT NULL, balance numeric(20, 4), active bool, note text);
    CREATE TABLE load.documents (id bigint PRIMARY KEY, title varchar(80), body text, revision int NOT NULL DEFAULT 0);
    ALTER TABLE load.documents ALTER COLUMN body SET STORAGE EXTERNAL;
    CREATE TABLE load.log (kind text, payload jsonb, weight float8, raw bytea);
    ALTER TABLE load.log REPLICA IDENTITY FULL;
    CREATE TABLE load.measurements (id int, bucket int, value float8, PRIMARY KEY (id, bucket)) PARTITION BY RANGE (bucket);
    CREATE TABLE load.measurements_low PARTITION OF load.measurements FOR VALUES FROM (MINVALUE) TO (50);
    CREATE TABLE load.measurements_high PARTITION OF load.measurements FOR VALUES FROM (50) TO (MAXVALUE);
    CREATE TABLE load.evolving (id int PRIMARY KEY, value int, revision int NOT NULL DEFAULT 0);
    CREATE TABLE load.scratch (id int PRIMARY KEY, data text);
    CREATE TABLE load.bulk (client int, n int, id int, data text, PRIMARY KEY (client, n, id));";

/// Leaf tables, as the stream names them without publish_via_partition_root.
pub const TABLES: &[&str] = &[
    "load.ledger",
    "load.accounts",
    "load.documents",
    "load.log",
    "load.measurements_low",
    "load.measurements_high",
    "load.scratch",
    "load.bulk",
    EVOLVING,
];

/// The table that DDL changes. Each such transaction sends every row again, so that a replica can follow.
const EVOLVING: &str = "load.evolving";

#[derive(Debug, Default)]
struct Counts {
    committed: AtomicU64,
    rolled_back: AtomicU64,
    failed: AtomicU64,
    unknown: AtomicU64,
    large: AtomicU64,
    ddl: AtomicU64,
    empty: AtomicU64,
    prepared: AtomicU64,
    savepoints: AtomicU64,
    partitions: AtomicU64,
    /// So many commits somebody waits for.
    awaited: AtomicU64,
}

/// What the clients heard.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    pub committed: u64,
    /// By the client's own choice.
    pub rolled_back: u64,
    /// By the server: conflicts, deadlocks, lost connections before COMMIT.
    pub failed: u64,
    /// The connection broke during COMMIT.
    pub unknown: u64,
    pub large: u64,
    pub ddl: u64,
    /// Committed with a transaction id and without a change; not among `committed`.
    pub empty: u64,
    /// Ended by COMMIT PREPARED or ROLLBACK PREPARED, or about to be.
    pub prepared: u64,
    /// Transactions with one, kept or rolled back to.
    pub savepoints: u64,
    /// Transactions that write into a partitioned table.
    pub partitions: u64,
}

impl std::ops::Add for Report {
    type Output = Report;

    fn add(self, other: Report) -> Report {
        Report {
            committed: self.committed + other.committed,
            rolled_back: self.rolled_back + other.rolled_back,
            failed: self.failed + other.failed,
            unknown: self.unknown + other.unknown,
            large: self.large + other.large,
            ddl: self.ddl + other.ddl,
            empty: self.empty + other.empty,
            prepared: self.prepared + other.prepared,
            savepoints: self.savepoints + other.savepoints,
            partitions: self.partitions + other.partitions,
        }
    }
}

impl Report {
    /// Whether nothing that the workload knows was left out.
    pub fn has_everything(&self) -> bool {
        let kinds =
            [self.rolled_back, self.large, self.ddl, self.empty, self.prepared, self.savepoints, self.partitions];
        self.committed > 0 && kinds.iter().all(|kind| *kind > 0)
    }
}

/// Running clients.
pub struct Workload {
    plan: Plan,
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    clients: JoinSet<()>,
}

impl Workload {
    /// Starts the clients on tables made with [`SCHEMA`]. They reconnect when the server goes away.
    pub fn start(config: Config, plan: Plan) -> Workload {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let mut clients = JoinSet::new();
        for client in 0..plan.clients {
            let random = Rng::with_seed(plan.seed ^ u64::from(client).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let worker = Client::new(plan.first_client + client, random, plan, counts.clone());
            clients.spawn(worker.work(config.clone(), stop.clone()));
        }
        Workload { plan, stop, counts, clients }
    }

    pub fn seed(&self) -> u64 {
        self.plan.seed
    }

    pub fn report(&self) -> Report {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Report {
            committed: get(&self.counts.committed),
            rolled_back: get(&self.counts.rolled_back),
            failed: get(&self.counts.failed),
            unknown: get(&self.counts.unknown),
            large: get(&self.counts.large),
            ddl: get(&self.counts.ddl),
            empty: get(&self.counts.empty),
            prepared: get(&self.counts.prepared),
            savepoints: get(&self.counts.savepoints),
            partitions: get(&self.counts.partitions),
        }
    }

    /// Waits until the clients have heard of this many commits.
    pub async fn commits(&self, at_least: u64, deadline: Duration) {
        self.counts.awaited.fetch_max(at_least, Ordering::Relaxed);
        eventually(deadline, || async {
            let report = self.report();
            if report.committed >= at_least { Ok(()) } else { Err(report) }
        })
        .await;
    }

    /// Tells the clients to stop after their transaction, and waits for them.
    pub async fn stop(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a workload client");
        }
        self.report()
    }

    /// Waits until every client has done its number of transactions.
    pub async fn done(mut self) -> Report {
        assert!(self.plan.transactions > 0, "this plan has no end");
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a workload client");
        }
        self.report()
    }
}

struct Client {
    number: u32,
    n: u32,
    random: Rng,
    plan: Plan,
    counts: Arc<Counts>,
    doubt: Option<Doubt>,
}

/// A prepared transaction of a client that goes on with others. Those touch nothing that it may have locked.
struct Doubt {
    gid: String,
    /// Transactions until it ends.
    left: u32,
    commit: bool,
}

impl Client {
    fn new(number: u32, random: Rng, plan: Plan, counts: Arc<Counts>) -> Client {
        Client { number, n: 0, random, plan, counts, doubt: None }
    }

    async fn work(mut self, config: Config, stop: Arc<AtomicBool>) {
        let mut connection: Option<Db> = None;
        if self.number == 0
            && let Ok(db) = Db::open(&config).await
        {
            let rows =
                format!("INSERT INTO {EVOLVING} SELECT i, i FROM generate_series(1, 5) i ON CONFLICT DO NOTHING");
            let _ = db.batch_execute(&rows).await;
        }
        while !stop.load(Ordering::Relaxed) && (self.plan.transactions == 0 || self.n < self.plan.transactions) {
            let db = match connection.take().filter(|db| !db.is_closed()) {
                Some(db) => db,
                None => match Db::open(&config).await {
                    Ok(db) => db,
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                },
            };
            self.n += 1;
            self.transaction(&db).await;
            connection = Some(db);
            let awaited =
                || self.counts.awaited.load(Ordering::Relaxed) > self.counts.committed.load(Ordering::Relaxed);
            let begun = Instant::now();
            while begun.elapsed() < self.plan.pause && !awaited() && !stop.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        if let (Some(db), Some(doubt)) = (connection, self.doubt.take()) {
            self.end_doubt(&db, doubt).await;
        }
    }

    async fn end_doubt(&mut self, db: &Db, doubt: Doubt) {
        let (end, counter) = match doubt.commit {
            true => ("COMMIT", &self.counts.committed),
            false => ("ROLLBACK", &self.counts.rolled_back),
        };
        self.count(db.batch_execute(&format!("{end} PREPARED '{}'", doubt.gid)).await, counter);
    }

    /// A transaction that was told to end.
    fn count(&self, ended: Result<(), tokio_postgres::Error>, counter: &AtomicU64) {
        let counter = match ended {
            Ok(()) => counter,
            Err(error) if error.as_db_error().is_some_and(|db| !db.code().code().starts_with("57P")) => {
                &self.counts.failed
            }
            Err(_) => &self.counts.unknown,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// One transaction; whatever goes wrong in it is counted and left behind.
    async fn transaction(&mut self, db: &Db) {
        if self.random.u32(..25) == 0 {
            if db.batch_execute("BEGIN; SELECT pg_current_xact_id(); COMMIT").await.is_ok() {
                self.counts.empty.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        let roll_back = self.random.u32(..12) == 0;
        let statements = if self.doubt.is_some() { self.apart() } else { self.statements() };
        for (words, counter) in [("SAVEPOINT", &self.counts.savepoints), ("load.measurements", &self.counts.partitions)]
        {
            let does = statements.iter().any(|statement| statement.contains(words));
            counter.fetch_add(u64::from(does), Ordering::Relaxed);
        }
        let ledger = format!("INSERT INTO load.ledger (client, n) VALUES ({}, {})", self.number, self.n);
        let body = async {
            db.batch_execute("BEGIN").await?;
            for statement in &statements {
                db.batch_execute(statement).await?;
            }
            db.batch_execute(&ledger).await
        };
        if body.await.is_err() {
            self.counts.failed.fetch_add(1, Ordering::Relaxed);
            let _ = db.batch_execute("ROLLBACK").await;
        } else if self.plan.prepared && self.doubt.is_none() && !roll_back && self.random.u32(..10) == 0 {
            self.prepare(db).await;
        } else if roll_back {
            self.count(db.batch_execute("ROLLBACK").await, &self.counts.rolled_back);
        } else {
            self.count(db.batch_execute("COMMIT").await, &self.counts.committed);
        }
        match self.doubt.take() {
            Some(doubt) if doubt.left == 0 => self.end_doubt(db, doubt).await,
            Some(doubt) => self.doubt = Some(Doubt { left: doubt.left - 1, ..doubt }),
            None => {}
        }
    }

    async fn prepare(&mut self, db: &Db) {
        let gid = format!("client {} number {}", self.number, self.n);
        match db.batch_execute(&format!("PREPARE TRANSACTION '{gid}'")).await {
            Ok(()) => {
                self.counts.prepared.fetch_add(1, Ordering::Relaxed);
                let left = self.random.u32(..6).saturating_sub(3);
                self.doubt = Some(Doubt { gid, left, commit: self.random.u32(..4) > 0 });
            }
            // The server rolls back what it cannot prepare.
            Err(_) => drop(self.counts.failed.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// A statement that waits for nobody.
    fn apart(&self) -> Vec<String> {
        vec![format!("INSERT INTO load.bulk VALUES ({}, {}, 0, 'apart')", self.number, self.n)]
    }

    fn statements(&mut self) -> Vec<String> {
        if self.plan.large_rows > 0 && self.random.u32(..40) == 0 {
            self.counts.large.fetch_add(1, Ordering::Relaxed);
            return vec![format!(
                "INSERT INTO load.bulk SELECT {}, {}, i, md5(i::text) FROM generate_series(1, {}) i",
                self.number, self.n, self.plan.large_rows
            )];
        }
        if self.plan.ddl && self.number == self.plan.first_client && self.random.u32(..15) == 0 {
            self.counts.ddl.fetch_add(1, Ordering::Relaxed);
            return self.ddl();
        }
        let count = self.random.u32(1..6);
        (0..count).map(|_| self.statement()).collect()
    }

    fn statement(&mut self) -> String {
        let random = &mut self.random;
        let (id, other, word) = (random.u32(..60), random.u32(..60), random.u32(..));
        match random.u32(..24) {
            0..4 => format!(
                "INSERT INTO load.accounts VALUES ({id}, 'owner {word}', {}.{}, {}, NULL) \
                 ON CONFLICT (id) DO UPDATE SET balance = excluded.balance, note = 'again {word}'",
                random.i32(-1_000_000..1_000_000),
                random.u32(1000..9999),
                random.bool()
            ),
            4 => format!(
                "UPDATE load.accounts SET id = {id} + 100 WHERE id = {id} \
                 AND NOT EXISTS (SELECT FROM load.accounts WHERE id = {id} + 100)"
            ),
            5 => format!(
                "UPDATE load.accounts SET id = id - 100 WHERE id = {id} + 100 \
                 AND NOT EXISTS (SELECT FROM load.accounts WHERE id = {id})"
            ),
            6 => format!("DELETE FROM load.accounts WHERE id = {other}"),
            7 => format!("UPDATE load.accounts SET active = NOT active, note = NULL WHERE id IN ({id}, {other})"),
            8 => format!(
                "INSERT INTO load.documents VALUES ({id}, 'töst {word} ✓', repeat('{word:x}', {}), 0) \
                 ON CONFLICT (id) DO UPDATE SET revision = load.documents.revision + 1",
                random.u32(1..4000)
            ),
            9 => format!("UPDATE load.documents SET revision = revision + 1 WHERE id = {id}"),
            10 => format!("UPDATE load.documents SET body = repeat('{word:x}', 900), title = '' WHERE id = {id}"),
            11..13 => format!(
                "INSERT INTO load.log VALUES ('kind {}', '{{\"n\": {word}, \"s\": \"x\\ty\"}}', {}, '\\x{word:08x}')",
                id % 5,
                ["'NaN'", "'-Infinity'", "0.1", "1e300", "NULL"][random.usize(..5)]
            ),
            13 => "DELETE FROM load.log WHERE ctid = (SELECT ctid FROM load.log ORDER BY random() LIMIT 1)".into(),
            14 => "UPDATE load.log SET kind = 'changed' \
                   WHERE ctid = (SELECT ctid FROM load.log ORDER BY random() LIMIT 1)"
                .into(),
            15 => format!(
                "INSERT INTO load.measurements VALUES ({id}, {}, {}) ON CONFLICT DO NOTHING",
                random.u32(..100),
                random.f64()
            ),
            16 => format!(
                "UPDATE load.measurements SET bucket = 99 - bucket WHERE id = {id} AND NOT EXISTS \
                 (SELECT FROM load.measurements m WHERE m.id = {id} AND m.bucket = 99 - load.measurements.bucket)"
            ),
            17 => format!(
                "SAVEPOINT s; INSERT INTO load.scratch VALUES ({word} % 2000000000, 'rolled back'); \
                 UPDATE load.accounts SET note = 'never' WHERE id = {id}; ROLLBACK TO s"
            ),
            18 => format!(
                "SAVEPOINT s; INSERT INTO load.scratch VALUES ({id}, 'kept {word}') ON CONFLICT DO NOTHING; RELEASE s"
            ),
            19 => format!("UPDATE {EVOLVING} SET revision = revision + 1 WHERE id = {}", id % 5 + 1),
            20 => format!("SELECT pg_logical_emit_message({}, 'load.{}', 'm{word}')", random.bool(), id % 3),
            21 => format!(
                "UPDATE load.documents SET id = {id} - 100 WHERE id = {id} \
                 AND NOT EXISTS (SELECT FROM load.documents WHERE id = {id} - 100)"
            ),
            22 => format!(
                "UPDATE load.documents SET id = id + 100 WHERE id = {id} - 100 \
                 AND NOT EXISTS (SELECT FROM load.documents WHERE id = {id})"
            ),
            _ if id < 6 => "TRUNCATE load.scratch".into(),
            _ => format!(
                "INSERT INTO load.scratch VALUES ({id} + 1000, 's') ON CONFLICT (id) DO UPDATE SET data = 'u{word}'"
            ),
        }
    }

    /// A new shape for `load.evolving`, and every row in it once more, so that a replica follows without a snapshot.
    fn ddl(&mut self) -> Vec<String> {
        let change = match self.random.u32(..4) {
            0 => format!("ADD COLUMN extra{} text", self.n),
            1 => {
                return Self::evolve(
                    "DO $$ DECLARE c text; BEGIN \
                   SELECT attname INTO c FROM pg_attribute WHERE attrelid = 'load.evolving'::regclass \
                     AND attname LIKE 'extra%' AND NOT attisdropped LIMIT 1; \
                   IF c IS NOT NULL THEN EXECUTE format('ALTER TABLE load.evolving DROP COLUMN %I', c); END IF; END $$",
                );
            }
            2 => {
                return Self::evolve(&format!(
                    "DO $$ DECLARE c text; BEGIN \
                   SELECT attname INTO c FROM pg_attribute WHERE attrelid = 'load.evolving'::regclass \
                     AND attname LIKE 'extra%' AND NOT attisdropped LIMIT 1; \
                   IF c IS NOT NULL THEN EXECUTE format('ALTER TABLE load.evolving RENAME COLUMN %I TO extra_renamed{}', c); \
                   END IF; END $$",
                    self.n
                ));
            }
            _ => {
                let kind = ["int", "bigint", "numeric", "text"][self.random.usize(..4)];
                format!("ALTER COLUMN value TYPE {kind} USING value::{kind}")
            }
        };
        Self::evolve(&format!("ALTER TABLE {EVOLVING} {change}"))
    }

    fn evolve(change: &str) -> Vec<String> {
        vec![change.to_owned(), format!("UPDATE {EVOLVING} SET revision = revision + 1")]
    }
}

/// The ledger against the stream: the same (client, n), each under the same 64-bit transaction id. Returns how many.
pub async fn ledger_agrees(db: &Db, parsed: &Parsed<'_>) -> Result<usize, Violation> {
    let mut streamed: BTreeMap<(i64, i64), u64> = BTreeMap::new();
    for span in parsed.transactions() {
        for item in &span.items {
            if item.what.tables() == ["load.ledger"]
                && let (Some(Cell::Int(client)), Some(Cell::Int(n))) = (item.what.get("client"), item.what.get("n"))
            {
                streamed.insert((*client, *n), span.xid);
            }
        }
    }
    let mut source: BTreeMap<(i64, i64), u64> = BTreeMap::new();
    for row in db.rows("SELECT client, n, txid FROM load.ledger").await {
        let number = |column: usize| row[column].as_ref().expect("not null").parse::<i64>().expect("a number");
        source.insert((number(0), number(1)), number(2) as u64);
    }
    if streamed == source {
        return Ok(source.len());
    }
    let missing: Vec<_> = source.iter().filter(|(key, xid)| streamed.get(key) != Some(xid)).take(5).collect();
    let surplus: Vec<_> = streamed.iter().filter(|(key, xid)| source.get(key) != Some(xid)).take(5).collect();
    let text = format!(
        "{} ledger rows in the stream, {} in the source; missing or other xid: {missing:?}; surplus: {surplus:?}",
        streamed.len(),
        source.len()
    );
    Err(Violation::new("Complete (ledger)", text))
}

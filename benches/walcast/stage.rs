//! One cluster, backlogs in its WAL, and those who drain them: the hub with its subscribers, and PostgreSQL's own
//! client. Everybody reads a copy of the same slot, so from the same LSN.

use std::{
    path::Path,
    process::{Child, Stdio},
};

use super::{
    client::{From, Orders, Report, Until},
    events,
    harness::{
        Cluster, Db, Hub, client,
        process::{self, Account},
        truth, validators, versions, wait,
    },
    proc::{self, Client, Watch, now_us},
};

pub struct Stage {
    pub cluster: Cluster,
    pub db: Db,
    copies: u32,
}

/// Committed changes behind a slot.
pub struct Backlog {
    pub slot: String,
    pub end: String,
    pub changes: u64,
    /// Of the first column, in order.
    pub hash: u64,
}

/// What one run cost.
#[derive(Clone, Default, Debug)]
pub struct Cost {
    /// Seconds from starting the process that reads to the last change at its sink.
    pub wall: f64,
    /// CPU seconds.
    pub walsender: f64,
    pub reader: f64,
    pub client: f64,
    /// Peak resident bytes of the reader; of several together.
    pub rss: u64,
    /// Bytes that the subscribers' sockets received.
    pub bytes: u64,
}

/// The shapes of transactions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Rows of about 160 bytes, this many per transaction.
    Small(u64),
    /// 20 columns, 100 rows per transaction.
    Wide,
    /// 2 kB of text, 100 rows per transaction.
    Text,
    /// Eight columns of different types, of which the last is NULL in every tenth row, 100 rows per transaction.
    Mixed,
}

impl Shape {
    fn columns(self) -> String {
        match self {
            Shape::Small(_) => "id int8, a int4, b int4, filler text".to_owned(),
            Shape::Wide => {
                let rest: Vec<String> = (1..20).map(|n| format!("c{n} {}", ["int4", "text", "int8"][n % 3])).collect();
                format!("id int8, {}", rest.join(", "))
            }
            Shape::Text => "id int8, filler text".to_owned(),
            Shape::Mixed => {
                "id int8, branch int4, account int4, delta numeric(12,2), ratio float8, paid bool, mtime timestamptz, \
                             note text"
                    .to_owned()
            }
        }
    }

    fn values(self) -> String {
        match self {
            Shape::Small(_) => "n, n % 1000, n % 7, rpad(md5(n::text), 128, 'x')".to_owned(),
            Shape::Wide => {
                let rest: Vec<&str> = (1..20).map(|n| ["n % 1000", "'value ' || n", "n * 7"][n % 3]).collect();
                format!("n, {}", rest.join(", "))
            }
            Shape::Text => "n, repeat(md5(n::text), 64)".to_owned(),
            Shape::Mixed => "n, n % 10, n % 100000, (n % 10000) / 100.0, n / 7.0, n % 2 = 0, \
                             timestamptz '2026-01-01 00:00:00Z' + n * interval '1 ms', \
                             CASE WHEN n % 10 > 0 THEN 'note ' || md5(n::text) END"
                .to_owned(),
        }
    }

    fn rows_per_transaction(self) -> u64 {
        match self {
            Shape::Small(rows) => rows,
            Shape::Wide | Shape::Text | Shape::Mixed => 100,
        }
    }
}

impl Stage {
    pub async fn new() -> Stage {
        let cluster = Cluster::with_settings(&[
            ("max_wal_senders", "70"),
            ("max_replication_slots", "70"),
            ("shared_buffers", "256MB"),
            ("max_wal_size", "64GB"),
            ("checkpoint_timeout", "1h"),
            ("autovacuum", "off"),
            ("wal_sender_timeout", "10min"),
        ]);
        let db = cluster.connect().await;
        db.run("CREATE PUBLICATION bench FOR ALL TABLES").await;
        Stage { cluster, db, copies: 0 }
    }

    pub fn postmaster(&self) -> u32 {
        let text = std::fs::read_to_string(self.cluster.data_dir().join("postmaster.pid")).expect("postmaster.pid");
        text.lines().next().and_then(|line| line.trim().parse().ok()).expect("a pid")
    }

    /// Inserts so many rows behind a new slot of this plugin.
    pub async fn backlog_for(&self, name: &str, shape: Shape, rows: u64, plugin: &str) -> Backlog {
        self.db.run(&format!("DROP TABLE IF EXISTS {name}; CREATE TABLE {name} ({})", shape.columns())).await;
        self.db.rows(&format!("SELECT pg_create_logical_replication_slot('{name}', '{plugin}')")).await;
        self.insert(name, shape, 1, rows).await;
        let end = self.db.lsn("pg_current_wal_flush_lsn()").await.to_string();
        let hash = (1..=rows as i64).fold(0, events::hash);
        Backlog { slot: name.to_owned(), end, changes: rows, hash }
    }

    pub async fn backlog(&self, name: &str, shape: Shape, rows: u64) -> Backlog {
        self.backlog_for(name, shape, rows, "pgoutput").await
    }

    /// Inserts rows with ids from `first`.
    pub async fn insert(&self, table: &str, shape: Shape, first: u64, rows: u64) {
        let per = shape.rows_per_transaction();
        let values = shape.values();
        let last = first + rows - 1;
        self.db
            .run(&format!(
                "DO $$ BEGIN PERFORM set_config('synchronous_commit', 'off', false);
                 FOR i IN 0 .. {} LOOP
                   INSERT INTO {table} SELECT {values}
                     FROM generate_series({first} + i * {per}, least({first} + (i + 1) * {per} - 1, {last})) n;
                   COMMIT;
                 END LOOP; END $$",
                rows.div_ceil(per) - 1
            ))
            .await;
        // A synchronous commit flushes everything in front of it.
        self.db.run("SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'flush', ''); RESET ALL").await;
    }

    /// A table with a primary key and so many rows, at rest.
    pub async fn table(&self, name: &str, shape: Shape, rows: u64) {
        self.db.run(&format!("DROP TABLE IF EXISTS {name}; CREATE TABLE {name} ({})", shape.columns())).await;
        self.insert(name, shape, 1, rows).await;
        self.db.run(&format!("ALTER TABLE {name} ADD PRIMARY KEY (id)")).await;
        self.db.run(&format!("VACUUM ANALYZE {name}")).await;
        self.db.run("CHECKPOINT").await;
    }

    /// Seconds that psql takes to copy a table and throw it away, and its CPU seconds.
    pub fn psql_copy(&self, table: &str) -> (f64, f64) {
        let mut command = process::command(&versions::bin_dir(self.cluster.major()).join("psql"), Account::Own, "KILL");
        command.args(["-X", "-d", &self.cluster.dsn(), "-c", &format!("COPY {table} TO STDOUT")]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let started = now_us();
        let mut child = process::spawn(command).expect("psql");
        let (cpu, well) = proc::wait(&mut child);
        assert!(well, "psql failed");
        ((now_us() - started) as f64 / 1e6, cpu)
    }

    /// PostgreSQL's own copy of a table into a pipe.
    pub fn psql_pipe(&self, table: &str) -> Child {
        let mut command = process::command(&versions::bin_dir(self.cluster.major()).join("psql"), Account::Own, "KILL");
        command.args(["-X", "-d", &self.cluster.dsn(), "-c", &format!("COPY {table} TO STDOUT")]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        process::spawn(command).expect("psql")
    }

    /// Age in seconds of the oldest transaction of the hub's.
    pub async fn oldest_transaction(&self) -> f64 {
        let sql =
            "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::text FROM pg_stat_activity
                   WHERE application_name LIKE 'walcast%' AND backend_type = 'client backend'";
        self.db.text(sql).await.and_then(|text| text.parse().ok()).unwrap_or(0.0)
    }

    pub async fn drop(&self, backlog: Backlog) {
        self.drop_slot(&backlog.slot).await;
        self.db.run(&format!("DROP TABLE {}", backlog.slot)).await;
    }

    /// A slot at the same position, for one reader.
    pub async fn copy(&mut self, backlog: &Backlog) -> String {
        self.copy_of(&backlog.slot).await
    }

    pub async fn copy_of(&mut self, slot: &str) -> String {
        self.copies += 1;
        let copy = format!("{slot}_{}", self.copies);
        self.db.rows(&format!("SELECT pg_copy_logical_replication_slot('{slot}', '{copy}')")).await;
        copy
    }

    /// Runs pgbench to its end.
    pub fn run_pgbench(&self, args: &[&str]) {
        let mut child = self.pgbench(args);
        assert!(proc::wait(&mut child).1, "pgbench {args:?} failed");
    }

    /// Its report comes through the pipe.
    pub fn pgbench(&self, args: &[&str]) -> Child {
        let bin = format!("/usr/lib/postgresql/{}/bin/pgbench", self.cluster.major());
        let mut command = process::command(Path::new(&bin), Account::Own, "KILL");
        command.args(["-h", "127.0.0.1", "-p", &self.cluster.port().to_string(), "-U", "postgres"]);
        command.args(args).arg("postgres");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        process::spawn(command).expect("pgbench")
    }

    pub async fn drop_slot(&self, slot: &str) {
        let free = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}' AND NOT active");
        wait::eventually(std::time::Duration::from_secs(60), || async {
            if self.db.number(&free).await == 1 { Ok(()) } else { Err("the slot is active") }
        })
        .await;
        self.db.rows(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    }

    /// The server process that serves a slot; 0 for none.
    pub async fn walsender(&self, slot: &str) -> u32 {
        let query = format!("SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = '{slot}'");
        self.db.number(&query).await as u32
    }

    /// The server process that serves a slot, once one does.
    pub async fn serving(&self, slot: &str) -> u32 {
        wait::eventually(std::time::Duration::from_secs(60), || async {
            match self.walsender(slot).await {
                0 => Err("no walsender"),
                pid => Ok(pid),
            }
        })
        .await
    }

    /// PostgreSQL's own client. Ends by itself at `end`, if given.
    pub fn recvlogical(&self, slot: &str, end: Option<&str>, file: &str) -> Child {
        let bin = versions::bin_dir(self.cluster.major()).join("pg_recvlogical");
        let installed = format!("/usr/lib/postgresql/{}/bin/pg_recvlogical", self.cluster.major());
        let bin = if bin.exists() { bin } else { Path::new(&installed).to_owned() };
        let mut command = process::command(&bin, Account::Own, "KILL");
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-d", "postgres", "--no-loop", "--start", "--slot", slot]);
        command.args(["-p", &self.cluster.port().to_string(), "-f", file]);
        command.args(["-o", "proto_version=1", "-o", "publication_names=bench", "-o", "messages=true"]);
        if let Some(end) = end {
            command.args(["--endpos", end]);
        }
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command.stdout(if file == "-" { Stdio::piped() } else { Stdio::null() });
        process::spawn(command).expect("pg_recvlogical")
    }

    /// So many of PostgreSQL's clients at once, each on a slot of its own.
    pub async fn direct(&mut self, backlog: &Backlog, slots: usize) -> Cost {
        let mut copies = Vec::new();
        for _ in 0..slots {
            copies.push(self.copy(backlog).await);
        }
        let postmaster = self.postmaster();
        let (before, started) = (proc::cpu_of_children(postmaster), now_us());
        let mut children: Vec<Child> =
            copies.iter().map(|slot| self.recvlogical(slot, Some(&backlog.end), "/dev/null")).collect();
        let watch = Watch::start(children.iter().map(Child::id).collect());
        let mut cost = Cost::default();
        for child in &mut children {
            let (cpu, well) = proc::wait(child);
            assert!(well, "pg_recvlogical failed");
            cost.reader += cpu;
        }
        cost.wall = (now_us() - started) as f64 / 1e6;
        cost.rss = watch.end();
        for slot in &copies {
            self.drop_slot(slot).await;
        }
        let reaped = || proc::cpu_of_children(postmaster) - before;
        let mut last = -1.0;
        while last != reaped() {
            last = reaped();
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        cost.walsender = last;
        cost
    }

    /// A hub on this slot with an empty journal; not started.
    pub fn hub(&self, slot: &str, args: &[&str]) -> Hub {
        Hub::new(&self.cluster.dsn()).args(&["--slot", slot, "--publication", "bench"]).args(args)
    }

    /// What a hub makes of a backlog, by the tests' validators.
    pub async fn validate(&mut self, backlog: &Backlog) {
        let slot = self.copy(backlog).await;
        let mut hub = self.hub(&slot, &[]);
        hub.start().await;
        let (report, _) = Client::start(&orders(&hub, 1, From::Earliest, Until::Changes(backlog.changes))).finish();
        check(backlog, &report);
        validate(self, &hub, &backlog.slot).await;
        hub.kill9();
        drop(hub);
        self.drop_slot(&slot).await;
    }

    /// The hub with an empty journal and so many subscribers from its beginning, all started together.
    pub async fn through_hub(&mut self, backlog: &Backlog, subscribers: usize) -> Cost {
        let slot = self.copy(backlog).await;
        let mut hub = self.hub(&slot, &[]);
        let started = now_us();
        hub.spawn();
        let orders = orders(&hub, subscribers, From::Earliest, Until::Changes(backlog.changes));
        let (report, client) = Client::start(&orders).finish();
        check(backlog, &report);
        let cost = Cost {
            wall: (report.end_us - started) as f64 / 1e6,
            walsender: proc::cpu(self.walsender(&slot).await),
            reader: proc::cpu(hub.pid()),
            client,
            rss: proc::memory(hub.pid(), "VmHWM"),
            bytes: report.bytes,
        };
        hub.kill9();
        drop(hub);
        self.drop_slot(&slot).await;
        cost
    }
}

/// Records everything that a hub has, and holds it against every guarantee that the tests' validators know, and against
/// PostgreSQL's own account of what is behind a slot.
pub async fn validate(stage: &Stage, hub: &Hub, slot: &str) {
    let mut stream =
        client::Client::new(hub.grpc_port()).subscribe(&client::Request::new().earliest().stop_at_tail()).await;
    while stream.pull().await {}
    let truth = truth::read_from(&stage.cluster, "postgres", "bench", slot).await;
    assert!(truth.changes() > 0, "slot {slot} has nothing to compare with");
    let end = stream.log.position().map(|position| position.lsn.parse::<walcast::lsn::Lsn>().expect("an LSN"));
    assert!(
        end >= Some(truth.end()),
        "the stream ends at {end:?}, the source at {}: {}",
        truth.end(),
        stream.describe()
    );
    let history = stream.close();
    if let Err(violation) = validators::all(&history, &truth) {
        panic!("{violation}");
    }
}

pub fn orders(hub: &Hub, streams: usize, start: From, until: Until) -> Orders {
    Orders { port: hub.grpc_port(), streams, start, until, ..Orders::default() }
}

/// Everything came, once and in order.
pub fn check(backlog: &Backlog, report: &Report) {
    assert_eq!((report.changes, report.hash), (backlog.changes, backlog.hash), "changes at the sink");
}

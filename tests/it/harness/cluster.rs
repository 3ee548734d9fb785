//! Private PostgreSQL clusters. `initdb` runs once per version and process; a test gets a copy.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Condvar, Mutex, OnceLock},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::{
    process::{self, Account},
    versions,
    wait::{eventually, eventually_blocking},
};

/// How `pg_ctl stop -m` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// SIGINT: sessions end, a shutdown checkpoint is written, walsenders are waited for.
    Fast,
    /// SIGQUIT: as a crash; the next start recovers.
    Immediate,
}

/// A running server. Everything of it is gone after drop.
pub struct Cluster {
    major: u32,
    bin: PathBuf,
    dir: PathBuf,
    port: u16,
    server: Option<Child>,
    _slot: Option<Permit>,
}

impl Cluster {
    /// A server of the default version with the default settings.
    pub fn start() -> Cluster {
        Self::with(versions::default_major(), &[])
    }

    /// A server of the default version with settings of its own.
    pub fn with_settings(settings: &[(&str, &str)]) -> Cluster {
        Self::with(versions::default_major(), settings)
    }

    /// A server of any version. `settings` go to the end of postgresql.conf, so they override the harness's.
    pub fn with(major: u32, settings: &[(&str, &str)]) -> Cluster {
        let permit = Permit::take();
        let bin = versions::bin_dir(major);
        let dir = process::fresh_dir("cluster");
        process::give_to_server(&dir);
        copy(&template(major, &bin), &dir.join("data"));
        let mut cluster = Cluster { major, bin, dir, port: 0, server: None, _slot: Some(permit) };
        cluster.configure(settings);
        cluster.resume();
        cluster
    }

    /// A server with a system identifier of its own, at a port of its own; `settings` may name another port.
    pub fn of_another_system(major: u32, settings: &[(&str, &str)]) -> Cluster {
        let bin = versions::bin_dir(major);
        let dir = process::fresh_dir("cluster");
        process::give_to_server(&dir);
        copy(&init(major, &bin), &dir.join("data"));
        let mut cluster = Cluster { major, bin, dir, port: 0, server: None, _slot: None };
        cluster.configure(settings);
        cluster.resume();
        cluster
    }

    fn configure(&mut self, settings: &[(&str, &str)]) {
        let given = settings.iter().rev().find(|(name, _)| *name == "port");
        self.port = given.map_or_else(process::free_port, |(_, port)| port.parse().expect("a port"));
        let mut conf = String::from("\n# the tests'\n");
        let socket = self.dir.display().to_string();
        let port = self.port.to_string();
        let fixed = [
            ("listen_addresses", "127.0.0.1"),
            ("port", &port),
            ("unix_socket_directories", &socket),
            ("wal_level", "logical"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("max_connections", "100"),
            ("max_prepared_transactions", "10"),
            ("shared_buffers", "32MB"),
            ("password_encryption", "scram-sha-256"),
            ("log_line_prefix", "%m [%p] %q%a "),
            ("log_replication_commands", "on"),
            ("fsync", "on"),
        ];
        for (name, value) in fixed.iter().chain(settings) {
            let _ = writeln!(conf, "{name} = '{}'", value.replace('\'', "''"));
        }
        let path = self.data_dir().join("postgresql.conf");
        let before = fs::read_to_string(&path).expect("postgresql.conf");
        fs::write(&path, before + &conf).expect("postgresql.conf");
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// PGDATA.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The directory of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.dir
    }

    /// The server's log.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    /// What the hub is given; over TCP, as user `postgres` without a password.
    pub fn dsn(&self) -> String {
        self.dsn_of("postgres")
    }

    /// The same for another database.
    pub fn dsn_of(&self, database: &str) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={database}", self.port)
    }

    /// Over the Unix socket, for the tests' own connections.
    pub fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host_path(&self.dir).port(self.port).user("postgres").dbname(database);
        config.application_name("test").connect_timeout(Duration::from_secs(5));
        config
    }

    /// A connection to `postgres`.
    pub async fn connect(&self) -> Db {
        self.connect_to("postgres").await
    }

    /// A connection to another database.
    pub async fn connect_to(&self, database: &str) -> Db {
        Db::open(&self.config(database)).await.unwrap_or_else(|error| panic!("connect to {database}: {error}"))
    }

    /// Starts the server after a stop or a kill. Until the lock of a killed server is free this takes several tries.
    pub fn resume(&mut self) {
        assert!(self.server.is_none(), "the server runs");
        eventually_blocking(Duration::from_secs(60), || self.try_start());
    }

    fn try_start(&mut self) -> Result<(), String> {
        let log = fs::File::options().create(true).append(true).open(self.log_path()).expect("log file");
        let mut command = process::command(&self.bin.join("postgres"), Account::Server, "QUIT");
        command.arg("-D").arg(self.data_dir()).env_remove("PGPORT").env("LC_ALL", "C").stdin(Stdio::null());
        command.stdout(log.try_clone().expect("log file")).stderr(log).current_dir(&self.dir);
        let mut server = process::spawn(command).expect("setpriv");
        let started = Instant::now();
        loop {
            if let Some(status) = server.try_wait().expect("wait") {
                return Err(format!("postgres ended with {status}:\n{}", process::tail(&self.log_path(), 15)));
            }
            if self.is_ready(server.id()) {
                self.server = Some(server);
                return Ok(());
            }
            if started.elapsed() > Duration::from_secs(50) {
                process::signal(&server, Signal::KILL);
                let _ = server.wait();
                return Err(format!("postgres is not ready:\n{}", process::tail(&self.log_path(), 15)));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// As pg_ctl looks: the eighth line of postmaster.pid.
    fn is_ready(&self, pid: u32) -> bool {
        let text = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
        let mut lines = text.lines();
        lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid)
            && lines.nth(6).is_some_and(|line| matches!(line.trim(), "ready" | "standby"))
    }

    /// Stops the server and says how long that took.
    pub fn stop(&mut self, mode: Shutdown) -> Duration {
        let mut server = self.server.take().expect("the server runs");
        let started = Instant::now();
        process::signal(&server, if mode == Shutdown::Fast { Signal::INT } else { Signal::QUIT });
        eventually_blocking(Duration::from_secs(120), || match server.try_wait() {
            Ok(Some(_)) => Ok(()),
            other => Err(other),
        });
        started.elapsed()
    }

    /// Stops and starts; says how long the stop took.
    pub fn restart(&mut self, mode: Shutdown) -> Duration {
        let took = self.stop(mode);
        self.resume();
        took
    }

    /// `kill -9` of the postmaster; its children notice and end.
    pub fn kill9(&mut self) {
        let mut server = self.server.take().expect("the server runs");
        process::signal(&server, Signal::KILL);
        let _ = server.wait();
    }

    /// The files of this server as of now, without slots and not started: what a base backup is.
    pub async fn backup(&self) -> Cluster {
        let dir = process::fresh_dir("backup");
        process::give_to_server(&dir);
        let db = self.connect().await;
        let (start, stop) = if self.major >= 15 {
            ("SELECT pg_backup_start('backup', true)", "SELECT labelfile FROM pg_backup_stop(false)")
        } else {
            ("SELECT pg_start_backup('backup', true, false)", "SELECT labelfile FROM pg_stop_backup(false, false)")
        };
        db.query(start, &[]).await.expect("backup start");
        copy(&self.data_dir(), &dir.join("data"));
        let label: String = db.query_one(stop, &[]).await.expect("backup stop").get(0);
        let data = dir.join("data");
        let _ = fs::remove_file(data.join("postmaster.pid"));
        for slot in fs::read_dir(data.join("pg_replslot")).expect("pg_replslot").flatten() {
            fs::remove_dir_all(slot.path()).expect("slot directory");
        }
        let backup = Cluster { major: self.major, bin: self.bin.clone(), dir, port: 0, server: None, _slot: None };
        backup.put("backup_label", &label);
        backup
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.data_dir().join(name);
        fs::write(&path, text).expect(name);
        process::give_to_server(&path);
    }

    /// A streaming standby of this server, made by copying the files between start and stop of a backup (the npm
    /// binaries carry no pg_basebackup). Takes no turn of its own, so that tests with two servers cannot deadlock.
    pub async fn standby(&self, settings: &[(&str, &str)]) -> Cluster {
        let mut standby = self.backup().await;
        standby.put("standby.signal", "");
        let primary = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port);
        let mut all = vec![("primary_conninfo", primary.as_str()), ("hot_standby_feedback", "on")];
        all.extend_from_slice(settings);
        standby.configure(&all);
        standby.resume();
        standby
    }

    /// Starts a backup as the server was at an LSN, on a new timeline, at the port of the server that it was taken from.
    /// That one has been stopped; its WAL is the archive.
    pub async fn restore(&mut self, from: &Cluster, target: walcast::lsn::Lsn) {
        assert!(from.server.is_none(), "the server runs");
        self.put("recovery.signal", "");
        let fetch = format!("cp \"{}/pg_wal/%f\" \"%p\"", from.data_dir().display());
        let (target, port) = (target.to_string(), from.port.to_string());
        self.configure(&[
            ("restore_command", &fetch),
            ("recovery_target_lsn", &target),
            ("recovery_target_action", "promote"),
            ("port", &port),
        ]);
        self.resume();
        eventually(Duration::from_secs(60), || async {
            let recovers = self.connect().await.text("SELECT pg_is_in_recovery()").await;
            if recovers.as_deref() == Some("f") { Ok(()) } else { Err("still in recovery") }
        })
        .await;
    }

    /// Takes over everything of another cluster of this version with pg_upgrade; both are stopped. False where there is no
    /// pg_upgrade beside the server.
    pub fn upgrade(&self, from: &Cluster) -> bool {
        assert!(self.server.is_none() && from.server.is_none(), "a server runs");
        let program = self.bin.join("pg_upgrade");
        if !program.is_file() {
            return false;
        }
        let mut upgrade = process::command(&program, Account::Server, "KILL");
        upgrade.arg("-b").arg(&from.bin).arg("-B").arg(&self.bin).args(["-U", "postgres"]);
        upgrade.arg("-d").arg(from.data_dir()).arg("-D").arg(self.data_dir()).current_dir(&self.dir).env("LC_ALL", "C");
        process::run(upgrade);
        true
    }

    /// Ends recovery and waits until the server takes writes.
    pub async fn promote(&self) {
        let db = self.connect().await;
        let promoted: bool = db.query_one("SELECT pg_promote(true, 60)", &[]).await.expect("pg_promote").get(0);
        assert!(promoted, "the standby was not promoted within 60 s");
    }

    /// What the log says last.
    pub fn log_tail(&self, lines: usize) -> String {
        process::tail(&self.log_path(), lines)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- PostgreSQL {} log, last lines ---\n{}", self.major, self.log_tail(40));
        }
        if let Some(mut server) = self.server.take() {
            process::signal(&server, Signal::QUIT);
            let patience = Instant::now() + Duration::from_secs(10);
            while matches!(server.try_wait(), Ok(None)) && Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(5));
            }
            process::signal(&server, Signal::KILL);
            let _ = server.wait();
        }
        if std::env::var_os("WALCAST_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn template(major: u32, bin: &Path) -> PathBuf {
    static TEMPLATES: OnceLock<Mutex<HashMap<u32, PathBuf>>> = OnceLock::new();
    // A test that failed to build one must not poison the others: each then fails with the reason itself.
    let mut templates = TEMPLATES.get_or_init(Mutex::default).lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    templates.entry(major).or_insert_with(|| init(major, bin)).clone()
}

fn init(major: u32, bin: &Path) -> PathBuf {
    let dir = process::fresh_dir(&format!("template{major}"));
    process::give_to_server(&dir);
    let data = dir.join("data");
    let mut initdb = process::command(&bin.join("initdb"), Account::Server, "KILL");
    initdb.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
    initdb.current_dir(&dir).env("LC_ALL", "C");
    process::run(initdb);
    let hba = "local all all trust\n\
               host all postgres 127.0.0.1/32 trust\n\
               host replication postgres 127.0.0.1/32 trust\n\
               host all all 127.0.0.1/32 scram-sha-256\n\
               host replication all 127.0.0.1/32 scram-sha-256\n";
    fs::write(data.join("pg_hba.conf"), hba).expect("pg_hba.conf");
    data
}

fn copy(from: &Path, to: &Path) {
    let mut cp = Command::new("cp");
    cp.args(["-a", "--reflink=auto"]).arg(from).arg(to);
    // Files of a running server come and go: cp then copies the rest and ends with 1, which recovery makes good.
    if from.join("postmaster.pid").exists() {
        let _ = cp.stderr(Stdio::null()).status();
    } else {
        process::run(cp);
    }
    assert!(to.join("PG_VERSION").exists(), "copy of {} failed", from.display());
}

/// At most a few servers at a time, whatever `--test-threads` says.
struct Permit;

static RUNNING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

impl Permit {
    fn take() -> Permit {
        let cpus = std::thread::available_parallelism().map_or(2, |n| n.get());
        let limit = std::env::var("WALCAST_TEST_CLUSTERS").ok().and_then(|text| text.parse().ok());
        let limit = limit.unwrap_or((cpus * 2).clamp(3, 8));
        let mut running = RUNNING.0.lock().expect("permits");
        while *running >= limit {
            running = RUNNING.1.wait(running).expect("permits");
        }
        *running += 1;
        Permit
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *RUNNING.0.lock().expect("permits") -= 1;
        RUNNING.1.notify_one();
    }
}

/// One connection with its driver task.
pub struct Db {
    client: Client,
    driver: tokio::task::JoinHandle<()>,
}

impl Db {
    /// Connects; errors are the caller's, since some scenarios expect them.
    pub async fn open(config: &Config) -> Result<Db, tokio_postgres::Error> {
        let (client, connection) = config.connect(NoTls).await?;
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Db { client, driver })
    }

    /// Runs statements one by one, so that each is a transaction of its own outside BEGIN .. COMMIT (several in one
    /// simple query would share one). An error fails the test with the statement.
    pub async fn run(&self, sql: &str) {
        for statement in statements(sql) {
            let answer = self.client.batch_execute(statement).await;
            answer.unwrap_or_else(|error| panic!("{}\nin: {statement}", describe(&error)));
        }
    }

    /// Rows in text form, NULL as `None`.
    pub async fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let messages =
            self.client.simple_query(sql).await.unwrap_or_else(|error| panic!("{}\nin: {sql}", describe(&error)));
        let mut rows = Vec::new();
        for message in messages {
            if let SimpleQueryMessage::Row(row) = message {
                rows.push((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect());
            }
        }
        rows
    }

    /// The first column of the first row in text form; `None` for NULL or no row.
    pub async fn text(&self, sql: &str) -> Option<String> {
        self.rows(sql).await.into_iter().next().and_then(|row| row.into_iter().next().flatten())
    }

    /// An LSN-valued expression.
    pub async fn lsn(&self, expression: &str) -> walcast::lsn::Lsn {
        let text = self.text(&format!("SELECT ({expression})::text")).await;
        text.unwrap_or_else(|| panic!("{expression} is NULL")).parse().expect("an LSN")
    }

    /// A number.
    pub async fn number(&self, sql: &str) -> i64 {
        let text = self.text(sql).await.unwrap_or_else(|| panic!("no row or NULL: {sql}"));
        text.parse().unwrap_or_else(|_| panic!("{text:?} is no number: {sql}"))
    }
}

impl Deref for Db {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Splits at semicolons outside '', "" and $$ $$.
fn statements(sql: &str) -> Vec<&str> {
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while let Some(c) = sql[at..].chars().next() {
        let rest = &sql[at + c.len_utf8()..];
        let skipped = match c {
            '\'' | '"' => rest.find(c).map(|end| end + 1),
            '$' if rest.starts_with('$') => rest[1..].find("$$").map(|end| end + 3),
            ';' => {
                parts.push(&sql[start..at]);
                start = at + 1;
                None
            }
            _ => None,
        };
        at += c.len_utf8() + skipped.unwrap_or(0);
    }
    parts.push(&sql[start..]);
    parts.into_iter().map(str::trim).filter(|statement| !statement.is_empty()).collect()
}

/// The server's message with its code; tokio-postgres's own text is only "db error".
pub fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} {}", db.code().code(), db.message()),
        None => error.to_string(),
    }
}

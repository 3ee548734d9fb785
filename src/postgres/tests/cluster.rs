//! A private server: its own directory, port and socket, gone at the end of the test.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::postgres::{conninfo::ConnectOptions, sql::Sql};

/// How long anything may take before the test fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Cluster {
    dir: TempDir,
    pub(super) port: u16,
    process: Option<Child>,
}

/// PostgreSQL refuses to run as root; there it runs as the distribution's user.
fn owner() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let entry = passwd.lines().find(|line| line.starts_with("postgres:")).expect("a user postgres");
    let mut fields = entry.split(':').skip(2).map(|field| field.parse().unwrap());
    Some((fields.next().unwrap(), fields.next().unwrap()))
}

/// Options from a string alone, without the environment.
pub(super) fn parse(dsn: &str) -> ConnectOptions {
    ConnectOptions::parse(Some(dsn), &|_| None).unwrap()
}

fn bin() -> PathBuf {
    if let Some(dir) = std::env::var_os("WALCAST_TEST_PG_BIN") {
        return dir.into();
    }
    let mut installed: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    installed.retain(|dir| dir.join("initdb").exists());
    installed.sort();
    installed.pop().unwrap_or_else(|| {
        let output = Command::new("pg_config").arg("--bindir").output().expect("PostgreSQL's programs");
        String::from_utf8(output.stdout).unwrap().trim().into()
    })
}

fn program(name: &str) -> Command {
    let path = bin().join(name);
    let mut command = match owner() {
        None => Command::new(path),
        Some((uid, gid)) => {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]);
            command.args(["--pdeathsig", "QUIT"]).arg(path);
            command
        }
    };
    command.stdin(Stdio::null()).stdout(Stdio::null()).env_clear().env("LC_ALL", "C");
    command
}

fn run(command: &mut Command) {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Cluster {
    /// A fresh cluster with superuser `postgres`, started. Lines of `hba` come before "everybody on the socket".
    pub(super) async fn start(settings: &str, hba: &str) -> Cluster {
        let mut cluster = Cluster::empty();
        run(program("initdb")
            .arg("-D")
            .arg(cluster.data())
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "-N"]));
        cluster.write("pg_hba.conf", &format!("{hba}\nlocal all all trust\n"));
        cluster.configure(settings);
        cluster.launch().await;
        cluster
    }

    /// A standby of this cluster, started. It needs an hba line for replication over the socket.
    pub(super) async fn standby(&self) -> Cluster {
        let mut standby = Cluster::empty();
        let (host, port) = (self.socket_dir(), self.port.to_string());
        let mut backup = program("pg_basebackup");
        backup.args(["-U", "postgres", "-R", "-c", "fast", "-N", "-h"]).arg(host).args(["-p", &port, "-D"]);
        run(backup.arg(standby.data()));
        standby.configure("hot_standby = on");
        standby.launch().await;
        standby
    }

    fn empty() -> Cluster {
        let dir = tempfile::Builder::new().prefix("walcast-pg-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let cluster = Cluster { dir, port, process: None };
        for sub in ["data", "socket"] {
            fs::create_dir(cluster.path(sub)).unwrap();
            fs::set_permissions(cluster.path(sub), fs::Permissions::from_mode(0o700)).unwrap();
            cluster.give(&cluster.path(sub));
        }
        cluster
    }

    fn configure(&self, settings: &str) {
        let conf = self.data().join("postgresql.conf");
        let before = fs::read_to_string(&conf).unwrap();
        let own = format!(
            "\nlisten_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nwal_level = logical\n\
             fsync = off\nmax_wal_senders = 6\nmax_replication_slots = 6\nautovacuum = off\n{settings}\n",
            self.port,
            self.socket_dir().display()
        );
        fs::write(conf, before + &own).unwrap();
    }

    async fn launch(&mut self) {
        let log = fs::File::create(self.path("log")).unwrap();
        self.process = Some(program("postgres").arg("-D").arg(self.data()).stderr(log).spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.ready().await {
            let log_file = self.path("log");
            let log = || fs::read_to_string(&log_file).unwrap();
            assert!(Instant::now() < deadline, "{error}: {}", log());
            let ended = self.process.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ready(&self) -> Result<(), crate::postgres::Error> {
        Sql::connect(&self.options("target_session_attrs=any")).await.map(|_| ())
    }

    /// Ends the server as `pg_ctl stop -m fast` does, without waiting.
    pub(super) fn shut_down(&self) {
        let process = self.process.as_ref().unwrap();
        let pid = rustix::process::Pid::from_child(process);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }

    /// Options for user postgres on the socket; `more` overrides.
    pub(super) fn options(&self, more: &str) -> ConnectOptions {
        let socket = self.socket_dir();
        self.parse(&format!("host={} dbname=postgres user=postgres {more}", socket.display()))
    }

    /// Options for TCP without a default user; port and a host name of the test certificate are set.
    pub(super) fn tcp(&self, more: &str) -> ConnectOptions {
        self.parse(&format!("host=db.example hostaddr=127.0.0.1 dbname=postgres {more}"))
    }

    fn parse(&self, dsn: &str) -> ConnectOptions {
        parse(&format!("port={} {dsn}", self.port))
    }

    pub(super) async fn sql(&self) -> Sql {
        Sql::connect(&self.options("target_session_attrs=any")).await.unwrap()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub(super) fn socket_dir(&self) -> PathBuf {
        self.path("socket")
    }

    /// Writes a file into the data directory, readable by the server only.
    pub(super) fn write(&self, name: &str, content: &str) {
        let file = self.data().join(name);
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        self.give(&file);
    }

    fn give(&self, path: &Path) {
        if let Some((uid, gid)) = owner() {
            chown(path, Some(uid), Some(gid)).unwrap();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let pid = rustix::process::Pid::from_child(&process);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
            let _ = process.wait();
        }
    }
}

//! A throwaway PostgreSQL: found, initialised, started, and gone without a trace when the demo is.
//!
//! The server belongs to a small shell process, the guard, which waits on a pipe from the demo. However the demo
//! ends, SIGKILL included, the kernel closes that pipe; the guard then stops the server in
//! [immediate mode](https://www.postgresql.org/docs/current/server-shutdown.html) and removes the directory. It sits
//! in a process group of its own, so that Ctrl-C on the terminal reaches the demo only.

use std::{
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::cli::error::Error;

/// Words: directory, directory of the binaries, port, port of a standby or nothing, then the prefix that changes the
/// user, if any. The line `kill` on the pipe kills the primary as a crash would.
///
/// A server gets two signals because a shell starts background processes with
/// [SIGQUIT ignored](https://pubs.opengroup.org/onlinepubs/9799919799/utilities/V3_chap02.html#tag_19_12): until it
/// has installed its own handlers, which make SIGQUIT the immediate shutdown, only SIGTERM ends it.
///
/// The standby is a copy from before the primary's first start, so all that it needs is WAL.
const GUARD: &str = r#"
dir=$1; bin=$2; port=$3; standby=$4; shift 4
prefix=$*
fail() { cat "$dir/log"; rm -rf "$dir"; exit 1; }
serve() { # data directory, port, log, more settings
    data=$1; at=$2; log=$3; shift 3
    $prefix "$bin/postgres" -D "$dir/$data" -k "$dir/socket" -p "$at" -c wal_level=logical \
        -c listen_addresses=127.0.0.1 -c max_wal_senders=10 -c max_replication_slots=10 -c shared_buffers=16MB \
        -c fsync=off -c logging_collector=off "$@" </dev/null >"$dir/$log" 2>&1 &
}
$prefix "$bin/initdb" --pgdata "$dir/data" --pwfile "$dir/password" --username=postgres --auth-local=trust \
    --auth-host=scram-sha-256 --encoding=UTF8 --no-locale --no-sync </dev/null >"$dir/log" 2>&1 || fail
if [ -n "$standby" ]; then
    { cp -a "$dir/data" "$dir/standby" && $prefix touch "$dir/standby/standby.signal" &&
        echo "primary_conninfo = 'host=$dir/socket port=$port user=postgres'" >>"$dir/standby/postgresql.auto.conf"
    } >>"$dir/log" 2>&1 || fail
    serve standby "$standby" standby-log -c wal_retrieve_retry_interval=100ms
    other=$!
    serve data "$port" log -c wal_keep_size=1GB
else
    serve data "$port" log
fi
server=$!
trap '' HUP INT TERM
while read -r word; do
    [ "$word" = kill ] || continue
    kill -KILL $server
    wait $server
    server=
done
kill -TERM $server $other 2>/dev/null
kill -QUIT $server $other 2>/dev/null
wait
rm -rf "$dir"
"#;

/// Time for the server to accept connections.
const STARTUP: Duration = Duration::from_secs(60);

/// Time for the server to stop and its directory to go.
const SHUTDOWN: Duration = Duration::from_secs(20);

/// A running server, with or without a standby.
pub struct Cluster {
    dir: PathBuf,
    port: u16,
    standby: Option<u16>,
    password: String,
    guard: Child,
}

impl Cluster {
    /// Finds the binaries and sets a new cluster going in a new temporary directory; `pair`: and a standby of it.
    pub async fn start(bin_dir: Option<&Path>, pair: bool) -> Result<Cluster, Error> {
        let bin = find_binaries(bin_dir).await?;
        let owner = Owner::choose()?;
        let dir = new_directory()?;
        let started = Self::start_in(&bin, &owner, &dir, pair);
        if started.is_err() {
            let _ = fs::remove_dir_all(&dir);
        }
        started
    }

    fn start_in(bin: &Path, owner: &Owner, dir: &Path, pair: bool) -> Result<Cluster, Error> {
        let context = |what: &str| Error::io(format!("{what} in {}", dir.display()));
        for name in ["data", "socket"] {
            let path = dir.join(name);
            fs::create_dir(&path).map_err(context("making a directory"))?;
            fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(context("setting permissions"))?;
            owner.give(&path)?;
        }
        let password: String = std::iter::repeat_with(fastrand::alphanumeric).take(20).collect();
        let file = dir.join("password");
        fs::write(&file, "").map_err(context("making a file"))?;
        fs::set_permissions(&file, Permissions::from_mode(0o600)).map_err(context("setting permissions"))?;
        fs::write(&file, format!("{password}\n")).map_err(context("writing the password"))?;
        owner.give(&file)?;
        let port = free_port()?;
        let standby = if pair { Some(free_port()?) } else { None };
        let mut guard = Command::new("/bin/sh");
        guard.args(["-c", GUARD, "walcast-demo-guard"]).arg(dir).arg(bin).arg(port.to_string());
        guard.arg(standby.map_or_else(String::new, |port| port.to_string())).args(owner.prefix());
        guard.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let guard = guard.spawn().map_err(Error::io("starting /bin/sh"))?;
        Ok(Cluster { dir: dir.to_owned(), port, standby, password, guard })
    }

    /// For the hub: over the socket, which only the owner and root can reach. Names every server.
    pub fn dsn(&self) -> String {
        let ports: Vec<String> = [Some(self.port), self.standby].iter().flatten().map(u16::to_string).collect();
        let socket = self.dir.join("socket").display().to_string();
        let hosts = vec![socket; ports.len()].join(",");
        format!("host={hosts} port={} user=postgres dbname=postgres", ports.join(","))
    }

    /// For people: over TCP, with a password.
    pub fn url(&self) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{}/postgres", self.password, self.port)
    }

    /// A directory for the hub, which goes with the server.
    pub fn hub_dir(&self) -> PathBuf {
        self.dir.join("hub")
    }

    /// A connection to the primary; its driver runs in the background.
    pub async fn connect(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        self.connect_at(self.port).await
    }

    /// A connection to the standby.
    pub async fn connect_standby(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        self.connect_at(self.standby.unwrap_or(self.port)).await
    }

    async fn connect_at(&self, port: u16) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let dsn = format!("host={} port={port} user=postgres dbname=postgres", self.dir.join("socket").display());
        let (client, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %error, "a connection of the demo ended");
            }
        });
        Ok(client)
    }

    /// Waits until every server answers, and returns their version.
    pub async fn ready(&mut self) -> Result<String, Error> {
        let version = self.answers(self.port, "log").await?;
        if let Some(standby) = self.standby {
            self.answers(standby, "standby-log").await?;
        }
        Ok(version)
    }

    async fn answers(&mut self, port: u16, log: &str) -> Result<String, Error> {
        let started = Instant::now();
        loop {
            let last = match self.connect_at(port).await {
                Ok(client) => match client.query_one("SHOW server_version", &[]).await {
                    Ok(row) => return Ok(row.get(0)),
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            if let Ok(Some(_)) = self.guard.try_wait() {
                let mut told = String::new();
                if let Some(mut out) = self.guard.stdout.take() {
                    let _ = out.read_to_string(&mut told).await;
                }
                return Err(Error::Failed(format!("initdb failed: {}", told.trim())));
            }
            let log = fs::read_to_string(self.dir.join(log)).unwrap_or_default();
            if log.contains("FATAL:  could not") || log.contains("system is shut down") || started.elapsed() > STARTUP {
                let first = log.lines().count().saturating_sub(5);
                let end: Vec<&str> = log.lines().skip(first).collect();
                return Err(Error::Failed(format!("PostgreSQL did not start: {last}\n{}", end.join("\n"))));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// `kill -9` for the primary.
    pub async fn kill_primary(&mut self) -> Result<(), Error> {
        let Some(pipe) = self.guard.stdin.as_mut() else { return Ok(()) };
        let told = async {
            pipe.write_all(b"kill\n").await?;
            pipe.flush().await
        };
        told.await.map_err(Error::io("telling the demo's guard to kill the primary"))
    }

    /// Stops every server at once and removes everything.
    pub async fn stop(mut self) -> Result<(), Error> {
        drop(self.guard.stdin.take());
        if timeout(SHUTDOWN, self.guard.wait()).await.is_err() {
            let dir = self.dir.display();
            return Err(Error::Failed(format!("PostgreSQL in {dir} has not stopped in {} s", SHUTDOWN.as_secs())));
        }
        Ok(())
    }
}

/// Who runs the server: it refuses to run as root.
enum Owner {
    /// Whoever runs the demo.
    Caller,
    /// An unprivileged user, through setpriv.
    Other { uid: u32, gid: u32 },
}

impl Owner {
    fn choose() -> Result<Owner, Error> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Owner::Caller);
        }
        let users = fs::read_to_string("/etc/passwd").map_err(Error::io("/etc/passwd"))?;
        let find = |name: &str| parse_user(&users, name);
        let (uid, gid) = find("postgres").or_else(|| find("nobody")).ok_or_else(|| {
            Error::Failed("PostgreSQL refuses to run as root, and there is no user postgres or nobody".to_owned())
        })?;
        Ok(Owner::Other { uid, gid })
    }

    fn give(&self, path: &Path) -> Result<(), Error> {
        match self {
            Owner::Caller => Ok(()),
            Owner::Other { uid, gid } => {
                chown(path, Some(*uid), Some(*gid)).map_err(Error::io(format!("chown {}", path.display())))
            }
        }
    }

    /// The command line in front of a server program's own.
    fn prefix(&self) -> Vec<String> {
        match self {
            Owner::Caller => Vec::new(),
            Owner::Other { uid, gid } => {
                vec!["setpriv".into(), format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]
            }
        }
    }
}

fn parse_user(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let fields: Vec<&str> = passwd.lines().map(|line| line.split(':').collect()).find(|f: &Vec<&str>| f[0] == name)?;
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

/// A new directory that only this process's user can list and everybody can pass through.
fn new_directory() -> Result<PathBuf, Error> {
    loop {
        let suffix: String = std::iter::repeat_with(fastrand::alphanumeric).take(10).collect();
        let dir = std::env::temp_dir().join(format!("walcast-demo-{suffix}"));
        match fs::create_dir(&dir) {
            Ok(()) => {
                let mode = Permissions::from_mode(0o711);
                fs::set_permissions(&dir, mode).map_err(Error::io(dir.display().to_string()))?;
                return Ok(dir);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(format!("making {}", dir.display()))(error)),
        }
    }
}

fn free_port() -> Result<u16, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(Error::io("finding a free port"))?;
    listener.local_addr().map(|address| address.port()).map_err(Error::io("finding a free port"))
}

/// The directory of initdb and postgres: as given, from PATH, the newest of Debian's, or where pg_config says.
async fn find_binaries(given: Option<&Path>) -> Result<PathBuf, Error> {
    let is_there = |dir: &Path| ["initdb", "postgres"].iter().all(|name| dir.join(name).is_file());
    if let Some(dir) = given {
        let missing = || Error::Usage(format!("{} does not hold initdb and postgres", dir.display()));
        return is_there(dir).then(|| dir.to_owned()).ok_or_else(missing);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(dir) = std::env::split_paths(&path).find(|dir| is_there(dir)) {
        return Ok(dir);
    }
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, dir)| is_there(dir))
        .collect();
    versions.sort();
    if let Some((_, dir)) = versions.pop() {
        return Ok(dir);
    }
    if let Ok(output) = Command::new("pg_config").arg("--bindir").stdin(Stdio::null()).output().await {
        let dir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        if is_there(&dir) {
            return Ok(dir);
        }
    }
    Err(Error::Failed(
        "no PostgreSQL server was found\n  hint: apt-get install postgresql, or --bin-dir where initdb and postgres are"
            .to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_from_passwd() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgres:x:105:109:a,b:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(parse_user(passwd, "postgres"), Some((105, 109)));
        assert_eq!(parse_user(passwd, "nobody"), None);
    }

    #[tokio::test]
    async fn a_directory_without_a_server_is_wrong_usage() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = find_binaries(Some(dir.path())).await.expect_err("nothing there");
        assert_eq!(error.exit_code(), 2);
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < Duration::from_secs(30), "{what}");
            sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_cluster_that_was_stopped() {
        let mut cluster = Cluster::start(None, false).await.expect("PostgreSQL is installed");
        let version = cluster.ready().await.expect("it answers");
        assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version}");
        let (dir, port) = (cluster.dir.clone(), cluster.port);
        assert!(dir.join("data/PG_VERSION").exists());
        cluster.stop().await.expect("stopped");
        assert!(!dir.exists());
        TcpListener::bind(("127.0.0.1", port)).expect("the server is gone");
    }

    #[tokio::test]
    async fn nothing_is_left_when_the_demo_is_killed() {
        let mut cluster = Cluster::start(None, false).await.expect("PostgreSQL is installed");
        cluster.ready().await.expect("it answers");
        let (dir, port) = (cluster.dir.clone(), cluster.port);
        drop(cluster); // closes the pipe, as the kernel does when the process ends
        until("the directory goes", || !dir.exists()).await;
        TcpListener::bind(("127.0.0.1", port)).expect("the server is gone");
    }

    #[tokio::test]
    async fn nothing_is_left_when_the_demo_is_killed_while_it_starts() {
        let log_bytes = |dir: &Path| fs::metadata(dir.join("log")).map_or(0, |log| log.len());
        for moment in ["at once", "initdb has spoken", "the server has not", "the server runs"] {
            let cluster = Cluster::start(None, false).await.expect("PostgreSQL is installed");
            let dir = cluster.dir.clone();
            if moment != "at once" {
                until(moment, || log_bytes(&dir) > 0).await;
            }
            if moment == "the server has not" {
                until(moment, || log_bytes(&dir) == 0).await;
            }
            if moment == "the server runs" {
                until(moment, || dir.join("data/postmaster.pid").exists()).await;
            }
            drop(cluster);
            until("the directory goes", || !dir.exists()).await;
        }
    }
}

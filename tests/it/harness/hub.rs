//! The real binary.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    process::{self, Account},
    wait::{eventually, eventually_blocking},
};

/// How long a hub may take to start and to stream from its slot.
pub const READY: Duration = Duration::from_secs(30);

/// One hub with its data directory. Restarting keeps directory and ports.
pub struct Hub {
    dir: PathBuf,
    data_dir: PathBuf,
    grpc: u16,
    http: u16,
    args: Vec<String>,
    env: Vec<(String, String)>,
    wrapper: Vec<String>,
    process: Option<Child>,
    /// Starts so far.
    pub runs: u32,
}

impl Hub {
    /// Not started yet. `dsn` as for `--dsn`; empty for none, so that libpq's variables decide.
    pub fn new(dsn: &str) -> Hub {
        let dir = process::fresh_dir("hub");
        let data_dir = dir.join("data");
        Hub {
            data_dir,
            dir,
            grpc: process::free_port(),
            http: process::free_port(),
            args: if dsn.is_empty() { Vec::new() } else { vec!["--dsn".into(), dsn.into()] },
            env: Vec::new(),
            wrapper: Vec::new(),
            process: None,
            runs: 0,
        }
    }

    /// More arguments of `walcast serve`.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    /// Another hub with a copy of this one's data directory and more arguments. This one must not run.
    pub fn copy(&self, args: &[&str]) -> Hub {
        assert!(self.process.is_none(), "the hub runs");
        let mut other = Hub::new("").args(args);
        other.args = self.args.iter().cloned().chain(args.iter().map(|arg| (*arg).to_owned())).collect();
        other.env = self.env.clone();
        let mut cp = std::process::Command::new("cp");
        cp.arg("-a").arg(&self.data_dir).arg(&other.data_dir);
        process::run(cp);
        other
    }

    /// A variable of the environment, for this and later starts.
    pub fn env(&mut self, name: &str, value: &str) {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Failpoints of the next start, such as `segment_roll=abort@3`; empty for none.
    pub fn failpoints(&mut self, spec: &str) {
        self.env("WALCAST_FAILPOINTS", spec);
    }

    /// The same for a place that is held, until the file exists whose name is returned. That it holds, a file with `.held` behind
    /// that name tells.
    pub fn hold(&mut self, spec: &str) -> PathBuf {
        let release = self.dir.join("release");
        self.failpoints(spec);
        self.env("WALCAST_FAILPOINT_RELEASE", &release.display().to_string());
        release
    }

    /// Uses another hub's data directory.
    pub fn in_data_dir(&mut self, dir: &Path) {
        self.data_dir = dir.to_owned();
    }

    /// A command that ends in executing its arguments, such as one that makes a mount namespace first.
    pub fn wrapper(&mut self, words: Vec<String>) {
        self.wrapper = words;
    }

    /// A configuration file with this text.
    pub fn config(self, toml: &str) -> Self {
        let path = self.dir.join("walcast.toml");
        fs::write(&path, toml).expect("configuration file");
        let path = path.display().to_string();
        self.args(&["--config", &path])
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn grpc_port(&self) -> u16 {
        self.grpc
    }

    /// Starts the process and returns at once.
    pub fn spawn(&mut self) {
        assert!(self.process.is_none(), "the hub runs");
        let log = fs::File::options().create(true).append(true).open(self.log_path()).expect("log file");
        let binary = env!("CARGO_BIN_EXE_walcast");
        let mut words = self.wrapper.iter().map(String::as_str).chain([binary]);
        let mut command = process::command(Path::new(words.next().unwrap_or(binary)), Account::Own, "KILL");
        command.args(words).arg("serve").args(&self.args).arg("--data-dir").arg(&self.data_dir);
        command.args(["--listen", &format!("127.0.0.1:{}", self.grpc), "--http", &format!("127.0.0.1:{}", self.http)]);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WALCAST_") || name.starts_with("PG")) {
            command.env_remove(name);
        }
        command.env("RUST_BACKTRACE", "1").env("NO_COLOR", "1").envs(self.env.iter().map(|(k, v)| (k, v)));
        command.current_dir(&self.dir).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("log file")).stderr(log);
        self.process = Some(process::spawn(command).expect("the hub's binary"));
        self.runs += 1;
    }

    /// Starts the process and waits until `/readyz` answers 200.
    pub async fn start(&mut self) {
        self.spawn();
        self.ready().await;
    }

    /// Waits until `/readyz` answers 200; fails at once when the process ends.
    pub async fn ready(&mut self) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                panic!("the hub ended with {status} instead of getting ready:\n{}", self.log_tail(30));
            }
            if matches!(self.get("/readyz").await, Ok((200, _))) {
                return;
            }
            assert!(started.elapsed() < READY, "the hub is not ready within {READY:?}:\n{}", self.log_tail(30));
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    }

    /// The exit status if the process has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut()?.try_wait().expect("wait")?;
        self.process = None;
        Some(status)
    }

    /// Whether the process lives; leaves its exit status to [`Hub::wait_exit`].
    pub fn is_alive(&self) -> bool {
        let stat =
            self.process.as_ref().and_then(|process| fs::read_to_string(format!("/proc/{}/stat", process.id())).ok());
        stat.and_then(|stat| stat.rsplit(')').next().map(|rest| !rest.trim_start().starts_with('Z'))).unwrap_or(false)
    }

    /// Waits for an end that something else causes, such as a failpoint.
    pub async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(started.elapsed() < deadline, "the hub still runs after {deadline:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// `kill -9`; fine when it has just ended by itself.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process::signal(&process, Signal::KILL);
            let _ = process.wait();
        }
    }

    /// SIGTERM without waiting.
    pub fn sigterm(&self) {
        process::signal(self.process.as_ref().expect("the hub runs"), Signal::TERM);
    }

    /// SIGTERM; the exit status and how long it took.
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        let started = Instant::now();
        self.sigterm();
        let status = eventually_blocking(Duration::from_secs(30), || self.exited().ok_or("the hub still runs"));
        (status, started.elapsed())
    }

    /// SIGSTOP and SIGCONT, for a hub that hangs.
    pub fn pause(&self, paused: bool) {
        let signal = if paused { Signal::STOP } else { Signal::CONT };
        process::signal(self.process.as_ref().expect("the hub runs"), signal);
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the hub runs").id()
    }

    /// Largest resident size so far, in bytes.
    pub fn rss_peak(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("/proc");
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
    }

    /// Status and body of a GET.
    pub async fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        let exchange = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.http)).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
            Ok((status, answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned())))
        };
        tokio::time::timeout(Duration::from_secs(5), exchange)
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }

    /// Every sample of `/metrics`, by name with labels as printed.
    pub async fn metrics(&self) -> BTreeMap<String, f64> {
        let (status, body) = self.get("/metrics").await.expect("/metrics");
        assert_eq!(status, 200, "{body}");
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        body.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
    }

    /// The sum over all labels of one metric; 0 when it has not been recorded yet.
    pub async fn metric(&self, name: &str) -> f64 {
        let same = |key: &str| key == name || key.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'));
        self.metrics().await.into_iter().filter(|(key, _)| same(key)).map(|(_, value)| value).sum()
    }

    /// Waits until a metric satisfies a condition.
    pub async fn metric_becomes(&self, name: &str, deadline: Duration, holds: impl Fn(f64) -> bool) -> f64 {
        eventually(deadline, || async {
            let value = self.metric(name).await;
            if holds(value) { Ok(value) } else { Err(format!("{name} = {value}")) }
        })
        .await
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("hub.log")
    }

    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    pub fn log_tail(&self, lines: usize) -> String {
        process::tail(&self.log_path(), lines)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- hub log, last lines (run {}) ---\n{}", self.runs, self.log_tail(60));
        }
        self.kill9();
        if std::env::var_os("WALCAST_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

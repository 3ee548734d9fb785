//! Child processes that cannot outlive the test process, its scratch directory, and free ports.
//!
//! A parent-death signal is sent when the *thread* that started the child ends
//! ([prctl(2)](https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html)), so one thread that lives as long
//! as the process starts all of them. The scratch directory is removed by a shell that waits for the end of a pipe
//! whose only writer is this process: it notices a normal exit and a `kill -9` alike.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
};

use rustix::process::{Pid, Signal};

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts a command from the long-lived thread.
pub fn spawn(command: Command) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, child) = mpsc::channel();
    spawner.lock().expect("spawner").send((command, answer)).expect("spawner lives");
    child.recv().expect("spawner answers")
}

/// Which account a child runs under.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// That of the tests.
    Own,
    /// PostgreSQL refuses to run as root, so under root: `postgres`, or `nobody` where that does not exist.
    Server,
}

/// A command that gets `death` when the test process ends. It has a session of its own, as a service manager gives it:
/// PostgreSQL makes one for each backend, and where the kernel shares the cores between
/// [sessions](https://man7.org/linux/man-pages/man7/sched.7.html) first, all that one terminal has started would have
/// to do with the share of one backend.
pub fn command(program: &Path, account: Account, death: &str) -> Command {
    if !tool_exists("setpriv") {
        assert!(
            !is_root(),
            "setpriv (util-linux) is needed to run PostgreSQL's server under another account than root"
        );
        return Command::new(program);
    }
    let mut command = Command::new("setsid");
    command.arg("setpriv").arg("--pdeathsig").arg(death);
    if account == Account::Server && is_root() {
        let (user, uid, gid) = server_account();
        command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups");
        command.env("USER", user).env("HOME", scratch());
    }
    command.arg("--").arg(program);
    command
}

/// Runs a short command to its end; its output, or a panic that shows it.
pub fn run(mut command: Command) -> String {
    let shown = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = spawn(command).and_then(Child::wait_with_output).unwrap_or_else(|error| panic!("{shown}: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown}: {}\n{text}", output.status);
    text
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn tool_exists(name: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
}

fn server_account() -> (&'static str, u32, u32) {
    static ACCOUNT: OnceLock<(&str, u32, u32)> = OnceLock::new();
    *ACCOUNT.get_or_init(|| {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        for user in ["postgres", "nobody"] {
            let line = passwd.lines().find(|line| line.split(':').next() == Some(user));
            let id = |field| line.and_then(|line| line.split(':').nth(field)?.parse().ok());
            if let (Some(uid), Some(gid)) = (id(2), id(3)) {
                return (user, uid, gid);
            }
        }
        panic!("neither postgres nor nobody is in /etc/passwd")
    })
}

/// Gives a path to the account that PostgreSQL runs under.
pub fn give_to_server(path: &Path) {
    if is_root() {
        let (_, uid, gid) = server_account();
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("chown");
    }
}

/// The directory of this test process, removed when the process is gone; `WALCAST_TEST_KEEP=1` keeps it.
pub fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<(PathBuf, Option<Child>)> = OnceLock::new();
    let (path, _) = SCRATCH.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("walcast-it-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("scratch directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        if std::env::var_os("WALCAST_TEST_KEEP").is_some() {
            return (path, None);
        }
        let mut janitor = Command::new("sh");
        janitor
            .args([
                "-c",
                "trap '' INT TERM HUP; cat >/dev/null; for i in 1 2 3 4 5; do rm -rf \"$1\" && exit; sleep 1; done",
                "sh",
            ])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        (path, Some(janitor.spawn().expect("sh")))
    });
    path
}

/// A new directory in the scratch directory.
pub fn fresh_dir(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let path = scratch().join(format!("{name}-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir_all(&path).expect("directory");
    path
}

/// A port that nobody listens on, below the range that the kernel hands to outgoing connections, never twice in a
/// process.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let base = std::process::id().wrapping_mul(97);
    for _ in 0..15_000 {
        let port = 15_000 + (base.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 15_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 15000 and 30000")
}

/// Sends a signal; a process that is gone is fine.
pub fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = Pid::from_raw(child.id() as i32) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// The last lines of a log file.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

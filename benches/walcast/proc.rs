//! What processes cost, as the kernel counts it.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::{
    client::{Orders, Report},
    harness::process,
};

/// Unit of the times in /proc/PID/stat; 100 on every Linux that Rust runs on.
const USER_HZ: f64 = 100.0;

/// Wall clock in microseconds; the same for all processes of this host.
pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// CPU seconds of a process so far, user and system; 0 when it is gone.
pub fn cpu(pid: u32) -> f64 {
    ticks(pid, 11)
}

/// CPU seconds of the children that a process has waited for: a postmaster's ended backends.
pub fn cpu_of_children(pid: u32) -> f64 {
    ticks(pid, 13)
}

/// Fields behind the command's name are counted from 0; two are added up.
fn ticks(pid: u32, field: usize) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks: u64 = rest.split(' ').skip(field).take(2).filter_map(|text| text.parse::<u64>().ok()).sum();
    ticks as f64 / USER_HZ
}

/// A line of /proc/PID/status in bytes: `VmRSS` now, `VmHWM` at its peak.
pub fn memory(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

/// Forgets the peak: from here on `VmHWM` is that of what follows.
pub fn forget_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("clear_refs of an own process");
}

/// Looks at the peak of processes that end by themselves, and take what the kernel knows of it with them.
pub struct Watch {
    over: Arc<AtomicBool>,
    looking: JoinHandle<u64>,
}

impl Watch {
    pub fn start(pids: Vec<u32>) -> Watch {
        let over = Arc::new(AtomicBool::new(false));
        let ends = over.clone();
        let looking = std::thread::spawn(move || {
            let mut peaks = vec![0; pids.len()];
            loop {
                for (pid, peak) in pids.iter().zip(&mut peaks) {
                    *peak = memory(*pid, "VmHWM").max(*peak);
                }
                if ends.load(Ordering::Relaxed) {
                    return peaks.iter().sum();
                }
                std::thread::park_timeout(Duration::from_millis(5 * pids.len() as u64));
            }
        });
        Watch { over, looking }
    }

    /// Bytes of all of them together.
    pub fn end(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.looking.thread().unpark();
        self.looking.join().expect("the watch")
    }
}

/// Share of the cores' time that nobody uses, in the next second.
pub fn idle() -> f64 {
    let times = || -> Vec<u64> {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        line.split_whitespace().skip(1).filter_map(|text| text.parse().ok()).collect()
    };
    let before = times();
    std::thread::sleep(Duration::from_secs(1));
    let spent: Vec<u64> = times().iter().zip(before).map(|(now, before)| now - before).collect();
    // user, nice, system, idle, waiting for a disk, and who else had the core
    (spent[3] + spent[4]) as f64 / spent.iter().sum::<u64>().max(1) as f64
}

/// Waits until a child has ended; its CPU seconds, read before it is gone, and whether it ended well.
pub fn wait(child: &mut Child) -> (f64, bool) {
    let pid = Pid::from_raw(child.id() as i32).expect("a pid");
    rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).expect("waitid");
    let seconds = cpu(child.id());
    (seconds, child.wait().expect("wait").success())
}

/// Waits until some process listens there.
pub fn listens(port: u16) {
    while fs::read_to_string("/proc/net/tcp").is_ok_and(|text| !text.contains(&format!(":{port:04X} "))) {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A process with subscribers.
pub struct Client {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Client {
    pub fn start(orders: &Orders) -> Client {
        let orders = serde_json::to_string(orders).expect("JSON");
        let mut command = process::command(&this_program(), process::Account::Own, "KILL");
        command.args(["client", &orders]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = process::spawn(command).expect("this program");
        let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        Client { child, lines }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next report.
    pub fn report(&mut self) -> Report {
        let line = self.lines.next().expect("the client ended without a report").expect("stdout");
        serde_json::from_str(&line).expect("a report")
    }

    /// The last report and the CPU seconds of the process.
    pub fn finish(mut self) -> (Report, f64) {
        let report = self.report();
        let (cpu, well) = wait(&mut self.child);
        assert!(well, "the client failed");
        (report, cpu)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        match self.child.try_wait() {
            Ok(Some(status)) => assert!(status.success() || std::thread::panicking(), "a subscriber failed"),
            _ => {
                process::signal(&self.child, Signal::KILL);
                let _ = self.child.wait();
            }
        }
    }
}

pub fn this_program() -> std::path::PathBuf {
    std::env::current_exe().expect("this program's path")
}

/// First line of what a command prints.
pub fn first_line(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(Path::new(program)).args(args).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

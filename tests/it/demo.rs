//! `make demo-failover`, with the debug binary.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use rustix::process::Signal;

use crate::harness::{
    process::{self, Account},
    wait::eventually_blocking,
};

/// The demo with a temporary directory of its own; where its output goes.
fn start() -> (Child, std::path::PathBuf, std::path::PathBuf) {
    let dir = process::fresh_dir("demo");
    let out = dir.join("out");
    let temporary = dir.join("tmp");
    fs::create_dir(&temporary).expect("directory");
    let mut command = process::command(Path::new(env!("CARGO_BIN_EXE_walcast")), Account::Own, "KILL");
    command.args(["demo", "--failover"]).env("TMPDIR", &temporary).env_remove("WALCAST_FAILPOINTS");
    // What the shell has for another hub is not the demo's.
    command.env("WALCAST_TOKEN", "of another hub").env("WALCAST_TOKEN_FILE", "/nowhere");
    command.stdin(Stdio::null()).stdout(fs::File::create(&out).expect("a file")).stderr(Stdio::piped());
    (process::spawn(command).expect("the demo"), out, temporary)
}

/// Nothing in the temporary directory, and no process that has it on its command line.
fn is_clean(temporary: &Path) -> Result<(), String> {
    let left: Vec<_> = fs::read_dir(temporary).expect("directory").flatten().map(|entry| entry.path()).collect();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let commands = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let needle = temporary.to_string_lossy().into_owned();
    let alive: Vec<String> = commands
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&needle))
        .collect();
    if left.is_empty() && alive.is_empty() { Ok(()) } else { Err(format!("{left:?}, {alive:?}")) }
}

#[test]
fn the_failover_demo_ends_with_nothing_missing() {
    let (mut demo, out, temporary) = start();
    let status = demo.wait().expect("an end");
    let told = fs::read_to_string(&out).expect("output");
    let mut errors = String::new();
    let _ = demo.stderr.take().expect("piped").read_to_string(&mut errors);
    assert!(status.success(), "{status}\n{told}\n{errors}");
    let last = told.lines().last().expect("a line");
    assert!(last.starts_with("Nothing is missing and nothing came twice: "), "{last}");
    assert!(last.ends_with("; 4 that the new primary never had were taken back."), "{last}");
    let numbers: Vec<usize> = last.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    assert!(numbers[0] > numbers[1] && numbers[1] >= 1, "{last}");
    assert_eq!(told.lines().filter(|line| line.ends_with(" equal")).count(), 4, "{told}");
    for seen in ["! the source failed over at ", ": 4 transactions with ", "  from log tables\n"] {
        assert!(told.contains(seen), "{seen:?} is not in\n{told}");
    }
    assert!(!told.contains('\u{1b}'), "colours in a file");
    is_clean(&temporary).unwrap();
}

#[test]
fn the_failover_demo_leaves_nothing_behind_when_it_is_interrupted() {
    let interrupted = |signal, moment: &str| {
        let (mut demo, out, temporary) = start();
        eventually_blocking(Duration::from_secs(60), || {
            let told = fs::read_to_string(&out).expect("output");
            if told.contains(moment) { Ok(()) } else { Err(told) }
        });
        process::signal(&demo, signal);
        let status = demo.wait().expect("an end");
        assert_eq!(status.success(), signal == Signal::INT, "{status}");
        eventually_blocking(Duration::from_secs(30), || is_clean(&temporary));
    };
    std::thread::scope(|scope| {
        scope.spawn(|| interrupted(Signal::INT, "kill -9 for the primary"));
        scope.spawn(|| interrupted(Signal::KILL, "The shop goes on"));
    });
}

//! The disk: full, damaged.

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::harness::{
    client::Request,
    command::walcast,
    eventually,
    follower::{Follower, Resume},
    history::{End, lsn},
    process, stage,
    stage::held,
    validators,
};

/// A command that mounts a small file system at `at` in a mount namespace of its own, puts a ballast file on it and
/// executes its arguments there. `None` where that is not permitted.
fn small_disk(at: &Path, mib: u32, ballast_mib: u32) -> Option<Vec<String>> {
    fs::create_dir_all(at).expect("mount point");
    let script = format!(
        "mount -t tmpfs -o size={mib}m,mode=755 walcast-test '{at}' && \
         head -c {ballast_mib}M /dev/zero > '{at}/ballast' && exec setpriv --pdeathsig KILL -- \"$@\"",
        at = at.display()
    );
    let namespaces: &[&[&str]] = &[&["--mount"], &["--mount", "--user", "--map-root-user"]];
    for namespace in namespaces {
        let mut words = vec!["unshare".to_owned()];
        words.extend(namespace.iter().map(|flag| (*flag).to_owned()));
        words.extend(["--", "sh", "-c", &script, "sh"].map(str::to_owned));
        let works = Command::new(&words[0]).args(&words[1..]).arg("true").output();
        if works.is_ok_and(|output| output.status.success()) {
            return Some(words);
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_intake_not_service_and_heals() {
    let mut stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY, v text)").prepare().await;
    stage.hub.env("WALCAST_SEGMENT_BYTES", "1MiB");
    let disk = stage.hub.data_dir().to_owned();
    // The hub keeps 64 MiB free: 16 MiB of room now, 64 MiB once the ballast is gone.
    let Some(wrapper) = small_disk(&disk, 128, 48) else {
        println!("SKIPPED: this system permits no mount namespace (run as root, or allow user namespaces)");
        return;
    };
    stage.hub.wrapper(wrapper);
    stage.hub.start().await;
    stage.streaming().await;
    stage.db.run("INSERT INTO t VALUES (0, 'before')").await;
    let follower = Follower::start(stage.client(), Request::named("worker").earliest(), Resume::Position, false);
    follower.reaches(stage.goal().await, Duration::from_secs(20)).await;

    for round in 0..22 {
        let sql = format!(
            "INSERT INTO t SELECT {round} * 1000 + i, repeat(md5(i::text), 32) FROM generate_series(1, 1000) i"
        );
        stage.db.run(&sql).await;
    }
    stage.hub.metric_becomes("walcast_journal_disk_full", Duration::from_secs(30), |full| full == 1.0).await;
    let confirmed = lsn(&stage.slot("confirmed_flush_lsn").await.expect("an LSN"));
    assert!(confirmed < stage.goal().await, "what is not journaled is not acknowledged");
    let status = stage.client().status().await.expect("status is served");
    assert!(status.source.is_some_and(|source| source.last_error.contains("DISK_FULL")), "it says so");
    let hub = format!("http://127.0.0.1:{}", stage.hub.grpc_port());
    let told = walcast(&["status", "--hub", &hub], &[]).stdout;
    assert!(told.contains("WAITS") && told.contains("DISK_FULL") && told.contains("(since 2"), "{told}");
    // Reading goes on, and PostgreSQL's keepalives are answered: the connection stays.
    let mut reader = stage.client().subscribe(&Request::new().earliest()).await;
    reader.until("what the journal has", |log| log.commits() >= 1).await;
    assert_eq!(stage.slot("active").await.as_deref(), Some("t"));
    assert!(stage.hub.exited().is_none());

    let inside = format!("/proc/{}/root{}/ballast", stage.hub.pid(), disk.display());
    fs::remove_file(&inside).unwrap_or_else(|error| panic!("{inside}: {error}"));
    stage.db.run("INSERT INTO t VALUES (-1, 'after')").await;
    let goal = stage.goal().await;
    follower.reaches(goal, Duration::from_secs(60)).await;
    let history = follower.stop().await.history;
    assert_eq!(history.streams.len(), 1, "the stream stayed open");
    stage.check(&history).await;
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("directory").flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Flips one bit inside the only place that holds `marker`.
fn damage(dir: &Path, marker: &[u8]) {
    for path in files(dir) {
        let bytes = fs::read(&path).expect("file");
        if let Some(at) = bytes.windows(marker.len()).position(|window| window == marker) {
            let mut file = fs::File::options().write(true).open(&path).expect("file");
            file.seek(SeekFrom::Start(at as u64 + 3)).expect("seek");
            file.write_all(&[bytes[at + 3] ^ 0x40]).expect("write");
            file.sync_all().expect("sync");
            return;
        }
    }
    panic!("the marker is in no file of {}", dir.display());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_named_with_its_range_and_the_rest_is_served() {
    let mut stage =
        stage().sql("CREATE TABLE t (id int PRIMARY KEY, v text)").env("WALCAST_SEGMENT_BYTES", "1MiB").start().await;
    let filler = |from: i32| {
        format!("INSERT INTO t SELECT {from} + i, repeat(md5(i::text), 32) FROM generate_series(1, 1500) i")
    };
    stage.db.run(&filler(0)).await;
    stage.journaled().await;
    let before = stage.everything().await.position().expect("a position");
    stage.db.run("INSERT INTO t VALUES (-1, 'MARKER-of-the-damaged-block')").await;
    stage.journaled().await;
    stage.db.run(&filler(10_000)).await;
    stage.db.run(&filler(20_000)).await;
    stage.journaled().await;
    let marked = stage.truth().await.entries[1].clone();
    stage.hub.terminate();
    damage(stage.hub.data_dir(), b"MARKER-of-the-damaged-block");
    stage.hub.start().await;
    stage.streaming().await;

    let mut stream = stage.client().subscribe(&Request::new().earliest().stop_at_tail()).await;
    let failure = stream.fails_with("JOURNAL_CORRUPT").await;
    let (from, to) = (failure.lsn("from"), failure.lsn("to"));
    assert!(from < marked.end_lsn && marked.end_lsn <= to, "{from} to {to} does not cover {marked:?}");
    assert!(to <= stage.goal().await, "the range ends where good data begins");
    let history = stream.close();
    held(&history, validators::formal(&history));
    assert!(history.position().is_some_and(|position| lsn(&position.lsn) <= from), "nothing from behind the damage");
    let good = lsn(&before.lsn);
    assert!(from <= good || history.changes() > 0, "what lies before the damage is served");

    let rest = stage.collect(Request::new().after_lsn(to)).await;
    assert!(rest.changes() >= 1500);
    stage.check(&rest).await;
    stage.db.run("INSERT INTO t VALUES (-2, 'life goes on')").await;
    stage.check(&stage.collect(Request::new().after_lsn(to)).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_is_cut_off_and_fetched_again() {
    let mut stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY, v text)").start().await;
    stage.db.run("INSERT INTO t VALUES (1, 'kept')").await;
    stage.journaled().await;
    stage.hub.kill9();
    // What a crash in the middle of a write leaves: bytes behind the last record that are none.
    let newest = files(stage.hub.data_dir())
        .into_iter()
        .filter(|path| fs::read(path).is_ok_and(|bytes| bytes.windows(4).any(|window| window == b"kept")));
    for path in newest {
        let bytes = fs::read(&path).expect("file");
        let end = bytes.iter().rposition(|byte| *byte != 0).expect("a record") + 1;
        let mut file = fs::File::options().write(true).open(&path).expect("file");
        file.seek(SeekFrom::Start(end as u64 + 8)).expect("seek");
        file.write_all(&[0x5a; 100]).expect("write");
    }
    stage.db.run("INSERT INTO t VALUES (2, 'next')").await;
    stage.hub.start().await;
    stage.streaming().await;
    let history = stage.everything().await;
    assert_eq!(history.changes(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_serves_one_hub() {
    let stage = stage().start().await;
    let mut command = process::command(Path::new(env!("CARGO_BIN_EXE_walcast")), process::Account::Own, "KILL");
    command.args(["serve", "--dsn", &stage.cluster.dsn(), "--slot", "another", "--data-dir"]).arg(stage.hub.data_dir());
    let ports = [process::free_port(), process::free_port()].map(|port| format!("127.0.0.1:{port}"));
    command.args(["--listen", &ports[0], "--http", &ports[1]]);
    let log = fs::File::create(stage.hub.dir().join("second.log")).expect("log");
    command.stdout(log.try_clone().expect("log")).stderr(log);
    let mut second = process::spawn(command).expect("the second hub");
    let status = eventually(Duration::from_secs(20), || {
        let ended = second.try_wait().ok().flatten();
        async move { ended.ok_or("it runs") }
    })
    .await;
    assert_eq!(
        status.code(),
        Some(1),
        "a failure, said in a line: {}",
        process::tail(&stage.hub.dir().join("second.log"), 5)
    );
    let told = fs::read_to_string(stage.hub.dir().join("second.log")).expect("log");
    assert!(
        told.contains("stop that hub, or name another directory with --data-dir") && !told.contains("INTERNAL"),
        "{told}"
    );
    let history = stage.collect(Request::new().earliest()).await;
    assert!(matches!(history.last().end, End::Completed));
}

//! The operator's side: what stops the source and must not be overlooked, another server than the journal's, the
//! commands without a hub, and the lines of the README that need no client of ours.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use walcast::reason::Reason;

use crate::harness::{
    Cluster, Shutdown, Stage,
    client::{Client, Request, refused},
    command::{run, walcast},
    eventually,
    hub::Hub,
    process::{self, Account},
    proxy::Proxy,
    stage,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// What the hub says about its source, once it names this reason.
async fn source_says(client: &Client, reason: &str) -> String {
    eventually(PATIENCE, || async {
        let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
        let told = status.source.map(|source| source.last_error).unwrap_or_default();
        if told.starts_with(reason) { Ok(told) } else { Err(told) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_cannot_be_decoded_stops_the_source_and_is_kept() {
    let mut stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY, v text)").prepare().await;
    let proxy = Proxy::start(stage.cluster.port(), b"POISON").await;
    stage.hub = Hub::new(&format!("host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=disable", proxy.port));
    stage.hub.start().await;
    stage.streaming().await;
    let mut stream = stage.client().subscribe(&Request::new().earliest()).await;
    stage.db.run("INSERT INTO t VALUES (1, 'before')").await;
    stream.until("the row before", |log| log.changes() == 1).await;
    stage.db.run("INSERT INTO t VALUES (2, 'POISON')").await;
    stage.db.run("INSERT INTO t VALUES (3, 'behind')").await;
    let behind = stage.flushed().await;
    source_says(&stage.client(), "DECODE_ERROR").await;
    stage.hub.metric_becomes("walcast_source_undecodable", PATIENCE, |alarm| alarm == 1.0).await;
    let kept: Vec<PathBuf> = fs::read_dir(stage.hub.data_dir().join("quarantine"))
        .expect("the quarantine")
        .map(|entry| entry.expect("entry").path())
        .collect();
    let bytes = fs::read(&kept[0]).expect("the message");
    assert!(kept.len() == 1 && bytes[0] == b'?' && bytes.windows(6).any(|part| part == b"POISON"), "{kept:?}");
    // It is asked for again and again, and never skipped.
    let again = stage.hub.metric("walcast_source_reconnects_total").await + 1.0;
    stage.hub.metric_becomes("walcast_source_reconnects_total", PATIENCE, |attempts| attempts >= again).await;
    assert!(
        stage.db.lsn("(SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'walcast')").await
            < behind
    );
    assert_eq!(stream.log.changes(), 1);

    proxy.honest();
    stream.until("what had stopped it", |log| log.changes() == 3).await;
    stage.hub.metric_becomes("walcast_source_undecodable", PATIENCE, |alarm| alarm == 0.0).await;
    stage.check(&stream.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_than_the_journals_is_refused() {
    let mut stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY)").start().await;
    stage.db.run("INSERT INTO t VALUES (1)").await;
    stage.journaled().await;
    stage.hub.terminate();
    let other = Cluster::of_another_system(crate::harness::versions::default_major(), &[]);
    other.connect().await.run("CREATE PUBLICATION walcast FOR ALL TABLES").await;
    let mut moved = Hub::new(&other.dsn());
    moved.in_data_dir(stage.hub.data_dir());
    moved.spawn();
    let client = Client::new(moved.grpc_port());
    source_says(&client, "SOURCE_CHANGED").await;
    let mut stream = client.subscribe(&Request::new().earliest()).await;
    stream.until("what the journal has", |log| log.changes() == 1).await;
}

/// The server was put back to an earlier state, as from a backup without its later WAL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lost_wal_is_refused() {
    let mut stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY, v text)").start().await;
    stage.db.run("INSERT INTO t VALUES (1, 'kept')").await;
    stage.journaled().await;
    stage.hub.terminate();
    stage.cluster.stop(Shutdown::Fast);
    let (data, saved) = (stage.cluster.data_dir(), process::fresh_dir("saved").join("data"));
    let copy = |from: &Path, to: &Path| {
        let mut cp = std::process::Command::new("cp");
        cp.arg("-a").arg(from).arg(to);
        process::run(cp);
    };
    copy(&data, &saved);
    stage.cluster.resume();
    stage.reconnect().await;
    stage.hub.start().await;
    stage.streaming().await;
    stage.db.run("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(2, 5000) i").await;
    stage.journaled().await;
    stage.hub.terminate();
    stage.cluster.stop(Shutdown::Fast);
    fs::remove_dir_all(&data).expect("remove");
    copy(&saved, &data);
    stage.cluster.resume();
    stage.hub.spawn();
    source_says(&stage.client(), "SOURCE_STALE_PRIMARY").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_source_a_hub_says_what_it_cannot_know() {
    let mut hub = Hub::new(&format!("host=127.0.0.1 port={} user=postgres dbname=postgres", process::free_port()));
    hub.spawn();
    let client = Client::new(hub.grpc_port());
    source_says(&client, "SOURCE_UNAVAILABLE").await;
    assert!(client.subscribe(&Request::new()).await.fails_with("STARTING").await.retry.is_some());
    assert_ne!(hub.get("/readyz").await.expect("/readyz").0, 200);
    assert_eq!(hub.get("/healthz").await.expect("/healthz").0, 200);

    let mut stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY)").start().await;
    stage.db.run("INSERT INTO t VALUES (1)").await;
    stage.journaled().await;
    stage.cluster.stop(Shutdown::Fast);
    source_says(&stage.client(), "SOURCE_UNAVAILABLE").await;
    for request in [Request::new().after_lsn("FFFF/0"), Request::new().earliest().stop_at_tail()] {
        let failure = stage.client().subscribe(&request).await.fails_with("SOURCE_UNAVAILABLE").await;
        assert!(failure.retry.is_some());
    }
}

/// INTERNAL needs a defect; each other reason is met by a scenario of this folder.
#[test]
fn every_reason_is_provoked() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let sources: String = fs::read_dir(folder)
        .expect("tests/it")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| fs::read_to_string(path).expect("source"))
        .collect();
    let missing: Vec<&str> = Reason::ALL
        .iter()
        .filter(|reason| !matches!(reason, Reason::Internal))
        .map(|reason| reason.as_str())
        .filter(|reason| !sources.contains(&format!("\"{reason}")))
        .collect();
    assert!(missing.is_empty(), "no scenario provokes {missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_is_listed_and_verified_without_a_hub() {
    let mut stage =
        stage().sql("CREATE TABLE t (id int PRIMARY KEY, v text)").env("WALCAST_SEGMENT_BYTES", "1MiB").start().await;
    stage.db.run("INSERT INTO t SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, 3000) i").await;
    stage.db.run("INSERT INTO t VALUES (-1, 'MARKER-of-the-damaged-block')").await;
    stage.journaled().await;
    stage.db.run("INSERT INTO t SELECT i, repeat(md5(i::text), 32) FROM generate_series(4000, 5000) i").await;
    stage.journaled().await;
    let dir = stage.hub.data_dir().display().to_string();
    let list = walcast(&["journal", "list", "--data-dir", &dir], &[]).good();
    assert!(list.contains("SEGMENT") && list.contains("UP TO") && !list.contains('\x1b'), "{list}");
    stage.hub.terminate();
    let verified = walcast(&["journal", "verify"], &[("WALCAST_DATA_DIR", &dir)]).good();
    assert!(verified.contains(" intact blocks with ") && !verified.contains("DAMAGED"), "{verified}");

    let segments = fs::read_dir(Path::new(&dir).join("segments")).expect("segments");
    let marker = b"MARKER-of";
    let damaged = segments.map(|entry| entry.expect("entry").path()).find_map(|path| {
        let mut bytes = fs::read(&path).expect("segment");
        let at = bytes.windows(marker.len()).position(|window| window == marker)?;
        bytes[at] ^= 1;
        fs::write(&path, bytes).expect("segment");
        path.file_name().map(|name| name.to_string_lossy().into_owned())
    });
    let damaged = damaged.expect("the marker is in a segment");
    let verified = walcast(&["journal", "verify", "--data-dir", &dir], &[]);
    assert_eq!(verified.code, 1, "{verified:?}");
    assert!(verified.stdout.contains("DAMAGED") && verified.stdout.contains(&damaged), "{verified:?}");
    assert!(verified.stderr.contains("error:"), "{verified:?}");
    assert_eq!(walcast(&["journal", "list", "--data-dir", "/nowhere/at/all"], &[]).code, 2);
}

#[test]
fn completions_and_exit_codes() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = walcast(&["completions", shell], &[]).good();
        assert!(script.contains("subscribers") && script.contains("stop-at-tail"), "{shell}: {script}");
    }
    let bash = process::fresh_dir("completions").join("walcast.bash");
    fs::write(&bash, walcast(&["completions", "bash"], &[]).good()).expect("script");
    run(Path::new("/bin/bash"), &["-n", &bash.display().to_string()], &[]).good();
    let nobody = format!("http://127.0.0.1:{}", process::free_port());
    let dir = process::fresh_dir("settings");
    let (file, config, token) = (dir.join("file"), dir.join("walcast.toml"), dir.join("token"));
    for (path, text) in
        [(&file, ""), (&token, "secret"), (&config, "[source]\ndsn = 'host=127.0.0.1 port=1 user=of_the_file'")]
    {
        fs::write(path, text).expect("a file");
    }
    let [file, config, token] = [file, config, token].map(|path| path.display().to_string());
    let listen = format!("127.0.0.1:{}", process::free_port());
    // Of a pair a flag replaces what a variable says; what a person can mend is said, and is no defect of a hub.
    for (args, env, hint) in [
        (
            vec!["status", "--hub", &nobody, "--token-file", &token],
            ("WALCAST_TOKEN", "other"),
            "is `walcast serve` running?",
        ),
        (vec!["doctor", "--config", &config], ("WALCAST_SLOT", "s"), "Check host and port"),
        (vec!["slot", "list"], ("WALCAST_CONFIG", &config), "Check host and port"),
        (
            vec!["serve", "--config", &config, "--http", "off", "--listen", &listen, "--data-dir", &file],
            ("WALCAST_SLOTT", "s"),
            "file is no directory: name another with --data-dir",
        ),
    ] {
        let ended = walcast(&args, &[env]);
        assert!(ended.code == 1 && ended.stderr.contains(hint), "{args:?}: {ended:?}");
        assert!(!ended.stderr.contains("reason:"), "{ended:?}");
        assert_eq!(args[0] == "serve", ended.stderr.contains("WALCAST_SLOTT"), "{ended:?}");
    }
    for (args, code) in [
        (vec!["--version"], 0),
        (vec!["tail", "--help"], 0),
        (vec![], 2),
        (vec!["serve"], 2),
        (vec!["tail", "--ack"], 2),
        (vec!["subscribers", "reset", "s", "--to", "snapshot"], 2),
        (vec!["journal", "verify", "--data-dir", "/nowhere/at/all"], 2),
        (vec!["status", "--hub", &nobody], 1),
        (vec!["subscribers", "list", "--hub", &nobody], 1),
        (vec!["health", "--http", &nobody["http://".len()..]], 1),
        (vec!["doctor", "--dsn", "host=127.0.0.1 port=1 user=nobody"], 1),
    ] {
        let ended = walcast(&args, &[("HOME", "/nowhere")]);
        assert_eq!(ended.code, code, "{args:?}: {ended:?}");
        assert!(!ended.stdout.contains('\x1b') && !ended.stderr.contains('\x1b'), "no terminal, no colours: {ended:?}");
    }
}

/// `script` gives a command a terminal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn colours_are_for_terminals_only() {
    if !process::tool_exists("script") {
        eprintln!("SKIPPED: util-linux's `script`, which makes a terminal, is not installed");
        return;
    }
    let stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY)").start().await;
    stage.db.run("INSERT INTO t VALUES (1)").await;
    stage.journaled().await;
    let hub = format!("http://127.0.0.1:{}", stage.hub.grpc_port());
    let tail = ["tail", "--hub", &hub, "--from", "earliest", "--stop-at-tail"];
    let plain = walcast(&tail, &[]).good();
    assert!(plain.contains("public.t") && !plain.contains('\x1b'), "{plain:?}");
    let words = format!("{} {}", env!("CARGO_BIN_EXE_walcast"), tail.join(" "));
    let terminal = |env: &[(&str, &str)]| {
        let mut env = env.to_vec();
        env.push(("TERM", "xterm-256color"));
        let script = PathBuf::from(run(Path::new("/bin/sh"), &["-c", "command -v script"], &[]).good().trim());
        run(&script, &["-qec", &words, "/dev/null"], &env).good()
    };
    let coloured = terminal(&[]);
    assert!(coloured.contains("public.t") && coloured.contains("\x1b["), "{coloured:?}");
    let plain = terminal(&[("NO_COLOR", "1")]);
    assert!(plain.contains("public.t") && !plain.contains("\x1b[3"), "{plain:?}");
}

/// From PATH, from where `go install` puts it, or installed by `go` now. Says loudly when there is none.
fn grpcurl() -> Option<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.push(home.join("go/bin"));
    if let Some(found) = dirs.iter().map(|dir| dir.join("grpcurl")).find(|file| file.is_file()) {
        return Some(found);
    }
    dirs.push("/usr/local/go/bin".into());
    let go = dirs.iter().map(|dir| dir.join("go")).find(|file| file.is_file());
    if let Some(go) = go {
        let bin = process::fresh_dir("grpcurl");
        let env = [("GOBIN", &*bin.to_string_lossy()), ("GOFLAGS", "-modcacherw")];
        let installed = run(&go, &["install", "github.com/fullstorydev/grpcurl/cmd/grpcurl@latest"], &env);
        if installed.code == 0 {
            return Some(bin.join("grpcurl"));
        }
        eprintln!("{}", installed.stderr);
    }
    eprintln!("SKIPPED: neither grpcurl nor go is installed, so README's grpcurl lines were NOT run");
    None
}

/// README's commands that begin with grpcurl, with their continuation lines.
fn readme_calls() -> Vec<String> {
    let readme = include_str!("../../README.md");
    let mut calls: Vec<String> = Vec::new();
    let mut open = false;
    for line in readme.lines().filter_map(|line| line.strip_prefix("    ")) {
        if line.starts_with("grpcurl ") {
            calls.push(line.to_owned());
        } else if open && let Some(call) = calls.last_mut() {
            *call += "\n";
            *call += line;
        } else {
            continue;
        }
        let call = calls.last().map(String::as_str).unwrap_or_default();
        open = call.ends_with('\\') || call.matches('\'').count() % 2 == 1;
    }
    calls
}

/// Runs a shell line until its output contains a text; what it printed.
async fn prints(stage: &Stage, line: &str, text: &str) -> String {
    let mut command = process::command(Path::new("/bin/sh"), Account::Own, "KILL");
    command.args(["-c", &format!("exec {line}")]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process::spawn(command).expect("sh");
    let (sender, mut output) = tokio::sync::mpsc::unbounded_channel();
    let pipes: [Box<dyn Read + Send>; 2] =
        [Box::new(child.stdout.take().expect("stdout")), Box::new(child.stderr.take().expect("stderr"))];
    for mut pipe in pipes {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                let _ = sender.send(String::from_utf8_lossy(&buffer[..n]).into_owned());
            }
        });
    }
    drop(sender);
    let started = Instant::now();
    let mut printed = String::new();
    while !printed.contains(text) {
        assert!(started.elapsed() < PATIENCE, "{line}\nprinted no {text}, but:\n{printed}");
        // A stream without a start begins at the tail: rows have to come while it is open.
        stage.db.run("INSERT INTO orders SELECT max(id) + 1, 150 FROM orders").await;
        match tokio::time::timeout(Duration::from_millis(100), output.recv()).await {
            Ok(Some(part)) => printed += &part,
            Ok(None) => break,
            Err(_) => {}
        }
    }
    while let Ok(part) = output.try_recv() {
        printed += &part;
    }
    process::signal(&child, rustix::process::Signal::KILL);
    let _ = child.wait();
    assert!(printed.contains(text), "{line}\nprinted no {text}, but:\n{printed}");
    printed
}

/// The README's calls as they stand there, but for the port: no proto file, no client of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_readmes_grpcurl_lines_work() {
    let calls = readme_calls();
    assert_eq!(calls.len(), 4, "{calls:?}");
    let Some(grpcurl) = grpcurl() else { return };
    let stage = stage()
        .sql("CREATE TABLE orders (id int PRIMARY KEY, total numeric); ALTER TABLE orders REPLICA IDENTITY FULL")
        .start()
        .await;
    stage.db.run("INSERT INTO orders VALUES (1, 50), (2, 200.5)").await;
    stage.journaled().await;
    let here = |call: &str| {
        let call = call.replacen("grpcurl", &grpcurl.display().to_string(), 1);
        call.replace("127.0.0.1:50051", &format!("127.0.0.1:{}", stage.hub.grpc_port()))
    };
    let expected =
        ["walcast.v1.ChangeStreamService", "\"table\": \"public.orders\"", "\"200.5\"", "\"slot\": \"walcast\""];
    for (call, expected) in calls.iter().zip(expected) {
        prints(&stage, &here(call), expected).await;
    }
    let described = here("grpcurl -plaintext 127.0.0.1:50051 describe walcast.v1.Filter");
    prints(&stage, &described, "message Filter").await;
    let health = here("grpcurl -plaintext 127.0.0.1:50051 grpc.health.v1.Health/Check");
    prints(&stage, &health, "SERVING").await;
    refused(stage.client().acknowledge("nobody", &Default::default(), 0).await, "REQUEST_INVALID");
}

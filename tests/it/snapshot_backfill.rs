//! Rows into a stream that is already open, resumption from a checkpoint, and the command that copies tables.

use std::{process::Command, time::Duration};

use walcast::wire::pb::{
    self, BackfillAction, SnapshotMode, change_stream_service_client::ChangeStreamServiceClient, event::Kind,
};

use crate::harness::{
    Stage,
    client::Request,
    eventually,
    history::StreamLog,
    parsed::{Cell, Parsed, Unit},
    stage,
    stage::held,
    validators::{self, Replica},
};
use crate::snapshot_states::open_transactions;

pub async fn backfill(stage: &Stage, request: pb::BackfillRequest) -> Result<String, tonic::Status> {
    let url = format!("http://127.0.0.1:{}", stage.hub.grpc_port());
    let mut client = ChangeStreamServiceClient::connect(url).await.expect("the hub");
    client.backfill(request).await.map(|response| response.into_inner().snapshot_id)
}

pub fn order(action: BackfillAction) -> pb::BackfillRequest {
    pb::BackfillRequest { subscriber: "sub".into(), action: action as i32, ..Default::default() }
}

fn ended(log: &StreamLog) -> bool {
    log.kinds().any(|kind| matches!(kind, Kind::SnapshotEnd(_)))
}

fn ids(parsed: &Parsed<'_>) -> Vec<i64> {
    let id = |unit: &Unit| match unit {
        Unit::Read { item, .. } => match item.what.get("id") {
            Some(Cell::Int(id)) => Some(*id),
            other => panic!("{other:?}"),
        },
        _ => None,
    };
    parsed.streams.iter().flatten().filter_map(id).collect()
}

const ROWS: &str = "CREATE TABLE items (id int PRIMARY KEY, name text); CREATE TABLE other (id int PRIMARY KEY);
    INSERT INTO items SELECT n, 'x' FROM generate_series(1, 3000) n; INSERT INTO other VALUES (1)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_stream_takes_rows_of_some_tables() {
    let stage = stage().sql(ROWS).start().await;
    let mut stream = stage.client().subscribe(&Request::named("sub").latest()).await;
    stream.until("opened", |log| log.opened().is_some()).await;
    stage.db.run("UPDATE items SET name = 'y' WHERE id = 7").await;
    // Rows are read and not changed: the replica identity need not tell of the columns.
    let filter = |predicate: &str| pb::Filter {
        tables: vec!["public.items".into()],
        r#where: predicate.into(),
        ..Default::default()
    };
    let unknown = pb::BackfillRequest { filter: Some(filter("nothing = 1")), ..order(BackfillAction::Start) };
    let unknown = backfill(&stage, unknown).await.expect_err("no such column");
    assert!(unknown.code() == tonic::Code::InvalidArgument && unknown.message().contains("nothing"), "{unknown:?}");
    let many: Vec<String> = (100_000..100_300).map(|id| id.to_string()).collect();
    let long = pb::BackfillRequest {
        filter: Some(filter(&format!("id IN ({})", many.join(", ")))),
        ..order(BackfillAction::Start)
    };
    let long = backfill(&stage, long).await.expect_err("no checkpoint keeps it");
    assert!(long.code() == tonic::Code::InvalidArgument && long.message().contains("keep 2048"), "{long:?}");
    let filter = filter("id <= 2900 AND name IN ('x', 'y', 'z')");
    let start = |max_rows_per_second| {
        let options = pb::SnapshotOptions { max_rows_per_second, ..Default::default() };
        pb::BackfillRequest { filter: Some(filter.clone()), options: Some(options), ..order(BackfillAction::Start) }
    };
    // Slow enough to be in the middle of it for longer than any call takes.
    let id = backfill(&stage, start(200)).await.expect("a backfill");
    let rows = |log: &StreamLog| log.kinds().filter(|kind| matches!(kind, Kind::Change(_))).count();
    stream.until("the first rows", |log| rows(log) > 100).await;
    let twice = backfill(&stage, start(200)).await.expect_err("one at a time");
    assert!(twice.message().contains(&id), "{twice:?}");
    assert_eq!(backfill(&stage, order(BackfillAction::Pause)).await.expect("paused"), id);
    stage.db.run("UPDATE items SET name = 'z' WHERE id = 8").await;
    stream.reaches(stage.goal().await).await;
    assert!(!ended(&stream.log), "changes go on while rows are paused");
    backfill(&stage, pb::BackfillRequest { snapshot_id: id.clone(), ..order(BackfillAction::Resume) })
        .await
        .expect("resumed");
    // More than the chunks that were read when it was paused.
    let paused = rows(&stream.log);
    stream.until("more rows", |log| rows(log) > paused + 600).await;
    assert_eq!(backfill(&stage, order(BackfillAction::Cancel)).await.expect("cancelled"), id);
    let begins = |log: &StreamLog| {
        log.kinds()
            .filter_map(|kind| if let Kind::SnapshotBegin(it) = kind { Some(it.snapshot_id.clone()) } else { None })
            .collect::<Vec<_>>()
    };
    let again = eventually(Duration::from_secs(30), || async {
        backfill(&stage, start(0)).await.map_err(|status| format!("{status:?}"))
    })
    .await;
    stream.until("snapshot_end", ended).await;
    assert_eq!(begins(&stream.log), [id, again]);
    let history = stream.close();
    // Of a cancelled snapshot there is no end, so what is checked is the rows alone.
    let id = |kind: &Kind| match kind {
        Kind::Change(change) => match change.after_row.as_ref()?.values.first()?.kind.as_ref()? {
            pb::value::Kind::IntValue(id) => Some(*id),
            other => panic!("{other:?}"),
        },
        _ => None,
    };
    let mut found: Vec<i64> = history.last().kinds().filter_map(id).collect();
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, (1..=2900).collect::<Vec<_>>());
    let nobody = pb::BackfillRequest { subscriber: "nobody".into(), ..start(0) };
    assert_eq!(backfill(&stage, nobody).await.expect_err("unknown").code(), tonic::Code::NotFound);
    let closed = backfill(&stage, order(BackfillAction::Cancel)).await.expect_err("nothing runs");
    assert_eq!(closed.code(), tonic::Code::FailedPrecondition);
}

/// A stream that takes nothing holds what one backfill needs and not more, however often it is asked for; and no more snapshots
/// are read than the hub's limit, of whichever kind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_stream_holds_one_backfill_and_the_hub_so_many_snapshots() {
    let stage = stage()
        .sql(ROWS)
        .sql("CREATE TABLE wide (id int PRIMARY KEY, data text)")
        .env("WALCAST_LIMITS_SNAPSHOTS", "1")
        .start()
        .await;
    let mut stalled = stage.client().subscribe(&Request::named("sub").latest()).await;
    let mut other = stage.client().subscribe(&Request::named("other").latest().tables(&["public.items"])).await;
    stalled.until("opened", |log| log.opened().is_some()).await;
    other.until("opened", |log| log.opened().is_some()).await;
    // Orders are taken up between transactions, and this one is more than the client's windows hold.
    stage.db.run("INSERT INTO wide SELECT n, repeat(md5(n::text), 300) FROM generate_series(1, 2500) n").await;
    stalled.until("its first row", |log| log.kinds().any(|kind| matches!(kind, Kind::Change(_)))).await;
    let of = |subscriber: &str, action, max_rows_per_second| {
        let filter = pb::Filter { tables: vec!["public.items".into()], ..Default::default() };
        let options = pb::SnapshotOptions { max_rows_per_second, ..Default::default() };
        let (filter, options) = (Some(filter), Some(options));
        pb::BackfillRequest { subscriber: subscriber.into(), filter, options, ..order(action) }
    };
    let start = |subscriber: &str, speed| of(subscriber, BackfillAction::Start, speed);
    let plain = |action| order(action);
    let (one, two) = tokio::join!(backfill(&stage, start("sub", 0)), backfill(&stage, start("sub", 0)));
    let (first, second) = match (one, two) {
        (Ok(id), Err(refused)) | (Err(refused), Ok(id)) => (id, refused),
        both => panic!("one of two: {both:?}"),
    };
    assert_eq!(second.code(), tonic::Code::FailedPrecondition, "{second:?}");
    let third = backfill(&stage, start("sub", 0)).await.expect_err("one waits");
    assert!(third.code() == tonic::Code::FailedPrecondition && third.message().contains(&first), "{third:?}");
    let beyond = backfill(&stage, start("other", 0)).await.expect_err("beyond the limit");
    assert_eq!(beyond.code(), tonic::Code::ResourceExhausted, "{beyond:?}");
    assert!(beyond.message().contains("limits.snapshots"), "{beyond:?}");
    assert_eq!(backfill(&stage, plain(BackfillAction::Pause)).await.expect("paused before it runs"), first);
    assert_eq!(backfill(&stage, plain(BackfillAction::Cancel)).await.expect("cancelled before it runs"), first);
    backfill(&stage, plain(BackfillAction::Resume)).await.expect_err("there is none");

    backfill(&stage, start("other", 500)).await.expect("there is room again");
    let beyond = backfill(&stage, start("sub", 0)).await.expect_err("beyond the limit");
    assert_eq!(beyond.code(), tonic::Code::ResourceExhausted, "{beyond:?}");
    let mut initial = stage.client().subscribe(&Request::new().snapshot(SnapshotMode::Consistent)).await;
    let failure = initial.fails_with("TOO_MANY_STREAMS").await;
    assert!(failure.retry.is_some(), "{failure:?}");
    backfill(&stage, pb::BackfillRequest { subscriber: "other".into(), ..order(BackfillAction::Cancel) })
        .await
        .expect("cancelled");
    let last = eventually(Duration::from_secs(30), || async {
        backfill(&stage, start("sub", 0)).await.map_err(|status| format!("{status:?}"))
    });
    let last = tokio::select! {
        last = last => last,
        () = async { while other.pull().await {} } => panic!("the other stream ended"),
    };
    for action in [BackfillAction::Pause, BackfillAction::Resume, BackfillAction::Pause, BackfillAction::Resume] {
        assert_eq!(backfill(&stage, order(action)).await.expect("it waits"), last);
    }
    stalled.until("snapshot_end", ended).await;
    let begins: Vec<_> = stalled.log.kinds().filter(|kind| matches!(kind, Kind::SnapshotBegin(_))).collect();
    assert!(matches!(begins[..], [Kind::SnapshotBegin(begin)] if begin.snapshot_id == last), "{begins:?}");
    let history = stalled.close();
    let parsed = held(&history, validators::formal(&history));
    assert_eq!(ids(&parsed).len(), 3000);
}

/// A cancelled backfill has no end; the stream goes on, and another may begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_is_cancelled_and_keeps_to_its_speed() {
    let stage = stage().sql(ROWS).start().await;
    let mut stream =
        stage.client().subscribe(&Request::named("sub").latest().progress_every(Duration::from_millis(50))).await;
    stream.until("opened", |log| log.opened().is_some()).await;
    let start = |max_rows_per_second| {
        let filter = pb::Filter { tables: vec!["public.items".into()], ..Default::default() };
        let options = pb::SnapshotOptions { max_rows_per_second, ..Default::default() };
        pb::BackfillRequest { filter: Some(filter), options: Some(options), ..order(BackfillAction::Start) }
    };
    let id = backfill(&stage, start(500)).await.expect("a backfill");
    let rows = |log: &StreamLog| log.kinds().filter(|kind| matches!(kind, Kind::Change(_))).count();
    stream.until("the first rows", |log| rows(log) > 0).await;
    let cancel = pb::BackfillRequest { snapshot_id: id.clone(), ..order(BackfillAction::Cancel) };
    assert_eq!(backfill(&stage, cancel).await.expect("cancelled"), id);
    let token_is_gone = |log: &StreamLog| {
        log.progress()
            .next_back()
            .and_then(|progress| progress.position.as_ref())
            .is_some_and(|p| p.snapshot.is_empty())
    };
    stream.until("nothing is owed", token_is_gone).await;
    let sent = rows(&stream.log);
    assert!(sent < 3000, "too fast to be cancelled");
    stage.db.run("UPDATE items SET name = 'y' WHERE id = 7").await;
    stream.reaches(stage.goal().await).await;
    assert_eq!((rows(&stream.log), ended(&stream.log)), (sent + 1, false), "nothing more was sent");
    let began = std::time::Instant::now();
    let again = backfill(&stage, start(2000)).await.expect("another backfill");
    assert_ne!(again, id);
    stream.until("snapshot_end", ended).await;
    // A chunk goes out at once, and the pause behind it is as long as it is large: only the last is not paid for.
    let took = began.elapsed();
    assert!(took > Duration::from_millis(400), "3000 rows at 2000 per second took {took:?}");
    assert_eq!(rows(&stream.log), sent + 1 + 3000);
    held(&stream.close(), Ok(()));
}

/// A backfill goes on with its own tables and its own condition, and the stream's filter still holds beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_goes_on_after_a_restart_of_the_hub() {
    let mut stage = stage().sql(ROWS).sql("UPDATE items SET name = 'y' WHERE id % 2 = 0").start().await;
    let request = Request::named("sub").progress_every(Duration::from_millis(50));
    let request = request.filter(|filter| filter.r#where = "id > 500".into());
    let mut stream = stage.client().subscribe(&request.clone().latest()).await;
    stream.until("opened", |log| log.opened().is_some()).await;
    let filter = pb::Filter { tables: vec!["public.items".into()], r#where: "name = 'y'".into(), ..Default::default() };
    let options = pb::SnapshotOptions { max_rows_per_second: 500, ..Default::default() };
    let start = pb::BackfillRequest { filter: Some(filter), options: Some(options), ..order(BackfillAction::Start) };
    let id = backfill(&stage, start).await.expect("a backfill");
    let reads = |log: &StreamLog| log.kinds().filter(|kind| matches!(kind, Kind::Change(_))).count();
    let inside = |log: &StreamLog| {
        let last = log.progress().next_back().and_then(|progress| progress.position.as_ref());
        reads(log) > 300 && last.is_some_and(|position| !position.snapshot.is_empty())
    };
    stream.until("progress inside the rows", inside).await;
    assert!(!ended(&stream.log), "too fast to be interrupted");
    let position = stream.log.position().expect("a position");
    stage.client().acknowledge("sub", &position, stream.opened().session).await.expect("acknowledged");
    stage.hub.kill9();
    stage.hub.start().await;
    let first = stream.close();
    stage.db.run("UPDATE items SET name = 'z' WHERE id = 2998").await;
    let mut stream = stage.client().subscribe(&request).await;
    stream.until("snapshot_end", ended).await;
    stream.reaches(stage.goal().await).await;
    let second = stream.close();
    let begin = second.last().kinds().find_map(|kind| match kind {
        Kind::SnapshotBegin(begin) => Some((begin.snapshot_id.clone(), begin.tables.len(), begin.restarted)),
        _ => None,
    });
    assert_eq!(begin, Some((id, 1, false)));
    let (mut found, rest) = (ids(&held(&first, Parsed::of(&first))), ids(&held(&second, Parsed::of(&second))));
    assert!(rest.iter().min() > Some(&502), "it starts over");
    found.extend(rest);
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, (502..=2996).step_by(2).chain([3000]).collect::<Vec<_>>());
    let changed = held(&second, Parsed::of(&second)).items().count();
    assert_eq!(changed, 1, "the change is the stream's, whatever the backfill chooses");
}

/// A named subscriber that acknowledges goes on inside its snapshot; a consistent one is told that it starts over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_inside_a_snapshot_is_gone_on_from() {
    // Its keys are longer than what a checkpoint keeps, and it comes first.
    let long = "CREATE TABLE long (name text PRIMARY KEY);
        INSERT INTO long SELECT repeat('x', 5000) || n FROM generate_series(1, 600) n";
    let stage = stage().sql(long).sql(ROWS).start().await;
    for (name, mode) in [("one", SnapshotMode::Incremental), ("two", SnapshotMode::Consistent)] {
        let mut request = Request::named(name);
        let options = pb::SnapshotOptions { mode: mode as i32, max_rows_per_second: 1500 };
        request.0.start = Some(pb::Start { at: Some(pb::start::At::Snapshot(options)) });
        request = request.progress_every(Duration::from_millis(50));
        let mut stream = stage.client().subscribe(&request).await;
        stream.until("progress inside", |log| log.progress().count() > 2).await;
        let position = stream.log.position().expect("a position");
        assert!(!position.snapshot.is_empty(), "rows are owed");
        let session = stream.opened().session;
        let answered = stage.client().acknowledge(name, &position, session).await.expect("acknowledged");
        assert_eq!(answered, position, "with all that is needed");
        let first = stream.close();
        stage.db.run("UPDATE items SET name = name || '!' WHERE id % 10 = 0").await;
        request.0.start = None;
        let mut stream = stage.client().subscribe(&request).await;
        stream.until("snapshot_end", ended).await;
        stream.reaches(stage.goal().await).await;
        let second = stream.close();
        let begin = second.last().kinds().find_map(|kind| match kind {
            Kind::SnapshotBegin(begin) => Some(begin.clone()),
            _ => None,
        });
        let begin = begin.expect("snapshot_begin");
        assert_eq!((begin.mode(), begin.restarted), (mode, mode == SnapshotMode::Consistent));
        let tables = ["public.items", "public.long", "public.other"].map(str::to_owned);
        let mut replica = Replica::default();
        replica.incremental = mode == SnapshotMode::Incremental;
        if mode == SnapshotMode::Incremental {
            held(&first, replica.apply(&held(&first, validators::formal(&first))));
        }
        held(&second, replica.apply(&held(&second, validators::formal(&second))));
        held(&second, replica.equals_source(&stage.db, &tables).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_copies_tables_into_files() {
    let stage =
        stage().sql(ROWS).sql("INSERT INTO items VALUES (0, E'a,\"b\"\\n'), (-1, NULL), (-2, '')").start().await;
    let url = format!("http://127.0.0.1:{}", stage.hub.grpc_port());
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_walcast"))
            .arg("snapshot")
            .args(args)
            .args(["--hub", &url])
            .current_dir(stage.hub.dir())
            .output()
            .expect("walcast snapshot");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let read = |name: &str| std::fs::read_to_string(stage.hub.dir().join(name)).expect(name);
    assert_eq!(run(&["public.items", "--where", "id <= 0", "--to", "items.csv"]).0, Some(0));
    let csv = read("items.csv");
    let mut lines: Vec<&str> = csv.split_inclusive('\n').collect();
    assert_eq!(lines.remove(0), "id,name\n");
    assert!(csv.contains("-1,\n") && csv.contains("-2,\"\"\n") && csv.contains("0,\"a,\"\"b\"\"\n\"\n"), "{csv}");
    assert_eq!(run(&["public.*", "--to", "all.jsonl"]).0, Some(0));
    assert_eq!(read("all.jsonl").lines().count(), 3004);
    assert!(read("all.jsonl").contains(r#"{"table":"public.other","row":{"id":1}}"#));
    stage.db.run("CREATE TABLE empty (id int PRIMARY KEY, name text)").await;
    assert_eq!(run(&["public.empty", "--to", "empty.csv"]).0, Some(0));
    assert_eq!(read("empty.csv"), "id,name\n");
    assert_eq!(run(&["public.*", "--to", "all.csv"]).0, Some(2), "one table in a CSV file");
    assert!(!stage.hub.dir().join("all.csv").exists() && !stage.hub.dir().join("all.csv.part").exists());
    let tail = |format: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walcast"));
        command.args([
            "tail",
            "public.items",
            "--from",
            "snapshot",
            "--stop-at-tail",
            "--format",
            format,
            "--hub",
            &url,
        ]);
        let output = command.args(more).output().expect("walcast tail");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let json = tail("json", &["--envelope"]);
    let events: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    assert_eq!(of("snapshot_begin")[0]["mode"], "consistent", "{:?}", of("snapshot_begin"));
    assert_eq!(of("snapshot_end")[0]["rows"], 3003);
    assert!(tail("pretty", &[]).contains("snapshot of public.items: 3,003 rows"));
    let (code, text) = run(&["public.nothing", "--to", "n.csv"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("TABLE_NOT_PUBLISHED"), "{text}");
    // No replica identity has to tell of a column by which rows alone are chosen.
    assert_eq!(run(&["public.items", "--where", "name = 'x'", "--to", "x.csv"]), (Some(0), String::new()), "quiet");
    assert_eq!(read("x.csv").lines().count(), 3001);
}

/// On a terminal a bar tells how many rows, how fast, and how long it will take. Interrupted, it leaves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_tells_a_terminal_how_it_goes() {
    let stage = stage().sql(ROWS).sql("ANALYZE items").start().await;
    let url = format!("http://127.0.0.1:{}", stage.hub.grpc_port());
    let walcast = env!("CARGO_BIN_EXE_walcast");
    let command = format!("{walcast} snapshot public.items --to items.csv --max-rows-per-second 1500 --hub {url}");
    let on_terminal = |command: &str| {
        let mut script = Command::new("script");
        script.args(["-q", "-e", "-f", "-c", command, "/dev/null"]).current_dir(stage.hub.dir());
        script.env("TERM", "xterm").env("COLUMNS", "120").stdin(std::process::Stdio::null());
        script
    };
    let output = on_terminal(&command).output().expect("script");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    // Half of it: "1,536 of about 3,000 rows  1,480 per second  1 second left".
    let number = |text: &str| text.replace(',', "").parse::<u64>().unwrap_or_default();
    let told = text.split("of about 3,000 rows  ").skip(1).filter_map(|rest| rest.split_once(" per second  "));
    let told: Vec<(u64, &str)> = told.map(|(rate, rest)| (number(rate), rest.split(" left").next().unwrap())).collect();
    assert!(told.iter().any(|(_, left)| *left == "1 second"), "{told:?}");
    let last = told.last().expect("a bar").0;
    assert!((100..=1700).contains(&last), "{last} rows per second at a limit of 1500: {told:?}");
    assert!(text.contains("3,000 rows of 1 table in "), "{text}");
    assert_eq!(std::fs::read_to_string(stage.hub.dir().join("items.csv")).expect("items.csv").lines().count(), 3001);

    // Interrupted, it ends at once with 1, leaves what was there before, and nothing on the server.
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walcast'";
    let before = stage.db.number(sessions).await;
    for to in ["slow.csv", "items.csv"] {
        let mut slow = Command::new(env!("CARGO_BIN_EXE_walcast"));
        slow.args(["snapshot", "public.items", "--to", to, "--max-rows-per-second", "100", "--hub", &url]);
        let slow = slow.current_dir(stage.hub.dir()).stderr(std::process::Stdio::piped()).spawn().expect("walcast");
        let part = stage.hub.dir().join(format!("{to}.part"));
        eventually(Duration::from_secs(30), || async { if part.exists() { Ok(()) } else { Err("no file yet") } }).await;
        assert!(open_transactions(&stage).await > 0, "the rows are of one moment");
        let pid = rustix::process::Pid::from_raw(slow.id() as i32).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupted");
        let output = slow.wait_with_output().expect("walcast");
        assert_eq!(output.status.code(), Some(1));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(&format!("interrupted: {to} was not written")), "{told}");
        assert!(!part.exists() && !stage.hub.dir().join("slow.csv").exists());
        eventually(Duration::from_secs(10), || async {
            match (open_transactions(&stage).await, stage.db.number(sessions).await) {
                (0, left) if left <= before => Ok(()),
                (open, left) => Err(format!("{open} transactions and {left} sessions, of {before} before")),
            }
        })
        .await;
    }
    let mut misspelt = Command::new(env!("CARGO_BIN_EXE_walcast"));
    misspelt.args(["snapshot", "public.items", "--columns", "public.items.iid", "--to", "items.csv", "--hub", &url]);
    let output = misspelt.current_dir(stage.hub.dir()).output().expect("walcast");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && told.contains("table public.items has no column \"iid\""), "{told}");
    assert_eq!(std::fs::read_to_string(stage.hub.dir().join("items.csv")).expect("items.csv").lines().count(), 3001);
}

const KINDS: &str = "CREATE TABLE kinds (
        id bigint PRIMARY KEY, flag bool, small int2, word int4, o oid, real4 float4, real8 float8, price numeric(10,2),
        big numeric(30,5), free numeric, raw bytea, label text, at timestamptz, local timestamp, day date, u uuid, doc jsonb,
        list int[]);
    INSERT INTO kinds VALUES
        (1, true, -3, 2147483647, 4294967295, 1.5, 'NaN', -12.50, -1234567890123456789012345.00001, 1e40, '\\x00ff', 'ä,\"\"',
         '2026-01-01 12:00+02', '1969-12-31 23:59:59.999999', '0044-03-15 BC', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{\"a\": 1}',
         '{1,NULL}');
    INSERT INTO kinds (id) VALUES (2);
    INSERT INTO kinds (id, price) SELECT n, n / 100.0 FROM generate_series(3, 40000) n";

/// Read back by the reader of the crate, which takes nothing from the writer but the file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parquet_file_holds_what_the_table_holds() {
    use parquet::{
        file::reader::{FileReader, SerializedFileReader},
        record::Field,
    };
    let stage = stage().sql(KINDS).sql("CREATE TABLE empty (id int PRIMARY KEY, name text)").start().await;
    let url = format!("http://127.0.0.1:{}", stage.hub.grpc_port());
    let run = |table: &str, to: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walcast"));
        command.args(["snapshot", table, "--to", to, "--hub", &url]).current_dir(stage.hub.dir());
        let output = command.output().expect("walcast snapshot");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let open = |name: &str| {
        let file = std::fs::File::open(stage.hub.dir().join(name)).expect(name);
        SerializedFileReader::new(file).expect("a Parquet file")
    };
    assert_eq!(run("public.kinds", "kinds.parquet").0, Some(0));
    let reader = open("kinds.parquet");
    let mut rows: Vec<Vec<Field>> = Vec::new();
    for row in reader.get_row_iter(None).expect("rows") {
        rows.push(row.expect("a row").get_column_iter().map(|(_, field)| field.clone()).collect());
    }
    rows.sort_by_key(|row| match row[0] {
        Field::Long(id) => id,
        ref other => panic!("{other:?}"),
    });
    assert_eq!(rows.len(), 40_000);
    let text = |text: &str| Field::Str(text.to_owned());
    assert_eq!(
        rows[0][1..6],
        [Field::Bool(true), Field::Short(-3), Field::Int(i32::MAX), Field::Long(4_294_967_295), Field::Float(1.5)]
    );
    assert!(matches!(rows[0][6], Field::Double(nan) if nan.is_nan()));
    let decimals: Vec<String> = rows[0][7..9].iter().map(ToString::to_string).collect();
    assert_eq!(decimals, ["-12.50", "-1234567890123456789012345.00001"]);
    assert_eq!(rows[0][9], text("10000000000000000000000000000000000000000"));
    assert_eq!(rows[0][10], Field::Bytes(vec![0, 0xff].into()));
    assert_eq!(rows[0][11], text("ä,\"\""));
    assert_eq!(rows[0][12], Field::TimestampMicros(1_767_261_600_000_000));
    assert_eq!(rows[0][13], Field::TimestampMicros(-1));
    assert_eq!(rows[0][14], Field::Date(-735_160), "days before 1970");
    assert_eq!(rows[0][15], text("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"));
    assert_eq!(rows[0][17], text("{1,NULL}"));
    assert!(rows[1][1..].iter().all(|field| *field == Field::Null), "{:?}", rows[1]);
    assert_eq!(rows[39_999][7].to_string(), "400.00");

    assert_eq!(run("public.empty", "empty.parquet").0, Some(0));
    let empty = open("empty.parquet");
    assert_eq!(empty.metadata().file_metadata().num_rows(), 0);
    let columns = empty.metadata().file_metadata().schema().get_fields().iter().map(|field| field.name().to_owned());
    assert_eq!(columns.collect::<Vec<_>>(), ["id", "name"]);

    stage.db.run("UPDATE kinds SET at = 'infinity' WHERE id = 2").await;
    let (code, message) = run("public.kinds", "again.parquet");
    assert_eq!(code, Some(1));
    assert!(message.contains("infinity in column \"at\" (timestamptz)"), "{message}");
    assert!(!stage.hub.dir().join("again.parquet.part").exists());
}

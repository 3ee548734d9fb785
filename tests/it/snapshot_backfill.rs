//! Rows into a stream that is already open, resumption from a checkpoint, and the command that copies tables.

use std::{process::Command, time::Duration};

use walcast::wire::pb::{
    self, BackfillAction, SnapshotMode, change_stream_service_client::ChangeStreamServiceClient, event::Kind,
};

use crate::harness::{
    Stage,
    client::Request,
    history::StreamLog,
    parsed::{Cell, Parsed, Unit},
    stage,
    stage::held,
    validators::{self, Replica},
};

async fn backfill(stage: &Stage, request: pb::BackfillRequest) -> Result<String, tonic::Status> {
    let url = format!("http://127.0.0.1:{}", stage.hub.grpc_port());
    let mut client = ChangeStreamServiceClient::connect(url).await.expect("the hub");
    client.backfill(request).await.map(|response| response.into_inner().snapshot_id)
}

fn order(action: BackfillAction) -> pb::BackfillRequest {
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
    let filter = pb::Filter { tables: vec!["public.items".into()], r#where: "id <= 2000".into(), ..Default::default() };
    let options = pb::SnapshotOptions { max_rows_per_second: 2000, ..Default::default() };
    let start = pb::BackfillRequest { filter: Some(filter), options: Some(options), ..order(BackfillAction::Start) };
    let id = backfill(&stage, start.clone()).await.expect("a backfill");
    stream
        .until("the first rows", |log| log.kinds().filter(|kind| matches!(kind, Kind::Change(_))).count() > 100)
        .await;
    let twice = backfill(&stage, start.clone()).await.expect_err("one at a time");
    assert!(twice.message().contains(&id), "{twice:?}");
    assert_eq!(backfill(&stage, order(BackfillAction::Pause)).await.expect("paused"), id);
    stage.db.run("UPDATE items SET name = 'z' WHERE id = 8").await;
    stream.reaches(stage.goal().await).await;
    assert!(!ended(&stream.log), "changes go on while rows are paused");
    backfill(&stage, pb::BackfillRequest { snapshot_id: id.clone(), ..order(BackfillAction::Resume) })
        .await
        .expect("resumed");
    stream.until("snapshot_end", ended).await;
    let history = stream.close();
    let parsed = held(&history, validators::formal(&history));
    let mut found = ids(&parsed);
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, (1..=2000).collect::<Vec<_>>());
    let nobody = pb::BackfillRequest { subscriber: "nobody".into(), ..start };
    assert_eq!(backfill(&stage, nobody).await.expect_err("unknown").code(), tonic::Code::NotFound);
    let closed = backfill(&stage, order(BackfillAction::Cancel)).await.expect_err("nothing runs");
    assert_eq!(closed.code(), tonic::Code::FailedPrecondition);
}

/// A named subscriber that acknowledges goes on inside its snapshot; a consistent one is told that it starts over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_inside_a_snapshot_is_gone_on_from() {
    let stage = stage().sql(ROWS).start().await;
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
        let mut replica = Replica::default();
        replica.incremental = mode == SnapshotMode::Incremental;
        if mode == SnapshotMode::Incremental {
            held(&first, replica.apply(&held(&first, validators::formal(&first))));
        }
        held(&second, replica.apply(&held(&second, validators::formal(&second))));
        held(&second, replica.equals_source(&stage.db, &["public.items".into(), "public.other".into()]).await);
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
    assert_eq!(run(&["public.items", "--where", "id <= 0", "--to", "items.csv"]), (Some(0), String::new()));
    let csv = read("items.csv");
    let mut lines: Vec<&str> = csv.split_inclusive('\n').collect();
    assert_eq!(lines.remove(0), "id,name\n");
    assert!(csv.contains("-1,\n") && csv.contains("-2,\"\"\n") && csv.contains("0,\"a,\"\"b\"\"\n\"\n"), "{csv}");
    assert_eq!(run(&["public.*", "--to", "all.jsonl"]).0, Some(0));
    assert_eq!(read("all.jsonl").lines().count(), 3004);
    assert!(read("all.jsonl").contains(r#"{"table":"public.other","row":{"id":1}}"#));
    assert_eq!(run(&["public.*", "--to", "all.csv"]).0, Some(2), "one table in a CSV file");
    assert!(!stage.hub.dir().join("all.csv").exists() && !stage.hub.dir().join("all.csv.part").exists());
    let (code, text) = run(&["public.nothing", "--to", "n.csv"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("TABLE_NOT_PUBLISHED"), "{text}");
}

//! Rust's runner for clients/conformance: one subscription, driven by lines on stdin.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value as Json, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    sync::Notify,
};
use walcast_client::{
    Backfill, BackfillAction, Change, Client, Error, Gap, Operation, Retry, Row, Snapshot, SnapshotEvent, SnapshotMode,
    Start, Subscription, TimeTz, TimelineChanged, Tls, Transaction, Transition, Value,
};

type Failure = Box<dyn std::error::Error>;

// -- values, as README.md of the conformance scenario writes them

fn clock(time: jiff::civil::Time) -> String {
    format!("{:02}:{:02}:{:02}.{:06}", time.hour(), time.minute(), time.second(), time.subsec_nanosecond() / 1000)
}

fn stamp(at: &jiff::civil::DateTime) -> String {
    format!("{}T{}", at.date(), clock(at.time()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn offset(time: &TimeTz) -> String {
    let minutes = time.offset_seconds.unsigned_abs() / 60;
    format!("{}{:02}:{:02}", if time.offset_seconds < 0 { '-' } else { '+' }, minutes / 60, minutes % 60)
}

fn value(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Unchanged => json!(["unchanged"]),
        Value::Bool(value) => json!(["bool", value]),
        Value::Int(value) => json!(["int", value.to_string()]),
        Value::Float(value) if value.is_nan() => json!(["float", "nan"]),
        Value::Float(value) => json!(["float", format!("{:016x}", value.to_bits())]),
        Value::Bytes(bytes) => json!(["bytes", hex(bytes)]),
        Value::Text(text) => json!(["text", text]),
        Value::Numeric(value) => json!(["decimal", value.as_str()]),
        Value::Date(value) => json!(["date", value.to_string()]),
        Value::Time(value) => json!(["time", clock(*value)]),
        Value::TimeTz(value) => json!(["time", clock(value.time) + &offset(value)]),
        Value::Timestamp(value) => json!(["timestamp", stamp(value)]),
        Value::TimestampTz(value) => json!(["timestamptz", stamp(value)]),
        Value::Interval(value) => json!(["interval", [value.months, value.days, value.microseconds]]),
        Value::Uuid(value) => json!(["uuid", value.to_string()]),
        // The null of both.
        Value::Json(Json::Null) => Json::Null,
        Value::Json(value) => json!(["json", value]),
        Value::Array(values) => json!(["array", values.iter().map(self::value).collect::<Vec<_>>()]),
        Value::Range(range) => json!(["range", range.to_string()]),
        Value::Special { text, .. } => json!(["special", text]),
        other => panic!("{other:?}"),
    }
}

fn row(row: Option<Row>) -> Json {
    let object = |row: Row| row.iter().map(|(name, column)| (name.to_owned(), value(column))).collect::<Map<_, _>>();
    row.map_or(Json::Null, |row| Json::Object(object(row)))
}

fn change(change: &Change) -> Result<Json, Error> {
    let transition = change.transition().map(|transition| match transition {
        Transition::Enter => "enter",
        Transition::Stay => "stay",
        Transition::Leave => "leave",
    });
    Ok(json!({
        "operation": change.operation().as_str(),
        "table": change.table(),
        "ordinal": change.ordinal(),
        "before": row(change.before()?),
        "after": row(change.after()?),
        "changed": change.changed_columns()?,
        "transition": transition,
    }))
}

fn say(line: &Json) {
    println!("{line}");
}

fn say_transaction(tx: &Transaction) -> Result<(), Failure> {
    let time = |time: SystemTime| jiff::Timestamp::try_from(time).map(|time| time.to_string());
    let changes = tx.changes().iter().map(change).collect::<Result<Vec<_>, _>>()?;
    say(&json!({
        "event": "transaction",
        "position": tx.position().to_string(),
        "commit_lsn": tx.commit_lsn,
        "xid": tx.xid,
        "commit_time": tx.commit_time.map(time).transpose()?,
        "snapshot": Some(&tx.snapshot_id).filter(|id| !id.is_empty()),
        "changes": changes,
    }));
    Ok(())
}

fn say_snapshot(event: &SnapshotEvent) {
    say(&match event {
        SnapshotEvent::Begin(begin) => {
            let tables: Vec<_> = begin.tables.iter().map(|(table, _)| table).collect();
            let (id, restarted) = (&begin.snapshot_id, begin.restarted);
            json!({"event": "snapshot", "step": "begin", "snapshot": id, "restarted": restarted, "tables": tables})
        }
        SnapshotEvent::TableEnd { snapshot_id, table, rows } => {
            json!({"event": "snapshot", "step": "table_end", "snapshot": snapshot_id, "table": table, "rows": rows})
        }
        SnapshotEvent::End { snapshot_id, position, rows } => {
            let position = position.to_string();
            json!({"event": "snapshot", "step": "end", "snapshot": snapshot_id, "rows": rows, "position": position})
        }
        other => panic!("{other:?}"),
    });
}

fn say_forked(changed: &TimelineChanged) {
    let retracted: Vec<_> = changed
        .retracted
        .iter()
        .map(|entry| json!({"position": entry.position.to_string(), "xid": entry.begin.xid, "changes": entry.changes}))
        .collect();
    say(&json!({
        "event": "timeline_changed",
        "old_lineage": changed.old_lineage,
        "new_lineage": changed.new_lineage,
        "switch_lsn": changed.switch_lsn,
        "position": changed.position.to_string(),
        "retracted": retracted,
    }));
}

fn say_gap(gap: &Gap) {
    say(&json!({"event": "gap", "after": gap.after.to_string(), "up_to": gap.up_to.to_string()}));
}

fn say_error(error: &Error) {
    let name = format!("{error:?}");
    let (reason, metadata, violations) = match error {
        Error::Hub(hub) => (hub.reason.as_str(), json!(hub.metadata), json!(hub.violations)),
        _ => (name.split('(').next().unwrap_or_default(), json!({}), json!([])),
    };
    let message = error.to_string();
    say(&json!({
        "event": "error", "reason": reason, "metadata": metadata, "violations": violations, "message": message,
    }));
}

// -- the request

/// Where an `until` ends.
#[derive(Default)]
struct Goal {
    lsn: AtomicU64,
    reached: Notify,
}

fn texts(request: &Json, key: &str) -> Vec<String> {
    let list = request[key].as_array().cloned().unwrap_or_default();
    list.iter().filter_map(Json::as_str).map(str::to_owned).collect()
}

fn client(request: &Json) -> Result<Client, Failure> {
    let mut builder = Client::builder(request["address"].as_str().ok_or("no address")?);
    if let Some(token) = request["token"].as_str() {
        builder = builder.token(token);
    }
    if request["tls"].is_object() {
        let file = |key: &str| request["tls"][key].as_str().map(Into::into);
        builder = builder.tls(Tls { ca: file("ca"), cert: file("cert"), key: file("key"), server_name: None });
    }
    Ok(builder.build()?)
}

fn subscribe(client: &Client, request: &Json, goal: &Arc<Goal>) -> Result<Subscription, Failure> {
    let operations = texts(request, "operations");
    let all = [Operation::Insert, Operation::Update, Operation::Delete, Operation::Truncate, Operation::Read];
    let goal = goal.clone();
    let mut builder = client
        .subscription()
        .tables(texts(request, "tables"))
        .exclude_tables(texts(request, "exclude_tables"))
        .operations(all.into_iter().filter(|operation| operations.iter().any(|name| name == operation.as_str())))
        .columns(texts(request, "columns"))
        .r#where(request["where"].as_str().unwrap_or_default())
        .subscriber(request["subscriber"].as_str().unwrap_or_default())
        .auto_ack(request["auto_ack"].as_bool().unwrap_or(true))
        .window(request["window_events"].as_u64().unwrap_or(100_000), 8 << 20)
        .progress_interval(Duration::from_millis(200))
        .on_snapshot(say_snapshot)
        .on_reconnect(|error, _| say(&json!({"event": "reconnect", "reason": error.reason.as_str()})))
        .on_progress(move |progress| {
            let lsn = walcast_client::lsn_to_u64(&progress.position.lsn).unwrap_or(0);
            if lsn >= goal.lsn.load(Ordering::Relaxed) {
                goal.reached.notify_one();
            }
        });
    if let Some(start) = request["start"].as_str() {
        builder = builder.start(start.parse::<Start>()?);
    }
    if let Some(mode) = request["snapshot_mode"].as_str() {
        let mode = if mode == "incremental" { SnapshotMode::Incremental } else { SnapshotMode::Consistent };
        builder = builder.start(Start::Snapshot(Snapshot { mode, ..Snapshot::default() }));
    }
    if let Some(seconds) = request["give_up_after"].as_f64() {
        builder = builder.retry(Retry { give_up_after: Some(Duration::from_secs_f64(seconds)), ..Retry::default() });
    }
    Ok(builder.subscribe()?)
}

async fn until(stream: &mut Subscription, lsn: &str, goal: &Goal) -> Result<(), Failure> {
    goal.lsn.store(walcast_client::lsn_to_u64(lsn)?, Ordering::Relaxed);
    loop {
        tokio::select! {
            biased;
            () = goal.reached.notified() => break,
            tx = stream.next() => match tx.transpose() {
                Ok(Some(tx)) => say_transaction(&tx)?,
                Ok(None) => break,
                Err(Error::TimelineChanged(changed)) => say_forked(&changed),
                Err(Error::Gap(gap)) => say_gap(&gap),
                Err(error) => return Err(error.into()),
            },
        }
    }
    goal.lsn.store(u64::MAX, Ordering::Relaxed);
    Ok(())
}

async fn run(request: &Json) -> Result<(), Failure> {
    let goal = Arc::new(Goal { lsn: AtomicU64::new(u64::MAX), reached: Notify::new() });
    let client = client(request)?;
    let mut stream = subscribe(&client, request, &goal)?;
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let (command, argument) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        match command {
            "close" => break,
            "next" => {
                for _ in 0..argument.parse::<usize>()? {
                    say_transaction(&stream.next().await.ok_or("the stream ended")??)?;
                }
            }
            "until" => until(&mut stream, argument, &goal).await?,
            "ack" => stream.ack()?,
            "flush" => {
                let checkpoint = stream.flush().await?.map(|position| position.to_string());
                say(&json!({"event": "flushed", "checkpoint": checkpoint}));
            }
            "backfill" => {
                let (table, rate) = argument.split_once(' ').unwrap_or((argument, "0"));
                let (tables, max_rows_per_second) = (vec![table.to_owned()], rate.parse()?);
                let rows = Backfill { tables, max_rows_per_second, ..Backfill::default() };
                let id = client.start_backfill(request["subscriber"].as_str().unwrap_or_default(), rows).await?;
                say(&json!({"event": "backfill", "snapshot": id}));
            }
            "pause" | "resume" | "cancel" => {
                let action = match command {
                    "pause" => BackfillAction::Pause,
                    "resume" => BackfillAction::Resume,
                    _ => BackfillAction::Cancel,
                };
                client.backfill(request["subscriber"].as_str().unwrap_or_default(), argument, action).await?;
            }
            "retracted" => {
                let mut retracted = client.subscription().read_retracted(argument).await?;
                while let Some(tx) = retracted.next().await.transpose()? {
                    say_transaction(&tx)?;
                }
            }
            other => return Err(format!("{other}: no such command").into()),
        }
        say(&json!({"event": "done"}));
    }
    stream.close().await;
    say(&json!({"event": "closed"}));
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Failure> {
    let request: Json = serde_json::from_str(&std::env::args().nth(1).ok_or("the request is missing")?)?;
    let code = match run(&request).await {
        Ok(()) => 0,
        Err(failure) => match failure.downcast_ref::<Error>() {
            Some(error) => {
                say_error(error);
                1
            }
            None => return Err(failure),
        },
    };
    // Reading stdin blocks a thread that nothing can interrupt.
    std::process::exit(code)
}

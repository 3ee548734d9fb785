//! Partitions that are published under their root's name, and whose replica identities are their own.

use std::time::Duration;

use walcast::wire::pb::{Operation, SnapshotMode, Transition};

use crate::harness::{
    Stage,
    client::Request,
    history::{End, Failure, History},
    parsed::{Cell, What},
    stage, validators,
    wait::eventually,
};

const ROOT: &str = "CREATE TABLE root (id int, part int, state text, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
     CREATE TABLE leaf1 PARTITION OF root FOR VALUES IN (1); CREATE TABLE leaf2 PARTITION OF root FOR VALUES IN (2)";

fn open() -> Request {
    Request::new().tables(&["public.root"]).filter(|filter| filter.r#where = "state = 'open'".into())
}

/// Operation, `id` and transition of every row.
fn rows(history: &History) -> Vec<(Operation, i64, Transition)> {
    let parsed = validators::formal(history).expect("a valid history");
    let row = |what: &What| match what {
        What::Row { operation, transition, .. } => {
            let Some(Cell::Int(id)) = what.get("id") else { panic!("no id in {what:?}") };
            (*operation, *id, Transition::try_from(*transition).expect("a transition"))
        }
        other => panic!("{other:?}"),
    };
    parsed.items().map(|item| row(&item.what)).collect()
}

/// Of a stream that does not open, once the hub has looked at the tables as they are.
async fn refused(stage: &Stage, request: &Request) -> Failure {
    eventually(Duration::from_secs(20), async || {
        let mut stream = stage.client().subscribe(&request.clone().stop_at_tail()).await;
        stream.ended().await;
        match &stream.log.end {
            End::Failed(failure) if failure.reason == "FILTER_INVALID" && stream.log.events.is_empty() => {
                Ok(failure.clone())
            }
            end => Err(format!("{end:?} behind {} events", stream.log.events.len())),
        }
    })
    .await
}

/// For which tables it says what to run.
fn advice(failure: &Failure) -> Vec<&str> {
    let fixes = failure.message.split("ALTER TABLE ").skip(1);
    fixes.filter_map(|fix| fix.split_once(" REPLICA IDENTITY FULL").map(|(table, _)| table)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_leaves_through_a_partition_is_told_or_refused() {
    let stage = stage()
        .sql(ROOT)
        .sql("CREATE TABLE mail (id int, part int, address text NOT NULL, PRIMARY KEY (id, part), UNIQUE (address, part)) PARTITION BY LIST (part)")
        .sql("CREATE TABLE mail1 PARTITION OF mail FOR VALUES IN (1); ALTER TABLE mail REPLICA IDENTITY USING INDEX mail_address_part_key")
        .publication("CREATE PUBLICATION walcast FOR ALL TABLES WITH (publish_via_partition_root)")
        .start()
        .await;
    let db = &stage.db;
    let by_glob = || Request::new().tables(&["*.root"]).filter(|filter| filter.r#where = "state = 'open'".into());
    for request in [open(), by_glob()] {
        assert_eq!(advice(&refused(&stage, &request).await), ["public.root", "public.leaf1", "public.leaf2"]);
    }
    // A stream for which everything was there finds out with the first change for which it is no more.
    let identity = |table: &str, identity: &str| format!("ALTER TABLE {table} REPLICA IDENTITY {identity}");
    for table in ["root", "leaf1", "leaf2"] {
        db.run(&identity(table, "FULL")).await;
    }
    let mut updates = stage.client().subscribe(&by_glob()).await;
    let mut deletes = stage.client().subscribe(&by_glob().operations(&[Operation::Delete])).await;
    updates.until("opened", |log| log.opened().is_some()).await;
    deletes.until("opened", |log| log.opened().is_some()).await;
    // What the root says says nothing of its partitions.
    db.run(&identity("leaf1", "DEFAULT")).await;
    db.run(&identity("leaf2", "DEFAULT")).await;
    assert_eq!(advice(&refused(&stage, &open()).await), ["public.leaf1", "public.leaf2"]);
    db.run(
        "INSERT INTO root VALUES (1, 1, 'open'), (2, 1, 'open'), (3, 2, 'open'); UPDATE root SET state = 'closed' WHERE id = 1; \
         DELETE FROM root WHERE id = 2",
    )
    .await;
    for (stream, operation, sent) in [(&mut updates, "Update", 3), (&mut deletes, "Delete", 0)] {
        let failure = stream.fails_with("FILTER_INVALID").await;
        let said = format!("the {operation} does not carry the value of column \"state\"");
        assert!(failure.message.contains(&said), "{failure:?}");
        assert_eq!(stream.log.changes(), sent, "everything in front of it has been sent");
    }
    let history = stage.collect(Request::new().tables(&["public.root"]).earliest()).await;
    let parsed = validators::formal(&history).expect("a valid history");
    let before: Vec<_> = parsed
        .items()
        .map(|item| match &item.what {
            What::Row { before, .. } => before.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(before[..3], [None, None, None]);
    let key = |id: i64| Some(vec![Cell::Int(id), Cell::Int(1), Cell::Absent]);
    assert_eq!(before[3..], [key(1), key(2)], "the state was not logged");
    // What needs no more than the key is told as before.
    let keyed = Request::new().tables(&["public.root"]).filter(|filter| filter.r#where = "id = 2".into()).earliest();
    let expected = [(Operation::Insert, 2, Transition::Enter), (Operation::Delete, 2, Transition::Leave)];
    assert_eq!(rows(&stage.collect(keyed).await), expected);

    db.run("ALTER TABLE leaf1 REPLICA IDENTITY FULL").await;
    assert_eq!(advice(&refused(&stage, &open()).await), ["public.leaf2"]);
    db.run("ALTER TABLE leaf2 REPLICA IDENTITY FULL").await;
    let mut stream = stage.client().subscribe(&open()).await;
    stream.until("opened", |log| log.opened().is_some()).await;
    db.run(
        "UPDATE root SET state = 'open' WHERE id = 1; UPDATE root SET part = 2 WHERE id = 1; \
         UPDATE root SET state = 'closed' WHERE id = 3; DELETE FROM root WHERE id = 1",
    )
    .await;
    stream.reaches(stage.goal().await).await;
    let expected = [
        (Operation::Update, 1, Transition::Enter),
        (Operation::Delete, 1, Transition::Leave),
        (Operation::Insert, 1, Transition::Enter),
        (Operation::Update, 3, Transition::Leave),
        (Operation::Delete, 1, Transition::Leave),
    ];
    assert_eq!(rows(&stream.close()), expected);

    // A partition that joins later has the identity that it was made with.
    let mut stream = stage.client().subscribe(&open()).await;
    stream.until("opened", |log| log.opened().is_some()).await;
    db.run("CREATE TABLE leaf3 PARTITION OF root FOR VALUES IN (3)").await;
    db.run("INSERT INTO root VALUES (5, 2, 'open')").await;
    stream.until("a change", |log| log.changes() == 1).await;
    db.run("INSERT INTO root VALUES (6, 3, 'open')").await;
    stream.until("another", |log| log.changes() == 2).await;
    db.run("UPDATE root SET state = 'closed' WHERE id = 6").await;
    stream.fails_with("FILTER_INVALID").await;
    assert_eq!(stream.log.changes(), 2);
    assert_eq!(advice(&refused(&stage, &open()).await), ["public.leaf3"]);

    // Rows are not read in the order of a key that changes do not carry.
    let chunks = Request::new().tables(&["public.mail"]).snapshot(SnapshotMode::Incremental);
    stage.client().subscribe(&chunks).await.fails_with("SNAPSHOT_IMPOSSIBLE").await;
    stage.collect(Request::new().tables(&["public.mail"]).snapshot(SnapshotMode::Consistent)).await;
    db.run("INSERT INTO mail VALUES (1, 1, 'a'); UPDATE mail SET id = 2; DELETE FROM mail").await;
    let history = stage.collect(Request::new().tables(&["public.mail"]).earliest()).await;
    let parsed = validators::formal(&history).expect("a valid history");
    let last = parsed.items().last().expect("the DELETE").what.clone();
    assert_eq!((last.get("id"), last.get("address")), (Some(&Cell::Int(2)), Some(&Cell::Absent)));
}

//! Partitions that are published under their root's name, and whose replica identities are their own.

use std::time::Duration;

use walcast::{
    postgres::{conninfo::ConnectOptions, publication, sql::Sql},
    wire::pb::{Operation, SnapshotMode, Transition},
};

use crate::{
    harness::{
        Cluster, Stage,
        client::Request,
        command::walcast,
        history::{End, Failure, History, lsn},
        parsed::{Cell, What},
        stage, validators, versions,
        wait::eventually,
    },
    logtables,
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

/// Nothing that the hub asks again and again waits for whoever holds a table, be it a partition or published itself, with a row
/// filter where there are any.
async fn locked(major: u32) {
    let held = if major >= 15 { "held WHERE (id > 0)" } else { "held" };
    let setup = stage()
        .version(major)
        .sql(ROOT)
        .sql("CREATE TABLE held (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE bare (id int)")
        .publication(&format!(
            "CREATE PUBLICATION walcast FOR TABLE root, {held}, t, bare WITH (publish_via_partition_root)"
        ));
    let mut stage = setup.args(&["--set", "source.gate=walreceiver"]).prepare().await;
    let _standby = stage.cluster.standby(&[]).await;
    stage.hub.start().await;
    stage.streaming().await;
    logtables::install(&stage);
    let mut live = stage.client().subscribe(&Request::new().tables(&["public.t"])).await;
    live.until("opened", |log| log.opened().is_some()).await;
    let ddl = stage.cluster.connect().await;
    ddl.run("BEGIN; LOCK TABLE leaf1, held IN ACCESS EXCLUSIVE MODE").await;
    // Nor does DDL of others, which the log tables follow.
    let db = &stage.db;
    db.run("SET lock_timeout = '2s'; CREATE TABLE leaf3 PARTITION OF root FOR VALUES IN (3); RESET lock_timeout").await;
    assert_eq!(db.text("SELECT walcast.is_captured('leaf3'::regclass)").await.as_deref(), Some("t"));
    // The second of these looks began behind the lock.
    for id in 0..2 {
        stage.db.run(&format!("INSERT INTO t VALUES ({id})")).await;
        looked(&stage).await;
    }
    live.until("what was written meanwhile", |log| log.commits() == 2).await;
    let keyed =
        || Request::new().tables(&["public.root", "public.t"]).filter(|filter| filter.r#where = "id > 0".into());
    assert_eq!(stage.collect(keyed().earliest()).await.changes(), 1);

    stage.hub.terminate();
    let before = stage.hub.log().len();
    stage.hub.start().await;
    stage.streaming().await;
    stage.db.run("INSERT INTO t VALUES (2); ALTER TABLE t DISABLE TRIGGER ALL").await;
    looked(&stage).await;
    assert_eq!(stage.collect(keyed().earliest()).await.changes(), 2);
    let client = stage.client();
    let alarms = eventually(Duration::from_secs(60), || async {
        let source = client.status().await.map_err(|failure| format!("{failure:?}"))?.source.ok_or("no source")?;
        if source.alarms.is_empty() { Err("no alarm".to_owned()) } else { Ok(source.alarms) }
    })
    .await;
    assert!(alarms.len() == 1 && alarms[0].contains("public.t: its triggers"), "{alarms:?}");
    let log = stage.hub.log()[before..].to_owned();
    assert_eq!(log.matches("public.bare has no replica identity").count(), 1, "warned of once: {log}");
    assert_eq!(log.matches("definitions cannot be looked at").count(), usize::from(major >= 15), "{log}");
    let checks = walcast(&["doctor", "--dsn", &stage.cluster.dsn()], &[]).stdout;
    assert!(
        checks.contains("SELECT on every published table") && checks.contains("public.t: its triggers"),
        "{checks}"
    );
    ddl.run("COMMIT").await;
}

/// Waits until the hub has looked at its publication and slot.
async fn looked(stage: &Stage) {
    let now = stage.flushed().await;
    let client = stage.client();
    eventually(Duration::from_secs(20), || async {
        let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
        let current = status.source.ok_or("no source")?.current_lsn;
        if !current.is_empty() && lsn(&current) >= now { Ok(()) } else { Err(format!("{current}, waiting for {now}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_somebody_holds_holds_nothing_up() {
    locked(versions::default_major()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_somebody_holds_holds_nothing_up_on_every_version_of_the_matrix() {
    for major in versions::matrix() {
        locked(major).await;
    }
}

/// The catalogue is read as PostgreSQL reads it.
async fn listed(major: u32) {
    let cluster = Cluster::with(major, &[]);
    let db = cluster.connect().await;
    db.run(
        "CREATE SCHEMA s; CREATE SCHEMA other; \
         CREATE TABLE s.plain (id int PRIMARY KEY, gone int, a int, g int GENERATED ALWAYS AS (id * 2) STORED); \
         ALTER TABLE s.plain DROP COLUMN gone; CREATE TABLE s.child () INHERITS (s.plain); \
         CREATE UNLOGGED TABLE s.unlogged (id int); CREATE TEMP TABLE temporary (id int); CREATE VIEW s.v AS SELECT 1; \
         CREATE TABLE s.root (id int, part int, PRIMARY KEY (id, part)) PARTITION BY LIST (part); \
         CREATE TABLE other.leaf1 PARTITION OF s.root FOR VALUES IN (1); \
         CREATE TABLE s.mid PARTITION OF s.root FOR VALUES IN (2, 3) PARTITION BY LIST (part); \
         CREATE TABLE s.leaf2 PARTITION OF s.mid FOR VALUES IN (2); CREATE UNLOGGED TABLE other.leaf3 PARTITION OF s.mid FOR VALUES IN (3); \
         CREATE TABLE other.root (id int) PARTITION BY LIST (id); CREATE TABLE s.below PARTITION OF other.root FOR VALUES IN (1); \
         CREATE TABLE s.detached PARTITION OF s.root FOR VALUES IN (4); ALTER TABLE s.root DETACH PARTITION s.detached",
    )
    .await;
    let mut of = vec![
        "ALL TABLES",
        "TABLE s.plain, s.root",
        "TABLE s.plain, s.mid",
        "TABLE s.mid, s.root, other.leaf1, s.leaf2",
    ];
    if major >= 15 {
        let schemas =
            ["TABLES IN SCHEMA s", "TABLES IN SCHEMA s, other", "TABLES IN SCHEMA other, TABLE s.root, s.plain"];
        of.extend(schemas.iter().chain(&[
            "TABLE s.plain (id, a), s.root (part, id), other.leaf1 (id, part)",
            "TABLE s.plain (id, a), other.leaf1 (id)",
        ]));
    }
    if major >= 18 {
        of.push("TABLE s.plain (id, g)");
    }
    let settings = if major >= 18 { &["", ", publish_generated_columns = stored"][..] } else { &[""] };
    let mut publications = Vec::new();
    for of in of {
        for via_root in [false, true] {
            for more in settings {
                if !via_root && of.contains("s.root (") {
                    continue; // PostgreSQL refuses it
                }
                let name = format!("p{}", publications.len());
                db.run(&format!(
                    "CREATE PUBLICATION {name} FOR {of} WITH (publish_via_partition_root = {via_root}{more})"
                ))
                .await;
                publications.push((name, format!("{of}, {via_root}{more}, version {major}")));
            }
        }
    }
    let sql =
        Sql::connect(&ConnectOptions::parse(Some(&cluster.dsn()), &|_| None).expect("a DSN")).await.expect("a session");
    let columns = if major >= 15 { "AND a.attname = ANY (t.attnames)" } else { "" };
    let generated = if major >= 18 { "" } else { "AND a.attgenerated = ''" };
    for (name, what) in publications {
        let expected = db
            .rows(&format!(
                "SELECT DISTINCT t.schemaname, t.tablename, (SELECT string_agg(a.attname, ' ' ORDER BY a.attnum)
                        FROM pg_attribute a WHERE a.attrelid = format('%I.%I', t.schemaname, t.tablename)::regclass
                         AND a.attnum > 0 AND NOT a.attisdropped {columns} {generated})
                 FROM pg_publication_tables t WHERE t.pubname = '{name}' ORDER BY 1, 2"
            ))
            .await;
        let tables = publication::published_tables(&sql, &name).await.expect("tables");
        let named: Vec<_> = expected.iter().map(|row| (row[0].clone().unwrap(), row[1].clone().unwrap())).collect();
        assert_eq!(tables, named, "{what}");
        let mut relations = publication::relations(&sql, &name, &tables).await.expect("relations");
        relations.sort_by(|one, other| (&one.schema, &one.table).cmp(&(&other.schema, &other.table)));
        let described = relations.iter().map(|relation| {
            let columns: Vec<&str> = relation.columns.iter().map(|column| &*column.name).collect();
            vec![Some(relation.schema.clone()), Some(relation.table.clone()), Some(columns.join(" "))]
        });
        assert_eq!(described.collect::<Vec<_>>(), expected, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_contains_what_postgresql_says() {
    listed(versions::default_major()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_contains_what_postgresql_says_on_every_version_of_the_matrix() {
    for major in versions::matrix() {
        listed(major).await;
    }
}

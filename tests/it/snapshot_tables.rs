//! Rows that are already there: which tables, columns and rows, and what is refused.

use walcast::wire::pb::{self, SnapshotMode, event::Kind};

use crate::harness::{
    client::Request,
    hub::Hub,
    parsed::{Cell, Item, Parsed, Unit, What},
    stage,
    stage::held,
    validators,
};
use crate::predicates;

/// Rows of the snapshot in order.
fn rows(parsed: &Parsed<'_>) -> Vec<Item> {
    let item = |unit: &Unit| match unit {
        Unit::Read { item, .. } => Some(item.clone()),
        _ => None,
    };
    parsed.streams.iter().flatten().filter_map(item).collect()
}

fn after(item: &Item) -> Vec<Cell> {
    match &item.what {
        What::Row { after: Some(after), before: None, .. } => after.clone(),
        other => panic!("{other:?}"),
    }
}

const VALUES: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE TABLE kinds (
        id bigint PRIMARY KEY, flag bool, small int2, real4 float4, real8 float8, price numeric, raw bytea, label text,
        at timestamptz, during interval, doc jsonb, feeling mood, list int[], code char(5), cash money, which regclass);
    INSERT INTO kinds VALUES
        (1, true, -3, 1.1, 'NaN', 12.500, '\\xdeadbeef', E'tab\\tnewline\\nback\\\\slash', '2026-01-01 12:00+02', '1 mon 2 days',
         '{\"a\": \"x\\ty\"}', 'ok', '{1,NULL,3}', 'ab', 12.3, 'pg_class'),
        (2, false, 7, 'Infinity', 1e300, 'NaN', '', '', 'infinity', '-00:00:01', '[]', 'sad', '{}', '', -1, NULL),
        (3, NULL, NULL, NULL, NULL, NULL, NULL, '\\N', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)";

/// A row reads the same from a snapshot and from the change that wrote it, in both formats.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_those_of_changes() {
    let stage = stage().sql("SELECT 1").start().await;
    stage.db.run(VALUES).await;
    for structs in [false, true] {
        let format = |request: Request| if structs { request.structs() } else { request };
        let changes = stage.collect(format(Request::new().earliest().tables(&["public.kinds"]))).await;
        let inserted = held(&changes, validators::formal(&changes));
        let expected: Vec<Vec<Cell>> = inserted.items().map(after).collect();
        for mode in [SnapshotMode::Consistent, SnapshotMode::Incremental] {
            let read = stage.collect(format(Request::new().snapshot(mode).tables(&["public.kinds"]))).await;
            let parsed = held(&read, validators::formal(&read));
            let got: Vec<Vec<Cell>> = rows(&parsed).iter().map(after).collect();
            assert_eq!(got, expected, "{mode:?}, structs: {structs}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_choose_tables_columns_and_rows() {
    let stage = stage()
        .sql("CREATE TABLE a (id int PRIMARY KEY, x int, y text); INSERT INTO a SELECT n, n % 10, 'y' FROM generate_series(1, 100) n")
        .sql("CREATE TABLE b (id int PRIMARY KEY); INSERT INTO b VALUES (1)")
        .start()
        .await;
    for mode in [SnapshotMode::Consistent, SnapshotMode::Incremental] {
        let request = Request::new().snapshot(mode).filter(|filter| {
            filter.tables = vec!["public.a".into()];
            filter.columns = vec!["public.a.x".into()];
            filter.r#where = "id <= 10".into();
        });
        let history = stage.collect(request).await;
        let parsed = held(&history, validators::formal(&history));
        let found: Vec<Vec<Cell>> = rows(&parsed).iter().map(after).collect();
        let expected: Vec<Vec<Cell>> = (1..=10).map(|n| vec![Cell::Int(n), Cell::Int(n % 10)]).collect();
        assert_eq!(found, expected, "{mode:?}");
        let ends = history.last().kinds().filter_map(|kind| match kind {
            Kind::SnapshotTableEnd(end) => Some((end.table.as_str(), end.rows)),
            _ => None,
        });
        assert_eq!(ends.collect::<Vec<_>>(), [("public.a", 10)]);
    }
    let request = Request::new().snapshot(SnapshotMode::Consistent).operations(&[pb::Operation::Insert]);
    let failure = stage.client().subscribe(&request).await.fails_with("FILTER_INVALID").await;
    assert_eq!(failure.violations, ["filter.operations"]);
}

fn ids(items: impl Iterator<Item = Item>) -> Vec<i64> {
    let id = |item: Item| match item.what.get("id") {
        Some(Cell::Int(id)) => *id,
        other => panic!("{other:?}"),
    };
    let mut ids: Vec<i64> = items.map(id).collect();
    ids.sort_unstable();
    ids
}

/// What is told to PostgreSQL selects what the hub selects from changes, where nothing is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_predicate_selects_the_same_rows_in_the_query_and_in_the_hub() {
    let stage = stage().setting("log_statement", "all").sql(predicates::TYPES).sql(predicates::ROWS).start().await;
    stage.db.run("CREATE TABLE copy (LIKE t INCLUDING ALL); INSERT INTO copy SELECT * FROM t").await;
    stage.db.run("CREATE TABLE many (id int PRIMARY KEY, x int, y text)").await;
    stage.db.run("INSERT INTO many SELECT n, n % 10, 'y' FROM generate_series(1, 5000) n").await;
    let mut all: Vec<String> = predicates::PREDICATES.iter().map(|(predicate, _)| (*predicate).to_owned()).collect();
    for _ in 0..8 {
        let pick = || predicates::PREDICATES[fastrand::usize(..predicates::PREDICATES.len())].0;
        let (one, two, three) = (pick(), pick(), pick());
        all.push(format!("({one}) AND NOT (({two}) OR ({three}) IS UNKNOWN)"));
        all.push(format!("({one}) IS NOT TRUE OR ({two}) AND ({three})"));
    }
    let operations = [pb::Operation::Insert, pb::Operation::Read];
    let filtered = |table: &str, predicate: &str| {
        Request::new().tables(&[table]).operations(&operations).filter(|filter| filter.r#where = predicate.into())
    };
    let (stage, filtered) = (&stage, &filtered);
    let compared = |(number, predicate): (usize, &String)| {
        let predicate = predicate.clone();
        async move {
            let changes = stage.collect(filtered("public.copy", &predicate).earliest()).await;
            let expected = ids(held(&changes, validators::formal(&changes)).items().cloned());
            let mode = if number % 4 == 0 { SnapshotMode::Incremental } else { SnapshotMode::Consistent };
            let read = stage.collect(filtered("public.t", &predicate).snapshot(mode)).await;
            let found = ids(rows(&held(&read, validators::formal(&read))).into_iter());
            assert_eq!(found, expected, "{predicate} {mode:?}");
        }
    };
    for some in all.iter().enumerate().collect::<Vec<_>>().chunks(8) {
        futures_util::future::join_all(some.iter().copied().map(compared)).await;
    }
    let log = std::fs::read_to_string(stage.cluster.log_path()).expect("the server's log");
    assert!(log.contains(r#" WHERE (("i2" = '32767'::int8))"#), "nothing is pushed down");

    // A chunk is so many rows that are looked at, however few of them come.
    for (predicate, expected) in [("x = 3", 500), ("x = 3 AND id > 4900", 10), ("x = 77", 0), ("y ILIKE 'Y'", 5000)] {
        let read = stage.collect(filtered("public.many", predicate).snapshot(SnapshotMode::Incremental)).await;
        let found = ids(rows(&held(&read, validators::formal(&read))).into_iter());
        assert_eq!(found.len(), expected, "{predicate}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_without_keys_rows_or_storage_of_their_own() {
    let schema = "
        CREATE TABLE keyless (n int); INSERT INTO keyless VALUES (1), (1), (2);
        CREATE TABLE empty (id int PRIMARY KEY);
        CREATE TABLE part (id int, k int, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
        CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (0) TO (10);
        CREATE TABLE part_high (k int NOT NULL, extra int, id int NOT NULL);
        ALTER TABLE part_high DROP COLUMN extra;
        ALTER TABLE part ATTACH PARTITION part_high FOR VALUES FROM (10) TO (20);
        INSERT INTO part VALUES (1, 5), (2, 15), (3, 6);
        CREATE TABLE mother (id int PRIMARY KEY); CREATE TABLE daughter (id int PRIMARY KEY) INHERITS (mother);
        INSERT INTO mother VALUES (1); INSERT INTO daughter VALUES (2)";
    let leaves = [("daughter", 1), ("empty", 0), ("keyless", 3), ("mother", 1), ("part_high", 1), ("part_low", 2)];
    let root = [("daughter", 1), ("empty", 0), ("keyless", 3), ("mother", 1), ("part", 3)];
    for (with, expected) in [("", &leaves[..]), (" WITH (publish_via_partition_root)", &root[..])] {
        let publication = format!("CREATE PUBLICATION walcast FOR ALL TABLES{with}");
        let stage = stage().sql(schema).publication(&publication).start().await;
        for mode in [SnapshotMode::Consistent, SnapshotMode::Incremental] {
            let mut request = Request::new().snapshot(mode);
            let mut expected = expected.to_vec();
            if mode == SnapshotMode::Incremental {
                let refused = stage.client().subscribe(&request).await.fails_with("SNAPSHOT_IMPOSSIBLE").await;
                assert_eq!(refused.metadata["table"], "public.keyless");
                request = request.filter(|filter| filter.exclude_tables = vec!["public.keyless".into()]);
                expected.retain(|(table, _)| *table != "keyless");
            }
            let history = stage.collect(request).await;
            held(&history, validators::formal(&history));
            let ends = history.last().kinds().filter_map(|kind| match kind {
                Kind::SnapshotTableEnd(end) => Some((end.table.strip_prefix("public.")?, end.rows)),
                _ => None,
            });
            let mut ends: Vec<_> = ends.collect();
            ends.sort_unstable();
            assert_eq!(ends, expected, "{mode:?}{with}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_refused_by_name() {
    let mut stage = stage()
        .sql("CREATE TABLE open (id int PRIMARY KEY); CREATE TABLE secret (id int PRIMARY KEY); CREATE VIEW seen AS SELECT * FROM open")
        .sql("CREATE TABLE guarded (id int PRIMARY KEY); ALTER TABLE guarded ENABLE ROW LEVEL SECURITY")
        .sql("CREATE TABLE root (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE leaf PARTITION OF root DEFAULT")
        .sql("INSERT INTO root VALUES (1), (2); CREATE MATERIALIZED VIEW kept AS SELECT 1 AS id")
        .sql("CREATE ROLE hub LOGIN REPLICATION PASSWORD 'p'; GRANT SELECT ON open, guarded, root TO hub; GRANT pg_monitor TO hub")
        .publication("CREATE PUBLICATION walcast FOR ALL TABLES WITH (publish_via_partition_root)")
        .prepare()
        .await;
    stage.hub = Hub::new(&stage.cluster.dsn().replace("user=postgres", "user=hub password=p"));
    stage.hub.start().await;
    stage.streaming().await;
    let unguarded = Request::new().filter(|filter| filter.exclude_tables = vec!["public.guarded".into()]);
    for mode in [SnapshotMode::Consistent, SnapshotMode::Incremental] {
        let refused =
            stage.client().subscribe(&unguarded.clone().snapshot(mode)).await.fails_with("PERMISSION_DENIED").await;
        assert_eq!(refused.metadata["table"], "public.secret");
        assert_eq!(refused.metadata["grant"], "GRANT SELECT ON \"public\".\"secret\" TO hub");
        stage.collect(Request::new().snapshot(mode).tables(&["public.open"])).await;
        // What may be read through the root needs no right to what it consists of.
        let history = stage.collect(Request::new().snapshot(mode).tables(&["public.root"])).await;
        assert_eq!(ids(rows(&held(&history, validators::formal(&history))).into_iter()), [1, 2], "{mode:?}");
        let guarded = Request::new().snapshot(mode).tables(&["public.guarded"]);
        let refused = stage.client().subscribe(&guarded).await.fails_with("PERMISSION_DENIED").await;
        assert_eq!(refused.metadata["table"], "public.guarded", "{refused:?}");
        assert_eq!(refused.metadata["grant"], "ALTER ROLE hub BYPASSRLS", "{refused:?}");
        for (name, kind) in [("public.seen", "is a view"), ("public.kept", "is a materialized view")] {
            let view = Request::new().snapshot(mode).tables(&[name]);
            let refused = stage.client().subscribe(&view).await.fails_with("SNAPSHOT_IMPOSSIBLE").await;
            assert!(refused.message.contains(kind), "{}", refused.message);
        }
    }
}

/// What arrives while rows are read costs no memory, whatever the size of the table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_table_is_streamed_not_held() {
    let stage = stage().start().await;
    stage.db.run("CREATE TABLE wide (id int PRIMARY KEY, data text)").await;
    stage.db.run("INSERT INTO wide SELECT n, repeat(md5(n::text), 64) FROM generate_series(1, 60000) n").await;
    stage.journaled().await;
    let before = stage.hub.rss_peak();
    for mode in [SnapshotMode::Consistent, SnapshotMode::Incremental] {
        let mut stream = stage.client().subscribe(&Request::new().snapshot(mode).tables(&["public.wide"])).await;
        let (mut rows, mut looked_at) = (0, 0);
        stream
            .until("every row", |log| {
                let new = &log.events[looked_at..];
                looked_at = log.events.len();
                rows += new.iter().filter(|record| matches!(record.kind, Kind::Change(_))).count();
                rows >= 60_000
            })
            .await;
        drop(stream);
    }
    let grown = stage.hub.rss_peak().saturating_sub(before);
    assert!(grown < 96 << 20, "120 MB of rows cost {} MiB", grown >> 20);
}

/// A chunk is read as the table was described before. Whatever makes it another table to read must be noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_not_what_it_was_is_noticed() {
    use walcast::postgres::table::{execute_likeness, prepare_likeness};
    let stage = stage()
        .sql("CREATE SCHEMA other; CREATE TYPE mood AS ENUM ('sad')")
        .sql("CREATE TABLE root (id int, k int, feeling mood, PRIMARY KEY (id, k)) PARTITION BY RANGE (k)")
        .sql("CREATE TABLE t PARTITION OF root FOR VALUES FROM (0) TO (10); INSERT INTO root VALUES (1, 1)")
        .sql("CREATE PUBLICATION listed FOR TABLE root; CREATE PUBLICATION schemas FOR TABLES IN SCHEMA other")
        .publication("CREATE PUBLICATION walcast FOR ALL TABLES")
        .start()
        .await;
    let version = stage.db.number("SELECT current_setting('server_version_num')::int8").await as u32;
    let oid = stage.db.number("SELECT 't'::regclass::oid::int8").await as u32;
    stage.db.run(&format!("SET search_path = pg_catalog, public; {}", prepare_likeness("likeness", version))).await;
    let like = async || {
        let mut answers = Vec::new();
        for publication in ["listed", "schemas"] {
            answers.push(stage.db.text(&execute_likeness("likeness", publication, oid)).await);
        }
        answers
    };
    let mut before = like().await;
    for same in ["INSERT INTO public.root VALUES (2, 2)", "ANALYZE public.t", "VACUUM FULL public.t"] {
        stage.db.run(same).await;
        assert_eq!(like().await, before, "{same}");
    }
    for change in [
        "ALTER TABLE public.root ADD COLUMN x int",
        "ALTER TABLE public.root RENAME COLUMN x TO y",
        "ALTER TABLE public.root ALTER COLUMN y TYPE int8",
        "ALTER TABLE public.root DROP COLUMN y",
        "ALTER TABLE public.t ADD UNIQUE (id, k)",
        "ALTER TABLE public.t REPLICA IDENTITY USING INDEX t_id_k_key",
        "ALTER TABLE public.t REPLICA IDENTITY FULL",
        "ALTER TYPE public.mood RENAME TO humour",
        "ALTER TABLE public.t RENAME TO u",
        "ALTER TABLE public.u SET SCHEMA other",
        "ALTER SCHEMA other RENAME TO another",
        "ALTER PUBLICATION listed SET (publish_via_partition_root)",
        "ALTER PUBLICATION listed SET TABLE public.root WHERE (id > 0)",
        "ALTER PUBLICATION listed SET TABLE public.root (id, k)",
        "ALTER PUBLICATION listed DROP TABLE public.root",
        "ALTER PUBLICATION schemas ADD TABLES IN SCHEMA public",
        "DROP PUBLICATION listed",
        "ALTER TABLE public.root DETACH PARTITION another.u",
        "DROP TABLE another.u",
    ] {
        stage.db.run(change).await;
        let now = like().await;
        assert_ne!(now, before, "{change}");
        before = now;
    }
}

//! `where`: rows as PostgreSQL itself would select them, transitions that keep a copy true, and refusals that say what
//! to run.

use std::{collections::BTreeSet, time::Duration};

use walcast::wire::pb::{self, Operation, Transition};

use crate::harness::{
    Stage,
    client::{Request, Stream},
    history::{Failure, History},
    parsed::{Cell, Parsed, What},
    stage, validators,
};

fn filtered(table: &str, predicate: &str) -> Request {
    Request::new().tables(&[table]).filter(|f| f.r#where = predicate.into())
}

/// Operation, `id` and transition of every row; of a truncate only that.
fn rows(history: &History) -> Vec<(String, i64, Transition)> {
    let parsed = validators::formal(history).expect("a valid history");
    let row = |what: &What| match what {
        What::Row { operation, transition, .. } => {
            let Some(Cell::Int(id)) = what.get("id") else { panic!("no id in {what:?}") };
            let name = operation.as_str_name().trim_start_matches("OPERATION_").to_owned();
            (name, *id, Transition::try_from(*transition).expect("a transition"))
        }
        What::Truncate { .. } => ("TRUNCATE".to_owned(), 0, Transition::Unspecified),
        What::Message { .. } => panic!("no messages were asked for"),
    };
    parsed.items().map(|item| row(&item.what)).collect()
}

fn row(operation: &str, id: i64, transition: Transition) -> (String, i64, Transition) {
    (operation.to_owned(), id, transition)
}

async fn refusal(stage: &Stage, request: &Request) -> Failure {
    let mut stream = stage.client().subscribe(request).await;
    let failure = stream.fails_with("FILTER_INVALID").await;
    assert!(stream.log.events.is_empty(), "validated before the stream opens: {:?}", stream.log.events);
    failure
}

pub const TYPES: &str = "CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE DOMAIN price AS numeric; CREATE DOMAIN fair AS price; CREATE DOMAIN count AS int4; CREATE DOMAIN flag AS bool;
    CREATE DOMAIN ratio AS float4; CREATE DOMAIN code AS char(5); CREATE DOMAIN instant AS timestamptz;
    CREATE DOMAIN raw AS bytea;
    CREATE TABLE t (id int PRIMARY KEY, i2 int2, i8 int8, n numeric, f4 float4, f8 float8, b bool, s text, c char(5),
                    v varchar(20), d date, ts timestamp, tz timestamptz, iv interval, u uuid, x bytea, j jsonb, m mood,
                    a int[], r daterange DEFAULT '[2024-02-29,)');
    CREATE TABLE dom (id int PRIMARY KEY, n fair, i count, b flag, f ratio, c code, tz instant, x raw);";

pub const ROWS: &str = r"INSERT INTO t VALUES
    (1, 1, 9007199254740993, 1.10, 0.1, 0.1, true, 'abc', 'ab', 'x', '2024-02-29', '2024-02-29 12:00:00.000001',
     '2024-02-29 12:00:00+02', '1 day', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '\xdead', '{}', 'sad', '{1,2}'),
    (2, -32768, -1, 1.1000000000000000000000000000000001, 'NaN', 'Infinity', false, '', '', 'it''s', 'infinity',
     '-infinity', '2024-02-29 10:00:00+00', '24:00:00', '00000000-0000-0000-0000-000000000000', '\x', '{ }', 'ok', '{}'),
    (3, 32767, 9007199254740992, 'NaN', -0.0, 1e300, NULL, 'a_c%', 'AB', NULL, '0044-03-15 BC', '1999-12-31',
     'infinity', '-1 mon', NULL, '\xdeadbeef', NULL, NULL, NULL),
    (4, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (5, 5, 5, 12345678901234567890.5, 1.5, 5, true, 'ABC', '5', '5', '2000-01-01', '2000-01-01', '2000-01-01',
     '30 days', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '\x00', '[]', 'ok', '{NULL}')";

/// Of a table whose columns are of domains.
pub const DOMAIN_ROWS: &str = r"INSERT INTO dom VALUES
    (1, 1.10, 5, true, 0.1, 'ab', '2024-02-29 12:00:00+02', '\xdead'), (2, 10, -7, false, 'NaN', 'AB', 'infinity', '\x'),
    (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL), (4, 'NaN', 10, true, -0.0, '', '2024-02-29 10:00:00Z', '\xde')";

pub const DOMAIN_PREDICATES: &[(&str, &str)] = &[
    ("n = 1.1", ""),
    ("n > 9", ""),
    ("n IN (10.00, 'NaN')", ""),
    ("i > 5.5 OR i = -7", ""),
    ("b", ""),
    ("NOT b", ""),
    ("f = 0 OR f = 0.1", "f = 0 OR f = 0.1::float4"),
    ("f = 'NaN'", ""),
    ("c = 'ab  '", ""),
    ("tz = '2024-02-29 10:00:00+00'", ""),
    ("tz > timestamptz '2024-02-29T10:00:00Z'", ""),
    ("x = '\\xDEAD'", ""),
    ("x > '\\xDE'", ""),
];

/// Predicates, and how PostgreSQL is asked where it is another text.
pub const PREDICATES: &[(&str, &str)] = &[
    ("i2 = 32767", ""),
    ("i2 <= -32768 OR i2 = 5", ""),
    ("i8 = 9007199254740993", ""),
    ("i8 > 9007199254740992.5", ""),
    ("n = 1.1", ""),
    ("n > 1.1", ""),
    ("n = 'NaN'", ""),
    ("n >= 12345678901234567890.49", ""),
    ("f4 = 0.1", "f4 = 0.1::float4"),
    ("f4 = 'NaN'", ""),
    ("f4 = 0", ""),
    ("f8 = 0.1 OR f8 >= 1e300", ""),
    ("b", ""),
    ("NOT b", ""),
    ("b IS NOT TRUE", ""),
    ("b IS UNKNOWN AND id < 4", ""),
    ("s = 'abc'", ""),
    ("s < 'a'", "s COLLATE \"C\" < 'a'"),
    ("s LIKE 'a\\_c\\%'", ""),
    ("s LIKE 'a_c%'", ""),
    ("s ILIKE 'ABC'", ""),
    ("s NOT LIKE '%c%'", ""),
    ("c = 'ab   '", ""),
    ("v = 'it''s'", ""),
    ("v IN ('x', '5')", ""),
    ("v NOT IN ('x', '5')", ""),
    ("v IN ('x', NULL)", ""),
    ("v NOT IN ('x', NULL)", ""),
    ("d = '2024-02-29'", ""),
    ("d > '2024-02-29'", ""),
    ("d < '0001-01-01'", ""),
    ("ts BETWEEN '1999-12-31' AND '2024-02-29 12:00:00.000001'", ""),
    ("ts = '-infinity'", ""),
    ("tz = '2024-02-29 12:00:00+02'", ""),
    ("tz = timestamptz '2024-02-29T10:00:00Z'", ""),
    ("tz >= '2000-01-01 00:00:00+00'", ""),
    ("iv = '1 day'", ""),
    ("iv > '29 days'", ""),
    ("u = 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", ""),
    ("u < 'b0000000-0000-0000-0000-000000000000'", ""),
    ("x = '\\xdead'", ""),
    ("x > '\\xdead'", ""),
    ("m = 'ok'", ""),
    ("a = '{1,2}'", ""),
    ("r = '[2024-02-29,)'", ""),
    ("n IS NULL", ""),
    ("n IS DISTINCT FROM 1.10", ""),
    ("i2 IS NOT DISTINCT FROM i8", ""),
    ("id = i2", ""),
    ("i8 > 0 AND NOT (s = 'abc' OR s IS NULL)", ""),
    ("s = NULL OR TRUE", ""),
    ("s = NULL", ""),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_selected_as_postgresql_selects_them() {
    let stage = stage().setting("DateStyle", "SQL, DMY").sql(TYPES).start().await;
    stage.db.run("SET timezone TO UTC").await;
    stage.db.run(&format!("{ROWS}; {DOMAIN_ROWS}")).await;
    let tables = [("t", PREDICATES), ("dom", DOMAIN_PREDICATES)];
    for (table, predicate, sql) in tables.iter().flat_map(|(table, list)| list.iter().map(move |(p, s)| (table, p, s)))
    {
        // Inserts only, so that the replica identity has no say.
        let request = filtered(&format!("public.{table}"), predicate).operations(&[Operation::Insert]).earliest();
        let history = stage.collect(request).await;
        let sql = if sql.is_empty() { predicate } else { sql };
        let expected: Vec<i64> = stage
            .db
            .rows(&format!("SELECT id FROM {table} WHERE {sql} ORDER BY id"))
            .await
            .into_iter()
            .map(|row| row[0].as_ref().and_then(|id| id.parse().ok()).expect("an id"))
            .collect();
        let expected: Vec<_> = expected.into_iter().map(|id| row("INSERT", id, Transition::Enter)).collect();
        assert_eq!(rows(&history), expected, "{predicate}");
    }
    // PostgreSQL refuses, or reads as something else, what would never be equal here.
    for (predicate, words) in [
        (
            "id = 1 OR m IN ('ok', 'sat')",
            ["filter.where", "invalid input value for enum public.mood: \"sat\"", "offset 22"],
        ),
        ("a = '{1, 2}'", ["column \"a\" is _int4", "printed as '{1,2}'", "offset 4"]),
        ("j <> '{\"a\":1}'", ["column \"j\" is jsonb", "printed as '{\"a\": 1}'", "offset 5"]),
    ] {
        let failure = refusal(&stage, &filtered("public.t", predicate).operations(&[Operation::Insert])).await;
        assert!(words.iter().all(|word| failure.message.contains(word)), "{failure:?}");
    }
    // A table that the stream has not described is looked up, and is the same there.
    stage.db.run("CREATE TABLE later (LIKE dom)").await;
    let mut stream =
        stage.client().subscribe(&filtered("public.later", "n > 9 AND f < 1").operations(&[Operation::Insert])).await;
    stream.until("opened", |log| log.opened().is_some()).await;
    stage.db.run("INSERT INTO later VALUES (1, 10, 1, true, 0.5)").await;
    stream.until("a change", |log| log.changes() == 1).await;
}

async fn orders() -> Stage {
    stage()
        .sql("CREATE TABLE orders (id int PRIMARY KEY, state text, total numeric, note text)")
        .sql("CREATE TABLE items (id int PRIMARY KEY, order_id int)")
        .sql("ALTER TABLE orders REPLICA IDENTITY FULL")
        .start()
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_against_a_predicate() {
    let stage = orders().await;
    stage
        .db
        .run(
            "INSERT INTO orders VALUES (1, 'new', 10), (2, 'paid', NULL), (3, NULL, 5); \
             UPDATE orders SET state = 'paid'; UPDATE orders SET total = 7 WHERE id = 2; \
             UPDATE orders SET state = NULL WHERE id = 1; UPDATE orders SET total = 8 WHERE id = 1; \
             UPDATE orders SET id = 30 WHERE id = 3; DELETE FROM orders WHERE id IN (1, 2); TRUNCATE orders",
        )
        .await;
    use Transition::{Enter, Leave, Stay, Unspecified};
    let all = [
        row("INSERT", 2, Enter),
        row("UPDATE", 1, Enter),
        row("UPDATE", 2, Stay),
        row("UPDATE", 3, Enter),
        row("UPDATE", 2, Stay),
        row("UPDATE", 1, Leave),
        row("UPDATE", 30, Stay),
        row("DELETE", 2, Leave),
        row("TRUNCATE", 0, Unspecified),
    ];
    let history = stage.collect(filtered("public.orders", "state = 'paid'").earliest()).await;
    assert_eq!(rows(&history), all);
    let operations = [Operation::Delete, Operation::Truncate];
    let history = stage.collect(filtered("public.orders", "state = 'paid'").operations(&operations).earliest()).await;
    assert_eq!(rows(&history), all[7..]);
    let changes = "changed(state) AND after.state = 'paid' AND before.id = after.id";
    let request = filtered("public.orders", changes).operations(&[Operation::Update]).earliest();
    let expected = [row("UPDATE", 1, Unspecified), row("UPDATE", 3, Unspecified)];
    assert_eq!(rows(&stage.collect(request).await), expected);
}

/// Under each replica identity, by predicates over what it has; keys and TOASTed values change or are left alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entering_and_leaving_keep_a_copy_true() {
    const COLUMNS: &str = "id int, k int, code text NOT NULL, state text, total numeric, big text";
    let stage = stage()
        .sql(&format!("CREATE TABLE f ({COLUMNS}, PRIMARY KEY (id)); ALTER TABLE f REPLICA IDENTITY FULL"))
        .sql(&format!("CREATE TABLE d ({COLUMNS}, PRIMARY KEY (id, k))"))
        .sql(&format!("CREATE TABLE i ({COLUMNS}, UNIQUE (code, id), PRIMARY KEY (id, k))"))
        .sql("ALTER TABLE i REPLICA IDENTITY USING INDEX i_code_id_key; ALTER TABLE f ALTER big SET STORAGE EXTERNAL")
        .start()
        .await;
    let cases: [(&str, &[&str]); 3] = [
        (
            "f",
            &[
                "state = 'paid'",
                "total > 50 OR state IS NULL",
                "id = 7",
                "big LIKE 'x%' AND state <> 'new'",
                "NOT (k = 1 OR code = 'a')",
                "code = state OR big ILIKE '%Y%'",
            ],
        ),
        ("d", &["k = 1", "NOT k IN (1, 2) AND id > 10"]),
        ("i", &["code = 'a'", "code LIKE '%b%' OR id < 5"]),
    ];
    let mut streams = Vec::new();
    for (table, predicates) in cases {
        let values = "SELECT g, g % 3, 'a', 'new', g, 'n' FROM generate_series(1, 60) g";
        stage.db.run(&format!("INSERT INTO {table} {values}")).await;
        for predicate in predicates {
            let mut stream =
                stage.client().subscribe(&filtered(&format!("public.{table}"), predicate).earliest()).await;
            stream.until("opened", |log| log.opened().is_some()).await;
            streams.push((table, predicate, stream));
        }
    }
    for round in 0..40 {
        let state = ["'paid'", "'new'", "NULL"][round % 3];
        let code = ["a", "b", "paid", "ab"][round % 4];
        let (id, total) = (round * 7 % 60 + 1, round * 13 % 100);
        for (table, _) in cases {
            stage
                .db
                .run(&format!(
                    "BEGIN; UPDATE {table} SET state = {state} WHERE id % 7 = {} ; UPDATE {table} SET total = {total} \
                     WHERE id BETWEEN {id} AND {id} + 5; COMMIT; UPDATE {table} SET k = (k + 1) % 3 WHERE id % 5 = {}; \
                     UPDATE {table} SET code = '{code}' WHERE id % 4 = {}; UPDATE {table} SET big = repeat('{}', 9000) \
                     WHERE id % 6 = {}; DELETE FROM {table} WHERE id = {id}; \
                     INSERT INTO {table} VALUES ({id}, 1, '{code}', {state}, {total}, 'again')",
                    round % 7,
                    round % 5,
                    round % 3,
                    ["x", "y"][round % 2],
                    round % 6,
                ))
                .await;
        }
    }
    let goal = stage.goal().await;
    for (table, predicate, mut stream) in streams {
        stream.reaches(goal).await;
        let history = stream.close();
        let mut copy = BTreeSet::new();
        for (operation, id, transition) in rows(&history) {
            match transition {
                Transition::Enter => assert!(copy.insert(id), "{operation} {id} enters twice"),
                Transition::Stay => assert!(copy.contains(&id), "{operation} {id} stays"),
                Transition::Leave => assert!(copy.remove(&id), "{operation} {id} leaves"),
                Transition::Unspecified => panic!("{operation} {id} tells no transition"),
            }
        }
        let selected = stage.db.rows(&format!("SELECT id FROM {table} WHERE {predicate}")).await;
        let selected: BTreeSet<i64> =
            selected.iter().map(|row| row[0].as_ref().and_then(|id| id.parse().ok()).expect("an id")).collect();
        assert!(!selected.is_empty() && copy == selected, "{table}: {predicate}: {copy:?} instead of {selected:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_identity_that_says_too_little_is_refused_with_what_to_run() {
    let stage =
        stage().sql("CREATE SCHEMA \"My Shop\"; CREATE TABLE \"My Shop\".t (id int PRIMARY KEY, v text)").start().await;
    let db = &stage.db;
    db.run("INSERT INTO \"My Shop\".t VALUES (1, 'a')").await;
    stage.journaled().await;
    let request = filtered("My Shop.t", "id > 0 AND v = 'a'");
    let failure = refusal(&stage, &request).await;
    assert_eq!(failure.violations, ["filter.where"]);
    assert!(failure.message.contains("offset 11"), "{failure:?}");
    for (selected, accepted) in [
        (vec![Operation::Insert, Operation::Truncate], true),
        (vec![Operation::Insert, Operation::Update], false),
        (vec![Operation::Delete], false),
    ] {
        let mut stream = stage.client().subscribe(&request.clone().operations(&selected).stop_at_tail()).await;
        stream.ended().await;
        assert_eq!(stream.log.end.reason().is_none(), accepted, "{selected:?}: {:?}", stream.log.end);
    }
    stage.collect(filtered("My Shop.t", "id > 0").earliest()).await;
    stage.collect(filtered("My Shop.t", "after.v = 'a'").operations(&[Operation::Update]).earliest()).await;

    let fix = failure.message.split("ALTER TABLE").nth(1).and_then(|rest| rest.split(',').next()).expect("a fix");
    db.run(&format!("ALTER TABLE {fix}")).await;
    let mut stream = stage.client().subscribe(&request.latest()).await;
    stream.until("opened", |log| log.opened().is_some()).await;
    db.run("UPDATE \"My Shop\".t SET v = 'b'").await;
    db.run("UPDATE \"My Shop\".t SET v = 'a'").await;
    stream.reaches(stage.goal().await).await;
    let expected = [row("UPDATE", 1, Transition::Leave), row("UPDATE", 1, Transition::Enter)];
    assert_eq!(rows(&stream.close()), expected);
}

/// Reads until the stream ends with FILTER_INVALID.
async fn broken(stream: &mut Stream, words: &[&str]) {
    let failure = stream.fails_with("FILTER_INVALID").await;
    for word in words {
        assert!(failure.message.contains(word), "{word:?} is not in {failure:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_new_version_of_a_table_is_checked() {
    let stage = orders().await;
    stage.db.run("INSERT INTO orders VALUES (1, 'paid')").await;
    stage.journaled().await;
    let filter = filtered("public.orders", "total IS NULL AND state = 'paid'");
    let mut stream = stage.client().subscribe(&filter.clone().earliest()).await;
    stream.until("a change", |log| log.changes() == 1).await;
    stage.db.run("ALTER TABLE orders ADD COLUMN more int; INSERT INTO orders VALUES (2, 'paid')").await;
    stream.until("a change of the next version", |log| log.changes() == 2).await;
    stage.db.run("INSERT INTO items VALUES (1, 1); ALTER TABLE orders RENAME COLUMN state TO status").await;
    stage.db.run("INSERT INTO items VALUES (2, 1)").await;
    let goal = stage.goal().await;
    stream.reaches(goal).await;
    stage.db.run("INSERT INTO orders VALUES (3, 'paid')").await;
    broken(&mut stream, &["filter.where", "public.orders", "\"state\"", "offset 18"]).await;
    assert_eq!(stream.log.changes(), 2);
    // From the beginning everything comes up to the version that does not fit.
    refusal(&stage, &filter.earliest()).await;
    let renamed = filtered("public.orders", "total IS NULL AND status = 'paid'").earliest();
    let mut stream = stage.client().subscribe(&renamed).await;
    broken(&mut stream, &["public.orders", "\"status\""]).await;
    let position = stage.everything().await.position().expect("a position");
    let mut stream = stage.client().subscribe(&renamed.after(&position)).await;
    stage.db.run("INSERT INTO orders VALUES (4, 'paid')").await;
    stream.until("a change", |log| log.changes() == 1).await;

    // So is what the replica identity tells, and the types.
    let filter = filtered("public.orders", "id > 0 AND total > 1");
    for (change, words) in [
        ("REPLICA IDENTITY DEFAULT", ["filter.where", "public.orders REPLICA IDENTITY FULL", "offset 11"]),
        ("REPLICA IDENTITY FULL, ALTER total TYPE text", ["public.orders", "expected a text in quotes", "offset 19"]),
    ] {
        let mut stream = stage.client().subscribe(&filter).await;
        stream.until("opened", |log| log.opened().is_some()).await;
        stage.db.run("UPDATE orders SET total = 5 WHERE id = 4; UPDATE orders SET total = 0 WHERE id = 4").await;
        stream.until("both changes", |log| log.changes() == 2).await;
        stage.db.run(&format!("ALTER TABLE orders {change}; UPDATE orders SET total = 3 WHERE id = 4")).await;
        broken(&mut stream, &words).await;
        let sent = rows(&stream.close());
        assert_eq!(sent, [row("UPDATE", 4, Transition::Enter), row("UPDATE", 4, Transition::Leave)], "{change}");
        stage.db.run("ALTER TABLE orders REPLICA IDENTITY FULL, ALTER total TYPE numeric USING 0").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_never_seen_is_checked_when_a_stream_opens() {
    let stage = orders().await;
    let request =
        |tables: &[&str]| Request::new().tables(tables).filter(|f| f.r#where = "\"größe\" = 1 OR no = 1".into());
    for tables in [&["public.items"][..], &["*.items"], &["*"], &[]] {
        let failure = refusal(&stage, &request(tables)).await;
        for word in ["table public.items has no column \"größe\"", "offset 0"] {
            assert!(failure.message.contains(word), "{word:?} is not in {failure:?}");
        }
        assert_eq!(failure.message.contains("public.orders"), tables.is_empty() || tables == ["*"], "{failure:?}");
    }
    // Only a table that is made later is checked with its first change.
    let mut stream = stage.client().subscribe(&request(&["*.later"])).await;
    stream.until("opened", |log| log.opened().is_some()).await;
    let by_key = filtered("*", "id = 2");
    let mut everywhere = stage.client().subscribe(&by_key).await;
    everywhere.until("opened", |log| log.opened().is_some()).await;
    stage.db.run("CREATE TABLE later (id int PRIMARY KEY, \"größe\" int)").await;
    stage.db.run("INSERT INTO items VALUES (2, 1); INSERT INTO later VALUES (2, 1), (3, 1)").await;
    broken(&mut stream, &["public.later", "\"no\"", "offset 15"]).await;
    assert_eq!(stream.log.changes(), 0);
    everywhere.reaches(stage.goal().await).await;
    let expected = [row("INSERT", 2, Transition::Enter), row("INSERT", 2, Transition::Enter)];
    assert_eq!(rows(&everywhere.close()), expected);
    // Within the time for which descriptions are kept: where one does not fit, the table is looked at again.
    stage.db.run("ALTER TABLE later ADD COLUMN no int, REPLICA IDENTITY FULL").await;
    let mut stream = stage.client().subscribe(&request(&["*.later"])).await;
    stream.until("opened", |log| log.opened().is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_was_added_a_moment_ago_can_be_named() {
    let stage = orders().await;
    stage.db.run("INSERT INTO orders VALUES (1, 'new')").await;
    stage.journaled().await;
    stage.db.run("ALTER TABLE orders ADD COLUMN kind int, ALTER total TYPE text").await;
    let mut stream = stage.client().subscribe(&filtered("public.orders", "kind = 1 AND total LIKE '1%'")).await;
    stream.until("opened", |log| log.opened().is_some()).await;
    stage.db.run("INSERT INTO orders VALUES (2, 'new', '12', '', 1), (3, 'new', '2', '', 1)").await;
    stream.reaches(stage.goal().await).await;
    assert_eq!(rows(&stream.close()), [row("INSERT", 2, Transition::Enter)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_update_does_not_carry_is_never_guessed() {
    let stage = stage()
        .sql("CREATE TABLE d (id int PRIMARY KEY, n int, big text); CREATE TABLE f (LIKE d INCLUDING ALL)")
        .sql("ALTER TABLE d ALTER big SET STORAGE EXTERNAL; ALTER TABLE f ALTER big SET STORAGE EXTERNAL")
        .sql("ALTER TABLE f REPLICA IDENTITY FULL")
        .start()
        .await;
    for table in ["d", "f"] {
        stage
            .db
            .run(&format!("INSERT INTO {table} VALUES (1, 0, repeat('x', 100000)); UPDATE {table} SET n = 1"))
            .await;
    }
    let where_ = |table: &str, predicate: &str| filtered(table, predicate).operations(&[Operation::Update]).earliest();
    let mut stream = stage.client().subscribe(&where_("public.d", "after.big LIKE 'x%'")).await;
    let failure = stream.fails_with("FILTER_INVALID").await;
    assert!(failure.message.contains("\"big\"") && failure.message.contains("public.d"), "{failure:?}");
    let last = stage.truth().await.entries.iter().rev().nth(2).expect("the UPDATE of d").clone();
    assert!(failure.lsn("lsn") <= last.commit_lsn, "{failure:?} names a change of {last:?}");
    let sent = |predicate: &'static str| {
        let request = where_("public.d", predicate);
        async { rows(&stage.collect(request).await).len() }
    };
    assert_eq!(sent("after.big IS NOT NULL").await, 1, "a TOASTed value is not null");
    assert_eq!(sent("after.n = 5 AND after.big LIKE 'x%'").await, 0, "decided by the other conjunct");
    let history = stage.collect(where_("public.f", "big LIKE 'x%'")).await;
    assert_eq!(rows(&history), [row("UPDATE", 1, Transition::Stay)], "the old image has it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_table_has_its_rule() {
    let stage = orders().await;
    stage
        .db
        .run(
            "INSERT INTO orders VALUES (1, 'new'), (2, 'paid'); INSERT INTO items VALUES (10, 1), (11, 2); \
             DELETE FROM items WHERE id = 11; UPDATE items SET order_id = 2 WHERE id = 10",
        )
        .await;
    stage.journaled().await;
    let rule = |tables: &str, predicate: &str| pb::TableRule {
        tables: tables.into(),
        r#where: predicate.into(),
        ..Default::default()
    };
    let with = |rules: Vec<pb::TableRule>| Request::new().tables(&["public.*"]).filter(|f| f.rules = rules).earliest();
    let history =
        stage.collect(with(vec![rule("public.orders", "state = 'paid'"), rule("public.i*", "id > 10")])).await;
    let expected = [
        row("INSERT", 2, Transition::Enter),
        row("INSERT", 11, Transition::Enter),
        row("DELETE", 11, Transition::Leave),
    ];
    assert_eq!(rows(&history), expected);
    let failure =
        refusal(&stage, &with(vec![rule("public.orders", "state = 'paid'"), rule("*.items", "order_id = 1")])).await;
    assert_eq!(failure.violations, ["filter.rules[1].where"]);
    let failure = refusal(&stage, &with(vec![rule("public.orders", "state == 'paid'")])).await;
    assert_eq!(failure.violations, ["filter.rules[0].where"]);
    assert!(failure.message.contains("offset 7"), "{failure:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_predicates_share_projections_however_they_are_written() {
    let stage = orders().await;
    for round in 0..20 {
        stage.db.run(&format!("INSERT INTO orders VALUES ({round}, 'paid', 1), (1000 + {round}, 'new', 1)")).await;
        stage.journaled().await;
    }
    let goal = stage.goal().await;
    let spellings = ["state='paid' AND total>0", "(State = 'paid')  and ( total > 0 )"];
    let mut counted = Vec::new();
    for (subscribers, spellings) in [(1, &spellings[..1]), (20, &spellings[..])] {
        let before = stage.hub.metric("walcast_projections_total").await;
        let mut streams = Vec::new();
        for number in 0..subscribers {
            let request = filtered("public.orders", spellings[number % spellings.len()]).earliest();
            streams.push(stage.client().subscribe(&request).await);
        }
        for stream in &mut streams {
            stream.reaches(goal).await;
            assert_eq!(stream.log.changes(), 20);
        }
        counted.push(stage.hub.metric("walcast_projections_total").await - before);
        drop(streams);
        stage.hub.metric_becomes("walcast_streams", Duration::from_secs(10), |streams| streams == 0.0).await;
    }
    assert!(counted[0] >= 1.0 && counted[0] == counted[1], "{counted:?} projections for 1 and for 20 subscribers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_is_projected_for_those_whom_it_concerns() {
    const TENANTS: i64 = 40;
    let stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY, tenant int)").start().await;
    let mut streams = Vec::new();
    for tenant in 0..TENANTS {
        let request = filtered("public.t", &format!("tenant = {tenant}")).operations(&[Operation::Insert]);
        let mut stream = stage.client().subscribe(&request).await;
        stream.until("opened", |log| log.opened().is_some()).await;
        streams.push(stream);
    }
    // Every stream takes in its first block.
    stage.db.run("INSERT INTO t VALUES (-1, -1)").await;
    let goal = stage.goal().await;
    for stream in &mut streams {
        stream.reaches(goal).await;
    }
    let before = stage.hub.metric("walcast_projections_total").await;
    for round in 0..3 {
        for tenant in 0..TENANTS {
            stage.db.run(&format!("INSERT INTO t VALUES ({}, {tenant})", round * TENANTS + tenant)).await;
        }
    }
    let goal = stage.goal().await;
    for (tenant, mut stream) in streams.into_iter().enumerate() {
        stream.reaches(goal).await;
        let history = stream.close();
        let expected: Vec<i64> = (0..3).map(|round| round * TENANTS + tenant as i64).collect();
        assert_eq!(rows(&history).into_iter().map(|(_, id, _)| id).collect::<Vec<_>>(), expected);
        let parsed: Parsed<'_> = validators::formal(&history).expect("a valid history");
        validators::ordered(&parsed).expect("in commit order");
    }
    let projections = stage.hub.metric("walcast_projections_total").await - before;
    // A transaction may come in two blocks; forty projections of each would be twenty times as many.
    assert!(projections <= (6 * TENANTS + 20) as f64, "{projections} projections of {} transactions", 3 * TENANTS);
}

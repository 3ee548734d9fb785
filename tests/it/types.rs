//! Every built-in type, and what is not one, by value.

use walcast::wire::pb;

use crate::harness::{
    Cluster,
    client::Request,
    parsed::{Cell, What},
    stage,
    stage::held,
    validators::{self, Replica},
};

fn text(value: &str) -> Cell {
    Cell::Text(value.into())
}

fn float(value: f64) -> Cell {
    Cell::Float(value.to_bits())
}

/// Type, SQL literal, what the wire carries.
fn cases() -> Vec<(&'static str, &'static str, Cell)> {
    vec![
        ("bool", "true", Cell::Bool(true)),
        ("int2", "-32768", Cell::Int(-32768)),
        ("int4", "2147483647", Cell::Int(2147483647)),
        ("int8", "-9223372036854775808", Cell::Int(i64::MIN)),
        ("oid", "4294967295", Cell::Int(4294967295)),
        ("float4", "0.1", float(f64::from(0.1f32))),
        ("float8", "0.1", float(0.1)),
        ("float8", "'NaN'", float(f64::NAN)),
        ("float4", "'Infinity'", float(f64::INFINITY)),
        ("float8", "'-Infinity'", float(f64::NEG_INFINITY)),
        ("float8", "'-0'", float(-0.0)),
        ("float8", "5e-324", float(5e-324)),
        ("numeric", "12345678901234567890.0123456789", text("12345678901234567890.0123456789")),
        ("numeric(10, 2)", "1.5", text("1.50")),
        ("numeric", "'NaN'", text("NaN")),
        ("text", "''", text("")),
        ("text", "E'tab\\tnewline\\nquote\\'s ✓ 🦀'", text("tab\tnewline\nquote's ✓ 🦀")),
        ("varchar(5)", "'abc'", text("abc")),
        ("char(5)", "'abc'", text("abc  ")),
        ("\"char\"", "'x'", text("x")),
        ("name", "'a name'", text("a name")),
        ("bytea", "'\\x00ff10'", Cell::Bytes(vec![0, 255, 16])),
        ("bytea", "''", Cell::Bytes(Vec::new())),
        ("date", "'2024-02-29'", text("2024-02-29")),
        ("date", "'0044-03-15 BC'", text("0044-03-15 BC")),
        ("date", "'infinity'", text("infinity")),
        ("time", "'23:59:59.999999'", text("23:59:59.999999")),
        ("timetz", "'12:00:00+05:30'", text("12:00:00+05:30")),
        ("timestamp", "'2024-01-02 03:04:05.678901'", text("2024-01-02 03:04:05.678901")),
        ("timestamp", "'-infinity'", text("-infinity")),
        ("timestamp", "'4713-01-01 00:00:00 BC'", text("4713-01-01 00:00:00 BC")),
        ("timestamptz", "'2024-01-02 03:04:05+02'", text("2024-01-02 01:04:05+00")),
        ("timestamptz", "'294276-12-31 23:59:59+00'", text("294276-12-31 23:59:59+00")),
        ("interval", "'1 year 2 mons 3 days 04:05:06.789'", text("1 year 2 mons 3 days 04:05:06.789")),
        ("interval", "'-1 day'", text("-1 days")),
        ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", text("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
        ("json", "'{\"b\": 1,  \"a\": [null]}'", text("{\"b\": 1,  \"a\": [null]}")),
        ("jsonb", "'{\"b\": 1,  \"a\": [null]}'", text("{\"a\": [null], \"b\": 1}")),
        ("jsonpath", "'$.a'", text("$.\"a\"")),
        ("xml", "'<a>1</a>'", text("<a>1</a>")),
        ("inet", "'192.168.0.1/24'", text("192.168.0.1/24")),
        ("cidr", "'2001:db8::/32'", text("2001:db8::/32")),
        ("macaddr", "'08:00:2b:01:02:03'", text("08:00:2b:01:02:03")),
        ("macaddr8", "'08:00:2b:01:02:03:04:05'", text("08:00:2b:01:02:03:04:05")),
        ("bit(4)", "B'1010'", text("1010")),
        ("varbit", "B'101'", text("101")),
        ("money", "12.5", text("$12.50")),
        ("point", "'(1,2)'", text("(1,2)")),
        ("line", "'{1,2,3}'", text("{1,2,3}")),
        ("lseg", "'[(1,2),(3,4)]'", text("[(1,2),(3,4)]")),
        ("box", "'(3,4),(1,2)'", text("(3,4),(1,2)")),
        ("path", "'((1,2),(3,4))'", text("((1,2),(3,4))")),
        ("polygon", "'((1,2),(3,4),(5,6))'", text("((1,2),(3,4),(5,6))")),
        ("circle", "'<(1,2),3>'", text("<(1,2),3>")),
        ("tsvector", "'fat cat'", text("'cat' 'fat'")),
        ("tsquery", "'fat & cat'", text("'fat' & 'cat'")),
        ("pg_lsn", "'16/B374D848'", text("16/B374D848")),
        ("xid8", "'4294967296'", text("4294967296")),
        ("regclass", "'pg_class'", text("pg_class")),
        ("regtype", "'integer'", text("integer")),
        ("int4range", "'[1,5]'", text("[1,6)")),
        ("tstzrange", "'[2024-01-01 00:00+00,)'", text("[\"2024-01-01 00:00:00+00\",)")),
        ("numrange", "'empty'", text("empty")),
        ("int4multirange", "'{[1,3),[5,7)}'", text("{[1,3),[5,7)}")),
        ("int4[]", "'{1,NULL,3}'", text("{1,NULL,3}")),
        ("text[]", "ARRAY['a b', 'q\"q', NULL, 'NULL', '']", text("{\"a b\",\"q\\\"q\",NULL,\"NULL\",\"\"}")),
        ("int4[]", "'[2:3]={7,8}'", text("[2:3]={7,8}")),
        ("int4[][]", "'{{1,2},{3,4}}'", text("{{1,2},{3,4}}")),
        ("float8[]", "'{NaN,Infinity,0.1}'", text("{NaN,Infinity,0.1}")),
        ("bytea[]", "ARRAY['\\xff'::bytea]", text("{\"\\\\xff\"}")),
        ("mood", "'so so'", text("so so")),
        ("mood[]", "'{sad,\"so so\"}'", text("{sad,\"so so\"}")),
        ("positive", "42", text("42")),
        ("pair", "ROW(1, 'two, \"three\"')", text("(1,\"two, \"\"three\"\"\")")),
        ("pair[]", "ARRAY[ROW(1, NULL)::pair]", text("{\"(1,)\"}")),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_arrives_as_promised() {
    let cases = cases();
    let columns: Vec<String> = cases.iter().enumerate().map(|(i, (kind, _, _))| format!("c{i} {kind}")).collect();
    let literals: Vec<&str> = cases.iter().map(|(_, literal, _)| *literal).collect();
    let stage = stage()
        .sql(
            "CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy'); CREATE DOMAIN positive AS int4 CHECK (VALUE > 0); \
             CREATE TYPE pair AS (a int, b text)",
        )
        .sql(&format!("CREATE TABLE t (id int PRIMARY KEY, {})", columns.join(", ")))
        // The server's own settings must not show: the hub pins what the text forms depend on.
        .setting("datestyle", "German, DMY")
        .setting("timezone", "Asia/Kathmandu")
        .setting("intervalstyle", "iso_8601")
        .setting("bytea_output", "escape")
        .setting("extra_float_digits", "-3")
        .start()
        .await;
    stage.db.run("SET DateStyle = ISO").await;
    stage.db.run(&format!("INSERT INTO t VALUES (1, {})", literals.join(", "))).await;
    stage.db.run("INSERT INTO t (id) VALUES (2)").await;
    let history = stage.everything().await;
    let parsed = stage.check(&history).await;
    let rows: Vec<&What> = parsed.items().map(|item| &item.what).collect();
    let mut wrong = Vec::new();
    for (index, (kind, literal, expected)) in cases.iter().enumerate() {
        let column = format!("c{index}");
        let got = rows[0].get(&column);
        if got != Some(expected) {
            wrong.push(format!("{kind} {literal}: expected {expected:?}, got {got:?}"));
        }
        if rows[1].get(&column) != Some(&Cell::Null) {
            wrong.push(format!("{kind} NULL: got {:?}", rows[1].get(&column)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the table above expects is what the server itself says under the pinned settings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_expectations_are_postgresqls_own() {
    let cluster = Cluster::start();
    let db = cluster.connect().await;
    db.run(
        "CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy'); CREATE DOMAIN positive AS int4; \
         CREATE TYPE pair AS (a int, b text); CREATE TABLE t (id int PRIMARY KEY)",
    )
    .await;
    for (index, (kind, literal, expected)) in cases().iter().enumerate() {
        db.run(&format!("ALTER TABLE t ADD COLUMN c{index} {kind}; TRUNCATE t")).await;
        db.run(&format!("INSERT INTO t (id, c{index}) VALUES (1, {literal})")).await;
        let row = validators::source(&db, "public.t").await.remove(0);
        let got = &row[&format!("c{index}")];
        // A domain is its base type on the wire; the comparison with the source reads it as text.
        if *kind != "positive" {
            assert_eq!(got, expected, "{kind} {literal}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extension_types_arrive_as_text_under_their_names() {
    let stage = stage().start().await;
    let known =
        stage.db.number("SELECT count(*) FROM pg_available_extensions WHERE name IN ('hstore', 'citext')").await;
    if known < 2 {
        println!("hstore and citext are not installed here: nothing to look at");
        return;
    }
    stage
        .db
        .run(
            "CREATE EXTENSION hstore; CREATE EXTENSION citext; \
             CREATE TABLE t (id int PRIMARY KEY, h hstore, c citext); INSERT INTO t VALUES (1, 'a=>1,b=>NULL', 'MiXed')",
        )
        .await;
    let history = stage.everything().await;
    let parsed = stage.check(&history).await;
    let row = &parsed.items().next().expect("a row").what;
    assert_eq!(row.get("h"), Some(&text("\"a\"=>\"1\", \"b\"=>NULL")));
    assert_eq!(row.get("c"), Some(&text("MiXed")));
    let What::Row { shape, .. } = row else { panic!("{row:?}") };
    let names: Vec<&str> = shape.columns.iter().map(|(_, kind, _)| kind.as_str()).collect();
    assert_eq!(names, ["int4", "public.hstore", "public.citext"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_and_untouched_toast() {
    let stage = stage()
        .sql("CREATE TABLE big (id int PRIMARY KEY, body text, raw bytea, n int)")
        .sql("ALTER TABLE big ALTER body SET STORAGE EXTERNAL, ALTER raw SET STORAGE EXTERNAL")
        .start()
        .await;
    stage
        .db
        .run(
            "INSERT INTO big SELECT i, repeat('0123456789abcdef', 65536), decode(repeat('00ff', 262144), 'hex'), 0 \
             FROM generate_series(1, 3) i; UPDATE big SET n = 1 WHERE id = 1; UPDATE big SET body = 'short' WHERE id = 2",
        )
        .await;
    let history = stage.everything().await;
    let parsed = stage.check(&history).await;
    let items: Vec<&What> = parsed.items().map(|item| &item.what).collect();
    assert_eq!(items[3].get("body"), Some(&Cell::Unchanged));
    assert_eq!(items[3].get("raw"), Some(&Cell::Unchanged));
    assert_eq!(items[4].get("body"), Some(&text("short")));
    let mut replica = Replica::default();
    replica.apply(&parsed).unwrap();
    held(&history, replica.equals_source(&stage.db, &["public.big".into()]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_any_kind() {
    let stage = stage()
        .sql("CREATE SCHEMA \"Schéma mit Leerzeichen\"")
        .sql("CREATE TABLE \"Schéma mit Leerzeichen\".\"ta.ble\"\"x\" (\"Größe\" int PRIMARY KEY, \"列\" text, \"\u{1F980}\" bool)")
        .start()
        .await;
    stage.db.run("INSERT INTO \"Schéma mit Leerzeichen\".\"ta.ble\"\"x\" VALUES (1, 'ü', true)").await;
    let history = stage.everything().await;
    let parsed = stage.check(&history).await;
    let row = &parsed.items().next().expect("a row").what;
    assert_eq!(row.tables(), ["Schéma mit Leerzeichen.ta.ble\"x"]);
    assert_eq!(row.get("Größe"), Some(&Cell::Int(1)));
    assert_eq!(row.get("列"), Some(&text("ü")));
    assert_eq!(row.get("\u{1F980}"), Some(&Cell::Bool(true)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_a_sql_ascii_database_come_through() {
    let stage = stage()
        .database("ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
        .sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .start()
        .await;
    stage
        .db
        .run("INSERT INTO t VALUES (1, 'plain'), (2, convert_from('\\xff41'::bytea, 'SQL_ASCII')), (3, 'after')")
        .await;
    let history = stage.everything().await;
    let parsed = stage.check(&history).await;
    let values: Vec<Cell> = parsed.items().filter_map(|item| item.what.get("v").cloned()).collect();
    assert_eq!(values, [text("plain"), Cell::Raw(vec![0xff, 0x41]), text("after")]);
    let structs = stage.collect(Request::new().earliest().structs()).await;
    assert_eq!(structs.changes(), 3, "people can look at it as well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_latin1_database_arrives_as_utf8() {
    let stage = stage()
        .database("latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
        .sql("CREATE TABLE t (id int PRIMARY KEY, \"größe\" text)")
        .start()
        .await;
    stage.db.run("INSERT INTO t VALUES (2, 'Äß')").await;
    let history = stage.everything().await;
    let parsed = stage.check(&history).await;
    let last = parsed.items().last().expect("a row");
    assert_eq!(last.what.get("größe"), Some(&text("Äß")));
    assert_eq!(history.last().kinds().filter(|k| matches!(k, pb::event::Kind::Change(_))).count(), 1);
}

//! PostgreSQL as the oracle of predicates: the same random conditions over the same rows, here and there.
//! `WALCAST_ORACLE_PREDICATES` says how many, `WALCAST_ORACLE_SEED` repeats a run.

use std::fmt::Write;

use walcast::{
    model::{Column, Operation, Relation, RelationId, ReplicaIdentity, RowAccess, Value},
    selection::predicate::{Compiled, Predicate},
};

use crate::harness::Cluster;

const ROWS: usize = 60;
const PREDICATES: usize = 2000;

/// Name, type of the literals, type OID. Domains have OIDs of their own, which are all the same here.
const COLUMNS: [(&str, &str, u32); 45] = [
    ("id", "int8", 20),
    ("i2", "int2", 21),
    ("i4", "int4", 23),
    ("o", "oid", 26),
    ("f4", "float4", 700),
    ("f8", "float8", 701),
    ("n", "numeric", 1700),
    ("t", "text", 25),
    ("v", "varchar", 1043),
    ("c", "bpchar", 1042),
    ("b", "bool", 16),
    ("u", "uuid", 2950),
    ("y", "bytea", 17),
    ("d", "date", 1082),
    ("tm", "time", 1083),
    ("tz", "timetz", 1266),
    ("ts", "timestamp", 1114),
    ("tstz", "timestamptz", 1184),
    ("iv", "interval", 1186),
    ("mood", "public.mood", 16500),
    ("tags", "_text", 1009),
    ("dom_i", "int4", DOMAIN),
    ("dom_f", "float4", DOMAIN),
    ("dom_n", "numeric", DOMAIN),
    ("dom_c", "bpchar", DOMAIN),
    ("dom_b", "bool", DOMAIN),
    ("dom_y", "bytea", DOMAIN),
    ("dom_tz", "timestamptz", DOMAIN),
    ("nm", "name", 19),
    ("ch", "char", 18),
    ("ip", "inet", 869),
    ("ints", "_int4", 1007),
    ("doc", "jsonb", 3802),
    ("during", "int4range", 3904),
    ("dom_t", "text", DOMAIN),
    ("dom_v", "varchar", DOMAIN),
    ("dom_s", "int2", DOMAIN),
    ("dom_l", "int8", DOMAIN),
    ("dom_g", "float8", DOMAIN),
    ("dom_u", "uuid", DOMAIN),
    ("dom_d", "date", DOMAIN),
    ("dom_tm", "time", DOMAIN),
    ("dom_tt", "timetz", DOMAIN),
    ("dom_ts", "timestamp", DOMAIN),
    ("dom_iv", "interval", DOMAIN),
];
const DOMAIN: u32 = 16600;

/// Literals by type; also the source of the rows. Each list is a mix of spellings and extremes.
fn pool(type_name: &str) -> &'static [&'static str] {
    match type_name {
        "int2" => &["-32768", "-1", "0", "1", "7", "32767"],
        "int4" => &["-2147483648", "-1", "0", "1", "7", "2147483647"],
        "int8" => &["-9223372036854775808", "-1", "0", "1", "7", "9223372036854775807"],
        "oid" => &["0", "1", "7", "4294967295"],
        "float4" => &["0.1", "-0", "0", "1e-30", "3.25", "-3.4e38", "NaN", "Infinity", "-Infinity"],
        "float8" => &["0.1", "-0", "0", "1e-300", "3.25", "9007199254740993", "NaN", "Infinity", "-Infinity"],
        "numeric" => &[
            "0",
            "-0.00",
            "1",
            "1.0",
            "1.10",
            "1.1",
            "-1.1",
            "10",
            "9.99",
            "0.001",
            "1e-20",
            "1e25",
            "-1e25",
            "100.000",
            "12345678901234567890.123456789",
            "12345678901234567890.1234567890",
            "NaN",
            "Infinity",
            "-Infinity",
        ],
        "text" | "varchar" => {
            &["", "a", "ab", "A", "b", "a ", "%", "_", "it''s", "ä", "Äb", "a\\b", "aXb", "日本", "aİb", "KΩ"]
        }
        "bpchar" => &["", "a", "a  ", "ab", "A", "b", "ä"],
        "bool" => &["t", "f", "true", "no"],
        "uuid" => &[
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}",
            "00000000000000000000000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ],
        "bytea" => &["\\x", "\\x00", "\\x00ff", "\\xDEAD", "\\xdeadbeef"],
        "date" => &[
            "2026-01-01",
            "2000-02-29",
            "1999-12-31",
            "0044-03-15 BC",
            "4714-11-24 BC",
            "5874897-12-31",
            "infinity",
            "-infinity",
        ],
        "time" => &["00:00:00", "24:00:00", "12:34:56.789", "12:34:56.789001", "12:34"],
        "timetz" => &["00:00:00+00", "12:00:00+02", "10:00:00+00", "12:00:00-08", "23:59:59.5+05:30", "10:00"],
        "timestamp" => &[
            "2026-01-01",
            "2026-01-01 00:00:00",
            "2026-01-01 00:00:00.000001",
            "1999-12-31T23:59:59.999999",
            "0044-03-15 12:00:00 BC",
            "294276-12-31 23:59:59",
            "infinity",
            "-infinity",
        ],
        "timestamptz" => &[
            "2026-01-01",
            "2026-01-01 00:00:00+00",
            "2026-01-01 05:30:00+05:30",
            "2025-12-31 16:00:00-08",
            "2025-12-31T23:59:59.999999Z",
            "0044-03-15 12:00:00+00 BC",
            "0044-03-15 14:00:00+02 BC",
            "294276-12-31 23:59:59+00",
            "infinity",
            "-infinity",
        ],
        "interval" => &[
            "1 day",
            "24:00:00",
            "24 hours",
            "-1 days +02:03:00",
            "-21:57:00",
            "1 mon",
            "30 days",
            "1 year 2 mons 3 days 04:05:06.789",
            "14 months",
            "00:00:00",
            "-1 year",
            "2 weeks",
        ],
        "public.mood" => &["sad", "ok", "happy"],
        "name" => &["", "a", "ab", "A", "ä", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxäyz"],
        "char" => &["", "a", "b", "A", "abc"],
        "inet" => &["10.0.0.1", "10.0.0.0/8", "::1"],
        "_int4" => &["{}", "{1,2}", "{{1},{NULL}}"],
        "jsonb" => &["{}", "null", "{\"a\": [1, \"x\"]}", "\"ä\""],
        "int4range" => &["empty", "[1,5)", "(,3)", "(,)"],
        _ => &["{}", "{a,b}", "{NULL,\"x y\"}"],
    }
}

fn pick<'a>(random: &mut fastrand::Rng, items: &[&'a str]) -> &'a str {
    items[random.usize(..items.len())]
}

fn quote(text: &str) -> String {
    format!("'{text}'")
}

fn literal(random: &mut fastrand::Rng, type_name: &str) -> String {
    let text = pick(random, pool(type_name));
    match type_name {
        _ if random.u8(..12) == 0 => "NULL".to_owned(),
        "bool" if random.bool() => pick(random, &["TRUE", "false"]).to_owned(),
        "date" | "time" | "timetz" | "timestamp" | "timestamptz" | "interval" | "uuid" | "bytea" | "numeric"
        | "bool" | "jsonb" | "inet"
            if random.u8(..6) == 0 =>
        {
            if random.bool() {
                format!("{type_name} '{text}'")
            } else {
                format!("'{text}'::{type_name}")
            }
        }
        "oid" if random.bool() => pick(random, &["0", "1", "7", "32768"]).to_owned(),
        "int2" | "int4" | "int8" if random.bool() => {
            pick(random, &["0", "1", "7.0", "1.5", "-1.5", "-0.5", "1e3", "99999999999999999999", "-1e30", "32768"])
                .to_owned()
        }
        "numeric" | "float8" if text.starts_with(|c: char| c.is_ascii_digit()) && random.bool() => text.to_owned(),
        _ => quote(text),
    }
}

/// One condition, here and in SQL.
fn condition(random: &mut fastrand::Rng, depth: usize, qualified: bool) -> (String, String) {
    if depth > 0 && random.u8(..3) > 0 {
        let (one, one_sql) = condition(random, depth - 1, qualified);
        let (other, other_sql) = condition(random, depth - 1, qualified);
        let same = |format: &dyn Fn(&str, &str) -> String| (format(&one, &other), format(&one_sql, &other_sql));
        return match random.u8(..6) {
            0 | 1 => same(&|one, other| format!("({one} AND {other})")),
            2 | 3 => same(&|one, other| format!("({one} OR {other})")),
            4 => same(&|one, _| format!("NOT ({one})")),
            _ => {
                let word = pick(random, &["TRUE", "FALSE", "UNKNOWN", "NOT TRUE", "NOT FALSE", "NOT UNKNOWN", "NULL"]);
                same(&|one, _| format!("(({one}) IS {word})"))
            }
        };
    }
    let (name, type_name, _) = COLUMNS[random.usize(..COLUMNS.len())];
    let side = |random: &mut fastrand::Rng| if !qualified { "" } else { pick(random, &["before.", "after."]) };
    let column = format!("{}{name}", side(random));
    let ordered = !matches!(type_name, "public.mood" | "_text" | "inet" | "_int4" | "jsonb" | "int4range");
    let op = match ordered {
        true => pick(random, &["=", "<>", "<", "<=", ">", ">=", "IS DISTINCT FROM", "IS NOT DISTINCT FROM"]),
        false => pick(random, &["=", "<>", "IS DISTINCT FROM", "IS NOT DISTINCT FROM"]),
    };
    let text = match random.u8(..10) {
        0 => format!("{column} IS NULL"),
        1 => format!("{column} IS NOT NULL"),
        2 => {
            let items: Vec<String> = (0..random.usize(1..5)).map(|_| literal(random, type_name)).collect();
            format!("{column} {} ({})", pick(random, &["IN", "NOT IN"]), items.join(", "))
        }
        3 if ordered => {
            let (low, high) = (literal(random, type_name), literal(random, type_name));
            format!("{column} {} {low} AND {high}", pick(random, &["BETWEEN", "NOT BETWEEN"]))
        }
        4 if matches!(type_name, "text" | "varchar" | "bpchar" | "name") => {
            let parts = ["%", "_", "a", "b", "A", "ä", "\\%", " ", "X", "%%", "本", "i", "k", "Ω"];
            let pattern: String = (0..random.usize(..5)).map(|_| pick(random, &parts)).collect();
            format!("{column} {} '{pattern}'", pick(random, &["LIKE", "NOT LIKE", "ILIKE"]))
        }
        5 if qualified => {
            return (format!("changed({name})"), format!("(before.{name} IS DISTINCT FROM after.{name})"));
        }
        5 | 6 => {
            let partner = match name {
                "i2" | "i4" | "id" => pick(random, &["i2", "i4", "id"]),
                "t" | "v" => pick(random, &["t", "v"]),
                "f4" | "f8" => pick(random, &["f4", "f8"]),
                name => name,
            };
            format!("{column} {op} {}{partner}", side(random))
        }
        7 if name == "b" => column,
        _ if random.u8(..5) == 0 && !op.starts_with("IS") => format!("{} {op} {column}", literal(random, type_name)),
        _ => format!("{column} {op} {}", literal(random, type_name)),
    };
    (text.clone(), text)
}

/// A value in the kind in which the hub has it.
enum Cell {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Bytes(Vec<u8>),
    Text(String),
}

impl Cell {
    fn new(text: Option<&str>, type_oid: u32) -> Cell {
        let Some(text) = text else { return Cell::Null };
        match type_oid {
            16 => Cell::Bool(text == "t"),
            20 | 21 | 23 | 26 => Cell::Int(text.parse().expect("an integer")),
            700 => Cell::Float(text.parse::<f32>().expect("a float").into()),
            701 => Cell::Float(text.parse().expect("a float")),
            17 => {
                let digits = text.strip_prefix(r"\x").expect("hex");
                let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex");
                Cell::Bytes((0..digits.len()).step_by(2).map(byte).collect())
            }
            _ => Cell::Text(text.to_owned()),
        }
    }

    fn value(&self) -> Value<'_> {
        match self {
            Cell::Null => Value::Null,
            Cell::Bool(bool) => Value::Bool(*bool),
            Cell::Int(int) => Value::Int(*int),
            Cell::Float(float) => Value::Float(*float),
            Cell::Bytes(bytes) => Value::Bytes(bytes),
            Cell::Text(text) => Value::Text(text),
        }
    }
}

struct Change<'a> {
    before: &'a [Cell],
    after: &'a [Cell],
}

impl RowAccess for Change<'_> {
    fn before(&self, column: usize) -> Value<'_> {
        self.before.get(column).map_or(Value::Absent, Cell::value)
    }

    fn after(&self, column: usize) -> Value<'_> {
        self.after.get(column).map_or(Value::Absent, Cell::value)
    }
}

fn relation() -> Relation {
    let column = |(name, type_name, type_oid): (&str, &str, u32)| Column {
        name: name.into(),
        type_oid,
        type_name: if type_oid == DOMAIN { format!("pg_catalog.{type_name}") } else { type_name.into() },
        type_modifier: -1,
        in_identity: true,
    };
    Relation {
        id: RelationId(1),
        oid: 16384,
        schema: "public".into(),
        table: "oracle".into(),
        replica_identity: ReplicaIdentity::Full,
        columns: COLUMNS.map(column).into(),
    }
}

fn compile(relation: &Relation, predicate: &str) -> Compiled {
    let parsed = Predicate::parse(predicate).unwrap_or_else(|error| panic!("{predicate}: {error}"));
    parsed.check(relation).unwrap_or_else(|error| panic!("{predicate}: {error}"))
}

fn schema(random: &mut fastrand::Rng) -> String {
    let mut sql = String::from("CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');");
    let mut table = String::from("CREATE TABLE oracle (pos int PRIMARY KEY");
    for (name, type_name, oid) in COLUMNS {
        let base = match type_name {
            "bpchar" => "char(5) COLLATE \"C\"",
            "text" | "varchar" => &format!("{type_name} COLLATE \"C.utf8\""),
            "_text" => "text[]",
            "_int4" => "int4[]",
            "char" => "\"char\"",
            _ => type_name,
        };
        if oid == DOMAIN {
            let _ = write!(sql, "CREATE DOMAIN of_{name} AS {base};");
            let _ = write!(table, ", {name} of_{name}");
        } else {
            let _ = write!(table, ", {name} {base}");
        }
    }
    let _ = write!(sql, "{table});");
    for pos in 0..ROWS {
        let _ = write!(sql, "INSERT INTO oracle VALUES ({pos}");
        for (_, type_name, _) in COLUMNS {
            let value = if random.u8(..8) == 0 { "NULL".into() } else { quote(pick(random, pool(type_name))) };
            let _ = write!(sql, ", {value}");
        }
        sql.push_str(");");
    }
    sql
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_agrees_on_random_predicates() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = number("WALCAST_ORACLE_SEED").unwrap_or_else(|| fastrand::u64(..));
    let predicates = number("WALCAST_ORACLE_PREDICATES").map_or(PREDICATES, |count| count as usize);
    println!("WALCAST_ORACLE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let cluster = Cluster::start();
    let db = cluster.connect().await;
    db.run("SET datestyle = 'ISO'; SET timezone = 'UTC'; SET intervalstyle = 'postgres'; SET extra_float_digits = 1")
        .await;
    db.run(&schema(&mut random)).await;
    let names = COLUMNS.map(|(name, ..)| name).join(", ");
    let rows = db.rows(&format!("SELECT {names} FROM oracle ORDER BY pos")).await;
    let cells = |row: &Vec<Option<String>>| -> Vec<Cell> {
        row.iter().zip(COLUMNS).map(|(text, (_, _, oid))| Cell::new(text.as_deref(), oid)).collect()
    };
    let rows: Vec<Vec<Cell>> = rows.iter().map(cells).collect();
    assert_eq!(rows.len(), ROWS);

    let relation = relation();
    let (mut counts, mut told, mut exactly) = ([0; 3], 0, 0);
    for number in 0..predicates {
        let qualified = number % 2 == 1;
        let (here, there) = condition(&mut random, number % 5, qualified);
        let holds = compile(&relation, &here);
        let fails = compile(&relation, &format!("NOT ({here})"));
        let from = match qualified {
            true => {
                format!(
                    "oracle AS before JOIN oracle AS after ON after.pos = (before.pos + 1) % {ROWS} ORDER BY before.pos"
                )
            }
            false => "oracle ORDER BY pos".to_owned(),
        };
        let sql = holds.to_sql(true).filter(|_| !qualified);
        let pushed = sql.as_ref().map_or("NULL".to_owned(), |sql| format!("({sql}) IS TRUE"));
        let mut same = true;
        for (pos, answer) in db.rows(&format!("SELECT ({there}), {pushed} FROM {from}")).await.iter().enumerate() {
            let expected = answer[0].as_ref().map(|text| text == "t");
            let (operation, change) = match qualified {
                true => (Operation::Update, Change { before: &rows[pos], after: &rows[(pos + 1) % ROWS] }),
                false => (Operation::Insert, Change { before: &[], after: &rows[pos] }),
            };
            let told = |compiled: &Compiled| compiled.evaluate(operation, &change).expect("decided");
            let found = (told(&holds), told(&fails));
            let shown = || format!("WALCAST_ORACLE_SEED={seed}: {here} at {pos}");
            assert_eq!(found, (expected == Some(true), expected == Some(false)), "{}", shown());
            counts[expected.map_or(2, usize::from)] += 1;
            if let Some(sql) = &sql {
                let kept = answer[1].as_deref() == Some("t");
                assert!(kept || !found.0, "{} is lost by {sql}", shown());
                same &= kept == found.0;
            }
        }
        if let Some(sql) = sql {
            // Of a conjunction a part may be told.
            let conjunction = Predicate::parse(&here).is_ok_and(|parsed| parsed.canonical().contains(" AND "));
            assert!(same || conjunction, "WALCAST_ORACLE_SEED={seed}: {here} is not {sql}");
            told += 1;
            exactly += u32::from(same);
        }
    }
    println!(
        "{} false, {} true, {} null; {told} are told to PostgreSQL, {exactly} of them exactly",
        counts[0], counts[1], counts[2]
    );
    assert!(counts.iter().all(|count| *count > ROWS) && told > 0, "{counts:?} {told}");
}

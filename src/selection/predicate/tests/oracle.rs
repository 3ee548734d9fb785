//! PostgreSQL as the oracle: the same random conditions over the same rows, here and there.
//!
//! `WALCAST_ORACLE='host=/tmp/socket user=postgres' cargo test --lib predicate::tests::oracle -- --ignored`

use std::fmt::Write;

use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::*;
use crate::{
    model::Operation,
    selection::predicate::node::{Image, Node, Scope, Truth},
};

const ROWS: usize = 60;
const PREDICATES: usize = 4000;

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
        "text" | "varchar" => &["", "a", "ab", "A", "b", "a ", "%", "_", "it''s", "ä", "Äb", "a\\b", "aXb", "日本"],
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
    let (name, type_name, oid) = EVERY_TYPE[random.usize(..EVERY_TYPE.len())];
    let side = |random: &mut fastrand::Rng| if !qualified { "" } else { pick(random, &["before.", "after."]) };
    let column = format!("{}{name}", side(random));
    let ordered = !matches!(type_name, "public.mood" | "_text");
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
        4 if matches!(oid, 25 | 1042 | 1043) => {
            let parts = ["%", "_", "a", "b", "A", "ä", "\\%", " ", "X", "%%", "本"];
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

#[tokio::test]
#[ignore = "needs a PostgreSQL server in WALCAST_ORACLE"]
async fn postgresql_agrees() {
    let dsn = std::env::var("WALCAST_ORACLE").expect("WALCAST_ORACLE is a connection string");
    let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    let seed = std::env::var("WALCAST_ORACLE_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(seed);
    println!("seed {seed}");

    let mut setup = String::from(
        "SET datestyle = 'ISO'; SET timezone = 'UTC'; SET intervalstyle = 'postgres'; SET bytea_output = 'hex';
         SET extra_float_digits = 1; SET standard_conforming_strings = on;
         DROP TABLE IF EXISTS oracle; DROP TYPE IF EXISTS public.mood; CREATE TYPE public.mood AS ENUM ('sad', 'ok', 'happy');
         CREATE TABLE oracle (pos int PRIMARY KEY",
    );
    for (name, type_name, oid) in EVERY_TYPE {
        let column_type = match oid {
            1042 => "char(5) COLLATE \"C\"",
            25 | 1043 => &format!("{type_name} COLLATE \"C.utf8\""),
            1009 => "text[]",
            _ => type_name,
        };
        write!(setup, ", {name} {column_type}").unwrap();
    }
    setup.push_str(");");
    for pos in 0..ROWS {
        write!(setup, "INSERT INTO oracle VALUES ({pos}").unwrap();
        for (_, type_name, _) in EVERY_TYPE {
            let value = if random.u8(..8) == 0 { "NULL".into() } else { quote(pick(&mut random, pool(type_name))) };
            write!(setup, ", {value}").unwrap();
        }
        setup.push_str(");");
    }
    client.batch_execute(&setup).await.unwrap();

    let columns: Vec<String> = EVERY_TYPE.iter().map(|(name, ..)| name.to_string()).collect();
    let query = format!("SELECT {} FROM oracle ORDER BY pos", columns.join(", "));
    let mut rows = Vec::new();
    for message in client.simple_query(&query).await.unwrap() {
        if let SimpleQueryMessage::Row(row) = message {
            let cell = |(index, (_, _, oid)): (usize, &(&str, &str, u32))| {
                row.get(index).map_or(Cell::Null, |text| Cell::from_text(text, *oid))
            };
            rows.push(EVERY_TYPE.iter().enumerate().map(cell).collect::<Vec<_>>());
        }
    }
    assert_eq!(rows.len(), ROWS);

    let relation = every_type();
    let (mut compared, mut counts) = (0, [0; 3]);
    for number in 0..PREDICATES {
        let qualified = number % 2 == 1;
        let (here, there) = condition(&mut random, number % 5, qualified);
        let compiled = compile(&relation, &here);
        let from = if qualified {
            format!(
                "oracle AS before JOIN oracle AS after ON after.pos = (before.pos + 1) % {ROWS} ORDER BY before.pos"
            )
        } else {
            "oracle ORDER BY pos".to_owned()
        };
        let messages = client.simple_query(&format!("SELECT ({there}) FROM {from}")).await;
        let messages = messages.unwrap_or_else(|error| panic!("{there}: {error:?}"));
        let answers = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).map(|text| text == "t")),
            _ => None,
        });
        for (pos, answer) in answers.enumerate() {
            let (operation, row) = if qualified {
                (Operation::Update, Row { before: rows[pos].clone(), after: rows[(pos + 1) % ROWS].clone() })
            } else {
                (Operation::Insert, Row { before: vec![], after: rows[pos].clone() })
            };
            let scope = Scope { row: &row, operation, bare: Image::New };
            let expected = answer.map_or(Truth::NULL, Truth::from);
            assert_eq!(compiled.root.evaluate(&scope), expected, "seed {seed}: {here} on {row:?}");
            compared += 1;
            counts[answer.map_or(2, usize::from)] += 1;
        }
    }
    let (mut told, mut exactly) = (0, 0);
    for number in 0..PREDICATES {
        let (here, _) = condition(&mut random, number % 5, false);
        let compiled = compile(&relation, &here);
        let Some(sql) = compiled.to_sql(true) else { continue };
        let messages = client.simple_query(&format!("SELECT ({sql}) IS TRUE FROM oracle ORDER BY pos")).await;
        let messages = messages.unwrap_or_else(|error| panic!("{here}: {sql}: {error:?}"));
        let answers = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0) == Some("t")),
            _ => None,
        });
        told += 1;
        let mut same = true;
        for (pos, answer) in answers.enumerate() {
            let row = Row { before: vec![], after: rows[pos].clone() };
            let selected = compiled.evaluate(Operation::Read, &row).expect("decided");
            assert!(answer || !selected, "seed {seed}: {here} loses {row:?} by {sql}");
            same &= answer == selected;
        }
        assert!(same || matches!(compiled.root, Node::And(_)), "seed {seed}: {here} is not {sql}");
        exactly += u32::from(same);
    }
    println!("{told} of {PREDICATES} are told to PostgreSQL, {exactly} of them exactly");
    println!("{compared} evaluations agree: {} false, {} true, {} null", counts[0], counts[1], counts[2]);
    assert_eq!(compared, PREDICATES * ROWS);
}

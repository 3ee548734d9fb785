//! What the evaluation of one residual predicate costs, by its kind, beside PostgreSQL's own of the same text.

use std::{hint::black_box, time::Instant};

use walcast::{
    model::{Column, Operation, Relation, RelationId, ReplicaIdentity, RowAccess, Value},
    selection::predicate::Predicate,
};

use super::Suites;
use crate::report::{Section, Spread};

/// Nanoseconds that one may take.
const BUDGET: f64 = 70.0;

/// Six comparisons, two of them on numeric: shown, not held to the budget of one predicate.
const LONG: &str = "(i4 = 1 OR i4 = 2 OR i4 = 7) AND NOT (v = 'x') AND n BETWEEN 1 AND 2000000";

const PREDICATES: [&str; 19] = [
    "id = 43",
    "v = 'open'",
    "b",
    "i4 > 5 AND v <> 'closed' AND b",
    "f8 < 3",
    "n > 1234567.8901",
    "n = 1234567.89",
    "tstz >= '2026-01-01 12:34:57'",
    "iv > '14 months'",
    "u = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
    "t LIKE 'the quick%'",
    "t LIKE '%lazy%'",
    "t LIKE '%brown%dog'",
    "t LIKE 'the _uick%'",
    "t ILIKE '%LAZY%'",
    "v IN ('a', 'b', 'c', 'open')",
    "i4 IN (1, 2, 3.5, 7, NULL)",
    "n IS DISTINCT FROM 5 OR tstz IS NULL",
    LONG,
];

/// Name, type, type's OID, and the value as PostgreSQL reads it.
const COLUMNS: [(&str, &str, u32, &str); 10] = [
    ("id", "int8", 20, "42"),
    ("i4", "int4", 23, "7"),
    ("f8", "float8", 701, "2.5"),
    ("n", "numeric", 1700, "1234567.8900"),
    ("t", "text", 25, "'the quick brown fox jumps over the lazy dog'"),
    ("v", "varchar", 1043, "'open'"),
    ("b", "bool", 16, "true"),
    ("u", "uuid", 2950, "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    ("tstz", "timestamptz", 1184, "'2026-01-01 12:34:56.789012+00'"),
    ("iv", "interval", 1186, "'1 year 2 mons 3 days 04:05:06.789'"),
];

/// Borrowed values, so that the row costs as little as it can.
struct Row([Value<'static>; COLUMNS.len()]);

impl RowAccess for Row {
    fn before(&self, _: usize) -> Value<'_> {
        Value::Absent
    }

    fn after(&self, column: usize) -> Value<'_> {
        self.0[column]
    }
}

fn row() -> Row {
    Row(COLUMNS.map(|(name, _, _, text)| match name {
        "id" | "i4" => Value::Int(text.parse().expect("a number")),
        "f8" => Value::Float(text.parse().expect("a number")),
        "b" => Value::Bool(text == "true"),
        _ => Value::Text(text.trim_matches('\'')),
    }))
}

fn relation() -> Relation {
    let column = |(name, type_name, type_oid, _): (&str, &str, u32, &str)| Column {
        name: name.to_owned(),
        type_oid,
        type_name: type_name.to_owned(),
        type_modifier: -1,
        in_identity: true,
    };
    Relation {
        id: RelationId(1),
        oid: 16384,
        schema: "public".to_owned(),
        table: "evaluated".to_owned(),
        replica_identity: ReplicaIdentity::Full,
        columns: COLUMNS.map(column).into(),
    }
}

impl Suites {
    pub(super) async fn predicates(&mut self) -> Section {
        let runs = self.runs();
        let (evaluations, rows) = (self.pick(1_000_000, 200_000), self.pick(500_000, 100_000));
        let about = format!(
            "Nanoseconds of a core for one evaluation of each predicate on one row of borrowed values, {evaluations} at a time, in this \
             program. Beside it what PostgreSQL takes for the same text on each of {rows} equal rows in shared buffers: \
             count(*) FILTER (WHERE ...) above count(*) FILTER (WHERE true), without parallel workers and without JIT. {runs} runs \
             each, in turns. Both must say the same of the row."
        );
        let columns = ["predicate", "ns", "PostgreSQL, ns"];
        let mut section = Section::new("5c-predicates", "Evaluating one predicate", about, &columns);
        section.unit = "ns".to_owned();
        let db = &self.stage.db;
        let described: Vec<String> = COLUMNS.iter().map(|(name, kind, ..)| format!("{name} {kind}")).collect();
        let values: Vec<&str> = COLUMNS.iter().map(|(.., value)| *value).collect();
        db.run(&format!(
            "CREATE UNLOGGED TABLE evaluated ({}); INSERT INTO evaluated SELECT {} FROM generate_series(1, {rows})",
            described.join(", "),
            values.join(", ")
        ))
        .await;
        db.run("VACUUM ANALYZE evaluated").await;
        db.run("SET max_parallel_workers_per_gather = 0; SET jit = off; SET timezone = 'UTC'").await;
        let (relation, row) = (relation(), row());
        let mut of_all = (Vec::new(), String::new());
        for predicate in PREDICATES {
            let compiled = Predicate::parse(predicate).expect("parses").check(&relation).expect("fits");
            let holds = compiled.evaluate(Operation::Insert, &row).expect("decidable");
            let count = |text: &str| format!("SELECT count(*) FILTER (WHERE {text}) FROM evaluated");
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..runs {
                let began = Instant::now();
                for _ in 0..evaluations {
                    black_box(black_box(&compiled).evaluate(Operation::Insert, black_box(&row)).is_ok());
                }
                ours.push(began.elapsed().as_nanos() as f64 / f64::from(evaluations));
                let mut nanos = [0.0; 2];
                for (nanos, text) in nanos.iter_mut().zip(["true", predicate]) {
                    let began = Instant::now();
                    let selected = db.number(&count(text)).await;
                    *nanos = began.elapsed().as_nanos() as f64;
                    let expected = if holds || text == "true" { rows } else { 0 };
                    assert_eq!(selected, expected, "rows for which PostgreSQL finds {text}");
                }
                theirs.push((nanos[1] - nanos[0]) / rows as f64);
            }
            let (ours, theirs) = (Spread::of(ours), Spread::of(theirs));
            section.row(&[format!("`{predicate}`"), ours.show(0), theirs.show(0)]);
            section.bar(predicate, ours.median, false);
            if predicate != LONG {
                of_all.0.push(ours.median);
                if Spread::of(of_all.0.iter().copied()).max == ours.median {
                    of_all.1 = predicate.to_owned();
                }
            }
        }
        db.run("DROP TABLE evaluated; RESET ALL").await;
        let (slowest, predicate) = (Spread::of(of_all.0).max, of_all.1);
        let text = "Evaluation of the slowest of them but the last: at most 70 ns";
        section.goal(text, format!("{slowest:.0} ns, `{predicate}`"), slowest <= BUDGET);
        section
    }
}

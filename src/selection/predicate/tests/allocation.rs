//! What an evaluation must not cost. How long it takes is for `make bench BENCH=predicates` to say.

use std::hint::black_box;

use super::*;
use crate::model::Operation;

/// Borrowed values, so that the row costs as little as it can.
struct Flat<'a>(Vec<Value<'a>>);

impl RowAccess for Flat<'_> {
    fn before(&self, column: usize) -> Value<'_> {
        self.0.get(column).copied().unwrap_or(Value::Absent)
    }

    fn after(&self, column: usize) -> Value<'_> {
        self.0.get(column).copied().unwrap_or(Value::Absent)
    }
}

const PREDICATES: [&str; 21] = [
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
    "changed(n)",
    "before.i4 < after.i4",
    "n IS DISTINCT FROM 5 OR tstz IS NULL",
    "(i4 = 1 OR i4 = 2 OR i4 = 7) AND NOT (v = 'x') AND n BETWEEN 1 AND 2000000",
];

fn row(relation: &Relation) -> Flat<'static> {
    let mut values = vec![Value::Null; relation.columns.len()];
    values[0] = Value::Int(42);
    values[2] = Value::Int(7);
    values[5] = Value::Float(2.5);
    values[6] = Value::Text("1234567.8900");
    values[7] = Value::Text("the quick brown fox jumps over the lazy dog");
    values[8] = Value::Text("open");
    values[10] = Value::Bool(true);
    values[11] = Value::Text("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11");
    values[17] = Value::Text("2026-01-01 12:34:56.789012+00");
    values[18] = Value::Text("1 year 2 mons 3 days 04:05:06.789");
    Flat(values)
}

#[test]
fn evaluation_allocates_nothing() {
    let relation = every_type();
    let row = row(&relation);
    for predicate in PREDICATES {
        let compiled = compile(&relation, predicate);
        for operation in [Operation::Insert, Operation::Update, Operation::Delete] {
            let counted = allocation_counter::measure(|| {
                black_box(compiled.classify(operation, black_box(&row)).is_ok());
                if let Some(equality) = compiled.equality() {
                    black_box(equality.on.keys(operation, &row, |key| assert!(!key.is_empty())));
                }
            });
            assert_eq!(counted.count_total, 0, "{predicate} on {operation:?}");
        }
    }
}

mod allocation;
mod decisions;
mod language;
mod properties;
mod pushed;
mod typing;

use super::*;
use crate::model::{Column, RelationId, ReplicaIdentity, RowAccess, Value};

/// `(name, type, type OID)`; columns whose name begins with "id" are the replica identity.
pub(super) fn relation(columns: &[(&str, &str, u32)], replica_identity: ReplicaIdentity) -> Relation {
    Relation {
        id: RelationId(1),
        oid: 16384,
        schema: "public".into(),
        table: "Orders".into(),
        replica_identity,
        columns: columns
            .iter()
            .map(|(name, type_name, type_oid)| Column {
                name: (*name).into(),
                type_oid: *type_oid,
                type_name: (*type_name).into(),
                type_modifier: -1,
                in_identity: replica_identity == ReplicaIdentity::Full || name.starts_with("id"),
            })
            .collect(),
    }
}

pub(super) const EVERY_TYPE: [(&str, &str, u32); 21] = [
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
];

pub(super) fn every_type() -> Relation {
    relation(&EVERY_TYPE, ReplicaIdentity::Full)
}

/// Owned values by column.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub before: Vec<Cell>,
    pub after: Vec<Cell>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Null,
    Unchanged,
    Absent,
    Bool(bool),
    Int(i64),
    Float(f64),
    Bytes(Vec<u8>),
    Text(String),
    Raw(Vec<u8>),
}

impl Cell {
    fn value(&self) -> Value<'_> {
        match self {
            Cell::Null => Value::Null,
            Cell::Unchanged => Value::Unchanged,
            Cell::Absent => Value::Absent,
            Cell::Bool(bool) => Value::Bool(*bool),
            Cell::Int(int) => Value::Int(*int),
            Cell::Float(float) => Value::Float(*float),
            Cell::Bytes(bytes) => Value::Bytes(bytes),
            Cell::Text(text) => Value::Text(text),
            Cell::Raw(raw) => Value::RawText(raw),
        }
    }

    /// A value as the hub would get it for a column of this type.
    pub fn from_text(text: &str, type_oid: u32) -> Cell {
        match type_oid {
            16 => Cell::Bool(text == "t" || text == "true"),
            20 | 21 | 23 | 26 => Cell::Int(text.parse().unwrap()),
            700 => Cell::Float(text.parse::<f32>().unwrap().into()),
            701 => Cell::Float(text.parse().unwrap()),
            17 => {
                let digits = text.strip_prefix(r"\x").unwrap();
                let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
                Cell::Bytes((0..digits.len()).step_by(2).map(byte).collect())
            }
            _ => Cell::Text(text.into()),
        }
    }
}

impl RowAccess for Row {
    fn before(&self, column: usize) -> Value<'_> {
        self.before.get(column).map_or(Value::Absent, Cell::value)
    }

    fn after(&self, column: usize) -> Value<'_> {
        self.after.get(column).map_or(Value::Absent, Cell::value)
    }
}

pub(super) fn text(text: &str) -> Cell {
    Cell::Text(text.into())
}

pub(super) fn compile(relation: &Relation, predicate: &str) -> Compiled {
    let parsed = Predicate::parse(predicate).unwrap_or_else(|error| panic!("{predicate}: {error}"));
    parsed.check(relation).unwrap_or_else(|error| panic!("{predicate}: {error}"))
}

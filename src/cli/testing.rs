//! Events by hand, for the tests of what prints them.

use crate::wire::pb::{self, event::Kind, value};

pub fn column(name: &str, in_identity: bool) -> pb::Column {
    pb::Column { name: name.into(), type_oid: 25, type_name: "text".into(), type_modifier: -1, in_identity }
}

pub fn relation(id: u32, columns: &[(&str, bool)]) -> pb::Relation {
    pb::Relation {
        relation_id: id,
        oid: 16384,
        schema: "public".into(),
        table: "t".into(),
        replica_identity: pb::ReplicaIdentity::Default as i32,
        columns: columns.iter().map(|(name, in_identity)| column(name, *in_identity)).collect(),
    }
}

pub fn row(values: &[value::Kind]) -> pb::Row {
    pb::Row { values: values.iter().map(|kind| pb::Value { kind: Some(kind.clone()) }).collect() }
}

pub fn text(text: &str) -> value::Kind {
    value::Kind::Text(text.into())
}

pub fn missing(missing: pb::Missing) -> value::Kind {
    value::Kind::Missing(missing as i32)
}

pub fn position(lsn: &str) -> pb::Position {
    pb::Position { lsn: lsn.into(), lineage: "00000000000000aa".into(), ..Default::default() }
}

pub fn begin(commit_lsn: &str, xid: u64) -> pb::Event {
    event(Kind::Begin(pb::Begin {
        commit_lsn: commit_lsn.into(),
        lineage: "00000000000000aa".into(),
        xid,
        commit_time: Some(prost_types::Timestamp { seconds: 1_769_860_800, nanos: 500_000_000 }),
        ..Default::default()
    }))
}

pub fn commit(lsn: &str) -> pb::Event {
    event(Kind::Commit(pb::Commit { position: Some(position(lsn)), changes: 1, total_changes: 1 }))
}

pub fn change(
    operation: pb::Operation,
    ordinal: u64,
    before_row: Option<pb::Row>,
    after_row: Option<pb::Row>,
) -> pb::Event {
    event(Kind::Change(pb::Change {
        operation: operation as i32,
        relation_id: 1,
        ordinal,
        before_row,
        after_row,
        ..Default::default()
    }))
}

pub fn event(kind: Kind) -> pb::Event {
    pb::Event { kind: Some(kind) }
}

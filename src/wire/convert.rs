//! Between the domain's words and the generated messages.

use prost_types::Timestamp;

use super::pb;
use crate::{
    lsn::{Lsn, ParseLsnError},
    model::{Column, ParseLineageError, Position, Relation, RelationId, ReplicaIdentity, Value},
};

/// Microseconds between 1970-01-01 and 2000-01-01, PostgreSQL's epoch.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// Microseconds since 2000-01-01 UTC as a protobuf timestamp.
pub fn timestamp(micros: i64) -> Timestamp {
    let unix = micros.saturating_add(POSTGRES_EPOCH);
    Timestamp { seconds: unix.div_euclid(1_000_000), nanos: (unix.rem_euclid(1_000_000) * 1000) as i32 }
}

/// A position that no hub has handed out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPosition {
    /// `lsn` does not parse.
    #[error(transparent)]
    Lsn(#[from] ParseLsnError),
    /// `lineage` does not parse.
    #[error(transparent)]
    Lineage(#[from] ParseLineageError),
}

/// For sending.
pub fn position_to_pb(position: Position) -> pb::Position {
    pb::Position {
        lsn: position.lsn.to_string(),
        lineage: position.lineage.to_string(),
        sequence: position.sequence,
        snapshot: Default::default(),
    }
}

/// As a client sent it back.
pub fn position_from_pb(position: &pb::Position) -> Result<Position, InvalidPosition> {
    Ok(Position { lineage: position.lineage.parse()?, lsn: position.lsn.parse::<Lsn>()?, sequence: position.sequence })
}

/// The relation event, all columns.
pub fn relation_to_pb(relation: &Relation) -> pb::Relation {
    pb::Relation {
        relation_id: relation.id.0,
        oid: relation.oid,
        schema: relation.schema.clone(),
        table: relation.table.clone(),
        replica_identity: match relation.replica_identity {
            ReplicaIdentity::Default => pb::ReplicaIdentity::Default,
            ReplicaIdentity::Full => pb::ReplicaIdentity::Full,
            ReplicaIdentity::Index => pb::ReplicaIdentity::Index,
            ReplicaIdentity::Nothing => pb::ReplicaIdentity::Nothing,
        } as i32,
        columns: relation
            .columns
            .iter()
            .map(|column| pb::Column {
                name: column.name.clone(),
                type_oid: column.type_oid,
                type_name: column.type_name.clone(),
                type_modifier: column.type_modifier,
                in_identity: column.in_identity,
            })
            .collect(),
    }
}

/// The inverse of [`relation_to_pb`]; an unknown replica identity reads as `Nothing`.
pub fn relation_from_pb(relation: &pb::Relation) -> Relation {
    Relation {
        id: RelationId(relation.relation_id),
        oid: relation.oid,
        schema: relation.schema.clone(),
        table: relation.table.clone(),
        replica_identity: match relation.replica_identity() {
            pb::ReplicaIdentity::Default => ReplicaIdentity::Default,
            pb::ReplicaIdentity::Full => ReplicaIdentity::Full,
            pb::ReplicaIdentity::Index => ReplicaIdentity::Index,
            pb::ReplicaIdentity::Nothing | pb::ReplicaIdentity::Unspecified => ReplicaIdentity::Nothing,
        },
        columns: relation
            .columns
            .iter()
            .map(|column| Column {
                name: column.name.clone(),
                type_oid: column.type_oid,
                type_name: column.type_name.clone(),
                type_modifier: column.type_modifier,
                in_identity: column.in_identity,
            })
            .collect(),
    }
}

/// A received value; `None` for a kind that this program does not know.
pub fn value_from_pb(value: &pb::Value) -> Option<Value<'_>> {
    use pb::value::Kind;
    Some(match value.kind.as_ref()? {
        Kind::Missing(missing) => match pb::Missing::try_from(*missing).ok()? {
            pb::Missing::Null => Value::Null,
            pb::Missing::Unchanged => Value::Unchanged,
            pb::Missing::Absent => Value::Absent,
            pb::Missing::Unspecified => return None,
        },
        Kind::BoolValue(value) => Value::Bool(*value),
        Kind::IntValue(value) => Value::Int(*value),
        Kind::FloatValue(value) => Value::Float(*value),
        Kind::BytesValue(value) => Value::Bytes(value),
        Kind::Text(value) => Value::Text(value),
        Kind::RawText(value) => Value::RawText(value),
    })
}

//! Events that cannot be passed on as they are: fewer columns, the struct format, a transition, fewer truncated tables.
//! The one place where the hub looks into values.

use bytes::BytesMut;
use prost::Message;
use prost_types::{Struct, value::Kind as StructKind};

use super::RowFormat;
use crate::{
    lsn::Lsn,
    model::{Operation, Relation, RelationId, RowAccess, Value},
    selection::{RelationPlan, Transition},
    wire::{encode, pb},
};

/// The bytes of an event do not decode.
#[derive(Debug)]
pub(super) struct Malformed;

fn decode(framed: &[u8]) -> Result<pb::event::Kind, Malformed> {
    let mut response = pb::SubscribeResponse::decode(framed).map_err(|_| Malformed)?;
    response.events.pop().and_then(|event| event.kind).ok_or(Malformed)
}

/// Appends a change as the plan and the format want it; whether its row was selected.
pub(super) fn change(
    out: &mut BytesMut,
    framed: &[u8],
    relation: &Relation,
    plan: &RelationPlan,
    format: RowFormat,
    operation: Operation,
    lsn: Lsn,
) -> Result<bool, Malformed> {
    let pb::event::Kind::Change(mut change) = decode(framed)? else { return Err(Malformed) };
    if let Some(predicate) = &plan.predicate {
        let Some(transition) = predicate.transition(operation, &Images(&change)) else { return Ok(false) };
        change.transition = match transition {
            Transition::Enter => pb::Transition::Enter,
            Transition::Stay => pb::Transition::Stay,
            Transition::Leave => pb::Transition::Leave,
        } as i32;
    }
    match format {
        RowFormat::Compact => {
            for row in [&mut change.before_row, &mut change.after_row].into_iter().flatten() {
                if let Some(columns) = &plan.columns {
                    let mut keep = columns.iter().copied();
                    row.values.retain(|_| keep.next().unwrap_or(true));
                }
            }
        }
        RowFormat::Struct => {
            let (before, after) = (change.before_row.take(), change.after_row.take());
            let columns = plan.columns.as_deref();
            change.before = before.map(|row| row_struct(&row, relation, columns, &mut Vec::new()));
            change.after = after.map(|row| row_struct(&row, relation, columns, &mut change.unchanged));
            change.table = relation.qualified_name();
            change.lsn = lsn.to_string();
        }
    }
    encode::event(out, pb::event::Kind::Change(change));
    Ok(true)
}

/// The relation versions that a truncate names.
pub(super) fn truncated(framed: &[u8]) -> Result<Vec<RelationId>, Malformed> {
    let pb::event::Kind::Truncate(truncate) = decode(framed)? else { return Err(Malformed) };
    Ok(truncate.relation_ids.into_iter().map(RelationId).collect())
}

/// Appends a truncate of these relations only.
pub(super) fn truncate(
    out: &mut BytesMut,
    framed: &[u8],
    relations: &[&Relation],
    format: RowFormat,
) -> Result<(), Malformed> {
    let pb::event::Kind::Truncate(mut truncate) = decode(framed)? else { return Err(Malformed) };
    truncate.relation_ids = relations.iter().map(|relation| relation.id.0).collect();
    if format == RowFormat::Struct {
        truncate.tables = relations.iter().map(|relation| relation.qualified_name()).collect();
    }
    encode::event(out, pb::event::Kind::Truncate(truncate));
    Ok(())
}

struct Images<'a>(&'a pb::Change);

impl RowAccess for Images<'_> {
    fn before(&self, column: usize) -> Value<'_> {
        value(self.0.before_row.as_ref(), column)
    }

    fn after(&self, column: usize) -> Value<'_> {
        value(self.0.after_row.as_ref(), column)
    }
}

fn value(row: Option<&pb::Row>, column: usize) -> Value<'_> {
    match row.and_then(|row| row.values.get(column)).and_then(|value| value.kind.as_ref()) {
        None => Value::Absent,
        Some(pb::value::Kind::Missing(missing)) => match pb::Missing::try_from(*missing) {
            Ok(pb::Missing::Null) => Value::Null,
            Ok(pb::Missing::Unchanged) => Value::Unchanged,
            _ => Value::Absent,
        },
        Some(pb::value::Kind::BoolValue(value)) => Value::Bool(*value),
        Some(pb::value::Kind::IntValue(value)) => Value::Int(*value),
        Some(pb::value::Kind::FloatValue(value)) => Value::Float(*value),
        Some(pb::value::Kind::BytesValue(value)) => Value::Bytes(value),
        Some(pb::value::Kind::Text(value)) => Value::Text(value),
        Some(pb::value::Kind::RawText(value)) => Value::RawText(value),
    }
}

const INT8: u32 = 20;

fn row_struct(row: &pb::Row, relation: &Relation, columns: Option<&[bool]>, unchanged: &mut Vec<String>) -> Struct {
    let mut fields = Struct::default();
    for (index, column) in relation.columns.iter().enumerate() {
        if columns.is_some_and(|columns| !columns.get(index).copied().unwrap_or(true)) {
            continue;
        }
        let kind = match value(Some(row), index) {
            Value::Absent => continue,
            Value::Unchanged => {
                unchanged.push(column.name.clone());
                continue;
            }
            Value::Null => StructKind::NullValue(0),
            Value::Bool(value) => StructKind::BoolValue(value),
            Value::Int(value) if column.type_oid == INT8 => StructKind::StringValue(value.to_string()),
            Value::Int(value) => StructKind::NumberValue(value as f64),
            Value::Float(value) if value.is_finite() => StructKind::NumberValue(value),
            Value::Float(value) if value.is_nan() => StructKind::StringValue("NaN".to_owned()),
            Value::Float(value) if value > 0.0 => StructKind::StringValue("Infinity".to_owned()),
            Value::Float(_) => StructKind::StringValue("-Infinity".to_owned()),
            Value::Text(value) => StructKind::StringValue(value.to_owned()),
            Value::Bytes(value) | Value::RawText(value) => {
                let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
                StructKind::StringValue(format!("\\x{hex}"))
            }
        };
        fields.fields.insert(column.name.clone(), prost_types::Value { kind: Some(kind) });
    }
    fields
}

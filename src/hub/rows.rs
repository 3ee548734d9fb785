//! Events that cannot be passed on as they are: fewer columns, the struct format, a transition, fewer truncated tables.

use bytes::BytesMut;

use super::{RowFormat, group::Plan};
use crate::{
    lsn::Lsn,
    model::RelationId,
    selection,
    wire::{
        pb,
        rows::{self, ChangeView, InvalidEvent},
    },
};

/// Appends a change as the plan and the format want it; whether its row was selected.
pub(super) fn change(
    out: &mut BytesMut,
    framed: &[u8],
    plan: &Plan,
    format: RowFormat,
    lsn: Lsn,
) -> Result<bool, InvalidEvent> {
    let view = ChangeView::parse(framed)?;
    let mut transition = None;
    if let Some(predicate) = &plan.rules.predicate {
        transition = predicate.transition(view.operation, &view).map(transition_to_pb);
        if transition.is_none() {
            return Ok(false);
        }
    }
    let columns = plan.rules.columns.as_deref();
    match (format, columns) {
        (RowFormat::Struct, _) => rows::struct_change(out, &view, &plan.relation, columns, lsn, transition)?,
        (RowFormat::Compact, Some(columns)) => {
            rows::project_change(out, &view, &plan.relation, columns, transition)?;
        }
        (RowFormat::Compact, None) => {
            let columns = vec![true; plan.relation.columns.len()];
            rows::project_change(out, &view, &plan.relation, &columns, transition)?;
        }
    }
    Ok(true)
}

/// Appends a truncate of the versions to which `table` gives their `schema.table`; whether there was one.
pub(super) fn truncate(
    out: &mut BytesMut,
    framed: &[u8],
    format: RowFormat,
    mut table: impl FnMut(RelationId) -> Option<String>,
) -> Result<bool, InvalidEvent> {
    match format {
        RowFormat::Compact => rows::project_truncate(out, framed, |id| table(id).is_some()),
        RowFormat::Struct => rows::struct_truncate(out, framed, table),
    }
}

fn transition_to_pb(transition: selection::Transition) -> pb::Transition {
    match transition {
        selection::Transition::Enter => pb::Transition::Enter,
        selection::Transition::Stay => pb::Transition::Stay,
        selection::Transition::Leave => pb::Transition::Leave,
    }
}

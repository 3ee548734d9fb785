//! Events that cannot be passed on as they are: fewer columns, the struct format, a transition, fewer truncated tables.

use bytes::BytesMut;

use super::{RowFormat, group::Plan};
use crate::{
    lsn::Lsn,
    model::RelationId,
    selection::{
        self,
        predicate::{Decision, Transition},
    },
    wire::{
        pb,
        rows::{self, ChangeView, InvalidEvent},
    },
};

/// Why a change cannot be written.
pub(super) enum Unwritable {
    Malformed,
    /// The predicate cannot tell.
    Undecided(selection::Error),
}

impl From<InvalidEvent> for Unwritable {
    fn from(_: InvalidEvent) -> Self {
        Unwritable::Malformed
    }
}

/// Appends a change as the plan and the format want it; whether its row was selected.
pub(super) fn change(
    out: &mut BytesMut,
    framed: &[u8],
    plan: &Plan,
    format: RowFormat,
    lsn: Lsn,
) -> Result<bool, Unwritable> {
    let mut transition = None;
    if let Some(predicate) = &plan.rules.predicate {
        let row = plan.pick.read(framed)?;
        match predicate.decide(row.operation, &row).map_err(Unwritable::Undecided)? {
            Decision::Skip => return Ok(false),
            Decision::Send(told) => transition = told.map(transition_to_pb),
        }
    }
    let view = ChangeView::parse(framed)?;
    match format {
        RowFormat::Struct => {
            rows::struct_change(out, &view, &plan.relation, plan.rules.columns.as_deref(), lsn, transition)?;
        }
        RowFormat::Compact => rows::project_change(out, &view, &plan.relation, &plan.columns, transition)?,
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

fn transition_to_pb(transition: Transition) -> pb::Transition {
    match transition {
        Transition::Enter => pb::Transition::Enter,
        Transition::Stay => pb::Transition::Stay,
        Transition::Leave => pb::Transition::Leave,
    }
}

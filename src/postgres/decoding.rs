//! Whether a slot can be decoded from where it stands.
//!
//! Decoding begins at the slot's restart_lsn, which is where a record of running transactions lies. There it is consistent
//! at once if no transaction was running, or if the snapshot that was serialized for exactly this LSN can be restored
//! (`pg_logical/snapshots/%X-%X.snap`, written by whoever decoded past it first). With neither, PostgreSQL looks for a
//! consistent point further on. What commits before that point is **silently left out**, and START_REPLICATION succeeds
//! ([snapbuild.c](https://doxygen.postgresql.org/snapbuild_8c_source.html)). A snapshot that is restored further on is no
//! substitute either: of the transactions that were open there only the rest is decoded.
//!
//! A slot's own server has the snapshot as long as it has the slot. What brings a slot to another server often carries its
//! state file alone. So every stream is asked where it became consistent before anything is taken from it, and PostgreSQL 17
//! judges a slot that it synchronizes in the same way (`LogicalSlotAdvanceAndCheckSnapState`).
//!
//! The catalogue rows that old positions are read with are there: vacuum's records up to the switch were written while the
//! old primary's slot protected everything that its consumer lacked, and behind it the slot that came along does.

use super::{
    error::Result,
    replication::Consistency,
    slot::SlotState,
    sql::{Sql, get, text},
};
use crate::lsn::Lsn;

/// Whether the slot was there before the server's present timeline and the server did not keep it in step itself.
pub fn came_along(slot: &SlotState, timeline_begins: Lsn) -> bool {
    slot.synced != Some(true) && slot.restart_lsn.is_some_and(|restart| restart < timeline_begins)
}

/// Whether everything that commits at or after `start` is decoded, given the slot's state before its stream began, if it came
/// along; the error says what is not.
pub fn judge(found: Consistency, start: Lsn, came_along: Option<&SlotState>) -> std::result::Result<(), String> {
    let file = |slot: &SlotState| {
        let restart = slot.restart_lsn.unwrap_or_default();
        format!("pg_logical/snapshots/{} did not come along with it from another server", snapshot_file(restart))
    };
    let missing = || came_along.map_or("the snapshot that its decoding begins with is lost".to_owned(), file);
    match (found, came_along) {
        (Consistency::At { lsn, .. }, _) if lsn > start => Err(format!(
            "can be decoded only from {lsn} on, and would leave out what committed since {start}: {}",
            missing()
        )),
        (Consistency::At { lsn, restored: true }, Some(slot)) if slot.restart_lsn != Some(lsn) => {
            Err(format!("would leave out parts of what was open at {lsn}: {}", missing()))
        }
        (Consistency::At { .. }, _) | (Consistency::Unsaid, None) => Ok(()),
        (Consistency::Searching, _) => Err(format!(
            "waits for a transaction of the past, and would leave out what committed since {start}: {}",
            missing()
        )),
        (Consistency::Unsaid, Some(_)) => {
            Err("came along from another server, and this server does not say where its decoding is consistent"
                .to_owned())
        }
    }
}

fn snapshot_file(at: Lsn) -> String {
    format!("{:X}-{:X}.snap", at.0 >> 32, at.0 as u32)
}

/// Whether a slot on a standby, which cannot be streamed from yet, came with the snapshot that its decoding begins with; the
/// error says what will be found out at a promotion only.
pub async fn came_whole(sql: &Sql, slot: &SlotState) -> Result<std::result::Result<(), String>> {
    let file = snapshot_file(slot.restart_lsn.unwrap_or_default());
    let statement = match sql.version() {
        150_000.. => "SELECT EXISTS (SELECT FROM pg_catalog.pg_ls_logicalsnapdir() f WHERE f.name = $1 AND f.size > 0)",
        _ => "SELECT coalesce((pg_catalog.pg_stat_file('pg_logical/snapshots/' || $1, true)).size > 0, false)",
    };
    let there = match sql.one(statement, &[text(&file.as_str())]).await {
        Ok(row) => get(&row, 0)?,
        Err(error) if error.is("42501") => {
            let grant = match sql.version() {
                150_000.. => "GRANT pg_monitor",
                _ => "GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_file(text, boolean)",
            };
            let why = format!("it cannot be seen whether pg_logical/snapshots/{file} came with the slot");
            return Ok(Err(format!("{why} ({grant} TO the hub's role)")));
        }
        Err(error) => return Err(error),
    };
    Ok(match there {
        true => Ok(()),
        false => Err(format!(
            "the slot came without pg_logical/snapshots/{file}: unless nothing was running there, it is of no use"
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(restart: u64, synced: Option<bool>) -> SlotState {
        let (restart_lsn, confirmed_flush) = (Some(Lsn(restart)), Some(Lsn(restart + 8)));
        SlotState { restart_lsn, confirmed_flush, synced, ..SlotState::example() }
    }

    #[test]
    fn files_are_named_by_both_halves() {
        assert_eq!(snapshot_file(Lsn(0x1_0000_2A0F)), "1-2A0F.snap");
        assert_eq!(snapshot_file(Lsn(0x0150_4B28)), "0-1504B28.snap");
    }

    #[test]
    fn a_slot_of_another_time_is_one_that_came_along() {
        assert!(came_along(&slot(80, None), Lsn(100)) && came_along(&slot(80, Some(false)), Lsn(100)));
        assert!(!came_along(&slot(100, None), Lsn(100)), "it begins on this timeline");
        assert!(!came_along(&slot(80, Some(true)), Lsn(100)), "the server kept it in step");
        assert!(!came_along(&slot(80, None), Lsn::ZERO), "there was no switch");
    }

    #[test]
    fn nothing_may_be_left_out() {
        let at = |lsn, restored| Consistency::At { lsn: Lsn(lsn), restored };
        let (own, other) = (None, Some(slot(80, None)));
        let other = other.as_ref();
        for (found, came, good) in [
            (at(80, true), other, true),
            (at(80, false), other, true),
            (at(96, false), other, true),
            (at(104, false), other, false),
            (at(104, true), other, false),
            (at(96, true), other, false),
            (Consistency::Unsaid, other, false),
            (Consistency::Searching, other, false),
            (at(96, true), own, true),
            (at(104, true), own, false),
            (Consistency::Unsaid, own, true),
            (Consistency::Searching, own, false),
        ] {
            assert_eq!(judge(found, Lsn(100), came).is_ok(), good, "{found:?}");
        }
    }
}

//! Whose history is it? Decided on every connect, before anything else is asked: PostgreSQL would stream from any server
//! whose slot has the right name.

use std::path::Path;

use super::{Error, refused};
use crate::{
    lsn::Lsn,
    model::Lineage,
    postgres::lineage::{self, Course},
    reason::Reason,
};

/// What the journal does about a server's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The journal is new.
    Begin(Lineage),
    /// It is on this history.
    Stay,
    /// It follows: what it holds behind `switch_lsn` never happened there.
    Follow(Lineage),
    /// It goes on at another system, on an operator's word.
    Rebase(Lineage),
}

/// The name of the file in the data directory in which an operator names the system to go on with.
pub const REBASE: &str = "rebase";

/// Decides. `rebase`: the system that an operator named; `seen`: whether the journal has ever been on a lineage.
pub(super) fn decide(
    known: Option<&Lineage>,
    server: Lineage,
    rebase: Option<u64>,
    seen: impl Fn(&Lineage) -> bool,
) -> Result<Step, Error> {
    let Some(known) = known else { return Ok(Step::Begin(server)) };
    let follow = |switch: Lsn| {
        let mut next = Lineage { epoch: known.epoch, switch_lsn: switch, ..server.clone() };
        while seen(&next) {
            next.epoch += 1;
        }
        next
    };
    let course = lineage::compare(known, &server)?;
    if rebase == Some(server.system_identifier) && !matches!(course, Course::Same | Course::Descends { .. }) {
        return Ok(match course {
            Course::Forked { switch } => Step::Follow(follow(switch)),
            _ => Step::Rebase(Lineage { epoch: known.epoch + 1, ..follow(Lsn::ZERO) }),
        });
    }
    match course {
        Course::Same => Ok(Step::Stay),
        Course::Descends { switch } => Ok(Step::Follow(follow(switch))),
        Course::Forked { switch } if server.timeline >= known.timeline => Ok(Step::Follow(follow(switch))),
        Course::Forked { .. } | Course::Behind => Err(refused(
            Reason::SourceStalePrimary,
            format!("the journal has followed timeline {}, the server is still on {}", known.timeline, server.timeline),
        )),
        Course::OtherSystem => Err(refused(
            Reason::SourceChanged,
            format!(
                "the journal belongs to system {}, the server is {}. If the database moved there (pg_upgrade, a restored \
                 dump), say so with walcast rebase --system-identifier {}",
                known.system_identifier, server.system_identifier, server.system_identifier
            ),
        )),
        Course::Unrelated => Err(refused(
            Reason::SourceChanged,
            format!(
                "the server's history ({} switches) has nothing in common with the journal's. If it is to be followed all \
                 the same: walcast rebase --system-identifier {}",
                server.history.lines().count(),
                server.system_identifier
            ),
        )),
    }
}

/// The system that an operator named, if any.
pub(super) fn rebase_asked(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(timeline: u32, history: &str) -> Lineage {
        Lineage { system_identifier: 7, timeline, history: history.into(), epoch: 0, switch_lsn: Lsn::ZERO }
    }

    fn reason(known: &Lineage, server: Lineage) -> Option<Reason> {
        match decide(Some(known), server, None, |_| false) {
            Err(Error::Refused { reason, .. }) => Some(reason),
            _ => None,
        }
    }

    #[test]
    fn a_promotion_is_followed_and_what_it_left_is_refused() {
        let (one, two) = (on(1, ""), on(2, "1\t0/100\tr"));
        assert_eq!(decide(None, one.clone(), None, |_| false).unwrap(), Step::Begin(one.clone()));
        assert_eq!(decide(Some(&one), one.clone(), None, |_| true).unwrap(), Step::Stay);
        let Step::Follow(next) = decide(Some(&one), two.clone(), None, |_| false).unwrap() else { panic!() };
        assert_eq!((next.switch_lsn, next.epoch), (Lsn(0x100), 0));
        assert_eq!(reason(&two, one.clone()), Some(Reason::SourceStalePrimary));
        assert_eq!(reason(&on(3, "1\t0/100\tr\n2\t0/200\tr"), on(2, "1\t0/80\tr")), Some(Reason::SourceStalePrimary));
    }

    #[test]
    fn a_history_that_was_left_before_is_followed_under_another_name() {
        let (known, server) = (on(2, "1\t0/100\tr"), on(2, "1\t0/80\tr"));
        let Step::Follow(next) = decide(Some(&known), server, None, |lineage| lineage.epoch < 2).unwrap() else {
            panic!()
        };
        assert_eq!((next.switch_lsn, next.epoch), (Lsn(0x80), 2));
    }

    #[test]
    fn another_system_needs_an_operators_word() {
        let (known, server) = (on(1, ""), Lineage { system_identifier: 8, ..on(1, "") });
        assert_eq!(reason(&known, server.clone()), Some(Reason::SourceChanged));
        assert!(decide(Some(&known), server.clone(), Some(9), |_| false).is_err(), "another one was named");
        let Step::Rebase(next) = decide(Some(&known), server, Some(8), |_| false).unwrap() else { panic!() };
        assert_eq!((next.system_identifier, next.epoch), (8, 1));
    }
}

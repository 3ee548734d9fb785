//! Which course of history a server is on, and how two courses are related. Timeline numbers say little: two standbys that
//! were promoted apart are both on timeline 2. So the [history
//! files](https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES) are compared line by line.
//!
//! `pg_control_checkpoint()` lags behind a promotion until the next checkpoint; IDENTIFY_SYSTEM does not. Timeline 1 has no
//! history file (58P01).

use super::{
    error::Result,
    replication::Replication,
    server::{Identity, Switch, parse_history},
};
use crate::{lsn::Lsn, model::Lineage};

/// What a server says of itself: `epoch` 0 and `switch_lsn` zero, which are the journal's to choose.
pub async fn read(replication: &mut Replication) -> Result<(Identity, Lineage)> {
    let identity = replication.identify_system().await?;
    let history = replication.timeline_history(identity.timeline).await?;
    let lineage = Lineage {
        system_identifier: identity.system_identifier,
        timeline: identity.timeline,
        history,
        epoch: 0,
        switch_lsn: Lsn::ZERO,
    };
    Ok((identity, lineage))
}

/// Where the newest timeline of a course begins; zero for one that was never left.
pub fn timeline_begins(lineage: &Lineage) -> Result<Lsn> {
    Ok(parse_history(&lineage.history)?.last().map_or(Lsn::ZERO, |switch| switch.at))
}

/// How a server's course is related to the one that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// It is the same.
    Same,
    /// The server went on where the known one ended: a promotion, or several.
    Descends {
        /// Where the known timeline was left.
        switch: Lsn,
    },
    /// Both left a common course, on different ways.
    Forked {
        /// Where they part.
        switch: Lsn,
    },
    /// The server is still on a timeline that the known course has left.
    Behind,
    /// Another cluster.
    OtherSystem,
    /// Nothing in common although the system identifier is the same.
    Unrelated,
}

/// Compares two courses. Fails when a history cannot be read.
pub fn compare(known: &Lineage, server: &Lineage) -> Result<Course> {
    if known.system_identifier != server.system_identifier {
        return Ok(Course::OtherSystem);
    }
    let (ours, theirs) = (parse_history(&known.history)?, parse_history(&server.history)?);
    let mut parted = None;
    for at in 0.. {
        let (our, their) = (timeline(known, &ours, at), timeline(server, &theirs, at));
        if our != their {
            return Ok(parted.map_or(Course::Unrelated, |switch| Course::Forked { switch }));
        }
        match (ours.get(at), theirs.get(at)) {
            (None, None) => break,
            (None, Some(left)) => return Ok(Course::Descends { switch: left.at }),
            (Some(_), None) => return Ok(Course::Behind),
            (Some(our), Some(their)) if our == their => parted = Some(our.at),
            (Some(our), Some(their)) => return Ok(Course::Forked { switch: our.at.min(their.at) }),
        }
    }
    Ok(Course::Same)
}

/// The timeline of the `at`-th part of a course.
fn timeline(lineage: &Lineage, switches: &[Switch], at: usize) -> u32 {
    switches.get(at).map_or(lineage.timeline, |switch| switch.timeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(timeline: u32, history: &str) -> Lineage {
        Lineage { system_identifier: 7, timeline, history: history.into(), epoch: 3, switch_lsn: Lsn(9) }
    }

    fn course(known: (u32, &str), server: (u32, &str)) -> Course {
        compare(&on(known.0, known.1), &on(server.0, server.1)).unwrap()
    }

    #[test]
    fn courses() {
        let one = (1, "");
        let two = (2, "1\t0/100\tno recovery target specified\n");
        let three = (3, "1\t0/100\tno recovery target specified\n\n2\t0/200\tno recovery target specified\n");
        assert_eq!(course(one, one), Course::Same);
        assert_eq!(course(three, three), Course::Same);
        assert_eq!(course(one, two), Course::Descends { switch: Lsn(0x100) });
        assert_eq!(course(one, three), Course::Descends { switch: Lsn(0x100) });
        assert_eq!(course(two, three), Course::Descends { switch: Lsn(0x200) });
        assert_eq!(course(two, one), Course::Behind);
        assert_eq!(course(three, two), Course::Behind);
        assert_eq!(compare(&on(1, ""), &Lineage { system_identifier: 8, ..on(1, "") }).unwrap(), Course::OtherSystem);
        assert_eq!(course((2, ""), one), Course::Unrelated);
        assert!(compare(&on(2, "x"), &on(2, "")).is_err());
    }

    #[test]
    fn forks_are_told_by_text_even_where_numbers_repeat() {
        let left_at = |lsn: &str| format!("1\t{lsn}\tno recovery target specified\n");
        assert_eq!(course((2, &left_at("0/100")), (2, &left_at("0/80"))), Course::Forked { switch: Lsn(0x80) });
        assert_eq!(course((2, &left_at("0/100")), (2, &left_at("0/180"))), Course::Forked { switch: Lsn(0x100) });
        assert_eq!(
            course((2, &left_at("0/100")), (2, "1\t0/100\tbefore 2026-11-21\n")),
            Course::Forked { switch: Lsn(0x100) },
            "left at the same place for another reason"
        );
        assert_eq!(course((2, &left_at("0/100")), (3, &left_at("0/100"))), Course::Forked { switch: Lsn(0x100) });
    }
}

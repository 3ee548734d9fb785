//! A slot that the server cannot decode. The walsender ends each stream with an internal error (class XX) at the same place,
//! and asking again does not help.
//!
//! It happens to slots that are healthy by every other sign. While a slot is made, PostgreSQL does not take notice of what
//! commits between the first record of running transactions and the moment when all of those have ended
//! (`SNAPBUILD_BUILDING_SNAPSHOT`: `xact_decode` returns early), and later takes these transactions for unfinished. If one of
//! them created, rewrote or truncated a table, a later row of that table has a file that no relation is known for: `could not
//! map filenumber "…" to relation OID`, `pg_attribute catalog is missing … attribute(s)`. All versions up to 18 do so
//! (pgsql-hackers, "Historic snapshot doesn't track txns committed in BUILDING_SNAPSHOT state"). The slot's restart_lsn does
//! not move, so each attempt fails where the first one did. A damaged file under `pg_logical` or `pg_wal` looks the same.
//!
//! One such error may be an accident. So attempts are counted, and progress of the journal begins the count anew.
//!
//! Where the publication was dropped and created again, the slot fails in the same way: changes are decoded with the catalogue
//! of their time, in which [there is no such publication](https://www.postgresql.org/docs/current/logicaldecoding-output-plugin.html)
//! (42704; PostgreSQL 18 leaves the changes out and says so in a notice). That WAL stays as it is, so nothing can repair it.

use super::{Error, slots::Broken};
use crate::{
    ingest,
    lsn::Lsn,
    metrics,
    model::Position,
    reason::{Classified, Reason},
};

/// Failures at one place after which the slot counts as lost. With the pauses between them they take some seconds.
const ATTEMPTS: u32 = 6;

/// What is known of failures to decode.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// Where the journal ended.
    at: Position,
    /// Failures there.
    attempts: u32,
    /// The last one, not counted yet.
    new: Option<Failure>,
    /// The last one, counted and not acted upon yet.
    open: Option<Failure>,
}

#[derive(Clone, Debug)]
enum Failure {
    /// The server's words.
    Undecodable(String),
    /// The publication does not exist there.
    Unpublished,
}

impl Failures {
    /// A stream has ended, or could not be begun.
    pub fn note(&mut self, error: &Error) {
        let server = match error {
            Error::Ingest(_) if error.reason() == Reason::PublicationMissing => {
                self.new = Some(Failure::Unpublished);
                return;
            }
            Error::Postgres(error) | Error::Ingest(ingest::Error::Replication(error)) => error,
            _ => return,
        };
        if server.cannot_decode() {
            metrics::add(metrics::SLOT_DECODE_FAILURES, 1);
            self.new = Some(Failure::Undecodable(server.to_string()));
        }
    }

    /// Counts, when it is known how far the journal came.
    pub fn count(&mut self, at: Position) {
        if at != self.at {
            *self = Failures { at, new: self.new.take(), ..Failures::default() };
        }
        if let Some(error) = self.new.take() {
            self.attempts += 1;
            self.open = Some(error);
        }
    }

    /// The slot counts as lost for as long as the journal ends here.
    pub fn given_up(&self) -> Option<Position> {
        (self.attempts >= ATTEMPTS).then_some(self.at)
    }

    /// The slot is about to be tried again, or was made anew.
    pub fn prepared(&mut self) {
        self.open = self.open.take().filter(|open| !matches!(open, Failure::Unpublished));
    }

    /// What is wrong with the slot whose stream is to begin at `start`. What may be repaired is said once for each failure, so
    /// that every other attempt tries the slot again. What log tables can make good is said from the first failure on.
    pub fn verdict(&mut self, start: Lsn) -> Option<Broken> {
        let given_up = self.given_up().is_some();
        match self.open.as_ref()? {
            Failure::Unpublished => Some(Broken::Skips { start, given_up }),
            Failure::Undecodable(_) if !given_up => None,
            Failure::Undecodable(error) => {
                let error = format!("{error}, {} times", self.attempts);
                self.open = None;
                Some(Broken::Undecodable { from: self.at.lsn, error })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::LineageId,
        postgres::{Error as Server, Notice, Phase},
    };

    fn fails(phase: Phase, code: &str) -> Error {
        Error::Postgres(Server::Server { phase, notice: Notice { code: code.into(), ..Notice::default() } })
    }

    #[test]
    fn only_failures_at_one_place_condemn_a_slot() {
        let at = |lsn| Position::new(LineageId::default(), Lsn(lsn));
        let mut failures = Failures::default();
        let fail = |failures: &mut Failures, lsn| {
            failures.note(&fails(Phase::Streaming, "XX000"));
            failures.count(at(lsn));
            failures.verdict(Lsn(lsn)).map(|broken| match broken {
                Broken::Undecodable { from, .. } => from.0,
                other => panic!("{other}"),
            })
        };
        for _ in 1..ATTEMPTS {
            assert_eq!(fail(&mut failures, 8), None);
        }
        assert_eq!(fail(&mut failures, 16), None, "it came further");
        for _ in 2..ATTEMPTS {
            assert_eq!(fail(&mut failures, 16), None);
        }
        assert_eq!(fail(&mut failures, 16), Some(16));
        failures.count(at(16));
        assert_eq!(failures.verdict(Lsn(16)), None, "the slot is tried again");
        failures.note(&fails(Phase::Streaming, "57P01"));
        failures.note(&fails(Phase::Sql, "XX000"));
        failures.count(at(16));
        assert_eq!(failures.verdict(Lsn(16)), None, "something else");
        assert_eq!(fail(&mut failures, 16), Some(16));
        failures.count(at(24));
        assert!(failures.given_up().is_none());
    }

    #[test]
    fn wal_without_the_publication_is_told_at_once_and_given_up_later() {
        let at = Position::new(LineageId::default(), Lsn(8));
        let mut failures = Failures::default();
        for attempt in 1..=ATTEMPTS + 1 {
            failures.note(&Error::Ingest(ingest::Error::PublicationSkipped(String::new())));
            failures.count(at);
            let given_up = attempt >= ATTEMPTS;
            for _ in 0..2 {
                assert_eq!(failures.verdict(Lsn(8)), Some(Broken::Skips { start: Lsn(8), given_up }));
            }
            failures.prepared();
            assert_eq!(failures.verdict(Lsn(8)), None, "it is tried again");
        }
        failures.note(&Error::Ingest(ingest::Error::PublicationSkipped(String::new())));
        failures.count(Position::new(LineageId::default(), Lsn(16)));
        let anew = Broken::Skips { start: Lsn(16), given_up: false };
        assert_eq!(failures.verdict(Lsn(16)), Some(anew), "it came further");
    }
}

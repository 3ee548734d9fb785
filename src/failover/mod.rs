//! Recovery without the slot: what committed between the journal's end and a new slot's consistent point is read from
//! the log tables.
//!
//! Let J be the journal's end on the present lineage and CP the consistent point of a new slot. Of the committed
//! transactions that changed published tables each is exactly one of
//!
//! - journaled: its commit record ends at or before J, since the slot gave whole transactions in commit order;
//! - streamed: it commits after CP, which is what [CREATE_REPLICATION_SLOT](https://www.postgresql.org/docs/current/protocol-replication.html)
//!   promises;
//! - in between: visible in the snapshot that the slot exports, hence so are its rows in the log, and not journaled
//!   under its id on this lineage.
//!
//! The last ones are replayed. A transaction is identified by lineage and 64-bit id, never by the id alone: a promoted
//! standby hands out ids again that the old primary had used.

mod apply;
mod carry;
mod horizon;
mod poll;
mod unfinished;

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

pub use self::apply::Sink;
use self::carry::SoFar;
pub use self::horizon::{Marker, holds, newest_valid};
use crate::{
    failpoint,
    feed::{self, Feed},
    journal::{Horizon, Journal, Journaled},
    lsn::Lsn,
    model::{Position, Provenance},
    postgres::{
        self,
        catalog::Making,
        conninfo::ConnectOptions,
        logtables::{self, Look, Unprotected, blockers, read::Reader},
        publication::Publication,
        replication::{CreatedSlot, Replication},
        server, slot,
        sql::Sql,
    },
    reason::{Classified, Reason},
    shutdown::Drain,
};

/// Why the log tables cannot fill the gap.
#[derive(Debug, thiserror::Error)]
pub enum Error<E: Classified> {
    /// Connecting or asking failed.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// The journal cannot be read.
    #[error(transparent)]
    Feed(#[from] feed::Error),
    /// There is no log in this database.
    #[error("no log tables are installed (walcast logtables install)")]
    NotInstalled,
    /// No horizon lies on the history that the journal and the server share.
    #[error("the journal has recorded no horizon of the log tables on this history")]
    NoHorizon,
    /// The log does not have everything.
    #[error("the log tables do not cover the gap: {}", list(.0))]
    Uncovered(Vec<Unprotected>),
    /// Retention has removed what would have to be compared with the log.
    #[error("the journal no longer reaches back to the horizon of the log tables: {0}")]
    Expired(feed::Error),
    /// A row of the log does not fit the shape it was logged under.
    #[error("log row {id} cannot be replayed: {detail}")]
    Row {
        /// `walcast.log.id`.
        id: i64,
        /// What does not fit.
        detail: String,
    },
    /// The log stopped to have everything after the slot was dropped. The next attempt meets the slot as it is then.
    #[error("the log tables do not cover the gap any more: {}", list(.0))]
    NoLonger(Vec<Unprotected>),
    /// The server was to be left while something was waited for.
    #[error("another server has gone on meanwhile")]
    Left,
    /// Writing to the journal failed.
    #[error(transparent)]
    Sink(E),
}

fn list(tables: &[Unprotected]) -> String {
    tables.iter().map(|found| format!("{}: {}", found.table, found.problem)).collect::<Vec<_>>().join("; ")
}

impl<E: Classified> Classified for Error<E> {
    fn reason(&self) -> Reason {
        match self {
            Error::Postgres(error) => error.reason(),
            Error::Feed(error) => error.reason(),
            Error::Sink(error) => error.reason(),
            Error::NotInstalled | Error::NoHorizon | Error::Uncovered(_) | Error::Expired(_) | Error::NoLonger(_) => {
                Reason::SlotLost
            }
            Error::Left => Reason::SourceStalePrimary,
            Error::Row { .. } => Reason::DecodeError,
        }
    }
}

impl<E: Classified> Error<E> {
    /// Whether the log tables cannot help, now or later, and the slot is as it was, as opposed to a failure that may pass.
    pub fn is_final(&self) -> bool {
        matches!(self, Error::NotInstalled | Error::NoHorizon | Error::Uncovered(_) | Error::Expired(_))
    }
}

/// What is to be recovered, and with what.
pub struct Recovery<'a> {
    /// The server.
    pub connect: &'a ConnectOptions,
    /// A session on it.
    pub sql: &'a Sql,
    /// Where journaled transactions are looked up.
    pub journal: &'a Journal,
    /// Horizons that the journal has, oldest first.
    pub horizons: &'a [Horizon],
    /// The journal's end on the lineage that the server is on: J, or where a failover cut it.
    pub cut: Position,
    /// The slot: dropped if it is there, and made anew.
    pub slot: &'a str,
    /// The publication as it is now.
    pub publication: Publication,
    /// Make the new slot a failover slot, where the server knows them.
    pub failover_slot: bool,
    /// Application names of standbys that must have flushed what is delivered.
    pub gate: &'a [String],
    /// Hears what the recovery waits for, every two seconds while it does.
    pub blocked: &'a (dyn Fn(&[String]) + Send + Sync),
    /// Hears, when the old slot is gone and before the new one is made, what tables are like
    /// ([`Making::before`]): until the recovery ends the new slot has none of what the journal lacks.
    pub begins: &'a (dyn Fn(&str) + Send + Sync),
    /// Ends every wait with [`Error::Left`]: the server is stale, and what it waits for may never come.
    pub leave: &'a Drain,
}

/// How a recovery went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Where the new slot begins.
    pub consistent_point: Lsn,
    /// Transactions that were replayed.
    pub transactions: u32,
    /// Log rows that were replayed.
    pub rows: u64,
    /// By commit records rather than by rows.
    pub exact_order: bool,
}

/// A new slot that takes longer than this waits for somebody who should be named.
const BLOCKED_AFTER: Duration = Duration::from_secs(2);
/// The longest pause between two polls: each reads the log twice, so they pause for twice as long as they take.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Between two looks at the gate.
const GATE_PAUSE: Duration = Duration::from_millis(100);

impl Recovery<'_> {
    /// Whether log tables can fill the gap, as far as can be said before the slot is made anew. Changes nothing.
    pub async fn check<E: Classified>(&self) -> Result<&Horizon, Error<E>> {
        if !logtables::installed(self.sql).await? {
            return Err(Error::NotInstalled);
        }
        let horizon = newest_valid(self.horizons, &self.journal.history(), self.cut).ok_or(Error::NoHorizon)?;
        self.still_covered(horizon).await?;
        Ok(horizon)
    }

    /// Runs the recovery. `replication` must stay unused until this returns, and can then stream from the new slot. Can be
    /// repeated after any failure.
    pub async fn run<S: Sink>(&self, replication: &mut Replication, sink: &mut S) -> Result<Done, Error<S::Error>> {
        let horizon = self.check().await?;
        let mut so_far = SoFar {
            cut: self.cut,
            sequence: if sink.polled() { self.cut.sequence } else { 0 },
            seen: horizon.snapshot.clone(),
            journaled: self.journaled_since(horizon).await?,
        };
        failpoint::hit("recovery_checked");
        slot::drop(self.sql, self.slot).await?;
        failpoint::hit("recovery_slot_dropped");
        match self.remake(horizon, &mut so_far, replication, sink).await {
            Err(Error::Uncovered(found)) => Err(Error::NoLonger(found)),
            done => done,
        }
    }

    /// Makes the slot anew and replays what came before.
    async fn remake<S: Sink>(
        &self,
        horizon: &Horizon,
        so_far: &mut SoFar,
        replication: &mut Replication,
        sink: &mut S,
    ) -> Result<Done, Error<S::Error>> {
        let mut making = Making::new(self.sql).await?;
        (self.begins)(making.before());
        let created = loop {
            let created = self.create_slot(horizon, so_far, replication, sink).await?;
            if making.may_keep(self.slot).await? {
                break created;
            }
            slot::drop(self.sql, self.slot).await?;
        };
        failpoint::hit("recovery_slot_created");
        let (point, snapshot) = (created.consistent_point, created.snapshot.unwrap_or_default());
        let reader = if failpoint::planted("ignore_snapshot") {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Reader::open_now(self.connect).await?
        } else {
            Reader::open(self.connect, &snapshot).await?
        };
        let exported = reader.snapshot().await?;
        self.unless_left(unfinished::wait(self.sql, &exported, self.blocked)).await?;
        self.still_covered(horizon).await?;
        self.unless_left(self.let_pass(point)).await?;
        sink.begin_replay().await.map_err(Error::Sink)?;
        let carried = self.carry(&reader, so_far, point, Provenance::LogReplay, sink).await?;
        failpoint::hit("recovery_replayed");
        sink.recovered(so_far.cut, self.slot).await.map_err(Error::Sink)?;
        reader.close().await?;
        Ok(Done {
            consistent_point: point,
            transactions: carried.transactions,
            rows: carried.rows,
            exact_order: carried.exact_order,
        })
    }

    /// Waits for every transaction that runs now, says for which, and meanwhile delivers what commits.
    async fn create_slot<S: Sink>(
        &self,
        horizon: &Horizon,
        so_far: &mut SoFar,
        replication: &mut Replication,
        sink: &mut S,
    ) -> Result<CreatedSlot, Error<S::Error>> {
        let creating = replication.create_slot_with_snapshot(self.slot, self.failover_slot);
        tokio::pin!(creating);
        let mut pause = BLOCKED_AFTER;
        loop {
            tokio::select! {
                created = &mut creating => return Ok(created?),
                () = self.leave.wait() => return Err(Error::Left),
                () = tokio::time::sleep(pause) => {
                    let blockers = blockers::read(self.sql, self.slot).await?;
                    (self.blocked)(&blockers.iter().map(ToString::to_string).collect::<Vec<_>>());
                    let begun = Instant::now();
                    self.poll(horizon, so_far, sink).await?;
                    pause = (begun.elapsed() * 2).clamp(BLOCKED_AFTER, LONGEST_PAUSE);
                }
            }
        }
    }

    async fn unless_left<E: Classified>(
        &self,
        waiting: impl Future<Output = Result<(), postgres::Error>>,
    ) -> Result<(), Error<E>> {
        tokio::select! {
            waited = waiting => Ok(waited?),
            () = self.leave.wait() => Err(Error::Left),
        }
    }

    /// Fails when changes of a published table have not all been logged since the horizon.
    async fn still_covered<E: Classified>(&self, horizon: &Horizon) -> Result<(), Error<E>> {
        let look = Look::Since(&horizon.snapshot);
        let uncovered = logtables::unprotected(self.sql, &self.publication.name, look).await?;
        if uncovered.is_empty() { Ok(()) } else { Err(Error::Uncovered(uncovered)) }
    }

    /// Whether the standbys of the gate have flushed everything up to here.
    async fn passes(&self, lsn: Lsn) -> Result<bool, postgres::Error> {
        if self.gate.is_empty() {
            return Ok(true);
        }
        Ok(server::flushed_by(self.sql, self.gate).await?.is_some_and(|flushed| flushed >= lsn))
    }

    async fn let_pass(&self, lsn: Lsn) -> Result<(), postgres::Error> {
        let mut told = Instant::now();
        while !self.passes(lsn).await? {
            if told.elapsed() >= BLOCKED_AFTER {
                told = Instant::now();
                (self.blocked)(&[format!(
                    "standbys of the gate ({}), which have not flushed {lsn}",
                    self.gate.join(", ")
                )]);
            }
            tokio::time::sleep(GATE_PAUSE).await;
        }
        Ok(())
    }

    /// Transactions that the journal has on this lineage and that the horizon does not cover.
    async fn journaled_since<E: Classified>(&self, horizon: &Horizon) -> Result<HashSet<u64>, Error<E>> {
        let mut journaled = HashSet::new();
        let after = Position::new(horizon.lineage, horizon.low);
        let mut hear = |found: Journaled| {
            journaled.insert(found.xid);
        };
        match self.journal.transactions_after(after, &mut hear).await {
            Err(error @ feed::Error::Expired { .. }) => return Err(Error::Expired(error)),
            heard => heard?,
        }
        Ok(journaled)
    }
}

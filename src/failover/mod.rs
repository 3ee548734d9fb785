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
mod horizon;
mod unfinished;

use std::{collections::HashSet, time::Duration};

use futures_util::StreamExt;

use self::apply::Applier;
pub use self::apply::Sink;
pub use self::horizon::{Marker, newest_valid};
use crate::{
    failpoint,
    feed::{self, Feed},
    journal::{Horizon, Journal, Journaled},
    lsn::Lsn,
    model::{Position, Provenance, Transaction},
    postgres::{
        self,
        conninfo::ConnectOptions,
        logtables::{
            self, Look, Unprotected,
            blockers::{self, Blocker},
            order,
            read::{Pending, Published, Reader},
        },
        publication::Publication,
        replication::{CreatedSlot, Replication},
        slot,
        sql::Sql,
    },
    reason::{Classified, Reason},
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
            Error::NotInstalled | Error::NoHorizon | Error::Uncovered(_) | Error::Expired(_) => Reason::SlotLost,
            Error::Row { .. } => Reason::DecodeError,
        }
    }
}

impl<E: Classified> Error<E> {
    /// Whether the log tables cannot help, now or later, as opposed to a failure that may pass.
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
    /// Hears whom the creation of the slot waits for, every two seconds while it does.
    pub blocked: &'a (dyn Fn(&[Blocker]) + Send + Sync),
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

impl Recovery<'_> {
    /// Whether log tables can fill the gap, as far as can be said before the slot is made anew. Changes nothing.
    pub async fn check<E: Classified>(&self) -> Result<&Horizon, Error<E>> {
        if !logtables::installed(self.sql).await? {
            return Err(Error::NotInstalled);
        }
        let horizon = newest_valid(self.horizons, &self.journal.history(), self.cut).ok_or(Error::NoHorizon)?;
        let uncovered =
            logtables::unprotected(self.sql, &self.publication.name, Look::Since(&horizon.snapshot)).await?;
        match uncovered.is_empty() {
            true => Ok(horizon),
            false => Err(Error::Uncovered(uncovered)),
        }
    }

    /// Runs the recovery. `replication` must stay unused until this returns, and can then stream from the new slot. Can be
    /// repeated after any failure.
    pub async fn run<S: Sink>(&self, replication: &mut Replication, sink: &mut S) -> Result<Done, Error<S::Error>> {
        let horizon = self.check().await?;
        let journaled = self.journaled_since(horizon).await?;
        slot::drop(self.sql, self.slot).await?;
        failpoint::hit("recovery_slot_dropped");
        let created = self.create_slot(replication).await?;
        failpoint::hit("recovery_slot_created");
        let (point, snapshot) = (created.consistent_point, created.snapshot.unwrap_or_default());
        let reader = if failpoint::planted("ignore_snapshot") {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Reader::open_now(self.connect).await?
        } else {
            Reader::open(self.connect, &snapshot).await?
        };
        unfinished::wait(self.sql, &reader.snapshot().await?).await?;
        let published = Published::read(self.sql, self.publication.clone()).await?;
        let mut pending = reader.pending(&horizon.snapshot, &published.tables).await?;
        pending.retain(|transaction| !journaled.contains(&transaction.xid) && !sink.has_replayed(transaction.xid));
        let commits = order::commit_records(self.sql, self.cut.lsn, point)
            .await?
            .filter(|commits| pending.iter().all(|transaction| commits.contains_key(&transaction.xid)));
        match &commits {
            Some(commits) => pending.sort_by_key(|transaction| commits.get(&transaction.xid)),
            None => pending.sort_by_key(|transaction| transaction.last_id),
        }
        sink.begin_replay().await.map_err(Error::Sink)?;
        let position = |sequence| Position { lineage: self.cut.lineage, lsn: point, sequence };
        let commit_lsn = |xid| commits.as_ref().and_then(|commits| commits.get(&xid)).copied();
        let transaction = |pending: &Pending, sequence| Transaction {
            // Not known without pg_walinspect, but not before the end of what is journaled.
            commit_lsn: commit_lsn(pending.xid).unwrap_or(self.cut.lsn),
            sequence,
            xid: pending.xid,
            commit_time: pending.at,
            origin: String::new(),
            provenance: Provenance::LogReplay,
        };
        let xids: Vec<u64> = pending.iter().map(|transaction| transaction.xid).collect();
        let shapes = reader.shapes().await?;
        let mut applier = Applier::new(&published, &shapes, sink, &pending, &transaction, &position);
        {
            let rows = reader.rows(&xids, &published.tables).await?;
            tokio::pin!(rows);
            while let Some(row) = rows.next().await {
                applier.row(row?).await?;
            }
        }
        let (transactions, rows) = applier.finish().await?;
        failpoint::hit("recovery_replayed");
        sink.recovered(position(transactions), self.slot).await.map_err(Error::Sink)?;
        reader.close().await?;
        Ok(Done { consistent_point: point, transactions, rows, exact_order: commits.is_some() })
    }

    /// Waits for every transaction that runs now, and says for which.
    async fn create_slot(&self, replication: &mut Replication) -> Result<CreatedSlot, postgres::Error> {
        let creating = replication.create_slot_with_snapshot(self.slot, self.failover_slot);
        tokio::pin!(creating);
        loop {
            tokio::select! {
                created = &mut creating => return created,
                () = tokio::time::sleep(BLOCKED_AFTER) => (self.blocked)(&blockers::read(self.sql, self.slot).await?),
            }
        }
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

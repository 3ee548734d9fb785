//! Where the slot cannot give what the journal lacks: recovery from log tables, if there are any, instead of an error.

use std::sync::Arc;

use super::{Error, Options};
use crate::{
    failover::{self, Recovery, Sink},
    ingest::{self, Ingest},
    journal::Journal,
    lsn::Lsn,
    model::{Datum, OldImage, Operation, Position, Relation, Transaction},
    postgres::{publication::Publication, replication::Replication, sql::Sql},
    reason::{Classified, Reason},
};

impl From<failover::Error<ingest::Error>> for Error {
    fn from(error: failover::Error<ingest::Error>) -> Self {
        match error {
            failover::Error::Postgres(error) => Error::Postgres(error),
            failover::Error::Sink(error) => Error::Ingest(error),
            other => Error::Refused { reason: other.reason(), message: other.to_string() },
        }
    }
}

/// Recovers from the log tables and gives the start of the new slot; where they cannot help, `otherwise` with the reason.
pub(super) async fn instead_of(
    otherwise: Error,
    options: &Options,
    journal: &Journal,
    ingest: &mut Ingest,
    sql: &Sql,
    replication: &mut Replication,
    publication: &Publication,
) -> Result<Lsn, Error> {
    let horizons = ingest.horizons().to_vec();
    let recovery = Recovery {
        connect: &options.connect,
        sql,
        journal,
        horizons: &horizons,
        cut: ingest.complete(),
        slot: &options.slot,
        publication: publication.clone(),
        failover_slot: false,
    };
    match recovery.check::<ingest::Error>().await {
        Ok(_) => {}
        Err(error) if error.is_final() => {
            let message = format!("{otherwise}. The log tables cannot help: {error}");
            return Err(Error::Refused { reason: otherwise.reason(), message });
        }
        Err(error) => return Err(error.into()),
    }
    tracing::warn!(reason = otherwise.reason().as_str(), "{otherwise}. Recovering from the log tables");
    let begun = std::time::Instant::now();
    let done = recovery.run(replication, &mut Writing(ingest)).await?;
    tracing::info!(
        from = %recovery.cut,
        consistent_point = %done.consistent_point,
        transactions = done.transactions,
        rows = done.rows,
        exact_order = done.exact_order,
        seconds = begun.elapsed().as_secs_f64(),
        "recovered from the log tables"
    );
    Ok(done.consistent_point)
}

/// What to recover from when the stream skips or refuses changes for want of a publication that is there now.
pub(super) fn republished(options: &Options) -> Error {
    let message = format!("publication {:?} did not exist for a part of the WAL", options.publication);
    Error::Refused { reason: Reason::PublicationMissing, message }
}

/// The journal, as a replay sees it.
struct Writing<'a>(&'a mut Ingest);

impl Sink for Writing<'_> {
    type Error = ingest::Error;

    fn has_replayed(&self, xid: u64) -> bool {
        self.0.has_replayed(xid)
    }

    async fn begin_replay(&mut self) -> Result<(), ingest::Error> {
        self.0.begin_replay().await
    }

    fn begin(&mut self, transaction: Transaction) {
        self.0.replay_begin(transaction);
    }

    fn relation(&mut self, relation: Relation) -> Arc<Relation> {
        self.0.replay_relation(relation)
    }

    fn change<'a>(
        &mut self,
        relation: &Relation,
        operation: Operation,
        lsn: Lsn,
        old: Option<(OldImage, &[Datum<'a>])>,
        new: Option<&[Datum<'a>]>,
    ) -> Result<(), ingest::Error> {
        let old = old.map(|(image, row)| (image, row.iter().copied()));
        self.0.replay_change(relation, operation, lsn, old, new.map(|row| row.iter().copied()))
    }

    fn truncate(&mut self, relation: &Relation, lsn: Lsn) {
        self.0.replay_truncate(relation, lsn);
    }

    fn commit(&mut self, position: Position, xid: u64) {
        self.0.replay_commit(position, xid);
    }

    async fn pause(&mut self) -> Result<(), ingest::Error> {
        self.0.replay_pause().await
    }

    async fn recovered(&mut self, position: Position, slot: &str) -> Result<(), ingest::Error> {
        self.0.recovered(position, slot).await
    }
}

//! Where the slot cannot give what the journal lacks: recovery from log tables, if there are any, instead of an error.

use std::{sync::Arc, time::Instant};

use super::{
    Error, orphan,
    slots::{Broken, Mending},
};
use crate::{
    failover::{self, Recovery, Sink},
    ingest::{self, Ingest},
    lsn::Lsn,
    model::{Datum, OldImage, Operation, Position, Relation, Transaction},
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

/// What came of it.
pub(super) enum Recovered {
    /// The journal has everything up to here, and the new slot goes on.
    To(Lsn),
    /// The log tables cannot help, and nothing was changed: what is said of the slot still holds.
    Not(String),
}

/// Recovers what the journal lacks from the log tables.
pub(super) async fn from_log_tables(mending: &mut Mending<'_>, broken: &Broken) -> Result<Recovered, Error> {
    let options = mending.options;
    let horizons = mending.ingest.horizons().to_vec();
    let state = mending.state;
    let blocked = |text: &[String]| {
        let reason = Reason::RecoveryBlocked;
        state.alarm(reason, text);
        state.away(&format!("{}: the recovery waits for {}", reason.as_str(), text.join("; ")));
        tracing::warn!(reason = reason.as_str(), "the recovery waits for {}", text.join("; "));
    };
    let who = mending.replication.backend().await?;
    // The snapshot exists on the server that was chosen, which need not be the first one that answers.
    let mut connect = options.connect.clone();
    connect.hosts = vec![mending.sql.server().spec.clone()];
    let recovery = Recovery {
        connect: &connect,
        sql: mending.sql,
        journal: mending.journal,
        horizons: &horizons,
        cut: mending.ingest.complete(),
        slot: &options.slot,
        publication: mending.publication.clone(),
        failover_slot: options.failover_slot,
        gate: &options.gate,
        blocked: &blocked,
        begins: &|before| orphan::note(options, &who, before),
        leave: mending.leave,
    };
    match recovery.check::<ingest::Error>().await {
        Ok(_) => {}
        Err(error) if error.is_final() => return Ok(Recovered::Not(error.to_string())),
        Err(error) => return Err(error.into()),
    }
    let (slot, from) = (&options.slot, recovery.cut);
    tracing::warn!(slot, %from, "the slot {broken}; recovering from the log tables");
    let begun = Instant::now();
    let done = recovery.run(mending.replication, &mut Writing(mending.ingest)).await;
    state.alarm(Reason::RecoveryBlocked, &[]);
    let done = match done {
        Err(error) if error.is_final() => return Ok(Recovered::Not(error.to_string())),
        done => done?,
    };
    orphan::examined(options);
    tracing::info!(
        from = %recovery.cut,
        consistent_point = %done.consistent_point,
        transactions = done.transactions,
        rows = done.rows,
        exact_order = done.exact_order,
        seconds = begun.elapsed().as_secs_f64(),
        "recovered from the log tables"
    );
    Ok(Recovered::To(done.consistent_point))
}

/// The journal, as a replay sees it.
struct Writing<'a>(&'a mut Ingest);

impl Sink for Writing<'_> {
    type Error = ingest::Error;

    fn has_replayed(&self, xid: u64) -> bool {
        self.0.has_replayed(xid)
    }

    fn may_poll(&self) -> bool {
        !self.0.replaying()
    }

    fn polled(&self) -> bool {
        self.0.polled()
    }

    async fn begin_poll(&mut self) -> Result<(), ingest::Error> {
        self.0.begin_poll().await
    }

    async fn end_poll(&mut self) -> Result<(), ingest::Error> {
        self.0.polled_up_to_here().await
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

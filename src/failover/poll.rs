//! Delivery while a new slot waits for a transaction that does not end: what has committed meanwhile is read from the log
//! tables with ordinary snapshots, again and again.
//!
//! Positions must lie before the consistent point, which is not known yet. A poll takes a snapshot, then the end of the WAL:
//! what the snapshot sees has its commit record before that LSN, so a client that starts at a bare LSN misses nothing. Then
//! it looks whether the slot's creation still waits for a transaction. If it does, the consistent point lies behind: the slot
//! becomes consistent only at a record of running transactions without the one that is waited for, and that one still
//! runs ([`SnapBuildFindSnapshot`](https://doxygen.postgresql.org/snapbuild_8c_source.html)).
//!
//! What is polled is not everything up to its LSN. A transaction whose commit record is written and that still counts as
//! running is seen by a later poll, or by the replay that ends the recovery. So each polled transaction counts by itself,
//! but only a replay may follow: no slot is to be streamed from where a poll ended.

use super::{Error, Recovery, Sink, carry::SoFar};
use crate::{
    failpoint,
    journal::Horizon,
    model::Provenance,
    postgres::{
        logtables::{blockers, read::Reader},
        server,
    },
};

impl Recovery<'_> {
    /// Delivers what has committed since the last time, unless the creation of the slot is about to end.
    pub(super) async fn poll<S: Sink>(
        &self,
        horizon: &Horizon,
        so_far: &mut SoFar,
        sink: &mut S,
    ) -> Result<(), Error<S::Error>> {
        if !sink.may_poll() {
            return Ok(());
        }
        let reader = Reader::open_now(self.connect).await?;
        let seen = reader.snapshot().await?;
        let point = server::wal_positions(self.sql).await?.insert;
        if point <= so_far.cut.lsn || blockers::read(self.sql, self.slot).await?.is_empty() {
            return reader.close().await.map_err(Error::from);
        }
        self.still_covered(horizon).await?;
        // A commit can be visible before it is flushed, and a standby of the gate may be away.
        if server::wal_positions(self.sql).await?.flush < point || !self.passes(point).await? {
            return reader.close().await.map_err(Error::from);
        }
        let carried = self.carry(&reader, so_far, point, Provenance::LogPoll, sink).await?;
        so_far.seen = seen;
        reader.close().await?;
        if carried.transactions > 0 {
            failpoint::hit("recovery_polled");
            sink.end_poll().await.map_err(Error::Sink)?;
            failpoint::hit("recovery_poll_durable");
            tracing::info!(
                transactions = carried.transactions,
                rows = carried.rows,
                up_to = %point,
                "delivered from the log tables while the new slot waits"
            );
        }
        Ok(())
    }
}

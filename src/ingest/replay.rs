//! The journal's side of a replay from log tables: transactions that did not come through the slot, numbered at one
//! consistent point, which count only once the replay has ended.

use std::sync::Arc;

use super::{BLOCK_BYTES, Error, Ingest, State};
use crate::{
    journal::{Horizon, Record},
    lsn::Lsn,
    metrics,
    model::{Datum, OldImage, Operation, Position, Relation, Transaction},
};

impl Ingest {
    /// What a replay need not read, oldest first.
    pub fn horizons(&self) -> &[Horizon] {
        &self.horizons
    }

    /// Whether a replay has begun and not ended: then nothing may be streamed.
    pub fn replaying(&self) -> bool {
        self.appender.replaying()
    }

    /// Whether this process has replayed the transaction in an attempt that did not end.
    pub fn has_replayed(&self, xid: u64) -> bool {
        self.replayed.contains(&xid)
    }

    /// Whether the newest transactions were polled from log tables while a new slot was waited for. Then the source may have
    /// committed others before the LSN of [`Ingest::complete`], and only a replay may go on from there.
    pub fn polled(&self) -> bool {
        self.polled
    }

    /// Begins to add polled transactions, each of which counts by itself: nothing but a replay may follow. What the slot had
    /// sent of an unfinished transaction is discarded: it comes again, as a whole.
    pub async fn begin_poll(&mut self) -> Result<(), Error> {
        self.polled = true;
        self.state.discard_resent("the slot is gone; the transaction comes again from the log tables");
        self.append().await
    }

    /// Returns when everything polled is durable.
    pub async fn polled_up_to_here(&mut self) -> Result<(), Error> {
        self.append().await?;
        self.appender.flush().await?;
        metrics::add(metrics::EVENTS_ENCODED, std::mem::take(&mut self.state.events));
        Ok(())
    }

    /// Begins a replay. What the slot had sent of an unfinished transaction is discarded: it comes again, as a whole.
    pub async fn begin_replay(&mut self) -> Result<(), Error> {
        self.state.discard_resent("the slot is gone; the transaction comes again from the log tables");
        self.append().await?;
        self.appender.append(Record::Replay).await?;
        Ok(())
    }

    /// Begins a transaction. Its changes follow, at least one, and then its commit.
    pub fn replay_begin(&mut self, transaction: Transaction) {
        self.state.builder.begin(transaction, 0);
        self.state.events += 1;
    }

    /// Numbers a relation version, journals it where that is needed, and makes it the table's current one.
    pub fn replay_relation(&mut self, relation: Relation) -> Arc<Relation> {
        self.state.adopt(relation)
    }

    /// Adds a change. Images are in the columns' order.
    pub fn replay_change<'a, O, N>(
        &mut self,
        relation: &Relation,
        operation: Operation,
        lsn: Lsn,
        old: Option<(OldImage, O)>,
        new: Option<N>,
    ) -> Result<(), Error>
    where
        O: Iterator<Item = Datum<'a>> + Clone,
        N: Iterator<Item = Datum<'a>> + Clone,
    {
        self.state.events += 1;
        let added = self.state.builder.change(relation, operation, lsn, old, new);
        added.map_err(|error| super::undecodable(lsn, &[], error))
    }

    /// Adds a truncate of one table.
    pub fn replay_truncate(&mut self, relation: &Relation, lsn: Lsn) {
        self.state.events += 1;
        self.state.builder.truncate(&[relation.id.0], false, false, lsn);
    }

    /// Ends the transaction.
    pub fn replay_commit(&mut self, position: Position, xid: u64) {
        self.state.builder.commit(position);
        self.state.events += 1;
        if self.replaying() {
            self.replayed.insert(xid);
        }
    }

    /// Hands a full block to the journal. To be called between changes.
    pub async fn replay_pause(&mut self) -> Result<(), Error> {
        if self.state.builder.len() >= BLOCK_BYTES {
            self.append().await?;
            crate::failpoint::hit("recovery_mid_replay");
        }
        Ok(())
    }

    /// Ends the replay: everything up to `position` counts, and the slot goes on from there. Returns once that is durable.
    pub async fn recovered(&mut self, position: Position, slot: &str) -> Result<(), Error> {
        self.append().await?;
        self.appender.append(Record::Recovered(position, slot.to_owned())).await?;
        self.appender.flush().await?;
        metrics::add(metrics::EVENTS_ENCODED, std::mem::take(&mut self.state.events));
        self.state.builder.advance(position);
        self.state.versions.start_connection();
        self.replayed.clear();
        self.polled = false;
        Ok(())
    }

    /// Appends the horizons that were asked for and that the journal has reached.
    pub(super) fn take_horizons(&mut self) -> Result<(), Error> {
        let tail = self.complete();
        let reached = self.desk.horizons.lock().extract_if(.., |horizon| horizon.high <= tail.lsn).collect::<Vec<_>>();
        for horizon in reached {
            if horizon.lineage == tail.lineage && !self.replaying() {
                self.appender.push(Record::Horizon(horizon.clone()))?;
                *self.desk.recorded.lock() = Some(horizon.clone());
                self.horizons.push(horizon);
                // The journal thins them out; here they only have to be found.
                let surplus = self.horizons.len().saturating_sub(256);
                self.horizons.drain(..surplus);
            }
        }
        Ok(())
    }
}

impl State {
    fn adopt(&mut self, relation: Relation) -> Arc<Relation> {
        let oid = relation.oid;
        let fallback = Arc::new(relation.clone());
        if let Some(version) = self.versions.adopt(relation) {
            self.described.push(Record::Relation(version));
        }
        self.versions.current(oid).cloned().unwrap_or(fallback)
    }
}

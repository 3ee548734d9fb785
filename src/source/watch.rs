//! What is asked again and again while the slot streams: whether the publication is still the one that the stream
//! began with, and what the slot holds back.

use std::time::Duration;

use super::{Error, Options, SourceState, guard::Guard, refused, unless_locked};
use crate::{
    ingest::restart_lsn,
    journal::Journal,
    lsn::Lsn,
    metrics,
    postgres::{preflight, publication, server, slot, sql::Sql},
    reason::Reason,
};

/// Between two looks.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);

pub(super) struct Watch<'a> {
    pub sql: &'a Sql,
    pub options: &'a Options,
    pub publication_oid: u32,
    pub state: &'a SourceState,
    pub journal: &'a Journal,
    /// A message that could not be decoded by an earlier connection.
    pub stuck: Option<Lsn>,
}

impl Watch<'_> {
    /// Returns why streaming must end.
    pub async fn run(&self, mut guard: Guard) -> Error {
        let mut warned = self.state.streams_begun() > 1;
        loop {
            if !std::mem::replace(&mut warned, true)
                && let Err(error) = self.warn().await
            {
                if self.sql.is_closed() {
                    return error;
                }
                tracing::warn!(%error, "what else should be mended cannot be told");
            }
            if let Err(error) = unless_locked(self.look().await) {
                return error;
            }
            if let Err(error) = unless_locked(guard.look(self.sql, self.options, self.state).await) {
                if self.sql.is_closed() {
                    return error;
                }
                // The stream goes on without what it cannot do for want of a right, or of a table that is being replaced.
                self.state
                    .alarm(Reason::FailoverNotProtected, &[format!("the log tables cannot be looked after: {error}")]);
                tracing::warn!(%error, "the log tables cannot be looked after");
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// What does not keep the slot from streaming and yet asks for an operator: tables without a replica identity above
    /// all, whose UPDATE and DELETE fail in the application. Once for each process.
    async fn warn(&self) -> Result<(), Error> {
        let Options { connect, slot, publication, .. } = self.options;
        for check in preflight::checks(self.sql, connect, slot, publication).await? {
            // Whatever failed after all is not needed any more: the slot streams.
            if check.outcome == preflight::Outcome::Warning {
                let fix = check.fix.as_deref().unwrap_or_default().replace('\n', " ");
                tracing::warn!(check = check.name, fix, "{}", check.detail);
            }
        }
        Ok(())
    }

    async fn look(&self) -> Result<(), Error> {
        let tail = restart_lsn(*self.journal.complete().borrow());
        if self.stuck.is_some_and(|stuck| tail > stuck) {
            metrics::set(metrics::SOURCE_UNDECODABLE, 0.0);
        }
        let name = &self.options.publication;
        match publication::find(self.sql, name).await? {
            Some(found) if found.oid == self.publication_oid => {
                if let Some(tables) = unless_locked(publication::uneven(self.sql, &found).await)? {
                    self.state.uneven(tables);
                }
            }
            Some(_) => return Err(gone(format!("publication {name:?} was dropped and created again"))),
            None => return Err(gone(format!("publication {name:?} was dropped"))),
        }
        if let Some(tables) = unless_locked(publication::published_tables(self.sql, name).await)? {
            self.state.publishes(tables);
        }
        if let Some(slot) = slot::state(self.sql, &self.options.slot).await? {
            let confirmed_flush = slot.confirmed_flush.unwrap_or_default();
            let current = server::wal_positions(self.sql).await?.flush;
            metrics::set(metrics::SLOT_RETAINED_BYTES, slot.retained_bytes as f64);
            metrics::set(metrics::SLOT_CONFIRMED_LSN, confirmed_flush.0 as f64);
            self.state.update(|status| {
                status.wal_status = slot.wal_status.unwrap_or_default();
                status.confirmed_flush = confirmed_flush;
                status.retained_wal_bytes = slot.retained_bytes;
                status.current = current;
            });
        }
        Ok(())
    }
}

fn gone(message: String) -> Error {
    refused(Reason::PublicationMissing, message)
}

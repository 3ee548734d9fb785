//! What is asked again and again while the slot streams: whether the publication is still the one that the stream
//! began with, and what the slot holds back.

use std::time::Duration;

use super::{Error, Options, SourceState, guard::Guard, refused};
use crate::{
    metrics,
    postgres::{publication, server, slot, sql::Sql},
    reason::Reason,
};

const INTERVAL: Duration = Duration::from_secs(2);

pub(super) struct Watch<'a> {
    pub sql: &'a Sql,
    pub options: &'a Options,
    pub publication_oid: u32,
    pub state: &'a SourceState,
}

impl Watch<'_> {
    /// Returns why streaming must end.
    pub async fn run(&self, mut guard: Guard) -> Error {
        loop {
            if let Err(error) = self.look().await {
                return error;
            }
            if let Err(error) = guard.look(self.sql, self.options, self.state).await {
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

    async fn look(&self) -> Result<(), Error> {
        let name = &self.options.publication;
        match publication::find(self.sql, name).await? {
            Some(found) if found.oid == self.publication_oid => {}
            Some(_) => return Err(gone(format!("publication {name:?} was dropped and created again"))),
            None => return Err(gone(format!("publication {name:?} was dropped"))),
        }
        self.state.publishes(publication::published_tables(self.sql, name).await?);
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

//! The log tables while the slot streams: horizons, pruning, and whether every published table is still covered.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Error, Options, SourceState};
use crate::{
    failover::Marker,
    feed::Feed,
    ingest::Desk,
    journal::Journal,
    model::Position,
    postgres::{logtables, sql::Sql},
    reason::Reason,
};

/// How often leaves are pruned and the tables' triggers are looked at.
const INTERVAL: Duration = Duration::from_secs(10);

/// Looks after the log tables of one connection.
pub(super) struct Guard {
    journal: Journal,
    desk: Arc<Desk>,
    marker: Marker,
    last: Option<Position>,
    due: Instant,
    alarmed: bool,
}

impl Guard {
    pub fn new(journal: Journal, desk: Arc<Desk>) -> Guard {
        Guard { journal, desk, marker: Marker::default(), last: None, due: Instant::now(), alarmed: false }
    }

    pub async fn look(&mut self, sql: &Sql, options: &Options, state: &SourceState) -> Result<(), Error> {
        if !logtables::installed(sql).await? {
            return Ok(());
        }
        let tail = self.journal.marks().borrow().tail;
        if self.last != Some(tail) {
            self.last = Some(tail);
            if let Some(horizon) = self.marker.take(sql, tail.lineage).await? {
                self.desk.record(horizon);
            }
        }
        if Instant::now() >= self.due {
            self.due = Instant::now() + INTERVAL;
            self.audit(sql, options, state).await?;
            if let Some(horizon) = self.desk.recorded() {
                let emptied = logtables::prune(sql, &horizon.snapshot).await;
                match emptied {
                    Ok(0) => {}
                    Ok(emptied) => tracing::debug!(emptied, "log leaves pruned"),
                    Err(error) => tracing::warn!(%error, "the log tables cannot be pruned"),
                }
            }
        }
        Ok(())
    }

    async fn audit(&mut self, sql: &Sql, options: &Options, state: &SourceState) -> Result<(), Error> {
        let found = logtables::unprotected(sql, &options.publication, None).await?;
        let text: Vec<String> = found.iter().map(|found| format!("{}: {}", found.table, found.problem)).collect();
        state.alarm(Reason::FailoverNotProtected, &text);
        if !found.is_empty() && !self.alarmed {
            let reason = Reason::FailoverNotProtected.as_str();
            tracing::error!(reason, "a failover would lose changes: {}", text.join("; "));
        } else if found.is_empty() && self.alarmed {
            tracing::info!("every published table is covered by the log tables again");
        }
        self.alarmed = !found.is_empty();
        Ok(())
    }
}

//! The log tables while the slot streams: horizons, pruning, and whether every published table is still covered.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Error, Options, SourceState, unless_locked};
use crate::{
    failover::{self, Marker},
    feed::Feed as _,
    ingest::Desk,
    journal::Journal,
    model::Position,
    postgres::{
        logtables::{self, Look, Unprotected, audit},
        publication,
        sql::Sql,
    },
    reason::Reason,
};

/// How often leaves are pruned and the tables' triggers are looked at.
const INTERVAL: Duration = Duration::from_secs(10);
/// Of so many looks at the triggers one is at all definitions as well.
const DEFINITIONS_EVERY: u32 = 30;

/// Looks after the log tables of one connection.
pub(super) struct Guard {
    journal: Journal,
    desk: Arc<Desk>,
    marker: Marker,
    last: Option<Position>,
    due: Instant,
    alarmed: bool,
    first: bool,
    audits: u32,
    /// What the last look at definitions has found. They are looked at again at once, so that the alarm ends when they are mended.
    drifted: Vec<Unprotected>,
    /// By table.
    mismatched: BTreeMap<u32, String>,
}

impl Guard {
    pub fn new(journal: Journal, desk: Arc<Desk>) -> Guard {
        Guard {
            journal,
            desk,
            marker: Marker::default(),
            last: None,
            due: Instant::now(),
            alarmed: false,
            first: true,
            audits: 0,
            drifted: Vec::new(),
            mismatched: BTreeMap::new(),
        }
    }

    pub async fn look(&mut self, sql: &Sql, options: &Options, state: &SourceState) -> Result<(), Error> {
        if !logtables::installed(sql).await? {
            // Nothing is promised any more: not by an alarm either, be it of an earlier connection.
            state.alarm(Reason::FailoverNotProtected, &[]);
            self.alarmed = false;
            return Ok(());
        }
        let tail = *self.journal.complete().borrow();
        if self.last != Some(tail) {
            self.last = Some(tail);
            if let Some(horizon) = self.marker.take(sql, tail.lineage).await? {
                self.desk.record(horizon);
            }
        }
        if Instant::now() >= self.due {
            self.due = Instant::now() + INTERVAL;
            let audited = unless_locked(self.audit(sql, options, state).await);
            let recorded = self.desk.recorded().filter(|horizon| failover::holds(horizon, &self.journal.history()));
            if let Some(horizon) = recorded {
                let emptied = logtables::prune(sql, &horizon.snapshot).await;
                match emptied {
                    Ok(0) => {}
                    Ok(emptied) => tracing::debug!(emptied, "log leaves pruned"),
                    Err(error) => tracing::warn!(%error, "the log tables cannot be pruned"),
                }
            }
            audited?;
        }
        Ok(())
    }

    async fn audit(&mut self, sql: &Sql, options: &Options, state: &SourceState) -> Result<(), Error> {
        let found = match self.audits.is_multiple_of(DEFINITIONS_EVERY) || !self.drifted.is_empty() {
            false => logtables::unprotected(sql, &options.publication, Look::Triggers).await?,
            true => {
                let (mut found, all) = logtables::unprotected_unless_locked(sql, &options.publication).await?;
                if !all {
                    let mut still = std::mem::take(&mut self.drifted);
                    still.retain(|drifted| found.iter().all(|found| found.table != drifted.table));
                    found.extend(still);
                }
                self.drifted.clone_from(&found);
                found
            }
        };
        self.audits += 1;
        let mut text: Vec<String> = found.iter().map(|found| format!("{}: {}", found.table, found.problem)).collect();
        self.compare(sql, options).await?;
        text.extend(self.mismatched.values().cloned());
        state.alarm(Reason::FailoverNotProtected, &text);
        if !text.is_empty() && !self.alarmed {
            let reason = Reason::FailoverNotProtected.as_str();
            tracing::error!(reason, "a failover would lose changes: {}", text.join("; "));
        } else if text.is_empty() && self.alarmed {
            tracing::info!("every published table is covered by the log tables again");
        }
        self.alarmed = !text.is_empty();
        Ok(())
    }

    /// A table that did not match stays an alarm until one of its transactions matches again.
    async fn compare(&mut self, sql: &Sql, options: &Options) -> Result<(), Error> {
        let sample = self.desk.sample();
        if std::mem::take(&mut self.first) {
            return Ok(()); // from another connection's time: its rows may have been pruned
        }
        let Some(publication) = publication::find(sql, &options.publication).await? else { return Ok(()) };
        let found = audit::compare(sql, &publication, &sample).await?;
        self.mismatched.retain(|oid, _| !sample.contains_key(oid) || found.iter().any(|found| found.oid == *oid));
        for found in found {
            self.mismatched.insert(found.oid, found.text);
        }
        Ok(())
    }
}

//! Commits that the journal may lack and that no snapshot shows yet.
//!
//! A commit that waits for a synchronous standby is in the WAL, and so in a slot's stream, but nobody sees it until it is
//! released ([synchronous replication](https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION)).
//! If its record lies behind the journal's beginning, it comes in the stream like every transaction that a snapshot does not
//! see. If it lies in front of it, it would be neither in the rows nor in the stream. Making a temporary slot has the same
//! difficulty and waits for such a commit; so does this, but only for those that the journal does not have, and only where
//! the hub cannot know better: it knows of every transaction that began after its own connection.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::{
    Exporter, Session, away,
    barrier::Barrier,
    refused,
    scan::{self, index, unreadable},
};
use crate::{
    feed::{Fetched, SnapshotError, Start},
    lsn::Lsn,
    postgres::{
        server,
        sql::Sql,
        table::{self, WaitingCommit},
    },
};

const POLL: Duration = Duration::from_millis(100);

impl Exporter {
    /// Waits until every transaction that a snapshot taken from now on does not see is in the journal or will be.
    ///
    /// # Errors
    /// SOURCE_UNAVAILABLE, with the processes that wait, if that takes too long.
    pub(super) async fn settled(&self, session: &Session) -> Result<(), SnapshotError> {
        let sql = &session.sql;
        if self.knows_older(sql).await? {
            return Ok(());
        }
        let mut waiting = table::waiting_commits(sql).await.map_err(refused)?;
        if waiting.is_empty() {
            return Ok(());
        }
        if waiting.iter().any(|commit| commit.xid.is_some()) {
            let until = server::wal_positions(sql).await.map_err(refused)?.flush;
            self.journaled(until).await?;
            let journaled = self.journaled_xids(until).await?;
            waiting.retain(|commit| commit.xid.is_none_or(|xid| !journaled.contains(&xid)));
        }
        let deadline = Instant::now() + self.patience.settle;
        let hidden = waiting.iter().any(|commit| commit.hidden);
        let mut barrier = hidden.then(|| Barrier::raise(self, session));
        let mut impossible = None;
        loop {
            let present = table::waiting_commits(sql).await.map_err(refused)?;
            waiting.retain(|commit| present.contains(commit));
            if waiting.is_empty() || self.knows_older(sql).await? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(unsettled(&waiting, impossible.as_ref()));
            }
            let Some(raised) = &mut barrier else {
                tokio::time::sleep(POLL).await;
                continue;
            };
            match tokio::time::timeout(POLL, raised.passed()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => {
                    tracing::info!(%error, "a temporary slot does not tell what is settled");
                    (barrier, impossible) = (None, Some(error));
                }
                Err(_) => {}
            }
        }
    }

    /// Whether every transaction that is open now began after the hub's connection, and whatever has committed since the oldest did
    /// is still in the journal.
    async fn knows_older(&self, sql: &Sql) -> Result<bool, SnapshotError> {
        let seen = server::current_snapshot(sql).await.map_err(refused)?;
        Ok(scan::known_before(&*self.feed, seen.xmin).is_some())
    }

    /// The low halves of the ids of all transactions in the journal.
    async fn journaled_xids(&self, until: Lsn) -> Result<HashSet<u32>, SnapshotError> {
        let mut cursor = self.feed.locate(Start::Earliest).await.map_err(unreadable)?;
        let mut xids = HashSet::new();
        while cursor.after.lsn < until {
            let Fetched::Block(block) = self.feed.fetch(&mut cursor).await.map_err(unreadable)? else { break };
            for span in &index(&block)?.spans {
                xids.extend(scan::xid(&block, span)?.map(|xid| xid as u32));
            }
        }
        Ok(xids)
    }
}

/// `impossible`: why no temporary slot could be made.
fn unsettled(waiting: &[WaitingCommit], impossible: Option<&SnapshotError>) -> SnapshotError {
    let pids: Vec<String> = waiting.iter().map(|commit| commit.pid.to_string()).collect();
    let pids = pids.join(", ");
    if waiting.iter().any(|commit| commit.hidden) {
        let slot = match impossible {
            Some(error) => format!("a temporary slot, which would tell too, cannot be made: {error}"),
            None => "the temporary slot that would tell waits for transactions that were open before it".to_owned(),
        };
        return away(&format!(
            "synchronous replication is on, and the hub's role cannot see whether commits from before its journal wait for \
             it (processes {pids}): GRANT pg_read_all_stats to it, or try again when they have ended; {slot}"
        ));
    }
    away(&format!(
        "commits that are not in the journal wait for a synchronous standby (processes {pids}): no snapshot shows them yet"
    ))
}

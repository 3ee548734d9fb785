//! Commits that the journal may lack and that no snapshot shows yet.
//!
//! A commit that waits for a synchronous standby is in the WAL, and so in a slot's stream, but nobody sees it until it is
//! released ([synchronous replication](https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION)).
//! If its record lies behind the journal's beginning, it comes in the stream like every transaction that a snapshot does not
//! see. If it lies in front of it, it would be neither in the rows nor in the stream. Making a slot has the same
//! difficulty and waits for such a commit; so does this, but only for those that the journal does not have, and only where
//! the hub cannot know better: it knows of every transaction that began after its own connection.
//!
//! Who waits is seen by superusers and members of [pg_read_all_stats](https://www.postgresql.org/docs/current/predefined-roles.html). For
//! others any session may, and most never end; for these a slot is made after all ([`super::barrier`]).

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::{
    Exporter, Session, away,
    barrier::Barrier,
    refused,
    scan::{self, index, unreadable},
};
use crate::{
    feed::{Fetched, SnapshotError, Start, Window},
    lsn::Lsn,
    model::Position,
    postgres::{
        server,
        sql::Sql,
        table::{self, WaitingCommit},
    },
};

const POLL: Duration = Duration::from_millis(100);

impl Exporter {
    /// Waits until every transaction that a snapshot taken from now on does not see is in the journal or will be. That holds for as
    /// long as the journal has what comes behind the position.
    ///
    /// # Errors
    /// SOURCE_UNAVAILABLE, with the processes that wait, if that takes too long.
    pub(super) async fn settled(&self, session: &Session) -> Result<Position, SnapshotError> {
        let sql = &session.sql;
        let Window { earliest, tail, .. } = self.feed.window();
        if let Some(known) = self.known_older(sql).await? {
            return Ok(known);
        }
        let mut waiting = table::waiting_commits(sql, false).await.map_err(refused)?;
        if waiting.is_empty() {
            return Ok(tail);
        }
        let mut needed = tail;
        // Which may take as long as it is behind, and leaves those that hide.
        if waiting.iter().any(|commit| commit.xid.is_some() && !commit.hidden) {
            let until = server::wal_positions(sql).await.map_err(refused)?.flush;
            self.journaled(until).await?;
            let journaled = self.journaled_xids(until).await?;
            waiting.retain(|commit| commit.xid.is_none_or(|xid| !journaled.contains(&xid)));
            needed = earliest;
        }
        let deadline = Instant::now() + self.patience.settle;
        let hidden = waiting.iter().any(|commit| commit.hidden);
        let mut barrier = hidden.then(|| Barrier::raise(self, session, tail));
        let mut impossible = None;
        loop {
            let present = table::waiting_commits(sql, true).await.map_err(refused)?;
            waiting.retain(|commit| present.contains(commit));
            if waiting.is_empty() {
                return Ok(needed);
            }
            if let Some(known) = self.known_older(sql).await? {
                return Ok(known);
            }
            if Instant::now() >= deadline {
                return Err(unsettled(&waiting, impossible.as_ref()));
            }
            let Some(raised) = &mut barrier else {
                tokio::time::sleep(POLL).await;
                continue;
            };
            match tokio::time::timeout(POLL, raised.passed()).await {
                Ok(Ok(behind)) if !self.feed.window().is_behind(behind) => return Ok(behind),
                // The journal is too short for as long as that took: what began meanwhile, waits, and has left it would be missing.
                Ok(Ok(_)) => barrier = Some(Barrier::raise(self, session, self.feed.window().tail)),
                Ok(Err(error)) => {
                    tracing::info!(%error, "no temporary slot tells whether commits are waited for");
                    (barrier, impossible) = (None, Some(error));
                }
                Err(_) => {}
            }
        }
    }

    /// If every transaction that is open now began after the hub's connection, and whatever has committed since the oldest did is still
    /// in the journal: where that begins.
    async fn known_older(&self, sql: &Sql) -> Result<Option<Position>, SnapshotError> {
        let seen = server::current_snapshot(sql).await.map_err(refused)?;
        Ok(scan::known_before(&*self.feed, seen.xmin))
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

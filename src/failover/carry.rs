//! What a session sees of the log and the journal lacks, written as transactions.

use std::collections::HashSet;

use futures_util::StreamExt;

use super::{
    Error, Recovery,
    apply::{Applier, Sink},
};
use crate::{
    lsn::Lsn,
    model::{Position, Provenance, Transaction},
    postgres::logtables::{
        filter::Filters,
        order,
        read::{Logged, Pending, Published, Reader},
    },
};

/// Rows that are asked about together where the publication has row filters.
const BATCH_ROWS: usize = 1000;
/// Their texts may be large.
const BATCH_BYTES: usize = 1 << 20;

/// How far a recovery has come.
pub(super) struct SoFar {
    /// The journal's end.
    pub cut: Position,
    /// Of the last transaction that was written. It goes on from polled transactions to replayed ones, so that no two of a
    /// recovery have the same identity.
    pub sequence: u32,
    /// Text of a snapshot: what it sees is journaled, as far as it is in the log.
    pub seen: String,
    /// Transactions that are journaled on this lineage, as far as `seen` may not see them.
    pub journaled: HashSet<u64>,
}

/// What was written.
pub(super) struct Carried {
    pub transactions: u32,
    pub rows: u64,
    pub exact_order: bool,
}

impl Recovery<'_> {
    /// Writes it, with positions at `point`, which no commit record that the session sees lies behind.
    pub(super) async fn carry<S: Sink>(
        &self,
        reader: &Reader,
        so_far: &mut SoFar,
        point: Lsn,
        provenance: Provenance,
        sink: &mut S,
    ) -> Result<Carried, Error<S::Error>> {
        let published = Published::read(self.sql, self.publication.clone()).await?;
        let mut pending = reader.pending(&so_far.seen, &published.tables).await?;
        pending
            .retain(|transaction| !so_far.journaled.contains(&transaction.xid) && !sink.has_replayed(transaction.xid));
        let commits = match provenance {
            // Read again and again, the WAL would cost more than it tells.
            Provenance::LogPoll => None,
            _ => order::commit_records(self.sql, self.cut.lsn, point).await?,
        };
        let commits =
            commits.filter(|commits| pending.iter().all(|transaction| commits.contains_key(&transaction.xid)));
        match &commits {
            Some(commits) => pending.sort_by_key(|transaction| commits.get(&transaction.xid)),
            None => pending.sort_by_key(|transaction| transaction.last_id),
        }
        if provenance == Provenance::LogPoll && !pending.is_empty() {
            sink.begin_poll().await.map_err(Error::Sink)?;
        }
        let (before, cut) = (so_far.sequence, so_far.cut);
        let position = |sequence| Position { lineage: cut.lineage, lsn: point, sequence: before + sequence };
        let commit_lsn = |xid| commits.as_ref().and_then(|commits| commits.get(&xid)).copied();
        let transaction = |pending: &Pending, sequence| Transaction {
            // Not known without pg_walinspect, but not before the end of what is journaled.
            commit_lsn: commit_lsn(pending.xid).unwrap_or(cut.lsn),
            sequence: before + sequence,
            xid: pending.xid,
            commit_time: pending.at,
            origin: String::new(),
            provenance,
        };
        let xids: Vec<u64> = pending.iter().map(|transaction| transaction.xid).collect();
        let shapes = reader.shapes().await?;
        let mut applier = Applier::new(&published, &shapes, sink, &pending, &transaction, &position);
        {
            let rows = reader.rows(&xids, &published.tables).await?;
            tokio::pin!(rows);
            let mut filters = match shapes.filtered() {
                true => Some(Filters::open(self.connect).await?),
                false => None,
            };
            let (mut batch, mut bytes) = (Vec::new(), 0);
            loop {
                let next = rows.next().await.transpose()?;
                let ended = next.is_none();
                bytes += next.as_ref().map_or(0, Logged::text_len);
                batch.extend(next);
                if ended || filters.is_none() || batch.len() >= BATCH_ROWS || bytes >= BATCH_BYTES {
                    if let Some(filters) = &mut filters {
                        filters.judge(&shapes, &mut batch).await?;
                    }
                    for row in batch.drain(..) {
                        applier.row(row).await?;
                    }
                    bytes = 0;
                }
                if ended {
                    break;
                }
            }
        }
        let (transactions, rows) = applier.finish().await?;
        if transactions > 0 || provenance == Provenance::LogReplay {
            so_far.cut = position(transactions);
        }
        so_far.sequence += transactions;
        so_far.journaled.extend(xids);
        Ok(Carried { transactions, rows, exact_order: commits.is_some() })
    }
}

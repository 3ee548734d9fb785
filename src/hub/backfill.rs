//! Rows of more tables into a stream that is open already: the order is left with the stream, which takes it up between
//! two transactions. Nothing is read before it has, since chunks have their place behind marks in the journal. A stream whose positions
//! still list what was open when its first rows were read takes up a large order when that is behind it: together they could be more
//! than a checkpoint keeps.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    Error, Principal, Session,
    inner::Inner,
    orders::{Order, Start, Taken, impossible},
    snapshot::Running,
};
use crate::{
    feed::{SnapshotMode, SnapshotRequest, SubscriberKey},
    model::Operation,
    reason::Reason,
    selection::{Filter, Selection},
    wire::{
        pb,
        token::{Progress, Token},
    },
};

/// What is to be done with the rows of a running stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backfill {
    /// Send rows.
    Start {
        /// Globs over `schema.table`; empty = all that the stream selects.
        tables: Vec<String>,
        /// Only rows for which this holds; empty = all.
        predicate: String,
        /// 0: no limit.
        max_rows_per_second: u32,
    },
    /// Read nothing more until [`Backfill::Resume`]; changes go on.
    Pause,
    /// Go on.
    Resume,
    /// Give up. There is no `snapshot_end` then.
    Cancel,
}

/// Bytes of tables and predicate, encoded: every position names them while rows are owed, beside what else a checkpoint keeps.
const KEPT: usize = 2048;

/// The selection of a backfill, for its principal. It reads rows and nothing else, so its `where` may look at any column: what
/// a DELETE or an UPDATE would have to tell of the old row is a question of the stream's own filter.
pub(super) fn selection(principal: &Principal, tables: &[String], predicate: &str) -> Result<Arc<Selection>, Error> {
    let (tables, operations) = (tables.to_vec(), vec![Operation::Read]);
    let filter = Filter { tables, operations, predicate: predicate.to_owned(), ..Filter::default() };
    let rights = principal.tables.as_ref().map(|tables| tables.as_slice());
    Ok(Arc::new(Selection::compile(Some(&filter), rights)?))
}

impl Inner {
    /// See [`Hub::backfill`](super::Hub::backfill).
    pub async fn backfill(
        &self,
        principal: &Principal,
        key: &SubscriberKey,
        id: &str,
        backfill: Backfill,
    ) -> Result<String, Error> {
        let live = self.registry.sent(key).and_then(|sent| sent.live);
        let live = live.ok_or_else(|| impossible(format!("subscriber {:?} has no open stream", key.name)))?;
        let Backfill::Start { tables, predicate, max_rows_per_second } = backfill else {
            return live.order(
                id,
                match backfill {
                    Backfill::Pause => Order::Pause(true),
                    Backfill::Cancel => Order::Cancel,
                    Backfill::Start { .. } | Backfill::Resume => Order::Pause(false),
                },
            );
        };
        let place = live.reserve_snapshot()?;
        let selection = selection(principal, &tables, &predicate)?;
        self.check_published(&selection)?;
        let snapshots =
            self.snapshots.get().ok_or_else(|| Error::new(Reason::Unsupported, "this hub reads no rows"))?;
        let (paused, pause) = watch::channel(true);
        let progress = Progress { tables, predicate, ..Progress::default() };
        let token = Token { progress: Some(progress.clone()), ..Token::default() };
        if token.encode().len() > KEPT {
            return Err(Error::filter_too_long(token.encode().len(), KEPT));
        }
        let request = SnapshotRequest {
            selection: selection.clone(),
            mode: Some(SnapshotMode::Incremental),
            max_rows_per_second,
            resume: Some(progress),
            pause,
            permit: self.snapshot_permit()?,
        };
        let snapshot = Box::new(snapshots.begin(request).await?);
        let id = format!("{:016x}", snapshot.id);
        place.order(&id, Start { snapshot, selection, paused })?;
        Ok(id)
    }
}

impl Session {
    /// Takes up what was ordered. Between transactions only.
    pub(super) fn take_orders(&mut self) {
        if self.outbox.begun() {
            return;
        }
        let stamp = &mut self.stamp;
        let Taken { start, pause, cancel } = self.shared.take_orders(|progress| stamp.owe(progress.clone()));
        if let Some(Start { snapshot, selection, paused }) = start {
            let own = self.group.selection.clone();
            let (mut running, begin) = Running::new(*snapshot, own, Some(selection), paused, self.shared.span());
            running.pause(pause == Some(true));
            self.running = Some(Box::new(running));
            self.say(pb::event::Kind::SnapshotBegin(begin));
        }
        if let (Some(paused), Some(running)) = (pause, &mut self.running) {
            running.pause(paused);
        }
        if cancel && self.running.take().is_some() {
            self.shared.set_snapshot(None);
            self.stamp.update(|token| token.progress = None);
            self.pace.again();
        }
    }
}

//! Rows of more tables into a stream that is open already: the order is left with the stream, which takes it up between
//! two transactions. Nothing is read before it has, since chunks have their place behind marks in the journal.

use std::{fmt, sync::Arc};

use tokio::sync::watch;

use super::{Error, Principal, Session, inner::Inner, snapshot::Running};
use crate::{
    feed::{Snapshot, SnapshotMode, SnapshotRequest, SubscriberKey},
    model::Operation,
    reason::Reason,
    selection::{Filter, Selection},
    wire::{pb, token::Progress},
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

/// An order that a stream has not taken up yet.
pub(super) enum Order {
    Start { snapshot: Box<Snapshot>, selection: Arc<Selection>, paused: watch::Sender<bool> },
    Pause(bool),
    Cancel,
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Order::Start { .. } => "Start",
            Order::Pause(true) => "Pause",
            Order::Pause(false) => "Resume",
            Order::Cancel => "Cancel",
        })
    }
}

fn impossible(message: impl Into<String>) -> Error {
    Error::new(Reason::SnapshotImpossible, message)
}

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
        let running = live.snapshot();
        let Backfill::Start { tables, predicate, max_rows_per_second } = backfill else {
            let Some(running) = running.filter(|running| id.is_empty() || id == running) else {
                return Err(impossible("no such snapshot is running in the subscriber's stream"));
            };
            live.order(match backfill {
                Backfill::Pause => Order::Pause(true),
                Backfill::Cancel => Order::Cancel,
                Backfill::Start { .. } | Backfill::Resume => Order::Pause(false),
            });
            return Ok(running);
        };
        if let Some(running) = running {
            return Err(impossible(format!("snapshot {running} is running in the subscriber's stream")));
        }
        let selection = selection(principal, &tables, &predicate)?;
        self.check_published(&selection)?;
        let snapshots =
            self.snapshots.get().ok_or_else(|| Error::new(Reason::Unsupported, "this hub reads no rows"))?;
        let (paused, pause) = watch::channel(true);
        let progress = Progress { tables, predicate, ..Progress::default() };
        let request = SnapshotRequest {
            selection: selection.clone(),
            mode: Some(SnapshotMode::Incremental),
            max_rows_per_second,
            resume: Some(progress),
            pause,
        };
        let snapshot = Box::new(snapshots.begin(request).await?);
        let id = format!("{:016x}", snapshot.id);
        live.order(Order::Start { snapshot, selection, paused });
        Ok(id)
    }
}

impl Session {
    /// Takes up what was ordered. Between transactions only.
    pub(super) fn take_orders(&mut self) {
        if self.outbox.begun() {
            return;
        }
        for order in self.shared.take_orders() {
            match (order, &mut self.running) {
                (Order::Start { snapshot, selection, paused }, None) => {
                    let progress = snapshot.progress.clone();
                    let (mut running, begin) =
                        Running::new(*snapshot, self.group.selection.clone(), Some(selection), paused);
                    running.pause(false);
                    self.shared.set_snapshot(Some(begin.snapshot_id.clone()));
                    self.running = Some(Box::new(running));
                    self.stamp.update(|token| token.progress = Some(progress));
                    self.say(pb::event::Kind::SnapshotBegin(begin));
                }
                (Order::Pause(paused), Some(running)) => running.pause(paused),
                (Order::Cancel, Some(_)) => {
                    self.running = None;
                    self.shared.set_snapshot(None);
                    self.stamp.update(|token| token.progress = None);
                    self.pace.again();
                }
                (Order::Start { .. }, Some(_)) | (Order::Pause(_) | Order::Cancel, None) => {}
            }
        }
    }
}

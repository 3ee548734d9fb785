//! Subscribers: the one session loop, shared projections, checkpoints, fencing. Knows neither PostgreSQL nor tonic.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

mod acknowledge;
mod ahead;
mod backfill;
mod bell;
mod control;
mod credit;
mod crossing;
mod error;
mod frames;
mod governor;
mod group;
mod handover;
mod inner;
mod kept;
mod lag;
mod open;
mod orders;
mod outbox;
mod pace;
mod projection;
mod projector;
mod registry;
mod router;
mod rows;
mod session;
mod snapshot;
mod take;
mod telling;
mod tide;
mod trail;
mod turns;
mod waits;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use backfill::Backfill;
pub use control::SessionHandle;
pub use error::Error;
pub use session::Session;

use inner::Inner;

use crate::{
    feed::{Checkpoint, Checkpoints, Feed, Resume, SnapshotMode, Snapshots, Source, Start, SubscriberKey},
    model::{LineageId, Position},
    selection::Filter,
    shutdown::Drain,
};

/// An authenticated caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Principal {
    /// Empty when the hub runs without tokens.
    pub name: String,
    /// Globs over `schema.table` that it may read; `None` = all.
    pub tables: Option<Arc<Vec<String>>>,
}

/// Limits of the hub, all configurable.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open streams at the same time.
    pub streams: usize,
    /// Named subscribers that may exist.
    pub subscribers: usize,
    /// Readers that read from disk at the same time; others wait for a turn.
    pub catch_up_readers: usize,
    /// Readers that wait for a turn, before a stream that would begin on disk is refused.
    pub catch_up_waiting: usize,
    /// Snapshots that are read at the same time, initial rows and backfills together.
    pub snapshots: usize,
    /// Bytes of projections that all filtered streams together keep for those behind them.
    pub projection_bytes: usize,
}

/// Row format of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RowFormat {
    /// Positional values.
    #[default]
    Compact,
    /// `google.protobuf.Struct`, for people.
    Struct,
}

/// A validated subscription request.
#[derive(Clone, Debug, Default)]
pub struct Subscription {
    /// Durable name; `None` = anonymous.
    pub subscriber: Option<String>,
    /// `None`: the checkpoint (named), latest (anonymous).
    pub start: Option<StartAt>,
    /// `None`: everything, messages included.
    pub filter: Option<Filter>,
    /// The encoded `walcast.v1.Filter` as it came, for ListSubscribers.
    pub filter_encoded: Bytes,
    /// Compact or struct.
    pub row_format: RowFormat,
    /// End after a progress at or past the source's flush position at opening time.
    pub stop_at_tail: bool,
    /// Bytes of one response message that the client can receive; `None` = 4 MiB.
    pub max_message_bytes: Option<u32>,
    /// `None`: 1 s while positions move, 10 s when silent.
    pub progress_interval: Option<Duration>,
    /// Whether the stream waits for credit (Consume).
    pub credits: bool,
    /// Remote address, for ListSubscribers.
    pub peer: String,
}

/// A validated request for what a failover took back.
#[derive(Clone, Debug, Default)]
pub struct Retracted {
    /// The lineage that ended.
    pub old_lineage: LineageId,
    /// `None`: everything, messages included.
    pub filter: Option<Filter>,
    /// Compact or struct.
    pub row_format: RowFormat,
}

/// Where to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// The checkpoint, strictly.
    Checkpoint,
    /// A place in the feed.
    Feed(Start),
    /// Where an earlier stream was in a snapshot.
    Resume(Resume),
    /// With the rows that are already there.
    Snapshot {
        /// `None`: by the size of the tables.
        mode: Option<SnapshotMode>,
        /// 0: no limit.
        max_rows_per_second: u32,
    },
}

/// The hub. Cheap to clone.
#[derive(Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

/// A subscriber as the admin service lists it.
#[derive(Clone, Debug)]
pub struct SubscriberInfo {
    /// Principal and name.
    pub key: SubscriberKey,
    /// Durable state.
    pub checkpoint: Checkpoint,
    /// Whether a stream is open.
    pub connected: bool,
    /// WAL bytes between checkpoint and tail.
    pub lag_bytes: u64,
    /// Time since the first commit that the checkpoint lacks, at least; `None` when it is at the tail.
    pub lag: Option<Duration>,
    /// Retention has removed what comes behind the checkpoint.
    pub expired: bool,
    /// Remote address of the open stream.
    pub peer: String,
}

impl Hub {
    /// A hub over one feed.
    pub fn new(
        feed: Arc<dyn Feed>,
        source: Arc<dyn Source>,
        checkpoints: Arc<dyn Checkpoints>,
        limits: Limits,
        drain: Drain,
    ) -> Self {
        Hub { inner: Arc::new(Inner::new(feed, source, checkpoints, limits, drain)) }
    }

    /// Who reads the rows that are already there. Without, streams cannot begin with a snapshot.
    pub fn reads_rows_with(&self, snapshots: Arc<dyn Snapshots>) {
        self.inner.snapshots.set(snapshots).ok();
    }

    /// Validates, resolves the start, fences an older stream of the same subscriber.
    pub async fn subscribe(&self, principal: &Principal, request: Subscription) -> Result<Session, Error> {
        self.inner.subscribe(principal, request).await
    }

    /// A stream of what was left behind where a lineage ended; ends with OK behind it.
    pub async fn read_retracted(&self, principal: &Principal, request: Retracted) -> Result<Session, Error> {
        self.inner.read_retracted(principal, request).await
    }

    /// Returns the durable checkpoint after the fsync. `session` 0: not fenced.
    pub async fn acknowledge(
        &self,
        principal: &Principal,
        subscriber: &str,
        resume: impl Into<Resume>,
        session: u64,
    ) -> Result<Resume, Error> {
        let key = inner::key(principal, subscriber)?;
        self.inner.acknowledge(&key, resume.into(), session).await
    }

    /// Every subscriber of the principal; of all principals where `principal.name` is empty.
    pub fn subscribers(&self, principal: &Principal) -> Vec<SubscriberInfo> {
        self.inner.subscribers(principal)
    }

    /// Moves a checkpoint, back too; ends its open stream with SUBSCRIBER_FENCED.
    pub async fn reset_subscriber(
        &self,
        principal: &Principal,
        subscriber: &str,
        start: StartAt,
    ) -> Result<Position, Error> {
        let key = self.inner.existing(principal, subscriber)?;
        self.inner.reset(&key, start).await
    }

    /// Forgets a subscriber; ends its open stream with SUBSCRIBER_FENCED.
    pub async fn delete_subscriber(&self, principal: &Principal, subscriber: &str) -> Result<(), Error> {
        let key = self.inner.existing(principal, subscriber)?;
        self.inner.delete(&key).await
    }

    /// Orders rows into the subscriber's open stream, or says how to go on with those that are coming. The id of the snapshot
    /// concerned; `id` empty: the one that is running.
    pub async fn backfill(
        &self,
        principal: &Principal,
        subscriber: &str,
        id: &str,
        backfill: Backfill,
    ) -> Result<String, Error> {
        let key = self.inner.existing(principal, subscriber)?;
        self.inner.backfill(principal, &key, id, backfill).await
    }

    /// Open streams.
    pub fn streams(&self) -> usize {
        self.inner.streams()
    }

    /// Sets the metrics of every subscriber; before they are rendered.
    pub fn record_lags(&self) {
        self.inner.record_lags();
    }
}

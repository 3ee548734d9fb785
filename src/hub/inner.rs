//! What all streams of a hub have in common.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};

use super::{
    Error, Limits, Principal, SubscriberInfo,
    governor::Governor,
    group::Groups,
    lag,
    registry::Registry,
    tide::Tide,
    turns::{Turn, Turns},
};
use crate::{
    feed::{self, Checkpoint, Checkpoints, Cursor, Feed, Fetched, Snapshots, Source, Start, SubscriberKey},
    lsn::Lsn,
    metrics,
    model::Position,
    shutdown::Drain,
};

pub(super) struct Inner {
    pub feed: Arc<dyn Feed>,
    pub source: Arc<dyn Source>,
    pub checkpoints: Arc<dyn Checkpoints>,
    pub limits: Limits,
    pub drain: Drain,
    pub groups: Arc<Groups>,
    pub registry: Registry,
    pub governor: Governor,
    pub tide: Tide,
    readers: Arc<Turns>,
    pub snapshots: OnceLock<Arc<dyn Snapshots>>,
    /// How many more may be read.
    snapshots_left: Arc<Semaphore>,
    streams: AtomicUsize,
    /// Named subscribers that are being made.
    creating: AtomicUsize,
}

/// One of the named subscribers that the hub allows, until it exists.
pub(super) struct Creating<'a>(&'a AtomicUsize);

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One of the streams that the hub allows, for as long as it is held.
pub(super) struct StreamPermit(Arc<Inner>);

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let before = self.0.streams.fetch_sub(1, Ordering::Relaxed);
        metrics::set(metrics::STREAMS, before.saturating_sub(1) as f64);
    }
}

impl Inner {
    pub fn new(
        feed: Arc<dyn Feed>,
        source: Arc<dyn Source>,
        checkpoints: Arc<dyn Checkpoints>,
        limits: Limits,
        drain: Drain,
    ) -> Self {
        let readers = Turns::new(limits.catch_up_readers);
        Inner {
            governor: Governor::new(feed.clone()),
            feed,
            source,
            checkpoints,
            groups: Arc::new(Groups::new(limits.projection_bytes)),
            snapshots_left: Arc::new(Semaphore::new(limits.snapshots.min(Semaphore::MAX_PERMITS))),
            limits,
            drain,
            registry: Registry::default(),
            tide: Tide::default(),
            readers,
            snapshots: OnceLock::new(),
            streams: AtomicUsize::new(0),
            creating: AtomicUsize::new(0),
        }
    }

    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    pub fn permit(self: &Arc<Self>) -> Result<StreamPermit, Error> {
        let limit = self.limits.streams;
        let taken =
            self.streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < limit).then_some(open + 1));
        match taken {
            Ok(before) => {
                metrics::set(metrics::STREAMS, (before + 1) as f64);
                Ok(StreamPermit(self.clone()))
            }
            Err(_) => Err(Error::limit("limits.streams", format!("{limit} streams are open"))),
        }
    }

    /// Room for one more snapshot.
    pub fn snapshot_permit(&self) -> Result<Arc<OwnedSemaphorePermit>, Error> {
        let limit = self.limits.snapshots;
        let message = match limit {
            1 => "a snapshot is being read".to_owned(),
            limit => format!("{limit} snapshots are being read"),
        };
        let permit = self.snapshots_left.clone().try_acquire_owned();
        permit.map(Arc::new).map_err(|_| Error::limit("limits.snapshots", message))
    }

    /// Room for one more named subscriber, also where several come at once.
    pub fn create(&self) -> Result<Creating<'_>, Error> {
        let limit = self.limits.subscribers;
        let before = self.creating.fetch_add(1, Ordering::AcqRel);
        let creating = Creating(&self.creating);
        if self.checkpoints.count() + before >= limit {
            let message = format!("{limit} named subscribers exist");
            return Err(Error::limit("limits.subscribers", message).or("`walcast subscribers delete` removes one"));
        }
        Ok(creating)
    }

    /// A turn at reading from disk at a place, for as long as it is held.
    pub async fn turn(&self, place: Lsn) -> Turn {
        self.readers.take(place).await
    }

    fn is_at_tail(&self, start: &Start) -> bool {
        let tail = self.tail();
        match start {
            Start::Latest => true,
            Start::After(position) => position.lineage == tail.lineage && position.order() >= tail.order(),
            Start::AfterLsn(lsn) => *lsn >= tail.lsn,
            Start::Earliest | Start::Since(_) => false,
        }
    }

    /// Whether a new stream may begin there. Those that are open are never refused a turn.
    pub fn admit(&self, start: &Start) -> Result<(), Error> {
        let limit = self.limits.catch_up_waiting;
        if self.is_at_tail(start) || !self.readers.is_crowded(limit) {
            return Ok(());
        }
        let message = format!("{limit} streams wait for their turn to read from disk");
        Err(Error::limit("limits.catch_up_waiting", message))
    }

    /// Finds the place of a start, in its turn where that needs the disk.
    pub async fn place(&self, start: Start) -> Result<Cursor, feed::Error> {
        let place = match &start {
            Start::After(position) => position.lsn,
            Start::AfterLsn(lsn) => *lsn,
            _ => Lsn::ZERO,
        };
        let _turn = if self.is_at_tail(&start) { None } else { Some(self.turn(place).await) };
        self.feed.locate(start).await
    }

    pub fn tail(&self) -> Position {
        self.feed.marks().borrow().tail
    }

    /// The subscriber that an administrative call means: the principal's own, or for the empty principal the only one of
    /// this name.
    pub fn existing(&self, principal: &Principal, name: &str) -> Result<SubscriberKey, Error> {
        let own = key(principal, name)?;
        if self.checkpoints.get(&own).is_some() {
            return Ok(own);
        }
        let mut others = self.checkpoints.list().into_iter().map(|(key, _)| key).filter(|key| key.name == name);
        match (principal.name.is_empty(), others.next(), others.next()) {
            (true, Some(key), None) => Ok(key),
            (true, Some(_), Some(_)) => Err(Error::invalid("subscriber", "several principals have one of this name")),
            _ => Err(Error::subscriber_unknown(name)),
        }
    }

    pub fn subscribers(&self, principal: &Principal) -> Vec<SubscriberInfo> {
        let tail = self.tail();
        self.checkpoints
            .list()
            .into_iter()
            .filter(|(key, _)| principal.name.is_empty() || key.principal == principal.name)
            .map(|(key, checkpoint)| self.info(key, checkpoint, tail))
            .collect()
    }

    fn info(&self, key: SubscriberKey, checkpoint: Checkpoint, tail: Position) -> SubscriberInfo {
        let live = self.registry.sent(&key).and_then(|sent| sent.live);
        let done = checkpoint.position.or_else(|| live.as_ref().map(|live| live.after));
        let behind = done.filter(|done| done.lineage != tail.lineage || done.order() < tail.order());
        SubscriberInfo {
            key,
            expired: checkpoint.goes_on_behind().is_some_and(|at| self.feed.has_expired(at)),
            checkpoint,
            connected: live.is_some(),
            lag_bytes: behind.map_or(0, |done| tail.lsn.since(done.lsn)),
            lag: behind.map(|done| self.age(done)),
            peer: live.map(|live| live.peer.clone()).unwrap_or_default(),
        }
    }

    /// How long ago what comes behind this position was committed, as far as is known.
    fn age(&self, done: Position) -> Duration {
        let now = lag::now();
        let remembered = self.groups.timeline.since(done, now);
        let journaled = self.feed.commit_time_behind(done).map_or(0, |time| now.saturating_sub(time).max(0));
        remembered.max(Duration::from_micros(journaled as u64))
    }

    pub fn record_lags(&self) {
        self.groups.timeline.record(self.tail(), lag::now());
        for info in self.subscribers(&Principal::default()) {
            record(&info.key, info.lag_bytes, info.expired);
        }
    }

    /// Reads the block at the cursor in its turn.
    pub fn spawn_read(&self, mut cursor: Cursor) -> JoinHandle<(Cursor, Result<Fetched, feed::Error>)> {
        let (feed, readers) = (self.feed.clone(), self.readers.clone());
        tokio::spawn(async move {
            let _turn = readers.take(cursor.after.lsn).await;
            let fetched = feed.fetch(&mut cursor).await;
            (cursor, fetched)
        })
    }

    /// Notes that a subscriber is alive, in the background: retention forgets subscribers that are silent too long.
    pub fn touch(self: &Arc<Self>, key: &SubscriberKey) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (hub, key) = (self.clone(), key.clone());
        runtime.spawn(async move {
            let seen = |present: Option<&Checkpoint>| {
                present.map(|present| Checkpoint { last_seen: lag::now(), ..present.clone() })
            };
            if let Err(error) = hub.checkpoints.update(&key, Box::new(seen)).await {
                tracing::warn!(subscriber = key.name, %error, "last_seen was not kept");
            }
        });
    }
}

pub(super) fn record(key: &SubscriberKey, lag_bytes: u64, expired: bool) {
    let label = match key.principal.as_str() {
        "" => key.name.clone(),
        principal => format!("{principal}/{}", key.name),
    };
    ::metrics::gauge!(metrics::SUBSCRIBER_LAG_BYTES, "subscriber" => label.clone()).set(lag_bytes as f64);
    ::metrics::gauge!(metrics::SUBSCRIBER_EXPIRED, "subscriber" => label).set(f64::from(u8::from(expired)));
}

/// Checks the name of a subscriber.
pub(super) fn key(principal: &Principal, name: &str) -> Result<SubscriberKey, Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > 128 || !name.bytes().all(allowed) {
        return Err(Error::invalid("subscriber", "1 to 128 characters of a-z, A-Z, 0-9, '.', '_' and '-'"));
    }
    Ok(SubscriberKey { principal: principal.name.clone(), name: name.to_owned() })
}

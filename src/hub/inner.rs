//! What all streams of a hub have in common.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{sync::Semaphore, task::JoinHandle};

use super::{Error, Limits, Principal, SubscriberInfo, group::Groups, lag, registry::Registry};
use crate::{
    feed::{self, Checkpoint, Checkpoints, Cursor, Feed, Fetched, Source, SubscriberKey},
    metrics,
    model::Position,
    reason::Reason,
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
    pub readers: Arc<Semaphore>,
    streams: AtomicUsize,
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
        let readers = Arc::new(Semaphore::new(limits.catch_up_readers.clamp(1, Semaphore::MAX_PERMITS)));
        Inner {
            feed,
            source,
            checkpoints,
            groups: Arc::new(Groups::new(limits.projection_bytes)),
            limits,
            drain,
            registry: Registry::default(),
            readers,
            streams: AtomicUsize::new(0),
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
            Err(_) => Err(Error::new(Reason::TooManyStreams, format!("{limit} streams are open, which is the limit"))),
        }
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
            checkpoint,
            connected: live.is_some(),
            lag_bytes: behind.map_or(0, |done| tail.lsn.since(done.lsn)),
            lag: behind.map(|done| self.groups.timeline.since(done, lag::now())),
            peer: live.map(|live| live.peer.clone()).unwrap_or_default(),
        }
    }

    pub fn record_lags(&self) {
        self.groups.timeline.record(self.tail(), lag::now());
        for info in self.subscribers(&Principal::default()) {
            record_lag(&info.key, info.lag_bytes);
        }
    }

    /// Reads the block at the cursor in its turn.
    pub fn spawn_read(&self, mut cursor: Cursor) -> JoinHandle<(Cursor, Result<Fetched, feed::Error>)> {
        let (feed, readers) = (self.feed.clone(), self.readers.clone());
        tokio::spawn(async move {
            let _turn = readers.acquire().await;
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

pub(super) fn record_lag(key: &SubscriberKey, bytes: u64) {
    let label = match key.principal.as_str() {
        "" => key.name.clone(),
        principal => format!("{principal}/{}", key.name),
    };
    ::metrics::gauge!(metrics::SUBSCRIBER_LAG_BYTES, "subscriber" => label).set(bytes as f64);
}

/// Checks the name of a subscriber.
pub(super) fn key(principal: &Principal, name: &str) -> Result<SubscriberKey, Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > 128 || !name.bytes().all(allowed) {
        return Err(Error::invalid("subscriber", "1 to 128 characters of a-z, A-Z, 0-9, '.', '_' and '-'"));
    }
    Ok(SubscriberKey { principal: principal.name.clone(), name: name.to_owned() })
}

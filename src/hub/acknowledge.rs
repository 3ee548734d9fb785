//! Checkpoints move forward, never beyond what was sent, and only for the newest session.
//!
//! What was sent is what the newest session of this process has sent, live or ended; in particular a call without a
//! session number is bound by it too. After a restart of the hub nobody knows what had been sent, and the bound is the
//! feed's tail. One position may be acknowledged without having been sent: the end of a transaction with an event that was
//! too large for the client, after the stream ended with EVENT_TOO_LARGE and named it.
//!
//! A checkpoint never lies beyond what is durable. Where delivery runs ahead of fdatasync, an acknowledgement waits for it;
//! after a power failure it waits until the slot has brought again what the subscriber had.

use std::{sync::Arc, time::Duration};

use super::{
    Error, StartAt,
    control::Shared,
    inner::{Inner, record_lag},
    lag,
    trail::Trail,
};
use crate::{
    feed::{Checkpoint, Resume, Start, SubscriberKey},
    model::Position,
};

impl Inner {
    /// See [`Hub::acknowledge`](super::Hub::acknowledge).
    pub async fn acknowledge(&self, key: &SubscriberKey, resume: Resume, session: u64) -> Result<Resume, Error> {
        let position = resume.position;
        let checkpoint = self.checkpoints.get(key).ok_or_else(|| Error::subscriber_unknown(&key.name))?;
        if session != 0 && session != checkpoint.session {
            return Err(Error::fenced(session));
        }
        let sent = self.registry.sent(key);
        if !checkpoint.position.is_some_and(|done| is_at_or_before(position, done)) {
            match &sent {
                Some(sent) if sent.trail.covers(position) || sent.pass_over == Some(position) => {}
                Some(sent) => return Err(Error::ack_ahead(position, sent.trail.last())),
                None => self.check_unsent(position).await?,
            }
        }
        let tail = self.feed.marks().borrow().tail;
        let (trail, live) = sent.map_or_else(|| (Trail::new(tail), None), |sent| (sent.trail, sent.live));
        store(self, key, resume, session, &trail, live.as_ref()).await
    }

    /// See [`Hub::reset_subscriber`](super::Hub::reset_subscriber).
    pub async fn reset(&self, key: &SubscriberKey, start: StartAt) -> Result<Position, Error> {
        let start = match start {
            StartAt::Feed(start) => start,
            StartAt::Resume(resume) if resume.snapshot.is_empty() => Start::After(resume.position),
            _ => return Err(Error::invalid("start", "a reset needs a place outside of a snapshot")),
        };
        let position = self.locate(start).await?.after;
        if !is_beyond(position, self.tail()) {
            self.until_durable(key, position, 0).await?;
        }
        let mut session = None;
        let change = |present: Option<&Checkpoint>| {
            let present = present?;
            session = Some(present.session + 1);
            let snapshot = bytes::Bytes::new();
            Some(Checkpoint { position: Some(position), snapshot, session: present.session + 1, ..present.clone() })
        };
        self.checkpoints.update(key, Box::new(change)).await?;
        let session = session.ok_or_else(|| Error::subscriber_unknown(&key.name))?;
        self.registry.reset(key, session, position);
        Ok(position)
    }

    /// See [`Hub::delete_subscriber`](super::Hub::delete_subscriber).
    pub async fn delete(&self, key: &SubscriberKey) -> Result<(), Error> {
        let existed = self.checkpoints.delete(key).await?;
        self.registry.remove(key);
        record_lag(key, 0);
        if existed { Ok(()) } else { Err(Error::subscriber_unknown(&key.name)) }
    }

    /// Returns when the journal cannot lose the position any more. Ends with the hub, and when a newer session takes over.
    async fn until_durable(&self, key: &SubscriberKey, position: Position, session: u64) -> Result<(), Error> {
        let Some(mut durable) = self.feed.durable() else { return Ok(()) };
        loop {
            let reached = durable.wait_for(|durable| !is_beyond(position, *durable));
            match tokio::time::timeout(LOOK, reached).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) => return Err(Error::draining(position)),
                Err(_) if self.drain.started() => return Err(Error::draining(position)),
                Err(_) => {
                    let present = self.checkpoints.get(key).ok_or_else(|| Error::subscriber_unknown(&key.name))?;
                    if session != 0 && session != present.session {
                        return Err(Error::fenced(session));
                    }
                }
            }
        }
    }

    async fn check_unsent(&self, position: Position) -> Result<(), Error> {
        let tail = self.feed.marks().borrow().tail;
        if is_beyond(position, tail) {
            return Err(Error::ack_ahead(position, Some(tail)));
        }
        self.place(Start::After(position)).await?;
        Ok(())
    }
}

/// Bytes of the filter as it came and of `Position.snapshot` that a checkpoint keeps. A position with more is not kept, and the
/// checkpoint stays where it was.
const FILTER_AND_SNAPSHOT: usize = 3800;

/// How often an acknowledgement that waits looks whether it still counts.
const LOOK: Duration = Duration::from_secs(1);

/// A lineage becomes durable before anything on it is delivered.
fn is_beyond(position: Position, tail: Position) -> bool {
    position.lineage == tail.lineage && position.order() > tail.order()
}

fn is_at_or_before(position: Position, done: Position) -> bool {
    position.lineage == done.lineage && position.order() <= done.order()
}

/// Makes a position that may be acknowledged durable; what is durable then.
pub(super) async fn store(
    hub: &Inner,
    key: &SubscriberKey,
    resume: Resume,
    session: u64,
    trail: &Trail,
    live: Option<&Arc<Shared>>,
) -> Result<Resume, Error> {
    let position = resume.position;
    hub.until_durable(key, position, session).await?;
    let mut refused = false;
    let change = |present: Option<&Checkpoint>| {
        let present = present?;
        if session != 0 && session != present.session {
            refused = true;
            return None;
        }
        let same = present.position == Some(position) && present.snapshot != resume.snapshot;
        if !same && present.position.is_some_and(|done| !trail.is_after(position, done)) {
            return None;
        }
        let room = FILTER_AND_SNAPSHOT.checked_sub(resume.snapshot.len())?;
        let filter = if present.filter.len() <= room { present.filter.clone() } else { Default::default() };
        Some(Checkpoint {
            position: Some(position),
            snapshot: resume.snapshot.clone(),
            filter,
            filter_hash: live.map_or(present.filter_hash, |live| live.filter_hash),
            last_seen: lag::now(),
            ..present.clone()
        })
    };
    let durable = hub.checkpoints.update(key, Box::new(change)).await?;
    if refused {
        return Err(Error::fenced(session));
    }
    let durable = durable.ok_or_else(|| Error::subscriber_unknown(&key.name))?;
    let position = durable.position.ok_or_else(|| Error::internal("the checkpoint was not kept"))?;
    let durable = Resume { position, snapshot: durable.snapshot };
    if let Some(live) = live {
        live.checkpointed(durable.clone());
    }
    Ok(durable)
}

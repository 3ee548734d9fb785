//! Checkpoints move forward, never beyond what was sent, and only for the newest session.
//!
//! What was sent is what the newest session of this process has sent, live or ended; in particular a call without a
//! session number is bound by it too. After a restart of the hub nobody knows what had been sent, and the bound is the
//! feed's tail. One position may be acknowledged without having been sent: the end of a transaction with an event that was
//! too large for the client, after the stream ended with EVENT_TOO_LARGE and named it.
//!
//! A checkpoint never lies beyond what is durable. Where delivery runs ahead of fdatasync, an acknowledgement waits for it;
//! after a power failure it waits until the slot has brought again what the subscriber had.

use std::time::Duration;

use bytes::Bytes;

use super::{
    Error, StartAt,
    inner::{Inner, record},
    lag,
    registry::Sent,
    trail::Trail,
};
use crate::{
    feed::{Checkpoint, Resume, Start, SubscriberKey},
    model::Position,
    wire::token::{Progress, Token},
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
        let unknown = Sent { trail: Trail::new(tail), pass_over: None, owed: None, live: None };
        store(self, key, resume, session, &sent.unwrap_or(unknown)).await
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
            let snapshot = Bytes::new();
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
        record(key, 0, false);
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

/// Bytes of `Position.snapshot` that a checkpoint keeps, and of the filter as it came beside it. Streams send no more.
pub(super) const KEPT: usize = 3800;

/// How often an acknowledgement that waits looks whether it still counts.
const LOOK: Duration = Duration::from_secs(1);

/// A lineage becomes durable before anything on it is delivered.
fn is_beyond(position: Position, tail: Position) -> bool {
    position.lineage == tail.lineage && position.order() > tail.order()
}

fn is_at_or_before(position: Position, done: Position) -> bool {
    position.lineage == done.lineage && position.order() <= done.order()
}

/// Whether a checkpoint can keep it. This hub sends nothing else, but what comes back is anybody's.
pub(super) fn check_size(resume: &Resume) -> Result<(), Error> {
    match resume.snapshot.len() {
        0..=KEPT => Ok(()),
        bytes => {
            let message =
                format!("has {bytes} bytes, and a checkpoint keeps {KEPT}; use a later position of the stream");
            Err(Error::invalid("position.snapshot", message))
        }
    }
}

/// Whether of two `Position.snapshot` at one position `next` was sent behind `done`, as far as it says. `owed`: the snapshot
/// that the newest stream has not ended. What is sent of it comes behind all else at this position, and what another stream or
/// an earlier snapshot of this one has ended is owed no more: a late acknowledgement must not bring it back.
pub(super) fn is_later(done: &Bytes, next: &Bytes, owed: Option<&str>) -> bool {
    let progress = |token: &Bytes| Token::decode(token).ok().and_then(|token| token.progress);
    let is_owed = |progress: &Progress| owed.is_some_and(|owed| owed == format!("{:016x}", progress.id));
    match (progress(done), progress(next)) {
        (Some(done), Some(next)) if done.id == next.id => next.rows >= done.rows,
        (_, Some(next)) if is_owed(&next) => true,
        (Some(done), _) if is_owed(&done) => false,
        (None, Some(_)) => false,
        (_, None) | (Some(_), Some(_)) => true,
    }
}

/// Makes a position that may be acknowledged durable; what is durable then.
pub(super) async fn store(
    hub: &Inner,
    key: &SubscriberKey,
    resume: Resume,
    session: u64,
    sent: &Sent,
) -> Result<Resume, Error> {
    check_size(&resume)?;
    let position = resume.position;
    let Sent { trail, live, .. } = sent;
    hub.until_durable(key, position, session).await?;
    let mut refused = false;
    let change = |present: Option<&Checkpoint>| {
        let present = present?;
        if session != 0 && session != present.session {
            refused = true;
            return None;
        }
        let forward = present.position.is_none_or(|done| match done == position {
            true => {
                let owed = live.as_ref().map_or_else(|| sent.owed.clone(), |live| live.snapshot());
                present.snapshot != resume.snapshot && is_later(&present.snapshot, &resume.snapshot, owed.as_deref())
            }
            false => trail.is_after(position, done),
        });
        if !forward {
            return None;
        }
        let room = KEPT.saturating_sub(resume.snapshot.len());
        let filter = if present.filter.len() <= room { present.filter.clone() } else { Default::default() };
        Some(Checkpoint {
            position: Some(position),
            snapshot: resume.snapshot.clone(),
            filter,
            filter_hash: live.as_ref().map_or(present.filter_hash, |live| live.filter_hash),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u64, rows: u64) -> Bytes {
        let progress = Progress { id, rows, ..Progress::default() };
        Token { progress: Some(progress), ..Token::default() }.encode()
    }

    #[test]
    fn at_one_position_tokens_go_forward_only() {
        let (none, first, on, other) = (Bytes::new(), token(1, 0), token(1, 9), token(2, 0));
        let [one, two] = ["0000000000000001", "0000000000000002"].map(Some);
        let cases = [
            ("an end is not taken back", &none, &first, None, false),
            ("nor by what another stream sent of it", &none, &first, two, false),
            ("the end", &on, &none, None, true),
            ("rows that have begun here", &none, &first, one, true),
            ("and what came before them", &first, &none, one, false),
            ("further on", &first, &on, one, true),
            ("a late one", &on, &first, one, false),
            ("the same again", &on, &on, one, true),
            ("the next snapshot", &on, &other, two, true),
            ("and a late one of that before", &other, &on, two, false),
            ("of two that nobody knows, the one that comes later", &on, &other, None, true),
            ("not a token", &first, &Bytes::from_static(b"garbage"), None, true),
        ];
        for (what, done, next, owed, expected) in cases {
            assert_eq!(is_later(done, next, owed), expected, "{what}");
        }
    }
}

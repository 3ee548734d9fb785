//! What a stream shares with the rest of the hub: credits from the other half of `Consume`, acknowledgements, and the
//! order to end.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering, fence},
};

use super::{
    Error, acknowledge, bell::Bell, credit::Credits, inner::Inner, orders::Orders, registry::Sent, trail::Trail,
};
use crate::{
    feed::{Resume, SubscriberKey},
    model::Position,
};
use parking_lot::Mutex;

/// One stream as others see it.
#[derive(Debug)]
pub(super) struct Shared {
    /// `None` for anonymous streams.
    pub key: Option<SubscriberKey>,
    /// Fencing token; 0 for anonymous streams.
    pub session: u64,
    pub filter_hash: u64,
    pub peer: String,
    /// Where it started.
    pub after: Position,
    /// Wakes the stream; it looks at everything then.
    pub wake: Bell,
    /// It waits for the marks to move.
    wants_marks: AtomicBool,
    ended: AtomicBool,
    state: Mutex<State>,
    pub(super) orders: Mutex<Orders>,
}

#[derive(Debug)]
struct State {
    end: Option<Error>,
    credits: Option<Credits>,
    trail: Trail,
    /// A position that was not sent and may be acknowledged all the same, to leave out what is too large.
    pass_over: Option<Position>,
    checkpoint: Option<Resume>,
    pending: Option<Resume>,
    writing: bool,
}

impl Shared {
    pub fn new(
        key: Option<SubscriberKey>,
        session: u64,
        filter_hash: u64,
        peer: String,
        after: Position,
        checkpoint: Option<Resume>,
        credits: bool,
    ) -> Self {
        Shared {
            key,
            session,
            filter_hash,
            peer,
            after,
            wake: Bell::default(),
            wants_marks: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            state: Mutex::new(State {
                end: None,
                credits: credits.then_some(Credits::NONE),
                trail: Trail::new(after),
                pass_over: None,
                checkpoint,
                pending: None,
                writing: false,
            }),
            orders: Mutex::default(),
        }
    }

    /// Names a stream with a subscriber in the log, as it was named when it was opened.
    pub fn span(&self) -> tracing::Span {
        let (name, principal) = self.key.as_ref().map_or(("-", ""), |key| (key.name.as_str(), key.principal.as_str()));
        tracing::info_span!("stream", subscriber = name, principal, peer = self.peer)
    }

    /// From now on it is woken when the marks move. Whether they have is to be asked after this.
    pub fn want_marks(&self) {
        self.wants_marks.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The marks have moved; a fence lies between that and this.
    pub fn marks_moved(&self) {
        if self.wants_marks.load(Ordering::Relaxed) {
            self.wants_marks.store(false, Ordering::Relaxed);
            self.wake.ring();
        }
    }

    /// Ends the stream with this error; the first one holds.
    pub fn end(&self, error: Error) {
        self.state.lock().end.get_or_insert(error);
        self.ended.store(true, Ordering::Release);
        self.close_orders();
        self.wake.ring();
    }

    /// Why the stream is to end, if it is.
    pub fn ended(&self) -> Option<Error> {
        if !self.ended.load(Ordering::Acquire) {
            return None;
        }
        self.state.lock().end.clone()
    }

    pub fn credits<T>(&self, with: impl FnOnce(Option<&mut Credits>) -> T) -> T {
        with(self.state.lock().credits.as_mut())
    }

    /// The stream has sent this resume point.
    pub fn sent(&self, position: Position) {
        self.state.lock().trail.advance(position);
    }

    pub fn trail(&self) -> Trail {
        self.state.lock().trail.clone()
    }

    pub fn pass_over(&self) -> Option<Position> {
        self.state.lock().pass_over
    }

    pub fn set_pass_over(&self, position: Option<Position>) {
        self.state.lock().pass_over = position;
    }

    /// The durable checkpoint as far as this stream knows.
    pub fn checkpoint(&self) -> Option<Resume> {
        self.state.lock().checkpoint.clone()
    }

    /// The checkpoint became durable.
    pub fn checkpointed(&self, durable: Resume) {
        self.state.lock().checkpoint = Some(durable);
        self.wake.ring();
    }

    /// Whether the client may acknowledge this position.
    pub fn may_acknowledge(&self, position: Position) -> Result<(), Error> {
        let state = self.state.lock();
        if state.trail.covers(position) || state.pass_over == Some(position) {
            return Ok(());
        }
        Err(Error::ack_ahead(position, state.trail.last()))
    }

    /// Remembers what is to be made durable; whether the caller has to see to it.
    fn ask(&self, resume: Resume) -> bool {
        let owed = self.snapshot();
        let mut state = self.state.lock();
        let keeps = |pending: &Resume| match pending.position == resume.position {
            true => !acknowledge::is_later(&pending.snapshot, &resume.snapshot, owed.as_deref()),
            false => state.trail.is_after(pending.position, resume.position),
        };
        if !state.pending.as_ref().is_some_and(keeps) {
            state.pending = Some(resume);
        }
        !std::mem::replace(&mut state.writing, true)
    }

    fn take_asked(&self) -> Option<Resume> {
        let mut state = self.state.lock();
        let pending = state.pending.take();
        state.writing = pending.is_some();
        pending
    }
}

/// Credits and acknowledgements of one open stream. Cheap to clone.
#[derive(Clone)]
pub struct SessionHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) hub: Arc<Inner>,
}

impl SessionHandle {
    /// Adds credit (saturating); `u64::MAX` is unlimited from then on. No effect on a stream that was opened without.
    pub fn grant(&self, events: u64, bytes: u64) {
        self.shared.credits(|credits| {
            if let Some(credits) = credits {
                credits.grant(events, bytes);
            }
        });
        self.shared.wake.ring();
    }

    /// Checks at once that the position was sent, then makes it durable in the background, coalesced: while one write is
    /// under way only the latest position waits. The durable one comes back in `progress.checkpoint`. One that is larger than
    /// a checkpoint keeps leaves it as it was. A write that fails ends the stream. Must be called within the runtime.
    pub fn acknowledge(&self, resume: impl Into<Resume>) -> Result<(), Error> {
        let resume = resume.into();
        let Some(key) = &self.shared.key else {
            return Err(Error::invalid("acknowledge", "an anonymous stream has no checkpoint"));
        };
        if let Some(error) = self.shared.ended() {
            return Err(error);
        }
        self.shared.may_acknowledge(resume.position)?;
        if let Err(error) = acknowledge::check_size(&resume) {
            tracing::debug!(subscriber = key.name, %error, "an acknowledgement leaves the checkpoint as it is");
            return Ok(());
        }
        if self.shared.ask(resume) {
            let (shared, hub, key) = (self.shared.clone(), self.hub.clone(), key.clone());
            tokio::spawn(async move {
                while let Some(resume) = shared.take_asked() {
                    let stored = acknowledge::store(&hub, &key, resume, shared.session, &Sent::of(&shared)).await;
                    if let Err(error) = stored {
                        shared.end(error);
                    }
                }
            });
        }
        Ok(())
    }

    /// Ends the stream with this error, as when the client's half broke the protocol.
    pub fn fail(&self, error: Error) {
        self.shared.end(error);
    }
}

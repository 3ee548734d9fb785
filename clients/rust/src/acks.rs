//! What was handed out and what of it is done. Shared with transactions, so that they can be acknowledged anywhere.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tonic::Code;

use crate::{
    Error, Position,
    error::{HubError, Reason},
    model::{Opened, Progress},
    outbox::Outbox,
    pb,
};

#[derive(Debug, Default)]
struct State {
    handed: u64,
    acked: u64,
    handed_position: Option<Position>,
    acked_position: Option<Position>,
    opened: Option<Opened>,
    progress: Option<Progress>,
}

/// The acknowledgements of one subscription.
pub(crate) struct Acks {
    subscriber: String,
    outbox: Arc<Outbox>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Acks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Acks").field(&self.subscriber).finish()
    }
}

impl Acks {
    pub(crate) fn new(subscriber: String, outbox: Arc<Outbox>) -> Self {
        Acks { subscriber, outbox, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_named(&self) -> bool {
        !self.subscriber.is_empty()
    }

    pub(crate) fn opened(&self, opened: Opened, first: bool) {
        let mut state = self.lock();
        if first {
            state.handed_position = Some(opened.after.clone());
        }
        state.opened = Some(opened);
    }

    pub(crate) fn last_opened(&self) -> Option<Opened> {
        self.lock().opened.clone()
    }

    pub(crate) fn progress(&self) -> Option<Progress> {
        self.lock().progress.clone()
    }

    pub(crate) fn position(&self) -> Option<Position> {
        self.lock().handed_position.clone()
    }

    pub(crate) fn acked_position(&self) -> Option<Position> {
        self.lock().acked_position.clone()
    }

    /// The user gets an item with this position; its serial.
    pub(crate) fn hand(&self, position: Position) -> u64 {
        let mut state = self.lock();
        state.handed += 1;
        state.handed_position = Some(position);
        state.handed
    }

    /// Progress is acknowledged for the user when nothing before it is outstanding.
    pub(crate) fn passed(&self, progress: &Progress) {
        let mut state = self.lock();
        state.progress = Some(progress.clone());
        state.handed_position = Some(progress.position.clone());
        if state.acked < state.handed || !self.is_named() || state.is_acked(&progress.position) {
            return;
        }
        state.acked_position = Some(progress.position.clone());
        drop(state);
        self.outbox.acknowledge(progress.position.clone());
    }

    /// Everything up to and including the position is done. Serial: of the item whose position it is, or 0.
    pub(crate) fn acknowledge(&self, position: &Position, serial: u64) -> Result<(), Error> {
        if !self.is_named() {
            let what = "an anonymous subscription has no checkpoint; give it a subscriber name, or store tx.position()";
            return Err(Error::Misuse(what.into()));
        }
        let mut state = self.lock();
        let ahead = match &state.handed_position {
            Some(handed) => handed.lineage == position.lineage && !handed.reaches(position),
            None => true,
        };
        if ahead {
            let message = format!("position {} has not been handed out yet", position.lsn);
            return Err(HubError::new(Reason::AckAhead, Code::FailedPrecondition, message).into());
        }
        if serial != 0 {
            state.acked = state.acked.max(serial);
        } else if state.handed_position.as_ref().is_some_and(|handed| position.reaches(handed)) {
            state.acked = state.handed;
        }
        if state.is_acked(position) {
            return Ok(());
        }
        state.acked_position = Some(position.clone());
        drop(state);
        self.outbox.acknowledge(position.clone());
        Ok(())
    }

    /// Whether something was acknowledged that no progress has confirmed.
    pub(crate) fn is_unflushed(&self) -> bool {
        let state = self.lock();
        let confirmed = state.progress.as_ref().and_then(|progress| progress.checkpoint.as_ref());
        match (&state.acked_position, confirmed) {
            (Some(acked), Some(confirmed)) => !confirmed.reaches(acked),
            (acked, _) => acked.is_some(),
        }
    }

    /// The unary call that makes a position durable; `None` before a stream was open.
    pub(crate) fn request(&self, position: Position) -> Option<pb::AcknowledgeRequest> {
        let session = self.lock().opened.as_ref()?.session;
        Some(pb::AcknowledgeRequest { subscriber: self.subscriber.clone(), position: Some(position.into()), session })
    }
}

impl State {
    fn is_acked(&self, position: &Position) -> bool {
        self.acked_position.as_ref().is_some_and(|acked| acked.reaches(position))
    }
}

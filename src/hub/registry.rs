//! Named subscribers since the hub started: who is connected, and what was sent to whom.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use super::{Error, control::Shared, trail::Trail};
use crate::{feed::SubscriberKey, model::Position};

/// Entries outlive their streams, since an acknowledgement may come after the stream has ended.
#[derive(Debug, Default)]
pub(super) struct Registry(Mutex<HashMap<SubscriberKey, Entry>>);

#[derive(Debug)]
struct Entry {
    session: u64,
    live: Option<Arc<Shared>>,
    trail: Trail,
    pass_over: Option<Position>,
    owed: Option<String>,
}

/// What bounds an acknowledgement.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub trail: Trail,
    pub pass_over: Option<Position>,
    /// Id of the snapshot whose rows the session owes, or owed when it ended.
    pub owed: Option<String>,
    /// Which stream is open.
    pub live: Option<Arc<Shared>>,
}

impl Sent {
    /// By a stream that is open.
    pub fn of(live: &Arc<Shared>) -> Self {
        Sent { trail: live.trail(), pass_over: live.pass_over(), owed: live.snapshot(), live: Some(live.clone()) }
    }
}

impl Registry {
    /// Makes a stream the subscriber's only one: ends an older one; refused when a newer one was faster.
    pub fn open(&self, key: &SubscriberKey, stream: &Arc<Shared>) -> Result<(), Error> {
        let mut entries = self.0.lock();
        let old = entries.get(key);
        if old.is_some_and(|old| old.session > stream.session) {
            return Err(Error::fenced(stream.session));
        }
        if let Some(old) = old {
            stream.set_pass_over(old.live.as_ref().map_or(old.pass_over, |live| live.pass_over()));
            if let Some(live) = &old.live {
                live.end(Error::fenced(live.session));
            }
        }
        let (session, live) = (stream.session, Some(stream.clone()));
        let entry = Entry { session, live, trail: Trail::default(), pass_over: None, owed: None };
        entries.insert(key.clone(), entry);
        Ok(())
    }

    /// A stream is gone; what it sent is kept if it is still the newest.
    pub fn close(&self, key: &SubscriberKey, stream: &Arc<Shared>) {
        let mut entries = self.0.lock();
        let Some(entry) = entries.get_mut(key) else { return };
        if entry.live.as_ref().is_some_and(|live| Arc::ptr_eq(live, stream)) {
            entry.live = None;
            entry.trail = stream.trail();
            entry.pass_over = stream.pass_over();
            entry.owed = stream.snapshot();
        }
    }

    /// A reset: the newest session has sent nothing but `position`.
    pub fn reset(&self, key: &SubscriberKey, session: u64, position: Position) {
        let entry = Entry { session, live: None, trail: Trail::new(position), pass_over: None, owed: None };
        if let Some(live) = self.0.lock().insert(key.clone(), entry).and_then(|old| old.live) {
            live.end(Error::fenced(live.session));
        }
    }

    /// A deletion.
    pub fn remove(&self, key: &SubscriberKey) {
        if let Some(live) = self.0.lock().remove(key).and_then(|old| old.live) {
            live.end(Error::fenced(live.session));
        }
    }

    /// What the newest session of this process has sent; `None`: there was none.
    pub fn sent(&self, key: &SubscriberKey) -> Option<Sent> {
        let entries = self.0.lock();
        let entry = entries.get(key)?;
        Some(match &entry.live {
            Some(live) => Sent::of(live),
            None => {
                let (trail, owed) = (entry.trail.clone(), entry.owed.clone());
                Sent { trail, pass_over: entry.pass_over, owed, live: None }
            }
        })
    }
}

//! The one snapshot of a stream as others see it: being prepared, left for the stream to take up, running.
//!
//! What a snapshot needs is held from its beginning on: sessions on the primary, a part of the journal. A stream that is
//! stalled takes nothing up. So its place is taken before anything is begun, by one order at a time, and an order that
//! was left can be cancelled like one that runs.

use std::{fmt, sync::Arc};

use tokio::sync::watch;

use super::{Error, control::Shared};
use crate::{feed::Snapshot, reason::Reason, selection::Selection, wire::token::Progress};

/// Rows that the stream is to take up.
pub(super) struct Start {
    pub snapshot: Box<Snapshot>,
    pub selection: Arc<Selection>,
    pub paused: watch::Sender<bool>,
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Start").field(&self.snapshot.id).finish()
    }
}

/// What is ordered of rows that were started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Pause(bool),
    Cancel,
}

/// What the stream has to do, in this order.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub start: Option<Start>,
    pub pause: Option<bool>,
    pub cancel: bool,
}

/// Of one stream.
#[derive(Debug, Default)]
pub(super) struct Orders {
    place: Place,
    /// The last of PAUSE and RESUME that was not taken up.
    pause: Option<bool>,
    cancel: bool,
}

#[derive(Debug, Default)]
enum Place {
    #[default]
    Free,
    Reserved,
    Ordered(String, Start),
    Running(String),
    /// The stream has ended or is to end, with these rows owed.
    Closed(Option<String>),
}

pub(super) fn impossible(message: impl Into<String>) -> Error {
    Error::new(Reason::SnapshotImpossible, message)
}

/// The place of the stream's snapshot, for one that is being prepared.
pub(super) struct Reserved(Option<Arc<Shared>>);

impl Reserved {
    /// Leaves the snapshot with the stream.
    pub fn order(mut self, id: &str, start: Start) -> Result<(), Error> {
        let Some(shared) = self.0.take() else { return Ok(()) };
        let mut orders = shared.orders.lock();
        if matches!(orders.place, Place::Closed(_)) {
            return Err(closed());
        }
        orders.place = Place::Ordered(id.to_owned(), start);
        drop(orders);
        shared.wake.ring();
        Ok(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let Some(shared) = self.0.take() else { return };
        let mut orders = shared.orders.lock();
        if matches!(orders.place, Place::Reserved) {
            orders.place = Place::Free;
        }
    }
}

fn closed() -> Error {
    impossible("the subscriber's stream has ended")
}

impl Shared {
    /// Takes the place of the stream's snapshot; refused while there is another one.
    pub fn reserve_snapshot(self: &Arc<Self>) -> Result<Reserved, Error> {
        let mut orders = self.orders.lock();
        let taken = match &orders.place {
            Place::Free => {
                orders.place = Place::Reserved;
                return Ok(Reserved(Some(self.clone())));
            }
            Place::Reserved => "another snapshot is being started in the subscriber's stream".to_owned(),
            Place::Ordered(id, _) => format!("snapshot {id} waits until the subscriber's stream takes it up"),
            Place::Running(id) => format!("snapshot {id} is running in the subscriber's stream"),
            Place::Closed(_) => return Err(closed()),
        };
        Err(impossible(taken))
    }

    /// Says how to go on with the snapshot of this id, or with the only one if that is empty; its id.
    pub fn order(&self, id: &str, order: Order) -> Result<String, Error> {
        let mut orders = self.orders.lock();
        let known = match &orders.place {
            Place::Ordered(known, _) | Place::Running(known) if id.is_empty() || id == known => known.clone(),
            _ => return Err(impossible("no such snapshot is running in the subscriber's stream")),
        };
        let mut cancelled = None;
        match order {
            Order::Pause(paused) => orders.pause = Some(paused),
            Order::Cancel if matches!(orders.place, Place::Running(_)) => orders.cancel = true,
            Order::Cancel => cancelled = Some(std::mem::take(&mut *orders)),
        }
        drop(orders);
        // What it holds is not let go of under the lock.
        drop(cancelled);
        self.wake.ring();
        Ok(known)
    }

    /// For the stream itself. `fits`: whether its positions can name the rows beside all else that they name; until they can, an order
    /// waits, and so does what is ordered of it.
    pub fn take_orders(&self, fits: impl FnOnce(&Progress) -> bool) -> Taken {
        let mut orders = self.orders.lock();
        let mut start = None;
        if let Place::Ordered(_, ordered) = &orders.place
            && !fits(&ordered.snapshot.progress)
        {
            return Taken::default();
        }
        if matches!(orders.place, Place::Ordered(..))
            && let Place::Ordered(id, ordered) = std::mem::take(&mut orders.place)
        {
            orders.place = Place::Running(id);
            start = Some(ordered);
        }
        Taken { start, pause: orders.pause.take(), cancel: std::mem::take(&mut orders.cancel) }
    }

    /// The stream has this snapshot from now on, or none. What was ordered of the one before is void.
    pub fn set_snapshot(&self, id: Option<String>) {
        let mut orders = self.orders.lock();
        let place = match (id, &orders.place) {
            (id, Place::Closed(_)) => Place::Closed(id),
            (Some(id), _) => Place::Running(id),
            (None, _) => Place::Free,
        };
        *orders = Orders { place, ..Orders::default() };
    }

    /// Id of the snapshot whose rows the stream owes, also when it has ended.
    pub fn snapshot(&self) -> Option<String> {
        match &self.orders.lock().place {
            Place::Running(id) => Some(id.clone()),
            Place::Closed(owed) => owed.clone(),
            Place::Free | Place::Reserved | Place::Ordered(..) => None,
        }
    }

    /// The stream takes nothing up any more; what waits for it is let go of.
    pub fn close_orders(&self) {
        let mut orders = self.orders.lock();
        let owed = match &orders.place {
            Place::Running(id) => Some(id.clone()),
            Place::Closed(owed) => owed.clone(),
            Place::Free | Place::Reserved | Place::Ordered(..) => None,
        };
        let left = std::mem::replace(&mut *orders, Orders { place: Place::Closed(owed), ..Orders::default() });
        drop(orders);
        drop(left);
    }
}

//! Projections that groups keep for streams that come later, within what the hub allows for all of them together.
//!
//! A group counts what it keeps under a lock of its own. The common one is taken when a group keeps its first, and when
//! there is too much: then groups give up one after another, in turn, whatever they did lately. Whoever needs a projection
//! that is gone computes it again.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use super::projection::Projection;

/// Share that a group may have at least, as long as there is room.
const SHARE_MIN: usize = 64 << 10;

/// A projection that is there or being computed by whoever holds the lock.
pub(super) type Slot = Arc<Mutex<Option<Arc<Projection>>>>;

/// What one group keeps.
pub(super) struct Kept {
    id: u64,
    room: Arc<Room>,
    /// Of the last block that the group got to; among the slots too.
    newest: ArcSwapOption<Projection>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slots: HashMap<u64, Slot>,
    /// Blocks with a projection and its bytes, in the order in which they were kept.
    order: VecDeque<(u64, usize)>,
    bytes: usize,
    /// Whether the room knows of the group.
    listed: bool,
}

/// What all groups of a hub keep.
pub(super) struct Room {
    limit: usize,
    bytes: AtomicUsize,
    groups: AtomicUsize,
    next_id: AtomicU64,
    turns: Mutex<Turns>,
}

/// Groups that keep something.
#[derive(Default)]
struct Turns {
    holders: BTreeMap<u64, Arc<Kept>>,
    /// Who gave up something last.
    last: u64,
}

impl Room {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Room {
            limit,
            bytes: AtomicUsize::new(0),
            groups: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            turns: Mutex::default(),
        })
    }

    /// For one more group; end it with [`Kept::leave`].
    pub fn join(self: &Arc<Self>) -> Arc<Kept> {
        self.groups.fetch_add(1, Ordering::Relaxed);
        Arc::new(Kept {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            room: self.clone(),
            newest: ArcSwapOption::empty(),
            state: Mutex::default(),
        })
    }

    /// Bytes that all groups keep now.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn share(&self) -> usize {
        (self.limit / self.groups.load(Ordering::Relaxed).max(1)).max(SHARE_MIN)
    }

    fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) > self.limit
    }

    /// Lets groups give up something until the rest fits. The last projection of all stays, whatever its size.
    /// One block of one of them is spared while there is anything else.
    fn shrink(&self, turns: &mut Turns, spared: (u64, u64)) {
        while self.is_full() {
            let behind = turns.holders.range((Bound::Excluded(turns.last), Bound::Unbounded)).next();
            let Some((&id, holder)) = behind.or_else(|| turns.holders.first_key_value()) else { return };
            let alone = turns.holders.len() == 1;
            let mut state = holder.state.lock();
            let spared = (id == spared.0).then_some(spared.1);
            if state.order.len() <= 1 && alone {
                return;
            }
            if state.order.len() == 1 && spared.is_some() {
                turns.last = id;
                continue; // somebody else has something
            }
            let newest = || state.order.iter().position(|(block, _)| Some(*block) != spared);
            let place = holder.oldest(&state, spared).or_else(newest).unwrap_or(0);
            self.bytes.fetch_sub(holder.give_up(&mut state, place), Ordering::Relaxed);
            turns.last = id;
            if state.order.is_empty() {
                state.listed = false;
                drop(state);
                turns.holders.remove(&id);
            }
        }
    }
}

impl Kept {
    /// Without a lock, if it is the newest.
    pub fn newest(&self, block: u64) -> Option<Arc<Projection>> {
        self.newest.load().as_ref().filter(|newest| newest.block == block).cloned()
    }

    /// Where the projection of the block is, or is to be put.
    pub fn slot(&self, block: u64) -> Slot {
        self.state.lock().slots.entry(block).or_default().clone()
    }

    /// There is none after all.
    pub fn forget(&self, block: u64) {
        self.state.lock().slots.remove(&block);
    }

    /// Blocks of which there is a projection.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.state.lock().slots.len()
    }

    /// A projection was put into its slot.
    pub fn keep(self: &Arc<Self>, projection: &Arc<Projection>) {
        let room = &self.room;
        let share = room.share();
        let bytes = projection.footprint();
        let mut state = self.state.lock();
        if self.newest.load().as_ref().is_none_or(|newest| newest.block < projection.block) {
            self.newest.store(Some(projection.clone()));
        }
        state.order.push_back((projection.block, bytes));
        state.bytes += bytes;
        room.bytes.fetch_add(bytes, Ordering::Relaxed);
        while state.bytes > share
            && let Some(place) = self.oldest(&state, Some(projection.block))
        {
            room.bytes.fetch_sub(self.give_up(&mut state, place), Ordering::Relaxed);
        }
        let lists = !std::mem::replace(&mut state.listed, true);
        drop(state);
        if lists || room.is_full() {
            let mut turns = room.turns.lock();
            if lists {
                turns.holders.insert(self.id, self.clone());
            }
            room.shrink(&mut turns, (self.id, projection.block));
        }
    }

    /// Where in the order that is which was kept first, apart from the newest block's and `spared`.
    fn oldest(&self, state: &State, spared: Option<u64>) -> Option<usize> {
        let newest = self.newest.load().as_ref().map(|newest| newest.block);
        state.order.iter().position(|(block, _)| Some(*block) != newest && Some(*block) != spared)
    }

    /// Gives up what is there in the order; its bytes.
    fn give_up(&self, state: &mut State, place: usize) -> usize {
        let Some((block, bytes)) = state.order.remove(place) else { return 0 };
        if self.newest.load().as_ref().is_some_and(|newest| newest.block == block) {
            self.newest.store(None);
        }
        state.slots.remove(&block);
        state.bytes -= bytes;
        bytes
    }

    /// The group is gone.
    pub fn leave(&self) {
        self.room.groups.fetch_sub(1, Ordering::Relaxed);
        let mut turns = self.room.turns.lock();
        turns.holders.remove(&self.id);
        drop(turns);
        let mut state = self.state.lock();
        self.room.bytes.fetch_sub(std::mem::take(&mut state.bytes), Ordering::Relaxed);
        state.order.clear();
    }
}

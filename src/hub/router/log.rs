//! What the router found for one group.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::feed::Marks;

/// Blocks that a group remembers.
const BLOCKS: usize = if cfg!(test) { 4 } else { 128 };
/// Events that it remembers, all blocks together; a block with more is looked at as a whole.
const HITS: usize = if cfg!(test) { 8 } else { 1024 };
const HITS_OF_A_BLOCK: u32 = if cfg!(test) { 5 } else { 512 };
/// Any event of the block may concern the group.
const WHOLE: u32 = u32::MAX;

/// How far the router has come.
#[derive(Debug, Default)]
pub(super) struct Published {
    marks: RwLock<Marks>,
    /// The durable mark when who routes last looked.
    goal: AtomicU64,
    pub alive: AtomicBool,
}

impl Published {
    /// Everything below `marks.next_block` is routed. The tail does not go back when a block completes nothing.
    pub fn set(&self, marks: Marks) {
        let mut published = self.marks.write();
        let tail = match published.tail.lineage == marks.tail.lineage && published.tail.order() > marks.tail.order() {
            true => published.tail,
            false => marks.tail,
        };
        *published = Marks { next_block: marks.next_block, tail };
    }

    /// What lies below this durable mark is to be routed.
    pub fn begin(&self, next_block: u64) {
        self.goal.store(next_block, Ordering::Release);
    }

    fn get(&self) -> Marks {
        *self.marks.read()
    }
}

/// What comes next for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) enum Next {
    /// The router does not know: read on.
    Unknown,
    /// No block before this one concerns the group.
    Block(u64),
    /// No block before `next_block` does, and `tail` was the tail there.
    Tail(Marks),
    /// The same, and there are blocks behind it that the router has not come to yet.
    Lagging(Marks),
    /// The stream is ahead of the router.
    Ahead,
}

/// One group's place in the router.
#[derive(Debug)]
pub(in crate::hub) struct Route {
    slot: AtomicU32,
    log: Mutex<Log>,
    signal: watch::Sender<()>,
}

#[derive(Debug)]
struct Log {
    /// How far the group's router has come. Read under the same lock: what it has published before is entered already.
    published: Arc<Published>,
    /// Blocks below this are not known.
    from: u64,
    concerns: VecDeque<Concern>,
    /// Numbers of index entries, block after block.
    hits: VecDeque<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Concern {
    block: u64,
    /// How many of `hits` are its own; or [`WHOLE`].
    count: u32,
}

impl Concern {
    fn hits(self) -> usize {
        if self.count == WHOLE { 0 } else { self.count as usize }
    }
}

impl Route {
    /// Of a group that has not been admitted yet: nothing is known for it.
    pub(super) fn new(published: &Arc<Published>) -> Self {
        let log = Mutex::new(Log::new(published.clone(), u64::MAX));
        Route { slot: AtomicU32::default(), log, signal: watch::Sender::new(()) }
    }

    /// The group is routed from this block on.
    pub(super) fn admit(&self, slot: u32, from: u64) {
        self.slot.store(slot, Ordering::Relaxed);
        self.lose(from);
    }

    /// Number of the member; meaningless before it is admitted.
    pub(super) fn slot(&self) -> u32 {
        self.slot.load(Ordering::Relaxed)
    }

    /// Wakes whenever a block concerns the group.
    pub fn concerned(&self) -> watch::Receiver<()> {
        self.signal.subscribe()
    }

    pub(super) fn signal(&self) {
        self.signal.send_replace(());
    }

    /// What comes next for a stream that has taken in every block below `block`.
    pub fn next(&self, block: u64) -> Next {
        let log = self.log.lock();
        if !log.published.alive.load(Ordering::Acquire) {
            return Next::Unknown;
        }
        let marks = log.published.get();
        if block > marks.next_block {
            return Next::Ahead;
        }
        if block < log.from {
            return Next::Unknown;
        }
        match log.concerns.get(log.concerns.partition_point(|concern| concern.block < block)) {
            Some(concern) if concern.block < marks.next_block => Next::Block(concern.block),
            _ if marks.next_block < log.published.goal.load(Ordering::Acquire) => Next::Lagging(marks),
            _ => Next::Tail(marks),
        }
    }

    /// The entries of a block that concern the group, ascending; `None`: not known, or any of them.
    pub fn hits(&self, block: u64) -> Option<Vec<u32>> {
        let log = self.log.lock();
        if block >= log.published.get().next_block || block < log.from {
            return None;
        }
        let at = log.concerns.partition_point(|concern| concern.block < block);
        match log.concerns.get(at) {
            Some(concern) if concern.block == block => {
                if concern.count == WHOLE {
                    return None;
                }
                let skipped: usize = log.concerns.iter().take(at).map(|concern| concern.hits()).sum();
                Some(log.hits.range(skipped..skipped + concern.hits()).copied().collect())
            }
            _ => Some(Vec::new()),
        }
    }

    /// The block must be looked at; whether that is news. Blocks come in ascending order.
    pub(super) fn touch(&self, block: u64) -> bool {
        self.log.lock().touch(block)
    }

    /// An entry of the block, in ascending order, concerns the group; whether the block is news.
    pub(super) fn hit(&self, block: u64, entry: u32) -> bool {
        let mut log = self.log.lock();
        let news = log.touch(block);
        let Some(concern) = log.concerns.back().copied() else { return news };
        if concern.count == WHOLE || concern.count > 0 && log.hits.back() == Some(&entry) {
            return news;
        }
        if concern.count == HITS_OF_A_BLOCK {
            log.whole();
            return news;
        }
        log.hits.push_back(entry);
        if let Some(concern) = log.concerns.back_mut() {
            concern.count += 1;
        }
        while log.hits.len() > HITS {
            log.forget();
        }
        news
    }

    /// Any entry may concern the group; whether the block is news.
    pub(super) fn whole(&self, block: u64) -> bool {
        let mut log = self.log.lock();
        let news = log.touch(block);
        log.whole();
        news
    }

    /// Nothing is known of the blocks below `from`.
    pub(super) fn lose(&self, from: u64) {
        let mut log = self.log.lock();
        *log = Log::new(log.published.clone(), from);
    }

    /// The group is another router's from now on, and nothing is known for it before that one admits it.
    pub(super) fn leave_for(&self, published: &Arc<Published>) {
        *self.log.lock() = Log::new(published.clone(), u64::MAX);
    }
}

impl Log {
    fn new(published: Arc<Published>, from: u64) -> Self {
        Log { published, from, concerns: VecDeque::new(), hits: VecDeque::new() }
    }

    fn touch(&mut self, block: u64) -> bool {
        if self.concerns.back().is_some_and(|last| last.block == block) {
            return false;
        }
        if self.concerns.len() == BLOCKS {
            self.forget();
        }
        self.concerns.push_back(Concern { block, count: 0 });
        true
    }

    fn whole(&mut self) {
        if let Some(concern) = self.concerns.back_mut() {
            let own = concern.hits();
            concern.count = WHOLE;
            self.hits.truncate(self.hits.len() - own);
        }
    }

    fn forget(&mut self) {
        if let Some(oldest) = self.concerns.pop_front() {
            self.from = oldest.block + 1;
            self.hits.drain(..oldest.hits());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Position;

    #[test]
    fn nothing_is_known_between_two_routers() {
        let routers = [Arc::new(Published::default()), Arc::new(Published::default())];
        for published in &routers {
            published.alive.store(true, Ordering::Release);
            published.set(Marks { next_block: 10, tail: Position::default() });
        }
        let route = Route::new(&routers[0]);
        route.admit(0, 0);
        route.hit(7, 1);
        assert_eq!((route.next(3), route.hits(7)), (Next::Block(7), Some(vec![1])));
        route.leave_for(&routers[1]);
        assert_eq!((route.next(3), route.hits(3)), (Next::Unknown, None));
        route.admit(5, 8);
        assert_eq!((route.next(7), route.hits(7)), (Next::Unknown, None));
        assert_eq!(route.next(8), Next::Tail(Marks { next_block: 10, tail: Position::default() }));
    }

    #[test]
    fn a_router_that_has_not_come_to_the_tail_says_so() {
        let published = Arc::new(Published::default());
        published.alive.store(true, Ordering::Release);
        let route = Route::new(&published);
        assert_eq!(route.next(0), Next::Unknown, "not admitted yet");
        route.admit(0, 0);
        published.begin(10);
        published.set(Marks { next_block: 5, tail: Position::default() });
        assert_eq!(route.next(3), Next::Lagging(Marks { next_block: 5, tail: Position::default() }));
        assert_eq!(route.next(6), Next::Ahead);
        published.set(Marks { next_block: 10, tail: Position::default() });
        assert_eq!(route.next(3), Next::Tail(Marks { next_block: 10, tail: Position::default() }));
    }
}

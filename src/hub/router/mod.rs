//! One pass over each block finds the groups that it concerns, so that only their streams wake and only their events are
//! looked at. Everybody else learns from [`Route::next`] that there is nothing, and moves on by timer.
//!
//! A pass runs behind the durable mark; ingest never waits for it. What it leaves with a group is bounded: the numbers of
//! the last blocks that concern it, and which of their events do. A stream that is further behind than that, or that
//! opened before the router reached its place, does not need the router: it reads and projects every block itself, and
//! comes to the same result.
//!
//! [`Routers`] says which groups are routed together.

mod index;
mod log;
mod patience;
mod table;
mod tiers;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use parking_lot::Mutex;

pub(super) use log::{Next, Route};
pub(super) use tiers::{Routers, Seat};

use self::{index::Index, log::Published};
use super::lag::Timeline;
use crate::{
    feed::{Cursor, Feed, Fetched, Marks},
    model::Relation,
    selection::Selection,
    wire::block::Block,
};

#[derive(Default)]
pub(super) struct Router {
    started: AtomicBool,
    index: Mutex<Index>,
    /// What the index is to be told when no pass holds it: nobody waits for a pass.
    requests: Mutex<Vec<Request>>,
    members: AtomicUsize,
    published: Arc<Published>,
}

enum Request {
    Join(Arc<Route>, Arc<Selection>),
    Leave(Arc<Route>),
}

/// What is below the mark.
enum Ahead {
    /// Nothing.
    Done,
    /// A block, which is routed now.
    Routed,
    /// A block that is not in memory.
    Cold(Cursor),
}

impl Router {
    /// A new member. Blocks that were routed before it is admitted are not known for it.
    pub fn join(&self, selection: &Arc<Selection>) -> Arc<Route> {
        let route = Arc::new(Route::new(&self.published));
        self.members.fetch_add(1, Ordering::Relaxed);
        self.request(Request::Join(route.clone(), selection.clone()));
        route
    }

    pub fn leave(&self, route: &Arc<Route>) {
        self.members.fetch_sub(1, Ordering::Relaxed);
        self.request(Request::Leave(route.clone()));
    }

    fn request(&self, request: Request) {
        self.requests.lock().push(request);
        if let Some(mut index) = self.index.try_lock() {
            self.admit(&mut index);
        }
    }

    fn admit(&self, index: &mut Index) {
        let requests = std::mem::take(&mut *self.requests.lock());
        for request in requests {
            match request {
                Request::Join(route, selection) => index.join(&route, &selection),
                Request::Leave(route) => index.leave(&route),
            }
        }
    }

    /// The member is `other`'s from now on. What a pass has entered and not yet published is forgotten with the rest; a pass over a
    /// block is waited for.
    fn hand_over(&self, route: &Arc<Route>, selection: &Arc<Selection>, other: &Router) {
        let mut index = self.index.lock();
        self.admit(&mut index);
        index.leave(route);
        route.leave_for(&other.published);
        drop(index);
        self.members.fetch_sub(1, Ordering::Relaxed);
        other.members.fetch_add(1, Ordering::Relaxed);
        other.request(Request::Join(route.clone(), selection.clone()));
        route.signal();
    }

    /// Relation versions that the router has met since the last call, and that somebody selects with a predicate.
    fn met(&self) -> Vec<Arc<Relation>> {
        std::mem::take(&mut self.index.lock().met)
    }

    /// Routes the next block below the mark, if it is in memory, or else none of them: what is not routed is not known for
    /// anybody. Whether there may be more.
    pub fn proceed(&self, feed: &dyn Feed, marks: Marks, timeline: &Timeline) -> bool {
        match self.step(feed, marks, Some(timeline)) {
            Ahead::Done => false,
            Ahead::Routed => true,
            Ahead::Cold(_) => {
                self.lose(marks);
                false
            }
        }
    }

    #[cfg(test)]
    pub fn advance(&self, feed: &dyn Feed, marks: Marks, timeline: &Timeline) {
        self.published.begin(marks.next_block);
        while self.proceed(feed, marks, timeline) {}
    }

    fn step(&self, feed: &dyn Feed, marks: Marks, timeline: Option<&Timeline>) -> Ahead {
        let mut index = self.index.lock();
        self.admit(&mut index);
        if index.is_empty() {
            index.next = index.next.max(marks.next_block);
        }
        if index.next >= marks.next_block {
            drop(index);
            self.published.set(marks);
            return Ahead::Done;
        }
        let mut cursor = Cursor { block: index.next, after: marks.tail };
        drop(index);
        match feed.hot(&mut cursor) {
            Some(Fetched::Block(block)) => {
                self.route(&block, feed, timeline);
                Ahead::Routed
            }
            _ => Ahead::Cold(cursor),
        }
    }

    fn route(&self, block: &Block, feed: &dyn Feed, timeline: Option<&Timeline>) {
        let mut index = self.index.lock();
        let concerned = index.route(block, feed);
        index.next = block.number + 1;
        if timeline.is_none() {
            // Who evaluates keeps what it has.
            index.met.clear();
        }
        drop(index);
        if let Some(timeline) = timeline.filter(|_| block.commit_time != 0) {
            timeline.record(block.up_to, block.commit_time);
        }
        self.published.set(Marks { next_block: block.number + 1, tail: block.up_to });
        concerned.iter().for_each(|route| route.signal());
    }

    #[cfg(test)]
    pub fn evaluated(&self) -> u64 {
        self.index.lock().evaluated
    }

    #[cfg(test)]
    pub fn matched(&self) -> u64 {
        self.index.lock().matched
    }

    /// Nothing is known of the blocks up to the mark.
    fn lose(&self, marks: Marks) {
        let mut index = self.index.lock();
        self.admit(&mut index);
        let routes = index.lose(marks.next_block);
        drop(index);
        self.published.set(marks);
        routes.iter().for_each(|route| route.signal());
    }

    fn wake_everybody(&self) {
        let mut index = self.index.lock();
        self.admit(&mut index);
        let routes = index.routes();
        drop(index);
        routes.iter().for_each(|route| route.signal());
    }
}

//! One pass over each block finds the groups that it concerns, so that only their streams wake and only their events are
//! looked at. Everybody else learns from [`Route::next`] that there is nothing, and moves on by timer.
//!
//! The pass runs in a task of its own behind the durable mark, over blocks in memory; ingest never waits for it. What it
//! leaves with a group is bounded: the numbers of the last blocks that concern it, and which of their events do. A
//! stream that is further behind than that, or that opened before the router reached its place, does not need the
//! router: it reads and projects every block itself, and comes to the same result.

mod index;
mod log;
mod table;

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;

pub(super) use log::{Next, Route};

use self::{index::Index, log::Published};
use super::{group::Groups, lag::Timeline};
use crate::{
    feed::{Cursor, Feed, Fetched, Marks},
    selection::Selection,
};

#[derive(Default)]
pub(super) struct Router {
    started: AtomicBool,
    index: Mutex<Index>,
    published: Arc<Published>,
}

impl Router {
    /// A new member. Blocks that were routed before it joined are not known for it.
    pub fn join(&self, selection: &Arc<Selection>) -> Arc<Route> {
        self.index.lock().join(selection, &self.published)
    }

    pub fn leave(&self, route: &Route) {
        self.index.lock().leave(route.slot);
    }

    /// Starts the task, once; within the runtime. It ends with the hub.
    pub fn start(groups: &Arc<Groups>, feed: &Arc<dyn Feed>) {
        let router = &groups.router;
        if router.started.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut marks = feed.marks();
        router.lose(*marks.borrow_and_update());
        router.published.alive.store(true, Ordering::Release);
        let running = Running(Arc::downgrade(groups));
        let feed = Arc::downgrade(feed);
        tokio::spawn(async move {
            let mut lineage = marks.borrow().tail.lineage;
            while marks.changed().await.is_ok() {
                let (Some(groups), Some(feed)) = (running.0.upgrade(), feed.upgrade()) else { break };
                let marks = *marks.borrow_and_update();
                groups.router.advance(&*feed, marks, &groups.timeline);
                if std::mem::replace(&mut lineage, marks.tail.lineage) != marks.tail.lineage {
                    groups.router.index.lock().routes().iter().for_each(|route| route.signal());
                }
            }
        });
    }

    /// Routes every block below the mark.
    pub fn advance(&self, feed: &dyn Feed, marks: Marks, timeline: &Timeline) {
        loop {
            let mut index = self.index.lock();
            if index.next >= marks.next_block {
                drop(index);
                self.published.set(marks);
                return;
            }
            if index.is_empty() {
                index.next = marks.next_block;
                continue;
            }
            let mut cursor = Cursor { block: index.next, after: marks.tail };
            let Some(Fetched::Block(block)) = feed.hot(&mut cursor) else {
                drop(index);
                self.lose(marks);
                return;
            };
            let concerned = index.route(&block, feed);
            index.next = block.number + 1;
            drop(index);
            if block.commit_time != 0 {
                timeline.record(block.up_to, block.commit_time);
            }
            self.published.set(Marks { next_block: block.number + 1, tail: block.up_to });
            concerned.iter().for_each(|route| route.signal());
        }
    }

    #[cfg(test)]
    pub fn evaluated(&self) -> u64 {
        self.index.lock().evaluated
    }

    /// Nothing is known of the blocks up to the mark.
    fn lose(&self, marks: Marks) {
        let routes = self.index.lock().lose(marks.next_block);
        self.published.set(marks);
        routes.iter().for_each(|route| route.signal());
    }
}

/// Without the task streams look after themselves.
struct Running(Weak<Groups>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(groups) = self.0.upgrade() {
            groups.router.published.alive.store(false, Ordering::Release);
            let routes = groups.router.index.lock().routes();
            routes.iter().for_each(|route| route.signal());
        }
    }
}

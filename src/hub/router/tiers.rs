//! Who is routed together. Groups without a residual predicate, one that no equality makes findable, share the router that
//! runs beside the streams: what it does for a change does not depend on how many groups there are. An equality that many
//! predicates share finds nothing either: those beyond the first [`ALIKE`] of it count as residual. A residual predicate
//! costs an evaluation for each change of its table, and ten thousand of them cost more than everything else in the hub
//! together, so they are evaluated in threads that yield to everything else: to ingest above all, because what is not
//! taken in is WAL that the primary has to keep ([`patience`](super::patience)). The first [`KEEPING_UP`] share a thread that keeps up as long as there
//! is CPU time to be had; further ones are spread over threads that come last, one for each core, which read what has left the
//! memory from the journal. So predicates never delay changes, nor the many the few: only the streams that have them lag.
//! Groups with the same predicate, which differ in columns or in their format, go together, so that it is evaluated once.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    io,
    sync::{Arc, Weak, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::watch};

use super::{Ahead, Route, Router, patience::Patience};
use crate::{
    feed::{Feed, Fetched, Marks},
    hub::group::Groups,
    model::Relation,
    selection::{Key, Selection},
};

/// Residual predicates that share the thread that keeps up.
const KEEPING_UP: usize = if cfg!(test) { 2 } else { 128 };
/// Predicates that are found by one key before further ones count as residual: each is evaluated for every change with it.
const ALIKE: usize = if cfg!(test) { 8 } else { 64 };
/// Blocks are routed, and groups are settled, beside the streams for so long at a time.
const TURN: Duration = Duration::from_millis(1);
const FEW: Place = Place { nice: 10, share: 0.25 };
const MANY: Place = Place { nice: 19, share: 0.02 };

/// Of a thread that evaluates.
#[derive(Clone, Copy)]
struct Place {
    /// 0 to 19 ([setpriority(2)](https://man7.org/linux/man-pages/man2/setpriority.2.html)).
    nice: i32,
    /// Of a core, while others want it.
    share: f64,
}

pub(in crate::hub) struct Routers {
    /// Of the groups without residual predicates.
    pub indexed: Arc<Router>,
    /// Of the first residual predicates.
    pub keeping_up: Arc<Router>,
    /// Of the others.
    pub lagging: Vec<Arc<Router>>,
    homes: Mutex<Homes>,
}

/// Who is where.
#[derive(Default)]
struct Homes {
    /// Where residual predicates are evaluated.
    by_predicate: HashMap<Arc<str>, Home>,
    /// Predicates whose router is the one that keeps up.
    keeping_up: usize,
    /// Predicates that a key finds in each table that is known.
    found: HashMap<Arc<str>, Found>,
    /// How many predicates are found by the keys with this hash. There may be as many as predicates times tables.
    alike: HashMap<u64, u32>,
    hasher: RandomState,
}

/// One predicate.
#[derive(Default)]
struct Found {
    groups: usize,
    /// Hashes of the keys by which it is found, in order.
    keys: Vec<u64>,
}

struct Home {
    router: Arc<Router>,
    groups: usize,
}

/// A group's place, to be given back.
pub(in crate::hub) struct Seat {
    pub router: Arc<Router>,
    taken: Taken,
}

enum Taken {
    Indexed(Vec<Arc<str>>),
    Residual(Arc<str>),
}

impl Default for Routers {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let lagging = (0..cores).map(|_| Arc::default()).collect();
        Routers { indexed: Arc::default(), keeping_up: Arc::default(), lagging, homes: Mutex::default() }
    }
}

impl Routers {
    /// The place of a new group that selects this, of tables like these. [`Routers::leave`] is to follow when the group goes.
    pub fn seat<'a>(&self, selection: &Selection, relations: impl IntoIterator<Item = &'a Relation>) -> Seat {
        let found = selection.found_by(relations);
        let mut homes = self.homes.lock();
        if let Some(predicate) = homes.residual(&found) {
            let router = self.home(&mut homes, &predicate);
            return Seat { router, taken: Taken::Residual(predicate) };
        }
        let mut predicates = Vec::new();
        for (predicate, key) in found {
            key.into_iter().for_each(|key| homes.take(&mut predicates, &predicate, &key));
        }
        Seat { router: self.indexed.clone(), taken: Taken::Indexed(predicates) }
    }

    fn home(&self, homes: &mut Homes, predicate: &Arc<str>) -> Arc<Router> {
        if let Some(home) = homes.by_predicate.get_mut(predicate) {
            home.groups += 1;
            return home.router.clone();
        }
        let lagging = self.lagging.iter().min_by_key(|router| router.members.load(Ordering::Relaxed));
        let router = lagging.filter(|_| homes.keeping_up >= KEEPING_UP).unwrap_or(&self.keeping_up).clone();
        homes.keeping_up += usize::from(Arc::ptr_eq(&router, &self.keeping_up));
        homes.by_predicate.insert(predicate.clone(), Home { router: router.clone(), groups: 1 });
        router
    }

    /// The router beside the streams has met a relation version, or a group joins that did not know it. Where a group's predicate finds nothing there, as can be told
    /// only now, the group is handed over to those who evaluate.
    pub fn settle(&self, seat: &mut Seat, route: &Arc<Route>, selection: &Arc<Selection>, relation: &Relation) {
        let Taken::Indexed(predicates) = &mut seat.taken else { return };
        let Some((predicate, key)) = selection.found_in(relation) else { return };
        let mut homes = self.homes.lock();
        if let Some(key) = key.filter(|key| !homes.is_crowded(&predicate, key)) {
            homes.take(predicates, &predicate, &key);
            return;
        }
        predicates.drain(..).for_each(|predicate| homes.forget(&predicate));
        let router = self.home(&mut homes, &predicate);
        drop(homes);
        seat.taken = Taken::Residual(predicate);
        std::mem::replace(&mut seat.router, router.clone()).hand_over(route, selection, &router);
    }

    /// A group is gone.
    pub fn leave(&self, seat: &Seat) {
        let mut homes = self.homes.lock();
        match &seat.taken {
            Taken::Indexed(predicates) => predicates.iter().for_each(|predicate| homes.forget(predicate)),
            Taken::Residual(predicate) => {
                let Some(home) = homes.by_predicate.get_mut(predicate) else { return };
                home.groups -= 1;
                if home.groups == 0 {
                    let kept_up = Arc::ptr_eq(&home.router, &self.keeping_up);
                    homes.keeping_up -= usize::from(kept_up);
                    homes.by_predicate.remove(predicate);
                }
            }
        }
    }

    /// Starts what groups have joined and nobody has started; within the runtime. It ends with the hub.
    pub fn start(groups: &Arc<Groups>, feed: &Arc<dyn Feed>) {
        let routers = &groups.routers;
        if let Some(running) = Running::begin(&routers.indexed, groups, feed) {
            tokio::spawn(running.beside_streams());
        }
        let evaluators =
            std::iter::once((&routers.keeping_up, FEW)).chain(routers.lagging.iter().map(|router| (router, MANY)));
        for (router, place) in evaluators.filter(|(router, _)| router.members.load(Ordering::Relaxed) > 0) {
            let Some(running) = Running::begin(router, groups, feed) else { continue };
            let runtime = Handle::current();
            let thread = thread::Builder::new().name("predicates".to_owned());
            if let Err(error) = thread.spawn(move || running.evaluate(&runtime, place)) {
                tracing::error!(%error, "no thread for predicates: streams evaluate their own");
            }
        }
    }
}

impl Homes {
    /// The first predicate that no key finds, or one that finds too many others with it.
    fn residual(&self, found: &[(Arc<str>, Option<Key>)]) -> Option<Arc<str>> {
        let mut found = found.iter();
        let residual = found.find(|(predicate, key)| key.as_ref().is_none_or(|key| self.is_crowded(predicate, key)));
        residual.map(|(predicate, _)| predicate.clone())
    }

    /// Whether as many others are found by the key as may be.
    fn is_crowded(&self, predicate: &Arc<str>, key: &Key) -> bool {
        let key = self.hasher.hash_one(key);
        self.alike.get(&key).is_some_and(|alike| *alike as usize >= ALIKE)
            && self.found.get(predicate).is_none_or(|found| found.keys.binary_search(&key).is_err())
    }

    /// A predicate of a group that has these is found by the key.
    fn take(&mut self, of_group: &mut Vec<Arc<str>>, predicate: &Arc<str>, key: &Key) {
        let found = self.found.entry(predicate.clone()).or_default();
        if !of_group.contains(predicate) {
            of_group.push(predicate.clone());
            found.groups += 1;
        }
        let key = self.hasher.hash_one(key);
        if let Err(place) = found.keys.binary_search(&key) {
            found.keys.insert(place, key);
            *self.alike.entry(key).or_default() += 1;
        }
    }

    /// One group less has the predicate.
    fn forget(&mut self, predicate: &Arc<str>) {
        let Some(found) = self.found.get_mut(predicate) else { return };
        found.groups -= 1;
        if found.groups > 0 {
            return;
        }
        for key in self.found.remove(predicate).unwrap_or_default().keys {
            if let Some(alike) = self.alike.get_mut(&key) {
                *alike -= 1;
                if *alike == 0 {
                    self.alike.remove(&key);
                }
            }
        }
    }
}

/// When it began.
struct Turn(Instant);

impl Turn {
    /// Lets others have the thread once it is over.
    async fn end(&mut self) {
        if self.0.elapsed() >= TURN {
            tokio::task::yield_now().await;
            self.0 = Instant::now();
        }
    }
}

/// A router at work. Without it streams look after themselves.
struct Running {
    router: Arc<Router>,
    groups: Weak<Groups>,
    feed: Weak<dyn Feed>,
    marks: watch::Receiver<Marks>,
}

impl Running {
    /// `None`: it runs already.
    fn begin(router: &Arc<Router>, groups: &Arc<Groups>, feed: &Arc<dyn Feed>) -> Option<Running> {
        if router.started.swap(true, Ordering::AcqRel) {
            return None;
        }
        let mut marks = feed.marks();
        router.lose(*marks.borrow_and_update());
        router.published.alive.store(true, Ordering::Release);
        Some(Running { router: router.clone(), groups: Arc::downgrade(groups), feed: Arc::downgrade(feed), marks })
    }

    async fn beside_streams(mut self) {
        let mut lineage = self.marks.borrow().tail.lineage;
        while self.marks.changed().await.is_ok() {
            let (Some(groups), Some(feed)) = (self.groups.upgrade(), self.feed.upgrade()) else { break };
            let marks = *self.marks.borrow_and_update();
            self.router.published.begin(marks.next_block);
            let mut turn = Turn(Instant::now());
            while self.router.proceed(&*feed, marks, &groups.timeline) {
                for relation in self.router.met() {
                    for group in groups.all() {
                        groups.settle(&group, &relation);
                        turn.end().await;
                    }
                    Routers::start(&groups, &feed);
                }
                turn.end().await;
            }
            if std::mem::replace(&mut lineage, marks.tail.lineage) != marks.tail.lineage {
                self.router.wake_everybody();
            }
        }
    }

    fn evaluate(mut self, runtime: &Handle, place: Place) {
        if let Err(error) = rustix::process::nice(place.nice).map_err(io::Error::from) {
            tracing::warn!(%error, "predicates are evaluated at the priority of everything else");
        }
        let mut patience = Patience::new(place.share);
        let mut lineage = self.marks.borrow().tail.lineage;
        while runtime.block_on(self.marks.changed()).is_ok() {
            loop {
                // Once for each block: the hub may go in the meantime, and so may the lineage and the mark.
                let Some(feed) = self.feed.upgrade().filter(|_| self.groups.strong_count() > 0) else { return };
                let marks = *self.marks.borrow();
                self.router.published.begin(marks.next_block);
                if std::mem::replace(&mut lineage, marks.tail.lineage) != marks.tail.lineage {
                    self.router.wake_everybody();
                }
                let began = Instant::now();
                let step = self.router.step(&*feed, marks, None);
                patience.give_way(began.elapsed());
                let mut cursor = match step {
                    Ahead::Done => break,
                    Ahead::Routed => continue,
                    Ahead::Cold(cursor) => cursor,
                };
                match runtime.block_on(feed.fetch(&mut cursor)) {
                    Ok(Fetched::Block(block)) => {
                        let began = Instant::now();
                        self.router.route(&block, &*feed, None);
                        patience.give_way(began.elapsed());
                    }
                    Ok(Fetched::AtTail) => break,
                    // Whoever needs it reads it and finds out.
                    Err(_) => self.router.lose(marks),
                }
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.router.published.alive.store(false, Ordering::Release);
        self.router.wake_everybody();
    }
}

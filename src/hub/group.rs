//! Streams that select the same share a [`Group`], and the group computes what they see of a block once, when the first of
//! them gets there. What it keeps is bounded for the whole hub, whatever the number of groups.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};

use super::{
    Error, RowFormat,
    kept::{Kept, Room},
    lag::Timeline,
    projection::{Cut, Plans, Projection},
    projector::project,
    router::{Route, Routers, Seat},
};
use crate::{
    feed::Feed,
    metrics,
    model::{Relation, RelationId},
    selection::{RelationPlan, Selection},
    wire::{block::Block, encode, rows::Pick},
};

/// One relation version under one selection.
#[derive(Debug)]
pub(super) struct Plan {
    pub relation: Arc<Relation>,
    pub rules: RelationPlan,
    /// One flag for each column, in order: the selected ones.
    pub columns: Vec<bool>,
    /// What the predicate reads.
    pub pick: Pick,
    /// The framed `relation` event with the selected columns.
    pub event: Bytes,
}

impl Plan {
    pub fn new(relation: Arc<Relation>, selection: &Selection) -> Result<Self, Error> {
        let rules = selection.relation(&relation)?;
        let columns = rules.columns.clone().unwrap_or_else(|| vec![true; relation.columns.len()]);
        let read = rules.predicate.iter().flat_map(|predicate| predicate.compiled().columns());
        let pick = Pick::of(read);
        let mut event = BytesMut::new();
        encode::relation_encode(&mut event, &relation, rules.columns.as_deref());
        Ok(Plan { relation, rules, columns, pick, event: event.freeze() })
    }
}

/// Everybody who selects the same in the same format.
pub(super) struct Group {
    pub selection: Arc<Selection>,
    /// `None` for groups that every block concerns.
    pub route: Option<Arc<Route>>,
    seat: Mutex<Seat>,
    pub format: RowFormat,
    feed: Arc<dyn Feed>,
    groups: Weak<Groups>,
    plans: RwLock<HashMap<RelationId, Arc<Plan>>>,
    kept: Arc<Kept>,
}

impl Group {
    /// What the group sees of a block.
    pub fn projection(&self, block: &Block) -> Result<Arc<Projection>, Error> {
        if let Some(newest) = self.kept.newest(block.number) {
            return Ok(newest);
        }
        let slot = self.kept.slot(block.number);
        let mut slot = slot.lock();
        if let Some(projection) = &*slot {
            return Ok(projection.clone());
        }
        let hits = self.route.as_ref().and_then(|route| route.hits(block.number));
        match project(block, &self.selection, self.format, self, Cut::default(), hits.as_deref()) {
            Ok(projection) => {
                metrics::add(metrics::PROJECTIONS, 1);
                if let Some(groups) = self.groups.upgrade().filter(|_| block.commit_time != 0) {
                    groups.timeline.record(block.up_to, block.commit_time);
                }
                let projection = Arc::new(projection);
                *slot = Some(projection.clone());
                self.kept.keep(&projection);
                Ok(projection)
            }
            Err(error) => {
                self.kept.forget(block.number);
                Err(error)
            }
        }
    }

    /// What one stream sees of a block of which it leaves something out; neither shared nor counted.
    pub fn own_projection(&self, block: &Block, cut: Cut) -> Result<Arc<Projection>, Error> {
        project(block, &self.selection, self.format, self, cut, None).map(Arc::new)
    }

    /// Where it is routed.
    #[cfg(test)]
    pub fn router(&self) -> Arc<super::router::Router> {
        self.seat.lock().router.clone()
    }

    /// Blocks of which the group keeps a projection.
    #[cfg(test)]
    pub fn kept(&self) -> usize {
        self.kept.len()
    }
}

impl Plans for Group {
    fn plan(&self, id: RelationId) -> Result<Arc<Plan>, Error> {
        if let Some(plan) = self.plans.read().get(&id) {
            return Ok(plan.clone());
        }
        let relation =
            self.feed.relation(id).ok_or_else(|| Error::internal(format!("relation version {} is not known", id.0)))?;
        let plan = Arc::new(Plan::new(relation, &self.selection)?);
        Ok(self.plans.write().entry(id).or_insert(plan).clone())
    }
}

/// All groups with at least one stream.
pub(super) struct Groups {
    /// For the projections that all groups together keep.
    pub room: Arc<Room>,
    map: Mutex<HashMap<(String, RowFormat), Weak<Group>>>,
    pub routers: Routers,
    /// When which position was committed, as far as streams came by.
    pub timeline: Timeline,
}

impl Groups {
    pub fn new(bytes: usize) -> Self {
        let room = Room::new(bytes);
        Groups { room, map: Mutex::default(), routers: Routers::default(), timeline: Timeline::default() }
    }

    /// The group of a selection. `unseen`: tables that the feed has not seen.
    pub fn join<'a>(
        self: &Arc<Self>,
        feed: &Arc<dyn Feed>,
        selection: Selection,
        format: RowFormat,
        unseen: impl IntoIterator<Item = &'a Relation>,
    ) -> Arc<Group> {
        let key = (selection.canonical().to_owned(), format);
        let existing = |map: &HashMap<_, Weak<Group>>| map.get(&key).and_then(Weak::upgrade);
        if let Some(group) = existing(&self.map.lock()) {
            return group;
        }
        let selection = Arc::new(selection);
        let seen = judged(feed, &selection);
        let unseen: Vec<&Relation> = unseen.into_iter().collect();
        let seat = self.routers.seat(&selection, seen.values().map(Arc::as_ref).chain(unseen));
        let mut map = self.map.lock();
        if let Some(group) = existing(&map) {
            self.routers.leave(&seat);
            return group;
        }
        let group = Arc::new(Group {
            route: (!selection.is_everything()).then(|| seat.router.join(&selection)),
            seat: Mutex::new(seat),
            selection,
            format,
            feed: feed.clone(),
            groups: Arc::downgrade(self),
            plans: RwLock::default(),
            kept: self.room.join(),
        });
        map.insert(key, Arc::downgrade(&group));
        drop(map);
        // Versions that came meanwhile may have been met already, when this group was not to be found.
        let is_seen = |relation: &Relation| seen.get(&relation.oid).is_some_and(|seen| seen.id == relation.id);
        for relation in judged(feed, &group.selection).values().filter(|relation| !is_seen(relation)) {
            self.settle(&group, relation);
        }
        group
    }
}

/// The newest version of each table that the feed knows, by OID, for a selection with predicates.
fn judged(feed: &Arc<dyn Feed>, selection: &Selection) -> HashMap<u32, Arc<Relation>> {
    match selection.has_predicates() {
        true => feed.relations().into_iter().map(|relation| (relation.oid, relation)).collect(),
        false => HashMap::new(),
    }
}

impl Groups {
    /// All of them.
    pub fn all(&self) -> Vec<Arc<Group>> {
        self.map.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// See [`Routers::settle`].
    pub fn settle(&self, group: &Group, relation: &Relation) {
        if let Some(route) = &group.route {
            self.routers.settle(&mut group.seat.lock(), route, &group.selection, relation);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kept.leave();
        let Some(groups) = self.groups.upgrade() else { return };
        let seat = self.seat.get_mut();
        if let Some(route) = &self.route {
            seat.router.leave(route);
        }
        groups.routers.leave(seat);
        let mut map = groups.map.lock();
        let key = (self.selection.canonical().to_owned(), self.format);
        if map.get(&key).is_some_and(|group| group.strong_count() == 0) {
            map.remove(&key);
        }
    }
}

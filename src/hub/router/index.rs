//! The members of the router, and the pass over one block.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{log::Route, table::Table};
use crate::{
    feed::Feed,
    hub::{frames, projection::head_of},
    model::{Operation, RelationId},
    selection::Selection,
    wire::{
        block::{Block, Entry, EntryKind, Index as BlockIndex, Span, SpanEnd},
        rows,
    },
};

/// A group, by its selection.
pub(super) struct Member {
    pub route: Arc<Route>,
    pub selection: Arc<Selection>,
}

/// Groups by number; numbers are used again.
#[derive(Default)]
pub(super) struct Members(Vec<Option<Member>>);

impl Members {
    pub fn get(&self, slot: u32) -> Option<&Member> {
        self.0.get(slot as usize)?.as_ref()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.0.iter().flatten()
    }
}

/// Members that have an event in the transaction that the next block continues; perhaps more.
enum Open {
    These(HashSet<u32>),
    Everyone,
}

pub(super) struct Index {
    /// The block to route next.
    pub next: u64,
    members: Members,
    free: Vec<u32>,
    tables: HashMap<RelationId, Table>,
    /// Members that select logical messages.
    messages: HashSet<u32>,
    open: Open,
    /// Predicates held against changes so far.
    pub evaluated: u64,
}

impl Default for Index {
    fn default() -> Self {
        Index {
            next: 0,
            members: Members::default(),
            free: Vec::new(),
            tables: HashMap::new(),
            messages: HashSet::new(),
            open: Open::Everyone,
            evaluated: 0,
        }
    }
}

impl Index {
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.members.0.len()
    }

    pub fn routes(&self) -> Vec<Arc<Route>> {
        self.members.iter().map(|member| member.route.clone()).collect()
    }

    pub fn join(&mut self, route: &Arc<Route>, selection: &Arc<Selection>) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.members.0.push(None);
            self.members.0.len() as u32 - 1
        });
        route.admit(slot, self.next);
        self.tables.values_mut().for_each(|table| table.join(slot, selection));
        if selection.selects_messages() {
            self.messages.insert(slot);
        }
        // Streams of the group may have begun the transaction that is open now.
        if let Open::These(open) = &mut self.open {
            open.insert(slot);
        }
        self.members.0[slot as usize] = Some(Member { route: route.clone(), selection: selection.clone() });
    }

    pub fn leave(&mut self, slot: u32) {
        let Some(member) = self.members.0.get_mut(slot as usize) else { return };
        if member.take().is_none() {
            return;
        }
        self.tables.values_mut().for_each(|table| table.leave(slot));
        self.messages.remove(&slot);
        if let Open::These(open) = &mut self.open {
            open.remove(&slot);
        }
        self.free.push(slot);
    }

    /// Goes on at `next` without having seen what comes before.
    pub fn lose(&mut self, next: u64) -> Vec<Arc<Route>> {
        self.next = next;
        self.open = Open::Everyone;
        let routes = self.routes();
        routes.iter().for_each(|route| route.lose(next));
        routes
    }

    /// Enters the block with each member that it concerns; whom to wake.
    pub fn route(&mut self, block: &Block, feed: &dyn Feed) -> Vec<Arc<Route>> {
        let Index { members, tables, messages, open, evaluated, .. } = self;
        let mut pass = Pass { block: block.number, members, touched: Vec::new(), evaluated: 0 };
        let Ok(index) = block.index() else {
            *open = Open::Everyone;
            return pass.everyone();
        };
        let head = head_of(index);
        if head.is_some_and(|head| head.ending != SpanEnd::Open) {
            match open {
                Open::These(slots) => slots.iter().for_each(|slot| pass.touch(*slot)),
                Open::Everyone => (0..members.0.len() as u32).for_each(|slot| pass.touch(slot)),
            }
        }
        let sources = Sources { payload: frames::payload(block.message()), index, feed };
        if sources.enter(&mut pass, tables, messages).is_none() {
            *open = Open::Everyone;
            return pass.everyone();
        }
        *evaluated += pass.evaluated;
        let middle = head.is_some_and(|head| head.ending == SpanEnd::Open);
        match open {
            Open::Everyone if middle => {}
            Open::These(slots) if middle => slots.extend(&pass.touched),
            open => *open = Open::These(pass.touched.iter().copied().collect()),
        }
        pass.concerned()
    }
}

/// What a pass found so far.
pub(super) struct Pass<'a> {
    pub block: u64,
    members: &'a Members,
    touched: Vec<u32>,
    pub evaluated: u64,
}

impl Pass<'_> {
    fn note(&mut self, slot: u32, note: impl FnOnce(&Route) -> bool) {
        if self.members.get(slot).is_some_and(|member| note(&member.route)) {
            self.touched.push(slot);
        }
    }

    /// The block is to be looked at, though perhaps no entry concerns the member.
    pub fn touch(&mut self, slot: u32) {
        let block = self.block;
        self.note(slot, |route| route.touch(block));
    }

    pub fn hit(&mut self, slot: u32, entry: u32) {
        let block = self.block;
        self.note(slot, |route| route.hit(block, entry));
    }

    pub fn whole(&mut self, slot: u32) {
        let block = self.block;
        self.note(slot, |route| route.whole(block));
    }

    fn concerned(self) -> Vec<Arc<Route>> {
        let concerned = self.touched.iter().filter_map(|slot| self.members.get(*slot));
        concerned.map(|member| member.route.clone()).collect()
    }

    fn everyone(self) -> Vec<Arc<Route>> {
        let block = self.block;
        let routes: Vec<_> = self.members.iter().map(|member| member.route.clone()).collect();
        routes.iter().for_each(|route| {
            route.whole(block);
        });
        routes
    }
}

struct Sources<'a> {
    payload: &'a [u8],
    index: &'a BlockIndex,
    feed: &'a dyn Feed,
}

impl Sources<'_> {
    /// `None`: the block cannot be read, and everybody is to find that out.
    fn enter(
        &self,
        pass: &mut Pass<'_>,
        tables: &mut HashMap<RelationId, Table>,
        messages: &HashSet<u32>,
    ) -> Option<()> {
        for (number, entry) in self.index.entries.iter().enumerate() {
            let number = number as u32;
            match entry.kind {
                EntryKind::Message if messages.is_empty() => {}
                EntryKind::Message => {
                    let prefix = self.prefix(entry.offset, entry.offset + entry.len)?;
                    wanting(pass, messages, prefix).into_iter().for_each(|slot| pass.hit(slot, number));
                }
                EntryKind::Truncate => {
                    for id in self.truncated(entry)? {
                        self.table(pass, tables, id)?.truncate(pass, number);
                    }
                }
                _ => {
                    let operation = operation(entry.kind)?;
                    let framed = self.framed(entry)?;
                    self.table(pass, tables, entry.relation)?.change(pass, number, operation, framed);
                }
            }
        }
        let outside = |span: &&Span| matches!(span.ending, SpanEnd::Message { .. });
        for span in self.index.spans.iter().filter(outside).filter(|_| !messages.is_empty()) {
            let prefix = self.prefix(span.start, span.end)?;
            wanting(pass, messages, prefix).into_iter().for_each(|slot| pass.whole(slot));
        }
        Some(())
    }

    fn table<'t>(
        &self,
        pass: &Pass<'_>,
        tables: &'t mut HashMap<RelationId, Table>,
        id: RelationId,
    ) -> Option<&'t mut Table> {
        if !tables.contains_key(&id) {
            let relation = self.feed.relation(id)?;
            // Older versions of a table are used by one block more at most.
            tables.retain(|_, table| table.relation.oid != relation.oid);
            let mut table = Table::new(relation);
            pass.members.iter().for_each(|member| table.join(member.route.slot(), &member.selection));
            tables.insert(id, table);
        }
        tables.get_mut(&id)
    }

    fn framed(&self, entry: &Entry) -> Option<&[u8]> {
        self.payload.get(entry.offset as usize..(entry.offset + entry.len) as usize)
    }

    fn truncated(&self, entry: &Entry) -> Option<Vec<RelationId>> {
        let mut ids = Vec::new();
        let collect = |id| {
            ids.push(id);
            false
        };
        rows::project_truncate(&mut bytes::BytesMut::new(), self.framed(entry)?, collect).ok()?;
        Some(ids)
    }

    fn prefix(&self, start: u32, end: u32) -> Option<&str> {
        frames::message_prefix(frames::first(self.payload.get(start as usize..end as usize)?)?.body)
    }
}

fn wanting(pass: &Pass<'_>, messages: &HashSet<u32>, prefix: &str) -> Vec<u32> {
    let wants = |slot: &u32| pass.members.get(*slot).is_some_and(|member| member.selection.messages(prefix));
    messages.iter().copied().filter(wants).collect()
}

fn operation(kind: EntryKind) -> Option<Operation> {
    Some(match kind {
        EntryKind::Insert => Operation::Insert,
        EntryKind::Update => Operation::Update,
        EntryKind::Delete => Operation::Delete,
        EntryKind::Read => Operation::Read,
        EntryKind::Truncate | EntryKind::Message => return None,
    })
}

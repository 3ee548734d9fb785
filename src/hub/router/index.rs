//! The members of the router, and the pass over one block.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{log::Route, table::Table};
use crate::{
    feed::Feed,
    hub::{frames, projection::head_of},
    model::{Operation, Relation, RelationId},
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

/// Members that select logical messages, and which of them want those with a prefix: each prefix is held against their globs
/// once.
#[derive(Default)]
struct Messages {
    members: HashSet<u32>,
    wanting: HashMap<String, Vec<u32>>,
}

impl Messages {
    /// Prefixes that are remembered, and bytes of the longest.
    const PREFIXES: usize = 1024;
    const PREFIX: usize = 256;

    fn join(&mut self, slot: u32) {
        self.wanting.clear();
        self.members.insert(slot);
    }

    fn leave(&mut self, slot: u32) {
        if self.members.remove(&slot) {
            self.wanting.clear();
        }
    }

    fn enter(&mut self, pass: &mut Pass<'_>, prefix: &str, mut enter: impl FnMut(&mut Pass<'_>, u32)) {
        if let Some(slots) = self.wanting.get(prefix) {
            return slots.iter().for_each(|slot| enter(pass, *slot));
        }
        pass.matched += self.members.len() as u64;
        let wants = |slot: &u32| pass.members.get(*slot).is_some_and(|member| member.selection.messages(prefix));
        let slots: Vec<u32> = self.members.iter().copied().filter(wants).collect();
        slots.iter().for_each(|slot| enter(pass, *slot));
        if prefix.len() <= Self::PREFIX {
            if self.wanting.len() == Self::PREFIXES {
                self.wanting.clear();
            }
            self.wanting.insert(prefix.to_owned(), slots);
        }
    }
}

pub(super) struct Index {
    /// The block to route next.
    pub next: u64,
    members: Members,
    free: Vec<u32>,
    tables: HashMap<RelationId, Table>,
    messages: Messages,
    /// How many members look at the origin of transactions.
    by_origin: usize,
    open: Open,
    /// Predicates held against changes so far.
    pub evaluated: u64,
    /// Members held against prefixes of messages so far.
    pub matched: u64,
    /// Versions that were met for the first time, and that somebody selects with a predicate.
    pub met: Vec<Arc<Relation>>,
}

impl Default for Index {
    fn default() -> Self {
        Index {
            next: 0,
            members: Members::default(),
            free: Vec::new(),
            tables: HashMap::new(),
            messages: Messages::default(),
            by_origin: 0,
            open: Open::Everyone,
            evaluated: 0,
            matched: 0,
            met: Vec::new(),
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
            self.messages.join(slot);
        }
        self.by_origin += usize::from(selection.filters_origins());
        // Streams of the group may have begun the transaction that is open now.
        if let Open::These(open) = &mut self.open {
            open.insert(slot);
        }
        self.members.0[slot as usize] = Some(Member { route: route.clone(), selection: selection.clone() });
    }

    pub fn leave(&mut self, route: &Arc<Route>) {
        let slot = route.slot();
        let Some(place) = self.members.0.get_mut(slot as usize) else { return };
        let Some(member) = place.take_if(|member| Arc::ptr_eq(&member.route, route)) else { return };
        self.by_origin -= usize::from(member.selection.filters_origins());
        self.tables.values_mut().for_each(|table| table.leave(slot));
        self.messages.leave(slot);
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
        let Index { members, tables, messages, open, evaluated, matched, met, .. } = self;
        let mut pass = Pass::new(block.number, members);
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
        let looks_at_origins = self.by_origin > 0;
        let sources = Sources { block, payload: frames::payload(block.message()), index, feed, looks_at_origins };
        if sources.enter(&mut pass, tables, messages).is_none() {
            met.append(&mut pass.met);
            *open = Open::Everyone;
            return pass.everyone();
        }
        met.append(&mut pass.met);
        *evaluated += pass.evaluated;
        *matched += pass.matched;
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
    /// How often the origin has changed in the block.
    pub course: u32,
    /// Of the transaction that is looked at; empty where nobody wants to know.
    origin: String,
    members: &'a Members,
    touched: Vec<u32>,
    pub evaluated: u64,
    matched: u64,
    met: Vec<Arc<Relation>>,
}

impl<'a> Pass<'a> {
    fn new(block: u64, members: &'a Members) -> Self {
        let (touched, met) = (Vec::new(), Vec::new());
        Pass { block, course: 0, origin: String::new(), members, touched, evaluated: 0, matched: 0, met }
    }

    fn come_from(&mut self, origin: &str) {
        if self.origin != origin {
            origin.clone_into(&mut self.origin);
            self.course += 1;
        }
    }

    fn note(&mut self, slot: u32, note: impl FnOnce(&Route) -> bool) {
        let member = self.members.get(slot).filter(|member| member.selection.origin(&self.origin));
        if member.is_some_and(|member| note(&member.route)) {
            self.touched.push(slot);
        }
    }

    /// The block is to be looked at, though perhaps no entry concerns the member.
    pub fn touch(&mut self, slot: u32) {
        if self.members.get(slot).is_some_and(|member| member.route.touch(self.block)) {
            self.touched.push(slot);
        }
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
    block: &'a Block,
    payload: &'a [u8],
    index: &'a BlockIndex,
    feed: &'a dyn Feed,
    looks_at_origins: bool,
}

impl Sources<'_> {
    /// `None`: the block cannot be read, and everybody is to find that out.
    fn enter(
        &self,
        pass: &mut Pass<'_>,
        tables: &mut HashMap<RelationId, Table>,
        messages: &mut Messages,
    ) -> Option<()> {
        for span in &self.index.spans {
            if self.looks_at_origins {
                pass.come_from(&self.origin(span)?);
            }
            if matches!(span.ending, SpanEnd::Message { .. }) && !messages.members.is_empty() {
                messages.enter(pass, self.prefix(span.start, span.end)?, |pass, slot| pass.whole(slot));
            }
            for number in span.entries.0..span.entries.1 {
                self.entry(pass, number, tables, messages)?;
            }
        }
        Some(())
    }

    fn entry(
        &self,
        pass: &mut Pass<'_>,
        number: u32,
        tables: &mut HashMap<RelationId, Table>,
        messages: &mut Messages,
    ) -> Option<()> {
        let entry = self.index.entries.get(number as usize)?;
        match entry.kind {
            EntryKind::Message if messages.members.is_empty() => {}
            EntryKind::Message => {
                let prefix = self.prefix(entry.offset, entry.offset + entry.len)?;
                messages.enter(pass, prefix, |pass, slot| pass.hit(slot, number));
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
        Some(())
    }

    /// Of a transaction; messages outside of one have none.
    fn origin(&self, span: &Span) -> Option<String> {
        let begin = match span.ending {
            SpanEnd::Message { .. } => return Some(String::new()),
            _ if span.begin_len == 0 => self.block.continued_begin(),
            _ => self.payload.get(span.start as usize..(span.start + span.begin_len) as usize)?,
        };
        let begin: crate::wire::pb::Begin = prost::Message::decode(frames::first(begin)?.body).ok()?;
        Some(begin.origin)
    }

    fn table<'t>(
        &self,
        pass: &mut Pass<'_>,
        tables: &'t mut HashMap<RelationId, Table>,
        id: RelationId,
    ) -> Option<&'t mut Table> {
        if !tables.contains_key(&id) {
            let relation = self.feed.relation(id)?;
            // Older versions of a table are used by one block more at most.
            tables.retain(|_, table| table.relation.oid != relation.oid);
            let mut table = Table::new(relation);
            pass.members.iter().for_each(|member| table.join(member.route.slot(), &member.selection));
            if table.has_predicates() {
                pass.met.push(table.relation.clone());
            }
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

fn operation(kind: EntryKind) -> Option<Operation> {
    Some(match kind {
        EntryKind::Insert => Operation::Insert,
        EntryKind::Update => Operation::Update,
        EntryKind::Delete => Operation::Delete,
        EntryKind::Read => Operation::Read,
        EntryKind::Truncate | EntryKind::Message => return None,
    })
}

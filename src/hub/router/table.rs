//! Who is concerned by the changes of one relation version: relation and operation first, then equality predicates by
//! hash, then the rest once per distinct predicate. Values are decoded once for all of them.

use std::{collections::HashMap, sync::Arc};

use smallvec::SmallVec;

use super::index::Pass;
use crate::{
    model::{Operation, Relation},
    selection::{
        Operations, RowPredicate, Selection,
        predicate::{Decision, KeyColumn},
    },
    wire::rows::{Pick, Picked},
};

/// Members by what they select of one relation version.
pub(super) struct Table {
    pub relation: Arc<Relation>,
    /// What each member selects.
    members: HashMap<u32, Want>,
    /// Members that every change of these operations concerns.
    plain: HashMap<u32, Operations>,
    /// Those of them that look at the origin first.
    by_origin: HashMap<u32, Operations>,
    predicates: Vec<Option<Distinct>>,
    free: Vec<u32>,
    by_text: HashMap<Arc<str>, u32>,
    keyed: Vec<Keyed>,
    residual: Vec<u32>,
    pick: Pick,
    /// Operations of `plain` that were entered in the block of this number, and of `by_origin` there since the origin changed.
    entered: Entered,
}

#[derive(Default)]
struct Entered {
    block: Option<u64>,
    course: u32,
    plain: u8,
    by_origin: u8,
}

struct Want {
    operations: Operations,
    /// Its number in `predicates`.
    predicate: Option<u32>,
}

/// A predicate and the members that have it.
struct Distinct {
    predicate: Arc<RowPredicate>,
    members: SmallVec<[(u32, Operations); 1]>,
}

/// Predicates with an equality on one column.
struct Keyed {
    on: KeyColumn,
    by_key: HashMap<Box<[u8]>, SmallVec<[u32; 2]>>,
    /// Any of these operations is selected by one of them.
    operations: Operations,
}

impl Table {
    pub fn new(relation: Arc<Relation>) -> Self {
        Table {
            relation,
            members: HashMap::new(),
            plain: HashMap::new(),
            by_origin: HashMap::new(),
            predicates: Vec::new(),
            free: Vec::new(),
            by_text: HashMap::new(),
            keyed: Vec::new(),
            residual: Vec::new(),
            pick: Pick::default(),
            entered: Entered::default(),
        }
    }

    pub fn join(&mut self, slot: u32, selection: &Selection) {
        let Ok(plan) = selection.relation(&self.relation) else {
            // Its streams are to find out that their predicate does not fit.
            self.members.insert(slot, Want { operations: Operations::ALL, predicate: None });
            self.every(slot, Operations::ALL, selection);
            return;
        };
        if !plan.selected {
            return;
        }
        let operations = plan.operations();
        let predicate = plan.predicate.map(|predicate| self.distinct(&predicate, operations));
        match predicate.and_then(|number| self.predicates.get_mut(number as usize)) {
            Some(Some(distinct)) => distinct.members.push((slot, operations)),
            _ => self.every(slot, operations, selection),
        }
        self.members.insert(slot, Want { operations, predicate });
    }

    fn every(&mut self, slot: u32, operations: Operations, selection: &Selection) {
        let members = if selection.filters_origins() { &mut self.by_origin } else { &mut self.plain };
        members.insert(slot, operations);
    }

    /// The number of a predicate.
    fn distinct(&mut self, predicate: &Arc<RowPredicate>, operations: Operations) -> u32 {
        let known = self.by_text.get(predicate.canonical()).copied();
        let number = known.unwrap_or_else(|| {
            let number = self.free.pop().unwrap_or_else(|| {
                self.predicates.push(None);
                self.predicates.len() as u32 - 1
            });
            self.by_text.insert(predicate.canonical().clone(), number);
            self.predicates[number as usize] =
                Some(Distinct { predicate: predicate.clone(), members: SmallVec::new() });
            predicate.compiled().columns().into_iter().for_each(|column| self.pick.add(column));
            number
        });
        match predicate.compiled().equality() {
            None if known.is_none() => self.residual.push(number),
            None => {}
            Some(equality) => {
                let at = self.keyed.iter().position(|keyed| keyed.on == equality.on).unwrap_or_else(|| {
                    let by_key = HashMap::new();
                    self.keyed.push(Keyed { on: equality.on, by_key, operations: Operations::NONE });
                    self.keyed.len() - 1
                });
                let keyed = &mut self.keyed[at];
                keyed.operations = keyed.operations.or(operations);
                if known.is_none() {
                    keyed.by_key.entry(equality.key.clone()).or_default().push(number);
                }
            }
        }
        number
    }

    /// Whether anybody selects the table with a predicate.
    pub fn has_predicates(&self) -> bool {
        !self.by_text.is_empty()
    }

    pub fn leave(&mut self, slot: u32) {
        self.plain.remove(&slot);
        self.by_origin.remove(&slot);
        let Some(number) = self.members.remove(&slot).and_then(|want| want.predicate) else { return };
        let Some(Some(distinct)) = self.predicates.get_mut(number as usize) else { return };
        distinct.members.retain(|(member, _)| *member != slot);
        if !distinct.members.is_empty() {
            return;
        }
        self.by_text.remove(distinct.predicate.canonical());
        match distinct.predicate.compiled().equality() {
            None => self.residual.retain(|residual| *residual != number),
            Some(equality) => {
                if let Some(keyed) = self.keyed.iter_mut().find(|keyed| keyed.on == equality.on)
                    && let Some(numbers) = keyed.by_key.get_mut(&equality.key)
                {
                    numbers.retain(|keyed| *keyed != number);
                    if numbers.is_empty() {
                        keyed.by_key.remove(&equality.key);
                    }
                }
            }
        }
        self.predicates[number as usize] = None;
        self.free.push(number);
    }

    /// TRUNCATE passes every predicate.
    pub fn truncate(&self, pass: &mut Pass<'_>, entry: u32) {
        let concerned = self.members.iter().filter(|(_, want)| want.operations.contains(Operation::Truncate));
        concerned.for_each(|(slot, _)| pass.hit(*slot, entry));
    }

    pub fn change(&mut self, pass: &mut Pass<'_>, entry: u32, operation: Operation, framed: &[u8]) {
        if self.entered.block != Some(pass.block) {
            self.entered = Entered { block: Some(pass.block), ..Entered::default() };
        }
        if std::mem::replace(&mut self.entered.course, pass.course) != pass.course {
            self.entered.by_origin = 0;
        }
        let bit = 1 << operation as u8;
        for (entered, members) in
            [(&mut self.entered.plain, &self.plain), (&mut self.entered.by_origin, &self.by_origin)]
        {
            if *entered & bit == 0 {
                *entered |= bit;
                let concerned = members.iter().filter(|(_, operations)| operations.contains(operation));
                concerned.for_each(|(slot, _)| pass.whole(*slot));
            }
        }
        if !self.has_predicates() {
            return;
        }
        let Ok(row) = self.pick.read(framed) else {
            self.members.keys().for_each(|slot| pass.whole(*slot));
            return;
        };
        let change = Change { entry, operation, row };
        for keyed in self.keyed.iter().filter(|keyed| keyed.operations.contains(operation)) {
            let enter = |key: &[u8]| {
                for number in keyed.by_key.get(key).into_iter().flatten() {
                    self.hold(pass, *number, &change);
                }
            };
            if !keyed.on.keys(operation, &change.row, enter) {
                keyed.by_key.values().flatten().for_each(|number| self.hold(pass, *number, &change));
            }
        }
        self.residual.iter().for_each(|number| self.hold(pass, *number, &change));
    }

    /// Enters the change with the members of a predicate for which it holds, or which cannot be told.
    fn hold(&self, pass: &mut Pass<'_>, number: u32, change: &Change<'_>) {
        let Some(Some(distinct)) = self.predicates.get(number as usize) else { return };
        let mut members = distinct.members.iter().filter(|(_, operations)| operations.contains(change.operation));
        let Some(first) = members.next() else { return };
        pass.evaluated += 1;
        if matches!(distinct.predicate.decide(change.operation, &change.row), Ok(Decision::Skip)) {
            return;
        }
        std::iter::once(first).chain(members).for_each(|(slot, _)| pass.hit(*slot, change.entry));
    }
}

struct Change<'a> {
    entry: u32,
    operation: Operation,
    row: Picked<'a>,
}

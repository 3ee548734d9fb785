//! What streams share: one computation for each block and selection, whoever asks first; row predicates.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    feed::{Cursor, Feed, Fetched},
    hub::{
        Error, RowFormat,
        frames::payload,
        group::{Groups, Plan},
        projection::{Cut, Plans, project},
        testing::*,
    },
    model::{Operation, RelationId, RowAccess, Value},
    selection::{Predicate, Selection, Transition},
    wire::{block::Block, pb},
};

fn block(world: &World, number: u64) -> Arc<Block> {
    let mut cursor = Cursor { block: number, after: at(100) };
    match world.feed.hot(&mut cursor) {
        Some(Fetched::Block(block)) => block,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_block_is_projected_once_for_everybody() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    for id in 0..20 {
        world.single(&orders, &[&id.to_string()]);
    }
    let groups = Arc::new(Groups::default());
    let feed: Arc<dyn Feed> = world.feed.clone();
    for filter in [None, Some(tables(&["shop.*"]))] {
        let join = || {
            let selection = Selection::compile(filter.as_ref(), None).expect("a good filter");
            groups.join(&feed, selection, RowFormat::Compact)
        };
        let _kept = join();
        let seen: Vec<Vec<usize>> = thread::scope(|scope| {
            let readers: Vec<_> = (0..8)
                .map(|_| {
                    let (group, world) = (join(), &world);
                    scope.spawn(move || {
                        let projection = |number| group.projection(&block(world, number)).expect("a projection");
                        let kept: Vec<_> = (0..20).map(projection).collect();
                        kept.iter().map(|projection| Arc::as_ptr(projection) as usize).collect::<Vec<_>>()
                    })
                })
                .collect();
            readers.into_iter().map(|reader| reader.join().expect("no panic")).collect()
        });
        assert!(seen.iter().all(|pointers| *pointers == seen[0]), "the same projections");
    }
}

/// Rows whose second column is `in`.
#[derive(Default)]
struct IsIn(AtomicUsize);

impl Predicate for IsIn {
    fn transition(&self, operation: Operation, row: &dyn RowAccess) -> Option<Transition> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let (before, after) = (row.before(1) == Value::Text("in"), row.after(1) == Value::Text("in"));
        match operation {
            Operation::Delete => None,
            Operation::Insert => Transition::between(false, after),
            _ => Transition::between(before, after),
        }
    }
}

struct WithPredicate<'a>(&'a World, Arc<IsIn>);

impl Plans for WithPredicate<'_> {
    fn plan(&self, id: RelationId) -> Result<Arc<Plan>, Error> {
        let relation = self.0.feed.relation(id).ok_or_else(|| Error::internal("unknown"))?;
        let selection = Selection::compile(None, None)?;
        let rules = selection.relation(&relation).with_predicate(self.1.clone());
        Ok(Arc::new(Plan { relation, rules, event: Default::default() }))
    }
}

#[test]
fn a_predicate_selects_rows_and_marks_transitions() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id", "state"]);
    world.begin("");
    world.insert(&orders, &["1", "out"]);
    world.insert(&orders, &["2", "in"]);
    world.change(&orders, Operation::Update, &["1", "in"]);
    world.change(&orders, Operation::Delete, &["1", "in"]);
    world.writer.truncate(&[1], false, false, crate::lsn::Lsn(1));
    world.commit();
    world.seal();
    for format in [RowFormat::Compact, RowFormat::Struct] {
        let plans = WithPredicate(&world, Arc::default());
        let selection = Selection::compile(Some(&tables(&["shop.*"])), None).expect("a good filter");
        let projection = project(&block(&world, 0), &selection, format, &plans, Cut::default()).expect("a projection");
        assert_eq!(plans.1.0.load(Ordering::Relaxed), 4, "each row once, truncates never");
        assert_eq!((projection.body.events, projection.body.counted), (5, 3));
        let response: pb::SubscribeResponse =
            prost::Message::decode(payload(&projection.body.message)).expect("a response");
        let transitions: Vec<(u64, pb::Transition)> = response
            .events
            .into_iter()
            .filter_map(|event| match event.kind {
                Some(pb::event::Kind::Change(change)) => Some((change.ordinal, change.transition())),
                _ => None,
            })
            .collect();
        assert_eq!(transitions, [(2, pb::Transition::Enter), (3, pb::Transition::Enter)]);
    }
}

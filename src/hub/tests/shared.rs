//! What streams share: one computation for each block and selection, whoever asks first; row predicates.

use std::{sync::Arc, thread};

use crate::{
    feed::{Cursor, Feed, Fetched},
    hub::{RowFormat, Subscription, group::Groups, testing::*},
    lsn::Lsn,
    model::{Datum, OldImage, Operation},
    reason::{Classified, Reason},
    selection::{Filter, Selection},
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
    let groups = Arc::new(Groups::new(64 << 20));
    let feed: Arc<dyn Feed> = world.feed.clone();
    for filter in [None, Some(tables(&["shop.*"]))] {
        let join = || {
            let selection = Selection::compile(filter.as_ref(), None).expect("a good filter");
            groups.join(&feed, selection, RowFormat::Compact, [])
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

/// Each group alone keeps little; all of them together what they may, with room for whoever comes later.
#[test]
fn all_groups_together_keep_no_more_than_the_limit() {
    const LIMIT: usize = 256 << 10;
    const GROUPS: usize = 100;
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id", "note"]);
    let note = "x".repeat(20_000);
    for id in 0..4 {
        world.begin("");
        world.insert(&orders, &[&id.to_string(), &note]);
        world.insert(&orders, &["none", "none"]);
        world.commit();
        world.seal();
    }
    let groups = Arc::new(Groups::new(LIMIT));
    let feed: Arc<dyn Feed> = world.feed.clone();
    let joined: Vec<_> = (0..GROUPS)
        .map(|number| {
            let filter = filter(&format!("id <> 'none' AND id <> 'none {number}'"));
            let selection = Selection::compile(Some(&filter), None).expect("a good filter");
            groups.join(&feed, selection, RowFormat::Compact, [])
        })
        .collect();
    for number in [0, 1, 2, 3, 1] {
        let block = block(&world, number);
        thread::scope(|scope| {
            for part in joined.chunks(GROUPS / 4) {
                let (block, groups) = (&block, &groups);
                scope.spawn(move || {
                    for group in part {
                        let projection = group.projection(block).expect("a projection");
                        assert!(projection.body.counted == 1 && projection.footprint() > 20_000);
                        assert!(groups.room.bytes() <= LIMIT + 4 * 30_000, "what is being kept now comes on top");
                    }
                });
            }
        });
        assert!(groups.room.bytes() <= LIMIT, "{} bytes", groups.room.bytes());
        let kept: usize = joined.iter().map(|group| group.kept()).sum();
        assert!((LIMIT / 30_000..=LIMIT / 20_000).contains(&kept), "{kept} projections");
    }
    // Groups give up in turn, so in some of these orders it is the turn of the one that keeps.
    for (stride, number) in [1, 99, 37, 63, 49, 51].into_iter().zip([3, 2].into_iter().cycle()) {
        for at in (0..GROUPS).map(|at| at * stride % GROUPS) {
            let projection = || joined[at].projection(&block(&world, number)).expect("a projection");
            assert!(Arc::ptr_eq(&projection(), &projection()), "group {at} keeps it for whoever comes next");
        }
    }
    drop(joined);
    assert_eq!(groups.room.bytes(), 0);
}

/// However little is allowed, the last projection is there for whoever comes next.
#[test]
fn one_projection_is_always_kept() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id"]);
    for id in 0..3 {
        world.single(&orders, &[&id.to_string()]);
    }
    let groups = Arc::new(Groups::new(1));
    let feed: Arc<dyn Feed> = world.feed.clone();
    let group = groups.join(&feed, Selection::compile(None, None).expect("a good filter"), RowFormat::Struct, []);
    for number in [2, 0, 1, 1] {
        let projection = || group.projection(&block(&world, number)).expect("a projection");
        assert!(Arc::ptr_eq(&projection(), &projection()));
        assert_eq!(group.kept(), 1);
    }
}

fn filter(predicate: &str) -> Filter {
    Filter { predicate: predicate.to_owned(), ..tables(&["shop.*"]) }
}

#[tokio::test]
async fn a_predicate_selects_rows_and_marks_transitions() {
    let mut world = World::new();
    let orders = world.full_relation(1, "shop.orders", &["id", "state"]);
    world.begin("");
    world.insert(&orders, &["1", "out"]);
    world.insert(&orders, &["2", "in"]);
    world.change_full(&orders, &["1", "out"], Some(&["1", "in"]));
    world.change_full(&orders, &["1", "in"], Some(&["9", "in"]));
    world.change_full(&orders, &["2", "in"], Some(&["2", "out"]));
    world.change_full(&orders, &["2", "out"], None);
    world.change_full(&orders, &["9", "in"], None);
    world.writer.truncate(&[1], false, false, Lsn(1));
    world.commit();
    world.seal();
    for row_format in [RowFormat::Compact, RowFormat::Struct] {
        let request = Subscription { row_format, filter: Some(filter("state = 'in'")), ..earliest() };
        let mut client = world.open(request).await;
        let mut transitions = Vec::new();
        let commit = loop {
            match client.event().await {
                pb::event::Kind::Change(change) => transitions.push((change.ordinal, change.transition())),
                pb::event::Kind::Commit(commit) => break commit,
                _ => {}
            }
        };
        use pb::Transition::{Enter, Leave, Stay};
        assert_eq!(transitions, [(2, Enter), (3, Enter), (4, Stay), (5, Leave), (7, Leave)]);
        assert_eq!((commit.changes, commit.total_changes), (6, 8));
    }
}

#[tokio::test]
async fn a_predicate_must_fit_the_tables_as_they_are() {
    let world = World::new();
    world.relation(1, "shop.orders", &["id", "total"]);
    world.relation(2, "shop.orders", &["id", "state"]);
    world.relation(3, "shop.gone", &["id"]);
    world.publish(&["shop.orders"]);
    let refused = |predicate: &str| {
        let request = Subscription { filter: Some(filter(predicate)), ..earliest() };
        async { world.try_open(request).await.map(|_| ()).expect_err("it does not fit") }
    };
    for (predicate, detail) in [
        ("id = '1' AND total = '2'", "offset 13"),
        ("state = 'in'", "ALTER TABLE shop.orders REPLICA IDENTITY FULL"),
        ("state = ", "offset 8"),
    ] {
        let error = refused(predicate).await;
        assert_eq!(error.reason(), Reason::FilterInvalid);
        let [(path, told)] = &error.violations()[..] else { panic!("{error:?}") };
        assert!(path == "filter.where" && told.contains(detail), "{told}");
    }
    world.open(Subscription { filter: Some(filter("id = '1'")), ..earliest() }).await;
}

#[tokio::test]
async fn a_version_that_the_predicate_does_not_fit_ends_the_stream_behind_what_came_before() {
    let mut world = World::new();
    let orders = world.full_relation(1, "shop.orders", &["id", "state"]);
    let mut client = world.open(Subscription { filter: Some(filter("state = 'in'")), ..earliest() }).await;
    world.begin("");
    world.insert(&orders, &["1", "in"]);
    let before = world.commit();
    let orders = world.full_relation(2, "shop.orders", &["id", "status"]);
    world.begin("");
    world.insert(&orders, &["2", "in"]);
    world.commit();
    world.seal();
    let mut last = None;
    let error = loop {
        match client.next().await.expect("an error") {
            Ok(pb::event::Kind::Commit(commit)) => last = Some(position(&commit.position)),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(last, Some(before));
    assert_eq!(error.reason(), Reason::FilterInvalid);
    assert!(error.violations()[0].1.contains("table shop.orders has no column"), "{error}");
    assert!(client.next().await.is_none());
}

#[tokio::test]
async fn what_cannot_be_decided_ends_the_stream() {
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id", "state"]);
    world.begin("");
    let new = [Datum::Text(b"1"), Datum::Unchanged].into_iter();
    let old: Option<(OldImage, std::array::IntoIter<Datum<'_>, 2>)> = None;
    world.writer.change(&orders, Operation::Update, Lsn(1), old, Some(new)).expect("an update");
    world.commit();
    world.seal();
    let mut client = world.open(Subscription { filter: Some(filter("after.state = 'in'")), ..earliest() }).await;
    let error = client.error().await;
    assert_eq!(error.reason(), Reason::FilterInvalid);
    assert!(error.violations()[0].1.contains("\"state\""), "{error}");
    assert!(error.metadata().iter().any(|(key, _)| *key == "lsn"), "{error:?}");
}

#[tokio::test]
async fn predicates_that_are_written_differently_share_a_group() {
    let world = World::new();
    world.full_relation(1, "shop.orders", &["id", "state"]);
    let open = |predicate: &str| world.open(Subscription { filter: Some(filter(predicate)), ..earliest() });
    let one = open("state='in' and not id = '5'").await;
    let other = open("(STATE = 'in') AND NOT (id = '5')").await;
    let third = open("state='in'").await;
    assert!(Arc::ptr_eq(&one.session.group, &other.session.group));
    assert!(!Arc::ptr_eq(&one.session.group, &third.session.group));
}

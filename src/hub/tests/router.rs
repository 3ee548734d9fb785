//! What streams do not do: look at blocks that do not concern them, or pay for how many of them there are.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

use crate::{
    feed::{Feed, Marks},
    hub::{
        RowFormat, Subscription,
        group::{Group, Groups},
        router::{Router, Routers},
        testing::*,
    },
    model::{Operation, Position, Relation},
    selection::{Filter, Selection},
    wire::pb,
};

fn filter(predicate: &str) -> Filter {
    Filter { predicate: predicate.to_owned(), ..tables(&["shop.*"]) }
}

/// Reads up to a position; the lines.
async fn read(mut client: Client, end: Position) -> (Vec<String>, Client) {
    let lines = client.until(end).await;
    (lines, client)
}

#[tokio::test]
async fn a_block_is_looked_at_by_the_groups_that_it_concerns() {
    const FILTERS: usize = 20;
    let mut world = World::new();
    let orders = world.full_relation(1, "shop.orders", &["id", "state"]);
    let other = world.full_relation(2, "shop.other", &["id", "state"]);
    let mut clients = Vec::new();
    for number in 0..FILTERS {
        let filter = Some(filter(&format!("state = '{number}'")));
        clients.push(world.open(Subscription { filter, ..earliest() }).await);
    }
    let unfiltered = world.open(earliest()).await;
    let first = world.single(&orders, &["0", "none"]);
    let mut readers: Vec<_> = clients.into_iter().map(|client| tokio::spawn(read(client, first))).collect();
    let mut following = Vec::new();
    for reader in readers.drain(..) {
        following.push(reader.await.expect("no panic").1);
    }
    let mut end = first;
    let readers: Vec<_> = {
        let last = at(first.lsn.0 + 15 * (FILTERS as u64 * 2));
        let readers = following.into_iter().map(|client| tokio::spawn(read(client, last))).collect();
        tokio::task::yield_now().await;
        for number in 0..FILTERS {
            world.single(&orders, &["1", &number.to_string()]);
            end = world.single(&other, &["1", "none"]);
            tokio::task::yield_now().await;
        }
        assert_eq!(end, last);
        readers
    };
    for (number, reader) in readers.into_iter().enumerate() {
        let (lines, client) = reader.await.expect("no panic");
        assert_eq!(lines.len(), 3, "{number}: {lines:?}");
        assert_eq!(lines[1], format!("1 OPERATION_INSERT shop.orders [1 {number}]_ENTER"));
        // The first block, which every stream takes in to find its place, and its own.
        assert_eq!(client.session.group.kept(), 2, "{number}");
    }
    assert_eq!(read(unfiltered, end).await.0.len(), 3 * (1 + 2 * FILTERS));
    // One for each change of state to a number; `none` is nobody's.
    assert_eq!(world.hub.inner.groups.routers.indexed.evaluated(), FILTERS as u64);
}

#[tokio::test]
async fn a_stream_that_sleeps_is_woken_before_its_timer() {
    let mut world = World::new();
    let orders = world.full_relation(1, "shop.orders", &["id", "state"]);
    let seconds = std::time::Duration::from_secs(3600);
    let request = Subscription { filter: Some(filter("state = 'in'")), progress_interval: Some(seconds), ..earliest() };
    let mut client = world.open(request).await;
    let first = world.single(&orders, &["1", "in"]);
    assert_eq!(client.until(first).await.len(), 3);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut context = Context::from_waker(&waker);
    for round in 0..50 {
        while Box::pin(client.session.next()).as_mut().poll(&mut context).is_ready() {}
        let mut next = Box::pin(client.session.next());
        assert!(next.as_mut().poll(&mut context).is_pending());
        for _ in 0..round % 5 {
            tokio::task::yield_now().await;
            world.single(&orders, &["2", "out"]);
        }
        world.single(&orders, &["1", "in"]);
        // Everything that is to happen happens in this thread: what counts is turns, not time.
        let mut turns = 0;
        let frame = loop {
            if woken.0.swap(false, Ordering::SeqCst)
                && let Poll::Ready(frame) = next.as_mut().poll(&mut context)
            {
                break frame;
            }
            turns += 1;
            assert!(turns < 1000, "round {round}: not woken");
            tokio::task::yield_now().await;
        };
        assert!(frame.is_some_and(|frame| frame.is_ok()), "round {round}");
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Writes so many blocks, each of one transaction with one row that `other` selects and `sleeper` does not.
async fn sleeps_through(sleeper: &mut Client, other: &mut Client, blocks: u64, mut write: impl FnMut(u64)) {
    let (woken, started) = (Arc::new(Woken::default()), Instant::now());
    let waker = Waker::from(woken.clone());
    let mut context = Context::from_waker(&waker);
    let mut next = Box::pin(sleeper.session.next());
    assert!(next.as_mut().poll(&mut context).is_pending());
    let mut times = 0;
    for number in 0..blocks {
        write(number);
        for _ in 0..3 {
            other.line_within(DEADLINE).await.expect("a line");
        }
        if woken.0.swap(false, Ordering::SeqCst) {
            times += 1;
            assert!(next.as_mut().poll(&mut context).is_pending());
        }
    }
    // Once a second it looks whether the source is still there.
    let allowed = 1 + started.elapsed().as_secs();
    assert!(times <= allowed && allowed < blocks / 2, "woken {times} times by {blocks} blocks, allowed {allowed}");
}

#[tokio::test]
async fn a_stream_sleeps_through_blocks_that_do_not_concern_it() {
    const BLOCKS: u64 = 200;
    let mut world = World::new();
    let orders = world.full_relation(1, "shop.orders", &["id", "state"]);
    let hour = std::time::Duration::from_secs(3600);
    let selecting = |state: &str| Some(filter(&format!("state = '{state}'")));
    let request = Subscription { filter: selecting("in"), progress_interval: Some(hour), ..earliest() };
    let mut sleeper = world.open(request).await;
    let mut other = world.open(Subscription { filter: selecting("out"), ..earliest() }).await;
    let first = world.single(&orders, &["1", "in"]);
    assert_eq!((sleeper.until(first).await.len(), other.until(first).await.len()), (3, 0));

    let elsewhere = |_| {
        world.single(&orders, &["2", "out"]);
    };
    sleeps_through(&mut sleeper, &mut other, BLOCKS, elsewhere).await;
    world.single(&orders, &["3", "in"]);
    assert!(sleeper.session.next().await.is_some_and(|frame| frame.is_ok()));
}

#[tokio::test]
async fn a_stream_that_its_router_wakes_is_not_told_of_the_marks() {
    let mut world = World::new();
    let orders = world.full_relation(1, "shop.orders", &["id", "state"]);
    let mut stream = world.open(Subscription { filter: Some(filter("state = 'in'")), ..earliest() }).await;
    let mut context = Context::from_waker(Waker::noop());
    while Box::pin(stream.session.next()).as_mut().poll(&mut context).is_ready() {}
    assert_eq!(world.hub.inner.tide.members(), 1, "nothing has been routed yet");
    for state in ["in", "out", "in", "out"] {
        let end = world.single(&orders, &["1", state]);
        stream.until(end).await;
        while Box::pin(stream.session.next()).as_mut().poll(&mut context).is_ready() {}
        assert_eq!(world.hub.inner.tide.members(), 0, "{state}");
    }
}

/// A stream sleeps through transactions of other origins, and sees those of its own wherever they lie in a block.
#[tokio::test]
async fn a_stream_sleeps_through_other_origins() {
    const BLOCKS: u64 = 100;
    let hour = std::time::Duration::from_secs(3600);
    for predicate in ["", "state = 'in'", "state >= 'in'"] {
        let mut world = World::new();
        let orders = world.full_relation(1, "shop.orders", &["id", "state"]);
        let from_east = Filter { origins: vec!["east".to_owned()], ..filter(predicate) };
        let request = Subscription { filter: Some(from_east), progress_interval: Some(hour), ..earliest() };
        let mut sleeper = world.open(request).await;
        // Behind the router, as what it does not wait for would tell nothing.
        let mut other = world.open(Subscription { filter: Some(filter("")), ..earliest() }).await;
        world.begin("east");
        world.insert(&orders, &["1", "in"]);
        let first = world.commit();
        world.seal();
        assert_eq!((sleeper.until(first).await.len(), other.until(first).await.len()), (3, 3));

        sleeps_through(&mut sleeper, &mut other, BLOCKS, |number| {
            world.begin(["", "west"][number as usize % 2]);
            world.insert(&orders, &["2", "in"]);
            world.commit();
            world.seal();
        })
        .await;
        for (id, origin) in ["", "east", "west", "east"].into_iter().enumerate() {
            world.begin(origin);
            world.insert(&orders, &[&id.to_string(), "in"]);
            world.commit();
        }
        world.seal();
        let lines = read_lines(sleeper, 6).await;
        assert!(lines[1].contains("[1 in]") && lines[4].contains("[3 in]"), "{predicate}: {lines:?}");
    }
}

#[tokio::test]
async fn positions_move_where_nothing_concerns_a_stream() {
    let mut world = World::new();
    let orders = world.full_relation(1, "shop.orders", &["id", "state"]);
    let mut client = world.open(Subscription { filter: Some(filter("state = 'in'")), ..earliest() }).await;
    for _ in 0..3 {
        let mut end = at(100);
        for _ in 0..10 {
            end = world.single(&orders, &["1", "out"]);
            tokio::task::yield_now().await;
        }
        assert_eq!(client.until(end).await, [""; 0]);
        world.feed.keepalive(end.lsn.0 + 3);
        assert_eq!(client.until(at(end.lsn.0 + 3)).await, [""; 0]);
        let progress = client.progress().await;
        assert!(progress.caught_up);
        world.begin("");
        world.commit();
    }
}

#[tokio::test]
async fn residual_predicates_are_evaluated_elsewhere_and_miss_nothing() {
    const FILTERS: usize = 12;
    let mut world = World::new();
    let orders = world.full_relation(1, "shop.orders", &["id", "state"]);
    let mut clients = Vec::new();
    for number in 0..FILTERS {
        let filter = Some(filter(&format!("state >= '{number:02}' and state <= '{number:02}'")));
        clients.push(world.open(Subscription { filter, ..earliest() }).await);
    }
    let first = world.single(&orders, &["0", "none"]);
    for client in &mut clients {
        assert_eq!(client.until(first).await.len(), 0);
    }
    let mut end = first;
    for round in 0..20 * FILTERS {
        end = world.single(&orders, &["1", &format!("{:02}", round % FILTERS)]);
        tokio::task::yield_now().await;
    }
    for (number, mut client) in clients.into_iter().enumerate() {
        let lines = client.until(end).await;
        assert_eq!(lines.len(), 3 * 20, "{number}: {lines:?}");
        assert!(lines.iter().skip(1).step_by(3).all(|line| line.contains(&format!("[1 {number:02}]"))), "{lines:?}");
    }
    let routers = &world.hub.inner.groups.routers;
    assert_eq!(routers.indexed.evaluated(), 0);
    let lagging: u64 = routers.lagging.iter().map(|router| router.evaluated()).sum();
    assert!(lagging > 0, "some have to lag");
}

/// Joined groups of this many filters, and a world whose feed has one block of `changes` random states.
fn joined(filters: usize, predicate: impl Fn(usize) -> String, states: usize) -> (World, Arc<Groups>, Vec<Arc<Group>>) {
    let mut world = World::new();
    let orders: Arc<Relation> = world.full_relation(1, "shop.orders", &["id", "state", "note", "more"]);
    let groups = Arc::new(Groups::new(64 << 20));
    let feed: Arc<dyn Feed> = world.feed.clone();
    let join = |number| {
        let selection = Selection::compile(Some(&filter(&predicate(number))), None).expect("a good filter");
        groups.join(&feed, selection, RowFormat::Compact, [])
    };
    let joined = (0..filters).map(join).collect();
    for _ in 0..20 {
        world.begin("");
        for number in 0..500 {
            let state = format!("{}", number % states);
            let row: [&str; 4] = ["1", &state, "a note of some length", "x"];
            match number % 3 {
                0 => world.change_full(&orders, &row, Some(&row)),
                _ => world.change(&orders, Operation::Insert, &row),
            }
        }
        world.commit();
        world.seal();
    }
    (world, groups, joined)
}

fn routers(groups: &Groups) -> impl Iterator<Item = &Arc<Router>> {
    let routers = &groups.routers;
    [&routers.indexed, &routers.keeping_up].into_iter().chain(&routers.lagging)
}

fn evaluated(groups: &Groups) -> u64 {
    routers(groups).map(|router| router.evaluated()).sum()
}

fn routed(world: &World, groups: &Groups) {
    let marks: Marks = *world.feed.marks().borrow();
    routers(groups).for_each(|router| router.advance(&*world.feed, marks, &groups.timeline));
}

#[test]
fn equality_predicates_cost_the_same_however_many_there_are() {
    let evaluations = |filters: usize| {
        let (world, groups, _joined) = joined(filters, |number| format!("state = '{number}'"), 10);
        routed(&world, &groups);
        evaluated(&groups)
    };
    let ten = evaluations(10);
    // Each change has one state that one filter wants; an UPDATE that leaves it as it is is one key.
    assert_eq!(ten, 20 * 500);
    assert_eq!(evaluations(2000), ten);
}

#[test]
fn a_prefix_is_held_against_the_globs_once() {
    const FILTERS: usize = 50;
    let mut world = World::new();
    let groups = Arc::new(Groups::new(64 << 20));
    let feed: Arc<dyn Feed> = world.feed.clone();
    let joined: Vec<_> = (0..FILTERS)
        .map(|number| {
            let filter = Filter { message_prefixes: vec![format!("audit.{number}*")], ..Filter::default() };
            let selection = Selection::compile(Some(&filter), None).expect("a good filter");
            groups.join(&feed, selection, RowFormat::Compact, [])
        })
        .collect();
    for round in 0..100 {
        world.message_outside(&format!("audit.{}", round % 4), "");
        world.seal();
    }
    routed(&world, &groups);
    assert_eq!(groups.routers.indexed.matched(), 4 * FILTERS as u64);
    drop(joined);
}

#[test]
fn a_predicate_is_evaluated_once_however_many_groups_have_it() {
    let (world, groups, joined) = joined(1, |_| "state > '3' AND note <> more".to_owned(), 10);
    let feed: Arc<dyn Feed> = world.feed.clone();
    let others: Vec<_> = (0..20)
        .map(|number| {
            let columns = vec![format!("*.column{number}")];
            let filter = Filter { columns, ..filter("(state > '3') and Note != more") };
            groups.join(&feed, Selection::compile(Some(&filter), None).expect("a good filter"), RowFormat::Compact, [])
        })
        .collect();
    routed(&world, &groups);
    assert_eq!(evaluated(&groups), 20 * 500);
    drop((joined, others));
    // Nobody has it any more, so there is room for as many others as before.
    let next: Vec<_> = ["state > '5'", "state > '6'", "state > '7'"]
        .map(|predicate| Selection::compile(Some(&filter(predicate)), None).expect("a good filter"))
        .map(|selection| groups.routers.seat(&selection, []))
        .map(|seat| Arc::ptr_eq(&seat.router, &groups.routers.keeping_up))
        .into();
    assert_eq!(next, [true, true, false]);
}

#[test]
fn an_equality_that_many_share_finds_nothing() {
    const FILTERS: usize = 40;
    let (world, groups, joined) = joined(FILTERS, |number| format!("state = '1' AND note LIKE '%{number}%'"), 2);
    routed(&world, &groups);
    // Half of the changes have the state. What is evaluated beside the streams does not grow with the filters.
    assert_eq!(groups.routers.indexed.evaluated(), 8 * 20 * 250);
    assert_eq!(evaluated(&groups), FILTERS as u64 * 20 * 250);
    drop(joined);
    let feed: Arc<dyn Feed> = world.feed.clone();
    let selection = Selection::compile(Some(&filter("state = '1' AND note LIKE '%x%'")), None).expect("a good filter");
    let seat = groups.routers.seat(&selection, feed.relations().iter().map(Arc::as_ref));
    assert!(Arc::ptr_eq(&seat.router, &groups.routers.indexed), "there is room again");
}

/// Which predicates are alike, and that one finds nothing, can be told only when the table is there.
#[tokio::test]
async fn groups_move_when_a_table_shows_that_their_predicates_find_nothing() {
    const FILTERS: usize = 30;
    let mut world = World::new();
    let mut clients = Vec::new();
    for number in 0..FILTERS {
        let predicate = format!("amount = 1.{}", "0".repeat(number + 1));
        clients.push(world.open(Subscription { filter: Some(filter(&predicate)), ..earliest() }).await);
    }
    let routers = &world.hub.inner.groups.routers;
    let at_home = |client: &Client| Arc::ptr_eq(&client.session.group.router(), &routers.indexed);
    assert!(clients.iter().all(at_home));
    let orders = world.full_relation(2, "shop.orders", &["id", "amount"]);
    let mut readers: Vec<_> = Vec::new();
    let rounds = 200;
    let last = at(100 + 15 * (1 + rounds));
    assert_eq!(world.single(&orders, &["0", "1"]), at(115));
    for client in clients {
        readers.push(tokio::spawn(read(client, last)));
    }
    for round in 0..rounds {
        tokio::task::yield_now().await;
        assert!(world.single(&orders, &["1", ["1", "2"][round as usize % 2]]).lsn <= last.lsn);
    }
    let routers = &world.hub.inner.groups.routers;
    let (mut stayed, mut moved) = (0, 0);
    for reader in readers {
        let (lines, client) = reader.await.expect("no panic");
        assert_eq!(lines.len(), 3 * (1 + 100), "{lines:?}");
        match Arc::ptr_eq(&client.session.group.router(), &routers.indexed) {
            true => stayed += 1,
            false => moved += 1,
        }
    }
    assert_eq!((stayed, moved), (8, FILTERS - 8));
    let evaluated: u64 = routers.lagging.iter().chain([&routers.keeping_up]).map(|router| router.evaluated()).sum();
    assert!(evaluated > 0, "the others evaluate");
}

/// Settling so many groups takes much longer than a turn.
#[tokio::test]
async fn others_have_the_thread_while_groups_are_settled() {
    const GROUPS: usize = 1000;
    let mut world = World::new();
    let (groups, feed) = (world.hub.inner.groups.clone(), world.feed.clone() as Arc<dyn Feed>);
    let join = |number: usize| {
        let filter = filter(&format!("amount = 1.{}", "0".repeat(number + 1)));
        groups.join(&feed, Selection::compile(Some(&filter), None).expect("a good filter"), RowFormat::Compact, [])
    };
    let joined: Vec<_> = (0..GROUPS).map(join).collect();
    Routers::start(&groups, &feed);
    let orders = world.full_relation(2, "shop.orders", &["id", "amount"]);
    world.single(&orders, &["0", "1"]);
    let is_indexed = |group: &&Arc<Group>| Arc::ptr_eq(&group.router(), &groups.routers.indexed);
    let mut seen = Vec::new();
    let settled = async {
        while seen.last() != Some(&8) {
            tokio::task::yield_now().await;
            seen.push(joined.iter().filter(is_indexed).count());
        }
    };
    assert!(tokio::time::timeout(DEADLINE, settled).await.is_ok(), "{seen:?}");
    assert!(seen.iter().any(|indexed| (9..GROUPS).contains(indexed)), "{seen:?}");
}

/// The router meets a table when the group has its seat, and cannot be found yet.
#[test]
fn a_group_that_joins_while_a_table_is_met_is_settled_too() {
    let world = World::new();
    let groups = Arc::new(Groups::new(64 << 20));
    let feed: Arc<dyn Feed> = world.feed.clone();
    let join = |number: usize| {
        let filter = filter(&format!("amount = 1.{}", "0".repeat(number + 1)));
        groups.join(&feed, Selection::compile(Some(&filter), None).expect("a good filter"), RowFormat::Compact, [])
    };
    let joined: Vec<_> = (0..8).map(join).collect();
    let orders = World::new().full_relation(2, "shop.orders", &["id", "amount"]);
    let (meets, all) = (world.feed.clone(), groups.clone());
    *world.feed.then.lock() = Some(Box::new(move || {
        meets.declare(orders.clone());
        all.all().iter().for_each(|group| all.settle(group, &orders));
    }));
    let last = join(8);
    let is_indexed = |group: &Arc<Group>| Arc::ptr_eq(&group.router(), &groups.routers.indexed);
    assert!(joined.iter().all(is_indexed), "one key finds so many");
    assert!(!is_indexed(&last), "and no more");
}

#[test]
fn groups_that_are_gone_cost_nothing() {
    let (world, groups, joined) = joined(50, |number| format!("state = '{number}' OR id = '{number}'"), 10);
    drop(joined);
    routed(&world, &groups);
    assert_eq!(evaluated(&groups), 0);
}

#[tokio::test]
async fn truncates_and_messages_find_their_groups() {
    let mut world = World::new();
    let orders = world.full_relation(1, "shop.orders", &["id", "state"]);
    let messages = Filter { message_prefixes: vec!["note*".to_owned()], ..filter("state = 'in'") };
    let mut with_messages = world.open(Subscription { filter: Some(messages), ..earliest() }).await;
    let mut without = world.open(Subscription { filter: Some(filter("state = 'in'")), ..earliest() }).await;
    let first = world.single(&orders, &["1", "out"]);
    assert_eq!(with_messages.until(first).await.len() + without.until(first).await.len(), 0);
    let (one, other) = (tokio::spawn(read_lines(with_messages, 5)), tokio::spawn(read_lines(without, 3)));
    tokio::task::yield_now().await;
    world.message_outside("note.a", "");
    world.seal();
    world.message_outside("audit", "");
    world.seal();
    tokio::task::yield_now().await;
    world.begin("");
    world.writer.message("note.b", b"", crate::lsn::Lsn(1)).expect("encodes");
    world.seal();
    tokio::task::yield_now().await;
    world.insert(&orders, &["1", "out"]);
    world.seal();
    tokio::task::yield_now().await;
    world.writer.truncate(&[1], false, false, crate::lsn::Lsn(1));
    world.seal();
    tokio::task::yield_now().await;
    world.commit();
    world.seal();
    let one = one.await.expect("no panic");
    assert!(one[1].starts_with("begin") && one[4].contains("2/3"), "{one:?}");
    assert_eq!([&one[0][..], &one[2], &one[3]], ["0 message note.a", "1 message note.b", "3 truncate [1]"]);
    let other = other.await.expect("no panic");
    assert_eq!(other[1], "3 truncate [1]");
    assert!(other[2].contains("1/3"), "{other:?}");
}

async fn read_lines(mut client: Client, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    while lines.len() < count {
        let event: pb::event::Kind = client.event().await;
        lines.extend(client.line(&event));
    }
    lines
}

use std::sync::Arc;

use super::*;
use crate::{
    feed::{Checkpoint, Checkpoints, Error, Fetched, Start, SubscriberKey},
    journal::{
        self,
        conformance::{self, check_all_starts, fill, read_units},
    },
    model::{RelationId, Transaction},
    wire::block::BlockBuilder,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = open(options(dir.path()));
    conformance::run(&mut opened).await;
    assert!(opened.journal.shared().map.read().segments.len() > 5, "the suite crosses segments");
    assert!(opened.journal.shared().ring.bytes() <= 4 << 10);
    opened.close().await;
}

/// Sixteen of them hold the very same blocks, though their sum would fill what may be shared many times over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_at_the_same_place_share_what_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = open(options(dir.path()));
    let mut script = opened.start().await;
    fill(&mut opened, &mut script, 60).await;
    let hot = opened.journal.shared().ring.bytes();
    let mut readers = vec![opened.journal.locate(Start::Earliest).await.expect("earliest"); 16];
    let mut shared = 0;
    loop {
        let mut another = readers[0].clone();
        let read = readers.iter_mut().map(|cursor| opened.journal.fetch(cursor));
        let mut blocks = Vec::new();
        for fetched in futures_util::future::join_all(read).await {
            match fetched.expect("readable") {
                Fetched::Block(block) => blocks.push(block),
                _ => break,
            }
        }
        let Some(first) = blocks.first() else { break };
        assert_eq!(blocks.len(), readers.len());
        assert!(blocks.iter().all(|block| Arc::ptr_eq(block, first)), "block {} was read again", first.number);
        let memory = opened.journal.hot(&mut another);
        assert!(matches!(memory, Some(Fetched::Block(block)) if Arc::ptr_eq(&block, first)), "nobody reads it again");
        assert_eq!((another.block, another.after), (readers[0].block, readers[0].after));
        shared += first.message().len();
    }
    assert!(shared > 10 * hot, "{shared} bytes, {hot} of them in the ring");
    opened.close().await;
}

#[tokio::test]
async fn everything_is_there_after_reopening_with_and_without_the_store() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = open(options(dir.path()));
    assert!(opened.recovered.fresh);
    let mut script = opened.start().await;
    fill(&mut opened, &mut script, 30).await;
    let places = |opened: &Opened| {
        let segments = opened.journal.shared().map.read().segments.clone();
        segments.into_iter().map(|s| (s.number, s.len, s.places)).collect::<Vec<_>>()
    };
    while places(&opened).last().is_none_or(|(_, _, places)| places.len() < 3) {
        fill(&mut opened, &mut script, 1).await;
    }
    let marks = *opened.journal.marks().borrow();
    let before = places(&opened);
    opened.close().await;
    let begins = Position::new(script.lineage, Lsn(BEGINS));
    // The last time with the store that was rebuilt the time before.
    for without_store in [false, true, false] {
        if without_store {
            std::fs::remove_dir_all(dir.path().join("sled")).expect("a store");
        }
        let opened = open(options(dir.path()));
        assert!(!opened.recovered.fresh);
        assert_eq!(opened.recovered.complete, marks.tail);
        assert_eq!(opened.recovered.next_block, marks.next_block);
        assert_eq!(opened.recovered.last_xid, Some(script.xid));
        assert_eq!(opened.recovered.damage, []);
        assert_eq!(opened.recovered.torn_bytes, 0);
        assert_eq!(opened.recovered.relations.iter().map(|r| r.id.0).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(places(&opened), before);
        check_all_starts(&opened.journal, &script, begins).await;
        opened.close().await;
    }
}

#[tokio::test]
async fn an_open_transaction_goes_on_after_reopening() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = open(options(dir.path()));
    let mut script = opened.start().await;
    fill(&mut opened, &mut script, 3).await;
    let complete = opened.journal.marks().borrow().tail;
    let transaction = script.begin(100);
    let mut first_block = 0;
    for n in 0..60 {
        script.change(1, 700);
        let record = script.seal();
        let number = opened.appender.append(record).await.expect("appended");
        first_block = if n == 0 { number } else { first_block };
        if n % 20 == 0 {
            opened.flush().await;
        }
    }
    opened.close().await;

    let mut opened = open(options(dir.path()));
    let open_transaction = opened.recovered.open.clone().expect("an open transaction");
    assert_eq!(open_transaction, journal::OpenTransaction { transaction, first_block, ordinals: 120 });
    assert_eq!(opened.recovered.complete, complete);
    assert_eq!(opened.recovered.last_xid, Some(script.xid));
    let waiting = opened.journal.locate(Start::Latest).await.expect("latest");
    assert_eq!(waiting.block, first_block);
    script.builder = BlockBuilder::new(complete);
    script.builder.begin(open_transaction.transaction, open_transaction.ordinals);
    script.change(2, 10);
    let end = script.commit();
    let record = script.seal();
    opened.append(record).await;
    opened.flush().await;
    assert_eq!(opened.journal.marks().borrow().tail, end);
    let units = read_units(&opened.journal, waiting).await.expect("readable");
    assert_eq!(units, script.units[script.units.len() - 1..]);
    opened.close().await;
}

#[tokio::test]
async fn what_does_not_follow_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = open(options(dir.path()));
    let id = lineage(1, 0).id();
    let mut script = Script::new(Position::new(id, Lsn(BEGINS)));
    script.begin(8);
    script.commit();
    let early = opened.appender.append(script.seal()).await;
    assert!(matches!(early, Err(journal::Error::Order { .. })), "{early:?}");
    let mut script = opened.start().await;
    fill(&mut opened, &mut script, 2).await;
    let marks = *opened.journal.marks().borrow();
    let back = opened.appender.append(Record::Mark(Position::new(id, Lsn(BEGINS)))).await;
    assert!(matches!(back, Err(journal::Error::Order { .. })), "{back:?}");
    let mut old = BlockBuilder::new(Position::new(id, Lsn(BEGINS)));
    old.begin(Transaction::default(), 0);
    old.commit(Position::new(id, Lsn(BEGINS + 8)));
    let repeated = opened.appender.append(Record::Block(old.seal())).await;
    assert!(matches!(repeated, Err(journal::Error::Order { .. })), "{repeated:?}");
    let mut cut = BlockBuilder::new(marks.tail);
    cut.begin(Transaction::default(), 5);
    let inside = opened.appender.append(Record::Block(cut.seal())).await;
    assert!(matches!(inside, Err(journal::Error::Order { .. })), "{inside:?}");
    assert_eq!(opened.appender.flush().await.expect("flushed"), marks);
    opened.close().await;
}

#[tokio::test]
async fn one_hub_at_a_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open(options(dir.path()));
    assert!(matches!(Journal::open(options(dir.path())), Err(journal::Error::Locked(_))));
    opened.close().await;
    open(options(dir.path())).close().await;
}

#[tokio::test]
async fn positions_after_a_switch() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = open(options(dir.path()));
    let mut script = opened.start().await;
    fill(&mut opened, &mut script, 8).await;
    let old_tail = opened.journal.marks().borrow().tail;
    let common = script.units[script.units.len() - 6].position;
    let lost = script.units[script.units.len() - 5].position;
    let switch = common.lsn.0 + 4;
    let next = lineage(2, switch);
    opened.append(Record::Lineage(next.clone())).await;
    let mut second = Script::new(Position::new(next.id(), Lsn(switch)));
    fill(&mut opened, &mut second, 8).await;
    for reopen in [false, true] {
        if reopen {
            opened.close().await;
            opened = open(options(dir.path()));
            assert_eq!(opened.recovered.lineages.len(), 2);
        }
        let feed = &opened.journal;
        assert_eq!(feed.lineage().as_deref(), Some(&next));
        for position in [lost, old_tail] {
            match feed.locate(Start::After(position)).await {
                Err(Error::Diverged { requested, common: shared }) => {
                    assert_eq!(requested, position);
                    assert_eq!(shared.lsn, Lsn(switch));
                }
                other => panic!("{other:?}"),
            }
        }
        let cursor = feed.locate(Start::After(common)).await.expect("the shared part");
        let units = read_units(feed, cursor).await.expect("readable");
        assert_eq!(units[0].position, lost, "the dead part is still readable");
        assert_eq!(units[units.len() - second.units.len()..], second.units);
        let same = Position { lineage: next.id(), ..common };
        assert_eq!(
            feed.locate(Start::After(same)).await.expect("shared").block,
            feed.locate(Start::After(common)).await.expect("shared").block
        );
        for unit in &second.units {
            let cursor = feed.locate(Start::After(unit.position)).await.expect("the new lineage");
            let rest = read_units(feed, cursor).await.expect("readable");
            assert_eq!(rest.len(), second.units.iter().filter(|u| u.position.order() > unit.position.order()).count());
        }
    }
    let report = journal::inspect::verify(dir.path(), &mut |_, _| {}).expect("verified");
    assert_eq!(report.problems, []);
    let again = opened.appender.append(Record::Lineage(lineage(1, 0))).await;
    assert!(matches!(again, Err(journal::Error::Order { .. })));
    opened.close().await;
}

#[tokio::test]
async fn relation_versions_survive_reopening_and_segments() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = open(options(dir.path()));
    let mut script = opened.start().await;
    for id in 3..30 {
        let mut version = (*relation(id, 16384, "a")).clone();
        version.schema = format!("s{id}");
        opened.append(Record::Relation(Arc::new(version))).await;
        fill(&mut opened, &mut script, 1).await;
    }
    opened.close().await;
    for without_store in [false, true] {
        if without_store {
            std::fs::remove_dir_all(dir.path().join("sled")).expect("a store");
        }
        let opened = open(options(dir.path()));
        assert_eq!(opened.recovered.relations.len(), 29);
        let current: Vec<_> = opened.recovered.current.iter().map(|relation| relation.id).collect();
        assert_eq!(current, [RelationId(29), RelationId(2)]);
        assert_eq!(opened.journal.relation(RelationId(11)).expect("known").schema, "s11");
        opened.close().await;
    }
}

fn key(name: &str) -> SubscriberKey {
    SubscriberKey { principal: "p".into(), name: name.into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_are_durable_when_the_call_returns() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open(options(dir.path()));
    let position = Position::new(lineage(1, 0).id(), Lsn(77));
    let checkpoint = Checkpoint {
        position: Some(position),
        snapshot: b"token".as_slice().into(),
        filter: b"filter".as_slice().into(),
        filter_hash: 3,
        session: 4,
        created: -5,
        last_seen: 6,
    };
    let updates = (0..50).map(|n| {
        let (journal, checkpoint) = (opened.journal.clone(), checkpoint.clone());
        tokio::spawn(async move {
            let next = Checkpoint { session: n, ..checkpoint };
            let written = journal.update(&key(&format!("s{n}")), Box::new(|_| Some(next.clone()))).await;
            assert_eq!(written.expect("durable"), Some(next));
        })
    });
    for update in updates.collect::<Vec<_>>() {
        update.await.expect("an update");
    }
    let copy = tempfile::tempdir().expect("a directory");
    copy_dir(dir.path(), copy.path());
    let crashed = open(options(copy.path()));
    assert_eq!(crashed.journal.list().len(), 50);
    assert_eq!(crashed.journal.get(&key("s7")), Some(Checkpoint { session: 7, ..checkpoint.clone() }));
    crashed.close().await;

    assert!(opened.journal.delete(&key("s7")).await.expect("durable"));
    assert!(!opened.journal.delete(&key("s7")).await.expect("durable"));
    let unchanged = opened.journal.update(&key("s8"), Box::new(|_| None)).await.expect("durable");
    assert_eq!(unchanged.map(|checkpoint| checkpoint.session), Some(8));
    let large = Checkpoint { filter: vec![0; 5000].into(), ..checkpoint };
    assert!(opened.journal.update(&key("s9"), Box::new(|_| Some(large))).await.is_err());
    opened.close().await;
    let opened = open(options(dir.path()));
    assert_eq!(opened.journal.get(&key("s7")), None);
    assert_eq!(opened.journal.get(&key("s9")).map(|checkpoint| checkpoint.session), Some(9));
    opened.close().await;
}

#[tokio::test]
async fn changes_of_one_checkpoint_follow_each_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let opened = open(options(dir.path()));
    let name = key("one");
    let add = || {
        let next = |present: Option<&Checkpoint>| {
            let session = present.map_or(0, |checkpoint| checkpoint.session) + 1;
            Some(Checkpoint { session, ..Checkpoint::default() })
        };
        opened.journal.update(&name, Box::new(next))
    };
    let mut sessions: Vec<u64> = futures_util::future::join_all((0..100).map(|_| add()))
        .await
        .into_iter()
        .flat_map(|r| r.expect("ok"))
        .map(|c| c.session)
        .collect();
    sessions.sort();
    assert_eq!(sessions, (1..=100).collect::<Vec<_>>());
    opened.close().await;
}

#[tokio::test]
async fn a_broken_store_is_kept_and_said_to_be_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = open(options(dir.path()));
    let mut script = opened.start().await;
    fill(&mut opened, &mut script, 10).await;
    opened.journal.update(&key("x"), Box::new(|_| Some(Checkpoint::default()))).await.expect("durable");
    opened.close().await;
    let db = dir.path().join("sled").join("conf");
    std::fs::write(&db, b"not a configuration").expect("damaged");
    let opened = open(options(dir.path()));
    assert!(opened.recovered.lost_checkpoints.is_some());
    assert!(dir.path().join("sled.broken-1").exists());
    assert!(opened.journal.list().is_empty());
    check_all_starts(&opened.journal, &script, Position::new(script.lineage, Lsn(BEGINS))).await;
    opened.close().await;

    std::fs::write(dir.path().join("sled").join("snap.00ff.generating"), b"cut").expect("a leftover");
    let opened = open(options(dir.path()));
    assert_eq!(opened.recovered.lost_checkpoints, None);
    opened.close().await;
}

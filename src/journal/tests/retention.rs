use super::*;
use crate::{
    feed::{Checkpoint, Checkpoints, Error, Fetched, Start, SubscriberKey},
    journal::{
        conformance::{fill, read_units},
        disk::now,
        retention,
    },
    model::RelationId,
};

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("segments")).expect("segments").count()
}

/// Ages every segment by an hour.
fn age(opened: &Opened) {
    opened.journal.shared().map.write().segments.iter_mut().for_each(|segment| segment.created -= 3_600_000_000);
}

fn run(opened: &Opened) {
    retention::run(opened.journal.shared(), opened.journal.desk());
}

#[tokio::test]
async fn bytes_bound_the_journal_and_the_rest_stays_readable() {
    let dir = tempfile::tempdir().expect("a directory");
    let retain_bytes = 80 << 10;
    let mut opened = open(Options { retain_bytes, ..options(dir.path()) });
    let mut script = opened.start().await;
    let begins = opened.journal.window().earliest;
    let mut stale = opened.journal.locate(Start::Earliest).await.expect("earliest");
    fill(&mut opened, &mut script, 120).await;
    opened.journal.fetch(&mut stale.clone()).await.expect("still there");
    assert!(opened.journal.hot(&mut stale.clone()).is_some(), "in memory");
    run(&opened);
    assert!(opened.journal.hot(&mut stale.clone()).is_none(), "what is removed is not read from memory either");
    let window = opened.journal.window();
    assert!(window.bytes <= retain_bytes, "{}", window.bytes);
    assert!(window.earliest.order() > begins.order());
    assert!(window.expiry_bytes_per_second > 0);
    assert_eq!(files(dir.path()), opened.journal.shared().map.read().segments.len());
    for (name, start) in [("position", Start::After(begins)), ("LSN", Start::AfterLsn(begins.lsn))] {
        let refused = opened.journal.locate(start).await;
        assert!(matches!(refused, Err(Error::Expired { earliest, .. }) if earliest == window.earliest), "{name}");
    }
    let refused = opened.journal.fetch(&mut stale).await;
    assert!(matches!(refused, Err(Error::Expired { .. })), "{refused:?}");
    let mut expired = 0;
    for unit in &script.units {
        let refused = matches!(opened.journal.locate(Start::After(unit.position)).await, Err(Error::Expired { .. }));
        assert_eq!(opened.journal.has_expired(unit.position), refused, "{}", unit.position);
        expired += usize::from(refused);
    }
    assert!(expired > 0 && expired < script.units.len());
    for reopen in [false, true] {
        if reopen {
            opened.close().await;
            opened = open(options(dir.path()));
        }
        assert_eq!(opened.journal.window().earliest, window.earliest);
        assert_eq!(opened.journal.window().earliest_commit_time, window.earliest_commit_time);
        let first = script.units.partition_point(|unit| unit.position.order() <= window.earliest.order());
        let cursor = opened.journal.locate(Start::Earliest).await.expect("earliest");
        let units = read_units(&opened.journal, cursor).await.expect("readable");
        assert_eq!(units, script.units[first..]);
        let commit_time = opened.journal.window().earliest_commit_time.expect("commits");
        let cursor = opened.journal.locate(Start::Since(commit_time)).await.expect("since");
        assert!(read_units(&opened.journal, cursor).await.expect("readable").len() <= units.len());
        for unit in &units {
            let cursor = opened.journal.locate(Start::After(unit.position)).await.expect("retained");
            let rest = read_units(&opened.journal, cursor).await.expect("readable");
            assert_eq!(rest, units[units.len() - rest.len()..]);
        }
    }
    opened.close().await;
}

#[tokio::test]
async fn a_segment_that_begins_inside_a_transaction_starts_behind_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = open(Options { retain_bytes: 20 << 10, ..options(dir.path()) });
    let mut script = opened.start().await;
    fill(&mut opened, &mut script, 1).await;
    script.begin(100);
    for _ in 0..80 {
        script.change(1, 900);
        let record = script.seal();
        opened.append(record).await;
    }
    opened.flush().await;
    run(&opened);
    let begins = opened.journal.shared().map.read().open_since.expect("open");
    let first = opened.journal.shared().map.read().first_block();
    assert!(first <= begins, "the open transaction stays whole: {first} and {begins}");
    let end = script.commit();
    let record = script.seal();
    opened.append(record).await;
    fill(&mut opened, &mut script, 1).await;
    run(&opened);
    assert!(opened.journal.shared().map.read().first_block() > begins);
    for reopen in [false, true] {
        if reopen {
            opened.close().await;
            opened = open(options(dir.path()));
        }
        assert_eq!(opened.journal.window().earliest, end);
        let cursor = opened.journal.locate(Start::After(end)).await.expect("the earliest");
        let units = read_units(&opened.journal, cursor).await.expect("readable");
        let from = script.units.partition_point(|unit| unit.position.order() <= end.order());
        assert_eq!(units, script.units[from..]);
        let cursor = opened.journal.locate(Start::Since(0)).await.expect("the earliest");
        assert_eq!(read_units(&opened.journal, cursor).await.expect("readable"), units);
    }
    opened.close().await;
}

#[tokio::test]
async fn subscribers_hold_old_segments_until_the_cap() {
    let dir = tempfile::tempdir().expect("a directory");
    let retain_age = Duration::from_secs(1800);
    let mut opened = open(Options { retain_age, ..options(dir.path()) });
    let mut script = opened.start().await;
    fill(&mut opened, &mut script, 60).await;
    let begins = opened.journal.window().earliest;
    let name = SubscriberKey { principal: String::new(), name: "slow".into() };
    let at = script.units[script.units.len() / 2].position;
    let seen = |last_seen| Checkpoint { position: Some(at), last_seen, ..Checkpoint::default() };
    opened.journal.update(&name, Box::new(|_| Some(seen(now())))).await.expect("durable");
    run(&opened);
    assert_eq!(opened.journal.window().earliest, begins, "nothing is old yet");
    age(&opened);
    run(&opened);
    let held = opened.journal.window().earliest;
    assert!(begins.order() < held.order() && held.order() <= at.order(), "{held} for a subscriber at {at}");
    let cursor = opened.journal.locate(Start::After(at)).await.expect("held");
    assert_eq!(read_units(&opened.journal, cursor).await.expect("readable").len(), script.units.len() / 2 - 1);

    opened.journal.update(&name, Box::new(|_| Some(seen(now() - 3_600_000_000)))).await.expect("durable");
    run(&opened);
    assert_eq!(opened.journal.shared().map.read().segments.len(), 1, "a silent subscriber does not count");
    opened.close().await;

    let dir = tempfile::tempdir().expect("a directory");
    let retain_bytes = 60 << 10;
    let mut opened = open(Options { retain_bytes, ..options(dir.path()) });
    let mut script = opened.start().await;
    let begins = opened.journal.window().earliest;
    let needed = Checkpoint { position: Some(begins), last_seen: now(), ..Checkpoint::default() };
    opened.journal.update(&name, Box::new(|_| Some(needed))).await.expect("durable");
    fill(&mut opened, &mut script, 120).await;
    run(&opened);
    assert!(opened.journal.window().bytes <= retain_bytes, "beyond the cap the floor yields");
    opened.close().await;
}

#[tokio::test]
async fn a_superseded_version_stays_while_a_retained_block_may_use_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = open(Options { retain_bytes: 40 << 10, ..options(dir.path()) });
    let mut script = opened.start().await;
    for id in 3..60 {
        let mut version = (*relation(id, 16384, "a")).clone();
        version.schema = format!("s{id}");
        // The block is sealed after the new version was announced and still uses the old one.
        script.begin(50);
        script.change(if id == 3 { 1 } else { id - 1 }, 400);
        opened.append(Record::Relation(Arc::new(version))).await;
        script.change(id, 400);
        script.commit();
        let record = script.seal();
        opened.append(record).await;
        opened.flush().await;
        run(&opened);
    }
    for turn in 0..3 {
        let known = opened.journal.relations();
        assert!(known.len() < 59, "versions that nobody can meet are forgotten");
        assert!(opened.journal.relation(RelationId(2)).is_some(), "current versions are always known");
        let mut cursor = opened.journal.locate(Start::Earliest).await.expect("earliest");
        let mut used = 0;
        while let Fetched::Block(block) = opened.journal.fetch(&mut cursor).await.expect("readable") {
            for entry in block.index().expect("index").entries.iter().filter(|entry| entry.relation.0 > 0) {
                assert!(opened.journal.relation(entry.relation).is_some(), "{:?} is not known", entry.relation);
                used += 1;
            }
        }
        assert!(used >= 10, "{used}");
        opened.close().await;
        if turn == 1 {
            std::fs::remove_dir_all(dir.path().join("sled")).expect("a store");
        }
        opened = open(options(dir.path()));
    }
    opened.close().await;
}

use super::*;
use crate::{
    feed::{Fetched, Start},
    journal::{
        conformance::{Unit, fill, read_units},
        inspect,
    },
    wire::block::BlockBuilder,
};

async fn all(journal: &Journal) -> Vec<Unit> {
    let cursor = journal.locate(Start::Earliest).await.expect("earliest");
    read_units(journal, cursor).await.expect("readable")
}

/// The directory is copied while the writer is busy, as `kill -9` would leave it, and opened again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_made_at_any_moment_opens_to_a_prefix() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = open(options(dir.path()));
    let mut script = opened.start().await;
    let mut copies = Vec::new();
    for round in 0..24 {
        let copying = {
            let (from, to) = (dir.path().to_owned(), tempfile::tempdir().expect("a directory"));
            let promised = *opened.journal.marks().borrow();
            let complete_before = script.units.len();
            tokio::task::spawn_blocking(move || {
                // Files in the order in which a crash would have cut them: the newest segment last.
                copy_dir(&from, to.path());
                (to, promised, complete_before)
            })
        };
        fill(&mut opened, &mut script, 1 + round % 4).await;
        copies.push(copying);
    }
    for copy in copies {
        let (copy, promised, at_least) = copy.await.expect("copied");
        // A copy of a store that is being written is not what a crash leaves: the journal must not need it.
        for without_store in [false, true] {
            let dir = tempfile::tempdir().expect("a directory");
            copy_dir(copy.path(), dir.path());
            if without_store {
                std::fs::remove_dir_all(dir.path().join("sled")).expect("a store");
            }
            let crashed = open(options(dir.path()));
            assert_eq!(crashed.recovered.damage, []);
            assert!(crashed.recovered.complete.order() >= promised.tail.order(), "what was promised is there");
            let units = all(&crashed.journal).await;
            assert!(units.len() >= at_least);
            assert_eq!(units, script.units[..units.len()]);
            let crashed = go_on(crashed).await;
            crashed.close().await;
            let report = inspect::verify(dir.path(), &mut |_, _| {}).expect("readable");
            assert_eq!(report.problems, []);
        }
    }
    opened.close().await;
}

/// Ingest goes on after a crash: an open transaction is discarded, another one follows.
async fn go_on(mut crashed: Opened) -> Opened {
    let mut builder = BlockBuilder::new(crashed.recovered.complete);
    if let Some(cut) = crashed.recovered.open.clone() {
        builder.begin(cut.transaction, cut.ordinals);
        builder.discard("again");
    }
    let mut script = Script::new(crashed.recovered.complete);
    std::mem::swap(&mut script.builder, &mut builder);
    script.begin(50);
    script.change(1, 40);
    let end = script.commit();
    let block = script.builder.seal();
    crashed.append(Record::Block(block)).await;
    crashed.flush().await;
    assert_eq!(crashed.journal.marks().borrow().tail, end);
    crashed
}

#[tokio::test]
async fn verify_and_list_agree_with_the_journal() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = open(options(dir.path()));
    let mut script = opened.start().await;
    fill(&mut opened, &mut script, 20).await;
    let marks = *opened.journal.marks().borrow();
    for running in [true, false] {
        let mut seen = (0, 0);
        let mut progress = |done, total| {
            assert!(done >= seen.0 && done <= total);
            seen = (done, total);
        };
        let report = inspect::verify(dir.path(), &mut progress).expect("readable");
        assert_eq!(seen.0, seen.1);
        assert_eq!(report.problems, []);
        assert_eq!((report.tail, report.blocks, report.torn_bytes), (marks.tail, marks.next_block - 1, 0));
        let listed = inspect::list(dir.path()).expect("readable");
        assert_eq!(listed.iter().map(|segment| segment.blocks).sum::<u64>(), report.blocks);
        assert_eq!(listed.last().map(|segment| segment.up_to), Some(marks.tail));
        if running {
            let bytes: u64 = listed.iter().map(|segment| segment.bytes).sum();
            assert_eq!(bytes, opened.journal.window().bytes);
        }
    }
    opened.close().await;
}

#[tokio::test]
async fn a_block_larger_than_a_segment_works() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut opened = open(options(dir.path()));
    let mut script = opened.start().await;
    for size in [100, 50_000, 3_000_000, 20] {
        script.begin(10);
        script.change(1, size);
        script.commit();
        let record = script.seal();
        opened.append(record).await;
    }
    opened.flush().await;
    assert_eq!(all(&opened.journal).await, script.units);
    opened.close().await;
    let opened = open(options(dir.path()));
    assert_eq!(all(&opened.journal).await, script.units);
    let mut cursor = opened.journal.locate(Start::Earliest).await.expect("earliest");
    cursor.block += 2;
    let Ok(Fetched::Block(block)) = opened.journal.fetch(&mut cursor).await else { panic!("a block") };
    assert!(block.message().len() > 3_000_000);
    opened.close().await;
}

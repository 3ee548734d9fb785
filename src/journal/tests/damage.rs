use std::{fs, path::PathBuf, sync::OnceLock};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    feed::{Cursor, Error, Fetched, Start},
    journal::{
        self,
        conformance::{Reader, Unit, fill, read_units},
        inspect,
    },
    wire::block::SpanEnd,
};

struct Sample {
    dir: TempDir,
    units: Vec<Unit>,
    blocks: Vec<bytes::Bytes>,
    /// Commit times, and the resume points in front of their blocks.
    times: Vec<(i64, Position)>,
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A journal of several segments, made once.
fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        runtime().block_on(async {
            let dir = tempfile::tempdir().expect("a directory");
            let mut opened = open(options(dir.path()));
            let mut script = opened.start().await;
            fill(&mut opened, &mut script, 14).await;
            script.begin(100);
            for _ in 0..10 {
                script.change(1, 500);
                let record = script.seal();
                opened.append(record).await;
                opened.flush().await;
            }
            let mut cursor = opened.journal.locate(Start::Earliest).await.expect("earliest");
            let (mut blocks, mut times) = (Vec::new(), Vec::new());
            while let Fetched::Block(block) = opened.journal.fetch(&mut cursor).await.expect("readable") {
                blocks.push(block.message().clone());
                times.extend((block.commit_time != 0).then_some((block.commit_time, block.after)));
            }
            opened.close().await;
            Sample { dir, units: script.units, blocks, times }
        })
    })
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir.join("segments")).expect("segments").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

/// Whatever was done to the files: a typed error, or a journal in which every block that can be read is the one that
/// was written, every unit that a start gives is the right one, and only damage is a reason to stop.
async fn check(dir: &Path) {
    let sample = sample();
    inspect::list(dir).expect("listed");
    inspect::verify(dir, &mut |_, _| {}).expect("verified");
    let opened = match Journal::open(options(dir)) {
        Ok((journal, appender, recovered)) => Opened { journal, appender, recovered },
        Err(journal::Error::Corrupt(_)) => return,
        Err(error) => panic!("not an answer to damage: {error}"),
    };
    let next = opened.journal.marks().borrow().next_block;
    let first = opened.journal.shared().map.read().first_block();
    for number in first..next {
        let mut cursor = Cursor { block: number, after: Position::default() };
        match opened.journal.fetch(&mut cursor).await {
            Ok(Fetched::Block(block)) => {
                assert_eq!(block.number, number);
                assert_eq!(block.message(), &sample.blocks[number as usize - 1], "block {number}");
            }
            Ok(Fetched::AtTail) => panic!("block {number} is in front of the tail"),
            Err(Error::Corrupt { .. }) => {}
            Err(error) => panic!("not an answer to damage: {error}"),
        }
    }
    for start in sample.units.iter().map(|unit| unit.position).step_by(3) {
        check_start(&opened.journal, start).await;
    }
    for (time, after) in sample.times.iter().step_by(2) {
        check_time(&opened.journal, *time, *after).await;
    }
    opened.close().await;
}

/// From a commit time the units come that follow the resume point in front of it, as far as they are retained.
async fn check_time(journal: &Journal, time: i64, after: Position) {
    let cursor = match journal.locate(Start::Since(time)).await {
        Ok(cursor) => cursor,
        Err(Error::Corrupt { .. }) => return,
        Err(error) => panic!("not an answer to damage: {error}"),
    };
    let tail = journal.marks().borrow().tail;
    let from = if after.order() < journal.window().earliest.order() { journal.window().earliest } else { after };
    let (units, order) = (&sample().units, |unit: &Unit| unit.position.order());
    let expected = &units[units.partition_point(|unit| order(unit) <= from.order())..];
    let mut reader = Reader::new(cursor);
    let result = reader.drain(journal).await;
    assert_eq!(reader.units, expected[..reader.units.len().min(expected.len())], "since {time}");
    let end = expected.partition_point(|unit| order(unit) <= tail.order());
    assert!(result.is_err() || reader.units.len() == end, "nothing is left out since {time}");
}

/// From a position the right units come, up to the damage, and go on behind it where the error says.
async fn check_start(journal: &Journal, start: Position) {
    let units = &sample().units;
    let mut after = start;
    for _ in 0..50 {
        let expected = &units[units.partition_point(|unit| unit.position.order() <= after.order())..];
        let error = match journal.locate(Start::After(after)).await {
            Ok(cursor) => {
                let mut reader = Reader::new(cursor);
                let result = reader.drain(journal).await;
                assert_eq!(reader.units, expected[..reader.units.len()], "after {after}");
                let Err(error) = result else {
                    let tail = journal.marks().borrow().tail;
                    let end = expected.partition_point(|unit| unit.position.order() <= tail.order());
                    assert_eq!(reader.units.len(), end, "nothing is left out after {after}");
                    return;
                };
                error
            }
            Err(error) => error,
        };
        match error {
            Error::Corrupt { up_to: Some(up_to), .. } if up_to.order() > after.order() => after = up_to,
            Error::Corrupt { .. } | Error::Expired { .. } => return,
            error => panic!("not an answer to damage: {error}"),
        }
    }
    panic!("the damage does not end");
}

fn damaged_copy(with_store: bool) -> TempDir {
    let copy = tempfile::tempdir().expect("a directory");
    copy_dir(sample().dir.path(), copy.path());
    if !with_store {
        fs::remove_dir_all(copy.path().join("sled")).expect("a store");
    }
    copy
}

/// A sector of 512 bytes, with zeros or with something else.
fn overwrite(bytes: &mut [u8], sector: usize, zero: bool) {
    let bytes = &mut bytes[sector * 512..][..512];
    bytes.iter_mut().for_each(|byte| *byte = if zero { 0 } else { byte.wrapping_mul(7) ^ 0x5a });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_byte_is_never_wrong_data(
        file in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        flip in 1..=255u8,
        with_store: bool,
    ) {
        let copy = damaged_copy(with_store);
        let paths = segments(copy.path());
        let path = &paths[file.index(paths.len())];
        let mut bytes = fs::read(path).expect("a segment");
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        fs::write(path, bytes).expect("damaged");
        runtime().block_on(check(copy.path()));
    }

    #[test]
    fn a_truncated_file_is_never_wrong_data(
        file in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        with_store: bool,
    ) {
        let copy = damaged_copy(with_store);
        let paths = segments(copy.path());
        let path = &paths[file.index(paths.len())];
        let len = fs::metadata(path).expect("a segment").len();
        let file = fs::File::options().write(true).open(path).expect("a segment");
        file.set_len(at.index(len as usize) as u64).expect("truncated");
        runtime().block_on(check(copy.path()));
    }

    #[test]
    fn overwritten_pages_are_never_wrong_data(
        file in any::<prop::sample::Index>(),
        pages in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 1..4),
        with_store: bool,
    ) {
        let copy = damaged_copy(with_store);
        let paths = segments(copy.path());
        let path = &paths[file.index(paths.len())];
        let mut bytes = fs::read(path).expect("a segment");
        for (page, zero) in pages {
            let page = page.index(bytes.len() / 512);
            overwrite(&mut bytes, page, zero);
        }
        fs::write(path, bytes).expect("damaged");
        runtime().block_on(check(copy.path()));
    }
}

/// Where a segment's first STATE begins, and behind it.
fn first_state(bytes: &[u8]) -> std::ops::Range<usize> {
    use crate::journal::segment::{FileHeader, Kind, RECORDS, Scanner, Slice, Step};
    let salt = FileHeader::decode(bytes).expect("a header").salt;
    let mut scanner = Scanner::new(Slice { base: 0, bytes: bytes.to_vec().into() }, salt, RECORDS, true);
    loop {
        match scanner.step().expect("readable") {
            Step::Record { offset, header, .. } if header.kind == Kind::State as u8 => {
                return offset as usize..(offset + header.size()) as usize;
            }
            Step::Record { .. } => {}
            step => panic!("no STATE: {step:?}"),
        }
    }
}

/// What is open in front of a segment can be read from the one before, so losing the STATE it begins with loses nothing.
#[test]
fn a_lost_state_at_the_front_of_a_segment_costs_no_unit() {
    let count = segments(sample().dir.path()).len();
    for segment in 1..count - 1 {
        let copy = damaged_copy(false);
        let path = &segments(copy.path())[segment];
        let mut bytes = fs::read(path).expect("a segment");
        let state = first_state(&bytes);
        bytes[state.start + 20] ^= 1;
        fs::write(path, bytes).expect("damaged");
        runtime().block_on(async {
            let opened = open(options(copy.path()));
            let units = &sample().units;
            let starts = units.iter().map(|unit| (Start::After(unit.position), unit.position));
            let since = sample().times.iter().map(|(time, after)| (Start::Since(*time), *after));
            for (start, after) in starts.chain(since) {
                let cursor = opened.journal.locate(start.clone()).await.expect("nothing is lost");
                let read = read_units(&opened.journal, cursor).await.expect("nothing is lost");
                let expected = &units[units.partition_point(|unit| unit.position.order() <= after.order())..];
                assert_eq!(read.len(), expected.len(), "{start:?}");
                assert_eq!(read, expected);
            }
            opened.close().await;
        });
    }
}

/// Sectors of the first records of a segment: nothing in it says any more what its start belongs to.
#[test]
fn damage_where_the_records_begin_leaves_nothing_out_silently() {
    for segment in 1..segments(sample().dir.path()).len() {
        for with_store in [true, false] {
            let copy = damaged_copy(with_store);
            let path = &segments(copy.path())[segment];
            let mut bytes = fs::read(path).expect("a segment");
            for (page, zero) in [(16, false), (25, false), (21, true)] {
                overwrite(&mut bytes, page, zero);
            }
            fs::write(path, bytes).expect("damaged");
            runtime().block_on(check(copy.path()));
        }
    }
}

#[test]
fn a_missing_segment_is_damage() {
    for with_store in [true, false] {
        let copy = damaged_copy(with_store);
        let paths = segments(copy.path());
        fs::remove_file(&paths[1]).expect("removed");
        let report = inspect::verify(copy.path(), &mut |_, _| {}).expect("verified");
        assert!(matches!(report.problems[..], [inspect::Problem::Gap { .. }]), "{:?}", report.problems);
        runtime().block_on(check(copy.path()));
    }
}

#[test]
fn damage_in_the_middle_is_named_and_does_not_hide_the_rest() {
    for with_store in [true, false] {
        let copy = damaged_copy(with_store);
        let paths = segments(copy.path());
        let mut bytes = fs::read(&paths[1]).expect("a segment");
        let middle = bytes.len() * 3 / 4;
        bytes[middle] ^= 1;
        fs::write(&paths[1], bytes).expect("damaged");
        let report = inspect::verify(copy.path(), &mut |_, _| {}).expect("verified");
        assert!(matches!(report.problems[..], [inspect::Problem::Damaged { .. }]), "{:?}", report.problems);
        runtime().block_on(async {
            let opened = open(options(copy.path()));
            let cursor = opened.journal.locate(Start::Earliest).await.expect("earliest");
            let Err(Error::Corrupt { after, up_to: Some(up_to), .. }) = read_units(&opened.journal, cursor).await
            else {
                panic!("the damage is named");
            };
            assert!(after.order() < up_to.order());
            let cursor = opened.journal.locate(Start::After(up_to)).await.expect("behind the damage");
            let units = read_units(&opened.journal, cursor).await.expect("readable");
            let all = &sample().units;
            assert_eq!(units, all[all.partition_point(|unit| unit.position.order() <= up_to.order())..]);
            assert!(units.len() > all.len() / 2);
            opened.close().await;
        });
    }
}

/// Below what a later record names as synced nothing is ever cut, in the last segment neither.
#[test]
fn damage_below_what_was_synced_is_not_taken_for_a_torn_tail() {
    use crate::journal::segment::{FileHeader, Kind, RECORD_LEN, RECORDS, Scanner, Slice, Step};
    let whole_dir = damaged_copy(true);
    let whole = open(options(whole_dir.path()));
    let (complete, next_block) = (whole.recovered.complete, whole.recovered.next_block);
    runtime().block_on(whole.close());
    for with_store in [true, false] {
        let copy = damaged_copy(with_store);
        let path = segments(copy.path()).pop().expect("a segment");
        let mut bytes = fs::read(&path).expect("a segment");
        let salt = FileHeader::decode(&bytes).expect("a header").salt;
        let mut scanner = Scanner::new(Slice { base: 0, bytes: bytes.clone().into() }, salt, RECORDS, true);
        let mut blocks = Vec::new();
        let mut synced = 0;
        while let Step::Record { offset, header, .. } = scanner.step().expect("readable") {
            synced = header.synced.max(synced);
            blocks.extend((header.kind == Kind::Block as u8).then_some((offset, header)));
        }
        let proven = blocks.iter().rfind(|(offset, header)| offset + header.size() <= synced);
        let (offset, header) = proven.expect("a block below the last known sync");
        bytes[*offset as usize + RECORD_LEN + 40] ^= 4;
        fs::write(&path, &bytes).expect("damaged");
        runtime().block_on(async {
            let opened = open(options(copy.path()));
            assert_eq!((opened.recovered.complete, opened.recovered.next_block), (complete, next_block));
            assert_eq!(opened.recovered.torn_bytes, 0);
            let mut cursor = Cursor { block: header.block, after: Position::default() };
            let refused = opened.journal.fetch(&mut cursor).await;
            assert!(matches!(refused, Err(Error::Corrupt { .. })), "{refused:?}");
            opened.close().await;
        });
        let report = inspect::verify(copy.path(), &mut |_, _| {}).expect("verified");
        assert!(matches!(report.problems[..], [inspect::Problem::Damaged { .. }]), "{:?}", report.problems);
    }
}

#[test]
fn a_torn_group_is_cut_and_never_comes_back() {
    let copy = damaged_copy(false);
    let path = segments(copy.path()).pop().expect("a segment");
    let listed = inspect::list(copy.path()).expect("listed");
    let end = listed.last().expect("a segment").bytes as usize;
    let mut bytes = fs::read(&path).expect("a segment");
    bytes[end - 700..end - 600].fill(0);
    fs::write(&path, &bytes).expect("torn");
    runtime().block_on(async {
        let mut opened = open(options(copy.path()));
        assert!(opened.recovered.torn_bytes > 0);
        assert_eq!(opened.recovered.damage, []);
        let cut = opened.recovered.open.clone().expect("an open transaction");
        let next = opened.recovered.next_block;
        let mut script = Script::new(opened.recovered.complete);
        script.builder.begin(cut.transaction, cut.ordinals);
        script.change(1, 450);
        let end = script.commit();
        let block = script.builder.seal();
        assert!(block.index().expect("index").spans.iter().any(|span| matches!(span.ending, SpanEnd::Commit { .. })));
        assert_eq!(opened.appender.append(Record::Block(block)).await.expect("appended"), next);
        opened.flush().await;
        opened.close().await;
        let opened = open(options(copy.path()));
        assert_eq!((opened.recovered.complete, opened.recovered.next_block), (end, next + 1));
        assert_eq!(opened.recovered.torn_bytes, 0);
        opened.close().await;
    });
}

#[test]
fn later_versions_and_records_are_named() {
    use crate::journal::segment::{FileHeader, HEADER_COPY, HEADER_LEN, RECORD_LEN, RECORDS, RecordHeader};
    let copy = damaged_copy(false);
    let path = segments(copy.path()).pop().expect("a segment");
    let bytes = fs::read(&path).expect("a segment");
    let header = FileHeader::decode(&bytes).expect("a header");
    let mut unknown = bytes.clone();
    let at = RECORDS as usize;
    let record = RecordHeader::decode(header.salt, RECORDS, &unknown[at..]).expect("a record");
    RecordHeader { kind: 99, ..record }.encode(header.salt, RECORDS, &mut unknown[at..at + RECORD_LEN]);
    fs::write(&path, unknown).expect("written");
    let refused = Journal::open(options(copy.path())).map(drop);
    assert!(matches!(refused, Err(journal::Error::UnknownRecord { kind: 99, .. })), "{refused:?}");

    let mut later = bytes;
    for at in [0, HEADER_COPY as usize] {
        later[at + 8] = 2;
        let crc = crc32c::crc32c(&later[at..at + HEADER_LEN - 4]);
        later[at + HEADER_LEN - 4..at + HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(&path, later).expect("written");
    let refused = Journal::open(options(copy.path())).map(drop);
    assert!(matches!(refused, Err(journal::Error::Version { found: 2, .. })), "{refused:?}");
}

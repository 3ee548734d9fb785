//! Blocks against a model: whatever is added, in whatever blocks it is cut, comes out again in the same order and is
//! found through the index.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    model::{Datum, OldImage, Transaction},
    wire::{
        encode, pb,
        pb::event::Kind,
        reference::{relation, unframed},
    },
};

const LINEAGE: LineageId = LineageId(0xfeed);

fn at(lsn: u64) -> Position {
    Position::new(LINEAGE, Lsn(lsn))
}

fn transaction(commit_lsn: u64) -> Transaction {
    Transaction { commit_lsn: Lsn(commit_lsn), xid: commit_lsn, commit_time: commit_lsn as i64, ..Default::default() }
}

fn insert(builder: &mut BlockBuilder, text: &str, lsn: u64) -> Result<(), encode::Error> {
    let row = Some([Datum::Text(text.as_bytes())].into_iter());
    let no_old = None::<(OldImage, std::iter::Empty<Datum<'_>>)>;
    builder.change(&relation(&[23]), Operation::Insert, Lsn(lsn), no_old, row)
}

fn stored(block: &Block) -> BytesMut {
    let mut bytes = BytesMut::new();
    block.encode_head(&mut bytes);
    bytes.put_slice(block.message());
    bytes
}

/// The block as it comes back from storage, which must be the same.
fn restored(block: &Block) -> Block {
    let restored = Block::decode(stored(block).freeze()).unwrap();
    let index = |block: &Block| block.index().map(|index| (index.entries.clone(), index.spans.clone())).unwrap();
    assert_eq!(index(&restored), index(block));
    assert_eq!(restored.message(), block.message());
    assert_eq!(restored.continued_begin(), block.continued_begin());
    let numbers = |b: &Block| (b.number, b.after, b.up_to, b.events, b.commit_time, b.ends_open);
    assert_eq!(numbers(&restored), numbers(block));
    restored
}

fn kinds(payload: &[u8]) -> Vec<Kind> {
    let response = <pb::SubscribeResponse as prost::Message>::decode(payload).unwrap();
    response.events.into_iter().map(|event| event.kind.unwrap()).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Begin,
    Insert(u64),
    Truncate(u64),
    Message(u64),
    Bad,
    Commit,
    Discard,
    Outside(u64),
    Seal,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lsn = || 0u64..500;
    let step = prop_oneof![
        3 => Just(Step::Begin),
        5 => lsn().prop_map(Step::Insert),
        1 => lsn().prop_map(Step::Truncate),
        1 => lsn().prop_map(Step::Message),
        1 => Just(Step::Bad),
        3 => Just(Step::Commit),
        1 => Just(Step::Discard),
        1 => lsn().prop_map(Step::Outside),
        3 => Just(Step::Seal),
        1 => Just(Step::Restart),
    ];
    vec(step, 0..60)
}

/// What the model expects of one event.
#[derive(Clone, Debug, PartialEq)]
enum Expected {
    Begin(u64),
    Entry { kind: EntryKind, ordinal: u64, lsn: u64 },
    Commit { total: u64, position: Position },
    Discard,
    Outside { position: Position },
}

#[derive(Default)]
struct Run {
    blocks: Vec<Block>,
    expected: Vec<Expected>,
}

/// Plays the steps that make sense, as `ingest` would.
fn play(steps: Vec<Step>) -> Run {
    let mut run = Run::default();
    let mut builder = BlockBuilder::new(at(1000));
    let mut end = 1000;
    let seal = |builder: &mut BlockBuilder, run: &mut Run| {
        if !builder.is_empty() {
            run.blocks.push(builder.seal());
        }
    };
    for step in steps {
        let open = builder.open_transaction().map(|(transaction, ordinals)| (transaction.clone(), ordinals));
        match (step, open) {
            (Step::Begin, None) => {
                builder.begin(transaction(end + 10), 0);
                run.expected.push(Expected::Begin(end + 10));
            }
            (Step::Insert(lsn), Some((_, ordinals))) => {
                insert(&mut builder, "42", lsn).unwrap();
                run.expected.push(Expected::Entry { kind: EntryKind::Insert, ordinal: ordinals + 1, lsn });
            }
            (Step::Truncate(lsn), Some((_, ordinals))) => {
                builder.truncate(&[7, 8], true, false, Lsn(lsn));
                run.expected.push(Expected::Entry { kind: EntryKind::Truncate, ordinal: ordinals + 1, lsn });
            }
            (Step::Message(lsn), Some((_, ordinals))) => {
                builder.message("p", b"c", Lsn(lsn)).unwrap();
                run.expected.push(Expected::Entry { kind: EntryKind::Message, ordinal: ordinals + 1, lsn });
            }
            (Step::Bad, Some((transaction, ordinals))) => {
                let len = builder.len();
                insert(&mut builder, "not a number", 1).unwrap_err();
                assert_eq!(builder.len(), len);
                assert_eq!(builder.open_transaction(), Some((&transaction, ordinals)));
            }
            (Step::Commit, Some((transaction, total))) => {
                end = transaction.commit_lsn.0 + 5;
                builder.commit(at(end));
                run.expected.push(Expected::Commit { total, position: at(end) });
            }
            (Step::Discard, Some(_)) => {
                builder.discard("lineage ended");
                run.expected.push(Expected::Discard);
            }
            (Step::Outside(by), None) => {
                end += by + 1;
                builder.message_outside("p", b"c", Lsn(end), at(end + 1)).unwrap();
                end += 1;
                run.expected.push(Expected::Outside { position: at(end) });
            }
            (Step::Seal, _) => seal(&mut builder, &mut run),
            // Everything sealed so far is durable; the next process continues the open transaction, if any of it is.
            (Step::Restart, open) => {
                seal(&mut builder, &mut run);
                builder = BlockBuilder::new(at(end));
                if let Some((transaction, ordinals)) = open {
                    builder.begin(transaction, ordinals);
                }
            }
            _ => {}
        }
    }
    if builder.open_transaction().is_some() {
        builder.discard("end of test");
        run.expected.push(Expected::Discard);
    }
    seal(&mut builder, &mut run);
    run
}

/// Reads a block through its index alone.
fn read(block: &Block, open: &mut Option<Kind>) -> Vec<Expected> {
    let payload = block.payload();
    let index = block.index().unwrap();
    let slice = |start: u32, end: u32| unframed(&payload[start as usize..end as usize]);
    let mut found = Vec::new();
    let mut offset = 0;
    let mut entries = 0;
    for (number, span) in index.spans.iter().enumerate() {
        assert_eq!((span.start, span.entries.0), (offset, entries), "spans follow one another");
        assert!(span.end > span.start);
        offset = span.start + span.begin_len;
        if span.begin_len > 0 {
            let begin = slice(span.start, offset);
            let Kind::Begin(content) = &begin else { panic!("a begin") };
            found.push(Expected::Begin(content.commit_lsn.parse::<Lsn>().unwrap().0));
            assert_eq!(open.replace(begin), None);
        } else if !matches!(span.ending, SpanEnd::Message { .. }) {
            assert_eq!(number, 0, "only the first span continues");
            assert_eq!(Some(unframed(block.continued_begin())), *open);
        }
        for entry in &index.entries[span.entries.0 as usize..span.entries.1 as usize] {
            assert_eq!(entry.offset, offset);
            offset += entry.len;
            let ordinal = match slice(entry.offset, offset) {
                Kind::Change(change) => {
                    assert_eq!((entry.kind, entry.relation.0), (EntryKind::Insert, change.relation_id));
                    change.ordinal
                }
                Kind::Truncate(truncate) => {
                    assert_eq!((entry.kind, entry.relation.0), (EntryKind::Truncate, truncate.relation_ids[0]));
                    truncate.ordinal
                }
                Kind::Message(message) => {
                    assert_eq!((entry.kind, entry.relation.0), (EntryKind::Message, 0));
                    message.ordinal
                }
                other => panic!("no entry: {other:?}"),
            };
            found.push(Expected::Entry { kind: entry.kind, ordinal, lsn: entry.lsn.0 });
        }
        entries = span.entries.1;
        match span.ending {
            SpanEnd::Open => {
                assert!(block.ends_open && number + 1 == index.spans.len());
                assert_eq!((span.end_offset, offset), (span.end, span.end));
                assert!(span.entries.1 > span.entries.0, "a bare begin is held back");
            }
            SpanEnd::Commit { position, total } => {
                assert_eq!(offset, span.end_offset);
                let Kind::Commit(commit) = slice(offset, span.end) else { panic!("a commit") };
                assert_eq!((commit.changes, commit.total_changes), (total, total));
                assert_eq!(commit.position.unwrap().lsn, position.lsn.to_string());
                found.push(Expected::Commit { total, position });
                assert!(open.take().is_some());
            }
            SpanEnd::Discard => {
                assert_eq!(offset, span.end_offset);
                assert!(matches!(slice(offset, span.end), Kind::Discard(_)));
                found.push(Expected::Discard);
                assert!(open.take().is_some());
            }
            SpanEnd::Message { position } => {
                assert_eq!((span.begin_len, span.end_offset), (0, span.end));
                let Kind::Message(message) = slice(span.start, span.end) else { panic!("a message") };
                assert_eq!(message.position.unwrap().lsn, position.lsn.to_string());
                found.push(Expected::Outside { position });
            }
        }
        offset = span.end;
    }
    assert_eq!((offset as usize, entries as usize), (payload.len(), index.entries.len()));
    assert_eq!(block.ends_open, index.spans.last().is_some_and(|span| span.ending == SpanEnd::Open));
    found
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(steps in steps()) {
        let run = play(steps);
        let mut found = Vec::new();
        let mut open = None;
        let mut after = at(1000);
        for block in &run.blocks {
            let block = restored(block);
            prop_assert_eq!(block.after, after);
            after = block.up_to;
            prop_assert_eq!(block.message()[0], 0);
            prop_assert_eq!(&block.message()[1..5], &(block.payload().len() as u32).to_be_bytes());
            prop_assert_eq!(kinds(&block.payload()).len(), block.events as usize);
            found.extend(read(&block, &mut open));
        }
        prop_assert_eq!(found, run.expected);
    }

    #[test]
    fn no_bytes_make_it_panic(
        steps in steps(), edits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut: prop::sample::Index,
        noise in vec(any::<u8>(), 0..200),
    ) {
        let block = play(steps).blocks.into_iter().next();
        let mut bytes = block.map(|block| stored(&block)).unwrap_or_default();
        for (at, byte) in edits {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        let cut = bytes[..cut.index(bytes.len() + 1)].to_vec();
        for bytes in [bytes.freeze(), cut.into(), noise.into()] {
            let Ok(block) = Block::decode(bytes) else { continue };
            let Ok(index) = block.index() else { continue };
            let payload = block.payload();
            for entry in &index.entries {
                let _ = &payload[entry.offset as usize..(entry.offset + entry.len) as usize];
            }
            for span in &index.spans {
                let _ = &payload[span.start as usize..(span.start + span.begin_len) as usize];
                let _ = &payload[span.end_offset as usize..span.end as usize];
                let _ = &index.entries[span.entries.0 as usize..span.entries.1 as usize];
            }
        }
    }
}

#[test]
fn a_continued_transaction_has_the_right_totals_and_one_begin() {
    let mut builder = BlockBuilder::new(at(1000));
    builder.begin(transaction(1100), 0);
    insert(&mut builder, "1", 1010).unwrap();
    insert(&mut builder, "2", 1020).unwrap();
    let first = builder.seal();
    assert!(first.ends_open && first.up_to == at(1000));

    let mut builder = BlockBuilder::new(at(1000));
    builder.begin(transaction(1100), 2);
    assert!(builder.is_empty());
    insert(&mut builder, "3", 1030).unwrap();
    builder.commit(at(1110));
    let second = restored(&builder.seal());
    assert_eq!(kinds(second.continued_begin()), kinds(&first.payload())[..1]);
    let [Kind::Change(change), Kind::Commit(commit)] = &kinds(&second.payload())[..] else { panic!("two events") };
    assert_eq!((change.ordinal, commit.changes, commit.total_changes), (3, 3, 3));
    assert_eq!(second.index().unwrap().spans[0].ending, SpanEnd::Commit { position: at(1110), total: 3 });
    assert_eq!((second.after, second.up_to), (at(1000), at(1110)));
}

#[test]
fn an_index_that_contradicts_its_block_is_refused() {
    let block = || {
        let mut builder = BlockBuilder::new(at(1000));
        builder.begin(transaction(1100), 2);
        insert(&mut builder, "3", 1030).unwrap();
        builder.commit(at(1110));
        builder.seal()
    };
    assert!(block().index().is_ok());
    let contradictions = [
        Block { continued_begin: Bytes::new(), ..block() },
        Block { events: 3, ..block() },
        Block { ends_open: true, ..block() },
        Block { up_to: at(1111), ..block() },
        Block { framed: block().framed.slice(..10), ..block() },
    ];
    for block in contradictions {
        assert!(block.index().is_err(), "{block:?}");
    }
    let mut bytes = stored(&block());
    bytes.put_u8(0);
    assert_eq!(Block::decode(bytes.freeze()).map(drop), Err(InvalidBlock("message length")));
}

#[test]
fn a_continued_transaction_can_be_discarded_and_start_again() {
    let mut builder = BlockBuilder::new(at(1000));
    builder.begin(transaction(1100), 2);
    builder.discard("the publication changed meanwhile");
    builder.begin(transaction(1100), 0);
    insert(&mut builder, "1", 1010).unwrap();
    builder.commit(at(1110));
    let block = restored(&builder.seal());
    let spans = &block.index().unwrap().spans;
    assert_eq!((spans[0].begin_len, spans[0].ending), (0, SpanEnd::Discard));
    assert!(spans[1].begin_len > 0);
    assert_eq!(spans[1].ending, SpanEnd::Commit { position: at(1110), total: 1 });
}

#[test]
fn a_bare_begin_waits_for_the_first_change() {
    let mut builder = BlockBuilder::new(at(1000));
    builder.begin(transaction(1100), 0);
    assert!(builder.is_empty());
    assert_eq!(builder.seal().events, 0);
    builder.commit(at(1110));
    builder.begin(transaction(1200), 0);
    let block = builder.seal();
    assert_eq!((block.events, block.ends_open, block.up_to), (2, false, at(1110)));
    insert(&mut builder, "1", 1150).unwrap();
    let block = builder.seal();
    assert_eq!((block.events, block.ends_open, block.after), (2, true, at(1110)));
    assert!(block.continued_begin().is_empty());
}

#[test]
fn advancing_moves_the_point_in_front() {
    let mut builder = BlockBuilder::new(at(1000));
    let elsewhere = Position { lineage: LineageId(1), lsn: Lsn(5), sequence: 0 };
    builder.advance(elsewhere);
    builder.begin(transaction(10), 0);
    builder.commit(Position { lsn: Lsn(20), sequence: 3, ..elsewhere });
    let block = restored(&builder.seal());
    assert_eq!((block.after, block.up_to.sequence, block.up_to.lineage), (elsewhere, 3, LineageId(1)));
    assert_eq!(block.index().unwrap().spans[0].ending.position(), Some(block.up_to));
}

#[test]
fn a_small_block_does_not_keep_a_large_buffer() {
    let mut builder = BlockBuilder::new(at(1000));
    for round in 0..3 {
        builder.begin(transaction(1100 + round), 0);
        insert(&mut builder, "1", 1010).unwrap();
        builder.commit(at(1200 + round));
        let block = builder.seal();
        assert!(block.footprint() < 1024);
        let Block { framed, index_bytes, .. } = block;
        for bytes in [framed, index_bytes] {
            let capacity = bytes.try_into_mut().unwrap().capacity();
            assert!(capacity < 1024, "{capacity}");
        }
    }
}

/// The smallest transactions and the smallest rows, in blocks whose index has been read: memory is what the blocks say.
#[test]
fn a_block_knows_what_it_holds_in_memory() {
    for rows in [1, 100] {
        let mut builder = BlockBuilder::new(at(1000));
        let mut blocks = Vec::with_capacity(100);
        let mut lsn = 2000;
        let kept = allocation_counter::measure(|| {
            while blocks.len() < 100 {
                builder.begin(transaction(lsn), 0);
                for _ in 0..rows {
                    insert(&mut builder, "1", lsn).unwrap();
                }
                lsn += 10;
                builder.commit(at(lsn));
                if builder.len() > 31 << 10 {
                    let block = Box::new(builder.seal());
                    block.index().unwrap();
                    blocks.push(block);
                }
            }
        });
        let says: usize = blocks.iter().map(|block| block.footprint()).sum();
        let stored: usize = blocks.iter().map(|block| block.stored_bytes()).sum();
        let held = kept.bytes_current as usize;
        assert!(held > stored * 5 / 4, "the index counts: {held} bytes, {stored} stored");
        assert!(says >= held * 9 / 10 && says <= held * 3 / 2, "{held} bytes are held, {says} are told of");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut builder = BlockBuilder::new(at(1000));
    builder.begin(transaction(1100), 0);
    let content = "x".repeat(encode::MAX_PAYLOAD / 2);
    builder.message("p", content.as_bytes(), Lsn(1)).unwrap();
    let len = builder.len();
    let row = Some([Datum::Text(content.as_bytes())].into_iter());
    let no_old = None::<(OldImage, std::iter::Empty<Datum<'_>>)>;
    let errors = [
        builder.message("p", content.as_bytes(), Lsn(2)),
        builder.change(&relation(&[25]), Operation::Insert, Lsn(2), no_old, row),
    ];
    for error in errors {
        assert!(matches!(error, Err(encode::Error::TooLarge { bytes }) if bytes > encode::MAX_PAYLOAD), "{error:?}");
    }
    assert_eq!((builder.len(), builder.open_transaction().map(|(_, ordinals)| ordinals)), (len, Some(1)));
}

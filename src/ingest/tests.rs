use super::*;
use crate::{
    model::LineageId,
    postgres::{Notice, replication::Frame},
};

const LINEAGE: LineageId = LineageId(7);

fn state() -> State {
    State::new(Position::new(LINEAGE, Lsn(0x1000)), &[])
}

fn begin(commit_lsn: u64, xid: u32) -> Vec<u8> {
    [b"B".as_slice(), &commit_lsn.to_be_bytes(), &[0; 8], &xid.to_be_bytes()].concat()
}

fn commit(commit_lsn: u64, end_lsn: u64) -> Vec<u8> {
    [b"C\0".as_slice(), &commit_lsn.to_be_bytes(), &end_lsn.to_be_bytes(), &[0; 8]].concat()
}

fn relation(oid: u32, table: &str, column: &str) -> Vec<u8> {
    let name = format!("{table}\0");
    let column = format!("{column}\0");
    let head = [b"R".as_slice(), &oid.to_be_bytes(), b"public\0", name.as_bytes(), b"d", &1u16.to_be_bytes()].concat();
    [&head, b"\x01".as_slice(), column.as_bytes(), &25u32.to_be_bytes(), &(-1i32).to_be_bytes()].concat()
}

fn insert(oid: u32, value: &str) -> Vec<u8> {
    let len = value.len() as u32;
    let head = [b"I".as_slice(), &oid.to_be_bytes(), b"N", &1u16.to_be_bytes(), b"t", &len.to_be_bytes()].concat();
    [head.as_slice(), value.as_bytes()].concat()
}

fn message(transactional: bool, lsn: u64, content: &str) -> Vec<u8> {
    let len = content.len() as u32;
    let head = [b"M".as_slice(), &[u8::from(transactional)], &lsn.to_be_bytes(), b"app\0", &len.to_be_bytes()].concat();
    [head.as_slice(), content.as_bytes()].concat()
}

fn data(state: &mut State, lsn: u64, bytes: &[u8]) -> Result<(), Error> {
    state.take(Frame::XLogData { wal_start: Lsn(lsn), wal_end: Lsn(lsn), sent_at: 0, data: bytes })
}

fn keepalive(state: &mut State, wal_end: u64) {
    state.take(Frame::Keepalive { wal_end: Lsn(wal_end), sent_at: 0, reply_requested: false }).expect("keepalive");
}

#[test]
fn what_cannot_be_decoded_stops_the_source_with_its_bytes() {
    let mut state = state();
    data(&mut state, 0x1100, &begin(0x1200, 700)).expect("begin");
    let Err(Error::Undecodable { lsn, bytes, .. }) = data(&mut state, 0x1100, b"Xnonsense") else {
        panic!("nonsense was taken");
    };
    assert_eq!((lsn, bytes.as_slice()), (Lsn(0x1100), b"Xnonsense".as_slice()));
    let Err(Error::Undecodable { detail, .. }) = data(&mut state, 0x1108, &insert(9, "x")) else {
        panic!("a row of a table that was never described was taken");
    };
    assert!(detail.contains("relation 9"), "{detail}");
}

#[test]
fn a_skipped_publication_stops_the_source_and_other_notices_do_not() {
    let notice = |severity: &str, code: &str, routine: &str| {
        Frame::Notice(Notice {
            routine: routine.to_owned(),
            severity: severity.to_owned(),
            code: code.to_owned(),
            message: "skipped loading publication \"p\"".to_owned(),
            ..Notice::default()
        })
    };
    let mut state = state();
    assert!(matches!(state.take(notice("WARNING", "55000", "LoadPublications")), Err(Error::PublicationSkipped(_))));
    assert!(state.take(notice("WARNING", "01000", "")).is_ok());
    assert!(state.take(notice("LOG", "55000", "LoadPublications")).is_ok());
    // A standby of synchronized_standby_slots is away: the walsender waits for it and says so with the same code.
    assert!(state.take(notice("WARNING", "55000", "StandbySlotsHaveCaughtup")).is_ok());
}

#[test]
fn keepalives_count_only_between_transactions() {
    let mut state = state();
    keepalive(&mut state, 0x1080);
    assert_eq!(state.mark().map(|mark| mark.lsn), Some(Lsn(0x1080)));
    data(&mut state, 0x1100, &relation(1, "t", "v")).expect("relation");
    data(&mut state, 0x1100, &begin(0x1200, 700)).expect("begin");
    data(&mut state, 0x1100, &insert(1, "x")).expect("insert");
    keepalive(&mut state, 0x1200);
    assert_eq!(state.mark(), None, "a transaction is open");
    data(&mut state, 0x1200, &commit(0x1200, 0x1230)).expect("commit");
    assert_eq!(state.mark(), None, "the commit lies behind every position passed");
    keepalive(&mut state, 0x1300);
    assert_eq!(state.mark().map(|mark| mark.lsn), Some(Lsn(0x1300)));
}

#[test]
fn an_empty_transaction_is_a_position_and_no_event() {
    let mut state = state();
    data(&mut state, 0x1200, &begin(0x1200, 700)).expect("begin");
    data(&mut state, 0x1200, &commit(0x1200, 0x1230)).expect("commit");
    assert!(state.builder.is_empty());
    assert_eq!(state.mark().map(|mark| mark.lsn), Some(Lsn(0x1230)));
}

#[test]
fn a_message_outside_transactions_is_told_to_postgresql_by_its_record_end() {
    let mut state = state();
    data(&mut state, 0x1108, &message(false, 0x1108, "hello")).expect("message");
    let position = state.builder.up_to();
    assert_eq!(position.lsn, Lsn(0x1109));
    assert_eq!(restart_lsn(position), Lsn(0x1108), "a commit record that starts there must not be skipped");
    data(&mut state, 0x1108, &message(false, 0x1108, "hello")).expect("message");
    assert_eq!(state.builder.seal().events, 1, "sent again after a restart, it is the same message");
}

#[test]
fn a_description_that_repeats_a_version_is_no_new_one() {
    let mut state = state();
    let describe = |state: &mut State, column: &str| {
        data(state, 0, &relation(1, "t", column)).expect("relation");
        state
            .described
            .drain(..)
            .map(|record| match record {
                Record::Relation(relation) => relation.id.0,
                _ => panic!("another record"),
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(describe(&mut state, "a"), [1]);
    assert_eq!(describe(&mut state, "a"), [0u32; 0]);
    assert_eq!(describe(&mut state, "b"), [2]);
    assert_eq!(describe(&mut state, "a"), [1], "current again, under its old number");
}

/// Columns whose names are in upper case are flagged as the identity's.
fn described(oid: u32, identity: u8, columns: &[&str]) -> Vec<u8> {
    let head = [b"R".as_slice(), &oid.to_be_bytes(), b"public\0t\0", &[identity]].concat();
    let mut message = [head.as_slice(), &(columns.len() as u16).to_be_bytes()].concat();
    for column in columns {
        message.push(u8::from(*column == column.to_uppercase()));
        message.extend_from_slice(column.to_lowercase().as_bytes());
        message.extend_from_slice(&[b"\0".as_slice(), &25u32.to_be_bytes(), &(-1i32).to_be_bytes()].concat());
    }
    message
}

#[test]
fn old_rows_of_partitions_have_what_their_own_identity_says() {
    const ROOT: u32 = 1;
    let mut state = state();
    data(&mut state, 0x1100, &begin(0x1200, 700)).expect("begin");
    let shown = |relation: &Arc<Relation>| {
        let columns = relation
            .columns
            .iter()
            .map(|column| if column.in_identity { column.name.to_uppercase() } else { column.name.clone() });
        format!("{} {:?} {}", relation.id.0, relation.replica_identity, columns.collect::<Vec<_>>().join(" "))
    };
    let mut told = |messages: &[Vec<u8>]| {
        messages.iter().for_each(|message| data(&mut state, 0x1100, message).expect("a message"));
        let versions = &state.versions;
        [versions.current(ROOT), versions.written(ROOT).map(|(version, _)| version)]
            .map(|version| shown(version.expect("described")))
    };
    let row = || insert_row(ROOT, &["x", "y"]);
    let full = described(ROOT, b'f', &["A", "B"]);
    assert_eq!(told(std::slice::from_ref(&full)), ["1 Full A B", "1 Full A B"]);
    assert_eq!(told(&[full.clone(), described(2, b'd', &["b", "A"]), row()]), ["1 Full A B", "1 Default A b"]);
    let other = [full.clone(), described(3, b'f', &["A", "B"]), row()];
    assert_eq!(told(&other), ["1 Full A B", "1 Default A b"], "the first one is as it was");
    assert_eq!(told(&[full.clone(), described(2, b'f', &["B", "A"]), row()]), ["1 Full A B", "1 Full A B"]);
    let index = described(ROOT, b'i', &["a", "B"]);
    let by_key = described(2, b'd', &["A", "b"]);
    assert_eq!(
        told(&[index, by_key.clone(), row()]),
        ["7 Default a b", "7 Default a b"],
        "they have no column in common"
    );
    let detached = [by_key, insert_row(2, &["x", "y"])];
    assert_eq!(told(&detached), ["5 Index a B", "5 Index a B"], "it comes under its own name now");
    let mut whole = insert_row(ROOT, &["x", "y"]);
    (whole[0], whole[5]) = (b'D', b'O');
    assert_eq!(told(&[whole]), ["1 Full A B", "1 Full A B"], "nothing else tells of ALTER TABLE on the root");
}

fn insert_row(oid: u32, values: &[&str]) -> Vec<u8> {
    let mut message = [b"I".as_slice(), &oid.to_be_bytes(), b"N", &(values.len() as u16).to_be_bytes()].concat();
    for value in values {
        message.extend_from_slice(&[b"t".as_slice(), &(value.len() as u32).to_be_bytes(), value.as_bytes()].concat());
    }
    message
}

#[test]
fn the_hubs_own_schema_is_left_out_and_takes_no_ordinal() {
    let mut state = state();
    let own = relation(2, "log", "v").windows(6).position(|window| window == b"public").expect("schema");
    let mut described = relation(2, "log", "v");
    described.splice(own..own + 6, *b"walcast");
    data(&mut state, 0, &described).expect("relation");
    data(&mut state, 0, &relation(1, "t", "v")).expect("relation");
    data(&mut state, 0x1100, &begin(0x1200, 700)).expect("begin");
    data(&mut state, 0x1100, &insert(2, "hidden")).expect("insert");
    data(&mut state, 0x1110, &insert(1, "shown")).expect("insert");
    assert_eq!(state.builder.open_transaction().map(|(_, ordinals)| ordinals), Some(1));
}

fn update(oid: u32, old: &str, new: &str) -> Vec<u8> {
    let tuple = |mark: &[u8], value: &str| {
        [mark, &1u16.to_be_bytes(), b"t", &(value.len() as u32).to_be_bytes(), value.as_bytes()].concat()
    };
    [b"U".to_vec(), oid.to_be_bytes().to_vec(), tuple(b"O", old), tuple(b"N", new)].concat()
}

fn delete(oid: u32, old: &str) -> Vec<u8> {
    let mut message = insert(oid, old);
    (message[0], message[5]) = (b'D', b'O');
    message
}

/// Types and values, as pgoutput writes them; `None`: NULL.
const TYPED: [(u32, Option<&str>); 14] = [
    (20, Some("-9223372036854775808")),
    (21, Some("7")),
    (26, Some("4294967295")),
    (16, Some("t")),
    (700, Some("0.1")),
    (701, Some("-Infinity")),
    (1700, Some("1234567.8900")),
    (25, Some("text, in UTF-8: ä")),
    (17, Some("\\x00ff10")),
    (1184, Some("2026-01-01 12:34:56.789012+00")),
    (1082, Some("2026-01-01")),
    (2950, Some("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
    (1009, Some("{a,\"b c\"}")),
    (3802, None),
];

/// Table 3 has a column of each type, the first of them its key.
fn typed_relation() -> Vec<u8> {
    let mut all =
        [b"R".as_slice(), &3u32.to_be_bytes(), b"public\0every\0d", &(TYPED.len() as u16).to_be_bytes()].concat();
    for (number, (oid, _)) in TYPED.iter().enumerate() {
        all.push(u8::from(number == 0));
        all.extend_from_slice(format!("c{number}\0").as_bytes());
        all.extend_from_slice(&oid.to_be_bytes());
        all.extend_from_slice(&(-1i32).to_be_bytes());
    }
    all
}

/// A tuple of table 3: the whole row, with the text as it was before if it is `unchanged`, or the key alone.
fn typed_tuple(mark: u8, unchanged: bool, key_only: bool) -> Vec<u8> {
    let mut all = [&[mark], (TYPED.len() as u16).to_be_bytes().as_slice()].concat();
    for (number, (oid, value)) in TYPED.iter().enumerate() {
        match value {
            _ if unchanged && *oid == 25 => all.push(b'u'),
            Some(value) if number == 0 || !key_only => {
                all.push(b't');
                all.extend_from_slice(&(value.len() as u32).to_be_bytes());
                all.extend_from_slice(value.as_bytes());
            }
            _ => all.push(b'n'),
        }
    }
    all
}

fn typed(operation: u8, tuples: &[Vec<u8>]) -> Vec<u8> {
    [&[operation], 3u32.to_be_bytes().as_slice(), &tuples.concat()].concat()
}

/// Allocations while these transactions of so many changes each are taken in, and the blocks that they fill.
fn allocations(state: &mut State, lsn: &mut u64, transactions: usize, changes: usize) -> (u64, u64) {
    let value = "v".repeat(120);
    let (new, toasted) = (typed_tuple(b'N', false, false), typed_tuple(b'N', true, false));
    let rows = [
        insert(1, &value),
        update(1, &value, "new"),
        delete(1, &value),
        message(true, 0x10, &value),
        typed(b'I', std::slice::from_ref(&new)),
        typed(b'U', std::slice::from_ref(&new)),
        typed(b'U', &[typed_tuple(b'K', false, true), toasted.clone()]),
        typed(b'U', &[typed_tuple(b'O', false, false), toasted]),
        typed(b'D', &[typed_tuple(b'K', false, true)]),
    ];
    let mut blocks = 0;
    let counted = allocation_counter::measure(|| {
        for _ in 0..transactions {
            *lsn += 0x100;
            // Written here, since what the test needs must not count.
            let mut begin = *b"B\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\xbc";
            begin[1..9].copy_from_slice(&lsn.to_be_bytes());
            let mut commit = [0; 26];
            commit[0] = b'C';
            commit[2..10].copy_from_slice(&lsn.to_be_bytes());
            commit[10..18].copy_from_slice(&(*lsn + 0x30).to_be_bytes());
            data(state, *lsn, &begin).expect("begin");
            for n in 0..changes {
                data(state, *lsn, &rows[n % rows.len()]).expect("a change");
                if state.builder.len() >= BLOCK_BYTES {
                    drop(state.builder.seal());
                    blocks += 1;
                }
            }
            data(state, *lsn, &commit).expect("commit");
        }
    });
    (counted.count_total, blocks)
}

#[test]
fn nothing_is_allocated_per_change_or_transaction() {
    let mut state = state();
    let mut lsn = 0x10_000;
    data(&mut state, 0, &relation(1, "t", "v")).expect("relation");
    data(&mut state, 0, &typed_relation()).expect("relation");
    state.described.clear();
    allocations(&mut state, &mut lsn, 20, 500);
    state.described.clear();
    drop(state.builder.seal());
    assert_eq!(allocations(&mut state, &mut lsn, 1, 100), (0, 0), "within a block");
    drop(state.builder.seal());
    assert_eq!(allocations(&mut state, &mut lsn, 50, 2), (0, 0), "small transactions");
    let (allocated, blocks) = allocations(&mut state, &mut lsn, 40, 1000);
    assert!(blocks > 50, "{blocks} blocks");
    assert!(allocated <= 8 * blocks, "{allocated} allocations for {blocks} blocks of 40,000 changes");
}

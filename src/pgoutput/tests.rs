//! A test-side encoder, written from the documentation independently of the decoder, and what must hold for any bytes.

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::model::Datum;

#[derive(Clone, Debug)]
enum Cell {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

impl Cell {
    fn datum(&self) -> Datum<'_> {
        match self {
            Cell::Null => Datum::Null,
            Cell::Unchanged => Datum::Unchanged,
            Cell::Text(bytes) => Datum::Text(bytes),
            Cell::Binary(bytes) => Datum::Binary(bytes),
        }
    }
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn tag(tag: u8) -> Self {
        Writer(vec![tag])
    }
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    fn u8(self, value: u8) -> Self {
        self.bytes(&[value])
    }
    fn i16(self, value: i16) -> Self {
        self.bytes(&value.to_be_bytes())
    }
    fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }
    fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_be_bytes())
    }
    fn string(self, value: &str) -> Self {
        self.bytes(value.as_bytes()).u8(0)
    }
    fn tuple(mut self, tag: u8, cells: &[Cell]) -> Self {
        self = self.u8(tag).i16(cells.len() as i16);
        for cell in cells {
            self = match cell {
                Cell::Null => self.u8(b'n'),
                Cell::Unchanged => self.u8(b'u'),
                Cell::Text(bytes) => self.u8(b't').u32(bytes.len() as u32).bytes(bytes),
                Cell::Binary(bytes) => self.u8(b'b').u32(bytes.len() as u32).bytes(bytes),
            };
        }
        self
    }
}

fn cells(tuple: Tuple<'_>) -> Vec<Datum<'_>> {
    assert_eq!(tuple.clone().count(), tuple.len());
    tuple.collect()
}

fn error(bytes: &[u8]) -> (usize, ErrorKind) {
    let error = decode(bytes).expect_err("malformed");
    (error.offset, error.kind)
}

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// What PostgreSQL 15.18 sent (pg_logical_slot_peek_binary_changes) for one transaction with an origin, on
/// `t (id int PRIMARY KEY, v text, m mood, b bytea, f float8)`, where `v` is TOASTed, and on
/// `f (a int2, x numeric(6,2))` with REPLICA IDENTITY FULL.
#[test]
fn a_transaction_of_a_real_server() {
    let commit_time = 0x2_3e07_86c2_6000;
    let begin = hex("42000000000152e4e000023e0786c26000000002db");
    assert_eq!(decode(&begin), Ok(Message::Begin { final_lsn: Lsn(0x152_e4e0), commit_time, xid: 731 }));
    let origin = hex("4f00000000000000ab656c7365776865726500");
    assert_eq!(decode(&origin), Ok(Message::Origin { lsn: Lsn(0xab), name: "elsewhere".into() }));
    let type_ = hex("59000040017075626c6963006d6f6f6400");
    assert_eq!(decode(&type_), Ok(Message::Type { oid: 16385, namespace: "public".into(), name: "mood".into() }));

    let relation = hex(concat!(
        "52000040057075626c69630074006400050169640000000017ffffffff00760000000019ffffffff",
        "006d0000004001ffffffff00620000000011ffffffff006600000002bdffffffff"
    ));
    let Ok(Message::Relation(relation)) = decode(&relation) else { panic!("a relation") };
    assert_eq!((relation.oid, &*relation.namespace, &*relation.name), (16389, "public", "t"));
    assert_eq!(relation.replica_identity, ReplicaIdentity::Default);
    let columns: Vec<_> = relation.columns.map(|c| (c.in_identity, c.name, c.type_oid, c.modifier)).collect();
    assert_eq!(columns[..2], [(true, "id".into(), 23, -1), (false, "v".into(), 25, -1)]);
    assert_eq!(
        columns[2..],
        [(false, "m".into(), 16385, -1), (false, "b".into(), 17, -1), (false, "f".into(), 701, -1)]
    );

    let relation = hex("520000400c7075626c696300660066000201610000000015ffffffff017800000006a400060006");
    let Ok(Message::Relation(relation)) = decode(&relation) else { panic!("a relation") };
    assert_eq!(relation.replica_identity, ReplicaIdentity::Full);
    assert!(relation.columns.clone().all(|column| column.in_identity));
    assert_eq!(relation.columns.last().map(|column| column.modifier), Some((6 << 16 | 2) + 4));

    let insert = hex("49000040054e000574000000022d326e6e74000000025c78740000000130");
    let Ok(Message::Insert { oid: 16389, new }) = decode(&insert) else { panic!("an insert") };
    let text = |text: &'static str| Datum::Text(text.as_bytes());
    assert_eq!(cells(new), [text("-2"), Datum::Null, Datum::Null, text("\\x"), text("0")]);

    let update = hex("55000040054e000574000000013175740000000373616474000000065c7830306666740000000631652b333030");
    let Ok(Message::Update { old: None, new, .. }) = decode(&update) else { panic!("an update") };
    assert_eq!(cells(new), [text("1"), Datum::Unchanged, text("sad"), text("\\x00ff"), text("1e+300")]);

    let key = hex("55000040054b000574000000022d326e6e6e6e4e00057400000001376e6e74000000025c78740000000130");
    let Ok(Message::Update { old: Some((OldImage::Key, old)), new, .. }) = decode(&key) else { panic!("an update") };
    assert_eq!(cells(old), [text("-2"), Datum::Null, Datum::Null, Datum::Null, Datum::Null]);
    assert_eq!(cells(new)[0], text("7"));

    let full = hex("550000400c4f00027400000001337400000004312e35304e00027400000001347400000004312e3530");
    let Ok(Message::Update { old: Some((OldImage::Full, old)), .. }) = decode(&full) else { panic!("an update") };
    assert_eq!(cells(old), [text("3"), text("1.50")]);

    let delete = hex("44000040054b00057400000001376e6e6e6e");
    let Ok(Message::Delete { oid: 16389, old_image, old }) = decode(&delete) else { panic!("a delete") };
    assert_eq!((old_image, old.len()), (OldImage::Key, 5));

    let truncate = hex("540000000202000040050000400c");
    let Ok(Message::Truncate { oids, cascade, restart_identity }) = decode(&truncate) else { panic!("a truncate") };
    assert_eq!((oids.collect::<Vec<_>>(), cascade, restart_identity), (vec![16389, 16396], false, true));

    let message = hex("4d01000000000152e4e0706678000000000568656c6c6f");
    assert_eq!(
        decode(&message),
        Ok(Message::Message { transactional: true, lsn: Lsn(0x152_e4e0), prefix: "pfx".into(), content: b"hello" })
    );
    let commit = hex("4300000000000152e4e0000000000152e69800023e0786c26000");
    let (commit_lsn, end_lsn) = (Lsn(0x152_e4e0), Lsn(0x152_e698));
    assert_eq!(decode(&commit), Ok(Message::Commit { flags: 0, commit_lsn, end_lsn, commit_time }));
}

#[test]
fn an_empty_namespace_is_pg_catalog() {
    let bytes = Writer::tag(b'Y').u32(3802).string("").string("jsonb").0;
    assert_eq!(decode(&bytes), Ok(Message::Type { oid: 3802, namespace: "pg_catalog".into(), name: "jsonb".into() }));
}

#[test]
fn names_that_are_not_utf8_stay_different() {
    let name = |raw: &[u8]| {
        let bytes = Writer::tag(b'O').u64(1).bytes(raw).u8(0).0;
        match decode(&bytes) {
            Ok(Message::Origin { name, .. }) => name.into_owned(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(name(b"caf\xe9"), "caf\\xE9");
    assert_eq!(name(b"caf\xe8_x"), "caf\\xE8_x");
    assert_eq!(name("café".as_bytes()), "café");
}

#[test]
fn names_that_are_utf8_are_borrowed() {
    let bytes = Writer::tag(b'O').u64(1).string("über").0;
    assert!(matches!(decode(&bytes), Ok(Message::Origin { name: Cow::Borrowed("über"), .. })));
}

#[test]
fn malformed_messages_say_what_and_where() {
    assert_eq!(error(b""), (0, ErrorKind::Truncated { missing: 1 }));
    assert_eq!(error(b"S\0\0\0\x01"), (0, ErrorKind::UnknownMessage(b'S')));
    assert_eq!(error(b"B\0\0\0"), (1, ErrorKind::Truncated { missing: 5 }));
    assert_eq!(error(&Writer::tag(b'O').u64(1).bytes(b"abc").0), (9, ErrorKind::UnterminatedString));
    assert_eq!(error(&Writer::tag(b'I').u32(1).u8(b'K').0), (5, ErrorKind::UnexpectedTuple(b'K')));
    assert_eq!(error(&Writer::tag(b'U').u32(1).u8(b'X').0), (5, ErrorKind::UnexpectedTuple(b'X')));
    assert_eq!(error(&Writer::tag(b'D').u32(1).u8(b'N').0), (5, ErrorKind::UnexpectedTuple(b'N')));
    assert_eq!(error(&Writer::tag(b'I').u32(1).u8(b'N').i16(-1).0), (6, ErrorKind::NegativeLength(-1)));
    assert_eq!(error(&Writer::tag(b'I').u32(1).u8(b'N').i16(1).u8(b'x').0), (8, ErrorKind::UnknownColumnKind(b'x')));
    let negative = Writer::tag(b'I').u32(1).u8(b'N').i16(1).u8(b't').u32(u32::MAX).0;
    assert_eq!(error(&negative), (9, ErrorKind::NegativeLength(-1)));
    let short = Writer::tag(b'I').u32(1).u8(b'N').i16(1).u8(b't').u32(9).bytes(b"abc").0;
    assert_eq!(error(&short), (13, ErrorKind::Truncated { missing: 6 }));
    let identity = Writer::tag(b'R').u32(1).string("s").string("t").u8(b'x').i16(0).0;
    assert_eq!(error(&identity), (9, ErrorKind::UnknownReplicaIdentity(b'x')));
    let flags = Writer::tag(b'R').u32(1).string("s").string("t").u8(b'd').i16(1).u8(2).string("c").u32(1).u32(1).0;
    assert_eq!(error(&flags), (12, ErrorKind::UnknownFlags(2)));
    assert_eq!(error(&Writer::tag(b'T').u32(0).u8(4).0), (5, ErrorKind::UnknownFlags(4)));
    assert_eq!(
        error(&Writer::tag(b'T').u32(i32::MAX as u32).u8(0).0).1,
        ErrorKind::Truncated { missing: i32::MAX as usize * 4 }
    );
    assert_eq!(error(&Writer::tag(b'M').u8(2).0), (1, ErrorKind::UnknownFlags(2)));
    assert_eq!(error(&Writer::tag(b'M').u8(0).u64(1).string("p").u32(u32::MAX).0), (12, ErrorKind::NegativeLength(-1)));
    assert_eq!(error(&Writer::tag(b'O').u64(1).string("").u8(7).0), (10, ErrorKind::Trailing(1)));
}

#[test]
fn a_value_of_a_mebibyte() {
    let big = vec![b'x'; 1 << 20];
    let row = [Cell::Null, Cell::Text(big.clone()), Cell::Text(Vec::new())];
    let bytes = Writer::tag(b'I').u32(1).tuple(b'N', &row).0;
    let Ok(Message::Insert { new, .. }) = decode(&bytes) else { panic!("an insert") };
    assert_eq!(cells(new), [Datum::Null, Datum::Text(&big), Datum::Text(b"")]);
}

fn cell() -> impl Strategy<Value = Cell> {
    prop_oneof![
        Just(Cell::Null),
        Just(Cell::Unchanged),
        vec(any::<u8>(), 0..40).prop_map(Cell::Text),
        vec(any::<u8>(), 0..40).prop_map(Cell::Binary),
    ]
}

fn row() -> impl Strategy<Value = Vec<Cell>> {
    vec(cell(), 0..12)
}

fn name() -> impl Strategy<Value = String> {
    "[^\0]{1,12}"
}

/// Any valid message as bytes.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let old = || (prop_oneof![Just(b'K'), Just(b'O')], row());
    prop_oneof![
        (any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(l, t, x)| Writer::tag(b'B').u64(l).u64(t).u32(x).0),
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(c, e, t)| Writer::tag(b'C').u8(0).u64(c).u64(e).u64(t).0),
        (any::<u64>(), name()).prop_map(|(l, n)| Writer::tag(b'O').u64(l).string(&n).0),
        (any::<u32>(), name(), name(), vec((any::<bool>(), name(), any::<u32>()), 0..6)).prop_map(|(o, s, n, cs)| {
            let head = Writer::tag(b'R').u32(o).string(&s).string(&n).u8(b'f').i16(cs.len() as i16);
            cs.iter().fold(head, |w, (key, name, oid)| w.u8(u8::from(*key)).string(name).u32(*oid).u32(u32::MAX)).0
        }),
        (any::<u32>(), name(), name()).prop_map(|(o, s, n)| Writer::tag(b'Y').u32(o).string(&s).string(&n).0),
        (any::<u32>(), row()).prop_map(|(o, r)| Writer::tag(b'I').u32(o).tuple(b'N', &r).0),
        (any::<u32>(), option::of(old()), row()).prop_map(|(o, old, new)| {
            let head = Writer::tag(b'U').u32(o);
            old.into_iter().fold(head, |w, (tag, row)| w.tuple(tag, &row)).tuple(b'N', &new).0
        }),
        (any::<u32>(), old()).prop_map(|(o, (tag, r))| Writer::tag(b'D').u32(o).tuple(tag, &r).0),
        (vec(any::<u32>(), 0..6), 0u8..4).prop_map(|(oids, flags)| {
            oids.iter().fold(Writer::tag(b'T').u32(oids.len() as u32).u8(flags), |w, oid| w.u32(*oid)).0
        }),
        (0u8..2, any::<u64>(), name(), vec(any::<u8>(), 0..40)).prop_map(|(f, l, p, c)| Writer::tag(b'M')
            .u8(f)
            .u64(l)
            .string(&p)
            .u32(c.len() as u32)
            .bytes(&c)
            .0),
    ]
}

proptest! {
    #[test]
    fn rows_round_trip(
        oid: u32, full: bool, old in option::of(row()), new in row(), transactional: bool,
        oids in vec(any::<u32>(), 0..6), prefix in name(), content in vec(any::<u8>(), 0..40),
    ) {
        let tag = if full { b'O' } else { b'K' };
        let image = if full { OldImage::Full } else { OldImage::Key };
        let head = Writer::tag(b'U').u32(oid);
        let head = if let Some(old) = &old { head.tuple(tag, old) } else { head };
        let bytes = head.tuple(b'N', &new).0;
        let Ok(Message::Update { oid: got, old: got_old, new: got_new }) = decode(&bytes) else { panic!("an update") };
        prop_assert_eq!(got, oid);
        prop_assert_eq!(got_old.map(|(image, row)| (image, cells(row))),
            old.as_ref().map(|row| (image, row.iter().map(Cell::datum).collect())));
        prop_assert_eq!(cells(got_new), new.iter().map(Cell::datum).collect::<Vec<_>>());

        let bytes = Writer::tag(b'D').u32(oid).tuple(tag, &new).0;
        let Ok(Message::Delete { old_image, old, .. }) = decode(&bytes) else { panic!("a delete") };
        prop_assert_eq!((old_image, cells(old)), (image, new.iter().map(Cell::datum).collect()));

        let flags = 1 | u8::from(full) << 1;
        let bytes = oids.iter().fold(Writer::tag(b'T').u32(oids.len() as u32).u8(flags), |w, oid| w.u32(*oid)).0;
        let Ok(Message::Truncate { oids: got, cascade: true, restart_identity }) = decode(&bytes) else { panic!("a truncate") };
        prop_assert_eq!((got.len(), got.collect::<Vec<_>>(), restart_identity), (oids.len(), oids, full));

        let bytes = Writer::tag(b'M').u8(u8::from(transactional)).u64(77).string(&prefix).u32(content.len() as u32).bytes(&content).0;
        prop_assert_eq!(decode(&bytes),
            Ok(Message::Message { transactional, lsn: Lsn(77), prefix: prefix.as_str().into(), content: &content }));
    }

    #[test]
    fn every_proper_prefix_and_every_extension_is_refused(bytes in message(), extra: u8) {
        prop_assert!(decode(&bytes).is_ok());
        for end in 0..bytes.len() {
            let error = decode(&bytes[..end]).expect_err("a prefix");
            prop_assert!(error.offset <= end);
        }
        let mut longer = bytes.clone();
        longer.push(extra);
        prop_assert_eq!(error(&longer), (bytes.len(), ErrorKind::Trailing(1)));
    }

    #[test]
    fn no_bytes_make_it_panic(mut bytes in message(), edits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), noise in vec(any::<u8>(), 0..64)) {
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for bytes in [bytes, noise] {
            match decode(&bytes) {
                Ok(Message::Relation(relation)) => prop_assert_eq!(relation.columns.len(), relation.columns.count()),
                Ok(Message::Insert { new, .. }) => prop_assert_eq!(new.len(), new.count()),
                Ok(Message::Truncate { oids, .. }) => prop_assert_eq!(oids.len(), oids.count()),
                Ok(_) => {}
                Err(error) => prop_assert!(error.offset <= bytes.len()),
            }
        }
    }
}

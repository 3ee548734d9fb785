//! Hand-written bytes against prost's, for every kind of value.

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::{
    model::RelationId,
    wire::{
        pb::{Missing, event::Kind as EventKind, value::Kind},
        reference::{Cell, appended, column, datums, framed, missing, relation, typed, unframed},
        value::oid,
    },
};

type NoRow = std::iter::Empty<Datum<'static>>;

/// One value of an INSERT, as the client sees it.
fn one(type_oid: u32, datum: Datum<'_>) -> Result<Kind, Error> {
    let mut out = BytesMut::new();
    let row = Some(std::iter::once(datum));
    change(&mut out, &relation(&[type_oid]), Operation::Insert, 1, None::<(OldImage, NoRow)>, row)?;
    let EventKind::Change(change) = unframed(&out) else { panic!("a change") };
    let [value] = <[pb::Value; 1]>::try_from(change.after_row.unwrap().values).unwrap();
    Ok(value.kind.unwrap())
}

fn text(type_oid: u32, text: &str) -> Kind {
    one(type_oid, Datum::Text(text.as_bytes())).unwrap()
}

#[test]
fn values_in_text_form() {
    assert_eq!(text(oid::BOOL, "t"), Kind::BoolValue(true));
    assert_eq!(text(oid::BOOL, "f"), Kind::BoolValue(false));
    assert_eq!(text(oid::INT2, "-32768"), Kind::IntValue(-32768));
    assert_eq!(text(oid::INT4, "2147483647"), Kind::IntValue(2147483647));
    assert_eq!(text(oid::INT8, "-9223372036854775808"), Kind::IntValue(i64::MIN));
    assert_eq!(text(oid::INT8, "9223372036854775807"), Kind::IntValue(i64::MAX));
    assert_eq!(text(oid::OID, "4294967295"), Kind::IntValue(4294967295));
    assert_eq!(text(oid::INT4, "0"), Kind::IntValue(0));
    assert_eq!(text(oid::FLOAT8, "0.1"), Kind::FloatValue(0.1));
    assert_eq!(text(oid::FLOAT8, "1e+300"), Kind::FloatValue(1e300));
    assert_eq!(text(oid::FLOAT8, "5e-324"), Kind::FloatValue(5e-324));
    assert_eq!(text(oid::FLOAT8, "Infinity"), Kind::FloatValue(f64::INFINITY));
    assert_eq!(text(oid::FLOAT8, "-Infinity"), Kind::FloatValue(f64::NEG_INFINITY));
    assert_eq!(text(oid::FLOAT4, "-Infinity"), Kind::FloatValue(f64::NEG_INFINITY));
    assert_eq!(text(oid::FLOAT4, "0.1"), Kind::FloatValue(0.1f32.into()));
    assert_eq!(text(oid::FLOAT4, "3.4028235e+38"), Kind::FloatValue(f32::MAX.into()));
    for nan in [text(oid::FLOAT4, "NaN"), text(oid::FLOAT8, "NaN")] {
        assert!(matches!(nan, Kind::FloatValue(value) if value.is_nan()));
    }
    assert!(matches!(text(oid::FLOAT8, "-0"), Kind::FloatValue(zero) if zero == 0.0 && zero.is_sign_negative()));
    assert_eq!(text(oid::BYTEA, "\\x00fFc0"), Kind::BytesValue(vec![0, 255, 0xc0].into()));
    assert_eq!(text(oid::BYTEA, "\\x"), Kind::BytesValue(Default::default()));
    assert_eq!(text(oid::BYTEA, "a\\\\b\\000\\377"), Kind::BytesValue(b"a\\b\0\xff".to_vec().into()));
    assert_eq!(text(oid::BYTEA, ""), Kind::BytesValue(Default::default()));
}

#[test]
fn every_other_type_is_text_as_it_came() {
    let others = [
        (1700, "12345678901234567890.10"), // numeric
        (1700, "NaN"),
        (1082, "0044-03-15 BC"),                 // date
        (1114, "0001-12-31 23:59:59.999999 BC"), // timestamp
        (1184, "2024-02-29 12:00:00+00"),        // timestamptz
        (1184, "infinity"),
        (1186, "1 year 2 mons -3 days"),                // interval
        (790, "$1,000.50"),                             // money
        (2950, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"), // uuid
        (3802, "{\"a\": 1}"),                           // jsonb
        (1007, "{1,NULL,3}"),                           // int4[]
        (1000, "{t,f}"),                                // bool[]
        (2205, "pg_class"),                             // regclass
        (3904, "[1,10)"),                               // int4range
        (18, "\\351"),                                  // "char"
        (99999, "42"),                                  // a domain over int4 has its own OID
        (25, ""),
        (25, "é\u{10FFFF}"),
    ];
    for (type_oid, value) in others {
        assert_eq!(text(type_oid, value), Kind::Text(value.into()), "type {type_oid}");
    }
}

#[test]
fn null_unchanged_and_empty_are_three_things() {
    assert_eq!(one(oid::TEXT, Datum::Null).unwrap(), Kind::Missing(Missing::Null as i32));
    assert_eq!(one(oid::TEXT, Datum::Unchanged).unwrap(), Kind::Missing(Missing::Unchanged as i32));
    assert_eq!(one(oid::TEXT, Datum::Text(b"")).unwrap(), Kind::Text(String::new()));
}

#[test]
fn text_that_is_not_utf8_is_raw() {
    assert_eq!(one(oid::TEXT, Datum::Text(b"caf\xe9")).unwrap(), Kind::RawText(b"caf\xe9".to_vec().into()));
    assert_eq!(one(1700, Datum::Binary(b"\xe9")).ok(), None);
    assert_eq!(one(oid::NAME, Datum::Binary(b"\xe9")).unwrap(), Kind::RawText(b"\xe9".to_vec().into()));
}

#[test]
fn values_in_binary_form() {
    let binary = |type_oid, bytes: &[u8]| one(type_oid, Datum::Binary(bytes)).map_err(|error| error.to_string());
    assert_eq!(binary(oid::BOOL, &[1]), Ok(Kind::BoolValue(true)));
    assert_eq!(binary(oid::INT2, &(-2i16).to_be_bytes()), Ok(Kind::IntValue(-2)));
    assert_eq!(binary(oid::INT4, &(-2i32).to_be_bytes()), Ok(Kind::IntValue(-2)));
    assert_eq!(binary(oid::INT8, &i64::MIN.to_be_bytes()), Ok(Kind::IntValue(i64::MIN)));
    assert_eq!(binary(oid::OID, &[255; 4]), Ok(Kind::IntValue(u32::MAX.into())));
    assert_eq!(binary(oid::FLOAT4, &0.1f32.to_be_bytes()), Ok(Kind::FloatValue(0.1f32.into())));
    assert_eq!(binary(oid::FLOAT8, &0.1f64.to_be_bytes()), Ok(Kind::FloatValue(0.1)));
    assert_eq!(binary(oid::BYTEA, b"\\x00"), Ok(Kind::BytesValue(b"\\x00".to_vec().into())));
    assert_eq!(binary(oid::JSONB, b"\x01{}"), Ok(Kind::Text("{}".into())));
    assert_eq!(binary(oid::VARCHAR, "é".as_bytes()), Ok(Kind::Text("é".into())));
    assert_eq!(binary(oid::CHAR, b"\xe9"), Ok(Kind::Text("\\351".into())));
    assert_eq!(binary(oid::CHAR, b"\0"), Ok(Kind::Text(String::new())));
    for (type_oid, bytes) in [(oid::BOOL, &b"\x02"[..]), (oid::INT4, b"123"), (oid::JSONB, b"\x02{}"), (1700, b"\0\0")]
    {
        assert!(binary(type_oid, bytes).is_err(), "type {type_oid}");
    }
}

#[test]
fn what_a_type_cannot_be_is_an_error_and_leaves_no_trace() {
    let bad = [
        (oid::BOOL, "true"),
        (oid::BOOL, ""),
        (oid::INT2, "32768"),
        (oid::INT4, "-2147483649"),
        (oid::INT8, "9223372036854775808"),
        (oid::INT8, "12345678901234567890"),
        (oid::INT4, "1x"),
        (oid::INT4, ""),
        (oid::INT4, "-"),
        (oid::INT4, "+1"),
        (oid::OID, "-1"),
        (oid::OID, "4294967296"),
        (oid::FLOAT8, "inf"),
        (oid::FLOAT8, "1e999"),
        (oid::FLOAT8, ""),
        (oid::FLOAT4, "1e39"),
        (oid::BYTEA, "\\x0"),
        (oid::BYTEA, "\\x0g"),
        (oid::BYTEA, "\\xg0"),
        (oid::BYTEA, "\\9"),
    ];
    for (type_oid, text) in bad {
        let mut out = BytesMut::from(&b"before"[..]);
        let row = [Datum::Text(b"ok"), Datum::Text(text.as_bytes())];
        let relation = relation(&[oid::TEXT, type_oid]);
        let no_old = None::<(OldImage, NoRow)>;
        let error = change(&mut out, &relation, Operation::Insert, 1, no_old, Some(row.into_iter())).unwrap_err();
        assert!(
            matches!(&error, Error::Value { table, column, .. } if table == "public.t" && column == "c1"),
            "{error}"
        );
        assert_eq!(&out[..], b"before");
    }
}

#[test]
fn a_row_has_as_many_columns_as_its_relation() {
    for got in [0, 1, 3] {
        let row = std::iter::repeat_n(Datum::Null, got);
        let mut out = BytesMut::new();
        let relation = relation(&[25, 25]);
        let error =
            change(&mut out, &relation, Operation::Delete, 1, Some((OldImage::Key, row.clone())), None::<NoRow>);
        assert_eq!(error, Err(Error::ColumnCount { table: "public.t".into(), expected: 2, got }));
        let no_old = None::<(OldImage, NoRow)>;
        assert!(change(&mut out, &relation, Operation::Insert, 1, no_old, Some(row)).is_err());
        assert!(out.is_empty());
    }
}

#[test]
fn a_value_of_a_mebibyte() {
    let big = "x".repeat(1 << 20);
    assert_eq!(text(oid::TEXT, &big), Kind::Text(big.clone()));
    assert_eq!(text(oid::BYTEA, &format!("\\x{}", "ab".repeat(1 << 19))), Kind::BytesValue(vec![0xab; 1 << 19].into()));
}

#[test]
fn in_a_key_image_what_is_no_key_is_absent() {
    let mut relation = relation(&[]);
    relation.columns = vec![column("k", 23, true), column("v", 25, false), column("n", 23, true)];
    let old = [Datum::Text(b"1"), Datum::Null, Datum::Null];
    let mut out = BytesMut::new();
    change(&mut out, &relation, Operation::Delete, 3, Some((OldImage::Key, old.into_iter())), None::<NoRow>).unwrap();
    let EventKind::Change(change) = unframed(&out) else { panic!("a change") };
    let expected = [pb::Value { kind: Some(Kind::IntValue(1)) }, missing(Missing::Absent), missing(Missing::Null)];
    assert_eq!(change.before_row.clone().unwrap().values, expected);
    assert_eq!((change.operation(), change.relation_id, change.ordinal), (pb::Operation::Delete, 7, 3));
    assert_eq!(change.after_row, None);
}

#[test]
fn a_table_without_columns_has_empty_rows() {
    let mut out = BytesMut::new();
    let empty = std::iter::empty::<Datum<'_>>();
    let old = Some((OldImage::Full, empty.clone()));
    change(&mut out, &relation(&[]), Operation::Update, 1, old, Some(empty)).unwrap();
    let EventKind::Change(change) = unframed(&out) else { panic!("a change") };
    assert_eq!((change.before_row, change.after_row), (Some(pb::Row::default()), Some(pb::Row::default())));
}

#[test]
fn a_relation_event_shows_the_selected_columns() {
    let relation = relation(&[23, 25, 17]);
    let bytes = appended(|out| relation_encode(out, &relation, Some(&[true, false, true])));
    let EventKind::Relation(projected) = unframed(&bytes) else { panic!("a relation") };
    let names: Vec<_> = projected.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!((names, projected.relation_id), (vec!["c0", "c2"], 7));
    let bytes = appended(|out| relation_encode(out, &relation, None));
    assert_eq!(unframed(&bytes), EventKind::Relation(relation_to_pb(&relation)));
}

prop_compose! {
    fn position()(lineage: u64, lsn: u64, sequence in prop_oneof![Just(0u32), any::<u32>()]) -> Position {
        Position { lineage: LineageId(lineage), lsn: Lsn(lsn), sequence }
    }
}

fn position_to_pb(position: Position) -> pb::Position {
    crate::wire::position_to_pb(position)
}

proptest! {
    #[test]
    fn changes_are_what_prost_writes(
        new in vec(typed(), 0..9), old in option::of((any::<bool>(), any::<prop::sample::Index>())),
        with_new: bool, ordinal in prop_oneof![Just(0u64), 1u64..300, any::<u64>()], id: u32,
    ) {
        let types: Vec<u32> = new.iter().map(|(oid, ..)| *oid).collect();
        let mut relation = relation(&types);
        relation.id = RelationId(id);
        if let Some((true, _)) = old {
            relation.replica_identity = ReplicaIdentity::Full;
        }
        let row: Vec<Cell> = new.iter().map(|(_, cell, _)| cell.clone()).collect();
        let values: Vec<pb::Value> = new.into_iter().map(|(.., value)| value).collect();
        // The old row: the same with one column nulled, as full image or as key.
        let old = old.map(|(full, nulled)| {
            let (mut cells, mut values) = (row.clone(), values.clone());
            if !cells.is_empty() {
                let at = nulled.index(cells.len());
                cells[at] = Cell::Null;
                values[at] = missing(Missing::Null);
            }
            if !full {
                for (at, (cell, value)) in cells.iter_mut().zip(&mut values).enumerate() {
                    if !relation.columns[at].in_identity {
                        *cell = Cell::Null;
                        *value = missing(Missing::Absent);
                    }
                }
            }
            (if full { OldImage::Full } else { OldImage::Key }, cells, values)
        });
        let expected = framed(EventKind::Change(pb::Change {
            operation: pb::Operation::Update as i32,
            relation_id: id,
            ordinal,
            before_row: old.as_ref().map(|(_, _, values)| pb::Row { values: values.clone() }),
            after_row: with_new.then_some(pb::Row { values }),
            ..Default::default()
        }));
        let bytes = appended(|out| {
            let old = old.as_ref().map(|(image, cells, _)| (*image, datums(cells)));
            change(out, &relation, Operation::Update, ordinal, old, with_new.then(|| datums(&row))).unwrap();
        });
        prop_assert_eq!(bytes, expected);
    }

    #[test]
    fn begin_is_what_prost_writes(
        lineage: u64, commit_lsn: u64, sequence: u32, xid: u64, commit_time: i64, origin in "(\\PC{0,150})?", provenance in 0..3,
    ) {
        let (provenance, expected) = [
            (Provenance::Slot, pb::Provenance::Unspecified),
            (Provenance::LogReplay, pb::Provenance::LogReplay),
            (Provenance::LogPoll, pb::Provenance::LogPoll),
        ][provenance as usize];
        let transaction = Transaction { commit_lsn: Lsn(commit_lsn), sequence, xid, commit_time, origin, provenance };
        let expected = framed(EventKind::Begin(pb::Begin {
            commit_lsn: transaction.commit_lsn.to_string(),
            lineage: LineageId(lineage).to_string(),
            sequence,
            xid,
            commit_time: Some(timestamp(commit_time)),
            origin: transaction.origin.clone(),
            provenance: expected as i32,
        }));
        prop_assert_eq!(appended(|out| begin(out, LineageId(lineage), &transaction)), expected);
    }

    #[test]
    fn commits_and_messages_are_what_prost_writes(
        position in position(), changes: u64, total: u64, prefix in "\\PC{0,150}", content in vec(any::<u8>(), 0..200), lsn: u64, outside: bool,
    ) {
        let encoded = position_to_pb(position);
        let expected = framed(EventKind::Commit(pb::Commit { position: Some(encoded.clone()), changes, total_changes: total }));
        prop_assert_eq!(appended(|out| commit(out, position, changes, total)), expected);
        let expected = framed(EventKind::Message(pb::LogicalMessage {
            prefix: prefix.clone(),
            content: content.clone().into(),
            ordinal: changes,
            lsn: Lsn(lsn).to_string(),
            position: outside.then_some(encoded),
        }));
        let bytes = appended(|out| message(out, &prefix, &content, changes, Lsn(lsn), outside.then_some(position)));
        prop_assert_eq!(bytes, expected);
    }
}

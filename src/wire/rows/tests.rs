//! Views and projections against prost.

use std::collections::BTreeMap;

use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::{
    lsn::Lsn,
    model::{Datum, OldImage},
    wire::{
        pb::{Transition, event::Kind as EventKind, value::Kind},
        reference::{Cell, appended, datums, framed, missing, relation, typed, unframed},
        relation_to_pb,
        value::oid,
        value_from_pb,
    },
};

type NoRow = std::iter::Empty<Datum<'static>>;

fn update(relation: &Relation, row: &[Cell]) -> bytes::Bytes {
    appended(|out| {
        let old = Some((OldImage::Key, datums(row)));
        encode::change(out, relation, Operation::Update, 5, old, Some(datums(row))).unwrap();
    })
}

fn inserted(type_oid: u32, datum: Datum<'_>) -> (Relation, bytes::Bytes) {
    let relation = relation(&[type_oid]);
    let bytes = appended(|out| {
        let row = Some([datum].into_iter());
        encode::change(out, &relation, Operation::Insert, 1, None::<(OldImage, NoRow)>, row).unwrap();
    });
    (relation, bytes)
}

fn change_of(bytes: &[u8]) -> pb::Change {
    let EventKind::Change(change) = unframed(bytes) else { panic!("a change") };
    change
}

/// What a struct shows for one value of an INSERT.
fn shown(type_oid: u32, datum: Datum<'_>) -> Option<prost_types::value::Kind> {
    let (relation, bytes) = inserted(type_oid, datum);
    let view = ChangeView::parse(&bytes).unwrap();
    let bytes = appended(|out| struct_change(out, &view, &relation, None, Lsn(0x10), None).unwrap());
    change_of(&bytes).after.unwrap().fields.remove("c0").map(|value| value.kind.unwrap())
}

#[test]
fn struct_values_follow_the_type() {
    use prost_types::value::Kind::{BoolValue, NullValue, NumberValue, StringValue};
    let text = |type_oid, text: &str| shown(type_oid, Datum::Text(text.as_bytes())).unwrap();
    assert_eq!(text(oid::BOOL, "f"), BoolValue(false));
    assert_eq!(text(oid::INT2, "-1"), NumberValue(-1.0));
    assert_eq!(text(oid::INT4, "2147483647"), NumberValue(2147483647.0));
    assert_eq!(text(oid::OID, "4294967295"), NumberValue(4294967295.0));
    assert_eq!(text(oid::INT8, "1"), StringValue("1".into()));
    assert_eq!(text(oid::INT8, "-9223372036854775808"), StringValue("-9223372036854775808".into()));
    assert_eq!(text(oid::FLOAT8, "0.1"), NumberValue(0.1));
    assert_eq!(text(oid::FLOAT4, "0.1"), NumberValue(0.1));
    assert_eq!(text(oid::FLOAT4, "NaN"), StringValue("NaN".into()));
    assert_eq!(text(oid::FLOAT8, "Infinity"), StringValue("Infinity".into()));
    assert_eq!(text(oid::FLOAT8, "-Infinity"), StringValue("-Infinity".into()));
    assert_eq!(text(1700, "1.50"), StringValue("1.50".into()));
    assert_eq!(text(oid::BYTEA, "\\x00Ff"), StringValue("\\x00ff".into()));
    assert_eq!(text(oid::JSONB, "{\"a\": 1}"), StringValue("{\"a\": 1}".into()));
    assert_eq!(text(oid::TEXT, ""), StringValue(String::new()));
    assert_eq!(shown(oid::TEXT, Datum::Null), Some(NullValue(0)));
    assert_eq!(shown(oid::INT4, Datum::Unchanged), None);
    assert_eq!(shown(oid::TEXT, Datum::Text(b"caf\xe9!")), Some(StringValue("caf\\xE9!".into())));
}

#[test]
fn struct_changes_are_complete() {
    let relation = relation(&[oid::INT4, oid::TEXT, oid::TEXT, oid::INT8]);
    let old = [Cell::Text(b"1".to_vec()), Cell::Null, Cell::Null, Cell::Text(b"9".to_vec())];
    let new = [Cell::Text(b"2".to_vec()), Cell::Unchanged, Cell::Null, Cell::Text(b"9".to_vec())];
    let bytes = appended(|out| {
        let old = Some((OldImage::Key, datums(&old)));
        encode::change(out, &relation, Operation::Update, 300, old, Some(datums(&new))).unwrap();
    });
    let view = ChangeView::parse(&bytes).unwrap();
    let whole = change_of(&appended(|out| {
        struct_change(out, &view, &relation, None, Lsn(0x1_0000_00AB), Some(Transition::Enter)).unwrap();
    }));
    let number = |value| prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(value)) };
    let string = |value: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(value.into())) };
    let null = prost_types::Value { kind: Some(prost_types::value::Kind::NullValue(0)) };
    let fields = |fields: &[(&str, prost_types::Value)]| prost_types::Struct {
        fields: fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
    };
    let expected = pb::Change {
        operation: pb::Operation::Update as i32,
        relation_id: 7,
        ordinal: 300,
        before: Some(fields(&[("c0", number(1.0)), ("c3", string("9"))])),
        after: Some(fields(&[("c0", number(2.0)), ("c2", null), ("c3", string("9"))])),
        unchanged: vec!["c1".into()],
        table: "public.t".into(),
        lsn: "1/AB".into(),
        transition: Transition::Enter as i32,
        ..Default::default()
    };
    assert_eq!(whole, expected);
    let part = change_of(&appended(|out| {
        struct_change(out, &view, &relation, Some(&[true, false, false, false]), Lsn(0x1_0000_00AB), None).unwrap();
    }));
    let after = Some(fields(&[("c0", number(2.0))]));
    let before = Some(fields(&[("c0", number(1.0))]));
    assert_eq!(part, pb::Change { before, after, unchanged: vec![], transition: 0, ..expected });
}

#[test]
fn a_change_without_an_image_reads_as_absent() {
    let (relation, bytes) = inserted(oid::INT4, Datum::Text(b"1"));
    let view = ChangeView::parse(&bytes).unwrap();
    assert_eq!((view.operation, view.relation_id, view.ordinal), (Operation::Insert, relation.id, 1));
    assert_eq!((view.before(0), view.after(0), view.after(1)), (Value::Absent, Value::Int(1), Value::Absent));
}

#[test]
fn a_mask_or_relation_of_another_size_is_refused() {
    let (same, bytes) = inserted(oid::INT4, Datum::Text(b"1"));
    let view = ChangeView::parse(&bytes).unwrap();
    let other = relation(&[23, 23]);
    let mut out = BytesMut::new();
    assert!(project_change(&mut out, &view, &same, &[true, true], None).is_err());
    assert!(project_change(&mut out, &view, &other, &[true, true], None).is_err());
    assert!(struct_change(&mut out, &view, &other, None, Lsn(1), None).is_err());
    assert!(struct_change(&mut out, &view, &same, Some(&[]), Lsn(1), None).is_err());
    assert!(out.is_empty());
}

#[test]
fn other_events_are_not_changes() {
    let relation_event = framed(EventKind::Relation(relation_to_pb(&relation(&[23]))));
    assert_eq!(ChangeView::parse(&relation_event), Err(InvalidEvent("another kind of event")));
    let (_, bytes) = inserted(oid::INT4, Datum::Text(b"1"));
    assert!(ChangeView::parse(&[&bytes[..], b"x"].concat()).is_err());
    assert!(ChangeView::parse(&bytes[..bytes.len() - 1]).is_err());
    assert!(ChangeView::parse(b"").is_err());
    let structs = pb::Change { operation: 1, after: Some(Default::default()), ..Default::default() };
    assert!(ChangeView::parse(&framed(EventKind::Change(structs))).is_err());
    let truncate = pb::Change { operation: pb::Operation::Truncate as i32, ..Default::default() };
    assert!(ChangeView::parse(&framed(EventKind::Change(truncate))).is_err());
    let unknown = pb::Change {
        operation: 1,
        after_row: Some(pb::Row { values: vec![missing(pb::Missing::Unspecified)] }),
        ..Default::default()
    };
    assert!(ChangeView::parse(&framed(EventKind::Change(unknown))).is_err());
}

#[test]
fn a_value_is_one_field() {
    let row = |value: &[u8]| {
        let row = [&[0x0a, value.len() as u8], value].concat();
        let change = [&[0x08, 1, 0x2a, row.len() as u8], &row[..]].concat();
        [&[0x0a, change.len() as u8 + 2, 0x1a, change.len() as u8], &change[..]].concat()
    };
    assert!(ChangeView::parse(&row(&[0x10, 1])).is_ok());
    for bad in [&[][..], &[0x10, 1, 0x10, 0], &[0x10], &[0x08, 4], &[0x32, 2, b'x'], &[0x21, 0, 0], &[0x42, 0]] {
        assert_eq!(ChangeView::parse(&row(bad)), Err(InvalidEvent("value")), "{bad:?}");
    }
}

#[test]
fn truncates_keep_what_is_selected() {
    let truncate = pb::Truncate { relation_ids: vec![3, 500, 4], cascade: true, ordinal: 9, ..Default::default() };
    let bytes = framed(EventKind::Truncate(truncate.clone()));
    let mut out = BytesMut::new();
    assert_eq!(project_truncate(&mut out, &bytes, |_| false), Ok(false));
    assert!(out.is_empty());
    assert_eq!(project_truncate(&mut out, &bytes, |id| id.0 != 500), Ok(true));
    let expected = pb::Truncate { relation_ids: vec![3, 4], ..truncate.clone() };
    assert_eq!(unframed(&out), EventKind::Truncate(expected));
    let mut out = BytesMut::new();
    assert_eq!(struct_truncate(&mut out, &bytes, |id| (id.0 > 3).then(|| format!("s.t{}", id.0))), Ok(true));
    let tables = vec!["s.t500".into(), "s.t4".into()];
    assert_eq!(unframed(&out), EventKind::Truncate(pb::Truncate { relation_ids: vec![500, 4], tables, ..truncate }));
    let (_, change) = inserted(oid::INT4, Datum::Null);
    assert!(project_truncate(&mut BytesMut::new(), &change, |_| true).is_err());
}

/// How a struct shows a value, written from the documentation.
fn as_struct(type_oid: u32, value: &pb::Value) -> Option<prost_types::Value> {
    use prost_types::value::Kind::{BoolValue, NullValue, NumberValue, StringValue};
    let kind = match value.kind.as_ref().unwrap() {
        Kind::Missing(missing) if *missing == pb::Missing::Null as i32 => NullValue(0),
        Kind::Missing(_) => return None,
        Kind::BoolValue(value) => BoolValue(*value),
        Kind::IntValue(value) if type_oid == oid::INT8 => StringValue(value.to_string()),
        Kind::IntValue(value) => NumberValue(*value as f64),
        Kind::FloatValue(value) if value.is_infinite() => {
            StringValue(if *value > 0.0 { "Infinity".into() } else { "-Infinity".into() })
        }
        Kind::FloatValue(value) if type_oid == oid::FLOAT4 => NumberValue((*value as f32).to_string().parse().unwrap()),
        Kind::FloatValue(value) => NumberValue(*value),
        Kind::BytesValue(value) => {
            StringValue(value.iter().fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}")))
        }
        Kind::Text(value) => StringValue(value.clone()),
        Kind::RawText(value) => StringValue(value.iter().map(|byte| format!("\\x{byte:02X}")).collect()),
    };
    Some(prost_types::Value { kind: Some(kind) })
}

proptest! {
    #[test]
    fn views_and_projections_agree_with_prost(
        row in vec((typed(), any::<bool>()), 0..9),
        transition in option::of(prop_oneof![Just(Transition::Enter), Just(Transition::Stay), Just(Transition::Leave)]),
    ) {
        let (row, columns): (Vec<_>, Vec<bool>) = row.into_iter().unzip();
        let types: Vec<u32> = row.iter().map(|(oid, ..)| *oid).collect();
        let cells: Vec<Cell> = row.into_iter().map(|(_, cell, _)| cell).collect();
        let relation = relation(&types);
        let bytes = update(&relation, &cells);
        let whole = change_of(&bytes);
        let view = ChangeView::parse(&bytes).unwrap();

        for (image, expected) in [(view.before, &whole.before_row), (view.after, &whole.after_row)] {
            let expected: Vec<_> = expected.as_ref().unwrap().values.iter().map(|v| value_from_pb(v).unwrap()).collect();
            let image = image.unwrap();
            prop_assert_eq!(image.len(), expected.len());
            prop_assert_eq!(image.iter().collect::<Vec<_>>(), expected.clone());
            for (at, value) in expected.into_iter().enumerate() {
                prop_assert_eq!(image.get(at), Some(value));
            }
        }

        let keep = |row: &Option<pb::Row>| row.as_ref().map(|row| pb::Row {
            values: row.values.iter().zip(&columns).filter(|(_, keep)| **keep).map(|(value, _)| value.clone()).collect(),
        });
        let projected = framed(EventKind::Change(pb::Change {
            before_row: keep(&whole.before_row),
            after_row: keep(&whole.after_row),
            transition: transition.map_or(0, |transition| transition as i32),
            ..whole.clone()
        }));
        let bytes = appended(|out| project_change(out, &view, &relation, &columns, transition).unwrap());
        prop_assert_eq!(bytes, projected);

        let structs = |row: &Option<pb::Row>| row.as_ref().map(|row| prost_types::Struct {
            fields: row.values.iter().enumerate().filter(|(at, _)| columns[*at])
                .filter_map(|(at, value)| Some((format!("c{at}"), as_struct(types[at], value)?)))
                .collect::<BTreeMap<_, _>>(),
        });
        let unchanged = whole.after_row.iter().flat_map(|row| row.values.iter().enumerate())
            .filter(|(at, value)| columns[*at] && **value == missing(pb::Missing::Unchanged))
            .map(|(at, _)| format!("c{at}")).collect();
        let expected = framed(EventKind::Change(pb::Change {
            before: structs(&whole.before_row),
            after: structs(&whole.after_row),
            before_row: None,
            after_row: None,
            unchanged,
            table: "public.t".into(),
            lsn: "A/1".into(),
            ..whole
        }));
        let bytes = appended(|out| struct_change(out, &view, &relation, Some(&columns), Lsn(0xa_0000_0001), None).unwrap());
        prop_assert_eq!(bytes, expected);
    }

    #[test]
    fn no_bytes_make_it_panic(
        row in vec(typed(), 0..9), edits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), noise in vec(any::<u8>(), 0..64),
    ) {
        let types: Vec<u32> = row.iter().map(|(oid, ..)| *oid).collect();
        let cells: Vec<Cell> = row.into_iter().map(|(_, cell, _)| cell).collect();
        let relation = relation(&types);
        let mut bytes = update(&relation, &cells).to_vec();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let change = [&[0x0a, noise.len() as u8 + 2, 0x1a, noise.len() as u8], &noise[..]].concat();
        for bytes in [bytes, noise, change] {
            let mut out = BytesMut::new();
            if let Ok(view) = ChangeView::parse(&bytes) {
                for row in [view.before, view.after].into_iter().flatten() {
                    prop_assert_eq!(row.iter().count(), row.len());
                }
                let _ = project_change(&mut out, &view, &relation, &vec![true; types.len()], None);
                let _ = struct_change(&mut out, &view, &relation, None, Lsn(1), None);
            }
            let _ = struct_truncate(&mut out, &bytes, |_| None);
        }
    }

    #[test]
    fn a_float4_survives_its_struct(bits: u32) {
        let value = f32::from_bits(bits);
        prop_assume!(value.is_finite());
        let text = format!("{value:e}");
        let Some(prost_types::value::Kind::NumberValue(number)) = shown(oid::FLOAT4, Datum::Text(text.as_bytes())) else {
            panic!("a number")
        };
        prop_assert_eq!((number as f32).to_bits(), bits);
        prop_assert_eq!(number.to_string(), value.to_string());
    }
}

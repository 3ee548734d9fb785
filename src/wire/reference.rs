//! For tests: relations and rows of every kind, with the protobuf messages that prost makes of them.

use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, prelude::*};
use prost::Message;

use super::{pb, value::oid};
use crate::model::{Column, Datum, Relation, RelationId, ReplicaIdentity};

/// A value as the server sends it.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Null,
    Unchanged,
    Text(Vec<u8>),
}

impl Cell {
    pub fn datum(&self) -> Datum<'_> {
        match self {
            Cell::Null => Datum::Null,
            Cell::Unchanged => Datum::Unchanged,
            Cell::Text(text) => Datum::Text(text),
        }
    }
}

pub fn datums(row: &[Cell]) -> impl Iterator<Item = Datum<'_>> + Clone {
    row.iter().map(Cell::datum)
}

pub fn column(name: &str, type_oid: u32, in_identity: bool) -> Column {
    Column { name: name.into(), type_oid, type_name: format!("oid:{type_oid}"), type_modifier: -1, in_identity }
}

/// `public.t` with one column per type: `c0`, `c1` and so on, of which every third is in the identity.
pub fn relation(types: &[u32]) -> Relation {
    let column = |(at, oid): (usize, &u32)| column(&format!("c{at}"), *oid, at % 3 == 0);
    Relation {
        id: RelationId(7),
        oid: 16400,
        schema: "public".into(),
        table: "t".into(),
        replica_identity: ReplicaIdentity::Index,
        columns: types.iter().enumerate().map(column).collect(),
    }
}

pub fn missing(missing: pb::Missing) -> pb::Value {
    pb::Value { kind: Some(pb::value::Kind::Missing(missing as i32)) }
}

pub fn value(kind: pb::value::Kind) -> pb::Value {
    pb::Value { kind: Some(kind) }
}

/// A type's OID, a value of it as text, and as a message.
type Typed = (u32, Cell, pb::Value);

fn float_text(value: f64, finite: String) -> Cell {
    Cell::Text(match value {
        _ if value.is_nan() => b"NaN".to_vec(),
        f64::INFINITY => b"Infinity".to_vec(),
        f64::NEG_INFINITY => b"-Infinity".to_vec(),
        _ => finite.into_bytes(),
    })
}

fn finite_or_infinite_f32() -> impl Strategy<Value = f32> {
    use prop::num::f32::{INFINITE, NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    NORMAL | SUBNORMAL | ZERO | INFINITE | POSITIVE | NEGATIVE
}

fn finite_or_infinite_f64() -> impl Strategy<Value = f64> {
    use prop::num::f64::{INFINITE, NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    NORMAL | SUBNORMAL | ZERO | INFINITE | POSITIVE | NEGATIVE
}

pub fn typed() -> impl Strategy<Value = Typed> {
    use pb::value::Kind;
    let int = |oid: u32, v: i64| (oid, Cell::Text(v.to_string().into_bytes()), value(Kind::IntValue(v)));
    let types = prop::sample::select(vec![oid::BOOL, oid::BYTEA, oid::INT8, oid::FLOAT8, oid::TEXT, 1700, 16385]);
    prop_oneof![
        any::<bool>().prop_map(|b| {
            (oid::BOOL, Cell::Text(if b { b"t".to_vec() } else { b"f".to_vec() }), value(Kind::BoolValue(b)))
        }),
        any::<i16>().prop_map(move |v| int(oid::INT2, v.into())),
        any::<i32>().prop_map(move |v| int(oid::INT4, v.into())),
        any::<i64>().prop_map(move |v| int(oid::INT8, v)),
        any::<u32>().prop_map(move |v| int(oid::OID, v.into())),
        finite_or_infinite_f32().prop_map(|v| (
            oid::FLOAT4,
            float_text(v.into(), format!("{v:?}")),
            value(Kind::FloatValue(v.into()))
        )),
        finite_or_infinite_f64().prop_map(|v| (
            oid::FLOAT8,
            float_text(v, format!("{v:e}")),
            value(Kind::FloatValue(v))
        )),
        vec(any::<u8>(), 0..200).prop_map(|v| {
            let text = v.iter().fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}"));
            (oid::BYTEA, Cell::Text(text.into_bytes()), value(Kind::BytesValue(v.into())))
        }),
        ("\\PC{0,150}", prop::sample::select(vec![oid::TEXT, oid::JSONB, 1700, 1114, 1007, 16385]))
            .prop_map(|(v, oid)| { (oid, Cell::Text(v.clone().into_bytes()), value(Kind::Text(v))) }),
        vec(0x80u8..0xc0, 1..20).prop_map(|v| (oid::TEXT, Cell::Text(v.clone()), value(Kind::RawText(v.into())))),
        types.clone().prop_map(|oid| (oid, Cell::Null, missing(pb::Missing::Null))),
        types.prop_map(|oid| (oid, Cell::Unchanged, missing(pb::Missing::Unchanged))),
    ]
}

/// The framed event as prost writes it.
pub fn framed(kind: pb::event::Kind) -> Bytes {
    pb::SubscribeResponse { events: vec![pb::Event { kind: Some(kind) }] }.encode_to_vec().into()
}

/// The one event in framed bytes.
pub fn unframed(bytes: &[u8]) -> pb::event::Kind {
    let response = pb::SubscribeResponse::decode(bytes).unwrap();
    let [event] = <[pb::Event; 1]>::try_from(response.events).unwrap();
    event.kind.unwrap()
}

/// What `write` appends, and that it appends.
pub fn appended(write: impl Fn(&mut BytesMut)) -> Bytes {
    let mut fresh = BytesMut::new();
    write(&mut fresh);
    let mut used = BytesMut::from(&b"before"[..]);
    write(&mut used);
    assert_eq!(&used[..6], b"before");
    assert_eq!(used[6..], fresh);
    fresh.freeze()
}

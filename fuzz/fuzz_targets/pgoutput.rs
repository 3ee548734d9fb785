//! Any bytes through the decoder, and what it accepts through the encoder: neither may panic, an error must leave the
//! output alone, and what was encoded must read back.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use walcast::{
    model::{Column, OldImage, Operation, Relation, RelationId, ReplicaIdentity},
    pgoutput::{self, Message, Tuple},
    wire::{encode, rows::ChangeView},
};

/// Types with a kind of their own, and text.
const TYPES: [u32; 10] = [25, 23, 20, 21, 26, 16, 17, 700, 701, 1700];

fn relation(columns: usize) -> Relation {
    let column = |at: usize| Column {
        name: format!("c{at}"),
        type_oid: TYPES[at % TYPES.len()],
        type_name: String::new(),
        type_modifier: -1,
        in_identity: at % 2 == 0,
    };
    Relation {
        id: RelationId(1),
        oid: 1,
        schema: "s".into(),
        table: "t".into(),
        replica_identity: ReplicaIdentity::Index,
        columns: (0..columns).map(column).collect(),
    }
}

fn encode_and_read(operation: Operation, old: Option<(OldImage, Tuple<'_>)>, new: Option<Tuple<'_>>) {
    let columns = new.as_ref().or(old.as_ref().map(|(_, old)| old)).map_or(0, Tuple::len);
    let mut out = BytesMut::new();
    let result = encode::change(&mut out, &relation(columns), operation, 1, old.clone(), new.clone());
    if result.is_err() {
        assert!(out.is_empty());
        return;
    }
    let view = ChangeView::parse(&out).expect("what was encoded reads back");
    assert_eq!(view.before.map(|row| row.len()), old.map(|(_, old)| old.len()));
    assert_eq!(view.after.map(|row| row.len()), new.map(|new| new.len()));
}

fuzz_target!(|bytes: &[u8]| {
    match pgoutput::decode(bytes) {
        Err(error) => assert!(error.offset <= bytes.len()),
        Ok(Message::Insert { new, .. }) => encode_and_read(Operation::Insert, None, Some(new)),
        Ok(Message::Update { old, new, .. }) => encode_and_read(Operation::Update, old, Some(new)),
        Ok(Message::Delete { old_image, old, .. }) => encode_and_read(Operation::Delete, Some((old_image, old)), None),
        Ok(Message::Relation(relation)) => assert_eq!(relation.columns.len(), relation.columns.count()),
        Ok(Message::Truncate { oids, .. }) => assert_eq!(oids.len(), oids.count()),
        Ok(_) => {}
    }
});

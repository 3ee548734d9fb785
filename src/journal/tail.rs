//! What the end of the stream looks like: the state that every record moves, whether it is being written, recovered or
//! verified, and the payloads of the small record kinds.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use super::horizon::{Horizon, get_horizon, put_horizon};
use super::segment::{POSITION_LEN, get_position, put_position};
use crate::{
    feed::LineageStart,
    lsn::Lsn,
    model::{Lineage, Position, Provenance, Relation, Transaction},
    wire::{
        block::{Block, SpanEnd},
        pb, relation_from_pb, relation_to_pb,
    },
};

/// The transaction whose end has not been journaled yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Open {
    /// Block that holds its `begin`.
    pub first_block: u64,
    /// Ordinals so far.
    pub ordinals: u64,
    /// The framed `begin`.
    pub begin: Bytes,
}

/// The payload of a STATE record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub last_xid: Option<u64>,
    pub open: Option<Open>,
    pub horizons: Vec<Horizon>,
    pub polled: bool,
}

/// The end of the stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail {
    /// Number of the next block.
    pub next_block: u64,
    /// The last resume point.
    pub position: Position,
    /// The open transaction.
    pub open: Option<Open>,
    /// Every lineage, oldest first.
    pub lineages: Vec<LineageStart>,
    /// The version of each table (by OID) that was announced last.
    pub current: BTreeMap<u32, Arc<Relation>>,
    /// Versions superseded since the last segment began: a block that is sealed later may still use them.
    pub superseded: Vec<Arc<Relation>>,
    /// Oldest first.
    pub horizons: Vec<Horizon>,
    pub(super) last_xid: Option<u64>,
    /// The newest transaction was polled from log tables, and no replay has ended since.
    pub(super) polled: bool,
    pub(super) last_transaction: Option<Arc<Block>>,
}

/// A payload or an index that passes its checksum and still makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unreadable {0}")]
pub struct Unreadable(pub &'static str);

impl Tail {
    /// A tail as a STATE record describes it.
    pub fn restore(&mut self, next_block: u64, position: Position, state: State) {
        self.next_block = next_block;
        self.position = position;
        self.open = state.open;
        self.horizons = state.horizons;
        self.last_xid = state.last_xid;
        self.polled = state.polled;
        self.last_transaction = None;
    }

    /// A tail behind damage: which transaction is open is not known.
    pub fn resume_at(&mut self, next_block: u64, position: Position) {
        let (last_xid, polled) = (self.last_xid(), self.polled);
        let horizons = std::mem::take(&mut self.horizons);
        self.restore(next_block, position, State { last_xid, open: None, horizons, polled });
    }

    /// Follows a block. On an error nothing has moved.
    pub fn block(&mut self, block: &Arc<Block>) -> Result<(), Unreadable> {
        let open = if block.ends_open { Some(self.still_open(block)?) } else { None };
        self.open = open;
        self.next_block = block.number + 1;
        self.position = block.up_to;
        if block.ends_open || block.commit_time != 0 || !block.continued_begin().is_empty() {
            self.last_transaction = Some(block.clone());
        }
        Ok(())
    }

    fn still_open(&self, block: &Block) -> Result<Open, Unreadable> {
        let index = block.index().map_err(|_| Unreadable("block index"))?;
        let span = index.spans.last().filter(|span| span.ending == SpanEnd::Open).ok_or(Unreadable("open span"))?;
        let ordinals = u64::from(span.entries.1 - span.entries.0);
        if span.begin_len > 0 {
            let begin = slice_of(block, span.start, span.begin_len).ok_or(Unreadable("begin"))?;
            return Ok(Open { first_block: block.number, ordinals, begin });
        }
        match &self.open {
            Some(open) => Ok(Open { ordinals: open.ordinals + ordinals, ..open.clone() }),
            None => Err(Unreadable("continued transaction")),
        }
    }

    /// Follows a relation version.
    pub fn relation(&mut self, relation: &Arc<Relation>) {
        if let Some(before) = self.current.insert(relation.oid, relation.clone())
            && before.id != relation.id
        {
            self.superseded.push(before);
        }
    }

    /// Follows a lineage that begins here.
    pub fn lineage(&mut self, start: LineageStart) {
        self.position = start.tail;
        if start.gap.is_some() {
            self.complete();
        }
        self.lineages.push(start);
    }

    /// Follows the end of a replay.
    pub fn recovered(&mut self, position: Position) {
        self.position = position;
        self.complete();
    }

    fn complete(&mut self) {
        self.last_xid();
        self.polled = false;
    }

    /// Whether the newest transactions were polled from log tables: then the source may have committed others before the
    /// tail's LSN that are not here yet.
    pub fn polled(&mut self) -> bool {
        self.last_xid();
        self.polled
    }

    /// Transaction id of the newest transaction, widened, 0 included as none.
    pub fn last_xid(&mut self) -> Option<u64> {
        if let Some(block) = self.last_transaction.take()
            && let Some(transaction) = last_begin(&block).and_then(|begin| read_begin(&begin))
        {
            self.last_xid = Some(transaction.xid);
            self.polled = transaction.provenance == Provenance::LogPoll;
        }
        self.last_xid
    }

    /// What a STATE record says here.
    pub fn state(&mut self) -> State {
        let last_xid = self.last_xid();
        State { last_xid, open: self.open.clone(), horizons: self.horizons.clone(), polled: self.polled }
    }
}

fn slice_of(block: &Block, start: u32, len: u32) -> Option<Bytes> {
    let payload = block.payload();
    let bytes = payload.get(start as usize..(start as usize).checked_add(len as usize)?)?;
    Some(Bytes::copy_from_slice(bytes))
}

fn last_begin(block: &Block) -> Option<Bytes> {
    let index = block.index().ok()?;
    let last = index.spans.iter().rev().find(|span| span.begin_len > 0);
    match last {
        Some(span) => slice_of(block, span.start, span.begin_len),
        None => Some(block.continued_begin().clone()),
    }
}

/// Reads a framed `begin`.
pub(super) fn read_begin(framed: &[u8]) -> Option<Transaction> {
    const POSTGRES_EPOCH_SECONDS: i64 = 946_684_800;
    let event = pb::SubscribeResponse::decode(framed).ok()?.events.into_iter().next()?;
    let pb::event::Kind::Begin(begin) = event.kind? else { return None };
    let provenance = match begin.provenance() {
        pb::Provenance::Unspecified | pb::Provenance::Slot => Provenance::Slot,
        pb::Provenance::LogReplay => Provenance::LogReplay,
        pb::Provenance::LogPoll => Provenance::LogPoll,
    };
    let time = begin.commit_time.unwrap_or_default();
    let seconds = time.seconds.checked_sub(POSTGRES_EPOCH_SECONDS)?;
    Some(Transaction {
        commit_lsn: begin.commit_lsn.parse().ok()?,
        sequence: begin.sequence,
        xid: begin.xid,
        commit_time: seconds.checked_mul(1_000_000)?.checked_add(i64::from(time.nanos) / 1000)?,
        origin: begin.origin,
        provenance,
    })
}

/// Appends the payload of a STATE record.
pub(super) fn put_state(out: &mut BytesMut, state: &State) {
    out.put_u64_le(state.last_xid.unwrap_or(0));
    match &state.open {
        None => out.put_u8(0),
        Some(open) => {
            out.put_u8(1);
            out.put_u64_le(open.first_block);
            out.put_u64_le(open.ordinals);
            out.put_u32_le(open.begin.len() as u32);
            out.put_slice(&open.begin);
        }
    }
    out.put_u16_le(state.horizons.len() as u16);
    for horizon in &state.horizons {
        out.put_u32_le(horizon.encoded_len() as u32);
        put_horizon(out, horizon);
    }
    if state.polled {
        out.put_u8(1);
    }
}

/// Reads the payload of a STATE record.
pub(super) fn get_state(bytes: &Bytes) -> Result<State, Unreadable> {
    read_state(bytes.clone()).ok_or(Unreadable("STATE"))
}

fn read_state(mut bytes: Bytes) -> Option<State> {
    let xid = bytes.try_get_u64_le().ok()?;
    let last_xid = (xid != 0).then_some(xid);
    let open = match bytes.try_get_u8().ok()? {
        0 => None,
        1 => {
            let first_block = bytes.try_get_u64_le().ok()?;
            let ordinals = bytes.try_get_u64_le().ok()?;
            let len = bytes.try_get_u32_le().ok()? as usize;
            Some(Open { first_block, ordinals, begin: bytes.len().checked_sub(len).map(|_| bytes.split_to(len))? })
        }
        _ => return None,
    };
    let mut horizons = Vec::new();
    for _ in 0..if bytes.is_empty() { 0 } else { bytes.try_get_u16_le().ok()? } {
        let len = bytes.try_get_u32_le().ok()? as usize;
        horizons.push(get_horizon(bytes.get(..len)?).ok()?);
        bytes.advance(len);
    }
    let polled = bytes.first() == Some(&1);
    Some(State { last_xid, open, horizons, polled })
}

/// Appends the payload of a LINEAGE record.
pub(super) fn put_lineage(out: &mut BytesMut, start: &LineageStart) {
    let lineage = &start.lineage;
    out.put_u64_le(lineage.system_identifier);
    out.put_u32_le(lineage.timeline);
    out.put_u32_le(lineage.epoch);
    out.put_u64_le(lineage.switch_lsn.0);
    out.put_u64_le(start.first_block);
    put_position(out, start.left);
    out.put_u32_le(lineage.history.len() as u32);
    out.put_slice(lineage.history.as_bytes());
    put_position(out, start.tail);
    out.put_u8(u8::from(start.gap.is_some()));
    out.put_slice(start.gap.as_deref().unwrap_or_default().as_bytes());
}

/// Reads the payload of a LINEAGE record.
pub(super) fn get_lineage(bytes: &Bytes) -> Result<LineageStart, Unreadable> {
    read_lineage(bytes).ok_or(Unreadable("LINEAGE"))
}

fn read_lineage(mut bytes: &[u8]) -> Option<LineageStart> {
    let system_identifier = bytes.try_get_u64_le().ok()?;
    let timeline = bytes.try_get_u32_le().ok()?;
    let epoch = bytes.try_get_u32_le().ok()?;
    let switch_lsn = Lsn(bytes.try_get_u64_le().ok()?);
    let first_block = bytes.try_get_u64_le().ok()?;
    if bytes.len() < POSITION_LEN {
        return None;
    }
    let left = get_position(&mut bytes);
    let len = bytes.try_get_u32_le().ok()? as usize;
    let history = std::str::from_utf8(bytes.get(..len)?).ok()?.to_owned();
    bytes.advance(len);
    let lineage = Lineage { system_identifier, timeline, history, epoch, switch_lsn };
    let id = lineage.id();
    let (mut tail, mut gap) = (Position::new(id, switch_lsn), None);
    // Journals from before failovers were followed hold one lineage, which ends here.
    if bytes.len() > POSITION_LEN {
        tail = get_position(&mut bytes);
        gap = (bytes.get_u8() != 0).then(|| std::str::from_utf8(bytes).map(str::to_owned));
    }
    Some(LineageStart { lineage: Arc::new(lineage), id, first_block, left, tail, gap: gap.transpose().ok()? })
}

/// Appends the payload of a RELATION record.
pub(super) fn put_relation(out: &mut BytesMut, relation: &Relation) {
    out.put_slice(&relation_to_pb(relation).encode_to_vec());
}

/// Reads the payload of a RELATION record.
pub(super) fn get_relation(bytes: &Bytes) -> Result<Arc<Relation>, Unreadable> {
    let relation = pb::Relation::decode(bytes.clone()).map_err(|_| Unreadable("RELATION"))?;
    Ok(Arc::new(relation_from_pb(&relation)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lineages_are_kept_whole_and_those_of_older_journals_are_read() {
        let lineage = Lineage {
            system_identifier: 7,
            timeline: 2,
            history: "1\t0/100\tno recovery target specified\n".into(),
            epoch: 1,
            switch_lsn: Lsn(0x100),
        };
        let id = lineage.id();
        let left = Position::new(crate::model::LineageId(1), Lsn(0x180));
        for gap in [None, Some("slot lost".to_owned())] {
            let tail = Position { sequence: 3, ..Position::new(id, Lsn(0x200)) };
            let lineage = Arc::new(lineage.clone());
            let start = LineageStart { lineage, id, first_block: 9, left, tail, gap };
            let mut payload = BytesMut::new();
            put_lineage(&mut payload, &start);
            assert_eq!(get_lineage(&payload.clone().freeze()).unwrap(), start);
            let reason = start.gap.as_ref().map_or(0, String::len);
            payload.truncate(payload.len() - POSITION_LEN - 1 - reason);
            let old = get_lineage(&payload.clone().freeze()).unwrap();
            assert_eq!((old.tail, old.gap), (Position::new(id, Lsn(0x100)), None));
            payload.truncate(payload.len() - 1);
            assert!(get_lineage(&payload.freeze()).is_err());
        }
    }
}

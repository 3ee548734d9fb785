//! Transactions from log tables share an LSN, the consistent point of the new slot or the end of the WAL at a poll, and
//! are told apart by their sequence. So that such a history can be held against what says something of LSNs, both it and
//! the truth are told as if each of them had ended at an LSN of its own: the last one at the shared LSN, the others one by
//! one before it. There is room, since each has written a commit record there, and nothing else has a position in between.

use std::collections::{HashMap, HashSet};

use walcast::{
    lsn::Lsn,
    wire::pb::{self, event::Kind},
};

use super::{
    history::{History, order},
    parsed::{Parsed, Unit},
    truth::{Op, Truth},
};

/// Which transactions came from log tables.
#[derive(Clone, Debug, Default)]
pub struct Replays {
    /// The greatest sequence at this LSN.
    last: HashMap<Lsn, u32>,
    /// By 32-bit transaction id.
    positions: HashMap<u32, (Lsn, u32)>,
    /// LSNs from the last position before a recovery to the consistent point, both inclusive.
    gaps: Vec<(Lsn, Lsn)>,
    /// Resume points of logical messages outside transactions.
    messages: HashSet<Lsn>,
}

impl Replays {
    /// `whole`: everything from the beginning, unfiltered, without what was taken back.
    pub fn of(whole: &Parsed<'_>) -> Replays {
        let mut replays = Replays::default();
        let mut before = Lsn::ZERO;
        for unit in whole.streams.iter().flatten() {
            let Some((after, _)) = unit.committed() else { continue };
            match unit {
                Unit::Transaction(span) if after.1 > 0 => {
                    match replays.gaps.last_mut() {
                        Some(gap) if after.1 > 1 => gap.1 = after.0,
                        _ => replays.gaps.push((before, after.0)),
                    }
                    replays.positions.insert(span.xid as u32, after);
                    let last = replays.last.entry(after.0).or_default();
                    *last = (*last).max(after.1);
                }
                Unit::Message { .. } => drop(replays.messages.insert(after.0)),
                _ => before = after.0,
            }
        }
        replays
    }

    /// How many transactions came from log tables.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    fn own_lsn(&self, (lsn, sequence): (Lsn, u32)) -> Lsn {
        match self.last.get(&lsn) {
            Some(last) if sequence > 0 => Lsn(lsn.0 - u64::from(last.saturating_sub(sequence))),
            _ => lsn,
        }
    }

    /// The truth as the log has it: without the logical messages of a gap.
    pub fn place(&self, truth: Truth) -> Truth {
        let mut entries = truth.entries;
        let in_a_gap = |at: Lsn| self.gaps.iter().any(|(from, to)| at >= *from && at <= *to);
        entries.retain(|entry| {
            let silent = entry.items.iter().all(|item| matches!(item.what, Op::Message(..)));
            !(silent && in_a_gap(entry.end_lsn) && !self.messages.contains(&entry.end_lsn))
        });
        for entry in &mut entries {
            let Some(position) = self.positions.get(&entry.xid) else { continue };
            entry.end_lsn = self.own_lsn(*position);
            entry.items.retain(|item| !matches!(item.what, Op::Message(..)));
            for (at, item) in entry.items.iter_mut().enumerate() {
                item.ordinal = at as u64 + 1;
            }
        }
        entries.sort_by_key(|entry| entry.end_lsn);
        Truth { entries }
    }

    /// A history told the same way.
    pub fn place_history(&self, history: &History) -> History {
        let mut placed = history.clone();
        let place = |position: &mut Option<pb::Position>| {
            if let Some(position) = position {
                position.lsn = self.own_lsn(order(position)).to_string();
            }
        };
        for stream in &mut placed.streams {
            place(&mut stream.resumes_after);
            if let Some(pb::start::At::After(position)) = stream.start.as_mut().and_then(|start| start.at.as_mut()) {
                position.lsn = self.own_lsn(order(position)).to_string();
            }
            for record in &mut stream.events {
                match &mut record.kind {
                    Kind::Opened(opened) => {
                        place(&mut opened.after);
                        place(&mut opened.tail);
                    }
                    Kind::Commit(commit) => place(&mut commit.position),
                    Kind::Progress(progress) => {
                        place(&mut progress.position);
                        place(&mut progress.tail);
                    }
                    Kind::TimelineChanged(changed) => place(&mut changed.position),
                    _ => {}
                }
            }
        }
        placed
    }
}

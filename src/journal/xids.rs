//! Where transaction ids stand along the journal: a short list of positions, each with the greatest id up to there. A
//! snapshot of the source sees every transaction below its xmin, so the hand-over from it needs to look no further
//! back than the last position of which that is true. Kept in memory, and filled from the first connection on.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::model::Position;

/// Entries beyond which every second one is forgotten.
const ENTRIES: usize = 8192;

/// The list. Positions and ids ascend; all of one lineage.
#[derive(Debug, Default)]
pub(super) struct Xids(Mutex<VecDeque<(Position, u64)>>);

impl Xids {
    /// Every journaled transaction up to `tail` has an id below `next`. Holds if nothing better is known.
    pub fn bound(&self, tail: Position, next: u64) {
        let mut entries = self.0.lock();
        if entries.back().is_none_or(|(last, _)| last.lineage != tail.lineage) {
            entries.clear();
            entries.push_back((tail, next.saturating_sub(1)));
        }
    }

    /// No transaction up to `position` has a greater id than `greatest` or those told before.
    pub fn note(&self, position: Position, greatest: u64) {
        let mut entries = self.0.lock();
        let Some((last, known)) = entries.back_mut() else { return };
        if last.lineage != position.lineage {
            return entries.clear();
        }
        if position.order() <= last.order() {
            *known = greatest.max(*known);
        } else if greatest <= *known {
            *last = position;
        } else {
            entries.push_back((position, greatest));
        }
        if entries.len() > ENTRIES {
            let mut number = 0;
            let newest = entries.len();
            entries.retain(|_| {
                number += 1;
                number % 2 == 1 || number == newest
            });
        }
    }

    /// The last position up to which every id is below `xid`.
    pub fn before(&self, xid: u64) -> Option<Position> {
        let entries = self.0.lock();
        let below = entries.partition_point(|(_, greatest)| *greatest < xid);
        Some(entries.get(below.checked_sub(1)?)?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lsn::Lsn, model::LineageId};

    fn at(lsn: u64) -> Position {
        Position::new(LineageId(1), Lsn(lsn))
    }

    #[test]
    fn the_greatest_id_up_to_a_position_counts() {
        let xids = Xids::default();
        xids.note(at(10), 5);
        assert_eq!(xids.before(100), None, "nothing is known before the first bound");
        xids.bound(at(20), 50);
        assert_eq!((xids.before(49), xids.before(50)), (None, Some(at(20))));
        for (lsn, xid) in [(30, 60), (40, 55), (50, 70)] {
            xids.note(at(lsn), xid);
        }
        assert_eq!(xids.before(60), Some(at(20)));
        assert_eq!(xids.before(61), Some(at(40)), "an older transaction committed later");
        assert_eq!(xids.before(71), Some(at(50)));
        xids.bound(at(60), 1000);
        assert_eq!(xids.before(71), Some(at(50)), "a later connection changes nothing");
    }

    #[test]
    fn another_lineage_begins_anew() {
        let xids = Xids::default();
        xids.bound(at(20), 50);
        xids.note(Position::new(LineageId(2), Lsn(30)), 40);
        assert_eq!(xids.before(100), None);
    }

    #[test]
    fn the_list_stays_short() {
        let xids = Xids::default();
        xids.bound(at(1), 1);
        for n in 2..50_000 {
            xids.note(at(n), n);
        }
        assert!(xids.0.lock().len() <= ENTRIES);
        let before = xids.before(25_000).unwrap();
        assert!(before.lsn.0 < 25_000 && before.lsn.0 > 24_900, "{before}");
        assert_eq!(xids.before(60_000), Some(at(49_999)));
    }
}

//! Which positions a stream has sent.

use smallvec::SmallVec;

use crate::model::Position;

/// The last position sent on each lineage that a stream crossed, oldest lineage first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trail(SmallVec<[Position; 1]>);

impl Trail {
    /// A stream that has sent `start` so far: everything up to there is done.
    pub fn new(start: Position) -> Self {
        let mut trail = Trail::default();
        trail.advance(start);
        trail
    }

    /// One more position was sent.
    pub fn advance(&mut self, position: Position) {
        match self.0.last_mut() {
            Some(last) if last.lineage == position.lineage => {
                if position.order() > last.order() {
                    *last = position;
                }
            }
            _ => self.0.push(position),
        }
    }

    /// The last position sent.
    pub fn last(&self) -> Option<Position> {
        self.0.last().copied()
    }

    /// Whether `position` is at or before one that was sent.
    pub fn covers(&self, position: Position) -> bool {
        self.0.iter().any(|sent| sent.lineage == position.lineage && position.order() <= sent.order())
    }

    /// Whether `position`, on a lineage of this trail, comes after `other`. A lineage that the trail does not have is older.
    pub fn is_after(&self, position: Position, other: Position) -> bool {
        if position.lineage == other.lineage {
            return position.order() > other.order();
        }
        let rank = |position: Position| self.0.iter().position(|sent| sent.lineage == position.lineage);
        rank(position) > rank(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lsn::Lsn, model::LineageId};

    fn at(lineage: u64, lsn: u64) -> Position {
        Position::new(LineageId(lineage), Lsn(lsn))
    }

    #[test]
    fn a_trail_crosses_lineages() {
        let mut trail = Trail::new(at(1, 100));
        trail.advance(at(1, 90));
        trail.advance(at(2, 80));
        trail.advance(at(2, 120));
        assert_eq!(trail.last(), Some(at(2, 120)));
        assert!(trail.covers(at(1, 100)) && trail.covers(at(2, 120)) && trail.covers(at(2, 1)));
        assert!(!trail.covers(at(1, 101)) && !trail.covers(at(2, 121)) && !trail.covers(at(3, 1)));
    }

    #[test]
    fn order_between_lineages_is_that_of_the_trail() {
        let mut trail = Trail::new(at(1, 100));
        trail.advance(at(2, 80));
        assert!(trail.is_after(at(2, 1), at(1, 100)));
        assert!(!trail.is_after(at(1, 100), at(2, 1)));
        assert!(trail.is_after(at(1, 1), at(9, 999)), "a lineage from before the stream");
        assert!(!trail.is_after(at(1, 50), at(1, 50)));
    }
}

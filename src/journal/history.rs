//! The lineages of a journal, and the order of positions over all of them.

use super::tail::LineageStart;
use crate::{
    feed::Error,
    lsn::Lsn,
    model::{LineageId, Position},
};

/// Orders positions of all lineages: rank of the lineage, LSN, sequence.
pub(super) type Key = (usize, Lsn, u32);

/// Every lineage, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct History(pub Vec<LineageStart>);

impl History {
    /// Rank of a lineage, from the oldest.
    pub fn rank(&self, id: LineageId) -> Option<usize> {
        self.0.iter().rposition(|start| start.id == id)
    }

    /// The order over all lineages: by rank, then inside the lineage.
    pub fn key(&self, position: Position) -> (usize, Lsn, u32) {
        (self.rank(position.lineage).map_or(0, |rank| rank + 1), position.lsn, position.sequence)
    }

    /// Checks that a position lies on history that still holds; the error names the last common one.
    pub fn check(&self, requested: Position) -> Result<(), Error> {
        let rank = self.rank(requested.lineage).ok_or(Error::LineageUnknown(requested.lineage))?;
        for later in &self.0[rank + 1..] {
            let switch = later.lineage.switch_lsn;
            if requested.lsn > switch {
                let left = Position { lineage: requested.lineage, ..later.left };
                let common = if left.lsn > switch { Position::new(requested.lineage, switch) } else { left };
                return Err(Error::Diverged { requested, common });
            }
        }
        Ok(())
    }

    /// The same point on the older lineage if it lies on the part that both share.
    pub fn normalize(&self, mut position: Position) -> Position {
        let mut rank = self.rank(position.lineage).unwrap_or(0);
        while rank > 0 {
            let start = &self.0[rank];
            let switch = (start.lineage.switch_lsn, u32::MAX);
            if position.order() > start.left.order().min(switch) {
                break;
            }
            rank -= 1;
            position.lineage = self.0[rank].id;
        }
        position
    }
}

//! The histories that one feed has followed, and which parts of them still hold.
//!
//! A promoted standby leaves the old primary's history at a switch point: what the feed holds of the old one behind that
//! point never happened on the new one. Nothing is rewritten. A lineage names where it departs from an earlier one, and
//! from these departures everything else follows: which positions are dead, where a stream has to cross, and what it
//! owes its client then. Timeline numbers repeat after forks (the [history
//! files](https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES) differ, the numbers need
//! not), so nothing here looks at them.
//!
//! ```text
//! rank 0  ────────────┬──────── dead
//!                     └─ rank 1 ─────────┬── dead          newest: rank 2, chain 0, 1, 2
//!                                        └─ rank 2 ───────
//! ```

use std::sync::Arc;

use super::{Cursor, Error};
use crate::{
    lsn::Lsn,
    model::{Lineage, LineageId, Position},
};

/// Orders positions of all lineages: rank of the lineage, LSN, sequence.
pub type Key = (usize, Lsn, u32);

/// A lineage and where it begins in the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineageStart {
    /// The history.
    pub lineage: Arc<Lineage>,
    /// [`Lineage::id`], which is a hash, computed once.
    pub id: LineageId,
    /// Number of the first block that belongs to it.
    pub first_block: u64,
    /// The last position on the lineage before; the default for the first of a feed.
    pub left: Position,
    /// Its first resume point.
    pub tail: Position,
    /// Why changes are missing in front of `tail`, for people; `None` when none are.
    pub gap: Option<String>,
}

/// Where a lineage departs from an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Branch {
    parent: usize,
    /// The last resume point that both share, on the parent.
    departs: Position,
}

/// Every lineage, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    starts: Vec<LineageStart>,
    branches: Vec<Branch>,
    /// Of each lineage that the newest descends from, the next one on the way there.
    next: Vec<Option<usize>>,
}

/// What a stream on an earlier lineage has before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// The lineage that ends for the stream.
    pub old: LineageId,
    /// The lineage that goes on.
    pub to: LineageStart,
    /// The last resume point that both share.
    pub departs: Position,
    /// Whether the same course of history goes on, behind a gap.
    pub same_course: bool,
}

impl Crossing {
    /// Whether a resume point, on any lineage that ends here, holds on the one that goes on.
    pub fn holds(&self, position: Position) -> bool {
        position.lineage == self.departs.lineage && self.holds_lsn(position.lsn)
    }

    /// The same of an LSN on the lineage of `departs`.
    pub fn holds_lsn(&self, lsn: Lsn) -> bool {
        within(lsn, self.to.lineage.switch_lsn)
    }
}

/// Whether a resume point lies at or before a switch. Switches lie at record boundaries, multiples of 8; the position of a
/// message outside transactions is the end of its record plus 1.
fn within(lsn: Lsn, switch: Lsn) -> bool {
    lsn.0 & !7 <= switch.0
}

impl History {
    /// From lineages in the order in which they were followed.
    pub fn of(starts: impl IntoIterator<Item = LineageStart>) -> History {
        let mut history = History::default();
        starts.into_iter().for_each(|start| history.push(start));
        history
    }

    /// Oldest first.
    pub fn starts(&self) -> &[LineageStart] {
        &self.starts
    }

    /// Lineages so far.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether the source has never been connected.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The current lineage.
    pub fn newest(&self) -> Option<&LineageStart> {
        self.starts.last()
    }

    /// What [`History::push`] would be given for a lineage that is followed when the feed ends at `left`. `gap`: the
    /// first resume point behind what is missing, and why it is.
    pub fn start(
        &self,
        lineage: Lineage,
        left: Position,
        first_block: u64,
        gap: Option<(Lsn, String)>,
    ) -> LineageStart {
        let id = lineage.id();
        let shared = match self.departure(&lineage, left) {
            Some((_, departs)) => Position { lineage: id, ..departs },
            None => Position::new(id, lineage.switch_lsn),
        };
        let tail = gap.as_ref().map_or(shared, |(up_to, _)| Position::new(id, *up_to));
        let gap = gap.map(|(_, reason)| reason);
        LineageStart { lineage: Arc::new(lineage), id, first_block, left, tail, gap }
    }

    /// Adds the newest lineage.
    pub fn push(&mut self, start: LineageStart) {
        let (parent, departs) = self.departure(&start.lineage, start.left).unwrap_or_default();
        self.starts.push(start);
        self.branches.push(Branch { parent, departs });
        self.next = vec![None; self.starts.len()];
        let mut rank = self.starts.len() - 1;
        while rank > 0 {
            let parent = self.branches[rank].parent;
            self.next[parent] = Some(rank);
            rank = parent;
        }
    }

    /// The resume point that a lineage would share with what the feed holds up to `left`, and on which rank.
    fn departure(&self, lineage: &Lineage, left: Position) -> Option<(usize, Position)> {
        let mut rank = self.starts.len().checked_sub(1)?;
        let mut end = left;
        loop {
            let start = &self.starts[rank];
            let parent = self.branches[rank].parent;
            let root = rank == 0 || !same_system(&self.starts[parent], start);
            if root || within(start.tail.lsn, lineage.switch_lsn) {
                let reached = within(end.lsn, lineage.switch_lsn);
                let departs = if reached { end } else { Position::new(start.id, lineage.switch_lsn) };
                return Some((rank, departs));
            }
            end = self.branches[rank].departs;
            rank = parent;
        }
    }

    /// Rank of a lineage, from the oldest.
    pub fn rank(&self, id: LineageId) -> Option<usize> {
        self.starts.iter().rposition(|start| start.id == id)
    }

    /// The order over all lineages: by rank, then inside the lineage.
    pub fn key(&self, position: Position) -> Key {
        (self.rank(position.lineage).map_or(0, |rank| rank + 1), position.lsn, position.sequence)
    }

    /// The same point on the lineage that it was read on: what lies in front of a lineage's first resume point belongs to
    /// an earlier one, and what lies in a gap comes down to where the gap begins.
    pub fn normalize(&self, mut position: Position) -> Position {
        let mut rank = self.rank(position.lineage).unwrap_or(0);
        while rank > 0 && position.order() < self.starts[rank].tail.order() {
            let Branch { parent, departs } = self.branches[rank];
            let shared = position.order() <= departs.order() && same_system(&self.starts[parent], &self.starts[rank]);
            position = if shared { Position { lineage: self.starts[parent].id, ..position } } else { departs };
            rank = parent;
        }
        position
    }

    /// The last resume point at or before a normalized position that the newest lineage shares.
    fn alive(&self, mut position: Position) -> Position {
        let Some(mut rank) = self.rank(position.lineage) else { return position };
        loop {
            if rank + 1 == self.starts.len() {
                return position;
            }
            if let Some(next) = self.next[rank] {
                let switch = self.starts[next].lineage.switch_lsn;
                return if within(position.lsn, switch) { position } else { Position::new(position.lineage, switch) };
            }
            Branch { parent: rank, departs: position } = self.branches[rank];
        }
    }

    /// The normalized position, if it lies on history that still holds; the error names the last common one.
    pub fn check(&self, requested: Position) -> Result<Position, Error> {
        self.rank(requested.lineage).ok_or(Error::LineageUnknown(requested.lineage))?;
        let at = self.normalize(requested);
        let alive = self.alive(at);
        let dead_branch = alive.lineage != at.lineage;
        let began = self.rank(at.lineage).is_some_and(|rank| at == self.starts[rank].tail);
        if alive.order() == at.order() && (!dead_branch || began) {
            return Ok(alive);
        }
        Err(Error::Diverged { requested, common: alive })
    }

    /// Where a reader that may have seen everything up to `position` has to go back to.
    pub fn floor(&self, position: Position) -> Position {
        self.alive(self.normalize(position))
    }

    /// What a stream on this lineage has before it; `None` on the newest one and on unknown ones.
    pub fn crossing(&self, old: LineageId) -> Option<Crossing> {
        let mut rank = self.rank(old).filter(|rank| rank + 1 < self.starts.len())?;
        let next = loop {
            match self.next[rank] {
                Some(next) => break next,
                None => rank = self.branches[rank].parent,
            }
        };
        let to = self.starts[next].clone();
        let course = |lineage: &Lineage| (lineage.system_identifier, lineage.timeline, lineage.history.clone());
        let same_course = self.starts[rank].id == old && course(&self.starts[rank].lineage) == course(&to.lineage);
        Some(Crossing { old, departs: self.branches[next].departs, to, same_course })
    }

    /// The same place, or where the history goes on that made it dead.
    pub fn onward(&self, mut cursor: Cursor) -> Cursor {
        while let Some(crossing) = self.crossing(cursor.after.lineage)
            && !crossing.holds(cursor.after)
        {
            cursor = Cursor { block: crossing.to.first_block, after: crossing.to.tail };
        }
        cursor
    }

    /// Where each lineage ended for whoever was on it when it did, if that left something dead; oldest first.
    pub fn retracted(&self) -> impl Iterator<Item = Crossing> {
        self.starts.windows(2).zip(&self.branches[1.min(self.branches.len())..]).filter_map(|(pair, branch)| {
            let [old, to] = pair else { return None };
            let dead = branch.departs.lineage != old.id || !within(to.left.lsn, to.lineage.switch_lsn);
            dead.then(|| Crossing { old: old.id, to: to.clone(), departs: branch.departs, same_course: false })
        })
    }
}

fn same_system(a: &LineageStart, b: &LineageStart) -> bool {
    a.lineage.system_identifier == b.lineage.system_identifier
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(timeline: u32, switch: u64) -> Lineage {
        let history = format!("{timeline} at {switch}");
        Lineage { system_identifier: 7, timeline, history, epoch: 0, switch_lsn: Lsn(switch) }
    }

    /// Follows lineages, each when the feed has reached an LSN.
    fn followed(first: u64, switches: &[(u64, u64, Option<u64>)]) -> History {
        let mut history = History::default();
        let start = history.start(lineage(1, first), Position::default(), 1, None);
        history.push(start);
        for (number, (left, switch, gap)) in switches.iter().enumerate() {
            let left = Position::new(history.newest().unwrap().id, Lsn(*left));
            let gap = gap.map(|up_to| (Lsn(up_to), "lost".to_owned()));
            let start = history.start(lineage(number as u32 + 2, *switch), left, 10 * (number as u64 + 1), gap);
            history.push(start);
        }
        history
    }

    fn at(history: &History, rank: usize, lsn: u64) -> Position {
        Position::new(history.starts()[rank].id, Lsn(lsn))
    }

    fn common(history: &History, rank: usize, lsn: u64) -> Result<(usize, u64), (usize, u64)> {
        let place = |position: Position| (history.rank(position.lineage).unwrap(), position.lsn.0);
        match history.check(at(history, rank, lsn)) {
            Ok(position) => Ok(place(position)),
            Err(Error::Diverged { common, .. }) => Err(place(common)),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn one_switch() {
        let history = followed(0, &[(1600, 1000, None)]);
        assert_eq!(history.newest().unwrap().tail, at(&history, 1, 1000));
        assert_eq!(common(&history, 0, 1000), Ok((0, 1000)));
        assert_eq!(common(&history, 0, 1001), Ok((0, 1001)), "a message that ends at the switch");
        assert_eq!(common(&history, 0, 1008), Err((0, 1000)));
        assert_eq!(common(&history, 1, 1000), Ok((1, 1000)), "the switch itself has been crossed");
        assert_eq!(common(&history, 1, 900), Ok((0, 900)));
        assert_eq!(common(&history, 1, 5000), Ok((1, 5000)));
        let crossing = history.crossing(history.starts()[0].id).unwrap();
        assert_eq!((crossing.to.first_block, crossing.departs), (10, at(&history, 0, 1000)));
        assert!(crossing.holds_lsn(Lsn(1001)) && !crossing.holds_lsn(Lsn(1008)) && !crossing.same_course);
        assert_eq!(history.crossing(history.starts()[1].id), None);
    }

    #[test]
    fn a_switch_beyond_what_the_feed_holds_loses_nothing() {
        let history = followed(0, &[(1600, 2000, None)]);
        assert_eq!(history.newest().unwrap().tail, at(&history, 1, 1600));
        assert_eq!(common(&history, 0, 1800), Ok((0, 1800)), "handed out before the feed lost it");
        assert_eq!(common(&history, 0, 2008), Err((0, 2000)));
    }

    #[test]
    fn a_later_switch_may_lie_before_an_earlier_one() {
        let history = followed(0, &[(1600, 1000, None), (3000, 500, None)]);
        assert_eq!(common(&history, 0, 500), Ok((0, 500)));
        assert_eq!(common(&history, 0, 800), Err((0, 500)));
        assert_eq!(common(&history, 1, 1000), Err((0, 500)), "the whole of rank 1 is dead");
        assert_eq!(common(&history, 1, 2000), Err((0, 500)));
        assert_eq!(common(&history, 1, 400), Ok((0, 400)));
        for rank in [0, 1] {
            let crossing = history.crossing(history.starts()[rank].id).unwrap();
            assert_eq!((crossing.to.first_block, crossing.departs), (20, at(&history, 0, 500)));
        }
        let told: Vec<_> = history.retracted().map(|range| (range.old, range.departs.lsn.0)).collect();
        assert_eq!(told, [(history.starts()[0].id, 1000), (history.starts()[1].id, 500)]);
    }

    #[test]
    fn two_switches_in_a_row_are_crossed_one_after_the_other() {
        let history = followed(0, &[(1600, 1000, None), (3000, 2504, None)]);
        assert_eq!(history.crossing(history.starts()[0].id).unwrap().to.id, history.starts()[1].id);
        assert_eq!(history.crossing(history.starts()[1].id).unwrap().to.id, history.starts()[2].id);
        assert_eq!(common(&history, 1, 2504), Ok((1, 2504)));
        assert_eq!(common(&history, 1, 3000), Err((1, 2504)));
        assert_eq!(common(&history, 2, 100), Ok((0, 100)));
    }

    #[test]
    fn what_lies_in_a_gap_comes_down_to_its_beginning() {
        let history = followed(0, &[(1600, 1000, Some(3000))]);
        assert_eq!(history.newest().unwrap().tail, at(&history, 1, 3000));
        assert_eq!(common(&history, 1, 2000), Ok((0, 1000)));
        assert_eq!(common(&history, 1, 3000), Ok((1, 3000)));
        assert_eq!(common(&history, 0, 1600), Err((0, 1000)));
    }

    #[test]
    fn a_switch_inside_a_gap_departs_from_where_the_gap_began() {
        let history = followed(0, &[(1600, 1600, Some(3000)), (4000, 2000, None)]);
        assert_eq!(history.newest().unwrap().tail, at(&history, 2, 1600), "the gap can be read after all");
        assert_eq!(common(&history, 1, 3000), Err((0, 1600)));
        assert_eq!(history.crossing(history.starts()[0].id).unwrap().to.id, history.starts()[2].id);
    }

    #[test]
    fn another_system_shares_nothing() {
        let mut history = followed(0, &[]);
        let left = at(&history, 0, 1600);
        let other = Lineage { system_identifier: 8, epoch: 1, ..lineage(1, 1600) };
        let start = history.start(other.clone(), left, 10, Some((Lsn(200), "rebased".into())));
        history.push(start);
        assert_eq!(history.newest().unwrap().tail, at(&history, 1, 200));
        let left = at(&history, 1, 900);
        let start = history.start(Lineage { switch_lsn: Lsn(100), timeline: 2, ..other }, left, 20, None);
        history.push(start);
        assert_eq!(history.newest().unwrap().tail, at(&history, 2, 100), "restored to before it was known");
        assert_eq!(common(&history, 0, 1600), Ok((0, 1600)));
        assert_eq!(common(&history, 1, 900), Err((1, 100)));
    }
}

//! Taking horizons, and choosing one.
//!
//! A horizon must tell what need not be read (transactions that its snapshot sees, whose commit records lie before its
//! high LSN) and where the journal must be searched for what it does not see. The latter needs care: a commit record is
//! written before its transaction counts as ended, by as long as synchronous replication takes. So the low LSN is taken
//! first, then a fresh transaction id: ids at or above it are assigned later, and their commit records lie behind the low
//! LSN. It serves a snapshot once everything below that id has ended.

use crate::{
    feed::{History, LineageStart},
    journal::Horizon,
    lsn::Lsn,
    model::{LineageId, Position},
    postgres::{Result, server, sql::Sql},
};

/// Takes horizons on one connection.
#[derive(Debug, Default)]
pub struct Marker {
    /// Low LSN and the id assigned after it, oldest first.
    lows: Vec<(Lsn, u64)>,
}

/// Texts of snapshots with more transactions in progress than this are not kept.
const MOST_BYTES: usize = 4096;

impl Marker {
    /// The next horizon; `None` while everything is held up by an old transaction. To be recorded when the journal is
    /// complete up to its high LSN.
    pub async fn take(&mut self, sql: &Sql, lineage: LineageId) -> Result<Option<Horizon>> {
        let snapshot = server::current_snapshot(sql).await?;
        let high = server::wal_positions(sql).await?.insert;
        let usable = self.lows.partition_point(|(_, id)| *id <= snapshot.xmin);
        let low = usable.checked_sub(1).map(|at| self.lows[at].0);
        self.lows.drain(..usable.saturating_sub(1));
        let next = server::wal_positions(sql).await?.insert;
        self.lows.push((next, server::assign_xid(sql).await?));
        // An old transaction keeps them all: every second one serves as well.
        if self.lows.len() > 64 {
            let mut keep = false;
            self.lows.retain(|_| {
                keep = !keep;
                keep
            });
        }
        let text = snapshot.to_string();
        Ok(low.filter(|_| text.len() <= MOST_BYTES).map(|low| Horizon { lineage, snapshot: text, low, high }))
    }
}

/// Whether a horizon means the same on the newest lineage. One that was taken past the switch does not, since the
/// promoted server hands out the ids anew that it sees; nor does one of another system, whose ids and LSNs say nothing of this
/// one (after pg_upgrade they would, but nothing tells that from a restored dump).
pub fn holds(horizon: &Horizon, history: &History) -> bool {
    let of = |start: &LineageStart| start.lineage.system_identifier;
    let taken_on = history.rank(horizon.lineage).map(|rank| of(&history.starts()[rank]));
    taken_on == history.newest().map(of) && history.check(Position::new(horizon.lineage, horizon.high)).is_ok()
}

/// The newest horizon that means the same on the newest lineage and that the journal covers up to `cut`.
pub fn newest_valid<'h>(horizons: &'h [Horizon], history: &History, cut: Position) -> Option<&'h Horizon> {
    let valid = |horizon: &&Horizon| horizon.high <= cut.lsn && holds(horizon, history);
    horizons.iter().filter(valid).max_by_key(|horizon| (history.rank(horizon.lineage), horizon.high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Lineage;

    #[test]
    fn only_a_horizon_before_the_switch_holds_on_both_sides() {
        let lineage = |timeline, switch| {
            let history = "x".repeat(timeline as usize);
            Lineage { system_identifier: 1, timeline, history, epoch: 0, switch_lsn: Lsn(switch) }
        };
        let mut history = History::default();
        history.push(history.start(lineage(1, 0), Position::default(), 1, None));
        let before = history.clone();
        let left = Position::new(before.starts()[0].id, Lsn(600));
        history.push(history.start(lineage(2, 504), left, 2, None));
        let lineages = history.starts();
        let of = |which: usize, high| Horizon {
            lineage: lineages[which].id,
            snapshot: "1:1:".into(),
            low: Lsn(high - 10),
            high: Lsn(high),
        };
        let horizons = [of(0, 104), of(0, 496), of(0, 512)];
        let at = |which: usize, lsn| Position::new(lineages[which].id, Lsn(lsn));
        let high = |found: Option<&Horizon>| found.map(|horizon| horizon.high.0);
        assert_eq!(high(newest_valid(&horizons, &before, at(0, 600))), Some(512));
        assert_eq!(high(newest_valid(&horizons, &history, at(1, 504))), Some(496), "past the switch");
        assert_eq!(high(newest_valid(&horizons, &history, at(1, 400))), Some(104), "not journaled on this lineage");
        assert_eq!(high(newest_valid(&horizons, &history, at(1, 90))), None);
        let both = [of(0, 496), of(1, 520)];
        assert_eq!(high(newest_valid(&both, &history, at(1, 600))), Some(520));
        assert_eq!(high(newest_valid(&both[1..], &before, at(0, 600))), None, "an unknown lineage");
        let hold = |history| horizons.each_ref().map(|horizon| holds(horizon, history));
        assert_eq!((hold(&before), hold(&history)), ([true; 3], [true, true, false]));

        let mut rebased = before.clone();
        let other = Lineage { system_identifier: 2, ..lineage(1, 600) };
        rebased.push(rebased.start(other, left, 2, Some((Lsn(700), "another system".into()))));
        let here = Position::new(rebased.starts()[1].id, Lsn(800));
        assert!(rebased.check(Position::new(lineages[0].id, Lsn(496))).is_ok(), "to a client nothing was taken back");
        assert_eq!(high(newest_valid(&horizons, &rebased, here)), None, "another system's ids");
        let own = [Horizon { lineage: here.lineage, ..of(0, 720) }];
        assert_eq!(high(newest_valid(&own, &rebased, here)), Some(720));
    }
}

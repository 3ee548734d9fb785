//! When which position was reached: a sparse memory of commit times, so that a lag in bytes can be told in time too.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;

use crate::model::Position;

/// Microseconds between 1970-01-01 and 2000-01-01, PostgreSQL's epoch.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;
const SAMPLES: usize = 4096;
const RESOLUTION: i64 = 1_000_000;

/// The hub's clock, microseconds since 2000-01-01 UTC.
pub(super) fn now() -> i64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(unix.as_micros()).unwrap_or(i64::MAX) - POSTGRES_EPOCH
}

/// Samples of (position, time), at most one a second and of one lineage; once full, every other one is dropped, so
/// that the memory always reaches back to the start of the process.
#[derive(Debug, Default)]
pub(super) struct Timeline(Mutex<VecDeque<(Position, i64)>>);

impl Timeline {
    /// `position` was reached at `time`.
    pub fn record(&self, position: Position, time: i64) {
        let mut samples = self.0.lock();
        match samples.back() {
            Some((last, _)) if last.lineage != position.lineage => samples.clear(),
            Some((last, at)) if position.order() <= last.order() || time < at + RESOLUTION => return,
            _ => {}
        }
        if samples.len() >= SAMPLES {
            let mut keep = false;
            samples.retain(|_| {
                keep = !keep;
                keep
            });
        }
        samples.push_back((position, time));
    }

    /// Time since the first position after `position` was reached, as far back as the hub remembers; zero if the hub
    /// remembers none.
    pub fn since(&self, position: Position, now: i64) -> Duration {
        let samples = self.0.lock();
        let after = samples
            .partition_point(|(sample, _)| sample.lineage == position.lineage && sample.order() <= position.order());
        let micros = samples.get(after).map_or(0, |(_, time)| now.saturating_sub(*time).max(0));
        Duration::from_micros(micros as u64)
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
    fn lag_counts_from_the_first_position_that_is_missing() {
        let timeline = Timeline::default();
        for second in 0..10 {
            timeline.record(at(100 + second * 10), second as i64 * RESOLUTION);
        }
        timeline.record(at(195), 9 * RESOLUTION + 1);
        assert_eq!(timeline.since(at(100), 9 * RESOLUTION), Duration::from_secs(8));
        assert_eq!(timeline.since(at(185), 9 * RESOLUTION), Duration::from_secs(0));
        assert_eq!(timeline.since(at(1), 9 * RESOLUTION), Duration::from_secs(9));
        assert_eq!(timeline.since(at(500), 9 * RESOLUTION), Duration::ZERO);
    }

    #[test]
    fn memory_is_bounded_and_keeps_its_beginning() {
        let timeline = Timeline::default();
        for second in 0..100_000 {
            timeline.record(at(100 + second), second as i64 * RESOLUTION);
        }
        assert!(timeline.0.lock().len() <= SAMPLES);
        assert_eq!(timeline.since(at(1), 100_000 * RESOLUTION), Duration::from_secs(100_000));
    }
}

//! When a stream says `progress`: every second while something moves, every ten when nothing does, at once when the
//! stream has caught up for the first time or the source comes or goes.

use std::time::Duration;

use tokio::time::Instant;

use super::lag;
use crate::{
    feed::{Marks, Resume, Window, resume_to_pb},
    model::Position,
    wire::{pb, position_to_pb, timestamp},
};

const MOVING: Duration = Duration::from_secs(1);
const SILENT: Duration = Duration::from_secs(10);
const SHORTEST: Duration = Duration::from_millis(10);

/// What makes a progress worth sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub position: Resume,
    pub checkpoint: Option<Resume>,
    pub connected: bool,
}

#[derive(Debug)]
pub(super) struct Pace {
    moving: Duration,
    silent: Duration,
    last: Instant,
    reported: Standing,
    at_once: bool,
    told: Option<Position>,
}

impl Pace {
    /// A stream that has just told `standing`. An interval of the client's holds for both cases, from 10 ms.
    pub fn new(interval: Option<Duration>, now: Instant, standing: Standing) -> Self {
        let (moving, silent) = interval.map_or((MOVING, SILENT), |interval| {
            let interval = interval.max(SHORTEST);
            (interval, interval)
        });
        Pace { moving, silent, last: now, reported: standing, at_once: false, told: None }
    }

    /// The next progress is due now.
    pub fn at_once(&mut self) {
        self.at_once = true;
    }

    /// Whether asking [`Pace::due`] is worth it while blocks are flowing.
    pub fn may_be_due(&self, now: Instant) -> bool {
        self.at_once || now >= self.last + self.moving
    }

    /// Whether the source has come or gone since the last progress.
    pub fn turned(&self, connected: bool) -> bool {
        connected != self.reported.connected
    }

    pub fn due(&self, now: Instant, standing: &Standing) -> bool {
        self.at_once || self.turned(standing.connected) || now >= self.deadline(standing)
    }

    pub fn deadline(&self, standing: &Standing) -> Instant {
        self.last + if *standing == self.reported { self.silent } else { self.moving }
    }

    /// [`deadline`](Self::deadline) where it is known from the position alone: the stream has moved.
    pub fn deadline_after(&self, passed: Position) -> Option<Instant> {
        (passed != self.reported.position.position).then(|| self.last + self.moving)
    }

    pub fn told(&mut self, now: Instant, standing: Standing) {
        self.last = now;
        self.at_once = false;
        self.told = Some(standing.position.position);
        self.reported = standing;
    }

    /// What was told does not count any more, and the next progress is due now.
    pub fn again(&mut self) {
        self.at_once = true;
        self.told = None;
    }

    /// The position of the last progress.
    pub fn last_told(&self) -> Option<Position> {
        self.told
    }
}

/// The event.
pub(super) fn event(
    standing: &Standing,
    marks: Marks,
    window: Window,
    caught_up: bool,
    credit: Option<(u64, u64)>,
) -> pb::Progress {
    pb::Progress {
        position: Some(resume_to_pb(&standing.position)),
        tail: Some(position_to_pb(marks.tail)),
        caught_up,
        source_connected: standing.connected,
        time: Some(timestamp(lag::now())),
        checkpoint: standing.checkpoint.as_ref().map(resume_to_pb),
        credit: credit.map(|(events, bytes)| pb::Credit { events, bytes }),
        expires_in: expires_in(standing.position.position, window).filter(|_| !caught_up),
    }
}

/// How long the position will be retained at the present rate, once that is less than an hour or the position lies in the
/// oldest fifth of what is retained. Streams that have caught up are not warned.
fn expires_in(position: Position, window: Window) -> Option<prost_types::Duration> {
    if window.expiry_bytes_per_second == 0 || position.lineage != window.earliest.lineage {
        return None;
    }
    let left = position.lsn.since(window.earliest.lsn);
    let retained = window.tail.lsn.since(window.earliest.lsn);
    let seconds = left / window.expiry_bytes_per_second;
    (seconds < 3600 || left < retained / 5)
        .then(|| prost_types::Duration { seconds: i64::try_from(seconds).unwrap_or(i64::MAX), nanos: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lsn::Lsn, model::LineageId};

    fn at(lsn: u64) -> Position {
        Position::new(LineageId(1), Lsn(lsn))
    }

    fn standing(lsn: u64) -> Standing {
        Standing { position: at(lsn).into(), checkpoint: None, connected: true }
    }

    #[test]
    fn every_second_while_moving_every_ten_when_silent() {
        let now = Instant::now();
        let pace = Pace::new(None, now, standing(1));
        assert!(!pace.due(now + SILENT - SHORTEST, &standing(1)) && pace.due(now + SILENT, &standing(1)));
        assert!(!pace.due(now + MOVING - SHORTEST, &standing(2)) && pace.due(now + MOVING, &standing(2)));
        let checkpointed = Standing { checkpoint: Some(at(1).into()), ..standing(1) };
        assert!(pace.due(now + MOVING, &checkpointed));
        assert!(pace.due(now, &Standing { connected: false, ..standing(1) }));
    }

    #[test]
    fn a_warning_comes_near_the_end_of_retention() {
        let window =
            |rate| Window { earliest: at(1000), tail: at(101_000), expiry_bytes_per_second: rate, ..Window::default() };
        let seconds = |lsn, rate| expires_in(at(lsn), window(rate)).map(|duration| duration.seconds);
        assert_eq!(seconds(50_000, 0), None);
        assert_eq!(seconds(50_000, 1), None);
        assert_eq!(seconds(50_000, 49), Some(1000), "less than an hour");
        assert_eq!(seconds(11_000, 1), Some(10_000), "the oldest fifth");
        assert_eq!(seconds(500, 1), Some(0));
    }
}
